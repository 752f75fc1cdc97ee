package controllers

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/estiba/estiba/api/v1alpha1"
	"github.com/estiba/estiba/api/worker"
	"github.com/estiba/estiba/internal/status"
)

const (
	// inspectTimeout bounds one reading of a header.
	inspectTimeout = time.Minute
	// reapply is how often what nobody should change is written again.
	reapply = 10 * time.Minute
	// retry is how long after a refusal the API server is asked again.
	retry = 5 * time.Second
	// recount is the least time between two writes of what people look at first:
	// where a Model is; a pool's counts, and what it waits for.
	recount = 3 * time.Second
)

// apply carries a plan out. Each part is tried, whatever becomes of the others.
// The first writes are those that must outlive this process: deaths. If one
// cannot be written, the plan has not been: the next one finds it again. It
// returns when the next status is due, zero if none waits.
func (r *Reconciler) apply(ctx context.Context, seen Seen, plan Plan) (due time.Time, err error) {
	var errs []error
	fail := func(err error) {
		// In a namespace that is going away nothing can be made any more.
		if err != nil && !apierrors.IsNotFound(err) && !apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
			errs = append(errs, err)
		}
	}
	later := func(t time.Time) {
		if !t.IsZero() && (due.IsZero() || t.Before(due)) {
			due = t
		}
	}
	for i := range seen.Models {
		at, err := r.writeModel(ctx, &seen.Models[i], plan.Models[i], seen.Now)
		later(at)
		if err != nil && newDeath(seen.Models[i].Status.Trial, plan.Models[i].Trial) {
			return due, err // nothing is sent before that is kept
		}
		fail(err)
	}
	r.memory = plan.Memory
	for name, a := range plan.Assignments {
		r.fleet.Send(name, a)
		r.metrics.assignments.Inc()
		r.log.Info("assignment sent", "worker", name, "epoch", a.Epoch, "generation", a.Generation, "homes", len(a.Homes), "drain", a.Drain)
	}
	r.tell(seen, plan.Moves)
	for _, in := range plan.Inspect {
		r.ask(ctx, in)
	}
	for i := range seen.Pools {
		p := &seen.Pools[i]
		if !p.DeletionTimestamp.IsZero() {
			continue
		}
		fail(r.furnish(ctx, p, plan.Budgets[p.Key()], seen.Now))
		if f := r.furnished[p.UID]; f.at.IsZero() || f.taken != "" {
			continue // its pods would be without policy, or mount somebody's Secret
		}
		if again := r.refused[p.UID].again(p.Hash); plan.Create[p.Key()] > 0 && again.After(seen.Now) {
			later(again)
			continue
		}
		for i := range plan.Create[p.Key()] {
			if err := r.create(ctx, p, i < plan.Successors[p.Key()]); err != nil {
				fail(err)
				break
			}
		}
	}
	for _, d := range plan.Delete {
		fail(r.delete(ctx, d))
	}
	for _, pod := range r.namesakes {
		fail(r.deletePod(ctx, pod, "a worker pod in another namespace has its name"))
	}
	for name := range plan.marked() {
		fail(r.mark(ctx, name, plan))
	}
	for i := range seen.Pools {
		at, err := r.writePool(ctx, &seen.Pools[i].InferencePool, plan.Pools[i], seen.Now)
		later(at)
		fail(err)
	}
	r.forget(seen)
	return due, errors.Join(errs...)
}

func newDeath(before, after *v1alpha1.Trial) bool {
	return after != nil && (before == nil || before.Deaths != after.Deaths)
}

// written is a status as it was last written, which the cache may not show yet.
type written[S any] struct {
	status S
	at     time.Time
}

