package inspect

import (
	"bytes"
	"encoding/json"
	"runtime"
	"slices"
	"strings"
	"testing"

	kernels "github.com/estiba/estiba/kernels/cpu"
)

// TestLacking holds the list of instructions against what the kernels ask for: a path can
// run exactly where nothing is lacking, but that the system may keep AMX to itself.
func TestLacking(t *testing.T) {
	t.Setenv(kernels.PathVariable, "")
	r, err := processor()
	if err != nil {
		t.Fatal(err)
	}
	for p := kernels.PlainGo; p <= kernels.AMX && len(r.Instructions) > 0; p++ {
		runs, complete := slices.Contains(r.Paths, p.String()), len(r.Lacking[p.String()]) == 0
		if runs != complete && (p != kernels.AMX || runs) {
			t.Errorf("path %v: runs %v, lacks %v", p, runs, r.Lacking[p.String()])
		}
	}
	if r.Path != r.Paths[0] || r.Threads < 1 || r.CPU == "" || r.Memory.TotalBytes < r.Memory.AvailableBytes || r.Memory.ModelsBytes < 1 {
		t.Errorf("%+v", r)
	}
}

func TestThreadsReason(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(runtime.NumCPU()))
	all := runtime.NumCPU()
	for _, c := range []struct {
		threads int
		quota   float64
		want    string
	}{
		{all, 0, "one for each processor that this process may use"},
		{all, 1.5, "one for each processor that this process may use; the control group's CPU quota is 1.5 processors"},
		{all + 1, 1.5, "what the control group's CPU quota of 1.5 processors gives; this process may use"},
		{all + 1, 0, "as many as Go computes with; this process may use"},
	} {
		if got := threadsReason(c.threads, c.quota); !strings.HasPrefix(got, c.want) {
			t.Errorf("%d threads with a quota of %v: %s, want %s", c.threads, c.quota, got, c.want)
		}
	}
}

func TestForcedPath(t *testing.T) {
	for path, want := range map[string]string{
		"go":   "Path: go: ESTIBA_CPU names it; this CPU can run",
		"sse9": `no path of instructions is called "sse9"`,
	} {
		t.Setenv(kernels.PathVariable, path)
		var out bytes.Buffer
		if err := RunDevice(&out, Options{}); err != nil {
			out.WriteString(err.Error())
		}
		if !strings.Contains(strings.Join(strings.Fields(out.String()), " "), want) {
			t.Errorf("%s: %s, want %s", path, out.String(), want)
		}
	}
	t.Setenv(kernels.PathVariable, "go")
	var out bytes.Buffer
	if err := RunDevice(&out, Options{JSON: true}); err != nil {
		t.Fatal(err)
	}
	var r DeviceResult
	if err := json.Unmarshal(out.Bytes(), &r); err != nil || r.Path != "go" {
		t.Errorf("%s: %v", out.String(), err)
	}
}

// TestAccelerator: what a worker keeps free of a GPU is said beside what it may fill.
func TestAccelerator(t *testing.T) {
	a := Accelerator{Device: "gpu-0", Description: "H100, 248 MiB free", ModelsBytes: 224 << 20}
	if got, want := a.String(), "gpu-0: H100, 248 MiB free; 224 MiB for models, of which a worker keeps 5 % free if its pool says nothing else"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}
