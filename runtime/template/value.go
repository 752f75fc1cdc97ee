package template

import (
	"fmt"
	"math"
	"math/big"
	"sort"
	"strconv"
	"strings"
	"unicode"
)

// value is a Python object: nil (None), bool, int64, *big.Int (beyond int64),
// float64, text, *list, *dict, *view, *interval, *generator, *namespace,
// *undefined, *function, *method, *macro, *loop, *cycler, *joiner.
type value any

// list is a list or a tuple. It does not change once made.
type list struct {
	items []value
	tuple bool
	names []string // of a named tuple
}

// dict keeps the order of its keys. It does not change once made, except within
// a namespace.
type dict struct {
	entries []entry
	index   map[any]int // hash -> place in entries; nil while there are few
}

type entry struct {
	hash  any
	key   value
	value value
}

const fewEntries = 8

func (d *dict) find(hash any) (int, bool) {
	if d.index != nil {
		i, ok := d.index[hash]
		return i, ok
	}
	for i := range d.entries {
		if d.entries[i].hash == hash {
			return i, true
		}
	}
	return 0, false
}

// get looks a string key up.
func (d *dict) get(name string) (value, bool) {
	if i, ok := d.find(name); ok {
		return d.entries[i].value, true
	}
	return nil, false
}

// set keeps the first of equal keys and the last of their values, as Python does.
func (d *dict) set(hash any, key, v value) {
	if i, ok := d.find(hash); ok {
		d.entries[i].value = v
		return
	}
	d.entries = append(d.entries, entry{hash, key, v})
	if d.index != nil {
		d.index[hash] = len(d.entries) - 1
	} else if len(d.entries) > fewEntries {
		d.index = make(map[any]int, 2*len(d.entries))
		for i, e := range d.entries {
			d.index[e.hash] = i
		}
	}
}

// view is what items(), keys() and values() of a dict give.
type view struct {
	d    *dict
	kind string // dict_items, dict_keys, dict_values
}

func (v *view) at(i int) value {
	e := v.d.entries[i]
	switch v.kind {
	case "dict_items":
		return &list{items: []value{e.key, e.value}, tuple: true}
	case "dict_keys":
		return e.key
	}
	return e.value
}

// interval is a range.
type interval struct{ start, stop, step int64 }

func (r *interval) length() int64 {
	if r.step > 0 && r.start < r.stop {
		return (r.stop-r.start-1)/r.step + 1
	}
	if r.step < 0 && r.start > r.stop {
		return (r.start-r.stop-1)/-r.step + 1
	}
	return 0
}

// generator gives its items once.
type generator struct{ next func() (value, bool) }

// namespace is what "set ns.name" may change.
type namespace struct{ attrs dict }

// undefined prints as nothing and is false; almost all else that is done with it fails.
type undefined struct {
	hint  string
	owner string // of a missing attribute: its type as jinja2 names it
	name  value  // what was looked for
}

func (u *undefined) message() string {
	name, isText := u.name.(text)
	switch {
	case u.hint != "":
		return u.hint
	case u.owner == "":
		return quote(name.s) + " is undefined"
	case isText:
		return quote(u.owner) + " has no attribute " + quote(name.s)
	}
	return u.owner + " has no element " + fmt.Sprint(u.name)
}

func quote(s string) string { return reprText(literal(s)) }

// function is a global or a method bound to what it is of.
type function struct {
	name string
	call func(x *state, a args) value
}

type cycler struct {
	items []value
	at    int
}

type joiner struct {
	sep  value
	used bool
}

// typeName is Python's name of a value's type.
func typeName(v value) string {
	switch v := v.(type) {
	case nil:
		return "NoneType"
	case bool:
		return "bool"
	case int64, *big.Int:
		return "int"
	case float64:
		return "float"
	case text:
		if v.safe {
			return "Markup"
		}
		return "str"
	case *list:
		if v.tuple {
			return "tuple"
		}
		return "list"
	case *dict:
		return "dict"
	case *view:
		return v.kind
	case *interval:
		return "range"
	case *generator:
		return "generator"
	case *namespace:
		return "Namespace"
	case *undefined:
		return "Undefined"
	case *macro:
		return "Macro"
	case *loop:
		return "LoopContext"
	case *cycler:
		return "Cycler"
	case *joiner:
		return "Joiner"
	}
	return "function"
}

