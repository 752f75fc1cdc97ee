package controllers

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/estiba/estiba/api/v1alpha1"
	"github.com/estiba/estiba/api/worker"
	"github.com/estiba/estiba/internal/policy/packing"
	"github.com/estiba/estiba/internal/status"
)

// A model that fits nowhere waits for a worker that is about to come; else others
// move for it or, where no pool can grow, give up their homes. What is free of the
// room that is made so is kept for it until the rest is.

const (
	// retried is how long after a search for room in vain the next one for the same model begins, and
	// searches how many begin within a second: where a pool is full, many wait, and each search takes time.
	retried  = 5 * time.Second
	searches = 4
)

// rearrange finds room for models that fit nowhere: by moving others or, where
// no pool can grow, in the place of those of lower priority. Those for which
// nobody has searched yet come first, then those that have waited for longest.
func (d *decision) rearrange() {
	if d.adopted {
		return // first the moves that are under way
	}
	tried := d.seen.Memory.Tried
	var due []*model
	for _, m := range d.models {
		if m.missing == 0 || m.room != nil || !m.demanded() || m.trial != nil || m.off() != "" || len(m.need) == 0 {
			continue
		}
		if at, has := tried[m.key]; has {
			d.plan.Memory.Tried[m.key] = at
			if d.seen.Now.Sub(at) < retried {
				d.soon(at.Add(retried))
				continue
			}
		}
		due = append(due, m)
	}
	slices.SortStableFunc(due, func(a, b *model) int { return tried[a.key].Compare(tried[b.key]) })
	left := searches
	for _, at := range tried {
		if d.seen.Now.Sub(at) < time.Second {
			left--
		}
	}
	if left = max(0, left); len(due) > left {
		due = due[:left]
		d.soon(d.seen.Now.Add(time.Second))
	}
	for _, m := range due {
		if d.makeRoom(m) || d.displace(m) {
			delete(d.plan.Memory.Tried, m.key)
			continue
		}
		d.plan.Memory.Tried[m.key] = d.seen.Now
		d.soon(d.seen.Now.Add(retried))
	}
}

// makeRoom moves a few models so that m fits, unless a worker is on its way.
func (d *decision) makeRoom(m *model) bool {
	if slices.ContainsFunc(m.pools, func(p *pool) bool { return slices.ContainsFunc(p.stations, d.comes) }) {
		return false
	}
	for _, p := range m.pools {
		if _, read := m.need.of(p.key); !read {
			continue
		}
		most := movesForOne
		for most > 0 {
			moves, at, reason, ok := d.fleet.MakeRoom(d.want(m, p), most)
			if !ok {
				break
			}
			d.fleet.Undo(at)
			if len(moves) == 0 { // there is room by now
				d.reserve(m, Room{Worker: at.Worker, Devices: at.Devices, Bytes: at.Bytes, Reason: reason, Since: d.seen.Now})
				return true
			}
			rest, ok := d.begin(moves, MoveMakesRoom, m.key, fmt.Sprintf("makes room for %s, which needs %s", m.key, packing.Size(known(m)[p.key])))
			if ok {
				d.reserve(m, Room{Worker: at.Worker, Devices: at.Devices, Bytes: at.Bytes, Reason: reason, Since: d.seen.Now, Then: rest})
				return true
			}
			if most = min(most-1, p.left.moves); most == 0 {
				break
			}
		}
	}
	return false
}

// displace gives m the room of models of lower priority, if no pool can grow for it.
func (d *decision) displace(m *model) bool {
	if m.why.Reserved > 0 || d.grows(m) {
		return false
	}
	for _, p := range m.pools {
		if _, read := m.need.of(p.key); !read {
			continue
		}
		gone, at, reason, ok := d.fleet.Displace(d.want(m, p))
		if !ok {
			continue
		}
		d.fleet.Undo(at)
		room := Room{Worker: at.Worker, Devices: at.Devices, Bytes: at.Bytes, Reason: reason, Since: d.seen.Now}
		for _, h := range gone {
			d.fleet.Take(h) // until it has gone
			room.Leave = append(room.Leave, h.Model)
		}
		d.reserve(m, room)
		for _, h := range gone {
			d.evict(h, m, p)
		}
		return true
	}
	return false
}

