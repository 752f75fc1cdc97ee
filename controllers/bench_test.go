package controllers

import (
	"fmt"
	"maps"
	"slices"
	"syscall"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/estiba/estiba/api/v1alpha1"
	"github.com/estiba/estiba/api/worker"
	"github.com/estiba/estiba/internal/fixture"
)

// BenchmarkDecide is a decision for 1,000 models on 250 devices, nothing to do.
func BenchmarkDecide(b *testing.B) {
	seen := seenWith(nil)
	seen.Pools[0].Spec.Workers.Max = 250
	for w := range 250 {
		at := reporting(fmt.Sprintf("w%03d", w), 5, 1)
		for i := range 4 {
			m := fixture.NewModel(fmt.Sprintf("m%03d-%d", w, i))
			seen.Models = append(seen.Models, m)
			h := resident(m, 15)
			at.Report.Homes = append(at.Report.Homes, h)
			at.Report.Devices[0].UsedBytes += 15 * gib
		}
		seen.Workers = append(seen.Workers, at)
	}
	b.ReportAllocs()
	for b.Loop() {
		plan := Decide(seen)
		seen.Memory = plan.Memory
	}
}

// The others decide for a crowd: 10,000 models on 1,000 devices of 80 GiB in ten pools.
const crowdModels, crowdWorkers = 10_000, 1_000

// BenchmarkDecideFromNothing gives every model of the crowd its first home.
func BenchmarkDecideFromNothing(b *testing.B) {
	seen := crowd(crowdModels, crowdWorkers)
	defer processor(b)()
	for b.Loop() {
		if n := added(Decide(seen)); n != crowdModels {
			b.Fatalf("%d models got a home", n)
		}
	}
}

// BenchmarkDecideNothing looks at the crowd when there is nothing to do.
func BenchmarkDecideNothing(b *testing.B) {
	seen := settledCrowd(b)
	defer processor(b)()
	for b.Loop() {
		if plan := Decide(seen); len(plan.Assignments) > 0 {
			b.Fatalf("%d assignments to send", len(plan.Assignments))
		}
	}
}

// BenchmarkDecideChurn finds one model in a hundred gone and as many new ones.
func BenchmarkDecideChurn(b *testing.B) {
	seen := settledCrowd(b)
	changed(&seen, crowdModels/100)
	defer processor(b)()
	for b.Loop() {
		plan := Decide(seen)
		for i := range seen.Models {
			if len(plan.Models[i].Placements) == 0 {
				b.Fatalf("Model %s got no home: %+v", seen.Models[i].Name, plan.Models[i].Conditions)
			}
		}
	}
}

// processor reports allocations and, beside the time, that of all processors:
// on a machine that has other work, it says more.
func processor(b *testing.B) func() {
	spent := func() time.Duration {
		var use syscall.Rusage
		if err := syscall.Getrusage(syscall.RUSAGE_SELF, &use); err != nil {
			b.Fatal(err)
		}
		return time.Duration(use.Utime.Nano() + use.Stime.Nano())
	}
	b.ReportAllocs()
	before := spent()
	return func() { b.ReportMetric(float64((spent()-before).Milliseconds())/float64(b.N), "cpu-ms/op") }
}

// crowd is a fleet of empty workers, and models of 2 to 14 GiB that would fill
// seven eighths of it. Half of them may sleep; nine in ten choose one pool.
func crowd(models, workers int) Seen {
	const pools = 10
	seen := Seen{Now: fixture.Epoch, Epoch: 5, Settled: true, Inspections: map[InspectKey]Inspected{}}
	for i := range pools {
		p := fixture.NewPool(fmt.Sprintf("p%d", i), 0, int32(workers/pools))
		p.Labels = map[string]string{"pool": p.Name}
		seen.Pools = append(seen.Pools, Pool{InferencePool: p})
	}
	for i := range workers {
		w := reporting(fmt.Sprintf("w%04d", i), 5, 1)
		w.Pool = seen.Pools[i%pools].Key()
		w.Report.Pool = w.Pool
		seen.Workers = append(seen.Workers, w)
	}
	for i := range models {
		addToCrowd(&seen, i)
	}
	return seen
}

