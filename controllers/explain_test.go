package controllers

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/estiba/estiba/api/v1alpha1"
	"github.com/estiba/estiba/api/worker"
	"github.com/estiba/estiba/internal/fixture"
)

// TestExplain explains models in the stories of testdata/explain, which know these commands beside those of
// testdata/scenarios:
//
//	explain NAME [shape]    what estiba explain model prints; shape: the JSON instead
//	stowage                 what estiba top prints of pools
//	propose NAME size=GIB [priority=N] [min=0 max=1]
//	set-model NAME [never] [kv=GIB tokens=N sequences=N] [selector=VALUE]
//	set-pool NAME [headroom=5%] [moves=N] [namespace=NAME]
//	took NAME model=MODEL seconds=N    how long its last load took
//	template NAME invalid=WHY | blocked=WHY
func TestExplain(t *testing.T) {
	datadriven.Walk(t, "testdata/explain", func(t *testing.T, path string) {
		s := &explained{story: story{now: fixture.Epoch, epoch: 1, capacity: 80, sources: map[string]worker.Inspection{}, sent: map[string]worker.Assignment{},
			inspections: map[InspectKey]Inspected{}, held: map[string]int{}, hashes: map[string]string{}}, blocked: map[string]string{}}
		datadriven.RunTest(t, path, s.run)
	})
}

type explained struct {
	story
	blocked map[string]string // pool -> why it gets no worker
}

func (s *explained) seen() Seen {
	seen := s.story.seen()
	for i := range seen.Pools {
		seen.Pools[i].Blocked = s.blocked[seen.Pools[i].Name]
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
		for _, pool := range Unread(after, Key(&m)) {
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
				in.Footprint.KVFloorBytes, in.MaxTokens = int64(num("kv", 0))*gib, num("tokens", 4096)
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
			s.blocked[name] = strings.ReplaceAll(text("blocked"), "_", " ")
		}
		return "ok\n"
	case "took":
		s.pod(name).homes["default/"+text("model")].LoadSeconds = float64(num("seconds", 0))
		s.tick(t)
		return "ok\n"
	}
	return s.story.run(t, d)
}
