// Package backendtest is what every backend must pass. Run takes a backend
// through it; Reference is the slow, obvious program that judges.
package backendtest

import (
	"fmt"

	kernels "github.com/estiba/estiba/kernels/cpu"
	"github.com/estiba/estiba/runtime/backend"
	"github.com/estiba/estiba/runtime/graph"
)

// Reference computes a whole sequence from its start by the definition of every
// op: each value in memory of its own, the cache one block as long as the sequence, sums in
// float64. It gives every token's row of logits [tokens, vocabulary] and of the hidden
// state [tokens, hidden].
func Reference(g *graph.Graph, weights backend.Weights, tokens []int32) (logits, hidden []float32, err error) {
	if err := g.Check(); err != nil {
		return nil, nil, err
	}
	matrices := make([]kernels.Matrix, len(g.Weights))
	for i, w := range g.Weights {
		t, err := weights(w.Name)
		if err != nil {
			return nil, nil, err
		}
		if !t.Shape.Equal(w.Shape) {
			return nil, nil, fmt.Errorf("weight %q has shape %v, want %v", w.Name, t.Shape, w.Shape)
		}
		matrices[i] = kernels.Matrix{DType: t.DType, Rows: 1, Cols: w.Shape[len(w.Shape)-1], Data: t.Data}
		if len(w.Shape) == 2 {
			matrices[i].Rows = w.Shape[0]
		}
	}
	values := make([][]float32, len(g.Shapes))
	for _, n := range g.Nodes {
		width := g.Width(n.Out)
		y := make([]float32, len(tokens)*width)
		in := func(i int) []float32 { return values[n.In[i]] }
		row := func(x []float32, t int) []float32 { w := len(x) / len(tokens); return x[t*w : (t+1)*w] }
		a := n.Attr
		switch n.Kind {
		case graph.Embed:
			for t, id := range tokens {
				matrices[n.In[0]].RowRef(row(y, t), int(id))
			}
		case graph.RMSNorm:
			for t := range tokens {
				kernels.RMSNormRef(row(y, t), row(in(0), t), matrices[n.In[1]], a.Eps)
			}
		case graph.MatMul:
			kernels.MatMulRef(y, in(0), len(tokens), matrices[n.In[1]])
		case graph.Rope:
			for t := range tokens {
				kernels.RotateRef(row(y, t), row(in(0), t), a.HeadDim, t, a.Theta, a.Neighbours)
			}
		case graph.Attention:
			kv := kernels.KV{BlockTokens: len(tokens), Width: a.KVHeads * a.HeadDim}
			kv.Data = append(append(kv.Data, in(1)...), in(2)...)
			for t := range tokens {
				for h := range a.Heads {
					from, to := h*a.HeadDim, (h+1)*a.HeadDim
					head := h / (a.Heads / a.KVHeads) * a.HeadDim
					kernels.AttendRef(row(y, t)[from:to], row(in(0), t)[from:to], kv, []int32{0}, t+1, head, a.Scale)
				}
			}
		case graph.Add:
			kernels.Add(y, in(0), in(1))
		case graph.SwiGLU:
			kernels.SwiGLURef(y, in(0), in(1))
		case graph.Rows: // all are wanted
			copy(y, in(0))
		default:
			return nil, nil, fmt.Errorf("the reference lacks %v", n.Kind)
		}
		values[n.Out] = y
	}
	return values[g.Logits], values[g.Hidden], nil
}
