// Package tokenizer turns text into the ids of a model's vocabulary and back.
// It reads byte-pair encodings of the SentencePiece kind, from tokenizer.json,
// tokenizer.model and GGUF; what would come out differently here than with the
// model's own tokenizer is refused by name. Start with Open, Encode and Stream.
//
// A text passes through: special tokens cut out, normalization (a space in
// front, spaces as "▁"), merges (merge.go), and the tokens around it.
package tokenizer

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"path/filepath"
	"strings"
	"unicode/utf8"
	"unsafe"

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

// space is how these vocabularies write a space.
const space = "▁"

const replacement = string(utf8.RuneError)

// Tokenizer does not change once made; any number of goroutines may use it.
type Tokenizer struct {
	pieces []piece // by id
	bytes  [256]int32
	// unknown stands for a character that has no piece and no bytes; -1 drops it.
	unknown     int32
	fuseUnknown bool // one for a run of such characters

	rawSpecial  splitter // cut out of the text as it is
	normSpecial splitter // cut out of the normalized text
	steps       []step   // of normalization, for each part between raw special tokens
	merges      merges

	front, back []int32 // around a text
	strip       int     // spaces that Decode drops from the start of a text
	// wholeRuns: a run of byte tokens that is no valid UTF-8 is all U+FFFD, as with
	// Hugging Face's ByteFallback; otherwise its valid characters stay, as with SentencePiece.
	wholeRuns bool
}

// piece is what an id stands for.
type piece struct {
	text   string // decoded: with real spaces
	kind   kind
	byte   byte // of isByte
	hidden bool // a special token, which Decode leaves out unless asked
}

type kind uint8

const (
	isNothing kind = iota // a gap in the ids: decodes to nothing
	isText
	isByte
)

// step is one step of normalization.
type step struct {
	prepend  string // put in front of a text that is not empty
	old, new string // otherwise, replace every old
}

func normalize(steps []step, text string) string {
	for _, s := range steps {
		switch {
		case s.prepend != "" && text != "":
			text = s.prepend + text
		case s.old != "":
			text = strings.ReplaceAll(text, s.old, s.new)
		}
	}
	return text
}

// Open reads the tokenizer of a checkpoint: a folder's tokenizer.json, else its
// tokenizer.model; or what a .gguf file has. Without any it is fs.ErrNotExist.
func Open(path string) (*Tokenizer, error) {
	if strings.EqualFold(filepath.Ext(path), ".gguf") {
		return openGGUF(path)
	}
	return openFolder(path)
}

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

