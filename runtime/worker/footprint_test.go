package worker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	api "github.com/estiba/estiba/api/worker"
	"github.com/estiba/estiba/internal/fixture"
	"github.com/estiba/estiba/internal/synth"
	kernels "github.com/estiba/estiba/kernels/cpu"
	"github.com/estiba/estiba/runtime/arch"
	"github.com/estiba/estiba/runtime/backend"
	"github.com/estiba/estiba/runtime/backend/cpu"
	"github.com/estiba/estiba/runtime/device"
	"github.com/estiba/estiba/runtime/engine"
	"github.com/estiba/estiba/runtime/graph"
	"github.com/estiba/estiba/runtime/model"
	"github.com/estiba/estiba/runtime/residency"
	"github.com/estiba/estiba/runtime/tensor"
)

// memory is what the process has, by figures other than those of the account.
type memory struct {
	heap    int64            // bytes in use, once the collector has been
	claimed int64            // mapped by programs
	slab    int64            // pages of the device's slab
	files   map[string]int64 // pages of mapped files
}

func memoryNow(t *testing.T, b backend.Backend) memory {
	t.Helper()
	m := memory{heap: int64(heap()), files: map[string]int64{}}
	m.claimed, m.slab = b.(*cpu.Backend).Held()
	maps, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		t.Skip("the kernel does not say what is mapped: ", err)
	}
	file := ""
	for line := range strings.Lines(string(maps)) {
		var from, to uint64
		var mode, offset, dev string
		var inode, kib int64
		if n, _ := fmt.Sscanf(line, "%x-%x %s %s %s %d", &from, &to, &mode, &offset, &dev, &inode); n == 6 {
			_, file, _ = strings.Cut(strings.TrimSpace(line), "/")
		} else if n, _ := fmt.Sscanf(line, "Rss: %d kB", &kib); n == 1 {
			m.files["/"+file] += kib << 10
		}
	}
	return m
}

// under are the pages of mapped files below a path.
func (m memory) under(path string) (n int64) {
	for file, bytes := range m.files {
		if strings.HasPrefix(file, path) {
			n += bytes
		}
	}
	return n
}

// alike says whether two numbers of bytes are within a tenth of each other, or within an
// extent, in whole extents.
func alike(got, want, extent int64) bool {
	got, want = residency.RoundUp(got, extent), residency.RoundUp(want, extent)
	return max(got-want, want-got) <= max(want/10, extent)
}

