package toolcall

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"
	"testing/quick"

	"github.com/google/go-cmp/cmp"

	"github.com/estiba/estiba/internal/fixture"
	"github.com/estiba/estiba/runtime/template"
)

var tools = []Tool{
	{Name: "weather", Parameters: json.RawMessage(`{"type":"object","properties":{
		"city":{"type":"string"},"days":{"type":"integer"},"exact":{"type":"boolean"},"note":{"type":["string","null"]},
		"where":{"$ref":"#/$defs/point"},"tags":{"type":"array","items":{"type":"string"}},"any":{}},
		"required":["city"],"$defs":{"point":{"type":"object","properties":{"x":{"type":"number"}}}}}`)},
	{Name: "now"},
	{Name: "function", Parameters: json.RawMessage(`{"type":"object","properties":{"body":{"type":"string"}}}`)},
}

// answer is a whole answer: content and calls, in the order in which they came.
type answer struct {
	Content, Reasoning string
	Calls              []string // name arguments
}

func read(t testing.TB, f Format, pieces ...string) (a answer) {
	t.Helper()
	n := uint64(0)
	p := f.Parser(tools, func() uint64 { n++; return n })
	add := func(deltas []Delta) {
		for _, d := range deltas {
			switch {
			case !d.Call():
				a.Content += d.Content
				a.Reasoning += d.Reasoning
			case d.Name != "":
				if d.ID == "" || d.Index != len(a.Calls) {
					t.Errorf("call %d begins with %+v", len(a.Calls), d)
				}
				a.Calls = append(a.Calls, d.Name+" "+d.Arguments)
			default:
				if d.Index != len(a.Calls)-1 || d.ID != "" || d.Arguments == "" {
					t.Errorf("call %d goes on with %+v", len(a.Calls)-1, d)
				}
				a.Calls[len(a.Calls)-1] += d.Arguments
			}
		}
	}
	for _, s := range pieces {
		add(p.Push(s))
	}
	add(p.Flush())
	if p.Calls() != len(a.Calls) {
		t.Errorf("Calls() is %d of %d", p.Calls(), len(a.Calls))
	}
	return a
}

var formats = map[string]Format{
	"none": {}, "hermes": {style: hermes}, "functions": {style: functions}, "pairs": {style: pairs}, "llama": {style: pythonTag},
	"mistral": {style: mistral}, "mistral named": {style: mistral, named: true, ids: true}, "deepseek": {style: deepseek},
	"deepseek fenced": {style: deepseek, fenced: true}, "harmony": {style: harmony}, "list": {style: jsonList},
}

