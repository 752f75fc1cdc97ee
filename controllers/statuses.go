package controllers

import (
	"context"
	"fmt"
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/estiba/estiba/api/v1alpha1"
	"github.com/estiba/estiba/internal/status"
)

// etcd holds a summary, not a film: most of what is decided of an object is
// written some time later, and with what has been decided since.

const (
	// recount is the least time between two writes of what people look at first:
	// where a Model is; a pool's counts, and what it waits for.
	recount = 3 * time.Second
	// moment is how long Loading is no news: most models are past it by then, and
	// there is one change to write, not three.
	moment = time.Second
)

// written is a status as it was last written, which the cache may not show yet.
type written[S any] struct {
	status S
	at     time.Time // zero: it never was
	tried  time.Time
}

// waiting is a Model's status that was decided and is not written yet. The next
// decision goes on from it: it has the reasons for which homes were chosen.
type waiting struct {
	status  v1alpha1.ModelStatus
	before  v1alpha1.ModelStatus // as the API server has it
	loading time.Time            // since when it says Loading; zero: it does not
}

// statuses puts what this process has written, or is about to, in the place of what the cache shows.
func (r *Reconciler) statuses(models []v1alpha1.Model, now time.Time) {
	for i := range models {
		m := &models[i]
		if s, wrote := r.models[m.UID]; wrote && now.Sub(s.at) < unseen {
			m.Status = s.status
		}
		if w, waits := r.waiting[m.UID]; waits {
			w.before = m.Status
			m.Status = w.status
			r.waiting[m.UID] = w
		}
	}
}

// modelWrites are the statuses that are due, those with deaths apart; those that
// are to be remembered until they are written; and when the next one is due.
func (r *Reconciler) modelWrites(seen Seen, plan Plan) (deaths, others []write, wait map[uid]waiting, next time.Time) {
	wait = map[uid]waiting{}
	for i := range seen.Models {
		m, after := &seen.Models[i], plan.Models[i]
		before, loading := m.Status, time.Time{}
		if w, waits := r.waiting[m.UID]; waits {
			before, loading = w.before, w.loading
		}
		if sameModelStatus(&before, &after) {
			continue
		}
		switch {
		case !says(after.Conditions, v1alpha1.ReasonLoading):
			loading = time.Time{}
		case loading.IsZero():
			loading = seen.Now
		}
		at := modelDue(before, after, r.models[m.UID].at, loading, seen.Now)
		switch {
		case at.After(seen.Now):
			next = earlier(next, at)
		case newDeath(before.Trial, after.Trial):
			deaths = append(deaths, r.writeModel(m, before, after, seen.Now))
			continue
		default:
			others = append(others, r.writeModel(m, before, after, seen.Now))
		}
		wait[m.UID] = waiting{after, before, loading}
	}
	return deaths, others, wait, next
}

func newDeath(before, after *v1alpha1.Trial) bool {
	return after != nil && (before == nil || before.Deaths != after.Deaths)
}

func says(c []metav1.Condition, reason string) bool {
	ready := status.Find(c, v1alpha1.ConditionReady)
	return ready != nil && ready.Reason == reason
}

