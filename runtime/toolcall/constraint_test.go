package toolcall

import (
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/estiba/estiba/runtime/grammar"
)

// strictTools have schemas of every kind, and what their arguments must then be.
var strictTools = []struct {
	Tool
	valid func(map[string]any) bool
}{
	{Tool{Name: "weather", Parameters: json.RawMessage(`{"type":"object","properties":{
		"city":{"type":"string"},"unit":{"enum":["C","F"]},"days":{"type":"integer"},"exact":{"type":"boolean"},
		"note":{"anyOf":[{"type":"string","maxLength":3},{"type":"null"}]}},
		"required":["city","unit","days"],"additionalProperties":false}`)},
		func(a map[string]any) bool {
			_, city := a["city"].(string)
			days, isNumber := a["days"].(float64)
			note, isString := a["note"].(string)
			_, isBool := a["exact"].(bool)
			return city && (a["unit"] == "C" || a["unit"] == "F") && isNumber && days == math.Trunc(days) &&
				(a["note"] == nil || isString && len([]rune(note)) <= 3) && (a["exact"] == nil || isBool)
		}},
	{Tool{Name: "now", Parameters: json.RawMessage(`{}`)}, func(a map[string]any) bool { return a != nil }},
	{Tool{Name: "plot", Parameters: json.RawMessage(`{"type":"object","properties":{
		"points":{"type":"array","minItems":1,"maxItems":2,"items":{"$ref":"#/$defs/point"}},"key":{"type":"string","pattern":"^[a-c]{2,3}$"}},
		"required":["points","key"],"additionalProperties":false,
		"$defs":{"point":{"type":"object","properties":{"x":{"type":"number"}},"required":["x"],"additionalProperties":false}}}`)},
		func(a map[string]any) bool {
			points, _ := a["points"].([]any)
			for _, p := range points {
				m, _ := p.(map[string]any)
				if _, ok := m["x"].(float64); !ok {
					return false
				}
			}
			key, _ := a["key"].(string)
			return len(points) >= 1 && len(points) <= 2 && regexp.MustCompile(`^[a-c]{2,3}$`).MatchString(key)
		}},
}

// vocabulary has a token for each byte and for some texts, an end, and perhaps the format's
// markers as special tokens.
func vocabulary(f Format, special bool) (v *grammar.Vocabulary, text func(id int32) string, end int32) {
	var tokens []string
	for b := range 256 {
		tokens = append(tokens, string([]byte{byte(b)}))
	}
	tokens = append(tokens, `{"`, `": `, `"}`, "}}", "\n\n", "tool", "name", ` "`, "</", "ü", "the", "01")
	plain := len(tokens)
	if special {
		tokens = append(tokens, f.Markers()...)
	}
	end = int32(len(tokens))
	v = grammar.NewVocabulary(len(tokens)+1, func(id int32) ([]byte, bool) {
		if int(id) >= plain {
			return nil, false
		}
		return []byte(tokens[id]), true
	}, []int32{end})
	for id := plain; id < len(tokens); id++ {
		v.AddSpecial(tokens[id], int32(id))
	}
	return v, func(id int32) string { return tokens[id] }, end
}

// walk is a text of g that a random model writes, after a beginning. It likes to close what is open.
func walk(t *testing.T, g *grammar.Grammar, v *grammar.Vocabulary, text func(int32) string, end int32, r *rand.Rand, begin string) string {
	t.Helper()
	m := grammar.NewMatcher(g, v)
	var s strings.Builder
	for _, b := range []byte(begin) {
		s.WriteByte(b)
		if err := m.Accept(int32(b)); err != nil {
			t.Fatal(err)
		}
	}
	var closer string // what it is about to write
	for n := 0; ; n++ {
		mask := m.Mask()
		var all, closing, markers []int32
		for w, bits := range mask {
			for b := range 64 {
				id := int32(w*64 + b)
				if bits>>b&1 == 0 {
					continue
				}
				all = append(all, id)
				if id != end && id > 256 && len(text(id)) > 4 {
					markers = append(markers, id)
				}
				if id == end || strings.Contains("\"}]", text(id)) || strings.HasPrefix(text(id), "<") {
					closing = append(closing, id)
				}
			}
		}
		switch {
		case len(all) == 0:
			t.Fatalf("nothing may follow %q", s.String())
		case n > 4000:
			t.Fatalf("no end: %q", s.String())
		case len(closing) > 0 && (n > 300 || r.IntN(4) == 0):
			all = closing
		}
		if len(markers) > 0 && n > 200 {
			all = markers
		}
		id := all[r.IntN(len(all))]
		if closer == "" && n > 200 && r.IntN(2) == 0 {
			closer = []string{"</parameter>", "\n</parameter>", "\n", "</arg_value>", "<|end|>"}[r.IntN(5)]
		}
		if closer != "" {
			next := int32(closer[0])
			if closer = closer[1:]; mask[next/64]>>(next%64)&1 != 0 {
				id = next
			} else {
				closer = ""
			}
		}
		if err := m.Accept(id); err != nil {
			t.Fatal(err)
		}
		if id == end {
			return s.String()
		}
		s.WriteString(text(id))
	}
}

