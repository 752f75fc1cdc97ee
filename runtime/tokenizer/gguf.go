package tokenizer

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"
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

// listed is a vocabulary as tokenizer.model and GGUF have it.
type listed struct {
	tokens []string
	scores []float32
	types  []int32
}

// check bounds what is not normal.
func (v *listed) check() error {
	special := 0
	for id, kind := range v.types {
		if kind < typeNormal || kind > typeByte {
			return fmt.Errorf("%w: token %d is of type %d, which is unknown", ErrInvalid, id, kind)
		}
		if kind != typeNormal && kind != typeByte {
			special++
		}
	}
	if special > maxSpecials {
		return fmt.Errorf("%w: %d tokens are not normal ones; at most %d may be", ErrInvalid, special, maxSpecials)
	}
	return nil
}

// build fills in pieces, bytes and scores of a SentencePiece vocabulary.
func (v *listed) build(t *Tokenizer) (*scored, error) {
	if err := v.check(); err != nil {
		return nil, err
	}
	t.pieces = make([]piece, len(v.tokens))
	m := &scored{vocabulary: &t.vocabulary, scores: v.scores, bytes: noBytes, unknown: noID, fuseUnknown: true}
	t.model = m
	bytes := 0
	for id, text := range v.tokens {
		p := &t.pieces[id]
		*p = piece{key: text, text: strings.ReplaceAll(text, space, " "), kind: isText}
		switch v.types[id] {
		case typeUnknown:
			p.hidden = true
			m.unknown = int32(id)
		case typeControl:
			p.hidden = true
		case typeByte:
			b, ok := byteOf(text)
			if !ok {
				return nil, fmt.Errorf("%w: token %d is a byte but is written %q", ErrInvalid, id, text)
			}
			p.text, p.kind, p.byte = "", isByte, b
			if m.bytes[b] == noID {
				bytes++
			}
			m.bytes[b] = int32(id)
		default:
			if math.IsNaN(float64(v.scores[id])) {
				return nil, fmt.Errorf("%w: token %d has no number for a score", ErrInvalid, id)
			}
			if text != "" {
				t.add(int32(id))
			}
		}
		if p.text == p.key {
			p.text = p.key // once in memory
		}
	}
	if bytes != 256 && bytes != 0 {
		return nil, fmt.Errorf("%w: the vocabulary has %d of 256 bytes", ErrInvalid, bytes)
	}
	if bytes == 0 && m.unknown == noID {
		return nil, fmt.Errorf("%w: the vocabulary has neither bytes nor an unknown token", ErrInvalid)
	}
	_, hasSpace := t.find(space)
	m.cuts = hasSpace && cutsWords(func(yield func(string) bool) {
		for id, text := range v.tokens {
			if kind := v.types[id]; kind != typeControl && kind != typeUnknown && !yield(text) {
				return
			}
		}
	})
	return m, nil
}

// added gives the tokens of some types, to be cut out of texts.
func (v *listed) added(types ...int32) []addedText {
	var out []addedText
	for id, kind := range v.types {
		if slices.Contains(types, kind) {
			out = append(out, addedText{text: v.tokens[id], id: int32(id), control: kind != typeUserDefined || looksControl(v.tokens[id])})
		}
	}
	return out
}

// spaces sets how spaces are written, and whether a text gets one in front
// that decoding drops again: each part between added tokens, or only the first.
func (t *Tokenizer) spaces(front, each bool) {
	if front {
		t.normalizer = append(t.normalizer, prepend(space, !each))
		t.decoder.strip, t.decoder.stripRune = 1, ' '
	}
	t.normalizer = append(t.normalizer, replaceAll(" ", space))
}

// FromGGUF reads the tokenizer in a GGUF file's fields; without one it is nil.
// Errors name the field and wrap ErrInvalid or ErrUnsupported. Special tokens
// written in a text become those tokens.
// Source: llama.cpp's src/llama-vocab.cpp.
func FromGGUF(fields map[string]any) (*Tokenizer, error) {
	model, ok := fields[ggml+"model"]
	if !ok {
		return nil, nil
	}
	g := ggufReader{ggufFields: ggufFields{fields: fields}, t: &Tokenizer{}}
	g.tokens = list[string](&g.ggufFields, ggml+"tokens")
	if _, given := fields[ggml+"token_type"]; given {
		g.types = list[int32](&g.ggufFields, ggml+"token_type")
	} else {
		g.types = slices.Repeat([]int32{typeNormal}, len(g.tokens))
	}
	read := map[any]func() error{"llama": g.sentencePiece, "gpt2": g.byteLevel, "bert": g.wordPiece}[model]
	switch {
	case read == nil:
		return nil, refuse(ggml+"model", model)
	case g.err != nil:
		return nil, g.err
	case len(g.types) != len(g.tokens):
		return nil, fmt.Errorf("%stokens: %w: %d tokens with %d types", ggml, ErrInvalid, len(g.tokens), len(g.types))
	case len(g.tokens) > maxVocabulary:
		return nil, fmt.Errorf("%stokens: %w: more than %d", ggml, ErrInvalid, maxVocabulary)
	}
	g.steer()
	if err := read(); err != nil {
		return nil, err
	}
	return g.t, g.err
}

