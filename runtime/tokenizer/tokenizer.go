// Package tokenizer turns text into the ids of a model's vocabulary and back. It reads
// tokenizer.json (byte-pair encodings and WordPiece), tokenizer.model (SentencePiece's
// byte-pair encoding), vocab.txt (WordPiece) and what GGUF files have; what would come
// out differently here than with the model's own tokenizer is refused by name. Start with
// Open, Encode and Stream.
//
// A text passes through: added tokens cut out (added.go), normalization
// (normalize.go), splits (pretokenize.go), the model that turns each part into
// ids (bpe.go, wordpiece.go), and the tokens around it. Source, where nothing else is
// said: the library tokenizers by Hugging Face, whose results these are.
package tokenizer

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"unicode/utf8"

	"github.com/estiba/estiba/runtime/weights"
)

var (
	// ErrInvalid: the tokenizer's files contradict themselves or their format.
	ErrInvalid = errors.New("invalid tokenizer")
	// ErrUnsupported: the tokenizer may be good, but would be applied wrongly here.
	ErrUnsupported = errors.New("unsupported tokenizer")
)

// Bounds of what is read. The largest in use have a quarter of a million tokens
// with twice as many merges, some 33 MB of JSON, and some thousand special tokens.
const (
	maxFile       = 64 << 20 // bytes
	maxConfig     = 8 << 20  // bytes of tokenizer_config.json
	maxVocabulary = 1 << 20  // tokens, and merges
	maxSpecials   = 1 << 16
)

// space is how SentencePiece's vocabularies write a space.
const space = "▁"

const replacement = string(utf8.RuneError)

// Tokenizer does not change once made; any number of goroutines may use it.
type Tokenizer struct {
	vocabulary

	raw        added  // cut out of the text as it is
	chat       *added // cut out of a rendered chat instead, if that differs
	normalized added  // cut out of the normalized text
	normalizer []step // for each part between raw added tokens
	splits     []split
	model      model

	front, back []int32 // around a text
	decoder     decoder
}

// model turns a part of a text into ids, which it appends.
type model interface {
	encode(part string, ids []int32) []int32
	memory() int64 // bytes beside the vocabulary's
}

// Open reads the tokenizer of a checkpoint: of a folder its tokenizer.json, else its
// tokenizer.model, else its vocab.txt; one of these; or what a .gguf file has. Any
// other file stands for its folder. Without any it is fs.ErrNotExist.
func Open(path string) (*Tokenizer, error) {
	stat, err := os.Stat(path)
	if e, ok := errors.AsType[*fs.PathError](err); ok {
		return nil, fmt.Errorf("read %s: %w; give a folder with tokenizer.json, tokenizer.model or vocab.txt, or a .gguf file", path, e.Err)
	}
	switch {
	case stat.IsDir():
		return openFolder(path, "")
	case strings.EqualFold(filepath.Ext(path), ".gguf"):
		return openGGUF(path)
	}
	dir, name := filepath.Split(path)
	for _, kind := range kinds {
		if kind.name == name {
			return openFolder(filepath.Clean(dir), name)
		}
	}
	return openFolder(filepath.Clean(dir), "")
}

// kinds are the files that tokenizers come in; the first that is there counts.
var kinds = []struct {
	name  string
	parse func(text, config []byte) (*Tokenizer, error) // nil: ParseJSON
}{{"tokenizer.json", nil}, {"tokenizer.model", ParseSentencePiece}, {"vocab.txt", ParseBERT}}

func openGGUF(path string) (*Tokenizer, error) {
	h, err := weights.Read(path)
	if err != nil {
		return nil, err
	}
	t, err := FromGGUF(h.Fields)
	if err == nil && t == nil {
		err = fmt.Errorf("tokenizer.ggml.model: %w: the file has no tokenizer", fs.ErrNotExist)
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return t, nil
}

// openFolder reads the file called only, or the first of all kinds.
func openFolder(dir, only string) (*Tokenizer, error) {
	read := func(name string, most int64) ([]byte, error) {
		return weights.ReadSmallFile(filepath.Join(dir, name), most)
	}
	config := func() ([]byte, error) {
		text, err := read("tokenizer_config.json", maxConfig)
		if errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
		return text, err
	}
	for _, kind := range kinds {
		if only != "" && kind.name != only {
			continue
		}
		text, err := read(kind.name, maxFile)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		var t *Tokenizer
		switch {
		case err != nil:
		case kind.parse == nil:
			t, err = ParseJSON(text)
		default:
			if beside, e := config(); e == nil {
				t, err = kind.parse(text, beside)
			} else {
				err = e
			}
		}
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", filepath.Join(dir, kind.name), err)
		}
		return t, nil
	}
	return nil, fmt.Errorf("read %s: %w: it has no tokenizer.json, tokenizer.model or vocab.txt", dir, fs.ErrNotExist)
}

