// Package graph has a model's computation as data: values, and the ops that
// make them from weights and from each other. An architecture builds a Graph
// with a Builder; Graph.Check says whether it holds together; Plan gives every
// value its room; a backend compiles it. Nothing here computes numbers.
package graph

import (
	"fmt"

	"github.com/estiba/estiba/runtime/tensor"
)

// Sizes of the first axis of values that depend on the batch.
const (
	Tokens = -1 // one row for each token of the batch
	Wanted = -2 // one row for each row of logits that the batch asks for
)

// Kind of an op. Its shapes are beside it: T is Tokens, R is Tokens or Wanted,
// weights are marked w.
type Kind uint8

// The kinds of ops. A new op is a new kind, its shapes in infer, its kernel in
// each backend, and its case in backendtest.
const (
	invalid      Kind = iota
	Embed             // table w [V,C] -> y [T,C]: the rows of the batch's tokens
	Positions         // table w [P,C] -> y [T,C]: the rows of the tokens' positions, which are below P
	RMSNorm           // x [R,C], w [C/Heads] -> y [R,C]: each of Heads parts divided by sqrt(mean(x²)+Eps), times Shift+w
	LayerNorm         // x [R,C], w [C], bias w [C] -> y [R,C]: (x-mean) / sqrt(variance+Eps) * w + bias
	MatMul            // x [R,K], w [N,K] -> y [R,N]: x wᵀ
	Bias              // x [R,C], w [C] or [N,C] -> y [R,C]: x + w, or + row Row of w
	Rope              // x [T,Heads*HeadDim], perhaps divisors w [pairs] -> y, the same shape: rotated by each token's position
	Attention         // q [T,Heads*HeadDim], k and v [T,KVHeads*HeadDim] -> y as q: k and v go into layer Layer of the cache, q attends to all up to its own position
	Add               // x [R,C], y [R,C] -> [R,C]
	SwiGLU            // gate [R,F], up [R,F] -> silu(gate) * up [R,F]
	GeGLU             // gate [R,F], up [R,F] -> gelu(gate) * up [R,F]
	GELU              // x [R,C] -> gelu(x) [R,C]
	Scale             // x [R,C] -> Scale * x [R,C]
	SoftCap           // x [R,C] -> SoftCap * tanh(x/SoftCap) [R,C]
	Route             // scores [R,E] -> y [R,2*TopK]: the numbers of the TopK likeliest experts, ascending, then their shares
	ExpertMatMul      // x [R,K] or [R,TopK*K], route [R,2*TopK], w [N,K] of each expert -> y [R,TopK*N]: x, or its part for the expert, times each chosen expert's wᵀ
	ExpertSum         // x [R,TopK*C], route [R,2*TopK] -> y [R,C]: the sum of the parts, each times its expert's share
	Rows              // x [T,C] -> y [Wanted,C]: the rows of the tokens whose logits are asked for
	kinds
)

var names = [kinds]string{
	"invalid", "Embed", "Positions", "RMSNorm", "LayerNorm", "MatMul", "Bias", "Rope", "Attention", "Add", "SwiGLU", "GeGLU", "GELU",
	"Scale", "SoftCap", "Route", "ExpertMatMul", "ExpertSum", "Rows",
}

func (k Kind) String() string {
	if k < kinds {
		return names[k]
	}
	return fmt.Sprintf("Kind(%d)", uint8(k))
}

// Kinds is every kind there is.
func Kinds() []Kind {
	var all []Kind
	for k := invalid + 1; k < kinds; k++ {
		all = append(all, k)
	}
	return all
}

// Value is an index into Graph.Shapes. The first len(Graph.Weights) values are
// the weights, in that order.
type Value int

// None is no value: the logits of an encoder.
const None Value = -1

// Node is one op as data.
type Node struct {
	Kind Kind
	In   []Value // operands in the order of the kind's comment, weights last
	Out  Value
	Attr Attr
}

