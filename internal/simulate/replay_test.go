package simulate

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/estiba/estiba/api/worker"
	"github.com/estiba/estiba/controllers"
	"github.com/estiba/estiba/internal/fixture"
	"github.com/estiba/estiba/internal/history"
)

// recordHistory lives through a story of a few minutes and keeps its decisions in
// dir: models of 5 to 30 GiB come to two workers of 80 GiB, one a few seconds, and some go.
func recordHistory(t *testing.T, dir string) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) { liveThrough(t, dir) })
}

func liveThrough(t *testing.T, dir string) {
	const gib = 1 << 30
	recorder := history.NewRecorder(history.RecorderOptions{Dir: dir})
	go recorder.Run(t.Context())
	pool := controllers.Pool{InferencePool: fixture.NewPool("p", 2, 2), Hash: "h"}
	workers := map[string]*worker.State{}
	for _, name := range []string{"w-1", "w-2"} {
		workers[name] = &worker.State{Worker: name, Pool: "default/p", Instance: name, Devices: []worker.Device{{Name: "gpu-0", Kind: "cuda", ExtentBytes: 2 << 20, CapacityBytes: 80 * gib}}}
	}
	seen := controllers.Seen{Now: fixture.Epoch, Epoch: 1, Settled: true, Pools: []controllers.Pool{pool}, Inspections: map[controllers.InspectKey]controllers.Inspected{}}
	for i := range 60 {
		if i%5 == 0 && i < 50 {
			m := fixture.NewModel(fmt.Sprintf("m%d", i/5))
			m.Status.ObservedGeneration = 1
			seen.Models = append(seen.Models[:len(seen.Models):len(seen.Models)], m)
			seen.Inspections[controllers.InspectKey{Pool: "default/p", Revision: controllers.Revision(&m)}] = controllers.Inspected{
				At: seen.Now, Result: worker.Inspection{MaxTokens: 512, Footprint: worker.Footprint{WeightsBytes: []int64{30, 10, 5}[i/5%3] * gib}}}
		}
		if i == 30 {
			seen.Models = seen.Models[1:len(seen.Models):len(seen.Models)]
		}
		seen.Now = seen.Now.Add(time.Second)
		seen.Workers = nil
		for name, s := range workers {
			report := *s
			seen.Workers = append(seen.Workers, controllers.Worker{Name: name, Pool: "default/p", Hash: "h", Running: true, Connected: true, Heard: seen.Now, Report: &report})
		}
		plan := controllers.Decide(seen)
		recorder.Decided(seen, plan)
		synctest.Wait()
		seen.Memory = plan.Memory
		for name, a := range plan.Assignments {
			s := *workers[name]
			s.Epoch, s.Generation, s.Homes = a.Epoch, a.Generation, nil
			for _, h := range a.Homes {
				in := seen.Inspections[controllers.InspectKey{Pool: "default/p", Revision: h.Revision}].Result
				s.Homes = append(s.Homes, worker.HomeState{Model: h.Model, Revision: h.Revision, Devices: h.Devices, Phase: worker.PhaseResident, Tier: worker.TierDevice, Footprint: in.Footprint, WantResident: h.Resident})
			}
			workers[name] = &s
		}
	}
}

func TestReplay(t *testing.T) {
	dir := t.TempDir()
	recordHistory(t, dir)
	var out, progress bytes.Buffer
	err := Replay(t.Context(), &out, &progress, ReplayOptions{History: dir, Policies: []string{Own, "WorstFit"}, JSON: true})
	if err != nil {
		t.Fatal(err, out.String())
	}
	var r ReplayReport
	if err := json.Unmarshal(out.Bytes(), &r); err != nil {
		t.Fatal(err)
	}
	if r.Check.Decisions < 10 || r.Check.Equal != r.Check.Decisions {
		t.Errorf("check: %+v", r.Check)
	}
	own, worst := r.Policies[0], r.Policies[1]
	if own.Placed < 8 || own.Placed > 12 || own.Devices != 2 || own.Homes < 4 {
		t.Errorf("%+v", own)
	}
	// Where it is put first on what is emptiest, both devices are in use from the second model on.
	if worst.Used <= own.Used {
		t.Errorf("devices in use: %.2f with WorstFit, %.2f with the operator's own", worst.Used, own.Used)
	}
	out.Reset()
	if err := Replay(t.Context(), &out, io.Discard, ReplayOptions{History: dir, Policies: []string{Own}}); err != nil || !strings.Contains(out.String(), "UNPLACED") {
		t.Error(err, out.String())
	}
}

// A decision that comes out otherwise is named.
func TestReplayNamesDifferences(t *testing.T) {
	dir := t.TempDir()
	recordHistory(t, dir)
	var text bytes.Buffer
	n := 0
	err := history.ReadPath(t.Context(), dir, func(d history.Decision) error {
		plan := controllers.Decide(d.Seen)
		if len(plan.Assignments) > 0 && n == 0 {
			n++
			for name, a := range plan.Assignments {
				a.Generation++
				plan.Assignments[name] = a
			}
		}
		return history.Write(&text, d.Seq, d.Seen, plan)
	})
	if err != nil || n == 0 {
		t.Fatal(n, err)
	}
	file := filepath.Join(t.TempDir(), "h.jsonl")
	if err := os.WriteFile(file, text.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	err = Replay(t.Context(), &out, io.Discard, ReplayOptions{History: file, Policies: []string{Own}})
	if err == nil || !strings.Contains(err.Error(), "1 of ") || !strings.Contains(out.String(), "Assignments w-") {
		t.Errorf("%v\n%s", err, out.String())
	}
}

// TestReplayTellsOfACut: the decisions before it are replayed, and it is said that the last one is torn.
func TestReplayTellsOfACut(t *testing.T) {
	dir := t.TempDir()
	recordHistory(t, dir)
	files, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil || len(files) != 1 {
		t.Fatal(files, err)
	}
	info, err := os.Stat(files[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(files[0], info.Size()-20); err != nil {
		t.Fatal(err)
	}
	var progress bytes.Buffer
	if err := Replay(t.Context(), io.Discard, &progress, ReplayOptions{History: dir, Policies: []string{Own}}); err != nil || !strings.Contains(progress.String(), "warning: read "+files[0]+": it ends within a decision") {
		t.Errorf("%v\n%s", err, progress.String())
	}
}
