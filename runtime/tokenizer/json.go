package tokenizer

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
)

// file is a tokenizer.json. Parts of many kinds are raw until their type is known.
type file struct {
	AddedTokens   addedTokens `json:"added_tokens"`
	Normalizer    part        `json:"normalizer"`
	PreTokenizer  part        `json:"pre_tokenizer"`
	PostProcessor part        `json:"post_processor"`
	Decoder       part        `json:"decoder"`
	Model         *bpe        `json:"model"`
}

// part is a small one; what it says may take some times its bytes.
type part json.RawMessage

func (p *part) UnmarshalJSON(text []byte) error {
	const most = 1 << 20
	if len(text) > most {
		return fmt.Errorf("a part of %d bytes, where at most %d are read", len(text), most)
	}
	*p = append((*p)[:0], text...)
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
	return eachElement(text, func(dec *json.Decoder) error {
		var one addedToken
		if err := dec.Decode(&one); err != nil {
			return err
		}
		if len(*a) == maxSpecials {
			return fmt.Errorf("added_tokens: more than %d", maxSpecials)
		}
		*a = append(*a, one)
		return nil
	})
}

// bpe is the model of a tokenizer.json. Its vocabulary and merges are read where
// they stand, so that the text is not in memory twice and a pair of tokens is
// never more than two numbers; what is wrong with them is told when it is their turn.
type bpe struct {
	bpeHead
	vocab  vocab
	merges map[[2]int32]rankedMerge
	wrong  error // with merges
}

type bpeHead struct {
	Type         string   `json:"type"`
	Dropout      *float64 `json:"dropout"`
	UnkToken     *string  `json:"unk_token"`
	Prefix       string   `json:"continuing_subword_prefix"`
	Suffix       string   `json:"end_of_word_suffix"`
	FuseUnk      bool     `json:"fuse_unk"`
	ByteFallback bool     `json:"byte_fallback"`
	IgnoreMerges bool     `json:"ignore_merges"`
}

func (m *bpe) UnmarshalJSON(text []byte) error {
	m.Type = typeOf(text)
	if m.Type != "BPE" {
		return nil // refused when it is its turn
	}
	head := struct {
		*bpeHead
		Vocab *vocab `json:"vocab"`
	}{&m.bpeHead, &m.vocab}
	if err := json.Unmarshal(text, &head); err != nil {
		return err
	}
	m.merges = map[[2]int32]rankedMerge{}
	merges := struct { // once the vocabulary is there
		Merges *mergeList `json:"merges"`
	}{&mergeList{m}}
	return json.Unmarshal(text, &merges)
}

// vocab is tokens and ids. Whether the ids make sense is seen later.
type vocab map[string]int32

func (v *vocab) UnmarshalJSON(text []byte) error {
	*v = vocab{}
	return eachElement(text, func(dec *json.Decoder) error {
		name, err := dec.Token()
		if err != nil {
			return err
		}
		token, ok := name.(string)
		if !ok {
			return errors.New("model.vocab: not an object")
		}
		var id int32
		if err := dec.Decode(&id); err != nil {
			return fmt.Errorf("model.vocab: %.100q: %w", token, err)
		}
		if _, twice := (*v)[token]; twice {
			return fmt.Errorf("model.vocab: %.100q is there twice", token)
		}
		if len(*v) == maxVocabulary {
			return fmt.Errorf("model.vocab: more than %d tokens", maxVocabulary)
		}
		(*v)[token] = id
		return nil
	})
}

// mergeList reads pairs in the order of their ranks.
type mergeList struct{ of *bpe }

func (l *mergeList) UnmarshalJSON(text []byte) error {
	rank := int32(0)
	l.of.wrong = eachElement(text, func(dec *json.Decoder) error {
		left, right, err := mergePair(dec)
		if err != nil {
			return err
		}
		a, okA := l.of.vocab[left]
		b, okB := l.of.vocab[right]
		id, ok := l.of.vocab[left+right]
		if !okA || !okB || !ok {
			return fmt.Errorf("merge %d, of %.100q and %.100q, is not of tokens in the vocabulary", rank, left, right)
		}
		if rank == maxVocabulary {
			return fmt.Errorf("more than %d", maxVocabulary)
		}
		l.of.merges[[2]int32{a, b}] = rankedMerge{rank, id}
		rank++
		return nil
	})
	return nil
}

