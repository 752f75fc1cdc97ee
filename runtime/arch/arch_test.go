package arch_test

import (
	"encoding/json"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/estiba/estiba/internal/fixture"
	"github.com/estiba/estiba/runtime/arch"
	"github.com/estiba/estiba/runtime/tensor"
)

const config = `{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "intermediate_size": 172,
 "num_hidden_layers": 5, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 8, "vocab_size": 512, "max_position_embeddings": 512,
 "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "hidden_act": "silu", "tie_word_embeddings": true, "bos_token_id": 1, "eos_token_id": 2}`

var stories = arch.Config{
	Architecture: "llama", Layers: 5, Hidden: 64, FFN: 172, Heads: 8, KVHeads: 4, HeadDim: 8, Vocabulary: 512, MaxPositions: 512,
	NormEps: 1e-5, RopeTheta: 10000, TiedOutput: true, BOS: 1, EOS: []int32{2},
}

func pairs() map[string]any {
	return map[string]any{
		"general.architecture": "llama", "llama.context_length": uint32(512), "llama.embedding_length": uint32(64),
		"llama.block_count": uint32(5), "llama.feed_forward_length": uint32(172), "llama.rope.dimension_count": uint32(8),
		"llama.attention.head_count": uint32(8), "llama.attention.head_count_kv": uint32(4), "llama.vocab_size": uint32(512),
		"llama.attention.layer_norm_rms_epsilon": float32(1e-5), "llama.rope.freq_base": float32(10000),
		"tokenizer.ggml.bos_token_id": uint32(1), "tokenizer.ggml.eos_token_id": uint32(2), "tokenizer.ggml.add_bos_token": true,
	}
}

// has is a file with no tensor of the names that are asked for but an output matrix.
func has(name string) bool { return name == "output.weight" }

// with replaces a field of config, or adds it.
func with(field, value string) string {
	var kept []string
	for _, part := range strings.Split(strings.Trim(strings.ReplaceAll(config, "\n", ""), "{}"), ", ") {
		if !strings.HasPrefix(strings.TrimSpace(part), `"`+field+`"`) {
			kept = append(kept, part)
		}
	}
	if value != "" {
		kept = append(kept, `"`+field+`": `+value)
	}
	return strings.ReplaceAll("{"+strings.Join(kept, ", ")+"}", ",,", ",")
}

