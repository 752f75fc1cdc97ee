//go:build cuda && cgo

package kerneltest

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	cpu "github.com/estiba/estiba/kernels/cpu"
	"github.com/estiba/estiba/kernels/cuda"
	"github.com/estiba/estiba/runtime/tensor"
)

// randomWeights have random bits, but for the scales, which are small numbers; wild ones have any bits at all.
func randomWeights(r *rand.Rand, d tensor.DType, rows, cols int, wild bool) cpu.Matrix {
	data := make([]byte, d.Bytes(int64(rows*cols)))
	for i := range data {
		data[i] = byte(r.Uint32())
	}
	block := int(d.Bytes(int64(d.Block())))
	put := func(at int) {
		binary.LittleEndian.PutUint16(data[at:], uint16(0x2000+r.UintN(0x800)|r.UintN(2)<<15)) // 0.008 to 0.03
	}
	for at := 0; at < len(data) && !wild; at += block {
		switch d {
		case tensor.F32:
			binary.LittleEndian.PutUint32(data[at:], math.Float32bits(float32(r.NormFloat64())))
		case tensor.F16:
			binary.LittleEndian.PutUint16(data[at:], toHalf(float32(r.NormFloat64())))
		case tensor.BF16:
			binary.LittleEndian.PutUint16(data[at:], uint16(math.Float32bits(float32(r.NormFloat64()))>>16))
		case tensor.Q4_1, tensor.Q5_1, tensor.Q4_K, tensor.Q5_K:
			put(at)
			put(at + 2)
		case tensor.Q6_K:
			put(at + 208)
		default:
			put(at)
		}
	}
	return cpu.Matrix{DType: d, Rows: rows, Cols: cols, Data: data}
}

// packTo packs w in pieces of rows, from staging memory at an odd address.
func packTo(t *testing.T, d *device, at cuda.Address, w cpu.Matrix, pieces int) cuda.Weights {
	t.Helper()
	to := cuda.Weights{Data: at, Type: w.DType, Rows: w.Rows, Cols: w.Cols}
	size := len(w.Data) / w.Rows
	for first := 0; first < w.Rows; first += pieces {
		count := min(pieces, w.Rows-first)
		raw := upload(d, append(make([]byte, 3), w.Data[first*size:(first+count)*size]...))
		d.run(t, cuda.Pack(to, raw+3, first, count))
	}
	return to
}

func packed(t *testing.T, d *device, w cpu.Matrix) cuda.Weights {
	t.Helper()
	return packTo(t, d, d.allocate(int(cuda.PackedBytes(w.DType, w.Rows, w.Cols))), w, w.Rows)
}

func sizes(d tensor.DType) [][2]int {
	b := d.Block()
	if b > 1 {
		return [][2]int{{1, b}, {7, b}, {5, 3 * b}, {33, 2 * b}}
	}
	return [][2]int{{1, 1}, {3, 7}, {7, 8}, {5, 33}, {33, 100}}
}

// TestPack wants of packed weights, whatever their bits, the numbers that a checkpoint's rows have, to the last bit.
func TestPack(t *testing.T) {
	d := open(t)
	r := rand.New(rand.NewPCG(1, 1))
	for _, f := range tensor.DTypes() {
		for _, size := range sizes(f) {
			for _, wild := range []bool{false, true} {
				w := randomWeights(r, f, size[0], size[1], wild)
				bytesOf := int(cuda.PackedBytes(f, w.Rows, w.Cols))
				at := d.allocate(bytesOf)
				to := packTo(t, d, at, w, 1+r.IntN(w.Rows))
				index := make([]int32, w.Rows)
				for i := range index {
					index[i] = int32(w.Rows - 1 - i)
				}
				y := d.allocate(4 * w.Rows * w.Cols)
				d.run(t, cuda.Embed(cuda.EmbedParams{Y: y, Table: to.Data, Type: f, TableRows: w.Rows, Width: w.Cols, Index: upload(d, index), Rows: w.Rows}))
				got, want := download[float32](d, y, w.Rows*w.Cols), make([]float32, w.Cols)
				for i := range w.Rows {
					w.Row(want, w.Rows-1-i)
					for k, v := range want {
						if g := got[i*w.Cols+k]; math.Float32bits(g) != math.Float32bits(v) && (g == g || v == v) {
							t.Fatalf("%v %v wild=%v: row %d, column %d is %g, want %g", f, size, wild, w.Rows-1-i, k, g, v)
						}
					}
				}
				if have := download[byte](d, at, len(w.Data)); cuda.AsStored(f, w.Cols) && !bytes.Equal(have, w.Data) {
					t.Errorf("%v %v: weights do not lie on the device as stored", f, size)
				}
			}
		}
	}
}

