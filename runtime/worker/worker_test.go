package worker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	api "github.com/estiba/estiba/api/worker"
	"github.com/estiba/estiba/runtime/arch"
	"github.com/estiba/estiba/runtime/backend"
	"github.com/estiba/estiba/runtime/backend/cpu"
	"github.com/estiba/estiba/runtime/batching"
	"github.com/estiba/estiba/runtime/device"
	"github.com/estiba/estiba/runtime/engine"
	"github.com/estiba/estiba/runtime/graph"
	"github.com/estiba/estiba/runtime/model"
	"github.com/estiba/estiba/runtime/residency"
	"github.com/estiba/estiba/runtime/tensor"
)

const mib = 1 << 20

// anyBackend holds weights as those of the tests' workers do.
func anyBackend() backend.Backend {
	b, err := cpu.New("cpu-0", cpu.Options{Threads: 1})
	if err != nil {
		panic(err)
	}
	return b
}

// world stands for disks and devices: models named by their source's URI, with
// a size, and what goes wrong with them. It watches what is on the device.
type world struct {
	t        testing.TB
	capacity int64

	mu        sync.Mutex
	size      map[string]int64 // model's path -> bytes
	measured  map[string]int64 // ... that it really takes, where that differs
	fetchErr  map[string]error
	loadErr   map[string]error
	panics    map[string]bool
	stepErr   map[string]error // of each step
	fetchTime time.Duration
	loadTime  time.Duration
	stepTime  time.Duration
	fetched   int // paths that have not been released
	used      int64
	loads     map[string]int
	closed    int
}

func newWorld(t testing.TB) *world {
	return &world{
		t: t, capacity: 10 * mib, size: map[string]int64{}, measured: map[string]int64{}, fetchErr: map[string]error{}, loadErr: map[string]error{},
		panics: map[string]bool{}, stepErr: map[string]error{}, fetchTime: 10 * time.Millisecond, loadTime: 100 * time.Millisecond, stepTime: 10 * time.Millisecond, loads: map[string]int{},
	}
}

// worker starts a worker in the world; it ends with the test's bubble.
func (o *world) worker(t testing.TB, change func(*Options)) (*Worker, func()) {
	options := Options{
		Name: "w0", Pool: "default/cpu", Version: "test", Drain: 10 * time.Second,
		Devices: []device.Device{{Name: "cpu-0", Kind: "cpu", Extent: 64 << 10, Capacity: o.capacity}},
		Fetch:   o.fetch, Release: o.release, Log: slog.New(slog.DiscardHandler),
	}
	if change != nil {
		change(&options)
	}
	w, err := New(options)
	if err != nil {
		t.Fatal(err)
	}
	w.inspect, w.load = o.inspect, o.load
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	return w, func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		o.mu.Lock()
		defer o.mu.Unlock()
		if o.used != 0 || o.fetched != 0 {
			t.Errorf("the worker has ended, and %d bytes are on the device, %d paths are held", o.used, o.fetched)
		}
	}
}

