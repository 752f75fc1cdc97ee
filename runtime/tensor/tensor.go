// Package tensor has the number formats and shapes of the runtime.
package tensor

import (
	"fmt"
	"math"
)

// DType is a format of numbers.
type DType uint8

// The formats that checkpoints may hold.
const (
	Invalid DType = iota
	F32
	F16
	BF16
)

// String is the name that safetensors uses.
func (d DType) String() string {
	switch d {
	case F32:
		return "F32"
	case F16:
		return "F16"
	case BF16:
		return "BF16"
	}
	return fmt.Sprintf("DType(%d)", uint8(d))
}

// Bytes that n elements take.
func (d DType) Bytes(n int64) int64 {
	switch d {
	case F32:
		return 4 * n
	case F16, BF16:
		return 2 * n
	}
	return 0
}

// Shape is the size of each axis, slowest first. A matrix [out, in] has its rows contiguous.
type Shape []int

// Elements is the product of the axes; ok is false when an axis is negative or
// the product does not fit an int64.
func (s Shape) Elements() (n int64, ok bool) {
	n = 1
	for _, d := range s {
		if d < 0 || d != 0 && n > math.MaxInt64/int64(d) {
			return 0, false
		}
		n *= int64(d)
	}
	return n, true
}

// Equal says whether two shapes are the same.
func (s Shape) Equal(t Shape) bool {
	if len(s) != len(t) {
		return false
	}
	for i := range s {
		if s[i] != t[i] {
			return false
		}
	}
	return true
}

// Tensor is a named array in memory that somebody else owns (often a mapped file).
type Tensor struct {
	Name  string
	DType DType
	Shape Shape
	Data  []byte // little-endian, DType.Bytes(elements) long; nil if only the header was read
}
