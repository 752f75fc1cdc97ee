package tokenizer

import (
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/estiba/estiba/runtime/tokenizer/pattern"
)

// split cuts a part of a text into smaller ones, and may change it first. first says
// whether the part is at the start of the whole text.
type split func(part string, first bool, next func(part string, first bool))

// finder goes through all of a part: what matches, and what is between matches.
type finder func(part string, yield func(start, end int, match bool))

// behavior is what becomes of matches.
type behavior uint8

const (
	isolated behavior = iota
	removed
	mergedWithPrevious
	mergedWithNext
	contiguous
)

var behaviors = map[string]behavior{
	"Isolated": isolated, "Removed": removed, "MergedWithPrevious": mergedWithPrevious, "MergedWithNext": mergedWithNext, "Contiguous": contiguous,
}

// splitBy cuts at what a finder finds.
// Source: tokenizers' NormalizedString::split.
func splitBy(find finder, b behavior) split {
	return func(part string, first bool, next func(string, bool)) {
		give := func(start, end int) {
			if start < end {
				next(part[start:end], first && start == 0)
			}
		}
		from, to, last := -1, 0, false // what waits for its neighbour, and whether the last was a match
		find(part, func(start, end int, match bool) {
			joined := false
			switch b {
			case isolated:
				give(start, end)
				return
			case removed:
				if !match {
					give(start, end)
				}
				return
			case contiguous:
				joined = match == last
			case mergedWithPrevious:
				joined = match && !last
			case mergedWithNext:
				joined = !match && last
			}
			last = match
			if from >= 0 && !joined {
				give(from, to)
				from = -1
			}
			if from < 0 {
				from = start
			}
			to = end
		})
		if from >= 0 {
			give(from, to)
		}
	}
}

// invert takes what is between matches for them.
func (f finder) invert() finder {
	return func(part string, yield func(int, int, bool)) {
		f(part, func(start, end int, match bool) { yield(start, end, !match) })
	}
}

func findPattern(p *pattern.Pattern) finder {
	return func(part string, yield func(int, int, bool)) {
		done := 0
		for m := p.Find(part); ; {
			start, end, ok := m.Next()
			if !ok {
				break
			}
			if done < start {
				yield(done, start, false)
			}
			yield(start, end, true)
			done = end
		}
		if done < len(part) {
			yield(done, len(part), false)
		}
	}
}

// findRunes matches single characters.
func findRunes(is func(rune) bool) finder {
	return func(part string, yield func(int, int, bool)) {
		done := 0
		for i, r := range part {
			if is(r) {
				if done < i {
					yield(done, i, false)
				}
				done = i + utf8.RuneLen(r)
				yield(i, done, true)
			}
		}
		if done < len(part) {
			yield(done, len(part), false)
		}
	}
}

func findText(text string) finder {
	return func(part string, yield func(int, int, bool)) {
		for done := 0; done < len(part); {
			i := strings.Index(part[done:], text)
			if i < 0 {
				yield(done, len(part), false)
				return
			}
			if i > 0 {
				yield(done, done+i, false)
			}
			done += i + len(text)
			yield(done-len(text), done, true)
		}
	}
}

// isPunctuation is BERT's: ASCII's symbols are punctuation too.
func isPunctuation(r rune) bool {
	if r < utf8.RuneSelf {
		return isASCIIPunctuation(r)
	}
	return isPunctuation8(r)
}

func isASCIIPunctuation(r rune) bool {
	return '!' <= r && r <= '/' || ':' <= r && r <= '@' || '[' <= r && r <= '`' || '{' <= r && r <= '~'
}

func isNumeric(r rune) bool { return unicode.In(r, unicode.N) }

// splitBert cuts at white space and around punctuation.
func splitBert(part string, first bool, next func(string, bool)) {
	start := 0
	give := func(end int) {
		if start < end {
			next(part[start:end], first && start == 0)
		}
	}
	for i, r := range part {
		n := utf8.RuneLen(r)
		switch {
		case unicode.IsSpace(r):
			give(i)
			start = i + n
		case isPunctuation(r):
			give(i)
			start = i
			give(i + n)
			start = i + n
		}
	}
	give(len(part))
}

// metaspace writes spaces as another character, one in front if it is asked for, and
// starts a part at each.
type metaspace struct {
	space   string
	prepend prependScheme
	split   bool
}

type prependScheme string

const (
	prependAlways prependScheme = "always"
	prependFirst  prependScheme = "first" // at the start of the text
	prependNever  prependScheme = "never"
)

func (m metaspace) do(part string, first bool, next func(string, bool)) {
	part = strings.ReplaceAll(part, " ", m.space)
	if !strings.HasPrefix(part, m.space) && (m.prepend == prependAlways || m.prepend == prependFirst && first) {
		part = m.space + part
	}
	if !m.split {
		next(part, first)
		return
	}
	splitBy(findText(m.space), mergedWithNext)(part, first, next)
}

// gpt2 is the split of ByteLevel.
// Source: openai/gpt-2, src/encoder.py.
const gpt2 = `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`

// spaceInFront puts a space in front of a part that has none.
func spaceInFront(part string, first bool, next func(string, bool)) {
	if !strings.HasPrefix(part, " ") {
		part = " " + part
	}
	next(part, first)
}

// intoAlphabet writes a part in GPT-2's alphabet, for splits that come after it.
func intoAlphabet(part string, first bool, next func(string, bool)) {
	next(toAlphabet(part), first)
}

// outOfAlphabet takes that back; a part is whole bytes.
func outOfAlphabet(part string, first bool, next func(string, bool)) {
	bytes, _ := fromAlphabet(part)
	next(bytes, first)
}
