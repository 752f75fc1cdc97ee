package controllers

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/estiba/estiba/api/v1alpha1"
	"github.com/estiba/estiba/api/worker"
	"github.com/estiba/estiba/internal/status"
)

// The brake: a plan that takes away much of what is resident, which no person
// asked for, waits for one. A label that was changed by mistake, a cache that
// lacks objects, or a policy gone wrong then costs a look, and no outage.
//
// What counts is a home that a worker reports as Resident, that it would be told
// to let go, and whose Model would be left with fewer ready homes than it wants
// (one at least). So these never count: what is replaced before it goes (moves,
// updates, drains of nodes), fewer replicas for less load, and what is lost with
// its worker or its device, which no plan took away. Nor does what a person asked for: a Model
// that is deleted, suspended, scaled to zero or of another spec than its home; a
// pool that is deleted or has changed; homes that give way to a Model that has
// just been created or changed. Taking a worker out of use is such a request
// too: of the admin who cordons a node or lowers spec.workers, or of an update.
// A quarantine protects others and waits for nobody.
//
// A pool is braked if more than a fifth of its resident homes would go, and at
// least three over all pools. Models that were let go within the last hour and
// have not come back count as if they were still there and went now: a policy
// that takes one at a time is caught as well.
const (
	brakeShare  = 5
	brakeFloor  = 3
	brakeWindow = time.Hour
	// brakeLasts is how long a plan that makes room goes on waiting when it is not made any more: room is
	// looked for every few seconds only.
	brakeLasts = 3 * retried
)

// Brake is what is remembered of a pool.
type Brake struct {
	// Waits is a plan that waits for confirmation.
	Waits *Unconfirmed `json:"waits,omitzero"`
	// Lost are Models that were let go unasked, and have not come back.
	Lost map[string]time.Time `json:"lost,omitzero"` // "namespace/name" -> when
}

// Unconfirmed is what a pool's plan would take away.
type Unconfirmed struct {
	Since    time.Time `json:"since"`
	At       time.Time `json:"at"`              // when it was made last
	Models   []string  `json:"models"`          // that would go, "namespace/name"
	For      []string  `json:"for,omitzero"`    // Models that would get their room
	Homes    int       `json:"homes"`           // that would go
	Before   int       `json:"before,omitzero"` // went already, and have not come back
	Resident int       `json:"resident"`        // homes of the pool, and those before
}

// hash with which it is confirmed: another one for other Models, and at another time.
func (u *Unconfirmed) hash(p *pool) string { return hash([]any{u.Since.Unix(), p.key, u.Models})[:8] }

// loss is a home that would go although nobody asked for it.
type loss struct {
	station *station
	told    *worker.Home
	model   *model // nil: no such Model any more
}

// brake keeps the homes of pools whose plan takes too much away.
func (d *decision) brake() {
	d.recall()
	losses := map[*pool][]loss{}
	total := 0
	for _, l := range d.losses(isResident, (*home).answers) {
		losses[l.station.pool] = append(losses[l.station.pool], l)
		total++
	}
	for _, key := range sortedKeys(d.pools) {
		total += len(d.plan.Memory.Brakes[key].Lost)
	}
	for _, key := range sortedKeys(d.pools) {
		p := d.pools[key]
		before := len(d.plan.Memory.Brakes[key].Lost)
		switch n := len(losses[p]); {
		case n > 0 && total >= brakeFloor && brakeShare*(n+before) > p.resident()+before:
			d.stop(p, before, losses[p])
		case n > 0:
			d.lose(p, losses[p])
		}
		d.await(p)
	}
	d.holdBack()
}

// await goes on with a plan that waits: one that makes room a while longer than it is made.
func (d *decision) await(p *pool) {
	b := d.plan.Memory.Brakes[p.key]
	switch u := b.Waits; {
	case u == nil:
		return
	case !p.braked && (len(u.For) == 0 || d.seen.Now.Sub(u.At) >= brakeLasts):
		b.Waits = nil
	default:
		d.soon(u.At.Add(brakeLasts))
	}
	p.unconfirmed = b.Waits
	d.plan.Memory.Brakes[p.key] = b
	if b.Waits == nil && len(b.Lost) == 0 {
		delete(d.plan.Memory.Brakes, p.key)
	}
}

