package arch

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
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
	c := Config{RopePairs: RopeHalves, BOS: -1}
	if c.Architecture, err = hfArchitecture(f); err != nil {
		return Config{}, err
	}
	a := architectures[c.Architecture]
	f.defaults(a.defaults)
	a.hf(f, &c)
	f.refuseUnread()
	f.ends(&c)
	if f.err != nil {
		return Config{}, f.err
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
	eps := "rms_norm_eps"
	experts := "num_experts"
	if c.Encoder {
		eps = "layer_norm_eps"
	}
	if architectures[c.Architecture].defaults["num_local_experts"] != "" {
		experts = "num_local_experts"
	}
	name := [...]string{
		"num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim",
		"vocab_size", "max_position_embeddings", eps, "rope_theta", "partial_rotary_factor", "rope_scaling",
		"query_pre_attn_scalar", "attn_logit_softcapping", "final_logit_softcapping", "sliding_window", "type_vocab_size",
		experts, "num_experts_per_tok", "moe_intermediate_size", "bos_token_id", "eos_token_id",
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
	for _, key := range slices.Sorted(maps.Keys(architectures)) {
		a := architectures[key]
		switch {
		case len(class) > 0 && !slices.ContainsFunc(class, func(c string) bool { return slices.Contains(a.classes, c) }):
		case model != "" && model != a.hfType:
			if len(class) > 0 {
				return "", fmt.Errorf("config.json: model_type %q of %s: %w", clip([]byte(model)), a.classes[0], ErrUnsupported)
			}
		default:
			return key, nil
		}
	}
	if len(class) > 0 {
		return "", fmt.Errorf("config.json: architectures %s: %w; this version computes %s", clip(fmt.Appendf(nil, "%q", class)), ErrUnsupported,
			listed(func(a architecture) []string { return a.classes }))
	}
	return "", fmt.Errorf("config.json: model_type %q: %w; this version computes %s", clip([]byte(model)), ErrUnsupported,
		listed(func(a architecture) []string { return []string{a.hfType} }))
}

// listed are the names that architectures have somewhere.
func listed(names func(architecture) []string) string {
	var all []string
	for _, a := range architectures {
		all = append(all, names(a)...)
	}
	slices.Sort(all)
	return strings.Join(slices.Compact(all), ", ")
}

// decoder reads what all decoders have.
func (f *fields) decoder(c *Config) {
	f.sizes(c, "rms_norm_eps")
	c.KVHeads = c.Heads
	f.optionalSize("num_key_value_heads", &c.KVHeads)
	if !f.optionalSize("head_dim", &c.HeadDim) {
		f.headDim(c)
	}
	f.boolean("tie_word_embeddings", &c.TiedOutput)
}

// sizes reads what all models have; eps is the name of a norm's.
func (f *fields) sizes(c *Config, eps string) {
	f.size("num_hidden_layers", &c.Layers)
	f.size("hidden_size", &c.Hidden)
	f.size("intermediate_size", &c.FFN)
	f.size("num_attention_heads", &c.Heads)
	f.size("vocab_size", &c.Vocabulary)
	f.size("max_position_embeddings", &c.MaxPositions)
	x := 0.0
	f.number(eps, &x)
	c.NormEps = float32(x)
}

// headDim is the hidden size by the heads.
func (f *fields) headDim(c *Config) {
	if f.err != nil {
		return
	}
	if c.Heads < 1 || c.Hidden%c.Heads != 0 {
		f.fail("num_attention_heads", invalid("is %d, which does not divide hidden_size %d, and head_dim is not given", c.Heads, c.Hidden))
		return
	}
	c.HeadDim = c.Hidden / c.Heads
}

// ends reads the tokens that begin and end a text. Those of a class's defaults are left
// out if the vocabulary lacks them.
func (f *fields) ends(c *Config) {
	var bos []int32
	f.tokens("bos_token_id", &bos)
	f.tokens("eos_token_id", &c.EOS)
	lacks := func(id int32) bool { return int(id) >= c.Vocabulary }
	if f.defaulted["eos_token_id"] {
		c.EOS = slices.DeleteFunc(c.EOS, lacks)
	}
	if f.defaulted["bos_token_id"] {
		bos = slices.DeleteFunc(bos, lacks)
	}
	if len(bos) > 0 {
		c.BOS = bos[0]
	}
}

// window reads a sliding window of all layers; null is none.
func (f *fields) window(c *Config) {
	n := 0
	if f.slidingWindow(&n) {
		f.setWindows(c, n, func(int) bool { return true })
	}
}

// windowFrom reads a sliding window of the layers from max_window_layers on, or those that layer_types names.
func (f *fields) windowFrom(c *Config) {
	use, n, from := false, 0, 0
	f.boolean("use_sliding_window", &use)
	f.optionalSize("max_window_layers", &from)
	f.know("sliding_window")
	if use {
		f.slidingWindow(&n)
	}
	f.layerTypes(c, n, func(l int) bool { return l >= from })
}

func (f *fields) slidingWindow(n *int) bool {
	if !f.optionalSize("sliding_window", n) {
		return false
	}
	if *n < 1 {
		f.fail("sliding_window", invalid("is %d, not at least 1", *n))
	}
	return true
}

// layerTypes reads which layers have a window (0: there is none), by default those that windowed names.
func (f *fields) layerTypes(c *Config, window int, windowed func(layer int) bool) {
	var types []string
	f.decode("layer_types", "a list of names", &types)
	if types == nil {
		f.setWindows(c, window, windowed)
		return
	}
	if len(types) != c.Layers {
		f.fail("layer_types", invalid("has %d names for %d layers", len(types), c.Layers))
		return
	}
	for _, t := range types {
		if t != "full_attention" && t != "sliding_attention" {
			f.fail("layer_types", unsupported("has %q", clip([]byte(t))))
		}
		if t == "sliding_attention" && window == 0 {
			f.fail("layer_types", invalid("has sliding_attention, but no sliding_window is in use"))
		}
	}
	f.setWindows(c, window, func(l int) bool { return types[l] == "sliding_attention" })
}

func (f *fields) setWindows(c *Config, window int, windowed func(layer int) bool) {
	windows := make([]int, c.layers())
	some := false
	for l := range windows {
		if window != 0 && windowed(l) {
			windows[l], some = window, true
		}
	}
	if some {
		c.Windows = windows
	}
}

// activation reads the form of GELU.
func (f *fields) activation(c *Config, name string) {
	act := ""
	f.decode(name, "a name", &act)
	switch act {
	case "gelu", "gelu_python":
		c.GELU = GELUErf
	case "gelu_new", "gelu_fast", "gelu_pytorch_tanh":
		c.GELU = GELUTanh
	default:
		f.fail(name, unsupported("is %q", clip([]byte(act))))
	}
}

// positive reads a number above 0 that may be null.
func (f *fields) positive(name string, set func(float64)) {
	x := 0.0
	if !f.decode(name, "a number", &x) {
		return
	}
	if !(x > 0 && x <= 1e9) {
		f.fail(name, invalid("is %v, not a number above 0", x))
		return
	}
	set(x)
}

// refuseUnread refuses by name what would change the result and has not been read: it is
// not computed here, or not by this architecture.
func (f *fields) refuseUnread() {
	unread := func(names ...string) []string {
		return slices.DeleteFunc(names, func(n string) bool { return f.known[n] })
	}
	for _, name := range unread("attention_bias", "mlp_bias", "use_qk_norm", "qk_norm", "use_bidirectional_attention", "is_decoder", "add_cross_attention", "use_sliding_window", "qkv_bias", "lm_head_bias", "use_parallel_residual", "alibi", "use_mrope") {
		var on bool
		if f.boolean(name, &on); on {
			f.fail(name, unsupported("is true"))
		}
	}
	for _, name := range unread("hidden_act", "hidden_activation") {
		act := "silu"
		f.decode(name, "a name", &act)
		if act != "silu" && act != "swish" {
			f.fail(name, unsupported("is %q", clip([]byte(act))))
		}
	}
	for _, name := range unread(
		"quantization_config", "compression_config", "sliding_window", "attention_chunk_size",
		"attn_logit_softcapping", "final_logit_softcapping", "query_pre_attn_scalar", "rope_scaling", "rope_parameters", "per_layer_config", "text_config", "clip_qkv", "no_rope_layers", "cross_attention_layers", "rotary_dim",
	) {
		if f.has(name) {
			f.fail(name, unsupported("is %s", clip(f.raw[name])))
		}
	}
	for _, name := range unread("partial_rotary_factor", "embedding_multiplier", "residual_multiplier", "attention_multiplier", "logits_scaling", "logit_scale", "rope_local_base_freq") {
		one := 1.0
		if f.number(name, &one); one != 1 {
			f.fail(name, unsupported("is %v", one))
		}
	}
	for _, name := range unread("num_local_experts", "num_experts", "n_routed_experts", "n_shared_experts", "shared_expert_intermediate_size") {
		var n float64
		if f.number(name, &n); n != 0 {
			f.fail(name, unsupported("is %v", n))
		}
	}
	for _, name := range unread("layer_types") {
		var layers []string
		f.decode(name, "a list of names", &layers)
		for _, l := range layers {
			if l != "full_attention" {
				f.fail(name, unsupported("has %q", clip([]byte(l))))
			}
		}
	}
}

// fields is a JSON object of which the first wrong field is remembered, and which have been read.
type fields struct {
	file      string
	raw       map[string]json.RawMessage
	known     map[string]bool
	defaulted map[string]bool
	err       error
}

func parseFields(file string, data []byte) (*fields, error) {
	f := &fields{file: file, known: map[string]bool{}, defaulted: map[string]bool{}}
	err := json.Unmarshal(data, &f.raw)
	if _, other := errors.AsType[*json.UnmarshalTypeError](err); err != nil && !other {
		return nil, fmt.Errorf("%s: %w: %w", file, ErrInvalid, err)
	}
	if f.raw == nil {
		return nil, fmt.Errorf("%s: is no object: %w", file, ErrInvalid)
	}
	return f, nil
}

// defaults stand for the fields that are not there; null is there.
func (f *fields) defaults(values map[string]string) {
	for name, value := range values {
		if _, ok := f.raw[name]; !ok {
			f.raw[name], f.defaulted[name] = json.RawMessage(value), true
		}
	}
}

func (f *fields) fail(name string, err error) {
	if f.err == nil {
		f.err = fmt.Errorf("%s: %s %w", f.file, name, err)
	}
}

// know marks fields as understood, though they may not have been read.
func (f *fields) know(names ...string) {
	for _, n := range names {
		f.known[n] = true
	}
}

// has says whether a field is there and not null.
func (f *fields) has(name string) bool {
	f.known[name] = true
	raw, ok := f.raw[name]
	return ok && string(raw) != "null"
}

// decode reads a field into v if it is there; want says what it should be.
func (f *fields) decode(name, want string, v any) bool {
	if !f.has(name) {
		return false
	}
	if err := json.Unmarshal(f.raw[name], v); err != nil {
		f.fail(name, invalid("is %s, not %s", clip(f.raw[name]), want))
		return false
	}
	return true
}

func (f *fields) size(name string, n *int) {
	if !f.has(name) {
		f.fail(name, invalid("is missing"))
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
		f.fail(name, invalid("is %s, which is out of bounds", clip(f.raw[name])))
	} else if err != nil {
		f.fail(name, invalid("is %s, not a whole number", clip(f.raw[name])))
	}
	*n = int(v)
	return true
}

func (f *fields) number(name string, x *float64) bool { return f.decode(name, "a number", x) }
func (f *fields) boolean(name string, on *bool)       { f.decode(name, "true or false", on) }
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

// rotation is what a configuration says of rotary positions. version 4 has rope_theta and
// rope_scaling, version 5 rope_parameters with all of it.
type rotation struct {
	*fields        // of rope_scaling or rope_parameters
	name    string // that one's
	kind    string // of scaling
	partial float64
}

// rotation reads theta, how much of a head is rotated, and the kind of scaling.
func (f *fields) rotation(c *Config) *rotation {
	r := &rotation{fields: &fields{known: map[string]bool{}}, name: "rope_parameters", kind: "default", partial: 1}
	c.RopeTheta = 10000
	f.number("rope_theta", &c.RopeTheta)
	f.number("partial_rotary_factor", &r.partial)
	given := 0
	for _, name := range []string{"rope_parameters", "rope_scaling"} {
		if !f.has(name) || string(f.raw[name]) == "{}" {
			continue
		}
		p, err := parseFields(f.file+": "+name, f.raw[name])
		if err != nil {
			f.fail(name, invalid("is %s, not an object", clip(f.raw[name])))
			return r
		}
		if p, err = p.ofLayerTypes(); err != nil {
			f.fail(name, err)
			return r
		}
		if given++; given == 2 && !equalJSON(r.raw, p.raw) {
			f.fail(name, unsupported("differs from rope_parameters beside it"))
			return r
		}
		r.fields, r.name = p, name
	}
	for _, key := range []string{"type", "rope_type"} {
		r.decode(key, "a name", &r.kind)
	}
	r.number("rope_theta", &c.RopeTheta)
	r.number("partial_rotary_factor", &r.partial)
	return r
}

// ofLayerTypes is the object itself, or the one that it has for every type of layer.
func (f *fields) ofLayerTypes() (*fields, error) {
	var one *fields
	for _, key := range slices.Sorted(maps.Keys(f.raw)) {
		if key != "full_attention" && key != "sliding_attention" {
			continue
		}
		p, err := parseFields(f.file+"."+key, f.raw[key])
		if err != nil {
			return nil, invalid("has %s of %s, not an object", clip(f.raw[key]), key)
		}
		if one != nil && !equalJSON(one.raw, p.raw) || len(f.raw) > 2 {
			return nil, unsupported("differs between types of layers")
		}
		one = p
	}
	if one == nil {
		return f, nil
	}
	return one, nil
}

func equalJSON(a, b map[string]json.RawMessage) bool {
	return maps.EqualFunc(a, b, func(x, y json.RawMessage) bool {
		var one, other bytes.Buffer
		return json.Compact(&one, x) == nil && json.Compact(&other, y) == nil && bytes.Equal(one.Bytes(), other.Bytes())
	})
}

// end hands over the first error, of a field that nobody has read too.
func (r *rotation) end(f *fields) {
	for _, key := range slices.Sorted(maps.Keys(r.raw)) {
		if !r.known[key] {
			r.fail(clip([]byte(key)), unsupported("is not known"))
		}
	}
	if f.err == nil {
		f.err = r.err
	}
}

// rope reads rotary positions of whole heads.
func (f *fields) rope(c *Config) {
	r := f.rotation(c)
	if f.err != nil {
		return
	}
	if r.partial != 1 {
		f.fail("partial_rotary_factor", unsupported("is %v", r.partial))
	}
	original := c.MaxPositions
	f.optionalSize("original_max_position_embeddings", &original)
	s := &c.RopeScaling
	switch r.kind {
	case "default":
	case "linear":
		s.Kind = RopeLinear
		r.number("factor", &s.Factor)
	case "llama3":
		s.Kind, s.Original = RopeLlama3, original
		r.number("factor", &s.Factor)
		r.number("low_freq_factor", &s.LowFreq)
		r.number("high_freq_factor", &s.HighFreq)
		r.optionalSize("original_max_position_embeddings", &s.Original)
	case "yarn":
		r.yarn(c, original)
	default:
		f.fail(r.name+".rope_type", unsupported("is %q", clip([]byte(r.kind))))
	}
	r.end(f)
}

// yarn reads YaRN's parameters. The factor is by default how much longer the context is than the original.
func (r *rotation) yarn(c *Config, original int) {
	s := &c.RopeScaling
	s.Kind, s.Original, s.BetaFast, s.BetaSlow = RopeYaRN, original, 32, 1
	r.optionalSize("original_max_position_embeddings", &s.Original)
	if !r.number("factor", &s.Factor) && s.Original > 0 {
		s.Factor = float64(c.MaxPositions) / float64(s.Original)
	}
	for name, beta := range map[string]*float64{"beta_fast": &s.BetaFast, "beta_slow": &s.BetaSlow} {
		x := 0.0
		if r.number(name, &x); x != 0 {
			*beta = x
		}
	}
	truncate := true
	r.boolean("truncate", &truncate)
	s.Exact = !truncate
	var mscale, all float64
	r.number("mscale", &mscale)
	r.number("mscale_all_dim", &all)
	if !r.number("attention_factor", &s.Amplitude) {
		s.Amplitude = yarnAmplitude(s.Factor, 1)
		if mscale != 0 && all != 0 {
			s.Amplitude = yarnAmplitude(s.Factor, mscale) / yarnAmplitude(s.Factor, all)
		}
	}
}

// longRope reads rotary positions as Phi-3 has them: of a part of each head, perhaps divided by lists;
// original is the context before, 0 if it is not given.
func (f *fields) longRope(c *Config, original int) {
	r := f.rotation(c)
	if f.err != nil {
		return
	}
	if r.partial != 1 {
		if !(r.partial > 0 && r.partial < 1) {
			f.fail("partial_rotary_factor", invalid("is %v, not within 0 and 1", r.partial))
			return
		}
		c.RopeDims = int(float64(c.HeadDim) * r.partial)
		if c.RopeDims < 2 {
			f.fail("partial_rotary_factor", invalid("is %v: of %d numbers nothing is rotated", r.partial, c.HeadDim))
		}
	}
	switch r.kind {
	case "default":
		r.know("original_max_position_embeddings")
	case "longrope", "su", "yarn": // by the names of its first versions too
		s := &c.RopeScaling
		s.Kind, s.Original = RopeLongRoPE, original
		factor := 0.0
		if r.number("factor", &factor); original == 0 {
			s.Original = c.MaxPositions
			r.optionalSize("original_max_position_embeddings", &s.Original)
		}
		r.know("original_max_position_embeddings", "long_factor", "long_mscale", "short_mscale")
		if (original != 0 || factor == 0) && s.Original > 0 {
			factor = float64(c.MaxPositions) / float64(s.Original)
		}
		r.decode("short_factor", "a list of numbers", &s.Divisors)
		if !r.number("attention_factor", &s.Amplitude) && s.Original > 1 {
			s.Amplitude = longRopeAmplitude(factor, s.Original)
		}
		c.MaxPositions = min(c.MaxPositions, s.Original)
	default:
		f.fail(r.name+".rope_type", unsupported("is %q", clip([]byte(r.kind))))
	}
	r.end(f)
}

// clip shortens a value for an error message.
func clip(raw []byte) string {
	if len(raw) > 60 {
		return string(raw[:57]) + "..."
	}
	return string(raw)
}
