package grammar

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/estiba/estiba/internal/fixture"
)

// fromPieces is a vocabulary of these texts and an end token after them.
func fromPieces(pieces [][]byte) *Vocabulary {
	return NewVocabulary(len(pieces)+1, func(t int32) ([]byte, bool) {
		if int(t) < len(pieces) {
			return pieces[t], pieces[t] != nil
		}
		return nil, false
	}, []int32{int32(len(pieces))})
}

// bytewise has each byte as a token, whose id it is.
func bytewise() *Vocabulary { return fromPieces(allBytes()) }

func allBytes() [][]byte {
	var pieces [][]byte
	for b := range 256 {
		pieces = append(pieces, []byte{byte(b)})
	}
	return pieces
}

// shredded has bytes, and random pieces of texts, many of which begin or end within a character.
func shredded(seed uint64) *Vocabulary {
	r := rand.New(rand.NewPCG(seed, 1))
	pieces := allBytes()
	texts := []string{
		`{"name": "Zoë", "age": 12, "tags": ["a", "b"], "x": {"y": null}}`, "{\n  \"a\": true,\n  \"b\": [\n", `"],"`, `"}]}`, `\u00e9\ud83d\ude00\n\"`, "日本語テキスト😀👩‍👩‍👧 żółć",
		"2024-02-29T12:00:00Z", "-12.5e+10", "false true null", "0000000000", `":"`, "[[[[[[{{{{", "]]]]}}}}", "          \n\n\n\t\t", "alpha beta_gamma-delta", "((((1+2)*3))))",
	}
	for range 1500 {
		t := texts[r.IntN(len(texts))]
		from := r.IntN(len(t))
		pieces = append(pieces, []byte(t[from:min(len(t), from+1+r.IntN(6))]))
	}
	return fromPieces(pieces)
}

// scant lacks bytes: only ASCII, and some characters as whole tokens.
func scant() *Vocabulary {
	var pieces [][]byte
	for b := range 128 {
		pieces = append(pieces, []byte{byte(b)})
	}
	for _, s := range []string{"é", "日本", "\xf0\x9f", "😀", "ab", `":`, "\xe6", "é\"", "\\ud83d"} {
		pieces = append(pieces, []byte(s))
	}
	return fromPieces(pieces)
}

// byteOf is the byte that a character of byte-level BPE stands for.
func byteOf() map[rune]byte {
	out := map[rune]byte{}
	next := rune(256)
	for b := range 256 {
		switch {
		case '!' <= b && b <= '~', 0xa1 <= b && b <= 0xac, 0xae <= b && b <= 0xff:
			out[rune(b)] = byte(b)
		default:
			out[next] = byte(b)
			next++
		}
	}
	return out
}

// realVocabulary reads a tokenizer.json: byte-level BPE, or SentencePiece with bytes.
func realVocabulary(t testing.TB, name string) *Vocabulary {
	data, err := os.ReadFile(fixture.Shared(t, "tokenizers/"+name+"/tokenizer.json"))
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		Added []struct {
			ID      int32
			Content string
			Special bool
		} `json:"added_tokens"`
		Model struct{ Vocab map[string]int32 }
	}
	if err := json.Unmarshal(data, &file); err != nil {
		t.Fatal(err)
	}
	size := int32(0)
	for _, id := range file.Model.Vocab {
		size = max(size, id+1)
	}
	for _, a := range file.Added {
		size = max(size, a.ID+1)
	}
	pieces := make([][]byte, size)
	_, sentencePiece := file.Model.Vocab["<0x0A>"]
	bytes := byteOf()
	for s, id := range file.Model.Vocab {
		if sentencePiece {
			var b byte
			if n, _ := fmt.Sscanf(s, "<0x%02X>", &b); n == 1 {
				pieces[id] = []byte{b}
			} else {
				pieces[id] = []byte(strings.ReplaceAll(s, "▁", " "))
			}
			continue
		}
		for _, r := range s {
			pieces[id] = append(pieces[id], bytes[r])
		}
	}
	var end []int32
	for _, a := range file.Added {
		pieces[a.ID] = nil
		if a.Special {
			end = append(end, a.ID)
		} else {
			pieces[a.ID] = []byte(a.Content)
		}
	}
	return NewVocabulary(int(size), func(t int32) ([]byte, bool) { return pieces[t], pieces[t] != nil }, end[:1])
}

func in(mask []uint64, t int32) bool { return mask[t>>6]>>(t&63)&1 == 1 }

func tokens(mask []uint64) (list []int32) {
	for t := range int32(len(mask) * 64) {
		if in(mask, t) {
			list = append(list, t)
		}
	}
	return list
}

