//go:build cuda && cgo

package cuda

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	kernels "github.com/estiba/estiba/kernels/cuda"
	"github.com/estiba/estiba/runtime/backend"
	"github.com/estiba/estiba/runtime/backend/cuda/driver"
)

// piece is a part of a weight that goes from the checkpoint to the device at once.
type piece struct {
	data  []byte // of the checkpoint
	pages bool   // of a file
	to    kernels.Address
	// convert writes to pinned memory what is to be on the device, and says how many bytes; nil: data as it is.
	convert func(dst []byte) int
	// pack makes what the weight is at its place of what has come to an address; nil: to is its place.
	pack func(from kernels.Address) kernels.Launch
}

// lane is where pieces pass on a device, one at a time.
type lane struct {
	staging        kernels.Address
	copied, packed *driver.Event
}

// flight is a piece on its way to the device.
type flight struct {
	*piece
	pinned []byte
	lane   *lane
}

// loader moves weights to a device: goroutines read files into pinned memory, one stream copies, another packs.
type loader struct {
	b             *Backend
	copies, packs *driver.Stream
	staging       region
	piece         int // bytes of staging of a lane
	lanes         chan *lane
	host          chan []byte
}

func (b *Backend) newLoader(host chan []byte, n, piece int) (l *loader, err error) {
	l = &loader{b: b, host: host, piece: piece, lanes: make(chan *lane, n)}
	if l.staging, err = b.slab.room(int64(n) * int64(l.piece)); err != nil {
		return nil, err
	}
	l.copies, err = b.context.NewStream()
	if err == nil {
		l.packs, err = b.context.NewStream()
	}
	for i := 0; i < n && err == nil; i++ {
		a := &lane{staging: l.staging.at + kernels.Address(i*l.piece)}
		if a.copied, err = b.context.NewMark(); err == nil {
			a.packed, err = b.context.NewMark()
		}
		l.lanes <- a
	}
	if err != nil {
		return nil, errors.Join(err, l.close())
	}
	return l, nil
}

func (l *loader) close() (err error) {
	for range len(l.lanes) {
		a := <-l.lanes
		for _, e := range []*driver.Event{a.copied, a.packed} {
			if e != nil {
				err = cmp.Or(err, e.Close())
			}
		}
	}
	for _, s := range []*driver.Stream{l.copies, l.packs} {
		if s != nil {
			err = cmp.Or(err, s.Close())
		}
	}
	return cmp.Or(err, l.b.slab.release(&l.staging))
}

// load brings all pieces to the device. When it returns, nothing of them is under way, whatever the error.
// Progress is told ascending shares, by one goroutine at a time.
func (l *loader) load(ctx context.Context, pieces []piece, progress func(float64)) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var (
		next      atomic.Int64
		reading   sync.WaitGroup
		under     = make(chan flight, cap(l.lanes))
		there, of int
	)
	for _, p := range pieces {
		of += len(p.data)
	}
	for range min(movers(), cap(l.lanes), len(pieces)) {
		reading.Go(func() {
			for ctx.Err() == nil {
				i := int(next.Add(1)) - 1
				if i >= len(pieces) {
					return
				}
				f, err := l.send(ctx, &pieces[i])
				if err != nil {
					cancel(err)
					return
				}
				under <- f
			}
		})
	}
	go func() { reading.Wait(); close(under) }()
	for f := range under { // in the order in which they arrive, or nearly
		if err := l.land(f); err != nil {
			cancel(err)
		}
		there += len(f.data)
		if progress != nil && ctx.Err() == nil {
			progress(float64(there) / float64(of))
		}
	}
	return context.Cause(ctx)
}

// send reads a piece and queues what brings it to the device. If that fails, nothing of it is under way.
func (l *loader) send(ctx context.Context, p *piece) (f flight, err error) {
	f.piece = p
	select {
	case f.pinned = <-l.host:
	case <-ctx.Done():
		return f, context.Cause(ctx)
	}
	defer func() {
		if err != nil {
			l.host <- f.pinned
		}
	}()
	n, err := p.read(f.pinned[:l.piece])
	if err != nil {
		return f, err
	}
	select {
	case f.lane = <-l.lanes:
	case <-ctx.Done():
		return f, context.Cause(ctx)
	}
	a, to := f.lane, p.to
	if p.pack != nil {
		to = a.staging
	}
	if err = l.copies.CopyIn(to, f.pinned[:n]); err == nil {
		err = l.copies.Record(a.copied)
	}
	if err == nil && p.pack != nil {
		if err = l.packs.Wait(a.copied); err == nil {
			err = l.b.launch(l.packs, p.pack(a.staging))
		}
		if err == nil {
			err = l.packs.Record(a.packed)
		}
	}
	if err != nil {
		err = errors.Join(err, l.copies.Synchronize(), l.packs.Synchronize())
		l.lanes <- a
	}
	return f, err
}

// land waits until a piece is on the device, and gives back what it came through.
func (l *loader) land(f flight) error {
	err := f.lane.copied.Synchronize()
	l.host <- f.pinned
	if f.pack != nil {
		err = errors.Join(err, f.lane.packed.Synchronize())
	}
	l.lanes <- f.lane
	return err
}

// read copies a piece of the checkpoint to pinned memory. A file that became shorter, or whose disk failed, is
// backend.ErrFault.
func (p piece) read(dst []byte) (n int, err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if broken := recover(); broken != nil {
			if _, ok := broken.(interface{ Addr() uintptr }); !ok {
				panic(broken)
			}
			err = fmt.Errorf("read the weights: %w", backend.ErrFault)
		}
	}()
	if p.pages {
		populate(p.data)
	}
	if p.convert != nil {
		n = p.convert(dst)
	} else {
		for n < len(p.data) {
			n += some(dst[n:], p.data[n:])
		}
	}
	if p.pages {
		leave(p.data)
	}
	return n, nil
}

// some bytes are copied at once. A goroutine cannot be stopped while it copies, and the garbage collector stops all: this
// is a function of its own, at whose beginning it can.
//
//go:noinline
func some(dst, src []byte) int { return copy(dst, src[:min(len(src), 256<<10)]) }

// populate maps all pages of b at once, or, where the system cannot, one by one. It is here that a file
// which has become shorter faults.
func populate(b []byte) {
	if whole := pages(b, true); unix.Madvise(whole, unix.MADV_POPULATE_READ) == nil || len(b) == 0 {
		return
	}
	sum := b[len(b)-1]
	for i := 0; i < len(b); i += os.Getpagesize() {
		sum ^= b[i]
	}
	runtime.KeepAlive(sum) // else the reads could be left out
}

// leave the pages that nothing but b touches to the system.
func leave(b []byte) {
	if own := pages(b, false); len(own) > 0 {
		_ = unix.Madvise(own, unix.MADV_DONTNEED) // else they stay until the model is closed
	}
}

// pages is the whole pages that b touches, or those that have nothing else.
func pages(b []byte, touched bool) []byte {
	page, first := uintptr(os.Getpagesize()), address(b)
	from, to := (first+page-1)/page*page, (first+uintptr(len(b)))/page*page
	if touched {
		from, to = first/page*page, (first+uintptr(len(b))+page-1)/page*page
	}
	if to <= from {
		return nil
	}
	return unsafe.Slice((*byte)(unsafe.Add(unsafe.Pointer(unsafe.SliceData(b)), int(from)-int(first))), to-from)
}

func address(b []byte) uintptr { return uintptr(unsafe.Pointer(unsafe.SliceData(b))) }
