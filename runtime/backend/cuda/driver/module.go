//go:build cuda && cgo

package driver

// #include "shim.h"
import "C"

import (
	"bytes"
	"fmt"
	"unsafe"

	"gorgonia.org/cu"
)

// Module is an image with kernels, on the device.
type Module struct {
	c *Context
	m cu.Module
}

// Load an image: machine code for this device, or PTX, which the driver compiles; what its compiler says of an image
// that it refuses is in the error.
func (c *Context) Load(image []byte) (*Module, error) {
	terminated := C.CBytes(append(bytes.Clone(image), 0))
	defer C.free(terminated)
	log := C.malloc(4096)
	defer C.free(log)
	*(*C.char)(log) = 0
	m := &Module{c: c}
	if err := failed("load kernels", C.estiba_module_load(c.c, (*C.CUmodule)(unsafe.Pointer(&m.m)), terminated, (*C.char)(log), 4095)); err != nil {
		if said := bytes.TrimSpace([]byte(C.GoString((*C.char)(log)))); len(said) > 0 {
			err = fmt.Errorf("%w: %s", err, said)
		}
		return nil, err
	}
	return m, nil
}

// Close takes the image off the device. No launch of its kernels may be queued or captured.
func (m *Module) Close() error { return m.c.do("unload kernels", m.m.Unload) }

// Kernel is a function of a module.
type Kernel struct {
	c    *Context
	f    cu.Function
	name string
}

// Kernel with this name, allowed as much dynamic shared memory as the device has for it.
func (m *Module) Kernel(name string) (k Kernel, err error) {
	k.c, k.name = m.c, name
	op := "find kernel " + name
	if err := m.c.do(op, func() (err error) {
		k.f, err = m.m.Function(name)
		return err
	}); err != nil {
		return Kernel{}, err
	}
	if err := failed(op, C.estiba_allow_shared(m.c.c, k.function(), C.int(m.c.info.SharedPerBlock))); err != nil {
		return Kernel{}, err
	}
	return k, nil
}

// function is what gorgonia.org/cu keeps in its own type.
func (k Kernel) function() C.CUfunction { return *(*C.CUfunction)(unsafe.Pointer(&k.f)) }

// Uses says what the kernel takes: registers of a thread, bytes of a thread's local memory (spills), bytes of a
// block's static shared memory.
func (k Kernel) Uses() (registers, local, shared int, err error) {
	err = k.c.do("look at kernel "+k.name, func() (err error) {
		for attribute, into := range map[cu.FunctionAttribute]*int{cu.NumRegs: &registers, cu.LocalSizeBytes: &local, cu.SharedSizeBytes: &shared} {
			if *into, err = k.f.Attribute(attribute); err != nil {
				return err
			}
		}
		return nil
	})
	return registers, local, shared, err
}

// BlocksPerProcessor is how many blocks of so many threads, with so many bytes of dynamic shared memory, a
// processor runs at a time.
func (k Kernel) BlocksPerProcessor(threads, shared uint32) (n int, err error) {
	err = k.c.do("look at kernel "+k.name, func() (err error) {
		n, err = k.f.MaxActiveBlocksPerMultiProcessor(int(threads), int64(shared))
		return err
	})
	return n, err
}
