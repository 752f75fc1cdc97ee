package controllers

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/estiba/estiba/api/v1alpha1"
	"github.com/estiba/estiba/api/worker"
	"github.com/estiba/estiba/internal/fixture"
	"github.com/estiba/estiba/internal/status"
)

// newStory is a cluster with a pool "a" of so many workers.
func newStory(workers int32) *story {
	return &story{now: fixture.Epoch, epoch: 1, capacity: 80, sources: map[string]worker.Inspection{}, sent: map[string]worker.Assignment{},
		inspections: map[InspectKey]Inspected{}, held: map[string]int{}, hashes: map[string]string{},
		pools: []v1alpha1.InferencePool{fixture.NewPool("a", workers, workers)}}
}

// add a model of so many GiB.
func (s *story) add(name string, size int64, change ...func(*v1alpha1.Model)) {
	m := fixture.NewModel(name, change...)
	s.sources[m.Spec.Source.URI] = worker.Inspection{Footprint: worker.Footprint{WeightsBytes: size * gib}, MaxTokens: 512}
	s.models = append(s.models, m)
}

// served: a home of the model answers requests.
func (s *story) served(key string) bool {
	p := s.routes[key]
	return p != nil && p.homes[key] != nil && p.homes[key].Phase == worker.PhaseResident
}

// TestForty is what Estiba is for: forty models on four devices of 80 GiB, ten
// times what fits at once. Whoever is asked for answers soon, whatever the order;
// as long as those that are asked for at the same time fit together.
func TestForty(t *testing.T) {
	for seed := range uint64(4) {
		r := rand.New(rand.NewPCG(seed, 40))
		s := newStory(4)
		total := int64(0)
		for i := range 40 {
			size := []int64{2, 4, 7, 9, 14, 16, 24, 33, 40, 60}[i%10]
			total += size
			s.add(fmt.Sprintf("m%02d", i), size, fixture.Autoscaled(0, 1))
		}
		for range 20 {
			s.tick(t)
		}
		for _, m := range s.models {
			if c := status.Find(m.Status.Conditions, v1alpha1.ConditionReady); c.Status != "True" {
				t.Errorf("seed %d: %s has no home: %s", seed, m.Name, c.Message)
			}
		}
		waits, late, worst := map[string]int{}, 0, 0 // seconds
		for range 600 {
			for _, m := range s.models {
				key := Key(&m)
				switch {
				case s.held[key] > 0 && s.served(key) && r.IntN(5) == 0: // requests end
					delete(s.held, key)
					delete(waits, key)
				case s.held[key] > 0 && !s.served(key):
					waits[key]++
					worst = max(worst, waits[key])
					if waits[key] == 60 {
						late++
					}
				case s.held[key] > 0:
					delete(waits, key)
				case r.IntN(200) == 0:
					s.held[key] = 1 + r.IntN(3)
				}
			}
			s.tick(t)
			s.out.Reset()
		}
		t.Logf("seed %d: %d GiB, the longest wait was %d s, %d waited for a minute", seed, total, worst, late)
		if late > 0 {
			t.Errorf("seed %d: %d requests waited for a minute", seed, late)
		}
	}
}
