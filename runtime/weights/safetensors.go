package weights

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"path/filepath"
	"slices"

	"github.com/estiba/estiba/runtime/tensor"
)

const (
	// maxSafetensorsHeader is the format's own limit.
	// Source: safetensors/src/tensor.rs, MAX_HEADER_SIZE.
	maxSafetensorsHeader = 100_000_000
	maxIndex             = 64 << 20
	maxShards            = 4096
)

// safetensorsBits has every format that safetensors defines, in bits an
// element, so that the tensors beside those we compute with can be checked too.
var safetensorsBits = map[string]int64{
	"BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
	"I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32,
	"I64": 64, "U64": 64, "F64": 64, "C64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}

var dtypes = map[string]tensor.DType{"F32": tensor.F32, "F16": tensor.F16, "BF16": tensor.BF16}

func readSafetensors(paths []string) (*Header, error) {
	h := &Header{Format: Safetensors, sizes: map[string]int64{}}
	for _, path := range paths {
		infos, size, err := readSafetensorsFile(path)
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", path, err)
		}
		h.sizes[path] = size
		if err := h.add(infos); err != nil {
			return nil, fmt.Errorf("read %w", err)
		}
	}
	return h, nil
}

func readSafetensorsFile(path string) ([]Info, int64, error) {
	f, size, err := open(path)
	if err != nil {
		return nil, 0, err
	}
	defer f.Close()
	infos, err := parseSafetensors(f, size)
	if err != nil {
		return nil, 0, err
	}
	for i := range infos {
		infos[i].File = path
	}
	return infos, size, nil
}

// parseSafetensors reads the header of a file of size bytes: its length in
// eight bytes, a JSON object, then data without gaps up to the end of the file.
// Source: the safetensors README, section Format.
func parseSafetensors(r io.ReaderAt, size int64) ([]Info, error) {
	var length [8]byte
	if size < 8 {
		return nil, fmt.Errorf("%w: %d bytes are too few for a safetensors file", ErrInvalid, size)
	}
	if _, err := r.ReadAt(length[:], 0); err != nil {
		return nil, err
	}
	n := binary.LittleEndian.Uint64(length[:])
	switch {
	case n > maxSafetensorsHeader:
		return nil, fmt.Errorf("%w: the header claims %d bytes; the format allows %d", ErrInvalid, n, maxSafetensorsHeader)
	case int64(n) > size-8:
		return nil, fmt.Errorf("%w: the header claims %d bytes, but the file has %d; it is truncated", ErrInvalid, n, size)
	}
	text := make([]byte, n)
	if _, err := r.ReadAt(text, 8); err != nil {
		return nil, err
	}
	infos, err := parseSafetensorsHeader(text)
	if err != nil {
		return nil, err
	}
	data := 8 + int64(n)
	if err := checkContiguous(infos, size-data); err != nil {
		return nil, err
	}
	for i := range infos {
		infos[i].Offset += data
	}
	return infos, nil
}

func parseSafetensorsHeader(text []byte) ([]Info, error) {
	var infos []Info
	seen := map[string]bool{}
	err := eachMember(text, func(name string, dec *json.Decoder) error {
		if seen[name] {
			return fmt.Errorf("tensor %q: %w: named twice", name, ErrInvalid)
		}
		seen[name] = true
		if name == "__metadata__" {
			var free map[string]string
			if err := dec.Decode(&free); err != nil {
				return fmt.Errorf("__metadata__: %w: %w", ErrInvalid, err)
			}
			return nil
		}
		var entry struct {
			DType   string  `json:"dtype"`
			Shape   []int64 `json:"shape"`
			Offsets []int64 `json:"data_offsets"`
		}
		if err := dec.Decode(&entry); err != nil {
			return fmt.Errorf("tensor %q: %w: %w", name, ErrInvalid, err)
		}
		info, err := safetensorsInfo(entry.DType, entry.Shape, entry.Offsets)
		if err != nil {
			return fmt.Errorf("tensor %q: %w", name, err)
		}
		info.Name = name
		infos = append(infos, info)
		return nil
	})
	if err != nil {
		return nil, err
	}
	byOffset(infos)
	return infos, nil
}

// safetensorsInfo checks one entry; its offset counts from the start of the data.
func safetensorsInfo(dtype string, axes, offsets []int64) (Info, error) {
	if dtype == "" || axes == nil || len(offsets) != 2 {
		return Info{}, fmt.Errorf("%w: needs dtype, shape and two data_offsets", ErrInvalid)
	}
	bits, ok := safetensorsBits[dtype]
	if !ok {
		return Info{}, fmt.Errorf("%w: dtype %q is unknown", ErrUnsupported, dtype)
	}
	s, n, err := shape(axes)
	if err != nil {
		return Info{}, err
	}
	begin, end := offsets[0], offsets[1]
	if begin < 0 || end < begin {
		return Info{}, fmt.Errorf("%w: data_offsets [%d, %d] are out of order", ErrInvalid, begin, end)
	}
	if n > math.MaxInt64/bits || n*bits%8 != 0 || n*bits/8 != end-begin {
		return Info{}, fmt.Errorf("%w: %d elements of %s do not take the %d bytes of data_offsets [%d, %d]",
			ErrInvalid, n, dtype, end-begin, begin, end)
	}
	return Info{DType: dtypes[dtype], Stored: dtype, Shape: s, Offset: begin, Size: end - begin}, nil
}

