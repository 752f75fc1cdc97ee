package controllers

import (
	"cmp"
	"slices"
	"time"

	"github.com/estiba/estiba/api/worker"
	"github.com/estiba/estiba/internal/policy/scaling"
)

// lingers is how long after its time a pod that is being deleted still counts
// as one of the pool's workers.
const lingers = time.Minute

// present are the workers whose devices may be in use.
func (p *pool) present(now time.Time) []*station {
	if p.there == nil {
		p.there = slices.DeleteFunc(slices.Clone(p.stations), func(s *station) bool {
			return s.Failed || !s.Deleting.IsZero() && now.Sub(s.Deleting) > lingers
		})
	}
	return p.there
}

// starting: it has not reported yet, and is to stay.
func (s *station) starting() bool {
	return s.Report == nil && !s.Failed && s.Deleting.IsZero() && s.memory.Going == ""
}

// nodeComes is how long a pod that waits for a node counts as one that is about to
// come. Autoscalers take one to two minutes for a node; longer than that nobody who
// could have room in another way waits for it.
const nodeComes = 2 * time.Minute

// waits notes since when the pod of s waits for a node.
func (d *decision) waits(s *station) {
	switch {
	case s.Unschedulable == "":
		s.memory.Unscheduled = time.Time{}
		return
	case s.memory.Unscheduled.IsZero():
		s.memory.Unscheduled = d.seen.Now
	}
	if until := s.memory.Unscheduled.Add(nodeComes); d.seen.Now.Before(until) {
		d.soon(until)
	}
}

// comes: the worker is starting, and its node is there or may be soon.
func (d *decision) comes(s *station) bool {
	return s.starting() && (s.Unschedulable == "" || d.seen.Now.Sub(s.memory.Unscheduled) < nodeComes)
}

// overdue: no worker of p is about to come, since the last pod could not be made
// or has waited for a node for too long.
func (d *decision) overdue(p *pool) bool {
	waits := p.Blocked != ""
	for _, s := range p.stations {
		if d.comes(s) {
			return false
		}
		waits = waits || s.starting()
	}
	return waits
}

// limit is how many workers the pool may have.
func (p *pool) limit() int {
	low, n := p.between()
	if p.Spec.Replicas != nil {
		n = min(max(int(*p.Spec.Replicas), low), n)
	}
	if p.barred() != "" {
		n = 0
	}
	return n
}

// resize decides how many workers each pool has and which of them go.
func (d *decision) resize() {
	d.grow()
	for _, key := range sortedKeys(d.pools) {
		p := d.pools[key]
		if !p.DeletionTimestamp.IsZero() {
			continue
		}
		d.resizePool(p)
	}
}

// grow finds a pool for each model that waits for a home and counts the
// workers that they would fill together.
func (d *decision) grow() {
	waiting := map[*pool][]*model{}
	for _, m := range d.models {
		if m.missing == 0 && !m.crowded || m.room != nil {
			continue
		}
		if p := d.growable(m); p != nil {
			m.grows = p
			if m.demanded() || m.crowded {
				waiting[p] = append(waiting[p], m)
			}
		}
	}
	for p, models := range waiting {
		p.need = d.fills(p, models)
	}
}

// growable is the first pool that has, or may get, a worker on which m fits; one whose
// last worker does not come is after all others. A model whose header nobody
// has read needs a worker to read it.
func (d *decision) growable(m *model) *pool {
	need := known(m)
	if len(need) == 0 && (m.failure != nil || slices.ContainsFunc(m.pools, (*pool).readable)) || m.why.Reserved > 0 && m.trial == nil {
		return nil
	}
	var late *pool // better than none
	for _, p := range m.pools {
		coming := slices.ContainsFunc(p.stations, (*station).starting)
		if (coming || len(p.present(d.seen.Now)) < p.limit() || p.replacing()) && (p.device == 0 || likely(need, p.key) <= p.device) {
			switch {
			case !d.overdue(p):
				return p
			case !p.Lasting:
				late = cmp.Or(late, p)
			}
		}
	}
	return late
}

// replacing: a worker is on its way out, and another one may come in its place.
func (p *pool) replacing() bool {
	return p.limit() > 0 && slices.ContainsFunc(p.stations, func(s *station) bool {
		return !s.Failed && (s.memory.Going != "" || !s.Deleting.IsZero())
	})
}

