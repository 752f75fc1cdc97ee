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
		row := fmt.Sprintf("| %s\t| %.2f\t| %.2f", short, r[Own], r["random"])
		fgd := mean(allocated[trace]["FGD"])
		for _, ties := range []string{Own, "random"} {
			if r[ties] < fgd-0.2 {
				t.Errorf("%s: Estiba (%s) allocates %.2f %%, and published FGD %.2f", short, ties, r[ties], fgd)
			}
			if short == "default" && r[ties] < 95.3 {
				t.Errorf("%s: Estiba (%s) allocates %.2f %%, less than 95.3", short, ties, r[ties])
			}
		}
		for _, policy := range policies[1:] {
			row += fmt.Sprintf("\t| %.2f", r[policy])
			if of := allocated[trace][policy]; of != nil {
				row += fmt.Sprintf(" (%.2f)", mean(of))
				if math.Abs(r[policy]-mean(of)) > 0.5 {
					t.Errorf("%s: %s allocates %.2f %%, published %.2f", short, policy, r[policy], mean(of))
				}
			}
		}
		fmt.Fprintln(w, row+"\t|")
	}
	w.Flush()
}

// mean of the published seeds.
func mean(of map[int64]float64) (sum float64) {
	for _, v := range of {
		sum += v / float64(len(of))
	}
	return sum
}

// replayAll gives the mean allocation at 130 % of each policy, and of the operator's with random ties.
func replayAll(t *testing.T, trace string, policies []string) map[string]float64 {
	nodes, pods := openb(t, trace)
	mix := Mix(pods)
	sums := map[string]float64{}
	var mu sync.Mutex
	var wait sync.WaitGroup
	slots := make(chan struct{}, runtime.NumCPU())
	for _, policy := range append([]string{"random"}, policies...) {
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
				sums[policy] += points[len(points)-1].Allocated / float64(*compare)
			})
		}
	}
	wait.Wait()
	return sums
}
