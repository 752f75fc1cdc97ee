package packing

import (
	"cmp"
	"slices"
	"strconv"
	"strings"
)

// tier is the part of a choice that comes before everything else; lower is better.
type tier uint8

const (
	shared tier = 1 << iota
	hot
	degraded
	avoided
)

// choice is a place where w fits.
type choice struct {
	worker  *worker
	first   int       // the device, in worker.devices; below 0: none
	several bool      // for a Want of whole ones
	whole   []*device // which; found at the end
	bytes   int64     // on each device
	tier    tier
	cost    int64   // of exclusive room: more fragmentation, and what is left; bytes times unit
	rated   float64 // by a Score
	left    int64   // room afterwards
}

func (c *choice) devices() []*device {
	switch {
	case c.several:
		return c.whole
	case c.first < 0:
		return nil
	}
	return []*device{c.worker.devices[c.first]}
}

// ailing is what is the matter with the devices.
func (c *choice) ailing() string {
	var all []string
	for _, d := range c.devices() {
		if d.Degraded != "" && !slices.Contains(all, d.Degraded) {
			all = append(all, d.Degraded)
		}
	}
	return strings.Join(all, ", ")
}

// Place chooses a home for w, takes it, and says why; or says, class by class,
// why no device can be the home.
func (f *Fleet) Place(w Want, score Score) (h Home, reason string, why Why) {
	h, reason, ok := f.Put(w, score)
	if !ok {
		why = f.Why(w)
	}
	return h, reason, why
}

// Put chooses a home for w, takes it, and says why; false: there is none. With a
// score, that decides among the devices of the best tier, instead of the
// gradient. A model has at most one home on a worker.
func (f *Fleet) Put(w Want, score Score) (h Home, reason string, ok bool) {
	best, room := f.choose(&w, score)
	if best.worker == nil {
		return Home{}, "", false
	}
	h = f.settle(&w, &best)
	return h, f.reason(&w, &best, room, score), true
}

// choose finds the best place for w, and how many devices have room.
func (f *Fleet) choose(w *Want, score Score) (best choice, room int) {
	if score != nil {
		return f.chooseOfAll(w, score)
	}
	f.exclude(w)
	s := f.search(w, nil)
	awake := !w.Sleeps || w.Busy
	for _, name := range f.asks(w) {
		s.ask(name)
		for _, st := range f.pools[name].states {
			if s.need > st.widest || awake && s.need > st.room || st.alone || w.Alone && st.occupied || !st.free.holds(w.Host) {
				continue
			}
			at := st.workers[0]
			workers := len(st.workers)
			if st.round == f.round {
				if workers -= st.out; workers == 0 {
					continue
				}
				at = st.first(f.round)
			}
			if w.Draw != 0 {
				at = st.drawn(f.round, w.Draw)
			}
			s.look(at, workers)
		}
	}
	return s.found()
}

// found is the best place.
func (s *search) found() (choice, int) {
	if s.best.several {
		s.ask(s.best.worker.Pool)
		s.pick(&s.best)
	}
	return s.best, s.room
}

// pick says which whole devices a choice is of.
func (s *search) pick(c *choice) {
	c.whole = s.whole(c.worker)
	c.bytes = c.whole[0].fit(s.need)
}

// chooseOfAll looks at every worker.
func (f *Fleet) chooseOfAll(w *Want, score Score) (best choice, room int) {
	f.exclude(w)
	s := f.search(w, score)
	for _, name := range f.asks(w) {
		s.ask(name)
		for _, at := range f.pools[name].workers {
			if s.need <= at.state.widest && f.refuses(at, w) == fits {
				s.look(at, 1)
			}
		}
	}
	return s.found()
}

// asks are the pools of w that there are, by name.
func (f *Fleet) asks(w *Want) []string {
	if len(w.Need) == 1 {
		for name := range w.Need {
			if f.pools[name] == nil {
				return nil
			}
			return []string{name}
		}
	}
	return slices.DeleteFunc(sortedKeys(w.Need), func(name string) bool { return f.pools[name] == nil })
}

// settle takes what was chosen.
func (f *Fleet) settle(w *Want, c *choice) Home {
	h := Home{
		Model: w.Model, Pool: c.worker.Pool, Worker: c.worker.Name, Bytes: c.bytes, Host: w.Host, Kinds: w.Kinds, Capability: w.Capability,
		Load: w.Load, Sleeps: w.Sleeps, Busy: w.Busy, Awake: w.Awake, Alone: w.Alone, Priority: w.Priority,
	}
	on := c.devices()
	for _, d := range on {
		h.Devices = append(h.Devices, d.Name)
	}
	f.take(&held{Home: h, worker: c.worker, devices: on})
	return h
}