// resident is how many homes of p hold their model on a device, and have been told to.
func (p *pool) resident() (n int) {
	for _, s := range p.stations {
		for i := range s.base {
			if s.abides() && !s.losing(s.base[i].Devices) && isResident(s.reports(s.base[i].Model)) {
				n++
			}
		}
	}
	return n
}

// recall carries over which Models were let go and are not back, and which
// have been asked for and are not there yet.
func (d *decision) recall() {
	d.plan.Memory.Brakes, d.plan.Memory.Asked = map[string]Brake{}, map[string]int64{}
	for _, m := range d.models {
		asked := m.Generation != m.Status.ObservedGeneration || d.seen.Memory.Asked[m.key] == m.Generation
		if asked && m.Generation > 0 && m.off() == "" && m.answering() < m.wanted {
			d.plan.Memory.Asked[m.key] = m.Generation
		}
	}
	for key, b := range d.seen.Memory.Brakes {
		if d.pools[key] == nil {
			continue
		}
		b.Lost = maps.Clone(b.Lost)
		maps.DeleteFunc(b.Lost, func(model string, at time.Time) bool {
			m := d.byKey[model]
			return d.seen.Now.Sub(at) > brakeWindow || m == nil && !d.seen.Missing[model] || m != nil && (m.dismissed() || m.answering() > 0)
		})
		if len(b.Lost) > 0 || b.Waits != nil {
			d.plan.Memory.Brakes[key] = b
		}
	}
}

// abides: the worker is told what to hold, and stays.
func (s *station) abides() bool {
	return s.Report != nil && !s.Failed && s.Deleting.IsZero() && s.memory.Going == "" && !s.Report.Draining
}

func (s *station) reports(model string) *worker.HomeState {
	for i := range s.Report.Homes {
		if s.Report.Homes[i].Model == model {
			return &s.Report.Homes[i]
		}
	}
	return nil
}

func isResident(state *worker.HomeState) bool {
	return state != nil && state.Phase == worker.PhaseResident
}

// answers: a request that comes to h is answered, and it stays.
func (h *home) answers() bool { return !h.leaving() && !h.draining && (h.ready() || h.resident()) }

func (m *model) answering() (n int) {
	for _, h := range m.homes {
		if h.answers() {
			n++
		}
	}
	return n
}

// dismissed: a person has asked for m to have no home, or it is dangerous.
func (m *model) dismissed() bool {
	return !m.DeletionTimestamp.IsZero() || m.Spec.Suspend || m.Spec.Replicas != nil && *m.Spec.Replicas == 0 || m.quarantined()
}

// losses are the homes that workers were told of, that count, that would go, and whose Models would be
// left with fewer homes that do than they want. They are in the order of workers and Models.
func (d *decision) losses(counts func(*worker.HomeState) bool, does func(*home) bool) (all []loss) {
	gone := map[string][]loss{} // model -> ...
	told := func(each func(*station, *worker.Home)) {
		for _, s := range d.stations {
			for i := range s.base {
				if t := &s.base[i]; s.abides() && !t.Draining && !s.losing(t.Devices) {
					each(s, t)
				}
			}
		}
	}
	told(func(s *station, t *worker.Home) {
		if h := s.homes[t.Model]; (h == nil || h.model == nil || h.draining) && counts(s.reports(t.Model)) {
			gone[t.Model] = append(gone[t.Model], loss{s, t, d.byKey[t.Model]})
		}
	})
	if len(gone) == 0 {
		return nil
	}
	had := map[string]int{}
	told(func(s *station, t *worker.Home) {
		if gone[t.Model] != nil && counts(s.reports(t.Model)) {
			had[t.Model]++
		}
	})
	for key, losses := range gone {
		left, wanted := 0, had[key]
		if m := d.byKey[key]; m != nil {
			wanted = max(1, d.plan.Memory.Models[key].Wanted)
			for _, h := range m.homes {
				if does(h) {
					left++
				}
			}
		}
		slices.SortStableFunc(losses, func(a, b loss) int {
			return -compareBool(isResident(a.station.reports(key)), isResident(b.station.reports(key)))
		})
		for _, l := range losses[:min(len(losses), max(0, min(had[key], wanted)-left))] {
			if !d.asked(l) {
				all = append(all, l)
			}
		}
	}
	slices.SortFunc(all, func(a, b loss) int {
		return cmp.Or(cmp.Compare(a.station.Name, b.station.Name), cmp.Compare(a.told.Model, b.told.Model))
	})
	return all
}

