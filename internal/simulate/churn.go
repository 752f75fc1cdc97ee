package simulate

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"math/rand"
	"slices"
	"text/tabwriter"
	"time"
)

// Instance is a pod with the time that it is wanted, in seconds.
type Instance struct {
	Pod
	Start, End float64 // End is infinite where it stays
}

// ReadInstances reads the columns of Alibaba's cluster-trace-gpu-v2025 (instance_sn, …) or of cluster-trace-gpu-v2023 (name, …),
// by what the first line has. Of the former, instances without a GPU are left out: they have nodes of their own.
func ReadInstances(ctx context.Context, path string) ([]Instance, error) {
	t, err := open(ctx, path, "name?", "cpu_milli?", "memory_mib?", "num_gpu?", "gpu_milli?", "gpu_spec?",
		"instance_sn?", "cpu_request?", "memory_request?", "gpu_request?", "creation_time", "deletion_time")
	if err != nil {
		return nil, err
	}
	read := t.pod
	if t.at[6] >= 0 {
		if err := t.need(7, 8, 9); err != nil {
			return nil, err
		}
		read = t.instance
	} else if err := t.need(0, 1, 2, 3, 4); err != nil {
		return nil, err
	}
	var all []Instance
	seen := map[string]bool{}
	for t.next() {
		i := Instance{Pod: read(), Start: t.number(10, 1e12, 0), End: t.number(11, 1e12, math.Inf(1))}
		if i.End < i.Start {
			t.fail(11, fmt.Sprintf("it is before the creation at %g", i.Start))
		}
		if seen[i.Name] {
			t.twice(i.Name)
		}
		seen[i.Name] = true
		if t.at[6] < 0 || i.GPUs > 0 {
			all = append(all, i)
		}
	}
	t.nothing("instances")
	if t.err == nil && !slices.ContainsFunc(all, func(i Instance) bool { return i.GPUs > 0 }) {
		t.err = fmt.Errorf("read %s: nothing in it asks for a GPU", path)
	}
	slices.SortFunc(all, func(a, b Instance) int { return cmp.Compare(a.Name, b.Name) })
	return all, t.err
}

// instance reads a row of cluster-trace-gpu-v2025: cores, GiB, whole GPUs.
func (t *table) instance() Pod {
	p := Pod{Name: t.name(6), CPU: int64(1000 * t.number(7, 1e6, 0)), Memory: int64(1024 * t.number(8, 1e6, 0)), GPUs: int(t.whole(9, mostEach))}
	if p.GPUs > 0 {
		p.Milli = 1000
	}
	return p
}

// ChurnOptions are those of Churn.
type ChurnOptions struct {
	Nodes, Instances string
	Policies         []string
	Seed             int64
	GPUs             int // take so many nodes as have this many; 0: all
	MovesPerHour     int // by the operator's own policy, which is also shown without
	Plot             string
	JSON             bool
}

// ChurnReport is what a policy did while instances came and went.
type ChurnReport struct {
	Policy        string  `json:"policy"`
	MovesPerHour  int     `json:"moves_per_hour"`
	Seed          int64   `json:"seed"`
	GPUs          int     `json:"gpus"`
	Instances     int     `json:"instances"`
	Never         int     `json:"never_placed"`
	Waited        int     `json:"waited"` // before they were placed
	Asked         float64 `json:"gpu_hours_asked"`
	Unplaced      float64 `json:"gpu_hours_unplaced"`
	Served        float64 `json:"served_percent"` // of the hours asked for
	Moves         int     `json:"moves"`
	Fragmentation float64 `json:"fragmentation_percent"` // mean over time
	InUse         float64 `json:"gpus_in_use_mean"`      // of nodes that hold anything
	Peak          int     `json:"gpus_in_use_peak"`
	P50           float64 `json:"decision_p50_us"`
	P99           float64 `json:"decision_p99_us"`
	Hours         []Hour  `json:"hours"`
}

// Hour is a sample at its end.
type Hour struct {
	Hour          int     `json:"hour"`
	Asked         float64 `json:"gpus_asked"`
	Placed        float64 `json:"gpus_placed"`
	InUse         int     `json:"gpus_in_use"`
	Fragmentation float64 `json:"fragmentation_percent"`
	Moves         int     `json:"moves"`
}

// Churn replays instances that come and go, by each policy, and writes a table or JSON to stdout, progress to stderr.
func Churn(ctx context.Context, stdout, stderr io.Writer, o ChurnOptions) error {
	return ended(ctx, runChurn(ctx, stdout, stderr, o))
}