// mergePair reads "a b" or, as newer versions write it, ["a", "b"].
func mergePair(dec *json.Decoder) (left, right string, err error) {
	t, err := dec.Token()
	if err != nil {
		return "", "", err
	}
	if line, ok := t.(string); ok {
		left, right, ok = strings.Cut(line, " ")
		if !ok || strings.Contains(right, " ") {
			return "", "", fmt.Errorf("a merge of %d parts", 1+strings.Count(line, " "))
		}
		return left, right, nil
	}
	if t != json.Delim('[') {
		return "", "", errors.New("a merge that is no text")
	}
	var parts [2]string
	for i := 0; dec.More() || i < 2; i++ {
		t, err := dec.Token()
		if err != nil {
			return "", "", err
		}
		text, ok := t.(string)
		if !ok || i == 2 {
			return "", "", errors.New("a merge that is not of two texts")
		}
		parts[i] = text
	}
	_, err = dec.Token()
	return parts[0], parts[1], err
}

// eachElement calls f at each element of a JSON array, or member of an object,
// which f must read. Null has none.
func eachElement(text []byte, f func(dec *json.Decoder) error) error {
	dec := json.NewDecoder(bytes.NewReader(text))
	switch t, err := dec.Token(); {
	case err != nil:
		return err
	case t == nil:
		return nil
	case t != json.Delim('[') && t != json.Delim('{'):
		return fmt.Errorf("%.100v where a list is wanted", t)
	}
	for dec.More() {
		if err := f(dec); err != nil {
			return err
		}
	}
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
		read func() error
	}{
		{"normalizer", func() error { return t.jsonNormalizer(f.Normalizer) }},
		{"decoder", func() error { return d.read(f.Decoder) }},
		{"model", func() error { return t.jsonModel(f.Model, f.AddedTokens, &d) }},
		{"post_processor", func() error { return t.jsonPostProcessor(f.PostProcessor) }},
	} {
		if err := part.read(); err != nil {
			return nil, fmt.Errorf("%s%w", part.name, err)
		}
	}
	t.strip = d.strip
	return t, nil
}

// given says whether an optional part is there.
func given(raw []byte) bool {
	return len(raw) > 0 && !bytes.Equal(raw, []byte("null"))
}

// typeOf is the type that a part names.
func typeOf(raw []byte) string {
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

func decode(raw []byte, into any) error {
	if err := json.Unmarshal(raw, into); err != nil {
		return fmt.Errorf(": %w: %w", ErrInvalid, err)
	}
	return nil
}

func (t *Tokenizer) jsonNormalizer(raw []byte) error {
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

func (d *decoder) read(raw []byte) error {
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

func (t *Tokenizer) jsonModel(m *bpe, added []addedToken, d *decoder) error {
	switch {
	case m == nil:
		return fmt.Errorf(": %w: it is missing", ErrInvalid)
	case m.Type != "BPE":
		return refuse(".type", m.Type)
	case m.Dropout != nil && *m.Dropout != 0:
		return refuse(".dropout", *m.Dropout)
	case m.Prefix != "":
		return refuse(".continuing_subword_prefix", m.Prefix)
	case m.Suffix != "":
		return refuse(".end_of_word_suffix", m.Suffix)
	case m.IgnoreMerges:
		return refuse(".ignore_merges", true)
	}
	if err := t.jsonPieces(m.vocab, added, d); err != nil {
		return err
	}
	t.fuseUnknown = m.FuseUnk
	if m.UnkToken != nil {
		id, ok := m.vocab[*m.UnkToken]
		if !ok {
			return fmt.Errorf(".unk_token: %w: %q is not in the vocabulary", ErrInvalid, *m.UnkToken)
		}
		t.unknown = id
	}
	for b := range 256 {
		id, ok := m.vocab[bytePiece(byte(b))]
		if m.ByteFallback && !ok {
			return fmt.Errorf(".byte_fallback: %w: the vocabulary lacks %s", ErrUnsupported, bytePiece(byte(b)))
		}
		t.bytes[b] = id
	}
	if !m.ByteFallback {
		t.bytes = noBytes
	}
	if m.wrong != nil {
		return fmt.Errorf(".merges: %w: %w", ErrInvalid, m.wrong)
	}
	t.merges.chars, t.merges.ranked = m.vocab, m.merges
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
func (t *Tokenizer) jsonPieces(vocab vocab, added []addedToken, d *decoder) error {
	n, top := len(vocab)+len(added), int64(-1)
	for text, id := range vocab {
		if id < 0 {
			return fmt.Errorf(".vocab: %w: %q has id %d", ErrInvalid, text, id)
		}
		top = max(top, int64(id))
	}
	for _, a := range added {
		if id, ok := vocab[a.Content]; a.ID < 0 || ok && int64(id) != a.ID {
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
		set(int64(id), text)
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

func (t *Tokenizer) jsonPostProcessor(raw []byte) error {
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
