package controllers

import (
	"context"
	"errors"
	"reflect"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/estiba/estiba/api/v1alpha1"
	"github.com/estiba/estiba/internal/fixture"
	"github.com/estiba/estiba/internal/status"
)

// Writes go several at a time and in their order, stop when time is over or all
// fail, and the loop hears of each that was begun.
func TestCarry(t *testing.T) {
	gone := apierrors.NewNotFound(schema.GroupResource{Resource: "models"}, "x")
	for name, c := range map[string]struct {
		writes, begun, failed int
		until                 time.Duration
		err                   func(i int) error
	}{
		"all":        {writes: 100, begun: 100},
		"none":       {},
		"time":       {writes: 100, until: 25 * time.Millisecond, begun: 3 * writers},
		"one fails":  {writes: 100, begun: 100, failed: 1, err: func(i int) error { return map[int]error{7: errors.New("conflict")}[i] }},
		"all fail":   {writes: 100, begun: -1, err: func(int) error { return errors.New("no connection") }},
		"all gone":   {writes: 100, begun: 100, err: func(int) error { return gone }},
		"none to do": {until: time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var mu sync.Mutex
				var sent []int
				var done []int
				under, most := 0, 0
				var all []write
				for i := range c.writes {
					all = append(all, write{
						send: func(context.Context) error {
							mu.Lock()
							sent = append(sent, i)
							under++
							most = max(most, under)
							mu.Unlock()
							time.Sleep(10 * time.Millisecond)
							mu.Lock()
							defer mu.Unlock()
							under--
							if c.err == nil {
								return nil
							}
							return c.err(i)
						},
						done: func(error) { done = append(done, i) },
					})
				}
				var until time.Time
				if c.until > 0 {
					until = time.Now().Add(c.until)
				}
				begun, failed := carry(t.Context(), all, until)
				if c.begun < 0 { // the others may have begun another one each
					if begun < writers || begun >= 2*writers || len(failed) != begun {
						t.Errorf("%d were begun, %d failed", begun, len(failed))
					}
					return
				}
				if begun != c.begun || len(failed) != c.failed || len(sent) != begun || most != min(writers, c.writes) {
					t.Errorf("%d were begun, %d failed, %d sent, %d at a time", begun, len(failed), len(sent), most)
				}
				slices.Sort(sent)
				if !slices.Equal(sent, done) || begun > 0 && sent[begun-1] != begun-1 {
					t.Errorf("sent %v, done %v", sent, done)
				}
			})
		})
	}
}

// What was decided and is not written yet is where the next decision goes on
// from, and what is written in the end is the difference to what the API server has.
func TestDecidedGoesOn(t *testing.T) {
	m := fixture.NewModel("x")
	m.Status.Conditions = status.Verdict{Reason: v1alpha1.ReasonWaitingForWorker, Progressing: true}.Conditions(nil, 1, fixture.Epoch)
	was := m.Status
	r := &Reconciler{models: map[uid]written[v1alpha1.ModelStatus]{}}
	loading := v1alpha1.ModelStatus{Conditions: status.Verdict{Reason: v1alpha1.ReasonLoading, Progressing: true}.Conditions(was.Conditions, 1, fixture.Epoch),
		Placements: []v1alpha1.Placement{{Worker: "w", Reason: "there is room"}}}
	decide := func(after v1alpha1.ModelStatus, now time.Time) (writes []write, next time.Time) {
		models := []v1alpha1.Model{m} // as the cache shows it
		r.statuses(models, now)
		if len(r.waiting) > 0 && !reflect.DeepEqual(models[0].Status, r.waiting[m.UID].status) {
			t.Error("the decision goes on from what the cache shows")
		}
		_, writes, r.waiting, next = r.modelWrites(Seen{Now: now, Models: models}, Plan{Models: []v1alpha1.ModelStatus{after}})
		return writes, next
	}
	if writes, next := decide(loading, fixture.Epoch); len(writes) != 0 || !next.Equal(fixture.Epoch.Add(moment)) {
		t.Errorf("Loading is %d writes at once, the next at %v", len(writes), next)
	}
	serving := loading
	serving.Conditions = status.Verdict{Ready: true, Reason: v1alpha1.ReasonServing}.Conditions(loading.Conditions, 1, fixture.Epoch)
	writes, _ := decide(serving, fixture.Epoch.Add(moment/2))
	if w := r.waiting[m.UID]; len(writes) != 1 || !reflect.DeepEqual(w.before, was) || !w.loading.IsZero() {
		t.Errorf("%d writes, waiting is %+v", len(writes), w)
	}
	if writes, _ := decide(was, fixture.Epoch.Add(moment)); len(writes) != 0 || len(r.waiting) != 0 {
		t.Error("what is as the API server has it is to be written")
	}
	decide(loading, fixture.Epoch)
	if writes, _ := decide(loading, fixture.Epoch.Add(moment)); len(writes) != 1 {
		t.Error("Loading is never written")
	}
}

// What is seen belongs to the informers' cache, and to whoever keeps decisions.
func TestDecideChangesNothingSeen(t *testing.T) {
	seen := crowd(200, 20)
	for range 3 {
		changed(&seen, 10)
		models, workers := make([]*v1alpha1.Model, 0), make([]any, 0)
		for i := range seen.Models {
			models = append(models, seen.Models[i].DeepCopy())
		}
		for i := range seen.Workers {
			report := *seen.Workers[i].Report
			report.Homes, report.Devices = slices.Clone(report.Homes), slices.Clone(report.Devices)
			workers = append(workers, report)
		}
		plan := Decide(seen)
		for i := range models {
			if !reflect.DeepEqual(models[i], &seen.Models[i]) {
				t.Fatalf("Model %s has changed", models[i].Name)
			}
		}
		for i := range workers {
			if !reflect.DeepEqual(workers[i], *seen.Workers[i].Report) {
				t.Fatalf("the report of %s has changed", seen.Workers[i].Name)
			}
		}
		settleCrowd(&seen, plan)
	}
}
