package synth

import (
	"maps"
	"math"
	"slices"
	"strconv"

	"github.com/estiba/estiba/runtime/tensor"
	"github.com/estiba/estiba/runtime/weights"
)

// Shape is the size of a published model.
type Shape struct {
	Architecture string // of GGUF
	Layers       int
	Hidden       int
	FFN          int
	Heads        int
	KVHeads      int
	HeadDim      int
	Vocabulary   int
	Context      int // tokens
	NormEps      float32
	RopeTheta    float32
	RopeFactor   float64 // llama 3.1's scaling of long wavelengths from a context of 8192; 0 for none
	Tied         bool    // the output matrix is the embedding table
	Biases       bool    // of queries, keys and values
}

// shapes by name, from the config.json that each was published with; stories15m from karpathy/llama2.c.
var shapes = map[string]Shape{
	"stories15m":     {"llama", 6, 288, 768, 6, 6, 48, 32000, 256, 1e-5, 1e4, 0, true, false},
	"qwen2.5-0.5b":   {"qwen2", 24, 896, 4864, 14, 2, 64, 151936, 32768, 1e-6, 1e6, 0, true, true},
	"tinyllama-1.1b": {"llama", 22, 2048, 5632, 32, 4, 64, 32000, 2048, 1e-5, 1e4, 0, false, false},
	"llama-3.2-1b":   {"llama", 16, 2048, 8192, 32, 8, 64, 128256, 131072, 1e-5, 5e5, 32, true, false},
	"qwen2.5-7b":     {"qwen2", 28, 3584, 18944, 28, 4, 128, 152064, 32768, 1e-6, 1e6, 0, false, true},
	"llama-3.1-8b":   {"llama", 32, 4096, 14336, 32, 8, 128, 128256, 131072, 1e-5, 5e5, 8, false, false},
}

// Shapes are the names of the shapes that there are.
func Shapes() []string { return slices.Sorted(maps.Keys(shapes)) }

// part is a tensor to be made: a matrix [rows, cols] or, with rows 0, a vector [cols].
type part struct {
	name       string
	rows, cols int
	fill       fill
}

// fill says which numbers a tensor has.
type fill int

const (
	random      fill = iota // of deviation 1/√cols, which keeps activations near 1
	small                   // of deviation 0.02: biases
	ones                    // norms
	wavelengths             // what divides the frequencies of the rotation
)

// parts in the order of the file, by their names in GGUF.
func (s Shape) parts() []part {
	p := []part{{"token_embd.weight", s.Vocabulary, s.Hidden, random}}
	if s.RopeFactor != 0 {
		p = append(p, part{"rope_freqs.weight", 0, s.HeadDim / 2, wavelengths})
	}
	q, kv := s.Heads*s.HeadDim, s.KVHeads*s.HeadDim
	for l := range s.Layers {
		name := "blk." + strconv.Itoa(l) + "."
		p = append(p,
			part{name + "attn_norm.weight", 0, s.Hidden, ones},
			part{name + "attn_q.weight", q, s.Hidden, random},
			part{name + "attn_k.weight", kv, s.Hidden, random},
			part{name + "attn_v.weight", kv, s.Hidden, random},
			part{name + "attn_output.weight", s.Hidden, q, random},
			part{name + "ffn_norm.weight", 0, s.Hidden, ones},
			part{name + "ffn_gate.weight", s.FFN, s.Hidden, random},
			part{name + "ffn_up.weight", s.FFN, s.Hidden, random},
			part{name + "ffn_down.weight", s.Hidden, s.FFN, random},
		)
		if s.Biases {
			p = append(p, part{name + "attn_q.bias", 0, q, small}, part{name + "attn_k.bias", 0, kv, small}, part{name + "attn_v.bias", 0, kv, small})
		}
	}
	p = append(p, part{"output_norm.weight", 0, s.Hidden, ones})
	if !s.Tied {
		p = append(p, part{"output.weight", s.Vocabulary, s.Hidden, random})
	}
	return p
}

// info is how a part is stored. Vectors are float32. Rows that a format has no
// whole blocks for get the next best one, as llama.cpp does it.
func (p part) info(d tensor.DType) weights.Info {
	if p.rows == 0 {
		return weights.Info{Name: p.name, DType: tensor.F32, Shape: tensor.Shape{p.cols}}
	}
	if next, ok := smallBlocks[d]; ok && p.cols%d.Block() != 0 {
		d = next
	}
	if p.cols%d.Block() != 0 {
		d = tensor.F16
	}
	return weights.Info{Name: p.name, DType: d, Shape: tensor.Shape{p.rows, p.cols}}
}

