package controllers

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/estiba/estiba/api/v1alpha1"
	"github.com/estiba/estiba/internal/fixture"
	"github.com/estiba/estiba/internal/status"
)

// away is an API server that takes no status.
type away struct{ client.Client }

func (away) Status() client.SubResourceWriter { return awayStatus{} }

type awayStatus struct{ client.SubResourceWriter }

func (awayStatus) Patch(context.Context, client.Object, client.Patch, ...client.SubResourcePatchOption) error {
	return errors.New("no connection")
}

// A death that cannot be written down is found again by the next decision.
func TestDeathIsNotForgotten(t *testing.T) {
	m := fixture.NewModel("x")
	before := reporting("w", 5, 1, resident(m, 10))
	before.Report.Homes[0].Running = 1
	seen := seenWith([]v1alpha1.Model{m}, before)
	r := &Reconciler{client: away{}, memory: Decide(seen).Memory, models: map[uid]written[v1alpha1.ModelStatus]{}}

	for try := range 3 {
		after := reporting("w", 0, 0)
		after.Report.Instance = "w.2"
		seen = seenWith([]v1alpha1.Model{m}, after)
		seen.Memory = r.memory
		plan := Decide(seen)
		if trial := plan.Models[0].Trial; trial == nil || trial.Deaths != 1 {
			t.Fatalf("try %d: the trial is %+v", try, trial)
		}
		if _, err := r.apply(t.Context(), seen, plan); err == nil {
			t.Fatal("the status could not be written, and nobody says so")
		}
	}
}

// What an API server gives back of a status is not another status, or it would
// be written again and again.
func TestStatusComesBackTheSame(t *testing.T) {
	m := fixture.NewModel("x")
	w := reporting("w", 5, 1, resident(m, 10))
	w.Report.Homes[0].Running = 1
	seen := seenWith([]v1alpha1.Model{m}, w)
	seen.Now = fixture.Epoch.Add(123456789).In(time.FixedZone("elsewhere", 3600))
	seen.Memory = Decide(seen).Memory
	w = reporting("w", 0, 0) // died: the Model is on trial
	w.Report.Instance = "w.2"
	seen.Workers = []Worker{w}
	plan := Decide(seen)

	var model v1alpha1.ModelStatus
	var pool v1alpha1.InferencePoolStatus
	for from, to := range map[any]any{&plan.Models[0]: &model, &plan.Pools[0]: &pool} {
		text, err := json.Marshal(from)
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(text, to); err != nil {
			t.Fatal(err)
		}
	}
	if plan.Models[0].Trial == nil || !equality.Semantic.DeepEqual(plan.Models[0], model) {
		t.Errorf("went as %+v, came back as %+v", plan.Models[0], model)
	}
	if !equality.Semantic.DeepEqual(plan.Pools[0], pool) {
		t.Errorf("went as %+v, came back as %+v", plan.Pools[0], pool)
	}
}

// What this process has made counts for a time by its own clock; of two worker
// pods with one name the newer one is to go.
func TestPodsJustMade(t *testing.T) {
	owner := []metav1.OwnerReference{{UID: "pool", Controller: new(true)}}
	pod := func(id uid, namespace string, created time.Time) *corev1.Pod {
		return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p-abcde", Namespace: namespace, UID: id, OwnerReferences: owner, CreationTimestamp: metav1.NewTime(created)}}
	}
	now := fixture.Epoch
	r := &Reconciler{now: func() time.Time { return now }, made: map[uid]made{}}
	r.made["u1"] = made{pod("u1", "a", fixture.Epoch.Add(-time.Hour)), now} // by a clock that is slow
	owners := map[uid]string{"pool": "a/p"}
	if pods := r.workerPods(nil, owners); len(pods) != 1 {
		t.Errorf("what was just made does not count: %v", pods)
	}
	pods := r.workerPods([]corev1.Pod{*pod("u2", "b", fixture.Epoch)}, owners)
	if len(pods) != 1 || pods[0].UID != "u1" || len(r.namesakes) != 1 || r.namesakes[0].UID != "u2" {
		t.Errorf("pods are %v, to go are %v", pods, r.namesakes)
	}
	now = now.Add(unseen + time.Second)
	if pods := r.workerPods(nil, owners); len(pods)+len(r.namesakes) != 0 {
		t.Errorf("what the cache has not shown for so long counts: %v", pods)
	}
}

