package cpu_test

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/estiba/estiba/kernels/cpu"
	"github.com/estiba/estiba/runtime/tensor"
)

var dtypes = tensor.DTypes()

// sizes meet the edges of lanes, pieces and tiles.
var sizes = []int{1, 2, 3, 7, 8, 9, 15, 64, 172, 255, 256, 257, 777}

// sizesOf are sizes of rows in a format: whole blocks.
func sizesOf(d tensor.DType) []int {
	switch d.Block() {
	case 1:
		return sizes
	case 32:
		return []int{32, 64, 224, 256, 288, 800}
	}
	return []int{256, 512, 1280}
}

func random(r *rand.Rand, n int) []float32 {
	x := make([]float32, n)
	for i := range x {
		x[i] = float32(r.NormFloat64())
	}
	return x
}

// matrix has random weights that begin at an odd address.
func matrix(r *rand.Rand, d tensor.DType, rows, cols int) cpu.Matrix {
	data := make([]byte, 1, 1+d.Bytes(int64(rows*cols)))
	if d.Block() > 1 {
		return cpu.Matrix{DType: d, Rows: rows, Cols: cols, Data: blocks(r, d, rows*cols, data)[1:]}
	}
	for range rows * cols {
		x := math.Float32bits(float32(r.NormFloat64()))
		switch d {
		case tensor.F32:
			data = binary.LittleEndian.AppendUint32(data, x)
		case tensor.BF16:
			data = binary.LittleEndian.AppendUint16(data, uint16(x>>16))
		case tensor.F16: // any finite half of at most 2
			data = binary.LittleEndian.AppendUint16(data, uint16(r.UintN(0x4000)|r.UintN(2)<<15))
		}
	}
	return cpu.Matrix{DType: d, Rows: rows, Cols: cols, Data: data[1:]}
}

// blocks appends blocks of random bits, with scales of at most 2^-4 where a
// block's numbers go beyond a few units.
func blocks(r *rand.Rand, d tensor.DType, n int, data []byte) []byte {
	halves := []int{0} // where in a block
	switch d {
	case tensor.Q4_1, tensor.Q5_1, tensor.Q4_K, tensor.Q5_K:
		halves = []int{0, 2}
	case tensor.Q6_K:
		halves = []int{208}
	}
	size := int(d.Bytes(int64(d.Block())))
	for range n / d.Block() {
		at := len(data)
		for range size {
			data = append(data, byte(r.Uint32()))
		}
		for _, h := range halves {
			binary.LittleEndian.PutUint16(data[at+h:], uint16(r.UintN(0x2c00)|r.UintN(2)<<15))
		}
	}
	return data
}

// near fails unless got is want to within tolerance of want's norm, or of that of
// ones where sums have cancelled.
func near(t *testing.T, what string, got, want []float32, tolerance float64) {
	t.Helper()
	var diff, norm float64
	for i := range want {
		diff += math.Pow(float64(got[i])-float64(want[i]), 2)
		norm += math.Pow(float64(want[i]), 2)
	}
	if !(math.Sqrt(diff) <= tolerance*math.Sqrt(max(norm, float64(len(want))))) {
		t.Errorf("%s: error %g of norm %g", what, math.Sqrt(diff), math.Sqrt(norm))
	}
}

func TestF16(t *testing.T) {
	for h := range 1 << 16 {
		got, want := cpu.F16(uint16(h)), cpu.F16Ref(uint16(h))
		if math.Float32bits(got) != math.Float32bits(want) && !(got != got && want != want) {
			t.Fatalf("F16(%#04x) = %v, want %v", h, got, want)
		}
	}
}

// TestRow wants every bit of the twin: products of halves and of few bits are exact, a sum is rounded once.
func TestRow(t *testing.T) {
	r := rand.New(rand.NewPCG(11, 12))
	for _, d := range dtypes {
		for _, n := range sizesOf(d) {
			w := matrix(r, d, 7, n)
			want, got := make([]float32, n), make([]float32, n)
			for i := range w.Rows {
				w.RowRef(want, i)
				w.Row(got, i)
				if !slices.Equal(got, want) {
					t.Fatalf("%v [%d], row %d:\ngot  %v\nwant %v", d, n, i, got, want)
				}
			}
		}
	}
}

func TestDot(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for _, n := range append(sizes, 0) {
		x, y := random(r, n), random(r, n)
		bound := 0.0
		for i := range x {
			bound += math.Abs(float64(x[i] * y[i]))
		}
		if got, want := float64(cpu.Dot(x, y)), cpu.DotRef(x, y); math.Abs(got-want) > 1e-6*bound {
			t.Errorf("Dot of %d: %v, want %v", n, got, want)
		}
	}
}

