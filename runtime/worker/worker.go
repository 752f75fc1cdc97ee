// Package worker is one worker: it takes assignments, brings the models that
// have a home here onto its devices and off them, and reports what is so. Which
// of them are on a device is residency's decision; each home has a goroutine that
// carries it out. Start with Worker.Assign, settle and home.run.
package worker

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	api "github.com/estiba/estiba/api/worker"
	"github.com/estiba/estiba/runtime/backend"
	"github.com/estiba/estiba/runtime/device"
	"github.com/estiba/estiba/runtime/energy"
	"github.com/estiba/estiba/runtime/engine"
	"github.com/estiba/estiba/runtime/model"
	"github.com/estiba/estiba/runtime/residency"
)

// Options of a worker. Name, Devices and Fetch are required.
type Options struct {
	Name    string // pod name
	Pool    string // "namespace/name"
	Version string // of the program
	Devices []device.Device
	// Fetch makes a source's files available and returns their path, which stays
	// good until Release. An error with a method Reason() string says which of the
	// wire's reasons it is; else it is SourceUnavailable.
	Fetch func(ctx context.Context, src api.Source, progress func(done float64)) (string, error)
	// Release says that a path is no longer used; may be nil.
	Release func(path string)
	// Header makes the files' headers available, for Inspect; nil means Fetch.
	Header func(ctx context.Context, src api.Source) (path string, done func(), err error)
	// Drain is how long running requests may go on when their home goes away; 0 means 5 min.
	Drain time.Duration
	// Threads that compute on the processor; 0: as many as it and the CPU quota allow.
	Threads int
	// Journal is a file in which this process notes what it is doing, for the one that
	// comes after it in the same place; empty: none.
	Journal string
	// Missing says what the worker was to be given and was not, in sentences that are reported; empty: nothing.
	Missing string
	// Monitor knows those of Devices that have a UUID, and is read once a second; nil: nobody watches.
	Monitor device.Monitor
	// Emulated: the devices are not there, whatever their Kind, and the processor computes for them.
	Emulated bool
	Log      *slog.Logger // nil means slog.Default()
}

// ErrLacks says that a model has no home here, or that the home or the worker
// drains. Another worker may take the request (421).
var ErrLacks = errors.New("this worker does not hold the model, or drains it")

// UnavailableError says why a model that has a home here cannot serve now.
type UnavailableError struct {
	Model, Reason, Message string
	RetryAfter             time.Duration // when trying again may help
}

func (e *UnavailableError) Error() string {
	return fmt.Sprintf("model %s cannot serve: %s: %s", e.Model, e.Reason, e.Message)
}

// Worker holds models on devices. Its methods may be called from any goroutine.
type Worker struct {
	o        Options
	log      *slog.Logger
	instance string
	devices  []*claimed
	journal  *journal      // nil: none
	previous *api.Previous // what the process before this one left

	// What tests replace: the parts that need a real model.
	inspect func(path string) (model.Header, error)
	load    func(ctx context.Context, h api.Home, path string, d *claimed, c api.Context, admitted api.Footprint, progress func(float64)) (*Loaded, error)

	broken  chan error    // of a device that this process can make no more use of, which ends Run
	reading chan struct{} // holds a place while a model's header or tokenizer is read: one at a time, since what that takes is in no account

	mu         sync.Mutex
	homes      map[string]*home // model -> home; also those that are on their way out
	olds       []*home          // former revisions of those, until they have left the device
	running    sync.WaitGroup   // the homes' goroutines
	assigned   bool             // an assignment has been taken
	epoch      int64
	generation int64
	drainAsked bool // by the assignment
	leaving    bool // by Drain: for good
	stopped    bool
	timer      *time.Timer   // calls settle when a home will have been idle for long enough
	changed    chan struct{} // closed and replaced on each change
	counters   map[string]*counted
}