// ownerName is how jinja2 names a value in the message of an undefined attribute.
func ownerName(v value) string {
	switch v.(type) {
	case nil:
		return "None"
	case *namespace, *cycler, *joiner:
		return "jinja2.utils." + typeName(v) + " object"
	case *macro, *loop:
		return "jinja2.runtime." + typeName(v) + " object"
	}
	return typeName(v) + " object"
}

// truth is bool(v).
func (x *state) truth(v value) bool {
	switch v := v.(type) {
	case nil:
		return false
	case bool:
		return v
	case int64:
		return v != 0
	case float64:
		return v != 0
	case text:
		return v.s != ""
	case *undefined:
		return false
	case *loop:
		return x.loopLength(v) > 0
	}
	if n, ok := x.length(v); ok {
		return n > 0
	}
	return true
}

// length is len(v), false if v has none.
func (x *state) length(v value) (int64, bool) {
	switch v := v.(type) {
	case text:
		x.read(v)
		return int64(v.length()), true
	case *list:
		return int64(len(v.items)), true
	case *dict:
		return int64(len(v.entries)), true
	case *view:
		return int64(len(v.d.entries)), true
	case *interval:
		return v.length(), true
	case *undefined:
		return 0, true
	case *loop:
		return x.loopLength(v), true
	}
	return 0, false
}

func (x *state) mustLength(v value) int64 {
	n, ok := x.length(v)
	if !ok {
		x.fail("object of type '%s' has no len()", typeName(v))
	}
	return n
}

// iterate gives the items of v one by one; false if v cannot be iterated.
func (x *state) iterate(v value) (next func() (value, bool), ok bool) {
	count := func(n int, at func(int) value) func() (value, bool) {
		i := -1
		return func() (value, bool) {
			if i++; i >= n {
				return nil, false
			}
			x.step(1)
			return at(i), true
		}
	}
	switch v := v.(type) {
	case *list:
		return count(len(v.items), func(i int) value { return v.items[i] }), true
	case *dict:
		return count(len(v.entries), func(i int) value { return v.entries[i].key }), true
	case *view:
		return count(len(v.d.entries), v.at), true
	case *interval:
		return count(int(v.length()), func(i int) value { return v.start + int64(i)*v.step }), true
	case text:
		rest := v
		return func() (value, bool) {
			if rest.s == "" {
				return nil, false
			}
			x.step(1)
			n := offset(rest.s, 1)
			c := v.cut(len(v.s)-len(rest.s), len(v.s)-len(rest.s)+n)
			rest.s = rest.s[n:]
			c.safe = false
			return c, true
		}, true
	case *generator:
		return v.next, true
	case *undefined:
		return func() (value, bool) { return nil, false }, true
	case *loop:
		return func() (value, bool) {
			item, ok := v.advance()
			return &list{items: []value{item, v}, tuple: true}, ok
		}, true
	}
	return nil, false
}

func (x *state) mustIterate(v value) func() (value, bool) {
	next, ok := x.iterate(v)
	if !ok {
		x.fail("'%s' object is not iterable", typeName(v))
	}
	return next
}

// collect is the items of list(v).
func (x *state) collect(v value) []value {
	if l, ok := v.(*list); ok {
		return l.items
	}
	var items []value
	next := x.mustIterate(v)
	for item, ok := next(); ok; item, ok = next() {
		x.item()
		items = append(items, item)
	}
	return items
}

// number kinds of v: an integer (bools are some) or a float.
func integer(v value) (*big.Int, bool) {
	switch v := v.(type) {
	case bool:
		if v {
			return big.NewInt(1), true
		}
		return new(big.Int), true
	case int64:
		return big.NewInt(v), true
	case *big.Int:
		return v, true
	}
	return nil, false
}

