package template

import (
	"fmt"
	"math"
	"math/big"
	"strconv"
	"strings"
	"unicode/utf8"
)

// maxWidth bounds what one formatted value may be padded to.
const maxWidth = 1 << 20

// printf is layout % v.
func (x *state) printf(layout text, v value) text {
	b := builder{x: x}
	tuple, isTuple := v.(*list)
	isTuple = isTuple && tuple.tuple
	mapping, isMapping := v.(*dict)
	used := 0
	next := func() value {
		if isTuple {
			if used >= len(tuple.items) {
				x.fail("not enough arguments for format string")
			}
			used++
			return tuple.items[used-1]
		}
		if used++; used > 1 {
			x.fail("not enough arguments for format string")
		}
		return v
	}
	named := false
	s := layout.s
	at := 0
	for {
		i := strings.IndexByte(s[at:], '%')
		if i < 0 {
			break
		}
		b.add(layout.cut(at, at+i))
		at += i + 1
		x.step(1)
		char := func() byte {
			if at >= len(s) {
				x.fail("incomplete format")
			}
			at++
			return s[at-1]
		}
		c := char()
		arg := next
		if c == '(' {
			end := strings.IndexByte(s[at:], ')')
			if end < 0 {
				x.fail("incomplete format key")
			}
			if !isMapping {
				x.fail("format requires a mapping")
			}
			key := s[at : at+end]
			found, ok := mapping.get(key)
			if !ok {
				x.fail("%s", quote(key))
			}
			arg = func() value { return found }
			named = true
			at += end + 1
			c = char()
		}
		f := layoutSpec{fill: " ", align: '>', precision: -1}
		for strings.IndexByte("#0- +", c) >= 0 {
			switch c {
			case '#':
				f.alternate = true
			case '0':
				f.zero = true
			case '-':
				f.align = '<'
			case '+':
				f.sign = '+'
			case ' ':
				if f.sign == 0 {
					f.sign = ' '
				}
			}
			c = char()
		}
		size := func() int {
			if c == '*' {
				n := x.intArg("format", arg())
				c = char()
				if n < 0 {
					f.align = '<'
					n = -n
				}
				return int(min(n, maxWidth+1))
			}
			n := 0
			for decimal(c) {
				n = min(10*n+int(c-'0'), maxWidth+1)
				c = char()
			}
			return n
		}
		f.width = size()
		if c == '.' {
			c = char()
			f.precision = size()
		}
		for c == 'h' || c == 'l' || c == 'L' {
			c = char()
		}
		f.kind = c
		if c == '%' {
			b.literal("%")
			continue
		}
		x.printOne(&b, f, arg())
	}
	b.add(layout.cut(at, len(s)))
	if isTuple && used < len(tuple.items) || !isTuple && used == 0 && !named && !subscriptable(v) {
		x.fail("not all arguments converted during string formatting")
	}
	return b.text()
}

// subscriptable says whether Python takes v for a mapping, of which printf need
// not use anything.
func subscriptable(v value) bool {
	switch v.(type) {
	case *dict, *list, *interval, *undefined:
		return true
	}
	return false
}

// printOne writes v as one directive of printf says.
func (x *state) printOne(b *builder, f layoutSpec, v value) {
	switch f.kind {
	case 's', 'r', 'a':
		t := x.str(v)
		if f.kind != 's' {
			t = x.repr(v)
		}
		f.zero = false
		x.pad(b, f, x.cutTo(t, f.precision))
		return
	case 'c':
		if t, ok := v.(text); ok && t.length() == 1 {
			x.pad(b, f, t)
			return
		}
		n, ok := small(v)
		if !ok || n < 0 || n > utf8.MaxRune {
			x.fail("%%c requires int or char")
		}
		x.pad(b, f, literal(string(rune(n))))
		return
	}
	x.defined(v)
	switch f.kind {
	case 'd', 'i', 'u':
		if g, ok := v.(float64); ok {
			v = x.truncate(g)
		}
		f.kind = 'd'
	case 'o', 'x', 'X', 'e', 'E', 'f', 'F', 'g', 'G':
	default:
		x.fail("unsupported format character '%c' (0x%x)", f.kind, f.kind)
	}
	if !isNumber(x, v) {
		x.fail("%%%c format: a real number is required, not %s", f.kind, typeName(v))
	}
	if f.kind == 'd' || f.kind == 'o' || f.kind|0x20 == 'x' {
		if f.precision >= 0 { // at least so many digits
			n, ok := integer(v)
			if !ok {
				x.fail("%%%c format: an integer is required, not %s", f.kind, typeName(v))
			}
			inner := f
			inner.width, inner.precision, inner.zero = 0, -1, false
			sign, digits := x.integerDigits(inner, n)
			x.charge(min(f.precision, maxWidth+1))
			digits = strings.Repeat("0", max(0, min(f.precision, maxWidth)-len(digits))) + digits
			x.pad(b, f, literal(sign+digits))
			return
		}
		if _, ok := integer(v); !ok {
			x.fail("%%%c format: an integer is required, not %s", f.kind, typeName(v))
		}
	}
	x.formatNumber(b, f, v)
}

