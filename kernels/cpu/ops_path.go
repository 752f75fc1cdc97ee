package cpu

import (
	"math"
	"unsafe"

	"github.com/estiba/estiba/runtime/tensor"
)

// op is struct op of ops.c.
type op struct {
	y, x, z, w *float32
	n, k       int64
	pairs      int64
	a, b       float32
}

// of is where x begins, of which n are there: kernels do not look.
func of[T any](x []T, n int) *T { return unsafe.SliceData(x[:n:len(x)]) }

// floats are float32 as weights of one row.
func floats(w []float32) Matrix {
	return Matrix{DType: tensor.F32, Rows: 1, Cols: len(w), Data: unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(w))), 4*len(w))}
}

// RMSNorm is the function RMSNorm with weights w [n] of float32, within 4 units in the last place.
func (p Path) RMSNorm(y, x, w []float32, eps, shift float32) {
	if p == PlainGo {
		RMSNorm(y, x, floats(w), eps, shift)
		return
	}
	a := op{y: of(y, len(x)), x: of(x, len(x)), w: of(w, len(x)), n: int64(len(x)), a: eps, b: shift}
	rmsNorm(p, unsafe.Pointer(&a))
}

// LayerNorm is the function LayerNorm with weights and biases [n] of float32, within 4 units in the last place, or of 4
// where the result is less.
func (p Path) LayerNorm(y, x, w, bias []float32, eps float32) {
	if p == PlainGo {
		LayerNorm(y, x, floats(w), floats(bias), eps)
		return
	}
	a := op{y: of(y, len(x)), x: of(x, len(x)), w: of(w, len(x)), z: of(bias, len(x)), n: int64(len(x)), a: eps}
	layerNorm(p, unsafe.Pointer(&a))
}

// Rotate is the function Rotate, bit for bit.
func (p Path) Rotate(y, x, cos, sin []float32, dim int, neighbours bool) {
	if p == PlainGo {
		Rotate(y, x, cos, sin, dim, neighbours)
		return
	}
	if len(x)%dim != 0 || 2*len(cos) > dim {
		panic("cpu: rotate heads of another size")
	}
	a := op{y: of(y, len(x)), x: of(x, len(x)), z: of(cos, len(cos)), w: of(sin, len(cos)), n: int64(len(x) / dim), k: int64(dim), pairs: int64(len(cos))}
	if neighbours {
		rotateNeighbours(p, unsafe.Pointer(&a))
	} else {
		rotateHalves(p, unsafe.Pointer(&a))
	}
}

// SwiGLU is the function SwiGLU, within 6 units in the last place, or of 1e-30 where the result is less.
func (p Path) SwiGLU(y, gate, up []float32) {
	if p == PlainGo {
		SwiGLU(y, gate, up)
		return
	}
	a := op{y: of(y, len(gate)), x: of(gate, len(gate)), z: of(up, len(gate)), n: int64(len(gate))}
	swiGlu(p, unsafe.Pointer(&a))
}

// GeGLU is the function GeGLU, with what GELU is off.
func (p Path) GeGLU(y, gate, up []float32, tanh bool) {
	if p == PlainGo {
		GeGLU(y, gate, up, tanh)
		return
	}
	a := op{y: of(y, len(gate)), x: of(gate, len(gate)), z: of(up, len(gate)), n: int64(len(gate))}
	if tanh {
		geGluTanh(p, unsafe.Pointer(&a))
	} else {
		geGluErf(p, unsafe.Pointer(&a))
	}
}

// GELU is GELURef within 16 units in the last place, with tanh 64, or of 1e-10 where the result is less.
func (p Path) GELU(y, x []float32, tanh bool) {
	if p == PlainGo {
		GELU(y, x, tanh)
		return
	}
	a := op{y: of(y, len(x)), x: of(x, len(x)), n: int64(len(x))}
	if tanh {
		geluTanh(p, unsafe.Pointer(&a))
	} else {
		geluErf(p, unsafe.Pointer(&a))
	}
}

// SoftCap is the function SoftCap, within 4 units in the last place, or of 1e-7 where the result is less.
func (p Path) SoftCap(y, x []float32, c float32) {
	if p == PlainGo {
		SoftCap(y, x, c)
		return
	}
	a := op{y: of(y, len(x)), x: of(x, len(x)), n: int64(len(x)), a: c}
	softCap(p, unsafe.Pointer(&a))
}

// Add is the function Add, bit for bit.
func (p Path) Add(z, x, y []float32) {
	if p == PlainGo {
		Add(z, x, y)
		return
	}
	a := op{y: of(z, len(x)), x: of(x, len(x)), z: of(y, len(x)), n: int64(len(x))}
	addRows(p, unsafe.Pointer(&a))
}

