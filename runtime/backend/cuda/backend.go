//go:build cuda && cgo

package cuda

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"slices"
	"sync"

	processor "github.com/estiba/estiba/kernels/cpu"
	kernels "github.com/estiba/estiba/kernels/cuda"
	"github.com/estiba/estiba/runtime/backend"
	"github.com/estiba/estiba/runtime/backend/cuda/driver"
	"github.com/estiba/estiba/runtime/device"
	"github.com/estiba/estiba/runtime/graph"
	"github.com/estiba/estiba/runtime/residency"
	"github.com/estiba/estiba/runtime/tensor"
)

// overhead is what the process needs on a device beside models, of so many free bytes: lanes of loads, what steps take
// in, graphs, and what the driver takes for itself as it goes on. Where little is free, the first two are most of it.
func overhead(free int64) int64 {
	return min(384<<20, max(free/8, int64(spareOf(free))*Extent+free/16))
}

// spareOf a device with so much memory is how many extents the backend itself needs: for lanes of loads, and for steps.
func spareOf(memory int64) int {
	lanes, piece := lanesOf(memory)
	steps := stepExtents
	if memory < smallDevice {
		steps = smallStepExtents
	}
	return (lanes*piece+Extent-1)/Extent + 1 + steps
}

// Addresses for what all programs share: the numbers of a step, among them tables of 256 sequences of a million
// tokens, and the parts of attention of any step.
const (
	mostNumbers = 128 * Extent
	mostScratch = 4096 * Extent
	// mostSampling is for as many rows as draws pass at once.
	mostSampling = 16 * Extent
)

// stepExtents are kept for those from the start; on a small device a few.
const (
	stepExtents      = 24
	smallStepExtents = 4
)

// Count is how many devices the driver gives to this process; the error is an ErrNone where that is none.
func Count() (int, error) {
	infos, err := driver.Devices()
	return len(infos), none(err)
}

// Devices are the CUDA devices of this machine as a worker may claim them: what is free on each, less overhead and
// headroom, and Memory of each at most. One that fails is Lost, and keeps the others from nothing. They are opened for that, and stay so for New, since opening one takes long.
// The error is an ErrNone where there is no driver, or no device that it gives to this process.
func Devices(o device.Options) ([]device.Device, error) {
	infos, err := driver.Devices()
	if err != nil {
		return nil, none(err)
	}
	var all []device.Device
	for _, info := range infos {
		free := int64(0)
		c, err := found.open(info.Ordinal)
		if err == nil {
			free, _, err = c.Memory()
		}
		if e, ok := errors.AsType[*driver.Error](err); ok && e.Lost() {
			all = append(all, device.Device{
				Name: Name(info.Ordinal), Kind: Kind, UUID: info.UUID, Extent: Extent, Capacity: info.Memory / Extent * Extent,
				Description: info.Name + ", which does not answer", Lost: true,
			})
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("device %s (%s): %w", Name(info.Ordinal), info.Name, err)
		}
		claim, from := free-overhead(free), residency.Bytes(free)+" free"
		if o.Memory > 0 && o.Memory < claim {
			claim, from = o.Memory, residency.Bytes(o.Memory)+" as asked for"
		}
		claim -= claim / 100 * int64(o.Headroom)
		d := device.Device{
			Name: Name(info.Ordinal), Kind: Kind, UUID: info.UUID, Extent: Extent, Capacity: claim / Extent * Extent,
			Description: fmt.Sprintf("%s, %s, %d %% headroom", info.Name, from, o.Headroom),
		}
		if d.Capacity < Extent && o.Memory > 0 && o.Memory <= free-overhead(free) {
			return nil, fmt.Errorf("device %s (%s): %s, which is what models may use of it, leaves no room for one; raise --memory, or spec.device.memory of the pool", d.Name, info.Name, residency.Bytes(o.Memory))
		}
		if d.Capacity < Extent {
			return nil, fmt.Errorf("device %s (%s) has %s free, of which %s are for loads, steps and the driver: no room is left for models; end what holds the rest, or choose others with CUDA_VISIBLE_DEVICES", d.Name, info.Name, residency.Bytes(free), residency.Bytes(min(overhead(free), free)))
		}
		all = append(all, d)
	}
	return all, nil
}

// found are devices that Devices has opened and that no backend has taken yet, by number.
var found = contexts{all: map[int]*driver.Context{}}

