package cpu

import (
	"encoding/binary"
	"math"

	"github.com/estiba/estiba/runtime/tensor"
)

// Panels of the formats without blocks: F32 and F16 have for each column 16 numbers, BF16 for each two columns
// 16 pairs.
var (
	formatF32  = numberFormat(tensor.F32)
	formatF16  = numberFormat(tensor.F16)
	formatBF16 = numberFormat(tensor.BF16)
)

func numberFormat(d tensor.DType) format {
	size := int(d.Bytes(1))
	at := func(k, lane int) int {
		if d == tensor.BF16 {
			return k/2*64 + 4*lane + k%2*2
		}
		return (16*k + lane) * size
	}
	return format{
		panelBytes: func(cols int) int { return (16*cols*size + 63) / 64 * 64 },
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
	}
}

// dotFloat32 is one element of a product in form Float32, the sum in the order of the kernels.
func dotFloat32(x, w []float32) float32 {
	acc := float32(0)
	for k, v := range w {
		acc = fused(v, x[k], acc)
	}
	return acc
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
func (m *product) float(Path) { m.plain() }

// floatScratch is what float works in.
func floatScratch(_ Path, _ tensor.DType, _, _ int) int { return 0 }