// claimed is a device with what runs on it.
type claimed struct {
	device.Device
	backend backend.Backend
	engine  *engine.Engine
	loads   atomic.Int64
	watched *watched      // nil: nobody watches it
	failed  api.Health    // Lost, where a step or a load found that out; guarded by Worker.mu
	dead    chan struct{} // closed once it is lost
	ended   chan struct{} // closed once its engine has stopped
	budget  int           // extents that its replicas' KV blocks may take together; guarded by Worker.mu
}

// replica is a name in the engine for the next load of a model: two revisions may be there.
func (d *claimed) replica(model string) string { return fmt.Sprintf("%s#%d", model, d.loads.Add(1)) }

// Counters of one model since its home came here.
type Counters struct {
	Loads, LoadFailures        int64
	LoadSeconds                float64
	BusySeconds                float64 // of the device
	PromptTokens, OutputTokens int64
	PrefixQueries, PrefixHits  int64 // tokens
	Completed                  int64
	Preempted                  int64 // times that a request gave up its KV blocks
}

const (
	defaultDrain = 5 * time.Minute
	// keepCounters is how long those of a model stay when its home has gone, so that
	// somebody reads the last of them.
	keepCounters = 10 * time.Minute
)

// counted are the counters of a model whose home may have gone.
type counted struct {
	Counters
	gone     time.Time // zero: it is here
	lastLoad float64   // seconds that it took
	busy     float64   // BusySeconds that are in load
	load     residency.Share
	awake    residency.Share
}

// New is a worker that holds nothing yet; Run makes it work.
func New(o Options) (*Worker, error) {
	if len(o.Devices) == 0 {
		return nil, errors.New("a worker needs a device")
	}
	if o.Drain == 0 {
		o.Drain = defaultDrain
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if o.Release == nil {
		o.Release = func(string) {}
	}
	if o.Header == nil {
		o.Header = func(ctx context.Context, src api.Source) (string, func(), error) {
			path, err := o.Fetch(ctx, src, func(float64) {})
			return path, func() { o.Release(path) }, err
		}
	}
	w := &Worker{
		o: o, log: o.Log, instance: rand.Text(), homes: map[string]*home{},
		changed: make(chan struct{}), counters: map[string]*counted{},
		inspect: model.Inspect, broken: make(chan error, 1), reading: make(chan struct{}, 1),
	}
	w.load = w.loadModel
	if err := w.openJournal(); err != nil {
		return nil, err
	}
	for _, d := range o.Devices {
		b, err := openBackend(d, o)
		if e, ok := errors.AsType[*backend.DeviceError](err); ok && e.Lost && !d.Lost {
			o.Log.Warn("device not opened", "error", err)
			d.Lost = true
			b, err = openBackend(d, o)
		}
		if err != nil {
			for _, other := range w.devices { // another worker of this process may open them
				err = errors.Join(err, other.backend.Close())
			}
			return nil, err
		}
		n := extents(d.Capacity, d.Extent)
		c := &claimed{Device: d, backend: b, dead: make(chan struct{}), ended: make(chan struct{}), budget: n, engine: engine.New(engine.Options{
			Log: o.Log, Failed: w.broke, Extents: n, Discard: b.Discard,
		})}
		if d.Lost {
			c.failed = api.Health{State: api.DeviceLost, Reason: gone, Since: time.Now().UTC(),
				Message: "it did not answer when the worker started; look for XIDs in the kernel's log and reset the device"}
			if d.Missing {
				c.failed.Reason, c.failed.Message = api.ReasonMissing, o.Missing
			}
			o.Log.Warn("device lost", "device", d.Name, "message", c.failed.Message)
		}
		if o.Monitor != nil && d.UUID != "" {
			c.watched = &watched{claim: residency.NewClaim(d.Capacity), use: map[string]energy.Use{}}
		}
		w.devices = append(w.devices, c)
	}
	w.timer = time.AfterFunc(time.Hour, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.settle()
	})
	return w, nil
}

