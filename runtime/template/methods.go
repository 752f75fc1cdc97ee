package template

import (
	"strings"
	"unicode"
	"unicode/utf8"
)

func given(v value) bool {
	_, none := v.(missing)
	return !none
}

// Reading of arguments, with Python's errors.

func (x *state) textArg(f string, v value) text {
	t, ok := v.(text)
	if !ok {
		x.defined(v)
		x.fail("%s() argument must be str, not %s", f, typeName(v))
	}
	return t
}

func (x *state) intArg(f string, v value) int64 {
	n, ok := small(v)
	if !ok {
		x.defined(v)
		x.fail("%s(): '%s' object cannot be interpreted as an integer", f, typeName(v))
	}
	return n
}

func texts(parts []text) *list {
	l := &list{items: make([]value, len(parts))}
	for i, p := range parts {
		l.items[i] = p
	}
	return l
}

type textMethod func(x *state, t text, a args) value

// stripMethod is strip and its kin.
func stripMethod(f string, strip func(t text, within func(rune) bool) text) textMethod {
	return func(x *state, t text, a args) value {
		v := a.bind(x, f, 0, "/chars")
		return strip(t, x.charsArg(f, v[0]))
	}
}

// charsArg says whether a character is among those of a text; white space if none is given.
func (x *state) charsArg(f string, v value) func(rune) bool {
	if !given(v) || v == nil {
		return isSpace
	}
	chars := x.textArg(f, v).s
	const few = 16 // are searched as fast
	if len(chars) <= few {
		return func(r rune) bool { return strings.ContainsRune(chars, r) }
	}
	in := map[rune]bool{}
	for _, r := range chars {
		x.charge(16)
		in[r] = true
	}
	return func(r rune) bool { return in[r] }
}

func splitMethod(f string, right bool) textMethod {
	return func(x *state, t text, a args) value {
		v := a.bind(x, f, 0, "sep", "maxsplit")
		most := int64(-1)
		if given(v[1]) {
			most = x.intArg(f, v[1])
		}
		if !given(v[0]) || v[0] == nil {
			return texts(x.words(t, most, right))
		}
		sep := x.textArg(f, v[0])
		if sep.s == "" {
			x.fail("empty separator")
		}
		return texts(x.split(t, sep.s, most, right))
	}
}

// affix is startswith and endswith.
func affixMethod(f string, has func(s, affix string) bool) textMethod {
	return func(x *state, t text, a args) value {
		v := a.bind(x, f, 1, "/prefix", "/start", "/end")
		t, inside := x.region(t, v[1], v[2])
		if l, ok := v[0].(*list); ok && l.tuple {
			for _, item := range l.items {
				x.step(1)
				if inside && has(t.s, x.textArg(f, item).s) {
					return true
				}
			}
			return false
		}
		if _, ok := v[0].(text); !ok {
			x.defined(v[0])
			x.fail("%s first arg must be str or a tuple of str, not %s", f, typeName(v[0]))
		}
		return inside && has(t.s, v[0].(text).s)
	}
}

// region is t[start:end]; false if start is after the end of t.
func (x *state) region(t text, start, end value) (text, bool) {
	if !given(start) && !given(end) {
		return t, true
	}
	bound := func(v value) *int64 {
		if !given(v) || v == nil {
			return nil
		}
		i := x.intArg("index", v)
		return &i
	}
	x.read(t)
	n := int64(t.length())
	from := bound(start)
	low, high, _ := x.bounds(n, from, bound(end), nil)
	return x.slice(t, int(low), int(high), 1), (from == nil || *from <= n) && low <= high
}

// findMethod is find, index and their kin.
func findMethod(f string, find func(s, part string) int, fails bool) textMethod {
	return func(x *state, t text, a args) value {
		v := a.bind(x, f, 1, "/sub", "/start", "/end")
		part := x.textArg(f, v[0]).s
		within, inside := x.region(t, v[1], v[2])
		i := find(within.s, part)
		if i < 0 || !inside {
			if fails {
				x.fail("substring not found")
			}
			return int64(-1)
		}
		before := int64(0)
		if given(v[1]) && v[1] != nil {
			start := x.intArg(f, v[1])
			before, _, _ = x.bounds(int64(t.length()), &start, nil, nil)
		}
		return before + int64(utf8.RuneCountInString(within.s[:i]))
	}
}

