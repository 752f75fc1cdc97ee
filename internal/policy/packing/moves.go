package packing

import (
	"cmp"
	"slices"
	"strings"
)

// Move is a home that goes elsewhere: first it is loaded at To, then it leaves
// Home. So both have room at once, and a plan is carried out in its order.
type Move struct {
	Home   Home
	To     Home
	Reason string
	Gain   float64 // how much less is free that the mix cannot use, in expected bytes
}

// effort bounds how many ways a search for several moves tries, and branches how
// many places for each home.
const (
	effort   = 2000
	branches = 8
)

// again is the Want of a home that is to be placed once more, in its own pool.
func (e *held) again() Want {
	w := Want{
		Model: e.Model, Need: map[string]int64{e.worker.Pool: e.Bytes}, Host: e.Host, Kinds: e.Kinds, Capability: e.Capability,
		Load: e.Load, Sleeps: e.Sleeps, Busy: e.Busy, Awake: e.Awake, Alone: e.Alone, Priority: e.Priority,
	}
	switch {
	case len(e.devices) > 1:
		w.Devices = len(e.devices)
	case len(e.devices) == 0:
		w.Need[e.worker.Pool] = 0
	}
	return w
}

func (e *held) movable() bool { return !e.Pinned && !e.Young && !e.Alone }

// total is what e takes of all its devices.
func (e *held) total() int64 { return min(e.Bytes, 2*mostBytes) * int64(len(e.devices)) }

func total(homes []*held) (sum int64) {
	for _, e := range homes {
		sum += e.total()
	}
	return sum
}

// MakeRoom finds the fewest moves, at most k, and of those the ones of the fewest
// bytes, after which w fits; applies them and the placement to the fleet, and says so. Where nothing
// helps, the fleet is as it was. Pinned and young homes do not move, no model
// moves twice, and nothing moves to a worker to be avoided, or a degraded device.
func (f *Fleet) MakeRoom(w Want, k int) (moves []Move, h Home, reason string, ok bool) {
	if h, reason, ok = f.Put(w, nil); ok {
		return nil, h, reason, true
	}
	for n := 1; n <= k && !ok; n++ {
		if n == 1 {
			moves, ok = f.moveOne(&w)
		} else {
			moves, ok = f.moveSome(&w, n)
		}
	}
	if !ok {
		return nil, Home{}, "", false
	}
	h, _, _ = f.Put(w, nil)
	return moves, h, "room made by moving " + names(moves), true
}

// names says what moves: "a and b to w1".
func names(moves []Move) (s string) {
	for i, m := range moves {
		switch {
		case i > 0 && i == len(moves)-1:
			s += " and "
		case i > 0:
			s += ", "
		}
		s += m.Home.Model + " to " + m.To.Worker
	}
	return s
}

// room is homes of one worker whose going would make room for a Want there.
type room struct {
	worker *worker
	homes  []*held
	bytes  int64
}

// rooms are, for each device, the sets of at most k homes whose going makes
// room for w, and none of which could stay: fewest first, then the smallest.
func (f *Fleet) rooms(w *Want, k int, may func(*held) bool) []room {
	f.exclude(w)
	var all []room
	for _, name := range f.asks(w) {
		need := w.need(name)
		for _, at := range f.pools[name].workers {
			if at.out == f.round || !at.clearable(w) {
				continue
			}
			for _, homes := range at.rooms(w, need, k, may) {
				all = append(all, room{at, homes, total(homes)})
			}
		}
	}
	slices.SortStableFunc(all, func(a, b room) int {
		return cmp.Or(cmp.Compare(len(a.homes), len(b.homes)), cmp.Compare(a.bytes, b.bytes))
	})
	return all
}

// suits: w, which needs no device, may come to a worker with such devices.
func (at *worker) suits(w *Want) bool {
	return len(w.Kinds) == 0 || slices.ContainsFunc(at.devices, func(d *device) bool { return w.suits(d.kind) })
}