func (o *world) fetch(ctx context.Context, src api.Source, progress func(float64)) (string, error) {
	progress(0.5)
	select {
	case <-time.After(o.fetchTime):
	case <-ctx.Done():
		return "", ctx.Err()
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if err := o.fetchErr[src.URI]; err != nil {
		return "", err
	}
	o.fetched++
	return src.URI, nil
}

func (o *world) release(string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.fetched--
}

func (o *world) inspect(path string) (model.Header, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	n, ok := o.size[path]
	if !ok {
		return model.Header{}, fmt.Errorf("broken header: %w", model.ErrInvalid)
	}
	table := graph.Stored{Use: graph.Table, DType: tensor.F16, Rows: 1, Cols: int(n / 2), Count: 1}
	return model.Header{Architecture: "llama", WeightsBytes: n, Tensors: []graph.Stored{table}, Config: arch.Config{MaxPositions: 512}}, nil
}

func (o *world) load(ctx context.Context, h api.Home, path string, d *claimed, c api.Context, admitted api.Footprint, progress func(float64)) (*Loaded, error) {
	o.mu.Lock()
	f := admitted
	if n, ok := o.measured[path]; ok {
		f.WeightsBytes = n
	}
	f.Measured = true
	o.used += residency.Need(admitted)
	if o.used > d.Capacity {
		o.t.Errorf("%d bytes on a device of %d", o.used, d.Capacity)
	}
	err, panics := o.loadErr[path], o.panics[path]
	o.mu.Unlock()
	free := func() {
		o.mu.Lock()
		defer o.mu.Unlock()
		o.used -= residency.Need(admitted)
		o.closed++
	}
	progress(0.5)
	select {
	case <-time.After(o.loadTime):
	case <-ctx.Done():
		err = ctx.Err()
	}
	if panics {
		free()
		panic("index out of range")
	}
	if err != nil {
		free()
		return nil, err
	}
	p := &program{free: free, step: func() error {
		o.mu.Lock()
		took, err := o.stepTime, o.stepErr[path]
		o.mu.Unlock()
		time.Sleep(took)
		return err
	}}
	replica := d.replica(h.Model)
	if err := d.engine.Add(engine.Replica{Name: replica, Program: p, Blocks: 64, BlockTokens: 16, MaxTokens: c.MaxTokens, Vocabulary: 4}); err != nil {
		free()
		return nil, err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.loads[h.Model]++
	return &Loaded{Home: h, Engine: d.engine, Replica: replica, MaxTokens: c.MaxTokens, program: p, footprint: f}, nil
}

// program gives token 1 for ever, one in 10 ms.
type program struct {
	free   func()
	step   func() error
	closed bool
}

func (p *program) Run(_ context.Context, b batching.Batch, out *backend.Out) error {
	if err := p.step(); err != nil {
		return err
	}
	out.Logits = make([]float32, b.Logits()*4)
	for i := range b.Logits() {
		out.Logits[4*i+1] = 1
	}
	return nil
}
func (p *program) Bytes() backend.Bytes { return backend.Bytes{} }
func (p *program) Close() error {
	if p.closed {
		return errors.New("closed twice")
	}
	p.closed = true
	p.free()
	return nil
}

// home describes a model for an assignment: its path is its name.
func (o *world) home(name string, size int64, change ...func(*api.Home)) api.Home {
	if size > 0 {
		o.mu.Lock()
		o.size["/m/"+name] = size
		o.mu.Unlock()
	}
	h := api.Home{
		Model: "ns/" + name, Revision: "1", ServedNames: []string{name}, Source: api.Source{URI: "/m/" + name},
		Format: "AsStored", Devices: []string{"cpu-0"}, Resident: true,
	}
	for _, f := range change {
		f(&h)
	}
	return h
}

func asleep(h *api.Home)   { h.Resident = false }
func draining(h *api.Home) { h.Draining = true }

var generation int64

func assign(t testing.TB, w *Worker, homes ...api.Home) {
	t.Helper()
	generation++
	if r := w.Assign(api.Assignment{Epoch: 1, Generation: generation, Instance: w.instance, Homes: homes}); r != nil {
		t.Fatalf("refused: %+v", r)
	}
}

// brief writes the homes of a state: "a:Resident b:Failed(InvalidModel)".
func brief(w *Worker) string {
	var s []string
	for _, h := range w.State().Homes {
		one := path.Base(h.Model) + ":" + string(h.Phase)
		if h.Reason != "" {
			one += "(" + h.Reason + ")"
		}
		s = append(s, one)
	}
	return strings.Join(s, " ")
}

func after(t testing.TB, w *Worker, d time.Duration, want string) {
	t.Helper()
	time.Sleep(d)
	synctest.Wait()
	if got := brief(w); got != want {
		t.Fatalf("after %s: %q, want %q", d, got, want)
	}
}

// TestNewClosesDevices: of a worker that cannot be, no device stays open.
func TestNewClosesDevices(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // which fails if a goroutine of one is left
		cpu := device.Device{Name: "cpu-0", Kind: "cpu", Extent: 64 << 10, Capacity: mib}
		odd := cpu
		odd.Kind = "odd"
		if _, err := New(Options{Devices: []device.Device{cpu, odd}, Threads: 2, Log: slog.New(slog.DiscardHandler)}); err == nil {
			t.Error("a device that nothing computes for")
		}
	})
}

