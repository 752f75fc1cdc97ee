package cuda

import (
	"slices"
	"testing"

	"github.com/estiba/estiba/runtime/arch"
	"github.com/estiba/estiba/runtime/backend"
	"github.com/estiba/estiba/runtime/batching"
	"github.com/estiba/estiba/runtime/graph"
)

// TestLayout lays a batch out in the numbers that kernels read.
func TestLayout(t *testing.T) {
	limits := bounds{Limits: backend.Limits{MaxTokens: 8, MaxRows: 8, BlockTokens: 4}, vocabulary: 100, positions: 50, blocks: 9}
	var l layout
	batch := batching.Batch{Spans: []batching.Span{
		{Tokens: []int32{7, 8, 9}, Start: 3, Blocks: []int32{5, 2, 8}, Rows: batching.LastRow},
		{Tokens: []int32{4}, Start: 8, Blocks: []int32{1, 3, 0}, Rows: batching.NoRows},
		{Tokens: []int32{1, 2}, Start: 0, Blocks: []int32{6}, Rows: batching.AllRows},
	}}
	if err := l.take(batch, limits); err != nil {
		t.Fatal(err)
	}
	p := placesOf(limits.Limits)
	n := l.numbers(nil, p, 4)
	for name, c := range map[string]struct {
		at   int
		want []int32
	}{
		"tokens":    {p.tokens, []int32{7, 8, 9, 4, 1, 2}},
		"positions": {p.position, []int32{3, 4, 5, 8, 0, 1}},
		"spans":     {p.spanOf, []int32{0, 0, 0, 1, 2, 2}},
		"first":     {p.first, []int32{0, 3, 4, 6}},
		"context":   {p.context, []int32{6, 9, 2}},
		"wanted":    {p.wanted, []int32{2, 4, 5}},
		"tables":    {p.tables, []int32{5, 2, 0, 0, 1, 3, 0, 0, 6, 0, 0, 0}},
	} {
		if got := n[c.at:][:len(c.want)]; !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
		if c.at%64 != 0 {
			t.Errorf("%s begin at number %d", name, c.at)
		}
	}
	if l.longest != 3 || l.singles != 1 || len(n) != p.tables+12 {
		t.Errorf("longest %d, %d spans of one token, %d numbers", l.longest, l.singles, len(n))
	}
}

func TestPadding(t *testing.T) {
	limits := bounds{Limits: backend.Limits{MaxTokens: 8, MaxRows: 8, BlockTokens: 4}, vocabulary: 100, positions: 50, blocks: 9}
	var l layout
	if err := l.take(batching.Batch{Spans: []batching.Span{
		{Tokens: []int32{7}, Start: 4, Blocks: []int32{5, 2}, Rows: batching.LastRow}, {Tokens: []int32{8}, Blocks: []int32{1}},
		{Tokens: []int32{9}, Blocks: []int32{0}, Rows: batching.LastRow},
	}}, limits); err != nil {
		t.Fatal(err)
	}
	l.pad(4, []int32{9})
	if !slices.Equal(l.tokens, []int32{7, 8, 9, 0}) || !slices.Equal(l.context, []int32{5, 1, 1, 1}) || l.tables[3][0] != 9 || l.singles != 4 || !slices.Equal(l.first, []int32{0, 1, 2, 3}) {
		t.Errorf("got %+v", l)
	}
	for n, want := range map[int]int{1: 1, 2: 2, 3: 4, 4: 4, 5: 8, 9: 10, 10: 10} {
		if got := bucket(n, 10); got != want {
			t.Errorf("%d spans are computed as %d, want %d", n, got, want)
		}
	}
	for n, want := range map[int]int{0: leastStride, leastStride: leastStride, leastStride + 1: 2 * leastStride} {
		if got := stride(n); got != want {
			t.Errorf("tables of %d blocks: %d, want %d", n, got, want)
		}
	}
}

