package cpu

import (
	"fmt"
	"math/bits"
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
	return memory{unsafe.Slice((*float32)(unsafe.Pointer(unsafe.SliceData(b))), n/4), b}, nil
}

func (m *memory) free() error {
	if m.bytes == nil {
		return nil
	}
	err := unix.Munmap(m.bytes)
	*m = memory{}
	return err
}