var cases = map[string]struct {
	format, text string
	want         answer
}{
	"nothing but text":                 {"hermes", "Hello, <world> & {co}.\n", answer{Content: "Hello, <world> & {co}.\n"}},
	"nothing":                          {"hermes", "", answer{}},
	"one call":                         {"hermes", "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Oslo\"}}\n</tool_call>", answer{Calls: []string{`weather {"city": "Oslo"}`}}},
	"text before, space between":       {"hermes", "Let me see.\n\n<tool_call>{\"name\":\"now\",\"arguments\":{}}</tool_call>\n", answer{Content: "Let me see.", Calls: []string{`now {}`}}},
	"two calls":                        {"hermes", "<tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n</tool_call>\n<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"days\": -1.5e3}}\n</tool_call>", answer{Calls: []string{`now {}`, `weather {"days": -1.5e3}`}}},
	"text between and after":           {"hermes", "<tool_call>{\"name\":\"now\"}</tool_call> and <tool_call>{\"name\":\"now\"}</tool_call>\ndone ", answer{Content: "and \ndone ", Calls: []string{`now {}`, `now {}`}}},
	"a call within a line":             {"hermes", "one two <tool_call>{\"name\":\"now\"}\n</tool_call> three\n", answer{Content: "one two  three\n", Calls: []string{`now {}`}}},
	"no closing tag":                   {"hermes", "<tool_call>{\"name\": \"now\", \"arguments\": {}}", answer{Calls: []string{`now {}`}}},
	"half a closing tag":               {"hermes", "<tool_call>{\"name\": \"now\", \"arguments\": {}}\n</tool_", answer{Calls: []string{`now {}`}}},
	"no closing tag, another call":     {"hermes", "<tool_call>{\"name\": \"now\", \"arguments\": {}}<tool_call>{\"name\": \"now\"}", answer{Calls: []string{`now {}`, `now {}`}}},
	"nested, quoted, escaped":          {"hermes", `<tool_call>{"name": "weather", "arguments": {"where": {"x": [1, {"y": "}]\"</tool_call>\\"}]}, "city": "Zürich \u2603 🌧"}}</tool_call>`, answer{Calls: []string{`weather {"where": {"x": [1, {"y": "}]\"</tool_call>\\"}]}, "city": "Zürich \u2603 🌧"}`}}},
	"raw line break in a string":       {"hermes", "<tool_call>{\"name\": \"weather\", \"arguments\": {\"city\": \"a\nb\tc\"}}</tool_call>", answer{Calls: []string{`weather {"city": "a\nb\tc"}`}}},
	"arguments before the name":        {"hermes", `<tool_call>{"arguments": {"city": "Oslo"}, "id": 7, "name": "weather"}</tool_call>`, answer{Calls: []string{`weather {"city": "Oslo"}`}}},
	"arguments as a string":            {"hermes", `<tool_call>{"name": "weather", "arguments": "{\"city\": \"Oslo\"}"}</tool_call>`, answer{Calls: []string{`weather {"city": "Oslo"}`}}},
	"arguments null":                   {"hermes", `<tool_call>{"name": "now", "arguments": null}</tool_call>`, answer{Calls: []string{`now {}`}}},
	"parameters for arguments":         {"hermes", `<tool_call>{"type": "function", "name": "now", "parameters": { "a" : 0 } , "id": "x"}</tool_call>`, answer{Calls: []string{`now { "a" : 0 }`}}},
	"unknown tool":                     {"hermes", `<tool_call>{"name": "launch", "arguments": {}}</tool_call>`, answer{Content: `<tool_call>{"name": "launch", "arguments": {}}</tool_call>`}},
	"no name":                          {"hermes", `<tool_call>{"arguments": {}}</tool_call> x`, answer{Content: `<tool_call>{"arguments": {}}</tool_call> x`}},
	"not JSON":                         {"hermes", `<tool_call>{'name': 'now'}</tool_call>`, answer{Content: `<tool_call>{'name': 'now'}</tool_call>`}},
	"arguments not JSON":               {"hermes", `<tool_call>{"name": "now", "arguments": {'a': 1}}</tool_call>`, answer{Content: `<tool_call>{"name": "now", "arguments": {'a': 1}}</tool_call>`}},
	"arguments a list":                 {"hermes", `<tool_call>{"name": "now", "arguments": [1]}</tool_call>`, answer{Content: `<tool_call>{"name": "now", "arguments": [1]}</tool_call>`}},
	"empty object":                     {"hermes", `<tool_call>{}</tool_call>`, answer{Content: `<tool_call>{}</tool_call>`}},
	"broken after it began":            {"hermes", `<tool_call>{"name": "weather", "arguments": {"city": "Oslo"; "days": 2}}</tool_call>`, answer{Content: `; "days": 2}}</tool_call>`, Calls: []string{`weather {"city": "Oslo"`}}},
	"one brace too many":               {"hermes", `<tool_call>{"name": "now", "arguments": {}}}</tool_call>`, answer{Content: `}</tool_call>`, Calls: []string{`now {}`}}},
	"broken off in arguments":          {"hermes", `<tool_call>{"name": "weather", "arguments": {"city": "Os`, answer{Calls: []string{`weather {"city": "Os`}}},
	"broken off before arguments":      {"hermes", `<tool_call>{"name": "weather", "argu`, answer{Content: `<tool_call>{"name": "weather", "argu`}},
	"half a marker":                    {"hermes", `a < b <tool_`, answer{Content: `a < b <tool_`}},
	"marker within a marker":           {"hermes", `<tool_<tool_call>{"name": "now"}`, answer{Content: `<tool_`, Calls: []string{`now {}`}}},
	"marker twice":                     {"hermes", `<tool_call> <tool_call>{"name": "now"}`, answer{Content: `<tool_call>`, Calls: []string{`now {}`}}},
	"a list in tags":                   {"hermes", `<tool_call>[{"name": "now"}, {"name": "now", "arguments": {}}]</tool_call>!`, answer{Content: "!", Calls: []string{`now {}`, `now {}`}}},
	"a template that shows none":       {"none", `<tool_call>{"name": "now"}</tool_call>`, answer{Calls: []string{`now {}`}}},
	"closing tag alone":                {"hermes", `x</tool_call>y`, answer{Content: `x</tool_call>y`}},
	"name of another type":             {"hermes", `<tool_call>{"name": 1}</tool_call>`, answer{Content: `<tool_call>{"name": 1}</tool_call>`}},
	"name twice":                       {"hermes", `<tool_call>{"name": "now", "name": "weather"}`, answer{Content: `<tool_call>{"name": "now", "name": "weather"}`}},
	"functions":                        {"functions", "<tool_call>\n<function=weather>\n<parameter=city>\nNew \"York\"\n</parameter>\n<parameter=days>\n3\n</parameter>\n</function>\n</tool_call>", answer{Calls: []string{`weather {"city": "New \"York\"", "days": 3}`}}},
	"functions, no arguments":          {"functions", "I ask.\n<tool_call>\n<function=now>\n</function>\n</tool_call>", answer{Content: "I ask.", Calls: []string{`now {}`}}},
	"functions, types":                 {"functions", "<tool_call><function=weather><parameter=exact>True</parameter><parameter=note>null</parameter><parameter=where>{\"x\": 1}</parameter><parameter=tags>[\"a\"]</parameter><parameter=any>7</parameter><parameter=other>x y</parameter><parameter=days>many</parameter></function></tool_call>", answer{Calls: []string{`weather {"exact": true, "note": null, "where": {"x": 1}, "tags": ["a"], "any": 7, "other": "x y", "days": "many"}`}}},
	"functions, strings as they are":   {"functions", "<tool_call>\n<function=weather>\n<parameter=city>\n 5\n\n</parameter>\n<parameter=note>\n12\n</parameter></function></tool_call>", answer{Calls: []string{`weather {"city": " 5\n", "note": "12"}`}}},
	"functions, tags in a value":       {"functions", "<tool_call>\n<function=weather>\n<parameter=city>\n<p></parameter> </function\n<parameter=x>\n</parameter>\n</function></tool_call>", answer{Calls: []string{`weather {"city": "<p></parameter> </function\n<parameter=x>"}`}}},
	"functions, empty value":           {"functions", "<tool_call>\n<function=weather>\n<parameter=city>\n\n</parameter>\n<parameter=any></parameter></function></tool_call>", answer{Calls: []string{`weather {"city": "", "any": ""}`}}},
	"functions, no outer tag":          {"functions", "<function=now>\n</function>\n</tool_call>", answer{Calls: []string{`now {}`}}},
	"functions, unknown":               {"functions", "<tool_call>\n<function=launch>\n</function>\n</tool_call>", answer{Content: "<tool_call>\n<function=launch>\n</function>\n</tool_call>"}},
	"functions, broken off in a value": {"functions", "<tool_call>\n<function=weather>\n<parameter=city>\nNew", answer{Calls: []string{`weather {"city": "New`}}},
	"functions, object instead":        {"functions", `<tool_call>{"name": "now"}</tool_call>`, answer{Calls: []string{`now {}`}}},
	"pairs":                            {"pairs", "\n<think></think>\n<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>Oslo\nØst</arg_value>\n<arg_key>days</arg_key>\n<arg_value>2</arg_value>\n</tool_call>\n<tool_call>now\n</tool_call>", answer{Content: "\n<think></think>", Calls: []string{`weather {"city": "Oslo\nØst", "days": 2}`, `now {}`}}},
	"pairs on one line":                {"pairs", "<tool_call>weather<arg_key>city</arg_key><arg_value>Oslo</arg_value></tool_call><tool_call>now</tool_call>", answer{Calls: []string{`weather {"city": "Oslo"}`, `now {}`}}},
	"pairs, unknown":                   {"pairs", "<tool_call>weatherman\n</tool_call>", answer{Content: "<tool_call>weatherman\n</tool_call>"}},
	"llama":                            {"llama", `{"name": "weather", "parameters": {"city": "Oslo"}}`, answer{Calls: []string{`weather {"city": "Oslo"}`}}},
	"llama, tag":                       {"llama", `<|python_tag|>{"type": "function", "name": "now", "parameters": {}}`, answer{Calls: []string{`now {}`}}},
	"llama, several":                   {"llama", "\n" + `{"name": "now", "parameters": {}}; {"name": "now", "parameters": {}}` + "\n" + `{"name": "now", "parameters": {}}`, answer{Calls: []string{`now {}`, `now {}`, `now {}`}}},
	"llama, JSON that is an answer":    {"llama", `{"name": "Ada", "parameters": {}}`, answer{Content: `{"name": "Ada", "parameters": {}}`}},
	"llama, JSON within text":          {"llama", `Call {"name": "now", "parameters": {}}`, answer{Content: `Call {"name": "now", "parameters": {}}`}},
	"llama, python":                    {"llama", "<|python_tag|>print(1)", answer{Content: "<|python_tag|>print(1)"}},
	"llama, function tag":              {"llama", `<function=weather>{"city": "Oslo"}</function>`, answer{Calls: []string{`weather {"city": "Oslo"}`}}},
	"mistral":                          {"mistral", `[TOOL_CALLS][{"name": "weather", "arguments": {"city": "Oslo"}, "id": "abcdefghi"}, {"name": "now", "arguments": {}}]`, answer{Calls: []string{`weather {"city": "Oslo"}`, `now {}`}}},
	"mistral, space":                   {"mistral", "Wait.[TOOL_CALLS] [ {\"name\": \"now\", \"arguments\": {} } ]\n", answer{Content: "Wait.", Calls: []string{`now {}`}}},
	"mistral, no closing bracket":      {"mistral", `[TOOL_CALLS][{"name": "now", "arguments": {}}`, answer{Calls: []string{`now {}`}}},
	"mistral, the second unknown":      {"mistral", `[TOOL_CALLS][{"name": "now", "arguments": {}}, {"name": "x"}]`, answer{Content: `, {"name": "x"}]`, Calls: []string{`now {}`}}},
	"mistral named":                    {"mistral named", `[TOOL_CALLS]weather[ARGS]{"city": "[TOOL_CALLS]"}[TOOL_CALLS]now[CALL_ID]abcdefghi[ARGS]{}`, answer{Calls: []string{`weather {"city": "[TOOL_CALLS]"}`, `now {}`}}},
	"mistral named, no mark":           {"mistral named", `[TOOL_CALLS]weather{"city": "Oslo"}`, answer{Calls: []string{`weather {"city": "Oslo"}`}}},
	"mistral named, unknown":           {"mistral named", `[TOOL_CALLS]we[ARGS]{}`, answer{Content: `[TOOL_CALLS]we[ARGS]{}`}},
	"deepseek":                         {"deepseek", `Ok<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>weather<｜tool▁sep｜>{"city": "Oslo"}<｜tool▁call▁end｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>`, answer{Content: "Ok", Calls: []string{`weather {"city": "Oslo"}`, `function {}`}}},
	"deepseek fenced":                  {"deepseek fenced", "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n{\"city\": \"```\"}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>now\n```json\n{}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>", answer{Calls: []string{"weather {\"city\": \"```\"}", `now {}`}}},
	"deepseek, other marks":            {"deepseek", "<｜x｜><｜tool▁calls▁end｜>", answer{Content: "<｜x｜><｜tool▁calls▁end｜>"}},
	"harmony, final":                   {"harmony", "<|channel|>analysis<|message|>Hm, <b>.<|end|><|start|>assistant<|channel|>final<|message|>It is cold.<|return|>", answer{Reasoning: "Hm, <b>.", Content: "It is cold."}},
	"harmony, call":                    {"harmony", "<|channel|>analysis<|message|>Ask.<|end|><|start|>assistant<|channel|>commentary<|message|>One moment.<|end|><|start|>assistant<|channel|>commentary to=functions.weather <|constrain|>json<|message|>{\"city\": \"Oslo\"}<|call|>", answer{Reasoning: "Ask.", Content: "One moment.", Calls: []string{`weather {"city": "Oslo"}`}}},
	"harmony, recipient first":         {"harmony", " to=functions.now<|channel|>commentary json<|message|>{}", answer{Calls: []string{`now {}`}}},
	"harmony, unknown":                 {"harmony", "<|channel|>commentary to=functions.x<|message|>{}", answer{Content: "<|channel|>commentary to=functions.x<|message|>{}"}},
	"harmony, plain":                   {"harmony", "Hello.", answer{Content: "Hello."}},
	"list":                             {"list", `<|tool_call|>[{"arguments": {"city": "Oslo"}, "name": "weather"}, {"name": "now", "arguments": {}}]`, answer{Calls: []string{`weather {"city": "Oslo"}`, `now {}`}}},
	"list, its other spelling":         {"list", `<tool_call>[{"name": "now", "arguments": {}}]`, answer{Calls: []string{`now {}`}}},
}