// layoutSpec is how a value is written: what printf's directives and
// str.format's specifications have in common.
type layoutSpec struct {
	fill      string
	align     byte // '<' '>' '^' '=', 0 for what the type asks for
	sign      byte // '+' ' ' 0
	alternate bool
	zero      bool
	width     int
	group     byte // ',' '_' 0
	precision int  // -1: not given
	kind      byte // 0: not given
}

func (x *state) cutTo(t text, characters int) text {
	if characters < 0 {
		return t
	}
	return t.cut(0, offset(t.s, characters))
}

// pad writes t in its width.
func (x *state) pad(b *builder, f layoutSpec, t text) {
	if f.width > maxWidth {
		x.limitError("a width of more than %d", maxWidth)
	}
	n := f.width - t.length()
	if n <= 0 {
		b.add(t)
		return
	}
	x.charge(n * len(f.fill))
	fill := func(n int) { b.literal(strings.Repeat(f.fill, n)) }
	switch f.align {
	case '<':
		b.add(t)
		fill(n)
	case '^':
		fill(n / 2)
		b.add(t)
		fill(n - n/2)
	default:
		fill(n)
		b.add(t)
	}
}

// integerDigits is the sign, with a prefix, and the digits of n.
func (x *state) integerDigits(f layoutSpec, n *big.Int) (sign, digits string) {
	if n.BitLen() > maxDigitBits {
		x.fail("Exceeds the limit (4300 digits) for integer string conversion")
	}
	x.step(n.BitLen() / 8)
	base, prefix := 10, ""
	switch f.kind {
	case 'b':
		base, prefix = 2, "0b"
	case 'o':
		base, prefix = 8, "0o"
	case 'x', 'X':
		base, prefix = 16, "0"+string(f.kind)
	}
	digits = new(big.Int).Abs(n).Text(base)
	if f.kind == 'X' {
		digits = strings.ToUpper(digits)
	}
	switch {
	case n.Sign() < 0:
		sign = "-"
	case f.sign != 0:
		sign = string(f.sign)
	}
	if f.alternate {
		sign += prefix
	}
	return sign, digits
}

func (x *state) formatNumber(b *builder, f layoutSpec, v value) {
	var sign, digits string
	n, isInt := integer(v)
	integral := isInt
	switch f.kind {
	case 0, 'd', 'n', 'b', 'o', 'x', 'X':
		if !isInt && f.kind != 0 && f.kind != 'n' {
			x.fail("Unknown format code '%c' for object of type '%s'", f.kind, typeName(v))
		}
	default:
		integral = false
	}
	if integral {
		if f.precision >= 0 {
			x.fail("Precision not allowed in integer format specifier")
		}
		sign, digits = x.integerDigits(f, n)
	} else {
		g, _ := float(v)
		if f.precision > maxWidth {
			x.limitError("a precision of more than %d", maxWidth)
		}
		x.charge(max(f.precision, 0))
		sign, digits = formatFloat(f, g)
	}
	if f.group != 0 {
		size := 3
		if f.kind == 'b' || f.kind == 'o' || f.kind == 'x' || f.kind == 'X' {
			size = 4
		}
		x.charge(2*len(digits) + max(f.width, 0)*2)
		width := 0
		if f.zero || f.align == '=' && f.fill == "0" {
			width = min(f.width, maxWidth) - len(sign)
		}
		digits = grouped(digits, string(f.group), size, width)
	}
	if f.align == '=' || f.zero && f.align != '<' {
		if !(f.align == '=') {
			f.fill = "0"
		}
		if f.width > maxWidth {
			x.limitError("a width of more than %d", maxWidth)
		}
		if n := f.width - len(sign) - len(digits); n > 0 {
			x.charge(n)
			digits = strings.Repeat(f.fill, n) + digits
		}
	}
	x.pad(b, f, literal(sign+digits))
}

