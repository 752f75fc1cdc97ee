package cuda

import (
	"fmt"
	"math"
)

// Draw is how the token of a row of logits is drawn, in device memory: as runtime/sampling draws it, whose
// Params these are. Penalties, bias, tokens that must not come yet and lists of the likeliest are the host's: rows that
// need them are copied there. Zero, but for Mask, is greedy.
//
// The token is runtime/sampling's for the same logits and the same uniform number, unless that number is within some
// 1e-10 of where the next token begins, or a token less likely than 2^-45 of the likeliest is drawn.
// Where a grammar leaves at most TopK tokens, a caller that wants the same draw as runtime/sampling's sets TopK to 0.
type Draw struct {
	Uniform     float64 // in [0, 1); it is not used where Temperature is 0 or Choice.Most is infinite
	Temperature float64
	TopP        float64
	MinP        float64
	TopK        int32
	Mask        int32 // row of SampleParams.Masks; -1: all tokens are allowed
	Logprob     int32 // 1: Choice.Logprob is wanted
	_           int32
}

// Choice is a row's result, in device memory.
type Choice struct {
	// Token that was chosen; NotANumber or NothingAllowed where there was nothing to choose from.
	Token int32
	Logit float32 // its
	Most  float32 // the largest logit, allowed or not
	_     int32
	Sum   float64 // of exp(logit - Most) over all tokens, if Draw.Logprob
}

// What Choice.Token is without a token: runtime/sampling's ErrNotANumber and ErrNothingAllowed.
const (
	NotANumber     = -1
	NothingAllowed = -2
)

// Logprob is the natural logarithm of the token's probability in the softmax of all logits.
func (c Choice) Logprob() float64 {
	log := math.Log(c.Sum)
	if math.IsInf(float64(c.Most), 1) {
		log = 0
	}
	if c.Logit == c.Most {
		return -log // also where it is infinite
	}
	return float64(c.Logit) - float64(c.Most) - log
}

// SampleParams of a token for each row of logits.
type SampleParams struct {
	Logits     Address // f32 [rows, Vocabulary]
	Draws      Address // [rows] Draw
	Masks      Address // u32 [any, MaskWords]: bit i%32 of word i/32 allows token i, as in grammar.Matcher.Mask; 0: none
	Choices    Address // [rows] Choice
	Scratch    Address // SampleScratch bytes
	Vocabulary int32   // at most MaxVocabulary
	MaskWords  int32   // tokens beyond are not allowed
	slice      int32
	_          int32
}

// MaxVocabulary that Sample draws from.
const MaxVocabulary = 1 << 19

// SampleScratch is how many bytes Sample needs for so many rows.
func SampleScratch(rows int) int64 { return int64(rows) * 13960 } // struct Work of sample.cu

// Sample chooses a token for each of rows, at most 65535. draws says that some of them have a temperature, or ask for
// logprobs; without, the largest logit is what there is to find. It panics if the vocabulary is too large.
func Sample(p SampleParams, rows int, draws bool) []Launch {
	if p.Vocabulary < 1 || p.Vocabulary > MaxVocabulary {
		panic(fmt.Sprintf("cuda: sample from %d tokens", p.Vocabulary))
	}
	// At most 64 slices, of whole parts of 1024, and not too small for a block.
	p.slice = max(4096, int32(blocks(int(p.Vocabulary), 64*1024))*1024)
	grid := [3]uint32{blocks(int(p.Vocabulary), int(p.slice)), uint32(rows), 1}
	all := []Launch{launch("sampleMost", grid, 256, 0, &p)}
	if draws {
		all = append(all, launch("sampleWeigh", grid, 256, 0, &p))
	}
	return append(all, launch("sampleChoose", [3]uint32{uint32(rows), 1, 1}, 512, 72728, &p)) // struct Room
}
