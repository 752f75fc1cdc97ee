package template

import (
	"fmt"
	"slices"
	"strings"
)

// parser builds statements by Jinja's grammar. It panics with an *Error.
type parser struct {
	name   string
	tokens []token
	pos    int
	loops  int // that break and continue may end
	depth  int
}

// maxNesting bounds the nesting of expressions and of statements.
const maxNesting = 100

func (p *parser) fail(line int, format string, a ...any) {
	panic(&Error{Template: p.name, Line: line, Message: fmt.Sprintf(format, a...)})
}

func (p *parser) current() token { return p.tokens[p.pos] }

func (p *parser) next() token {
	t := p.tokens[p.pos]
	if p.pos < len(p.tokens)-1 {
		p.pos++
	}
	return t
}

func (p *parser) look() token { return p.tokens[min(p.pos+1, len(p.tokens)-1)] }

func (p *parser) at(kind string) bool { return p.current().kind == kind }

func (p *parser) atName(names ...string) bool {
	return p.at(tokenName) && slices.Contains(names, p.current().text)
}

func (p *parser) skip(kind string) bool {
	if p.at(kind) {
		p.next()
		return true
	}
	return false
}

func (p *parser) skipName(name string) bool {
	if p.atName(name) {
		p.next()
		return true
	}
	return false
}

func (p *parser) expect(kind string) token {
	if !p.at(kind) {
		p.fail(p.current().line, "expected token '%s', got '%s'", token{kind: kind, text: "name"}, p.current())
	}
	return p.next()
}

func (p *parser) expectName(name string) {
	if !p.skipName(name) {
		p.fail(p.current().line, "expected token '%s', got '%s'", name, p.current())
	}
}

// enter counts a level of nesting; what it gives leaves it.
func (p *parser) enter() func() {
	if p.depth++; p.depth > maxNesting {
		p.fail(p.current().line, "nested deeper than %d levels", maxNesting)
	}
	return func() { p.depth-- }
}

// statements reads up to a tag of one of the names ends, which is current then;
// without ends, to the end of the template.
func (p *parser) statements(ends ...string) []stmt {
	defer p.enter()()
	var body []stmt
	var out *output
	print := func(e expr, line int) {
		if out == nil {
			out = &output{}
			body = append(body, out)
		}
		out.items, out.lines = append(out.items, e), append(out.lines, line)
	}
	for {
		switch t := p.next(); t.kind {
		case tokenData:
			print(&constant{literal(t.text)}, t.line)
		case tokenPrint:
			print(p.tuple(true), t.line)
			p.expect(tokenPrints)
		case tokenTag:
			out = nil
			if len(ends) > 0 && p.atName(ends...) {
				return body
			}
			body = append(body, p.statement(ends))
			p.expect(tokenTags)
		default:
			if len(ends) > 0 {
				p.fail(t.line, "Unexpected end of template. Jinja was looking for the following tags: '%s'.", strings.Join(ends, "' or '"))
			}
			return body
		}
	}
}

// body reads the rest of a tag and what follows up to one of the names ends.
func (p *parser) body(ends ...string) []stmt {
	p.skip(":")
	p.expect(tokenTags)
	return p.statements(ends...)
}

// block is body up to the tag end, which it takes.
func (p *parser) block(end string) []stmt {
	body := p.body(end)
	p.next()
	return body
}

