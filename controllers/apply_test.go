package controllers

import (
	"context"
	"errors"
	"testing"

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
