package controllers

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"
	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/estiba/estiba/api/v1alpha1"
	"github.com/estiba/estiba/api/worker"
	"github.com/estiba/estiba/internal/fixture"
	"github.com/estiba/estiba/internal/status"
)

// TestExplain explains models in the stories of testdata/explain, which know these commands beside those of
// testdata/scenarios:
//
//	explain NAME [shape]    what estiba explain model prints; shape: the JSON instead
//	stowage                 what estiba top prints of pools
//	propose NAME size=GIB [priority=N] [min=0 max=1]
//	set-model NAME [never] [kv=GIB tokens=N own=N sequences=N] [selector=VALUE]
//	set-pool NAME [headroom=5%] [moves=N] [device=GIB]
//	set-pool NAME blocked=WHY          no worker can be made; _ stands for a space
//	set-pool NAME divided=GIB [made-up] [most=GIB limit=GIB]    its workers are of one process, which may have so much
//	took NAME model=MODEL seconds=N    how long its last load took
//	spoil URI reason=REASON message=TEXT
func TestExplain(t *testing.T) {
	datadriven.Walk(t, "testdata/explain", func(t *testing.T, path string) {
		s := &explained{story: story{now: fixture.Epoch, epoch: 1, capacity: 80, sources: map[string]worker.Inspection{}, sent: map[string]worker.Assignment{},
			inspections: map[InspectKey]Inspected{}, held: map[string]int{}, hashes: map[string]string{}}, blocked: map[string]string{}, bounds: map[string][2]int64{}, divided: map[string]int64{}, madeUp: map[string]bool{}}
		datadriven.RunTest(t, path, s.run)
	})
}

type explained struct {
	story
	blocked map[string]string // pool -> why it gets no worker
	divided map[string]int64  // pool -> bytes
	madeUp  map[string]bool   // pools
	bounds  map[string][2]int64
}

func (s *explained) seen() Seen {
	seen := s.story.seen()
	for i := range seen.Pools {
		name := seen.Pools[i].Name
		seen.Pools[i].Blocked, seen.Pools[i].Divided, seen.Pools[i].MadeUp = s.blocked[name], s.divided[name], s.madeUp[name]
		seen.Pools[i].Most, seen.Pools[i].Limit = s.bounds[name][0], s.bounds[name][1]
	}
	return seen
}

func (s *explained) run(t *testing.T, d *datadriven.TestData) string {
	name := ""
	if len(d.CmdArgs) > 0 && len(d.CmdArgs[0].Vals) == 0 {
		name = d.CmdArgs[0].Key
	}
	num := func(key string, or int) int {
		if d.HasArg(key) {
			d.ScanArgs(t, key, &or)
		}
		return or
	}
	text := func(key string) (v string) {
		if d.HasArg(key) {
			d.ScanArgs(t, key, &v)
		}
		return v
	}
	switch d.Cmd {
	case "explain":
		e := Explain(s.seen(), "default/"+name)
		if d.HasArg("shape") {
			b, err := json.MarshalIndent(e, "", "  ")
			if err != nil {
				t.Fatal(err)
			}
			return string(b) + "\n"
		}
		return e.Text(true)
	case "stowage":
		var b strings.Builder
		for _, p := range StowageOf(s.seen()) {
			b.WriteString(p.Text())
		}
		return b.String()
	case "propose":
		m := fixture.NewModel(name)
		m.Spec.Priority = int32(num("priority", 0))
		if d.HasArg("max") {
			fixture.Autoscaled(int32(num("min", 0)), int32(num("max", 1)))(&m)
		}
		before := s.seen()
		after := Propose(before, m, nil)
		found := map[string]worker.Inspection{}
		ask, rest := Unread(after, Key(&m))
		for _, pool := range append(ask, rest...) {
			found[pool] = worker.Inspection{Footprint: worker.Footprint{WeightsBytes: int64(num("size", 0)) * gib}, MaxTokens: 512}
		}
		return ExplainProposal(before, Propose(before, m, found), Key(&m)).Text(true)
	case "set-model":
		for i := range s.models {
			m := &s.models[i]
			if m.Name != name {
				continue
			}
			if d.HasArg("never") {
				m.Spec.Eviction = v1alpha1.EvictNever
			}
			if v := text("selector"); v != "" {
				m.Spec.PoolSelector = &metav1.LabelSelector{MatchLabels: map[string]string{"tier": v}}
			}
			if d.HasArg("kv") {
				m.Spec.Context = v1alpha1.Context{MaxTokens: int32(num("tokens", 4096)), Sequences: int32(num("sequences", 1))}
				in := s.sources[m.Spec.Source.URI]
				in.Footprint.KVFloorBytes, in.MaxTokens = int64(num("kv", 0))*gib, num("own", num("tokens", 4096))
				s.sources[m.Spec.Source.URI] = in
			}
		}
		return "ok\n"
	case "set-pool":
		for i := range s.pools {
			p := &s.pools[i]
			if p.Name != name {
				continue
			}
			if d.HasArg("headroom") {
				p.Spec.Memory.Headroom = text("headroom")
			}
			if d.HasArg("moves") {
				n := int32(num("moves", 0))
				p.Spec.Moves.MaxPerHour = &n
			}
			if d.HasArg("device") {
				p.Spec.Device.Memory = resource.NewQuantity(int64(num("device", 0))*gib, resource.BinarySI)
			}
			s.bounds[name] = [2]int64{int64(num("most", 0)) * gib, int64(num("limit", 0)) * gib}
			s.divided[name], s.madeUp[name] = int64(num("divided", 0))*gib, d.HasArg("made-up")
			s.blocked[name] = strings.ReplaceAll(text("blocked"), "_", " ")
		}
		return "ok\n"
	case "spoil":
		s.sources[name] = worker.Inspection{Error: &worker.InspectError{Reason: text("reason"), Message: strings.ReplaceAll(text("message"), "_", " ")}}
		return "ok\n"
	case "took":
		s.pod(name).homes["default/"+text("model")].LoadSeconds = float64(num("seconds", 0))
		s.tick(t)
		return "ok\n"
	}
	return s.story.run(t, d)
}

