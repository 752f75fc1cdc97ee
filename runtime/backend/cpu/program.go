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

// program is a replica that computes as fast as its path can, on weights of its own layout, with
// halves as keys and values. It implements backend.Program.
//
// Its nodes are computed in phases: products of one value together, on the value in the form
// that their kernels take; and what works row by row, from the result of one product to
// the operand of the next, a row at a time, while the row is in a core's cache.
type program struct {
	base
	path     kernels.Path
	weights  []weight // of graph.Weights
	arena    memory   // what weights are in, unless they are mapped
	prepared []byte   // the rows that products read, unless they read float32
	phases   []phase

	// Of the batch that runs:
	tiles   []tile // of prompts
	singles []int  // tokens that attend each alone
}

// phase is some nodes of the graph that are computed together.
type phase struct {
	node int // the first of them, for messages
	run  func() error
}

// compile makes a program of a graph in the order of graph.Fast, whose weights have been checked. All
// memory is claimed before any is used.
func (b *Backend) compile(ctx context.Context, shared base, sources []*source) (*program, error) {
	p := &program{base: shared, path: b.path}
	l := p.limits
	err := p.place(sources)
	if err == nil {
		room := 0
		p.phases, room = p.plans()
		p.prepared, err = p.claim(&b.slab, 2, max(room, int(p.graph.PreparedBytes(l.MaxTokens, l.MaxRows))))
		p.bytes.Workspace += p.graph.ScheduleBytes()
	}
	if err == nil {
		err = p.load(ctx, sources, l.Progress)
	}
	if err == nil {
		err = p.setDivisors(p.vector)
	}
	if err != nil {
		return nil, errors.Join(err, p.Close())
	}
	return p, nil
}

// Run computes a batch.
func (p *program) Run(ctx context.Context, b batching.Batch, out *backend.Out) error {
	return p.run(b, out, func() error {
		for _, f := range p.phases {
			if err := stopped(ctx, f.node); err != nil {
				return err
			}
			if err := f.run(); err != nil {
				n := p.graph.Nodes[f.node]
				return fmt.Errorf("node %d (%v%s): %w", f.node, n.Kind, p.weightNames(n), err)
			}
		}
		return nil
	})
}

// Close gives the memory back.
func (p *program) Close() error {
	p.phases, p.weights, p.prepared = nil, nil, nil
	return errors.Join(p.base.Close(), p.arena.free())
}

// vector is the numbers of a weight that is read whole.
func (p *program) vector(v graph.Value) []float32 { return p.weights[v].vector }

// plans makes the phases of all nodes, and says how many bytes of prepared rows they need.
func (p *program) plans() (phases []phase, room int) {
	var open *chain       // the last phase, while more can be computed with it
	var held *preparation // what is prepared
	nodes := p.graph.Nodes
	for i := 0; i < len(nodes); i++ {
		n := &nodes[i]
		join := func() *chain { // the chain that computes node i
			if open == nil || !open.fits(n) {
				c := p.newChain(n)
				phases, open = append(phases, phase{i, c.run}), c
			}
			return open
		}
		prepare := func(dtypes func(q *preparation)) *preparation {
			x := n.In[0]
			cols := p.graph.Width(n.In[len(n.In)-1])
			if held == nil || held.x != x || held.cols != cols {
				held = &preparation{p: p, x: x, cols: cols}
				if open == nil || !open.makes(x) {
					open = p.newChain(n)
					open.of, open.flat = x, false
					phases = append(phases, phase{i, open.run})
				}
				open.prepare(held)
			}
			dtypes(held)
			room = max(room, held.room())
			return held
		}
		switch n.Kind {
		case graph.MatMul:
			first, f := i, &products{p: p}
			f.from = prepare(func(q *preparation) {
				for ; i < len(nodes) && nodes[i].Kind == graph.MatMul && nodes[i].In[0] == n.In[0]; i++ {
					w := &p.weights[nodes[i].In[1]]
					q.add(w)
					f.items = append(f.items, item{w, nodes[i].Out})
				}
			})
			i--
			phases, open = append(phases, phase{first, f.run}), nil
		case graph.ExpertMatMul:
			first, f := i, &expertProducts{p: p, route: n.In[1], topK: n.Attr.TopK, width: p.graph.Width(n.Out) / n.Attr.TopK}
			f.from = prepare(func(q *preparation) {
				for ; i < len(nodes); i++ {
					m := nodes[i]
					if m.Kind != graph.ExpertMatMul || m.In[0] != n.In[0] || m.In[1] != n.In[1] || p.graph.Width(m.Out) != f.width*f.topK || m.Attr.TopK != f.topK {
						break
					}
					e := expertItem{out: m.Out}
					for _, v := range m.In[2:] {
						q.add(&p.weights[v])
						e.weights = append(e.weights, &p.weights[v])
					}
					f.items = append(f.items, e)
				}
			})
			i--
			phases, open = append(phases, phase{first, f.run}), nil
		case graph.Attention:
			if !n.Attr.Bidirectional {
				join().add(n, func(t int) { p.store(n, t) }, nil, 2*p.cache.Width)
			}
			f := &attention{p: p, node: n}
			phases, open = append(phases, phase{i, f.run}), nil
		case graph.Rows:
			phases, open = append(phases, phase{i, func() error { p.gather(n); return nil }}), nil
		default:
			p.addRow(join(), i, n)
		}
	}
	return phases, room
}

