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
	// forgetting is how often what is remembered of objects that are gone is looked for.
	forgetting = 10 * time.Second
)

// apply carries a plan out. Each part is tried, whatever becomes of the others.
// The first writes are those that must outlive this process: deaths. If one
// cannot be written, the plan has not been: the next one finds it again. What
// people read comes last, until the next decision is due: the rest is decided
// anew. It returns when the next status is due, zero if none waits.
func (r *Reconciler) apply(ctx context.Context, seen Seen, plan Plan) (due time.Time, err error) {
	var errs []error
	fail := func(failed ...error) {
		for _, err := range failed {
			// In a namespace that is going away nothing can be made any more.
			if err != nil && !apierrors.IsNotFound(err) && !apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
				errs = append(errs, err)
			}
		}
	}
	later := func(t time.Time) {
		if !t.IsZero() && (due.IsZero() || t.Before(due)) {
			due = t
		}
	}
	deaths, told, wait, at := r.modelWrites(seen, plan)
	later(at)
	if _, failed := carry(ctx, deaths, time.Time{}); len(failed) > 0 {
		return due, errors.Join(failed...) // nothing is sent before that is kept
	}
	r.memory, r.waiting = plan.Memory, wait
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
		fail(r.create(ctx, p, plan.Create[p.Key()], plan.Successors[p.Key()])...)
	}
	_, failed := carry(ctx, r.deletions(plan), time.Time{})
	fail(failed...)
	pools, at := r.poolWrites(seen, plan)
	later(at)
	marks, at := r.marks(plan, seen.Now)
	later(at)
	last := slices.Concat(pools, told, marks)
	slices.SortStableFunc(last, func(a, b write) int { return a.last.Compare(b.last) })
	begun, failed := carry(ctx, last, r.nextDecision(time.Now().Add(writing)))
	fail(failed...)
	if begun < len(last) {
		later(seen.Now)
	}
	r.metrics.waiting.Set(float64(len(r.waiting)))
	if seen.Now.Sub(r.forgot) >= forgetting {
		r.forget(seen)
		r.forgot = seen.Now
	}
	return due, errors.Join(errs...)
}

