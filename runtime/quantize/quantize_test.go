package quantize

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/estiba/estiba/internal/fixture"
	"github.com/estiba/estiba/kernels/cpu"
	"github.com/estiba/estiba/runtime/tensor"
	"github.com/estiba/estiba/runtime/weights"
)

// TestHalves wants every half and bfloat16 back, what lies between two of them
// at the nearer one, and ties at the even one.
func TestHalves(t *testing.T) {
	for name, f := range map[string]struct {
		encode func(float32) uint16
		decode func(uint16) float32
		most   uint16 // finite
	}{"F16": {F16, cpu.F16, 0x7bff}, "BF16": {BF16, cpu.BF16, 0x7f7f}} {
		for h := uint16(0); h < f.most; h++ {
			a, b := f.decode(h), f.decode(h+1)
			middle := a + (b-a)/2
			even := h + h&1
			for x, want := range map[float32]uint16{
				a: h, middle: even, math.Nextafter32(middle, a): h, math.Nextafter32(middle, b): h + 1,
			} {
				if got := f.encode(x); got != want {
					t.Fatalf("%s(%g) = %#04x, want %#04x", name, x, got, want)
				}
				if got := f.encode(-x); got != want|0x8000 {
					t.Fatalf("%s(-%g) = %#04x, want %#04x", name, x, got, want|0x8000)
				}
			}
		}
		if got := f.decode(f.encode(math.MaxFloat32)); !math.IsInf(float64(got), 1) {
			t.Errorf("%s of the largest number: %g", name, got)
		}
		if got := f.decode(f.encode(float32(math.NaN()))); got == got {
			t.Errorf("%s of no number: %g", name, got)
		}
	}
}

// TestSharedFiles wants the very bytes of files that another program made of the same weights.
func TestSharedFiles(t *testing.T) {
	from, err := weights.Open(fixture.Shared(t, "models/stories260K/stories260K-f32.gguf"))
	if err != nil {
		t.Fatal(err)
	}
	defer from.Close()
	for _, format := range []string{"f16", "q8_0", "q4_0"} {
		to, err := weights.Open(fixture.Shared(t, "models/stories260K/stories260K-"+format+".gguf"))
		if err != nil {
			t.Fatal(err)
		}
		defer to.Close()
		for _, info := range to.Tensors {
			a, err := from.Tensor(info.Name)
			if err != nil {
				t.Fatal(err)
			}
			b, err := to.Tensor(info.Name)
			if err != nil {
				t.Fatal(err)
			}
			if got := Append(nil, b.DType, numbers(a)); !bytes.Equal(got, b.Data) {
				differ := 0
				for i := range got {
					if got[i] != b.Data[i] {
						differ++
					}
				}
				t.Errorf("%s: %s as %v: %d of %d bytes differ", format, info.Name, b.DType, differ, len(got))
			}
		}
	}
}

// TestLikeGGML wants every byte that ggml's own quantize_row functions (commit
// d99724f2b141, built with -ffp-contract=off) make of 131,072 numbers of
// several sizes. Here are the sums of what they made.
func TestLikeGGML(t *testing.T) {
	x := make([]float32, 512*256)
	r := rand.New(rand.NewPCG(5, 6))
	for i := range x {
		x[i] = float32(int32(r.Uint32())) / float32(uint32(1)<<(24+r.IntN(8)))
	}
	for d, want := range map[tensor.DType]string{
		tensor.Q8_0: "d327bd65cce26942",
		tensor.Q4_0: "29ab64c970585c5d",
		tensor.Q4_1: "4b5e3acaa2a17cef",
		tensor.Q5_0: "68757aa687f00dea",
		tensor.Q5_1: "8ddd4b281669b5cf",
	} {
		sum := sha256.Sum256(Append(nil, d, x))
		if got := fmt.Sprintf("%x", sum[:8]); got != want {
			t.Errorf("%v: got %s, want %s", d, got, want)
		}
	}
}

