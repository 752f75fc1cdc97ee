package kubernetes

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/estiba/estiba/api/v1alpha1"
	"github.com/estiba/estiba/api/worker"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// patience is how long anything that should happen may take.
const patience = 2 * time.Minute

// patiently is patience for kubectl.
const patiently = "--timeout=2m"

// scene is one test's namespace.
type scene struct {
	*testing.T
	*cluster
	namespace string
}

var scenes atomic.Int32

func newScene(t *testing.T) *scene {
	s := &scene{t, the, fmt.Sprintf("test-%d", scenes.Add(1))}
	progress("%s", t.Name())
	s.apply(fmt.Sprintf("{apiVersion: v1, kind: Namespace, metadata: {name: %s}}", s.namespace))
	t.Cleanup(func() {
		if t.Failed() {
			progress("FAILED %s", t.Name())
			for _, args := range [][]string{
				{"get", "pods,model,ipool", "-n", s.namespace, "-o", "wide"},
				{"get", "model,ipool", "-n", s.namespace, "-o", "yaml"},
				{"describe", "pods", "-n", s.namespace},
				{"logs", "-n", s.namespace, "--selector", v1alpha1.LabelPool, "--tail=60", "--prefix"},
				{"logs", "-n", system, "--selector", "app.kubernetes.io/component=operator", "--tail=60", "--prefix"},
			} {
				out, _ := s.cluster.kubectl("", args...)
				fmt.Fprintf(os.Stderr, "--- kubectl %s\n%s\n", strings.Join(args, " "), out)
			}
			if os.Getenv("ESTIBA_TEST_KEEP") != "" {
				return
			}
		}
		// Models at once: the names that they serve are the whole installation's.
		if _, err := s.cluster.kubectl("", "delete", "model", "--all", "-n", s.namespace, patiently); err != nil {
			t.Error(err)
		}
		if _, err := s.cluster.kubectl("", "delete", "namespace", s.namespace, "--wait=false"); err != nil {
			t.Error(err)
		}
	})
	return s
}

// kubectl runs kubectl in the scene's namespace; it must succeed.
func (s *scene) kubectl(args ...string) string {
	s.Helper()
	out, err := s.cluster.kubectl("", append([]string{"-n", s.namespace}, args...)...)
	if err != nil {
		s.Fatal(err)
	}
	return out
}

func (s *scene) apply(manifests string) {
	s.Helper()
	if _, err := s.cluster.kubectl(manifests, "apply", "-n", s.namespace, "-f", "-"); err != nil {
		s.Fatal(err)
	}
}

// pool applies a pool of workers whose /models is the cluster's folder of
// models; more are further lines of its spec.
func (s *scene) pool(name string, workers int, memory string, more ...string) {
	s.Helper()
	spec := ""
	for _, line := range more {
		spec += "  " + line + "\n"
	}
	s.apply(fmt.Sprintf(`
apiVersion: estiba.dev/v1alpha1
kind: InferencePool
metadata: {name: %s, labels: {pool: %[1]s}}
spec:
  workers: {min: %d, max: %[2]d}
  modelRoots: [/models]
  update: {drain: 5s}
%[4]s  template:
    spec:
      containers:
      - name: worker
        resources: {requests: {cpu: 10m, memory: 64Mi}, limits: {memory: %[3]s}}
        volumeMounts: [{name: models, mountPath: /models, readOnly: true}]
      volumes:
      - {name: models, hostPath: {path: /var/lib/models, type: Directory}}
`, name, workers, memory, spec))
}

// model applies a Model; more is further spec, in YAML's flow style.
func (s *scene) model(name, uri, more string) {
	s.Helper()
	s.apply(modelManifest(name, uri, more))
}

func modelManifest(name, uri, more string) string {
	if more != "" {
		more = ", " + more
	}
	return fmt.Sprintf("---\n{apiVersion: estiba.dev/v1alpha1, kind: Model, metadata: {name: %s}, spec: {source: {uri: %q}, context: {maxTokens: 512, sequences: 16}%s}}\n", name, uri, more)
}

const (
	float32Model = "file:///models/stories260K/hf-f32"
	float16Model = "file:///models/stories260K/stories260K-f16.gguf"
)

// eventually waits until check returns "", or fails with what it last returned.
func (s *scene) eventually(what string, check func() string) {
	s.Helper()
	s.within(patience, what, check)
}