func TestParser(t *testing.T) {
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(c.want, read(t, formats[c.format], c.text)); diff != "" {
				t.Errorf("%s\n(-want +got)\n%s", c.text, diff)
			}
			if diff := cmp.Diff(c.want, read(t, formats[c.format], strings.Split(c.text, "")...)); diff != "" {
				t.Errorf("character by character: %s\n(-want +got)\n%s", c.text, diff)
			}
		})
	}
}

// An answer reads the same however it is cut, in every format.
func TestCuts(t *testing.T) {
	for name, c := range cases {
		for _, f := range formats {
			whole := read(t, f, c.text)
			cut := func(at []uint8) bool {
				var pieces []string
				rest := c.text
				for _, n := range at {
					n := int(n) % 24
					pieces, rest = append(pieces, rest[:min(n, len(rest))]), rest[min(n, len(rest)):]
				}
				return cmp.Equal(whole, read(t, f, append(pieces, rest)...))
			}
			if err := quick.Check(cut, &quick.Config{MaxCount: 20}); err != nil {
				t.Errorf("%s as %s: %v", name, f, err)
			}
		}
	}
}

// An answer that was cut off shows nothing of the call that it began, whatever the cut; what may be text stays.
func TestCutOff(t *testing.T) {
	for _, c := range []struct{ format, text, want string }{
		{"hermes", "Well.\n<tool_call>\n<function", "Well."},
		{"hermes", "<tool_call>", ""},
		{"hermes", `<tool_call>{"name": "weather", "argu`, ""},
		{"hermes", `<tool_call>[{"name": "now"}, {"na`, ""},
		{"hermes", "if a <", "if a <"},
		{"hermes", "<tool_ca", "<tool_ca"},
		{"hermes", `<tool_call>{"name": "launch"`, `<tool_call>{"name": "launch"`},
		{"functions", "Well <tool_call>\n<function=wea", "Well"},
		{"pairs", "<tool_call>wea", ""},
		{"llama", "<|python_tag|>{", ""},
		{"llama", `{"name": "Ad`, `{"name": "Ad`},
		{"llama", `{"name": "now", "parameters": {}}; {"na`, ""},
		{"mistral", `Wait.[TOOL_CALLS][{"name"`, "Wait."},
		{"mistral named", "[TOOL_CALLS]wea", ""},
		{"deepseek", "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>wea", ""},
		{"harmony", "<|channel|>final<|message|>Yes.<|end|><|start|>assistant<|chan", "Yes."},
		{"list", "<|tool_call|>[", ""},
	} {
		for _, pieces := range [][]string{{c.text}, strings.Split(c.text, "")} {
			p := formats[c.format].Parser(tools, func() uint64 { return 1 })
			var got string
			for _, s := range pieces {
				for _, d := range p.Push(s) {
					got += d.Content
				}
			}
			for _, d := range p.Cut() {
				got += d.Content
			}
			if got != c.want {
				t.Errorf("%s: %q has the content %q, not %q", c.format, c.text, got, c.want)
			}
		}
	}
}

