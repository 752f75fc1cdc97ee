package controllers

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/estiba/estiba/api/v1alpha1"
	"github.com/estiba/estiba/api/worker"
	"github.com/estiba/estiba/internal/fixture"
	"github.com/estiba/estiba/internal/status"
)

// reporting is a worker of pool default/p that holds the homes.
func reporting(name string, epoch, generation int64, homes ...worker.HomeState) Worker {
	var used int64
	for _, h := range homes {
		used += h.Footprint.Total()
	}
	return Worker{Name: name, Pool: "default/p", Running: true, Connected: true, Heard: fixture.Epoch, Report: &worker.State{
		Worker: name, Pool: "default/p", Instance: name + ".1", Epoch: epoch, Generation: generation,
		Devices: []worker.Device{{Name: "gpu-0", ExtentBytes: gib, CapacityBytes: 80 * gib, UsedBytes: used}}, Homes: homes}}
}

func resident(m v1alpha1.Model, size int64) worker.HomeState {
	return worker.HomeState{Model: Key(&m), Revision: Revision(&m), Devices: []string{"gpu-0"}, Phase: worker.PhaseResident, Tier: worker.TierDevice,
		WantResident: true, ResidentSeconds: 3600, Footprint: worker.Footprint{WeightsBytes: size * gib}}
}

func inspected(size int64, models ...v1alpha1.Model) map[InspectKey]Inspected {
	all := map[InspectKey]Inspected{}
	for i := range models {
		all[InspectKey{"default/p", Revision(&models[i])}] = Inspected{At: fixture.Epoch, Result: worker.Inspection{Footprint: worker.Footprint{WeightsBytes: size * gib}}}
	}
	return all
}

func seenWith(models []v1alpha1.Model, workers ...Worker) Seen {
	return Seen{Now: fixture.Epoch, Epoch: 5, Settled: true, Models: models, Workers: workers,
		Pools: []Pool{{InferencePool: fixture.NewPool("p", 0, 4)}}}
}

// holds is what a plan's assignment names, "x y*" where * is asleep.
func holds(a worker.Assignment) string {
	var names []string
	for _, h := range a.Homes {
		n := short(h.Model)
		if !h.Resident {
			n += "*"
		}
		names = append(names, n)
	}
	return strings.Join(names, " ")
}

func TestUnsettledDecidesNothing(t *testing.T) {
	x := fixture.NewModel("x")
	seen := seenWith([]v1alpha1.Model{x}, reporting("w", 4, 9))
	seen.Settled = false
	if plan := Decide(seen); len(plan.Assignments)+len(plan.Create)+len(plan.Models)+len(plan.Inspect) > 0 || plan.Again == 0 {
		t.Errorf("plan is %+v", plan)
	}
}

// TestNewLeaderAdopts: an operator that starts from nothing sends each worker
// what it holds, under its own epoch, and moves nothing.
func TestNewLeaderAdopts(t *testing.T) {
	x, y := fixture.NewModel("x"), fixture.NewModel("y", fixture.Autoscaled(0, 1))
	asleep := resident(y, 20)
	asleep.Phase, asleep.Tier, asleep.WantResident = worker.PhaseIdle, worker.TierDisk, false
	// A tighter device is there; x stays where it is.
	z := fixture.NewModel("z")
	plan := Decide(seenWith([]v1alpha1.Model{x, y, z}, reporting("w1", 4, 9, resident(x, 10), asleep), reporting("w2", 4, 3, resident(z, 60))))
	if a := plan.Assignments["w1"]; a.Epoch != 5 || a.Generation != 1 || a.Instance != "w1.1" || holds(a) != "x y*" {
		t.Errorf("w1 gets %+v", a)
	}
	if a := plan.Assignments["w2"]; holds(a) != "z" {
		t.Errorf("w2 gets %+v", a)
	}
	if len(plan.Create)+len(plan.Delete)+len(plan.Inspect) > 0 {
		t.Errorf("plan is %+v", plan)
	}
	for i, want := range []string{v1alpha1.ReasonServing, v1alpha1.ReasonScaledToZero, v1alpha1.ReasonServing} {
		if c := status.Find(plan.Models[i].Conditions, v1alpha1.ConditionReady); c.Status != metav1.ConditionTrue || c.Reason != want {
			t.Errorf("%s is %+v", []string{"x", "y", "z"}[i], c)
		}
	}
}