// Whatever a model prefers, an answer that must call does so, validly, and is read so.
func TestConstraint(t *testing.T) {
	var offered []Tool
	for _, s := range strictTools {
		offered = append(offered, s.Tool)
	}
	for name, f := range formats {
		for _, special := range []bool{false, true} {
			v, text, end := vocabulary(f, special)
			r := rand.New(rand.NewPCG(1, 2))
			for _, c := range []Choice{{Mode: Required, Parallel: true}, {Mode: Required}, {Mode: Named, Name: "plot", Parallel: true}} {
				t.Run(fmt.Sprint(name, special, c), func(t *testing.T) {
					g, err := f.Constraint(offered, c)
					if err != nil {
						t.Fatal(err)
					}
					most := 0
					for range 20 {
						s := walk(t, g, v, text, end, r, "")
						calls, content := parse(f, offered, s)
						if most = max(most, len(calls)); len(calls) == 0 || content != "" || len(calls) > 1 && c != (Choice{Mode: Required, Parallel: true}) {
							t.Fatalf("%q has the calls %v and the content %q", s, calls, content)
						}
						for _, call := range calls {
							checkCall(t, s, call, c.Name)
						}
					}
					if c.Mode == Required && c.Parallel && most < 2 && f.style != harmony {
						t.Error("never more than one call")
					}
				})
			}
		}
	}
}

func parse(f Format, offered []Tool, s string) (calls [][2]string, content string) {
	p := f.Parser(offered, func() uint64 { return 7 })
	for _, d := range append(slices.Clone(p.Push(s)), p.Flush()...) {
		switch content += d.Content; {
		case d.Name != "":
			calls = append(calls, [2]string{d.Name, d.Arguments})
		case d.Call():
			calls[len(calls)-1][1] += d.Arguments
		}
	}
	return calls, content
}

func checkCall(t *testing.T, s string, call [2]string, name string) {
	t.Helper()
	i := slices.IndexFunc(strictTools, func(s struct {
		Tool
		valid func(map[string]any) bool
	}) bool {
		return s.Name == call[0]
	})
	var arguments map[string]any
	if err := json.Unmarshal([]byte(call[1]), &arguments); i < 0 || err != nil || name != "" && call[0] != name || !strictTools[i].valid(arguments) {
		t.Fatalf("%q: %s with %s is not valid: %v", s, call[0], call[1], err)
	}
}

// Left to the model, strict tools are called validly or not at all.
func TestStrict(t *testing.T) {
	var offered []Tool
	for _, s := range strictTools {
		s.Strict = s.Name != "now"
		offered = append(offered, s.Tool)
	}
	for name, f := range formats {
		t.Run(name, func(t *testing.T) {
			g, err := f.Constraint(offered, Choice{Parallel: true})
			if err != nil {
				t.Fatal(err)
			}
			v, text, end := vocabulary(f, true)
			r := rand.New(rand.NewPCG(3, 4))
			called := 0
			for n := range 30 {
				begin := ""
				if f.style == pythonTag && n%2 == 0 {
					begin = "{"
				}
				s := walk(t, g, v, text, end, r, begin)
				calls, _ := parse(f, offered, s)
				called += len(calls)
				for _, call := range calls {
					checkCall(t, s, call, "")
				}
			}
			if called == 0 {
				t.Error("no text had calls")
			}
			if f.style == harmony {
				return
			}
			m := grammar.NewMatcher(g, v)
			for _, b := range []byte("A plain answer, with {braces} and <b>tags</b>.") {
				if err := m.Accept(int32(b)); err != nil {
					t.Fatal(err)
				}
			}
			if !m.MayEnd() {
				t.Error("a plain answer may not end")
			}
		})
	}
}

