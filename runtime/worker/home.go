package worker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"time"

	api "github.com/estiba/estiba/api/worker"
	"github.com/estiba/estiba/runtime/energy"
	"github.com/estiba/estiba/runtime/engine"
	"github.com/estiba/estiba/runtime/residency"
)

// home is a model that may live here. Its goroutine (run) does one thing at a
// time: fetch, load, unload. All fields below mu are guarded by Worker.mu.
type home struct {
	w    *Worker
	kick chan struct{} // next may have another answer

	want api.Home // the assignment's last word
	gone bool     // the assignment no longer names it
	// old is the revision before this one while that answers in its place;
	// superseded is what such a home is, for good.
	old        *home
	superseded bool
	key        loadKey // what path, footprint and loaded are of
	path       string  // of the files, once they are here
	footprint  api.Footprint
	context    api.Context        // after clamping
	held       int64              // bytes in the device's account
	admitted   bool               // they are for a load that has not ended
	loaded     *Loaded            // while resident
	leaving    *Loaded            // while it ends its requests
	broken     *fault             // why the engine gave it up, while it is loaded
	evicted    string             // why it has to leave the device; empty: it may stay
	yields     string             // to whom it makes room once its requests have ended; empty: it takes more
	cancel     context.CancelFunc // of the fetch, load or unload under way
	unloading  bool

	phase    api.Phase
	reason   string
	message  string
	progress float64

	users        int // of loaded
	waiting      int // for it
	waitingSince time.Time
	wantedSince  time.Time // since when the assignment has wanted it in vain; zero: it has not
	crowded      bool      // while refused: there will be room, at the latest in its turn
	lastUse      time.Time
	loadedAt     time.Time
	failures     int           // in a row
	retry        time.Time     // not before then
	loadFailed   bool          // the last failure was not the fetch's
	stepFailed   bool          // it broke when it was last resident: failures count on until it has answered
	bad          string        // stamp of files that cannot be loaded as they are
	why          *fault        // what is wrong with those
	metered      energy.Use    // of loaded, or of leaving: what its device's meter has
	changed      chan struct{} // closed and replaced on each change
}

// loadKey is the part of an assignment that a load depends on: where it
// changes, the model is loaded anew.
type loadKey struct {
	revision, uri, digest, format, device string
	devices                               int
	context                               api.Context
}

func keyOf(h api.Home) loadKey {
	k := loadKey{revision: h.Revision, uri: h.Source.URI, digest: h.Source.Digest, format: h.Format, devices: len(h.Devices), context: h.Context}
	if len(h.Devices) > 0 {
		k.device = h.Devices[0]
	}
	return k
}

// newHome starts a home's goroutine. w.mu is held.
func (w *Worker) newHome(want api.Home) *home {
	h := &home{w: w, kick: make(chan struct{}, 1), want: want, key: keyOf(want), phase: api.PhaseIdle, lastUse: time.Now(), changed: make(chan struct{})}
	w.homes[want.Model] = h
	w.count(want.Model).gone = time.Time{}
	w.running.Go(h.run)
	return h
}

// step is what a home's goroutine does next.
type step int

const (
	stepWait  step = iota // until something changes
	stepRetry             // wait until the time for another try
	stepReset             // the files are of an older assignment: forget them
	stepFetch
	stepLoad
	stepUnload
	stepQuit
)

// next is the decision of one home's goroutine. w.mu is held.
func (h *home) next(now time.Time) step {
	stale := h.key != keyOf(h.want)
	switch {
	case h.loaded != nil && (h.gone || stale || h.want.Draining || h.evicted != "" || h.broken != nil):
		return stepUnload
	case h.gone || h.superseded && h.loaded == nil:
		return stepQuit
	case stale:
		return stepReset
	case h.want.Draining || h.w.draining():
		return stepWait
	case now.Before(h.retry):
		return stepRetry
	case h.path == "":
		return stepFetch
	case h.admitted:
		return stepLoad
	}
	return stepWait
}

