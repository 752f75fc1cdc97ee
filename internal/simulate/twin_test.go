package simulate

import (
	"math"
	"math/rand"
)

// twin is the whole simulation, slow and obvious but for scores of nodes that did not change.
type twin struct {
	machines []*machine
	cache    map[Pod][]seenAt
}

type seenAt struct {
	version int
	fits    bool
	score   int64
	at      []int
}

func newTwin(nodes []Node) *twin {
	t := &twin{cache: map[Pod][]seenAt{}}
	for _, n := range nodes {
		t.machines = append(t.machines, newMachine(n))
	}
	return t
}

func (t *twin) place(policy string, p Pod, mix []Typical, ties *rand.Rand, r *rand.Rand) bool {
	shape := p
	shape.Name = ""
	scores := t.cache[shape]
	if scores == nil {
		scores = make([]seenAt, len(t.machines))
		t.cache[shape] = scores
	}
	var best *machine
	var bestAt []int
	bestScore, equal, feasible := int64(math.MinInt64), 0, 0
	for i, m := range t.machines {
		if scores[i].version != m.version {
			scores[i] = seenAt{version: m.version, fits: m.fits(shape)}
			if scores[i].fits && policy != "Random" {
				scores[i].score, scores[i].at = ranks[policy](m, shape, mix)
			}
		}
		s := scores[i]
		if !s.fits {
			continue
		}
		feasible++
		if policy == "Random" {
			if r.Intn(feasible) == 0 {
				best, bestAt = m, nil
			}
			continue
		}
		if s.score == bestScore && ties != nil {
			if equal++; ties.Intn(equal) == 0 {
				best, bestAt = m, s.at
			}
		}
		if s.score > bestScore {
			best, bestAt, bestScore, equal = m, s.at, s.score, 1
		}
	}
	if best == nil {
		return false
	}
	if policy == "Random" {
		bestAt = best.idle(p.GPUs)
		if p.GPUs == 1 && p.Milli < 1000 {
			n := 0
			for i, l := range best.left {
				if l >= p.Milli {
					if n++; r.Intn(n) == 0 {
						bestAt = []int{i}
					}
				}
			}
		}
	}
	best.put(p, bestAt)
	return true
}

// run replays a workload; the curve is that of the published results.
func (t *twin) run(policy string, w Workload, mix []Typical, ties *rand.Rand) (*curve, int64, float64) {
	c := &curve{total: float64(1000 * gpus(w.Nodes))}
	var asked, used int64
	for _, p := range w.Pods {
		asked += p.Demand()
		if t.place(policy, p, mix, ties, w.Random) {
			used += p.Demand()
		}
		c.add(asked, used)
	}
	var fragments float64
	for _, m := range t.machines {
		fragments += m.fragments(mix)
	}
	return c, used, fragments
}
