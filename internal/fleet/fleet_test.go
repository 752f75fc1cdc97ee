package fleet

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/estiba/estiba/api/worker"
	"github.com/estiba/estiba/internal/fixture"
	"github.com/google/go-cmp/cmp"
)

// fake is a worker that reports what it is given.
type fake struct {
	token string
	lines chan string // written to the open stream as they are

	mu    sync.Mutex
	dials int
	puts  []worker.Assignment
	put   func(w http.ResponseWriter, a worker.Assignment) // default: 200
}

func (f *fake) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Authorization") != "Bearer "+f.token {
		http.Error(w, "no", http.StatusUnauthorized)
		return
	}
	switch r.URL.Path {
	case worker.PathState:
		w.WriteHeader(http.StatusOK)
		http.NewResponseController(w).Flush()
		for {
			select {
			case line := <-f.lines:
				if line == "hang up" {
					return
				}
				fmt.Fprint(w, line)
				http.NewResponseController(w).Flush()
			case <-r.Context().Done():
				return
			}
		}
	case worker.PathAssignment:
		var a worker.Assignment
		if err := json.NewDecoder(r.Body).Decode(&a); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		f.mu.Lock()
		f.puts = append(f.puts, a)
		put := f.put
		f.mu.Unlock()
		if put != nil {
			put(w, a)
		}
	case worker.PathInspect:
		fmt.Fprint(w, `{"architecture":"llama"}`)
	}
}

func (f *fake) sent() []int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	var generations []int64
	for _, a := range f.puts {
		generations = append(generations, a.Generation)
	}
	return generations
}

func (f *fake) report(t *testing.T, s worker.State) {
	t.Helper()
	line, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	f.lines <- string(line) + "\n"
	synctest.Wait()
}

// world runs a test in a bubble with a fleet of one worker, "w0".
func world(t *testing.T, test func(t *testing.T, f *Fleet, w *fake, target Target)) {
	worldWith(t, Options{}, test)
}

func worldWith(t *testing.T, o Options, test func(t *testing.T, f *Fleet, w *fake, target Target)) {
	synctest.Test(t, func(t *testing.T) {
		w := &fake{token: "secret", lines: make(chan string)}
		listener := Listen()
		server := &http.Server{Handler: w}
		go server.Serve(listener)
		client := NewClient(func(ctx context.Context, network, address string) (net.Conn, error) {
			if strings.HasPrefix(address, "w") {
				w.mu.Lock()
				w.dials++
				w.mu.Unlock()
				return listener.Dial(ctx, network, address)
			}
			return nil, errors.New("no route")
		})
		f := New(client, o)
		defer func() {
			f.Sync(nil)
			client.CloseIdleConnections()
			server.Close()
			synctest.Wait()
		}()
		target := Target{Worker: "w0", Pool: "ns/p", URL: "http://w0:8081", Token: "secret"}
		f.Sync([]Target{target})
		synctest.Wait()
		test(t, f, w, target)
	})
}

func changed(f *Fleet) bool {
	select {
	case <-f.Changed():
		return true
	default:
		return false
	}
}

func state(generation int64) worker.State {
	return worker.State{Worker: "w0", Pool: "ns/p", Instance: "i1", Epoch: 1, Generation: generation}
}

