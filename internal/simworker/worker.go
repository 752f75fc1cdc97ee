package simworker

import (
	"cmp"
	"context"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"time"

	api "github.com/estiba/estiba/api/worker"
	"github.com/estiba/estiba/runtime/residency"
)

// Worker is one simulated worker: a pod's process, until Restart starts another one in it.
type Worker struct {
	o          *Options
	name, pool string
	address    string // that its pod has
	listener   net.Listener
	ended      chan struct{} // closed with the pod

	mu       sync.Mutex
	process  int
	over     chan struct{} // closed when the process ends
	changed  chan struct{} // closed with each change
	state    api.State     // but for devices, homes and time
	assigned bool
	stopping bool
	homes    map[string]*home // model -> home
	used     int64            // bytes of the device's account
	again    *time.Timer      // of the next home that will have been idle for long enough
	loads    int
	refusals []api.Refusal
}

// home is a model that the worker may hold.
type home struct {
	want      api.Home
	footprint api.Footprint
	maxTokens int
	phase     api.Phase
	reason    string
	message   string
	held      int64 // bytes in the device's account
	began     time.Time
	takes     time.Duration // to load
	loadedAt  time.Time     // zero: it is not on the device
	lastUse   time.Time
	since     time.Time // requests have waited
	running   int
	waiting   int
	completed int64
	gone      bool // no longer named: it ends its requests
	load      residency.Share
	awake     residency.Share
}

// Name of the worker, and of its pod.
func (w *Worker) Name() string { return w.name }

// Address is the IP address of its pod.
func (w *Worker) Address() string { return w.address }

// Restart ends the worker's process and starts another one in the same pod: it
// holds nothing, and takes no assignment that is meant for the one before.
func (w *Worker) Restart() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.over != nil {
		close(w.over)
	}
	if w.again != nil {
		w.again.Stop()
	}
	w.process++
	w.over, w.changed = make(chan struct{}), make(chan struct{})
	w.state = api.State{Worker: w.name, Pool: w.pool, Instance: fmt.Sprintf("%s.%d", w.name, w.process), Version: "simulated"}
	w.assigned, w.stopping, w.homes, w.used = false, false, map[string]*home{}, 0
}

// stop ends the pod.
func (w *Worker) stop() {
	w.listener.Close()
	w.mu.Lock()
	defer w.mu.Unlock()
	close(w.over)
	w.over = nil
	close(w.ended)
	if w.again != nil {
		w.again.Stop()
	}
}

// State is what the worker reports now.
func (w *Worker) State() api.State {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.report(time.Now())
}

// Holds is how many homes the worker has.
func (w *Worker) Holds() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.homes)
}

// Refusals are those with which the worker answered assignments.
func (w *Worker) Refusals() []api.Refusal {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.refusals)
}

// Drain takes no more requests, as a real worker does on SIGTERM.
func (w *Worker) Drain() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.stopping = true
	w.settle(time.Now())
}

// Ask makes n requests for a model run here until they are set anew, waking it
// if need be. It reports false if the worker lacks the model or drains it.
func (w *Worker) Ask(model string, n int) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := time.Now()
	h := w.homes[model]
	if !w.serves(h) && (n > 0 || h == nil) {
		return false
	}
	h.tick(now)
	h.completed += int64(max(h.running+h.waiting-n, 0))
	h.running, h.waiting = 0, n
	if !h.loadedAt.IsZero() {
		h.running, h.waiting = n, 0
	}
	if h.waiting > 0 && h.since.IsZero() {
		h.since = now
	}
	h.lastUse = now
	w.settle(now)
	return true
}

func (w *Worker) draining() bool { return w.stopping || w.state.Draining }

func (w *Worker) serves(h *home) bool {
	return h != nil && !w.draining() && !h.gone && !h.want.Draining
}

// assign takes an assignment, or says why not.
func (w *Worker) assign(a api.Assignment) *api.Refusal {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := &w.state
	order := cmp.Or(cmp.Compare(a.Epoch, s.Epoch), cmp.Compare(a.Generation, s.Generation))
	if a.Instance != s.Instance || w.assigned && order < 0 {
		no := api.Refusal{Reason: api.RefusedInstance, Message: "The assignment is meant for " + a.Instance + ".", Epoch: s.Epoch, Generation: s.Generation, Instance: s.Instance}
		if a.Instance == s.Instance {
			no.Reason, no.Message = api.RefusedOlder, fmt.Sprintf("Epoch %d, generation %d is older.", a.Epoch, a.Generation)
		}
		w.refusals = append(w.refusals, no)
		return &no
	}
	if w.assigned && order == 0 {
		return nil
	}
	now := time.Now()
	w.assigned, s.Epoch, s.Generation, s.Draining = true, a.Epoch, a.Generation, a.Drain
	named := map[string]bool{}
	for _, want := range a.Homes {
		named[want.Model] = true
		h := w.homes[want.Model]
		if h == nil || h.want.Revision != want.Revision { // of a new revision the old one goes at once
			w.free(h)
			h = w.newHome(want, now)
			w.homes[want.Model] = h
		}
		h.want, h.gone = want, false
	}
	for model, h := range w.homes {
		h.gone = !named[model]
	}
	w.settle(now)
	return nil
}

