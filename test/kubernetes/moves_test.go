package kubernetes

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/estiba/estiba/api/v1alpha1"
	"github.com/estiba/estiba/api/worker"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// hold is a pool of three workers with enough room for one more large model, but
// nowhere enough of it in one place:
//
//	a  moved (small), and room     b  stays (small), and room     c  tall (large)
//
// Nothing but moved may move. Only if it goes from a to b, large fits.
type hold struct {
	*scene
	pool    string
	a, b, c *corev1.Pod

	mu     sync.Mutex
	paused []int // processes
}

// cargo is what models of a hold take: all are of one checkpoint, and differ by
// the sequences that they have room for.
type cargo struct {
	uri                  string
	device               string // memory of one
	small, large, filler int    // sequences
}

var (
	// 19 MiB of room; small 7.3, large 15.2, filler 10.6.
	boxes = cargo{float32Model, "20Mi", 16, 40, 26}
	// 1,272 MiB of room; small 574, large 926, filler 670. Loading one takes a while, and so does a token.
	crates = cargo{"file:///models/crates", "1340Mi", 2, 24, 8}
)

func (h *hold) name(model string) string { return h.pool + "-" + model }

// stow applies a model of a hold.
func (h *hold) stow(model string, c cargo, sequences int, more string) {
	h.Helper()
	h.apply(fmt.Sprintf("{apiVersion: estiba.dev/v1alpha1, kind: Model, metadata: {name: %s}, spec: {source: {uri: %q}, poolSelector: {matchLabels: {pool: %s}}, context: {maxTokens: 512, sequences: %d}%s}}",
		h.name(model), c.uri, h.pool, sequences, more))
}

// newHold begins a hold; fragment goes on.
func (s *scene) newHold(pool string, c cargo) *hold {
	s.Helper()
	h := &hold{scene: s, pool: pool}
	s.Cleanup(func() { h.release() })
	s.pool(pool, 3, "2Gi", "device: {memory: "+c.device+"}", "moves: {maxBytesPerHour: 1Ki}") // nothing moves yet
	h.stow("tall", c, c.large, ", eviction: Never")
	h.stow("filler", c, c.filler, "")
	return h
}

// fragment stows the models one after the other and takes the filler out. At the
// end large is known, and suspended.
func (h *hold) fragment(c cargo) {
	h.Helper()
	h.ready(h.name("tall"), h.name("filler"))
	h.stow("stays", c, c.small, ", eviction: Never")
	h.ready(h.name("stays"))
	h.stow("moved", c, c.small, "")
	h.ready(h.name("moved"))
	h.a, h.b, h.c = h.host(h.name("moved")), h.host(h.name("stays")), h.host(h.name("tall"))
	if filler := h.host(h.name("filler")); h.a.Name == h.b.Name || h.b.Name == h.c.Name || h.a.Name == h.c.Name || filler.Name != h.b.Name {
		h.Fatalf("moved is on %s, stays on %s beside the filler on %s, tall on %s", h.a.Name, h.b.Name, filler.Name, h.c.Name)
	}
	h.stow("large", c, c.large, "")
	message := h.condition(h.name("large"), v1alpha1.ConditionReady, metav1.ConditionFalse, v1alpha1.ReasonDoesNotFit)
	progress("  before: %s", message)
	h.kubectl("patch", "model", h.name("large"), "--type=merge", "-p", `{"spec": {"suspend": true}}`)
	h.kubectl("delete", "model", h.name("filler"), patiently)
}

// rested waits until moved has been on its device for so long that it may move.
func (h *hold) rested() {
	h.Helper()
	h.eventually("the model may move", func() string {
		if at := home(h.state(h.pool, h.a), h.key("moved")); at == nil || at.ResidentSeconds < 17 {
			return "it has just come"
		}
		return ""
	})
}

func (h *hold) key(model string) string { return h.namespace + "/" + h.name(model) }

// start lets large in, so that the move begins.
func (h *hold) start() {
	h.Helper()
	h.kubectl("patch", "ipool", h.pool, "--type=merge", "-p", `{"spec": {"moves": {"maxBytesPerHour": null}}}`)
	h.kubectl("patch", "model", h.name("large"), "--type=merge", "-p", `{"spec": {"suspend": false}}`)
}

// pause stops the processes of a worker until release.
func (h *hold) pause(pids []int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, pid := range pids {
		_ = syscall.Kill(pid, syscall.SIGSTOP)
	}
	h.paused = append(h.paused, pids...)
}

// stopped: a worker is paused.
func (h *hold) stopped() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.paused) > 0
}

func (h *hold) release() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, pid := range h.paused {
		_ = syscall.Kill(pid, syscall.SIGCONT)
	}
	h.paused = nil
}

func (h *hold) pids(pod *corev1.Pod) []int {
	h.Helper()
	return h.processes(h.T, pod.Status.ContainerStatuses[0].ContainerID)
}

