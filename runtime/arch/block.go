package arch

import (
	"fmt"
	"math"
	"slices"

	"github.com/estiba/estiba/runtime/graph"
	"github.com/estiba/estiba/runtime/tensor"
)

// block builds the parts that architectures share. T is tokens, R tokens or wanted rows.
type block struct {
	graph.Builder
	c Config

	embedding   graph.Value
	frequencies []float32 // of the rotation, once it is needed
	amplitude   float32
	divisors    []graph.Value // of the frequencies; none or one
}

// embed gives the rows of the tokens [T,Hidden].
func (b *block) embed() graph.Value {
	b.embedding = b.Weight(graph.Weight{
		Name: "embedding", Shape: tensor.Shape{b.c.Vocabulary, b.c.Hidden},
		HF: []graph.Place{{Tensor: "model.embed_tokens.weight"}}, GGUF: []graph.Place{{Tensor: "token_embd.weight"}},
	})
	return b.Op(graph.Embed, graph.Attr{}, b.embedding)
}

// finalNorm is the hidden state [Wanted,Hidden] of the rows that are asked for.
func (b *block) finalNorm(x graph.Value) graph.Value {
	x = b.Op(graph.Rows, graph.Attr{}, x)
	return b.norm(x, b.Weight(graph.Weight{
		Name: "norm", Shape: tensor.Shape{b.c.Hidden},
		HF: []graph.Place{{Tensor: "model.norm.weight"}}, GGUF: []graph.Place{{Tensor: "output_norm.weight"}},
	}))
}

// logits of hidden states [Wanted,Vocabulary].
func (b *block) logits(hidden graph.Value) graph.Value {
	output := b.embedding
	if !b.c.TiedOutput {
		output = b.Weight(graph.Weight{
			Name: "output", Shape: tensor.Shape{b.c.Vocabulary, b.c.Hidden},
			HF: []graph.Place{{Tensor: "lm_head.weight"}}, GGUF: []graph.Place{{Tensor: "output.weight"}},
		})
	}
	return b.matmul(hidden, output)
}

// qkv are the queries [T,Heads*HeadDim], and keys and values [T,KVHeads*HeadDim], of h [T,Hidden].
func (b *block) qkv(l int, h graph.Value) (q, k, v graph.Value) {
	queries, keys := b.c.Heads*b.c.HeadDim, b.c.KVHeads*b.c.HeadDim
	q = b.linear(l, h, queries, "attention.q", "self_attn.q_proj", "attn_q", b.c.QKVBias)
	k = b.linear(l, h, keys, "attention.k", "self_attn.k_proj", "attn_k", b.c.QKVBias)
	v = b.linear(l, h, keys, "attention.v", "self_attn.v_proj", "attn_v", b.c.QKVBias)
	return q, k, v
}

// attend is causal attention of rotated queries and keys, and the output matrix: [T,Hidden].
func (b *block) attend(l int, q, k, v graph.Value) graph.Value {
	c := b.c
	scale := c.AttentionScale
	if scale == 0 {
		scale = 1 / math.Sqrt(float64(c.HeadDim))
	}
	y := b.Op(graph.Attention, graph.Attr{
		Layer: l, Heads: c.Heads, KVHeads: c.KVHeads, HeadDim: c.HeadDim,
		Scale: float32(scale), SoftCap: c.AttentionSoftCap, Window: c.window(l),
	}, b.rope(q, c.Heads), b.rope(k, c.KVHeads), v)
	return b.linear(l, y, c.Hidden, "attention.output", "self_attn.o_proj", "attn_output", c.OutputBias)
}

// gateAndUp are the two products of a gated feed-forward block: h [T,Hidden] -> [T,FFN] each.
func (b *block) gateAndUp(l int, h graph.Value) (gate, up graph.Value) {
	gate = b.linear(l, h, b.c.FFN, "ffn.gate", "mlp.gate_proj", "ffn_gate", b.c.FFNBias)
	up = b.linear(l, h, b.c.FFN, "ffn.up", "mlp.up_proj", "ffn_up", b.c.FFNBias)
	return gate, up
}

// down is the last product of a feed-forward block: [T,FFN] -> [T,Hidden].
func (b *block) down(l int, x graph.Value) graph.Value {
	return b.linear(l, x, b.c.Hidden, "ffn.down", "mlp.down_proj", "ffn_down", b.c.FFNBias)
}

// swiglu is the feed-forward block of arXiv:2002.05202: Wdown (silu(Wgate h) * Wup h).
func (b *block) swiglu(l int, h graph.Value) graph.Value {
	gate, up := b.gateAndUp(l, h)
	return b.down(l, b.Op(graph.SwiGLU, graph.Attr{}, gate, up))
}

// expertNames are where a format has a layer's router and experts; %d is the expert.
type expertNames struct {
	router         string
	gate, up, down string
}

