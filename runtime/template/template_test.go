package template

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"github.com/estiba/estiba/internal/fixture"
)

var now = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func mustParse(t testing.TB, name, source string) *Template {
	t.Helper()
	parsed, err := Parse(name, source)
	if err != nil {
		t.Fatal(err)
	}
	return parsed
}

// realTemplate is a file of the shared chat templates.
func realTemplate(t testing.TB, name string) *Template {
	t.Helper()
	source, err := os.ReadFile(filepath.Join(fixture.Shared(t, "tokenizers/chat-templates"), name))
	if err != nil {
		t.Fatal(err)
	}
	return mustParse(t, name, string(source))
}

// TestRealTemplates renders what transformers rendered.
func TestRealTemplates(t *testing.T) {
	raw, err := os.ReadFile(fixture.Shared(t, "tokenizers/chat-templates/cases.json"))
	if err != nil {
		t.Fatal(err)
	}
	var cases []struct {
		Template, Conversation  string
		Messages, Tools, Kwargs json.RawMessage
		AddGenerationPrompt     bool   `json:"add_generation_prompt"`
		BOS                     string `json:"bos_token"`
		EOS                     string `json:"eos_token"`
		Now                     string
		Rendered                *string
		Error                   *string
	}
	if err := json.Unmarshal(raw, &cases); err != nil {
		t.Fatal(err)
	}
	for _, c := range cases {
		t.Run(c.Template+"/"+c.Conversation, func(t *testing.T) {
			now, err := time.Parse("2006-01-02T15:04:05", c.Now)
			if err != nil {
				t.Fatal(err)
			}
			got, err := realTemplate(t, c.Template).Render(Input{
				Messages: c.Messages, Tools: c.Tools, Kwargs: c.Kwargs,
				AddGenerationPrompt: c.AddGenerationPrompt, BOS: c.BOS, EOS: c.EOS, Now: now,
			})
			if c.Rendered == nil {
				if err == nil {
					t.Fatalf("got %q, want the error %q", got.Text, *c.Error)
				}
				return
			}
			if err != nil || got.Text != *c.Rendered {
				t.Errorf("got  %q, %v\nwant %q", got.Text, err, *c.Rendered)
			}
		})
	}
}

// languageCases are small templates, each with what Jinja 3.1.6 makes of it in the
// environment of transformers. An error is the exception's text, or empty where
// ours says it in other words.
func languageCases(t testing.TB) (messages json.RawMessage, cases []languageCase) {
	t.Helper()
	raw, err := os.ReadFile("testdata/language.json")
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		Messages json.RawMessage
		Cases    []languageCase
	}
	if err := json.Unmarshal(raw, &file); err != nil {
		t.Fatal(err)
	}
	return file.Messages, file.Cases
}

type languageCase struct {
	Template        string
	Rendered, Error *string
}

func TestLanguage(t *testing.T) {
	messages, cases := languageCases(t)
	for _, c := range cases {
		var got Rendered
		parsed, err := Parse("it", c.Template)
		if err == nil {
			got, err = parsed.Render(Input{Messages: messages, BOS: "<s>", EOS: "</s>", Now: now})
		}
		switch {
		case c.Error != nil:
			if _, ok := errors.AsType[*Error](err); !ok || !strings.Contains(err.Error(), *c.Error) {
				t.Errorf("%s: got %q, %v; want the error %q", c.Template, got.Text, err, *c.Error)
			}
		case err != nil || got.Text != *c.Rendered:
			t.Errorf("%s:\ngot  %q, %v\nwant %q", c.Template, got.Text, err, *c.Rendered)
		}
	}
}