// TestFuse: every node is in one group, in order, and what is expected to be together is.
func TestFuse(t *testing.T) {
	for name, c := range map[string]struct {
		config arch.Config
		want   map[groupKind]int // groups of a layer
		gated  int
		biased int
		sums   int
	}{
		"llama":   {arch.Config{Architecture: "llama"}, map[groupKind]int{turn: 1, products: 4}, 1, 0, 2},
		"biases":  {arch.Config{Architecture: "llama", QKVBias: true, OutputBias: true}, map[groupKind]int{turn: 1, products: 4}, 1, 4, 2},
		"gemma2":  {arch.Config{Architecture: "gemma2", NormShift: 1, GELU: arch.GELUTanh, TiedOutput: true, AttentionSoftCap: 5, LogitSoftCap: 3}, map[groupKind]int{turn: 1, products: 4}, 1, 0, 0},
		"mixtral": {arch.Config{Architecture: "mixtral", Experts: 4, ExpertsPerToken: 2, ExpertFFN: 8, NormalizeExperts: true}, map[groupKind]int{turn: 1, products: 5}, 1, 0, 1},
	} {
		t.Run(name, func(t *testing.T) {
			const layers = 3
			o := c.config
			o.Layers, o.Hidden, o.FFN, o.Heads, o.KVHeads, o.HeadDim = layers, 16, 24, 4, 2, 4
			o.Vocabulary, o.MaxPositions, o.NormEps, o.RopeTheta, o.BOS = 29, 512, 1e-5, 500, -1
			g, err := arch.Build(o)
			if err != nil {
				t.Fatal(err)
			}
			g = g.Fast()
			var all []int
			count, gated, biased, sums := map[groupKind]int{}, 0, 0, 0
			for _, group := range fuse(g) {
				all = append(all, group.nodes...)
				count[group.kind]++
				if group.gate >= 0 {
					gated++
				}
				for _, p := range group.parts {
					if p.bias >= 0 {
						biased++
					}
					if p.sum >= 0 {
						sums++
					}
				}
			}
			for i, n := range all {
				if i != n {
					t.Fatalf("node %d is where %d should be", n, i)
				}
			}
			if len(all) != len(g.Nodes) {
				t.Errorf("%d nodes of %d", len(all), len(g.Nodes))
			}
			for kind, n := range c.want {
				if kind == products {
					n = n*layers + 1 // and the output
				} else {
					n = n*layers - 1 // in the last layer, not all rows of the queries are wanted
				}
				if got := count[kind]; got < n || got > n+1 {
					t.Errorf("%d groups of kind %d, want %d", got, kind, n)
				}
			}
			if c.sums > 0 {
				sums++ // that of the last layer's attention waits for the rows that are wanted
			}
			if gated != c.gated*layers || biased != c.biased*layers || sums != c.sums*layers {
				t.Errorf("%d gates, %d biases, %d sums", gated, biased, sums)
			}
		})
	}
}

// TestFuseReaders: what somebody else reads too stays apart.
func TestFuseReaders(t *testing.T) {
	var b graph.Builder
	weight := func(name string, shape ...int) graph.Value { return b.Weight(graph.Weight{Name: name, Shape: shape}) }
	none := graph.Attr{}
	x := b.Op(graph.Embed, none, weight("table", 7, 8))
	gate, up := b.Op(graph.MatMul, none, x, weight("gate", 8, 8)), b.Op(graph.MatMul, none, x, weight("up", 8, 8))
	y := b.Op(graph.SwiGLU, none, gate, up)
	y = b.Op(graph.Add, none, y, gate) // gate is needed by itself
	z := b.Op(graph.MatMul, none, y, weight("a", 8, 8))
	biased := b.Op(graph.Bias, none, z, weight("bias", 8))
	y = b.Op(graph.Add, none, biased, z)                                         // and z
	y = b.Op(graph.Add, none, b.Op(graph.MatMul, none, y, weight("b", 8, 8)), y) // y is where the sum goes
	h := b.Op(graph.Rows, none, y)
	g, err := b.Graph(h, h)
	if err != nil {
		t.Fatal(err)
	}
	for _, group := range fuse(g) {
		for _, p := range group.parts {
			if p.bias >= 0 || p.sum >= 0 || group.gate >= 0 {
				t.Errorf("%+v computes what is read elsewhere", group)
			}
		}
	}
}