// TestRefusedForGood: a worker refuses what it has a home for, and no device could hold it: nothing but a change
// of a spec helps, so that requests are not held. Where another device could, they are.
func TestRefusedForGood(t *testing.T) {
	x := fixture.NewModel("x")
	h := resident(x, 90)
	h.Phase, h.Tier, h.Reason, h.Message = worker.PhaseRefused, worker.TierDisk, worker.ReasonDoesNotFit, "Needs 90 GiB; gpu-0 has 80 GiB in all."
	for name, c := range map[string]struct {
		others  []Worker
		stalled bool
		message string
	}{
		"nowhere":   {nil, true, "Needs 90 GiB; the largest device of its pools has 80 GiB. Another worker of pool p would not help. Refused by worker w1: Needs 90 GiB; gpu-0 has 80 GiB in all."},
		"elsewhere": {[]Worker{larger("w2")}, false, "Refused by worker w1: Needs 90 GiB; gpu-0 has 80 GiB in all."},
	} {
		seen := seenWith([]v1alpha1.Model{x}, append([]Worker{reporting("w1", 1, 1, h)}, c.others...)...)
		seen.Inspections = inspected(90, x)
		conditions := Decide(seen).Models[0].Conditions
		ready, stalled := status.Find(conditions, v1alpha1.ConditionReady), status.Find(conditions, v1alpha1.ConditionStalled)
		if ready.Reason != v1alpha1.ReasonDoesNotFit || ready.Message != c.message || (stalled.Status == metav1.ConditionTrue) != c.stalled {
			t.Errorf("%s: %s, stalled %s: %s", name, ready.Reason, stalled.Status, ready.Message)
		}
	}
}

// larger is a worker with a device of 100 GiB.
func larger(name string) Worker {
	w := reporting(name, 1, 1)
	w.Report.Devices[0].CapacityBytes = 100 * gib
	return w
}

