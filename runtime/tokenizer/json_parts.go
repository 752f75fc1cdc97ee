package tokenizer

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"

	"github.com/estiba/estiba/runtime/tokenizer/pattern"
)

// bounds of what a file may ask for, so that a small text stays one.
type bounds struct {
	parts    int  // read so far
	growth   int  // by how much replacements may make a text longer
	patterns int  // bytes of expressions
	changes  int  // splits that change their part
	mapped   bool // the splits so far leave parts in GPT-2's alphabet
}

const (
	maxParts    = 64
	maxGrowth   = 32
	maxPatterns = 1 << 14
	maxChanges  = 3
)

func (b *bounds) part() error {
	if b.parts++; b.parts > maxParts {
		return refuse("", fmt.Sprintf("more than %d parts in a sequence", maxParts))
	}
	return nil
}

// grows counts a replacement of at least old bytes.
func (b *bounds) grows(old, new int) error {
	b.growth = max(b.growth, 1) * max(1, (new+max(old, 1)-1)/max(old, 1))
	if b.growth > maxGrowth {
		return refuse(".content", "what makes a text that much longer")
	}
	return nil
}

func (b *bounds) compile(expression string) (*pattern.Pattern, error) {
	if b.patterns += len(expression); b.patterns > maxPatterns {
		return nil, refuse(".pattern", "expressions of that length")
	}
	p, err := pattern.Compile(expression)
	switch {
	case err == nil:
		return p, nil
	case errors.Is(err, pattern.ErrUnsupported):
		return nil, fmt.Errorf(".pattern.Regex: %w: %w", ErrUnsupported, err)
	}
	return nil, fmt.Errorf(".pattern.Regex: %w: %w", ErrInvalid, err)
}

// jsonPattern is how patterns are written.
type jsonPattern struct {
	String *string `json:"String"`
	Regex  *string `json:"Regex"`
}

func (r *jsonReader) normalizer(raw []byte) error {
	if !given(raw) {
		return nil
	}
	if err := r.part(); err != nil {
		return err
	}
	var n struct {
		Type        string            `json:"type"`
		Normalizers []json.RawMessage `json:"normalizers"`
		Prepend     string            `json:"prepend"`
		Pattern     jsonPattern       `json:"pattern"`
		Content     string            `json:"content"`
		Left        bool              `json:"strip_left"`
		Right       bool              `json:"strip_right"`
		Clean       bool              `json:"clean_text"`
		Chinese     bool              `json:"handle_chinese_chars"`
		Accents     *bool             `json:"strip_accents"`
		Lower       bool              `json:"lowercase"`
	}
	if err := decode(raw, &n); err != nil {
		return err
	}
	add := func(s ...step) error {
		r.t.normalizer = append(r.t.normalizer, s...)
		return nil
	}
	switch n.Type {
	case "Sequence":
		for _, raw := range n.Normalizers {
			if err := r.normalizer(raw); err != nil {
				return err
			}
		}
		return nil
	case "NFC":
		return add(form(norm.NFC))
	case "NFD":
		return add(form(norm.NFD))
	case "NFKC":
		return add(form(norm.NFKC))
	case "NFKD":
		return add(form(norm.NFKD))
	case "ByteLevel":
		if err := r.grows(1, 2); err != nil {
			return err
		}
		return add(func(text string, _ edges) string { return toAlphabet(text) })
	case "Lowercase":
		return add(lowercase)
	case "StripAccents":
		return add(stripAccents)
	case "Strip":
		return add(strip(n.Left, n.Right))
	case "BertNormalizer":
		accents := n.Lower
		if n.Accents != nil {
			accents = *n.Accents
		}
		return add(bertNormalizer{clean: n.Clean, chinese: n.Chinese, strip: accents, lower: n.Lower}.steps()...)
	case "Prepend":
		if len(n.Prepend) > maxGrowth {
			return refuse(".prepend", "a text of that length")
		}
		return add(prepend(n.Prepend, false))
	case "Replace":
		if n.Pattern.Regex != nil {
			p, err := r.compile(*n.Pattern.Regex)
			if err == nil {
				err = r.grows(1, len(n.Content)+1)
			}
			if err != nil {
				return err
			}
			return add(replaceMatches(p, n.Content))
		}
		if n.Pattern.String == nil || *n.Pattern.String == "" {
			return refuse(".pattern", "anything but a String or a Regex")
		}
		if err := r.grows(len(*n.Pattern.String), len(n.Content)); err != nil {
			return err
		}
		return add(replaceAll(*n.Pattern.String, n.Content))
	}
	return refuse(".type", n.Type)
}

