package packing

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"
)

// slow is the twin of a Fleet: lists, and every rule as one says it.
type slow struct {
	workers []Worker
	devices []Device
	homes   []Home
	mix     []Shape
	weight  []int64
	total   int64
}

func newSlow(workers []Worker, devices []Device, mix []Shape) *slow {
	s := &slow{workers: slices.Clone(workers), devices: slices.Clone(devices), mix: mix}
	slices.SortFunc(s.workers, before)
	slices.SortFunc(s.devices, byPlace)
	m := newMix(mix)
	s.weight, s.total = m.weight, m.total
	return s
}

func (s *slow) of(worker string) (devices []Device) {
	for _, d := range s.devices {
		if d.Worker == worker {
			devices = append(devices, d)
		}
	}
	return devices
}

func fitted(d Device, n int64) int64 {
	for d.Extent > 1 && n%d.Extent != 0 {
		n++
	}
	return n
}

// sums are what homes take of a device: awake, asleep, the largest asleep, expected awake of those asleep in 1/1000 bytes, load.
func (s *slow) sums(d Device, homes []Home) (awake, asleep, largest, expected int64, load, n int) {
	for _, h := range homes {
		if h.Worker != d.Worker || !slices.Contains(h.Devices, d.Name) {
			continue
		}
		bytes := fitted(d, h.Bytes)
		load += h.Load
		n++
		if h.Sleeps && !h.Busy {
			asleep += bytes
			largest = max(largest, bytes)
			expected += bytes * int64(max(100, h.Awake))
		} else {
			awake += bytes
		}
	}
	return
}

func (s *slow) free(d Device, homes []Home) int64 {
	awake, asleep, _, _, _, _ := s.sums(d, homes)
	return d.Capacity - awake - asleep
}

func (s *slow) room(d Device, homes []Home) int64 {
	awake, _, largest, expected, _, _ := s.sums(d, homes)
	return d.Capacity - awake - max(largest, (expected+999)/1000)
}

func (s *slow) host(w Worker, homes []Home) Host {
	for _, h := range homes {
		if h.Worker == w.Name {
			w.Host = Host{w.Host.CPU - h.Host.CPU, w.Host.Memory - h.Host.Memory}
		}
	}
	return w.Host
}

// fragmentation of a worker by the paper's definition, in bytes times unit.
func (s *slow) fragmentation(w Worker, homes []Home) (sum int64) {
	host := s.host(w, homes)
	for i, m := range s.mix {
		total, unusable, n := int64(0), int64(0), 0
		for _, d := range s.of(w.Name) {
			need, able := m.Need[d.Pool], len(m.Kinds) == 0 || slices.Contains(m.Kinds, d.Kind)
			free := max(0, s.free(d, homes))
			total += free
			_, _, _, _, _, held := s.sums(d, homes)
			switch {
			case need <= 0 || !able || fitted(d, need) > free || m.Devices > 0 && held > 0:
				unusable += free
			default:
				n++
			}
		}
		if n == 0 || n < m.Devices || host.CPU < m.Host.CPU || host.Memory < m.Host.Memory {
			unusable = total
		}
		sum += s.weight[i] * unusable
	}
	return sum
}

// candidate is a place with all that decides.
type candidate struct {
	key  []int64 // lower is better
	home Home
}