// TestNewLeaderAndDraining: a home that makes room on its device stays at home
// there; one that was told to go does not.
func TestNewLeaderAndDraining(t *testing.T) {
	x, y := fixture.NewModel("x", fixture.Autoscaled(0, 1)), fixture.NewModel("y", fixture.Autoscaled(0, 1))
	makesRoom, goes := resident(x, 20), resident(y, 20)
	makesRoom.Phase, makesRoom.Message, makesRoom.WantResident = worker.PhaseDraining, "default/z needs the room.", false
	goes.Phase, goes.WantResident, goes.Leaving = worker.PhaseDraining, false, true
	plan := Decide(seenWith([]v1alpha1.Model{x, y}, reporting("w1", 4, 9, makesRoom, goes), reporting("w2", 4, 3)))
	if a, b := holds(plan.Assignments["w1"]), holds(plan.Assignments["w2"]); a != "x*" || b != "y*" {
		t.Errorf("w1 gets %s, w2 gets %s", a, b)
	}
	if c := status.Find(plan.Models[0].Conditions, v1alpha1.ConditionReady); !strings.Contains(c.Message, "default/z needs the room.") {
		t.Errorf("x says %+v", c)
	}
	makesRoom.Message = "" // it does what it was told
	plan = Decide(seenWith([]v1alpha1.Model{x, y}, reporting("w1", 4, 9, makesRoom, goes), reporting("w2", 4, 3)))
	if c := status.Find(plan.Models[0].Conditions, v1alpha1.ConditionReady); !strings.HasSuffix(c.Message, "then the model leaves its device.") {
		t.Errorf("x says %+v", c)
	}
}

// TestNewLeaderAndSilentWorker: a worker that runs and has not reported to this
// leader keeps the homes that the last one noted.
func TestNewLeaderAndSilentWorker(t *testing.T) {
	x := fixture.NewModel("x")
	x.Status.Placements = []v1alpha1.Placement{{Pool: "default/p", Worker: "silent", Devices: []string{"gpu-0"}, State: v1alpha1.PlacementResident}}
	seen := seenWith([]v1alpha1.Model{x}, Worker{Name: "silent", Pool: "default/p", Running: true}, reporting("w", 4, 1))
	seen.Inspections = inspected(10, x)
	if plan := Decide(seen); len(plan.Assignments["w"].Homes) > 0 || plan.Models[0].Replicas != 1 {
		t.Errorf("x moved although its worker is only silent: %+v", plan.Assignments)
	}
	seen.Workers = seen.Workers[1:] // its pod is gone
	if plan := Decide(seen); holds(plan.Assignments["w"]) != "x" {
		t.Errorf("x has no home: %+v", plan.Assignments)
	}
}

// TestReconnect: a worker whose stream of reports is opened anew stays ready, in
// the eyes of the pool, until it counts as silent.
func TestReconnect(t *testing.T) {
	w := reporting("w", 5, 1)
	w.Connected = false
	seen := seenWith(nil, w)
	for since, ready := range map[time.Duration]int32{time.Second: 1, silence + time.Second: 0} {
		seen.Now = fixture.Epoch.Add(since)
		if s := Decide(seen).Pools[0]; s.ReadyWorkers != ready {
			t.Errorf("%v after the last report %d workers are ready, want %d", since, s.ReadyWorkers, ready)
		}
	}
}

// TestInspectElsewhere: a header that one worker could not read is read by the next.
func TestInspectElsewhere(t *testing.T) {
	x := fixture.NewModel("x")
	seen := seenWith([]v1alpha1.Model{x}, reporting("w1", 5, 1), reporting("w2", 5, 1))
	failed := worker.Inspection{Error: &worker.InspectError{Reason: v1alpha1.ReasonWaitingForWorker, Message: "Worker w1 could not be asked."}}
	for attempts, want := range []string{"w1", "w2", "w1"} {
		seen.Inspections = map[InspectKey]Inspected{{"default/p", Revision(&x)}: {At: fixture.Epoch.Add(-time.Hour), Attempts: attempts, Result: failed}}
		if plan := Decide(seen); len(plan.Inspect) != 1 || plan.Inspect[0].Worker != want {
			t.Errorf("after %d attempts: %+v, want %s", attempts, plan.Inspect, want)
		} else if c := status.Find(plan.Models[0].Conditions, v1alpha1.ConditionReady); attempts > 0 && c.Reason != v1alpha1.ReasonWaitingForWorker {
			t.Errorf("ready is %+v", c)
		}
	}
}

