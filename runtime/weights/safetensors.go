package weights

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/estiba/estiba/runtime/tensor"
)

const (
	maxShards = 4096
	// maxSafetensorsAxes is more than any tensor has. The format knows no limit, but
	// an axis takes more memory than it takes bytes of the header.
	maxSafetensorsAxes = 8
)

// safetensorsBits has every format that safetensors defines, in bits an
// element, so that the tensors beside those we compute with can be checked too.
var safetensorsBits = map[string]int64{
	"BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
	"I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32,
	"I64": 64, "U64": 64, "F64": 64, "C64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}

var dtypes = map[string]tensor.DType{"F32": tensor.F32, "F16": tensor.F16, "BF16": tensor.BF16}

func readSafetensors(paths []string, left *budget) (*Header, error) {
	h := &Header{Format: Safetensors, sizes: map[string]int64{}}
	for _, path := range paths {
		infos, size, err := readSafetensorsFile(path, left)
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

func readSafetensorsFile(path string, left *budget) ([]Info, int64, error) {
	f, size, err := open(path)
	if err != nil {
		return nil, 0, err
	}
	defer f.Close()
	infos, err := parseSafetensors(f, size, left)
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
func parseSafetensors(r io.ReaderAt, size int64, left *budget) ([]Info, error) {
	var length [8]byte
	if size < 8 {
		return nil, fmt.Errorf("%w: %d bytes are too few for a safetensors file", ErrInvalid, size)
	}
	if _, err := r.ReadAt(length[:], 0); err != nil {
		return nil, err
	}
	n := binary.LittleEndian.Uint64(length[:])
	if n <= math.MaxInt64 && int64(n) > size-8 {
		return nil, fmt.Errorf("%w: the header claims %d bytes, but the file has %d; it is truncated", ErrInvalid, n, size)
	}
	if err := left.header(n); err != nil {
		return nil, err
	}
	infos, err := parseSafetensorsHeader(io.NewSectionReader(r, 8, int64(n)), left)
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

func parseSafetensorsHeader(r io.Reader, left *budget) ([]Info, error) {
	var infos []Info
	seen := map[string]struct{}{}
	err := eachMember(json.NewDecoder(r), true, func(name string, dec *json.Decoder) error {
		if _, ok := seen[name]; ok {
			return fmt.Errorf("tensor %q: %w: named twice", clip(name), ErrInvalid)
		}
		seen[name] = struct{}{}
		if name == "__metadata__" {
			if err := metadata(dec); err != nil {
				return fmt.Errorf("__metadata__: %w", err)
			}
			return nil
		}
		if err := left.tensor(name); err != nil {
			return err
		}
		info, err := parseEntry(dec)
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

// metadata passes over what is free text in a header: an object of strings.
func metadata(dec *json.Decoder) error {
	return eachMember(dec, false, func(_ string, dec *json.Decoder) error {
		t, err := dec.Token()
		if _, ok := t.(string); err == nil && !ok {
			err = errors.New("not all of its values are strings")
		}
		return asInvalid(err)
	})
}

// parseEntry reads what a header says about one tensor, token by token: a value
// that is no entry is given up where that shows, not collected first.
func parseEntry(dec *json.Decoder) (Info, error) {
	var dtype string
	var axes, offsets []int64
	err := eachMember(dec, false, func(name string, dec *json.Decoder) (err error) {
		switch name {
		case "dtype":
			var t json.Token
			t, err = dec.Token()
			text, ok := t.(string)
			if err == nil && !ok {
				err = errors.New("dtype is no string")
			}
			dtype = text
			err = asInvalid(err)
		case "shape":
			axes, err = numbers(dec, name, maxSafetensorsAxes)
		case "data_offsets":
			offsets, err = numbers(dec, name, 2)
		default:
			err = skip(dec)
		}
		return err
	})
	if err != nil {
		return Info{}, err
	}
	return safetensorsInfo(dtype, axes, offsets)
}

// numbers reads an array of at most so many whole numbers; it is not nil.
func numbers(dec *json.Decoder, name string, most int) ([]int64, error) {
	if t, err := dec.Token(); err != nil || t != json.Delim('[') {
		return nil, fmt.Errorf("%s: %w: not an array (%v)", name, ErrInvalid, orNot(err))
	}
	list := make([]int64, 0, 2)
	for dec.More() {
		t, err := dec.Token()
		if err != nil {
			return nil, asInvalid(err)
		}
		number, ok := t.(json.Number)
		if !ok {
			return nil, fmt.Errorf("%s: %w: not all of it are numbers", name, ErrInvalid)
		}
		n, err := strconv.ParseInt(clip(string(number)), 10, 64)
		if err != nil {
			return nil, fmt.Errorf("%s: %w: %.40s is no whole number of 64 bits", name, ErrInvalid, number)
		}
		if len(list) == most {
			return nil, fmt.Errorf("%s: %w: more than %d numbers", name, ErrInvalid, most)
		}
		list = append(list, n)
	}
	_, err := dec.Token()
	return list, asInvalid(err)
}

// skip passes over a value without collecting it.
func skip(dec *json.Decoder) error {
	const deepest = 64 // a level takes more memory than it takes bytes
	for depth := 0; ; {
		t, err := dec.Token()
		if err != nil {
			return asInvalid(err)
		}
		switch t {
		case json.Delim('{'), json.Delim('['):
			depth++
		case json.Delim('}'), json.Delim(']'):
			depth--
		}
		if depth > deepest {
			return fmt.Errorf("%w: a value more than %d levels deep", ErrInvalid, deepest)
		}
		if depth == 0 {
			return nil
		}
	}
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
	left := newBudget()
	files, err := readIndex(index, left)
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
	left.tensors = maxTensors // the index has named each once already
	h, err := readSafetensors(paths, left)
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

func readIndex(path string, left *budget) (map[string]string, error) {
	f, size, err := open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if err := left.header(uint64(size)); err != nil {
		return nil, err
	}
	return parseIndex(io.LimitReader(f, size), left)
}

// parseIndex gives the file of each tensor. A file's name is a plain name: an
// index cannot reach out of its folder.
func parseIndex(r io.Reader, left *budget) (map[string]string, error) {
	var files map[string]string
	shards := map[string]string{} // each name once
	err := eachMember(json.NewDecoder(r), true, func(key string, dec *json.Decoder) error {
		if key != "weight_map" {
			return skip(dec)
		}
		if files != nil {
			return fmt.Errorf("weight_map: %w: named twice", ErrInvalid)
		}
		files = map[string]string{}
		return eachMember(dec, false, func(name string, dec *json.Decoder) error {
			if err := left.tensor(name); err != nil {
				return err
			}
			t, err := dec.Token()
			if err != nil {
				return fmt.Errorf("weight_map: tensor %q: %w", name, asInvalid(err))
			}
			file, ok := t.(string)
			if _, twice := files[name]; twice {
				return fmt.Errorf("weight_map: tensor %q: %w: named twice", name, ErrInvalid)
			}
			if !ok || file != filepath.Base(file) || filepath.Ext(file) != ".safetensors" {
				return fmt.Errorf("weight_map: tensor %q: %w: %q is not the name of a .safetensors file in the same folder", name, ErrInvalid, clip(fmt.Sprint(t)))
			}
			if _, ok := shards[file]; !ok {
				if len(shards) == maxShards {
					return fmt.Errorf("weight_map: %w: more than %d files", ErrInvalid, maxShards)
				}
				shards[file] = file
			}
			files[name] = shards[file]
			return nil
		})
	})
	if err != nil {
		return nil, err
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("%w: weight_map is missing or empty", ErrInvalid)
	}
	return files, nil
}

// eachMember calls f at each value of the JSON object that comes next, which f
// must read. encoding/json's maps keep the last of two equal names; here f sees
// both. With whole, the object must be all there is.
func eachMember(dec *json.Decoder, whole bool, f func(name string, dec *json.Decoder) error) error {
	dec.UseNumber()
	if t, err := dec.Token(); cannotRead(err) {
		return err
	} else if err != nil || t != json.Delim('{') {
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
	if !whole {
		return nil
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

// asInvalid blames the text for an error of the decoder, unless it is of reading the file.
func asInvalid(err error) error {
	if err == nil || cannotRead(err) {
		return err
	}
	return fmt.Errorf("%w: %w", ErrInvalid, err)
}

func cannotRead(err error) bool {
	_, ok := errors.AsType[*fs.PathError](err)
	return ok
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
