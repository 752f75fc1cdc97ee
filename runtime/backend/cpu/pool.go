package cpu

import (
	"fmt"
	"math/bits"
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/estiba/estiba/runtime/backend"
)

// pool computes pieces of work at once. The goroutine that asks takes part, so there is
// one helper less than threads.
//
// Who computes a step enters the pool and gets a team, posts one job after the other on
// it, and leaves. Helpers go round the teams that have pieces left. A job starts in less
// than a microsecond while they look for work; after spinFor without any they sleep. Who
// asks waits for pieces that were taken, and for nobody who took none: on a machine that
// is busy with other things it computes all of a job itself.
type pool struct {
	threads int
	teams   [maxTeams]team
	helpers []hand
	running sync.WaitGroup

	_      [64]byte
	active atomic.Uint64 // teams that were entered, a bit each
	asleep atomic.Int64  // helpers that sleep and that nobody has woken
	closed atomic.Bool
	_      [64]byte

	wake  chan struct{}
	mu    sync.Mutex
	freed sync.Cond // a team was left
}

const (
	maxTeams = 64 // bits of pool.active: a load has one as long as it takes, and no step shall wait for loads
	// spinFor is how long a helper looks for work before it sleeps: longer than what lies
	// between two steps of a small model, too short to be seen in an account of time.
	spinFor = 50 * time.Microsecond
	// waitFor is how long who asked looks whether the last pieces are done before it sleeps, so that
	// the system can give its core to a helper that has none. A piece takes a part of that.
	waitFor = 30 * time.Microsecond
	// rouseEvery is how long after a word to a sleeper the next one is given: that takes some microseconds
	// itself, and on a busy machine who is woken comes too late, time and again.
	rouseEvery = 100 * time.Microsecond
	// mostLooks bound both where the clock stands still, as it may in tests.
	mostLooks = 1000
)

// work is what a job does, to numbers from to to of [0, n), by a hand that no other piece has meanwhile.
type work interface {
	do(h *hand, from, to int)
}

// function is work without a type of its own.
type function func(from, to int)

func (f function) do(_ *hand, from, to int) { f(from, to) }

// hand is a goroutine that computes, and its memory.
type hand struct {
	scratch []byte
	_       [64]byte
}

// room gives n bytes at a multiple of 64, of which nothing is known.
func (h *hand) room(n int) []byte {
	if len(h.scratch) < n {
		h.scratch = aligned(make([]byte, n+63))
	}
	return h.scratch[:n]
}

// team is the hands that work on one job, and the job: [0, n) in pieces of grain, each taken
// by whoever is free. The job is only written while no piece of it is left.
type team struct {
	pool   *pool
	number int
	caller hand

	n, grain int
	work     work
	failed   atomic.Pointer[failure]
	roused   time.Time // when the caller woke a helper

	_     [64]byte
	taken atomic.Uint64 // pieces in all << 32 | pieces taken, or more
	_     [64]byte
	left  atomic.Int64 // pieces that are not done
	sleep atomic.Bool  // the caller sleeps until left is 0
	done  chan struct{}
	_     [64]byte
}

// failure of a piece: a fault at a mapped address, or any other panic.
type failure struct {
	fault    error
	panicked *panicked
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
	p := &pool{threads: threads, helpers: make([]hand, threads-1), wake: make(chan struct{}, threads)}
	p.freed.L = &p.mu
	for i := range p.teams {
		t := &p.teams[i]
		t.pool, t.number, t.done = p, i, make(chan struct{}, 1)
	}
	for i := range p.helpers {
		p.running.Go(func() { p.help(&p.helpers[i], i) })
	}
	return p
}

// enter gives a team, which leave gives back. It waits while all are taken.
func (p *pool) enter() *team {
	p.mu.Lock()
	defer p.mu.Unlock()
	for {
		active := p.active.Load()
		if i := bits.TrailingZeros64(^active); i < maxTeams {
			p.active.Store(active | 1<<i)
			return &p.teams[i]
		}
		p.freed.Wait()
	}
}

func (t *team) leave() {
	t.work = nil
	p := t.pool
	p.mu.Lock()
	p.active.Store(p.active.Load() &^ (1 << t.number))
	p.mu.Unlock()
	p.freed.Signal()
}

// each does w for pieces of [0, n) of grain numbers, the last one smaller. The caller has set
// debug.SetPanicOnFault. A panic of w, wherever it was, is one of the caller's, once no
// helper works any more.
func (t *team) each(n, grain int, w work) error {
	grain = max(grain, (n+maxPieces-1)/maxPieces, 1)
	pieces := (n + grain - 1) / grain
	switch {
	case pieces == 0:
		return nil
	case pieces == 1 || t.pool.threads == 1:
		t.n, t.grain, t.work = n, n, w // nobody else shall take it
		t.run(&t.caller, 0)
	default:
		t.n, t.grain, t.work = n, grain, w
		t.left.Store(int64(pieces))
		t.taken.Store(uint64(pieces) << 32)
		done := 0
		t.rouse()
		for i, ok := t.take(); ok; i, ok = t.take() {
			t.run(&t.caller, i)
			done++
			t.rouse()
		}
		if t.left.Add(-int64(done)) > 0 {
			t.wait()
		}
	}
	if f := t.failed.Load(); f != nil {
		t.failed.Store(nil)
		if f.panicked != nil {
			panic(f.panicked)
		}
		return f.fault
	}
	return nil
}

