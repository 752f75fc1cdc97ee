package controllers

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/estiba/estiba/api/v1alpha1"
	"github.com/estiba/estiba/api/worker"
	"github.com/estiba/estiba/internal/fixture"
)

// start worker pods of pool "a" that hold the models for a while already, each
// line one worker's.
func (s *story) workers(held ...string) {
	for i, line := range held {
		p := &pod{Worker: Worker{Name: fmt.Sprintf("a-%d", i+1), Pool: "default/a"}, running: map[string]int{}}
		p.start(s)
		for name := range strings.FieldsSeq(line) {
			m := &s.models[slices.IndexFunc(s.models, func(m v1alpha1.Model) bool { return m.Name == name })]
			h := worker.Home{Model: Key(m), Revision: Revision(m), Source: modelSource(m), Devices: []string{"gpu-0"}, Resident: m.Spec.Autoscaling == nil}
			st := &worker.HomeState{Model: h.Model, Revision: h.Revision, Devices: h.Devices, Phase: worker.PhaseIdle, Tier: worker.TierDisk,
				Footprint: s.sources[h.Source.URI].Footprint, WantResident: h.Resident}
			if h.Resident {
				st.Phase, st.Tier, p.loaded[h.Model] = worker.PhaseResident, worker.TierDevice, s.now.Add(-time.Hour)
			}
			p.held.Homes = append(p.held.Homes, h)
			p.homes[h.Model] = st
		}
		s.pods, s.made = append(s.pods, p), s.made+1
	}
}

// fragmented is a pool of three workers with 80 GiB each and "big", which fits
// nowhere: y has to move to the third one.
func fragmented() *story {
	s := newStory(3)
	for name, size := range map[string]int64{"x1": 30, "x2": 30, "y": 30, "z": 50} {
		s.add(name, size)
	}
	slices.SortFunc(s.models, func(a, b v1alpha1.Model) int { return strings.Compare(a.Name, b.Name) })
	s.workers("x1 x2", "y", "z")
	s.add("big", 60)
	return s
}

// answers: a request for the model, which comes now, would be answered without a wait.
func (s *story) answers(key string) bool {
	return slices.ContainsFunc(s.pods, func(p *pod) bool {
		h := p.homes[key]
		return h != nil && h.Phase == worker.PhaseResident
	})
}

// draining: some worker has been told to drain a home of the model.
func (s *story) draining(key string) bool {
	for _, p := range s.pods {
		for _, h := range slices.Concat(p.held.Homes, s.sent[p.Name].Homes) {
			if h.Model == key && h.Draining {
				return true
			}
		}
	}
	return false
}

// residents is how many workers have the model on their device.
func (s *story) residents(key string) (n int) {
	for _, p := range s.pods {
		if h := p.homes[key]; h != nil && h.Tier == worker.TierDevice {
			n++
		}
	}
	return n
}

// converged: every model is on one device, and each worker does as it was told.
func (s *story) converged(t *testing.T, what string) {
	t.Helper()
	for i := range s.models {
		if n := s.residents(Key(&s.models[i])); n != 1 {
			t.Errorf("%s: %s is on %d devices:\n%s", what, s.models[i].Name, n, s.out.String())
		}
	}
	if len(s.memory.Moves)+len(s.memory.Rooms)+len(s.memory.Gave) > 0 {
		t.Errorf("%s: memory keeps %+v %+v %+v", what, s.memory.Moves, s.memory.Rooms, s.memory.Gave)
	}
}

