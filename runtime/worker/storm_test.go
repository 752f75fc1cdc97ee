package worker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"reflect"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	api "github.com/estiba/estiba/api/worker"
	"github.com/estiba/estiba/internal/fixture"
	kernels "github.com/estiba/estiba/kernels/cpu"
	"github.com/estiba/estiba/runtime/arch"
	"github.com/estiba/estiba/runtime/backend/cpu"
	"github.com/estiba/estiba/runtime/device"
	"github.com/estiba/estiba/runtime/engine"
	"github.com/estiba/estiba/runtime/model"
	"github.com/estiba/estiba/runtime/residency"
	"github.com/estiba/estiba/runtime/sampling"
)

// storm throws homes that come, go and change, and requests of all lengths, at a worker
// with little room. After each step it holds the worker to its promises.
type storm struct {
	t    *testing.T
	w    *Worker
	seed uint64
	rng  *rand.Rand

	faulty   map[string]bool      // models that cannot be had
	homes    map[string]*api.Home // of the assignment
	versions map[string]int       // model -> grows with whatever may end its requests

	mu       sync.Mutex // for what requests note
	running  sync.WaitGroup
	requests atomic.Int64
	answered atomic.Int64
	lacked   atomic.Int64
	refused  atomic.Int64
	left     atomic.Int64
	cut      atomic.Int64
	full     atomic.Int64
}

// stormSteps is how many there are: 10,000, or what ESTIBA_STORM says.
func stormSteps(t *testing.T) int {
	text := os.Getenv("ESTIBA_STORM")
	if text == "" {
		return 10_000
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		t.Fatalf("ESTIBA_STORM=%q: give a number of steps", text)
	}
	return n
}

// stormSeed is where a storm begins: ESTIBA_SEED, or another one each time.
func stormSeed(t *testing.T) uint64 {
	seed := uint64(time.Now().UnixNano() % 1e9)
	if text := os.Getenv("ESTIBA_SEED"); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatalf("ESTIBA_SEED=%q: give a number", text)
		}
	}
	t.Logf("ESTIBA_SEED=%d", seed)
	return seed
}

// change does something to the assignment, and hands it over.
func (s *storm) change(names []string, make func(name string) api.Home) {
	for range 1 + s.rng.IntN(3) {
		name := names[s.rng.IntN(len(names))]
		for _, absent := range names { // mostly they are here
			if s.homes[absent] == nil && s.rng.IntN(4) == 0 {
				name = absent
			}
		}
		h := s.homes[name]
		if h == nil {
			fresh := make(name)
			s.homes[name] = &fresh
			s.versions[name]++
			continue
		}
		next := *h
		if h.Draining { // it comes back
			next.Draining = false
			s.versions[name]++
			s.homes[name] = &next
			continue
		}
		switch s.rng.IntN(12) {
		case 0:
			delete(s.homes, name)
			s.versions[name]++
			continue
		case 1:
			next.Draining = true
			s.versions[name]++
		case 2:
			next.Revision = fmt.Sprint(s.rng.IntN(100))
			s.versions[name]++
		case 3, 4, 5, 6:
			next.Resident = s.rng.IntN(4) == 0
		case 7, 8:
			next.EvictionOrder = s.rng.IntN(3)
		case 9:
			next.NeverEvict = s.rng.IntN(3) == 0
		case 10, 11:
			next.IdleSeconds = float64(s.rng.IntN(3)) / 5
		}
		s.homes[name] = &next
	}
	s.assign()
}

func (s *storm) assign() {
	generation++
	a := api.Assignment{Epoch: 1, Generation: generation, Instance: s.w.instance}
	for _, h := range s.homes {
		a.Homes = append(a.Homes, *h)
	}
	if r := s.w.Assign(a); r != nil {
		s.fail("%+v", r)
	}
}

func (s *storm) fail(format string, args ...any) {
	s.t.Helper()
	s.t.Errorf("ESTIBA_SEED=%d: %s", s.seed, fmt.Sprintf(format, args...))
}

// version of a model, whether it is at home, and its revision: what happens to its requests
// while none of them changes is the worker's own doing.
func (s *storm) version(name string) (version int, here bool, revision string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	h := s.homes[name]
	if h == nil {
		return s.versions[name], false, ""
	}
	return s.versions[name], !h.Draining, h.Revision
}