// run is the goroutine of a home.
func (h *home) run() {
	w := h.w
	for {
		w.mu.Lock()
		now := time.Now()
		step := h.next(now)
		retry := h.retry.Sub(now)
		if step == stepQuit {
			// A load that was admitted and never began, then the files.
			h.release()
			if h.superseded {
				w.olds = slices.DeleteFunc(w.olds, func(o *home) bool { return o == h })
			} else {
				delete(w.homes, h.want.Model)
				w.uncount(h.want.Model, now)
			}
			w.settle()
			h.notify()
			w.mu.Unlock()
			return
		}
		w.mu.Unlock()
		switch step {
		case stepWait:
			<-h.kick
		case stepRetry:
			timer := time.NewTimer(retry)
			select {
			case <-h.kick:
			case <-timer.C:
			}
			timer.Stop()
		case stepReset:
			h.reset()
		case stepFetch:
			h.fetch()
		case stepLoad:
			h.load()
		case stepUnload:
			h.unload()
		}
	}
}

// reset forgets what belongs to an older assignment.
func (h *home) reset() {
	h.w.mu.Lock()
	defer h.w.mu.Unlock()
	h.release()
	h.key = keyOf(h.want)
	h.footprint, h.context = api.Footprint{}, api.Context{}
	h.failures, h.retry, h.loadFailed, h.stepFailed, h.bad, h.why = 0, time.Time{}, false, false, "", nil
	h.set(api.PhaseIdle, "", "")
	h.w.settle()
}

// release gives back the files and an admission that was not used. w.mu is held.
func (h *home) release() {
	if h.path != "" {
		h.w.o.Release(h.path)
		h.path = ""
	}
	h.held, h.admitted = 0, false
}

// fetch brings the files and learns the footprint from their header.
func (h *home) fetch() {
	w := h.w
	ctx, want := h.begin()
	defer h.end()
	h.update(func() {
		if h.failures == 0 { // else what is wrong stays on show until something is better
			h.set(api.PhaseFetching, "", "")
		}
	})
	f, c, path, err := h.prepare(ctx, want)
	now := stamp(path)
	w.mu.Lock()
	defer w.mu.Unlock()
	if err == nil && h.bad != "" && h.bad == now {
		err = h.why // nobody has changed them: a load would end as the last one did
	}
	if err != nil {
		if path != "" {
			w.o.Release(path)
		}
		h.failed(ctx, err)
		return
	}
	if h.bad != "" || !h.loadFailed {
		h.failures = 0
	}
	h.path, h.footprint, h.context, h.bad, h.why = path, f, c, "", nil
	h.set(api.PhaseIdle, "", "")
	w.settle()
}

// prepare does the work of fetch. A path comes with an error too, where the files are what is wrong.
func (h *home) prepare(ctx context.Context, want api.Home) (f api.Footprint, c api.Context, path string, err error) {
	if want.Format != "" && want.Format != "AsStored" {
		return f, c, "", &fault{api.ReasonUnsupportedModel, fmt.Sprintf("This worker cannot make precision %s; use AsStored.", want.Format)}
	}
	if len(want.Devices) != 1 {
		return f, c, "", &fault{api.ReasonUnsupportedModel, fmt.Sprintf("This worker runs a model on one device, not on %d.", len(want.Devices))}
	}
	d := h.w.device(want.Devices[0])
	if d == nil {
		return f, c, "", &fault{api.ReasonDoesNotFit, fmt.Sprintf("This worker has no device %s.", want.Devices[0])}
	}
	over := false
	path, err = h.w.o.Fetch(ctx, want.Source, func(done float64) {
		h.update(func() {
			if over {
				return
			}
			if h.phase != api.PhaseFetching && done > 0 && done < 1 {
				h.set(api.PhaseFetching, "", "")
			}
			h.advance(done)
		})
	})
	h.update(func() { over = true })
	if err != nil {
		return f, c, "", err
	}
	header, err := h.w.header(ctx, path)
	if err != nil {
		return f, c, path, err
	}
	c, _ = residency.Clamp(want.Context, header.Config.MaxPositions)
	if f, err = estimate(d.backend, header, c, d.Extent); err != nil {
		return f, c, path, &fault{api.ReasonDoesNotFit, err.Error()}
	}
	return f, c, path, nil
}

