package grammar

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
	"unicode"
)

type texts struct{ source, yes, no string } // yes and no: one a line

func (c texts) check(t *testing.T, g *Grammar, vocabularies ...*Vocabulary) {
	t.Helper()
	r := rand.New(rand.NewPCG(1, 2))
	for _, v := range vocabularies {
		for _, s := range strings.Split(c.yes, "\n") {
			if !takes(t, g, v, s, r) {
				t.Errorf("%s refuses %q", c.source, s)
			}
		}
		for _, s := range strings.Split(c.no, "\n") {
			if takes(t, g, v, s, r) {
				t.Errorf("%s takes %q", c.source, s)
			}
		}
	}
}

func TestRegex(t *testing.T) {
	vocabularies := []*Vocabulary{bytewise(), shredded(1)}
	for _, c := range []texts{
		{`a*b`, "b\nab\naaab", "a\nba"},
		{`(a|b)*a(a|b){3}`, "abbb\nbbabab", "bbbb\naaa"},
		{`[a-z]{2,4}é?`, "ab\nabcdé", "a\nabcde\nabéé"},
		{`^abc$|^d`, "abc\nd", "abcd"},
		{`(?:^|x)a(?:$|y)`, "a\nxa\nay\nxay", "xa.\n.a"},
		{`x^a|b`, "b", "xa\na"},
		{`\p{L}+`, "aéж漢", "a1\n."},
		{`\p{Greek}\P{L}`, "λ1", "a1\nλa"},
		{`(?i)abcß`, "aBcß\nABCẞ", "abd"},
		{`a(?i:b)c`, "aBc", "aBC"},
		{`(?P<year>\d{4})-(?<m>\d\d)`, "2024-01", "202-01\n٢٠٢٤-01"},
		{`.+`, "a\nä😀", "\r"},
		{`[^a-c]`, "d\n\r\n漢", "a\nb"},
		{`[\w.-]+@[[:alpha:]]+`, "a_b.c-d@e", "a b@c"},
		{`a{2}b{0,2}c{1,}`, "aac\naabbcc", "abc\naabbbc"},
		{`a{x}`, "a{x}", "a"},
		{`\x41\u0042\U00000043\x{44}`, "ABCD", "A"},
		{`\ud83d\ude00`, "😀", "a"},
		{`\$\.\-\/`, "$.-/", "a"},
		{`(a?){1000000}b`, "b\naaab", "a"},
		{`(?:a{1,3}b?){2,}`, "aa\nabab\naaaaab", "a\nb"},
		{`(?s).*?x`, "x\nyyx", "y"},
		{``, "", "a"},
	} {
		g, err := Regex(c.source)
		if err != nil {
			t.Errorf("%s: %v", c.source, err)
			continue
		}
		c.check(t, g, vocabularies...)
	}
}

