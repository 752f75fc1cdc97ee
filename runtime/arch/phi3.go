package arch

import (
	"math"

	"github.com/estiba/estiba/runtime/graph"
	"github.com/estiba/estiba/runtime/tensor"
)

// phi3 is the decoder of arXiv:2404.14219: llama whose checkpoints have queries, keys and values in one
// matrix, and the two of the feed-forward block in another. Some rotate a part of each head only.
//
//	x = embed(tokens)
//	for each layer:
//	    h = norm(x)
//	    q, k, v = the rows of Wqkv h
//	    x = x + Wo attention(rope(q), rope(k), v)
//	    h = norm(x)
//	    gate, up = the halves of Wgateup h
//	    x = x + Wdown (silu(gate) * up)
//	logits = Wout norm(x)
func phi3(c Config) (*graph.Graph, error) {
	b := &block{c: c}
	x := b.embed()
	for l := range c.Layers {
		h := b.layerNorm(l, x, "attention.norm", "input_layernorm", "attn_norm")
		queries, keys := c.Heads*c.HeadDim, c.KVHeads*c.HeadDim
		qkv := b.fused(l, h, "self_attn.qkv_proj.weight", "attn_qkv.weight", []fusedPart{{"attention.q", queries}, {"attention.k", keys}, {"attention.v", keys}})
		x = b.add(x, b.attend(l, qkv[0], qkv[1], qkv[2]))
		h = b.layerNorm(l, x, "ffn.norm", "post_attention_layernorm", "ffn_norm")
		ffn := b.fused(l, h, "mlp.gate_up_proj.weight", "ffn_up.weight", []fusedPart{{"ffn.gate", c.FFN}, {"ffn.up", c.FFN}})
		x = b.add(x, b.down(l, b.Op(graph.SwiGLU, graph.Attr{}, ffn[0], ffn[1])))
	}
	hidden := b.finalNorm(x)
	return b.Graph(hidden, b.logits(hidden))
}

// fusedPart is so many rows of a matrix that holds several.
type fusedPart struct {
	name string
	rows int
}

// fused are the products of x [T,in] with the parts of one matrix of a checkpoint, from its first row on.
func (b *block) fused(l int, x graph.Value, hf, gguf string, parts []fusedPart) []graph.Value {
	all := tensor.Shape{0, b.Width(x)}
	for _, p := range parts {
		all[0] += p.rows
	}
	row := 0
	var y []graph.Value
	for _, p := range parts {
		y = append(y, b.matmul(x, b.Weight(graph.Weight{
			Name: layerName(l, p.name), Shape: tensor.Shape{p.rows, all[1]},
			HF:   []graph.Place{{Tensor: hfLayer(l, hf), Of: all, Row: row}},
			GGUF: []graph.Place{{Tensor: ggufLayer(l, gguf), Of: all, Row: row}},
		})))
		row += p.rows
	}
	return y
}

// phi3HF: long contexts (LongRoPE) divide the frequencies by one list up to the original context and by another
// beyond, for the whole sequence. A cache holds rotated keys, so a sequence cannot go from one to the other; it
// ends at the original context.
func phi3HF(f *fields, c *Config) {
	f.decoder(c)
	original := 0
	f.optionalSize("original_max_position_embeddings", &original)
	f.longRope(c, original)
	f.window(c)
}

func phi3GGUF(p *pairs, c *Config) {
	p.decoder(c)
	p.rotation(c)
	p.window(c)
	const short = "rope_factors_short.weight"
	if !p.tensors(short) {
		p.ropeScaling(c)
		return
	}
	kind := "longrope"
	if p.text(".rope.scaling.type", &kind); kind != "longrope" && kind != "none" {
		p.fail(".rope.scaling.type", unsupported("is %q beside %s", clip([]byte(kind)), short))
	}
	original := c.MaxPositions
	p.optionalSize(".rope.scaling.original_context_length", &original)
	c.RopeScaling = RopeScaling{Tensor: short}
	if !p.number(".rope.scaling.attn_factor", &c.RopeScaling.Amplitude) && original > 1 {
		c.RopeScaling.Amplitude = longRopeAmplitude(float64(c.MaxPositions)/float64(original), original)
	}
	c.MaxPositions = min(c.MaxPositions, original)
}

// longRopeAmplitude is that of arXiv:2402.13753 for a context stretched by factor.
func longRopeAmplitude(factor float64, original int) float64 {
	if factor <= 1 {
		return 1
	}
	return math.Sqrt(1 + math.Log(factor)/math.Log(float64(original)))
}
