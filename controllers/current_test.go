package controllers

import (
	"strings"
	"testing"
	"time"

	"github.com/estiba/estiba/api/v1alpha1"
	"github.com/estiba/estiba/internal/fixture"
)

// TestAges: how long something has been so is reckoned until now, and not until the last report.
func TestAges(t *testing.T) {
	x := fixture.NewModel("x")
	fixture.Autoscaled(0, 1)(&x)
	h := resident(x, 10)
	h.ResidentSeconds, h.IdleSeconds, h.WantResident = 0.036, 0.02, false
	seen := seenWith([]v1alpha1.Model{x}, reporting("w1", 1, 1, h))
	seen.Now = fixture.Epoch.Add(100 * time.Second)
	if text := StowageOf(seen)[0].Text(); !strings.Contains(text, "# default/x 10 GiB, resident for 100 s\n") {
		t.Error(text)
	}
	e := Explain(seen, "default/x").Text(true)
	for _, says := range []string{"resident, 10 GiB, for 100 s", "the last request ended 100 s ago"} {
		if !strings.Contains(e, says) {
			t.Errorf("no %q in\n%s", says, e)
		}
	}
}
