package weights

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"runtime/metrics"
	"strings"
	"testing"
	"time"

	"github.com/estiba/estiba/internal/fixture"
	"github.com/estiba/estiba/runtime/tensor"
	"github.com/google/go-cmp/cmp"
)

func TestTheSameModelInEveryFormat(t *testing.T) {
	hf, err := Open(fixture.Model("stories260K/hf-f32"))
	if err != nil {
		t.Fatal(err)
	}
	defer hf.Close()
	gguf, err := Open(fixture.Model("stories260K/stories260K-f16.gguf"))
	if err != nil {
		t.Fatal(err)
	}
	defer gguf.Close()
	if len(hf.Tensors) != 47 || len(gguf.Tensors) != 47 {
		t.Fatalf("%d and %d tensors, want 47", len(hf.Tensors), len(gguf.Tensors))
	}
	norm, err := hf.Tensor("model.norm.weight")
	if err != nil {
		t.Fatal(err)
	}
	same, err := gguf.Tensor("output_norm.weight")
	if err != nil {
		t.Fatal(err)
	}
	if norm.DType != tensor.F32 || !norm.Shape.Equal(tensor.Shape{64}) || !bytes.Equal(norm.Data, same.Data) {
		t.Errorf("the final norm differs: %v %v", norm.Shape, same.Shape)
	}
	down, err := gguf.Tensor("blk.0.ffn_down.weight")
	if err != nil || down.DType != tensor.F16 || !down.Shape.Equal(tensor.Shape{64, 172}) || len(down.Data) != 2*64*172 {
		t.Errorf("ffn_down: %v %v %d bytes, %v", down.DType, down.Shape, len(down.Data), err)
	}
	if got := gguf.Fields["llama.context_length"]; got != uint32(512) {
		t.Errorf("llama.context_length = %v", got)
	}
	if _, err := hf.Tensor("nowhere"); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), "nowhere") {
		t.Errorf("a missing tensor: %v", err)
	}
}

