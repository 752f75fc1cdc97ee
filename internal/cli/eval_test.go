package cli

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/estiba/estiba/internal/fixture"
)

func TestEvalCommand(t *testing.T) {
	text := filepath.Join(t.TempDir(), "text")
	fixture.WriteFile(t, text, []byte("Once upon a time, there was a little girl named Lily."))
	model, reference := fixture.Model("stories260K/stories260K-f16.gguf"), "--reference "+fixture.Model("stories260K/hf-f32")
	text = " --text " + text
	for _, c := range []struct {
		args string
		code int
		want string // in standard output for 0, in standard error otherwise
	}{
		{reference + text + " --json", 0, `"perplexity":`},
		{reference + text + " --exact --json", 0, `"same_top":`},
		{reference + text + " --as-served", 0, "Perplexity"},
		{reference + text + " --as-served --exact", 2, "one of"},
		{reference, 2, "--text"},
		{text, 2, "--reference"},
		{reference + " --text nowhere", 1, "nowhere"},
		{reference + " --text /dev/zero", 1, "more than 64 MiB"},
		{"--reference nowhere" + text, 1, "nowhere"},
		{reference + text + " another", 2, "too much"},
	} {
		var stdout, stderr bytes.Buffer
		code := Main(append([]string{"eval", model}, strings.Fields(c.args)...), nil, &stdout, &stderr)
		out := stderr.String()
		if c.code == 0 {
			out = stdout.String()
		}
		if code != c.code || !strings.Contains(out, c.want) {
			t.Errorf("eval %s: exit %d, want %d with %q\n%s%s", c.args, code, c.code, c.want, stdout.String(), stderr.String())
		}
		if strings.Contains(c.args, "--json") {
			var object map[string]float64
			if err := json.Unmarshal(stdout.Bytes(), &object); err != nil {
				t.Error(err)
			}
			for _, field := range []string{"perplexity", "reference_perplexity", "mean_kl", "max_kl", "same_top", "positions"} {
				if _, ok := object[field]; !ok {
					t.Errorf("%s lacks %s", stdout.String(), field)
				}
			}
		}
	}
}

func TestSynthCommand(t *testing.T) {
	dir := t.TempDir()
	out, device := filepath.Join(dir, "m.gguf"), filepath.Join(dir, "device.gguf")
	if err := os.Symlink("/dev/full", device); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args string
		code int
		want string
	}{
		{"stories15m --quant q4_0 --json --out " + out, 0, `"parameters":15191712`},
		{"stories15m --out " + filepath.Join(out, "m.gguf"), 1, "not a directory"},
		{"stories15m --out " + device, 1, "only files are replaced"},
		{"stories15m", 2, "--out"},
		{"stories15m --out m.bin", 2, ".gguf"},
		{"zeppelin --out " + out, 2, "tinyllama-1.1b"},
		{"stories15m --quant Q2_K --out " + out, 2, "Q4_K"},
		{"", 2, "SHAPE is missing"},
	} {
		var stdout, stderr bytes.Buffer
		code := Main(append([]string{"synth"}, strings.Fields(c.args)...), nil, &stdout, &stderr)
		text := stderr.String()
		if c.code == 0 {
			text = stdout.String()
		}
		if code != c.code || !strings.Contains(text, c.want) {
			t.Errorf("synth %s: exit %d, want %d with %q\n%s%s", c.args, code, c.code, c.want, stdout.String(), stderr.String())
		}
	}
	var stdout, stderr bytes.Buffer
	if code := Main([]string{"inspect", out, "--json"}, nil, &stdout, &stderr); code != 0 || !strings.Contains(stdout.String(), `"weight_formats":["Q4_0","F32"]`) {
		t.Errorf("inspect: exit %d\n%s%s", code, stdout.String(), stderr.String())
	}
}