func (s *scene) within(limit time.Duration, what string, check func() string) {
	s.Helper()
	started, said := time.Now(), time.Now()
	for {
		missing := check()
		if missing == "" {
			return
		}
		if time.Since(started) > limit {
			s.Fatalf("%s: not within %v: %s", what, limit, missing)
		}
		if time.Since(said) > 15*time.Second {
			said = time.Now()
			progress("  waiting until %s: %s", what, missing)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// read reads from the API server, which a test may have killed: it must answer in the end, with what is asked for.
func (s *scene) read(what string, from func(context.Context) error) {
	s.Helper()
	s.eventually("the API server answers for "+what, func() string {
		err := from(context.Background())
		if apierrors.IsNotFound(err) {
			s.Fatal(err)
		}
		if err != nil {
			return err.Error()
		}
		return ""
	})
}

func (s *scene) get(name string) v1alpha1.Model {
	s.Helper()
	var m v1alpha1.Model
	s.read("model "+name, func(ctx context.Context) error {
		return s.client.Get(ctx, client.ObjectKey{Namespace: s.namespace, Name: name}, &m)
	})
	return m
}

// ready waits for Ready=True at the newest generation.
func (s *scene) ready(names ...string) {
	s.Helper()
	for _, name := range names {
		s.condition(name, v1alpha1.ConditionReady, metav1.ConditionTrue, "")
	}
}

// condition waits until a condition has a status and, unless empty, a reason; it returns its message.
func (s *scene) condition(name, kind string, status metav1.ConditionStatus, reason string) string {
	s.Helper()
	var message string
	s.eventually(fmt.Sprintf("%s has %s=%s %s", name, kind, status, reason), func() string {
		m := s.get(name)
		c := meta.FindStatusCondition(m.Status.Conditions, kind)
		if c == nil {
			return "there is no such condition"
		}
		message = c.Message
		if c.Status != status || (reason != "" && c.Reason != reason) || c.ObservedGeneration != m.Generation {
			return fmt.Sprintf("it is %s %s of generation %d: %s", c.Status, c.Reason, c.ObservedGeneration, c.Message)
		}
		return ""
	})
	return message
}

// answers asks a model once; the answer must come.
func (s *scene) answers(model string) string {
	s.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	text, err := s.complete(ctx, model, "Once upon a time", 20)
	if err != nil {
		s.Fatalf("%s does not answer: %v", model, err)
	}
	return text
}

// workers are the pods of a pool that are not going away.
func (s *scene) workers(pool string) []corev1.Pod {
	s.Helper()
	return s.pods(s.namespace, client.MatchingLabels{v1alpha1.LabelPool: pool})
}

func (s *scene) pods(namespace string, labels client.MatchingLabels) []corev1.Pod {
	s.Helper()
	var list corev1.PodList
	s.read("pods", func(ctx context.Context) error {
		return s.client.List(ctx, &list, client.InNamespace(namespace), labels)
	})
	return slices.DeleteFunc(list.Items, func(p corev1.Pod) bool { return p.DeletionTimestamp != nil })
}

// worker is the only worker of a pool, once it is ready.
func (s *scene) worker(pool string) *corev1.Pod {
	s.Helper()
	var pod corev1.Pod
	s.eventually("pool "+pool+" has its worker", func() string {
		pods := s.workers(pool)
		if len(pods) != 1 {
			return fmt.Sprintf("it has %d", len(pods))
		}
		pod = pods[0]
		if !podReady(&pod) {
			return "its pod is not ready"
		}
		return ""
	})
	return &pod
}

func podReady(p *corev1.Pod) bool {
	return slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
	})
}

// token is the token of a pool's workers.
func (s *scene) token(pool string) string {
	s.Helper()
	var secret corev1.Secret
	s.read("the token of pool "+pool, func(ctx context.Context) error {
		return s.client.Get(ctx, client.ObjectKey{Namespace: s.namespace, Name: pool + "-token"}, &secret)
	})
	return strings.TrimSpace(string(secret.Data["token"]))
}

// call sends a request to a worker, as the operator would.
func (s *scene) call(pool string, pod *corev1.Pod, method, path, body string) (*http.Response, error) {
	s.Helper()
	r, err := http.NewRequest(method, fmt.Sprintf("http://%s:8081%s", pod.Status.PodIP, path), strings.NewReader(body))
	if err != nil {
		s.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+s.token(pool))
	return s.http.Do(r)
}

// state is what a worker reports now.
func (s *scene) state(pool string, pod *corev1.Pod) worker.State {
	s.Helper()
	response, err := s.call(pool, pod, "GET", worker.PathState, "")
	if err != nil {
		s.Fatal(err)
	}
	defer response.Body.Close()
	var state worker.State
	if err := json.NewDecoder(response.Body).Decode(&state); err != nil {
		s.Fatalf("state of %s: status %d: %v", pod.Name, response.StatusCode, err)
	}
	return state
}

// home is a model's home in a worker's state.
func home(state worker.State, model string) *worker.HomeState {
	for i := range state.Homes {
		if state.Homes[i].Model == model {
			return &state.Homes[i]
		}
	}
	return nil
}

// stream is a completion under way.
type stream struct {
	response *http.Response
	lines    *bufio.Scanner
}

// open starts a streamed completion and waits for its first chunk.
func (s *scene) open(model string, tokens, temperature int) (*stream, error) {
	body, _ := json.Marshal(map[string]any{"model": model, "prompt": "Once upon a time", "max_tokens": tokens, "temperature": temperature, "stream": true})
	response, err := s.http.Post(s.gateway+"/v1/completions", "application/json", strings.NewReader(string(body)))
	if err != nil {
		return nil, err
	}
	st := &stream{response, bufio.NewScanner(response.Body)}
	for response.StatusCode == 200 && st.lines.Scan() {
		if strings.HasPrefix(st.lines.Text(), "data: {") {
			return st, nil
		}
	}
	rest, _ := io.ReadAll(response.Body)
	response.Body.Close()
	return nil, fmt.Errorf("stream of %s: status %d, no chunk: %s %v", model, response.StatusCode, rest, st.lines.Err())
}

// rest reads to the end: the last event, and whether the stream ended as it should.
func (st *stream) rest() (last string, done bool) {
	defer st.response.Body.Close()
	for st.lines.Scan() {
		if line, ok := strings.CutPrefix(st.lines.Text(), "data: "); ok {
			if line == "[DONE]" {
				return last, true
			}
			last = line
		}
	}
	return last, false
}

// load keeps asking models until stopped. Each request has one answer, the same
// each time, whoever gives it.
type load struct {
	stop context.CancelFunc
	done sync.WaitGroup

	mu      sync.Mutex
	asked   map[string]int    // model -> requests that ended
	texts   map[string]string // model -> its answer
	failed  []string
	slowest time.Duration
	whose   string // the slowest one
}

// keepAsking asks each of the models again and again, all of them at a time.
func (s *scene) keepAsking(models ...string) *load {
	ctx, cancel := context.WithCancel(context.Background())
	l := &load{stop: cancel, asked: map[string]int{}, texts: map[string]string{}}
	s.Cleanup(cancel)
	for _, m := range models {
		l.done.Go(func() {
			for ctx.Err() == nil {
				started := time.Now()
				text, err := s.complete(ctx, m, "Once upon a time", 8)
				if ctx.Err() != nil {
					return
				}
				l.note(m, started, text, err)
				time.Sleep(100 * time.Millisecond)
			}
		})
	}
	return l
}

func (l *load) note(model string, started time.Time, text string, err error) {
	took := time.Since(started)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.asked[model]++; took > l.slowest {
		l.slowest, l.whose = took, model
	}
	former, known := l.texts[model]
	switch {
	case err != nil:
		l.failed = append(l.failed, fmt.Sprintf("%s %s after %v: %v", started.Format(time.TimeOnly), model, took.Round(time.Millisecond), err))
	case !known:
		l.texts[model] = text
	case text != former:
		l.failed = append(l.failed, fmt.Sprintf("%s %s: answered %q, before %q", started.Format(time.TimeOnly), model, text, former))
	}
}

// least is how many answers the model with the fewest has had, of so many models.
func (l *load) least(models int) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.asked) < models {
		return 0
	}
	return slices.Min(slices.Collect(maps.Values(l.asked)))
}

// end stops asking; not one request may have failed. It returns how many each model got.
func (l *load) end(s *scene) map[string]int {
	s.Helper()
	l.stop()
	l.done.Wait()
	all := 0
	for _, n := range l.asked {
		all += n
	}
	if len(l.failed) > 0 {
		s.Errorf("%d of %d requests failed:\n%s", len(l.failed), all, strings.Join(l.failed[:min(10, len(l.failed))], "\n"))
	}
	if all == 0 {
		s.Error("nothing was asked")
	}
	progress("  %d requests of %d models, %d failed; the slowest took %v (%s)", all, len(l.asked), len(l.failed), l.slowest.Round(time.Millisecond), l.whose)
	return l.asked
}