// load puts an admitted home on its device.
func (h *home) load() {
	w := h.w
	ctx, want := h.begin()
	defer h.end()
	w.mu.Lock()
	d, path, c, estimate := w.device(h.key.device), h.path, h.context, h.footprint
	if d.lost() != "" { // since it was admitted
		h.cancel()
	}
	w.mu.Unlock()

	began := time.Now()
	var l *Loaded
	err := d.engine.Reclaimed(ctx) // the memory that was admitted may be lent
	if err == nil {
		l, err = h.loadOn(ctx, d, want, path, c, estimate)
	}
	bad := ""
	if err != nil {
		bad = stamp(path)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	h.admitted = false
	if why := d.lost(); err != nil && why != "" {
		err = &fault{api.ReasonDeviceLost, why}
	}
	if err != nil {
		h.release()
		if ctx.Err() == nil {
			w.count(want.Model).LoadFailures++
			h.loadFailed = true
			if r := reasonOf(err); r == api.ReasonInvalidModel || r == api.ReasonUnsupportedModel {
				h.bad, h.why = bad, &fault{r, err.Error()}
			}
		}
		h.failed(ctx, err)
		return
	}
	// What it really holds is known now, and is what the account has.
	h.footprint = l.footprint
	need := residency.Need(l.footprint)
	if need-h.held > w.capacity(d)-w.used(d.Name) {
		w.log.Error("load holds more than was admitted", "model", want.Model, "estimate", estimate, "measured", l.footprint)
		w.mu.Unlock()
		w.closeLoaded(ctx, l)
		w.mu.Lock()
		h.held = 0
		h.set(api.PhaseIdle, "", "")
		w.settle() // which refuses it, with these numbers
		return
	}
	seconds := time.Since(began).Seconds()
	count := w.count(want.Model)
	count.Loads++
	count.LoadSeconds += seconds
	count.lastLoad = seconds
	w.log.Info("model resident", "model", want.Model, "device", d.Name, "seconds", seconds, "bytes", need)
	h.held, h.loaded, h.loadedAt, h.lastUse = need, l, time.Now(), time.Now()
	h.retry, h.loadFailed = time.Time{}, false
	if !h.stepFailed {
		h.failures = 0
	}
	h.set(api.PhaseResident, "", "")
	h.retire("Its next revision is on the device.")
	w.settle()
}

// loadOn loads a model on a device. One that is lost may never end that: then it is left to it.
func (h *home) loadOn(ctx context.Context, d *claimed, want api.Home, path string, c api.Context, estimate api.Footprint) (*Loaded, error) {
	w := h.w
	var l *Loaded
	var err error
	over := false
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		l, err = w.tryLoad(ctx, want, path, d, c, estimate, func(done float64) {
			h.update(func() {
				if over {
					return
				}
				if h.phase != api.PhaseLoading {
					h.set(api.PhaseLoading, "", "")
				}
				h.advance(done)
			})
		})
	}()
	if d.awaits(ended) {
		return l, err
	}
	h.update(func() { over = true })
	w.log.Warn("load left to its device: it does not end", "model", want.Model, "device", d.Name)
	go func() {
		if <-ended; l != nil {
			w.closeLoaded(ctx, l)
		}
	}()
	return nil, context.Canceled // the device's loss says why
}

