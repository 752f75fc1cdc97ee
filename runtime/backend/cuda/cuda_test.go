//go:build cuda && cgo

package cuda

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/estiba/estiba/internal/fixture"
	"github.com/estiba/estiba/runtime/arch"
	"github.com/estiba/estiba/runtime/backend"
	"github.com/estiba/estiba/runtime/backend/backendtest"
	"github.com/estiba/estiba/runtime/backend/cpu"
	"github.com/estiba/estiba/runtime/backend/cuda/driver/emulated"
	"github.com/estiba/estiba/runtime/batching"
	"github.com/estiba/estiba/runtime/device"
	"github.com/estiba/estiba/runtime/graph"
	"github.com/estiba/estiba/runtime/sampling"
	"github.com/estiba/estiba/runtime/tensor"
)

// claim gives the first device, with memory for so many extents.
func claim(t *testing.T, extents int) device.Device {
	t.Helper()
	all, err := Devices(device.Options{Memory: int64(extents) * Extent})
	if errors.Is(err, ErrNone) && os.Getenv("ESTIBA_GPU") == "" { // which hack/cuda/gpu.sh sets
		t.Skipf("SKIPPED: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return all[0]
}

func opened(t *testing.T, extents int) *Backend {
	t.Helper()
	b, err := New(claim(t, extents), Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil && !t.Failed() {
			t.Error(err)
		}
	})
	return b.(*Backend)
}

// forget the first device as it was found: settings make another one of it.
func forget(t *testing.T) {
	t.Helper()
	c, err := found.take(0)
	if err == nil {
		err = c.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
}

// served is what is promised of a device: keys and values are halves, activations of quantized weights int8 in steps of few
// rows, and bfloat16, or halves for F16, in steps of more. Kernels of few rows are others than those of many.
var served = backendtest.Served{
	Off: func(d tensor.DType) float64 {
		switch d {
		case tensor.F32:
			return 1e-3
		case tensor.F16, tensor.BF16:
			return 1e-2
		}
		return 2e-2
	},
	Alone: func(tensor.DType) bool { return false },
}

func TestConformance(t *testing.T) { backendtest.RunServed(t, opened(t, 400), served) }

func TestGolden(t *testing.T) { backendtest.Golden(t, opened(t, 400), false) }

// TestGreedy goes on with a trained model as the processor does with exact arithmetic.
func TestGreedy(t *testing.T) {
	b := opened(t, 32)
	judge, err := cpu.New("cpu-0", cpu.Options{Threads: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer judge.Close()
	for _, path := range []string{fixture.Model("stories260K/hf-f32"), fixture.Model("stories260K/stories260K-f16.gguf"), "hf-bf16", "stories260K-q8_0.gguf"} {
		if !filepath.IsAbs(path) {
			path = fixture.Shared(t, "models/stories260K/"+path)
		}
		g, w := backendtest.Load(t, path)
		limits := backend.Limits{MaxTokens: 16, MaxRows: 4, BlockTokens: 16, Blocks: 8}
		got := greedy(t, b, g, w, limits, 60)
		limits.Exact = true
		if want := greedy(t, judge, g, w, limits, 60); !slices.Equal(got, want) {
			t.Errorf("%s goes on with\n%v, want\n%v", path, got, want)
		}
	}
}

// greedy is the likeliest tokens of a model, one after the other.
func greedy(t *testing.T, b backend.Backend, g *graph.Graph, w backend.Weights, l backend.Limits, n int) (ids []int32) {
	t.Helper()
	p, err := b.Compile(t.Context(), g, w, l)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	tokens := []int32{1, 403, 407, 261, 378}
	var out backend.Out
	at := 0
	for len(ids) < n {
		run(t, p, &out, at, tokens, []int32{5, 1, 7, 0, 2, 3, 4, 6})
		at += len(tokens)
		tokens = []int32{int32(slices.Index(out.Logits, slices.Max(out.Logits)))}
		ids = append(ids, tokens[0])
	}
	return ids
}

func run(t *testing.T, p backend.Program, out *backend.Out, start int, tokens, blocks []int32) {
	t.Helper()
	if err := step(p, out, start, tokens, blocks); err != nil {
		t.Fatal(err)
	}
}

func step(p backend.Program, out *backend.Out, start int, tokens, blocks []int32) error {
	spans := []batching.Span{{Tokens: tokens, Start: start, Blocks: blocks, Rows: batching.LastRow}}
	return p.Run(context.Background(), batching.Batch{Spans: spans}, out)
}

// small is a model of some 4 extents, by default.
func small(t *testing.T, wider int) *graph.Graph {
	t.Helper()
	g, err := arch.Build(arch.Config{
		Architecture: "llama", Layers: 2, Hidden: 256 * wider, FFN: 512, Heads: 4 * wider, KVHeads: 2 * wider, HeadDim: 64, TiedOutput: true,
		Vocabulary: 300, MaxPositions: 256, NormEps: 1e-5, RopeTheta: 10000, BOS: -1,
	})
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// inSlab are limits of programs whose KV blocks are the slab's.
var inSlab = backend.Limits{MaxTokens: 32, MaxRows: 4, BlockTokens: 16, PerExtent: 16}

// TestModelsAtOnce loads and runs several models from goroutines of their own, whose texts are what they are alone.
func TestModelsAtOnce(t *testing.T) {
	b := opened(t, 120)
	g := small(t, 1)
	text := func(seed uint64) ([]float32, error) {
		p, err := b.Compile(t.Context(), g, backendtest.Random(g, tensor.F16, seed), inSlab)
		if err != nil {
			return nil, err
		}
		defer p.Close()
		var all []float32
		var out backend.Out
		blocks := []int32{int32(seed) * 16, int32(seed)*16 + 40, int32(seed)*16 + 3}
		for at, n := range []int{0: 9, 9: 1, 10: 1, 11: 5, 16: 1, 17: 1} {
			if n == 0 {
				continue
			}
			tokens := make([]int32, n)
			for i := range tokens {
				tokens[i] = int32(at+i) * 7 % 300
			}
			if err := step(p, &out, at, tokens, blocks); err != nil {
				return nil, err
			}
			all = append(all, out.Logits...)
		}
		return all, nil
	}
	var alone [][]float32
	for seed := range uint64(6) {
		x, err := text(seed)
		if err != nil {
			t.Fatal(err)
		}
		alone = append(alone, x)
	}
	var wg sync.WaitGroup
	for seed := range uint64(6) {
		wg.Go(func() {
			if x, err := text(seed); err != nil || !slices.Equal(x, alone[seed]) {
				t.Errorf("model %d: other logits in company, or %v", seed, err)
			}
		})
	}
	wg.Wait()
}

// ofPrograms is what programs hold, KV extents apart. What steps work in stays the backend's as it grows, and grows more
// where a device has more processors.
func ofPrograms(b *Backend) int64 {
	held, _ := b.Held()
	for _, r := range []region{b.numbers, b.scratch, b.sampling} {
		held -= int64(r.extents) * Extent
	}
	return held
}

// TestEviction: what programs and KV extents give back is there for the next, wherever it lies.
func TestEviction(t *testing.T) {
	b := opened(t, 40)
	g, w := small(t, 1), backendtest.Random(small(t, 1), tensor.F32, 1)
	before := ofPrograms(b)
	var all []backend.Program
	for {
		p, err := b.Compile(t.Context(), g, w, inSlab)
		if err != nil {
			if no, ok := errors.AsType[*backend.NoRoomError](err); !ok || no.Have >= no.Need.Total() {
				t.Fatal(err)
			}
			break
		}
		all = append(all, p)
	}
	if len(all) < 4 {
		t.Fatalf("%d programs have room", len(all))
	}
	var out backend.Out
	run(t, all[0], &out, 0, []int32{1, 2, 3}, []int32{0})
	want := slices.Clone(out.Logits)
	for i := 1; i < len(all); i += 2 { // leaves holes
		if err := all[i].Close(); err != nil {
			t.Fatal(err)
		}
	}
	wide := small(t, 2)
	p, err := b.Compile(t.Context(), wide, backendtest.Random(wide, tensor.F32, 1), inSlab)
	if err != nil {
		t.Fatalf("the room of small ones is not a large one's: %v", err)
	}
	run(t, p, &out, 0, []int32{1, 2, 3}, []int32{300})
	run(t, all[0], &out, 0, []int32{1, 2, 3}, []int32{16})
	if !slices.Equal(out.Logits, want) {
		t.Error("other logits in another extent")
	}
	if _, kv := b.Held(); kv != 3*Extent {
		t.Errorf("%d bytes are behind KV extents", kv)
	}
	b.Discard([]int32{0, 1, 18, 5})
	if _, kv := b.Held(); kv != 0 {
		t.Errorf("%d bytes are still behind KV extents", kv)
	}
	run(t, all[0], &out, 0, []int32{1, 2, 3}, []int32{0})
	if !slices.Equal(out.Logits, want) {
		t.Error("other logits in an extent that came back")
	}
	b.Discard([]int32{0})
	for i := 0; i < len(all); i += 2 {
		if err := all[i].Close(); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	if held := ofPrograms(b) - before; held > Extent { // the scrap stays
		t.Errorf("%d bytes more are held", held)
	}
	if _, kv := b.Held(); kv != 0 {
		t.Errorf("%d bytes are behind KV extents", kv)
	}
}

// TestMemoryAskedFor: who has asked for too little is told so, not to look for others' memory.
func TestMemoryAskedFor(t *testing.T) {
	if _, err := Devices(device.Options{Memory: 1 << 20}); err == nil || !strings.Contains(err.Error(), "1 MiB, which is what models may use of it, leaves no room for one; raise --memory") {
		t.Error(err)
	}
}

// TestOutOfMemory: what a device has no memory for is an error of who asked, and of nobody else.
func TestOutOfMemory(t *testing.T) {
	emulated.Set(t, "memory=256Mi")
	g := small(t, 1)
	d := claim(t, 40)
	d.Capacity = 400 << 20
	if _, err := New(d, Options{}); err == nil || !strings.Contains(err.Error(), "claim") {
		t.Errorf("more than the device has: got %v", err)
	}
	lazy, err := New(d, Options{Lazy: true}) // and the memory is missing when it is needed
	if err != nil {
		t.Fatal(err)
	}
	defer lazy.Close()
	limits := inSlab
	limits.PerExtent, limits.Blocks = 0, 4
	w := backendtest.Random(g, tensor.F32, 1)
	first, err := lazy.Compile(t.Context(), g, w, limits)
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	var out backend.Out
	run(t, first, &out, 0, []int32{1, 2, 3}, []int32{0})
	want := slices.Clone(out.Logits)
	for {
		p, err := lazy.Compile(t.Context(), g, w, limits)
		if err != nil {
			if _, broken := errors.AsType[*backend.DeviceError](err); broken {
				t.Errorf("no memory, and the device is blamed: %v", err)
			}
			break
		}
		defer p.Close()
	}
	run(t, first, &out, 0, []int32{1, 2, 3}, []int32{0})
	if !slices.Equal(out.Logits, want) {
		t.Error("other logits after a load that had no room")
	}
}

// TestDeviceErrors: which of the driver's errors are a step's, and which the device's.
func TestDeviceErrors(t *testing.T) {
	g := small(t, 1)
	w := backendtest.Random(g, tensor.F16, 1)
	for _, c := range []struct {
		name, settings string
		broken, lost   bool
	}{
		{"a launch that is refused", "fail=launch:1:701", false, false},
		{"a copy that is refused", "fail=copy:1:1", false, false},
		{"an illegal address", "fail=launch:2:700", true, false},
		{"a device that is gone", "fail=launch:2:999", true, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			emulated.Set(t, "")
			b, err := New(claim(t, 40), Options{})
			if err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := b.Close(); (err != nil) != c.broken && !c.lost || err != nil && strings.Contains(err.Error(), "\n") {
					t.Errorf("closing it: %v", err)
				}
			}()
			p, err := b.Compile(t.Context(), g, w, inSlab)
			if err != nil {
				t.Fatal(err)
			}
			defer p.Close()
			var out backend.Out
			prompt := []int32{1, 2, 3}
			run(t, p, &out, 0, prompt, []int32{0})
			want := slices.Clone(out.Logits)
			emulated.Set(t, c.settings)
			err = step(p, &out, 0, prompt, []int32{0})
			if err == nil {
				t.Fatal("the step succeeded")
			}
			e, broken := errors.AsType[*backend.DeviceError](err)
			if broken != c.broken || broken && e.Lost != c.lost {
				t.Errorf("got %v, of the device: %v", err, broken)
			}
			err = step(p, &out, 0, prompt, []int32{0})
			if c.broken {
				if _, still := errors.AsType[*backend.DeviceError](err); !still {
					t.Errorf("the next step: got %v", err)
				}
				if _, err := b.Compile(t.Context(), g, w, inSlab); err == nil {
					t.Error("a load on a broken device")
				}
				emulated.Set(t, "") // what a lost device had to do still it does now, rather than in the next test
				_ = b.(*Backend).stream.Synchronize()
				return
			}
			if err != nil || !slices.Equal(out.Logits, want) {
				t.Errorf("the next step: other logits, or %v", err)
			}
		})
	}
}

// TestMachineCodeRefused: a driver that does not know the kernels' machine code compiles them from PTX; one that does not
// take that either is told with both of its errors. What else goes wrong with a load is not tried again.
func TestMachineCodeRefused(t *testing.T) {
	d := claim(t, 32)
	forget(t)
	for settings, want := range map[string]struct{ says, logs string }{
		"":                                {},
		"images=ptx":                      {logs: "compiles them"},
		"images=ptx,fail=load:2:218":      {says: "CUDA_ERROR_NO_BINARY_FOR_GPU (209); and as PTX: load kernels: CUDA_ERROR_INVALID_PTX (218)", logs: "compiles them"},
		"images=ptx,capability=9.0":       {logs: "compiles them"},
		"capability=12.0,images=ptx":      {}, // it gets PTX anyway
		"capability=12.0,fail=load:1:222": {says: "load the kernels: load kernels: CUDA_ERROR_UNSUPPORTED_PTX_VERSION (222)"},
		"fail=load:1:2":                   {says: "load the kernels: load kernels: CUDA_ERROR_OUT_OF_MEMORY (2)"},
		"fail=load:1:200":                 {logs: "CUDA_ERROR_INVALID_IMAGE"},
	} {
		emulated.Set(t, settings)
		var log bytes.Buffer
		b, err := New(d, Options{Lazy: true, Log: slog.New(slog.NewTextHandler(&log, nil))})
		if err == nil {
			if _, err := b.(*Backend).kernel("scale"); err != nil {
				t.Errorf("%s: %v", settings, err)
			}
			if err := b.Close(); err != nil {
				t.Errorf("%s: %v", settings, err)
			}
		}
		if (err == nil) != (want.says == "") || err != nil && !strings.HasSuffix(err.Error(), want.says) {
			t.Errorf("%s: %v, want %q", settings, err, want.says)
		}
		if said := log.String(); (said == "") != (want.logs == "") || !strings.Contains(said, want.logs) || strings.Count(said, "\n") > 1 {
			t.Errorf("%s: logged %q, want %q", settings, said, want.logs)
		}
	}
}

// TestPTXHasNothingWide: kernels that only machine code for 9.0 has are not asked for where the driver compiles PTX.
func TestPTXHasNothingWide(t *testing.T) {
	g := small(t, 1)
	for settings, want := range map[string]bool{"capability=9.0": true, "capability=9.0,images=ptx": false} {
		forget(t)
		emulated.Set(t, settings)
		made, err := New(claim(t, 40), Options{})
		if err != nil {
			t.Fatal(err)
		}
		b := made.(*Backend)
		limits := inSlab
		limits.MaxTokens = 100
		p, err := b.Compile(t.Context(), g, backendtest.Random(g, tensor.F16, 1), limits)
		if err != nil {
			t.Fatal(err)
		}
		var out backend.Out
		run(t, p, &out, 0, make([]int32, 100), []int32{0, 1, 2, 3, 4, 5, 6})
		wide := false
		for name := range b.kernels {
			wide = wide || strings.HasPrefix(name, "wide")
		}
		if wide != want {
			t.Errorf("%s: wide products %v", settings, wide)
		}
		if err := errors.Join(p.Close(), b.Close()); err != nil {
			t.Error(err)
		}
	}
}

// TestStepsCopyNothingIn: the engine that copies to a device may have a load's pieces to copy before.
func TestStepsCopyNothingIn(t *testing.T) {
	emulated.Set(t, "")
	b := opened(t, 40)
	g := small(t, 1)
	p, err := b.Compile(t.Context(), g, backendtest.Random(g, tensor.F16, 1), inSlab)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	for name, draws := range map[string][]sampling.Draw{"logits": nil, "tokens that are drawn": make([]sampling.Draw, 1)} {
		for _, tokens := range [][]int32{{1, 2, 3}, {1}} {
			emulated.Set(t, "fail=copy:1:1")
			err := step(p, &backend.Out{Draws: draws}, 0, tokens, []int32{0})
			if err == nil || !strings.Contains(err.Error(), "copy from the device") {
				t.Errorf("%s of %d tokens: the first copy of the step fails with %v", name, len(tokens), err)
			}
		}
	}
}

// TestNarrow: on 9.0 the gates of a prompt make bf16, which the products after them read, and nobody else.
func TestNarrow(t *testing.T) {
	emulated.Set(t, "capability=9.0")
	b := opened(t, 40)
	g := small(t, 1)
	limits := inSlab
	limits.MaxTokens = 96
	p, err := b.Compile(t.Context(), g, backendtest.Random(g, tensor.BF16, 1), limits)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	tokens := make([]int32, 70)
	for i := range tokens {
		tokens[i] = int32(i) * 7 % 300
	}
	logits := map[int][]float32{}
	for major, want := range map[int]int{8: 5, 9: 4} { // the second layer goes on with one row
		b.info.Major = major
		narrowed := 0
		for _, l := range p.(*program).launches(shape{tokens: len(tokens), spans: 1, rows: 1, stride: leastStride}) {
			if l.Kernel == "narrowBF16" {
				narrowed++
			}
		}
		if narrowed != want {
			t.Errorf("%d.0: x is narrowed %d times, want %d", major, narrowed, want)
		}
		var out backend.Out
		run(t, p, &out, 0, tokens, []int32{0, 1, 2, 3, 4})
		logits[major] = slices.Clone(out.Logits)
	}
	for i, want := range logits[8] {
		if off := math.Abs(float64(logits[9][i] - want)); !(off <= 0.02*max(1, math.Abs(float64(want)))) {
			t.Fatalf("logit %d is %g, want %g", i, logits[9][i], want)
		}
	}
}

// TestExact is refused with what to do.
func TestExact(t *testing.T) {
	b := opened(t, 16)
	g := small(t, 1)
	limits := inSlab
	limits.Exact = true
	if _, err := b.Compile(t.Context(), g, backendtest.Random(g, tensor.F32, 1), limits); err == nil || !strings.Contains(err.Error(), "--device cpu") {
		t.Errorf("got %v", err)
	}
}

// TestLoad reads weights from a mapped file while a neighbour decodes; it tells how far it is, stops when its context
// does, and fails where the file was cut short.
func TestLoad(t *testing.T) {
	b := opened(t, 60)
	g := small(t, 3)
	memory := backendtest.Random(g, tensor.Q8_0, 1)
	fromFile, path := backendtest.Mapped(t, g, memory)
	before := ofPrograms(b)
	load := func(ctx context.Context, w backend.Weights, progress func(float64)) (backend.Program, error) {
		limits := inSlab
		limits.Progress, limits.PerExtent = progress, 8
		return b.Compile(ctx, g, w, limits)
	}
	tokens := []int32{1, 2, 3, 4, 5}
	var out backend.Out

	neighbour, err := load(t.Context(), memory, nil)
	if err != nil {
		t.Fatal(err)
	}
	run(t, neighbour, &out, 0, tokens, []int32{0})
	want := slices.Clone(out.Logits)
	last := 0.0
	p, err := load(t.Context(), fromFile, func(done float64) {
		if done < last || done > 1 {
			t.Errorf("progress from %v to %v", last, done)
		}
		if last = done; done < 0.9 {
			var out backend.Out
			if err := step(neighbour, &out, 0, tokens, []int32{0}); err != nil || !slices.Equal(out.Logits, want) {
				t.Errorf("the neighbour of a load: other logits, or %v", err)
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	if last != 1 {
		t.Errorf("progress ended at %v", last)
	}
	run(t, p, &out, 0, tokens, []int32{8})
	if !slices.Equal(out.Logits, want) {
		t.Error("from the mapped file: other logits")
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}

	ctx, cancel := context.WithCancel(t.Context())
	if _, err := load(ctx, fromFile, func(float64) { cancel() }); !errors.Is(err, context.Canceled) {
		t.Errorf("a load that is no longer wanted: got %v", err)
	}
	cancel()
	if err := os.Truncate(path, 4096); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, err := load(t.Context(), fromFile, nil); !errors.Is(err, backend.ErrFault) {
			t.Errorf("from the truncated file: got %v", err)
		}
	}
	emulated.Set(t, "fail=copy:2:1")
	if _, err := load(t.Context(), memory, nil); err == nil || !strings.Contains(err.Error(), "copy to the device") {
		t.Errorf("a copy that is refused: got %v", err)
	}
	emulated.Set(t, "")
	if l := b.loader; len(l.host) != lanes || len(l.lanes) != cap(l.lanes) {
		t.Errorf("loads that failed keep %d pieces of pinned memory and %d lanes", lanes-len(l.host), cap(l.lanes)-len(l.lanes))
	}
	run(t, neighbour, &out, 0, tokens, []int32{0})
	if !slices.Equal(out.Logits, want) {
		t.Error("the neighbour of loads that failed: other logits")
	}
	if err := neighbour.Close(); err != nil {
		t.Fatal(err)
	}
	b.Discard([]int32{0, 1})
	if held := ofPrograms(b) - before; held > Extent { // the scrap stays
		t.Errorf("%d bytes more are held", held)
	}
	if err := step(neighbour, &out, 0, tokens, []int32{0}); err == nil {
		t.Error("a closed program runs")
	}
}

// TestLongContext grows tables beyond those that steps were captured with.
func TestLongContext(t *testing.T) {
	b := opened(t, 40)
	c := arch.Config{
		Architecture: "llama", Layers: 1, Hidden: 32, FFN: 32, Heads: 2, KVHeads: 1, HeadDim: 16, TiedOutput: true,
		Vocabulary: 30, MaxPositions: 4096, NormEps: 1e-5, RopeTheta: 10000, BOS: -1,
	}
	g, err := arch.Build(c)
	if err != nil {
		t.Fatal(err)
	}
	w := backendtest.Random(g, tensor.F32, 3)
	const n = leastStride*4 + 20 // tokens
	tokens := make([]int32, n)
	for i := range tokens {
		tokens[i] = int32(i * 11 % 30)
	}
	want, _, err := backendtest.Reference(g, w, tokens)
	if err != nil {
		t.Fatal(err)
	}
	p, err := b.Compile(t.Context(), g, w, backend.Limits{MaxTokens: 64, MaxRows: 4, BlockTokens: 4, Blocks: n})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	blocks := make([]int32, (n+3)/4)
	for i := range blocks {
		blocks[i] = int32(len(blocks) - 1 - i)
	}
	var out backend.Out
	for at := 0; at < n; {
		part := 64
		if at >= leastStride*4-64 {
			part = 1 // decode across the border
		}
		part = min(part, n-at)
		run(t, p, &out, at, tokens[at:at+part], blocks)
		at += part
		row := want[(at-1)*30 : at*30]
		for i, x := range out.Logits {
			if d := x - row[i]; !(d < 0.02 && d > -0.02) {
				t.Fatalf("position %d: logit %d is %v, want %v", at-1, i, x, row[i])
			}
		}
	}
	if got := len(p.(*program).graphs); got != 2 {
		t.Errorf("%d graphs were captured", got)
	}
}

// TestDraws: the device draws the tokens that a sampler draws from the logits.
func TestDraws(t *testing.T) {
	b := opened(t, 40)
	g := small(t, 1)
	p, err := b.Compile(t.Context(), g, backendtest.Random(g, tensor.F32, 1), inSlab)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	params := []sampling.Params{
		{}, {Logprobs: true}, {Temperature: 1, Seed: 1}, {Temperature: 0.7, TopP: 0.8, Seed: 2, Logprobs: true},
		{Temperature: 2, TopK: 20, Seed: 3}, {Temperature: 1.3, MinP: 0.1, TopP: 0.95, Seed: 4},
	}
	for n := 1; n <= 4; n++ {
		var host, device []*sampling.Sampler
		var spans []batching.Span
		for i := range n {
			c := params[(n+i)%len(params)]
			host, device = append(host, sampling.New(c, nil)), append(device, sampling.New(c, nil))
			spans = append(spans, batching.Span{Blocks: []int32{int32(16 * i)}, Rows: batching.LastRow, Next: true, Tokens: []int32{int32(3 * i), 5}})
		}
		if n == 4 { // a row that nobody wants
			spans = append(spans, batching.Span{Blocks: []int32{100}, Tokens: []int32{7}})
		}
		var want, got backend.Out
		var scratch sampling.Scratch
		for at := range 6 {
			got.Draws = got.Draws[:0]
			for _, s := range device {
				d, ok := s.Draw()
				if !ok {
					t.Fatal("a plain request is none")
				}
				got.Draws = append(got.Draws, d)
			}
			if err := p.Run(t.Context(), batching.Batch{Spans: spans}, &want); err != nil {
				t.Fatal(err)
			}
			if err := p.Run(t.Context(), batching.Batch{Spans: spans}, &got); err != nil {
				t.Fatal(err)
			}
			if len(got.Choices) != n || len(got.Logits) != 0 {
				t.Fatalf("%d choices and %d logits of %d rows", len(got.Choices), len(got.Logits), n)
			}
			for i, c := range got.Choices {
				token, err := host[i].Sample(want.Logits[i*300:(i+1)*300], &scratch)
				if err != nil || token.ID != c.Token || math.Abs(token.Logprob-c.Logprob) > 1e-4 {
					t.Errorf("%d rows, step %d: row %d draws %d (%v), want %d (%v), %v", n, at, i, c.Token, c.Logprob, token.ID, token.Logprob, err)
				}
				device[i].Drawn(c.Certain)
				spans[i].Start += len(spans[i].Tokens)
				spans[i].Tokens = []int32{token.ID}
			}
			spans = spans[:n]
		}
	}
}

// TestLittleFree: what is claimed is there, with all that the backend itself needs; where that leaves no room, it is said.
func TestLittleFree(t *testing.T) {
	for _, free := range []int{8, 16, 18, 20, 64, 66, 96, 128, 250, 1000} {
		emulated.Set(t, fmt.Sprintf("devices=1,memory=1Gi,others=%dMi", 1024-free))
		forget(t)
		all, err := Devices(device.Options{Headroom: 5})
		if err != nil {
			if free > 20 || !strings.Contains(err.Error(), "no room is left for models; end what holds the rest") {
				t.Errorf("%d MiB are free: %v", free, err)
			}
			continue
		}
		b, err := New(all[0], Options{})
		if err != nil {
			t.Errorf("%d MiB are free: %v", free, err)
			continue
		}
		if got := all[0].Capacity; free >= 64 && got < int64(free)<<20/2 {
			t.Errorf("%d MiB are free, and %d are for models", free, got>>20)
		}
		g := small(t, 1)
		p, err := b.Compile(t.Context(), g, backendtest.Random(g, tensor.F16, 1), inSlab)
		if _, no := errors.AsType[*backend.NoRoomError](err); err != nil && (!no || free >= 64) {
			t.Errorf("%d MiB are free: %v", free, err)
		}
		if p != nil {
			err = p.Close()
		}
		if err := cmp.Or(err, b.Close()); p != nil && err != nil {
			t.Error(err)
		}
	}
}

// TestFirstError: of a device that has failed the first error is told, and not what fails after it; whatever failed, it is the
// device's.
func TestFirstError(t *testing.T) {
	for _, at := range []string{"load:1", "map:1", "copy:1", "copy:4"} {
		for code, lost := range map[int]bool{700: false, 999: true, 46: true} {
			emulated.Set(t, fmt.Sprintf("devices=1,memory=256Mi,fail=%s:%d", at, code))
			forget(t)
			all, err := Devices(device.Options{})
			if err != nil {
				t.Fatal(err)
			}
			b, err := New(all[0], Options{})
			if err == nil {
				g := small(t, 1)
				_, err = b.Compile(t.Context(), g, backendtest.Random(g, tensor.F16, 1), inSlab)
				_ = b.Close() // fails as well
			}
			if e, ok := errors.AsType[*backend.DeviceError](err); !ok || e.Lost != lost || strings.Contains(err.Error(), "\n") {
				t.Errorf("%s fails with %d: %v", at, code, err)
			}
			emulated.Set(t, "devices=1,memory=256Mi")
			forget(t)
		}
	}
}

// TestSeveralDevices: each is for models of its own, and may go before the others.
func TestSeveralDevices(t *testing.T) {
	emulated.Set(t, "devices=3,memory=256Mi")
	all, err := Devices(device.Options{Headroom: 10})
	if err != nil || len(all) != 3 {
		t.Fatalf("%d devices, %v", len(all), err)
	}
	g := small(t, 1)
	var backends []backend.Backend
	for _, d := range all {
		b, err := New(d, Options{})
		if err != nil {
			t.Fatal(err)
		}
		backends = append(backends, b)
	}
	if _, err := New(all[0], Options{}); err == nil {
		t.Error("a device has two backends")
	}
	for i, b := range backends {
		if b.Name() != Name(i) {
			t.Errorf("device %d is called %s", i, b.Name())
		}
		p, err := b.Compile(t.Context(), g, backendtest.Random(g, tensor.F16, 1), inSlab)
		if err != nil {
			t.Fatal(err)
		}
		var out backend.Out
		run(t, p, &out, 0, []int32{1, 2, 3}, []int32{0})
		if err := errors.Join(p.Close(), b.Close()); err != nil {
			t.Error(err)
		}
	}
}

// TestNames of devices.
func TestNames(t *testing.T) {
	for _, name := range []string{"gpu", "gpu-", "gpu--1", "gpu-01", "cpu-0", "0"} {
		if n, err := ordinal(name); err == nil {
			t.Errorf("%q is device %d", name, n)
		}
	}
	if n, err := ordinal(fmt.Sprint(Name(12))); n != 12 || err != nil {
		t.Errorf("got %d, %v", n, err)
	}
}

// TestBytes: weights of block formats are multiplied by bytes, which norms, attention and gates give with what they make.
func TestBytes(t *testing.T) {
	b := opened(t, 400)
	m := &measurement{t: t, b: b}
	g := m.graph(llama(2, 512, 16384, 4, 2, 128, 64))
	for _, d := range []tensor.DType{tensor.BF16, tensor.Q4_0} {
		p, err := b.Compile(t.Context(), g, m.hollow(g, d), backend.Limits{MaxTokens: 4, MaxRows: 4, BlockTokens: 16, Blocks: 4})
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range []struct{ tokens, quantize int }{{1, 1}, {2, 1}, {4, 3}} { // in the last layer rows are gathered; gates of more rows give none
			n := 0
			for _, l := range p.(*program).launches(shape{c.tokens, c.tokens, c.tokens, c.tokens, 64}) {
				if l.Kernel == "quantize" {
					n++
				}
			}
			want := c.quantize
			if d == tensor.BF16 {
				want = 0
			}
			if n != want {
				t.Errorf("%v, %d tokens: %d launches of quantize, want %d", d, c.tokens, n, want)
			}
		}
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	}
}
