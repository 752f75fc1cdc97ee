package template

import (
	"fmt"
	"maps"
	"slices"
)

// Jinja decides before a template runs where each variable lives. Every macro,
// loop, set block and so on has a frame of variables; a frame's variable is one
// that is set in it, or read in it and known in no frame around it. What a frame
// starts with is decided then, too: a variable that a frame sets starts as a copy
// of the one around it, and nothing that happens in the frame leaves it. An "if"
// has no frame.

// frameShape says what slots a frame has and how they are filled when it is entered.
type frameShape struct {
	slots int
	fills []fill
}

type fill struct {
	slot int
	how  origin
	name string // resolved
	from ref    // aliased, seen from the new frame
}

type origin int

const (
	unset     origin = iota // until it is assigned to
	resolved                // from what the template was given
	aliased                 // from a frame around
	parameter               // by who enters the frame
)

// scope is what is known of a frame's variables while it is analyzed.
type scope struct {
	parent *scope // the frame around
	before *scope // within a branch of an "if": the same frame as it was before it
	shape  *frameShape
	places map[string]int    // name -> slot; shared with before
	how    map[string]origin // of the variables that this frame has, or this branch found
	stores map[string]bool
	soft   bool // unknown filters fail only where they are reached
	top    bool // of the template
}

func newScope(parent *scope) *scope {
	return &scope{
		parent: parent, shape: &frameShape{}, places: map[string]int{},
		how: map[string]origin{}, stores: map[string]bool{},
	}
}

// has says whether the frame has a variable of its own.
func (s *scope) has(name string) bool {
	for ; s != nil; s = s.before {
		if _, ok := s.how[name]; ok {
			return true
		}
	}
	return false
}

func (s *scope) stored(name string) bool {
	for ; s != nil; s = s.before {
		if s.stores[name] {
			return true
		}
	}
	return false
}

// find is where a variable is, seen from the frame.
func (s *scope) find(name string) (ref, bool) {
	for depth := 0; s != nil; depth++ {
		if s.has(name) {
			return ref{depth, s.places[name]}, true
		}
		s = s.parent
	}
	return ref{}, false
}

func (s *scope) define(name string, how origin) {
	if _, ok := s.places[name]; !ok {
		s.places[name] = s.shape.slots
		s.shape.slots++
	}
	s.how[name] = how
}

func (s *scope) load(name string) {
	if _, ok := s.find(name); !ok {
		s.define(name, resolved)
	}
}

func (s *scope) store(name string) {
	s.stores[name] = true
	if s.has(name) {
		return
	}
	if _, ok := s.parent.find(name); ok {
		s.define(name, aliased)
	} else {
		s.define(name, unset)
	}
}

func (s *scope) parameter(name string) int {
	s.stores[name] = true
	s.define(name, parameter)
	return s.places[name]
}

func (s *scope) loads(e expr) {
	if e != nil {
		names(e, func(v *variable) { s.load(v.name) })
	}
}

func (s *scope) target(t target, store func(string)) {
	switch t := t.(type) {
	case *variableTarget:
		store(t.name)
	case *attributeTarget:
		s.load(t.of.name)
	case *tupleTarget:
		for _, item := range t.items {
			s.target(item, store)
		}
	}
}

// analyze learns what variables the statements of a frame have, in their order;
// what has a frame of its own inside comes later.
func (s *scope) analyze(body []stmt) {
	for _, n := range body {
		switch n := n.(type) {
		case *output:
			for _, e := range n.items {
				s.loads(e)
			}
		case *assign:
			s.loads(n.from)
			s.target(n.to, s.store)
		case *assignBlock:
			s.target(n.to, s.store)
		case *forLoop:
			s.loads(n.in)
		case *branch:
			s.branches(n)
		case *macroDef:
			s.store(n.name)
		case *callBlock:
			s.loads(n.call)
		case *filterBlock:
			s.loads(n.filter)
		case *with:
			for _, e := range n.from {
				s.loads(e)
			}
		}
	}
}

// branches learns what the branches of an "if" have, each from what was before it.
func (s *scope) branches(n *branch) {
	s.loads(n.tests[0])
	merge := s.branch()
	inner := s.branch()
	inner.analyze(n.bodies[0])
	merge.take(inner)
	if len(n.tests) > 1 { // the rest nests as "else if"
		inner = s.branch()
		for i := range n.tests[1:] {
			inner.branches(&branch{tests: n.tests[i+1 : i+2], bodies: n.bodies[i+1 : i+2]})
		}
		merge.take(inner)
	}
	inner = s.branch()
	inner.analyze(n.otherwise)
	merge.take(inner)

	fresh := map[string]bool{}
	for name := range merge.stores {
		if !s.stored(name) {
			fresh[name] = true
		}
	}
	s.take(merge)
	for name := range fresh {
		if _, ok := s.parent.find(name); ok {
			s.how[name] = aliased
		} else {
			s.how[name] = resolved
		}
	}
}