func TestReports(t *testing.T) {
	world(t, func(t *testing.T, f *Fleet, w *fake, target Target) {
		if !changed(f) || f.Workers()[0].Connected {
			t.Error("a target that has not reported is listed, and not connected")
		}
		w.report(t, state(1))
		r := f.Workers()[0]
		if !r.Connected || !changed(f) || r.Seen != time.Now() {
			t.Errorf("after a report: %+v", r)
		}
		if diff := cmp.Diff(state(1), r.State); diff != "" {
			t.Error(diff)
		}
		s := state(1)
		s.Time = time.Now()
		w.report(t, s)
		if changed(f) {
			t.Error("a clock is no change")
		}
		s.Homes = []worker.HomeState{{Model: "ns/m", IdleSeconds: 1}}
		w.report(t, s)
		if !changed(f) {
			t.Error("a home is a change")
		}
		s.Homes = []worker.HomeState{{Model: "ns/m", IdleSeconds: 2}}
		w.report(t, s)
		if changed(f) || f.Workers()[0].State.Homes[0].IdleSeconds != 2 {
			t.Error("an idle clock is no change, but is kept")
		}
		s.Homes = []worker.HomeState{{Model: "ns/m", IdleSeconds: 1}}
		if r, same := f.Again("w0", s); !same || r.State.Homes[0].IdleSeconds != 2 || r.Seen != time.Now() {
			t.Errorf("what has moved by itself since an earlier report: %+v", r)
		}
		if _, same := f.Again("w0", state(1)); same {
			t.Error("a report without the home is not the same")
		}
		if _, same := f.Again("w1", s); same {
			t.Error("there is no such worker")
		}

		// Silence: disconnected, and what it said is kept.
		time.Sleep(silence + time.Millisecond)
		synctest.Wait()
		r = f.Workers()[0]
		if r.Connected || !changed(f) || r.State.Homes[0].IdleSeconds != 2 || !strings.Contains(fmt.Sprint(r.Err), "nothing heard") {
			t.Errorf("after silence: %+v", r)
		}
		// It comes back by itself.
		time.Sleep(time.Second)
		w.report(t, state(2))
		if r = f.Workers()[0]; !r.Connected || r.Err != nil || r.State.Generation != 2 {
			t.Errorf("after it came back: %+v", r)
		}

		// A changed token keeps the report; one that is wrong says so.
		target.Token = "wrong"
		f.Sync([]Target{target})
		synctest.Wait()
		r = f.Workers()[0]
		if r.Connected || r.State.Generation != 2 || !strings.Contains(fmt.Sprint(r.Err), "token was not accepted") {
			t.Errorf("with a wrong token: %+v", r)
		}
		f.Sync(nil)
		if len(f.Workers()) != 0 || !changed(f) {
			t.Error("Sync(nil) leaves nothing")
		}
	})
}

func TestBadStreams(t *testing.T) {
	for name, c := range map[string]struct{ line, want string }{
		"not JSON":           {"{\n", "read a report"},
		"another pod":        {`{"worker":"w9"}` + "\n", `"w9" answers there`},
		"ends":               {"hang up", "unexpected EOF"},
		"a line without end": {strings.Repeat(" ", maxLine+1), "too long"},
	} {
		t.Run(name, func(t *testing.T) {
			world(t, func(t *testing.T, f *Fleet, w *fake, _ Target) {
				w.report(t, state(7))
				w.lines <- c.line
				synctest.Wait()
				r := f.Workers()[0]
				if r.Connected || r.State.Generation != 7 || !strings.Contains(fmt.Sprint(r.Err), c.want) {
					t.Errorf("%+v", r)
				}
				time.Sleep(backoffFirst)
				w.report(t, state(8))
				if r := f.Workers()[0]; !r.Connected || r.State.Generation != 8 {
					t.Errorf("it does not come back: %+v", r)
				}
			})
		})
	}
}

func TestUnreachable(t *testing.T) {
	world(t, func(t *testing.T, f *Fleet, w *fake, target Target) {
		target.URL = "http://nowhere:8081"
		f.Sync([]Target{target})
		synctest.Wait()
		if r := f.Workers()[0]; r.Connected || !strings.Contains(fmt.Sprint(r.Err), "no route") {
			t.Errorf("%+v", r)
		}
	})
}