func (w *Worker) newHome(want api.Home, now time.Time) *home {
	in := w.o.Inspect(api.InspectRequest{Source: want.Source, Format: want.Format, Context: want.Context})
	h := &home{want: want, footprint: in.Footprint, maxTokens: in.MaxTokens, phase: api.PhaseIdle, lastUse: now,
		load: residency.Share{At: now}, awake: residency.Share{Value: residency.NewAwake, At: now}}
	if in.Error != nil {
		h.phase, h.reason, h.message = api.PhaseFailed, in.Error.Reason, in.Error.Message
	}
	return h
}

// settle does what the residency decides, until it has nothing more to do; mu is held.
func (w *Worker) settle(now time.Time) {
	for model, h := range w.homes {
		if (h.gone || h.want.Draining || w.draining()) && h.running+h.waiting == 0 {
			w.free(h)
			if h.gone {
				delete(w.homes, model)
			}
		}
	}
	device := w.o.Device
	for {
		account := residency.Account{Device: device.Name, Capacity: device.CapacityBytes, Used: w.used}
		d := residency.Decide([]residency.Account{account}, w.candidates(), now)
		for _, h := range w.homes {
			if h.phase == api.PhaseRefused {
				h.phase, h.reason, h.message = api.PhaseIdle, "", ""
			}
		}
		for _, r := range d.Refusals {
			h := w.homes[r.Model]
			h.phase, h.reason, h.message = api.PhaseRefused, api.ReasonDoesNotFit, r.Message
		}
		for _, l := range d.Loads {
			w.load(w.homes[l.Model], now)
		}
		for _, e := range d.Evictions {
			w.free(w.homes[e.Model])
		}
		if len(d.Evictions) == 0 { // room is there at once: look again
			w.lookAgain(d.Again, now)
			break
		}
	}
	close(w.changed)
	w.changed = make(chan struct{})
}

// candidates are the homes as the residency sees them.
func (w *Worker) candidates() []residency.Home {
	var all []residency.Home
	for _, h := range w.homes {
		if h.phase == api.PhaseFailed || !w.serves(h) && h.held == 0 {
			continue
		}
		all = append(all, residency.Home{
			Model: h.want.Model, Device: w.o.Device.Name, Need: h.footprint.Total(), Held: h.held, Loaded: !h.loadedAt.IsZero(),
			Required: h.want.Resident, Waiting: h.waiting, Running: h.running, WaitingSince: h.since, LastUse: h.lastUse,
			IdleAfter:     time.Duration(h.want.IdleSeconds * float64(time.Second)),
			EvictionOrder: h.want.EvictionOrder, NeverEvict: h.want.NeverEvict,
		})
	}
	return all
}

// lookAgain settles once more at a time.
func (w *Worker) lookAgain(at, now time.Time) {
	if w.again != nil {
		w.again.Stop()
		w.again = nil
	}
	if at.IsZero() {
		return
	}
	process := w.process
	w.again = time.AfterFunc(at.Sub(now), func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.over != nil && w.process == process {
			w.settle(time.Now())
		}
	})
}

// load admits a home and puts it on the device after the time that it takes.
func (w *Worker) load(h *home, now time.Time) {
	h.phase, h.held, h.began, h.takes = api.PhaseLoading, h.footprint.Total(), now, w.loadTime(h)
	w.used += h.held
	if h.takes == 0 {
		w.loaded(h, now)
		return
	}
	process := w.process
	time.AfterFunc(h.takes, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.over != nil && w.process == process && w.homes[h.want.Model] == h && h.phase == api.PhaseLoading {
			w.loaded(h, time.Now())
			w.settle(time.Now())
		}
	})
}

func (w *Worker) loaded(h *home, now time.Time) {
	h.tick(now)
	h.phase, h.loadedAt, h.footprint.Measured = api.PhaseResident, now, true
	h.running, h.waiting, h.since = h.running+h.waiting, 0, time.Time{}
	w.loads++
}

// loadTime is the same for a seed, a worker, a model and the number of loads before.
func (w *Worker) loadTime(h *home) time.Duration {
	if w.o.Bandwidth <= 0 {
		return 0
	}
	f := fnv.New64a()
	fmt.Fprintf(f, "%s %s %d", w.name, h.want.Model, w.loads)
	factor := 0.8 + 0.4*rand.New(rand.NewPCG(w.o.Seed, f.Sum64())).Float64()
	return time.Duration(factor * float64(h.footprint.Total()) / float64(w.o.Bandwidth) * float64(time.Second))
}

