package tokenizer

import (
	"math/bits"
	"math/rand/v2"
	"strings"
	"unicode/utf8"
)

// bpe merges neighbours by rank, as tokenizer.json lists pairs: the lowest goes
// first, and the leftmost among equals.
// Source: tokenizers' models/bpe.
type bpe struct {
	*vocabulary
	pairs pairs
	// byteLevel: it starts from bytes, and keys are bytes; otherwise from characters.
	byteLevel bool
	// bytes are the ids of single bytes: with byteLevel, or else of "<0x0A>" and the
	// like, which stand for a character that is no piece; all noID if there are none.
	bytes [256]int32
	// unknown stands for a character that has no piece and no bytes; noID drops it.
	unknown     int32
	fuseUnknown bool // one for a run of such characters
	wholes      bool // a part that is a piece is not merged ("ignore_merges")
	apart       bool // a byte that is no piece and dropped keeps its neighbours apart all the same, as in llama.cpp
	// prefix is what all but the first character of a part are written with in the
	// vocabulary, suffix what the last one is.
	prefix, suffix string
	cuts           bool // see cut
}

func (m *bpe) memory() int64 { return int64(len(m.pairs.slots)) * 16 }

func (m *bpe) encode(part string, ids []int32) []int32 {
	if m.wholes {
		if id, ok := m.find(part); ok {
			return append(ids, id)
		}
	}
	if m.cuts {
		for len(part) > 0 {
			n := cut(part)
			ids = m.word(part[:n], ids)
			part = part[n:]
		}
		return ids
	}
	return m.word(part, ids)
}

// word merges what stands alone.
func (m *bpe) word(part string, ids []int32) []int32 {
	var buf [64]int32
	symbols := buf[:0]
	if m.byteLevel {
		symbols = m.ofBytes(part, symbols)
	} else {
		symbols = m.ofChars(part, symbols)
	}
	for _, id := range m.pairs.merge(symbols) {
		if id != noID {
			ids = append(ids, id)
		}
	}
	return ids
}

func (m *bpe) ofBytes(part string, symbols []int32) []int32 {
	for i := range len(part) {
		id := m.bytes[part[i]]
		if id == noID {
			if id = m.unknown; id == noID && !m.apart || m.fuseUnknown && i > 0 && m.bytes[part[i-1]] == noID {
				continue
			}
		}
		symbols = append(symbols, id)
	}
	return symbols
}

func (m *bpe) ofChars(part string, symbols []int32) []int32 {
	unknown := false // the last one was
	for i := 0; i < len(part); {
		_, n := utf8.DecodeRuneInString(part[i:])
		char := part[i : i+n]
		if m.prefix != "" && i > 0 {
			char = m.prefix + char
		}
		if i += n; m.suffix != "" && i == len(part) {
			char += m.suffix
		}
		id, ok := m.find(char)
		switch {
		case ok:
			symbols, unknown = append(symbols, id), false
		case m.bytes[0] != noID:
			for _, b := range []byte(char) {
				symbols = append(symbols, m.bytes[b])
			}
			unknown = false
		case m.unknown != noID:
			if !unknown || !m.fuseUnknown {
				symbols = append(symbols, m.unknown)
			}
			unknown = true
		}
	}
	return symbols
}

// pairs says which two ids become which, and when: a hash table with open addressing.
type pairs struct {
	slots []pair
	used  int
	shift int // of a hash, so that a slot's number is left
}

type pair struct {
	a, b int32
	turn int32 // rank + 1; 0 is a free slot
	id   int32
}

// odd multiplies hashes. A file cannot know what falls together.
var odd = rand.Uint64() | 1

func newPairs(n int) pairs {
	size := bits.Len(uint(max(n+n/2, 8)))
	return pairs{slots: make([]pair, 1<<size), shift: 64 - size}
}

func (p *pairs) slot(a, b int32) *pair {
	mask := len(p.slots) - 1
	for i := int((uint64(uint32(a))<<32 | uint64(uint32(b))) * odd >> p.shift); ; i++ {
		if s := &p.slots[i&mask]; s.turn == 0 || s.a == a && s.b == b {
			return s
		}
	}
}

// add makes a and b become id. Of two ranks of the same pair the last counts.
func (p *pairs) add(a, b, rank, id int32) {
	if 4*(p.used+1) > 3*len(p.slots) {
		old := p.slots
		*p = newPairs(len(old))
		for _, s := range old {
			if s.turn != 0 {
				p.add(s.a, s.b, s.turn-1, s.id)
			}
		}
	}
	s := p.slot(a, b)
	if s.turn == 0 {
		p.used++
	}
	*s = pair{a, b, rank + 1, id}
}

// never is the turn of a pair that is not merged.
const never = 1<<31 - 1

