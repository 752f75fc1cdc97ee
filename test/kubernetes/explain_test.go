package kubernetes

import (
	"bytes"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/estiba/estiba/api/v1alpha1"
	"github.com/estiba/estiba/internal/cli"
)

// estiba runs a command against the cluster, as a person would who may do everything there.
func (s *scene) estiba(input string, args ...string) (int, string) {
	s.Setenv("KUBECONFIG", s.kubeconfig)
	var out bytes.Buffer
	code := cli.Main(append(args, "-n", s.namespace), strings.NewReader(input), &out, &out)
	return code, out.String()
}

// estiba explain asks the operator that leads through a forwarded port, has a
// worker read the header of what is not applied, and applies nothing.
func TestExplain(t *testing.T) {
	s := newScene(t)
	s.pool("explain", 1, "256Mi")
	s.model("explained", float32Model, "")
	s.model("explained-large", float32Model, "")
	s.kubectl("patch", "model", "explained-large", "--type=merge", "-p", `{"spec":{"context":{"sequences":4096}}}`)
	s.ready("explained")
	s.condition("explained-large", v1alpha1.ConditionReady, metav1.ConditionFalse, v1alpha1.ReasonDoesNotFit)
	proposal := modelManifest("proposed", float16Model, "")
	for _, c := range []struct {
		args, input string
		code        int
		says        []string
	}{
		{"explain model explained", "", 0, []string{"Model " + s.namespace + "/explained answers requests on explain-", "chosen: the only device with room"}},
		{"explain model explained-large", "", 0, []string{"is nowhere: it needs ", "Lower spec.context.sequences", "kubectl patch model explained-large -n " + s.namespace}},
		{"explain model explaned", "", 1, []string{"there is no Model " + s.namespace + "/explaned. Did you mean " + s.namespace + "/explained"}},
		{"explain pool explain", "", 0, []string{"Pool " + s.namespace + "/explain: 1 of 1 worker ready", "# " + s.namespace + "/explained ", "? " + s.namespace + "/explained-large"}},
		{"explain -f -", proposal, 0, []string{"Model " + s.namespace + "/proposed would go to explain-", "(estimated)"}},
		{"explain -f -", strings.Replace(proposal, "name: proposed", "name: Proposed", 1), 1, []string{"name"}},
		{"top", "", 0, []string{"Pool " + s.namespace + "/explain: 1 of 1 worker ready", "# on the device"}},
	} {
		code, out := s.estiba(c.input, strings.Fields(c.args)...)
		progress("  estiba %s\n%s", c.args, out)
		for _, want := range c.says {
			if code != c.code || !strings.Contains(out, want) {
				t.Errorf("estiba %s: exit %d, want %d with %q:\n%s", c.args, code, c.code, want, out)
			}
		}
	}
	if out := s.kubectl("get", "model", "-o", "name"); strings.Contains(out, "proposed") {
		t.Errorf("it was applied: %s", out)
	}
}
