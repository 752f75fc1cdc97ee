package cli

import (
	"bytes"
	"context"
	"io"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/estiba/estiba/internal/fixture"
)

// TestInterrupted: neither a standard input without an end nor a full pipe keeps the process.
func TestInterrupted(t *testing.T) {
	model := fixture.Model("stories260K/hf-f32")
	for _, c := range []struct{ command, line string }{
		{"tokenize", `{"text": "a"}`}, {"render", `{"messages": []}`},
	} {
		for _, what := range []string{"input", "output"} {
			in, feed := io.Pipe()
			never, out := io.Pipe() // nobody reads
			ctx, cancel := context.WithCancel(t.Context())
			root := rootCommand()
			root.SetArgs([]string{c.command, model, "--json"})
			root.SetIn(in)
			root.SetOut(out)
			ended := make(chan error, 1)
			go func() { ended <- root.ExecuteContext(ctx) }()
			if what == "output" {
				feed.Write([]byte(c.line + "\n"))
			}
			cancel()
			if err := <-ended; err == nil || err.Error() != "interrupted" {
				t.Errorf("%s waits for its %s: %v", c.command, what, err)
			}
			feed.Close()
			never.Close()
		}
	}
}

func TestRender(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "it.jinja")
	fixture.WriteFile(t, file, []byte(`{{ bos_token }}{% for m in messages %}{{ m.content }}{{ m.x.y if strict }}{% endfor %}{{ tools }}{{ add_generation_prompt }}{{ strftime_now("%F %T") }}`))
	broken := filepath.Join(dir, "broken.jinja")
	fixture.WriteFile(t, broken, []byte("{% for %}"))
	fixture.WriteFile(t, filepath.Join(dir, "tokenizer_config.json"), []byte(`{"chat_template": "{{ bos_token }}{{ eos_token }}", "bos_token": "<s>", "eos_token": "</s>"}`))
	for name, c := range map[string]struct {
		path, in, out, err string
	}{
		"file": {
			file,
			`{"messages": [{"role": "user", "content": "<b> & é"}], "tools": [{"a": 1}], "add_generation_prompt": true, "kwargs": {}, "bos_token": "<s>", "eos_token": "", "now": "2026-01-02T03:04:05"}` + "\n\n" +
				`{"messages": [{"role": "user", "content": "x"}], "tools": null, "kwargs": {"strict": true}, "now": "2026-01-02"}` + "\n" +
				`{"messages": [], "kwargs": null, "now": "2026-01-02T03:04:05Z"}`,
			`{"rendered":"<s><b> & é[{'a': 1}]True2026-01-02 03:04:05"}` + "\n" +
				`{"error":"it.jinja, line 1: 'dict object' has no attribute 'x'"}` + "\n" +
				`{"rendered":"NoneFalse2026-01-02 03:04:05"}` + "\n",
			"",
		},
		"model":       {dir, `{"messages": []}` + "\n" + `{"messages": [], "bos_token": "", "eos_token": "e"}`, `{"rendered":"<s></s>"}` + "\n" + `{"rendered":"e"}` + "\n", ""},
		"no template": {fixture.Model("stories260K/stories260K-f16.gguf"), `{"messages": [{"role": "user", "content": "x"}]}`, `{"rendered":"<|im_start|>user\nx<|im_end|>\n"}` + "\n", ""},
		"broken":      {broken, `{"messages": []}`, `{"error":"the model's chat template cannot be used: broken.jinja, line 1: Expected an expression, got 'end of statement block'"}` + "\n", ""},
		"not JSON":    {file, "{\n" + `{"messages": [], "now": "2026-01-02T00:00:00"}`, `{"error":"standard input, line 1: it is no JSON: unexpected end of JSON input"}` + "\n" + `{"rendered":"NoneFalse2026-01-02 00:00:00"}` + "\n", "line 1"},
		"not a chat": {
			file,
			"{}\n5\n[]\nnull\n" + `{"messages": [], "now": "noon"}` + "\n" + `{"messages": [], "now": 5}` + "\n" + `{"messages": [], "bos_token": {}}` + "\n" + `{"messages": [], "add_generation_prompt": "yes"}`,
			`{"error":"standard input, line 1: give \"messages\""}
{"error":"standard input, line 2: give an object, not a number"}
{"error":"standard input, line 3: give an object, not a list"}
{"error":"standard input, line 4: give \"messages\""}
{"error":"standard input, line 5: now is \"noon\": give a time such as \"2026-01-02T03:04:05\""}
{"error":"standard input, line 6: \"now\": give a string, not a number"}
{"error":"standard input, line 7: \"bos_token\": give a string, not an object"}
{"error":"standard input, line 8: \"add_generation_prompt\": give true or false, not a string"}
`, "",
		},
		"nothing":                  {file, "", "", ""},
		"a file of the model":      {filepath.Join(dir, "tokenizer_config.json"), `{"messages": []}`, `{"rendered":"<s></s>"}` + "\n", ""},
		"a folder without a model": {t.TempDir(), `{"messages": []}`, "", "neither a chat template nor files of a model"},
		"a device":                 {"/dev/zero", "", "", "more than 1 MiB"},
		"a line without an end":    {file, strings.Repeat("[", maxLine+1), "", "standard input, line 1: it has more than 64 MiB"},
		"a missing file":           {filepath.Join(dir, "no.jinja"), "", "", "no.jinja"},
	} {
		var out bytes.Buffer
		chat, err := openChat(t.Context(), c.path)
		if err == nil {
			err = render(chat, strings.NewReader(c.in), &out)
		}
		if (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%s: %v", name, err)
		}
		if diff := cmp.Diff(c.out, out.String()); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}
