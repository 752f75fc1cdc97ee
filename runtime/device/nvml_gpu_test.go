//go:build cuda && cgo

package device

import (
	"os"
	"slices"
	"testing"
	"time"
)

// TestNVMLOfGPU reads what is really there; elsewhere NVML is emulated. hack/cuda/gpu.sh sets ESTIBA_GPU.
func TestNVMLOfGPU(t *testing.T) {
	if os.Getenv("ESTIBA_GPU") == "" {
		t.Skip("SKIPPED: for machines with a GPU (make test-gpu)")
	}
	m := open(t, nil)
	units, err := m.Devices()
	if err != nil || len(units) == 0 {
		t.Fatalf("%d devices, %v", len(units), err)
	}
	events := m.Events(t.Context())
	for i, u := range units {
		if u.UUID == "" || u.Name == "" || u.PCI == "" || u.Total < 1<<30 {
			t.Errorf("device %d: %+v", i, u)
		}
		if u.Split {
			continue
		}
		before, err := m.Read(u.UUID)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(300 * time.Millisecond) // counters go on every 20 to 100 ms
		r, err := m.Read(u.UUID)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%+v\n%+v", u, r)
		within := func(name string, f Figure, least, most float64) {
			if f.Known && !(f.Value >= least && f.Value <= most) {
				t.Errorf("%s: %v, want %v to %v", name, f.Value, least, most)
			}
		}
		if r.Total <= 0 || r.Free < 0 || r.Ours < 0 || r.Others < 0 || r.Free+r.Ours+r.Others != r.Total || r.Total > u.Total {
			t.Errorf("memory: %+v of %+v", r, u)
		}
		within("utilization", r.Utilization, 0, 1)
		within("temperature", r.TemperatureCelsius, 5, 120)
		within("uncorrected errors", r.ECCUncorrected, 0, 1e6)
		if u.MIG {
			continue
		}
		if !r.PowerWatts.Known {
			t.Error("no power")
		}
		within("power", r.PowerWatts, 1, 2000)
		if r.EnergyJoules.Known { // at the power of now, more or less, since
			spent, took := r.EnergyJoules.Value-before.EnergyJoules.Value, r.Time.Sub(before.Time).Seconds()
			if spent < 0 || spent > 2000*(took+0.2) {
				t.Errorf("%v J within %v s at %v W", spent, took, r.PowerWatts.Value)
			}
		}
		if slices.Contains(r.Throttled, "") {
			t.Errorf("throttled by %q", r.Throttled)
		}
	}
	select {
	case e, ok := <-events:
		if ok {
			t.Logf("event %+v", e)
		}
	default:
	}
}
