package arch

import (
	"fmt"
	"math"
	"reflect"
	"slices"
)

// ParseGGUF reads the key-value pairs of a GGUF file, and asks which tensors it has: whether
// there is an output matrix, biases, factors of the rotation, is not among the pairs. Numbers may have
// any width, arrays any element type; of tokenizer.ggml.tokens only the length is read. Errors name
// the key and wrap ErrInvalid or ErrUnsupported.
func ParseGGUF(kv map[string]any, tensors func(name string) bool) (Config, error) {
	name, ok := kv["general.architecture"].(string)
	if !ok || name == "" { // architectures that only Hugging Face has are called "" in GGUF
		return Config{}, fmt.Errorf("general.architecture is missing, empty or no string: %w", ErrInvalid)
	}
	p := &pairs{kv: kv, name: name, tensors: tensors, known: map[string]bool{}}
	c := Config{RopePairs: RopeHalves, TiedOutput: !tensors("output.weight")}
	experts := 0
	p.optionalSize(".expert_count", &experts)
	for key, a := range architectures {
		if a.gguf == name && a.experts == (experts > 0) {
			c.Architecture = key
		}
	}
	if c.Architecture == "" {
		if p.knows(name) {
			return Config{}, fmt.Errorf("%s.expert_count %w", name, unsupported("is %d", experts))
		}
		return Config{}, fmt.Errorf("general.architecture %q: %w; this version computes %s", clip([]byte(name)), ErrUnsupported,
			listed(func(a architecture) []string { return []string{a.gguf} }))
	}
	architectures[c.Architecture].fromGGUF(p, &c)
	p.ends(&c)
	p.refuseUnread()
	if p.err != nil {
		return Config{}, p.err
	}
	if err := c.check(func(c Config, f field) string { return ggufName(name, c, f) }); err != nil {
		return Config{}, err
	}
	if c.RopeDims != 0 && !architectures[c.Architecture].partial {
		return Config{}, fmt.Errorf("%s.rope.dimension_count %w", name, unsupported("is %d, unlike the head size %d", c.RopeDims, c.HeadDim))
	}
	if add, ok := kv["tokenizer.ggml.add_bos_token"].(bool); ok && !add {
		c.BOS = -1
	}
	return c, nil
}

// knows says whether there is an architecture of this name, be it with other experts.
func (p *pairs) knows(name string) bool {
	for _, a := range architectures {
		if a.gguf == name {
			return true
		}
	}
	return false
}

func ggufName(architecture string, c Config, f field) string {
	eps := ".attention.layer_norm_rms_epsilon"
	if c.Encoder {
		eps = ".attention.layer_norm_epsilon"
	}
	name := [...]string{
		".block_count", ".embedding_length", ".feed_forward_length", ".attention.head_count", ".attention.head_count_kv", ".attention.key_length",
		".vocab_size", ".context_length", eps, ".rope.freq_base", ".rope.dimension_count", ".rope.scaling",
		".attention.scale", ".attn_logit_softcapping", ".final_logit_softcapping", ".attention.sliding_window", "tokenizer.ggml.token_type_count",
		".expert_count", ".expert_used_count", ".expert_feed_forward_length", "tokenizer.ggml.bos_token_id", "tokenizer.ggml.eos_token_id",
	}[f]
	if name[0] == '.' {
		return architecture + name
	}
	return name
}

// decoder reads what all decoders have.
func (p *pairs) decoder(c *Config) {
	p.sizes(c, ".attention.layer_norm_rms_epsilon")
	c.KVHeads = c.Heads
	p.optionalSize(".attention.head_count_kv", &c.KVHeads)
	if !p.optionalSize(".attention.key_length", &c.HeadDim) {
		p.headDim(c)
	}
	value := c.HeadDim
	if p.optionalSize(".attention.value_length", &value); value != c.HeadDim {
		p.fail(".attention.value_length", unsupported("is %d, unlike the %d of a key", value, c.HeadDim))
	}
}

// sizes reads what all models have; eps is the key of a norm's.
func (p *pairs) sizes(c *Config, eps string) {
	p.size(".block_count", &c.Layers)
	p.size(".embedding_length", &c.Hidden)
	p.size(".feed_forward_length", &c.FFN)
	p.size(".attention.head_count", &c.Heads)
	p.size(".context_length", &c.MaxPositions)
	if !p.optionalSize(".vocab_size", &c.Vocabulary) {
		c.Vocabulary = p.length("tokenizer.ggml.tokens")
	}
	x := 0.0
	if !p.number(eps, &x) {
		p.fail(eps, invalid("is missing"))
	}
	c.NormEps = float32(x)
}

