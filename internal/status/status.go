// Package status folds what was decided into conditions, and says when a
// status is worth a write. Start with Conditions.
package status

import (
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/estiba/estiba/api/v1alpha1"
)

// Verdict is what is to be said of one object. Reason and Message belong to
// Ready; the other conditions share them where they have none of their own.
type Verdict struct {
	Ready   bool
	Reason  string
	Message string // whole sentences
	// Placed is nil for objects that have no homes.
	Placed *Part
	// Progressing: Estiba is doing something about it, and no spec needs a change.
	Progressing bool
	// Stalled: only a change of a spec helps.
	Stalled bool
	// Degraded is nil for objects without that condition.
	Degraded *Part
	// StalledBy is set when something else than Reason stalls it.
	StalledBy *Part
}

// Part is one condition with words of its own.
type Part struct {
	True    bool
	Reason  string
	Message string
}

// Conditions are those of the verdict. What was true before keeps its time; if
// nothing else is said either, they are those from before.
func (v Verdict) Conditions(before []metav1.Condition, generation int64, now time.Time) []metav1.Condition {
	var room [5]metav1.Condition
	c := v.conditions(room[:0], before, generation, now)
	if slices.Equal(c, before) {
		return before
	}
	return slices.Clone(c)
}

// conditions appends them to c.
func (v Verdict) conditions(c, before []metav1.Condition, generation int64, now time.Time) []metav1.Condition {
	own := Part{v.Ready, v.Reason, v.Message}
	c = set(c, before, v1alpha1.ConditionReady, own, generation, now)
	if v.Placed != nil {
		c = set(c, before, v1alpha1.ConditionPlaced, *v.Placed, generation, now)
	}
	reconciling := Part{v.Progressing, v.Reason, v.Message}
	if !v.Progressing {
		reconciling.Reason, reconciling.Message = v1alpha1.ReasonSucceeded, ""
		if v.Stalled {
			reconciling.Reason = v1alpha1.ConditionStalled
		} else if !v.Ready {
			reconciling.Reason = v.Reason
		}
	}
	c = set(c, before, v1alpha1.ConditionReconciling, reconciling, generation, now)
	stalled := Part{v.Stalled, v.Reason, v.Message}
	switch {
	case v.StalledBy != nil:
		stalled = *v.StalledBy
	case !v.Stalled:
		stalled.Reason, stalled.Message = v1alpha1.ReasonSucceeded, ""
	}
	c = set(c, before, v1alpha1.ConditionStalled, stalled, generation, now)
	if v.Degraded != nil {
		c = set(c, before, v1alpha1.ConditionDegraded, *v.Degraded, generation, now)
	}
	return c
}

// longest message of a condition, in bytes. The API server takes 32768 and
// refuses the whole status beyond; file and tensor names can be as long as they like.
const longest = 4096

// Cut shortens s to at most n bytes, between characters.
func Cut(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return strings.ToValidUTF8(s[:n-3], "") + "..."
}

func set(c, before []metav1.Condition, kind string, p Part, generation int64, now time.Time) []metav1.Condition {
	n := metav1.Condition{
		Type: kind, Status: metav1.ConditionFalse, Reason: p.Reason, Message: Cut(p.Message, longest),
		ObservedGeneration: generation, LastTransitionTime: metav1.NewTime(now.Truncate(time.Second)),
	}
	if p.True {
		n.Status = metav1.ConditionTrue
	}
	if old := Find(before, kind); old != nil && old.Status == n.Status {
		n.LastTransitionTime = old.LastTransitionTime
	}
	return append(c, n)
}

// Find the condition of a type; nil if there is none.
func Find(c []metav1.Condition, kind string) *metav1.Condition {
	if i := slices.IndexFunc(c, func(c metav1.Condition) bool { return c.Type == kind }); i >= 0 {
		return &c[i]
	}
	return nil
}

// Transitions are the conditions whose status or reason is new.
func Transitions(before, after []metav1.Condition) []metav1.Condition {
	var t []metav1.Condition
	for _, c := range after {
		if old := Find(before, c.Type); old == nil || old.Status != c.Status || old.Reason != c.Reason {
			t = append(t, c)
		}
	}
	return t
}

// Interval is the least time between two writes of one status, unless a
// condition has changed: etcd holds a summary, not a film.
const Interval = 30 * time.Second

// Due says when a changed status is to be written: now, at a later time, or
// (zero) never, because nothing has changed. A person who has just changed the
// spec waits for its observed generation, so that is written at once too.
func Due[S any](before, after S, conditions func(S) ([]metav1.Condition, int64), written, now time.Time) time.Time {
	if equality.Semantic.DeepEqual(before, after) {
		return time.Time{}
	}
	was, seen := conditions(before)
	is, sees := conditions(after)
	if seen != sees || len(Transitions(was, is)) > 0 || now.Sub(written) >= Interval {
		return now
	}
	return written.Add(Interval)
}
