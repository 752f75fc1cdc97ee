package simulate

import (
	"flag"
	"fmt"
	"io"
	"math"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"text/tabwriter"
)

var compare = flag.Int("compare", 0, "seeds of the published experiments to replay; hack/bench-packing.sh sets it")

// TestCompare replays the published experiments, all traces, through the operator's Place, and holds them against the published results.
func TestCompare(t *testing.T) {
	if *compare == 0 {
		t.Skip("a benchmark: hack/bench-packing.sh")
	}
	allocated := published(t, "analysis_allo_discrete.csv", "130")
	var traces []string
	for trace := range allocated {
		traces = append(traces, trace)
	}
	slices.Sort(traces)
	policies := []string{Own, "Random", "DotProd", "GpuClustering", "GpuPacking", "BestFit", "FGD", "FirstFit"}
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 1, ' ', 0)
	fmt.Fprintf(w, "| trace\t| Estiba, first\t| Estiba, random\t| %s\t|\n", strings.Join(policies[1:], "\t| "))
	fmt.Fprintf(w, "|%s\n", strings.Repeat("---|", len(policies)+2))
	for _, trace := range traces {
		r := replayAll(t, trace, policies)
		short := strings.TrimPrefix(trace, "openb_pod_list_")
		row := fmt.Sprintf("| %s\t| %.2f\t| %.2f", short, mean(r[Own]), mean(r["random"]))
		fgd := mean(allocated[trace]["FGD"])
		for _, ties := range []string{Own, "random"} {
			if mean(r[ties]) < fgd-0.2 {
				t.Errorf("%s: Estiba (%s) allocates %.2f %%, and published FGD %.2f", short, ties, mean(r[ties]), fgd)
			}
			if short == "default" && mean(r[ties]) < 95.3 {
				t.Errorf("%s: Estiba (%s) allocates %.2f %%, less than 95.3", short, ties, mean(r[ties]))
			}
		}
		for _, policy := range policies[1:] {
			row += fmt.Sprintf("\t| %.2f", mean(r[policy]))
			if of := allocated[trace][policy]; of != nil {
				row += fmt.Sprintf(" (%.2f)", mean(of))
				if d := math.Abs(mean(r[policy]) - mean(of)); d > 0.5 && (short == "default" || d > 3*math.Hypot(deviation(r[policy]), deviation(of))) {
					t.Errorf("%s: %s allocates %.2f %%, published %.2f", short, policy, mean(r[policy]), mean(of))
				}
			}
		}
		fmt.Fprintln(w, row+"\t|")
	}
	w.Flush()
}

// mean of the seeds.
func mean(of map[int64]float64) (sum float64) {
	for _, v := range of {
		sum += v / float64(len(of))
	}
	return sum
}

// deviation of the mean. The order of nodes is another than that of the published results, and moves a seed by half a point where
// a trace has many pods without GPU.
func deviation(of map[int64]float64) float64 {
	sum, m := 0.0, mean(of)
	for _, v := range of {
		sum += (v - m) * (v - m)
	}
	return math.Sqrt(sum / float64(max(1, len(of)-1)) / float64(len(of)))
}

// replayAll gives the allocation at 130 % by each policy and seed, and by the operator's with random ties.
func replayAll(t *testing.T, trace string, policies []string) map[string]map[int64]float64 {
	nodes, pods := openb(t, trace)
	mix := Mix(pods)
	all := map[string]map[int64]float64{}
	var mu sync.Mutex
	var wait sync.WaitGroup
	slots := make(chan struct{}, runtime.NumCPU())
	policies = append([]string{"random"}, policies...)
	for _, policy := range policies {
		all[policy] = map[int64]float64{}
	}
	for _, policy := range policies {
		for seed := int64(42); seed < 42+int64(*compare); seed++ {
			slots <- struct{}{}
			wait.Go(func() {
				defer func() { <-slots }()
				name, o := policy, Options{}
				if policy == "random" {
					name, o.RandomTies = Own, true
				}
				result, err := replay(t.Context(), Draw(nodes, pods, 1.3, seed), mix, name, o, seed, io.Discard)
				if err != nil {
					t.Error(err)
					return
				}
				points := result.curve.points()
				mu.Lock()
				defer mu.Unlock()
				all[policy][seed] = points[len(points)-1].Allocated
			})
		}
	}
	wait.Wait()
	return all
}
