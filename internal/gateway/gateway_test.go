package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/estiba/estiba/api/worker"
	"github.com/estiba/estiba/internal/fleet"
	"github.com/google/go-cmp/cmp"
)

// world is a gateway, its workers and a client, in a bubble of fake time and
// connected in memory.
type world struct {
	*testing.T
	g        *Gateway
	fleet    *fleet.Fleet
	client   *http.Client
	listener *fleet.Listener

	mu      sync.Mutex
	workers map[string]*fakeWorker
}

// fakeWorker reports the homes it is given, and answers with a function.
type fakeWorker struct {
	name     string
	listener *fleet.Listener
	server   *http.Server

	mu      sync.Mutex
	state   worker.State
	changed chan struct{}
	answer  http.HandlerFunc
	got     []*http.Request
}

func run(t *testing.T, o Options, test func(w *world)) {
	synctest.Test(t, func(t *testing.T) {
		w := &world{T: t, workers: map[string]*fakeWorker{}, listener: fleet.Listen()}
		client := fleet.NewClient(w.dial)
		w.fleet = fleet.New(client, fleet.Options{})
		w.g = New(w.fleet, o)
		server := &http.Server{Handler: w.g}
		go server.Serve(w.listener)
		w.client = &http.Client{Transport: &http.Transport{DialContext: w.dial, DisableCompression: true}}
		defer func() {
			w.fleet.Sync(nil)
			w.g.Close()
			w.client.CloseIdleConnections()
			client.CloseIdleConnections()
			server.Close()
			for _, f := range w.workers {
				f.die()
			}
			time.Sleep(time.Second) // a server lingers half a second after a body that it did not read
		}()
		test(w)
	})
}

func (w *world) dial(ctx context.Context, network, address string) (net.Conn, error) {
	host, _, _ := net.SplitHostPort(address)
	if host == "gateway" {
		return w.listener.Dial(ctx, network, address)
	}
	w.mu.Lock()
	f := w.workers[host]
	w.mu.Unlock()
	if f == nil {
		return nil, &net.OpError{Op: "dial", Err: errors.New("connection refused")}
	}
	return f.listener.Dial(ctx, network, address)
}

// start starts a worker whose homes are written as "ns/m:Resident:2": phase, running.
func (w *world) start(name, homes string, answer http.HandlerFunc) *fakeWorker {
	f := &fakeWorker{name: name, listener: fleet.Listen(), changed: make(chan struct{}, 1), answer: answer}
	f.state = worker.State{Worker: name, Homes: parseHomes(homes)}
	f.server = &http.Server{Handler: f}
	go f.server.Serve(f.listener)
	w.mu.Lock()
	w.workers[name] = f
	w.mu.Unlock()
	w.sync()
	return f
}

func (w *world) sync() {
	var targets []fleet.Target
	w.mu.Lock()
	for name := range w.workers {
		targets = append(targets, fleet.Target{Worker: name, URL: "http://" + name + ":8081", Token: "token of " + name})
	}
	w.mu.Unlock()
	w.fleet.Sync(targets)
	synctest.Wait()
}

func parseHomes(text string) []worker.HomeState {
	var homes []worker.HomeState
	for _, field := range strings.Fields(text) {
		part := strings.Split(field+":0", ":")
		h := worker.HomeState{Model: part[0], Phase: worker.Phase(part[1])}
		fmt.Sscan(part[2], &h.Running)
		homes = append(homes, h)
	}
	return homes
}

// report changes what a worker reports.
func (f *fakeWorker) report(homes string) {
	f.mu.Lock()
	f.state.Homes = parseHomes(homes)
	f.mu.Unlock()
	f.changed <- struct{}{}
	synctest.Wait()
}

// die ends a worker at once, as SIGKILL would.
func (f *fakeWorker) die() {
	f.listener.Close()
	f.server.Close()
}

func (f *fakeWorker) requests() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.got)
}

func (f *fakeWorker) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path != worker.PathState {
		f.mu.Lock()
		f.got = append(f.got, r)
		answer := f.answer
		f.mu.Unlock()
		answer(w, r)
		return
	}
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		f.mu.Lock()
		line, _ := json.Marshal(f.state)
		f.mu.Unlock()
		fmt.Fprintf(w, "%s\n", line)
		http.NewResponseController(w).Flush()
		select {
		case <-r.Context().Done():
			return
		case <-f.changed:
		case <-tick.C:
		}
	}
}

// says answers with the name of a worker.
func says(name string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		fmt.Fprint(w, name)
	}
}

// fails answers with a status, before it reads the body.
func fails(status int) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(status)
		fmt.Fprintf(w, "status %d", status)
	}
}

// answered is what a client got.
type answered struct {
	status int
	header http.Header
	body   string
	err    error
}

func (w *world) post(body string) answered {
	return w.do(w.Context(), http.MethodPost, "/v1/chat/completions", body, nil)
}