type contexts struct {
	sync.Mutex
	all map[int]*driver.Context
}

// open a device, which stays among those that are found.
func (f *contexts) open(ordinal int) (c *driver.Context, err error) {
	f.Lock()
	defer f.Unlock()
	if c = f.all[ordinal]; c == nil {
		if c, err = driver.Open(ordinal); err == nil {
			f.all[ordinal] = c
		}
	}
	return c, err
}

// take a device, which is the caller's to close.
func (f *contexts) take(ordinal int) (*driver.Context, error) {
	c, err := f.open(ordinal)
	f.Lock()
	defer f.Unlock()
	delete(f.all, ordinal)
	return c, err
}

func none(err error) error {
	if errors.Is(err, driver.ErrNoDriver) {
		return noDriver{err}
	}
	return err
}

// noDriver is an ErrNone in the driver's words.
type noDriver struct{ error }

func (e noDriver) Unwrap() []error { return []error{ErrNone, e.error} }

// Backend is one device. It implements backend.Backend.
type Backend struct {
	name           string
	info           driver.Info
	context        *driver.Context
	module         *driver.Module
	native         bool // it is machine code, which on 9.0 has more than PTX: kernels that wait by themselves for those before them, and wide products
	slab           *slab
	loader         *loader
	pass           pass // pinned memory of the device
	in, draws, out pass // of it: what steps take in, how tokens are drawn, and what steps give out
	stream         *driver.Stream

	mu      sync.Mutex
	kernels map[string]driver.Kernel

	// One step at a time, whichever program's: numbers are what it reads, scratch is what attention works in.
	step             sync.Mutex
	numbers, scratch region
	sampling         region // draws, choices, and what they are found in
}

// New opens a device that Devices described, and claims its memory.
func New(d device.Device, o Options) (backend.Backend, error) {
	b, err := open(d, o)
	if e, ok := errors.AsType[*backend.DeviceError](err); ok {
		return nil, e // which names it
	}
	if err != nil {
		return nil, fmt.Errorf("device %s: %w", d.Name, err)
	}
	return b, nil
}

func open(d device.Device, o Options) (*Backend, error) {
	infos, err := driver.Devices()
	if err != nil {
		return nil, none(err)
	}
	n, err := ordinal(d.Name)
	if err != nil {
		return nil, err
	}
	at := slices.IndexFunc(infos, func(i driver.Info) bool {
		if d.UUID != "" {
			return i.UUID == d.UUID
		}
		return i.Ordinal == n
	})
	if at < 0 {
		return nil, fmt.Errorf("the driver has %d devices, and not this one (%s)", len(infos), d.UUID)
	}
	b := &Backend{name: d.Name, info: infos[at], kernels: map[string]driver.Kernel{}}
	image, err := kernels.Module(b.info.Major, b.info.Minor)
	if err != nil {
		return nil, err
	}
	if b.context, err = found.take(b.info.Ordinal); err != nil {
		return nil, b.fault(err)
	}
	if err := b.start(d, o, image); err != nil {
		return nil, b.fault(errors.Join(err, b.Close()))
	}
	return b, nil
}

// start takes what the backend needs.
func (b *Backend) start(d device.Device, o Options, image []byte) (err error) {
	if b.module, err = b.load(image, cmp.Or(o.Log, slog.Default())); err != nil {
		return fmt.Errorf("load the kernels: %w", err)
	}
	lanes, piece := lanesOf(d.Capacity)
	if b.slab, err = newSlab(b.context, d.Extent, int(d.Capacity/d.Extent), spareOf(d.Capacity), o.Lazy); err != nil {
		return err
	}
	if b.stream, err = b.context.NewStream(); err != nil {
		return err
	}
	if b.numbers, err = b.slab.growing(Extent, mostNumbers); err != nil {
		return err
	}
	if b.scratch, err = b.slab.growing(Extent, mostScratch); err != nil {
		return err
	}
	if b.sampling, err = b.slab.growing(Extent, mostSampling); err != nil {
		return err
	}
	var queue chan []byte
	if b.pass, queue, err = enterHost(b.context); err != nil {
		return err
	}
	b.out = b.pass
	b.in, b.draws = b.out.cut(passBytes/4), b.out.cut(drawsBytes)
	b.loader, err = b.newLoader(queue, lanes, piece)
	return err
}

