package controllers

import (
	"cmp"
	"math"
	"math/bits"
	"slices"
	"time"

	"github.com/estiba/estiba/api/v1alpha1"
	"github.com/estiba/estiba/api/worker"
	"github.com/estiba/estiba/internal/policy/packing"
)

// What a worker holds is the union of what it reports and what it was told and
// has not reported yet: a report that was under way when an assignment was sent
// must not give the same bytes away a second time.

// load joins every worker to its homes and fills the fleet with what they take.
func (d *decision) load() {
	for _, s := range d.stations {
		s.usable = s.stays() && s.Connected
		s.base = d.told(s)
		d.settle(s)
	}
	for _, m := range d.models {
		slices.SortFunc(m.homes, func(a, b *home) int { return cmp.Compare(a.station.Name, b.station.Name) })
	}
	d.doze()
	var workers []packing.Worker
	var devices []packing.Device
	for _, s := range d.stations {
		if !s.usable {
			continue
		}
		workers = append(workers, packing.Worker{Name: s.Name, Pool: s.pool.key, Avoid: !s.current() || d.emptying[s.Name]})
		for i := range s.Report.Devices {
			if device := &s.Report.Devices[i]; !device.Lost() {
				devices = append(devices, packing.Device{Pool: s.pool.key, Worker: s.Name, Name: device.Name, Kind: device.Kind, Capacity: device.CapacityBytes, Extent: device.ExtentBytes, Degraded: ailing(device)})
			}
		}
	}
	d.fleet = packing.New(workers, devices, d.mix())
	for _, s := range d.stations {
		if s.usable {
			d.take(s)
		}
	}
}

// mix is the workload's own mix of shapes, by which packing knows what room is
// good for: every model by its need, weighted with its replicas. Needs within an
// eighth of a power of two are one shape, as large as the largest of them, and
// only the most frequent shapes count: more would cost time and change nothing.
func (d *decision) mix() []packing.Shape {
	const shown = 48
	type key struct {
		pools string
		step  int
	}
	shapes := map[key]*packing.Shape{}
	var all []*packing.Shape
	for _, m := range d.models {
		if len(m.need) == 0 || m.off() != "" {
			continue
		}
		k, most := key{}, int64(0)
		for _, p := range m.pools {
			if f, ok := m.need.of(p.key); ok {
				most = max(most, f.Total())
				if k.pools == "" {
					k.pools = p.key // without a copy, where it is the only one
				} else {
					k.pools += " " + p.key
				}
			}
		}
		k.step = eighth(most)
		s := shapes[k]
		if s == nil {
			s = &packing.Shape{Need: map[string]int64{}}
			shapes[k] = s
			all = append(all, s)
		}
		s.Weight += float64(m.replicas())
		for _, n := range m.need {
			pool, f := n.pool, n.Footprint
			s.Need[pool] = max(s.Need[pool], f.Total())
		}
	}
	size := func(s *packing.Shape) int64 { return likely(s.Need, "") }
	pools := func(s *packing.Shape) []string { return sortedKeys(s.Need) }
	slices.SortFunc(all, func(a, b *packing.Shape) int {
		return cmp.Or(-cmp.Compare(a.Weight, b.Weight), cmp.Compare(size(a), size(b)), slices.Compare(pools(a), pools(b)))
	})
	var mix []packing.Shape
	for _, s := range all[:min(len(all), shown)] {
		mix = append(mix, *s)
	}
	return mix
}

// eighth numbers the steps of an eighth of a power of two: 8 GiB and 8.9 GiB are in one.
func eighth(n int64) int {
	if n < 8 {
		return int(n)
	}
	power := bits.Len64(uint64(n))
	return power*8 + int(n>>(power-4)&7)
}

// replicas are the least that the spec asks for, and one of a model that sleeps.
func (m *model) replicas() int {
	switch s := m.Spec; {
	case s.Replicas != nil:
		return int(*s.Replicas)
	case s.Autoscaling != nil:
		return max(1, int(s.Autoscaling.Min))
	}
	return 1
}

// stays: the worker has reported that it takes assignments, and nobody wants it to go.
func (s *station) stays() bool {
	return s.Report != nil && !s.Failed && s.Deleting.IsZero() && s.memory.Going == "" && !s.Report.Draining && s.Report.Pool == s.Worker.Pool
}

// told is the worker's last assignment: what this operator sent, or what the
// worker reports of an earlier leader. Another process was told nothing.
func (d *decision) told(s *station) []worker.Home {
	r := s.Report
	if r == nil || s.Failed {
		return nil
	}
	best := worker.Assignment{Epoch: r.Epoch, Generation: r.Generation, Instance: r.Instance}
	known := false
	for _, a := range []worker.Assignment{s.memory.Assigned, d.seen.Sent[s.Name]} {
		if a.Instance == r.Instance && cmp.Or(cmp.Compare(a.Epoch, best.Epoch), cmp.Compare(a.Generation, best.Generation)) >= 0 {
			best, known = a, true
		}
	}
	if known {
		return best.Homes
	}
	for _, h := range r.Homes {
		if !h.Leaving {
			best.Homes = append(best.Homes, worker.Home{Model: h.Model, Revision: h.Revision, Devices: h.Devices, Resident: h.WantResident})
		}
	}
	return best.Homes
}

