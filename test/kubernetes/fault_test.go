package kubernetes

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/estiba/estiba/api/v1alpha1"
	"github.com/estiba/estiba/api/worker"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// A worker killed mid-stream: its clients are told, its models come back, the
// suspect after a trial alone; a neighbour that did nothing is no suspect.
func TestWorkerKilledMidStream(t *testing.T) {
	s := newScene(t)
	s.pool("stream", 1, "512Mi")
	s.kubectl("patch", "ipool", "stream", "--type=merge", "-p", `{"spec":{"workers":{"max":2}}}`)
	s.model("stream", float32Model, "")
	s.model("stream-neighbour", float16Model, "")
	s.ready("stream", "stream-neighbour")
	s.killMidStream("stream", "stream")
	if trial := s.get("stream-neighbour").Status.Trial; trial != nil {
		t.Errorf("the neighbour is suspected: %+v", trial)
	}
	s.ready("stream", "stream-neighbour")
	s.answers("stream")
	s.answers("stream-neighbour")
	s.eventually("the trial is over", func() string {
		if trial := s.get("stream").Status.Trial; trial != nil && !trial.Passed {
			return fmt.Sprintf("%+v", trial)
		}
		return ""
	})
	// Again, with nothing else at work: its death is on record.
	s.killMidStream("stream", "stream")
	s.condition("stream", v1alpha1.ConditionReady, metav1.ConditionFalse, v1alpha1.ReasonQuarantined)
	s.ready("stream-neighbour")
	s.answers("stream-neighbour")
}

// killMidStream kills the worker of a pool while it streams.
func (s *scene) killMidStream(pool, model string) {
	s.Helper()
	pod := s.host(model)
	state := s.state(pool, pod)
	broken := make(chan string) // what the client of a stream saw at last
	const clients = 6
	for range clients {
		go func() {
			for {
				st, err := s.open(model, 480, 1)
				if err != nil {
					broken <- err.Error()
					return
				}
				if last, done := st.rest(); !done || strings.Contains(last, `"error"`) {
					broken <- last
					return
				}
			}
		}()
	}
	s.watch(pool, pod, func(now worker.State) bool {
		h := home(now, s.namespace+"/"+model)
		return h != nil && h.Running >= clients/2
	})
	s.kill(s.T, pod, syscall.SIGKILL)
	for range clients {
		select {
		case last := <-broken:
			progress("  a client's last line: %.200s", last)
		case <-time.After(patience):
			s.Fatal("a client was never told that its worker is gone")
		}
	}
	s.restarted(pool, pod, state.Instance)
	s.eventually("the death is on record", func() string {
		if trial := s.get(model).Status.Trial; trial == nil || trial.Instance != state.Instance {
			return fmt.Sprintf("the trial is %+v", trial)
		}
		return ""
	})
}

// host is the pod of the worker that a model is placed on.
func (s *scene) host(model string) *corev1.Pod {
	s.Helper()
	var pod corev1.Pod
	s.eventually(model+" is on a worker", func() string {
		m := s.get(model)
		if len(m.Status.Placements) != 1 {
			return fmt.Sprintf("it has %d placements", len(m.Status.Placements))
		}
		key := client.ObjectKey{Namespace: s.namespace, Name: m.Status.Placements[0].Worker}
		if err := s.client.Get(context.Background(), key, &pod); err != nil {
			return err.Error()
		}
		return ""
	})
	return &pod
}

// restarted waits until a worker is another process.
func (s *scene) restarted(pool string, pod *corev1.Pod, instance string) {
	s.Helper()
	s.eventually("the worker runs again", func() string {
		response, err := s.call(pool, pod, "GET", worker.PathState, "")
		if err != nil {
			return err.Error()
		}
		defer response.Body.Close()
		var now worker.State
		if err := json.NewDecoder(response.Body).Decode(&now); err != nil || now.Instance == instance {
			return "it is the same process"
		}
		return ""
	})
}

