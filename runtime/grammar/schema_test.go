package grammar

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
)

// schemas, with values that must be possible and texts that must not.
var schemas = []texts{
	{`{"type":"object","properties":{"a":{"type":"integer"},"b":{"type":"string","maxLength":3}},"required":["a"]}`,
		`{"a":1}|{"a":-12,"b":"x\"é"}|{^  "a": 1,^  "b": ""^}|{"a":1,"b":"\ud83d\ude00"}|{ "a": 1 }|{"a": 0,"b": "\u00e9\n/"}`, `{}|{"b":"x"}|{"a":1,"b":"abcd"}|{"a":1.5}|{"a":1,"c":1}|{"a":01}|{"a":1,"b":"\ud83d"}|{"a" :1}| {"a":1}|{"a":1} |{"a":1,}|{"a":  1}`},
	{`{"type":"object","additionalProperties":{"type":"integer"},"properties":{"ab":{"type":"null"}}}`, `{}|{"ab":null}|{"x":1,"y":2}|{"abc":1,"a":2}|{"ab":null,"":0}`, `{"ab":1}|{"\u0061b":1}|{"x":1,"ab":null}|{"x":"y"}`},
	{`{"$ref":"#/$defs/n","$defs":{"n":{"type":"object","properties":{"next":{"anyOf":[{"$ref":"#/$defs/n"},{"type":"null"}]}},"required":["next"],"additionalProperties":false}}}`, `{"next":null}|{"next":{"next":null}}`, `{}|{"next":1}`},
	{`{"enum":["a","b",1,null,{"x":[1,2]},"é",2.50]}`, `"a"|1|null|{"x":[1,2]}|{"x": [1, 2]}|"\u00e9"|"é"|2.50`, `"c"|2|{"x":[1]}`},
	{`{"enum":["a",1,"abc",true],"type":["string","boolean"],"minLength":2}`, `"abc"|true`, `"a"|1`},
	{`{"const":{"b":1,"a":[]}}`, `{"b":1,"a":[]}`, `{"a":[],"b":1}`},
	{`{"type":"integer","minimum":-5,"exclusiveMaximum":120}`, `-5|0|119|99|-1`, `-6|120|1000|-0|1.0`},
	{`{"type":"integer","minimum":1000,"maximum":1e6}`, `1000|99999|1000000|543210`, `999|1000001|0`},
	{`{"type":"number","minimum":0,"maximum":1.5}`, `0|1.5|1.49|0.25|1e-07|1.50|1.5e-300`, `1.51|2|-1|1e1`},
	{`{"type":"number","exclusiveMinimum":0}`, `0.1|1|1000000|1e-07`, `0|-1|0.0`},
	{`{"type":"number","exclusiveMinimum":-1.25,"exclusiveMaximum":-0.5}`, `-1|-1.2|-0.51|-1.2499`, `-0.5|-1.25|-1.3|0|1`},
	{`{"type":"integer","multipleOf":7}`, `0|7|-14|700`, `8|-1`},
	{`{"type":"integer","multipleOf":100,"minimum":250}`, `300|1200`, `200|250|301`},
	{`{"type":"number","multipleOf":0.05}`, `0.05|1|0.1|0.15|-12.35`, `0.01|0.051|1e1`},
	{`{"type":"integer","multipleOf":2.5}`, `0|5|-10`, `2|7`},
	{`{"type":"number","allOf":[{"multipleOf":0.5},{"multipleOf":1.5}]}`, `1.5|3|0`, `0.5|1`},
	{`{"type":"number"}`, `0|-0|-0.0|1.5|12345678901234567890|1e+16|1.5e+300|9.99e-300|0.1e5`, `01|.5|1.|+1|1e400|1e|--1`},
	{`{"type":"string","pattern":"^[a-z]+$","minLength":2,"maxLength":4}`, `"ab"|"abcd"`, `"a"|"abcde"|"A"`},
	{`{"type":"string","pattern":"b","maxLength":3}`, `"b"|"abc"|"\nb"|"😀b"|"\ud83d\ude00b"`, `"a"|"aabb"`},
	{`{"type":"string","pattern":"^\\S+ \\S+$"}`, `"a b"|"é \u65e5"|"\"\\ x"`, `"ab"|" b"`},
	{`{"type":"string","allOf":[{"pattern":"a"},{"pattern":"b"}]}`, `"ab"|"ba"|"xaxbx"`, `"a"|"b"`},
	{`{"type":"string","minLength":2}`, `"ab"|"\u00e9\n"`, `"a"|""`},
	{`{"type":"array","items":{"type":"boolean"},"minItems":1,"maxItems":2}`, `[true]|[true,false]|[true, false]|[^  true,^  false^]`, `[]|[true,true,true]|[1]|[true,]`},
	{`{"type":"array","prefixItems":[{"type":"null"},{"const":1}],"items":false}`, `[]|[null]|[null,1]`, `[null,1,1]|[1]`},
	{`{"type":"array","prefixItems":[{"type":"null"}],"items":{"type":"integer"},"minItems":2}`, `[null,1]|[null,1,2]`, `[null]|[1,1]`},
	{`{"items":[{"type":"null"},{"type":"integer"}],"type":"array","additionalItems":{"type":"string"}}`, `[]|[null,1,"a"]`, `[1]|[null,1,1]`},
	{`{"type":["string","null"],"format":"date"}`, `null|"2024-02-29"|"2023-12-31"`, `"2023-02-29"|"2023-13-01"|"0000-01-01"|1`},
	{`{"type":"string","format":"date-time"}`, `"2023-12-31T23:59:59Z"|"2023-12-31T23:59:59.123+01:00"`, `"2023-12-31"|"2023-12-31T24:00:00Z"`},
	{`{"type":"string","format":"time"}`, `"23:59:59Z"`, `"23:59"`}, {`{"type":"string","format":"duration"}`, `"P1Y2M3DT4H5M6S"|"P3W"|"PT1S"`, `"P"|"PT"|"1D"`},
	{`{"type":"string","format":"uuid"}`, `"123e4567-e89b-12d3-a456-426614174000"`, `"123"`}, {`{"type":"string","format":"email"}`, `"a.b+c@example.com"`, `"a"|"a@b"`},
	{`{"type":"string","format":"ipv4"}`, `"127.0.0.1"|"255.255.255.255"`, `"256.0.0.1"|"1.2.3"`}, {`{"type":"string","format":"ipv6"}`, `"::1"|"::"|"2001:db8::ff00:42:8329"|"1:2:3:4:5:6:7:8"`, `"1:2"|"::1::"`},
	{`{"type":"string","format":"hostname"}`, `"example.com"|"a"`, `"-a"|""`}, {`{"type":"string","format":"uri"}`, `"https://example.com/a/b?x=1#y"|"http://a:80"`, `"example"`},
	{`{"type":"string","format":"json-pointer"}`, `""|"/a/~0b"`, `"a"|"/~"`}, {`{"type":"string","format":"password"}`, `"any"`, `1`},
	{`{"allOf":[{"properties":{"a":{"type":"integer"}}},{"properties":{"b":{"type":"null"}}}],"type":"object"}`, `{"a":1,"b":null}|{}|{"b":null}`, `{"a":null}|{"c":1}`},
	{`{"type":"object","properties":{"a":{"minimum":3}},"allOf":[{"properties":{"a":{"type":"integer"}},"required":["a"]}]}`, `{"a":3}`, `{"a":2}|{"a":"x"}|{}`},
	{`{"type":"object","minProperties":1,"properties":{"a":{"type":"null"},"b":{"type":"null"}}}`, `{"a":null}|{"b":null}|{"a":null,"b":null}`, `{}`},
	{`{"type":"object","maxProperties":2,"properties":{"a":true,"b":true,"c":true},"additionalProperties":true}`, `{"a":1,"c":2}|{"x":1}|{}`, `{"a":1,"b":1,"c":1}`},
	{`{"type":"object","patternProperties":{"^x":{"type":"integer"},"z$":{"minimum":5}},"additionalProperties":{"type":"string"}}`, `{"x":1,"y":"s"}|{"xz":5}|{"z":"any"}`, `{"x":"s"}|{"y":1}|{"xz":4}`},
	{`{"type":"object","propertyNames":{"pattern":"^[a-z]{2}$"},"additionalProperties":{"type":"integer"}}`, `{}|{"ab":1}`, `{"a":1}|{"AB":1}`},
	{`{"type":"object","required":["b","a"],"properties":{"a":{"type":"null"}}}`, `{"a":null,"b":[1]}`, `{"a":null}|{"b":1,"a":null}`},
	{`{"type":"object"}`, `{}|{"a":{"b":[]}}`, `[]`},
	{`{"oneOf":[{"type":"object","properties":{"k":{"const":"a"}},"required":["k"]},{"type":"object","properties":{"k":{"const":"b"},"n":{"type":"integer"}},"required":["k"]}]}`, `{"k":"a"}|{"k":"b"}|{"k":"b","n":1}`, `{"k":"c"}|{"k":"a","n":1}`},
	{`{"type":"object","properties":{"k":{"type":"string"}},"required":["k"],"oneOf":[{"properties":{"k":{"enum":["a","b"]}}},{"properties":{"k":{"const":"c"},"v":{"type":"integer"}},"required":["v"]}]}`, `{"k":"a"}|{"k":"c","v":1}`, `{"k":"c"}`},
	{`{"oneOf":[{"$ref":"#/$defs/cat"},{"$ref":"#/$defs/dog"}],"discriminator":{"propertyName":"kind"},"$defs":{"cat":{"type":"object","properties":{"kind":{"const":"cat","default":"cat"},"x":{"type":"integer"}}},"dog":{"type":"object","properties":{"kind":{"const":"dog"},"x":true}}}}`,
		`{"kind":"cat"}|{"kind":"dog","x":"y"}`, `{}|{"x":1}|{"kind":"cat","x":"y"}`},
	{`{"type":"object","properties":{}}`, `{}`, `{"a":1}`},
	{`{"type":"object","additionalProperties":{"type":"boolean"},"minProperties":2}`, `{"a":true,"b":false}|{"":true,"a":false,"ab":true}|{"é":true,"e":false}`, `{"a":true}|{"a":true,"a":true}|{"a":true,"\u0061":true}|{"é":true,"\u00e9":true}|{"a\n":true,"b":true,"a\u000a":true}|{"😀":true,"\ud83d\ude00":true}|{"\ud83d\ude01":true,"😁":true}`},
	{`{"type":"object","patternProperties":{"^[ab]$":{"type":"integer"}},"additionalProperties":false,"required":["a"],"properties":{"a":{"type":"integer"}},"minProperties":2,"maxProperties":3}`, `{"a":1,"b":2}`, `{"a":1}|{"a":1,"b":2,"b":3}|{"a":1,"a":2}`},
	{`{"type":"object","patternProperties":{"^[ab]?$":{"type":"null"}},"additionalProperties":false,"minProperties":2}`, `{"a":null,"b":null}|{"":null,"b":null}|{"":null,"a":null,"b":null}`, `{"a":null}|{"a":null,"a":null}`},
	{`{"type":"object","patternProperties":{"^[a-z][0-9]?$":{"type":"null"}},"additionalProperties":false,"minProperties":3}`, `{"b":null,"a":null,"a1":null}`, `{"b":null,"a":null}|{"b":null,"a":null,"b":null}|{"a":null,"a1":null,"b":null,"a1":null}`},
	{`{"type":"object","propertyNames":{"enum":["x","y",1,"zz"],"maxLength":1},"minProperties":1}`, `{"x":[]}|{"y":1}|{"x":1,"y":2}`, `{}|{"zz":1}|{"z":1}`},
	{`{"type":"object","propertyNames":{"const":"x"},"additionalProperties":{"type":"null"}}`, `{}|{"x":null}`, `{"x":1}|{"y":null}`},
	{`{"type":"object","patternProperties":{"^[^\\s]?$":false},"propertyNames":{"maxLength":1}}`, `{}|{" ":1}`, `{"a":1}|{"\u00a0":1}|{"":1}`},
	{`{"type":"object","patternProperties":{"^\\w+$":{"type":"integer"},"^.$":{"type":"integer"}},"additionalProperties":{"type":"null"}}`, `{"a":1,"!":2,"a!":null}`, `{"a":null}|{"é":null}|{"éé":null}`},
	{`{"type":"object","propertyNames":false}`, `{}`, `{"a":1}`},
	{`{"type":"object","properties":{"a":{"type":"null"}},"minProperties":2}`, `{"a":null,"b":1}|{"x":1,"y":[]}`, `{"a":null}|{}|{"x":1,"x":1}`},
	{`{"anyOf":[{"type":"object","properties":{"a":{"type":"null"}},"additionalProperties":{"type":"integer"}},{"type":"object","properties":{"b":{"type":"integer"},"a":{"type":"integer"}},"additionalProperties":{"type":"null"}}]}`, `{"a":null,"x":1}|{"b":1,"a":1,"x":null}|{"x":1,"y":1}`, `{"x":1,"x":1}|{"a":null,"a":1}|{"b":1,"b":null}`},
	{`{"type":"array","items":{"type":"object","additionalProperties":{"$ref":"#"}}}`, `[{"a":[{"a":[]}]},{"a":[{"a":[],"b":[]}],"b":[]}]`, `[{"a":[{"b":[],"b":[]}]}]|[{"a":[],"b":[{"a":[]}],"a":[]}]`},
	{`{"type":"number","minimum":1e300,"maximum":1e308}`, `1` + strings.Repeat("0", 300) + `|9` + strings.Repeat("9", 307) + `.5`, `1|1e301`},
	{`{"type":"integer","exclusiveMinimum":1e308}`, `1` + strings.Repeat("0", 307) + `1|17` + strings.Repeat("0", 307), `18` + strings.Repeat("0", 307) + `|1` + strings.Repeat("0", 308)},
	{`{"type":"number","exclusiveMaximum":-1e308}`, `-1` + strings.Repeat("0", 307) + `1`, `-1`},
	{`{"type":"number","exclusiveMinimum":0,"maximum":1e-30}`, `0.` + strings.Repeat("0", 29) + `1|0.` + strings.Repeat("0", 35) + `1`, `0|0.0|1`},
	{`{"type":"number","exclusiveMinimum":-2e-300,"exclusiveMaximum":-1e-300}`, `-0.` + strings.Repeat("0", 299) + `15`, `0|-1`},
	{`{"type":"object","properties":{"a":{"type":"null"}},"patternProperties":{"^b":{"type":"null"}},"unevaluatedProperties":false}`, `{"a":null,"b":null}|{}`, `{"c":1}`},
	{`{"oneOf":[{"type":"string"},{"type":"integer","maximum":3},{"type":"number","exclusiveMinimum":3}]}`, `"a"|3|3.5`, `true`},
	{`{"anyOf":[{"type":"string","maxLength":1},{"type":"string","pattern":"^a"},{"type":"integer"}]}`, `"b"|"abc"|5`, `"bc"`},
	{`{"type":"string","anyOf":[{"maxLength":2},{"minLength":4}]}`, `"a"|"abcd"`, `"abc"`},
	{`{"type":"object","properties":{"children":{"type":"array","items":{"$ref":"#"}},"v":{"$ref":"#/properties/w"},"w":{"type":"integer"}},"required":["children"],"additionalProperties":false}`, `{"children":[{"children":[]}]}|{"children":[],"v":1}`, `{"v":1}`},
	{`{"$defs":{"a":{"$anchor":"here","type":"integer"}},"$ref":"#here","minimum":2}`, `2`, `1`},
	{`{"type":"object","properties":{"":{"type":"null"},"a\"b\n":{"type":"null"},"日":{"type":"null"}}}`, `{"":null,"a\"b\n":null,"日":null}|{"\u65e5":null}`, `{"a":null}`},
	{`{"type":"object","properties":{"gone":false,"a":{"type":"null"}}}`, `{}|{"a":null}`, `{"gone":1}`},
	{`true`, `1|{"a":[1,{"b":"c"}]}|-0.5e+10|null|"\u0000\/"|[]|[[], {}]`, `|nul|"	"`},
	{`{"title":"T","description":"d","default":1,"examples":[1],"deprecated":true,"x-extra":{"not":1},"type":"null","$comment":"c","$schema":"https://json-schema.org/draft/2020-12/schema"}`, `null`, `1`},
}