func runChurn(ctx context.Context, stdout, stderr io.Writer, o ChurnOptions) error {
	nodes, err := ReadNodes(ctx, o.Nodes)
	if err != nil {
		return err
	}
	instances, err := ReadInstances(ctx, o.Instances)
	if err != nil {
		return err
	}
	if all := gpus(nodes); o.GPUs > all {
		return fmt.Errorf("read %s: it has %d GPUs, and --gpus asks for %d", o.Nodes, all, o.GPUs)
	}
	pods := make([]Pod, len(instances))
	for i := range instances {
		pods[i] = instances[i].Pod
	}
	if err := someFit(nodes, pods); err != nil {
		return fmt.Errorf("%s on %s: %w", o.Instances, o.Nodes, err)
	}
	plot, err := beginPlot(o.Plot, o.Nodes, o.Instances)
	if err != nil {
		return err
	}
	if plot != nil {
		defer plot.Discard()
	}
	var reports []ChurnReport
	for _, policy := range o.Policies {
		budgets := []int{0}
		if policy == Own && o.MovesPerHour > 0 {
			budgets = []int{o.MovesPerHour, 0}
		}
		for _, budget := range budgets {
			h := newHarbour(nodes, instances, policy, budget, o)
			if len(reports) == 0 && o.GPUs > 0 && h.GPUs > o.GPUs {
				fmt.Fprintf(stderr, "nodes are taken whole: %d have %d GPUs\n", len(h.machines), h.GPUs)
			}
			r, err := h.run(ctx, stderr)
			if err != nil {
				return err
			}
			fmt.Fprintf(stderr, "%s: %.3f %% of %.0f GPU hours served, %d moves\n", r.title(), r.Served, r.Asked, r.Moves)
			reports = append(reports, r)
		}
	}
	if err := save(plot, churnCharts(reports)...); err != nil {
		return err
	}
	return writeChurn(stdout, reports, o.JSON)
}

func (r ChurnReport) title() string {
	if r.MovesPerHour > 0 {
		return fmt.Sprintf("%s, %d moves/h", r.Policy, r.MovesPerHour)
	}
	return r.Policy
}

// harbour is a stage over time.
type harbour struct {
	*stage
	ChurnReport
	mix       []Typical
	events    []event
	waiting   []*Instance // in the order of their coming
	homes     map[string]bool
	spent     []float64 // times of moves in the last hour
	decisions []time.Duration
	asked     int64 // 1/1000 GPUs, now
	placed    int64
	lost      []float64 // fragments of each machine
	lostAt    []int     // its version then
}

type event struct {
	at      float64 // seconds
	arrives bool
	*Instance
}

// minGain in 1/1000 GPUs: a move that makes less of use is not worth a load.
const minGain = 100

func newHarbour(nodes []Node, instances []Instance, policy string, budget int, o ChurnOptions) *harbour {
	r := rand.New(rand.NewSource(o.Seed))
	var pods []Pod
	for _, i := range instances {
		pods = append(pods, i.Pod)
	}
	nodes = slices.DeleteFunc(slices.Clone(nodes), func(n Node) bool { return n.GPUs == 0 })
	r.Shuffle(len(nodes), func(i, j int) { nodes[i], nodes[j] = nodes[j], nodes[i] })
	for n, sum := 0, 0; o.GPUs > 0 && n < len(nodes); n++ {
		if sum += nodes[n].GPUs; sum >= o.GPUs {
			nodes = nodes[:n+1]
		}
	}
	h := &harbour{mix: Mix(pods), homes: map[string]bool{}}
	h.stage = newStage(nodes, h.mix, policy, nil, r)
	h.lost, h.lostAt = make([]float64, len(h.machines)), make([]int, len(h.machines))
	h.ChurnReport = ChurnReport{Policy: policy, MovesPerHour: budget, Seed: o.Seed, GPUs: gpus(nodes), Instances: len(instances)}
	for _, i := range r.Perm(len(instances)) { // who comes at the same time comes in the seed's order
		e := &instances[i]
		h.events = append(h.events, event{e.Start, true, e})
		if !math.IsInf(e.End, 1) {
			h.events = append(h.events, event{e.End, false, e})
		}
	}
	slices.SortStableFunc(h.events, func(a, b event) int { return cmp.Compare(a.at, b.at) })
	return h
}

