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
	fault    atomic.Pointer[error]    // a fault at a mapped address
	panicked atomic.Pointer[panicked] // anything else
}

// panicked is a panic on its way from the goroutine of a helper to the caller's.
type panicked struct {
	value any
	stack []byte
}

func (p *panicked) Error() string { return fmt.Sprint(p.value) }

// Stack is that of the helper.
func (p *panicked) Stack() []byte { return p.stack }

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
// caller has set debug.SetPanicOnFault. A panic of do, wherever it was, is one of
// the caller's, once no helper works any more.
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
	if p := j.panicked.Load(); p != nil {
		panic(p)
	}
	if err := j.fault.Load(); err != nil {
		return *err
	}
	return nil
}

func (j *job) work() {
	defer func() {
		switch r := recover().(type) {
		case nil:
		case interface {
			error
			Addr() uintptr
		}:
			err := fmt.Errorf("%w (fault at address %#x)", backend.ErrFault, r.Addr())
			j.fault.Store(&err)
		default: // a broken invariant of ours
			j.panicked.Store(&panicked{r, debug.Stack()})
		}
	}()
	for {
		from := int(j.next.Add(int64(j.grain))) - j.grain
		if from >= j.n || j.fault.Load() != nil || j.panicked.Load() != nil {
			return
		}
		j.do(from, min(from+j.grain, j.n))
	}
}

func (p *pool) close() {
	close(p.jobs)
	p.running.Wait()
}