func schemaTexts(s string) []string { return strings.Split(strings.ReplaceAll(s, "^", "\n"), "|") }

func TestJSONSchema(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	vocabularies := []*Vocabulary{bytewise(), shredded(11)}
	for _, c := range schemas {
		g, err := JSONSchema([]byte(c.source))
		if err != nil {
			t.Errorf("%s: %v", c.source, err)
			continue
		}
		valid := judge(t, c.source)
		for _, v := range vocabularies {
			for _, s := range schemaTexts(c.yes) {
				if err := valid(s); err != nil {
					t.Errorf("%s: the example %s is not valid: %v", c.source, s, err)
				}
				if !takes(t, g, v, s, r) {
					t.Errorf("%s refuses %s", c.source, s)
				}
			}
			for _, s := range schemaTexts(c.no) {
				if takes(t, g, v, s, r) {
					t.Errorf("%s takes %s", c.source, s)
				}
			}
		}
	}
}

// judge is an independent validator, with formats asserted.
func judge(t *testing.T, source string) func(text string) error {
	t.Helper()
	doc, err := jsonschema.UnmarshalJSON(strings.NewReader(source))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	c.AssertFormat()
	if strings.Contains(source, `"additionalItems"`) {
		c.DefaultDraft(jsonschema.Draft2019)
	}
	if err := c.AddResource("s.json", doc); err != nil {
		t.Fatal(err)
	}
	s, err := c.Compile("s.json")
	if err != nil {
		t.Fatalf("%s: %v", source, err)
	}
	return func(text string) error {
		v, err := jsonschema.UnmarshalJSON(strings.NewReader(text))
		if err != nil {
			return err
		}
		var plain any // numbers must fit their usual types
		if err := json.Unmarshal([]byte(text), &plain); err != nil {
			return err
		}
		if key, ok := twice(text); ok {
			return fmt.Errorf("it has the key %q twice", key)
		}
		return s.Validate(v)
	}
}

