package bench

import (
	"fmt"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	kernels "github.com/estiba/estiba/kernels/cpu"
	"github.com/estiba/estiba/runtime/residency"
)

// roof is how fast threads read memory that is in no cache, whatever they compute.
type roof struct {
	threads int
	left    int64   // bytes that may be claimed for it; 0: nobody knows of a bound
	best    float64 // bytes per second
	// other measures another memory than the processor's, in bytes per second; nil: it is that.
	other func() (float64, error)
}

const (
	// roofBytes are read: many times what caches hold.
	roofBytes = 512 << 20
	// leastRoof is read where there is little memory, and less than coldRoof may come from a cache.
	leastRoof, coldRoof = 8 << 20, 64 << 20
	// roofPasses are those of one measurement; the best one counts, as others disturb.
	roofPasses = 8
)

// size is how much is read at a time.
func (r *roof) size() int {
	size := roofBytes
	for r.left > 0 && size > leastRoof && int64(size) > r.left/4 {
		size /= 2
	}
	return size
}

// measure reads memory of its own, in huge pages, which it gives back.
func (r *roof) measure() error {
	if r.other != nil {
		rate, err := r.other()
		r.best = max(r.best, rate)
		return err
	}
	size := r.size()
	memory, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return fmt.Errorf("claim %s to find out how fast memory can be read: %w", residency.Bytes(int64(size)), err)
	}
	defer unix.Munmap(memory)
	_ = unix.Madvise(memory, unix.MADV_HUGEPAGE) // EINVAL where the system has none
	r.each(memory, func(part []byte) {
		for at := 0; at < len(part); at += 4096 {
			part[at] = 1
		}
	})
	path := kernels.Available()[0] // the best there is, whatever path computes
	for range roofPasses {
		start := time.Now()
		r.each(memory, func(part []byte) { path.Read(part) })
		r.best = max(r.best, float64(size)/time.Since(start).Seconds())
	}
	return nil
}

// each gives every thread its part of memory, in whole kilobytes.
func (r *roof) each(memory []byte, do func(part []byte)) {
	part := (len(memory)/r.threads + 1023) / 1024 * 1024
	var reading sync.WaitGroup
	for from := 0; from < len(memory); from += part {
		reading.Go(func() { do(memory[from:min(from+part, len(memory))]) })
	}
	reading.Wait()
}