// run goes through the events; each hour there may be moves, and a sample is taken. What is still there at the last event counts up to it.
func (h *harbour) run(ctx context.Context, stderr io.Writer) (ChurnReport, error) {
	now, hour := 0.0, 0
	state := progress{w: stderr}
	var served, inUse, fragmentation float64 // times seconds
	until := func(at float64) {
		d := at - now
		h.Asked += float64(h.asked) * d
		served += float64(h.placed) * d
		inUse += float64(h.used()) * d
		now = at
	}
	for i := 0; i < len(h.events); {
		if err := ctx.Err(); err != nil {
			return ChurnReport{}, err
		}
		state.tell("%s: hour %d, %d of %d events, %d wait, %d moves", h.title(), hour, i, len(h.events), len(h.waiting), h.Moves)
		at := h.events[i].at
		if next := float64(hour+1) * 3600; next <= at {
			until(next)
			hour++
			h.tidy(now)
			f := h.fragmentation()
			fragmentation += f
			h.Hours = append(h.Hours, Hour{hour, float64(h.asked) / 1000, float64(h.placed) / 1000, h.used(), f, h.Moves})
			continue
		}
		until(at)
		first, left := i, false
		for ; i < len(h.events) && h.events[i].at == at; i++ {
			left = h.events[i].ends(h) || left
		}
		if left {
			h.retry(now, 0)
		}
		for _, e := range h.events[first:i] {
			if e.arrives && e.Start < e.End {
				h.arrive(now, e.Instance)
			}
		}
		h.Peak = max(h.Peak, h.used())
	}
	h.Never += len(h.waiting)
	h.Unplaced = (h.Asked - served) / 3.6e6
	h.Served = 100 * served / max(h.Asked, 1)
	h.Asked /= 3.6e6
	h.InUse = math.Round(1000*inUse/max(now, 1)) / 1000
	h.Fragmentation = fragmentation / max(float64(len(h.Hours)), 1)
	h.P50, h.P99 = percentile(h.decisions, 50), percentile(h.decisions, 99)
	return h.ChurnReport, nil
}

func (h *harbour) arrive(now float64, i *Instance) {
	h.asked += i.Demand()
	if !h.settle(i) && !h.shift(now, i) {
		h.waiting = append(h.waiting, i)
	}
}

// settle places an instance without moving others.
func (h *harbour) settle(i *Instance) bool {
	start := time.Now()
	ok := h.place(i.Pod)
	h.decisions = append(h.decisions, time.Since(start))
	if ok {
		h.placed += i.Demand()
		h.homes[i.Name] = true
	}
	return ok
}

// shift places an instance by one move of another, within the budget.
func (h *harbour) shift(now float64, i *Instance) bool {
	if h.budget(now) == 0 {
		return false
	}
	n, ok := h.makeRoom(i.Pod, 1)
	h.spend(now, n)
	if ok {
		h.placed += i.Demand()
		h.homes[i.Name] = true
	}
	return ok
}

// budget is how many moves the hour before now leaves.
func (h *harbour) budget(now float64) int {
	h.spent = slices.DeleteFunc(h.spent, func(at float64) bool { return at <= now-3600 })
	return max(0, h.MovesPerHour-len(h.spent))
}

func (h *harbour) spend(now float64, n int) {
	for range n {
		h.spent = append(h.spent, now)
	}
	h.Moves += n
}

// ends takes an instance away whose time is over, and reports whether that made room.
func (e event) ends(h *harbour) bool {
	switch {
	case e.arrives || e.Start == e.End:
		return false
	case h.homes[e.Name]:
		h.leave(e.Instance)
		return true
	}
	h.giveUp(e.Instance)
	return false
}

func (h *harbour) leave(i *Instance) {
	h.remove(i.Name)
	delete(h.homes, i.Name)
	h.asked -= i.Demand()
	h.placed -= i.Demand()
}

// giveUp takes an instance off the queue whose time is over.
func (h *harbour) giveUp(i *Instance) {
	h.asked -= i.Demand()
	h.waiting = slices.DeleteFunc(h.waiting, func(w *Instance) bool { return w == i })
	h.Never++
}

// retry places those that wait, the longest first, and moves others for them if it may. Of equal shapes one is tried until it fits.
func (h *harbour) retry(now float64, moves int) {
	full := map[Pod]bool{}
	h.waiting = slices.DeleteFunc(h.waiting, func(i *Instance) bool {
		shape := i.Pod
		shape.Name = ""
		if full[shape] {
			return false
		}
		if h.settle(i) || moves > 0 && h.shift(now, i) {
			h.Waited++
			return true
		}
		full[shape] = true
		return false
	})
}