func numbers(t tensor.Tensor) []float32 {
	n, _ := t.Shape.Elements()
	x := make([]float32, n)
	cpu.Matrix{DType: t.DType, Rows: 1, Cols: int(n), Data: t.Data}.Row(x, 0)
	return x
}

// TestError wants a root mean square error, relative to that of the numbers, as
// low as a format with so many bits has it.
func TestError(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for d, most := range map[tensor.DType]float64{
		tensor.F32: 0, tensor.F16: 3e-4, tensor.BF16: 2.5e-3,
		tensor.Q8_0: 0.007, tensor.Q6_K: 0.022, tensor.Q5_K: 0.040, tensor.Q5_1: 0.045, tensor.Q5_0: 0.05,
		tensor.Q4_K: 0.078, tensor.Q4_1: 0.09, tensor.Q4_0: 0.1,
	} {
		for name, draw := range map[string]func() float64{
			"normal":  r.NormFloat64,
			"shifted": func() float64 { return r.NormFloat64() - 1 },
			"small":   func() float64 { return r.NormFloat64() / 512 },
			"heavy":   func() float64 { x := r.NormFloat64(); return x * x * x / 15 },
		} {
			x := make([]float32, 64*256)
			for i := range x {
				x[i] = float32(draw())
			}
			err := relative(d, x)
			if bound := most * map[string]float64{"heavy": 1.7}[name]; err > max(most, bound) {
				t.Errorf("%v of %s numbers: error %.4f, want at most %.4f", d, name, err, max(most, bound))
			}
		}
	}
}

func relative(d tensor.DType, x []float32) float64 {
	y := numbers(tensor.Tensor{DType: d, Shape: tensor.Shape{len(x)}, Data: Append(nil, d, x)})
	var diff, norm float64
	for i := range x {
		diff += math.Pow(float64(x[i])-float64(y[i]), 2)
		norm += math.Pow(float64(x[i]), 2)
	}
	return math.Sqrt(diff / max(norm, 1e-30))
}

// TestEdges: blocks that are all alike, zero, or have one number only.
func TestEdges(t *testing.T) {
	for _, d := range tensor.DTypes() {
		for name, fill := range map[string]func(i int) float32{
			"zero":     func(int) float32 { return 0 },
			"ones":     func(int) float32 { return 1 },
			"minus":    func(int) float32 { return -1 },
			"one":      func(i int) float32 { return float32(1 - min(i, 1)) },
			"minusOne": func(i int) float32 { return float32(min(i, 1) - 1) },
		} {
			x := make([]float32, 256)
			for i := range x {
				x[i] = fill(i)
			}
			data := Append([]byte("x"), d, x)
			if data[0] != 'x' || int64(len(data)) != 1+d.Bytes(256) {
				t.Fatalf("%v: %d bytes", d, len(data))
			}
			if err := relative(d, x); !(err < 0.04) {
				t.Errorf("%v of %s: error %g", d, name, err)
			}
		}
	}
}

func FuzzAppend(f *testing.F) {
	f.Add(uint64(1), float32(1))
	f.Add(uint64(2), float32(1e-30))
	f.Add(uint64(3), float32(1e30))
	f.Fuzz(func(t *testing.T, seed uint64, scale float32) {
		r := rand.New(rand.NewPCG(seed, seed))
		x := make([]float32, 256)
		for i := range x {
			x[i] = float32(r.NormFloat64()) * scale
		}
		for _, d := range tensor.DTypes() {
			if data := Append(nil, d, x); int64(len(data)) != d.Bytes(256) {
				t.Errorf("%v: %d bytes", d, len(data))
			}
		}
	})
}

func BenchmarkAppend(b *testing.B) {
	r := rand.New(rand.NewPCG(1, 2))
	x := make([]float32, 4096)
	for i := range x {
		x[i] = float32(r.NormFloat64())
	}
	for _, d := range tensor.DTypes() {
		b.Run(fmt.Sprint(d), func(b *testing.B) {
			var dst []byte
			for b.Loop() {
				dst = Append(dst[:0], d, x)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*len(x)), "ns/number")
		})
	}
}
