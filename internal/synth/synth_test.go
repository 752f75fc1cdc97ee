package synth

import (
	"bytes"
	"context"
	"io"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	kernels "github.com/estiba/estiba/kernels/cpu"
	"github.com/estiba/estiba/runtime/model"
	"github.com/estiba/estiba/runtime/tensor"
	"github.com/estiba/estiba/runtime/weights"
)

// little has rows of whole blocks in every format, and others.
var little = Shape{"llama", 2, 256, 96, 4, 2, 64, 700, 128, 1e-5, 1e4, 0, false, false}

func write(t *testing.T, s Shape, o Options) string {
	t.Helper()
	o.Out = filepath.Join(t.TempDir(), "m.gguf")
	result, err := Write(context.Background(), io.Discard, "little", s, o)
	if err != nil {
		t.Fatal(err)
	}
	stat, err := os.Stat(o.Out)
	if err != nil || stat.Size() != result.Bytes || stat.Mode().Perm() != 0o644 {
		t.Fatalf("%+v: %v, %v", result, stat, err)
	}
	return o.Out
}

func TestFormats(t *testing.T) {
	for _, d := range Quants() {
		m, err := model.Open(write(t, little, Options{Quant: d, Seed: 1}))
		if err != nil {
			t.Fatal(err)
		}
		defer m.Close()
		other := map[tensor.DType]string{tensor.Q4_K: "Q5_0", tensor.Q5_K: "Q5_1", tensor.Q6_K: "Q8_0"}[d] // of ffn_down, whose rows have 96 numbers
		if !slices.Contains(m.Stored, d.String()) || other != "" && !slices.Contains(m.Stored, other) {
			t.Errorf("%v: stored as %v", d, m.Stored)
		}
		const text = "Once upon a time, naïve 漢字\n"
		ids := m.Tokenizer.Encode(text, true)
		if got := m.Tokenizer.Decode(ids, false); got != text || len(ids) >= len(text) || ids[0] != 1 {
			t.Errorf("%v: %v reads %q", d, ids, got)
		}
	}
}