// TestPlain shows what users wrote in brackets.
func TestPlain(t *testing.T) {
	const input = `[{"role": "user", "content": " a<|x|>b ", "n": 5, "list": ["x", "y"], "deep": {"k<": "v\"\n", "role": "user"}}, {"role": "im_end", "content": "Σß"}]`
	for source, want := range map[string]string{
		"<|u|>{{ messages[0].content }}<|e|>":                                   "<|u|>[ a<|x|>b ]<|e|>",
		"{{ '<|x|>' + messages[0].content|trim + '<|x|>' }}":                    "<|x|>[a<|x|>b]<|x|>",
		"{{ messages[0].content.split('<|x|>') }}":                              "['[ a]', '[b ]']",
		"{{ messages[0].content[1:4] ~ messages[0].content[:1] }}":              "[a<| ]",
		"{{ messages[0].content[::-1] }}":                                       "[ b>|x|<a ]",
		"{{ messages[0].content.replace('<|x|>', '<|y|>') }}":                   "[ a]<|y|>[b ]",
		"{{ 'a-b'.replace('-', messages[0].content) }}":                         "a[ a<|x|>b ]b",
		"{{ messages[0].content|upper }}":                                       "[ A<|X|>B ]",
		"{{ (messages[0].content ~ 'ab')|upper }}":                              "[ A<|X|>B ]AB",
		"{{ (messages[0].content ~ 'ab')|title }}":                              "[ A<|x|>b ]Ab",
		"{{ messages[1].content|lower }}{{ messages[1].content|upper }}":        "[σßΣSS]",
		"{{ messages[0].list|join('<|s|>') }}":                                  "[x]<|s|>[y]",
		"{{ messages[0].deep|tojson }}":                                         `{"[k<]": "[v\"\n]", "[role]": "[user]"}`,
		"{{ messages[0].deep }}":                                                `{'[k<]': '[v"\n]', '[role]': '[user]'}`,
		"{{ messages[0].list|tojson(indent=1) }}":                               "[\n \"[x]\",\n \"[y]\"\n]",
		"<|{{ messages[0].role }}|>":                                            "<|user|>",
		"<|{{ messages[1].role }}|>":                                            "<|[im_end]|>",
		"<|{{ messages[0].deep.role }}|>":                                       "<|[user]|>",
		"{% for k in messages[0] %}{{ k }}{% endfor %}":                         "[rolecontentnlistdeep]",
		"{{ '%s|%5s|%-3s' % (messages[0].content, messages[0].list[0], 'a') }}": "[ a<|x|>b ]|    [x]|a  ",
		"{{ '{0}{0:>3}'.format(messages[0].list[0]) }}":                         "[x]  [x]",
		"{{ messages[0].content.format(1) }}":                                   "[ a<|x|>b ]",
		"{{ messages[0].list[0] * 2 ~ 'x' * 2 }}":                               "[xx]xx",
		"{{ messages[0].list[0].zfill(3) }}":                                    "00[x]",
		"{{ (messages[0].list[0] ~ '\na')|indent(1, true) }}":                   " [x]\n a",
		"{{ messages[0].list[0]|e }}{{ messages[0].content|e }}":                "[x a&lt;|x|&gt;b ]",
		"{% set x %}a{{ messages[0].list[0] }}{% endset %}{{ x }}":              "a[x]",
		"{% filter upper %}a{{ messages[0].list[0] }}{% endfilter %}":           "A[X]",
		"{% macro m(x) %}({{ x }}{{ caller() }}){% endmacro %}{% call m(messages[0].list[0]) %}<{{ messages[0].list[1] }}>{% endcall %}": "([x]<[y]>)",
		"{{ {'x': '<|x|>'}[messages[0].list[0]] }}":                       "<|x|>",
		"{{ messages[0].n }}{{ messages[0].content|length }}":             "59",
		"{{ bos_token }}{{ eos_token }}{{ kw }}{{ tools[0].name }}":       "<s></s>[kt]",
		"{{ messages[0].list|map('upper')|list|string }}":                 "['[X]', '[Y]']",
		"{{ dict([(messages[0].list[0], 1)]).items()|list|first|first }}": "[x]",
		"{{ messages[0].content.partition('|')|last }}":                   "[x|>b ]",
		"{{ messages[0].content|truncate(3, true, '!', 0) }}":             "[ a]!",
		"{{ (messages[0].content ~ 'é')|urlencode }}":                     "[%20a%3C%7Cx%7C%3Eb%20%C3%A9]",
		"{{ strftime_now(messages[0].list[0]) }}":                         "[x]",
	} {
		got, err := mustParse(t, "it", source).Render(Input{
			Messages: []byte(input), Tools: []byte(`[{"name": "t"}]`), Kwargs: []byte(`{"kw": "k"}`), BOS: "<s>", EOS: "</s>", Now: now,
		})
		if err != nil {
			t.Errorf("%s: %v", source, err)
			continue
		}
		marked := got.Text
		for _, p := range slices.Backward(got.Plain) {
			marked = marked[:p[0]] + "[" + marked[p[0]:p[1]] + "]" + marked[p[1]:]
		}
		if marked != want {
			t.Errorf("%s:\ngot  %q\nwant %q", source, marked, want)
		}
	}
}

