package cpu

import (
	"encoding/binary"
	"unsafe"
)

// Read reads data, whose length is a multiple of 256, as fast as the path can, and gives the
// exclusive or of its 64-bit words: the roof of what reads memory. A rest is not read.
func (p Path) Read(data []byte) uint64 {
	if p == PlainGo {
		return ReadRef(data)
	}
	a := readArgs{unsafe.SliceData(data), int64(len(data) / 256 * 256), 0}
	readBytes(p, unsafe.Pointer(&a))
	return a.sum
}

// readArgs is struct read of read.c.
type readArgs struct {
	data *byte
	n    int64
	sum  uint64
}

// ReadRef is Read word by word.
func ReadRef(data []byte) uint64 {
	sum := uint64(0)
	for ; len(data) >= 8; data = data[8:] {
		sum ^= binary.LittleEndian.Uint64(data)
	}
	return sum
}