// exactly is x wᵀ in float64, and for each number by how much it may be off at most: share of the product of
// the lengths of x's row and w's.
func exactly(x []float32, rows int, w cpu.Matrix) (y, lengths []float64) {
	y, lengths = make([]float64, rows*w.Rows), make([]float64, rows*w.Rows)
	row := make([]float32, w.Cols)
	for j := range w.Rows {
		w.RowRef(row, j)
		for i := range rows {
			of := x[i*w.Cols : (i+1)*w.Cols]
			y[i*w.Rows+j] = cpu.DotRef(of, row)
			lengths[i*w.Rows+j] = math.Sqrt(cpu.DotRef(of, of) * cpu.DotRef(row, row))
		}
	}
	return y, lengths
}

// bounds of a product, by Cauchy's inequality: of each number, in the lengths of its rows of x and w; and of all
// numbers together, of normal x, the root of the mean of the squares of errors over that of the numbers to be expected.
//
//	f32 sums of exact products                  2^-19 (of 4096), 1e-6
//	x rounded to bytes                          sqrt(32)/254, 1 %
//	x rounded to bf16, w decoded to bf16        2^-7, 0.4 %
//	x rounded to bf16, w exact                  2^-8, 0.3 %
//	x rounded to f16, w exact                   2^-11, 0.04 %
func bounds(d tensor.DType, few bool) (each, together float64) {
	const sums = 1.0 / (1 << 19)
	switch {
	case d == tensor.F32 || few && d.Block() == 1:
		return sums, 1e-6
	case few:
		return math.Sqrt(32)/254 + sums, 1e-2
	case d == tensor.F16:
		return 1.0/(1<<11) + sums, 4e-4
	case d == tensor.BF16:
		return 1.0/(1<<8) + sums, 3e-3
	}
	return 1.0/(1<<7) + sums, 4e-3
}

// gated is gate(a)*b in float64, and by how much it may be off if they may by errors.
func gated(g cuda.Gate, a, b, errA, errB float64) (y, err float64) {
	var one, two [1]float32
	f := func(a float64) float64 {
		one[0] = 1
		switch g {
		case cuda.GateSwiGLU:
			cpu.SwiGLURef(two[:], []float32{float32(a)}, one[:])
		default:
			cpu.GeGLURef(two[:], []float32{float32(a)}, one[:], g == cuda.GateGeGLUTanh)
		}
		return float64(two[0])
	}
	// Neither function is steeper than 1.13.
	return f(a) * b, 1.13*errA*(math.Abs(b)+errB) + math.Abs(f(a))*errB + 1e-5*math.Abs(a*b)
}

// productCase is a product of some matrices with one x.
type productCase struct {
	rows, cols int
	types      []tensor.DType
	widths     []int // rows of the matrices
	gate       cuda.Gate
	bias       bool
	residual   bool
	processors int
	experts    int // 0, or how many
	topK       int
	own        bool
	one        bool // all rows choose the same experts
	wide       bool
}

func (c productCase) String() string {
	return fmt.Sprintf("%d rows of %d by %v of %v, gate %d, bias %v, residual %v, %d processors, %d of %d experts, own rows %v, wide %v",
		c.rows, c.cols, c.types, c.widths, c.gate, c.bias, c.residual, c.processors, c.topK, c.experts, c.own, c.wide)
}

