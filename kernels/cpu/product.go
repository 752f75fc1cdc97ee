package cpu

import (
	"encoding/binary"
	"fmt"
	"math"
	"unsafe"

	"github.com/estiba/estiba/runtime/tensor"
)

// kernel is compiled from C; its argument is a pointer to a struct.
type kernel func(Path, unsafe.Pointer)

// ScratchBytes is the memory that a product of so many rows with weights d of so many columns works in, at most.
func (p Path) ScratchBytes(d tensor.DType, cols, rows int) int {
	if p == PlainGo {
		return 0
	}
	need := int8Scratch(rows)
	if formatOf(d).number != nil {
		need = floatScratch(cols, rows)
	}
	if p == AMX {
		need = max(need, tileScratch)
	}
	return need
}

// MatMul computes the columns of the panels from to to of y = x wᵀ: element j of row r is y[r*stride+j], j < w.Rows.
// An element depends neither on the other rows nor on from and to, but for the rounding of activations to bfloat16
// where Form asks for it. scratch is ScratchBytes long and aligned to 64 bytes; nobody else uses it meanwhile.
func (p Path) MatMul(y []float32, stride int, x Rows, w Packed, from, to int, scratch []byte) {
	p.product(&product{y: y, stride: stride, n: x.N, x: x, w: w, from: from, to: to, scratch: scratch})
}

// MatMulRows is MatMul of some of x's rows: rows[i] goes to y[yAt[i]+j].
func (p Path) MatMulRows(y []float32, yAt []int, x Rows, rows []int, w Packed, from, to int, scratch []byte) {
	p.product(&product{y: y, yAt: yAt, rows: rows, n: len(rows), x: x, w: w, from: from, to: to, scratch: scratch})
}

// product is what is to be multiplied.
type product struct {
	y        []float32
	stride   int
	yAt      []int // where the rows of y begin; nil: row i at i*stride
	x        Rows
	rows     []int // of x; nil: all
	n        int   // rows
	w        Packed
	from, to int // panels
	scratch  []byte
}

func (p Path) product(m *product) {
	m.check(p)
	switch {
	case m.n == 0 || m.from >= m.to:
	case p == PlainGo:
		m.plain()
	case m.x.Form == Int8:
		m.int8(p)
	default:
		m.float(p)
	}
}

// check panics where a kernel would read or write outside of its arguments.
func (m *product) check(p Path) {
	if !p.takes(m.x.Form, m.w.DType) {
		panic(fmt.Sprintf("cpu: path %v has no product of %v with rows in form %d", p, m.w.DType, m.x.Form))
	}
	room := len(m.y) - min(m.to*PanelRows, m.w.Rows) // for where a row begins
	ok := m.x.Cols == m.w.Cols && m.w.Cols > 0 && m.w.Cols%m.w.DType.Block() == 0 && m.n >= 0 && m.from >= 0 && m.to <= m.w.Panels() &&
		len(m.x.Data) >= RowsBytes(m.x.Form, m.x.N, m.x.Cols) && int64(len(m.w.Data)) >= PackedBytes(m.w.DType, m.w.Rows, m.w.Cols) &&
		(m.rows == nil || len(m.rows) == len(m.yAt))
	for i := 0; ok && i < m.n; i++ {
		at, x := m.yRow(i), m.xRow(i)
		ok = at >= 0 && at <= room && x >= 0 && x < m.x.N
	}
	if !ok {
		panic(fmt.Sprintf("cpu: product of %d of %d rows of %d columns with panels %d-%d of %v [%d, %d] in %d bytes does not fit into %d numbers",
			m.n, m.x.N, m.x.Cols, m.from, m.to, m.w.DType, m.w.Rows, m.w.Cols, len(m.w.Data), len(m.y)))
	}
	if need := p.ScratchBytes(m.w.DType, m.w.Cols, m.n); len(m.scratch) < need {
		panic(fmt.Sprintf("cpu: a product needs %d bytes to work in, not %d", need, len(m.scratch)))
	}
}

func (m *product) yRow(i int) int {
	if m.yAt != nil {
		return m.yAt[i]
	}
	return i * m.stride
}

func (m *product) xRow(i int) int {
	if m.rows != nil {
		return m.rows[i]
	}
	return i
}

// plain is a product in plain Go, the sums in the order of the kernels.
func (m *product) plain() {
	f := formatOf(m.w.DType)
	weights := make([]float32, m.w.Cols)
	for j := m.from * PanelRows; j < min(m.to*PanelRows, m.w.Rows); j++ {
		panel, lane := m.w.panel(j/PanelRows), j%PanelRows
		if m.x.Form != Int8 {
			m.w.Row(weights, j)
		}
		for i := range m.n {
			x, y := m.x.row(m.xRow(i)), &m.y[m.yRow(i)+j]
			switch m.x.Form {
			case Float32:
				*y = dotFloat32(float32s(x), weights)
			case BFloat16:
				*y = dotBF16(x, weights)
			case Int8:
				*y = f.dotInt8(x, panel, m.w.Cols, lane)
			}
		}
	}
}