// Arguments come as soon as they are certain, and never half a marker before.
func TestStreams(t *testing.T) {
	for _, c := range []struct {
		format string
		pieces []string
		want   []string
	}{
		{"hermes", []string{"Hi <", "tool_call", ">", `{"name": "weather", "arguments": {"ci`, `ty": "Os`, `lo"`, `}`, `}</tool_call`, `>`},
			[]string{"Hi", "", "", `0 weather {"ci`, `0  ty": "Os`, `0  lo"`, `0  }`, "", "", ""}},
		{"functions", []string{"<tool_call>\n<function=weather>", "\n<parameter=city>\nNew", " York", "\n</para", "meter>\n", "</function>", "\n</tool_call>"},
			[]string{"", `0 weather {"city": "New`, "0   York", "", "", `0  "}`, "", ""}},
		{"llama", []string{"<", "b>bold", " {", `"name"`}, []string{"", "<b>bold", " {", `"name"`, ""}},
	} {
		p := formats[c.format].Parser(tools, func() uint64 { return 1 })
		var got []string
		show := func(deltas []Delta) {
			var s string
			for _, d := range deltas {
				if s += d.Content; d.Call() {
					s += fmt.Sprint(d.Index, " ", d.Name, " ", d.Arguments)
				}
			}
			got = append(got, s)
		}
		for _, s := range c.pieces {
			show(p.Push(s))
		}
		show(p.Flush())
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%s (-want +got)\n%s", c.format, diff)
		}
	}
}