// readable: a worker of the pool can be asked to read a header.
func (p *pool) readable() bool { return len(p.readers()) > 0 }

// readers are the workers that can be asked. What a model needs on a device is said by one that has such a device.
func (p *pool) readers() []*station {
	return slices.DeleteFunc(slices.Clone(p.stations), func(s *station) bool { return !s.usable || s.silent || s.crippled() })
}

// likely is the need in a pool or, where that is not known, the most that it is elsewhere.
func likely(need map[string]int64, pool string) int64 {
	if n, known := need[pool]; known {
		return n
	}
	most := int64(0)
	for _, n := range need {
		most = max(most, n)
	}
	return most
}

// fills is how many workers, beyond those that are starting, the models would fill.
func (d *decision) fills(p *pool, models []*model) int {
	if p.device == 0 { // unknown: a worker tells
		return max(0, 1-p.starting())
	}
	var loads []scaling.Replica
	for _, m := range models {
		for range max(1, m.missing) {
			loads = append(loads, scaling.Replica{Model: m.key, Bytes: likely(known(m), p.key), Alone: m.trial != nil})
		}
	}
	return max(0, scaling.Fill(loads, p.device, p.devices, p.limit())-p.starting())
}

// starting is how many workers of p have not reported yet, and stay.
func (p *pool) starting() (n int) {
	for _, s := range p.stations {
		if s.starting() {
			n++
		}
	}
	return n
}

func (d *decision) resizePool(p *pool) {
	spec := d.bounds(p)
	d.relieve(p)
	d.abandon(p)
	workers, serving := d.asWorkers(p)
	todo := scaling.Workers(d.seen.Now, spec, workers, p.need)
	if !todo.Again.IsZero() {
		d.soon(todo.Again)
	}
	if todo.Create > 0 && p.barred() == "" && !p.Lasting {
		d.plan.Create[p.key] = todo.Create
		if n := min(todo.Create, spec.Replacing); n > 0 {
			d.plan.Successors[p.key], d.plan.Memory.Pools[p.key] = n, n
		}
	}
	d.retire(p, todo.Remove)
	for _, s := range p.present(d.seen.Now) {
		s.memory.Pool = ""
		if s.Report != nil || s.Successor && !s.memory.Extra {
			s.memory.Pool = p.key
		}
	}
	d.plan.Budgets[p.key] = int32(max(0, serving-spec.MaxUnavailable))
}

// bounds are p's rules for its workers, as scaling has them.
func (d *decision) bounds(p *pool) scaling.Pool {
	low, high := p.between()
	spec := scaling.Pool{
		Min: low, Max: high,
		ScaleDownAfter: orElse(p.Spec.ScaleDown.After, defaultScaleDown),
		MaxUnavailable: max(1, int(p.Spec.Update.MaxUnavailable)), Blocked: p.Blocked != "", Replacing: d.replacing(p),
	}
	if p.Spec.Replicas != nil {
		n := int(*p.Spec.Replicas)
		spec.Fixed = &n
	}
	return spec
}

// asWorkers are p's workers, as scaling has them, and how many of them count for
// the disruption budget: extra ones that have not started do not.
func (d *decision) asWorkers(p *pool) (workers []scaling.Worker, serving int) {
	for _, s := range p.present(d.seen.Now) {
		s.rest(d.seen.Now)
		extra := s.memory.Extra && !s.Running
		if !extra {
			serving++
		}
		workers = append(workers, scaling.Worker{
			Name: s.Name, Ready: s.Report != nil && !s.silent && !s.crippled(), Silent: s.silent || s.Report == nil && s.Running, Homes: len(s.homes), IdleSince: s.memory.IdleSince,
			Going: s.memory.Going != "" || !s.Deleting.IsZero(), Settling: s.settling(), Outdated: !s.current(), Extra: extra,
		})
	}
	return workers, serving
}