// exclude marks the workers that are out of the question for w.
func (f *Fleet) exclude(w *Want) {
	f.round++
	for name, not := range w.Not {
		if e := f.workers[name]; not && e != nil {
			f.out(e)
		}
	}
	for _, e := range f.models[w.Model] {
		f.out(e.worker)
	}
}

func (f *Fleet) out(at *worker) {
	if at.out == f.round {
		return
	}
	at.out = f.round
	if st := at.state; st.round != f.round {
		st.round, st.out = f.round, 0
	}
	at.state.out++
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

// search is the best place so far.
type search struct {
	f     *Fleet
	w     *Want
	score Score
	plain bool // costs are not asked for
	pool  string
	in    *pool
	need  int64
	kinds []answer // of kinds, by their id
	each  bool     // keep them all, not the best alone
	all   []choice
	best  choice
	room  int
}

// answer says whether devices of a kind will do, and what w takes there.
type answer struct {
	suits bool
	bytes int64
}

func (f *Fleet) search(w *Want, score Score) *search {
	return &search{f: f, w: w, score: score, plain: score != nil || f.mix.total == 0, kinds: make([]answer, len(f.mix.kinds))}
}

// ask turns to another pool.
func (s *search) ask(pool string) {
	s.pool, s.in, s.need = pool, s.f.pools[pool], s.w.need(pool)
	for _, k := range s.f.mix.kinds {
		s.kinds[k.id] = answer{s.w.suits(k), k.fit(s.need)}
	}
}

func (w *Want) suits(k *kind) bool {
	return (len(w.Kinds) == 0 || slices.Contains(w.Kinds, k.kind)) && (k.capability == 0 || k.capability >= w.Capability)
}

// look considers a worker, which stands for so many that are like it.
func (s *search) look(at *worker, workers int) {
	switch {
	case s.need == 0:
		s.hostOnly(at, workers)
	case s.w.Devices > 0:
		s.several(at, workers)
	case s.score != nil:
		s.rate(at)
	default:
		s.share(at, workers)
	}
}

// share looks at the devices of a worker for a share of one. This is where
// the time goes, so a device that is worse than the best is left as soon as that shows.
func (s *search) share(at *worker, workers int) {
	w, st := s.w, at.state
	rank, before, after := 0, int64(0), int64(-1)
	for i := range st.spots {
		d := &st.spots[i]
		a := &s.kinds[d.kind.id]
		left := d.left(w, a.bytes)
		if left < 0 || !a.suits {
			continue
		}
		s.room += d.n * workers
		tier, free, cost := d.tier(w)|at.tier(), d.free()-a.bytes, int64(0)
		if free < 0 {
			tier |= shared
		} else {
			left = free
		}
		best := &s.best
		if best.worker != nil && tier > best.tier {
			continue
		}
		if free >= 0 && !s.plain {
			if after < 0 {
				rank, before, after = s.rank(st)
			}
			cost = s.in.begun(at, w) + slack(free) - before
			rival := best.worker != nil && tier == best.tier
			if rival && cost+after-a.bytes*(s.f.mix.total-d.kind.usable[rank][d.step]) > best.cost {
				continue // it is no less than this, see leavers
			}
			if cost += after + s.f.mix.more(st, d, a.bytes, rank); rival && cost > best.cost {
				continue
			}
		}
		s.consider(&choice{worker: at, first: d.first, bytes: a.bytes, left: left, tier: tier, cost: cost})
	}
}

// tier of a device that has room, as far as it is hot or degraded.
func (d *spot) tier(w *Want) (t tier) {
	if w.Load > 0 && d.load+w.Load > 1000 {
		t |= hot
	}
	if d.degraded {
		t |= degraded
	}
	return t
}

// rate looks at each device of a worker for a share of one, by the score.
func (s *search) rate(at *worker) {
	for i, d := range at.devices {
		a := s.kinds[d.kind.id]
		left := d.left(s.w, a.bytes)
		if left < 0 || !a.suits {
			continue
		}
		s.room++
		e := d.spot()
		c := choice{worker: at, first: i, bytes: a.bytes, tier: at.tier() | e.tier(s.w)}
		if d.free() < a.bytes {
			c.tier |= shared
		}
		s.consider(&c)
	}
}

// several looks for whole devices of a worker.
func (s *search) several(at *worker, workers int) {
	n, spots, spot, sound := 0, 0, 0, 0
	for i := range at.state.spots {
		if d := &at.state.spots[i]; d.empty && s.kinds[d.kind.id].suits && s.kinds[d.kind.id].bytes <= d.capacity {
			n, spots, spot = n+d.n, spots+1, i
			if !d.degraded {
				sound += d.n
			}
		}
	}
	if n < s.w.Devices {
		return
	}
	s.room += n * workers
	c := choice{worker: at, several: true, tier: at.tier(), left: at.state.unused()}
	if sound < s.w.Devices {
		c.tier |= degraded
	}
	if s.score != nil || spots > 1 {
		c.whole = s.whole(at)
	}
	if !s.plain {
		rank, before, after := s.rank(at.state)
		if spots > 1 {
			after = s.f.mix.fragment(at, rank, c.whole, c.whole[0].fit(s.need))
		} else {
			after += s.f.mix.taken(at.state, spot, s.w.Devices, s.kinds[at.state.spots[spot].kind.id].bytes, rank)
		}
		c.cost = after - before + s.in.begun(at, s.w) + slack(c.left)
	}
	s.consider(&c)
}

// unused is the capacity of the empty devices.
func (st *state) unused() (sum int64) {
	for i := range st.spots {
		if d := &st.spots[i]; d.empty {
			sum += d.capacity * int64(d.n)
		}
	}
	return sum
}

// whole are the devices of a worker that a Want for whole ones takes: those in order first, then the smallest.
func (s *search) whole(at *worker) []*device {
	var empty []*device
	for _, d := range at.devices {
		if a := s.kinds[d.kind.id]; d.empty() && a.suits && a.bytes <= d.capacity {
			empty = append(empty, d)
		}
	}
	slices.SortStableFunc(empty, func(a, b *device) int {
		return cmp.Or(compareBool(a.Degraded != "", b.Degraded != ""), cmp.Compare(a.capacity, b.capacity))
	})
	return empty[:s.w.Devices]
}

// compareBool: false comes first.
func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}

