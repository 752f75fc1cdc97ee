package template

import (
	"fmt"
	"time"
)

// state is one rendering. What it may use up is counted down: see limits.
type state struct {
	name    string // of the template
	line    int    // that runs
	lang    *language
	now     time.Time
	context map[string]value // what the template was given; what it sets at the top
	frame   *frame
	out     *builder // of the block that runs

	steps  int // left
	memory int // bytes left to allocate
	depth  int // of calls and of data
}

// frame holds the variables of a block that runs.
type frame struct {
	vars   []value
	parent *frame
}

// missing is in a slot that nothing was assigned to.
type missing struct{}

// limitError ends the rendering because a bound is reached.
func (x *state) limitError(format string, a ...any) {
	panic(&Error{Template: x.name, Line: x.line, Message: fmt.Sprintf(format, a...), limit: true})
}

func (x *state) fail(format string, a ...any) {
	panic(&Error{Template: x.name, Line: x.line, Message: fmt.Sprintf(format, a...)})
}

// step counts n pieces of work.
func (x *state) step(n int) {
	if x.steps -= n; x.steps < 0 {
		x.limitError("the template takes more steps than its messages allow")
	}
}

// charge counts n bytes that are to be allocated.
func (x *state) charge(n int) {
	if x.memory -= n; x.memory < 0 {
		x.limitError("the template takes more memory than its messages allow")
	}
	if n >= 16 {
		x.step(n / 16) // bytes are work, too
	}
}

// read counts a look at all of a text and at where it comes from.
func (x *state) read(t text) { x.step(len(t.s)/16 + len(t.plain)/4) }

// item counts one that is put into a list.
func (x *state) item() { x.charge(64) }

// enter counts levels of depth; what it gives leaves them.
func (x *state) enter(levels int) func() {
	if x.depth += levels; x.depth > maxDepth {
		x.limitError("maximum recursion depth exceeded")
	}
	return func() { x.depth -= levels }
}

// open makes a frame inside of the one that parent is.
func (x *state) open(shape *frameShape, parent *frame) *frame {
	x.charge(16*shape.slots + 32)
	f := &frame{vars: make([]value, shape.slots), parent: parent}
	for i := range f.vars {
		f.vars[i] = missing{}
	}
	return f
}

// fill gives f what its variables start with.
func (x *state) fill(f *frame, shape *frameShape) {
	for _, s := range shape.fills {
		x.step(1)
		switch s.how {
		case unset:
			f.vars[s.slot] = missing{}
		case resolved:
			v, ok := x.context[s.name]
			if !ok {
				v = missing{}
			}
			f.vars[s.slot] = v
		case aliased:
			f.vars[s.slot] = *f.at(s.from)
		}
	}
}

func (f *frame) at(r ref) *value {
	for range r.depth {
		f = f.parent
	}
	return &f.vars[r.slot]
}

// within runs body in a new frame and goes back to the one before.
func (x *state) within(shape *frameShape, body []stmt) flow {
	around := x.frame
	x.frame = x.open(shape, around)
	x.fill(x.frame, shape)
	how := x.run(body)
	x.frame = around
	return how
}

// capture gives what f writes.
func (x *state) capture(f func()) text {
	around := x.out
	x.out = &builder{x: x}
	f()
	t := x.out.text()
	x.out = around
	return t
}

func (x *state) run(body []stmt) flow {
	for _, n := range body {
		x.step(1)
		if how := n.exec(x); how != onward {
			return how
		}
	}
	return onward
}

func (n *output) exec(x *state) flow {
	for i, e := range n.items {
		x.line = n.lines[i]
		x.out.add(x.str(e.eval(x)))
	}
	return onward
}

func (n *assign) exec(x *state) flow {
	x.line = n.line
	checkNamespaces(x, n.to)
	x.assign(x.frame, n.to, n.from.eval(x))
	return onward
}

// checkNamespaces fails before the value is computed, as Jinja does.
func checkNamespaces(x *state, t target) {
	switch t := t.(type) {
	case *attributeTarget:
		if _, ok := (*x.frame.at(t.of.ref)).(*namespace); !ok {
			x.fail("cannot assign attribute on non-namespace object")
		}
	case *tupleTarget:
		for _, item := range t.items {
			checkNamespaces(x, item)
		}
	}
}