// TestPlainIsWhatUsersWrote has users write in characters that no template has,
// in chats of real templates: they are in Plain, and nothing else is.
func TestPlainIsWhatUsersWrote(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(fixture.Shared(t, "tokenizers/chat-templates"), "*.jinja"))
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	const messages = "[{\"role\": \"system\", \"content\": \"\ue000\ue001\"}, {\"role\": \"user\", \"content\": \"\ue002\ue003\"}," +
		" {\"role\": \"assistant\", \"content\": \"\ue004\"}, {\"role\": \"user\", \"content\": \"\ue005\"}]"
	for _, file := range files {
		got, err := realTemplate(t, filepath.Base(file)).Render(Input{Messages: []byte(messages), AddGenerationPrompt: true, BOS: "<s>", EOS: "</s>", Now: now})
		if err != nil {
			t.Errorf("%s: %v", file, err)
			continue
		}
		var want [][2]int
		for i, r := range got.Text {
			if r < 0xe000 || r > 0xe0ff {
				continue
			}
			if last := len(want) - 1; last >= 0 && want[last][1] == i {
				want[last][1] += utf8.RuneLen(r)
			} else {
				want = append(want, [2]int{i, i + utf8.RuneLen(r)})
			}
		}
		if diff := cmp.Diff(want, got.Plain); diff != "" || len(want) < 3 {
			t.Errorf("%s: %q: %s", file, got.Text, diff)
		}
	}
}

func TestErrors(t *testing.T) {
	render := func(source, messages string) error {
		parsed, err := Parse("chat_template", source)
		if err == nil {
			_, err = parsed.Render(Input{Messages: []byte(messages)})
		}
		return err
	}
	for name, c := range map[string]struct {
		source, messages, want string
		raised                 bool
	}{
		"raised":          {"\n\n{{ raise_exception('Roles must ' ~ 'alternate') }}", "[]", "Roles must alternate", true},
		"wrong":           {"\n{{ messages[0].x.y }}", `[{}]`, "chat_template, line 2: 'dict object' has no attribute 'x'", false},
		"not Jinja":       {"a\n{% for %}", "[]", "chat_template, line 2: Expected an expression, got 'end of statement block'", false},
		"unknown filter":  {"{{ x|urlize }}", "[]", "chat_template, line 1: No filter named 'urlize'.", false},
		"no list":         {"", `{"role": "user"}`, "messages: give a list of messages", false},
		"no JSON":         {"", `[`, "messages: EOF", false},
		"too deep":        {"", strings.Repeat("[", 1000), "messages: nested deeper than 400 levels", false},
		"too many digits": {"", "[" + strings.Repeat("9", 5000) + "]", "messages: an integer of more than 4300 digits", false},
	} {
		err := render(c.source, c.messages)
		e, ok := errors.AsType[*Error](err)
		if !ok || err.Error() != c.want || e.Raised != c.raised || errors.Is(err, ErrTooLong) {
			t.Errorf("%s: %v, want %s", name, err, c.want)
		}
	}
	if _, err := Unusable(errors.New("it is torn")).Render(Input{}); !errors.Is(err, ErrUnusable) || !strings.Contains(err.Error(), "it is torn") {
		t.Error(err)
	}
}

