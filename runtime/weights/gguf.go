package weights

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"math"
	"slices"

	"github.com/estiba/estiba/runtime/tensor"
)

// Bounds of a GGUF header beside those of every header. The largest in use have
// a vocabulary of a quarter of a million tokens with twice as many merges (some
// 16 MB) and a few thousand tensors.
const (
	maxGGUFFields = 1 << 16
	maxGGUFKey    = 1 << 16 // bytes
	maxAxes       = 4
	// maxGGUFArray is how long an array may be that is kept though it is not in
	// ggufLong: some models have a number for each layer.
	maxGGUFArray = 1 << 12
	// maxVocabulary is four times the largest in use.
	maxVocabulary = 1 << 20
)

// ggufLong are the long arrays that somebody reads: one entry for each token, or
// two or three merges for one.
var ggufLong = map[string]bool{
	"tokenizer.ggml.tokens": true, "tokenizer.ggml.scores": true, "tokenizer.ggml.token_type": true, "tokenizer.ggml.merges": true,
}

// Unread stands in Header.Fields for an array that nobody reads and that is too
// long, or of strings.
type Unread struct{ Len uint64 }

// ggmlType is a tensor format of GGUF: so many bytes for a block of so many elements.
type ggmlType struct {
	name         string
	block, bytes int64
	dtype        tensor.DType
}

// ggmlTypes by number. Those that this version cannot compute with are here so
// that a file which holds them is checked to its end and refused by name.
// Source: ggml's enum ggml_type and gguf-py's GGML_QUANT_SIZES.
var ggmlTypes = map[uint32]ggmlType{
	0: {"F32", 1, 4, tensor.F32}, 1: {"F16", 1, 2, tensor.F16}, 30: {"BF16", 1, 2, tensor.BF16},
	2: {"Q4_0", 32, 18, tensor.Q4_0}, 3: {"Q4_1", 32, 20, tensor.Q4_1}, 6: {"Q5_0", 32, 22, tensor.Q5_0}, 7: {"Q5_1", 32, 24, tensor.Q5_1},
	8: {"Q8_0", 32, 34, tensor.Q8_0}, 9: {"Q8_1", 32, 40, 0},
	10: {"Q2_K", 256, 84, 0}, 11: {"Q3_K", 256, 110, 0}, 12: {"Q4_K", 256, 144, tensor.Q4_K}, 13: {"Q5_K", 256, 176, tensor.Q5_K},
	14: {"Q6_K", 256, 210, tensor.Q6_K}, 15: {"Q8_K", 256, 292, 0},
	16: {"IQ2_XXS", 256, 66, 0}, 17: {"IQ2_XS", 256, 74, 0}, 18: {"IQ3_XXS", 256, 98, 0}, 19: {"IQ1_S", 256, 50, 0},
	20: {"IQ4_NL", 32, 18, 0}, 21: {"IQ3_S", 256, 110, 0}, 22: {"IQ2_S", 256, 82, 0}, 23: {"IQ4_XS", 256, 136, 0},
	24: {"I8", 1, 1, 0}, 25: {"I16", 1, 2, 0}, 26: {"I32", 1, 4, 0}, 27: {"I64", 1, 8, 0}, 28: {"F64", 1, 8, 0},
	29: {"IQ1_M", 256, 56, 0}, 34: {"TQ1_0", 256, 54, 0}, 35: {"TQ2_0", 256, 66, 0}, 39: {"MXFP4", 32, 17, 0},
}

func readGGUF(path string) (*Header, error) {
	f, size, err := open(path)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	defer f.Close()
	fields, infos, err := parseGGUF(f, size)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	if n, ok := fields["split.count"]; ok && n != uint16(0) && n != uint16(1) {
		return nil, fmt.Errorf("read %s: field split.count: %w: the model is split over %v files; merge them into one (llama-gguf-split --merge does)", path, ErrUnsupported, n)
	}
	for i := range infos {
		infos[i].File = path
	}
	h := &Header{Format: GGUF, Fields: fields, sizes: map[string]int64{path: size}}
	return h, h.add(infos)
}

