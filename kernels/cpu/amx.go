package cpu

import (
	"encoding/binary"
	"slices"
	"sync"
	"unsafe"

	"github.com/estiba/estiba/runtime/tensor"
)

const (
	tilePanels = 16                    // of which a chunk of columns is unpacked at once
	pairsBytes = chunk * 2 * PanelRows // of a panel's chunk
)

// tileScratch is what tiles works in: pairs, the common form of two panels, at most, and struct tileScratch of amx.h.
const (
	tileScratch = tilePanels*pairsBytes + commonBytes + tileBytes
	commonBytes = chunk / 32 * (2 + 1 + 8) * 2 * 64
	tileBytes   = 64 + 32*(2*PanelRows*4+2*chunk+64)
)

// unpackedArgs is struct unpacked of bf16.c.
type unpackedArgs struct {
	dst, w                *byte
	to, from, panels      int64
	cols                  int64
	halves, offset, least int64
}

// commonArgs is struct common of quant.h.
type commonArgs struct {
	to, w                    *byte
	panelBytes, panels, cols int64
	group, groups            int64
}

// tiles multiplies rows of BFloat16 by weights that are rounded to it, by run: a chunk of columns of tilePanels
// panels is unpacked to pairs, and multiplied by all rows. The tiles belong to one call of run, so Go never switches
// goroutines between them; a signal saves their 8 KiB on its stack, of which Go has 32, and Linux has asked for that
// much before it gave permission.
func (m *product) tiles(p Path, run kernel) {
	a := m.args()
	pairs, rest := m.scratch[:tilePanels*pairsBytes], m.scratch[tilePanels*pairsBytes:]
	a.scratch = unsafe.SliceData(rest[commonBytes:])
	for a.from = int64(m.from); a.from < int64(m.to); a.from = a.to {
		a.to = min(a.from+tilePanels, int64(m.to))
		for k := 0; k < m.w.Cols; k += chunk {
			cols := min(chunk, m.w.Cols-k)
			a.w, a.panelBytes = m.pairs(p, int(a.from), int(a.to), k, cols, pairs, rest)
			a.x = &m.x.Data[2*k]
			a.cols = int64((cols + 31) / 32 * 32)
			a.add = int64(min(k, 1))
			run(p, unsafe.Pointer(&a))
		}
	}
}

// pairs gives columns k to k+cols of panels as pairs of bfloat16, and the bytes between panels; they are filled up
// with zeros to a multiple of 32 columns.
func (m *product) pairs(p Path, from, to, k, cols int, pairs, common []byte) (first *byte, panelBytes int64) {
	f := formatOf(m.w.DType)
	size := f.panelBytes(m.w.Cols)
	u := unpackedArgs{unsafe.SliceData(pairs), nil, pairsBytes, int64(size), int64(to - from), int64(cols), 0, 0, 0}
	switch m.w.DType {
	case tensor.BF16:
		return &m.w.Data[from*size+2*PanelRows*k], int64(size)
	case tensor.F16:
		u.w = &m.w.Data[from*size+2*PanelRows*k]
		halvesToPairs(p, unsafe.Pointer(&u))
		return u.dst, pairsBytes
	}
	u.w, u.offset = unsafe.SliceData(common), int64(f.offset)
	if f.halves {
		u.halves = 1
	}
	if f.least {
		u.least = 1
	}
	c := commonArgs{u.w, nil, int64(size), 0, int64(m.w.Cols), int64(k / 32), int64(cols / 32)}
	for i := from; i < to; i += 2 {
		u.panels = int64(min(2, to-i))
		c.w, c.panels = &m.w.Data[i*size], u.panels
		toCommon(p, m.w.DType, unsafe.Pointer(&c))
		u.dst = &pairs[(i-from)*pairsBytes]
		commonToPairs(p, unsafe.Pointer(&u))
	}
	return unsafe.SliceData(pairs), pairsBytes
}

// toCommon writes panels of block formats in the common form.
func toCommon(p Path, d tensor.DType, a unsafe.Pointer) {
	switch d {
	case tensor.Q8_0:
		manyQ80Common(p, a)
	case tensor.Q4_0:
		manyQ40Common(p, a)
	case tensor.Q4_1:
		manyQ41Common(p, a)
	case tensor.Q5_0:
		manyQ50Common(p, a)
	case tensor.Q5_1:
		manyQ51Common(p, a)
	case tensor.Q4_K:
		manyQ4KCommon(p, a)
	case tensor.Q5_K:
		manyQ5KCommon(p, a)
	case tensor.Q6_K:
		manyQ6KCommon(p, a)
	}
}

// tilesWork says whether tiles multiply as plain Go does. Where these kernels were written there are none; a
// processor that does something else is not asked again.
var tilesWork = sync.OnceValue(func() bool { return tilesRight(manyTiles, memory64(tileScratch)) })

// tilesRight multiplies whole numbers, whose sums are exact in any order.
func tilesRight(run kernel, scratch []byte) bool {
	const n, rows, cols = 35, 33, 96
	x, src := make([]float32, n*cols), make([]byte, 2*rows*cols)
	for i := range x {
		x[i] = float32(i*i%15 - 7)
	}
	for i := range rows * cols {
		binary.LittleEndian.PutUint16(src[2*i:], toBF16(float32(i*i%13-6)))
	}
	w := Packed{tensor.BF16, rows, cols, memory64(int(PackedBytes(tensor.BF16, rows, cols)))}
	PlainGo.Pack(w, Matrix{tensor.BF16, rows, cols, src}, 0, w.Panels())
	in := Rows{BFloat16, n, cols, memory64(RowsBytes(BFloat16, n, cols))}
	PlainGo.Prepare(in, x, 0, n)
	m := product{y: make([]float32, n*rows), stride: rows, x: in, n: n, w: w, to: w.Panels(), scratch: scratch}
	m.tiles(AMX, run)
	got := m.y
	m.y = make([]float32, n*rows)
	m.plain()
	return slices.Equal(got, m.y)
}

// memory64 is n bytes at a multiple of 64.
func memory64(n int) []byte {
	b := make([]byte, n+63)
	return b[-uintptr(unsafe.Pointer(unsafe.SliceData(b)))&63:][:n]
}