func (r *jsonReader) preTokenizer(raw []byte) error {
	if !given(raw) {
		return nil
	}
	if err := r.part(); err != nil {
		return err
	}
	p := struct {
		Type          string            `json:"type"`
		Pretokenizers []json.RawMessage `json:"pretokenizers"`
		Pattern       jsonPattern       `json:"pattern"`
		Behavior      string            `json:"behavior"`
		Invert        bool              `json:"invert"`
		Individual    bool              `json:"individual_digits"`
		PrefixSpace   *bool             `json:"add_prefix_space"`
		UseRegex      *bool             `json:"use_regex"`
		Replacement   string            `json:"replacement"`
		Scheme        *prependScheme    `json:"prepend_scheme"`
		Split         *bool             `json:"split"`
		Delimiter     string            `json:"delimiter"`
	}{}
	if err := decode(raw, &p); err != nil {
		return err
	}
	add := func(s split) error {
		r.t.splits = append(r.t.splits, s)
		return nil
	}
	if r.byteLevel && !r.mapped && p.Type != "Sequence" { // the parts that come here are in the alphabet
		if err := add(intoAlphabet); err != nil {
			return err
		}
		r.mapped = true
	}
	b, known := behaviors[p.Behavior]
	change := func() error {
		if r.changes++; r.changes > maxChanges || r.byteLevel {
			return refuse(".type", p.Type+" in this place")
		}
		return nil
	}
	switch p.Type {
	case "Sequence":
		for _, raw := range p.Pretokenizers {
			if err := r.preTokenizer(raw); err != nil {
				return err
			}
		}
		return nil
	case "ByteLevel":
		if r.byteLevel {
			return refuse(".type", "a second ByteLevel")
		}
		if p.PrefixSpace == nil || *p.PrefixSpace {
			if err := change(); err != nil {
				return err
			}
			r.t.splits = append(r.t.splits, spaceInFront)
		}
		if p.UseRegex == nil || *p.UseRegex {
			r.t.splits = append(r.t.splits, splitBy(findPattern(gpt2Pattern()), isolated))
		}
		r.byteLevel = true
		return nil
	case "Split":
		if !known {
			return refuse(".behavior", p.Behavior)
		}
		find, err := r.finder(p.Pattern)
		if err != nil {
			return err
		}
		if p.Invert {
			find = find.invert()
		}
		return add(splitBy(find, b))
	case "Digits":
		if p.Individual {
			return add(splitBy(findRunes(isNumeric), isolated))
		}
		return add(splitBy(findRunes(isNumeric), contiguous))
	case "Punctuation":
		if p.Behavior != "" && !known {
			return refuse(".behavior", p.Behavior)
		}
		return add(splitBy(findRunes(isPunctuation), b))
	case "Whitespace":
		return add(splitBy(findPattern(wordsPattern()).invert(), removed))
	case "WhitespaceSplit":
		return add(splitBy(findRunes(unicode.IsSpace), removed))
	case "BertPreTokenizer":
		return add(splitBert)
	case "CharDelimiterSplit":
		if utf8.RuneCountInString(p.Delimiter) != 1 {
			return fmt.Errorf(".delimiter: %w: %q is not one character", ErrInvalid, p.Delimiter)
		}
		return add(splitBy(findText(p.Delimiter), removed))
	case "Metaspace":
		if err := change(); err != nil {
			return err
		}
		m := metaspace{space: p.Replacement, prepend: prependAlways, split: p.Split == nil || *p.Split}
		if p.Scheme != nil {
			m.prepend = *p.Scheme
		}
		if err := m.check(p.PrefixSpace); err != nil {
			return err
		}
		return add(m.do)
	}
	return refuse(".type", p.Type)
}

// check takes the old way of saying that there is no space in front, too.
func (m *metaspace) check(prefixSpace *bool) error {
	if utf8.RuneCountInString(m.space) != 1 {
		return fmt.Errorf(".replacement: %w: %q is not one character", ErrInvalid, m.space)
	}
	switch m.prepend {
	case prependAlways, prependFirst, prependNever:
	default:
		return refuse(".prepend_scheme", string(m.prepend))
	}
	if prefixSpace != nil && !*prefixSpace {
		m.prepend = prependNever
	}
	return nil
}

