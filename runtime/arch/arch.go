package arch

import (
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/estiba/estiba/runtime/graph"
)

var (
	// ErrInvalid marks a configuration that makes no sense; the error names the field.
	ErrInvalid = errors.New("invalid configuration")
	// ErrUnsupported marks a configuration that makes sense but would be computed
	// wrongly here; the error names the field.
	ErrUnsupported = errors.New("unsupported")
)

// architecture is one family of models.
type architecture struct {
	hfClass string // in config.json: architectures
	hfType  string // in config.json: model_type
	gguf    string // in GGUF: general.architecture
	build   func(Config) (*graph.Graph, error)
}

// architectures lists all there are, by Config.Architecture.
var architectures = map[string]architecture{
	"llama": {hfClass: "LlamaForCausalLM", hfType: "llama", gguf: "llama", build: llama},
}

// Build makes the graph of a configuration.
func Build(c Config) (*graph.Graph, error) {
	a, ok := architectures[c.Architecture]
	if !ok {
		return nil, fmt.Errorf("architecture %q: %w", c.Architecture, ErrUnsupported)
	}
	if err := c.check(Config.fieldName); err != nil {
		return nil, err
	}
	return a.build(c)
}

// KVBytesPerToken is what one position of one sequence takes in the KV cache:
// a key and a value, float32, in every layer.
func KVBytesPerToken(c Config) int64 {
	return 2 * 4 * int64(c.Layers) * int64(c.KVHeads) * int64(c.HeadDim)
}

// WorkspaceBytes is what a program of this configuration needs beside weights and
// KV cache for steps of up to maxTokens tokens and maxRows rows of logits: its
// activations, the angles of the rotary embedding, and the logits. It is 0 for a
// configuration that Build refuses.
func WorkspaceBytes(c Config, maxTokens, maxRows int) int64 {
	g, err := Build(c)
	if err != nil {
		return 0
	}
	return g.WorkspaceBytes(maxTokens, maxRows)
}

// HostBytes is about what a loaded model takes beside what its program holds: its
// tokenizer, and names and places of its weights. A token has some 170 bytes with
// the merges that make it, or 100 without, a layer some 9 KiB.
func HostBytes(c Config) int64 {
	const token, layer = 256, 12 << 10
	return token*int64(c.Vocabulary) + layer*int64(c.Layers)
}

// The largest sizes that are believed. A model of a terabyte fits well below
// each; products of them stay within 63 bits.
const (
	maxLayers     = 1 << 12
	maxHidden     = 1 << 20
	maxFFN        = 1 << 22
	maxHeads      = 1 << 14
	maxHeadDim    = 1 << 14
	maxHeadsWidth = 1 << 21 // heads * head dim
	maxVocabulary = 1 << 24
	maxPositions  = 1 << 30
)

// field is a part of a Config that a format has under a name of its own.
type field int

const (
	fieldLayers field = iota
	fieldHidden
	fieldFFN
	fieldHeads
	fieldKVHeads
	fieldHeadDim
	fieldVocabulary
	fieldMaxPositions
	fieldNormEps
	fieldRopeTheta
	fieldBOS
	fieldEOS
)

func (Config) fieldName(f field) string {
	return [...]string{"Layers", "Hidden", "FFN", "Heads", "KVHeads", "HeadDim", "Vocabulary", "MaxPositions", "NormEps", "RopeTheta", "BOS", "EOS"}[f]
}

// check says which field makes no sense, under the name that name gives it.
func (c Config) check(name func(Config, field) string) error {
	wrong := func(f field, format string, args ...any) error {
		return fmt.Errorf("%s %s: %w", name(c, f), fmt.Sprintf(format, args...), ErrInvalid)
	}
	for _, size := range []struct {
		f      field
		n, max int
	}{
		{fieldLayers, c.Layers, maxLayers},
		{fieldHidden, c.Hidden, maxHidden},
		{fieldFFN, c.FFN, maxFFN},
		{fieldHeads, c.Heads, maxHeads},
		{fieldKVHeads, c.KVHeads, maxHeads},
		{fieldHeadDim, c.HeadDim, maxHeadDim},
		{fieldVocabulary, c.Vocabulary, maxVocabulary},
		{fieldMaxPositions, c.MaxPositions, maxPositions},
	} {
		if size.n < 1 || size.n > size.max {
			return wrong(size.f, "is %d, not within 1 and %d", size.n, size.max)
		}
	}
	switch {
	case c.Heads%c.KVHeads != 0:
		return wrong(fieldKVHeads, "is %d, which does not divide the %d query heads", c.KVHeads, c.Heads)
	case c.HeadDim%2 != 0:
		return wrong(fieldHeadDim, "is %d: rotary position embedding needs an even size", c.HeadDim)
	case c.Heads*c.HeadDim > maxHeadsWidth:
		return wrong(fieldHeads, "is %d of %d numbers each: more than %d together", c.Heads, c.HeadDim, maxHeadsWidth)
	case !(c.NormEps > 0 && c.NormEps < 1):
		return wrong(fieldNormEps, "is %v, not between 0 and 1", c.NormEps)
	case !(c.RopeTheta >= 1 && c.RopeTheta <= math.MaxFloat32):
		return wrong(fieldRopeTheta, "is %v, not a number of at least 1", c.RopeTheta)
	case c.BOS < -1 || int(c.BOS) >= c.Vocabulary:
		return wrong(fieldBOS, "is %d, which is not in the vocabulary of %d", c.BOS, c.Vocabulary)
	}
	if i := slices.IndexFunc(c.EOS, func(id int32) bool { return id < 0 || int(id) >= c.Vocabulary }); i >= 0 {
		return wrong(fieldEOS, "is %d, which is not in the vocabulary of %d", c.EOS[i], c.Vocabulary)
	}
	return nil
}
