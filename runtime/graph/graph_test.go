package graph_test

import (
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/estiba/estiba/runtime/graph"
	"github.com/estiba/estiba/runtime/tensor"
)

// tiny is a graph with every kind of op: one layer, width 6, a vocabulary of 7.
func tiny(t *testing.T) *graph.Graph {
	t.Helper()
	var b graph.Builder
	weight := func(name string, shape ...int) graph.Value { return b.Weight(graph.Weight{Name: name, Shape: shape}) }
	none := graph.Attr{}
	x := b.Op(graph.Embed, none, weight("embedding", 7, 6))
	h := b.Op(graph.RMSNorm, graph.Attr{Eps: 1e-5}, x, weight("norm", 6))
	q := b.Op(graph.MatMul, none, h, weight("q", 8, 6))
	k := b.Op(graph.MatMul, none, h, weight("k", 4, 6))
	v := b.Op(graph.MatMul, none, h, weight("v", 4, 6))
	q = b.Op(graph.Rope, graph.Attr{Heads: 2, HeadDim: 4, Frequencies: []float32{1, 0.1}, Amplitude: 1}, q)
	k = b.Op(graph.Rope, graph.Attr{Heads: 1, HeadDim: 4, Frequencies: []float32{1, 0.1}, Amplitude: 1}, k)
	a := b.Op(graph.Attention, graph.Attr{Heads: 2, KVHeads: 1, HeadDim: 4, Scale: 0.5}, q, k, v)
	x = b.Op(graph.Add, none, x, b.Op(graph.MatMul, none, a, weight("o", 6, 8)))
	x = b.Op(graph.Add, none, x, b.Op(graph.SwiGLU, none, x, h))
	x = b.Op(graph.Add, none, x, b.Op(graph.Positions, none, weight("positions", 3, 6)))
	x = b.Op(graph.LayerNorm, graph.Attr{Eps: 1e-5}, x, weight("layer norm", 6), weight("layer norm bias", 6))
	x = b.Op(graph.GeGLU, none, b.Op(graph.GELU, none, x), b.Op(graph.Bias, none, x, weight("bias", 6)))
	route := b.Op(graph.Route, graph.Attr{TopK: 2}, b.Op(graph.MatMul, none, x, weight("router", 3, 6)))
	up := b.Op(graph.ExpertMatMul, graph.Attr{TopK: 2}, x, route, weight("up 0", 5, 6), weight("up 1", 5, 6), weight("up 2", 5, 6))
	down := b.Op(graph.ExpertMatMul, graph.Attr{TopK: 2}, up, route, weight("down 0", 6, 5), weight("down 1", 6, 5), weight("down 2", 6, 5))
	x = b.Op(graph.Scale, graph.Attr{Scale: 2}, b.Op(graph.ExpertSum, graph.Attr{TopK: 2}, down, route))
	x = b.Op(graph.Rows, none, x)
	g, err := b.Graph(x, b.Op(graph.SoftCap, graph.Attr{SoftCap: 3}, b.Op(graph.MatMul, none, x, weight("output", 7, 6))))
	if err != nil {
		t.Fatal(err)
	}
	return g
}

func TestBuilderShapes(t *testing.T) {
	g := tiny(t)
	if !g.Shapes[g.Logits].Equal(tensor.Shape{graph.Wanted, 7}) || !g.Shapes[g.Hidden].Equal(tensor.Shape{graph.Wanted, 6}) {
		t.Errorf("results are %v and %v", g.Shapes[g.Logits], g.Shapes[g.Hidden])
	}
	if got := g.Cache(); got != (graph.Cache{Layers: 1, Width: 4}) {
		t.Errorf("cache %+v", got)
	}
	var seen []graph.Kind
	for _, n := range g.Nodes {
		seen = append(seen, n.Kind)
	}
	for _, k := range graph.Kinds() {
		if !slices.Contains(seen, k) {
			t.Errorf("this test lacks %v", k)
		}
	}
}

