package controllers

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/estiba/estiba/api/v1alpha1"
	"github.com/estiba/estiba/api/worker"
	"github.com/estiba/estiba/internal/fixture"
)

// TestDisruption: what a pod says to autoscalers follows what its worker holds.
func TestDisruption(t *testing.T) {
	x, sleeper := fixture.NewModel("x"), fixture.NewModel("s", fixture.Autoscaled(0, 1))
	home := func(m v1alpha1.Model, change func(*worker.HomeState)) worker.HomeState {
		h := resident(m, 10)
		change(&h)
		return h
	}
	asleep := home(sleeper, func(h *worker.HomeState) {
		h.Phase, h.Tier, h.WantResident = worker.PhaseIdle, worker.TierDisk, false
	})
	woken := home(sleeper, func(h *worker.HomeState) { h.WantResident = false })
	running := home(sleeper, func(h *worker.HomeState) { h.Phase, h.WantResident, h.Running = worker.PhaseDraining, false, 1 })
	for name, c := range map[string]struct {
		models []v1alpha1.Model
		worker Worker
		want   Disruption
	}{
		"nothing":             {nil, reporting("w", 4, 1), atWill},
		"resident":            {[]v1alpha1.Model{x}, reporting("w", 4, 1, resident(x, 10)), kept},
		"asleep":              {[]v1alpha1.Model{sleeper}, reporting("w", 4, 1, asleep), atWill},
		"woken by a request":  {[]v1alpha1.Model{sleeper}, reporting("w", 4, 1, woken), kept},
		"loading":             {[]v1alpha1.Model{x}, reporting("w", 4, 1, home(x, func(h *worker.HomeState) { h.Phase = worker.PhaseLoading })), kept},
		"failed, to be tried": {[]v1alpha1.Model{x}, reporting("w", 4, 1, home(x, func(h *worker.HomeState) { h.Phase = worker.PhaseFailed })), kept},
		"ends its requests":   {nil, reporting("w", 4, 1, running), kept},
		"model is deleted":    {nil, reporting("w", 4, 1, resident(x, 10)), kept},
		"on its way out":      {[]v1alpha1.Model{x}, leavingNode(reporting("w", 4, 1, resident(x, 10))), kept},
		"silent":              {[]v1alpha1.Model{x}, disconnected(reporting("w", 4, 1, resident(x, 10))), kept},
	} {
		c.worker.Disruption = Disruption{"?", "?"}
		if got := Decide(seenWith(c.models, c.worker)).Disruption["w"]; got != c.want {
			t.Errorf("%s: %+v, want %+v", name, got, c.want)
		}
		c.worker.Disruption = c.want
		if got, differs := Decide(seenWith(c.models, c.worker)).Disruption["w"]; differs {
			t.Errorf("%s: written once more: %+v", name, got)
		}
	}
}

func leavingNode(w Worker) Worker {
	w.Leaving = "node n1 is cordoned"
	return w
}

func disconnected(w Worker) Worker {
	w.Connected = false
	return w
}

func TestAnnotate(t *testing.T) {
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{"note": "x"}}}
	for _, d := range []Disruption{kept, atWill, kept} {
		d.annotate(pod)
		if got := disruption(pod); got != d || pod.Annotations["note"] != "x" {
			t.Errorf("annotations are %v, want %+v", pod.Annotations, d)
		}
	}
	atWill.annotate(pod)
	if _, there := pod.Annotations[annotationDoNotDisrupt]; there {
		t.Errorf("annotations are %v", pod.Annotations) // Karpenter reads values as durations too
	}
}