// rooms of one worker.
func (at *worker) rooms(w *Want, need int64, k int, may func(*held) bool) (all [][]*held) {
	if need == 0 && !at.suits(w) {
		return nil
	}
	short := !at.free.holds(w.Host)
	if need == 0 || w.Devices > 0 || short {
		if need > 0 && !slices.ContainsFunc(at.devices, func(d *device) bool { return d.fit(need) <= d.Capacity && w.suits(d.kind) }) {
			return nil
		}
		return smallestSets(filter(at.held, may), k, func(gone []*held) bool { return at.fitsWithout(w, need, gone) })
	}
	for _, d := range at.devices {
		n := d.fit(need)
		if n > d.Capacity || !w.suits(d.kind) || len(d.held) == 0 {
			continue
		}
		all = append(all, smallestSets(filter(d.held, may), k, func(gone []*held) bool {
			a := d.without(gone)
			return a.left(w, n) >= 0
		})...)
	}
	return all
}

func filter(homes []*held, may func(*held) bool) (some []*held) {
	for _, e := range homes {
		if may(e) {
			some = append(some, e)
		}
	}
	return some
}

// fitsWithout: w has room on the worker once some homes are gone.
func (at *worker) fitsWithout(w *Want, need int64, gone []*held) bool {
	free := at.free
	for _, e := range gone {
		free = free.add(e.Host, 1)
	}
	if !free.holds(w.Host) {
		return false
	}
	empty := 0
	for _, d := range at.devices {
		if d.fit(need) > d.Capacity || !w.suits(d.kind) {
			continue
		}
		left := d.account
		if slices.ContainsFunc(gone, func(e *held) bool { return slices.Contains(e.devices, d) }) {
			left = d.without(gone)
		}
		if w.Devices == 0 && left.left(w, d.fit(need)) >= 0 {
			return true
		}
		if left.awake == 0 && left.asleep == 0 {
			empty++
		}
	}
	return need == 0 || w.Devices > 0 && empty >= w.Devices
}

// smallestSets are sets of at most k homes that are enough while no smaller part of them is: the fewest first, then by bytes; no more than a
// few of each size.
func smallestSets(homes []*held, k int, enough func([]*held) bool) (sets [][]*held) {
	homes = slices.Clone(homes)
	slices.SortStableFunc(homes, func(a, b *held) int { return cmp.Compare(a.total(), b.total()) })
	var pick func(from, n int, chosen []*held)
	tried := 0
	pick = func(from, n int, chosen []*held) {
		if n == 0 {
			tried++
			if enough(chosen) && !slices.ContainsFunc(sets, func(s []*held) bool { return within(s, chosen) }) {
				sets = append(sets, slices.Clone(chosen))
			}
			return
		}
		for i := from; i+n <= len(homes) && tried < effort; i++ {
			pick(i+1, n-1, append(chosen, homes[i]))
		}
	}
	for n := 1; n <= min(k, len(homes)); n++ {
		pick(0, n, nil)
	}
	return sets
}

// within: all of a are in b.
func within(a, b []*held) bool {
	for _, e := range a {
		if !slices.Contains(b, e) {
			return false
		}
	}
	return true
}

// moveOne finds the smallest home whose going makes room for w and that has room
// elsewhere, and moves it.
func (f *Fleet) moveOne(w *Want) ([]Move, bool) {
	f.exclude(w)
	var may []*worker
	for _, name := range f.asks(w) {
		for _, at := range f.pools[name].workers {
			if at.out != f.round && at.clearable(w) {
				may = append(may, at)
			}
		}
	}
	s := f.search(w, nil)
	var best *held
	f.asked++
	for _, at := range may {
		if s.pool != at.Pool {
			s.ask(at.Pool)
		}
		roomy := slices.ContainsFunc(at.state.spots, func(d spot) bool { return s.roomy(d.kind, d.account) })
		for _, e := range at.held {
			if (best == nil || e.total() < best.total()) && e.movable() && s.fitsInstead(e, roomy) && f.goes(e) {
				best = e
			}
		}
	}
	if best == nil {
		return nil, false
	}
	again := best.again()
	to, room := f.choose(&again, nil)
	return []Move{f.moveTo(best, &again, &to, room)}, true
}

// clearable: homes may leave a worker for w.
func (at *worker) clearable(w *Want) bool {
	return !at.Avoid && at.alone == 0 && !w.Alone && at.Host.holds(w.Host)
}