// weigh loads a model through a worker, asks as much of it as its footprint is for, and
// compares that with what the process has more than without it.
func weigh(t *testing.T, path string, extent int64, c api.Context) {
	t.Helper()
	if raced {
		t.Skip("SKIPPED: the race detector's memory is in the process too")
	}
	h, err := model.Inspect(path)
	if err != nil {
		t.Fatal(err)
	}
	clamped, _ := residency.Clamp(c, h.Config.MaxPositions)
	e, err := estimate(anyBackend(), h, clamped, extent)
	if err != nil {
		t.Fatal(err)
	}
	room := residency.Need(e) // and no more, or the rest would be lent
	w, err := New(Options{
		Name: "w0", Pool: "default/cpu", Log: slog.New(slog.DiscardHandler),
		Devices: []device.Device{{Name: "cpu-0", Kind: "cpu", Extent: extent, Capacity: room}},
		Fetch:   func(_ context.Context, src api.Source, _ func(float64)) (string, error) { return src.URI, nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ran := make(chan error, 1)
	go func() { ran <- w.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-ran; err != nil {
			t.Error(err)
		}
	}()
	if in := w.Inspect(ctx, api.InspectRequest{Source: api.Source{URI: path}, Context: c}); in.Footprint != e {
		t.Errorf("%+v from a header, %+v", in, e)
	}
	assign(t, w, api.Home{Model: "ns/m", Source: api.Source{URI: path}, Context: c, Devices: []string{"cpu-0"}})
	l, release, err := w.Use(ctx, "ns/m")
	if err != nil {
		t.Fatal(err)
	}
	measured := w.State().Homes[0].Footprint
	config := h.Config
	cut, err := residency.CutExtent(config, extent)
	if err != nil {
		t.Fatal(err)
	}
	b := w.devices[0].backend
	exert(t, l, config, clamped)
	release()
	loaded := memoryNow(t, b)
	assign(t, w)
	for len(w.State().Homes) > 0 {
		runtime.Gosched()
	}
	runtime.KeepAlive(l)
	l = nil
	without := memoryNow(t, b)

	if !measured.Measured || !alike(residency.Need(measured), residency.Need(e), extent) {
		t.Errorf("measured %+v, estimated %+v", measured, e)
	}
	held, mapped := b.WeightsBytes(h.Tensors), mappedBytes(h.Tensors)
	if !alike(held, measured.WeightsBytes, extent) || !alike(held, e.WeightsBytes, extent) {
		t.Errorf("weights: %d bytes, measured %d, estimated %d", held, measured.WeightsBytes, e.WeightsBytes)
	}
	if got := loaded.under(path); !alike(got, mapped, extent) {
		t.Errorf("weights: the process has %d bytes mapped, which should be %d", got, mapped)
	}
	workspace := loaded.heap - without.heap + loaded.claimed - without.claimed - (held - mapped)
	if !alike(workspace, measured.WorkspaceBytes, extent) || !alike(workspace, e.WorkspaceBytes, extent) {
		t.Errorf("workspace: the process has %d bytes (%d of the heap), measured %d, estimated %d",
			workspace, loaded.heap-without.heap, measured.WorkspaceBytes, e.WorkspaceBytes)
	}
	// What was written to is less than the extents by what is left in them between blocks.
	keys := arch.KVBytesPerToken(config) * int64(clamped.Sequences) * int64(cut.BlockTokens*((clamped.MaxTokens+cut.BlockTokens-1)/cut.BlockTokens))
	if kv := loaded.slab; kv > e.KVFloorBytes || measured.KVFloorBytes != e.KVFloorBytes || kv < keys*9/10-extent {
		t.Errorf("KV: the process has %d bytes, of %d in blocks; the floor is %d", kv, keys, e.KVFloorBytes)
	}
	if left := without.under(path); left != 0 {
		t.Errorf("%d bytes of the files are still there", left)
	}
}

// mappedBytes are the weights of which a program has no copy.
func mappedBytes(all []graph.Stored) (bytes int64) {
	path, _ := kernels.Best()
	for _, s := range all {
		if s.Use == graph.Table || s.Use == graph.Product && path == kernels.PlainGo {
			bytes += s.DType.Bytes(int64(s.Rows) * int64(s.Cols) * int64(s.Count))
		}
	}
	return bytes
}

// exert asks for all at once that the footprint has room for: every sequence as long as the
// context, rows of logits and of hidden states, and what grammars need.
func exert(t *testing.T, l *Loaded, config arch.Config, c api.Context) {
	t.Helper()
	if l.Model.Tokenizer != nil {
		l.Model.Vocabulary()
	}
	var all sync.WaitGroup
	submit := func(r engine.Request) { // at once, or the first would be done before the last begins
		r.Replica = l.Replica
		events, err := l.Engine.Submit(t.Context(), r)
		if err != nil {
			t.Error(err)
			return
		}
		all.Go(func() {
			for ev := range events {
				if ev.Err != nil {
					t.Error(ev.Err)
				}
			}
		})
	}
	r := rand.New(rand.NewPCG(1, 1))
	prompt := func() (ids []int32) {
		for range c.MaxTokens {
			ids = append(ids, r.Int32N(int32(config.Vocabulary)))
		}
		return ids
	}
	if config.Encoder {
		for range min(8*residency.StepOf(config, c, anyBackend().StepTokens()).Tokens/c.MaxTokens, 200) { // steps grow
			submit(engine.Request{Prompt: prompt(), Pooling: engine.Mean})
		}
		all.Wait()
		return
	}
	var prompts [][]int32
	for range c.Sequences {
		prompts = append(prompts, prompt())
	}
	for _, p := range prompts {
		output := min(24, len(p)-1) // in the end all of them are in one step
		submit(engine.Request{Prompt: p[output:], MaxTokens: output, PromptOnly: output == 0, IgnoreStop: true})
	}
	all.Wait()
	p := prompt()
	submit(engine.Request{Prompt: p, PromptOnly: true, PromptLogprobs: true})
	all.Wait()
	submit(engine.Request{Prompt: p, Pooling: engine.Mean})
	all.Wait()
}

var extentSizes = map[string]int64{"small extents": 64 << 10, "large extents": 2 << 20}

// TestFootprintsOfSharedModels: every model that the project has.
func TestFootprintsOfSharedModels(t *testing.T) {
	for _, name := range []string{"hf-f32", "hf-bf16", "stories260K-f32.gguf", "stories260K-f16.gguf", "stories260K-q8_0.gguf", "stories260K-q4_0.gguf"} {
		for size, extent := range extentSizes {
			for _, c := range []api.Context{{MaxTokens: 60, Sequences: 1}, {MaxTokens: 30, Sequences: 9}} {
				t.Run(fmt.Sprintf("%s, %s, %v", name, size, c), func(t *testing.T) {
					path, err := filepath.EvalSymlinks(fixture.Shared(t, "models/stories260K/"+name))
					if err != nil {
						t.Fatal(err)
					}
					weigh(t, path, extent, c)
				})
			}
		}
	}
}

// TestFootprintsOfFamilies: every architecture, in sizes drawn by a seed, in both formats.
func TestFootprintsOfFamilies(t *testing.T) {
	for seed := range uint64(27) {
		kind := fixture.Kinds()[seed%uint64(len(fixture.Kinds()))]
		t.Run(fmt.Sprintf("%s %d", kind, seed), func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 9))
			config := fixture.Draw(kind, seed)
			path := fixture.WriteHF(t, t.TempDir(), config, fixture.Family(config, seed))
			for _, extent := range extentSizes {
				weigh(t, path, extent, api.Context{MaxTokens: 1 + r.IntN(config.Int("max_position_embeddings", 0)/2), Sequences: 1 + r.IntN(12)})
			}
		})
	}
}