func TestIDs(t *testing.T) {
	bits := uint64(12345678901234567890)
	for _, f := range formats {
		id := f.id(func() uint64 { return bits })
		if strings.Trim(id, "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz_") != "" || id != f.id(func() uint64 { return bits }) {
			t.Errorf("%s: id %q", f, id)
		}
		if f.style == mistral && (len(id) != 9 || strings.Contains(id, "_")) {
			t.Errorf("%s: id %q", f, id)
		}
	}
}

func TestDetect(t *testing.T) {
	for source, want := range map[string]string{
		"{{ messages }}": "unknown", "<|im_start|>": "unknown", "<|start_header_id|>": "llama",
		"<tool_call> <|start_header_id|>": "hermes", "[TOOL_CALLS]": "mistral",
	} {
		if got := Detect(source).String(); got != want {
			t.Errorf("%q: %s, not %s", source, got, want)
		}
	}
	for name, want := range map[string]string{
		"GLM-4.6": "pairs", "HuggingFaceTB-SmolLM3-3B": "unknown", "Mistral-Small-3.2-24B-Instruct-2506": "mistral",
		"Qwen-Qwen2.5-7B-Instruct": "hermes", "Qwen-Qwen3-0.6B": "hermes", "Qwen3-Coder": "functions", "chatml-own": "unknown",
		"deepseek-ai-DeepSeek-R1-Distill-Qwen-32B": "deepseek", "deepseek-ai-DeepSeek-V3.1": "deepseek",
		"ibm-granite-granite-3.3-2B-Instruct": "list", "llama3-style-own": "llama", "microsoft-Phi-3.5-mini-instruct": "unknown",
		"mistralai-Mistral-Nemo-Instruct-2407": "mistral", "openai-gpt-oss-120b": "harmony",
	} {
		source, err := os.ReadFile(fixture.Shared(t, "tokenizers/chat-templates/"+name+".jinja"))
		if err != nil {
			t.Fatal(err)
		}
		f := Detect(string(source))
		if f.String() != want {
			t.Errorf("%s: %s, not %s", name, f, want)
		}
		if f.named != (name == "Mistral-Small-3.2-24B-Instruct-2506") || f.fenced != strings.Contains(name, "R1") {
			t.Errorf("%s: %+v", name, f)
		}
	}
}