// grouped puts sep between each size digits before the point, and zeros in front up to the width.
func grouped(digits, sep string, size, width int) string {
	whole := digits
	rest := ""
	if i := strings.IndexFunc(digits, func(r rune) bool { return strings.ContainsRune(".e%", r) }); i >= 0 && size == 3 {
		whole, rest = digits[:i], digits[i:]
	}
	n := len(whole)
	for n+(n-1)/size+len(rest) < width {
		n++
	}
	whole = strings.Repeat("0", n-len(whole)) + whole
	var b strings.Builder
	for i, c := range whole {
		if i > 0 && (len(whole)-i)%size == 0 {
			b.WriteString(sep)
		}
		b.WriteRune(c)
	}
	return b.String() + rest
}

func formatFloat(f layoutSpec, g float64) (sign, digits string) {
	switch {
	case math.Signbit(g) && !math.IsNaN(g):
		sign = "-"
	case f.sign != 0:
		sign = string(f.sign)
	}
	g = math.Abs(g)
	percent := ""
	kind, precision := f.kind, f.precision
	if kind == '%' {
		g *= 100
		kind, percent = 'f', "%"
	}
	large := 'A' <= kind && kind <= 'Z'
	switch {
	case math.IsInf(g, 0):
		digits = "inf"
	case math.IsNaN(g):
		digits = "nan"
	case kind == 0 && precision < 0:
		digits = reprFloat(g)
	default:
		if precision < 0 {
			precision = 6
		}
		switch kind | 0x20 {
		case 'f':
			digits = strconv.FormatFloat(g, 'f', precision, 64)
		case 'e':
			digits = strconv.FormatFloat(g, 'e', precision, 64)
		default:
			digits = general(g, max(precision, 1), f.alternate, kind == 0)
		}
		if f.alternate && precision == 0 && !strings.Contains(digits, ".") {
			digits += "."
		}
	}
	if large {
		digits = strings.ToUpper(digits)
	}
	return sign, digits + percent
}

// general is the "g" format; float says that a whole number keeps ".0".
func general(g float64, precision int, alternate, float bool) string {
	s := strconv.FormatFloat(g, 'e', precision-1, 64)
	i := strings.IndexByte(s, 'e')
	exponent, _ := strconv.Atoi(s[i+1:])
	limit := precision
	if float {
		limit--
	}
	if exponent < -4 || exponent >= limit {
		mantissa := s[:i]
		if !alternate && strings.Contains(mantissa, ".") {
			mantissa = strings.TrimRight(strings.TrimRight(mantissa, "0"), ".")
		}
		return mantissa + s[i:]
	}
	s = strconv.FormatFloat(g, 'f', precision-1-exponent, 64)
	if !alternate && strings.Contains(s, ".") {
		s = strings.TrimRight(strings.TrimRight(s, "0"), ".")
	}
	if float && !strings.Contains(s, ".") {
		s += ".0"
	}
	return s
}

// format is layout.format(…), as Jinja's sandbox does it.
func (x *state) format(layout text, a args) text {
	b := builder{x: x}
	auto := 0
	x.formatInto(&b, layout, a, &auto, 3)
	return b.text()
}

// formatInto writes layout with its fields filled; fields may be nested in
// specifications so many levels deep.
func (x *state) formatInto(b *builder, layout text, a args, auto *int, levels int) {
	if levels == 0 {
		x.fail("Max string recursion exceeded")
	}
	s := layout.s
	for at := 0; at < len(s); {
		x.step(1)
		i := strings.IndexAny(s[at:], "{}")
		if i < 0 {
			b.add(layout.cut(at, len(s)))
			return
		}
		b.add(layout.cut(at, at+i))
		at += i + 1
		if at < len(s) && s[at] == s[at-1] {
			b.add(layout.cut(at, at+1))
			at++
			continue
		}
		if s[at-1] == '}' {
			x.fail("Single '}' encountered in format string")
		}
		open, end := 1, at
		for ; end < len(s) && open > 0; end++ {
			switch s[end] {
			case '{':
				open++
			case '}':
				open--
			}
		}
		if open > 0 {
			if at == len(s) {
				x.fail("Single '{' encountered in format string")
			}
			x.fail("expected '}' before end of string")
		}
		x.formatField(b, layout.cut(at, end-1), a, auto, levels)
		at = end
	}
}

// formatField writes a replacement field: name, "!" and a conversion, ":" and a specification.
func (x *state) formatField(b *builder, field text, a args, auto *int, levels int) {
	name, spec := field.s, text{}
	if i := strings.IndexByte(name, ':'); i >= 0 {
		name, spec = name[:i], field.cut(i+1, len(field.s))
	}
	conversion := ""
	if i := strings.IndexByte(name, '!'); i >= 0 {
		name, conversion = name[:i], name[i+1:]
	}
	v := x.formatArg(name, a, auto)
	switch conversion {
	case "":
	case "s":
		v = x.str(v)
	case "r", "a":
		v = x.repr(v)
	default:
		x.fail("Unknown conversion specifier %s", conversion)
	}
	inner := builder{x: x}
	x.formatInto(&inner, spec, a, auto, levels-1)
	x.formatValue(b, v, inner.buf.String())
}

