//go:build cuda && cgo

package driver

// #cgo noescape estiba_launch_all
// #cgo nocallback estiba_launch_all
// #cgo noescape estiba_run
// #cgo nocallback estiba_run
// #include <string.h>
// #include "shim.h"
import "C"

import (
	"errors"
	"fmt"
	"sync"
	"time"
	"unsafe"

	"gorgonia.org/cu"

	cuda "github.com/estiba/estiba/kernels/cuda"
)

// Stream is a queue of work for the device. What is queued runs in order; streams do not wait for each other.
// An error of work that runs later comes back from a later call.
type Stream struct {
	c *Context
	s cu.Stream

	mu     sync.Mutex
	staged unsafe.Pointer // C memory for launches
	room   uintptr
}

// NewStream makes a stream that is not ordered with any other, the default stream included.
func (c *Context) NewStream() (*Stream, error) {
	s := &Stream{c: c}
	err := c.do("make a stream", func() (err error) {
		s.s, err = cu.MakeStream(cu.NonBlocking)
		return err
	})
	if err != nil {
		return nil, err
	}
	return s, nil
}

// Close the stream; what is queued still runs.
func (s *Stream) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	C.free(s.staged)
	s.staged, s.room = nil, 0
	return s.c.do("close a stream", s.s.Destroy)
}

func (s *Stream) stream() C.CUstream { return C.CUstream(unsafe.Pointer(s.s.C())) }

// Launch is a kernel with its grid and parameters, as kernels/cuda gives them.
type Launch struct {
	Kernel          Kernel
	Grid            [3]uint32
	Threads, Shared uint32
	Params          unsafe.Pointer // without Go pointers
	Size            uintptr
	// Early says that the kernel waits for the kernel queued before it by itself, so that its blocks may start before that
	// one has ended: on a device and with a driver that have such launches (Info.Early), elsewhere it changes nothing.
	Early bool
}

// Launch queues a kernel. The parameters are copied before it returns.
func (s *Stream) Launch(l Launch) error { return s.LaunchAll([]Launch{l}) }