// experts is the sparse feed-forward block of arXiv:2401.04088: of the experts, each a swiglu of its
// own, a router chooses some for each token; their results are added by its shares.
func (b *block) experts(l int, h graph.Value, hf expertNames) graph.Value {
	c := b.c
	scores := b.matmul(h, b.Weight(graph.Weight{
		Name: fmt.Sprintf("layers.%d.router", l), Shape: tensor.Shape{c.Experts, c.Hidden},
		HF:   []graph.Place{{Tensor: hfLayer(l, hf.router+".weight")}, {Tensor: hfLayer(l, "mlp.gate.weight")}},
		GGUF: []graph.Place{{Tensor: ggufLayer(l, "ffn_gate_inp.weight")}},
	}))
	a := graph.Attr{TopK: c.ExpertsPerToken, Normalize: c.NormalizeExperts}
	route := b.Op(graph.Route, a, scores)
	product := func(x graph.Value, name, hf string, fused graph.Place, gguf string, s tensor.Shape) graph.Value {
		in := []graph.Value{x, route}
		whole := graph.Place{Tensor: ggufLayer(l, gguf+"_exps.weight"), Of: tensor.Shape{c.Experts, s[0], s[1]}}
		for e := range c.Experts {
			part, row := fused, whole
			part.Row += e * fused.Of[1]
			row.Row += e * s[0]
			in = append(in, b.Weight(graph.Weight{
				Name: fmt.Sprintf("layers.%d.experts.%d.%s", l, e, name), Shape: s,
				HF:   []graph.Place{{Tensor: hfLayer(l, fmt.Sprintf(hf, e)+".weight")}, part},
				GGUF: []graph.Place{row, {Tensor: ggufLayer(l, fmt.Sprintf("%s.%d.weight", gguf, e))}},
			}))
		}
		return b.Op(graph.ExpertMatMul, a, in...)
	}
	gateUp := graph.Place{Tensor: hfLayer(l, "mlp.experts.gate_up_proj"), Of: tensor.Shape{c.Experts, 2 * c.ExpertFFN, c.Hidden}}
	upOf := gateUp
	upOf.Row = c.ExpertFFN
	down := graph.Place{Tensor: hfLayer(l, "mlp.experts.down_proj"), Of: tensor.Shape{c.Experts, c.Hidden, c.ExpertFFN}}
	gate := product(h, "gate", hf.gate, gateUp, "ffn_gate", tensor.Shape{c.ExpertFFN, c.Hidden})
	up := product(h, "up", hf.up, upOf, "ffn_up", tensor.Shape{c.ExpertFFN, c.Hidden})
	y := product(b.Op(graph.SwiGLU, graph.Attr{}, gate, up), "down", hf.down, down, "ffn_down", tensor.Shape{c.Hidden, c.ExpertFFN})
	return b.Op(graph.ExpertSum, graph.Attr{TopK: a.TopK}, y, route)
}

// sparse says whether a layer has experts.
func (b *block) sparse(l int) bool {
	return b.c.Experts > 0 && !slices.Contains(b.c.DenseLayers, l)
}

func (b *block) add(x, y graph.Value) graph.Value { return b.Op(graph.Add, graph.Attr{}, x, y) }

func (b *block) matmul(x, w graph.Value) graph.Value {
	return b.Op(graph.MatMul, graph.Attr{}, x, w)
}

func (b *block) norm(x, w graph.Value) graph.Value {
	return b.Op(graph.RMSNorm, graph.Attr{Eps: b.c.NormEps, Shift: b.c.NormShift}, x, w)
}

// layerNorm is norm by a weight [Hidden] of layer l.
func (b *block) layerNorm(l int, x graph.Value, name, hf, gguf string) graph.Value {
	return b.norm(x, b.vector(l, b.c.Hidden, name, hf+".weight", gguf+".weight"))
}

// headNorm normalizes each of heads in x [T,heads*HeadDim] by a weight [HeadDim] of layer l.
func (b *block) headNorm(l int, x graph.Value, heads int, name, hf, gguf string) graph.Value {
	w := b.vector(l, b.c.HeadDim, name, hf+".weight", gguf+".weight")
	return b.Op(graph.RMSNorm, graph.Attr{Eps: b.c.NormEps, Shift: b.c.NormShift, Heads: heads}, x, w)
}

// linear is x [R,in] times a matrix [out,in] of layer l, plus a bias [out] if there is one.
func (b *block) linear(l int, x graph.Value, out int, name, hf, gguf string, bias bool) graph.Value {
	y := b.matmul(x, b.Weight(graph.Weight{
		Name: layerName(l, name), Shape: tensor.Shape{out, b.Width(x)},
		HF: []graph.Place{{Tensor: hfLayer(l, hf+".weight")}}, GGUF: []graph.Place{{Tensor: ggufLayer(l, gguf+".weight")}},
	}))
	if bias {
		y = b.Op(graph.Bias, graph.Attr{}, y, b.vector(l, out, name+".bias", hf+".bias", gguf+".bias"))
	}
	return y
}

// vector is a weight [n] of layer l.
func (b *block) vector(l, n int, name, hf, gguf string) graph.Value {
	return b.Weight(graph.Weight{
		Name: layerName(l, name), Shape: tensor.Shape{n},
		HF: []graph.Place{{Tensor: hfLayer(l, hf)}}, GGUF: []graph.Place{{Tensor: ggufLayer(l, gguf)}},
	})
}

func layerName(l int, name string) string { return fmt.Sprintf("layers.%d.%s", l, name) }
func hfLayer(l int, name string) string   { return fmt.Sprintf("model.layers.%d.%s", l, name) }
func ggufLayer(l int, name string) string { return fmt.Sprintf("blk.%d.%s", l, name) }
