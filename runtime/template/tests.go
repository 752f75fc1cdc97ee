package template

import "math/big"

// is makes a test without arguments.
func is(name string, of func(x *state, v value) bool) test {
	return func(x *state, v value, a args) bool {
		a.bind(x, name, 0)
		return of(x, v)
	}
}

// relation makes a test of an operator.
func relation(op string) test {
	return func(x *state, v value, a args) bool {
		return x.compare(op, v, a.bind(x, op, 1, "other")[0])
	}
}

func ofType[T any](_ *state, v value) bool {
	_, ok := v.(T)
	return ok
}

func remainder(x *state, v, by value, want int64) bool { return x.equal(x.binary("%", v, by), want) }

func isNumber(_ *state, v value) bool {
	_, ok := float(v)
	return ok
}

var tests = map[string]test{
	"odd":  is("odd", func(x *state, v value) bool { return remainder(x, v, int64(2), 1) }),
	"even": is("even", func(x *state, v value) bool { return remainder(x, v, int64(2), 0) }),
	"divisibleby": func(x *state, v value, a args) bool {
		return remainder(x, v, a.bind(x, "divisibleby", 1, "num")[0], 0)
	},
	"defined":   is("defined", func(_ *state, v value) bool { return !isUndefined(v) }),
	"undefined": is("undefined", ofType[*undefined]),
	"filter": is("filter", func(x *state, v value) bool {
		t, ok := v.(text)
		return ok && x.lang.filters[t.s] != nil
	}),
	"test": is("test", func(x *state, v value) bool {
		t, ok := v.(text)
		return ok && x.lang.tests[t.s] != nil
	}),
	"none":    is("none", func(_ *state, v value) bool { return v == nil }),
	"boolean": is("boolean", ofType[bool]),
	"false":   is("false", func(_ *state, v value) bool { b, ok := v.(bool); return ok && !b }),
	"true":    is("true", func(_ *state, v value) bool { b, ok := v.(bool); return ok && b }),
	"integer": is("integer", func(x *state, v value) bool { return ofType[int64](x, v) || ofType[*big.Int](x, v) }),
	"float":   is("float", ofType[float64]),
	"lower":   is("lower", func(x *state, v value) bool { return x.allCased(x.str(v), isLower, isUpper) }),
	"upper":   is("upper", func(x *state, v value) bool { return x.allCased(x.str(v), isUpper, isLower) }),
	"string":  is("string", ofType[text]),
	"mapping": is("mapping", ofType[*dict]),
	"number":  is("number", isNumber),
	"sequence": is("sequence", func(_ *state, v value) bool {
		switch v.(type) {
		case text, *list, *dict, *interval, *undefined:
			return true
		}
		return false
	}),
	"iterable": is("iterable", func(x *state, v value) bool {
		_, ok := x.iterate(v)
		return ok
	}),
	"callable": is("callable", func(_ *state, v value) bool {
		switch v.(type) {
		case *function, *macro, *loop, *joiner, *undefined:
			return true
		}
		return false
	}),
	"sameas": func(x *state, v value, a args) bool {
		other := a.bind(x, "sameas", 1, "other")[0]
		if _, ok := v.(text); ok || isNumber(x, v) {
			return typeName(v) == typeName(other) && x.equal(v, other) // small numbers and texts are mostly one object
		}
		return isUndefined(v) == isUndefined(other) && typeName(v) == typeName(other) && v == other
	},
	"escaped": is("escaped", func(_ *state, v value) bool { t, ok := v.(text); return ok && t.safe }),
	"in": func(x *state, v value, a args) bool {
		return x.contains(a.bind(x, "in", 1, "seq")[0], v)
	},
	"==": relation("=="), "eq": relation("=="), "equalto": relation("=="),
	"!=": relation("!="), "ne": relation("!="),
	">": relation(">"), "gt": relation(">"), "greaterthan": relation(">"),
	">=": relation(">="), "ge": relation(">="),
	"<": relation("<"), "lt": relation("<"), "lessthan": relation("<"),
	"<=": relation("<="), "le": relation("<="),
}