const ggml = "tokenizer.ggml."

// ggufReader makes a tokenizer of a file's fields.
type ggufReader struct {
	ggufFields
	listed
	t *Tokenizer
}

// steering are tokens that llama.cpp takes for control tokens whatever type they have:
// many files say that they are normal ones.
var steering = []string{
	"<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "<end_of_turn>", "<|endoftext|>", "</s>",
	"<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>", "<end_of_utterance>", "<eos>", "<｜end▁of▁sentence｜>",
}

func (g *ggufReader) steer() {
	g.types = slices.Clone(g.types)
	for id, text := range g.tokens {
		if slices.Contains(steering, text) {
			g.types[id] = typeControl
		}
	}
}

// cutOut sets the tokens that are cut out of texts.
func (g *ggufReader) cutOut() {
	all := g.added(typeControl, typeUserDefined, typeUnknown)
	name, _ := g.fields["general.name"].(string)
	name = strings.ToLower(name)
	if strings.Contains(name, "phi-3") || strings.Contains(name, "phi3") {
		for i := range all { // the files do not say so
			all[i].rstrip = !slices.Contains([]string{"<unk>", "<s>", "<|endoftext|>"}, all[i].text)
		}
	}
	g.t.raw = newAdded(all)
}

// around sets the tokens around a text.
func (g *ggufReader) around(bos, eos bool, bosID, eosID int) {
	first, last := g.id(ggml+"bos_token_id", bosID, len(g.tokens)), g.id(ggml+"eos_token_id", eosID, len(g.tokens))
	if g.flag(ggml+"add_bos_token", bos) && first >= 0 {
		g.t.front = []int32{first}
	}
	if g.flag(ggml+"add_eos_token", eos) && last >= 0 {
		g.t.back = []int32{last}
	}
}

func (g *ggufReader) sentencePiece() error {
	g.scores = list[float32](&g.ggufFields, ggml+"scores")
	front := g.flag(ggml+"add_space_prefix", true)
	trim := g.flag(ggml+"remove_extra_whitespaces", false)
	if g.err != nil {
		return g.err
	}
	if trim {
		return refuse(ggml+"remove_extra_whitespaces", true)
	}
	switch charsmap := g.fields[ggml+"precompiled_charsmap"].(type) {
	case nil:
	case []uint8:
		if len(charsmap) > 0 {
			return refuse(ggml+"precompiled_charsmap", "a map of characters")
		}
	default: // too long to be kept, as they are
		return refuse(ggml+"precompiled_charsmap", "a map of characters")
	}
	if len(g.scores) != len(g.tokens) {
		return fmt.Errorf("%stokens: %w: %d tokens with %d scores", ggml, ErrInvalid, len(g.tokens), len(g.scores))
	}
	g.scores = slices.Clone(g.scores)
	if _, err := g.build(g.t); err != nil {
		return fmt.Errorf("%stokens: %w", ggml, err)
	}
	g.cutOut()
	g.t.spaces(front, true)
	g.around(true, false, 1, 2)
	return nil
}

func (g *ggufReader) byteLevel() error {
	merges := list[string](&g.ggufFields, ggml+"merges")
	if g.err != nil {
		return g.err
	}
	name, given := g.fields[ggml+"pre"]
	if !given {
		name = "default"
	}
	pre, ok := ggufSplits[fmt.Sprint(name)]
	if !ok {
		return refuse(ggml+"pre", name)
	}
	if len(merges) > maxVocabulary {
		return fmt.Errorf("%smerges: %w: more than %d", ggml, ErrInvalid, maxVocabulary)
	}
	t := g.t
	if err := g.check(); err != nil {
		return fmt.Errorf("%stokens: %w", ggml, err)
	}
	m := &bpe{vocabulary: &t.vocabulary, pairs: newPairs(len(merges)), byteLevel: true, bytes: noBytes, unknown: noID, wholes: pre.wholes, apart: true}
	t.model = m
	t.pieces = make([]piece, len(g.tokens))
	for id, text := range g.tokens {
		p := &t.pieces[id]
		*p = piece{key: text, kind: isBytes}
		switch g.types[id] {
		case typeControl, typeUnknown:
			p.hidden = true
		case typeByte:
			return refuse(ggml+"token_type", fmt.Sprintf("token %d, a byte,", id))
		default:
			p.key, p.mapped = fromAlphabet(text)
			if p.mapped {
				t.add(int32(id))
			}
		}
		p.text = p.key
		if g.types[id] == typeUserDefined {
			p.text = text
		}
	}
	for b := range 256 {
		if id, ok := t.find(string([]byte{byte(b)})); ok {
			m.bytes[b] = id
		}
	}
	for rank, line := range merges {
		if err := g.merge(m, int32(rank), line); err != nil {
			return err
		}
	}
	for _, p := range pre.patterns {
		t.splits = append(t.splits, splitBy(findPattern(mustCompile(p)), isolated))
	}
	g.cutOut()
	g.around(pre.bos, false, 11, 11)
	return nil
}

