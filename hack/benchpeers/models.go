package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// subject is a model file that both programs read.
type subject struct {
	name  string
	shape string // of estiba synth; empty: the bundled trained model
	quant string // of estiba synth, or of llama-quantize where from is set
	from  string // model that llama-quantize makes it of
	batch bool   // sequences together are measured, too
	bytes int64
}

var subjects = []subject{
	{name: "tinyllama-f16", shape: "tinyllama-1.1b", quant: "F16"},
	{name: "tinyllama-q8_0", shape: "tinyllama-1.1b", quant: "Q8_0", batch: true},
	{name: "tinyllama-q4_0", shape: "tinyllama-1.1b", quant: "Q4_0", batch: true},
	{name: "tinyllama-q4_k_m", from: "tinyllama-f16", quant: "Q4_K_M"},
	{name: "qwen2.5-0.5b-q8_0", shape: "qwen2.5-0.5b", quant: "Q8_0", batch: true},
	{name: "stories15m-q8_0", shape: "stories15m", quant: "Q8_0"},
	{name: "stories15m-f16", shape: "stories15m", quant: "F16"},
}

// trained are small models that have learnt something, for what arithmetic loses.
var trained = []subject{
	{name: "stories260k-f16"},
	{name: "stories260k-q8_0", from: "stories260k-f16", quant: "Q8_0"},
	{name: "stories260k-q4_0", from: "stories260k-f16", quant: "Q4_0"},
}

const bundled = "test/models/stories260K/stories260K-f16.gguf"

// inside is the file's name as llama.cpp sees it, whose root is another.
func (m subject) inside() string { return "/models/" + m.name + ".gguf" }

func (m subject) path(root string) string { return filepath.Join(root, m.inside()) }

// make writes the file if it is not there, and gives its size in bytes.
func (m subject) make(ctx context.Context, root string) (int64, error) {
	path := m.path(root)
	if stat, err := os.Stat(path); err == nil {
		return stat.Size(), nil
	}
	say("make %s", path)
	var err error
	switch {
	case m.from != "":
		of := subject{}
		for _, one := range append(subjects, trained...) {
			if one.name == m.from {
				of = one
			}
		}
		if _, err := of.make(ctx, root); err != nil {
			return 0, err
		}
		half := strings.TrimSuffix(m.inside(), ".gguf") + ".part.gguf"
		if _, err = llama(ctx, root, "quantize", of.inside(), half, m.quant).output(); err == nil {
			err = os.Rename(filepath.Join(root, half), path)
		}
	case m.shape != "":
		_, err = ours(ctx, "synth", m.shape, "--quant", m.quant, "--out", path).output()
	default:
		var b []byte
		if b, err = os.ReadFile(bundled); err == nil {
			err = os.WriteFile(path, b, 0o644)
		}
	}
	if err != nil {
		return 0, err
	}
	stat, err := os.Stat(path)
	if err != nil {
		return 0, err
	}
	return stat.Size(), nil
}

// repeats of one run: a short one is over before it says anything.
func (m subject) repeats() int { return int(min(max(1, 1_500_000_000/m.bytes), 10)) }

func (m subject) String() string { return fmt.Sprintf("%s (%.0f MB)", m.name, float64(m.bytes)/1e6) }
