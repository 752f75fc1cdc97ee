package cli

import (
	"bytes"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/estiba/estiba/internal/fixture"
)

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
		"model":          {dir, `{"messages": []}` + "\n" + `{"messages": [], "bos_token": "", "eos_token": "e"}`, `{"rendered":"<s></s>"}` + "\n" + `{"rendered":"e"}` + "\n", ""},
		"no template":    {fixture.Model("stories260K/stories260K-f16.gguf"), `{"messages": [{"role": "user", "content": "x"}]}`, `{"rendered":"<|im_start|>user\nx<|im_end|>\n"}` + "\n", ""},
		"broken":         {broken, `{"messages": []}`, `{"error":"the model's chat template cannot be used: broken.jinja, line 1: Expected an expression, got 'end of statement block'"}` + "\n", ""},
		"not JSON":       {file, "{\n" + `{"messages": [], "now": "2026-01-02T00:00:00"}`, `{"error":"standard input, line 1: unexpected end of JSON input"}` + "\n" + `{"rendered":"NoneFalse2026-01-02 00:00:00"}` + "\n", "line 1"},
		"not a chat":     {file, "{}", `{"error":"standard input, line 1: give \"messages\""}` + "\n", `give "messages"`},
		"not a time":     {file, `{"messages": [], "now": "noon"}`, `{"error":"standard input, line 1: now is \"noon\": give a time such as \"2026-01-02T03:04:05\""}` + "\n", "noon"},
		"nothing":        {file, "", "", ""},
		"a missing file": {filepath.Join(dir, "no.jinja"), "", "", "no.jinja"},
	} {
		var out bytes.Buffer
		chat, err := openChat(c.path)
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
