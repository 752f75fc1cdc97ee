package tokenizer

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/estiba/estiba/runtime/weights"
)

// ParseSentencePiece reads a tokenizer.model, a SentencePiece model of type
// BPE; config is the tokenizer_config.json beside it, or nil. Special tokens
// written in a text are plain text, as SentencePiece has it.
// Source: sentencepiece_model.proto; the parser knows only the fields it needs.
func ParseSentencePiece(model, config []byte) (*Tokenizer, error) {
	m := spModel{
		kind: unigram, bos: "<s>", eos: "</s>", unkSurface: " \u2047 ",
		prefix: true, trim: true, escape: true,
	}
	if err := m.parse(model); err != nil {
		return nil, err
	}
	if err := m.check(); err != nil {
		return nil, err
	}
	t := &Tokenizer{}
	out, err := m.build(t)
	if err != nil {
		return nil, err
	}
	for i, id := range out.bytes {
		if m.byteFallback && id == noID {
			return nil, fmt.Errorf("trainer_spec.byte_fallback: %w: the vocabulary lacks %s", ErrInvalid, bytePiece(byte(i)))
		}
	}
	if !m.byteFallback {
		out.bytes = noBytes
	}
	if slices.Contains(m.types, typeUnused) {
		out.unused = make([]bool, len(m.types))
		for id, kind := range m.types {
			out.unused[id] = kind == typeUnused
		}
	}
	if out.unknown != noID {
		p := &t.pieces[out.unknown]
		p.text, p.hidden = m.unkSurface, false
	}
	t.normalized = newAdded(m.added(typeUserDefined))
	chat := newAdded(m.added(typeControl))
	t.chat = &chat
	return t, m.around(t, config)
}

// unigram is the default of TrainerSpec.model_type; only bpe is read.
const (
	unigram = 1
	bpeType = 2
)

type spModel struct {
	listed
	kind         uint64
	suffix       bool // white space as suffix
	byteFallback bool
	bos, eos     string
	unkSurface   string
	charsmap     bool // characters are mapped before or after
	prefix       bool // a space in front
	trim         bool // remove extra white space
	escape       bool // spaces as "▁"
}

func (m *spModel) check() error {
	switch {
	case len(m.tokens) == 0:
		return fmt.Errorf("%w: no SentencePiece model: it has no pieces", ErrInvalid)
	case m.kind != bpeType:
		return refuse("trainer_spec.model_type", map[uint64]string{1: "UNIGRAM", 3: "WORD", 4: "CHAR"}[m.kind])
	case m.suffix:
		return refuse("trainer_spec.treat_whitespace_as_suffix", true)
	case m.charsmap:
		return refuse("normalizer_spec.precompiled_charsmap", "a map of characters")
	case m.trim:
		return refuse("normalizer_spec.remove_extra_whitespaces", true)
	case !m.escape:
		return refuse("normalizer_spec.escape_whitespaces", false)
	}
	seen := make(map[string]bool, len(m.tokens))
	for i, text := range m.tokens {
		if seen[text] || text == "" || !utf8.ValidString(text) {
			return fmt.Errorf("pieces: %w: piece %d, %q, is empty, no UTF-8, or there twice", ErrInvalid, i, text)
		}
		seen[text] = true
		if m.types[i] == typeUserDefined && strings.Contains(text, " ") {
			return refuse("pieces", fmt.Sprintf("piece %d, user-defined with a space in it,", i))
		}
	}
	return nil
}