func (r *Reconciler) writeModel(ctx context.Context, m *v1alpha1.Model, after v1alpha1.ModelStatus, now time.Time) (time.Time, error) {
	due := status.Due(m.Status, after, func(s v1alpha1.ModelStatus) ([]metav1.Condition, int64) { return s.Conditions, s.ObservedGeneration }, r.models[m.UID].at, now)
	// Whoever has just lost a worker looks where the Model is now.
	if soon := r.models[m.UID].at.Add(recount); due.After(soon) && !slices.EqualFunc(m.Status.Placements, after.Placements, samePlace) {
		due = soon
	}
	// The trial is memory for the next decision: an acquittal that waited here
	// would be forgotten.
	if !equality.Semantic.DeepEqual(m.Status.Trial, after.Trial) {
		due = now
	}
	if due.IsZero() || due.After(now) {
		return due, nil
	}
	if err := r.patchStatus(ctx, m, func(o *v1alpha1.Model) { o.Status = after }); err != nil {
		return time.Time{}, err
	}
	r.models[m.UID] = written[v1alpha1.ModelStatus]{after, now}
	r.metrics.writes.WithLabelValues("Model").Inc()
	r.announce(m, m.Status.Conditions, after.Conditions)
	return time.Time{}, nil
}

func (r *Reconciler) writePool(ctx context.Context, p *v1alpha1.InferencePool, after v1alpha1.InferencePoolStatus, now time.Time) (time.Time, error) {
	due := status.Due(p.Status, after, func(s v1alpha1.InferencePoolStatus) ([]metav1.Condition, int64) {
		return s.Conditions, s.ObservedGeneration
	}, r.pools[p.UID].at, now)
	// Whoever has just created a Model looks at once how many there are.
	if soon := r.pools[p.UID].at.Add(recount); due.After(soon) && (counts(p.Status) != counts(after) || says(p.Status) != says(after)) {
		due = soon
	}
	if !equality.Semantic.DeepEqual(p.Status.Moves, after.Moves) { // what a later leader may not move again
		due = now
	}
	if due.IsZero() || due.After(now) {
		return due, nil
	}
	before := p.Status.Conditions
	if err := r.patchPool(ctx, p, after); err != nil {
		return time.Time{}, err
	}
	r.pools[p.UID] = written[v1alpha1.InferencePoolStatus]{after, now}
	r.metrics.writes.WithLabelValues("InferencePool").Inc()
	r.announce(p, before, after.Conditions)
	return time.Time{}, nil
}

func samePlace(a, b v1alpha1.Placement) bool { return a.Worker == b.Worker && a.State == b.State }

// says is what the Ready condition of a pool says: why a pod is refused, or does not start.
func says(s v1alpha1.InferencePoolStatus) string {
	if c := status.Find(s.Conditions, v1alpha1.ConditionReady); c != nil {
		return c.Message
	}
	return ""
}

// counts are the whole numbers of a pool's status.
func counts(s v1alpha1.InferencePoolStatus) [3]int32 {
	return [3]int32{s.Workers, s.ReadyWorkers, s.Models}
}

// patchStatus writes the one status of a Model.
func (r *Reconciler) patchStatus(ctx context.Context, m *v1alpha1.Model, change func(*v1alpha1.Model)) error {
	after := m.DeepCopy()
	change(after)
	if err := r.client.Status().Patch(ctx, after, client.MergeFrom(m.DeepCopy())); err != nil {
		return fmt.Errorf("write the status of Model %s: %w", Key(m), err)
	}
	return nil
}

func (r *Reconciler) patchPool(ctx context.Context, p *v1alpha1.InferencePool, s v1alpha1.InferencePoolStatus) error {
	after := p.DeepCopy()
	after.Status = s
	if err := r.client.Status().Patch(ctx, after, client.MergeFrom(p.DeepCopy())); err != nil {
		return fmt.Errorf("write the status of InferencePool %s/%s: %w", p.Namespace, p.Name, err)
	}
	return nil
}