// dotInt8 is one element: for each group the exact sum of q*x, times the scales' product, and m times scale and
// sum of x, are added by two fused multiply-adds.
func (f *format) dotInt8(x, panel []byte, cols, lane int) float32 {
	acc := float32(0)
	var q [32]uint8
	for g := range cols / 32 {
		r := x[g*record : (g+1)*record]
		scale := math.Float32frombits(binary.LittleEndian.Uint32(r[32:]))
		s, m := f.group(&q, panel, cols, g, lane)
		var sums [2]int32
		for k := range q {
			sums[k/16] += (int32(q[k]) - f.offset) * int32(int8(r[k]))
		}
		if f.halves {
			acc = fused(float32(sums[0]), s[0]*scale, acc)
			acc = fused(float32(sums[1]), s[1]*scale, acc)
		} else {
			acc = fused(float32(sums[0]+sums[1]), s[0]*scale, acc)
		}
		if f.least {
			acc = fused(m, math.Float32frombits(binary.LittleEndian.Uint32(r[40:])), acc)
		}
	}
	return acc
}

// productArgs is struct product of product.h.
type productArgs struct {
	y          *float32
	stride     int64
	yAt        *int
	x          *byte
	xBytes     int64
	rows       *int
	n          int64
	w          *byte
	panelBytes int64
	cols       int64
	columns    int64
	from, to   int64
	scratch    *byte
	format     int64 // of float.h, for those formats
	add        int64 // 1: to what is in y
}

func (m *product) args() productArgs {
	return productArgs{
		unsafe.SliceData(m.y), int64(m.stride), unsafe.SliceData(m.yAt),
		unsafe.SliceData(m.x.Data), int64(rowBytes(m.x.Form, m.x.Cols)), unsafe.SliceData(m.rows), int64(m.n),
		unsafe.SliceData(m.w.Data), int64(formatOf(m.w.DType).panelBytes(m.w.Cols)), int64(m.w.Cols), int64(m.w.Rows), int64(m.from), int64(m.to),
		unsafe.SliceData(m.scratch), int64(m.w.DType - tensor.F32), 0,
	}
}

// int8 multiplies rows of form Int8. With AVX-512 up to 64 rows are as fast by panels as they are packed, and a fifth
// to a half faster where these are in memory (Zen 4); where a group has two scales, 16 rows.
func (m *product) int8(p Path) {
	few := fewRows
	switch halves := formatOf(m.w.DType).halves; {
	case p != AVX2 && halves:
		few = 16
	case p != AVX2:
		few = 64
	}
	a := m.args()
	if m.n > few { // two panels at a time
		a.to -= (a.to - a.from) % 2
		manyInt8(p, m.w.DType, unsafe.Pointer(&a))
		a.from, a.to = a.to, int64(m.to)
	}
	fewInt8(p, m.w.DType, unsafe.Pointer(&a))
}

// fewInt8 and manyInt8 are the kernels that read panels as they are, and that unpack them first. They are called by
// their names, which leaves their arguments on the stack.
func fewInt8(p Path, d tensor.DType, a unsafe.Pointer) {
	switch d {
	case tensor.Q8_0:
		fewQ80(p, a)
	case tensor.Q4_0:
		fewQ40(p, a)
	case tensor.Q4_1:
		fewQ41(p, a)
	case tensor.Q5_0:
		fewQ50(p, a)
	case tensor.Q5_1:
		fewQ51(p, a)
	case tensor.Q4_K:
		fewQ4K(p, a)
	case tensor.Q5_K:
		fewQ5K(p, a)
	case tensor.Q6_K:
		fewQ6K(p, a)
	}
}

func manyInt8(p Path, d tensor.DType, a unsafe.Pointer) {
	switch d {
	case tensor.Q8_0:
		manyQ80(p, a)
	case tensor.Q4_0:
		manyQ40(p, a)
	case tensor.Q4_1:
		manyQ41(p, a)
	case tensor.Q5_0:
		manyQ50(p, a)
	case tensor.Q5_1:
		manyQ51(p, a)
	case tensor.Q4_K:
		manyQ4K(p, a)
	case tensor.Q5_K:
		manyQ5K(p, a)
	case tensor.Q6_K:
		manyQ6K(p, a)
	}
}

// int8Scratch is what MANY of quant.h works in.
func int8Scratch(rows int) int {
	if rows <= fewRows {
		return 0
	}
	const block, tile = 16 * 11 * 128, 4 // the common form of 512 columns of two panels; a tile's rows
	return block + (rows+tile-1)/tile*tile*128
}
