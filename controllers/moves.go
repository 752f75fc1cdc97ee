package controllers

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/estiba/estiba/api/v1alpha1"
	"github.com/estiba/estiba/api/worker"
	"github.com/estiba/estiba/internal/policy/packing"
	"github.com/estiba/estiba/internal/status"
)

// A model that serves changes its home in steps, and each may be the last that
// this operator takes:
//
//  1. A second home, on the device if the first one is. The first one serves.
//  2. The second one is ready: the first one drains. Its requests end there; new
//     ones are answered with 421 and tried elsewhere.
//  3. The first one has left its device: it is dropped.
//
// Whatever becomes of the second home before the end of step 2, the first one
// stays, or comes back. The steps follow from what workers report; that a move is
// under way is Memory, and a later leader finds it in the pool's status. Without
// either, there is one home too many, and the lesser one is dropped.

const (
	movesByDefault = 12
	// movesListed bounds a pool's status, and spec.moves.maxPerHour with it.
	movesListed = 120
	// movesForOne is how many models may move so that another one fits, or that a worker is empty.
	movesForOne = 3
	// movesAtOnce touch one worker at most.
	movesAtOnce = 3
	// moveFor is how long a second home may take to be ready.
	moveFor = 30 * time.Minute
	// pause is how long a model stays after a move began, and was given up.
	pause = time.Minute
	// A model stays on a device for at least so many times as its load took, within bounds: so at most a twentieth
	// of its time goes into moving.
	stayLoads = 20
	stayLeast = 15 * time.Second
	stayMost  = 10 * time.Minute
)

// allowance is what a pool may still move this hour.
type allowance struct {
	moves int
	bytes int64 // negative: no bound
}

func (a allowance) admits(n int64) bool { return a.moves > 0 && (a.bytes < 0 || n <= a.bytes) }

// readMoves finds out which moves are under way, and what each pool may still move.
func (d *decision) readMoves() {
	memory := d.seen.Memory
	d.moving, d.touched, d.emptying, d.moved = map[string]Move{}, map[string]int{}, map[string]bool{}, map[string]Move{}
	maps.Copy(d.moving, memory.Moves)
	d.recent = d.lately()
	for _, v := range d.recent {
		d.moved[v.Model] = v
		if len(memory.Workers) == 0 { // a new leader
			d.moving[v.Model] = v
		}
	}
	for _, v := range d.moving {
		d.adopted = d.adopted || v.Kind == ""
		d.touched[v.From]++
		d.touched[v.To]++
	}
	for _, v := range d.recent { // until it is given back, or something is awake there
		if _, moves := d.moving[v.Model]; v.Kind == MoveConsolidates && (moves || !memory.Workers[v.From].IdleSince.IsZero()) {
			d.emptying[v.From] = true
		}
	}
	for _, p := range d.pools {
		p.left = allowance{movesByDefault, -1}
		if n := p.Spec.Moves.MaxPerHour; n != nil {
			p.left.moves = int(*n)
		}
		if b := p.Spec.Moves.MaxBytesPerHour; b != nil {
			p.left.bytes = b.Value()
		}
	}
	for _, v := range d.recent {
		d.spend(v)
	}
}

// lately are the moves that began within the last hour, as memory and the pools' statuses have them.
func (d *decision) lately() []Move {
	since := d.seen.Now.Add(-time.Hour)
	type key struct {
		model string
		at    int64
	}
	known := map[key]bool{}
	var all []Move
	add := func(v Move) {
		if k := (key{v.Model, v.At.Unix()}); v.At.After(since) && !known[k] {
			known[k] = true
			all = append(all, v)
		}
	}
	for _, v := range d.seen.Memory.Moved {
		add(v)
	}
	for name, p := range d.pools {
		for _, v := range p.Status.Moves {
			add(Move{Model: v.Model, Pool: name, From: v.From, To: v.To, At: v.At.Time, Bytes: v.Bytes.Value(), Reason: v.Reason, Resident: true})
		}
	}
	slices.SortFunc(all, func(a, b Move) int { return cmp.Or(a.At.Compare(b.At), cmp.Compare(a.Model, b.Model)) })
	return all
}

// counts: the move counts towards what its pool may move.
func (v Move) counts() bool { return !v.Free && v.Kind != MoveRelieves }

