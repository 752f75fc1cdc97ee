package packing

import (
	"math"
	"slices"
)

// Shape is a kind of replica that is likely to come.
type Shape struct {
	Need    map[string]int64 // pool -> bytes a device; zero or not there: it needs no device of the pool
	Host    Host
	Devices int      // whole devices; 0: a share of one
	Kinds   []string // empty: any
	Weight  float64  // how often it comes, compared with the others; what is not a number above 0 does not count
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
	many   []many
	kinds  map[kindKey]*kind
}

// unit of weights: whole numbers, so that sums do not depend on their order.
const unit = 1 << 16

type kindKey struct {
	pool, kind string
	capability int
	extent     int64
}

// kind are devices that differ by what is free alone.
type kind struct {
	kindKey
	id     int
	needs  []int64   // of shapes for a share, in whole extents, ascending, each once
	usable [][]int64 // host rank -> step -> weight of the shapes that can use it
	many   []int64   // what each of mix.many needs of a device; 0: it cannot come here
	shift  uint      // n >> shift is where steps has the step of the least such n
	steps  []int
}

// many is a shape for whole devices.
type many struct {
	Shape
	usable []int64 // host rank -> weight, or zero
}

func newMix(shapes []Shape) *mix {
	m := &mix{kinds: map[kindKey]*kind{}}
	sum := 0.0
	for _, s := range shapes {
		if s.Weight <= 0 || math.IsInf(s.Weight, 1) || math.IsNaN(s.Weight) {
			continue
		}
		m.shapes = append(m.shapes, s)
		sum += s.Weight
		m.cpu, m.memory = append(m.cpu, s.Host.CPU), append(m.memory, s.Host.Memory)
	}
	for _, s := range m.shapes {
		m.weight = append(m.weight, int64(math.Round(s.Weight/sum*unit)))
		m.total += m.weight[len(m.weight)-1]
	}
	m.cpu, m.memory = ascending(m.cpu), ascending(m.memory)
	for i, s := range m.shapes {
		if s.Devices > 0 {
			m.many = append(m.many, many{s, m.each(func(c, r int) int64 {
				if m.fits(s, c, r) {
					return m.weight[i]
				}
				return 0
			})})
		}
	}
	return m
}

// each has a number for every host rank.
func (m *mix) each(of func(cpu, memory int) int64) (all []int64) {
	for c := range len(m.cpu) + 1 {
		for r := range len(m.memory) + 1 {
			all = append(all, of(c, r))
		}
	}
	return all
}

// fits: a host of that rank has room for s.
func (m *mix) fits(s Shape, cpu, memory int) bool {
	return reach(m.cpu, s.Host.CPU) <= cpu && reach(m.memory, s.Host.Memory) <= memory
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
	key := kindKey{d.Pool, d.Kind, d.Capability, d.Extent}
	if k := m.kinds[key]; k != nil {
		return k
	}
	k := &kind{kindKey: key, id: len(m.kinds)}
	m.kinds[key] = k
	for _, s := range m.shapes {
		if n := k.wants(s); n > 0 && s.Devices == 0 {
			k.needs = append(k.needs, n)
		}
	}
	k.needs = ascending(k.needs)
	k.index()
	for c := range len(m.cpu) + 1 {
		for r := range len(m.memory) + 1 {
			u := make([]int64, len(k.needs)+1)
			for i, s := range m.shapes {
				if n := k.wants(s); n > 0 && s.Devices == 0 && m.fits(s, c, r) {
					u[reach(k.needs, n)] += m.weight[i]
				}
			}
			for i := 1; i < len(u); i++ {
				u[i] += u[i-1]
			}
			k.usable = append(k.usable, u)
		}
	}
	for _, s := range m.many {
		k.many = append(k.many, k.wants(s.Shape))
	}
	return k
}

// wants is what a shape takes of such a device; 0: it does not come here.
func (k *kind) wants(s Shape) int64 {
	if s.Need[k.pool] <= 0 || len(s.Kinds) > 0 && !slices.Contains(s.Kinds, k.kind) {
		return 0
	}
	return k.fit(s.Need[k.pool])
}

// fit is what n bytes take on such a device: whole extents.
func (k *kind) fit(n int64) int64 {
	n = min(max(n, 0), 2*mostBytes)
	if k.extent <= 1 {
		return n
	}
	return (n + k.extent - 1) / k.extent * k.extent
}

// index makes step fast: a table of few hundred entries leads to the place.
func (k *kind) index() {
	if len(k.needs) == 0 {
		return
	}
	most := k.needs[len(k.needs)-1]
	for most>>k.shift > 255 {
		k.shift++
	}
	for i := range most>>k.shift + 1 {
		k.steps = append(k.steps, reach(k.needs, i<<k.shift))
	}
}

// step is how many of a kind's needs have room in n bytes.
func (k *kind) step(n int64) int {
	if len(k.needs) == 0 || n >= k.needs[len(k.needs)-1] {
		return len(k.needs)
	}
	i := k.steps[n>>k.shift]
	for k.needs[i] <= n {
		i++
	}
	return i
}

// ranks is how many host ranks there are.
func (m *mix) ranks() int { return (len(m.cpu) + 1) * (len(m.memory) + 1) }

