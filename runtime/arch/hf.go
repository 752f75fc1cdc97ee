package arch

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
)

// ParseHF reads a Hugging Face checkpoint's config.json and, where it is not
// empty, generation_config.json, whose end tokens win. Defaults are those of
// the class that config.json names. Errors name the file's field and wrap
// ErrInvalid or ErrUnsupported.
func ParseHF(config, generation []byte) (Config, error) {
	f, err := parseFields("config.json", config)
	if err != nil {
		return Config{}, err
	}
	c := Config{RopePairs: RopeHalves}
	if c.Architecture, err = hfArchitecture(f); err != nil {
		return Config{}, err
	}
	if err := hfRefuse(f); err != nil {
		return Config{}, err
	}
	f.size("num_hidden_layers", &c.Layers)
	f.size("hidden_size", &c.Hidden)
	f.size("intermediate_size", &c.FFN)
	f.size("num_attention_heads", &c.Heads)
	f.size("vocab_size", &c.Vocabulary)
	c.KVHeads, c.MaxPositions = c.Heads, 2048
	f.optionalSize("num_key_value_heads", &c.KVHeads)
	f.optionalSize("max_position_embeddings", &c.MaxPositions)
	eps := 1e-6
	f.number("rms_norm_eps", &eps)
	c.NormEps = float32(eps)
	c.RopeTheta = 10000
	f.number("rope_theta", &c.RopeTheta)
	f.ropeParameters("rope_parameters", &c.RopeTheta)
	f.ropeParameters("rope_scaling", &c.RopeTheta)
	f.boolean("tie_word_embeddings", &c.TiedOutput)
	if !f.optionalSize("head_dim", &c.HeadDim) && f.err == nil {
		if c.Heads < 1 || c.Hidden%c.Heads != 0 {
			f.fail("num_attention_heads", fmt.Errorf("is %d, which does not divide hidden_size %d, and head_dim is not given: %w", c.Heads, c.Hidden, ErrInvalid))
		} else {
			c.HeadDim = c.Hidden / c.Heads
		}
	}
	var bos []int32
	f.tokens("bos_token_id", &bos)
	f.tokens("eos_token_id", &c.EOS)
	if f.err != nil {
		return Config{}, f.err
	}
	c.BOS = -1
	if len(bos) > 0 {
		c.BOS = bos[0]
	}
	if len(generation) > 0 {
		g, err := parseFields("generation_config.json", generation)
		if err != nil {
			return Config{}, err
		}
		g.tokens("eos_token_id", &c.EOS)
		if g.err != nil {
			return Config{}, g.err
		}
	}
	if err := c.check(hfName); err != nil {
		return Config{}, err
	}
	return c, nil
}

func hfName(c Config, f field) string {
	name := [...]string{
		"num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim",
		"vocab_size", "max_position_embeddings", "rms_norm_eps", "rope_theta", "bos_token_id", "eos_token_id",
	}[f]
	return "config.json: " + name
}

// hfArchitecture is the key of the architecture that config.json names.
func hfArchitecture(f *fields) (string, error) {
	var class []string
	var model string
	f.decode("architectures", "a list of names", &class)
	f.decode("model_type", "a name", &model)
	if f.err != nil {
		return "", f.err
	}
	if len(class) == 0 && model == "" {
		return "", fmt.Errorf("config.json: architectures is missing: %w", ErrInvalid)
	}
	for key, a := range architectures {
		switch {
		case len(class) > 0 && !slices.Contains(class, a.hfClass):
		case model != "" && model != a.hfType:
			if len(class) > 0 {
				return "", fmt.Errorf("config.json: model_type %q of %s: %w", model, a.hfClass, ErrUnsupported)
			}
		default:
			return key, nil
		}
	}
	if len(class) > 0 {
		return "", fmt.Errorf("config.json: architectures %q: %w", class, ErrUnsupported)
	}
	return "", fmt.Errorf("config.json: model_type %q: %w", model, ErrUnsupported)
}

// hfRefuse refuses by name what would change the result and is not computed here.
func hfRefuse(f *fields) error {
	for _, name := range []string{"attention_bias", "mlp_bias", "use_qk_norm", "qk_norm"} {
		var on bool
		if f.boolean(name, &on); on {
			f.fail(name, fmt.Errorf("is true: %w", ErrUnsupported))
		}
	}
	for _, name := range []string{"hidden_act", "hidden_activation"} {
		act := "silu"
		f.decode(name, "a name", &act)
		if act != "silu" && act != "swish" {
			f.fail(name, fmt.Errorf("is %q: %w", act, ErrUnsupported))
		}
	}
	for _, name := range []string{
		"quantization_config", "compression_config", "sliding_window", "attention_chunk_size",
		"attn_logit_softcapping", "final_logit_softcapping", "query_pre_attn_scalar",
	} {
		if f.has(name) {
			f.fail(name, fmt.Errorf("is %s: %w", clip(f.raw[name]), ErrUnsupported))
		}
	}
	for _, name := range []string{"partial_rotary_factor", "embedding_multiplier", "residual_multiplier", "attention_multiplier", "logits_scaling"} {
		one := 1.0
		if f.number(name, &one); one != 1 {
			f.fail(name, fmt.Errorf("is %v: %w", one, ErrUnsupported))
		}
	}
	for _, name := range []string{"num_local_experts", "num_experts", "n_routed_experts"} {
		var n float64
		if f.number(name, &n); n != 0 {
			f.fail(name, fmt.Errorf("is %v: %w", n, ErrUnsupported))
		}
	}
	var layers []string
	f.decode("layer_types", "a list of names", &layers)
	for _, l := range layers {
		if l != "full_attention" {
			f.fail("layer_types", fmt.Errorf("has %q: %w", l, ErrUnsupported))
		}
	}
	return f.err
}

