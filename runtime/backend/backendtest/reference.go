// Package backendtest is what every backend must pass. Run takes a backend
// through it; Reference is the slow, obvious program that judges.
package backendtest

import (
	"fmt"
	"slices"

	kernels "github.com/estiba/estiba/kernels/cpu"
	"github.com/estiba/estiba/runtime/backend"
	"github.com/estiba/estiba/runtime/graph"
)

// Reference computes a whole sequence from its start by the definition of every
// op: each value in memory of its own, the cache one block as long as the sequence, sums in
// float64. It gives every token's row of logits [tokens, vocabulary], nil for an encoder, and of
// the hidden state [tokens, hidden].
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
		eachRow := func(do func(t int, y, x []float32)) {
			for t := range tokens {
				do(t, row(y, t), row(in(0), t))
			}
		}
		a := n.Attr
		switch n.Kind {
		case graph.Embed:
			for t, id := range tokens {
				matrices[n.In[0]].RowRef(row(y, t), int(id))
			}
		case graph.Positions:
			for t := range tokens {
				matrices[n.In[0]].RowRef(row(y, t), t)
			}
		case graph.RMSNorm:
			part := width / max(a.Heads, 1)
			eachRow(func(_ int, y, x []float32) {
				for at := 0; at < width; at += part {
					kernels.RMSNormRef(y[at:at+part], x[at:at+part], matrices[n.In[1]], a.Eps, a.Shift)
				}
			})
		case graph.LayerNorm:
			eachRow(func(_ int, y, x []float32) { kernels.LayerNormRef(y, x, matrices[n.In[1]], matrices[n.In[2]], a.Eps) })
		case graph.MatMul:
			kernels.MatMulRef(y, in(0), len(tokens), matrices[n.In[1]])
		case graph.Bias:
			eachRow(func(_ int, y, x []float32) { kernels.BiasRef(y, x, matrices[n.In[1]], a.Row) })
		case graph.Rope:
			frequencies := slices.Clone(a.Frequencies)
			if len(n.In) == 2 {
				divisors := make([]float32, len(frequencies))
				matrices[n.In[1]].RowRef(divisors, 0)
				for i, d := range divisors {
					frequencies[i] /= d
				}
			}
			eachRow(func(t int, y, x []float32) {
				kernels.RotateRef(y, x, a.HeadDim, t, frequencies, a.Amplitude, a.Neighbours)
			})
		case graph.Attention:
			kv := kernels.KV{Keys: in(1), Values: in(2), BlockTokens: len(tokens), Width: a.KVHeads * a.HeadDim}
			eachRow(func(t int, y, q []float32) {
				from, to := 0, t+1
				if a.Window > 0 {
					from = max(0, to-a.Window)
				}
				if a.Bidirectional {
					to = len(tokens)
				}
				for h := range a.Heads {
					at, head := h*a.HeadDim, h/(a.Heads/a.KVHeads)*a.HeadDim
					kernels.AttendRef(y[at:at+a.HeadDim], q[at:at+a.HeadDim], kv, []int32{0}, from, to, head, a.Scale, a.SoftCap)
				}
			})
		case graph.Add:
			kernels.Add(y, in(0), in(1))
		case graph.SwiGLU:
			kernels.SwiGLURef(y, in(0), in(1))
		case graph.GeGLU:
			kernels.GeGLURef(y, in(0), in(1), a.Tanh)
		case graph.GELU:
			kernels.GELURef(y, in(0), a.Tanh)
		case graph.Scale:
			kernels.Scale(y, in(0), a.Scale)
		case graph.SoftCap:
			kernels.SoftCapRef(y, in(0), a.SoftCap)
		case graph.Route:
			eachRow(func(_ int, y, scores []float32) { kernels.RouteRef(y, scores, a.TopK, a.Normalize) })
		case graph.ExpertMatMul:
			eachRow(func(t int, y, x []float32) {
				for k, expert := range row(in(1), t)[:a.TopK] {
					w := matrices[n.In[2+int(expert)]]
					part := x
					if len(x) != w.Cols {
						part = x[k*w.Cols : (k+1)*w.Cols]
					}
					kernels.MatMulRef(y[k*w.Rows:(k+1)*w.Rows], part, 1, w)
				}
			})
		case graph.ExpertSum:
			eachRow(func(t int, y, x []float32) { kernels.ExpertSumRef(y, x, row(in(1), t)[a.TopK:]) })
		case graph.Rows: // all are wanted
			copy(y, in(0))
		default:
			return nil, nil, fmt.Errorf("the reference lacks %v", n.Kind)
		}
		values[n.Out] = y
	}
	if !g.Encoder() {
		logits = values[g.Logits]
	}
	return logits, values[g.Hidden], nil
}
