// Package arch turns a checkpoint's configuration into a graph of op data: one
// file an architecture, one map that lists them. It is pure: bytes and values
// in, a graph out.
package arch

// Config is what the graph of a decoder needs to know, whatever format the
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
	NormEps      float32
	RopeTheta    float64
	RopePairs    RopePairs
	TiedOutput   bool    // the output matrix is the embedding table
	BOS          int32   // put in front of text; -1 if none
	EOS          []int32 // any of these ends a text
}

// RopePairs says which two elements of a head are rotated together.
type RopePairs uint8

const (
	// RopeHalves rotates (i, i+dim/2), as Hugging Face checkpoints are laid out.
	RopeHalves RopePairs = iota
	// RopeNeighbours rotates (2i, 2i+1), as llama GGUF files are laid out.
	RopeNeighbours
)