// gather copies the rows that are wanted.
func (p *program) gather(n *graph.Node) {
	x, y, width := p.value(n.In[0]), p.value(n.Out), p.graph.Width(n.Out)
	for i, t := range p.wanted {
		copy(y[i*width:(i+1)*width], x[t*width:(t+1)*width])
	}
}

// chain is ops that compute a row of each of their values from rows of the same number, done row by row.
type chain struct {
	p       *program
	of      graph.Value // one of them: it has as many rows
	rows    []func(t int)
	numbers []func(from, to int) // the same ops, where each works number by number
	flat    bool                 // all of them do, on values of one width
	cost    int                  // of a row, in simple steps
	made    []graph.Value
	widths  map[int]int // of what has been in a slot: rows of two widths would overlap
	after   *preparation
}

func (p *program) newChain(n *graph.Node) *chain {
	return &chain{p: p, of: n.Out, flat: true, widths: map[int]int{}}
}

// fits says whether a node can be computed with the chain.
func (c *chain) fits(n *graph.Node) bool {
	g, plan := c.p.graph, c.p.plan
	if c.after != nil || g.Shapes[n.Out][0] != g.Shapes[c.of][0] {
		return false
	}
	for _, v := range append([]graph.Value{n.Out}, n.In...) {
		if g.IsWeight(v) {
			continue
		}
		if w, ok := c.widths[plan.Slot[v]]; ok && w != g.Width(v) {
			return false
		}
	}
	return true
}

// makes says whether the chain computes a value.
func (c *chain) makes(x graph.Value) bool {
	for _, v := range c.made {
		if v == x {
			return c.after == nil
		}
	}
	return false
}

// add an op, of so many steps for a row; numbers is nil unless it works number by number.
func (c *chain) add(n *graph.Node, row func(t int), numbers func(from, to int), cost int) {
	g, plan := c.p.graph, c.p.plan
	for _, v := range append([]graph.Value{n.Out}, n.In...) {
		if !g.IsWeight(v) {
			c.widths[plan.Slot[v]] = g.Width(v)
		}
	}
	if numbers == nil || g.Width(n.Out) != g.Width(c.of) {
		c.flat = false
	}
	c.rows, c.numbers = append(c.rows, row), append(c.numbers, numbers)
	c.made = append(c.made, n.Out)
	c.cost += cost
}

// prepare the rows of one of its values as soon as they are computed.
func (c *chain) prepare(q *preparation) {
	c.after, c.flat = q, false
	c.cost += 2 * c.p.graph.Width(q.x)
}

// stretch is about how many simple steps of a vectorized loop are worth a hand's turn: some 10 µs.
const stretch = 1 << 15

func (c *chain) run() error {
	p := c.p
	rows := p.rows(c.of)
	if c.after != nil {
		c.after.choose(rows)
		if len(c.rows) == 0 && !c.after.any() {
			return nil
		}
	}
	if c.flat {
		width := p.graph.Width(c.of)
		return p.team.each(rows*width, max(stretch*width/c.cost, 1), c)
	}
	return p.team.each(rows, stretch/c.cost, c)
}

