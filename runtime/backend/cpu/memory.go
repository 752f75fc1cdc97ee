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

// memory is zeros outside the collector's heap: pages are taken when they are first
// touched and given back at once by free, as an account of memory needs it. It begins at a page.
type memory []byte

// claim gives the product of sizes as bytes.
func claim(sizes ...int) (memory, error) {
	n := product(sizes...)
	switch {
	case n < 0:
		return nil, fmt.Errorf("%v bytes are more than any machine has", sizes)
	case n == 0:
		return nil, nil
	}
	m, err := mapAnonymous(n)
	if err == nil {
		claimed.Add(int64(n))
	}
	return m, err
}

// hugePage is what the system takes at once where it is asked to: fewer faults, and fewer
// entries to look up.
const hugePage = 2 << 20

// claimHuge is claim of n bytes, in huge pages if there are several.
func claimHuge(n int) (memory, error) {
	if n < 8*hugePage {
		return claim(n)
	}
	all, err := mapAnonymous(n + hugePage)
	if err != nil {
		return nil, err
	}
	claimed.Add(int64(n))
	from := int(-address(all) & (hugePage - 1))
	to := (from + n + os.Getpagesize() - 1) &^ (os.Getpagesize() - 1)
	m := all[from : from+n : from+n]
	_ = unix.Madvise(m, unix.MADV_HUGEPAGE) // EINVAL where the system knows none
	return m, errors.Join(unmap(all[:from]), unmap(all[to:]))
}

func mapAnonymous(n int) (memory, error) {
	p, err := unix.MmapPtr(-1, 0, nil, uintptr(n), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE|unix.MAP_NORESERVE)
	if err != nil {
		return nil, fmt.Errorf("claim %d bytes: %w", n, err)
	}
	return unsafe.Slice((*byte)(p), n), nil
}

// unmap whole pages.
func unmap(m memory) error {
	if len(m) == 0 {
		return nil
	}
	return unix.MunmapPtr(unsafe.Pointer(unsafe.SliceData(m)), uintptr(len(m)))
}

func (m *memory) free() error {
	claimed.Add(-int64(len(*m)))
	err := unmap(*m)
	*m = nil
	return err
}

// take cuts n bytes off, and what is between them and the next multiple of 64.
func (m *memory) take(n int) []byte {
	part := (*m)[:n:n]
	*m = (*m)[min(up(n), len(*m)):]
	return part
}

// up is the next multiple of 64: of the bytes in a line of the cache, and in a vector.
func up(n int) int { return (n + 63) &^ 63 }

// aligned is b from its first address on that is a multiple of 64.
func aligned(b []byte) []byte {
	return b[-uintptr(unsafe.Pointer(unsafe.SliceData(b)))&63:]
}

// view is memory as numbers.
func view[T float32 | uint16](b []byte) []T {
	var t T
	return unsafe.Slice((*T)(unsafe.Pointer(unsafe.SliceData(b))), len(b)/int(unsafe.Sizeof(t)))
}

// bytesOf numbers.
func bytesOf(x []float32) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(x))), 4*len(x))
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

	mu   sync.Mutex
	all  []byte
	used []byte // of it: starts at a multiple of extent
}

// claim gives the whole slab.
func (s *slab) claim() ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.used != nil {
		return s.used, nil
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
	s.all, s.used = all, all[from:][:size]
	return s.used, nil
}

func (s *slab) discard(extents []int32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.used == nil {
		return
	}
	for _, e := range extents {
		_ = unix.Madvise(s.used[int64(e)*s.extent:][:s.extent], unix.MADV_DONTNEED) // fails only for what is not mapped
	}
}

func (s *slab) close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.all == nil {
		return nil
	}
	err := unix.Munmap(s.all)
	s.all, s.used = nil, nil
	return err
}

// own is the memory of a program's own KV blocks, or its part of the slab: blocks begin
// every stride bytes.
type own struct {
	memory // nothing, where they lie in the slab
	blocks []byte
	stride int
	count  int // blocks
}

// claimKV finds room for KV blocks of so many bytes.
func claimKV(s *slab, bytes, blocks, perExtent int) (own, error) {
	switch {
	case bytes == 0: // nothing is kept of a position
		return own{count: blocks}, nil
	case bytes < 0:
		return own{}, errors.New("the blocks are larger than any machine's memory")
	case blocks > 0:
		m, err := claim(blocks, bytes)
		return own{memory: m, blocks: m, stride: bytes, count: blocks}, err
	case perExtent < 1 || perExtent&(perExtent-1) != 0:
		return own{}, fmt.Errorf("%d blocks of its own and %d in an extent: one must be at least 1, the latter a power of two", blocks, perExtent)
	case int64(bytes) > s.extent/int64(perExtent):
		return own{}, fmt.Errorf("%d blocks of %d bytes do not fit an extent of %d", perExtent, bytes, s.extent)
	}
	all, err := s.claim()
	return own{blocks: all, stride: int(s.extent) / perExtent, count: s.extents * perExtent}, err
}

// product of sizes; negative if it is too large.
func product(sizes ...int) int {
	n := uint64(1)
	for _, s := range sizes {
		hi, lo := bits.Mul64(n, uint64(s))
		if hi != 0 || lo > 1<<47 {
			return -1
		}
		n = lo
	}
	return int(n)
}
