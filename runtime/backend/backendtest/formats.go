package backendtest

import (
	"fmt"
	"strings"
	"testing"

	"github.com/estiba/estiba/runtime/arch"
	"github.com/estiba/estiba/runtime/backend"
	"github.com/estiba/estiba/runtime/graph"
	"github.com/estiba/estiba/runtime/tensor"
)

// formats takes a small model, and a table and a product of other sizes, through
// every block format; one of the models has experts.
func formats(t *testing.T, b backend.Backend, off func(tensor.DType) float64, exact bool, check func(*testing.T, *graph.Graph, backend.Weights, tensor.DType)) {
	dense := arch.Config{
		Architecture: "llama", Layers: 1, Hidden: 256, FFN: 256, Heads: 2, KVHeads: 1, HeadDim: 16, TiedOutput: true,
		Vocabulary: 29, MaxPositions: 512, NormEps: 1e-5, RopeTheta: 500, BOS: -1,
	}
	experts := dense
	experts.Architecture, experts.Experts, experts.ExpertsPerToken, experts.ExpertFFN = "qwen3_moe", 3, 1, 256
	for _, d := range tensor.DTypes() {
		if d.Block() == 1 {
			continue
		}
		t.Run(d.String(), func(t *testing.T) {
			if !b.Supports(graph.MatMul, d) || !b.Supports(graph.Embed, d) {
				t.Skipf("%s does not support %v", b.Name(), d)
			}
			c := dense
			if d == tensor.Q4_K {
				c = experts
			}
			model, err := arch.Build(c)
			if err != nil {
				t.Fatal(err)
			}
			check(t, model, Stored(model, d, 1), d)
			parts(t, b, d)
			for _, width := range []int{d.Block(), 3 * d.Block(), 256 + d.Block()} {
				for _, n := range []int{1, 33} {
					var gb graph.Builder
					x := gb.Op(graph.Embed, graph.Attr{}, gb.Weight(graph.Weight{Name: "table", Shape: tensor.Shape{11, width}}))
					y := gb.Op(graph.MatMul, graph.Attr{}, x, gb.Weight(graph.Weight{Name: "w", Shape: tensor.Shape{n, width}}))
					h := gb.Op(graph.Rows, graph.Attr{}, y)
					g, err := gb.Graph(h, h)
					if err != nil {
						t.Fatal(err)
					}
					tokens := []int32{3, 1, 4, 1, 5, 9, 2, 6, 10, 0, 8}
					w := Stored(g, d, uint64(n))
					want, _, err := Reference(g, w, tokens)
					if err != nil {
						t.Fatal(err)
					}
					p := compile(t, b, g, w, backend.Limits{MaxTokens: len(tokens), MaxRows: len(tokens), BlockTokens: 4, Blocks: 3, Exact: exact})
					got := p.run(t, span(0, tokens, []int32{2, 0, 1}))
					near(t, fmt.Sprintf("[%d,%d] of %v", n, width, d), got, want, off(d))
				}
			}
		})
	}
}

// parts wants a table refused whose rows are no whole blocks.
func parts(t *testing.T, b backend.Backend, d tensor.DType) {
	var gb graph.Builder
	x := gb.Op(graph.Embed, graph.Attr{}, gb.Weight(graph.Weight{Name: "table", Shape: tensor.Shape{d.Block(), d.Block() + 1}}))
	h := gb.Op(graph.Rows, graph.Attr{}, x)
	g, err := gb.Graph(h, h)
	if err != nil {
		t.Fatal(err)
	}
	shape := g.Weights[0].Shape
	n, _ := shape.Elements()
	w := func(string) (tensor.Tensor, error) {
		return tensor.Tensor{Name: "table", DType: d, Shape: shape, Data: make([]byte, d.Bytes(n))}, nil
	}
	_, err = b.Compile(t.Context(), g, w, backend.Limits{MaxTokens: 1, MaxRows: 1, BlockTokens: 1, Blocks: 1})
	if err == nil || !strings.Contains(err.Error(), "table") || !strings.Contains(err.Error(), d.String()) {
		t.Errorf("part of a block: %v", err)
	}
}
