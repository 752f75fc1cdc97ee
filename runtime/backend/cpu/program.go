package cpu

import (
	"context"
	"errors"
	"fmt"
	"math/bits"
	"runtime/debug"
	"slices"

	kernels "github.com/estiba/estiba/kernels/cpu"
	"github.com/estiba/estiba/runtime/backend"
	"github.com/estiba/estiba/runtime/batching"
	"github.com/estiba/estiba/runtime/graph"
)

// program is one replica. It implements backend.Program.
type program struct {
	device     string
	pool       *pool
	graph      *graph.Graph
	limits     backend.Limits
	plan       graph.Plan
	cache      graph.Cache
	rotations  []graph.Rotation
	weights    []kernels.Matrix // of graph.Weights
	vocabulary int              // tokens are below it
	bytes      backend.Bytes
	closed     bool

	kv        own         // blocks of [layers][2][block tokens][cache width]
	workspace memory      // slots, then angles
	slots     [][]float32 // of plan.Slots
	angles    [][]float32 // of rotations: [MaxTokens][cosines, sines of head dim/2]

	// Of the batch that runs:
	tokens   []int32 // all spans' tokens, one after the other
	position []int   // of each token in its sequence
	blocks   [][]int32
	wanted   []int         // tokens whose logits are asked for
	writer   map[int32]int // KV block -> the span that writes to it
	logits   []float32
}

// claim takes the memory of the cache and the workspace.
func (p *program) claim(s *slab) (err error) {
	l := p.limits
	if p.cache.Layers > 0 && (l.BlockTokens < 1 || l.Blocks < 0) {
		return fmt.Errorf("KV cache: %d blocks of %d tokens", l.Blocks, l.BlockTokens)
	}
	if p.kv, err = claimKV(s, product(p.cache.Layers, 2, l.BlockTokens, p.cache.Width), l.Blocks, l.PerExtent); err != nil {
		return fmt.Errorf("KV cache: %w", err)
	}
	floats := int(p.plan.Floats(l.MaxTokens, l.MaxRows))
	for _, r := range p.rotations {
		floats += l.MaxTokens * r.HeadDim
	}
	if p.workspace, err = claim(floats); err != nil {
		return errors.Join(fmt.Errorf("workspace: %w", err), p.kv.free())
	}
	rest := p.workspace.floats
	take := func(n int) []float32 {
		part := rest[:n:n]
		rest = rest[n:]
		return part
	}
	for _, s := range p.plan.Slots {
		rows := l.MaxTokens
		if s.Rows == graph.Wanted {
			rows = l.MaxRows
		}
		p.slots = append(p.slots, take(rows*s.Width))
	}
	for _, r := range p.rotations {
		p.angles = append(p.angles, take(l.MaxTokens*r.HeadDim))
	}
	p.writer = map[int32]int{}
	p.bytes.KV = int64(len(p.kv.bytes))
	p.bytes.Workspace = p.graph.WorkspaceBytes(l.MaxTokens, l.MaxRows) // with the logits, which Out holds
	return nil
}

// Bytes held.
func (p *program) Bytes() backend.Bytes { return p.bytes }

// Close gives the memory back.
func (p *program) Close() error {
	p.closed = true
	p.slots, p.angles = nil, nil
	return errors.Join(p.kv.free(), p.workspace.free())
}

// Run computes a batch. A batch that breaks a limit changes nothing; one that
// ends with a fault or a cancelled context leaves its spans' positions undefined.
func (p *program) Run(ctx context.Context, b batching.Batch, out *backend.Out) error {
	if err := p.take(b); err != nil {
		return fmt.Errorf("run on %s: %w", p.device, err)
	}
	out.Logits = resize(out.Logits, len(p.wanted)*p.graph.Vocabulary())
	p.logits = out.Logits
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	for i, r := range p.rotations {
		for t, position := range p.position {
			a := p.angle(i, t)
			kernels.Angles(a[:r.HeadDim/2], a[r.HeadDim/2:], position, r.Theta)
		}
	}
	for i, n := range p.graph.Nodes {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("run on %s: stopped at node %d: %w", p.device, i, ctx.Err())
		}
		if err := p.node(n); err != nil {
			return fmt.Errorf("run on %s: node %d (%v%s): %w", p.device, i, n.Kind, p.weightNames(n), err)
		}
	}
	if out.WantHidden {
		out.Hidden = append(out.Hidden[:0], p.value(p.graph.Hidden)...)
	}
	return nil
}

