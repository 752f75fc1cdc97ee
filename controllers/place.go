package controllers

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/estiba/estiba/api/v1alpha1"
	"github.com/estiba/estiba/api/worker"
	"github.com/estiba/estiba/internal/policy/packing"
	"github.com/estiba/estiba/internal/policy/scaling"
)

const (
	defaultIdleAfter = 5 * time.Minute
	defaultTarget    = 8
	defaultDrain     = 5 * time.Minute
	defaultScaleDown = 10 * time.Minute
)

// sleeps reports whether m may be off its devices when nobody asks for it.
func (m *model) sleeps() bool { return m.Spec.Autoscaling != nil && m.Spec.Autoscaling.Min == 0 }

func (m *model) idleAfter() time.Duration {
	if m.Spec.Autoscaling == nil {
		return 0
	}
	return orElse(m.Spec.Autoscaling.IdleAfter, defaultIdleAfter)
}

// off says why m is to have no home at all; empty: it is to have one.
func (m *model) off() string {
	switch {
	case !m.DeletionTimestamp.IsZero():
		return "it is being deleted"
	case m.Spec.Suspend:
		return v1alpha1.ReasonSuspended
	case m.quarantined():
		return v1alpha1.ReasonQuarantined
	case len(m.names) == 0:
		return v1alpha1.ReasonNameConflict
	case len(m.pools) == 0:
		return v1alpha1.ReasonNoPoolMatches
	}
	return ""
}

// scale decides how many homes each model has, and how many of them are awake.
func (d *decision) scale() {
	for _, m := range d.models {
		spec := scaling.Spec{Min: 1, Max: 1, Target: defaultTarget}
		if r := m.Spec.Replicas; r != nil {
			spec.Min, spec.Max = int(*r), int(*r)
		}
		if a := m.Spec.Autoscaling; a != nil {
			spec.Min, spec.Max, spec.IdleAfter = int(a.Min), int(a.Max), m.idleAfter()
			if a.Target.Requests > 0 {
				spec.Target = int(a.Target.Requests)
			}
		}
		state, known := d.seen.Memory.Models[m.key]
		if !known { // a new leader goes on from what is resident
			for _, h := range m.homes {
				if h.told != nil && h.told.Resident {
					state.Wanted++
				}
			}
		}
		count, state := scaling.Replicas(d.seen.Now, spec, m.load, state)
		d.plan.Memory.Models[m.key] = state
		if !state.LowSince.IsZero() {
			d.soon(state.LowSince.Add(spec.IdleAfter))
		}
		if m.off() != "" {
			continue
		}
		m.wanted, m.awake = count.Wanted, count.Wanted
		if m.sleeps() {
			// The worker wakes the first home when a request comes and lets it sleep again,
			// without the operator. Where more are wanted, all are kept awake from here.
			m.wanted, m.awake = max(1, count.Wanted), 0
			if count.Wanted > 1 {
				m.awake = count.Wanted
			}
		}
		if m.trial != nil {
			m.awake = max(m.awake, 1)
		}
	}
}

// demanded reports whether anybody waits for a home that m lacks.
func (m *model) demanded() bool {
	return !m.sleeps() || m.load.Total() > 0 || m.trial != nil && m.awake > 0
}

// place keeps the homes that are wanted, drops the others, and finds new ones:
// first for models that are tried alone, then for those that are asked for, each
// time in order of precedence. Then it makes room for those that fit nowhere, and packs better what serves.
func (d *decision) place() {
	for _, m := range slices.Backward(d.models) { // of those that outgrow a device, the last goes first
		if !slices.ContainsFunc(m.homes, d.outgrown) {
			continue
		}
		for _, h := range slices.Clone(m.homes) {
			if d.outgrown(h) {
				d.shrink(h)
				d.drop(h)
			}
		}
	}
	d.strand()
	d.carryOn()
	for _, m := range d.models {
		d.keep(m)
	}
	d.claim()
	for t := range turns {
		for _, m := range d.models {
			if m.turn() == t && m.off() == "" {
				d.settleIn(m)
			}
		}
	}
	d.rehouse()
	d.relieveCrowded()
	d.rearrange()
	for _, m := range d.models {
		d.remember(m)
		d.awaken(m)
	}
	d.tidy()
	d.plan.Memory.Moved = d.recent
}

