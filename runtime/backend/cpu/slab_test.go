package cpu

import (
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/estiba/estiba/runtime/arch"
	"github.com/estiba/estiba/runtime/backend"
	"github.com/estiba/estiba/runtime/backend/backendtest"
	"github.com/estiba/estiba/runtime/batching"
	"github.com/estiba/estiba/runtime/graph"
	"github.com/estiba/estiba/runtime/tensor"
)

func model(t *testing.T, layers, kvHeads int) (*graph.Graph, backend.Weights) {
	t.Helper()
	g, err := arch.Build(arch.Config{
		Architecture: "llama", Layers: layers, Hidden: 24, FFN: 40, Heads: 4, KVHeads: kvHeads, HeadDim: 6,
		Vocabulary: 29, MaxPositions: 512, NormEps: 1e-5, RopeTheta: 500, BOS: -1,
	})
	if err != nil {
		t.Fatal(err)
	}
	return g, backendtest.Random(g, tensor.F32, uint64(layers))
}

// TestSlab: two programs whose blocks lie in one slab, cut in different ways, give what
// programs with blocks of their own give, and leave each other's extents alone.
func TestSlab(t *testing.T) {
	b, err := New("cpu-0", Options{Threads: 2, Extents: 8, Extent: 16 << 10})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	text := []int32{3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2, 3, 8, 4, 6}
	type one struct {
		own, slab   backend.Program
		blockTokens int
		blocks      []int32 // in the slab
	}
	compile := func(layers, kvHeads, blockTokens, perExtent int, blocks ...int32) one {
		g, w := model(t, layers, kvHeads)
		l := backend.Limits{MaxTokens: len(text), MaxRows: len(text), BlockTokens: blockTokens, Blocks: 8, Exact: true}
		own, err := b.Compile(t.Context(), g, w, l)
		if err != nil {
			t.Fatal(err)
		}
		l.Blocks, l.PerExtent = 0, perExtent
		slab, err := b.Compile(t.Context(), g, w, l)
		if err != nil {
			t.Fatal(err)
		}
		if n := slab.Bytes().KV; n != 0 {
			t.Errorf("%d bytes of the slab count as the program's", n)
		}
		t.Cleanup(func() { own.Close(); slab.Close() })
		return one{own, slab, blockTokens, blocks}
	}
	// 2 layers * 2 * 24 numbers: 384 bytes a token, 21 tokens in half an extent. 3 * 2 * 12: 288 bytes, 7 in an eighth.
	all := []one{compile(2, 4, 21, 2, 5), compile(3, 2, 7, 8, 63, 8, 33)}
	want := make([][]float32, len(all))
	for i, p := range all {
		var out backend.Out
		own := []int32{4, 2, 7}
		if err := p.own.Run(t.Context(), batching.Batch{Spans: []batching.Span{{Tokens: text, Blocks: own, Rows: batching.AllRows}}}, &out); err != nil {
			t.Fatal(err)
		}
		want[i] = out.Logits
	}
	got := make([][]float32, len(all))
	for at := range text { // by turns
		for i, p := range all {
			var out backend.Out
			if err := p.slab.Run(t.Context(), batching.Batch{Spans: []batching.Span{{Tokens: text[at : at+1], Start: at, Blocks: p.blocks, Rows: batching.AllRows}}}, &out); err != nil {
				t.Fatal(err)
			}
			got[i] = append(got[i], out.Logits...)
		}
	}
	for i := range all {
		if !slices.Equal(got[i], want[i]) {
			t.Errorf("program %d: other logits in the slab", i)
		}
	}
	g, w := model(t, 2, 4)
	for _, l := range []backend.Limits{
		{MaxTokens: 1, MaxRows: 1, BlockTokens: 22, PerExtent: 2, Exact: true}, {MaxTokens: 1, MaxRows: 1, BlockTokens: 43, PerExtent: 2}, {MaxTokens: 1, MaxRows: 1, BlockTokens: 1, PerExtent: 3}, {MaxTokens: 1, MaxRows: 1, BlockTokens: 1},
	} {
		if _, err := b.Compile(t.Context(), g, w, l); err == nil {
			t.Errorf("%+v was taken", l)
		}
	}
	var out backend.Out
	if err := all[0].slab.Run(t.Context(), batching.Batch{Spans: []batching.Span{{Tokens: text, Blocks: []int32{16}}}}, &out); err == nil || !strings.Contains(err.Error(), "block 16 of 16") {
		t.Errorf("got %v", err)
	}
}

// TestDiscard: memory behind extents is taken when it is written and is given back at once.
func TestDiscard(t *testing.T) {
	const extent, extents = 2 << 20, 64
	s := slab{extents: extents, extent: extent}
	s.discard([]int32{1}) // before anybody needs it
	all, err := s.claim()
	if err != nil {
		t.Fatal(err)
	}
	floats := view[float32](all)
	defer s.close()
	before := resident(t)
	for i := range floats {
		floats[i] = 1
	}
	full := resident(t)
	if full-before < 100<<20 {
		t.Skipf("resident memory grew by %d bytes only: the system does not say", full-before)
	}
	s.discard([]int32{0, 2, 3})
	each := extent / 4
	if floats[0] != 0 || floats[each] != 1 || floats[2*each] != 0 || floats[4*each-1] != 0 || floats[4*each] != 1 {
		t.Error("another extent was discarded")
	}
	for i := range int32(extents) {
		s.discard([]int32{i})
	}
	if left := resident(t) - before; left > 16<<20 {
		t.Errorf("%d bytes are still there", left)
	}
}

func resident(t *testing.T) int64 {
	t.Helper()
	text, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		t.Skip(err)
	}
	pages, err := strconv.ParseInt(strings.Fields(string(text))[1], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return pages * int64(os.Getpagesize())
}
