package cpu

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	kernels "github.com/estiba/estiba/kernels/cpu"
	"github.com/estiba/estiba/runtime/arch"
	"github.com/estiba/estiba/runtime/backend"
	"github.com/estiba/estiba/runtime/graph"
	"github.com/estiba/estiba/runtime/tensor"
)

// fromFile is the weights of a graph, all of one format, in a mapped file of some bytes that repeat.
func fromFile(t *testing.T, g *graph.Graph, d tensor.DType) (backend.Weights, int64) {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "weights"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	at, size := map[string][2]int64{}, int64(3) // at odd addresses, as in a file
	for _, w := range g.Weights {
		n, _ := w.Shape.Elements()
		at[w.Name] = [2]int64{size, size + d.Bytes(n)}
		size += d.Bytes(n)
	}
	part := make([]byte, 1<<20)
	for i := range part {
		part[i] = byte(i % 23)
	}
	for left := size; left > 0; left -= int64(len(part)) {
		if _, err := f.Write(part[:min(left, int64(len(part)))]); err != nil {
			t.Fatal(err)
		}
	}
	data, err := unix.Mmap(int(f.Fd()), 0, int(size), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Munmap(data) })
	return func(name string) (tensor.Tensor, error) {
		for _, w := range g.Weights {
			if w.Name == name {
				return tensor.Tensor{Name: name, DType: d, Shape: w.Shape, Data: data[at[name][0]:at[name][1]], Mapped: true}, nil
			}
		}
		return tensor.Tensor{}, errors.New("no such weight")
	}, size
}

// TestOneCopyOfWeights: while weights are packed and thereafter, no more than 1.1 times as much is
// resident as they take, and as it was said.
func TestOneCopyOfWeights(t *testing.T) {
	g, err := arch.Build(arch.Config{
		Architecture: "llama", Layers: 12, Hidden: 1024, FFN: 4096, Heads: 8, KVHeads: 8, HeadDim: 128,
		Vocabulary: 8192, MaxPositions: 512, NormEps: 1e-5, RopeTheta: 500, BOS: -1,
	})
	if err != nil {
		t.Fatal(err)
	}
	weights, size := fromFile(t, g, tensor.Q8_0)
	b, err := New("cpu-0", Options{Threads: 2})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if b.path == kernels.PlainGo {
		t.Skip("SKIPPED: this path has no copy of weights")
	}
	before := resident(t)
	var most atomic.Int64
	last := 0.0
	p, err := b.Compile(t.Context(), g, weights, backend.Limits{MaxTokens: 16, MaxRows: 1, BlockTokens: 16, Blocks: 4, Progress: func(done float64) {
		if now := resident(t) - before; now > most.Load() {
			most.Store(now)
		}
		if done < last || done > 1 {
			t.Errorf("progress from %v to %v", last, done)
		}
		last = done
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	held := p.Bytes().Weights
	t.Logf("file %d bytes, held %d, resident %d at most and %d now", size, held, most.Load(), resident(t)-before)
	if last != 1 {
		t.Errorf("progress ended at %v", last)
	}
	if held > size*21/20 || most.Load() > size*11/10 {
		t.Errorf("file %d bytes, held %d, resident %d at most", size, held, most.Load())
	}
	if now := resident(t) - before; now > held+held/20 || now < held*9/10 {
		t.Errorf("%d bytes held, %d resident", held, now)
	}
}

// TestLoadStops when its context does, and gives back what it had.
func TestLoadStops(t *testing.T) {
	g, w := model(t, 2, 4)
	b, err := New("cpu-0", Options{Threads: 3})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	before, _ := b.Held()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	_, err = b.Compile(ctx, g, w, backend.Limits{MaxTokens: 1, MaxRows: 1, BlockTokens: 1, Blocks: 1, Progress: func(float64) { cancel() }})
	if !errors.Is(err, ctx.Err()) || err == nil {
		t.Errorf("got %v", err)
	}
	if after, _ := b.Held(); after != before {
		t.Errorf("%d bytes are still held", after-before)
	}
}

// TestPathByName: the environment chooses the path of programs that are not exact, and a wrong name makes no backend.
func TestPathByName(t *testing.T) {
	g, w := model(t, 1, 4)
	limits := backend.Limits{MaxTokens: 1, MaxRows: 1, BlockTokens: 1, Blocks: 1}
	for _, path := range kernels.Available() {
		t.Setenv(kernels.PathVariable, path.String())
		b, err := New("cpu-0", Options{Threads: 1})
		if err != nil {
			t.Fatal(err)
		}
		if b.path != path {
			t.Errorf("%v, want %v", b.path, path)
		}
		p, err := b.Compile(t.Context(), g, w, limits)
		if err != nil {
			t.Fatal(err)
		}
		p.Close()
	}
	t.Setenv(kernels.PathVariable, "mmx")
	if _, err := New("cpu-0", Options{Threads: 1}); err == nil || !strings.Contains(err.Error(), "mmx") {
		t.Errorf("got %v", err)
	}
}

func TestPages(t *testing.T) {
	page := os.Getpagesize()
	data, err := unix.Mmap(-1, 0, 4*page, unix.PROT_READ, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(data)
	for name, c := range map[string]struct{ from, to, touched, own int }{
		"all":            {0, 4 * page, 4, 4},
		"parts of three": {page - 1, 2*page + 1, 3, 1},
		"within one":     {page + 1, page + 2, 1, 0},
		"one":            {page, 2 * page, 1, 1},
		"a border":       {page - 1, page + 1, 2, 0},
	} {
		if n := len(pages(data[c.from:c.to], true)); n != c.touched*page {
			t.Errorf("%s: touches %d pages", name, n/page)
		}
		if n := len(pages(data[c.from:c.to], false)); n != c.own*page {
			t.Errorf("%s: has %d pages", name, n/page)
		}
	}
}
