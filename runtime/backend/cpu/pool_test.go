package cpu

import (
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestPanicOfAHelper comes out where the work was asked for, when nobody works any more,
// and the pool goes on.
func TestPanicOfAHelper(t *testing.T) {
	p := newPool(4)
	defer p.close()
	team := p.enter()
	defer team.leave()
	helpers := 0
	for range 1000 {
		var working atomic.Int64
		got := func() (got any) {
			defer func() { got = recover() }()
			team.each(64, 1, function(func(from, to int) {
				working.Add(1)
				defer working.Add(-1)
				if from > 0 {
					panic("index out of range")
				}
				time.Sleep(10 * time.Microsecond) // so that helpers get some
			}))
			return nil
		}()
		err, ok := got.(*panicked)
		if !ok || err.Error() != "index out of range" {
			t.Fatalf("%v", got)
		}
		if working.Load() != 0 {
			t.Fatal("somebody still works")
		}
		if !strings.Contains(string(err.Stack()), "TestPanicOfAHelper(") { // the test's own frame
			helpers++
		}
	}
	if helpers == 0 {
		t.Error("no helper panicked")
	}
	var done atomic.Int64
	if err := team.each(100, 1, function(func(from, to int) { done.Add(int64(to - from)) })); err != nil || done.Load() != 100 {
		t.Errorf("%d done, %v", done.Load(), err)
	}
}

// TestPool: every number once, by any hands, for more callers than there are teams, with
// pauses in which helpers go to sleep.
func TestPool(t *testing.T) {
	for _, threads := range []int{1, 2, 5} {
		t.Run(fmt.Sprintf("%d threads", threads), func(t *testing.T) {
			p := newPool(threads)
			defer p.close()
			var callers sync.WaitGroup
			for c := range maxTeams + 4 {
				callers.Go(func() {
					for round := range 20 {
						team := p.enter()
						for job := range 20 {
							n, grain := (c*31+job*17)%200, 1+job%7
							seen := make([]atomic.Int32, n)
							if err := team.each(n, grain, function(func(from, to int) {
								if from < 0 || to > n || from >= to {
									t.Errorf("from %d to %d of %d", from, to, n)
								}
								for i := from; i < to; i++ {
									seen[i].Add(1)
								}
							})); err != nil {
								t.Error(err)
							}
							for i := range seen {
								if seen[i].Load() != 1 {
									t.Errorf("number %d of %d: %d times", i, n, seen[i].Load())
								}
							}
						}
						team.leave()
						if round%5 == 0 {
							time.Sleep(time.Duration(c) * 10 * time.Microsecond)
						}
					}
				})
			}
			callers.Wait()
		})
	}
}

// TestHandsShare: of two callers that always have work, neither is left without helpers.
func TestHandsShare(t *testing.T) {
	p := newPool(3)
	defer p.close()
	var helped [2]atomic.Int64
	var stop atomic.Bool
	var callers sync.WaitGroup
	for c := range helped {
		callers.Go(func() {
			team := p.enter()
			defer team.leave()
			for !stop.Load() {
				team.each(64, 1, counter{&helped[c], &team.caller})
			}
		})
	}
	// On a busy machine a caller may have no processor for a while, and then no work for anybody. Who is left
	// without helpers is so always.
	a, b := int64(0), int64(0)
	for range 20 {
		from := [2]int64{helped[0].Load(), helped[1].Load()}
		time.Sleep(300 * time.Millisecond)
		if a, b = helped[0].Load()-from[0], helped[1].Load()-from[1]; a+b > 0 && min(a, b) >= max(a, b)/4 {
			break
		}
	}
	stop.Store(true)
	callers.Wait()
	if a+b == 0 || min(a, b) < max(a, b)/4 {
		t.Errorf("helpers did %d and %d pieces", a, b)
	}
}

// counter counts pieces that others than the caller do.
type counter struct {
	n      *atomic.Int64
	caller *hand
}

func (c counter) do(h *hand, _, _ int) {
	for began := time.Now(); time.Since(began) < 5*time.Microsecond; {
	}
	if h != c.caller {
		c.n.Add(1)
	}
}

// TestIdlePool takes no time of the processor.
func TestIdlePool(t *testing.T) {
	p := newPool(4)
	defer p.close()
	team := p.enter()
	for range 100 {
		team.each(64, 1, function(func(int, int) { time.Sleep(time.Microsecond) }))
	}
	for _, entered := range []bool{true, false} {
		if !entered {
			team.leave()
		}
		time.Sleep(10 * time.Millisecond)
		before := processorTime(t)
		time.Sleep(500 * time.Millisecond)
		if took := processorTime(t) - before; took > 25*time.Millisecond {
			t.Errorf("an idle pool (entered: %v) took %v in 500 ms", entered, took)
		}
	}
}

// processorTime that the process took so far.
func processorTime(t *testing.T) time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		t.Skip(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkDispatch is what a job of as many empty pieces as there are threads takes: while
// helpers look for work, and after they have gone to sleep.
func BenchmarkDispatch(b *testing.B) {
	for _, threads := range []int{1, 2, 4} {
		p := newPool(threads)
		team := p.enter()
		w := function(func(int, int) {})
		b.Run(fmt.Sprintf("%d threads, awake", threads), func(b *testing.B) {
			for b.Loop() {
				team.each(threads, 1, w)
			}
		})
		b.Run(fmt.Sprintf("%d threads, asleep", threads), func(b *testing.B) {
			var took time.Duration
			for b.Loop() {
				time.Sleep(2 * spinFor)
				began := time.Now()
				team.each(threads, 1, w)
				took += time.Since(began)
			}
			b.ReportMetric(float64(took.Nanoseconds())/float64(b.N), "ns/job")
		})
		team.leave()
		p.close()
	}
}

// BenchmarkPieces compares jobs of pieces of 10 µs with what one hand takes.
func BenchmarkPieces(b *testing.B) {
	for _, pieces := range []int{2, 8, 64} {
		p := newPool(2)
		team := p.enter()
		b.Run(fmt.Sprint(pieces), func(b *testing.B) {
			for b.Loop() {
				team.each(pieces, 1, function(func(int, int) {
					for began := time.Now(); time.Since(began) < 10*time.Microsecond; {
					}
				}))
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(pieces)/10e3*2, "of-ideal")
		})
		team.leave()
		p.close()
	}
}
