// Package model opens a checkpoint, a Hugging Face folder or a .gguf file, as
// one thing: configuration, graph, weights, tokenizer and chat template, checked
// against each other. Start with Inspect, which reads headers only, and Open.
package model

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/estiba/estiba/runtime/arch"
	"github.com/estiba/estiba/runtime/device"
	"github.com/estiba/estiba/runtime/graph"
	"github.com/estiba/estiba/runtime/residency"
	"github.com/estiba/estiba/runtime/tensor"
	"github.com/estiba/estiba/runtime/tokenizer"
	"github.com/estiba/estiba/runtime/weights"
)

// Every error of Inspect and Open is one of these, whichever part found it;
// or fs.ErrNotExist if the path leads nowhere; or one of reading files.
var (
	// ErrNoRoom: this process may not have as much memory as the tokenizer takes.
	ErrNoRoom = errors.New("too little memory")
	// ErrInvalid: the files contradict themselves, each other, or their format.
	ErrInvalid = weights.ErrInvalid
	// ErrUnsupported: the model may be good, but would be computed wrongly by this version.
	ErrUnsupported = weights.ErrUnsupported
)

// Header is what a model's headers say. Everything in it has been checked: each
// weight of the architecture is in the files, in the shape that the
// configuration asks for and a format that can be computed with.
type Header struct {
	Path         string // folder or .gguf file
	Format       string // "safetensors" or "gguf"
	Architecture string // of arch.Config
	Config       arch.Config
	Parameters   int64          // numbers in the weights; a table that is used twice counts once
	WeightsBytes int64          // that the weights take, as stored
	HostBytes    int64          // about what the process holds beside those for a loaded model
	Stored       []string       // formats of the weights, such as "F16"; the one with most bytes first
	Tensors      []graph.Stored // the weights, alike ones counted together
	// Pooling is how the checkpoint's embeddings are made of hidden states: "mean", "cls", "last",
	// or a name of what cannot be done here. Empty if it does not say.
	Pooling string
}

// Inspect reads a model's headers and configuration, and checks them as Open does, without
// touching the weights.
func Inspect(path string) (Header, error) {
	w, err := weights.Read(path)
	if err != nil {
		return Header{}, err
	}
	m, err := read(path, w, true, device.Free(nil))
	if err != nil {
		return Header{}, err
	}
	return m.Header, nil
}

// Model is a checkpoint ready to run, its weights mapped.
type Model struct {
	Header
	Graph     *graph.Graph
	Tokenizer *tokenizer.Tokenizer // nil: the checkpoint has no tokenizer
	Chat
	vocabulary vocabulary

	checkpoint *weights.Checkpoint
	parts      map[string]part // the graph's name of a weight -> where it is in the checkpoint
}

// part is a place in a checkpoint, and the shape of what is there.
type part struct {
	graph.Place
	shape tensor.Shape
}

// of gives the part of the tensor that is there.
func (p part) of(t tensor.Tensor) tensor.Tensor {
	if p.Of == nil {
		return t
	}
	n, _ := p.shape.Elements()
	from := int64(p.Row) * t.DType.Bytes(int64(p.Of[len(p.Of)-1]))
	to := from + t.DType.Bytes(n)
	t.Shape, t.Data = p.shape, t.Data[from:to:to]
	return t
}

// Open maps a model's files and checks them.
func Open(path string) (*Model, error) { return open(path, true) }

// OpenForIDs is Open for a caller that gives and takes token ids: the model has
// no tokenizer, and that of the files may be one that cannot be read.
func OpenForIDs(path string) (*Model, error) { return open(path, false) }

func open(path string, text bool) (*Model, error) {
	c, err := weights.Open(path)
	if err != nil {
		return nil, err
	}
	m, err := read(path, c.Header, text, device.Free(nil))
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	m.checkpoint = c
	used := make(map[string]bool, len(m.parts))
	for _, p := range m.parts {
		used[p.Tensor] = true
	}
	c.Keep(func(tensor string) bool { return used[tensor] })
	return m, nil
}

// Weights gives a tensor by the graph's name. Its data is a mapped file:
// unaligned, valid until Close, and to be read under weights.Guard.
func (m *Model) Weights(name string) (tensor.Tensor, error) {
	p, ok := m.parts[name]
	if !ok {
		return tensor.Tensor{}, fmt.Errorf("%s: the graph has no weight %q", m.Path, name)
	}
	t, err := m.checkpoint.Tensor(p.Tensor)
	if err != nil {
		return tensor.Tensor{}, err
	}
	t = p.of(t)
	t.Name = name
	return t, nil
}

// Close unmaps the files. Nothing may read the weights any more.
func (m *Model) Close() error { return m.checkpoint.Close() }

