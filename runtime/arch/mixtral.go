package arch

import "github.com/estiba/estiba/runtime/graph"

// mixtral is the decoder of arXiv:2401.04088: llama with experts in place of the feed-forward block.
//
//	x = embed(tokens)
//	for each layer:
//	    h = norm(x)
//	    x = x + Wo attention(rope(Wq h), rope(Wk h), Wv h)
//	    h = norm(x)
//	    x = x + the sum over the best experts e of share_e(Wrouter h) * W2_e (silu(W1_e h) * W3_e h)
//	logits = Wout norm(x)
func mixtral(c Config) (*graph.Graph, error) {
	b := &block{c: c}
	x := b.embed()
	for l := range c.Layers {
		h := b.layerNorm(l, x, "attention.norm", "input_layernorm", "attn_norm")
		q, k, v := b.qkv(l, h)
		x = b.add(x, b.attend(l, q, k, v))
		h = b.layerNorm(l, x, "ffn.norm", "post_attention_layernorm", "ffn_norm")
		x = b.add(x, b.experts(l, h, expertNames{
			router: "block_sparse_moe.gate",
			gate:   "block_sparse_moe.experts.%d.w1", up: "block_sparse_moe.experts.%d.w3", down: "block_sparse_moe.experts.%d.w2",
		}))
	}
	hidden := b.finalNorm(x)
	return b.Graph(hidden, b.logits(hidden))
}

func mixtralHF(f *fields, c *Config) {
	f.decoder(c)
	f.rope(c)
	f.window(c)
	f.optionalSize("num_local_experts", &c.Experts)
	f.optionalSize("num_experts_per_tok", &c.ExpertsPerToken)
	c.ExpertFFN, c.NormalizeExperts = c.FFN, true
}

func mixtralGGUF(p *pairs, c *Config) {
	llamaGGUF(p, c)
	p.experts(c)
	c.ExpertFFN, c.NormalizeExperts = c.FFN, true
}