// around sets the tokens around a text, as tokenizer_config.json says: by
// default a begin token, and no end token. Its "legacy", by default true, says whether in
// a chat a space goes in front of each text after a control token, or of the first text only.
func (m *spModel) around(t *Tokenizer, config []byte) error {
	c := struct {
		AddBOS *bool `json:"add_bos_token"`
		AddEOS *bool `json:"add_eos_token"`
		Legacy *bool `json:"legacy"`
		Added  map[string]struct {
			Content string `json:"content"`
		} `json:"added_tokens_decoder"`
	}{}
	if len(config) > 0 {
		if err := json.Unmarshal(config, &c); err != nil {
			return fmt.Errorf("tokenizer_config.json: %w: %w", ErrInvalid, weights.JSONError(err))
		}
	}
	for id, a := range c.Added {
		if i, err := strconv.Atoi(id); err != nil || i < 0 || i >= len(m.tokens) || m.tokens[i] != a.Content {
			return refuse("tokenizer_config.json: added_tokens_decoder", fmt.Sprintf("token %q, which tokenizer.model lacks,", a.Content))
		}
	}
	control := func(text string) []int32 {
		i := slices.Index(m.tokens, text)
		if i < 0 || m.types[i] != typeControl {
			return nil
		}
		return []int32{int32(i)}
	}
	if c.AddBOS == nil || *c.AddBOS {
		t.front = control(m.bos)
	}
	if c.AddEOS != nil && *c.AddEOS {
		t.back = control(m.eos)
	}
	t.spaces(m.prefix, c.Legacy == nil || *c.Legacy)
	return nil
}

func (m *spModel) parse(model []byte) error {
	return eachField(model, func(f protoField) error {
		switch f.number {
		case 1:
			return m.parsePiece(f.bytes)
		case 2:
			return eachField(f.bytes, m.trainerField)
		case 3:
			return eachField(f.bytes, m.normalizerField)
		case 5: // denormalizer_spec
			return eachField(f.bytes, func(f protoField) error {
				m.charsmap = m.charsmap || f.number == 2 && len(f.bytes) > 0
				return nil
			})
		}
		return nil
	})
}

func (m *spModel) parsePiece(raw []byte) error {
	text, score, kind := "", float32(0), int32(typeNormal)
	err := eachField(raw, func(f protoField) error {
		switch f.number {
		case 1:
			text = string(f.bytes)
		case 2:
			score = math.Float32frombits(uint32(f.value))
		case 3:
			kind = int32(min(f.value, math.MaxInt32))
		}
		return nil
	})
	if err == nil && len(m.tokens) == maxVocabulary {
		return fmt.Errorf("%w: more than %d pieces", ErrInvalid, maxVocabulary)
	}
	m.tokens, m.scores, m.types = append(m.tokens, text), append(m.scores, score), append(m.types, kind)
	return err
}

func (m *spModel) trainerField(f protoField) error {
	switch f.number {
	case 3:
		m.kind = f.value
	case 24:
		m.suffix = f.value != 0
	case 35:
		m.byteFallback = f.value != 0
	case 44:
		m.unkSurface = string(f.bytes)
	case 46:
		m.bos = string(f.bytes)
	case 47:
		m.eos = string(f.bytes)
	}
	return nil
}

func (m *spModel) normalizerField(f protoField) error {
	switch f.number {
	case 2:
		m.charsmap = m.charsmap || len(f.bytes) > 0
	case 3:
		m.prefix = f.value != 0
	case 4:
		m.trim = f.value != 0
	case 5:
		m.escape = f.value != 0
	}
	return nil
}

// protoField is one field of a protocol buffer: its number, and its value or bytes.
type protoField struct {
	number uint64
	value  uint64
	bytes  []byte
}

// eachField calls f with each field of a message.
// Source: protobuf.dev/programming-guides/encoding.
func eachField(message []byte, f func(protoField) error) error {
	short := fmt.Errorf("%w: no SentencePiece model, or it is truncated", ErrInvalid)
	take := func(n int) []byte {
		b := message[:n]
		message = message[n:]
		return b
	}
	varint := func() (uint64, bool) {
		v, n := binary.Uvarint(message)
		if n <= 0 {
			return 0, false
		}
		take(n)
		return v, true
	}
	for len(message) > 0 {
		key, ok := varint()
		if !ok {
			return short
		}
		field := protoField{number: key >> 3}
		switch key & 7 {
		case 0:
			if field.value, ok = varint(); !ok {
				return short
			}
		case 1:
			if len(message) < 8 {
				return short
			}
			field.value = binary.LittleEndian.Uint64(take(8))
		case 2:
			n, ok := varint()
			if !ok || n > uint64(len(message)) {
				return short
			}
			field.bytes = take(int(n))
		case 5:
			if len(message) < 4 {
				return short
			}
			field.value = uint64(binary.LittleEndian.Uint32(take(4)))
		default:
			return short
		}
		if err := f(field); err != nil {
			return err
		}
	}
	return nil
}
