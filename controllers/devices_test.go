package controllers

import (
	"fmt"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/estiba/estiba/api/v1alpha1"
	"github.com/estiba/estiba/api/worker"
	"github.com/estiba/estiba/internal/fixture"
	"github.com/estiba/estiba/internal/status"
)

// TestDeviceMissing: a worker that comes back without a device cannot serve what had its home there.
func TestDeviceMissing(t *testing.T) {
	x, y := fixture.NewModel("x"), fixture.NewModel("y")
	gone, stays := resident(x, 10), resident(y, 10)
	gone.Devices, gone.Phase, gone.Tier, gone.Reason = []string{"gpu-1"}, worker.PhaseFailed, worker.TierNone, worker.ReasonDoesNotFit
	seen := seenWith([]v1alpha1.Model{x, y}, reporting("w1", 5, 1, gone, stays), reporting("w2", 5, 1))
	seen.Inspections = inspected(10, x, y)
	seen.Memory.Workers = map[string]WorkerMemory{"w1": {Assigned: worker.Assignment{Epoch: 5, Generation: 1, Instance: "w1.1", Homes: []worker.Home{
		{Model: Key(&x), Revision: Revision(&x), Devices: gone.Devices, Resident: true},
		{Model: Key(&y), Revision: Revision(&y), Devices: stays.Devices, Resident: true},
	}}}}
	plan := Decide(seen)
	for _, m := range plan.Models {
		if c := status.Find(m.Conditions, v1alpha1.ConditionStalled); c == nil || c.Status == "True" {
			t.Errorf("%+v", c)
		}
	}
	homes := map[string]string{}
	for _, a := range plan.Assignments {
		for _, h := range a.Homes {
			homes[short(h.Model)] += strings.Join(h.Devices, ",")
		}
	}
	if homes["x"] != "gpu-0" || homes["y"] != "gpu-0" {
		t.Errorf("%v", homes)
	}
}

// TestAccelerators: a pool's status has 64 devices at most, and the sums are of all of them. What moves a little stays.
func TestAccelerators(t *testing.T) {
	w := reporting("w1", 5, 1)
	w.Report.Devices = nil
	watts, busy := 100., 0.5
	for i := range 100 {
		w.Report.Devices = append(w.Report.Devices, worker.Device{Name: fmt.Sprintf("gpu-%02d", i), ExtentBytes: gib, CapacityBytes: 80 * gib,
			Health: worker.Health{State: worker.DeviceHealthy}, Readings: &worker.Readings{TotalBytes: 80 * gib, PowerWatts: &watts, Utilization: &busy}})
	}
	seen := seenWith(nil, w)
	s := Decide(seen).Pools[0]
	if len(s.Accelerators) != 64 || s.Summary.Power != "10000W" || s.Summary.Utilization != "50%" {
		t.Errorf("%d devices, %+v", len(s.Accelerators), s.Summary)
	}
	seen.Pools[0].Status = s
	watts, busy = 109, 0.41
	for i := range w.Report.Devices {
		w.Report.Devices[i].Readings.OthersBytes = gib
	}
	if a := Decide(seen).Pools[0].Accelerators[0]; *a.Power != 100 || *a.Utilization != 50 || !a.Others.IsZero() {
		t.Errorf("%+v", a)
	}
	watts, busy = 116, 0.39
	for i := range w.Report.Devices {
		w.Report.Devices[i].Readings.OthersBytes = 2 * gib
		w.Report.Devices[i].Health = worker.Health{State: worker.DeviceDegraded}
	}
	after := Decide(seen).Pools[0]
	if a := after.Accelerators[0]; *a.Power != 116 || *a.Utilization != 39 || a.Others.Value() != 2*gib || a.State != "Degraded" {
		t.Errorf("%+v", a)
	}
	want := "Device gpu-00 of worker w1 is degraded: it does not say why."
	if c := status.Find(after.Conditions, v1alpha1.ConditionDegraded); c == nil || !strings.HasPrefix(c.Message, want) || !strings.HasSuffix(c.Message, " So are 97 more.") {
		t.Errorf("%+v", c)
	}
}

// TestLargestIsLost: a device that is lost is not the largest one, unless nothing else is there.
func TestLargestIsLost(t *testing.T) {
	w := reporting("w1", 5, 1)
	w.Report.Devices = []worker.Device{
		{Name: "gpu-0", CapacityBytes: 80 * gib, Health: worker.Health{State: worker.DeviceLost}},
		{Name: "gpu-1", CapacityBytes: 10 * gib, Health: worker.Health{State: worker.DeviceHealthy}},
	}
	m := &model{pools: []*pool{{device: 80 * gib, stations: []*station{{Worker: &w}}}}}
	if n := largestDevice(m); n != 10*gib {
		t.Errorf("it has %d GiB", n/gib)
	}
	w.Report.Devices = w.Report.Devices[:1]
	if n := largestDevice(m); n != 80*gib {
		t.Errorf("it has %d GiB", n/gib)
	}
}

