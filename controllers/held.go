package controllers

import (
	"cmp"
	"slices"

	"github.com/estiba/estiba/api/v1alpha1"
	"github.com/estiba/estiba/api/worker"
	"github.com/estiba/estiba/internal/policy/packing"
)

// What a worker holds is the union of what it reports and what it was told and
// has not reported yet: a report that was under way when an assignment was sent
// must not give the same bytes away a second time.

// load joins every worker to its homes and fills the fleet with what they take.
func (d *decision) load() {
	var devices []packing.Device
	for _, s := range d.stations {
		s.usable = s.stays() && s.Connected
		s.base = d.told(s)
		d.settle(s)
		if !s.usable {
			continue
		}
		for _, device := range s.Report.Devices {
			devices = append(devices, packing.Device{Pool: s.pool.key, Worker: s.Name, Name: device.Name, Capacity: device.CapacityBytes, Extent: device.ExtentBytes})
		}
	}
	d.fleet = packing.New(nil, devices, nil)
	for _, s := range d.stations {
		if s.usable {
			d.take(s)
		}
	}
	for _, m := range d.models {
		slices.SortFunc(m.homes, func(a, b *home) int { return cmp.Compare(a.station.Name, b.station.Name) })
	}
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
		if h.Phase != worker.PhaseDraining {
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
	for _, m := range d.models {
		for _, p := range m.Status.Placements {
			if p.Worker == s.Name && p.State != v1alpha1.PlacementFailed && s.homes[m.key] == nil {
				h := &home{model: m, station: s, devices: p.Devices, reason: p.Reason}
				s.homes[m.key] = h
				m.homes = append(m.homes, h)
			}
		}
	}
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
	taken := map[string]int64{} // device -> bytes
	takes := func(h packing.Home) bool {
		known := d.fleet.Take(h)
		if known {
			taken[h.Devices[0]] += h.Bytes
		}
		return known
	}
	for _, key := range sortedKeys(s.homes) {
		h := s.homes[key]
		bytes := int64(0)
		if h.state != nil {
			bytes = h.state.Footprint.Total()
		}
		if h.model != nil {
			bytes = max(bytes, h.model.need[s.pool.key].Total())
			h.alone = h.tried() && len(s.homes) == 1
		}
		for _, device := range h.devices {
			at := packing.Home{Model: key, Pool: s.pool.key, Worker: s.Name, Devices: []string{device}, Bytes: bytes, Alone: h.alone}
			if takes(at) {
				h.taken = append(h.taken, at)
			}
		}
	}
	for _, state := range s.Report.Homes { // what it was told to let go, and has not yet
		if s.homes[state.Model] != nil {
			continue
		}
		for _, device := range state.Devices {
			takes(packing.Home{Model: state.Model, Pool: s.pool.key, Worker: s.Name, Devices: []string{device}, Bytes: state.Footprint.Total()})
		}
	}
	for _, device := range s.Report.Devices {
		if more := device.UsedBytes - taken[device.Name]; more > 0 {
			d.fleet.Take(packing.Home{Pool: s.pool.key, Worker: s.Name, Devices: []string{device.Name}, Bytes: more})
		}
	}
}

// known is what m needs in each pool of which that is known.
func known(m *model) map[string]int64 {
	need := map[string]int64{}
	for _, p := range m.pools {
		if f, ok := m.need[p.key]; ok {
			need[p.key] = f.Total()
		}
	}
	return need
}
