package apitest

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	metav1apply "k8s.io/client-go/applyconfigurations/meta/v1"
	networkingv1apply "k8s.io/client-go/applyconfigurations/networking/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/estiba/estiba/api/v1alpha1"
	"github.com/estiba/estiba/api/worker"
	"github.com/estiba/estiba/controllers"
	"github.com/estiba/estiba/internal/fleet"
	"github.com/estiba/estiba/internal/status"
	"github.com/estiba/estiba/test/apiserver"
)

// startOperator runs this test's program as an operator with the permissions of config/rbac.
func startOperator(t *testing.T, elect bool) *apiserver.Process {
	t.Helper()
	return cluster.StartOperator(t, apiserver.Operator, controllers.RunOptions{LeaderElect: elect})
}

// eventually waits for what ok says.
func eventually(t *testing.T, what string, ok func() (bool, string)) {
	t.Helper()
	last := ""
	for end := time.Now().Add(40 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		var done bool
		if done, last = ok(); done {
			return
		}
	}
	t.Fatalf("waited in vain for %s: %s", what, last)
}

// ready waits until the Ready condition of a Model has the reason.
func ready(t *testing.T, name, reason string) *v1alpha1.Model {
	t.Helper()
	m := &v1alpha1.Model{}
	eventually(t, name+" to be "+reason, func() (bool, string) {
		if err := cluster.Client.Get(t.Context(), client.ObjectKey{Namespace: "default", Name: name}, m); err != nil {
			return false, err.Error()
		}
		c := status.Find(m.Status.Conditions, v1alpha1.ConditionReady)
		if c == nil {
			return false, "no condition"
		}
		return c.Reason == reason && m.Status.ObservedGeneration == m.Generation, c.Reason + ": " + c.Message
	})
	return m
}

func message(m *v1alpha1.Model, kind string) string {
	return status.Find(m.Status.Conditions, kind).Message
}

// pods are the worker pods of a pool, once there are n that stay.
func pods(t *testing.T, pool string, n int) []corev1.Pod {
	t.Helper()
	var list corev1.PodList
	eventually(t, fmt.Sprintf("%d pods of %s", n, pool), func() (bool, string) {
		if err := cluster.Client.List(t.Context(), &list, client.InNamespace("default"), client.MatchingLabels{v1alpha1.LabelPool: pool}); err != nil {
			return false, err.Error()
		}
		list.Items = slices.DeleteFunc(list.Items, func(p corev1.Pod) bool { return !p.DeletionTimestamp.IsZero() })
		return len(list.Items) == n, fmt.Sprint(len(list.Items))
	})
	return list.Items
}

func inspection(n int64) worker.Inspection {
	return worker.Inspection{Footprint: worker.Footprint{WeightsBytes: n * mib}, MaxTokens: 512}
}

// removePods deletes the worker pods of a pool when the test ends; nobody else does here.
func removePods(t *testing.T, pool string) {
	t.Cleanup(func() {
		zero := int64(0)
		_ = cluster.Client.DeleteAllOf(context.Background(), &corev1.Pod{}, client.InNamespace("default"), client.MatchingLabels{v1alpha1.LabelPool: pool},
			&client.DeleteAllOfOptions{DeleteOptions: client.DeleteOptions{GracePeriodSeconds: &zero}})
	})
}

