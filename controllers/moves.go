package controllers

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
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