// Run works until ctx ends; then everything leaves the devices, at once, and the monitor is closed. Drain
// before that lets requests end. It ends by itself with a *backend.DeviceError where a
// device can only be used by another process from now on: the journal then says what ran.
func (w *Worker) Run(ctx context.Context) error {
	steps, stop := context.WithCancel(context.WithoutCancel(ctx))
	failed := make(chan error, len(w.devices))
	for _, d := range w.devices {
		go func() {
			defer close(d.ended)
			debug.SetPanicOnFault(true) // a mapped file that was cut short is one model's fault
			if err := d.engine.Run(steps); err != nil {
				failed <- fmt.Errorf("run device %s: %w", d.Name, err)
			}
		}()
	}
	if w.o.Monitor != nil {
		go w.watch(steps)
	}
	var err error
	select {
	case <-ctx.Done():
	case err = <-failed:
	case err = <-w.broken:
	}
	w.mu.Lock()
	w.stopped = true
	w.leaving = w.leaving || err == nil // who fails does not drain by that: it comes back in the same place, and is not to be sent away
	w.timer.Stop()
	for h := range w.all() {
		h.leave()
	}
	w.mu.Unlock()
	w.running.Wait()
	w.closeJournal()
	stop()
	for _, d := range w.devices {
		closed, failed := make(chan struct{}), error(nil)
		go func() {
			defer close(closed)
			<-d.ended
			failed = d.backend.Close()
		}()
		whole := d.awaits(closed)
		w.mu.Lock()
		lost := d.lost() != ""
		w.mu.Unlock()
		switch {
		case whole && !lost:
			err = cmp.Or(err, failed) // of a device that has failed, closing it fails as well
		case whole: // which is no news
		default:
			w.log.Warn("device left as it is: it is lost, and what it does does not end", "device", d.Name)
		}
	}
	if w.o.Monitor != nil {
		closeMonitor(w.o.Monitor, w.log)
	}
	return err
}

// Assign takes an assignment, or refuses it: one that is older than what the
// worker holds, or meant for another process. Taking one that it has already
// taken changes nothing.
func (w *Worker) Assign(a api.Assignment) *api.Refusal {
	w.mu.Lock()
	defer w.mu.Unlock()
	refuse := func(reason, message string) *api.Refusal {
		w.log.Warn("assignment refused", "reason", reason, "epoch", a.Epoch, "generation", a.Generation, "heldEpoch", w.epoch, "heldGeneration", w.generation)
		return &api.Refusal{Reason: reason, Message: message, Epoch: w.epoch, Generation: w.generation, Instance: w.instance}
	}
	if a.Instance != w.instance {
		return refuse(api.RefusedInstance, fmt.Sprintf("This is instance %s of worker %s; the assignment is meant for %q.", w.instance, w.o.Name, a.Instance))
	}
	if w.assigned {
		switch cmp.Or(cmp.Compare(a.Epoch, w.epoch), cmp.Compare(a.Generation, w.generation)) {
		case -1:
			return refuse(api.RefusedOlder, fmt.Sprintf("Epoch %d, generation %d is older than epoch %d, generation %d, which worker %s holds.", a.Epoch, a.Generation, w.epoch, w.generation, w.o.Name))
		case 0:
			return nil
		}
	}
	w.assigned, w.epoch, w.generation, w.drainAsked = true, a.Epoch, a.Generation, a.Drain
	w.log.Info("assignment taken", "epoch", a.Epoch, "generation", a.Generation, "homes", len(a.Homes), "drain", a.Drain)
	if w.stopped {
		return nil
	}
	named := map[string]bool{}
	for _, want := range a.Homes {
		named[want.Model] = true
		h := w.homes[want.Model]
		switch {
		case h == nil:
			h = w.newHome(want)
		case h.serves() && h.key != keyOf(want) && !want.Draining:
			old := h
			h = w.newHome(want)
			h.old, old.superseded = old, true
			w.olds = append(w.olds, old)
		}
		h.want, h.gone = want, false
		h.interruptIfStale()
		if want.Draining {
			h.retire("The assignment drains it.")
		}
	}
	for h := range w.all() {
		if !named[h.want.Model] {
			h.leave()
		}
	}
	w.settle()
	w.changedAll()
	return nil
}

