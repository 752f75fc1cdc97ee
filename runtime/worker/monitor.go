package worker

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	api "github.com/estiba/estiba/api/worker"
	"github.com/estiba/estiba/runtime/backend/cuda"
	"github.com/estiba/estiba/runtime/device"
	"github.com/estiba/estiba/runtime/energy"
	"github.com/estiba/estiba/runtime/residency"
)

// What a Monitor says of the devices becomes of them here: what other processes take lowers what
// models may use, a device that is lost is left, and its energy is divided among those who used it.

const (
	// looks is how often the devices are read.
	looks = time.Second
	// recovers is how long a device must have been in a better state before it is in it: what is hot
	// is throttled now and then.
	recovers = 30 * time.Second
	// patient is how long a driver may take to answer.
	patient = 30 * time.Second
	// gone is why a device is lost of which no more is known than that it does not answer, and silent
	// why it is degraded while the driver does not.
	gone, silent = "Gone", "Silent"
	// mostEvents of a device are remembered, and all that it does not survive.
	mostEvents = 64
)

// watched is what the monitor says of a device. Worker.mu guards it.
type watched struct {
	parent   string // UUID of a MIG instance's GPU
	claim    residency.Claim
	overhead int64 // what was neither others' nor claimed at the first reading: headroom, the driver's own
	reading  device.Reading
	read     bool      // there is a reading
	gone     bool      // the device does not answer
	failing  error     // why it could not be read the last time; nil: it could
	answered time.Time // the driver told its figures, or began to be asked
	taken    string    // what others held of it when the claim last changed, in a sentence
	events   []device.Event
	fitness  fitness
	meter    energy.Account
	use      map[string]energy.Use // of the device, by model
	joules   float64               // since the first reading: what has been divided, and what waits for that
	models   map[string]float64    // of those, what each model has had
	idle     float64
	gave     float64 // joules of models that are forgotten
}

// fitness is a device's health as it is reported: worse at once, better once that has lasted, and
// never well again when it was lost. The zero value has not been seen.
type fitness struct {
	api.Health
	better time.Time // since then it has been in a better state; zero: it has not
}

func (f fitness) see(h device.Health, now time.Time) fitness {
	is := api.Health{State: api.HealthState(h.State.String()), Reason: h.Reason, Message: h.Message, Since: now.UTC()}
	if is.State == api.DeviceHealthy {
		is.Reason, is.Message = "", ""
	}
	was := f.State
	switch {
	case was == api.DeviceLost:
		if f.Reason == gone && is.State == was { // why it does not answer comes later
			f.Reason, f.Message = is.Reason, is.Message
		}
		return f
	case was == is.State:
		f.better = time.Time{}
		if f.Reason != is.Reason { // else a temperature in the message would be news each second
			f.Reason, f.Message = is.Reason, is.Message
		}
		return f
	case was == api.DeviceDegraded && is.State == api.DeviceHealthy:
		if f.better.IsZero() {
			f.better = now
		}
		if now.Sub(f.better) < recovers {
			return f
		}
	}
	return fitness{Health: is}
}

// watch reads the devices until ctx ends, each by itself: a driver that is asked for a sick one may
// never answer. Nobody waits for that.
func (w *Worker) watch(ctx context.Context) {
	w.mu.Lock()
	for _, d := range w.devices {
		if d.watched != nil {
			d.watched.answered = time.Now()
		}
	}
	w.mu.Unlock()
	go w.listen(ctx)
	w.meet()
	for _, d := range w.devices {
		if d.watched != nil {
			go w.follow(ctx, d)
		}
	}
	for e := range w.o.Monitor.Events(ctx) {
		w.hear(e)
	}
}

