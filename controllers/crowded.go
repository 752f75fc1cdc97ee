package controllers

import (
	"fmt"
	"slices"
	"time"

	"github.com/estiba/estiba/api/worker"
	"github.com/estiba/estiba/internal/policy/packing"
)

// Homes that sleep share a device, so that at times more of them are asked for
// than it holds. The worker lets those that nobody asks for go; where all that is
// left is in use, it refuses. Then the home moves to where the model fits beside
// what is in use now, whatever the budget of moves, or its pool grows.

const (
	// A home is crowded when it has been kept off its device for so long, and a pool grows for it after more.
	crowdedAfter      = 3 * time.Second
	crowdedGrowsAfter = 10 * time.Second
)

// rehouse gives each home of which nothing is loaded, and never will be beside what stays on its device,
// another one where it fits: other processes have taken memory there. There is nothing to move.
func (d *decision) rehouse() {
	for _, m := range d.models {
		if m.move != nil || m.trial != nil || m.off() != "" {
			continue
		}
		for _, h := range slices.Clone(m.homes) {
			if !d.shut(h) {
				continue
			}
			d.fleet.Undo(h.taken[0])
			at, reason, _ := d.find(m)
			if at.Worker == "" || at.Worker == h.station.Name && slices.Equal(at.Devices, h.devices) {
				d.fleet.Undo(at)
				d.fleet.Take(h.taken[0])
				continue
			}
			d.drop(h)
			d.add(m, at, reason).taken = []packing.Home{at}
		}
	}
}

// shut: h has nothing on its device, which is too small for it beside what stays there.
func (d *decision) shut(h *home) bool {
	s := h.station
	if h.state == nil || h.told == nil || len(h.taken) == 0 || len(h.devices) != 1 || !s.usable || s.silent || h.leaving() || h.extra || h.draining || h.old() {
		return false
	}
	if h.onDevice() || h.state.Phase != worker.PhaseRefused && (h.state.Phase != worker.PhaseIdle || h.told.Resident) {
		return false
	}
	at := s.device(h.devices[0])
	if at == nil || outside(at) <= 0 {
		return false
	}
	room := at.CapacityBytes
	for _, o := range s.homes {
		if o != h && o.model != nil && o.onDevice() && !o.extra && !o.draining && len(o.taken) > 0 && !o.taken[0].Sleeps && slices.Equal(o.devices, h.devices) {
			room -= o.taken[0].Bytes
		}
	}
	return room < h.taken[0].Bytes
}

// relieveCrowded finds another home for each that neighbours keep off its device.
func (d *decision) relieveCrowded() {
	for _, m := range d.models {
		if m.move != nil || m.trial != nil || m.off() != "" || m.missing > 0 {
			continue
		}
		if !slices.ContainsFunc(m.homes, (*home).refused) {
			continue
		}
		for _, h := range slices.Clone(m.homes) {
			if !h.refused() {
				continue
			}
			key := m.key + " " + h.station.Name
			since, known := d.seen.Memory.Short[key]
			if !known {
				since = d.seen.Now
			}
			d.plan.Memory.Short[key] = since
			if wait := since.Add(crowdedAfter); d.seen.Now.Before(wait) {
				d.soon(wait)
				continue
			}
			if again := d.moved[m.key].At.Add(pause); d.seen.Now.Before(again) {
				d.soon(again)
				continue
			}
			if d.relocate(m, h) {
				break
			}
			m.crowded = d.seen.Now.Sub(since) >= crowdedGrowsAfter
			d.soon(d.seen.Now.Add(crowdedAfter))
		}
	}
}

// refused: the home is wanted on its device now, and what is awake there keeps it off.
func (h *home) refused() bool {
	if h.state == nil || h.told == nil || h.leaving() || h.station.silent || h.extra || h.draining {
		return false
	}
	m := h.model
	for _, o := range m.homes {
		if o != h && !h.told.Resident && o.onDevice() {
			return false // that one answers
		}
	}
	asked := h.told.Resident || m.load.Waiting+m.load.Held > 0
	return h.state.Phase == worker.PhaseRefused && h.state.Reason == worker.ReasonDoesNotFit && asked ||
		h.state.Phase == worker.PhaseIdle && h.state.Waiting > 0
}

// relocate moves a crowded home to where it fits beside what is in use now: by
// the rule of packing or, where no pool can grow, at the expense of those that
// sleep there. Whoever is asked for comes before whoever is not.
func (d *decision) relocate(m *model, h *home) bool {
	if len(h.taken) == 0 || d.touched[h.station.Name] >= movesAtOnce {
		return false
	}
	want := d.want(m, nil)
	want.Busy = want.Sleeps
	at, reason, _ := d.fleet.Place(want, d.seen.Score)
	if at.Worker == "" && !d.grows(m) {
		want.Not = map[string]bool{}
		for _, o := range m.homes {
			want.Not[o.station.Name] = true
		}
		if at, reason, _ = d.awakeOnly().Place(want, d.seen.Score); at.Worker != "" {
			d.fleet.Take(at)
		}
	}
	if at.Worker == "" {
		return false
	}
	d.fleet.Undo(at) // start takes it, and more
	if !d.may([]packing.Move{{Home: h.taken[0], To: at}}, MoveRelieves) {
		return false
	}
	why := fmt.Sprintf("requests wait, and models in use keep it off its device on worker %s", h.station.Name)
	return d.start(d.asMove(m, h.taken[0], at, MoveRelieves, "", why), reason)
}

// awakeOnly is the fleet without what sleeps now.
func (d *decision) awakeOnly() *packing.Fleet {
	if d.wakes == nil {
		d.wakes = d.fleet.Clone()
		for _, m := range d.models {
			for _, h := range m.homes {
				for _, at := range h.taken {
					if at.Sleeps && !at.Busy {
						d.wakes.Undo(at)
					}
				}
			}
		}
	}
	return d.wakes
}