// Drain takes no more requests and waits until the running ones have ended, or
// ctx has. It cannot be undone.
func (w *Worker) Drain(ctx context.Context) error {
	w.mu.Lock()
	w.leaving = true
	w.log.Info("draining")
	w.settle()
	w.changedAll()
	for h := range w.all() {
		h.notify() // who waits for it goes elsewhere
	}
	for {
		users := 0
		for h := range w.all() {
			users += h.users
		}
		if users == 0 {
			w.mu.Unlock()
			return nil
		}
		changed := w.changed
		w.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("drain worker %s: %d of its requests had not ended: %w", w.o.Name, users, ctx.Err())
		}
		w.mu.Lock()
	}
}

// Draining says whether the worker takes no more requests.
func (w *Worker) Draining() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.draining()
}

func (w *Worker) draining() bool { return w.drainAsked || w.leaving }

// settle lets residency decide and passes on what it says. w.mu is held. It is
// called on every change of what the decision looks at.
func (w *Worker) settle() {
	accounts := make([]residency.Account, len(w.devices))
	for i, d := range w.devices {
		accounts[i] = residency.Account{Device: d.Name, Capacity: w.capacity(d), Used: w.used(d.Name), Limit: w.limit(d), Lost: d.lost()}
		if accounts[i].Lost != "" {
			w.lose(d) // also of a worker that ends, which waits for what it does
		}
	}
	if w.stopped {
		return
	}
	now := time.Now()
	homes := make([]residency.Home, 0, len(w.homes))
	for h := range w.all() {
		homes = append(homes, h.seen(w.draining(), now))
	}
	decision := residency.Decide(accounts, homes, now)
	for _, l := range decision.Loads {
		h := w.homes[l.Model]
		h.held, h.admitted = residency.Need(h.footprint), true
		w.log.Info("load admitted", "model", l.Model, "device", l.Device, "reason", l.Reason)
		h.set(api.PhaseLoading, "", "")
	}
	for _, e := range decision.Evictions {
		w.log.Info("home evicted", "model", e.Model, "device", e.Device, "reason", e.Reason)
		h := w.homes[e.Model]
		if e.Old {
			h.retire(e.Reason)
			continue
		}
		h.evicted = e.Reason
		h.notify()
	}
	yields := map[*home]string{}
	for _, y := range decision.Yields {
		h := w.homes[y.Model]
		if y.Old {
			h = h.old
		}
		yields[h] = y.Reason
	}
	for h := range w.all() {
		if why := yields[h]; h.yields != why {
			w.log.Info("home yields", "model", h.want.Model, "reason", cmp.Or(why, "nobody needs its room any more"))
			h.yields = why
			if h.phase == api.PhaseResident {
				h.set(api.PhaseResident, "", why)
			}
			h.notify()
			if next := w.homes[h.want.Model]; next != nil && next.old == h {
				next.notify() // who waits for the model waits for its next revision
			}
		}
	}
	refused := map[string]bool{}
	for _, r := range decision.Refusals {
		refused[r.Model] = true
		w.homes[r.Model].refuse(r)
	}
	for _, h := range homes {
		// No longer refused: it waits for memory that is on its way back, or nobody wants it at the moment and a request
		// would wake it. Gateways send none to a home that is refused.
		own := w.homes[h.Model]
		if !h.Old && own.phase == api.PhaseRefused && !refused[h.Model] && (h.Required || h.Waiting > 0 || residency.Fits(accounts, homes, h.Model, now)) {
			own.set(api.PhaseIdle, "", "")
		}
	}
	for _, d := range w.devices {
		w.lend(d)
	}
	if decision.Again.IsZero() {
		w.timer.Stop()
	} else {
		w.timer.Reset(max(decision.Again.Sub(now), time.Millisecond))
	}
}