// earlier of two times; zero is none.
func earlier(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

// modelDue is when a Model's status, which says something new and has said
// Loading since a time, is to be written.
func modelDue(before, after v1alpha1.ModelStatus, wrote, loading, now time.Time) time.Time {
	if !sameTrial(before.Trial, after.Trial) {
		return now // it is memory for the next decision: an acquittal that waited here would be forgotten
	}
	due := status.Due(before, after, func(s v1alpha1.ModelStatus) ([]metav1.Condition, int64) { return s.Conditions, s.ObservedGeneration }, wrote, now)
	// Whoever has just lost a worker looks where the Model is now.
	if soon := wrote.Add(recount); due.After(soon) && !slices.EqualFunc(before.Placements, after.Placements, samePlace) {
		due = soon
	}
	if news := loading.Add(moment); !loading.IsZero() && news.After(due) {
		due = news
	}
	return due
}

// writeModel writes the status of a Model, and tells of what has changed.
func (r *Reconciler) writeModel(m *v1alpha1.Model, before, after v1alpha1.ModelStatus, now time.Time) write {
	return write{
		last: r.models[m.UID].tried,
		send: func(ctx context.Context) error {
			base := &v1alpha1.Model{ObjectMeta: metav1.ObjectMeta{Namespace: m.Namespace, Name: m.Name}, Status: before}
			next := base.DeepCopy()
			next.Status = *after.DeepCopy() // the answer is read into it
			if err := r.client.Status().Patch(ctx, next, client.MergeFrom(base)); err != nil {
				return fmt.Errorf("write the status of Model %s: %w", Key(m), err)
			}
			return nil
		},
		done: func(err error) {
			s := r.models[m.UID]
			s.tried = now
			if err == nil {
				s = written[v1alpha1.ModelStatus]{after, now, now}
				delete(r.waiting, m.UID)
				r.metrics.writes.WithLabelValues("Model").Inc()
				r.announce(m, before.Conditions, after.Conditions)
			}
			r.models[m.UID] = s
		},
	}
}

// poolWrites are the statuses of pools that are due, and when the next one is.
func (r *Reconciler) poolWrites(seen Seen, plan Plan) (writes []write, next time.Time) {
	for i := range seen.Pools {
		p, after := &seen.Pools[i].InferencePool, plan.Pools[i]
		due := poolDue(p.Status, after, r.pools[p.UID].at, seen.Now)
		if due.IsZero() || due.After(seen.Now) {
			next = earlier(next, due)
			continue
		}
		writes = append(writes, r.writePool(p, after, seen.Now))
	}
	return writes, next
}

// poolDue is when a pool's status is to be written; zero: it says nothing new.
func poolDue(before, after v1alpha1.InferencePoolStatus, wrote, now time.Time) time.Time {
	due := status.Due(before, after, func(s v1alpha1.InferencePoolStatus) ([]metav1.Condition, int64) {
		return s.Conditions, s.ObservedGeneration
	}, wrote, now)
	// Whoever has just created a Model looks at once how many there are.
	if soon := wrote.Add(recount); due.After(soon) && (counts(before) != counts(after) || message(before) != message(after)) {
		due = soon
	}
	if !equality.Semantic.DeepEqual(before.Moves, after.Moves) { // what a later leader may not move again
		due = now
	}
	return due
}

// writePool writes the status of a pool, and tells of what has changed.
func (r *Reconciler) writePool(p *v1alpha1.InferencePool, after v1alpha1.InferencePoolStatus, now time.Time) write {
	before := p.Status
	return write{
		last: r.pools[p.UID].tried,
		send: func(ctx context.Context) error {
			base := &v1alpha1.InferencePool{ObjectMeta: metav1.ObjectMeta{Namespace: p.Namespace, Name: p.Name}, Status: before}
			next := base.DeepCopy()
			next.Status = *after.DeepCopy()
			if err := r.client.Status().Patch(ctx, next, client.MergeFrom(base)); err != nil {
				return fmt.Errorf("write the status of InferencePool %s/%s: %w", p.Namespace, p.Name, err)
			}
			return nil
		},
		done: func(err error) {
			s := r.pools[p.UID]
			s.tried = now
			if err == nil {
				s = written[v1alpha1.InferencePoolStatus]{after, now, now}
				r.metrics.writes.WithLabelValues("InferencePool").Inc()
				r.announce(p, before.Conditions, after.Conditions)
			}
			r.pools[p.UID] = s
		},
	}
}

func samePlace(a, b v1alpha1.Placement) bool { return a.Worker == b.Worker && a.State == b.State }

// message is what the Ready condition of a pool says: why a pod is refused, or does not start.
func message(s v1alpha1.InferencePoolStatus) string {
	if c := status.Find(s.Conditions, v1alpha1.ConditionReady); c != nil {
		return c.Message
	}
	return ""
}

// counts are the whole numbers of a pool's status.
func counts(s v1alpha1.InferencePoolStatus) [3]int32 {
	return [3]int32{s.Workers, s.ReadyWorkers, s.Models}
}
