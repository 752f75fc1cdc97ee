package weights

import (
	"fmt"
	"strings"
	"unicode/utf8"
)

// Bounds of what the headers of one checkpoint may take. A terabyte in ninety
// thousand tensors, the most seen, has some 22 MB of index and headers.
const (
	maxHeader  = 32 << 20 // bytes of one file's
	maxHeaders = 64 << 20 // of all files', with their index
	maxTensors = 1 << 18
	maxName    = 1 << 12 // bytes of a tensor's name
)

// budget is what the headers of one checkpoint may still take. It is spent
// before anything is allocated for it.
type budget struct{ bytes, tensors int64 }

func newBudget() *budget { return &budget{bytes: maxHeaders, tensors: maxTensors} }

// header takes the bytes of a file's header.
func (b *budget) header(n uint64) error {
	if n > maxHeader {
		return fmt.Errorf("%w: the header claims %d bytes; at most %d are read", ErrInvalid, n, maxHeader)
	}
	if b.bytes -= int64(n); b.bytes < 0 {
		return fmt.Errorf("%w: the headers of the checkpoint have more than %d bytes together", ErrInvalid, maxHeaders)
	}
	return nil
}

// tensor takes one tensor, whose name has been read.
func (b *budget) tensor(name string) error {
	if len(name) > maxName || strings.ContainsRune(name, utf8.RuneError) { // which is how broken bytes come, three for one
		return fmt.Errorf("tensor %q: %w: its name has more than %d bytes, or is no UTF-8", clip(name), ErrInvalid, maxName)
	}
	if b.tensors--; b.tensors < 0 {
		return fmt.Errorf("%w: the headers of the checkpoint name more than %d tensors", ErrInvalid, maxTensors)
	}
	return nil
}

// clip shortens a text that a message quotes.
func clip(text string) string {
	const most = 100
	if len(text) <= most {
		return text
	}
	return strings.ToValidUTF8(text[:most], "") + "…"
}
