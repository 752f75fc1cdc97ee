// Package packing decides which devices are a model's home, and which homes
// move so that others fit. It is pure: equal input, in any order, gives an equal
// answer. Start with Fleet.Place.
//
// A device is refused where w cannot be; among the others the order is:
//
//  1. workers that are not to be avoided;
//  2. devices that are in order, before degraded ones;
//  3. devices that would be busy for no more than all of the time (Load);
//  4. exclusive room before shared room;
//  5. in exclusive room, the least increase of what the mix of shapes cannot use
//     (gradient.go), with a little for the emptier device, worker and host and the later
//     worker, then the tightest; in shared room, the most that is left;
//  6. a fixed order: Worker.Rank, pool, worker and device, by name.
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
)

// Awake shares of time, in 1/1000: of a model that nobody has seen yet, and the
// least that counts.
const (
	NewAwake   = 250
	LeastAwake = 100
)

// mostBytes that a device has, as far as accounts go: 16 TiB. Checkpoints may claim
// more, so what is needed is cut at twice as much, and no sum of theirs overflows.
const mostBytes = 1 << 44

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
	// Degraded says in a word or two what is the matter with it; empty: it is in order. Homes come here
	// only where no other device has room, and none moves here.
	Degraded string
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
	// are not asked. Zero or less: the host alone is needed, and no device.
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
	// Draw is for simulations: if it is not 0, the order of workers says nothing, and equals go by a number drawn from it for each.
	Draw uint64
}

// Fleet is a snapshot that answers "what if": Place, Take and Undo touch one
// worker each.
type Fleet struct {
	workers map[string]*worker
	pools   map[string]*pool
	models  map[string][]*held
	mix     *mix
	round   int // of the marks on workers
	alike   map[likeness]*alike
	asked   int // of alike
}

// pool is the workers of a pool, in the order that decides among equals.
type pool struct {
	workers []*worker
	little  int64    // 3 % of the mean device, in bytes times unit
	most    int64    // CPU of the largest host
	widest  int64    // capacity of the largest worker
	states  []*state // in no order
	byHash  map[uint64][]*state
	unused  []*state
}

type worker struct {
	Worker
	order   int // among all
	place   int // among those of the pool
	out     int // the round in which it is out of the question
	homes   int // of models
	alone   int // homes that want to be
	free    Host
	state   *state
	devices []*device // by name
	held    []*held   // by model
}

type device struct {
	account
	kind *kind
	step int // of kind, at idle
	load int // 1/1000
	at   *worker
	held []*held // by model
	Device
}

// account of a device, in bytes.
type account struct {
	capacity int64
	awake    int64 // homes that are awake, and what is of no model
	asleep   int64 // homes that sleep
	share    int64 // the same, each times its awake share; 1/1000 bytes
	largest  int64 // of those that sleep
}

// held is a home where it is.
type held struct {
	Home
	worker  *worker
	devices []*device
	alike   *alike
}

// need of the want on a device of a pool, in bytes.
func (w *Want) need(pool string) int64 { return max(0, w.Need[pool]) }

// sleeping: the home may share its bytes.
func (h *Home) sleeping() bool { return h.Sleeps && !h.Busy }

// free is exclusive room: negative where homes share.
func (a *account) free() int64 { return a.capacity - a.awake - a.asleep }

// idle is what the gradient counts as free.
func (a *account) idle() int64 { return max(0, a.free()) }

func (d *device) empty() bool { return d.awake == 0 && d.asleep == 0 && len(d.held) == 0 }

// room is what is left by the overcommit rule.
func (a *account) room() int64 { return a.capacity - a.awake - max(a.largest, thousandth(a.share)) }

func thousandth(n int64) int64 { return (n + 999) / 1000 }

// awake is the share of time that counts, in 1/1000.
func awake(n int) int64 { return int64(min(max(n, LeastAwake), 1000)) }

// fit is what a home of n bytes takes on this device: whole extents.
func (d *device) fit(n int64) int64 { return d.kind.fit(n) }

// left is the room by the overcommit rule after n bytes for w came; negative: they must not.
func (a *account) left(w *Want, n int64) int64 {
	if !w.Sleeps || w.Busy {
		return a.room() - n
	}
	return a.capacity - a.awake - max(a.largest, n, thousandth(a.share+n*awake(w.Awake)))
}

// New takes a snapshot of the devices, all empty. Workers that only devices name
// have nothing to say about their hosts. mix is what is likely to come; without
// one, the tightest device is chosen.
func New(workers []Worker, devices []Device, mix []Shape) *Fleet {
	f := &Fleet{workers: make(map[string]*worker, len(workers)), pools: map[string]*pool{}, models: map[string][]*held{}, mix: newMix(mix), alike: map[likeness]*alike{}}
	workers, devices = slices.Clone(workers), slices.Clone(devices)
	known := make(map[string]bool, len(workers))
	for _, w := range workers {
		known[w.Name] = true
	}
	for _, d := range devices {
		if !known[d.Worker] {
			known[d.Worker] = true
			workers = append(workers, Worker{Name: d.Worker, Pool: d.Pool})
		}
	}
	for i := range devices {
		d := &devices[i]
		d.Capacity, d.Extent = min(max(d.Capacity, 0), mostBytes), min(d.Extent, mostBytes)
	}
	slices.SortFunc(workers, before)
	slices.SortFunc(devices, byPlace)
	f.fill(workers, devices)
	return f
}

