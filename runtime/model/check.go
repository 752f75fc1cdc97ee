package model

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/estiba/estiba/runtime/arch"
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
	uses, alike := m.Graph.Uses(), map[graph.Stored]int{} // -> its place in m.Tensors
	for i, weight := range m.Graph.Weights {
		m.Graph.Weights[i].HF, m.Graph.Weights[i].GGUF = nil, nil // nobody looks again, and a mixture has many
		place, info, ok := find(w, weight)
		if !ok {
			return fmt.Errorf("read %s: tensor %q: %w: the files have no such tensor, which %s of %d layers needs",
				filesOf(m.Path, w), place.Tensor, ErrInvalid, m.Architecture, m.Config.Layers)
		}
		want := place.Of
		if want == nil {
			want = weight.Shape
		}
		if !info.Shape.Equal(want) {
			return fmt.Errorf("read %s: tensor %q: %w: its shape is %v, but %s asks for %v (%s)",
				info.File, place.Tensor, ErrInvalid, info.Shape, config, want, axes(w, weight.Name))
		}
		if err := info.Supported(); err != nil {
			return fmt.Errorf("read %w", err)
		}
		m.parts[weight.Name], used[place.Tensor] = part{place, weight.Shape}, true
		n, _ := weight.Shape.Elements()
		size := info.DType.Bytes(n)
		m.Parameters += n
		m.WeightsBytes += size
		stored[info.Stored] += size
		kind := graph.Stored{Use: uses[i], DType: info.DType, Rows: 1, Cols: weight.Shape[len(weight.Shape)-1]}
		kind.Rows = int(n) / kind.Cols
		at, ok := alike[kind]
		if !ok {
			at = len(m.Tensors)
			alike[kind], m.Tensors = at, append(m.Tensors, kind)
		}
		m.Tensors[at].Count++
	}
	for _, info := range w.Tensors {
		if !used[info.Name] && !arch.Spare(m.Config, info.Name) {
			return fmt.Errorf("read %s: tensor %q: %w: %s as this version computes it has no such weight",
				info.File, info.Name, ErrUnsupported, m.Architecture)
		}
	}
	m.Stored = slices.SortedFunc(maps.Keys(stored), func(a, b string) int {
		return cmp.Or(cmp.Compare(stored[b], stored[a]), cmp.Compare(a, b))
	})
	return nil
}

// bounded refuses a configuration of more layers and experts than the files can hold at a byte for each, before
// a graph is made of it.
func (m *Model) bounded(config string, w *weights.Header) error {
	bytes := int64(0)
	for _, info := range w.Tensors {
		bytes += info.Size
	}
	c := m.Config
	if n := int64(c.Layers) * int64(1+c.Experts); n > bytes {
		return fmt.Errorf("read %s: %w: it asks for %d layers of %d experts, but the files have %d bytes of tensors", config, ErrInvalid, c.Layers, c.Experts, bytes)
	}
	return nil
}

// find gives the first place of a weight that the checkpoint has; or the first of all, and false.
func find(w *weights.Header, weight graph.Weight) (graph.Place, weights.Info, bool) {
	places := weight.HF
	if w.Format == weights.GGUF {
		places = weight.GGUF
	}
	for _, p := range places {
		if info, ok := w.Lookup(p.Tensor); ok {
			return p, info, true
		}
	}
	if len(places) == 0 {
		return graph.Place{Tensor: weight.Name}, weights.Info{}, false
	}
	return places[0], weights.Info{}, false
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
		"router":    "num_experts, hidden_size",
		"positions": "max_position_embeddings, hidden_size",
		"types":     "type_vocab_size, hidden_size",
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
