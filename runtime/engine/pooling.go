package engine

import (
	"math"

	"github.com/estiba/estiba/runtime/batching"
	"github.com/estiba/estiba/runtime/sampling"
)

// Pooling makes one vector of the final hidden states of a prompt's tokens.
type Pooling uint8

// The ways of pooling.
const (
	NoPooling Pooling = iota // no embedding is asked for
	Mean                     // their average
	CLS                      // that of the first token
	Last                     // that of the last token
)

// rows of the prompt that it needs.
func (p Pooling) rows() batching.Rows {
	switch p {
	case Mean, CLS:
		return batching.AllRows
	case Last:
		return batching.LastRow
	}
	return batching.NoRows
}

// pool collects hidden states as they come, in chunks.
type pool struct {
	how       Pooling
	sum       []float64 // [hidden]
	embedding []float32 // [hidden], when all have come
}

// add takes the rows of a span, [rows, hidden].
func (p *pool) add(rows []float32, hidden int, span batching.Span) {
	switch {
	case p.how == CLS && span.Start > 0:
		return
	case p.how == CLS:
		rows = rows[:hidden]
	case p.how == Last:
		rows = rows[len(rows)-hidden:]
	}
	if p.sum == nil {
		p.sum = make([]float64, hidden)
	}
	for i, x := range rows {
		p.sum[i%hidden] += float64(x)
	}
}

// end makes the embedding: the direction of the sum, which is that of the average.
// sampling.ErrNotANumber: it has none.
func (p *pool) end() error {
	square := 0.0
	for _, x := range p.sum {
		square += x * x
	}
	length := math.Sqrt(square)
	if !(length > 0) || math.IsInf(length, 0) {
		return sampling.ErrNotANumber
	}
	p.embedding = make([]float32, len(p.sum))
	for i, x := range p.sum {
		p.embedding[i] = float32(x / length)
	}
	return nil
}

func (p *pool) done() bool { return p.embedding != nil }

// Poolings are the ways of pooling, by the names that commands and checkpoints have for them.
var Poolings = map[string]Pooling{"mean": Mean, "cls": CLS, "last": Last}
