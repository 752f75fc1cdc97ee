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
	rotationOf []int            // of graph.Nodes: which of rotations
	weights    []kernels.Matrix // of graph.Weights
	vocabulary int              // tokens are below it
	positions  int              // positions are below it
	bytes      backend.Bytes
	closed     bool

	kv        own         // blocks of [layers][2][block tokens][cache width]
	workspace memory      // slots, then angles
	slots     [][]float32 // of plan.Slots
	angles    [][]float32 // of rotations: [MaxTokens][cosines, sines of each pair]

	// Of the batch that runs:
	tokens   []int32 // all spans' tokens, one after the other
	position []int   // of each token in its sequence
	blocks   [][]int32
	spans    []place       // of each token's span
	wanted   []int         // tokens whose logits are asked for
	writer   map[int32]int // KV block -> the span that writes to it
	logits   []float32
	experts  routing
}

// place of a span among the batch's tokens.
type place struct{ first, tokens int }

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
		floats += l.MaxTokens * r.Width()
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
		p.angles = append(p.angles, take(l.MaxTokens*r.Width()))
	}
	p.writer = map[int32]int{}
	p.bytes.KV = int64(len(p.kv.bytes))
	p.bytes.Workspace = int64(len(p.workspace.bytes)) + 4*int64(l.MaxRows)*int64(p.graph.Vocabulary()) // with the logits, which Out holds
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
	for i := range p.rotations {
		if err := p.turn(i); err != nil {
			return fmt.Errorf("run on %s: rotations: %w", p.device, err)
		}
	}
	for i, n := range p.graph.Nodes {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("run on %s: stopped at node %d: %w", p.device, i, ctx.Err())
		}
		if err := p.node(i, n); err != nil {
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
	p.tokens, p.position, p.blocks, p.spans, p.wanted = p.tokens[:0], p.position[:0], p.blocks[:0], p.spans[:0], p.wanted[:0]
	clear(p.writer)
	for i, s := range b.Spans {
		end := s.Start + len(s.Tokens)
		if p.graph.Encoder() {
			s.Blocks = nil
		}
		switch {
		case len(s.Tokens) == 0:
			return fmt.Errorf("span %d of sequence %d has no tokens", i, s.Sequence)
		case end > p.positions:
			return fmt.Errorf("span %d of sequence %d ends at position %d; the model has %d", i, s.Sequence, end, p.positions)
		case p.graph.Encoder() && s.Start != 0:
			return fmt.Errorf("span %d of sequence %d starts at position %d; an encoder takes a sequence whole", i, s.Sequence, s.Start)
		case p.graph.Encoder():
		case s.Start < 0 || end < s.Start || (end-1)/p.limits.BlockTokens >= len(s.Blocks):
			return fmt.Errorf("span %d of sequence %d: %d blocks of %d do not cover positions %d to %d", i, s.Sequence, len(s.Blocks), p.limits.BlockTokens, s.Start, end-1)
		}
		for _, block := range s.Blocks {
			if block < 0 || int(block) >= p.kv.count {
				return fmt.Errorf("span %d of sequence %d: block %d of %d", i, s.Sequence, block, p.kv.count)
			}
		}
		for at := s.Start / p.limits.BlockTokens; at < len(s.Blocks) && at <= (end-1)/p.limits.BlockTokens; at++ {
			if other, ok := p.writer[s.Blocks[at]]; ok {
				return fmt.Errorf("spans %d and %d both write to block %d", other, i, s.Blocks[at])
			}
			p.writer[s.Blocks[at]] = i
		}
		here := place{len(p.tokens), len(s.Tokens)}
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
			p.spans = append(p.spans, here)
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
	slot := p.plan.Slot[v]
	if slot < 0 {
		return p.logits
	}
	return p.slots[slot][:p.rows(v)*p.graph.Width(v)]
}

// turn computes the angles of a rotation at the position of each token.
func (p *program) turn(rotation int) error {
	r := p.rotations[rotation]
	return p.pool.each(len(p.tokens), enough/16/r.Width(), func(from, to int) {
		frequencies := r.Frequencies
		if r.Divisors != graph.None {
			frequencies = make([]float32, len(r.Frequencies))
			p.weights[r.Divisors].Row(frequencies, 0)
			for i, f := range r.Frequencies {
				frequencies[i] = f / frequencies[i]
			}
		}
		for t := from; t < to; t++ {
			cos, sin := p.angle(rotation, t)
			kernels.Angles(cos, sin, p.position[t], frequencies, r.Amplitude)
		}
	})
}

// angle is the cosines and sines of one token under a rotation.
func (p *program) angle(rotation, token int) (cos, sin []float32) {
	width := p.rotations[rotation].Width()
	a := p.angles[rotation][token*width : (token+1)*width]
	return a[:width/2], a[width/2:]
}

// enough is about how many multiplications are worth a goroutine's turn.
const enough = 1 << 16

// node computes one op. Pieces of an op are rows, or columns of a product, whose
// results do not depend on the cut.
func (p *program) node(i int, n graph.Node) error {
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
		return p.pool.each(rows, enough/(width*cost), func(from, to int) {
			for t := from; t < to; t++ {
				do(t, y[t*width:(t+1)*width], x[t*in:(t+1)*in])
			}
		})
	}
	eachNumber := func(cost int, do func(from, to int)) error { return p.pool.each(len(y), enough/cost, do) }
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
		return p.pool.each(width, enough/(rows*w.Cols), func(from, to int) { kernels.MatMul(y, x, rows, w, from, to) })
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
func (p *program) attention(n graph.Node) error {
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
		return p.pool.each(len(p.tokens)*a.Heads, enough/(2*most*a.HeadDim), func(from, to int) {
			for i := from; i < to; i++ {
				s := p.spans[i/a.Heads]
				kv := kernels.KV{Keys: k[s.first*width:], Values: v[s.first*width:], BlockTokens: s.tokens, Width: width}
				attend(i, kv, oneBlock, 0, s.tokens)
			}
		})
	}
	layer := p.layer(a.Layer)
	for t, position := range p.position {
		block, slot := p.blocks[t][position/layer.BlockTokens], position%layer.BlockTokens
		copy(layer.Key(block, slot), k[t*layer.Width:])
		copy(layer.Value(block, slot), v[t*layer.Width:])
		most = max(most, position+1)
	}
	return p.pool.each(len(p.tokens)*a.Heads, enough/(2*most*a.HeadDim), func(from, to int) {
		for i := from; i < to; i++ {
			t := i / a.Heads
			first, end := 0, p.position[t]+1
			if a.Window > 0 {
				first = max(0, end-a.Window)
			}
			attend(i, layer, p.blocks[t], first, end)
		}
	})
}

// oneBlock is the block table of a sequence whose keys and values lie together.
var oneBlock = []int32{0}

// layer is a layer of the cache.
func (p *program) layer(l int) kernels.KV {
	blockTokens, width := p.limits.BlockTokens, p.cache.Width
	return kernels.Paged(p.kv.blocks[l*2*blockTokens*width:], blockTokens, width, p.kv.stride)
}

// weightNames of a node, for messages.
func (p *program) weightNames(n graph.Node) string {
	names := ""
	for i, v := range n.In {
		if i > 3 { // experts
			return names + " …"
		}
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

func resize[T any](s []T, n int) []T { return slices.Grow(s[:0], n)[:n] }