func (w *world) get(path string) answered {
	return w.do(w.Context(), http.MethodGet, path, "", nil)
}

func (w *world) do(ctx context.Context, method, path, body string, header http.Header) answered {
	req, err := http.NewRequestWithContext(ctx, method, "http://gateway:80"+path, strings.NewReader(body))
	if err != nil {
		w.Fatal(err)
	}
	if header != nil {
		req.Header = header
	}
	res, err := w.client.Do(req)
	if err != nil {
		return answered{err: err}
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	return answered{res.StatusCode, res.Header, string(text), err}
}

// later sends a request that is answered into the channel.
func (w *world) later(ctx context.Context, body string) <-chan answered {
	c := make(chan answered, 1)
	go func() { c <- w.do(ctx, http.MethodPost, "/v1/chat/completions", body, nil) }()
	synctest.Wait()
	return c
}

func (w *world) models(models ...Model) {
	w.g.SetModels(models)
	synctest.Wait()
}

// wants checks the status, and an error's code and a part of its message.
func (w *world) wants(a answered, status int, code, part string) {
	w.Helper()
	if a.err != nil || a.status != status {
		w.Errorf("got status %d, %v: %s; want %d", a.status, a.err, a.body, status)
		return
	}
	if code == "" {
		if !strings.Contains(a.body, part) {
			w.Errorf("got %q, want %q in it", a.body, part)
		}
		return
	}
	var e struct {
		Error struct {
			Message, Type, Code string
			Param               *string
		}
	}
	if err := json.Unmarshal([]byte(a.body), &e); err != nil || e.Error.Type == "" {
		w.Errorf("not in OpenAI's shape: %v: %s", err, a.body)
	}
	if e.Error.Code != code || !strings.Contains(e.Error.Message, part) {
		w.Errorf("got %s, want code %q and a message with %q", a.body, code, part)
	}
	if again := a.header.Get("Retry-After") != ""; again != (status == 429 || status == 503) {
		w.Errorf("status %d with Retry-After %v", status, again)
	}
}

// demand checks what the gateway reports of the model ns/m.
func (w *world) demand(held, inFlight int) {
	w.Helper()
	synctest.Wait()
	got := worker.ModelDemand{Model: "ns/m"}
	for _, d := range w.g.State().Models {
		if d.Model == "ns/m" {
			got = d
		}
	}
	if diff := cmp.Diff(worker.ModelDemand{Model: "ns/m", Held: held, InFlight: inFlight}, got); diff != "" {
		w.Error(diff)
	}
	if n := w.g.buffered.Load(); held+inFlight == 0 && n != 0 {
		w.Errorf("%d bytes of bodies are not given back", n)
	}
}

// m is the model of most tests, ask a request for it.
var m = Model{Key: "ns/m", Names: []string{"m"}}

const ask = `{"model":"m"}`

func TestRoutes(t *testing.T) {
	run(t, Options{}, func(w *world) {
		a := w.start("a", "ns/m:Idle ns/n:Resident", says("a"))
		b := w.start("b", "ns/m:Resident:1", says("b"))
		w.start("c", "ns/m:Draining ns/n:Failed", says("c"))
		w.models(m, Model{Key: "ns/n", Names: []string{"n", "alias"}})
		w.wants(w.post(ask), 200, "", "b")
		w.wants(w.post(`{"model":"alias"}`), 200, "", "a")
		for i, path := range []string{"/v1/completions", "/v1/embeddings", "/tokenize", "/detokenize"} {
			w.wants(w.do(w.Context(), "POST", path, ask, nil), 200, "", "b")
			if got := b.got[i+1].URL.Path; got != path {
				w.Errorf("path %s, not %s", got, path)
			}
		}
		b.report("ns/m:Draining")
		w.wants(w.post(ask), 200, "", "a")
		a.report("ns/m:Resident:2")
		b.report("ns/m:Resident:1")
		w.wants(w.post(ask), 200, "", "b")
		w.demand(0, 0)
	})
}

// TestCountsItsOwn: requests since the last report count as load.
func TestCountsItsOwn(t *testing.T) {
	run(t, Options{}, func(w *world) {
		release := make(chan bool)
		slow := func(name string) http.HandlerFunc {
			return func(rw http.ResponseWriter, r *http.Request) { <-release; says(name)(rw, r) }
		}
		a := w.start("a", "ns/m:Resident:2", slow("a"))
		b := w.start("b", "ns/m:Resident:0", slow("b"))
		w.models(m)
		var answers []<-chan answered
		for range 6 {
			answers = append(answers, w.later(w.Context(), ask))
		}
		if a.requests() != 2 || b.requests() != 4 {
			w.Errorf("a got %d, b %d; want 2 and 4, on top of 2 and 0", a.requests(), b.requests())
		}
		w.demand(0, 6)
		close(release)
		for _, c := range answers {
			<-c
		}
		w.demand(0, 0)
	})
}

func TestTriesAnother(t *testing.T) {
	for name, c := range map[string]struct {
		answer http.HandlerFunc
		again  bool
	}{
		"it lacks the model": {fails(421), true},
		"it is unwell":       {fails(503), true},
		"bad gateway":        {fails(502), true},
		"no room":            {fails(429), true},
		"a bad request":      {fails(400), false},
		"an error":           {fails(500), false},
	} {
		t.Run(name, func(t *testing.T) {
			run(t, Options{}, func(w *world) {
				w.start("a", "ns/m:Resident", c.answer)
				b := w.start("b", "ns/m:Resident:5", says("b"))
				w.models(m)
				got := w.post(ask)
				if again := b.requests() == 1 && got.status == 200; again != c.again {
					w.Errorf("got %+v", got)
				}
				w.demand(0, 0)
			})
		})
	}
}

func TestPassesOnWhenThereIsNoOther(t *testing.T) {
	run(t, Options{}, func(w *world) {
		a := w.start("a", "ns/m:Resident", func(rw http.ResponseWriter, r *http.Request) {
			rw.Header().Set("Retry-After", "7")
			fails(503)(rw, r)
		})
		w.models(m)
		got := w.post(ask)
		w.wants(got, 503, "", "status 503")
		if a.requests() != 1 || got.header.Get("Retry-After") != "7" {
			w.Errorf("%d requests, %v", a.requests(), got.header)
		}
	})
}

func TestRefusedConnection(t *testing.T) {
	run(t, Options{}, func(w *world) {
		a := w.start("a", "ns/m:Resident", says("a"))
		w.start("b", "ns/m:Resident:5", says("b"))
		w.models(m)
		a.listener.Close() // the state stream stays open
		w.wants(w.post(ask), 200, "", "b")
		w.demand(0, 0)
	})
}

// TestMovesOn: the only worker is gone, and its model gets another home.
func TestMovesOn(t *testing.T) {
	run(t, Options{}, func(w *world) {
		a := w.start("a", "ns/m:Resident", says("a"))
		w.models(m)
		a.die()
		synctest.Wait()
		c := w.later(w.Context(), ask)
		w.demand(1, 0)
		b := w.start("b", "", says("b"))
		w.demand(1, 0)
		b.report("ns/m:Fetching")
		w.demand(1, 0)
		b.report("ns/m:Loading")
		w.wants(<-c, 200, "", "b")
		w.demand(0, 0)
	})
}

// TestLacksForLong: a worker that says it has a model and does not take its
// requests is asked once for each report, and not for ever.
func TestLacksForLong(t *testing.T) {
	run(t, Options{}, func(w *world) {
		a := w.start("a", "ns/m:Resident", fails(421))
		w.models(m)
		start := time.Now()
		w.wants(w.post(ask), 503, "model_unavailable", "not taken by any")
		if a.requests() != maxTries || time.Since(start) < 2*time.Second {
			w.Errorf("%d requests in %s", a.requests(), time.Since(start))
		}
	})
}

// TestNotTwice: a request that reached a worker which then died is given to no other.
func TestNotTwice(t *testing.T) {
	run(t, Options{}, func(w *world) {
		w.start("a", "ns/m:Resident", func(rw http.ResponseWriter, r *http.Request) {
			io.Copy(io.Discard, r.Body)
			panic(http.ErrAbortHandler)
		})
		b := w.start("b", "ns/m:Resident:5", says("b"))
		w.models(m)
		w.wants(w.post(ask), 502, "worker_lost", "Worker a went away before")
		if b.requests() != 0 {
			w.Error("b got it too")
		}
		w.demand(0, 0)
	})
}

func events(rw http.ResponseWriter, text string) {
	rw.Header().Set("Content-Type", "text/event-stream")
	fmt.Fprint(rw, text)
	http.NewResponseController(rw).Flush()
}

func TestStreams(t *testing.T) {
	run(t, Options{}, func(w *world) {
		next := make(chan string)
		w.start("a", "ns/m:Resident", func(rw http.ResponseWriter, r *http.Request) {
			io.Copy(io.Discard, r.Body)
			for text := range next {
				events(rw, text)
			}
		})
		w.models(m)
		req, _ := http.NewRequest("POST", "http://gateway:80/v1/completions", strings.NewReader(ask))
		var res *http.Response
		go func() { next <- "data: 1\n\n" }()
		res, err := w.client.Do(req)
		if err != nil {
			w.Fatal(err)
		}
		buf := make([]byte, 100)
		for i, want := range []string{"data: 1\n\n", "data: 2\n\n", "data: 3\r\n\r\n", "data: [DONE]\n\n"} {
			if i > 0 {
				next <- want
			}
			n, err := res.Body.Read(buf)
			if string(buf[:n]) != want || err != nil {
				w.Errorf("got %q, %v; want %q before the next is sent", buf[:n], err, want)
			}
		}
		w.demand(0, 1)
		close(next)
		if _, err := res.Body.Read(buf); err != io.EOF {
			w.Error(err)
		}
		w.demand(0, 0)
	})
}

func TestDiesWithinAStream(t *testing.T) {
	long := "data: " + strings.Repeat("x", 40<<10)
	for name, c := range map[string]struct{ sent, kept string }{
		"between events":            {"data: 1\n\ndata: 2\n\n", "data: 1\n\ndata: 2\n\n"},
		"within an event":           {"data: 1\n\ndata: {\"half", "data: 1\n\n"},
		"within the first":          {"data: {\"half", ""},
		"within an oversized event": {"data: 1\n\n" + long, "data: 1\n\n"},
	} {
		t.Run(name, func(t *testing.T) {
			run(t, Options{}, func(w *world) {
				w.start("a", "ns/m:Resident", func(rw http.ResponseWriter, r *http.Request) {
					io.Copy(io.Discard, r.Body)
					events(rw, c.sent)
					panic(http.ErrAbortHandler)
				})
				b := w.start("b", "ns/m:Resident:9", says("b"))
				w.models(m)
				got := w.post(ask)
				if got.status != 200 || got.err != nil || b.requests() != 0 {
					w.Fatalf("%+v", got)
				}
				rest, ok := strings.CutPrefix(got.body, c.kept)
				if name == "within an oversized event" {
					_, rest, _ = strings.Cut(rest, "\n\n")
				}
				data, ok2 := strings.CutPrefix(rest, "data: ")
				if !ok || !ok2 || !strings.HasSuffix(data, "\n\n") {
					w.Fatalf("got %q", got.body)
				}
				var e struct {
					Error struct{ Code, Message string }
				}
				if err := json.Unmarshal([]byte(data), &e); err != nil || e.Error.Code != "worker_lost" {
					w.Errorf("%v: %q", err, data)
				}
				w.demand(0, 0)
			})
		})
	}
}

func TestDiesWithinABody(t *testing.T) {
	run(t, Options{}, func(w *world) {
		w.start("a", "ns/m:Resident", func(rw http.ResponseWriter, r *http.Request) {
			io.Copy(io.Discard, r.Body)
			rw.Header().Set("Content-Length", "1000")
			fmt.Fprint(rw, "half")
			http.NewResponseController(rw).Flush()
			panic(http.ErrAbortHandler)
		})
		w.models(m)
		if got := w.post(ask); got.err == nil {
			w.Errorf("the client cannot see that it is cut: %+v", got)
		}
		w.demand(0, 0)
		if text := w.get("/metrics").body; !strings.Contains(text, `estiba_gateway_requests_total{code="502",model="ns/m"} 1`) {
			w.Error(text)
		}
	})
}

func TestHolds(t *testing.T) {
	run(t, Options{MaxHeld: 3, HoldTimeout: time.Minute}, func(w *world) {
		spec := m
		spec.Reason, spec.Message = "WaitingForWorker", "Pool p has no ready worker yet; 1 is starting."
		w.models(spec)
		gone, leave := context.WithCancel(w.Context())
		left := w.later(gone, ask)
		time.Sleep(time.Second)
		second := w.later(w.Context(), `{"model":"m","n":2}`)
		third := w.later(w.Context(), `{"model":"m","n":3}`)
		w.demand(3, 0)
		w.wants(w.post(ask), 429, "too_many_held", "3 requests wait")

		// A client that leaves frees its place.
		leave()
		if a := <-left; a.err == nil {
			w.Error(a)
		}
		w.demand(2, 0)
		fourth := w.later(w.Context(), `{"model":"m","n":4}`)
		w.demand(3, 0)

		// They go in the order in which they came.
		var mu sync.Mutex
		var order []string
		a := w.start("a", "", func(rw http.ResponseWriter, r *http.Request) {
			body, _ := io.ReadAll(r.Body)
			mu.Lock()
			order = append(order, string(body))
			mu.Unlock()
		})
		w.demand(3, 0)
		a.report("ns/m:Idle")
		for _, c := range []<-chan answered{second, third, fourth} {
			w.wants(<-c, 200, "", "")
		}
		w.demand(0, 0)
		if len(order) != 3 {
			w.Error(order)
		}

		// Nobody takes it: the reason is what its condition says.
		a.report("ns/m:Refused")
		start := time.Now()
		w.wants(w.post(ask), 503, "model_unavailable", "within 1m0s. WaitingForWorker: Pool p has no ready")
		if d := time.Since(start); d != time.Minute {
			w.Errorf("held for %s", d)
		}
		w.demand(0, 0)
	})
}

// TestLetGo: first come, first served, and one that waits for another worker does not keep the rest.
func TestLetGo(t *testing.T) {
	now := time.Now()
	g := &Gateway{}
	model := &model{homes: []home{{worker: "a", ready: 3, connected: true, seen: now, since: new(int)}}}
	var waiters []*waiter
	for i := range 4 {
		w := &waiter{tried: &tries{}, let: make(chan *home, 1)}
		if i == 1 {
			w.tried.add("a", now)
		}
		waiters = append(waiters, w)
	}
	model.held = append(model.held, waiters...)
	g.letGo(model)
	if len(model.held) != 1 || model.held[0] != waiters[1] || model.inFlight != 3 || *model.homes[0].since != 3 {
		t.Errorf("%d held, %d in flight", len(model.held), model.inFlight)
	}
	model.homes[0].seen = now.Add(1)
	g.letGo(model)
	if len(model.held) != 0 || <-waiters[1].let == nil {
		t.Error("a report lets it be tried again")
	}
}

func TestRefusesAtOnce(t *testing.T) {
	run(t, Options{}, func(w *world) {
		w.start("a", "ns/m:Resident ns/s:Resident", says("a"))
		stalled := Model{Key: "ns/x", Names: []string{"x"}, Stalled: true, Reason: "InvalidModel", Message: "model.safetensors is cut short."}
		serves := Model{Key: "ns/m", Names: []string{"m"}, Stalled: true, Reason: "NameConflict"}
		suspended := Model{Key: "ns/s", Names: []string{"s"}, Suspended: true, Reason: "Suspended", Message: "Set spec.suspend to false."}
		held := Model{Key: "ns/h", Names: []string{"h"}}
		removed, large, lost := Model{Key: "ns/r", Names: []string{"r"}}, Model{Key: "ns/l", Names: []string{"l"}}, Model{Key: "ns/u", Names: []string{"u"}}
		w.models(stalled, serves, suspended, held, removed, large, lost)
		w.wants(w.post(`{"model":"x"}`), 503, "model_unavailable", "InvalidModel: model.safetensors")
		w.wants(w.post(`{"model":"s"}`), 503, "model_unavailable", "is suspended. Suspended: Set")
		w.wants(w.post(`{"model":"m"}`), 200, "", "a")

		// Those that are held are told as soon as it is known.
		one, two := w.later(w.Context(), `{"model":"h"}`), w.later(w.Context(), `{"model":"r"}`)
		three, four := w.later(w.Context(), `{"model":"l"}`), w.later(w.Context(), `{"model":"u"}`)
		held.Suspended = true
		large.Stalled, large.Reason, large.Message = true, "DoesNotFit", "Needs 100 GiB; the largest device of its pools has 80 GiB."
		lost.Reason, lost.Message = "SourceUnavailable", "The files cannot be read."
		w.models(stalled, serves, suspended, held, large, lost)
		w.wants(<-one, 503, "model_unavailable", "is suspended")
		w.wants(<-two, 404, "model_not_found", "removed")
		w.wants(<-three, 503, "model_unavailable", "DoesNotFit: Needs 100 GiB; the largest device of its pools has 80 GiB.")
		w.wants(<-four, 503, "model_unavailable", "SourceUnavailable: The files cannot be read.")
	})
}

func TestBadRequests(t *testing.T) {
	run(t, Options{}, func(w *world) {
		a := w.start("a", "ns/m:Resident", says("a"))
		w.wants(w.post(ask), 404, "model_not_found", "There are no models yet.")
		w.models(m, Model{Key: "ns/n", Names: []string{"n"}})
		w.wants(w.post(`{"model":`), 400, "invalid_body", "not a JSON object")
		w.wants(w.post(``), 400, "invalid_body", "not a JSON object")
		w.wants(w.post(`{"messages":[]}`), 400, "invalid_body", "names no model")
		w.wants(w.post(`{"model":["m"]}`), 400, "invalid_body", "must be a string")
		w.wants(w.post(`{"model":"gpt-4"}`), 404, "model_not_found", `"gpt-4" does not exist. There are: m, n.`)
		w.wants(w.post(`{"model":"`+strings.Repeat("x", 1<<20)+`"}`), 404, "model_not_found", "xxx...")
		w.wants(w.get("/v1/chat/completions"), 405, "method_not_allowed", "takes POST")
		w.wants(w.get("/v1/nothing"), 404, "not_found", "There is no GET /v1/nothing")
		w.wants(w.get("//v1/completions"), 404, "not_found", "There is no GET //v1/completions")
		w.wants(w.get("/v1/./models/"), 404, "not_found", "There is no")
		form := http.Header{"Content-Type": {"application/x-www-form-urlencoded"}}
		w.wants(w.do(w.Context(), http.MethodPost, "/v1/completions", ask, form), 415, "unsupported_media_type", "Content-Type: application/json")
		page := http.Header{"Origin": {"http://elsewhere"}}
		w.wants(w.do(w.Context(), http.MethodPost, "/v1/completions", ask, page), 415, "unsupported_media_type", "is not JSON")
		w.wants(w.post(`{"model":"m","x":"`+strings.Repeat("x", 10<<20)+`"}`), 413, "request_too_large", "8 MiB")
		w.wants(w.post(`{"model":"m","x":"`+strings.Repeat("x", 7<<20)+`"}`), 200, "", "a")
		if a.requests() != 1 {
			w.Errorf("the worker got %d", a.requests())
		}
		// A body of unknown length.
		req, _ := http.NewRequest("POST", "http://gateway:80/v1/completions", io.MultiReader(strings.NewReader(`{"x":"`), strings.NewReader(strings.Repeat("x", 9<<20))))
		res, err := w.client.Do(req)
		if err != nil || res.StatusCode != 413 {
			w.Errorf("%v, %v", res, err)
		} else {
			res.Body.Close()
		}
		w.demand(0, 0)
		if text := w.get("/metrics").body; strings.Contains(text, "gpt-4") || !strings.Contains(text, `estiba_gateway_requests_total{code="404",model=""} 3`) {
			w.Error(text)
		}
	})
}

// TestSlowBody: a client that sends no end of its body does not stay for ever.
func TestSlowBody(t *testing.T) {
	run(t, Options{}, func(w *world) {
		w.models(m)
		r, wr := io.Pipe()
		go wr.Write([]byte(`{"model":`))
		req, _ := http.NewRequest("POST", "http://gateway:80/v1/completions", r)
		res, err := w.client.Do(req)
		if err != nil || res.StatusCode != 408 {
			w.Errorf("%v, %v", res, err)
		} else {
			res.Body.Close()
		}
		wr.Close()
		w.demand(0, 0)
	})
}

func TestClientLeaves(t *testing.T) {
	run(t, Options{}, func(w *world) {
		ended := make(chan error, 1)
		w.start("a", "ns/m:Resident", func(rw http.ResponseWriter, r *http.Request) {
			io.Copy(io.Discard, r.Body)
			events(rw, "data: 1\n\n")
			<-r.Context().Done()
			ended <- r.Context().Err()
		})
		b := w.start("b", "ns/m:Resident:9", says("b"))
		w.models(m)
		ctx, leave := context.WithCancel(w.Context())
		c := w.later(ctx, ask)
		w.demand(0, 1)
		leave()
		<-c
		if err := <-ended; err == nil || b.requests() != 0 {
			w.Error(err)
		}
		w.demand(0, 0)
		if text := w.get("/metrics").body; !strings.Contains(text, `estiba_gateway_requests_total{code="499",model="ns/m"} 1`) {
			w.Error(text)
		}
	})
}

// TestClientReadsNothing: such a client does not hold its model for ever.
func TestClientReadsNothing(t *testing.T) {
	for name, answer := range map[string]http.HandlerFunc{
		"a body": func(rw http.ResponseWriter, _ *http.Request) { rw.Write(make([]byte, 1<<20)) },
		"events": func(rw http.ResponseWriter, _ *http.Request) { events(rw, strings.Repeat("data: 1\n\n", 1<<16)) },
	} {
		t.Run(name, func(t *testing.T) {
			run(t, Options{}, func(w *world) {
				w.start("a", "ns/m:Resident", answer)
				w.models(m)
				conn, err := w.dial(w.Context(), "tcp", "gateway:80")
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
				fmt.Fprintf(conn, "POST /v1/completions HTTP/1.1\r\nHost: gateway\r\nContent-Length: %d\r\n\r\n%s", len(ask), ask)
				w.demand(0, 1)
				time.Sleep(unreadTimeout)
				w.demand(0, 0)
			})
		})
	}
}

func TestHeaders(t *testing.T) {
	run(t, Options{TenantHeader: "X-Who"}, func(w *world) {
		a := w.start("a", "ns/m:Resident", func(rw http.ResponseWriter, r *http.Request) {
			rw.Header().Set("Estiba-Secret", "x")
			rw.Header().Set("X-Request-Id", "of the worker")
			rw.Header().Set("X-Else", "y")
			says("a")(rw, r)
		})
		w.models(m)
		got := w.do(w.Context(), "POST", "/v1/completions?x=1", ask, http.Header{
			"Authorization": {"Bearer client"}, "Estiba-Model": {"ns/other"}, "Estiba-Else": {"x"}, "Estiba-Tenant": {"forged"}, "X-Who": {"team"},
			"Connection": {"X-Hop"}, "X-Hop": {"x"}, "Te": {"trailers"}, "X-Request-Id": {"id-1"},
			"Accept-Encoding": {"gzip"}, "X-Mine": {"m"}, "Content-Type": {"application/json"},
		})
		w.wants(got, 200, "", "a")
		want := http.Header{
			"Authorization": {"Bearer token of a"}, "Estiba-Model": {"ns/m"}, "X-Request-Id": {"id-1"},
			"Estiba-Tenant": {"team"}, "X-Who": {"team"},
			"X-Mine": {"m"}, "Content-Type": {"application/json"}, "Content-Length": {"13"},
			"User-Agent": {"Go-http-client/1.1"},
		}
		if diff := cmp.Diff(want, a.got[0].Header); diff != "" {
			w.Error(diff)
		}
		if a.got[0].URL.RawQuery != "x=1" {
			w.Errorf("query %q", a.got[0].URL.RawQuery)
		}
		if h := got.header; h.Get("X-Request-Id") != "id-1" || h.Get("X-Else") != "y" || h.Get("Estiba-Secret") != "" || len(h["X-Request-Id"]) != 1 {
			w.Error(h)
		}
		// Without one, or with one that is unfit for a log, it is made up.
		for _, id := range []string{"", "two words", strings.Repeat("x", 200)} {
			got := w.do(w.Context(), "POST", "/v1/completions", ask, http.Header{"X-Request-Id": {id}})
			if made := got.header.Get("X-Request-Id"); len(made) != 26 || made == id {
				w.Errorf("%q became %q", id, made)
			}
		}
		if w.post("{").header.Get("X-Request-Id") == "" {
			w.Error("an error has none")
		}
	})
}

func TestModels(t *testing.T) {
	run(t, Options{}, func(w *world) {
		w.wants(w.get("/v1/models"), 200, "", `{"object":"list","data":[]}`)
		older := Model{Key: "b/y", Names: []string{"y", "shared"}, Created: time.Unix(100, 0)}
		newer := Model{Key: "a/x", Names: []string{"x", "shared", "org/x"}, Created: time.Unix(200, 0)}
		w.models(newer, older)
		w.wants(w.get("/v1/models"), 200, "", `{"object":"list","data":[`+
			`{"id":"org/x","object":"model","created":200,"owned_by":"a"},`+
			`{"id":"shared","object":"model","created":100,"owned_by":"b"},`+
			`{"id":"x","object":"model","created":200,"owned_by":"a"},`+
			`{"id":"y","object":"model","created":100,"owned_by":"b"}]}`)
		w.wants(w.get("/v1/models/org/x"), 200, "", `{"id":"org/x",`)
		w.wants(w.get("/v1/models/z"), 404, "model_not_found", "There are: org/x, shared, x, y.")
		w.models(newer)
		w.wants(w.get("/v1/models/shared"), 200, "", `"owned_by":"a"`)
	})
}

func TestReady(t *testing.T) {
	run(t, Options{}, func(w *world) {
		w.wants(w.get("/healthz"), 200, "", "ok")
		w.wants(w.get("/readyz"), 503, "", "models are not known")
		w.fleet.Sync([]fleet.Target{{Worker: "gone", URL: "http://gone:1"}})
		w.models()
		synctest.Wait()
		w.wants(w.get("/readyz"), 200, "", "ok") // it could not be reached: that is known, too
		w.g.Drain()
		w.wants(w.get("/readyz"), 503, "", "shutting down")
	})
	run(t, Options{}, func(w *world) {
		hangs := &fakeWorker{name: "a", listener: fleet.Listen()}
		hangs.server = &http.Server{Handler: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) { <-r.Context().Done() })}
		go hangs.server.Serve(hangs.listener)
		w.workers["a"] = hangs
		w.sync()
		w.models()
		w.wants(w.get("/readyz"), 503, "", "not every worker")
		time.Sleep(7 * time.Second)
		w.wants(w.get("/readyz"), 200, "", "ok")
	})
}

