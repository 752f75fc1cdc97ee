package weights

import (
	"errors"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/estiba/estiba/internal/fixture"
	"github.com/estiba/estiba/runtime/tensor"
)

// TestWriteGGUF wants back what was written, from the reader.
func TestWriteGGUF(t *testing.T) {
	fields := []Field{
		{"general.architecture", "llama"}, {"a", uint32(7)}, {"b", uint64(1 << 40)}, {"c", int32(-1)}, {"d", float32(0.5)}, {"e", true},
		{"f", []int32{1, -2}}, {"g", []float32{1, 2}}, {"tokenizer.ggml.tokens", []string{"", "é"}},
	}
	var infos []Info
	for i, d := range tensor.DTypes() {
		infos = append(infos, Info{Name: d.String(), DType: d, Shape: tensor.Shape{i + 1, 256}}, Info{Name: d.String() + ".one", DType: d, Shape: tensor.Shape{1, 2, d.Block()}})
	}
	header, err := GGUFHeader(fields, infos)
	if err != nil {
		t.Fatal(err)
	}
	last := infos[len(infos)-1]
	path := filepath.Join(t.TempDir(), "m.gguf")
	fixture.WriteFile(t, path, append(header, make([]byte, last.Offset+last.Size-int64(len(header)))...))
	h, err := Read(path)
	if err != nil {
		t.Fatal(err)
	}
	for i := range infos {
		infos[i].File = path
	}
	if d := cmp.Diff(infos, h.Tensors); d != "" {
		t.Error(d)
	}
	want := map[string]any{}
	for _, f := range fields {
		want[f.Key] = f.Value
	}
	if d := cmp.Diff(want, h.Fields); d != "" {
		t.Error(d)
	}
	for name, bad := range map[string]Info{
		"part of a block": {Name: "x", DType: tensor.Q4_K, Shape: tensor.Shape{2, 255}},
		"no axes":         {Name: "x", DType: tensor.F32},
		"no format":       {Name: "x", Shape: tensor.Shape{1}},
		"too large":       {Name: "x", DType: tensor.F32, Shape: tensor.Shape{1 << 31, 1 << 31}},
	} {
		if _, err := GGUFHeader(nil, []Info{bad}); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