// twice finds a key that an object of a JSON text has more than once.
func twice(text string) (key string, found bool) {
	d := json.NewDecoder(strings.NewReader(text))
	var rec func() bool
	rec = func() bool {
		token, _ := d.Token()
		if token == json.Delim('[') {
			for d.More() {
				if rec() {
					return true
				}
			}
			d.Token()
		}
		if token == json.Delim('{') {
			keys := map[string]bool{}
			for d.More() {
				name, _ := d.Token()
				if key = name.(string); keys[key] {
					return true
				}
				keys[key] = true
				if rec() {
					return true
				}
			}
			d.Token()
		}
		return false
	}
	return key, rec()
}

// TestKeysOnce: objects are filled with what keys there are, by a model that likes to say the same again.
func TestKeysOnce(t *testing.T) {
	r := rand.New(rand.NewPCG(4, 4))
	again := func(r *rand.Rand, v *Vocabulary, list []int32, _ int) int32 { // few letters, then an end
		for _, want := range []string{`"`, "}", ",", ":", "a", "b", "\\", "u0061", "0", `","a`, `{"a":`, `":1,"a"`}[r.IntN(3):] {
			for _, t := range list {
				if string(v.bytes(t)) == want && r.IntN(3) > 0 {
					return t
				}
			}
		}
		return list[r.IntN(len(list))]
	}
	grammars := map[string]*Grammar{"object": JSONObject(), "two": Concat(Literal("<a>{\"x\": "), JSONObject(), Literal("}\x00"), JSONObject())}
	for _, source := range []string{
		`{"type":"object","patternProperties":{"^[a-c0]{1,3}$":{"type":"null"}},"additionalProperties":false,"minProperties":39}`, // all of them
		`{"type":"object","patternProperties":{"^[a-c0]{1,3}$":{"type":"null"},"^b":{"type":"object","additionalProperties":{"type":"integer"}}},"additionalProperties":false,"minProperties":10}`,
		`{"type":"object","patternProperties":{"^[aé\"]{1,4}$":{"type":"null"}},"additionalProperties":false,"minProperties":20}`,
		`{"type":"object","propertyNames":{"maxLength":1},"additionalProperties":{"type":"null"},"minProperties":5}`,
		`{"type":"object","properties":{"a":{"type":"null"},"ab":{"type":"null"}},"additionalProperties":{"$ref":"#"},"required":["a"]}`,
		`{"anyOf":[{"type":"object","properties":{"a":{"type":"null"}},"additionalProperties":{"type":"null"}},{"type":"object","properties":{"b":{"type":"null"},"a":{"type":"null"}}}]}`,
		`{"type":"array","items":{"type":"object","minProperties":3}}`,
	} {
		grammars[source] = must(t)(JSONSchema([]byte(source)))
	}
	follow := func(t *testing.T, v *Vocabulary) {
		ends := 0
		for name, g := range grammars {
			if v.size < 10_000 { // the mask says what each token alone does
				m := NewMatcher(g, v)
				for step := range 25 {
					mask := m.Mask()
					for token := range int32(v.size) {
						twin := *m
						if ok := twin.Accept(token) == nil; in(mask, token) && !ok || ok && !in(mask, token) && v.whole {
							t.Fatalf("%s: %q: the mask says %v, alone it is %v", name, v.bytes(token), in(mask, token), ok)
						}
					}
					token := again(r, v, tokens(mask), step)
					if m.Accept(token); v.ends[token] {
						break
					}
				}
			}
			for round := range 12 {
				text, ended := walk(t, g, v, r, again, 20+20*round)
				if !ended {
					continue
				}
				ends++
				if name == "two" {
					text = `[` + strings.Replace(strings.TrimPrefix(text, "<a>"), "}\x00{", "},{", 1) + `]`
				}
				if key, again := twice(text); again || !json.Valid([]byte(text)) {
					t.Fatalf("%s: %s has %q twice", name, text, key)
				}
				if name[0] == '{' {
					if err := judge(t, name)(text); err != nil {
						t.Fatalf("%s: %s: %v", name, text, err)
					}
				}
			}
		}
		if ends < 50 {
			t.Errorf("only %d texts ended", ends)
		}
	}
	for name, v := range map[string]func(testing.TB) *Vocabulary{
		"bytes": func(testing.TB) *Vocabulary { return bytewise() },
		"scant": func(testing.TB) *Vocabulary { return scant() },
		"keys":  func(testing.TB) *Vocabulary { return fromPieces(keyPieces()) },
		"phi":   func(t testing.TB) *Vocabulary { return realVocabulary(t, "phi-3-mini") },
	} {
		t.Run(name, func(t *testing.T) { follow(t, v(t)) })
	}
}