func TestSafetensorsHeader(t *testing.T) {
	const fine = `{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"BF16","shape":[1,2],"data_offsets":[8,12]}}`
	for name, c := range map[string]struct {
		header string
		data   int
		is     error
		says   string
	}{
		"fine":                 {fine, 12, nil, ""},
		"padded":               {fine + "    ", 12, nil, ""},
		"metadata":             {`{"__metadata__":{"x":"y"},"a":{"dtype":"F32","shape":[],"data_offsets":[0,4]}}`, 4, nil, ""},
		"no tensors":           {`{}`, 0, nil, ""},
		"empty tensor":         {`{"e":{"dtype":"F32","shape":[0,7],"data_offsets":[0,0]},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}`, 4, nil, ""},
		"not needed, fine":     {`{"a":{"dtype":"I64","shape":[1],"data_offsets":[0,8]}}`, 8, nil, ""},
		"truncated":            {fine, 11, ErrInvalid, `"b"`},
		"too long":             {fine, 13, ErrInvalid, "13"},
		"gap":                  {`{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[8,12]}}`, 12, ErrInvalid, `"b"`},
		"overlap":              {`{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}`, 8, ErrInvalid, `"b"`},
		"does not start at 0":  {`{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}`, 8, ErrInvalid, `"a"`},
		"offset beyond":        {`{"a":{"dtype":"F32","shape":[1],"data_offsets":[9223372036854775803,9223372036854775807]}}`, 8, ErrInvalid, `"a"`},
		"offsets out of order": {`{"a":{"dtype":"F32","shape":[0],"data_offsets":[8,4]}}`, 8, ErrInvalid, "out of order"},
		"negative offset":      {`{"a":{"dtype":"F32","shape":[1],"data_offsets":[-4,0]}}`, 8, ErrInvalid, `"a"`},
		"one offset":           {`{"a":{"dtype":"F32","shape":[1],"data_offsets":[0]}}`, 4, ErrInvalid, "two data_offsets"},
		"offset above int64":   {`{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,18446744073709551615]}}`, 4, ErrInvalid, `"a"`},
		"negative axis":        {`{"a":{"dtype":"F32","shape":[-1,-1],"data_offsets":[0,4]}}`, 4, ErrInvalid, "axis of -1"},
		"product overflows":    {`{"a":{"dtype":"F32","shape":[4294967296,4294967296,4],"data_offsets":[0,4]}}`, 4, ErrInvalid, "64 bits"},
		"bytes overflow":       {`{"a":{"dtype":"F64","shape":[2305843009213693952],"data_offsets":[0,0]}}`, 0, ErrInvalid, "do not take"},
		"fraction":             {`{"a":{"dtype":"F32","shape":[1.5],"data_offsets":[0,6]}}`, 6, ErrInvalid, `"a"`},
		"size mismatch":        {`{"a":{"dtype":"F16","shape":[2],"data_offsets":[0,8]}}`, 8, ErrInvalid, "do not take"},
		"unknown dtype":        {`{"a":{"dtype":"F7","shape":[2],"data_offsets":[0,8]}}`, 8, ErrUnsupported, `"F7"`},
		"no shape":             {`{"a":{"dtype":"F32","data_offsets":[0,4]}}`, 4, ErrInvalid, "shape"},
		"named twice":          {`{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}`, 8, ErrInvalid, "twice"},
		"not an object":        {`[]`, 0, ErrInvalid, "JSON"},
		"cut off":              {`{"a":{"dtype":"F32"`, 4, ErrInvalid, `"a"`},
		"two objects":          {`{}{}`, 0, ErrInvalid, "follows"},
		"deep":                 {`{"a":` + strings.Repeat("[", 100_000), 0, ErrInvalid, `"a"`},
		"entry is a list":      {`{"a":[1]}`, 0, ErrInvalid, `"a"`},
		"what is not known":    {`{"a":{"x":[{"y":[1,null]}],"dtype":"F32","shape":[1],"data_offsets":[0,4]}}`, 4, nil, ""},
		"deep within":          {`{"a":{"x":` + strings.Repeat("[", 100_000), 4, ErrInvalid, "levels"},
		"nine axes":            {`{"a":{"dtype":"F32","shape":[1,1,1,1,1,1,1,1,1],"data_offsets":[0,4]}}`, 4, ErrInvalid, "more than 8"},
		"three offsets":        {`{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4,4]}}`, 4, ErrInvalid, "more than 2"},
		"dtype is a number":    {`{"a":{"dtype":1,"shape":[1],"data_offsets":[0,4]}}`, 4, ErrInvalid, "dtype"},
		"metadata of numbers":  {`{"__metadata__":{"x":1}}`, 0, ErrInvalid, "__metadata__"},
		"long name":            {`{"` + strings.Repeat("a", maxName+1) + `":{}}`, 0, ErrInvalid, "its name"},
		"broken name":          {"{\"a\xff\":{}}", 0, ErrInvalid, "no UTF-8"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "model.safetensors")
			fixture.WriteSafetensors(t, path, c.header, make([]byte, c.data))
			_, err := Read(path)
			check(t, err, c.is, path, c.says)
		})
	}
}

// check wants an error of a kind that names the file and says something; or none.
func check(t *testing.T, err, is error, path, says string) {
	t.Helper()
	if is == nil {
		if err != nil {
			t.Errorf("unexpected: %v", err)
		}
		return
	}
	if !errors.Is(err, is) || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), says) {
		t.Errorf("got  %v\nwant an error that is %q, names %s and says %s", err, is, path, says)
	}
}

func TestSafetensorsHeaderLength(t *testing.T) {
	for name, c := range map[string]struct {
		file []byte
		size int64 // made so long with a hole
		says string
	}{
		"empty":           {nil, 0, "0 bytes"},
		"seven bytes":     {make([]byte, 7), 7, "7 bytes"},
		"2 GB":            {binary.LittleEndian.AppendUint64(nil, 2<<30), 3 << 30, "2147483648"},
		"beyond the file": {binary.LittleEndian.AppendUint64(nil, 100), 50, "truncated"},
		"2^64-1":          {binary.LittleEndian.AppendUint64(nil, 1<<64-1), 50, "18446744073709551615"},
		"zero":            {make([]byte, 8), 8, "JSON"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "model.safetensors")
			fixture.WriteFile(t, path, c.file)
			if err := os.Truncate(path, c.size); err != nil {
				t.Fatal(err)
			}
			_, err := Read(path)
			check(t, err, ErrInvalid, path, c.says)
		})
	}
}