func TestHomeComesAndGoes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newWorld(t)
		w, end := o.worker(t, nil)
		defer end()
		after(t, w, 0, "")
		assign(t, w, o.home("a", mib), o.home("b", mib, asleep))
		after(t, w, 5*time.Millisecond, "a:Fetching b:Fetching")
		after(t, w, 20*time.Millisecond, "a:Loading b:Idle")
		if s := w.State(); s.Homes[1].Tier != api.TierDisk || s.Homes[1].Footprint.WeightsBytes != mib || s.Homes[0].Progress != 0.5 || s.Devices[0].UsedBytes != mib {
			t.Errorf("%+v", s)
		}
		after(t, w, 100*time.Millisecond, "a:Resident b:Idle")
		l, release, err := w.Use(t.Context(), "ns/a")
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		events, err := l.Engine.Submit(ctx, engine.Request{Replica: l.Replica, Prompt: []int32{0}, MaxTokens: 4})
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(15 * time.Millisecond)
		if s := w.State().Homes[0]; s.Running != 1 || s.Waiting != 0 || s.IdleSeconds != 0 || s.KVUsed == 0 {
			t.Errorf("%+v", s)
		}
		for range events {
		}
		cancel()
		release()
		release() // twice is once
		time.Sleep(time.Second)
		if s := w.State().Homes[0]; s.Running != 0 || s.Completed != 1 || s.IdleSeconds != 1 || s.Tier != api.TierDevice || s.ResidentSeconds < 1 {
			t.Errorf("%+v", s)
		}
		assign(t, w, o.home("b", mib, asleep))
		after(t, w, 0, "b:Idle")
		if o.used != 0 || o.fetched != 1 {
			t.Errorf("%d bytes, %d paths", o.used, o.fetched)
		}
		if c := w.Counters()["ns/a"]; c.Completed != 1 || c.OutputTokens != 4 || c.Loads != 1 || c.LoadSeconds < 0.1 {
			t.Errorf("%+v", c)
		}
		if _, _, err := w.Use(t.Context(), "ns/a"); !errors.Is(err, ErrLacks) {
			t.Errorf("Use after it went: %v", err)
		}
		// Its counters are there for the next look, and go on if it comes back; not for ever.
		assign(t, w, o.home("b", mib, asleep), o.home("a", mib))
		after(t, w, 20*time.Minute, "a:Resident b:Idle")
		if c := w.Counters()["ns/a"]; c.Completed != 1 || c.Loads != 2 {
			t.Errorf("%+v", c)
		}
		assign(t, w, o.home("b", mib, asleep))
		time.Sleep(keepCounters + time.Minute)
		if c, ok := w.Counters()["ns/a"]; ok {
			t.Errorf("long gone: %+v", c)
		}
	})
}

func TestAssignmentOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newWorld(t)
		w, end := o.worker(t, nil)
		defer end()
		send := func(epoch, generation int64, instance string) string {
			r := w.Assign(api.Assignment{Epoch: epoch, Generation: generation, Instance: instance, Homes: []api.Home{o.home(fmt.Sprintf("m%d-%d", epoch, generation), mib)}})
			if r == nil {
				return ""
			}
			if r.Instance != w.instance || r.Message == "" {
				t.Errorf("%+v", r)
			}
			return r.Reason
		}
		for i, c := range []struct {
			epoch, generation int64
			instance, want    string
			homes             string
		}{
			{3, 5, "another", api.RefusedInstance, ""},
			{3, 5, "", api.RefusedInstance, ""},
			{3, 5, w.instance, "", "m3-5:Fetching"},
			{3, 4, w.instance, api.RefusedOlder, "m3-5:Fetching"},
			{2, 9, w.instance, api.RefusedOlder, "m3-5:Fetching"},
			{3, 5, w.instance, "", "m3-5:Fetching"},
			{4, 1, w.instance, "", "m4-1:Fetching"},
			{3, 6, w.instance, api.RefusedOlder, "m4-1:Fetching"},
		} {
			got := send(c.epoch, c.generation, c.instance)
			synctest.Wait()
			if homes := brief(w); got != c.want || homes != c.homes {
				t.Errorf("%d: got %q, %q; want %q, %q", i, got, homes, c.want, c.homes)
			}
		}
		// The same pair with other homes changes nothing.
		w.Assign(api.Assignment{Epoch: 4, Generation: 1, Instance: w.instance})
		synctest.Wait()
		if s := w.State(); len(s.Homes) != 1 || s.Epoch != 4 || s.Generation != 1 {
			t.Errorf("%+v", s)
		}
	})
}

func TestRequestsShareOneWake(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newWorld(t)
		w, end := o.worker(t, nil)
		defer end()
		assign(t, w, o.home("a", mib, asleep, func(h *api.Home) { h.IdleSeconds = 30 }))
		var wg sync.WaitGroup
		for range 20 {
			wg.Go(func() { // some before it is fetched
				time.Sleep(time.Duration(rand.IntN(200)) * time.Millisecond)
				_, release, err := w.Use(t.Context(), "ns/a")
				if err != nil {
					t.Error(err)
					return
				}
				time.Sleep(time.Second)
				release()
			})
		}
		wg.Wait()
		if o.loads["ns/a"] != 1 {
			t.Errorf("%d loads", o.loads["ns/a"])
		}
		after(t, w, 28*time.Second, "a:Resident")
		after(t, w, 3*time.Second, "a:Idle") // 30 s after the last request
		if o.used != 0 {
			t.Errorf("%d bytes", o.used)
		}
		if _, release, err := w.Use(t.Context(), "ns/a"); err != nil || o.loads["ns/a"] != 2 {
			t.Errorf("woken again: %v", err)
		} else {
			release()
		}
		// Who gives up while it loads leaves nothing behind.
		after(t, w, time.Minute, "a:Idle")
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		if _, _, err := w.Use(ctx, "ns/a"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("gave up: %v", err)
		}
		after(t, w, time.Second, "a:Resident")
		after(t, w, time.Minute, "a:Idle")
	})
}

