package kubernetes

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/estiba/estiba/api/v1alpha1"
	"github.com/estiba/estiba/api/worker"
	"github.com/estiba/estiba/internal/fixture"
	"github.com/estiba/estiba/internal/simworker"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// A pool in a cluster whose nodes Karpenter makes. A model that fits nowhere
// brings a worker, its pod a node; while the model is there nobody takes the node
// away at will, and where that is announced, the model is served all the while;
// when the models leave, pods and nodes go.
func TestKarpenter(t *testing.T) {
	s := newScene(t)
	s.startKarpenter()
	kubelet := s.playKubelet()
	s.apply(`
apiVersion: estiba.dev/v1alpha1
kind: InferencePool
metadata: {name: burst}
spec:
  workers: {min: 0, max: 3}
  modelRoots: [/models]
  device: {memory: 10Gi}
  update: {drain: 5s}
  scaleDown: {after: 3s}
  template:
    spec:
      nodeSelector: {karpenter.sh/nodepool: simulated}
      tolerations: [{key: test.estiba.dev/simulated, operator: Exists}]
      containers:
      - name: worker
        resources: {limits: {nvidia.com/gpu: 1}}
`)
	s.model("burst-a", "file:///models/a-7Gi", "")
	message := s.condition("burst-a", v1alpha1.ConditionReady, metav1.ConditionFalse, v1alpha1.ReasonWaitingForNode)
	progress("  %s", message)
	s.ready("burst-a")
	s.answers("burst-a")
	s.model("burst-b", "file:///models/b-7Gi", "")
	s.model("burst-small", "file:///models/small-2Gi", "")
	s.ready("burst-a", "burst-b", "burst-small")
	s.eventually("there are two workers, each on a node of its own", func() string {
		if pods, nodes := s.workers("burst"), s.nodes(); len(pods) != 2 || len(nodes) != 2 {
			return fmt.Sprintf("there are %d workers and %d nodes", len(pods), len(nodes))
		}
		return ""
	})

	t.Run("nobody takes a busy worker's node", func(t *testing.T) {
		s.eventually("the workers' pods say so", func() string { // a pod's marks change every few seconds at most
			for _, p := range s.workers("burst") {
				if p.Annotations["karpenter.sh/do-not-disrupt"] != "true" || p.Annotations["cluster-autoscaler.kubernetes.io/safe-to-evict"] != "false" {
					return fmt.Sprintf("%s is not kept: %v", p.Name, p.Annotations)
				}
			}
			return ""
		})
		before := s.nodes()
		time.Sleep(8 * time.Second) // Karpenter consolidates after one
		if after := s.nodes(); !slices.Equal(before, after) {
			t.Errorf("the nodes were %v and are %v", before, after)
		}
	})

	t.Run("a removal that is announced waits for its models", func(t *testing.T) {
		pod := s.host("burst-b")
		asking := s.keepAsking("burst-a", "burst-b", "burst-small")
		claims := strings.Fields(s.kubectl("get", "nodeclaims", "-o", `jsonpath={.items[?(@.status.nodeName=="`+pod.Spec.NodeName+`")].metadata.name}`))
		if len(claims) != 1 {
			t.Fatalf("node %s has claims %v", pod.Spec.NodeName, claims)
		}
		s.kubectl("delete", "nodeclaim", claims[0], "--wait=false")
		s.eventually("the node is gone, and its worker", func() string {
			if slices.Contains(s.nodes(), pod.Spec.NodeName) {
				return "the node is there"
			}
			var still corev1.Pod
			if err := s.client.Get(context.Background(), client.ObjectKeyFromObject(pod), &still); !apierrors.IsNotFound(err) {
				return "the pod is there"
			}
			return ""
		})
		s.ready("burst-a", "burst-b", "burst-small")
		asking.end(s)
		if ended := kubelet.busyWhenStopped(); len(ended) > 0 {
			t.Errorf("homes that had requests when their worker ended: %v", ended)
		}
	})

	t.Run("models leave, pods and nodes go", func(t *testing.T) {
		s.kubectl("delete", "model", "--all", patiently)
		s.eventually("no worker is left", func() string {
			if pods := s.workers("burst"); len(pods) > 0 {
				return fmt.Sprintf("there are %d", len(pods))
			}
			return ""
		})
		s.eventually("no node is left", func() string {
			if nodes := s.nodes(); len(nodes) > 0 {
				return fmt.Sprintf("there are %v", nodes)
			}
			return ""
		})
	})
}

// nodes are the names of the nodes that Karpenter has made.
func (s *scene) nodes() []string {
	s.Helper()
	var list corev1.NodeList
	if err := s.client.List(context.Background(), &list, client.HasLabels{"karpenter.sh/nodepool"}); err != nil {
		s.Fatal(err)
	}
	var names []string
	for _, n := range list.Items {
		names = append(names, n.Name)
	}
	slices.Sort(names)
	return names
}

