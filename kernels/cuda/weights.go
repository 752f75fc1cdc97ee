package cuda

import (
	"fmt"

	"github.com/estiba/estiba/runtime/tensor"
)

// Weights are a matrix [Rows, Cols] on the device, in the layout that quant.cuh describes: for F32, F16 and BF16 rows
// filled up to 16 bytes, for the block formats planes, one of the bits of all blocks, one of all scales and so on, so
// that neighbouring threads load neighbouring bytes, 16 at a time. It is the only copy of the weights: products of few
// and of many rows read it, and embedding.
type Weights struct {
	Data       Address // PackedBytes long
	Type       tensor.DType
	Rows, Cols int
}

// weights are struct Weights of quant.cuh.
type weights struct {
	data               Address
	format, rows, cols int32
	_                  int32
}

func (w Weights) kernel() weights {
	return weights{data: w.Data, format: int32(w.Type), rows: int32(w.Rows), cols: int32(w.Cols)}
}

// plane bytes of 32 columns, and of 256 in the last: bits, bits above the fourth, scales, scales of scales.
var planes = [...][4]int64{
	tensor.Q8_0: {32, 0, 2, 0},
	tensor.Q4_0: {16, 0, 2, 0},
	tensor.Q4_1: {16, 0, 4, 0},
	tensor.Q5_0: {16, 4, 2, 0},
	tensor.Q5_1: {16, 4, 4, 0},
	tensor.Q4_K: {16, 0, 2, 4},
	tensor.Q5_K: {16, 4, 2, 4},
	tensor.Q6_K: {16, 8, 2, 2},
}

// plane is where planes, and buffers of which several lie in one, begin.
const plane = 256

func roundUp(n, to int64) int64 { return (n + to - 1) / to * to }

// isFloat says that d is no block format; what is no format at all panics where its bytes are asked for.
func isFloat(d tensor.DType) bool { return d.Block() == 1 }

// CheckWeights says why a matrix cannot be on the device: its rows are no whole blocks, or it is larger than kernels count.
func CheckWeights(d tensor.DType, rows, cols int) error {
	const mostRows, mostCols, mostBytes = 1 << 21, 1 << 24, 16 << 30
	switch {
	case d.Block() == 0 || rows < 1 || cols < 1 || cols%d.Block() != 0:
		return fmt.Errorf("there are no weights [%d, %d] of %v", rows, cols, d)
	case rows > mostRows || cols > mostCols || PackedBytes(d, rows, cols) > mostBytes:
		return fmt.Errorf("weights [%d, %d] of %v are too large for a device: at most %d rows, %d columns, %d GiB", rows, cols, d, mostRows, mostCols, mostBytes>>30)
	}
	return nil
}

// PackedBytes is the size of weights on the device, a multiple of 256: where rows and columns are many, at most 3 % more
// than a checkpoint's (Q4_K; 2.3 % in Q5_K, else nothing).
func PackedBytes(d tensor.DType, rows, cols int) int64 {
	if isFloat(d) {
		return roundUp(int64(rows)*roundUp(d.Bytes(int64(cols)), 16), plane)
	}
	groups := int64(rows) * int64(cols) / 32
	p := planes[d]
	return roundUp(groups*p[0], plane) + roundUp(groups*p[1], plane) + roundUp(groups*p[2], plane) + roundUp(groups/8*p[3], plane)
}

// AsStored says that rows of so many columns lie on the device as in a checkpoint: they can be copied there without Pack.
func AsStored(d tensor.DType, cols int) bool { return isFloat(d) && d.Bytes(int64(cols))%16 == 0 }

type packParams struct {
	raw, data                        Address
	units                            int64
	format, rows, cols, first, count int32
	_                                int32
}

// Pack puts count rows from first on into their place in w; raw has them as a checkpoint does, at any alignment.
func Pack(w Weights, raw Address, first, count int) Launch {
	row := w.Cols / 32
	if isFloat(w.Type) {
		row = int(roundUp(w.Type.Bytes(int64(w.Cols)), 16) / 16)
	}
	units := count * row
	return launch("pack", [3]uint32{blocks(units, 256), 1, 1}, 256, 0, &packParams{
		raw: raw, data: w.Data, units: int64(units), format: int32(w.Type), rows: int32(w.Rows), cols: int32(w.Cols), first: int32(first), count: int32(count),
	})
}