// unload takes a home off its device: no new requests, then the end of those
// that run, then the memory goes back to the account.
func (h *home) unload() {
	w := h.w
	w.mu.Lock()
	d := w.device(h.key.device)
	l, why, drain := h.loaded, h.evicted, w.o.Drain
	switch {
	case w.stopped:
		why, drain = "The worker ends.", 0
	case h.broken != nil:
		why, drain = h.broken.message, 0 // its requests have ended
	case d.lost() != "":
		why, drain = d.lost(), 0 // so have they here
	case h.gone:
		why = "The assignment no longer names it."
	case h.want.Draining:
		why = "The assignment drains it."
	case why == "":
		why = "It is loaded anew."
	}
	ctx, cancel := context.WithTimeout(context.Background(), drain)
	h.loaded, h.leaving, h.unloading, h.cancel = nil, l, true, cancel
	if h.broken == nil {
		h.set(api.PhaseDraining, "", why)
	}
	answered := false
	for l.users > 0 && ctx.Err() == nil {
		changed := h.changed
		w.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
		}
		w.mu.Lock()
	}
	h.meter()
	if s, ok := l.Engine.Stats(l.Replica); ok {
		w.count(h.want.Model).add(s)
		answered = s.OutputTokens > 0
	}
	h.leaving, h.metered = nil, energy.Use{}
	w.mu.Unlock()
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		w.closeLoaded(ctx, l) // ends what has not ended by itself
	}()
	if !d.awaits(closed) {
		w.log.Warn("model left to its device: a step of it does not end", "model", h.want.Model, "device", d.Name)
	}
	cancel()

	w.mu.Lock()
	defer w.mu.Unlock()
	broken := h.broken
	h.held, h.evicted, h.yields, h.broken, h.unloading, h.cancel = 0, "", "", nil, false, nil
	w.log.Info("model left the device", "model", h.want.Model, "reason", why)
	if answered {
		h.failures = 0
	}
	h.stepFailed = broken != nil
	if broken != nil && !h.gone && !h.superseded && h.key == keyOf(h.want) {
		h.release()
		h.loadFailed = true
		h.failed(context.Background(), broken)
		return
	}
	h.set(api.PhaseIdle, "", "")
	w.settle()
}

// begin gives the context of a fetch or load, which leave and interruptIfStale cancel.
func (h *home) begin() (context.Context, api.Home) {
	ctx, cancel := context.WithCancel(context.Background())
	h.w.mu.Lock()
	defer h.w.mu.Unlock()
	h.cancel = cancel
	if h.gone || h.key != keyOf(h.want) {
		cancel()
	}
	return ctx, h.want
}

func (h *home) end() {
	h.w.mu.Lock()
	defer h.w.mu.Unlock()
	h.cancel()
	h.cancel = nil
}

// leave makes a home go. w.mu is held.
func (h *home) leave() {
	h.gone = true
	if h.cancel != nil && (!h.unloading || h.w.stopped) {
		h.cancel()
	}
	h.notify()
}

// interruptIfStale ends a fetch or load that is of an older assignment. w.mu is held.
func (h *home) interruptIfStale() {
	if h.cancel != nil && !h.unloading && h.key != keyOf(h.want) {
		h.cancel()
	}
	h.notify()
}

// fault is a reason of the wire with a message for people.
type fault struct{ reason, message string }

func (f *fault) Error() string  { return f.message }
func (f *fault) Reason() string { return f.reason }

// failed notes what went wrong, and when to try again: soon at first, in the end
// seldom where somebody has to change the files, which may never happen. w.mu is held.
func (h *home) failed(ctx context.Context, err error) {
	if ctx.Err() != nil && (h.gone || h.key != keyOf(h.want)) {
		h.w.settle()
		h.notify()
		return // nobody's fault
	}
	reason := reasonOf(err)
	first, most := time.Second, 5*time.Minute
	if reason == api.ReasonSourceUnavailable {
		most = time.Minute
	}
	wait := most
	if h.failures < 10 {
		wait = min(first<<h.failures, most)
	}
	h.failures++
	h.retry = time.Now().Add(wait)
	if h.phase != api.PhaseFailed || h.message != err.Error() {
		h.w.log.Warn("model failed", "model", h.want.Model, "reason", reason, "error", err, "retryIn", wait)
	}
	h.set(api.PhaseFailed, reason, err.Error())
	h.retire("Its next revision failed.")
	h.w.settle()
}

// retire makes the revision before this one leave the device, once its running
// requests have ended. w.mu is held.
func (h *home) retire(why string) {
	if h.old == nil {
		return
	}
	h.old.evicted = cmp.Or(h.old.evicted, why)
	h.old.notify()
	h.old = nil
}

// reasonOf is the wire's word for an error.
func reasonOf(err error) string {
	var r interface {
		error
		Reason() string
	}
	if errors.As(err, &r) {
		return r.Reason()
	}
	return api.ReasonSourceUnavailable
}

