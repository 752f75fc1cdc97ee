package controllers

import (
	"fmt"
	"strings"
	"testing"

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