func (s *scope) branch() *scope {
	return &scope{
		parent: s.parent, before: s, shape: s.shape, places: s.places,
		how: map[string]origin{}, stores: map[string]bool{},
	}
}

func (s *scope) take(inner *scope) {
	maps.Copy(s.how, inner.how)
	maps.Copy(s.stores, inner.stores)
}

// finish writes how the frame's slots are filled.
func (s *scope) finish() *frameShape {
	for _, name := range slices.SortedFunc(maps.Keys(s.how), func(a, b string) int { return s.places[a] - s.places[b] }) {
		f := fill{slot: s.places[name], how: s.how[name], name: name}
		switch f.how {
		case parameter:
			continue
		case aliased:
			f.from, _ = s.parent.find(name)
			f.from.depth++
		}
		s.shape.fills = append(s.shape.fills, f)
	}
	return s.shape
}

// resolver gives each variable of a template its place.
type resolver struct {
	name string
	lang *language
}

func (r *resolver) fail(line int, format string, a ...any) {
	panic(&Error{Template: r.name, Line: line, Message: fmt.Sprintf(format, a...)})
}

// template resolves a whole template and gives the shape of its outermost frame.
func (r *resolver) template(body []stmt) *frameShape {
	top := newScope(nil)
	top.top = true
	top.analyze(body)
	shape := top.finish()
	r.statements(top, body)
	return shape
}

func (r *resolver) statements(s *scope, body []stmt) {
	for _, n := range body {
		switch n := n.(type) {
		case *output:
			for _, e := range n.items {
				r.expr(s, e)
			}
		case *assign:
			r.expr(s, n.from)
			r.target(s, n.to)
		case *assignBlock:
			r.target(s, n.to)
			inner := newScope(s)
			inner.analyze(n.body)
			if n.filter != nil {
				inner.loads(n.filter)
				r.expr(inner, n.filter)
			}
			n.frame = inner.finish()
			r.statements(inner, n.body)
		case *forLoop:
			r.forLoop(s, n)
		case *branch:
			soft := s.soft
			s.soft = true
			for i := range n.tests {
				r.expr(s, n.tests[i])
				r.statements(s, n.bodies[i])
			}
			r.statements(s, n.otherwise)
			s.soft = soft
		case *macroDef:
			r.macro(s, n)
			n.to, _ = s.find(n.name)
			n.export = s.top
		case *callBlock:
			r.expr(s, n.call)
			r.macro(s, n.def)
		case *filterBlock:
			inner := newScope(s)
			inner.analyze(n.body)
			inner.loads(n.filter)
			n.frame = inner.finish()
			r.statements(inner, n.body)
			r.expr(inner, n.filter)
		case *with:
			inner := newScope(s)
			for i, t := range n.to {
				r.expr(s, n.from[i])
				inner.target(t, func(name string) { inner.parameter(name) })
			}
			inner.analyze(n.body)
			n.frame = inner.finish()
			for _, t := range n.to {
				r.target(inner, t)
			}
			r.statements(inner, n.body)
		case *region:
			around := s
			if n.isolated {
				around = nil
			}
			inner := newScope(around)
			inner.analyze(n.body)
			n.frame = inner.finish()
			r.statements(inner, n.body)
		}
	}
}

func (r *resolver) forLoop(s *scope, n *forLoop) {
	r.expr(s, n.in)
	body := newScope(s)
	if n.recursive || mentions(n.body, "loop") {
		n.loopSlot = body.parameter("loop")
	}
	r.noLoop(n.line, n.to)
	body.target(n.to, func(name string) { body.parameter(name) })
	body.analyze(n.body)
	n.frame = body.finish()
	r.target(body, n.to)
	r.statements(body, n.body)
	if n.test != nil {
		test := newScope(s)
		test.target(n.testTo, func(name string) { test.parameter(name) })
		test.loads(n.test)
		n.testFrame = test.finish()
		r.target(test, n.testTo)
		r.expr(test, n.test)
	}
	if len(n.otherwise) > 0 {
		otherwise := newScope(s)
		otherwise.analyze(n.otherwise)
		n.elseFrame = otherwise.finish()
		r.statements(otherwise, n.otherwise)
	}
}

