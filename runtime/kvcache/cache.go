// Package kvcache accounts for the KV blocks of a device's replicas: which extents of
// the device's slab a replica holds, which sequence has which blocks in them, and which
// blocks that nobody has still hold a prefix that a new sequence can take over. It
// counts; a backend holds the bytes. Start at Slab and Cache. It is pure: no clock, no
// randomness, not safe for concurrent use.
package kvcache

import (
	"fmt"
	"slices"
)

// Cache is the account of one replica's blocks, which are cut from extents of a Slab:
// block b is number b mod perExtent of extent b / perExtent. At all times a block is
// used exactly if a sequence's table has it, and a cache holds no extent in which
// nothing is used or remembered.
//
// A full block whose tokens have been computed is sealed: it is known by the
// block before it and its own tokens, and a later sequence with the same prefix
// shares it. Nobody writes to it any more. What is left of a common prefix, less than a
// block, each sequence computes into a block of its own, since a copy would save little. A sealed block that nobody uses stays findable until its turn, the
// least recently used of the device first, comes to be given away.
type Cache struct {
	slab        *Slab
	perExtent   int
	blockTokens int
	floor       int // extents

	extents map[int32]*extent // those it holds
	spent   []*extent         // for later use
	idle    extent            // head of the list of those in which nothing is used, least recently used first
	idling  int               // of extents, in that list
	blank   block             // head of the list of free blocks that hold nothing
	old     block             // ... that hold a prefix, least recently used first
	blanks  int
	olds    int
	used    int
	tables  map[uint64]*table // sequence -> its blocks
	retired []*table          // for later use
	sealed  map[key]*block    // content -> block
	seals   uint64            // seals given so far
	prefix  Prefix
}

// Prefix counts the tokens that sequences asked to take over and those they could.
type Prefix struct{ Queries, Hits int64 }

type extent struct {
	id         int32
	blocks     []block
	used       int
	sealed     int
	since      uint64  // when the last block in use became free
	prev, next *extent // in the list of idle ones, while it is in there
}