// Attr is what an op needs beside its operands; each kind reads its own fields.
type Attr struct {
	Eps   float32 // RMSNorm, LayerNorm
	Shift float32 // RMSNorm: added to the weights
	Row   int     // Bias: of a table

	Heads   int // RMSNorm: parts of a row (0 is 1); Rope, Attention: heads of the value that is rotated, or of the queries
	HeadDim int // Rope, Attention

	// Frequencies of Rope, in radians per position (by the divisors, where there are some): pair i turns by
	// position * Frequencies[i]. Numbers of a head beyond the pairs stay as they are.
	Frequencies []float32
	Amplitude   float32 // Rope: multiplies sines and cosines
	Neighbours  bool    // Rope: pairs are (2i, 2i+1); otherwise (i, i+pairs)

	Layer   int     // Attention: which layer of the cache
	KVHeads int     // Attention: divides Heads; query head h reads key head h / (Heads/KVHeads)
	Scale   float32 // Attention: scores are Scale * q·k; Scale
	SoftCap float32 // SoftCap; Attention: scores become SoftCap * tanh(score/SoftCap), unless 0
	Window  int     // Attention: q attends to the last Window positions up to its own, unless 0
	// Bidirectional attention is between all tokens of a sequence, which are in one step. Nothing goes into the cache.
	Bidirectional bool

	Tanh bool // GELU, GeGLU: the approximation by a hyperbolic tangent, otherwise by the error function

	TopK      int  // Route, ExpertMatMul, ExpertSum
	Normalize bool // Route: the shares of the chosen are divided by their sum
}

// Weight is a tensor that a checkpoint must have.
type Weight struct {
	Name  string       // ours, the same for every format: "layers.0.attention.q"
	Shape tensor.Shape // [out, in] for matrices
	HF    []Place      // where it may be in Hugging Face checkpoints; the first that is there counts
	GGUF  []Place      // where it may be in GGUF files
}

// Place is where a checkpoint has a weight: a tensor, or some of its rows.
type Place struct {
	Tensor string
	// Of is the shape of a tensor of which the weight is a part: its rows (of the last axis)
	// from Row on, as many as the weight has. Nil if the weight is the whole tensor.
	Of  tensor.Shape
	Row int
}

// Graph is a decoder, from tokens to rows of logits, or an encoder, from tokens to rows
// of the hidden state.
type Graph struct {
	Weights []Weight
	Shapes  []tensor.Shape // of each value; the first axis may be Tokens or Wanted
	Nodes   []Node         // in an order in which they can run
	Hidden  Value          // [Wanted, C]: the final-norm hidden state
	Logits  Value          // [Wanted, V]; None for an encoder
}

// IsWeight says whether v is a weight.
func (g *Graph) IsWeight(v Value) bool { return v >= 0 && int(v) < len(g.Weights) }

// Cache is what the attention ops of a graph keep: in each of Layers, for every
// position, one key and one value of Width numbers.
type Cache struct{ Layers, Width int }

// Cache of the graph.
func (g *Graph) Cache() Cache {
	var c Cache
	for _, n := range g.Nodes {
		if n.Kind == Attention && !n.Attr.Bidirectional {
			c.Layers++
			c.Width = n.Attr.KVHeads * n.Attr.HeadDim
		}
	}
	return c
}

// Encoder says whether the graph gives hidden states only. It keeps nothing in a cache:
// a sequence is computed in one step, from its start to its end.
func (g *Graph) Encoder() bool { return g.Logits == None }

// Vocabulary is the width of the logits; 0 for an encoder.
func (g *Graph) Vocabulary() int {
	if g.Encoder() {
		return 0
	}
	return g.Shapes[g.Logits][1]
}

// Width is the size of the last axis of a value.
func (g *Graph) Width(v Value) int {
	s := g.Shapes[v]
	return s[len(s)-1]
}

