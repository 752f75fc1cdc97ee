package arch

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/estiba/estiba/runtime/graph"
)

var (
	// ErrInvalid marks a configuration that makes no sense; the error names the field.
	ErrInvalid = errors.New("invalid configuration")
	// ErrUnsupported marks a configuration that makes sense but would be computed
	// wrongly here; the error names the field.
	ErrUnsupported = errors.New("unsupported")
)

func invalid(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, ErrInvalid)...)
}

func unsupported(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, ErrUnsupported)...)
}

// architecture is one family of models.
type architecture struct {
	classes []string // in config.json: architectures
	hfType  string   // in config.json: model_type
	gguf    string   // in GGUF: general.architecture; "" if another one's files are this one's too
	experts bool     // with this name in GGUF, those with experts
	partial bool     // it may rotate parts of heads

	// defaults are what Hugging Face's class takes for fields that config.json lacks, in JSON.
	defaults map[string]string
	hf       func(*fields, *Config) // reads config.json
	fromGGUF func(*pairs, *Config)  // reads the pairs of a GGUF file
	build    func(Config) (*graph.Graph, error)
	spare    []string // parts of tensors' names that the graph does without
}

// architectures lists all there are, by Config.Architecture.
var architectures = map[string]architecture{
	"llama": {
		classes: []string{"LlamaForCausalLM"}, hfType: "llama", gguf: "llama",
		defaults: map[string]string{"max_position_embeddings": "2048", "rms_norm_eps": "1e-6", "bos_token_id": "1", "eos_token_id": "2"},
		hf:       llamaHF, fromGGUF: llamaGGUF, build: llama,
	},
	"mistral": {
		classes: []string{"MistralForCausalLM"}, hfType: "mistral",
		defaults: map[string]string{
			"num_key_value_heads": "8", "max_position_embeddings": "131072", "rms_norm_eps": "1e-6", "sliding_window": "4096",
			"bos_token_id": "1", "eos_token_id": "2",
		},
		hf: mistralHF, build: llama,
	},
	"mixtral": {
		classes: []string{"MixtralForCausalLM"}, hfType: "mixtral", gguf: "llama", experts: true,
		defaults: map[string]string{
			"num_key_value_heads": "8", "max_position_embeddings": "131072", "rms_norm_eps": "1e-5", "rope_theta": "1e6",
			"num_local_experts": "8", "num_experts_per_tok": "2", "bos_token_id": "1", "eos_token_id": "2",
		},
		hf: mixtralHF, fromGGUF: mixtralGGUF, build: mixtral,
	},
	"qwen2": {
		classes: []string{"Qwen2ForCausalLM"}, hfType: "qwen2", gguf: "qwen2",
		defaults: map[string]string{
			"num_key_value_heads": "32", "max_position_embeddings": "32768", "rms_norm_eps": "1e-6", "sliding_window": "4096", "max_window_layers": "28",
		},
		hf: qwen2HF, fromGGUF: qwen2GGUF, build: llama,
	},
	"qwen3": {
		classes: []string{"Qwen3ForCausalLM"}, hfType: "qwen3", gguf: "qwen3",
		defaults: map[string]string{
			"num_key_value_heads": "32", "head_dim": "128", "max_position_embeddings": "32768", "rms_norm_eps": "1e-6", "sliding_window": "4096", "max_window_layers": "28",
		},
		hf: qwen3HF, fromGGUF: qwen3GGUF, build: qwen3,
	},
	"qwen3_moe": {
		classes: []string{"Qwen3MoeForCausalLM"}, hfType: "qwen3_moe", gguf: "qwen3moe", experts: true,
		defaults: map[string]string{
			"num_key_value_heads": "4", "max_position_embeddings": "32768", "rms_norm_eps": "1e-6", "sliding_window": "4096",
			"num_experts": "128", "num_experts_per_tok": "8", "moe_intermediate_size": "768",
		},
		hf: qwen3MoeHF, fromGGUF: qwen3MoeGGUF, build: qwen3,
	},
	"phi3": {
		classes: []string{"Phi3ForCausalLM"}, hfType: "phi3", gguf: "phi3", partial: true,
		defaults: map[string]string{"max_position_embeddings": "4096", "rms_norm_eps": "1e-5", "bos_token_id": "1", "eos_token_id": "32000"},
		hf:       phi3HF, fromGGUF: phi3GGUF, build: phi3,
		spare: []string{"rope_factors_long.weight"},
	},
	"gemma2": {
		classes: []string{"Gemma2ForCausalLM"}, hfType: "gemma2", gguf: "gemma2",
		defaults: map[string]string{
			"num_key_value_heads": "4", "head_dim": "256", "max_position_embeddings": "8192", "rms_norm_eps": "1e-6", "tie_word_embeddings": "true",
			"hidden_activation": `"gelu_pytorch_tanh"`, "query_pre_attn_scalar": "256", "sliding_window": "4096",
			"attn_logit_softcapping": "50", "final_logit_softcapping": "30", "bos_token_id": "2", "eos_token_id": "1",
		},
		hf: gemma2HF, fromGGUF: gemma2GGUF, build: gemma2,
	},
	"bert": {
		classes: []string{"BertModel", "BertForMaskedLM", "BertForPreTraining"}, hfType: "bert", gguf: "bert",
		defaults: map[string]string{"max_position_embeddings": "512", "layer_norm_eps": "1e-12", "hidden_act": `"gelu"`, "type_vocab_size": "2"},
		hf:       bertHF, fromGGUF: bertGGUF, build: bert,
		spare: []string{"pooler.dense.", "cls.", "embeddings.position_ids"}, // heads of other tasks, and 0, 1, 2…
	},
}