// TestOperator follows a pool and its Models through their lives.
func TestOperator(t *testing.T) {
	scraper := networkingv1apply.NetworkPolicyPeer().WithNamespaceSelector(metav1apply.LabelSelector().WithMatchLabels(map[string]string{"team": "monitoring"}))
	cluster.StartOperator(t, apiserver.Operator, controllers.RunOptions{Policy: controllers.Policy{Enabled: true, MetricsFrom: []networkingv1apply.NetworkPolicyPeerApplyConfiguration{*scraper}}})
	sources := map[string]worker.Inspection{
		"file:///models/a": inspection(30), "file:///models/b": inspection(40), "file:///models/huge": inspection(1 << 20),
		"file:///models/broken": {Error: &worker.InspectError{Reason: worker.ReasonInvalidModel, Message: "model.safetensors: tensor \"x\" ends beyond the file."}},
	}
	create(t, model("a", "{source: {uri: 'file:///models/a'}, servedNames: [alias]}"), &v1alpha1.Model{})
	m := ready(t, "a", v1alpha1.ReasonNoPoolMatches)
	if c := status.Find(m.Status.Conditions, v1alpha1.ConditionStalled); c.Status != metav1.ConditionTrue {
		t.Errorf("a Model without a pool is not stalled: %+v", c)
	}
	removePods(t, "p")
	p := create(t, pool("p", "{workers: {min: 0, max: 2}, modelRoots: [/models], template: {spec: {containers: [{name: worker, resources: {limits: {memory: 1Gi}}}]}}}"), &v1alpha1.InferencePool{})
	ready(t, "a", v1alpha1.ReasonWaitingForWorker)

	t.Run("pod", func(t *testing.T) {
		pod := pods(t, "p", 1)[0]
		if !strings.HasPrefix(pod.Name, "p-") || len(pod.Name) != len("p-")+5 {
			t.Errorf("name %q, want p- and five random characters", pod.Name)
		}
		if o := metav1.GetControllerOf(&pod); o == nil || o.UID != p.UID {
			t.Errorf("controller is %+v", o)
		}
		c := pod.Spec.Containers[0]
		if c.Image != "estiba:test" || c.Resources.Limits.Memory().String() != "1Gi" || !slices.Contains(c.Args, "--model-root=/models") {
			t.Errorf("container is %+v", c)
		}
		var secret corev1.Secret
		if err := cluster.Client.Get(t.Context(), client.ObjectKey{Namespace: "default", Name: "p-token"}, &secret); err != nil || string(secret.Data["token"]) != fleet.PoolToken([]byte(apiserver.Key), "default/p") {
			t.Errorf("the pool's token: %v", err)
		}
		var budget policyv1.PodDisruptionBudget
		if err := cluster.Client.Get(t.Context(), client.ObjectKey{Namespace: "default", Name: "p"}, &budget); err != nil {
			t.Fatal(err)
		}
		if budget.Spec.MinAvailable == nil || *budget.Spec.UnhealthyPodEvictionPolicy != policyv1.AlwaysAllow {
			t.Errorf("budget is %+v", budget.Spec)
		}
		var policy networkingv1.NetworkPolicy
		if err := cluster.Client.Get(t.Context(), client.ObjectKey{Namespace: "default", Name: "p"}, &policy); err != nil {
			t.Fatal(err)
		}
		if !metav1.IsControlledBy(&policy, p) || policy.Spec.PodSelector.MatchLabels[v1alpha1.LabelPool] != "p" || len(policy.Spec.Ingress) != 2 || len(policy.Spec.Egress) != 0 {
			t.Fatalf("policy is %+v", policy)
		}
		for i, want := range []map[string]string{{corev1.LabelMetadataName: system}, {"team": "monitoring"}} {
			rule := policy.Spec.Ingress[i]
			if len(rule.From) != 1 || !maps.Equal(rule.From[0].NamespaceSelector.MatchLabels, want) || len(rule.Ports) != 1 || rule.Ports[0].Port.IntValue() != 8081 {
				t.Errorf("rule %d is %+v", i, rule)
			}
		}
		if from := policy.Spec.Ingress[0].From[0].PodSelector; from == nil || from.MatchLabels[v1alpha1.LabelName] != "estiba" {
			t.Errorf("all pods of %s reach workers: %+v", system, from)
		}
	})

	pod := pods(t, "p", 1)[0]
	w, shelf := runWorker(t, &pod, sources)
	m = ready(t, "a", v1alpha1.ReasonServing)
	if m.Status.Replicas != 1 || m.Status.ReadyReplicas != 1 || m.Status.Summary.Memory != "30Mi" || m.Status.Placements[0].Worker != pod.Name || !slices.Equal(m.Status.ServedNames, []string{"a", "alias"}) {
		t.Errorf("status is %+v", m.Status)
	}

	t.Run("labels", func(t *testing.T) {
		eventually(t, "the Model's label on the pod", func() (bool, string) {
			var list corev1.PodList
			err := cluster.Client.List(t.Context(), &list, client.MatchingLabels{v1alpha1.LabelModelPrefix + string(m.UID): "true"})
			return len(list.Items) == 1, fmt.Sprint(err, len(list.Items))
		})
	})
	t.Run("events", func(t *testing.T) {
		eventually(t, "an event for each change of Ready", func() (bool, string) {
			var list eventsv1.EventList
			if err := cluster.Client.List(t.Context(), &list, client.InNamespace("default")); err != nil {
				return false, err.Error()
			}
			var reasons []string
			for _, e := range list.Items {
				if e.Regarding.UID == m.UID {
					reasons = append(reasons, e.Reason)
				}
			}
			for _, want := range []string{v1alpha1.ReasonNoPoolMatches, v1alpha1.ReasonWaitingForWorker, v1alpha1.ReasonServing} {
				if !slices.Contains(reasons, want) {
					return false, fmt.Sprint(reasons)
				}
			}
			return len(reasons) <= 6, fmt.Sprint(reasons)
		})
	})

	create(t, model("huge", "{source: {uri: 'file:///models/huge'}}"), &v1alpha1.Model{})
	if got := message(ready(t, "huge", v1alpha1.ReasonDoesNotFit), v1alpha1.ConditionReady); !strings.HasPrefix(got, "Needs 1 TiB; the largest free device has 70 MiB of 100 MiB.") {
		t.Errorf("huge says %q", got)
	}
	create(t, model("broken", "{source: {uri: 'file:///models/broken'}}"), &v1alpha1.Model{})
	if got := message(ready(t, "broken", v1alpha1.ReasonInvalidModel), v1alpha1.ConditionStalled); !strings.Contains(got, `model.safetensors: tensor "x"`) {
		t.Errorf("broken says %q", got)
	}
	create(t, model("b", "{source: {uri: 'file:///models/b'}}"), &v1alpha1.Model{})
	ready(t, "b", v1alpha1.ReasonServing)
	if got := holds(w); !slices.Equal(got, []string{"default/a", "default/b"}) {
		t.Errorf("the worker holds %v", got)
	}

	// A source that comes.
	create(t, model("late", "{source: {uri: 'file:///models/late'}}"), &v1alpha1.Model{})
	ready(t, "late", v1alpha1.ReasonSourceUnavailable)
	shelf.put("file:///models/late", inspection(5))
	ready(t, "late", v1alpha1.ReasonServing)

	b := &v1alpha1.Model{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "b"}}
	if err := cluster.Client.Patch(t.Context(), b, client.RawPatch("application/merge-patch+json", []byte(`{"spec":{"suspend":true}}`))); err != nil {
		t.Fatal(err)
	}
	ready(t, "b", v1alpha1.ReasonSuspended)
	if err := cluster.Client.Delete(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	eventually(t, "b to be let go", func() (bool, string) {
		return slices.Equal(holds(w), []string{"default/a", "default/late"}), fmt.Sprint(holds(w))
	})
}