func TestSharded(t *testing.T) {
	entry := func(begin, end int64) fixture.TensorHeader {
		return fixture.TensorHeader{DType: "F32", Shape: []int64{(end - begin) / 4}, Offsets: []int64{begin, end}}
	}
	const fine = `{"metadata":{"total_size":12},"weight_map":{"a":"m-1.safetensors","b":"m-2.safetensors"}}`
	for name, c := range map[string]struct {
		index string
		is    error
		says  string
	}{
		"fine":             {fine, nil, ""},
		"other file":       {`{"weight_map":{"a":"m-2.safetensors","b":"m-1.safetensors"}}`, ErrInvalid, "lacks it"},
		"missing tensor":   {`{"weight_map":{"a":"m-1.safetensors","c":"m-2.safetensors"}}`, ErrInvalid, `"c"`},
		"missing file":     {`{"weight_map":{"a":"m-3.safetensors"}}`, ErrInvalid, "m-3"},
		"leaves folder":    {`{"weight_map":{"a":"../m-1.safetensors"}}`, ErrInvalid, "same folder"},
		"absolute":         {`{"weight_map":{"a":"/etc/m.safetensors"}}`, ErrInvalid, "same folder"},
		"not a shard":      {`{"weight_map":{"a":"passwd"}}`, ErrInvalid, "passwd"},
		"named twice":      {`{"weight_map":{"a":"m-1.safetensors","a":"m-2.safetensors"}}`, ErrInvalid, "twice"},
		"two maps":         {`{"weight_map":{"a":"m-1.safetensors"},"weight_map":{}}`, ErrInvalid, "twice"},
		"no map":           {`{"metadata":{}}`, ErrInvalid, "weight_map"},
		"map of numbers":   {`{"weight_map":{"a":1}}`, ErrInvalid, `"a"`},
		"same tensor, two": {`{"weight_map":{"a":"m-1.safetensors","b":"m-4.safetensors"}}`, ErrInvalid, "this name too"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			write := func(file string, h map[string]fixture.TensorHeader, data []byte) {
				fixture.WriteSafetensors(t, filepath.Join(dir, file), h, data)
			}
			write("m-1.safetensors", map[string]fixture.TensorHeader{"a": entry(0, 4)}, []byte("aaaa"))
			write("m-2.safetensors", map[string]fixture.TensorHeader{"b": entry(0, 8)}, []byte("bbbbbbbb"))
			write("m-4.safetensors", map[string]fixture.TensorHeader{"a": entry(0, 4), "b": entry(4, 8)}, []byte("aaaabbbb"))
			fixture.WriteFile(t, filepath.Join(dir, indexFile), []byte(c.index))
			checkpoint, err := Open(dir)
			check(t, err, c.is, dir, c.says)
			if err != nil {
				return
			}
			defer checkpoint.Close()
			b, err := checkpoint.Tensor("b")
			if err != nil || string(b.Data) != "bbbbbbbb" {
				t.Errorf("b = %q, %v", b.Data, err)
			}
		})
	}
}