// now is the fragmentation of a worker, in bytes times unit, if its host had that rank.
func (m *mix) now(s *state, rank int) int64 {
	if s.frag[rank] >= 0 {
		return s.frag[rank]
	}
	sum := int64(0)
	for i := range s.spots {
		e := &s.spots[i]
		sum += int64(e.n) * e.idle() * (m.total - e.kind.usable[rank][e.step])
	}
	sum -= m.whole(s.spots, rank, -1, 0)
	s.frag[rank] = sum
	return sum
}

// fragment is the same of a worker with less free on some devices, by that many bytes each.
func (m *mix) fragment(w *worker, rank int, on []*device, less int64) int64 {
	sum := int64(0)
	for _, d := range w.devices {
		n, step := d.idle(), d.step
		if slices.Contains(on, d) {
			n = max(0, d.free()-less)
			step = d.kind.step(n)
		}
		sum += n * (m.total - d.kind.usable[rank][step])
	}
	sum -= m.several(w, rank, on, less)
	return sum
}

// more is how the fragmentation grows if n bytes are taken on a device.
func (m *mix) more(s *state, d *spot, n int64, rank int) int64 {
	idle, usable := d.idle(), d.kind.usable[rank]
	sum := (idle-n)*(m.total-usable[d.kind.step(idle-n)]) - idle*(m.total-usable[d.step])
	if len(m.many) > 0 && d.empty {
		i := slices.IndexFunc(s.spots, func(o spot) bool { return o.first == d.first })
		sum += m.whole(s.spots, rank, -1, 0) - m.whole(s.spots, rank, i, 1)
	}
	return sum
}

// taken is how the fragmentation grows if so many empty devices at a spot are taken, by n bytes each.
func (m *mix) taken(s *state, at, devices int, n int64, rank int) int64 {
	d := &s.spots[at]
	usable := d.kind.usable[rank]
	each := (d.capacity-n)*(m.total-usable[d.kind.step(d.capacity-n)]) - d.capacity*(m.total-usable[d.step])
	return each*int64(devices) + m.whole(s.spots, rank, -1, 0) - m.whole(s.spots, rank, at, devices)
}

// whole is what shapes for whole devices can use, if of those at one spot so many were not empty any more.
func (m *mix) whole(spots []spot, rank, at, taken int) (sum int64) {
	for i := range m.many {
		s := &m.many[i]
		if s.usable[rank] == 0 {
			continue
		}
		n, bytes := 0, int64(0)
		for j := range spots {
			d := &spots[j]
			if need := d.kind.many[i]; need > 0 && d.empty && d.capacity >= need {
				count := d.n
				if j == at {
					count -= taken
				}
				n += count
				bytes += d.capacity * int64(count)
			}
		}
		if n >= s.Devices {
			sum += s.usable[rank] * bytes
		}
	}
	return sum
}

// several is what shapes for whole devices can use of a worker, if less bytes
// more were taken on some of its devices, or so many fewer.
func (m *mix) several(w *worker, rank int, on []*device, less int64) (sum int64) {
	for i := range m.many {
		s := &m.many[i]
		if s.usable[rank] == 0 {
			continue
		}
		n, bytes := 0, int64(0)
		for _, d := range w.devices {
			empty := d.empty()
			if slices.Contains(on, d) {
				empty = d.free()-less == d.capacity
			}
			if need := d.kind.many[i]; need > 0 && empty && d.capacity >= need {
				n++
				bytes += d.capacity
			}
		}
		if n >= s.Devices {
			sum += s.usable[rank] * bytes
		}
	}
	return sum
}

// measure finds what an empty worker or device is worth beside a full one: 3 % of
// the mean device. Without it the last permille of fragmentation decides where to
// go, and ever more devices and workers are begun: 94.5 % of openb's GPUs are
// allocated. From 2 to 4 %, here and in slack, it is 95.4.
func (p *pool) measure() {
	sum, n := int64(0), int64(0)
	for _, w := range p.workers {
		whole := int64(0)
		for _, d := range w.devices {
			whole += d.capacity
			n++
		}
		sum += whole
		p.most, p.widest = max(p.most, w.Host.CPU), max(p.widest, whole)
	}
	p.little = sum / max(n, 1) * unit / 100 * 3
}

// begun is what is lost when a worker is begun or filled rather than a fuller one,
// in bytes times unit: by what its devices and its host have left, compared with the
// largest, and by its place in the order, so that of near equals the same are filled first.
func (p *pool) begun(at *worker, w *Want) (n int64) {
	const parts = 1024
	st := at.state
	if w.Draw == 0 {
		n += p.little / parts * (int64(at.place) * parts / int64(len(p.workers)))
	}
	if p.widest > 0 {
		n += p.little / parts * (st.idle * parts / p.widest)
	}
	if p.most > 0 {
		n += p.little / parts * (st.free.CPU * parts / p.most)
	}
	return n
}

// slack is what is lost by room that is left where w comes: 4 % of it, in bytes times unit.
func slack(left int64) int64 { return left * unit / 25 }

// Fragmentation is what is free and cannot be used by the mix, in expected bytes.
func (f *Fleet) Fragmentation() float64 {
	sum := 0.0
	for _, w := range f.inOrder() {
		sum += float64(f.mix.now(w.state, w.state.rank)) / unit
	}
	return sum
}
