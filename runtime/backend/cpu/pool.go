package cpu

import (
	"fmt"
	"runtime/debug"
	"sync"
	"sync/atomic"

	"github.com/estiba/estiba/runtime/backend"
)

// pool computes pieces of an op at once. The goroutine that asks takes part, so
// there is one less than threads.
type pool struct {
	jobs    chan *job
	threads int
	running sync.WaitGroup
}

// job is [0, n) in pieces of grain, taken in turn by whoever is free.
type job struct {
	n, grain int
	do       func(from, to int)
	next     atomic.Int64
	helpers  sync.WaitGroup
	fault    atomic.Pointer[error]
}

func newPool(threads int) *pool {
	p := &pool{jobs: make(chan *job), threads: threads}
	for range threads - 1 {
		p.running.Go(func() {
			debug.SetPanicOnFault(true)
			for j := range p.jobs {
				j.work()
				j.helpers.Done()
			}
		})
	}
	return p
}

// each calls do for pieces of [0, n) of at least grain, except the last. The
// caller has set debug.SetPanicOnFault.
func (p *pool) each(n, grain int, do func(from, to int)) error {
	grain = max(grain, 1)
	j := &job{n: n, grain: grain, do: do}
	for range min(p.threads, (n+grain-1)/grain) - 1 {
		j.helpers.Add(1)
		select {
		case p.jobs <- j:
		default: // busy with another program
			j.helpers.Done()
		}
	}
	j.work()
	j.helpers.Wait()
	if err := j.fault.Load(); err != nil {
		return *err
	}
	return nil
}

func (j *job) work() {
	if err := guard(func() {
		for {
			from := int(j.next.Add(int64(j.grain))) - j.grain
			if from >= j.n || j.fault.Load() != nil {
				return
			}
			j.do(from, min(from+j.grain, j.n))
		}
	}); err != nil {
		j.fault.Store(&err)
	}
}

// guard turns a fault at a mapped address into an error. Any other panic is a
// broken invariant of ours and goes on.
func guard(f func()) (err error) {
	defer func() {
		switch r := recover().(type) {
		case nil:
		case interface {
			error
			Addr() uintptr
		}:
			err = fmt.Errorf("%w: %v", backend.ErrFault, r)
		default:
			panic(r)
		}
	}()
	f()
	return nil
}

func (p *pool) close() {
	close(p.jobs)
	p.running.Wait()
}