// follow reads a device once a second until ctx ends.
func (w *Worker) follow(ctx context.Context, d *claimed) {
	tick := time.NewTicker(looks)
	defer tick.Stop()
	for {
		r, err := w.o.Monitor.Read(d.UUID)
		w.mu.Lock()
		if w.see(d, r, err, time.Now()) {
			w.settle()
			w.changedAll()
		}
		w.mu.Unlock()
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// listen finds devices of which the driver has said nothing for too long, until ctx ends.
func (w *Worker) listen(ctx context.Context) {
	tick := time.NewTicker(looks)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			w.mu.Lock()
			for _, d := range w.devices {
				if d.watched != nil && d.watched.silent(now) && w.judge(d, now) {
					w.changedAll()
				}
			}
			w.mu.Unlock()
		}
	}
}

// meet finds out which GPUs the devices are parts of. One that the monitor does not know is not watched.
func (w *Worker) meet() {
	units, err := w.o.Monitor.Devices()
	if err != nil {
		w.log.Error("devices not listed", "error", err)
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, d := range w.devices {
		if d.watched == nil {
			continue
		}
		i := slices.IndexFunc(units, func(u device.Unit) bool { return u.UUID == d.UUID })
		if i < 0 {
			w.log.Warn("device is not watched: the monitor does not know it", "device", d.Name, "uuid", d.UUID)
			d.watched = nil
			continue
		}
		d.watched.parent = units[i].Parent
	}
}

// hear takes an event of a device, or of the GPU that it is a part of.
func (w *Worker) hear(e device.Event) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, d := range w.devices {
		if t := d.watched; t != nil && (d.UUID == e.UUID || t.parent != "" && t.parent == e.UUID) {
			w.log.Warn("device event", "device", d.Name, "xid", e.XID, "message", e.Message, "fatal", e.Fatal)
			t.remember(e)
			w.judge(d, e.Time)
		}
	}
	w.settle()
	w.changedAll()
}

// remember an event that says something of the device, in the place of an older one that said the same:
// programs, other people's too, may cause any number of those that do not.
func (t *watched) remember(e device.Event) {
	if e.XID != 0 && device.Meaning(e.XID).Severity == device.Healthy {
		return
	}
	t.events = slices.DeleteFunc(t.events, func(o device.Event) bool { return o.XID == e.XID && o.Fatal == e.Fatal })
	if len(t.events) >= mostEvents {
		if i := slices.IndexFunc(t.events, func(o device.Event) bool { return !o.Fatal }); i >= 0 {
			t.events = slices.Delete(t.events, i, i+1)
		}
	}
	t.events = append(t.events, e)
}

// see takes a reading of a device, and reports whether it changes what the device is good for. w.mu is held.
func (w *Worker) see(d *claimed, r device.Reading, err error, now time.Time) (news bool) {
	t := d.watched
	switch {
	case errors.Is(err, device.ErrGone) && !errors.Is(err, device.ErrUnlisted): // else it is only not read
		t.gone, t.read = true, false
		return w.judge(d, now)
	case err != nil:
		if t.failing == nil {
			w.log.Warn("device not read", "device", d.Name, "error", err)
		}
		t.failing = err
		return false
	}
	t.failing, t.answered = nil, now
	if !t.read {
		t.overhead = max(r.Total-r.Others-t.claim.Whole, 0)
	}
	t.reading, t.read = r, true
	w.meter(d)
	before := t.claim.Now
	room, _ := r.Room(0, t.overhead)
	if t.claim = t.claim.See(room, now); t.claim.Now != before {
		w.log.Info("what models may use has changed", "device", d.Name, "bytes", t.claim.Now, "before", before, "others", r.Others)
		t.taken = fmt.Sprintf("Other processes hold %s of %s's %s.", residency.Bytes(r.Others), d.Name, residency.Bytes(r.Total))
		news = true
	}
	return w.judge(d, now) || news
}