// assign puts v into the variables of f that t names.
func (x *state) assign(f *frame, t target, v value) {
	switch t := t.(type) {
	case *variableTarget:
		*f.at(t.ref) = v
		if t.export {
			x.context[t.name] = v
		}
	case *attributeTarget:
		ns, ok := (*f.at(t.of.ref)).(*namespace)
		if !ok {
			x.fail("cannot assign attribute on non-namespace object")
		}
		x.charge(64)
		ns.attrs.set(t.name, literal(t.name), v)
	case *tupleTarget:
		next, ok := x.iterate(v)
		if !ok {
			x.fail("cannot unpack non-iterable %s object", typeName(v))
		}
		for i, item := range t.items {
			v, ok := next()
			if !ok {
				x.fail("not enough values to unpack (expected %d, got %d)", len(t.items), i)
			}
			x.assign(f, item, v)
		}
		if _, more := next(); more {
			x.fail("too many values to unpack (expected %d)", len(t.items))
		}
	}
}

func (n *assignBlock) exec(x *state) flow {
	x.line = n.line
	around := x.frame
	x.frame = x.open(n.frame, around)
	x.fill(x.frame, n.frame)
	how := onward
	var v value = x.capture(func() { how = x.run(n.body) })
	if how == onward && n.filter != nil {
		v = n.filter.apply(x, v)
	}
	x.frame = around
	if how == onward {
		x.assign(x.frame, n.to, v)
	}
	return how
}

func (n *filterBlock) exec(x *state) flow {
	x.line = n.line
	around := x.frame
	x.frame = x.open(n.frame, around)
	x.fill(x.frame, n.frame)
	how := onward
	written := x.capture(func() { how = x.run(n.body) })
	if how == onward {
		x.out.add(x.str(n.filter.apply(x, written)))
	}
	x.frame = around
	return how
}

func (n *branch) exec(x *state) flow {
	for i, test := range n.tests {
		x.line = n.lines[i]
		if x.truth(test.eval(x)) {
			return x.run(n.bodies[i])
		}
	}
	return x.run(n.otherwise)
}

func (n *with) exec(x *state) flow {
	x.line = n.line
	inner := x.open(n.frame, x.frame)
	x.fill(inner, n.frame)
	for i, t := range n.to {
		x.assign(inner, t, n.from[i].eval(x))
	}
	around := x.frame
	x.frame = inner
	how := x.run(n.body)
	x.frame = around
	return how
}

func (n *region) exec(x *state) flow {
	around := x.frame
	if n.isolated {
		x.frame = nil
	}
	how := x.within(n.frame, n.body)
	x.frame = around
	return how
}

func (n *jump) exec(*state) flow { return n.to }

func (n *foreign) exec(x *state) flow {
	x.line = n.line
	x.fail("the tag '%s' needs other templates, and a chat template has none", n.tag)
	return onward
}

// loop is what "loop" is within a for.
type loop struct {
	source  value
	next    func() (value, bool)
	length  int64 // -1: not known
	index0  int64
	before  value
	current value
	after   value // looked at already, else missing
	depth0  int64
	recurse func(v value, depth int64) text // nil: not a recursive loop
	changed []value
}

func (l *loop) advance() (value, bool) {
	v, ok := l.after, true
	if _, none := v.(missing); none {
		if v, ok = l.next(); !ok {
			return nil, false
		}
	}
	l.after = missing{}
	l.index0++
	l.before, l.current = l.current, v
	return v, true
}

// peek is the item to come.
func (l *loop) peek() (value, bool) {
	if _, none := l.after.(missing); none {
		v, ok := l.next()
		if !ok {
			return nil, false
		}
		l.after = v
	}
	return l.after, true
}

// loopLength counts the items, of a generator by taking all that are left.
func (x *state) loopLength(l *loop) int64 {
	if l.length < 0 {
		var rest []value
		for v, ok := l.next(); ok; v, ok = l.next() {
			x.item()
			rest = append(rest, v)
		}
		l.length = int64(len(rest)) + l.index0 + 1
		if _, none := l.after.(missing); !none {
			l.length++
		}
		l.next, _ = x.iterate(&list{items: rest})
	}
	return l.length
}

func (n *forLoop) exec(x *state) flow {
	x.line = n.line
	n.run(x, x.frame, n.in.eval(x), 0)
	return onward
}

