package worker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	api "github.com/estiba/estiba/api/worker"
	"github.com/estiba/estiba/internal/fixture"
	kernels "github.com/estiba/estiba/kernels/cpu"
	"github.com/estiba/estiba/runtime/device"
	"github.com/estiba/estiba/runtime/engine"
	"github.com/estiba/estiba/runtime/model"
	"github.com/estiba/estiba/runtime/residency"
	"github.com/estiba/estiba/runtime/sampling"
)

// soak is a worker with two models and an encoder on one device that has too little room
// for all that is asked of them, and a model that comes and goes.
type soak struct {
	t *testing.T
	w *Worker

	encoder string // its files
	exact   bool   // nothing in an answer depends on what shares its steps
	pool    []asked

	answered, cancelled, refused, full, embedded atomic.Int64
}

// asked is a request with its answer, which it gave alone.
type asked struct {
	model     string
	r         engine.Request
	ids       []int32
	embedding []float32
}

const soakExtent = 64 << 10

// TestSoak keeps a worker busy with everything at once, for a few seconds or as long as
// ESTIBA_SOAK says (make soak: five minutes): texts of all lengths, greedy and sampled,
// embeddings, the same prompt many times, requests that are given up, bad ones, and a
// model that is loaded and taken off meanwhile. Every answer is the one that it gave
// alone, and in the end nothing is left of it: no KV block, no goroutine, no memory.
func TestSoak(t *testing.T) {
	t.Run("plain Go", func(t *testing.T) {
		t.Setenv(kernels.PathVariable, kernels.PlainGo.String())
		soakFor(t, true)
	})
	// There activations of models in halves are rounded where many share a step, so that theirs are alike only.
	t.Run("the fastest path", func(t *testing.T) { soakFor(t, false) })
}

