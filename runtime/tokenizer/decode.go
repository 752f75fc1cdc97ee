package tokenizer

import (
	"strings"
	"unicode/utf8"
)

// decoder says how the texts of tokens become one.
type decoder struct {
	// first gives what a token adds at the start of a text, if that differs from elsewhere.
	first func(file string) string
	// strip: so many of these characters are dropped from the start of a text.
	strip     int
	stripRune rune
	// wholeRuns: a run of byte tokens that is no valid UTF-8 is all U+FFFD, as with
	// Hugging Face's ByteFallback; otherwise its valid characters stay.
	wholeRuns bool
}

// text is what a token adds.
func (t *Tokenizer) text(id int32, p *piece, first bool) string {
	if first && t.decoder.first != nil && p.kind == isText {
		return t.decoder.first(t.Text(id))
	}
	return p.text
}

// Decode gives the text of ids. With special, special tokens are part of it.
// Ids outside the vocabulary give nothing.
func (t *Tokenizer) Decode(ids []int32, special bool) string {
	var text strings.Builder
	var run []byte
	var kind kind // of the run
	endRun := func() {
		if kind == isByte && t.decoder.wholeRuns && !utf8.Valid(run) {
			text.WriteString(strings.Repeat(replacement, len(run)))
		} else if len(run) > 0 {
			text.WriteString(lossy(run, kind == isByte))
		}
		run = run[:0]
	}
	first := true
	for _, id := range ids {
		p := t.piece(id)
		if p.kind == isNothing || p.hidden && !special {
			continue
		}
		if p.kind != kind {
			endRun()
			kind = p.kind
		}
		switch p.kind {
		case isByte:
			run = append(run, p.byte)
		case isBytes:
			run = append(run, p.text...)
		default:
			text.WriteString(t.text(id, &p, first))
		}
		first = false
	}
	endRun()
	out, strip := text.String(), t.decoder.strip
	trim(&out, &strip, t.decoder.stripRune)
	return out
}

// trim drops up to n of a character from the start of a text.
func trim(text *string, n *int, r rune) {
	for *n > 0 && *text != "" {
		first, width := utf8.DecodeRuneInString(*text)
		if first != r {
			*n = 0
			return
		}
		*text = (*text)[width:]
		*n--
	}
}

// Stream decodes a text as its ids come. What Push and Flush return, put
// together, is what Decode gives (but see wholeRuns: of an ill-formed run of bytes, a
// stream keeps the valid characters). It is not for concurrent use.
type Stream struct {
	t       *Tokenizer
	special bool
	started bool
	strip   int    // characters still to be dropped
	bytes   []byte // text up to the start of a character, while that is incomplete
	each    bool   // bytes are byte tokens'
}

// Stream starts a text that goes on after the ids of a prompt: the first word
// of an answer keeps its space. Without a prompt it starts a text. With special,
// special tokens are part of it.
func (t *Tokenizer) Stream(special bool, prompt ...int32) *Stream {
	s := &Stream{t: t, special: special, strip: t.decoder.strip}
	for _, id := range prompt {
		s.Push(id)
	}
	return s
}

// Push takes the next id and gives the text that is certain now: whole
// characters, or "" while one is incomplete.
func (s *Stream) Push(id int32) string {
	p := s.t.piece(id)
	if p.kind == isNothing || p.hidden && !s.special {
		return ""
	}
	first := !s.started
	s.started = true
	switch p.kind {
	case isByte:
		s.bytes, s.each = append(s.bytes, p.byte), true
	case isBytes:
		s.bytes, s.each = append(s.bytes, p.text...), false
	default:
		return s.trim(s.drain(len(s.bytes)) + s.t.text(id, &p, first))
	}
	n := len(s.bytes) - incomplete(s.bytes)
	if n < len(s.bytes) && utf8.Valid(s.bytes[:n]) {
		return "" // what is whole goes out with the character that is not yet
	}
	return s.trim(s.drain(n))
}

// Flush gives what is left when no more ids come: bytes of a character that
// was never completed, as U+FFFD.
func (s *Stream) Flush() string { return s.trim(s.drain(len(s.bytes))) }

// drain takes n bytes out.
func (s *Stream) drain(n int) string {
	text := lossy(s.bytes[:n], s.each)
	s.bytes = append(s.bytes[:0], s.bytes[n:]...)
	return text
}

func (s *Stream) trim(text string) string {
	trim(&text, &s.strip, s.t.decoder.stripRune)
	return text
}
