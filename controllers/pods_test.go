package controllers

import (
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/yaml"

	"github.com/estiba/estiba/api/v1alpha1"
	"github.com/estiba/estiba/internal/fixture"
)

func poolWith(t *testing.T, template string, change ...func(*v1alpha1.InferencePool)) *v1alpha1.InferencePool {
	t.Helper()
	p := fixture.NewPool("p", 0, 1, change...)
	raw, err := yaml.YAMLToJSON([]byte(template))
	if err != nil {
		t.Fatal(err)
	}
	p.Spec.Template = &runtime.RawExtension{Raw: raw}
	return &p
}

func TestWorkerPod(t *testing.T) {
	memory := resource.MustParse("8Gi")
	p := poolWith(t, `
metadata: {labels: {team: a}, annotations: {note: x}}
spec:
  nodeSelector: {gpu: a100}
  terminationGracePeriodSeconds: 1
  containers:
  - name: worker
    image: other
    args: [other]
    env: [{name: HTTPS_PROXY, value: x}]
    resources: {limits: {nvidia.com/gpu: 1}}
    volumeMounts: [{name: models, mountPath: /models}]
  - {name: sidecar, image: sidecar}
  volumes: [{name: models, emptyDir: {}}]
`, func(p *v1alpha1.InferencePool) {
		p.Spec.ModelRoots, p.Spec.Device.Memory, p.Spec.Memory.Headroom = []string{"/models"}, &memory, "3%"
		p.Spec.Memory.Host = &memory
		p.Spec.Update.Drain = &metav1.Duration{Duration: time.Minute}
	})
	pod, sum, err := workerPod(p, "estiba:1")
	if err != nil {
		t.Fatal(err)
	}
	if pod.GenerateName != "p-" || pod.Name != "" || !metav1.IsControlledBy(pod, p) || pod.Annotations[v1alpha1.AnnotationTemplateHash] != sum {
		t.Errorf("metadata is %+v", pod.ObjectMeta)
	}
	for k, v := range map[string]string{"team": "a", v1alpha1.LabelPool: "p", v1alpha1.LabelComponent: "worker"} {
		if pod.Labels[k] != v {
			t.Errorf("label %s is %q", k, pod.Labels[k])
		}
	}
	c := pod.Spec.Containers[slices.IndexFunc(pod.Spec.Containers, func(c corev1.Container) bool { return c.Name == "worker" })]
	if c.Image != "estiba:1" || len(pod.Spec.Containers) != 2 || len(c.Env) != 2 || len(c.VolumeMounts) != 4 || len(pod.Spec.Volumes) != 4 {
		t.Errorf("worker is %+v, volumes %+v", c, pod.Spec.Volumes)
	}
	for _, arg := range []string{"worker", "--pool=default/p", "--model-root=/models", "--memory=8Gi", "--headroom=3%", "--drain=1m0s", "--cache-size=10Gi"} {
		if !slices.Contains(c.Args, arg) {
			t.Errorf("no %s in %v", arg, c.Args)
		}
	}
	if !slices.Contains(c.Args, "--expects=nvidia.com/gpu") {
		t.Errorf("the worker does not know that it has a GPU: %v", c.Args)
	}
	if q := c.Resources.Limits["nvidia.com/gpu"]; q.Value() != 1 || c.Resources.Limits.Memory().String() != "9Gi" || c.Resources.Requests.Memory().String() != "9Gi" {
		t.Errorf("resources are %+v", c.Resources)
	}
	if *pod.Spec.TerminationGracePeriodSeconds != 90 || pod.Spec.NodeSelector["gpu"] != "a100" || *pod.Spec.AutomountServiceAccountToken {
		t.Errorf("spec is %+v", pod.Spec)
	}
	// What the Pod Security Standard "restricted" asks for.
	s := c.SecurityContext
	if *s.AllowPrivilegeEscalation || !*s.ReadOnlyRootFilesystem || !slices.Equal(s.Capabilities.Drop, []corev1.Capability{"ALL"}) ||
		!*pod.Spec.SecurityContext.RunAsNonRoot || pod.Spec.SecurityContext.SeccompProfile.Type != corev1.SeccompProfileTypeRuntimeDefault {
		t.Errorf("security contexts are %+v, %+v", s, pod.Spec.SecurityContext)
	}
	if _, again, _ := workerPod(p.DeepCopy(), "estiba:1"); again != sum {
		t.Error("the hash of an equal template differs")
	}
	if _, other, _ := workerPod(p, "estiba:2"); other == sum {
		t.Error("another image makes no other hash")
	}
	p.Spec.Workers.Max, p.Spec.ScaleDown.After = 7, &metav1.Duration{Duration: time.Hour}
	if _, again, _ := workerPod(p, "estiba:1"); again != sum {
		t.Error("what is not in a pod changes the hash")
	}
}

