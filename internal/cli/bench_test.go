package cli

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"github.com/estiba/estiba/internal/fixture"
)

func TestBenchCommand(t *testing.T) {
	t.Setenv("ESTIBA_CPU", "")
	model := fixture.Model("stories260K/stories260K-f16.gguf")
	quick := " --prompt 8 --generate 4 --batch 1,2 --repeat 1"
	for _, c := range []struct {
		args string
		path string // forced, of the kernels
		code int
		want string // in standard output for 0, in standard error otherwise
	}{
		{model + quick + " --json", "", 0, `"bandwidth_fraction":`},
		{model + quick + " --threads 1", "go", 0, "path go, 1 thread"},
		{model + quick, "", 0, "Batch of 2:"},
		{model + quick + " --device cpu-0 --json", "", 0, `"device":"cpu-0"`},
		{model + quick + " --device cpu", "", 0, "Device:"},
		{model + quick, "mmx", 1, `no path of instructions is called "mmx"`},
		{"", "", 2, "MODEL is missing"},
		{"nowhere" + quick, "", 1, "read nowhere: no such file or directory"},
		{model + " --batch 1,x", "", 2, "--batch"},
		{model + " --batch 0", "", 2, "from 1 to 256"},
		{model + " --threads -1", "", 2, "--threads is -1"},
		{model + " --repeat 0", "", 2, "--repeat is 0: give a number from 1"},
		{model + " --prompt 0 --generate 0", "", 2, "nothing to measure"},
		{model + " --threads 4097", "", 2, "from 0 to 4096"},
		{model + " --device cpu-1", "", 2, "--device"},
		{model + " --device cuda:x", "", 2, "--device"},
	} {
		t.Setenv("ESTIBA_CPU", c.path)
		var stdout, stderr bytes.Buffer
		code := Main(append([]string{"bench"}, strings.Fields(c.args)...), nil, &stdout, &stderr)
		out := stderr.String()
		if c.code == 0 {
			out = stdout.String()
		}
		if code != c.code || !strings.Contains(out, c.want) {
			t.Errorf("bench %s: exit %d, want %d with %q\n%s%s", c.args, code, c.code, c.want, stdout.String(), stderr.String())
		}
		if strings.Contains(c.args, "--json") {
			var object map[string]any
			if err := json.Unmarshal(stdout.Bytes(), &object); err != nil {
				t.Error(err)
			}
			for _, field := range []string{"prefill_tokens_per_second", "decode_tokens_per_second", "bytes_per_token", "bandwidth_fraction", "batch"} {
				if _, ok := object[field]; !ok {
					t.Errorf("%s lacks %s", stdout.String(), field)
				}
			}
			first := object["batch"].([]any)[0].(map[string]any)
			if first["size"] != 1.0 || first["tokens_per_second"] == nil {
				t.Errorf("batch %v", first)
			}
		}
	}
}

func TestInspectDevice(t *testing.T) {
	for _, c := range []struct {
		args string
		path string
		code int
		want string
	}{
		{"--device", "", 0, "Path:"},
		{"--device --json", "go", 0, `"path":"go","path_reason":"ESTIBA_CPU names it`},
		{"--device", "mmx", 1, "there are go, avx2, avx512, amx"},
		{"--device model", "", 2, "without a model"},
	} {
		t.Setenv("ESTIBA_CPU", c.path)
		var stdout, stderr bytes.Buffer
		code := Main(append([]string{"inspect"}, strings.Fields(c.args)...), nil, &stdout, &stderr)
		if out := stdout.String() + stderr.String(); code != c.code || !strings.Contains(out, c.want) {
			t.Errorf("inspect %s with ESTIBA_CPU=%s: exit %d, want %d with %q\n%s", c.args, c.path, code, c.code, c.want, out)
		}
	}
}
