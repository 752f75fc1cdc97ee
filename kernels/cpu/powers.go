package cpu

import (
	"math"
	"unsafe"
)

// Powers computes exp((x - most) / temperature) for many x not above most, in float64.
type Powers struct{ Most, Scale float64 } // Scale: in 256ths of a power of two, by the temperature

// PowerLeast is what z of Part is more than: less than exp(-60) of the largest is nothing, since even a million
// of those would not change a sum's last bit.
const PowerLeast = -60 * math.Log2E * powerParts

const (
	powerParts = 256
	powerMagic = 3 << 51 // added to a small number, it rounds it to a whole one
)

var powerBits = int64(math.Float64bits(powerMagic))

// powerTable is 2 to the power of i/powerParts.
var powerTable = func() (t [powerParts]uint64) {
	for i := range t {
		t[i] = math.Float64bits(math.Exp2(float64(i) / powerParts))
	}
	return t
}()

// NewPowers of numbers whose largest is most.
func NewPowers(most float32, temperature float64) Powers {
	return Powers{float64(most), math.Log2E * powerParts / temperature}
}

// Part is z = (x - most) / temperature in 256ths of a power of two, and z as the nearest whole number. ok says
// whether the power is more than nothing; that of most itself is 1 where the temperature is next to nothing, and not ok.
func (e Powers) Part(x float32) (z float64, whole int64, ok bool) {
	z = float64((float64(x) - e.Most) * e.Scale)
	return z, int64(math.Float64bits(z+powerMagic)) - powerBits, z > PowerLeast
}

// Of one, to a relative error of 1.5e-13; 0 for what is not a number and what is next to nothing.
func (e Powers) Of(x float32) float64 {
	z, n, ok := e.Part(x)
	if !ok {
		if float64(x) == e.Most { // 0 times an infinite scale
			return 1
		}
		return 0
	}
	r := float64((z - float64(n)) * (math.Ln2 / powerParts))
	power := math.Float64frombits(powerTable[n&(powerParts-1)] + uint64(n>>8)<<52)
	p := 0.5 + float64(r*(1.0/6))
	p = 1 + float64(r*p)
	p = 1 + float64(r*p)
	return power * p
}

// Powers writes e.Of of each number of x to dst, the same on every path.
func (p Path) Powers(dst []float64, x []float32, e Powers) {
	if p == PlainGo {
		for i, v := range x {
			dst[i] = e.Of(v)
		}
		return
	}
	a := struct {
		y           *float64
		x           *float32
		table       *uint64
		n           int64
		most, scale float64
	}{of(dst, len(x)), of(x, len(x)), &powerTable[0], int64(len(x)), e.Most, e.Scale}
	powersOf(p, unsafe.Pointer(&a))
}