// retire marks the workers that are to go. While nothing could come in the place of
// those that are out of date, they stay, also those that had been marked and do not drain yet.
func (d *decision) retire(p *pool, removals []scaling.Removal) {
	held := p.barred() != "" || p.Unchecked != ""
	for _, r := range removals {
		if s := d.byName[r.Worker]; s.current() || !held {
			s.memory.Going = r.Reason
			d.soon(d.seen.Now)
		}
	}
	for _, s := range p.stations {
		if held && s.memory.Going == scaling.OutOfDate && s.memory.DrainedSince.IsZero() {
			s.memory.Going = ""
			d.soon(d.seen.Now)
		}
	}
	if p.Unchecked != "" {
		d.soon(d.seen.Now.Add(retry))
	}
}

// replacing is how many workers of p served, are gone, and have no successor
// yet. Those that were given back have none.
func (d *decision) replacing(p *pool) int {
	n := d.seen.Memory.Pools[p.key]
	for _, s := range p.stations {
		if _, known := d.seen.Memory.Workers[s.Name]; !known && s.Successor {
			n--
		}
	}
	n = max(0, n)
	present := p.present(d.seen.Now)
	for name, memory := range d.seen.Memory.Workers {
		if memory.Pool == p.key && !slices.ContainsFunc(present, func(s *station) bool { return s.Name == name }) {
			if s := d.byName[name]; s != nil {
				s.memory.Pool = "" // counted
			}
			if memory.Going == "" || memory.Going == scaling.OutOfDate || memory.Going == draining || memory.Going == devicesLost && memory.Fit {
				n++
			}
		}
	}
	return n
}

// relieve notes which workers are extra. One that has come may have taken the
// node that a successor waits for: then the successor is the extra one.
func (d *decision) relieve(p *pool) {
	came := 0
	for _, s := range p.present(d.seen.Now) {
		if s.Report != nil && d.seen.Memory.Workers[s.Name].Extra {
			came++
		}
	}
	for _, s := range p.present(d.seen.Now) {
		if s.Report != nil || s.Running || s.memory.Extra {
			continue
		}
		s.memory.Extra = !s.Successor || came > 0
		if s.Successor && came > 0 {
			came--
		}
	}
}

// draining is why a worker goes that drains without having been told to.
const draining = "it is draining"

// settling: a home that is to be awake is on its way to the device, and has not failed.
func (s *station) settling() bool {
	for _, h := range s.homes {
		if h.model != nil && h.awake && !h.ready() && (h.state == nil || h.state.Phase != worker.PhaseFailed && h.state.Phase != worker.PhaseRefused) {
			return true
		}
	}
	return false
}

// rest notes since when nothing on the worker is awake. Homes that sleep do not keep a worker.
func (s *station) rest(now time.Time) {
	idle := s.usable && !s.silent && s.asleep()
	switch {
	case !idle:
		s.memory.IdleSince = time.Time{}
	case s.memory.IdleSince.IsZero():
		s.memory.IdleSince = now
	}
}

// move carries on with the workers that are to go: their homes move elsewhere,
// where there is room, before the old ones end; then the worker drains, and
// when it is empty, or its time is up, the pod is deleted.
func (d *decision) move() {
	for _, s := range d.stations {
		switch {
		case s.Failed:
			d.delete(s, "the pod has ended")
		case !s.Deleting.IsZero():
		case s.Report == nil && s.memory.Going != "":
			d.delete(s, s.memory.Going)
		case s.Report != nil && s.Report.Draining && s.memory.Going == "":
			s.memory.Going = draining
			fallthrough
		case s.memory.Going != "":
			d.goes(s)
		default:
			s.memory.GoingSince = time.Time{}
		}
	}
}

// goes carries on with one of them. It drains at once where none of its models
// will have a home elsewhere; for those that may have one soon it waits, but not for ever.
func (d *decision) goes(s *station) {
	if s.memory.GoingSince.IsZero() {
		s.memory.GoingSince = d.seen.Now
	}
	stuck := true
	for _, key := range sortedKeys(s.homes) {
		h := s.homes[key]
		switch {
		case h.model == nil:
		case h.model.replaced():
			d.drop(h)
		case d.follows(h.model, s):
			stuck = false
		}
	}
	if !stuck && !s.Report.Draining && s.memory.DrainedSince.IsZero() {
		return
	}
	s.hard = true
	if s.memory.DrainedSince.IsZero() {
		s.memory.DrainedSince = d.seen.Now
	}
	until := s.memory.DrainedSince.Add(orElse(s.pool.Spec.Update.Drain, defaultDrain))
	switch {
	case s.drained():
		d.delete(s, s.memory.Going)
	case !d.seen.Now.Before(until):
		d.delete(s, s.memory.Going+"; its time to drain is over")
	default:
		d.soon(until)
	}
}