func TestConstraintRefuses(t *testing.T) {
	one := func(schema string) []Tool {
		return []Tool{{Name: "a", Parameters: json.RawMessage(schema), Strict: true}}
	}
	for name, c := range map[string]struct {
		tools  []Tool
		choice Choice
		says   string // "": no error; "nil": and no constraint
	}{
		"auto":            {[]Tool{{Name: "a"}}, Choice{}, "nil"},
		"none":            {one(`{}`), Choice{Mode: None}, "nil"},
		"no such tool":    {one(`{}`), Choice{Mode: Named, Name: "b"}, `tool "b" is not among the tools`},
		"no tools":        {nil, Choice{Mode: Required}, "there are no tools"},
		"no schema":       {one(``), Choice{Mode: Required}, ""},
		"a broken schema": {one(`{"type":"object","properties":{"x":{"type":"strange"}}}`), Choice{Mode: Required}, `tool "a"`},
	} {
		g, err := Format{style: hermes}.Constraint(c.tools, c.choice)
		if (g == nil) != (c.says != "") || (err == nil) != (c.says == "" || c.says == "nil") || err != nil && !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, %v", name, g, err)
		}
	}
	combined := one(`{"type":"object","properties":{"x":{"type":"string","pattern":"a","maxLength":3}}}`)
	if _, err := (Format{style: functions}).Constraint(combined, Choice{Mode: Required}); err == nil || !strings.Contains(err.Error(), `argument "x"`) {
		t.Error(err)
	}
}

// An argument between tags may refer to the whole schema, and to its neighbours.
func TestReferences(t *testing.T) {
	tree := []Tool{{Name: "grow", Parameters: json.RawMessage(`{"type":"object","properties":{
		"leaf":{"type":"object","properties":{"n":{"type":"integer"}},"required":["n"],"additionalProperties":false},
		"twin":{"$ref":"#/properties/leaf"},"trees":{"type":"array","maxItems":2,"items":{"$ref":"#"}}},
		"required":["twin","trees"],"additionalProperties":false}`)}}
	var valid func(map[string]any) bool
	valid = func(a map[string]any) bool {
		twin, _ := a["twin"].(map[string]any)
		_, isNumber := twin["n"].(float64)
		trees, isList := a["trees"].([]any)
		for _, tree := range trees {
			m, _ := tree.(map[string]any)
			isList = isList && valid(m)
		}
		return isNumber && isList
	}
	for _, name := range []string{"functions", "pairs", "hermes"} {
		f := formats[name]
		g, err := f.Constraint(tree, Choice{Mode: Required})
		if err != nil {
			t.Fatal(name, err)
		}
		v, text, end := vocabulary(f, false)
		r := rand.New(rand.NewPCG(5, 6))
		for range 20 {
			s := walk(t, g, v, text, end, r, "")
			calls, _ := parse(f, tree, s)
			var a map[string]any
			if len(calls) != 1 || json.Unmarshal([]byte(calls[0][1]), &a) != nil || !valid(a) {
				t.Fatalf("%s: %q has the calls %v", name, s, calls)
			}
		}
	}
}

// Whatever the schema: a grammar or an error, soon.
func FuzzConstraint(f *testing.F) {
	for _, s := range strictTools {
		f.Add("a", []byte(s.Parameters))
	}
	f.Add("b", []byte(`{"properties":{"x":{"$ref":"#/properties/x"},"y":{"anyOf":[{"$ref":"#"},{"type":"string","minLength":1000000}]}},"required":["y","z"]}`))
	f.Add("<", []byte(`{"type":"object","properties":{"</parameter>":{"type":"string","enum":["</parameter>",null]}}}`))
	f.Fuzz(func(t *testing.T, name string, schema []byte) {
		if !json.Valid(schema) || len(schema) > 1<<10 {
			return // a request's parts are JSON
		}
		tool := Tool{Name: name, Parameters: schema, Strict: true}
		for _, format := range formats {
			for _, c := range []Choice{{}, {Mode: Required, Parallel: true}} {
				begun := time.Now()
				g, err := format.Constraint([]Tool{tool}, c)
				if (g == nil) == (err == nil) {
					t.Fatal(g, err)
				}
				if spent := time.Since(begun); spent > 5*time.Second {
					t.Fatalf("%s took %v", schema, spent)
				}
			}
			parse(format, []Tool{tool}, "<tool_call>"+name+"\n<arg_key>x</arg_key><arg_value>1</arg_value></tool_call>")
		}
	})
}