// TestAsksForGPU: a worker is told by what it is to have a GPU.
func TestAsksForGPU(t *testing.T) {
	for resources, want := range map[string]string{
		"{limits: {nvidia.com/gpu: 2}}":                                                          "nvidia.com/gpu",
		"{requests: {nvidia.com/mig-3g.40gb: 1}}":                                                "nvidia.com/mig-3g.40gb",
		"{limits: {nvidia.com/gpu.shared: 1, memory: 1Gi}}":                                      "nvidia.com/gpu.shared",
		"{claims: [{name: gpu}]}":                                                                "claim gpu",
		"{limits: {nvidia.com/gpu: 0, nvidia.com/hostdev: 1}}":                                   "",
		"{limits: {cpu: 1, memory: 1Gi}, requests: {cpu: 100m}}":                                 "",
		"{limits: {memory: 1Gi}}}, {name: x, image: x, resources: {limits: {nvidia.com/gpu: 1}}": "", // another container
	} {
		pod, _, err := workerPod(poolWith(t, "{spec: {containers: [{name: worker, resources: "+resources+"}]}}"), "i")
		if err != nil {
			t.Fatal(err)
		}
		got := ""
		for _, c := range pod.Spec.Containers {
			for _, arg := range c.Args {
				if by, ok := strings.CutPrefix(arg, "--expects="); ok {
					got += by
				}
			}
		}
		if got != want {
			t.Errorf("%s: %q, want %q", resources, got, want)
		}
	}
}

func TestBadTemplates(t *testing.T) {
	for template, message := range map[string]string{
		"{spec: {containerz: []}}":             `unknown field "containerz"`,
		"{spec: {containers: worker}}":         "spec.template is not a pod template",
		"{spec: {containers: [{name: main}]}}": `container "main" without an image: the worker's container is named worker`,
		"{spec: {containers: [{name: worker, readinessProbe: {exec: {command: [x]}}}]}}":     "which Estiba sets itself",
		"{spec: {containers: [{name: worker, resources: {limits: {nvidia.com/gpu: two}}}]}}": "spec.template is not a pod template",
	} {
		if _, _, err := workerPod(poolWith(t, template), "i"); err == nil || !strings.Contains(err.Error(), message) {
			t.Errorf("%s: %v, want ...%s...", template, err, message)
		}
	}
}

func TestAsWorker(t *testing.T) {
	now := metav1.NewTime(fixture.Epoch)
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p-abcde", DeletionTimestamp: &now, Labels: map[string]string{v1alpha1.LabelModelPrefix + "u2": "true", v1alpha1.LabelModelPrefix + "u1": "true", "x": "y"}}}
	pod.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodScheduled, Status: corev1.ConditionFalse, Message: "no node"}}
	pod.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "worker", State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "ImagePullBackOff", Message: "no such image"}}}}
	w := asWorker(pod, "default/p")
	if w.Unschedulable != "no node" || w.Waiting != "container worker: ImagePullBackOff: no such image" || !w.Deleting.Equal(now.Time) || !slices.Equal(w.Models, []uid{"u1", "u2"}) || w.Running {
		t.Errorf("worker is %+v", w)
	}
	pod.Status.InitContainerStatuses = []corev1.ContainerStatus{{Name: "fetch", State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "ErrImagePull", Message: "no such image"}}}}
	pod.Status.ContainerStatuses[0].State.Waiting = &corev1.ContainerStateWaiting{Reason: "PodInitializing"}
	if w := asWorker(pod, "default/p"); w.Waiting != "container fetch: ErrImagePull: no such image" {
		t.Errorf("worker waits for %q", w.Waiting)
	}
	pod.Status.InitContainerStatuses = nil
	for message, want := range map[string]string{
		"": "container worker: CrashLoopBackOff: it ended with exit code 1",
		"{\"msg\":\"GPU\"}\nestiba: device gpu-0: no room\nmore\n": "container worker: CrashLoopBackOff: it ended with exit code 1: device gpu-0: no room",
	} {
		pod.Status.ContainerStatuses[0].State.Waiting = &corev1.ContainerStateWaiting{Reason: "CrashLoopBackOff", Message: "back-off 40s restarting failed container"}
		pod.Status.ContainerStatuses[0].LastTerminationState.Terminated = &corev1.ContainerStateTerminated{ExitCode: 1, Reason: "Error", Message: message}
		if w := asWorker(pod, "default/p"); w.Waiting != want || !w.Stopped {
			t.Errorf("worker waits for %q, want %q", w.Waiting, want)
		}
	}
	pod.Status.ContainerStatuses[0].LastTerminationState.Terminated = &corev1.ContainerStateTerminated{ExitCode: 137, Reason: "OOMKilled"}
	if w := asWorker(pod, "default/p"); w.Waiting != "container worker: CrashLoopBackOff: it ended with exit code 137 (OOMKilled)" {
		t.Errorf("worker waits for %q", w.Waiting)
	}
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n"}}
	if leaving(node) != "" {
		t.Error("a plain node leaves")
	}
	node.Spec.Taints = []corev1.Taint{{Key: "karpenter.sh/disrupted"}}
	if leaving(node) == "" {
		t.Error("a node that Karpenter takes away stays")
	}
}

func TestValidate(t *testing.T) {
	m := fixture.NewModel("x", fixture.Replicas(1), fixture.Autoscaled(3, 2), func(m *v1alpha1.Model) {
		m.Spec.Source.URI, m.Spec.Source.Digest = "file://models/x", "sha256:12"
	})
	err := Validate(m)
	for _, message := range []string{"exclude each other", "min must not be larger", "write three slashes", "as sha256sum prints them"} {
		if err == nil || !strings.Contains(err.Error(), message) {
			t.Errorf("%v lacks %q", err, message)
		}
	}
	if err := Validate(fixture.NewModel("x")); err != nil {
		t.Error(err)
	}
	if err := ValidatePool(fixture.NewPool("p", 0, 1)); err != nil {
		t.Error(err)
	}
	if err := ValidatePool(fixture.NewPool("a.b", 2, 1)); err == nil || !strings.Contains(err.Error(), "no dots") || !strings.Contains(err.Error(), "workers.min") {
		t.Error(err)
	}
}
