package packing

import "slices"

// Sight is a device as a Want finds it.
type Sight struct {
	Pool, Worker, Device string
	Free, Capacity       int64 // bytes; Free by the overcommit rule, not below 0
	// Refused says why it cannot be the home; empty: it could be.
	Refused string
	// Degraded says what is the matter with it; empty: it is in order.
	Degraded string
	Homes    []Home // what is there, by model
}

// Why a device is refused, as Look says it.
const (
	Unsuited = "of another kind"
	TooSmall = "too small even when empty"
	Holds    = "on workers that hold a replica already"
	Excluded = "on workers that are not to be used"
	Reserved = "kept for a model that is tried alone"
	NotEmpty = "not empty, and it is to be tried alone"
	NoHost   = "on workers with too little CPU or memory left"
	Full     = "full now"
	Pinned   = "full of what may not leave"
)

// Look shows every device that w may ask for: pools by name, and workers and
// devices in the order that decides among equals. It is for people, and slower than Place.
func (f *Fleet) Look(w Want) []Sight {
	var all []Sight
	f.exclude(&w)
	for _, pool := range sortedKeys(w.Need) {
		need := w.need(pool)
		for _, at := range f.workersOf(pool) {
			refused := f.refuses(at, &w)
			for _, d := range at.devices {
				s := Sight{Pool: pool, Worker: at.Name, Device: d.Name, Free: max(0, d.room()), Capacity: d.Capacity, Refused: f.refusal(d, &w, need, refused), Degraded: d.Degraded}
				for _, e := range d.held {
					s.Homes = append(s.Homes, e.Home)
				}
				all = append(all, s)
			}
		}
	}
	return all
}

func (f *Fleet) refusal(d *device, w *Want, need int64, refused class) string {
	switch c := d.class(w, need, refused); c {
	case unsuited:
		return Unsuited
	case tooSmall:
		return TooSmall
	case excluded:
		if slices.ContainsFunc(f.models[w.Model], func(e *held) bool { return e.worker == d.at }) {
			return Holds
		}
		return Excluded
	case noHost:
		return NoHost
	case reserved:
		if w.Alone {
			return NotEmpty
		}
		return Reserved
	}
	n := d.fit(need)
	if w.Devices == 0 && d.left(w, n) >= 0 || w.Devices > 0 && d.empty() {
		return ""
	}
	if _, ok := d.leavers(w, need); !ok {
		return Pinned
	}
	return Full
}
