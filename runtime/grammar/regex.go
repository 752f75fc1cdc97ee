package grammar

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Regex is the texts that a regular expression matches from beginning to end.
// The syntax is what RE2, Python and ECMAScript have in common: classes, Unicode
// classes \p{…}, groups, alternation, quantifiers (lazy ones mean the same),
// anchors, flags i and s. \d, \w, \s are ASCII, and \D, \W, \S are what is
// neither that nor its like in Unicode, so that every engine agrees, and [^\d]
// is what \D is; the dot is all but line ends. Look-around, back references, word boundaries and
// possessive quantifiers are refused. An *Error says where and why.
func Regex(pattern string) (*Grammar, error) {
	chars := newArena().bounded()
	n, err := parseRegex(chars, pattern, false, false)
	if err != nil {
		return nil, err
	}
	a := newByteArena().bounded()
	n = a.spellAll(chars, n, raw)
	if a.spent {
		return nil, &Error{"regex", errComplex.Error()}
	}
	g, err := seal(a, n)
	if err != nil {
		return nil, &Error{"regex", err.Error()}
	}
	if g.root == none {
		return nil, &Error{"regex", "it matches no text"}
	}
	if g.tooAmbiguous() {
		return nil, &Error{"regex", "it is too ambiguous: what may follow would take too long to compute"}
	}
	g.key = keyOf([]byte("regex"), []byte(pattern))
	return g, nil
}

// spellAll is a node of characters in bytes.
func (a *arena) spellAll(from *arena, n id, how spelling) id {
	ids := map[id]id{none: none, empty: empty}
	var order []id
	seen := map[id]bool{}
	stack := []id{n}
	for len(stack) > 0 {
		n := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		if n < 2 || seen[n] {
			continue
		}
		seen[n] = true
		order = append(order, n)
		from.parts(n, func(x id) { stack = append(stack, x) })
	}
	slices.Sort(order) // parts come before what they make up
	for _, n := range order {
		m := from.nodes[n]
		switch m.kind {
		case isSet:
			if s := from.sets[m.a]; how != raw && slices.Equal(s, everything) {
				ids[n] = a.char
			} else {
				ids[n] = a.spell(s, how)
			}
		case isSeq:
			ids[n] = a.seq(ids[m.a], ids[m.b])
		case isOr:
			options := make([]id, 0, m.b)
			for _, x := range from.lists[m.a : m.a+m.b] {
				options = append(options, ids[x])
			}
			ids[n] = a.or(options)
		case isRep:
			ids[n] = a.rep(ids[m.a], m.b, m.c)
		}
	}
	return ids[n]
}

// tree is a regular expression with its anchors.
type tree struct {
	op       treeOp
	node     id // of opChars
	parts    []*tree
	min, max int32
	anchors  bool // there are some in it
}

type treeOp uint8

const (
	opChars  treeOp = iota // one character of a set, or nothing
	opSeq                  //
	opOr                   //
	opRepeat               // parts[0]
	opBegin                // ^
	opEnd                  // $
)

const (
	maxRegex   = 1 << 16 // bytes
	maxNesting = 250
	maxPieces  = 100_000
)

// parseRegex is a node of characters for what a pattern matches: with search,
// the texts in which it is found, else those that it matches as a whole: for
// every engine, or if wide for any.
func parseRegex(a *arena, pattern string, search, wide bool) (id, error) {
	p := &regexParser{a: a, text: pattern, wide: wide}
	t, err := p.parse()
	if err != nil {
		return none, err
	}
	n, ok := p.resolve(t, search)
	if a.spent {
		return none, &Error{"regex", errComplex.Error()}
	}
	if !ok {
		return none, &Error{"regex", "an anchor stands after something that may be empty, or is repeated: write the cases out with |"}
	}
	return n, nil
}

func (p *regexParser) resolve(t *tree, search bool) (id, bool) {
	a := p.a
	if !search {
		return p.place(t, true, true)
	}
	any := a.bytes(everything)
	before, after := a.rep(any, 0, unlimited), a.rep(any, 0, unlimited)
	if !t.anchors {
		n, ok := p.place(t, false, false)
		return a.seqs(before, n, after), ok
	}
	some := a.seq(any, before)
	var options []id
	for _, c := range []struct{ begin, end bool }{{true, true}, {true, false}, {false, true}, {false, false}} {
		n, ok := p.place(t, c.begin, c.end)
		if !ok {
			return none, false
		}
		if !c.begin {
			n = a.seq(some, n)
		}
		if !c.end {
			n = a.seq(n, some)
		}
		options = append(options, n)
	}
	return a.or(options), true
}