const turns = 3

// turn in which m gets a home: those that are tried alone need an empty worker, and
// whoever is asked for, for whom a worker may have been made, comes before whoever is not.
func (m *model) turn() int {
	switch {
	case m.trial != nil:
		return 0
	case m.demanded():
		return 1
	}
	return 2
}

// keep drops homes beyond the wanted number, and those in pools that m may not use.
func (d *decision) keep(m *model) {
	may := func(h *home) bool { return m.wanted > 0 && slices.Contains(m.pools, h.station.pool) }
	stays := func(h *home) bool { return may(h) && !h.leaving() && !h.extra }
	n := 0 // that stay
	for i := len(m.homes) - 1; i >= 0; i-- {
		switch h := m.homes[i]; {
		case stays(h):
			n++
		case !may(h):
			d.drop(h)
		}
	}
	if n <= m.wanted {
		return
	}
	staying := slices.DeleteFunc(slices.Clone(m.homes), func(h *home) bool { return !stays(h) })
	slices.SortStableFunc(staying, func(a, b *home) int {
		return cmp.Or(
			-compareBool(a.ready(), b.ready()),
			-compareBool(a.resident(), b.resident()),
			-compareBool(a.station.current(), b.station.current()),
			cmp.Compare(a.station.Name, b.station.Name))
	})
	for _, h := range staying[m.wanted:] {
		d.drop(h)
	}
}

// outgrown reports whether the new revision of h's model does not fit where the old one is.
func (d *decision) outgrown(h *home) bool {
	if h.told == nil || h.told.Revision == h.model.revision || !h.station.usable || !d.renew(h) {
		return false
	}
	return slices.ContainsFunc(h.devices, func(device string) bool { return d.fleet.Free(h.station.Name, device) < 0 })
}

// shrink gives back what h's new revision would have taken. What the old one
// has stays taken until the worker reports that it is gone.
func (d *decision) shrink(h *home) {
	for i, taken := range h.taken {
		d.fleet.Undo(taken)
		if h.state != nil {
			taken.Bytes, taken.Alone = h.state.Footprint.Total(), false
			h.taken[i] = taken
			d.fleet.Take(taken)
		}
	}
}

// current: made from the template in force, on a node that stays.
func (s *station) current() bool { return s.Hash == s.pool.Hash && s.Leaving == "" }

// drop lets go of a home. The worker ends its running requests first; until it
// reports that, the home's bytes stay taken.
func (d *decision) drop(h *home) {
	delete(h.station.homes, h.model.key)
	h.model.homes = slices.DeleteFunc(h.model.homes, func(o *home) bool { return o == h })
}

// settleIn finds the homes that m lacks.
func (d *decision) settleIn(m *model) {
	m.missing = m.lacks()
	if m.missing > 0 && m.trial != nil {
		m.missing = 1
	}
	if len(m.need) == 0 {
		return
	}
	for m.missing > 0 {
		at, reason, why := d.find(m)
		if at.Worker == "" {
			m.why = why
			return
		}
		m.missing--
		d.add(m, at, reason).taken = []packing.Home{at}
	}
}

// want is a replica of m that looks for a home in a pool; nil: in all that may hold it.
// One that sleeps and is asked for comes to the device at once.
func (d *decision) want(m *model, p *pool) packing.Want {
	w := packing.Want{Model: m.key, Need: known(m), Alone: m.trial != nil, Load: m.hot, Priority: int(m.Spec.Priority)}
	if p != nil {
		w.Need, w.Priority = map[string]int64{p.key: known(m)[p.key]}, m.rank(p)
	}
	if m.sleeps() && m.awake == 0 {
		w.Sleeps, w.Busy, w.Awake = true, m.load.Total() > 0, m.share
	}
	return w
}

