// Package cpu runs graphs on the processor. A program with Limits.Exact is the judge of all others: plain
// Go on weights where they are mapped, keys and values in float32. Any other computes with the kernels of a
// path (kernels.Best), on weights that it packs for them, keys and values in halves. Start with Compile.
package cpu

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"

	kernels "github.com/estiba/estiba/kernels/cpu"
	"github.com/estiba/estiba/runtime/backend"
	"github.com/estiba/estiba/runtime/device"
	"github.com/estiba/estiba/runtime/graph"
	"github.com/estiba/estiba/runtime/tensor"
)

// Options of a backend.
type Options struct {
	Threads int           // goroutines that compute; 0 means device.Processors
	Path    *kernels.Path // of programs without Limits.Exact; nil means kernels.Best
	// Extents of Extent bytes are the slab for the KV blocks of programs that have none
	// of their own. Extent is a power of two.
	Extents int
	Extent  int64
	// Left bounds what programs may claim, for a process without an account of its memory: one
	// that needs more is refused with a *backend.NoRoomError. Zero: no bound.
	Left device.Left
}

// Backend is the processor. It implements backend.Backend.
type Backend struct {
	name string
	path kernels.Path
	pool *pool
	slab slab
	left device.Left
}

// New gives the processor under a device name such as "cpu-0". The error is that of kernels.Best.
func New(name string, o Options) (*Backend, error) {
	b := &Backend{name: name, slab: slab{extents: o.Extents, extent: o.Extent}, left: o.Left}
	if o.Path != nil {
		b.path = *o.Path
	} else {
		var err error
		if b.path, err = kernels.Best(); err != nil {
			return nil, err
		}
	}
	if o.Threads < 1 {
		o.Threads = device.Processors(nil)
	}
	b.pool = newPool(o.Threads)
	return b, nil
}

// Name of the device.
func (b *Backend) Name() string { return b.name }

// Supports every kind of op, on weights of every format.
func (b *Backend) Supports(k graph.Kind, d tensor.DType) bool {
	if d.Block() == 0 {
		return false
	}
	return slices.Contains(graph.Kinds(), k)
}

// Compile makes a program of a graph. With Exact it reads no weights, only where they are.
func (b *Backend) Compile(ctx context.Context, g *graph.Graph, weights backend.Weights, limits backend.Limits) (backend.Program, error) {
	p, err := b.program(ctx, g, weights, limits)
	if err != nil {
		return nil, fmt.Errorf("compile for %s: %w", b.name, err)
	}
	return p, nil
}

func (b *Backend) program(ctx context.Context, g *graph.Graph, weights backend.Weights, limits backend.Limits) (backend.Program, error) {
	if err := g.Check(); err != nil {
		return nil, err
	}
	if g.Encoder() {
		limits.BlockTokens, limits.Blocks = 1, 0 // nothing is cached
	}
	if limits.MaxTokens < 1 || limits.MaxRows < 1 {
		return nil, fmt.Errorf("limits %+v: tokens and rows must be at least 1", limits)
	}
	all, err := weights.Of(ctx, g)
	if err != nil {
		return nil, err
	}
	var sources []*source
	for _, w := range all {
		sources = append(sources, &source{stored: w.Stored, from: kernels.Matrix{DType: w.DType, Rows: w.Rows, Cols: w.Cols, Data: w.Data}, pages: w.Mapped})
	}
	if !limits.Exact {
		g = g.Fast()
	}
	shared := base{
		device: b.name, pool: b.pool, graph: g, limits: limits, plan: g.Plan(), cache: g.Cache(),
		rotations: g.Rotations(), rotationOf: g.RotationOf(), positions: math.MaxInt,
	}
	for i, n := range g.Nodes {
		formats := []tensor.DType{tensor.F32} // of the activations
		for _, v := range n.In {
			if g.IsWeight(v) {
				formats = append(formats, sources[v].from.DType)
			}
		}
		if n.Kind == graph.Bias && sources[n.In[1]].stored.Use != graph.Vector && !limits.Exact {
			return nil, fmt.Errorf("node %d: weight %q is a bias and a matrix too", i, g.Weights[n.In[1]].Name)
		}
		for _, d := range formats {
			if !b.Supports(n.Kind, d) {
				return nil, fmt.Errorf("node %d: no %v on %v weights", i, n.Kind, d)
			}
		}
		switch n.Kind {
		case graph.Embed:
			shared.vocabulary = sources[n.In[0]].from.Rows
		case graph.Positions:
			shared.positions = min(shared.positions, sources[n.In[0]].from.Rows)
		}
	}
	if err := b.admit(&shared, sources); err != nil {
		return nil, err
	}
	if !limits.Exact {
		return b.compile(ctx, shared, sources)
	}
	p := &exact{base: shared}
	for _, s := range sources {
		p.weights = append(p.weights, s.from)
		p.bytes.Weights += int64(len(s.from.Data))
	}
	_, err = p.claim(&b.slab, 4, 0)
	if err == nil {
		err = p.setDivisors(func(v graph.Value) []float32 {
			x := make([]float32, p.weights[v].Cols)
			p.weights[v].Row(x, 0)
			return x
		})
	}
	if err != nil {
		return nil, errors.Join(err, p.Close())
	}
	return p, nil
}

// admit refuses a program for which there is too little memory left. Weights that stay in their files count
// for nothing: the system takes their pages back when it needs them.
func (b *Backend) admit(p *base, sources []*source) error {
	if b.left.Bytes == 0 {
		return nil
	}
	l, number := p.limits, 2
	need := backend.Bytes{Workspace: p.graph.WorkspaceBytes(l.MaxTokens, l.MaxRows)}
	if l.Exact {
		number = 4
	} else {
		for _, s := range sources {
			own, _ := heldBytes(b.path, s.stored)
			need.Weights += own
		}
	}
	need.KV = int64(product(number, p.cache.Layers, 2, l.BlockTokens, p.cache.Width, max(l.Blocks, 0)))
	if need.KV < 0 {
		return nil // more than can be counted: claimed in vain, with an error that says so
	}
	if have := max(b.left.Bytes-claimed.Load(), 0); need.Total() > have {
		return &backend.NoRoomError{Need: need, Have: have, Bound: b.left.Bound}
	}
	return nil
}

// Discard gives the memory behind extents of the slab back to the system.
func (b *Backend) Discard(extents []int32) { b.slab.discard(extents) }

// Close ends the goroutines. Programs must have been closed.
func (b *Backend) Close() error {
	b.pool.close()
	return b.slab.close()
}
