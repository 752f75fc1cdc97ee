package arch

import (
	"fmt"
	"math"
	"slices"

	"github.com/estiba/estiba/runtime/graph"
	"github.com/estiba/estiba/runtime/tensor"
)

// RopeScaling stretches the rotary positions of a model beyond the context
// that it was trained with. The zero value does not.
type RopeScaling struct {
	Kind     RopeKind
	Factor   float64 // Linear, Llama3, YaRN: how far the context is stretched
	Original int     // Llama3, YaRN: the context before, in tokens

	LowFreq, HighFreq  float64 // Llama3: turns within the original context below which, and above which, a pair is stretched, or not
	BetaFast, BetaSlow float64 // YaRN: turns within the original context above which, and below which, a pair is not stretched, or is
	Exact              bool    // YaRN: the pairs where the ramp begins and ends are not rounded to whole ones
	Amplitude          float64 // YaRN, LongRoPE: of the rotated; 0: 1

	Divisors []float64 // LongRoPE: of each pair's frequency
	Tensor   string    // a weight in a GGUF file that has divisors; "" for none
}

// RopeKind is a way of scaling.
type RopeKind uint8

// The kinds of scaling, by the names that configurations give them.
const (
	RopeDefault RopeKind = iota
	RopeLinear
	RopeLlama3
	RopeYaRN
	RopeLongRoPE
)

// rotated is how many numbers of a head are rotated.
func (c Config) rotated() int {
	if c.RopeDims == 0 {
		return c.HeadDim
	}
	return c.RopeDims
}

// frequencies of the rotated pairs, in radians per position, and the amplitude. As in the programs
// that models are trained with, a frequency is a float32.
// Sources: arXiv:2104.09864; linear arXiv:2306.15595; YaRN arXiv:2309.00071, section 3;
// Llama 3 arXiv:2407.21783 and its published code; LongRoPE arXiv:2402.13753.
func (c Config) frequencies() (frequencies []float32, amplitude float32) {
	dims, s := c.rotated(), c.RopeScaling
	amplitude = 1
	if s.Amplitude != 0 {
		amplitude = float32(s.Amplitude)
	}
	for pair := range dims / 2 {
		f := math.Pow(c.RopeTheta, -2*float64(pair)/float64(dims))
		switch s.Kind {
		case RopeLinear:
			f /= s.Factor
		case RopeLlama3:
			f = s.llama3(f)
		case RopeYaRN:
			f = s.yarn(f, pair, dims, c.RopeTheta)
		case RopeLongRoPE:
			f /= s.Divisors[pair]
		}
		frequencies = append(frequencies, float32(f))
	}
	return frequencies, amplitude
}

// llama3 stretches a frequency that turns less than LowFreq times within the original context, keeps
// one that turns more than HighFreq times, and goes from one to the other between.
func (s RopeScaling) llama3(f float64) float64 {
	turns := float64(s.Original) * f / (2 * math.Pi)
	switch {
	case turns < s.LowFreq:
		return f / s.Factor
	case turns > s.HighFreq:
		return f
	}
	kept := (turns - s.LowFreq) / (s.HighFreq - s.LowFreq)
	return (1-kept)*f/s.Factor + kept*f
}

// yarn stretches the pairs beyond the one that turns BetaSlow times within the original context, keeps
// those before the one that turns BetaFast times, and goes from one to the other between.
func (s RopeScaling) yarn(f float64, pair, dims int, theta float64) float64 {
	turning := func(turns float64) float64 { // the pair that turns so often
		return float64(dims) * math.Log(float64(s.Original)/(turns*2*math.Pi)) / (2 * math.Log(theta))
	}
	from, to := turning(s.BetaFast), turning(s.BetaSlow)
	if !s.Exact {
		from, to = math.Floor(from), math.Ceil(to)
	}
	from, to = max(from, 0), min(to, float64(dims-1))
	if from == to {
		to += 0.001
	}
	stretched := min(max((float64(pair)-from)/(to-from), 0), 1)
	return f/s.Factor*stretched + f*(1-stretched)
}

// check says what is wrong, by the names of Hugging Face's fields.
func (s RopeScaling) check(pairs int) error {
	wrong := fmt.Errorf
	fine := func(x float64) bool { return x > 0 && x <= math.MaxFloat32 }
	switch s.Kind {
	case RopeLinear, RopeLlama3, RopeYaRN:
		if !(s.Factor >= 1 && s.Factor <= 1<<20) {
			return wrong("factor is %v, not a number of at least 1", s.Factor)
		}
	}
	switch s.Kind {
	case RopeLlama3, RopeYaRN, RopeLongRoPE:
		if s.Original < 1 || s.Original > maxPositions {
			return wrong("original_max_position_embeddings is %d, not within 1 and %d", s.Original, maxPositions)
		}
	}
	switch {
	case s.Kind == RopeLlama3 && !(fine(s.LowFreq) && fine(s.HighFreq) && s.LowFreq < s.HighFreq):
		return wrong("low_freq_factor is %v and high_freq_factor %v: the second must be larger", s.LowFreq, s.HighFreq)
	case s.Kind == RopeYaRN && !(fine(s.BetaFast) && fine(s.BetaSlow) && s.BetaFast >= s.BetaSlow):
		return wrong("beta_fast is %v and beta_slow %v: the first must be larger", s.BetaFast, s.BetaSlow)
	case s.Amplitude != 0 && !fine(s.Amplitude):
		return wrong("attention_factor is %v, not a number above 0", s.Amplitude)
	case s.Kind == RopeLongRoPE && len(s.Divisors) != pairs:
		return wrong("short_factor has %d numbers for %d rotated pairs", len(s.Divisors), pairs)
	case slices.ContainsFunc(s.Divisors, func(d float64) bool { return !(d >= 1e-3 && d <= 1e6) }):
		return wrong("short_factor has a number that is not within 0.001 and 1000000")
	}
	return nil
}

// yarnAmplitude is what the paper suggests for a factor, times the share of it that mscale asks for.
func yarnAmplitude(factor, mscale float64) float64 {
	if factor <= 1 {
		return 1
	}
	return 0.1*mscale*math.Log(factor) + 1
}

// rope rotates the heads of x [T,heads*HeadDim].
func (b *block) rope(x graph.Value, heads int) graph.Value {
	if b.frequencies == nil {
		b.frequencies, b.amplitude = b.c.frequencies()
		if name := b.c.RopeScaling.Tensor; name != "" {
			b.divisors = []graph.Value{b.Weight(graph.Weight{
				Name: "rope.divisors", Shape: tensor.Shape{len(b.frequencies)}, GGUF: []graph.Place{{Tensor: name}},
			})}
		}
	}
	return b.Op(graph.Rope, graph.Attr{
		Heads: heads, HeadDim: b.c.HeadDim,
		Frequencies: b.frequencies, Amplitude: b.amplitude, Neighbours: b.c.RopePairs == RopeNeighbours,
	}, append([]graph.Value{x}, b.divisors...)...)
}
