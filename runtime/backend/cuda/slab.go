//go:build cuda && cgo

package cuda

import (
	"cmp"
	"errors"
	"fmt"
	"iter"
	"sync"

	kernels "github.com/estiba/estiba/kernels/cuda"
	"github.com/estiba/estiba/runtime/backend/cuda/driver"
)

// errFull says that all extents are taken.
var errFull = errors.New("the device's memory is taken")

// largeLump is how many extents a large lump has: 64 MiB. Whatever its size, a lump takes an H100's driver 25 µs to map
// and 17 µs to unmap: an extent each, an 8B would be 200 ms in coming and 140 ms in going.
const largeLump = 32

// lump is memory that is mapped and unmapped as a whole: an extent, or largeLump of them.
type lump struct {
	handle  driver.Handle
	extents int
}

// slab is the memory of a device: lumps, which are mapped to addresses as they are needed. Of large ones and small ones
// there are as many as are asked for: where one kind is lacking, it is made of the other, which is the driver's work
// (0.5 ms). At all times spare + the extents of regions + KV extents that are held, and the scrap, = most.
type slab struct {
	context *driver.Context
	extent  int64
	extents int // for models: also how many KV extents there may be
	most    int // extents in all

	mu           sync.Mutex
	spare        int             // extents that nobody has, or is about to take
	made         int             // extents that the driver has given
	large, small []driver.Handle // free ones
	kv           kernels.Address // of KV extent 0; 0: reserved when the first program needs it
	behind       []backing       // of each KV extent, and of the scrap
	held         int             // KV extents that something of use may be in, without the scrap
	idle         int             // KV extents that are mapped, and nothing of use is in
	look         int             // where the next of those may be
}

// backing is what is behind a KV extent.
type backing struct {
	handle driver.Handle // 0: nothing
	idle   bool          // nothing of use is in it: it is unmapped once somebody needs it
}

// newSlab is memory of so many extents for models, and spare ones for what the backend itself needs. Unless it is
// lazy, it is claimed now.
func newSlab(c *driver.Context, extent int64, extents, spare int, lazy bool) (*slab, error) {
	grain, err := c.Granularity()
	switch {
	case err != nil:
		return nil, err
	case extent <= 0 || extent%grain != 0 || extents < 1:
		return nil, fmt.Errorf("a slab of %d extents of %d bytes cannot be: the device maps %d bytes at a time", extents, extent, grain)
	}
	s := &slab{context: c, extent: extent, extents: extents, most: extents + spare, spare: extents + spare}
	if lazy {
		return s, nil
	}
	err = s.make(&s.large, largeLump, s.most/largeLump)
	if err == nil {
		err = s.make(&s.small, 1, s.most%largeLump)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("claim %d bytes of the device's memory: %w", int64(s.most)*extent, err), s.close())
	}
	return s, nil
}

// make n lumps of so many extents. s.mu is held, or s is nobody else's.
func (s *slab) make(free *[]driver.Handle, extents, n int) error {
	handles, err := s.context.NewHandles(int64(extents)*s.extent, n)
	*free = append(*free, handles...)
	s.made += extents * len(handles)
	return err
}

// unmake the last n lumps of so many extents. s.mu is held.
func (s *slab) unmake(free *[]driver.Handle, extents, n int) error {
	rest := len(*free) - n
	err := s.context.Release((*free)[rest:]...)
	*free = (*free)[:rest]
	s.made -= extents * n
	return err
}

// take so many extents, in as few lumps as there can be: large ones come first.
func (s *slab) take(extents int) (taken []lump, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if extents > s.spare {
		return nil, fmt.Errorf("%w: %d extents of %d bytes are needed, %d are free", errFull, extents, s.extent, s.spare)
	}
	s.spare -= extents
	for extents > 0 {
		p, err := s.lump(extents)
		if err != nil {
			s.spare += extents
			s.put(taken)
			return nil, err
		}
		taken, extents = append(taken, p), extents-p.extents
		if extents > 0 { // a step may wait for an extent, and lumps may have to be made
			s.mu.Unlock()
			s.mu.Lock()
		}
	}
	return taken, nil
}