// parseGGUF reads the header of a file of size bytes.
// Source: ggml's docs/gguf.md; like ggml's reader it wants tensors to lie in
// the order of the header, each at the next aligned byte.
func parseGGUF(file io.ReaderAt, size int64) (map[string]any, []Info, error) {
	r := newGGUFReader(file, size)
	if magic := r.take(4); r.err == nil && string(magic) != "GGUF" {
		return nil, nil, fmt.Errorf("%w: it starts with %q, not with GGUF", ErrInvalid, magic)
	}
	version := r.u32()
	if r.err == nil && version != 2 && version != 3 {
		if version&0xffff == 0 {
			return nil, nil, fmt.Errorf("%w: a big-endian GGUF file", ErrUnsupported)
		}
		return nil, nil, fmt.Errorf("%w: GGUF version %d; versions 2 and 3 are read", ErrUnsupported, version)
	}
	tensors, count := r.u64(), r.u64()
	if r.err != nil {
		return nil, nil, r.err
	}
	if tensors > maxTensors || count > maxGGUFFields {
		return nil, nil, fmt.Errorf("%w: the header claims %d tensors and %d fields; at most %d and %d are read",
			ErrInvalid, tensors, count, maxTensors, maxGGUFFields)
	}
	fields, err := r.fields(count)
	if err != nil {
		return nil, nil, err
	}
	infos, err := r.infos(tensors)
	if err != nil {
		return nil, nil, err
	}
	align, err := alignment(fields)
	if err != nil {
		return nil, nil, err
	}
	data := roundUp(r.at, align)
	if err := placeGGUF(infos, data, align, size); err != nil {
		return nil, nil, err
	}
	return fields, infos, nil
}

func alignment(fields map[string]any) (int64, error) {
	v, ok := fields["general.alignment"]
	if !ok {
		return 32, nil
	}
	a, ok := v.(uint32)
	if !ok || a == 0 || a&(a-1) != 0 || a > 1<<20 {
		return 0, fmt.Errorf("field general.alignment: %w: %v is no power of two", ErrInvalid, v)
	}
	return int64(a), nil
}

// roundUp rounds n up to a multiple of align, a power of two.
func roundUp(n, align int64) int64 { return (n + align - 1) &^ (align - 1) }

// placeGGUF checks where the tensors lie and turns their offsets, which count
// from data, into offsets in the file.
func placeGGUF(infos []Info, data, align, size int64) error {
	next := int64(0) // from data
	for i := range infos {
		t := &infos[i]
		if t.Offset != next {
			return fmt.Errorf("tensor %q: %w: its data starts at byte %d, where %d follows the tensor before it", t.Name, ErrInvalid, t.Offset, next)
		}
		t.Offset += data
		if t.Offset > size || t.Size > size-t.Offset {
			return fmt.Errorf("tensor %q: %w: its data ends at byte %d, but the file has %d bytes; the file is truncated or its header wrong",
				t.Name, ErrInvalid, uint64(t.Offset)+uint64(t.Size), size)
		}
		next = roundUp(next+t.Size, align) // no overflow: both are below size + align
	}
	return nil
}

// ggufReader reads little-endian values from the start of a file. The first
// error stays, and everything after it reads as zero.
type ggufReader struct {
	r   *bufio.Reader
	at  int64 // bytes read
	max int64 // bytes that may be read
	err error
	buf []byte // of the last string
}

func newGGUFReader(file io.ReaderAt, size int64) *ggufReader {
	limit := min(size, maxHeader)
	return &ggufReader{r: bufio.NewReaderSize(io.NewSectionReader(file, 0, limit), 64<<10), max: limit}
}

// room fails unless n more bytes may be read, so that nothing is allocated for
// a length that the file cannot hold.
func (r *ggufReader) room(n uint64) bool {
	if r.err == nil && n > uint64(r.max-r.at) {
		r.err = fmt.Errorf("%w: the header needs %d bytes at byte %d, but the file (or the limit on headers) ends at %d; it is truncated or damaged",
			ErrInvalid, n, r.at, r.max)
	}
	return r.err == nil
}

