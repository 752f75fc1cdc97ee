//go:build cuda && cgo

package driver

// #cgo CFLAGS: -I${SRCDIR}/include
// #cgo LDFLAGS: -L${SRCDIR}/lib -ldl
// #cgo noescape estiba_enter
// #cgo nocallback estiba_enter
// #include "shim.h"
import "C"

import (
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"unsafe"

	"github.com/google/uuid"
	"gorgonia.org/cu"

	"github.com/estiba/estiba/runtime/device/library"
)

// Info is what the driver says about a device.
type Info struct {
	Ordinal         int
	Name, UUID, PCI string // "NVIDIA A100-SXM4-40GB", "GPU-8f2…" or "MIG-…", "0000:3b:00.0"
	Memory          int64  // bytes in all
	Major, Minor    int    // compute capability
	Processors      int    // streaming multiprocessors
	SharedPerBlock  int    // bytes of shared memory that a block may have
	Driver          int    // the driver's version of CUDA: 12040 is 12.4
}

// Early says that the device and its driver have launches whose blocks start before the kernel before them has ended, in
// graphs too: 9.0, for which kernels' machine code, not their PTX, waits by itself.
func (i Info) Early() bool { return i.Major == 9 && i.Minor == 0 && i.Driver >= 12030 }

// tried says why the driver may not be loaded. It must be asked before the first call of the driver.
var tried = sync.OnceValue(func() error { return library.Try("libcuda.so.1", "cuInit") })

// Devices that the driver shows this process. Without any it is an ErrNoDriver that says why, in one line.
func Devices() ([]Info, error) {
	if err := tried(); errors.Is(err, library.ErrMissing) {
		return nil, fmt.Errorf("%w: %w (install NVIDIA's driver, or name its folder in LD_LIBRARY_PATH; a container is given it by NVIDIA's container runtime)", ErrNoDriver, err)
	} else if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNoDriver, err)
	}
	if why := C.estiba_cuda_failure(); why != nil {
		return nil, fmt.Errorf("%w: %s", ErrNoDriver, C.GoString(why))
	}
	n, err := cu.NumDevices()
	if err != nil {
		return nil, wrapped("count the devices", err)
	}
	if n == 0 {
		return nil, fmt.Errorf("%w: the driver shows none (is CUDA_VISIBLE_DEVICES set?)", ErrNoDriver)
	}
	infos := make([]Info, n)
	for i := range infos {
		if infos[i], err = info(i); err != nil {
			return nil, err
		}
	}
	return infos, nil
}

func info(ordinal int) (Info, error) {
	i := Info{Ordinal: ordinal, Driver: cu.Version()}
	op := fmt.Sprintf("look at device %d", ordinal)
	d, err := cu.GetDevice(ordinal)
	if err != nil {
		return Info{}, wrapped(op, err)
	}
	if i.Name, err = d.Name(); err != nil {
		return Info{}, wrapped(op, err)
	}
	if i.Memory, err = d.TotalMem(); err != nil {
		return Info{}, wrapped(op, err)
	}
	for attribute, into := range map[cu.DeviceAttribute]*int{
		cu.ComputeCapabilityMajor: &i.Major, cu.ComputeCapabilityMinor: &i.Minor, cu.MultiprocessorCount: &i.Processors,
		C.CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN: &i.SharedPerBlock,
	} {
		if *into, err = d.Attribute(attribute); err != nil {
			return Info{}, wrapped(op, err)
		}
	}
	var id C.CUuuid
	var pci [32]C.char
	if err := failed(op, C.estiba_device_id(C.CUdevice(d), &id, &pci[0], C.int(len(pci)))); err != nil {
		return Info{}, err
	}
	kind := "GPU-"
	if strings.Contains(i.Name, " MIG ") {
		kind = "MIG-"
	}
	i.UUID, i.PCI = kind+uuid.UUID(*(*[16]byte)(unsafe.Pointer(&id))).String(), strings.ToLower(C.GoString(&pci[0]))
	return i, nil
}

// Context is a device's primary context. Its methods, and those of what it makes, may be called from any goroutine.
type Context struct {
	info   Info
	device cu.Device
	c      C.estiba_context
}

var openings atomic.Uint64

// Open the device with this number, of those that Devices shows.
func Open(ordinal int) (*Context, error) {
	if _, err := Devices(); err != nil {
		return nil, err
	}
	i, err := info(ordinal)
	if err != nil {
		return nil, err
	}
	d, err := cu.GetDevice(ordinal)
	if err != nil {
		return nil, wrapped("open", err)
	}
	op := fmt.Sprintf("open device %d (%s)", ordinal, i.Name)
	primary, err := d.RetainPrimaryCtx()
	if err != nil {
		return nil, wrapped(op, err)
	}
	c := &Context{info: i, device: d, c: C.estiba_context{context: *(*C.CUcontext)(unsafe.Pointer(&primary)), opening: C.uint64_t(openings.Add(1))}}
	if err := c.do(op, func() error { return nil }); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

// Info of the device.
func (c *Context) Info() Info { return c.info }

// Close gives the context back. What was made of it must have been closed.
func (c *Context) Close() error { return wrapped("close "+c.info.Name, c.device.ReleasePrimaryCtx()) }

// Memory of the device, of all its users, in bytes.
func (c *Context) Memory() (free, total int64, err error) {
	err = c.do("ask for free memory", func() (err error) {
		free, total, err = cu.MemInfo()
		return err
	})
	return free, total, err
}

// Synchronize waits until everything queued in every stream has run.
func (c *Context) Synchronize() error { return c.do("synchronize the device", cu.Synchronize) }

// do calls gorgonia.org/cu with the context set: that is the thread's, so the goroutine must keep it.
func (c *Context) do(op string, f func() error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := failed(op, C.estiba_enter(c.c)); err != nil {
		return err
	}
	return wrapped(op, f())
}
