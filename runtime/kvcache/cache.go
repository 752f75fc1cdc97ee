// Package kvcache accounts for the KV blocks of one replica: which sequence has
// which blocks, which are free, and which free ones still hold a prefix that a
// new sequence can take over. It counts blocks; a backend holds their bytes.
// Start at Cache. It is pure: no clock, no randomness, not safe for concurrent use.
package kvcache

import (
	"fmt"
	"slices"
)

// Cache is the account of one replica's blocks. At all times
// used + free = total, and a block is used exactly if a sequence's table has it.
//
// A full block whose tokens have been computed is sealed: it is known by the
// block before it and its own tokens, and a later sequence with the same prefix
// shares it. A sealed block that nobody uses stays findable until its turn, the
// least recently used first, comes to be given away.
type Cache struct {
	blockTokens int
	blocks      []block // with one more at the end: the head of the free list
	used        int
	tables      map[uint64]*table // sequence -> its blocks
	sealed      map[key]int32     // content -> block
	seals       uint64            // seals given so far
	prefix      Prefix
}

// Prefix counts the tokens that sequences asked to take over and those they could.
type Prefix struct{ Queries, Hits int64 }

type block struct {
	refs       int   // tables that have it; 0 means free
	prev, next int32 // in the free list, while free
	seal       uint64
	key        key     // while sealed
	tokens     []int32 // while sealed
}

// A seal stands for one content of a block with everything before it, and is
// never given twice. So equal parents and equal tokens mean equal prefixes,
// whatever the hashes do.
type key struct {
	parent uint64 // seal of the block before; 0 for none
	hash   uint64 // of the tokens
}

type table struct {
	blocks []int32
	sealed int    // leading blocks that have been sealed, or equal a sealed one
	parent uint64 // seal of the last of those
}

// New is a cache of so many blocks, each of so many positions.
func New(blocks, blockTokens int) *Cache {
	if blocks < 0 || blockTokens <= 0 {
		panic(fmt.Sprintf("kvcache: %d blocks of %d tokens", blocks, blockTokens))
	}
	c := &Cache{
		blockTokens: blockTokens,
		blocks:      make([]block, blocks+1),
		tables:      map[uint64]*table{},
		sealed:      map[key]int32{},
	}
	head := int32(blocks)
	c.blocks[head].prev, c.blocks[head].next = head, head
	for i := range head {
		c.link(i, head)
	}
	return c
}

// Total blocks.
func (c *Cache) Total() int { return len(c.blocks) - 1 }

// Used blocks: those in a sequence's table.
func (c *Cache) Used() int { return c.used }

// Free blocks: those that Grow can give, whether or not they hold an old prefix.
func (c *Cache) Free() int { return c.Total() - c.used }

// Need is the number of blocks that hold so many tokens.
func (c *Cache) Need(tokens int) int { return (tokens + c.blockTokens - 1) / c.blockTokens }

// Prefix says how often prefixes were found.
func (c *Cache) Prefix() Prefix { return c.prefix }

// Table is a sequence's blocks in the order of its positions. It stays as it is
// when the sequence grows or is closed.
func (c *Cache) Table(seq uint64) []int32 {
	t := c.tables[seq]
	if t == nil {
		return nil
	}
	return slices.Clip(t.blocks)
}

// Open starts a sequence's table and gives it blocks for all of its tokens, the
// longest cached prefix among them. It returns how many tokens need not be
// computed, always fewer than all, or ok=false, with nothing changed, if fewer
// than spare blocks would be left free. With reuse=false nothing is taken over.
func (c *Cache) Open(seq uint64, tokens []int32, reuse bool, spare int) (cached int, ok bool) {
	if c.tables[seq] != nil {
		panic(fmt.Sprintf("kvcache: sequence %d is open", seq))
	}
	t := &table{}
	revived := 0 // cached blocks that nobody uses now
	if reuse {
		for (len(t.blocks)+1)*c.blockTokens < len(tokens) {
			b, found := c.find(t.parent, tokens[len(t.blocks)*c.blockTokens:][:c.blockTokens])
			if !found {
				break
			}
			if c.blocks[b].refs == 0 {
				revived++
			}
			t.blocks = append(t.blocks, b)
			t.parent = c.blocks[b].seal
		}
		t.sealed = len(t.blocks)
	}
	fresh := c.Need(len(tokens)) - len(t.blocks)
	if revived+fresh+spare > c.Free() {
		return 0, false
	}
	for _, b := range t.blocks {
		c.take(b)
	}
	cached = len(t.blocks) * c.blockTokens
	for range fresh {
		t.blocks = append(t.blocks, c.oldest())
	}
	if reuse {
		c.prefix.Queries += int64(len(tokens))
		c.prefix.Hits += int64(cached)
	}
	c.tables[seq] = t
	return cached, true
}

