package model

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/estiba/estiba/runtime/graph"
	"github.com/estiba/estiba/runtime/weights"
)

// check finds every weight of the graph in the checkpoint, in its shape and a
// format that can be computed with, and adds them up. A tensor that the graph does
// not know (a bias, factors of a rotation) would be left out of the computation,
// so it is refused.
func (m *Model) check(config string, w *weights.Header) error {
	used := make(map[string]bool, len(m.Graph.Weights))
	stored := map[string]int64{}
	for _, weight := range m.Graph.Weights {
		name := nameIn(w.Format, weight)
		info, ok := w.Lookup(name)
		if !ok {
			return fmt.Errorf("read %s: tensor %q: %w: the files have no such tensor, which %s of %d layers needs",
				filesOf(m.Path, w), name, ErrInvalid, m.Architecture, m.Config.Layers)
		}
		if !info.Shape.Equal(weight.Shape) {
			return fmt.Errorf("read %s: tensor %q: %w: its shape is %v, but %s asks for %v (%s)",
				info.File, name, ErrInvalid, info.Shape, config, weight.Shape, axes(w, weight.Name))
		}
		if err := info.Supported(); err != nil {
			return fmt.Errorf("read %w", err)
		}
		m.names[weight.Name], used[name] = name, true
		n, _ := info.Shape.Elements()
		m.Parameters += n
		m.WeightsBytes += info.Size
		stored[info.Stored] += info.Size
	}
	for _, info := range w.Tensors {
		if !used[info.Name] && !m.extra(info.Name) {
			return fmt.Errorf("read %s: tensor %q: %w: %s as this version computes it has no such weight",
				info.File, info.Name, ErrUnsupported, m.Architecture)
		}
	}
	m.Stored = slices.SortedFunc(maps.Keys(stored), func(a, b string) int {
		return cmp.Or(cmp.Compare(stored[b], stored[a]), cmp.Compare(a, b))
	})
	return nil
}

func nameIn(f weights.Format, w graph.Weight) string {
	if f == weights.GGUF {
		return w.GGUF
	}
	return w.HF
}

// filesOf names where a tensor was looked for: the file, if there is one only.
func filesOf(path string, w *weights.Header) string {
	files := map[string]bool{}
	for _, t := range w.Tensors {
		files[t.File] = true
	}
	if len(files) != 1 {
		return path
	}
	for file := range files {
		return file
	}
	return path
}

// axes says which fields of the configuration a weight's shape comes from.
func axes(w *weights.Header, weight string) string {
	at := weight[strings.LastIndex(weight, ".")+1:]
	if strings.Contains(weight, "attention.output") {
		at = "o"
	}
	fields, ok := map[string]string{
		"embedding": "vocab_size, hidden_size",
		"output":    "vocab_size, hidden_size",
		"norm":      "hidden_size",
		"q":         "num_attention_heads × head_dim, hidden_size",
		"k":         "num_key_value_heads × head_dim, hidden_size",
		"v":         "num_key_value_heads × head_dim, hidden_size",
		"o":         "hidden_size, num_attention_heads × head_dim",
		"gate":      "intermediate_size, hidden_size",
		"up":        "intermediate_size, hidden_size",
		"down":      "hidden_size, intermediate_size",
	}[at]
	if !ok {
		return weight
	}
	if w.Format == weights.GGUF {
		fields = ggufNames.Replace(fields)
	}
	return fields
}

// ggufNames are GGUF's names for Hugging Face's fields.
var ggufNames = strings.NewReplacer(
	"hidden_size", "embedding_length", "intermediate_size", "feed_forward_length",
	"num_attention_heads", "attention.head_count", "num_key_value_heads", "attention.head_count_kv",
	"head_dim", "attention.key_length",
)