// hostOnly looks at a worker for what needs no device.
func (s *search) hostOnly(at *worker, workers int) {
	if len(s.w.Kinds) > 0 && !slices.ContainsFunc(at.state.spots, func(d spot) bool { return s.kinds[d.kind.id].suits }) {
		return
	}
	s.room += workers
	c := choice{worker: at, first: -1, tier: at.tier(), left: at.state.idle}
	if !s.plain {
		_, before, after := s.rank(at.state)
		c.cost = after - before + s.in.begun(at, s.w) + slack(c.left)
	}
	s.consider(&c)
}

// rank is what is left of the host after w came, as the mix counts, and the
// fragmentation of the worker now and with so much of the host.
func (s *search) rank(st *state) (rank int, before, after int64) {
	rank = st.rank
	if s.w.Host != (Host{}) {
		rank = s.f.mix.rank(st.free.add(s.w.Host, -1))
	}
	return rank, s.f.mix.now(st, st.rank), s.f.mix.now(st, rank)
}

func (at *worker) tier() tier {
	if at.Avoid {
		return avoided
	}
	return 0
}

// consider keeps c if it is better than the best so far.
func (s *search) consider(c *choice) {
	if s.each {
		s.all = append(s.all, *c)
		return
	}
	if s.score != nil {
		c.rated, c.left = s.score(View{c.worker, c.devices()}, s.w), 0
	}
	if s.best.worker == nil || s.better(c) {
		s.best = *c
	}
}

// better: c rather than the best so far.
func (s *search) better(c *choice) bool {
	b := &s.best
	switch {
	case c.tier != b.tier:
		return c.tier < b.tier
	case cmp.Compare(c.rated, b.rated) != 0: // what is not a number is the lowest
		return cmp.Compare(c.rated, b.rated) > 0
	case c.cost != b.cost:
		return c.cost < b.cost
	case c.left != b.left:
		return (c.left < b.left) != (c.tier&shared != 0)
	case c.worker != b.worker && s.w.Draw != 0:
		return c.worker.drawn(s.w.Draw) < b.worker.drawn(s.w.Draw)
	case c.worker != b.worker:
		return c.worker.order < b.worker.order
	}
	return c.first < b.first
}

// reason says in a few words why this is the place.
func (f *Fleet) reason(w *Want, c *choice, room int, score Score) string {
	var b strings.Builder
	unit := " devices with room"
	switch {
	case c.first < 0:
		unit = " workers with room"
	case c.several:
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
	if on := c.devices(); len(on) > 0 {
		b.WriteString(": " + Size(on[0].room()) + " left")
	}
	if c.tier&shared != 0 {
		b.WriteString(", shared with models that sleep")
	}
	if c.tier&degraded != 0 {
		b.WriteString(", though degraded (" + c.ailing() + "): no other has room")
	}
	return b.String()
}
