package cli

import (
	"bytes"
	"strings"
	"testing"

	"github.com/estiba/estiba/internal/fixture"
)

func TestInspectAndTokenize(t *testing.T) {
	folder, file := fixture.Model("stories260K/hf-f32"), fixture.Model("stories260K/stories260K-f16.gguf")
	for _, c := range []struct {
		args  string
		stdin string
		code  int
		want  string // in standard output for 0, in standard error otherwise
	}{
		{"inspect " + folder + " --json", "", 0, `"architecture":"llama","parameters":260032,"format":"safetensors"`},
		{"inspect " + file, "", 0, "Format:          gguf (F16, F32)"},
		{"inspect", "", 2, "accepts 1 arg"},
		{"inspect nowhere", "", 1, "no such file"},
		{"inspect " + fixture.Model("stories260K"), "", 1, "name the .gguf file itself"},
		{"tokenize " + folder + " --jsonl", `{"text": "Once upon a time"}` + "\n" + `{"ids": [1, 403, 407]}`, 0, `{"ids":[1,403,407,261,378]}` + "\n" + `{"text":"<s> Once upon"}` + "\n"},
		{"tokenize " + file + " --jsonl", `{"text": "Once", "special": false}` + "\n" + `{"ids": [1, 403], "special": false}`, 0, `{"ids":[403]}` + "\n" + `{"text":"Once"}` + "\n"},
		{"tokenize " + file + " --jsonl", `{"text": "", "special": false} {"ids": []} {"text": "<&>"}`, 0, `{"ids":[]}` + "\n" + `{"text":""}` + "\n"},
		{"tokenize " + file + " --jsonl", "", 0, ""},
		{"tokenize " + file, "", 2, "--jsonl"},
		{"tokenize nowhere --jsonl", "", 1, "tokenizer.json"},
		{"tokenize " + folder + " --jsonl", `{"text": "a"} {}`, 1, `object 2: give one of "text" and "ids"`},
		{"tokenize " + folder + " --jsonl", `{"text": 1}`, 1, "object 1"},
		{"tokenize " + folder + " --jsonl", `{"ids": [1, -1]}`, 1, "object 1: -1 is no id of this tokenizer; they are from 0 to 511"},
	} {
		var stdout, stderr bytes.Buffer
		code := Main(strings.Fields(c.args), strings.NewReader(c.stdin), &stdout, &stderr)
		text := stderr.String()
		if c.code == 0 {
			text = stdout.String()
		}
		if code != c.code || !strings.Contains(text, c.want) {
			t.Errorf("estiba %s: exit %d, want %d with %q\n%s%s", c.args, code, c.code, c.want, stdout.String(), stderr.String())
		}
	}
	// Ids that are no tokens are answered in their turn, and what is around them too.
	var stdout, stderr bytes.Buffer
	code := Main([]string{"tokenize", folder, "--jsonl"}, strings.NewReader(`{"ids": [403]} {"ids": [512]} {"ids": [0, 99999]} {"text": "Once"}`), &stdout, &stderr)
	want := `{"text":"Once"}
{"error":"standard input, object 2: 512 is no id of this tokenizer; they are from 0 to 511"}
{"error":"standard input, object 3: 99999 is no id of this tokenizer; they are from 0 to 511"}
{"ids":[1,403]}
`
	if code != 1 || stdout.String() != want || !strings.Contains(stderr.String(), "object 2") || strings.Count(stderr.String(), "\n") != 1 {
		t.Errorf("exit %d\n%s%s", code, stdout.String(), stderr.String())
	}
}
