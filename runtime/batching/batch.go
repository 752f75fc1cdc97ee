package batching

// Batch is what one replica computes in one step.
type Batch struct {
	Replica string // which model's program runs it
	Spans   []Span
}

// Span is the next tokens of one sequence: a chunk of its prompt, or one new token.
type Span struct {
	Sequence uint64
	Tokens   []int32
	Start    int     // position of Tokens[0], which is the number of tokens already in the cache
	Blocks   []int32 // the sequence's block table: covers positions [0, Start+len(Tokens))
	// Rows of logits wanted: LastRow for the next token, AllRows for every token of the span, NoRows within a prompt.
	Rows Rows
	// Next says that the last row's logits give the sequence's next token.
	Next bool
}

// Rows says of which tokens of a span the logits are wanted.
type Rows uint8

// Which rows of logits a span asks for.
const (
	NoRows Rows = iota
	LastRow
	AllRows
)

// Tokens in the batch.
func (b Batch) Tokens() int {
	n := 0
	for _, s := range b.Spans {
		n += len(s.Tokens)
	}
	return n
}

// Logits is the number of rows of logits that the batch asks for, in the order of its spans.
func (b Batch) Logits() int {
	n := 0
	for _, s := range b.Spans {
		switch s.Rows {
		case LastRow:
			n++
		case AllRows:
			n += len(s.Tokens)
		}
	}
	return n
}
