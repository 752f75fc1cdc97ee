package controllers

import (
	"context"
	"encoding/json"
	"errors"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/api/equality"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/estiba/estiba/api/v1alpha1"
	"github.com/estiba/estiba/internal/fixture"
)

// away is an API server that takes no status.
type away struct{ client.Client }

func (away) Status() client.SubResourceWriter { return awayStatus{} }

type awayStatus struct{ client.SubResourceWriter }

func (awayStatus) Patch(context.Context, client.Object, client.Patch, ...client.SubResourcePatchOption) error {
	return errors.New("no connection")
}

// A death that cannot be written down is found again by the next decision.
func TestDeathIsNotForgotten(t *testing.T) {
	m := fixture.NewModel("x")
	before := reporting("w", 5, 1, resident(m, 10))
	before.Report.Homes[0].Running = 1
	seen := seenWith([]v1alpha1.Model{m}, before)
	r := &Reconciler{client: away{}, memory: Decide(seen).Memory, models: map[uid]written[v1alpha1.ModelStatus]{}}

	for try := range 3 {
		after := reporting("w", 0, 0)
		after.Report.Instance = "w.2"
		seen = seenWith([]v1alpha1.Model{m}, after)
		seen.Memory = r.memory
		plan := Decide(seen)
		if trial := plan.Models[0].Trial; trial == nil || trial.Deaths != 1 {
			t.Fatalf("try %d: the trial is %+v", try, trial)
		}
		if _, err := r.apply(t.Context(), seen, plan); err == nil {
			t.Fatal("the status could not be written, and nobody says so")
		}
	}
}

// What an API server gives back of a status is not another status, or it would
// be written again and again.
func TestStatusComesBackTheSame(t *testing.T) {
	m := fixture.NewModel("x")
	w := reporting("w", 5, 1, resident(m, 10))
	w.Report.Homes[0].Running = 1
	seen := seenWith([]v1alpha1.Model{m}, w)
	seen.Now = fixture.Epoch.Add(123456789).In(time.FixedZone("elsewhere", 3600))
	seen.Memory = Decide(seen).Memory
	w = reporting("w", 0, 0) // died: the Model is on trial
	w.Report.Instance = "w.2"
	seen.Workers = []Worker{w}
	plan := Decide(seen)

	var model v1alpha1.ModelStatus
	var pool v1alpha1.InferencePoolStatus
	for from, to := range map[any]any{&plan.Models[0]: &model, &plan.Pools[0]: &pool} {
		text, err := json.Marshal(from)
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(text, to); err != nil {
			t.Fatal(err)
		}
	}
	if plan.Models[0].Trial == nil || !equality.Semantic.DeepEqual(plan.Models[0], model) {
		t.Errorf("went as %+v, came back as %+v", plan.Models[0], model)
	}
	if !equality.Semantic.DeepEqual(plan.Pools[0], pool) {
		t.Errorf("went as %+v, came back as %+v", plan.Pools[0], pool)
	}
}

// A refused pod is not asked for with every decision.
func TestRefusedPodWaits(t *testing.T) {
	f := refusal{hash: "a", at: fixture.Epoch}
	if again := f.again("a"); !again.Equal(fixture.Epoch.Add(retry)) {
		t.Errorf("again at %v", again)
	}
	if again := f.again("b"); !again.IsZero() {
		t.Errorf("another template waits until %v", again)
	}
}
