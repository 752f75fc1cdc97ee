package cli

import (
	"bytes"
	"encoding/json"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/estiba/estiba/internal/fixture"
)

func TestSimulateUsage(t *testing.T) {
	const packing, churn = "simulate packing --nodes n --pods p ", "simulate churn --nodes n --instances i "
	for args, want := range map[string]string{
		"simulate nothing":                   `unknown command "nothing": give one of churn, packing`,
		"simulate packing":                   "give --nodes, a CSV file",
		"simulate packing --nodes n":         "give --pods, a CSV file",
		packing + "x":                        `"x" is too much: estiba simulate packing takes flags only`,
		packing + "--policy Tetris":          `--policy: there is no "Tetris"; give Estiba, Random, DotProd`,
		packing + "--demand 0":               "--demand is 0: give a number of 0.01 to 100",
		packing + "--demand NaN":             "--demand is NaN: give a number of 0.01",
		packing + "--moves -1":               "--moves is -1: give 0 to 16",
		packing + "--ties last":              `--ties is "last": give first or random`,
		packing + "--demand 1e-9":            "--demand is 1e-09: give a number of 0.01 to 100",
		packing + "--seeds 1,9-3":            `--seeds is "1,9-3": 9-3 goes down: write 3-9`,
		packing + "--seeds 1-1001":           "give at most 1000",
		packing + "--seeds 1-500,1-501":      "give at most 1000",
		packing + "--seeds a":                "give at most 1000",
		packing + "--seed 1 --seeds 1":       "give one of --seed and --seeds",
		packing + "--plot n":                 `--plot is "n": give the file to write, with a name that ends in .svg`,
		churn + "--plot=":                    `--plot is "": give the file to write`,
		packing + "--seed x":                 `--seed "x": give a whole number`,
		churn + "--gpus -1":                  "--gpus is -1: give 0 for all, or more",
		churn + "--moves-per-hour 999999999": "--moves-per-hour is 999999999: give 0 to 10000",
		"simulate churn --nodes n":           "give --instances, a CSV file",
	} {
		var stdout, stderr bytes.Buffer
		if code := Main(strings.Fields(args), nil, &stdout, &stderr); code != 2 || !strings.Contains(stderr.String(), want) {
			t.Errorf("estiba %s: exit %d, want 2 with %q\n%s", args, code, want, stderr.String())
		}
	}
}

// TestSeeds: each seed counts once.
func TestSeeds(t *testing.T) {
	for text, want := range map[string][]int64{"1,1,1": {1}, "42-44, 43-45": {42, 43, 44, 45}, "7": {7}} {
		if got, err := parseSeeds(text); err != nil || !slices.Equal(got, want) {
			t.Errorf("%q: %v %v, want %v", text, got, err, want)
		}
	}
}

func TestSimulate(t *testing.T) {
	dir := t.TempDir()
	nodes, pods := filepath.Join(dir, "nodes.csv"), filepath.Join(dir, "pods.csv")
	fixture.WriteFile(t, nodes, []byte("sn,cpu_milli,memory_mib,gpu,model\na,64000,262144,2,T4\n"))
	fixture.WriteFile(t, pods, []byte("name,cpu_milli,memory_mib,num_gpu,gpu_milli,creation_time,deletion_time\np,1000,1024,1,1000,0,3600\nq,1000,1024,1,500,0,3600\n"))

	var stdout, stderr bytes.Buffer
	if code := Main([]string{"simulate", "packing", "--nodes", nodes, "--pods", pods, "--demand", "0.75", "--policy", "bestfit", "--json"}, nil, &stdout, &stderr); code != 0 {
		t.Fatalf("exit %d: %s", code, stderr.String())
	}
	var r map[string]any
	if err := json.Unmarshal(stdout.Bytes(), &r); err != nil || r["policy"] != "BestFit" || r["allocated_percent"] != 75.0 || r["placed"] != 2.0 {
		t.Errorf("%v: %s", err, stdout.String())
	}
	stdout.Reset()
	if code := Main([]string{"simulate", "churn", "--nodes", nodes, "--instances", pods, "--moves-per-hour", "0", "--json"}, nil, &stdout, &stderr); code != 0 {
		t.Fatalf("exit %d: %s", code, stderr.String())
	}
	if err := json.Unmarshal(stdout.Bytes(), &r); err != nil || r["served_percent"] != 100.0 || r["gpu_hours_asked"] != 1.5 {
		t.Errorf("%v: %s", err, stdout.String())
	}
	stderr.Reset()
	if code := Main([]string{"simulate", "packing", "--nodes", nodes, "--pods", filepath.Join(dir, "none.csv")}, nil, &stdout, &stderr); code != 1 || !strings.Contains(stderr.String(), "none.csv: no such file") {
		t.Errorf("exit %d: %s", code, stderr.String())
	}
}
