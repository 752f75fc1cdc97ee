package cuda

import (
	"errors"
	"fmt"
	"math/bits"

	"github.com/estiba/estiba/runtime/backend"
	"github.com/estiba/estiba/runtime/batching"
)

// bounds are what a batch must keep to.
type bounds struct {
	backend.Limits
	encoder    bool
	vocabulary int // tokens are below it
	positions  int // positions are below it
	blocks     int // KV blocks are below it
}

// layout is a batch as kernels read it: token by token, and span by span. It is used again by each step.
type layout struct {
	tokens, position, spanOf []int32 // of each token
	first, context           []int32 // of each span: its first token's row, and the positions it has after the step
	tables                   [][]int32
	longest                  int     // blocks in a table
	wanted                   []int32 // rows of tokens whose logits are asked for
	singles                  int     // spans of one token
	writer                   map[int32]int
}

// take checks a batch and lays it out.
func (l *layout) take(b batching.Batch, limits bounds) error {
	if n := b.Tokens(); n > limits.MaxTokens {
		return fmt.Errorf("%d tokens in a step of at most %d", n, limits.MaxTokens)
	}
	if n := b.Logits(); n > limits.MaxRows {
		return fmt.Errorf("%d rows of logits in a step of at most %d", n, limits.MaxRows)
	}
	l.tokens, l.position, l.spanOf = l.tokens[:0], l.position[:0], l.spanOf[:0]
	l.first, l.context, l.tables, l.wanted = l.first[:0], l.context[:0], l.tables[:0], l.wanted[:0]
	l.longest, l.singles = 0, 0
	if l.writer == nil {
		l.writer = map[int32]int{}
	}
	clear(l.writer)
	for i, s := range b.Spans {
		if limits.encoder {
			s.Blocks = nil
		}
		if err := l.span(i, s, limits); err != nil {
			return fmt.Errorf("span %d of sequence %d%w", i, s.Sequence, err)
		}
		end := s.Start + len(s.Tokens)
		l.first, l.context = append(l.first, int32(len(l.tokens))), append(l.context, int32(end))
		used := 0
		if !limits.encoder {
			used = (end + limits.BlockTokens - 1) / limits.BlockTokens
		}
		l.tables, l.longest = append(l.tables, s.Blocks[:used]), max(l.longest, used)
		if len(s.Tokens) == 1 {
			l.singles++
		}
		for j, token := range s.Tokens {
			if s.Rows == batching.AllRows || s.Rows == batching.LastRow && j == len(s.Tokens)-1 {
				l.wanted = append(l.wanted, int32(len(l.tokens)))
			}
			l.tokens, l.position, l.spanOf = append(l.tokens, token), append(l.position, int32(s.Start+j)), append(l.spanOf, int32(i))
		}
	}
	return nil
}

// span says what is wrong with one, in words that follow its name.
func (l *layout) span(i int, s batching.Span, limits bounds) error {
	end := s.Start + len(s.Tokens)
	switch {
	case len(s.Tokens) == 0:
		return errors.New(" has no tokens")
	case end > limits.positions:
		return fmt.Errorf(" ends at position %d; the model has %d", end, limits.positions)
	case limits.encoder && s.Start != 0:
		return fmt.Errorf(" starts at position %d; an encoder takes a sequence whole", s.Start)
	case limits.encoder:
	case s.Start < 0 || end < s.Start || (end-1)/limits.BlockTokens >= len(s.Blocks):
		return fmt.Errorf(": %d blocks of %d do not cover positions %d to %d", len(s.Blocks), limits.BlockTokens, s.Start, end-1)
	}
	for _, block := range s.Blocks {
		if block < 0 || int(block) >= limits.blocks {
			return fmt.Errorf(": block %d of %d", block, limits.blocks)
		}
	}
	for at := s.Start / max(limits.BlockTokens, 1); at < len(s.Blocks) && at <= (end-1)/limits.BlockTokens; at++ {
		if other, ok := l.writer[s.Blocks[at]]; ok {
			return fmt.Errorf(": spans %d and %d both write to block %d", other, i, s.Blocks[at])
		}
		l.writer[s.Blocks[at]] = i
	}
	for _, token := range s.Tokens {
		if token < 0 || int(token) >= limits.vocabulary {
			return fmt.Errorf(": token %d is not in the vocabulary of %d", token, limits.vocabulary)
		}
	}
	return nil
}

// bucket is how many spans a step of so many single tokens is computed with: a power of two, or all that there may be.
func bucket(spans, most int) int { return min(1<<bits.Len(uint(spans-1)), most) }

// pad adds spans until there are n of them, each of one token at the start of the scrap block, and asks for all rows.
// They compute what nobody reads.
func (l *layout) pad(n int, scrap []int32) {
	for i := len(l.tokens); i < n; i++ {
		l.tokens, l.position, l.spanOf = append(l.tokens, 0), append(l.position, 0), append(l.spanOf, int32(i))
		l.first, l.context, l.tables = append(l.first, int32(i)), append(l.context, 1), append(l.tables, scrap)
		l.singles++
	}
	l.longest = max(l.longest, len(scrap))
}

// places are where the parts of a step's numbers begin among them, by the most tokens of a step. Tables are last.
type places struct {
	tokens, position, spanOf, first, context, wanted, tables int
}

// placesOf steps of so many tokens and rows. Each part begins at a multiple of 256 bytes.
func placesOf(limits backend.Limits) (p places) {
	at := 0
	next := func(n int) int {
		from := at
		at += (n + 63) / 64 * 64
		return from
	}
	t := limits.MaxTokens
	p.tokens, p.position, p.spanOf = next(t), next(t), next(t)
	p.first, p.context, p.wanted = next(t+1), next(t), next(limits.MaxRows)
	p.tables = at
	return p
}

// numbers of a step in their places, with tables of so many blocks each. They are written over dst.
func (l *layout) numbers(dst []int32, p places, stride int) []int32 {
	n := p.tables + len(l.tables)*stride
	if cap(dst) < n {
		dst = make([]int32, n)
	}
	dst = dst[:n]
	copy(dst[p.tokens:], l.tokens)
	copy(dst[p.position:], l.position)
	copy(dst[p.spanOf:], l.spanOf)
	copy(dst[p.first:], l.first)
	dst[p.first+len(l.first)] = int32(len(l.tokens))
	copy(dst[p.context:], l.context)
	copy(dst[p.wanted:], l.wanted)
	for i, table := range l.tables {
		row := dst[p.tables+i*stride:][:stride]
		clear(row[copy(row, table):])
	}
	return dst
}

// leastStride is the shortest table that steps are launched with: a longer one is for other graphs.
const leastStride = 64

// stride of tables with room for so many blocks: a power of two, so that few graphs are captured while contexts grow.
func stride(longest int) int { return max(leastStride, 1<<bits.Len(uint(max(longest, 1)-1))) }