// A hostile text costs time in proportion to what may be held.
func TestBounds(t *testing.T) {
	for _, text := range []string{
		strings.Repeat("<tool_call>", 10000), strings.Repeat(`<tool_call>{"arguments":"`, 4000), `<tool_call>` + strings.Repeat(" ", 200000),
		`<tool_call>{"name":"now","arguments":{"a":` + strings.Repeat("[", 100000), strings.Repeat("[TOOL_CALLS]", 10000), strings.Repeat("<", 100000),
		strings.Repeat("<function=weather><parameter=city></parameter>"+strings.Repeat(" ", 70), 2000),
	} {
		for _, f := range formats {
			read(t, f, text)
		}
	}
}

// Whatever comes: cuts do not matter, calls are of tools, arguments are JSON or begin it, and
// without calls nothing is lost.
func FuzzParser(f *testing.F) {
	names := make([]string, 0, len(formats))
	for name := range formats {
		names = append(names, name)
	}
	for _, c := range cases {
		f.Add(c.text, uint8(7))
	}
	f.Fuzz(func(t *testing.T, text string, cut uint8) {
		for _, name := range names {
			f := formats[name]
			whole := read(t, f, text)
			var pieces []string
			for rest := text; rest != ""; {
				n := min(1+int(cut)%16, len(rest))
				pieces, rest = append(pieces, rest[:n]), rest[n:]
				cut = cut*5 + 3
			}
			if diff := cmp.Diff(whole, read(t, f, pieces...)); diff != "" {
				t.Fatalf("%s, cut: %q\n%s", name, text, diff)
			}
			if len(whole.Calls) == 0 && !f.Always() && whole.Content != text {
				t.Fatalf("%s: %q became %q", name, text, whole.Content)
			}
			for _, call := range whole.Calls {
				tool, arguments, _ := strings.Cut(call, " ")
				var s scanner
				if tool != "weather" && tool != "now" && tool != "function" {
					t.Fatalf("%s: %q calls %q", name, text, tool)
				}
				for i := range len(arguments) {
					if got := s.step(arguments[i]); got == broken || got == ended && i != len(arguments)-1 {
						t.Fatalf("%s: %q has arguments %q", name, text, arguments)
					}
				}
			}
		}
	})
}