// run loops over source; outer is the frame around the loop.
func (n *forLoop) run(x *state, outer *frame, source value, depth int64) {
	before := x.frame
	l := &loop{source: source, next: x.mustIterate(source), length: -1, index0: -1, depth0: depth, current: missing{}, after: missing{}}
	if n.test != nil {
		l.next = n.filtered(x, outer, l.next)
	} else if size, ok := x.length(source); ok {
		l.length = size
	}
	if n.recursive {
		l.recurse = func(v value, depth int64) text {
			defer x.enter(4)()
			return x.capture(func() { n.run(x, outer, v, depth) })
		}
	}
	f := x.open(n.frame, outer)
	complete := false // an iteration has come to its end
	for {
		x.line = n.line
		v, ok := l.advance()
		if !ok {
			break
		}
		x.step(1)
		x.frame = f
		if n.loopSlot >= 0 {
			f.vars[n.loopSlot] = l
		}
		x.assign(f, n.to, v)
		x.fill(f, n.frame)
		how := x.run(n.body)
		if how == breaking {
			break
		}
		complete = complete || how == onward
	}
	x.frame = outer
	if !complete && len(n.otherwise) > 0 { // Jinja's "else" also follows iterations that were all cut short
		x.within(n.elseFrame, n.otherwise)
	}
	x.frame = before
}

// filtered gives those items for which the loop's condition is true.
func (n *forLoop) filtered(x *state, outer *frame, next func() (value, bool)) func() (value, bool) {
	f := x.open(n.testFrame, outer)
	x.fill(f, n.testFrame)
	return func() (value, bool) {
		around := x.frame
		defer func() { x.frame = around }()
		for {
			x.step(1)
			v, ok := next()
			if !ok {
				return nil, false
			}
			x.frame = f
			x.assign(f, n.testTo, v)
			if x.truth(n.test.eval(x)) {
				return v, true
			}
			x.frame = around
		}
	}
}

// macro is a macro, or the body of a call block, with the frame that it was defined in.
type macro struct {
	def   *macroDef
	outer *frame
}

func (n *macroDef) exec(x *state) flow {
	m := &macro{n, x.frame}
	*x.frame.at(n.to) = m
	if n.export {
		x.context[n.name] = m
	}
	return onward
}

func (n *callBlock) exec(x *state) flow {
	x.line = n.line
	a := n.call.args.eval(x)
	a.names = append(a.names, "caller")
	a.values = append(a.values, &macro{n.def, x.frame})
	x.out.add(x.str(x.call(n.call.of.eval(x), a)))
	return onward
}

// call runs a macro and gives what it writes.
func (m *macro) call(x *state, a args) value {
	defer x.enter(4)()
	n := m.def
	line, around := x.line, x.frame
	f := x.open(n.frame, m.outer)
	pos := min(len(a.pos), len(n.params))
	for i, v := range a.pos[:pos] {
		f.vars[n.slots[i]] = v
	}
	taken := func(name string) (value, bool) {
		for i := range a.names {
			if a.names[i] == name {
				v := a.values[i]
				a.names = append(append([]string{}, a.names[:i]...), a.names[i+1:]...)
				a.values = append(append([]value{}, a.values[:i]...), a.values[i+1:]...)
				return v, true
			}
		}
		return nil, false
	}
	for i := pos; i < len(n.params); i++ {
		if v, ok := taken(n.params[i]); ok {
			f.vars[n.slots[i]] = v
		}
	}
	if n.caller >= 0 {
		v, ok := taken("caller")
		if !ok || v == nil {
			v = &undefined{hint: "No caller defined"}
		}
		f.vars[n.caller] = v
	}
	if n.kwargs >= 0 {
		d := &dict{}
		for i := range a.names {
			x.item()
			d.set(a.names[i], literal(a.names[i]), a.values[i])
		}
		f.vars[n.kwargs] = d
	} else if len(a.names) > 0 {
		x.fail("macro %s takes no keyword argument '%s'", quote(n.name), a.names[0])
	}
	if n.varargs >= 0 {
		f.vars[n.varargs] = &list{items: a.pos[pos:], tuple: true}
	} else if len(a.pos) > pos {
		x.fail("macro %s takes not more than %d argument(s)", quote(n.name), len(n.params))
	}
	x.frame = f
	x.fill(f, n.frame)
	for i, slot := range n.slots {
		if _, none := f.vars[slot].(missing); !none {
			continue
		}
		if d := i - (len(n.params) - len(n.defaults)); d >= 0 {
			f.vars[slot] = n.defaults[d].eval(x)
		} else {
			f.vars[slot] = &undefined{hint: fmt.Sprintf("parameter '%s' was not provided", n.params[i])}
		}
	}
	t := x.capture(func() { x.run(n.body) })
	x.frame, x.line = around, line
	return t
}
