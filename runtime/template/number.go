package template

import (
	"math"
	"math/big"
	"strconv"
	"strings"
)

// Python refuses to write or read integers of more digits.
const (
	maxDigits    = 4300
	maxDigitBits = 14285 // of that many digits
	maxBits      = 1 << 16
)

// arithmetic is a op b for numbers; false if one of them is none.
func (x *state) arithmetic(op string, a, b value) (value, bool) {
	i, smallA := small(a)
	j, smallB := small(b)
	if smallA && smallB {
		if v, ok := smallArithmetic(op, i, j); ok {
			return v, true
		}
	}
	m, isIntA := integer(a)
	n, isIntB := integer(b)
	if isIntA && isIntB {
		return x.integers(op, m, n), true
	}
	f, okA := float(a)
	g, okB := float(b)
	if !okA || !okB {
		return nil, false
	}
	if isIntA && math.IsInf(f, 0) || isIntB && math.IsInf(g, 0) {
		x.fail("int too large to convert to float")
	}
	return x.floats(op, f, g), true
}

// smallArithmetic does what cannot overflow.
func smallArithmetic(op string, i, j int64) (value, bool) {
	const half = 1 << 62
	if i > -half && i < half && j > -half && j < half {
		switch op {
		case "+":
			return i + j, true
		case "-":
			return i - j, true
		}
	}
	if op == "*" && i > -1<<31 && i < 1<<31 && j > -1<<31 && j < 1<<31 {
		return i * j, true
	}
	if j > 0 && (op == "//" || op == "%") {
		div, mod := i/j, i%j
		if mod < 0 {
			div, mod = div-1, mod+j
		}
		if op == "//" {
			return div, true
		}
		return mod, true
	}
	return nil, false
}

func (x *state) integers(op string, a, b *big.Int) value {
	x.step((a.BitLen() + b.BitLen()) / 64)
	bits := max(a.BitLen(), b.BitLen()) + 1
	switch op {
	case "*":
		bits = a.BitLen() + b.BitLen()
	case "**":
		if b.IsInt64() && b.Sign() >= 0 && a.BitLen() > 1 {
			if b.Int64() > maxBits {
				bits = maxBits + 1
			} else {
				bits = (a.BitLen() - 1) * int(b.Int64())
			}
		}
	}
	if bits > maxBits {
		x.limitError("a number of more than %d bits", maxBits)
	}
	x.charge(bits / 8)
	out := new(big.Int)
	switch op {
	case "+":
		return shrink(out.Add(a, b))
	case "-":
		return shrink(out.Sub(a, b))
	case "*":
		return shrink(out.Mul(a, b))
	case "//", "%":
		if b.Sign() == 0 {
			x.fail("integer division or modulo by zero")
		}
		mod := new(big.Int)
		out.DivMod(a, b, mod) // Euclid's: mod is not negative
		if b.Sign() < 0 && mod.Sign() != 0 {
			mod.Add(mod, b)
			out.Sub(out, big.NewInt(1))
		}
		if op == "//" {
			return shrink(out)
		}
		return shrink(mod)
	case "/":
		if b.Sign() == 0 {
			x.fail("division by zero")
		}
		x.step(a.BitLen() / 64 * b.BitLen() / 64) // a fraction in lowest terms
		f, _ := new(big.Rat).SetFrac(a, b).Float64()
		if math.IsInf(f, 0) {
			x.fail("integer division result too large for a float")
		}
		return f
	}
	// "**"
	if b.Sign() < 0 {
		f, _ := float(shrink(a))
		g, _ := float(shrink(b))
		return x.floats("**", f, g)
	}
	if a.BitLen() <= 1 { // -1, 0, 1 to any power
		if b.Sign() == 0 || a.Sign() > 0 || a.Sign() < 0 && b.Bit(0) == 0 {
			return int64(1)
		}
		return shrink(a)
	}
	x.step(int(b.Int64()))
	return shrink(out.Exp(a, b, nil))
}

func (x *state) floats(op string, f, g float64) value {
	switch op {
	case "+":
		return f + g
	case "-":
		return f - g
	case "*":
		return f * g
	}
	if op == "**" {
		switch {
		case f == 0 && g < 0:
			x.fail("0.0 cannot be raised to a negative power")
		case f < 0 && g != math.Trunc(g) && !math.IsInf(f, 0):
			x.fail("complex numbers are not supported")
		}
		p := math.Pow(f, g)
		if math.IsInf(p, 0) && !math.IsInf(f, 0) && !math.IsInf(g, 0) {
			x.fail("(34, 'Numerical result out of range')")
		}
		return p
	}
	if g == 0 {
		message := map[string]string{"/": "float division by zero", "//": "float floor division by zero", "%": "float modulo"}
		x.fail("%s", message[op])
	}
	if op == "/" {
		return f / g
	}
	mod := math.Mod(f, g)
	div := (f - mod) / g
	if mod != 0 && (g < 0) != (mod < 0) {
		mod += g
		div--
	}
	if op == "%" {
		if mod == 0 {
			return math.Copysign(0, g)
		}
		return mod
	}
	if div == 0 {
		return math.Copysign(0, f/g)
	}
	floor := math.Floor(div)
	if div-floor > 0.5 {
		floor++
	}
	return floor
}

