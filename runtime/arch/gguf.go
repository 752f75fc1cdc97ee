package arch

import (
	"fmt"
	"math"
	"reflect"
	"slices"
)

// ParseGGUF reads the key-value pairs of a GGUF file. Numbers may have any
// width, arrays any element type; of tokenizer.ggml.tokens only the length is
// read. Whether the output matrix is the embedding table is not among the
// pairs: TiedOutput is false, and the reader of the file, which sees whether there is an
// output.weight, sets it. Errors name the key and wrap ErrInvalid or ErrUnsupported.
func ParseGGUF(kv map[string]any) (Config, error) {
	p := pairs{kv: kv}
	name, ok := kv["general.architecture"].(string)
	if !ok {
		return Config{}, fmt.Errorf("general.architecture is missing or no string: %w", ErrInvalid)
	}
	c := Config{RopePairs: RopeNeighbours}
	for key, a := range architectures {
		if a.gguf == name {
			c.Architecture = key
		}
	}
	if c.Architecture == "" {
		return Config{}, fmt.Errorf("general.architecture %q: %w", clip([]byte(name)), ErrUnsupported)
	}
	if err := ggufRefuse(&p, name); err != nil {
		return Config{}, err
	}
	p.size(name+".block_count", &c.Layers)
	p.size(name+".embedding_length", &c.Hidden)
	p.size(name+".feed_forward_length", &c.FFN)
	p.size(name+".attention.head_count", &c.Heads)
	p.size(name+".context_length", &c.MaxPositions)
	c.KVHeads = c.Heads
	p.optionalSize(name+".attention.head_count_kv", &c.KVHeads)
	if !p.optionalSize(name+".vocab_size", &c.Vocabulary) {
		c.Vocabulary = p.length("tokenizer.ggml.tokens")
	}
	eps := 0.0
	if !p.number(name+".attention.layer_norm_rms_epsilon", &eps) {
		p.fail(name+".attention.layer_norm_rms_epsilon", fmt.Errorf("is missing: %w", ErrInvalid))
	}
	c.NormEps = float32(eps)
	c.RopeTheta = 10000
	p.number(name+".rope.freq_base", &c.RopeTheta)
	if !p.optionalSize(name+".attention.key_length", &c.HeadDim) && p.err == nil {
		if c.Heads < 1 || c.Hidden%c.Heads != 0 {
			p.fail(name+".attention.head_count", fmt.Errorf("is %d, which does not divide embedding_length %d, and key_length is not given: %w", c.Heads, c.Hidden, ErrInvalid))
		} else {
			c.HeadDim = c.Hidden / c.Heads
		}
	}
	bos, addBOS := -1, true
	p.optionalSize("tokenizer.ggml.bos_token_id", &bos)
	if add, ok := kv["tokenizer.ggml.add_bos_token"].(bool); ok {
		addBOS = add
	}
	c.BOS = int32(bos)
	for _, key := range []string{"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"} {
		var id int
		if p.optionalSize(key, &id) {
			c.EOS = append(c.EOS, int32(id))
		}
	}
	if p.err != nil {
		return Config{}, p.err
	}
	if err := c.check(func(_ Config, f field) string { return ggufName(name, f) }); err != nil {
		return Config{}, err
	}
	for _, key := range []string{".attention.value_length", ".rope.dimension_count"} {
		same := c.HeadDim
		if p.optionalSize(name+key, &same); same != c.HeadDim {
			p.fail(name+key, fmt.Errorf("is %d, unlike the head size %d: %w", same, c.HeadDim, ErrUnsupported))
		}
	}
	if p.err != nil {
		return Config{}, p.err
	}
	if !addBOS {
		c.BOS = -1
	}
	return c, nil
}

func ggufName(architecture string, f field) string {
	name := [...]string{
		".block_count", ".embedding_length", ".feed_forward_length", ".attention.head_count", ".attention.head_count_kv", ".attention.key_length",
		".vocab_size", ".context_length", ".attention.layer_norm_rms_epsilon", ".rope.freq_base", "tokenizer.ggml.bos_token_id", "tokenizer.ggml.eos_token_id",
	}[f]
	if name[0] == '.' {
		return architecture + name
	}
	return name
}

