package batching

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"
)

// TestPace runs a long prompt beside two texts on devices of which a step costs a base
// and something for each token, and counts what it takes.
func TestPace(t *testing.T) {
	for name, c := range map[string]struct {
		base, each time.Duration
		longest    time.Duration // a step, once the first ten have been
		tokens     float64       // of a step on average, at least
	}{
		"fast":                    {200 * time.Microsecond, 20 * time.Microsecond, 20 * time.Millisecond, 250},
		"middling":                {5 * time.Millisecond, time.Millisecond, 100 * time.Millisecond, 30},
		"slow for each token":     {time.Millisecond, 20 * time.Millisecond, 150 * time.Millisecond, 2.9},
		"very slow for each":      {0, 400 * time.Millisecond, 2800 * time.Millisecond, 3},
		"slow to read weights":    {200 * time.Millisecond, time.Millisecond, 400 * time.Millisecond, 50},
		"reads a large model":     {time.Second, 20 * time.Millisecond, 2100 * time.Millisecond, 15},
		"reads as long as it may": {50 * time.Millisecond, 100 * time.Microsecond, 110 * time.Millisecond, 150},
	} {
		for _, noise := range []float64{0, 0.1} {
			t.Run(fmt.Sprintf("%s, noise %g", name, noise), func(t *testing.T) {
				r := rand.New(rand.NewPCG(3, 4))
				b := New(0)
				if err := b.Open(Replica{Name: "a", Blocks: 100, BlockTokens: 1000, MaxTokens: 50000, StepTokens: 256, StepRows: 8, Sequences: 4}); err != nil {
					t.Fatal(err)
				}
				for id := uint64(1); id <= 3; id++ {
					prompt := make([]int32, 2)
					if id == 3 {
						prompt = make([]int32, 40000)
					}
					if err := b.Add(Sequence{ID: id, Replica: "a", Prompt: prompt, MaxTokens: 9000}); err != nil {
						t.Fatal(err)
					}
				}
				tokens, steps := 0, 0
				for i := range 150 {
					batch := b.Next()
					n := batch.Tokens()
					took := time.Duration(float64(c.base+time.Duration(n)*c.each) * (1 + noise*r.NormFloat64()))
					if i > 10 {
						tokens, steps = tokens+n, steps+1
						if took > c.longest {
							t.Errorf("step %d: %d tokens in %v", i, n, took)
						}
					}
					b.Commit(batch, make([]Next, len(batch.Spans)), took)
				}
				if mean := float64(tokens) / float64(steps); mean < c.tokens {
					t.Errorf("%.1f tokens a step", mean)
				}
			})
		}
	}
}

// TestLongPromptStallsNobody: while prompts of thousands of tokens come in, texts go on
// and short prompts are answered soon.
func TestLongPromptStallsNobody(t *testing.T) {
	const each, base = 2 * time.Millisecond, 4 * time.Millisecond // 40 s for a prompt of 20,000
	b := New(0)
	if err := b.Open(Replica{Name: "a", Blocks: 200, BlockTokens: 1000, MaxTokens: 40000, StepTokens: 256, StepRows: 32, Sequences: 32, Waiting: 100}); err != nil {
		t.Fatal(err)
	}
	var now time.Duration
	added, last := map[uint64]time.Duration{}, map[uint64]time.Duration{}
	var id uint64
	add := func(prompt, output int) {
		id++
		text := make([]int32, prompt)
		for i := range text {
			text[i] = int32(id)
		}
		added[id], last[id] = now, now
		if err := b.Add(Sequence{ID: id, Replica: "a", Prompt: text, MaxTokens: output}); err != nil {
			t.Fatal(err)
		}
	}
	add(10, 30000)
	worstGap, worstFirst := time.Duration(0), time.Duration(0)
	for step := range 3000 {
		if step%400 == 100 {
			add(20000, 5)
		}
		if step%40 == 10 {
			add(30, 10)
		}
		batch := b.Next()
		took := base + time.Duration(batch.Tokens())*each
		now += took
		for _, o := range b.Commit(batch, make([]Next, len(batch.Spans)), took) {
			if o.Token == NoToken {
				continue
			}
			if last[o.Sequence] > added[o.Sequence] || o.Sequence == 1 {
				worstGap = max(worstGap, now-last[o.Sequence])
			} else if len(b.sequences[o.Sequence].Prompt) < 1000 {
				worstFirst = max(worstFirst, now-added[o.Sequence])
			}
			last[o.Sequence] = now
		}
	}
	t.Logf("longest between two tokens %v, longest to a short prompt's first %v", worstGap, worstFirst)
	if worstGap > 120*time.Millisecond || worstFirst > time.Second {
		t.Errorf("longest between two tokens %v, longest to a short prompt's first %v", worstGap, worstFirst)
	}
}