func (d *decision) spend(v Move) {
	p := d.pools[v.Pool]
	if p == nil || !v.counts() {
		return
	}
	p.left.moves = max(0, p.left.moves-1)
	if p.left.bytes >= 0 {
		p.left.bytes = max(0, p.left.bytes-v.Bytes)
	}
}

// pinned: nothing moves h, and nobody takes its room.
func (d *decision) pinned(h *home) bool {
	m := h.model
	_, moves := d.moving[m.key]
	return m.Spec.Eviction == v1alpha1.EvictNever || m.trial != nil || moves || m.off() != ""
}

// young: h, of n bytes, is not to move now.
func (d *decision) young(h *home, n int64) bool {
	m := h.model
	if h.state == nil || h.told == nil || h.told.Revision != m.revision || h.old() || d.touched[h.station.Name] >= movesAtOnce {
		return true
	}
	if d.seen.Now.Sub(d.moved[m.key].At) < pause {
		return true
	}
	switch h.state.Phase {
	case worker.PhaseIdle:
		return !m.sleeps()
	case worker.PhaseResident:
		stay := min(max(seconds(h.state.LoadSeconds*stayLoads), stayLeast), stayMost)
		return seconds(h.state.ResidentSeconds)+d.seen.Now.Sub(h.station.Heard) < stay || !h.station.pool.left.admits(n)
	}
	return true
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

// on is the home of m on a worker, or nil.
func (m *model) on(worker string) *home {
	for _, h := range m.homes {
		if h.station.Name == worker {
			return h
		}
	}
	return nil
}

// carryOn takes each move under way one step further.
func (d *decision) carryOn() {
	for _, key := range sortedKeys(d.moving) {
		v := d.moving[key]
		m := d.byKey[key]
		if m == nil || m.wanted == 0 {
			continue
		}
		from, to := m.on(v.From), m.on(v.To)
		switch {
		case from == nil || from.leaving() || to == nil || m.staying() <= m.wanted:
			continue // it is over, for better or worse
		case to.lost() || !from.draining && d.pointless(v, from):
			d.drop(to)
			continue
		}
		from.draining = from.told != nil && from.told.Draining || to.arrived(v)
		if from.draining && from.left() {
			d.drop(from)
			continue
		}
		from.extra, to.extra = from.draining, !from.draining
		m.move = &v
		d.plan.Memory.Moves[key] = v
	}
	d.adopted = d.adopted && len(d.plan.Memory.Moves) > 0
}

// staying are the homes on workers that stay.
func (m *model) staying() (n int) {
	for _, h := range m.homes {
		if !h.leaving() {
			n++
		}
	}
	return n
}

// lost: nothing will become of a home to which a model moves.
func (h *home) lost() bool {
	s := h.station
	if s.silent || s.Failed || h.leaving() || s.Report != nil && s.Report.Draining {
		return true
	}
	return h.state != nil && (h.state.Phase == worker.PhaseFailed || h.state.Phase == worker.PhaseRefused)
}

// pointless: nobody waits for the room any more, the model itself changes, or the move takes too long.
func (d *decision) pointless(v Move, from *home) bool {
	if from.told != nil && from.told.Draining {
		return false
	}
	waits := d.byKey[v.For]
	return v.For != "" && (waits == nil || waits.lacks() == 0) || from.told != nil && from.told.Revision != from.model.revision || d.seen.Now.Sub(v.At) > moveFor
}

// arrived: requests may go to the new home.
func (h *home) arrived(v Move) bool {
	if h.state == nil || h.station.silent || h.state.Revision != h.model.revision {
		return false
	}
	return h.state.Phase == worker.PhaseResident || !v.Resident && (h.state.Phase == worker.PhaseIdle || h.state.Phase == worker.PhaseLoading)
}

// left: the home has ended its requests and is off its device.
func (h *home) left() bool {
	return h.told != nil && h.told.Draining && (h.state == nil || h.state.Phase == worker.PhaseDraining && h.state.Tier != worker.TierDevice && h.state.Running+h.state.Waiting == 0)
}

// lacks is how many homes m is short of.
func (m *model) lacks() int {
	n := m.wanted
	for _, h := range m.homes {
		if !h.leaving() && !h.extra {
			n--
		}
	}
	return max(0, n)
}

// begin starts moves that the fleet has made, in their order, as far as there is
// room for what moves in both places until it has gone. It returns those that
// have to wait for others to end, and whether any began: none do where a pool may
// not move so much.
func (d *decision) begin(moves []packing.Move, kind MoveKind, waits, why string) (rest []Move, ok bool) {
	d.takeBack(moves)
	if !d.may(moves, kind) {
		return nil, false
	}
	for _, v := range moves {
		m := d.byKey[v.Home.Model]
		is := d.asMove(m, v.Home, v.To, kind, waits, why)
		if len(rest) > 0 || !d.start(is, v.Reason) {
			rest = append(rest, is)
		}
	}
	return rest, len(rest) < len(moves)
}

// takeBack undoes moves in the fleet, the last first.
func (d *decision) takeBack(moves []packing.Move) {
	for _, v := range slices.Backward(moves) {
		d.fleet.Undo(v.To)
		d.fleet.Take(v.Home)
	}
}

func (d *decision) asMove(m *model, at, to packing.Home, kind MoveKind, waits, why string) Move {
	from := m.on(at.Worker)
	return Move{
		Model: m.key, Pool: to.Pool, From: at.Worker, To: to.Worker, Devices: to.Devices, Bytes: to.Bytes, Load: at.Load,
		Kind: kind, For: waits, Reason: why, At: d.seen.Now.Truncate(time.Second),
		Resident: kind == MoveRelieves || from.told != nil && from.told.Resident || from.busy(),
		Free:     !from.onDevice(),
	}
}

// start begins a move if there is room for it now beside everything that is there.
func (d *decision) start(v Move, reason string) bool {
	m := d.byKey[v.Model]
	from := m.on(v.From)
	at := from.taken[0]
	at.Pool, at.Worker, at.Devices, at.Bytes, at.Pinned = v.Pool, v.To, v.Devices, v.Bytes, true
	if v.Resident {
		at.Sleeps, at.Busy = false, false
	}
	d.fleet.Take(at)
	if v.Kind != MoveRelieves && d.over(at) {
		d.fleet.Undo(at)
		return false
	}
	d.pin(from)
	to := d.add(m, at, reason)
	to.taken = []packing.Home{at}
	to.extra, to.awake = true, v.Resident
	m.move = &v
	d.moving[m.key] = v
	d.touched[v.From]++
	d.touched[v.To]++
	d.spend(v)
	d.recent = append(d.recent, v)
	d.plan.Memory.Moves[m.key] = v
	d.plan.Moves = append(d.plan.Moves, v)
	return true
}

// over: more is taken of a home's devices than there is.
func (d *decision) over(h packing.Home) bool {
	return slices.ContainsFunc(h.Devices, func(device string) bool { return d.fleet.Free(h.Worker, device) < 0 })
}

// pin keeps a home out of other moves of this decision.
func (d *decision) pin(h *home) {
	for i, at := range h.taken {
		d.fleet.Undo(at)
		at.Pinned = true
		d.fleet.Take(at)
		h.taken[i] = at
	}
}

// may reports whether moves are within what pools may move and workers do at once.
func (d *decision) may(moves []packing.Move, kind MoveKind) bool {
	n, bytes, touched := map[string]int{}, map[string]int64{}, map[string]int{}
	for _, v := range moves {
		m := d.byKey[v.Home.Model]
		if m == nil || m.move != nil || m.on(v.Home.Worker) == nil || len(m.on(v.Home.Worker).taken) != 1 {
			return false
		}
		for _, at := range []string{v.Home.Worker, v.To.Worker} {
			touched[at]++
			if d.touched[at]+touched[at] > movesAtOnce {
				return false
			}
		}
		if kind == MoveRelieves || !m.on(v.Home.Worker).onDevice() {
			continue
		}
		pool := v.Home.Pool
		n[pool]++
		bytes[pool] += v.Home.Bytes
		if left := d.pools[pool].left; n[pool] > left.moves || left.bytes >= 0 && bytes[pool] > left.bytes {
			return false
		}
	}
	return true
}

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
		if !waits || m.off() != "" || m.trial != nil || m.lacks() == 0 || s == nil || !s.usable || len(r.Devices) != 1 || m.homeOn(s) != nil {
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
	if m == nil || m.move != nil || m.trial != nil || to == nil || !to.usable || m.homeOn(to) != nil || to.holds(v.Model) {
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

const (
	// tidied is the least time between two looks for a better packing, and gain what a move must bring: a
	// sixteenth of a device that can be used again.
	tidied = time.Minute
	gain   = 16
	// looks is how many workers are looked at whether they can be emptied.
	looks = 8
)

// tidy packs better what serves, in pools where nothing else is going on: hot models
// are parted; else a worker that can be emptied is, so that it is given back; else what
// is free is made usable.
func (d *decision) tidy() {
	now := d.seen.Now
	d.plan.Memory.Tidied = d.seen.Memory.Tidied
	if d.plan.Memory.Tidied.IsZero() { // a new leader looks on for a while
		d.plan.Memory.Tidied = now
	}
	if d.adopted || now.Sub(d.plan.Memory.Tidied) < tidied {
		return
	}
	quiet := d.quiet()
	if len(quiet) == 0 {
		return
	}
	d.plan.Memory.Tidied = now
	maps.DeleteFunc(quiet, func(key string, _ bool) bool { return d.pools[key].left.moves == 0 })
	for _, key := range sortedKeys(quiet) {
		if p := d.pools[key]; d.spread(p) || d.consolidate(p) {
			delete(quiet, key)
		}
	}
	least := int64(0)
	for key := range quiet {
		if n := d.pools[key].device; least == 0 || n < least {
			least = n
		}
	}
	if least == 0 {
		return
	}
	moves := d.fleet.Defragment(movesForOne, float64(least)/gain)
	d.takeBack(moves)
	for _, v := range moves {
		if quiet[v.Home.Pool] && !d.spare(v.To.Worker) && !d.heats([]packing.Move{v}) && d.may([]packing.Move{v}, MoveDefragments) {
			why := fmt.Sprintf("makes %s usable that is free", packing.Size(int64(v.Gain)))
			d.start(d.asMove(d.byKey[v.Home.Model], v.Home, v.To, MoveDefragments, "", why), v.Reason)
		}
	}
}

// Loads, in 1/1000 of a device's time. A device is hot when its models take nearly all
// of it: a report of more there is not. A move from there must leave both devices wanted
// for cooler less, and no move that only tidies up makes one warm: what is parted does not
// come together again while the loads stay as they are.
const (
	hot    = 900
	warm   = 700
	cooler = 250
)

// heats: a device would be warm after the moves, by what moves there.
func (d *decision) heats(moves []packing.Move) bool {
	load := map[string]int{} // "worker/device" -> what comes
	for _, v := range moves {
		for _, device := range v.To.Devices {
			at := v.To.Worker + "/" + device
			if load[at] += v.Home.Load; v.Home.Load > 0 && d.byName[v.To.Worker].loadOf(device)+load[at] > warm {
				return true
			}
		}
	}
	return false
}

// loadOf a device is what its worker reports or, where that is more, what its models took before they moved there.
func (s *station) loadOf(device string) (load int) {
	for _, h := range s.homes {
		for _, at := range h.taken {
			if slices.Contains(at.Devices, device) {
				load += at.Load
			}
		}
	}
	for _, d := range s.Report.Devices {
		if d.Name == device {
			load = max(load, thousandths(d.Load))
		}
	}
	return load
}

// spread moves one model of a hot device of p to where there is time for it.
func (d *decision) spread(p *pool) bool {
	for _, s := range p.stations {
		if !s.usable || !s.current() || s.Report == nil {
			continue
		}
		for _, key := range sortedKeys(s.homes) {
			h := s.homes[key]
			if h.model == nil || !h.resident() || len(h.taken) != 1 || len(h.devices) != 1 || h.taken[0].Pinned || h.taken[0].Young {
				continue
			}
			if load := s.loadOf(h.devices[0]); load >= hot && h.taken[0].Load >= cooler && d.part(h, load) {
				return true
			}
		}
	}
	return false
}

// part moves a home off a device of the given load, if both are cooler then.
func (d *decision) part(h *home, load int) bool {
	want := d.want(h.model, h.station.pool)
	want.Load = h.taken[0].Load + 1000 + cooler - load // fits into the time of a device that is cool enough
	at, reason, _ := d.fleet.Place(want, d.seen.Score)
	if at.Worker == "" {
		return false
	}
	d.fleet.Undo(at)
	at.Load = h.taken[0].Load
	moves := []packing.Move{{Home: h.taken[0], To: at}}
	to := d.byName[at.Worker]
	if !to.current() || d.emptying[to.Name] || to.loadOf(at.Devices[0])+at.Load > load-cooler || !d.may(moves, MoveSpreads) {
		return false
	}
	why := fmt.Sprintf("the device on worker %s is wanted for %d %% of its time", h.station.Name, load/10)
	return d.start(d.asMove(h.model, h.taken[0], at, MoveSpreads, "", why), reason)
}

// spare: nothing is awake on the worker, and its pool may give it back. What moves there would keep it.
func (d *decision) spare(worker string) bool {
	s := d.byName[worker]
	return len(s.pool.present(d.seen.Now)) > s.pool.least() && s.asleep()
}

// least is how many workers the pool is to have.
func (p *pool) least() int {
	if p.Spec.Replicas != nil {
		return p.limit()
	}
	return int(p.Spec.Workers.Min)
}

// quiet are the pools in which no model waits or loads, nothing moves, and no worker comes or goes.
func (d *decision) quiet() map[string]bool {
	quiet := map[string]bool{}
	for key, p := range d.pools {
		quiet[key] = p.DeletionTimestamp.IsZero() && !slices.ContainsFunc(p.stations, func(s *station) bool {
			return s.Failed || d.comes(s) || s.memory.Going != "" || !s.Deleting.IsZero() || s.silent || s.settling()
		})
	}
	for _, m := range d.models {
		if m.missing > 0 && m.demanded() && m.off() == "" || m.move != nil || m.crowded {
			for _, p := range m.pools {
				quiet[p.key] = false
			}
		}
	}
	for key, is := range quiet {
		if !is {
			delete(quiet, key)
		}
	}
	return quiet
}

// consolidate empties the worker of p that holds the least, if the others can take it all.
func (d *decision) consolidate(p *pool) bool {
	var able []*station
	weight := map[string]int64{}
	for _, s := range p.stations {
		if !s.usable || !s.current() {
			continue
		}
		awake := false
		for _, h := range s.homes {
			awake = awake || h.awake || h.busy()
			for _, at := range h.taken {
				weight[s.Name] += at.Bytes
			}
		}
		if awake {
			able = append(able, s)
		}
	}
	if len(p.present(d.seen.Now)) <= p.least() || len(able) < 2 {
		return false
	}
	slices.SortStableFunc(able, func(a, b *station) int { return cmp.Compare(weight[a.Name], weight[b.Name]) })
	for _, s := range able[:min(len(able), looks)] {
		moves, ok := d.fleet.Empty(s.Name, movesForOne)
		if !ok || len(moves) == 0 {
			continue
		}
		if d.heats(moves) {
			d.takeBack(moves)
			continue
		}
		if _, ok := d.begin(moves, MoveConsolidates, "", fmt.Sprintf("empties worker %s, so that it is given back", s.Name)); ok {
			return true
		}
	}
	return false
}

// asMoves is what a pool's status has of the moves of the last hour.
func (d *decision) asMoves(p *pool) []v1alpha1.MoveStatus {
	var all []v1alpha1.MoveStatus
	for _, v := range d.recent {
		if v.Pool == p.key && v.counts() {
			all = append(all, v1alpha1.MoveStatus{Model: v.Model, From: v.From, To: v.To, At: metav1.NewTime(v.At), Bytes: *resource.NewQuantity(v.Bytes, resource.BinarySI), Reason: v.Reason})
		}
	}
	return all[max(0, len(all)-movesListed):]
}

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
		v.Message = fmt.Sprintf("Gave up %s on worker %s to %s (priority %d, this one %d) and comes back when there is room. ", packing.Size(g.Bytes), g.Worker, g.To, g.Priority, g.Own) + m.why.String() + d.limits(m)
		return v, true
	}
	// An earlier leader knew who has its room.
	if c := status.Find(m.Status.Conditions, v1alpha1.ConditionReady); c != nil && c.Reason == v1alpha1.ReasonEvicted && c.ObservedGeneration == m.Generation {
		v.Message = c.Message
		return v, true
	}
	return v, false
}

// moves: m changes its home.
func (d *decision) moves(m *model) *status.Part {
	if m.move == nil {
		return nil
	}
	v := m.move
	what := "the new home is not ready yet"
	if from := m.on(v.From); from != nil && from.draining {
		what = "requests end at the old home"
	}
	return &status.Part{True: true, Reason: v1alpha1.ReasonMoving, Message: fmt.Sprintf("Moves from worker %s to %s (%s): %s.", v.From, v.To, v.Reason, what)}
}
