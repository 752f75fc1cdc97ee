package template

import (
	"fmt"
	"math/big"
	"slices"
	"strings"
)

func (n *constant) eval(x *state) value {
	x.step(1)
	return n.v
}

func (n *variable) eval(x *state) value {
	x.step(1)
	v := *x.frame.at(n.ref)
	if _, none := v.(missing); none {
		return &undefined{name: literal(n.name)}
	}
	return v
}

func (n *sequence) eval(x *state) value {
	items := make([]value, len(n.items))
	for i, e := range n.items {
		x.item()
		items[i] = e.eval(x)
	}
	return &list{items: items, tuple: n.tuple}
}

func (n *mapping) eval(x *state) value {
	d := &dict{}
	for i := range n.keys {
		x.charge(128)
		key, v := n.keys[i].eval(x), n.values[i].eval(x)
		d.set(x.hash(key), key, v)
	}
	return d
}

func (n *conditional) eval(x *state) value {
	x.step(1)
	if x.truth(n.test.eval(x)) {
		return n.then.eval(x)
	}
	if n.otherwise == nil {
		return &undefined{hint: fmt.Sprintf("the inline if-expression on line %d evaluated to false and no else section was defined.", n.line)}
	}
	return n.otherwise.eval(x)
}

func (n *logic) eval(x *state) value {
	x.step(1)
	left := n.left.eval(x)
	if x.truth(left) == n.or {
		return left
	}
	return n.right.eval(x)
}

func (n *negation) eval(x *state) value {
	x.step(1)
	return !x.truth(n.of.eval(x))
}

func (n *comparison) eval(x *state) value {
	left := n.first.eval(x)
	for i, op := range n.ops {
		x.step(1)
		right := n.rest[i].eval(x)
		if !x.compare(op, left, right) {
			return false
		}
		left = right
	}
	return true
}

func (n *concatenation) eval(x *state) value {
	b := builder{x: x}
	for _, e := range n.parts {
		x.step(1)
		b.add(x.str(e.eval(x)))
	}
	return b.text()
}

func (n *unary) eval(x *state) value {
	x.step(1)
	v := n.of.eval(x)
	x.defined(v)
	f, isFloat := v.(float64)
	i, isInt := integer(v)
	switch {
	case isFloat && n.op == "-":
		return -f
	case isFloat:
		return f
	case isInt && n.op == "-":
		return shrink(new(big.Int).Neg(i))
	case isInt:
		return shrink(i)
	}
	x.fail("bad operand type for unary %s: '%s'", n.op, typeName(v))
	return nil
}

// defined fails if v is undefined.
func (x *state) defined(v value) {
	if u, ok := v.(*undefined); ok {
		x.fail("%s", u.message())
	}
}

func (n *binary) eval(x *state) value {
	x.step(1)
	return x.binary(n.op, n.left.eval(x), n.right.eval(x))
}

// binary is a op b.
func (x *state) binary(op string, a, b value) value {
	if t, ok := a.(text); ok && op == "%" {
		return x.printf(t, b)
	}
	x.defined(a)
	x.defined(b)
	if v, ok := x.arithmetic(op, a, b); ok {
		return v
	}
	switch op {
	case "+":
		switch s := a.(type) {
		case text:
			t, ok := b.(text)
			if !ok {
				x.fail("can only concatenate str (not \"%s\") to str", typeName(b))
			}
			if s.safe != t.safe { // Markup
				s, t = x.escape(s), x.escape(t)
			}
			joined := x.join(s, t)
			joined.safe = s.safe
			return joined
		case *list:
			if l, ok := b.(*list); ok && s.tuple == l.tuple {
				x.charge(16 * (len(s.items) + len(l.items)))
				return &list{items: append(s.items[:len(s.items):len(s.items)], l.items...), tuple: s.tuple}
			}
			if !s.tuple {
				x.fail("can only concatenate list (not \"%s\") to list", typeName(b))
			}
		}
	case "*":
		if _, ok := small(a); ok {
			a, b = b, a
		}
		if times, ok := small(b); ok {
			switch s := a.(type) {
			case text:
				return x.repeat(s, times)
			case *list:
				return x.repeatList(s, times)
			}
		}
	}
	x.fail("unsupported operand type(s) for %s: '%s' and '%s'", op, typeName(a), typeName(b))
	return nil
}

