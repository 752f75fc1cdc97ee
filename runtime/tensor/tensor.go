// Package tensor has the number formats and shapes of the runtime.
package tensor

import (
	"fmt"
	"math"
)

// DType is a format of numbers. Those with a Q in their name are block formats:
// so many neighbours in a row share scales, and are stored together.
type DType uint8

// The formats that checkpoints may hold. The block formats are ggml's, whose
// blocks kernels/cpu describes.
const (
	Invalid DType = iota
	F32
	F16
	BF16
	Q8_0
	Q4_0
	Q4_1
	Q5_0
	Q5_1
	Q4_K
	Q5_K
	Q6_K
	dtypes
)

// formats by DType: bytes for a block of elements.
var formats = [dtypes]struct {
	name         string
	block, bytes int64
}{
	F32: {"F32", 1, 4}, F16: {"F16", 1, 2}, BF16: {"BF16", 1, 2},
	Q8_0: {"Q8_0", 32, 34}, Q4_0: {"Q4_0", 32, 18}, Q4_1: {"Q4_1", 32, 20}, Q5_0: {"Q5_0", 32, 22}, Q5_1: {"Q5_1", 32, 24},
	Q4_K: {"Q4_K", 256, 144}, Q5_K: {"Q5_K", 256, 176}, Q6_K: {"Q6_K", 256, 210},
}

// DTypes is every format there is.
func DTypes() []DType {
	var all []DType
	for d := Invalid + 1; d < dtypes; d++ {
		all = append(all, d)
	}
	return all
}

// ParseDType finds a format by its name, as String gives it.
func ParseDType(name string) (DType, bool) {
	for d := Invalid + 1; d < dtypes; d++ {
		if formats[d].name == name {
			return d, true
		}
	}
	return Invalid, false
}

// String is the name that safetensors and GGUF use.
func (d DType) String() string {
	if d > Invalid && d < dtypes {
		return formats[d].name
	}
	return fmt.Sprintf("DType(%d)", uint8(d))
}

// Block is how many neighbours in a row are stored together: 1, but more in the
// block formats, in which a row has whole blocks only. 0 for Invalid.
func (d DType) Block() int {
	if d < dtypes {
		return int(formats[d].block)
	}
	return 0
}

// Bytes that n elements take, n a multiple of Block. 0 for Invalid.
func (d DType) Bytes(n int64) int64 {
	if d > Invalid && d < dtypes {
		return n / formats[d].block * formats[d].bytes
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
	// Mapped says that Data is a file's pages: who has read them for the last time may tell the
	// system so, and they are read again from the file if that was wrong.
	Mapped bool
}