// formatArg finds what a field names: an argument, and attributes or items of it.
func (x *state) formatArg(name string, a args, auto *int) value {
	end := strings.IndexAny(name, ".[")
	if end < 0 {
		end = len(name)
	}
	first, rest := name[:end], name[end:]
	var v value = missing{}
	i, err := strconv.Atoi(first)
	if first == "" {
		i, err = *auto, nil
		*auto++
	}
	if err == nil {
		if i < 0 || i >= len(a.pos) {
			x.fail("Replacement index %d out of range for positional args tuple", i)
		}
		v = a.pos[i]
	} else {
		for i := range a.names {
			if a.names[i] == first {
				v = a.values[i]
			}
		}
		if !given(v) {
			x.fail("%s", quote(first))
		}
	}
	for rest != "" {
		x.step(1)
		if rest[0] == '.' {
			end := strings.IndexAny(rest[1:], ".[") + 1
			if end == 0 {
				end = len(rest)
			}
			v, rest = x.attribute(v, rest[1:end]), rest[end:]
			continue
		}
		end := strings.IndexByte(rest, ']')
		if rest[0] != '[' || end < 0 {
			x.fail("Missing ']' in format string")
		}
		if n, err := strconv.ParseInt(rest[1:end], 10, 64); err == nil {
			v = x.subscript(v, n)
		} else {
			v = x.subscript(v, literal(rest[1:end]))
		}
		rest = rest[end+1:]
	}
	return v
}

// formatValue is format(v, spec).
func (x *state) formatValue(b *builder, v value, spec string) {
	if spec == "" {
		b.add(x.str(v))
		return
	}
	f := layoutSpec{fill: " ", precision: -1}
	s := spec
	if _, n := utf8.DecodeRuneInString(s); len(s) > n && strings.IndexByte("<>=^", s[n]) >= 0 {
		f.fill, f.align, s = s[:n], s[n], s[n+1:]
	} else if strings.IndexByte("<>=^", s[0]) >= 0 {
		f.align, s = s[0], s[1:]
	}
	take := func(chars string) byte {
		if s != "" && strings.IndexByte(chars, s[0]) >= 0 {
			c := s[0]
			s = s[1:]
			return c
		}
		return 0
	}
	size := func() int {
		n := 0
		for s != "" && decimal(s[0]) {
			n = min(10*n+int(s[0]-'0'), maxWidth+1)
			s = s[1:]
		}
		return n
	}
	if f.sign = take("+- "); f.sign == '-' {
		f.sign = 0
	}
	take("z")
	f.alternate = take("#") != 0
	f.zero = take("0") != 0
	f.width = size()
	f.group = take(",_")
	if take(".") != 0 {
		f.precision = size()
	}
	f.kind = take("bcdeEfFgGnosxX%")
	invalid := func() {
		x.fail("Invalid format specifier '%s' for object of type '%s'", spec, typeName(v))
	}
	if s != "" {
		invalid()
	}
	switch v := v.(type) {
	case text:
		if f.kind != 0 && f.kind != 's' || f.align == '=' || f.sign != 0 {
			invalid()
		}
		if f.zero && f.align == 0 {
			f.fill = "0"
		}
		if f.align == 0 {
			f.align = '<'
		}
		x.pad(b, f, x.cutTo(v, f.precision))
	case bool, int64, *big.Int, float64:
		if flag, ok := v.(bool); ok && f.kind == 0 {
			if f.align == 0 {
				f.align = '>'
			}
			n, _ := small(flag)
			x.formatNumber(b, f, n)
			return
		}
		if f.kind == 's' {
			x.fail("Unknown format code 's' for object of type '%s'", typeName(v))
		}
		if f.kind == 'c' {
			n, ok := small(v)
			if !ok || n < 0 || n > utf8.MaxRune {
				x.fail("%%c arg not in range(0x110000)")
			}
			x.pad(b, f, literal(string(rune(n))))
			return
		}
		if f.align == 0 && !f.zero {
			f.align = '>'
		}
		x.formatNumber(b, f, v)
	default:
		x.fail("unsupported format string passed to %s.__format__", fmt.Sprint(typeName(v)))
	}
}
