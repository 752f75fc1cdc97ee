package kvcache

import (
	"math/rand/v2"
	"slices"
	"testing"
)

// check compares the account with a count over all tables and the free list.
func check(t *testing.T, c *Cache) {
	t.Helper()
	refs := make([]int, c.Total())
	for seq, table := range c.tables {
		seen := map[int32]bool{}
		for _, b := range table.blocks {
			if seen[b] {
				t.Fatalf("sequence %d has block %d twice", seq, b)
			}
			seen[b] = true
			refs[b]++
		}
	}
	free := map[int32]bool{}
	head := int32(c.Total())
	for i := c.blocks[head].next; i != head; i = c.blocks[i].next {
		if free[i] {
			t.Fatalf("block %d is in the free list twice", i)
		}
		free[i] = true
	}
	used := 0
	for i, n := range refs {
		if c.blocks[i].refs != n {
			t.Fatalf("block %d counts %d references, tables have %d", i, c.blocks[i].refs, n)
		}
		if (n == 0) != free[int32(i)] {
			t.Fatalf("block %d: %d references, in the free list: %t", i, n, free[int32(i)])
		}
		if n > 0 {
			used++
		}
	}
	if c.Used() != used || c.Used()+c.Free() != c.Total() {
		t.Fatalf("used %d free %d total %d, counted %d used", c.Used(), c.Free(), c.Total(), used)
	}
	for k, i := range c.sealed {
		if c.blocks[i].key != k || c.blocks[i].seal == 0 {
			t.Fatalf("index names block %d for a content it does not hold", i)
		}
	}
}

// TestRandomSteps drives the cache as batching does and models the device: what
// a sequence reads through its table must be what its tokens are.
func TestRandomSteps(t *testing.T) {
	type position struct{ token, at int32 }
	for seed := range uint64(60) {
		r := rand.New(rand.NewPCG(seed, 1))
		blocks, size := 1+r.IntN(24), 1+r.IntN(5)
		c := New(blocks, size)
		device := make([][]position, blocks)
		for i := range device {
			device[i] = make([]position, size)
		}
		type sequence struct {
			id       uint64
			tokens   []int32
			computed int
		}
		var open []*sequence
		next := uint64(0)
		for range 1500 {
			switch what := r.IntN(10); {
			case what < 3: // a new one, likely with a prefix seen before
				s := &sequence{id: next, tokens: make([]int32, 1+r.IntN(blocks*size+3))}
				next++
				for i := range s.tokens {
					if r.IntN(12) == 0 {
						s.tokens[i] = 1
					}
				}
				before := c.Used()
				cached, ok := c.Open(s.id, s.tokens, r.IntN(4) > 0, r.IntN(3))
				if !ok {
					if c.Used() != before || c.Table(s.id) != nil {
						t.Fatal("a refused sequence changed the account")
					}
					break
				}
				if cached >= len(s.tokens) || cached%size != 0 {
					t.Fatalf("cached %d of %d tokens, blocks of %d", cached, len(s.tokens), size)
				}
				s.computed = cached
				open = append(open, s)
			case what < 8 && len(open) > 0: // some more of one
				s := open[r.IntN(len(open))]
				if s.computed == len(s.tokens) {
					s.tokens = append(s.tokens, int32(r.IntN(2)))
				}
				end := s.computed + 1 + r.IntN(len(s.tokens)-s.computed)
				if !c.Grow(s.id, end) {
					if c.Need(end)-len(c.Table(s.id)) <= c.Free() {
						t.Fatal("refused to grow though blocks are free")
					}
					break
				}
				table := c.Table(s.id)
				for p := s.computed; p < end; p++ {
					b := table[p/size]
					if c.blocks[b].refs > 1 {
						t.Fatalf("position %d of sequence %d is written into a shared block", p, s.id)
					}
					device[b][p%size] = position{s.tokens[p], int32(p)}
				}
				s.computed = end
				if r.IntN(8) > 0 { // else the step failed after it wrote
					c.Written(s.id, s.tokens[:end])
				}
			case len(open) > 0:
				i := r.IntN(len(open))
				c.Close(open[i].id)
				open = slices.Delete(open, i, i+1)
			}
			check(t, c)
			for _, s := range open {
				table := c.Table(s.id)
				for p := range s.computed {
					if got := device[table[p/size]][p%size]; got != (position{s.tokens[p], int32(p)}) {
						t.Fatalf("seed %d: sequence %d reads %v at position %d, want token %d", seed, s.id, got, p, s.tokens[p])
					}
				}
			}
		}
		for _, s := range open {
			c.Close(s.id)
		}
		check(t, c)
		if c.Used() != 0 {
			t.Fatalf("%d blocks leaked", c.Used())
		}
	}
}

func TestPrefix(t *testing.T) {
	c := New(6, 2)
	prompt := []int32{1, 2, 3, 4, 5}
	mustOpen := func(seq uint64, tokens []int32, want int) {
		t.Helper()
		if cached, ok := c.Open(seq, tokens, true, 0); !ok || cached != want {
			t.Fatalf("Open(%d) = %d, %t; want %d cached", seq, cached, ok, want)
		}
	}
	mustOpen(1, prompt, 0)
	c.Written(1, prompt)
	mustOpen(2, prompt, 4) // shares two blocks, has one of its own
	if c.Used() != 4 {
		t.Errorf("used %d, want 4", c.Used())
	}
	c.Close(1)
	c.Close(2)
	mustOpen(3, []int32{1, 2, 9}, 2) // free, yet still known
	mustOpen(4, []int32{3, 4, 9}, 0) // the same tokens after another prefix are another content
	mustOpen(5, []int32{1, 2}, 0)    // the last token is always computed
	mustOpen(6, []int32{1, 2}, 0)    // takes the last block, which held (3, 4)
	if _, ok := c.Open(7, []int32{1}, true, 0); ok {
		t.Error("opened without a free block")
	}
	for seq := range uint64(7) {
		c.Close(seq)
	}
	mustOpen(8, prompt, 2) // (3, 4) was given away, (1, 2) was not
	if got, want := c.Prefix(), (Prefix{Queries: 5 + 5 + 3 + 3 + 2 + 2 + 5, Hits: 4 + 2 + 2}); got != want {
		t.Errorf("Prefix() = %+v, want %+v", got, want)
	}
}

// TestEqualHashes shows that a hash decides nothing: the tokens do.
func TestEqualHashes(t *testing.T) {
	c := New(4, 1)
	c.Open(1, []int32{7, 8}, true, 0)
	c.Written(1, []int32{7, 8})
	b := c.Table(1)[0]
	c.blocks[b].tokens = []int32{9} // as if 9 hashed like 7
	if cached, _ := c.Open(2, []int32{7, 1}, true, 0); cached != 0 {
		t.Error("took over a block with an equal hash and other tokens")
	}
	c.Written(2, []int32{7, 1})
	check(t, c)
}