// seen is the home as residency looks at it. w.mu is held.
func (h *home) seen(draining bool, now time.Time) residency.Home {
	stale := h.gone || h.want.Draining || h.key != keyOf(h.want)
	wantable := !stale && !draining && h.path != "" // after a failure there is none
	s := residency.Home{
		Model: h.want.Model, Device: h.key.device, Need: residency.Need(h.footprint), Held: h.held,
		Leaving: h.held > 0 && (stale || h.evicted != "" || h.broken != nil || h.unloading), Loaded: h.loaded != nil,
		Required: h.want.Resident || h.old != nil, Running: h.users, LastUse: h.lastUse,
		IdleAfter:     time.Duration(h.want.IdleSeconds * float64(time.Second)),
		EvictionOrder: h.want.EvictionOrder, NeverEvict: h.want.NeverEvict,
		Waiting: h.waiting, WaitingSince: h.waitingSince, ResidentSince: h.loadedAt,
	}
	if c := h.w.counters[h.want.Model]; c != nil {
		s.LoadTook = time.Duration(c.lastLoad * float64(time.Second))
	}
	if s.Old = h.superseded; s.Old || !wantable && h.held == 0 {
		s.Required, s.Waiting = false, 0
	}
	switch {
	case !s.Required || s.Held > 0:
		h.wantedSince = time.Time{}
	case h.wantedSince.IsZero():
		h.wantedSince = now
	}
	s.WantedSince = h.wantedSince
	return s
}

// refuse says that there is no room. w.mu is held.
func (h *home) refuse(r residency.Refusal) {
	message := r.Message
	if r.Crowded {
		message += " It waits until those that need not stay are idle, or for its turn."
	}
	if h.phase != api.PhaseRefused || h.crowded != r.Crowded {
		h.w.log.Warn("load refused", "model", r.Model, "device", r.Device, "reason", message)
	} else if h.message == message {
		return
	}
	h.crowded = r.Crowded
	reason := api.ReasonDoesNotFit
	if r.Lost {
		reason = api.ReasonDeviceLost
	}
	h.set(api.PhaseRefused, reason, message)
	if !r.Crowded {
		h.retire("Its next revision is refused.")
	}
}

// set changes the phase and tells everybody. w.mu is held.
func (h *home) set(p api.Phase, reason, message string) {
	if h.phase != p {
		h.progress = 0
	}
	h.phase, h.reason, h.message = p, reason, message
	h.notify()
}

// advance moves the progress, in steps worth a report. w.mu is held.
func (h *home) advance(done float64) {
	if done >= h.progress+0.01 || done >= 1 && h.progress < 1 {
		h.progress = min(done, 1)
		h.w.changedAll()
	}
}

// update changes a home under the lock.
func (h *home) update(f func()) {
	h.w.mu.Lock()
	defer h.w.mu.Unlock()
	f()
}

// notify wakes the home's goroutine, who waits for it, and who watches. w.mu is held.
func (h *home) notify() {
	select {
	case h.kick <- struct{}{}:
	default:
	}
	close(h.changed)
	h.changed = make(chan struct{})
	h.w.changedAll()
}

// stats of the engine; false if it is not on a device. w.mu is held.
func (h *home) stats() (engine.Stats, bool) {
	l := cmp.Or(h.loaded, h.leaving)
	if l == nil {
		return engine.Stats{}, false
	}
	return l.Engine.Stats(l.Replica)
}

// tryLoad turns a panic, or a fault in a mapped file, into this model's failure.
func (w *Worker) tryLoad(ctx context.Context, h api.Home, path string, d *claimed, c api.Context, admitted api.Footprint, progress func(float64)) (l *Loaded, err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			w.log.Error("load panicked", "model", h.Model, "panic", p, "stack", string(debug.Stack()))
			l, err = nil, &fault{api.ReasonInvalidModel, fmt.Sprintf("The model broke its loader: %v.", p)}
		}
	}()
	return w.load(ctx, h, path, d, c, admitted, progress)
}
