package worker

import (
	"math"
	"testing"
	"testing/synctest"
	"time"

	"github.com/estiba/estiba/runtime/engine"
	"github.com/estiba/estiba/runtime/residency"
)

// TestLoadAndAwake: what is reported of two models, of which one has a request for five
// minutes whose steps take all of the device, and the other none. It goes on while the
// model sleeps, and while it is not at home here for a while.
func TestLoadAndAwake(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newWorld(t)
		w, end := o.worker(t, nil)
		defer end()
		a, b := o.home("a", 4*mib, asleep), o.home("b", 4*mib)
		assign(t, w, a, b)
		near := func(what string, got, want float64) {
			t.Helper()
			if math.Abs(got-want) > 1e-3 {
				t.Errorf("%s: %v, want %v", what, got, want)
			}
		}
		decay := func(d, over time.Duration) float64 { return math.Exp(-d.Seconds() / over.Seconds()) }
		l, release, err := w.Use(t.Context(), "ns/a")
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		for range 60 {
			events, err := l.Engine.Submit(t.Context(), engine.Request{Replica: l.Replica, Prompt: []int32{0}, MaxTokens: 500})
			if err != nil {
				t.Fatal(err)
			}
			for range events { // 5 s
			}
		}
		release()
		took := time.Since(began)
		s := w.State()
		near("busy", s.Homes[0].BusySeconds, took.Seconds())
		near("load", s.Homes[0].Load, 1-decay(took, residency.LoadOver))
		near("the device's load", s.Devices[0].Load, s.Homes[0].Load)
		near("the load's time", s.Homes[0].LoadSeconds, 0.1)
		used := 1 - (1-residency.NewAwake)*decay(took, residency.AwakeOver)
		near("awake", s.Homes[0].Awake, used)
		near("the other's load", s.Homes[1].Load, 0)
		near("the other's awake share", s.Homes[1].Awake, residency.NewAwake*decay(took, residency.AwakeOver))
		load := s.Homes[0].Load

		a.Revision = "2" // it is loaded anew when somebody asks for it
		assign(t, w, a, b)
		after(t, w, time.Minute, "a:Idle b:Resident")
		assign(t, w, b)
		time.Sleep(4 * time.Minute)
		assign(t, w, a, b)
		s = w.State()
		near("load after a pause", s.Homes[0].Load, load*decay(5*time.Minute, residency.LoadOver))
		near("awake after a pause", s.Homes[0].Awake, used*decay(5*time.Minute, residency.AwakeOver))
		near("busy after a pause", s.Homes[0].BusySeconds, took.Seconds())
	})
}