// TestInspectMany: readings are spread over the workers, so many at a time that
// sources that hang do not hold up the others at once.
func TestInspectMany(t *testing.T) {
	var models []v1alpha1.Model
	for i := range 20 {
		models = append(models, fixture.NewModel(fmt.Sprintf("m%02d", i)))
	}
	seen := seenWith(models, reporting("w1", 5, 1), reporting("w2", 5, 1))
	asked := map[string]int{}
	for _, in := range Decide(seen).Inspect {
		asked[in.Worker]++
	}
	if want := map[string]int{"w1": reads, "w2": reads}; !cmp.Equal(asked, want) {
		t.Errorf("asked %v, want %v", asked, want)
	}
	seen.Inspections = map[InspectKey]Inspected{}
	for i := range reads {
		seen.Inspections[InspectKey{"default/p", Revision(&models[i])}] = Inspected{Pending: true, Worker: "w1"}
	}
	for _, in := range Decide(seen).Inspect {
		if in.Worker != "w2" {
			t.Errorf("w1 reads %d headers and is asked for more", reads)
		}
	}
}

// TestSuspectAndQuota: a suspect waits for a worker of its own while one may
// come, and goes beside others where a quota says that none will.
func TestSuspectAndQuota(t *testing.T) {
	x, y := fixture.NewModel("x"), fixture.NewModel("y")
	x.Status.Trial = &v1alpha1.Trial{Revision: Revision(&x), Deaths: 1, Since: metav1.NewTime(fixture.Epoch.Add(-time.Minute))}
	seen := seenWith([]v1alpha1.Model{x, y}, reporting("w", 5, 1, resident(y, 10)))
	seen.Inspections = inspected(10, x, y)
	if plan := Decide(seen); holds(plan.Assignments["w"]) != "y" || plan.Create["default/p"] != 1 {
		t.Errorf("w gets %q, and %v is made", holds(plan.Assignments["w"]), plan.Create)
	}
	seen.Pools[0].Blocked = "exceeded quota"
	if plan := Decide(seen); holds(plan.Assignments["w"]) != "x y" {
		t.Errorf("w gets %q", holds(plan.Assignments["w"]))
	}
	// One that cannot be loaded keeps a worker from nobody.
	failed := resident(x, 10)
	failed.Phase, failed.Tier = worker.PhaseFailed, worker.TierDisk
	seen.Workers = []Worker{reporting("w", 5, 1, failed)}
	if plan := Decide(seen); holds(plan.Assignments["w"]) != "x y" {
		t.Errorf("w gets %q beside a suspect that failed", holds(plan.Assignments["w"]))
	}
}

// TestOutgrown: two models with new revisions share a device that holds one of
// them and the other's old one; the one that comes first stays.
func TestOutgrown(t *testing.T) {
	before := []v1alpha1.Model{fixture.NewModel("x"), fixture.NewModel("y"), fixture.NewModel("z")}
	var held []worker.HomeState
	var after []v1alpha1.Model
	for i, m := range before {
		held = append(held, resident(m, 20))
		m.Spec.Source.URI += "-larger"
		m.Spec.Priority = int32(i)
		after = append(after, m)
	}
	w := reporting("w", 5, 1, held...)
	assigned := worker.Assignment{Epoch: 5, Generation: 1, Instance: "w.1"}
	for _, h := range held {
		assigned.Homes = append(assigned.Homes, worker.Home{Model: h.Model, Revision: h.Revision, Devices: h.Devices, Resident: true, Source: worker.Source{URI: "file:///models/old"}})
	}
	for size, want := range map[int64]string{20: "x y z", 27: "y z", 31: "z"} { // of 80 GiB
		seen := seenWith(after, w)
		seen.Inspections = inspected(size, after...)
		seen.Memory.Workers = map[string]WorkerMemory{"w": {Last: *w.Report, Assigned: assigned}}
		if got := holds(Decide(seen).Assignments["w"]); got != want {
			t.Errorf("with %d GiB each w gets %q, want %q", size, got, want)
		}
	}
}

