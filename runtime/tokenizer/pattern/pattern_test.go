package pattern

import (
	"errors"
	"math/rand/v2"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
)

// matches are what Find gives, each as it is in the text.
func matches(m Matches) []string {
	var out []string
	for {
		start, end, ok := m.Next()
		if !ok {
			return out
		}
		out = append(out, m.text[start:end])
	}
}

// sure is Find by the sure program alone.
func (p *Pattern) findSurely(text string) Matches {
	m := p.Find(text)
	m.steps = 0
	return m
}

func TestFind(t *testing.T) {
	for _, c := range []struct {
		expression, text string
		want             []string
	}{
		{`'s|'t| ?\p{L}+| ?\p{N}+|\s+(?!\S)|\s+`, "it's  12 x  ", []string{"it", "'s", " ", " 12", " x", "  "}},
		{`\p{N}{1,3}`, "1234567", []string{"123", "456", "7"}},
		{`\d{1,3}(?=(?:\d{3})*\b)`, "1234567", []string{"1", "234", "567"}},
		{`(?=(\d{3})+(?!\d))`, "1234567", []string{"", ""}},
		{`x*`, "axxb", []string{"", "xx", ""}},
		{`(?i:'LL)|K`, "'ll 'Ll K k \u212a", []string{"'ll", "'Ll", "K"}},
		{`a(?i)b|c`, "aB aC Ab c", []string{"aB", "aC"}},
		{`[a-z&&[^aeiou]]+`, "hello", []string{"h", "ll"}},
		{`[^\s\p{L}]+`, "ab,; 1é", []string{",;", "1"}},
		{`[]a]+`, "]a[", []string{"]a"}},
		{`[\w-]+`, "a-b c", []string{"a-b", "c"}},
		{`[[:punct:]]`, "a$.", []string{"$", "."}},
		{`(?<=\d)(?=\p{L})|(?<!a)b`, "1x bab", []string{"", "b"}},
		{`^a|b$`, "a\nab\nb", []string{"a", "a", "b", "b"}},
		{`\Aa|a\z`, "aba", []string{"a", "a"}},
		{`(?:ab?){2,3}`, "aabab ab", []string{"aabab"}},
		{`a+?b`, "aab", []string{"aab"}},
		{`a++b|a`, "aaab aa", []string{"aaab", "a", "a"}},
		{`a{,2}b|\x{4e2d}|\u0041|\x42`, "aaab中AB", []string{"aab", "中", "A", "B"}},
		{`.`, "a\nb", []string{"a", "b"}},
		{`(?m:.)`, "a\n", []string{"a", "\n"}},
		{`a{x}|{`, "a{x} {", []string{"a{x}", "{"}},
		{`\p{^L}|\P{N}`, "a1", []string{"a", "1"}},
		{`\p{Han}+|\p{Script_Extensions}?`, "", nil},
	} {
		p, err := Compile(c.expression)
		if c.text == "" {
			if err == nil {
				t.Errorf("%s: no error", c.expression)
			}
			continue
		}
		if err != nil {
			t.Error(err)
			continue
		}
		if d := cmp.Diff(c.want, matches(p.Find(c.text))); d != "" {
			t.Errorf("%s in %q:\n%s", c.expression, c.text, d)
		}
		if d := cmp.Diff(c.want, matches(p.findSurely(c.text))); d != "" {
			t.Errorf("%s in %q, surely:\n%s", c.expression, c.text, d)
		}
	}
}

