package packing

import (
	"cmp"
	"math"
	"slices"
)

// Shape is a kind of replica that is likely to come.
type Shape struct {
	Need    map[string]int64 // pool -> bytes a device; zero or not there: it needs no device of the pool
	Host    Host
	Devices int      // whole devices; 0: a share of one
	Kinds   []string // empty: any
	Weight  float64  // how often it comes, compared with the others
}

// mix is what is likely to come. The fragmentation of a worker by one shape is
// what is free on it and cannot be used by that shape: everything where the
// shape does not fit the worker; else what is free on those devices that are too
// small for it. The mix's is the mean over its shapes, by weight.
// Source: Weng et al., "Beware of Fragmentation", USENIX ATC 2023, section 3.
//
// With U(x) the weight of the shapes for a share of at most x bytes that the
// host has room for, a worker's fragmentation is the sum over its devices of
// x * (total - U(x)), x being what is free there, less what shapes of
// several devices can use.
type mix struct {
	shapes []Shape
	weight []int64 // of shapes, in units of 1/unit
	total  int64
	cpu    []int64 // what shapes need of a host, ascending, each once
	memory []int64
	kinds  map[kindKey]*kind
}

// unit of weights: whole numbers, so that sums do not depend on their order.
const unit = 1 << 16

type kindKey struct {
	pool, kind string
	extent     int64
}

// kind are devices that the mix cannot tell apart but by what is free.
type kind struct {
	needs  []int64   // of shapes for a share, in whole extents, ascending, each once
	usable [][]int64 // host rank -> step -> weight of the shapes that can use it
	many   []many
}

// many is a shape for whole devices.
type many struct {
	need   int64
	n      int
	usable []int64 // host rank -> weight, or zero
}

func newMix(shapes []Shape) *mix {
	m := &mix{shapes: slices.Clone(shapes), kinds: map[kindKey]*kind{}}
	sum := 0.0
	for _, s := range m.shapes {
		sum += s.Weight
		m.cpu, m.memory = append(m.cpu, s.Host.CPU), append(m.memory, s.Host.Memory)
	}
	for _, s := range m.shapes {
		m.weight = append(m.weight, int64(math.Round(s.Weight/sum*unit)))
		m.total += m.weight[len(m.weight)-1]
	}
	m.cpu, m.memory = ascending(m.cpu), ascending(m.memory)
	return m
}

func ascending(n []int64) []int64 {
	slices.Sort(n)
	return slices.Compact(n)
}

// reach is how many of the needs have room in n.
func reach(needs []int64, n int64) int {
	at, found := slices.BinarySearch(needs, n)
	if found {
		at++
	}
	return at
}

func (m *mix) rank(h Host) int {
	return reach(m.cpu, h.CPU)*(len(m.memory)+1) + reach(m.memory, h.Memory)
}

func (m *mix) kind(d Device) *kind {
	key := kindKey{d.Pool, d.Kind, d.Extent}
	if k := m.kinds[key]; k != nil {
		return k
	}
	e := &device{Device: d}
	k := &kind{}
	m.kinds[key] = k
	var can []int // shapes that may come here
	for i, s := range m.shapes {
		if s.Need[d.Pool] <= 0 || len(s.Kinds) > 0 && !slices.Contains(s.Kinds, d.Kind) {
			continue
		}
		can = append(can, i)
		if s.Devices == 0 {
			k.needs = append(k.needs, e.fit(s.Need[d.Pool]))
		}
	}
	k.needs = ascending(k.needs)
	for c := range len(m.cpu) + 1 {
		for r := range len(m.memory) + 1 {
			u := make([]int64, len(k.needs)+1)
			for _, i := range can {
				s := m.shapes[i]
				if s.Devices == 0 && reach(m.cpu, s.Host.CPU) <= c && reach(m.memory, s.Host.Memory) <= r {
					u[reach(k.needs, e.fit(s.Need[d.Pool]))] += m.weight[i]
				}
			}
			for i := 1; i < len(u); i++ {
				u[i] += u[i-1]
			}
			k.usable = append(k.usable, u)
		}
	}
	for _, i := range can {
		if s := m.shapes[i]; s.Devices > 0 {
			e := many{need: e.fit(s.Need[d.Pool]), n: s.Devices}
			for c := range len(m.cpu) + 1 {
				for r := range len(m.memory) + 1 {
					weight := int64(0)
					if reach(m.cpu, s.Host.CPU) <= c && reach(m.memory, s.Host.Memory) <= r {
						weight = m.weight[i]
					}
					e.usable = append(e.usable, weight)
				}
			}
			k.many = append(k.many, e)
		}
	}
	slices.SortFunc(k.many, func(a, b many) int { return cmp.Or(cmp.Compare(a.need, b.need), cmp.Compare(a.n, b.n)) })
	return k
}

