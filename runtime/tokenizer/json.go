package tokenizer

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"strconv"
	"strings"

	"github.com/estiba/estiba/runtime/weights"
)

// file is a tokenizer.json. Parts of many kinds are raw until their type is known.
type file struct {
	AddedTokens   addedTokens `json:"added_tokens"`
	Normalizer    part        `json:"normalizer"`
	PreTokenizer  part        `json:"pre_tokenizer"`
	PostProcessor part        `json:"post_processor"`
	Decoder       part        `json:"decoder"`
	Model         *jsonModel  `json:"model"`
}

// part is a small one; what it says may take some times its bytes.
type part json.RawMessage

func (p *part) UnmarshalJSON(text []byte) error {
	const most = 1 << 20
	if len(text) > most {
		return fmt.Errorf("a part of %d bytes, where at most %d are read", len(text), most)
	}
	*p = bytes.Clone(text)
	return nil
}

type addedToken struct {
	ID         int64  `json:"id"`
	Content    string `json:"content"`
	SingleWord bool   `json:"single_word"`
	LStrip     bool   `json:"lstrip"`
	RStrip     bool   `json:"rstrip"`
	Normalized bool   `json:"normalized"`
	Special    bool   `json:"special"`
}

type addedTokens []addedToken

func (a *addedTokens) UnmarshalJSON(text []byte) error {
	return eachElement(text, func(s *scanner) error {
		var one addedToken
		if err := json.Unmarshal(s.raw(), &one); err != nil {
			return err
		}
		if len(*a) == maxSpecials {
			return fmt.Errorf("added_tokens: more than %d", maxSpecials)
		}
		*a = append(*a, one)
		return nil
	})
}

// jsonModel is the model of a tokenizer.json. Its vocabulary and merges are read where
// they stand, so that the text is not in memory twice and a pair of tokens is
// never more than numbers; what is wrong with them is told when it is their turn.
type jsonModel struct {
	modelHead
	vocab map[string]int32
	pairs pairs
	wrong error // with merges
}

type modelHead struct {
	Type         string   `json:"type"`
	Dropout      *float64 `json:"dropout"`
	UnkToken     *string  `json:"unk_token"`
	Prefix       string   `json:"continuing_subword_prefix"`
	Suffix       string   `json:"end_of_word_suffix"`
	FuseUnk      bool     `json:"fuse_unk"`
	ByteFallback bool     `json:"byte_fallback"`
	IgnoreMerges bool     `json:"ignore_merges"`
	MaxChars     *int     `json:"max_input_chars_per_word"`
}

func (m *jsonModel) UnmarshalJSON(text []byte) error {
	if bytes.Equal(text, []byte("null")) {
		return nil
	}
	var vocab, merges []byte
	head := []byte{'{'} // all else, which is small
	err := eachMember(text, func(name string, s *scanner) error {
		switch value := s.raw(); name {
		case "vocab":
			vocab = value
		case "merges":
			merges = value
		default:
			if len(head) > 1 {
				head = append(head, ',')
			}
			quoted, err := json.Marshal(name)
			if err != nil {
				return err
			}
			head = append(append(append(head, quoted...), ':'), value...)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("model: %w", err)
	}
	if err := json.Unmarshal(append(head, '}'), &m.modelHead); err != nil {
		return err
	}
	if m.Type == "" && vocab != nil && merges != nil { // old files do not say
		m.Type = "BPE"
	}
	if m.Type != "BPE" && m.Type != "WordPiece" {
		return nil // refused when it is its turn
	}
	if err := m.readVocab(vocab); err != nil {
		return fmt.Errorf("model.vocab: %w", err)
	}
	if m.Type == "BPE" && merges != nil {
		m.wrong = m.readMerges(merges)
	}
	return nil
}

// readVocab reads tokens and ids. Whether the ids make sense is seen later.
func (m *jsonModel) readVocab(text []byte) error {
	m.vocab = make(map[string]int32, min(len(text)/16, maxVocabulary))
	if text == nil {
		return nil
	}
	return eachMember(text, func(token string, s *scanner) error {
		raw := s.raw()
		id, err := strconv.ParseInt(string(raw), 10, 32)
		if err != nil {
			return fmt.Errorf("%.100q has id %.100s", token, raw)
		}
		if _, twice := m.vocab[token]; twice {
			return fmt.Errorf("%.100q is there twice", token)
		}
		if len(m.vocab) == maxVocabulary {
			return fmt.Errorf("more than %d tokens", maxVocabulary)
		}
		m.vocab[token] = int32(id)
		return nil
	})
}

// readMerges reads pairs in the order of their ranks.
func (m *jsonModel) readMerges(text []byte) error {
	m.pairs = newPairs(len(m.vocab))
	var joined []byte
	rank := int32(0)
	return eachElement(text, func(s *scanner) error {
		left, right, err := mergePair(s)
		if err != nil {
			return err
		}
		a, okA := m.vocab[left]
		b, okB := m.vocab[right]
		joined = append(append(joined[:0], left...), strings.TrimPrefix(right, m.Prefix)...)
		id, ok := m.vocab[string(joined)]
		if !okA || !okB || !ok {
			return fmt.Errorf("merge %d, of %.100q and %.100q, is not of tokens in the vocabulary", rank, left, right)
		}
		if rank == maxVocabulary {
			return fmt.Errorf("more than %d", maxVocabulary)
		}
		m.pairs.add(a, b, rank, id)
		rank++
		return nil
	})
}

// mergePair reads "a b" or, as newer versions write it, ["a", "b"].
func mergePair(s *scanner) (left, right string, err error) {
	if s.next() != '[' {
		line, err := s.string()
		if err != nil {
			return "", "", errors.New("a merge that is no text")
		}
		left, right, ok := strings.Cut(line, " ")
		if !ok || strings.Contains(right, " ") {
			return "", "", fmt.Errorf("a merge of %d parts", 1+strings.Count(line, " "))
		}
		return left, right, nil
	}
	var parts [2]string
	n := 0
	err = eachElement(s.raw(), func(s *scanner) error {
		text, err := s.string()
		if err != nil || n == 2 {
			return errors.New("a merge that is not of two texts")
		}
		parts[n] = text
		n++
		return nil
	})
	if err == nil && n < 2 {
		err = errors.New("a merge that is not of two texts")
	}
	return parts[0], parts[1], err
}

// ParseJSON reads a tokenizer.json, Hugging Face's format. Errors name the
// field and wrap ErrInvalid or ErrUnsupported. Truncation and padding, which some
// files ask for, are not applied.
func ParseJSON(text []byte) (*Tokenizer, error) {
	var f file
	if err := json.Unmarshal(text, &f); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, weights.JSONError(err))
	}
	return f.tokenizer()
}