// announce makes an event of each change of Ready, and of each new stall.
func (r *Reconciler) announce(o runtime.Object, before, after []metav1.Condition) {
	for _, c := range status.Transitions(before, after) {
		stall := c.Type == v1alpha1.ConditionStalled && c.Status == metav1.ConditionTrue
		if ready := status.Find(after, v1alpha1.ConditionReady); c.Type != v1alpha1.ConditionReady && !(stall && ready.Reason != c.Reason) {
			continue
		}
		kind := corev1.EventTypeNormal
		if stall || c.Status == metav1.ConditionFalse && status.Find(after, v1alpha1.ConditionReconciling).Status == metav1.ConditionFalse {
			kind = corev1.EventTypeWarning
		}
		r.events.Eventf(o, nil, kind, c.Reason, "Decide", "%s", status.Cut(c.Message, 1000))
	}
}

// tell makes an event of each move that begins.
func (r *Reconciler) tell(seen Seen, moves []Move) {
	for _, v := range moves {
		if i := slices.IndexFunc(seen.Models, func(m v1alpha1.Model) bool { return Key(&m) == v.Model }); i >= 0 {
			r.events.Eventf(&seen.Models[i], nil, corev1.EventTypeNormal, v1alpha1.ReasonMoving, "Decide", "Moves from worker %s to %s: %s.", v.From, v.To, v.Reason)
		}
		r.log.Info("move begins", "model", v.Model, "from", v.From, "to", v.To, "kind", v.Kind, "for", v.For)
	}
}

// ask has a worker read a header; the answer starts another decision.
func (r *Reconciler) ask(ctx context.Context, in Inspect) {
	r.mu.Lock()
	before := r.inspections[in.Key]
	before.Pending, before.Worker = true, in.Worker
	r.inspections[in.Key] = before
	r.mu.Unlock()
	go func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), inspectTimeout)
		defer cancel()
		result, err := r.fleet.Inspect(ctx, in.Worker, in.Request)
		if err != nil {
			result = worker.Inspection{Error: &worker.InspectError{Reason: v1alpha1.ReasonWaitingForWorker, Message: fmt.Sprintf("Worker %s could not be asked: %v", in.Worker, err)}}
		}
		after := Inspected{At: r.now(), Worker: in.Worker, Result: result}
		if result.Error != nil {
			after.Attempts = before.Attempts + 1
		}
		r.mu.Lock()
		r.inspections[in.Key] = after
		r.mu.Unlock()
		r.wake()
	}()
}

// refusal of a pod by the API server.
type refusal struct {
	hash    string // of the pod's template
	message string
	invalid bool // no other attempt will help
	at      time.Time
}

// because is what the API server says of a pod, without the random end of its
// name: or it would be another message each time.
func because(err error, pod *corev1.Pod) string {
	message := err.Error()
	if s := apierrors.APIStatus(nil); errors.As(err, &s) && s.Status().Details != nil {
		if name := s.Status().Details.Name; name != "" {
			message = strings.ReplaceAll(message, strconv.Quote(name), strconv.Quote(pod.GenerateName))
		}
	}
	return message
}

// again is when the same pod is to be tried once more: decisions come ten
// times a second where there is traffic, and a quota lasts.
func (f refusal) again(hash string) time.Time {
	if f.hash != hash {
		return time.Time{}
	}
	return f.at.Add(retry)
}

// made is a pod that this process has created.
type made struct {
	pod *corev1.Pod
	at  time.Time // by this process's clock
}

func (r *Reconciler) create(ctx context.Context, p *Pool, successor bool) error {
	pod, sum, err := workerPod(&p.InferencePool, r.options.WorkerImage)
	if err != nil {
		return nil // the pool's condition says so
	}
	if successor {
		pod.Annotations[v1alpha1.AnnotationSuccessor] = "true"
	}
	if err := r.client.Create(ctx, pod); err != nil {
		r.refused[p.UID] = refusal{sum, because(err, pod), apierrors.IsInvalid(err), r.now()}
		if apierrors.IsInvalid(err) {
			r.wake()
			return nil
		}
		return fmt.Errorf("create a worker of InferencePool %s: %w", p.Key(), err)
	}
	delete(r.refused, p.UID)
	r.made[pod.UID] = made{pod, r.now()}
	r.metrics.created.WithLabelValues(p.Key()).Inc()
	r.log.Info("worker pod created", "pool", p.Key(), "worker", pod.Name)
	return nil
}