// TestOperatorAbsent: a gateway needs nobody to keep what it knows.
func TestOperatorAbsent(t *testing.T) {
	run(t, Options{}, func(w *world) {
		a := w.start("a", "ns/m:Idle", says("a"))
		w.models(m)
		time.Sleep(24 * time.Hour)
		w.wants(w.post(ask), 200, "", "a")
		a.report("ns/m:Resident")
		w.wants(w.post(ask), 200, "", "a")
	})
}

func TestReport(t *testing.T) {
	run(t, Options{Name: "g0", Token: func() string { return "secret" }}, func(w *world) {
		w.models(m)
		w.wants(w.get(worker.PathGatewayState), 401, "", "token")
		gateways := fleet.NewGateways(fleet.NewClient(w.dial), fleet.Options{})
		gateways.Sync([]fleet.Target{{Worker: "g0", URL: "http://gateway:80", Token: "secret"}})
		defer gateways.Sync(nil)
		synctest.Wait()
		if r := gateways.Reports(); len(r) != 1 || len(r[0].Models) != 0 || r[0].Instance == "" {
			w.Errorf("%+v", r)
		}
		ctx, leave := context.WithCancel(w.Context())
		c := w.later(ctx, ask)
		time.Sleep(reportLeast)
		synctest.Wait()
		if diff := cmp.Diff([]worker.ModelDemand{{Model: "ns/m", Held: 1}}, gateways.Reports()[0].Models); diff != "" {
			w.Error(diff)
		}
		leave()
		<-c
		time.Sleep(time.Minute)
		if r := gateways.Reports(); len(r) != 1 || len(r[0].Models) != 0 {
			w.Errorf("%+v", r)
		}
		got := w.do(w.Context(), "GET", worker.PathGatewayState, "", http.Header{"Authorization": {"Bearer secret"}})
		w.wants(got, 200, "", `"gateway":"g0"`)
	})
}