// load the kernels. Where the driver does not know the machine code, it compiles them.
func (b *Backend) load(image []byte, log *slog.Logger) (*driver.Module, error) {
	m, err := b.context.Load(image)
	b.native = kernels.IsMachineCode(image)
	if e, ok := errors.AsType[*driver.Error](err); !ok || !e.Refused() || !b.native {
		return m, err
	}
	b.native = false
	log.Warn("the driver does not take the kernels' machine code, and compiles them; a newer driver would take it", "device", b.name, "error", err)
	ptx, unpacked := kernels.PTX()
	if unpacked != nil {
		return nil, errors.Join(err, unpacked)
	}
	m, compiled := b.context.Load(ptx)
	if compiled != nil {
		return nil, fmt.Errorf("%w; and as PTX: %w", err, compiled)
	}
	return m, nil
}

// Close gives the device back. Programs must have been closed. Of a device that has failed all of it fails: the first error
// says why.
func (b *Backend) Close() (err error) {
	if b.loader != nil {
		err = b.loader.close()
	}
	if b.pass.bytes != nil {
		err = cmp.Or(err, leaveHost(b.pass))
	}
	if b.stream != nil {
		err = cmp.Or(err, b.stream.Close())
	}
	if b.slab != nil {
		err = cmp.Or(err, b.slab.release(&b.numbers), b.slab.release(&b.scratch), b.slab.release(&b.sampling), b.slab.close())
	}
	if b.module != nil {
		err = cmp.Or(err, b.module.Close())
	}
	if err = cmp.Or(err, b.context.Close()); err != nil {
		return fmt.Errorf("close device %s: %w", b.name, err)
	}
	return nil
}

// Name of the device.
func (b *Backend) Name() string { return b.name }

// Model of the device, as its maker calls it.
func (b *Backend) Model() string { return b.info.Name }

// Bandwidth of the device's memory, in bytes per second: what is read and written while it copies, at best.
func (b *Backend) Bandwidth() (float64, error) {
	const pairs, rounds = 64, 8
	b.step.Lock()
	defer b.step.Unlock()
	free, _ := b.slab.counts()
	size := int64(min(free/4, pairs)) * Extent
	r, err := b.slab.room(2 * size)
	if err != nil || size == 0 {
		return 0, fmt.Errorf("measure the memory of %s, of which %d extents are free: %w", b.name, free, err)
	}
	defer b.slab.release(&r)
	var events [2]*driver.Event
	for i := range events {
		if events[i], err = b.context.NewEvent(); err != nil {
			return 0, b.fault(err)
		}
		defer events[i].Close()
	}
	best := 0.0
	for range rounds {
		err := errors.Join(b.stream.Record(events[0]), b.stream.Copy(r.at, r.at+kernels.Address(size), size), b.stream.Record(events[1]), b.stream.Synchronize())
		if err != nil {
			return 0, b.fault(err)
		}
		took, err := events[1].Since(events[0])
		if err != nil {
			return 0, b.fault(err)
		}
		best = max(best, float64(2*size)/max(took.Seconds(), 1e-9))
	}
	return best, nil
}

// Supports every kind of op, on weights of every format.
func (b *Backend) Supports(k graph.Kind, d tensor.DType) bool {
	return d.Block() != 0 && slices.Contains(graph.Kinds(), k)
}

// Held is what the device holds now, in bytes: what programs and the backend itself have, and KV extents
// with something behind them.
func (b *Backend) Held() (others, kv int64) {
	free, mapped := b.slab.counts()
	return int64(b.slab.most-free-mapped) * Extent, int64(mapped) * Extent
}

// Discard gives the memory behind KV extents to whoever needs it next.
func (b *Backend) Discard(extents []int32) {
	b.step.Lock()
	defer b.step.Unlock()
	b.slab.discard(extents)
}

// kernel by its name.
func (b *Backend) kernel(name string) (driver.Kernel, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if k, ok := b.kernels[name]; ok {
		return k, nil
	}
	k, err := b.module.Kernel(name)
	if err == nil {
		b.kernels[name] = k
	}
	return k, err
}

// launches as the driver takes them.
func (b *Backend) launches(of []kernels.Launch) ([]driver.Launch, error) {
	all := make([]driver.Launch, len(of))
	for i, l := range of {
		k, err := b.kernel(l.Kernel)
		if err != nil {
			return nil, err
		}
		all[i] = driver.Launch{Kernel: k, Grid: l.Grid, Threads: l.Threads, Shared: l.Shared, Params: l.Params, Size: l.Size, Early: b.native}
	}
	return all, nil
}

