package controllers

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/strategicpatch"

	"github.com/estiba/estiba/api/v1alpha1"
)

const (
	workerContainer = "worker"
	workerPort      = 8081
	tokenPath       = "/var/run/estiba/token"
	cachePath       = "/var/cache/estiba"
	// overhead is what a worker process takes beside its slab of host memory.
	overhead = 1 << 30
	// user that a worker runs as; the image has it.
	user = 65532
)

// tokenSecret is the name of the Secret with a pool's token.
func tokenSecret(pool string) string { return pool + "-token" }

// workerPod is the pod that is made for a pool now: what Estiba sets, merged
// over the pool's template, and the hash of it all. An error says what is
// wrong with the template.
func workerPod(p *v1alpha1.InferencePool, image string) (*corev1.Pod, string, error) {
	template, gpu := []byte("{}"), ""
	if p.Spec.Template != nil && len(p.Spec.Template.Raw) > 0 {
		template = p.Spec.Template.Raw
		decoder := json.NewDecoder(strings.NewReader(string(template)))
		decoder.DisallowUnknownFields()
		var theirs v1alpha1.PodTemplate
		if err := decoder.Decode(&theirs); err != nil {
			return nil, "", fmt.Errorf("spec.template is not a pod template: %w", err)
		}
		gpu = asksForGPU(theirs)
	}
	ours, err := json.Marshal(ourTemplate(p, image, gpu))
	if err != nil {
		return nil, "", fmt.Errorf("pool %s: write the pod template: %w", p.Name, err)
	}
	merged, err := strategicpatch.StrategicMergePatch(template, ours, v1alpha1.PodTemplate{})
	if err != nil {
		return nil, "", fmt.Errorf("spec.template cannot be merged: %w", err)
	}
	var t v1alpha1.PodTemplate
	if err := json.Unmarshal(merged, &t); err != nil {
		return nil, "", fmt.Errorf("spec.template cannot be merged: %w", err)
	}
	if err := usable(t); err != nil {
		return nil, "", err
	}
	sum := hash(t)
	yes := true
	pod := &corev1.Pod{ObjectMeta: *t.ObjectMeta.DeepCopy(), Spec: t.Spec}
	pod.Name, pod.GenerateName, pod.Namespace = "", p.Name+"-", p.Namespace
	pod.OwnerReferences = []metav1.OwnerReference{{APIVersion: v1alpha1.GroupVersion.String(), Kind: "InferencePool", Name: p.Name, UID: p.UID, Controller: &yes}}
	pod.Annotations[v1alpha1.AnnotationTemplateHash] = sum
	return pod, sum, nil
}

// MemoryLimit is what the worker's container of a pool may have, in bytes; 0: it has no
// limit. An error says what is wrong with the template.
func MemoryLimit(p *v1alpha1.InferencePool) (int64, error) {
	pod, _, err := workerPod(p, "estiba")
	if err != nil {
		return 0, err
	}
	for _, c := range pod.Spec.Containers {
		if c.Name == workerContainer {
			return c.Resources.Limits.Memory().Value(), nil
		}
	}
	return 0, nil
}

// usable names what of a merged template contradicts a worker.
func usable(t v1alpha1.PodTemplate) error {
	i := slices.IndexFunc(t.Spec.Containers, func(c corev1.Container) bool { return c.Name == workerContainer })
	for _, probe := range []*corev1.Probe{t.Spec.Containers[i].ReadinessProbe, t.Spec.Containers[i].LivenessProbe} {
		if probe.Exec != nil || probe.TCPSocket != nil || probe.GRPC != nil {
			return errors.New("spec.template has a probe for the container worker, which Estiba sets itself: take it out")
		}
	}
	if n := len(t.Spec.Containers) - 1; n > 0 {
		for _, c := range t.Spec.Containers {
			if c.Name != workerContainer && c.Image == "" {
				return fmt.Errorf("spec.template has a container %q without an image: the worker's container is named worker", c.Name)
			}
		}
	}
	return nil
}