// Size is one more than the largest id.
func (t *Tokenizer) Size() int { return len(t.pieces) }

// Has says whether an id stands for anything.
func (t *Tokenizer) Has(id int32) bool { return t.piece(id).kind != isNothing }

// Text is a token as it is in the files, such as "<s>" or "Ġthe"; "" for other ids.
func (t *Tokenizer) Text(id int32) string {
	p := t.piece(id)
	if p.mapped {
		return toAlphabet(p.key)
	}
	return p.key
}

// TokenBytes is what a token adds in the middle of a text: a byte token that byte, a
// first word its space. It is not ok for special tokens and ids that stand for nothing.
func (t *Tokenizer) TokenBytes(id int32) (bytes []byte, ok bool) {
	switch p := t.piece(id); {
	case p.kind == isNothing || p.hidden:
		return nil, false
	case p.kind == isByte:
		return []byte{p.byte}, true
	default:
		return []byte(p.text), true
	}
}

// Bytes is about the memory that the tokenizer takes.
func (t *Tokenizer) Bytes() int64 {
	n := t.vocabulary.bytes() + t.raw.bytes() + t.normalized.bytes() + t.model.memory()
	if len(t.splits) > 0 {
		n += patternBytes
	}
	if t.chat != nil {
		n += t.chat.bytes()
	}
	return n
}

// patternBytes is about what the tables of a split pattern take.
const patternBytes = 64 << 10

// Encode gives the ids of a text. With special, the tokens that the model wants
// around a text (mostly a begin token) are added. Special tokens that are
// written in the text become those tokens, except with tokenizer.model. Invalid
// UTF-8 counts as U+FFFD.
func (t *Tokenizer) Encode(text string, special bool) []int32 {
	if !utf8.ValidString(text) {
		text = lossy([]byte(text), false)
	}
	var ids []int32
	if special {
		ids = append(ids, t.front...)
	}
	ids = t.encode(text, &t.raw, nil, ids)
	if special {
		ids = append(ids, t.back...)
	}
	return ids
}

// EncodeChat gives the ids of a rendered chat: nothing is put around it, and special
// tokens written in it become those tokens. In the ranges of bytes in users (start and
// end of each; sorted, disjoint), which hold what users wrote, they are text, and so are other
// added tokens that look like control tokens ("<|user|>").
func (t *Tokenizer) EncodeChat(text string, users [][2]int) []int32 {
	if !utf8.ValidString(text) {
		text, users = validPieces(text, users)
	}
	raw := &t.raw
	if t.chat != nil {
		raw = t.chat
	}
	return t.encode(text, raw, users, nil)
}

// validPieces makes each piece of a text valid UTF-8 by itself.
func validPieces(text string, users plain) (string, plain) {
	var b strings.Builder
	var moved plain
	done := 0
	for _, u := range users {
		b.WriteString(lossy([]byte(text[done:u[0]]), false))
		start := b.Len()
		b.WriteString(lossy([]byte(text[u[0]:u[1]]), false))
		moved, done = append(moved, [2]int{start, b.Len()}), u[1]
	}
	b.WriteString(lossy([]byte(text[done:]), false))
	return b.String(), moved
}

func (t *Tokenizer) encode(text string, raw *added, users plain, ids []int32) []int32 {
	next := func(part string, _ bool) { ids = t.model.encode(part, ids) }
	for i := len(t.splits) - 1; i >= 0; i-- {
		do, then := t.splits[i], next
		next = func(part string, first bool) { do(part, first, then) }
	}
	raw.split(text, users, func(part string, start int, id int32) {
		if id != noID {
			ids = append(ids, id)
			return
		}
		part, users := t.normalize(part, start, users)
		t.normalized.split(part, users, func(part string, at int, id int32) {
			if id != noID {
				ids = append(ids, id)
				return
			}
			next(part, start == 0 && at == 0)
		})
	})
	return ids
}

// normalize also says what users wrote of the normalized part, which starts at a byte
// of the text. For that their text is normalized by itself, so that nothing in it moves
// the border; it matters only where control tokens are looked for in normalized text.
func (t *Tokenizer) normalize(part string, start int, users plain) (string, plain) {
	if len(users) == 0 || !t.normalized.control {
		return normalize(t.normalizer, part, edges{true, true, start == 0}), nil
	}
	var b strings.Builder
	var moved plain
	done, end := 0, len(part)
	write := func(to int) {
		if done < to {
			b.WriteString(normalize(t.normalizer, part[done:to], edges{done == 0, to == end, start == 0}))
			done = to
		}
	}
	for _, u := range users[users.after(start):] {
		from, to := max(u[0]-start, 0), min(u[1]-start, end)
		if from >= end {
			break
		}
		if from >= to {
			continue
		}
		write(from)
		at := b.Len()
		write(to)
		moved = append(moved, [2]int{at, b.Len()})
	}
	write(end)
	return b.String(), moved
}