// TestReread: what is said of files that cannot be used is what happens: they are read again without a change of the spec.
func TestReread(t *testing.T) {
	x := fixture.NewModel("x")
	h := resident(x, 10)
	h.Phase, h.Tier = worker.PhaseFailed, worker.TierNone
	placed := seenWith([]v1alpha1.Model{x}, reporting("w1", 1, 1, h))
	unread := seenWith([]v1alpha1.Model{x}, reporting("w1", 1, 1))
	for _, c := range []struct{ reason, placed, unread string }{
		{worker.ReasonInvalidModel, "they are read again within five minutes", "they are read again within a minute"},
		{worker.ReasonDigestMismatch, "they are read again within five minutes", "they are read again within a minute"},
		{worker.ReasonSourceUnavailable, "it is tried again within a minute", "it is tried again within a minute"},
	} {
		placed.Workers[0].Report.Homes[0].Reason = c.reason
		unread.Inspections = map[InspectKey]Inspected{{"default/p", Revision(&x)}: {At: fixture.Epoch, Result: worker.Inspection{Error: &worker.InspectError{Reason: c.reason, Message: "m"}}}}
		if e := Explain(placed, "default/x"); e.Reason != c.reason || !strings.Contains(e.Text(false), c.placed) || strings.Contains(e.Text(false), "change the spec") {
			t.Errorf("%s at a home: %s", c.reason, e.Text(false))
		}
		if e := Explain(unread, "default/x"); e.Reason != c.reason || !strings.Contains(e.Text(false), c.unread) {
			t.Errorf("%s without a home: %s", c.reason, e.Text(false))
		}
	}
}

// TestExplanations: of any cluster, every Model is explained in whole sentences,
// by what Decide says of it, and one that does not answer has something to do.
func TestExplanations(t *testing.T) {
	for seed := range uint64(1000) {
		r := rand.New(rand.NewPCG(seed, 3))
		seen := random(r)
		plan := Decide(seen)
		for i := range seen.Models {
			key := Key(&seen.Models[i])
			e := Explain(seen, key)
			c := status.Find(plan.Models[i].Conditions, v1alpha1.ConditionReady)
			if e.Reason != c.Reason || e.Ready != (c.Status == metav1.ConditionTrue) {
				t.Fatalf("seed %d: %s is %s, and explained as %s", seed, key, c.Reason, e.Reason)
			}
			if !e.Ready && len(e.Do) == 0 {
				t.Fatalf("seed %d: nothing to do:\n%s", seed, e.Text(true))
			}
			wellFormed(t, seed, e.Answer)
			for _, a := range e.Do {
				wellFormed(t, seed, a.What)
			}
			wellFormed(t, seed, e.Text(true)+".")
		}
		for _, p := range StowageOf(seen) {
			for _, q := range p.Pending {
				wellFormed(t, seed, q.Why)
			}
		}
		m := fixture.NewModel("proposed")
		after := Propose(seen, m, map[string]worker.Inspection{"default/p": {Footprint: worker.Footprint{WeightsBytes: int64(r.IntN(100)) * gib, KVFloorBytes: gib}, MaxTokens: 512}})
		wellFormed(t, seed, ExplainProposal(seen, after, Key(&m)).Answer)
		if diff := cmp.Diff(plan, Decide(seen)); diff != "" {
			t.Fatalf("seed %d: an explanation changes what it is about: %s", seed, diff)
		}
	}
}

// TestRefused: a home whose worker has no room for it now waits, and the reason why it was chosen outlives that.
func TestRefused(t *testing.T) {
	x := fixture.NewModel("x")
	h := resident(x, 10)
	seen := seenWith([]v1alpha1.Model{x}, reporting("w1", 1, 1, h))
	chosen := v1alpha1.Placement{Pool: "default/p", Worker: "w1", Devices: h.Devices, State: v1alpha1.PlacementResident, Reason: "the only device with room: 5 GiB left"}
	seen.Models[0].Status.Placements = []v1alpha1.Placement{chosen}
	is := &seen.Workers[0].Report.Homes[0]
	for _, c := range []struct {
		phase          worker.Phase
		state          v1alpha1.PlacementState
		message, lines string
	}{
		{worker.PhaseRefused, v1alpha1.PlacementWaiting, "needs 10 GiB. It waits for its turn.", "- default/x 10 GiB, waiting for room, 1 request; needs 10 GiB. It waits for its turn\n"},
		{worker.PhaseResident, v1alpha1.PlacementResident, "", "# default/x 10 GiB, resident, 1 request\n"},
	} {
		is.Phase, is.Message, is.Waiting, is.ResidentSeconds = c.phase, c.message, 1, 0
		plan := Decide(seen)
		seen.Models[0].Status = plan.Models[0]
		if p := plan.Models[0].Placements; len(p) != 1 || p[0].State != c.state || p[0].Reason != chosen.Reason {
			t.Errorf("%s: %+v, want %s, %q", c.phase, p, c.state, chosen.Reason)
		}
		if text := StowageOf(seen)[0].Text(); !strings.Contains(text, c.lines) {
			t.Errorf("%s: no %q in\n%s", c.phase, c.lines, text)
		}
	}
	if e := Explain(seen, "default/x").Text(true); !strings.Contains(e, "chosen: the only device with room: 5 GiB left then\n") {
		t.Error(e)
	}
}

