package arch

import "github.com/estiba/estiba/runtime/graph"

// llama is the decoder of arXiv:2302.13971 with the grouped queries of
// arXiv:2305.13245: pre-normalization (RMSNorm), rotary positions, SwiGLU.
//
//	x = embed(tokens)
//	for each layer:
//	    h = norm(x)
//	    x = x + Wo attention(rope(Wq h), rope(Wk h), Wv h)
//	    h = norm(x)
//	    x = x + Wdown (silu(Wgate h) * Wup h)
//	logits = Wout norm(x)
func llama(c Config) (*graph.Graph, error) {
	b := &block{c: c}
	x := b.embed()
	for l := range c.Layers {
		h := b.layerNorm(l, x, "attention.norm", "input_layernorm", "attn_norm")
		q, k, v := b.qkv(l, h)
		x = b.add(x, b.attend(l, q, k, v))
		h = b.layerNorm(l, x, "ffn.norm", "post_attention_layernorm", "ffn_norm")
		x = b.add(x, b.swiglu(l, h))
	}
	hidden := b.finalNorm(x)
	return b.Graph(hidden, b.logits(hidden))
}

func llamaHF(f *fields, c *Config) {
	f.decoder(c)
	f.rope(c)
	f.boolean("attention_bias", &c.QKVBias)
	c.OutputBias = c.QKVBias
	f.boolean("mlp_bias", &c.FFNBias)
}

func llamaGGUF(p *pairs, c *Config) {
	p.decoder(c)
	p.rope(c)
	p.window(c)
	c.RopePairs = RopeNeighbours
	c.QKVBias, c.OutputBias, c.FFNBias = p.tensors("blk.0.attn_q.bias"), p.tensors("blk.0.attn_output.bias"), p.tensors("blk.0.ffn_up.bias")
}