// watch follows a worker's states until one is as wanted.
func (s *scene) watch(pool string, pod *corev1.Pod, wanted func(worker.State) bool) {
	s.Helper()
	response, err := s.call(pool, pod, "GET", worker.PathState+"?watch=true", "")
	if err != nil {
		s.Fatal(err)
	}
	defer response.Body.Close()
	lines := bufio.NewScanner(response.Body)
	lines.Buffer(nil, 16<<20)
	limit := time.Now().Add(patience)
	for time.Now().Before(limit) && lines.Scan() {
		var state worker.State
		if err := json.Unmarshal(lines.Bytes(), &state); err != nil {
			s.Fatal(err)
		}
		if wanted(state) {
			return
		}
	}
	s.Fatalf("the worker never was in the wanted state: %v", lines.Err())
}

// A worker killed while it loads: the model is tried once more, alone; a
// second death quarantines it, and the neighbour is back. A changed spec ends
// the quarantine.
func TestWorkerKilledMidLoad(t *testing.T) {
	s := newScene(t)
	s.pool("load", 1, "2Gi")
	s.kubectl("patch", "ipool", "load", "--type=merge", "-p", `{"spec":{"workers":{"max":2}}}`)
	// A gigabyte is loaded within a second, if it may.
	s.kubectl("patch", "ipool", "load", "--type=json", "-p", `[{"op": "add", "path": "/spec/template/spec/containers/0/resources/limits/cpu", "value": "300m"}]`)
	s.model("load-neighbour", float16Model, "")
	s.ready("load-neighbour")
	size := sparseModel(t, s.copyModel("slow"), 1024, 4096, 16) // all zero, but it takes its time
	progress("  %d MiB", size>>20)

	s.model("slow", "file:///models/slow", "")
	s.killMidLoad("load", "slow")
	s.eventually("it is on trial", func() string {
		if trial := s.get("slow").Status.Trial; trial == nil || trial.Deaths != 1 {
			return fmt.Sprintf("%+v", trial)
		}
		return ""
	})
	if beside := s.killMidLoad("load", "slow"); len(beside) != 1 {
		t.Errorf("it was tried again beside others: %+v", beside)
	}
	message := s.condition("slow", v1alpha1.ConditionReady, metav1.ConditionFalse, v1alpha1.ReasonQuarantined)
	s.condition("slow", v1alpha1.ConditionStalled, metav1.ConditionTrue, v1alpha1.ReasonQuarantined)
	progress("  %s", message)
	s.ready("load-neighbour")
	asking := s.keepAsking("load-neighbour")
	s.kubectl("patch", "model", "slow", "--type=merge", "-p", `{"spec":{"context":{"maxTokens":256}}}`)
	s.ready("slow", "load-neighbour")
	asking.end(s)
}

// seenLoading reports whether the operator knows that a worker loads a model.
// It writes a status at once where the spec has changed, and then says all that
// it knows; a change of the priority loads nothing anew.
func (s *scene) seenLoading(model, worker string) bool {
	s.Helper()
	m := s.get(model)
	before := m.DeepCopy()
	m.Spec.Priority++
	if err := s.client.Patch(context.Background(), &m, client.MergeFrom(before)); err != nil {
		s.Fatal(err)
	}
	s.eventually("the operator has seen "+model+"'s priority", func() string {
		if m = s.get(model); m.Status.ObservedGeneration != m.Generation {
			return fmt.Sprintf("it has seen generation %d of %d", m.Status.ObservedGeneration, m.Generation)
		}
		return ""
	})
	c := meta.FindStatusCondition(m.Status.Conditions, v1alpha1.ConditionReady)
	return c != nil && strings.HasPrefix(c.Message, "Loading") && strings.Contains(c.Message, worker)
}

// killMidLoad kills whichever worker of a pool loads a model, and returns its homes.
func (s *scene) killMidLoad(pool, model string) []worker.HomeState {
	s.Helper()
	var homes []worker.HomeState
	s.eventually("a worker loads "+model, func() string {
		for _, pod := range s.workers(pool) {
			if !podReady(&pod) {
				continue
			}
			state := s.state(pool, &pod)
			if h := home(state, s.namespace+"/"+model); h != nil && h.Phase == worker.PhaseLoading {
				if !s.seenLoading(model, pod.Name) {
					return "the operator has not seen it"
				}
				s.kill(s.T, &pod, syscall.SIGKILL)
				s.restarted(pool, &pod, state.Instance)
				homes = state.Homes
				return ""
			}
		}
		return "none does"
	})
	return homes
}

