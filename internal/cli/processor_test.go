package cli

import (
	"bytes"
	"path/filepath"
	"strings"
	"testing"

	"github.com/estiba/estiba/internal/fixture"
)

// TestProcessorFlags: whatever computes on the processor says how its kernels are chosen, and takes --threads.
func TestProcessorFlags(t *testing.T) {
	model, text := fixture.Model("stories260K/hf-f32"), filepath.Join(t.TempDir(), "text")
	fixture.WriteFile(t, text, []byte("Once upon a time"))
	for command, args := range map[string]string{
		"run": model + " --ids 1 --max-tokens 1", "bench": model + " --prompt 4 --generate 1 --batch 1 --repeat 1", "embed": model + " --ids 1",
		"eval": model + " --reference " + model + " --text " + text, "serve": "", "worker": "",
	} {
		var help, stderr bytes.Buffer
		if code := Main([]string{command, "--help"}, nil, &help, &stderr); code != 0 || !strings.Contains(help.String(), "ESTIBA_CPU (go, avx2, avx512 or amx)") {
			t.Errorf("%s --help: exit %d, %s", command, code, help.String())
		}
		for threads, c := range map[string]struct {
			code int
			want string
		}{"2": {0, ""}, "-1": {2, "--threads is -1: give a number from 0 to 4096"}, "5000": {2, "from 0 to 4096"}} {
			if args == "" && c.code == 0 {
				continue // it would serve
			}
			stderr.Reset()
			code := Main(append(append([]string{command}, strings.Fields(args)...), "--threads", threads), nil, &bytes.Buffer{}, &stderr)
			if code != c.code || !strings.Contains(stderr.String(), c.want) {
				t.Errorf("%s --threads %s: exit %d, %s", command, threads, code, stderr.String())
			}
		}
	}
}

func TestEmbedEmptyText(t *testing.T) {
	path := fixture.CopyModel(t, "stories260K/hf-f32", t.TempDir())
	for _, c := range []struct {
		code int
		want string
	}{{0, `"ids":[1]`}, {2, "give a text"}} {
		var stdout, stderr bytes.Buffer
		code := Main([]string{"embed", path, "--text", "", "--json"}, nil, &stdout, &stderr)
		if out := stdout.String() + stderr.String(); code != c.code || !strings.Contains(out, c.want) {
			t.Errorf("exit %d, want %d with %q: %s", code, c.code, c.want, out)
		}
		fixture.EditJSON(t, filepath.Join(path, "tokenizer.json"), map[string]any{"post_processor": nil})
	}
}
