package tokenizer

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"unicode"

	"github.com/estiba/estiba/runtime/weights"
)

// ParseBERT reads a vocab.txt, WordPiece's, one token a line in the order of ids;
// config is the tokenizer_config.json beside it, or nil. Errors name the field and wrap
// ErrInvalid or ErrUnsupported.
func ParseBERT(vocab, config []byte) (*Tokenizer, error) {
	c := bertConfig{Lower: true, Chinese: true, Basic: true, Unknown: "[UNK]", Sep: "[SEP]", Pad: "[PAD]", Cls: "[CLS]", Mask: "[MASK]"}
	if len(config) > 0 {
		if err := json.Unmarshal(config, &c); err != nil {
			return nil, fmt.Errorf("tokenizer_config.json: %w: %w", ErrInvalid, weights.JSONError(err))
		}
	}
	switch {
	case !slices.Contains(bertClasses, strings.TrimSuffix(c.Class, "Fast")):
		return nil, refuse("tokenizer_config.json: tokenizer_class", c.Class)
	case !c.Basic:
		return nil, refuse("tokenizer_config.json: do_basic_tokenize", false)
	case len(c.Never) > 0:
		return nil, refuse("tokenizer_config.json: never_split", c.Never)
	}
	var lines []string
	for line := range bytes.Lines(vocab) {
		if len(lines) == maxVocabulary {
			return nil, fmt.Errorf("%w: more than %d tokens", ErrInvalid, maxVocabulary)
		}
		lines = append(lines, strings.TrimRightFunc(string(line), unicode.IsSpace))
	}
	t := &Tokenizer{}
	t.pieces = make([]piece, len(lines))
	longest := 0
	for id, line := range lines {
		t.pieces[id] = piece{key: line, text: afterWord(line, "##", true), kind: isText}
		longest = max(longest, len(line))
	}
	for id := range lines {
		t.add(int32(id))
	}
	m := &wordPiece{vocabulary: &t.vocabulary, prefix: "##", longest: longest, most: 100}
	var specials []addedText
	ids := map[bertToken]int32{}
	for _, name := range []bertToken{c.Unknown, c.Sep, c.Pad, c.Cls, c.Mask} {
		id, ok := t.find(string(name))
		if !ok {
			if name == c.Pad || name == c.Mask {
				continue
			}
			return nil, fmt.Errorf("%w: the vocabulary lacks %q", ErrInvalid, name)
		}
		ids[name] = id
		t.pieces[id].hidden = true
		specials = append(specials, addedText{text: string(name), id: id, control: true})
	}
	m.unknown = ids[c.Unknown]
	t.model = m
	t.raw = newAdded(specials)
	strip := c.Lower
	if c.Strip != nil {
		strip = *c.Strip
	}
	t.normalizer = bertNormalizer{clean: true, chinese: c.Chinese, strip: strip, lower: c.Lower}.steps()
	t.splits = []split{splitBert}
	t.front, t.back = []int32{ids[c.Cls]}, []int32{ids[c.Sep]}
	t.decoder.first = clean
	return t, nil
}

// bertClasses are those whose vocab.txt is used in this way; none is BERT's.
var bertClasses = []string{"", "BertTokenizer", "DistilBertTokenizer", "ElectraTokenizer", "MPNetTokenizer"}

type bertConfig struct {
	Class   string    `json:"tokenizer_class"`
	Lower   bool      `json:"do_lower_case"`
	Chinese bool      `json:"tokenize_chinese_chars"`
	Strip   *bool     `json:"strip_accents"`
	Basic   bool      `json:"do_basic_tokenize"`
	Never   []string  `json:"never_split"`
	Unknown bertToken `json:"unk_token"`
	Sep     bertToken `json:"sep_token"`
	Pad     bertToken `json:"pad_token"`
	Cls     bertToken `json:"cls_token"`
	Mask    bertToken `json:"mask_token"`
}

// bertToken is written as a text, or as an object with the text in it.
type bertToken string

func (b *bertToken) UnmarshalJSON(text []byte) error {
	var object struct {
		Content *string `json:"content"`
	}
	if json.Unmarshal(text, &object) == nil && object.Content != nil {
		*b = bertToken(*object.Content)
		return nil
	}
	var s *string
	if err := json.Unmarshal(text, &s); err != nil || s == nil {
		return err
	}
	*b = bertToken(*s)
	return nil
}

// afterWord is what a piece of WordPiece's adds after others.
func afterWord(token, prefix string, cleanup bool) string {
	text, within := strings.CutPrefix(token, prefix)
	if !within {
		text = " " + text
	}
	if cleanup {
		text = clean(text)
	}
	return text
}