func TestMetrics(t *testing.T) {
	run(t, Options{}, func(w *world) {
		w.start("a", "ns/m:Resident", says("a"))
		w.models(m, Model{Key: "ns/h", Names: []string{"h"}})
		w.post(ask)
		ctx, leave := context.WithCancel(w.Context())
		c := w.later(ctx, `{"model":"h"}`)
		text := w.get("/metrics").body
		for _, line := range []string{
			`estiba_gateway_requests_total{code="200",model="ns/m"} 1`,
			`estiba_gateway_request_duration_seconds_count{model="ns/m"} 1`,
			`estiba_gateway_held_requests{model="ns/h"} 1`,
			`estiba_gateway_in_flight_requests{model="ns/m"} 0`,
			`estiba_gateway_retries_total 0`,
			`# TYPE estiba_gateway_buffered_bytes gauge`,
		} {
			if !strings.Contains(text, line+"\n") {
				w.Errorf("no %s in\n%s", line, text)
			}
		}
		leave()
		<-c
		w.models(Model{Key: "ns/h", Names: []string{"h"}})
		if text := w.get("/metrics").body; strings.Contains(text, "ns/m") {
			w.Errorf("series of a removed model stay:\n%s", text)
		}
	})
}

// TestHeldBytes: requests for a model that is down leave room for the others.
func TestHeldBytes(t *testing.T) {
	run(t, Options{}, func(w *world) {
		w.start("a", "ns/m:Resident", says("a"))
		w.models(m, Model{Key: "ns/down", Names: []string{"down"}})
		long := `{"model":"down","x":"` + strings.Repeat("x", 7<<20) + `"}`
		for range maxHeldBytes / (7 << 20) {
			go w.post(long)
			synctest.Wait()
		}
		w.wants(w.post(long), 429, "too_many_held", "MiB already")
		w.wants(w.post(ask), 200, "", "a")
	})
}

