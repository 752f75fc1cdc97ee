package weights

import (
	"encoding/binary"
	"fmt"
	"math"

	"github.com/estiba/estiba/runtime/tensor"
)

// Field is one key-value pair of a GGUF file. Value is a uint32, uint64, int32, float32,
// bool or string, or a slice of int32, float32 or string.
type Field struct {
	Key   string
	Value any
}

// GGUFAlignment is where data starts in the files that GGUFHeader lays out: at multiples of so many bytes.
const GGUFAlignment = 32

// GGUFHeader gives the bytes before the data of a GGUF file, version 3, with these fields and
// tensors, of which Name, DType and Shape are read; it sets Stored, Size and
// Offset. Data follows in the order of tensors, each filled up with zeros to GGUFAlignment.
// It panics on a value of another type. Source: ggml's docs/gguf.md.
func GGUFHeader(fields []Field, tensors []Info) ([]byte, error) {
	b := binary.LittleEndian.AppendUint32([]byte("GGUF"), 3)
	b = appendGGUF(b, uint64(len(tensors)))
	b = appendGGUF(b, uint64(len(fields)))
	for _, f := range fields {
		b = appendGGUF(b, f.Key)
		kind, array := ggufKind(f.Value)
		if array {
			b = appendGGUF(b, uint32(ggufArray))
		}
		b = appendGGUF(b, kind)
		b = appendGGUF(b, f.Value)
	}
	kinds := map[tensor.DType]uint32{}
	for kind, t := range ggmlTypes {
		kinds[t.dtype] = kind
	}
	end := int64(0)
	for i := range tensors {
		t := &tensors[i]
		n, ok := t.Shape.Elements()
		if !ok || len(t.Shape) == 0 || len(t.Shape) > maxAxes || t.DType.Block() == 0 || t.Shape[len(t.Shape)-1]%t.DType.Block() != 0 {
			return nil, fmt.Errorf("tensor %q: %w: GGUF has no %v of shape %v", t.Name, ErrInvalid, t.DType, t.Shape)
		}
		if n > math.MaxInt64/8 || end > math.MaxInt64/2-8*n { // no number takes more than 4 bytes
			return nil, fmt.Errorf("tensor %q: %w: shape %v does not fit in 64 bits", t.Name, ErrInvalid, t.Shape)
		}
		t.Stored, t.Offset, t.Size = t.DType.String(), end, t.DType.Bytes(n)
		end = roundUp(end+t.Size, GGUFAlignment)
		b = appendGGUF(b, t.Name)
		b = appendGGUF(b, uint32(len(t.Shape)))
		for j := range t.Shape {
			b = appendGGUF(b, uint64(t.Shape[len(t.Shape)-1-j]))
		}
		b = appendGGUF(b, kinds[t.DType])
		b = appendGGUF(b, uint64(t.Offset))
	}
	for len(b)%GGUFAlignment != 0 {
		b = append(b, 0)
	}
	for i := range tensors {
		tensors[i].Offset += int64(len(b))
	}
	return b, nil
}

// ggufKind is GGUF's number for the type of a value, or of its entries.
func ggufKind(value any) (kind uint32, array bool) {
	switch value.(type) {
	case uint32:
		return 4, false
	case int32:
		return 5, false
	case float32:
		return 6, false
	case bool:
		return 7, false
	case string:
		return ggufString, false
	case uint64:
		return 10, false
	case []int32:
		return 5, true
	case []float32:
		return 6, true
	case []string:
		return ggufString, true
	}
	panic(fmt.Sprintf("weights: no GGUF type for %T", value))
}

// appendGGUF appends a value without its type.
func appendGGUF(b []byte, value any) []byte {
	le := binary.LittleEndian
	switch v := value.(type) {
	case string:
		return append(le.AppendUint64(b, uint64(len(v))), v...)
	case []string:
		b = le.AppendUint64(b, uint64(len(v)))
		for _, s := range v {
			b = appendGGUF(b, s)
		}
		return b
	case []int32:
		b = le.AppendUint64(b, uint64(len(v)))
	case []float32:
		b = le.AppendUint64(b, uint64(len(v)))
	}
	b, err := binary.Append(b, le, value)
	if err != nil {
		panic(err) // ggufKind knows the value
	}
	return b
}
