package simulate

import (
	"math"
	"slices"
	"strings"
)

// Baselines are the policies that results were published for, and first fit. Their scores are the integers of
// the published simulator, so that equals are equal here too.
var Baselines = []string{"Random", "DotProd", "GpuClustering", "GpuPacking", "BestFit", "FirstFit", "FGD"}

// machine is a node with what is left on it.
type machine struct {
	Node
	cpu, memory int64
	left        []int64     // of each GPU, in 1/1000
	holds       map[int]int // pods by the number of their whole GPUs; 0: those that share one
	version     int         // changes with what is left
}

func newMachine(n Node) *machine {
	m := &machine{Node: n, cpu: n.CPU, memory: n.Memory, left: make([]int64, n.GPUs), holds: map[int]int{}, version: 1}
	for i := range m.left {
		m.left[i] = 1000
	}
	return m
}

// put takes what a pod needs, from the GPUs that it got; take gives it back.
func (m *machine) put(p Pod, at []int)  { m.change(p, at, 1) }
func (m *machine) take(p Pod, at []int) { m.change(p, at, -1) }

func (m *machine) change(p Pod, at []int, sign int64) {
	m.cpu -= sign * p.CPU
	m.memory -= sign * p.Memory
	for _, i := range at {
		m.left[i] -= sign * p.Milli
	}
	if p.GPUs > 0 {
		if m.holds[p.Whole()] += int(sign); m.holds[p.Whole()] == 0 {
			delete(m.holds, p.Whole())
		}
	}
	m.version++
}

func (m *machine) total() (n int64) {
	for _, l := range m.left {
		n += l
	}
	return n
}

func accepts(kinds, kind string) bool {
	return kinds == "" || kind != "" && slices.Contains(strings.Split(kinds, "|"), kind)
}

// room says whether enough GPUs have enough left for each of a pod's.
func (m *machine) room(p Pod) bool {
	n := 0
	for _, l := range m.left {
		if l >= p.Milli {
			n++
		}
	}
	return n >= p.GPUs
}

// fits says whether a pod has room.
func (m *machine) fits(p Pod) bool {
	return m.cpu >= p.CPU && m.memory >= p.Memory && (p.GPUs == 0 || accepts(p.Kinds, m.Kind) && m.room(p))
}

// fragments are the expected 1/1000 GPUs that are free here and of no use to a pod of the mix: all of them where it does not
// fit at all or needs no GPU, else those that are too small for it. Source: FGD, USENIX ATC 2023.
func (m *machine) fragments(mix []Typical) (sum float64) {
	total := float64(m.total())
	for _, t := range mix {
		if t.GPUs == 0 || m.cpu < t.CPU || !accepts(t.Kinds, m.Kind) || !m.room(t.Pod) {
			sum += t.Weight * total
			continue
		}
		for _, l := range m.left {
			if l < t.Milli {
				sum += t.Weight * float64(l)
			}
		}
	}
	return sum
}

// tightest is the GPU with least left that a pod fits on, or whole ones.
func (m *machine) tightest(p Pod) []int {
	if p.GPUs == 0 || p.Whole() > 0 {
		return m.idle(p.GPUs)
	}
	best := -1
	for i, l := range m.left {
		if l >= p.Milli && (best < 0 || l < m.left[best]) {
			best = i
		}
	}
	return []int{best}
}

// idle are the first n GPUs that are wholly free.
func (m *machine) idle(n int) (at []int) {
	for i, l := range m.left {
		if l == 1000 && len(at) < n {
			at = append(at, i)
		}
	}
	return at
}

// rank scores a machine that a pod fits on, higher is better, and says which GPUs it would get.
type rank func(m *machine, p Pod, mix []Typical) (int64, []int)

// ranks of the baselines; Random has none. Largest machines there: 128 cores, 8 GPUs.
var ranks = map[string]rank{
	"FirstFit": func(m *machine, p Pod, _ []Typical) (int64, []int) { return 0, m.tightest(p) },
	"BestFit": func(m *machine, p Pod, _ []Typical) (int64, []int) {
		left := float64(m.cpu-p.CPU)/128000*0.5 + float64(m.total()-p.Demand())/8000*0.5
		return int64((1 - left) * 100), m.tightest(p)
	},
	"DotProd": func(m *machine, p Pod, _ []Typical) (int64, []int) {
		dot := float64(m.cpu)/128000*(float64(p.CPU)/128000) + float64(m.total())/8000*(float64(p.Demand())/8000)
		return int64(100 * (1 - dot/2)), m.tightest(p)
	},
	"GpuPacking":    gpuPacking,
	"GpuClustering": gpuClustering,
	"FGD":           fgd,
}

// gpuPacking prefers GPUs that are shared already, then free ones of a machine in use, then free machines.
func gpuPacking(m *machine, p Pod, _ []Typical) (int64, []int) {
	if p.GPUs == 0 {
		return 0, nil
	}
	if idle := int64(len(m.idle(len(m.left)))); int(idle) == len(m.left) {
		return max(33-idle, idle), m.tightest(p)
	}
	need, whole, percent := p.GPUs, int64(0), int64(0)
	for _, l := range slices.Sorted(slices.Values(m.left)) {
		if need > 0 && l >= p.Milli {
			need--
			percent += l / 10
			if l == 1000 {
				whole++
			}
		}
	}
	if whole > 0 {
		return max(50-whole, 33), m.tightest(p)
	}
	return max(100-percent/10, 50), m.tightest(p)
}

// gpuClustering puts pods of equal size together.
func gpuClustering(m *machine, p Pod, _ []Typical) (int64, []int) {
	if p.GPUs == 0 {
		return 0, nil
	}
	used := 25 * (8000 - m.total()) / 8000
	switch same := m.holds[p.Whole()] > 0; {
	case same && len(m.holds) == 1:
		return used + 75, m.tightest(p)
	case same:
		return used + 50, m.tightest(p)
	case len(m.holds) == 0:
		return used + 25, m.tightest(p)
	}
	return used, m.tightest(p)
}

// fgd prefers where fragments grow least, in 101 steps.
func fgd(m *machine, p Pod, mix []Typical) (int64, []int) {
	before := m.fragments(mix)
	score := func(at []int) int64 {
		after := *m
		after.left, after.cpu = slices.Clone(m.left), m.cpu-p.CPU
		for _, i := range at {
			after.left[i] -= p.Milli
		}
		return int64(100 / (1 + math.Exp((after.fragments(mix)-before)/1000)))
	}
	if p.GPUs == 0 || p.Whole() > 0 {
		at := m.idle(p.GPUs)
		return score(at), at
	}
	best, at := int64(-1), 0
	for i, l := range m.left {
		if l < p.Milli {
			continue
		}
		if s := score([]int{i}); s > best {
			best, at = s, i
		}
	}
	return best, []int{at}
}