// LaunchAll queues kernels, one after the other, up to the first that the driver refuses.
func (s *Stream) LaunchAll(launches []Launch) error {
	if len(launches) == 0 {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	// Staged in C memory: one call for all, and nothing of Go's in it.
	var need uintptr
	for i := range launches {
		need += stride(launches[i].Size)
	}
	if need > s.room {
		C.free(s.staged)
		s.room = max(need, 2*s.room)
		s.staged = C.malloc(C.size_t(s.room))
	}
	at := uintptr(0)
	for i := range launches {
		l := &launches[i]
		head := (*C.estiba_launch)(unsafe.Add(s.staged, at))
		head.function, head.threads, head.shared = l.Kernel.function(), C.uint32_t(l.Threads), C.uint32_t(l.Shared)
		head.grid = [3]C.uint32_t{C.uint32_t(l.Grid[0]), C.uint32_t(l.Grid[1]), C.uint32_t(l.Grid[2])}
		head.early = 0
		if l.Early && s.c.info.Early() {
			head.early = 1
		}
		head.size, head.stride = C.size_t(l.Size), C.uint32_t(stride(l.Size))
		copy(unsafe.Slice((*byte)(unsafe.Add(unsafe.Pointer(head), unsafe.Sizeof(*head))), l.Size), unsafe.Slice((*byte)(l.Params), l.Size))
		at += stride(l.Size)
	}
	var launched C.int
	if r := C.estiba_launch_all(s.c.c, s.stream(), s.staged, C.int(len(launches)), &launched); r != C.CUDA_SUCCESS {
		return failed(fmt.Sprintf("launch kernel %s (%d of %d)", launches[launched].Kernel.name, launched+1, len(launches)), r)
	}
	return nil
}

// stride is how far apart staged launches are, by the size of the parameters.
func stride(size uintptr) uintptr { return (unsafe.Sizeof(C.estiba_launch{}) + size + 15) &^ 15 }

// CopyIn queues a copy from host memory within a Pinned, which must stay as it is until the copy is done.
func (s *Stream) CopyIn(to cuda.Address, from []byte) error {
	if len(from) == 0 {
		return nil
	}
	return s.c.do("copy to the device", func() error {
		return cu.MemcpyHtoDAsync(cu.DevicePtr(to), unsafe.Pointer(&from[0]), int64(len(from)), s.s)
	})
}

// CopyOut queues a copy to host memory within a Pinned, which must not be read until the copy is done.
func (s *Stream) CopyOut(to []byte, from cuda.Address) error {
	if len(to) == 0 {
		return nil
	}
	return s.c.do("copy from the device", func() error {
		return cu.MemcpyDtoHAsync(unsafe.Pointer(&to[0]), cu.DevicePtr(from), int64(len(to)), s.s)
	})
}

// Copy queues a copy of n bytes within the device.
func (s *Stream) Copy(to, from cuda.Address, n int64) error {
	if n == 0 {
		return nil
	}
	return s.c.do("copy on the device", func() error {
		return cu.MemcpyDtoDAsync(cu.DevicePtr(to), cu.DevicePtr(from), n, s.s)
	})
}

// Fill queues that n bytes become value.
func (s *Stream) Fill(at cuda.Address, value byte, n int64) error {
	if n == 0 {
		return nil
	}
	return s.c.do("fill device memory", func() error { return cu.MemsetD8Async(cu.DevicePtr(at), value, n, s.s) })
}

// Synchronize waits until all that is queued has run.
func (s *Stream) Synchronize() error { return s.c.do("wait for a stream", s.s.Synchronize) }

// Done says whether all that is queued has run.
func (s *Stream) Done() (bool, error) { return ready(s.c.do("look at a stream", s.s.Query)) }

func ready(err error) (bool, error) {
	if e, ok := errors.AsType[*Error](err); ok && e.Code == C.CUDA_ERROR_NOT_READY {
		return false, nil
	}
	return err == nil, err
}

// Event is a moment in a stream.
type Event struct {
	c *Context
	e cu.Event
}

// NewEvent makes an event that takes the time.
func (c *Context) NewEvent() (*Event, error) { return c.event(cu.DefaultEvent) }

// NewMark makes an event that takes no time. Who waits for it sleeps, rather than keep a processor busy.
func (c *Context) NewMark() (*Event, error) { return c.event(cu.DisableTiming | cu.BlockingSyncEvent) }

func (c *Context) event(flags cu.EventFlags) (*Event, error) {
	e := &Event{c: c}
	err := c.do("make an event", func() (err error) {
		e.e, err = cu.MakeEvent(flags)
		return err
	})
	if err != nil {
		return nil, err
	}
	return e, nil
}

// Close the event. It may be recorded or waited for still: the driver keeps it so long.
func (e *Event) Close() error {
	return e.c.do("close an event", func() error { return cu.DestroyEvent(&e.e) })
}

// Record has the event be the moment when what is queued in s now has run. It replaces an earlier one.
func (s *Stream) Record(e *Event) error {
	return s.c.do("record an event", func() error { return e.e.Record(s.s) })
}

// Wait has what is queued in s from now on wait for what e was last recorded as.
func (s *Stream) Wait(e *Event) error {
	return s.c.do("wait for an event in a stream", func() error { return s.s.Wait(e.e, 0) })
}

// Synchronize waits for the event, if it was ever recorded.
func (e *Event) Synchronize() error { return e.c.do("wait for an event", e.e.Synchronize) }

// Done says whether the event has happened; one that was never recorded has.
func (e *Event) Done() (bool, error) { return ready(e.c.do("look at an event", e.e.Query)) }

// Since is how long after earlier the event was, on the device. Both have happened.
func (e *Event) Since(earlier *Event) (d time.Duration, err error) {
	err = e.c.do("measure between events", func() error {
		ms, err := earlier.e.Elapsed(e.e)
		d = time.Duration(ms * float64(time.Millisecond))
		return err
	})
	return d, err
}

// Graph is work that was recorded, to be queued as a whole.
type Graph struct {
	c    *Context
	exec C.CUgraphExec
}

// Capture makes a graph of what record queues in s, which does not run. Other streams are recorded too if they Wait for
// an event of s, and s must then wait for them. Nothing may be waited for meanwhile by the host. Parameters
// and addresses are those of now; what they point to is read when the graph runs.
func (s *Stream) Capture(record func() error) (*Graph, error) {
	if err := failed("begin to capture a graph", C.estiba_begin_capture(s.c.c, s.stream())); err != nil {
		return nil, err
	}
	err := record()
	var recorded C.CUgraph
	if end := failed("end the capture of a graph", C.estiba_end_capture(s.c.c, s.stream(), &recorded)); err == nil {
		err = end
	}
	if recorded != nil {
		defer C.estiba_graph_destroy(s.c.c, recorded)
	}
	if err != nil {
		return nil, err
	}
	g := &Graph{c: s.c}
	if err := failed("instantiate a graph", C.estiba_instantiate(s.c.c, recorded, s.stream(), &g.exec)); err != nil {
		return nil, err
	}
	return g, nil
}

// Run queues a graph. It does not run twice at a time.
func (s *Stream) Run(g *Graph) error {
	return failed("launch a graph", C.estiba_run(s.c.c, g.exec, s.stream()))
}

// Close the graph; it may still be running.
func (g *Graph) Close() error { return failed("close a graph", C.estiba_exec_destroy(g.c.c, g.exec)) }