// TestTemplate says what is wrong with a pool's template, and makes no pods from it.
func TestTemplate(t *testing.T) {
	startOperator(t, false)
	for name, c := range map[string]struct{ template, message string }{
		"typo":      {"{spec: {containerz: []}}", "containerz"},
		"image":     {"{spec: {containers: [{name: wroker}]}}", `container "wroker" without an image`},
		"forbidden": {"{spec: {containers: [{name: worker, resources: {limits: {memory: 1Gi}, requests: {memory: 2Gi}}}]}}", "must be less than or equal to memory limit"},
	} {
		removePods(t, "t-"+name)
		p := create(t, pool("t-"+name, "{workers: {min: 1, max: 1}, template: "+c.template+"}"), &v1alpha1.InferencePool{})
		eventually(t, name, func() (bool, string) {
			if err := cluster.Client.Get(t.Context(), client.ObjectKeyFromObject(p), p); err != nil {
				return false, err.Error()
			}
			s := status.Find(p.Status.Conditions, v1alpha1.ConditionStalled)
			return s != nil && s.Status == metav1.ConditionTrue && s.Reason == v1alpha1.ReasonInvalidTemplate && strings.Contains(s.Message, c.message), fmt.Sprint(s)
		})
	}
}

// TestRefusedTemplate: workers of a template that works serve on while the API
// server refuses the next one, and make way for one that it takes.
func TestRefusedTemplate(t *testing.T) {
	startOperator(t, false)
	removePods(t, "mend")
	p := create(t, pool("mend", "{workers: {min: 2, max: 2}}"), &v1alpha1.InferencePool{})
	first := pods(t, "mend", 2)
	for i := range first {
		runWorker(t, &first[i], nil)
	}
	condition := func(kind, reason, text string) {
		t.Helper()
		eventually(t, kind+" "+reason, func() (bool, string) {
			if err := cluster.Client.Get(t.Context(), client.ObjectKeyFromObject(p), p); err != nil {
				return false, err.Error()
			}
			c := status.Find(p.Status.Conditions, kind)
			return c != nil && c.Status == metav1.ConditionTrue && c.Reason == reason && strings.Contains(c.Message, text), fmt.Sprint(c)
		})
	}
	template := func(text string) {
		t.Helper()
		before := p.DeepCopy()
		p.Spec.Template = &runtime.RawExtension{Raw: []byte(text)}
		if err := cluster.Client.Patch(t.Context(), p, client.MergeFrom(before)); err != nil {
			t.Fatal(err)
		}
	}
	condition(v1alpha1.ConditionReady, v1alpha1.ReasonServing, "2 workers")
	template(`{"spec": {"containers": [{"name": "worker", "volumeMounts": [{"name": "nowhere", "mountPath": "/models"}]}]}}`)
	condition(v1alpha1.ConditionStalled, v1alpha1.ReasonInvalidTemplate, "nowhere")
	time.Sleep(time.Second) // several decisions
	for _, pod := range pods(t, "mend", 2) {
		if !slices.ContainsFunc(first, func(was corev1.Pod) bool { return was.UID == pod.UID }) {
			t.Errorf("pod %s was made of a template that the API server refuses", pod.Name)
		}
	}
	if p.Status.ReadyWorkers != 2 {
		t.Errorf("%d workers are ready, want 2", p.Status.ReadyWorkers)
	}

	template(`{"spec": {"volumes": [{"name": "nowhere", "emptyDir": {}}], "containers": [{"name": "worker", "volumeMounts": [{"name": "nowhere", "mountPath": "/models"}]}]}}`)
	running := map[string]bool{}
	for _, pod := range first {
		running[pod.Name] = true
	}
	eventually(t, "two workers of the new template", func() (bool, string) {
		var list corev1.PodList
		if err := cluster.Client.List(t.Context(), &list, client.InNamespace("default"), client.MatchingLabels{v1alpha1.LabelPool: "mend"}); err != nil {
			return false, err.Error()
		}
		mended := 0
		for i := range list.Items {
			pod := &list.Items[i]
			if !pod.DeletionTimestamp.IsZero() { // there is no kubelet that would let go of it
				_ = cluster.Client.Delete(t.Context(), pod, client.GracePeriodSeconds(0))
				continue
			}
			if !running[pod.Name] {
				running[pod.Name] = true
				runWorker(t, pod, nil)
			}
			if slices.ContainsFunc(pod.Spec.Volumes, func(v corev1.Volume) bool { return v.Name == "nowhere" }) {
				mended++
			}
		}
		return mended == 2 && len(list.Items) == 2, fmt.Sprint(mended, len(list.Items))
	})
	condition(v1alpha1.ConditionReady, v1alpha1.ReasonServing, "2 workers")
}