func TestParseHF(t *testing.T) {
	for name, c := range map[string]struct {
		config, generation string
		change             func(*arch.Config)
	}{
		"as it is":                  {config, "", func(c *arch.Config) {}},
		"generation's end tokens":   {config, `{"eos_token_id": [1, 2]}`, func(c *arch.Config) { c.EOS = []int32{1, 2} }},
		"generation without any":    {config, `{"eos_token_id": null}`, func(c *arch.Config) {}},
		"list of end tokens":        {with("eos_token_id", "[5, 6]"), "", func(c *arch.Config) { c.EOS = []int32{5, 6} }},
		"no end token":              {with("eos_token_id", "null"), "", func(c *arch.Config) { c.EOS = nil }},
		"no begin token":            {with("bos_token_id", "null"), "", func(c *arch.Config) { c.BOS = -1 }},
		"head size derived":         {with("head_dim", "null"), "", func(c *arch.Config) {}},
		"head size unlike derived":  {with("head_dim", "32"), "", func(c *arch.Config) { c.HeadDim = 32 }},
		"a key head for each query": {with("num_key_value_heads", "null"), "", func(c *arch.Config) { c.KVHeads = 8 }},
		"untied by default":         {with("tie_word_embeddings", ""), "", func(c *arch.Config) { c.TiedOutput = false }},
		"other defaults":            {with("rms_norm_eps", ""), "", func(c *arch.Config) { c.NormEps = 1e-6 }},
		"default rope, version 4":   {with("rope_scaling", `{"type": "default"}`), "", func(c *arch.Config) {}},
		"default rope, version 5":   {with("rope_parameters", `{"rope_type": "default", "rope_theta": 500000.0}`), "", func(c *arch.Config) { c.RopeTheta = 500000 }},
		"both spellings, the same":  {strings.Replace(with("rope_parameters", `{"rope_type": "default"}`), "{", `{"rope_scaling": {"rope_type":"default"},`, 1), "", func(c *arch.Config) {}},
		"linear": {with("rope_scaling", `{"type": "linear", "factor": 2}`), "", func(c *arch.Config) {
			c.RopeScaling = arch.RopeScaling{Kind: arch.RopeLinear, Factor: 2}
		}},
		"llama3": {with("rope_scaling", `{"rope_type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4, "original_max_position_embeddings": 64}`), "", func(c *arch.Config) {
			c.RopeScaling = arch.RopeScaling{Kind: arch.RopeLlama3, Factor: 8, Original: 64, LowFreq: 1, HighFreq: 4}
		}},
		"yarn": {with("rope_parameters", `{"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4, "original_max_position_embeddings": 128, "attention_factor": 1.5, "truncate": false}`), "", func(c *arch.Config) {
			c.RopeScaling = arch.RopeScaling{Kind: arch.RopeYaRN, Factor: 4, Original: 128, BetaFast: 32, BetaSlow: 1, Amplitude: 1.5, Exact: true}
		}},
		"biases":                    {with("attention_bias", "true"), "", func(c *arch.Config) { c.QKVBias, c.OutputBias = true, true }},
		"biases of the FFN":         {with("mlp_bias", "true"), "", func(c *arch.Config) { c.FFNBias = true }},
		"ends by default":           {with("eos_token_id", ""), "", func(c *arch.Config) {}},
		"class only":                {with("model_type", ""), "", func(c *arch.Config) {}},
		"type only":                 {with("architectures", ""), "", func(c *arch.Config) {}},
		"nulls that switch off":     {with("sliding_window", "null"), "", func(c *arch.Config) {}},
		"a field that nobody knows": {with("torch_dtype", `"float16"`), "", func(c *arch.Config) {}},
		"a terabyte of float16":     {with("num_hidden_layers", "4000"), "", func(c *arch.Config) { c.Layers = 4000 }},
	} {
		got, err := arch.ParseHF([]byte(c.config), []byte(c.generation))
		want := stories
		c.change(&want)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		} else if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}