// place is the node of a tree that stands at the beginning or the end of the
// whole text, or at neither. false: an anchor's meaning depends on the text.
func (p *regexParser) place(t *tree, begin, end bool) (id, bool) {
	a := p.a
	switch t.op {
	case opChars:
		return t.node, true
	case opBegin:
		return pick(begin), true
	case opEnd:
		return pick(end), true
	case opOr:
		options := make([]id, len(t.parts))
		for i, x := range t.parts {
			n, ok := p.place(x, begin, end)
			if !ok {
				return none, false
			}
			options[i] = n
		}
		return a.or(options), true
	case opSeq:
		first, last := 0, len(t.parts) // parts before first and from last on take nothing
		for first < len(t.parts) && t.parts[first].width() == 0 {
			first++
		}
		for last > first && t.parts[last-1].width() == 0 {
			last--
		}
		ids := make([]id, len(t.parts))
		for i, x := range t.parts {
			atBegin, atEnd := begin && i <= first, end && i >= last-1
			if x.anchors {
				// Between the edges it is at an edge only if all up to there is empty.
				if begin && !atBegin && x.has(opBegin) && p.mayBeEmpty(t.parts[:i]) ||
					end && !atEnd && x.has(opEnd) && p.mayBeEmpty(t.parts[i+1:]) {
					return none, false
				}
			}
			n, ok := p.place(x, atBegin, atEnd)
			if !ok {
				return none, false
			}
			ids[i] = n
		}
		return a.seqs(ids...), true
	case opRepeat:
		x := t.parts[0]
		if !x.anchors {
			n, ok := p.place(x, false, false)
			return a.rep(n, t.min, t.max), ok
		}
		if t.max == 0 {
			return empty, true
		}
		if t.max == 1 {
			n, ok := p.place(x, begin, end)
			return a.rep(n, t.min, t.max), ok
		}
		return none, false
	}
	return none, false
}

func pick(here bool) id {
	if here {
		return empty
	}
	return none
}

// width is 0 for what takes no characters, else 1.
func (t *tree) width() int {
	switch t.op {
	case opBegin, opEnd:
		return 0
	case opChars:
		if t.node == empty {
			return 0
		}
		return 1
	case opRepeat:
		if t.max == 0 {
			return 0
		}
	}
	for _, x := range t.parts {
		if x.width() > 0 {
			return 1
		}
	}
	return 0
}

func (t *tree) has(op treeOp) bool {
	return t.op == op || t.anchors && slices.ContainsFunc(t.parts, func(x *tree) bool { return x.has(op) })
}

func (p *regexParser) mayBeEmpty(parts []*tree) bool {
	for _, x := range parts {
		switch x.op {
		case opChars:
			if x.node != empty {
				return false
			}
		case opSeq:
			if !p.mayBeEmpty(x.parts) {
				return false
			}
		case opOr:
			if !slices.ContainsFunc(x.parts, func(y *tree) bool { return p.mayBeEmpty([]*tree{y}) }) {
				return false
			}
		case opRepeat:
			if x.min > 0 && !p.mayBeEmpty(x.parts) {
				return false
			}
		}
	}
	return true
}

type regexParser struct {
	a      *arena
	text   string
	at     int
	depth  int
	pieces int
	fold   bool // flag i
	all    bool // flag s: the dot is everything
	wide   bool // what some engine takes for an escape or the dot, not what all do
}

func (p *regexParser) fail(format string, args ...any) error {
	return &Error{"regex at byte " + strconv.Itoa(p.at), fmt.Sprintf(format, args...)}
}

func (p *regexParser) parse() (*tree, error) {
	if len(p.text) > maxRegex {
		return nil, &Error{"regex", fmt.Sprintf("it has %d bytes; at most %d", len(p.text), maxRegex)}
	}
	if !utf8.ValidString(p.text) {
		return nil, &Error{"regex", "it is not UTF-8"}
	}
	t, err := p.alternatives()
	if err == nil && p.at < len(p.text) {
		err = p.fail("unmatched )")
	}
	return t, err
}

func (p *regexParser) more() bool { return p.at < len(p.text) }

func (p *regexParser) take(s string) bool {
	if strings.HasPrefix(p.text[p.at:], s) {
		p.at += len(s)
		return true
	}
	return false
}

func (p *regexParser) rune() rune {
	r, size := utf8.DecodeRuneInString(p.text[p.at:])
	p.at += size
	return r
}