func TestCheckRefuses(t *testing.T) {
	node := func(g *graph.Graph, k graph.Kind) *graph.Node {
		i := slices.IndexFunc(g.Nodes, func(n graph.Node) bool { return n.Kind == k })
		return &g.Nodes[i]
	}
	for name, c := range map[string]struct {
		spoil func(*graph.Graph)
		want  string
	}{
		"later value":         {func(g *graph.Graph) { g.Nodes[1].In[0] = g.Logits }, "before it is made"},
		"no such value":       {func(g *graph.Graph) { g.Nodes[1].In[0] = 1000 }, "before it is made"},
		"weight as operand":   {func(g *graph.Graph) { node(g, graph.Add).In[0] = 0 }, "must be made by an op"},
		"operand as weight":   {func(g *graph.Graph) { node(g, graph.MatMul).In[1] = g.Nodes[0].Out }, "must be a weight"},
		"made twice":          {func(g *graph.Graph) { g.Nodes[1].Out = g.Nodes[0].Out }, "not free"},
		"other shape":         {func(g *graph.Graph) { g.Shapes[g.Nodes[0].Out] = tensor.Shape{graph.Tokens, 9} }, "its value has"},
		"no eps":              {func(g *graph.Graph) { node(g, graph.RMSNorm).Attr.Eps = 0 }, "Eps > 0"},
		"odd heads":           {func(g *graph.Graph) { node(g, graph.Attention).Attr.Heads = 3 }, "KVHeads*HeadDim"},
		"too many pairs":      {func(g *graph.Graph) { a := &node(g, graph.Rope).Attr; a.Heads, a.HeadDim = 8, 1 }, "at most HeadDim/2"},
		"no frequency":        {func(g *graph.Graph) { node(g, graph.Rope).Attr.Frequencies = []float32{1, 0} }, "Frequencies > 0"},
		"both ways":           {func(g *graph.Graph) { node(g, graph.Attention).Attr.Bidirectional = true }, "for encoders"},
		"encoder with cache":  {func(g *graph.Graph) { g.Logits = graph.None }, "for encoders"},
		"negative window":     {func(g *graph.Graph) { node(g, graph.Attention).Attr.Window = -1 }, "Window >= 0"},
		"row beyond":          {func(g *graph.Graph) { node(g, graph.Bias).Attr.Row = 1 }, "Row < N"},
		"more than there are": {func(g *graph.Graph) { node(g, graph.Route).Attr.TopK = 4 }, "TopK <= E"},
		"parts of a route":    {func(g *graph.Graph) { node(g, graph.ExpertSum).Attr.TopK = 3 }, "route [R,2*TopK]"},
		"unlike experts":      {func(g *graph.Graph) { n := node(g, graph.ExpertMatMul); n.In[2] = n.In[2] - 1 }, "each of at least TopK"},
		"no bias":             {func(g *graph.Graph) { n := node(g, graph.LayerNorm); n.In = n.In[:2] }, "operands"},
		"layer skipped":       {func(g *graph.Graph) { node(g, graph.Attention).Attr.Layer = 1 }, "want layer 0"},
		"name used twice":     {func(g *graph.Graph) { g.Weights[1].Name = g.Weights[0].Name }, "used twice"},
		"unread weight":       {func(g *graph.Graph) { node(g, graph.MatMul).In[1] = 2; g.Nodes[3].In[1] = 4 }, "never read"},
		"result not wanted":   {func(g *graph.Graph) { g.Hidden = g.Nodes[0].Out }, "no row for each wanted"},
		"too few operands":    {func(g *graph.Graph) { node(g, graph.Add).In = node(g, graph.Add).In[:1] }, "2 operands"},
		"no kind":             {func(g *graph.Graph) { g.Nodes[2].Kind = 200 }, "no op"},
		"weight without size": {func(g *graph.Graph) { g.Weights[0].Shape = tensor.Shape{-1, 6} }, "has shape"},
	} {
		g := tiny(t)
		c.spoil(g)
		if err := g.Check(); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want an error with %q", name, err, c.want)
		}
	}
}

func TestBuilderKeepsFirstError(t *testing.T) {
	var b graph.Builder
	x := b.Op(graph.Embed, graph.Attr{}, b.Weight(graph.Weight{Name: "e", Shape: tensor.Shape{3, 4}}))
	x = b.Op(graph.MatMul, graph.Attr{}, x, b.Weight(graph.Weight{Name: "w", Shape: tensor.Shape{3, 5}}))
	x = b.Op(graph.Rows, graph.Attr{}, x)
	if _, err := b.Graph(x, x); err == nil || !strings.Contains(err.Error(), "node 1: MatMul") {
		t.Errorf("got %v", err)
	}
}