// TestGPUMissing: a worker that was to have a GPU and has none is nobody's home, or is one by the processor, as it says; either
// is a condition of the pool. What is not there changes nothing of what a device is expected to have, and a pool
// that needs no worker gets no other one for that.
func TestGPUMissing(t *testing.T) {
	const why = "The container asks for a GPU (nvidia.com/gpu), and there is none to be had: no driver."
	expected := resource.MustParse("80Gi")
	x := fixture.NewModel("x")
	w := reporting("w1", 5, 1)
	w.Report.Missing = why
	w.Report.Devices = []worker.Device{{Name: "gpu-0", Kind: "cuda", ExtentBytes: 2 << 20, Health: worker.Health{State: worker.DeviceLost, Reason: worker.ReasonMissing, Message: why, Since: fixture.Epoch}}}
	seen := seenWith([]v1alpha1.Model{x}, w)
	seen.Pools[0].Spec.Device.Memory, seen.Pools[0].Spec.Workers.Max = &expected, 1
	seen.Inspections = inspected(10, x)
	plan := Decide(seen)
	p := plan.Pools[0]
	says := "Worker w1 has no GPU: " + why
	if c := status.Find(p.Conditions, v1alpha1.ConditionDegraded); c == nil || c.Status != "True" || c.Reason != v1alpha1.ReasonDeviceMissing || c.Message != says {
		t.Errorf("%+v", c)
	}
	if c := status.Find(p.Conditions, v1alpha1.ConditionReady); c == nil || c.Status != "False" || c.Reason != v1alpha1.ReasonDeviceMissing || !strings.HasSuffix(c.Message, says) {
		t.Errorf("%+v", c)
	}
	if p.ReadyWorkers != 0 || p.Summary.Workers != "0/1" || p.Device.Memory != nil || len(p.Accelerators) != 1 || p.Accelerators[0].State != "Lost" || p.Accelerators[0].Reason != "Missing" {
		t.Errorf("%+v", p)
	}
	if c := status.Find(plan.Models[0].Conditions, v1alpha1.ConditionReady); c == nil || c.Reason != v1alpha1.ReasonWaitingForWorker || !strings.HasSuffix(c.Message, says) || len(plan.Models[0].Placements) != 0 {
		t.Errorf("%+v", c)
	}
	if text := StowageOf(seen)[0].Text(); !strings.Contains(text, "w1/gpu-0") || !strings.Contains(text, "; GPU missing: "+strings.TrimSuffix(why, ".")) {
		t.Error(text)
	}
	seen.Inspections = nil
	if plan := Decide(seen); len(plan.Inspect) != 0 {
		t.Errorf("it is asked what a model needs on what it has not: %+v", plan.Inspect)
	}
	seen.Models, seen.Now = nil, fixture.Epoch.Add(lostAgain)
	for i := range seen.Workers {
		seen.Workers[i].Heard = seen.Now
	}
	plan = Decide(seen)
	if going := plan.Memory.Workers["w1"].Going; going != devicesLost {
		t.Errorf("%q", going)
	}
	seen.Memory, seen.Workers = plan.Memory, nil
	if plan = Decide(seen); plan.Create["default/p"] != 0 {
		t.Errorf("%d workers come for nothing", plan.Create["default/p"])
	}

	// A program without CUDA does what it can.
	w = reporting("w1", 5, 1, resident(x, 10))
	w.Report.Missing = why
	seen = seenWith([]v1alpha1.Model{x}, w)
	p = Decide(seen).Pools[0]
	if c := status.Find(p.Conditions, v1alpha1.ConditionDegraded); c == nil || c.Reason != v1alpha1.ReasonDeviceMissing || c.Message != says || p.ReadyWorkers != 1 {
		t.Errorf("%+v", p)
	}
	if text := StowageOf(seen)[0].Text(); !strings.Contains(text, "; GPU missing: ") {
		t.Error(text)
	}
	seen.Pools[0].Status, seen.Workers[0].Report.Missing = p, ""
	if c := status.Find(Decide(seen).Pools[0].Conditions, v1alpha1.ConditionDegraded); c == nil || c.Status != "False" {
		t.Errorf("%+v", c)
	}
}

// TestInstruments: a device of which nobody reads anything, and one that is a part of another, are told as that.
func TestInstruments(t *testing.T) {
	w := reporting("w1", 5, 1)
	w.Report.Devices = []worker.Device{
		{Name: "gpu-0", Kind: "cuda", ExtentBytes: gib, CapacityBytes: gib, Unwatched: true},
		{Name: "gpu-1", Kind: "cuda", ExtentBytes: gib, CapacityBytes: gib, MIG: true},
	}
	text := StowageOf(seenWith(nil, w))[0].Text()
	for _, says := range []string{
		"w1/gpu-0 [....................] 0 B of 1 GiB; nobody watches it, since NVML does not tell of it: its worker's log says why\n",
		"w1/gpu-1 [....................] 0 B of 1 GiB, a MIG instance (power and utilization are its GPU's)\n",
	} {
		if !strings.Contains(text, says) {
			t.Errorf("no %q in %s", says, text)
		}
	}
}