// TestEnd: what is left when a gateway ends gets an error that says so.
func TestEnd(t *testing.T) {
	for _, c := range []struct {
		answer http.HandlerFunc
		status int
		says   string
	}{
		{func(w http.ResponseWriter, r *http.Request) {
			io.Copy(io.Discard, r.Body)
			w.Header().Set("Content-Type", "text/event-stream")
			fmt.Fprint(w, "data: one\n\n")
			http.NewResponseController(w).Flush()
			<-r.Context().Done()
		}, 200, "data: one\n\ndata: {\"error\":"},
		{func(w http.ResponseWriter, r *http.Request) {
			io.Copy(io.Discard, r.Body)
			<-r.Context().Done()
		}, 503, "shutting_down"},
	} {
		run(t, Options{}, func(w *world) {
			w.start("a", "ns/m:Resident", c.answer)
			w.models(m, Model{Key: "ns/down", Names: []string{"down"}})
			running, held := make(chan answered, 1), make(chan answered, 1)
			go func() { running <- w.post(ask) }()
			go func() { held <- w.post(`{"model":"down"}`) }()
			synctest.Wait()
			w.g.Close()
			w.wants(<-running, c.status, "", c.says)
			w.wants(<-held, 503, "shutting_down", "gateway ends")
		})
	}
}

