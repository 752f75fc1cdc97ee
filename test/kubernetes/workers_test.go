package kubernetes

import (
	"cmp"
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/estiba/estiba/api/v1alpha1"
	"github.com/estiba/estiba/api/worker"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/util/retry"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// crew applies models of all kinds to a pool of workers that have room to spare:
// one with two replicas, single ones, one that sleeps between requests.
func (s *scene) crew(pool string) []string {
	s.Helper()
	names := []string{pool, pool + "-a", pool + "-b", pool + "-c", pool + "-sleeper"}
	s.model(names[0], float32Model, "replicas: 2")
	s.model(names[1], float32Model, "")
	s.model(names[2], float16Model, "")
	s.model(names[3], float16Model, "autoscaling: {min: 1, max: 2}")
	s.model(names[4], float32Model, "autoscaling: {min: 0, max: 1, idleAfter: 1s}")
	s.ready(names...)
	s.kubectl("wait", "--for=jsonpath={.status.readyReplicas}=2", patiently, "model/"+pool)
	return names
}

// A changed template replaces the workers, one after the other, and whoever
// asks does not notice.
func TestRollingUpdate(t *testing.T) {
	s := newScene(t)
	s.pool("roll", 2, "512Mi")
	names := s.crew("roll")
	before := map[string]bool{}
	for _, p := range s.workers("roll") {
		before[p.Name] = true
	}
	asking := s.keepAsking(names...)
	s.kubectl("patch", "ipool", "roll", "--type=merge", "-p", `{"spec":{"template":{"metadata":{"annotations":{"test.estiba.dev/round":"2"}}}}}`)
	s.eventually("every worker is new", func() string {
		pods := s.workers("roll")
		if len(pods) != 2 {
			return fmt.Sprintf("there are %d", len(pods))
		}
		for _, p := range pods {
			if before[p.Name] || !podReady(&p) || p.Annotations["test.estiba.dev/round"] != "2" {
				return p.Name + " is old, or not ready"
			}
		}
		return ""
	})
	s.ready(names...)
	s.kubectl("wait", "--for=jsonpath={.status.readyReplicas}=2", patiently, "model/roll")
	asking.end(s)
}

// A node is drained through the eviction API: the budget lets one worker go at
// a time, what it holds moves first, and whoever asks does not notice.
func TestDrain(t *testing.T) {
	s := newScene(t)
	s.kubectl("uncordon", spareNode)
	s.Cleanup(func() { s.kubectl("cordon", spareNode) })
	s.pool("drain", 4, "512Mi")
	s.kubectl("patch", "ipool", "drain", "--type=merge", "-p", `{"spec": {"template": {"spec": {"topologySpreadConstraints": [
		{"maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {"matchLabels": {"estiba.dev/pool": "drain"}}, "nodeTaintsPolicy": "Honor"}]}}}}`)
	s.eventually("two workers are on each node", func() string {
		on := map[string]int{}
		for _, p := range s.workers("drain") {
			if podReady(&p) {
				on[p.Spec.NodeName]++
			}
		}
		if on["node-1"] != 2 || on[spareNode] != 2 {
			return fmt.Sprint(on)
		}
		return ""
	})
	names := s.crew("drain")
	s.eventually("the budget keeps three workers", func() string {
		var budget policyv1.PodDisruptionBudget
		if err := s.client.Get(context.Background(), client.ObjectKey{Namespace: s.namespace, Name: "drain"}, &budget); err != nil {
			return err.Error()
		}
		if budget.Spec.MinAvailable.IntValue() != 3 || budget.Status.DisruptionsAllowed != 1 {
			return fmt.Sprintf("it keeps %v, and lets %d go", budget.Spec.MinAvailable, budget.Status.DisruptionsAllowed)
		}
		return ""
	})
	asking := s.keepAsking(names...)
	s.kubectl("drain", spareNode, "--ignore-daemonsets", "--delete-emptydir-data", patiently, "--pod-selector="+v1alpha1.LabelPool+"=drain")
	s.eventually("four workers are on the node that is left", func() string {
		pods := s.workers("drain")
		for _, p := range pods {
			if p.Spec.NodeName != "node-1" || !podReady(&p) {
				return p.Name + " is elsewhere, or not ready"
			}
		}
		if len(pods) != 4 {
			return fmt.Sprintf("there are %d", len(pods))
		}
		return ""
	})
	s.ready(names...)
	asking.end(s)
}

// A pool grows for a model that fits nowhere, shrinks when its worker is idle,
// and another autoscaler may have the number in its hands; whoever asks does not notice.
func TestPoolSize(t *testing.T) {
	s := newScene(t)
	s.pool("size", 1, "512Mi", "device: {memory: 20Mi}", "scaleDown: {after: 3s}") // room for two of these models on a device
	s.kubectl("patch", "ipool", "size", "--type=merge", "-p", `{"spec": {"workers": {"max": 3}}}`)
	names := []string{"size-0", "size-1"}
	for _, n := range names {
		s.model(n, float32Model, "")
	}
	s.ready(names...)
	asking := s.keepAsking(names...)
	ready := func(n int) func() string {
		return func() string {
			var running []string
			for _, p := range s.workers("size") {
				if podReady(&p) {
					running = append(running, p.Name)
				}
			}
			if len(running) != n {
				return fmt.Sprintf("there are %v", running)
			}
			return ""
		}
	}
	s.eventually("one worker holds both", ready(1))
	more := []string{"size-2", "size-3", "size-4", "size-5"}
	for _, n := range more {
		s.model(n, float32Model, "")
	}
	s.ready(more...)
	s.eventually("there are three workers", ready(3))
	s.model("size-none", float32Model, "")
	message := s.condition("size-none", v1alpha1.ConditionReady, metav1.ConditionFalse, v1alpha1.ReasonDoesNotFit)
	progress("  %s", message)
	s.kubectl("delete", "model", "size-none", "size-2", "size-3", "size-4", "size-5", patiently)
	s.eventually("one worker is left", ready(1))

	var pool v1alpha1.InferencePool
	check(t, s.client.Get(context.Background(), client.ObjectKey{Namespace: s.namespace, Name: "size"}, &pool))
	s.kubectl("patch", "ipool", "size", "--type=merge", "-p", `{"spec": {"replicas": 1}}`)
	var scale autoscalingv1.Scale
	for _, n := range []int32{2, 3, 1} { // as a HorizontalPodAutoscaler writes it
		check(t, retry.RetryOnConflict(retry.DefaultBackoff, func() error { // the operator writes the status meanwhile
			if err := s.client.SubResource("scale").Get(context.Background(), &pool, &scale); err != nil {
				return err
			}
			scale.Spec.Replicas = n
			return s.client.SubResource("scale").Update(context.Background(), &pool, client.WithSubResourceBody(&scale))
		}))
		s.eventually(fmt.Sprintf("there are %d workers", n), ready(int(n)))
	}
	s.eventually("the scale subresource tells their number", func() string {
		if err := s.client.SubResource("scale").Get(context.Background(), &pool, &scale); err != nil {
			return err.Error()
		}
		if scale.Status.Replicas != 1 || !strings.Contains(scale.Status.Selector, v1alpha1.LabelPool+"=size") {
			return fmt.Sprintf("%+v", scale.Status)
		}
		return ""
	})
	s.ready(names...)
	asking.end(s)
}

// Twelve models that sleep share a device that holds three of them: each is
// woken when it is asked, and another one makes room.
func TestOvercommit(t *testing.T) {
	s := newScene(t)
	s.pool("shared", 1, "512Mi", "device: {memory: 24Mi}")
	var names []string
	for i := range 12 {
		names = append(names, fmt.Sprintf("shared-%d", i))
		s.model(names[i], float32Model, "autoscaling: {min: 0, max: 1, idleAfter: 10m}")
	}
	for _, n := range names {
		s.condition(n, v1alpha1.ConditionReady, metav1.ConditionTrue, "")
	}
	pod := s.worker("shared")
	first := ""
	for round := range 2 {
		for _, n := range names {
			text := s.answers(n)
			if first = cmp.Or(first, text); text != first {
				t.Errorf("round %d: %s answers %q, others %q", round, n, text, first)
			}
		}
	}
	state := s.state("shared", pod)
	resident := 0
	for _, h := range state.Homes {
		if h.Phase == worker.PhaseResident {
			resident++
		}
	}
	if len(state.Homes) != len(names) || resident != 3 || state.Devices[0].UsedBytes > state.Devices[0].CapacityBytes {
		t.Errorf("%d homes, %d resident, account %+v", len(state.Homes), resident, state.Devices[0])
	}
	progress("  %d homes, %d on the device", len(state.Homes), resident)
	asking := s.keepAsking(names...) // twelve clients, and room for three
	s.within(patience, "each has had ten answers", func() string {
		if n := asking.least(len(names)); n < 10 {
			return fmt.Sprintf("one has %d", n)
		}
		return ""
	})
	asking.end(s)
}