// TestInput: what templates see.
func TestInput(t *testing.T) {
	const source = "{{ [messages, tools, documents, add_generation_prompt, bos_token, eos_token, a, b is defined] | tojson }}"
	for want, in := range map[string]Input{
		`[[], null, null, false, "", "", 1, false]`: {Kwargs: []byte(`{"a": 1}`)},
		`[[], [], [{}], true, "B", "E", 18446744073709551616, true]`: {
			Tools: []byte(`[]`), Kwargs: []byte(`{"documents": [{}], "a": 18446744073709551616, "b": null}`), BOS: "B", EOS: "E", AddGenerationPrompt: true,
		},
		`[[{"z": 1.0, "a": -0.0, "m": 1e+22, "é": "\"\u0001"}], null, null, false, "", "", Infinity, false]`: {
			Messages: []byte(`[{"z": 0, "a": -0.0, "m": 1e22, "\u00e9": "\"\u0001", "z": 1.0}]`), Kwargs: []byte(`{"a": 1e999}`), Tools: []byte("null"),
		},
	} {
		if in.Messages == nil {
			in.Messages = []byte("[]")
		}
		if got, err := mustParse(t, "it", source).Render(in); err != nil || got.Text != want {
			t.Errorf("got %s, %v; want %s", got.Text, err, want)
		}
	}
}

func TestWithTools(t *testing.T) {
	both := mustParse(t, "default", "chat").WithTools(mustParse(t, "tool_use", "tools"))
	for tools, want := range map[string]string{"": "chat", "null": "chat", "[]": "tools", `[{}]`: "tools"} {
		if got, err := both.Render(Input{Messages: []byte("[]"), Tools: []byte(tools)}); err != nil || got.Text != want {
			t.Errorf("%q: %q, %v", tools, got.Text, err)
		}
	}
	if both.Source() != "tools" || mustParse(t, "it", "x").Source() != "x" || !strings.Contains(ChatML().Source(), "<|im_start|>") {
		t.Error("sources")
	}
}

func TestChatML(t *testing.T) {
	const weather = `[{"type": "function", "function": {"name": "weather"}}]`
	for name, c := range map[string]struct {
		messages, tools string
		generate        bool
		want            string
	}{
		"nothing":  {`[]`, "", false, ""},
		"question": {`[{"role": "user", "content": "Tell me"}]`, "", true, "<|im_start|>user\nTell me<|im_end|>\n<|im_start|>assistant\n"},
		"talk": {
			`[{"role": "developer", "content": "Be brief."}, {"role": "user", "content": [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]}, {"role": "assistant", "content": null}]`, "", false,
			"<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n<|im_end|>\n",
		},
		"tools": {
			`[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Rain?"},
			  {"role": "assistant", "content": null, "tool_calls": [{"function": {"name": "weather", "arguments": {"city": "Bonn"}}}, {"function": {"name": "weather", "arguments": "{}"}}]},
			  {"role": "tool", "content": "dry"}, {"role": "tool", "content": "wet"}, {"role": "assistant", "content": "No."}]`, weather, false,
			"<|im_start|>system\nBe brief.\n\n# Tools\n<tools>\n" + `{"name": "weather"}` + "\n</tools>\nCall them so:\n" +
				"<tool_call>\n{\"name\": <name>, \"arguments\": <object>}\n</tool_call><|im_end|>\n<|im_start|>user\nRain?<|im_end|>\n" +
				"<|im_start|>assistant\n<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Bonn\"}}\n</tool_call>\n<tool_call>\n{\"name\": \"weather\", \"arguments\": {}}\n</tool_call><|im_end|>\n" +
				"<|im_start|>user\n<tool_response>\ndry\n</tool_response>\n<tool_response>\nwet\n</tool_response><|im_end|>\n<|im_start|>assistant\nNo.<|im_end|>\n",
		},
	} {
		got, err := ChatML().Render(Input{Messages: []byte(c.messages), Tools: []byte(c.tools), AddGenerationPrompt: c.generate})
		if err != nil || got.Text != c.want {
			t.Errorf("%s: %v\n%s", name, err, cmp.Diff(c.want, got.Text))
		}
	}
}

