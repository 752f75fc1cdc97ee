package gateway

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"unicode/utf8"
)

var (
	errNoModel   = errors.New("the body names no model: it needs a \"model\", as in {\"model\": \"my-model\", ...}")
	errModelKind = errors.New("\"model\" must be a string")
)

// modelName finds the value of the top-level key "model" in a JSON object. The
// rest is checked no further than it takes to find keys: the worker parses it.
// For whatever encoding/json accepts it agrees with encoding/json; of equal keys
// the last counts. It takes linear time, constant stack, and allocates the name.
func modelName(body []byte) (string, error) {
	s := scanner{b: body}
	value, ok := s.object()
	switch {
	case !ok:
		return "", fmt.Errorf("the body is not a JSON object: what is at byte %d cannot be read", s.i)
	case value == nil || string(value) == "null" || string(value) == `""`:
		return "", errNoModel
	case value[0] != '"':
		return "", errModelKind
	}
	name := value[1 : len(value)-1]
	if bytes.IndexByte(name, '\\') < 0 && utf8.Valid(name) {
		return string(name), nil
	}
	var text string
	if err := json.Unmarshal(value, &text); err != nil {
		return "", errModelKind
	}
	return text, nil
}

// scanner walks over JSON. After a failure, i is where it happened.
type scanner struct {
	b []byte
	i int
}

// object reads the whole text and returns the value of the last "model", as it stands there.
func (s *scanner) object() (model []byte, ok bool) {
	if !s.eat('{') {
		return nil, false
	}
	for more := !s.eat('}'); more; {
		s.space()
		key, ok := s.text()
		if !ok || !s.eat(':') {
			return nil, false
		}
		s.space()
		start := s.i
		if !s.value() {
			return nil, false
		}
		if isModel(key) {
			model = s.b[start:s.i]
		}
		more = s.eat(',')
		if !more && !s.eat('}') {
			return nil, false
		}
	}
	s.space()
	return model, s.i == len(s.b)
}

func (s *scanner) space() {
	for s.i < len(s.b) {
		switch s.b[s.i] {
		case ' ', '\t', '\r', '\n':
			s.i++
		default:
			return
		}
	}
}

// eat skips space, then c.
func (s *scanner) eat(c byte) bool {
	s.space()
	if s.i < len(s.b) && s.b[s.i] == c {
		s.i++
		return true
	}
	return false
}

// text reads a string with its quotes. Most of a request is text, so it looks
// for quotes with the vector instructions of IndexByte; a quote after an odd
// number of backslashes is part of the text.
func (s *scanner) text() ([]byte, bool) {
	start := s.i
	if start >= len(s.b) || s.b[start] != '"' {
		return nil, false
	}
	for i := start + 1; ; {
		n := bytes.IndexByte(s.b[i:], '"')
		if n < 0 {
			return nil, false
		}
		end := i + n
		slashes := 0
		for end-1-slashes >= i && s.b[end-1-slashes] == '\\' {
			slashes++
		}
		i = end + 1
		if slashes%2 == 0 {
			s.i = i
			return s.b[start:i], true
		}
	}
}

// value skips one value.
func (s *scanner) value() bool {
	if s.i >= len(s.b) {
		return false
	}
	switch s.b[s.i] {
	case '"':
		_, ok := s.text()
		return ok
	case '{', '[':
		return s.nested()
	}
	start := s.i
	for s.i < len(s.b) && isLiteral(s.b[s.i]) {
		s.i++
	}
	return json.Valid(s.b[start:s.i])
}

// nested skips an object or array by counting brackets.
func (s *scanner) nested() bool {
	for depth := 0; s.i < len(s.b); {
		switch s.b[s.i] {
		case '"':
			if _, ok := s.text(); !ok {
				return false
			}
			continue
		case '{', '[':
			depth++
		case '}', ']':
			depth--
		}
		s.i++
		if depth == 0 {
			return true
		}
	}
	return false
}

// isLiteral: a byte of a number, true, false or null.
func isLiteral(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c && c <= 'z' || c == '-' || c == '+' || c == '.' || c == 'E'
}

// isModel compares a quoted key, which may be written with escapes: at most six bytes a letter.
func isModel(key []byte) bool {
	const longest = 2 + 6*len("model")
	if string(key) == `"model"` {
		return true
	}
	if len(key) > longest || bytes.IndexByte(key, '\\') < 0 {
		return false
	}
	var text string
	return json.Unmarshal(key, &text) == nil && text == "model"
}
