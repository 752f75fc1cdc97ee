// Package sampling chooses the next token from a row of logits. It is pure: the
// choice depends on the row, the request's parameters, its seed and its own
// tokens so far, never on what shares the batch. Start at Sampler.
package sampling

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"math/bits"
	"slices"
	"sync"

	"github.com/estiba/estiba/kernels/cpu"
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

// ErrNothingAllowed says that a grammar allows no token of the vocabulary, or
// none to which the model gives a chance.
var ErrNothingAllowed = errors.New("the grammar allows no token that the model could choose here")

// ErrNotANumber says that a row has nothing to choose from: every logit is NaN
// or minus infinity, so the model or its weights are broken.
var ErrNotANumber = errors.New("the logits are not numbers")

// Sampler chooses the tokens of one request, in order.
type Sampler struct {
	params Params
	bias   []bias
	seen   []seen        // tokens that penalties change
	at     map[int32]int // token -> its place in seen, if a penalty needs it
	output int           // tokens chosen so far
	drawn  uint64        // random numbers so far
}

type bias struct {
	id int32
	by float64
}

// seen is a token of the text so far.
type seen struct {
	id     int32
	output int // times that it was chosen; 0: only of the prompt
}

// Scratch is memory that samplers may share, one after the other: some megabytes
// for a large vocabulary. What is in it means nothing; the zero value works.
type Scratch struct {
	row        []float32 // changed copy
	ids        []int32   // of the row, if it is only of what a grammar allows
	candidates []candidate
	blocks     []float64
}

// New is a sampler for a text that starts with prompt.
func New(p Params, prompt []int32) *Sampler {
	s := &Sampler{params: p}
	for id, by := range p.Bias {
		s.bias = append(s.bias, bias{id, by})
	}
	if p.repeats() || p.Presence != 0 || p.Frequency != 0 {
		s.at = map[int32]int{}
	}
	if p.repeats() {
		for _, t := range prompt {
			if _, ok := s.at[t]; !ok {
				s.at[t] = len(s.seen)
				s.seen = append(s.seen, seen{id: t})
			}
		}
	}
	return s
}

// Sample chooses from a row of logits, [vocabulary], which it leaves as it is.
// NaN counts as impossible; ErrNotANumber if nothing else is there, and
// ErrNothingAllowed if a constraint leaves nothing.
func (s *Sampler) Sample(logits []float32, scratch *Scratch) (Token, error) {
	v, err := s.view(logits, scratch)
	if err != nil {
		return Token{}, err
	}
	best := argmax(v.row)
	if best < 0 {
		if s.params.Constraint != nil && argmax(logits) >= 0 {
			return Token{}, ErrNothingAllowed
		}
		return Token{}, ErrNotANumber
	}
	place := best
	if s.params.Temperature > 0 {
		place = s.draw(v.row, best, scratch)
	}
	id := v.id(place)
	if s.at != nil {
		i, ok := s.at[id]
		if !ok {
			i = len(s.seen)
			s.at[id] = i
			s.seen = append(s.seen, seen{id: id})
		}
		s.seen[i].output++
	}
	s.output++
	if m := s.params.Constraint; m != nil {
		if err := m.Accept(id); err != nil {
			return Token{}, fmt.Errorf("follow the grammar: %w", err)
		}
	}
	if s.params.Logprobs {
		return Logprobs(logits, id, s.params.TopLogprobs), nil
	}
	return Token{ID: id}, nil
}

// Draw is how a token is drawn from a row of logits where nothing changes them: by a backend, for one, that has
// them on its device. Zero is the largest logit.
type Draw struct {
	Uniform                 float64 // in [0, 1)
	Temperature, TopP, MinP float64 // as in Params
	TopK                    int
	Logprob                 bool // is wanted
}

// Draw says how the next token is drawn; false if it takes more than that: a grammar, a bias, penalties, ends that must not
// come yet, or a list of the likeliest. It changes nothing: Drawn follows, or Sample in its place.
func (s *Sampler) Draw() (Draw, bool) {
	p := &s.params
	if s.changes() || p.Constraint != nil || p.Logprobs && p.TopLogprobs > 0 {
		return Draw{}, false
	}
	d := Draw{Logprob: p.Logprobs}
	if p.Temperature > 0 {
		d.Uniform = s.uniform(s.drawn + 1)
		d.Temperature, d.TopP, d.MinP, d.TopK = p.Temperature, p.TopP, p.MinP, p.TopK
	}
	return d, true
}

// Drawn notes that a token was drawn by the last Draw. Of certain ones the likeliest had an infinite logit.
func (s *Sampler) Drawn(certain bool) {
	s.output++
	if s.params.Temperature > 0 && !certain {
		s.drawn++
	}
}

