// Package packing decides which devices are a model's home, and which homes
// move so that others fit. It is pure: equal input, in any order, gives an equal
// answer. Start with Fleet.Place.
//
// A device is refused where w cannot be; among the others the order is:
//
//  1. workers that are not to be avoided;
//  2. devices that would be busy for no more than all of the time (Load);
//  3. exclusive room before shared room;
//  4. in exclusive room, the least increase of what the mix of shapes cannot use
//     (gradient.go), then the tightest; in shared room, the most that is left;
//  5. Worker.Rank, pool, worker and device, by name.
//
// Overcommit: homes that are awake (they do not sleep, or are busy now) take
// their bytes alone. Homes that sleep share what is left of the device, which
// must be at least the largest of them and at least the sum of their bytes, each
// times the share of time that it is awake (no less than a tenth). What Place
// chooses leaves that true; Take records what is there even if it is too much.
package packing

import (
	"cmp"
	"slices"
	"strconv"
	"strings"
)

// Awake shares of time, in 1/1000: of a model that nobody has seen yet, and the
// least that counts.
const (
	NewAwake   = 250
	leastAwake = 100
)

// Host is what a home takes of its worker besides devices. Workers whose hosts
// are not packed have none, and their homes need none.
type Host struct {
	CPU    int64 // 1/1000 of a core
	Memory int64 // bytes
}

func (h Host) add(o Host, sign int64) Host { return Host{h.CPU + sign*o.CPU, h.Memory + sign*o.Memory} }
func (h Host) holds(o Host) bool           { return h.CPU >= o.CPU && h.Memory >= o.Memory }

// Worker holds devices.
type Worker struct {
	Name string
	Pool string
	Rank int  // among equals the lowest is first; then names decide
	Host Host // all of it
	// Avoid: only where no other worker has room. Nothing moves here.
	Avoid bool
}

// Device is a device of a worker that may take homes.
type Device struct {
	Pool       string
	Worker     string
	Name       string
	Kind       string // "cuda", "cpu"; a Want may ask for some
	Capability int    // CUDA compute capability times 10; 0 is not compared
	// Capacity is what models may use, and Extent the unit of accounts; both in bytes.
	Capacity int64
	Extent   int64
}

// Home is a model on devices of one worker.
type Home struct {
	Model      string // empty: bytes that are taken, by nothing that could leave
	Pool       string
	Worker     string
	Devices    []string // one; several of a Want for whole devices; none of one that needs no bytes
	Bytes      int64    // on each device; whole extents are taken
	Host       Host
	Kinds      []string // the Want's; a move keeps to them
	Capability int      // the Want's
	Load       int      // share of a device's time, in 1/1000
	Sleeps     bool     // may be off the device when nobody asks for it
	Busy       bool     // of one that sleeps: on the device now, and in use
	Awake      int      // of one that sleeps: share of time that it is awake, in 1/1000
	Alone      bool     // no other home may come to this worker
	Priority   int
	Pinned     bool // neither moved nor displaced
	Young      bool // not moved yet, but displaced by a higher priority
}

// Want is a replica that looks for a home.
type Want struct {
	Model string
	// Need in bytes a device, for each pool that the model may go to. Pools that are not named
	// are not asked. Zero: the host alone is needed, and no device.
	Need       map[string]int64 // pool -> bytes
	Host       Host
	Devices    int      // whole devices of one worker, empty before; 0: a share of one
	Kinds      []string // empty: any
	Capability int      // the least; 0: any
	Load       int
	Sleeps     bool
	Busy       bool
	Awake      int
	Alone      bool // only a worker without any home, and none may come after it
	Priority   int
	// Not are workers that are out of the question, besides those that hold the model already.
	Not map[string]bool
}

// Fleet is a snapshot that answers "what if": Place, Take and Undo touch one
// worker each.
type Fleet struct {
	workers map[string]*worker
	pools   map[string][]*worker // by before
	models  map[string][]*held
	mix     *mix
	round   int // of the marks on workers
}

type worker struct {
	Worker
	free    Host
	devices []*device // by name
	held    []*held   // by model
	homes   int       // of models
	alone   int       // homes that want to be
	frag    int64     // by the mix
	out     int       // the round in which it is out of the question
}

type device struct {
	Device
	kind    *kind
	held    []*held // by model
	awake   int64   // bytes of homes that are awake, and of no model
	asleep  int64   // bytes of homes that sleep
	share   int64   // the same, each times its awake share; 1/1000 bytes
	largest int64   // of those that sleep, bytes
	load    int     // 1/1000
	step    int     // of kind, at idle
}

// held is a home where it is.
type held struct {
	Home
	worker  *worker
	devices []*device
}

// free is exclusive room: negative where homes share.
func (d *device) free() int64 { return d.Capacity - d.awake - d.asleep }

