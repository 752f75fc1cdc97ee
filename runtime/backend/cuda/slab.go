//go:build cuda && cgo

package cuda

import (
	"errors"
	"fmt"
	"slices"
	"sync"

	kernels "github.com/estiba/estiba/kernels/cuda"
	"github.com/estiba/estiba/runtime/backend/cuda/driver"
)

// errFull says that all extents are taken.
var errFull = errors.New("the device's memory is taken")

// slab is the memory of a device: pieces of an extent each, which are mapped to addresses as they are needed. At all
// times free + those of regions + those of KV extents = made <= most.
type slab struct {
	context *driver.Context
	extent  int64
	extents int // for models: also how many KV extents there may be

	mu     sync.Mutex
	most   int
	made   int
	free   []driver.Handle
	kv     kernels.Address // of KV extent 0; 0: reserved when the first program needs it
	mapped []driver.Handle // of each KV extent; 0: nothing is there
	held   int             // KV extents that are mapped, without the scrap
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
	s := &slab{context: c, extent: extent, extents: extents, most: extents + spare}
	if lazy {
		return s, nil
	}
	if err := s.make(s.most); err != nil {
		return nil, errors.Join(fmt.Errorf("claim %d bytes of the device's memory: %w", int64(s.most)*extent, err), s.close())
	}
	return s, nil
}

// make n more pieces. s.mu is held, or s is nobody else's.
func (s *slab) make(n int) error {
	handles, err := s.context.NewHandles(s.extent, n)
	s.free = append(s.free, handles...)
	s.made += len(handles)
	return err
}

// take n pieces. s.mu is held.
func (s *slab) take(n int) ([]driver.Handle, error) {
	if lacks := n - len(s.free); lacks > 0 {
		if lacks > s.most-s.made {
			return nil, fmt.Errorf("%w: %d extents of %d bytes are needed, %d are free", errFull, n, s.extent, len(s.free)+s.most-s.made)
		}
		if err := s.make(lacks); err != nil {
			return nil, err
		}
	}
	rest := len(s.free) - n
	taken := slices.Clone(s.free[rest:])
	s.free = s.free[:rest]
	return taken, nil
}

// region is pieces that lie one after the other.
type region struct {
	at      kernels.Address
	size    int64 // of its addresses; mapped from the start on, as far as there are handles
	handles []driver.Handle
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
	n := int((bytes+s.extent-1)/s.extent) - len(r.handles)
	if n <= 0 {
		return nil
	}
	if bytes > r.size {
		return fmt.Errorf("%d bytes are more than the %d that were foreseen", bytes, r.size)
	}
	s.mu.Lock()
	handles, err := s.take(n)
	s.mu.Unlock()
	if err != nil {
		return err
	}
	// Without the lock: it takes some milliseconds, and a step may need an extent meanwhile.
	if err := s.context.Map(r.at+kernels.Address(int64(len(r.handles))*s.extent), s.extent, handles...); err != nil {
		s.give(handles)
		return err
	}
	r.handles = append(r.handles, handles...)
	return nil
}

// give pieces back.
func (s *slab) give(handles []driver.Handle) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.free = append(s.free, handles...)
}

// release gives a region back. Nothing may use it any more.
func (s *slab) release(r *region) error {
	if r.at == 0 {
		return nil
	}
	var err error
	if n := len(r.handles); n > 0 {
		if err = s.context.Unmap(r.at, s.extent, n); err == nil {
			s.give(r.handles)
		}
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
	scrap, err := s.take(1)
	if err == nil {
		if err = s.context.Map(s.place(at, s.extents), s.extent, scrap...); err != nil {
			s.free = append(s.free, scrap...)
		}
	}
	if err != nil {
		return 0, errors.Join(err, s.context.Unreserve(at, int64(s.extents+1)*s.extent))
	}
	s.kv, s.mapped = at, make([]driver.Handle, s.extents+1)
	s.mapped[s.extents] = scrap[0]
	return at, nil
}

func (s *slab) place(at kernels.Address, extent int) kernels.Address {
	return at + kernels.Address(int64(extent)*s.extent)
}

// back makes sure that there is memory behind a KV extent; fresh says that it has just come.
func (s *slab) back(extent int32) (fresh bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mapped[extent] != 0 {
		return false, nil
	}
	h, err := s.take(1)
	if err != nil {
		return false, err
	}
	if err := s.context.Map(s.place(s.kv, int(extent)), s.extent, h...); err != nil {
		s.free = append(s.free, h...)
		return false, err
	}
	s.mapped[extent] = h[0]
	s.held++
	return true, nil
}

// discard takes the memory behind KV extents away; neighbours go in one call.
func (s *slab) discard(extents []int32) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.kv == 0 {
		return nil
	}
	there := slices.DeleteFunc(slices.Clone(extents), func(e int32) bool { return s.mapped[e] == 0 })
	slices.Sort(there)
	for from := 0; from < len(there); {
		to := from + 1
		for to < len(there) && there[to] == there[to-1]+1 {
			to++
		}
		if err := s.context.Unmap(s.place(s.kv, int(there[from])), s.extent, to-from); err != nil {
			return err
		}
		for _, e := range there[from:to] {
			s.free = append(s.free, s.mapped[e])
			s.mapped[e] = 0
			s.held--
		}
		from = to
	}
	return nil
}

// counts are extents that are free, or would be made, and KV extents that are mapped.
func (s *slab) counts() (free, kv int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.free) + s.most - s.made, s.held
}

// close gives everything back to the device. Regions must have been released.
func (s *slab) close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	if s.kv != 0 {
		for e, h := range s.mapped {
			if h != 0 {
				errs = append(errs, s.context.Unmap(s.place(s.kv, e), s.extent, 1))
				s.free = append(s.free, h)
			}
		}
		errs = append(errs, s.context.Unreserve(s.kv, int64(s.extents+1)*s.extent))
		s.kv, s.mapped = 0, nil
	}
	errs = append(errs, s.context.Release(s.free...))
	s.free, s.made, s.most = nil, 0, 0
	return errors.Join(errs...)
}
