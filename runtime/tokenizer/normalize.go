package tokenizer

import (
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"

	"github.com/estiba/estiba/runtime/tokenizer/pattern"
)

// step is one step of normalization. A part of a text may be normalized in pieces; at
// says whether this one is the first and the last.
type step func(text string, at edges) string

type edges struct {
	start, end bool
	first      bool // it is at the start of the whole text, not after an added token
}

var whole = edges{true, true, true}

func normalize(steps []step, text string, at edges) string {
	for _, s := range steps {
		text = s(text, at)
	}
	return text
}

// prepend puts something in front of a part that is not empty, or of the first one only.
func prepend(front string, onlyFirst bool) step {
	return func(text string, at edges) string {
		if text == "" || !at.start || onlyFirst && !at.first {
			return text
		}
		return front + text
	}
}

func replaceAll(old, new string) step {
	return func(text string, _ edges) string { return strings.ReplaceAll(text, old, new) }
}

func replaceMatches(p *pattern.Pattern, new string) step {
	return func(text string, _ edges) string {
		var b strings.Builder
		done := 0
		m := p.Find(text)
		for {
			start, end, ok := m.Next()
			if !ok {
				break
			}
			b.WriteString(text[done:start])
			b.WriteString(new)
			done = end
		}
		if done == 0 && b.Len() == 0 {
			return text
		}
		b.WriteString(text[done:])
		return b.String()
	}
}

// strip drops white space from the ends.
func strip(left, right bool) step {
	return func(text string, at edges) string {
		if left && at.start {
			text = strings.TrimLeftFunc(text, unicode.IsSpace)
		}
		if right && at.end {
			text = strings.TrimRightFunc(text, unicode.IsSpace)
		}
		return text
	}
}

// form normalizes as UAX 15 says. The package norm puts a U+034F into a run of more
// than thirty marks, which no tokenizer does; such texts take the slow way.
func form(f norm.Form) step {
	return func(text string, _ edges) string {
		if f.QuickSpanString(text) == len(text) {
			return text
		}
		const joiner = "\u034f"
		out := f.String(text)
		if strings.Count(out, joiner) > strings.Count(text, joiner) {
			return slowForm(f, text)
		}
		return out
	}
}

// slowForm is the definition: decompose, order marks, compose.
func slowForm(f norm.Form, text string) string {
	decompose := norm.NFD
	if f == norm.NFKC || f == norm.NFKD {
		decompose = norm.NFKD
	}
	type mark struct {
		r     rune
		class uint8
	}
	var marks []mark
	for _, r := range text {
		for _, d := range decompose.String(string(r)) {
			marks = append(marks, mark{d, norm.NFD.PropertiesString(string(d)).CCC()})
		}
	}
	for i := 0; i < len(marks); i++ {
		j := i
		for j < len(marks) && marks[j].class != 0 {
			j++
		}
		slices.SortStableFunc(marks[i:j], func(a, b mark) int { return int(a.class) - int(b.class) })
		i = j
	}
	if f == norm.NFC || f == norm.NFKC {
		out, starter, last := marks[:0], -1, uint8(0)
		for _, m := range marks {
			if starter >= 0 && (starter == len(out)-1 || last < m.class) {
				pair := norm.NFC.String(string(out[starter].r) + string(m.r))
				if r, n := utf8.DecodeRuneInString(pair); n == len(pair) {
					out[starter].r = r
					continue
				}
			}
			if last = m.class; m.class == 0 {
				starter = len(out)
			}
			out = append(out, m)
		}
		marks = out
	}
	var b strings.Builder
	for _, m := range marks {
		b.WriteRune(m.r)
	}
	return b.String()
}

// lowercase maps character by character, whatever the word around it.
func lowercase(text string, _ edges) string {
	return strings.ReplaceAll(strings.Map(func(r rune) rune {
		if r == 'İ' { // the only one that becomes two
			return r
		}
		return unicode.ToLower(r)
	}, text), "İ", "i̇")
}

func stripAccents(text string, _ edges) string {
	return strings.Map(func(r rune) rune {
		if unicode.Is(unicode.M, r) {
			return -1
		}
		return r
	}, text)
}

// bertNormalizer is BERT's.
// Source: tokenizers' normalizers/bert.rs.
type bertNormalizer struct {
	clean   bool // no control characters, and one kind of space
	chinese bool // spaces around ideographs
	strip   bool // accents
	lower   bool
}

func (b bertNormalizer) steps() []step {
	var s []step
	if b.clean {
		s = append(s, func(text string, _ edges) string {
			return strings.Map(func(r rune) rune {
				switch {
				case r == '\t' || r == '\n' || r == '\r':
					return ' '
				case r == utf8.RuneError || isControl8(r):
					return -1
				case unicode.IsSpace(r):
					return ' '
				}
				return r
			}, text)
		})
	}
	if b.chinese {
		s = append(s, func(text string, _ edges) string {
			if !strings.ContainsFunc(text, isIdeograph) {
				return text
			}
			var out strings.Builder
			for _, r := range text {
				if isIdeograph(r) {
					out.WriteByte(' ')
					out.WriteRune(r)
					out.WriteByte(' ')
				} else {
					out.WriteRune(r)
				}
			}
			return out.String()
		})
	}
	if b.strip {
		s = append(s, form(norm.NFD), func(text string, _ edges) string {
			return strings.Map(func(r rune) rune {
				if isMark8(r) {
					return -1
				}
				return r
			}, text)
		})
	}
	if b.lower {
		s = append(s, lowercase)
	}
	return s
}

func isIdeograph(r rune) bool {
	return r >= 0x3400 && unicode.Is(ideographs, r)
}

// ideographs are BERT's: blocks, with the gap that its code has.
var ideographs = &unicode.RangeTable{
	R16: []unicode.Range16{{Lo: 0x3400, Hi: 0x4dbf, Stride: 1}, {Lo: 0x4e00, Hi: 0x9fff, Stride: 1}, {Lo: 0xf900, Hi: 0xfaff, Stride: 1}},
	R32: []unicode.Range32{
		{Lo: 0x20000, Hi: 0x2a6df, Stride: 1}, {Lo: 0x2a700, Hi: 0x2b73f, Stride: 1}, {Lo: 0x2b740, Hi: 0x2b81f, Stride: 1},
		{Lo: 0x2b920, Hi: 0x2ceaf, Stride: 1}, {Lo: 0x2f800, Hi: 0x2fa1f, Stride: 1},
	},
}