// idle is what the gradient counts as free.
func (d *device) idle() int64 { return max(0, d.free()) }

func (d *device) empty() bool { return d.awake == 0 && d.asleep == 0 && len(d.held) == 0 }

// room is what is left by the overcommit rule.
func (d *device) room() int64 { return d.Capacity - d.awake - max(d.largest, thousandth(d.share)) }

func thousandth(n int64) int64 { return (n + 999) / 1000 }

// fit is what a home of n bytes takes on this device: whole extents.
func (d *device) fit(n int64) int64 {
	if d.Extent <= 1 {
		return n
	}
	return (n + d.Extent - 1) / d.Extent * d.Extent
}

// left is the room by the overcommit rule after n bytes for w came; negative: they must not.
func (d *device) left(w *Want, n int64) int64 {
	if !w.Sleeps || w.Busy {
		return d.room() - n
	}
	return d.Capacity - d.awake - max(d.largest, n, thousandth(d.share+n*int64(max(w.Awake, leastAwake))))
}

// New takes a snapshot of the devices, all empty. Workers that only devices name
// have nothing to say about their hosts. mix is what is likely to come; without
// one, the tightest device is chosen.
func New(workers []Worker, devices []Device, mix []Shape) *Fleet {
	f := &Fleet{workers: make(map[string]*worker, len(workers)), pools: map[string][]*worker{}, models: map[string][]*held{}, mix: newMix(mix)}
	for _, w := range workers {
		f.worker(w)
	}
	for _, d := range devices {
		w := f.workers[d.Worker]
		if w == nil {
			w = f.worker(Worker{Name: d.Worker, Pool: d.Pool})
		}
		w.devices = append(w.devices, &device{Device: d, kind: f.mix.kind(d)})
	}
	for _, pool := range f.pools {
		slices.SortFunc(pool, before)
	}
	for _, w := range f.workers {
		slices.SortFunc(w.devices, func(a, b *device) int { return cmp.Compare(a.Name, b.Name) })
		for _, d := range w.devices {
			d.step = d.kind.step(d.idle())
		}
		w.frag = f.mix.fragment(w, w.free, nil, 0)
	}
	return f
}

func (f *Fleet) worker(w Worker) *worker {
	e := &worker{Worker: w, free: w.Host}
	f.workers[w.Name] = e
	f.pools[w.Pool] = append(f.pools[w.Pool], e)
	return e
}

// before is a total order, so that the order of the input does not matter.
func before(a, b *worker) int {
	return cmp.Or(cmp.Compare(a.Rank, b.Rank), cmp.Compare(a.Pool, b.Pool), cmp.Compare(a.Name, b.Name))
}

func (w *worker) device(name string) *device {
	for _, d := range w.devices {
		if d.Name == name {
			return d
		}
	}
	return nil
}

// Take records a home where it is, and reports whether its devices are known.
func (f *Fleet) Take(h Home) bool {
	w := f.workers[h.Worker]
	if w == nil {
		return false
	}
	e := &held{Home: h, worker: w}
	for _, name := range h.Devices {
		d := w.device(name)
		if d == nil {
			return false
		}
		e.devices = append(e.devices, d)
	}
	f.take(e)
	return true
}

// Undo takes back a home that Place or Take gave, and reports whether it was there.
func (f *Fleet) Undo(h Home) bool {
	if h.Model == "" {
		w := f.workers[h.Worker]
		if w == nil {
			return false
		}
		e := &held{Home: h, worker: w}
		for _, name := range h.Devices {
			d := w.device(name)
			if d == nil {
				return false
			}
			e.devices = append(e.devices, d)
		}
		f.account(e, -1)
		return true
	}
	for _, e := range f.models[h.Model] {
		if e.same(h) {
			f.leave(e)
			return true
		}
	}
	return false
}

// same: what h takes is what e takes.
func (e *held) same(h Home) bool {
	return e.Worker == h.Worker && e.Bytes == h.Bytes && e.Host == h.Host && e.Load == h.Load && e.Sleeps == h.Sleeps &&
		e.Busy == h.Busy && e.Awake == h.Awake && e.Alone == h.Alone && slices.Equal(e.Devices, h.Devices)
}

func (f *Fleet) take(e *held) {
	if e.Model != "" {
		f.models[e.Model] = append(f.models[e.Model], e)
		insert(&e.worker.held, e)
		for _, d := range e.devices {
			insert(&d.held, e)
		}
	}
	f.account(e, 1)
}

func (f *Fleet) leave(e *held) {
	if rest := remove(f.models[e.Model], e); len(rest) > 0 {
		f.models[e.Model] = rest
	} else {
		delete(f.models, e.Model)
	}
	e.worker.held = remove(e.worker.held, e)
	for _, d := range e.devices {
		d.held = remove(d.held, e)
	}
	f.account(e, -1)
}