// TestMove: a model that fits only after a move gets there, while the one that
// moves answers all the time, with requests that go on for ten seconds at its old
// home; and whatever dies at whatever step, it ends well.
func TestMove(t *testing.T) {
	pause := func(s *story) {}
	for name, c := range map[string]struct {
		fault func(s *story)
		gap   bool // y may be away, since its worker is
		after bool // it may be if that happens when the old home has been told to drain
	}{
		"nothing happens":                       {fault: pause},
		"another operator takes over":           {fault: func(s *story) { s.lead() }},
		"another one that knows no status":      {fault: func(s *story) { s.lead(); s.pools[0].Status = v1alpha1.InferencePoolStatus{} }},
		"the new home's process dies":           {fault: func(s *story) { s.pod("a-3").start(s) }, after: true},
		"the old home's process dies":           {fault: func(s *story) { s.pod("a-2").start(s) }, gap: true},
		"the old home's and the operator":       {fault: func(s *story) { s.pod("a-2").start(s); s.lead() }, gap: true},
		"the new home's and the operator":       {fault: func(s *story) { s.pod("a-3").start(s); s.lead() }, after: true},
		"the new home's pod is deleted":         {fault: func(s *story) { s.remove("a-3") }, gap: true},
		"the old home's pod is deleted":         {fault: func(s *story) { s.remove("a-2") }, gap: true},
		"the new home reports late":             {fault: func(s *story) { s.pod("a-3").stale = 5 }},
		"the old home reports late":             {fault: func(s *story) { s.pod("a-2").stale = 5 }},
		"the new home is not heard for a while": {fault: func(s *story) { s.pod("a-3").muted = true }},
		"the waiting model is deleted":          {fault: func(s *story) { s.forget("big") }},
		"the moving model is deleted":           {fault: func(s *story) { s.forget("y") }, gap: true},
	} {
		t.Run(name, func(t *testing.T) {
			for step := range 12 {
				s := fragmented()
				s.held["default/y"] = 1 // requests that end when the test says so
				what, gap := fmt.Sprintf("%s at step %d", name, step), false
				for i := range 80 {
					if i == step {
						c.fault(s)
						gap = c.gap || c.after && (s.draining("default/y") || s.pod("a-2").homes["default/y"] == nil)
					}
					if i == step+15 {
						for _, p := range s.pods {
							p.muted = false
						}
					}
					s.tick(t)
					if !gap && !s.answers("default/y") {
						t.Fatalf("%s: y does not answer after %d s:\n%s", what, i, s.out.String())
					}
				}
				s.converged(t, what)
				if t.Failed() {
					return
				}
			}
		})
	}
}

// TestHot: two models that keep a device busy are not put together while there
// is room elsewhere, neither by placing nor by emptying a worker.
func TestHot(t *testing.T) {
	x, y := fixture.NewModel("x"), fixture.NewModel("y", fixture.Replicas(2))
	at := func(name string, load float64, homes ...worker.HomeState) Worker {
		for i := range homes {
			homes[i].Load = load
		}
		w := reporting(name, 5, 1, homes...)
		w.Report.Devices[0].Load = load
		return w
	}
	for load, want := range map[float64]string{0.1: "w1", 0.7: "w3"} { // the fuller one, or the one that has time
		seen := seenWith([]v1alpha1.Model{x, y}, at("w1", load, resident(x, 40)), at("w2", load, resident(y, 40)), at("w3", 0))
		seen.Inspections = inspected(40, y)
		seen.Pools[0].Spec.Workers.Max = 3
		if a := Decide(seen).Assignments[want]; !strings.Contains(holds(a), "y") {
			t.Errorf("at a load of %v y is not on %s: %+v", load, want, a)
		}
	}
	y = fixture.NewModel("y")
	for load, want := range map[float64]int{0.1: 1, 0.7: 0} {
		seen := seenWith([]v1alpha1.Model{x, y}, at("w1", load, resident(x, 30)), at("w2", load, resident(y, 20)))
		seen.Memory = Decide(seen).Memory
		seen.Now = seen.Now.Add(2 * tidied)
		if plan := Decide(seen); len(plan.Moves) != want {
			t.Errorf("at a load of %v %+v moves, want %d", load, plan.Moves, want)
		}
	}
}

// TestBudgetRaised: a pool that may not move anything does not begin at once when it may: a look had been due for long.
func TestBudgetRaised(t *testing.T) {
	x, y := fixture.NewModel("x"), fixture.NewModel("y")
	seen := seenWith([]v1alpha1.Model{x, y}, reporting("w1", 5, 1, resident(x, 30)), reporting("w2", 5, 1, resident(y, 20)))
	none := int32(0)
	seen.Pools[0].Spec.Moves.MaxPerHour = &none
	for range 21 {
		seen.Memory = Decide(seen).Memory
		seen.Now = seen.Now.Add(tidied / 2)
	}
	seen.Pools[0].Spec.Moves.MaxPerHour = nil
	for i, want := range []int{0, 1} {
		plan := Decide(seen)
		if len(plan.Moves) != want {
			t.Errorf("%d half minutes later: %+v, want %d moves", i, plan.Moves, want)
		}
		seen.Memory, seen.Now = plan.Memory, seen.Now.Add(tidied/2)
	}
}
