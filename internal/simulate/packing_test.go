package simulate

import (
	"bytes"
	"context"
	"encoding/json"
	"encoding/xml"
	"errors"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/estiba/estiba/internal/fixture"
)

// A node of two GPUs and one of four, and pods that ask for half of them.
const (
	fewNodes = nodesHead + "b,64000,262144,4,T4\na,32000,262144,2,P100\nc,32000,262144,0,\n"
	fewPods  = podsHead + "whole,4000,1024,2,1000,\nhalf,4000,1024,1,500,\nt4,4000,1024,1,500,T4|V100\ncpu,1000,1024,0,0,\n"
)

func few(t *testing.T) Options {
	t.Helper()
	dir := t.TempDir()
	o := Options{
		Nodes: filepath.Join(dir, "nodes.csv"), Pods: filepath.Join(dir, "pods.csv"), Policies: []string{Own}, Seeds: []int64{1}, Demand: 0.5,
		Plot: filepath.Join(dir, "plot.svg"), JSON: true,
	}
	fixture.WriteFile(t, o.Nodes, []byte(fewNodes))
	fixture.WriteFile(t, o.Pods, []byte(fewPods))
	return o
}

func TestPackingJSON(t *testing.T) {
	o := few(t)
	var out, progress bytes.Buffer
	if err := Packing(t.Context(), &out, &progress, o); err != nil {
		t.Fatal(err)
	}
	var one map[string]any
	if err := json.Unmarshal(out.Bytes(), &one); err != nil {
		t.Fatal(err)
	}
	delete(one, "decision_p50_us")
	delete(one, "decision_p99_us")
	delete(one, "fragmentation_percent")
	delete(one, "curve")
	want := map[string]any{
		"policy": "Estiba", "seeds": []any{1.0}, "demand_percent": 50.0, "ties": "first", "allocated_percent": 50.0, "allocated_least": 50.0, "allocated_most": 50.0,
		"placed": 4.0, "failed": 0.0, "moves": 0.0,
	}
	if d := cmp.Diff(want, one); d != "" {
		t.Error(d)
	}
	if !strings.Contains(progress.String(), "Estiba, seed 1 (1 of 1): 50.00 % allocated, 0 moves\n") {
		t.Error(progress.String())
	}
	checkSVG(t, o.Plot, "Estiba", "asked for, % of all GPUs")
}

func TestPackingTable(t *testing.T) {
	o := few(t)
	o.JSON, o.Policies, o.Seeds, o.Demand = false, append([]string{Own}, Baselines...), []int64{1, 2, 3}, 2
	var out bytes.Buffer
	if err := Packing(t.Context(), &out, io.Discard, o); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	if len(lines) != len(o.Policies)+2 || !strings.HasPrefix(lines[0], "POLICY") || lines[len(lines)-1] != "Demand 200 % of the GPUs, ties first, 3 seeds." {
		t.Errorf("%d lines:\n%s", len(lines), out.String())
	}
	for i, policy := range o.Policies {
		if !strings.HasPrefix(lines[i+1], policy+" ") {
			t.Errorf("line %d: %s, want %s", i+1, lines[i+1], policy)
		}
	}
	checkSVG(t, o.Plot, o.Policies...)

	o.JSON = true
	out.Reset()
	if err := Packing(t.Context(), &out, io.Discard, o); err != nil {
		t.Fatal(err)
	}
	var several struct{ Policies []Report }
	if err := json.Unmarshal(out.Bytes(), &several); err != nil || len(several.Policies) != len(o.Policies) {
		t.Errorf("%v: %s", err, out.String())
	}
}

func TestPackingStops(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Packing(ctx, io.Discard, io.Discard, few(t)); !errors.Is(err, context.Canceled) || err.Error() != "interrupted" {
		t.Error(err)
	}
	o := few(t)
	o.Plot = filepath.Join(o.Plot, "below", "nowhere.svg")
	if err := Packing(t.Context(), io.Discard, io.Discard, o); err == nil || !strings.Contains(err.Error(), "there is no folder") {
		t.Error(err)
	}
}

// TestPlotSparesInput: a plot under the name of a file that is read, or behind a link to it, would destroy it.
func TestPlotSparesInput(t *testing.T) {
	o := few(t)
	link := filepath.Join(filepath.Dir(o.Plot), "link.svg")
	if err := os.Symlink(o.Pods, link); err != nil {
		t.Fatal(err)
	}
	hard := filepath.Join(filepath.Dir(o.Plot), "hard.svg")
	if err := os.Link(o.Nodes, hard); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{o.Nodes, o.Pods, link, hard} {
		o.Plot = path
		if err := Packing(t.Context(), io.Discard, io.Discard, o); err == nil || !strings.Contains(err.Error(), "which is read: give the plot another name") {
			t.Errorf("%s: %v", path, err)
		}
	}
	if text, err := os.ReadFile(o.Pods); err != nil || string(text) != fewPods {
		t.Errorf("the pods are now %q, %v", text, err)
	}
}