func byModel(a, b *held) int { return cmp.Compare(a.Model, b.Model) }

func insert(list *[]*held, e *held) {
	at, _ := slices.BinarySearchFunc(*list, e, byModel)
	*list = slices.Insert(*list, at, e)
}

func remove(list []*held, e *held) []*held {
	at := slices.Index(list, e)
	return slices.Delete(list, at, at+1)
}

// account counts what e takes, once more or once less.
func (f *Fleet) account(e *held, sign int64) {
	w := e.worker
	w.free = w.free.add(e.Host, -sign)
	if e.Model != "" {
		w.homes += int(sign)
		if e.Alone {
			w.alone += int(sign)
		}
	}
	for _, d := range e.devices {
		n := d.fit(e.Bytes)
		d.load += int(sign) * e.Load
		if e.Model != "" && e.Sleeps && !e.Busy {
			d.asleep += sign * n
			d.share += sign * n * int64(max(e.Awake, leastAwake))
			d.largest = 0
			for _, o := range d.held {
				if o.Sleeps && !o.Busy {
					d.largest = max(d.largest, d.fit(o.Bytes))
				}
			}
		} else {
			d.awake += sign * n
		}
		d.step = d.kind.step(d.idle())
	}
	w.frag = f.mix.fragment(w, w.free, nil, 0)
}

// Free bytes of a device by the overcommit rule; negative where more is taken
// than there is.
func (f *Fleet) Free(worker, name string) int64 {
	if w := f.workers[worker]; w != nil {
		if d := w.device(name); d != nil {
			return d.room()
		}
	}
	return 0
}

// Clone is a copy that shares nothing that changes.
func (f *Fleet) Clone() *Fleet {
	g := &Fleet{workers: make(map[string]*worker, len(f.workers)), pools: make(map[string][]*worker, len(f.pools)), models: make(map[string][]*held, len(f.models)), mix: f.mix}
	for name, pool := range f.pools {
		for _, w := range pool {
			c := *w
			c.devices, c.held, c.out = nil, nil, 0
			for _, d := range w.devices {
				e := *d
				e.held = nil
				c.devices = append(c.devices, &e)
			}
			for _, h := range w.held {
				e := &held{Home: h.Home, worker: &c}
				for _, d := range h.devices {
					e.devices = append(e.devices, c.device(d.Name))
				}
				g.models[e.Model] = append(g.models[e.Model], e)
				c.held = append(c.held, e)
				for _, d := range e.devices {
					d.held = append(d.held, e)
				}
			}
			g.workers[c.Name] = &c
			g.pools[name] = append(g.pools[name], &c)
		}
	}
	return g
}

// tier is the part of a choice that comes before the score; lower is better.
type tier uint8

const (
	shared tier = 1 << iota
	hot
	avoided
)

// choice is a place where w fits.
type choice struct {
	worker  *worker
	devices []*device
	bytes   int64
	tier    tier
	delta   int64 // of fragmentation; of a score, see rated
	rated   float64
	left    int64 // room afterwards
}

// better: a is chosen rather than b, which may be nothing.
func (a *choice) better(b *choice) bool {
	if b.worker == nil {
		return true
	}
	left := cmp.Compare(a.left, b.left)
	if a.tier&shared != 0 {
		left = -left
	}
	return cmp.Or(cmp.Compare(a.tier, b.tier), -cmp.Compare(a.rated, b.rated), cmp.Compare(a.delta, b.delta), left,
		before(a.worker, b.worker), byName(a.devices, b.devices)) < 0
}

func byName(a, b []*device) int {
	return slices.CompareFunc(a, b, func(a, b *device) int { return cmp.Compare(a.Name, b.Name) })
}

// Place chooses a home for w, takes it, and says why; or says, class by class,
// why no device can be the home. With a score, that decides among the devices
// of the best tier instead of the gradient. A model has at most one home on a
// worker.
func (f *Fleet) Place(w Want, score Score) (h Home, reason string, why Why) {
	best, room := f.choose(&w, score)
	if best.worker == nil {
		return Home{}, "", f.why(&w)
	}
	return f.move(&w, &best), f.reason(&w, &best, room, score), Why{}
}

// choose finds the best place for w, and how many have room.
func (f *Fleet) choose(w *Want, score Score) (best choice, room int) {
	f.exclude(w)
	for _, pool := range sortedKeys(w.Need) {
		for _, at := range f.pools[pool] {
			if f.refuses(at, w) == fits {
				room += f.on(at, w, w.Need[pool], score, &best)
			}
		}
	}
	return best, room
}