// takes says whether a grammar takes a text, in random tokens of v.
func takes(t *testing.T, g *Grammar, v *Vocabulary, text string, r *rand.Rand) bool {
	t.Helper()
	m := NewMatcher(g, v)
	for at := 0; at < len(text); {
		var fit []int32
		for n := int32(1); n < v.after[0]; { // nodes along the text
			if d := int(v.depth[n]); at+d <= len(text) && v.char[n] == text[at+d-1] {
				if v.token[n] >= 0 {
					fit = append(fit, v.token[n])
				}
				n++
			} else {
				n = v.after[n]
			}
		}
		token := fit[r.IntN(len(fit))]
		allowed := in(m.Mask(), token)
		err := m.Accept(token)
		if allowed != (err == nil) {
			t.Fatalf("%q after %q: the mask says %v, Accept %v", v.bytes(token), text[:at], allowed, err)
		}
		if err != nil {
			return false
		}
		at += len(v.bytes(token))
	}
	may := m.MayEnd()
	for _, e := range v.end {
		if in(m.Mask(), e) != may {
			t.Fatalf("%q: the mask's end token differs from MayEnd %v", text, may)
		}
	}
	if may && m.Accept(v.end[0]) != nil {
		t.Fatalf("%q: the end is refused", text)
	}
	return may
}

// strategy prefers tokens of a mask.
type strategy func(r *rand.Rand, v *Vocabulary, list []int32, step int) int32

var strategies = map[string]strategy{
	"random": func(r *rand.Rand, _ *Vocabulary, list []int32, _ int) int32 { return list[r.IntN(len(list))] },
	"lowest": func(_ *rand.Rand, _ *Vocabulary, list []int32, _ int) int32 { return list[0] },
	"longest": func(r *rand.Rand, v *Vocabulary, list []int32, _ int) int32 {
		best := list[r.IntN(len(list))]
		for range 20 {
			if t := list[r.IntN(len(list))]; len(v.bytes(t)) > len(v.bytes(best)) {
				best = t
			}
		}
		return best
	},
	"opening": func(r *rand.Rand, v *Vocabulary, list []int32, _ int) int32 {
		for _, t := range list {
			if b := v.bytes(t); len(b) > 0 && (b[len(b)-1] == '[' || b[len(b)-1] == '{' || b[len(b)-1] == '(') && r.IntN(3) > 0 {
				return t
			}
		}
		return list[r.IntN(len(list))]
	},
	"escaping": func(r *rand.Rand, v *Vocabulary, list []int32, _ int) int32 {
		var some []int32
		for _, t := range list {
			if b := v.bytes(t); len(b) > 0 && (b[0] == '\\' || b[len(b)-1] == '\\' || b[0] >= 0x80 || b[0] == 'u') {
				some = append(some, t)
			}
		}
		if len(some) > 0 && r.IntN(4) > 0 {
			return some[r.IntN(len(some))]
		}
		return list[r.IntN(len(list))]
	},
}

// walk generates a text by a strategy, for some steps, and then by whatever seems to end it.
func walk(t *testing.T, g *Grammar, v *Vocabulary, r *rand.Rand, choose strategy, steps int) (text string, ended bool) {
	t.Helper()
	m := NewMatcher(g, v)
	var out []byte
	for step := range 6 * steps {
		list := tokens(m.Mask())
		if len(list) == 0 {
			t.Fatalf("after %q nothing is allowed: %v", out, m.Err())
		}
		if m.Ended() != (len(list) == len(v.end) && v.ends[list[0]]) {
			t.Fatalf("after %q: Ended is %v with %d tokens allowed", out, m.Ended(), len(list))
		}
		token := choose(r, v, list, step)
		if step > steps {
			token = list[r.IntN(len(list))]
			for _, closing := range []string{"", "\"", "}", "]", "\n", "0", "1", ":", ",", "Z"} {
				i := 0
				for i < len(list) && string(v.bytes(list[i])) != closing {
					i++
				}
				if i < len(list) && (closing != "0" || r.IntN(2) > 0) {
					token = list[i]
					break
				}
			}
		}
		if err := m.Accept(token); err != nil {
			t.Fatalf("after %q the mask allows %q, Accept does not: %v", out, v.bytes(token), err)
		}
		if v.ends[token] {
			if !utf8.Valid(out) {
				t.Fatalf("%q is not UTF-8", out)
			}
			return string(out), true
		}
		out = append(out, v.bytes(token)...)
	}
	return string(out), false
}
