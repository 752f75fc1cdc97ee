package kubernetes

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"

	"github.com/estiba/estiba/api/v1alpha1"
	"github.com/estiba/estiba/internal/cli"
	"github.com/estiba/estiba/internal/fixture"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// driver puts the emulated CUDA driver and NVML where node-1 sees them in /var/lib/driver.
func (c *cluster) driver(t *testing.T) {
	t.Helper()
	build := exec.Command("bash", "-ec", "source <(hack/cuda/env.sh); hack/cuda/emulator.sh; hack/cuda/nvml.sh")
	build.Dir = fixture.Root()
	out, err := c.output(build)
	check(t, err)
	folders := strings.Fields(out)
	if len(folders) != 2 {
		t.Fatalf("folders of the emulated driver: %q", out)
	}
	folder := filepath.Join(c.state, "node-1", "lib", "driver")
	check(t, os.MkdirAll(folder, 0o755))
	for _, library := range []string{filepath.Join(folders[0], "libcuda.so.1"), filepath.Join(folders[1], "new", "libnvidia-ml.so.1")} {
		data, err := os.ReadFile(library)
		check(t, err)
		check(t, os.WriteFile(filepath.Join(folder, filepath.Base(library)), data, 0o755))
	}
}

// imageForGPUs has all workers run the image for GPUs until the test's end, as helm upgrade does it.
func (c *cluster) imageForGPUs(t *testing.T) {
	t.Helper()
	built, err := c.output(exec.Command(filepath.Join(fixture.Root(), "hack", "image.sh"), "cuda"))
	check(t, err)
	image, tar, _ := strings.Cut(strings.TrimSpace(built), " ")
	_, err = c.output(c.devcluster("load", filepath.Join(fixture.Root(), tar)))
	check(t, err)
	repository, tag, _ := strings.Cut(image, ":")
	helm := func(args ...string) {
		_, err := c.output(c.command("helm", append(args, "--namespace", system, "--wait", "--timeout", "2m")...))
		check(t, err)
	}
	t.Cleanup(func() { helm("rollback", "estiba") })
	helm("upgrade", "estiba", filepath.Join(fixture.Root(), "charts", "estiba"), "--reuse-values",
		"--set", "workerImage.repository="+repository, "--set", "workerImage.tag="+tag)
}

// emulated applies what the driver emulates (kernels/cuda/emulator/libcuda.cpp) in containers that start from now on.
func (s *scene) emulated(settings string) {
	s.Helper()
	s.apply(fmt.Sprintf("{apiVersion: v1, kind: ConfigMap, metadata: {name: driver}, data: {settings: %q}}", settings))
}

// cudaPool applies a pool of one worker that asks for a GPU. mounts say, by the path in its container, which file of the driver's
// folder is there; empty: the folder itself.
func (s *scene) cudaPool(name, memory string, env, mounts map[string]string) {
	s.Helper()
	more, given := "", ""
	for name, value := range env {
		more += fmt.Sprintf("\n        - {name: %s, value: %s}", name, value)
	}
	for path, file := range mounts {
		given += fmt.Sprintf("\n        - {name: driver, mountPath: %s, subPath: %q, readOnly: true}", path, file)
	}
	s.apply(fmt.Sprintf(`
apiVersion: estiba.dev/v1alpha1
kind: InferencePool
metadata: {name: %s, labels: {pool: %[1]s}}
spec:
  workers: {min: 1, max: 1}
  modelRoots: [/models]
  update: {drain: 5s}
  template:
    spec:
      containers:
      - name: worker
        env:
        - {name: ESTIBA_EMULATED_CUDA, valueFrom: {configMapKeyRef: {name: driver, key: settings}}}
        - {name: ESTIBA_EMULATED_NVML, value: /models/gpus.nvml}%s
        resources: {requests: {cpu: 10m, memory: 32Mi}, limits: {memory: %s, nvidia.com/gpu: 1}}
        volumeMounts:
        - {name: models, mountPath: /models, readOnly: true}%s
      volumes:
      - {name: models, hostPath: {path: /var/lib/models, type: Directory}}
      - {name: driver, hostPath: {path: /var/lib/driver, type: Directory}}
`, name, more, memory, given))
}