// parseInt is int(s, base), false if s is none.
func parseInt(s string, base int) (value, bool) {
	s = strings.TrimFunc(s, isSpace)
	sign := ""
	if s != "" && (s[0] == '-' || s[0] == '+') {
		sign, s = s[:1], s[1:]
	}
	if len(s) > maxDigits {
		return nil, false
	}
	if len(s) > 2 && s[0] == '0' {
		prefix := map[byte]int{'b': 2, 'o': 8, 'x': 16}[s[1]|0x20]
		if prefix != 0 && (base == prefix || base == 0) {
			base, s = prefix, strings.TrimPrefix(s[2:], "_")
		}
	}
	if base == 0 {
		if strings.Trim(s, "0_") != "" && s[0] == '0' {
			return nil, false
		}
		base = 10
	}
	if s == "" || s[0] == '_' || strings.HasSuffix(s, "_") || strings.Contains(s, "__") || base < 2 || base > 36 {
		return nil, false
	}
	n, ok := new(big.Int).SetString(sign+strings.ReplaceAll(asciiDigits(s), "_", ""), base)
	if !ok {
		return nil, false
	}
	return shrink(n), true
}

// asciiDigits writes decimal digits of other scripts as ASCII, which Python reads alike.
func asciiDigits(s string) string {
	if isASCII(s) {
		return s
	}
	return strings.Map(func(r rune) rune {
		if d := decimalDigit(r); d >= 0 {
			return '0' + rune(d)
		}
		return r
	}, s)
}

// parseFloat is float(s), false if s is none.
func parseFloat(s string) (float64, bool) {
	s = asciiDigits(strings.TrimFunc(s, isSpace))
	switch strings.ToLower(strings.TrimLeft(s, "+-")) {
	case "inf", "infinity", "nan":
	default:
		if strings.ContainsFunc(s, func(r rune) bool { return !strings.ContainsRune("0123456789.eE+-_", r) }) {
			return 0, false
		}
		for i := range len(s) {
			if s[i] == '_' && (i == 0 || i == len(s)-1 || !decimal(s[i-1]) || !decimal(s[i+1])) {
				return 0, false
			}
		}
		s = strings.ReplaceAll(s, "_", "")
	}
	f, err := strconv.ParseFloat(s, 64)
	if err != nil && !math.IsInf(f, 0) {
		return 0, false
	}
	return f, true
}

// truncate is int(f).
func (x *state) truncate(f float64) value {
	switch {
	case math.IsNaN(f):
		x.fail("cannot convert float NaN to integer")
	case math.IsInf(f, 0):
		x.fail("cannot convert float infinity to integer")
	}
	n, _ := big.NewFloat(math.Trunc(f)).Int(nil)
	return shrink(n)
}

// round is round(v, digits), half to even.
func (x *state) round(v value, digits int64) value {
	if n, ok := integer(v); ok {
		if digits >= 0 {
			return shrink(n)
		}
		if digits < -maxDigits {
			return int64(0)
		}
		x.step(int(-digits))
		unit := new(big.Int).Exp(big.NewInt(10), big.NewInt(-digits), nil)
		div, mod := new(big.Int).DivMod(n, unit, new(big.Int))
		twice := new(big.Int).Lsh(mod, 1)
		if c := twice.Cmp(unit); c > 0 || c == 0 && div.Bit(0) == 1 {
			div.Add(div, big.NewInt(1))
		}
		return shrink(div.Mul(div, unit))
	}
	f, ok := v.(float64)
	if !ok {
		x.fail("type %s doesn't define __round__ method", typeName(v))
	}
	if math.IsNaN(f) || math.IsInf(f, 0) || digits > 330 {
		return f
	}
	if digits >= 0 {
		x.step(int(digits))
		r, _ := strconv.ParseFloat(strconv.FormatFloat(f, 'f', int(digits), 64), 64)
		return r
	}
	if digits < -330 {
		return math.Copysign(0, f)
	}
	n, _ := big.NewFloat(math.Trunc(f)).Int(nil)
	whole := x.round(shrink(n), digits)
	if g, _ := float(whole); f == math.Trunc(f) {
		return math.Copysign(g, f)
	}
	// A fraction breaks what would be a tie of the whole number.
	ten := math.Pow(10, float64(-digits))
	return math.RoundToEven(f/ten) * ten
}
