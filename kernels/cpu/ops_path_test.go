package cpu_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/estiba/estiba/kernels/cpu"
	"github.com/estiba/estiba/runtime/tensor"
)

// sizes of rows: whole vectors and every remainder.
func sizes() []int {
	var all []int
	for n := 1; n <= 300; n += 1 + n/50 {
		all = append(all, n)
	}
	return append(all, 256, 1000, 2048)
}

// fenced is a row of n between numbers that must stay as they are. Its start is at no multiple of a vector.
func fenced(t *testing.T, n int) []float32 {
	const fence = 33
	all := make([]float32, n+2*fence)
	for i := range all {
		all[i] = 12345
	}
	t.Cleanup(func() {
		for i := range fence {
			if all[i] != 12345 || all[fence+n+i] != 12345 {
				t.Errorf("written beyond a row of %d", n)
				return
			}
		}
	})
	row := all[fence : fence+n]
	clear(row)
	return row
}

// kinds of rows, by the numbers in them.
var kinds = map[string]func(r *rand.Rand) float32{
	"normal":    func(r *rand.Rand) float32 { return float32(r.NormFloat64()) },
	"wide":      func(r *rand.Rand) float32 { return float32(r.NormFloat64()) * float32(math.Exp(r.NormFloat64()*8)) },
	"denormal":  func(r *rand.Rand) float32 { return math.Float32frombits(r.Uint32() & 0x807fffff) },
	"huge":      func(r *rand.Rand) float32 { return float32(r.NormFloat64()) * 1e37 },
	"activated": func(r *rand.Rand) float32 { return float32(r.NormFloat64()) * 6 },
}

func fill(x []float32, seed uint64, kind string) {
	r := rand.New(rand.NewPCG(seed, 1))
	for i := range x {
		x[i] = kinds[kind](r)
	}
}

// near wants got within bound of want, relative to the larger of want and floor; what is not a number or not
// finite in one is so in the other.
func near(t *testing.T, what string, got, want []float32, bound, floor float64) {
	t.Helper()
	for i := range want {
		g, w := float64(got[i]), float64(want[i])
		if g == w || math.IsNaN(g) && math.IsNaN(w) {
			continue
		}
		if d := math.Abs(g - w); !(d <= bound*max(math.Abs(w), floor)) {
			t.Errorf("%s: number %d is %g, want %g", what, i, g, w)
			return
		}
	}
}

// ulp of a float32, relative.
const ulp = 1.0 / (1 << 23)

// least is the distance of subnormal numbers.
const least = 1.0 / (1 << 63) / (1 << 63) / (1 << 23)

// eachPath runs a test on every path that this machine has.
func eachPath(t *testing.T, do func(t *testing.T, p cpu.Path)) {
	for _, p := range cpu.Available() {
		t.Run(p.String(), func(t *testing.T) { do(t, p) })
	}
}

// eachRow calls do with rows of every size and kind.
func eachRow(t *testing.T, do func(t *testing.T, what, kind string, n int)) {
	for _, n := range sizes() {
		for kind := range kinds {
			do(t, fmt.Sprintf("%d %s numbers", n, kind), kind, n)
		}
	}
}

