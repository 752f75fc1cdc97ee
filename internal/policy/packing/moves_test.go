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

// tight is a random fleet in which homes lie where a lot put them, and a Want that no
// device has room for, though the fleet may have.
func tight(r *rand.Rand) (*Fleet, *slow, Want) {
	var ds []Device
	for i := range 3 + r.IntN(2) {
		for j := range 1 + r.IntN(2) {
			ds = append(ds, Device{Pool: "p", Worker: fmt.Sprint("w", i), Name: fmt.Sprint(j), Kind: "a", Capacity: int64(10 + 5*r.IntN(3)), Extent: int64(1 + r.IntN(2)), Degraded: ailment(r)})
		}
	}
	mix := []Shape{{Need: map[string]int64{"p": 5}, Weight: 2}, {Need: map[string]int64{"p": 12}, Weight: 1}}
	f, s := New(nil, ds, mix), newSlow(nil, ds, mix)
	for _, d := range ds {
		s.workers = append(s.workers, Worker{Name: d.Worker, Pool: "p"})
	}
	slices.SortFunc(s.workers, before)
	s.workers = slices.Compact(s.workers)
	for i := range 4 + r.IntN(6) {
		d := ds[r.IntN(len(ds))]
		h := Home{Model: fmt.Sprint("m", i), Pool: "p", Worker: d.Worker, Devices: []string{d.Name}, Bytes: int64(2 + r.IntN(7)), Pinned: r.IntN(12) == 0, Young: r.IntN(12) == 0}
		if r.IntN(4) == 0 {
			h.Sleeps, h.Awake = true, r.IntN(700)
		}
		if f.Take(h); f.Free(d.Worker, d.Name) < 0 {
			f.Undo(h)
			continue
		}
		s.homes = append(s.homes, h)
	}
	most := int64(0)
	for _, d := range ds {
		most = max(most, f.Free(d.Worker, d.Name))
	}
	return f, s, Want{Model: "new", Need: map[string]int64{"p": most + 1 + int64(r.IntN(4))}, Sleeps: r.IntN(4) == 0, Awake: r.IntN(700)}
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
			if to, _ := only.place(w); to.Worker != "" && !s.ails(to) {
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

// ails: a device of a home is degraded.
func (s *slow) ails(h Home) bool {
	return slices.ContainsFunc(s.devices, func(d Device) bool {
		return d.Worker == h.Worker && slices.Contains(h.Devices, d.Name) && d.Degraded != ""
	})
}

func again(h Home) Want {
	return (&held{Home: h, worker: &worker{Worker: Worker{Pool: h.Pool}}, devices: make([]*device, len(h.Devices))}).again()
}

// TestMakeRoom compares with all ways there are; see that nothing pinned moves, that each
// step has room when it is taken, and that nothing has changed where there is no way.
func TestMakeRoom(t *testing.T) {
	found := map[int]int{}
	for seed := range uint64(1500) {
		r := rand.New(rand.NewPCG(seed, 3))
		f, s, w := tight(r)
		if seed%2 == 0 {
			f, s = filled(r, 4)
			w = randomWant(r, slices.ContainsFunc(s.workers, func(w Worker) bool { return w.Host != Host{} }))
			w.Model, w.Alone, w.Not, w.Capability, w.Need["p"] = "new", false, nil, 0, int64(4+r.IntN(16))
		}
		k := min(2, 1+r.IntN(4))
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
	if found[1] < 200 || found[2] < 30 {
		t.Errorf("the fleets are not tight enough: %v", found)
	}
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

// displaced is the least whose going makes room for w: the highest priority of
// those that go, how many, and their bytes; by trying all.
func (s *slow) displaced(w Want) (least []int64) {
	var some []int
	for i, h := range s.homes {
		if h.Priority < w.Priority && !h.Pinned && !h.Alone {
			some = append(some, i)
		}
	}
	for set := 1; set < 1<<len(some); set++ {
		key, rest, n := []int64{0, 0, 0}, *s, 0
		rest.homes, rest.workers = nil, nil
		on := map[string]bool{}
		for i, h := range s.homes {
			if n < len(some) && some[n] == i {
				n++
				if set&(1<<(n-1)) != 0 {
					key[0], key[1], key[2] = max(key[0], int64(h.Priority)), key[1]+1, key[2]+h.Bytes*int64(len(h.Devices))
					on[h.Worker] = true
					continue
				}
			}
			rest.homes = append(rest.homes, h)
		}
		for _, at := range s.workers {
			if !at.Avoid && on[at.Name] {
				rest.workers = append(rest.workers, at)
			}
		}
		if len(on) == 1 && (least == nil || slices.Compare(key, least) < 0) {
			if h, _ := rest.place(w); h.Worker != "" {
				least = key
			}
		}
	}
	return least
}

func TestDisplace(t *testing.T) {
	found := 0
	for seed := range uint64(4000) {
		r := rand.New(rand.NewPCG(seed, 4))
		f, s := filled(r, 3)
		if len(s.homes) > 10 {
			continue
		}
		w := randomWant(r, slices.ContainsFunc(s.workers, func(w Worker) bool { return w.Host != Host{} }))
		w.Model, w.Alone, w.Not, w.Capability, w.Need["p"], w.Priority = "new", false, nil, 0, int64(4+r.IntN(16)), r.IntN(4)
		if h, _ := s.place(w); h.Worker != "" {
			continue
		}
		before := dump(f)
		want := s.displaced(w)
		gone, h, _, ok := f.Displace(w)
		if !ok {
			if after := dump(f); want != nil || after != before {
				t.Fatalf("seed %d: the twin says %v, for %+v\n%s\n%s", seed, want, w, before, after)
			}
			continue
		}
		found++
		key := []int64{0, int64(len(gone)), 0}
		for _, g := range gone {
			key[0], key[2] = max(key[0], int64(g.Priority)), key[2]+g.Bytes*int64(len(g.Devices))
			i := slices.IndexFunc(s.homes, func(h Home) bool { return reflect.DeepEqual(h, g) })
			s.homes = slices.Delete(s.homes, i, i+1)
		}
		if key[1] > 3 && want != nil { // of more than three, the fewest may not be found
			want[2] = key[2]
		}
		if !slices.Equal(key, want) {
			t.Fatalf("seed %d: %v go, the twin says %v: %+v for %+v\n%s", seed, key, want, gone, w, before)
		}
		s.homes = append(s.homes, h)
		s.check(t, seed, f)
	}
	t.Logf("%d found", found)
}

// TestEmpty: a worker that could be emptied is, and what is awake on it went to
// workers in use; else nothing has changed.
func TestEmpty(t *testing.T) {
	found := 0
	for seed := range uint64(2000) {
		r := rand.New(rand.NewPCG(seed, 5))
		f, s := filled(r, 6)
		at := s.workers[r.IntN(len(s.workers))].Name
		before, used := dump(f), map[string]bool{}
		for _, h := range s.homes {
			used[h.Worker] = used[h.Worker] || !h.sleeping()
		}
		moves, ok := f.Empty(at, 3)
		if !ok {
			if after := dump(f); after != before {
				t.Fatalf("seed %d: it cannot be emptied, and yet it changed\n%s\n%s", seed, before, after)
			}
			continue
		}
		for _, m := range moves {
			if m.Home.Worker != at || !used[m.To.Worker] || m.To.Worker == at {
				t.Fatalf("seed %d: %+v", seed, m)
			}
			found++
		}
		s.follow(t, seed, moves)
		s.check(t, seed, f)
		if slices.ContainsFunc(s.homes, func(h Home) bool { return h.Worker == at && !h.sleeping() }) {
			t.Fatalf("seed %d: something is awake on %s", seed, at)
		}
	}
	t.Logf("%d moves", found)
}

// TestDefragment: each move gains what it says, and enough.
func TestDefragment(t *testing.T) {
	found := 0
	for seed := range uint64(1500) {
		r := rand.New(rand.NewPCG(seed, 6))
		f, s := filled(r, 6)
		least, before := 1+r.Float64()*4, f.Fragmentation()
		moves := f.Defragment(3, least)
		gain := 0.0
		for _, m := range moves {
			if m.Gain < least {
				t.Fatalf("seed %d: a gain of %g is not enough", seed, m.Gain)
			}
			gain += m.Gain
			found++
		}
		if diff := before - gain - f.Fragmentation(); diff > 1e-6 || diff < -1e-6 {
			t.Fatalf("seed %d: from %g to %g, not by %g", seed, before, f.Fragmentation(), gain)
		}
		s.follow(t, seed, moves)
		s.check(t, seed, f)
	}
	t.Logf("%d moves", found)
}

// TestUndo: what Place, Take and moves did can be taken back, to the same state; a
// clone goes its own way.
func TestUndo(t *testing.T) {
	for seed := range uint64(500) {
		r := rand.New(rand.NewPCG(seed, 7))
		f, _ := filled(r, 6)
		before := dump(f)
		g := f.Clone()
		if dump(g) != before {
			t.Fatalf("seed %d: the clone differs\n%s\n%s", seed, before, dump(g))
		}
		var homes []Home
		for range 10 {
			if h, _, ok := g.Put(randomWant(r, true), nil); ok {
				homes = append(homes, h)
			}
			for _, w := range g.inOrder() {
				for _, d := range w.devices {
					h := Home{Pool: w.Pool, Worker: w.Name, Devices: []string{d.Name}, Bytes: int64(r.IntN(30)), Load: 1, Sleeps: true}
					if r.IntN(4) == 0 && g.Take(h) {
						homes = append(homes, h)
					}
				}
			}
		}
		for _, i := range r.Perm(len(homes)) {
			if !g.Undo(homes[i]) {
				t.Fatalf("seed %d: %+v is not there", seed, homes[i])
			}
		}
		if dump(g) != before || dump(f) != before {
			t.Fatalf("seed %d: it differs\n%s\n%s", seed, before, dump(g))
		}
	}
}

// TestPressed: what one would expect of the rules, each on a small fleet.
func TestPressed(t *testing.T) {
	one := func(n int64) map[string]int64 { return map[string]int64{"p": n} }
	asleep := func(model string, n int64, awake int) Home {
		return Home{Model: model, Pool: "p", Worker: "w0", Devices: []string{"0"}, Bytes: n, Sleeps: true, Awake: awake}
	}
	fleet := func(devices int, homes ...Home) *Fleet {
		var ds []Device
		for i := range devices {
			ds = append(ds, Device{Pool: "p", Worker: fmt.Sprint("w", i), Name: "0", Kind: "cuda", Capability: 80, Capacity: 100})
		}
		f := New(nil, ds, nil)
		for _, h := range homes {
			f.Take(h)
		}
		return f
	}
	pinned := asleep("a", 60, 300)
	pinned.Pinned, pinned.Sleeps = true, false
	for name, c := range map[string]struct {
		fleet *Fleet
		want  Want
		says  string
	}{
		"shares with what sleeps":            {fleet(1, asleep("a", 60, 300)), Want{Model: "x", Need: one(60), Sleeps: true, Awake: 300}, "w0: the only device with room: 40 B left, shared with models that sleep"},
		"rather alone":                       {fleet(2, asleep("a", 60, 300)), Want{Model: "x", Need: one(60), Sleeps: true}, "w1: tightest of 2 devices with room: 40 B left"},
		"too often awake":                    {fleet(1, asleep("a", 60, 900)), Want{Model: "x", Need: one(60), Sleeps: true, Awake: 900}, "Needs 60 B; the largest free device has 40 B of 100 B. 1 device is full now. To make room on w0/0, a would have to go."},
		"awake beside what sleeps":           {fleet(1, asleep("a", 60, 300)), Want{Model: "x", Need: one(40)}, "w0: the only device with room: 0 B left"},
		"not awake where it could not wake":  {fleet(1, asleep("a", 60, 300)), Want{Model: "x", Need: one(41)}, "Needs 41 B; the largest free device has 40 B of 100 B. 1 device is full now. To make room on w0/0, a would have to go."},
		"two that are hot are kept apart":    {fleet(2, Home{Model: "a", Worker: "w0", Devices: []string{"0"}, Bytes: 50, Load: 600}), Want{Model: "x", Need: one(10), Load: 500}, "w1: tightest of 2 devices with room: 90 B left"},
		"unless there is no room elsewhere":  {fleet(1, Home{Model: "a", Worker: "w0", Devices: []string{"0"}, Bytes: 50, Load: 600}), Want{Model: "x", Need: one(10), Load: 500}, "w0: the only device with room: 40 B left"},
		"another kind":                       {fleet(2), Want{Model: "x", Need: one(10), Kinds: []string{"cpu"}}, "Needs 10 B on a device of kind cpu; none of 2 is."},
		"too old":                            {fleet(1), Want{Model: "x", Need: one(10), Capability: 90}, "Needs 10 B on a device of compute capability 9.0 or more; none of 1 is."},
		"full of what may not leave":         {fleet(1, pinned), Want{Model: "x", Need: one(50)}, "Needs 50 B; the largest free device has 40 B of 100 B. 1 device is full of what may not leave (a)."},
		"shared, and some of it is awake":    {fleet(1, asleep("a", 60, 300), Home{Model: "b", Worker: "w0", Devices: []string{"0"}, Bytes: 40}), Want{Model: "x", Need: one(70), Sleeps: true}, "Needs 70 B; the largest free device has 0 B of 100 B. 1 device is full now. w0/0 cannot be shared further while awake there: b. To make room on w0/0, b would have to go."},
		"whole devices":                      {fleet(2), Want{Model: "x", Need: one(50), Devices: 2}, "Needs 50 B on each of 2 whole devices of one worker; the largest free device has 100 B of 100 B. 2 devices are full now."},
		"more processor than any worker has": {fleet(1), Want{Model: "x", Need: one(50), Host: Host{CPU: 8000}}, "Needs 50 B; the largest free device has 100 B of 100 B. 1 device is on workers with less than 8000 milli-CPU or 0 B of memory left."},
	} {
		t.Run(name, func(t *testing.T) {
			h, says, why := c.fleet.Place(c.want, nil)
			if says = h.Worker + ": " + says; h.Worker == "" {
				says = why.String()
			}
			if says != c.says {
				t.Errorf("%s\nwant %s", says, c.says)
			}
		})
	}
}
