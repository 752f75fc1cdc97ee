package grammar

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// EBNF is the texts of the rule root of a grammar in llama.cpp's GBNF, as vLLM
// and XGrammar read it: name ::= expression, with "literals", [classes], the
// dot for any character, groups, alternatives and the repetitions * + ? {m}
// {m,} {m,n}, and comments from # on. A rule may call itself, also on the left,
// directly or through others. An *Error says where and why.
func EBNF(text string) (*Grammar, error) {
	p := &ebnfParser{text: text, index: map[string]int{}}
	if err := p.parse(); err != nil {
		return nil, err
	}
	root, ok := p.index["root"]
	if !ok || p.rules[root].body == nil {
		return nil, &Error{"grammar", "there is no rule root"}
	}
	for _, r := range p.rules {
		if r.body == nil {
			return nil, &Error{"grammar line " + strconv.Itoa(r.line), "the rule " + r.name + " is not defined"}
		}
	}
	if err := p.unwind(); err != nil {
		return nil, err
	}
	a := newByteArena().bounded()
	for range p.rules {
		a.rule()
	}
	for i, r := range p.rules {
		n := r.body.build(a)
		a.rules[i].body = n
		if a.spent {
			return nil, &Error{"grammar", errComplex.Error()}
		}
	}
	g, err := seal(a, a.ref(int32(root)))
	if err != nil {
		return nil, &Error{"grammar", "a rule calls itself on the left in a way that is not supported: " + err.Error()}
	}
	if g.root == none {
		return nil, &Error{"grammar", "no text can end: every way calls another rule"}
	}
	if g.tooAmbiguous() {
		return nil, &Error{"grammar", "it is too ambiguous: what may follow would take too long to compute"}
	}
	g.key = keyOf([]byte("ebnf"), []byte(text))
	return g, nil
}

// expression of a grammar.
type expression struct {
	op       exprOp
	text     string // of a literal
	set      set
	rule     int
	parts    []*expression
	min, max int32
}

type exprOp uint8

const (
	exprText exprOp = iota
	exprSet
	exprRule
	exprSeq
	exprOr
	exprRep
)

func (e *expression) build(a *arena) id {
	switch e.op {
	case exprText:
		if len(e.text) > 256 {
			return a.trie([]string{e.text}, raw)
		}
		return a.text(e.text)
	case exprSet:
		return a.spell(e.set, raw)
	case exprRule:
		return a.ref(int32(e.rule))
	case exprRep:
		return a.rep(e.parts[0].build(a), e.min, e.max)
	}
	ids := make([]id, len(e.parts))
	for i, x := range e.parts {
		ids[i] = x.build(a)
	}
	if e.op == exprOr {
		return a.or(ids)
	}
	return a.seqs(ids...)
}

type ebnfRule struct {
	name string
	line int
	body *expression
}

type ebnfParser struct {
	text   string
	at     int
	depth  int
	pieces int
	rules  []ebnfRule
	index  map[string]int
}

const maxEBNF = 1 << 20 // bytes

func (p *ebnfParser) fail(format string, args ...any) error {
	return &Error{"grammar line " + strconv.Itoa(p.line()), fmt.Sprintf(format, args...)}
}

func (p *ebnfParser) line() int { return 1 + strings.Count(p.text[:p.at], "\n") }

// blanks skips spaces and comments; lines too where the rule goes on anyway.
func (p *ebnfParser) blanks(lines bool) {
	for p.at < len(p.text) {
		switch c := p.text[p.at]; {
		case c == ' ' || c == '\t' || lines && (c == '\n' || c == '\r'):
			p.at++
		case c == '#':
			for p.at < len(p.text) && p.text[p.at] != '\n' {
				p.at++
			}
		default:
			return
		}
	}
}

func (p *ebnfParser) peek(s string) bool { return strings.HasPrefix(p.text[p.at:], s) }

func (p *ebnfParser) take(s string) bool {
	if p.peek(s) {
		p.at += len(s)
		return true
	}
	return false
}

func nameByte(c byte, first bool) bool {
	switch {
	case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', c == '_', c == '-', c == '.' && !first:
		return true
	}
	return !first && '0' <= c && c <= '9'
}

func (p *ebnfParser) name() string {
	start := p.at
	for p.at < len(p.text) && nameByte(p.text[p.at], p.at == start) {
		p.at++
	}
	return p.text[start:p.at]
}

// ruleOf is the number of a rule, which may be defined later.
func (p *ebnfParser) ruleOf(name string) int {
	i, ok := p.index[name]
	if !ok {
		i = len(p.rules)
		p.index[name] = i
		p.rules = append(p.rules, ebnfRule{name: name, line: p.line()})
	}
	return i
}

