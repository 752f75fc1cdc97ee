package sampling

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/estiba/estiba/runtime/grammar"
)

var nan, inf = float32(math.NaN()), float32(math.Inf(1))

func TestGreedy(t *testing.T) {
	for name, c := range map[string]struct {
		row  []float32
		p    Params
		want int32
	}{
		"largest":                           {row: []float32{1, 3, 2}, want: 1},
		"lowest id among equals":            {row: []float32{1, 3, 3}, want: 1},
		"NaN is impossible":                 {row: []float32{nan, -5, nan}, want: 1},
		"plus infinity is certain":          {row: []float32{9, inf, nan}, want: 1},
		"plus infinity, drawn":              {row: []float32{9, inf, nan}, p: Params{Temperature: 1, TopP: 0.5}, want: 1},
		"a bias decides":                    {row: []float32{1, 3, 2}, p: Params{Bias: map[int32]float64{0: 100}}, want: 0},
		"a bias beyond the vocabulary":      {row: []float32{1, 3, 2}, p: Params{Bias: map[int32]float64{-1: 9, 3: 9}}, want: 1},
		"repetition of the prompt":          {row: []float32{1, 3, 2}, p: Params{Repetition: 2}, want: 2},
		"repetition of a negative one":      {row: []float32{-9, -3, -4}, p: Params{Repetition: 2}, want: 2},
		"top k of one":                      {row: []float32{1, 3, 2}, p: Params{Temperature: 9, TopK: 1}, want: 1},
		"top p of next to nothing":          {row: []float32{1, 3, 3}, p: Params{Temperature: 9, TopP: 1e-9}, want: 1},
		"min p of one":                      {row: []float32{1, 3, 2}, p: Params{Temperature: 9, MinP: 1}, want: 1},
		"a temperature of next to nothing":  {row: []float32{1, 3, 2}, p: Params{Temperature: 1e-300}, want: 1},
		"drawn where all but one is absent": {row: []float32{nan, -inf, 2}, p: Params{Temperature: 1}, want: 2},
	} {
		before := slices.Clone(c.row)
		got, err := New(c.p, []int32{1}).Sample(c.row, &Scratch{})
		if err != nil || got.ID != c.want {
			t.Errorf("%s: %v, %v; want %d", name, got, err, c.want)
		}
		if !slices.EqualFunc(before, c.row, func(a, b float32) bool { return math.Float32bits(a) == math.Float32bits(b) }) {
			t.Errorf("%s: the row was changed", name)
		}
	}
	for _, temperature := range []float64{0, 1} {
		if _, err := New(Params{Temperature: temperature}, nil).Sample([]float32{nan, -inf}, &Scratch{}); !errors.Is(err, ErrNotANumber) {
			t.Errorf("a row without a number: %v", err)
		}
	}
}

func TestPenalties(t *testing.T) {
	// The output grows 0 0 0 …: 5 - presence - n*frequency falls below 3.5 after two.
	s := New(Params{Presence: 0.5, Frequency: 0.6}, []int32{1})
	var got []int32
	for range 4 {
		token, _ := s.Sample([]float32{5, 3.5, 0}, &Scratch{})
		got = append(got, token.ID)
	}
	if want := []int32{0, 0, 1, 0}; !slices.Equal(got, want) { // the prompt's 1 has no penalty until it is output
		t.Errorf("got %v, want %v", got, want)
	}
}