// TestFullNames: a Model whose name an older one of another namespace has is
// listed, and reached, by its full name; so is every other.
func TestFullNames(t *testing.T) {
	run(t, Options{}, func(w *world) {
		w.start("a", "one/m:Resident", says("one"))
		w.start("b", "two/m:Resident", says("two"))
		old, young := time.Unix(1, 0), time.Unix(2, 0)
		w.models(Model{Key: "one/m", Names: []string{"m"}, Created: old}, Model{Key: "two/m", Names: []string{"m"}, Created: young})
		for name, want := range map[string]string{"m": "one", "one/m": "one", "two/m": "two"} {
			w.wants(w.post(`{"model":"`+name+`"}`), 200, "", want)
		}
		w.wants(w.get("/v1/models"), 200, "", `"two/m"`)
	})
}

// TestNoMemory: bodies beyond the bound are refused, and it recovers.
func TestNoMemory(t *testing.T) {
	run(t, Options{}, func(w *world) {
		w.start("a", "ns/m:Resident", says("a"))
		w.models(m)
		w.g.buffered.Add(maxBuffered)
		w.wants(w.post(`{"model":"m","x":"`+strings.Repeat("x", 1<<20)+`"}`), 503, "overloaded", "no memory")
		w.g.buffered.Add(-maxBuffered)
		w.wants(w.post(ask), 200, "", "a")
	})
}