// checkContiguous wants the tensors, ordered by offset, to cover the data
// without gap or overlap, as the format says.
func checkContiguous(infos []Info, data int64) error {
	end := int64(0)
	for _, i := range infos {
		if i.Offset > data || i.Size > data-i.Offset {
			return fmt.Errorf("tensor %q: %w: its data ends at byte %d, but the file has %d bytes of data; the file is truncated or its header wrong",
				i.Name, ErrInvalid, i.Offset+i.Size, data)
		}
		if i.Offset != end {
			return fmt.Errorf("tensor %q: %w: its data starts at byte %d, where %d follows the tensor before it", i.Name, ErrInvalid, i.Offset, end)
		}
		end += i.Size
	}
	if end != data {
		return fmt.Errorf("%w: the header describes %d bytes of data, the file has %d", ErrInvalid, end, data)
	}
	return nil
}

// readSharded reads an index and the headers of the files that it names.
func readSharded(index string) (*Header, error) {
	text, err := ReadSmallFile(index, maxIndex)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", index, err)
	}
	files, err := parseIndex(text)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", index, err)
	}
	shards := map[string]bool{}
	for _, shard := range files {
		shards[filepath.Join(filepath.Dir(index), shard)] = true
	}
	var paths []string
	for p := range shards {
		paths = append(paths, p)
	}
	slices.Sort(paths)
	h, err := readSafetensors(paths)
	if errors.Is(err, fs.ErrNotExist) { // the checkpoint is there, but not all of it
		return nil, fmt.Errorf("read %s: %w: it names a file that is missing: %v", index, ErrInvalid, err)
	}
	if err != nil {
		return nil, err
	}
	for name, shard := range files {
		info, ok := h.Lookup(name)
		if !ok || filepath.Base(info.File) != shard {
			return nil, fmt.Errorf("read %s: tensor %q: %w: the index says it is in %s, which lacks it", index, name, ErrInvalid, shard)
		}
	}
	return h, nil
}

// parseIndex gives the file of each tensor. A file's name is a plain name: an
// index cannot reach out of its folder.
func parseIndex(text []byte) (map[string]string, error) {
	var files map[string]string
	err := eachMember(text, func(key string, dec *json.Decoder) error {
		if key != "weight_map" {
			var skip json.RawMessage
			return asInvalid(dec.Decode(&skip))
		}
		if files != nil {
			return fmt.Errorf("weight_map: %w: named twice", ErrInvalid)
		}
		files = map[string]string{}
		var raw json.RawMessage
		if err := dec.Decode(&raw); err != nil {
			return asInvalid(err)
		}
		return eachMember(raw, func(name string, dec *json.Decoder) error {
			var shard string
			if err := dec.Decode(&shard); err != nil {
				return fmt.Errorf("weight_map: tensor %q: %w: %w", name, ErrInvalid, err)
			}
			if _, ok := files[name]; ok {
				return fmt.Errorf("weight_map: tensor %q: %w: named twice", name, ErrInvalid)
			}
			if shard != filepath.Base(shard) || filepath.Ext(shard) != ".safetensors" {
				return fmt.Errorf("weight_map: tensor %q: %w: %q is not the name of a .safetensors file in the same folder", name, ErrInvalid, shard)
			}
			files[name] = shard
			return nil
		})
	})
	if err != nil {
		return nil, err
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("%w: weight_map is missing or empty", ErrInvalid)
	}
	shards := map[string]bool{}
	for _, shard := range files {
		shards[shard] = true
	}
	if len(shards) > maxShards {
		return nil, fmt.Errorf("weight_map: %w: %d files; at most %d", ErrInvalid, len(shards), maxShards)
	}
	return files, nil
}

// eachMember calls f at each value of a JSON object, which f must decode.
// encoding/json's maps keep the last of two equal names; here f sees both.
func eachMember(text []byte, f func(name string, dec *json.Decoder) error) error {
	dec := json.NewDecoder(bytes.NewReader(text))
	if t, err := dec.Token(); err != nil || t != json.Delim('{') {
		return fmt.Errorf("%w: not a JSON object (%v)", ErrInvalid, orNot(err))
	}
	for dec.More() {
		t, err := dec.Token()
		if err != nil {
			return asInvalid(err)
		}
		name, _ := t.(string)
		if err := f(name, dec); err != nil {
			return err
		}
	}
	if _, err := dec.Token(); err != nil {
		return asInvalid(err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return fmt.Errorf("%w: something follows the JSON object", ErrInvalid)
	}
	return nil
}

func orNot(err error) any {
	if err != nil {
		return err
	}
	return "it starts with something else"
}

func asInvalid(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%w: %w", ErrInvalid, err)
}

// ReadSmallFile reads a file that may have at most limit bytes, such as a
// checkpoint's config.json; more is ErrInvalid.
func ReadSmallFile(path string, limit int64) ([]byte, error) {
	f, size, err := open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if size > limit {
		return nil, fmt.Errorf("%w: %d bytes, where at most %d are read", ErrInvalid, size, limit)
	}
	text, err := io.ReadAll(io.LimitReader(f, limit))
	if err != nil {
		return nil, err
	}
	return text, nil
}
