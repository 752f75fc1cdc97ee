package cpu

import (
	"context"
	"errors"
	"fmt"

	kernels "github.com/estiba/estiba/kernels/cpu"
	"github.com/estiba/estiba/runtime/backend"
	"github.com/estiba/estiba/runtime/batching"
	"github.com/estiba/estiba/runtime/graph"
)

// exact is a replica with reference arithmetic: plain Go, node by node, on weights where they
// are mapped. It implements backend.Program.
type exact struct {
	base
	weights []kernels.Matrix // of graph.Weights
}

// Run computes a batch.
func (p *exact) Run(ctx context.Context, b batching.Batch, out *backend.Out) error {
	return p.run(b, out, func() error {
		for i, n := range p.graph.Nodes {
			if err := stopped(ctx, i); err != nil {
				return err
			}
			if err := p.node(i, n); err != nil {
				return fmt.Errorf("node %d (%v%s): %w", i, n.Kind, p.weightNames(n), err)
			}
		}
		return nil
	})
}

// node computes one op. Pieces of an op are rows, or columns of a product, whose
// results do not depend on the cut.
func (p *exact) node(i int, n graph.Node) error {
	y, width, rows := p.value(n.Out), p.graph.Width(n.Out), p.rows(n.Out)
	if rows == 0 {
		return nil
	}
	var x []float32 // the first operand
	if !p.graph.IsWeight(n.In[0]) {
		x = p.value(n.In[0])
	}
	a := n.Attr
	eachRow := func(cost int, do func(t int, y, x []float32)) error {
		in := 0
		if x != nil {
			in = len(x) / rows
		}
		return p.team.each(rows, enough/(width*cost), function(func(from, to int) {
			for t := from; t < to; t++ {
				do(t, y[t*width:(t+1)*width], x[t*in:(t+1)*in])
			}
		}))
	}
	eachNumber := func(cost int, do func(from, to int)) error { return p.team.each(len(y), enough/cost, function(do)) }
	weight := func(operand int) kernels.Matrix { return p.weights[n.In[operand]] }
	const dear = 16 // an exponential, in multiplications

	switch n.Kind {
	case graph.Embed:
		return eachRow(1, func(t int, y, _ []float32) { weight(0).Row(y, int(p.tokens[t])) })
	case graph.Positions:
		return eachRow(1, func(t int, y, _ []float32) { weight(0).Row(y, p.position[t]) })
	case graph.RMSNorm:
		part := width / max(a.Heads, 1)
		return eachRow(1, func(_ int, y, x []float32) {
			for at := 0; at < width; at += part {
				kernels.RMSNorm(y[at:at+part], x[at:at+part], weight(1), a.Eps, a.Shift)
			}
		})
	case graph.LayerNorm:
		return eachRow(1, func(_ int, y, x []float32) { kernels.LayerNorm(y, x, weight(1), weight(2), a.Eps) })
	case graph.MatMul:
		w := weight(1)
		return p.team.each(width, enough/(rows*w.Cols), function(func(from, to int) { kernels.MatMul(y, x, rows, w, from, to) }))
	case graph.Bias:
		return eachRow(1, func(_ int, y, x []float32) { kernels.Bias(y, x, weight(1), a.Row) })
	case graph.Rope:
		return eachRow(1, func(t int, y, x []float32) {
			cos, sin := p.angle(p.rotationOf[i], t)
			kernels.Rotate(y, x, cos, sin, a.HeadDim, a.Neighbours)
		})
	case graph.Attention:
		return p.attention(n)
	case graph.Add:
		z := p.value(n.In[1])
		return eachNumber(1, func(from, to int) { kernels.Add(y[from:to], x[from:to], z[from:to]) })
	case graph.SwiGLU:
		up := p.value(n.In[1])
		return eachNumber(dear, func(from, to int) { kernels.SwiGLU(y[from:to], x[from:to], up[from:to]) })
	case graph.GeGLU:
		up := p.value(n.In[1])
		return eachNumber(dear, func(from, to int) { kernels.GeGLU(y[from:to], x[from:to], up[from:to], a.Tanh) })
	case graph.GELU:
		return eachNumber(dear, func(from, to int) { kernels.GELU(y[from:to], x[from:to], a.Tanh) })
	case graph.Scale:
		return eachNumber(1, func(from, to int) { kernels.Scale(y[from:to], x[from:to], a.Scale) })
	case graph.SoftCap:
		return eachNumber(dear, func(from, to int) { kernels.SoftCap(y[from:to], x[from:to], a.SoftCap) })
	case graph.Route:
		return eachRow(dear*a.TopK, func(_ int, y, x []float32) { kernels.Route(y, x, a.TopK, a.Normalize) })
	case graph.ExpertMatMul:
		return p.expertMatMul(n)
	case graph.ExpertSum:
		route := p.value(n.In[1])
		return eachRow(a.TopK, func(t int, y, x []float32) {
			kernels.ExpertSum(y, x, route[(2*t+1)*a.TopK:(2*t+2)*a.TopK])
		})
	case graph.Rows:
		for i, t := range p.wanted {
			copy(y[i*width:(i+1)*width], x[t*width:(t+1)*width])
		}
		return nil
	}
	return errors.New("no kernel")
}

