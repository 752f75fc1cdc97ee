package grammar

import (
	"bytes"
	"container/list"
	"crypto/sha256"
	"slices"
	"sync"
)

// Vocabulary is the tokens of a model, prepared for masks: about 20 bytes for
// each byte that tokens do not share. It is safe for concurrent use, and is
// built once a model.
type Vocabulary struct {
	size int
	end  []int32
	ends []bool // token -> it ends a text

	text    []byte
	offsets []int32          // of each token's bytes in text
	special map[string]int32 // AddSpecial
	byID    map[int32]string

	// The trie, in the order of a walk that visits a node before its children.
	// Node 0 is the empty text.
	char    []byte // last byte of a node's text
	depth   []uint16
	after   []int32 // first node that is not below
	parent  []int32
	token   []int32           // with this text, or -1
	same    map[int32][]int32 // token -> others of the same text
	byChar  [256][]int32      // nodes by their last byte
	quotes  []uint8           // below it: the most " that something follows in one token, up to 2
	longest int
	single  [256]bool // bytes that are a token
	whole   bool      // every byte that UTF-8 uses is one: any text can be spelled

	mu     sync.Mutex
	recent *list.List // of *automaton
	known  map[[sha256.Size]byte]*list.Element
	ofChar *profile // of one character within a JSON string
}

const (
	maxToken    = 1 << 12 // bytes; a longer token is never allowed
	maxAutomata = 16      // remembered
)

// NewVocabulary of size tokens: token gives what each adds to a text, or false
// for those that add none (control tokens, unused ids). The end tokens come
// only where a text may end.
func NewVocabulary(size int, token func(id int32) ([]byte, bool), end []int32) *Vocabulary {
	v := &Vocabulary{
		size: size, ends: make([]bool, size), offsets: make([]int32, 1, size+1),
		same: map[int32][]int32{}, special: map[string]int32{}, byID: map[int32]string{},
		recent: list.New(), known: map[[sha256.Size]byte]*list.Element{},
	}
	for _, t := range end {
		if 0 <= t && int(t) < size && !v.ends[t] {
			v.ends[t] = true
			v.end = append(v.end, t)
		}
	}
	order := make([]int32, 0, size)
	for t := range int32(size) {
		if !v.ends[t] {
			if b, ok := token(t); ok && 0 < len(b) && len(b) <= maxToken {
				v.text = append(v.text, b...)
				order = append(order, t)
			}
		}
		v.offsets = append(v.offsets, int32(len(v.text)))
	}
	slices.SortFunc(order, func(a, b int32) int { return bytes.Compare(v.bytes(a), v.bytes(b)) })
	v.grow(order)
	v.whole = true
	for b := range 256 {
		v.whole = v.whole && (v.single[b] || b == 0xc0 || b == 0xc1 || b > 0xf4)
	}
	return v
}

// VocabularyBytes is about what NewVocabulary takes for tokens.
func VocabularyBytes(size int, token func(id int32) ([]byte, bool)) int64 {
	texts := make([][]byte, 0, size)
	n := int64(0)
	for t := range int32(size) {
		if b, ok := token(t); ok && 0 < len(b) && len(b) <= maxToken {
			texts = append(texts, b)
			n += int64(len(b))
		}
	}
	slices.SortFunc(texts, bytes.Compare)
	nodes, last := int64(1), []byte(nil)
	for _, b := range texts {
		common := 0
		for common < len(b) && common < len(last) && b[common] == last[common] {
			common++
		}
		nodes += int64(len(b) - common)
		last = b
	}
	const perNode = 20 // char, depth, after, parent, token, byChar, quotes
	// What grows by appending has a tenth too much on average.
	return (n+perNode*nodes)*11/10 + 5*int64(size)
}

// AddSpecial says that a special token is called by this text, for grammars
// that ask for it. It is to be called before there are matchers.
func (v *Vocabulary) AddSpecial(text string, id int32) {
	if 0 <= id && int(id) < v.size {
		v.special[text] = id
		v.byID[id] = text
	}
}

// bytes of a token; none if it adds nothing to a text.
func (v *Vocabulary) bytes(t int32) []byte { return v.text[v.offsets[t]:v.offsets[t+1]] }

// grow builds the trie from tokens in the order of their bytes.
func (v *Vocabulary) grow(order []int32) {
	path := []int32{0}
	add := func(b byte, parent int32) int32 {
		n := int32(len(v.char))
		v.char = append(v.char, b)
		v.depth = append(v.depth, uint16(len(path)))
		v.after = append(v.after, 0)
		v.parent = append(v.parent, parent)
		v.token = append(v.token, -1)
		return n
	}
	add(0, -1)
	v.depth[0] = 0
	var last []byte
	for _, t := range order {
		b := v.bytes(t)
		common := 0
		for common < len(b) && common < len(last) && b[common] == last[common] {
			common++
		}
		for _, n := range path[common+1:] {
			v.after[n] = int32(len(v.char))
		}
		path = path[:common+1]
		for _, c := range b[common:] {
			path = append(path, add(c, path[len(path)-1]))
		}
		n := path[len(path)-1]
		if v.token[n] >= 0 {
			v.same[v.token[n]] = append(v.same[v.token[n]], t)
		} else {
			v.token[n] = t
		}
		last = b
		v.longest = max(v.longest, len(b))
		if len(b) == 1 {
			v.single[b[0]] = true
		}
	}
	for _, n := range path {
		v.after[n] = int32(len(v.char))
	}
	for n := 1; n < len(v.char); n++ {
		v.byChar[v.char[n]] = append(v.byChar[v.char[n]], int32(n))
	}
	v.quotes = make([]uint8, len(v.char))
	for n := int32(len(v.char)) - 1; n > 0; n-- {
		q := v.quotes[n]
		if v.quoteBefore(n) {
			q = min(q+1, 2)
		}
		v.quotes[v.parent[n]] = max(v.quotes[v.parent[n]], q)
	}
}

// quoteBefore says that a node is a " that something follows.
func (v *Vocabulary) quoteBefore(n int32) bool { return v.char[n] == '"' && v.after[n] > n+1 }

// mark sets the bits of a node's tokens.
func (v *Vocabulary) mark(bits []uint64, t int32) {
	bits[t>>6] |= 1 << (t & 63)
	if len(v.same) > 0 {
		for _, t := range v.same[t] {
			bits[t>>6] |= 1 << (t & 63)
		}
	}
}

// unmark clears the bits of the tokens at a node and below it.
func (v *Vocabulary) unmark(bits []uint64, node int32) {
	for n := node; n < v.after[node]; n++ {
		t := v.token[n]
		if t < 0 {
			continue
		}
		bits[t>>6] &^= 1 << (t & 63)
		for _, t := range v.same[t] {
			bits[t>>6] &^= 1 << (t & 63)
		}
	}
}

// automaton of a grammar and this vocabulary, shared by their matchers.
func (v *Vocabulary) automaton(g *Grammar) *automaton {
	v.mu.Lock()
	defer v.mu.Unlock()
	if e, ok := v.known[g.key]; ok {
		v.recent.MoveToFront(e)
		return e.Value.(*automaton)
	}
	a := &automaton{key: g.key, grammar: g.asText(func(name string) bool { _, ok := v.special[name]; return !ok }), vocabulary: v}
	v.known[g.key] = v.recent.PushFront(a)
	if v.recent.Len() > maxAutomata {
		delete(v.known, v.recent.Remove(v.recent.Back()).(*automaton).key)
	}
	return a
}
