//go:build cuda && cgo

package cuda

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"unsafe"

	processor "github.com/estiba/estiba/kernels/cpu"
	kernels "github.com/estiba/estiba/kernels/cuda"
	"github.com/estiba/estiba/runtime/backend"
	"github.com/estiba/estiba/runtime/backend/cuda/driver"
	"github.com/estiba/estiba/runtime/batching"
	"github.com/estiba/estiba/runtime/graph"
	"github.com/estiba/estiba/runtime/tensor"
)

// mostStepTokens is what any kernel's grid has room for.
const mostStepTokens = 1<<16 - 1

// program is a replica on a device. It implements backend.Program.
type program struct {
	b          *Backend
	graph      *graph.Graph // in the order of graph.Fast
	groups     []group      // of its nodes
	bounds     bounds
	plan       graph.Plan
	cache      graph.Cache
	rotations  []graph.Rotation
	rotationOf []int
	bytes      backend.Bytes
	closed     bool

	weights   []weight // of graph.Weights
	memory    region   // which they are in
	workspace region
	slots     []kernels.Address // of plan.Slots
	angles    []kernels.Address // of rotations: [MaxTokens, pairs] cosines, then as many sines
	turns     []kernels.Address // of rotations: their frequencies
	logits    kernels.Address   // [MaxRows, vocabulary]
	prepared  kernels.Address   // room for what products read in forms of their own, and for parts of attention
	// ownScratch says that this is enough for that; else it is the backend's scratch that they work in.
	ownScratch bool
	need       int64 // bytes of it that products and attention take; a value's bytes are behind them

	kv     kernels.Address // of KV block 0
	own    region          // where the blocks are, unless they are the slab's
	stride int64           // bytes from block to block
	scrap  []int32         // the block that padding writes to

	places places
	batch  layout
	step   []int32 // its numbers
	graphs map[graphKey]*driver.Graph
}

// graphKey is what a captured step depends on.
type graphKey struct {
	spans  int // of one token each, all of whose logits are computed
	stride int // of tables
}

// weight is one of the graph's on the device.
type weight struct {
	at         kernels.Address
	dtype      tensor.DType // of the checkpoint; a vector is F32
	rows, cols int
}

// source is a weight in a checkpoint.
type source struct {
	name   string
	stored graph.Stored
	from   processor.Matrix
	pages  bool
}

// up is the next multiple of 256, at which buffers begin.
func up(n int64) int64 { return (n + 255) &^ 255 }

// place claims the memory of a program.
func (p *program) place(sources []source) (err error) {
	l := p.bounds.Limits
	p.bytes.Workspace = p.graph.WorkspaceBytes(l.MaxTokens, l.MaxRows)
	p.bytes.KV = max(product(2, 2, p.cache.Layers, max(l.BlockTokens, 0), p.cache.Width, max(l.Blocks, 0)), 0)
	var sizes []int64
	for _, s := range sources {
		n := heldBytes(s.stored)
		if n < 0 {
			if err := kernels.CheckWeights(s.from.DType, s.from.Rows, s.from.Cols); err != nil {
				return fmt.Errorf("weight %q: %w", s.name, err)
			}
			return fmt.Errorf("weight %q: %d rows of %d are more than a device has", s.name, s.from.Rows, s.from.Cols)
		}
		sizes = append(sizes, n)
		p.bytes.Weights += n
	}
	if p.memory, err = p.b.slab.room(p.bytes.Weights); err != nil {
		return fmt.Errorf("weights of %d bytes: %w", p.bytes.Weights, err)
	}
	at := p.memory.at
	for i, s := range sources {
		w := weight{at, s.from.DType, s.from.Rows, s.from.Cols}
		if s.stored.Use == graph.Vector {
			w.dtype = tensor.F32
		}
		p.weights = append(p.weights, w)
		at += kernels.Address(sizes[i])
	}
	if err := p.placeExperts(); err != nil {
		return err
	}
	if err := p.placeCache(); err != nil {
		return fmt.Errorf("KV cache: %w", err)
	}
	if err := p.placeWorkspace(); err != nil {
		return fmt.Errorf("workspace: %w", err)
	}
	return nil
}