// keyPieces are bytes, and tokens that end, begin and repeat keys in every way.
func keyPieces() [][]byte {
	pieces := allBytes()
	add := func(parts ...string) { pieces = append(pieces, []byte(strings.Join(parts, ""))) }
	for _, a := range []string{"", "a", "b", "ab", "\\u0061", "é", "\\", "00e9", "aa"} {
		for _, b := range []string{"", `"`, `":`, `":null,"`, `":{"`, `":1,"`, `": {`, `":null},"`} {
			for _, c := range []string{"", "a", `a"`, `a":`, `a":null,"a`, `b":null,"a":`, `a":null,"b":null,"a"`} {
				for _, before := range []string{"", `"`, `,"`, `{"`, `, "`, `},"`} {
					if r := before + a + b + c; len(r) > 1 {
						add(r)
					}
				}
			}
		}
	}
	slices.SortFunc(pieces, bytes.Compare)
	return slices.CompactFunc(pieces, bytes.Equal)
}

// TestJSONSchemaGuarantee: whatever ends is valid, however it was chosen and with any vocabulary.
func TestJSONSchemaGuarantee(t *testing.T) {
	vocabularies := map[string]*Vocabulary{"bytes": bytewise(), "shredded": shredded(12), "scant": scant()}
	if !testing.Short() {
		vocabularies["phi-3-mini"] = realVocabulary(t, "phi-3-mini")
	}
	ends, walks := 0, 0
	for _, c := range schemas {
		g, err := JSONSchema([]byte(c.source))
		if err != nil {
			t.Fatal(err)
		}
		valid := judge(t, c.source)
		for name, v := range vocabularies {
			for how, choose := range strategies {
				h := fnv.New64()
				fmt.Fprint(h, c.source, name, how)
				r := rand.New(rand.NewPCG(h.Sum64(), 1))
				rounds := 6
				if v.size > 10_000 {
					rounds = 1
				}
				for range rounds {
					text, ended := walk(t, g, v, r, choose, 1+r.IntN(60))
					walks++
					if !ended {
						continue
					}
					ends++
					if err := valid(text); err != nil {
						t.Fatalf("%s, %s, %s: %s is not valid: %v", c.source, name, how, text, err)
					}
				}
			}
		}
	}
	t.Logf("%d of %d texts ended", ends, walks)
	if ends < walks*9/10 {
		t.Errorf("only %d of %d texts ended", ends, walks)
	}
}