func (p *regexParser) chars(s set) *tree {
	if p.fold {
		s = s.folded()
	}
	return &tree{node: p.a.bytes(s)}
}

func (p *regexParser) alternatives() (*tree, error) {
	if p.depth++; p.depth > maxNesting {
		return nil, p.fail("groups are nested too deeply")
	}
	defer func() { p.depth-- }()
	t := &tree{op: opOr}
	for {
		x, err := p.sequence()
		if err != nil {
			return nil, err
		}
		t.parts, t.anchors = append(t.parts, x), t.anchors || x.anchors
		if !p.take("|") {
			break
		}
	}
	if len(t.parts) == 1 {
		return t.parts[0], nil
	}
	return t, nil
}

func (p *regexParser) sequence() (*tree, error) {
	t := &tree{op: opSeq}
	for p.more() && p.text[p.at] != '|' && p.text[p.at] != ')' {
		if p.pieces++; p.pieces > maxPieces {
			return nil, p.fail("it has too many pieces")
		}
		x, err := p.atom()
		if err != nil {
			return nil, err
		}
		if x, err = p.quantified(x); err != nil {
			return nil, err
		}
		t.parts, t.anchors = append(t.parts, x), t.anchors || x.anchors
	}
	return t, nil
}

func (p *regexParser) quantified(x *tree) (*tree, error) {
	least, most, ok, err := p.quantifier()
	if err != nil || !ok {
		return x, err
	}
	if x.op == opBegin || x.op == opEnd {
		return nil, p.fail("an anchor cannot be repeated")
	}
	if p.take("+") {
		return nil, p.fail("possessive quantifiers are not supported")
	}
	p.take("?") // lazy: the same texts
	if p.more() {
		if _, _, again, _ := (&regexParser{text: p.text, at: p.at}).quantifier(); again {
			return nil, p.fail("two quantifiers in a row: write a group around the first")
		}
	}
	return &tree{op: opRepeat, parts: []*tree{x}, min: least, max: most, anchors: x.anchors}, nil
}

func (p *regexParser) quantifier() (least, most int32, ok bool, err error) {
	switch {
	case p.take("*"):
		return 0, unlimited, true, nil
	case p.take("+"):
		return 1, unlimited, true, nil
	case p.take("?"):
		return 0, 1, true, nil
	}
	rest := p.text[p.at:]
	if !strings.HasPrefix(rest, "{") {
		return 0, 0, false, nil
	}
	inside, _, closed := strings.Cut(rest[1:], "}")
	if !closed || len(inside) > 24 {
		return 0, 0, false, nil
	}
	from, to, comma := strings.Cut(inside, ",")
	if !digitsOnly(from) || comma && !digitsOnly(to) || from == "" && (!comma || to == "") {
		return 0, 0, false, nil // a brace like any other character
	}
	if from == "" || len(from) > 1 && from[0] == '0' || len(to) > 1 && to[0] == '0' {
		return 0, 0, false, p.fail("{%s} means different things to different engines: write the lower count, without leading zeros", inside)
	}
	number := func(s string, otherwise int32) (int32, error) {
		if s == "" {
			return otherwise, nil
		}
		n, err := strconv.ParseInt(s, 10, 32)
		if err != nil || n >= unlimited {
			return 0, p.fail("the count %s is too large", s)
		}
		return int32(n), nil
	}
	if least, err = number(from, 0); err != nil {
		return 0, 0, false, err
	}
	most = least
	if comma {
		if most, err = number(to, unlimited); err != nil {
			return 0, 0, false, err
		}
	}
	if most < least {
		return 0, 0, false, p.fail("the counts {%s} are in the wrong order", inside)
	}
	p.at += len(inside) + 2
	return least, most, true, nil
}

func digitsOnly(s string) bool {
	return strings.Trim(s, "0123456789") == ""
}