// Check says what is wrong with a graph: an op that reads what no op before it
// made, a shape that is not what its op makes, a weight that is named twice or
// never read, another number of Embed ops than one, layers of the cache that are not 0, 1, 2… of one width, attention that
// an encoder, or a decoder, cannot have, or results that are no rows of logits. A backend may compile whatever passes.
func (g *Graph) Check() error {
	if len(g.Shapes) < len(g.Weights) {
		return fmt.Errorf("graph: %d shapes for %d weights", len(g.Shapes), len(g.Weights))
	}
	named := map[string]bool{}
	for i, w := range g.Weights {
		if n, ok := w.Shape.Elements(); !ok || n == 0 {
			return fmt.Errorf("graph: weight %q has shape %v", w.Name, w.Shape)
		}
		if !w.Shape.Equal(g.Shapes[i]) {
			return fmt.Errorf("graph: weight %q has shape %v, its value %v", w.Name, w.Shape, g.Shapes[i])
		}
		if w.Name == "" || named[w.Name] {
			return fmt.Errorf("graph: weight name %q is empty or used twice", w.Name)
		}
		named[w.Name] = true
	}

	made := make([]bool, len(g.Shapes))
	read := make([]bool, len(g.Shapes))
	for v := range g.Weights {
		made[v] = true
	}
	var cache Cache
	embeds := 0
	for i, n := range g.Nodes {
		if n.Kind == invalid || n.Kind >= kinds {
			return fmt.Errorf("graph: node %d: %v is no op", i, n.Kind)
		}
		in := make([]tensor.Shape, len(n.In))
		for j, v := range n.In {
			if v < 0 || int(v) >= len(made) || !made[v] {
				return fmt.Errorf("graph: node %d (%v) reads value %d before it is made", i, n.Kind, v)
			}
			if weight := g.IsWeight(v); weight != (j >= activations(n.Kind)) {
				return fmt.Errorf("graph: node %d (%v): operand %d must be %s", i, n.Kind, j, map[bool]string{true: "made by an op", false: "a weight"}[weight])
			}
			in[j], read[v] = g.Shapes[v], true
		}
		out, err := infer(n.Kind, n.Attr, in)
		if err != nil {
			return fmt.Errorf("graph: node %d: %w", i, err)
		}
		if n.Out < 0 || int(n.Out) >= len(made) || made[n.Out] {
			return fmt.Errorf("graph: node %d (%v) makes value %d, which is not free", i, n.Kind, n.Out)
		}
		if !out.Equal(g.Shapes[n.Out]) {
			return fmt.Errorf("graph: node %d (%v) makes shape %v, its value has %v", i, n.Kind, out, g.Shapes[n.Out])
		}
		made[n.Out] = true
		if n.Kind == Embed {
			embeds++
		}
		if n.Kind == Attention && n.Attr.Bidirectional != g.Encoder() {
			return fmt.Errorf("graph: node %d (%v): bidirectional attention is for encoders, and theirs must be", i, n.Kind)
		}
		if n.Kind == Attention && !n.Attr.Bidirectional {
			width := n.Attr.KVHeads * n.Attr.HeadDim
			if n.Attr.Layer != cache.Layers || cache.Layers > 0 && width != cache.Width {
				return fmt.Errorf("graph: node %d (%v): layer %d of width %d, want layer %d of width %d", i, n.Kind, n.Attr.Layer, width, cache.Layers, cache.Width)
			}
			cache = Cache{cache.Layers + 1, width}
		}
	}
	if embeds != 1 {
		return fmt.Errorf("graph: %d Embed ops, want one", embeds)
	}
	for v, w := range g.Weights {
		if !read[v] {
			return fmt.Errorf("graph: weight %q is never read", w.Name)
		}
	}
	results := []Value{g.Hidden, g.Logits}
	if g.Encoder() {
		results = results[:1]
	}
	for _, v := range results {
		if v < 0 || int(v) >= len(made) || !made[v] || g.IsWeight(v) || g.Shapes[v][0] != Wanted {
			return fmt.Errorf("graph: result %d is no row for each wanted token", v)
		}
	}
	return nil
}
