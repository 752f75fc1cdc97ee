package cuda

import (
	"slices"

	"github.com/estiba/estiba/runtime/graph"
)

// group is neighbouring nodes of a graph that are computed together.
type group struct {
	kind  groupKind
	nodes []int
	parts []part // of products
	gate  int    // node that makes one value of the two parts' results; -1: none
}

// part of products: nodes that make one matrix's result.
type part struct {
	product int // MatMul or ExpertMatMul
	bias    int // Bias of its result; -1: none
	sum     int // Add of a value to that; -1: none
}

// out is the value that a part makes.
func (p part) out(g *graph.Graph) graph.Value {
	return g.Nodes[max(p.product, p.bias, p.sum)].Out
}

type groupKind uint8

const (
	single   groupKind = iota // one node
	addNorm                   // Add, and RMSNorm or LayerNorm of the sum
	turn                      // Rope of queries, Rope of keys, and Attention with both, which alone reads the keys
	products                  // products of one value, with what is added to their results, or made of two of them
)

// mostParts is how many matrices one launch multiplies by.
const mostParts = 3

// fuse finds the groups of a graph. Every node is in one, and the groups are in an order in which they can run. What a
// group makes and nobody else reads is not written.
func fuse(g *graph.Graph) []group {
	f := fuser{Graph: g, readers: make([]int, len(g.Shapes)), rotationOf: g.RotationOf()}
	for _, n := range g.Nodes {
		for _, v := range n.In {
			f.readers[v]++
		}
	}
	f.readers[g.Hidden]++
	if !g.Encoder() {
		f.readers[g.Logits]++
	}
	var groups []group
	for i := 0; i < len(g.Nodes); {
		var here group
		switch {
		case f.addNorm(i):
			here = group{addNorm, []int{i, i + 1}, nil, -1}
		case f.turn(i):
			here = group{turn, []int{i, i + 1, i + 2}, nil, -1}
		case f.kinds(i, graph.MatMul) || f.kinds(i, graph.ExpertMatMul):
			here = f.products(i)
		default:
			here = group{single, []int{i}, nil, -1}
		}
		groups = append(groups, here)
		i += len(here.nodes)
	}
	return groups
}

type fuser struct {
	*graph.Graph
	readers    []int // of each value
	rotationOf []int
}

// kinds says whether some nodes from i on are of these kinds.
func (f *fuser) kinds(i int, want ...graph.Kind) bool {
	n := f.Nodes[i:]
	return len(n) >= len(want) && slices.EqualFunc(n[:len(want)], want, func(n graph.Node, k graph.Kind) bool { return n.Kind == k })
}

// own says that a value is read once only.
func (f *fuser) own(v graph.Value) bool { return f.readers[v] == 1 }

func (f *fuser) addNorm(i int) bool {
	if !f.kinds(i, graph.Add, graph.RMSNorm) && !f.kinds(i, graph.Add, graph.LayerNorm) {
		return false
	}
	sum, norm := f.Nodes[i], f.Nodes[i+1]
	return norm.In[0] == sum.Out && norm.Attr.Heads <= 1
}

func (f *fuser) turn(i int) bool {
	if !f.kinds(i, graph.Rope, graph.Rope, graph.Attention) || f.rotationOf[i] != f.rotationOf[i+1] {
		return false
	}
	q, k, a := f.Nodes[i], f.Nodes[i+1], f.Nodes[i+2]
	return a.In[0] == q.Out && a.In[1] == k.Out && f.own(k.Out) && !a.Attr.Bidirectional &&
		k.In[0] != q.Out && a.In[2] != q.Out && // else they would be read while they are written
		q.Attr.HeadDim == k.Attr.HeadDim && q.Attr.Neighbours == k.Attr.Neighbours
}

// products that begin with node i.
func (f *fuser) products(i int) group {
	first := f.Nodes[i]
	g := group{kind: products, gate: -1}
	add := func() int {
		at := i + len(g.nodes)
		g.nodes = append(g.nodes, at)
		return at
	}
	next := func() (graph.Node, bool) {
		if at := i + len(g.nodes); at < len(f.Nodes) {
			return f.Nodes[at], true
		}
		return graph.Node{}, false
	}
	for n, ok := first, true; ok && len(g.parts) < mostParts && f.alike(first, n); n, ok = next() {
		g.parts = append(g.parts, part{add(), -1, -1})
	}
	if f.gated(i, g.parts) {
		g.gate = add()
		return g
	}
	if first.Kind == graph.ExpertMatMul {
		return g
	}
	for {
		n, ok := next()
		if !ok || n.Kind != graph.Bias && n.Kind != graph.Add {
			return g
		}
		at := slices.IndexFunc(g.parts, func(p part) bool {
			v := p.out(f.Graph)
			return f.own(v) && (n.In[0] == v || n.Kind == graph.Add && n.In[1] == v)
		})
		if at < 0 || g.parts[at].sum >= 0 || n.Kind == graph.Bias && g.parts[at].bias >= 0 {
			return g
		}
		p := &g.parts[at]
		if n.Kind == graph.Bias {
			p.bias = add()
			continue
		}
		if f.touches(g, other(n, p.out(f.Graph))) {
			return g
		}
		p.sum = add()
	}
}

// other operand of an Add.
func other(add graph.Node, v graph.Value) graph.Value {
	if add.In[0] == v {
		return add.In[1]
	}
	return add.In[0]
}

// touches says whether a value is made or read within a group. The sum with it may be written over it, while other blocks of
// the launch still read it.
func (f *fuser) touches(g group, v graph.Value) bool {
	return slices.ContainsFunc(g.nodes, func(i int) bool { return f.Nodes[i].Out == v || slices.Contains(f.Nodes[i].In, v) })
}

// alike products read the same value, and are for the same experts.
func (f *fuser) alike(a, b graph.Node) bool {
	if a.Kind != b.Kind || a.In[0] != b.In[0] {
		return false
	}
	if a.Kind == graph.MatMul {
		return true
	}
	return a.In[1] == b.In[1] && len(a.In) == len(b.In) && a.Attr.TopK == b.Attr.TopK &&
		f.Width(a.Out) == f.Width(b.Out) && f.Width(a.In[2]) == f.Width(b.In[2])
}

// gated says whether the node after two products makes one value of theirs.
func (f *fuser) gated(i int, parts []part) bool {
	if len(parts) != 2 || !f.kinds(i+2, graph.SwiGLU) && !f.kinds(i+2, graph.GeGLU) {
		return false
	}
	gate, up, y := f.Nodes[i].Out, f.Nodes[i+1].Out, f.Nodes[i+2]
	return y.In[0] == gate && y.In[1] == up && f.own(gate) && f.own(up)
}