func (p *pairs) turn(a, b int32) (turn, id int32) {
	if p.used == 0 {
		return never, noID
	}
	if s := p.slot(a, b); s.turn != 0 {
		return s.turn, s.id
	}
	return never, noID
}

// fewSymbols are merged by looking at all of them each time, more with a queue.
const fewSymbols = 48

// merge merges until no pair is left, in place.
func (p *pairs) merge(symbols []int32) []int32 {
	n := len(symbols)
	if n < 2 {
		return symbols
	}
	if n > fewSymbols {
		return p.mergeMany(symbols)
	}
	var turns, becomes [fewSymbols]int32
	for i := range n - 1 {
		turns[i], becomes[i] = p.turn(symbols[i], symbols[i+1])
	}
	for n > 1 {
		at, turn := -1, int32(never)
		for i := range n - 1 {
			if turns[i] < turn {
				at, turn = i, turns[i]
			}
		}
		if at < 0 {
			break
		}
		symbols[at] = becomes[at]
		copy(symbols[at+1:n-1], symbols[at+2:n])
		copy(turns[at:n-2], turns[at+1:n-1])
		copy(becomes[at:n-2], becomes[at+1:n-1])
		n--
		if at > 0 {
			turns[at-1], becomes[at-1] = p.turn(symbols[at-1], symbols[at])
		}
		if at < n-1 {
			turns[at], becomes[at] = p.turn(symbols[at], symbols[at+1])
		}
	}
	return symbols[:n]
}

// mergeMany needs n log n steps for n symbols.
func (p *pairs) mergeMany(symbols []int32) []int32 {
	list := make([]struct{ prev, next int32 }, len(symbols)) // -1 at the ends
	q := make(queue, 0, len(symbols))
	for i := range symbols {
		list[i].prev, list[i].next = int32(i)-1, int32(i)+1
	}
	list[len(list)-1].next = -1
	candidateOf := func(left int32) (candidate, bool) {
		if left < 0 || list[left].next < 0 {
			return candidate{}, false
		}
		turn, id := p.turn(symbols[left], symbols[list[left].next])
		return candidate{float64(turn), left, id}, turn != never
	}
	for i := range symbols {
		if c, ok := candidateOf(int32(i)); ok {
			q = append(q, c)
		}
	}
	q.order()
	for len(q) > 0 {
		c := q.pop()
		if symbols[c.left] == noID {
			continue // merged into another since it was queued
		}
		if now, ok := candidateOf(c.left); !ok || now.id != c.id {
			continue // its neighbour has changed
		}
		left := &list[c.left]
		right := left.next
		symbols[c.left], symbols[right] = c.id, noID
		if left.next = list[right].next; left.next >= 0 {
			list[left.next].prev = c.left
		}
		if c, ok := candidateOf(left.prev); ok {
			q.push(c)
		}
		if c, ok := candidateOf(c.left); ok {
			q.push(c)
		}
	}
	out := symbols[:0]
	for _, id := range symbols {
		if id != noID {
			out = append(out, id)
		}
	}
	return out
}

// candidate is a pair that may be merged: the symbol left and its next.
type candidate struct {
	turn float64 // the lowest goes first
	left int32
	id   int32 // what they become
}

func (c candidate) before(d candidate) bool {
	return c.turn < d.turn || c.turn == d.turn && c.left < d.left
}

// queue is a binary heap, without the boxing of container/heap.
type queue []candidate

// order makes a heap of any candidates.
func (q queue) order() {
	for i := len(q)/2 - 1; i >= 0; i-- {
		q.down(i)
	}
}

func (q *queue) push(c candidate) {
	h := append(*q, c)
	i := len(h) - 1
	for i > 0 {
		up := (i - 1) / 2
		if !c.before(h[up]) {
			break
		}
		h[i], i = h[up], up
	}
	h[i] = c
	*q = h
}

func (q *queue) pop() candidate {
	h := *q
	first, last := h[0], len(h)-1
	h[0] = h[last]
	*q = h[:last]
	q.down(0)
	return first
}

func (q queue) down(i int) {
	if i >= len(q) {
		return
	}
	c := q[i]
	for {
		child := 2*i + 1
		if child >= len(q) {
			break
		}
		if child+1 < len(q) && q[child+1].before(q[child]) {
			child++
		}
		if !q[child].before(c) {
			break
		}
		q[i], i = q[child], child
	}
	q[i] = c
}

// A text of a vocabulary that writes spaces as "▁" is one part. Where no piece has a
// "▁" after something else, nothing is ever merged across the start of a word, and
// words may be merged one by one, which is much faster.

// cutsWords says whether that is so for pieces with these keys.
func cutsWords(keys func(yield func(key string) bool)) bool {
	for key := range keys {
		if strings.Contains(strings.TrimLeft(key, space), space) {
			return false
		}
	}
	return true
}

