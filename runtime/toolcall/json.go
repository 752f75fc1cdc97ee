package toolcall

// scanner follows one JSON value byte by byte (RFC 8259). Raw control characters in strings are
// let through: models write them, and quoteByte repairs them.
type scanner struct {
	open  []byte // '{' or '[' of each level
	state scan
	left  uint8 // hexadecimal digits of \u yet to come
	word  string
}

type scan uint8

const (
	scanValue  scan = iota // a value must come
	scanFirst              // after '[': a value or ']'
	scanKey                // after ',' in an object: a key
	scanKey1               // after '{': a key or '}'
	scanColon              // after a key
	scanNext               // after a value within one: ',' or the end
	scanString             // within a string, which is a value
	scanName               // within a string, which is a key
	scanWord               // within true, false or null
	scanMinus              // number: after '-'
	scanZero               // number: after a leading 0
	scanDigits             // number: before the point
	scanPoint              // number: after the point, no digit yet
	scanFrac               // number: after the point
	scanExp                // number: after e
	scanSign               // number: after e and a sign
	scanPower              // number: in the exponent
)

type found uint8

const (
	more   found = iota // the value goes on
	ended               // this byte ends it
	before              // it ended before this byte
	broken              // this byte cannot come here
)

const maxDepth = 256 // levels of a value

// inString says whether the next byte is one of a string.
func (s *scanner) inString() bool { return s.state == scanString || s.state == scanName }

func isSpace(c byte) bool { return c == ' ' || c == '\n' || c == '\t' || c == '\r' }

func isDigit(c byte) bool { return c >= '0' && c <= '9' }

// escape marks a string's byte after a backslash; digits of \u are counted down to 0.
const escape = 0xff

func (s *scanner) step(c byte) found {
	if s.inString() {
		return s.text(c)
	}
	switch s.state {
	case scanWord:
		if c != s.word[0] {
			return broken
		}
		if s.word = s.word[1:]; s.word == "" {
			return s.value()
		}
		return more
	case scanMinus, scanZero, scanDigits, scanPoint, scanFrac, scanExp, scanSign, scanPower:
		return s.number(c)
	}
	if isSpace(c) {
		return more
	}
	switch s.state {
	case scanFirst, scanValue:
		if c == ']' && s.state == scanFirst {
			return s.close()
		}
		return s.begin(c)
	case scanKey, scanKey1:
		if c == '}' && s.state == scanKey1 {
			return s.close()
		}
		if c != '"' {
			return broken
		}
		s.state = scanName
	case scanColon:
		if c != ':' {
			return broken
		}
		s.state = scanValue
	case scanNext:
		in := s.open[len(s.open)-1]
		switch {
		case c == ',' && in == '{':
			s.state = scanKey
		case c == ',':
			s.state = scanValue
		case c == '}' && in == '{', c == ']' && in == '[':
			return s.close()
		default:
			return broken
		}
	}
	return more
}

func (s *scanner) begin(c byte) found {
	switch {
	case (c == '{' || c == '[') && len(s.open) < maxDepth:
		s.open = append(s.open, c)
		s.state = scanKey1
		if c == '[' {
			s.state = scanFirst
		}
	case c == '"':
		s.state = scanString
	case c == 't':
		s.state, s.word = scanWord, "rue"
	case c == 'f':
		s.state, s.word = scanWord, "alse"
	case c == 'n':
		s.state, s.word = scanWord, "ull"
	case c == '-':
		s.state = scanMinus
	case c == '0':
		s.state = scanZero
	case isDigit(c):
		s.state = scanDigits
	default:
		return broken
	}
	return more
}

func (s *scanner) text(c byte) found {
	switch {
	case s.left == escape:
		s.left = 0
		switch c {
		case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
		case 'u':
			s.left = 4
		default:
			return broken
		}
	case s.left > 0:
		if !isDigit(c) && (c|0x20 < 'a' || c|0x20 > 'f') {
			return broken
		}
		s.left--
	case c == '\\':
		s.left = escape
	case c == '"' && s.state == scanName:
		s.state = scanColon
	case c == '"':
		return s.value()
	}
	return more
}

func (s *scanner) number(c byte) found {
	switch {
	case isDigit(c) && s.state == scanMinus && c == '0':
		s.state = scanZero
	case isDigit(c) && s.state == scanMinus:
		s.state = scanDigits
	case isDigit(c) && s.state == scanPoint:
		s.state = scanFrac
	case isDigit(c) && (s.state == scanExp || s.state == scanSign):
		s.state = scanPower
	case isDigit(c) && s.state != scanZero:
	case c == '.' && (s.state == scanZero || s.state == scanDigits):
		s.state = scanPoint
	case c|0x20 == 'e' && (s.state == scanZero || s.state == scanDigits || s.state == scanFrac):
		s.state = scanExp
	case (c == '+' || c == '-') && s.state == scanExp:
		s.state = scanSign
	case s.state == scanMinus || s.state == scanPoint || s.state == scanExp || s.state == scanSign:
		return broken
	default: // a number ends where something else begins
		if s.value() == ended {
			return before
		}
		return s.step(c)
	}
	return more
}

// value ends one; the outermost ends the scan.
func (s *scanner) value() found {
	if len(s.open) == 0 {
		return ended
	}
	s.state = scanNext
	return more
}

func (s *scanner) close() found {
	s.open = s.open[:len(s.open)-1]
	return s.value()
}

// quoteByte appends a byte of a string as JSON writes it; those of longer characters stay.
func quoteByte(to []byte, c byte) []byte {
	switch {
	case c == '"' || c == '\\':
		return append(to, '\\', c)
	case c == '\n':
		return append(to, `\n`...)
	case c == '\r':
		return append(to, `\r`...)
	case c == '\t':
		return append(to, `\t`...)
	case c < 0x20:
		const hex = "0123456789abcdef"
		return append(to, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
	}
	return append(to, c)
}

// quote is s as a JSON string.
func quote(s string) string {
	to := append(make([]byte, 0, len(s)+2), '"')
	for i := range len(s) {
		to = quoteByte(to, s[i])
	}
	return string(append(to, '"'))
}