func TestParseHFRefuses(t *testing.T) {
	for _, c := range []struct {
		config, field string
		want          error
	}{
		{with("rope_scaling", `{"rope_type": "dynamic", "factor": 8.0}`), "rope_scaling.rope_type", arch.ErrUnsupported},
		{with("rope_scaling", `{"type": "longrope", "short_factor": [1, 1, 1, 1]}`), "rope_scaling.rope_type", arch.ErrUnsupported},
		{with("rope_scaling", `{"rope_type": "llama3", "factor": 8.0}`), "low_freq_factor", arch.ErrInvalid},
		{with("rope_scaling", `{"rope_type": "linear"}`), "factor is 0", arch.ErrInvalid},
		{with("rope_scaling", `{"rope_type": "linear", "factor": 2, "mrope_section": [1]}`), "mrope_section", arch.ErrUnsupported},
		{with("rope_scaling", `{"rope_type": "yarn", "factor": -2}`), "factor is -2", arch.ErrInvalid},
		{with("rope_scaling", `{"rope_type": "yarn", "factor": "2"}`), "factor", arch.ErrInvalid},
		{with("rope_parameters", `{"rope_type": "yarn", "rope_theta": 1, "factor": 2}`), "rope_theta", arch.ErrInvalid},
		{with("rope_parameters", `{"full_attention": {"rope_theta": 1}, "sliding_attention": {"rope_theta": 2}}`), "rope_parameters", arch.ErrUnsupported},
		{with("rope_parameters", `7`), "rope_parameters", arch.ErrInvalid},
		{with("attention_bias", `"yes"`), "attention_bias", arch.ErrInvalid},
		{with("hidden_act", `"gelu"`), "hidden_act", arch.ErrUnsupported},
		{with("quantization_config", `{"bits": 4}`), "quantization_config", arch.ErrUnsupported},
		{with("sliding_window", "4096"), "sliding_window", arch.ErrUnsupported},
		{with("partial_rotary_factor", "0.5"), "partial_rotary_factor", arch.ErrUnsupported},
		{with("num_local_experts", "8"), "num_local_experts", arch.ErrUnsupported},
		{with("layer_types", `["full_attention", "sliding_attention"]`), "layer_types", arch.ErrUnsupported},
		{with("architectures", `["ZeppelinForCausalLM"]`), `"ZeppelinForCausalLM"]: unsupported; this version computes BertForMaskedLM, `, arch.ErrUnsupported},
		{with("architectures", `["LlamaForSequenceClassification"]`), "LlamaForSequenceClassification", arch.ErrUnsupported},
		{with("model_type", `"mistral"`), "model_type", arch.ErrUnsupported},
		{with("architectures", `"LlamaForCausalLM"`), "architectures", arch.ErrInvalid},
		{with("hidden_size", ""), "hidden_size", arch.ErrInvalid},
		{with("hidden_size", "0"), "hidden_size", arch.ErrInvalid},
		{with("hidden_size", "-64"), "hidden_size", arch.ErrInvalid},
		{with("hidden_size", "64.5"), "hidden_size", arch.ErrInvalid},
		{with("hidden_size", `"64"`), "hidden_size", arch.ErrInvalid},
		{with("hidden_size", "99999999999999999999"), "hidden_size", arch.ErrInvalid},
		{with("vocab_size", "2000000000"), "vocab_size", arch.ErrInvalid},
		{with("num_hidden_layers", "1000000"), "num_hidden_layers", arch.ErrInvalid},
		{with("num_key_value_heads", "3"), "num_key_value_heads", arch.ErrInvalid},
		{with("num_key_value_heads", "0"), "num_key_value_heads", arch.ErrInvalid},
		{with("num_attention_heads", "0"), "num_attention_heads", arch.ErrInvalid},
		{with("head_dim", "7"), "head_dim", arch.ErrInvalid},
		{with("head_dim", "0"), "head_dim", arch.ErrInvalid},
		{with("rms_norm_eps", "-1"), "rms_norm_eps", arch.ErrInvalid},
		{with("rope_theta", "0"), "rope_theta", arch.ErrInvalid},
		{with("rope_theta", "1e999"), "rope_theta", arch.ErrInvalid},
		{with("eos_token_id", "512"), "eos_token_id", arch.ErrInvalid},
		{with("eos_token_id", `[1, "x"]`), "eos_token_id", arch.ErrInvalid},
		{with("bos_token_id", "-2"), "bos_token_id", arch.ErrInvalid},
		{"[]", "config.json: is no object: invalid", arch.ErrInvalid},
		{"null", "config.json", arch.ErrInvalid},
		{"", "config.json", arch.ErrInvalid},
		{"{}", "architectures", arch.ErrInvalid},
	} {
		if _, err := arch.ParseHF([]byte(c.config), nil); !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.field) {
			t.Errorf("%s: got %v, want %v naming %s", c.config, err, c.want, c.field)
		}
	}
	if _, err := arch.ParseHF([]byte(config), []byte("{")); !errors.Is(err, arch.ErrInvalid) || !strings.Contains(err.Error(), "generation_config.json") {
		t.Errorf("broken generation_config.json: got %v", err)
	}
}