type refusedSource struct{}

func (refusedSource) Error() string  { return "outside the roots" }
func (refusedSource) Reason() string { return api.ReasonDigestMismatch }

func TestFailuresStayWithTheirModel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newWorld(t)
		w, end := o.worker(t, nil)
		defer end()
		o.fetchErr["/m/gone"] = errors.New("connection refused")
		o.fetchErr["/m/other"] = refusedSource{}
		o.loadErr["/m/tensor"] = &fault{api.ReasonInvalidModel, "tensor missing"}
		o.panics["/m/panic"] = true
		assign(t, w,
			o.home("good", mib), o.home("gone", mib), o.home("other", mib), o.home("header", 0), o.home("tensor", mib), o.home("panic", mib),
			o.home("int4", mib, func(h *api.Home) { h.Format = "Int4" }),
			o.home("wide", mib, func(h *api.Home) { h.Devices = []string{"cpu-0", "cpu-1"} }),
			o.home("lost", mib, func(h *api.Home) { h.Devices = []string{"gpu-9"} }),
		)
		want := "gone:Failed(SourceUnavailable) good:Resident header:Failed(InvalidModel) int4:Failed(UnsupportedModel) lost:Failed(DoesNotFit) " +
			"other:Failed(DigestMismatch) panic:Failed(InvalidModel) tensor:Failed(InvalidModel) wide:Failed(UnsupportedModel)"
		after(t, w, 500*time.Millisecond, want)
		_, _, err := w.Use(t.Context(), "ns/tensor")
		if u, ok := errors.AsType[*UnavailableError](err); !ok || u.Reason != api.ReasonInvalidModel || u.Message != "tensor missing" || u.RetryAfter <= 0 {
			t.Errorf("Use of a broken model: %v", err)
		}
		// For an hour nothing changes but the number of tries, which is small.
		for range 60 {
			after(t, w, time.Minute, want)
		}
		if c := w.Counters(); c["ns/tensor"].LoadFailures > 20 || c["ns/panic"].LoadFailures > 20 || c["ns/good"].Loads != 1 {
			t.Errorf("tries: %+v", c)
		}
		if used := w.State().Devices[0].UsedBytes; used != mib || o.used != mib {
			t.Errorf("%d bytes, %d really", used, o.used)
		}
		// The source comes back; within its longest pause the model serves.
		o.mu.Lock()
		delete(o.fetchErr, "/m/gone")
		o.mu.Unlock()
		after(t, w, time.Minute+time.Second, strings.Replace(want, "gone:Failed(SourceUnavailable)", "gone:Resident", 1))
		// A new revision is tried at once.
		o.mu.Lock()
		delete(o.loadErr, "/m/tensor")
		o.mu.Unlock()
		assign(t, w, o.home("tensor", mib, func(h *api.Home) { h.Revision = "2" }))
		after(t, w, time.Second, "tensor:Resident")
	})
}

// TestWhatIsWrongStaysOnShow: files that nobody has changed are not loaded again, and what was
// wrong with them is said at each look, also where a fetch reports progress on the way.
func TestWhatIsWrongStaysOnShow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newWorld(t)
		w, end := o.worker(t, nil)
		defer end()
		file := filepath.Join(t.TempDir(), "m.gguf")
		if err := os.WriteFile(file, []byte("one"), 0o600); err != nil {
			t.Fatal(err)
		}
		o.size[file] = mib
		o.loadErr[file] = &fault{api.ReasonInvalidModel, "tensor missing"}
		assign(t, w, o.home("m", 0, func(h *api.Home) { h.Source.URI = file }))
		for range 10 {
			after(t, w, time.Minute, "m:Failed(InvalidModel)")
			if got := w.State().Homes[0].Message; got != "tensor missing" {
				t.Fatalf("message %q", got)
			}
		}
		if c := w.Counters()["ns/m"]; c.LoadFailures != 1 {
			t.Errorf("%d loads of the same files", c.LoadFailures)
		}
		o.mu.Lock()
		delete(o.loadErr, file)
		o.mu.Unlock()
		if err := os.WriteFile(file, []byte("another"), 0o600); err != nil {
			t.Fatal(err)
		}
		after(t, w, 6*time.Minute, "m:Resident")
	})
}