// find looks for a home. A model that sleeps and is asked for is better placed
// where it can wake at once; else where it waits for its neighbours.
func (d *decision) find(m *model) (at packing.Home, reason string, why packing.Why) {
	want := d.want(m, nil)
	if at, reason, why = d.fleet.Place(want, d.seen.Score); at.Worker != "" {
		return at, reason, why
	}
	if want.Busy && !d.grows(m) {
		want.Busy = false
		if at, reason, _ = d.fleet.Place(want, d.seen.Score); at.Worker != "" {
			return at, reason, packing.Why{}
		}
	}
	if !want.Alone || d.mayGrow(m) {
		return at, reason, why
	}
	// No worker will ever be idle: m is tried beside models that nobody suspects.
	want.Alone, want.Not = false, map[string]bool{}
	waits := false
	for _, s := range d.stations {
		if s.tries() && m.on(s.Name) == nil {
			want.Not[s.Name], waits = true, true
		}
	}
	if at, reason, full := d.fleet.Place(want, d.seen.Score); at.Worker != "" || !waits {
		return at, reason, full
	}
	return at, reason, why
}

func (d *decision) add(m *model, at packing.Home, reason string) *home {
	s := d.byName[at.Worker]
	h := &home{model: m, station: s, devices: at.Devices, reason: reason, alone: at.Alone}
	if s.Report != nil {
		for i := range s.Report.Homes {
			if s.Report.Homes[i].Model == m.key { // it comes back before it was gone
				h.state = &s.Report.Homes[i]
			}
		}
	}
	s.homes[m.key] = h
	m.homes = append(m.homes, h)
	return h
}

// mayGrow reports whether a pool of m may have one more worker.
func (d *decision) mayGrow(m *model) bool {
	return slices.ContainsFunc(m.pools, func(p *pool) bool { return !d.overdue(p) && len(p.present(d.seen.Now)) < p.limit() })
}

// awaken decides which homes ask to be resident: those that are already, first.
func (d *decision) awaken(m *model) {
	inOrder := m.homes
	if len(inOrder) > 1 {
		inOrder = slices.Clone(inOrder)
	}
	slices.SortStableFunc(inOrder, func(a, b *home) int {
		return cmp.Or(
			compareBool(a.leaving(), b.leaving()),
			-compareBool(a.told != nil && a.told.Resident, b.told != nil && b.told.Resident),
			-compareBool(a.resident(), b.resident()),
			cmp.Compare(a.station.Name, b.station.Name))
	})
	n := 0
	for _, h := range inOrder {
		switch {
		case h.leaving() || h.draining: // as it was, until its replacement is there
			h.awake = h.told != nil && h.told.Resident
			continue
		case h.extra:
			h.awake = m.move.Resident
			continue
		}
		h.awake = n < m.awake
		n++
	}
}

// assign turns the homes of each worker into its assignment.
func (d *decision) assign() {
	for _, s := range d.stations {
		if s.Report != nil && !s.Failed && s.Deleting.IsZero() && !s.frozen {
			d.assignTo(s)
		}
		d.plan.Memory.Workers[s.Name] = s.memory
	}
	d.label()
}