// run multiplies, and compares each number, and all of them together.
func (c productCase) run(t *testing.T, d *device, r *rand.Rand) {
	t.Helper()
	pairs, xRows, divide := c.rows, c.rows, 1
	experts := max(1, c.experts)
	p := cuda.Product{Rows: c.rows, Gate: c.gate, Wide: c.wide}
	route := make([]float32, 0)
	if c.experts > 0 {
		pairs, divide = c.rows*c.topK, c.topK
		if c.own {
			xRows, divide = pairs, 1
		}
		for range c.rows {
			chosen := r.Perm(c.experts)[:c.topK]
			if c.one {
				for i := range chosen {
					chosen[i] = c.experts - c.topK + i
				}
			}
			slices.Sort(chosen)
			for _, e := range chosen {
				route = append(route, float32(e))
			}
			route = append(route, normal(r, c.topK, 1)...)
		}
		p.Experts = &cuda.Experts{Route: upload(d, route), TopK: c.topK, Count: c.experts, Own: c.own}
	}
	x := normal(r, xRows*c.cols, 1)
	p.X = upload(d, x)

	type part struct {
		weights        []cpu.Matrix
		stride         int
		bias, residual []float32
	}
	parts := make([]part, len(c.types))
	for i, f := range c.types {
		q := &parts[i]
		n := c.widths[i]
		each := int(cuda.PackedBytes(f, n, c.cols))
		data := d.allocate(each * experts)
		for e := range experts {
			q.weights = append(q.weights, randomWeights(r, f, n, c.cols, false))
			packTo(t, d, data+cuda.Address(e*each), q.weights[e], n)
		}
		if c.experts > 0 {
			p.Experts.Stride = int64(each)
		}
		q.stride = n + r.IntN(3)
		to := cuda.Part{Weights: cuda.Weights{Data: data, Type: f, Rows: n, Cols: c.cols}, Stride: q.stride, Y: upload(d, filled(pairs*q.stride, float32(77)))}
		if c.bias {
			q.bias = normal(r, n, 1)
			to.Bias = upload(d, q.bias)
		}
		if c.residual {
			q.residual = normal(r, pairs*q.stride, 1)
			to.Residual = upload(d, q.residual)
			if i == 0 { // in place
				to.Y = to.Residual
			}
		}
		p.Parts = append(p.Parts, to)
	}
	few := !slices.ContainsFunc(p.Launches(0, c.processors), func(l cuda.Launch) bool {
		return strings.HasPrefix(l.Kernel, "matmul") || strings.HasPrefix(l.Kernel, "wide") || strings.HasPrefix(l.Kernel, "packed")
	})
	scaled := slices.ContainsFunc(p.Launches(0, c.processors), func(l cuda.Launch) bool { return strings.HasPrefix(l.Kernel, "packed") })
	scratch := d.allocate(int(p.Scratch(c.processors)))
	d.run(t, p.Launches(scratch, c.processors)...)

	expertOf := func(pair int) int {
		if c.experts == 0 {
			return 0
		}
		return int(route[pair/c.topK*2*c.topK+pair%c.topK])
	}
	results := len(parts)
	if c.gate != cuda.NoGate {
		results = 1
	}
	for i := range results {
		q := parts[i]
		n := c.widths[i]
		each, together := bounds(c.types[i], few)
		if scaled {
			together = 5e-3 // beyond what bounds says: scales are rounded to bf16 too
		}
		got := download[float32](d, p.Parts[i].Y, pairs*q.stride)
		errors, squares := 0.0, 0.0
		for pair := range pairs {
			of := x[pair/divide*c.cols : (pair/divide+1)*c.cols]
			want, lengths := exactly(of, 1, q.weights[expertOf(pair)])
			var up, upLengths []float64
			if c.gate != cuda.NoGate {
				up, upLengths = exactly(of, 1, parts[1].weights[expertOf(pair)])
			}
			for j := range q.stride {
				at := pair*q.stride + j
				if j >= n {
					rest := float32(77)
					if c.residual && i == 0 {
						rest = q.residual[at]
					}
					if got[at] != rest {
						t.Fatalf("%v: part %d has %g where nothing should be written, at %d of row %d", c, i, got[at], j, pair)
					}
					continue
				}
				y, bound := want[j], each*lengths[j]
				if up != nil {
					y, bound = gated(c.gate, y, up[j], bound, each*upLengths[j])
				}
				squares += lengths[j] * lengths[j] / float64(c.cols)
				if q.bias != nil {
					y += float64(q.bias[j])
				}
				if q.residual != nil {
					y += float64(q.residual[at])
				}
				off := float64(got[at]) - y
				if bound += 1e-6 * math.Abs(y); !(math.Abs(off) <= bound) {
					t.Fatalf("%v: part %d, row %d, number %d is %g, want %g, off by %g, not %g", c, i, pair, j, got[at], y, off, bound)
				}
				errors += off * off
			}
		}
		if off := math.Sqrt(errors / squares); off > together && c.gate == cuda.NoGate && !c.bias && !c.residual && pairs*n >= 20 {
			t.Errorf("%v: part %d is off by %g in all, want at most %g", c, i, off, together)
		}
	}
}

