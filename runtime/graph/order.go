package graph

import (
	"slices"

	"github.com/estiba/estiba/runtime/tensor"
)

// Use is how a program reads a weight.
type Use uint8

// The uses. A table that is also a product's operand, as a tied output is, is a Product.
const (
	Vector  Use = iota // whole, number by number: norms, biases, divisors of a rotation
	Table              // the rows of a batch's tokens or positions
	Product            // whole, as a matrix that activations are multiplied by
)

// Uses of the weights.
func (g *Graph) Uses() []Use {
	uses := make([]Use, len(g.Weights))
	for _, n := range g.Nodes {
		use := Vector
		switch n.Kind {
		case Embed, Positions:
			use = Table
		case MatMul, ExpertMatMul:
			use = Product
		}
		for _, v := range n.In[activations(n.Kind):] {
			uses[v] = max(uses[v], use)
		}
	}
	return uses
}

// Stored is weights that a checkpoint has in the same way, and that a program uses in the same way.
// A vector has one row.
type Stored struct {
	Use        Use
	DType      tensor.DType
	Rows, Cols int
	Count      int
}

// Fast is the same computation in an order that costs less: products of one value stand together,
// so that it is prepared for them once, and an op whose result matters for wanted rows only is
// computed for those only. An encoder's rows are all wanted.
func (g *Graph) Fast() *Graph {
	f := *g
	if !g.Encoder() {
		f = *f.early()
	}
	nodes := make([]Node, 0, len(f.Nodes))
	taken := make([]bool, len(f.Nodes))
	for i, n := range f.Nodes {
		if taken[i] {
			continue
		}
		nodes = append(nodes, n)
		if n.Kind != MatMul && n.Kind != ExpertMatMul {
			continue
		}
		for j, m := range f.Nodes[i+1:] {
			if same := m.Kind == n.Kind && slices.Equal(m.In[:activations(m.Kind)], n.In[:activations(n.Kind)]); same && !taken[i+1+j] {
				taken[i+1+j] = true
				nodes = append(nodes, m)
			}
		}
	}
	f.Nodes = nodes
	return &f
}

// early puts Rows where the last op has read the rows of other tokens.
func (g *Graph) early() *Graph {
	all := make([]bool, len(g.Shapes)) // values of which every token's row is needed
	for i := len(g.Nodes) - 1; i >= 0; i-- {
		n := g.Nodes[i]
		switch n.Kind {
		case Embed, Positions, Rope, Attention: // of tokens by nature
			all[n.Out] = true
		}
		if all[n.Out] {
			for _, v := range n.In {
				all[v] = true
			}
		}
	}
	f := *g
	f.Nodes, f.Shapes = nil, slices.Clone(g.Shapes)
	now := make([]Value, len(g.Shapes)) // value -> what it has become
	for v := range now {
		now[v] = Value(v)
	}
	gathered := map[Value]Value{}
	wanted := func(v Value) Value {
		v = now[v]
		if g.IsWeight(v) || f.Shapes[v][0] == Wanted {
			return v
		}
		w, ok := gathered[v]
		if !ok {
			w = Value(len(f.Shapes))
			f.Shapes = append(f.Shapes, tensor.Shape{Wanted, f.Width(v)})
			f.Nodes = append(f.Nodes, Node{Kind: Rows, In: []Value{v}, Out: w})
			gathered[v] = w
		}
		return w
	}
	for _, n := range g.Nodes {
		if n.Kind == Rows {
			now[n.Out] = wanted(n.In[0])
			continue
		}
		if !all[n.Out] {
			f.Shapes[n.Out] = tensor.Shape{Wanted, f.Width(n.Out)}
			in := make([]Value, len(n.In))
			for i, v := range n.In {
				in[i] = wanted(v)
			}
			n.In = in
		}
		f.Nodes = append(f.Nodes, n)
	}
	f.Hidden, f.Logits = now[g.Hidden], now[g.Logits]
	return &f
}