func (d *decision) assignTo(s *station) {
	r := s.Report
	a := worker.Assignment{Epoch: d.seen.Epoch, Instance: r.Instance, Drain: s.hard, Homes: d.wired[:0]}
	for _, key := range sortedKeys(s.homes) {
		if h := s.homes[key]; (h.model != nil || h.braked) && !s.hard {
			a.Homes = append(a.Homes, d.wire(h))
		}
	}
	d.wired = a.Homes // most of the time it is only compared
	last := s.memory.Assigned
	same := last.Epoch == a.Epoch && last.Instance == a.Instance
	if last.Homes != nil && sameContent(last, a) {
		a.Homes = last.Homes
	} else {
		a.Homes = append([]worker.Home{}, a.Homes...)
	}
	switch {
	case same && sameContent(last, a):
		a.Generation = last.Generation
	case same:
		a.Generation = last.Generation + 1
	default:
		a.Generation = 1
	}
	if r.Epoch == a.Epoch && (r.Generation > a.Generation || !same) { // it holds more than this process remembers
		a.Generation = r.Generation + 1
	}
	if no := s.Refusal; no != nil && no.Epoch == a.Epoch && no.Generation >= a.Generation && no.Reason == worker.RefusedOlder {
		a.Generation = no.Generation + 1
	}
	s.memory.Assigned = a
	sent := d.seen.Sent[s.Name]
	reported := r.Epoch == a.Epoch && r.Generation == a.Generation
	underWay := sent.Instance == a.Instance && sent.Epoch == a.Epoch && sent.Generation == a.Generation
	if !reported && !underWay {
		d.plan.Assignments[s.Name] = a
	}
}

func sameContent(a, b worker.Assignment) bool {
	return a.Drain == b.Drain && slices.EqualFunc(a.Homes, b.Homes, sameHome)
}

func sameHome(a, b worker.Home) bool {
	return a.Model == b.Model && a.Revision == b.Revision && slices.Equal(a.ServedNames, b.ServedNames) && a.Source == b.Source && a.Format == b.Format &&
		a.Context == b.Context && slices.Equal(a.Devices, b.Devices) && a.Resident == b.Resident && a.EvictionOrder == b.EvictionOrder &&
		a.NeverEvict == b.NeverEvict && a.IdleSeconds == b.IdleSeconds && a.Draining == b.Draining
}

// wire is the home as the worker is told. A new revision is told only when it
// is known to fit where the old one is.
func (d *decision) wire(h *home) worker.Home {
	m := h.model
	if h.braked && h.told.Source.URI != "" {
		return *h.told
	}
	if h.told != nil && h.told.Revision != m.revision && h.told.Source.URI != "" && !d.renew(h) {
		old := *h.told
		old.Resident, old.ServedNames, old.Draining = h.awake, m.names, h.draining
		return old
	}
	w := worker.Home{
		Model: m.key, Revision: m.revision, ServedNames: m.names,
		Source: modelSource(m.Model), Format: string(m.Spec.Precision.Format), Context: modelContext(m.Model),
		Devices: h.devices, Resident: h.awake, Draining: h.draining,
		EvictionOrder: m.rank(h.station.pool), NeverEvict: m.Spec.Eviction == v1alpha1.EvictNever,
	}
	if !h.awake {
		w.IdleSeconds = m.idleAfter().Seconds()
	}
	return w
}

// renew reports whether the new revision of h's model may take the place of the
// old one: its need is known, and no larger than every device. Otherwise the
// old one is left to serve.
func (d *decision) renew(h *home) bool {
	p := h.station.pool
	need, known := h.model.need.of(p.key)
	return known && (p.device == 0 || need.Total() <= p.device)
}

// label has the UIDs of the Models that each pod should be labelled with, and what its
// annotations should say of disruption, where they differ.
func (d *decision) label() {
	for _, s := range d.stations {
		if s.Failed || !s.Deleting.IsZero() || s.Report == nil {
			continue
		}
		wanted := s.uids()
		have := slices.Sorted(slices.Values(s.Models))
		if !slices.Equal(wanted, have) {
			if d.plan.Labels == nil {
				d.plan.Labels = map[string][]uid{}
			}
			d.plan.Labels[s.Name] = wanted
		}
		if say := s.disruption(); say != s.Disruption {
			if d.plan.Disruption == nil {
				d.plan.Disruption = map[string]Disruption{}
			}
			d.plan.Disruption[s.Name] = say
		}
	}
}

func (s *station) uids() []uid {
	var ids []uid
	for _, h := range s.homes {
		if h.model != nil && h.model.UID != "" {
			ids = append(ids, h.model.UID)
		}
	}
	slices.Sort(ids)
	return ids
}

func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