// headDim is the hidden size by the heads.
func (p *pairs) headDim(c *Config) {
	if p.err != nil {
		return
	}
	if c.Heads < 1 || c.Hidden%c.Heads != 0 {
		p.fail(".attention.head_count", invalid("is %d, which does not divide embedding_length %d, and key_length is not given", c.Heads, c.Hidden))
		return
	}
	c.HeadDim = c.Hidden / c.Heads
}

// rope reads rotary positions.
func (p *pairs) rope(c *Config) {
	p.rotation(c)
	p.ropeScaling(c)
}

// rotation reads theta and how much of a head is rotated.
func (p *pairs) rotation(c *Config) {
	c.RopeTheta = 10000
	p.number(".rope.freq_base", &c.RopeTheta)
	if p.optionalSize(".rope.dimension_count", &c.RopeDims); c.RopeDims == c.HeadDim {
		c.RopeDims = 0
	}
}

func (p *pairs) ropeScaling(c *Config) {
	s := &c.RopeScaling
	const divisors = "rope_freqs.weight"
	if p.tensors(divisors) {
		s.Tensor = divisors
	}
	kind := "none"
	p.text(".rope.scaling.type", &kind)
	switch kind {
	case "none", "":
	case "linear":
		s.Kind, s.Factor = RopeLinear, 1
		p.number(".rope.scale_linear", &s.Factor)
		p.number(".rope.scaling.factor", &s.Factor)
	case "yarn":
		s.Kind, s.Factor, s.Original, s.BetaFast, s.BetaSlow = RopeYaRN, 1, c.MaxPositions, 32, 1
		p.number(".rope.scaling.factor", &s.Factor)
		p.optionalSize(".rope.scaling.original_context_length", &s.Original)
		p.number(".rope.scaling.yarn_beta_fast", &s.BetaFast)
		p.number(".rope.scaling.yarn_beta_slow", &s.BetaSlow)
		times := 1.0
		p.number(".rope.scaling.attn_factor", &times)
		s.Amplitude = times * yarnAmplitude(s.Factor, 1)
	default:
		p.fail(".rope.scaling.type", unsupported("is %q", clip([]byte(kind))))
	}
}

// window reads a sliding window of all layers.
func (p *pairs) window(c *Config) {
	n := 0
	if p.optionalSize(".attention.sliding_window", &n); n == 0 {
		return
	}
	for range c.layers() {
		c.Windows = append(c.Windows, n)
	}
}

func (p *pairs) experts(c *Config) {
	p.size(".expert_count", &c.Experts)
	p.size(".expert_used_count", &c.ExpertsPerToken)
}

// ends reads the tokens that begin and end a text.
func (p *pairs) ends(c *Config) {
	bos := -1
	p.optionalSize("tokenizer.ggml.bos_token_id", &bos)
	c.BOS = int32(bos)
	if c.Encoder {
		return
	}
	for _, key := range []string{"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"} {
		var id int
		if p.optionalSize(key, &id) && !slices.Contains(c.EOS, int32(id)) {
			c.EOS = append(c.EOS, int32(id))
		}
	}
}

// refuseUnread refuses by key what would change the result and has not been read: it is
// not computed here, or not by this architecture.
func (p *pairs) refuseUnread() {
	for _, other := range []struct {
		key      string
		harmless []float64
	}{
		{".rope.scaling.factor", []float64{0, 1}},
		{".rope.scale_linear", []float64{0, 1}},
		{".rope.scaling.attn_factor", []float64{0, 1}},
		{".rope.scaling.yarn_log_multiplier", []float64{0}},
		{".rope.scaling.yarn_ext_factor", []float64{-1, 1}},
		{".rope.scaling.yarn_attn_factor", []float64{-1, 1}},
		{".expert_count", []float64{0}},
		{".expert_shared_count", []float64{0}},
		{".expert_shared_feed_forward_length", []float64{0}},
		{".expert_gating_func", []float64{0, 1}},
		{".expert_weights_scale", []float64{0, 1}},
		{".expert_group_count", []float64{0, 1}},
		{".leading_dense_block_count", []float64{0}},
		{".attention.sliding_window", []float64{0}},
		{".attention.clamp_kqv", []float64{0}},
		{".attention.max_alibi_bias", []float64{0}},
		{".attention.scale", []float64{0}},
		{".attention.temperature_length", []float64{0}},
		{".attn_logit_softcapping", []float64{0}},
		{".final_logit_softcapping", []float64{0}},
		{".logit_scale", []float64{0, 1}},
		{".embedding_scale", []float64{0, 1}},
		{".residual_scale", []float64{0, 1}},
		{".pooling_type", []float64{0}},
	} {
		var x float64
		if !p.known[other.key] && p.number(other.key, &x) && !slices.Contains(other.harmless, x) {
			p.fail(other.key, unsupported("is %v", x))
		}
	}
	for key, harmless := range map[string]bool{
		".attention.causal": true, ".use_parallel_residual": false, ".expert_weights_norm": true,
	} {
		value := harmless
		if !p.known[key] {
			p.boolean(key, &value)
		}
		if value != harmless {
			p.fail(key, unsupported("is %v", value))
		}
	}
	if p.has(".attention.sliding_window_pattern") {
		p.fail(".attention.sliding_window_pattern", unsupported("is not read"))
	}
}