func (c *chain) do(_ *hand, from, to int) {
	if c.flat {
		for _, numbers := range c.numbers {
			numbers(from, to)
		}
		return
	}
	for t := from; t < to; t++ {
		for _, row := range c.rows {
			row(t)
		}
		if c.after != nil {
			c.after.prepare(t)
		}
	}
}

// addRow adds an op that works row by row.
func (p *program) addRow(c *chain, i int, n *graph.Node) {
	a, width, path := &n.Attr, p.graph.Width(n.Out), p.path
	row := func(v graph.Value, t int) []float32 {
		w := p.graph.Width(v)
		return p.value(v)[t*w : (t+1)*w : (t+1)*w]
	}
	y := func(t int) []float32 { return row(n.Out, t) }
	x := func(operand, t int) []float32 { return row(n.In[operand], t) }
	numbers := func(steps int, do func(y []float32, in func(operand int) []float32)) {
		part := func(from, to int) {
			do(p.value(n.Out)[from:to], func(operand int) []float32 { return p.value(n.In[operand])[from:to] })
		}
		c.add(n, func(t int) { part(t*width, (t+1)*width) }, part, steps*width)
	}
	rows := func(steps int, do func(t int)) { c.add(n, do, nil, steps*width) }
	const exponential = 4 // steps

	switch n.Kind {
	case graph.Embed:
		w := &p.weights[n.In[0]]
		rows(8, func(t int) { w.row(y(t), int(p.tokens[t])) })
	case graph.Positions:
		w := &p.weights[n.In[0]]
		rows(8, func(t int) { w.row(y(t), p.position[t]) })
	case graph.RMSNorm:
		w, part := p.vector(n.In[1]), width/max(a.Heads, 1)
		rows(2, func(t int) {
			y, x := y(t), x(0, t)
			for at := 0; at < width; at += part {
				path.RMSNorm(y[at:at+part], x[at:at+part], w, a.Eps, a.Shift)
			}
		})
	case graph.LayerNorm:
		w, bias := p.vector(n.In[1]), p.vector(n.In[2])
		rows(3, func(t int) { path.LayerNorm(y(t), x(0, t), w, bias, a.Eps) })
	case graph.Bias:
		w := p.vector(n.In[1])[a.Row*width : (a.Row+1)*width]
		rows(1, func(t int) { path.Bias(y(t), x(0, t), w) })
	case graph.Rope:
		rotation := p.rotationOf[i]
		rows(2, func(t int) {
			cos, sin := p.angle(rotation, t)
			path.Rotate(y(t), x(0, t), cos, sin, a.HeadDim, a.Neighbours)
		})
	case graph.Add:
		numbers(1, func(y []float32, in func(int) []float32) { path.Add(y, in(0), in(1)) })
	case graph.SwiGLU:
		numbers(exponential, func(y []float32, in func(int) []float32) { path.SwiGLU(y, in(0), in(1)) })
	case graph.GeGLU:
		numbers(exponential, func(y []float32, in func(int) []float32) { path.GeGLU(y, in(0), in(1), a.Tanh) })
	case graph.GELU:
		numbers(exponential, func(y []float32, in func(int) []float32) { path.GELU(y, in(0), a.Tanh) })
	case graph.Scale:
		numbers(1, func(y []float32, in func(int) []float32) { path.Scale(y, in(0), a.Scale) })
	case graph.SoftCap:
		numbers(exponential, func(y []float32, in func(int) []float32) { path.SoftCap(y, in(0), a.SoftCap) })
	case graph.Route:
		c.add(n, func(t int) { kernels.Route(y(t), x(0, t), a.TopK, a.Normalize) }, nil, p.graph.Width(n.In[0])*a.TopK)
	case graph.ExpertSum:
		rows(a.TopK, func(t int) { path.ExpertSum(y(t), x(0, t), x(1, t)[a.TopK:]) })
	default:
		c.add(n, func(int) { panic(fmt.Sprintf("cpu: no kernel for %v", n.Kind)) }, nil, 1)
	}
}