func TestParseGGUF(t *testing.T) {
	for name, c := range map[string]struct {
		pairs  map[string]any // nil: leave it out
		change func(*arch.Config)
	}{
		"as it is":                      {nil, func(*arch.Config) {}},
		"vocabulary from tokens":        {map[string]any{"llama.vocab_size": nil, "tokenizer.ggml.tokens": make([]string, 300)}, func(c *arch.Config) { c.Vocabulary = 300 }},
		"vocabulary from anything":      {map[string]any{"llama.vocab_size": nil, "tokenizer.ggml.tokens": make([]any, 300)}, func(c *arch.Config) { c.Vocabulary = 300 }},
		"wide numbers":                  {map[string]any{"llama.block_count": uint64(7)}, func(c *arch.Config) { c.Layers = 7 }},
		"equal in every layer":          {map[string]any{"llama.attention.head_count_kv": []any{int32(2), int32(2)}}, func(c *arch.Config) { c.KVHeads = 2 }},
		"head size given":               {map[string]any{"llama.attention.key_length": uint32(16), "llama.attention.value_length": uint32(16), "llama.rope.dimension_count": uint32(16)}, func(c *arch.Config) { c.HeadDim = 16 }},
		"nothing in front of text":      {map[string]any{"tokenizer.ggml.add_bos_token": false}, func(c *arch.Config) { c.BOS = -1 }},
		"two end tokens":                {map[string]any{"tokenizer.ggml.eot_token_id": uint32(9)}, func(c *arch.Config) { c.EOS = []int32{2, 9} }},
		"a factor that changes nothing": {map[string]any{"llama.rope.scaling.factor": float32(1), "llama.rope.scaling.type": "none"}, func(*arch.Config) {}},
	} {
		kv := pairs()
		maps.Copy(kv, c.pairs)
		maps.DeleteFunc(kv, func(_ string, v any) bool { return v == nil })
		want := stories
		want.RopePairs, want.TiedOutput = arch.RopeNeighbours, false
		c.change(&want)
		if got, err := arch.ParseGGUF(kv, has); err != nil {
			t.Errorf("%s: %v", name, err)
		} else if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}

func TestParseGGUFRefuses(t *testing.T) {
	for _, c := range []struct {
		key   string
		value any // nil: leave it out
		want  error
	}{
		{"general.architecture", "mamba", arch.ErrUnsupported},
		{"general.architecture", nil, arch.ErrInvalid},
		{"general.architecture", uint32(1), arch.ErrInvalid},
		{"llama.rope.scaling.type", "longrope", arch.ErrUnsupported},
		{"llama.rope.scaling.factor", float32(4), arch.ErrUnsupported},
		{"llama.rope.dimension_count", uint32(4), arch.ErrUnsupported},
		{"llama.attention.value_length", uint32(4), arch.ErrUnsupported},
		{"llama.expert_count", "8", arch.ErrInvalid},
		{"llama.attention.sliding_window", int32(-4), arch.ErrInvalid},
		{"llama.attention.sliding_window_pattern", uint32(2), arch.ErrUnsupported},
		{"llama.expert_gating_func", uint32(2), arch.ErrUnsupported},
		{"llama.attention.causal", false, arch.ErrUnsupported},
		{"llama.attention.head_count_kv", []uint32{4, 2}, arch.ErrUnsupported},
		{"llama.attention.head_count_kv", uint32(3), arch.ErrInvalid},
		{"llama.attention.head_count", uint32(0), arch.ErrInvalid},
		{"llama.block_count", nil, arch.ErrInvalid},
		{"llama.block_count", "5", arch.ErrInvalid},
		{"llama.block_count", uint64(1 << 40), arch.ErrInvalid},
		{"llama.embedding_length", int32(-64), arch.ErrInvalid},
		{"llama.attention.layer_norm_rms_epsilon", nil, arch.ErrInvalid},
		{"llama.attention.key_length", uint32(0), arch.ErrInvalid},
		{"tokenizer.ggml.eos_token_id", uint32(512), arch.ErrInvalid},
		{"tokenizer.ggml.bos_token_id", uint32(4294967295), arch.ErrInvalid},
		{"llama.vocab_size", nil, arch.ErrInvalid},
	} {
		kv := pairs()
		kv[c.key] = c.value
		if c.value == nil {
			delete(kv, c.key)
		}
		name := c.key
		if name == "llama.vocab_size" {
			name = "tokenizer.ggml.tokens" // where it is looked for next
		}
		if _, err := arch.ParseGGUF(kv, has); !errors.Is(err, c.want) || !strings.Contains(err.Error(), name) {
			t.Errorf("%s = %v: got %v, want %v naming it", c.key, c.value, err, c.want)
		}
	}
}

func TestBuild(t *testing.T) {
	g, err := arch.Build(stories)
	if err != nil {
		t.Fatal(err)
	}
	if err := g.Check(); err != nil {
		t.Error(err)
	}
	got := map[string]tensor.Shape{}
	for _, w := range g.Weights {
		got[w.HF[0].Tensor+" "+w.GGUF[0].Tensor] = w.Shape
	}
	if len(got) != 2+9*5 {
		t.Errorf("%d weights", len(got))
	}
	for name, want := range map[string]tensor.Shape{
		"model.embed_tokens.weight token_embd.weight":                          {512, 64},
		"model.norm.weight output_norm.weight":                                 {64},
		"model.layers.4.self_attn.k_proj.weight blk.4.attn_k.weight":           {32, 64},
		"model.layers.4.self_attn.o_proj.weight blk.4.attn_output.weight":      {64, 64},
		"model.layers.0.mlp.down_proj.weight blk.0.ffn_down.weight":            {64, 172},
		"model.layers.0.post_attention_layernorm.weight blk.0.ffn_norm.weight": {64},
	} {
		if diff := cmp.Diff(want, got[name]); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}

	untied := stories
	untied.TiedOutput = false
	if g, err := arch.Build(untied); err != nil || g.Weights[len(g.Weights)-1].HF[0].Tensor != "lm_head.weight" {
		t.Errorf("untied: %v, %v", g, err)
	}
	other := stories
	other.Architecture = "mamba"
	if _, err := arch.Build(other); !errors.Is(err, arch.ErrUnsupported) {
		t.Errorf("unknown architecture: %v", err)
	}
	broken := stories
	broken.HeadDim = 3
	if _, err := arch.Build(broken); !errors.Is(err, arch.ErrInvalid) {
		t.Errorf("odd head size: %v", err)
	}
}

func TestEstimates(t *testing.T) {
	if got := arch.KVBytesPerToken(stories); got != 2*2*5*32 {
		t.Errorf("%d bytes of KV cache for a token", got)
	}
	g, err := arch.Build(stories)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := arch.WorkspaceBytes(stories, 100, 7), g.WorkspaceBytes(100, 7); got != want {
		t.Errorf("workspace %d, the graph's is %d", got, want)
	}
	// Two residual-width slots and two feed-forward slots hold a layer; queries, keys,
	// values find room in the latter. One feed-forward row is prepared for a product, in 16 bits.
	if got, most := arch.WorkspaceBytes(stories, 100, 0), 4*100*(2*64+3*172+8)+2*100*192+g.Fast().ScheduleBytes(); got > most {
		t.Errorf("workspace %d, want at most %d", got, most)
	}
}

func TestSharedConfigs(t *testing.T) {
	root := fixture.Shared(t, "golden")
	for name, want := range map[string]error{
		"llama-mha-untied": nil, "llama-gqa-llama3rope": nil, "qwen2-tied": nil, "qwen3-headdim": nil,
		"mistral-window": nil, "mixtral-top2": nil, "phi3-fused": nil, "bert-embedding": nil,
	} {
		data, err := os.ReadFile(filepath.Join(root, name, "config.json"))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := arch.ParseHF(data, nil); !errors.Is(err, want) {
			t.Errorf("%s: got %v, want %v", name, err, want)
		}
	}
}

// others are configurations of the other architectures.
var others = []string{
	`{"model_type": "mistral", "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 8, "vocab_size": 96}`,
	`{"model_type": "mixtral", "hidden_size": 64, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 8, "vocab_size": 96, "num_local_experts": 4, "sliding_window": null}`,
	`{"model_type": "qwen2", "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 96, "use_sliding_window": true, "max_window_layers": 1}`,
	`{"model_type": "qwen3", "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": null, "vocab_size": 96, "use_sliding_window": true, "layer_types": ["sliding_attention", "full_attention"]}`,
	`{"model_type": "qwen3_moe", "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "vocab_size": 96, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8, "decoder_sparse_step": 2, "mlp_only_layers": [1]}`,
	`{"model_type": "phi3", "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 96, "max_position_embeddings": 131072, "original_max_position_embeddings": 4096, "partial_rotary_factor": 0.75, "rope_scaling": {"type": "longrope", "short_factor": [1, 1, 1, 1.5, 2, 2], "long_factor": [1, 1, 1, 1, 1, 1]}}`,
	`{"model_type": "gemma2", "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 8, "vocab_size": 96, "final_logit_softcapping": null}`,
	`{"model_type": "bert", "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 96}`,
}

// TestClassDefaults wants what Hugging Face's classes take for fields that are not there; null is there.
func TestClassDefaults(t *testing.T) {
	var got []arch.Config
	for _, text := range others {
		c, err := arch.ParseHF([]byte(text), nil)
		if err != nil {
			t.Errorf("%s: %v", text, err)
		}
		got = append(got, c)
	}
	want := []arch.Config{
		{Architecture: "mistral", Layers: 2, Hidden: 64, FFN: 64, Heads: 8, KVHeads: 8, HeadDim: 8, Vocabulary: 96, MaxPositions: 131072, NormEps: 1e-6, RopeTheta: 10000, Windows: []int{4096, 4096}, BOS: 1, EOS: []int32{2}},
		{Architecture: "mixtral", Layers: 2, Hidden: 64, FFN: 16, Heads: 8, KVHeads: 8, HeadDim: 8, Vocabulary: 96, MaxPositions: 131072, NormEps: 1e-5, RopeTheta: 1e6, Experts: 4, ExpertsPerToken: 2, ExpertFFN: 16, NormalizeExperts: true, BOS: 1, EOS: []int32{2}},
		{Architecture: "qwen2", Layers: 2, Hidden: 64, FFN: 64, Heads: 4, KVHeads: 2, HeadDim: 16, Vocabulary: 96, MaxPositions: 32768, NormEps: 1e-6, RopeTheta: 10000, QKVBias: true, Windows: []int{0, 4096}, BOS: -1},
		{Architecture: "qwen3", Layers: 2, Hidden: 64, FFN: 64, Heads: 4, KVHeads: 4, HeadDim: 128, Vocabulary: 96, MaxPositions: 32768, NormEps: 1e-6, RopeTheta: 10000, Windows: []int{4096, 0}, BOS: -1},
		{Architecture: "qwen3_moe", Layers: 4, Hidden: 64, FFN: 64, Heads: 4, KVHeads: 4, HeadDim: 16, Vocabulary: 96, MaxPositions: 32768, NormEps: 1e-6, RopeTheta: 10000, Experts: 4, ExpertsPerToken: 2, ExpertFFN: 8, DenseLayers: []int{0, 1, 2}, BOS: -1},
		{
			Architecture: "phi3", Layers: 2, Hidden: 64, FFN: 64, Heads: 4, KVHeads: 4, HeadDim: 16, Vocabulary: 96, MaxPositions: 4096, NormEps: 1e-5, RopeTheta: 10000, RopeDims: 12,
			RopeScaling: arch.RopeScaling{Kind: arch.RopeLongRoPE, Original: 4096, Amplitude: 1.1902380714238083, Divisors: []float64{1, 1, 1, 1.5, 2, 2}}, BOS: 1, EOS: []int32{},
		},
		{
			Architecture: "gemma2", Layers: 3, Hidden: 64, FFN: 64, Heads: 8, KVHeads: 4, HeadDim: 256, Vocabulary: 96, MaxPositions: 8192, NormEps: 1e-6, NormShift: 1, RopeTheta: 10000,
			Windows: []int{4096, 0, 4096}, AttentionScale: 1.0 / 16, AttentionSoftCap: 50, GELU: arch.GELUTanh, TiedOutput: true, BOS: 2, EOS: []int32{1},
		},
		{Architecture: "bert", Encoder: true, Layers: 2, Hidden: 64, FFN: 64, Heads: 4, KVHeads: 4, HeadDim: 16, Vocabulary: 96, MaxPositions: 512, Types: 2, NormEps: 1e-12, TiedOutput: true, BOS: -1},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// TestOthersRefuse what they would compute wrongly, by the field's name.
func TestOthersRefuse(t *testing.T) {
	for _, c := range []struct {
		kind, field, value string
		want               error
	}{
		{"mistral", "sliding_window", "0", arch.ErrInvalid},
		{"mistral", "sliding_window", "-1", arch.ErrInvalid},
		{"mistral", "attention_bias", "true", arch.ErrUnsupported},
		{"mistral", "layer_types", `["sliding_attention", "full_attention"]`, arch.ErrUnsupported},
		{"mixtral", "num_experts_per_tok", "5", arch.ErrInvalid},
		{"mixtral", "num_local_experts", "-1", arch.ErrInvalid},
		{"mixtral", "n_shared_experts", "1", arch.ErrUnsupported},
		{"qwen2", "layer_types", `["full_attention"]`, arch.ErrInvalid},
		{"qwen2", "layer_types", `["chunked_attention", "full_attention"]`, arch.ErrUnsupported},
		{"qwen2", "sliding_window", "1.5", arch.ErrInvalid},
		{"qwen2", "attention_bias", "true", arch.ErrUnsupported},
		{"qwen3", "attention_bias", "3", arch.ErrInvalid},
		{"qwen3_moe", "decoder_sparse_step", "0", arch.ErrInvalid},
		{"qwen3_moe", "mlp_only_layers", "1", arch.ErrInvalid},
		{"qwen3_moe", "num_experts", "1000000", arch.ErrInvalid},
		{"qwen3_moe", "shared_expert_intermediate_size", "64", arch.ErrUnsupported},
		{"phi3", "partial_rotary_factor", "1.5", arch.ErrInvalid},
		{"phi3", "partial_rotary_factor", "0.01", arch.ErrInvalid},
		{"phi3", "rope_scaling", `{"type": "longrope", "short_factor": [1]}`, arch.ErrInvalid},
		{"phi3", "rope_scaling", `{"type": "longrope", "short_factor": [0, 1, 1, 1, 1, 1]}`, arch.ErrInvalid},
		{"phi3", "rope_scaling", `{"type": "linear", "factor": 2}`, arch.ErrUnsupported},
		{"phi3", "attention_bias", "true", arch.ErrUnsupported},
		{"gemma2", "hidden_activation", `"silu"`, arch.ErrUnsupported},
		{"gemma2", "query_pre_attn_scalar", "0", arch.ErrInvalid},
		{"gemma2", "final_logit_softcapping", "-3", arch.ErrInvalid},
		{"gemma2", "use_bidirectional_attention", "true", arch.ErrUnsupported},
		{"bert", "position_embedding_type", `"relative_key"`, arch.ErrUnsupported},
		{"bert", "is_decoder", "true", arch.ErrUnsupported},
		{"bert", "hidden_act", `"relu"`, arch.ErrUnsupported},
		{"bert", "type_vocab_size", "0", arch.ErrInvalid},
		{"bert", "num_attention_heads", "5", arch.ErrInvalid},
		{"bert", "layer_norm_eps", "0", arch.ErrInvalid},
	} {
		i := slices.IndexFunc(others, func(text string) bool { return strings.Contains(text, `"`+c.kind+`"`) })
		var fields map[string]json.RawMessage
		if err := json.Unmarshal([]byte(others[i]), &fields); err != nil {
			t.Fatal(err)
		}
		fields[c.field] = json.RawMessage(c.value)
		text, _ := json.Marshal(fields)
		if _, err := arch.ParseHF(text, nil); !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.field) {
			t.Errorf("%s with %s %s: got %v, want %v naming it", c.kind, c.field, c.value, err, c.want)
		}
	}
}

func FuzzParseHF(f *testing.F) {
	f.Add([]byte(config), []byte(`{"eos_token_id": [1, 2]}`))
	f.Add([]byte(with("rope_parameters", `{"rope_type": "default"}`)), []byte(nil))
	f.Add([]byte(with("rope_scaling", `{"rope_type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4, "original_max_position_embeddings": 64}`)), []byte(nil))
	f.Add([]byte(with("rope_parameters", `{"full_attention": {"rope_type": "yarn", "factor": 4, "beta_fast": 3, "truncate": false}}`)), []byte(nil))
	for _, text := range others {
		f.Add([]byte(text), []byte(nil))
	}
	f.Fuzz(func(t *testing.T, config, generation []byte) {
		c, err := arch.ParseHF(config, generation)
		sound(t, c, err)
	})
}

func FuzzParseGGUF(f *testing.F) {
	f.Add("llama", "llama.block_count", uint64(3), 0.5, "x", byte(0))
	f.Add("llama", "llama.rope.scaling.type", uint64(3), 0.5, "none", byte(2))
	f.Add("llama", "tokenizer.ggml.tokens", uint64(3), 0.5, "none", byte(4))
	f.Add("llama", "llama.expert_count", uint64(3), 0.5, "none", byte(0))
	f.Add("", "gemma2.rope.scaling.factor", uint64(4), 4.5, "none", byte('U'))
	for _, name := range []string{"qwen2", "qwen3", "qwen3moe", "phi3", "gemma2", "bert"} {
		f.Add(name, name+".attention.sliding_window", uint64(4), 0.5, "none", byte(0))
		f.Add(name, name+".rope.scaling.factor", uint64(4), 4.5, "none", byte(1))
	}
	f.Fuzz(func(t *testing.T, name, key string, n uint64, x float64, s string, kind byte) {
		kv := map[string]any{}
		for k, v := range pairs() {
			kv[strings.Replace(k, "llama.", name+".", 1)] = v
		}
		kv["general.architecture"] = name
		kv[name+".attention.layer_norm_epsilon"], kv[name+".expert_used_count"], kv[name+".expert_feed_forward_length"] = float32(1e-12), uint32(1), uint32(9)
		kv[key] = []any{n, x, s, int64(n), []any{n, x, s}, []uint64{n, n}, nil, int8(n), n > 3}[kind%9]
		tensors := func(tensor string) bool { return kind%2 == 0 || strings.HasSuffix(tensor, s) }
		c, err := arch.ParseGGUF(kv, tensors)
		sound(t, c, err)
	})
}

// sound: an error of a known kind, or a configuration that builds.
func sound(t *testing.T, c arch.Config, err error) {
	if err != nil {
		if !errors.Is(err, arch.ErrInvalid) && !errors.Is(err, arch.ErrUnsupported) {
			t.Fatalf("error of no kind: %v", err)
		}
		return
	}
	if arch.KVBytesPerToken(c) <= 0 && !c.Encoder || arch.WorkspaceBytes(c, 1, 1) <= 0 {
		t.Fatalf("no sizes for %+v", c)
	}
}