// asksForGPU says by what the worker's container of a template asks for a GPU; empty: it does not. Of a claim
// nobody here knows what it is for, and a worker has no use for any other device.
func asksForGPU(t v1alpha1.PodTemplate) string {
	for _, c := range t.Spec.Containers {
		if c.Name != workerContainer {
			continue
		}
		for _, list := range []corev1.ResourceList{c.Resources.Limits, c.Resources.Requests} {
			for _, name := range slices.Sorted(maps.Keys(list)) {
				if n := list[name]; !n.IsZero() && (strings.HasPrefix(string(name), "nvidia.com/gpu") || strings.HasPrefix(string(name), "nvidia.com/mig-")) {
					return string(name)
				}
			}
		}
		if all := c.Resources.Claims; len(all) > 0 {
			return "claim " + all[0].Name
		}
	}
	return ""
}

// ourTemplate is what Estiba sets in a pool's pods. gpu is by what they ask for a GPU.
func ourTemplate(p *v1alpha1.InferencePool, image, gpu string) v1alpha1.PodTemplate {
	no, yes, id := false, true, int64(user)
	grace := int64((orElse(p.Spec.Update.Drain, defaultDrain) + 30*time.Second).Seconds())
	// A file that is being fetched may exceed the worker's own bound for a while.
	size := cacheSize(p)
	size = *resource.NewQuantity(size.Value()/4*5, resource.BinarySI)
	return v1alpha1.PodTemplate{
		ObjectMeta: metav1.ObjectMeta{
			Labels: map[string]string{
				v1alpha1.LabelPool:          p.Name,
				v1alpha1.LabelComponent:     "worker",
				"app.kubernetes.io/part-of": "estiba",
			},
			Annotations: map[string]string{annotationSafeToEvict: atWill.SafeToEvict},
		},
		Spec: corev1.PodSpec{
			AutomountServiceAccountToken:  &no,
			EnableServiceLinks:            &no,
			RestartPolicy:                 corev1.RestartPolicyAlways,
			TerminationGracePeriodSeconds: &grace,
			SecurityContext: &corev1.PodSecurityContext{
				RunAsNonRoot: &yes, RunAsUser: &id, RunAsGroup: &id, FSGroup: &id,
				SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
			},
			Containers: []corev1.Container{{
				Name:  workerContainer,
				Image: image,
				Args:  workerArgs(p, gpu),
				Env: []corev1.EnvVar{{Name: "ESTIBA_WORKER_NAME", ValueFrom: &corev1.EnvVarSource{
					FieldRef: &corev1.ObjectFieldSelector{APIVersion: "v1", FieldPath: "metadata.name"}}}},
				Ports:     []corev1.ContainerPort{{Name: "http", ContainerPort: workerPort, Protocol: corev1.ProtocolTCP}},
				Resources: workerMemory(p),
				// Why a worker does not start is then in its pod's status, and with that in the pool's.
				TerminationMessagePolicy: corev1.TerminationMessageFallbackToLogsOnError,
				SecurityContext: &corev1.SecurityContext{
					AllowPrivilegeEscalation: &no, ReadOnlyRootFilesystem: &yes,
					Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
				},
				ReadinessProbe: probe("/readyz", 2, 2),
				LivenessProbe:  probe("/healthz", 10, 6),
				VolumeMounts: []corev1.VolumeMount{
					{Name: "estiba-token", MountPath: tokenPath, ReadOnly: true},
					{Name: "estiba-cache", MountPath: cachePath},
					{Name: "estiba-tmp", MountPath: "/tmp"},
				},
			}},
			Volumes: []corev1.Volume{
				{Name: "estiba-token", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: tokenSecret(p.Name)}}},
				{Name: "estiba-cache", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{SizeLimit: &size}}},
				{Name: "estiba-tmp", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}},
			},
		},
	}
}

func workerArgs(p *v1alpha1.InferencePool, gpu string) []string {
	size := cacheSize(p)
	args := []string{"worker",
		"--name=$(ESTIBA_WORKER_NAME)",
		"--pool=" + p.Namespace + "/" + p.Name,
		fmt.Sprintf("--listen=:%d", workerPort),
		"--token-file=" + tokenPath + "/token",
		"--cache-dir=" + cachePath,
		"--cache-size=" + size.String(),
		"--drain=" + orElse(p.Spec.Update.Drain, defaultDrain).String(),
	}
	for _, root := range p.Spec.ModelRoots {
		args = append(args, "--model-root="+root)
	}
	if m := p.Spec.Device.Memory; m != nil {
		args = append(args, "--memory="+m.String())
	}
	if h := p.Spec.Memory.Headroom; h != "" {
		args = append(args, "--headroom="+h)
	}
	if gpu != "" {
		args = append(args, "--expects="+gpu)
	}
	return args
}

