package grammar

import (
	"math"
	"math/big"
	"strings"
)

// limits of a number.
type limits struct {
	low, high         *big.Rat // nil: none
	lowOpen, highOpen bool     // the limit itself is not allowed
	multiple          *big.Rat // of which it must be a multiple; nil: of none
	integer           bool
}

const (
	maxDigits     = 20 // on each side of the point, unless a limit has more
	maxNumberSize = 60_000
	// Fifteen digits survive in a float64, so that readers see the same side of a limit.
	exactDigits = 15
	// mostDigits that a side may have: float64's largest number has 309, its smallest with
	// all its digits begins at the 308th.
	mostDigits = 309
)

var largest = new(big.Rat).SetFloat64(math.MaxFloat64)

// some says that there is a number within the limits, however long.
func (l limits) some() bool {
	if l.low == nil || l.high == nil {
		return true
	}
	step := l.multiple
	if one := big.NewRat(1, 1); l.integer && step == nil {
		step = one
	} else if l.integer {
		step = common(step, one)
	}
	least := l.low
	if step != nil {
		// The least multiple of step that is not below.
		n := new(big.Rat).Quo(l.low, step)
		up := new(big.Int).Neg(new(big.Int).Div(new(big.Int).Neg(n.Num()), n.Denom()))
		if least = new(big.Rat).Mul(step, new(big.Rat).SetInt(up)); l.lowOpen && least.Cmp(l.low) == 0 {
			least.Add(least, step)
		}
	}
	c := least.Cmp(l.high)
	return c < 0 || c == 0 && !l.highOpen && !(l.lowOpen && step == nil)
}

// bounded is within a float64's range: a limit beyond it, or none where the other is so large, is its end.
func (l limits) bounded() limits {
	end := func(limit, other *big.Rat, sign int) bool {
		if limit == nil {
			return other != nil && other.Sign() == sign && len(new(big.Int).Quo(other.Num(), other.Denom()).String()) >= mostDigits-1
		}
		return limit.Sign() == sign && new(big.Rat).Abs(limit).Cmp(largest) > 0
	}
	if end(l.high, l.low, 1) {
		l.high, l.highOpen = largest, false
	}
	if end(l.low, l.high, -1) {
		l.low, l.lowOpen = new(big.Rat).Neg(largest), false
	}
	return l
}

// magnitude is the limits of the numbers of one sign, without it.
type magnitude struct {
	low, high         *decimal
	lowOpen, highOpen bool
	never             bool
}

// decimal is a number that is not negative, as its digits.
type decimal struct {
	whole    string // without leading zeros, but "0"
	fraction string // without trailing zeros
}

// newDecimal is exact, or false: no such number has a finite text.
func newDecimal(r *big.Rat) (*decimal, bool) {
	r = new(big.Rat).Abs(r)
	digits, exact := r.FloatPrec()
	if !exact {
		return nil, false
	}
	whole, fraction, _ := strings.Cut(r.FloatString(digits), ".")
	return &decimal{whole, strings.TrimRight(fraction, "0")}, true
}

// magnitudes of the numbers at least 0 (or at most 0, of which -0 is none that integers have).
func (l limits) magnitude(negative bool) (magnitude, bool) {
	low, high, lowOpen, highOpen := l.low, l.high, l.lowOpen, l.highOpen
	if negative {
		neg := func(r *big.Rat) *big.Rat {
			if r == nil {
				return nil
			}
			return new(big.Rat).Neg(r)
		}
		low, high, lowOpen, highOpen = neg(high), neg(low), highOpen, lowOpen
	}
	var m magnitude
	ok := true
	if high != nil {
		if high.Sign() < 0 || high.Sign() == 0 && highOpen {
			return magnitude{never: true}, true
		}
		m.high, ok = newDecimal(high)
		m.highOpen = highOpen
	}
	if low != nil && ok && (low.Sign() > 0 || low.Sign() == 0 && lowOpen) {
		m.low, ok = newDecimal(low)
		m.lowOpen = lowOpen
	}
	return m, ok
}

// digits is the state of reading a number.
type digits struct {
	phase     uint8 // 0 start, 1 after -, 2 after a 0, 3 within the whole, 4 after the point, 5 within the fraction
	negative  bool
	count     int16 // digits of this part
	low, high int8  // how what was read compares with the limits
	rest      int32 // of the division by the multiple
}

// comparison with a limit, as far as it was read.
const (
	less    = -1
	same    = 0
	more    = 1
	longer  = 2 // the whole has more digits
	noLimit = 9
)

func against(limit *decimal, c int8, place int, digit byte, fraction bool) int8 {
	if limit == nil {
		return noLimit
	}
	text := limit.whole
	if fraction {
		text = limit.fraction
	} else if place >= len(text) {
		return longer
	}
	if c != same {
		return c
	}
	other := byte('0')
	if place < len(text) {
		other = text[place]
	}
	switch {
	case digit < other:
		return less
	case digit > other:
		return more
	}
	return same
}

// settled is a comparison when the whole is over.
func settled(limit *decimal, c int8, count int) int8 {
	switch {
	case limit == nil:
		return noLimit
	case c == longer:
		return more
	case count < len(limit.whole):
		return less
	}
	return c
}

