// Package weights reads the tensors of a checkpoint: safetensors (one file, or
// shards with an index) and GGUF. A file's header is read and checked without
// touching its data, so a terabyte opens at once; data is mapped read-only.
// Files are untrusted: a header gives a value or an error, in memory that
// budget.go bounds. Start with Read and Open.
package weights

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/estiba/estiba/runtime/tensor"
)

var (
	// ErrInvalid: the file breaks its format's rules; another copy may be good.
	ErrInvalid = errors.New("invalid checkpoint")
	// ErrUnsupported: the file may be good, but this version cannot read it.
	ErrUnsupported = errors.New("unsupported checkpoint")
)

// Format of a checkpoint's files.
type Format string

// The formats that are read.
const (
	Safetensors Format = "safetensors"
	GGUF        Format = "gguf"
)

// The files of a checkpoint folder that hold tensors.
const (
	singleFile = "model.safetensors"
	indexFile  = "model.safetensors.index.json"
)

// Info is what a header says about one tensor. Its bytes have been checked to
// lie in the file, to overlap no other's, and to be as many as shape and format ask for.
type Info struct {
	Name   string
	DType  tensor.DType // Invalid for a format that this version cannot compute with
	Stored string       // the format's name in the file: "F32", "I64", "Q8_0"
	Shape  tensor.Shape
	File   string // path
	Offset int64  // of the first byte, from the start of the file
	Size   int64  // bytes
}

// Supported is nil if the tensor can be computed with, else an ErrUnsupported
// that names file, tensor and format.
func (i Info) Supported() error {
	if i.DType != tensor.Invalid {
		return nil
	}
	var names []string
	for _, d := range tensor.DTypes() {
		names = append(names, d.String())
	}
	return fmt.Errorf("%s: tensor %q: %w: format %s is not among %s; convert the model to one of these",
		i.File, i.Name, ErrUnsupported, i.Stored, strings.Join(names, " "))
}

// Header is what the headers of a checkpoint's files say.
type Header struct {
	Format  Format
	Tensors []Info // in the order of the files, and of the data in them
	// Fields are GGUF's key-value pairs: uint8 … int64, float32, float64, bool,
	// string, slices of these, and Unread. Nil for safetensors.
	Fields map[string]any

	byName map[string]int
	sizes  map[string]int64 // of each file, when its header was read
}

// Lookup gives what the header says about a tensor.
func (h *Header) Lookup(name string) (Info, bool) {
	i, ok := h.byName[name]
	if !ok {
		return Info{}, false
	}
	return h.Tensors[i], true
}

// Read reads the header of a checkpoint: a .gguf or .safetensors file, or a
// folder with model.safetensors or model.safetensors.index.json. It reads no data.
func Read(path string) (*Header, error) {
	stat, err := os.Stat(path)
	if e, ok := errors.AsType[*fs.PathError](err); ok {
		return nil, fmt.Errorf("read %s: %w; give a model's folder or a .gguf file", path, e.Err)
	}
	if stat.IsDir() {
		return readFolder(path)
	}
	switch strings.ToLower(filepath.Ext(path)) {
	case ".gguf":
		return readGGUF(path)
	case ".safetensors":
		return readSafetensors([]string{path}, newBudget())
	}
	return nil, fmt.Errorf("read %s: %w: a checkpoint is a .gguf or .safetensors file, or a folder with %s",
		path, ErrUnsupported, singleFile)
}

func readFolder(dir string) (*Header, error) {
	single := filepath.Join(dir, singleFile)
	if exists(single) {
		return readSafetensors([]string{single}, newBudget())
	}
	index := filepath.Join(dir, indexFile)
	if exists(index) {
		return readSharded(index)
	}
	return nil, fmt.Errorf("read %s: %w", dir, noWeights(dir))
}

// noWeights says why a folder without safetensors is no checkpoint.
func noWeights(dir string) error {
	for _, other := range []struct{ pattern, advice string }{
		{"*.gguf", "name the .gguf file itself instead of its folder"},
		{"*.safetensors", "its safetensors need the name " + singleFile + ", or an index " + indexFile},
		{"*.bin", "convert its PyTorch weights to safetensors"},
		{"*.pth", "convert its PyTorch weights to safetensors"},
	} {
		if found, _ := filepath.Glob(filepath.Join(escapeGlob(dir), other.pattern)); len(found) > 0 {
			return fmt.Errorf("%w: the folder has no %s; %s", ErrUnsupported, singleFile, other.advice)
		}
	}
	return fmt.Errorf("%w: the folder has neither %s nor %s", ErrInvalid, singleFile, indexFile)
}

func escapeGlob(path string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(path)
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// open opens a regular file and gives its size. Anything else (a pipe, a
// device) could block or never end.
func open(path string) (*os.File, int64, error) {
	stat, err := os.Stat(path)
	if err != nil {
		return nil, 0, err
	}
	if !stat.Mode().IsRegular() {
		return nil, 0, fmt.Errorf("%w: not a regular file", ErrInvalid)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, 0, err
	}
	// The file may have been replaced since.
	if stat, err = f.Stat(); err != nil {
		f.Close()
		return nil, 0, err
	}
	return f, stat.Size(), nil
}

// add appends a file's tensors; a name that another file has already is an error.
func (h *Header) add(infos []Info) error {
	if h.byName == nil {
		h.byName = make(map[string]int, len(infos))
	}
	before := len(h.Tensors)
	if before == 0 {
		h.Tensors = infos
	} else {
		h.Tensors = append(h.Tensors, infos...)
	}
	for i, info := range infos {
		if other, ok := h.byName[info.Name]; ok {
			return fmt.Errorf("%s: tensor %q: %w: %s has a tensor of this name too", info.File, info.Name, ErrInvalid, h.Tensors[other].File)
		}
		h.byName[info.Name] = before + i
	}
	return nil
}

// shape checks the axes that a file gives and multiplies them. Axes must fit an
// int and their product an int64.
func shape(axes []int64) (tensor.Shape, int64, error) {
	s := make(tensor.Shape, len(axes))
	for i, a := range axes {
		if a < 0 || a > math.MaxInt {
			return nil, 0, fmt.Errorf("%w: shape %v has an axis of %d", ErrInvalid, axes, a)
		}
		s[i] = int(a)
	}
	n, ok := s.Elements()
	if !ok {
		return nil, 0, fmt.Errorf("%w: shape %v has more elements than fit in 64 bits", ErrInvalid, axes)
	}
	return s, n, nil
}

// byOffset orders tensors by where their data lies; empty ones go before the
// tensor that starts at the same byte.
func byOffset(infos []Info) {
	slices.SortFunc(infos, func(a, b Info) int {
		if a.Offset != b.Offset {
			return compare(a.Offset, b.Offset)
		}
		if a.Size != b.Size {
			return compare(a.Size, b.Size)
		}
		return strings.Compare(a.Name, b.Name)
	})
}

func compare(a, b int64) int {
	if a < b {
		return -1
	}
	return 1
}