func (p *regexParser) atom() (*tree, error) {
	start := p.at
	switch r := p.rune(); r {
	case '(':
		return p.group()
	case '[':
		s, err := p.class()
		if err != nil {
			return nil, err
		}
		return p.chars(s), nil
	case '.':
		if p.all {
			return &tree{node: p.a.bytes(everything)}, nil
		}
		if p.wide {
			return &tree{node: p.a.bytes(everything)}, nil
		}
		return &tree{node: p.a.bytes(chars(span{'\n', '\n'}, span{'\r', '\r'}, span{0x2028, 0x2029}).not())}, nil
	case '^':
		return &tree{op: opBegin, anchors: true}, nil
	case '$':
		return &tree{op: opEnd, anchors: true}, nil
	case '*', '+', '?':
		p.at = start
		return nil, p.fail("nothing stands before %c to repeat", r)
	case '\\':
		switch {
		case p.take("A"):
			return &tree{op: opBegin, anchors: true}, nil
		case p.take("z"), p.take("Z"):
			return &tree{op: opEnd, anchors: true}, nil
		}
		if p.wide && p.more() {
			if other, ok := opposite[p.text[p.at]]; ok {
				p.at++
				return p.chars(other.not()), nil
			}
		}
		s, err := p.escape(false)
		if err != nil {
			return nil, err
		}
		return p.chars(s), nil
	default:
		return p.chars(set{{r, r}}), nil
	}
}

func (p *regexParser) group() (*tree, error) {
	fold, all := p.fold, p.all
	restore := true
	if p.take("?") {
		switch {
		case p.take(":"):
		case p.take("="), p.take("!"):
			return nil, p.fail("look-ahead is not supported")
		case p.take("<="), p.take("<!"):
			return nil, p.fail("look-behind is not supported")
		case p.take("P="):
			return nil, p.fail("back references are not supported")
		case p.take(">"):
			return nil, p.fail("atomic groups are not supported")
		case p.take("("):
			return nil, p.fail("conditions are not supported")
		case p.take("#"):
			_, rest, closed := strings.Cut(p.text[p.at:], ")")
			if !closed {
				return nil, p.fail("a comment is not closed")
			}
			p.at = len(p.text) - len(rest)
			return &tree{node: empty}, nil
		case p.take("P<"), p.take("<"):
			name, _, closed := strings.Cut(p.text[p.at:], ">")
			if !closed || name == "" || strings.ContainsAny(name, "()[]\\ ") {
				return nil, p.fail("a group's name is not closed")
			}
			p.at += len(name) + 1
		default:
			on := true
			for {
				if !p.more() {
					return nil, p.fail("a group is not closed")
				}
				switch r := p.rune(); r {
				case '-':
					on = false
					continue
				case 'i':
					p.fold = on
					continue
				case 's':
					p.all = on
					continue
				case 'a', 'u':
					continue
				case ':':
				case ')':
					restore = false
					return &tree{node: empty}, nil // for the rest of the group around it
				default:
					return nil, p.fail("the flag %c is not supported", r)
				}
				break
			}
		}
	}
	t, err := p.alternatives()
	if err != nil {
		return nil, err
	}
	if !p.take(")") {
		return nil, p.fail("a group is not closed")
	}
	if restore {
		p.fold, p.all = fold, all
	}
	return t, nil
}

var (
	digit = chars(span{'0', '9'})
	word  = chars(span{'0', '9'}, span{'a', 'z'}, span{'A', 'Z'}, span{'_', '_'})
	blank = chars(span{'\t', '\n'}, span{'\f', '\r'}, span{' ', ' '})
	// What every engine agrees is none of them.
	notDigit   = fromTable(unicode.Nd).not()
	notWord    = fromTable(unicode.L, unicode.M, unicode.N, unicode.Pc).not()
	notBlank   = chars(span{0x09, 0x0d}, span{0x1c, 0x20}, span{0x85, 0x85}, span{0xa0, 0xa0}, span{0xfeff, 0xfeff}).or(fromTable(unicode.White_Space)).not()
	opposite   = map[byte]set{'d': notDigit, 'D': digit, 'w': notWord, 'W': word, 's': notBlank, 'S': blank}
	posixClass = map[string]set{
		"alpha": chars(span{'a', 'z'}, span{'A', 'Z'}), "digit": digit, "alnum": word.and(chars(span{'_', '_'}).not()), "word": word,
		"upper": chars(span{'A', 'Z'}), "lower": chars(span{'a', 'z'}), "space": chars(span{'\t', '\r'}, span{' ', ' '}), "blank": chars(span{'\t', '\t'}, span{' ', ' '}),
		"punct": chars(span{'!', '/'}, span{':', '@'}, span{'[', '`'}, span{'{', '~'}), "xdigit": chars(span{'0', '9'}, span{'a', 'f'}, span{'A', 'F'}),
		"cntrl": chars(span{0, 31}, span{127, 127}), "print": chars(span{' ', '~'}), "graph": chars(span{'!', '~'}), "ascii": chars(span{0, 127}),
	}
)

