// Package arch turns a checkpoint's configuration into a graph of op data: one
// file an architecture, one map that lists them. It is pure: bytes and values
// in, a graph out. Start with ParseHF or ParseGGUF, and Build.
package arch

// Config is what the graph of a model needs to know, whatever format the
// checkpoint has. Every size has been checked to be positive and bounded.
type Config struct {
	Architecture string // key of the map of architectures: "llama"
	// Encoder: hidden states are all that the graph gives. A prompt is computed whole, in one
	// step; there is no KV cache, and no token is generated.
	Encoder      bool
	Layers       int
	Hidden       int // width of the residual stream
	FFN          int // width of the feed-forward block
	Heads        int // query heads
	KVHeads      int // key and value heads; divides Heads
	HeadDim      int
	Vocabulary   int
	MaxPositions int // the model's own context, in tokens
	Types        int // kinds of tokens that have an embedding: bert

	NormEps   float32
	NormShift float32 // is added to a norm's weights: Gemma's are stored less 1

	RopeTheta   float64
	RopePairs   RopePairs
	RopeDims    int // numbers of a head that are rotated; 0: all
	RopeScaling RopeScaling

	QKVBias, OutputBias, FFNBias bool

	AttentionScale   float64 // of the scores; 0: 1/sqrt(HeadDim)
	AttentionSoftCap float32 // 0: none
	LogitSoftCap     float32 // 0: none
	Windows          []int   // layer -> how many positions it attends to, 0: all; nil: all in every layer
	GELU             GELU

	Experts          int   // 0: every layer has one feed-forward block
	ExpertsPerToken  int   // of Experts
	ExpertFFN        int   // width of an expert
	NormalizeExperts bool  // the shares of a token's experts are divided by their sum
	DenseLayers      []int // layers that have one feed-forward block all the same, ascending

	TiedOutput bool    // the output matrix is the embedding table
	BOS        int32   // put in front of text; -1 if none
	EOS        []int32 // any of these ends a text
}

// RopePairs says which two elements of a head are rotated together.
type RopePairs uint8

const (
	// RopeHalves rotates (i, i+dim/2), as Hugging Face checkpoints are laid out.
	RopeHalves RopePairs = iota
	// RopeNeighbours rotates (2i, 2i+1), as llama GGUF files are laid out.
	RopeNeighbours
)

// GELU is the form of bert's and Gemma's activation.
type GELU uint8

const (
	// GELUErf is by the error function.
	GELUErf GELU = iota
	// GELUTanh is the approximation by a hyperbolic tangent.
	GELUTanh
)

// window of a layer: how many positions it attends to; 0: all.
func (c Config) window(layer int) int {
	if c.Windows == nil {
		return 0
	}
	return c.Windows[layer]
}