// TestStaleReport replays the report from before an assignment: what was sent
// counts as taken, with and without this process's memory of it.
func TestStaleReport(t *testing.T) {
	x, y := fixture.NewModel("x"), fixture.NewModel("y")
	stale := reporting("w", 5, 1)
	seen := seenWith([]v1alpha1.Model{x}, stale)
	seen.Inspections = inspected(50, x, y)
	first := Decide(seen)
	if holds(first.Assignments["w"]) != "x" {
		t.Fatalf("first plan is %+v", first.Assignments)
	}
	seen.Models = append(seen.Models, y)
	seen.Sent = first.Assignments
	for name, memory := range map[string]Memory{"with memory": first.Memory, "without": {}} {
		seen.Memory = memory
		plan := Decide(seen)
		if a, again := plan.Assignments["w"]; again && holds(a) != "x" {
			t.Errorf("%s: w gets %q", name, holds(a))
		}
		if plan.Models[1].Replicas != 0 || plan.Create["default/p"] != 1 {
			t.Errorf("%s: y is placed on bytes that x was given", name)
		}
	}
}

// TestGeneration grows only when the content changes, and passes what a worker holds.
func TestGeneration(t *testing.T) {
	x := fixture.NewModel("x")
	seen := seenWith([]v1alpha1.Model{x}, reporting("w", 5, 7))
	seen.Inspections = inspected(10, x)
	plan := Decide(seen)
	a := plan.Assignments["w"]
	if a.Generation != 8 {
		t.Fatalf("generation %d after 7", a.Generation)
	}
	seen.Memory = plan.Memory
	if again := Decide(seen).Assignments["w"]; !cmp.Equal(a, again) {
		t.Errorf("not delivered, so sent again: %s", cmp.Diff(a, again))
	}
	seen.Sent = plan.Assignments
	if again := Decide(seen).Assignments; len(again) > 0 {
		t.Errorf("under way, so not sent again: %+v", again)
	}
	h := resident(x, 10)
	h.Phase = worker.PhaseLoading
	seen.Sent, seen.Workers = nil, []Worker{reporting("w", 5, 8, h)}
	if again := Decide(seen).Assignments; len(again) > 0 {
		t.Errorf("in force, so not sent again: %+v", again)
	}
	seen.Workers[0].Refusal = &worker.Refusal{Reason: worker.RefusedOlder, Epoch: 5, Generation: 11}
	if again := Decide(seen).Assignments["w"]; again.Generation != 12 {
		t.Errorf("generation %d after a refusal at 11", again.Generation)
	}
}