func (f *file) tokenizer() (*Tokenizer, error) {
	r := &jsonReader{t: &Tokenizer{}}
	for _, part := range []struct {
		name string
		read func() error
	}{
		{"normalizer", func() error { return r.normalizer(f.Normalizer) }},
		{"pre_tokenizer", func() error { return r.preTokenizer(f.PreTokenizer) }},
		{"decoder", func() error { return r.decoder(f.Decoder) }},
		{"model", func() error { return r.model(f.Model, f.AddedTokens) }},
		{"post_processor", func() error { return r.postProcessor(f.PostProcessor) }},
	} {
		if err := part.read(); err != nil {
			return nil, fmt.Errorf("%s%w", part.name, err)
		}
	}
	return r.t, nil
}

// jsonReader makes a tokenizer of a file's parts.
type jsonReader struct {
	t *Tokenizer
	bounds
	byteLevel bool   // parts come in GPT-2's alphabet
	join      joined // how tokens become text
}

// given says whether an optional part is there.
func given(raw []byte) bool {
	return len(raw) > 0 && !bytes.Equal(raw, []byte("null"))
}

// refuse says that a field has a value which this version would apply wrongly.
func refuse(field string, value any) error {
	return fmt.Errorf("%s: %w: %v cannot be applied by this version", field, ErrUnsupported, value)
}

// Parts' own errors start with ".field: " or ": ", and ParseJSON puts the part's name in front.

func decode(raw []byte, into any) error {
	if err := json.Unmarshal(raw, into); err != nil {
		return fmt.Errorf(": %w: %w", ErrInvalid, weights.JSONError(err))
	}
	return nil
}

func (r *jsonReader) model(m *jsonModel, tokens []addedToken) error {
	switch {
	case m == nil:
		return fmt.Errorf(": %w: it is missing", ErrInvalid)
	case m.Type == "WordPiece":
		return r.wordPiece(m, tokens)
	case m.Type != "BPE":
		return refuse(".type", m.Type)
	case m.Dropout != nil && *m.Dropout != 0:
		return refuse(".dropout", *m.Dropout)
	case len(m.Prefix) > maxAffix:
		return refuse(".continuing_subword_prefix", "one of that length")
	case len(m.Suffix) > maxAffix:
		return refuse(".end_of_word_suffix", "one of that length")
	}
	bytes := r.byteLevel && m.Prefix == "" && m.Suffix == "" && !m.ByteFallback
	if r.byteLevel && !bytes && !r.mapped {
		r.t.splits = append(r.t.splits, intoAlphabet)
	} else if bytes && r.mapped {
		r.t.splits = append(r.t.splits, outOfAlphabet)
	}
	if err := r.pieces(m, tokens, bytes); err != nil {
		return err
	}
	out := &bpe{
		vocabulary: &r.t.vocabulary, pairs: m.pairs, byteLevel: bytes, bytes: noBytes, unknown: noID,
		fuseUnknown: m.FuseUnk, wholes: m.IgnoreMerges, prefix: m.Prefix, suffix: m.Suffix,
	}
	r.t.model = out
	if m.UnkToken != nil && *m.UnkToken != "" {
		id, ok := m.vocab[*m.UnkToken]
		if !ok {
			return fmt.Errorf(".unk_token: %w: %q is not in the vocabulary", ErrInvalid, *m.UnkToken)
		}
		out.unknown = id
	}
	for b := range 256 {
		switch {
		case bytes:
			if id, ok := out.find(string([]byte{byte(b)})); ok {
				out.bytes[b] = id
			}
		case m.ByteFallback:
			id, ok := m.vocab[bytePiece(byte(b))]
			if !ok {
				return fmt.Errorf(".byte_fallback: %w: the vocabulary lacks %s", ErrUnsupported, bytePiece(byte(b)))
			}
			out.bytes[b] = id
		}
	}
	if m.wrong != nil {
		return fmt.Errorf(".merges: %w: %w", ErrInvalid, m.wrong)
	}
	_, hasSpace := m.vocab[space]
	out.cuts = !bytes && !out.wholes && m.Prefix == "" && m.Suffix == "" && hasSpace && cutsWords(maps.Keys(m.vocab))
	return nil
}