func (x *state) repeatList(l *list, n int64) *list {
	out := &list{tuple: l.tuple}
	if len(l.items) == 0 {
		return out
	}
	if n = max(n, 0); n > int64(x.memory) {
		x.charge(x.memory + 1)
	}
	x.charge(16 * len(l.items) * int(n))
	out.items = slices.Repeat(l.items, int(n))
	return out
}

func (n *attribute) eval(x *state) value {
	x.step(1)
	return x.attribute(n.of.eval(x), n.name)
}

func (n *subscript) eval(x *state) value {
	x.step(1)
	of := n.of.eval(x)
	return x.subscript(of, n.at.eval(x))
}

// own looks up what Python finds as an attribute of v: methods, mostly. Those
// that would change v are refused when they are called.
func (x *state) own(v value, name string) (value, bool) {
	bind := func(call func(x *state, a args) value) (value, bool) { return &function{name, call}, true }
	unsafe := func() (value, bool) {
		return &undefined{hint: fmt.Sprintf("access to attribute '%s' of '%s' object is unsafe.", name, typeName(v))}, true
	}
	if strings.HasPrefix(name, "__") && strings.HasSuffix(name, "__") {
		return unsafe()
	}
	switch v := v.(type) {
	case text:
		if m, ok := x.lang.textMethods[name]; ok {
			return bind(func(x *state, a args) value {
				x.read(v)
				return m(x, v, a)
			})
		}
	case *dict:
		if m, ok := x.lang.dictMethods[name]; ok {
			return bind(func(x *state, a args) value { return m(x, v, a) })
		}
		switch name {
		case "clear", "pop", "popitem", "setdefault", "update":
			return unsafe()
		}
	case *list:
		if m, ok := x.lang.listMethods[name]; ok && (!v.tuple || name != "copy") {
			return bind(func(x *state, a args) value { return m(x, v, a) })
		}
		switch name {
		case "append", "clear", "pop", "reverse", "insert", "sort", "extend", "remove":
			if !v.tuple {
				return unsafe()
			}
		}
		for i, field := range v.names {
			if field == name {
				return v.items[i], true
			}
		}
	case *namespace:
		return v.attrs.get(name)
	case *loop:
		return x.ofLoop(v, name)
	case *macro:
		switch name {
		case "name":
			return literal(v.def.name), true
		case "arguments":
			l := &list{tuple: true}
			for _, p := range v.def.params {
				l.items = append(l.items, literal(p))
			}
			return l, true
		case "catch_kwargs":
			return v.def.kwargs >= 0, true
		case "catch_varargs":
			return v.def.varargs >= 0, true
		case "caller":
			return v.def.caller >= 0, true
		}
	case *cycler:
		switch name {
		case "current":
			return v.items[v.at], true
		case "next":
			return bind(func(*state, args) value {
				item := v.items[v.at]
				v.at = (v.at + 1) % len(v.items)
				return item
			})
		case "reset":
			return bind(func(*state, args) value { v.at = 0; return nil })
		}
	}
	return nil, false
}

// ofLoop is an attribute of "loop".
func (x *state) ofLoop(l *loop, name string) (value, bool) {
	switch name {
	case "index":
		return l.index0 + 1, true
	case "index0":
		return l.index0, true
	case "first":
		return l.index0 == 0, true
	case "last":
		_, more := l.peek()
		return !more, true
	case "length":
		return x.loopLength(l), true
	case "revindex":
		return x.loopLength(l) - l.index0, true
	case "revindex0":
		return x.loopLength(l) - l.index0 - 1, true
	case "depth":
		return l.depth0 + 1, true
	case "depth0":
		return l.depth0, true
	case "previtem":
		if l.index0 == 0 {
			return &undefined{hint: "there is no previous item"}, true
		}
		return l.before, true
	case "nextitem":
		v, ok := l.peek()
		if !ok {
			return &undefined{hint: "there is no next item"}, true
		}
		return v, true
	case "cycle":
		return &function{name, func(x *state, a args) value {
			if len(a.pos) == 0 {
				x.fail("no items for cycling given")
			}
			return a.pos[l.index0%int64(len(a.pos))]
		}}, true
	case "changed":
		return &function{name, func(x *state, a args) value {
			same := l.changed != nil && x.equal(&list{items: l.changed}, &list{items: a.pos})
			l.changed = append([]value{}, a.pos...)
			return !same
		}}, true
	}
	return nil, false
}