// TestModelThatFailsItsSteps leaves the device and is tried again, seldom if that
// does not help, and its neighbour does not notice.
func TestModelThatFailsItsSteps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newWorld(t)
		w, end := o.worker(t, nil)
		defer end()
		ask := func(name string) error {
			l, release, err := w.Use(t.Context(), "ns/"+name)
			if err != nil {
				return err
			}
			defer release()
			events, err := l.Engine.Submit(t.Context(), engine.Request{Replica: l.Replica, Prompt: []int32{0}, MaxTokens: 4})
			if err != nil {
				return err
			}
			for e := range events {
				err = e.Err
			}
			return err
		}
		breaks := func(err error) {
			o.mu.Lock()
			defer o.mu.Unlock()
			o.stepErr["/m/a"] = err
		}
		assign(t, w, o.home("a", mib), o.home("b", mib))
		after(t, w, time.Second, "a:Resident b:Resident")
		if err := errors.Join(ask("a"), ask("b")); err != nil {
			t.Fatal(err)
		}

		// Files that vanish: at once, and back after a second.
		breaks(fmt.Errorf("run: %w", backend.ErrFault))
		if err := ask("a"); !errors.Is(err, engine.ErrBroken) {
			t.Errorf("its request: %v", err)
		}
		after(t, w, 10*time.Millisecond, "a:Failed(SourceUnavailable) b:Resident")
		s := w.State()
		if h := s.Homes[0]; !strings.Contains(h.Message, "files changed or vanished") || h.Tier != api.TierNone || s.Devices[0].UsedBytes != mib || o.used != mib {
			t.Errorf("%+v, %d bytes really", s, o.used)
		}
		u, ok := errors.AsType[*UnavailableError](ask("a"))
		if !ok || u.Reason != api.ReasonSourceUnavailable || u.RetryAfter <= 0 {
			t.Errorf("the next request: %+v", u)
		}
		if err := ask("b"); err != nil {
			t.Error(err)
		}
		breaks(nil)
		after(t, w, 2*time.Second, "a:Resident b:Resident")
		if err := ask("a"); err != nil {
			t.Error(err)
		}

		// One that answers nothing for an hour is loaded a few times only, however often it is asked for.
		breaks(errors.New("out of order"))
		before := o.loads["ns/a"]
		for range 3600 {
			ask("a")
			time.Sleep(time.Second)
		}
		if n := o.loads["ns/a"] - before; n < 5 || n > 25 {
			t.Errorf("%d loads", n)
		}
		if h := w.State().Homes[0]; h.Phase != api.PhaseFailed || !strings.Contains(h.Message, "out of order") {
			t.Errorf("%+v", h)
		}
		breaks(nil)
		after(t, w, 6*time.Minute, "a:Resident b:Resident")
		if err := errors.Join(ask("a"), ask("b")); err != nil {
			t.Error(err)
		}
		// It has answered: the next time starts over.
		breaks(backend.ErrFault)
		ask("a")
		breaks(nil)
		after(t, w, 2*time.Second, "a:Resident b:Resident")
		if n := o.loads["ns/b"]; n != 1 {
			t.Errorf("the neighbour was loaded %d times", n)
		}
	})
}