func TestWho(t *testing.T) {
	pool := func(change func(*v1alpha1.InferencePool)) Pool {
		return Pool{InferencePool: fixture.NewPool("p", 0, 4, change)}
	}
	guest := fixture.NewModel("x", func(m *v1alpha1.Model) { m.Namespace, m.Spec.Priority = "guests", 50 })
	five := int32(5)
	for name, c := range map[string]struct {
		pool     Pool
		model    v1alpha1.Model
		goes     bool
		priority int
	}{
		"same namespace":        {pool(func(*v1alpha1.InferencePool) {}), fixture.NewModel("x", func(m *v1alpha1.Model) { m.Spec.Priority = 50 }), true, 50},
		"another namespace":     {pool(func(*v1alpha1.InferencePool) {}), guest, false, 0},
		"all, priority bounded": {pool(func(p *v1alpha1.InferencePool) { p.Spec.AllowedNamespaces.From = v1alpha1.NamespacesAll }), guest, true, 0},
		"all, up to five": {pool(func(p *v1alpha1.InferencePool) {
			p.Spec.AllowedNamespaces = v1alpha1.AllowedNamespaces{From: v1alpha1.NamespacesAll, MaxPriority: &five}
		}), guest, true, 5},
		"selected": {pool(func(p *v1alpha1.InferencePool) {
			p.Spec.AllowedNamespaces = v1alpha1.AllowedNamespaces{From: v1alpha1.NamespacesSelector, Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"team": "a"}}}
		}), guest, true, 0},
		"selected otherwise": {pool(func(p *v1alpha1.InferencePool) {
			p.Spec.AllowedNamespaces = v1alpha1.AllowedNamespaces{From: v1alpha1.NamespacesSelector, Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"team": "b"}}}
		}), guest, false, 0},
		"pool's labels": {pool(func(p *v1alpha1.InferencePool) { p.Labels = map[string]string{"tier": "gpu"} }),
			fixture.NewModel("x", func(m *v1alpha1.Model) {
				m.Spec.PoolSelector = &metav1.LabelSelector{MatchLabels: map[string]string{"tier": "gpu"}}
			}), true, 0},
		"other labels": {pool(func(*v1alpha1.InferencePool) {}),
			fixture.NewModel("x", func(m *v1alpha1.Model) {
				m.Spec.PoolSelector = &metav1.LabelSelector{MatchLabels: map[string]string{"tier": "gpu"}}
			}), false, 0},
	} {
		t.Run(name, func(t *testing.T) {
			seen := seenWith([]v1alpha1.Model{c.model}, reporting("w", 5, 0))
			seen.Pools = []Pool{c.pool}
			seen.Namespaces = map[string]map[string]string{"guests": {"team": "a"}}
			seen.Inspections = inspected(10, c.model)
			plan := Decide(seen)
			a := plan.Assignments["w"]
			if (len(a.Homes) == 1) != c.goes {
				t.Fatalf("homes are %+v", a.Homes)
			}
			if c.goes && a.Homes[0].EvictionOrder != c.priority {
				t.Errorf("eviction order %d, want %d", a.Homes[0].EvictionOrder, c.priority)
			}
			if ready := status.Find(plan.Models[0].Conditions, v1alpha1.ConditionReady); !c.goes && ready.Reason != v1alpha1.ReasonNoPoolMatches {
				t.Errorf("ready is %+v", ready)
			}
		})
	}
}

// TestReplicasSpread: a model has at most one home on a worker.
func TestReplicasSpread(t *testing.T) {
	x := fixture.NewModel("x", fixture.Replicas(3))
	seen := seenWith([]v1alpha1.Model{x}, reporting("w1", 5, 0), reporting("w2", 5, 0))
	seen.Pools[0].Spec.Workers.Max = 2
	seen.Inspections = inspected(10, x)
	plan := Decide(seen)
	if holds(plan.Assignments["w1"]) != "x" || holds(plan.Assignments["w2"]) != "x" || plan.Models[0].Replicas != 2 {
		t.Errorf("plan is %+v", plan.Assignments)
	}
	if c := status.Find(plan.Models[0].Conditions, v1alpha1.ConditionPlaced); c.Status != metav1.ConditionFalse {
		t.Errorf("placed is %+v", c)
	}
}

// TestTrialOfOneAmongMany: a suspect is tried on an idle worker, not among others.
func TestTrialOfOneAmongMany(t *testing.T) {
	bad, good := fixture.NewModel("bad"), fixture.NewModel("good")
	bad.Status.Trial = &v1alpha1.Trial{Revision: Revision(&bad), Deaths: 1, Since: metav1.NewTime(fixture.Epoch.Add(-time.Second)), Worker: "w1", Instance: "w1.0"}
	seen := seenWith([]v1alpha1.Model{bad, good}, reporting("w1", 4, 1, resident(good, 10)), reporting("w2", 4, 1))
	seen.Inspections = inspected(10, bad, good)
	plan := Decide(seen)
	if holds(plan.Assignments["w1"]) != "good" || holds(plan.Assignments["w2"]) != "bad" {
		t.Errorf("plan is %+v", plan.Assignments)
	}
	// A pod that was deleted is nobody's fault; neither is a process that was told to go.
	gone := reporting("w3", 4, 1)
	gone.Deleting = fixture.Epoch
	last := *reporting("w3", 4, 1, resident(good, 10)).Report
	last.Instance, last.Homes[0].Running = "w3.0", 1
	seen.Workers = append(seen.Workers, gone)
	seen.Memory = Memory{Workers: map[string]WorkerMemory{"w3": {Last: last}}}
	if trial := Decide(seen).Models[1].Trial; trial != nil {
		t.Errorf("good is on trial: %+v", trial)
	}
	seen.Workers[2].Deleting = time.Time{}
	if trial := Decide(seen).Models[1].Trial; trial == nil || trial.Deaths != 1 {
		t.Errorf("good is not on trial: %+v", trial)
	}
	// What the process wrote down before it died is newer than its last report.
	next := *seen.Workers[2].Report
	next.Previous = &worker.Previous{Instance: "w3.0"}
	seen.Workers[2].Report = &next
	if trial := Decide(seen).Models[1].Trial; trial != nil {
		t.Errorf("good is on trial, although its request had ended: %+v", trial)
	}
	next.Previous = &worker.Previous{Instance: "w3.0", AtWork: []worker.AtWork{{Model: "default/good", Revision: Revision(&good), ResidentSeconds: 3}}}
	last.Homes[0].Running = 0
	seen.Memory = Memory{Workers: map[string]WorkerMemory{"w3": {Last: last}}}
	if trial := Decide(seen).Models[1].Trial; trial == nil || trial.Deaths != 1 {
		t.Errorf("good is not on trial, although it had a request that no report told of: %+v", trial)
	}
	next.Previous.Instance = "w3.-1" // an older death
	if trial := Decide(seen).Models[1].Trial; trial != nil {
		t.Errorf("good is on trial for an older death: %+v", trial)
	}
}