// smallBlocks are what llama.cpp takes instead of a format with blocks of 256.
var smallBlocks = map[tensor.DType]tensor.DType{tensor.Q4_K: tensor.Q5_0, tensor.Q5_K: tensor.Q5_1, tensor.Q6_K: tensor.Q8_0}

// fields of the file; d is the format of its matrices.
func (s Shape) fields(name string, d tensor.DType) []weights.Field {
	a := s.Architecture + "."
	tokens, scores, types := vocabulary(s.Vocabulary)
	return []weights.Field{
		{Key: "general.architecture", Value: s.Architecture},
		{Key: "general.type", Value: "model"},
		{Key: "general.name", Value: name + " with random weights"},
		{Key: "general.file_type", Value: fileTypes[d]},
		{Key: "general.quantization_version", Value: uint32(2)},
		{Key: a + "block_count", Value: uint32(s.Layers)},
		{Key: a + "context_length", Value: uint32(s.Context)},
		{Key: a + "embedding_length", Value: uint32(s.Hidden)},
		{Key: a + "feed_forward_length", Value: uint32(s.FFN)},
		{Key: a + "attention.head_count", Value: uint32(s.Heads)},
		{Key: a + "attention.head_count_kv", Value: uint32(s.KVHeads)},
		{Key: a + "attention.key_length", Value: uint32(s.HeadDim)},
		{Key: a + "attention.value_length", Value: uint32(s.HeadDim)},
		{Key: a + "attention.layer_norm_rms_epsilon", Value: s.NormEps},
		{Key: a + "rope.dimension_count", Value: uint32(s.HeadDim)},
		{Key: a + "rope.freq_base", Value: s.RopeTheta},
		{Key: a + "vocab_size", Value: uint32(s.Vocabulary)},
		{Key: "tokenizer.ggml.model", Value: "llama"},
		{Key: "tokenizer.ggml.pre", Value: "default"},
		{Key: "tokenizer.ggml.tokens", Value: tokens},
		{Key: "tokenizer.ggml.scores", Value: scores},
		{Key: "tokenizer.ggml.token_type", Value: types},
		{Key: "tokenizer.ggml.unknown_token_id", Value: uint32(0)},
		{Key: "tokenizer.ggml.bos_token_id", Value: uint32(1)},
		{Key: "tokenizer.ggml.eos_token_id", Value: uint32(2)},
		{Key: "tokenizer.ggml.add_bos_token", Value: true},
		{Key: "tokenizer.ggml.add_eos_token", Value: false},
	}
}

// fileTypes are llama.cpp's numbers (enum llama_ftype) for a file of mostly one format.
var fileTypes = map[tensor.DType]uint32{
	tensor.F32: 0, tensor.F16: 1, tensor.Q4_0: 2, tensor.Q4_1: 3, tensor.Q8_0: 7, tensor.Q5_0: 8, tensor.Q5_1: 9,
	tensor.Q4_K: 14, tensor.Q5_K: 16, tensor.Q6_K: 18, tensor.BF16: 32,
}

// Quants are the formats that files are made in.
func Quants() []tensor.DType {
	return slices.SortedFunc(maps.Keys(fileTypes), func(a, b tensor.DType) int { return int(a) - int(b) })
}

// divisors are what llama 3.1 divides the frequencies of a rotation by: nothing for
// wavelengths up to 8192/4 tokens, all by the factor from 8192/1 on, and between
// these something in between. Source: rope_type "llama3" in Hugging Face's transformers.
func (s Shape) divisors() []float32 {
	const original, low, high = 8192, 1, 4
	d := make([]float32, s.HeadDim/2)
	for i := range d {
		wavelength := 2 * math.Pi * math.Pow(float64(s.RopeTheta), float64(2*i)/float64(s.HeadDim))
		switch {
		case wavelength < original/high:
			d[i] = 1
		case wavelength > original/low:
			d[i] = float32(s.RopeFactor)
		default:
			smooth := (original/wavelength - low) / (high - low)
			d[i] = float32(1 / ((1-smooth)/s.RopeFactor + smooth))
		}
	}
	return d
}