func (r *Reconciler) delete(ctx context.Context, d Deletion) error {
	if pod := r.podOf[d.Worker]; pod != nil {
		return r.deletePod(ctx, pod, d.Reason)
	}
	return nil
}

func (r *Reconciler) deletePod(ctx context.Context, pod *corev1.Pod, reason string) error {
	if !pod.DeletionTimestamp.IsZero() || r.deleted[pod.UID] {
		return nil
	}
	if err := r.client.Delete(ctx, pod, client.Preconditions{UID: &pod.UID}); err != nil {
		return fmt.Errorf("delete worker pod %s/%s: %w", pod.Namespace, pod.Name, err)
	}
	r.deleted[pod.UID] = true
	r.metrics.deleted.WithLabelValues(pod.Namespace + "/" + pod.Labels[v1alpha1.LabelPool]).Inc()
	r.log.Info("worker pod deleted", "worker", pod.Name, "reason", reason)
	return nil
}

// marked are the workers whose pods say what is no longer true.
func (p *Plan) marked() map[string]bool {
	names := map[string]bool{}
	for name := range p.Labels {
		names[name] = true
	}
	for name := range p.Disruption {
		names[name] = true
	}
	return names
}

// mark puts the UIDs of the Models that a worker holds on its pod, and whether
// it may be disrupted.
func (r *Reconciler) mark(ctx context.Context, name string, plan Plan) error {
	pod := r.podOf[name]
	if pod == nil {
		return nil
	}
	after := pod.DeepCopy()
	if models, differ := plan.Labels[name]; differ {
		label(after, models)
	}
	if say, differs := plan.Disruption[name]; differs {
		say.annotate(after)
	}
	if err := r.client.Patch(ctx, after, client.MergeFrom(pod)); err != nil {
		return fmt.Errorf("mark worker pod %s/%s: %w", pod.Namespace, pod.Name, err)
	}
	r.podOf[name] = after
	return nil
}

// label makes a pod's labels name the models.
func label(pod *corev1.Pod, models []uid) {
	for name := range pod.Labels {
		if len(name) > len(v1alpha1.LabelModelPrefix) && strings.HasPrefix(name, v1alpha1.LabelModelPrefix) {
			delete(pod.Labels, name)
		}
	}
	for _, id := range models {
		pod.Labels[v1alpha1.LabelModelPrefix+string(id)] = "true"
	}
}

// forget drops what is remembered of objects that are gone.
func (r *Reconciler) forget(seen Seen) {
	models, pools, revisions := map[types.UID]bool{}, map[types.UID]bool{}, map[string]bool{}
	for i := range seen.Models {
		models[seen.Models[i].UID] = true
		revisions[Revision(&seen.Models[i])] = true
	}
	for i := range seen.Pools {
		pools[seen.Pools[i].UID] = true
	}
	drop(r.models, models)
	drop(r.pools, pools)
	drop(r.furnished, pools)
	drop(r.refused, pools)
	drop(r.checked, pools)
	pods := map[types.UID]bool{}
	for _, p := range r.podOf {
		pods[p.UID] = true
	}
	for _, p := range r.namesakes {
		pods[p.UID] = true
	}
	drop(r.deleted, pods)
	r.mu.Lock()
	defer r.mu.Unlock()
	for key, in := range r.inspections {
		if !revisions[key.Revision] && !in.Pending {
			delete(r.inspections, key)
		}
	}
}

func drop[V any](m map[types.UID]V, keep map[types.UID]bool) {
	for id := range m {
		if !keep[id] {
			delete(m, id)
		}
	}
}