// settled waits until all four models are served, each from one home, and the
// workers' accounts hold these homes and nothing else.
func (h *hold) settled() {
	h.Helper()
	models := []string{"tall", "stays", "moved", "large"}
	for _, m := range models {
		h.ready(h.name(m))
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if _, err := h.complete(ctx, h.name(m), "Once", 4); err != nil {
			h.Fatalf("%s does not answer: %v", m, err)
		}
	}
	h.eventually("each model has one home, and the accounts are even", func() string {
		homes, pods := map[string][]string{}, h.workers(h.pool)
		if len(pods) != 3 {
			return fmt.Sprintf("there are %d workers", len(pods))
		}
		for i := range pods {
			state, err := h.report(&pods[i])
			if err != nil {
				return err.Error()
			}
			used := int64(0)
			for _, is := range state.Homes {
				homes[is.Model] = append(homes[is.Model], pods[i].Name)
				if is.Phase != worker.PhaseResident {
					return fmt.Sprintf("%s is %s on %s", is.Model, is.Phase, pods[i].Name)
				}
				used += is.Footprint.Total()
			}
			if got := state.Devices[0].UsedBytes; got != used {
				return fmt.Sprintf("%s has %d bytes in its account, its homes have %d", pods[i].Name, got, used)
			}
		}
		for _, m := range models {
			if len(homes[h.key(m)]) != 1 {
				return fmt.Sprintf("%s is at home on %v", m, homes[h.key(m)])
			}
		}
		if len(homes) != len(models) {
			return fmt.Sprintf("the homes are %v", homes)
		}
		return ""
	})
}

// report is what a worker reports, if it answers.
func (h *hold) report(pod *corev1.Pod) (worker.State, error) {
	var state worker.State
	response, err := h.call(h.pool, pod, "GET", worker.PathState, "")
	if err != nil {
		return state, err
	}
	defer response.Body.Close()
	return state, json.NewDecoder(response.Body).Decode(&state)
}

// follow calls see with each state that a worker reports, until the test ends,
// the worker does, or see has seen enough.
func (h *hold) follow(pod *corev1.Pod, see func(worker.State) (enough bool)) {
	h.Helper()
	response, err := h.call(h.pool, pod, "GET", worker.PathState+"?watch=true", "")
	if err != nil {
		h.Fatal(err)
	}
	h.Cleanup(func() { response.Body.Close() })
	go func() {
		lines := bufio.NewScanner(response.Body)
		lines.Buffer(nil, 16<<20)
		for lines.Scan() {
			var state worker.State
			if json.Unmarshal(lines.Bytes(), &state) != nil || see(state) {
				return
			}
		}
	}()
}

// A model that fits only after a move gets it. Whoever asks the model that moves
// does not notice: each request has its one answer.
func TestMove(t *testing.T) {
	s := newScene(t)
	h := s.newHold("move", boxes)
	h.fragment(boxes)
	var mu sync.Mutex
	answered, twice, since := map[string]int64{}, time.Duration(0), time.Time{}
	resident := map[string]bool{}
	for _, pod := range []*corev1.Pod{h.a, h.b, h.c} {
		h.follow(pod, func(state worker.State) bool {
			mu.Lock()
			defer mu.Unlock()
			for _, is := range state.Homes {
				key := pod.Name + " " + is.Model
				answered[key] = max(answered[key], is.Completed)
			}
			is := home(state, h.key("moved"))
			resident[pod.Name] = is != nil && is.Tier == worker.TierDevice
			switch both := resident[h.a.Name] && resident[h.b.Name]; {
			case both && since.IsZero():
				since = time.Now()
			case !both && !since.IsZero():
				twice, since = time.Since(since), time.Time{}
			}
			return false
		})
	}
	names := []string{h.name("moved"), h.name("stays"), h.name("tall")}
	asking := s.keepAsking(names...)
	h.rested()
	began := time.Now()
	h.start()
	s.ready(h.name("large"))
	progress("  large is ready %v after it was asked for", time.Since(began).Round(10*time.Millisecond))
	if to := h.host(h.name("moved")); to.Name != h.b.Name {
		t.Errorf("moved is on %s, want %s", to.Name, h.b.Name)
	}
	if at := h.host(h.name("large")); at.Name != h.a.Name {
		t.Errorf("large is on %s, want %s", at.Name, h.a.Name)
	}
	time.Sleep(3 * time.Second)
	asked := asking.end(s)
	h.settled()

	mu.Lock()
	defer mu.Unlock()
	for _, name := range names {
		n := int64(0)
		for key, count := range answered {
			if strings.HasSuffix(key, "/"+name) {
				n += count
			}
		}
		// One may have been under way at the end.
		if want := int64(asked[name]); n < want || n > want+2 {
			t.Errorf("%s: %d requests were asked, workers ended %d", name, want, n)
		}
	}
	progress("  the moved model was on two devices for %v", twice.Round(10*time.Millisecond))
	if twice == 0 || twice > 20*time.Second {
		t.Errorf("the model was on two devices for %v", twice)
	}
	var pool v1alpha1.InferencePool
	s.eventually("the pool's status has the move", func() string {
		check(t, s.client.Get(context.Background(), client.ObjectKey{Namespace: s.namespace, Name: h.pool}, &pool))
		moves := pool.Status.Moves
		if len(moves) != 1 || moves[0].Model != h.key("moved") || moves[0].From != h.a.Name || moves[0].To != h.b.Name {
			return fmt.Sprintf("it has %+v", moves)
		}
		return ""
	})
	progress("  %s", pool.Status.Moves[0].Reason)
}