// small is v as an int64, for those that are one or a bool.
func small(v value) (int64, bool) {
	switch v := v.(type) {
	case bool:
		if v {
			return 1, true
		}
		return 0, true
	case int64:
		return v, true
	}
	return 0, false
}

// shrink makes an int64 of what fits.
func shrink(n *big.Int) value {
	if n.IsInt64() {
		return n.Int64()
	}
	return n
}

// float is a number as a float64.
func float(v value) (float64, bool) {
	switch v := v.(type) {
	case float64:
		return v, true
	case *big.Int:
		f, _ := new(big.Float).SetInt(v).Float64()
		return f, true
	}
	n, ok := small(v)
	return float64(n), ok
}

// compareNumbers is -1, 0 or 1; 2 if one of them is not a number that can be
// ordered (NaN); false if one is no number at all.
func (x *state) compareNumbers(a, b value) (int, bool) {
	if i, ok := small(a); ok {
		if j, ok := small(b); ok {
			switch {
			case i < j:
				return -1, true
			case i > j:
				return 1, true
			}
			return 0, true
		}
	}
	exact := func(v value) (*big.Float, bool, bool) {
		if f, ok := v.(float64); ok {
			if math.IsNaN(f) {
				return nil, false, true
			}
			return big.NewFloat(f), true, true
		}
		n, ok := integer(v)
		if !ok {
			return nil, false, false
		}
		x.step(n.BitLen() / 32)
		return new(big.Float).SetInt(n), true, true
	}
	m, orderedA, ok := exact(a)
	if !ok {
		return 0, false
	}
	n, orderedB, ok := exact(b)
	if !ok {
		return 0, false
	}
	if !orderedA || !orderedB {
		return 2, true
	}
	return m.Cmp(n), true
}

// equal is a == b.
func (x *state) equal(a, b value) bool {
	x.step(1)
	switch a := a.(type) {
	case nil:
		return b == nil
	case text:
		t, ok := b.(text)
		if ok && len(a.s) == len(t.s) {
			x.step(len(a.s) / 64)
		}
		return ok && a.s == t.s
	case bool, int64, float64, *big.Int:
		c, ok := x.compareNumbers(a, b)
		return ok && c == 0
	case *undefined:
		_, ok := b.(*undefined)
		return ok
	case *list:
		l, ok := b.(*list)
		if !ok || a.tuple != l.tuple || len(a.items) != len(l.items) {
			return false
		}
		if a == l {
			return true
		}
		defer x.enter(1)()
		for i := range a.items {
			if !x.equal(a.items[i], l.items[i]) {
				return false
			}
		}
		return true
	case *dict:
		d, ok := b.(*dict)
		if !ok || len(a.entries) != len(d.entries) {
			return false
		}
		if a == d {
			return true
		}
		defer x.enter(1)()
		for _, e := range a.entries {
			i, ok := d.find(e.hash)
			if !ok || !x.equal(e.value, d.entries[i].value) {
				return false
			}
		}
		return true
	case *interval:
		r, ok := b.(*interval)
		if !ok || a.length() != r.length() {
			return false
		}
		return a.length() == 0 || a.start == r.start && (a.length() == 1 || a.step == r.step)
	}
	return a == b
}

// less is a < b, for which op is the operator to name in an error.
func (x *state) less(a, b value, op string) bool {
	x.step(1)
	x.defined(a)
	x.defined(b)
	if s, ok := a.(text); ok {
		if t, ok := b.(text); ok {
			x.step(min(len(s.s), len(t.s)) / 64)
			return s.s < t.s
		}
	}
	if c, ok := x.compareNumbers(a, b); ok {
		return c == -1
	}
	if l, ok := a.(*list); ok {
		if m, ok := b.(*list); ok && l.tuple == m.tuple {
			defer x.enter(1)()
			for i := range min(len(l.items), len(m.items)) {
				if !x.equal(l.items[i], m.items[i]) {
					return x.less(l.items[i], m.items[i], op)
				}
			}
			return len(l.items) < len(m.items)
		}
	}
	if op == ">" || op == ">=" { // less was asked the other way round
		a, b = b, a
	}
	x.fail("'%s' not supported between instances of '%s' and '%s'", op, typeName(a), typeName(b))
	return false
}

