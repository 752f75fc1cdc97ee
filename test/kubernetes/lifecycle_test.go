package kubernetes

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"

	"github.com/estiba/estiba/api/v1alpha1"
	"github.com/estiba/estiba/api/worker"
	"github.com/estiba/estiba/internal/fixture"
	"github.com/estiba/estiba/test/openai"
	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// From kubectl apply to an answer: two models of different precision in one
// worker pod; what kubectl shows; scale, wait and delete; the pod deleted.
func TestServe(t *testing.T) {
	s := newScene(t)
	s.pool("serve", 1, "512Mi")
	s.model("serve-f32", float32Model, "replicas: 1, servedNames: [serve-alias]")
	s.model("serve-f16", float16Model, "replicas: 1")
	s.kubectl("wait", "--for=condition=Ready", patiently, "model/serve-f32", "model/serve-f16", "ipool/serve")

	for _, name := range []string{"serve-f32", "serve-alias", "serve-f16"} {
		if text := s.answers(name); text == "" {
			t.Errorf("%s answers nothing", name)
		}
	}
	pod := s.worker("serve")
	t.Run("one worker holds both", func(t *testing.T) {
		state := s.state("serve", pod)
		for _, name := range []string{"serve-f32", "serve-f16"} {
			h := home(state, s.namespace+"/"+name)
			if h == nil || h.Phase != worker.PhaseResident || !h.Footprint.Measured {
				t.Errorf("%s is not resident and measured: %+v", name, h)
			}
		}
		var wide string
		defer func() { progress("kubectl get model,ipool -o wide\n%s", wide) }()
		for _, want := range []string{`serve-f32 +True +Serving +1 +serve .*` + pod.Name, `serve-f16 +True +Serving +1 +serve .*` + pod.Name, `serve +True +1/1 +2 `} {
			s.eventually("kubectl shows it", func() string {
				if wide = s.kubectl("get", "model,ipool", "-o", "wide"); regexp.MustCompile(want).MatchString(wide) {
					return ""
				}
				return "no " + want
			})
		}
	})
	t.Run("the worker's pod is safe to evict and restricted", func(t *testing.T) {
		if len(pod.OwnerReferences) != 1 || pod.OwnerReferences[0].Kind != "InferencePool" {
			t.Errorf("owners %+v", pod.OwnerReferences)
		}
		var budgets policyv1.PodDisruptionBudgetList
		if err := s.client.List(context.Background(), &budgets, client.InNamespace(s.namespace)); err != nil {
			t.Fatal(err)
		}
		if len(budgets.Items) != 1 {
			t.Fatalf("%d budgets", len(budgets.Items))
		}
		spec := budgets.Items[0].Spec
		if spec.MinAvailable == nil || spec.UnhealthyPodEvictionPolicy == nil || *spec.UnhealthyPodEvictionPolicy != policyv1.AlwaysAllow {
			t.Errorf("budget %+v", spec)
		}
	})
	t.Run("the token is needed", func(t *testing.T) {
		response, err := s.http.Get("http://" + pod.Status.PodIP + ":8081" + worker.PathState)
		if err != nil {
			t.Fatal(err)
		}
		response.Body.Close()
		if response.StatusCode != 401 {
			t.Errorf("status %d without a token", response.StatusCode)
		}
	})
	t.Run("deleting the pod brings both back", func(t *testing.T) {
		s.kubectl("delete", "pod", pod.Name)
		s.eventually("another worker holds both", func() string {
			pods := s.workers("serve")
			if len(pods) != 1 || !podReady(&pods[0]) {
				return "there is no other worker"
			}
			state := s.state("serve", &pods[0])
			for _, name := range []string{"serve-f32", "serve-f16"} {
				if h := home(state, s.namespace+"/"+name); h == nil || h.Phase != worker.PhaseResident {
					return name + " is not resident"
				}
			}
			return ""
		})
		s.ready("serve-f32", "serve-f16")
		s.answers("serve-f32")
		s.answers("serve-f16")
	})
	t.Run("scale", func(t *testing.T) {
		s.kubectl("patch", "ipool", "serve", "--type=merge", "-p", `{"spec":{"workers":{"max":2}}}`)
		s.kubectl("scale", "model", "serve-f32", "--replicas=2")
		s.kubectl("wait", "--for=jsonpath={.status.readyReplicas}=2", patiently, "model/serve-f32")
		if workers := placed(s, "serve-f32"); len(workers) != 2 {
			t.Errorf("two replicas are on workers %v", workers)
		}
		s.kubectl("scale", "model", "serve-f32", "--replicas=1")
		s.eventually("one replica is left", func() string {
			if m := s.get("serve-f32"); m.Status.Replicas != 1 || len(m.Status.Placements) != 1 {
				return "there are more"
			}
			return ""
		})
		s.answers("serve-f32")
	})
	t.Run("delete", func(t *testing.T) {
		s.kubectl("delete", "model", "serve-f16", patiently)
		s.eventually("the gateway has forgotten it", func() string {
			body, _ := json.Marshal(map[string]any{"model": "serve-f16", "prompt": "x", "max_tokens": 1})
			status, answer, err := s.request(context.Background(), "POST", "/v1/completions", body)
			if err != nil || status != 404 || !strings.Contains(string(answer), "model_not_found") {
				return string(answer)
			}
			return ""
		})
		s.eventually("its memory is free", func() string {
			for _, p := range s.workers("serve") {
				if podReady(&p) && home(s.state("serve", &p), s.namespace+"/serve-f16") != nil {
					return p.Name + " still holds it"
				}
			}
			return ""
		})
		s.answers("serve-f32")
	})
}