// TestJSONSchemaRandom does the same with random schemas, and takes what they say is valid.
func TestJSONSchemaRandom(t *testing.T) {
	r := rand.New(rand.NewPCG(21, 22))
	v := shredded(13)
	accepted := 0
	for range 500 {
		source, err := json.Marshal(randomSchema(r, 3))
		if err != nil {
			t.Fatal(err)
		}
		g, err := JSONSchema(source)
		if err != nil {
			e, ok := errors.AsType[*Error](err)
			if !ok || e.Reason == "" {
				t.Fatalf("%s: %v", source, err)
			}
			if strings.HasPrefix(e.Reason, "no value is valid") {
				valid := judge(t, string(source))
				for range 100 {
					text, _ := json.Marshal(randomValue(r, 3))
					if valid(string(text)) == nil {
						t.Fatalf("%s: %v, but %s is valid", source, err, text)
					}
				}
			}
			continue
		}
		accepted++
		valid := judge(t, string(source))
		for how, choose := range strategies {
			if text, ended := walk(t, g, v, r, choose, 1+r.IntN(40)); ended {
				if err := valid(text); err != nil {
					t.Fatalf("%s, %s: %s is not valid: %v", source, how, text, err)
				}
				var compact bytes.Buffer
				json.Compact(&compact, []byte(text))
				if !takes(t, g, v, compact.String(), r) {
					t.Fatalf("%s: %s, compact, is refused", source, text)
				}
			}
		}
	}
	if accepted < 250 {
		t.Errorf("only %d of 500 schemas were accepted", accepted)
	}
}