// TestRefusedDevices: each device has a reason of its own, also those of the worker where the model is.
func TestRefusedDevices(t *testing.T) {
	x, y := fixture.NewModel("x"), fixture.NewModel("y")
	other := resident(y, 70)
	other.Devices = []string{"gpu-1"}
	w := reporting("w1", 1, 1, resident(x, 50), other)
	for _, name := range []string{"gpu-1", "gpu-2"} {
		w.Report.Devices = append(w.Report.Devices, worker.Device{Name: name, ExtentBytes: gib, CapacityBytes: 80 * gib})
	}
	seen := seenWith([]v1alpha1.Model{x, y}, w)
	const full, free = "1 full now: w1/gpu-1 (10 GiB of 80 GiB free; default/y 70 GiB)\n", "1 that could hold it too: w1/gpu-2 (80 GiB of 80 GiB free)\n"
	if e := Explain(seen, "default/x").Text(true); !strings.Contains(e, full) || !strings.Contains(e, free) {
		t.Error(e)
	}
	fixture.Replicas(2)(&seen.Models[0])
	if e := Explain(seen, "default/x").Text(true); !strings.Contains(e, "2 on workers that hold a replica already: w1/gpu-2") {
		t.Error(e)
	}
}

// TestControlCharacters: nothing that others wrote moves the cursor, or begins a line.
func TestControlCharacters(t *testing.T) {
	e := Explanation{Model: "x", Answer: "no\x1b[2J", Reason: "a\nb", Do: []Action{{What: "make file:///\x1b]0;t\x07 readable\nnow"}}}
	s := Stowage{Pool: "p", Message: "\u202e\r", Devices: []Deck{{Worker: "w", State: "waits: \x9b1m\n"}}, Pending: []Pending{{Model: "m", Why: "a\nb"}}}
	for text, lines := range map[string]int{e.Text(true): 6, s.Text(): 4} {
		if strings.ContainsAny(text, "\x1b\x07\r\u202e\u009b") || strings.Count(text, "\n") != lines {
			t.Errorf("%q, want %d lines", text, lines)
		}
	}
}

// TestStowageIsBounded: a terminal shows so much of a pool, and says how much there is beside.
func TestStowageIsBounded(t *testing.T) {
	s := Stowage{Pool: "default/a", Ready: true, Workers: 150}
	for i := range 150 {
		s.Devices = append(s.Devices, Deck{Worker: fmt.Sprint("a-", i), Device: "gpu-0", Capacity: gib})
		s.Pending = append(s.Pending, Pending{Model: fmt.Sprint("default/m", i), Reason: "DoesNotFit", Why: "it needs 2 GiB."})
	}
	text := s.Text()
	for _, line := range []string{"  and 50 devices more; --json shows all\n", "  ? and 130 models more; --json shows all\n"} {
		if !strings.Contains(text, line) {
			t.Errorf("no %q in\n%s", line, text)
		}
	}
	if n := strings.Count(text, "\n"); n != 1+101+21 {
		t.Errorf("%d lines", n)
	}
}

func wellFormed(t *testing.T, seed uint64, text string) {
	t.Helper()
	for _, bad := range []string{"%!", "..", " .", ",,", ": .", "()", "<nil>", "-1 "} {
		if strings.Contains(text, bad) {
			t.Fatalf("seed %d: %q in\n%s", seed, bad, text)
		}
	}
	if !strings.HasSuffix(text, ".") && !strings.HasSuffix(text, "?") {
		t.Fatalf("seed %d: no sentence: %s", seed, text)
	}
}

// BenchmarkExplain explains one of 10,000 Models on 1,000 workers, and tells of all.
func BenchmarkExplain(b *testing.B) {
	seen := settledCrowd(b)
	b.Run("model", func(b *testing.B) {
		for b.Loop() {
			Explain(seen, Key(&seen.Models[len(seen.Models)/2]))
		}
	})
	b.Run("stowage", func(b *testing.B) {
		for b.Loop() {
			StowageOf(seen)
		}
	})
}
