package model

import (
	"sync"

	"github.com/estiba/estiba/runtime/grammar"
)

// vocabulary is made when the first text has to follow a grammar: it takes some
// milliseconds and megabytes for a large one.
type vocabulary struct {
	once sync.Once
	of   *grammar.Vocabulary
}

// Vocabulary is what the model's tokens add to a text, for grammars. Special
// tokens add nothing, and have their names. The model must have a tokenizer.
func (m *Model) Vocabulary() *grammar.Vocabulary {
	m.vocabulary.once.Do(func() {
		t := m.Tokenizer
		v := grammar.NewVocabulary(m.Config.Vocabulary, m.token, m.Config.EOS)
		for id := range int32(m.Config.Vocabulary) {
			if _, text := m.token(id); !text && t.Has(id) {
				v.AddSpecial(t.Text(id), id)
			}
		}
		m.vocabulary.of = v
	})
	return m.vocabulary.of
}

// token is what one adds to a text; false for one that adds nothing.
func (m *Model) token(id int32) ([]byte, bool) {
	bytes, ok := m.Tokenizer.TokenBytes(id)
	return bytes, ok && len(bytes) > 0
}

// hostBytes is about what the model takes beside its weights and its program, all of
// which its headers tell: names and places of weights, the graph, the tokenizer, and the
// vocabulary for grammars, which is made when the first of them comes.
func (m *Model) hostBytes() int64 {
	const tensor, weight, node, operand = 250, 300, 250, 16 // measured, on 64 bits; with what the program has of each
	tensors := map[string]bool{}
	n := int64(weight*len(m.Graph.Weights) + node*len(m.Graph.Nodes))
	for _, w := range m.Graph.Weights {
		n += int64(len(w.Name))
	}
	for _, p := range m.parts {
		if !tensors[p.Tensor] {
			n += tensor + int64(len(p.Tensor))
		}
		tensors[p.Tensor] = true
	}
	for _, node := range m.Graph.Nodes {
		n += int64(operand * len(node.In))
	}
	if m.Tokenizer != nil {
		n += m.Tokenizer.Bytes() + grammar.VocabularyBytes(m.Config.Vocabulary, m.token)
	}
	return n
}
