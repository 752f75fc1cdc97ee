package cpu

import (
	"bytes"
	"context"
	"errors"
	"runtime"
	"slices"
	"strings"
	"testing"

	kernels "github.com/estiba/estiba/kernels/cpu"
	"github.com/estiba/estiba/runtime/arch"
	"github.com/estiba/estiba/runtime/backend"
	"github.com/estiba/estiba/runtime/backend/backendtest"
	"github.com/estiba/estiba/runtime/batching"
	"github.com/estiba/estiba/runtime/device"
	"github.com/estiba/estiba/runtime/graph"
	"github.com/estiba/estiba/runtime/tensor"
)

// eachProgram compiles a model of each kind on each path, with three threads, exactly and as it is served. Its weights
// are random, of one format; Invalid: they are no numbers.
func eachProgram(t *testing.T, d tensor.DType, check func(t *testing.T, g *graph.Graph, p backend.Program)) {
	t.Helper()
	for name, c := range map[string]arch.Config{
		"dense":   {Architecture: "llama", Layers: 2, Hidden: 64, FFN: 96, Heads: 4, KVHeads: 2, HeadDim: 16, Vocabulary: 70, MaxPositions: 64, NormEps: 1e-5, RopeTheta: 500, BOS: -1},
		"experts": {Architecture: "mixtral", Layers: 2, Hidden: 64, FFN: 96, Heads: 4, KVHeads: 2, HeadDim: 16, Vocabulary: 70, MaxPositions: 64, NormEps: 1e-5, RopeTheta: 500, BOS: -1, Experts: 4, ExpertsPerToken: 2, ExpertFFN: 96},
	} {
		g, err := arch.Build(c)
		if err != nil {
			t.Fatal(err)
		}
		weights := noNumbers(g)
		if d != tensor.Invalid {
			weights = backendtest.Random(g, d, 7)
		}
		for _, path := range kernels.Available() {
			b, err := New("cpu-0", Options{Threads: 3, Path: &path})
			if err != nil {
				t.Fatal(err)
			}
			for _, exact := range []bool{true, false} {
				kind := path.String()
				if exact {
					kind = "exact"
				}
				t.Run(name+", "+kind, func(t *testing.T) {
					p, err := b.Compile(t.Context(), g, weights, backend.Limits{MaxTokens: 24, MaxRows: 24, BlockTokens: 8, Blocks: 8, Exact: exact})
					if err != nil {
						t.Fatal(err)
					}
					defer p.Close()
					check(t, g, p)
				})
			}
			if err := b.Close(); err != nil {
				t.Error(err)
			}
		}
	}
}

// prompt of some tokens that are not all alike.
func prompt(n int) []int32 {
	tokens := make([]int32, n)
	for i := range tokens {
		tokens[i] = int32(i * 37 % 70)
	}
	return tokens
}

// TestNoRows: steps of which no logits are wanted, and steps of nothing, leave the cache as those do of which all are.
func TestNoRows(t *testing.T) {
	for _, d := range []tensor.DType{tensor.F32, tensor.Q8_0, tensor.BF16} {
		eachProgram(t, d, func(t *testing.T, g *graph.Graph, p backend.Program) {
			tokens, all, silent := prompt(21), []int32{0, 1, 2}, []int32{3, 4, 5}
			run := func(b batching.Batch, hidden bool) (logits, h []float32) {
				t.Helper()
				out := backend.Out{WantHidden: hidden, Logits: []float32{1, 2, 3}}
				if err := p.Run(t.Context(), b, &out); err != nil {
					t.Fatal(err)
				}
				return out.Logits, out.Hidden
			}
			span := func(blocks []int32, from, to int, rows batching.Rows) batching.Span {
				return batching.Span{Sequence: uint64(blocks[0]), Tokens: tokens[from:to], Start: from, Blocks: blocks, Rows: rows}
			}
			nothing := func() {
				t.Helper()
				for _, hidden := range []bool{false, true} {
					if logits, h := run(batching.Batch{}, hidden); len(logits)+len(h) > 0 {
						t.Errorf("a step of nothing gives %d logits and %d numbers", len(logits), len(h))
					}
				}
			}
			nothing()
			for from := 0; from < 20; from += 10 {
				logits, hidden := run(batching.Batch{Spans: []batching.Span{span(silent, from, from+10, batching.NoRows)}}, true)
				if len(logits)+len(hidden) > 0 {
					t.Errorf("%d logits and %d numbers that nobody wants", len(logits), len(hidden))
				}
				nothing()
				run(batching.Batch{Spans: []batching.Span{span(all, from, from+10, batching.AllRows)}}, false)
			}
			// One that wants nothing beside one that does.
			want, _ := run(batching.Batch{Spans: []batching.Span{span(all, 20, 21, batching.LastRow), span([]int32{6}, 0, 1, batching.NoRows)}}, false)
			got, _ := run(batching.Batch{Spans: []batching.Span{span([]int32{7}, 0, 1, batching.NoRows), span(silent, 20, 21, batching.LastRow)}}, false)
			if len(got) != g.Vocabulary() || !slices.Equal(got, want) {
				t.Errorf("after silent steps %d logits %.3f..., want %d, %.3f...", len(got), got[:min(3, len(got))], len(want), want[:3])
			}
		})
	}
}