// TestSecondDeath: the death of a worker on which the model had been resident
// before its trial is no trial; one that it was tried on is.
func TestSecondDeath(t *testing.T) {
	for name, c := range map[string]struct {
		phase  worker.Phase
		since  float64 // seconds in which it was resident
		heard  time.Duration
		deaths int32
	}{
		"there before":          {worker.PhaseResident, 3600, time.Minute, 1},
		"came for the trial":    {worker.PhaseResident, 30, time.Minute, 2},
		"loads for the trial":   {worker.PhaseLoading, 0, time.Minute, 2},
		"loaded before the end": {worker.PhaseLoading, 0, -time.Second, 1},
	} {
		x := fixture.NewModel("x", fixture.Replicas(2))
		x.Status.Trial = &v1alpha1.Trial{Revision: Revision(&x), Deaths: 1, Since: metav1.NewTime(fixture.Epoch), Worker: "w1", Instance: "w1.0"}
		h := resident(x, 10)
		h.Phase, h.ResidentSeconds, h.Running = c.phase, c.since, 1
		last := *reporting("w2", 5, 1, h).Report
		last.Instance = "w2.0"
		seen := seenWith([]v1alpha1.Model{x}, reporting("w2", 0, 0))
		seen.Now = fixture.Epoch.Add(2 * time.Minute)
		seen.Memory.Workers = map[string]WorkerMemory{"w2": {Last: last, Heard: fixture.Epoch.Add(c.heard)}}
		if trial := Decide(seen).Models[0].Trial; trial == nil || trial.Deaths != c.deaths {
			t.Errorf("%s: the trial is %+v, want %d deaths", name, trial, c.deaths)
		}
	}
}

// TestUnchanged: deciding changes nothing of what it looks at.
func TestUnchanged(t *testing.T) {
	seen := random(rand.New(rand.NewPCG(7, 7)))
	before, err := json.Marshal(seen.Models)
	if err != nil {
		t.Fatal(err)
	}
	reports := fmt.Sprintf("%+v", *seen.Workers[0].Report)
	Decide(seen)
	after, _ := json.Marshal(seen.Models)
	if string(before) != string(after) || reports != fmt.Sprintf("%+v", *seen.Workers[0].Report) {
		t.Error("Decide changed its input")
	}
}