// roomy: a share of a device is enough, and there is one.
func (s *search) roomy(k *kind, left account) bool {
	a := &s.kinds[k.id]
	return s.w.Devices == 0 && a.suits && left.left(s.w, a.bytes) >= 0
}

// fitsInstead: there is room for the Want on e's worker if e is gone. roomy: one of
// its devices has room already.
func (s *search) fitsInstead(e *held, roomy bool) bool {
	at := e.worker
	if !at.free.add(e.Host, 1).holds(s.w.Host) {
		return false
	}
	switch {
	case s.need == 0:
		return at.suits(s.w)
	case s.w.Devices > 0:
		return s.emptyWithout(e) >= s.w.Devices
	case roomy:
		return true
	}
	for _, d := range e.devices {
		if s.roomy(d.kind, d.but(e)) {
			return true
		}
	}
	return false
}

// emptyWithout is how many devices that will do are empty if e is gone.
func (s *search) emptyWithout(e *held) (n int) {
	for _, d := range e.worker.devices {
		left := d.account
		if slices.Contains(e.devices, d) {
			left = d.but(e)
		}
		if a := &s.kinds[d.kind.id]; a.suits && a.bytes <= d.capacity && left.awake == 0 && left.asleep == 0 {
			n++
		}
	}
	return n
}

// but is d's account without e.
func (d *device) but(e *held) account {
	if d.asleep > 0 {
		return d.without([]*held{e})
	}
	a := d.account
	a.awake -= d.fit(e.Bytes)
	return a
}

// likeness is equal for homes that fit the same places.
type likeness struct {
	pool, kinds         string
	bytes               int64
	host                Host
	devices, capability int
	sleeping            bool
	awake               int
}

// alike stands for all homes of a likeness: a few for many.
type alike struct {
	want  Want // of no model
	asked int  // when two were found
	two   []*worker
}

// goes: there is room for e on another worker, where nothing is to be avoided.
func (f *Fleet) goes(e *held) bool {
	if len(f.models[e.Model]) > 1 { // other replicas are in the way
		w := e.again()
		to, _ := f.choose(&w, nil)
		return to.worker != nil && to.tier&(avoided|degraded) == 0
	}
	if e.alike == nil {
		w := e.again()
		l := likeness{e.worker.Pool, strings.Join(e.Kinds, "|"), e.Bytes, e.Host, w.Devices, e.Capability, e.sleeping(), e.Awake}
		if f.alike[l] == nil {
			w.Model = ""
			f.alike[l] = &alike{want: w}
		}
		e.alike = f.alike[l]
	}
	a := e.alike
	if a.asked != f.asked {
		a.asked, a.two = f.asked, f.two(&a.want)
	}
	return slices.ContainsFunc(a.two, func(at *worker) bool { return at != e.worker })
}

// two are workers that have room for w where nothing is to be avoided; there may be more.
func (f *Fleet) two(w *Want) (some []*worker) {
	s := f.search(w, nil)
	s.plain = true
	for _, name := range f.asks(w) {
		s.ask(name)
		for _, st := range f.pools[name].states {
			if st.avoid || s.need > st.widest || st.alone || !st.free.holds(w.Host) {
				continue
			}
			s.best = choice{}
			if s.look(st.workers[0], 1); s.best.worker == nil || s.best.tier&degraded != 0 {
				continue
			}
			if some = append(some, st.workers[:min(2, len(st.workers))]...); len(some) > 1 {
				return some
			}
		}
	}
	return some
}

// options are the places for w on workers that may have it, the best first; of devices
// of a worker that are alike, one.
func (f *Fleet) options(w *Want, will func(*worker) bool) []choice {
	f.exclude(w)
	s := f.search(w, nil)
	s.each = true
	for _, name := range f.asks(w) {
		s.ask(name)
		for _, at := range f.pools[name].workers {
			if at.Avoid || w.need(name) > at.state.widest || f.refuses(at, w) != fits || will != nil && !will(at) {
				continue
			}
			from := len(s.all)
			s.look(at, 1)
			for i := range s.all[from:] {
				if c := &s.all[from+i]; c.several {
					s.pick(c)
				}
			}
		}
	}
	s.all = slices.DeleteFunc(s.all, func(c choice) bool { return c.tier&degraded != 0 })
	slices.SortStableFunc(s.all, func(a, b choice) int {
		left := cmp.Compare(a.left, b.left)
		if a.tier&shared != 0 {
			left = -left
		}
		return cmp.Or(cmp.Compare(a.tier, b.tier), cmp.Compare(a.cost, b.cost), left)
	})
	return s.all
}

