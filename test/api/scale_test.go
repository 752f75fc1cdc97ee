package apitest

import (
	"context"
	"strings"
	"testing"

	autoscalingv1 "k8s.io/api/autoscaling/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"github.com/estiba/estiba/api/v1alpha1"
)

func fromUnstructured(t *testing.T, o interface{ UnstructuredContent() map[string]any }, into any) {
	t.Helper()
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(o.UnstructuredContent(), into); err != nil {
		t.Fatal(err)
	}
}

func asYAML(t *testing.T, v any) string {
	t.Helper()
	text, err := yaml.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// create makes an object and deletes it when the test ends.
func create[T client.Object](t *testing.T, manifest string, into T) T {
	t.Helper()
	o := object(t, manifest)
	if err := cluster.Client.Create(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cluster.Client.Delete(context.Background(), o) })
	fromUnstructured(t, o, into)
	return into
}

// TestScale holds what the scale subresource does, also where it cannot do
// better: without spec.replicas, reading it is an error of the API server (it
// has no number to give), while writing it works.
func TestScale(t *testing.T) {
	const uri = "source: {uri: 'file:///models/x'}"
	fixed := create(t, model("fixed", "{"+uri+", replicas: 1}"), &v1alpha1.Model{})
	bare := create(t, model("bare", "{"+uri+"}"), &v1alpha1.Model{})
	auto := create(t, model("auto", "{"+uri+", autoscaling: {max: 2}}"), &v1alpha1.Model{})
	p := create(t, pool("sized", "{workers: {min: 0, max: 3}, replicas: 1}"), &v1alpha1.InferencePool{})
	read := func(o client.Object) (int32, error) {
		var s autoscalingv1.Scale
		err := cluster.Client.SubResource("scale").Get(t.Context(), o, &s)
		return s.Spec.Replicas, err
	}
	write := func(o client.Object, n int32) error {
		s := &autoscalingv1.Scale{Spec: autoscalingv1.ScaleSpec{Replicas: n}}
		s.Name, s.Namespace = o.GetName(), o.GetNamespace()
		return cluster.Client.SubResource("scale").Update(t.Context(), o, client.WithSubResourceBody(s))
	}
	for _, o := range []client.Object{fixed, p} {
		if err := write(o, 2); err != nil {
			t.Errorf("scale %s: %v", o.GetName(), err)
		}
		if n, err := read(o); err != nil || n != 2 {
			t.Errorf("scale of %s is %d, %v", o.GetName(), n, err)
		}
	}
	if _, err := read(bare); !apierrors.IsInternalError(err) || !strings.Contains(err.Error(), ".spec.replicas") {
		t.Errorf("reading the scale of a Model without replicas: %v; if this works now, say so in the field's comment", err)
	}
	// What kubectl scale sends.
	if err := cluster.Client.SubResource("scale").Patch(t.Context(), bare, client.RawPatch(types.MergePatchType, []byte(`{"spec":{"replicas":3}}`)),
		client.WithSubResourceBody(&autoscalingv1.Scale{})); err != nil {
		t.Errorf("scale a Model without replicas: %v", err)
	}
	if n, err := read(bare); err != nil || n != 3 {
		t.Errorf("after that it is %d, %v", n, err)
	}
	if err := write(auto, 1); err == nil || !strings.Contains(err.Error(), "exclude each other") {
		t.Errorf("scaling a Model that scales by itself: %v", err)
	}
	if err := write(p, 9); err == nil || !strings.Contains(err.Error(), "raise workers.max") {
		t.Errorf("scaling a pool beyond its bounds: %v", err)
	}
}