func TestRefused(t *testing.T) {
	for expression, want := range map[string]error{
		`(a`: ErrInvalid, `a)`: ErrInvalid, `[a`: ErrInvalid, `*`: ErrInvalid, `a|+`: ErrInvalid, `\`: ErrInvalid, `[b-a]`: ErrInvalid, `\p{L`: ErrInvalid, "\xff": ErrInvalid,
		`(a)\1`: ErrUnsupported, `(?>a)`: ErrUnsupported, `(?<n>a)`: ErrUnsupported, `\R`: ErrUnsupported, `\G`: ErrUnsupported, `\p{Nonsense}`: ErrUnsupported,
		`(?x) a`: ErrUnsupported, `(?<=a|bc+)d`: ErrUnsupported, `(?:a?)*`: ErrUnsupported, `(?=a)*`: ErrUnsupported, `a{9999}`: ErrUnsupported, `(?:ab)++`: ErrUnsupported,
		`((((a{100}){100}){100}){100})`: ErrUnsupported, `a{1}{1}{1}{1}{1}`: ErrUnsupported, `a{2,1}`: ErrUnsupported, `[[:graph:]]`: ErrUnsupported,
		strings.Repeat("(", 100): ErrUnsupported, strings.Repeat("[", 100): ErrUnsupported, strings.Repeat("a", 10_000): ErrUnsupported,
	} {
		if _, err := Compile(expression); !errors.Is(err, want) {
			t.Errorf("%.50s: %v, want %v", expression, err, want)
		}
	}
}

// twin matches by definition: all ways of matching a node at a place, the preferred
// first, tried one after the other.
type twin struct{ text string }

func (w twin) ways(n *node, at int, then func(end int) bool) bool {
	switch n.kind {
	case isSet:
		r, size := utf8.DecodeRuneInString(w.text[at:])
		return size > 0 && n.set.has(r) && then(at+size)
	case isSequence:
		if len(n.subs) == 0 {
			return then(at)
		}
		rest := &node{kind: isSequence, subs: n.subs[1:]}
		return w.ways(n.subs[0], at, func(end int) bool { return w.ways(rest, end, then) })
	case isChoice:
		for _, sub := range n.subs {
			if w.ways(sub, at, then) {
				return true
			}
		}
		return false
	case isRepeat:
		if n.greed == possessive {
			end := at
			for count := 0; n.max < 0 || count < n.max; count++ {
				if !w.ways(n.subs[0], end, func(e int) bool { end = e; return true }) {
					return count >= n.min && then(end)
				}
			}
			return then(end)
		}
		less := &node{kind: isRepeat, subs: n.subs, min: max(n.min-1, 0), max: n.max, greed: n.greed}
		if n.max > 0 {
			less.max--
		}
		more := func() bool {
			return n.max != 0 && w.ways(n.subs[0], at, func(end int) bool { return w.ways(less, end, then) })
		}
		if n.min > 0 {
			return more()
		}
		if n.greed == lazy {
			return then(at) || more()
		}
		return more() || then(at)
	case isLook:
		if !n.behind {
			return w.ways(n.subs[0], at, func(int) bool { return true }) != n.negative && then(at)
		}
		found := false
		for from := at; from >= 0 && !found; from-- {
			if from == len(w.text) || utf8.RuneStart(w.text[from]) {
				found = w.ways(n.subs[0], from, func(end int) bool { return end == at })
			}
		}
		return found != n.negative && then(at)
	}
	m := Matches{text: w.text}
	return m.stands(n.where, at) && then(at)
}

func (w twin) find(n *node) []string {
	var out []string
	last := -1
	for at := 0; at <= len(w.text); {
		start, end, ok := at, 0, false
		for ; start <= len(w.text); start++ {
			if start < len(w.text) && !utf8.RuneStart(w.text[start]) {
				continue
			}
			if ok = w.ways(n, start, func(e int) bool { end = e; return true }); ok {
				break
			}
		}
		if !ok {
			break
		}
		if start == end && end == last {
			_, size := utf8.DecodeRuneInString(w.text[at:])
			at += max(1, size)
			continue
		}
		out, at, last = append(out, w.text[start:end]), end, end
	}
	return out
}

// random is an expression of parts that tokenizers use.
func random(r *rand.Rand, depth int) string {
	atoms := []string{"a", "b", " ", "é", `\s`, `\S`, `\p{L}`, `\p{N}`, `\d`, `[ab]`, `[^a\s]`, ".", "'", "1", `[\p{L}\p{M}]`}
	switch k := r.IntN(10); {
	case depth == 0 || k < 3:
		return atoms[r.IntN(len(atoms))]
	case k < 5:
		return random(r, depth-1) + random(r, depth-1)
	case k < 6:
		return "(?:" + random(r, depth-1) + "|" + random(r, depth-1) + ")"
	case k < 7:
		return []string{"(?=", "(?!", "(?<=", "(?<!"}[r.IntN(4)] + atoms[r.IntN(len(atoms))] + ")" + random(r, depth-1)
	case k < 8:
		return atoms[r.IntN(len(atoms))] + []string{"+", "*", "?", "++", "*?", "{1,3}", "{2}", "+?", "?+", "{2,}"}[r.IntN(10)]
	case k < 9:
		return "(?:" + random(r, depth-1) + ")" + []string{"+", "*", "?", "{1,2}", "+?", "{0,3}"}[r.IntN(6)]
	}
	return random(r, depth-1) + "|" + random(r, depth-1)
}

func TestTwins(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	alphabet := []rune("aab  1'é\n\u0301x")
	compiled := 0
	for range 3000 {
		expression := random(r, 4)
		p, err := Compile(expression)
		if err != nil {
			if !errors.Is(err, ErrUnsupported) {
				t.Errorf("%s: %v", expression, err)
			}
			continue
		}
		compiled++
		n, _ := parse(expression)
		for range 4 {
			runes := make([]rune, r.IntN(9))
			for i := range runes {
				runes[i] = alphabet[r.IntN(len(alphabet))]
			}
			text := string(runes)
			want := twin{text}.find(n)
			if got := matches(p.Find(text)); !cmp.Equal(want, got) {
				t.Fatalf("%s in %q: %q, want %q", expression, text, got, want)
			}
			if got := matches(p.findSurely(text)); !cmp.Equal(want, got) {
				t.Fatalf("%s in %q, surely: %q, want %q", expression, text, got, want)
			}
		}
	}
	if compiled < 1500 {
		t.Errorf("only %d expressions compiled", compiled)
	}
}

// TestLinear wants no text to take long, whatever the expression: each of these
// takes other engines the square of the text's length, or worse.
func TestLinear(t *testing.T) {
	const n = 1 << 17
	for expression, text := range map[string]string{
		`\s+$`:                               strings.Repeat(" ", n) + "a",
		`\d{1,3}(?=(?:\d{3})*\b)`:            strings.Repeat("1", n),
		`(?=(\d{3})+(?!\d))`:                 strings.Repeat("1", n),
		`(?:a|a)*b`:                          strings.Repeat("a", n),
		`(?:a+)+b`:                           strings.Repeat("a", n),
		`(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+x`: strings.Repeat("a ", n/2),
		`a++b`:                               strings.Repeat("a", n),
		`(?!a*b)c`:                           strings.Repeat("a", n),
		`(?:a?){20}a{20}`:                    strings.Repeat("a", 19) + "b" + strings.Repeat("a", n),
		`\s*[\r\n]+|\s+(?!\S)`:               strings.Repeat(" ", n) + "a" + strings.Repeat("\n", n),
	} {
		p, err := Compile(expression)
		if err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		count := len(matches(p.Find(text)))
		if d := time.Since(start); d > 5*time.Second {
			t.Errorf("%s: %d matches in %v", expression, count, d)
		}
	}
}

func FuzzCompile(f *testing.F) {
	f.Add(`'s| ?\p{L}+|\s+(?!\S)`, "it's a  b")
	f.Add(`[^\r\n\p{L}\p{N}]?[\p{Lu}\p{M}&&[^\p{Han}]]*(?i:'s|'ll)?|\p{N}{1,3}`, "HTTPServer's 1234")
	f.Add(`(?<=a)[[:alpha:]-z]{2,3}?|\x{41}++|\b`, "aéAA")
	f.Fuzz(func(t *testing.T, expression, text string) {
		if len(expression) > 1<<10 || len(text) > 1<<10 || !utf8.ValidString(text) {
			return
		}
		start := time.Now()
		p, err := Compile(expression)
		if err != nil {
			if !errors.Is(err, ErrInvalid) && !errors.Is(err, ErrUnsupported) {
				t.Errorf("an error of no kind: %v", err)
			}
			return
		}
		quick, sure := matches(p.Find(text)), matches(p.findSurely(text))
		if !cmp.Equal(quick, sure) {
			t.Errorf("%q in %q: quickly %q, surely %q", expression, text, quick, sure)
		}
		if d := time.Since(start); d > 5*time.Second {
			t.Errorf("%q in %q: %v", expression, text, d)
		}
	})
}

func BenchmarkFind(b *testing.B) {
	text := strings.Repeat("The quick brown fox jumps over 13 lazy dogs; isn't that so?\n", 1000)
	for name, expression := range map[string]string{
		"gpt2":   `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`,
		"llama3": `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`,
	} {
		p, err := Compile(expression)
		if err != nil {
			b.Fatal(err)
		}
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(text)))
			for b.Loop() {
				for m := p.Find(text); ; {
					if _, _, ok := m.Next(); !ok {
						break
					}
				}
			}
		})
	}
}