func TestSend(t *testing.T) {
	world(t, func(t *testing.T, f *Fleet, w *fake, _ Target) {
		f.Send("nobody", worker.Assignment{})
		w.report(t, state(1))
		changed(f)
		a := worker.Assignment{Epoch: 1, Generation: 2, Instance: "i1"}
		f.Send("w0", a)
		synctest.Wait()
		if diff := cmp.Diff(map[string]worker.Assignment{"w0": a}, f.Sent()); diff != "" {
			t.Error(diff)
		}
		// A report that was under way does not count.
		w.report(t, state(1))
		if len(f.Sent()) != 1 {
			t.Error("an old report settles nothing")
		}
		w.report(t, state(2))
		if len(f.Sent()) != 0 || !changed(f) {
			t.Error("a report settles it")
		}
		time.Sleep(time.Minute)
		if diff := cmp.Diff([]int64{2}, w.sent()); diff != "" {
			t.Error(diff)
		}
		// What is in force is not sent again.
		f.Send("w0", a)
		synctest.Wait()
		if len(f.Sent()) != 0 || len(w.sent()) != 1 {
			t.Error("sent again")
		}
	})
}

// TestSendKeepsItsConnection though nobody wants the State in the answer.
func TestSendKeepsItsConnection(t *testing.T) {
	world(t, func(t *testing.T, f *Fleet, w *fake, target Target) {
		w.put = func(rw http.ResponseWriter, _ worker.Assignment) { fmt.Fprint(rw, strings.Repeat(" ", 1<<20)) }
		w.report(t, state(1))
		for n := range int64(5) {
			f.Send("w0", worker.Assignment{Instance: "i1", Epoch: 1, Generation: 2 + n})
			time.Sleep(time.Second)
		}
		if len(w.sent()) != 5 || w.dials != 2 { // the stream has the other
			t.Errorf("sent %v over %d connections", w.sent(), w.dials-1)
		}
	})
}

func TestSendTriesAgain(t *testing.T) {
	world(t, func(t *testing.T, f *Fleet, w *fake, _ Target) {
		release := make(chan bool)
		w.put = func(http.ResponseWriter, worker.Assignment) { <-release }
		f.Send("w0", worker.Assignment{Generation: 1})
		synctest.Wait()
		// While the first hangs, newer ones replace each other.
		f.Send("w0", worker.Assignment{Generation: 2})
		f.Send("w0", worker.Assignment{Generation: 3})
		time.Sleep(sendTimeout + time.Second)
		synctest.Wait()
		if diff := cmp.Diff([]int64{1, 3}, w.sent()); diff != "" {
			t.Error(diff)
		}
		w.mu.Lock()
		w.put = nil
		w.mu.Unlock()
		close(release)
		time.Sleep(time.Second)
		// Accepted, and reported by nobody: sent again.
		before := len(w.sent())
		time.Sleep(sendTimeout + time.Second)
		if after := len(w.sent()); after <= before || f.Sent()["w0"].Generation != 3 {
			t.Errorf("%d, then %d", before, after)
		}
	})
}

func TestRefusal(t *testing.T) {
	world(t, func(t *testing.T, f *Fleet, w *fake, _ Target) {
		w.report(t, state(9))
		refusal := worker.Refusal{Reason: worker.RefusedOlder, Epoch: 5, Generation: 9}
		w.put = func(rw http.ResponseWriter, _ worker.Assignment) {
			rw.WriteHeader(http.StatusConflict)
			json.NewEncoder(rw).Encode(refusal)
		}
		f.Send("w0", worker.Assignment{Epoch: 4, Generation: 1, Instance: "i1"})
		synctest.Wait()
		if diff := cmp.Diff(map[string]worker.Refusal{"w0": refusal}, f.Refusals()); diff != "" || len(f.Sent()) != 0 || !changed(f) {
			t.Error(diff, f.Sent())
		}
		w.mu.Lock()
		w.put = nil
		w.mu.Unlock()
		f.Send("w0", worker.Assignment{Epoch: 6, Generation: 1, Instance: "i1"})
		if len(f.Refusals()) != 0 || len(f.Sent()) != 1 {
			t.Error("a new assignment clears the refusal")
		}
		// Another process answers: what was meant for the old one is void.
		w.report(t, worker.State{Worker: "w0", Instance: "i2"})
		if len(f.Sent()) != 0 {
			t.Error("sent to a process that is gone")
		}
	})
}