func TestRows(t *testing.T) {
	eachPath(t, func(t *testing.T, p cpu.Path) {
		eachRow(t, func(t *testing.T, what, kind string, n int) {
			x, z, w := make([]float32, n), make([]float32, n), make([]float32, n)
			fill(x, 1, kind)
			fill(z, 2, "normal")
			fill(w, 3, "wide")
			matrix := func(w []float32) cpu.Matrix {
				m := cpu.Matrix{DType: tensor.F32, Rows: 1, Cols: n, Data: make([]byte, 0, 4*n)}
				for _, v := range w {
					b := math.Float32bits(v)
					m.Data = append(m.Data, byte(b), byte(b>>8), byte(b>>16), byte(b>>24))
				}
				return m
			}
			want := make([]float32, n)
			y := fenced(t, n)
			near := func(op string, bound, floor float64) {
				t.Helper()
				near(t, op+" of "+what, y, want, bound, floor)
			}

			cpu.RMSNormRef(want, x, matrix(w), 1e-5, 1)
			p.RMSNorm(y, x, w, 1e-5, 1)
			near("RMSNorm", 4*ulp, least/ulp)
			if kind != "wide" && kind != "huge" { // where the twin's variance is a difference of large numbers
				cpu.LayerNormRef(want, x, matrix(z), matrix(w), 1e-5)
				p.LayerNorm(y, x, z, w, 1e-5)
				near("LayerNorm", 64*ulp, 4)
			}
			cpu.LayerNorm(want, x, matrix(z), matrix(w), 1e-5)
			p.LayerNorm(y, x, z, w, 1e-5)
			near("LayerNorm, plain,", 4*ulp, 4)
			cpu.SwiGLURef(want, x, z)
			p.SwiGLU(y, x, z)
			near("SwiGLU", 6*ulp, 1e-30) // from -89 on the exponential is infinite
			for _, tanh := range []bool{false, true} {
				bound := 16 * ulp
				if tanh {
					bound = 64 * ulp // its exponent is a sum of rounded products, up to 88
				}
				if p == cpu.PlainGo {
					bound = 1e-3 // below -4 a difference of numbers near 1
				}
				cpu.GELURef(want, x, tanh)
				p.GELU(y, x, tanh)
				near(fmt.Sprint("GELU ", tanh), bound, 1e-10)
				cpu.GeGLURef(want, x, z, tanh)
				p.GeGLU(y, x, z, tanh)
				near(fmt.Sprint("GeGLU ", tanh), bound, 1e-10)
			}
			cpu.SoftCapRef(want, x, 30)
			p.SoftCap(y, x, 30)
			near("SoftCap", 4*ulp, 1e-7)
			copy(want, x)
			cpu.SoftmaxRef(want)
			copy(y, x)
			p.Softmax(y)
			near("Softmax", 2e-5, 1e-30) // the difference from the largest is rounded: up to 2^-24 of 87

			for op, do := range map[string]func(p cpu.Path, y []float32){
				"Add":   func(p cpu.Path, y []float32) { p.Add(y, x, z) },
				"Bias":  func(p cpu.Path, y []float32) { p.Bias(y, x, z) },
				"Scale": func(p cpu.Path, y []float32) { p.Scale(y, x, 3.7) },
			} {
				do(cpu.PlainGo, want)
				do(p, y)
				near(op, 0, 0)
				copy(y, x) // in place, and a part alone
			}
			p.SwiGLU(want, x, z)
			copy(y, x)
			cut := n / 3
			p.SwiGLU(y[:cut], y[:cut], z[:cut])
			p.SwiGLU(y[cut:], y[cut:], z[cut:])
			near("SwiGLU in parts", 0, 0)
		})
	})
}

// TestNotANumber wants what is not a number or not finite as the plain kernels give it.
func TestNotANumber(t *testing.T) {
	inf, nan := float32(math.Inf(1)), float32(math.NaN())
	x := []float32{0, float32(math.Copysign(0, -1)), 1, -1, inf, -inf, nan, 3e38, -3e38, 89, -104, 1e-45, -88, 88, 100, -100, 15, -15, nan, 0.625, -0.625}
	ones := make([]float32, len(x))
	for i := range ones {
		ones[i] = 1
	}
	want, y := make([]float32, len(x)), make([]float32, len(x))
	eachPath(t, func(t *testing.T, p cpu.Path) {
		for op, do := range map[string]func(p cpu.Path, y []float32){
			"SwiGLU":        func(p cpu.Path, y []float32) { p.SwiGLU(y, x, ones) },
			"GeGLU":         func(p cpu.Path, y []float32) { p.GeGLU(y, x, ones, false) },
			"GeGLU by tanh": func(p cpu.Path, y []float32) { p.GeGLU(y, x, ones, true) },
			"SoftCap":       func(p cpu.Path, y []float32) { p.SoftCap(y, x, 20) },
			"RMSNorm":       func(p cpu.Path, y []float32) { p.RMSNorm(y, x, ones, 1e-6, 0) },
			"LayerNorm":     func(p cpu.Path, y []float32) { p.LayerNorm(y, x, ones, ones, 1e-6) },
			"Softmax":       func(p cpu.Path, y []float32) { copy(y, x); p.Softmax(y) },
			"Scale":         func(p cpu.Path, y []float32) { p.Scale(y, x, 2) },
		} {
			do(cpu.PlainGo, want)
			do(p, y)
			near(t, op, y, want, 16*ulp, 1e-6)
		}
		masked := []float32{-inf, 2, 3, -inf}
		p.Softmax(masked)
		near(t, "Softmax beside minus infinity", masked, []float32{0, 0.26894143, 0.7310586, 0}, 4*ulp, 0)
	})
}