// hostile are templates that would take forever, or all memory.
var hostile = []string{
	"{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
	"{{ 'a' * 10**9 }}",
	"{{ [0] * 10**9 }}",
	"{% set ns = namespace(s='a') %}{% for i in range(60) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
	"{% set ns = namespace(s=[1]) %}{% for i in range(60) %}{% set ns.s = [ns.s, ns.s] %}{% endfor %}{{ ns.s }}",
	"{% set ns = namespace(s=[1]) %}{% for i in range(60) %}{% set ns.s = [ns.s, ns.s] %}{% endfor %}{{ ns.s|tojson }}",
	"{% set ns = namespace(s=[1], t=[1]) %}{% for i in range(60) %}{% set ns.s = [ns.s, ns.s] %}{% set ns.t = [ns.t, ns.t] %}{% endfor %}{{ ns.s == ns.t }}{{ ns.s < ns.t }}",
	"{% set ns = namespace(s=(1,)) %}{% for i in range(60) %}{% set ns.s = (ns.s, ns.s) %}{% endfor %}{{ {ns.s: 1} }}",
	"{% set ns = namespace(s=1) %}{% for i in range(100000) %}{% set ns.s = [ns.s] %}{% endfor %}{{ ns.s }}",
	"{% set ns = namespace(s=1) %}{% set ns.s = ns %}{{ ns }}",
	"{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
	"{% macro m(n) %}{% if n > 0 %}{{ m(n-1) }}{{ m(n-1) }}{% endif %}{% endmacro %}{{ m(60) }}",
	"{% for x in [[1]] recursive %}{{ loop([x]) }}{% endfor %}",
	"{{ 2 ** (10**9) }}",
	"{{ '%1000000000d' % 1 }}",
	"{{ '%*d' % (1000000000, 1) }}",
	"{{ '{:1000000000}'.format(1) }}",
	"{{ ''.zfill(10**9) }}",
	"{{ 'a\tb'.expandtabs(10**9) }}",
	"{{ 'a'|indent(10**9) }}",
	"{{ [1]|tojson(indent=10**9) }}",
	"{{ [1]|batch(10**9, 'x')|list }}",
	"{{ [1]|slice(10**9)|list }}",
	"{% set s = 'a' * 100000 %}{{ s.replace('', s) }}",
	"{% set s = 'a' * 100000 %}{{ s.replace('a', s) }}",
	"{% set s = 'a' * 1000000 %}{% for i in range(100000) %}{{ s in s }}{% endfor %}",
	"{% set s = 'é' * 1000000 %}{% for i in range(100000) %}{{ s[500000] }}{% endfor %}",
	"{% set s = 'a' * 1000000 ~ 'b' %}{% set p = 'a' * 500000 ~ 'c' %}{% for i in range(100000) %}{{ s.find(p) }}{% endfor %}",
	"{% set x = range(100000)|list %}{% for i in range(100000) %}{{ -1 in x }}{% endfor %}",
	"{% set x = range(100000)|list %}{% for i in range(100000) %}{% set y = x|sort %}{% endfor %}",
	"{{ (('aΣ' ~ '.' * 100000) * 50)|lower }}",
	often("'é' * 1000000", "x.ljust(1)"),
	often("'a' * 1000000", "x.strip('b' * 1000 ~ x)"),
	often("'9' * 4300", "x|int"),
	often("7 ** 20000", "{x: 1}[x]"),
	often("7 ** 20000", "x / 3 ** 40000"),
	often("7 ** 20000", "x < 1.5"),
	often("1", "x|round(-4300)"),
	often("'{:01000000,}'", "x.format(1)"),
	"{% set ns = namespace(s=range(100000)|list) %}{% for i in range(390) %}{% set ns.s = [ns.s] %}{% endfor %}" + often("ns.s", "x|tojson(indent='')"),
	"{% set ns = namespace(s=[1]) %}{% for i in range(100000) %}{% set ns.s = ns.s|map('int') %}{% endfor %}{{ ns.s|list }}",
}

// often computes y of x more often than there is time for.
func often(x, y string) string {
	return "{% set x = " + x + " %}{% for i in range(100000) %}{% for j in range(100000) %}{% set y = " + y + " %}{% endfor %}{% endfor %}"
}

func TestBounds(t *testing.T) {
	for _, source := range hostile {
		parsed := mustParse(t, "it", source)
		start := time.Now()
		_, err := parsed.Render(Input{Messages: []byte("[]")})
		if took := time.Since(start); !errors.Is(err, ErrTooLong) || took > 10*time.Second {
			t.Errorf("%s: %v after %v", source, err, took)
		}
	}
	if _, err := mustParse(t, "it", "{{ range(10**9) }}").Render(Input{Messages: []byte("[]")}); err == nil {
		t.Error("a range of a billion")
	}
	// A text of many origins, at each of which it may be cut.
	many := "[" + strings.Repeat(`"a", `, 200_000) + `"a"]`
	start := time.Now()
	got, err := mustParse(t, "it", "{{ (messages|join(' ')).split()|length }}").Render(Input{Messages: []byte(many)})
	if took := time.Since(start); err != nil || got.Text != "200001" || took > 10*time.Second {
		t.Errorf("many origins: %q, %v after %v", got.Text, err, took)
	}
}