// take checks a batch against the limits and lays it out token by token.
func (p *program) take(b batching.Batch) error {
	if p.closed {
		return errors.New("the program is closed")
	}
	if n := b.Tokens(); n > p.limits.MaxTokens {
		return fmt.Errorf("%d tokens in a step of at most %d", n, p.limits.MaxTokens)
	}
	if n := b.Logits(); n > p.limits.MaxRows {
		return fmt.Errorf("%d rows of logits in a step of at most %d", n, p.limits.MaxRows)
	}
	p.tokens, p.position, p.blocks, p.wanted = p.tokens[:0], p.position[:0], p.blocks[:0], p.wanted[:0]
	clear(p.writer)
	for i, s := range b.Spans {
		end := s.Start + len(s.Tokens)
		switch {
		case len(s.Tokens) == 0:
			return fmt.Errorf("span %d of sequence %d has no tokens", i, s.Sequence)
		case s.Start < 0 || end < s.Start || (end-1)/p.limits.BlockTokens >= len(s.Blocks):
			return fmt.Errorf("span %d of sequence %d: %d blocks of %d do not cover positions %d to %d", i, s.Sequence, len(s.Blocks), p.limits.BlockTokens, s.Start, end-1)
		}
		for _, block := range s.Blocks {
			if block < 0 || int(block) >= p.kv.count {
				return fmt.Errorf("span %d of sequence %d: block %d of %d", i, s.Sequence, block, p.kv.count)
			}
		}
		for at := s.Start / p.limits.BlockTokens; at <= (end-1)/p.limits.BlockTokens; at++ {
			if other, ok := p.writer[s.Blocks[at]]; ok {
				return fmt.Errorf("spans %d and %d both write to block %d", other, i, s.Blocks[at])
			}
			p.writer[s.Blocks[at]] = i
		}
		for j, token := range s.Tokens {
			if token < 0 || int(token) >= p.vocabulary {
				return fmt.Errorf("span %d of sequence %d: token %d is not in the vocabulary of %d", i, s.Sequence, token, p.vocabulary)
			}
			if s.Rows == batching.AllRows || s.Rows == batching.LastRow && j == len(s.Tokens)-1 {
				p.wanted = append(p.wanted, len(p.tokens))
			}
			p.tokens = append(p.tokens, token)
			p.position = append(p.position, s.Start+j)
			p.blocks = append(p.blocks, s.Blocks)
		}
	}
	return nil
}

// rows that a value has in this batch.
func (p *program) rows(v graph.Value) int {
	if p.graph.Shapes[v][0] == graph.Wanted {
		return len(p.wanted)
	}
	return len(p.tokens)
}

// value is the memory of a value [rows, width].
func (p *program) value(v graph.Value) []float32 {
	if v == p.graph.Logits {
		return p.logits
	}
	return p.slots[p.plan.Slot[v]][:p.rows(v)*p.graph.Width(v)]
}

// angle is the cosines and sines of one token under a rotation.
func (p *program) angle(rotation, token int) []float32 {
	dim := p.rotations[rotation].HeadDim
	return p.angles[rotation][token*dim : (token+1)*dim]
}

// enough is about how many multiplications are worth a goroutine's turn.
const enough = 1 << 16