// Bias computes y [n] = x + w, bit for bit as the function Bias. y may be x.
func (p Path) Bias(y, x, w []float32) { p.Add(y, x, w) }

// Scale is the function Scale, bit for bit.
func (p Path) Scale(y, x []float32, s float32) {
	if p == PlainGo {
		Scale(y, x, s)
		return
	}
	a := op{y: of(y, len(x)), x: of(x, len(x)), n: int64(len(x)), a: s}
	scaleRow(p, unsafe.Pointer(&a))
}

// ExpertSum is the function ExpertSum, bit for bit.
func (p Path) ExpertSum(y, x, shares []float32) {
	if p == PlainGo {
		ExpertSum(y, x, shares)
		return
	}
	a := op{y: of(y, len(y)), x: of(x, len(y)*len(shares)), z: of(shares, len(shares)), n: int64(len(y)), k: int64(len(shares))}
	expertSum(p, unsafe.Pointer(&a))
}

// Softmax makes x [n] exp(x) / sum(exp(x)), in place, within 2e-5 of each number.
func (p Path) Softmax(x []float32) {
	if p == PlainGo {
		softmax(x)
		return
	}
	a := op{y: of(x, len(x)), n: int64(len(x))}
	softmaxRow(p, unsafe.Pointer(&a))
}

func softmax(x []float32) {
	largest, sum := float32(-math.MaxFloat32), float32(0)
	for _, v := range x {
		largest = max(largest, v)
	}
	for i, v := range x {
		x[i] = exp(v - largest)
		sum += x[i]
	}
	for i := range x {
		x[i] /= sum
	}
}

// SoftmaxRef is Softmax by its definition, in float64.
func SoftmaxRef(x []float32) {
	largest, sum := math.Inf(-1), 0.0
	for _, v := range x {
		largest = max(largest, float64(v))
	}
	for _, v := range x {
		sum += math.Exp(float64(v) - largest)
	}
	for i, v := range x {
		x[i] = float32(math.Exp(float64(v)-largest) / sum)
	}
}

// NextAbove is the first place in x, from a place on, whose number is more than low; len(x) if there is none.
// What is not a number is more than nothing.
func (p Path) NextAbove(x []float32, from int, low float32) int {
	if p == PlainGo {
		for i, v := range x[from:] {
			if v > low {
				return from + i
			}
		}
		return len(x)
	}
	if from >= len(x) {
		return len(x)
	}
	a := op{x: of(x[from:], len(x)-from), n: int64(len(x) - from), a: low}
	nextAbove(p, unsafe.Pointer(&a))
	return from + int(a.k)
}

// Argmax is the first place of the largest number of x; -1 if every one is none or minus infinity.
func (p Path) Argmax(x []float32) int {
	if p == PlainGo || len(x) == 0 {
		return argmax(x)
	}
	a := op{x: of(x, len(x)), n: int64(len(x))}
	mostOf(p, unsafe.Pointer(&a))
	if math.IsInf(float64(a.a), -1) {
		return -1
	}
	return p.NextAbove(x, 0, math.Nextafter32(a.a, float32(math.Inf(-1))))
}

func argmax(x []float32) int {
	best, at := float32(math.Inf(-1)), -1
	for i, v := range x {
		if v > best { // false for what is not a number
			best, at = v, i
		}
	}
	return at
}

// Store writes src [n] as halves, the nearest, ties to even: what is beyond ±65504 becomes that,
// and what is not a number stays none.
func (p Path) Store(dst []uint16, src []float32) {
	if p == PlainGo {
		for i, v := range src {
			dst[i] = toF16(v)
		}
		return
	}
	a := op{y: (*float32)(unsafe.Pointer(of(dst, len(src)))), x: of(src, len(src)), n: int64(len(src))}
	storeHalf(p, unsafe.Pointer(&a))
}

// toF16 is one number of Store.
func toF16(x float32) uint16 {
	b := math.Float32bits(x)
	sign := uint16(b >> 16 & 0x8000)
	b &= 0x7fffffff
	switch {
	case b > 0x7f800000:
		return sign | 0x7e00 | uint16(b>>13&0x3ff)
	case b >= math.Float32bits(65504):
		return sign | 0x7bff
	case b >= 0x38800000: // 2^-14, the least normal half
		b += 0xfff + b>>13&1
		return sign | uint16(b>>13-(127-15)<<10)
	}
	// Neighbours of a half have a distance of 2^-24, as the subnormal halves do.
	return sign | uint16(math.Float32bits(math.Float32frombits(b)+0.5)-math.Float32bits(0.5))
}