// cut is the length of the first word: up to a "▁" after something else.
func cut(text string) int {
	runs := len(text) - len(strings.TrimLeft(text, space))
	if i := strings.Index(text[runs:], space); i >= 0 {
		return runs + i
	}
	return len(text)
}

// scored merges whatever two neighbours spell a piece, the highest score first, as
// SentencePiece does.
// Source: sentencepiece's bpe_model.cc.
type scored struct {
	*vocabulary
	scores      []float32
	bytes       [256]int32
	unknown     int32
	fuseUnknown bool
	cuts        bool
	unused      []bool // by id; nil if there are none: pieces that are taken apart again
}

func (m *scored) memory() int64 { return int64(4*len(m.scores) + len(m.unused)) }

func (m *scored) encode(part string, ids []int32) []int32 {
	if !m.cuts {
		return m.word(part, ids)
	}
	for len(part) > 0 {
		n := cut(part)
		ids = m.word(part[:n], ids)
		part = part[n:]
	}
	return ids
}

// span is a part of a text that has not been split further, in a list of them.
type span struct {
	start, end int32 // bytes of the text; equal once merged into another
	prev, next int32 // indices of spans; -1 at the ends
	id         int32
}

func (m *scored) lookUp(text string) (id int32, turn float64, ok bool) {
	id, ok = m.find(text)
	if !ok {
		return noID, 0, false
	}
	return id, -float64(m.scores[id]), true
}

func (m *scored) word(text string, ids []int32) []int32 {
	var few [fewSymbols]span // on the stack, for words
	spans := few[:0]
	if len(text) > len(few) {
		spans = make([]span, 0, len(text))
	}
	for i := 0; i < len(text); {
		_, n := utf8.DecodeRuneInString(text[i:])
		id, _, _ := m.lookUp(text[i : i+n])
		at := int32(len(spans))
		spans = append(spans, span{int32(i), int32(i + n), at - 1, at + 1, id})
		i += n
	}
	if len(spans) == 0 {
		return ids
	}
	spans[len(spans)-1].next = -1
	var pairs [fewSymbols]candidate
	q := queue(pairs[:0])
	if len(spans) > len(pairs) {
		q = make(queue, 0, len(spans))
	}
	var lefts map[int32]string // of unused pieces that came up: the first of the two that spell it
	candidateOf := func(left int32) (candidate, bool) {
		if left < 0 || spans[left].next < 0 {
			return candidate{}, false
		}
		id, turn, ok := m.lookUp(text[spans[left].start:spans[spans[left].next].end])
		if ok && m.unused != nil && m.unused[id] {
			if lefts == nil {
				lefts = map[int32]string{}
			}
			lefts[id] = text[spans[left].start:spans[left].end]
		}
		return candidate{turn, left, id}, ok
	}
	for i := range spans {
		if c, ok := candidateOf(int32(i)); ok {
			q = append(q, c)
		}
	}
	q.order()
	for len(q) > 0 {
		c := q.pop()
		left := &spans[c.left]
		if left.start == left.end || left.next < 0 {
			continue // merged into another since it was queued
		}
		right := &spans[left.next]
		if int(right.end-left.start) != len(m.pieces[c.id].key) {
			continue // its neighbour has changed
		}
		left.end, left.id, left.next = right.end, c.id, right.next
		if right.next >= 0 {
			spans[right.next].prev = c.left
		}
		right.start = right.end
		if c, ok := candidateOf(left.prev); ok {
			q.push(c)
		}
		if c, ok := candidateOf(c.left); ok {
			q.push(c)
		}
	}
	unknown := false // the last id is for an unknown character
	for i := int32(0); i >= 0; i = spans[i].next {
		s := spans[i]
		switch {
		case s.id != noID:
			ids, unknown = m.apart(s.id, lefts, ids), false
		case m.bytes[0] != noID:
			for _, b := range []byte(text[s.start:s.end]) {
				ids = append(ids, m.bytes[b])
			}
			unknown = false
		default:
			if m.unknown != noID && !(unknown && m.fuseUnknown) {
				ids = append(ids, m.unknown)
			}
			unknown = true
		}
	}
	return ids
}

// apart appends a piece or, of an unused one, those that it was merged from.
func (m *scored) apart(id int32, lefts map[int32]string, ids []int32) []int32 {
	left, ok := lefts[id]
	if !ok {
		return append(ids, id)
	}
	for _, half := range [2]string{left, m.pieces[id].key[len(left):]} {
		if of, ok := m.find(half); ok {
			ids = m.apart(of, lefts, ids)
		} else if m.bytes[0] != noID {
			for _, b := range []byte(half) {
				ids = append(ids, m.bytes[b])
			}
		} else if m.unknown != noID {
			ids = append(ids, m.unknown)
		}
	}
	return ids
}