// TestProductRows multiplies so many rows by weights of every format, of odd sizes.
func TestProductRows(t *testing.T) {
	d := open(t)
	for _, f := range tensor.DTypes() {
		t.Run(f.String(), func(t *testing.T) {
			r := rand.New(rand.NewPCG(2, uint64(f)))
			for i, rows := range []int{1, 2, 3, 4, 5, 6, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 130} {
				cols := []int{f.Block(), 2 * f.Block(), 3 * f.Block()}[i%3]
				if f.Block() == 1 {
					cols = []int{64, 37, 200, 1, 136}[i%5]
				}
				n := []int{40, 1, 65, 7}[i%4]
				if rows > 65 && cols > 256 {
					cols, n = 256, min(n, 17)
				}
				productCase{rows: rows, cols: cols, types: []tensor.DType{f}, widths: []int{n}, processors: []int{1, 4}[i%2]}.run(t, d, r)
			}
		})
	}
}

// TestProductTiles multiplies by the large tiles, whole ones and remainders, and by several blocks for the columns of one.
func TestProductTiles(t *testing.T) {
	d := open(t)
	r := rand.New(rand.NewPCG(3, 3))
	for _, f := range []tensor.DType{tensor.F32, tensor.F16, tensor.BF16, tensor.Q8_0, tensor.Q5_1, tensor.Q6_K} {
		for _, c := range []productCase{
			{rows: 130, cols: 256, widths: []int{130}, processors: 1},
			{rows: 129, cols: 256, widths: []int{96}, processors: 108},
			{rows: 33, cols: 1536, widths: []int{65}, processors: 8},
			{rows: 12, cols: 1280, widths: []int{3}, processors: 4, bias: true, residual: true},
		} {
			c.types = []tensor.DType{f}
			c.run(t, d, r)
		}
	}
	for _, cols := range []int{520, 1027, 1031} { // steps and splits that end within 8 columns
		productCase{rows: 9, cols: cols, types: []tensor.DType{tensor.BF16}, widths: []int{5}, processors: 4}.run(t, d, r)
	}
}

// TestProductWide multiplies by the tiles of devices of compute capability 9.0, whole ones and remainders.
func TestProductWide(t *testing.T) {
	d := open(t)
	if !wide(d) {
		t.Skip("SKIPPED: the device is not of compute capability 9.0")
	}
	r := rand.New(rand.NewPCG(10, 10))
	for _, f := range []tensor.DType{tensor.F16, tensor.BF16} {
		for _, c := range []productCase{
			{rows: 128, cols: 256, widths: []int{256}, processors: 1},
			{rows: 300, cols: 520, widths: []int{261}, processors: 4, bias: true, residual: true},
			{rows: 129, cols: 64, widths: []int{128}, processors: 2},
			{rows: 70, cols: 37, widths: []int{130}, processors: 2, residual: true},
			{rows: 65, cols: 1, widths: []int{3}, processors: 1},
			{rows: 131, cols: 200, widths: []int{300, 9, 131}, processors: 4, bias: true},
			{rows: 100, cols: 328, widths: []int{77, 77}, processors: 1, gate: cuda.GateSwiGLU},
			{rows: 140, cols: 136, widths: []int{260, 260}, processors: 4, gate: cuda.GateGeGLU, bias: true, residual: true},
			// Several blocks for the columns of a tile; the last one's are fewer, and end within a step.
			{rows: 130, cols: 2100, widths: []int{130, 9}, processors: 32, bias: true, residual: true},
			{rows: 66, cols: 1096, widths: []int{70, 70}, processors: 16, gate: cuda.GateGeGLUTanh, bias: true},
		} {
			for range len(c.widths) {
				c.types = append(c.types, f)
			}
			c.wide = true
			c.run(t, d, r)
		}
	}
}