func (p *ebnfParser) parse() error {
	if len(p.text) > maxEBNF {
		return &Error{"grammar", fmt.Sprintf("it has %d bytes; at most %d", len(p.text), maxEBNF)}
	}
	if !utf8.ValidString(p.text) {
		return &Error{"grammar", "it is not UTF-8"}
	}
	for {
		p.blanks(true)
		if p.at == len(p.text) {
			return nil
		}
		name := p.name()
		p.blanks(false)
		if name == "" || !p.take("::=") {
			return p.fail("a rule is written name ::= expression")
		}
		i := p.ruleOf(name)
		if p.rules[i].body != nil {
			return p.fail("the rule %s is defined twice", name)
		}
		body, err := p.alternatives(false)
		if err != nil {
			return err
		}
		p.rules[i].body = body
		if p.at < len(p.text) && p.text[p.at] != '\n' && p.text[p.at] != '\r' {
			return p.fail("%q does not belong here", firstOf(p.text[p.at:]))
		}
	}
}

func firstOf(s string) string {
	r, _ := firstRune(s)
	return string(r)
}

func (p *ebnfParser) alternatives(nested bool) (*expression, error) {
	if p.depth++; p.depth > maxNesting {
		return nil, p.fail("groups are nested too deeply")
	}
	defer func() { p.depth-- }()
	e := &expression{op: exprOr}
	for {
		p.blanks(true)
		x, err := p.sequence()
		if err != nil {
			return nil, err
		}
		e.parts = append(e.parts, x)
		p.blanks(nested)
		if !p.more() || !p.take("|") {
			break
		}
	}
	if len(e.parts) == 1 {
		return e.parts[0], nil
	}
	return e, nil
}

// more looks past ends of lines for what goes on with a rule: an alternative,
// or a piece that is not the name of the next rule.
func (p *ebnfParser) more() bool {
	start := p.at
	p.blanks(true)
	if p.at == len(p.text) {
		p.at = start
		return false
	}
	piece := p.at
	if name := p.name(); name != "" {
		p.blanks(false)
		if p.peek("::=") {
			p.at = start
			return false
		}
	}
	p.at = piece
	return true
}

func (p *ebnfParser) sequence() (*expression, error) {
	e := &expression{op: exprSeq}
	for p.more() {
		c := p.text[p.at]
		if c == '|' || c == ')' {
			break
		}
		if p.pieces++; p.pieces > maxPieces {
			return nil, p.fail("it has too many pieces")
		}
		x, err := p.piece()
		if err != nil {
			return nil, err
		}
		if x, err = p.repeated(x); err != nil {
			return nil, err
		}
		e.parts = append(e.parts, x)
	}
	if len(e.parts) == 1 {
		return e.parts[0], nil
	}
	return e, nil
}

func (p *ebnfParser) repeated(x *expression) (*expression, error) {
	q := regexParser{text: p.text, at: p.at}
	least, most, ok, err := q.quantifier()
	if err != nil {
		return nil, p.fail("%s", err.(*Error).Reason)
	}
	if !ok {
		if p.peek("{") {
			return nil, p.fail("a repetition is written {m}, {m,} or {m,n}")
		}
		return x, nil
	}
	p.at = q.at
	if p.peek("*") || p.peek("+") || p.peek("?") || p.peek("{") {
		return nil, p.fail("two repetitions in a row: write a group around the first")
	}
	return &expression{op: exprRep, parts: []*expression{x}, min: least, max: most}, nil
}

func (p *ebnfParser) piece() (*expression, error) {
	switch c := p.text[p.at]; {
	case c == '"':
		p.at++
		var out strings.Builder
		for {
			if p.at == len(p.text) || p.text[p.at] == '\n' {
				return nil, p.fail("a literal is not closed")
			}
			if p.take(`"`) {
				return &expression{op: exprText, text: out.String()}, nil
			}
			r, err := p.char()
			if err != nil {
				return nil, err
			}
			out.WriteRune(r)
		}
	case c == '[':
		p.at++
		return p.class()
	case c == '.':
		p.at++
		return &expression{op: exprSet, set: everything}, nil
	case c == '(':
		p.at++
		if p.peek("=") {
			return nil, p.fail("look-ahead is not supported")
		}
		e, err := p.alternatives(true)
		if err != nil {
			return nil, err
		}
		p.blanks(true)
		if !p.take(")") {
			return nil, p.fail("a group is not closed")
		}
		return e, nil
	case nameByte(c, true):
		name := p.name()
		if p.peek("(") {
			return nil, p.fail("the macro %s is not supported", name)
		}
		return &expression{op: exprRule, rule: p.ruleOf(name)}, nil
	case c == '<' || c == '!':
		return nil, p.fail("matching tokens by name or number is not supported: write their text as a literal")
	}
	return nil, p.fail("%q does not belong here", firstOf(p.text[p.at:]))
}