// Types of arguments are found through references, options and enumerations.
func TestProperties(t *testing.T) {
	got := map[string]string{}
	for _, p := range properties(json.RawMessage(`{"$ref":"#/$defs/all","$defs":{"n":{"type":"integer"},"loop":{"$ref":"#/$defs/loop"},"all":{"properties":{
		"a":{"type":"string"},"b":{"type":["string","null"]},"c":{"$ref":"#/$defs/n"},"d":{"enum":["x",1]},"e":{"anyOf":[{"type":"string"},{"$ref":"#/$defs/n"}]},
		"f":{"$ref":"#/$defs/loop"},"g":true,"h":{"const":"x"},"i":{"type":"string","nullable":true},"j":{"allOf":[{"type":["string","array"]},{"type":"array"}]}},
		"required":["a","z"]}}}`)) {
		got[p.name] = fmt.Sprintf("%b %v", p.kinds, p.required)
	}
	for name, want := range map[string]kinds{"a": kindString, "b": kindString | kindNull, "c": kindInteger, "d": kindString | kindNumber | kindInteger,
		"e": kindString | kindInteger, "f": kindAny, "g": kindAny, "h": kindString, "i": kindString | kindNull, "j": kindArray, "z": kindAny} {
		if got[name] != fmt.Sprintf("%b %v", want, name == "a" || name == "z") {
			t.Errorf("%s: %s, want %b; %v", name, got[name], want, slices.Sorted(maps.Keys(got)))
		}
	}
}

// Schemas that ask for much are read in a time that grows with their size.
func TestHostileProperties(t *testing.T) {
	var names, members strings.Builder
	for i := range 30_000 {
		fmt.Fprintf(&names, `"a%d",`, i)
		fmt.Fprintf(&members, `"a%d":{},`, i)
	}
	large := `{"description":"` + strings.Repeat("x", 500_000) + `"}`
	for name, schema := range map[string]string{
		"required":   `{"properties":{` + members.String() + `"z":{}},"required":[` + names.String() + `"z"]}`,
		"nested":     `{"properties":{"p":` + strings.Repeat(`{"anyOf":[`, 3000) + large + strings.Repeat("]}", 3000) + `}}`,
		"references": `{"properties":{"p":{"anyOf":[` + strings.Repeat(`{"$ref":"#/$defs/b"},`, 4000) + `{}]}},"$defs":{"b":` + large + `}}`,
	} {
		start := time.Now()
		list := properties(json.RawMessage(schema))
		if took := time.Since(start); len(list) == 0 || took > 2*time.Second {
			t.Errorf("%s: %d properties after %v", name, len(list), took)
		}
	}
}

// What a request with many tools costs before its first token.
func BenchmarkConstraint(b *testing.B) {
	var offered []Tool
	for i := range 64 {
		var list []string
		for j := range 10 {
			list = append(list, fmt.Sprintf(`"argument%d":{"type":"string","description":"What it is."}`, j))
		}
		offered = append(offered, Tool{Name: fmt.Sprint("tool", i), Parameters: json.RawMessage(`{"type":"object","properties":{` + strings.Join(list, ",") + `},"required":["argument1"],"additionalProperties":false}`)})
	}
	for _, name := range []string{"hermes", "functions"} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := formats[name].Constraint(offered, Choice{Mode: Required, Parallel: true}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// Tools that are not strict can be called though their schemas cannot be kept.
func TestLooseTools(t *testing.T) {
	loose := Tool{Name: "weather", Parameters: json.RawMessage(`{"type":"object","properties":{"city":{"type":"string"},"days":{"type":"array","uniqueItems":true}},"required":["city"]}`)}
	for name, f := range formats {
		v, text, end := vocabulary(f, true)
		r := rand.New(rand.NewPCG(3, 4))
		g, err := f.Constraint([]Tool{loose}, Choice{Mode: Required})
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		for range 5 {
			s := walk(t, g, v, text, end, r, "")
			if calls, content := parse(f, []Tool{loose}, s); len(calls) != 1 || content != "" {
				t.Errorf("%s: %q has the calls %v and the content %q", name, s, calls, content)
			}
		}
		loose := loose
		loose.Strict = true
		if _, err := f.Constraint([]Tool{loose}, Choice{Mode: Required}); err == nil || !strings.Contains(err.Error(), "uniqueItems") {
			t.Errorf("%s, strict: %v", name, err)
		}
	}
}

// A structured answer has its text where the format has it.
func TestAnswer(t *testing.T) {
	content, err := grammar.Choice([]string{"yes", "no"})
	if err != nil {
		t.Fatal(err)
	}
	for name, f := range formats {
		v, text, end := vocabulary(f, true)
		r := rand.New(rand.NewPCG(5, 6))
		for range 10 {
			s := walk(t, f.Answer(content), v, text, end, r, "")
			if calls, got := parse(f, nil, s); len(calls) != 0 || got != "yes" && got != "no" {
				t.Errorf("%s: %q has the content %q", name, s, got)
			}
		}
	}
}