// TestNoNumbers: weights that are no numbers, in which nothing is likeliest and no expert the best, make logits that are none.
func TestNoNumbers(t *testing.T) {
	eachProgram(t, tensor.Invalid, func(t *testing.T, g *graph.Graph, p backend.Program) {
		for _, rows := range []int{1, 3, 20} {
			var out backend.Out
			batch := batching.Batch{Spans: []batching.Span{{Tokens: prompt(rows), Blocks: []int32{0, 1, 2}, Rows: batching.AllRows}}}
			if err := p.Run(t.Context(), batch, &out); err != nil {
				t.Fatal(err)
			}
			for i, x := range out.Logits {
				if x == x {
					t.Fatalf("of %d tokens, logit %d is %v", rows, i, x)
				}
			}
		}
	})
}

// noNumbers are weights of float32 that are no numbers.
func noNumbers(g *graph.Graph) backend.Weights {
	return func(name string) (tensor.Tensor, error) {
		for _, w := range g.Weights {
			if w.Name == name {
				n, _ := w.Shape.Elements()
				return tensor.Tensor{Name: name, DType: tensor.F32, Shape: w.Shape, Data: bytes.Repeat([]byte{0xff}, int(4*n))}, nil
			}
		}
		return tensor.Tensor{}, errors.New("no such weight")
	}
}

// TestProcessorsChange: Go's processors become more and fewer while programs compute, as they do when the CPU
// quota of a control group is changed. Answers stay the same, and nobody waits for ever.
func TestProcessorsChange(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(0))
	eachProgram(t, tensor.Q8_0, func(t *testing.T, _ *graph.Graph, p backend.Program) {
		batch := batching.Batch{Spans: []batching.Span{{Tokens: prompt(20), Blocks: []int32{0, 1, 2}, Rows: batching.AllRows}}}
		var want []float32
		for i := range 40 {
			runtime.GOMAXPROCS(1 + i*7%5)
			var out backend.Out
			if err := p.Run(t.Context(), batch, &out); err != nil {
				t.Fatal(err)
			}
			if want == nil {
				want = out.Logits
			}
			if !slices.Equal(out.Logits, want) {
				t.Fatalf("step %d has other logits", i)
			}
		}
	})
}