// noLoop refuses loops over a variable "loop".
func (r *resolver) noLoop(line int, t target) {
	switch t := t.(type) {
	case *variableTarget:
		if t.name == "loop" {
			r.fail(line, "Can't assign to special loop variable in for-loop target")
		}
	case *tupleTarget:
		for _, item := range t.items {
			r.noLoop(line, item)
		}
	}
}

func (r *resolver) macro(s *scope, n *macroDef) {
	inner := newScope(s)
	for _, name := range n.params {
		n.slots = append(n.slots, inner.parameter(name))
	}
	special := func(name string) int {
		if !mentions(n.body, name) {
			return -1
		}
		i := slices.Index(n.params, name)
		if i < 0 {
			return inner.parameter(name)
		}
		if name == "caller" && i < len(n.params)-len(n.defaults) {
			r.fail(n.line, `When defining macros or call blocks the special "caller" argument must be omitted or be given a default.`)
		}
		return -1
	}
	n.caller = special("caller")
	n.kwargs = special("kwargs")
	n.varargs = special("varargs")
	for _, e := range n.defaults {
		inner.loads(e)
	}
	inner.analyze(n.body)
	n.frame = inner.finish()
	for _, e := range n.defaults {
		r.expr(inner, e)
	}
	r.statements(inner, n.body)
}

func (r *resolver) target(s *scope, t target) {
	switch t := t.(type) {
	case *variableTarget:
		t.ref, _ = s.find(t.name)
		t.export = s.top
	case *attributeTarget:
		t.of.ref, _ = s.find(t.of.name)
	case *tupleTarget:
		for _, item := range t.items {
			r.target(s, item)
		}
	}
}

// expr resolves the variables of e, and refuses filters and tests that there are
// not, unless e is under a condition.
func (r *resolver) expr(s *scope, e expr) {
	names(e, func(v *variable) { v.ref, _ = s.find(v.name) })
	if s.soft {
		return
	}
	walk(e, func(e expr) bool {
		switch e := e.(type) {
		case *conditional:
			return false
		case *filtering:
			if _, ok := r.lang.filters[e.name]; !ok {
				r.fail(e.line, "No filter named '%s'.", e.name)
			}
		case *question:
			if _, ok := r.lang.tests[e.name]; !ok {
				r.fail(e.line, "No test named '%s'.", e.name)
			}
		}
		return true
	})
}

// mentions says whether statements, or those within them, read a variable
// before they set it.
func mentions(body []stmt, name string) bool {
	found, set := false, false
	read := func(e expr) {
		if e != nil {
			names(e, func(v *variable) { found = found || v.name == name && !set })
		}
	}
	var write func(t target)
	write = func(t target) {
		switch t := t.(type) {
		case *variableTarget:
			set = set || t.name == name
		case *attributeTarget:
			read(t.of)
		case *tupleTarget:
			for _, item := range t.items {
				write(item)
			}
		}
	}
	macro := func(n *macroDef) {
		set = set || slices.Contains(n.params, name)
		for _, e := range n.defaults {
			read(e)
		}
	}
	inside(body, func(n stmt) {
		switch n := n.(type) {
		case *output:
			for _, e := range n.items {
				read(e)
			}
		case *assign:
			write(n.to)
			read(n.from)
		case *assignBlock:
			write(n.to)
			if n.filter != nil {
				read(n.filter)
			}
		case *forLoop:
			write(n.to)
			read(n.in)
			read(n.test)
		case *branch:
			for _, e := range n.tests {
				read(e)
			}
		case *macroDef:
			macro(n)
		case *callBlock:
			read(n.call)
			macro(n.def)
		case *filterBlock:
			read(n.filter)
		case *with:
			for i := range n.to {
				write(n.to[i])
				read(n.from[i])
			}
		}
	})
	return found
}

// inside calls f with statements and those within them, but for blocks.
func inside(body []stmt, f func(stmt)) {
	for _, n := range body {
		f(n)
		switch n := n.(type) {
		case *assignBlock:
			inside(n.body, f)
		case *forLoop:
			inside(n.body, f)
			inside(n.otherwise, f)
		case *branch:
			for _, b := range n.bodies {
				inside(b, f)
			}
			inside(n.otherwise, f)
		case *macroDef:
			inside(n.body, f)
		case *callBlock:
			inside(n.def.body, f)
		case *filterBlock:
			inside(n.body, f)
		case *with:
			inside(n.body, f)
		case *region:
			if !n.isolated {
				inside(n.body, f)
			}
		}
	}
}
