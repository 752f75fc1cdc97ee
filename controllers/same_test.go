package controllers

import (
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/estiba/estiba/api/v1alpha1"
	"github.com/estiba/estiba/internal/fixture"
)

// Each field of a status counts, whatever fields there will be.
func TestSameModelStatus(t *testing.T) {
	fill := func() v1alpha1.ModelStatus {
		var s v1alpha1.ModelStatus
		fixture.Leaves(&s, func(string, func()) {})
		return s
	}
	a, b := fill(), fill()
	b.Placements[0].Since = metav1.NewTime(b.Placements[0].Since.In(time.FixedZone("elsewhere", 3600)))
	b.Footprints[0].Weights = resource.MustParse(b.Footprints[0].Weights.String()) // as it comes back
	if !sameModelStatus(&a, &b) || !equality.Semantic.DeepEqual(a, b) {
		t.Error("the same status is another one")
	}
	var names []string
	fixture.Leaves(&a, func(name string, _ func()) { names = append(names, name) })
	if len(names) < 30 {
		t.Errorf("only %d fields are looked at: %v", len(names), names)
	}
	for i := range names {
		changed, n := fill(), 0
		fixture.Leaves(&changed, func(_ string, change func()) {
			if n == i {
				change()
			}
			n++
		})
		if sameModelStatus(&a, &changed) {
			t.Errorf("a change of %s is not seen", names[i])
		}
	}
	empty := v1alpha1.ModelStatus{}
	if sameModelStatus(&a, &empty) || !sameModelStatus(&empty, &v1alpha1.ModelStatus{ServedNames: []string{}}) {
		t.Error("what is empty is not told from what is not")
	}
}

// A revision is the hash of a form in JSON, whatever strings it has and fields there will be.
func TestRevision(t *testing.T) {
	slow := func(m v1alpha1.Model) string {
		return hash(struct {
			URI, Digest string
			Format      v1alpha1.Format
			Context     v1alpha1.Context
		}{m.Spec.Source.URI, m.Spec.Source.Digest, m.Spec.Precision.Format, m.Spec.Context})
	}
	for _, uri := range []string{"", "file:///models/a", `https://x/y?a="b"&c=<d>\`, "file:///modèle/\x00\xff\u2028"} {
		for _, context := range []v1alpha1.Context{{}, {MaxTokens: 512}, {Sequences: 4}, {MaxTokens: 1 << 24, Sequences: 4096}} {
			m := fixture.NewModel("x")
			m.Spec.Source.URI, m.Spec.Context = uri, context
			if got, want := Revision(&m), slow(m); got != want {
				t.Errorf("revision of %q, %+v is %s, want %s", uri, context, got, want)
			}
		}
	}
	m := fixture.NewModel("x")
	fixture.Leaves(&m.Spec.Context, func(name string, change func()) {
		before := Revision(&m)
		if change(); Revision(&m) == before {
			t.Errorf("a change of %s is no new revision", name)
		}
	})
}