// attention writes every token's key and value into the cache, then lets every
// query attend to the positions up to its own. In an encoder every query attends to all
// tokens of its span, whose keys and values are in the batch.
func (p *exact) attention(n graph.Node) error {
	a := n.Attr
	q, k, v, y := p.value(n.In[0]), p.value(n.In[1]), p.value(n.In[2]), p.value(n.Out)
	group := a.Heads / a.KVHeads
	attend := func(i int, kv kernels.KV, blocks []int32, from, to int) {
		h, at := i%a.Heads, i*a.HeadDim
		kernels.Attend(y[at:at+a.HeadDim], q[at:at+a.HeadDim], kv, blocks, from, to, h/group*a.HeadDim, a.Scale, a.SoftCap)
	}
	most := 0 // positions that a query attends to
	if a.Bidirectional {
		for _, s := range p.spans {
			most = max(most, s.tokens)
		}
		width := a.KVHeads * a.HeadDim
		return p.team.each(len(p.tokens)*a.Heads, enough/(2*most*a.HeadDim), function(func(from, to int) {
			for i := from; i < to; i++ {
				s := p.spans[i/a.Heads]
				kv := kernels.KV{Keys: k[s.first*width:], Values: v[s.first*width:], BlockTokens: s.tokens, Width: width}
				attend(i, kv, oneBlock, 0, s.tokens)
			}
		}))
	}
	layer := p.layer(a.Layer)
	for t, position := range p.position {
		block, slot := p.blocks[t][position/layer.BlockTokens], position%layer.BlockTokens
		copy(layer.Key(block, slot), k[t*layer.Width:])
		copy(layer.Value(block, slot), v[t*layer.Width:])
		most = max(most, position+1)
	}
	return p.team.each(len(p.tokens)*a.Heads, enough/(2*most*a.HeadDim), function(func(from, to int) {
		for i := from; i < to; i++ {
			t := i / a.Heads
			first, end := 0, p.position[t]+1
			if a.Window > 0 {
				first = max(0, end-a.Window)
			}
			attend(i, layer, p.blocks[t], first, end)
		}
	}))
}

// oneBlock is the block table of a sequence whose keys and values lie together.
var oneBlock = []int32{0}

// layer is a layer of the cache.
func (p *exact) layer(l int) kernels.KV {
	blockTokens, width := p.limits.BlockTokens, p.cache.Width
	return kernels.Paged(view[float32](p.kv.blocks)[l*2*blockTokens*width:], blockTokens, width, p.kv.stride/4)
}

// expertMatMul multiplies the rows of each expert by its weights. The rows of
// one expert are together, so that its weights are read once for all of them.
func (p *exact) expertMatMul(n graph.Node) error {
	x, route, y := p.value(n.In[0]), p.value(n.In[1]), p.value(n.Out)
	experts, width := n.In[2:], p.graph.Width(n.Out)/n.Attr.TopK
	r := &p.experts
	r.sort(route, n.Attr.TopK, len(experts), p.graph.Width(n.In[0]), p.weights[experts[0]].Cols, width)
	columns := len(r.used) * width
	perColumn := len(r.x) * p.weights[experts[0]].Cols / len(r.used)
	return p.team.each(columns, enough/max(perColumn, 1), function(func(from, to int) {
		for from < to {
			e, column := r.used[from/width], from%width
			end := min(width, column+to-from)
			rows := func(at []int) []int { return at[r.start[e]:r.start[e+1]] }
			kernels.MatMulRows(y, x, rows(r.y), rows(r.x), p.weights[experts[e]], column, end)
			from += end - column
		}
	}))
}