// The operator killed while it places: every model ends up where it should,
// once.
func TestOperatorKilledMidPlacement(t *testing.T) {
	s := newScene(t)
	s.pool("many", 2, "512Mi")
	s.model("many-0", float32Model, "")
	s.ready("many-0")
	asking := s.keepAsking("many-0")
	names := []string{"many-0"}
	var all strings.Builder
	for i := 1; i < 30; i++ {
		names = append(names, fmt.Sprintf("many-%d", i))
		all.WriteString(modelManifest(names[i], float32Model, ""))
	}
	applied := make(chan error, 1)
	go func() {
		_, err := s.cluster.kubectl(all.String(), "apply", "-n", s.namespace, "-f", "-")
		applied <- err
	}()
	homes := func() (n int) {
		for _, p := range s.workers("many") {
			if podReady(&p) {
				n += len(s.state("many", &p).Homes)
			}
		}
		return n
	}
	s.eventually("some are placed", func() string {
		if homes() < 4 {
			return "too few are"
		}
		return ""
	})
	for _, p := range s.operators() {
		s.kill(t, &p, syscall.SIGKILL)
	}
	progress("  killed with %d of %d placed", homes(), len(names))
	check(t, <-applied)
	s.ready(names...)
	for _, n := range names {
		s.answers(n)
	}
	s.eventually("each model has one home", func() string {
		count := map[string]int{}
		for _, p := range s.workers("many") {
			for _, h := range s.state("many", &p).Homes {
				count[h.Model]++
			}
		}
		for _, n := range names {
			if count[s.namespace+"/"+n] != 1 {
				return fmt.Sprint(count)
			}
		}
		return ""
	})
	asking.end(s)
	s.eventually("both operators are ready", func() string {
		for _, p := range s.operators() {
			if !podReady(&p) {
				return p.Name + " is not"
			}
		}
		return ""
	})
}

func (s *scene) operators() []corev1.Pod {
	return s.pods(system, client.MatchingLabels{v1alpha1.LabelComponent: "operator"})
}

// The API server goes away for a minute: nothing that serves stops, a sleeping
// model wakes, and afterwards changes are taken again.
func TestAPIServerAway(t *testing.T) {
	s := newScene(t)
	s.pool("away", 1, "512Mi")
	s.model("away", float32Model, "")
	s.model("away-sleeper", float16Model, "autoscaling: {min: 0, max: 1, idleAfter: 10s}")
	s.ready("away", "away-sleeper")
	pod := s.worker("away")
	before := s.state("away", pod)
	// When the API server is back, Kubernetes takes nodes that it has not heard of
	// for dead, and their pods out of every Service, until it hears of them. So a
	// gateway is asked itself.
	direct := *s.cluster
	direct.gateway = "http://" + s.pods(system, client.MatchingLabels{v1alpha1.LabelComponent: "gateway"})[0].Status.PodIP + ":8080"
	s.cluster = &direct
	asking := s.keepAsking("away")
	s.signal(t, "STOP", "kube-apiserver")
	func() {
		defer s.signal(t, "CONT", "kube-apiserver")
		for second := 0; second < 60; second += 15 {
			progress("  without the API server for %d s", second)
			time.Sleep(15 * time.Second)
			s.answers("away-sleeper")
		}
	}()
	s.model("away-after", float32Model, "")
	s.ready("away", "away-after")
	asking.end(s)
	after := s.state("away", s.worker("away"))
	if after.Instance != before.Instance {
		t.Error("the worker was replaced")
	}
	if h := home(after, s.namespace+"/away"); h == nil || h.ResidentSeconds < 60 {
		t.Errorf("the model was loaded anew: %+v", h)
	}
}

