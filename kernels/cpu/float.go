package cpu

import (
	"encoding/binary"
	"math"
	"unsafe"

	"github.com/estiba/estiba/runtime/tensor"
)

// Panels of the formats without blocks: F32 has for each column 16 numbers; so has F16, whose columns are filled
// up to an even number with zeros; BF16 has for each two columns 16 pairs, filled up to a multiple of 32 columns,
// as tiles want them.
var (
	formatF32  = numberFormat(tensor.F32, 1, packF32)
	formatF16  = numberFormat(tensor.F16, 2, packF16)
	formatBF16 = numberFormat(tensor.BF16, 32, packBF16)
)

func numberFormat(d tensor.DType, even int, pack kernel) format {
	size := int(d.Bytes(1))
	at := func(k, lane int) int {
		if d == tensor.BF16 {
			return k/2*64 + 4*lane + k%2*2
		}
		return (16*k + lane) * size
	}
	return format{
		panelBytes: func(cols int) int { return 16 * size * ((cols + even - 1) / even * even) },
		pack: func(panel, row []byte, cols, lane int) {
			for k := range cols {
				copy(panel[at(k, lane):], row[k*size:(k+1)*size])
			}
		},
		number: func(panel []byte, k, lane int) float32 {
			b := panel[at(k, lane):]
			switch d {
			case tensor.F16:
				return half(b)
			case tensor.BF16:
				return BF16(binary.LittleEndian.Uint16(b))
			}
			return math.Float32frombits(binary.LittleEndian.Uint32(b))
		},
		packKernel: pack,
	}
}

// These are float.h's.
const (
	chunk        = 512 // columns whose products are one sum
	tileOfRows   = 12
	panelsAtOnce = 8
)

// dotFloat32 is one element of a product in form Float32, the sum in the order of the kernels.
func dotFloat32(x, w []float32) float32 {
	total := float32(0)
	for from := 0; from < len(w); from += chunk {
		acc := float32(0)
		for k := from; k < min(from+chunk, len(w)); k++ {
			acc = fused(w[k], x[k], acc)
		}
		if from == 0 {
			total = acc
		} else {
			total += acc
		}
	}
	return total
}

// dotBF16 is one element of a product in form BFloat16, whose weights are rounded too.
func dotBF16(x []byte, w []float32) float32 {
	acc := float32(0)
	for k, v := range w {
		acc = fused(BF16(toBF16(v)), BF16(binary.LittleEndian.Uint16(x[2*k:])), acc)
	}
	return acc
}

// float multiplies rows of the forms Float32 and BFloat16.
func (m *product) float(p Path) {
	if m.x.Form == BFloat16 && p == AMX {
		m.tiles(p, manyTiles)
		return
	}
	a := m.args()
	switch {
	case m.x.Form == BFloat16:
		manyPairs(p, unsafe.Pointer(&a))
	case m.n > fewRows:
		manyFloats(p, unsafe.Pointer(&a))
	case m.w.DType == tensor.F32:
		fewF32(p, unsafe.Pointer(&a))
	case m.w.DType == tensor.F16:
		fewF16(p, unsafe.Pointer(&a))
	case m.w.DType == tensor.BF16:
		fewBF16(p, unsafe.Pointer(&a))
	}
}

// floatScratch is what float works in: fewScratch of float.c, and scratch of many.h as float.c or, if rows of BFloat16
// may come, bf16.c has it. These may be few, of many that were prepared.
func floatScratch(cols, rows int) int {
	const sums = 2 * PanelRows * 4 // of a row with two panels
	if rows <= fewRows {
		return max(fewRows*sums+rows*(4*cols+128), tileOfRows*(sums+2*chunk+64)+panelsAtOnce*chunk*2*PanelRows)
	}
	return tileOfRows*(sums+4*chunk+64) + panelsAtOnce*chunk*4*PanelRows
}