func randomValue(r *rand.Rand, depth int) any {
	kind := r.IntN(8)
	if depth == 0 {
		kind = r.IntN(6)
	}
	switch kind {
	case 0:
		return []any{nil, true, false}[r.IntN(3)]
	case 1, 2:
		return []any{0, 1, 2, -1, 3, 10, 0.5, 0.25, 1e300, 2e300, 1e-31, -7, 100, 55.5, -124.875, 1e6}[r.IntN(16)]
	case 3, 4, 5:
		return []any{"", "a", "b", "ab", "é", "abc", " ", "abcab", "2024-02-29", "127.0.0.1", "x1"}[r.IntN(11)]
	case 6:
		list := make([]any, r.IntN(4))
		for i := range list {
			list[i] = randomValue(r, depth-1)
		}
		return list
	}
	object := map[string]any{}
	for range r.IntN(5) {
		object[[]string{"a", "b", "é\"", "other", "x", "", "ab", "aa", "é"}[r.IntN(9)]] = randomValue(r, depth-1)
	}
	return object
}

func randomSchema(r *rand.Rand, depth int) any {
	s := map[string]any{}
	sub := func() any { return randomSchema(r, depth-1) }
	maybe := func(key string, make func() any) {
		if r.IntN(3) == 0 {
			s[key] = make()
		}
	}
	n := func() any { return r.IntN(4) }
	kind := r.IntN(9)
	if depth == 0 {
		kind = r.IntN(4)
	}
	switch kind {
	case 0:
		return []any{true, map[string]any{"type": "boolean"}, map[string]any{"type": []any{"null", "integer"}}}[r.IntN(3)]
	case 1:
		s["type"] = []any{"integer", "number"}[r.IntN(2)]
		maybe("minimum", func() any { return float64(r.IntN(2000)-1000) / 8 })
		maybe("exclusiveMaximum", func() any { return float64(r.IntN(4000)-1000) / 4 })
		if r.IntN(6) == 0 {
			e := math.Pow(10, float64(r.IntN(600)-300))
			s["minimum"], s["exclusiveMaximum"] = e*float64(r.IntN(3)-1), e*float64(1+r.IntN(9))
		}
		maybe("multipleOf", func() any { return []any{1, 3, 0.5, 0.25, 10, 0.01}[r.IntN(6)] })
	case 2:
		s["type"] = "string"
		maybe("minLength", n)
		maybe("maxLength", func() any { return 2 + r.IntN(9) })
		maybe("pattern", func() any {
			return []any{"^a", "[0-9]+", "^[^x-z]*$", "é|b$", "^(?:ab|c){1,3}$", "\\s"}[r.IntN(6)]
		})
		maybe("format", func() any { return []any{"date", "ipv4", "uuid", "email", "other"}[r.IntN(5)] })
	case 3:
		s["enum"] = []any{"a", 1, "ab", nil, true, 2.5, []any{1}, map[string]any{"a": 1}}[r.IntN(3):][:2+r.IntN(4)]
		maybe("type", func() any { return []any{"string", "number", "array"} })
	case 4:
		s["type"] = "array"
		maybe("items", sub)
		maybe("prefixItems", func() any { return []any{sub(), sub()} })
		maybe("minItems", n)
		maybe("maxItems", func() any { return 2 + r.IntN(3) })
	case 5, 6:
		s["type"] = "object"
		s["properties"] = map[string]any{"a": sub(), "b": sub(), "é\"": sub()}
		maybe("required", func() any { return []any{"a", "é\"", "other"}[:1+r.IntN(3)] })
		maybe("additionalProperties", func() any { return []any{true, false, sub()}[r.IntN(3)] })
		maybe("patternProperties", func() any {
			return []any{map[string]any{"^a": sub(), "[xé]": sub()}, map[string]any{"^[a-c]?$": sub()}, map[string]any{"^[ab]{1,5}$": sub(), "a": sub()}, map[string]any{"^[^\\s]?$": false}}[r.IntN(4)]
		})
		maybe("propertyNames", func() any {
			return []any{map[string]any{"maxLength": 1 + r.IntN(2)}, map[string]any{"enum": []any{"a", "ab", "x", 3}}, map[string]any{"pattern": "^[a-c]+$"}, map[string]any{"minLength": 1}, map[string]any{"const": "a"}}[r.IntN(5)]
		})
		if r.IntN(3) == 0 {
			delete(s, "properties")
		}
		maybe("minProperties", n)
		maybe("maxProperties", func() any { return 1 + r.IntN(4) })
	case 7:
		s[[]string{"anyOf", "oneOf"}[r.IntN(2)]] = []any{sub(), sub()}
		maybe("type", func() any { return []any{"string", "object", "integer"} })
	default:
		s["allOf"] = []any{sub(), sub()}
	}
	return s
}

