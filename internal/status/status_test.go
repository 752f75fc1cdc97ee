package status

import (
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/estiba/estiba/api/v1alpha1"
)

var start = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func TestConditions(t *testing.T) {
	before := Verdict{Ready: false, Reason: v1alpha1.ReasonLoading, Message: "Loading.", Progressing: true}.Conditions(nil, 1, start)
	after := Verdict{Ready: true, Reason: v1alpha1.ReasonServing, Message: "Serves."}.Conditions(before, 2, start.Add(time.Minute))
	for kind, want := range map[string]metav1.Condition{
		v1alpha1.ConditionReady:       {Status: metav1.ConditionTrue, Reason: v1alpha1.ReasonServing, LastTransitionTime: metav1.NewTime(start.Add(time.Minute))},
		v1alpha1.ConditionReconciling: {Status: metav1.ConditionFalse, Reason: v1alpha1.ReasonSucceeded, LastTransitionTime: metav1.NewTime(start.Add(time.Minute))},
		v1alpha1.ConditionStalled:     {Status: metav1.ConditionFalse, Reason: v1alpha1.ReasonSucceeded, LastTransitionTime: metav1.NewTime(start)},
	} {
		got := Find(after, kind)
		if got == nil || got.Status != want.Status || got.Reason != want.Reason || !got.LastTransitionTime.Equal(&want.LastTransitionTime) || got.ObservedGeneration != 2 {
			t.Errorf("%s is %+v, want %+v", kind, got, want)
		}
	}
	if Find(after, v1alpha1.ConditionPlaced) != nil {
		t.Error("an object without homes is placed")
	}
	if n := len(Transitions(before, after)); n != 2 {
		t.Errorf("%d transitions, want Ready and Reconciling", n)
	}
	stalled := Verdict{Reason: v1alpha1.ReasonDoesNotFit, Message: "Needs 1 TiB.", Stalled: true}.Conditions(nil, 1, start)
	if c := Find(stalled, v1alpha1.ConditionStalled); c.Status != metav1.ConditionTrue || c.Reason != v1alpha1.ReasonDoesNotFit || c.Message == "" {
		t.Errorf("stalled is %+v", c)
	}
}

// The API server refuses a status with a longer message.
func TestMessagesAreBounded(t *testing.T) {
	c := Verdict{Reason: v1alpha1.ReasonInvalidModel, Message: "x" + strings.Repeat("ñ", 40000)}.Conditions(nil, 1, start)
	m := Find(c, v1alpha1.ConditionReady).Message
	if len(m) > longest || len(m) < longest-3 || !utf8.ValidString(m) || !strings.HasSuffix(m, "ñ...") {
		t.Errorf("%d bytes, valid %v", len(m), utf8.ValidString(m))
	}
}

type object struct {
	Conditions []metav1.Condition
	Generation int64
	Number     int
}

func TestDue(t *testing.T) {
	read := func(o object) ([]metav1.Condition, int64) { return o.Conditions, o.Generation }
	loading := Verdict{Reason: v1alpha1.ReasonLoading, Message: "10 %"}.Conditions(nil, 1, start)
	further := Verdict{Reason: v1alpha1.ReasonLoading, Message: "20 %"}.Conditions(loading, 1, start)
	serving := Verdict{Ready: true, Reason: v1alpha1.ReasonServing, Message: "."}.Conditions(loading, 1, start)
	was := object{Conditions: loading, Generation: 1}
	for name, c := range map[string]struct {
		after object
		wait  time.Duration // since the last write, five seconds ago
	}{
		"nothing new":  {was, -1},
		"a number":     {object{loading, 1, 7}, 25 * time.Second},
		"a message":    {object{further, 1, 0}, 25 * time.Second},
		"a condition":  {object{serving, 1, 0}, 0},
		"another spec": {object{loading, 2, 0}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			got := Due(was, c.after, read, start.Add(-5*time.Second), start)
			want := start.Add(c.wait)
			if c.wait < 0 {
				want = time.Time{}
			}
			if !got.Equal(want) {
				t.Errorf("due at %v, want %v", got, want)
			}
		})
	}
	if got := Due(was, object{loading, 1, 7}, read, start.Add(-time.Hour), start); !got.Equal(start) {
		t.Errorf("after an hour it is due at %v", got)
	}
}