func TestGGUFHeader(t *testing.T) {
	one := []fixture.GGUFTensor{{Name: "a", Dims: []uint64{2, 3}, Type: 0}}
	data := make([]byte, 64)
	head := func(version uint32, tensors, fields uint64) []byte {
		b := binary.LittleEndian.AppendUint32([]byte("GGUF"), version)
		return binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint64(b, tensors), fields)
	}
	two := func(b fixture.GGUFTensor) []byte { return fixture.GGUF(nil, append(one[:1:1], b), data) }
	for name, c := range map[string]struct {
		file []byte
		is   error
		says string
	}{
		"fine":            {fixture.GGUF([]fixture.Field{{Key: "k", Value: []string{"x", ""}}}, one, data), nil, ""},
		"no tensors":      {fixture.GGUF(nil, nil, nil), nil, ""},
		"scalar":          {fixture.GGUF(nil, []fixture.GGUFTensor{{Name: "a"}}, data), nil, ""},
		"quantised":       {fixture.GGUF(nil, []fixture.GGUFTensor{{Name: "a", Dims: []uint64{32}, Type: 8}}, data), nil, ""},
		"second tensor":   {two(fixture.GGUFTensor{Name: "b", Dims: []uint64{1}, Offset: 32}), nil, ""},
		"empty":           {nil, ErrInvalid, "truncated"},
		"magic":           {[]byte("GGML and more of it"), ErrInvalid, "GGUF"},
		"version 2":       {head(2, 0, 0), nil, ""},
		"version 4":       {head(4, 0, 0), ErrUnsupported, "version 4"},
		"version 1":       {head(1, 0, 0), ErrUnsupported, "version 1"},
		"big-endian":      {append([]byte("GGUF"), 0, 0, 0, 3, 0, 0, 0, 0), ErrUnsupported, "big-endian"},
		"2^60 tensors":    {head(3, 1<<60, 0), ErrInvalid, "1152921504606846976 tensors"},
		"2^60 fields":     {head(3, 0, 1<<60), ErrInvalid, "1152921504606846976 fields"},
		"a million":       {head(3, 1<<20, 0), ErrInvalid, "1048576 tensors"},
		"many":            {head(3, 1<<18, 0), ErrInvalid, "truncated"},
		"long key":        {append(head(3, 0, 1), binary.LittleEndian.AppendUint64(nil, 1<<62)...), ErrInvalid, "name of a field"},
		"long string":     {append(head(3, 0, 1), "\x01\x00\x00\x00\x00\x00\x00\x00k\x08\x00\x00\x00\xff\xff\xff\xff\xff\xff\xff\x7f"...), ErrInvalid, `field "k"`},
		"long array":      {append(head(3, 0, 1), "\x01\x00\x00\x00\x00\x00\x00\x00k\x09\x00\x00\x00\x0c\x00\x00\x00\xff\xff\xff\xff\xff\xff\xff\x7f"...), ErrInvalid, `field "k"`},
		"array of arrays": {append(head(3, 0, 1), "\x01\x00\x00\x00\x00\x00\x00\x00k\x09\x00\x00\x00\x09\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00"...), ErrUnsupported, `field "k"`},
		"big vocabulary":  {append(head(3, 0, 1), "\x15\x00\x00\x00\x00\x00\x00\x00tokenizer.ggml.tokens\x09\x00\x00\x00\x08\x00\x00\x00\x01\x00\x10\x00\x00\x00\x00\x00"...), ErrUnsupported, "1048577"},
		"unknown value":   {append(head(3, 0, 1), "\x01\x00\x00\x00\x00\x00\x00\x00k\x63\x00\x00\x00"...), ErrInvalid, "99"},
		"field twice":     {fixture.GGUF([]fixture.Field{{Key: "k", Value: true}, {Key: "k", Value: true}}, nil, nil), ErrInvalid, "twice"},
		"alignment 3":     {fixture.GGUF([]fixture.Field{{Key: "general.alignment", Value: uint32(3)}}, nil, nil), ErrInvalid, "alignment"},
		"alignment text":  {fixture.GGUF([]fixture.Field{{Key: "general.alignment", Value: "x"}}, nil, nil), ErrInvalid, "alignment"},
		"split":           {fixture.GGUF([]fixture.Field{{Key: "split.count", Value: uint32(2)}}, nil, nil), ErrUnsupported, "merge"},
		"unknown type":    {fixture.GGUF(nil, []fixture.GGUFTensor{{Name: "a", Dims: []uint64{1}, Type: 77}}, data), ErrUnsupported, "77"},
		"five axes":       {fixture.GGUF(nil, []fixture.GGUFTensor{{Name: "a", Dims: make([]uint64, 5)}}, data), ErrInvalid, "5 axes"},
		"negative axis":   {fixture.GGUF(nil, []fixture.GGUFTensor{{Name: "a", Dims: []uint64{1 << 63, 2}}}, data), ErrInvalid, `"a"`},
		"overflow":        {fixture.GGUF(nil, []fixture.GGUFTensor{{Name: "a", Dims: []uint64{1 << 40, 1 << 40}}}, data), ErrInvalid, "64 bits"},
		"bytes overflow":  {fixture.GGUF(nil, []fixture.GGUFTensor{{Name: "a", Dims: []uint64{1 << 62}}}, data), ErrInvalid, "64 bits"},
		"part of a block": {fixture.GGUF(nil, []fixture.GGUFTensor{{Name: "a", Dims: []uint64{33}, Type: 8}}, data), ErrInvalid, "Q8_0"},
		"offset beyond":   {fixture.GGUF(nil, []fixture.GGUFTensor{{Name: "a", Dims: []uint64{2}, Offset: 1 << 50}}, data), ErrInvalid, "starts at byte"},
		"offset 2^63":     {fixture.GGUF(nil, []fixture.GGUFTensor{{Name: "a", Dims: []uint64{2}, Offset: 1 << 63}}, data), ErrInvalid, `"a"`},
		"tensor twice":    {two(fixture.GGUFTensor{Name: "a", Dims: []uint64{1}, Offset: 32}), ErrInvalid, "twice"},
		"overlap":         {two(fixture.GGUFTensor{Name: "b", Dims: []uint64{1}, Offset: 0}), ErrInvalid, `"b"`},
		"gap":             {two(fixture.GGUFTensor{Name: "b", Dims: []uint64{1}, Offset: 64}), ErrInvalid, `"b"`},
		"data truncated":  {two(fixture.GGUFTensor{Name: "b", Dims: []uint64{9}, Offset: 32}), ErrInvalid, "truncated"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "m.gguf")
			fixture.WriteFile(t, path, c.file)
			_, err := Read(path)
			check(t, err, c.is, path, c.says)
		})
	}
}

