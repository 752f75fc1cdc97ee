//go:build cuda && cgo

package driver

// #include "shim.h"
import "C"

import (
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
	"gorgonia.org/cu"

	cuda "github.com/estiba/estiba/kernels/cuda"
)

// Pinned is host memory that devices read and write by themselves.
type Pinned struct {
	Bytes []byte
	At    cuda.Address // of Bytes, for kernels
	c     *Context
}

// Pin n bytes of new memory, for all contexts. It takes about a second for 4 GB.
func (c *Context) Pin(n int) (*Pinned, error) {
	b, err := unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return nil, fmt.Errorf("pin %d bytes of host memory: %w", n, err)
	}
	_ = unix.Madvise(b, unix.MADV_HUGEPAGE) // fewer pages to pin; where the kernel has none, it is as before
	var at C.CUdeviceptr
	if err := failed(fmt.Sprintf("pin %d bytes of host memory", n), C.estiba_pin(c.c, unsafe.Pointer(&b[0]), C.size_t(n), &at)); err != nil {
		return nil, errors.Join(err, unix.Munmap(b))
	}
	return &Pinned{Bytes: b, At: cuda.Address(at), c: c}, nil
}

// Close gives the memory back. No copy may be using it.
func (p *Pinned) Close() error {
	if err := failed("unpin host memory", C.estiba_unpin(p.c.c, unsafe.Pointer(&p.Bytes[0]))); err != nil {
		return err // it stays mapped: the device may still write to it
	}
	b := p.Bytes
	p.Bytes = nil
	return unix.Munmap(b)
}

// Allocate n bytes of device memory by themselves, at a multiple of 256.
func (c *Context) Allocate(n int64) (at cuda.Address, err error) {
	err = c.do(fmt.Sprintf("allocate %d bytes of device memory", n), func() error {
		p, err := cu.MemAlloc(n)
		at = cuda.Address(p)
		return err
	})
	return at, err
}

// Free what Allocate gave, when nothing uses it any more: it waits for the device.
func (c *Context) Free(at cuda.Address) error {
	return c.do("free device memory", func() error { return cu.MemFree(cu.DevicePtr(at)) })
}

// Granularity is what sizes and addresses of virtual memory are multiples of: 2 MiB, on all devices so far.
func (c *Context) Granularity() (int64, error) {
	var n C.size_t
	err := failed("ask for the granularity of memory", C.estiba_granularity(c.c, C.int(c.info.Ordinal), &n))
	return int64(n), err
}

// Reserve size bytes of addresses. There is no memory behind them until Map.
func (c *Context) Reserve(size int64) (cuda.Address, error) {
	var at C.CUdeviceptr
	err := failed(fmt.Sprintf("reserve %d bytes of addresses", size), C.estiba_reserve(c.c, &at, C.size_t(size)))
	return cuda.Address(at), err
}

// Unreserve gives addresses back as they were reserved, all unmapped.
func (c *Context) Unreserve(at cuda.Address, size int64) error {
	return failed("give addresses back", C.estiba_unreserve(c.c, C.CUdeviceptr(at), C.size_t(size)))
}

// Handle is a piece of device memory without an address.
type Handle uint64

// NewHandles takes n pieces of size bytes of the device's memory. Where it ends before, those that there are come with the
// error.
func (c *Context) NewHandles(size int64, n int) ([]Handle, error) {
	if n == 0 {
		return nil, nil
	}
	handles := make([]Handle, n)
	var made C.int
	r := C.estiba_create(c.c, C.int(c.info.Ordinal), C.size_t(size), (*C.uint64_t)(unsafe.Pointer(&handles[0])), C.int(n), &made)
	return handles[:made], failed(fmt.Sprintf("take device memory: piece %d of %d, %d bytes each", made+1, n, size), r)
}

// Map handles of size bytes each at addresses one after the other, to be read and written: all of them, or none.
func (c *Context) Map(at cuda.Address, size int64, handles ...Handle) error {
	if len(handles) == 0 {
		return nil
	}
	return failed("map device memory", C.estiba_map(c.c, C.int(c.info.Ordinal), C.CUdeviceptr(at), C.size_t(size), (*C.uint64_t)(unsafe.Pointer(&handles[0])), C.int(len(handles))))
}

// Unmap the n handles of size bytes that are mapped from an address on. The driver unmaps what was mapped as a whole,
// no part of it.
func (c *Context) Unmap(at cuda.Address, size int64, n int) error {
	return failed("unmap device memory", C.estiba_unmap(c.c, C.CUdeviceptr(at), C.size_t(size), C.int(n)))
}

// Release handles. Their memory is free as soon as it is not mapped either.
func (c *Context) Release(handles ...Handle) error {
	if len(handles) == 0 {
		return nil
	}
	return failed("give device memory back", C.estiba_release(c.c, (*C.uint64_t)(unsafe.Pointer(&handles[0])), C.int(len(handles))))
}