func TestRotate(t *testing.T) {
	eachPath(t, func(t *testing.T, p cpu.Path) {
		for dim := 2; dim <= 140; dim += 2 {
			for _, pairs := range []int{1, dim / 4, dim / 2} {
				if pairs == 0 {
					continue
				}
				x, cos, sin := make([]float32, 3*dim), make([]float32, pairs), make([]float32, pairs)
				fill(x, 1, "wide")
				fill(cos, 2, "normal")
				fill(sin, 3, "normal")
				for _, neighbours := range []bool{false, true} {
					want, y := make([]float32, len(x)), fenced(t, len(x))
					cpu.Rotate(want, x, cos, sin, dim, neighbours)
					p.Rotate(y, x, cos, sin, dim, neighbours)
					near(t, fmt.Sprint(dim, pairs, neighbours), y, want, 0, 0)
					copy(y, x)
					p.Rotate(y, y, cos, sin, dim, neighbours)
					near(t, fmt.Sprint(dim, pairs, neighbours, " in place"), y, want, 0, 0)
				}
			}
		}
	})
}

func TestExpertSum(t *testing.T) {
	eachPath(t, func(t *testing.T, p cpu.Path) {
		for _, n := range sizes() {
			for _, k := range []int{1, 2, 8} {
				x, shares, want, y := make([]float32, k*n), make([]float32, k), make([]float32, n), fenced(t, n)
				fill(x, 1, "wide")
				fill(shares, 2, "normal")
				cpu.ExpertSum(want, x, shares)
				p.ExpertSum(y, x, shares)
				near(t, fmt.Sprint(n, k), y, want, 0, 0)
			}
		}
	})
}

// TestExp walks through the range of the exponential function, by softmax: its largest number tells the sum.
func TestExp(t *testing.T) {
	eachPath(t, func(t *testing.T, p cpu.Path) {
		var x, y [4096]float32
		worst := 0.0
		for from := -104.0; from < 0; from += 0.5 {
			for i := range x {
				x[i] = float32(from + 0.5*float64(i)/float64(len(x)))
			}
			x[0] = 0 // the largest
			y = x
			p.Softmax(y[:])
			sum := 1 / float64(y[0])
			for i, v := range x[:] {
				want := math.Exp(float64(v))
				off := math.Abs(float64(y[i])*sum-want) / max(want*ulp, least*sum)
				if i > 0 && off > worst {
					worst = off
				}
			}
		}
		if worst > 3 { // 1 of the function, with the sum's and the quotient's
			t.Errorf("off by %.2f units in the last place", worst)
		}
	})
}

func TestArgmax(t *testing.T) {
	inf, nan := float32(math.Inf(1)), float32(math.NaN())
	eachPath(t, func(t *testing.T, p cpu.Path) {
		r := rand.New(rand.NewPCG(1, 2))
		for _, n := range append(sizes(), 0) {
			for _, from := range [][]float32{{0, 1, 2}, {nan}, {-inf}, {nan, -inf}, {nan, -inf, -3, 5}, {inf, nan, 1}, {-3e38, -inf}, {0, float32(math.Copysign(0, -1))}} {
				x := make([]float32, n)
				for i := range x {
					x[i] = from[r.IntN(len(from))]
				}
				if got, want := p.Argmax(x), cpu.PlainGo.Argmax(x); got != want {
					t.Fatalf("the largest of %d from %v is at %d, want %d", n, from, got, want)
				}
				for _, low := range []float32{-inf, -3, 0, 1.5, inf, nan} {
					for at := 0; at <= n; at += 1 + n/9 {
						if got, want := p.NextAbove(x, at, low), cpu.PlainGo.NextAbove(x, at, low); got != want {
							t.Fatalf("above %g from %d on, of %d from %v: %d, want %d", low, at, n, from, got, want)
						}
					}
				}
			}
		}
	})
}

func TestPowers(t *testing.T) {
	inf, nan := float32(math.Inf(1)), float32(math.NaN())
	eachPath(t, func(t *testing.T, p cpu.Path) {
		for _, temperature := range []float64{1, 0.7, 2, 1e-3, 1e-300, 1e300} {
			for _, n := range sizes() {
				x, y := make([]float32, n), make([]float64, n+1)
				fill(x, uint64(n), "activated")
				copy(x, []float32{0, nan, -inf, 20, -40, 1e-40, -60.1, 20 - 60*float32(temperature)})
				most := slices.Max(append([]float32{20}, x[min(2, n):]...))
				y[n] = 7
				e := cpu.NewPowers(most, temperature)
				p.Powers(y, x, e)
				for i, v := range x {
					want := math.Exp((float64(v) - float64(most)) / temperature)
					if got := e.Of(v); y[i] != got || v == v && math.Abs(got-want) > 1.5e-13*want+1e-26 {
						t.Fatalf("%g, most %g, temperature %g: %g, plain %g, want %g", v, most, temperature, y[i], got, want)
					}
				}
				if y[n] != 7 {
					t.Fatal("written beyond the row")
				}
			}
		}
	})
}