// maxPieces of a job: so many, and one too many for each hand, fit half of team.taken.
const maxPieces = 1 << 24

// take gives the number of a piece that nobody has.
func (t *team) take() (int, bool) {
	left := func(v uint64) bool { return uint32(v) < uint32(v>>32) }
	if !left(t.taken.Load()) {
		return 0, false
	}
	v := t.taken.Add(1) - 1
	return int(uint32(v)), left(v)
}

// run does piece i, unless one before it failed.
func (t *team) run(h *hand, i int) {
	defer func() {
		switch r := recover().(type) {
		case nil:
		case interface {
			error
			Addr() uintptr
		}:
			t.failed.Store(&failure{fault: fmt.Errorf("%w (fault at address %#x)", backend.ErrFault, r.Addr())})
		default: // a broken invariant of ours
			t.failed.Store(&failure{panicked: &panicked{r, debug.Stack()}})
		}
	}()
	if t.failed.Load() == nil {
		from := i * t.grain
		t.work.do(h, from, min(from+t.grain, t.n))
	}
}

// wait until all pieces are done.
func (t *team) wait() {
	began := time.Now()
	for i := 0; i < mostLooks && time.Since(began) < waitFor; i++ {
		for range 8 {
			if t.left.Load() == 0 {
				return
			}
			pause(4)
		}
	}
	for {
		t.sleep.Store(true)
		if t.left.Load() == 0 && t.sleep.Swap(false) {
			return
		}
		<-t.done
		if t.left.Load() == 0 { // else it was a late word about the job before
			return
		}
	}
}

// help works for whoever has work, until the pool is closed.
func (p *pool) help(h *hand, number int) {
	debug.SetPanicOnFault(true)
	at := number // the team that had a turn last
	for p.nap(); !p.closed.Load(); {
		if p.turn(h, &at) {
			continue
		}
		began, found := time.Now(), false
		for i := 0; i < mostLooks && !found && time.Since(began) < spinFor; i++ {
			for j := 0; j < 8 && !found; j++ {
				pause(4)
				found = p.turn(h, &at)
			}
		}
		if !found {
			p.nap()
		}
	}
}

// turn goes round the teams and does a piece for each that has one; while there is one team
// only, all that it has. It says whether there was any.
func (p *pool) turn(h *hand, at *int) bool {
	found := false
	active := p.active.Load()
	for range bits.OnesCount64(active) {
		next := bits.TrailingZeros64(active &^ (2<<*at - 1))
		if next == 64 {
			next = bits.TrailingZeros64(active)
		}
		*at = next
		t := &p.teams[next]
		done := 0
		for i, ok := t.take(); ok; i, ok = t.take() {
			if done == 0 && !found { // two more sleepers, if there is work for them too
				p.rouse()
				p.rouse()
			}
			t.run(h, i)
			done++
			if p.active.Load()&^(1<<next) != 0 {
				break
			}
		}
		if done > 0 {
			found = true
			if t.left.Add(-int64(done)) == 0 && t.sleep.Swap(false) {
				t.done <- struct{}{}
				runtime.Gosched() // in favour of who waited, which else would be looked for by another thread
			}
		}
	}
	return found
}

// rouse wakes a helper now and then.
func (t *team) rouse() {
	if t.pool.asleep.Load() == 0 {
		return
	}
	if now := time.Now(); now.Sub(t.roused) > rouseEvery {
		t.roused = now
		t.pool.rouse()
	}
}

// rouse wakes a helper, if one sleeps and there is work.
func (p *pool) rouse() {
	for n := p.asleep.Load(); n > 0; n = p.asleep.Load() {
		if !p.open() {
			return
		}
		if p.asleep.CompareAndSwap(n, n-1) {
			p.wake <- struct{}{}
			return
		}
	}
}

// open says whether a team has pieces left.
func (p *pool) open() bool {
	for active := p.active.Load(); active != 0; active &= active - 1 {
		v := p.teams[bits.TrailingZeros64(active)].taken.Load()
		if uint32(v) < uint32(v>>32) {
			return true
		}
	}
	return false
}

// nap sleeps until there is work.
func (p *pool) nap() {
	p.asleep.Add(1)
	if p.open() || p.closed.Load() {
		for n := p.asleep.Load(); n > 0; n = p.asleep.Load() {
			if p.asleep.CompareAndSwap(n, n-1) {
				return
			}
		}
		// Somebody is about to wake this one, or has woken another in its place.
	}
	<-p.wake
}

// close ends the helpers. Nobody may be in the pool.
func (p *pool) close() {
	p.closed.Store(true)
	for n := p.asleep.Load(); n > 0; n = p.asleep.Load() {
		if p.asleep.CompareAndSwap(n, n-1) {
			p.wake <- struct{}{}
		}
	}
	p.running.Wait()
}
