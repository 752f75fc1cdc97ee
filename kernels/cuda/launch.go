// Package cuda has the kernels of the CUDA backend: in each .cu file what runs on the device, and beside
// it in Go how it is launched, each op a function that gives a Launch. Nothing here needs a driver.
//
// gpu.cuh has the words that kernels are written with. hack/cuda/kernels.sh compiles all of them into the
// images that this package embeds; hack/cuda/emulator.sh compiles the same sources for the host, where
// tests run them.
package cuda

import (
	"bytes"
	"compress/gzip"
	_ "embed"
	"fmt"
	"io"
	"unsafe"
)

// Address of device memory. Buffers begin at multiples of 256.
type Address uint64

// Launch is a kernel with all that it needs to run.
type Launch struct {
	Kernel          string
	Grid            [3]uint32      // blocks
	Threads, Shared uint32         // threads of a block; bytes of its dynamic shared memory
	Params          unsafe.Pointer // a Go struct with the fields of the kernel's
	Size            uintptr        // of what Params points to
}

// launch of a kernel whose parameters are p: Address, int32, uint32, int64 and float32, padded as in C.
func launch[P any](kernel string, grid [3]uint32, threads, shared uint32, p *P) Launch {
	return Launch{Kernel: kernel, Grid: grid, Threads: threads, Shared: shared, Params: unsafe.Pointer(p), Size: unsafe.Sizeof(*p)}
}

var (
	//go:embed estiba_sm80.cubin.gz
	sm80 []byte
	//go:embed estiba_sm90.cubin.gz
	sm90 []byte
	//go:embed estiba_compute80.ptx.gz
	compute80 []byte
)

// Module is the image of all kernels for a device of a compute capability: machine code for 8.x and for
// 9.0, otherwise PTX, which the driver compiles when it loads the image.
func Module(major, minor int) ([]byte, error) {
	switch {
	case major < 8:
		return nil, fmt.Errorf("the device has compute capability %d.%d; kernels need 8.0 (Ampere) or newer", major, minor)
	case major == 8:
		return unpack("compute capability 8.x", sm80)
	case major == 9 && minor == 0:
		return unpack("compute capability 9.0", sm90)
	}
	return PTX()
}

// PTX is the image for any device.
func PTX() ([]byte, error) {
	image, err := unpack("any device", compute80)
	return append(image, 0), err // the driver wants a C string
}

// IsMachineCode says whether an image is none that a driver compiles.
func IsMachineCode(image []byte) bool { return bytes.HasPrefix(image, []byte("\x7fELF")) }

func unpack(device string, packed []byte) ([]byte, error) {
	r, err := gzip.NewReader(bytes.NewReader(packed))
	if err != nil {
		return nil, fmt.Errorf("unpack the image of kernels for %s: %w", device, err)
	}
	image, err := io.ReadAll(r)
	if err != nil {
		return nil, fmt.Errorf("unpack the image of kernels for %s: %w", device, err)
	}
	return image, nil
}

// blocks is how many blocks of size it takes to cover n.
func blocks(n, size int) uint32 { return uint32((n + size - 1) / size) }