func TestRegexRefuses(t *testing.T) {
	for source, want := range map[string]string{
		`a(?=b)`: "regex at byte 4: look-ahead", `(?<!a)b`: "look-behind", `(a)\1`: "regex at byte 4: back references", `(?P=x)`: "back references",
		`\bx`: "word boundaries", `a++`: "possessive", `a**`: "two quantifiers", `*a`: "nothing stands before", `(a`: "not closed", `a)`: "unmatched",
		`[a`: "not closed", `[]a]`: "stands first", `[b-a]`: "wrong order", `[\d-z]`: "a character on both sides", `a{3,2}`: "wrong order", `a{9999999999}`: "too large",
		`\q`: `escape \q`, `\`: "backslash", `\x4`: "hexadecimal", `\ud800`: "half a character", `\p{Klingon}`: "not known", `(?m)a`: "flag m", `a*^b`: "anchor", `(^a)*`: "anchor",
		`[^\s\S]`: "matches no text", `^*`: "cannot be repeated", `a{,2}`: "different engines", `a{00}`: "different engines", `a^b`: "matches no text", "\xff": "not UTF-8", `(?>a)`: "atomic", strings.Repeat("(", 1000): "too deeply", strings.Repeat("a", 1<<17): "at most 65536",
	} {
		_, err := Regex(source)
		if e, ok := errors.AsType[*Error](err); !ok || !strings.Contains(e.Error(), want) {
			t.Errorf("%.40q: %v; want %q", source, err, want)
		}
	}
}

// TestClasses compares the escapes for classes, alone and within others, with what engines say they are.
func TestClasses(t *testing.T) {
	blanks := func(extra ...rune) func(rune) bool {
		return func(r rune) bool { return unicode.Is(unicode.Zs, r) || slices.Contains(extra, r) }
	}
	python := map[byte]func(rune) bool{ // str.isspace, str.isalnum, str.isdecimal
		's': blanks(9, 10, 11, 12, 13, 0x1c, 0x1d, 0x1e, 0x1f, 0x85, 0x2028, 0x2029),
		'w': func(r rune) bool { return r == '_' || unicode.In(r, unicode.L, unicode.N) },
		'd': func(r rune) bool { return unicode.Is(unicode.Nd, r) },
	}
	ecma := map[byte]func(rune) bool{ // with the flag u: WhiteSpace and LineTerminator, ASCII
		's': blanks(9, 10, 11, 12, 13, 0xfeff, 0x2028, 0x2029),
		'w': func(r rune) bool {
			return strings.ContainsRune("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_", r)
		},
		'd': func(r rune) bool { return '0' <= r && r <= '9' },
	}
	re2 := map[byte]func(rune) bool{
		's': func(r rune) bool { return strings.ContainsRune("\t\n\f\r ", r) }, 'w': ecma['w'], 'd': ecma['d'],
	}
	engines := map[string]map[byte]func(rune) bool{"Python": python, "ECMAScript": ecma, "RE2": re2}
	of := func(source string) set {
		a := newArena()
		n, err := parseRegex(a, source, false, false)
		if err != nil {
			t.Fatal(err)
		}
		if n == none {
			return nil
		}
		return a.sets[a.nodes[n].a]
	}
	for _, letter := range []byte("swd") {
		here, gone := `\`+string(letter), `\`+strings.ToUpper(string(letter))
		for _, s := range []string{here, "[" + here + "]", "[^" + gone + "]"} {
			if !slices.Equal(of(s), of(here)) {
				t.Errorf("%s is not %s", s, here)
			}
		}
		for _, s := range []string{gone, "[" + gone + "]", "[^" + here + "]"} {
			if !slices.Equal(of(s), of(gone)) {
				t.Errorf("%s is not %s", s, gone)
			}
		}
		if !slices.Equal(of("["+here+gone+"]"), everything) || of("[^"+here+gone+"]") != nil {
			t.Errorf("%s and %s are not everything", here, gone)
		}
		these, others := of(here), of(gone)
		for r := range unicode.MaxRune + 1 {
			if !everything.has(r) {
				continue
			}
			in, out := these.has(r), others.has(r)
			for name, engine := range engines {
				if is := engine[letter](r); in && !is || out && is {
					t.Errorf("U+%04X: %s says %v of %s, we %v and %v", r, name, is, here, in, out)
				}
			}
		}
	}
	texts{"classes", "a-é", "a b\na\u00a0b"}.check(t, must(t)(Regex(`[^\s\d]-[^\d\s]|[^\s]-é`)), bytewise())
}

func must(t *testing.T) func(*Grammar, error) *Grammar {
	return func(g *Grammar, err error) *Grammar {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return g
	}
}

// TestRegexTwin compares with the standard library, whose engine shares nothing with ours.
func TestRegexTwin(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	v := bytewise()
	var make func(depth int) string
	make = func(depth int) string {
		switch n := r.IntN(11); {
		case n < 3 || depth == 0:
			return []string{"a", "b", "é", "[ab]", "[^a]", "."}[r.IntN(6)]
		case n < 6:
			return make(depth-1) + make(depth-1)
		case n < 8:
			return "(?:" + make(depth-1) + "|" + make(depth-1) + ")"
		case n < 9:
			return "(?:" + make(depth-1) + ")" + []string{"*", "+", "?", "*?"}[r.IntN(4)]
		}
		return fmt.Sprintf("(?:%s){%d,%d}", make(depth-1), r.IntN(3), 2+r.IntN(3))
	}
	for range 400 {
		source := make(4)
		g, err := Regex(source)
		if err != nil {
			t.Fatalf("%s: %v", source, err)
		}
		twin := regexp.MustCompile(`^(?:` + source + `)$`)
		for range 25 {
			var text string
			for range r.IntN(7) {
				text += []string{"a", "b", "é", "c"}[r.IntN(4)]
			}
			if got, want := takes(t, g, v, text, r), twin.MatchString(text); got != want {
				t.Fatalf("%s takes %q: %v, want %v", source, text, got, want)
			}
		}
		for range 3 { // whatever is generated matches
			if text, ended := walk(t, g, v, r, strategies["random"], 30); ended && !twin.MatchString(text) {
				t.Fatalf("%s generated %q", source, text)
			}
		}
	}
}

func TestEBNF(t *testing.T) {
	vocabularies := []*Vocabulary{bytewise(), shredded(2)}
	for _, c := range []texts{
		{"root ::= expr (\"=\" expr)*\nexpr ::= term ([-+*/] term)*\nterm ::= num | \"(\" expr \")\"\nnum  ::= [0-9]+", "1+2\n(3*4)-5=7\n2=2=2\n((1))", "1+\n(1"},
		{"root ::= root \"a\" | \"b\"", "b\nbaa", "a"},
		{"root ::= e\ne ::= e \"+\" t | t\nt ::= t \"*\" f | f\nf ::= \"(\" e \")\" | \"x\" # a comment\n", "x\nx+x*x\n(x+x)*x", "x+\n()"},
		{"root ::= a \"1\" | \"z\"\na ::= root \"2\" | \"y\"", "z\nz21\ny1\ny121", "z2"},
		{"root ::= (\n \"a\"\n # here\n | \"b\" |\n\"c\"){2,3}\n\n", "ab\nabc", "a\nabca"},
		{"root ::= [^\\n\"]+ \"\\u00e9\"", "xé\néé", "é"},
		{"root ::= \"-\"? (\"0\" | [1-9] [0-9]{0,3}) ( ) \"\"", "0\n-12\n9999", "01\n12345"},
		{"root ::= . x.y\nx.y ::= [\\]\\-a]", "日]\n--", "]"},
		{"root ::= \"(\" root \")\" | \"(\" root \"]\" | \"x\"", "x\n((x])", "(x\n(x))"},
		{"root ::= \"a\" root \"a\" | \"b\"", "b\naabaa", "aaba"},
	} {
		g, err := EBNF(c.source)
		if err != nil {
			t.Errorf("%s: %v", c.source, err)
			continue
		}
		c.check(t, g, vocabularies...)
	}
	for source, want := range map[string]string{
		"": "no rule root", "root = \"a\"": "name ::= expression", "root ::= \"a": "not closed", "root ::= b": "line 1: the rule b is not defined",
		"root ::= \"a\"\nroot ::= \"b\"": "line 2: the rule root is defined twice", "root ::= <think>": "matching tokens", "root ::= TagDispatch((\"a\", b))": "macro",
		"root ::= (= \"a\")": "look-ahead", "root ::= \"a\"**": "two repetitions", "root ::= \"a\"{,3}": "lower count", "root ::= \"a\"{z}": "written {m}", "root ::= root": "every way calls",
		"root ::= b? root \"a\" | \"c\"\nb ::= \"b\"": "behind something that may be empty", "root ::= (root \"a\")* \"b\"": "behind something", "root ::= [z-a]": "wrong order", "root ::= \"\\q\"": "escape",
		"root ::= a\na ::= b\nb ::= a \"x\"": "every way calls", "root ::= \"a\" )": "does not belong", "root ::= []": "no characters",
	} {
		_, err := EBNF(source)
		if e, ok := errors.AsType[*Error](err); !ok || !strings.Contains(e.Error(), want) {
			t.Errorf("%.60q: %v; want %q", source, err, want)
		}
	}
}

func TestChoice(t *testing.T) {
	g, err := Choice([]string{"yes", "no", "yes, but", "naïve", "日本", "no"})
	if err != nil {
		t.Fatal(err)
	}
	texts{"choice", "yes\nno\nyes, but\nnaïve\n日本", "ye\nyes,\nnoo\n日"}.check(t, g, bytewise(), shredded(3))
	for _, options := range [][]string{nil, {"a\xff"}} {
		if _, err := Choice(options); err == nil {
			t.Errorf("%q: no error", options)
		}
	}
	if g, err = Choice([]string{""}); err != nil || !NewMatcher(g, bytewise()).Ended() {
		t.Errorf("the empty choice: %v", err)
	}
}

func TestBlocks(t *testing.T) {
	schema, err := JSONSchema([]byte(`{"type":"object","properties":{"city":{"type":"string"}},"required":["city"]}`))
	if err != nil {
		t.Fatal(err)
	}
	call := Concat(Literal("<tool_call>\n"), schema, Literal("\n</tool_call>"))
	for _, c := range []struct {
		g *Grammar
		texts
	}{
		{call, texts{"call", "<tool_call>\\n{\"city\":\"a\"}\\n</tool_call>", "<tool_call>{}"}},
		{Concat(Until("<tool>"), Literal("x")), texts{"until", "<tool>x\na<<tool>x\n<too<tool>x\né<tool>x", "<tool>y\n<tool><tool>x"}},
		{Except("<|", "]]"), texts{"except", "<a|\n] ]\n<", "a<|\n]]\n<<|b"}},
		{Until("aab", "ab"), texts{"until two", "aab\ncab\naacab", "aabb\na"}},
		{Alternate(Literal("ab"), Literal("ac"), Repeat(Literal("x"), 2, 3)), texts{"alternate", "ab\nac\nxx\nxxx", "a\nx\nxxxx"}},
		{Concat(Optional(Literal("a")), Repeat(Literal("b"), 1, -1)), texts{"optional", "ab\nbbb", "a\naab"}},
		{Text(), texts{"text", "\nanything é 日本", "\xff"}},
		{Literal(strings.Repeat("long ", 100)), texts{"long", strings.Repeat("long ", 100), "long "}},
	} {
		c.yes = strings.ReplaceAll(c.yes, `\n`, "\x00")
		r := rand.New(rand.NewPCG(1, 2))
		for _, v := range []*Vocabulary{bytewise(), shredded(4)} {
			for _, s := range strings.Split(c.yes, "\n") {
				if s = strings.ReplaceAll(s, "\x00", "\n"); !takes(t, c.g, v, s, r) {
					t.Errorf("%s refuses %q", c.source, s)
				}
			}
			for _, s := range strings.Split(c.no, "\n") {
				if takes(t, c.g, v, s, r) {
					t.Errorf("%s takes %q", c.source, s)
				}
			}
		}
	}
	m := NewMatcher(Alternate(), bytewise())
	if len(tokens(m.Mask())) != 0 || m.Ended() {
		t.Error("no option allows something")
	}
}

func TestSpecial(t *testing.T) {
	g := Concat(Special("[CALL]"), Literal("x"), Optional(Special("[END]")))
	v := bytewise()
	r := rand.New(rand.NewPCG(1, 2))
	if !takes(t, g, v, "[CALL]x[END]", r) || takes(t, g, v, "x", r) {
		t.Error("without special tokens, their text is not what counts")
	}
	pieces := allBytes()
	v = NewVocabulary(260, func(t int32) ([]byte, bool) {
		if t < 256 {
			return pieces[t], true
		}
		return nil, false
	}, []int32{256})
	v.AddSpecial("[CALL]", 258)
	m := NewMatcher(g, v)
	if got := tokens(m.Mask()); !slices.Equal(got, []int32{258}) {
		t.Fatalf("tokens %v, want the special one", got)
	}
	for _, token := range []int32{258, 'x', '[', 'E'} { // [END] has no token
		if err := m.Accept(token); err != nil {
			t.Fatal(err)
		}
	}
	if m.Accept(258) == nil || m.Accept(256) == nil {
		t.Error("a token within the text of another was accepted")
	}
}

// TestMaskTwin compares masks with what each token alone does, in the states of random walks.
func TestMaskTwin(t *testing.T) {
	schema := `{"type":"object","properties":{"name":{"type":"string","maxLength":7},"tags":{"type":"array","items":{"enum":["a","b é",3]},"maxItems":3},"n":{"type":"number","minimum":-3.5},
		"p":{"type":"string","pattern":"b[a-z ]*$"},"any":true},"required":["n"],"additionalProperties":{"type":"string","minLength":2}}`
	grammars := map[string]*Grammar{"object": JSONObject(), "until": Concat(Until("</a>"), JSONObject())}
	var err error
	if grammars["schema"], err = JSONSchema([]byte(schema)); err != nil {
		t.Fatal(err)
	}
	for name, pattern := range map[string]string{"search": `[^x]*ab.*[^y]{2,5}`, "counts": `(?:[a-z]{1,3} ){2,40}日?`, "ambiguous": `(?:a|aa|[a-c]+)*b{3,}`} {
		if grammars[name], err = Regex(pattern); err != nil {
			t.Fatal(err)
		}
	}
	if grammars["ebnf"], err = EBNF("root ::= e\ne ::= e [+*] e | \"(\" e \")\" | [a-z0-9]+ | e \"]\""); err != nil {
		t.Fatal(err)
	}
	r := rand.New(rand.NewPCG(7, 7))
	for name, g := range grammars {
		for _, v := range []*Vocabulary{shredded(5), bytewise(), scant()} {
			for how, choose := range strategies {
				m := NewMatcher(g, v)
				for step := range 25 {
					mask := m.Mask()
					for token := range int32(v.size) {
						twin := *m
						ok := twin.Accept(token) == nil
						if in(mask, token) && !ok || ok && !in(mask, token) && v.whole {
							t.Fatalf("%s, %s: token %d %q: the mask says %v, alone %v", name, how, token, v.bytes(token), in(mask, token), ok)
						}
					}
					list := tokens(mask)
					if len(list) == 0 {
						t.Fatalf("%s, %s: a dead end", name, how)
					}
					token := choose(r, v, list, step)
					if m.Accept(token); v.ends[token] {
						break
					}
				}
			}
		}
	}
}

// TestNeverStuck walks with a vocabulary in which many texts cannot be spelled.
func TestNeverStuck(t *testing.T) {
	v := scant()
	r := rand.New(rand.NewPCG(9, 9))
	for _, source := range []string{
		`{"type":"object","properties":{"é":{"type":"string"},"a":{"enum":["日本","x"]}},"required":["a"]}`, `{"type":"string","pattern":"^[^a-z]{3,9}$"}`, `true`,
	} {
		g, err := JSONSchema([]byte(source))
		if err != nil {
			t.Fatal(err)
		}
		for how, choose := range strategies {
			for range 20 {
				if text, ended := walk(t, g, v, r, choose, 30); ended && strings.Contains(text, "\xf0\x9f\"") {
					t.Errorf("%s: %q", how, text)
				}
			}
		}
	}
	g, err := Choice([]string{"日本", "日x"}) // only the token of both characters can be
	if err != nil {
		t.Fatal(err)
	}
	if text, ended := walk(t, g, v, r, strategies["random"], 5); !ended || text != "日本" {
		t.Errorf("%q, %v", text, ended)
	}
}

// TestDepth: whatever opens brackets for ever comes to an end.
func TestDepth(t *testing.T) {
	nested, err := EBNF("root ::= \"[\" root \"]\" | \"(\" root \")\" root | \"x\"")
	if err != nil {
		t.Fatal(err)
	}
	grammars := []*Grammar{JSONObject(), nested}
	for _, text := range []string{`root ::= "[" root? "]"`, `root ::= "[" root* "]" | "("`, `root ::= "[" ("," root){0,3} ","? root "]" | "x"`} {
		g, err := EBNF(text)
		if err != nil {
			t.Fatal(err)
		}
		grammars = append(grammars, g)
	}
	for _, g := range grammars {
		v := shredded(6)
		r := rand.New(rand.NewPCG(1, 1))
		m := NewMatcher(g, v)
		steps := 0
		for ; steps < 20_000; steps++ {
			list := tokens(m.Mask())
			if len(list) == 0 {
				t.Fatal("a dead end")
			}
			token := list[r.IntN(len(list))]
			for _, open := range []string{"[[[[", "(((", "[", "(", "{", "\"", ":"} {
				if i := slices.IndexFunc(list, func(t int32) bool { return strings.HasPrefix(string(v.bytes(t)), open) }); i >= 0 {
					token = list[i]
					break
				}
			}
			if err := m.Accept(token); err != nil {
				t.Fatal(err)
			}
			if depth := m.on.nodes[m.state].depth; depth > m.on.depth+200 {
				t.Fatalf("the stack is %d deep after %d steps", depth, steps)
			}
			if v.ends[token] {
				break
			}
		}
		if len(m.on.nodes) > m.on.full+10_000 {
			t.Errorf("%d nodes", len(m.on.nodes))
		}
	}
}

// TestFreshMachine: a text goes on when the automaton that it began with has grown too large.
func TestFreshMachine(t *testing.T) {
	g, err := JSONSchema([]byte(`{"type":"array","items":{"type":"string","minLength":100000},"minItems":2}`))
	if err != nil {
		t.Fatal(err)
	}
	v := bytewise()
	m := NewMatcher(g, v)
	text := `["` + strings.Repeat("x", 100_000) + `","` + strings.Repeat("é", 100_000)
	for i := range len(text) {
		if err := m.Accept(int32(text[i])); err != nil {
			t.Fatalf("byte %d: %v", i, err)
		}
		if i%1000 == 0 && len(tokens(m.Mask())) == 0 {
			t.Fatalf("byte %d: the mask", i)
		}
	}
	if len(m.on.nodes) > m.on.full+1000 {
		t.Errorf("%d nodes", len(m.on.nodes))
	}
	if m.Accept('"') != nil || m.Accept(']') != nil || !m.Ended() {
		t.Error("the counts are lost")
	}
}

// TestConcurrent: many texts of one grammar at once, each as if it were alone.
func TestConcurrent(t *testing.T) {
	v := shredded(41)
	source := []byte(`{"type":"object","properties":{"a":{"type":"string","maxLength":9},"b":{"type":"array","items":{"type":"number","minimum":1}}},"required":["a"],"additionalProperties":{"type":"null"}}`)
	texts := make([][2]string, 16)
	run := func(i, round int) {
		g, err := JSONSchema(source) // made anew, as for each request
		if err == nil {
			texts[i][round], _ = walk(t, g, v, rand.New(rand.NewPCG(uint64(i), 5)), strategies["random"], 40)
		}
	}
	var group sync.WaitGroup
	for i := range texts {
		group.Go(func() { run(i, 0) })
	}
	group.Wait()
	for i := range texts {
		if run(i, 1); texts[i][0] != texts[i][1] {
			t.Errorf("text %d: %q beside others, %q alone", i, texts[i][0], texts[i][1])
		}
	}
	if n := v.recent.Len(); n != 1 {
		t.Errorf("%d automata for one grammar", n)
	}
}

// TestSpent: a call that ran out of steps leaves nothing behind that is wrong for the next.
func TestSpent(t *testing.T) {
	g, err := EBNF(`root ::= "[" ("a"{40} | "b"{50,60} "c") root? "]" | "x"`)
	if err != nil {
		t.Fatal(err)
	}
	v := shredded(8)
	fresh := func() *machine { return newMachine(g, v) }
	state := func(m *machine) id {
		m.begin()
		return m.derive(m.start, int(m.class['[']))
	}
	for steps := range 60 {
		m := fresh()
		n := state(m)
		m.work, m.limit, m.spent = 0, steps, false
		m.restrict(m.clip(n), 0)
		m.profile(m.char)
		v.ofChar = nil
		twin := fresh()
		want := slices.Clone(twin.mask(state(twin)))
		if got := m.mask(n); !slices.Equal(got, want) {
			t.Fatalf("after %d steps: %v, want %v", steps, tokens(got), tokens(want))
		}
		m.begin()
		twin.begin()
		if got, want := m.restrict(n, 0), twin.restrict(state(twin), 0); m.nodes[got].height != twin.nodes[want].height || (got == none) != (want == none) {
			t.Fatalf("after %d steps: %v, want %v", steps, m.nodes[got], twin.nodes[want])
		}
	}
}

// TestHostile: small inputs that ask for much end within a second, with a grammar or an error.
func TestHostile(t *testing.T) {
	v := shredded(8)
	long := strings.Repeat
	for name, make := range map[string]func() (*Grammar, error){
		"nested counts":     func() (*Grammar, error) { return Regex(`((a{1000}){1000}){1000}`) },
		"ambiguous counts":  func() (*Grammar, error) { return Regex(`(.*a.{1000})|(a|b|ab)*(a|bb){3,900}`) },
		"overlapping stars": func() (*Grammar, error) { return Regex(long(`a*`, 5000)) },
		"optional pieces":   func() (*Grammar, error) { return Regex(long(`a?`, 5000) + long(`a`, 5000)) },
		"stars of stars":    func() (*Grammar, error) { return Regex(long(`(`, 200) + "a" + long(`*)*`, 100) + long(`)`, 100)) },
		"Unicode":           func() (*Grammar, error) { return Regex(long(`(?i)[\p{L}\P{Lu}]+\pN*`, 100)) },
		"lookalike":         func() (*Grammar, error) { return Regex(`(x+x+)+y`) },
		"two patterns": func() (*Grammar, error) {
			return JSONSchema([]byte(`{"type":"string","pattern":".*a.{20}b","allOf":[{"pattern":"(a|b)*c.{19}"}]}`))
		},
		"pattern and length": func() (*Grammar, error) {
			return JSONSchema([]byte(`{"type":"string","pattern":"(ab|a|b)*$","minLength":1000000000}`))
		},
		"length": func() (*Grammar, error) { return JSONSchema([]byte(`{"type":"string","minLength":1000000000}`)) },
		"items": func() (*Grammar, error) {
			return JSONSchema([]byte(`{"type":"array","minItems":1000000000,"items":{"$ref":"#"}}`))
		},
		"endless": func() (*Grammar, error) {
			return JSONSchema([]byte(`{"$ref":"#/$defs/a","$defs":{"a":{"$ref":"#/$defs/b"},"b":{"$ref":"#/$defs/a"}}}`))
		},
		"doubling": func() (*Grammar, error) { return JSONSchema([]byte(doubling(24))) },
		"choices":  func() (*Grammar, error) { return JSONSchema([]byte(choices(12))) },
		"limits": func() (*Grammar, error) {
			return JSONSchema([]byte(`{"type":"number","minimum":1e400,"maximum":1e400,"multipleOf":1e-400}`))
		},
		"multiple": func() (*Grammar, error) {
			return JSONSchema([]byte(`{"type":"integer","multipleOf":9973,"minimum":-99999999999999}`))
		},
		"long number": func() (*Grammar, error) {
			return JSONSchema([]byte(`{"const":` + long("9", 1000) + `,"minimum":` + long("9", 1001) + `}`))
		},
		"chain of rules":       func() (*Grammar, error) { return EBNF(chain(20_000)) },
		"chain to the left":    func() (*Grammar, error) { return EBNF(leftChain(300)) },
		"ambiguous":            func() (*Grammar, error) { return EBNF(`root ::= root root | root root root | "a"`) },
		"ambiguous and nested": func() (*Grammar, error) { return EBNF("root ::= \"[\" root? root? root? \"]\" | \"[[\" root \"]\"") },
		"choices and a chain":  func() (*Grammar, error) { return EBNF(tails(10_000)) },
		"hidden chain":         func() (*Grammar, error) { return EBNF(strings.Replace(tails(10_000), "r0\n", "\"x\" r0\n", 1)) },
		"deep":                 func() (*Grammar, error) { return EBNF("root ::= " + long("(", 100_000)) },
		"many properties":      func() (*Grammar, error) { return JSONSchema([]byte(properties(5000))) },
		"many options":         func() (*Grammar, error) { return Choice(strings.Split(long("abc,", 100_000), ",")) },
		"nested groups":        func() (*Grammar, error) { return Regex(long("(", 249) + long("ab", 30_000) + long("y)", 249)) },
		"nested literals": func() (*Grammar, error) {
			return EBNF("root ::= " + long("(", 240) + long(`"`+long("a", 250)+`" `, 600) + long(`"y")`, 240))
		},
		"nested const": func() (*Grammar, error) {
			return JSONSchema([]byte(`{"const":` + long("[", 380) + long("1,", 100_000) + "1" + long("]", 380) + "}"))
		},
		"either case": func() (*Grammar, error) { return Regex("(?i)" + long(`\D`, 2000)) },
		"allOf":       func() (*Grammar, error) { return JSONSchema([]byte(`{"allOf":[` + long("{},", 100_000) + "true]}")) },
		"anchors": func() (*Grammar, error) {
			return JSONSchema([]byte(`{"allOf":[` + long(`{"$ref":"#a"},`, 20_000) + `{"$anchor":"a"}]}`))
		},
	} {
		start := cpu(t)
		g, err := make()
		took := cpu(t) - start
		r := rand.New(rand.NewPCG(1, 1))
		step := time.Duration(0)
		if err == nil {
			m := NewMatcher(g, v)
			for range 40 {
				began := cpu(t)
				list := tokens(m.Mask())
				step = max(step, cpu(t)-began)
				if len(list) == 0 {
					if err = m.Err(); err == nil {
						t.Errorf("%s: a dead end", name)
					}
					break
				}
				token := strategies["longest"](r, v, list, 0)
				if err = m.Accept(token); err != nil || v.ends[token] {
					break
				}
			}
		}
		if took > time.Second || step > time.Second {
			t.Errorf("%s: %v, then %v a step", name, took, step)
		}
		t.Logf("%s: %v, then at most %v a step: %.100v", name, took.Round(time.Microsecond), step.Round(time.Microsecond), err)
	}
}

// TestTooAmbiguous: it is the grammar's error, found before or while a text is written.
func TestTooAmbiguous(t *testing.T) {
	for _, text := range []string{tails(10_000), strings.Replace(tails(10_000), "r0\n", "\"x\" r0\n", 1)} {
		_, err := EBNF(text)
		if e, ok := errors.AsType[*Error](err); !ok || !strings.Contains(e.Reason, "ambiguous") {
			t.Errorf("%v", err)
		}
	}
	m := NewMatcher(must(t)(Regex(`(?:(?:a|b|ab)*(?:a|bb){3,900}){2,900}`)), bytewise())
	m.on.most = len(m.on.nodes) + 3 // as if it were
	for i := 0; i < 99 && m.Err() == nil; i++ {
		m.Mask()
		m.Accept(int32("ab"[i%2]))
	}
	if _, ok := errors.AsType[*Error](m.Err()); !ok || !errors.Is(m.Err(), ErrTooComplex) || len(tokens(m.Mask())) > 0 {
		t.Errorf("%v", m.Err())
	}
}

// cpu is the processor time that the process has used: the machine may be busy with others.
func cpu(t *testing.T) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func doubling(n int) string {
	s := `{"$ref":"#/$defs/a0","$defs":{`
	for i := range n {
		s += fmt.Sprintf(`"a%d":{"allOf":[{"properties":{"x%d":{"$ref":"#/$defs/a%d"},"y%d":{"allOf":[{"$ref":"#/$defs/a%d"},{"$ref":"#/$defs/a%d"}]}}}]},`, i, i%3, (i+1)%n, i%2, (i*7+3)%n, (i*5+1)%n)
	}
	return s + `"z":true}}`
}

func choices(n int) string {
	s := `{"allOf":[`
	for i := range n {
		s += fmt.Sprintf(`{"anyOf":[{"minLength":%d},{"maxLength":%d},{"pattern":"a{%d}"}]},`, i, 100+i, i+1)
	}
	return s + `true]}`
}

func chain(n int) string {
	s := strings.Builder{}
	s.WriteString("root ::= r0\n")
	for i := range n {
		fmt.Fprintf(&s, "r%d ::= r%d | \"x\"?\n", i, i+1)
	}
	fmt.Fprintf(&s, "r%d ::= \"y\"", n)
	return s.String()
}

func leftChain(n int) string {
	s := strings.Builder{}
	s.WriteString("root ::= r0\n")
	for i := range n {
		fmt.Fprintf(&s, "r%d ::= r%d \"a\" | r%d \"b\" | \"x\"\n", i, (i+1)%n, (i+7)%n)
	}
	return s.String()
}

// tails has as many states at once as rules.
func tails(n int) string {
	s := strings.Builder{}
	s.WriteString("root ::= r0\n")
	for i := range n {
		fmt.Fprintf(&s, "r%d ::= \"a\" r%d | r%d\n", i, i+1, i+1)
	}
	fmt.Fprintf(&s, "r%d ::= \"b\"", n)
	return s.String()
}

func properties(n int) string {
	s := strings.Builder{}
	s.WriteString(`{"type":"object","properties":{`)
	for i := range n {
		fmt.Fprintf(&s, `"p%d":{"type":"integer"},`, i*7919%n)
	}
	s.WriteString(`"z":true}}`)
	return s.String()
}