// Build makes the graph of a configuration.
func Build(c Config) (*graph.Graph, error) {
	a, ok := architectures[c.Architecture]
	if !ok {
		return nil, fmt.Errorf("architecture %q: %w", c.Architecture, ErrUnsupported)
	}
	if err := c.check(Config.fieldName); err != nil {
		return nil, err
	}
	return a.build(c)
}

// Spare says whether a checkpoint may have a tensor that the graph lacks: what old
// versions stored but nobody reads, or what other tasks need.
func Spare(c Config, tensor string) bool {
	return strings.HasSuffix(tensor, ".rotary_emb.inv_freq") || c.TiedOutput && tensor == "lm_head.weight" ||
		slices.ContainsFunc(architectures[c.Architecture].spare, func(part string) bool { return strings.Contains(tensor, part) })
}

// KVBytesPerToken is what one position of one sequence takes in the KV cache:
// a key and a value, of 16 bits a number, in every layer. An encoder has none.
func KVBytesPerToken(c Config) int64 {
	if c.Encoder {
		return 0
	}
	return 2 * 2 * int64(c.Layers) * int64(c.KVHeads) * int64(c.HeadDim)
}

// WorkspaceBytes is graph.WorkspaceBytes of this configuration: what a program needs beside
// weights and KV cache for steps of up to maxTokens tokens and maxRows rows of logits. It is 0
// for a configuration that Build refuses.
func WorkspaceBytes(c Config, maxTokens, maxRows int) int64 {
	g, err := Build(c)
	if err != nil {
		return 0
	}
	return g.WorkspaceBytes(maxTokens, maxRows)
}

// HostBytes is about what a loaded model takes beside what its program holds: its
// tokenizer, and names and places of its weights. A token has some 170 bytes with
// the merges that make it, or 100 without, a layer some 9 KiB, an expert's three weights 3 KiB.
func HostBytes(c Config) int64 {
	const token, layer, expert = 256, 12 << 10, 4 << 10
	return token*int64(c.Vocabulary) + layer*int64(c.Layers) + expert*int64(c.Experts)*int64(c.Layers-len(c.DenseLayers))
}

// The largest sizes that are believed. A model of a terabyte fits well below
// each; products of them stay within 63 bits.
const (
	maxLayers     = 1 << 12
	maxHidden     = 1 << 20
	maxFFN        = 1 << 22
	maxHeads      = 1 << 14
	maxHeadDim    = 1 << 14
	maxHeadsWidth = 1 << 21 // heads * head dim
	maxVocabulary = 1 << 24
	maxPositions  = 1 << 30
	maxTypes      = 1 << 16
	maxExperts    = 1 << 10
	maxAllExperts = 1 << 15 // of all layers
)

// layers is how many there are, whether or not that has been checked.
func (c Config) layers() int { return min(max(c.Layers, 0), maxLayers) }

// field is a part of a Config that a format has under a name of its own.
type field int

const (
	fieldLayers field = iota
	fieldHidden
	fieldFFN
	fieldHeads
	fieldKVHeads
	fieldHeadDim
	fieldVocabulary
	fieldMaxPositions
	fieldNormEps
	fieldRopeTheta
	fieldRopeDims
	fieldRopeScaling
	fieldScale
	fieldAttentionSoftCap
	fieldLogitSoftCap
	fieldWindow
	fieldTypes
	fieldExperts
	fieldExpertsPerToken
	fieldExpertFFN
	fieldBOS
	fieldEOS
)

func (Config) fieldName(f field) string {
	return [...]string{
		"Layers", "Hidden", "FFN", "Heads", "KVHeads", "HeadDim", "Vocabulary", "MaxPositions", "NormEps", "RopeTheta", "RopeDims", "RopeScaling",
		"AttentionScale", "AttentionSoftCap", "LogitSoftCap", "Windows", "Types", "Experts", "ExpertsPerToken", "ExpertFFN", "BOS", "EOS",
	}[f]
}