// random is a cluster in any state, sensible or not.
func random(r *rand.Rand) Seen {
	var models []v1alpha1.Model
	for i := range 1 + r.IntN(8) {
		m := fixture.NewModel(fmt.Sprint("m", i))
		m.Spec.Priority = int32(r.IntN(3))
		switch r.IntN(4) {
		case 0:
			fixture.Replicas(int32(r.IntN(4)))(&m)
		case 1:
			fixture.Autoscaled(int32(r.IntN(2)), 2)(&m)
		}
		m.Spec.Suspend = r.IntN(8) == 0
		if r.IntN(6) == 0 {
			m.Status.Trial = &v1alpha1.Trial{Revision: Revision(&m), Deaths: int32(1 + r.IntN(2)), Since: metav1.NewTime(fixture.Epoch)}
		}
		models = append(models, m)
	}
	seen := seenWith(models)
	seen.Pools[0].Hash, seen.Pools[0].Spec.Workers = "h", v1alpha1.WorkerRange{Min: int32(r.IntN(2)), Max: int32(2 + r.IntN(3))}
	seen.Inspections, seen.Sent = map[InspectKey]Inspected{}, map[string]worker.Assignment{}
	size := map[string]int64{}
	for i := range models {
		key := Key(&models[i])
		size[key] = 1 + r.Int64N(50)
		if r.IntN(4) > 0 {
			for k, v := range inspected(size[key], models[i]) {
				seen.Inspections[k] = v
			}
		}
		seen.Gateways = append(seen.Gateways, worker.GatewayState{Models: []worker.ModelDemand{{Model: key, Held: r.IntN(3)}}})
	}
	for i := range 1 + r.IntN(5) {
		w := reporting(fmt.Sprint("w", i), int64(3+r.IntN(3)), int64(r.IntN(3)))
		free := int64(80)
		for j := range models {
			if n := size[Key(&models[j])]; r.IntN(3) == 0 && n <= free {
				h := resident(models[j], n)
				h.Phase = []worker.Phase{worker.PhaseResident, worker.PhaseLoading, worker.PhaseIdle, worker.PhaseFailed, worker.PhaseDraining}[r.IntN(5)]
				h.Running = r.IntN(2)
				w.Report.Homes = append(w.Report.Homes, h)
				w.Report.Devices[0].UsedBytes += n * gib
				free -= n
			}
		}
		for j := range models {
			if n := size[Key(&models[j])]; r.IntN(6) == 0 && n <= free && !slices.ContainsFunc(w.Report.Homes, func(h worker.HomeState) bool { return h.Model == Key(&models[j]) }) {
				a := seen.Sent[w.Name]
				a.Epoch, a.Generation, a.Instance = 5, 9, w.Report.Instance
				for _, h := range w.Report.Homes {
					if len(a.Homes) == 0 {
						a.Homes = append(a.Homes, worker.Home{Model: h.Model, Revision: h.Revision, Devices: h.Devices, Resident: true})
					}
				}
				a.Homes = append(a.Homes, worker.Home{Model: Key(&models[j]), Revision: Revision(&models[j]), Devices: []string{"gpu-0"}, Resident: true})
				seen.Sent[w.Name] = a
				free -= n
			}
		}
		switch at := &w.Report.Devices[0]; r.IntN(12) {
		case 0:
			at.Health = worker.Health{State: worker.DeviceDegraded, Reason: "Heat"}
		case 1:
			at.Health = worker.Health{State: worker.DeviceLost, Reason: "XID79"}
		case 2: // other processes take some
			at.ClaimBytes, at.CapacityBytes = 80*gib, max(at.UsedBytes, (80-free)*gib, r.Int64N(80)*gib)
		case 3: // it came back with another one
			at.Name = "gpu-7"
		}
		w.Hash = []string{"h", "h", "old"}[r.IntN(3)]
		w.Report.Draining = r.IntN(10) == 0
		w.Connected = r.IntN(6) > 0
		if r.IntN(8) == 0 {
			w.Heard = fixture.Epoch.Add(-time.Minute)
		}
		if r.IntN(8) == 0 {
			w.Deleting = fixture.Epoch.Add(-time.Duration(r.IntN(200)) * time.Second)
		}
		if r.IntN(8) == 0 {
			w.Report = nil
		}
		seen.Workers = append(seen.Workers, w)
	}
	if seen.Workers[0].Report == nil {
		seen.Workers[0] = reporting("w0", 5, 1)
	}
	return seen
}

