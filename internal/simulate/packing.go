package simulate

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand"
	"slices"
	"text/tabwriter"
	"time"
)

// Options of Packing.
type Options struct {
	Nodes, Pods string   // CSV files
	Policies    []string // Own or of Baselines
	Seeds       []int64
	Demand      float64 // GPUs asked for, as a multiple of those that there are
	RandomTies  bool
	Moves       int // at most so many for each pod that does not fit
	Plot        string
	JSON        bool
}

// Report is what a policy did; of several seeds it is their mean.
type Report struct {
	Policy        string  `json:"policy"`
	Seeds         []int64 `json:"seeds"`
	Demand        float64 `json:"demand_percent"`
	Ties          string  `json:"ties"`
	Allocated     float64 `json:"allocated_percent"`     // of all GPUs, at the end
	Fragmentation float64 `json:"fragmentation_percent"` // expected share of all GPUs that is free and of no use to the mix
	Placed        float64 `json:"placed"`
	Failed        float64 `json:"failed"`
	Moves         float64 `json:"moves"`
	P50           float64 `json:"decision_p50_us"` // of all seeds
	P99           float64 `json:"decision_p99_us"`
	MoveP99       float64 `json:"moves_p99_us,omitempty"` // to find moves
	Least         float64 `json:"allocated_least"`
	Most          float64 `json:"allocated_most"`
	Curve         []Point `json:"curve"`

	runs []outcome
}

// outcome of one seed.
type outcome struct {
	allocated, fragmentation float64
	placed, failed, moves    int
	curve                    *curve
	decisions, finding       []time.Duration
}

// Packing replays the pods of a trace on its nodes by each policy and seed, and writes a table or JSON to stdout, progress
// to stderr.
func Packing(ctx context.Context, stdout, stderr io.Writer, o Options) error {
	return ended(ctx, runPacking(ctx, stdout, stderr, o))
}

func runPacking(ctx context.Context, stdout, stderr io.Writer, o Options) error {
	nodes, err := ReadNodes(ctx, o.Nodes)
	if err != nil {
		return err
	}
	pods, err := ReadPods(ctx, o.Pods)
	if err != nil {
		return err
	}
	if err := someFit(nodes, pods); err != nil {
		return fmt.Errorf("%s on %s: %w", o.Pods, o.Nodes, err)
	}
	plot, err := beginPlot(o.Plot, o.Nodes, o.Pods)
	if err != nil {
		return err
	}
	if plot != nil {
		defer plot.Discard()
	}
	mix := Mix(pods)
	var reports []Report
	for _, policy := range o.Policies {
		r := Report{Policy: policy, Seeds: o.Seeds, Demand: 100 * o.Demand, Ties: "first"}
		if o.RandomTies {
			r.Ties = "random"
		}
		for i, seed := range o.Seeds {
			result, err := replay(ctx, Draw(nodes, pods, o.Demand, seed), mix, policy, o, seed, stderr)
			if err != nil {
				return err
			}
			r.runs = append(r.runs, result)
			fmt.Fprintf(stderr, "%s, seed %d (%d of %d): %.2f %% allocated, %d moves\n", policy, seed, i+1, len(o.Seeds), result.allocated, result.moves)
		}
		r.sum()
		reports = append(reports, r)
	}
	if err := save(plot, allocationChart(reports)); err != nil {
		return err
	}
	return write(stdout, reports, o.JSON)
}

// replay lets a policy place a workload, pod by pod.
func replay(ctx context.Context, w Workload, mix []Typical, policy string, o Options, seed int64, stderr io.Writer) (outcome, error) {
	var ties *rand.Rand
	if o.RandomTies {
		ties = rand.New(rand.NewSource(seed))
	}
	s := newStage(w.Nodes, mix, policy, ties, w.Random)
	total := float64(1000 * gpus(w.Nodes))
	result := outcome{curve: &curve{total: total}}
	var asked, used int64
	now := progress{w: stderr}
	for i, p := range w.Pods {
		if err := ctx.Err(); err != nil {
			return outcome{}, err
		}
		now.tell("%s, seed %d: %d of %d pods", policy, seed, i, len(w.Pods))
		asked += p.Demand()
		start := time.Now()
		placed := s.place(p)
		result.decisions = append(result.decisions, time.Since(start))
		if !placed && o.Moves > 0 {
			start = time.Now()
			n, ok := s.makeRoom(p, o.Moves)
			result.finding = append(result.finding, time.Since(start))
			placed, result.moves = ok, result.moves+n
		}
		if placed {
			used += p.Demand()
			result.placed++
		} else {
			result.failed++
		}
		result.curve.add(asked, used)
	}
	result.allocated = float64(used) / total * 100
	result.fragmentation = s.fragments(mix) / total * 100
	return result, nil
}

