package top

import (
	"bytes"
	"strings"
	"testing"

	"github.com/estiba/estiba/api/v1alpha1"
	"github.com/estiba/estiba/internal/fixture"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestWrite(t *testing.T) {
	condition := func(kind string, status metav1.ConditionStatus, reason, message string) metav1.Condition {
		return metav1.Condition{Type: kind, Status: status, Reason: reason, Message: message}
	}
	home := v1alpha1.Placement{Worker: "w-1", Devices: []string{"cpu-0"}, State: v1alpha1.PlacementResident, Reason: "tightest of 2"}
	good := fixture.NewModel("good")
	good.Status.Conditions = []metav1.Condition{condition("Ready", "True", "Serving", "1 of 1 replica answers requests."), condition("Stalled", "False", "Serving", "fine")}
	good.Status.Placements, good.Status.Replicas, good.Status.ReadyReplicas = []v1alpha1.Placement{home}, 1, 1
	stalled := *good.DeepCopy()
	stalled.Name = "stalled"
	stalled.Status.Conditions[1] = condition("Stalled", "True", "InvalidModel", "model.safetensors is cut short.")
	few := *good.DeepCopy()
	few.Name, few.Spec.Replicas = "few", new(int32(3))
	few.Status.Conditions = append(few.Status.Conditions, condition("Placed", "False", "DoesNotFit", "Needs 3 GiB."))
	nowhere := fixture.NewModel("nowhere")

	var out bytes.Buffer
	s := Stowage{Pools: []v1alpha1.InferencePool{fixture.NewPool("a", 0, 1)}, Models: []v1alpha1.Model{good, stalled, few, nowhere}}
	if err := s.write(&out); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"good True Serving 1/1 - w-1/cpu-0 Resident tightest of 2",
		"stalled True Serving 1/1 - w-1/cpu-0 Resident model.safetensors is cut short.",
		"few True Serving 1/3 - w-1/cpu-0 Resident Needs 3 GiB.",
		"nowhere - - 0/1 - - - Nothing has been decided yet.",
	} {
		if !strings.Contains(strings.Join(strings.Fields(out.String()), " "), want) {
			t.Errorf("no %q in\n%s", want, out.String())
		}
	}
}
