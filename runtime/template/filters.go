package template

import (
	"html"
	"math"
	"math/big"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

type (
	filter func(x *state, v value, a args) value
	test   func(x *state, v value, a args) bool
)

// language is what templates find by name. A state has it, not a variable, since
// filters call each other by name.
type language struct {
	filters     map[string]filter
	tests       map[string]test
	globals     map[string]value
	textMethods map[string]textMethod
	dictMethods map[string]func(x *state, d *dict, a args) value
	listMethods map[string]func(x *state, l *list, a args) value
}

var jinja = &language{filters, tests, globals, textMethods, dictMethods, listMethods}

// path gives what follows an attribute such as "function.name" or "0" of items.
func (x *state) path(attribute value) func(value) value {
	var parts []value
	if t, ok := attribute.(text); ok {
		for _, part := range x.split(t, ".", -1, false) {
			if n, err := strconv.ParseInt(part.s, 10, 64); err == nil && decimal(part.s[0]) {
				parts = append(parts, n)
			} else {
				parts = append(parts, part)
			}
		}
	} else if given(attribute) && attribute != nil {
		parts = []value{attribute}
	}
	return func(v value) value {
		for _, part := range parts {
			x.step(1)
			v = x.subscript(v, part)
		}
		return v
	}
}

// pathOr is path where what is undefined on the way is replaced by a default, if
// that is given and not None.
func (x *state) pathOr(attribute, instead value) func(value) value {
	if !given(instead) || instead == nil {
		return x.path(attribute)
	}
	var parts []func(value) value
	if t, ok := attribute.(text); ok {
		for _, part := range x.split(t, ".", -1, false) {
			parts = append(parts, x.path(part))
		}
	} else {
		parts = append(parts, x.path(attribute))
	}
	return func(v value) value {
		for _, part := range parts {
			if v = part(v); isUndefined(v) {
				v = instead
			}
		}
		return v
	}
}

func isUndefined(v value) bool {
	_, ok := v.(*undefined)
	return ok
}

// folded makes text small for comparisons, unless case is said to matter.
func (x *state) folded(sensitive value) func(value) value {
	matters := given(sensitive) && x.truth(sensitive)
	return func(v value) value {
		if t, ok := v.(text); ok && !matters {
			return x.lowerText(t)
		}
		return v
	}
}

func (x *state) flag(v value) bool { return given(v) && x.truth(v) }

// from makes a generator of a function that prepares it when it is first asked. Generators
// of generators are one within the other.
func (x *state) from(prepare func() func() (value, bool)) *generator {
	x.charge(256)
	var next func() (value, bool)
	return &generator{func() (value, bool) {
		defer x.enter(1)()
		if next == nil {
			next = prepare()
		}
		return next()
	}}
}

func nothing() (value, bool) { return nil, false }

// selecting is select, reject and those by attribute.
func selecting(f string, wanted, byAttribute bool) filter {
	return func(x *state, v value, a args) value {
		return x.from(func() func() (value, bool) {
			if !x.truth(v) {
				return nothing
			}
			of := func(v value) value { return v }
			rest := a.pos
			if byAttribute {
				if len(rest) == 0 {
					x.fail("Missing parameter for attribute name")
				}
				of, rest = x.path(rest[0]), rest[1:]
			}
			is := x.truth
			if len(rest) > 0 {
				name := x.textArg(f, rest[0]).s
				is = func(v value) bool { return x.test(name, v, args{rest[1:], a.names, a.values}) }
			}
			next := x.mustIterate(v)
			return func() (value, bool) {
				for item, ok := next(); ok; item, ok = next() {
					if is(of(item)) == wanted {
						return item, true
					}
				}
				return nil, false
			}
		})
	}
}

func filterMap(x *state, v value, a args) value {
	return x.from(func() func() (value, bool) {
		if !x.truth(v) {
			return nothing
		}
		var of func(value) value
		if len(a.pos) == 0 && slices.Contains(a.names, "attribute") {
			o := a.bind(x, "map", 0, "attribute", "default")
			of = x.pathOr(o[0], o[1])
		} else {
			if len(a.pos) == 0 {
				x.fail("map requires a filter argument")
			}
			name := x.textArg("map", a.pos[0]).s
			of = func(v value) value { return x.filter(name, v, args{a.pos[1:], a.names, a.values}) }
		}
		next := x.mustIterate(v)
		return func() (value, bool) {
			item, ok := next()
			if !ok {
				return nil, false
			}
			return of(item), true
		}
	})
}

// extreme is min and max.
func extreme(f string, better func(x *state, a, b value) bool) filter {
	return func(x *state, v value, a args) value {
		o := a.bind(x, f, 0, "case_sensitive", "attribute")
		of, fold := x.path(o[1]), x.folded(o[0])
		next := x.mustIterate(v)
		best, ok := next()
		if !ok {
			return &undefined{hint: "No aggregated item, sequence was empty."}
		}
		key := fold(of(best))
		for item, ok := next(); ok; item, ok = next() {
			if k := fold(of(item)); better(x, k, key) {
				best, key = item, k
			}
		}
		return best
	}
}

// backwards is the items of reversed(v); false if v cannot be.
func (x *state) backwards(v value) ([]value, bool) {
	switch v.(type) {
	case text, *list, *dict, *view, *interval, *undefined:
		items := slices.Clone(x.collect(v))
		x.charge(16 * len(items))
		slices.Reverse(items)
		return items, true
	}
	return nil, false
}

func textFilter(f string, convert func(x *state, t text) text) filter {
	return func(x *state, v value, a args) value {
		a.bind(x, f, 0)
		t := x.str(v)
		x.read(t)
		return convert(x, t)
	}
}

func filterLength(x *state, v value, a args) value {
	a.bind(x, "length", 0)
	return x.mustLength(v)
}

func filterDefault(x *state, v value, a args) value {
	o := a.bind(x, "default", 0, "default_value", "boolean")
	if !isUndefined(v) && !(x.flag(o[1]) && !x.truth(v)) {
		return v
	}
	if given(o[0]) {
		return o[0]
	}
	return text{}
}

func filterEscape(x *state, v value, a args) value {
	a.bind(x, "escape", 0)
	return x.escape(x.str(v))
}

// escape is markupsafe's.
func (x *state) escape(t text) text {
	if !t.safe {
		b := builder{x: x}
		b.escapeEach(t, func(r rune) (string, bool) {
			switch r {
			case '&':
				return "&amp;", true
			case '<':
				return "&lt;", true
			case '>':
				return "&gt;", true
			case '\'':
				return "&#39;", true
			case '"':
				return "&#34;", true
			}
			return "", false
		})
		t = b.text()
		t.safe = true
	}
	return t
}

func filterTitle(x *state, t text) text {
	b := builder{x: x}
	start := true // of a word
	t.pieces(func(s string, plain bool) {
		for _, r := range s {
			switch {
			case isSpace(r) || strings.ContainsRune("-({[<", r):
				b.write(string(r), plain)
				start = true
			case start:
				b.write(upper(string(r)), plain)
				start = false
			default:
				b.write(lower(string(r)), plain)
			}
		}
	})
	return b.text()
}

func filterIndent(x *state, v value, a args) value {
	o := a.bind(x, "indent", 0, "width", "first", "blank")
	t, ok := v.(text)
	if !ok {
		x.defined(v)
		x.fail("unsupported operand type(s) for +=: '%s' and 'str'", typeName(v))
	}
	by := literal("    ")
	if given(o[0]) {
		if by, ok = o[0].(text); !ok {
			by = x.repeat(literal(" "), x.intArg("indent", o[0]))
		}
	}
	b := builder{x: x}
	if x.flag(o[1]) {
		b.add(by)
	}
	for i, line := range x.lines(x.join(t, literal("\n")), false) {
		if i > 0 {
			b.literal("\n")
			if x.flag(o[2]) || line.s != "" {
				b.add(by)
			}
		}
		b.add(line)
	}
	out := b.text()
	out.safe = t.safe
	return out
}

func filterTruncate(x *state, v value, a args) value {
	o := a.bind(x, "truncate", 0, "length", "killwords", "end", "leeway")
	length, leeway, end := int64(255), int64(5), literal("...")
	if given(o[0]) {
		length = x.intArg("truncate", o[0])
	}
	if given(o[2]) {
		end = x.textArg("truncate", o[2])
	}
	if given(o[3]) && o[3] != nil {
		leeway = x.intArg("truncate", o[3])
	}
	if length < int64(end.length()) || leeway < 0 {
		x.fail("expected length >= %d, got %d", end.length(), length)
	}
	if x.mustLength(v) <= length+leeway {
		return v
	}
	t := x.textArg("truncate", v)
	t = t.cut(0, offset(t.s, int(length)-end.length()))
	if !x.flag(o[1]) {
		t = x.split(t, " ", 1, true)[0]
	}
	return x.join(t, end)
}

func filterInt(x *state, v value, a args) value {
	o := a.bind(x, "int", 0, "default", "base")
	x.defined(v)
	instead, base := value(int64(0)), int64(10)
	if given(o[0]) {
		instead = o[0]
	}
	if given(o[1]) {
		base = x.intArg("int", o[1])
	}
	if t, ok := v.(text); ok {
		x.step(len(t.s))
		if n, ok := parseInt(t.s, int(base)); ok {
			return n
		}
		if f, ok := parseFloat(t.s); ok && !math.IsInf(f, 0) && !math.IsNaN(f) {
			return x.truncate(f)
		}
		return instead
	}
	if n, ok := integer(v); ok {
		return shrink(n)
	}
	if f, ok := v.(float64); ok && !math.IsNaN(f) {
		return x.truncate(f)
	}
	return instead
}

func filterFloat(x *state, v value, a args) value {
	o := a.bind(x, "float", 0, "default")
	x.defined(v)
	if f, ok := float(v); ok {
		return f
	}
	if t, ok := v.(text); ok {
		x.step(len(t.s))
		if f, ok := parseFloat(t.s); ok {
			return f
		}
	}
	if given(o[0]) {
		return o[0]
	}
	return 0.0
}

func filterRound(x *state, v value, a args) value {
	o := a.bind(x, "round", 0, "precision", "method")
	digits, method := int64(0), "common"
	if given(o[0]) {
		digits = x.intArg("round", o[0])
	}
	if given(o[1]) {
		method = x.textArg("round", o[1]).s
	}
	switch method {
	case "common":
		return x.round(v, digits)
	case "ceil", "floor":
	default:
		x.fail("method must be common, ceil or floor")
	}
	unit := x.binary("**", int64(10), digits)
	scaled := x.binary("*", v, unit)
	if f, ok := scaled.(float64); ok {
		if method == "ceil" {
			scaled = x.truncate(math.Ceil(f))
		} else {
			scaled = x.truncate(math.Floor(f))
		}
	}
	return x.binary("/", scaled, unit)
}

func filterGroupBy(x *state, v value, a args) value {
	o := a.bind(x, "groupby", 1, "attribute", "default", "case_sensitive")
	of, fold := x.pathOr(o[0], o[1]), x.folded(o[2])
	key := func(v value) value { return fold(of(v)) }
	groups := &list{}
	var last value
	var members *list
	for _, item := range x.sort(x.collect(v), key, false) {
		k := key(item)
		if members == nil || !x.equal(k, last) {
			members, last = &list{}, k
			x.item()
			groups.items = append(groups.items, &list{items: []value{of(item), members}, tuple: true, names: []string{"grouper", "list"}})
		}
		x.item()
		members.items = append(members.items, item)
	}
	return groups
}

func filterUnique(x *state, v value, a args) value {
	o := a.bind(x, "unique", 0, "case_sensitive", "attribute")
	return x.from(func() func() (value, bool) {
		of, fold := x.path(o[1]), x.folded(o[0])
		seen := map[any]bool{}
		next := x.mustIterate(v)
		return func() (value, bool) {
			for item, ok := next(); ok; item, ok = next() {
				key := x.hash(fold(of(item)))
				if !seen[key] {
					x.item()
					seen[key] = true
					return item, true
				}
			}
			return nil, false
		}
	})
}

func filterBatch(x *state, v value, a args) value {
	o := a.bind(x, "batch", 1, "linecount", "fill_with")
	return x.from(func() func() (value, bool) {
		size := x.intArg("batch", o[0])
		next := x.mustIterate(v)
		var held []value // the first of the next row
		return func() (value, bool) {
			row := held
			held = nil
			for item, ok := next(); ok; item, ok = next() {
				x.item()
				if len(row) > 0 && int64(len(row)) == size || size == 0 && row == nil {
					held = []value{item}
					return &list{items: row}, true
				}
				row = append(row, item)
			}
			if len(row) == 0 {
				return nil, false
			}
			for given(o[1]) && o[1] != nil && int64(len(row)) < size {
				x.item()
				row = append(row, o[1])
			}
			return &list{items: row}, true
		}
	})
}

func filterSlice(x *state, v value, a args) value {
	o := a.bind(x, "slice", 1, "slices", "fill_with")
	return x.from(func() func() (value, bool) {
		items, n := x.collect(v), x.intArg("slice", o[0])
		if n == 0 {
			x.fail("integer division or modulo by zero")
		}
		if n < 0 {
			return nothing
		}
		size, longer := int64(len(items))/n, int64(len(items))%n
		i, at := int64(0), int64(0)
		return func() (value, bool) {
			if i == n {
				return nil, false
			}
			x.item()
			end := at + size
			if i < longer {
				end++
			}
			part := items[at:end:end]
			if i >= longer && given(o[1]) && o[1] != nil {
				part = append(part, o[1])
			}
			i, at = i+1, end
			return &list{items: part}, true
		}
	})
}

func filterURLEncode(x *state, v value, a args) value {
	a.bind(x, "urlencode", 0)
	quote := func(v value, query bool) text {
		t := x.str(v)
		s := strings.ReplaceAll(url.QueryEscape(t.s), "~", "~")
		if !query {
			s = strings.ReplaceAll(strings.ReplaceAll(s, "+", "%20"), "%2F", "/")
		}
		x.charge(len(s))
		return t.as(s)
	}
	next, ok := x.iterate(v)
	if _, isText := v.(text); isText || !ok {
		return quote(v, false)
	}
	if d, ok := v.(*dict); ok {
		next, _ = x.iterate(&view{d, "dict_items"})
	}
	b := builder{x: x}
	for item, ok := next(); ok; item, ok = next() {
		pair := x.collect(item)
		if len(pair) != 2 {
			x.fail("not enough values to unpack (expected 2, got %d)", len(pair))
		}
		if b.buf.Len() > 0 {
			b.literal("&")
		}
		b.add(quote(pair[0], true))
		b.literal("=")
		b.add(quote(pair[1], true))
	}
	return b.text()
}

func filterStripTags(x *state, t text) text {
	s := t.s
	for _, tag := range [][2]string{{"<!--", "-->"}, {"<", ">"}} {
		var kept strings.Builder
		for {
			i := strings.Index(s, tag[0])
			if i < 0 {
				break
			}
			j := strings.Index(s[i:], tag[1])
			if j < 0 {
				break
			}
			kept.WriteString(s[:i])
			s = s[i+j+len(tag[1]):]
		}
		s = kept.String() + s
	}
	s = html.UnescapeString(strings.Join(strings.FieldsFunc(s, isSpace), " "))
	x.charge(4 * len(t.s))
	return t.as(s)
}

func filterFileSize(x *state, v value, a args) value {
	o := a.bind(x, "filesizeformat", 0, "binary")
	base, units := 1000.0, []string{"kB", "MB", "GB", "TB", "PB", "EB", "ZB", "YB"}
	if x.flag(o[0]) {
		base, units = 1024, []string{"KiB", "MiB", "GiB", "TiB", "PiB", "EiB", "ZiB", "YiB"}
	}
	size, ok := float(v)
	if t, isText := v.(text); isText {
		x.step(len(t.s))
		size, ok = parseFloat(t.s)
	}
	if !ok {
		x.fail("could not convert to float: %s", x.repr(v).s)
	}
	switch {
	case size == 1:
		return literal("1 Byte")
	case size < base:
		return literal(x.number(x.truncate(size)) + " Bytes")
	}
	unit := base
	for i, name := range units {
		if unit *= base; size < unit || i == len(units)-1 {
			return literal(strconv.FormatFloat(base*size/unit, 'f', 1, 64) + " " + name)
		}
	}
	return nil
}

var filters = map[string]filter{
	"abs": func(x *state, v value, a args) value {
		a.bind(x, "abs", 0)
		if f, ok := v.(float64); ok {
			return math.Abs(f)
		}
		n, ok := integer(v)
		if !ok {
			x.fail("bad operand type for abs(): '%s'", typeName(v))
		}
		return shrink(new(big.Int).Abs(n))
	},
	"attr": func(x *state, v value, a args) value {
		name := x.textArg("attr", a.bind(x, "attr", 1, "name")[0])
		x.defined(v)
		if found, ok := x.own(v, name.s); ok {
			return found
		}
		return &undefined{owner: ownerName(v), name: literal(name.s)}
	},
	"batch":      filterBatch,
	"capitalize": textFilter("capitalize", func(x *state, t text) text { return x.titleCase(t, false) }),
	"center": func(x *state, v value, a args) value {
		width := int64(80)
		if o := a.bind(x, "center", 0, "width"); given(o[0]) {
			width = x.intArg("center", o[0])
		}
		t := x.str(v)
		x.read(t)
		return x.justify(t, width, literal(" "), centered)
	},
	"count":   filterLength,
	"d":       filterDefault,
	"default": filterDefault,
	"dictsort": func(x *state, v value, a args) value {
		o := a.bind(x, "dictsort", 0, "case_sensitive", "by", "reverse")
		at := 0
		if given(o[1]) {
			switch x.textArg("dictsort", o[1]).s {
			case "key":
			case "value":
				at = 1
			default:
				x.fail(`You can only sort by either "key" or "value"`)
			}
		}
		x.defined(v)
		d, ok := v.(*dict)
		if !ok {
			x.fail("'%s' object has no attribute 'items'", typeName(v))
		}
		fold := x.folded(o[0])
		key := func(v value) value { return fold(v.(*list).items[at]) }
		return &list{items: x.sort(x.collect(&view{d, "dict_items"}), key, x.flag(o[2]))}
	},
	"e":              filterEscape,
	"escape":         filterEscape,
	"filesizeformat": filterFileSize,
	"first": func(x *state, v value, a args) value {
		a.bind(x, "first", 0)
		if item, ok := x.mustIterate(v)(); ok {
			return item
		}
		return &undefined{hint: "No first item, sequence was empty."}
	},
	"float": filterFloat,
	"forceescape": func(x *state, v value, a args) value {
		a.bind(x, "forceescape", 0)
		t := x.str(v)
		t.safe = false
		return x.escape(t)
	},
	"format": func(x *state, v value, a args) value {
		if len(a.pos) > 0 && len(a.names) > 0 {
			x.fail("can't handle positional and keyword arguments at the same time")
		}
		if len(a.names) > 0 {
			d := &dict{}
			for i, name := range a.names {
				d.set(name, literal(name), a.values[i])
			}
			return x.printf(x.str(v), d)
		}
		return x.printf(x.str(v), &list{items: a.pos, tuple: true})
	},
	"groupby": filterGroupBy,
	"indent":  filterIndent,
	"int":     filterInt,
	"items": func(x *state, v value, a args) value {
		a.bind(x, "items", 0)
		return x.from(func() func() (value, bool) {
			d, ok := v.(*dict)
			switch {
			case isUndefined(v):
				return nothing
			case !ok:
				x.fail("Can only get item pairs from a mapping.")
			}
			return x.mustIterate(&view{d, "dict_items"})
		})
	},
	"join": func(x *state, v value, a args) value {
		o := a.bind(x, "join", 0, "d", "attribute")
		of := x.path(o[1])
		b := builder{x: x}
		next := x.mustIterate(v)
		for i := 0; ; i++ {
			item, ok := next()
			if !ok {
				return b.text()
			}
			if i > 0 && given(o[0]) {
				b.add(x.str(o[0]))
			}
			b.add(x.str(of(item)))
		}
	},
	"last": func(x *state, v value, a args) value {
		a.bind(x, "last", 0)
		if l, ok := v.(*list); ok && len(l.items) > 0 {
			return l.items[len(l.items)-1]
		}
		items, ok := x.backwards(v)
		switch {
		case !ok:
			x.fail("'%s' object is not reversible", typeName(v))
		case len(items) == 0:
			return &undefined{hint: "No last item, sequence was empty."}
		}
		return items[0]
	},
	"length": filterLength,
	"list": func(x *state, v value, a args) value {
		a.bind(x, "list", 0)
		return &list{items: x.collect(v)}
	},
	"lower":      textFilter("lower", (*state).lowerText),
	"map":        filterMap,
	"max":        extreme("max", func(x *state, a, b value) bool { return x.less(b, a, ">") }),
	"min":        extreme("min", func(x *state, a, b value) bool { return x.less(a, b, "<") }),
	"reject":     selecting("reject", false, false),
	"rejectattr": selecting("rejectattr", false, true),
	"replace": func(x *state, v value, a args) value {
		o := a.bind(x, "replace", 2, "old", "new", "count")
		most := int64(-1)
		if given(o[2]) && o[2] != nil {
			most = x.intArg("replace", o[2])
		}
		t := x.str(v)
		x.read(t)
		return x.replace(t, x.str(o[0]).s, x.str(o[1]), most)
	},
	"reverse": func(x *state, v value, a args) value {
		a.bind(x, "reverse", 0)
		if t, ok := v.(text); ok {
			return x.slice(t, t.length()-1, -1, -1)
		}
		if items, ok := x.backwards(v); ok {
			next, _ := x.iterate(&list{items: items})
			return &generator{next}
		}
		if _, ok := x.iterate(v); !ok {
			x.fail("argument must be iterable")
		}
		items := slices.Clone(x.collect(v))
		slices.Reverse(items)
		return &list{items: items}
	},
	"round": filterRound,
	"safe": func(x *state, v value, a args) value {
		a.bind(x, "safe", 0)
		t := x.str(v)
		t.safe = true
		return t
	},
	"select":     selecting("select", true, false),
	"selectattr": selecting("selectattr", true, true),
	"slice":      filterSlice,
	"sort": func(x *state, v value, a args) value {
		o := a.bind(x, "sort", 0, "reverse", "case_sensitive", "attribute")
		fold := x.folded(o[1])
		paths := []func(value) value{x.path(o[2])}
		if t, ok := o[2].(text); ok {
			paths = nil
			for _, part := range x.split(t, ",", -1, false) {
				paths = append(paths, x.path(part))
			}
		}
		key := func(v value) value {
			l := &list{}
			for _, of := range paths {
				x.item()
				l.items = append(l.items, fold(of(v)))
			}
			return l
		}
		return &list{items: x.sort(x.collect(v), key, x.flag(o[0]))}
	},
	"string":    textFilter("string", func(x *state, t text) text { return t }),
	"striptags": textFilter("striptags", filterStripTags),
	"sum": func(x *state, v value, a args) value {
		o := a.bind(x, "sum", 0, "attribute", "start")
		sum := value(int64(0))
		if given(o[1]) {
			sum = o[1]
		}
		if _, ok := sum.(text); ok {
			x.fail("sum() can't sum strings [use ''.join(seq) instead]")
		}
		of := x.path(o[0])
		next := x.mustIterate(v)
		for item, ok := next(); ok; item, ok = next() {
			sum = x.binary("+", sum, of(item))
		}
		return sum
	},
	"title":  textFilter("title", filterTitle),
	"tojson": tojson,
	"trim": func(x *state, v value, a args) value {
		o := a.bind(x, "trim", 0, "chars")
		t := x.str(v)
		x.read(t)
		return t.strip(x.charsArg("trim", o[0]))
	},
	"truncate":  filterTruncate,
	"unique":    filterUnique,
	"upper":     textFilter("upper", func(x *state, t text) text { return x.convert(t, upper) }),
	"urlencode": filterURLEncode,
	"wordcount": func(x *state, v value, a args) value {
		a.bind(x, "wordcount", 0)
		t := x.str(v)
		x.charge(16 * len(t.s))
		return int64(len(strings.FieldsFunc(t.s, func(r rune) bool { return !isWord(r) })))
	},
}