// escape is the set of what follows a backslash.
func (p *regexParser) escape(inClass bool) (set, error) {
	if !p.more() {
		return nil, p.fail("a backslash ends it")
	}
	start := p.at
	one := func(r rune) (set, error) { return set{{r, r}}, nil }
	switch r := p.rune(); r {
	case 'd':
		return digit, nil
	case 'D':
		return notDigit, nil
	case 'w':
		return word, nil
	case 'W':
		return notWord, nil
	case 's':
		return blank, nil
	case 'S':
		return notBlank, nil
	case 'n':
		return one('\n')
	case 'r':
		return one('\r')
	case 't':
		return one('\t')
	case 'f':
		return one('\f')
	case 'v':
		return one('\v')
	case 'a':
		return one('\a')
	case '0':
		if p.more() && '0' <= p.text[p.at] && p.text[p.at] <= '9' {
			return nil, p.fail("octal escapes are not supported: write \\x and two hexadecimal digits")
		}
		return one(0)
	case 'x', 'u', 'U':
		return p.hexEscape(map[rune]int{'x': 2, 'u': 4, 'U': 8}[r])
	case 'p', 'P':
		s, err := p.unicodeClass()
		if err == nil && r == 'P' {
			s = s.not()
		}
		return s, err
	case 'b', 'B':
		if inClass && r == 'b' {
			return one('\b')
		}
		p.at = start
		return nil, p.fail("word boundaries \\%c are not supported", r)
	case 'k', '1', '2', '3', '4', '5', '6', '7', '8', '9':
		p.at = start
		return nil, p.fail("back references are not supported")
	default:
		if r < 0x80 && word.has(r) && r != '_' {
			p.at = start
			return nil, p.fail("the escape \\%c is not supported", r)
		}
		return one(r)
	}
}

func (p *regexParser) hexEscape(n int) (set, error) {
	digits := ""
	if p.take("{") {
		inside, _, closed := strings.Cut(p.text[p.at:], "}")
		if !closed {
			return nil, p.fail("an escape is not closed")
		}
		digits = inside
		p.at += len(inside) + 1
	} else {
		if len(p.text)-p.at < n {
			return nil, p.fail("an escape needs %d hexadecimal digits", n)
		}
		digits = p.text[p.at : p.at+n]
		p.at += n
	}
	v, err := strconv.ParseUint(digits, 16, 32)
	if err != nil || v > unicode.MaxRune {
		return nil, p.fail("%q is not the number of a character", digits)
	}
	if 0xd800 <= v && v < 0xdc00 && strings.HasPrefix(p.text[p.at:], `\u`) && len(p.text)-p.at >= 6 {
		if low, err := strconv.ParseUint(p.text[p.at+2:p.at+6], 16, 32); err == nil && 0xdc00 <= low && low < 0xe000 {
			p.at += 6
			v = 0x10000 + (v-0xd800)<<10 + (low - 0xdc00)
		}
	}
	if 0xd800 <= v && v < 0xe000 {
		return nil, p.fail("U+%04X is half a character", v)
	}
	return set{{rune(v), rune(v)}}, nil
}

func (p *regexParser) unicodeClass() (set, error) {
	if !p.more() {
		return nil, p.fail("a Unicode class has no name")
	}
	name := ""
	if p.take("{") {
		inside, _, closed := strings.Cut(p.text[p.at:], "}")
		if !closed {
			return nil, p.fail("a Unicode class is not closed")
		}
		name = inside
		p.at += len(inside) + 1
	} else {
		name = string(p.rune())
	}
	negated := strings.HasPrefix(name, "^")
	name = strings.TrimPrefix(name, "^")
	kind, value, has := strings.Cut(name, "=")
	if has {
		name = value
	}
	long := map[string]string{"Letter": "L", "Uppercase_Letter": "Lu", "Lowercase_Letter": "Ll", "Mark": "M", "Number": "N", "Decimal_Number": "Nd", "Punctuation": "P", "Symbol": "S", "Separator": "Z", "Other": "C"}
	if s, ok := long[name]; ok {
		name = s
	}
	script := kind == "Script" || kind == "sc" || kind == "Script_Extensions" || kind == "scx"
	if has && !script && kind != "General_Category" && kind != "gc" {
		return nil, p.fail("the Unicode property %s is not supported", kind)
	}
	table, ok := unicode.Categories[name]
	if script || !ok {
		table, ok = unicode.Scripts[name]
	}
	var s set
	switch {
	case ok:
		s = fromTable(table)
	case name == "Any":
		s = everything
	default:
		return nil, p.fail("the Unicode class %q is not known", name)
	}
	if negated {
		s = s.not()
	}
	return s, nil
}

