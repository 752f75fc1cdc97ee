// Package sampling chooses the next token from a row of logits. It is pure: the
// choice depends on the row, the request's parameters, its seed and its own
// tokens so far, never on what shares the batch. Start at Sampler.
package sampling

import (
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/estiba/estiba/runtime/grammar"
)

// Params of a request. The zero value is greedy: the largest logit, the lowest
// id among equals.
type Params struct {
	Temperature float64 // divides the logits; 0 is greedy
	TopP        float64 // only the likeliest tokens that together have this much probability; 0 or 1: all
	TopK        int     // only so many of the likeliest; 0: all
	MinP        float64 // only tokens at least so likely relative to the likeliest; 0: all
	Seed        uint64  // same seed, same text

	Presence   float64 // subtracted once from the logit of each token of the output so far
	Frequency  float64 // subtracted once for each time that it is there
	Repetition float64 // divides positive and multiplies negative logits of tokens of prompt and output; 0 or 1: off

	Bias map[int32]float64 // added to these tokens' logits

	// Constraint is of this request alone: only tokens that it allows are chosen. Nil: all.
	Constraint *grammar.Matcher

	MinTokens int     // none of Ends is chosen while the output has fewer
	Ends      []int32 // tokens that end a text

	// Logprobs asks for the natural logarithm of the probability of the chosen
	// token, and of the TopLogprobs likeliest, before anything above changes them.
	Logprobs    bool
	TopLogprobs int
}

// Token is a choice.
type Token struct {
	ID      int32
	Logprob float64   // 0 if not asked for
	Top     []Logprob // likeliest first
}

// Logprob of a token.
type Logprob struct {
	ID      int32
	Logprob float64
}

// ErrNotANumber says that a row has nothing to choose from: every logit is NaN
// or minus infinity, so the model or its weights are broken.
var ErrNotANumber = errors.New("the logits are not numbers")

// Sampler chooses the tokens of one request, in order.
type Sampler struct {
	params Params
	prompt map[int32]bool // tokens, if the repetition penalty needs them
	counts map[int32]int  // of the output, if a penalty needs them
	output int            // tokens chosen so far
	drawn  uint64         // random numbers so far
}

// Scratch is memory that samplers may share, one after the other: some megabytes
// for a large vocabulary. What is in it means nothing; the zero value works.
type Scratch struct {
	row        []float32 // changed copy
	candidates []candidate
}

// New is a sampler for a text that starts with prompt.
func New(p Params, prompt []int32) *Sampler {
	s := &Sampler{params: p}
	if p.repeats() {
		s.prompt = make(map[int32]bool, len(prompt))
		for _, t := range prompt {
			s.prompt[t] = true
		}
	}
	if p.repeats() || p.Presence != 0 || p.Frequency != 0 {
		s.counts = map[int32]int{}
	}
	return s
}

// Sample chooses from a row of logits, [vocabulary], which it leaves as it is.
// NaN counts as impossible; ErrNotANumber if nothing else is there.
func (s *Sampler) Sample(logits []float32, scratch *Scratch) (Token, error) {
	row := s.adjust(logits, scratch)
	best, ok := argmax(row)
	if !ok {
		return Token{}, ErrNotANumber
	}
	id := best
	if s.params.Temperature > 0 {
		id = s.draw(row, best, scratch)
	}
	if s.counts != nil {
		s.counts[id]++
	}
	s.output++
	if m := s.params.Constraint; m != nil {
		if err := m.Accept(id); err != nil {
			return Token{}, fmt.Errorf("follow the grammar: %w", err)
		}
	}
	token := Token{ID: id}
	if s.params.Logprobs {
		token.Logprob, token.Top = logprobs(logits, id, s.params.TopLogprobs)
	}
	return token, nil
}

func (p Params) repeats() bool { return p.Repetition != 0 && p.Repetition != 1 }

// adjust applies bias and penalties, and what must not be chosen yet, to a copy, if there are any.
func (s *Sampler) adjust(logits []float32, scratch *Scratch) []float32 {
	p := s.params
	early := s.output < p.MinTokens && len(p.Ends) > 0
	if len(p.Bias) == 0 && s.counts == nil && !early && p.Constraint == nil {
		return logits
	}
	row := append(scratch.row[:0], logits...)
	scratch.row = row
	change := func(id int32, f func(float64) float64) {
		if 0 <= id && int(id) < len(row) {
			row[id] = float32(f(float64(row[id])))
		}
	}
	for id, bias := range p.Bias {
		change(id, func(x float64) float64 { return x + bias })
	}
	if p.repeats() {
		repeat := func(x float64) float64 {
			if x > 0 {
				return x / p.Repetition
			}
			return x * p.Repetition
		}
		for id := range s.prompt {
			change(id, repeat)
		}
		for id := range s.counts {
			if !s.prompt[id] {
				change(id, repeat)
			}
		}
	}
	for id, n := range s.counts {
		change(id, func(x float64) float64 { return x - p.Presence - float64(n)*p.Frequency })
	}
	if p.Constraint != nil {
		mask := p.Constraint.Mask()
		for i := range row {
			if i/64 >= len(mask) || mask[i/64]>>(i%64)&1 == 0 {
				row[i] = float32(math.Inf(-1))
			}
		}
	}
	if early {
		for _, id := range p.Ends {
			change(id, func(float64) float64 { return math.Inf(-1) })
		}
	}
	return row
}

