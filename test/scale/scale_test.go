// Package scaletest is a load generator: Models on simulated workers
// (internal/simworker), a real API server, and the operator as a process beside
// it. There is no kubelet: the generator plays it. It measures how fast models
// get their homes, and what the operator takes when it goes on for a while.
//
// hack/bench-scale.sh runs it at full size; without flags it is small.
// It needs KUBEBUILDER_ASSETS, a folder with etcd and kube-apiserver.
package scaletest

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/estiba/estiba/controllers"
	"github.com/estiba/estiba/internal/fleet"
	"github.com/estiba/estiba/internal/simworker"
	"github.com/estiba/estiba/test/apiserver"
)

var (
	models  = flag.Int("models", 300, "Models to place")
	workers = flag.Int("workers", 30, "simulated workers, at least one to ten Models")
	minutes = flag.Float64("minutes", 0.2, "how long it goes on once all are placed")
	churn   = flag.Float64("churn", 0, "share of the Models that are deleted, and as many created and others asked, each minute; 0: three a second")
	rate    = flag.Float64("rate", 0, "fail below so many placements per second")
	seed    = flag.Uint64("seed", 1, "of sizes, choices and loads")
	result  = flag.String("result", "", "write the result to this file as JSON, too")
	profile = flag.String("profile", "", "write the operator's profiles to this folder")
)

// server is the API server.
var server *apiserver.Server

func TestMain(m *testing.M) { apiserver.Main(m, &server, nil) }

// TestScale places Models on simulated workers from nothing, then churns.
func TestScale(t *testing.T) {
	if *churn == 0 {
		*churn = 180 / float64(*models)
	}
	w := newWorld(t)
	o := w.operate()

	t.Logf("%d workers in %d pools", *workers, pools)
	began := time.Now()
	w.createPools()
	w.await("all workers", 5*time.Minute, func() (bool, string) {
		ready := o.scrape().sum("estiba_operator_workers", `state="ready"`)
		return int(ready) == *workers, fmt.Sprintf("%.0f of %d are ready", ready, *workers)
	})
	r := Result{Date: time.Now().UTC().Format(time.DateOnly), Models: *models, Workers: *workers, Churn: *churn, Seed: *seed}
	r.WorkersSeconds = time.Since(began).Seconds()
	t.Logf("they are ready after %.1f s; now %d Models", r.WorkersSeconds, *models)

	before := w.sample(o)
	began = time.Now()
	creating := make(chan error, 1)
	go func() { creating <- w.createModels(*models) }()
	placed := w.track(began)
	w.await("all Models to be placed", time.Duration(*models)*50*time.Millisecond+time.Minute, placed)
	if err := <-creating; err != nil {
		t.Fatal(err)
	}
	r.Filling = w.phase(before, w.sample(o))
	r.CreatedSeconds, r.HomesSeconds, r.PlacedSeconds = w.createdAt.Sub(began).Seconds(), w.homesAt.Sub(began).Seconds(), w.placedAt.Sub(began).Seconds()
	r.PlacementsPerSecond = float64(*models) / r.PlacedSeconds
	t.Logf("all created after %.1f s, with a home on a worker after %.1f s, placed in their statuses after %.1f s: %.0f placements/s",
		r.CreatedSeconds, r.HomesSeconds, r.PlacedSeconds, r.PlacementsPerSecond)
	if *rate > 0 && r.PlacementsPerSecond < *rate {
		t.Errorf("%.1f placements/s, want %.0f", r.PlacementsPerSecond, *rate)
	}
	w.await("all Models to serve", time.Minute, w.allReady)

	r.Steady, r.Minutes = w.steady(o)
	w.await("all Models to serve after the churn", time.Minute, w.allReady)
	r.Latency = w.latency()
	w.check()
	r.write(t)
}

// await waits until ok, and says now and then how far it is.
func (w *world) await(what string, most time.Duration, ok func() (bool, string)) {
	w.t.Helper()
	last, said := "", time.Now()
	for end := time.Now().Add(most); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		var done bool
		if done, last = ok(); done {
			return
		}
		if time.Since(said) > 5*time.Second {
			w.t.Logf("waits for %s: %s", what, last)
			said = time.Now()
		}
	}
	w.t.Fatalf("waited in vain for %s: %s", what, last)
}

// Result of a run. CPU is in cores, memory in MiB.
type Result struct {
	Date                string  `json:"date"`
	Models              int     `json:"models"`
	Workers             int     `json:"workers"`
	Churn               float64 `json:"churn"` // share of the Models, a minute
	Seed                uint64  `json:"seed"`
	WorkersSeconds      float64 `json:"workersSeconds"` // from pools to ready workers
	CreatedSeconds      float64 `json:"createdSeconds"` // from the first Model's creation to the last one's
	HomesSeconds        float64 `json:"homesSeconds"`   // ... until workers had been told of all
	PlacedSeconds       float64 `json:"placedSeconds"`  // ... until all statuses said so
	PlacementsPerSecond float64 `json:"placementsPerSecond"`
	Filling             Phase   `json:"filling"`
	Steady              Phase   `json:"steady"`
	Minutes             []Phase `json:"minutes"`
	Latency             Latency `json:"latency"`
}