// changes says whether logits are changed before the next token is chosen, but for a constraint.
func (s *Sampler) changes() bool {
	return len(s.bias) > 0 || s.at != nil || s.early()
}

// early: an end must not come yet.
func (s *Sampler) early() bool { return s.output < s.params.MinTokens && len(s.params.Ends) > 0 }

func (p *Params) repeats() bool { return p.Repetition != 0 && p.Repetition != 1 }

// view is the logits to choose from: of all tokens, or of those in ids, which are sorted.
type view struct {
	row []float32
	ids []int32 // nil: all
}

func (v view) id(place int) int32 {
	if v.ids == nil {
		return int32(place)
	}
	return v.ids[place]
}

// at is a token's place in the row, or -1.
func (v view) at(id int32) int {
	if v.ids == nil {
		if id < 0 || int(id) >= len(v.row) {
			return -1
		}
		return int(id)
	}
	if i, ok := slices.BinarySearch(v.ids, id); ok {
		return i
	}
	return -1
}

// few tokens that a grammar allows are looked at alone.
const few = 2048

// view applies the constraint, bias and penalties, and what must not be chosen
// yet, to a copy, if there are any.
func (s *Sampler) view(logits []float32, scratch *Scratch) (view, error) {
	p := &s.params
	if !s.changes() && p.Constraint == nil {
		return view{row: logits}, nil
	}
	early := s.early()
	var v view
	if m := p.Constraint; m != nil {
		early = early && !m.Ended() // a complete text has nothing else
		mask := m.Mask()
		n := 0
		for _, w := range mask {
			n += bits.OnesCount64(w)
		}
		switch {
		case n == 0 && m.Err() != nil:
			return v, fmt.Errorf("follow the grammar: %w", m.Err())
		case n == 0:
			return v, ErrNothingAllowed
		case n <= few:
			v = pick(logits, mask, scratch)
		default:
			v.row = append(scratch.row[:0], logits...)
			scratch.row = v.row
			exclude(v.row, mask)
		}
	} else {
		v.row = append(scratch.row[:0], logits...)
		scratch.row = v.row
	}
	for _, b := range s.bias {
		if i := v.at(b.id); i >= 0 {
			v.row[i] = float32(float64(v.row[i]) + b.by)
		}
	}
	repeats := p.repeats()
	for _, t := range s.seen {
		i := v.at(t.id)
		if i < 0 {
			continue
		}
		x := float64(v.row[i])
		if repeats {
			if x > 0 {
				x /= p.Repetition
			} else {
				x *= p.Repetition
			}
			x = float64(float32(x))
		}
		if t.output > 0 {
			x -= p.Presence + float64(t.output)*p.Frequency
		}
		v.row[i] = float32(x)
	}
	if early {
		for _, id := range p.Ends {
			if i := v.at(id); i >= 0 {
				v.row[i] = float32(math.Inf(-1))
			}
		}
	}
	return v, nil
}

// pick takes the logits of a mask's tokens.
func pick(logits []float32, mask []uint64, scratch *Scratch) view {
	v := view{scratch.row[:0], scratch.ids[:0]}
	for i, w := range mask {
		for ; w != 0; w &= w - 1 {
			if id := 64*i + bits.TrailingZeros64(w); id < len(logits) {
				v.ids, v.row = append(v.ids, int32(id)), append(v.row, logits[id])
			}
		}
	}
	scratch.row, scratch.ids = v.row, v.ids
	return v
}

// exclude makes what a mask leaves out impossible.
func exclude(row []float32, mask []uint64) {
	never := float32(math.Inf(-1))
	for i := 0; 64*i < len(row); i++ {
		w := uint64(0)
		if i < len(mask) {
			w = mask[i]
		}
		if w == ^uint64(0) {
			continue
		}
		for j := range row[64*i : min(64*i+64, len(row))] {
			if w>>j&1 == 0 {
				row[64*i+j] = never
			}
		}
	}
}

// path that looks through rows. Each finds the same.
var path = sync.OnceValue(func() cpu.Path {
	p, err := cpu.Best()
	if err != nil { // a backend says so
		return cpu.PlainGo
	}
	return p
})

// argmax is the first place of the largest; -1 if every one is NaN or minus infinity.
func argmax(row []float32) int { return path().Argmax(row) }

// candidate is a place and exp((its logit - the largest) / temperature), in (0, 1].
type candidate struct {
	at     int32
	weight float64
}

// before: likelier first, the lower token among equals.
func before(a, b candidate) int {
	return cmp.Or(cmp.Compare(b.weight, a.weight), cmp.Compare(a.at, b.at))
}