func placed(s *scene, name string) []string {
	workers := map[string]bool{}
	var names []string
	for _, p := range s.get(name).Status.Placements {
		if !workers[p.Worker] {
			workers[p.Worker] = true
			names = append(names, p.Worker)
		}
	}
	return names
}

// The texts that an independent program gives for the reference cases come
// through chart, pods and gateway, one by one and eight at once.
func TestReferenceTexts(t *testing.T) {
	s := newScene(t)
	data, err := os.ReadFile(fixture.Shared(t, "models/stories260K/cases.json"))
	if err != nil {
		t.Fatal(err)
	}
	var cases []struct {
		Name   string
		Prompt string
		Max    int `json:"max_new_tokens"`
		Greedy map[string]struct{ Text string }
	}
	if err := json.Unmarshal(data, &cases); err != nil {
		t.Fatal(err)
	}
	s.pool("reference", 1, "512Mi")
	s.model("reference", float32Model, "")
	s.ready("reference")
	check := func(i int) {
		c := cases[i]
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		text, err := s.complete(ctx, "reference", c.Prompt, c.Max)
		if diff := cmp.Diff(strings.TrimSpace(c.Greedy["f32"].Text), strings.TrimSpace(text)); diff != "" || err != nil {
			t.Errorf("%s: %v; (-reference +estiba)\n%s", c.Name, err, diff)
		}
	}
	for i := range cases {
		check(i)
	}
	var together sync.WaitGroup
	for i := range cases {
		together.Go(func() { check(i) })
	}
	together.Wait()
}

// A model without replicas sleeps, and a request wakes it.
func TestWake(t *testing.T) {
	s := newScene(t)
	s.pool("wake", 1, "512Mi")
	s.model("wake", float32Model, "autoscaling: {min: 0, max: 1, idleAfter: 3s}")
	s.condition("wake", v1alpha1.ConditionReady, metav1.ConditionTrue, v1alpha1.ReasonScaledToZero)
	s.answers("wake")
	pod := s.worker("wake")
	s.eventually("it sleeps again", func() string {
		if h := home(s.state("wake", pod), s.namespace+"/wake"); h == nil || h.Phase != worker.PhaseIdle {
			return "it is on the device"
		}
		return ""
	})
	s.answers("wake")
}

// A pool that may be empty gets its first worker when a model needs one.
func TestPoolFromZero(t *testing.T) {
	s := newScene(t)
	s.pool("zero", 1, "512Mi")
	s.kubectl("patch", "ipool", "zero", "--type=merge", "-p", `{"spec":{"workers":{"min":0},"scaleDown":{"after":"2s"}}}`)
	s.eventually("no worker is left", func() string {
		if n := len(s.workers("zero")); n > 0 {
			return "there is one"
		}
		return ""
	})
	s.model("zero", float32Model, "replicas: 1")
	s.ready("zero")
	s.answers("zero")
	s.kubectl("delete", "model", "zero")
	s.eventually("the idle worker is given back", func() string {
		if n := len(s.workers("zero")); n > 0 {
			return "it is still there"
		}
		return ""
	})
}

