package simulate

import (
	"fmt"
	"math/rand"
	"slices"
	"strings"

	"github.com/estiba/estiba/internal/policy/packing"
)

// Own is the name of the operator's own decision.
const Own = "Estiba"

// pool is the only one: nodes differ by the kind of their GPUs.
const pool = "nodes"

// stage is a workload's nodes as the operator sees them, with the policy that decides.
// A node is a worker, a GPU a device of 1000 bytes, a pod a model.
type stage struct {
	fleet    *packing.Fleet
	machines []*machine
	byName   map[string]*machine
	names    []string         // of the GPUs of any node, in their order
	index    map[string]int   // of names
	spots    map[string]*spot // pod -> where it is
	judge    *judge           // nil: the operator's own
	ties     *rand.Rand       // decides among equals; nil: their order
	needs    map[int64]map[string]int64
	kinds    map[string][]string
}

// newStage makes empty nodes; the first is preferred among equals, unless ties are drawn, for each pod anew. Nodes without GPU are
// left out, as in the published experiments.
func newStage(nodes []Node, mix []Typical, policy string, ties *rand.Rand, r *rand.Rand) *stage {
	s := &stage{ties: ties, byName: map[string]*machine{}, index: map[string]int{}, spots: map[string]*spot{}, needs: map[int64]map[string]int64{}, kinds: map[string][]string{}}
	nodes = slices.DeleteFunc(slices.Clone(nodes), func(n Node) bool { return n.GPUs == 0 })
	var workers []packing.Worker
	var devices []packing.Device
	for i, n := range nodes {
		m := newMachine(n)
		workers = append(workers, packing.Worker{Name: n.Name, Pool: pool, Rank: i, Host: host(n.CPU, n.Memory)})
		s.machines, s.byName[n.Name] = append(s.machines, m), m
		for i := range n.GPUs {
			if i == len(s.names) {
				s.names = append(s.names, fmt.Sprintf("gpu-%04d", i))
				s.index[s.names[i]] = i
			}
			devices = append(devices, packing.Device{Pool: pool, Worker: n.Name, Name: s.names[i], Kind: n.Kind, Capacity: 1000, Extent: 1})
		}
	}
	var shapes []packing.Shape
	for _, t := range mix {
		shapes = append(shapes, packing.Shape{Need: s.need(t.Milli), Host: host(t.CPU, 0), Devices: t.Whole(), Kinds: s.kind(t.Kinds), Weight: t.Weight})
	}
	s.fleet = packing.New(workers, devices, shapes)
	if policy != Own {
		s.judge = &judge{stage: s, mix: mix, rank: ranks[policy], ranked: map[Pod][]ranked{}, order: make([]float64, len(s.machines)), ties: ties}
		if policy == "Random" {
			s.judge.ties = r
		}
		for i := range s.judge.order {
			s.judge.order[i] = 0.5 * (1 - float64(i)/float64(len(s.machines)))
		}
	}
	return s
}

func host(cpu, mib int64) packing.Host { return packing.Host{CPU: cpu, Memory: mib << 20} }

func (s *stage) need(milli int64) map[string]int64 {
	if s.needs[milli] == nil {
		s.needs[milli] = map[string]int64{pool: milli}
	}
	return s.needs[milli]
}

// kind splits a list of kinds; nil for any.
func (s *stage) kind(kinds string) []string {
	list, known := s.kinds[kinds]
	if !known {
		list = slices.DeleteFunc(strings.Split(kinds, "|"), func(k string) bool { return k == "" })
		s.kinds[kinds] = list
	}
	return list
}

func (s *stage) want(p Pod) packing.Want {
	return packing.Want{Model: p.Name, Need: s.need(p.Milli), Host: host(p.CPU, p.Memory), Devices: p.Whole(), Kinds: s.kind(p.Kinds)}
}

// place decides by the policy, and reports whether there was room.
func (s *stage) place(p Pod) bool {
	w := s.want(p)
	if s.ties != nil {
		w.Draw = s.ties.Uint64() | 1
	}
	var score packing.Score
	if s.judge != nil {
		score = s.judge.start(p)
	}
	h, _, _ := s.fleet.Put(w, score) // Place would also say why not
	if h.Worker == "" {
		return false
	}
	s.put(p, h)
	return true
}

// makeRoom moves at most k pods so that p fits, and says how many it moved and whether p is placed.
func (s *stage) makeRoom(p Pod, k int) (int, bool) {
	moves, h, _, ok := s.fleet.MakeRoom(s.want(p), k)
	if ok {
		s.moved(moves)
		s.put(p, h)
	}
	return len(moves), ok
}

// moved follows moves that the fleet made.
func (s *stage) moved(moves []packing.Move) {
	for _, m := range moves {
		p := s.spots[m.Home.Model].pod
		s.byName[m.Home.Worker].take(p, s.at(m.Home))
		s.put(p, m.To)
	}
}

// spot is a pod with its home.
type spot struct {
	pod  Pod
	home packing.Home
}

func (s *stage) put(p Pod, h packing.Home) {
	s.byName[h.Worker].put(p, s.at(h))
	s.spots[p.Name] = &spot{p, h}
}

// remove lets a pod go.
func (s *stage) remove(name string) {
	at := s.spots[name]
	s.fleet.Undo(at.home)
	s.byName[at.home.Worker].take(at.pod, s.at(at.home))
	delete(s.spots, name)
}

func (s *stage) at(h packing.Home) (at []int) {
	for _, name := range h.Devices {
		at = append(at, s.index[name])
	}
	return at
}

// judge gives a published policy's scores to Place. The score of a machine for a shape of pods is kept until the machine changes.
type judge struct {
	*stage
	mix    []Typical
	rank   rank // nil: Random
	ranked map[Pod][]ranked
	order  []float64  // of machines, 0.5 down to 0: the first among equals
	ties   *rand.Rand // instead of order, drawn for each pod anew; nil: order decides
	round  int        // of pods
}

type ranked struct {
	version int
	score   float64
	device  int // the GPU that the policy takes; -1: whole ones or none
}

// start makes the score for one pod. It is the policy's whole number, less than 0.5 for what decides among equal
// machines, and 0.5 more for the policy's own choice of a GPU within the machine.
func (j *judge) start(p Pod) packing.Score {
	shape := p
	shape.Name = ""
	cache := j.ranked[shape]
	if cache == nil {
		cache = make([]ranked, len(j.machines))
		j.ranked[shape] = cache
	}
	if j.ties != nil {
		for i := range j.order {
			j.order[i] = 0.5 * j.ties.Float64()
		}
	}
	j.round++
	return func(at packing.View, _ *packing.Want) float64 {
		i := at.Worker().Rank
		m, r := j.machines[i], &cache[i]
		switch {
		case j.rank == nil && r.version != j.round:
			*r = ranked{j.round, 0, j.draw(m, shape)}
		case j.rank == nil:
		case r.version != m.version:
			score, gpus := j.rank(m, shape, j.mix)
			*r = ranked{m.version, float64(score), -1}
			if shape.Milli%1000 > 0 {
				r.device = gpus[0]
			}
		}
		score := r.score + j.order[i]
		if r.device >= 0 && at.Chosen(r.device) {
			score += 0.5
		}
		return score
	}
}

// draw takes any GPU on which a share fits.
func (j *judge) draw(m *machine, p Pod) int {
	device, n := -1, 0
	for i, l := range m.left {
		if p.Milli%1000 > 0 && l >= p.Milli {
			if n++; j.ties.Intn(n) == 0 {
				device = i
			}
		}
	}
	return device
}