func TestParserIsBounded(t *testing.T) {
	for name, source := range map[string]string{
		"parentheses": "{{ " + strings.Repeat("(", 100_000),
		"lists":       "{{ " + strings.Repeat("[", 100_000),
		"nots":        "{{ " + strings.Repeat("not ", 100_000),
		"minuses":     "{{ " + strings.Repeat("-", 100_000),
		"sum":         "{{ " + strings.Repeat("1+", 100_000),
		"attributes":  "{{ x" + strings.Repeat(".a", 100_000),
		"ifs":         strings.Repeat("{% if 1 %}", 50_000),
		"conditions":  "{{ " + strings.Repeat("1 if ", 50_000),
		"targets":     "{% set " + strings.Repeat("(a,", 50_000),
		"parameters":  "{% macro m(" + strings.Repeat("a", 1000) + strings.Repeat(",a", 100_000),
		"arguments":   "{{ f(" + strings.Repeat("1,", 100_000),
		"digits":      "{{ 1" + strings.Repeat("0", 400_000),
		"size":        strings.Repeat("a", maxSource+1),
		"comment":     strings.Repeat("{#", 200_000),
		"strings":     "{{ " + strings.Repeat("'a' ", 120_000),
		"dots":        "{{ x|a" + strings.Repeat(".a", 200_000),
		"zeros":       "{{ " + strings.Repeat("01", 200_000),
		"raw":         "{% raw %}" + strings.Repeat("{% ", 100_000),
	} {
		start := time.Now()
		if _, err := Parse("it", source); err == nil || time.Since(start) > 10*time.Second {
			t.Errorf("%s: %v after %v", name, err, time.Since(start))
		}
	}
}

// FuzzRender: any template and messages give a text with ranges in it, or an error, soon.
func FuzzRender(f *testing.F) {
	messages, cases := languageCases(f)
	for i, c := range cases {
		if i%5 == 0 { // all of them take long before the fuzzing begins
			f.Add(c.Template, string(messages), `{"x": [1, "a"]}`)
		}
	}
	for _, source := range hostile[1:5] {
		f.Add(source, "[]", "")
	}
	f.Fuzz(func(t *testing.T, source, messages, kwargs string) {
		if len(source)+len(messages)+len(kwargs) > 4<<10 {
			t.Skip()
		}
		parsed, err := Parse("it", source)
		if err != nil {
			return
		}
		got, err := parsed.Render(Input{Messages: []byte(messages), Kwargs: []byte(kwargs), AddGenerationPrompt: true, BOS: "<s>", Now: now})
		if err != nil {
			return
		}
		at := 0
		for i, p := range got.Plain {
			if p[0] < at || p[1] <= p[0] || p[1] > len(got.Text) || i > 0 && p[0] == at {
				t.Fatalf("ranges %v of %d bytes", got.Plain, len(got.Text))
			}
			at = p[1]
		}
		if !utf8.ValidString(got.Text) {
			t.Fatalf("%q is not UTF-8", got.Text)
		}
	})
}

// FuzzParse: any text is a template or an error.
func FuzzParse(f *testing.F) {
	_, cases := languageCases(f)
	for i, c := range cases {
		if i%5 == 1 {
			f.Add(c.Template)
		}
	}
	f.Fuzz(func(t *testing.T, source string) { Parse("it", source) })
}

func BenchmarkRender(b *testing.B) {
	parsed := realTemplate(b, "Qwen-Qwen3-0.6B.jinja")
	turn := `{"role": "user", "content": "` + strings.Repeat("word ", 50) + `"}, {"role": "assistant", "content": "` + strings.Repeat("word ", 50) + `"}, `
	for name, turns := range map[string]int{"short": 1, "long": 100} {
		messages := []byte("[" + strings.Repeat(turn, turns) + `{"role": "user", "content": "x"}]`)
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(messages)))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := parsed.Render(Input{Messages: messages, AddGenerationPrompt: true}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