// TestInvariants: of any cluster, no device is given more than it has beside
// what it still holds, and a lost one nothing; a model has at most one home on a worker; the order of
// the input does not matter; and every status says something.
func TestInvariants(t *testing.T) {
	for seed := range uint64(4000) {
		r := rand.New(rand.NewPCG(seed, 3))
		seen := random(r)
		plan := Decide(seen)
		shuffled := seen
		shuffled.Models, shuffled.Workers, shuffled.Gateways = slices.Clone(seen.Models), slices.Clone(seen.Workers), slices.Clone(seen.Gateways)
		r.Shuffle(len(shuffled.Workers), func(i, j int) {
			shuffled.Workers[i], shuffled.Workers[j] = shuffled.Workers[j], shuffled.Workers[i]
		})
		slices.Reverse(shuffled.Models)
		again := Decide(shuffled)
		slices.Reverse(again.Models)
		if diff := cmp.Diff(plan, again); diff != "" {
			t.Fatalf("seed %d: the order of the input matters: %s", seed, diff)
		}
		for name, a := range plan.Assignments {
			within(t, seed, seen, name, a)
		}
		for _, s := range plan.Models {
			if c := status.Find(s.Conditions, v1alpha1.ConditionReady); c.Reason == "" || c.Message == "" {
				t.Fatalf("seed %d: %+v", seed, c)
			}
		}
	}
}

// within checks one assignment against the capacity of its worker.
func within(t *testing.T, seed uint64, seen Seen, name string, a worker.Assignment) {
	t.Helper()
	w := seen.Workers[slices.IndexFunc(seen.Workers, func(w Worker) bool { return w.Name == name })]
	used, there, device := int64(0), map[string]bool{}, w.Report.Devices[0]
	on := func(devices []string) bool { return slices.Contains(devices, device.Name) }
	for _, h := range w.Report.Homes {
		if on(h.Devices) {
			used += h.Footprint.Total()
			there[h.Model] = true
		}
	}
	for _, h := range seen.Sent[name].Homes {
		if !there[h.Model] && on(h.Devices) {
			used += seen.Inspections[InspectKey{"default/p", h.Revision}].Result.Footprint.Total()
			there[h.Model] = true
		}
	}
	names := map[string]bool{}
	for _, h := range a.Homes {
		if device.Lost() || !on(h.Devices) {
			t.Fatalf("seed %d: %s gets a home on %v of %+v", seed, name, h.Devices, device)
		}
		if names[h.Model] {
			t.Fatalf("seed %d: %s gets %s twice", seed, name, h.Model)
		}
		names[h.Model] = true
		if !there[h.Model] {
			in := seen.Inspections[InspectKey{"default/p", h.Revision}]
			used += in.Result.Footprint.Total()
		}
	}
	if used > device.CapacityBytes {
		t.Fatalf("seed %d: %s is to hold %d GiB of %d: %+v", seed, name, used/gib, device.CapacityBytes/gib, a)
	}
}

// TestBlocked: a pool that cannot make a worker comes after one that can, and
// is no place where a request would wake a model.
func TestBlocked(t *testing.T) {
	always, sleeps := fixture.NewModel("x"), fixture.NewModel("y")
	sleeps.Spec.Autoscaling = &v1alpha1.Autoscaling{Max: 1}
	seen := seenWith([]v1alpha1.Model{always, sleeps})
	seen.Pools[0].Blocked = "exceeded quota"
	plan := Decide(seen)
	for _, m := range seen.Models {
		conditions := plan.Models[slices.IndexFunc(seen.Models, func(o v1alpha1.Model) bool { return o.Name == m.Name })].Conditions
		ready := meta.FindStatusCondition(conditions, v1alpha1.ConditionReady)
		if ready.Status != metav1.ConditionFalse || ready.Reason != v1alpha1.ReasonWaitingForWorker || ready.Message != "Pool p cannot make a worker: exceeded quota." {
			t.Errorf("%s: %+v", m.Name, ready)
		}
		if c := meta.FindStatusCondition(conditions, v1alpha1.ConditionReconciling); c.Status != metav1.ConditionFalse {
			t.Errorf("%s: %+v", m.Name, c)
		}
	}
	if plan.Create["default/p"] != 1 {
		t.Errorf("%v is made: a worker is not tried again", plan.Create)
	}
	seen.Pools = append(seen.Pools, Pool{InferencePool: fixture.NewPool("q", 0, 4)})
	plan = Decide(seen)
	if plan.Create["default/p"] != 0 || plan.Create["default/q"] != 1 {
		t.Errorf("%v is made", plan.Create)
	}
	if ready := meta.FindStatusCondition(plan.Models[1].Conditions, v1alpha1.ConditionReady); ready.Reason != v1alpha1.ReasonScaledToZero {
		t.Errorf("%+v", ready)
	}
}
