package controllers

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/estiba/estiba/internal/policy/packing"
)

// What serves is packed better when nothing else is going on, within the budget of
// moves: for time, then for workers to give back, then for memory that can be used.

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

// spread moves one model of a hot device of p to where there is time for it. What has
// been there for less than the time constant of loads may be at work for a moment only.
func (d *decision) spread(p *pool) bool {
	for _, s := range p.stations {
		if !s.usable || !s.current() || s.Report == nil {
			continue
		}
		for _, key := range sortedKeys(s.homes) {
			h := s.homes[key]
			if h.model == nil || !h.resident() || len(h.taken) != 1 || len(h.devices) != 1 || h.taken[0].Pinned || h.taken[0].Young ||
				seconds(h.state.ResidentSeconds) < averaged {
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
	low, _ := p.between()
	return low
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