// pairs are a GGUF file's, of which the first wrong one is remembered.
type pairs struct {
	kv      map[string]any
	name    string                 // of the architecture: what a key that starts with a dot begins with
	tensors func(name string) bool // whether the file has one
	known   map[string]bool        // keys that have been read
	err     error
}

func (p *pairs) key(key string) string {
	if key[0] == '.' {
		return p.name + key
	}
	return key
}

func (p *pairs) fail(key string, err error) {
	if p.err == nil {
		p.err = fmt.Errorf("%s %w", p.key(key), err)
	}
}

// know marks a key as understood, though it may not have been read.
func (p *pairs) know(key string) { p.known[key] = true }

func (p *pairs) has(key string) bool {
	p.known[key] = true
	_, ok := p.kv[p.key(key)]
	return ok
}

func (p *pairs) size(key string, n *int) {
	if !p.has(key) {
		p.fail(key, invalid("is missing"))
		return
	}
	p.optionalSize(key, n)
}

// optionalSize reads a whole number, or an array of equal ones (some files have
// one for each layer).
func (p *pairs) optionalSize(key string, n *int) bool {
	if !p.has(key) {
		return false
	}
	value := p.kv[p.key(key)]
	v := reflect.ValueOf(value)
	if v.Kind() == reflect.Slice && v.Len() > 0 {
		for i := 1; i < v.Len(); i++ {
			if !reflect.DeepEqual(v.Index(i).Interface(), v.Index(0).Interface()) {
				p.fail(key, unsupported("differs between layers"))
				return false
			}
		}
		v = v.Index(0)
		if v.Kind() == reflect.Interface {
			v = v.Elem()
		}
	}
	switch {
	case v.CanInt() && v.Int() >= math.MinInt32 && v.Int() <= math.MaxInt32:
		*n = int(v.Int())
	case v.CanUint() && v.Uint() <= math.MaxInt32:
		*n = int(v.Uint())
	case v.CanInt() || v.CanUint():
		p.fail(key, invalid("is %v, which is out of bounds", v))
	default:
		p.fail(key, invalid("is a %T, not a whole number", value))
	}
	return true
}

func (p *pairs) number(key string, x *float64) bool {
	if !p.has(key) {
		return false
	}
	value := p.kv[p.key(key)]
	switch v := reflect.ValueOf(value); {
	case v.CanFloat():
		*x = v.Float()
	case v.CanInt():
		*x = float64(v.Int())
	case v.CanUint():
		*x = float64(v.Uint())
	default:
		p.fail(key, invalid("is a %T, not a number", value))
		return false
	}
	return true
}

// positive reads a number above 0; 0 is none.
func (p *pairs) positive(key string, set func(float64)) {
	x := 0.0
	if !p.number(key, &x) {
		return
	}
	if !(x >= 0 && x <= 1e9) {
		p.fail(key, invalid("is %v, not a number of at least 0", x))
		return
	}
	set(x)
}

func (p *pairs) boolean(key string, on *bool) {
	if !p.has(key) {
		return
	}
	v, ok := p.kv[p.key(key)].(bool)
	if !ok {
		p.fail(key, invalid("is a %T, not true or false", p.kv[p.key(key)]))
		return
	}
	*on = v
}

func (p *pairs) text(key string, text *string) {
	if !p.has(key) {
		return
	}
	v, ok := p.kv[p.key(key)].(string)
	if !ok {
		p.fail(key, invalid("is a %T, not a text", p.kv[p.key(key)]))
		return
	}
	*text = v
}

func (p *pairs) length(key string) int {
	v := reflect.ValueOf(p.kv[p.key(key)])
	if v.Kind() != reflect.Slice {
		p.fail(key, invalid("is missing or no array"))
		return 0
	}
	return v.Len()
}