func openFolder(dir string) (*Tokenizer, error) {
	read := func(name string, most int64) ([]byte, error) {
		return weights.ReadSmallFile(filepath.Join(dir, name), most)
	}
	name := "tokenizer.json"
	text, err := read(name, maxFile)
	var t *Tokenizer
	switch {
	case err == nil:
		t, err = ParseJSON(text)
	case errors.Is(err, fs.ErrNotExist):
		if text, err = read("tokenizer.model", maxFile); err != nil {
			break // the folder has neither
		}
		name = "tokenizer.model"
		var config []byte
		if config, err = read("tokenizer_config.json", maxConfig); err == nil || errors.Is(err, fs.ErrNotExist) {
			t, err = ParseSentencePiece(text, config)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", filepath.Join(dir, name), err)
	}
	return t, nil
}

// Size is one more than the largest id.
func (t *Tokenizer) Size() int { return len(t.pieces) }

// Has says whether an id stands for anything.
func (t *Tokenizer) Has(id int32) bool { return t.piece(id).kind != isNothing }

// Bytes is about the memory that the tokenizer takes.
func (t *Tokenizer) Bytes() int64 {
	const (
		text  = 8 // beside its length: what an allocation is rounded up by, on average and then some
		slots = 2 // of a map, for an entry
	)
	n := int64(len(t.pieces)) * int64(unsafe.Sizeof(piece{}))
	for _, p := range t.pieces {
		n += int64(len(p.text)) + text
	}
	entry := func(key, value uintptr) int64 { return slots * int64(key+value+1) }
	for key := range t.merges.chars {
		n += int64(len(key)) + text + entry(unsafe.Sizeof(key), unsafe.Sizeof(int32(0)))
	}
	for key := range t.merges.scored {
		n += int64(len(key)) + text + entry(unsafe.Sizeof(key), unsafe.Sizeof(scoredPiece{}))
	}
	return n + int64(len(t.merges.ranked))*entry(unsafe.Sizeof([2]int32{}), unsafe.Sizeof(rankedMerge{}))
}

// Encode gives the ids of a text. With special, the tokens that the model wants
// around a text (mostly a begin token) are added. Special tokens that are
// written in the text become those tokens, except with tokenizer.model. Invalid
// UTF-8 counts as U+FFFD.
func (t *Tokenizer) Encode(text string, special bool) []int32 {
	text = strings.ToValidUTF8(text, replacement)
	var ids []int32
	if special {
		ids = append(ids, t.front...)
	}
	t.rawSpecial.split(text, func(part string, id int32) {
		if id >= 0 {
			ids = append(ids, id)
			return
		}
		t.normSpecial.split(normalize(t.steps, part), func(part string, id int32) {
			if id >= 0 {
				ids = append(ids, id)
				return
			}
			ids = t.encodePart(part, ids)
		})
	})
	if special {
		ids = append(ids, t.back...)
	}
	return ids
}

// Decode gives the text of ids. With special, special tokens are part of it.
// Ids outside the vocabulary give nothing.
func (t *Tokenizer) Decode(ids []int32, special bool) string {
	var text strings.Builder
	var run []byte
	endRun := func() {
		if len(run) == 0 {
			return
		}
		if t.wholeRuns && !utf8.Valid(run) {
			text.WriteString(strings.Repeat(replacement, len(run)))
		} else {
			text.WriteString(lossy(run))
		}
		run = run[:0]
	}
	for _, id := range ids {
		switch p := t.piece(id); {
		case p.kind == isNothing || p.hidden && !special:
		case p.kind == isByte:
			run = append(run, p.byte)
		default:
			endRun()
			text.WriteString(p.text)
		}
	}
	endRun()
	out := text.String()
	for range t.strip {
		out = strings.TrimPrefix(out, " ")
	}
	return out
}

func (t *Tokenizer) piece(id int32) piece {
	if id < 0 || int(id) >= len(t.pieces) {
		return piece{}
	}
	return t.pieces[id]
}

// lossy is bytes as text, each byte that is part of no character as U+FFFD.
func lossy(b []byte) string {
	if utf8.Valid(b) {
		return string(b)
	}
	var text strings.Builder
	for len(b) > 0 {
		r, n := utf8.DecodeRune(b)
		text.WriteRune(r)
		b = b[n:]
	}
	return text.String()
}

// Stream decodes a text as its ids come. What Push and Flush return, put
// together, is what Decode gives without special tokens (but see wholeRuns: of an
// ill-formed run of bytes, a stream keeps the valid characters). It is not for
// concurrent use.
type Stream struct {
	t     *Tokenizer
	strip int    // spaces still to be dropped
	bytes []byte // start of a character
}

// Stream starts a text that goes on after the ids of a prompt: the first word
// of an answer keeps its space. Without a prompt it starts a text.
func (t *Tokenizer) Stream(prompt ...int32) *Stream {
	s := &Stream{t: t, strip: t.strip}
	for _, id := range prompt {
		s.Push(id)
	}
	return s
}

// Push takes the next id and gives the text that is certain now: whole
// characters, or "" while one is incomplete.
func (s *Stream) Push(id int32) string {
	p := s.t.piece(id)
	switch {
	case p.kind == isNothing || p.hidden:
		return ""
	case p.kind == isText:
		return s.trim(s.drain() + p.text)
	}
	s.bytes = append(s.bytes, p.byte)
	if !utf8.FullRune(s.bytes) {
		return ""
	}
	// At most four bytes: either a character, or one byte that is none and then the rest.
	var text string
	for len(s.bytes) > 0 && utf8.FullRune(s.bytes) {
		r, n := utf8.DecodeRune(s.bytes)
		text += string(r)
		s.bytes = s.bytes[n:]
	}
	return s.trim(text)
}

// Flush gives what is left when no more ids come: bytes of a character that
// was never completed, as U+FFFD.
func (s *Stream) Flush() string { return s.trim(s.drain()) }

func (s *Stream) drain() string {
	text := lossy(s.bytes)
	s.bytes = nil
	return text
}

// trim drops the spaces that a text starts with in the vocabulary only.
func (s *Stream) trim(text string) string {
	for s.strip > 0 && text != "" {
		if text[0] != ' ' {
			s.strip = 0
			break
		}
		text = text[1:]
		s.strip--
	}
	return text
}

// byteOf is the value of a byte piece such as "<0x0A>".
func byteOf(piece string) (byte, bool) {
	if len(piece) != 6 || piece[:3] != "<0x" || piece[5] != '>' {
		return 0, false
	}
	hi, lo := hex(piece[3]), hex(piece[4])
	return byte(hi<<4 | lo), hi >= 0 && lo >= 0
}

func hex(c byte) int {
	switch {
	case '0' <= c && c <= '9':
		return int(c - '0')
	case 'A' <= c && c <= 'F':
		return int(c - 'A' + 10)
	case 'a' <= c && c <= 'f':
		return int(c - 'a' + 10)
	}
	return -1
}

func bytePiece(b byte) string { return fmt.Sprintf("<0x%02X>", b) }

// room checks that ids up to max may be kept in a slice for n tokens: a
// vocabulary has few gaps, and a file must not make us allocate for one.
func room(max int64, n int) error {
	if max > math.MaxInt32 || max >= 4*int64(n)+1<<16 {
		return fmt.Errorf("%w: id %d in a vocabulary of %d tokens", ErrInvalid, max, n)
	}
	return nil
}
