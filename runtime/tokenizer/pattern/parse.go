package pattern

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// node is a part of an expression.
type node struct {
	kind     kind
	set      spans    // of isSet
	subs     []*node  // of isSequence and isChoice; one of isRepeat and isLook
	min, max int      // of isRepeat; max -1: no end
	greed    greed    // of isRepeat
	behind   bool     // of isLook
	negative bool     // of isLook
	where    position // of isPosition

	starts   *start // once it was asked for
	compiled *set
}

// start is what a node may start with.
type start struct {
	set   spans
	empty bool // it may also take nothing

	compiled *set
}

type kind uint8

const (
	isSequence kind = iota // empty: nothing
	isSet
	isChoice
	isRepeat
	isLook
	isPosition
)

type greed uint8

const (
	greedy greed = iota
	lazy
	possessive
)

type position uint8

const (
	lineStart position = iota
	lineEnd
	textStart
	textEnd
	lastLineEnd // the end, or before a line feed that ends the text
	wordBorder
	noWordBorder
)

const (
	maxLength = 1 << 13 // bytes of an expression; the longest in use have some 2,000
	maxDepth  = 64      // of groups in groups
	maxRepeat = 1 << 10 // of {n}; the most in use is 512
	// maxQuantifiers of one another; none are in use
	maxQuantifiers = 3
)

// parser reads Oniguruma's syntax.
type parser struct {
	text  string
	at    int
	depth int
	fold  bool // (?i)
	all   bool // (?m): . stands for line feeds too
}

// refused says what an expression has that is not understood here.
func (p *parser) refused(what string) error {
	return fmt.Errorf("%w: %s at byte %d", ErrUnsupported, what, p.at)
}

func (p *parser) wrong(what string) error {
	return fmt.Errorf("%w: %s at byte %d", ErrInvalid, what, p.at)
}

func (p *parser) more() bool { return p.at < len(p.text) }

func (p *parser) peek() byte {
	if !p.more() {
		return 0
	}
	return p.text[p.at]
}

// take passes over s if it is next.
func (p *parser) take(s string) bool {
	if strings.HasPrefix(p.text[p.at:], s) {
		p.at += len(s)
		return true
	}
	return false
}

func (p *parser) rune() rune {
	r, n := utf8.DecodeRuneInString(p.text[p.at:])
	p.at += n
	return r
}

func parse(text string) (*node, error) {
	if len(text) > maxLength {
		return nil, fmt.Errorf("%w: an expression of %d bytes; at most %d are read", ErrUnsupported, len(text), maxLength)
	}
	if !utf8.ValidString(text) {
		return nil, fmt.Errorf("%w: no UTF-8", ErrInvalid)
	}
	p := &parser{text: text}
	n, err := p.choice()
	if err == nil && p.more() {
		err = p.wrong("a ) without its (")
	}
	return n, err
}

func (p *parser) choice() (*node, error) {
	if p.depth++; p.depth > maxDepth {
		return nil, p.refused("groups in groups beyond count")
	}
	fold, dots := p.fold, p.all // options within a group end with it
	defer func() { p.depth, p.fold, p.all = p.depth-1, fold, dots }()
	var subs []*node
	for {
		n, err := p.sequence()
		if err != nil {
			return nil, err
		}
		if subs = append(subs, n); !p.take("|") {
			break
		}
	}
	if len(subs) == 1 {
		return subs[0], nil
	}
	return &node{kind: isChoice, subs: subs}, nil
}

func (p *parser) sequence() (*node, error) {
	n := &node{kind: isSequence}
	for p.more() && p.peek() != '|' && p.peek() != ')' {
		one, err := p.atom()
		if err != nil {
			return nil, err
		}
		for quantifiers := 0; ; quantifiers++ {
			again, err := p.repeat(one)
			if err != nil {
				return nil, err
			}
			if again == nil {
				break
			}
			if quantifiers == maxQuantifiers {
				return nil, p.refused("a quantifier of a quantifier, and so on,")
			}
			one = again
		}
		n.subs = append(n.subs, one)
	}
	return n, nil
}