// startKarpenter builds Karpenter with its fake cloud, where there is no
// Karpenter yet, and runs it until the test ends. Its cloud has one kind of
// machine, with a GPU, which takes some seconds to come.
func (s *scene) startKarpenter() {
	s.Helper()
	out, err := s.output(exec.Command(filepath.Join(fixture.Root(), "hack", "karpenter", "build.sh")))
	if err != nil {
		s.Fatal(err)
	}
	lines := strings.Fields(out) // the program, folders of custom resources
	for _, folder := range lines[1:] {
		s.kubectl("apply", "--server-side", "-f", folder)
	}
	s.kubectl("wait", "--for=condition=Established", patiently, "crd/nodepools.karpenter.sh", "crd/nodeclaims.karpenter.sh", "crd/kwoknodeclasses.karpenter.kwok.sh")
	machine := []map[string]any{{
		"name": "gpu-1x", "architecture": "amd64", "operatingSystems": []string{"linux"},
		"resources": map[string]string{"cpu": "8", "memory": "64Gi", "pods": "110", "nvidia.com/gpu": "1"},
		"offerings": []map[string]any{{"Price": 1.5, "Available": true, "Requirements": []map[string]any{
			{"key": "karpenter.sh/capacity-type", "operator": "In", "values": []string{"on-demand"}},
			{"key": "topology.kubernetes.io/zone", "operator": "In", "values": []string{"zone-a"}},
		}}},
	}}
	text, err := json.Marshal(machine)
	check(s.T, err)
	machines := filepath.Join(s.TempDir(), "machines.json")
	check(s.T, os.WriteFile(machines, text, 0o644))
	log, err := os.Create(filepath.Join(s.cluster.state, "log", "karpenter.log"))
	check(s.T, err)
	cmd := exec.Command(lines[0])
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Env = append(slices.Clone(s.env), "SYSTEM_NAMESPACE=kube-system", "DISABLE_LEADER_ELECTION=true", "INSTANCE_TYPES_FILE_PATH="+machines,
		fmt.Sprintf("METRICS_PORT=%d", freePort(s.T)), fmt.Sprintf("HEALTH_PROBE_PORT=%d", freePort(s.T)))
	check(s.T, cmd.Start())
	s.Cleanup(func() {
		if s.Failed() {
			tail, _ := exec.Command("tail", "-n", "60", log.Name()).Output()
			fmt.Fprintf(os.Stderr, "--- karpenter\n%s\n", tail)
		}
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		log.Close()
	})
	s.apply(`
apiVersion: karpenter.kwok.sh/v1alpha1
kind: KWOKNodeClass
metadata: {name: simulated}
spec: {nodeRegistrationDelay: 3s}
---
apiVersion: karpenter.sh/v1
kind: NodePool
metadata: {name: simulated}
spec:
  template:
    spec:
      nodeClassRef: {group: karpenter.kwok.sh, kind: KWOKNodeClass, name: simulated}
      requirements: [{key: kubernetes.io/os, operator: In, values: [linux]}]
      taints: [{key: test.estiba.dev/simulated, effect: NoSchedule}]
      expireAfter: Never
  disruption: {consolidationPolicy: WhenEmptyOrUnderutilized, consolidateAfter: 1s}
`)
}

func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// kubelet plays the kubelets of nodes without machines: the nodes are ready, a
// worker's pod has a simulated worker at an address that the cluster's pods
// reach, and a pod that is deleted ends at once.
type kubelet struct {
	*scene
	fleet *simworker.Fleet
	next  int // address to give away

	mu     sync.Mutex
	tokens map[string]string // pool -> token
	busy   []string          // homes that had requests when their worker ended
}

// poolToken is the token of a pool ("namespace/name"); without one nobody is let in.
func (k *kubelet) poolToken(pool string) string {
	k.mu.Lock()
	defer k.mu.Unlock()
	namespace, name, _ := strings.Cut(pool, "/")
	var secret corev1.Secret
	if k.tokens[pool] == "" && k.client.Get(context.Background(), client.ObjectKey{Namespace: namespace, Name: name + "-token"}, &secret) == nil {
		k.tokens[pool] = strings.TrimSpace(string(secret.Data["token"]))
	}
	return cmp.Or(k.tokens[pool], rand.Text())
}

// network is where simulated workers have their addresses.
const network = "10.251.0"