// now is the fragmentation of a worker.
func (f *Fleet) now(at *worker) int64 { return f.mix.now(at.state, at.state.rank) }

// moveTo carries a move out and says why it goes there.
func (f *Fleet) moveTo(e *held, w *Want, c *choice, room int) Move {
	before := f.now(e.worker) + f.now(c.worker)
	m := Move{Home: e.Home, To: f.settle(w, c)}
	m.To.Priority = e.Priority
	f.leave(e)
	after := f.now(e.worker) + f.now(c.worker)
	m.Reason, m.Gain = f.reason(w, c, room, nil), float64(before-after)/unit
	return m
}

// clearing tries ways to place homes, each in turn, with moves of others.
type clearing struct {
	f      *Fleet
	will   func(*worker) bool // may be a target; nil: all
	moving []*held
	moves  []Move
	left   int // effort
	bytes  int64
	best   []Move
	limit  int64 // bytes of best
}

// moveSome finds n moves, or fewer, of the fewest bytes after which w fits.
func (f *Fleet) moveSome(w *Want, n int) ([]Move, bool) {
	c := clearing{f: f, left: effort, limit: -1}
	c.clear(w, n, func(int) { c.found() })
	return f.replay(c.best)
}

// found keeps the moves if they are the smallest so far.
func (c *clearing) found() {
	if c.limit < 0 || c.bytes < c.limit {
		c.best, c.limit = slices.Clone(c.moves), c.bytes
	}
}

// replay carries out what was found.
func (f *Fleet) replay(moves []Move) ([]Move, bool) {
	for _, m := range moves {
		f.Take(m.To)
		f.Undo(m.Home)
	}
	return moves, len(moves) > 0
}

// clear calls then for every way in which at most k moves make room for w. When it returns, the fleet is as it was.
func (c *clearing) clear(w *Want, k int, then func(k int)) {
	may := func(e *held) bool {
		return e.movable() && !slices.ContainsFunc(c.moving, func(m *held) bool { return m.Model == e.Model })
	}
	for _, r := range c.f.rooms(w, k, may) {
		if c.left <= 0 || c.limit >= 0 && c.bytes+r.bytes >= c.limit {
			continue
		}
		homes := slices.Clone(r.homes)
		slices.Reverse(homes) // the largest first: it has the fewest places
		c.relocate(homes, k-len(homes), func(k int) {
			if c.f.fitsAt(w, r.worker) {
				then(k)
			}
		})
	}
}

// fitsAt: w has room on this worker.
func (f *Fleet) fitsAt(w *Want, at *worker) bool {
	f.exclude(w)
	if f.refuses(at, w) != fits {
		return false
	}
	s := f.search(w, nil)
	s.plain = true
	s.ask(at.Pool)
	s.look(at, 1)
	return s.best.worker != nil
}

// relocate calls then for every way in which the homes go elsewhere, with at most k moves of others.
func (c *clearing) relocate(homes []*held, k int, then func(k int)) {
	if len(homes) == 0 {
		then(k)
		return
	}
	e := homes[0]
	w := e.again()
	c.moving, c.bytes = append(c.moving, e), c.bytes+e.total()
	options := c.f.options(&w, c.will)
	for i := range options[:min(len(options), branches)] {
		if c.left--; c.left <= 0 {
			break
		}
		c.try(e, &w, &options[i], len(options), func() { c.relocate(homes[1:], k, then) })
		if len(homes) == 1 && len(c.moving) == 1 && c.limit >= 0 {
			break // another place makes no difference
		}
	}
	if len(options) == 0 && k > 0 {
		c.clear(&w, k, func(k int) {
			for _, o := range c.f.options(&w, c.will) {
				if c.left--; c.left <= 0 {
					return
				}
				c.try(e, &w, &o, 1, func() { c.relocate(homes[1:], k, then) })
			}
		})
	}
	c.moving, c.bytes = c.moving[:len(c.moving)-1], c.bytes-e.total()
}