// announce makes an event of each change of Ready, and of each new stall.
func (r *Reconciler) announce(o runtime.Object, before, after []metav1.Condition) {
	for _, c := range status.Transitions(before, after) {
		stall := c.Type == v1alpha1.ConditionStalled && c.Status == metav1.ConditionTrue
		if c.Type == v1alpha1.ConditionDegraded {
			r.tellDegraded(o, c, status.Find(before, c.Type))
			continue
		}
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

// tellDegraded makes an event of devices that are in trouble, or no longer.
func (r *Reconciler) tellDegraded(o runtime.Object, is metav1.Condition, was *metav1.Condition) {
	switch {
	case is.Status == metav1.ConditionTrue:
		r.events.Eventf(o, nil, corev1.EventTypeWarning, is.Reason, "Decide", "%s", status.Cut(is.Message, 1000))
	case was != nil:
		r.events.Eventf(o, nil, corev1.EventTypeNormal, is.Reason, "Decide", "All devices are in order again.")
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

// create makes so many workers of a pool, the first of which are successors: one,
// if that is taken two, and so on, so that a full quota is not asked a hundred times.
func (r *Reconciler) create(ctx context.Context, p *Pool, workers, successors int) []error {
	if workers > 0 {
		delete(r.refused, p.UID)
	}
	for made, batch := 0, 1; made < workers; made, batch = made+batch, 2*batch {
		var writes []write
		for i := made; i < min(made+batch, workers); i++ {
			writes = append(writes, r.createWorker(p, i < successors))
		}
		_, failed := carry(ctx, writes, time.Time{})
		if _, refused := r.refused[p.UID]; refused || len(failed) > 0 {
			return failed
		}
	}
	return nil
}

// createWorker makes one worker pod, of a template that can be used.
func (r *Reconciler) createWorker(p *Pool, successor bool) write {
	t := r.template(&p.InferencePool)
	pod := t.pod.DeepCopy()
	if successor {
		pod.Annotations[v1alpha1.AnnotationSuccessor] = "true"
	}
	var invalid error // no other attempt will help; the pool's condition says so
	return write{
		send: func(ctx context.Context) error {
			err := r.client.Create(ctx, pod)
			if apierrors.IsInvalid(err) {
				invalid = err
				return nil
			}
			if err != nil {
				return fmt.Errorf("create a worker of InferencePool %s: %w", p.Key(), err)
			}
			return nil
		},
		done: func(err error) {
			switch {
			case err != nil:
				r.refused[p.UID] = refusal{t.hash, because(errors.Unwrap(err), pod), false, r.now()}
			case invalid != nil:
				r.refused[p.UID] = refusal{t.hash, because(invalid, pod), true, r.now()}
				r.wake()
			default:
				r.made[pod.UID] = made{pod, r.now()}
				r.metrics.created.WithLabelValues(p.Key()).Inc()
				r.log.Info("worker pod created", "pool", p.Key(), "worker", pod.Name)
			}
		},
	}
}

// deletions are the pods that are to go.
func (r *Reconciler) deletions(plan Plan) []write {
	var writes []write
	deletes := func(pod *corev1.Pod, reason string) {
		if pod != nil && pod.DeletionTimestamp.IsZero() && !r.deleted[pod.UID] {
			writes = append(writes, r.deletePod(pod, reason))
		}
	}
	for _, d := range plan.Delete {
		deletes(r.podOf[d.Worker], d.Reason)
	}
	for _, pod := range r.namesakes {
		deletes(pod, "a worker pod in another namespace has its name")
	}
	return writes
}

func (r *Reconciler) deletePod(pod *corev1.Pod, reason string) write {
	return write{
		send: func(ctx context.Context) error {
			if err := r.client.Delete(ctx, pod, client.Preconditions{UID: &pod.UID}); err != nil {
				return fmt.Errorf("delete worker pod %s/%s: %w", pod.Namespace, pod.Name, err)
			}
			return nil
		},
		done: func(err error) {
			if err != nil {
				return
			}
			r.deleted[pod.UID] = true
			r.metrics.deleted.WithLabelValues(pod.Namespace + "/" + pod.Labels[v1alpha1.LabelPool]).Inc()
			r.log.Info("worker pod deleted", "worker", pod.Name, "reason", reason)
		},
	}
}

// remark is the least time between two changes of the labels of one pod, which
// follow all that comes to a worker and goes.
const remark = 5 * time.Second

// marks put on pods what is no longer true there: the UIDs of the Models that a
// worker holds, and whether it may be disrupted, which does not wait. Next is
// when labels that wait are due.
func (r *Reconciler) marks(plan Plan, now time.Time) (writes []write, next time.Time) {
	for name := range plan.marked() {
		pod := r.podOf[name]
		if pod == nil {
			continue
		}
		_, disrupted := plan.Disruption[name]
		if due := r.marked[pod.UID].Add(remark); !disrupted && due.After(now) {
			next = earlier(next, due)
			continue
		}
		writes = append(writes, r.mark(pod, plan, now))
	}
	return writes, next
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

func (r *Reconciler) mark(pod *corev1.Pod, plan Plan, now time.Time) write {
	after := pod.DeepCopy()
	if models, differ := plan.Labels[pod.Name]; differ {
		label(after, models)
	}
	if say, differs := plan.Disruption[pod.Name]; differs {
		say.annotate(after)
	}
	return write{
		last: r.marked[pod.UID],
		send: func(ctx context.Context) error {
			if err := r.client.Patch(ctx, after, client.MergeFrom(pod)); err != nil {
				return fmt.Errorf("mark worker pod %s/%s: %w", pod.Namespace, pod.Name, err)
			}
			return nil
		},
		done: func(err error) { r.marked[pod.UID] = now },
	}
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
	drop(r.templates, pools)
	pods := map[types.UID]bool{}
	for _, p := range r.podOf {
		pods[p.UID] = true
	}
	for _, p := range r.namesakes {
		pods[p.UID] = true
	}
	drop(r.deleted, pods)
	drop(r.marked, pods)
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
