package graph

import (
	"errors"
	"fmt"

	"github.com/estiba/estiba/runtime/tensor"
)

// Builder makes a graph op by op. The first mistake is kept and given by Graph,
// so that an architecture reads without error checks between its ops.
type Builder struct {
	g      Graph
	shapes []tensor.Shape // of what ops made; value numbers from first on
	err    error
}

// first is the number of the first value that an op makes while building, when
// the number of weights is not known yet.
const first Value = 1 << 30

// Weight is a tensor of the checkpoint.
func (b *Builder) Weight(w Weight) Value {
	b.g.Weights = append(b.g.Weights, w)
	return Value(len(b.g.Weights) - 1)
}

// Op adds an op on operands and gives what it makes.
func (b *Builder) Op(k Kind, a Attr, in ...Value) Value {
	if b.err != nil {
		return first
	}
	shapes := make([]tensor.Shape, len(in))
	for i, v := range in {
		switch {
		case v >= 0 && int(v) < len(b.g.Weights):
			shapes[i] = b.g.Weights[v].Shape
		case v >= first && int(v-first) < len(b.shapes):
			shapes[i] = b.shapes[v-first]
		default:
			b.err = fmt.Errorf("graph: %v reads value %d, which does not exist", k, v)
			return first
		}
	}
	out, err := infer(k, a, shapes)
	if err != nil {
		b.err = fmt.Errorf("graph: node %d: %w", len(b.g.Nodes), err)
		return first
	}
	b.shapes = append(b.shapes, out)
	v := first + Value(len(b.shapes)-1)
	b.g.Nodes = append(b.g.Nodes, Node{Kind: k, In: in, Out: v, Attr: a})
	return v
}

// Width of the last axis of a value.
func (b *Builder) Width(v Value) int {
	var s tensor.Shape
	switch {
	case v >= 0 && int(v) < len(b.g.Weights):
		s = b.g.Weights[v].Shape
	case v >= first && int(v-first) < len(b.shapes):
		s = b.shapes[v-first]
	}
	if len(s) == 0 {
		return 0
	}
	return s[len(s)-1]
}

// Graph ends building: hidden and logits are the results; logits are None for an encoder.
func (b *Builder) Graph(hidden, logits Value) (*Graph, error) {
	if b.err != nil {
		return nil, b.err
	}
	if hidden < first || logits < first && logits != None {
		return nil, errors.New("graph: a result must be made by an op")
	}
	g := b.g
	final := func(v Value) Value {
		if v >= first {
			v = v - first + Value(len(g.Weights))
		}
		return v
	}
	for _, w := range g.Weights {
		g.Shapes = append(g.Shapes, w.Shape)
	}
	g.Shapes = append(g.Shapes, b.shapes...)
	for i := range g.Nodes {
		n := &g.Nodes[i]
		for j := range n.In {
			n.In[j] = final(n.In[j])
		}
		n.Out = final(n.Out)
	}
	g.Hidden, g.Logits = final(hidden), final(logits)
	if err := g.Check(); err != nil {
		return nil, err
	}
	return &g, nil
}