// TestPlotSparesReadOnly: what nobody may write to stays, for root too.
func TestPlotSparesReadOnly(t *testing.T) {
	o := few(t)
	fixture.WriteFile(t, o.Plot, []byte("kept"))
	if err := os.Chmod(o.Plot, 0o444); err != nil {
		t.Fatal(err)
	}
	if err := Packing(t.Context(), io.Discard, io.Discard, o); err == nil {
		t.Error("it was written")
	}
	if text, err := os.ReadFile(o.Plot); err != nil || string(text) != "kept" {
		t.Errorf("%q, %v", text, err)
	}
}

// TestNothingFits is said, and not left to a table of zeros.
func TestNothingFits(t *testing.T) {
	o := few(t)
	fixture.WriteFile(t, o.Pods, []byte(podsHead+"large,4000,1024,8,1000,\nother,4000,1024,1,500,A100\ncpu,1000,1024,0,0,\n"))
	if err := Packing(t.Context(), io.Discard, io.Discard, o); err == nil || !strings.Contains(err.Error(), "no pod that asks for a GPU fits any node") {
		t.Error(err)
	}
}

// TestLabels: ticks that are close to one another read differently.
func TestLabels(t *testing.T) {
	a := chart{lines: []line{{points: []point{{0, 0.2}, {1, 0.26}}}}}.scale(func(p point) float64 { return p.y })
	var got []string
	for _, v := range a.ticks() {
		got = append(got, a.label(v))
	}
	if want := "0.20 0.21 0.22 0.23 0.24 0.25 0.26"; strings.Join(got, " ") != want {
		t.Errorf("%v, want %s", got, want)
	}
}

// TestCurveBegins: nothing is asked for, nothing is allocated.
func TestCurveBegins(t *testing.T) {
	c := &curve{total: 1000}
	c.add(4, 4)
	c.add(10, 10)
	if got := c.points(); got[0] != (Point{}) || got[1] != (Point{1, 1}) {
		t.Error(got)
	}
}

// checkSVG reads a plot as XML and looks for its texts.
func checkSVG(t *testing.T, path string, texts ...string) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for d := xml.NewDecoder(bytes.NewReader(data)); ; {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if text, ok := token.(xml.CharData); ok {
			found = append(found, string(text))
		}
	}
	for _, text := range texts {
		if !slices.Contains(found, text) {
			t.Errorf("the plot does not say %q", text)
		}
	}
	if bytes.Contains(data, []byte("NaN")) || bytes.Contains(data, []byte("Inf")) {
		t.Error("the plot has a number that is none")
	}
}

func TestScale(t *testing.T) {
	for _, c := range []struct {
		values []float64
		want   []float64
	}{
		{nil, []float64{0, 0.2, 0.4, 0.6, 0.8, 1}},
		{[]float64{70, 130}, []float64{70, 80, 90, 100, 110, 120, 130}},
		{[]float64{0, 0}, []float64{0, 0.2, 0.4, 0.6, 0.8, 1}},
		{[]float64{87.4, 95.6}, []float64{86, 88, 90, 92, 94, 96}},
		{[]float64{0, 3414}, []float64{0, 500, 1000, 1500, 2000, 2500, 3000, 3500}},
	} {
		l := line{}
		for _, v := range c.values {
			l.points = append(l.points, point{0, v})
		}
		got := chart{lines: []line{l}}.scale(func(p point) float64 { return p.y }).ticks()
		if !slices.EqualFunc(got, c.want, func(a, b float64) bool { return math.Abs(a-b) < 1e-9 }) {
			t.Errorf("%v: ticks at %v, want %v", c.values, got, c.want)
		}
	}
}

// TestDraw: the pods of a seed are those of the published experiments; 10,866 of seed 42, the first of them openb-pod-0255, whose
// demand the published curves follow.
func TestDraw(t *testing.T) {
	nodes, pods := openb(t, "openb_pod_list_default")
	w := Draw(nodes, pods, 1.3, 42)
	asked := int64(0)
	for _, p := range w.Pods {
		asked += p.Demand()
	}
	if share := float64(asked) / float64(1000*gpus(nodes)); len(w.Pods) != 10866 || w.Pods[0].Name != "openb-pod-0255" || share > 1.3 || share < 1.299 {
		t.Errorf("%d pods, the first %s, asking for %.4f of the GPUs", len(w.Pods), w.Pods[0].Name, share)
	}
	for _, demand := range []float64{0.4, 0.98} {
		few := Draw(nodes, pods, demand, 42)
		asked = 0
		for _, p := range few.Pods {
			asked += p.Demand()
		}
		if share := float64(asked) / float64(1000*gpus(nodes)); math.Abs(share-demand) > 0.002 {
			t.Errorf("demand %v: pods ask for %.4f", demand, share)
		}
	}
	if len(Mix(pods)) != 35 {
		t.Errorf("%d shapes make 95 %%, want 35", len(Mix(pods)))
	}
}