// maxAffix bounds what is written around characters, in bytes.
const maxAffix = 64

func (r *jsonReader) wordPiece(m *jsonModel, tokens []addedToken) error {
	if r.byteLevel && !r.mapped {
		r.t.splits = append(r.t.splits, intoAlphabet)
	}
	if err := r.pieces(m, tokens, false); err != nil {
		return err
	}
	if len(m.Prefix) > maxAffix {
		return refuse(".continuing_subword_prefix", "one of that length")
	}
	out := &wordPiece{vocabulary: &r.t.vocabulary, prefix: cmp.Or(m.Prefix, "##"), most: 100}
	r.t.model = out
	if m.MaxChars != nil {
		const most = 1 << 10 // trying all ends of a word takes time
		if *m.MaxChars < 0 || *m.MaxChars > most {
			return refuse(".max_input_chars_per_word", *m.MaxChars)
		}
		out.most = *m.MaxChars
	}
	unknown := "[UNK]"
	if m.UnkToken != nil {
		unknown = *m.UnkToken
	}
	var ok bool
	if out.unknown, ok = m.vocab[unknown]; !ok {
		return fmt.Errorf(".unk_token: %w: %q is not in the vocabulary", ErrInvalid, unknown)
	}
	for key := range m.vocab {
		out.longest = max(out.longest, len(key))
	}
	return nil
}

// pieces fills in what ids stand for, and the added tokens. With bytes, keys are the
// bytes that tokens are written for.
func (r *jsonReader) pieces(m *jsonModel, tokens []addedToken, bytes bool) error {
	t, n, top := r.t, len(m.vocab)+len(tokens), int64(-1)
	for text, id := range m.vocab {
		if id < 0 {
			return fmt.Errorf(".vocab: %w: %q has id %d", ErrInvalid, text, id)
		}
		top = max(top, int64(id))
	}
	for _, a := range tokens {
		if id, ok := m.vocab[a.Content]; a.ID < 0 || ok && int64(id) != a.ID {
			return fmt.Errorf(": %w: added token %q has id %d, in the vocabulary it has %d", ErrInvalid, a.Content, a.ID, id)
		}
		top = max(top, a.ID)
	}
	if err := room(top, n); err != nil {
		return fmt.Errorf(".vocab: %w", err)
	}
	t.pieces = make([]piece, top+1)
	for text, id := range m.vocab {
		p := &t.pieces[id]
		if p.kind != isNothing {
			return fmt.Errorf(".vocab: %w: two tokens have id %d", ErrInvalid, id)
		}
		p.key = text
		if bytes {
			p.key, p.mapped = fromAlphabet(text)
		}
		r.join.token(text, p)
		if p.mapped || !bytes {
			t.add(id)
		}
	}
	var raw, normalized []addedText
	for _, a := range tokens {
		p := &t.pieces[a.ID]
		if _, ok := m.vocab[a.Content]; !ok && p.kind != isNothing {
			return fmt.Errorf(": %w: added token %q has id %d, which another token has", ErrInvalid, a.Content, a.ID)
		}
		one := addedText{
			text: a.Content, id: int32(a.ID), lstrip: a.LStrip, rstrip: a.RStrip, word: a.SingleWord,
			control: a.Special || looksControl(a.Content),
		}
		shown := a.Content
		if a.Normalized {
			one.text = normalize(t.normalizer, a.Content, whole)
			shown = one.text
			normalized = append(normalized, one)
		} else {
			raw = append(raw, one)
		}
		if p.kind == isNothing {
			p.key = a.Content
		}
		r.join.token(shown, p)
		p.hidden = a.Special
	}
	t.raw, t.normalized = newAdded(raw), newAdded(normalized)
	return nil
}