func TestStore(t *testing.T) {
	inf := float32(math.Inf(1))
	special := []float32{0, float32(math.Copysign(0, -1)), 65504, 65519, 65520, 1e30, inf, -inf, -65505, 6e-8, 2.9e-8, 3e-8, -6e-8, 1e-45, 6.1e-5, 2049, 2051}
	eachPath(t, func(t *testing.T, p cpu.Path) {
		for _, n := range sizes() {
			for kind := range kinds {
				x := make([]float32, n)
				fill(x, uint64(n), kind)
				copy(x, special)
				x[n-1] = float32(math.NaN())
				all := make([]uint16, n+2)
				all[0], all[n+1] = 7, 7
				p.Store(all[1:n+1], x)
				if all[0] != 7 || all[n+1] != 7 {
					t.Fatalf("%d: written beyond the row", n)
				}
				for i, v := range x {
					got := cpu.F16Ref(all[1+i])
					if math.IsNaN(float64(v)) {
						if !math.IsNaN(float64(got)) {
							t.Fatalf("NaN became %g", got)
						}
						continue
					}
					// No half is nearer, and of two as near this is the even one.
					clamped := min(max(float64(v), -65504), 65504)
					off := math.Abs(float64(got) - clamped)
					for _, other := range []uint16{all[1+i] - 1, all[1+i] + 1} {
						if d := math.Abs(float64(cpu.F16Ref(other)) - clamped); d < off || d == off && all[1+i]&1 == 1 {
							t.Fatalf("%g became %g, not %g", v, got, cpu.F16Ref(other))
						}
					}
				}
			}
		}
		// Every half is itself again.
		var x [1 << 16]float32
		var y [1 << 16]uint16
		for i := range x {
			x[i] = cpu.F16(uint16(i))
		}
		p.Store(y[:], x[:])
		for i, h := range y {
			if e := i & 0x7c00; e != 0x7c00 && int(h) != i {
				t.Fatalf("half %#x became %#x", i, h)
			}
		}
	})
}

// TestShortRows wants a panic where a row is shorter than another, though its memory goes on.
func TestShortRows(t *testing.T) {
	long, short := make([]float32, 40), make([]float32, 40)[:39]
	eachPath(t, func(t *testing.T, p cpu.Path) {
		if p == cpu.PlainGo {
			return
		}
		for op, do := range map[string]func(){
			"RMSNorm": func() { p.RMSNorm(short, long, long, 1, 0) },
			"SwiGLU":  func() { p.SwiGLU(long, long, short) },
			"Add":     func() { p.Add(long, long, short) },
			"Rotate":  func() { p.Rotate(short, long, long[:20], long[:20], 40, false) },
			"Store":   func() { p.Store(make([]uint16, 40)[:39], long) },
			"Powers":  func() { p.Powers(make([]float64, 40)[:39], long, cpu.NewPowers(0, 1)) },
		} {
			cpu.Panics(t, op, do)
		}
	})
}

// BenchmarkOps compares the paths on rows of 2048.
func BenchmarkOps(b *testing.B) {
	const n = 2048
	x, z, w, y, h := make([]float32, n), make([]float32, n), make([]float32, n), make([]float32, n), make([]uint16, n)
	fill(x, 1, "normal")
	fill(z, 2, "normal")
	fill(w, 3, "normal")
	for _, op := range []struct {
		name string
		do   func(p cpu.Path)
	}{
		{"RMSNorm", func(p cpu.Path) { p.RMSNorm(y, x, w, 1e-5, 0) }},
		{"LayerNorm", func(p cpu.Path) { p.LayerNorm(y, x, w, z, 1e-5) }},
		{"Rotate", func(p cpu.Path) { p.Rotate(y, x, z[:64], w[:64], 128, false) }},
		{"RotateNeighbours", func(p cpu.Path) { p.Rotate(y, x, z[:64], w[:64], 128, true) }},
		{"SwiGLU", func(p cpu.Path) { p.SwiGLU(y, x, z) }},
		{"GELU", func(p cpu.Path) { p.GELU(y, x, false) }},
		{"GELUTanh", func(p cpu.Path) { p.GELU(y, x, true) }},
		{"SoftCap", func(p cpu.Path) { p.SoftCap(y, x, 30) }},
		{"Softmax", func(p cpu.Path) { copy(y, x); p.Softmax(y) }},
		{"Add", func(p cpu.Path) { p.Add(y, x, z) }},
		{"Argmax", func(p cpu.Path) { p.Argmax(x) }},
		{"Store", func(p cpu.Path) { p.Store(h, x) }},
	} {
		for _, p := range cpu.Available() {
			b.Run(op.name+"/"+p.String(), func(b *testing.B) {
				for b.Loop() {
					op.do(p)
				}
			})
		}
	}
}