// node computes one op. Pieces of an op are rows, or columns of a product, whose
// results do not depend on the cut.
func (p *program) node(n graph.Node) error {
	y, width, rows := p.value(n.Out), p.graph.Width(n.Out), p.rows(n.Out)
	if rows == 0 {
		return nil
	}
	var x []float32
	if !p.graph.IsWeight(n.In[0]) {
		x = p.value(n.In[0])
	}
	switch n.Kind {
	case graph.Embed:
		table := p.weights[n.In[0]]
		return p.pool.each(rows, enough/width, func(from, to int) {
			for t := from; t < to; t++ {
				table.Row(y[t*width:(t+1)*width], int(p.tokens[t]))
			}
		})
	case graph.RMSNorm:
		w := p.weights[n.In[1]]
		return p.pool.each(rows, enough/width, func(from, to int) {
			for t := from; t < to; t++ {
				kernels.RMSNorm(y[t*width:(t+1)*width], x[t*width:(t+1)*width], w, n.Attr.Eps)
			}
		})
	case graph.MatMul:
		w := p.weights[n.In[1]]
		return p.pool.each(width, enough/(rows*w.Cols), func(from, to int) {
			kernels.MatMul(y, x, rows, w, from, to)
		})
	case graph.Rope:
		rotation := slices.Index(p.rotations, graph.Rotation{HeadDim: n.Attr.HeadDim, Theta: n.Attr.Theta})
		return p.pool.each(rows, enough/width, func(from, to int) {
			for t := from; t < to; t++ {
				a := p.angle(rotation, t)
				kernels.Rotate(y[t*width:(t+1)*width], x[t*width:(t+1)*width], a[:len(a)/2], a[len(a)/2:], n.Attr.Neighbours)
			}
		})
	case graph.Attention:
		return p.attention(n)
	case graph.Add:
		z := p.value(n.In[1])
		return p.pool.each(len(y), enough, func(from, to int) {
			kernels.Add(y[from:to], x[from:to], z[from:to])
		})
	case graph.SwiGLU:
		up := p.value(n.In[1])
		return p.pool.each(len(y), enough/16, func(from, to int) { // an exponential is dear
			kernels.SwiGLU(y[from:to], x[from:to], up[from:to])
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
// query attend to the positions up to its own.
func (p *program) attention(n graph.Node) error {
	a := n.Attr
	q, k, v, y := p.value(n.In[0]), p.value(n.In[1]), p.value(n.In[2]), p.value(n.Out)
	layer := kernels.KV{BlockTokens: p.limits.BlockTokens, Width: p.cache.Width, Stride: p.kv.stride}
	layer.Data = p.kv.blocks[a.Layer*2*layer.BlockTokens*layer.Width:]
	most := 0
	for t, position := range p.position {
		block, slot := p.blocks[t][position/layer.BlockTokens], position%layer.BlockTokens
		copy(layer.Key(block, slot), k[t*layer.Width:])
		copy(layer.Value(block, slot), v[t*layer.Width:])
		most = max(most, position+1)
	}
	group := a.Heads / a.KVHeads
	return p.pool.each(len(p.tokens)*a.Heads, enough/(2*most*a.HeadDim), func(from, to int) {
		for i := from; i < to; i++ {
			t, h := i/a.Heads, i%a.Heads
			at := i * a.HeadDim
			kernels.Attend(y[at:at+a.HeadDim], q[at:at+a.HeadDim], layer, p.blocks[t], p.position[t]+1, h/group*a.HeadDim, a.Scale)
		}
	})
}

// weightNames of a node, for messages.
func (p *program) weightNames(n graph.Node) string {
	names := ""
	for _, v := range n.In {
		if p.graph.IsWeight(v) {
			names += " " + p.graph.Weights[v].Name
		}
	}
	return names
}

// product of sizes; negative if it is too large.
func product(sizes ...int) int {
	n := uint64(1)
	for _, s := range sizes {
		hi, lo := bits.Mul64(n, uint64(s))
		if hi != 0 || lo > 1<<45 {
			return -1
		}
		n = lo
	}
	return int(n)
}

func resize(s []float32, n int) []float32 { return slices.Grow(s[:0], n)[:n] }
