package packing

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// state of a fleet, as text: all that can be told apart.
func dump(f *Fleet) string {
	var b strings.Builder
	for _, w := range f.inOrder() {
		fmt.Fprintln(&b, w.Name, w.free, w.homes, w.alone, w.state.rank, w.state.idle, len(w.state.workers), f.now(w))
		for _, d := range w.devices {
			fmt.Fprintln(&b, " ", d.Name, d.account, d.load, d.step)
		}
		for _, e := range w.held {
			fmt.Fprintf(&b, "  %+v\n", e.Home)
		}
	}
	return b.String()
}

// filled is a random fleet with homes.
func filled(r *rand.Rand, workers int) (*Fleet, *slow) {
	f, _, s := world(r, workers)
	hosts := slices.ContainsFunc(s.workers, func(w Worker) bool { return w.Host != Host{} })
	for range 10 + r.IntN(30) {
		w := randomWant(r, hosts)
		w.Alone, w.Not, w.Capability = false, nil, 0
		if r.IntN(2) == 0 {
			w.Kinds = nil
		}
		h, _, ok := f.Put(w, nil)
		if !ok {
			continue
		}
		f.Undo(h)
		h.Pinned, h.Young = r.IntN(8) == 0, r.IntN(8) == 0
		f.Take(h)
		s.homes = append(s.homes, h)
	}
	return f, s
}

// reach is the fewest moves, at most k, after which w fits, and the fewest bytes of so many: by trying all.
func (s *slow) reach(w Want, k int, moved map[string]bool) (moves int, bytes int64, ok bool) {
	if h, _ := s.place(w); h.Worker != "" {
		return 0, 0, true
	}
	if k == 0 {
		return 0, 0, false
	}
	for i, h := range s.homes {
		if h.Pinned || h.Young || h.Alone || moved[h.Model] {
			continue
		}
		moved[h.Model] = true
		for _, to := range s.places(h) {
			s.homes[i] = to
			n, b, fits := s.reach(w, k-1, moved)
			n, b = n+1, b+h.Bytes*int64(len(h.Devices))
			if fits && (!ok || cmp.Or(cmp.Compare(n, moves), cmp.Compare(b, bytes)) < 0) {
				moves, bytes, ok = n, b, true
			}
		}
		s.homes[i] = h
		moved[h.Model] = false
	}
	return moves, bytes, ok
}

// places are all where a home may move.
func (s *slow) places(h Home) (all []Home) {
	w := again(h)
	for _, at := range s.workers {
		if at.Avoid || at.Name == h.Worker {
			continue
		}
		only := *s
		only.workers = []Worker{at}
		for _, d := range s.of(at.Name) { // each device by itself, unless it is several that are wanted
			only.devices = []Device{d}
			if w.Devices > 1 || len(h.Devices) == 0 {
				only.devices = s.of(at.Name)
			}
			if to, _ := only.place(w); to.Worker != "" {
				to.Priority, to.Pinned, to.Young = h.Priority, h.Pinned, h.Young
				all = append(all, to)
			}
			if len(only.devices) > 1 {
				break
			}
		}
		if len(h.Devices) == 0 && len(s.of(at.Name)) == 0 {
			only.devices = nil
			if to, _ := only.place(w); to.Worker != "" {
				all = append(all, to)
			}
		}
	}
	return all
}

func again(h Home) Want {
	return (&held{Home: h, worker: &worker{Worker: Worker{Pool: h.Pool}}, devices: make([]*device, len(h.Devices))}).again()
}

// TestMakeRoom compares with all ways there are; see that nothing pinned moves, that each
// step has room when it is taken, and that nothing has changed where there is no way.
func TestMakeRoom(t *testing.T) {
	found := map[int]int{}
	for seed := range uint64(6000) {
		r := rand.New(rand.NewPCG(seed, 3))
		f, s := filled(r, 4)
		w := randomWant(r, slices.ContainsFunc(s.workers, func(w Worker) bool { return w.Host != Host{} }))
		w.Model, w.Alone, w.Not, w.Capability, w.Need["p"] = "new", false, nil, 0, int64(4+r.IntN(16))
		k := 1 + r.IntN(2)
		before := dump(f)
		n, bytes, possible := s.reach(w, k, map[string]bool{})
		moves, h, _, ok := f.MakeRoom(w, k)
		if !ok {
			if possible {
				t.Fatalf("seed %d: %d moves of %d bytes make room for %+v\n%s", seed, n, bytes, w, before)
			}
			if after := dump(f); after != before {
				t.Fatalf("seed %d: nothing was found, and yet it changed\n%s\n%s", seed, before, after)
			}
			continue
		}
		if !possible {
			t.Fatalf("seed %d: there is no way, and yet %+v for %+v\n%s", seed, moves, w, before)
		}
		sum := int64(0)
		for _, m := range moves {
			sum += m.Home.Bytes * int64(len(m.Home.Devices))
		}
		if len(moves) != n || sum != bytes {
			t.Fatalf("seed %d: %d moves of %d bytes, not %d of %d: %+v for %+v\n%s", seed, len(moves), sum, n, bytes, moves, w, before)
		}
		found[n]++
		s.follow(t, seed, moves)
		s.homes = append(s.homes, h)
		s.check(t, seed, f)
	}
	t.Logf("moves: %v", found)
}

// follow makes moves one by one: each has room while it is at both places.
func (s *slow) follow(t *testing.T, seed uint64, moves []Move) {
	t.Helper()
	moved := map[string]bool{}
	for _, m := range moves {
		i := slices.IndexFunc(s.homes, func(h Home) bool { return reflect.DeepEqual(h, m.Home) })
		if i < 0 || m.Home.Pinned || m.Home.Young || moved[m.Home.Model] {
			t.Fatalf("seed %d: %+v must not move", seed, m.Home)
		}
		moved[m.Home.Model] = true
		s.homes = append(s.homes, m.To)
		for _, d := range s.devices {
			if s.room(d, s.homes) < 0 {
				t.Fatalf("seed %d: %s/%s is over its capacity during %+v", seed, d.Worker, d.Name, m)
			}
		}
		s.homes = slices.Delete(s.homes, i, i+1)
	}
}