func TestMatMul(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	for _, d := range dtypes {
		for _, k := range sizesOf(d) {
			for _, shape := range [][2]int{{1, 1}, {1, 5}, {3, 7}, {8, 3}, {32, 2}, {35, 4}} {
				rows, n := shape[0], shape[1]
				x, w := random(r, rows*k), matrix(r, d, n, k)
				want, got := make([]float32, rows*n), make([]float32, rows*n)
				cpu.MatMulRef(want, x, rows, w)
				cpu.MatMul(got, x, rows, w, 0, n/2)
				cpu.MatMul(got, x, rows, w, n/2, n)
				name := fmt.Sprintf("%v [%d,%d] x [%d,%d]", d, rows, k, n, k)
				near(t, name, got, want, 1e-5)

				alone := make([]float32, n)
				cpu.MatMul(alone, x[(rows-1)*k:], 1, w, 0, n)
				if !slices.Equal(alone, got[(rows-1)*n:]) {
					t.Errorf("%s: the last row alone differs from the last row in company", name)
				}
			}
		}
	}
}

func TestRMSNorm(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	for _, d := range dtypes {
		for _, n := range sizesOf(d) {
			x, w := random(r, n), matrix(r, d, 1, n)
			want, got := make([]float32, n), slices.Clone(x)
			cpu.RMSNormRef(want, x, w, 1e-5, 1)
			cpu.RMSNorm(got, got, w, 1e-5, 1)
			near(t, fmt.Sprintf("%v [%d]", d, n), got, want, 1e-6)
		}
	}
}

func TestLayerNormAndBias(t *testing.T) {
	r := rand.New(rand.NewPCG(15, 16))
	for _, d := range dtypes {
		for _, n := range sizesOf(d) {
			x, w, b := random(r, n), matrix(r, d, 1, n), matrix(r, d, 3, n)
			want, got := make([]float32, n), slices.Clone(x)
			cpu.LayerNormRef(want, x, w, b, 1e-3)
			cpu.LayerNorm(got, got, w, b, 1e-3)
			near(t, fmt.Sprintf("LayerNorm %v [%d]", d, n), got, want, 2e-5) // the twin's variance cancels
			got = slices.Clone(x)
			cpu.BiasRef(want, x, b, 2)
			cpu.Bias(got, got, b, 2)
			if !slices.Equal(got, want) {
				t.Errorf("Bias %v [%d]: %v, want %v", d, n, got, want)
			}
		}
	}
}

func TestRotate(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 8))
	for _, neighbours := range []bool{false, true} {
		for _, c := range [][2]int{{2, 1}, {6, 3}, {6, 1}, {7, 2}, {8, 4}, {128, 64}, {128, 48}} {
			for _, position := range []int{0, 1, 77, 1000} {
				dim, pairs := c[0], c[1]
				frequencies := make([]float32, pairs)
				for i := range frequencies {
					frequencies[i] = float32(math.Pow(10000, -float64(i)/float64(pairs)))
				}
				x := random(r, 3*dim)
				want, got := make([]float32, len(x)), slices.Clone(x)
				cos, sin := make([]float32, pairs), make([]float32, pairs)
				cpu.RotateRef(want, x, dim, position, frequencies, 1.5, neighbours)
				cpu.Angles(cos, sin, position, frequencies, 1.5)
				cpu.Rotate(got, got, cos, sin, dim, neighbours)
				// An angle near 1000 is known to 3e-5 in float32.
				near(t, fmt.Sprintf("dim %d at %d, neighbours %v", dim, position, neighbours), got, want, 1e-6+6e-8*float64(position))
			}
		}
	}
}

func TestMatMulRows(t *testing.T) {
	r := rand.New(rand.NewPCG(17, 18))
	for _, d := range dtypes {
		const n, rows = 5, 70
		for _, k := range []int{7, 256, 300} {
			if k%d.Block() != 0 {
				continue
			}
			x, w := random(r, rows*k), matrix(r, d, n, k)
			together, got := make([]float32, rows*n), make([]float32, rows*n)
			cpu.MatMul(together, x, rows, w, 0, n)
			var xAt, yAt []int
			for _, row := range r.Perm(rows) {
				xAt, yAt = append(xAt, row*k), append(yAt, row*n)
			}
			cpu.MatMulRows(got, x, yAt, xAt, w, 0, 2)
			cpu.MatMulRows(got, x, yAt, xAt, w, 2, n)
			if !slices.Equal(got, together) {
				t.Errorf("%v [%d,%d]: rows that lie apart differ from those that lie together", d, n, k)
			}
		}
	}
}