// char is the next character of a literal or a class, which may be escaped.
func (p *ebnfParser) char() (rune, error) {
	r, size := utf8.DecodeRuneInString(p.text[p.at:])
	p.at += size
	if r != '\\' {
		return r, nil
	}
	if p.at == len(p.text) {
		return 0, p.fail("a backslash ends the grammar")
	}
	r, size = utf8.DecodeRuneInString(p.text[p.at:])
	p.at += size
	hex := func(n int) (rune, error) {
		end := p.at
		for end < len(p.text) && end < p.at+n && strings.IndexByte("0123456789abcdefABCDEF", p.text[end]) >= 0 {
			end++
		}
		v, err := strconv.ParseUint(p.text[p.at:end], 16, 32)
		if err != nil || v > unicode.MaxRune || 0xd800 <= v && v < 0xe000 || n > 2 && end < p.at+n {
			return 0, p.fail("an escape is not the number of a character")
		}
		p.at = end
		return rune(v), nil
	}
	switch r {
	case 'n':
		return '\n', nil
	case 'r':
		return '\r', nil
	case 't':
		return '\t', nil
	case 'b':
		return '\b', nil
	case 'f':
		return '\f', nil
	case 'a':
		return '\a', nil
	case 'v':
		return '\v', nil
	case '0':
		return 0, nil
	case 'e':
		return 0x1b, nil
	case 'x':
		return hex(2)
	case 'u':
		return hex(4)
	case 'U':
		return hex(8)
	}
	if r < 0x80 && (word.has(r) || r <= ' ') {
		return 0, p.fail("the escape \\%c is not supported", r)
	}
	return r, nil
}

func (p *ebnfParser) class() (*expression, error) {
	negated := p.take("^")
	var spans []span
	for {
		if p.at == len(p.text) || p.text[p.at] == '\n' {
			return nil, p.fail("a class is not closed")
		}
		if p.take("]") {
			break
		}
		lo, err := p.char()
		if err != nil {
			return nil, err
		}
		hi := lo
		if p.peek("-") && !p.peek("-]") {
			p.at++
			if p.at == len(p.text) {
				return nil, p.fail("a class is not closed")
			}
			if hi, err = p.char(); err != nil {
				return nil, err
			}
			if hi < lo {
				return nil, p.fail("the range %c-%c is in the wrong order", lo, hi)
			}
		}
		spans = append(spans, span{lo, hi})
	}
	s := chars(spans...)
	if negated {
		s = s.not()
	}
	if len(s) == 0 {
		return nil, p.fail("a class has no characters")
	}
	return &expression{op: exprSet, set: s}, nil
}

// unwind rewrites rules that call themselves on the left: a ::= a x | y becomes
// a ::= y x*, after rules before it in a ring are put in their places.
// Source: Aho, Sethi, Ullman, Compilers, algorithm 4.1.
func (p *ebnfParser) unwind() error {
	null := p.nullable()
	left := make([][]int, len(p.rules))
	for i, r := range p.rules {
		left[i] = r.body.leftRules(null, nil)
	}
	for _, ring := range rings(left) {
		if len(ring) == 1 && !slices.Contains(left[ring[0]], ring[0]) {
			continue
		}
		slices.Sort(ring)
		budget := 20_000
		for i, r := range ring {
			for {
				again := false
				var options []*expression
				for _, o := range p.rules[r].body.options() {
					head, rest, ok := o.split()
					if ok && head != r && slices.Contains(ring[:i], head) {
						again = true
						for _, x := range p.rules[head].body.options() {
							options = append(options, &expression{op: exprSeq, parts: []*expression{x, rest}})
							if budget--; budget < 0 {
								return &Error{"grammar line " + strconv.Itoa(p.rules[r].line), "the rules that call each other on the left are too many"}
							}
						}
						continue
					}
					options = append(options, o)
				}
				p.rules[r].body = &expression{op: exprOr, parts: options}
				if !again {
					break
				}
			}
			var bases, tails []*expression
			for _, o := range p.rules[r].body.options() {
				if head, rest, ok := o.split(); ok && head == r {
					tails = append(tails, rest)
				} else {
					bases = append(bases, o)
				}
			}
			body := &expression{op: exprOr, parts: bases}
			if len(tails) > 0 {
				again := &expression{op: exprRep, min: 0, max: unlimited, parts: []*expression{{op: exprOr, parts: tails}}}
				body = &expression{op: exprSeq, parts: []*expression{body, again}}
			}
			p.rules[r].body = body
		}
	}
	// What is hidden behind something that may be empty is still there.
	null = p.nullable()
	for i, r := range p.rules {
		left[i] = r.body.leftRules(null, nil)
	}
	for _, ring := range rings(left) {
		if len(ring) > 1 || slices.Contains(left[ring[0]], ring[0]) {
			r := p.rules[ring[0]]
			return &Error{"grammar line " + strconv.Itoa(r.line), "the rule " + r.name + " calls itself on the left behind something that may be empty, or within a repetition"}
		}
	}
	return nil
}