// TestSeed: the same seed gives the same text whatever else is sampled in between.
func TestMinTokens(t *testing.T) {
	for name, c := range map[string]struct {
		p    Params
		want []int32
	}{
		"the end waits":       {Params{MinTokens: 2, Ends: []int32{2, 9, -1}}, []int32{1, 1, 2}},
		"drawn":               {Params{MinTokens: 2, Ends: []int32{2}, Temperature: 1e-9}, []int32{1, 1, 2}},
		"against a bias":      {Params{MinTokens: 2, Ends: []int32{2}, Bias: map[int32]float64{2: 100}}, []int32{1, 1, 2}},
		"nothing ends a text": {Params{MinTokens: 2}, []int32{2, 2, 2}},
	} {
		s := New(c.p, nil)
		var got []int32
		for range 3 {
			token, err := s.Sample([]float32{1, 3, 5}, &Scratch{})
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, token.ID)
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}

// TestConstraint: of "a", "b" and an end, "b", then "a", then the end, whatever is likelier.
func TestConstraint(t *testing.T) {
	v := grammar.NewVocabulary(3, func(id int32) ([]byte, bool) { return []byte{"ab"[id&1]}, id < 2 }, []int32{2})
	for _, temperature := range []float64{0, 2} {
		s := New(Params{Constraint: grammar.NewMatcher(grammar.Literal("ba"), v), Temperature: temperature}, nil)
		for _, want := range []int32{1, 0, 2} {
			if token, err := s.Sample([]float32{3, 1, 9, 12}, &Scratch{}); err != nil || token.ID != want {
				t.Errorf("at %g: %v, %v; want %d", temperature, token, err, want)
			}
		}
	}
}

func TestSeed(t *testing.T) {
	row := make([]float32, 100)
	r := rand.New(rand.NewPCG(1, 1))
	for i := range row {
		row[i] = float32(r.NormFloat64())
	}
	var scratch Scratch // shared, as an engine's samplers do
	text := func(seed uint64, beside *Sampler) (ids []int32) {
		s := New(Params{Temperature: 1, Seed: seed}, nil)
		for range 50 {
			token, _ := s.Sample(row, &scratch)
			ids = append(ids, token.ID)
			if beside != nil {
				beside.Sample(row, &scratch)
			}
		}
		return ids
	}
	if !slices.Equal(text(1, nil), text(1, New(Params{Temperature: 2, TopK: 30, TopP: 0.9, Repetition: 2}, []int32{3}))) {
		t.Error("a neighbour changed the text")
	}
	if slices.Equal(text(1, nil), text(2, nil)) {
		t.Error("two seeds gave one text")
	}
}

// kept is the plain way to say which tokens are left and how likely each is.
func kept(row []float32, p Params) map[int32]float64 {
	var all []candidate
	most := argmax(row)
	for id, x := range row {
		if w := math.Exp(float64(x-row[most]) / p.Temperature); w > 0 {
			all = append(all, candidate{int32(id), w})
		}
	}
	slices.SortFunc(all, func(a, b candidate) int {
		return cmp.Or(cmp.Compare(b.weight, a.weight), cmp.Compare(a.at, b.at))
	})
	if p.TopK > 0 {
		all = all[:min(p.TopK, len(all))]
	}
	if p.TopP > 0 && p.TopP < 1 {
		total, upTo := sum(all), 0.0
		for i, c := range all {
			if upTo += c.weight; upTo >= p.TopP*total {
				all = all[:i+1]
				break
			}
		}
	}
	all = slices.DeleteFunc(all, func(c candidate) bool { return c.weight < p.MinP })
	share := map[int32]float64{}
	for _, c := range all {
		share[c.at] = c.weight / sum(all)
	}
	return share
}

func TestDistribution(t *testing.T) {
	row := []float32{1, 2.5, nan, 2, -inf, 0, 2, -1}
	for _, p := range []Params{
		{Temperature: 1}, {Temperature: 0.5}, {Temperature: 3}, {Temperature: 1, TopK: 3}, {Temperature: 1, TopP: 0.8},
		{Temperature: 1, TopK: 4, TopP: 0.7}, {Temperature: 1, MinP: 0.2}, {Temperature: 2, TopK: 100, TopP: 0.95, MinP: 0.3},
	} {
		const n = 40000
		counts := map[int32]int{}
		s := New(p, nil)
		for range n {
			token, err := s.Sample(row, &Scratch{})
			if err != nil {
				t.Fatal(err)
			}
			counts[token.ID]++
		}
		want := kept(row, p)
		for id := range row {
			got, share := float64(counts[int32(id)])/n, want[int32(id)]
			if (share == 0) != (got == 0) || math.Abs(got-share) > 0.012 { // 4.8 deviations of a share of one half
				t.Errorf("%+v: token %d has %.3f, want %.3f", p, id, got, share)
			}
		}
	}
}

// TestTwin compares with the plain way on random rows.
func TestTwin(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	for range 3000 {
		row := make([]float32, 1+r.IntN(40))
		for i := range row {
			row[i] = float32(r.IntN(9)) // many equals
		}
		p := Params{Temperature: 0.1 + 3*r.Float64(), TopK: r.IntN(12), TopP: r.Float64(), MinP: 0.5 * r.Float64(), Seed: r.Uint64(), Logprobs: true, TopLogprobs: 5}
		token, err := New(p, nil).Sample(row, &Scratch{})
		if err != nil {
			t.Fatal(err)
		}
		if kept(row, p)[token.ID] == 0 {
			t.Fatalf("%+v of %v: chose %d, which is not among %v", p, row, token.ID, kept(row, p))
		}
		share := kept(row, Params{Temperature: 1})
		if math.Abs(token.Logprob-math.Log(share[token.ID])) > 1e-9 {
			t.Fatalf("logprob %g, want %g", token.Logprob, math.Log(share[token.ID]))
		}
		ids := make([]int32, len(row))
		for i := range ids {
			ids[i] = int32(i)
		}
		slices.SortStableFunc(ids, func(a, b int32) int { return cmp.Compare(row[b], row[a]) })
		for i, top := range token.Top {
			if top.ID != ids[i] || math.Abs(top.Logprob-math.Log(share[top.ID])) > 1e-9 {
				t.Fatalf("top %v of %v", token.Top, row)
			}
		}
		if len(token.Top) != min(5, len(row)) {
			t.Fatalf("%d of %d likeliest", len(token.Top), len(row))
		}
	}
}

func TestLogprobsOfBrokenRow(t *testing.T) {
	token, err := New(Params{Logprobs: true, TopLogprobs: 2}, nil).Sample([]float32{nan, 1, nan}, &Scratch{})
	if err != nil || token.ID != 1 || token.Logprob != 0 || len(token.Top) != 1 {
		t.Errorf("%+v, %v", token, err)
	}
}

// TestSteady: a token costs no memory once things have grown, but for the list of the likeliest.
func TestSteady(t *testing.T) {
	row := noise(10_000, 3)
	var scratch Scratch
	for _, c := range []struct {
		p    Params
		want float64
	}{
		{Params{}, 0}, {Params{Temperature: 1}, 0}, {Params{Temperature: 1, TopK: 1000, TopP: 0.99, MinP: 0.01}, 0}, {Params{Temperature: 1, TopP: 0.9}, 0},
		{Params{Temperature: 1, TopK: 40, Bias: map[int32]float64{1: 1}}, 0}, {Params{Temperature: 1, Repetition: 1.1, Presence: 0.1, Frequency: 0.1}, 0},
		{Params{Logprobs: true, TopLogprobs: 20}, 1},
	} {
		c.p.Seed = 1
		s := New(c.p, []int32{1, 2, 3})
		for range 300 {
			s.Sample(row, &scratch)
		}
		if n := testing.AllocsPerRun(50, func() { s.Sample(row, &scratch) }); n > c.want {
			t.Errorf("%+v: %v allocations", c.p, n)
		}
	}
}

func noise(n int, deviation float64) []float32 {
	row := make([]float32, n)
	r := rand.New(rand.NewPCG(1, 1))
	for i := range row {
		row[i] = float32(deviation * r.NormFloat64())
	}
	return row
}

// TestDrawTwin: the n-th draw of a seed is the token at that share of the
// kept ones, whatever way was taken to it.
func TestDrawTwin(t *testing.T) {
	r := rand.New(rand.NewPCG(11, 12))
	var scratch Scratch
	for range 400 {
		row := noise(1+r.IntN(5000), []float64{0.01, 1, 5, 40}[r.IntN(4)])
		for i := range row {
			switch r.IntN(40) {
			case 0:
				row[i] = nan
			case 1:
				row[i] = -inf
			case 2:
				row[i] = row[r.IntN(len(row))]
			}
		}
		if argmax(row) < 0 {
			continue
		}
		p := Params{Temperature: []float64{0.01, 0.7, 1, 2}[r.IntN(4)], Seed: r.Uint64()}
		if r.IntN(2) == 0 {
			p.TopK = 1 + r.IntN(len(row))
		}
		if r.IntN(2) == 0 {
			p.TopP = r.Float64()
		}
		if r.IntN(2) == 0 {
			p.MinP = math.Pow(r.Float64(), 4)
		}
		share := kept(row, p)
		s := New(p, nil)
		for range 20 {
			token, err := s.Sample(row, &scratch)
			if err != nil {
				t.Fatal(err)
			}
			if share[token.ID] == 0 { // a token at the border may be in or out by rounding
				q := p
				q.TopP *= 1 + 1e-9
				q.MinP *= 1 - 1e-9
				if kept(row, q)[token.ID] == 0 {
					t.Fatalf("%+v: %d was chosen, with logit %g", p, token.ID, row[token.ID])
				}
			}
		}
		// Together the weights of what is kept are right: those of the library's function.
		e := newExponent(row[argmax(row)], p.Temperature)
		for id, x := range row {
			want := math.Exp((float64(x) - e.Most) / p.Temperature)
			if got := e.Of(x); want >= 1e-26 && math.Abs(got-want) > 1e-12*want || want != want && got != 0 || want < 1e-27 && got > 1e-25 {
				t.Fatalf("exp of %g at %d: %g, want %g", (float64(x)-e.Most)/p.Temperature, id, got, want)
			}
		}
	}
}

// TestPenaltiesTwin compares with penalties applied by the definitions, with and without a constraint.
func TestPenaltiesTwin(t *testing.T) {
	r := rand.New(rand.NewPCG(2, 2))
	const size = 3000
	pieces := func(id int32) ([]byte, bool) {
		return []byte{byte('a' + id%7), byte('a' + id%5), byte(id)&0x7f | 1}, id < size-1
	}
	v := grammar.NewVocabulary(size, pieces, []int32{size - 1})
	for _, pattern := range []string{"", "(?s)(?:a.*|[^a]a.*)", "(?s).*"} {
		for range 20 {
			p := Params{Presence: r.Float64(), Frequency: r.Float64(), Repetition: 0.5 + r.Float64(), Bias: map[int32]float64{}}
			for range 10 {
				p.Bias[int32(r.IntN(size+10)-5)] = 4 * r.NormFloat64()
			}
			if pattern != "" {
				g, err := grammar.Regex(pattern)
				if err != nil {
					t.Fatal(err)
				}
				p.Constraint = grammar.NewMatcher(g, v)
			}
			prompt := []int32{5, 7, 5, int32(r.IntN(size))}
			s := New(p, prompt)
			counts := map[int32]int{}
			for range 30 {
				row := noise(size, 0)
				for i := range row {
					row[i] = float32(r.NormFloat64())
				}
				want, best := int32(-1), math.Inf(-1)
				for i := range int32(size) {
					x := float64(float32(float64(row[i]) + p.Bias[i]))
					if counts[i] > 0 || slices.Contains(prompt, i) {
						if x > 0 {
							x /= p.Repetition
						} else {
							x *= p.Repetition
						}
						x = float64(float32(x))
					}
					if n := counts[i]; n > 0 {
						x = float64(float32(x - (p.Presence + float64(n)*p.Frequency)))
					}
					allowed := p.Constraint == nil || p.Constraint.Mask()[i/64]>>(i%64)&1 == 1
					if x > best && allowed {
						best, want = x, i
					}
				}
				token, err := s.Sample(row, &Scratch{})
				if err != nil || token.ID != want {
					t.Fatalf("%q: %v, %v; want %d", pattern, token, err, want)
				}
				if counts[token.ID]++; token.ID == size-1 {
					break
				}
			}
		}
	}
}

func TestNothingAllowed(t *testing.T) {
	v := grammar.NewVocabulary(3, func(id int32) ([]byte, bool) { return []byte{"ab"[id&1]}, id < 2 }, []int32{2})
	for name, c := range map[string]struct {
		text string
		row  []float32
		want error
	}{
		"no token spells it":      {"c", []float32{1, 1, 1}, ErrNothingAllowed},
		"the model excludes it":   {"a", []float32{-inf, 1, 1}, ErrNothingAllowed},
		"the logits are not ones": {"a", []float32{nan, nan, nan}, ErrNotANumber},
		"one is left":             {"a", []float32{-90, 1, 1}, nil},
	} {
		for _, temperature := range []float64{0, 1} {
			s := New(Params{Temperature: temperature, Constraint: grammar.NewMatcher(grammar.Literal(c.text), v)}, nil)
			if _, err := s.Sample(c.row, &Scratch{}); !errors.Is(err, c.want) {
				t.Errorf("%s: %v, want %v", name, err, c.want)
			}
		}
	}
	// What must not end yet may, once nothing else is left.
	s := New(Params{MinTokens: 9, Ends: []int32{2}, Constraint: grammar.NewMatcher(grammar.Literal("a"), v)}, nil)
	for _, want := range []int32{0, 2} {
		if token, err := s.Sample([]float32{1, 1, 1}, &Scratch{}); err != nil || token.ID != want {
			t.Errorf("%v, %v; want %d", token, err, want)
		}
	}
}

// BenchmarkSample is at the vocabulary of Qwen3, with logits like a model's.
func BenchmarkSample(b *testing.B) {
	row := noise(151_936, 3)
	v := grammar.NewVocabulary(len(row), func(id int32) ([]byte, bool) { return fmt.Appendf(nil, "%x", id), id > 0 }, []int32{0})
	digits, err := grammar.Regex("[0-9]*")
	if err != nil {
		b.Fatal(err)
	}
	for _, c := range []struct {
		name string
		p    Params
		g    *grammar.Grammar
	}{
		{"greedy", Params{}, nil}, {"temperature", Params{Temperature: 1}, nil}, {"topP", Params{Temperature: 1, TopP: 0.95}, nil},
		{"topK", Params{Temperature: 1, TopK: 40}, nil}, {"topKtopP", Params{Temperature: 0.7, TopK: 20, TopP: 0.8}, nil}, {"minP", Params{Temperature: 1, MinP: 0.05}, nil},
		{"penalties", Params{Temperature: 1, TopK: 40, Repetition: 1.1, Presence: 0.5}, nil}, {"logprobs", Params{Logprobs: true, TopLogprobs: 20}, nil},
		{"constraint", Params{Temperature: 1}, digits}, {"wideConstraint", Params{Temperature: 1}, grammar.Text()},
	} {
		b.Run(c.name, func(b *testing.B) {
			if c.g != nil {
				c.p.Constraint = grammar.NewMatcher(c.g, v)
			}
			s, scratch := New(c.p, []int32{1, 2, 3}), Scratch{}
			b.ReportAllocs()
			for b.Loop() {
				if _, err := s.Sample(row, &scratch); err != nil {
					s = New(c.p, nil)
					s.params.Constraint = grammar.NewMatcher(c.g, v) // the text has ended
				}
			}
		})
	}
}