// The fault points of a move. Each is a state in which the move can stay for as
// long as somebody is slow, and in which anybody may die.
var faultPoints = []struct {
	name    string
	cargo   cargo
	arrange func(h *hold)      // before the move begins
	reached func(h *hold) bool // afterwards
}{
	{"decided, and the new home knows nothing", boxes, func(h *hold) { h.pause(h.pids(h.b)) }, (*hold).moving},
	{"the new home loads", crates, func(h *hold) {
		pids := h.pids(h.b)
		h.follow(h.b, func(state worker.State) bool {
			if is := home(state, h.key("moved")); is != nil && is.Tier != worker.TierDevice {
				h.pause(pids)
				return true
			}
			return false
		})
	}, (*hold).stopped},
	{"the new home is ready, and the old one knows nothing", boxes, func(h *hold) { h.pause(h.pids(h.a)) }, func(h *hold) bool {
		state, err := h.report(h.b)
		is := home(state, h.key("moved"))
		return err == nil && is != nil && is.Phase == worker.PhaseResident && h.moving()
	}},
	{"the old home ends its requests", crates, func(h *hold) {
		h.longRequests()
		pids := h.pids(h.a)
		h.follow(h.a, func(state worker.State) bool {
			if is := home(state, h.key("moved")); is != nil && is.Phase == worker.PhaseDraining {
				h.pause(pids)
				return true
			}
			return false
		})
	}, (*hold).stopped},
	{"the old home is gone", boxes, func(*hold) {}, func(h *hold) bool {
		state, err := h.report(h.a)
		return err == nil && home(state, h.key("moved")) == nil
	}},
}

// moving: large says that room is made for it.
func (h *hold) moving() bool {
	c := meta.FindStatusCondition(h.get(h.name("large")).Status.Conditions, v1alpha1.ConditionReady)
	return c != nil && c.Status == metav1.ConditionFalse && c.Reason == v1alpha1.ReasonMoving
}

// longRequests asks moved for texts that take a while, two at a time, until a worker is paused. Its
// weights are zero, and so is the token that it finds the likeliest: that does not end a text.
func (h *hold) longRequests() {
	h.Helper()
	for range 2 {
		st, err := h.open(h.name("moved"), 480, 0)
		if err != nil {
			h.Fatal(err)
		}
		h.Cleanup(func() { st.response.Body.Close() })
		go func() {
			for st.rest(); err == nil && !h.stopped(); {
				var next *stream
				if next, err = h.open(h.name("moved"), 480, 0); err == nil {
					next.rest()
				}
			}
		}()
	}
}

// Whoever dies at whichever step of a move: afterwards every model is served,
// each from one home, and nothing is left over.
func TestMoveFaults(t *testing.T) {
	for name, strike := range map[string]func(s *scene, holds []*hold){
		"operators": func(s *scene, holds []*hold) {
			for _, p := range s.operators() {
				s.kill(s.T, &p, syscall.SIGKILL)
			}
		},
		"old home": func(s *scene, holds []*hold) {
			for _, h := range holds {
				s.kill(s.T, h.a, syscall.SIGKILL)
			}
		},
		"new home": func(s *scene, holds []*hold) {
			for _, h := range holds {
				s.kill(s.T, h.b, syscall.SIGKILL)
			}
		},
		"API server": func(s *scene, holds []*hold) { s.signal(s.T, "KILL", "kube-apiserver") },
	} {
		t.Run(strings.ReplaceAll(name, " ", "-"), func(t *testing.T) {
			s := newScene(t)
			sparseModel(t, s.copyModel("crates"), 1024, 4096, 8)
			var holds []*hold
			for i, p := range faultPoints {
				holds = append(holds, s.newHold(fmt.Sprintf("point-%d", i+1), p.cargo))
			}
			for i, p := range faultPoints {
				holds[i].fragment(p.cargo)
			}
			for _, h := range holds {
				h.rested()
			}
			for i, p := range slices.Backward(faultPoints) { // a worker that is paused for long is given up
				p.arrange(holds[i])
				holds[i].start()
			}
			for i, p := range faultPoints {
				s.within(10*time.Second, p.name, func() string {
					if !p.reached(holds[i]) {
						return "not yet"
					}
					return ""
				})
			}
			progress("  %s: killed at %d points", name, len(holds))
			strike(s, holds)
			for _, h := range holds {
				h.release()
			}
			for i, p := range faultPoints {
				began := time.Now()
				holds[i].settled()
				progress("  %s killed when %s: settled, %v later", name, p.name, time.Since(began).Round(100*time.Millisecond))
			}
			// Nobody was left paused, and everybody is back.
			s.eventually("the operators are ready", func() string {
				if i := slices.IndexFunc(s.operators(), func(p corev1.Pod) bool { return !podReady(&p) }); i >= 0 {
					return "one is not"
				}
				return ""
			})
		})
	}
}
