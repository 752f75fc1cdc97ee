package cli

import (
	"bytes"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

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
		{"inspect", "", 2, "MODEL is missing: give a model's folder or a .gguf file"},
		{"inspect nowhere", "", 1, "read nowhere: no such file or directory; give a model's folder or a .gguf file"},
		{"render nowhere --jsonl", "", 1, "read nowhere: no such file or directory; give a model's folder"},
		{"inspect " + fixture.Model("stories260K"), "", 1, "name the .gguf file itself"},
		{"tokenize " + folder + " --jsonl", `{"text": "Once upon a time"}` + "\n" + `{"ids": [1, 403, 407]}`, 0, `{"ids":[1,403,407,261,378]}` + "\n" + `{"text":"<s> Once upon"}` + "\n"},
		{"tokenize " + file + " --jsonl", `{"text": "Once", "special": false}` + "\n" + `{"ids": [1, 403], "special": false}`, 0, `{"ids":[403]}` + "\n" + `{"text":"Once"}` + "\n"},
		{"tokenize " + file + " --jsonl", `{"text": "", "special": false}` + "\n\n" + `{"ids": []}` + "\n" + `{"text": "<&>"}`, 0, `{"ids":[]}` + "\n" + `{"text":""}` + "\n"},
		{"tokenize " + file + " --jsonl", "", 0, ""},
		{"tokenize " + file, "", 2, "--jsonl"},
		{"tokenize nowhere --jsonl", "", 1, "tokenizer.json"},
		{"tokenize " + folder + " --json", `{"text": "Once"}`, 0, `{"ids":[1,403]}`},
		{"tokenize " + folder + "/tokenizer.json --jsonl", `{"text": "Once"}`, 0, `{"ids":[1,403]}`},
		{"tokenize " + folder + "/model.safetensors --jsonl", `{"text": "Once"}`, 0, `{"ids":[1,403]}`},
		{"tokenize /dev/null --jsonl", "", 1, "tokenizer.json"},
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
	// Lines that cannot be answered are told so in their turn, and what is around them is answered.
	for _, c := range []struct {
		in, want string
		code     int
	}{
		{`{"ids": [403]}
{"ids": [512]}
{}
{"text": "a", "ids": [1]}
{"text": 1}
{"ids": [1, "a"]}
{"ids": [1.5]}
{"ids": [1, -1]}
{"special": "no"}
[1]
{"text": "Once"}`, `{"text":"Once"}
{"error":"standard input, line 2: 512 is no id of this tokenizer; they are from 0 to 511"}
{"error":"standard input, line 3: give one of \"text\" and \"ids\""}
{"error":"standard input, line 4: give one of \"text\" and \"ids\""}
{"error":"standard input, line 5: \"text\": give a string, not a number"}
{"error":"standard input, line 6: \"ids\": give whole numbers of at most 31 bits, not a string"}
{"error":"standard input, line 7: \"ids\": give whole numbers of at most 31 bits, not 1.5"}
{"error":"standard input, line 8: -1 is no id of this tokenizer; they are from 0 to 511"}
{"error":"standard input, line 9: \"special\": give true or false, not a string"}
{"error":"standard input, line 10: give an object, not a list"}
{"ids":[1,403]}
`, 0},
		{`{"text": "Once"
{"text": "Once"} {}
{"text": "Once"}`, `{"error":"standard input, line 1: it is no JSON: unexpected end of JSON input"}
{"error":"standard input, line 2: it is no JSON: invalid character '{' after top-level value"}
{"ids":[1,403]}
`, 1},
	} {
		var stdout, stderr bytes.Buffer
		code := Main([]string{"tokenize", folder, "--jsonl"}, strings.NewReader(c.in), &stdout, &stderr)
		if diff := cmp.Diff(c.want, stdout.String()); diff != "" || code != c.code || strings.Count(stderr.String(), "\n") != c.code {
			t.Errorf("exit %d\n%s%s", code, diff, stderr.String())
		}
	}
}