// placeCache finds room for KV blocks of [layers][keys, values][block tokens][width] halves.
func (p *program) placeCache() (err error) {
	l := p.bounds.Limits
	if p.cache.Layers == 0 {
		p.bounds.blocks, p.scrap = max(l.Blocks, 1), []int32{0}
		if l.Blocks == 0 && !p.bounds.encoder {
			p.bounds.blocks = p.b.slab.extents * max(l.PerExtent, 1)
		}
		return nil
	}
	if l.BlockTokens < 1 || l.Blocks < 0 {
		return fmt.Errorf("%d blocks of %d tokens", l.Blocks, l.BlockTokens)
	}
	bytes := product(2, 2, p.cache.Layers, l.BlockTokens, p.cache.Width)
	all := product(int(bytes), l.Blocks+1)
	switch {
	case bytes < 0 || all < 0:
		return errors.New("the blocks are larger than any device")
	case l.Blocks > 0:
		p.stride = up(bytes) // the scrap is one more
		if p.own, err = p.b.slab.room(p.stride * int64(l.Blocks+1)); err != nil {
			return fmt.Errorf("%d blocks of %d bytes: %w", l.Blocks, bytes, err)
		}
		p.kv, p.bounds.blocks = p.own.at, l.Blocks
	case l.PerExtent < 1 || l.PerExtent&(l.PerExtent-1) != 0:
		return fmt.Errorf("%d blocks of its own and %d in an extent: one must be at least 1, the latter a power of two", l.Blocks, l.PerExtent)
	case bytes > Extent/int64(l.PerExtent):
		return fmt.Errorf("%d blocks of %d bytes do not fit an extent of %d", l.PerExtent, bytes, Extent)
	default:
		p.stride, p.bounds.blocks = Extent/int64(l.PerExtent), p.b.slab.extents*l.PerExtent
		if p.kv, err = p.b.slab.reserve(); err != nil {
			return err
		}
	}
	p.scrap = []int32{int32(p.bounds.blocks)}
	return nil
}

// placeWorkspace cuts the workspace. What products read in forms of their own has what
// graph.WorkspaceBytes leaves.
func (p *program) placeWorkspace() (err error) {
	l := p.bounds.Limits
	var sizes []int64
	for _, s := range p.plan.Slots {
		rows := l.MaxTokens
		if s.Rows == graph.Wanted {
			rows = l.MaxRows
		}
		sizes = append(sizes, product(4, rows, s.Width))
	}
	for _, r := range p.rotations {
		sizes = append(sizes, product(4, l.MaxTokens, r.Width()))
	}
	for _, r := range p.rotations {
		sizes = append(sizes, int64(4*len(r.Frequencies)))
	}
	sizes = append(sizes, product(4, l.MaxRows, p.graph.Vocabulary()))
	all := int64(0)
	for _, n := range sizes {
		if n < 0 || all > 1<<47 {
			return fmt.Errorf("%+v are more than any device has memory for", l)
		}
		all += up(n)
	}
	room := max(p.bytes.Workspace-all, 0) // more than the estimate is little, and lies within its last extent
	if p.workspace, err = p.b.slab.room(all + room); err != nil {
		return fmt.Errorf("%d bytes: %w", all+room, err)
	}
	at := p.workspace.at
	next := func() kernels.Address {
		here := at
		at += kernels.Address(up(sizes[0]))
		sizes = sizes[1:]
		return here
	}
	for range p.plan.Slots {
		p.slots = append(p.slots, next())
	}
	for range p.rotations {
		p.angles = append(p.angles, next())
	}
	for range p.rotations {
		p.turns = append(p.turns, next())
	}
	p.logits = next()
	p.prepared = at
	p.places = placesOf(l)
	p.groups = fuse(p.graph)
	p.need = p.scratchBytes()
	if all := up(p.need) + p.bytesRoom(); all > room {
		return p.b.reach(all)
	}
	p.ownScratch = true
	return nil
}

