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
	avoided
)

// choice is a place where w fits.
type choice struct {
	worker *worker
	device *device   // nil: whole ones, or none
	whole  []*device // the smallest empty ones
	bytes  int64     // on each device
	tier   tier
	grains int64   // of more fragmentation
	rated  float64 // by a Score
	left   int64   // room afterwards
}

func (c *choice) devices() []*device {
	if c.device != nil {
		return []*device{c.device}
	}
	return c.whole
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
	f.exclude(w)
	s := search{f: f, w: w, score: score, grain: f.grain(w)}
	for _, name := range f.asks(w) {
		need := w.Need[name]
		for _, at := range f.pools[name].workers {
			if need <= at.widest && f.refuses(at, w) == fits {
				s.look(at, need)
			}
		}
	}
	return s.best, s.room
}

// grain of the pools that w asks: the coarsest, so that all places are measured alike.
func (f *Fleet) grain(w *Want) (n int64) {
	for _, name := range f.asks(w) {
		n = max(n, f.pools[name].grain)
	}
	return n
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

func (w *Want) suits(d *device) bool {
	return (len(w.Kinds) == 0 || slices.Contains(w.Kinds, d.Kind)) && (d.Capability == 0 || d.Capability >= w.Capability)
}

// search is the best place so far.
type search struct {
	f     *Fleet
	w     *Want
	score Score
	grain int64
	best  choice
	room  int
}

// look considers a worker that is not out of the question.
func (s *search) look(at *worker, need int64) {
	switch {
	case need == 0:
		s.hostOnly(at)
	case s.w.Devices > 0:
		s.several(at, need)
	default:
		s.share(at, need)
	}
}

// share looks at each device of a worker for a share of one.
func (s *search) share(at *worker, need int64) {
	w := s.w
	rank, before, after := s.rank(at)
	var last *device // what is equal to it in all that counts need not be looked at again
	for _, d := range at.devices {
		n := d.fit(need)
		left := d.left(w, n)
		if left < 0 || !w.suits(d) {
			continue
		}
		s.room++
		if last != nil && s.score == nil && d.like(last) {
			continue
		}
		last = d
		c := choice{worker: at, device: d, bytes: n, left: d.free() - n, tier: at.tier()}
		if w.Load > 0 && d.load+w.Load > 1000 {
			c.tier |= hot
		}
		if c.left < 0 {
			c.tier, c.left = c.tier|shared, left
		} else if s.score == nil && s.grain > 0 {
			c.grains = floor(after+s.f.mix.less(at, d, n, rank)-before, s.grain)
		}
		s.consider(&c)
	}
}

// several looks for whole devices of a worker.
func (s *search) several(at *worker, need int64) {
	whole := whole(at, s.w, need)
	if len(whole) < s.w.Devices {
		return
	}
	s.room += len(whole)
	whole = whole[:s.w.Devices]
	c := choice{worker: at, whole: whole, bytes: whole[0].fit(need), tier: at.tier()}
	for _, d := range at.devices {
		if d.empty() {
			c.left += d.Capacity
		}
	}
	if s.score == nil && s.grain > 0 {
		rank, before, _ := s.rank(at)
		c.grains = floor(s.f.mix.fragment(at, rank, whole, c.bytes)-before, s.grain)
	}
	s.consider(&c)
}

// hostOnly looks at a worker for what needs no device.
func (s *search) hostOnly(at *worker) {
	if len(s.w.Kinds) > 0 && !slices.ContainsFunc(at.devices, s.w.suits) {
		return
	}
	s.room++
	c := choice{worker: at, tier: at.tier(), left: at.idle()}
	if s.score == nil && s.grain > 0 {
		_, before, after := s.rank(at)
		c.grains = floor(after-before, s.grain)
	}
	s.consider(&c)
}

// rank is what is left of the host after w came, as the mix counts, and the
// worker's fragmentation now and with so much of the host.
func (s *search) rank(at *worker) (rank int, before, after int64) {
	if s.grain == 0 || s.score != nil {
		return 0, 0, 0
	}
	rank = at.rank
	if s.w.Host != (Host{}) {
		rank = s.f.mix.rank(at.free.add(s.w.Host, -1))
	}
	return rank, s.f.mix.now(at, at.rank), s.f.mix.now(at, rank)
}

func (at *worker) tier() tier {
	if at.Avoid {
		return avoided
	}
	return 0
}

// idle is what is free on all devices.
func (at *worker) idle() (sum int64) {
	for _, d := range at.devices {
		sum += d.idle()
	}
	return sum
}

// like: whatever comes to d or e, it is the same, but for their names.
func (d *device) like(e *device) bool {
	return d.account == e.account && d.load == e.load && d.kind == e.kind && d.Capability == e.Capability && len(d.held) == len(e.held)
}

// whole are the devices of a worker that a Want for whole ones may take, the smallest first.
func whole(at *worker, w *Want, need int64) []*device {
	var empty []*device
	for _, d := range at.devices {
		if d.empty() && d.fit(need) <= d.Capacity && w.suits(d) {
			empty = append(empty, d)
		}
	}
	slices.SortStableFunc(empty, func(a, b *device) int { return cmp.Compare(a.Capacity, b.Capacity) })
	return empty
}

// consider keeps c if it is better than the best so far.
func (s *search) consider(c *choice) {
	if s.score != nil {
		c.rated, c.left = s.score(View{c.worker, c.devices()}, s.w), 0
	}
	if s.best.worker == nil || s.better(c) {
		s.best = *c
	}
}

// better: c rather than the best so far. Workers come in the order that decides
// among equals, and so do the devices of one.
func (s *search) better(c *choice) bool {
	b := &s.best
	switch {
	case c.tier != b.tier:
		return c.tier < b.tier
	case c.rated != b.rated:
		return c.rated > b.rated
	case c.grains != b.grains:
		return c.grains < b.grains
	case c.left != b.left:
		return (c.left < b.left) != (c.tier&shared != 0)
	}
	return false
}

// floor divides and rounds down.
func floor(n, by int64) int64 {
	q := n / by
	if n%by < 0 {
		q--
	}
	return q
}

// reason says in a few words why this is the place.
func (f *Fleet) reason(w *Want, c *choice, room int, score Score) string {
	var b strings.Builder
	unit := " devices with room"
	switch {
	case c.device == nil && len(c.whole) == 0:
		unit = " workers with room"
	case c.device == nil:
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
	return b.String()
}