// The scanner agrees with the standard library on what is JSON.
func FuzzScanner(f *testing.F) {
	for _, s := range []string{`{"a":[1,-0.5e+7,true,false,null,"\u00e9\n"]}`, `[]`, `01`, `-`, `1.`, `{"a":1,}`, `"\x"`, ` 7 `, `[1 2]`, `{"a" 1}`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		text = strings.TrimSpace(text)
		var s scanner
		got, raw := more, false
		for i := range len(text) {
			raw = raw || s.inString() && text[i] < ' '
			if got = s.step(text[i]); got == broken || got != more && i != len(text)-1 || got == before {
				return // checked below only where it accepts
			}
		}
		complete := got == ended || len(s.open) == 0 && (s.state == scanZero || s.state == scanDigits || s.state == scanFrac || s.state == scanPower)
		if complete && !raw && !json.Valid([]byte(text)) {
			t.Fatalf("%q is not JSON", text)
		}
	})
}

// What templates render of earlier calls reads as those calls.
func TestTemplates(t *testing.T) {
	want := []string{`weather {"city": "New \"York\" ü", "days": 3}`, `now {}`}
	for _, name := range []string{
		"GLM-4.6", "Mistral-Small-3.2-24B-Instruct-2506", "Qwen-Qwen2.5-7B-Instruct", "Qwen-Qwen3-0.6B", "Qwen3-Coder",
		"deepseek-ai-DeepSeek-R1-Distill-Qwen-32B", "deepseek-ai-DeepSeek-V3.1", "mistralai-Mistral-Nemo-Instruct-2407", "openai-gpt-oss-120b",
	} {
		source, err := os.ReadFile(fixture.Shared(t, "tokenizers/chat-templates/"+name+".jinja"))
		if err != nil {
			t.Fatal(err)
		}
		chat, err := template.Parse(name, string(source))
		if err != nil {
			t.Fatal(err)
		}
		f := Detect(string(source))
		calls := []string{`{"id":"abcdefgh1","type":"function","function":{"name":"weather","arguments":{"city":"New \"York\" ü","days":3}}}`,
			`{"id":"abcdefgh2","type":"function","function":{"name":"now","arguments":{}}}`}
		want := want
		if f.style == harmony { // one call a message
			calls, want = calls[:1], want[:1]
		}
		user := `{"role":"user","content":"How is it?"}`
		render := func(messages string, prompt bool) string {
			r, err := chat.Render(template.Input{Messages: json.RawMessage("[" + messages + "]"), AddGenerationPrompt: prompt, EOS: "</s>"})
			if err != nil {
				t.Fatal(name, err)
			}
			return r.Text
		}
		text := render(user+`,{"role":"assistant","content":"","tool_calls":[`+strings.Join(calls, ",")+`]}`, false)
		before := render(user, false)
		text = strings.TrimPrefix(text, before)
		p := f.Parser(tools, func() uint64 { return 1 })
		var got []string
		for _, d := range append(p.Push(text), p.Flush()...) {
			if d.Name != "" {
				got = append(got, d.Name+" ")
			}
			if d.Call() {
				got[len(got)-1] += d.Arguments
			}
		}
		for i, call := range got { // white space within differs
			var to bytes.Buffer
			tool, arguments, _ := strings.Cut(call, " ")
			if err := json.Compact(&to, []byte(arguments)); err != nil {
				t.Errorf("%s: %v: %s", name, err, call)
			}
			got[i] = tool + " " + strings.NewReplacer(`":`, `": `, `,"`, `, "`, `\u00fc`, "ü").Replace(to.String())
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: %s\n%s", name, text, diff)
		}
	}
}

// What reading costs a token of a plain answer, and of a call.
func BenchmarkParser(b *testing.B) {
	for name, text := range map[string]string{
		"text": strings.Repeat("The ship <b>sails</b> on. ", 40),
		"call": `<tool_call>{"name": "weather", "arguments": {"city": "` + strings.Repeat("A long name, ", 80) + `"}}</tool_call>`,
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			tokens := 0
			for b.Loop() {
				p := formats["hermes"].Parser(tools, func() uint64 { return 1 })
				tokens = 0
				for rest := text; rest != ""; tokens++ {
					n := min(4, len(rest))
					p.Push(rest[:n])
					rest = rest[n:]
				}
				p.Flush()
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*tokens), "ns/token")
		})
	}
}