// placeExperts checks that the experts of a product lie one after the other.
func (p *program) placeExperts() error {
	for i, n := range p.graph.Nodes {
		switch {
		case n.Kind == graph.Route && p.graph.Width(n.In[0]) > mostExperts:
			return fmt.Errorf("node %d: %d experts; a device chooses among %d at most", i, p.graph.Width(n.In[0]), mostExperts)
		case n.Kind != graph.ExpertMatMul:
			continue
		}
		first := p.weights[n.In[2]]
		each := kernels.Address(kernels.PackedBytes(first.dtype, first.rows, first.cols))
		for e, v := range n.In[2:] {
			if w := p.weights[v]; w.dtype != first.dtype || w.at != first.at+kernels.Address(e)*each {
				return fmt.Errorf("node %d: weights %q and %q must be of one format, and follow one another", i, p.graph.Weights[n.In[2]].Name, p.graph.Weights[v].Name)
			}
		}
	}
	return nil
}

// mostExperts that kernels choose among, and find rows for.
const mostExperts = 1 << 10

// heldBytes is what a device holds of a weight; negative: it cannot.
func heldBytes(s graph.Stored) int64 {
	if s.Use != graph.Vector {
		if kernels.CheckWeights(s.DType, s.Rows, s.Cols) != nil {
			return -1
		}
		return kernels.PackedBytes(s.DType, s.Rows, s.Cols)
	}
	n := product(4, s.Rows, s.Cols)
	if n < 0 {
		return n
	}
	return up(n)
}

// WeightsBytes is what a program holds: matrices and tables in the layout of kernels/cuda, vectors as float32.
func (b *Backend) WeightsBytes(all []graph.Stored) int64 {
	sum := int64(0)
	for _, s := range all {
		n := heldBytes(s)
		if n < 0 { // Compile says why
			n = s.DType.Bytes(int64(s.Rows) * int64(s.Cols))
		}
		sum += n * int64(s.Count)
	}
	return sum
}

// StepTokens is how many tokens a step has at most. On an H100 prompts of an 8B were computed at 13,800 tokens/s in chunks of
// 256, at 21,000 in chunks of 1024 and no faster in larger ones; those of a 1B at 65,000, 111,000, and 132,000 in chunks of
// 2048, which each resident would need 100 MiB more workspace for. (That was before products of many rows were made twice as
// fast.) How long others may wait for a step, batching.StepTime says.
func (b *Backend) StepTokens() int { return 1024 }

// pieces of all weights, and of what rotations are computed from.
func (p *program) pieces(sources []source) ([]piece, error) {
	var all []piece
	most := p.b.loader.piece
	for i, s := range sources {
		w, m := p.weights[i], s.from
		row := len(m.Data) / m.Rows
		each := row // of a row where it is on its way
		if s.stored.Use == graph.Vector {
			each = 4 * m.Cols
		}
		if each > most {
			return nil, fmt.Errorf("weight %q: a row of %d bytes does not pass at once; at most %d do", s.name, each, most)
		}
		for first := 0; first < m.Rows; first += most / each {
			n := min(most/each, m.Rows-first)
			next := piece{data: m.Data[first*row : (first+n)*row], pages: s.pages}
			switch {
			case s.stored.Use == graph.Vector:
				next.to = w.at + kernels.Address(first*each)
				next.convert = func(dst []byte) int {
					to := unsafe.Slice((*float32)(unsafe.Pointer(unsafe.SliceData(dst))), n*m.Cols)
					for r := range n {
						m.Row(to[r*m.Cols:(r+1)*m.Cols], first+r)
					}
					return n * each
				}
			case kernels.AsStored(w.dtype, w.cols):
				next.to = w.at + kernels.Address(first*row)
			default:
				next.pack = func(from kernels.Address) kernels.Launch {
					return kernels.Pack(p.matrix(graph.Value(i)), from, first, n)
				}
			}
			all = append(all, next)
		}
	}
	slices.SortStableFunc(all, func(a, b piece) int { return cmp.Compare(address(a.data), address(b.data)) }) // as files are read the fastest
	for i, r := range p.rotations {
		all = append(all, piece{to: p.turns[i], convert: func(dst []byte) int {
			return copy(dst, unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(r.Frequencies))), 4*len(r.Frequencies)))
		}})
	}
	return all, nil
}