func TestRequestsEndBeforeTheirModelGoes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newWorld(t)
		w, end := o.worker(t, nil)
		defer end()
		use := func() (*Loaded, func()) {
			t.Helper()
			l, release, err := w.Use(t.Context(), "ns/a")
			if err != nil {
				t.Fatal(err)
			}
			return l, release
		}
		lacks := func() {
			t.Helper()
			if _, _, err := w.Use(t.Context(), "ns/a"); !errors.Is(err, ErrLacks) {
				t.Fatalf("got %v", err)
			}
		}
		// Named no more: 421 at once, gone when the request has ended.
		assign(t, w, o.home("a", mib))
		after(t, w, time.Second, "a:Resident")
		_, release := use()
		assign(t, w)
		after(t, w, 5*time.Second, "a:Draining")
		lacks()
		if s := w.State(); s.Devices[0].UsedBytes != mib || s.Homes[0].Tier != api.TierDevice {
			t.Errorf("%+v", s)
		}
		release()
		after(t, w, 0, "")

		// Named again while it drains: it serves again, loaded anew.
		assign(t, w, o.home("a", mib))
		after(t, w, time.Second, "a:Resident")
		_, release = use()
		assign(t, w)
		after(t, w, time.Second, "a:Draining")
		assign(t, w, o.home("a", mib))
		release()
		after(t, w, time.Second, "a:Resident")

		// A new revision that does not fit beside the old one: the old request ends with the old one, a new request waits for the new.
		other := o.home("b", 8*mib)
		assign(t, w, o.home("a", mib), other)
		after(t, w, time.Second, "a:Resident b:Resident")
		old, release := use()
		assign(t, w, o.home("a", 2*mib, func(h *api.Home) { h.Revision = "2" }), other)
		after(t, w, time.Second, "a:Idle b:Resident")
		got := make(chan *Loaded)
		go func() {
			l, release := use()
			release()
			got <- l
		}()
		time.Sleep(time.Second)
		release()
		if l := <-got; l == old || l.Home.Revision != "2" || l.footprint.WeightsBytes != 2*mib {
			t.Errorf("%+v", l)
		}
		assign(t, w, o.home("a", 2*mib, func(h *api.Home) { h.Revision = "2" }))
		after(t, w, time.Second, "a:Resident")

		// A request that does not end is ended after the drain time.
		l, release := use()
		events, err := l.Engine.Submit(t.Context(), engine.Request{Replica: l.Replica, Prompt: []int32{0}, MaxTokens: 400})
		if err != nil {
			t.Fatal(err)
		}
		l.Engine.Submit(t.Context(), engine.Request{Replica: l.Replica, Prompt: []int32{0}, MaxTokens: 400})
		assign(t, w, o.home("a", 2*mib, draining, func(h *api.Home) { h.Revision = "2" }))
		for range 3 {
			<-events
		}
		lacks()
		after(t, w, 11*time.Second, "a:Draining")
		if used := w.State().Devices[0].UsedBytes; used != 0 || o.used != 0 {
			t.Errorf("%d bytes", used)
		}
		var last engine.Event
		for e := range events {
			last = e
		}
		if last.Finish == "" {
			t.Errorf("the request has not ended: %+v", last)
		}
		release()

		// Undone: it comes back.
		assign(t, w, o.home("a", 2*mib, func(h *api.Home) { h.Revision = "2" }))
		after(t, w, time.Second, "a:Resident")
	})
}