func (p *parser) statement(ends []string) stmt {
	t := p.current()
	if t.kind != tokenName {
		p.fail(t.line, "tag name expected")
	}
	p.next()
	switch t.text {
	case "set":
		return p.set(t.line)
	case "for":
		return p.forLoop(t.line)
	case "if":
		return p.branch(t.line)
	case "macro":
		return p.macro(t.line)
	case "call":
		return p.callBlock(t.line)
	case "filter":
		f := p.filter(nil)
		for p.at("|") {
			p.next()
			f = p.filter(f)
		}
		return &filterBlock{filter: f, body: p.block("endfilter"), line: t.line}
	case "with":
		return p.with(t.line)
	case "print":
		out := &output{}
		for !p.at(tokenTags) {
			if len(out.items) > 0 {
				p.expect(",")
			}
			out.items, out.lines = append(out.items, p.expression(true)), append(out.lines, t.line)
		}
		return out
	case "break", "continue":
		if p.loops == 0 {
			p.fail(t.line, "'%s' outside of a loop", t.text)
		}
		if t.text == "break" {
			return &jump{breaking}
		}
		return &jump{continuing}
	case "generation":
		return &region{body: p.outside(func() []stmt { return p.block("endgeneration") })}
	case "block":
		name := p.expect(tokenName).text
		p.skipName("scoped")
		p.skipName("required")
		r := &region{body: p.outside(func() []stmt { return p.block("endblock") }), isolated: true}
		p.skipName(name)
		return r
	case "extends", "include", "import", "from":
		for !p.at(tokenTags) && !p.at(tokenEnd) {
			p.next()
		}
		return &foreign{tag: t.text, line: t.line}
	case "autoescape":
		if c, ok := p.expression(true).(*constant); !ok || c.v != false {
			p.fail(t.line, "the tag 'autoescape' can only be false: prompts are not escaped")
		}
		return &region{body: p.block("endautoescape")}
	}
	message := fmt.Sprintf("Encountered unknown tag '%s'.", t.text)
	if len(ends) > 0 {
		message += fmt.Sprintf(" Jinja was looking for the following tags: '%s'.", strings.Join(ends, "' or '"))
	}
	p.fail(t.line, "%s", message)
	return nil
}

// outside reads what break and continue of the loops around cannot leave.
func (p *parser) outside(read func() []stmt) []stmt {
	loops := p.loops
	p.loops = 0
	defer func() { p.loops = loops }()
	return read()
}

func (p *parser) set(line int) stmt {
	to := p.target("", true)
	if p.skip("=") {
		return &assign{to: to, from: p.tuple(true), line: line}
	}
	var f *filtering
	for p.skip("|") {
		if f == nil {
			f = p.filter(nil)
		} else {
			f = p.filter(f)
		}
	}
	return &assignBlock{to: to, filter: f, body: p.block("endset"), line: line}
}

func (p *parser) forLoop(line int) stmt {
	n := &forLoop{line: line, loopSlot: -1}
	n.to = p.target("in", false)
	n.testTo = copyTarget(n.to)
	p.expectName("in")
	n.in = p.tuple(false, "recursive")
	if p.skipName("if") {
		n.test = p.expression(true)
	}
	n.recursive = p.skipName("recursive")
	p.loops++
	n.body = p.body("endfor", "else")
	p.loops--
	if p.next().text == "else" {
		n.otherwise = p.block("endfor")
	}
	return n
}

func (p *parser) branch(line int) stmt {
	n := &branch{}
	for {
		n.lines = append(n.lines, line)
		n.tests = append(n.tests, p.tuple(false))
		n.bodies = append(n.bodies, p.body("elif", "else", "endif"))
		t := p.next()
		switch t.text {
		case "elif":
			line = t.line
			continue
		case "else":
			n.otherwise = p.block("endif")
		}
		return n
	}
}

func (p *parser) with(line int) stmt {
	n := &with{line: line}
	for !p.at(tokenTags) {
		if len(n.to) > 0 {
			p.expect(",")
		}
		n.to = append(n.to, p.target("", false))
		p.expect("=")
		n.from = append(n.from, p.expression(true))
	}
	n.body = p.block("endwith")
	return n
}

func (p *parser) macro(line int) stmt {
	def := &macroDef{name: p.assignable(p.expect(tokenName)), line: line}
	p.signature(def)
	def.body = p.outside(func() []stmt { return p.block("endmacro") })
	return def
}

func (p *parser) callBlock(line int) stmt {
	n := &callBlock{def: &macroDef{line: line}, line: line}
	if p.at("(") {
		p.signature(n.def)
	}
	c, ok := p.expression(true).(*call)
	if !ok {
		p.fail(line, "expected call")
	}
	n.call = c
	n.def.body = p.outside(func() []stmt { return p.block("endcall") })
	return n
}