// TestSeed: the file depends on the seed alone, and formats round the same weights.
func TestSeed(t *testing.T) {
	read := func(o Options) []byte {
		b, err := os.ReadFile(write(t, little, o))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	a := read(Options{Quant: tensor.F16, Seed: 1})
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	if !bytes.Equal(a, read(Options{Quant: tensor.F16, Seed: 1})) {
		t.Error("equal seeds, other bytes")
	}
	if bytes.Equal(a, read(Options{Quant: tensor.F16, Seed: 2})) {
		t.Error("other seeds, equal bytes")
	}

	row := func(d tensor.DType, name string) []float32 {
		c, err := weights.Open(write(t, little, Options{Quant: d, Seed: 1}))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		w, err := c.Tensor(name)
		if err != nil {
			t.Fatal(err)
		}
		x := make([]float32, w.Shape[1])
		kernels.Matrix{DType: w.DType, Rows: w.Shape[0], Cols: w.Shape[1], Data: w.Data}.Row(x, w.Shape[0]-1)
		return x
	}
	for _, d := range Quants() {
		x, y := row(tensor.F32, "blk.1.ffn_up.weight"), row(d, "blk.1.ffn_up.weight")
		var diff, norm float64
		for i := range x {
			diff += math.Pow(float64(x[i]-y[i]), 2)
			norm += math.Pow(float64(x[i]), 2)
		}
		if math.Abs(norm-1) > 0.3 || math.Sqrt(diff/norm) > 0.1 {
			t.Errorf("%v: norm %g, error %g", d, norm, math.Sqrt(diff/norm))
		}
	}
}

// TestScale decodes every matrix of every format: its numbers have no mean, and the deviation by which
// activations keep their size, within what the format rounds and what few of them vary by.
func TestScale(t *testing.T) {
	for _, d := range Quants() {
		c, err := weights.Open(write(t, little, Options{Quant: d, Seed: 3}))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		for _, p := range little.parts() {
			w, err := c.Tensor(p.name)
			if err != nil {
				t.Fatal(err)
			}
			if p.fill != random {
				continue
			}
			x, sum, square := make([]float32, p.cols), 0.0, 0.0
			for r := range p.rows {
				kernels.Matrix{DType: w.DType, Rows: p.rows, Cols: p.cols, Data: w.Data}.Row(x, r)
				for _, v := range x {
					if v-v != 0 || math.Abs(float64(v)) > 2/math.Sqrt(float64(p.cols)) {
						t.Fatalf("%v: %s row %d has %v", w.DType, p.name, r, v)
					}
					sum, square = sum+float64(v), square+float64(v)*float64(v)
				}
			}
			n, want := float64(p.rows*p.cols), 1/math.Sqrt(float64(p.cols))
			if mean, deviation := sum/n, math.Sqrt(square/n); math.Abs(mean) > want/20 || math.Abs(deviation/want-1) > 0.05 {
				t.Errorf("%v: %s has mean %g and deviation %g, want %g", w.DType, p.name, mean, deviation, want)
			}
		}
	}
}

// TestShapes reads the header of every shape, in files of up to 32 GB that are holes
// but for it.
func TestShapes(t *testing.T) {
	parameters := map[string]int64{ // of the published models, the divisors of rotations aside
		"stories15m": 15_191_712, "qwen2.5-0.5b": 494_032_768, "tinyllama-1.1b": 1_100_048_384,
		"llama-3.2-1b": 1_235_814_400, "qwen2.5-7b": 7_615_616_512, "llama-3.1-8b": 8_030_261_248,
	}
	for _, name := range Shapes() {
		s := shapes[name]
		for _, d := range []tensor.DType{tensor.F32, tensor.Q4_K} {
			var infos []weights.Info
			total := int64(0)
			for _, p := range s.parts() {
				infos = append(infos, p.info(d))
				if p.fill != wavelengths {
					total += int64(max(p.rows, 1)) * int64(p.cols)
				}
			}
			if total != parameters[name] {
				t.Errorf("%s: %d parameters, want %d", name, total, parameters[name])
			}
			header, err := weights.GGUFHeader(s.fields(name, d), infos)
			if err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(t.TempDir(), "m.gguf")
			last := infos[len(infos)-1]
			if err := os.WriteFile(path, header, 0o644); err != nil {
				t.Fatal(err)
			}
			if err := os.Truncate(path, last.Offset+last.Size); err != nil {
				t.Fatal(err)
			}
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			start := time.Now()
			h, err := model.Inspect(path)
			took := time.Since(start)
			runtime.ReadMemStats(&after)
			if err != nil {
				t.Errorf("%s: %v", name, err)
				continue
			}
			if bytes := after.TotalAlloc - before.TotalAlloc; took > 3*time.Second || bytes > 32<<20 {
				t.Errorf("%s: inspected in %v with %d bytes", name, took, bytes)
			}
			if h.Config.Vocabulary != s.Vocabulary || h.Config.MaxPositions != s.Context {
				t.Errorf("%s: %+v", name, h.Config)
			}
		}
	}
}

// TestDivisors are those of llama 3.1, whose file has ones, then a slope, then 8.
func TestDivisors(t *testing.T) {
	d := shapes["llama-3.1-8b"].divisors()
	if d[0] != 1 || d[28] != 1 || !(d[29] > 1 && d[34] < 8 && slices.IsSorted(d)) || d[35] != 8 || d[63] != 8 {
		t.Errorf("%v", d)
	}
}

func TestVocabulary(t *testing.T) {
	for _, n := range []int{400, 32000, 152064} {
		tokens, scores, types := vocabulary(n)
		if len(tokens) != n || len(scores) != n || len(types) != n {
			t.Fatalf("%d: %d, %d, %d", n, len(tokens), len(scores), len(types))
		}
		slices.Sort(tokens)
		if len(slices.Compact(tokens)) != n {
			t.Errorf("%d: a token twice", n)
		}
	}
}

func TestFailures(t *testing.T) {
	dir := t.TempDir()
	err := Run(context.Background(), io.Discard, io.Discard, "zeppelin", Options{Quant: tensor.F32, Out: filepath.Join(dir, "m")})
	if err == nil || !strings.Contains(err.Error(), "llama-3.1-8b") {
		t.Error(err)
	}
	if err := Run(context.Background(), io.Discard, io.Discard, "stories15m", Options{Quant: tensor.F32, Out: filepath.Join(dir, "no", "m")}); err == nil || !strings.Contains(err.Error(), "make it first") {
		t.Error(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Millisecond)
	defer cancel()
	err = Run(ctx, io.Discard, io.Discard, "llama-3.1-8b", Options{Quant: tensor.F32, Out: filepath.Join(dir, "m")})
	if err == nil || !strings.Contains(err.Error(), "interrupted") {
		t.Error(err)
	}
	left, err := os.ReadDir(dir)
	if d := cmp.Diff([]os.DirEntry(nil), left); d != "" && len(left) > 0 || err != nil {
		t.Error(d, err)
	}
}
