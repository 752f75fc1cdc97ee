package kubernetes

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/estiba/estiba/api/v1alpha1"
	eventsv1 "k8s.io/api/events/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// gpus applies a pool of one worker with the GPUs that a file describes, and returns what
// writes that file. They are not there: the processor computes.
func (s *scene) gpus(pool string) (describe func(devices ...string)) {
	s.Helper()
	file := filepath.Join(s.models, pool+".yaml")
	s.Cleanup(func() { os.Remove(file) })
	describe = func(devices ...string) {
		s.Helper()
		check(s, os.WriteFile(file+".new", []byte("devices:\n- "+strings.Join(devices, "\n- ")+"\n"), 0o644))
		check(s, os.Rename(file+".new", file))
	}
	describe(sound, sound, sound)
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
        env: [{name: ESTIBA_EMULATE, value: /models/%[1]s.yaml}]
        resources: {requests: {cpu: 10m, memory: 64Mi}, limits: {memory: 512Mi}}
        volumeMounts: [{name: models, mountPath: /models, readOnly: true}]
      volumes:
      - {name: models, hostPath: {path: /var/lib/models, type: Directory}}
`, pool))
	return describe
}

// A GPU as it should be, and what may be the matter with one.
const (
	sound    = "{memory: 80Gi, power: 100, utilization: 0.25, temperature: 50}"
	stranger = "{memory: 80Gi, power: 100, utilization: 0.25, temperature: 50, processes: [{pid: 4711, memory: 30Gi}]}"
	hot      = "{memory: 80Gi, power: 300, utilization: 0.75, temperature: 93, throttled: [Heat]}"
	dead     = "{memory: 80Gi, xids: [79]}"
)

// GPUs that a file describes: other processes take 30 GiB of one, another one is throttled, a third one falls off the bus.
// What comes goes where it should, what was there gets another home, what ran there ends at once, and whoever looks is told why. When all
// are lost, another pod takes the worker's place.
func TestDevices(t *testing.T) {
	s := newScene(t)
	describe := s.gpus("gpus")
	pod := s.worker("gpus")
	sparseModel(t, s.copyModel("wide"), 256, 64, 64) // 32 MiB of KV cache for a sequence
	needs := func(name string, gib int) {
		s.apply(fmt.Sprintf("{apiVersion: estiba.dev/v1alpha1, kind: Model, metadata: {name: %s}, spec: {source: {uri: 'file:///models/wide'}, context: {maxTokens: 512, sequences: %d}}}", name, gib*32-8))
	}
	on := func(name, device string) {
		s.Helper()
		s.ready(name)
		if p := s.get(name).Status.Placements; len(p) != 1 || !slices.Equal(p[0].Devices, []string{device}) {
			t.Errorf("%s is at %+v, want %s", name, p, device)
		}
		s.answers(name)
	}
	states := func(want string) {
		s.Helper()
		s.eventually("the worker says "+want, func() string {
			is := ""
			for _, d := range s.state("gpus", pod).Devices {
				is += fmt.Sprintf("%s %s %d; ", d.Name, d.Health.State, d.CapacityBytes>>30)
			}
			if strings.TrimSuffix(is, "; ") != want {
				return is
			}
			return ""
		})
	}
	describe(stranger, hot, sound)
	states("gpu-0 Healthy 46; gpu-1 Degraded 76; gpu-2 Healthy 76")
	needs("gpus-60", 60)
	on("gpus-60", "gpu-2") // the first has 46 GiB, the second is hot
	needs("gpus-40", 40)
	on("gpus-40", "gpu-0")
	needs("gpus-50", 50)
	on("gpus-50", "gpu-1") // no other has room
	s.degraded("gpus", metav1.ConditionTrue, v1alpha1.ReasonDeviceDegraded, "Device gpu-1 of worker "+pod.Name+" is degraded: clocks are lowered because of heat at 93 °C")
	s.eventually("kubectl shows what the devices draw", func() string {
		if out := s.kubectl("get", "ipool", "gpus", "-o", "wide"); !regexp.MustCompile(`gpus +True +1/1 +3 +1\d\d(\.\d)?Gi / 198Gi +.*\b42% +500W `).MatchString(out) {
			return out
		}
		return ""
	})

	ended := make(chan string, 1)
	go func() {
		status, answer, err := s.request(context.Background(), "POST", "/v1/completions", []byte(`{"model": "gpus-60", "prompt": "Once", "max_tokens": 500, "ignore_eos": true, "n": 128}`))
		ended <- fmt.Sprintf("%d %s %v", status, answer, err)
	}()
	s.eventually("a long request runs", func() string {
		for _, h := range s.state("gpus", pod).Homes {
			if h.Model == s.namespace+"/gpus-60" && h.Running > 0 {
				return ""
			}
		}
		return "nothing runs"
	})
	describe(stranger, hot, dead)
	if got := <-ended; !strings.HasPrefix(got, "503 ") || !strings.Contains(got, "cannot serve now (DeviceLost): device gpu-2 is lost: XID79.") {
		t.Errorf("a request on the device that is lost ends with %.500s", got)
	}
	message := s.condition("gpus-60", v1alpha1.ConditionReady, metav1.ConditionFalse, v1alpha1.ReasonDoesNotFit)
	progress("  %s", message)
	for _, want := range []string{"Other processes take 30 GiB of " + pod.Name + "/gpu-0.", pod.Name + "/gpu-2 is lost (XID79)."} {
		if !strings.Contains(message, want) {
			t.Errorf("no %q in %q", want, message)
		}
	}
	s.degraded("gpus", metav1.ConditionTrue, v1alpha1.ReasonDeviceLost, "Device gpu-2 of worker "+pod.Name+" is lost: XID 79: the device has fallen off the bus")
	s.told("gpus", v1alpha1.ReasonDeviceLost)
	for args, says := range map[string][]string{
		"explain model gpus-60": {"is nowhere: it needs ", "1 lost: " + pod.Name + "/gpu-2 (XID 79", "other processes take 30 GiB of it"},
		"explain model gpus-50": {"though degraded (Heat): no other has room"},
		"top":                   {"other processes hold 30 GiB", "busy 75 %, 300 W, 93 °C; degraded: clocks are lowered", "lost: XID 79", "x other processes", "? " + s.namespace + "/gpus-60"},
	} {
		code, out := s.estiba("", strings.Fields(args)...)
		progress("  estiba %s\n%s", args, out)
		for _, want := range says {
			if code != 0 || !strings.Contains(out, want) {
				t.Errorf("estiba %s: exit %d, no %q:\n%s", args, code, want, out)
			}
		}
	}
	s.exports("gpus",
		`estiba_device_memory_bytes{device="gpu-0",kind="others",`, `estiba_device_throttled{device="gpu-1",reason="Heat",`, `estiba_device_power_watts{device="gpu-1",`,
		`estiba_device_health{device="gpu-2",state="Lost",worker="`+pod.Name+`"} 1`, `estiba_energy_joules_total{device="gpu-0",model="`+s.namespace+`/gpus-40",`,
		`estiba_energy_idle_joules_total{device="gpu-1",`)

	s.eventually("usage has joules, through the gateway", func() string {
		status, answer, err := s.request(context.Background(), "POST", "/v1/completions", []byte(`{"model": "gpus-40", "prompt": "Once", "max_tokens": 8, "temperature": 0, "include_energy": true}`))
		if err != nil || status != 200 || !regexp.MustCompile(`"energy":{"joules":[0-9.e+-]+,"joules_per_token":[0-9.e+-]+}`).Match(answer) {
			return fmt.Sprintf("%d %s %v", status, answer, err)
		}
		return ""
	})

	s.kubectl("delete", "model", "gpus-50", patiently)
	on("gpus-60", "gpu-1")
	describe(dead, dead, dead)
	states("gpu-0 Lost 46; gpu-1 Lost 76; gpu-2 Lost 76")
	describe(sound, sound, sound) // of the next pod; these stay lost
	s.eventually("another pod is there", func() string {
		if pods := s.workers("gpus"); len(pods) != 1 || pods[0].Name == pod.Name {
			return fmt.Sprintf("there are %d", len(pods))
		}
		return ""
	})
	s.ready("gpus-40", "gpus-60")
	s.answers("gpus-60")
	s.degraded("gpus", metav1.ConditionFalse, v1alpha1.ReasonSucceeded, "")
}

// degraded waits for a pool's condition.
func (s *scene) degraded(pool string, is metav1.ConditionStatus, reason, says string) {
	s.Helper()
	s.eventually(fmt.Sprintf("pool %s has Degraded=%s %s", pool, is, reason), func() string {
		var p v1alpha1.InferencePool
		if err := s.client.Get(context.Background(), client.ObjectKey{Namespace: s.namespace, Name: pool}, &p); err != nil {
			return err.Error()
		}
		c := meta.FindStatusCondition(p.Status.Conditions, v1alpha1.ConditionDegraded)
		if c == nil || c.Status != is || c.Reason != reason || !strings.Contains(c.Message, says) {
			return fmt.Sprintf("%+v", c)
		}
		return ""
	})
}

// told waits for an event about a pool.
func (s *scene) told(pool, reason string) {
	s.Helper()
	s.eventually("an event says "+reason, func() string {
		var list eventsv1.EventList
		if err := s.client.List(context.Background(), &list, client.InNamespace(s.namespace)); err != nil {
			return err.Error()
		}
		if !slices.ContainsFunc(list.Items, func(e eventsv1.Event) bool { return e.Regarding.Name == pool && e.Reason == reason }) {
			return fmt.Sprintf("it is none of %d", len(list.Items))
		}
		return ""
	})
}

// exports waits until the worker of a pool exports series.
func (s *scene) exports(pool string, series ...string) {
	s.Helper()
	pod := s.worker(pool)
	s.eventually("the worker exports its devices' figures", func() string {
		response, err := s.call(pool, pod, "GET", "/metrics", "")
		if err != nil {
			return err.Error()
		}
		defer response.Body.Close()
		body, err := io.ReadAll(response.Body)
		if err != nil {
			return err.Error()
		}
		for _, want := range series {
			if !strings.Contains(string(body), want) {
				return "there is no " + want
			}
		}
		return ""
	})
}
