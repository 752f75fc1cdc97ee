package tokenizer

import (
	"fmt"
	"math"
	"slices"
	"strings"
)

// Types of pieces, by the numbers that SentencePiece and GGUF share.
const (
	typeNormal      = 1
	typeUnknown     = 2
	typeControl     = 3
	typeUserDefined = 4
	typeUnused      = 5
	typeByte        = 6
)

// vocabulary is what tokenizer.model and GGUF have in common.
type vocabulary struct {
	tokens []string
	scores []float32
	types  []int32
}

// build fills in pieces, bytes and scores.
func (v vocabulary) build(t *Tokenizer) error {
	t.pieces = make([]piece, len(v.tokens))
	t.bytes, t.unknown, t.fuseUnknown = noBytes, noID, true
	t.merges.scored = make(map[string]scoredPiece, len(v.tokens))
	bytes, special := 0, 0
	for id, text := range v.tokens {
		if v.types[id] != typeNormal && v.types[id] != typeByte {
			special++
		}
		p := piece{text: strings.ReplaceAll(text, space, " "), kind: isText}
		switch v.types[id] {
		case typeUnknown:
			p.hidden = true
			t.unknown = int32(id)
		case typeControl:
			p.hidden = true
		case typeByte:
			b, ok := byteOf(text)
			if !ok {
				return fmt.Errorf("%w: token %d is a byte but is written %q", ErrInvalid, id, text)
			}
			p = piece{kind: isByte, byte: b}
			if t.bytes[b] == noID {
				bytes++
			}
			t.bytes[b] = int32(id)
		case typeNormal, typeUserDefined, typeUnused:
			if math.IsNaN(float64(v.scores[id])) {
				return fmt.Errorf("%w: token %d has no number for a score", ErrInvalid, id)
			}
			if text != "" {
				t.merges.scored[text] = scoredPiece{v.scores[id], int32(id)}
			}
		default:
			return fmt.Errorf("%w: token %d is of type %d, which is unknown", ErrInvalid, id, v.types[id])
		}
		t.pieces[id] = p
	}
	if special > maxSpecials {
		return fmt.Errorf("%w: %d tokens are not normal ones; at most %d may be", ErrInvalid, special, maxSpecials)
	}
	if bytes != 256 && bytes != 0 {
		return fmt.Errorf("%w: the vocabulary has %d of 256 bytes", ErrInvalid, bytes)
	}
	if bytes == 0 && t.unknown == noID {
		return fmt.Errorf("%w: the vocabulary has neither bytes nor an unknown token", ErrInvalid)
	}
	return nil
}

// specials gives the tokens of some types, to be cut out of texts.
func (v vocabulary) specials(types ...int32) []special {
	var s []special
	for id, kind := range v.types {
		if slices.Contains(types, kind) {
			s = append(s, special{text: v.tokens[id], id: int32(id)})
		}
	}
	return s
}

// FromGGUF reads the tokenizer in a GGUF file's fields; without one it is nil.
// Errors name the field and wrap ErrInvalid or ErrUnsupported. Special tokens
// written in a text become those tokens, and each part between them gets a space in front.
// Source: llama.cpp's src/llama-vocab.cpp.
func FromGGUF(fields map[string]any) (*Tokenizer, error) {
	const prefix = "tokenizer.ggml."
	model, ok := fields[prefix+"model"]
	if !ok {
		return nil, nil
	}
	if model != "llama" {
		return nil, refuse(prefix+"model", model)
	}
	g := ggufFields{fields: fields}
	var v vocabulary
	v.tokens = list[string](&g, prefix+"tokens")
	v.scores = list[float32](&g, prefix+"scores")
	v.types = list[int32](&g, prefix+"token_type")
	space := g.flag(prefix+"add_space_prefix", true)
	trim := g.flag(prefix+"remove_extra_whitespaces", false)
	addBOS, addEOS := g.flag(prefix+"add_bos_token", true), g.flag(prefix+"add_eos_token", false)
	bos, eos := g.id(prefix+"bos_token_id", 1, len(v.tokens)), g.id(prefix+"eos_token_id", 2, len(v.tokens))
	if g.err != nil {
		return nil, g.err
	}
	if trim {
		return nil, refuse(prefix+"remove_extra_whitespaces", true)
	}
	switch charsmap := fields[prefix+"precompiled_charsmap"].(type) {
	case nil:
	case []uint8:
		if len(charsmap) > 0 {
			return nil, refuse(prefix+"precompiled_charsmap", "a map of characters")
		}
	default: // too long to be kept, as they are
		return nil, refuse(prefix+"precompiled_charsmap", "a map of characters")
	}
	if len(v.scores) != len(v.tokens) || len(v.types) != len(v.tokens) {
		return nil, fmt.Errorf("%stokens: %w: %d tokens with %d scores and %d types", prefix, ErrInvalid, len(v.tokens), len(v.scores), len(v.types))
	}
	t := &Tokenizer{}
	if err := v.build(t); err != nil {
		return nil, fmt.Errorf("%stokens: %w", prefix, err)
	}
	t.rawSpecial = newSplitter(v.specials(typeControl, typeUserDefined, typeUnknown))
	t.spaces(space)
	if addBOS && bos >= 0 {
		t.front = []int32{bos}
	}
	if addEOS && eos >= 0 {
		t.back = []int32{eos}
	}
	return t, nil
}

// spaces sets how spaces are written, and whether a text gets one in front
// that decoding drops again.
func (t *Tokenizer) spaces(front bool) {
	if front {
		t.steps = append(t.steps, step{prepend: space})
		t.strip = 1
	}
	t.steps = append(t.steps, step{old: " ", new: space})
}

// ggufFields reads fields of known types; the first error stays.
type ggufFields struct {
	fields map[string]any
	err    error
}

func (g *ggufFields) fail(name, want string) {
	if g.err == nil {
		g.err = fmt.Errorf("%s: %w: it is missing or no %s", name, ErrInvalid, want)
	}
}

func list[T any](g *ggufFields, name string) []T {
	l, ok := g.fields[name].([]T)
	if !ok {
		g.fail(name, fmt.Sprintf("list of %T", *new(T)))
	}
	return l
}

func (g *ggufFields) flag(name string, otherwise bool) bool {
	v, ok := g.fields[name]
	if !ok {
		return otherwise
	}
	b, ok := v.(bool)
	if !ok {
		g.fail(name, "bool")
	}
	return b
}

// id reads a token's id; -1 if there is none and otherwise is not in the vocabulary.
func (g *ggufFields) id(name string, otherwise, size int) int32 {
	v, ok := g.fields[name]
	if !ok {
		if otherwise < size {
			return int32(otherwise)
		}
		return noID
	}
	id, ok := v.(uint32)
	if !ok || int64(id) >= int64(size) {
		g.fail(name, "id of a token in the vocabulary")
		return noID
	}
	return int32(id)
}
