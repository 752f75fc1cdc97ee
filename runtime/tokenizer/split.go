package tokenizer

import (
	"slices"
	"strings"
	"unicode"
)

// splitter cuts special tokens out of a text: the leftmost first, the longest
// of those that start there.
type splitter struct {
	byFirst [256][]special // longest first
	any     bool
}

// special is a token that stands apart: nothing is merged with it.
type special struct {
	text           string
	id             int32
	lstrip, rstrip bool // it swallows the white space before or after it
}

func newSplitter(tokens []special) splitter {
	var s splitter
	for _, t := range tokens {
		if t.text != "" {
			s.byFirst[t.text[0]] = append(s.byFirst[t.text[0]], t)
			s.any = true
		}
	}
	for i := range s.byFirst {
		slices.SortStableFunc(s.byFirst[i], func(a, b special) int { return len(b.text) - len(a.text) })
	}
	return s
}

// split calls f with each part of the text that is not empty, in order: a
// special token's id, or -1 for what is between them.
func (s *splitter) split(text string, f func(part string, id int32)) {
	if !s.any {
		if text != "" {
			f(text, noID)
		}
		return
	}
	done := 0 // text before this byte is dealt with
	for i := 0; i < len(text); {
		t, ok := s.at(text[i:])
		if !ok {
			i++
			continue
		}
		start, end := i, i+len(t.text)
		if t.lstrip {
			start = done + len(strings.TrimRightFunc(text[done:i], unicode.IsSpace))
		}
		if t.rstrip {
			end = len(text) - len(strings.TrimLeftFunc(text[end:], unicode.IsSpace))
		}
		if done < start {
			f(text[done:start], noID)
		}
		f(text[start:end], t.id)
		done, i = end, end
	}
	if done < len(text) {
		f(text[done:], noID)
	}
}

func (s *splitter) at(text string) (special, bool) {
	for _, t := range s.byFirst[text[0]] {
		if strings.HasPrefix(text, t.text) {
			return t, true
		}
	}
	return special{}, false
}