// reach sees to so many bytes of scratch.
func (b *Backend) reach(bytes int64) error {
	b.step.Lock()
	defer b.step.Unlock()
	return b.slab.grow(&b.scratch, bytes)
}

// launch kernels one after the other on a stream.
func (b *Backend) launch(s *driver.Stream, of ...kernels.Launch) error {
	all, err := b.launches(of)
	if err != nil {
		return err
	}
	return s.LaunchAll(all)
}

// fault says which errors are the device's and not the model's. Its first one says why: all that is done with it from then on,
// and be it to clean up, fails too.
func (b *Backend) fault(err error) error {
	if e, ok := errors.AsType[*driver.Error](err); ok && e.Sticky() {
		return &backend.DeviceError{Device: b.name, Lost: e.Lost(), Err: e}
	}
	return err
}

// Compile makes a program of a graph: its memory is claimed, then its weights are brought to the device.
func (b *Backend) Compile(ctx context.Context, g *graph.Graph, weights backend.Weights, limits backend.Limits) (backend.Program, error) {
	p, err := b.program(ctx, g, weights, limits)
	if err != nil {
		return nil, fmt.Errorf("compile for %s: %w", b.name, b.fault(err))
	}
	return p, nil
}

func (b *Backend) program(ctx context.Context, g *graph.Graph, weights backend.Weights, limits backend.Limits) (*program, error) {
	if err := g.Check(); err != nil {
		return nil, err
	}
	if limits.Exact {
		return nil, errors.New("exact arithmetic is the processor's: take --device cpu with --exact, or leave --exact out")
	}
	if g.Encoder() {
		limits.BlockTokens, limits.Blocks = 1, 0 // nothing is cached
	}
	if limits.MaxTokens < 1 || limits.MaxRows < 1 || limits.MaxTokens > mostStepTokens || limits.MaxRows > mostStepTokens {
		return nil, fmt.Errorf("limits %+v: tokens and rows must be 1 to %d", limits, mostStepTokens)
	}
	g = g.Fast()
	p := &program{
		b: b, graph: g, plan: g.Plan(), cache: g.Cache(), rotations: g.Rotations(), rotationOf: g.RotationOf(),
		bounds: bounds{Limits: limits, encoder: g.Encoder(), positions: math.MaxInt32}, graphs: map[graphKey]*driver.Graph{},
	}
	all, err := weights.Of(ctx, g)
	if err != nil {
		return nil, err
	}
	var sources []source
	for i, w := range all {
		if w.Rows > math.MaxInt32 || w.Cols > math.MaxInt32 {
			return nil, fmt.Errorf("weight %q of shape %v is larger than any that is computed with", g.Weights[i].Name, g.Weights[i].Shape)
		}
		from := processor.Matrix{DType: w.DType, Rows: w.Rows, Cols: w.Cols, Data: w.Data}
		sources = append(sources, source{name: g.Weights[i].Name, stored: w.Stored, from: from, pages: w.Mapped})
	}
	for i, n := range g.Nodes {
		switch n.Kind {
		case graph.Embed:
			p.bounds.vocabulary = sources[n.In[0]].from.Rows
		case graph.Positions:
			p.bounds.positions = min(p.bounds.positions, sources[n.In[0]].from.Rows)
		case graph.Attention:
			if n.Attr.HeadDim > kernels.MaxHeadDim {
				return nil, fmt.Errorf("node %d: heads of %d dimensions; a device attends with %d at most", i, n.Attr.HeadDim, kernels.MaxHeadDim)
			}
		case graph.Bias:
			if sources[n.In[1]].stored.Use != graph.Vector {
				return nil, fmt.Errorf("node %d: weight %q is a bias and a matrix too", i, g.Weights[n.In[1]].Name)
			}
		}
	}
	if err := p.place(sources); err != nil {
		if errors.Is(err, errFull) {
			free, _ := b.slab.counts()
			err = &backend.NoRoomError{Need: p.bytes, Have: int64(free) * Extent, Bound: "free on " + b.name}
		}
		return nil, errors.Join(err, p.Close())
	}
	pieces, err := p.pieces(sources)
	if err == nil {
		err = b.loader.load(ctx, pieces, limits.Progress)
	}
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return nil, errors.Join(err, p.Close())
	}
	return p, nil
}