func (s *scene) playKubelet() *kubelet {
	s.Helper()
	if out, err := s.devcluster("enter", "1", "ip", "route", "replace", "local", network+".0/24", "dev", "lo").CombinedOutput(); err != nil {
		s.Fatalf("%v\n%s", err, out)
	}
	k := &kubelet{scene: s, tokens: map[string]string{}}
	k.fleet = simworker.New(simworker.Options{
		Token:     k.poolToken,
		Device:    worker.Device{Name: "gpu-0", Kind: "cuda", ExtentBytes: 2 << 20, CapacityBytes: 10 << 30},
		Bandwidth: 10 << 30,
		Answer:    20 * time.Millisecond,
		Listen: func() (net.Listener, error) {
			k.next++
			return inside(s.cluster, func() (net.Listener, error) {
				return net.Listen("tcp", fmt.Sprintf("%s.%d:%d", network, k.next, simworker.Port))
			})
		},
	})
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			if err := k.sync(ctx); err != nil && ctx.Err() == nil {
				progress("  kubelet: %v", err)
			}
			time.Sleep(200 * time.Millisecond)
		}
	}()
	s.Cleanup(func() {
		stop()
		<-done
		k.fleet.Close()
	})
	return k
}

// busyWhenStopped are the homes that had requests when their worker ended.
func (k *kubelet) busyWhenStopped() []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Clone(k.busy)
}

func (k *kubelet) sync(ctx context.Context) error {
	var nodes corev1.NodeList
	if err := k.client.List(ctx, &nodes, client.HasLabels{"karpenter.sh/nodepool"}); err != nil {
		return err
	}
	mine := map[string]bool{}
	for i := range nodes.Items {
		mine[nodes.Items[i].Name] = true
		if err := k.beat(ctx, &nodes.Items[i]); err != nil {
			return err
		}
	}
	var pods corev1.PodList
	if err := k.client.List(ctx, &pods, client.InNamespace(k.namespace)); err != nil {
		return err
	}
	for i := range pods.Items {
		p := &pods.Items[i]
		if !mine[p.Spec.NodeName] {
			continue
		}
		do := k.run
		if p.DeletionTimestamp != nil {
			do = k.end
		}
		if err := do(ctx, p); err != nil {
			return err
		}
	}
	return nil
}

// beat says now and then that a node is ready.
func (k *kubelet) beat(ctx context.Context, n *corev1.Node) error {
	now := metav1.Now()
	ready := corev1.NodeCondition{Type: corev1.NodeReady, Status: corev1.ConditionTrue, Reason: "KubeletReady", LastHeartbeatTime: now, LastTransitionTime: now}
	before := n.DeepCopy()
	i := slices.IndexFunc(n.Status.Conditions, func(c corev1.NodeCondition) bool { return c.Type == corev1.NodeReady })
	switch {
	case i < 0:
		n.Status.Conditions = append(n.Status.Conditions, ready)
	case n.Status.Conditions[i].Status != corev1.ConditionTrue:
		n.Status.Conditions[i] = ready
	case time.Since(n.Status.Conditions[i].LastHeartbeatTime.Time) < 5*time.Second:
		return nil
	default:
		n.Status.Conditions[i].LastHeartbeatTime = now
	}
	return client.IgnoreNotFound(k.client.Status().Patch(ctx, n, client.MergeFrom(before)))
}

// run starts the worker of a pod.
func (k *kubelet) run(ctx context.Context, p *corev1.Pod) error {
	if k.fleet.Worker(p.Name) != nil {
		return nil
	}
	w, err := k.fleet.Start(p.Name, p.Namespace+"/"+p.Labels[v1alpha1.LabelPool])
	if err != nil {
		return err
	}
	before, now := p.DeepCopy(), metav1.Now()
	p.Status.Phase, p.Status.StartTime, p.Status.PodIP, p.Status.PodIPs = corev1.PodRunning, &now, w.Address(), []corev1.PodIP{{IP: w.Address()}}
	for _, kind := range []corev1.PodConditionType{corev1.PodInitialized, corev1.ContainersReady, corev1.PodReady} {
		p.Status.Conditions = append(p.Status.Conditions, corev1.PodCondition{Type: kind, Status: corev1.ConditionTrue, LastTransitionTime: now})
	}
	p.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "worker", Ready: true, Image: p.Spec.Containers[0].Image,
		State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: now}}}}
	return client.IgnoreNotFound(k.client.Status().Patch(ctx, p, client.MergeFrom(before)))
}

// end ends the worker of a pod, and the pod.
func (k *kubelet) end(ctx context.Context, p *corev1.Pod) error {
	if w := k.fleet.Worker(p.Name); w != nil {
		for _, h := range w.State().Homes {
			if h.Running+h.Waiting > 0 {
				k.mu.Lock()
				k.busy = append(k.busy, fmt.Sprintf("%s: %s", p.Name, h.Model))
				k.mu.Unlock()
			}
		}
		k.fleet.Stop(p.Name)
	}
	return client.IgnoreNotFound(k.client.Delete(ctx, p, client.GracePeriodSeconds(0), client.Preconditions{UID: &p.UID}))
}
