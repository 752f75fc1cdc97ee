// Package simulate replays recorded workloads through the operator's own
// decisions, beside published policies. Start with Packing.
package simulate

import (
	"cmp"
	"fmt"
	"math"
	"math/rand"
	"slices"
)

// Workload is what a seed draws from a trace: nodes and pods in their order. Random goes on
// where the drawing ended, for policies that draw themselves.
type Workload struct {
	Nodes  []Node
	Pods   []Pod
	Random *rand.Rand
}

// Draw shuffles the pods, which are sorted by name, and then draws from them, with replacement,
// until the next one would lift their demand over demand x all GPUs; or drops some, where there
// are too many. Then it draws an order of the nodes.
//
// The source is math/rand's and the numbers are drawn in the order of the simulator that the
// published results are from (hkust-adsl/kubernetes-scheduler-simulator, FGD, USENIX ATC 2023),
// so that equal seeds give equal workloads.
func Draw(nodes []Node, pods []Pod, demand float64, seed int64) Workload {
	r := rand.New(rand.NewSource(seed))
	r.Int() // drawn there for a line of its log
	drawn := slices.Clone(pods)
	r.Shuffle(len(drawn), func(i, j int) { drawn[i], drawn[j] = drawn[j], drawn[i] })

	var asked int64
	for _, p := range drawn {
		asked += p.Demand()
	}
	target := demand * float64(1000*gpus(nodes))
	for float64(asked) > target {
		i := r.Intn(len(drawn))
		asked -= drawn[i].Demand()
		drawn = slices.Delete(drawn, i, i+1)
	}
	for n := 0; float64(asked) < target && len(drawn) < mostRows; n++ {
		p := pods[r.Intn(len(pods))]
		if float64(asked+p.Milli) > target { // of one of its GPUs, there as here
			break
		}
		p.Name = fmt.Sprintf("%s-tuned-%d", p.Name, n)
		asked += p.Demand()
		drawn = append(drawn, p)
	}

	sorted := slices.SortedFunc(slices.Values(nodes), func(a, b Node) int { return cmp.Compare(a.Name, b.Name) })
	ordered := make([]Node, len(nodes))
	for i, at := range r.Perm(len(nodes)) {
		ordered[at] = sorted[i]
	}
	return Workload{ordered, drawn, r}
}

func gpus(nodes []Node) (n int) {
	for _, node := range nodes {
		n += node.GPUs
	}
	return n
}

// Typical is a shape of pods with its share of all.
type Typical struct {
	Pod    // without name
	Weight float64
}

// Mix gives the most popular shapes that together are 95 % of the pods, those without GPU included.
func Mix(pods []Pod) []Typical {
	count := map[Pod]float64{}
	for _, p := range pods {
		p.Name, p.Memory = "", 0
		count[p]++
	}
	mix := make([]Typical, 0, len(count))
	for shape, n := range count {
		mix = append(mix, Typical{shape, n})
	}
	slices.SortFunc(mix, func(a, b Typical) int {
		return cmp.Or(cmp.Compare(b.Weight, a.Weight), cmp.Compare(b.CPU, a.CPU), cmp.Compare(b.Milli, a.Milli), cmp.Compare(b.GPUs, a.GPUs), cmp.Compare(b.Kinds, a.Kinds))
	})
	var covered float64
	n := 0
	for ; n < len(mix) && covered < 0.95*float64(len(pods)); n++ {
		covered += mix[n].Weight
	}
	mix = mix[:n]
	for i := range mix {
		mix[i].Weight /= covered
	}
	return mix
}

// Point of a curve: the share of all GPUs that is allocated when so much was asked for, both in %.
type Point struct {
	Demand    int     `json:"demand_percent"`
	Allocated float64 `json:"allocated_percent"`
}

// curve means the allocation over all pods that came while the demand, rounded, was the same.
type curve struct {
	total  float64 // 1/1000 GPUs
	sum, n []float64
}

func (c *curve) add(asked, used int64) {
	at := int(math.RoundToEven(float64(asked) / c.total * 100))
	for len(c.n) <= at {
		c.sum, c.n = append(c.sum, 0), append(c.n, 0)
	}
	c.sum[at] += float64(used) / c.total * 100
	c.n[at]++
}

// join adds what another run saw.
func (c *curve) join(o *curve) {
	for len(c.n) < len(o.n) {
		c.sum, c.n = append(c.sum, 0), append(c.n, 0)
	}
	for at, n := range o.n {
		if n > 0 { // each run counts once
			c.sum[at] += o.sum[at] / n
			c.n[at]++
		}
	}
}

func (c *curve) points() []Point {
	var points []Point
	for at, n := range c.n {
		switch {
		case n > 0 && at == 0: // the mean of what rounds to 0 would be more than was asked for
			points = append(points, Point{})
		case n > 0:
			points = append(points, Point{at, c.sum[at] / n})
		}
	}
	return points
}