// asked: a person asked for it.
func (d *decision) asked(l loss) bool {
	p, m := l.station.pool, l.model
	switch {
	case !p.DeletionTimestamp.IsZero() || p.Generation != p.Status.ObservedGeneration:
		return true
	case m == nil:
		return !d.seen.Missing[l.told.Model]
	case m.dismissed() || m.Generation != m.Status.ObservedGeneration || l.told.Revision != m.revision:
		return true
	}
	gave, ok := d.plan.Memory.Gave[m.key]
	return ok && d.plan.Memory.Asked[gave.To] != 0
}

// stop holds a pool's losses back until they are confirmed.
func (d *decision) stop(p *pool, before int, losses []loss) {
	u := Unconfirmed{At: d.seen.Now, Homes: len(losses), Before: before, Resident: p.resident() + before}
	for _, l := range losses {
		u.Models = append(u.Models, l.told.Model)
		if gave, ok := d.plan.Memory.Gave[l.told.Model]; ok {
			u.For = append(u.For, gave.To)
		}
	}
	u.Models, u.For = unique(u.Models), unique(u.For)
	b := d.plan.Memory.Brakes[p.key]
	c := status.Find(p.Status.Conditions, v1alpha1.ConditionStalled)
	switch {
	case b.Waits != nil:
		u.Since = b.Waits.Since
	case c != nil && c.Status == metav1.ConditionTrue && c.Reason == v1alpha1.ReasonWaitingForConfirmation:
		u.Since = c.LastTransitionTime.Time // of a leader before this one
	default:
		u.Since = d.seen.Now.Truncate(time.Second)
	}
	if p.Annotations[v1alpha1.AnnotationConfirm] == u.hash(p) {
		delete(d.plan.Memory.Brakes, p.key) // whoever confirms it accepts what went before as well
		return
	}
	b.Waits = &u
	d.plan.Memory.Brakes[p.key] = b
	p.braked = true
}

// lose notes what goes.
func (d *decision) lose(p *pool, losses []loss) {
	for _, l := range losses {
		b := d.plan.Memory.Brakes[p.key]
		if b.Lost == nil {
			b.Lost = map[string]time.Time{}
		}
		b.Lost[l.told.Model] = d.seen.Now
		d.plan.Memory.Brakes[p.key] = b
	}
}

// holdBack gives the homes of braked pools back that would go unasked, those that sleep included.
func (d *decision) holdBack() {
	any := func(*worker.HomeState) bool { return true }
	stays := func(h *home) bool { return !h.leaving() && !h.draining }
	for _, l := range d.losses(any, stays) {
		if !l.station.pool.braked {
			continue
		}
		s := l.station
		h := s.homes[l.told.Model]
		if h == nil {
			h = &home{model: l.model, station: s, devices: l.told.Devices, told: l.told, state: s.reports(l.told.Model)}
			s.homes[l.told.Model] = h
		}
		if l.model != nil {
			h.reason = formerReason(l.model.Model, s.Name)
			if !slices.Contains(l.model.homes, h) {
				l.model.homes = append(l.model.homes, h)
			}
		}
		h.draining, h.awake, h.braked = false, l.told.Resident, true
		if gave, ok := d.plan.Memory.Gave[l.told.Model]; ok {
			d.cancel(gave.To)
			delete(d.plan.Memory.Gave, l.told.Model)
			l.model.gave = nil
		}
		// What an earlier leader told is known in part: then nothing else is told either.
		s.frozen = s.frozen || l.model == nil && l.told.Source.URI == ""
	}
}

