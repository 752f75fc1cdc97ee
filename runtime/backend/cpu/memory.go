package cpu

import (
	"errors"
	"fmt"
	"math/bits"
	"os"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// memory is float32 zeros outside the collector's heap: pages are taken when they are first
// touched and given back at once by free, as an account of memory needs it.
type memory struct {
	floats []float32
	bytes  []byte
}

// claim gives the product of sizes as floats.
func claim(sizes ...int) (memory, error) {
	n := uint64(4)
	for _, s := range sizes {
		hi, lo := bits.Mul64(n, uint64(s))
		if hi != 0 || lo > 1<<47 {
			return memory{}, fmt.Errorf("%v numbers are more than any machine has", sizes)
		}
		n = lo
	}
	if n == 0 {
		return memory{}, nil
	}
	b, err := unix.Mmap(-1, 0, int(n), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return memory{}, fmt.Errorf("claim %d bytes: %w", n, err)
	}
	claimed.Add(int64(len(b)))
	return memory{unsafe.Slice((*float32)(unsafe.Pointer(unsafe.SliceData(b))), n/4), b}, nil
}

func (m *memory) free() error {
	if m.bytes == nil {
		return nil
	}
	claimed.Add(-int64(len(m.bytes)))
	err := unix.Munmap(m.bytes)
	*m = memory{}
	return err
}

// claimed are the bytes of all memory that has not been freed.
var claimed atomic.Int64

// Held is what the process holds, as it is and not as it was reckoned: bytes that the
// programs of all backends have claimed for themselves, and of this one's slab those
// whose pages are there.
func (b *Backend) Held() (programs, slab int64) {
	b.slab.mu.Lock()
	defer b.slab.mu.Unlock()
	page := os.Getpagesize()
	there := make([]byte, (len(b.slab.all)+page-1)/page)
	if len(there) > 0 && mincore(b.slab.all, there) == nil {
		for _, p := range there {
			slab += int64(p&1) * int64(page)
		}
	}
	return claimed.Load(), slab
}

// mincore says of each page whether it is there.
func mincore(memory, there []byte) error {
	_, _, e := unix.Syscall(unix.SYS_MINCORE, uintptr(unsafe.Pointer(&memory[0])), uintptr(len(memory)), uintptr(unsafe.Pointer(&there[0])))
	if e != 0 {
		return e
	}
	return nil
}

// slab is the memory of the device's KV extents: one mapping, reserved when the first
// program needs it. Its pages are taken as they are first touched, so that what it
// takes is what has been written since the last discard.
type slab struct {
	extents int
	extent  int64 // bytes, a power of two

	mu     sync.Mutex
	all    []byte
	floats []float32 // starts at a multiple of extent
}

// claim gives the whole slab.
func (s *slab) claim() ([]float32, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.floats != nil {
		return s.floats, nil
	}
	hi, size := bits.Mul64(uint64(s.extents), uint64(s.extent))
	if s.extents < 1 || s.extent < 4 || s.extent&(s.extent-1) != 0 || hi != 0 || size > 1<<47 {
		return nil, fmt.Errorf("a slab of %d extents of %d bytes cannot be", s.extents, s.extent)
	}
	all, err := unix.Mmap(-1, 0, int(size)+int(s.extent), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE|unix.MAP_NORESERVE)
	if err != nil {
		return nil, fmt.Errorf("reserve %d bytes: %w", size, err)
	}
	if s.extent < 2<<20 { // a huge page would take neighbours that nobody has
		_ = unix.Madvise(all, unix.MADV_NOHUGEPAGE) // EINVAL where the system knows none
	}
	from := -uintptr(unsafe.Pointer(unsafe.SliceData(all))) & uintptr(s.extent-1)
	s.all, s.floats = all, unsafe.Slice((*float32)(unsafe.Pointer(&all[from])), size/4)
	return s.floats, nil
}

func (s *slab) discard(extents []int32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.floats == nil {
		return
	}
	from := -uintptr(unsafe.Pointer(unsafe.SliceData(s.all))) & uintptr(s.extent-1)
	bytes := s.all[from:]
	for _, e := range extents {
		_ = unix.Madvise(bytes[int64(e)*s.extent:][:s.extent], unix.MADV_DONTNEED) // fails only for what is not mapped
	}
}

func (s *slab) close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.all == nil {
		return nil
	}
	err := unix.Munmap(s.all)
	s.all, s.floats = nil, nil
	return err
}

// own is the memory of a program's own KV blocks, or its part of the slab: blocks begin
// every stride numbers.
type own struct {
	memory // nothing, where they lie in the slab
	blocks []float32
	stride int // numbers
	count  int // blocks
}

// claimKV finds room for KV blocks of so many numbers.
func claimKV(s *slab, numbers, blocks, perExtent int) (own, error) {
	switch {
	case numbers == 0: // nothing is kept of a position
		return own{count: blocks}, nil
	case numbers < 0:
		return own{}, errors.New("the blocks are larger than any machine's memory")
	case blocks > 0:
		m, err := claim(blocks, numbers)
		return own{memory: m, blocks: m.floats, stride: numbers, count: blocks}, err
	case perExtent < 1 || perExtent&(perExtent-1) != 0:
		return own{}, fmt.Errorf("%d blocks of its own and %d in an extent: one must be at least 1, the latter a power of two", blocks, perExtent)
	case int64(numbers) > s.extent/4/int64(perExtent):
		return own{}, fmt.Errorf("%d blocks of %d bytes do not fit an extent of %d", perExtent, 4*numbers, s.extent)
	}
	floats, err := s.claim()
	return own{blocks: floats, stride: int(s.extent/4) / perExtent, count: s.extents * perExtent}, err
}