// request asks for a model's answer and judges how it ends.
func (s *storm) request(name string, r engine.Request, patience time.Duration, judge func(events []engine.Event)) {
	before, here, _ := s.version(name)
	old := "" // the revision that answers
	s.requests.Add(1)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	err := func() error {
		l, release, err := s.w.Use(ctx, name)
		if err != nil {
			return err
		}
		defer release()
		r.Replica, old = l.Replica, l.Home.Revision
		events, err := l.Engine.Submit(ctx, r)
		if err != nil {
			return err
		}
		var all []engine.Event
		for e := range events {
			if all = append(all, e); e.Err != nil {
				return e.Err
			}
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		judge(all)
		return nil
	}()
	after, still, revision := s.version(name)
	u, unavailable := errors.AsType[*UnavailableError](err)
	switch {
	case err == nil:
		s.answered.Add(1)
	case errors.Is(err, context.DeadlineExceeded):
		s.left.Add(1)
	case unavailable && (s.faulty[name] || u.Reason == api.ReasonDoesNotFit):
		s.refused.Add(1)
	case errors.Is(err, engine.ErrQueueFull):
		s.full.Add(1)
	case errors.Is(err, engine.ErrRemoved) && old != revision: // the next one has come, and the time to drain was over
		s.cut.Add(1)
	case before == after && here && still:
		s.fail("%s: %v, and nothing of it has changed", name, err)
	case errors.Is(err, ErrLacks):
		s.lacked.Add(1)
	case errors.Is(err, engine.ErrRemoved):
		s.cut.Add(1)
	default:
		s.fail("%s: %v", name, err)
	}
}

// check holds the worker to its account, at any time: what is admitted is within the
// claim, and so is what replicas may have for keys and values beside the rest.
func (s *storm) check() {
	w := s.w
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, d := range w.devices {
		used, rest, floors := int64(0), int64(0), int64(0)
		for h := range w.all() {
			if h.key.device != d.Name {
				continue
			}
			if h.held < 0 || h.held%d.Extent != 0 {
				s.fail("%s holds %d bytes, in extents of %d", h.want.Model, h.held, d.Extent)
			}
			if (h.loaded != nil || h.unloading) && h.held < residency.Need(h.footprint) {
				s.fail("%s is on the device with %d bytes of %d", h.want.Model, h.held, residency.Need(h.footprint))
			}
			used += h.held
			if h.held > 0 {
				floors += h.footprint.KVFloorBytes
				rest += h.held - h.footprint.KVFloorBytes
			}
		}
		if used != w.used(d.Name) || used > d.Capacity {
			s.fail("%d bytes used, %d of %d", used, w.used(d.Name), d.Capacity)
		}
		if lent := int64(d.budget) * d.Extent; lent < floors || rest+lent > d.Capacity {
			s.fail("%d bytes for keys and values, of which %d are guaranteed, beside %d, of %d", lent, floors, rest, d.Capacity)
		}
	}
}

// over waits for the end of all requests and takes everything off the device.
func (s *storm) over() {
	s.running.Wait()
	clear(s.homes)
	s.assign()
	for i := 0; ; i++ {
		state := s.w.State()
		if len(state.Homes) == 0 && state.Devices[0].UsedBytes == 0 {
			return
		}
		if i == 1000 {
			s.fail("something stays: %+v", state)
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// stormWorld has models with keys and values in the device's extents.
type stormWorld struct {
	*world
}

func (o *stormWorld) inspect(path string) (model.Header, error) {
	h, err := o.world.inspect(path)
	// 512 bytes of a position: 128 in an extent, so that a context of 512 has 4 of 64 KiB.
	h.Config = arch.Config{MaxPositions: 512, Layers: 1, KVHeads: 1, HeadDim: 128}
	return h, err
}

// load is world's, with its replica in the slab.
func (o *stormWorld) load(ctx context.Context, h api.Home, path string, d *claimed, c api.Context, admitted api.Footprint, progress func(float64)) (*Loaded, error) {
	l, err := o.world.load(ctx, h, path, d, c, admitted, progress)
	if err != nil {
		return nil, err
	}
	if err := d.engine.Remove(ctx, l.Replica); err != nil {
		return nil, err
	}
	cut, err := residency.CutExtent(arch.Config{Layers: 1, KVHeads: 1, HeadDim: 128}, d.Extent)
	if err == nil {
		err = d.engine.Add(engine.Replica{
			Name: l.Replica, Program: l.program, PerExtent: cut.PerExtent, Floor: extents(admitted.KVFloorBytes, d.Extent), BlockTokens: cut.BlockTokens,
			MaxTokens: c.MaxTokens, Vocabulary: 4, StepTokens: 64, Sequences: 8, Waiting: 8,
		})
	}
	if err != nil {
		l.program.Close()
		return nil, err
	}
	return l, nil
}

// TestStormOfHomes: 10,000 steps, or as many as ESTIBA_STORM says, in worlds whose models
// have sizes only and whose clock jumps, so that hours pass. Some models cannot be
// fetched, loaded, or are larger than they said. Nothing exceeds the account, nobody's
// request fails while nothing of its model has changed, and in the end nothing is left.
func TestStormOfHomes(t *testing.T) {
	const each = 1000 // steps of a world
	steps, seed := stormSteps(t), stormSeed(t)
	began := time.Now()
	var requests, answered, refused, loads, evictions int64
	for done := 0; done < steps && !t.Failed(); done += each {
		synctest.Test(t, func(t *testing.T) {
			s := &storm{t: t, seed: seed, rng: rand.New(rand.NewPCG(seed, 11)), faulty: map[string]bool{}, homes: map[string]*api.Home{}, versions: map[string]int{}}
			o := &stormWorld{world: newWorld(t)}
			w, end := o.worker(t, func(o *Options) { o.Drain = time.Duration(s.rng.IntN(20)) * 500 * time.Millisecond })
			defer end()
			s.w, w.inspect, w.load = w, o.inspect, o.load
			var names []string
			for i := range 12 {
				path, name := fmt.Sprintf("/m/m%d", i), fmt.Sprintf("ns/m%d", i)
				names = append(names, name)
				o.size[path] = int64(1+s.rng.IntN(7)) * mib
				fault := s.rng.IntN(16)
				s.faulty[name] = fault < 4
				switch fault {
				case 0:
					o.loadErr[path] = errors.New("broken")
				case 1:
					o.fetchErr[path] = errors.New("unreachable")
				case 2:
					o.panics[path] = true
				case 3:
					o.measured[path] = o.size[path] + mib
				}
			}
			home := func(name string) api.Home {
				return o.home(name[3:], 0, func(h *api.Home) {
					h.Resident, h.EvictionOrder, h.IdleSeconds = s.rng.IntN(4) == 0, s.rng.IntN(3), float64(s.rng.IntN(3))/5
				})
			}
			for range min(each, steps-done) {
				switch s.rng.IntN(4) {
				case 0:
					s.mu.Lock()
					s.change(names, home)
					s.mu.Unlock()
				default:
					r := engine.Request{Tenant: fmt.Sprint(s.rng.IntN(3)), Prompt: make([]int32, 1+s.rng.IntN(500)), MaxTokens: 1 + s.rng.IntN(12)}
					if s.rng.IntN(8) == 0 {
						r.MaxTokens = 512 - len(r.Prompt) // up to 5 s
					}
					for i := range r.Prompt {
						r.Prompt[i] = s.rng.Int32N(4)
					}
					name, patience := names[s.rng.IntN(len(names))], time.Duration(1+s.rng.IntN(120_000))*time.Millisecond
					s.running.Go(func() { s.request(name, r, patience, func([]engine.Event) {}) })
				}
				time.Sleep(time.Duration(s.rng.IntN(400)) * time.Millisecond)
				synctest.Wait()
				s.check()
			}
			s.over()
			requests += s.requests.Load()
			answered += s.answered.Load()
			refused += s.refused.Load()
			for _, n := range o.loads {
				loads += int64(n)
			}
			evictions += int64(o.closed)
		})
		seed++
	}
	t.Logf("%d steps in %s: %d requests, %d answered, %d refused; %d loads", steps, time.Since(began).Round(time.Millisecond), requests, answered, refused, loads)
	if answered*6 < requests || loads < int64(steps)/50 || evictions == 0 {
		t.Errorf("too little happened: %d of %d requests answered, %d loads", answered, requests, loads)
	}
}

// TestStormOfModels is the same with models that compute, at the speed of the machine: a
// fiftieth of the steps. What the process holds stays within the claim, and every answer
// is the one that its model gave before, in whatever company.
func TestStormOfModels(t *testing.T) {
	t.Run("plain Go", func(t *testing.T) {
		t.Setenv(kernels.PathVariable, kernels.PlainGo.String())
		stormOfModels(t, true)
	})
	t.Run("the fastest path", func(t *testing.T) { stormOfModels(t, false) })
}

// tie is how much less likely, in nats, than the likeliest token another one may be that an answer
// has in its place on the fastest path with float32 weights. How a prompt is cut, by its company or by
// what of it is in the cache, changes the order of sums there: by about 1e-7 of a number, which now and
// then rounds a key or a value to the next half (2^-11 of it). Tiny models' logits move by 1e-5 then;
// keys and values of another text move them by tenths.
const tie = 1e-3

// tied says whether two answers to one prompt are the same, or part where two tokens are as likely: after that
// they are different texts.
func tied(a, b []sampling.Token) bool {
	if len(a) != len(b) {
		return false
	}
	near := func(t sampling.Token, other int32) bool {
		i := slices.IndexFunc(t.Top, func(l sampling.Logprob) bool { return l.ID == other })
		return i >= 0 && t.Logprob-t.Top[i].Logprob <= tie
	}
	for i := range a {
		if a[i].ID != b[i].ID {
			return near(a[i], b[i].ID) && near(b[i], a[i].ID)
		}
	}
	return true
}

// stormOfModels; exact: with weights in halves, on a path where a token's arithmetic does not depend on
// what shares its steps. On others a step of more than 8 tokens rounds activations to bfloat16 beside
// such weights, and a tie is as wide as that is coarse, so there they are float32.
func stormOfModels(t *testing.T, exact bool) {
	const extent = 64 << 10
	steps := max(stormSteps(t)/50, 20)
	s := &storm{t: t, seed: stormSeed(t), homes: map[string]*api.Home{}, versions: map[string]int{}}
	s.rng = rand.New(rand.NewPCG(s.seed, 12))
	paths := map[string]string{}
	var names []string
	capacity := int64(0)
	for i, kind := range []string{"llama", "qwen3", "gemma2", "mixtral", "phi3", "mistral", "qwen2", "qwen3_moe"} {
		name := "ns/" + kind
		config := fixture.Draw(kind, s.seed%1000+uint64(i))
		config["max_position_embeddings"] = 256
		if !exact {
			config["torch_dtype"] = "float32"
		}
		paths[name] = fixture.WriteHF(t, t.TempDir(), config, fixture.Family(config, s.seed))
		names = append(names, name)
	}
	context_ := api.Context{MaxTokens: 200}
	for _, path := range paths {
		h, err := model.Inspect(path)
		if err != nil {
			t.Fatal(err)
		}
		c, _ := residency.Clamp(context_, h.Config.MaxPositions)
		f, err := estimate(anyBackend(), h, c, extent)
		if err != nil {
			t.Fatal(err)
		}
		capacity += residency.Need(f) * 2 / 5 // room for some
		capacity = max(capacity, residency.Need(f))
	}
	capacity = residency.RoundUp(capacity, extent)
	w, err := New(Options{
		Name: "w0", Pool: "default/cpu", Log: slog.New(slog.DiscardHandler), Drain: 10 * time.Second,
		Devices: []device.Device{{Name: "cpu-0", Kind: "cpu", Extent: extent, Capacity: capacity}},
		Fetch:   func(_ context.Context, src api.Source, _ func(float64)) (string, error) { return src.URI, nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	s.w = w
	ctx, cancel := context.WithCancel(context.Background())
	ran := make(chan error, 1)
	go func() { ran <- w.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-ran; err != nil {
			t.Error(err)
		}
	}()
	home := func(name string) api.Home {
		return api.Home{Model: name, Source: api.Source{URI: paths[name]}, Context: context_, Devices: []string{"cpu-0"}, Resident: s.rng.IntN(5) == 0}
	}
	for _, name := range names {
		h := home(name)
		s.homes[name] = &h
	}
	s.assign()
	var answers sync.Map // model, prompt -> its tokens
	ask := func(name string) {
		long := s.rng.IntN(4) == 0
		at, n := s.rng.Uint64N(6), 1+s.rng.IntN(20)
		if long {
			n = 100 + s.rng.IntN(80)
		}
		key := fmt.Sprint(name, at, n)
		r := engine.Request{MaxTokens: 10, IgnoreStop: true, Sampling: sampling.Params{Logprobs: true, TopLogprobs: 2}}
		vocabulary := rand.New(rand.NewPCG(at, uint64(n)))
		for range n {
			r.Prompt = append(r.Prompt, vocabulary.Int32N(2)) // every model knows two
		}
		s.running.Go(func() {
			s.request(name, r, 2*time.Minute, func(events []engine.Event) {
				var answer []sampling.Token
				for _, e := range events {
					if e.Finish == "" {
						answer = append(answer, e.Token)
					}
				}
				known, before := answers.LoadOrStore(key, answer)
				if first := known.([]sampling.Token); before && (exact && !reflect.DeepEqual(first, answer) || !tied(first, answer)) {
					s.fail("%s: %v, and before %v", key, answer, first)
				}
			})
		})
	}
	for range steps {
		s.mu.Lock()
		if s.rng.IntN(3) == 0 {
			s.change(names, home)
		}
		s.mu.Unlock()
		for range s.rng.IntN(4) {
			ask(names[s.rng.IntN(len(names))])
		}
		time.Sleep(time.Duration(s.rng.IntN(10)) * time.Millisecond)
		s.check()
		programs, slab := w.devices[0].backend.(*cpu.Backend).Held()
		if programs+slab > capacity {
			s.fail("programs hold %d bytes and keys and values %d, of %d", programs, slab, capacity)
		}
	}
	s.over()
	loads := int64(0)
	for _, c := range w.Counters() {
		loads += c.Loads
	}
	t.Logf("%d steps: %d requests, %d answered, %d refused, %d lacked, %d cut, %d left; %d loads", steps, s.requests.Load(), s.answered.Load(), s.refused.Load(), s.lacked.Load(), s.cut.Load(), s.left.Load(), loads)
	if s.answered.Load() < int64(steps)/4 {
		t.Error("too little happened")
	}
}