// attribute is v.name: an attribute, else an item.
func (x *state) attribute(v value, name string) value {
	x.defined(v)
	if found, ok := x.own(v, name); ok {
		return found
	}
	if d, ok := v.(*dict); ok {
		if found, ok := d.get(name); ok {
			return found
		}
	}
	return &undefined{owner: ownerName(v), name: literal(name)}
}

// subscript is v[at]: an item, else an attribute.
func (x *state) subscript(v, at value) value {
	x.defined(v)
	switch v := v.(type) {
	case *dict:
		if hashable(at) {
			if i, ok := v.find(x.hash(at)); ok {
				return v.entries[i].value
			}
		}
	case *list:
		if i, ok := small(at); ok {
			if i, ok := index(i, int64(len(v.items))); ok {
				return v.items[i]
			}
		}
	case text:
		if i, ok := small(at); ok {
			x.read(v)
			if i, ok := index(i, int64(v.length())); ok {
				return x.slice(v, int(i), int(i)+1, 1)
			}
		}
	case *interval:
		if i, ok := small(at); ok {
			if i, ok := index(i, v.length()); ok {
				return v.start + i*v.step
			}
		}
	}
	if name, ok := at.(text); ok {
		if found, ok := x.own(v, name.s); ok {
			return found
		}
		return &undefined{owner: ownerName(v), name: literal(name.s)}
	}
	return &undefined{owner: ownerName(v), name: x.repr(at).s}
}

func hashable(v value) bool {
	switch v := v.(type) {
	case *dict:
		return false
	case *list:
		return v.tuple
	}
	return true
}

// index makes an index count from the start; false if it is outside of n items.
func index(i, n int64) (int64, bool) {
	if i < 0 {
		i += n
	}
	return i, 0 <= i && i < n
}

func (n *slicing) eval(x *state) value {
	x.step(1)
	of := n.of.eval(x)
	bound := func(e expr) *int64 {
		if e == nil {
			return nil
		}
		v := e.eval(x)
		if v == nil {
			return nil
		}
		i, ok := small(v)
		if !ok {
			large, isInt := v.(*big.Int)
			if !isInt {
				x.fail("slice indices must be integers or None or have an __index__ method")
			}
			i = int64(large.Sign()) << 62
		}
		i = min(max(i, -1<<62), 1<<62)
		return &i
	}
	start, stop, step := bound(n.start), bound(n.stop), bound(n.step)
	x.defined(of)
	switch v := of.(type) {
	case text:
		x.read(v)
		from, to, by := x.bounds(int64(v.length()), start, stop, step)
		return x.slice(v, int(from), int(to), int(by))
	case *list:
		from, to, by := x.bounds(int64(len(v.items)), start, stop, step)
		if by == 1 {
			return &list{items: v.items[from:max(from, to):max(from, to)], tuple: v.tuple}
		}
		out := &list{tuple: v.tuple}
		for i := from; by > 0 && i < to || by < 0 && i > to; i += by {
			x.item()
			out.items = append(out.items, v.items[i])
		}
		return out
	case *interval:
		from, to, by := x.bounds(v.length(), start, stop, step)
		return &interval{v.start + from*v.step, v.start + to*v.step, v.step * by}
	}
	x.fail("'%s' object is not subscriptable", typeName(of))
	return nil
}

// bounds makes of a slice's bounds indices of n items, as slice.indices does.
func (x *state) bounds(n int64, start, stop, step *int64) (from, to, by int64) {
	by = 1
	if step != nil {
		by = *step
	}
	if by == 0 {
		x.fail("slice step cannot be zero")
	}
	low, high := int64(0), n
	if by < 0 {
		low, high = -1, n-1
	}
	clamp := func(i *int64, none int64) int64 {
		if i == nil {
			return none
		}
		if *i < 0 {
			return max(*i+n, low)
		}
		return min(*i, high)
	}
	if by < 0 {
		return clamp(start, high), clamp(stop, low), max(by, -1<<32)
	}
	return clamp(start, low), clamp(stop, high), min(by, 1<<32)
}