// Grow makes the sequence's table cover so many tokens. It is false, and
// nothing has changed, if too few blocks are free.
func (c *Cache) Grow(seq uint64, tokens int) bool {
	t := c.tables[seq]
	more := c.Need(tokens) - len(t.blocks)
	if more > c.Free() {
		return false
	}
	for range more {
		t.blocks = append(t.blocks, c.oldest())
	}
	return true
}

// Written says that the keys and values of the sequence's leading tokens are in
// its blocks: the full ones among them can be shared from now on.
func (c *Cache) Written(seq uint64, tokens []int32) {
	t := c.tables[seq]
	for (t.sealed+1)*c.blockTokens <= len(tokens) {
		content := tokens[t.sealed*c.blockTokens:][:c.blockTokens]
		if twin, found := c.find(t.parent, content); found {
			t.parent = c.blocks[twin].seal // computed twice at the same time: one of them is enough to find
		} else {
			t.parent = c.seal(t.blocks[t.sealed], t.parent, content)
		}
		t.sealed++
	}
}

// Close ends a sequence: its blocks are free, unless another shares them.
func (c *Cache) Close(seq uint64) {
	t := c.tables[seq]
	if t == nil {
		return
	}
	delete(c.tables, seq)
	// From the end, so that the start of a prefix, without which the rest cannot
	// be found, is given away last.
	for _, i := range slices.Backward(t.blocks) {
		b := &c.blocks[i]
		if b.refs--; b.refs > 0 {
			continue
		}
		c.used--
		head := int32(c.Total())
		if b.seal == 0 {
			c.link(i, c.blocks[head].next) // holds nothing worth keeping: first to go
		} else {
			c.link(i, head)
		}
	}
}

// find looks for a sealed block by what precedes it and its tokens.
func (c *Cache) find(parent uint64, tokens []int32) (int32, bool) {
	i, ok := c.sealed[key{parent, hash(tokens)}]
	return i, ok && slices.Equal(c.blocks[i].tokens, tokens)
}

func (c *Cache) seal(i int32, parent uint64, tokens []int32) uint64 {
	c.seals++
	b := &c.blocks[i]
	b.seal, b.key, b.tokens = c.seals, key{parent, hash(tokens)}, slices.Clone(tokens)
	if other, ok := c.sealed[b.key]; ok {
		c.blocks[other].seal, c.blocks[other].tokens = 0, nil // an equal hash of other tokens: the newer stays
	}
	c.sealed[b.key] = i
	return b.seal
}

// take counts one more table that has block i.
func (c *Cache) take(i int32) {
	b := &c.blocks[i]
	if b.refs == 0 {
		c.unlink(i)
		c.used++
	}
	b.refs++
}

// oldest takes the free block that has been of no use for the longest time and
// forgets what it held.
func (c *Cache) oldest() int32 {
	i := c.blocks[c.Total()].next
	b := &c.blocks[i]
	if b.seal != 0 {
		delete(c.sealed, b.key)
		b.seal, b.tokens = 0, nil
	}
	c.take(i)
	return i
}

// link puts block i into the free list in front of block at.
func (c *Cache) link(i, at int32) {
	before := c.blocks[at].prev
	c.blocks[i].prev, c.blocks[i].next = before, at
	c.blocks[before].next, c.blocks[at].prev = i, i
}

func (c *Cache) unlink(i int32) {
	b := &c.blocks[i]
	c.blocks[b.prev].next, c.blocks[b.next].prev = b.next, b.prev
}

// hash is 64-bit FNV-1a over whole tokens. Equal hashes are checked against the tokens.
func hash(tokens []int32) uint64 {
	h := uint64(14695981039346656037)
	for _, t := range tokens {
		h = (h ^ uint64(uint32(t))) * 1099511628211
	}
	return h
}