func (p *parser) signature(def *macroDef) {
	p.expect("(")
	for !p.at(")") {
		if len(def.params) > 0 {
			p.expect(",")
		}
		t := p.expect(tokenName)
		name := p.assignable(t)
		if slices.Contains(def.params, name) {
			p.fail(t.line, "duplicate argument '%s'", name)
		}
		if p.skip("=") {
			def.defaults = append(def.defaults, p.expression(true))
		} else if len(def.defaults) > 0 {
			p.fail(t.line, "non-default argument follows default argument")
		}
		def.params = append(def.params, name)
		p.fewArguments(t.line, len(def.params))
	}
	p.next()
}

// assignable is the name of t, if it is not one of a constant.
func (p *parser) assignable(t token) string {
	switch t.text {
	case "true", "false", "none", "True", "False", "None":
		p.fail(t.line, "can't assign to '%s'", t.text)
	}
	return t.text
}

// target reads what is assigned to; the name end may follow a trailing comma.
func (p *parser) target(end string, namespaces bool) target {
	line := p.current().line
	var items []target
	tuple := false
	for {
		if len(items) > 0 {
			p.expect(",")
		}
		if p.at(tokenTags) || p.at(tokenPrints) || p.at(")") || end != "" && p.atName(end) {
			break
		}
		items = append(items, p.oneTarget(namespaces))
		if !p.at(",") {
			break
		}
		tuple = true
	}
	switch {
	case tuple:
		return &tupleTarget{items}
	case len(items) == 0:
		p.fail(line, "Expected an expression, got '%s'", p.current())
	}
	return items[0]
}

func (p *parser) oneTarget(namespaces bool) target {
	defer p.enter()()
	if p.skip("(") {
		t := p.target("", false)
		p.expect(")")
		return t
	}
	t := p.current()
	if t.kind != tokenName {
		p.fail(t.line, "can't assign to '%s'", t)
	}
	p.next()
	if namespaces && p.skip(".") {
		return &attributeTarget{&variable{name: t.text}, p.expect(tokenName).text}
	}
	return &variableTarget{name: p.assignable(t)}
}

func copyTarget(t target) target {
	switch t := t.(type) {
	case *tupleTarget:
		items := make([]target, len(t.items))
		for i := range items {
			items[i] = copyTarget(t.items[i])
		}
		return &tupleTarget{items}
	case *variableTarget:
		return &variableTarget{name: t.name}
	}
	return t
}

// tuple reads an expression, or several with commas between; one of the names
// ends may follow a trailing comma.
func (p *parser) tuple(conditions bool, ends ...string) expr {
	return p.tupleIn(false, conditions, ends...)
}

func (p *parser) tupleIn(parentheses, conditions bool, ends ...string) expr {
	var items []expr
	tuple := false
	for {
		if len(items) > 0 {
			p.expect(",")
		}
		if p.at(tokenTags) || p.at(tokenPrints) || p.at(")") || len(ends) > 0 && p.atName(ends...) {
			break
		}
		items = append(items, p.expression(conditions))
		if !p.at(",") {
			break
		}
		tuple = true
	}
	if !tuple {
		if len(items) > 0 {
			return items[0]
		}
		if !parentheses {
			p.fail(p.current().line, "Expected an expression, got '%s'", p.current())
		}
	}
	return &sequence{items: items, tuple: true}
}

func (p *parser) expression(conditions bool) expr {
	defer p.enter()()
	if !conditions {
		return p.or()
	}
	line := p.current().line
	e := p.or()
	for links := 0; p.skipName("if"); p.link(&links) {
		c := &conditional{then: e, test: p.or(), line: line}
		if p.skipName("else") {
			c.otherwise = p.expression(true)
		}
		e = c
		line = p.current().line
	}
	return e
}

// link bounds how long a chain of operators of one level may be, since each of
// them lies within the next.
func (p *parser) link(links *int) {
	if *links++; *links > 10*maxNesting {
		p.fail(p.current().line, "more than %d operators in a row", 10*maxNesting)
	}
}