// cancel lets a model look for room again, somewhat later.
func (d *decision) cancel(model string) {
	m := d.byKey[model]
	if m == nil || m.room == nil {
		return
	}
	m.room = nil
	delete(d.plan.Memory.Rooms, model)
	d.plan.Memory.Tried[model] = d.seen.Now
	d.soon(d.seen.Now.Add(retried))
}

// confirmation says what a pool's plan waits for, and how it is confirmed.
func (p *pool) confirmation() string {
	u := p.unconfirmed
	names := strings.Join(u.Models[:min(len(u.Models), 5)], ", ")
	if more := len(u.Models) - 5; more > 0 {
		names += fmt.Sprintf(" and %d more", more)
	}
	went, room := "", ""
	if u.Before > 0 {
		went = fmt.Sprintf(" (%d more went within the last hour and have not come back)", u.Before)
	}
	if len(u.For) > 0 {
		room = ", to make room for " + strings.Join(u.For[:min(len(u.For), 5)], ", ")
	}
	return fmt.Sprintf("%d of %s would go although no spec was changed: %s%s%s. They stay until somebody confirms it: kubectl annotate ipool %s --namespace %s --overwrite %s=%s",
		u.Homes, count(u.Resident, "resident home"), names, went, room, p.Name, p.Namespace, v1alpha1.AnnotationConfirm, u.hash(p))
}

// withBrake adds to the verdict on p that its plan waits.
func (p *pool) withBrake(v status.Verdict) status.Verdict {
	if p.unconfirmed != nil && v.StalledBy == nil && !v.Stalled {
		v.StalledBy = &status.Part{True: true, Reason: v1alpha1.ReasonWaitingForConfirmation, Message: p.confirmation()}
		v.Stalled, v.Progressing = true, false
	}
	return v
}

// heldBack is a home of m that would have gone, or would go as soon as the plan is made again.
func (m *model) heldBack() *home {
	for _, h := range m.homes {
		if u := h.station.pool.unconfirmed; h.braked || u != nil && slices.Contains(u.Models, m.key) {
			return h
		}
	}
	return nil
}

// withBrake is the verdict on m while a plan waits that would take its home away, which goes on answering, or
// give it the room of others.
func (d *decision) withBrake(m *model, v status.Verdict) status.Verdict {
	if h := m.heldBack(); h != nil {
		return d.remains(m, h, v)
	}
	for _, p := range m.pools {
		if u := p.unconfirmed; u != nil && slices.Contains(u.For, m.key) && !v.Ready {
			v.Reason, v.Progressing, v.Stalled = v1alpha1.ReasonWaitingForConfirmation, false, true
			v.Message = fmt.Sprintf("%s would go to make room for it; that waits until pool %s is confirmed, as the pool's condition Stalled says.", count(u.Homes, "home"), short(p.key))
		}
	}
	return v
}

func (d *decision) remains(m *model, h *home, v status.Verdict) status.Verdict {
	why := ""
	if m.off() != "" {
		why = " " + v.Message
	}
	if serves, ok := d.serving(m); ok {
		v = serves
	} else if sleeps, ok := d.asleep(m); ok {
		v = sleeps
	}
	p := h.station.pool
	if room := p.unconfirmed.For; why == "" && len(room) > 0 {
		why = " It would make room for " + strings.Join(room[:min(len(room), 5)], ", ") + "."
	}
	v.StalledBy = &status.Part{True: true, Reason: v1alpha1.ReasonWaitingForConfirmation,
		Message: fmt.Sprintf("The home on worker %s would go.%s It stays until pool %s is confirmed, as the pool's condition Stalled says, or nothing asks for it any more.", h.station.Name, why, short(p.key))}
	v.Stalled, v.Progressing = true, false
	return v
}