// TestNotThePools: a pool does not take over objects that it does not own, and
// says which one is in its way.
func TestNotThePools(t *testing.T) {
	removePods(t, "taken")
	theirs := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "taken-token"}, Data: map[string][]byte{"password": []byte("theirs")}}
	if err := cluster.Client.Create(t.Context(), theirs); err != nil {
		t.Fatal(err)
	}
	startOperator(t, false)
	p := create(t, pool("taken", "{workers: {min: 2, max: 2}}"), &v1alpha1.InferencePool{})
	eventually(t, "the conflict", func() (bool, string) {
		if err := cluster.Client.Get(t.Context(), client.ObjectKeyFromObject(p), p); err != nil {
			return false, err.Error()
		}
		s := status.Find(p.Status.Conditions, v1alpha1.ConditionStalled)
		return s != nil && s.Reason == v1alpha1.ReasonNameConflict && strings.Contains(s.Message, "Secret default/taken-token is not this pool's"), fmt.Sprint(s)
	})
	pods(t, "taken", 0)
	before := theirs.ResourceVersion
	if err := cluster.Client.Get(t.Context(), client.ObjectKeyFromObject(theirs), theirs); err != nil || theirs.ResourceVersion != before {
		t.Errorf("somebody's Secret was written: %v, %+v", err, theirs)
	}
	if err := cluster.Client.Delete(t.Context(), theirs); err != nil {
		t.Fatal(err)
	}
	for _, pod := range pods(t, "taken", 2) {
		runWorker(t, &pod, nil)
	}
	eventually(t, "the budget to be written again", func() (bool, string) {
		var budget policyv1.PodDisruptionBudget
		err := cluster.Client.Get(t.Context(), client.ObjectKeyFromObject(p), &budget)
		return err == nil && budget.Spec.MinAvailable.IntValue() == 1, fmt.Sprint(err, budget.Spec.MinAvailable)
	})
	var ours corev1.Secret
	if err := cluster.Client.Get(t.Context(), client.ObjectKeyFromObject(theirs), &ours); err != nil || len(ours.Data["token"]) == 0 {
		t.Errorf("the pool has no token: %v", err)
	}
}

