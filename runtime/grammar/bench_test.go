package grammar

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"
)

// person is a schema such as applications use.
const person = `{"type":"object","properties":{"name":{"type":"string","maxLength":80},"age":{"type":"integer","minimum":0,"maximum":150},"email":{"type":"string","format":"email"},
	"tags":{"type":"array","items":{"type":"string"},"maxItems":10},"address":{"type":"object","properties":{"street":{"type":"string"},"city":{"type":"string"},"country":{"enum":["DE","ES","FR","PT"]}},
	"required":["street","city","country"],"additionalProperties":false},"notes":{"anyOf":[{"type":"string"},{"type":"null"}]}},"required":["name","age","address"],"additionalProperties":false}`

// answer is a text of it; its tokens are the longest that fit, much as a tokenizer's are.
const answer = `{"name": "María José Fernández", "age": 41, "email": "mj.fernandez@example.com", "tags": ["engineer", "climber", "reads a lot of history"], "address": {"street": "Calle de la Estiba 12, 3º B", "city": "Cádiz", "country": "ES"}, "notes": "Prefers to be called in the morning, before nine; speaks Spanish, Portuguese and some English."}`

func (v *Vocabulary) longestTokens(text string) (list []int32) {
	for at := 0; at < len(text); {
		best := int32(-1)
		for n := int32(1); n < v.after[0]; {
			if d := int(v.depth[n]); at+d <= len(text) && v.char[n] == text[at+d-1] {
				if v.token[n] >= 0 {
					best = v.token[n]
				}
				n++
			} else {
				n = v.after[n]
			}
		}
		list = append(list, best)
		at += len(v.bytes(best))
	}
	return list
}

// BenchmarkStep is Mask and Accept of one token: of a text like one before
// (warm), of the first text of a grammar (first), and of texts that wander through it (random).
func BenchmarkStep(b *testing.B) {
	for _, name := range []string{"phi-3-mini", "qwen3"} { // 32,064 and 151,669 tokens
		v := realVocabulary(b, name)
		list := append(v.longestTokens(answer), v.end[0])
		g, err := JSONSchema([]byte(person))
		if err != nil {
			b.Fatal(err)
		}
		slowest := time.Duration(0)
		follow := func(b *testing.B, g *Grammar) {
			m := NewMatcher(g, v)
			for _, t := range list {
				began := time.Now()
				if !in(m.Mask(), t) {
					b.Fatalf("%q is not allowed", v.bytes(t))
				}
				if err := m.Accept(t); err != nil {
					b.Fatal(err)
				}
				slowest = max(slowest, time.Since(began))
			}
		}
		perToken := func(b *testing.B, tokens int) {
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/1000/float64(tokens), "µs/token")
		}
		b.Run(name+"/warm", func(b *testing.B) {
			b.ReportAllocs()
			n := 0
			for b.Loop() {
				follow(b, g)
				n += len(list)
			}
			perToken(b, n)
		})
		b.Run(name+"/first", func(b *testing.B) {
			n := 0
			for b.Loop() {
				fresh := *g
				slowest = 0
				fresh.key = keyOf([]byte{byte(n), byte(n >> 8), byte(n >> 16)}) // as a grammar that was not there before
				follow(b, &fresh)
				n += len(list)
			}
			b.ReportMetric(float64(slowest.Microseconds()), "µs/slowest")
			perToken(b, n)
		})
		b.Run(name+"/random", func(b *testing.B) {
			r := rand.New(rand.NewPCG(1, 1))
			m, n := NewMatcher(g, v), 0
			for b.Loop() {
				mask := m.Mask()
				t := int32(r.IntN(v.size))
				for !in(mask, t) {
					if t++; int(t) == v.size {
						t = 0
					}
				}
				if m.Accept(t); m.over {
					m = NewMatcher(g, v)
				}
				n++
			}
			perToken(b, n)
		})
		b.Run(name+"/vocabulary", func(b *testing.B) {
			for b.Loop() {
				NewVocabulary(v.size, func(t int32) ([]byte, bool) { return v.bytes(t), len(v.bytes(t)) > 0 }, v.end)
			}
		})
	}
	b.Run("compile", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := JSONSchema([]byte(person)); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkKeys is the same for any JSON object, which has so many keys already.
func BenchmarkKeys(b *testing.B) {
	v := realVocabulary(b, "qwen3")
	rest := append(v.longestTokens(`"x": {"name": "a", "age": 12}, "name of the rose": "M, and so on", "name 1 is": 12}`), v.end[0])
	for _, n := range []int{0, 60, 1000} {
		begun := NewMatcher(JSONObject(), v)
		text := "{"
		for i := range n {
			text += fmt.Sprintf(`"name %d": "María José Fernández, %d", `, i, i)
		}
		for _, t := range v.longestTokens(text) {
			if err := begun.Accept(t); err != nil {
				b.Fatal(err)
			}
		}
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			steps := 0
			for b.Loop() {
				m := *begun
				for _, t := range rest {
					if !in(m.Mask(), t) || m.Accept(t) != nil {
						b.Fatalf("%q is not allowed", v.bytes(t))
					}
				}
				steps += len(rest)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/1000/float64(steps), "µs/token")
		})
	}
}