// Two operators. The leader is paused for almost a minute while the other leads, then
// goes on: nothing resident is lost, and what it would send is refused.
func TestFailover(t *testing.T) {
	s := newScene(t)
	s.pool("failover", 1, "512Mi")
	s.model("failover", float32Model, "")
	s.ready("failover")
	s.eventually("two operators are ready", func() string {
		operators := s.operators()
		if len(operators) != 2 || !podReady(&operators[0]) || !podReady(&operators[1]) {
			return fmt.Sprintf("there are %d", len(operators))
		}
		return ""
	})
	pod := s.worker("failover")
	before := s.state("failover", pod)
	old := s.leader()
	progress("  %s leads; pausing it", old.Name)
	asking := s.keepAsking("failover")
	paused := time.Now()
	s.kill(t, old, syscall.SIGSTOP)
	func() {
		defer s.kill(t, old, syscall.SIGCONT)
		s.eventually("the other operator leads", func() string {
			if now := s.leader(); now == nil || now.Name == old.Name {
				return "it does not"
			}
			return ""
		})
		progress("  %s leads now", s.leader().Name)
		s.model("failover-second", float16Model, "")
		s.ready("failover-second")
		time.Sleep(time.Until(paused.Add(50 * time.Second))) // after a minute, the kubelet would restart it
		progress("  paused for %v", time.Since(paused).Round(time.Second))
	}()
	s.kubectl("delete", "model", "failover-second", patiently)
	s.model("failover-third", float16Model, "")
	s.ready("failover-third", "failover")
	time.Sleep(5 * time.Second) // for anything that the old one may still send
	asking.end(s)

	asked := time.Since(paused).Seconds()
	after := s.state("failover", pod)
	if after.Instance != before.Instance {
		t.Fatal("the worker was replaced")
	}
	if after.Epoch <= before.Epoch {
		t.Errorf("the epoch was %d and is %d", before.Epoch, after.Epoch)
	}
	if h := home(after, s.namespace+"/failover"); h == nil || h.ResidentSeconds < asked || h.Phase != worker.PhaseResident {
		t.Errorf("what was resident was lost: %+v", h)
	}
	if home(after, s.namespace+"/failover-third") == nil || home(after, s.namespace+"/failover-second") != nil {
		t.Error("the worker does not hold what the new leader wants")
	}
	// An assignment of the old leader's, word for word.
	stale, err := json.Marshal(worker.Assignment{Epoch: before.Epoch, Generation: before.Generation + 1000, Instance: before.Instance, Homes: []worker.Home{}})
	check(t, err)
	response, err := s.call("failover", pod, "PUT", worker.PathAssignment, string(stale))
	check(t, err)
	defer response.Body.Close()
	var refusal worker.Refusal
	if err := json.NewDecoder(response.Body).Decode(&refusal); err != nil || response.StatusCode != 409 || refusal.Reason != worker.RefusedOlder {
		t.Errorf("the old leader's assignment: status %d, %+v %v", response.StatusCode, refusal, err)
	}
}

// leader is the operator pod that holds the lease; nil in between.
func (s *scene) leader() *corev1.Pod {
	s.Helper()
	var leases coordinationv1.LeaseList
	if err := s.client.List(context.Background(), &leases, client.InNamespace(system)); err != nil {
		s.Fatal(err)
	}
	for _, p := range s.operators() {
		for _, l := range leases.Items {
			if l.Spec.HolderIdentity != nil && strings.HasPrefix(*l.Spec.HolderIdentity, p.Name) {
				return &p
			}
		}
	}
	return nil
}

// The operator's restart changes nothing that serves.
func TestOperatorRestart(t *testing.T) {
	s := newScene(t)
	s.pool("restart", 1, "512Mi")
	s.model("restart", float32Model, "")
	s.ready("restart")
	before := s.state("restart", s.worker("restart"))
	asking := s.keepAsking("restart")
	if _, err := s.cluster.kubectl("", "-n", system, "rollout", "restart", "deployment/estiba-operator"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.cluster.kubectl("", "-n", system, "rollout", "status", "deployment/estiba-operator", patiently); err != nil {
		t.Fatal(err)
	}
	s.model("restart-second", float16Model, "")
	s.ready("restart", "restart-second")
	asking.end(s)
	after := s.state("restart", s.worker("restart"))
	a, b := home(before, s.namespace+"/restart"), home(after, s.namespace+"/restart")
	if a == nil || b == nil || after.Instance != before.Instance || b.ResidentSeconds < a.ResidentSeconds {
		t.Errorf("before %+v, after %+v", a, b)
	}
}