// TestProductPacked multiplies by tiles of packed weights that are not used whole, by several parts in one, by blocks that share
// columns, and by weights that are unpacked before.
func TestProductPacked(t *testing.T) {
	d := open(t)
	for _, f := range tensor.DTypes() {
		if f.Block() == 1 {
			continue
		}
		t.Run(f.String(), func(t *testing.T) {
			r := rand.New(rand.NewPCG(11, uint64(f)))
			for _, c := range []productCase{
				{rows: 9, cols: 256, widths: []int{200}, processors: 1, bias: true},
				{rows: 17, cols: 512, widths: []int{90, 200}, processors: 1},
				{rows: 33, cols: 256, widths: []int{200, 3}, processors: 2, residual: true},
				{rows: 20, cols: 2816, widths: []int{70, 9, 33}, processors: 4, bias: true},
				{rows: 70, cols: 1024, widths: []int{40, 40}, processors: 4, gate: cuda.GateSwiGLU},
				{rows: 64, cols: 2816, widths: []int{40}, processors: 4},
				{rows: 32, cols: 2816, widths: []int{120}, processors: 1},
				{rows: 6, cols: 256, widths: []int{101, 101}, processors: 1, gate: cuda.GateGeGLU},
				{rows: 257, cols: 256, widths: []int{33, 9, 21}, processors: 4, bias: true},
				{rows: 257, cols: 256, widths: []int{19, 19}, processors: 1, gate: cuda.GateSwiGLU, residual: true, wide: wide(d)},
			} {
				for range len(c.widths) {
					c.types = append(c.types, f)
				}
				c.run(t, d, r)
			}
		})
	}
}

// TestProductNarrow wants the same bits of a product whose x a gate has made as bf16 as of one that makes it so itself.
func TestProductNarrow(t *testing.T) {
	d := open(t)
	if !wide(d) {
		t.Skip("SKIPPED: the device is not of compute capability 9.0")
	}
	r := rand.New(rand.NewPCG(11, 11))
	const rows, cols, n, last, processors = 133, 104, 320, 77, 4
	matrix := func(n, cols int) cuda.Weights { return packed(t, d, randomWeights(r, tensor.BF16, n, cols, false)) }
	gate := cuda.Product{X: upload(d, normal(r, rows*cols, 1)), Rows: rows, Gate: cuda.GateSwiGLU, Wide: true}
	y := d.allocate(4 * rows * n)
	for range 2 {
		gate.Parts = append(gate.Parts, cuda.Part{Weights: matrix(n, cols), Y: y, Stride: n})
	}
	down := cuda.Product{X: y, Rows: rows, Wide: true, Parts: []cuda.Part{{Weights: matrix(last, n), Y: d.allocate(4 * rows * last), Stride: last}}}
	if !gate.GivesNarrow(processors) || !down.TakesNarrow(processors) {
		t.Fatal("y of the gate is not narrow")
	}
	scratch := d.allocate(int(max(gate.Scratch(processors), down.Scratch(processors))))
	var want []float32
	for _, narrow := range []bool{false, true} {
		gate.Narrow, down.Narrowed = narrow, narrow
		d.run(t, append(gate.Launches(scratch, processors), down.Launches(scratch, processors)...)...)
		got := download[float32](d, down.Parts[0].Y, rows*last)
		if narrow && !slices.Equal(got, want) {
			t.Error("other numbers where the gate makes y narrow")
		}
		want = got
	}
}

// TestProductSplit has many warps share a row.
func TestProductSplit(t *testing.T) {
	d := open(t)
	r := rand.New(rand.NewPCG(4, 4))
	for _, f := range tensor.DTypes() {
		for _, rows := range []int{1, 3} {
			productCase{rows: rows, cols: 4096, types: []tensor.DType{f}, widths: []int{6}, processors: 8}.run(t, d, r)
		}
	}
}