// lump is one of at most so many extents. s.mu is held.
func (s *slab) lump(most int) (lump, error) {
	if most >= largeLump && s.haveLarge() {
		return lump{pop(&s.large), largeLump}, nil
	}
	if len(s.small) == 0 && s.idle > 0 {
		if err := s.unmapIdle(); err != nil {
			return lump{}, err
		}
	}
	if len(s.small) == 0 && s.made < s.most {
		if err := s.make(&s.small, 1, 1); err != nil && len(s.large) == 0 {
			return lump{}, err
		}
	}
	if len(s.small) == 0 {
		if err := s.unmake(&s.large, largeLump, 1); err != nil {
			return lump{}, err
		}
		if err := s.make(&s.small, 1, largeLump); err != nil && len(s.small) == 0 {
			return lump{}, err
		}
	}
	return lump{pop(&s.small), 1}, nil
}

// haveLarge sees to a large lump, if there can be one. s.mu is held.
func (s *slab) haveLarge() bool {
	switch {
	case len(s.large) > 0:
		return true
	case s.most-s.made >= largeLump && s.make(&s.large, largeLump, 1) == nil:
		return true
	case len(s.small)+s.idle < largeLump:
		return false
	}
	for len(s.small) < largeLump {
		if s.unmapIdle() != nil {
			return false
		}
	}
	switch {
	case s.unmake(&s.small, 1, largeLump) != nil:
		return false
	case s.make(&s.large, largeLump, 1) == nil:
		return true
	}
	_ = s.make(&s.small, 1, largeLump) // what is lacking then is made once it is needed
	return false
}

func pop(free *[]driver.Handle) driver.Handle {
	last := len(*free) - 1
	h := (*free)[last]
	*free = (*free)[:last]
	return h
}

// put lumps back. s.mu is held.
func (s *slab) put(lumps []lump) {
	for _, p := range lumps {
		if p.extents == largeLump {
			s.large = append(s.large, p.handle)
		} else {
			s.small = append(s.small, p.handle)
		}
		s.spare += p.extents
	}
}

// give lumps back.
func (s *slab) give(lumps []lump) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.put(lumps)
}

// region is lumps that lie one after the other.
type region struct {
	at      kernels.Address
	size    int64 // of its addresses; mapped from the start on, as far as there are lumps
	lumps   []lump
	extents int // of the lumps
}

// room is a region of at least so many bytes, all of them mapped.
func (s *slab) room(bytes int64) (region, error) { return s.growing(bytes, bytes) }

// growing is a region that may grow to most bytes, of which so many are mapped.
func (s *slab) growing(bytes, most int64) (r region, err error) {
	if bytes <= 0 {
		return region{}, nil
	}
	r.size = (most + s.extent - 1) / s.extent * s.extent
	if r.at, err = s.context.Reserve(r.size); err != nil {
		return region{}, err
	}
	if err := s.grow(&r, bytes); err != nil {
		return region{}, errors.Join(err, s.release(&r))
	}
	return r, nil
}

// grow maps a region up to so many bytes.
func (s *slab) grow(r *region, bytes int64) error {
	n := int((bytes+s.extent-1)/s.extent) - r.extents
	if n <= 0 {
		return nil
	}
	if bytes > r.size {
		return fmt.Errorf("%d bytes are more than the %d that were foreseen", bytes, r.size)
	}
	lumps, err := s.take(n)
	if err != nil {
		return err
	}
	// Without the lock: a step may need an extent meanwhile.
	for from, to := range runs(lumps) {
		var handles []driver.Handle
		for _, p := range lumps[from:to] {
			handles = append(handles, p.handle)
		}
		if err := s.context.Map(s.place(r.at, r.extents), int64(lumps[from].extents)*s.extent, handles...); err != nil {
			s.give(lumps[from:])
			return err
		}
		r.lumps = append(r.lumps, lumps[from:to]...)
		r.extents += len(handles) * lumps[from].extents
	}
	return nil
}

// runs are where lumps of one size begin, and where they end.
func runs(lumps []lump) iter.Seq2[int, int] {
	return func(yield func(int, int) bool) {
		for from := 0; from < len(lumps); {
			to := from + 1
			for to < len(lumps) && lumps[to].extents == lumps[from].extents {
				to++
			}
			if !yield(from, to) {
				return
			}
			from = to
		}
	}
}