func TestJSONSchemaRefuses(t *testing.T) {
	for source, want := range map[string]string{
		`{"not":{}}`: "schema #/not: it is not supported", `{"properties":{"a/b":{"items":{"if":{}}}}}`: "#/properties/a~1b/items/if: it is not supported",
		`{"type":"array","contains":{}}`: "#/contains", `{"type":"array","uniqueItems":true}`: "#/uniqueItems", `{"dependentRequired":{}}`: "#/dependentRequired", `{"unevaluatedProperties":false,"allOf":[{}]}`: "#/unevaluatedProperties", `{"$ref":"#/x","x":{},"unevaluatedItems":{}}`: "#/unevaluatedItems",
		`{"oneOf":[{"type":"integer"},{"type":"number"}]}`: "#/oneOf: branches 0 and 1 may both be valid", `{"oneOf":[{"enum":[1]},{"const":1}]}`: "branches 0 and 1", `{"oneOf":[{"properties":{"a":{"const":1}}},{"properties":{"a":{"const":2}}}]}`: "branches", `{"type":"object","oneOf":[{"properties":{"a":{"const":1}}},{"properties":{"a":{"minimum":1}}}]}`: "branches",
		`{"$ref":"http://example.com/s"}`: "leaves the schema", `{"$ref":"#/$defs/x"}`: "leads nowhere", `{"$dynamicRef":"#x"}`: "#/$dynamicRef", `{"properties":{"a":{"$id":"x"}}}`: "only at the root",
		`{"type":"strin"}`: `"strin" is not a type`, `{"type":[]}`: "name a type", `{"enum":[]}`: "list of values", `{"minimum":"1"}`: "must be a number", `{"minLength":-1}`: "not negative", `{"pattern":"(?=a)"}`: "#/pattern: regex at byte 3: look-ahead",
		`{"type":"string","format":"regex"}`: "#/format", `{"multipleOf":0}`: "larger than 0", `{"type":"integer","multipleOf":123457}`: "#/multipleOf: it is too large", `{"properties":[]}`: "object of schemas", `{"items":1}`: "a schema is", `{"required":[1]}`: "list of strings",
		`{"type":"object","required":["a"],"properties":{"a":{"$ref":"#"}}}`: "no value is valid", `false`: "no value is valid", `{"type":"integer","minimum":5,"maximum":4}`: "no value is valid", `{"type":"object","required":["a"],"properties":{},"additionalProperties":false}`: "no value",
		`{"type":"string","allOf":[{"pattern":"^a"},{"pattern":"^b"}]}`: "no value", `{"type":"string","minLength":3,"maxLength":2}`: "no value", `{"type":"object","minProperties":2,"maxProperties":1}`: "no value", `{"type":"object","minProperties":2,"propertyNames":{"const":"a"}}`: "no value", `{"type":"object","minProperties":3,"patternProperties":{"^[ab]$":true},"additionalProperties":false}`: "no value",
		`{"type":"integer","exclusiveMinimum":1,"exclusiveMaximum":2}`: "no value", `{"type":"number","multipleOf":0.3,"minimum":0.4,"maximum":0.5}`: "no value", `{"type":"number","exclusiveMinimum":1,"exclusiveMaximum":1}`: "no value", `{"type":"number","exclusiveMinimum":1,"exclusiveMaximum":1.0000000000000000000001}`: "not supported together",
		`{"type":"object","properties":{"a":{"$ref":"#"}},"minProperties":1}`: "#/minProperties: it is not supported with the listed properties alone", `{"enum":["é",1],"type":"string","pattern":"^\\W*$"}`: "#: of its enum nothing is left",
		`{"type":"number","minimum":1e309}`: "#: its minimum and maximum are not supported", `{"type":"string","format":"date","maxLength":3}`: "#/format: it is not supported with its length", `{"type":"string","allOf":[{"pattern":"^\\w$"},{"pattern":"^é$"}]}`: "#/allOf/1/pattern: it is not supported",
		`{"type":"object","minProperties":50,"patternProperties":{"^[ab]{1,5}$":true,"^[cd]{1,5}$":true},"additionalProperties":false}`: "", `{"type":"object","minProperties":70,"patternProperties":{"^[ab]{1,5}$":true,"^[cd]{1,5}$":true},"additionalProperties":false}`: "#/minProperties: it is not supported",
		`{"type":"object","patternProperties":{"^[ab]{1,5}$":{"$ref":"#/$defs/never"}},"additionalProperties":{"type":"null"},"$defs":{"never":{"type":"object","required":["x"],"properties":{"x":{"$ref":"#/$defs/never"}}}}}`: "",
		`{"type":"object","patternProperties":{"^[ab]{1,5}$":true},"additionalProperties":{"$ref":"#/$defs/never"},"$defs":{"never":{"type":"object","required":["x"],"properties":{"x":{"$ref":"#/$defs/never"}}}}}`:            "not supported beside patterns that few names have",
		`{`: "ends too early", `{} {}`: "follows after", `[]`: "a schema is an object", `{"minimum":1e999}`: "too large", strings.Repeat(`{"items":`, 500) + `1` + strings.Repeat("}", 500): "nested deeper",
	} {
		_, err := JSONSchema([]byte(source))
		if want == "" && err == nil {
			continue
		}
		if e, ok := errors.AsType[*Error](err); !ok || !strings.Contains(e.Error(), want) {
			t.Errorf("%.80s: %v; want %q", source, err, want)
		}
	}
}