// compare is a op b.
func (x *state) compare(op string, a, b value) bool {
	switch op {
	case "==":
		return x.equal(a, b)
	case "!=":
		return !x.equal(a, b)
	case "in":
		return x.contains(b, a)
	case "not in":
		return !x.contains(b, a)
	case "<":
		return x.less(a, b, op)
	case ">":
		return x.less(b, a, op)
	}
	if c, ok := x.compareNumbers(a, b); ok && c == 2 {
		return false
	}
	if op == "<=" {
		return !x.less(b, a, ">=") // the other way round in the error, too
	}
	return !x.less(a, b, "<=")
}

// contains is v in container.
func (x *state) contains(container, v value) bool {
	switch c := container.(type) {
	case text:
		t, ok := v.(text)
		if !ok {
			x.fail("'in <string>' requires string as left operand, not %s", typeName(v))
		}
		x.read(c)
		return strings.Contains(c.s, t.s)
	case *dict:
		_, ok := c.find(x.hash(v))
		return ok
	}
	next, ok := x.iterate(container)
	if !ok {
		x.fail("argument of type '%s' is not iterable", typeName(container))
	}
	for item, ok := next(); ok; item, ok = next() {
		if x.equal(item, v) {
			return true
		}
	}
	return false
}

// Hashes of values that are no strings or numbers.
type (
	hashNone      struct{}
	hashUndefined struct{}
	hashBig       string
	hashTuple     string
)

// hash gives equal values equal, comparable Go values.
func (x *state) hash(v value) any {
	x.step(1)
	switch v := v.(type) {
	case nil:
		return hashNone{}
	case text:
		x.step(len(v.s) / 64)
		return v.s
	case bool, int64:
		n, _ := small(v)
		return n
	case *big.Int:
		x.step(v.BitLen() / 4)
		return hashBig(v.String())
	case float64:
		if n := int64(v); float64(n) == v && math.Abs(v) < 1<<62 {
			return n
		}
		return v
	case *undefined:
		return hashUndefined{}
	case *list:
		if v.tuple {
			defer x.enter(1)()
			var b strings.Builder
			for _, item := range v.items {
				h := x.hash(item)
				s := fmt.Sprintf("%T %v", h, h)
				x.charge(len(s))
				fmt.Fprintf(&b, "%d:%s,", len(s), s)
			}
			return hashTuple(b.String())
		}
	case *dict:
	default:
		return v // by identity
	}
	x.fail("unhashable type: '%s'", typeName(v))
	return nil
}

// sort sorts items by keys, stably, as sorted does.
func (x *state) sort(items []value, key func(value) value, reverse bool) []value {
	type keyed struct{ key, item value }
	sorted := make([]keyed, len(items))
	x.charge(64 * len(items))
	for i, item := range items {
		sorted[i] = keyed{key(item), item}
	}
	sort.SliceStable(sorted, func(i, j int) bool {
		if reverse {
			i, j = j, i
		}
		return x.less(sorted[i].key, sorted[j].key, "<")
	})
	out := make([]value, len(items))
	for i := range sorted {
		out[i] = sorted[i].item
	}
	return out
}

// str is str(v).
func (x *state) str(v value) text {
	switch v := v.(type) {
	case text:
		return v
	case *undefined:
		return text{}
	case nil, bool, int64, float64, *big.Int:
		return literal(x.number(v))
	}
	return x.repr(v)
}