// judge says how fit a device is, and reports whether that is new. w.mu is held.
func (w *Worker) judge(d *claimed, now time.Time) bool {
	t := d.watched
	h := device.HealthOf(t.reading, t.events)
	if t.gone && h.State != device.Lost {
		h = device.Health{State: device.Lost, Reason: gone, Message: "the driver says that the device does not answer any more; look for XIDs in the kernel's log and reset the device"}
	}
	if t.silent(now) && h.State == device.Healthy {
		h = device.Health{State: device.Degraded, Reason: silent, Message: fmt.Sprintf("the driver has not answered for %v; look for XIDs in the kernel's log", patient)}
		if t.failing != nil {
			h.Message = fmt.Sprintf("the driver has told nothing of it for %v (%v); look for XIDs in the kernel's log", patient, t.failing)
		}
	}
	was := t.fitness.Health
	t.fitness = t.fitness.see(h, now)
	if t.fitness.Health == was {
		return false
	}
	if is := t.fitness.Health; was.State != "" || is.State != api.DeviceHealthy {
		w.log.Warn("device health", "device", d.Name, "state", is.State, "reason", is.Reason, "message", is.Message)
	}
	return true
}

// silent: the driver has been asked for long, and has told nothing.
func (t *watched) silent(now time.Time) bool { return now.Sub(t.answered) >= patient }

// capacity is what models may use of a device now: never less than what is admitted. w.mu is held.
func (w *Worker) capacity(d *claimed) int64 {
	if d.watched == nil {
		return d.Capacity
	}
	return max(d.watched.claim.Now/d.Extent*d.Extent, w.used(d.Name))
}

// limit says why that is less than was claimed; empty: it is not. w.mu is held.
func (w *Worker) limit(d *claimed) string {
	t := d.watched
	if t == nil || t.claim.Now == t.claim.Whole {
		return ""
	}
	s := t.taken // and not what they hold now, which would be news each second
	if used := w.used(d.Name); used > t.claim.Now {
		s += fmt.Sprintf(" Models hold %s already, more than is left: nothing is admitted until some have gone.", residency.Bytes(used))
	}
	return s
}

// health of a device, as the monitor says, or as a step or a load found out. w.mu is held.
func (d *claimed) health() api.Health {
	switch {
	case d.failed.State != "" && (d.watched == nil || d.watched.fitness.State != api.DeviceLost):
		return d.failed
	case d.watched != nil:
		return d.watched.fitness.Health
	}
	return api.Health{}
}

// lost says in a sentence why nothing can be computed on a device any more; empty: it can. w.mu is held.
func (d *claimed) lost() string {
	h := d.health()
	switch {
	case h.State != api.DeviceLost:
		return ""
	case h.Reason == api.ReasonMissing:
		return h.Message
	}
	return fmt.Sprintf("Device %s is lost: %s.", d.Name, strings.TrimSuffix(h.Message, "."))
}

// deviceState is a device of a State. w.mu is held.
func (w *Worker) deviceState(d *claimed, load float64) api.Device {
	s := api.Device{
		Name: d.Name, Kind: d.Kind, Description: d.Description, ExtentBytes: d.Extent, CapacityBytes: w.capacity(d), UsedBytes: w.used(d.Name), Load: load,
		Health: d.health(),
	}
	if t := d.watched; t != nil {
		s.ClaimBytes, s.Limit, s.MIG = d.Capacity, w.limit(d), t.parent != ""
		if t.read && s.Health.State != api.DeviceLost && s.Health.Reason != silent {
			s.Readings = t.readings()
		}
	} else {
		s.Unwatched = d.Kind == cuda.Kind && !d.Missing
	}
	return s
}

// readings as they are reported.
func (t *watched) readings() *api.Readings {
	r := t.reading
	told := func(f device.Figure, unit float64) *float64 {
		if !f.Known || math.IsNaN(f.Value) || math.IsInf(f.Value, 0) {
			return nil
		}
		v := math.Round(f.Value*unit) / unit
		return &v
	}
	s := &api.Readings{
		TotalBytes: r.Total, FreeBytes: r.Free, OthersBytes: r.Others,
		Utilization: told(r.Utilization, 1e4), PowerWatts: told(r.PowerWatts, 10), TemperatureCelsius: told(r.TemperatureCelsius, 10),
		Throttled: slices.Clone(r.Throttled),
	}
	if r.EnergyJoules.Known {
		s.EnergyJoules, s.IdleJoules = told(device.Known(t.joules), 10), told(device.Known(t.idle), 10)
	}
	return s
}