func (s *slow) place(w Want) (Home, int) {
	var all []candidate
	room := 0
	for order, at := range s.workers {
		need, asked := w.Need[at.Pool]
		homes, alone, has := 0, false, w.Not[at.Name]
		for _, h := range s.homes {
			if h.Worker == at.Name && h.Model != "" {
				homes++
				alone = alone || h.Alone
				has = has || h.Model == w.Model
			}
		}
		host := s.host(at, s.homes)
		if !asked || has || alone || w.Alone && homes > 0 || host.CPU < w.Host.CPU || host.Memory < w.Host.Memory {
			continue
		}
		h := Home{Model: w.Model, Pool: at.Pool, Worker: at.Name, Host: w.Host, Kinds: w.Kinds, Capability: w.Capability, Load: w.Load,
			Sleeps: w.Sleeps, Busy: w.Busy, Awake: w.Awake, Alone: w.Alone, Priority: w.Priority}
		avoid := int64(0)
		if at.Avoid {
			avoid = 1
		}
		suits := func(d Device) bool {
			return (len(w.Kinds) == 0 || slices.Contains(w.Kinds, d.Kind)) && (d.Capability == 0 || d.Capability >= w.Capability)
		}
		consider := func(hot, shared, left int64, devices ...Device) {
			h := h
			poor := int64(0)
			for _, d := range devices {
				if d.Degraded != "" {
					poor = 1
				}
				h.Devices = append(h.Devices, d.Name)
				h.Bytes = fitted(devices[0], need)
			}
			cost := int64(0)
			if shared == 0 && len(s.mix) > 0 {
				cost = s.fragmentation(at, append(slices.Clone(s.homes), h)) - s.fragmentation(at, s.homes) + s.kept(at, left, w)
			}
			place := int64(order)
			if w.Draw != 0 {
				place = int64((&worker{order: order}).drawn(w.Draw) >> 1)
			}
			all = append(all, candidate{[]int64{avoid, poor, hot, shared, cost, left, place, int64(len(all))}, h})
		}
		var empty []Device
		idle, unused := int64(0), int64(0)
		able := len(w.Kinds) == 0
		for _, d := range s.of(at.Name) {
			free := s.free(d, s.homes)
			idle += max(0, free)
			able = able || suits(d)
			awake, asleep, _, _, load, n := s.sums(d, s.homes)
			if n == 0 && awake+asleep == 0 {
				unused += d.Capacity
				if suits(d) && fitted(d, need) <= d.Capacity {
					empty = append(empty, d)
				}
			}
			if need == 0 || w.Devices > 0 || !suits(d) {
				continue
			}
			with := append(slices.Clone(s.homes), Home{Worker: at.Name, Devices: []string{d.Name}, Bytes: need, Sleeps: w.Sleeps, Busy: w.Busy, Awake: w.Awake})
			left := s.room(d, with)
			if left < 0 {
				continue
			}
			room++
			hot, shared := int64(0), int64(0)
			if w.Load > 0 && load+w.Load > 1000 {
				hot = 1
			}
			if free < fitted(d, need) {
				shared, left = 1, -left
			} else {
				left = free - fitted(d, need)
			}
			consider(hot, shared, left, d)
		}
		switch {
		case need == 0 && able:
			room++
			consider(0, 0, idle)
		case need > 0 && w.Devices > 0 && len(empty) >= w.Devices:
			room += len(empty)
			slices.SortStableFunc(empty, func(a, b Device) int {
				return cmp.Or(compareBool(a.Degraded != "", b.Degraded != ""), int(a.Capacity-b.Capacity))
			})
			consider(0, 0, unused, empty[:w.Devices]...)
		}
	}
	if len(all) == 0 {
		return Home{}, 0
	}
	return slices.MinFunc(all, func(a, b candidate) int { return slices.Compare(a.key, b.key) }).home, room
}

// kept is what room that is left is worth, 4 % on the device, and up to 3 % of a mean device for each of host and devices of the worker.
func (s *slow) kept(at Worker, left int64, want Want) int64 {
	sum, n, most, widest, idle, place, workers := int64(0), int64(0), int64(0), int64(0), int64(0), int64(0), int64(0)
	for _, w := range s.workers {
		if w.Pool != at.Pool {
			continue
		}
		if w.Name == at.Name {
			place = workers
		}
		workers++
		whole := int64(0)
		for _, d := range s.of(w.Name) {
			whole, n = whole+d.Capacity, n+1
		}
		sum, most, widest = sum+whole, max(most, w.Host.CPU), max(widest, whole)
	}
	for _, d := range s.of(at.Name) {
		idle += max(0, s.free(d, s.homes))
	}
	little := sum / max(n, 1) * unit / 100 * 3 / 1024
	if want.Draw != 0 {
		place = 0
	}
	return left*unit/25 + little*(place*1024/workers) + little*(idle*1024/max(widest, 1)) + little*(s.host(at, s.homes).CPU*1024/max(most, 1))
}

// world is a random fleet with its twin.
func world(r *rand.Rand, workers int) (f, shuffled *Fleet, s *slow) {
	var ws []Worker
	var ds []Device
	hosts := r.IntN(2) == 0
	for i := range 1 + r.IntN(workers) {
		w := Worker{Name: fmt.Sprint("w", i), Pool: string("pq"[r.IntN(2)]), Rank: r.IntN(3), Avoid: r.IntN(6) == 0}
		if hosts {
			w.Host = Host{int64(r.IntN(30)), int64(r.IntN(30))}
		}
		kind, capacity, extent := string("ab"[r.IntN(2)]), int64(10+5*r.IntN(3)), int64(1+r.IntN(2))
		for d := range r.IntN(5) {
			if r.IntN(6) == 0 {
				kind, capacity = string("ab"[r.IntN(2)]), int64(10+5*r.IntN(3))
			}
			ds = append(ds, Device{Pool: w.Pool, Worker: w.Name, Name: fmt.Sprint(d), Kind: kind, Capability: 10 * r.IntN(3), Capacity: capacity, Extent: extent, Degraded: ailment(r)})
		}
		ws = append(ws, w)
	}
	var mix []Shape
	for range r.IntN(8) {
		w := randomWant(r, hosts)
		mix = append(mix, Shape{w.Need, w.Host, w.Devices, w.Kinds, float64(1 + r.IntN(5))})
	}
	f, s = New(ws, ds, mix), newSlow(ws, ds, mix)
	r.Shuffle(len(ws), func(i, j int) { ws[i], ws[j] = ws[j], ws[i] })
	r.Shuffle(len(ds), func(i, j int) { ds[i], ds[j] = ds[j], ds[i] })
	mix = slices.Clone(mix)
	r.Shuffle(len(mix), func(i, j int) { mix[i], mix[j] = mix[j], mix[i] })
	return f, New(ws, ds, mix), s
}