// check says which field makes no sense, under the name that name gives it.
func (c Config) check(name func(Config, field) string) error {
	wrong := func(f field, format string, args ...any) error {
		return fmt.Errorf("%s %w", name(c, f), invalid(format, args...))
	}
	type size struct {
		f      field
		n, max int
	}
	sizes := []size{
		{fieldLayers, c.Layers, maxLayers},
		{fieldHidden, c.Hidden, maxHidden},
		{fieldFFN, c.FFN, maxFFN},
		{fieldHeads, c.Heads, maxHeads},
		{fieldKVHeads, c.KVHeads, maxHeads},
		{fieldHeadDim, c.HeadDim, maxHeadDim},
		{fieldVocabulary, c.Vocabulary, maxVocabulary},
		{fieldMaxPositions, c.MaxPositions, maxPositions},
	}
	if c.Encoder {
		sizes = append(sizes, size{fieldTypes, c.Types, maxTypes})
	}
	if c.Experts != 0 {
		sizes = append(sizes, size{fieldExperts, c.Experts, maxExperts}, size{fieldExpertsPerToken, c.ExpertsPerToken, c.Experts}, size{fieldExpertFFN, c.ExpertFFN, maxFFN})
	}
	for _, s := range sizes {
		if s.n < 1 || s.n > s.max {
			return wrong(s.f, "is %d, not within 1 and %d", s.n, s.max)
		}
	}
	capped := func(x float32) bool { return x >= 0 && x <= 1e9 }
	switch {
	case c.Heads%c.KVHeads != 0:
		return wrong(fieldKVHeads, "is %d, which does not divide the %d query heads", c.KVHeads, c.Heads)
	case c.Heads*c.HeadDim > maxHeadsWidth:
		return wrong(fieldHeads, "is %d of %d numbers each: more than %d together", c.Heads, c.HeadDim, maxHeadsWidth)
	case !(c.NormEps > 0 && c.NormEps < 1):
		return wrong(fieldNormEps, "is %v, not between 0 and 1", c.NormEps)
	case c.Experts*c.Layers > maxAllExperts:
		return wrong(fieldExperts, "is %d in each of %d layers: more than %d together", c.Experts, c.Layers, maxAllExperts)
	case !(c.AttentionScale >= 0 && c.AttentionScale <= 1e9):
		return wrong(fieldScale, "gives a scale of %v", c.AttentionScale)
	case !capped(c.AttentionSoftCap):
		return wrong(fieldAttentionSoftCap, "is %v", c.AttentionSoftCap)
	case !capped(c.LogitSoftCap):
		return wrong(fieldLogitSoftCap, "is %v", c.LogitSoftCap)
	case c.Windows != nil && len(c.Windows) != c.Layers:
		return wrong(fieldWindow, "is given for %d layers of %d", len(c.Windows), c.Layers)
	case slices.ContainsFunc(c.Windows, func(w int) bool { return w < 0 }):
		return wrong(fieldWindow, "is negative")
	case c.BOS < -1 || int(c.BOS) >= c.Vocabulary:
		return wrong(fieldBOS, "is %d, which is not in the vocabulary of %d", c.BOS, c.Vocabulary)
	}
	if err := c.checkRope(wrong); err != nil {
		return err
	}
	if i := slices.IndexFunc(c.EOS, func(id int32) bool { return id < 0 || int(id) >= c.Vocabulary }); i >= 0 {
		return wrong(fieldEOS, "is %d, which is not in the vocabulary of %d", c.EOS[i], c.Vocabulary)
	}
	return nil
}

func (c Config) checkRope(wrong func(field, string, ...any) error) error {
	if c.Encoder {
		return nil // its positions are learned
	}
	switch dims := c.rotated(); {
	case c.RopeDims == 0 && c.HeadDim%2 != 0:
		return wrong(fieldHeadDim, "is %d: rotary position embedding needs an even size", c.HeadDim)
	case dims < 2 || dims%2 != 0 || dims > c.HeadDim:
		return wrong(fieldRopeDims, "rotates %d numbers of a head's %d: they must be a positive, even number", dims, c.HeadDim)
	case !(c.RopeTheta >= 1 && c.RopeTheta <= math.MaxFloat32):
		return wrong(fieldRopeTheta, "is %v, not a number of at least 1", c.RopeTheta)
	case c.RopeScaling.Kind == RopeYaRN && c.RopeTheta == 1:
		return wrong(fieldRopeTheta, "is 1, with which no pair is slower than another")
	}
	if err := c.RopeScaling.check(c.rotated() / 2); err != nil {
		return wrong(fieldRopeScaling, "%w", err)
	}
	return nil
}