// A worker that needs what no node has says which node is missing; one that
// asks for a GPU that exists gets it, and says that it cannot use it.
func TestNodes(t *testing.T) {
	s := newScene(t)
	s.pool("nodes", 1, "512Mi")
	s.kubectl("patch", "ipool", "nodes", "--type=json", "-p",
		`[{"op": "add", "path": "/spec/template/spec/containers/0/resources/limits/nvidia.com~1gpu", "value": 64}]`)
	s.model("nodes", float32Model, "")
	message := s.condition("nodes", v1alpha1.ConditionReady, metav1.ConditionFalse, v1alpha1.ReasonWaitingForNode)
	if !strings.Contains(message, "nvidia.com/gpu") {
		t.Errorf("message %q", message)
	}
	s.kubectl("patch", "ipool", "nodes", "--type=json", "-p",
		`[{"op": "replace", "path": "/spec/template/spec/containers/0/resources/limits/nvidia.com~1gpu", "value": 1}]`)
	s.ready("nodes")
	s.answers("nodes")
	s.degraded("nodes", metav1.ConditionTrue, v1alpha1.ReasonDeviceMissing, "has no GPU: The container asks for a GPU (nvidia.com/gpu), and this program is built without CUDA: the processor computes.")
	s.told("nodes", v1alpha1.ReasonDeviceMissing)
}

// Every sample is accepted.
func TestSamples(t *testing.T) {
	s := newScene(t)
	files, err := filepath.Glob(filepath.Join(fixture.Root(), "config", "samples", "*.yaml"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no samples: %v", err)
	}
	for _, f := range files {
		s.kubectl("apply", "--dry-run=server", "-f", f)
	}
}

// The official clients ask the cluster's gateway for everything that is served.
func TestOpenAIClients(t *testing.T) {
	node, err := exec.LookPath("node")
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("node is missing; install Debian's nodejs")
		}
		t.Skip("SKIPPED: node is missing")
	}
	tests := filepath.Join(fixture.Root(), "test")
	if _, err := os.Stat(filepath.Join(tests, "openai-node", "node_modules", "openai")); err != nil {
		t.Fatal("the client is not installed; run npm ci in test/openai-node")
	}
	program := filepath.Join(t.TempDir(), "openai-go")
	build := exec.Command("go", "test", "-c", "-o", program, ".")
	build.Dir = filepath.Join(tests, "openai-go")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	s := newScene(t)
	folder := filepath.Join(s.models, "openai")
	openai.Write(s, folder)
	s.Cleanup(func() { os.RemoveAll(folder) })
	s.pool("clients", 1, "512Mi")
	s.apply(strings.ReplaceAll(openai.Models, "PATH", "/models/openai"))
	s.ready("stories", "tools", "busy", "encoder")
	for _, command := range [][]string{
		{node, filepath.Join(tests, "openai-node", "client.test.mjs"), s.gateway + "/v1"},
		{"env", "OPENAI_TEST_URL=" + s.gateway + "/v1", program, "-test.skip=TestContract"},
	} {
		out, err := s.devcluster(append([]string{"enter", "1"}, command...)...).CombinedOutput()
		progress("%s", strings.TrimSpace(string(out)))
		if err != nil {
			t.Errorf("%v\n%s", err, out)
		}
	}
}

// Estiba's own pods are restricted, and the chart refuses values that mean nothing.
func TestChart(t *testing.T) {
	var pods corev1.PodList
	if err := the.client.List(context.Background(), &pods, client.InNamespace(system)); err != nil {
		t.Fatal(err)
	}
	for _, p := range pods.Items {
		security := p.Spec.SecurityContext
		if security == nil || security.RunAsNonRoot == nil || !*security.RunAsNonRoot {
			t.Errorf("%s may run as root", p.Name)
		}
	}
	out, err := the.command("helm", "template", filepath.Join(fixture.Root(), "charts", "estiba"), "--set-json", `operator.historyVolume={"emptyDir": {"sizeLimit": "300Mi"}}`).CombinedOutput()
	if !regexp.MustCompile(`(?s)--history-dir=(\S+).*mountPath: (\S+)}.*name: history\s+emptyDir:\s+sizeLimit: 300Mi`).Match(out) || err != nil {
		t.Errorf("the operator's decisions have no volume: %v\n%s", err, out)
	}
	out, err = the.command("helm", "template", filepath.Join(fixture.Root(), "charts", "estiba"), "--set", "workerImage.repository=r/estiba-cuda,workerImage.tag=t").CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--worker-image=r/estiba-cuda:t\n") || strings.Contains(string(out), "image: r/estiba-cuda") {
		t.Errorf("worker pods have no image of their own: %v\n%s", err, out)
	}
	for _, flag := range []string{"gateway.replicas=many", "networkpolicy.enabled=true", "workerImage.name=x"} {
		if out, err := the.command("helm", "template", filepath.Join(fixture.Root(), "charts", "estiba"), "--set", flag).CombinedOutput(); err == nil {
			t.Errorf("--set %s is accepted:\n%s", flag, out)
		}
	}
}