// ailment of one device in eight.
func ailment(r *rand.Rand) string {
	if r.IntN(8) == 0 {
		return "Heat"
	}
	return ""
}

func randomWant(r *rand.Rand, hosts bool) Want {
	w := Want{Model: fmt.Sprint("m", r.IntN(30)), Need: map[string]int64{"p": int64(r.IntN(12))}}
	if r.IntN(3) == 0 {
		w.Need["q"] = int64(r.IntN(12))
	}
	if hosts {
		w.Host = Host{int64(r.IntN(10)), int64(r.IntN(10))}
	}
	if r.IntN(6) == 0 {
		w.Devices = 1 + r.IntN(3)
	}
	if r.IntN(3) == 0 {
		w.Kinds = []string{string("abc"[r.IntN(3)])}
	}
	w.Capability = max(0, 10*(r.IntN(5)-2))
	if r.IntN(2) == 0 {
		w.Load = r.IntN(700)
	}
	if r.IntN(2) == 0 {
		w.Sleeps, w.Busy, w.Awake = true, r.IntN(4) == 0, r.IntN(700)
	}
	w.Alone = r.IntN(15) == 0
	if r.IntN(4) == 0 {
		w.Draw = 1 + r.Uint64()>>1
	}
	w.Priority = r.IntN(3)
	for i := range 6 {
		if r.IntN(8) == 0 {
			if w.Not == nil {
				w.Not = map[string]bool{}
			}
			w.Not[fmt.Sprint("w", i)] = r.IntN(3) > 0
		}
	}
	return w
}

// TestSlow places and takes away at random and compares with the twin, which has no
// index and no sum that it keeps. The order of the input does not matter.
func TestSlow(t *testing.T) {
	for seed := range uint64(1500) {
		r := rand.New(rand.NewPCG(seed, 2))
		f, g, s := world(r, 8)
		hosts := slices.ContainsFunc(s.workers, func(w Worker) bool { return w.Host != Host{} })
		for range 40 {
			if len(s.homes) > 0 && r.IntN(3) == 0 {
				i := r.IntN(len(s.homes))
				if !f.Undo(s.homes[i]) || !g.Undo(s.homes[i]) {
					t.Fatalf("seed %d: %+v was not there", seed, s.homes[i])
				}
				s.homes = slices.Delete(s.homes, i, i+1)
				continue
			}
			w := randomWant(r, hosts)
			want, room := s.place(w)
			h, say, why := f.Place(w, nil)
			if !reflect.DeepEqual(h, want) {
				t.Fatalf("seed %d: %+v\ngoes to %+v\nthe twin says %+v", seed, w, h, want)
			}
			again, sayAgain, whyAgain := g.Place(w, nil)
			if !reflect.DeepEqual(h, again) || say != sayAgain || !reflect.DeepEqual(why, whyAgain) {
				t.Fatalf("seed %d: the order of the input matters: %+v %q %+v, %+v %q %+v", seed, h, say, why, again, sayAgain, whyAgain)
			}
			if best, n := f.choose(&w, nil); best.worker == nil && n != 0 || h.Worker != "" && room == 0 {
				t.Fatalf("seed %d: %d have room", seed, n)
			}
			if h.Worker != "" {
				s.homes = append(s.homes, h)
			}
			s.check(t, seed, f)
		}
	}
}

// check compares what is free, and what of it cannot be used.
func (s *slow) check(t *testing.T, seed uint64, f *Fleet) {
	t.Helper()
	for _, d := range s.devices {
		if room := s.room(d, s.homes); f.Free(d.Worker, d.Name) != room || room < 0 {
			t.Fatalf("seed %d: %s/%s has %d left, the twin says %d", seed, d.Worker, d.Name, f.Free(d.Worker, d.Name), room)
		}
	}
	for _, w := range s.workers {
		if at := f.workers[w.Name]; f.now(at) != s.fragmentation(w, s.homes) {
			t.Fatalf("seed %d: %s has a fragmentation of %d, the twin says %d", seed, w.Name, f.now(at), s.fragmentation(w, s.homes))
		}
	}
}