// number is what str and repr make of None, bools and numbers.
func (x *state) number(v value) string {
	switch v := v.(type) {
	case nil:
		return "None"
	case bool:
		if v {
			return "True"
		}
		return "False"
	case int64:
		return strconv.FormatInt(v, 10)
	case *big.Int:
		if v.BitLen() > maxDigitBits {
			x.fail("Exceeds the limit (4300 digits) for integer string conversion")
		}
		x.step(v.BitLen() / 8)
		return v.String()
	}
	return reprFloat(v.(float64))
}

// reprFloat is the shortest that reads as f, in Python's spelling.
func reprFloat(f float64) string {
	switch {
	case math.IsInf(f, 1):
		return "inf"
	case math.IsInf(f, -1):
		return "-inf"
	case math.IsNaN(f):
		return "nan"
	}
	s := strconv.FormatFloat(f, 'e', -1, 64)
	exponent, _ := strconv.Atoi(s[strings.IndexByte(s, 'e')+1:])
	if exponent < -4 || exponent >= 16 {
		return s
	}
	s = strconv.FormatFloat(f, 'f', -1, 64)
	if !strings.Contains(s, ".") {
		s += ".0"
	}
	return s
}

// repr is repr(v).
func (x *state) repr(v value) text {
	b := builder{x: x}
	x.writeRepr(&b, v)
	return b.text()
}

func (x *state) writeRepr(b *builder, v value) {
	x.step(1)
	items := func(open string, n int, close string, item func(i int)) {
		defer x.enter(1)()
		b.literal(open)
		for i := range n {
			if i > 0 {
				b.literal(", ")
			}
			item(i)
		}
		b.literal(close)
	}
	switch v := v.(type) {
	case nil, bool, int64, float64, *big.Int:
		b.literal(x.number(v))
	case text:
		if v.safe {
			b.literal("Markup(")
			defer b.literal(")")
		}
		writeReprText(b, v)
	case *list:
		open, end := "[", "]"
		if v.tuple {
			open, end = "(", ")"
			if len(v.items) == 1 {
				end = ",)"
			}
		}
		items(open, len(v.items), end, func(i int) { x.writeRepr(b, v.items[i]) })
	case *dict:
		items("{", len(v.entries), "}", func(i int) {
			x.writeRepr(b, v.entries[i].key)
			b.literal(": ")
			x.writeRepr(b, v.entries[i].value)
		})
	case *view:
		items(v.kind+"([", len(v.d.entries), "])", func(i int) { x.writeRepr(b, v.at(i)) })
	case *interval:
		b.literal(fmt.Sprintf("range(%d, %d", v.start, v.stop))
		if v.step != 1 {
			b.literal(fmt.Sprintf(", %d", v.step))
		}
		b.literal(")")
	case *namespace:
		b.literal("<Namespace ")
		x.writeRepr(b, &v.attrs)
		b.literal(">")
	case *undefined:
		b.literal("Undefined")
	case *macro:
		b.literal("<Macro " + quote(v.def.name) + ">")
	case *loop:
		b.literal(fmt.Sprintf("<LoopContext %d/%d>", v.index0+1, x.loopLength(v)))
	default:
		b.literal("<" + typeName(v) + " object>") // Python would show an address
	}
}

func reprText(t text) string {
	x := state{memory: math.MaxInt, steps: math.MaxInt}
	b := builder{x: &x}
	writeReprText(&b, t)
	return b.buf.String()
}

func writeReprText(b *builder, t text) {
	mark := "'"
	if strings.Contains(t.s, "'") && !strings.Contains(t.s, `"`) {
		mark = `"`
	}
	b.literal(mark)
	b.escapeEach(t, func(r rune) (string, bool) {
		switch {
		case r == '\\' || string(r) == mark:
			return `\` + string(r), true
		case r == '\n':
			return `\n`, true
		case r == '\r':
			return `\r`, true
		case r == '\t':
			return `\t`, true
		case unicode.IsPrint(r):
			return "", false
		case r <= 0xff:
			return fmt.Sprintf(`\x%02x`, r), true
		case r <= 0xffff:
			return fmt.Sprintf(`\u%04x`, r), true
		}
		return fmt.Sprintf(`\U%08x`, r), true
	})
	b.literal(mark)
}
