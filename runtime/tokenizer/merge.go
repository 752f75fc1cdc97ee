package tokenizer

import "unicode/utf8"

// merges says which neighbours become one. Exactly one of its maps is set.
type merges struct {
	// ranked lists pairs of ids, as tokenizer.json does: the lowest rank goes first.
	ranked map[[2]int32]rankedMerge
	// scored has a score for each piece, as SentencePiece does: whatever two
	// neighbours spell a piece may be merged, the highest score first.
	scored map[string]scoredPiece
	chars  map[string]int32 // ids of whole pieces, for ranked
}

type rankedMerge struct{ rank, id int32 }

type scoredPiece struct {
	score float32
	id    int32
}

// noID is the id of a symbol that is no piece (yet).
const noID = -1

// whole gives the id of a text that is a piece.
func (m *merges) whole(text string) (int32, bool) {
	if m.scored != nil {
		p, ok := m.scored[text]
		return p.id, ok
	}
	id, ok := m.chars[text]
	return id, ok
}

// pair gives the id of two neighbours merged, and when it is their turn: lower
// goes first.
func (m *merges) pair(text string, a, b symbol) (id int32, turn float64, ok bool) {
	if m.scored != nil {
		p, ok := m.scored[text[a.start:b.end]]
		return p.id, -float64(p.score), ok
	}
	r, ok := m.ranked[[2]int32{a.id, b.id}]
	return r.id, float64(r.rank), ok
}

// symbol is a part of a text that has not been split, in a list of them.
type symbol struct {
	start, end int // bytes of the text; equal once merged into another
	prev, next int // indices of symbols; -1 at the ends
	id         int32
}

// encodePart appends the ids of a normalized text without special tokens. It
// merges neighbours, best pair first and leftmost among equals, until none is
// left: O(n log n), by a queue of pairs.
// Source: sentencepiece's bpe_model.cc; tokenizers' models/bpe/word.rs.
func (t *Tokenizer) encodePart(text string, ids []int32) []int32 {
	symbols := t.symbols(text)
	var q queue
	push := func(left int) {
		if left < 0 || symbols[left].next < 0 {
			return
		}
		if id, turn, ok := t.merges.pair(text, symbols[left], symbols[symbols[left].next]); ok {
			q.push(candidate{turn, left, id})
		}
	}
	for i := range symbols {
		push(i)
	}
	for len(q) > 0 {
		c := q.pop()
		left := &symbols[c.left]
		if left.start == left.end || left.next < 0 {
			continue // merged into another since it was queued
		}
		right := &symbols[left.next]
		if id, _, ok := t.merges.pair(text, *left, *right); !ok || id != c.id {
			continue // its neighbour has changed
		}
		left.end, left.id, left.next = right.end, c.id, right.next
		if right.next >= 0 {
			symbols[right.next].prev = c.left
		}
		right.start = right.end
		push(left.prev)
		push(c.left)
	}
	unknown := false // the last id is for an unknown character
	for i := 0; i >= 0 && i < len(symbols); i = symbols[i].next {
		s := symbols[i]
		if s.id != noID {
			ids, unknown = append(ids, s.id), false
			continue
		}
		if t.bytes[0] != noID {
			for _, b := range []byte(text[s.start:s.end]) {
				ids = append(ids, t.bytes[b])
			}
			unknown = false
			continue
		}
		if t.unknown != noID && !(unknown && t.fuseUnknown) {
			ids = append(ids, t.unknown)
		}
		unknown = true
	}
	return ids
}

// symbols cuts a text into characters. A character that is no piece is cut
// into its bytes where ranked merges may join those again.
func (t *Tokenizer) symbols(text string) []symbol {
	out := make([]symbol, 0, len(text))
	add := func(start, end int, id int32) {
		out = append(out, symbol{start: start, end: end, prev: len(out) - 1, next: len(out) + 1, id: id})
	}
	for i := 0; i < len(text); {
		_, n := utf8.DecodeRuneInString(text[i:])
		id, ok := t.merges.whole(text[i : i+n])
		switch {
		case ok:
			add(i, i+n, id)
		case t.merges.ranked != nil && t.bytes[0] != noID:
			for j := i; j < i+n; j++ {
				add(j, j+1, t.bytes[text[j]])
			}
		default:
			add(i, i+n, noID)
		}
		i += n
	}
	if len(out) > 0 {
		out[len(out)-1].next = -1
	}
	return out
}

// candidate is a pair that may be merged: the symbol left and its next.
type candidate struct {
	turn float64
	left int
	id   int32
}

func (c candidate) before(d candidate) bool {
	return c.turn < d.turn || c.turn == d.turn && c.left < d.left
}

// queue is a binary heap, without the boxing of container/heap.
type queue []candidate

func (q *queue) push(c candidate) {
	h := append(*q, c)
	i := len(h) - 1
	for i > 0 {
		up := (i - 1) / 2
		if !h[i].before(h[up]) {
			break
		}
		h[i], h[up] = h[up], h[i]
		i = up
	}
	*q = h
}

func (q *queue) pop() candidate {
	h := *q
	first, last := h[0], len(h)-1
	h[0] = h[last]
	h = h[:last]
	for i := 0; ; {
		least := i
		for _, child := range [2]int{2*i + 1, 2*i + 2} {
			if child < len(h) && h[child].before(h[least]) {
				least = child
			}
		}
		if least == i {
			break
		}
		h[i], h[least] = h[least], h[i]
		i = least
	}
	*q = h
	return first
}
