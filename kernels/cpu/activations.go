package cpu

import (
	"encoding/binary"
	"math"
	"unsafe"

	"golang.org/x/sys/cpu"

	"github.com/estiba/estiba/runtime/tensor"
)

// Form is how rows of activations are written for a product.
type Form uint8

// The forms.
//
//	Float32  the numbers themselves
//	BFloat16 rounded to nearest, ties to even; a row is filled up with zeros to a multiple of 32
//	Int8     for each 32 columns a record of 48 bytes: 32 signed bytes q; a float32 scale; an int32, -128 times
//	         the sum of q; a float32, scale times the sum of q; an int32, -128 times the sum of the first 16 q
//
// Int8's scale is the largest magnitude over 127, and q is rounded to nearest, ties to even. A group whose
// numbers are all smaller than 2^-100 is taken as zeros. Where a number is infinite or none, the scale is no
// number and q are zeros: all that the row is multiplied by becomes no number.
const (
	Float32 Form = iota
	BFloat16
	Int8
)

// Rows is activations [N, Cols] in a form; Cols is a multiple of 32 in Int8.
type Rows struct {
	Form    Form
	N, Cols int
	Data    []byte // aligned to 64 bytes, RowsBytes long
}

// record is the bytes of 32 columns of a row in form Int8.
const record = 48

// RowsBytes is the size of n rows.
func RowsBytes(f Form, n, cols int) int { return n * rowBytes(f, cols) }

func rowBytes(f Form, cols int) int {
	switch f {
	case Int8:
		return cols / 32 * record
	case BFloat16:
		return (cols + 31) / 32 * 64
	}
	return 4 * cols
}

// fewRows is how many rows are multiplied by panels as they are packed.
const fewRows = 8

// Form is what a product of so many rows with weights d takes.
func (p Path) Form(d tensor.DType, rows int) Form {
	many := rows > fewRows
	switch {
	case d == tensor.F32:
		return Float32
	case many && p == AMX:
		return BFloat16
	case d == tensor.F16 || d == tensor.BF16:
		if many && p.multipliesBF16() {
			return BFloat16
		}
		return Float32
	}
	return Int8
}

func (p Path) multipliesBF16() bool { return p >= AVX512 && cpu.X86.HasAVX512BF16 }

// takes says whether there is a product of rows in form f with weights d.
func (p Path) takes(f Form, d tensor.DType) bool {
	blocks := formatOf(d).number == nil
	switch f {
	case Float32:
		return !blocks || p == PlainGo
	case BFloat16:
		return p == PlainGo || d != tensor.F32 && (p == AMX || !blocks && p.multipliesBF16())
	}
	return blocks
}

// Prepare writes the rows from to to of x [N, Cols] in dst's form. In Float32 there is nothing to do: there
// dst.Data is the memory of x.
func (p Path) Prepare(dst Rows, x []float32, from, to int) {
	if dst.Form == Float32 || from >= to {
		return
	}
	size := rowBytes(dst.Form, dst.Cols)
	y, x := dst.Data[from*size:to*size:len(dst.Data)], x[from*dst.Cols:to*dst.Cols:len(x)]
	if p == PlainGo {
		row := prepareInt8Ref
		if dst.Form == BFloat16 {
			row = prepareBFloat16Ref
		}
		for ; len(y) > 0; y, x = y[size:], x[dst.Cols:] {
			row(y[:size], x[:dst.Cols])
		}
		return
	}
	a := prepareArgs{unsafe.SliceData(y), unsafe.SliceData(x), int64(to - from), int64(dst.Cols)}
	if dst.Form == BFloat16 {
		prepareBFloat16(p, unsafe.Pointer(&a))
	} else {
		prepareInt8(p, unsafe.Pointer(&a))
	}
}

// prepareArgs is struct prepare of prepare.c.
type prepareArgs struct {
	dst        *byte
	x          *float32
	rows, cols int64
}

// prepareInt8Ref is one row of Prepare, in plain Go.
func prepareInt8Ref(dst []byte, x []float32) {
	for ; len(x) >= 32; dst, x = dst[record:], x[32:] {
		largest := uint32(0)
		for _, v := range x[:32] {
			largest = max(largest, math.Float32bits(v)&^(1<<31))
		}
		inverse, scale := float32(0), float32(0)
		switch most := math.Float32frombits(largest); {
		case most >= 0x1p-100 && most <= math.MaxFloat32:
			inverse, scale = 127/most, most/127
		case !(most < 1):
			scale = math.Float32frombits(0x7fc00000)
		}
		var sums [2]int32
		for k, v := range x[:32] {
			q := int8(0)
			if inverse != 0 {
				q = int8(math.RoundToEven(float64(v * inverse)))
			}
			dst[k] = byte(q)
			sums[k/16] += int32(q)
		}
		sum := sums[0] + sums[1]
		binary.LittleEndian.PutUint32(dst[32:], math.Float32bits(scale))
		binary.LittleEndian.PutUint32(dst[36:], uint32(-128*sum))
		binary.LittleEndian.PutUint32(dst[40:], math.Float32bits(scale*float32(sum)))
		binary.LittleEndian.PutUint32(dst[44:], uint32(-128*sums[0]))
	}
}

// prepareBFloat16Ref is one row of Prepare, in plain Go.
func prepareBFloat16Ref(dst []byte, x []float32) {
	clear(dst[2*len(x):])
	for k, v := range x {
		binary.LittleEndian.PutUint16(dst[2*k:], toBF16(v))
	}
}

// toBF16 rounds to nearest, ties to even; what is no number stays none.
func toBF16(x float32) uint16 {
	bits := math.Float32bits(x)
	if x != x {
		return uint16(bits>>16 | 0x40)
	}
	return uint16((bits + 0x7fff + bits>>16&1) >> 16)
}

// row i of x.
func (x Rows) row(i int) []byte {
	n := rowBytes(x.Form, x.Cols)
	return x.Data[i*n : (i+1)*n]
}

// float32s is the memory of b.
func float32s(b []byte) []float32 {
	return unsafe.Slice((*float32)(unsafe.Pointer(unsafe.SliceData(b))), len(b)/4)
}
