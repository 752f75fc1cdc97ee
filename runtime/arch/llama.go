package arch

import (
	"fmt"
	"math"

	"github.com/estiba/estiba/runtime/graph"
	"github.com/estiba/estiba/runtime/tensor"
)

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
	embedding := b.Weight("embedding", tensor.Shape{c.Vocabulary, c.Hidden}, "model.embed_tokens.weight", "token_embd.weight")

	x := b.Op(graph.Embed, graph.Attr{}, embedding)
	for l := range c.Layers {
		h := b.norm(x, b.vector(l, "attention.norm", "input_layernorm", "attn_norm"))
		x = b.Op(graph.Add, graph.Attr{}, x, b.attention(l, h))
		h = b.norm(x, b.vector(l, "ffn.norm", "post_attention_layernorm", "ffn_norm"))
		x = b.Op(graph.Add, graph.Attr{}, x, b.feedForward(l, h))
	}
	x = b.Op(graph.Rows, graph.Attr{}, x)
	hidden := b.norm(x, b.Weight("norm", tensor.Shape{c.Hidden}, "model.norm.weight", "output_norm.weight"))

	output := embedding
	if !c.TiedOutput {
		output = b.Weight("output", tensor.Shape{c.Vocabulary, c.Hidden}, "lm_head.weight", "output.weight")
	}
	return b.Graph(hidden, b.matmul(hidden, output))
}

// block builds the parts of a decoder's layer.
type block struct {
	graph.Builder
	c Config
}

// attention of layer l: h [T,Hidden] -> [T,Hidden].
func (b *block) attention(l int, h graph.Value) graph.Value {
	c := b.c
	q := b.matmul(h, b.matrix(l, c.Heads*c.HeadDim, c.Hidden, "attention.q", "self_attn.q_proj", "attn_q"))
	k := b.matmul(h, b.matrix(l, c.KVHeads*c.HeadDim, c.Hidden, "attention.k", "self_attn.k_proj", "attn_k"))
	v := b.matmul(h, b.matrix(l, c.KVHeads*c.HeadDim, c.Hidden, "attention.v", "self_attn.v_proj", "attn_v"))
	y := b.Op(graph.Attention, graph.Attr{
		Layer: l, Heads: c.Heads, KVHeads: c.KVHeads, HeadDim: c.HeadDim,
		Scale: float32(1 / math.Sqrt(float64(c.HeadDim))),
	}, b.rope(q, c.Heads), b.rope(k, c.KVHeads), v)
	return b.matmul(y, b.matrix(l, c.Hidden, c.Heads*c.HeadDim, "attention.output", "self_attn.o_proj", "attn_output"))
}

// feedForward of layer l: h [T,Hidden] -> [T,Hidden].
func (b *block) feedForward(l int, h graph.Value) graph.Value {
	c := b.c
	gate := b.matmul(h, b.matrix(l, c.FFN, c.Hidden, "ffn.gate", "mlp.gate_proj", "ffn_gate"))
	up := b.matmul(h, b.matrix(l, c.FFN, c.Hidden, "ffn.up", "mlp.up_proj", "ffn_up"))
	y := b.Op(graph.SwiGLU, graph.Attr{}, gate, up)
	return b.matmul(y, b.matrix(l, c.Hidden, c.FFN, "ffn.down", "mlp.down_proj", "ffn_down"))
}

func (b *block) matmul(x, w graph.Value) graph.Value {
	return b.Op(graph.MatMul, graph.Attr{}, x, w)
}

func (b *block) norm(x, w graph.Value) graph.Value {
	return b.Op(graph.RMSNorm, graph.Attr{Eps: b.c.NormEps}, x, w)
}

func (b *block) rope(x graph.Value, heads int) graph.Value {
	return b.Op(graph.Rope, graph.Attr{
		Heads: heads, HeadDim: b.c.HeadDim,
		Theta: b.c.RopeTheta, Neighbours: b.c.RopePairs == RopeNeighbours,
	}, x)
}

// matrix is a weight [out, in] of layer l.
func (b *block) matrix(l, out, in int, name, hf, gguf string) graph.Value {
	return b.layerWeight(l, tensor.Shape{out, in}, name, hf, gguf)
}

// vector is a weight [Hidden] of layer l.
func (b *block) vector(l int, name, hf, gguf string) graph.Value {
	return b.layerWeight(l, tensor.Shape{b.c.Hidden}, name, hf, gguf)
}

func (b *block) layerWeight(l int, s tensor.Shape, name, hf, gguf string) graph.Value {
	return b.Weight(
		fmt.Sprintf("layers.%d.%s", l, name), s,
		fmt.Sprintf("model.layers.%d.%s.weight", l, hf),
		fmt.Sprintf("blk.%d.%s.weight", l, gguf))
}
