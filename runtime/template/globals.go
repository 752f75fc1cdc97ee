package template

// maxRange is how many items a range may have in Jinja's sandbox.
const maxRange = 100_000

var globals = map[string]value{
	"range": &function{"range", func(x *state, a args) value {
		v := a.bind(x, "range", 1, "/start", "/stop", "/step")
		r := &interval{0, x.intArg("range", v[0]), 1}
		if given(v[1]) {
			r.start, r.stop = r.stop, x.intArg("range", v[1])
		}
		if given(v[2]) {
			r.step = x.intArg("range", v[2])
		}
		const far = 1 << 61
		switch {
		case r.step == 0:
			x.fail("range() arg 3 must not be zero")
		case r.start < -far || r.start > far || r.stop < -far || r.stop > far || r.step < -far || r.step > far || r.length() > maxRange:
			x.fail("Range too big. The sandbox blocks ranges larger than MAX_RANGE (%d).", maxRange)
		}
		return r
	}},
	"dict":      &function{"dict", func(x *state, a args) value { return x.newDict(a) }},
	"namespace": &function{"namespace", func(x *state, a args) value { return &namespace{*x.newDict(a)} }},
	"cycler": &function{"cycler", func(x *state, a args) value {
		if len(a.pos) == 0 {
			x.fail("at least one item has to be provided")
		}
		return &cycler{items: a.pos}
	}},
	"joiner": &function{"joiner", func(x *state, a args) value {
		v := a.bind(x, "joiner", 0, "sep")
		if !given(v[0]) {
			v[0] = literal(", ")
		}
		return &joiner{sep: v[0]}
	}},
	"raise_exception": &function{"raise_exception", func(x *state, a args) value {
		message := x.str(a.bind(x, "raise_exception", 1, "message")[0]).s
		panic(&Error{Template: x.name, Line: x.line, Message: message, Raised: true})
	}},
	"strftime_now": &function{"strftime_now", func(x *state, a args) value {
		layout := x.textArg("strftime_now", a.bind(x, "strftime_now", 1, "format")[0])
		x.charge(16 * len(layout.s))
		return layout.as(strftime(x.now, layout.s))
	}},
}

// newDict is dict(…): from a dict or from pairs, and from keywords.
func (x *state) newDict(a args) *dict {
	d := &dict{}
	add := func(key, v value) {
		x.charge(128)
		d.set(x.hash(key), key, v)
	}
	v := args{pos: a.pos}.bind(x, "dict", 0, "/from")
	switch from := v[0].(type) {
	case missing:
	case *dict:
		for _, e := range from.entries {
			add(e.key, e.value)
		}
	default:
		for _, item := range x.collect(from) {
			pair := x.collect(item)
			if len(pair) != 2 {
				x.fail("dictionary update sequence element has length %d; 2 is required", len(pair))
			}
			add(pair[0], pair[1])
		}
	}
	for i, name := range a.names {
		add(literal(name), a.values[i])
	}
	return d
}