func TestProductParts(t *testing.T) {
	d := open(t)
	r := rand.New(rand.NewPCG(5, 5))
	for _, rows := range []int{1, 2, 7, 9, 40} {
		for _, types := range [][]tensor.DType{
			{tensor.BF16, tensor.BF16, tensor.BF16}, {tensor.Q4_K, tensor.Q4_K, tensor.Q6_K}, {tensor.F32, tensor.F16, tensor.Q8_0}, {tensor.Q4_0, tensor.Q4_0},
		} {
			productCase{rows: rows, cols: 256, types: types, widths: []int{40, 9, 33}[:len(types)], processors: 2, bias: rows != 2, residual: rows == 7}.run(t, d, r)
		}
	}
}

func TestProductGate(t *testing.T) {
	d := open(t)
	r := rand.New(rand.NewPCG(6, 6))
	for _, f := range []tensor.DType{tensor.F32, tensor.F16, tensor.BF16, tensor.Q4_0, tensor.Q4_K} {
		for _, rows := range []int{1, 2, 4, 5, 9, 34, 70} {
			for i, gate := range []cuda.Gate{cuda.GateSwiGLU, cuda.GateGeGLU, cuda.GateGeGLUTanh} {
				n := []int{1, 19, 40}[i]
				productCase{rows: rows, cols: 256, types: []tensor.DType{f, f}, widths: []int{n, n}, processors: 1 + 7*i, gate: gate, bias: i == 1, residual: i == 2}.run(t, d, r)
			}
		}
		productCase{rows: 10, cols: 1280, types: []tensor.DType{f, f}, widths: []int{21, 21}, processors: 8, gate: cuda.GateSwiGLU}.run(t, d, r) // parts of sums
	}
}

func TestProductExperts(t *testing.T) {
	d := open(t)
	r := rand.New(rand.NewPCG(7, 7))
	for _, f := range []tensor.DType{tensor.F32, tensor.F16, tensor.BF16, tensor.Q4_0, tensor.Q6_K} {
		for _, c := range []productCase{
			{rows: 1, experts: 4, topK: 2},
			{rows: 3, experts: 8, topK: 2, own: true},
			{rows: 20, experts: 3, topK: 2},
			{rows: 70, experts: 2, topK: 1, own: true},
			{rows: 45, experts: 40, topK: 3, one: true},
			{rows: 7, experts: 9, topK: 9},
			{rows: 130, experts: 2, topK: 2, one: true},
		} {
			c.cols, c.types, c.widths, c.processors = 256, []tensor.DType{f}, []int{17}, 4
			c.run(t, d, r)
			if c.rows <= 45 {
				c.types, c.widths, c.gate = []tensor.DType{f, f}, []int{9, 9}, cuda.GateSwiGLU
				c.run(t, d, r)
			}
		}
	}
}

// TestProductAlone wants of a row the same bits whatever rows are multiplied with it, by weights read once for all.
func TestProductAlone(t *testing.T) {
	d := open(t)
	r := rand.New(rand.NewPCG(8, 8))
	const cols, n = 512, 21
	for _, f := range tensor.DTypes() {
		w := packed(t, d, randomWeights(r, f, n, cols, false))
		x := normal(r, 8*cols, 1)
		var alone []float32
		for rows := 1; rows <= cuda.FewRows(f); rows++ {
			y := d.allocate(4 * rows * n)
			p := cuda.Product{X: upload(d, x[:rows*cols]), Rows: rows, Parts: []cuda.Part{{Weights: w, Y: y, Stride: n}}}
			d.run(t, p.Launches(d.allocate(int(p.Scratch(4))), 4)...)
			got := download[float32](d, y, rows*n)
			if rows == 1 {
				alone = got
			}
			if !slices.Equal(got[:n], alone) {
				t.Errorf("%v: the first of %d rows differs from it alone", f, rows)
			}
		}
	}
}