// ggufRefuse refuses by key what would change the result and is not computed here.
func ggufRefuse(p *pairs, name string) error {
	if kind, ok := p.kv[name+".rope.scaling.type"].(string); ok && kind != "none" {
		p.fail(name+".rope.scaling.type", fmt.Errorf("is %q: %w", kind, ErrUnsupported))
	}
	for _, known := range []struct {
		key      string
		harmless []float64
	}{
		{".rope.scaling.factor", []float64{0, 1}},
		{".rope.scale_linear", []float64{0, 1}},
		{".rope.scaling.attn_factor", []float64{0, 1}},
		{".expert_count", []float64{0}},
		{".attention.sliding_window", []float64{0}},
		{".attention.clamp_kqv", []float64{0}},
		{".attention.max_alibi_bias", []float64{0}},
		{".attention.scale", []float64{0}},
		{".attn_logit_softcapping", []float64{0}},
		{".final_logit_softcapping", []float64{0}},
		{".logit_scale", []float64{0, 1}},
		{".embedding_scale", []float64{0, 1}},
		{".residual_scale", []float64{0, 1}},
		{".pooling_type", []float64{0}},
	} {
		var x float64
		if p.number(name+known.key, &x) && !slices.Contains(known.harmless, x) {
			p.fail(name+known.key, fmt.Errorf("is %v: %w", x, ErrUnsupported))
		}
	}
	if causal, ok := p.kv[name+".attention.causal"].(bool); ok && !causal {
		p.fail(name+".attention.causal", fmt.Errorf("is false: %w", ErrUnsupported))
	}
	if parallel, ok := p.kv[name+".use_parallel_residual"].(bool); ok && parallel {
		p.fail(name+".use_parallel_residual", fmt.Errorf("is true: %w", ErrUnsupported))
	}
	return p.err
}

// pairs are a GGUF file's, of which the first wrong one is remembered.
type pairs struct {
	kv  map[string]any
	err error
}

func (p *pairs) fail(key string, err error) {
	if p.err == nil {
		p.err = fmt.Errorf("%s %w", key, err)
	}
}

func (p *pairs) size(key string, n *int) {
	if _, ok := p.kv[key]; !ok {
		p.fail(key, fmt.Errorf("is missing: %w", ErrInvalid))
		return
	}
	p.optionalSize(key, n)
}

// optionalSize reads a whole number, or an array of equal ones (some files have
// one for each layer).
func (p *pairs) optionalSize(key string, n *int) bool {
	value, ok := p.kv[key]
	if !ok {
		return false
	}
	v := reflect.ValueOf(value)
	if v.Kind() == reflect.Slice && v.Len() > 0 {
		for i := 1; i < v.Len(); i++ {
			if !reflect.DeepEqual(v.Index(i).Interface(), v.Index(0).Interface()) {
				p.fail(key, fmt.Errorf("differs between layers: %w", ErrUnsupported))
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
		p.fail(key, fmt.Errorf("is %v, which is out of bounds: %w", v, ErrInvalid))
	default:
		p.fail(key, fmt.Errorf("is a %T, not a whole number: %w", value, ErrInvalid))
	}
	return true
}

func (p *pairs) number(key string, x *float64) bool {
	value, ok := p.kv[key]
	if !ok {
		return false
	}
	switch v := reflect.ValueOf(value); {
	case v.CanFloat():
		*x = v.Float()
	case v.CanInt():
		*x = float64(v.Int())
	case v.CanUint():
		*x = float64(v.Uint())
	default:
		p.fail(key, fmt.Errorf("is a %T, not a number: %w", value, ErrInvalid))
		return false
	}
	return true
}

func (p *pairs) length(key string) int {
	v := reflect.ValueOf(p.kv[key])
	if v.Kind() != reflect.Slice {
		p.fail(key, fmt.Errorf("is missing or no array: %w", ErrInvalid))
		return 0
	}
	return v.Len()
}