var (
	gpt2Pattern  = sync.OnceValue(func() *pattern.Pattern { return mustCompile(gpt2) })
	wordsPattern = sync.OnceValue(func() *pattern.Pattern {
		const word = `\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\x{200c}\x{200d}` // \w of Unicode's regular expressions (UTS 18)
		return mustCompile(`[` + word + `]+|[^` + word + `\s]+`)
	})
)

func mustCompile(expression string) *pattern.Pattern {
	p, err := pattern.Compile(expression)
	if err != nil {
		panic(err) // it is ours
	}
	return p
}

func (r *jsonReader) finder(p jsonPattern) (finder, error) {
	if p.Regex != nil {
		compiled, err := r.compile(*p.Regex)
		if err != nil {
			return nil, err
		}
		return findPattern(compiled), nil
	}
	if p.String == nil || *p.String == "" {
		return nil, refuse(".pattern", "anything but a String or a Regex")
	}
	return findText(*p.String), nil
}

// joined is what a file's decoder does to a single token: at the start of a text
// where first is true, and elsewhere.
type joined struct {
	steps        []func(token string, first bool) string
	differs      bool // at the start
	bytes        bool // tokens are bytes in GPT-2's alphabet
	byteFallback bool
}

// token fills in what a token adds to a text.
func (j *joined) token(file string, p *piece) {
	text := j.text(file, false)
	if j.byteFallback {
		if b, ok := byteOf(text); ok {
			p.text, p.kind, p.byte = "", isByte, b
			return
		}
	}
	p.kind = isText
	if j.bytes {
		text, _ = fromAlphabet(text)
		p.kind = isBytes
	}
	if p.text = text; text == p.key {
		p.text = p.key // once in memory
	}
}

func (j *joined) text(token string, first bool) string {
	for _, s := range j.steps {
		token = s(token, first)
	}
	return token
}

// decoder reads how tokens become text. What looks at single tokens may come in any
// order; then bytes become characters, all becomes one text, and its start is stripped.
func (r *jsonReader) decoder(raw []byte) error {
	j := &r.join
	if !given(raw) { // tokens are put together with spaces
		j.differs = true
		j.steps = append(j.steps, func(token string, first bool) string {
			if first {
				return token
			}
			return " " + token
		})
	} else if err := r.decoderPart(raw, new(int)); err != nil {
		return err
	}
	if j.differs {
		if j.bytes || j.byteFallback {
			return refuse("", "what is different at the start of a text, with bytes,")
		}
		r.t.decoder.first = func(token string) string { return j.text(token, true) }
	}
	r.growth = 0
	return nil
}

// decoderPart reads one decoder; at is 0 while single tokens are dealt with, 1 after
// their bytes, 2 when all is one text, 3 after its start.
func (r *jsonReader) decoderPart(raw []byte, at *int) error {
	if err := r.part(); err != nil {
		return err
	}
	var d struct {
		Type        string            `json:"type"`
		Decoders    []json.RawMessage `json:"decoders"`
		Pattern     jsonPattern       `json:"pattern"`
		Content     string            `json:"content"`
		Start       int               `json:"start"`
		Stop        int               `json:"stop"`
		Prefix      *string           `json:"prefix"`
		Cleanup     *bool             `json:"cleanup"`
		Replacement string            `json:"replacement"`
		Scheme      *prependScheme    `json:"prepend_scheme"`
		PrefixSpace *bool             `json:"add_prefix_space"`
	}
	if err := decode(raw, &d); err != nil {
		return err
	}
	if d.Type == "Sequence" {
		for _, raw := range d.Decoders {
			if err := r.decoderPart(raw, at); err != nil {
				return err
			}
		}
		return nil
	}
	j, misplaced := &r.join, refuse(".type", d.Type+" in this place")
	add := func(s func(string, bool) string) error {
		if *at != 0 {
			return misplaced
		}
		j.steps = append(j.steps, s)
		return nil
	}
	switch d.Type {
	case "ByteLevel":
		if *at != 0 {
			return misplaced
		}
		j.bytes, *at = true, 2
		return nil
	case "ByteFallback":
		if *at != 0 {
			return misplaced
		}
		j.byteFallback, r.t.decoder.wholeRuns, *at = true, true, 1
		return nil
	case "Fuse":
		*at = max(*at, 2)
		return nil
	case "Strip":
		c, n := utf8.DecodeRuneInString(d.Content)
		if n != len(d.Content) || n == 0 || d.Start < 0 || d.Stop < 0 {
			return fmt.Errorf(".content: %w: %q is not one character", ErrInvalid, d.Content)
		}
		if *at == 0 && d.Stop == 0 {
			return add(func(token string, _ bool) string {
				n := d.Start
				trim(&token, &n, c)
				return token
			})
		}
		if *at != 2 || j.bytes || d.Stop != 0 {
			return misplaced
		}
		r.t.decoder.strip, r.t.decoder.stripRune, *at = d.Start, c, 3
		return nil
	case "Replace":
		find, err := r.finder(d.Pattern)
		if err == nil {
			old := 1
			if d.Pattern.String != nil {
				old = len(*d.Pattern.String)
			}
			err = r.grows(old, len(d.Content))
		}
		if err != nil {
			return err
		}
		return add(func(token string, _ bool) string {
			var b strings.Builder
			find(token, func(start, end int, match bool) {
				if match {
					b.WriteString(d.Content)
				} else {
					b.WriteString(token[start:end])
				}
			})
			return b.String()
		})
	case "Metaspace":
		m := metaspace{space: d.Replacement, prepend: prependAlways}
		if d.Scheme != nil {
			m.prepend = *d.Scheme
		}
		if err := m.check(d.PrefixSpace); err != nil {
			return err
		}
		j.differs = j.differs || m.prepend != prependNever
		return add(func(token string, first bool) string {
			if first && m.prepend != prependNever {
				return strings.ReplaceAll(token, m.space, "")
			}
			return strings.ReplaceAll(token, m.space, " ")
		})
	case "WordPiece":
		prefix, cleanup := "##", true
		if d.Prefix != nil {
			prefix = *d.Prefix
		}
		if d.Cleanup != nil {
			cleanup = *d.Cleanup
		}
		j.differs = true
		return add(func(token string, first bool) string {
			switch {
			case !first:
				return afterWord(token, prefix, cleanup)
			case cleanup:
				return clean(token)
			}
			return token
		})
	}
	return refuse(".type", d.Type)
}

