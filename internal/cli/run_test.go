package cli

import (
	"bytes"
	"strings"
	"testing"

	"github.com/estiba/estiba/internal/fixture"
)

func TestRunCommand(t *testing.T) {
	model := fixture.Model("stories260K/hf-f32")
	for _, c := range []struct {
		args string
		code int
		want string // in standard output for 0, in standard error otherwise
	}{
		{"--ids 1,403,407,261,378 --max-tokens 3", 0, "432 383 286"},
		{"--ids 1,403,407,261,378 --max-tokens 3 --json", 0, `"ids":[432,383,286],"finish_reason":"length"`},
		{"--prompt Once --max-tokens 3 --temperature 0 --exact --json", 0, `"text":`},
		{"", 2, "one of --prompt and --ids"},
		{"--prompt Once --ids 1", 2, "one of --prompt and --ids"},
		{"--ids=", 2, "no token id"},
		{"--ids 1,,2", 2, "no token id"},
		{"--ids 1,x", 2, `"x" is no token id`},
		{"--ids -1", 2, "no token id"},
		{"--ids 99999999999", 2, "no token id"},
		{"--ids 1 --max-tokens -1", 2, "--max-tokens"},
		{"--ids 1 --max-tokens many", 2, "--max-tokens"},
		{"--ids 1 --temperature -1", 2, "--temperature"},
		{"--ids 1 --temperature NaN", 2, "--temperature"},
		{"--ids 1 --logits=", 2, "--logits"},
		{"--ids 1 another", 2, "too much"},
		{"--ids 1,512 --max-tokens 1", 1, "512"},
	} {
		var stdout, stderr bytes.Buffer
		code := Main(append([]string{"run", model}, strings.Fields(c.args)...), nil, &stdout, &stderr)
		text := stderr.String()
		if c.code == 0 {
			text = stdout.String()
		}
		if code != c.code || !strings.Contains(text, c.want) {
			t.Errorf("run %s: exit %d, want %d with %q\n%s%s", c.args, code, c.code, c.want, stdout.String(), stderr.String())
		}
	}
}