// options of an expression as a whole.
func (e *expression) options() []*expression {
	if e.op != exprOr {
		return []*expression{e}
	}
	var out []*expression
	for _, x := range e.parts {
		out = append(out, x.options()...)
	}
	return out
}

// split takes the rule that an option begins with from it.
func (e *expression) split() (head int, rest *expression, ok bool) {
	switch e.op {
	case exprRule:
		return e.rule, &expression{op: exprSeq}, true
	case exprSeq:
		for i, x := range e.parts {
			if x.op == exprSeq && len(x.parts) == 0 || x.op == exprText && x.text == "" {
				continue
			}
			head, first, ok := x.split()
			return head, &expression{op: exprSeq, parts: append([]*expression{first}, e.parts[i+1:]...)}, ok
		}
	}
	return 0, nil, false
}

func (p *ebnfParser) nullable() []bool {
	users := make([][]int, len(p.rules)) // rule -> rules that mention it
	for i, r := range p.rules {
		for _, x := range r.body.mentioned(nil) {
			users[x] = append(users[x], i)
		}
	}
	null := make([]bool, len(p.rules))
	var queue []int
	try := func(i int) {
		if !null[i] && p.rules[i].body.null(null) {
			null[i] = true
			queue = append(queue, i)
		}
	}
	for i := range p.rules {
		try(i)
	}
	for len(queue) > 0 {
		i := queue[len(queue)-1]
		queue = queue[:len(queue)-1]
		for _, u := range users[i] {
			try(u)
		}
	}
	return null
}

func (e *expression) mentioned(out []int) []int {
	if e.op == exprRule {
		out = append(out, e.rule)
	}
	for _, x := range e.parts {
		out = x.mentioned(out)
	}
	return out
}

func (e *expression) null(rules []bool) bool {
	switch e.op {
	case exprText:
		return e.text == ""
	case exprRule:
		return rules[e.rule]
	case exprSeq:
		return !slices.ContainsFunc(e.parts, func(x *expression) bool { return !x.null(rules) })
	case exprOr:
		return slices.ContainsFunc(e.parts, func(x *expression) bool { return x.null(rules) })
	case exprRep:
		return e.min == 0 || e.parts[0].null(rules)
	}
	return false
}

// leftRules are the rules that may come first.
func (e *expression) leftRules(null []bool, out []int) []int {
	switch e.op {
	case exprRule:
		out = append(out, e.rule)
	case exprSeq:
		for _, x := range e.parts {
			out = x.leftRules(null, out)
			if !x.null(null) {
				break
			}
		}
	case exprOr, exprRep:
		for _, x := range e.parts {
			out = x.leftRules(null, out)
		}
	}
	return out
}

// rings are the strongly connected parts of a graph. Source: Tarjan, without
// recursion.
func rings(next [][]int) [][]int {
	order := make([]int, len(next)) // 0: not seen
	low := make([]int, len(next))
	onStack := make([]bool, len(next))
	var stack []int
	var out [][]int
	count := 0
	type visit struct{ n, at int }
	for start := range next {
		if order[start] != 0 {
			continue
		}
		calls := []visit{{start, 0}}
		for len(calls) > 0 {
			v := &calls[len(calls)-1]
			if v.at == 0 && order[v.n] == 0 {
				count++
				order[v.n], low[v.n] = count, count
				stack, onStack[v.n] = append(stack, v.n), true
			}
			if v.at < len(next[v.n]) {
				w := next[v.n][v.at]
				if order[w] == 0 {
					calls = append(calls, visit{w, 0})
					continue
				}
				if onStack[w] {
					low[v.n] = min(low[v.n], low[w])
				}
				v.at++
				continue
			}
			n := v.n
			calls = calls[:len(calls)-1]
			if low[n] == order[n] {
				var ring []int
				for {
					w := stack[len(stack)-1]
					stack, onStack[w] = stack[:len(stack)-1], false
					ring = append(ring, w)
					if w == n {
						break
					}
				}
				out = append(out, ring)
			}
		}
	}
	return out
}