// step is how many of a kind's needs have room in n bytes.
func (k *kind) step(n int64) int { return reach(k.needs, n) }

// ranks is how many host ranks there are.
func (m *mix) ranks() int { return (len(m.cpu) + 1) * (len(m.memory) + 1) }

// changed: what is free on a worker is not what it was.
func (m *mix) changed(w *worker) {
	w.widest = 0
	for _, d := range w.devices {
		w.widest = max(w.widest, d.Capacity-d.awake)
	}
	w.rank = m.rank(w.free)
	for i := range w.frag {
		w.frag[i] = -1
	}
}

// now is the fragmentation of a worker, in bytes times unit, if its host had that rank.
func (m *mix) now(w *worker, rank int) int64 {
	if w.frag[rank] < 0 {
		w.frag[rank] = m.fragment(w, rank, nil, 0)
	}
	return w.frag[rank]
}

// fragment is the same with less free on some devices, by that many bytes each.
func (m *mix) fragment(w *worker, rank int, on []*device, less int64) int64 {
	sum := int64(0)
	for i, d := range w.devices {
		n, step := d.idle(), d.step
		if slices.Contains(on, d) {
			n = max(0, d.free()-less)
			step = d.kind.step(n)
		}
		sum += n * (m.total - d.kind.usable[rank][step])
		if len(d.kind.many) > 0 && (i == 0 || w.devices[i-1].kind != d.kind) {
			sum -= d.kind.several(w, rank, on, less)
		}
	}
	return sum
}

// less is how the fragmentation of a worker changes if n bytes more are taken on d.
func (m *mix) less(w *worker, d *device, n int64, rank int) int64 {
	idle, usable := d.idle(), d.kind.usable[rank]
	sum := (idle-n)*(m.total-usable[d.kind.step(idle-n)]) - idle*(m.total-usable[d.step])
	if len(d.kind.many) > 0 && d.empty() {
		sum += d.kind.several(w, rank, nil, 0) - d.kind.several(w, rank, []*device{d}, n)
	}
	return sum
}

// several is what shapes for whole devices can use of a worker's devices of kind
// k, if less bytes more were taken on some, or so many fewer.
func (k *kind) several(w *worker, rank int, on []*device, less int64) (sum int64) {
	for _, s := range k.many {
		if s.usable[rank] == 0 {
			continue
		}
		n, bytes := 0, int64(0)
		for _, d := range w.devices {
			empty := d.empty()
			if slices.Contains(on, d) {
				empty = d.free()-less == d.Capacity
			}
			if d.kind == k && empty && d.Capacity >= s.need {
				n++
				bytes += d.Capacity
			}
		}
		if n >= s.n {
			sum += s.usable[rank] * bytes
		}
	}
	return sum
}

// grain is what two places may differ by in fragmentation and still count as
// equal, so that the tightest is taken: a 25th of the mean device. Without it the
// last permille decides where to go, and ever more devices are begun.
func grain(workers []*worker) int64 {
	sum, n := int64(0), int64(0)
	for _, w := range workers {
		for _, d := range w.devices {
			sum += d.Capacity
			n++
		}
	}
	if n == 0 {
		return 1
	}
	return max(1, sum/n*unit/25)
}

// Fragmentation is what is free and cannot be used by the mix, in expected bytes.
func (f *Fleet) Fragmentation() float64 {
	sum := 0.0
	for _, w := range f.inOrder() {
		sum += float64(f.mix.now(w, w.rank)) / unit
	}
	return sum
}