func TestStoredFormats(t *testing.T) {
	for file, want := range map[string]map[string]int{
		"models/stories260K/hf-bf16":                  {"BF16": 47},
		"models/stories260K/stories260K-f32.gguf":     {"F32": 47},
		"models/stories260K/stories260K-q8_0.gguf":    {"F32": 11, "F16": 5, "Q8_0": 31},
		"tokenizers/gguf-vocab/ggml-vocab-phi-3.gguf": {},
	} {
		t.Run(file, func(t *testing.T) {
			h, err := Read(fixture.Shared(t, file))
			if err != nil {
				t.Fatal(err)
			}
			got := map[string]int{}
			for _, i := range h.Tensors {
				got[i.Stored]++
				if err := i.Supported(); err != nil {
					t.Error(err)
				}
			}
			if d := cmp.Diff(want, got); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestNotACheckpoint(t *testing.T) {
	dir := t.TempDir()
	fixture.WriteFile(t, filepath.Join(dir, "gguf", "m.gguf"), nil)
	fixture.WriteFile(t, filepath.Join(dir, "torch", "pytorch_model.bin"), nil)
	fixture.WriteFile(t, filepath.Join(dir, "readme.txt"), nil)
	fixture.WriteFile(t, filepath.Join(dir, "empty", "config.json"), nil)
	if err := os.MkdirAll(filepath.Join(dir, "dir", "model.safetensors"), 0o755); err != nil {
		t.Fatal(err)
	}
	for path, c := range map[string]struct {
		is   error
		says string
	}{
		"nowhere":    {fs.ErrNotExist, "no such file"},
		"gguf":       {ErrUnsupported, "name the .gguf file"},
		"torch":      {ErrUnsupported, "convert"},
		"readme.txt": {ErrUnsupported, ".gguf or .safetensors"},
		"empty":      {ErrInvalid, "neither"},
		"dir":        {ErrInvalid, "not a regular file"},
	} {
		_, err := Read(filepath.Join(dir, path))
		check(t, err, c.is, filepath.Join(dir, path), c.says)
	}
}

func TestATerabyteOpensAtOnce(t *testing.T) {
	dir := fixture.HugeModel(t, t.TempDir())
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	start := time.Now()
	c, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	runtime.ReadMemStats(&after)
	if d, b := time.Since(start), after.TotalAlloc-before.TotalAlloc; d > 5*time.Second || b > 16<<20 {
		t.Errorf("took %v and %d bytes", d, b)
	}
	last, err := c.Tensor("model.norm.weight")
	if err != nil || last.Data[len(last.Data)-1] != 0 {
		t.Errorf("the last tensor: %v", err)
	}
}

func TestUnreadFields(t *testing.T) {
	path := filepath.Join(t.TempDir(), "m.gguf")
	long := make([]float32, maxGGUFArray+1)
	fixture.WriteFile(t, path, fixture.GGUF([]fixture.Field{
		{Key: "tokenizer.ggml.tokens", Value: []string{"a", "bc"}},
		{Key: "tokenizer.ggml.scores", Value: long},
		{Key: "tokenizer.ggml.merges", Value: []string{"a b", "", "c d"}},
		{Key: "names", Value: []string{"a", "b"}},
		{Key: "long", Value: long},
		{Key: "short", Value: []int32{1, 2}},
		{Key: "last", Value: "x"},
	}, nil, nil))
	h, err := Read(path)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]any{
		"tokenizer.ggml.tokens": []string{"a", "bc"}, "tokenizer.ggml.scores": long, "tokenizer.ggml.merges": []string{"a b", "", "c d"}, "names": Unread{2},
		"long": Unread{maxGGUFArray + 1}, "short": []int32{1, 2}, "last": "x",
	}
	if d := cmp.Diff(want, h.Fields); d != "" {
		t.Error(d)
	}
}

// TestHeadersAreBounded wants little memory for the worst headers that are read,
// and for those that are not.
func TestHeadersAreBounded(t *testing.T) {
	type files map[string]string
	entries := func(n, bytes int) string {
		var b strings.Builder
		for i := range n {
			entry := fmt.Sprintf(`,"%%s%d":{"dtype":"F32","shape":[0,0,0,0,0,0,0,0],"data_offsets":[0,0]}`, i)
			fmt.Fprintf(&b, entry, strings.Repeat("n", max(bytes/n-len(entry), 0)))
		}
		return "{" + b.String()[1:] + "}"
	}
	index := func(n int, file func(int) string) string {
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, `,"%d":%q`, i, file(i))
		}
		return `{"weight_map":{` + b.String()[1:] + "}}"
	}
	shard := func(header string) string {
		return string(binary.LittleEndian.AppendUint64(nil, uint64(len(header)))) + header
	}
	repeat := func(s string) string { return strings.Repeat(s, maxHeader/len(s)-30) }
	gguf := func(fields []fixture.Field, tensors []fixture.GGUFTensor) files {
		return files{"m.gguf": string(fixture.GGUF(fields, tensors, nil))}
	}
	one := func(header string) func() files { return func() files { return files{singleFile: shard(header)} } }
	for name, c := range map[string]struct {
		files func() files // made when it is their turn: what is in use makes the collector lazy
		is    error
		says  string
	}{
		"the most": {func() files { return files{singleFile: shard(entries(maxTensors, maxHeader-maxTensors))} }, nil, ""},
		"tokens": {func() files {
			tokens := make([]string, maxVocabulary)
			for i := range tokens {
				tokens[i] = fmt.Sprintf("%07x", i)
			}
			return gguf([]fixture.Field{{Key: "tokenizer.ggml.tokens", Value: tokens}}, nil)
		}, nil, ""},
		"merges": {func() files { return gguf([]fixture.Field{{Key: "merges", Value: make([]string, 4_000_000)}}, nil) }, nil, ""},
		"GGUF tensors": {func() files {
			var tensors []fixture.GGUFTensor
			for i := range maxTensors {
				tensors = append(tensors, fixture.GGUFTensor{Name: fmt.Sprintf("%060d", i), Dims: []uint64{0, 0, 0, 0}})
			}
			return gguf(nil, tensors)
		}, nil, ""},
		"many shards": {func() files {
			many := files{indexFile: index(maxShards, func(i int) string { return fmt.Sprintf("m-%d.safetensors", i) })}
			for i := range maxShards {
				many[fmt.Sprintf("m-%d.safetensors", i)] = shard(fmt.Sprintf(`{"%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}`, i))
			}
			return many
		}, nil, ""},
		"a text":           {one(`{"__metadata__":{"x":"` + repeat("x") + `"}}`), nil, ""},
		"too long":         {one(strings.Repeat(" ", maxHeader+1)), ErrInvalid, "at most"},
		"too many tensors": {func() files { return files{singleFile: shard(entries(maxTensors+1, 0))} }, ErrInvalid, "262144 tensors"},
		"an axis each":     {one(`{"a":{"shape":[` + repeat("1,")), ErrInvalid, "more than 8"},
		"objects":          {one(`{"a":{"x":[` + repeat("{},")), ErrInvalid, ""},
		"metadata":         {one(`{"__metadata__":{` + repeat(`"":"",`)[:8<<20]), ErrInvalid, ""},
		"of three files": {func() files {
			return files{
				indexFile:         `{"weight_map":{"a":"m-1.safetensors","b":"m-2.safetensors","c":"m-3.safetensors"}}`,
				"m-1.safetensors": shard("{}" + repeat(" ")), "m-2.safetensors": shard("{}" + repeat(" ")), "m-3.safetensors": shard("{}" + repeat(" ")),
			}
		}, ErrInvalid, "together"},
		"of the index": {func() files {
			return files{indexFile: index(maxTensors+1, func(int) string { return "m.safetensors" })}
		}, ErrInvalid, "262144 tensors"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			path := dir
			for file, text := range c.files() {
				fixture.WriteFile(t, filepath.Join(dir, file), []byte(text))
				if filepath.Ext(file) == ".gguf" {
					path = filepath.Join(dir, file)
				}
			}
			var h *Header
			var err error
			kept, most := heap(func() { h, err = Read(path) })
			t.Logf("%d MiB kept, %d MiB at most", kept>>20, most>>20)
			check(t, err, c.is, dir, c.says)
			if kept > 96<<20 || most > 320<<20 {
				t.Errorf("%d bytes are kept, %d were in use", kept, most)
			}
			runtime.KeepAlive(h)
		})
	}
}

