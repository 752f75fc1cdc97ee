package eval

import (
	"math"
	"math/rand/v2"
	"testing"
)

func near(t *testing.T, what string, got, want float64) {
	t.Helper()
	if !(math.Abs(got-want) <= 1e-12*(1+math.Abs(want))) {
		t.Errorf("%s: %v, want %v", what, got, want)
	}
}

func TestByHand(t *testing.T) {
	log := func(p ...float64) []float32 {
		x := make([]float32, len(p))
		for i := range p {
			x[i] = float32(math.Log(p[i]))
		}
		return x
	}
	var s Sums
	s.Add(log(0.5, 0.25, 0.25), log(0.25, 0.5, 0.25), 0)
	s.Add(log(2, 1, 1), log(1, 0.5, 0.5), 1) // need not sum to 1
	r := s.Result()
	// Logits are float32.
	for _, c := range []struct {
		what      string
		got, want float64
	}{
		{"perplexity", r.Perplexity, math.Sqrt(2 * 4)},
		{"reference", r.ReferencePerplexity, math.Sqrt(4 * 4)},
		{"mean", r.MeanKL, (0.25*math.Log(2) + 0) / 2}, // 0.25 log(1/2) + 0.5 log 2
		{"max", r.MaxKL, 0.25 * math.Log(2)},
		{"same", r.SameTop, 0.5},
	} {
		if math.Abs(c.got-c.want) > 1e-6 {
			t.Errorf("%s: %v, want %v", c.what, c.got, c.want)
		}
	}
	if r.Positions != 2 || !r.Finite() {
		t.Errorf("%+v", r)
	}
}

// TestTwin compares with the definitions, written out.
func TestTwin(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	softmax := func(x []float32) []float64 {
		p, sum := make([]float64, len(x)), 0.0
		for i := range x {
			p[i] = math.Exp(float64(x[i]))
			sum += p[i]
		}
		for i := range p {
			p[i] /= sum
		}
		return p
	}
	for range 200 {
		var s Sums
		var loss, kl, largest float64
		n := 1 + r.IntN(5)
		for range n {
			v := 1 + r.IntN(40)
			m, ref := make([]float32, v), make([]float32, v)
			for i := range m {
				m[i], ref[i] = float32(10*r.NormFloat64()), float32(10*r.NormFloat64())
			}
			next := r.IntN(v)
			s.Add(m, ref, int32(next))
			p, q := softmax(ref), softmax(m)
			here := 0.0
			for i := range p {
				here += p[i] * math.Log(p[i]/q[i])
			}
			loss -= math.Log(q[next])
			kl, largest = kl+here, max(largest, here)
		}
		got := s.Result()
		near(t, "perplexity", got.Perplexity, math.Exp(loss/float64(n)))
		near(t, "mean", got.MeanKL, kl/float64(n))
		near(t, "max", got.MaxKL, largest)
	}
}

func TestEdges(t *testing.T) {
	var s Sums
	if s.Result().Finite() {
		t.Error("no position has a mean")
	}
	x := []float32{1e5, -1e5, float32(math.Inf(-1))} // far beyond what exp can do
	s.Add(x, x, 0)
	if r := s.Result(); r.Perplexity != 1 || r.MeanKL != 0 || r.SameTop != 1 {
		t.Errorf("%+v", r)
	}
	s.Add([]float32{0, float32(math.NaN()), 0}, x, 0)
	if s.Result().Finite() {
		t.Error("no number went unnoticed")
	}
}