// cacheSize bounds the worker's disk cache.
func cacheSize(p *v1alpha1.InferencePool) resource.Quantity {
	if p.Spec.Cache.Size != nil {
		return *p.Spec.Cache.Size
	}
	return resource.MustParse("10Gi")
}

// workerMemory asks for the host slab and what the process needs beside it.
func workerMemory(p *v1alpha1.InferencePool) corev1.ResourceRequirements {
	if p.Spec.Memory.Host == nil {
		return corev1.ResourceRequirements{}
	}
	all := p.Spec.Memory.Host.DeepCopy()
	all.Add(*resource.NewQuantity(overhead, resource.BinarySI))
	list := corev1.ResourceList{corev1.ResourceMemory: all}
	return corev1.ResourceRequirements{Requests: list, Limits: list.DeepCopy()}
}

func probe(path string, period, failures int32) *corev1.Probe {
	return &corev1.Probe{
		ProbeHandler:  corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: path, Port: intstr.FromInt32(workerPort), Scheme: corev1.URISchemeHTTP}},
		PeriodSeconds: period, FailureThreshold: failures, TimeoutSeconds: max(1, period/2), SuccessThreshold: 1,
	}
}

// asWorker is what a pod says about the worker in it.
func asWorker(pod *corev1.Pod, pool string) Worker {
	w := Worker{Name: pod.Name, Pool: pool, Hash: pod.Annotations[v1alpha1.AnnotationTemplateHash], Disruption: disruption(pod)}
	w.Successor = pod.Annotations[v1alpha1.AnnotationSuccessor] == "true"
	if t := pod.DeletionTimestamp; t != nil {
		w.Deleting = t.Time
	}
	w.Failed = pod.Status.Phase == corev1.PodFailed || pod.Status.Phase == corev1.PodSucceeded
	for _, c := range slices.Concat(pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses) {
		if c.Name == workerContainer {
			w.Running = c.State.Running != nil
			w.Stopped = c.State.Terminated != nil || c.State.Waiting != nil && c.State.Waiting.Reason == "CrashLoopBackOff"
		}
		if s := c.State.Waiting; w.Waiting == "" && s != nil && s.Reason != "ContainerCreating" && s.Reason != "PodInitializing" {
			w.Waiting = strings.TrimSuffix(fmt.Sprintf("container %s: %s: %s", c.Name, s.Reason, cmp.Or(lastWords(c.LastTerminationState.Terminated), s.Message)), ": ")
		}
	}
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodScheduled && c.Status == corev1.ConditionFalse {
			w.Unschedulable = c.Message
		}
	}
	for label := range pod.Labels {
		if id, ok := strings.CutPrefix(label, v1alpha1.LabelModelPrefix); ok {
			w.Models = append(w.Models, uid(id))
		}
	}
	slices.Sort(w.Models)
	return w
}

// lastWords says how a container ended that is started again and again; empty: it did not.
func lastWords(t *corev1.ContainerStateTerminated) string {
	if t == nil {
		return ""
	}
	said := fmt.Sprintf("it ended with exit code %d", t.ExitCode)
	if t.Reason != "" && t.Reason != "Error" && t.Reason != "Completed" {
		said += " (" + t.Reason + ")"
	}
	const command = "\nestiba: " // says why it fails, at the end of its log
	if at := strings.LastIndex("\n"+t.Message, command); at >= 0 {
		line, _, _ := strings.Cut(("\n" + t.Message)[at+len(command):], "\n")
		said += ": " + line
	}
	return said
}

// leaving says why a node is about to go away; empty: it is not.
func leaving(n *corev1.Node) string {
	for _, t := range n.Spec.Taints {
		switch t.Key {
		case "ToBeDeletedByClusterAutoscaler", "karpenter.sh/disrupted":
			return fmt.Sprintf("node %s is about to be removed (taint %s)", n.Name, t.Key)
		}
	}
	if n.Spec.Unschedulable {
		return fmt.Sprintf("node %s is cordoned", n.Name)
	}
	return ""
}