func addToCrowd(seen *Seen, i int) {
	m := fixture.NewModel(fmt.Sprintf("m%05d", i))
	m.CreationTimestamp = metav1.NewTime(fixture.Epoch.Add(-time.Duration(i) * time.Second))
	if i%2 == 0 {
		fixture.Autoscaled(0, 2)(&m)
	}
	if i%10 != 0 {
		m.Spec.PoolSelector = &metav1.LabelSelector{MatchLabels: map[string]string{"pool": fmt.Sprintf("p%d", i/10%len(seen.Pools))}}
	}
	size := []int64{2, 3, 5, 7, 8, 14, 4, 13}[i*7919>>3%8]
	for p := range seen.Pools {
		seen.Inspections[InspectKey{seen.Pools[p].Key(), Revision(&m)}] = Inspected{At: fixture.Epoch,
			Result: worker.Inspection{Footprint: worker.Footprint{WeightsBytes: size * gib}, MaxTokens: 512}}
	}
	seen.Models = append(seen.Models, m)
}

// settledCrowd is the crowd some time after everything was placed, read and written.
func settledCrowd(b *testing.B) Seen {
	b.Helper()
	seen := crowd(crowdModels, crowdWorkers)
	for range 3 {
		settleCrowd(&seen, Decide(seen))
	}
	return seen
}

// settleCrowd is a minute in which a plan is carried out.
func settleCrowd(seen *Seen, plan Plan) {
	seen.Memory = plan.Memory
	seen.Now = seen.Now.Add(time.Minute)
	for i := range seen.Models {
		seen.Models[i].Status = plan.Models[i]
	}
	for i := range seen.Pools {
		seen.Pools[i].Status = plan.Pools[i]
	}
	for i := range seen.Workers {
		w := &seen.Workers[i]
		w.Heard = seen.Now
		if labels, differ := plan.Labels[w.Name]; differ {
			w.Models = labels
		}
		if a, sent := plan.Assignments[w.Name]; sent {
			report := holding(*w.Report, a, seen)
			w.Report = &report
		}
	}
}

// holding is what a worker reports that has done what it was told.
func holding(s worker.State, a worker.Assignment, seen *Seen) worker.State {
	s.Epoch, s.Generation, s.Homes = a.Epoch, a.Generation, nil
	s.Devices = slices.Clone(s.Devices)
	s.Devices[0].UsedBytes = 0
	for _, h := range a.Homes {
		is := worker.HomeState{Model: h.Model, Revision: h.Revision, ServedNames: h.ServedNames, Devices: h.Devices, Phase: worker.PhaseIdle, Tier: worker.TierDisk,
			Footprint: seen.Inspections[InspectKey{s.Pool, h.Revision}].Result.Footprint, MaxTokens: 512, WantResident: h.Resident}
		if h.Resident {
			is.Phase, is.Tier, is.ResidentSeconds, is.Footprint.Measured = worker.PhaseResident, worker.TierDevice, 60, true
			s.Devices[0].UsedBytes += is.Footprint.Total()
		}
		s.Homes = append(s.Homes, is)
	}
	return s
}

// changed takes n models, here and there, out of a crowd and brings in as many.
func changed(seen *Seen, n int) {
	all := len(seen.Models)
	gone := 0
	seen.Models = slices.DeleteFunc(seen.Models, func(m v1alpha1.Model) bool {
		var i int
		fmt.Sscanf(m.Name, "m%d", &i)
		if i%(all/n) != 0 || gone == n {
			return false
		}
		gone++
		return true
	})
	for i := range n {
		addToCrowd(seen, all+i)
	}
}

// added counts the models that a plan newly assigns.
func added(plan Plan) int {
	models := map[string]bool{}
	for a := range maps.Values(plan.Assignments) {
		for _, h := range a.Homes {
			models[h.Model] = true
		}
	}
	return len(models)
}