// settle makes the homes of a worker from what it was told.
func (d *decision) settle(s *station) {
	reported := map[string]*worker.HomeState{}
	if s.Report != nil {
		for i := range s.Report.Homes {
			reported[s.Report.Homes[i].Model] = &s.Report.Homes[i]
		}
	}
	for i := range s.base {
		told := &s.base[i]
		h := &home{model: d.byKey[told.Model], station: s, devices: told.Devices, told: told, state: reported[told.Model]}
		s.homes[told.Model] = h
		if h.model == nil {
			continue
		}
		h.reason = formerReason(h.model.Model, s.Name)
		h.model.homes = append(h.model.homes, h)
	}
	if s.Report != nil || s.Failed || !s.Running {
		return
	}
	// A worker that this leader has not heard keeps what the last one noted.
	for _, n := range d.notes()[s.Name] {
		if n.State != v1alpha1.PlacementFailed && s.homes[n.model.key] == nil {
			h := &home{model: n.model, station: s, devices: n.Devices, reason: n.Reason}
			s.homes[n.model.key] = h
			n.model.homes = append(n.model.homes, h)
		}
	}
}

// note is a placement in a Model's status.
type note struct {
	v1alpha1.Placement
	model *model
}

// notes are the placements of all Models, by worker.
func (d *decision) notes() map[string][]note {
	if d.noted == nil {
		d.noted = map[string][]note{}
		for _, m := range d.models {
			for _, p := range m.Status.Placements {
				d.noted[p.Worker] = append(d.noted[p.Worker], note{p, m})
			}
		}
	}
	return d.noted
}

// formerReason is why a home was chosen, as the status has it.
func formerReason(m *v1alpha1.Model, worker string) string {
	for _, p := range m.Status.Placements {
		if p.Worker == worker && p.State != v1alpha1.PlacementFailed {
			return p.Reason
		}
	}
	return ""
}

// take fills the fleet with what a worker holds. Where the worker's own
// account is larger, that counts.
func (d *decision) take(s *station) {
	onDevice := map[string]int64{} // device -> bytes that are in its account
	count := func(state *worker.HomeState, bytes int64) {
		for _, device := range state.Devices {
			if occupies(state) {
				onDevice[device] += bytes
			}
		}
	}
	for _, key := range sortedKeys(s.homes) {
		h := s.homes[key]
		at := d.asTaken(key, h)
		if h.state != nil {
			count(h.state, at.Bytes)
		}
		if d.fleet.Take(at) {
			h.taken = []packing.Home{at}
		}
	}
	for i := range s.Report.Homes { // what it was told to let go, and has not yet
		state := &s.Report.Homes[i]
		if s.homes[state.Model] != nil {
			continue
		}
		count(state, state.Footprint.Total())
		at := packing.Home{Model: state.Model, Pool: s.pool.key, Worker: s.Name, Devices: state.Devices, Bytes: state.Footprint.Total(), Load: thousandths(state.Load), Pinned: true}
		if m := d.byKey[state.Model]; m != nil && !occupies(state) {
			at.Sleeps, at.Awake = m.sleeps(), m.share
		}
		d.fleet.Take(at)
	}
	for _, device := range s.Report.Devices {
		if more := device.UsedBytes - onDevice[device.Name]; more > 0 {
			d.fleet.Take(packing.Home{Pool: s.pool.key, Worker: s.Name, Devices: []string{device.Name}, Bytes: more})
		}
	}
}

// asTaken is what a home takes of the fleet.
func (d *decision) asTaken(key string, h *home) packing.Home {
	s, m := h.station, h.model
	at := packing.Home{Model: key, Pool: s.pool.key, Worker: s.Name, Devices: h.devices, Pinned: true}
	if h.state != nil {
		at.Bytes, at.Load = h.state.Footprint.Total(), h.load()
	}
	if m == nil {
		return at
	}
	h.alone = h.tried() && len(s.homes) == 1
	at.Bytes, at.Alone, at.Priority = max(at.Bytes, m.need.in(s.pool.key).Total()), h.alone, m.rank(s.pool)
	if m.sleeps() && !(h.told != nil && h.told.Resident) {
		at.Sleeps, at.Busy, at.Awake = true, h.busy(), m.share
	}
	if v := d.moved[key]; v.To == s.Name && d.seen.Now.Sub(v.At) < measured {
		at.Load = max(at.Load, v.Load)
	}
	m.hot = max(m.hot, at.Load)
	at.Pinned, at.Young = d.pinned(h), d.young(h, at.Bytes)
	return at
}

// averaged is the time constant of the loads that workers report: such an average begins with 0.
const averaged = 5 * time.Minute

// load of a home that has been on its device since it came is what its worker's average
// is on the way to: two models that have just come are not taken for idle ones.
func (h *home) load() int {
	since := seconds(h.state.ResidentSeconds)
	if h.model == nil || h.model.sleeps() || since < averaged/10 {
		return thousandths(h.state.Load)
	}
	return thousandths(h.state.Load / (1 - math.Exp(-float64(since)/float64(averaged))))
}

// measured is how long the load of a model that has moved grows until it is what it
// was, also where it sleeps meanwhile.
const measured = 3 * averaged

// thousandths of a share between 0 and 1.
func thousandths(share float64) int { return int(math.Round(min(max(share, 0), 1) * 1000)) }

// known is what m needs on a device of each pool of which that is known, in bytes.
func known(m *model) map[string]int64 {
	if m.needs == nil {
		m.needs = make(map[string]int64, len(m.need))
		for _, n := range m.need {
			pool, f := n.pool, n.Footprint
			m.needs[pool] = f.Total()
		}
	}
	return m.needs
}