// all homes, former revisions too. w.mu is held.
func (w *Worker) all() iter.Seq[*home] {
	return func(yield func(*home) bool) {
		for _, h := range w.homes {
			if !yield(h) {
				return
			}
		}
		for _, h := range w.olds {
			if !yield(h) {
				return
			}
		}
	}
}

// used are the bytes admitted on a device: of what loads, is resident, or has not left yet.
func (w *Worker) used(device string) (n int64) {
	for h := range w.all() {
		if h.key.device == device {
			n += h.held
		}
	}
	return n
}

// lend lets the replicas of a device have all of it for KV blocks that no weights and no
// workspace take: those that are admitted, too. What is guaranteed to each is within that. w.mu is held.
func (w *Worker) lend(d *claimed) {
	free := w.capacity(d)
	for h := range w.all() {
		if h.key.device == d.Name {
			free -= max(h.held-h.footprint.KVFloorBytes, 0)
		}
	}
	n := extents(free, d.Extent)
	if n == d.budget {
		return
	}
	if err := d.engine.Resize(n); err != nil {
		w.log.Error("extents not lent", "device", d.Name, "error", err)
		return
	}
	d.budget = n
}

func (w *Worker) device(name string) *claimed {
	if i := slices.IndexFunc(w.devices, func(d *claimed) bool { return d.Name == name }); i >= 0 {
		return w.devices[i]
	}
	return nil
}

// changedAll wakes those who watch the worker. w.mu is held.
func (w *Worker) changedAll() {
	w.note()
	close(w.changed)
	w.changed = make(chan struct{})
}

// count gives the counters of a model. w.mu is held.
func (w *Worker) count(model string) *counted {
	c := w.counters[model]
	if c == nil {
		now := time.Now()
		c = &counted{load: residency.Share{At: now}, awake: residency.Share{Value: residency.NewAwake, At: now}}
		w.counters[model] = c
	}
	return c
}

// measure brings the load and the awake share of a model up to now: before each change
// of what it has of requests, and for a report. w.mu is held.
func (w *Worker) measure(model string, now time.Time) *counted {
	c := w.count(model)
	busy, inUse := c.BusySeconds, time.Duration(0)
	of := func(h *home) {
		if s, ok := h.stats(); ok {
			busy += s.Busy.Seconds()
		}
		if h.users+h.waiting > 0 {
			inUse = now.Sub(c.awake.At)
		}
	}
	if h := w.homes[model]; h != nil {
		of(h)
	}
	for _, h := range w.olds {
		if h.want.Model == model {
			of(h)
		}
	}
	c.load = c.load.Add(time.Duration((busy-c.busy)*float64(time.Second)), now, residency.LoadOver)
	c.awake = c.awake.Add(inUse, now, residency.AwakeOver)
	c.busy = busy
	return c
}

// uncount says that a model's home has gone, and drops what those before it left. w.mu is held.
func (w *Worker) uncount(model string, now time.Time) {
	if c := w.counters[model]; c != nil {
		c.gone = now
	}
	for name, c := range w.counters {
		if c.gone.IsZero() || now.Sub(c.gone) <= keepCounters {
			continue
		}
		delete(w.counters, name)
		for _, d := range w.devices {
			if d.watched != nil {
				d.watched.forget(name)
			}
		}
	}
}

// Counters of every model that has a home here, or had one until lately.
func (w *Worker) Counters() map[string]Counters {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.uncount("", time.Now())
	all := map[string]Counters{}
	for name, c := range w.counters {
		all[name] = c.Counters
	}
	for h := range w.all() {
		if s, ok := h.stats(); ok {
			c := all[h.want.Model]
			c.add(s)
			all[h.want.Model] = c
		}
	}
	return all
}

func (c *Counters) add(s engine.Stats) {
	c.PromptTokens += s.PromptTokens
	c.OutputTokens += s.OutputTokens
	c.PrefixQueries += s.Prefix.Queries
	c.PrefixHits += s.Prefix.Hits
	c.Completed += s.Completed
	c.Preempted += s.Preempted
	c.BusySeconds += s.Busy.Seconds()
}