// TestProductBytes: a gate's results as bytes too are those, and a product with x as bytes gives what one does that makes them.
func TestProductBytes(t *testing.T) {
	d := open(t)
	r := rand.New(rand.NewPCG(10, 10))
	const processors, cols, n = 4, 512, 8 * 1024
	for _, f := range tensor.DTypes() {
		w := packed(t, d, randomWeights(r, f, n, cols, false))
		for rows := 1; rows <= 2; rows++ {
			x, room := upload(d, normal(r, rows*cols, 1)), func(cols int) cuda.Bytes {
				_, end := cuda.BytesAt(0, rows, cols)
				b, _ := cuda.BytesAt(d.allocate(int(end)), rows, cols)
				return b
			}
			var plain []float32
			var given cuda.Bytes
			for _, give := range []bool{false, true} {
				y := d.allocate(4 * rows * n)
				part := cuda.Part{Weights: w, Y: y, Stride: n}
				p := cuda.Product{X: x, Rows: rows, Gate: cuda.GateSwiGLU, Parts: []cuda.Part{part, part}}
				if give {
					if !p.GivesBytes(processors) {
						t.Fatalf("%v: it gives no bytes", f)
					}
					p.Give = room(n)
					given = p.Give
				}
				d.run(t, p.Launches(d.allocate(int(p.Scratch(processors))), processors)...)
				got := download[float32](d, y, rows*n)
				if give && !slices.Equal(got, plain) {
					t.Errorf("%v, %d rows: bytes change the result", f, rows)
				}
				plain = got
			}
			sameBytes(t, fmt.Sprintf("%v, %d rows", f, rows), d, given, plain, n)

			down := packed(t, d, randomWeights(r, f, 33, n, false))
			var results [2][]float32
			for i := range results {
				y := d.allocate(4 * rows * 33)
				p := cuda.Product{X: upload(d, plain), Rows: rows, Parts: []cuda.Part{{Weights: down, Y: y, Stride: 33}}}
				if i > 0 && p.TakesBytes(processors) {
					p.Bytes = given
				}
				d.run(t, p.Launches(d.allocate(int(p.Scratch(processors))), processors)...)
				results[i] = download[float32](d, y, rows*33)
			}
			if !slices.Equal(results[0], results[1]) {
				t.Errorf("%v, %d rows: with its bytes x gives something else", f, rows)
			}
		}
	}
}

// TestProductEdges: a row that has a number which is infinite or none gives no finite numbers, and changes no other row; so does a
// row of weights. What is huge or tiny stays within its bound.
func TestProductEdges(t *testing.T) {
	d := open(t)
	r := rand.New(rand.NewPCG(9, 9))
	const cols, n = 256, 20
	none := float32(math.NaN())
	for _, f := range tensor.DTypes() {
		for _, rows := range []int{4, 8, 20, 70} {
			w := randomWeights(r, f, n, cols, false)
			x := normal(r, rows*cols, 1)
			for k := range cols {
				x[cols+k] *= 1e30
				x[2*cols+k] *= 1e-30
			}
			clean := slices.Clone(x)
			x[3*cols+77] = []float32{none, float32(math.Inf(1)), float32(math.Inf(-1))}[rows%3]
			// Row 5 of w has a scale, or a number, that is none.
			size := len(w.Data) / n
			switch at := 5*size + size - int(f.Bytes(int64(f.Block()))); f {
			case tensor.F32:
				binary.LittleEndian.PutUint32(w.Data[at:], 0x7fc00000)
			case tensor.Q6_K:
				binary.LittleEndian.PutUint16(w.Data[at+208:], 0x7e00)
			case tensor.BF16:
				binary.LittleEndian.PutUint16(w.Data[at:], 0x7fc0)
			default:
				binary.LittleEndian.PutUint16(w.Data[at:], 0x7e00)
			}
			y := d.allocate(4 * rows * n)
			p := cuda.Product{X: upload(d, x), Rows: rows, Parts: []cuda.Part{{Weights: packed(t, d, w), Y: y, Stride: n}}}
			d.run(t, p.Launches(d.allocate(int(p.Scratch(2))), 2)...)
			got := download[float32](d, y, rows*n)
			want, lengths := exactly(clean, rows, w)
			each, _ := bounds(f, rows <= cuda.FewRows(f))
			for i, g := range got {
				finite := float64(g)-float64(g) == 0
				switch row, column := i/n, i%n; {
				case row == 3 || column == 5:
					if finite {
						t.Fatalf("%v, %d rows: row %d, number %d is %g, want none", f, rows, row, column, g)
					}
				case !(math.Abs(float64(g)-want[i]) <= each*lengths[i]+1e-37):
					t.Fatalf("%v, %d rows: row %d, number %d is %g, want %g", f, rows, row, column, g, want[i])
				}
			}
		}
	}
}