// repeat reads a quantifier of n; nil if there is none.
func (p *parser) repeat(n *node) (*node, error) {
	r := &node{kind: isRepeat, subs: []*node{n}, max: -1}
	interval := false
	switch {
	case p.take("*"):
	case p.take("+"):
		r.min = 1
	case p.take("?"):
		r.max = 1
	case p.peek() == '{':
		var ok bool
		var err error
		if r.min, r.max, ok, err = p.interval(); err != nil || !ok {
			return nil, err
		}
		interval = true
	default:
		return nil, nil
	}
	if n.kind == isLook || n.kind == isPosition {
		return nil, p.refused("a quantifier of a place in the text")
	}
	switch {
	case p.take("?"):
		if interval && r.min == r.max { // Oniguruma reads {n}? as optional
			return nil, p.refused("{n}?")
		}
		r.greed = lazy
	case !interval && p.take("+"):
		r.greed = possessive
		if n.kind != isSet {
			return nil, p.refused("a possessive quantifier of more than one character")
		}
	}
	return r, nil
}

// interval reads {n}, {n,}, {,m} or {n,m}; anything else is text.
func (p *parser) interval() (least, most int, ok bool, err error) {
	end := strings.IndexByte(p.text[p.at:], '}')
	if end < 0 {
		return 0, 0, false, nil
	}
	from, to, comma := strings.Cut(p.text[p.at+1:p.at+end], ",")
	number := func(s string, otherwise int) int {
		if s == "" {
			return otherwise
		}
		n, err := strconv.ParseUint(s, 10, 31)
		if err != nil {
			return -2
		}
		return int(n)
	}
	least, most = number(from, 0), number(to, -1)
	if !comma {
		most = least
	}
	if least == -2 || most == -2 || from == "" && to == "" {
		return 0, 0, false, nil
	}
	if least > maxRepeat || most > maxRepeat {
		return 0, 0, false, p.refused(fmt.Sprintf("a count of more than %d", maxRepeat))
	}
	if most >= 0 && least > most {
		return 0, 0, false, p.refused("a count that goes down")
	}
	p.at += end + 1
	return least, most, true, nil
}