// grows reports whether a pool may soon bring a worker for m.
func (d *decision) grows(m *model) bool {
	p := d.growable(m)
	return p != nil && !d.overdue(p)
}

// evict takes a home away from a model, for m.
func (d *decision) evict(h packing.Home, m *model, p *pool) {
	o := d.byKey[h.Model]
	if o == nil {
		return
	}
	at := o.on(h.Worker)
	if at == nil {
		return
	}
	d.drop(at)
	gave := Gave{To: m.key, Priority: m.rank(p), Own: o.rank(p), Worker: h.Worker, Bytes: h.Bytes, At: d.seen.Now}
	o.gave = &gave
	d.settleIn(o)
	d.remember(o)
}

// remember keeps who has the room of a model that lacks a home.
func (d *decision) remember(m *model) {
	if m.gave == nil {
		if gave, known := d.seen.Memory.Gave[m.key]; known {
			m.gave = &gave
		}
	}
	if m.missing == 0 || m.gave == nil {
		m.gave = nil
		delete(d.plan.Memory.Gave, m.key)
		return
	}
	d.plan.Memory.Gave[m.key] = *m.gave
}

// reserve keeps what is free of a room for m, until the rest of it is.
func (d *decision) reserve(m *model, r Room) {
	m.room = &r
	d.plan.Memory.Rooms[m.key] = r
	d.hold(r.Worker, r.Devices, r.Bytes)
	for _, v := range r.Then {
		d.hold(v.To, v.Devices, v.Bytes)
	}
}

// hold takes up to n bytes of what is free, so that nobody else does.
func (d *decision) hold(worker string, devices []string, n int64) {
	s := d.byName[worker]
	if s == nil || len(devices) != 1 {
		return
	}
	if n = min(n, d.fleet.Free(worker, devices[0])); n > 0 {
		d.fleet.Take(packing.Home{Pool: s.pool.key, Worker: worker, Devices: devices, Bytes: n})
	}
}

// claim gives models the rooms that were made for them, and keeps those that are not free yet.
func (d *decision) claim() {
	for _, m := range d.models {
		r, waits := d.seen.Memory.Rooms[m.key]
		s := d.byName[r.Worker]
		if !waits || m.off() != "" || m.trial != nil || m.lacks() == 0 || s == nil || !s.usable || len(r.Devices) != 1 || s.losing(r.Devices) || m.on(s.Name) != nil {
			continue
		}
		need, fits := known(m)[s.pool.key]
		if !fits || need > r.Bytes || !slices.Contains(m.pools, s.pool) {
			continue
		}
		switch {
		case d.fleet.Free(r.Worker, r.Devices[0]) >= r.Bytes && !s.holds(m.key):
			w := d.want(m, s.pool)
			at := packing.Home{Model: m.key, Pool: s.pool.key, Worker: s.Name, Devices: r.Devices, Bytes: r.Bytes, Load: w.Load,
				Sleeps: w.Sleeps, Busy: w.Busy, Awake: w.Awake, Priority: w.Priority}
			d.fleet.Take(at)
			d.add(m, at, r.Reason).taken = []packing.Home{at}
		case d.coming(m, &r):
			d.reserve(m, r)
		}
	}
}

// next begins a move that waited for others to end, if it still can.
func (d *decision) next(v Move) bool {
	m, to := d.byKey[v.Model], d.byName[v.To]
	if m == nil || m.move != nil || m.trial != nil || to == nil || !to.usable || m.on(to.Name) != nil || to.holds(v.Model) {
		return false
	}
	from := m.on(v.From)
	if from == nil || from.leaving() || len(from.taken) != 1 || from.taken[0].Pinned || !v.Free && !d.pools[v.Pool].left.admits(v.Bytes) {
		return false
	}
	v.At = d.seen.Now.Truncate(time.Second)
	return d.start(v, "room made by an earlier move")
}