// isMethod is isdigit and its kin: at least one character, and all are such.
func isMethod(f string, is func(rune) bool) textMethod {
	return func(x *state, t text, a args) value {
		a.bind(x, f, 0)
		x.step(len(t.s) / 8)
		return t.s != "" && !strings.ContainsFunc(t.s, func(r rune) bool { return !is(r) })
	}
}

// casedMethod is isupper and islower: no character of the other case, and one of this.
func casedMethod(f string, wanted, other func(rune) bool) textMethod {
	return func(x *state, t text, a args) value {
		a.bind(x, f, 0)
		return x.allCased(t, wanted, other)
	}
}

func (x *state) allCased(t text, wanted, other func(rune) bool) bool {
	x.step(len(t.s) / 8)
	return strings.ContainsFunc(t.s, wanted) && !strings.ContainsFunc(t.s, func(r rune) bool { return other(r) || unicode.IsTitle(r) })
}

func decimalDigit(r rune) int {
	if '0' <= r && r <= '9' {
		return int(r - '0')
	}
	if !unicode.Is(unicode.Nd, r) {
		return -1
	}
	d := 0 // digits of a script come in runs of ten
	for unicode.Is(unicode.Nd, r-1) && d < 9 {
		r--
		d++
	}
	return d
}

// justifyMethod is ljust, rjust and center.
func justifyMethod(f string, left func(pad int64, width int64) int64) textMethod {
	return func(x *state, t text, a args) value {
		v := a.bind(x, f, 1, "/width", "/fillchar")
		fill := literal(" ")
		if given(v[1]) {
			fill = x.textArg(f, v[1])
			if fill.length() != 1 {
				x.fail("The fill character must be exactly one character long")
			}
		}
		return x.justify(t, x.intArg(f, v[0]), fill, left)
	}
}

func (x *state) justify(t text, width int64, fill text, left func(pad, width int64) int64) text {
	pad := width - int64(t.length())
	if pad <= 0 {
		return t
	}
	before := left(pad, width)
	out := x.join(x.repeat(fill, before), t, x.repeat(fill, pad-before))
	out.safe = t.safe
	return out
}

func centered(pad, width int64) int64 { return pad/2 + pad&width&1 }

// partMethod is partition and rpartition.
func partMethod(f string, right bool) textMethod {
	return func(x *state, t text, a args) value {
		sep := x.textArg(f, a.bind(x, f, 1, "/sep")[0])
		if sep.s == "" {
			x.fail("empty separator")
		}
		parts := x.split(t, sep.s, 1, right)
		switch {
		case len(parts) == 2:
			parts = []text{parts[0], sep, parts[1]}
		case right:
			parts = []text{{}, {}, t}
		default:
			parts = []text{t, {}, {}}
		}
		l := texts(parts)
		l.tuple = true
		return l
	}
}

func noArgs(f string, convert func(x *state, t text) value) textMethod {
	return func(x *state, t text, a args) value {
		a.bind(x, f, 0)
		return convert(x, t)
	}
}

