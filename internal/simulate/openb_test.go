package simulate

import (
	"encoding/csv"
	"io"
	"math"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/estiba/estiba/internal/fixture"
)

// published reads a table of published results: trace, policy, seed -> column.
func published(t testing.TB, name, column string) map[string]map[string]map[int64]float64 {
	t.Helper()
	f, err := os.Open(fixture.Shared(t, "data/openb/published-results/"+name))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	rows, err := csv.NewReader(f).ReadAll()
	if err != nil {
		t.Fatal(err)
	}
	at := 0
	for i, c := range rows[0] {
		if c == column {
			at = i
		}
	}
	all := map[string]map[string]map[int64]float64{}
	for _, row := range rows[1:] {
		_, policy, _ := strings.Cut(row[1], "-")
		seed, _ := strconv.ParseInt(row[3], 10, 64)
		value, err := strconv.ParseFloat(row[at], 64)
		if err != nil {
			t.Fatal(err)
		}
		if all[row[0]] == nil {
			all[row[0]] = map[string]map[int64]float64{}
		}
		if all[row[0]][policy] == nil {
			all[row[0]][policy] = map[int64]float64{}
		}
		all[row[0]][policy][seed] = value
	}
	return all
}

func openb(t testing.TB, trace string) ([]Node, []Pod) {
	t.Helper()
	nodes, err := ReadNodes(t.Context(), fixture.Shared(t, "data/openb/csv/openb_node_list_gpu_node.csv"))
	if err != nil {
		t.Fatal(err)
	}
	pods, err := ReadPods(t.Context(), fixture.Shared(t, "data/openb/csv/"+trace+".csv"))
	if err != nil {
		t.Fatal(err)
	}
	return nodes, pods
}

// TestPublished: the twin, which only knows the published definitions, gives the published means. Pods are those of
// the published seeds; the order of nodes is not, since other parts of that program drew numbers too.
func TestPublished(t *testing.T) {
	const trace, seeds = "openb_pod_list_default", 3
	nodes, pods := openb(t, trace)
	mix := Mix(pods)
	allocated, fragments := published(t, "analysis_allo_discrete.csv", "130")[trace], published(t, "analysis_frag_discrete.csv", "130")[trace]
	for policy := range allocated {
		var a, f, wantA, wantF float64
		for seed := int64(42); seed < 42+seeds; seed++ {
			w := Draw(nodes, pods, 1.3, seed)
			c, _, lost := newTwin(w.Nodes).run(policy, w, mix, nil)
			points := c.points()
			a += points[len(points)-1].Allocated / seeds
			f += lost / c.total * 100 / seeds
			wantA += allocated[policy][seed] / seeds
			wantF += fragments[policy][seed] / seeds
		}
		t.Logf("%-14s allocated %.2f %%, published %.2f; fragmentation %.2f %%, published %.2f", policy, a, wantA, f, wantF)
		if math.Abs(a-wantA) > 0.5 || math.Abs(f-wantF) > 0.5 {
			t.Errorf("%s: allocated %.2f %%, published %.2f; fragmentation %.2f %%, published %.2f", policy, a, wantA, f, wantF)
		}
	}
}

// TestFirstFit: over a fixed order it allocates 94.5 %.
func TestFirstFit(t *testing.T) {
	nodes, pods := openb(t, "openb_pod_list_default")
	sum := 0.0
	for seed := int64(42); seed < 45; seed++ {
		w := Draw(nodes, pods, 1.3, seed)
		c, used, _ := newTwin(w.Nodes).run("FirstFit", w, nil, nil)
		sum += float64(used) / c.total * 100 / 3
	}
	if math.Abs(sum-94.5) > 0.5 {
		t.Errorf("%.2f %% allocated, want 94.5", sum)
	}
}

// TestStageIsTwin: published policies decide through the operator's Place what they decide in the twin.
func TestStageIsTwin(t *testing.T) {
	nodes, pods := openb(t, "openb_pod_list_gpuspec33")
	mix := Mix(pods)
	nodes = nodes[len(nodes)-100:]
	pods = pods[:1000]
	for policy := range ranks {
		for seed := range int64(3) {
			w := Draw(nodes, pods, 1.3, seed)
			c, used, lost := newTwin(w.Nodes).run(policy, w, mix, nil)
			o, err := replay(t.Context(), Draw(nodes, pods, 1.3, seed), mix, policy, Options{}, seed, io.Discard)
			if err != nil {
				t.Fatal(err)
			}
			if want := float64(used) / c.total * 100; o.allocated != want || math.Abs(o.fragmentation-lost/c.total*100) > 1e-9 || o.placed+o.failed != len(w.Pods) {
				t.Errorf("%s, seed %d: %.4f %% allocated, the twin %.4f", policy, seed, o.allocated, want)
			}
		}
	}
}

// TestTies: the operator's own rule allocates as much whether the first of equals is taken or any.
func TestTies(t *testing.T) {
	nodes, pods := openb(t, "openb_pod_list_default")
	mix := Mix(pods)
	for _, random := range []bool{false, true} {
		sum := 0.0
		for seed := int64(42); seed < 45; seed++ {
			o, err := replay(t.Context(), Draw(nodes, pods, 1.3, seed), mix, Own, Options{RandomTies: random}, seed, io.Discard)
			if err != nil {
				t.Fatal(err)
			}
			sum += o.allocated / 3
		}
		t.Logf("ties random %v: %.2f %%", random, sum)
		if sum < 95.3 {
			t.Errorf("ties random %v: %.2f %% allocated, want at least 95.3", random, sum)
		}
	}
}