// holds reports whether the worker says that it has a model.
func (s *station) holds(key string) bool {
	return s.Report != nil && slices.ContainsFunc(s.Report.Homes, func(h worker.HomeState) bool { return h.Model == key })
}

// coming: what is in the way of m's room is on its way out. What waits for moves
// that have ended begins to move.
func (d *decision) coming(m *model, r *Room) bool {
	s := d.byName[r.Worker]
	for len(r.Then) > 0 && d.next(r.Then[0]) {
		r.Then = r.Then[1:]
	}
	if d.seen.Now.Sub(r.Since) > moveFor+orElse(s.pool.Spec.Update.Drain, defaultDrain) {
		return false
	}
	for _, key := range r.Leave {
		if s.homes[key] == nil && s.holds(key) {
			return true
		}
	}
	for _, v := range d.plan.Memory.Moves {
		if v.For == m.key {
			return true
		}
	}
	for _, v := range d.moving { // it has just been dropped
		if v.For == m.key && v.From == s.Name && s.homes[v.Model] == nil && s.holds(v.Model) {
			return true
		}
	}
	return d.seen.Now.Sub(r.Since) < reported // reports of what was told come within that time
}

// reported is how long a report of what was told may take.
const reported = 5 * time.Second

// making: m has no home, and room is being made for it.
func (d *decision) making(m *model) (status.Verdict, bool) {
	if m.room == nil || len(m.homes) > 0 {
		return status.Verdict{}, false
	}
	v := status.Verdict{Reason: v1alpha1.ReasonMoving, Progressing: true}
	var how []string
	for _, key := range sortedKeys(d.plan.Memory.Moves) {
		if o := d.plan.Memory.Moves[key]; o.For == m.key {
			how = append(how, fmt.Sprintf("%s moves from worker %s to %s", o.Model, o.From, o.To))
		}
	}
	if len(m.room.Leave) > 0 {
		how = append(how, fmt.Sprintf("%s, of lower priority, %s", strings.Join(m.room.Leave, ", "), verb(len(m.room.Leave), "goes", "go")))
	}
	if len(how) == 0 {
		how = append(how, "what was there leaves its device")
	}
	v.Message = fmt.Sprintf("Needs %s; room is made on worker %s: %s.", packing.Size(m.room.Bytes), m.room.Worker, strings.Join(how, ", "))
	return v, true
}

// evicted: m has no home, since it gave its room to another model.
func (d *decision) evicted(m *model) (status.Verdict, bool) {
	if len(m.homes) > 0 || m.grows != nil {
		return status.Verdict{}, false
	}
	v := status.Verdict{Reason: v1alpha1.ReasonEvicted}
	if g := m.gave; g != nil {
		v.Message = fmt.Sprintf("Gave up %s on worker %s to %s (priority %d, this one %d) and comes back when there is room. ", packing.Size(g.Bytes), g.Worker, g.To, g.Priority, g.Own)
		if d.stillOn(m) {
			v.Message += fmt.Sprintf("Needs %s; no worker but the one that it leaves could hold it.", packing.Size(m.why.Need))
		} else {
			v.Message += m.why.String()
		}
		v.Message += d.limits(m)
		return v, true
	}
	// An earlier leader knew who has its room.
	if c := status.Find(m.Status.Conditions, v1alpha1.ConditionReady); c != nil && c.Reason == v1alpha1.ReasonEvicted && c.ObservedGeneration == m.Generation {
		v.Message = c.Message
		return v, true
	}
	return v, false
}

// stillOn: m is still on the device that it gave up, the only one it could have had.
func (d *decision) stillOn(m *model) bool {
	if m.gave == nil || m.why.FreeOn != "" || m.why.Excluded == 0 {
		return false
	}
	s := d.byName[m.gave.Worker]
	return s != nil && s.Report != nil && slices.ContainsFunc(s.Report.Homes, func(h worker.HomeState) bool { return h.Model == m.key })
}
