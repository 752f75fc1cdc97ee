package tokenizer

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
)

// file is a tokenizer.json. Parts of many kinds are raw until their type is known.
type file struct {
	AddedTokens   []addedToken    `json:"added_tokens"`
	Normalizer    json.RawMessage `json:"normalizer"`
	PreTokenizer  json.RawMessage `json:"pre_tokenizer"`
	PostProcessor json.RawMessage `json:"post_processor"`
	Decoder       json.RawMessage `json:"decoder"`
	Model         json.RawMessage `json:"model"`
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

type bpe struct {
	Type         string           `json:"type"`
	Dropout      *float64         `json:"dropout"`
	UnkToken     *string          `json:"unk_token"`
	Prefix       string           `json:"continuing_subword_prefix"`
	Suffix       string           `json:"end_of_word_suffix"`
	FuseUnk      bool             `json:"fuse_unk"`
	ByteFallback bool             `json:"byte_fallback"`
	IgnoreMerges bool             `json:"ignore_merges"`
	Vocab        map[string]int64 `json:"vocab"`
	Merges       []mergePair      `json:"merges"`
}

// mergePair is written "a b" or, by newer versions, ["a", "b"].
type mergePair [2]string

func (m *mergePair) UnmarshalJSON(text []byte) error {
	var parts []string
	if len(text) > 0 && text[0] == '[' {
		if err := json.Unmarshal(text, &parts); err != nil {
			return err
		}
	} else {
		var line string
		if err := json.Unmarshal(text, &line); err != nil {
			return err
		}
		parts = strings.Split(line, " ")
	}
	if len(parts) != 2 {
		return fmt.Errorf("a merge of %d parts", len(parts))
	}
	*m = mergePair(parts)
	return nil
}

// ParseJSON reads a tokenizer.json, Hugging Face's format. Errors name the
// field and wrap ErrInvalid or ErrUnsupported.
func ParseJSON(text []byte) (*Tokenizer, error) {
	var f file
	if err := json.Unmarshal(text, &f); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	if given(f.PreTokenizer) {
		return nil, refuse("pre_tokenizer.type", typeOf(f.PreTokenizer))
	}
	t := &Tokenizer{unknown: noID, wholeRuns: true}
	var d decoder
	for _, part := range []struct {
		name string
		raw  json.RawMessage
		read func(json.RawMessage) error
	}{
		{"normalizer", f.Normalizer, t.jsonNormalizer},
		{"decoder", f.Decoder, d.read},
		{"model", f.Model, func(raw json.RawMessage) error { return t.jsonModel(raw, f.AddedTokens, &d) }},
		{"post_processor", f.PostProcessor, t.jsonPostProcessor},
	} {
		if err := part.read(part.raw); err != nil {
			return nil, fmt.Errorf("%s%w", part.name, err)
		}
	}
	t.strip = d.strip
	return t, nil
}

// given says whether an optional part is there.
func given(raw json.RawMessage) bool {
	return len(raw) > 0 && !bytes.Equal(raw, []byte("null"))
}

// typeOf is the type that a part names.
func typeOf(raw json.RawMessage) string {
	var part struct {
		Type string `json:"type"`
	}
	if err := json.Unmarshal(raw, &part); err != nil || part.Type == "" {
		return "none"
	}
	return part.Type
}

// refuse says that a field has a value which this version would apply wrongly.
func refuse(field string, value any) error {
	return fmt.Errorf("%s: %w: %v cannot be applied by this version", field, ErrUnsupported, value)
}

// Parts' own errors start with ".field: " or ": ", and ParseJSON puts the part's name in front.

func decode(raw json.RawMessage, into any) error {
	if err := json.Unmarshal(raw, into); err != nil {
		return fmt.Errorf(": %w: %w", ErrInvalid, err)
	}
	return nil
}

func (t *Tokenizer) jsonNormalizer(raw json.RawMessage) error {
	if !given(raw) {
		return nil
	}
	var n struct {
		Type        string            `json:"type"`
		Normalizers []json.RawMessage `json:"normalizers"`
		Prepend     string            `json:"prepend"`
		replace
	}
	if err := decode(raw, &n); err != nil {
		return err
	}
	switch n.Type {
	case "Sequence":
		for _, raw := range n.Normalizers {
			if typeOf(raw) == "Sequence" { // none is written so, and recursion stays bounded
				return refuse(".type", "a Sequence within a Sequence")
			}
			if err := t.jsonNormalizer(raw); err != nil {
				return err
			}
		}
		return nil
	case "Prepend":
		t.steps = append(t.steps, step{prepend: n.Prepend})
		return nil
	case "Replace":
		old, err := n.literal()
		t.steps = append(t.steps, step{old: old, new: n.Content})
		return err
	}
	return refuse(".type", n.Type)
}

// replace is what normalizers and decoders of type Replace have.
type replace struct {
	Pattern struct {
		String *string `json:"String"`
	} `json:"pattern"`
	Content string `json:"content"`
}

// literal is the text to be replaced.
func (r replace) literal() (string, error) {
	if r.Pattern.String == nil || *r.Pattern.String == "" {
		return "", refuse(".pattern", "anything but a String")
	}
	return *r.Pattern.String, nil
}

// decoder is the one that SentencePiece's vocabularies have: replace, bytes,
// all in one, strip.
type decoder struct {
	replaces []step
	strip    int
}

func (d *decoder) read(raw json.RawMessage) error {
	if !given(raw) {
		return refuse("", "none")
	}
	var s struct {
		Type     string            `json:"type"`
		Decoders []json.RawMessage `json:"decoders"`
	}
	if err := decode(raw, &s); err != nil {
		return err
	}
	if s.Type != "Sequence" {
		return refuse(".type", s.Type)
	}
	at := 0 // 0: Replace*, 1: ByteFallback seen, 2: Fuse seen, 3: Strip seen
	for _, raw := range s.Decoders {
		var one struct {
			Type  string `json:"type"`
			Start int    `json:"start"`
			Stop  int    `json:"stop"`
			replace
		}
		if err := decode(raw, &one); err != nil {
			return err
		}
		switch {
		case one.Type == "Replace" && at == 0:
			old, err := one.literal()
			if err != nil {
				return err
			}
			d.replaces = append(d.replaces, step{old: old, new: one.Content})
		case one.Type == "ByteFallback" && at == 0, one.Type == "Fuse" && at == 1:
			at++
		case one.Type == "Strip" && at == 2:
			if one.Content != " " || one.Start < 0 || one.Start > 1 || one.Stop != 0 {
				return refuse(".decoders", "a Strip of anything but one space at the start")
			}
			d.strip = one.Start
			at++
		default:
			return refuse(".decoders", one.Type+" in this place")
		}
	}
	if at < 2 {
		return refuse(".decoders", "a Sequence without ByteFallback and Fuse")
	}
	return nil
}

func (t *Tokenizer) jsonModel(raw json.RawMessage, added []addedToken, d *decoder) error {
	if !given(raw) {
		return fmt.Errorf(": %w: it is missing", ErrInvalid)
	}
	if kind := typeOf(raw); kind != "BPE" {
		return refuse(".type", kind)
	}
	var m bpe
	if err := decode(raw, &m); err != nil {
		return err
	}
	switch {
	case m.Dropout != nil && *m.Dropout != 0:
		return refuse(".dropout", *m.Dropout)
	case m.Prefix != "":
		return refuse(".continuing_subword_prefix", m.Prefix)
	case m.Suffix != "":
		return refuse(".end_of_word_suffix", m.Suffix)
	case m.IgnoreMerges:
		return refuse(".ignore_merges", true)
	}
	if err := t.jsonPieces(m.Vocab, added, d); err != nil {
		return err
	}
	t.fuseUnknown = m.FuseUnk
	if m.UnkToken != nil {
		id, ok := m.Vocab[*m.UnkToken]
		if !ok {
			return fmt.Errorf(".unk_token: %w: %q is not in the vocabulary", ErrInvalid, *m.UnkToken)
		}
		t.unknown = int32(id)
	}
	for b := range 256 {
		id, ok := m.Vocab[bytePiece(byte(b))]
		if m.ByteFallback && !ok {
			return fmt.Errorf(".byte_fallback: %w: the vocabulary lacks %s", ErrUnsupported, bytePiece(byte(b)))
		}
		t.bytes[b] = int32(id)
	}
	if !m.ByteFallback {
		t.bytes = noBytes
	}
	t.merges.chars = make(map[string]int32, len(m.Vocab))
	for text, id := range m.Vocab {
		t.merges.chars[text] = int32(id)
	}
	t.merges.ranked = make(map[[2]int32]rankedMerge, len(m.Merges))
	for rank, pair := range m.Merges {
		a, okA := t.merges.chars[pair[0]]
		b, okB := t.merges.chars[pair[1]]
		id, ok := t.merges.chars[pair[0]+pair[1]]
		if !okA || !okB || !ok {
			return fmt.Errorf(".merges: %w: merge %d, of %q and %q, is not of tokens in the vocabulary", ErrInvalid, rank, pair[0], pair[1])
		}
		t.merges.ranked[[2]int32{a, b}] = rankedMerge{rank, id}
	}
	return nil
}

// noBytes is a vocabulary without byte pieces.
var noBytes = func() (b [256]int32) {
	for i := range b {
		b[i] = noID
	}
	return b
}()

// jsonPieces fills in what ids stand for, and the special tokens.
func (t *Tokenizer) jsonPieces(vocab map[string]int64, added []addedToken, d *decoder) error {
	n, top := len(vocab)+len(added), int64(-1)
	for text, id := range vocab {
		if id < 0 {
			return fmt.Errorf(".vocab: %w: %q has id %d", ErrInvalid, text, id)
		}
		top = max(top, id)
	}
	for _, a := range added {
		if id, ok := vocab[a.Content]; a.ID < 0 || ok && id != a.ID {
			return fmt.Errorf(": %w: added token %q has id %d, in the vocabulary it has %d", ErrInvalid, a.Content, a.ID, id)
		}
		top = max(top, a.ID)
	}
	if err := room(top, n); err != nil {
		return fmt.Errorf(".vocab: %w", err)
	}
	t.pieces = make([]piece, top+1)
	set := func(id int64, text string) {
		text = normalize(d.replaces, text)
		p := piece{text: text, kind: isText}
		if b, ok := byteOf(text); ok {
			p = piece{kind: isByte, byte: b}
		}
		t.pieces[id] = p
	}
	for text, id := range vocab {
		if t.pieces[id].kind != isNothing {
			return fmt.Errorf(".vocab: %w: two tokens have id %d", ErrInvalid, id)
		}
		set(id, text)
	}
	var raw, norm []special
	for _, a := range added {
		if a.SingleWord {
			return refuse(": added token "+a.Content+": single_word", true)
		}
		if _, ok := vocab[a.Content]; !ok && t.pieces[a.ID].kind != isNothing {
			return fmt.Errorf(": %w: added token %q has id %d, which another token has", ErrInvalid, a.Content, a.ID)
		}
		set(a.ID, a.Content)
		t.pieces[a.ID].hidden = a.Special
		s := special{text: a.Content, id: int32(a.ID), lstrip: a.LStrip, rstrip: a.RStrip}
		if a.Normalized {
			s.text = normalize(t.steps, s.text)
			norm = append(norm, s)
		} else {
			raw = append(raw, s)
		}
	}
	t.rawSpecial, t.normSpecial = newSplitter(raw), newSplitter(norm)
	return nil
}

func (t *Tokenizer) jsonPostProcessor(raw json.RawMessage) error {
	if !given(raw) {
		return nil
	}
	var p struct {
		Type   string `json:"type"`
		Single []struct {
			SpecialToken *struct {
				ID string `json:"id"`
			}
			Sequence *struct {
				ID string `json:"id"`
			}
		} `json:"single"`
		SpecialTokens map[string]struct {
			IDs []int32 `json:"ids"`
		} `json:"special_tokens"`
	}
	if kind := typeOf(raw); kind != "TemplateProcessing" {
		return refuse(".type", kind)
	}
	if err := decode(raw, &p); err != nil {
		return err
	}
	seen := false
	for _, item := range p.Single {
		switch {
		case item.SpecialToken != nil:
			s, ok := p.SpecialTokens[item.SpecialToken.ID]
			if !ok {
				return fmt.Errorf(".single: %w: %q is not in special_tokens", ErrInvalid, item.SpecialToken.ID)
			}
			for _, id := range s.IDs {
				if t.piece(id).kind == isNothing {
					return fmt.Errorf(".special_tokens: %w: %q has id %d, which is not in the vocabulary", ErrInvalid, item.SpecialToken.ID, id)
				}
			}
			if seen {
				t.back = append(t.back, s.IDs...)
			} else {
				t.front = append(t.front, s.IDs...)
			}
		case item.Sequence != nil && item.Sequence.ID == "A" && !seen:
			seen = true
		default:
			return refuse(".single", "anything but special tokens around one sequence A")
		}
	}
	if !seen {
		return refuse(".single", "a template without sequence A")
	}
	return nil
}