// TestNamespaces: an operator for some namespaces needs no permissions
// elsewhere. This one enforces the pod security standard "restricted".
func TestNamespaces(t *testing.T) {
	loose := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: tenant, Name: "loose"}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "x", Image: "x"}}}}
	if err := cluster.Client.Create(t.Context(), loose, client.DryRunAll); err == nil || !strings.Contains(err.Error(), "restricted") {
		t.Errorf("a pod without a security context: %v", err)
	}
	cluster.StartOperator(t, guest, controllers.RunOptions{Namespaces: []string{tenant}})
	for _, manifest := range []string{pool("guests", "{}"), model("guest", "{source: {uri: 'file:///models/x'}}")} {
		object := object(t, manifest)
		object.SetNamespace(tenant)
		if err := cluster.Client.Create(t.Context(), object); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "a worker", func() (bool, string) {
		var list corev1.PodList
		err := cluster.Client.List(t.Context(), &list, client.InNamespace(tenant))
		return len(list.Items) == 1, fmt.Sprint(err, len(list.Items))
	})
}

// TestFailover pauses the leader while another operator takes over: nothing
// resident is lost, and what the old one sends when it goes on is refused.
func TestFailover(t *testing.T) {
	if testing.Short() {
		t.Skip("SKIPPED: it waits for a lease to end")
	}
	sources := map[string]worker.Inspection{"file:///models/f": inspection(30)}
	removePods(t, "f")
	first := startOperator(t, true)
	eventually(t, "the first to lead", func() (bool, string) { return strings.Contains(first.Log(), "leading"), "" })
	second := startOperator(t, true)
	create(t, pool("f", "{workers: {min: 1, max: 1}}"), &v1alpha1.InferencePool{})
	create(t, model("f", "{source: {uri: 'file:///models/f'}}"), &v1alpha1.Model{})
	pod := pods(t, "f", 1)[0]
	w, _ := runWorker(t, &pod, sources)
	ready(t, "f", v1alpha1.ReasonServing)
	before := w.State()

	if err := first.Cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the second to lead", func() (bool, string) { return w.State().Epoch > before.Epoch, fmt.Sprint(w.State().Epoch) })
	if got := holds(w); !slices.Equal(got, []string{"default/f"}) {
		t.Errorf("after the change the worker holds %v", got)
	}
	// What the old leader would still send.
	old := worker.Assignment{Epoch: before.Epoch, Generation: before.Generation + 1, Instance: before.Instance, Homes: []worker.Home{}}
	f := fleet.New(fleet.NewClient(nil), fleet.Options{})
	defer f.Sync(nil)
	f.Sync([]fleet.Target{{Worker: pod.Name, Pool: "default/f", URL: "http://" + pod.Status.PodIP + ":8081", Token: fleet.PoolToken([]byte(apiserver.Key), "default/f")}})
	f.Send(pod.Name, old)
	eventually(t, "the refusal", func() (bool, string) {
		r, ok := f.Refusals()[pod.Name]
		return ok && r.Reason == worker.RefusedOlder, fmt.Sprint(r)
	})
	if err := first.Cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- first.Cmd.Wait() }()
	select {
	case <-ended:
	case <-time.After(30 * time.Second):
		t.Error("the old leader goes on without the lease")
	}
	var lease coordinationv1.Lease
	if err := cluster.Client.Get(t.Context(), client.ObjectKey{Namespace: system, Name: controllers.LeaseName}, &lease); err != nil {
		t.Fatal(err)
	}
	after := w.State()
	if after.Epoch <= before.Epoch || !slices.Equal(holds(w), []string{"default/f"}) || after.Instance != before.Instance {
		t.Errorf("before %+v, after %+v", before, after)
	}
	if !strings.Contains(second.Log(), "leading") {
		t.Error("the second operator does not lead")
	}
}