// product of sizes; negative if it is too large.
func product(sizes ...int) int64 {
	n := int64(1)
	for _, s := range sizes {
		if s < 0 || s > 0 && n > 1<<47/int64(s) {
			return -1
		}
		n *= int64(s)
	}
	return n
}

// Bytes held.
func (p *program) Bytes() backend.Bytes { return p.bytes }

// Close gives the memory back, in one call each for weights and workspace. Steps of others go on meanwhile.
func (p *program) Close() error {
	p.b.step.Lock() // after its last step
	closed, graphs := p.closed, p.graphs
	p.closed, p.graphs = true, nil
	p.b.step.Unlock()
	if closed {
		return nil
	}
	var err error
	for _, g := range graphs {
		err = cmp.Or(err, g.Close())
	}
	return cmp.Or(err, p.b.slab.release(&p.memory), p.b.slab.release(&p.workspace), p.b.slab.release(&p.own))
}

// Run computes a batch. A batch that breaks a limit changes nothing; one that ends with an error of the
// device leaves its spans' positions undefined.
func (p *program) Run(ctx context.Context, b batching.Batch, out *backend.Out) error {
	p.b.step.Lock()
	defer p.b.step.Unlock()
	if err := p.run(ctx, b, out); err != nil {
		_ = p.b.stream.Synchronize() // what was queued before it may still run, and the program may go now
		return fmt.Errorf("run on %s: %w", p.b.name, p.b.fault(err))
	}
	return nil
}

func (p *program) run(ctx context.Context, b batching.Batch, out *backend.Out) error {
	if p.closed {
		return errors.New("the program is closed")
	}
	l := &p.batch
	if err := l.take(b, p.bounds); err != nil {
		return err
	}
	out.Logits = resize(out.Logits, len(l.wanted)*p.graph.Vocabulary())
	if out.WantHidden {
		out.Hidden = resize(out.Hidden, len(l.wanted)*p.graph.Width(p.graph.Hidden))
	}
	if len(l.tokens) == 0 {
		return nil
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := p.back(); err != nil {
		return err
	}
	rows := slices.Clone(l.wanted) // of the logits on the device, which the caller wants
	most := min(p.bounds.MaxTokens, p.bounds.MaxRows)
	replay := l.singles == len(l.tokens) && !p.bounds.encoder && len(l.tokens) <= most
	if replay {
		n := bucket(len(l.tokens), most)
		l.pad(n, p.scrap)
		l.wanted = l.wanted[:0]
		for i := range n {
			l.wanted = append(l.wanted, int32(i))
		}
	} else {
		for i := range rows {
			rows[i] = int32(i)
		}
	}
	stride := stride(l.longest)
	send, err := p.send(stride)
	if err != nil {
		return err
	}
	if replay {
		if err := p.replay(graphKey{len(l.tokens), stride}, send); err != nil {
			return err
		}
	} else if err := p.b.launch(p.b.stream, append([]kernels.Launch{send}, p.launches(shape{len(l.tokens), len(l.first), len(l.wanted), l.singles, stride})...)...); err != nil {
		return err
	}
	if p.draws(out, rows) {
		out.Logits = out.Logits[:0]
		return p.draw(out)
	}
	if err := p.fetch(out.Logits, p.logits, p.graph.Vocabulary(), rows); err != nil {
		return err
	}
	if out.WantHidden {
		return p.fetch(out.Hidden, p.value(p.graph.Hidden), p.graph.Width(p.graph.Hidden), rows)
	}
	return nil
}

// back sees to the memory behind the extents that the batch writes to. What was another model's is zeros then.
func (p *program) back() error {
	if p.own.at != 0 || p.cache.Layers == 0 {
		return nil
	}
	for block := range p.batch.writer {
		extent := block / int32(p.bounds.PerExtent)
		fresh, err := p.b.slab.back(extent)
		if err == nil && fresh {
			err = p.b.stream.Fill(p.b.slab.place(p.kv, int(extent)), 0, Extent)
		}
		if err != nil {
			return fmt.Errorf("KV extent %d: %w", extent, err)
		}
	}
	return nil
}

// send brings the numbers of the step to the device, but for the last of them, which the launch brings: always as many, of
// a step of the same size.
func (p *program) send(stride int) (last kernels.Launch, err error) {
	b := p.b
	p.step = p.batch.numbers(p.step, p.places, stride)
	data := unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(p.step))), 4*len(p.step))
	if err := b.slab.grow(&b.numbers, int64(len(data))); err != nil {
		return last, fmt.Errorf("numbers of the step: %w", err)
	}
	for to := b.numbers.at; ; to += kernels.Address(len(b.in.bytes)) {
		n := copy(b.in.bytes, data)
		last = kernels.Copy(to, b.in.at, int64(n/4))
		if data = data[n:]; len(data) == 0 {
			return last, nil
		}
		if err := errors.Join(b.launch(b.stream, last), b.stream.Synchronize()); err != nil {
			return last, err
		}
	}
}

