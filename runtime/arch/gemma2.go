package arch

import (
	"math"

	"github.com/estiba/estiba/runtime/graph"
)

// gemma2 is the decoder of arXiv:2408.00118: norms before and after each block, GeGLU, capped scores
// and logits, and a sliding window in every other layer.
//
//	x = sqrt(hidden) embed(tokens)
//	for each layer:
//	    h = norm(x)
//	    x = x + norm(Wo attention(rope(Wq h), rope(Wk h), Wv h))
//	    h = norm(x)
//	    x = x + norm(Wdown (gelu(Wgate h) * Wup h))
//	logits = cap(Wout norm(x))
func gemma2(c Config) (*graph.Graph, error) {
	b := &block{c: c}
	x := b.Op(graph.Scale, graph.Attr{Scale: float32(math.Sqrt(float64(c.Hidden)))}, b.embed())
	for l := range c.Layers {
		h := b.layerNorm(l, x, "attention.norm", "input_layernorm", "attn_norm")
		q, k, v := b.qkv(l, h)
		h = b.layerNorm(l, b.attend(l, q, k, v), "attention.output.norm", "post_attention_layernorm", "post_attention_norm")
		x = b.add(x, h)
		h = b.layerNorm(l, x, "ffn.norm", "pre_feedforward_layernorm", "ffn_norm")
		gate, up := b.gateAndUp(l, h)
		h = b.down(l, b.Op(graph.GeGLU, graph.Attr{Tanh: c.GELU == GELUTanh}, gate, up))
		x = b.add(x, b.layerNorm(l, h, "ffn.output.norm", "post_feedforward_layernorm", "post_ffw_norm"))
	}
	hidden := b.finalNorm(x)
	logits := b.logits(hidden)
	if c.LogitSoftCap != 0 {
		logits = b.Op(graph.SoftCap, graph.Attr{SoftCap: c.LogitSoftCap}, logits)
	}
	return b.Graph(hidden, logits)
}

func gemma2HF(f *fields, c *Config) {
	f.activation(c, "hidden_activation")
	f.know("hidden_act") // which old versions had instead
	f.decoder(c)
	f.rope(c)
	f.boolean("attention_bias", &c.QKVBias)
	c.OutputBias, c.NormShift = c.QKVBias, 1
	window := 0
	f.slidingWindow(&window)
	f.layerTypes(c, window, func(l int) bool { return l%2 == 0 })
	f.positive("query_pre_attn_scalar", func(x float64) { c.AttentionScale = 1 / math.Sqrt(x) })
	f.positive("attn_logit_softcapping", func(x float64) { c.AttentionSoftCap = float32(x) })
	f.positive("final_logit_softcapping", func(x float64) { c.LogitSoftCap = float32(x) })
}

// gemma2GGUF: the norms' weights are stored with the 1 that Hugging Face's lack. The query scale is
// not in the file: it is that of the head size, but for the model of 46 layers that of the hidden size by the heads.
func gemma2GGUF(p *pairs, c *Config) {
	p.decoder(c)
	p.rope(c)
	c.GELU = GELUTanh
	c.AttentionSoftCap, c.LogitSoftCap = 50, 30
	p.positive(".attn_logit_softcapping", func(x float64) { c.AttentionSoftCap = float32(x) })
	p.positive(".final_logit_softcapping", func(x float64) { c.LogitSoftCap = float32(x) })
	window := 4096
	p.optionalSize(".attention.sliding_window", &window)
	if window > 0 {
		for l := range c.layers() {
			c.Windows = append(c.Windows, window*((l+1)%2))
		}
	}
	if c.Layers == 46 && c.Heads > 0 {
		c.AttentionScale = 1 / math.Sqrt(float64(c.Hidden/c.Heads))
	}
}