// A refused pod is not asked for with every decision.
func TestRefusedPodWaits(t *testing.T) {
	f := refusal{hash: "a", at: fixture.Epoch}
	if again := f.again("a"); !again.Equal(fixture.Epoch.Add(retry)) {
		t.Errorf("again at %v", again)
	}
	if again := f.again("b"); !again.IsZero() {
		t.Errorf("another template waits until %v", again)
	}
}

// judge is an API server that answers each pod with err.
type judge struct {
	client.Client
	asked int
	err   error
}

func (j *judge) Create(_ context.Context, _ client.Object, options ...client.CreateOption) error {
	var o client.CreateOptions
	o.ApplyOptions(options)
	if len(o.DryRun) == 0 {
		return errors.New("a pod was made")
	}
	j.asked++
	return j.err
}

// A template is looked at once; without an answer, again after a while.
func TestTemplateIsChecked(t *testing.T) {
	pods := schema.GroupResource{Resource: "pods"}
	for name, c := range map[string]struct {
		err                error
		invalid, unchecked bool
	}{
		"taken":       {},
		"invalid":     {err: apierrors.NewInvalid(schema.GroupKind{Kind: "Pod"}, "p-", nil), invalid: true},
		"quota":       {err: apierrors.NewForbidden(pods, "p-", errors.New("exceeded quota: q"))},
		"security":    {err: apierrors.NewForbidden(pods, "p-", errors.New("violates PodSecurity")), unchecked: true},
		"webhook":     {err: apierrors.NewBadRequest("admission webhook does not support dry run")},
		"busy":        {err: apierrors.NewTooManyRequests("later", 1), unchecked: true},
		"unreachable": {err: errors.New("no connection"), unchecked: true},
	} {
		now := fixture.Epoch
		server := &judge{err: c.err}
		r := &Reconciler{client: server, now: func() time.Time { return now }, refused: map[uid]refusal{}, checked: map[uid]checked{}, templates: map[uid]template{}}
		p := fixture.NewPool("p", 1, 1)
		for range 2 {
			if is := r.pool(t.Context(), p); (is.Invalid != "") != c.invalid || (is.Unchecked != "") != c.unchecked {
				t.Errorf("%s: invalid %q, unchecked %q", name, is.Invalid, is.Unchecked)
			}
		}
		if server.asked != 1 {
			t.Errorf("%s: asked %d times", name, server.asked)
		}
		now = now.Add(retry)
		server.err = nil
		if is := r.pool(t.Context(), p); is.Unchecked != "" || (server.asked == 2) != c.unchecked {
			t.Errorf("%s: asked %d times, unchecked %q", name, server.asked, is.Unchecked)
		}
		r.options.WorkerImage = "another"
		if is := r.pool(t.Context(), p); is.Invalid != "" || server.asked < 2 {
			t.Errorf("%s: another template: asked %d times, invalid %q", name, server.asked, is.Invalid)
		}
	}
}

// What is out of date stays while nothing could come in its place.
func TestOutOfDateStays(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*Pool)
		goes   bool
	}{
		"taken":     {func(*Pool) {}, true},
		"invalid":   {func(p *Pool) { p.Invalid = "no such volume" }, false},
		"unchecked": {func(p *Pool) { p.Unchecked = "no connection" }, false},
		"quota":     {func(p *Pool) { p.Blocked = "exceeded quota" }, true},
	} {
		m := fixture.NewModel("x")
		seen := seenWith([]v1alpha1.Model{m}, reporting("w1", 5, 1, resident(m, 10)), reporting("w2", 5, 1))
		seen.Pools[0].Hash = "next"
		seen.Pools[0].Spec.Workers.Min = 2
		c.change(&seen.Pools[0])
		goes := false
		for range 3 {
			plan := Decide(seen)
			seen.Memory = plan.Memory
			goes = goes || len(plan.Delete) > 0
			for _, w := range plan.Memory.Workers {
				goes = goes || w.Going != ""
			}
			if s := plan.Pools[0]; !c.goes && s.ReadyWorkers != 2 {
				t.Errorf("%s: status is %+v", name, s)
			}
		}
		if goes != c.goes {
			t.Errorf("%s: a worker goes: %v", name, goes)
		}
	}
}

