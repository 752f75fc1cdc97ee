package packing

import (
	"cmp"
	"slices"
)

// Move is a home that goes elsewhere: first it is loaded at To, then it leaves Home.
type Move struct {
	Home   Home
	To     Home
	Reason string
	Gain   float64 // how much less is free that the mix cannot use, in expected bytes
}

// again is the Want of a home that is to be placed once more, in its own pool.
func (e *held) again() Want {
	w := Want{
		Model: e.Model, Need: map[string]int64{e.worker.Pool: e.Bytes}, Host: e.Host, Kinds: e.Kinds, Capability: e.Capability,
		Load: e.Load, Sleeps: e.Sleeps, Busy: e.Busy, Awake: e.Awake, Alone: e.Alone, Priority: e.Priority,
	}
	if len(e.devices) > 1 {
		w.Devices = len(e.devices)
	}
	return w
}

func (e *held) movable() bool { return !e.Pinned && !e.Young && !e.Alone }

// find is where a home of this kind is.
func (f *Fleet) find(h Home) *held {
	for _, e := range f.models[h.Model] {
		if e.same(h) {
			return e
		}
	}
	return nil
}

// MakeRoom finds the fewest moves, at most k, then the fewest bytes, after which w fits; applies them and the
// placement, and says so. Where nothing helps, the fleet is as it was. Pinned and young homes
// do not move, and no model moves twice.
func (f *Fleet) MakeRoom(w Want, k int) (moves []Move, h Home, reason string, ok bool) {
	if h, reason, _ = f.Place(w, nil); h.Worker != "" {
		return nil, h, reason, true
	}
	for n := 1; n <= k; n++ {
		if moves = f.clear(&w, n); moves != nil {
			h, reason, _ = f.Place(w, nil)
			return moves, h, reason, true
		}
	}
	return nil, Home{}, "", false
}

func (f *Fleet) clear(w *Want, k int) []Move {
	return nil
}

// Displace finds homes of a lower priority whose going makes room for w: of the lowest priorities, then the fewest,
// then the smallest. Applied to the fleet.
func (f *Fleet) Displace(w Want) (gone []Home, h Home, reason string, ok bool) {
	return nil, Home{}, "", false
}

// Empty finds at most k moves after which the worker holds nothing that is awake. Applied to the fleet.
func (f *Fleet) Empty(name string, k int) (moves []Move, ok bool) {
	at := f.workers[name]
	if at == nil {
		return nil, false
	}
	var awake []*held
	for _, e := range at.held {
		if !e.Sleeps || e.Busy {
			awake = append(awake, e)
		}
	}
	if len(awake) > k || slices.ContainsFunc(awake, func(e *held) bool { return !e.movable() }) {
		return nil, false
	}
	slices.SortStableFunc(awake, func(a, b *held) int { return cmp.Compare(b.Bytes, a.Bytes) })
	for _, e := range awake {
		m, ok := f.relocate(e, func(at *worker) bool { return at.homes > 0 })
		if !ok {
			f.revert(moves)
			return nil, false
		}
		moves = append(moves, m)
	}
	return moves, true
}

// relocate moves one home to its best place among the workers that will do.
func (f *Fleet) relocate(e *held, will func(*worker) bool) (Move, bool) {
	w := e.again()
	w.Not = map[string]bool{}
	for _, at := range f.workersOf(e.worker.Pool) {
		if at.Avoid || !will(at) {
			w.Not[at.Name] = true
		}
	}
	before := f.Fragmentation()
	best, room := f.choose(&w, nil)
	if best.worker == nil {
		return Move{}, false
	}
	from := e.Home
	to := f.settle(&w, &best)
	reason := f.reason(&w, &best, room, nil)
	f.leave(e)
	return Move{from, to, reason, before - f.Fragmentation()}, true
}

// revert takes moves back, the last first.
func (f *Fleet) revert(moves []Move) {
	for _, m := range slices.Backward(moves) {
		f.Undo(m.To)
		f.Take(m.Home)
	}
}

// Defragment finds at most n moves that lower the fragmentation by at least minGain each. Applied to the fleet.
func (f *Fleet) Defragment(n int, minGain float64) []Move {
	return nil
}
