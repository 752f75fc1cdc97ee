// Package eval measures what a model loses against a reference, from the logits
// that both give for the same text. It is pure: numbers in, numbers out. Start with Sums.
package eval

import "math"

// Sums are of the positions seen so far. The zero value has seen none.
type Sums struct {
	positions, same            int
	loss, reference, kl, worst float64 // sums in nats; worst is the largest kl
}

// Result is means over positions.
type Result struct {
	Perplexity          float64 `json:"perplexity"` // exp of the mean negative log-probability of the text's tokens
	ReferencePerplexity float64 `json:"reference_perplexity"`
	MeanKL              float64 `json:"mean_kl"`  // KL(reference ‖ model), nats per position
	MaxKL               float64 `json:"max_kl"`   // of one position
	SameTop             float64 `json:"same_top"` // share of positions where both have the same likeliest token
	Positions           int     `json:"positions"`
}

// Add sees a position: the logits [vocabulary] that model and reference give, and the token
// that the text goes on with. Sums are in float64.
func (s *Sums) Add(model, reference []float32, next int32) {
	model = model[:len(reference)]
	topM, logM := normalize(model)
	topR, logR := normalize(reference)
	kl := 0.0
	for i, r := range reference {
		p := float64(r) - logR
		if weight := math.Exp(p); weight > 0 {
			kl += weight * (p - (float64(model[i]) - logM))
		}
	}
	if kl < 0 { // by rounding
		kl = 0
	}
	s.positions++
	if topM == topR {
		s.same++
	}
	s.loss -= float64(model[next]) - logM
	s.reference -= float64(reference[next]) - logR
	s.kl += kl
	s.worst = math.Max(s.worst, kl) // NaN stays
}

// normalize gives the first of the largest logits, and the logarithm of the sum of
// their exponentials.
func normalize(logits []float32) (top int, log float64) {
	for i, x := range logits {
		if x > logits[top] || x != x {
			top = i
		}
	}
	most := float64(logits[top])
	sum := 0.0
	for _, x := range logits {
		sum += math.Exp(float64(x) - most)
	}
	return top, most + math.Log(sum)
}

// Result so far; it is no number before the first position, and after logits that are none.
func (s *Sums) Result() Result {
	n := float64(s.positions)
	return Result{
		Perplexity:          math.Exp(s.loss / n),
		ReferencePerplexity: math.Exp(s.reference / n),
		MeanKL:              s.kl / n,
		MaxKL:               s.worst,
		SameTop:             float64(s.same) / n,
		Positions:           s.positions,
	}
}

// Finite says whether all of it are numbers.
func (r Result) Finite() bool {
	for _, x := range []float64{r.Perplexity, r.ReferencePerplexity, r.MeanKL, r.MaxKL, r.SameTop} {
		if math.IsNaN(x) || math.IsInf(x, 0) {
			return false
		}
	}
	return true
}