// tidy spends what is left of the budget: for those that wait and against fragmentation, or, where nobody waits, to empty the nodes
// with least on them. Both at once would undo one another.
func (h *harbour) tidy(now float64) {
	if h.MovesPerHour == 0 {
		return
	}
	h.retry(now, h.budget(now))
	if len(h.waiting) > 0 {
		moves := h.fleet.Defragment(h.budget(now), minGain)
		h.moved(moves)
		h.spend(now, len(moves))
		return
	}
	for _, m := range h.emptiest() {
		moves, ok := h.fleet.Empty(m.Name, h.budget(now))
		if !ok {
			break
		}
		h.moved(moves)
		h.spend(now, len(moves))
	}
}

// emptiest are the machines in use, those with least on them first.
func (h *harbour) emptiest() []*machine {
	var in []*machine
	for _, m := range h.machines {
		if m.inUse() {
			in = append(in, m)
		}
	}
	slices.SortStableFunc(in, func(a, b *machine) int {
		return cmp.Compare(int64(1000*a.GPUs)-a.total(), int64(1000*b.GPUs)-b.total())
	})
	return in
}

func (m *machine) inUse() bool { return m.cpu < m.CPU || m.total() < int64(1000*m.GPUs) }

// used counts the GPUs of machines in use.
func (h *harbour) used() (n int) {
	for _, m := range h.machines {
		if m.inUse() {
			n += m.GPUs
		}
	}
	return n
}

// fragmentation in % of all GPUs.
func (h *harbour) fragmentation() float64 {
	sum := 0.0
	for i, m := range h.machines {
		if h.lostAt[i] != m.version {
			h.lost[i], h.lostAt[i] = m.fragments(h.mix), m.version
		}
		sum += h.lost[i]
	}
	return sum / float64(10*h.GPUs)
}

func writeChurn(w io.Writer, reports []ChurnReport, asJSON bool) error {
	if asJSON {
		var v any = reports[0]
		if len(reports) > 1 {
			v = map[string]any{"policies": reports}
		}
		return json.NewEncoder(w).Encode(v)
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "POLICY\tSERVED %\tGPU HOURS UNPLACED\tNEVER PLACED\tWAITED\tMOVES\tGPUS IN USE, MEAN\tPEAK\tFRAGMENTATION %\tDECISION P50, P99 µs")
	for _, r := range reports {
		fmt.Fprintf(t, "%s\t%.3f\t%.1f\t%d\t%d\t%d\t%.1f\t%d\t%.2f\t%.1f, %.1f\n",
			r.title(), r.Served, r.Unplaced, r.Never, r.Waited, r.Moves, r.InUse, r.Peak, r.Fragmentation, r.P50, r.P99)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	r := reports[0]
	_, err := fmt.Fprintf(w, "%d instances, %.0f GPU hours asked for (%.1f GPUs in the mean) of %d GPUs, seed %d. In use are the GPUs of nodes that hold anything.\n",
		r.Instances, r.Asked, r.Asked/max(float64(len(r.Hours)), 1), r.GPUs, r.Seed)
	return err
}

func churnCharts(reports []ChurnReport) []chart {
	use := chart{title: "GPUs of nodes in use", x: "days", y: "GPUs"}
	frag := chart{title: "Free GPUs that are of no use to the mix", x: "days", y: "% of all GPUs"}
	placed := chart{title: "GPUs asked for and not placed", x: "days", y: "GPUs"}
	asked := line{name: "asked for"}
	for i, r := range reports {
		u, f, p := line{name: r.title()}, line{name: r.title()}, line{name: r.title()}
		for _, h := range r.Hours {
			day := float64(h.Hour) / 24
			u.points = append(u.points, point{day, float64(h.InUse)})
			f.points = append(f.points, point{day, h.Fragmentation})
			p.points = append(p.points, point{day, h.Asked - h.Placed})
			if i == 0 {
				asked.points = append(asked.points, point{day, h.Asked})
			}
		}
		use.lines, frag.lines, placed.lines = append(use.lines, u), append(frag.lines, f), append(placed.lines, p)
	}
	use.lines = append(use.lines, asked)
	return []chart{use, placed, frag}
}