func TestInspect(t *testing.T) {
	world(t, func(t *testing.T, f *Fleet, w *fake, _ Target) {
		in, err := f.Inspect(t.Context(), "w0", worker.InspectRequest{})
		if err != nil || in.Architecture != "llama" {
			t.Error(in, err)
		}
		if _, err := f.Inspect(t.Context(), "w1", worker.InspectRequest{}); err == nil {
			t.Error("w1 is nobody")
		}
		w.token = "changed"
		if _, err := f.Inspect(t.Context(), "w0", worker.InspectRequest{}); !strings.Contains(fmt.Sprint(err), "token") {
			t.Error(err)
		}
	})
}

func TestGateways(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lines := make(chan string)
		listener := Listen()
		server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path != worker.PathGatewayState {
				t.Errorf("path %s", r.URL)
			}
			for line := range lines {
				fmt.Fprintln(w, line)
				http.NewResponseController(w).Flush()
			}
		})}
		go server.Serve(listener)
		client := NewClient(listener.Dial)
		g := NewGateways(client, Options{})
		g.Sync([]Target{{Worker: "g0", URL: "http://g0"}})
		lines <- `{"gateway":"g0","models":[{"model":"ns/m","held":3}]}`
		synctest.Wait()
		want := []worker.GatewayState{{Gateway: "g0", Models: []worker.ModelDemand{{Model: "ns/m", Held: 3}}}}
		if diff := cmp.Diff(want, g.Reports()); diff != "" {
			t.Error(diff)
		}
		<-g.Changed()
		time.Sleep(silence + time.Millisecond)
		if len(g.Reports()) != 0 {
			t.Error("a silent gateway wants nothing")
		}
		close(lines)
		g.Sync(nil)
		synctest.Wait()
		client.CloseIdleConnections()
		server.Close()
	})
}

func TestTokens(t *testing.T) {
	key := []byte("key")
	again := PoolToken([]byte("key"), "a/b")
	if PoolToken(key, "a/b") != again || len(again) != 64 {
		t.Error("64 hexadecimal digits, always the same")
	}
	if PoolToken(key, "a/b") == PoolToken(key, "a/c") || PoolToken(key, "a/b") == PoolToken([]byte("other"), "a/b") || GatewayToken(key) == PoolToken(key, "") {
		t.Error("tokens coincide")
	}
}

// What moves by itself is no change; any other field is, whatever fields there will be.
func TestSameState(t *testing.T) {
	moves := map[string]bool{}
	for _, path := range []string{"State.Time", "State.Devices[0].Load", "State.Homes[0].Load", "State.Homes[0].BusySeconds", "State.Homes[0].Awake",
		"State.Homes[0].IdleSeconds", "State.Homes[0].ResidentSeconds", "State.Homes[0].EnergyJoules", "State.Homes[0].Tokens",
		"State.Devices[0].Readings.FreeBytes", "State.Devices[0].Readings.OthersBytes", "State.Devices[0].Readings.Utilization", "State.Devices[0].Readings.PowerWatts",
		"State.Devices[0].Readings.TemperatureCelsius", "State.Devices[0].Readings.EnergyJoules", "State.Devices[0].Readings.IdleJoules", "State.Devices[0].Readings.Throttled[0]"} {
		moves[path] = true
	}
	var was worker.State
	var paths []string
	fixture.Leaves(&was, func(path string, _ func()) { paths = append(paths, path) })
	for i, path := range paths {
		var is worker.State
		n := 0
		fixture.Leaves(&is, func(_ string, change func()) {
			if n == i {
				change()
			}
			n++
		})
		if got := sameState(was, is); got != moves[path] {
			t.Errorf("with another %s it is the same: %v", path, got)
		}
		delete(moves, path)
	}
	if len(moves) > 0 {
		t.Errorf("no such fields: %v", moves)
	}
	further := was
	further.Homes = slices.Clone(was.Homes)
	was.Homes[0].Progress, further.Homes[0].Progress = 0.41, 0.48
	if !sameState(was, further) {
		t.Error("each step of a load is a change")
	}
}
