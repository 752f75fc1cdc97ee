// Package terminal makes what others wrote fit to be shown on a terminal: a
// Model's source, a server's error, an argument may have characters that move the
// cursor or hide text. Start with Line.
package terminal

import (
	"io"
	"strconv"
	"strings"
	"unicode"
)

// Line is s as one line: control characters, and those that change the direction of
// text, are written as in Go's string literals.
func Line(s string) string { return escape(s, "") }

// Text is s as lines: newlines and tabs stay.
func Text(s string) string { return escape(s, "\n\t") }

func escape(s, stay string) string {
	harmless := func(r rune) bool {
		return strings.ContainsRune(stay, r) || !unicode.IsControl(r) && !unicode.Is(unicode.Cf, r)
	}
	if strings.IndexFunc(s, func(r rune) bool { return !harmless(r) || r == unicode.ReplacementChar }) < 0 {
		return s
	}
	var b strings.Builder
	for _, r := range s { // of a byte that is no UTF-8 it makes U+FFFD
		if harmless(r) {
			b.WriteRune(r)
			continue
		}
		quoted := strconv.QuoteRuneToASCII(r)
		b.WriteString(quoted[1 : len(quoted)-1])
	}
	return b.String()
}

// Writer passes lines on as Text has them. Each Write is to have whole characters.
func Writer(w io.Writer) io.Writer { return writer{w} }

type writer struct{ to io.Writer }

func (w writer) Write(b []byte) (int, error) {
	if _, err := io.WriteString(w.to, Text(string(b))); err != nil {
		return 0, err
	}
	return len(b), nil
}