// fetch copies rows of numbers from the device, as many as pass at a time, and waits for them.
func (p *program) fetch(dst []float32, from kernels.Address, width int, rows []int32) error {
	b := p.b
	to := unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(dst))), 4*len(dst))
	used := 0 // of what passes, with which to begins
	flush := func() error {
		if err := b.stream.Synchronize(); err != nil {
			return err
		}
		copy(to, b.out.bytes[:used])
		to, used = to[used:], 0
		return nil
	}
	for i := 0; i < len(rows) && width > 0; {
		n := 1
		for i+n < len(rows) && rows[i+n] == rows[i]+int32(n) {
			n++
		}
		row := 4 * int64(width)
		for at, end := int64(rows[i])*row, (int64(rows[i])+int64(n))*row; at < end; {
			if used == len(b.out.bytes) {
				if err := flush(); err != nil {
					return err
				}
			}
			part := min(int(end-at), len(b.out.bytes)-used)
			if err := b.stream.CopyOut(b.out.bytes[used:used+part], from+kernels.Address(at)); err != nil {
				return err
			}
			used, at = used+part, at+int64(part)
		}
		i += n
	}
	return flush()
}

// replay runs a step whose spans have one token each as it was captured, or captures it. It begins with a launch that is
// always the same.
func (p *program) replay(k graphKey, first kernels.Launch) error {
	g := p.graphs[k]
	if g == nil {
		all, err := p.b.launches(append([]kernels.Launch{first}, p.launches(shape{k.spans, k.spans, k.spans, k.spans, k.stride})...))
		if err != nil {
			return err
		}
		if g, err = p.b.stream.Capture(func() error { return p.b.stream.LaunchAll(all) }); err != nil {
			return fmt.Errorf("capture a step of %d tokens: %w", k.spans, err)
		}
		p.graphs[k] = g
	}
	return p.b.stream.Run(g)
}

// value is where a value is.
func (p *program) value(v graph.Value) kernels.Address {
	if s := p.plan.Slot[v]; s >= 0 {
		return p.slots[s]
	}
	return p.logits
}

func resize[T any](s []T, n int) []T { return slices.Grow(s[:0], n)[:n] }