func (r *ggufReader) take(n int) []byte {
	if !r.room(uint64(n)) {
		return make([]byte, min(n, 8))
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(r.r, b); err != nil {
		r.err = err
	}
	r.at += int64(n)
	return b
}

func (r *ggufReader) u32() uint32 { return uint32(r.number(4)) }
func (r *ggufReader) u64() uint64 { return r.number(8) }

// number of so many bytes, without memory of its own.
func (r *ggufReader) number(bytes int) uint64 {
	var b [8]byte
	if r.room(uint64(bytes)) {
		got, err := r.r.Peek(bytes)
		if err != nil {
			r.err = err
			return 0
		}
		copy(b[:], got)
		r.r.Discard(bytes)
		r.at += int64(bytes)
	}
	return binary.LittleEndian.Uint64(b[:])
}

func (r *ggufReader) string() string { return r.text(r.u64()) }

// text is a string of n bytes.
func (r *ggufReader) text(n uint64) string {
	if !r.room(n) {
		return ""
	}
	r.buf = slices.Grow(r.buf[:0], int(n))[:n]
	if _, err := io.ReadFull(r.r, r.buf); err != nil {
		r.err = err
		return ""
	}
	r.at += int64(n)
	return string(r.buf)
}

// discard passes over n bytes.
func (r *ggufReader) discard(n uint64) {
	if !r.room(n) {
		return
	}
	if _, err := r.r.Discard(int(n)); err != nil {
		r.err = err
	}
	r.at += int64(n)
}

func (r *ggufReader) name(what string, most uint64) string {
	at := r.at
	n := r.u64()
	if r.err == nil && n >= most {
		r.err = fmt.Errorf("%w: the name of a %s at byte %d has %d bytes", ErrInvalid, what, at, n)
	}
	return r.text(n)
}

func (r *ggufReader) fields(count uint64) (map[string]any, error) {
	fields := map[string]any{}
	for range count {
		key := r.name("field", maxGGUFKey)
		kind := r.u32()
		value := r.value(kind, key)
		if r.err != nil {
			return nil, fmt.Errorf("field %q: %w", key, r.err)
		}
		if _, ok := fields[key]; ok {
			return nil, fmt.Errorf("field %q: %w: named twice", key, ErrInvalid)
		}
		fields[key] = value
	}
	return fields, nil
}

// Numbers of GGUF's value types.
const (
	ggufString = 8
	ggufArray  = 9
)

// value reads one value of a type, by GGUF's numbers.
func (r *ggufReader) value(kind uint32, key string) any {
	switch kind {
	case 0:
		return r.take(1)[0]
	case 1:
		return int8(r.take(1)[0])
	case 2:
		return binary.LittleEndian.Uint16(r.take(2))
	case 3:
		return int16(binary.LittleEndian.Uint16(r.take(2)))
	case 4:
		return r.u32()
	case 5:
		return int32(r.u32())
	case 6:
		return math.Float32frombits(r.u32())
	case 7:
		return r.take(1)[0] != 0
	case ggufString:
		return r.string()
	case ggufArray:
		return r.array(key)
	case 10:
		return r.u64()
	case 11:
		return int64(r.u64())
	case 12:
		return math.Float64frombits(r.u64())
	}
	if r.err == nil {
		r.err = fmt.Errorf("%w: value type %d is unknown", ErrInvalid, kind)
	}
	return nil
}

// ggufWidths are the bytes of a value of each type that has a fixed number of them.
var ggufWidths = map[uint32]uint64{0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}

func (r *ggufReader) array(key string) any {
	kind, n := r.u32(), r.u64()
	if r.err == nil && ggufLong[key] && n > maxVocabulary {
		r.err = fmt.Errorf("%w: it has %d entries; a vocabulary of at most %d is read", ErrUnsupported, n, maxVocabulary)
	}
	if width, fixed := ggufWidths[kind]; !ggufLong[key] && (kind == ggufString || fixed && n > maxGGUFArray) {
		return r.unread(n, width)
	}
	switch kind {
	case 0:
		return values(r, n, 1, func(b []byte) uint8 { return b[0] })
	case 1:
		return values(r, n, 1, func(b []byte) int8 { return int8(b[0]) })
	case 2:
		return values(r, n, 2, binary.LittleEndian.Uint16)
	case 3:
		return values(r, n, 2, func(b []byte) int16 { return int16(binary.LittleEndian.Uint16(b)) })
	case 4:
		return values(r, n, 4, binary.LittleEndian.Uint32)
	case 5:
		return values(r, n, 4, func(b []byte) int32 { return int32(binary.LittleEndian.Uint32(b)) })
	case 6:
		return values(r, n, 4, func(b []byte) float32 { return math.Float32frombits(binary.LittleEndian.Uint32(b)) })
	case 7:
		return values(r, n, 1, func(b []byte) bool { return b[0] != 0 })
	case ggufString:
		return r.strings(n)
	case 10:
		return values(r, n, 8, binary.LittleEndian.Uint64)
	case 11:
		return values(r, n, 8, func(b []byte) int64 { return int64(binary.LittleEndian.Uint64(b)) })
	case 12:
		return values(r, n, 8, func(b []byte) float64 { return math.Float64frombits(binary.LittleEndian.Uint64(b)) })
	}
	if r.err == nil {
		r.err = fmt.Errorf("%w: an array of value type %d", ErrUnsupported, kind)
	}
	return nil
}

// unread passes over an array of n values of width bytes, or of strings if that is 0.
func (r *ggufReader) unread(n, width uint64) Unread {
	if width > 0 && n <= math.MaxInt64/8 {
		r.discard(n * width)
		return Unread{n}
	}
	r.room(n) // no string is shorter
	for i := uint64(0); i < n && r.err == nil; i++ {
		r.discard(r.u64())
	}
	return Unread{n}
}

// values reads n values of width bytes.
func values[T any](r *ggufReader, n uint64, width int, get func([]byte) T) []T {
	if n > math.MaxInt64/8 || !r.room(n*uint64(width)) {
		r.room(math.MaxUint64)
		return nil
	}
	raw := r.take(int(n) * width)
	if r.err != nil {
		return nil
	}
	out := make([]T, n)
	for i := range out {
		out[i] = get(raw[i*width:])
	}
	return out
}

func (r *ggufReader) strings(n uint64) []string {
	const least = 8 // bytes of a string: its length
	if n > math.MaxInt64/least || !r.room(n*least) {
		r.room(math.MaxUint64)
		return nil
	}
	out := make([]string, 0, n)
	for range n {
		out = append(out, r.string())
		if r.err != nil {
			return nil
		}
	}
	return out
}

// infos reads what the header says about each tensor; offsets count from the data.
func (r *ggufReader) infos(count uint64) ([]Info, error) {
	var infos []Info
	seen := map[string]struct{}{}
	for range count {
		name := r.name("tensor", maxName)
		n := r.u32()
		if r.err == nil && n > maxAxes {
			return nil, fmt.Errorf("tensor %q: %w: %d axes; at most %d", name, ErrInvalid, n, maxAxes)
		}
		axes := make([]int64, min(n, maxAxes))
		for i := range axes {
			axes[len(axes)-1-i] = int64(r.u64()) // GGUF has the fastest axis first; above 2^63 it reads as negative
		}
		kind, offset := r.u32(), r.u64()
		if r.err != nil {
			return nil, fmt.Errorf("tensor %q: %w", name, r.err)
		}
		if _, ok := seen[name]; ok {
			return nil, fmt.Errorf("tensor %q: %w: named twice", name, ErrInvalid)
		}
		seen[name] = struct{}{}
		info, err := ggufInfo(kind, axes, offset)
		if err != nil {
			return nil, fmt.Errorf("tensor %q: %w", name, err)
		}
		info.Name = name
		infos = append(infos, info)
	}
	return infos, nil
}

func ggufInfo(kind uint32, axes []int64, offset uint64) (Info, error) {
	t, ok := ggmlTypes[kind]
	if !ok {
		return Info{}, fmt.Errorf("%w: tensor type %d is unknown", ErrUnsupported, kind)
	}
	s, n, err := shape(axes)
	if err != nil {
		return Info{}, err
	}
	row := int64(1)
	if len(s) > 0 {
		row = int64(s[len(s)-1])
	}
	if row%t.block != 0 {
		return Info{}, fmt.Errorf("%w: rows of %d elements are no whole blocks of %s, which have %d", ErrInvalid, row, t.name, t.block)
	}
	if n/t.block > math.MaxInt64/t.bytes || offset > math.MaxInt64 {
		return Info{}, fmt.Errorf("%w: shape %v of %s at offset %d does not fit in 64 bits", ErrInvalid, s, t.name, offset)
	}
	return Info{DType: t.dtype, Stored: t.name, Shape: s, Offset: int64(offset), Size: n / t.block * t.bytes}, nil
}