func (p *regexParser) class() (set, error) {
	negated := p.take("^")
	if p.more() && p.text[p.at] == ']' {
		return nil, p.fail("a ] that stands first in a class means different things to different engines: write \\]")
	}
	var spans []span   // that every engine takes
	var perhaps []span // that only some do
	var seen [2]uint8  // of \d \w \s, and of \D \W \S: bits
	for {
		if !p.more() {
			return nil, p.fail("a class is not closed")
		}
		if p.take("]") {
			break
		}
		if rest := p.text[p.at:]; len(rest) > 1 && rest[0] == '\\' {
			if other, ok := opposite[rest[1]]; ok {
				perhaps = append(perhaps, other.not()...)
				i := strings.IndexByte("dwsDWS", rest[1])
				seen[i/3] |= 1 << (i % 3)
			}
		}
		if p.take("[:") {
			name, _, closed := strings.Cut(p.text[p.at:], ":]")
			s, known := posixClass[strings.TrimPrefix(name, "^")]
			if !closed || !known {
				return nil, p.fail("the class [:%s is not known", name)
			}
			if strings.HasPrefix(name, "^") {
				s = s.not()
			}
			p.at += len(name) + 2
			spans = append(spans, s...)
			continue
		}
		lo, err := p.classPart()
		if err != nil {
			return nil, err
		}
		if strings.HasPrefix(p.text[p.at:], "-") && !strings.HasPrefix(p.text[p.at:], "-]") {
			single := len(lo) == 1 && lo[0].lo == lo[0].hi
			p.at++
			hi, err := p.classPart()
			if err != nil {
				return nil, err
			}
			if !single || len(hi) != 1 || hi[0].lo != hi[0].hi {
				return nil, p.fail("a range in a class needs a character on both sides: write \\- for the character itself")
			}
			if hi[0].lo < lo[0].lo {
				return nil, p.fail("the range %c-%c is in the wrong order", lo[0].lo, hi[0].lo)
			}
			lo = chars(span{lo[0].lo, hi[0].lo})
		}
		spans = append(spans, lo...)
	}
	if seen[0]&seen[1] != 0 { // [\s\S]
		spans = append(spans, everything...)
	}
	if negated != p.wide {
		spans = append(spans, perhaps...)
	}
	s := normal(spans)
	if negated {
		if p.fold {
			s = s.folded()
		}
		s = s.not()
	}
	return s, nil
}

func (p *regexParser) classPart() (set, error) {
	if !p.more() {
		return nil, p.fail("a class is not closed")
	}
	if p.take(`\`) {
		return p.escape(true)
	}
	r := p.rune()
	return set{{r, r}}, nil
}

// lengths are the fewest and the most characters of a node's texts.
func (a *arena) lengths(n id, known map[id][2]int64) (least, most int64) {
	const infinite = math.MaxInt32
	if l, ok := known[n]; ok {
		return l[0], l[1]
	}
	switch m := a.nodes[n]; m.kind {
	case isSet:
		least, most = 1, 1
	case isSeq:
		l1, m1 := a.lengths(m.a, known)
		l2, m2 := a.lengths(m.b, known)
		least, most = min(l1+l2, infinite), min(m1+m2, infinite)
	case isOr:
		least = infinite
		for _, x := range a.lists[m.a : m.a+m.b] {
			l, u := a.lengths(x, known)
			least, most = min(least, l), max(most, u)
		}
	case isRep:
		l, u := a.lengths(m.a, known)
		least, most = min(l*int64(m.b), infinite), min(u*int64(m.c), infinite)
	}
	known[n] = [2]int64{least, most}
	return least, most
}

// Choice is one of the options.
func Choice(options []string) (*Grammar, error) {
	if len(options) == 0 {
		return nil, &Error{"choice", "there are no options"}
	}
	size := 0
	for i, o := range options {
		if !utf8.ValidString(o) {
			return nil, &Error{"choice " + strconv.Itoa(i), "it is not UTF-8"}
		}
		size += len(o)
	}
	if size > 1<<23 {
		return nil, &Error{"choice", "the options have more than 8 MiB"}
	}
	a := newByteArena()
	g, err := seal(a, a.trie(options, raw))
	if err != nil {
		return nil, &Error{"choice", err.Error()}
	}
	key := [][]byte{[]byte("choice")}
	for _, o := range options {
		key = append(key, []byte(o))
	}
	g.key = keyOf(key...)
	return g, nil
}