// TestPlan runs random graphs twice in their minds: each value in memory of its
// own, and in the plan's slots. Nobody may find in a slot another value than
// the one it wants, and no slot may be too small.
func TestPlan(t *testing.T) {
	check := func(t *testing.T, g *graph.Graph) {
		if err := g.Check(); err != nil {
			t.Fatal(err)
		}
		p := g.Plan()
		holds := make([]graph.Value, len(p.Slots))
		for i := range holds {
			holds[i] = -1
		}
		logits := graph.None // what the caller's memory holds
		for i, n := range g.Nodes {
			for _, v := range n.In {
				if g.IsWeight(v) {
					continue
				}
				if p.Slot[v] < 0 {
					if logits != v {
						t.Fatalf("node %d (%v) wants value %d, the logits hold %d", i, n.Kind, v, logits)
					}
				} else if holds[p.Slot[v]] != v {
					t.Fatalf("node %d (%v) wants value %d, slot %d holds %d", i, n.Kind, v, p.Slot[v], holds[p.Slot[v]])
				}
			}
			if p.Slot[n.Out] < 0 {
				if !g.Shapes[n.Out].Equal(g.Shapes[g.Logits]) {
					t.Fatalf("value %d of shape %v in the logits", n.Out, g.Shapes[n.Out])
				}
				logits = n.Out
				continue
			}
			s := p.Slot[n.Out]
			if p.Slots[s].Width < g.Width(n.Out) || p.Slots[s].Rows != g.Shapes[n.Out][0] {
				t.Fatalf("value %d of shape %v in slot %+v", n.Out, g.Shapes[n.Out], p.Slots[s])
			}
			for _, v := range n.In {
				if !g.IsWeight(v) && p.Slot[v] == s && !slices.Contains([]graph.Kind{graph.Add, graph.SwiGLU, graph.GeGLU, graph.GELU, graph.Bias, graph.Scale, graph.SoftCap, graph.Rope}, n.Kind) {
					t.Fatalf("node %d (%v) writes over its operand", i, n.Kind)
				}
			}
			holds[s] = n.Out
		}
		if logits != g.Logits {
			t.Fatal("the logits are gone")
		}
		if g.Hidden != g.Logits && holds[p.Slot[g.Hidden]] != g.Hidden {
			t.Fatalf("the hidden state is gone")
		}
	}
	check(t, tiny(t))
	check(t, tiny(t).Fast())
	for seed := range uint64(2000) {
		r := rand.New(rand.NewPCG(seed, 1))
		var b graph.Builder
		values := []graph.Value{b.Op(graph.Embed, graph.Attr{}, b.Weight(graph.Weight{Name: "e", Shape: tensor.Shape{5, 8}}))}
		for range r.IntN(20) {
			x, y := values[r.IntN(len(values))], values[r.IntN(len(values))]
			switch r.IntN(3) {
			case 0:
				values = append(values, b.Op(graph.Add, graph.Attr{}, x, y))
			case 1:
				values = append(values, b.Op(graph.Rope, graph.Attr{Heads: 2, HeadDim: 4, Frequencies: []float32{1, 0.1}, Amplitude: 1}, x))
			case 2:
				values = append(values, b.Op(graph.SwiGLU, graph.Attr{}, x, y))
			}
		}
		h := b.Op(graph.Rows, graph.Attr{}, values[r.IntN(len(values))])
		out := b.Op(graph.MatMul, graph.Attr{}, h, b.Weight(graph.Weight{Name: "o", Shape: tensor.Shape{5, 8}}))
		for range r.IntN(4) {
			switch r.IntN(3) {
			case 0:
				out = b.Op(graph.SoftCap, graph.Attr{SoftCap: 2}, out)
			case 1:
				out = b.Op(graph.Scale, graph.Attr{Scale: 2}, out)
			case 2:
				out = b.Op(graph.Add, graph.Attr{}, out, out)
			}
		}
		g, err := b.Graph(h, out)
		if err != nil {
			t.Fatal(err)
		}
		check(t, g)
		check(t, g.Fast())
	}
}

// TestFast: what is computed for wanted rows only, and which products stand together.
func TestFast(t *testing.T) {
	var b graph.Builder
	weight := func(name string, shape ...int) graph.Value { return b.Weight(graph.Weight{Name: name, Shape: shape}) }
	none := graph.Attr{}
	x := b.Op(graph.Embed, none, weight("embedding", 7, 4))
	for l, name := range []string{"first ", "second "} {
		q := b.Op(graph.Bias, none, b.Op(graph.MatMul, none, x, weight(name+"q", 4, 4)), weight(name+"bias", 4))
		k := b.Op(graph.MatMul, none, x, weight(name+"k", 4, 4))
		a := b.Op(graph.Attention, graph.Attr{Heads: 1, KVHeads: 1, HeadDim: 4, Scale: 0.5, Layer: l}, q, k, k)
		x = b.Op(graph.Add, none, x, b.Op(graph.MatMul, none, a, weight(name+"o", 4, 4)))
	}
	h := b.Op(graph.Rows, none, x)
	g, err := b.Graph(h, b.Op(graph.MatMul, none, h, weight("output", 7, 4)))
	if err != nil {
		t.Fatal(err)
	}
	f := g.Fast()
	if err := f.Check(); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, n := range f.Nodes {
		s := n.Kind.String()
		for _, v := range n.In {
			if f.IsWeight(v) {
				s += " " + f.Weights[v].Name
			}
		}
		if f.Shapes[n.Out][0] == graph.Wanted {
			s += ", wanted"
		}
		got = append(got, s)
	}
	want := []string{
		"Embed embedding",
		"MatMul first q", "MatMul first k", "Bias first bias", "Attention", "MatMul first o", "Add",
		"MatMul second q", "MatMul second k", "Bias second bias", "Attention",
		"Rows, wanted", "MatMul second o, wanted", "Rows, wanted", "Add, wanted", "MatMul output, wanted",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %q\nwant %q", got, want)
	}
	if uses := g.Uses(); uses[0] != graph.Table || uses[1] != graph.Product || uses[2] != graph.Vector {
		t.Errorf("uses %v", uses)
	}
}