// Phase is what was taken in a time.
type Phase struct {
	Seconds         float64            `json:"seconds"`
	OperatorCPU     float64            `json:"operatorCPU"`
	APIServerCPU    float64            `json:"apiserverCPU"`
	EtcdCPU         float64            `json:"etcdCPU"`
	GeneratorCPU    float64            `json:"generatorCPU"`
	LiveMiB         float64            `json:"liveMiB"` // the operator's heap after its last collection
	ResidentMiB     float64            `json:"residentMiB"`
	Requests        map[string]float64 `json:"requests"` // of the operator, by verb, a second
	Decisions       float64            `json:"decisions"`
	DecisionSeconds float64            `json:"decisionSeconds"` // mean
	RoundSeconds    float64            `json:"roundSeconds"`    // mean: observe, decide, apply
	StatusWrites    float64            `json:"statusWrites"`    // a second
	Assignments     float64            `json:"assignments"`     // a second
}

// Latency of Models that came during the churn, from their creation, in seconds.
type Latency struct {
	Models                          int
	PlacedMedian, PlacedP99, Placed float64
	ServesMedian, ServesP99, Serves float64
}

// write prints the result as a table, and as JSON if asked to.
func (r Result) write(t *testing.T) {
	var b strings.Builder
	fmt.Fprintf(&b, "\n%d Models on %d simulated workers in %d pools, seed %d\n", r.Models, r.Workers, pools, r.Seed)
	fmt.Fprintf(&b, "from nothing: all have a home after %.1f s, which all statuses say after %.1f s: %.0f placements/s\n", r.HomesSeconds, r.PlacedSeconds, r.PlacementsPerSecond)
	fmt.Fprintf(&b, "then %.1f %% a minute deleted, created and asked: %d new Models are placed after %.2f s (99 %%: %.2f s), serve after %.2f s (99 %%: %.2f s)\n\n",
		100*r.Churn, r.Latency.Models, r.Latency.PlacedMedian, r.Latency.PlacedP99, r.Latency.ServesMedian, r.Latency.ServesP99)
	verbs := []string{"GET", "POST", "PATCH", "PUT", "DELETE"}
	fmt.Fprintf(&b, "| | s | operator cores | API server | etcd | generator | live MiB | resident MiB | decisions/s | decision ms | round ms | status writes/s | assignments/s | %s |\n", strings.Join(verbs, "/s | ")+"/s")
	fmt.Fprintf(&b, "|%s\n", strings.Repeat("---|", 13+len(verbs)))
	row := func(name string, p Phase) {
		fmt.Fprintf(&b, "| %s | %.0f | %.2f | %.2f | %.2f | %.2f | %.0f | %.0f | %.2f | %.1f | %.1f | %.1f | %.1f |", name, p.Seconds, p.OperatorCPU, p.APIServerCPU, p.EtcdCPU, p.GeneratorCPU,
			p.LiveMiB, p.ResidentMiB, p.Decisions/p.Seconds, p.DecisionSeconds*1000, p.RoundSeconds*1000, p.StatusWrites, p.Assignments)
		for _, v := range verbs {
			fmt.Fprintf(&b, " %.1f |", p.Requests[v])
		}
		b.WriteByte('\n')
	}
	row("filling", r.Filling)
	for i, p := range r.Minutes {
		row(fmt.Sprintf("minute %d", i+1), p)
	}
	row("steady", r.Steady)
	t.Log(b.String())
	if *result != "" {
		text, err := json.MarshalIndent(r, "", "  ")
		if err == nil {
			err = os.WriteFile(*result, append(text, '\n'), 0o644)
		}
		if err != nil {
			t.Error(err)
		}
	}
}

// quantile of sorted values.
func quantile(sorted []float64, q float64) float64 {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[min(int(q*float64(len(sorted))), len(sorted)-1)]
}

// simulated is the fleet of workers.
func simulated() *simworker.Fleet {
	return simworker.New(simworker.Options{
		Token: func(pool string) string { return fleet.PoolToken([]byte(apiserver.Key), pool) },
		Read:  20 * time.Millisecond, Bandwidth: 20 << 30, Seed: *seed,
	})
}

// operate starts the operator.
func (w *world) operate() *operator {
	address := freeAddress(w.t)
	p := server.StartProfiled(w.t, apiserver.Operator, controllers.RunOptions{Listen: address, LeaderElect: true}, *profile)
	o := &operator{t: w.t, pid: p.Cmd.Process.Pid, url: "http://" + address + "/metrics"}
	w.await("the operator", time.Minute, func() (bool, string) {
		if _, err := o.get(context.Background()); err != nil {
			return false, err.Error()
		}
		return strings.Contains(p.Log(), "leading"), "it does not lead"
	})
	return o
}

// sorted values.
func sorted(values []float64) []float64 { slices.Sort(values); return values }