// TestLoadStopsAnywhere: a load whose context ends after any part of it ends with that, gives back what it had, and
// leaves the backend as it was: the next one is like any other.
func TestLoadStopsAnywhere(t *testing.T) {
	g, err := arch.Build(arch.Config{
		Architecture: "llama", Layers: 3, Hidden: 256, FFN: 512, Heads: 4, KVHeads: 2, HeadDim: 64,
		Vocabulary: 300, MaxPositions: 64, NormEps: 1e-5, RopeTheta: 500, BOS: -1,
	})
	if err != nil {
		t.Fatal(err)
	}
	weights := backendtest.Random(g, tensor.Q8_0, 3)
	b, err := New("cpu-0", Options{Threads: 3})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	limits := backend.Limits{MaxTokens: 4, MaxRows: 1, BlockTokens: 4, Blocks: 1}
	answer := func() []float32 {
		t.Helper()
		p, err := b.Compile(t.Context(), g, weights, limits)
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close()
		var out backend.Out
		if err := p.Run(t.Context(), batching.Batch{Spans: []batching.Span{{Tokens: []int32{1, 2, 3}, Blocks: []int32{0}, Rows: batching.LastRow}}}, &out); err != nil {
			t.Fatal(err)
		}
		return out.Logits
	}
	want := answer()
	before, _ := b.Held()
	for stop := range 12 { // parts that are read; 0: before it begins
		ctx, cancel := context.WithCancel(t.Context())
		parts, last := 0, 0.0
		stopping := limits
		stopping.Progress = func(done float64) {
			if parts++; parts == stop {
				cancel()
			}
			if done < last {
				t.Errorf("progress from %v to %v", last, done)
			}
			last = done
		}
		if stop == 0 {
			cancel()
		}
		if _, err := b.Compile(ctx, g, weights, stopping); !errors.Is(err, context.Canceled) {
			t.Errorf("stopped after %d parts: got %v", stop, err)
		}
		cancel()
		if after, _ := b.Held(); after != before {
			t.Errorf("stopped after %d parts, %d bytes are still held", stop, after-before)
		}
	}
	if got := answer(); !slices.Equal(got, want) {
		t.Error("a load after those that were stopped gives other logits")
	}
	if n := b.pool.active.Load(); n != 0 {
		t.Errorf("teams %b have not been left", n)
	}
}

// TestNoRoom: a program is refused before it claims anything where there is less memory than it needs, beside
// what others have claimed; weights that stay in their files need none.
func TestNoRoom(t *testing.T) {
	g, err := arch.Build(arch.Config{
		Architecture: "llama", Layers: 2, Hidden: 256, FFN: 512, Heads: 4, KVHeads: 2, HeadDim: 64,
		Vocabulary: 1024, MaxPositions: 512, NormEps: 1e-5, RopeTheta: 500, BOS: -1,
	})
	if err != nil {
		t.Fatal(err)
	}
	weights, _ := fromFile(t, g, tensor.Q8_0)
	limits := backend.Limits{MaxTokens: 16, MaxRows: 1, BlockTokens: 16, Blocks: 32}
	made := func(bytes int64, others int, exact bool) (backend.Program, error) {
		b, err := New("cpu-0", Options{Threads: 1, Left: device.Left{Bytes: bytes, Bound: "its control group may have a little"}})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { b.Close() })
		l := limits
		l.Exact = exact
		for range others {
			p, err := b.Compile(t.Context(), g, weights, l)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { p.Close() })
		}
		before := claimed.Load()
		p, err := b.Compile(t.Context(), g, weights, l)
		if err == nil {
			t.Cleanup(func() { p.Close() })
		} else if claimed.Load() != before {
			t.Errorf("%d bytes were claimed in vain", claimed.Load()-before)
		}
		return p, err
	}
	free, err := made(0, 0, false) // no bound
	if err != nil {
		t.Fatal(err)
	}
	held := free.Bytes()
	need := held.Total() + claimed.Load()
	if kernels.PlainGo == free.(*program).path {
		need -= held.Weights // which are where they were
	}
	if _, err := made(need+need/10, 0, false); err != nil {
		t.Errorf("with enough: %v", err)
	}
	for name, c := range map[string]struct {
		bytes  int64
		others int
		exact  bool
	}{
		"too little":         {claimed.Load() + held.KV, 0, false},
		"others have it":     {claimed.Load() + held.KV*3, 1, true},
		"exact, for its own": {claimed.Load() + held.KV, 0, true},
	} {
		_, err := made(c.bytes, c.others, c.exact)
		no, ok := errors.AsType[*backend.NoRoomError](err)
		if !ok || no.Need.KV < held.KV || no.Have > c.bytes || c.exact && no.Need.Weights != 0 || !strings.Contains(err.Error(), "can be had (its control group may have a little)") {
			t.Errorf("%s: got %v", name, err)
		}
	}
}
