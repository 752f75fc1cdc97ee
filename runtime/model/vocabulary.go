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
		token := func(id int32) ([]byte, bool) {
			bytes, ok := t.TokenBytes(id)
			return bytes, ok && len(bytes) > 0
		}
		v := grammar.NewVocabulary(m.Config.Vocabulary, token, m.Config.EOS)
		for id := range int32(m.Config.Vocabulary) {
			if _, text := token(id); !text && t.Has(id) {
				v.AddSpecial(t.Text(id), id)
			}
		}
		m.vocabulary.of = v
	})
	return m.vocabulary.of
}