// The image for GPUs with a driver that the node gives it: kernels compute what the processor does, NVML's figures are shown, and
// what happens to devices has the consequences that docs/gpus.md lists. The driver is emulated, and needs of the container what
// NVIDIA's does.
func TestCUDAImage(t *testing.T) {
	if runtime.GOARCH != "amd64" {
		t.Skip("SKIPPED: the image for GPUs is built on x86-64")
	}
	the.imageForGPUs(t)
	the.driver(t)
	s := newScene(t)
	figures := filepath.Join(s.models, "gpus.nvml")
	t.Cleanup(func() { os.Remove(figures) })
	check(t, os.WriteFile(figures, []byte("gpu uuid=GPU-e571ba00-0000-0000-0000-000000000000 name=NVIDIA_A100 total=268435456 reserved=0 free=268435456 util=37 power=123000 energy=1000 temp=51 throttle=0 ecc=0 events=8\n"), 0o644))
	var text strings.Builder
	if code := cli.Main([]string{"run", fixture.Model("stories260K/hf-f32"), "--prompt", "Once upon a time", "--max-tokens", "20"}, strings.NewReader(""), &text, os.Stderr); code != 0 {
		t.Fatalf("estiba run: exit %d", code)
	}
	want := strings.TrimSuffix(strings.TrimPrefix(text.String(), "Once upon a time"), "\n")

	// In the first process the 50th step leaves the device in a state that the driver cannot mend, in the second one it loses it.
	// The driver is where NVIDIA's container runtime puts its files.
	s.emulated("memory=256Mi,fail=graph:50:700")
	s.cudaPool("files", "512Mi", nil, map[string]string{"/usr/lib64/libcuda.so.1": "libcuda.so.1", "/usr/lib/x86_64-linux-gnu/libnvidia-ml.so.1": "libnvidia-ml.so.1"})
	s.cudaPool("folder", "512Mi", nil, nil) // whose node gives nothing
	s.model("cuda", float32Model, "poolSelector: {matchLabels: {pool: files}}")
	s.ready("cuda")
	pod := s.worker("files")
	s.emulated("memory=256Mi,fail=graph:50:999")
	if text := s.answers("cuda"); text != want {
		t.Fatalf("kernels answer %q, the processor %q", text, want)
	}
	s.eventually("kubectl shows NVML's figures", func() string {
		if out := s.kubectl("get", "ipool", "files", "-o", "wide"); !regexp.MustCompile(`files +True +1/1 +1 .* / 212Mi +37% +123W `).MatchString(out) {
			return out
		}
		return ""
	})
	s.degraded("folder", metav1.ConditionTrue, v1alpha1.ReasonDeviceMissing, "libcuda.so.1")
	code, out := s.estiba("", "top")
	progress("  estiba top\n%s", out)
	for _, says := range []string{pod.Name + "/gpu-0 [", " MiB of 212 MiB, ", "busy 37 %, 123 W, 51 °C", "# " + s.namespace + "/cuda ",
		"Worker folder-", "no CUDA device: libcuda.so.1: cannot open shared object file"} {
		if code != 0 || !strings.Contains(out, says) {
			t.Errorf("estiba top: exit %d, no %q", code, says)
		}
	}
	s.exports("files", `estiba_device_power_watts{device="gpu-0",`, `estiba_device_health{device="gpu-0",state="Healthy",worker="`+pod.Name+`"} 1`)

	// asking asks until done is so. Answers are right, or say why there is none.
	asking := func(what, says string, done func() string) {
		s.Helper()
		failed := 0
		s.eventually(what, func() string {
			switch text, err := s.complete(context.Background(), "cuda", "Once upon a time", 20); {
			case err == nil && text != want:
				t.Fatalf("kernels answer %q, the processor %q", text, want)
			case err != nil && !strings.Contains(err.Error(), says):
				t.Fatal(err)
			case err != nil:
				failed++
			}
			return done()
		})
		if failed != 1 {
			t.Errorf("%s: %d requests failed", what, failed)
		}
	}
	asking("the worker is started anew in its pod", "of no more use to this process: launch a graph: CUDA_ERROR_ILLEGAL_ADDRESS (700)", func() string {
		now := s.workers("files")
		if len(now) != 1 || now[0].Name != pod.Name || len(now[0].Status.ContainerStatuses) != 1 {
			t.Fatalf("the pod is gone: %+v", now)
		}
		ended := now[0].Status.ContainerStatuses[0].LastTerminationState.Terminated
		if ended == nil {
			return "it has not ended"
		}
		if ended.ExitCode != 70 || !strings.Contains(ended.Message, "\nestiba: ") {
			t.Errorf("%+v", ended)
		}
		return ""
	})
	s.eventually("the model is tried once more", func() string {
		if trial := s.get("cuda").Status.Trial; trial == nil || trial.Deaths != 1 {
			return fmt.Sprintf("%+v", trial)
		}
		return ""
	})
	s.ready("cuda")
	s.emulated("memory=256Mi")
	asking("another pod takes the place of a worker without devices", "device gpu-0 is lost: launch a graph: CUDA_ERROR_UNKNOWN (999)", func() string {
		if now := s.workers("files"); len(now) != 1 || now[0].Name == pod.Name || !podReady(&now[0]) {
			return fmt.Sprintf("there are %d", len(now))
		}
		return ""
	})
	s.told("files", v1alpha1.ReasonDeviceLost)
	s.ready("cuda")
	if text := s.answers("cuda"); text != want {
		t.Errorf("kernels answer %q, the processor %q", text, want)
	}

	// Where GKE has its folder. Memory that loads go through must be within the container's limit.
	s.cudaPool("folder", "48Mi", nil, map[string]string{"/usr/local/nvidia/lib64": ""})
	s.eventually("the pool says why its worker does not start", func() string {
		var p v1alpha1.InferencePool
		check(t, s.client.Get(context.Background(), client.ObjectKey{Namespace: s.namespace, Name: "folder"}, &p))
		for _, c := range p.Status.Conditions {
			if strings.Contains(c.Message, "CrashLoopBackOff: it ended with exit code 1: device gpu-0: pinned memory for loads takes 68 MiB, and this process may have 48 MiB in all") {
				progress("  %s", c.Message)
				return ""
			}
		}
		return fmt.Sprintf("%+v", p.Status.Conditions)
	})
	// Where only the template says.
	s.cudaPool("folder", "512Mi", map[string]string{"LD_LIBRARY_PATH": "/opt/driver"}, map[string]string{"/opt/driver": ""})
	s.degraded("folder", metav1.ConditionFalse, v1alpha1.ReasonSucceeded, "")
	if d := s.state("folder", s.worker("folder")).Devices; len(d) != 1 || d[0].Kind != "cuda" || d[0].Readings == nil {
		t.Errorf("devices are %+v", d)
	}
}