// follows: a home of m elsewhere is on its way, or there may be room for one soon.
// A worker that comes only after this one has gone is none that starts.
func (d *decision) follows(m *model, s *station) bool {
	if m.off() != "" {
		return false
	}
	until := s.memory.GoingSince.Add(moveFor)
	if m.missing > 0 {
		until = s.memory.GoingSince.Add(orElse(s.pool.Spec.Update.Drain, defaultDrain))
		if !m.demanded() || m.room == nil && !d.awaits(m) {
			return false
		}
	}
	if !d.seen.Now.Before(until) {
		return false
	}
	d.soon(until)
	return true
}

// awaits: a worker is about to come on which m would fit.
func (d *decision) awaits(m *model) bool {
	return slices.ContainsFunc(m.pools, func(p *pool) bool {
		return (p.device == 0 || likely(known(m), p.key) <= p.device) && slices.ContainsFunc(p.stations, d.comes)
	})
}

// replaced reports whether as many homes as are wanted are ready on workers that stay.
func (m *model) replaced() bool {
	ready := 0
	for _, h := range m.homes {
		if !h.leaving() && h.ready() {
			ready++
		}
	}
	return ready >= m.wanted
}

// drained: it has been told to take nothing, and nothing runs.
func (s *station) drained() bool {
	return s.Report.Draining && !slices.ContainsFunc(s.Report.Homes, func(h worker.HomeState) bool { return h.Running+h.Waiting > 0 })
}

func (d *decision) delete(s *station, reason string) {
	d.plan.Delete = append(d.plan.Delete, Deletion{s.Name, reason})
}

const (
	// retryFirst and retryMost bound the time between two readings of a source that failed.
	retryFirst = 2 * time.Second
	retryMost  = time.Minute
	// reads is how many headers one worker reads at a time: a source may hang, and must not hold up the others.
	reads = 4
)

// inspect asks a worker of each pool for the footprints that are not known.
func (d *decision) inspect() {
	asked := map[InspectKey]bool{}
	var busy map[string]int // worker -> headers that it reads
	able := map[*pool][]*station{}
	for _, m := range d.models {
		if len(m.need) == len(m.pools) || m.off() != "" {
			continue
		}
		for _, p := range m.pools {
			key := InspectKey{p.key, m.revision}
			if _, known := m.need.of(p.key); known || asked[key] {
				continue
			}
			readers, listed := able[p]
			if !listed {
				readers = p.readers()
				able[p] = readers
			}
			in := d.seen.Inspections[key]
			if len(readers) == 0 || !d.due(in) {
				continue
			}
			if busy == nil {
				busy = d.reading()
			}
			s := reader(readers, in.Attempts, busy)
			if busy[s.Name] >= reads {
				continue // an answer makes another decision
			}
			asked[key] = true
			busy[s.Name]++
			d.plan.Inspect = append(d.plan.Inspect, Inspect{s.Name, key, worker.InspectRequest{
				Source: modelSource(m.Model), Format: string(m.Spec.Precision.Format), Context: modelContext(m.Model),
			}})
		}
	}
}

// reading is how many headers each worker reads now.
func (d *decision) reading() map[string]int {
	busy := map[string]int{}
	for _, in := range d.seen.Inspections {
		if in.Pending {
			busy[in.Worker]++
		}
	}
	return busy
}

// reader is the worker that reads the least now. Among equals it is another one
// with each attempt: the worker may be to blame.
func reader(able []*station, attempts int, busy map[string]int) *station {
	best := able[attempts%len(able)]
	for i := range able {
		if s := able[(attempts+i)%len(able)]; busy[s.Name] < busy[best.Name] {
			best = s
		}
	}
	return best
}

// due reports whether a source is to be read now: never asked, or failed long enough ago.
func (d *decision) due(in Inspected) bool {
	if in.Pending {
		return false
	}
	if in.At.IsZero() {
		return true
	}
	wait := min(retryFirst<<min(max(in.Attempts-1, 0), 10), retryMost)
	if at := in.At.Add(wait); d.seen.Now.Before(at) {
		d.soon(at)
		return false
	}
	return true
}
