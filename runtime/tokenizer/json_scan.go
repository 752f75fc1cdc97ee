package tokenizer

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"unicode/utf8"
)

// scanner reads JSON that has been found valid, once and without a value for each
// part: vocabularies are some hundred thousand entries long.
type scanner struct {
	text []byte
	at   int
}

var errNotText = errors.New("not a text")

// next is the first byte after white space; 0 at the end.
func (s *scanner) next() byte {
	for s.at < len(s.text) {
		if c := s.text[s.at]; c != ' ' && c != '\t' && c != '\n' && c != '\r' {
			return c
		}
		s.at++
	}
	return 0
}

// take passes over a byte, which must be next.
func (s *scanner) take(c byte) bool {
	if s.next() != c {
		return false
	}
	s.at++
	return true
}

// raw passes over the next value.
func (s *scanner) raw() []byte {
	s.next()
	start, depth := s.at, 0
	for s.at < len(s.text) {
		switch s.text[s.at] {
		case '"':
			s.passText()
			if depth == 0 {
				return s.text[start:s.at]
			}
			continue
		case '[', '{':
			depth++
		case ']', '}':
			if depth--; depth < 0 {
				return s.text[start:s.at]
			}
			if depth == 0 {
				s.at++
				return s.text[start:s.at]
			}
		case ',', ':', ' ', '\t', '\n', '\r':
			if depth == 0 {
				return s.text[start:s.at]
			}
		}
		s.at++
	}
	return s.text[start:s.at]
}

// passText passes over a text whose quote is next, and says whether it has a backslash.
func (s *scanner) passText() (escaped bool) {
	for s.at++; s.at < len(s.text); s.at++ {
		switch s.text[s.at] {
		case '\\':
			escaped = true
			s.at++
		case '"':
			s.at++
			return escaped
		}
	}
	s.at = len(s.text)
	return escaped
}

// string reads a text.
func (s *scanner) string() (string, error) {
	if s.next() != '"' {
		return "", errNotText
	}
	start := s.at
	escaped := s.passText()
	raw := s.text[start:s.at]
	if !escaped && len(raw) >= 2 && utf8.Valid(raw) {
		return string(raw[1 : len(raw)-1]), nil
	}
	var text string
	err := json.Unmarshal(raw, &text)
	return text, err
}

// eachMember calls f at the value of each member of an object, which f must read.
func eachMember(text []byte, f func(name string, s *scanner) error) error {
	s := &scanner{text: text}
	if !s.take('{') {
		return errors.New("not an object")
	}
	for s.next() == '"' {
		name, err := s.string()
		if err != nil {
			return err
		}
		s.take(':')
		if err := f(name, s); err != nil {
			return err
		}
		s.take(',')
	}
	return nil
}

// eachElement calls f at each element of an array, which f must read. Null has none.
func eachElement(text []byte, f func(s *scanner) error) error {
	s := &scanner{text: text}
	if bytes.Equal(text, []byte("null")) {
		return nil
	}
	if !s.take('[') {
		return fmt.Errorf("%.100s where a list is wanted", text)
	}
	for c := s.next(); c != ']' && c != 0; c = s.next() {
		if err := f(s); err != nil {
			return err
		}
		s.take(',')
	}
	return nil
}
