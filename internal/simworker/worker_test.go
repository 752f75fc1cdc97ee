package simworker

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	api "github.com/estiba/estiba/api/worker"
	"github.com/estiba/estiba/internal/fleet"
)

func token(pool string) string { return "of " + pool }

// start starts a worker with 80 GiB that takes no time.
func start(t *testing.T, o Options) (*Fleet, *Worker) {
	t.Helper()
	o.Token = token
	f := New(o)
	t.Cleanup(f.Close)
	w, err := f.Start("w", "default/p")
	if err != nil {
		t.Fatal(err)
	}
	return f, w
}

// assignment of homes such as "a-7Gi", or "a-7Gi*" for one that may sleep.
func assignment(w *Worker, generation int64, names ...string) api.Assignment {
	a := api.Assignment{Epoch: 1, Generation: generation, Instance: w.State().Instance}
	for _, n := range names {
		name, sleeps := strings.CutSuffix(n, "*")
		a.Homes = append(a.Homes, api.Home{Model: "default/" + name, Revision: "1", Devices: []string{"gpu-0"}, Source: api.Source{URI: "file:///models/" + name}, Resident: !sleeps})
	}
	return a
}

// holds is what a worker reports: "a-7Gi=Resident b-9Gi=Idle, 7 GiB used".
func holds(w *Worker) string {
	s := w.State()
	var b strings.Builder
	for _, h := range s.Homes {
		fmt.Fprintf(&b, "%s=%s ", strings.TrimPrefix(h.Model, "default/"), h.Phase)
	}
	return fmt.Sprintf("%s%d GiB", b.String(), s.Devices[0].UsedBytes>>30)
}

func TestAssignments(t *testing.T) {
	_, w := start(t, Options{})
	take := func(a api.Assignment, reason, want string) {
		t.Helper()
		switch no := w.assign(a); {
		case no == nil && reason != "":
			t.Errorf("taken, want it refused as %s", reason)
		case no != nil && (no.Reason != reason || no.Instance != w.State().Instance):
			t.Errorf("refused: %+v", no)
		}
		if got := holds(w); got != want {
			t.Errorf("holds %s, want %s", got, want)
		}
	}
	take(assignment(w, 2, "a-50Gi", "b-20Gi*", "c-20Gi*"), "", "a-50Gi=Resident b-20Gi=Idle c-20Gi=Idle 50 GiB")
	w.Ask("default/b-20Gi", 1)
	take(assignment(w, 1), api.RefusedOlder, "a-50Gi=Resident b-20Gi=Resident c-20Gi=Idle 70 GiB")
	w.Ask("default/b-20Gi", 0)
	w.Ask("default/c-20Gi", 1)                                                       // takes the place of b
	take(assignment(w, 2), "", "a-50Gi=Resident b-20Gi=Idle c-20Gi=Resident 70 GiB") // known already
	w.Ask("default/c-20Gi", 0)
	take(assignment(w, 3, "a-50Gi", "huge-70Gi"), "", "a-50Gi=Resident huge-70Gi=Refused 50 GiB")
	old := assignment(w, 4, "a-50Gi")
	w.Restart()
	take(old, api.RefusedInstance, "0 GiB")
	take(assignment(w, 1, "x"), "", "x=Failed 0 GiB")
	if n := len(w.Refusals()); n != 2 {
		t.Errorf("%d refusals", n)
	}
}

// What it has to let go ends its requests first.
func TestLetsGo(t *testing.T) {
	_, w := start(t, Options{})
	w.assign(assignment(w, 1, "a-7Gi"))
	w.Ask("default/a-7Gi", 1)
	w.assign(assignment(w, 2))
	if got := holds(w); got != "a-7Gi=Draining 7 GiB" {
		t.Errorf("holds %s", got)
	}
	if w.Ask("default/a-7Gi", 2) {
		t.Error("it takes requests")
	}
	w.Ask("default/a-7Gi", 0)
	if got := holds(w); got != "0 GiB" {
		t.Errorf("holds %s", got)
	}
}

// The operator's own client follows workers, each at its address.
func TestWire(t *testing.T) {
	workers, w := start(t, Options{Bandwidth: 100 << 30})
	other, err := workers.Start("v", "default/q")
	if err != nil {
		t.Fatal(err)
	}
	f := fleet.New(fleet.NewClient(nil), fleet.Options{})
	defer f.Sync(nil)
	var targets []fleet.Target
	for _, w := range []*Worker{w, other} {
		targets = append(targets, fleet.Target{Worker: w.Name(), Pool: w.pool, URL: fmt.Sprintf("http://%s:%d", w.Address(), Port), Token: token(w.pool)})
	}
	f.Sync(targets)
	f.Send("w", assignment(w, 1, "a-7Gi"))
	eventually(t, f, "w holds a", func(r map[string]fleet.Report) bool {
		homes := r["w"].State.Homes
		return r["v"].Connected && len(homes) == 1 && homes[0].Phase == api.PhaseResident && homes[0].Footprint.Total() == 7<<30 && homes[0].LoadSeconds > 0
	})
	in, err := f.Inspect(t.Context(), "v", api.InspectRequest{Source: api.Source{URI: "file:///models/x-300Mi"}})
	if err != nil || in.Footprint.Total() != 300<<20 {
		t.Errorf("inspection %+v, %v", in, err)
	}

	post := func(model string) int {
		req, _ := http.NewRequestWithContext(t.Context(), "POST", targets[0].URL+"/v1/completions", strings.NewReader("{}"))
		req.Header.Set(api.HeaderModel, model)
		res, err := f.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		return res.StatusCode
	}
	if a, b := post("default/a-7Gi"), post("default/b-7Gi"); a != 200 || b != api.StatusLacks {
		t.Errorf("requests are answered with %d and %d", a, b)
	}
	w.Restart()
	eventually(t, f, "another process", func(r map[string]fleet.Report) bool {
		return r["w"].State.Instance == "w.2" && len(r["w"].State.Homes) == 0
	})
	workers.Stop("w")
	eventually(t, f, "silence", func(r map[string]fleet.Report) bool { return !r["w"].Connected && r["v"].Connected })

	targets[1].Token = "another"
	f.Sync(targets)
	eventually(t, f, "no token", func(r map[string]fleet.Report) bool {
		return r["v"].Err != nil && strings.Contains(r["v"].Err.Error(), "token was not accepted")
	})
}

func eventually(t *testing.T, f *fleet.Fleet, what string, ok func(map[string]fleet.Report) bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for {
		all := map[string]fleet.Report{}
		for _, r := range f.Workers() {
			all[r.Worker] = r
		}
		if ok(all) {
			return
		}
		select {
		case <-f.Changed():
		case <-ctx.Done():
			t.Fatalf("waited in vain for %s: %+v", what, all)
		}
	}
}