// try moves a home, calls then, and moves it back.
func (c *clearing) try(e *held, w *Want, to *choice, room int, then func()) {
	m := c.f.moveTo(e, w, to, room)
	c.moves = append(c.moves, m)
	then()
	c.moves = c.moves[:len(c.moves)-1]
	c.f.Undo(m.To)
	c.f.take(e)
}

// Displace finds homes of a lower priority whose going makes room for w: of the
// lowest priorities, then the fewest, then the smallest. Applied to the fleet.
func (f *Fleet) Displace(w Want) (gone []Home, h Home, reason string, ok bool) {
	if h, reason, ok = f.Put(w, nil); ok {
		return nil, h, reason, true
	}
	var best room
	for _, p := range f.priorities(w.Priority) {
		if best = f.displaced(&w, p); best.worker != nil {
			break
		}
	}
	if best.worker == nil {
		return nil, Home{}, "", false
	}
	for _, e := range best.homes {
		gone = append(gone, e.Home)
		f.leave(e)
	}
	slices.SortFunc(gone, func(a, b Home) int { return cmp.Compare(a.Model, b.Model) })
	h, reason, _ = f.Put(w, nil)
	return gone, h, reason, true
}

// priorities of homes below p, ascending.
func (f *Fleet) priorities(p int) []int {
	seen := map[int]bool{}
	for _, at := range f.workers {
		for _, e := range at.held {
			if e.Priority < p && !e.Pinned {
				seen[e.Priority] = true
			}
		}
	}
	var all []int
	for q := range seen {
		all = append(all, q)
	}
	slices.Sort(all)
	return all
}

// displaced are the fewest homes of at most that priority that must go for w.
func (f *Fleet) displaced(w *Want, priority int) (best room) {
	may := func(e *held) bool { return e.Priority <= priority && !e.Pinned && !e.Alone }
	for k := 1; k <= 3; k++ {
		if all := f.rooms(w, k, may); len(all) > 0 {
			return all[0]
		}
	}
	f.exclude(w)
	for _, name := range f.asks(w) {
		need := w.need(name)
		for _, at := range f.pools[name].workers {
			if at.out == f.round || !at.clearable(w) {
				continue
			}
			if need == 0 && !at.suits(w) {
				continue
			}
			homes := at.many(w, need, filter(at.held, may))
			if r := (room{at, homes, total(homes)}); len(homes) > 0 && (best.worker == nil ||
				cmp.Or(cmp.Compare(len(r.homes), len(best.homes)), cmp.Compare(r.bytes, best.bytes)) < 0) {
				best = r
			}
		}
	}
	return best
}

// many are homes whose going makes room for w on a worker, where more than a few
// must: the largest go until it is enough, then those stay that can. None: not even
// all are enough.
func (at *worker) many(w *Want, need int64, homes []*held) []*held {
	var best []*held
	sets := [][]*held{homes}
	if w.Devices == 0 && at.free.holds(w.Host) {
		sets = nil
		for _, d := range at.devices {
			sets = append(sets, filter(homes, func(e *held) bool { return slices.Contains(e.devices, d) }))
		}
	}
	for _, set := range sets {
		if !at.fitsWithout(w, need, set) {
			continue
		}
		set = slices.Clone(set)
		slices.SortStableFunc(set, func(a, b *held) int { return cmp.Compare(b.total(), a.total()) })
		for n := range set {
			if at.fitsWithout(w, need, set[:n+1]) {
				set = set[:n+1]
				break
			}
		}
		for i := 0; i < len(set); {
			if rest := slices.Concat(set[:i], set[i+1:]); at.fitsWithout(w, need, rest) {
				set = rest
			} else {
				i++
			}
		}
		if best == nil || cmp.Or(cmp.Compare(len(set), len(best)), cmp.Compare(total(set), total(best))) < 0 {
			best = set
		}
	}
	return best
}