// fields is a JSON object of which the first wrong field is remembered.
type fields struct {
	file string
	raw  map[string]json.RawMessage
	err  error
}

func parseFields(file string, data []byte) (*fields, error) {
	f := &fields{file: file}
	if err := json.Unmarshal(data, &f.raw); err != nil {
		return nil, fmt.Errorf("%s: %w: %w", file, ErrInvalid, err)
	}
	if f.raw == nil {
		return nil, fmt.Errorf("%s: is no object: %w", file, ErrInvalid)
	}
	return f, nil
}

func (f *fields) fail(name string, err error) {
	if f.err == nil {
		f.err = fmt.Errorf("%s: %s %w", f.file, name, err)
	}
}

// has says whether a field is there and not null.
func (f *fields) has(name string) bool {
	raw, ok := f.raw[name]
	return ok && string(raw) != "null"
}

// decode reads a field into v if it is there; want says what it should be.
func (f *fields) decode(name, want string, v any) bool {
	if !f.has(name) {
		return false
	}
	if err := json.Unmarshal(f.raw[name], v); err != nil {
		f.fail(name, fmt.Errorf("is %s, not %s: %w", clip(f.raw[name]), want, ErrInvalid))
		return false
	}
	return true
}

func (f *fields) size(name string, n *int) {
	if !f.has(name) {
		f.fail(name, fmt.Errorf("is missing: %w", ErrInvalid))
		return
	}
	f.optionalSize(name, n)
}

func (f *fields) optionalSize(name string, n *int) bool {
	if !f.has(name) {
		return false
	}
	v, err := strconv.ParseInt(string(f.raw[name]), 10, 32)
	if errors.Is(err, strconv.ErrRange) {
		f.fail(name, fmt.Errorf("is %s, which is out of bounds: %w", clip(f.raw[name]), ErrInvalid))
	} else if err != nil {
		f.fail(name, fmt.Errorf("is %s, not a whole number: %w", clip(f.raw[name]), ErrInvalid))
	}
	*n = int(v)
	return true
}

func (f *fields) number(name string, x *float64) { f.decode(name, "a number", x) }
func (f *fields) boolean(name string, on *bool)  { f.decode(name, "true or false", on) }
func (f *fields) tokens(name string, ids *[]int32) {
	var one int32
	if !f.has(name) {
		return
	}
	if json.Unmarshal(f.raw[name], &one) == nil {
		*ids = []int32{one}
		return
	}
	var list []int32
	if f.decode(name, "a token id or a list of them", &list) {
		*ids = list
	}
}

// ropeParameters reads theta from a field that may also ask for scaled
// positions, which are refused.
func (f *fields) ropeParameters(name string, theta *float64) {
	if !f.has(name) {
		return
	}
	p, err := parseFields(f.file+": "+name, f.raw[name])
	if err != nil {
		f.fail(name, fmt.Errorf("is %s, not an object: %w", clip(f.raw[name]), ErrInvalid))
		return
	}
	for _, key := range []string{"rope_type", "type"} {
		kind := "default"
		if p.decode(key, "a name", &kind); kind != "default" {
			f.fail(name+"."+key, fmt.Errorf("is %q: %w", kind, ErrUnsupported))
		}
	}
	p.number("rope_theta", theta)
	one := 1.0
	if p.number("partial_rotary_factor", &one); one != 1 {
		f.fail(name+".partial_rotary_factor", fmt.Errorf("is %v: %w", one, ErrUnsupported))
	}
	for _, key := range slices.Sorted(maps.Keys(p.raw)) {
		switch key {
		case "rope_type", "type", "rope_theta", "partial_rotary_factor":
		default:
			f.fail(name+"."+clip([]byte(key)), fmt.Errorf("is not known: %w", ErrUnsupported))
		}
	}
	if f.err == nil {
		f.err = p.err
	}
}

// clip shortens a value for an error message.
func clip(raw []byte) string {
	if len(raw) > 60 {
		return string(raw[:57]) + "..."
	}
	return string(raw)
}
