package cpu

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"

	kernels "github.com/estiba/estiba/kernels/cpu"
	"github.com/estiba/estiba/runtime/graph"
)

// weight is one of the graph's as a program reads it.
type weight struct {
	mapped kernels.Matrix // as the checkpoint has it; without data once there is a copy
	packed kernels.Packed // what activations are multiplied by, unless that is mapped
	vector []float32
}

// row i of a table.
func (w *weight) row(dst []float32, i int) {
	if w.packed.Data != nil {
		w.packed.Row(dst, i)
		return
	}
	w.mapped.Row(dst, i)
}

// heldBytes is what a program has in memory of its own for a weight, and in a mapped file.
func heldBytes(path kernels.Path, s graph.Stored) (own, mapped int64) {
	n := int64(s.Rows) * int64(s.Cols)
	switch {
	case s.Use == graph.Vector:
		return int64(up(4 * int(min(n, math.MaxInt/8)))), 0
	case s.Use == graph.Product && path != kernels.PlainGo:
		return kernels.PackedBytes(s.DType, s.Rows, s.Cols), 0 // a multiple of 64
	}
	return 0, s.DType.Bytes(n)
}

// WeightsBytes is what a program holds: matrices packed for the path, vectors as float32, and
// tables where they are mapped.
func (b *Backend) WeightsBytes(all []graph.Stored) int64 {
	sum := int64(0)
	for _, s := range all {
		own, mapped := heldBytes(b.path, s)
		sum += (own + mapped) * int64(s.Count)
	}
	return sum
}

// StepTokens is how many tokens a step has at most.
func (b *Backend) StepTokens() int { return 256 }

// source is a weight on its way from a checkpoint.
type source struct {
	stored graph.Stored
	from   kernels.Matrix
	pages  bool // from is pages of a file
	to     weight
}

// piece is some rows of a source, as many as are read at once.
type piece struct {
	*source
	first, end int // panels, of what is packed; else rows
}

// pieceBytes is the size of a piece: its pages are mapped at once, and its copy stays in a
// core's cache while it is made.
const pieceBytes = 1 << 20

// loading is the work of reading all weights into their places.
type loading struct {
	ctx    context.Context
	path   kernels.Path
	pieces []piece

	mu       sync.Mutex
	read, of int64 // bytes
	progress func(float64)
}

// place claims the memory that weights are to be in.
func (p *program) place(sources []*source) (err error) {
	all := 0
	for _, s := range sources {
		own, mapped := heldBytes(p.path, s.stored)
		all += int(own)
		p.bytes.Weights += own + mapped
	}
	if p.arena, err = claimHuge(all); err != nil {
		return err
	}
	rest := p.arena
	p.weights = make([]weight, 0, len(sources))
	for _, s := range sources {
		own, _ := heldBytes(p.path, s.stored)
		switch to := rest.take(int(own)); {
		case own == 0:
			s.to.mapped = s.from
		case s.stored.Use == graph.Vector:
			s.to.vector = view[float32](to)[:s.from.Rows*s.from.Cols]
		default:
			s.to.packed = kernels.Packed{DType: s.from.DType, Rows: s.from.Rows, Cols: s.from.Cols, Data: to}
		}
		p.weights = append(p.weights, s.to)
	}
	return nil
}

// load reads the weights of a program: each piece of a file is mapped, copied, and left to the system again,
// so that no more than one copy is there at a time.
func (p *program) load(ctx context.Context, sources []*source, progress func(float64)) error {
	l := loading{ctx: ctx, path: p.path, progress: progress}
	inOrder := slices.Clone(sources)
	slices.SortFunc(inOrder, func(a, b *source) int { return cmp.Compare(address(a.from.Data), address(b.from.Data)) })
	for _, s := range inOrder {
		l.of += int64(len(s.from.Data))
		units, each := s.from.Rows, s.rowBytes()
		if s.to.packed.Data != nil {
			units, each = s.to.packed.Panels(), each*kernels.PanelRows
		}
		step := max(1, pieceBytes/each)
		for first := 0; first < units; first += step {
			l.pieces = append(l.pieces, piece{s, first, min(first+step, units)})
		}
	}
	team := p.pool.enter()
	defer team.leave()
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	if err := team.each(len(l.pieces), 1, &l); err != nil {
		return fmt.Errorf("read the weights: %w", err)
	}
	for _, s := range inOrder { // what pieces share; a table that loses a page reads it again
		if s.pages && s.to.mapped.Data == nil {
			leave(s.from.Data, true)
		}
	}
	return ctx.Err()
}

func (s *source) rowBytes() int { return len(s.from.Data) / s.from.Rows }

// do reads pieces.
func (l *loading) do(_ *hand, from, to int) {
	for _, p := range l.pieces[from:to] {
		if l.ctx.Err() != nil {
			return
		}
		rows := [2]int{p.first, p.end}
		if p.to.packed.Data != nil {
			rows = [2]int{p.first * kernels.PanelRows, min(p.end*kernels.PanelRows, p.from.Rows)}
		}
		data := p.from.Data[rows[0]*p.rowBytes() : rows[1]*p.rowBytes()]
		if p.pages {
			populate(data)
		}
		switch {
		case p.to.packed.Data != nil:
			l.path.Pack(p.to.packed, p.from, p.first, p.end)
		case p.to.vector != nil:
			for i := rows[0]; i < rows[1]; i++ {
				p.from.Row(p.to.vector[i*p.from.Cols:(i+1)*p.from.Cols], i)
			}
		}
		if p.pages && p.to.mapped.Data == nil {
			leave(data, false)
		}
		l.tell(int64(len(data)))
	}
}

// tell that so many bytes more were read.
func (l *loading) tell(n int64) {
	if l.progress == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.read += n
	l.progress(float64(l.read) / float64(l.of))
}

// populate maps all pages of b at once, or, where the system cannot, one by one. It is here that a file
// which has become shorter faults.
func populate(b []byte) {
	if unix.Madvise(pages(b, true), unix.MADV_POPULATE_READ) == nil {
		return
	}
	sum := b[len(b)-1]
	for i := 0; i < len(b); i += os.Getpagesize() {
		sum ^= b[i]
	}
	runtime.KeepAlive(sum) // else the reads could be left out
}

// leave the pages that b touches to the system, or those that have nothing else.
func leave(b []byte, touched bool) {
	if own := pages(b, touched); len(own) > 0 {
		_ = unix.Madvise(own, unix.MADV_DONTNEED) // else they stay until the program ends
	}
}

// pages is the whole pages that b touches, or those that have nothing else.
func pages(b []byte, touched bool) []byte {
	page, from := uintptr(os.Getpagesize()), address(b)
	to := from + uintptr(len(b))
	if touched {
		from, to = from/page*page, (to+page-1)/page*page
	} else {
		from, to = (from+page-1)/page*page, to/page*page
	}
	if to <= from {
		return nil
	}
	return unsafe.Slice((*byte)(unsafe.Add(unsafe.Pointer(unsafe.SliceData(b)), int(from)-int(address(b)))), to-from)
}

func address(b []byte) uintptr { return uintptr(unsafe.Pointer(unsafe.SliceData(b))) }