// move takes what was chosen.
func (f *Fleet) move(w *Want, c *choice) Home {
	h := Home{
		Model: w.Model, Pool: c.worker.Pool, Worker: c.worker.Name, Bytes: c.bytes, Host: w.Host, Kinds: w.Kinds, Capability: w.Capability,
		Load: w.Load, Sleeps: w.Sleeps, Busy: w.Busy, Awake: w.Awake, Alone: w.Alone, Priority: w.Priority,
	}
	for _, d := range c.devices {
		h.Devices = append(h.Devices, d.Name)
	}
	f.take(&held{Home: h, worker: c.worker, devices: slices.Clone(c.devices)})
	return h
}

// exclude marks the workers that are out of the question for w.
func (f *Fleet) exclude(w *Want) {
	f.round++
	for name, not := range w.Not {
		if e := f.workers[name]; not && e != nil {
			e.out = f.round
		}
	}
	for _, e := range f.models[w.Model] {
		e.worker.out = f.round
	}
}

// refuses says why a worker cannot take w, whatever its devices have.
func (f *Fleet) refuses(at *worker, w *Want) class {
	switch {
	case at.out == f.round:
		return excluded
	case at.alone > 0 || w.Alone && at.homes > 0:
		return reserved
	case !at.free.holds(w.Host):
		return noHost
	}
	return fits
}

// on looks at the devices of one worker and returns how many have room.
func (f *Fleet) on(at *worker, w *Want, need int64, score Score, best *choice) int {
	c := choice{worker: at}
	if at.Avoid {
		c.tier = avoided
	}
	switch {
	case need == 0:
		if len(w.Kinds) > 0 && !slices.ContainsFunc(at.devices, w.suits) {
			return 0
		}
		for _, d := range at.devices {
			c.left += d.idle()
		}
		f.consider(c, w, score, best)
		return 1
	case w.Devices > 0:
		c.devices = whole(at, w, need)
		if len(c.devices) < w.Devices {
			return 0
		}
		for _, d := range at.devices {
			if d.empty() {
				c.left += d.Capacity
			}
		}
		c.bytes = c.devices[0].fit(need)
		f.consider(c, w, score, best)
		return len(c.devices)
	}
	room := 0
	one := make([]*device, 1)
	for _, d := range at.devices {
		n := d.fit(need)
		left := d.left(w, n)
		if left < 0 || !w.suits(d) {
			continue
		}
		room++
		e := c
		one[0] = d
		e.devices, e.bytes, e.left = one, n, d.free()-n
		if e.left < 0 {
			e.tier, e.left = e.tier|shared, left
		}
		if w.Load > 0 && d.load+w.Load > 1000 {
			e.tier |= hot
		}
		if f.consider(e, w, score, best) {
			best.devices = []*device{d}
		}
	}
	return room
}

func (w *Want) suits(d *device) bool {
	return (len(w.Kinds) == 0 || slices.Contains(w.Kinds, d.Kind)) && (d.Capability == 0 || d.Capability >= w.Capability)
}

// whole are the devices of a worker that a Want for whole ones takes, the smallest first.
func whole(at *worker, w *Want, need int64) []*device {
	var empty []*device
	for _, d := range at.devices {
		if d.empty() && d.fit(need) <= d.Capacity && w.suits(d) {
			empty = append(empty, d)
		}
	}
	slices.SortStableFunc(empty, func(a, b *device) int { return cmp.Compare(a.Capacity, b.Capacity) })
	return empty[:min(len(empty), w.Devices)]
}

func (f *Fleet) consider(c choice, w *Want, score Score, best *choice) bool {
	switch {
	case score != nil:
		c.rated = score(View{c.worker, c.devices}, w)
		c.left = 0
	case c.tier&shared == 0:
		c.delta = f.mix.fragment(c.worker, c.worker.free.add(w.Host, -1), c.devices, c.bytes) - c.worker.frag
	}
	if !c.better(best) {
		return false
	}
	*best = c
	return true
}

// reason says in a few words why this is the place.
func (f *Fleet) reason(w *Want, c *choice, room int, score Score) string {
	var b strings.Builder
	unit := " devices with room"
	switch {
	case len(c.devices) == 0:
		unit = " workers with room"
	case len(c.devices) > 1:
		unit = " whole devices with room"
	}
	switch {
	case room == 1:
		b.WriteString("the only device with room")
	case c.tier&shared != 0:
		b.WriteString("most shared room of " + strconv.Itoa(room) + unit)
	case score != nil:
		b.WriteString("best of " + strconv.Itoa(room) + unit)
	case f.mix.total > 0:
		b.WriteString("least fragmenting of " + strconv.Itoa(room) + unit)
	default:
		b.WriteString("tightest of " + strconv.Itoa(room) + unit)
	}
	if w.Alone {
		b.WriteString(" on a worker without other models")
	}
	if len(c.devices) > 0 {
		b.WriteString(": " + Size(c.devices[0].room()) + " left")
	}
	if c.tier&shared != 0 {
		b.WriteString(", shared with models that sleep")
	}
	return b.String()
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