var textMethods = map[string]textMethod{
	"strip":  stripMethod("strip", text.strip),
	"lstrip": stripMethod("lstrip", text.stripLeft),
	"rstrip": stripMethod("rstrip", text.stripRight),
	"split":  splitMethod("split", false),
	"rsplit": splitMethod("rsplit", true),
	"splitlines": func(x *state, t text, a args) value {
		v := a.bind(x, "splitlines", 0, "keepends")
		return texts(x.lines(t, given(v[0]) && x.truth(v[0])))
	},
	"startswith": affixMethod("startswith", strings.HasPrefix),
	"endswith":   affixMethod("endswith", strings.HasSuffix),
	"removeprefix": func(x *state, t text, a args) value {
		prefix := x.textArg("removeprefix", a.bind(x, "removeprefix", 1, "/prefix")[0]).s
		if strings.HasPrefix(t.s, prefix) {
			return t.cut(len(prefix), len(t.s))
		}
		return t
	},
	"removesuffix": func(x *state, t text, a args) value {
		suffix := x.textArg("removesuffix", a.bind(x, "removesuffix", 1, "/suffix")[0]).s
		return t.cut(0, len(strings.TrimSuffix(t.s, suffix)))
	},
	"find":   findMethod("find", strings.Index, false),
	"rfind":  findMethod("rfind", strings.LastIndex, false),
	"index":  findMethod("index", strings.Index, true),
	"rindex": findMethod("rindex", strings.LastIndex, true),
	"count": func(x *state, t text, a args) value {
		v := a.bind(x, "count", 1, "/sub", "/start", "/end")
		within, inside := x.region(t, v[1], v[2])
		if !inside {
			return int64(0)
		}
		return int64(strings.Count(within.s, x.textArg("count", v[0]).s))
	},
	"replace": func(x *state, t text, a args) value {
		v := a.bind(x, "replace", 2, "/old", "/new", "count")
		most := int64(-1)
		if given(v[2]) {
			most = x.intArg("replace", v[2])
		}
		return x.replace(t, x.textArg("replace", v[0]).s, x.textArg("replace", v[1]), most)
	},
	"join": func(x *state, t text, a args) value {
		next, ok := x.iterate(a.bind(x, "join", 1, "/iterable")[0])
		if !ok {
			x.fail("can only join an iterable")
		}
		b := builder{x: x}
		i := 0
		for v, ok := next(); ok; v, ok = next() {
			part, isText := v.(text)
			if !isText {
				x.fail("sequence item %d: expected str instance, %s found", i, typeName(v))
			}
			if i > 0 {
				b.add(t)
			}
			b.add(part)
			i++
		}
		return b.text()
	},
	"upper": noArgs("upper", func(x *state, t text) value { return x.convert(t, upper) }),
	"lower": noArgs("lower", func(x *state, t text) value { return x.lowerText(t) }),
	"casefold": noArgs("casefold", func(x *state, t text) value {
		return x.convert(t, func(s string) string { return strings.ReplaceAll(lower(s), "ß", "ss") })
	}),
	"title":      noArgs("title", func(x *state, t text) value { return x.titleCase(t, true) }),
	"capitalize": noArgs("capitalize", func(x *state, t text) value { return x.titleCase(t, false) }),
	"swapcase": noArgs("swapcase", func(x *state, t text) value {
		return x.convert(t, func(s string) string {
			var b strings.Builder
			for _, r := range s {
				if isUpper(r) {
					b.WriteString(lower(string(r)))
				} else {
					b.WriteString(upper(string(r)))
				}
			}
			return b.String()
		})
	}),
	"isdigit": isMethod("isdigit", func(r rune) bool {
		return decimalDigit(r) >= 0 || strings.ContainsRune("²³¹⁰⁴⁵⁶⁷⁸⁹", r) || '₀' <= r && r <= '₉'
	}),
	"isdecimal": isMethod("isdecimal", func(r rune) bool { return decimalDigit(r) >= 0 }),
	"isnumeric": isMethod("isnumeric", unicode.IsNumber),
	"isalpha":   isMethod("isalpha", unicode.IsLetter),
	"isalnum":   isMethod("isalnum", func(r rune) bool { return unicode.IsLetter(r) || unicode.IsNumber(r) }),
	"isspace":   isMethod("isspace", isSpace),
	"isascii":   noArgs("isascii", func(x *state, t text) value { return isASCII(t.s) }),
	"isprintable": noArgs("isprintable", func(x *state, t text) value {
		return !strings.ContainsFunc(t.s, func(r rune) bool { return !unicode.IsPrint(r) })
	}),
	"isupper": casedMethod("isupper", isUpper, isLower),
	"islower": casedMethod("islower", isLower, isUpper),
	"istitle": noArgs("istitle", func(x *state, t text) value {
		return strings.ContainsFunc(t.s, isCased) && x.titleCase(t, true).s == t.s
	}),
	"isidentifier": noArgs("isidentifier", func(x *state, t text) value { return isIdentifier(t.s) }),
	"zfill": func(x *state, t text, a args) value {
		width := x.intArg("zfill", a.bind(x, "zfill", 1, "/width")[0])
		sign := 0
		if t.s != "" && (t.s[0] == '-' || t.s[0] == '+') {
			sign = 1
		}
		zeros := x.repeat(literal("0"), width-int64(t.length()))
		return x.join(t.cut(0, sign), zeros, t.cut(sign, len(t.s)))
	},
	"ljust":      justifyMethod("ljust", func(pad, _ int64) int64 { return 0 }),
	"rjust":      justifyMethod("rjust", func(pad, _ int64) int64 { return pad }),
	"center":     justifyMethod("center", centered),
	"partition":  partMethod("partition", false),
	"rpartition": partMethod("rpartition", true),
	"expandtabs": func(x *state, t text, a args) value {
		v := a.bind(x, "expandtabs", 0, "tabsize")
		size := int64(8)
		if given(v[0]) {
			size = x.intArg("expandtabs", v[0])
		}
		b := builder{x: x}
		column := int64(0)
		t.pieces(func(s string, plain bool) {
			for _, r := range s {
				switch {
				case r == '\t' && size > 0:
					n := size - column%size
					x.charge(int(n))
					b.write(strings.Repeat(" ", int(n)), plain)
					column += n
				case r == '\t':
				default:
					b.write(string(r), plain)
					column++
					if r == '\n' || r == '\r' {
						column = 0
					}
				}
			}
		})
		return b.text()
	},
	"format": func(x *state, t text, a args) value { return x.format(t, a) },
	"format_map": func(x *state, t text, a args) value {
		v := a.bind(x, "format_map", 1, "/mapping")
		d, ok := v[0].(*dict)
		if !ok {
			x.fail("'%s' object is not subscriptable", typeName(v[0]))
		}
		var named args
		for _, e := range d.entries {
			x.item()
			if name, ok := e.key.(text); ok {
				named.names, named.values = append(named.names, name.s), append(named.values, e.value)
			}
		}
		return x.format(t, named)
	},
}

