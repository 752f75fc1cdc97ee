//go:build cuda && cgo

// Package kerneltest runs each kernel on a device, real or emulated, and compares what comes out with plain Go.
package kerneltest

import (
	"errors"
	"sync"
	"testing"
	"unsafe"

	"github.com/estiba/estiba/kernels/cuda"
	"github.com/estiba/estiba/runtime/backend/cuda/driver"
)

// device is the first one, with a stream of the test's own. Where something fails, the test does.
type device struct {
	t       testing.TB
	context *driver.Context
	stream  *driver.Stream
	staging *driver.Pinned
}

// shared by all tests: opening a device and loading the image takes a while.
var shared struct {
	sync.Mutex
	context *driver.Context
	module  *driver.Module
	kernels map[string]driver.Kernel
}

// open the first device. Without one the test is skipped.
func open(t testing.TB) *device {
	t.Helper()
	shared.Lock()
	defer shared.Unlock()
	if shared.context == nil {
		c, err := driver.Open(0)
		if errors.Is(err, driver.ErrNoDriver) {
			t.Skipf("%v; make test-cuda runs this on an emulated one", err)
		}
		check(t, err)
		image, err := cuda.Module(c.Info().Major, c.Info().Minor)
		check(t, err)
		m, err := c.Load(image)
		check(t, err)
		shared.context, shared.module, shared.kernels = c, m, map[string]driver.Kernel{}
	}
	d := &device{t: t, context: shared.context}
	var err error
	d.stream, err = d.context.NewStream()
	check(t, err)
	t.Cleanup(func() {
		check(t, d.stream.Synchronize())
		check(t, d.stream.Close())
		if d.staging != nil {
			check(t, d.staging.Close())
		}
	})
	return d
}

// wide says whether the device has the instructions of compute capability 9.0.
func wide(d *device) bool { i := d.context.Info(); return i.Major == 9 && i.Minor == 0 }

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// staged is pinned memory of at least n bytes.
func (d *device) staged(n int) []byte {
	d.t.Helper()
	if d.staging == nil || len(d.staging.Bytes) < n {
		if d.staging != nil {
			check(d.t, d.staging.Close())
		}
		var err error
		d.staging, err = d.context.Pin((max(n, 1<<20) + 4095) &^ 4095)
		check(d.t, err)
	}
	return d.staging.Bytes[:n]
}

// allocate n bytes until the end of the test. Emulated, they are NaNs, and what is beyond the next multiple of 256
// faults.
func (d *device) allocate(n int) cuda.Address {
	d.t.Helper()
	at, err := d.context.Allocate(int64(max(n, 1)))
	check(d.t, err)
	d.t.Cleanup(func() { check(d.t, d.context.Free(at)) })
	return at
}

// kernel by its name.
func (d *device) kernel(name string) driver.Kernel {
	d.t.Helper()
	shared.Lock()
	defer shared.Unlock()
	k, known := shared.kernels[name]
	if !known {
		var err error
		k, err = shared.module.Kernel(name)
		check(d.t, err)
		shared.kernels[name] = k
	}
	return k
}

// run launches, and waits for all of them.
func (d *device) run(t testing.TB, launches ...cuda.Launch) {
	t.Helper()
	for _, l := range launches {
		if err := d.stream.Launch(driver.Launch{Kernel: d.kernel(l.Kernel), Grid: l.Grid, Threads: l.Threads, Shared: l.Shared, Params: l.Params, Size: l.Size, Early: true}); err != nil {
			t.Fatalf("%s, %v blocks of %d threads, %d bytes of shared memory: %v", l.Kernel, l.Grid, l.Threads, l.Shared, err)
		}
	}
	if err := d.stream.Synchronize(); err != nil {
		t.Fatalf("%s and what was launched with it: %v", launches[0].Kernel, err)
	}
}

// upload a slice to device memory of its own.
func upload[T any](d *device, values []T) cuda.Address {
	d.t.Helper()
	at := d.allocate(len(values) * int(unsafe.Sizeof(*new(T))))
	write(d, at, values)
	return at
}

// write a slice to device memory.
func write[T any](d *device, at cuda.Address, values []T) {
	d.t.Helper()
	if len(values) == 0 {
		return
	}
	n := len(values) * int(unsafe.Sizeof(values[0]))
	b := d.staged(n)
	copy(b, unsafe.Slice((*byte)(unsafe.Pointer(&values[0])), n))
	check(d.t, d.stream.CopyIn(at, b))
	check(d.t, d.stream.Synchronize())
}

// download n values.
func download[T any](d *device, at cuda.Address, n int) []T {
	d.t.Helper()
	values := make([]T, n)
	if n == 0 {
		return values
	}
	size := n * int(unsafe.Sizeof(values[0]))
	b := d.staged(size)
	check(d.t, d.stream.CopyOut(b, at))
	check(d.t, d.stream.Synchronize())
	copy(unsafe.Slice((*byte)(unsafe.Pointer(&values[0])), size), b)
	return values
}