// TestShares: models, and tenants of one model, that always have work get equal time,
// however much each of their requests takes and however many there are.
func TestShares(t *testing.T) {
	const each = time.Millisecond
	run := func(t *testing.T, replicas int, add func(b *Batcher, id *uint64), of func(Sequence) string, seconds float64) map[string]float64 {
		b := New(0)
		for i := range replicas {
			if err := b.Open(Replica{Name: fmt.Sprint("m", i), Blocks: 100, BlockTokens: 100, MaxTokens: 5000, StepTokens: 256, StepRows: 8, Sequences: 4, Waiting: 40}); err != nil {
				t.Fatal(err)
			}
		}
		served := map[string]float64{}
		var id uint64
		for now := 0.0; now < seconds; {
			add(b, &id)
			batch := b.Next()
			took := time.Duration(batch.Tokens()) * each * time.Duration(1+len(batch.Replica)%2)
			now += took.Seconds()
			for _, s := range batch.Spans {
				served[of(b.sequences[s.Sequence].Sequence)] += took.Seconds() * float64(len(s.Tokens)) / float64(batch.Tokens())
			}
			b.Commit(batch, make([]Next, len(batch.Spans)), took)
		}
		return served
	}
	prompt := func(n int, id uint64) []int32 {
		text := make([]int32, n)
		for i := range text {
			text[i] = int32(id)
		}
		return text
	}
	check := func(t *testing.T, served map[string]float64, names ...string) {
		t.Helper()
		least, most := 1e9, 0.0
		for _, n := range names {
			least, most = min(least, served[n]), max(most, served[n])
		}
		if most > 1.15*least {
			t.Errorf("seconds served: %v", served)
		}
	}
	t.Run("models", func(t *testing.T) {
		check(t, run(t, 3, func(b *Batcher, id *uint64) {
			for i := range 3 {
				name := fmt.Sprint("m", i)
				for {
					*id++
					if b.Add(Sequence{ID: *id, Replica: name, Prompt: prompt(1+i*i*300, *id), MaxTokens: 100 - 40*i}) != nil {
						break
					}
				}
			}
		}, func(s Sequence) string { return s.Replica }, 300), "m0", "m1", "m2")
	})
	// One that had nothing to do while another was busy has saved up nothing.
	t.Run("models by turns", func(t *testing.T) {
		n := 0
		check(t, run(t, 2, func(b *Batcher, id *uint64) {
			n++
			for i := range 2 {
				if n < 500 && i == 0 || 500 <= n && n < 600 { // m1 alone, then nobody
					continue
				}
				*id++
				_ = b.Add(Sequence{ID: *id, Replica: fmt.Sprint("m", i), Prompt: prompt(50, *id), MaxTokens: 1})
			}
		}, func(s Sequence) string {
			if n < 600 {
				return "before"
			}
			return s.Replica
		}, 100), "m0", "m1")
	})
	t.Run("tenants", func(t *testing.T) {
		waiting := func(b *Batcher, tenant string) int { return b.tenant(tenant).sequences }
		check(t, run(t, 1, func(b *Batcher, id *uint64) {
			for tenant, depth := range map[string]int{"few": 3, "many": 20, "long": 10} {
				for n := depth - waiting(b, tenant); n > 0; n-- {
					*id++
					size := map[string]int{"few": 200, "many": 100, "long": 2000}[tenant]
					_ = b.Add(Sequence{ID: *id, Replica: "m0", Tenant: tenant, Prompt: prompt(size, *id), MaxTokens: 20})
				}
			}
		}, func(s Sequence) string { return s.Tenant }, 300), "few", "many", "long")
	})
	// One that comes late has no credit from when it was not there.
	t.Run("late", func(t *testing.T) {
		late := 0.0
		served := run(t, 1, func(b *Batcher, id *uint64) {
			names := []string{"early"}
			if late++; late > 200 {
				names = append(names, "late")
			}
			for _, tenant := range names {
				for b.tenant(tenant).sequences < 6 {
					*id++
					_ = b.Add(Sequence{ID: *id, Replica: "m0", Tenant: tenant, Prompt: prompt(300, *id), MaxTokens: 20})
				}
			}
		}, func(s Sequence) string {
			if late <= 200 {
				return "before"
			}
			return s.Tenant
		}, 100)
		check(t, served, "early", "late")
	})
}