// argmax is the lowest id among the largest; ok=false if every one is NaN or minus infinity.
func argmax(row []float32) (id int32, ok bool) {
	best := float32(math.Inf(-1))
	for i, x := range row {
		if x > best { // false for NaN
			best, id, ok = x, int32(i), true
		}
	}
	return id, ok
}

// candidate is a token and exp((its logit - the largest) / temperature), in (0, 1].
type candidate struct {
	id     int32
	weight float64
}

// draw chooses by probability among those that TopK, then TopP, then MinP
// leave, as they are after the temperature.
func (s *Sampler) draw(row []float32, best int32, scratch *Scratch) int32 {
	p := s.params
	most := float64(row[best])
	if math.IsInf(most, 1) {
		return best // certain; differences to it are not numbers
	}
	all := scratch.candidates[:0]
	total := 0.0
	for id, x := range row {
		if w := math.Exp((float64(x) - most) / p.Temperature); w > 0 { // false for NaN
			all = append(all, candidate{int32(id), w})
			total += w
		}
	}
	scratch.candidates = all
	if p.TopK > 0 && p.TopK < len(all) {
		all = likeliest(all, p.TopK, math.Inf(1))
		total = sum(all)
	}
	if 0 < p.TopP && p.TopP < 1 {
		all = likeliest(all, len(all), p.TopP*total)
	}
	if p.MinP > 0 {
		all = slices.DeleteFunc(all, func(c candidate) bool { return c.weight < p.MinP && c.id != best })
	}
	left := s.random() * sum(all)
	for _, c := range all {
		if left -= c.weight; left < 0 {
			return c.id
		}
	}
	return all[len(all)-1].id // rounding
}

// likeliest takes from a heap that it makes of all the n first, or fewer if
// those have so much weight already. They are at the end of all, in order.
func likeliest(all []candidate, n int, enough float64) []candidate {
	heap := all
	for i := len(heap)/2 - 1; i >= 0; i-- {
		sink(heap, i)
	}
	for weight := 0.0; len(all)-len(heap) < n && weight < enough && len(heap) > 0; {
		weight += heap[0].weight
		last := len(heap) - 1
		heap[0], heap[last] = heap[last], heap[0]
		heap = heap[:last]
		sink(heap, 0)
	}
	taken := all[len(heap):]
	slices.Reverse(taken)
	return taken
}

// sink restores the heap below i: likelier first, the lower id among equals.
func sink(heap []candidate, i int) {
	before := func(a, b candidate) bool { return a.weight > b.weight || a.weight == b.weight && a.id < b.id }
	for {
		child := 2*i + 1
		if child >= len(heap) {
			return
		}
		if child+1 < len(heap) && before(heap[child+1], heap[child]) {
			child++
		}
		if !before(heap[child], heap[i]) {
			return
		}
		heap[i], heap[child] = heap[child], heap[i]
		i = child
	}
}

func sum(all []candidate) float64 {
	total := 0.0
	for _, c := range all {
		total += c.weight
	}
	return total
}

// random is the next number in [0, 1) of this request: splitmix64 over a count,
// so that the n-th token's number depends on seed and n alone.
// Source: doi:10.1145/2660193.2660195.
func (s *Sampler) random() float64 {
	s.drawn++
	z := s.params.Seed + s.drawn*0x9e3779b97f4a7c15
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return float64((z^z>>31)>>11) / (1 << 53)
}

// Logprobs is a token that was not chosen but given, such as one of a prompt, as Sample
// would return it: with its logprob by the row before it, and the n likeliest there.
func Logprobs(logits []float32, id int32, n int) Token {
	t := Token{ID: id}
	t.Logprob, t.Top = logprobs(logits, id, n)
	return t
}

// logprobs of the chosen token and of the n likeliest.
func logprobs(logits []float32, id int32, n int) (chosen float64, top []Logprob) {
	best, ok := argmax(logits)
	if !ok {
		return math.Inf(-1), nil // only a bias made a choice possible
	}
	most, total := float64(logits[best]), 0.0
	for _, x := range logits {
		if w := math.Exp(float64(x) - most); w > 0 {
			total += w
		}
	}
	logprob := func(x float32) float64 { return float64(x) - most - math.Log(total) }
	if n > 0 {
		for i, x := range logits {
			if x != x || len(top) == n && float64(x) <= top[n-1].Logprob {
				continue
			}
			at := len(top)
			for at > 0 && top[at-1].Logprob < float64(x) {
				at--
			}
			top = slices.Insert(top, at, Logprob{int32(i), float64(x)})
			top = top[:min(len(top), n)]
		}
		for i := range top {
			top[i].Logprob = logprob(float32(top[i].Logprob))
		}
	}
	return logprob(logits[id]), top
}
