package cpu

import (
	"fmt"
	"math"
	"unsafe"

	"github.com/estiba/estiba/runtime/tensor"
)

// PanelRows is how many rows of weights lie interleaved in a panel: the lanes of a vector.
const PanelRows = 16

// Packed is weights [Rows, Cols] in panels of PanelRows rows, the last filled up with rows of zeros.
// A format's panels are described where its entry in formats is made.
type Packed struct {
	DType      tensor.DType
	Rows, Cols int
	Data       []byte // aligned to 64 bytes, PackedBytes long
}

// format is how the panels of a DType are laid out, in plain Go, one lane (a row) at a time, and the
// kernels that read and write them.
type format struct {
	panelBytes func(cols int) int                      // a multiple of 64
	pack       func(panel, row []byte, cols, lane int) // lane of a panel of zeros, from a row of a checkpoint

	// Of formats without blocks: column k of a lane.
	number func(panel []byte, k, lane int) float32

	// Of block formats, which are s*(q-offset) + m: 32 columns of a lane, the group-th of them.
	group  func(q *[32]uint8, panel []byte, cols, group, lane int) (s [2]float32, m float32)
	halves bool // the first and the last 16 columns of a group have scales of their own, s[0] and s[1]; else s[0] is all's
	least  bool // there is an m
	offset int32

	packKernel kernel // one panel of 16 rows, which may lie in a mapped file
}

var formats = [...]*format{
	tensor.F32:  &formatF32,
	tensor.F16:  &formatF16,
	tensor.BF16: &formatBF16,
	tensor.Q8_0: &formatQ80,
	tensor.Q4_0: &formatQ40,
	tensor.Q4_1: &formatQ41,
	tensor.Q5_0: &formatQ50,
	tensor.Q5_1: &formatQ51,
	tensor.Q4_K: &formatQ4K,
	tensor.Q5_K: &formatQ5K,
	tensor.Q6_K: &formatQ6K,
}

func formatOf(d tensor.DType) *format {
	if d == tensor.Invalid || int(d) >= len(formats) {
		panic(fmt.Sprintf("cpu: no kernel for %v", d))
	}
	return formats[d]
}

// PackedBytes is the size of packed weights: at most 5 % more than a checkpoint's where rows and cols are large.
func PackedBytes(d tensor.DType, rows, cols int) int64 {
	return int64((rows+PanelRows-1)/PanelRows) * int64(formatOf(d).panelBytes(cols))
}

// Panels is how many panels there are.
func (w Packed) Panels() int { return (w.Rows + PanelRows - 1) / PanelRows }

func (w Packed) panel(i int) []byte {
	n := formatOf(w.DType).panelBytes(w.Cols)
	return w.Data[i*n : (i+1)*n : len(w.Data)]
}

// Pack makes the panels from to to of dst, which is as large as src.
func (p Path) Pack(dst Packed, src Matrix, from, to int) {
	f := formatOf(dst.DType)
	if dst.DType != src.DType || dst.Rows != src.Rows || dst.Cols != src.Cols || src.Cols%src.DType.Block() != 0 {
		panic(fmt.Sprintf("cpu: pack %v [%d, %d] as %v [%d, %d]", src.DType, src.Rows, src.Cols, dst.DType, dst.Rows, dst.Cols))
	}
	if uintptr(unsafe.Pointer(unsafe.SliceData(dst.Data)))%64 != 0 {
		panic("cpu: pack to what is not aligned to 64 bytes")
	}
	size := int(src.DType.Bytes(int64(src.Cols)))
	a := &packArgs{stride: int64(size), cols: int64(src.Cols)}
	for i := from; i < to; i++ {
		panel, first := dst.panel(i), i*PanelRows
		if p != PlainGo && first+PanelRows <= src.Rows {
			a.panel, a.rows = unsafe.SliceData(panel), of(src.Data[first*size:], PanelRows*size)
			f.packKernel(p, unsafe.Pointer(a))
			continue
		}
		clear(panel)
		for lane := range min(PanelRows, src.Rows-first) {
			f.pack(panel, src.row(first+lane, 0), src.Cols, lane)
		}
	}
}

// packArgs is struct pack of pack.h.
type packArgs struct {
	panel, rows  *byte
	stride, cols int64 // bytes between rows, columns
}

// Row writes row i [Cols] as float32 to dst: what Matrix.Row gives before packing.
func (w Packed) Row(dst []float32, i int) {
	f := formatOf(w.DType)
	panel, lane := w.panel(i/PanelRows), i%PanelRows
	dst = dst[:w.Cols]
	if f.number != nil {
		for k := range dst {
			dst[k] = f.number(panel, k, lane)
		}
		return
	}
	var q [32]uint8
	for g := 0; g < len(dst)/32; g++ {
		s, m := f.group(&q, panel, w.Cols, g, lane)
		for k, to := 0, dst[32*g:32*g+32]; k < len(to); k++ {
			scale := s[0]
			if f.halves && k >= 16 {
				scale = s[1]
			}
			to[k] = float32(scale * float32(int32(q[k])-f.offset))
			if f.least {
				to[k] += m
			}
		}
	}
}

// fused is a*b + c, rounded once.
func fused(a, b, c float32) float32 {
	p := float64(a) * float64(b) // exact
	s := p + float64(c)
	if s-s != 0 || s == 0 {
		return float32(s)
	}
	// The sum rounded to odd is as good as the exact one when it is rounded again.
	t := s - p
	rest := (p - (s - t)) + (float64(c) - t)
	if bits := math.Float64bits(s); rest != 0 && bits&1 == 0 {
		if (rest > 0) == (s > 0) {
			bits++
		} else {
			bits--
		}
		s = math.Float64frombits(bits)
	}
	return float32(s)
}