func soakFor(t *testing.T, exact bool) {
	length := 4 * time.Second
	if text := os.Getenv("ESTIBA_SOAK"); text != "" {
		var err error
		if length, err = time.ParseDuration(text); err != nil {
			t.Fatal(err)
		}
	}
	before := runtime.NumGoroutine()
	s := &soak{t: t, exact: exact, encoder: fixture.Encoder(t, t.TempDir())}
	w, err := New(Options{
		Name: "w0", Pool: "default/cpu", Log: slog.New(slog.DiscardHandler), Drain: time.Minute,
		Devices: []device.Device{{Name: "cpu-0", Kind: "cpu", Extent: soakExtent, Capacity: s.needs()}},
		Fetch:   func(_ context.Context, src api.Source, _ func(float64)) (string, error) { return src.URI, nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ran := make(chan error, 1)
	go func() { ran <- w.Run(ctx) }()
	s.w = w
	s.assign(false)
	s.reference()

	began := time.Now()
	over := func() bool { // on a slow machine it takes until enough has happened
		took := time.Since(began)
		return t.Failed() || took > length && (s.enough() || took > length+2*time.Minute)
	}
	var clients sync.WaitGroup
	for i := range 12 {
		r := rand.New(rand.NewPCG(uint64(i), uint64(time.Now().UnixNano())))
		clients.Go(func() {
			for !over() {
				s.client(r)
			}
		})
	}
	clients.Go(func() { // a model comes and goes
		for on := true; !over(); on = !on {
			s.assign(on)
			time.Sleep(min(length/10, 2*time.Second))
			s.account()
		}
	})
	time.Sleep(length / 3)
	early := heap()
	clients.Wait()
	s.assign(false)
	s.idle()
	late := heap()
	t.Logf("%d texts and %d embeddings answered, %d given up, %d refused, %d times the queue was full, %d preempted, %d loads; heap %d KiB, then %d KiB",
		s.answered.Load(), s.embedded.Load(), s.cancelled.Load(), s.refused.Load(), s.full.Load(), s.preempted(), s.loads(), early>>10, late>>10)
	if !s.enough() {
		t.Error("too little happened")
	}
	if late > early+4<<20 {
		t.Errorf("the heap grew from %d to %d bytes", early, late)
	}
	generation++
	if r := w.Assign(api.Assignment{Epoch: 1, Generation: generation, Instance: w.instance}); r != nil {
		t.Fatalf("%+v", r)
	}
	s.eventually("the models stay on the device", func() bool {
		state := w.State()
		return len(state.Homes) == 0 && state.Devices[0].UsedBytes == 0
	})
	cancel()
	if err := <-ran; err != nil {
		t.Error(err)
	}
	s.eventually("goroutines are left", func() bool { return runtime.NumGoroutine() <= before })
}

func (s *soak) enough() bool {
	return s.answered.Load() > 50 && s.embedded.Load() > 20 && s.cancelled.Load() > 5 && s.refused.Load() > 5 && s.preempted() > 0 && s.loads() > 5
}

// heap in use, once the collector has been.
func heap() uint64 {
	runtime.GC()
	runtime.GC() // what finalizers held
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

func (s *soak) eventually(what string, is func() bool) {
	s.t.Helper()
	for range 1000 {
		if is() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	stacks := make([]byte, 1<<20)
	s.t.Errorf("%s: %+v\n%s", what, s.w.State(), stacks[:runtime.Stack(stacks, true)])
}

// homes of the models, and perhaps of a further one.
func (s *soak) homes(further bool) (homes []api.Home) {
	home := func(name, path string) {
		homes = append(homes, api.Home{
			Model: name, Source: api.Source{URI: path}, Devices: []string{"cpu-0"}, Resident: true, Context: api.Context{MaxTokens: 300, Sequences: 1},
		})
	}
	home("ns/a", fixture.Model("stories260K/hf-f32"))
	home("ns/b", fixture.Model("stories260K/stories260K-f16.gguf"))
	home("ns/e", s.encoder)
	if further {
		home("ns/c", fixture.Model("stories260K/hf-f32"))
	}
	return homes
}

// needs is the memory that all of them take, and no more.
func (s *soak) needs() (bytes int64) {
	for _, h := range s.homes(true) {
		header, err := model.Inspect(h.Source.URI)
		if err != nil {
			s.t.Fatal(err)
		}
		c, _ := residency.Clamp(h.Context, header.Config.MaxPositions)
		f, err := estimate(anyBackend(), header, c, soakExtent)
		if err != nil {
			s.t.Fatal(err)
		}
		bytes += f.Total()
	}
	return bytes
}

func (s *soak) assign(further bool) {
	generation++
	if r := s.w.Assign(api.Assignment{Epoch: 1, Generation: generation, Instance: s.w.instance, Homes: s.homes(further)}); r != nil {
		s.t.Errorf("%+v", r)
	}
}

// reference makes requests and asks for each alone.
func (s *soak) reference() {
	r := rand.New(rand.NewPCG(1, 2))
	start := make([]int32, 200) // many begin with it
	for i := range start {
		start[i] = int32(260 + r.IntN(200))
	}
	for i := range 48 {
		q := asked{model: []string{"ns/a", "ns/b"}[i%2]}
		n := []int{2, 20, 60, 200}[r.IntN(4)]
		q.r.Prompt = append(q.r.Prompt, 1)
		for at := range n {
			id := int32(260 + r.IntN(200))
			if i%3 == 0 && at < len(start) {
				id = start[at]
			}
			q.r.Prompt = append(q.r.Prompt, id)
		}
		q.r.MaxTokens, q.r.IgnoreStop = 1+r.IntN(60), i%4 == 0
		switch {
		case i%6 == 5:
			q.model = "ns/e"
			q.r = engine.Request{Pooling: []engine.Pooling{engine.Mean, engine.CLS, engine.Last}[r.IntN(3)]}
			for range 1 + r.IntN(20) {
				q.r.Prompt = append(q.r.Prompt, r.Int32N(30))
			}
		case i%8 == 7:
			q.r.Pooling = []engine.Pooling{engine.Mean, engine.CLS, engine.Last}[r.IntN(3)]
		case i%2 == 1:
			q.r.Sampling = sampling.Params{Temperature: 0.9, TopP: 0.95, Seed: uint64(i)}
		}
		q.r.Tenant = fmt.Sprint("tenant ", i%3)
		var err error
		if q.ids, q.embedding, err = s.ask(context.Background(), q, -1); err != nil {
			s.t.Fatalf("request %d alone: %v", i, err)
		}
		s.pool = append(s.pool, q)
	}
}

var errGivenUp = errors.New("given up")

// ask gives the answer to a request, of which only so many tokens are wanted; -1: all.
func (s *soak) ask(ctx context.Context, q asked, most int) (ids []int32, embedding []float32, err error) {
	l, release, err := s.w.Use(ctx, q.model)
	if err != nil {
		return nil, nil, err
	}
	defer release()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	q.r.Replica = l.Replica
	events, err := l.Engine.Submit(ctx, q.r)
	if err != nil {
		return nil, nil, err
	}
	if most == 0 {
		return nil, nil, errGivenUp
	}
	for ev := range events {
		switch {
		case ev.Err != nil:
			return ids, nil, ev.Err
		case ev.Finish != "":
			return ids, ev.Embedding, nil
		}
		if ids = append(ids, ev.Token.ID); len(ids) == most {
			return ids, nil, errGivenUp
		}
	}
	return ids, nil, ctx.Err()
}

// client does one thing that a client may do.
func (s *soak) client(r *rand.Rand) {
	ctx := context.Background()
	q := s.pool[r.IntN(len(s.pool))]
	switch r.IntN(10) {
	case 0: // a bad one
		bad := []func(*asked){
			func(q *asked) { q.r.Prompt = nil },
			func(q *asked) { q.r.Prompt = []int32{1 << 20} },
			func(q *asked) { q.r.Prompt = make([]int32, 5000) },
			func(q *asked) { q.model, q.r.Pooling = "ns/e", engine.NoPooling },
			func(q *asked) { q.model = "ns/unknown" },
		}
		bad[r.IntN(len(bad))](&q)
		if _, _, err := s.ask(ctx, q, -1); err == nil {
			s.t.Errorf("a bad request was answered: %+v", q)
		}
		s.refused.Add(1)
		return
	case 1, 2: // given up
		if _, _, err := s.ask(ctx, q, r.IntN(8)); errors.Is(err, errGivenUp) {
			s.cancelled.Add(1)
		}
		return
	case 3: // the same several times at once
		var group sync.WaitGroup
		for range 4 {
			group.Go(func() { s.check(ctx, q) })
		}
		group.Wait()
		return
	}
	s.check(ctx, q)
}

// check asks for an answer and compares it with the one that was given alone.
func (s *soak) check(ctx context.Context, q asked) {
	ids, embedding, err := s.ask(ctx, q, -1)
	switch {
	case errors.Is(err, engine.ErrQueueFull):
		s.full.Add(1)
	case err != nil:
		s.t.Errorf("%s: %v", q.model, err)
	case !slices.Equal(ids, q.ids) && (s.exact || q.model == "ns/a"):
		s.t.Errorf("%s: %v, alone %v", q.model, ids, q.ids)
	case !s.exact && q.model == "ns/b" && len(embedding) > 0 && len(embedding) == len(q.embedding) && kernels.Dot(embedding, q.embedding) > 0.999:
		s.embedded.Add(1)
	case !slices.Equal(embedding, q.embedding):
		s.t.Errorf("%s: embedding %v, alone %v", q.model, embedding, q.embedding)
	case embedding != nil:
		s.embedded.Add(1)
	default:
		s.answered.Add(1)
	}
}

// account checks what a worker reports at any time.
func (s *soak) account() {
	state := s.w.State()
	d := state.Devices[0]
	if d.UsedBytes < 0 || d.UsedBytes > d.CapacityBytes {
		s.t.Errorf("%d of %d bytes used", d.UsedBytes, d.CapacityBytes)
	}
	for _, h := range state.Homes {
		if h.KVUsed > h.KVBlocks || h.KVUsed < 0 {
			s.t.Errorf("%s uses %d of %d blocks", h.Model, h.KVUsed, h.KVBlocks)
		}
	}
}

// idle waits until nothing of any request is left.
func (s *soak) idle() {
	s.eventually("something is left of requests", func() bool {
		for _, h := range s.w.State().Homes {
			if h.KVUsed != 0 || h.Running != 0 || h.Waiting != 0 {
				return false
			}
		}
		return true
	})
}

func (s *soak) preempted() (n int64) {
	for _, c := range s.w.Counters() {
		n += c.Preempted
	}
	return n
}

func (s *soak) loads() (n int64) {
	for _, c := range s.w.Counters() {
		n += c.Loads
	}
	return n
}