func (r *jsonReader) postProcessor(raw []byte) error {
	if !given(raw) {
		return nil
	}
	if err := r.part(); err != nil {
		return err
	}
	var p struct {
		Type       string            `json:"type"`
		Processors []json.RawMessage `json:"processors"`
		Sep        json.RawMessage   `json:"sep"`
		Cls        json.RawMessage   `json:"cls"`
		Single     []struct {
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
	if err := decode(raw, &p); err != nil {
		return err
	}
	switch p.Type {
	case "Sequence":
		for _, raw := range p.Processors {
			if err := r.postProcessor(raw); err != nil {
				return err
			}
		}
		return nil
	case "ByteLevel": // places in the text only
		return nil
	case "BertProcessing", "RobertaProcessing":
		cls, err := r.tokenAndID(".cls", p.Cls)
		if err != nil {
			return err
		}
		sep, err := r.tokenAndID(".sep", p.Sep)
		if err != nil {
			return err
		}
		return r.around([]int32{cls}, []int32{sep})
	case "TemplateProcessing":
	default:
		return refuse(".type", p.Type)
	}
	var front, back []int32
	seen := false
	for _, item := range p.Single {
		switch {
		case item.SpecialToken != nil:
			s, ok := p.SpecialTokens[item.SpecialToken.ID]
			if !ok {
				return fmt.Errorf(".single: %w: %q is not in special_tokens", ErrInvalid, item.SpecialToken.ID)
			}
			for _, id := range s.IDs {
				if !r.t.Has(id) {
					return fmt.Errorf(".special_tokens: %w: %q has id %d, which is not in the vocabulary", ErrInvalid, item.SpecialToken.ID, id)
				}
			}
			if seen {
				back = append(back, s.IDs...)
			} else {
				front = append(front, s.IDs...)
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
	return r.around(front, back)
}

// around puts tokens around what is there already.
func (r *jsonReader) around(front, back []int32) error {
	t := r.t
	t.front, t.back = append(front, t.front...), append(t.back, back...)
	if len(t.front)+len(t.back) > maxAround {
		return refuse("", "that many tokens around a text")
	}
	return nil
}

// maxAround bounds how many tokens a text gets.
const maxAround = 64

// tokenAndID reads ["[CLS]", 101].
func (r *jsonReader) tokenAndID(field string, raw json.RawMessage) (int32, error) {
	var text string
	var id int32
	if err := json.Unmarshal(raw, &[2]any{&text, &id}); err != nil || !r.t.Has(id) {
		return 0, fmt.Errorf("%s: %w: %.100s is not a token and its id", field, ErrInvalid, raw)
	}
	return id, nil
}
