package grammar

import (
	"encoding/json"
	"math/rand/v2"
	"regexp"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
)

var fuzzVocabularies = []*Vocabulary{bytewise(), shredded(31), scant()}

// generate is a short text of g, if a random walk ends.
func generate(t *testing.T, g *Grammar, seed uint64) (string, bool) {
	m := NewMatcher(g, fuzzVocabularies[seed%3])
	v := m.on.v
	r := rand.New(rand.NewPCG(seed, 3))
	var out []byte
	for range 60 {
		list := tokens(m.Mask())
		if len(list) == 0 {
			if m.Err() == nil && v.whole {
				t.Fatalf("a dead end after %q", out)
			}
			return "", false
		}
		token := list[r.IntN(len(list))]
		if v.ends[list[len(list)-1]] && r.IntN(3) == 0 {
			token = list[len(list)-1]
		}
		if err := m.Accept(token); err != nil {
			if m.Err() != nil {
				return "", false
			}
			t.Fatalf("after %q: %v", out, err)
		}
		if v.ends[token] {
			return string(out), true
		}
		out = append(out, v.bytes(token)...)
	}
	return "", false
}

func FuzzSchema(f *testing.F) {
	for i, c := range schemas {
		f.Add([]byte(c.source), uint64(i))
	}
	f.Add([]byte(`{"type":"object","properties":{"a":{"$ref":"#"}},"patternProperties":{"^x":{"type":"integer"}},"minProperties":1}`), uint64(1))
	f.Add([]byte(doubling(5)), uint64(2))
	f.Fuzz(func(t *testing.T, source []byte, seed uint64) {
		g, err := JSONSchema(source)
		if err != nil {
			return
		}
		text, ended := generate(t, g, seed)
		if !ended {
			return
		}
		if !json.Valid([]byte(text)) {
			t.Fatalf("%s: %q is not JSON", source, text)
		}
		if strings.Contains(string(source), `"$`) {
			return // another draft may say something else
		}
		doc, err := jsonschema.UnmarshalJSON(strings.NewReader(string(source)))
		if err != nil {
			return
		}
		c := jsonschema.NewCompiler()
		c.AssertFormat()
		if c.AddResource("s.json", doc) != nil {
			return
		}
		s, err := c.Compile("s.json")
		if err != nil {
			return
		}
		if v, err := jsonschema.UnmarshalJSON(strings.NewReader(text)); err != nil || s.Validate(v) != nil {
			t.Fatalf("%s: %s is not valid: %v", source, text, s.Validate(v))
		}
	})
}

func FuzzRegex(f *testing.F) {
	for i, s := range []string{`a*b`, `(?i)[^\d\s]+$`, `^(?:ab|c){1,3}$`, `\p{L}+é`, `(a|aa)*b{2,}`, `[[:alpha:]\-]+`, `(?P<x>\x41)`, `.*a.{20}`, `(^a|b$)`, `((a{1000}){1000}){1000}`, `\ud83d\ude00`} {
		f.Add(s, uint64(i))
	}
	f.Fuzz(func(t *testing.T, source string, seed uint64) {
		g, err := Regex(source)
		if err != nil {
			return
		}
		text, ended := generate(t, g, seed)
		if !ended {
			return
		}
		if twin, err := regexp.Compile(`^(?:` + source + `)$`); err == nil && !twin.MatchString(text) {
			t.Fatalf("%q generated %q", source, text)
		}
	})
}

func FuzzEBNF(f *testing.F) {
	for i, s := range []string{
		"root ::= \"a\" root | \"b\"", "root ::= e\ne ::= e \"+\" t | t\nt ::= [0-9]+ | \"(\" e \")\"", "root ::= (\"a\"? [^b] . ){2,5} # c\n", "root ::= a \"1\" | \"z\"\na ::= root \"2\" | \"y\"",
		"root ::= root root | \"a\"", "root ::= \"\\u00e9\" x.y\nx.y ::= [\\]a-z]*", leftChain(5), chain(5),
	} {
		f.Add(s, uint64(i))
	}
	f.Fuzz(func(t *testing.T, source string, seed uint64) {
		if g, err := EBNF(source); err == nil {
			generate(t, g, seed)
		}
	})
}
