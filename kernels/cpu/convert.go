// Package cpu has the kernels of the CPU backend: one op a function, its shapes in its
// comment, serial, on memory that the caller owns. They are in plain Go, and as methods of
// a Path compiled for the instructions that a processor has (c/, by hack/kernels.sh), which
// are judged by the plain ones. Beside each of these stands a straightforward twin with
// float64 sums, named …Ref, by which it is judged.
//
// Sums have a fixed order that depends on the row alone, so a row's result does
// not depend on what else is computed with it. In plain Go products are rounded before they
// are added (float32(a*b)), so no compiler fuses them differently in two places.
//
// Weights are little-endian bytes as a checkpoint has them, at any alignment, or packed for
// a path. The hosts are little-endian too.
package cpu

import (
	"encoding/binary"
	"fmt"
	"math"
	"unsafe"

	"github.com/estiba/estiba/runtime/tensor"
)

// Matrix is weights [Rows, Cols], rows contiguous, Cols a multiple of the format's
// block. A vector is a matrix of one row.
type Matrix struct {
	DType      tensor.DType
	Rows, Cols int
	Data       []byte // DType.Bytes(Rows*Cols) long
}

// piece of a row that is decoded at once, on the stack. A multiple of lanes and of
// every format's block.
const piece = 256

// row i's numbers from column from on, as bytes; from is a multiple of piece.
func (m Matrix) row(i, from int) []byte {
	at := int(m.DType.Bytes(int64(from)))
	size := int(m.DType.Bytes(int64(m.Cols)))
	return m.Data[i*size+at : (i+1)*size]
}

// Row writes row i [Cols] as float32 to dst.
func (m Matrix) Row(dst []float32, i int) {
	decode(dst[:m.Cols], m.row(i, 0), m.DType)
}

// decode writes the first len(dst) numbers of src, whole blocks. It panics on a
// format that is none, which a backend refuses before.
func decode(dst []float32, src []byte, d tensor.DType) {
	switch d {
	case tensor.F32:
		copy(unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(dst))), 4*len(dst)), src[:4*len(dst)])
	case tensor.F16:
		src = src[:2*len(dst)]
		for i := range dst {
			dst[i] = F16(binary.LittleEndian.Uint16(src[2*i:]))
		}
	case tensor.BF16:
		src = src[:2*len(dst)]
		for i := range dst {
			dst[i] = BF16(binary.LittleEndian.Uint16(src[2*i:]))
		}
	case tensor.Q8_0:
		decodeQ8(dst, src)
	case tensor.Q4_0:
		decodeQ4(dst, src)
	case tensor.Q4_1:
		decodeQ41(dst, src)
	case tensor.Q5_0:
		decodeQ5(dst, src)
	case tensor.Q5_1:
		decodeQ51(dst, src)
	case tensor.Q4_K:
		decodeQ4K(dst, src)
	case tensor.Q5_K:
		decodeQ5K(dst, src)
	case tensor.Q6_K:
		decodeQ6K(dst, src)
	default:
		panic(fmt.Sprintf("cpu: no kernel for %v", d))
	}
}

// F16 is the number with the bits of an IEEE 754 half, without branches and
// without arithmetic on subnormal numbers. Source: Jeroen van der Zijp, Fast
// Half Float Conversions.
func F16(h uint16) float32 {
	upper := h >> 10 // sign and exponent
	return math.Float32frombits(halves.fraction[halves.row[upper]+h&0x3ff] + halves.upper[upper])
}

// halves are the parts of F16's sum: the first 1024 fractions are whole
// subnormal numbers, the others go with an exponent in upper.
var halves = func() (t struct {
	fraction [2048]uint32
	row      [64]uint16 // where fraction's entries for an upper part begin
	upper    [64]uint32
}) {
	for i := range uint32(1024) {
		t.fraction[i] = math.Float32bits(float32(i) / (1 << 24))
		t.fraction[1024+i] = (127-15)<<23 + i<<13
	}
	for i := range uint32(64) {
		exponent := i % 32
		if exponent != 0 {
			t.row[i] = 1024
		}
		if exponent == 31 { // infinity, not a number
			exponent += 255 - 31 - (127 - 15)
		}
		t.upper[i] = i/32<<31 + exponent<<23
	}
	return t
}()

// BF16 is the number with the bits of a bfloat16: the upper half of a float32.
func BF16(h uint16) float32 { return math.Float32frombits(uint32(h) << 16) }

// F16Ref is F16 by its definition.
func F16Ref(h uint16) float32 {
	sign := 1.0
	if h&0x8000 != 0 {
		sign = -1
	}
	exponent, fraction := int(h>>10&0x1f), float64(h&0x3ff)
	switch exponent {
	case 0x1f:
		if fraction != 0 {
			return float32(math.NaN())
		}
		return float32(math.Inf(int(sign)))
	case 0:
		return float32(math.Copysign(math.Ldexp(fraction, -24), sign))
	}
	return float32(sign * math.Ldexp(1024+fraction, exponent-25))
}