// number is a node for the numbers within limits, and how many states it took;
// false if there are too many.
func (a *arena) number(l limits) (n id, states int, ok bool) {
	if l.low == nil && l.high == nil && l.multiple == nil {
		if l.integer {
			return a.regexNode(integerPattern, raw), 0, true
		}
		return a.regexNode(numberPattern, raw), 0, true
	}
	l = l.bounded()
	sides := [2]magnitude{}
	for i, negative := range []bool{false, true} {
		m, ok := l.magnitude(negative)
		if !ok {
			return none, 0, false
		}
		sides[i] = m
	}
	fractions := maxDigits
	if l.integer {
		fractions = 0
	}
	modulus, scale := int64(1), 0
	if !l.integer {
		most := mostDigits
		for _, m := range sides {
			for _, d := range []*decimal{m.low, m.high} {
				switch {
				case d == nil || d.whole == "0" && d.fraction == "": // as far from zero as one likes
				case d.whole == "0":
					places := len(d.fraction) - len(strings.TrimLeft(d.fraction, "0")) + exactDigits
					fractions, most = max(fractions, places), min(most, max(places, len(d.fraction)))
				default:
					most = min(most, max(exactDigits-len(d.whole), len(d.fraction), 1))
				}
			}
		}
		fractions = min(fractions, most)
	}
	if l.multiple != nil {
		// A multiple of k / 10^scale has at most scale digits after its point.
		d, ok := newDecimal(l.multiple)
		if !ok || len(d.fraction) > 12 {
			return none, 0, false
		}
		scale = len(d.fraction)
		k, ok := new(big.Int).SetString(d.whole+d.fraction, 10)
		if !ok || !k.IsInt64() || k.Sign() <= 0 || k.Int64() > 10_000 {
			return none, 0, false
		}
		modulus = k.Int64()
		fractions = min(fractions, scale)
	}
	powers := make([]int64, scale+1) // 10^i modulo
	for i := range powers {
		powers[i] = 1 % modulus
		if i > 0 {
			powers[i] = powers[i-1] * 10 % modulus
		}
	}
	side := func(s digits) *magnitude {
		if s.negative {
			return &sides[1]
		}
		return &sides[0]
	}
	step := func(s digits, b byte) (digits, bool) {
		m := side(s)
		switch {
		case b == '-':
			if s.phase != 0 {
				return s, false
			}
			return digits{phase: 1, negative: true}, true
		case b == '.':
			if fractions == 0 || s.phase != 2 && s.phase != 3 {
				return s, false
			}
			s.low, s.high = settled(m.low, s.low, int(s.count)), settled(m.high, s.high, int(s.count))
			s.phase, s.count = 4, 0
			return s, true
		case s.phase == 2:
			return s, false
		case s.phase <= 1:
			if m.never {
				return s, false
			}
			s.low, s.high = against(m.low, same, 0, b, false), against(m.high, same, 0, b, false)
			s.phase, s.count = 3, 1
			if b == '0' {
				s.phase = 2
			}
		case s.phase == 3:
			if s.count >= maxDigits && (m.high == nil || int(s.count) >= len(m.high.whole)) && (m.low == nil || int(s.count) >= len(m.low.whole)) || s.count == mostDigits {
				return s, false
			}
			s.low, s.high = against(m.low, s.low, int(s.count), b, false), against(m.high, s.high, int(s.count), b, false)
			s.count++
			if s.high == longer {
				return s, false
			}
		default:
			if int(s.count) >= fractions {
				return s, false
			}
			s.low, s.high = against(m.low, s.low, int(s.count), b, true), against(m.high, s.high, int(s.count), b, true)
			s.phase = 5
			s.count++
		}
		s.rest = int32((int64(s.rest)*10 + int64(b-'0')) % modulus)
		return s, true
	}
	end := func(s digits) bool {
		if s.phase != 2 && s.phase != 3 && s.phase != 5 {
			return false
		}
		m := side(s)
		low, high, places := s.low, s.high, 0
		if s.phase == 5 {
			places = int(s.count)
		} else {
			low, high = settled(m.low, low, int(s.count)), settled(m.high, high, int(s.count))
		}
		if low == same && m.low != nil && len(m.low.fraction) > places {
			low = less
		}
		if high == same && m.high != nil && len(m.high.fraction) > places {
			high = less
		}
		if m.low != nil && (low < same || low == same && m.lowOpen) || m.high != nil && (high > same || high == same && m.highOpen) {
			return false
		}
		if l.multiple != nil && int64(s.rest)*powers[scale-places]%modulus != 0 {
			return false
		}
		if s.negative && s.phase == 2 && l.integer {
			return false // -0 is no integer to many readers
		}
		return true
	}
	d, err := explore(digits{}, "-0123456789.", step, end, maxNumberSize)
	if err != nil {
		return none, 0, false
	}
	options := []id{a.automaton(d, raw)}
	if !l.integer && l.multiple == nil {
		// Numbers near zero are written with an exponent by many encoders.
		one := big.NewRat(1, 1)
		minus := big.NewRat(-1, 1)
		if (l.low == nil || l.low.Sign() <= 0) && (l.high == nil || l.high.Cmp(one) >= 0) {
			options = append(options, a.regexNode(`[1-9](?:\.[0-9]{1,20})?[eE]-(?:0?[1-9]|[1-9][0-9]|[12][0-9]{2}|30[0-7])`, raw))
		}
		if (l.high == nil || l.high.Sign() >= 0) && (l.low == nil || l.low.Cmp(minus) <= 0) {
			options = append(options, a.regexNode(`-[1-9](?:\.[0-9]{1,20})?[eE]-(?:0?[1-9]|[1-9][0-9]|[12][0-9]{2}|30[0-7])`, raw))
		}
	}
	return a.or(options), len(d.accept), true
}

// common is the least number that is a multiple of both.
func common(x, y *big.Rat) *big.Rat {
	// lcm(a/b, c/d) = lcm(a, c) / gcd(b, d) in lowest terms.
	gcd := new(big.Int).GCD(nil, nil, x.Num(), y.Num())
	lcm := new(big.Int).Mul(new(big.Int).Quo(x.Num(), gcd), y.Num())
	return new(big.Rat).SetFrac(lcm, new(big.Int).GCD(nil, nil, x.Denom(), y.Denom()))
}
