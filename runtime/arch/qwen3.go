package arch

import "github.com/estiba/estiba/runtime/graph"

// qwen3 is the decoder of arXiv:2505.09388: llama with a norm of each head's queries and keys. Some
// layers have experts in place of the feed-forward block.
//
//	x = embed(tokens)
//	for each layer:
//	    h = norm(x)
//	    x = x + Wo attention(rope(norm(Wq h)), rope(norm(Wk h)), Wv h)
//	    h = norm(x)
//	    x = x + Wdown (silu(Wgate h) * Wup h), or the sum over the best experts of that
//	logits = Wout norm(x)
func qwen3(c Config) (*graph.Graph, error) {
	b := &block{c: c}
	x := b.embed()
	for l := range c.Layers {
		h := b.layerNorm(l, x, "attention.norm", "input_layernorm", "attn_norm")
		q, k, v := b.qkv(l, h)
		q = b.headNorm(l, q, c.Heads, "attention.q.norm", "self_attn.q_norm", "attn_q_norm")
		k = b.headNorm(l, k, c.KVHeads, "attention.k.norm", "self_attn.k_norm", "attn_k_norm")
		x = b.add(x, b.attend(l, q, k, v))
		h = b.layerNorm(l, x, "ffn.norm", "post_attention_layernorm", "ffn_norm")
		if b.sparse(l) {
			x = b.add(x, b.experts(l, h, expertNames{
				router: "mlp.gate",
				gate:   "mlp.experts.%d.gate_proj", up: "mlp.experts.%d.up_proj", down: "mlp.experts.%d.down_proj",
			}))
		} else {
			x = b.add(x, b.swiglu(l, h))
		}
	}
	hidden := b.finalNorm(x)
	return b.Graph(hidden, b.logits(hidden))
}

func qwen3HF(f *fields, c *Config) {
	f.decoder(c)
	f.rope(c)
	f.windowFrom(c)
	f.boolean("attention_bias", &c.QKVBias)
	c.OutputBias = c.QKVBias
}

func qwen3GGUF(p *pairs, c *Config) {
	p.decoder(c)
	p.rope(c)
	p.window(c)
	c.QKVBias, c.OutputBias = p.tensors("blk.0.attn_q.bias"), p.tensors("blk.0.attn_output.bias")
}

// qwen3MoeHF: a layer has experts if its number, from 1, is a multiple of decoder_sparse_step and
// mlp_only_layers does not name it (from 0).
func qwen3MoeHF(f *fields, c *Config) {
	f.decoder(c)
	f.rope(c)
	use := false
	if f.boolean("use_sliding_window", &use); use {
		f.window(c)
	}
	f.know("sliding_window", "max_window_layers")
	f.boolean("attention_bias", &c.QKVBias)
	c.OutputBias = c.QKVBias
	f.optionalSize("num_experts", &c.Experts)
	f.optionalSize("num_local_experts", &c.Experts) // as a later version calls it
	f.optionalSize("num_experts_per_tok", &c.ExpertsPerToken)
	f.optionalSize("moe_intermediate_size", &c.ExpertFFN)
	f.boolean("norm_topk_prob", &c.NormalizeExperts)
	step := 1
	f.optionalSize("decoder_sparse_step", &step)
	var only []int
	f.decode("mlp_only_layers", "a list of layers", &only)
	if step < 1 {
		f.fail("decoder_sparse_step", invalid("is %d, not at least 1", step))
		return
	}
	dense := map[int]bool{}
	for _, l := range only {
		dense[l] = true
	}
	for l := range c.layers() {
		if (l+1)%step != 0 || dense[l] {
			c.DenseLayers = append(c.DenseLayers, l)
		}
	}
}

// qwen3MoeGGUF: the experts' shares are normalized unless the file says otherwise, and a layer has
// experts if it has a router.
func qwen3MoeGGUF(p *pairs, c *Config) {
	qwen3GGUF(p, c)
	p.experts(c)
	p.size(".expert_feed_forward_length", &c.ExpertFFN)
	c.NormalizeExperts = true
	p.boolean(".expert_weights_norm", &c.NormalizeExperts)
	for l := range c.layers() {
		if !p.tensors(ggufLayer(l, "ffn_gate_inp.weight")) {
			c.DenseLayers = append(c.DenseLayers, l)
		}
	}
}
