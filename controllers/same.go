package controllers

import (
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/estiba/estiba/api/v1alpha1"
)

// sameModelStatus is equality.Semantic.DeepEqual in a fiftieth of its time: each
// decision compares all statuses, most of which say what they said before. A
// test holds that no field is forgotten.
func sameModelStatus(a, b *v1alpha1.ModelStatus) bool {
	return a.ObservedGeneration == b.ObservedGeneration && a.Replicas == b.Replicas && a.ReadyReplicas == b.ReadyReplicas &&
		a.Selector == b.Selector && a.Summary == b.Summary &&
		slices.Equal(a.ServedNames, b.ServedNames) &&
		slices.EqualFunc(a.Footprints, b.Footprints, sameFootprint) &&
		slices.EqualFunc(a.Placements, b.Placements, samePlacement) &&
		slices.EqualFunc(a.Conditions, b.Conditions, sameCondition) &&
		sameTrial(a.Trial, b.Trial)
}

func sameFootprint(a, b v1alpha1.FootprintStatus) bool {
	return a.Pool == b.Pool && a.Revision == b.Revision && a.Measured == b.Measured && a.MaxTokens == b.MaxTokens &&
		a.Weights.Cmp(b.Weights) == 0 && a.KVFloor.Cmp(b.KVFloor) == 0 && a.Workspace.Cmp(b.Workspace) == 0
}

func samePlacement(a, b v1alpha1.Placement) bool {
	return a.Pool == b.Pool && a.Worker == b.Worker && a.State == b.State && a.Reason == b.Reason &&
		slices.Equal(a.Devices, b.Devices) && a.Since.Equal(&b.Since)
}

func sameCondition(a, b metav1.Condition) bool {
	return a.Type == b.Type && a.Status == b.Status && a.Reason == b.Reason && a.Message == b.Message &&
		a.ObservedGeneration == b.ObservedGeneration && a.LastTransitionTime.Equal(&b.LastTransitionTime)
}

func sameTrial(a, b *v1alpha1.Trial) bool {
	if a == nil || b == nil {
		return a == b
	}
	return a.Revision == b.Revision && a.Deaths == b.Deaths && a.Since.Equal(&b.Since) && a.Worker == b.Worker && a.Instance == b.Instance && a.Passed == b.Passed
}