func TestRoute(t *testing.T) {
	r := rand.New(rand.NewPCG(19, 20))
	for _, experts := range []int{1, 2, 8, 128} {
		for topK := 1; topK <= min(experts, 9); topK++ {
			for _, normalize := range []bool{false, true} {
				scores := random(r, experts)
				scores[experts-1] = scores[0] // a tie
				got, want := make([]float32, 2*topK), make([]float32, 2*topK)
				cpu.Route(got, scores, topK, normalize)
				cpu.RouteRef(want, scores, topK, normalize)
				if !slices.Equal(got[:topK], want[:topK]) {
					t.Errorf("%d of %d: experts %v, want %v", topK, experts, got[:topK], want[:topK])
				}
				near(t, fmt.Sprintf("shares of %d of %d", topK, experts), got[topK:], want[topK:], 1e-6)
				x := random(r, topK*13)
				sum, wantSum := make([]float32, 13), make([]float32, 13)
				cpu.ExpertSum(sum, x, got[topK:])
				cpu.ExpertSumRef(wantSum, x, got[topK:])
				near(t, "sum", sum, wantSum, 1e-6)
			}
		}
	}
	// Scores that are no numbers give shares that are none, of experts that there are.
	y := make([]float32, 4)
	cpu.Route(y, []float32{float32(math.NaN()), float32(math.Inf(1)), 1}, 2, true)
	if y[0] == y[1] || y[0] < 0 || y[1] > 2 {
		t.Errorf("experts %v", y[:2])
	}
}

func TestActivations(t *testing.T) {
	x := []float32{-200, -40, -10, -3, -1, -0.1, 0, 1e-9, 0.1, 1, 3, 10, 40, 200}
	up := make([]float32, len(x))
	for i := range up {
		up[i] = float32(i + 1)
	}
	for name, c := range map[string]struct{ got, want func(y []float32) }{
		"SwiGLU":     {func(y []float32) { cpu.SwiGLU(y, y, up) }, func(y []float32) { cpu.SwiGLURef(y, y, up) }},
		"GeGLU":      {func(y []float32) { cpu.GeGLU(y, y, up, false) }, func(y []float32) { cpu.GeGLURef(y, y, up, false) }},
		"GeGLU tanh": {func(y []float32) { cpu.GeGLU(y, y, up, true) }, func(y []float32) { cpu.GeGLURef(y, y, up, true) }},
		"GELU":       {func(y []float32) { cpu.GELU(y, y, false) }, func(y []float32) { cpu.GELURef(y, y, false) }},
		"GELU tanh":  {func(y []float32) { cpu.GELU(y, y, true) }, func(y []float32) { cpu.GELURef(y, y, true) }},
		"SoftCap":    {func(y []float32) { cpu.SoftCap(y, y, 30) }, func(y []float32) { cpu.SoftCapRef(y, y, 30) }},
	} {
		got, want := slices.Clone(x), slices.Clone(x)
		c.got(got)
		c.want(want)
		for i := range want {
			if !(math.Abs(float64(got[i]-want[i])) <= 1e-6*math.Abs(float64(want[i]))+1e-15) {
				t.Errorf("%s of %v: %v, want %v", name, x[i], got[i], want[i])
			}
		}
	}
}

func TestAttend(t *testing.T) {
	r := rand.New(rand.NewPCG(9, 10))
	for _, dim := range []int{1, 2, 5, 8, 33, 64} {
		for _, blockTokens := range []int{1, 3, 16, 100} {
			for _, n := range []int{1, 2, 16, 17, 63, 64, 65, 200} {
				const heads = 3
				need := (n + blockTokens - 1) / blockTokens
				size := blockTokens * heads * dim
				data := random(r, (need+2)*2*size)
				for i := range data {
					data[i] *= 4 // scores that differ
				}
				kv := cpu.Paged(data, blockTokens, heads*dim, 2*size)
				var blocks []int32
				for _, b := range r.Perm(need + 2)[:need] {
					blocks = append(blocks, int32(b))
				}
				q, want, got := random(r, dim), make([]float32, dim), make([]float32, dim)
				for h := range heads {
					for _, from := range []int{0, n / 3, n - 1} {
						softCap := float32(h) * 7
						cpu.AttendRef(want, q, kv, blocks, from, n, h*dim, 0.5, softCap)
						cpu.Attend(got, q, kv, blocks, from, n, h*dim, 0.5, softCap)
						near(t, fmt.Sprintf("dim %d, positions %d to %d in blocks of %d, cap %v", dim, from, n, blockTokens, softCap), got, want, 1e-5)
					}
				}
			}
		}
	}
}

func BenchmarkMatMul(b *testing.B) {
	const n, k = 512, 2048
	for _, d := range dtypes {
		for _, rows := range []int{1, 16} {
			b.Run(fmt.Sprintf("%v/rows=%d", d, rows), func(b *testing.B) {
				r := rand.New(rand.NewPCG(1, 1))
				x, w, y := random(r, rows*k), matrix(r, d, n, k), make([]float32, rows*n)
				for b.Loop() {
					cpu.MatMul(y, x, rows, w, 0, n)
				}
				b.ReportMetric(float64(b.N)*float64(rows*n*k)/b.Elapsed().Seconds()/1e9, "Gmac/s")
			})
		}
	}
}
