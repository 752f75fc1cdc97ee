package template

import (
	"fmt"
	"math/big"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Kinds of tokens. An operator's kind is itself.
const (
	tokenData   = "data" // text between tags
	tokenPrint  = "{{"
	tokenPrints = "}}"
	tokenTag    = "{%"
	tokenTags   = "%}"
	tokenName   = "name"
	tokenString = "string"
	tokenInt    = "integer"
	tokenFloat  = "float"
	tokenEnd    = "end of template"
)

type token struct {
	kind  string
	text  string // of data, names and operators
	value value  // of strings and numbers
	line  int
}

func (t token) String() string {
	switch t.kind {
	case tokenName:
		return t.text
	case tokenPrints:
		return "end of print statement"
	case tokenTags:
		return "end of statement block"
	}
	return t.kind
}

// lexer cuts a template into tokens by Jinja's rules with trim_blocks and
// lstrip_blocks: a newline after a tag and spaces before it on its line go away,
// "-" at a tag's border takes all white space, "+" keeps it.
type lexer struct {
	name   string
	src    string
	pos    int
	line   int
	counts int // up to where lines are counted
	tokens []token
}

// lex gives the tokens of a template; it panics with an *Error.
func lex(name, source string) []token {
	source = strings.ToValidUTF8(source, string(utf8.RuneError))
	source = strings.ReplaceAll(strings.ReplaceAll(source, "\r\n", "\n"), "\r", "\n")
	l := &lexer{name: name, src: strings.TrimSuffix(source, "\n"), line: 1}
	for l.pos < len(l.src) {
		l.data()
	}
	l.add(tokenEnd, "", nil)
	return l.tokens
}

func (l *lexer) fail(format string, a ...any) {
	panic(&Error{Template: l.name, Line: l.at(l.pos), Message: fmt.Sprintf(format, a...)})
}

// at is the line of a position not before the last one asked for.
func (l *lexer) at(pos int) int {
	if pos > l.counts {
		l.line += strings.Count(l.src[l.counts:pos], "\n")
		l.counts = pos
	}
	return l.line
}

func (l *lexer) add(kind, s string, v value) {
	l.tokens = append(l.tokens, token{kind, s, v, l.at(l.pos)})
}

// data reads text up to a tag, and the tag.
func (l *lexer) data() {
	rest := l.src[l.pos:]
	open := -1
	for i := 0; ; i++ {
		n := strings.IndexByte(rest[i:], '{')
		if n < 0 || i+n+1 >= len(rest) {
			break
		}
		i += n
		if c := rest[i+1]; c == '{' || c == '%' || c == '#' {
			open = i
			break
		}
	}
	if open < 0 {
		l.add(tokenData, rest, nil)
		l.pos = len(l.src)
		return
	}
	kind := rest[open : open+2]
	inner := open + 2
	sign := byte(0)
	if inner < len(rest) && (rest[inner] == '-' || rest[inner] == '+') {
		sign = rest[inner]
		inner++
	}
	raw := -1 // where the text of a raw block begins
	if kind == tokenTag {
		raw = rawBegin(rest, inner)
	}
	before := rest[:open]
	switch {
	case sign == '-':
		before = strings.TrimRightFunc(before, isSpace)
	case sign != '+' && kind != tokenPrint:
		before = l.stripIndent(before)
	}
	if before != "" {
		l.add(tokenData, before, nil)
	}
	start := l.pos + open
	l.pos += inner
	switch {
	case kind == "{#":
		l.comment(start)
	case raw >= 0:
		l.pos += raw - inner
		l.raw()
	default:
		l.add(kind, "", nil)
		l.tag(kind)
	}
}

// stripIndent takes white space off the end of s if only that is between a tag
// and the start of its line.
func (l *lexer) stripIndent(s string) string {
	line := strings.LastIndexByte(s, '\n') + 1
	if line == 0 && l.pos > 0 && l.src[l.pos-1] != '\n' {
		return s
	}
	if strings.TrimLeftFunc(s[line:], isSpace) == "" {
		return s[:line]
	}
	return s
}

// rawBegin is where the text of a raw block begins, whose tag's inside begins at
// i; -1 if it is another tag.
func rawBegin(s string, i int) int {
	i = skipSpace(s, i)
	if !strings.HasPrefix(s[i:], "raw") {
		return -1
	}
	i = skipSpace(s, i+len("raw"))
	switch {
	case strings.HasPrefix(s[i:], "-%}"):
		return skipSpace(s, i+3)
	case strings.HasPrefix(s[i:], "%}"):
		return i + 2
	}
	return -1
}

func skipSpace(s string, i int) int {
	return i + len(s[i:]) - len(strings.TrimLeftFunc(s[i:], isSpace))
}

// closing is the length of a tag's end at i, with the white space that it takes;
// 0 if there is none.
func closing(s string, i int, end string) int {
	rest := s[i:]
	switch {
	case strings.HasPrefix(rest, "-"+end):
		return skipSpace(s, i+1+len(end)) - i
	case end != tokenPrints && strings.HasPrefix(rest, "+"+end):
		return 1 + len(end)
	case strings.HasPrefix(rest, end):
		if n := len(end); end != tokenPrints && strings.HasPrefix(rest[n:], "\n") {
			return n + 1 // trim_blocks
		}
		return len(end)
	}
	return 0
}

func (l *lexer) comment(start int) {
	i := strings.Index(l.src[l.pos:], "#}")
	if i < 0 {
		l.fail("Missing end of comment tag")
	}
	end := l.pos + i
	if end > l.pos && (l.src[end-1] == '-' || l.src[end-1] == '+') {
		end--
	}
	l.pos = end + closing(l.src, end, "#}")
}

func (l *lexer) raw() {
	for i := l.pos; ; i++ {
		n := strings.Index(l.src[i:], tokenTag)
		if n < 0 {
			l.fail("Missing end of raw directive")
		}
		i += n
		inner := i + 2
		sign := byte(0)
		if inner < len(l.src) && (l.src[inner] == '-' || l.src[inner] == '+') {
			sign = l.src[inner]
			inner++
		}
		end := skipSpace(l.src, inner)
		if !strings.HasPrefix(l.src[end:], "endraw") {
			continue
		}
		end = skipSpace(l.src, end+len("endraw"))
		size := closing(l.src, end, tokenTags)
		if size == 0 {
			continue
		}
		body := l.src[l.pos:i]
		switch sign {
		case '-':
			body = strings.TrimRightFunc(body, isSpace)
		case 0:
			body = l.stripIndent(body)
		}
		if body != "" {
			l.add(tokenData, body, nil)
		}
		l.pos = end + size
		return
	}
}

// tag reads the tokens within "{{" or "{%", and its end.
func (l *lexer) tag(kind string) {
	end := tokenTags
	if kind == tokenPrint {
		end = tokenPrints
	}
	var open []byte // brackets
	for l.pos < len(l.src) {
		if len(open) == 0 {
			if n := closing(l.src, l.pos, end); n > 0 {
				l.add(end, "", nil)
				l.pos += n
				return
			}
		}
		r, n := utf8.DecodeRuneInString(l.src[l.pos:])
		switch {
		case isSpace(r):
			l.pos += n
		case '0' <= r && r <= '9':
			l.number()
		case isWord(r):
			l.word()
		case r == '\'' || r == '"':
			l.string(byte(r))
		default:
			op := l.operator()
			switch op {
			case "(", "[", "{":
				open = append(open, op[0])
			case ")", "]", "}":
				pair := map[string]byte{")": '(', "]": '[', "}": '{'}
				if len(open) == 0 || open[len(open)-1] != pair[op] {
					l.fail("unexpected '%s'", op)
				}
				open = open[:len(open)-1]
			}
			l.add(op, op, nil)
			l.pos += len(op)
		}
	}
}

func isWord(r rune) bool {
	return r == '_' || unicode.IsLetter(r) || unicode.IsDigit(r) || unicode.Is(unicode.M, r)
}

func (l *lexer) operator() string {
	rest := l.src[l.pos:]
	for _, op := range []string{"//", "**", "==", "!=", ">=", "<="} {
		if strings.HasPrefix(rest, op) {
			return op
		}
	}
	if !strings.ContainsRune("+-/*%~[](){}><=.:|,;", rune(rest[0])) {
		r, _ := utf8.DecodeRuneInString(rest)
		l.fail("unexpected char %s", quote(string(r)))
	}
	return rest[:1]
}

func (l *lexer) word() {
	end := l.pos
	for end < len(l.src) {
		r, n := utf8.DecodeRuneInString(l.src[end:])
		if !isWord(r) {
			break
		}
		end += n
	}
	l.add(tokenName, l.src[l.pos:end], nil)
	l.pos = end
}

// digits is where a run of digits ends that single underscores may divide.
func digits(s string, i int, is func(byte) bool) int {
	for i < len(s) && (is(s[i]) || s[i] == '_' && i+1 < len(s) && is(s[i+1])) {
		i++
	}
	return i
}

func decimal(c byte) bool { return '0' <= c && c <= '9' }

func (l *lexer) number() {
	s := l.src
	if end := l.float(); end > 0 {
		f, _ := strconv.ParseFloat(strings.ReplaceAll(s[l.pos:end], "_", ""), 64)
		l.add(tokenFloat, "", f)
		l.pos = end
		return
	}
	base, start := 10, l.pos
	if s[l.pos] == '0' && l.pos+2 < len(s) {
		prefixed := func(b int, is func(byte) bool) {
			from := l.pos + 2
			if s[from] == '_' {
				from++
			}
			if from < len(s) && is(s[from]) {
				base, start = b, from
			}
		}
		switch s[l.pos+1] | 0x20 {
		case 'b':
			prefixed(2, func(c byte) bool { return c == '0' || c == '1' })
		case 'o':
			prefixed(8, func(c byte) bool { return '0' <= c && c <= '7' })
		case 'x':
			prefixed(16, func(c byte) bool { return decimal(c) || 'a' <= c|0x20 && c|0x20 <= 'f' })
		}
	}
	is := map[int]func(byte) bool{
		2:  func(c byte) bool { return c == '0' || c == '1' },
		8:  func(c byte) bool { return '0' <= c && c <= '7' },
		10: decimal,
		16: func(c byte) bool { return decimal(c) || 'a' <= c|0x20 && c|0x20 <= 'f' },
	}[base]
	if base == 10 && s[start] == '0' {
		is = func(c byte) bool { return c == '0' } // 012 is 0 and then 12
	}
	end := digits(s, start, is)
	if end-start > maxDigits {
		l.fail("a number has more than %d digits", maxDigits)
	}
	n, _ := new(big.Int).SetString(strings.ReplaceAll(s[start:end], "_", ""), base)
	l.add(tokenInt, "", shrink(n))
	l.pos = end
}

// float is where a float at the position ends, 0 if there is none.
func (l *lexer) float() int {
	s := l.src
	if l.pos > 0 && s[l.pos-1] == '.' {
		return 0 // a.0.1 has two integers
	}
	i := digits(s, l.pos, decimal)
	if i-l.pos > maxDigits {
		l.fail("a number has more than %d digits", maxDigits)
	}
	point := false
	if i+1 < len(s) && s[i] == '.' && decimal(s[i+1]) {
		i, point = digits(s, i+1, decimal), true
	}
	if i < len(s) && s[i]|0x20 == 'e' {
		j := i + 1
		if j < len(s) && (s[j] == '+' || s[j] == '-') {
			j++
		}
		if j < len(s) && decimal(s[j]) {
			return digits(s, j, decimal)
		}
	}
	if point {
		return i
	}
	return 0
}

func (l *lexer) string(mark byte) {
	for i := l.pos + 1; i < len(l.src); i++ {
		switch l.src[i] {
		case '\\':
			i++
		case mark:
			l.add(tokenString, "", literal(l.unescape(l.src[l.pos+1:i])))
			l.pos = i + 1
			return
		}
	}
	l.fail("unexpected char %s", quote(string(mark)))
}

// unescape is Python's unicode-escape.
func (l *lexer) unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	var high rune // the first half of a surrogate pair
	for i := 0; i < len(s); {
		if s[i] != '\\' {
			b.WriteByte(s[i])
			i++
			continue
		}
		i++
		if i == len(s) {
			l.fail("\\ at end of string")
		}
		c := s[i]
		i++
		if to, ok := simpleEscapes[c]; ok {
			b.WriteString(to)
			continue
		}
		hex := map[byte]int{'x': 2, 'u': 4, 'U': 8}[c]
		switch {
		case hex > 0:
			if len(s)-i < hex {
				l.fail("truncated \\%cXX escape", c)
			}
			n, err := strconv.ParseUint(s[i:i+hex], 16, 32)
			if err != nil || n > unicode.MaxRune {
				l.fail("invalid \\%cXX escape", c)
			}
			i += hex
			r := rune(n)
			if 0xd800 <= r && r < 0xdc00 && strings.HasPrefix(s[i:], `\u`) {
				high = r
				continue
			}
			if high != 0 && 0xdc00 <= r && r < 0xe000 {
				r = (high-0xd800)<<10 + (r - 0xdc00) + 0x10000
			}
			high = 0
			b.WriteRune(r)
		case '0' <= c && c <= '7':
			end := i
			for end < len(s) && end < i+2 && '0' <= s[end] && s[end] <= '7' {
				end++
			}
			n, _ := strconv.ParseUint(s[i-1:end], 8, 32)
			b.WriteRune(rune(n))
			i = end
		case c == 'N':
			l.fail("\\N{…} escapes are not supported: write the character")
		default:
			b.WriteByte('\\')
			b.WriteByte(c)
		}
	}
	return b.String()
}

var simpleEscapes = map[byte]string{
	'\n': "", '\\': `\`, '\'': `'`, '"': `"`, 'a': "\a", 'b': "\b", 'f': "\f", 'n': "\n", 'r': "\r", 't': "\t", 'v': "\v",
}