// read puts together all but the weights' data; with text also what turns it into ids and back, if there is memory left for that.
func read(path string, w *weights.Header, text bool, left device.Left) (*Model, error) {
	m := &Model{Header: Header{Path: path, Format: string(w.Format)}, parts: map[string]part{}}
	configuration, texts := m.folder, m.folderText
	if w.Format == weights.GGUF {
		configuration, texts = m.gguf, m.ggufText
	} else if stat, err := os.Stat(path); err == nil && !stat.IsDir() {
		path = filepath.Dir(path) // a .safetensors file stands for its folder
	}
	if err := configuration(path, w); err != nil {
		return nil, ofKind(err)
	}
	m.Architecture = m.Config.Architecture
	if err := m.bounded(configOf(path, w), w); err != nil {
		return nil, err
	}
	g, err := arch.Build(m.Config)
	if err != nil {
		return nil, ofKind(fmt.Errorf("read %s: %w", configOf(path, w), err))
	}
	m.Graph = g
	if err := m.check(configOf(path, w), w); err != nil {
		return nil, err
	}
	if text {
		if need := arch.HostBytes(m.Config); left.Bytes > 0 && need > left.Bytes {
			return nil, roomError{fmt.Sprintf("%s needs %s of memory for its tokenizer of %d tokens, and %s can be had (%s): give more memory",
				m.Path, residency.Bytes(need), m.Config.Vocabulary, residency.Bytes(left.Bytes), left.Bound)}
		}
		if err := texts(path, w); err != nil {
			return nil, ofKind(err)
		}
	}
	if most := 2 * arch.HostBytes(m.Config); m.Tokenizer != nil && m.Tokenizer.Bytes() > most {
		return nil, fmt.Errorf("read %s: %w: its tokenizer takes %d bytes of memory, where at most %d are reckoned for a vocabulary of %d tokens",
			path, ErrUnsupported, m.Tokenizer.Bytes(), most, m.Config.Vocabulary)
	}
	m.HostBytes = m.hostBytes()
	return m, nil
}

// roomError is an ErrNoRoom in words.
type roomError struct{ text string }

func (e roomError) Error() string { return e.text }
func (roomError) Unwrap() error   { return ErrNoRoom }

// configOf is the file that holds the configuration.
func configOf(path string, w *weights.Header) string {
	if w.Format == weights.GGUF {
		return path
	}
	return filepath.Join(path, "config.json")
}

// Bounds of the configuration files, in bytes. They have a few kilobytes, but a
// tokenizer's may list some thousand tokens.
const (
	maxConfig          = 1 << 20
	maxTokenizerConfig = 8 << 20
)

// folder reads the configuration that lies beside safetensors.
func (m *Model) folder(dir string, _ *weights.Header) error {
	config, err := weights.ReadSmallFile(filepath.Join(dir, "config.json"), maxConfig)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("read %s: %w: the folder has weights but no config.json", dir, ErrInvalid)
	}
	if err != nil {
		return fmt.Errorf("read %s: %w", filepath.Join(dir, "config.json"), err)
	}
	generation, err := optional(dir, "generation_config.json", maxConfig)
	if err != nil {
		return err
	}
	if m.Config, err = arch.ParseHF(config, generation); err != nil {
		return fmt.Errorf("read %s: %w", dir, err) // the error names the file
	}
	m.Pooling, err = pooling(dir)
	return err
}

// folderText reads what makes ids of text and of chats, where it lies beside safetensors.
func (m *Model) folderText(dir string, _ *weights.Header) (err error) {
	if m.Chat, err = chatOfFolder(dir); err != nil {
		return err
	}
	m.Tokenizer, err = tokenizer.Open(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// optional reads a file of a folder that need not be there; nil if it is not.
func optional(dir, name string, most int64) ([]byte, error) {
	text, err := weights.ReadSmallFile(filepath.Join(dir, name), most)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", filepath.Join(dir, name), err)
	}
	return text, nil
}

// gguf takes the configuration from the fields of a GGUF file.
func (m *Model) gguf(path string, w *weights.Header) (err error) {
	tensors := func(name string) bool { _, ok := w.Lookup(name); return ok }
	if m.Config, err = arch.ParseGGUF(w.Fields, tensors); err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	m.Pooling = poolingOfGGUF(m.Config.Architecture, w.Fields)
	return nil
}

// ggufText takes what makes ids of text and of chats from the fields of a GGUF file.
func (m *Model) ggufText(path string, w *weights.Header) (err error) {
	if m.Tokenizer, err = tokenizer.FromGGUF(w.Fields); err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	m.Chat = chatOfGGUF(w.Fields)
	return nil
}

// ofKind makes an error of a part one of this package's kinds too.
func ofKind(err error) error {
	switch {
	case errors.Is(err, ErrInvalid), errors.Is(err, ErrUnsupported):
		return err
	case errors.Is(err, arch.ErrUnsupported), errors.Is(err, tokenizer.ErrUnsupported):
		return kindError{err, ErrUnsupported}
	case errors.Is(err, arch.ErrInvalid), errors.Is(err, tokenizer.ErrInvalid):
		return kindError{err, ErrInvalid}
	}
	return err
}

// kindError says what err says.
type kindError struct{ err, kind error }

func (e kindError) Error() string   { return e.err.Error() }
func (e kindError) Unwrap() []error { return []error{e.err, e.kind} }