// Held is how many bytes the worker holds of the device that a monitor knows by a UUID: its whole claim, which
// its backend has taken from the start, or of a device that is not there what models have of it.
func (w *Worker) Held(uuid string) int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, d := range w.devices {
		switch {
		case d.UUID != uuid:
		case w.o.Emulated:
			return w.used(d.Name)
		default:
			return d.Capacity
		}
	}
	return 0
}

// meter divides the energy that a device has used among the models that computed on it. w.mu is held.
func (w *Worker) meter(d *claimed) {
	t := d.watched
	for h := range w.all() {
		if h.key.device == d.Name {
			h.meter()
		}
	}
	if !t.reading.EnergyJoules.Known {
		return
	}
	skipped := t.meter.Skipped()
	t.meter.Add(energy.Sample{At: t.reading.Time, Joules: t.reading.EnergyJoules.Value, Use: t.use})
	if more := t.meter.Skipped() - skipped; more > 0 {
		w.log.Warn("energy not counted: the device's counter jumped", "device", d.Name, "seconds", more.Seconds())
	}
	t.models, t.idle = t.meter.Joules()
	t.joules = t.idle + t.gave
	for _, joules := range t.models {
		t.joules += joules
	}
}

// meter counts what a home has done on its device since that was last asked. A model may have two of
// them, on two devices: the one that it leaves ends its requests first. w.mu is held.
func (h *home) meter() {
	s, there := h.stats()
	d := h.w.device(h.key.device)
	if !there || d == nil || d.watched == nil {
		return
	}
	var done Counters
	done.add(s)
	is, u := energy.Use{Busy: s.Busy, Tokens: done.tokens()}, d.watched.use[h.want.Model]
	d.watched.use[h.want.Model] = energy.Use{Busy: u.Busy + is.Busy - h.metered.Busy, Tokens: u.Tokens + is.Tokens - h.metered.Tokens}
	h.metered = is
}

// worked is what a model has done since it came here, up to now. w.mu is held.
func (w *Worker) worked(model string) Counters {
	c := w.counters[model].Counters
	add := func(h *home) {
		if s, ok := h.stats(); ok {
			c.add(s)
		}
	}
	if h := w.homes[model]; h != nil {
		add(h)
	}
	for _, h := range w.olds {
		if h.want.Model == model {
			add(h)
		}
	}
	return c
}

// tokens that were computed: what was taken over from the prefix cache is not.
func (c Counters) tokens() int64 { return max(c.PromptTokens-c.PrefixHits, 0) + c.OutputTokens }

// forget a model whose counters have gone. w.mu is held.
func (t *watched) forget(model string) {
	t.gave += t.models[model]
	t.meter.Forget(model)
	delete(t.models, model)
	delete(t.use, model)
}

// joules are what a model has drawn of the worker's devices since it came here. w.mu is held.
func (w *Worker) joules(model string) (sum float64) {
	for _, d := range w.devices {
		if d.watched != nil {
			sum += d.watched.models[model]
		}
	}
	return sum
}

// JoulesPerToken is what a token of a model has taken over the last minutes; false: its device does
// not tell its energy, or there have been no tokens.
func (w *Worker) JoulesPerToken(model string) (float64, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if h := w.homes[model]; h != nil {
		if d := w.device(h.key.device); d != nil && d.watched != nil {
			return d.watched.meter.PerToken(model)
		}
	}
	return 0, false
}

// Joules that a model has drawn of one device.
type Joules struct {
	Model, Device string
	Joules        float64
}

// Energy is what each model has drawn of each device since it came here.
func (w *Worker) Energy() (all []Joules) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, d := range w.devices {
		if d.watched == nil {
			continue
		}
		for model, joules := range d.watched.models {
			all = append(all, Joules{model, d.Name, joules})
		}
	}
	return all
}