// args are the arguments of a call.
type args struct {
	pos    []value
	names  []string
	values []value // of names
}

func (n *arguments) eval(x *state) args {
	var a args
	for _, e := range n.pos {
		a.pos = append(a.pos, e.eval(x))
	}
	for i, e := range n.values {
		a.names = append(a.names, n.names[i])
		a.values = append(a.values, e.eval(x))
	}
	if n.rest != nil {
		rest := n.rest.eval(x)
		a.pos = append(a.pos, x.collect(rest)...)
		x.charge(16 * len(a.pos))
	}
	if n.keywords != nil {
		d, ok := n.keywords.eval(x).(*dict)
		if !ok {
			x.fail("argument after ** must be a mapping")
		}
		for _, e := range d.entries {
			name, ok := e.key.(text)
			if !ok {
				x.fail("keywords must be strings")
			}
			for _, given := range a.names {
				x.step(1)
				if given == name.s {
					x.fail("got multiple values for keyword argument '%s'", name.s)
				}
			}
			a.names = append(a.names, name.s)
			a.values = append(a.values, e.value)
			x.item()
		}
	}
	return a
}

func (n *call) eval(x *state) value {
	x.step(1)
	x.line = n.line
	of := n.of.eval(x)
	return x.call(of, n.args.eval(x))
}

func (x *state) call(f value, a args) value {
	switch f := f.(type) {
	case *function:
		return f.call(x, a)
	case *macro:
		return f.call(x, a)
	case *loop:
		if f.recurse == nil {
			x.fail("The loop must have the 'recursive' marker to be called recursively.")
		}
		v := a.bind(x, "loop", 1, "iterable")
		return f.recurse(v[0], f.depth0+1)
	case *joiner:
		if !f.used {
			f.used = true
			return text{}
		}
		return f.sep
	}
	x.defined(f)
	x.fail("'%s' object is not callable", typeName(f))
	return nil
}

// bind gives the arguments of a call of f in the order of params, missing{} for
// those that are not given; the first so many must be. A name that begins with
// "/" cannot be given by keyword.
func (a args) bind(x *state, f string, required int, params ...string) []value {
	if len(a.pos) > len(params) {
		x.fail("%s() takes at most %d arguments (%d given)", f, len(params), len(a.pos))
	}
	out := make([]value, len(params))
	for i := range out {
		out[i] = missing{}
	}
	copy(out, a.pos)
named:
	for i, name := range a.names {
		for j, param := range params {
			if param == name {
				if _, none := out[j].(missing); !none {
					x.fail("%s() got multiple values for argument '%s'", f, name)
				}
				out[j] = a.values[i]
				continue named
			}
		}
		x.fail("%s() got an unexpected keyword argument '%s'", f, name)
	}
	for i := range required {
		if _, none := out[i].(missing); none {
			x.fail("%s() missing required argument: '%s'", f, strings.TrimPrefix(params[i], "/"))
		}
	}
	return out
}

func (n *filtering) eval(x *state) value { return n.apply(x, n.of.eval(x)) }

// apply filters v, or what the filters before it make of v.
func (n *filtering) apply(x *state, v value) value {
	x.step(1)
	if before, ok := n.of.(*filtering); ok && before.inBlock() {
		v = before.apply(x, v)
	}
	a := n.args.eval(x)
	x.line = n.line
	return x.filter(n.name, v, a)
}

// inBlock says whether the filter starts from what a block has written.
func (n *filtering) inBlock() bool {
	for ok := true; ok; n, ok = n.of.(*filtering) {
		if n.of == nil {
			return true
		}
	}
	return false
}

func (x *state) filter(name string, v value, a args) value {
	f, ok := x.lang.filters[name]
	if !ok {
		x.fail("No filter named '%s' found.", name)
	}
	return f(x, v, a)
}

func (n *question) eval(x *state) value {
	x.step(1)
	v := n.of.eval(x)
	a := n.args.eval(x)
	x.line = n.line
	return x.test(n.name, v, a)
}

func (x *state) test(name string, v value, a args) bool {
	f, ok := x.lang.tests[name]
	if !ok {
		x.fail("No test named '%s' found.", name)
	}
	return f(x, v, a)
}