// merge reads "a b", where a may start with a space.
func (g *ggufReader) merge(m *bpe, rank int32, line string) error {
	at := -1
	if len(line) > 1 {
		at = strings.IndexByte(line[1:], ' ') + 1
	}
	if at > 0 {
		left, okLeft := fromAlphabet(line[:at])
		right, okRight := fromAlphabet(line[at+1:])
		a, okA := m.find(left)
		b, okB := m.find(right)
		if id, ok := m.find(left + right); ok && okA && okB && okLeft && okRight {
			m.pairs.add(a, b, rank, id)
			return nil
		}
	}
	return fmt.Errorf("%smerges: %w: merge %d, %.100q, is not of tokens in the vocabulary", ggml, ErrInvalid, rank, line)
}

func (g *ggufReader) wordPiece() error {
	if err := g.check(); err != nil {
		return fmt.Errorf("%stokens: %w", ggml, err)
	}
	t := g.t
	m := &wordPiece{vocabulary: &t.vocabulary, most: math.MaxInt}
	t.model = m
	t.pieces = make([]piece, len(g.tokens))
	for id, text := range g.tokens {
		p := &t.pieces[id]
		*p = piece{key: text, text: clean(strings.ReplaceAll(text, space, " ")), kind: isText}
		switch g.types[id] {
		case typeControl, typeUnknown:
			p.text, p.hidden = " "+text, true
		default:
			m.longest = max(m.longest, len(text))
		}
		t.add(int32(id))
	}
	m.unknown = g.id(ggml+"unknown_token_id", 100, len(g.tokens))
	cls := g.id(ggml+"cls_token_id", 101, len(g.tokens))
	cls = g.id(ggml+"bos_token_id", int(cls), len(g.tokens))
	sep := g.id(ggml+"seperator_token_id", 102, len(g.tokens))
	lower := g.flag(ggml+"normalizer.lowercase", true)
	accents := g.flag(ggml+"normalizer.strip_accents", lower)
	if g.err != nil {
		return g.err
	}
	if m.unknown < 0 || cls < 0 || sep < 0 {
		return fmt.Errorf("%stokens: %w: the vocabulary lacks the tokens around a text, or the unknown one", ggml, ErrInvalid)
	}
	g.cutOut()
	t.splits = []split{ggufWords{accents, lower}.do}
	t.front, t.back = []int32{cls}, []int32{sep}
	t.decoder.first = func(file string) string {
		return strings.TrimPrefix(clean(strings.ReplaceAll(file, space, " ")), " ")
	}
	return nil
}

// ggufWords is llama.cpp's way of what BERT does to a text: character by
// character, of each only what it starts with when decomposed.
type ggufWords struct{ accents, lower bool }

func (w ggufWords) do(part string, first bool, next func(string, bool)) {
	var word strings.Builder
	end := func() {
		if word.Len() > len(space) {
			next(word.String(), first)
		}
		word.Reset()
		word.WriteString(space) // words are written with one in front
	}
	end()
	for _, r := range part {
		if w.accents && r >= utf8.RuneSelf {
			r, _ = utf8.DecodeRuneInString(norm.NFD.String(string(r)))
		}
		if unicode.IsSpace(r) {
			end()
			continue
		}
		if r == 0 || r == utf8.RuneError || unicode.In(r, unicode.Cc, unicode.Cf, unicode.Co) || w.accents && unicode.Is(unicode.M, r) {
			continue
		}
		alone := isASCIIPunctuation(r) || unicode.IsPunct(r) || isIdeograph(r)
		if alone {
			end()
		}
		if w.lower {
			r = unicode.ToLower(r)
		}
		if word.WriteRune(r); alone {
			end()
		}
	}
	end()
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

// id reads a token's id; noID if there is none and otherwise is not in the vocabulary.
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