// draw chooses by probability among those that TopK, then TopP, then MinP
// leave, as they are after the temperature.
func (s *Sampler) draw(row []float32, best int, scratch *Scratch) int {
	p := &s.params
	most := row[best]
	if math.IsInf(float64(most), 1) {
		return best // certain; differences to it are not numbers
	}
	e := newExponent(most, p.Temperature)
	topK, topP := p.TopK > 0 && p.TopK < len(row), 0 < p.TopP && p.TopP < 1
	if !topK && !topP && p.MinP <= 0 {
		return s.any(row, e, best, scratch)
	}
	all := scratch.candidates[:0]
	switch {
	case topK:
		all = e.largest(row, p.TopK, all)
		if topP {
			all = all[:enough(all, p.TopP*sum(all))]
		}
	case topP:
		all = e.nucleus(row, p.TopP, all)
	default:
		// A little below the limit, for rounding; the exact one follows.
		all = e.above(row, under(float64(most)+math.Log(min(p.MinP, 1))*p.Temperature*(1+1e-9)), all)
	}
	scratch.candidates = all
	if p.MinP > 0 {
		kept := all[:0]
		for _, c := range all {
			if c.weight >= p.MinP || int(c.at) == best {
				kept = append(kept, c)
			}
		}
		all = kept
	}
	left := s.random() * sum(all)
	for _, c := range all {
		if left -= c.weight; left < 0 {
			return int(c.at)
		}
	}
	return int(all[len(all)-1].at) // rounding
}

// block is so many logits whose weights are summed together, so that only one
// block is looked at again.
const block = 1024

// any draws from all of a row.
func (s *Sampler) any(row []float32, e exponent, best int, scratch *Scratch) int {
	sums, total := scratch.blocks[:0], 0.0
	var weights [4 * block]float64
	for len(row)-block*len(sums) >= len(weights) {
		path().Powers(weights[:], row[block*len(sums):][:len(weights)], e.Powers)
		// Four sums at once, since each addition of one waits for that before it.
		w0, w1, w2, w3 := weights[:block], weights[block:2*block], weights[2*block:3*block], weights[3*block:]
		s0, s1, s2, s3 := 0.0, 0.0, 0.0, 0.0
		for i := range block {
			s0 += w0[i]
			s1 += w1[i]
			s2 += w2[i]
			s3 += w3[i]
		}
		sums = append(sums, s0, s1, s2, s3)
	}
	for from := block * len(sums); from < len(row); from += block {
		sums = append(sums, e.sum(row[from:min(from+block, len(row))]))
	}
	for _, sum := range sums {
		total += sum
	}
	scratch.blocks = sums
	left, last := s.random()*total, best
	for i, sum := range sums {
		if left >= sum {
			left -= sum
			continue
		}
		for j, x := range row[i*block : min((i+1)*block, len(row))] {
			if w := e.Of(x); w > 0 {
				last = i*block + j
				if left -= w; left < 0 {
					return last
				}
			}
		}
	}
	return last // rounding
}

// exponent computes exp((x - most) / temperature) for many x.
type exponent struct{ cpu.Powers }

func newExponent(most float32, temperature float64) exponent {
	return exponent{cpu.NewPowers(most, temperature)}
}

// sum of many, from the first on.
func (e exponent) sum(row []float32) float64 {
	var weights [block]float64
	total := 0.0
	for from := 0; from < len(row); from += block {
		part := row[from:min(from+block, len(row))]
		path().Powers(weights[:], part, e.Powers)
		for _, w := range weights[:len(part)] {
			total += w
		}
	}
	return total
}

// above takes what is at least low.
func (e exponent) above(row []float32, low float32, all []candidate) []candidate {
	p := path()
	low = math.Nextafter32(low, float32(math.Inf(-1))) // less than what is taken; minus infinity weighs nothing
	for i := 0; i < len(row); i++ {
		if !(row[i] > low) { // after one that is, the next one often is too
			if i = p.NextAbove(row, i+1, low); i == len(row) {
				break
			}
		}
		if w := e.Of(row[i]); w > 0 {
			all = append(all, candidate{int32(i), w})
		}
	}
	return all
}

// under is a float32 that is certainly not more.
func under(x float64) float32 { return math.Nextafter32(float32(x), float32(math.Inf(-1))) }

