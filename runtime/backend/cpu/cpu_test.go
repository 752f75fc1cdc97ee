package cpu_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"testing"

	"github.com/estiba/estiba/internal/fixture"
	kernels "github.com/estiba/estiba/kernels/cpu"
	"github.com/estiba/estiba/runtime/arch"
	"github.com/estiba/estiba/runtime/backend"
	"github.com/estiba/estiba/runtime/backend/backendtest"
	"github.com/estiba/estiba/runtime/backend/cpu"
	"github.com/estiba/estiba/runtime/batching"
	"github.com/estiba/estiba/runtime/tensor"
)

func processor(t *testing.T, threads int) *cpu.Backend {
	b, err := cpu.New("cpu-0", cpu.Options{Threads: threads})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	return b
}

// served is what is promised of a path. Keys and values are halves on each; activations are int8 for quantized
// weights, and bfloat16, to which halves are rounded too, in steps of more than 8 tokens on paths that have
// instructions for it.
func served(path kernels.Path) backendtest.Served {
	return backendtest.Served{
		Off: func(d tensor.DType) float64 {
			switch {
			case d == tensor.F32 || path == kernels.PlainGo:
				return 1e-3
			case d == tensor.F16 || d == tensor.BF16:
				return 1e-2
			}
			return 2e-2
		},
		Alone: func(d tensor.DType) bool {
			return path == kernels.PlainGo || path.Form(d, 1) == path.Form(d, 1000)
		},
	}
}

func TestConformance(t *testing.T) {
	for i, path := range kernels.Available() {
		t.Run(path.String(), func(t *testing.T) {
			b, err := cpu.New("cpu-0", cpu.Options{Threads: 3, Path: &path})
			if err != nil {
				t.Fatal(err)
			}
			defer b.Close()
			if i == 0 {
				backendtest.Run(t, b, served(path))
			} else {
				backendtest.RunServed(t, b, served(path))
			}
		})
	}
	t.Run("one thread", func(t *testing.T) { backendtest.RunServed(t, processor(t, 1), served(kernels.Available()[0])) })
}

func TestConformanceOfATrainedModel(t *testing.T) {
	for name, d := range map[string]tensor.DType{"hf-f32": tensor.F32, "hf-bf16": tensor.BF16, "stories260K-q8_0.gguf": tensor.Q8_0, "stories260K-q4_0.gguf": tensor.Q4_0} {
		g, w := backendtest.Load(t, fixture.Shared(t, "models/stories260K/"+name))
		backendtest.Model(t, processor(t, 2), g, w)
		for _, path := range kernels.Available() {
			t.Run(fmt.Sprintf("%s, %v", name, path), func(t *testing.T) {
				b, err := cpu.New("cpu-0", cpu.Options{Threads: 2, Path: &path})
				if err != nil {
					t.Fatal(err)
				}
				defer b.Close()
				promised := served(path)
				if d != tensor.F32 { // some matrices of the quantized ones are halves
					promised.Alone = func(tensor.DType) bool { return served(path).Alone(tensor.F16) }
				}
				backendtest.AsServed(t, b, g, w, promised, d)
			})
		}
	}
}

// TestGolden compares with independent programs.
func TestGolden(t *testing.T) { backendtest.Golden(t, processor(t, 2), true) }

// TestTruncatedFile cuts the mapped file short under a program: its steps end in an error, the
// process and a neighbour on the same goroutines live on.
func TestTruncatedFile(t *testing.T) {
	c := arch.Config{Architecture: "llama", Layers: 2, Hidden: 512, FFN: 512, Heads: 4, KVHeads: 2, HeadDim: 32, Vocabulary: 300, MaxPositions: 64, NormEps: 1e-5, RopeTheta: 10000, BOS: -1}
	g, err := arch.Build(c)
	if err != nil {
		t.Fatal(err)
	}
	memory := backendtest.Random(g, tensor.F16, 1)
	fromFile, path := backendtest.Mapped(t, g, memory)
	b := processor(t, 3)
	limits := backend.Limits{MaxTokens: 32, MaxRows: 1, BlockTokens: 16, Blocks: 4}
	compile := func(w backend.Weights) backend.Program {
		p, err := b.Compile(context.Background(), g, w, limits)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	before, _ := b.Held()
	victim := compile(fromFile)
	neighbour := compile(memory)
	run := func(p backend.Program) ([]float32, error) {
		var out backend.Out
		tokens := slices.Repeat([]int32{299}, 32) // whose row of the table is far from the file's start
		err := p.Run(context.Background(), batching.Batch{Spans: []batching.Span{{Tokens: tokens, Blocks: []int32{0, 1}, Rows: batching.LastRow}}}, &out)
		return out.Logits, err
	}
	want, err := run(neighbour)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := run(victim); err != nil || !slices.Equal(got, want) {
		t.Fatalf("from the mapped file: other logits, or %v", err)
	}
	if err := os.Truncate(path, 4096); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if _, err := run(victim); !errors.Is(err, backend.ErrFault) {
			t.Fatalf("from the truncated file: got %v", err)
		}
		if got, err := run(neighbour); err != nil || !slices.Equal(got, want) {
			t.Fatalf("the neighbour: other logits, or %v", err)
		}
	}
	for range 3 {
		if _, err := b.Compile(context.Background(), g, fromFile, limits); !errors.Is(err, backend.ErrFault) {
			t.Fatalf("a program of the truncated file: got %v", err)
		}
	}
	if err := errors.Join(victim.Close(), neighbour.Close()); err != nil {
		t.Fatal(err)
	}
	if after, _ := b.Held(); after != before {
		t.Errorf("%d bytes are still held", after-before)
	}
	if _, err := run(victim); err == nil {
		t.Error("a closed program runs")
	}
}

// TestProgramsAtOnce runs two programs of one backend from two goroutines.
func TestProgramsAtOnce(t *testing.T) {
	g, err := arch.Build(arch.Config{Architecture: "llama", Layers: 2, Hidden: 256, FFN: 512, Heads: 4, KVHeads: 2, HeadDim: 32, Vocabulary: 300, MaxPositions: 64, NormEps: 1e-5, RopeTheta: 10000, BOS: -1})
	if err != nil {
		t.Fatal(err)
	}
	b := processor(t, 2)
	var wg sync.WaitGroup
	for seed := range uint64(2) {
		p, err := b.Compile(context.Background(), g, backendtest.Random(g, tensor.F32, seed), backend.Limits{MaxTokens: 32, MaxRows: 1, BlockTokens: 16, Blocks: 4})
		if err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			var first []float32
			for range 10 {
				var out backend.Out
				if err := p.Run(context.Background(), batching.Batch{Spans: []batching.Span{{Tokens: make([]int32, 32), Blocks: []int32{0, 1}, Rows: batching.LastRow}}}, &out); err != nil {
					t.Error(err)
				}
				if first == nil {
					first = out.Logits
				}
				if !slices.Equal(first, out.Logits) {
					t.Error("the logits changed")
				}
			}
		})
	}
	wg.Wait()
}