// TestFootprintsOfShapes: published shapes in every format that they are made in. The smallest
// is loaded; the files of the others are holes, of which nobody reads the weights.
func TestFootprintsOfShapes(t *testing.T) {
	t.Run("stories15m", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "m.gguf")
		if err := synth.Run(t.Context(), io.Discard, io.Discard, "stories15m", synth.Options{Quant: tensor.Q8_0, Out: path, Seed: 1}); err != nil {
			t.Fatal(err)
		}
		weigh(t, path, 64<<10, api.Context{MaxTokens: 26, Sequences: 32})
	})
	for i, quant := range synth.Quants() {
		c := []api.Context{{}, {MaxTokens: 4096, Sequences: 64}}[i%2]
		for _, shape := range synth.Shapes() {
			t.Run(shape+", "+quant.String(), func(t *testing.T) { weighHollow(t, shape, quant, c) })
		}
	}
}

// weighHollow compares what a program claims with the estimate.
func weighHollow(t *testing.T, shape string, quant tensor.DType, c api.Context) {
	if raced {
		t.Skip("SKIPPED: the race detector's memory is in the process too")
	}
	const extent = 2 << 20
	path := filepath.Join(t.TempDir(), "m.gguf")
	if err := synth.Hollow(path, shape, quant); err != nil {
		t.Fatal(err)
	}
	h, err := model.Inspect(path)
	if err != nil {
		t.Fatal(err)
	}
	c, _ = residency.Clamp(c, h.Config.MaxPositions)
	e, err := estimate(anyBackend(), h, c, extent)
	if err != nil {
		t.Fatal(err)
	}
	step, cut := residency.StepOf(h.Config, c, anyBackend().StepTokens()), residency.Cut{}
	if cut, err = residency.CutExtent(h.Config, extent); err != nil {
		t.Fatal(err)
	}
	b, err := openBackend(device.Device{Name: "cpu-0", Kind: "cpu", Extent: extent, Capacity: 4 << 30}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	m, err := model.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	m.Vocabulary()
	// All that a program holds is claimed when the first piece of its weights has been read.
	ctx, cancel := context.WithCancel(t.Context())
	var loaded memory
	_, err = b.Compile(ctx, m.Graph, m.Weights, backend.Limits{
		MaxTokens: step.Tokens, MaxRows: step.Rows, BlockTokens: cut.BlockTokens, PerExtent: cut.PerExtent,
		Progress: func(float64) {
			if ctx.Err() == nil {
				loaded = memoryNow(t, b)
				cancel()
			}
		},
	})
	if !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	m.Close()
	m = nil
	without := memoryNow(t, b)
	b.Close()
	held := b.WeightsBytes(h.Tensors)
	if !alike(held, h.WeightsBytes, extent) {
		t.Errorf("%v: %d bytes of weights, %d in the file", c, held, h.WeightsBytes)
	}
	loaded.claimed -= held - mappedBytes(h.Tensors)
	// Rows of logits and hidden states come with the first step.
	rows := 4 * int64(step.Rows) * int64(h.Config.Vocabulary+h.Config.Hidden)
	if got := loaded.heap - without.heap + loaded.claimed - without.claimed + rows; !alike(got, e.WorkspaceBytes, extent) {
		t.Errorf("%v: a workspace of %d bytes, estimated %d", c, got, e.WorkspaceBytes)
	}
	if most := int64(c.MaxTokens) * int64(c.Sequences) * arch.KVBytesPerToken(h.Config); !alike(most, e.KVFloorBytes, extent) {
		t.Errorf("%v: %d bytes of keys and values, estimated %d", c, most, e.KVFloorBytes)
	}
}