// TestRevisionBesideTheOneBefore: where both fit, requests never wait: the old
// revision answers until the new one is there, and ends what it runs.
func TestRevisionBesideTheOneBefore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newWorld(t)
		w, end := o.worker(t, nil)
		defer end()
		use := func(revision string) (*Loaded, func()) {
			t.Helper()
			began := time.Now()
			l, release, err := w.Use(t.Context(), "ns/a")
			if err != nil || l.Home.Revision != revision || time.Since(began) > 0 {
				t.Fatalf("revision %s after %s, %v; want %s at once", l.Home.Revision, time.Since(began), err, revision)
			}
			return l, release
		}
		stream := func(l *Loaded, tokens int) <-chan engine.Event {
			t.Helper()
			events, err := l.Engine.Submit(t.Context(), engine.Request{Replica: l.Replica, Prompt: []int32{0}, MaxTokens: tokens})
			if err != nil {
				t.Fatal(err)
			}
			return events
		}
		finish := func(events <-chan engine.Event) (last engine.Event) {
			for e := range events {
				last = e
			}
			return last
		}
		revision := func(n string) func(*api.Home) { return func(h *api.Home) { h.Revision = n } }
		used := func(want int64) {
			t.Helper()
			if got := w.State().Devices[0].UsedBytes; got != want*mib || o.used != want*mib {
				t.Errorf("%d bytes, %d really; want %d MiB", got, o.used, want)
			}
		}

		assign(t, w, o.home("a", 2*mib, revision("1")))
		after(t, w, time.Second, "a:Resident")
		l, release1 := use("1")
		long := stream(l, 400) // 4 s
		o.fetchTime = time.Second
		assign(t, w, o.home("a", 3*mib, revision("2")))
		after(t, w, 10*time.Millisecond, "a:Resident") // while the files come, it is the old one that is reported
		if s := w.State().Homes[0]; s.Revision != "1" || s.Running != 1 {
			t.Errorf("%+v", s)
		}
		_, release := use("1")
		release()
		after(t, w, time.Second, "a:Loading")
		if s := w.State().Homes[0]; s.Revision != "2" || s.Running != 1 {
			t.Errorf("%+v", s)
		}
		used(5)
		l, release = use("1")
		if e := finish(stream(l, 2)); e.Err != nil {
			t.Error(e.Err)
		}
		release()
		after(t, w, 100*time.Millisecond, "a:Resident")
		if s := w.State().Homes[0]; s.Revision != "2" || s.Running != 1 || s.Waiting != 0 || s.Completed != 1 {
			t.Errorf("%+v", s)
		}
		l, release = use("2")
		if e := finish(stream(l, 2)); e.Err != nil {
			t.Error(e.Err)
		}
		release()
		used(5)

		// Back to the first one while that still runs a request: loaded once more, beside both.
		assign(t, w, o.home("a", 2*mib, revision("1")))
		after(t, w, 1200*time.Millisecond, "a:Resident")
		used(4)
		_, release = use("1")
		release()
		if e := finish(long); e.Err != nil || e.Output != 400 {
			t.Errorf("the long text: %+v", e)
		}
		release1()
		after(t, w, 0, "a:Resident")
		used(2)
		if c := w.Counters()["ns/a"]; c.Completed != 3 || c.Loads != 3 {
			t.Errorf("%+v", c)
		}

		// One that cannot be loaded: it says so, and the old one goes.
		o.loadErr["/m/a"] = &fault{api.ReasonInvalidModel, "tensor missing"}
		assign(t, w, o.home("a", 2*mib, revision("3")))
		after(t, w, 1050*time.Millisecond, "a:Loading")
		_, release = use("1")
		release()
		after(t, w, time.Second, "a:Failed(InvalidModel)")
		used(0)
		delete(o.loadErr, "/m/a")

		// One that nobody wants resident takes over all the same, and sleeps when it is idle.
		sleepy := func(h *api.Home) { h.Resident, h.IdleSeconds = false, 5 }
		assign(t, w, o.home("a", 2*mib, revision("4")))
		after(t, w, 3*time.Second, "a:Resident")
		_, release4 := use("4")
		assign(t, w, o.home("a", 2*mib, revision("5"), sleepy))
		after(t, w, 2*time.Second, "a:Resident")
		_, release = use("5")
		release()
		release4()
		after(t, w, 6*time.Second, "a:Idle")
		used(0)

		// All of them go when the assignment says so, or their worker drains.
		assign(t, w, o.home("a", 2*mib, revision("6")))
		after(t, w, 3*time.Second, "a:Resident")
		_, release6 := use("6")
		assign(t, w, o.home("a", 2*mib, revision("7")))
		after(t, w, 10*time.Millisecond, "a:Resident")
		assign(t, w)
		after(t, w, 2*time.Second, "")
		used(2)
		release6()
		after(t, w, 0, "")
		used(0)
		assign(t, w, o.home("a", 2*mib, revision("8")))
		after(t, w, 3*time.Second, "a:Resident")
		_, release8 := use("8")
		assign(t, w, o.home("a", 2*mib, revision("9")))
		after(t, w, 2*time.Second, "a:Resident")
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := w.Drain(ctx); err == nil {
			t.Error("the drain did not wait for the request of the old revision")
		}
		release8()
		if err := w.Drain(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

func TestWorkerDrains(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newWorld(t)
		w, end := o.worker(t, nil)
		defer end()
		a, b := o.home("a", mib), o.home("b", mib, asleep)
		assign(t, w, a, b)
		after(t, w, time.Second, "a:Resident b:Idle")
		_, release, err := w.Use(t.Context(), "ns/a")
		if err != nil {
			t.Fatal(err)
		}
		// Asked for by the operator, and taken back.
		generation++
		w.Assign(api.Assignment{Epoch: 1, Generation: generation, Instance: w.instance, Drain: true, Homes: []api.Home{a, b}})
		if _, _, err := w.Use(t.Context(), "ns/b"); !errors.Is(err, ErrLacks) || !w.State().Draining {
			t.Errorf("drains: %v", err)
		}
		assign(t, w, a, b)
		if w.Draining() {
			t.Error("still drains")
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := w.Drain(ctx); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "1 of its requests") {
			t.Errorf("Drain with a request that runs: %v", err)
		}
		time.AfterFunc(3*time.Second, release)
		began := time.Now()
		if err := w.Drain(t.Context()); err != nil || time.Since(began) != 3*time.Second {
			t.Errorf("Drain: %v after %s", err, time.Since(began))
		}
		assign(t, w, a, b) // for good
		if !w.State().Draining {
			t.Error("takes requests again")
		}
	})
}

// TestDrainSendsWaitersAway: a request that waits for a model goes elsewhere at once.
func TestDrainSendsWaitersAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newWorld(t)
		w, end := o.worker(t, nil)
		defer end()
		o.fetchTime = time.Hour
		assign(t, w, o.home("a", mib))
		after(t, w, time.Second, "a:Fetching")
		sent := make(chan error, 1)
		go func() {
			_, _, err := w.Use(t.Context(), "ns/a")
			sent <- err
		}()
		synctest.Wait()
		if err := w.Drain(t.Context()); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		select {
		case err := <-sent:
			if !errors.Is(err, ErrLacks) {
				t.Errorf("got %v", err)
			}
		default:
			t.Error("the request still waits")
		}
	})
}