type block struct {
	id         int32
	extent     *extent
	refs       int    // tables that have it; 0 means free
	since      uint64 // when it became free
	prev, next *block // in a list of free ones, while it is free
	seal       uint64 // 0: it holds nothing to be found
	key        key    // while sealed
	tokens     []int32
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

// Open adds a cache whose blocks are so many in an extent, each of so many positions,
// and guarantees it floor extents. It is refused if the budget has not so many left.
func (s *Slab) Open(floor, perExtent, blockTokens int) (*Cache, error) {
	if floor < 0 || perExtent <= 0 || blockTokens <= 0 {
		return nil, fmt.Errorf("a floor of %d extents, each of %d blocks of %d tokens", floor, perExtent, blockTokens)
	}
	if floor > s.budget-s.floors {
		return nil, fmt.Errorf("a floor of %d extents: %d of %d are guaranteed to others", floor, s.floors, s.budget)
	}
	c := &Cache{
		slab: s, perExtent: perExtent, blockTokens: blockTokens, floor: floor,
		extents: map[int32]*extent{}, tables: map[uint64]*table{}, sealed: map[key]*block{},
	}
	c.idle.prev, c.idle.next = &c.idle, &c.idle
	c.blank.prev, c.blank.next = &c.blank, &c.blank
	c.old.prev, c.old.next = &c.old, &c.old
	s.floors += floor
	s.caches = append(s.caches, c)
	return c, nil
}

// Drop gives up everything: tables, prefixes, extents and the floor.
func (c *Cache) Drop() {
	for seq := range c.tables {
		c.Close(seq)
	}
	for c.idling > 0 {
		c.surrender(c.idle.next)
	}
	c.slab.floors -= c.floor
	c.slab.caches = slices.DeleteFunc(c.slab.caches, func(x *Cache) bool { return x == c })
}

// Floor in extents.
func (c *Cache) Floor() int { return c.floor }

// Held extents.
func (c *Cache) Held() int { return len(c.extents) }

// Total blocks: those of the floor, or of what is held if that is more.
func (c *Cache) Total() int { return max(c.floor, len(c.extents)) * c.perExtent }

// Used blocks: those in a sequence's table.
func (c *Cache) Used() int { return c.used }

// Need is the number of blocks that hold so many tokens.
func (c *Cache) Need(tokens int) int { return (tokens + c.blockTokens - 1) / c.blockTokens }

// Prefix says how often prefixes were found.
func (c *Cache) Prefix() Prefix { return c.prefix }

// Table is a sequence's blocks in the order of its positions. It stays as it is
// until the sequence is closed and another one is opened.
func (c *Cache) Table(seq uint64) []int32 {
	t := c.tables[seq]
	if t == nil {
		return nil
	}
	return slices.Clip(t.blocks)
}

// Answer to a sequence that wants blocks.
type Answer uint8

// What a sequence is told.
const (
	// Full: there are none, and nobody owes any; nothing has changed.
	Full Answer = iota
	// Owed: there would be enough if others gave back what is beyond their floors; nothing
	// has changed. Slab.Debtor says who, and asking again after that says more.
	Owed
	// Given: it has them.
	Given
)

// Blocks that a sequence has.
func (c *Cache) Blocks(seq uint64) int { return len(c.tables[seq].blocks) }

// Open starts a sequence's table and gives it blocks for all of its tokens, the
// longest cached prefix among them, unless fewer than spare blocks would be left to
// be had. It returns how many tokens need not be computed, always fewer than all.
// With reuse=false nothing is taken over.
func (c *Cache) Open(seq uint64, tokens []int32, reuse bool, spare int) (cached int, answer Answer) {
	if c.tables[seq] != nil {
		panic(fmt.Sprintf("kvcache: sequence %d is open", seq))
	}
	t := c.newTable()
	revived := 0 // blocks of the prefix that nobody uses now
	if reuse {
		for (len(t.blocks)+1)*c.blockTokens < len(tokens) {
			b := c.find(t.parent, tokens[len(t.blocks)*c.blockTokens:][:c.blockTokens])
			if b == nil {
				break
			}
			if b.refs == 0 {
				revived++
			}
			t.blocks = append(t.blocks, b.id)
			t.parent = b.seal
		}
		t.sealed = len(t.blocks)
	}
	fresh := c.Need(len(tokens)) - len(t.blocks)
	if answer := c.can(revived + fresh + spare); answer != Given {
		c.retired = append(c.retired, t)
		return 0, answer
	}
	for _, id := range t.blocks {
		c.take(c.block(id))
	}
	cached = len(t.blocks) * c.blockTokens
	c.grow(t, fresh)
	if reuse {
		c.prefix.Queries += int64(len(tokens))
		c.prefix.Hits += int64(cached)
	}
	c.tables[seq] = t
	return cached, Given
}

// Known is how many leading tokens a new sequence could take over now.
func (c *Cache) Known(tokens []int32) int {
	n, parent := 0, uint64(0)
	for n+c.blockTokens < len(tokens) {
		b := c.find(parent, tokens[n:][:c.blockTokens])
		if b == nil {
			break
		}
		n, parent = n+c.blockTokens, b.seal
	}
	return n
}

// Shareable is how many leading tokens of one sequence another can take over at most, if
// so many are equal.
func (c *Cache) Shareable(equal, tokens int) int {
	return min(equal, tokens-1) / c.blockTokens * c.blockTokens
}

// Grow makes the sequence's table cover so many tokens.
func (c *Cache) Grow(seq uint64, tokens int) Answer {
	t := c.tables[seq]
	more := c.Need(tokens) - len(t.blocks)
	if more <= 0 {
		return Given
	}
	if answer := c.can(more); answer != Given {
		return answer
	}
	c.grow(t, more)
	return Given
}

// can says whether so many blocks, none of them in use, are to be had.
func (c *Cache) can(blocks int) Answer {
	here := c.blanks + c.olds
	if blocks <= here {
		return Given
	}
	spare := c.slab.spare(c)
	if blocks <= here+spare*c.perExtent {
		return Given
	}
	if blocks <= here+max(spare, c.floor-len(c.extents))*c.perExtent {
		return Owed
	}
	return Full
}

func (c *Cache) grow(t *table, blocks int) {
	for range blocks {
		t.blocks = append(t.blocks, c.fresh().id)
	}
}

// Written says that the keys and values of the sequence's leading tokens are in
// its blocks: the full ones among them can be shared from now on.
func (c *Cache) Written(seq uint64, tokens []int32) {
	t := c.tables[seq]
	for (t.sealed+1)*c.blockTokens <= len(tokens) {
		content := tokens[t.sealed*c.blockTokens:][:c.blockTokens]
		if twin := c.find(t.parent, content); twin != nil {
			t.parent = twin.seal // computed twice at the same time: one of them is enough to find
		} else {
			t.parent = c.seal(c.block(t.blocks[t.sealed]), t.parent, content)
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
	for _, id := range slices.Backward(t.blocks) {
		c.release(c.block(id))
	}
	c.retired = append(c.retired, t)
}

// InTheWay are the sequences that have to be closed so that an extent of the cache becomes
// idle: of all extents the one whose users are the newest. all are the sequences that
// are open, oldest first; the result has the newest first.
func (c *Cache) InTheWay(all []uint64) []uint64 {
	oldest := map[int32]int{} // extent -> index of its oldest user
	for i, seq := range all {
		for _, b := range c.tables[seq].blocks {
			if e := b / int32(c.perExtent); oldest[e] == 0 {
				oldest[e] = i + 1
			}
		}
	}
	best := int32(-1)
	for e, i := range oldest {
		if best < 0 || i > oldest[best] || i == oldest[best] && e < best {
			best = e
		}
	}
	var users []uint64
	for _, seq := range slices.Backward(all) {
		if slices.ContainsFunc(c.tables[seq].blocks, func(b int32) bool { return b/int32(c.perExtent) == best }) {
			users = append(users, seq)
		}
	}
	return users
}

func (c *Cache) newTable() *table {
	if n := len(c.retired); n > 0 {
		t := c.retired[n-1]
		c.retired = c.retired[:n-1]
		*t = table{blocks: t.blocks[:0]}
		return t
	}
	return &table{}
}

func (c *Cache) block(id int32) *block {
	return &c.extents[id/int32(c.perExtent)].blocks[id%int32(c.perExtent)]
}

// inUse is how many extents have a block that a sequence has.
func (c *Cache) inUse() int { return len(c.extents) - c.idling }

// find looks for a sealed block by what precedes it and its tokens.
func (c *Cache) find(parent uint64, tokens []int32) *block {
	b := c.sealed[key{parent, hash(tokens)}]
	if b == nil || !slices.Equal(b.tokens, tokens) {
		return nil
	}
	return b
}

func (c *Cache) seal(b *block, parent uint64, tokens []int32) uint64 {
	k := key{parent, hash(tokens)}
	if other := c.sealed[k]; other != nil {
		c.forget(other) // an equal hash of other tokens: the newer stays
	}
	c.seals++
	b.seal, b.key, b.tokens = c.seals, k, append(b.tokens[:0], tokens...)
	b.extent.sealed++
	c.sealed[k] = b
	return b.seal
}

// forget makes a sealed block one that holds nothing.
func (c *Cache) forget(b *block) {
	c.unseal(b)
	if b.refs > 0 {
		return
	}
	b.unlink()
	c.olds--
	c.addBlank(b)
	if e := b.extent; e.used == 0 && e.sealed == 0 {
		c.surrender(e)
	}
}

func (c *Cache) unseal(b *block) {
	delete(c.sealed, b.key)
	b.seal, b.tokens = 0, b.tokens[:0]
	b.extent.sealed--
}

func (c *Cache) addBlank(b *block) {
	b.link(c.blank.next)
	c.blanks++
}

// take counts one more table that has a block.
func (c *Cache) take(b *block) {
	if b.refs == 0 {
		b.unlink()
		if b.seal == 0 {
			c.blanks--
		} else {
			c.olds--
		}
		c.used++
		if e := b.extent; e.used == 0 {
			c.wake(e)
		}
		b.extent.used++
	}
	b.refs++
}

// release counts one less.
func (c *Cache) release(b *block) {
	if b.refs--; b.refs > 0 {
		return
	}
	c.used--
	b.extent.used--
	c.slab.clock++
	b.since = c.slab.clock
	if b.seal == 0 {
		c.addBlank(b)
	} else {
		b.link(&c.old)
		c.olds++
	}
	e := b.extent
	switch {
	case e.used > 0:
	case e.sealed > 0:
		e.since = c.slab.clock
		e.link(&c.idle)
		c.idling++
	default:
		c.surrender(e)
	}
}

// wake takes an extent off the list of idle ones, if it is in there.
func (c *Cache) wake(e *extent) {
	if e.next != nil {
		e.unlink()
		c.idling--
	}
}

// fresh takes a block for a sequence and forgets what it held: one that holds nothing, or
// one of a free extent, or what has been of no use for the longest time, an old prefix
// here or all those of an extent elsewhere. can has said that there is one.
func (c *Cache) fresh() *block {
	if c.blanks == 0 {
		s := c.slab
		other := s.stalest(c)
		switch {
		case s.held < s.budget:
			c.obtain()
		case other != nil && (c.olds == 0 || other.idle.next.since < c.old.next.since):
			other.surrender(other.idle.next)
			c.obtain()
		}
	}
	b := c.blank.next
	if c.blanks == 0 {
		b = c.old.next
	}
	c.take(b)
	if b.seal != 0 {
		c.unseal(b)
	}
	return b
}

// obtain takes a free extent.
func (c *Cache) obtain() {
	s := c.slab
	id := s.free[len(s.free)-1]
	s.free = s.free[:len(s.free)-1]
	s.held++
	if !s.touched[id] {
		s.touched[id] = true
		s.dirty++
	}
	var e *extent
	if n := len(c.spent); n > 0 {
		e = c.spent[n-1]
		c.spent = c.spent[:n-1]
	} else {
		e = &extent{blocks: make([]block, c.perExtent)}
		tokens := make([]int32, c.perExtent*c.blockTokens)
		for i := range e.blocks {
			from := i * c.blockTokens
			e.blocks[i].extent, e.blocks[i].tokens = e, tokens[from:from:from+c.blockTokens]
		}
	}
	e.id = id
	for i := range slices.Backward(e.blocks) {
		e.blocks[i].id = id*int32(c.perExtent) + int32(i)
		c.addBlank(&e.blocks[i])
	}
	c.extents[id] = e
}

// surrender gives back an extent in which nothing is used.
func (c *Cache) surrender(e *extent) {
	c.wake(e)
	for i := range e.blocks {
		b := &e.blocks[i]
		b.unlink()
		if b.seal == 0 {
			c.blanks--
		} else {
			c.olds--
			c.unseal(b)
		}
	}
	delete(c.extents, e.id)
	c.spent = append(c.spent, e)
	c.slab.free = append(c.slab.free, e.id)
	c.slab.held--
}

// link puts a block into a list in front of at.
func (b *block) link(at *block) {
	b.prev, b.next = at.prev, at
	at.prev.next, at.prev = b, b
}

func (b *block) unlink() {
	b.prev.next, b.next.prev = b.next, b.prev
	b.prev, b.next = nil, nil
}

func (e *extent) link(at *extent) {
	e.prev, e.next = at.prev, at
	at.prev.next, at.prev = e, e
}

func (e *extent) unlink() {
	e.prev.next, e.next.prev = e.next, e.prev
	e.prev, e.next = nil, nil
}

// hash is 64-bit FNV-1a over whole tokens. Equal hashes are checked against the tokens.
func hash(tokens []int32) uint64 {
	h := uint64(14695981039346656037)
	for _, t := range tokens {
		h = (h ^ uint64(uint32(t))) * 1099511628211
	}
	return h
}