// Empty finds at most k moves after which the worker holds nothing that is awake;
// they go to workers that hold something already. Applied to the fleet; false: there are none such, and the fleet
// is as it was.
func (f *Fleet) Empty(name string, k int) (moves []Move, ok bool) {
	at := f.workers[name]
	if at == nil {
		return nil, false
	}
	awake := filter(at.held, func(e *held) bool { return !e.sleeping() })
	if len(awake) == 0 {
		return nil, true
	}
	if len(awake) > k || slices.ContainsFunc(awake, func(e *held) bool { return !e.movable() }) {
		return nil, false
	}
	slices.SortStableFunc(awake, func(a, b *held) int { return cmp.Compare(b.total(), a.total()) })
	c := clearing{f: f, left: effort, limit: -1, will: (*worker).inUse}
	c.relocate(awake, 0, func(int) {
		c.found()
		c.left = 0
	})
	return f.replay(c.best)
}

// inUse: something is awake on the worker.
func (at *worker) inUse() bool {
	return slices.ContainsFunc(at.held, func(e *held) bool { return !e.sleeping() })
}

// Defragment finds at most n moves, one after the other, each of which lowers the
// fragmentation most and by at least minGain, in expected bytes. Applied to the fleet.
func (f *Fleet) Defragment(n int, minGain float64) (moves []Move) {
	moved := map[string]bool{}
	for len(moves) < n {
		m, ok := f.gain(moved, minGain)
		if !ok {
			break
		}
		moved[m.Home.Model] = true
		moves = append(moves, m)
	}
	return moves
}

// gain makes the one move that lowers the fragmentation most, of those of the homes that promise most.
func (f *Fleet) gain(moved map[string]bool, least float64) (Move, bool) {
	leavers := f.leavers(moved, least)
	var best *held
	var to choice
	most, room := int64(0), 0
	for _, l := range leavers[:min(len(leavers), promising)] {
		if l.bound <= most {
			break
		}
		w := l.home.again()
		o, n := f.choose(&w, nil)
		if o.worker == nil || o.tier != 0 {
			continue
		}
		if gain := l.going - f.delta(&w, &o); gain > most && float64(gain)/unit >= least {
			best, to, most, room = l.home, o, gain, n
		}
	}
	if best == nil {
		return Move{}, false
	}
	w := best.again()
	return f.moveTo(best, &w, &to, room), true
}

// promising is how many homes each step of Defragment tries to move.
const promising = 200

// leaver is a home that may lower the fragmentation by going.
type leaver struct {
	home  *held
	bound int64 // no place lowers it by more, bytes times unit
	going int64 // by so much it is lower on the worker that it leaves
}

// leavers are those that may lower it by enough, those with the highest bound first.
func (f *Fleet) leavers(moved map[string]bool, least float64) (all []leaver) {
	for _, at := range f.inOrder() {
		for _, e := range at.held {
			if !e.movable() || moved[e.Model] || len(e.devices) == 0 {
				continue
			}
			d := e.devices[0]
			n := d.fit(e.Bytes)
			going := f.now(at) - f.mix.fragment(at, f.mix.rank(at.free.add(e.Host, 1)), e.devices, -n)
			// Where x is free before, x-n is after, and U is the weight of what can use it, it grows
			// by (x-n)(total-U(x-n)) - x(total-U(x)), which is no less than -n(total-U(n)). Shapes for
			// whole devices, and a host that gets smaller, only add to that.
			usable := d.kind.usable[len(d.kind.usable)-1][d.kind.step(n)]
			bound := going + n*int64(len(e.devices))*(f.mix.total-usable)
			if bound > 0 && float64(bound)/unit >= least {
				all = append(all, leaver{e, bound, going})
			}
		}
	}
	slices.SortStableFunc(all, func(a, b leaver) int { return cmp.Compare(b.bound, a.bound) })
	return all
}

// delta is what the fragmentation grows by if w comes to a place.
func (f *Fleet) delta(w *Want, c *choice) int64 {
	at := c.worker
	return f.mix.fragment(at, f.mix.rank(at.free.add(w.Host, -1)), c.devices(), c.bytes) - f.now(at)
}