// free takes a home from the device.
func (w *Worker) free(h *home) {
	if h == nil || h.held == 0 {
		return
	}
	w.used -= h.held
	h.held, h.loadedAt, h.phase, h.takes = 0, time.Time{}, api.PhaseIdle, 0
}

// tick brings the moving averages up to now.
func (h *home) tick(now time.Time) {
	var busy time.Duration
	if h.running > 0 {
		busy = now.Sub(h.load.At)
	}
	var awake time.Duration
	if h.running+h.waiting > 0 {
		awake = now.Sub(h.awake.At)
	}
	h.load, h.awake = h.load.Add(busy, now, residency.LoadOver), h.awake.Add(awake, now, residency.AwakeOver)
}

// report is the worker's state; mu is held.
func (w *Worker) report(now time.Time) api.State {
	s := w.state
	s.Time, s.Draining = now, w.draining()
	device := w.o.Device
	device.UsedBytes = w.used
	s.Devices, s.Homes = []api.Device{device}, make([]api.HomeState, 0, len(w.homes))
	for _, h := range w.homes {
		s.Homes = append(s.Homes, h.report(now))
	}
	slices.SortFunc(s.Homes, func(a, b api.HomeState) int { return cmp.Compare(a.Model, b.Model) })
	return s
}

func (h *home) report(now time.Time) api.HomeState {
	h.tick(now)
	s := api.HomeState{
		Model: h.want.Model, Revision: h.want.Revision, ServedNames: h.want.ServedNames, Devices: h.want.Devices,
		Tier: api.TierDisk, Phase: h.phase, Reason: h.reason, Message: h.message, Footprint: h.footprint, MaxTokens: h.maxTokens,
		Running: h.running, Waiting: h.waiting, Completed: h.completed, Load: h.load.Value, Awake: h.awake.Value,
		LoadSeconds: h.takes.Seconds(), WantResident: h.want.Resident && !h.gone,
	}
	switch {
	case !h.loadedAt.IsZero():
		s.Tier, s.ResidentSeconds = api.TierDevice, now.Sub(h.loadedAt).Seconds()
	case h.phase == api.PhaseLoading:
		s.Progress = min(now.Sub(h.began).Seconds()/h.takes.Seconds(), 1)
	}
	if s.Leaving = h.gone || h.want.Draining; s.Leaving {
		s.Phase, s.Progress = api.PhaseDraining, 0
	}
	if h.running+h.waiting == 0 {
		s.IdleSeconds = now.Sub(h.lastUse).Seconds()
	}
	return s
}

// watch gives states as a real worker does: at once, with each change (at most
// one in 50 ms), and at least once a second; until ctx or the process ends.
func (w *Worker) watch(ctx context.Context, give func(api.State) bool) {
	const atMost, atLeast = 50 * time.Millisecond, time.Second
	w.mu.Lock()
	over := w.over
	w.mu.Unlock()
	timer := time.NewTimer(0)
	defer timer.Stop()
	wait := func(d time.Duration, changed <-chan struct{}) bool {
		timer.Reset(d)
		select {
		case <-timer.C:
		case <-changed:
		case <-over:
			return false
		case <-w.ended:
			return false
		case <-ctx.Done():
			return false
		}
		return true
	}
	for {
		w.mu.Lock()
		changed, s := w.changed, w.report(time.Now())
		same := w.over == over
		w.mu.Unlock()
		if !same || !give(s) || !wait(atMost, nil) || !wait(atLeast-atMost, changed) {
			return
		}
	}
}

// request runs one request for a model: it waits for the model, and takes its
// time. It reports false if the worker lacks the model or drains it.
func (w *Worker) request(ctx context.Context, model string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	h := w.homes[model]
	if !w.serves(h) {
		return false
	}
	over := w.over
	if !w.await(ctx, h) {
		return false
	}
	w.mu.Unlock()
	pause(ctx, w.o.Answer)
	w.mu.Lock()
	h.tick(time.Now())
	h.running, h.lastUse = max(h.running-1, 0), time.Now()
	h.completed++
	if w.over == over {
		w.settle(time.Now())
	}
	return true
}

// await adds a request to those that h runs, once it is on the device. It reports
// false if it will not be, or ctx ends first. mu is held, but while it waits.
func (w *Worker) await(ctx context.Context, h *home) bool {
	now := time.Now()
	h.tick(now)
	h.lastUse = now
	if !h.loadedAt.IsZero() {
		h.running++
		return true
	}
	h.waiting++ // loaded makes them running
	if h.since.IsZero() {
		h.since = now
	}
	w.settle(now)
	for h.loadedAt.IsZero() {
		over, changed := w.over, w.changed
		w.mu.Unlock()
		select {
		case <-changed:
		case <-over:
		case <-ctx.Done():
		}
		w.mu.Lock()
		if ctx.Err() != nil || w.over != over || w.homes[h.want.Model] != h || !w.serves(h) {
			h.waiting = max(h.waiting-1, 0)
			return false
		}
	}
	return true
}