// Where a Model is, and what a pool says, are written soon; the rest has time.
func TestStatusIsDue(t *testing.T) {
	start := fixture.Epoch
	m, p := fixture.NewModel("x"), fixture.NewPool("p", 1, 1)
	m.Status.Placements = []v1alpha1.Placement{{Worker: "w1", State: v1alpha1.PlacementResident, Reason: "room"}}
	p.Status.Conditions = []metav1.Condition{{Type: v1alpha1.ConditionReady, Status: metav1.ConditionFalse, Reason: v1alpha1.ReasonWaitingForWorker, Message: "0 of 1 worker is ready."}}
	p.Status.Workers = 1
	serving, loading := status.Verdict{Ready: true, Reason: v1alpha1.ReasonServing}.Conditions(nil, 1, start), status.Verdict{Reason: v1alpha1.ReasonLoading}.Conditions(nil, 1, start)
	for name, c := range map[string]struct {
		change  func(*v1alpha1.ModelStatus)
		loading time.Time
		pool    func(*v1alpha1.InferencePoolStatus)
		wait    time.Duration
	}{
		"worker gone":   {change: func(s *v1alpha1.ModelStatus) { s.Placements = nil }, wait: recount},
		"other worker":  {change: func(s *v1alpha1.ModelStatus) { s.Placements[0].Worker = "w2" }, wait: recount},
		"other state":   {change: func(s *v1alpha1.ModelStatus) { s.Placements[0].State = v1alpha1.PlacementHost }, wait: recount},
		"other words":   {change: func(s *v1alpha1.ModelStatus) { s.Placements[0].Reason = "more room" }, wait: status.Interval},
		"more memory":   {change: func(s *v1alpha1.ModelStatus) { s.Summary.Memory = "2Gi" }, wait: status.Interval},
		"serving":       {change: func(s *v1alpha1.ModelStatus) { s.Conditions = serving }, wait: time.Second},
		"loading":       {change: func(s *v1alpha1.ModelStatus) { s.Conditions = loading }, loading: start.Add(time.Second), wait: time.Second + moment},
		"a death":       {change: func(s *v1alpha1.ModelStatus) { s.Conditions, s.Trial = loading, &v1alpha1.Trial{Deaths: 1} }, loading: start.Add(time.Second), wait: time.Second},
		"workers":       {pool: func(s *v1alpha1.InferencePoolStatus) { s.Workers = 2 }, wait: recount},
		"refused":       {pool: func(s *v1alpha1.InferencePoolStatus) { s.Conditions[0].Message += " Exceeded quota." }, wait: recount},
		"pool's memory": {pool: func(s *v1alpha1.InferencePoolStatus) { s.Summary.Memory = "2Gi / 4Gi" }, wait: status.Interval},
	} {
		at := func(now time.Time) time.Time {
			if c.pool != nil {
				after := p.Status.DeepCopy()
				c.pool(after)
				return poolDue(p.Status, *after, start, now)
			}
			after := m.Status.DeepCopy()
			c.change(after)
			return modelDue(m.Status, *after, start, c.loading, now)
		}
		if due := at(start.Add(time.Second)); !due.Equal(start.Add(c.wait)) {
			t.Errorf("%s: due at %v, want after %v", name, due, c.wait)
		}
		if due := at(start.Add(c.wait)); due.After(start.Add(c.wait)) {
			t.Errorf("%s: not written after %v: due at %v", name, c.wait, due)
		}
	}
}

// The same refusal says the same, whatever name the pod was to have.
func TestRefusalHasNoRandomName(t *testing.T) {
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{GenerateName: "p-"}}
	for _, name := range []string{"p-abcde", "p-fghij", ""} {
		err := apierrors.NewForbidden(schema.GroupResource{Resource: "pods"}, name, errors.New("exceeded quota: q"))
		if got := because(err, pod); name != "" && got != `pods "p-" is forbidden: exceeded quota: q` || !strings.Contains(got, "exceeded quota") {
			t.Errorf("%q: %s", name, got)
		}
	}
}
