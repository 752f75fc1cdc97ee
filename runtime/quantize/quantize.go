// Package quantize makes weights smaller: float32 into any of the formats of
// runtime/tensor, whose blocks kernels/cpu describes and decodes. It is pure.
// Start with Append.
package quantize

import (
	"encoding/binary"
	"fmt"
	"math"

	"github.com/estiba/estiba/runtime/tensor"
)

// Append appends x in a format; len(x) is a multiple of d.Block(). Numbers are
// finite. F16, BF16 and the formats with blocks of 32 round as ggml's reference does,
// to the bit; the K formats search scales of their own for a small squared error.
// It panics on a format that is none.
// Source: ggml's ggml-quants.c and gguf-py's quants.py.
func Append(dst []byte, d tensor.DType, x []float32) []byte {
	if d.Block() == 0 || len(x)%d.Block() != 0 {
		panic(fmt.Sprintf("quantize: %d numbers as %v", len(x), d))
	}
	switch d {
	case tensor.F32:
		for _, v := range x {
			dst = binary.LittleEndian.AppendUint32(dst, math.Float32bits(v))
		}
	case tensor.F16:
		for _, v := range x {
			dst = binary.LittleEndian.AppendUint16(dst, F16(v))
		}
	case tensor.BF16:
		for _, v := range x {
			dst = binary.LittleEndian.AppendUint16(dst, BF16(v))
		}
	default:
		encode := map[tensor.DType]func([]byte, []float32) []byte{
			tensor.Q8_0: appendQ8, tensor.Q4_0: appendQ4, tensor.Q4_1: appendQ41, tensor.Q5_0: appendQ5, tensor.Q5_1: appendQ51,
			tensor.Q4_K: appendQ4K, tensor.Q5_K: appendQ5K, tensor.Q6_K: appendQ6K,
		}[d]
		for ; len(x) > 0; x = x[d.Block():] {
			dst = encode(dst, x[:d.Block()])
		}
	}
	return dst
}

// F16 is the IEEE 754 half nearest to x, ties to even; from 65520 on infinity.
func F16(x float32) uint16 {
	b := math.Float32bits(x)
	sign := uint16(b >> 16 & 0x8000)
	b &= 0x7fffffff
	switch {
	case b > 0x7f800000:
		return sign | 0x7e00
	case b >= math.Float32bits(65520):
		return sign | 0x7c00
	case b >= 0x38800000: // 2^-14, the least normal half
		b += 0xfff + b>>13&1
		return sign | uint16(b>>13-(127-15)<<10)
	}
	// Neighbours of a half have a distance of 2^-24, as the subnormal halves do.
	return sign | uint16(math.Float32bits(math.Float32frombits(b)+0.5)-math.Float32bits(0.5))
}

// BF16 is the bfloat16 nearest to x, ties to even.
func BF16(x float32) uint16 {
	b := math.Float32bits(x)
	if x != x {
		return uint16(b>>16) | 0x40 // stays no number, whatever is cut off
	}
	return uint16((b + 0x7fff + b>>16&1) >> 16)
}

// inverse of a scale, 0 for 0.
func inverse(d float32) float32 {
	if d == 0 {
		return 0
	}
	return 1 / d
}

// largest is the number with the largest magnitude, the first of equals.
func largest(x []float32) float32 {
	most := float32(0)
	for _, v := range x {
		if abs(v) > abs(most) {
			most = v
		}
	}
	return most
}

func abs(x float32) float32 { return math.Float32frombits(math.Float32bits(x) &^ (1 << 31)) }

// clamp cuts off what is behind the point, then bounds it.
func clamp(x float32, most int) uint8 { return uint8(max(0, min(int(x), most))) }

// half appends a half.
func half(dst []byte, x float32) []byte { return binary.LittleEndian.AppendUint16(dst, F16(x)) }

func appendQ8(dst []byte, x []float32) []byte {
	d := abs(largest(x)) / 127
	id := inverse(d)
	dst = half(dst, d)
	for _, v := range x {
		dst = append(dst, byte(int8(math.Round(float64(v*id))))) // halves away from zero
	}
	return dst
}

// symmetric quantizes to levels 0 … 2 zero - 1 that stand for -zero … zero - 1: the number of
// largest magnitude becomes -zero.
func symmetric(x []float32, zero float32) (d float32, q [32]uint8) {
	d = largest(x) / -zero
	id := inverse(d)
	for i, v := range x {
		q[i] = clamp(float32(v*id)+(zero+0.5), int(2*zero)-1)
	}
	return d, q
}

// affine quantizes to levels 0 … most between the least and the largest number.
func affine(x []float32, most float32) (d, least float32, q [32]uint8) {
	least, top := x[0], x[0]
	for _, v := range x {
		least, top = min(least, v), max(top, v)
	}
	d = (top - least) / most
	id := inverse(d)
	for i, v := range x {
		q[i] = clamp(float32((v-least)*id)+0.5, int(most))
	}
	return d, least, q
}

// nibbles appends the low four bits of n pairs (i, i+n) in n bytes.
func nibbles(dst []byte, q []uint8) []byte {
	n := len(q) / 2
	for i := range n {
		dst = append(dst, q[i]&15|q[i+n]<<4)
	}
	return dst
}

// fifths appends the fifth bits of 32 numbers.
func fifths(dst []byte, q *[32]uint8) []byte {
	var bits uint32
	for i, v := range q {
		bits |= uint32(v>>4&1) << i
	}
	return binary.LittleEndian.AppendUint32(dst, bits)
}

func appendQ4(dst []byte, x []float32) []byte {
	d, q := symmetric(x, 8)
	return nibbles(half(dst, d), q[:])
}

func appendQ41(dst []byte, x []float32) []byte {
	d, least, q := affine(x, 15)
	return nibbles(half(half(dst, d), least), q[:])
}

func appendQ5(dst []byte, x []float32) []byte {
	d, q := symmetric(x, 16)
	return nibbles(fifths(half(dst, d), &q), q[:])
}

func appendQ51(dst []byte, x []float32) []byte {
	d, least, q := affine(x, 31)
	return nibbles(fifths(half(half(dst, d), least), &q), q[:])
}
