package cpu

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"

	kernels "github.com/estiba/estiba/kernels/cpu"
	"github.com/estiba/estiba/runtime/backend"
	"github.com/estiba/estiba/runtime/batching"
	"github.com/estiba/estiba/runtime/graph"
)

// base is what programs have in common: a graph, the memory of its values, and the batch
// that runs.
type base struct {
	device     string
	pool       *pool
	graph      *graph.Graph
	limits     backend.Limits
	plan       graph.Plan
	cache      graph.Cache
	rotations  []graph.Rotation
	rotationOf []int       // of graph.Nodes: which of rotations
	divisors   [][]float32 // of rotations, where they have some
	vocabulary int         // tokens are below it
	positions  int         // positions are below it
	bytes      backend.Bytes
	closed     bool

	kv        own         // blocks of [layers][2][block tokens][cache width]
	workspace memory      // slots, then angles, then what else the program asked for
	slots     [][]float32 // of plan.Slots
	angles    [][]float32 // of rotations: [MaxTokens][cosines, sines of each pair]

	// Of the batch that runs:
	team     *team
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

// claim takes the memory of the cache, in numbers of so many bytes, and of the workspace, of
// which the rest is given back: extra bytes.
func (p *base) claim(s *slab, number, extra int) (rest memory, err error) {
	l := p.limits
	if p.cache.Layers > 0 && (l.BlockTokens < 1 || l.Blocks < 0) {
		return nil, fmt.Errorf("KV cache: %d blocks of %d tokens", l.Blocks, l.BlockTokens)
	}
	if p.kv, err = claimKV(s, product(number, p.cache.Layers, 2, l.BlockTokens, p.cache.Width), l.Blocks, l.PerExtent); err != nil {
		return nil, fmt.Errorf("KV cache: %w", err)
	}
	var sizes []int // of pieces, in numbers
	for _, s := range p.plan.Slots {
		rows := l.MaxTokens
		if s.Rows == graph.Wanted {
			rows = l.MaxRows
		}
		sizes = append(sizes, product(rows, s.Width))
	}
	for _, r := range p.rotations {
		sizes = append(sizes, product(l.MaxTokens, r.Width()))
	}
	all := extra
	for _, n := range sizes {
		if n < 0 {
			return nil, errors.Join(fmt.Errorf("workspace: %+v are more than any machine has memory for", l), p.kv.free())
		}
		all += up(4 * n)
	}
	if p.workspace, err = claim(all); err != nil {
		return nil, errors.Join(fmt.Errorf("workspace: %w", err), p.kv.free())
	}
	rest = p.workspace
	for i, n := range sizes {
		floats := view[float32](rest.take(4 * n))
		if i < len(p.plan.Slots) {
			p.slots = append(p.slots, floats)
		} else {
			p.angles = append(p.angles, floats)
		}
	}
	p.writer = map[int32]int{}
	p.bytes.KV = int64(len(p.kv.memory))
	p.bytes.Workspace = int64(len(p.workspace)) + 4*int64(l.MaxRows)*int64(p.graph.Vocabulary()) // with the logits, which Out holds
	return rest, nil
}

// setDivisors of the rotations, from weights.
func (p *base) setDivisors(vector func(graph.Value) []float32) error {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	team := p.pool.enter()
	defer team.leave()
	p.divisors = make([][]float32, len(p.rotations))
	return team.each(len(p.rotations), len(p.rotations), function(func(int, int) {
		for i, r := range p.rotations {
			if r.Divisors != graph.None {
				p.divisors[i] = vector(r.Divisors)
			}
		}
	}))
}

// Bytes held.
func (p *base) Bytes() backend.Bytes { return p.bytes }

// Close gives the memory back.
func (p *base) Close() error {
	p.closed = true
	p.slots, p.angles = nil, nil
	return errors.Join(p.kv.free(), p.workspace.free())
}

// run computes a batch by nodes. A batch that breaks a limit changes nothing; one that
// ends with a fault or a cancelled context leaves its spans' positions undefined.
func (p *base) run(b batching.Batch, out *backend.Out, nodes func() error) error {
	if err := p.take(b); err != nil {
		return fmt.Errorf("run on %s: %w", p.device, err)
	}
	out.Logits = resize(out.Logits, len(p.wanted)*p.graph.Vocabulary())
	p.logits = out.Logits
	p.team = p.pool.enter()
	defer p.team.leave()
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	for i := range p.rotations {
		if err := p.turn(i); err != nil {
			return fmt.Errorf("run on %s: rotations: %w", p.device, err)
		}
	}
	if err := nodes(); err != nil {
		return fmt.Errorf("run on %s: %w", p.device, err)
	}
	if out.WantHidden {
		out.Hidden = append(out.Hidden[:0], p.value(p.graph.Hidden)...)
	}
	return nil
}

// stopped says at which node a step ends because of its context.
func stopped(ctx context.Context, node int) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("stopped at node %d: %w", node, err)
	}
	return nil
}

// take checks a batch against the limits and lays it out token by token.
func (p *base) take(b batching.Batch) error {
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
func (p *base) rows(v graph.Value) int {
	if p.graph.Shapes[v][0] == graph.Wanted {
		return len(p.wanted)
	}
	return len(p.tokens)
}

// value is the memory of a value [rows, width].
func (p *base) value(v graph.Value) []float32 {
	slot := p.plan.Slot[v]
	if slot < 0 {
		return p.logits
	}
	return p.slots[slot][:p.rows(v)*p.graph.Width(v)]
}

// turn computes the angles of a rotation at the position of each token.
func (p *base) turn(rotation int) error {
	r := p.rotations[rotation]
	frequencies := r.Frequencies
	if d := p.divisors[rotation]; d != nil {
		frequencies = make([]float32, len(d))
		for i, f := range r.Frequencies {
			frequencies[i] = f / d[i]
		}
	}
	return p.team.each(len(p.tokens), enough/16/r.Width(), function(func(from, to int) {
		for t := from; t < to; t++ {
			cos, sin := p.angle(rotation, t)
			kernels.Angles(cos, sin, p.position[t], frequencies, r.Amplitude)
		}
	}))
}

// angle is the cosines and sines of one token under a rotation.
func (p *base) angle(rotation, token int) (cos, sin []float32) {
	width := p.rotations[rotation].Width()
	a := p.angles[rotation][token*width : (token+1)*width]
	return a[:width/2], a[width/2:]
}

// enough is about how many multiplications are worth a goroutine's turn.
const enough = 1 << 16

// weightNames of a node, for messages.
func (p *base) weightNames(n graph.Node) string {
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

func resize[T any](s []T, n int) []T { return slices.Grow(s[:0], n)[:n] }