func (p *parser) atom() (*node, error) {
	switch {
	case p.take("("):
		return p.group()
	case p.take("["):
		s, err := p.class()
		return &node{kind: isSet, set: s}, err
	case p.take("."):
		if p.all {
			return &node{kind: isSet, set: all}, nil
		}
		return &node{kind: isSet, set: spans{{'\n', '\n'}}.not()}, nil
	case p.take("^"):
		return &node{kind: isPosition, where: lineStart}, nil
	case p.take("$"):
		return &node{kind: isPosition, where: lineEnd}, nil
	case p.take(`\`):
		return p.escape()
	case p.peek() == '*' || p.peek() == '+' || p.peek() == '?':
		return nil, p.wrong("a quantifier of nothing")
	}
	return p.character(p.rune()), nil
}

func (p *parser) character(r rune) *node {
	return &node{kind: isSet, set: p.cases(spans{{r, r}})}
}

func (p *parser) cases(s spans) spans {
	if p.fold {
		return s.folded()
	}
	return s
}

func (p *parser) group() (*node, error) {
	n := &node{kind: isLook}
	switch {
	case p.take("?:"):
		n = nil
	case p.take("?="):
	case p.take("?!"):
		n.negative = true
	case p.take("?<="):
		n.behind = true
	case p.take("?<!"):
		n.behind, n.negative = true, true
	case p.peek() == '?':
		return p.options()
	default:
		n = nil // what it matched is not asked for
	}
	in, err := p.choice()
	if err != nil {
		return nil, err
	}
	if !p.take(")") {
		return nil, p.wrong("a ( without its )")
	}
	if n == nil {
		return in, nil
	}
	n.subs = []*node{in}
	return n, nil
}

// options reads (?i) up to the end of the group around it, and (?i:…).
func (p *parser) options() (*node, error) {
	p.at++
	fold, dots, on := p.fold, p.all, true
	for {
		switch c := p.peek(); c {
		case 'i':
			fold = on
		case 'm':
			dots = on
		case '-':
			on = false
		case ')':
			p.at++
			p.fold, p.all = fold, dots
			rest, err := p.rest()
			return rest, err
		case ':':
			p.at++
			before, beforeDots := p.fold, p.all
			p.fold, p.all = fold, dots
			in, err := p.choice()
			p.fold, p.all = before, beforeDots
			if err == nil && !p.take(")") {
				err = p.wrong("a ( without its )")
			}
			return in, err
		default:
			return nil, p.refused(fmt.Sprintf("(?%c", c))
		}
		p.at++
	}
}

// rest is what follows (?i): Oniguruma takes it as a group up to the end of the one around it, choices included.
func (p *parser) rest() (*node, error) { return p.choice() }

// escape reads what follows a backslash, outside of brackets.
func (p *parser) escape() (*node, error) {
	for s, where := range positions {
		if p.take(s) {
			return &node{kind: isPosition, where: where}, nil
		}
	}
	s, _, err := p.escaped()
	if err != nil {
		return nil, err
	}
	return &node{kind: isSet, set: p.cases(s)}, nil
}

var positions = map[string]position{"b": wordBorder, "B": noWordBorder, "A": textStart, "z": textEnd, "Z": lastLineEnd}

// escaped reads a set or, with single, one character.
func (p *parser) escaped() (s spans, single bool, err error) {
	if !p.more() {
		return nil, false, p.wrong("a backslash at the end")
	}
	start := p.at
	r := p.rune()
	one := func(r rune) (spans, bool, error) { return spans{{r, r}}, true, nil }
	switch r {
	case 's':
		return spaces, false, nil
	case 'S':
		return spaces.not(), false, nil
	case 'd':
		return digits, false, nil
	case 'D':
		return digits.not(), false, nil
	case 'w':
		return slashW, false, nil
	case 'W':
		return slashW.not(), false, nil
	case 'h':
		return hexes, false, nil
	case 'H':
		return hexes.not(), false, nil
	case 'p', 'P':
		return p.property(r == 'P')
	case 't':
		return one('\t')
	case 'n':
		return one('\n')
	case 'r':
		return one('\r')
	case 'f':
		return one('\f')
	case 'v':
		return one('\v')
	case 'a':
		return one('\a')
	case 'e':
		return one(0x1b)
	case 'x':
		if p.take("{") {
			return p.code(strings.IndexByte(p.text[p.at:], '}'), 1)
		}
		n := 0
		for n < 2 && p.at+n < len(p.text) && hexes.has(rune(p.text[p.at+n])) {
			n++
		}
		return p.code(n, 0)
	case 'u':
		return p.code(4, 0)
	}
	if r < utf8.RuneSelf && (unicode.IsLetter(r) || unicode.IsDigit(r)) {
		p.at = start
		return nil, false, p.refused(fmt.Sprintf(`\%c`, r))
	}
	return one(r)
}

// code reads n hexadecimal digits, then passes over some bytes.
func (p *parser) code(n, over int) (spans, bool, error) {
	if n <= 0 || p.at+n+over > len(p.text) {
		return nil, false, p.wrong("no hexadecimal digits")
	}
	v, err := strconv.ParseUint(p.text[p.at:p.at+n], 16, 32)
	if err != nil || v > unicode.MaxRune || v >= 0x80 && n == 2 && over == 0 {
		return nil, false, p.refused("this character's number")
	}
	p.at += n + over
	return spans{{rune(v), rune(v)}}, true, nil
}

func (p *parser) property(negative bool) (spans, bool, error) {
	end := strings.IndexByte(p.text[p.at:], '}')
	if !p.take("{") || end < 0 {
		return nil, false, p.wrong(`no {…} after \p`)
	}
	if p.take("^") {
		negative, end = !negative, end-1
	}
	name := p.text[p.at : p.at+end-1]
	s, ok := property(name)
	if !ok {
		return nil, false, p.refused(fmt.Sprintf(`\p{%.40s}`, name))
	}
	p.at += end
	if negative {
		return s.not(), false, nil
	}
	return s, false, nil
}

// class reads […] after its first bracket.
func (p *parser) class() (spans, error) {
	if p.depth++; p.depth > maxDepth {
		return nil, p.refused("brackets in brackets beyond count")
	}
	defer func() { p.depth-- }()
	negative := p.take("^")
	var s spans
	var both *spans // of what stood before &&
	meet := func() {
		s = p.cases(s.tidy())
		if both != nil {
			s = both.and(s)
		}
	}
	for first := true; ; first = false {
		switch {
		case !p.more():
			return nil, p.wrong("a [ without its ]")
		case p.take("[:"):
			named, err := p.posix()
			if err != nil {
				return nil, err
			}
			s = append(s, named...)
		case p.take("["):
			in, err := p.class()
			if err != nil {
				return nil, err
			}
			s = append(s, in...)
		case p.take("&&"):
			meet()
			before := s
			both, s = &before, nil
		case p.peek() == ']' && !(first && strings.IndexByte(p.text[p.at+1:], ']') >= 0):
			p.at++
			meet()
			if negative {
				s = s.not()
			}
			return s, nil
		default:
			one, err := p.classRange()
			if err != nil {
				return nil, err
			}
			s = append(s, one...)
		}
	}
}

// classRange reads a character, a-z, or \s and the like.
func (p *parser) classRange() (spans, error) {
	lo, single, err := p.classItem()
	if err != nil || !single {
		return lo, err
	}
	if rest := p.text[p.at:]; len(rest) < 2 || rest[0] != '-' || rest[1] == ']' || strings.HasPrefix(rest, "-&&") {
		return lo, nil
	}
	p.at++
	if p.peek() == '[' {
		return nil, p.refused("a range up to a set")
	}
	hi, single, err := p.classItem()
	if err != nil {
		return nil, err
	}
	if !single { // "a-\s": the hyphen is one
		return slices.Concat(lo, spans{{'-', '-'}}, hi), nil
	}
	if hi[0].lo < lo[0].lo {
		return nil, p.wrong("a range that goes down")
	}
	return spans{{lo[0].lo, hi[0].lo}}, nil
}

func (p *parser) classItem() (spans, bool, error) {
	if p.take(`\`) {
		if p.take("b") {
			return spans{{'\b', '\b'}}, true, nil
		}
		return p.escaped()
	}
	r := p.rune()
	return spans{{r, r}}, true, nil
}

// posix reads [:name:] after its colon.
func (p *parser) posix() (spans, error) {
	negative := p.take("^")
	name, _, ok := strings.Cut(p.text[p.at:], ":]")
	if !ok {
		return nil, p.refused("[: without :]")
	}
	s, known := posixClasses[name]
	if !known {
		return nil, p.refused(fmt.Sprintf("[:%.40s:]", name))
	}
	p.at += len(name) + 2
	if negative {
		return s.not(), nil
	}
	return s, nil
}

var posixClasses = func() map[string]spans {
	m := map[string]spans{"blank": union(category("Zs"), spans{{'\t', '\t'}}), "punct": union(category("P"), category("S"))}
	for _, name := range []string{"alpha", "digit", "alnum", "space", "word", "upper", "lower", "cntrl", "xdigit", "ascii"} {
		m[name], _ = property(name)
	}
	return m
}()
