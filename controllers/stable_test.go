package controllers

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/estiba/estiba/api/v1alpha1"
	"github.com/estiba/estiba/api/worker"
	"github.com/estiba/estiba/internal/fixture"
)

// TestSpread: of two models that keep a device busy one moves to where there is time for it.
func TestSpread(t *testing.T) {
	for name, c := range map[string]struct {
		x, y, z float64 // x and y are on w1, z is on w2
		change  func(seen *Seen)
		moves   bool
	}{
		"both are hot":               {0.5, 0.5, 0, nil, true},
		"there is time for both":     {0.4, 0.4, 0, nil, false},
		"there is no time elsewhere": {0.5, 0.5, 0.4, nil, false},
		"one of them is not at work": {0.9, 0.1, 0, nil, false},
		"no budget":                  {0.5, 0.5, 0, func(seen *Seen) { seen.Pools[0].Spec.Moves.MaxPerHour = new(int32) }, false},
		"neither may move": {0.5, 0.5, 0, func(seen *Seen) {
			for i := range seen.Models {
				seen.Models[i].Spec.Eviction = v1alpha1.EvictNever
			}
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			at := func(m v1alpha1.Model, size int64, load float64) worker.HomeState {
				h := resident(m, size)
				h.Load = load
				return h
			}
			x, y, z := fixture.NewModel("x"), fixture.NewModel("y"), fixture.NewModel("z")
			w1, w2 := reporting("w1", 5, 1, at(x, 30, c.x), at(y, 30, c.y)), reporting("w2", 5, 1, at(z, 30, c.z))
			w1.Report.Devices[0].Load, w2.Report.Devices[0].Load = c.x+c.y, c.z
			seen := seenWith([]v1alpha1.Model{x, y, z}, w1, w2)
			seen.Pools[0].Spec.Workers.Min = 2
			if c.change != nil {
				c.change(&seen)
			}
			seen.Memory = Decide(seen).Memory
			seen.Now = seen.Now.Add(2 * tidied)
			plan := Decide(seen)
			if moves := len(plan.Moves) == 1 && plan.Moves[0].Kind == MoveSpreads; moves != c.moves || len(plan.Moves) > 1 {
				t.Errorf("moves %+v, want one: %v", plan.Moves, c.moves)
			}
			if !slices.Equal(movers(plan.Moves), movers(plan.Memory.Moved)) {
				t.Errorf("memory keeps %+v of %+v", plan.Memory.Moved, plan.Moves)
			}
		})
	}
}

func movers(moves []Move) (all []string) {
	for _, v := range moves {
		all = append(all, v.Model)
	}
	return all
}

// settled says that nothing changes for so long, after as long as it may take.
func (s *story) settled(t *testing.T, what string, within, quiet time.Duration) {
	t.Helper()
	for range int(within / time.Second) {
		s.tick(t)
	}
	before := s.out.String()
	s.out.Reset()
	for range int(quiet / time.Second) {
		s.tick(t)
	}
	if s.out.Len() > 0 {
		t.Errorf("%s: after %v, something still changes:\n%s\nbefore that:\n%s", what, within, s.out.String(), before)
	}
}

// TestOrdinary: three models on two workers, which fit, never move.
func TestOrdinary(t *testing.T) {
	s := newStory(2)
	s.add("x", 40)
	s.add("y", 30)
	s.add("z", 20, fixture.Autoscaled(0, 1))
	s.loads = map[string]float64{"default/x": 0.6, "default/y": 0.3, "default/z": 0.2}
	for i := range 6 {
		s.held["default/z"] = i % 2
		for range 600 {
			s.tick(t)
			if len(s.memory.Moved) > 0 {
				t.Fatalf("something moves:\n%s", s.out.String())
			}
		}
	}
}

// TestStable: with a constant demand, a cluster comes to rest.
func TestStable(t *testing.T) {
	for seed := range uint64(12) {
		r := rand.New(rand.NewPCG(seed, 4))
		s := newStory(int32(1 + r.IntN(3)))
		s.pools[0].Spec.Workers.Max += int32(r.IntN(3))
		s.loads = map[string]float64{}
		for i := range 3 + r.IntN(10) {
			name := fmt.Sprintf("m%02d", i)
			change := []func(*v1alpha1.Model){func(m *v1alpha1.Model) { m.Spec.Priority = int32(r.IntN(3)) }}
			if r.IntN(2) == 0 {
				change = append(change, fixture.Autoscaled(0, 1))
				if r.IntN(3) < int(seed%4) { // none, or all of them
					s.held["default/"+name] = 1
				}
			}
			s.add(name, []int64{5, 9, 14, 20, 30, 42, 60, 75}[r.IntN(8)], change...)
			s.loads["default/"+name] = []float64{0, 0.1, 0.25, 0.55, 1}[r.IntN(5)]
		}
		gone := r.IntN(len(s.models)) // somebody leaves, so that there is something to tidy up
		for i := range 60 * 5 {
			if i == 60 {
				s.forget(s.models[gone].Name)
			}
			s.tick(t)
		}
		for key := range s.held {
			if !slices.ContainsFunc(s.models, func(m v1alpha1.Model) bool { return Key(&m) == key }) {
				delete(s.held, key)
			}
		}
		s.settled(t, fmt.Sprintf("seed %d", seed), 25*time.Minute, 10*time.Minute)
		t.Logf("seed %d: %d moves, %d models, %d pods", seed, len(s.memory.Moved), len(s.models), len(s.pods))
	}
}

// TestOverload: three devices, four times what fits on them, and who is asked for
// changes. Crowded homes move, but far less often than that: none hops about.
func TestOverload(t *testing.T) {
	for seed := range uint64(3) {
		r := rand.New(rand.NewPCG(seed, 9))
		s := newStory(3)
		for i := range 12 {
			s.add(fmt.Sprintf("m%02d", i), []int64{20, 30, 42, 60}[r.IntN(4)], fixture.Autoscaled(0, 1))
		}
		changes, moves := 0, 0
		for i := range 1800 {
			if i%20 == 0 {
				changes++
				key := Key(&s.models[r.IntN(len(s.models))])
				s.held[key] = 1 - s.held[key]
			}
			s.tick(t)
			moves += strings.Count(s.out.String(), " moves from ")
			s.out.Reset()
		}
		t.Logf("seed %d: %d changes, %d moves", seed, changes, moves)
		if 3*moves > changes {
			t.Errorf("seed %d: %d moves after %d changes", seed, moves, changes)
		}
	}
}

// TestLoadAtFirst: the average of a model that has been at work without a pause since
// it came is what it will be; a burst, or a model that sleeps, is what is reported.
func TestLoadAtFirst(t *testing.T) {
	always, sleeps := model{Model: &v1alpha1.Model{}}, model{Model: &v1alpha1.Model{}}
	fixture.Autoscaled(0, 1)(sleeps.Model)
	for _, c := range []struct {
		model    *model
		load     float64
		resident float64 // seconds
		want     int
	}{
		{&always, 0.1813, 60, 1000}, // 1 - exp(-60/300)
		{&always, 0.0906, 60, 500},
		{&always, 0.5, 3600, 500},
		{&always, 0.01, 3, 10},
		{&sleeps, 0.1, 60, 100},
	} {
		h := home{model: c.model, state: &worker.HomeState{Load: c.load, ResidentSeconds: c.resident}}
		if got := h.load(); got != c.want {
			t.Errorf("%v after %v s is %d, want %d", c.load, c.resident, got, c.want)
		}
	}
}
