package controllers

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/estiba/estiba/api/v1alpha1"
	"github.com/estiba/estiba/api/worker"
	"github.com/estiba/estiba/internal/fixture"
)

// TestHistories lives through random histories: models come, go and are asked
// for, pods and processes die, reports are late, operators change. All the while
// nothing is given more than there is, in any order of input (story.check), and no
// model has more homes than it should for long. Once it is quiet, whatever fits has
// a home, and nothing is left under way.
func TestHistories(t *testing.T) {
	for seed := range uint64(24) {
		r := rand.New(rand.NewPCG(seed, 11))
		s := newStory(int32(1 + r.IntN(4)))
		s.pools[0].Spec.Workers.Max += int32(r.IntN(2))
		tooMany := map[string]int{} // model -> seconds
		for i := range 150 {
			if i%3 == 0 {
				s.happens(r)
			}
			s.tick(t)
			s.notTooMany(t, seed, tooMany)
			if t.Failed() {
				t.Fatalf("seed %d:\n%s", seed, s.out.String())
			}
		}
		if s.braked {
			t.Errorf("seed %d: ordinary life was braked", seed)
		}
		clear(s.held)
		for _, p := range s.pods {
			p.muted = false
			clear(p.running)
		}
		for range 150 {
			s.tick(t)
			s.notTooMany(t, seed, tooMany)
		}
		if len(s.memory.Moves)+len(s.memory.Rooms) > 0 {
			t.Errorf("moves %v and rooms %v are under way for ever", s.memory.Moves, s.memory.Rooms)
		}
		s.allThatFit(t)
		if t.Failed() {
			t.Fatalf("seed %d:\n%s", seed, s.out.String())
		}
	}
}

// happens is one thing that happens in the cluster.
func (s *story) happens(r *rand.Rand) {
	anyone := func() string { return s.models[r.IntN(len(s.models))].Name }
	what := r.IntN(20)
	if what < 8 && len(s.models) < 12 || len(s.models) == 0 {
		s.made++
		change := []func(*v1alpha1.Model){func(m *v1alpha1.Model) {
			m.Spec.Priority = int32(r.IntN(3))
			if r.IntN(8) == 0 {
				m.Spec.Eviction = v1alpha1.EvictNever
			}
		}}
		switch r.IntN(4) {
		case 0, 1:
			change = append(change, fixture.Autoscaled(0, 1+int32(r.IntN(2))))
		case 2:
			change = append(change, fixture.Replicas(1+int32(r.IntN(2))))
		}
		s.add(fmt.Sprintf("m%02d", s.made), []int64{5, 10, 20, 30, 45, 60}[r.IntN(6)], change...)
		s.say("a model comes: %s", s.models[len(s.models)-1].Name)
		return
	}
	switch {
	case what < 10:
		name := anyone()
		s.say("%s is deleted", name)
		s.forget(name)
		delete(s.held, "default/"+name)
	case what < 14:
		name := anyone()
		s.held["default/"+name] = r.IntN(4)
		s.say("%d requests for %s", s.held["default/"+name], name)
	case len(s.pods) == 0:
	case what < 15:
		p := s.pods[r.IntN(len(s.pods))]
		s.say("%s dies", p.Name)
		p.start(s)
	case what < 16:
		p := s.pods[r.IntN(len(s.pods))]
		s.say("%s is removed", p.Name)
		s.remove(p.Name)
	case what < 17:
		p := s.pods[r.IntN(len(s.pods))]
		p.muted = !p.muted
		s.say("%s is silent: %v", p.Name, p.muted)
	case what < 18:
		s.pods[r.IntN(len(s.pods))].stale = 1 + r.IntN(4)
	case what < 19:
		s.say("another operator")
		s.lead()
	}
}

// notTooMany: for at most two minutes a model has one home more than it should.
func (s *story) notTooMany(t *testing.T, seed uint64, since map[string]int) {
	t.Helper()
	for _, m := range s.models {
		key, n := Key(&m), 0
		for _, p := range s.pods {
			if !p.muted && slices.ContainsFunc(p.held.Homes, func(h worker.Home) bool { return h.Model == key && !h.Draining }) {
				n++
			}
		}
		wanted := 1
		if m.Spec.Replicas != nil {
			wanted = int(*m.Spec.Replicas)
		}
		if m.Spec.Autoscaling != nil {
			wanted = int(m.Spec.Autoscaling.Max)
		}
		if n <= wanted {
			delete(since, key)
			continue
		}
		if since[key]++; n > wanted+1 || since[key] > 120 {
			t.Errorf("seed %d: %s has %d homes and should have %d", seed, m.Name, n, wanted)
		}
	}
}

// allThatFit: no model is without a home while a device has room for it.
func (s *story) allThatFit(t *testing.T) {
	t.Helper()
	for _, m := range s.models {
		if m.Status.Trial != nil && !m.Status.Trial.Passed {
			return // who is tried keeps a worker for itself
		}
	}
	for _, m := range s.models {
		if len(m.Status.Placements) > 0 {
			continue
		}
		need := s.sources[m.Spec.Source.URI].Footprint.Total()
		for _, p := range s.pods {
			free := int64(s.capacity) * gib
			for _, h := range p.homes {
				free -= h.Footprint.Total()
			}
			if free >= need {
				t.Errorf("%s has no home, and %s has %d GiB free for its %d", m.Name, p.Name, free/gib, need/gib)
			}
		}
	}
}