func isIdentifier(s string) bool {
	for i, r := range s {
		if r != '_' && !unicode.IsLetter(r) && (i == 0 || !unicode.IsDigit(r)) {
			return false
		}
	}
	return s != ""
}

var dictMethods = map[string]func(x *state, d *dict, a args) value{
	"items": func(x *state, d *dict, a args) value {
		a.bind(x, "items", 0)
		return &view{d, "dict_items"}
	},
	"keys": func(x *state, d *dict, a args) value {
		a.bind(x, "keys", 0)
		return &view{d, "dict_keys"}
	},
	"values": func(x *state, d *dict, a args) value {
		a.bind(x, "values", 0)
		return &view{d, "dict_values"}
	},
	"get": func(x *state, d *dict, a args) value {
		v := a.bind(x, "get", 1, "/key", "/default")
		if i, ok := d.find(x.hash(v[0])); ok {
			return d.entries[i].value
		}
		if given(v[1]) {
			return v[1]
		}
		return nil
	},
	"copy": func(x *state, d *dict, a args) value {
		a.bind(x, "copy", 0)
		return d // which nobody can change
	},
}

var listMethods = map[string]func(x *state, l *list, a args) value{
	"count": func(x *state, l *list, a args) value {
		v := a.bind(x, "count", 1, "/value")[0]
		n := int64(0)
		for _, item := range l.items {
			if x.equal(item, v) {
				n++
			}
		}
		return n
	},
	"index": func(x *state, l *list, a args) value {
		v := a.bind(x, "index", 1, "/value", "/start", "/stop")
		bound := func(v value) *int64 {
			if !given(v) {
				return nil
			}
			i := x.intArg("index", v)
			return &i
		}
		from, to, _ := x.bounds(int64(len(l.items)), bound(v[1]), bound(v[2]), nil)
		for i := from; i < to; i++ {
			if x.equal(l.items[i], v[0]) {
				return i
			}
		}
		x.fail("%s is not in list", x.repr(v[0]).s)
		return nil
	},
	"copy": func(x *state, l *list, a args) value {
		a.bind(x, "copy", 0)
		return l // which nobody can change
	},
}
