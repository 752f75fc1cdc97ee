package worker

import (
	"context"
	"errors"
	"maps"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	api "github.com/estiba/estiba/api/worker"
	"github.com/estiba/estiba/runtime/residency"
)

// answer is how a request for a model went: when it got it, and for how long it held it.
type answer struct {
	waited time.Duration
	err    error
}

// ask asks for a model and keeps it for some time.
func ask(ctx context.Context, w *Worker, model string, keeps time.Duration) answer {
	began := time.Now()
	_, release, err := w.Use(ctx, model)
	a := answer{time.Since(began), err}
	if err == nil {
		time.Sleep(keeps)
		release()
	}
	return a
}

// TestTurns: three models that are always asked for, of which one fits at a time. Each
// has its turn, nobody is refused, and nobody waits for longer than the others' turns take.
func TestTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newWorld(t)
		w, end := o.worker(t, nil)
		defer end()
		names := []string{"a", "b", "c"}
		var homes []api.Home
		for _, name := range names {
			homes = append(homes, o.home(name, 6*mib, asleep))
		}
		assign(t, w, homes...)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		const clients = 3 // of each, so that there is no pause
		answers := make(chan answer, 1e5)
		var asking sync.WaitGroup
		for _, name := range names {
			for i := range clients {
				asking.Go(func() {
					time.Sleep(time.Duration(i) * 300 * time.Millisecond)
					for ctx.Err() == nil {
						answers <- ask(ctx, w, "ns/"+name, time.Second)
					}
				})
			}
		}
		time.Sleep(5 * time.Minute)
		cancel()
		asking.Wait()
		close(answers)
		// Two turns, each with the end of its requests and a load.
		most, n := 2*(residency.Turn+time.Second+100*time.Millisecond), 0
		for a := range answers {
			if errors.Is(a.err, context.Canceled) {
				continue
			}
			if a.err != nil || a.waited > most {
				t.Fatalf("%+v, at most %s", a, most)
			}
			n++
		}
		// A device with room for all of them would have given 9 a second.
		if n < 700 {
			t.Errorf("%d answers in five minutes", n)
		}
		o.mu.Lock()
		loaded := maps.Clone(o.loads)
		o.mu.Unlock()
		for _, name := range names {
			if loads := loaded["ns/"+name]; loads < 8 || loads > 10 {
				t.Errorf("%s: %d loads in five minutes", name, loads)
			}
		}
	})
}

// TestYieldIsTakenBack: a home that has yielded takes requests again at once when nobody
// waits for its room any more, and none of its requests was cut.
func TestYieldIsTakenBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newWorld(t)
		w, end := o.worker(t, nil)
		defer end()
		assign(t, w, o.home("a", 6*mib, asleep), o.home("b", 6*mib, asleep))
		long := make(chan answer, 1)
		go func() { long <- ask(t.Context(), w, "ns/b", time.Hour) }()
		after(t, w, time.Minute, "a:Idle b:Resident")
		patient, leave := context.WithTimeout(t.Context(), 15*time.Second)
		defer leave()
		waits := make(chan answer, 1)
		go func() { waits <- ask(patient, w, "ns/a", 0) }()
		after(t, w, 12*time.Second, "a:Refused(DoesNotFit) b:Resident")
		if h := w.State().Homes[1]; h.Message != "Makes room for ns/a, which needs 6 MiB." || h.Running+h.Waiting != 1 {
			t.Errorf("%+v", h)
		}
		second := make(chan answer, 1)
		go func() { second <- ask(t.Context(), w, "ns/b", time.Second) }()
		if a := <-waits; !errors.Is(a.err, context.DeadlineExceeded) {
			t.Errorf("%+v", a)
		}
		if a := <-second; a.err != nil || a.waited != 3*time.Second {
			t.Errorf("%+v", a)
		}
		after(t, w, 0, "a:Idle b:Resident")
		if h := w.State().Homes[1]; h.Message != "" {
			t.Errorf("%+v", h)
		}
		if a := <-long; a.err != nil {
			t.Errorf("%+v", a)
		}
	})
}

// TestFormerRevisionTakesRequestsAgain: who waits for a model whose former revision has
// yielded gets that at once when its room is not needed any more.
func TestFormerRevisionTakesRequestsAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newWorld(t)
		w, end := o.worker(t, nil)
		defer end()
		revision := func(n string) func(*api.Home) { return func(h *api.Home) { h.Revision = n } }
		b, c := o.home("b", 4*mib, asleep), o.home("c", 9*mib, asleep)
		assign(t, w, o.home("a", 2*mib, revision("1")), b, c)
		after(t, w, time.Second, "a:Resident b:Idle c:Idle")
		long := make(chan answer, 1)
		go func() { long <- ask(t.Context(), w, "ns/b", 2*time.Minute) }()
		after(t, w, time.Minute, "a:Resident b:Resident c:Idle")
		o.fetchTime = 2 * time.Hour
		assign(t, w, o.home("a", 2*mib, revision("2")), b, c)
		patient, leave := context.WithTimeout(t.Context(), 15*time.Second)
		defer leave()
		go ask(patient, w, "ns/c", 0)
		time.Sleep(12 * time.Second) // c's turn has come: a and b yield to it
		got := ask(t.Context(), w, "ns/a", 0)
		if got.err != nil || got.waited != 3*time.Second {
			t.Errorf("%+v", got)
		}
		<-long
	})
}

// TestPatienceEnds: a request that finds no pause of a dearer neighbour is refused after a
// minute, and one whose model is kept out by what must stay, at once.
func TestPatienceEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newWorld(t)
		w, end := o.worker(t, nil)
		defer end()
		dearer := func(h *api.Home) { h.EvictionOrder = 1 }
		a, b := o.home("a", 6*mib, asleep), o.home("b", 6*mib, asleep, dearer)
		assign(t, w, a, b)
		go ask(t.Context(), w, "ns/b", 2*time.Minute)
		after(t, w, time.Second, "a:Idle b:Resident")
		got := ask(t.Context(), w, "ns/a", 0)
		if u, ok := errors.AsType[*UnavailableError](got.err); !ok || u.Reason != api.ReasonDoesNotFit || got.waited != patience {
			t.Errorf("%+v", got)
		}
		after(t, w, 0, "a:Idle b:Resident") // the next one may find a pause
		b.Resident = true
		assign(t, w, a, b)
		got = ask(t.Context(), w, "ns/a", 0)
		if _, ok := errors.AsType[*UnavailableError](got.err); !ok || got.waited != 0 {
			t.Errorf("%+v", got)
		}
		after(t, w, 0, "a:Refused(DoesNotFit) b:Resident") // nobody sends it any
		time.Sleep(2 * time.Minute)
	})
}
