package tokenizer

import (
	"slices"
	"sort"
	"strings"
	"unicode"
	"unicode/utf8"
)

// added are tokens that stand apart: they are cut out of a text, and nothing is
// merged with them. The leftmost goes first, and the longest of those that start there.
type added struct {
	tokens []addedText // sorted by their text, each once
	from   [257]int32  // first byte -> index of the first token that starts with it, and of the one after
	// control: some of them are.
	control bool
}

// addedText is one of them.
type addedText struct {
	text           string
	id             int32
	lstrip, rstrip bool // it swallows the white space before or after it
	word           bool // it counts only where no letter or digit is next to it
	control        bool // it steers the model: text that users wrote is never taken for it
}

func newAdded(tokens []addedText) added {
	var a added
	for _, t := range tokens {
		if t.text != "" {
			a.tokens = append(a.tokens, t)
			a.control = a.control || t.control
		}
	}
	slices.SortStableFunc(a.tokens, func(a, b addedText) int { return strings.Compare(a.text, b.text) })
	kept := a.tokens[:0]
	for i, t := range a.tokens {
		if i+1 == len(a.tokens) || a.tokens[i+1].text != t.text { // of two, the last
			kept = append(kept, t)
		}
	}
	a.tokens = kept
	for _, t := range a.tokens {
		a.from[int(t.text[0])+1]++
	}
	for c := range 256 {
		a.from[c+1] += a.from[c]
	}
	return a
}

func (a *added) bytes() int64 {
	n := int64(len(a.tokens)) * 40
	for _, t := range a.tokens {
		n += int64(len(t.text))
	}
	return n
}

// looksControl says of a token that its file does not call special whether it is
// meant to steer a model all the same: many files of models with "<|user|>" do so.
func looksControl(text string) bool {
	for _, brackets := range [][2]string{{"<|", "|>"}, {"<｜", "｜>"}} {
		if strings.HasPrefix(text, brackets[0]) && strings.HasSuffix(text, brackets[1]) && len(text) > len(brackets[0])+len(brackets[1]) {
			return true
		}
	}
	return text == "<s>" || text == "</s>"
}

// plain are ranges of bytes of a text that users wrote: sorted, disjoint.
type plain [][2]int

// after is the first of them that ends after a byte.
func (p plain) after(at int) int {
	return sort.Search(len(p), func(i int) bool { return p[i][1] > at })
}

// has says whether a range of bytes overlaps with any of them.
func (p plain) has(start, end int) bool {
	i := p.after(start)
	return i < len(p) && p[i][0] < end
}

// split calls f with each part of the text that is not empty, in order: an added
// token's id, or noID for what is between them, and where it starts.
func (a *added) split(text string, users plain, f func(part string, start int, id int32)) {
	if len(a.tokens) == 0 {
		if text != "" {
			f(text, 0, noID)
		}
		return
	}
	done := 0 // text before this byte is dealt with
	for i := a.next(text, 0); i < len(text); i = a.next(text, i) {
		t, ok := a.at(text, i, users)
		if !ok {
			i++
			continue
		}
		start, end := i, i+len(t.text)
		i = end
		if t.word && (inWord(utf8.DecodeLastRuneInString(text[:start])) || inWord(utf8.DecodeRuneInString(text[end:]))) {
			continue
		}
		if t.lstrip {
			start = done + len(strings.TrimRightFunc(text[done:max(done, start)], unicode.IsSpace))
		}
		if t.rstrip {
			end = len(text) - len(strings.TrimLeftFunc(text[end:], unicode.IsSpace))
		}
		if done < start {
			f(text[done:start], done, noID)
		}
		f(text[start:end], start, t.id)
		done = end
	}
	if done < len(text) {
		f(text[done:], done, noID)
	}
}

// next is the first byte from i on that some token starts with.
func (a *added) next(text string, i int) int {
	if first := a.tokens[0].text[0]; first == a.tokens[len(a.tokens)-1].text[0] {
		if n := strings.IndexByte(text[i:], first); n >= 0 {
			return i + n
		}
		return len(text)
	}
	for i < len(text) && a.from[text[i]] == a.from[int(text[i])+1] {
		i++
	}
	return i
}

// at is the longest token at byte i, control tokens only outside of what users wrote.
func (a *added) at(text string, i int, users plain) (best addedText, ok bool) {
	lo, hi := int(a.from[text[i]]), int(a.from[int(text[i])+1])
	for n := 1; lo < hi; n++ { // tokens lo to hi start with the n bytes at i
		if t := a.tokens[lo]; len(t.text) == n {
			if !t.control || !users.has(i, i+n) {
				best, ok = t, true
			}
			lo++
		}
		if i+n == len(text) {
			break
		}
		c := text[i+n]
		lo += sort.Search(hi-lo, func(k int) bool { return a.tokens[lo+k].text[n] >= c })
		hi = lo + sort.Search(hi-lo, func(k int) bool { return a.tokens[lo+k].text[n] > c })
	}
	return best, ok
}

// inWord is \w of Unicode's regular expressions (UTS 18).
func inWord(r rune, n int) bool {
	return n > 0 && (unicode.In(r, unicode.L, unicode.M, unicode.Nd, unicode.Nl, unicode.Pc, unicode.Other_Alphabetic, unicode.Join_Control))
}