func TestEvictionAndRefusal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newWorld(t)
		w, end := o.worker(t, nil)
		defer end()
		a, b, c := o.home("a", 6*mib, asleep), o.home("b", 6*mib, asleep), o.home("c", 11*mib)
		assign(t, w, a, b, c)
		after(t, w, time.Second, "a:Idle b:Idle c:Refused(DoesNotFit)")
		if got := w.State().Homes[2].Message; got != "Needs 11 MiB; cpu-0 has 10 MiB in all." {
			t.Errorf("message %q", got)
		}
		use := func(name string) func() {
			t.Helper()
			_, release, err := w.Use(t.Context(), "ns/"+name)
			if err != nil {
				t.Fatal(err)
			}
			return release
		}
		use("a")()
		release := use("b") // takes a's place
		after(t, w, 0, "a:Idle b:Resident c:Refused(DoesNotFit)")
		type got struct {
			release func()
			err     error
		}
		asked := make(chan got)
		go func() {
			_, release, err := w.Use(t.Context(), "ns/a") // b is busy
			asked <- got{release, err}
		}()
		after(t, w, 3*time.Second, "a:Refused(DoesNotFit) b:Resident c:Refused(DoesNotFit)")
		if h := w.State().Homes[0]; h.Waiting != 1 || h.Message != "Needs 6 MiB; 4 MiB of 10 MiB is free on cpu-0; held by ns/b (6 MiB, 1 request). It waits until those that need not stay are idle, or for its turn." {
			t.Errorf("%+v", h)
		}
		release() // b may go
		g := <-asked
		if g.err != nil {
			t.Fatal(g.err)
		}
		after(t, w, 0, "a:Resident b:Idle c:Refused(DoesNotFit)")
		g.release()
		use("a")()
		// Refused, and admitted when the account changes.
		assign(t, w, o.home("a", 6*mib), o.home("b", 6*mib))
		after(t, w, time.Second, "a:Resident b:Refused(DoesNotFit)")
		assign(t, w, o.home("b", 6*mib))
		after(t, w, time.Second, "b:Resident")
	})
}

func TestLoadThatTakesMoreThanItSaid(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newWorld(t)
		w, end := o.worker(t, nil)
		defer end()
		o.measured["/m/liar"] = 8 * mib
		assign(t, w, o.home("good", 4*mib), o.home("liar", 4*mib))
		after(t, w, time.Second, "good:Resident liar:Refused(DoesNotFit)")
		if s := w.State(); s.Devices[0].UsedBytes != 4*mib || !s.Homes[1].Footprint.Measured {
			t.Errorf("%+v", s)
		}
	})
}

func TestWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newWorld(t)
		w, end := o.worker(t, nil)
		defer end()
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		states := w.Watch(ctx)
		var at []time.Time
		began := time.Now()
		time.AfterFunc(2500*time.Millisecond, func() { assign(t, w, o.home("a", mib)) })
		for s := range states {
			at = append(at, time.Now())
			if len(s.Homes) > 0 && s.Homes[0].Phase == api.PhaseResident {
				cancel()
			}
		}
		for i, when := range at[1:] {
			if gap := when.Sub(at[i]); gap < 50*time.Millisecond || gap > time.Second {
				t.Errorf("state %d came %s after the one before", i+1, gap)
			}
		}
		if at[0] != began || len(at) < 5 || time.Since(began) > 3*time.Second {
			t.Errorf("states at %v", at)
		}
	})
}

// TestHeadersAreReadOneByOne: what reading one takes is in no account.
func TestHeadersAreReadOneByOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newWorld(t)
		w, stop := o.worker(t, nil)
		defer stop()
		now, most := 0, 0
		w.inspect = func(string) (model.Header, error) {
			now++
			most = max(most, now)
			time.Sleep(time.Second)
			now--
			return model.Header{}, nil
		}
		var asked sync.WaitGroup
		for range 5 {
			asked.Go(func() { w.Inspect(t.Context(), api.InspectRequest{}) })
		}
		time.Sleep(time.Millisecond)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second/2)
		defer cancel()
		began := time.Now()
		if in := w.Inspect(ctx, api.InspectRequest{}); in.Error == nil || time.Since(began) != time.Second/2 {
			t.Errorf("%+v after %s", in.Error, time.Since(began))
		}
		asked.Wait()
		if most != 1 {
			t.Errorf("%d at once", most)
		}
	})
}