// release gives a region back. Nothing may use it any more.
func (s *slab) release(r *region) error {
	if r.at == 0 {
		return nil
	}
	var err error
	extent := 0
	for from, to := range runs(r.lumps) {
		if err = s.context.Unmap(s.place(r.at, extent), int64(r.lumps[from].extents)*s.extent, to-from); err != nil {
			break // lumps that are still mapped are nobody's any more
		}
		s.give(r.lumps[from:to])
		extent += (to - from) * r.lumps[from].extents
	}
	if err == nil {
		err = s.context.Unreserve(r.at, r.size)
	}
	*r = region{}
	return err
}

// reserve the addresses of all KV extents, and of one more, the scrap, that is always there: what is written to it
// nobody reads.
func (s *slab) reserve() (kernels.Address, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.kv != 0 {
		return s.kv, nil
	}
	at, err := s.context.Reserve(int64(s.extents+1) * s.extent)
	if err != nil {
		return 0, err
	}
	scrap, err := s.mapped(s.place(at, s.extents))
	if err != nil {
		return 0, errors.Join(err, s.context.Unreserve(at, int64(s.extents+1)*s.extent))
	}
	s.kv, s.behind = at, make([]backing, s.extents+1)
	s.behind[s.extents].handle = scrap
	return at, nil
}

func (s *slab) place(at kernels.Address, extent int) kernels.Address {
	return at + kernels.Address(int64(extent)*s.extent)
}

// back makes sure that there is memory behind a KV extent; fresh says that it has just come.
func (s *slab) back(extent int32) (fresh bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := &s.behind[extent]
	switch {
	case b.handle != 0 && !b.idle:
		return false, nil
	case s.spare == 0: // what is idle is promised to somebody then, this one's too
		return false, s.full()
	case b.idle:
		b.idle = false
		s.idle--
		s.spare--
	default:
		if b.handle, err = s.mapped(s.place(s.kv, int(extent))); err != nil {
			return false, err
		}
	}
	s.held++
	return true, nil
}

func (s *slab) full() error {
	return fmt.Errorf("%w: not an extent of %d bytes is free", errFull, s.extent)
}

// mapped is an extent of memory, at an address. s.mu is held.
func (s *slab) mapped(at kernels.Address) (driver.Handle, error) {
	if s.spare == 0 {
		return 0, s.full()
	}
	p, err := s.lump(1)
	if err != nil {
		return 0, err
	}
	if err := s.context.Map(at, s.extent, p.handle); err != nil {
		s.small = append(s.small, p.handle)
		return 0, err
	}
	s.spare--
	return p.handle, nil
}

// discard says that KV extents hold nothing of use: the memory behind them is for whoever needs it, who unmaps it then:
// unmapping that of a large cache takes as long as many steps.
func (s *slab) discard(extents []int32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.kv == 0 {
		return
	}
	for _, e := range extents {
		if b := &s.behind[e]; b.handle != 0 && !b.idle {
			b.idle = true
			s.idle++
			s.held--
			s.spare++
		}
	}
}

// unmapIdle makes a small lump free of what is behind an idle KV extent. s.mu is held.
func (s *slab) unmapIdle() error {
	for !s.behind[s.look].idle {
		s.look = (s.look + 1) % len(s.behind)
	}
	b := &s.behind[s.look]
	if err := s.context.Unmap(s.place(s.kv, s.look), s.extent, 1); err != nil {
		return err
	}
	s.small = append(s.small, b.handle)
	*b = backing{}
	s.idle--
	return nil
}

// counts are extents that are free, or would be made, and KV extents that something of use may be in.
func (s *slab) counts() (free, kv int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.spare, s.held
}

// close gives everything back to the device. Regions must have been released. Of a device that has failed all of it
// fails: the first error says why.
func (s *slab) close() (err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.kv != 0 {
		for e, b := range s.behind {
			if b.handle != 0 {
				err = cmp.Or(err, s.context.Unmap(s.place(s.kv, e), s.extent, 1))
				s.small = append(s.small, b.handle)
			}
		}
		err = cmp.Or(err, s.context.Unreserve(s.kv, int64(s.extents+1)*s.extent))
		s.kv, s.behind, s.idle = 0, nil, 0
	}
	err = cmp.Or(err, s.context.Release(s.large...), s.context.Release(s.small...))
	s.large, s.small, s.made, s.spare = nil, nil, 0, 0
	return err
}
