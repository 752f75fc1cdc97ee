package arch

import (
	"fmt"
	"math"

	"github.com/estiba/estiba/runtime/graph"
	"github.com/estiba/estiba/runtime/tensor"
)

// bert is the encoder of arXiv:1810.04805: learned positions, attention in both directions, norms
// (LayerNorm) after each block, GELU. Tokens are of the first type.
//
//	x = norm(embed(tokens) + embed(positions) + embed(types))
//	for each layer:
//	    x = norm(x + Wo attention(Wq x, Wk x, Wv x))
//	    x = norm(x + W2 gelu(W1 x))
func bert(c Config) (*graph.Graph, error) {
	b := &encoder{block{c: c}}
	x := b.Op(graph.Embed, graph.Attr{}, b.table(c.Vocabulary, "embedding", "word_embeddings", "token_embd"))
	x = b.add(x, b.Op(graph.Positions, graph.Attr{}, b.table(c.MaxPositions, "positions", "position_embeddings", "position_embd")))
	x = b.Op(graph.Bias, graph.Attr{Row: 0}, x, b.table(c.Types, "types", "token_type_embeddings", "token_types"))
	x = b.normalize(x, "norm", "embeddings.LayerNorm", "token_embd_norm")
	for l := range c.Layers {
		at := func(hf string) string { return fmt.Sprintf("encoder.layer.%d.%s", l, hf) }
		q := b.affine(x, c.Hidden, layerName(l, "attention.q"), at("attention.self.query"), ggufLayer(l, "attn_q"))
		k := b.affine(x, c.Hidden, layerName(l, "attention.k"), at("attention.self.key"), ggufLayer(l, "attn_k"))
		v := b.affine(x, c.Hidden, layerName(l, "attention.v"), at("attention.self.value"), ggufLayer(l, "attn_v"))
		y := b.Op(graph.Attention, graph.Attr{
			Heads: c.Heads, KVHeads: c.Heads, HeadDim: c.HeadDim, Scale: float32(1 / math.Sqrt(float64(c.HeadDim))), Bidirectional: true,
		}, q, k, v)
		y = b.affine(y, c.Hidden, layerName(l, "attention.output"), at("attention.output.dense"), ggufLayer(l, "attn_output"))
		x = b.normalize(b.add(x, y), layerName(l, "attention.norm"), at("attention.output.LayerNorm"), ggufLayer(l, "attn_output_norm"))
		y = b.affine(x, c.FFN, layerName(l, "ffn.up"), at("intermediate.dense"), ggufLayer(l, "ffn_up"))
		y = b.Op(graph.GELU, graph.Attr{Tanh: c.GELU == GELUTanh}, y)
		y = b.affine(y, c.Hidden, layerName(l, "ffn.down"), at("output.dense"), ggufLayer(l, "ffn_down"))
		x = b.normalize(b.add(x, y), layerName(l, "ffn.norm"), at("output.LayerNorm"), ggufLayer(l, "layer_output_norm"))
	}
	return b.Graph(b.Op(graph.Rows, graph.Attr{}, x), graph.None)
}

// encoder builds bert's parts, which are named unlike decoders'.
type encoder struct{ block }

// weight has its Hugging Face name with and without the prefix of models that have more than the encoder.
func (b *encoder) weight(s tensor.Shape, name, hf, gguf string, old ...string) graph.Value {
	var places []graph.Place
	for _, n := range append([]string{hf}, old...) {
		places = append(places, graph.Place{Tensor: n}, graph.Place{Tensor: "bert." + n})
	}
	return b.Weight(graph.Weight{Name: name, Shape: s, HF: places, GGUF: []graph.Place{{Tensor: gguf}}})
}

// table of embeddings [rows,Hidden].
func (b *encoder) table(rows int, name, hf, gguf string) graph.Value {
	return b.weight(tensor.Shape{rows, b.c.Hidden}, name, "embeddings."+hf+".weight", gguf+".weight")
}

// affine is x [T,in] times a matrix [out,in], plus a bias.
func (b *encoder) affine(x graph.Value, out int, name, hf, gguf string) graph.Value {
	y := b.matmul(x, b.weight(tensor.Shape{out, b.Width(x)}, name, hf+".weight", gguf+".weight"))
	return b.Op(graph.Bias, graph.Attr{}, y, b.weight(tensor.Shape{out}, name+".bias", hf+".bias", gguf+".bias"))
}

// normalize is LayerNorm; its weights were once named gamma and beta.
func (b *encoder) normalize(x graph.Value, name, hf, gguf string) graph.Value {
	s := tensor.Shape{b.c.Hidden}
	return b.Op(graph.LayerNorm, graph.Attr{Eps: b.c.NormEps}, x,
		b.weight(s, name, hf+".weight", gguf+".weight", hf+".gamma"), b.weight(s, name+".bias", hf+".bias", gguf+".bias", hf+".beta"))
}

func bertHF(f *fields, c *Config) {
	c.Encoder = true
	f.activation(c, "hidden_act")
	f.sizes(c, "layer_norm_eps")
	f.headDim(c)
	c.KVHeads = c.Heads
	f.optionalSize("type_vocab_size", &c.Types)
	kind := "absolute"
	if f.decode("position_embedding_type", "a name", &kind); kind != "absolute" {
		f.fail("position_embedding_type", unsupported("is %q", kind))
	}
	for _, name := range []string{"is_decoder", "add_cross_attention"} {
		on := false
		if f.boolean(name, &on); on {
			f.fail(name, unsupported("is true"))
		}
	}
	f.know("tie_word_embeddings") // the table is used once
	c.TiedOutput = true
}

func bertGGUF(p *pairs, c *Config) {
	c.Encoder, c.TiedOutput = true, true
	p.sizes(c, ".attention.layer_norm_epsilon")
	p.headDim(c)
	c.KVHeads = c.Heads
	c.Types = 2
	p.optionalSize("tokenizer.ggml.token_type_count", &c.Types)
	causal := false
	if p.boolean(".attention.causal", &causal); causal {
		p.fail(".attention.causal", unsupported("is true"))
	}
	p.know(".pooling_type") // who asks for an embedding says how it is pooled
}
