package controllers

import (
	"strings"
	"testing"
	"time"

	"github.com/estiba/estiba/internal/fixture"
	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// A name is the older Model's; one of another namespace is reached by its full name.
func TestNamesAcrossNamespaces(t *testing.T) {
	young, old := fixture.NewModel("m"), fixture.NewModel("m")
	old.Namespace, young.Namespace = "one", "two"
	young.Spec.ServedNames = []string{"alias"}
	old.CreationTimestamp, young.CreationTimestamp = metav1.Unix(1, 0), metav1.Unix(2, 0)
	seen := Seen{Now: time.Unix(3, 0), Settled: true}
	seen.Models = append(seen.Models, young, old)
	plan := Decide(seen)
	if diff := cmp.Diff([]string{"two/m", "alias"}, plan.Models[0].ServedNames); diff != "" {
		t.Errorf("the younger Model's names (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"m"}, plan.Models[1].ServedNames); diff != "" {
		t.Errorf("the older Model's names (-want +got):\n%s", diff)
	}
	for _, c := range plan.Models[0].Conditions {
		if strings.Contains(c.Reason, "NameConflict") {
			t.Errorf("a Model that can be reached is in conflict: %+v", c)
		}
	}
}