// heap is by how much the heap has grown after f, and at most meanwhile, with what
// is not collected yet.
func heap(f func()) (kept, most int64) {
	in := func() int64 {
		s := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}}
		metrics.Read(s)
		return int64(s[0].Value.Uint64())
	}
	runtime.GC()
	before, stop, done := in(), make(chan bool), make(chan bool)
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			case <-time.After(time.Millisecond):
				most = max(most, in()-before)
			}
		}
	}()
	f()
	close(stop)
	<-done
	runtime.GC()
	return in() - before, most
}

func TestKeep(t *testing.T) {
	c, err := Open(fixture.Model("stories260K/stories260K-f16.gguf"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	const name = "output_norm.weight"
	before, err := c.Tensor(name)
	if err != nil {
		t.Fatal(err)
	}
	c.Keep(func(tensor string) bool { return tensor == name })
	after, err := c.Tensor(name)
	if err != nil || !bytes.Equal(before.Data, after.Data) || len(c.Tensors) != 1 || c.Fields != nil {
		t.Errorf("%v, %d tensors, %d fields", err, len(c.Tensors), len(c.Fields))
	}
	if _, err := c.Tensor("blk.0.ffn_down.weight"); !errors.Is(err, ErrInvalid) {
		t.Errorf("a tensor that was not kept: %v", err)
	}
}

func TestGuard(t *testing.T) {
	dir := fixture.CopyModel(t, "stories260K/hf-f32", t.TempDir())
	c, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	w, err := c.Tensor("model.layers.4.mlp.up_proj.weight")
	if err != nil {
		t.Fatal(err)
	}
	dst := make([]byte, len(w.Data))
	read := func() error { copy(dst, w.Data); return nil }
	if err := Guard(read); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(filepath.Join(dir, singleFile), 4096); err != nil {
		t.Fatal(err)
	}
	if err := Guard(read); !errors.Is(err, ErrChanged) {
		t.Errorf("a truncated file: %v", err)
	}
	defer func() {
		if p := recover(); p != "ours" {
			t.Errorf("another panic came out as %v", p)
		}
	}()
	Guard(func() error { panic("ours") })
}

func FuzzSafetensors(f *testing.F) {
	f.Add([]byte(`{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}`), int64(8))
	f.Add([]byte(`{"__metadata__":{},"a":{"dtype":"F4","shape":[2,0],"data_offsets":[0,0]}}`), int64(0))
	f.Add([]byte(`{"a":{"dtype":"F64","shape":[9223372036854775807,2],"data_offsets":[-1,9223372036854775807]}}`), int64(1<<40))
	f.Fuzz(func(t *testing.T, header []byte, data int64) {
		if data < 0 {
			return
		}
		file := append(binary.LittleEndian.AppendUint64(nil, uint64(len(header))), header...)
		size := int64(len(file)) + min(data, 1<<50)
		infos, err := parseSafetensors(hole(file), size, newBudget())
		checkParsed(t, infos, size, err)
	})
}

func FuzzGGUF(f *testing.F) {
	small := fixture.GGUF([]fixture.Field{
		{Key: "general.architecture", Value: "llama"}, {Key: "tokens", Value: []string{"a", "b"}}, {Key: "scores", Value: []float32{1}},
	}, []fixture.GGUFTensor{{Name: "a", Dims: []uint64{32, 2}, Type: 8}, {Name: "b", Dims: []uint64{2}, Offset: 96}}, make([]byte, 128))
	f.Add(small, int64(0))
	f.Add(small[:40], int64(1<<40))
	f.Fuzz(func(t *testing.T, file []byte, more int64) {
		if more < 0 {
			return
		}
		size := int64(len(file)) + min(more, 1<<50)
		_, infos, err := parseGGUF(hole(file), size)
		checkParsed(t, infos, size, err)
	})
}

func FuzzIndex(f *testing.F) {
	f.Add([]byte(`{"metadata":{"total_size":12},"weight_map":{"a":"m-1.safetensors"}}`))
	f.Add([]byte(`{"weight_map":{"a":"../m-1.safetensors"}}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		files, err := parseIndex(bytes.NewReader(text), newBudget())
		if err != nil && !errors.Is(err, ErrInvalid) {
			t.Errorf("an error of no kind: %v", err)
		}
		for name, file := range files {
			if strings.ContainsRune(file, filepath.Separator) || file == "" || file == ".." {
				t.Errorf("%q is in %q", name, file)
			}
		}
	})
}

// checkParsed wants an error of a known kind, or tensors that lie in the file,
// do not overlap, and have the bytes that their shape asks for.
func checkParsed(t *testing.T, infos []Info, size int64, err error) {
	t.Helper()
	if err != nil {
		if !errors.Is(err, ErrInvalid) && !errors.Is(err, ErrUnsupported) {
			t.Errorf("an error of no kind: %v", err)
		}
		return
	}
	end := int64(0)
	for _, i := range infos {
		if i.Offset < end || i.Size < 0 || i.Offset > size || i.Size > size-i.Offset {
			t.Fatalf("%+v after byte %d of %d", i, end, size)
		}
		end = i.Offset + i.Size
		n, ok := i.Shape.Elements()
		if !ok || i.DType != tensor.Invalid && i.DType.Bytes(n) != i.Size {
			t.Fatalf("%+v has %d elements", i, n)
		}
	}
}

// hole is a file that goes on in zeros after its bytes.
type hole []byte

func (h hole) ReadAt(p []byte, off int64) (int, error) {
	clear(p)
	if off < int64(len(h)) {
		copy(p, h[off:])
	}
	return len(p), nil
}
