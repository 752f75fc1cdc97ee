// Package cpu runs graphs on the processor: the weights stay where they are
// mapped, keys and values are float32. It is the judge of the other backends, so
// all its arithmetic is exact in the sense of Limits.Exact. Start with Compile.
package cpu

import (
	"context"
	"fmt"
	"math"
	"runtime"
	"slices"

	kernels "github.com/estiba/estiba/kernels/cpu"
	"github.com/estiba/estiba/runtime/backend"
	"github.com/estiba/estiba/runtime/graph"
	"github.com/estiba/estiba/runtime/tensor"
)

// Options of a backend.
type Options struct {
	Threads int // goroutines that compute; 0 means GOMAXPROCS
	// Extents of Extent bytes are the slab for the KV blocks of programs that have none
	// of their own. Extent is a power of two.
	Extents int
	Extent  int64
}

// Backend is the processor. It implements backend.Backend.
type Backend struct {
	name string
	pool *pool
	slab slab
}

// New gives the processor under a device name such as "cpu-0".
func New(name string, o Options) *Backend {
	if o.Threads < 1 {
		o.Threads = runtime.GOMAXPROCS(0)
	}
	return &Backend{name: name, pool: newPool(o.Threads), slab: slab{extents: o.Extents, extent: o.Extent}}
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

// Compile makes a program of a graph. It reads no weights, only where they are;
// the memory it claims is touched when it is used.
func (b *Backend) Compile(ctx context.Context, g *graph.Graph, weights backend.Weights, limits backend.Limits) (backend.Program, error) {
	fail := func(err error) (backend.Program, error) {
		return nil, fmt.Errorf("compile for %s: %w", b.name, err)
	}
	if err := g.Check(); err != nil {
		return fail(err)
	}
	if g.Encoder() {
		limits.BlockTokens, limits.Blocks = 1, 0 // nothing is cached
	}
	if limits.MaxTokens < 1 || limits.MaxRows < 1 {
		return fail(fmt.Errorf("limits %+v: tokens and rows must be at least 1", limits))
	}
	p := &program{
		device: b.name, pool: b.pool, graph: g, limits: limits, plan: g.Plan(), cache: g.Cache(),
		rotations: g.Rotations(), rotationOf: g.RotationOf(), positions: math.MaxInt,
	}
	for _, w := range g.Weights {
		if err := ctx.Err(); err != nil {
			return fail(err)
		}
		m, err := matrix(w, weights)
		if err != nil {
			return fail(err)
		}
		p.weights = append(p.weights, m)
		p.bytes.Weights += int64(len(m.Data))
	}
	for i, n := range g.Nodes {
		formats := []tensor.DType{tensor.F32} // of the activations
		for _, v := range n.In {
			if g.IsWeight(v) {
				formats = append(formats, p.weights[v].DType)
			}
		}
		for _, d := range formats {
			if !b.Supports(n.Kind, d) {
				return fail(fmt.Errorf("node %d: no %v on %v weights", i, n.Kind, d))
			}
		}
		switch n.Kind {
		case graph.Embed:
			p.vocabulary = p.weights[n.In[0]].Rows
		case graph.Positions:
			p.positions = min(p.positions, p.weights[n.In[0]].Rows)
		}
	}
	if err := p.claim(&b.slab); err != nil {
		return fail(err)
	}
	return p, nil
}

// Discard gives the memory behind extents of the slab back to the system.
func (b *Backend) Discard(extents []int32) { b.slab.discard(extents) }

// matrix is a weight as the kernels take it; a vector is a matrix of one row.
func matrix(w graph.Weight, weights backend.Weights) (kernels.Matrix, error) {
	t, err := weights(w.Name)
	if err != nil {
		return kernels.Matrix{}, err
	}
	if !t.Shape.Equal(w.Shape) {
		return kernels.Matrix{}, fmt.Errorf("weight %q has shape %v, want %v", w.Name, t.Shape, w.Shape)
	}
	n, ok := t.Shape.Elements()
	if size := t.DType.Bytes(n); !ok || size == 0 || int64(len(t.Data)) != size {
		return kernels.Matrix{}, fmt.Errorf("weight %q: %d bytes of %v for shape %v", w.Name, len(t.Data), t.DType, t.Shape)
	}
	if row := w.Shape[len(w.Shape)-1]; row%t.DType.Block() != 0 {
		return kernels.Matrix{}, fmt.Errorf("weight %q: rows of %d elements are no whole blocks of %v, which have %d", w.Name, row, t.DType, t.DType.Block())
	}
	m := kernels.Matrix{DType: t.DType, Rows: 1, Cols: w.Shape[len(w.Shape)-1], Data: t.Data}
	if len(w.Shape) == 2 {
		m.Rows = w.Shape[0]
	}
	return m, nil
}

// Close ends the goroutines. Programs must have been closed.
func (b *Backend) Close() error {
	b.pool.close()
	return b.slab.close()
}