// fragments of all machines, in 1/1000 GPUs.
func (s *stage) fragments(mix []Typical) (sum float64) {
	for _, m := range s.machines {
		sum += m.fragments(mix)
	}
	return sum
}

// sum makes one report of all seeds.
func (r *Report) sum() {
	var decisions, finding []time.Duration
	n := float64(len(r.runs))
	r.Least, r.Most = r.runs[0].allocated, r.runs[0].allocated
	all := &curve{total: r.runs[0].curve.total}
	for _, o := range r.runs {
		r.Allocated += o.allocated / n
		r.Fragmentation += o.fragmentation / n
		r.Placed += float64(o.placed) / n
		r.Failed += float64(o.failed) / n
		r.Moves += float64(o.moves) / n
		r.Least, r.Most = min(r.Least, o.allocated), max(r.Most, o.allocated)
		decisions, finding = append(decisions, o.decisions...), append(finding, o.finding...)
		all.join(o.curve)
	}
	r.Curve = all.points()
	r.P50, r.P99 = percentile(decisions, 50), percentile(decisions, 99)
	r.MoveP99 = percentile(finding, 99)
}

// percentile in microseconds; 0 of nothing.
func percentile(d []time.Duration, p int) float64 {
	if len(d) == 0 {
		return 0
	}
	slices.Sort(d)
	return float64(d[min(len(d)*p/100, len(d)-1)].Nanoseconds()) / 1e3
}

// write gives one report as one object, and several as a list of them.
func write(w io.Writer, reports []Report, asJSON bool) error {
	if asJSON {
		var v any = reports[0]
		if len(reports) > 1 {
			v = map[string]any{"policies": reports}
		}
		return json.NewEncoder(w).Encode(v)
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "POLICY\tALLOCATED %\tLEAST..MOST\tFRAGMENTATION %\tPLACED\tFAILED\tMOVES\tDECISION P50, P99 µs")
	for _, r := range reports {
		fmt.Fprintf(t, "%s\t%.2f\t%.2f..%.2f\t%.2f\t%.0f\t%.0f\t%.0f\t%.1f, %.1f\n", r.Policy, r.Allocated, r.Least, r.Most, r.Fragmentation, r.Placed, r.Failed, r.Moves, r.P50, r.P99)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintf(w, "Demand %g %% of the GPUs, ties %s, %s.\n", reports[0].Demand, reports[0].Ties, count(len(reports[0].Seeds), "seed"))
	return err
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// allocationChart shows where policies part: above the demand that all of them serve.
func allocationChart(reports []Report) chart {
	c := chart{title: "GPUs allocated over GPUs asked for", x: "asked for, % of all GPUs", y: "allocated, % of all GPUs"}
	for _, r := range reports {
		l := line{name: r.Policy}
		for _, p := range r.Curve {
			l.points = append(l.points, point{float64(p.Demand), p.Allocated})
		}
		c.lines = append(c.lines, l)
	}
	slices.SortStableFunc(c.lines, func(a, b line) int { return cmp.Compare(b.last(), a.last()) })
	from := 0.0
	for _, l := range c.lines {
		for _, p := range l.points {
			if p.y > p.x-1 && p.x > from {
				from = p.x
			}
		}
	}
	from = max(0, 10*float64(int(from)/10)-20)
	for i := range c.lines {
		c.lines[i].points = slices.DeleteFunc(c.lines[i].points, func(p point) bool { return p.x < from })
	}
	return c
}
