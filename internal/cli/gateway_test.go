package cli

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/estiba/estiba/api/v1alpha1"
	"github.com/estiba/estiba/internal/fleet"
	"github.com/estiba/estiba/internal/gateway"
	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestWorkerTargets(t *testing.T) {
	key := []byte("key")
	pod := func(name, ip string, phase corev1.PodPhase) corev1.Pod {
		return corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, Labels: map[string]string{v1alpha1.LabelPool: "p"}},
			Status:     corev1.PodStatus{PodIP: ip, Phase: phase},
		}
	}
	got := workerTargets([]corev1.Pod{
		pod("p-a", "10.0.0.7", corev1.PodRunning),
		pod("p-b", "fd00::7", corev1.PodRunning),
		pod("p-c", "", corev1.PodPending),
		pod("p-d", "10.0.0.8", corev1.PodFailed),
	}, key)
	token := fleet.PoolToken(key, "ns/p")
	want := []fleet.Target{
		{Worker: "p-a", Pool: "ns/p", URL: "http://10.0.0.7:8081", Token: token},
		{Worker: "p-b", Pool: "ns/p", URL: "http://[fd00::7]:8081", Token: token},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestGatewayModels(t *testing.T) {
	created := time.Unix(100, 0)
	m := v1alpha1.Model{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "m", Generation: 2, CreationTimestamp: metav1.NewTime(created)},
		Spec:       v1alpha1.ModelSpec{ServedNames: []string{"alias"}, Suspend: true},
		Status: v1alpha1.ModelStatus{Conditions: []metav1.Condition{
			{Type: v1alpha1.ConditionReady, Status: metav1.ConditionFalse, Reason: "InvalidModel", Message: "It is cut short."},
			{Type: v1alpha1.ConditionStalled, Status: metav1.ConditionTrue, ObservedGeneration: 2},
		}},
	}
	want := gateway.Model{
		Key: "ns/m", Names: []string{"m", "alias"}, Created: created,
		Suspended: true, Stalled: true, Reason: "InvalidModel", Message: "It is cut short.",
	}
	if diff := cmp.Diff([]gateway.Model{want}, gateway.FromResources([]v1alpha1.Model{m})); diff != "" {
		t.Error(diff)
	}
	m.Generation = 3 // the spec was mended, and the operator has not seen it
	if gateway.FromResources([]v1alpha1.Model{m})[0].Stalled {
		t.Error("stalled by a spec that is gone")
	}
}

func TestKeyFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "key")
	k := &keyFile{path: path}
	if err := k.read(t.Context()); err == nil || !strings.Contains(err.Error(), "estiba-key") {
		t.Errorf("no file: %v", err)
	}
	if k.bytes() != nil {
		t.Error("a key before there is one")
	}
	for _, text := range []string{"one", "two"} {
		if err := os.WriteFile(path, []byte(text+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := k.read(t.Context()); err != nil || string(k.bytes()) != text {
			t.Errorf("got %q, %v", k.bytes(), err)
		}
	}
	if err := os.WriteFile(path, []byte(" \n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := k.read(t.Context()); err == nil || string(k.bytes()) != "two" {
		t.Errorf("an empty file: %v, and the key is %q", err, k.bytes())
	}
	k.path = "/dev/zero"
	if err := k.read(t.Context()); err == nil || !strings.Contains(err.Error(), "more than 1 MiB") {
		t.Errorf("no file: %v", err)
	}
}