func (p *parser) or() expr {
	e := p.and()
	for links := 0; p.skipName("or"); p.link(&links) {
		e = &logic{or: true, left: e, right: p.and()}
	}
	return e
}

func (p *parser) and() expr {
	e := p.not()
	for links := 0; p.skipName("and"); p.link(&links) {
		e = &logic{left: e, right: p.not()}
	}
	return e
}

func (p *parser) not() expr {
	if p.skipName("not") {
		defer p.enter()()
		return &negation{p.not()}
	}
	return p.comparison()
}

func (p *parser) comparison() expr {
	c := &comparison{first: p.sum()}
	for {
		op := p.current().kind
		switch {
		case slices.Contains([]string{"==", "!=", "<", "<=", ">", ">="}, op):
			p.next()
		case p.skipName("in"):
			op = "in"
		case p.atName("not") && p.look().kind == tokenName && p.look().text == "in":
			p.next()
			p.next()
			op = "not in"
		default:
			if len(c.ops) == 0 {
				return c.first
			}
			return c
		}
		c.ops, c.rest = append(c.ops, op), append(c.rest, p.sum())
	}
}

// operators reads operands with operators of one level between, from the left.
func (p *parser) operators(operand func() expr, ops ...string) expr {
	e := operand()
	for links := 0; slices.Contains(ops, p.current().kind); p.link(&links) {
		op := p.next().kind
		e = &binary{op: op, left: e, right: operand()}
	}
	return e
}

func (p *parser) sum() expr { return p.operators(p.concatenation, "+", "-") }

func (p *parser) concatenation() expr {
	parts := []expr{p.product()}
	for p.skip("~") {
		parts = append(parts, p.product())
	}
	if len(parts) == 1 {
		return parts[0]
	}
	return &concatenation{parts}
}

func (p *parser) product() expr { return p.operators(p.power, "*", "/", "//", "%") }

func (p *parser) power() expr {
	return p.operators(func() expr { return p.unary(true) }, "**")
}

func (p *parser) unary(filters bool) expr {
	var e expr
	if op := p.current().kind; op == "-" || op == "+" {
		leave := p.enter()
		p.next()
		e = &unary{op: op, of: p.unary(false)}
		leave()
	} else {
		e = p.primary()
	}
	e = p.postfix(e)
	for links := 0; filters; p.link(&links) {
		switch {
		case p.skip("|"):
			e = p.filter(e)
		case p.skipName("is"):
			e = p.test(e)
		case p.at("("):
			e = p.call(e)
		default:
			return e
		}
	}
	return e
}

func (p *parser) primary() expr {
	t := p.next()
	switch t.kind {
	case tokenName:
		switch t.text {
		case "true", "True":
			return &constant{true}
		case "false", "False":
			return &constant{false}
		case "none", "None":
			return &constant{nil}
		}
		return &variable{name: t.text}
	case tokenString:
		var s strings.Builder
		s.WriteString(t.value.(text).s)
		for p.at(tokenString) {
			s.WriteString(p.next().value.(text).s)
		}
		return &constant{literal(s.String())}
	case tokenInt, tokenFloat:
		return &constant{t.value}
	case "(":
		e := p.tupleIn(true, true)
		p.expect(")")
		return e
	case "[":
		l := &sequence{}
		for !p.at("]") {
			if len(l.items) > 0 {
				p.expect(",")
			}
			if p.at("]") {
				break
			}
			l.items = append(l.items, p.expression(true))
		}
		p.next()
		return l
	case "{":
		m := &mapping{}
		for !p.at("}") {
			if len(m.keys) > 0 {
				p.expect(",")
			}
			if p.at("}") {
				break
			}
			m.keys = append(m.keys, p.expression(true))
			p.expect(":")
			m.values = append(m.values, p.expression(true))
		}
		p.next()
		return m
	}
	p.fail(t.line, "unexpected '%s'", t)
	return nil
}