func TestJSONObject(t *testing.T) {
	texts{"object", "{}\n{\"a\":[1,{\"b\":null}]}\n{\"a\": 1, \"b\": \"c\"}", "[]\n1\n{\"a\":1}}\n{a:1}"}.check(t, JSONObject(), bytewise(), shredded(14))
}

// TestManyOptional: what properties share behind them is looked at once.
func TestManyOptional(t *testing.T) {
	for n := 1; n < 24; n++ {
		names := []string{}
		for i := range n {
			names = append(names, fmt.Sprintf(`"%c":true`, 'a'+i))
		}
		m := NewMatcher(must(t)(JSONSchema([]byte(`{"type":"object","properties":{`+strings.Join(names, ",")+`}}`))), bytewise())
		for _, b := range `{"` {
			if err := m.Accept(b); err != nil {
				t.Fatal(err)
			}
		}
		if got := len(tokens(m.Mask())); got < n || m.on.work > 10_000 {
			t.Errorf("%d properties: %d keys begin, after %d steps, %v", n, got, m.on.work, m.Err())
		}
		// So deep that only an end is left.
		m = NewMatcher(must(t)(JSONSchema([]byte(`{"type":"object","properties":{"self":{"$ref":"#"},`+strings.Join(names, ",")+`,"last":true},"required":["last"]}`))), bytewise())
		for i, ok := 0, true; ok; i++ {
			for _, b := range `{"self":` {
				ok = ok && m.Accept(b) == nil && m.on.work < 50_000
			}
			if !ok && i < 10 || m.Err() != nil || len(tokens(m.Mask())) == 0 {
				t.Fatalf("%d properties, %d objects deep: %d steps, %v", n, i, m.on.work, m.Err())
			}
		}
	}
}