// largest takes the n largest, in order.
func (e exponent) largest(row []float32, n int, all []candidate) []candidate {
	if n > len(row)/8 {
		all = e.above(row, float32(math.Inf(-1)), all)
		slices.SortFunc(all, before)
		return all[:min(n, len(all))]
	}
	// A heap whose top is the least of the n largest so far. The weight is the
	// logit itself until the end.
	worse := func(a, b candidate) bool { return before(a, b) > 0 }
	least := float32(math.Inf(-1))
	p := path()
	for i := p.NextAbove(row, 0, least); i < len(row); i = p.NextAbove(row, i+1, least) { // an equal one has a higher token
		c := candidate{int32(i), float64(row[i])}
		if len(all) < n {
			all = append(all, c)
			for k := len(all) - 1; k > 0 && worse(all[k], all[(k-1)/2]); k = (k - 1) / 2 {
				all[k], all[(k-1)/2] = all[(k-1)/2], all[k]
			}
			if len(all) < n {
				continue
			}
		} else {
			all[0] = c
			for k := 0; ; {
				child := 2*k + 1
				if child >= n {
					break
				}
				if child+1 < n && worse(all[child+1], all[child]) {
					child++
				}
				if !worse(all[child], all[k]) {
					break
				}
				all[k], all[child] = all[child], all[k]
				k = child
			}
		}
		least = float32(all[0].weight)
	}
	slices.SortFunc(all, before)
	for i, c := range all {
		if all[i].weight = e.Of(float32(c.weight)); all[i].weight == 0 {
			return all[:i]
		}
	}
	return all
}

// enough is how many of the first candidates together have so much weight.
func enough(all []candidate, weight float64) int {
	upTo := 0.0
	for i, c := range all {
		if upTo += c.weight; upTo >= weight {
			return i + 1
		}
	}
	return len(all)
}

// nucleus takes the likeliest that together have the share p of all weight.
// A first pass sums weights by size, eight sizes to a power of two, so that only
// those at the border need an order.
func (e exponent) nucleus(row []float32, p float64, all []candidate) []candidate {
	const perPower = 8
	size := func(n int64) int { return int(-n >> 5) } // n in 1/256 of a power: not above 0
	var sizes [61*3/2*perPower + 2]float64
	var weights [block]float64
	for from := 0; from < len(row); from += block {
		part := row[from:min(from+block, len(row))]
		path().Powers(weights[:], part, e.Powers)
		for i, x := range part {
			if _, n, ok := e.Part(x); ok {
				sizes[size(n)] += weights[i]
			} else {
				sizes[0] += weights[i] // 1 or nothing
			}
		}
	}
	total := 0.0
	for _, w := range sizes {
		total += w
	}
	border, above := 0, 0.0
	for ; border < len(sizes)-1 && above+sizes[border] < p*total; border++ {
		above += sizes[border]
	}
	// What is larger is in; what is at the border goes behind it, to be sorted.
	low := float32(math.Inf(-1))
	if least := -float64(border+1)*256/perPower - 1; least > cpu.PowerLeast {
		low = under(e.Most + least/e.Scale*(1+1e-9))
	}
	all = e.above(row, low, all)
	in := 0
	for i, c := range all {
		if _, n, ok := e.Part(row[c.at]); ok && size(n) < border || border > 0 && c.weight == 1 {
			all[i], all[in] = all[in], all[i]
			in++
		}
	}
	slices.SortFunc(all[in:], before)
	upTo := sum(all[:in])
	for i, c := range all[in:] {
		if upTo += c.weight; upTo >= p*total {
			return all[:in+i+1]
		}
	}
	return all
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
	return s.uniform(s.drawn)
}

func (s *Sampler) uniform(n uint64) float64 {
	z := s.params.Seed + n*0x9e3779b97f4a7c15
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return float64((z^z>>31)>>11) / (1 << 53)
}

// Logprobs is a token, chosen or given such as one of a prompt, with its logprob by the
// row before it, and the n likeliest there.
func Logprobs(logits []float32, id int32, n int) Token {
	best := argmax(logits)
	if best < 0 {
		return Token{ID: id, Logprob: math.Inf(-1)} // only a bias made a choice possible
	}
	most := float64(logits[best])
	log := math.Log(newExponent(logits[best], 1).sum(logits))
	if math.IsInf(most, 1) {
		log = 0
	}
	logprob := func(x float32) float64 {
		if float64(x) == most {
			return -log // also where it is infinite
		}
		return float64(x) - most - log
	}
	token := Token{ID: id, Logprob: logprob(logits[id])}
	if n <= 0 {
		return token
	}
	top := make([]Logprob, 0, min(n, len(logits)))
	least := math.Inf(-1)
	for i, x := range logits {
		if x != x || len(top) == n && float64(x) <= least {
			continue
		}
		if len(top) < n {
			top = append(top, Logprob{})
		}
		at := len(top) - 1
		for ; at > 0 && top[at-1].Logprob < float64(x); at-- {
			top[at] = top[at-1]
		}
		top[at] = Logprob{int32(i), float64(x)}
		least = top[len(top)-1].Logprob
	}
	for i := range top {
		top[i].Logprob = logprob(float32(top[i].Logprob))
	}
	token.Top = top
	return token
}