func (p *parser) postfix(e expr) expr {
	for links := 0; ; p.link(&links) {
		switch {
		case p.skip("."):
			t := p.next()
			switch t.kind {
			case tokenName:
				e = &attribute{e, t.text}
			case tokenInt:
				e = &subscript{e, &constant{t.value}}
			default:
				p.fail(t.line, "expected name or number")
			}
		case p.skip("["):
			e = p.subscript(e)
		case p.at("("):
			e = p.call(e)
		default:
			return e
		}
	}
}

func (p *parser) subscript(of expr) expr {
	var items []expr
	var slices int
	for !p.at("]") {
		if len(items) > 0 {
			p.expect(",")
		}
		item := p.subscribed(of)
		if _, ok := item.(*slicing); ok {
			slices++
		}
		items = append(items, item)
	}
	line := p.next().line
	switch {
	case len(items) == 1 && slices == 1:
		return items[0]
	case slices > 0:
		p.fail(line, "a slice beside other indices is not supported")
	case len(items) == 1:
		return &subscript{of, items[0]}
	}
	return &subscript{of, &sequence{items: items, tuple: true}}
}

// subscribed reads an index, or a slicing of what is before the brackets.
func (p *parser) subscribed(of expr) expr {
	s := &slicing{of: of}
	if !p.at(":") {
		e := p.expression(true)
		if !p.at(":") {
			return e
		}
		s.start = e
	}
	p.next()
	if !p.at(":") && !p.at("]") && !p.at(",") {
		s.stop = p.expression(true)
	}
	if p.skip(":") && !p.at("]") && !p.at(",") {
		s.step = p.expression(true)
	}
	return s
}

func (p *parser) arguments() arguments {
	line := p.expect("(").line
	var a arguments
	ensure := func(ok bool) {
		if !ok {
			p.fail(line, "invalid syntax for function call expression")
		}
	}
	for comma := false; !p.at(")"); comma = true {
		p.fewArguments(line, len(a.pos)+len(a.names))
		if comma {
			p.expect(",")
			if p.at(")") {
				break
			}
		}
		switch {
		case p.skip("*"):
			ensure(a.rest == nil && a.keywords == nil)
			a.rest = p.expression(true)
		case p.skip("**"):
			ensure(a.keywords == nil)
			a.keywords = p.expression(true)
		case p.at(tokenName) && p.look().kind == "=":
			ensure(a.keywords == nil)
			name := p.next().text
			p.next()
			if slices.Contains(a.names, name) {
				p.fail(line, "keyword argument repeated: %s", name)
			}
			a.names, a.values = append(a.names, name), append(a.values, p.expression(true))
		default:
			ensure(a.rest == nil && a.keywords == nil && len(a.names) == 0)
			a.pos = append(a.pos, p.expression(true))
		}
	}
	p.next()
	return a
}

// fewArguments bounds how many arguments one thing has.
func (p *parser) fewArguments(line, n int) {
	if n > 255 {
		p.fail(line, "more than 255 arguments")
	}
}

func (p *parser) call(of expr) expr {
	line := p.current().line
	return &call{of: of, args: p.arguments(), line: line}
}

// dotted reads a name of a filter or a test.
func (p *parser) dotted() (name string, line int) {
	t := p.expect(tokenName)
	name = t.text
	for links := 0; p.skip("."); p.link(&links) {
		name += "." + p.expect(tokenName).text
	}
	return name, t.line
}

// filter reads a filter after its "|".
func (p *parser) filter(of expr) *filtering {
	f := &filtering{of: of}
	f.name, f.line = p.dotted()
	if p.at("(") {
		f.args = p.arguments()
	}
	return f
}

// test reads a test after its "is".
func (p *parser) test(of expr) expr {
	not := p.skipName("not")
	t := &question{of: of}
	t.name, t.line = p.dotted()
	switch p.current().kind {
	case "(":
		t.args = p.arguments()
	case tokenName, tokenString, tokenInt, tokenFloat, "[", "{":
		if p.atName("else", "or", "and") {
			break
		}
		if p.atName("is") {
			p.fail(t.line, "You cannot chain multiple tests with is")
		}
		t.args.pos = []expr{p.postfix(p.primary())}
	}
	if not {
		return &negation{t}
	}
	return t
}
