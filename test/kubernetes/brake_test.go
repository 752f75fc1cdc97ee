package kubernetes

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/estiba/estiba/api/v1alpha1"
	"github.com/estiba/estiba/internal/cli"
	"github.com/estiba/estiba/internal/simulate"
)

// A label of a pool is changed by mistake: its models go on serving until that
// is confirmed by the very command that the pool's condition says. What was
// decided is fetched from the operator, and comes out the same when it is decided again.
func TestBrake(t *testing.T) {
	s := newScene(t)
	s.pool("brake", 1, "512Mi")
	s.kubectl("label", "ipool", "brake", "team=red")
	names := []string{"braked-a", "braked-b", "braked-c"}
	for _, name := range names {
		s.model(name, float16Model, "poolSelector: {matchLabels: {team: red}}")
	}
	s.ready(names...)

	s.kubectl("label", "--overwrite", "ipool", "brake", "team=blue")
	var command string
	s.eventually("the pool waits for confirmation", func() string {
		message := s.kubectl("get", "ipool", "brake", "-o", `jsonpath={.status.conditions[?(@.reason=="WaitingForConfirmation")].message}`)
		_, command, _ = strings.Cut(message, "kubectl ")
		if command == "" {
			return "it says: " + s.kubectl("get", "ipool", "brake", "-o", "jsonpath={.status.conditions}")
		}
		return ""
	})
	progress("  kubectl %s", command)
	for _, name := range names {
		s.answers(name)
		s.condition(name, v1alpha1.ConditionStalled, metav1.ConditionTrue, v1alpha1.ReasonWaitingForConfirmation)
	}
	s.eventually("an event says so", func() string {
		if out := s.kubectl("get", "events", "--field-selector", "reason=WaitingForConfirmation,involvedObject.name=brake"); strings.Contains(out, "WaitingForConfirmation") {
			return ""
		}
		return "there is none"
	})

	s.kubectl(strings.Fields(command)...)
	for _, name := range names {
		s.condition(name, v1alpha1.ConditionReady, metav1.ConditionFalse, v1alpha1.ReasonNoPoolMatches)
	}

	s.Setenv("KUBECONFIG", s.kubeconfig)
	var out, progress bytes.Buffer
	if code := cli.Main([]string{"simulate", "replay", "--policy", "WorstFit", "--json"}, strings.NewReader(""), &out, &progress); code != 0 {
		t.Errorf("estiba simulate replay: exit %d\n%s%s", code, out.String(), progress.String())
	}
	var r simulate.ReplayReport
	if err := json.Unmarshal(out.Bytes(), &r); err != nil || r.Check.Decisions < 5 || r.Check.Equal != r.Check.Decisions || len(r.Policies) != 2 {
		t.Errorf("estiba simulate replay: %v\n%s", err, out.String())
	}
}
