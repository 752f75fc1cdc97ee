package tokenizer

import (
	"fmt"
	"hash/maphash"
	"math"
	"strings"
	"unicode/utf8"
	"unsafe"
)

// piece is what an id stands for.
type piece struct {
	key  string // what texts are compared with: of a byte-level vocabulary its bytes, otherwise as in the files
	text string // what it adds to a text: real spaces; of isBytes any bytes
	kind kind
	byte byte // of isByte
	// hidden: a special token, which Decode leaves out unless asked.
	hidden bool
	// mapped: in the files its bytes are written in GPT-2's alphabet.
	mapped bool
}

type kind uint8

const (
	isNothing kind = iota // a gap in the ids: decodes to nothing
	isText
	isByte  // "<0x0A>": a run of them is as many characters as it spells
	isBytes // part of a text in bytes, which may end within a character
)

// vocabulary is the tokens, by id and by key.
type vocabulary struct {
	pieces []piece
	index  index
}

func (v *vocabulary) piece(id int32) piece {
	if id < 0 || int(id) >= len(v.pieces) {
		return piece{}
	}
	return v.pieces[id]
}

// add makes a piece's key one that find gives.
func (v *vocabulary) add(id int32) {
	x := &v.index
	if 3*(x.used+1) > 2*len(x.slots) {
		x.grow(v.pieces)
	}
	if at, ok := x.at(v.pieces, v.pieces[id].key); ok {
		x.slots[at] = id + 1
	} else {
		x.slots[at], x.used = id+1, x.used+1
	}
}

func (v *vocabulary) find(key string) (int32, bool) {
	if len(v.index.slots) == 0 {
		return noID, false
	}
	at, ok := v.index.at(v.pieces, key)
	return v.index.slots[at] - 1, ok
}

// noID is the id of what is no piece (yet).
const noID = -1

// index is a hash table of ids, with open addressing: the keys are the pieces'.
type index struct {
	slots []int32 // id + 1; 0 is free
	used  int
}

var seed = maphash.MakeSeed()

// at is where key is, or would be.
func (x *index) at(pieces []piece, key string) (int, bool) {
	mask := len(x.slots) - 1
	for i := int(maphash.String(seed, key)) & mask; ; i = (i + 1) & mask {
		switch id := x.slots[i]; {
		case id == 0:
			return i, false
		case pieces[id-1].key == key:
			return i, true
		}
	}
}

func (x *index) grow(pieces []piece) {
	old := x.slots
	x.slots = make([]int32, max(16, 2*len(old)))
	for _, id := range old {
		if id > 0 {
			at, _ := x.at(pieces, pieces[id-1].key)
			x.slots[at] = id
		}
	}
}

func (v *vocabulary) bytes() int64 {
	const round = 8 // what an allocation is rounded up by, on average and then some
	n := int64(len(v.pieces))*int64(unsafe.Sizeof(piece{})) + 4*int64(len(v.index.slots))
	for _, p := range v.pieces {
		n += int64(len(p.key)) + round
		if p.text != "" && unsafe.StringData(p.text) != unsafe.StringData(p.key) {
			n += int64(len(p.text)) + round
		}
	}
	return n
}

// room checks that ids up to max may be kept in a slice for n tokens: a
// vocabulary has few gaps, and a file must not make us allocate for one.
func room(max int64, n int) error {
	if max > math.MaxInt32 || max >= 4*int64(n)+1<<16 {
		return fmt.Errorf("%w: id %d in a vocabulary of %d tokens", ErrInvalid, max, n)
	}
	return nil
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

// noBytes is a vocabulary without byte pieces.
var noBytes = func() (b [256]int32) {
	for i := range b {
		b[i] = noID
	}
	return b
}()

// alphabet is GPT-2's: each byte as a character that can be seen.
// Source: openai/gpt-2, src/encoder.py, bytes_to_unicode.
var alphabet, alphabetBytes = func() (chars [256]string, bytes map[rune]byte) {
	bytes = map[rune]byte{}
	next := rune(256)
	for b := range 256 {
		r := rune(b)
		if !('!' <= b && b <= '~' || 0xa1 <= b && b <= 0xac || 0xae <= b) {
			r, next = next, next+1
		}
		chars[b], bytes[r] = string(r), byte(b)
	}
	return chars, bytes
}()

// toAlphabet writes bytes as tokenizer files do.
func toAlphabet(bytes string) string {
	var b strings.Builder
	b.Grow(len(bytes) + len(bytes)/4)
	for i := range len(bytes) {
		b.WriteString(alphabet[bytes[i]])
	}
	return b.String()
}

// fromAlphabet gives the bytes; not ok if it is not written in the alphabet.
func fromAlphabet(text string) (bytes string, ok bool) {
	plain := true
	for i := range len(text) {
		if text[i] < '!' || text[i] > '~' {
			plain = false
			break
		}
	}
	if plain {
		return text, true
	}
	var buf [64]byte
	out := buf[:0]
	for _, r := range text {
		b, ok := alphabetBytes[r]
		if !ok {
			return text, false
		}
		out = append(out, b)
	}
	return string(out), true
}

// lossy is bytes as text, with U+FFFD for what is no character: for each byte of it,
// as SentencePiece does it, or else for each start of a character that breaks off, as
// the Unicode Standard recommends (section 3.9) and Rust's strings do.
func lossy(b []byte, eachByte bool) string {
	if utf8.Valid(b) {
		return string(b)
	}
	var text strings.Builder
	for len(b) > 0 {
		r, n := utf8.DecodeRune(b)
		if r == utf8.RuneError && n == 1 && !eachByte {
			n = brokenStart(b)
		}
		text.WriteRune(r)
		b = b[n:]
	}
	return text.String()
}

// brokenStart is how many bytes at the start of b, where no character is, are the
// start of one: at least 1.
func brokenStart(b []byte) int {
	low, high, n := byte(0x80), byte(0xbf), 0
	switch c := b[0]; {
	case 0xc2 <= c && c <= 0xdf:
		n = 1
	case 0xe0 <= c && c <= 0xef:
		n = 2
	case 0xf0 <= c && c <= 0xf4:
		n = 3
	}
	switch b[0] {
	case 0xe0:
		low = 0xa0
	case 0xed:
		high = 0x9f
	case 0xf0:
		low = 0x90
	case 0xf4:
		high = 0x8f
	}
	i := 1
	for ; i < len(b) && i <= n && low <= b[i] && b[i] <= high; i++ {
		low, high = 0x80, 0xbf
	}
	return i
}

// incomplete is how many bytes at the end of b are a character's start that may go on.
func incomplete(b []byte) int {
	for n := 1; n <= min(3, len(b)); n++ {
		if tail := b[len(b)-n:]; utf8.RuneStart(tail[0]) {
			if !utf8.FullRune(tail) {
				return n
			}
			return 0
		}
	}
	return 0
}