// fill lays out workers in their order, and what belongs to one side by side: a
// decision reads all of it.
func (f *Fleet) fill(workers []Worker, devices []Device) {
	all, slab := make([]worker, len(workers)), make([]device, len(devices))
	list := make([]*device, len(devices))
	for i, w := range workers {
		n, _ := slices.BinarySearchFunc(devices, w.Name, func(d Device, name string) int { return cmp.Compare(d.Worker, name) })
		end := n
		for end < len(devices) && devices[end].Worker == w.Name {
			end++
		}
		e := &all[i]
		*e = worker{Worker: w, order: i, free: w.Host, devices: list[n:end:end]}
		for j := n; j < end; j++ {
			slab[j] = device{account: account{capacity: devices[j].Capacity}, Device: devices[j], kind: f.mix.kind(devices[j]), at: e}
			slab[j].step = slab[j].kind.step(slab[j].Capacity)
			list[j] = &slab[j]
		}
		f.workers[w.Name] = e
		p := f.pools[w.Pool]
		if p == nil {
			p = &pool{byHash: map[uint64][]*state{}}
			f.pools[w.Pool] = p
		}
		e.place = len(p.workers)
		p.workers = append(p.workers, e)
		f.changed(e)
	}
	for _, p := range f.pools {
		p.measure()
	}
}

// before is a total order, so that the order of the input does not matter.
func before(a, b Worker) int {
	return cmp.Or(cmp.Compare(a.Rank, b.Rank), cmp.Compare(a.Pool, b.Pool), cmp.Compare(a.Name, b.Name))
}

func byPlace(a, b Device) int {
	return cmp.Or(cmp.Compare(a.Worker, b.Worker), cmp.Compare(a.Name, b.Name))
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
	e, ok := f.at(h)
	if ok {
		f.take(e)
	}
	return ok
}

// Undo takes back a home that Place or Take gave, and reports whether it was there.
// Bytes of no model are not remembered one by one: the caller took them.
func (f *Fleet) Undo(h Home) bool {
	if h.Model == "" {
		e, ok := f.at(h)
		if ok {
			f.account(e, -1)
		}
		return ok
	}
	for _, e := range f.models[h.Model] {
		if e.same(h) {
			f.leave(e)
			return true
		}
	}
	return false
}

// at finds the worker and the devices of a home, each once; false: they are not known.
func (f *Fleet) at(h Home) (*held, bool) {
	e := &held{Home: h, worker: f.workers[h.Worker]}
	if e.worker == nil {
		return nil, false
	}
	for _, name := range h.Devices {
		d := e.worker.device(name)
		if d == nil {
			return nil, false
		}
		if !slices.Contains(e.devices, d) {
			e.devices = append(e.devices, d)
		}
	}
	return e, true
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
		if e.Model != "" && e.sleeping() {
			d.asleep += sign * n
			d.share += sign * n * awake(e.Awake)
			d.largest = 0
			for _, o := range d.held {
				if o.sleeping() {
					d.largest = max(d.largest, d.fit(o.Bytes))
				}
			}
		} else {
			d.awake += sign * n
		}
		d.step = d.kind.step(d.idle())
	}
	f.changed(w)
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
	g := &Fleet{workers: make(map[string]*worker, len(f.workers)), pools: map[string]*pool{}, models: make(map[string][]*held, len(f.models)), mix: f.mix, alike: map[likeness]*alike{}}
	var workers []Worker
	var devices []Device
	for _, w := range f.inOrder() {
		workers = append(workers, w.Worker)
		for _, d := range w.devices {
			devices = append(devices, d.Device)
		}
	}
	slices.SortFunc(workers, before)
	slices.SortFunc(devices, byPlace)
	g.fill(workers, devices)
	for _, w := range f.inOrder() {
		c := g.workers[w.Name]
		c.homes, c.alone, c.free = w.homes, w.alone, w.free
		for i, d := range w.devices {
			e := c.devices[i]
			e.account, e.load, e.step = d.account, d.load, d.step
		}
		for _, h := range w.held {
			e := &held{Home: h.Home, worker: c}
			for _, d := range h.devices {
				d := c.device(d.Name)
				e.devices = append(e.devices, d)
				d.held = append(d.held, e)
			}
			c.held = append(c.held, e)
			g.models[e.Model] = append(g.models[e.Model], e)
		}
		g.changed(c)
	}
	return g
}

// inOrder are all workers: pools by name, each in its order.
func (f *Fleet) inOrder() []*worker {
	all := make([]*worker, 0, len(f.workers))
	for _, name := range sortedKeys(f.pools) {
		all = append(all, f.pools[name].workers...)
	}
	return all
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
