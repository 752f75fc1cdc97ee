package simulate

import (
	"bytes"
	"encoding/json"
	"io"
	"math"
	"path/filepath"
	"strings"
	"testing"

	"github.com/estiba/estiba/internal/fixture"
)

const instancesHead = "instance_sn,role,cpu_request,gpu_request,memory_request,creation_time,deletion_time\n"

// TestChurn: two nodes of one GPU each. a is there from the start for two hours, b for one; c comes after half an hour, waits until b goes, and
// stays; d comes and goes while there is no room.
func TestChurn(t *testing.T) {
	dir := t.TempDir()
	o := ChurnOptions{
		Nodes: filepath.Join(dir, "nodes.csv"), Instances: filepath.Join(dir, "instances.csv"), Policies: []string{Own, "BestFit"}, MovesPerHour: 2, Seed: 1,
		Plot: filepath.Join(dir, "plot.svg"), JSON: true,
	}
	fixture.WriteFile(t, o.Nodes, []byte(nodesHead+"x,8000,65536,1,T4\ny,8000,65536,1,T4\n"))
	fixture.WriteFile(t, o.Instances, []byte(instancesHead+"a,HN,4,1,8,,7200\nb,HN,4,1,8,,3600\nc,HN,4,1,8,1800,\nd,HN,4,1,8,1800,2700\ne,CN,64,0,8,,\n"))
	var out, progress bytes.Buffer
	if err := Churn(t.Context(), &out, &progress, o); err != nil {
		t.Fatal(err)
	}
	var got struct{ Policies []ChurnReport }
	if err := json.Unmarshal(out.Bytes(), &got); err != nil || len(got.Policies) != 3 {
		t.Fatalf("%v: %s", err, out.String())
	}
	for i, title := range []string{"Estiba, 2 moves/h", "Estiba", "BestFit"} {
		r := got.Policies[i]
		// Asked for: a 2 h, b 1 h, c 1.5 h, d 0.25 h. Not placed: c 0.5 h, d 0.25 h.
		if r.title() != title || r.Instances != 4 || r.Asked != 4.75 || r.Unplaced != 0.75 || math.Abs(r.Served-100*4/4.75) > 1e-9 ||
			r.Never != 1 || r.Waited != 1 || r.Moves != 0 || r.Peak != 2 || r.InUse != 2 || len(r.Hours) != 2 {
			t.Errorf("%s: %+v", title, r)
		}
	}
	if !strings.Contains(progress.String(), "BestFit: 84.211 % of 5 GPU hours served, 0 moves\n") {
		t.Error(progress.String())
	}
	checkSVG(t, o.Plot, "Estiba, 2 moves/h", "asked for", "days")

	o.JSON, o.GPUs = false, 1
	out.Reset()
	if err := Churn(t.Context(), &out, io.Discard, o); err != nil || !strings.Contains(out.String(), "of 1 GPUs, seed 1.") {
		t.Errorf("%v\n%s", err, out.String())
	}
	if strings.Contains(progress.String(), "taken whole") {
		t.Error(progress.String())
	}
	o.GPUs = 3
	if err := Churn(t.Context(), io.Discard, io.Discard, o); err == nil || !strings.Contains(err.Error(), "it has 2 GPUs, and --gpus asks for 3") {
		t.Error(err)
	}
}

// TestChurnMoves: shares that are spread over two nodes are brought together, and a whole GPU that would wait is made free.
func TestChurnMoves(t *testing.T) {
	dir := t.TempDir()
	o := ChurnOptions{Nodes: filepath.Join(dir, "nodes.csv"), Instances: filepath.Join(dir, "pods.csv"), Policies: []string{Own}, MovesPerHour: 2, Seed: 1, JSON: true}
	fixture.WriteFile(t, o.Nodes, []byte(nodesHead+"x,64000,65536,1,T4\ny,64000,65536,1,T4\n"))
	// a fills one node with p, b the other with q; p and q go, and whole comes.
	fixture.WriteFile(t, o.Instances, []byte("name,cpu_milli,memory_mib,num_gpu,gpu_milli,gpu_spec,creation_time,deletion_time\n"+
		"a,1000,1024,1,400,,0,\np,1000,1024,1,600,,1,1000\nb,1000,1024,1,400,,2,\nq,1000,1024,1,600,,3,1000\nwhole,1000,1024,1,1000,,2000,7200\n"))
	var out bytes.Buffer
	if err := Churn(t.Context(), &out, io.Discard, o); err != nil {
		t.Fatal(err)
	}
	var got struct{ Policies []ChurnReport }
	if err := json.Unmarshal(out.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	if with, without := got.Policies[0], got.Policies[1]; with.Moves != 1 || with.Never != 0 || with.Served != 100 || without.Never != 1 || without.Moves != 0 {
		t.Errorf("with moves %+v\nwithout %+v", with, without)
	}
}
