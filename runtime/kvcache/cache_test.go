package kvcache

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
)

// alone is a cache with a slab of its own, of one extent.
func alone(t testing.TB, blocks, blockTokens int) *Cache {
	t.Helper()
	c, err := NewSlab(1).Open(1, blocks, blockTokens)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// check compares the accounts with a count over all tables and lists.
func check(t *testing.T, s *Slab) {
	t.Helper()
	holder := map[int32]string{}
	put := func(e int32, who string) {
		if other, ok := holder[e]; ok {
			t.Fatalf("extent %d is %s and %s", e, other, who)
		}
		holder[e] = who
	}
	dirty, floors := 0, 0
	for i, e := range s.free {
		put(e, "free")
		if s.touched[e] {
			dirty++
		} else if i > 0 && s.touched[s.free[i-1]] {
			t.Fatalf("extent %d was never touched and is given before %d", e, s.free[i-1])
		}
	}
	for n, c := range s.caches {
		floors += c.floor
		for id, e := range c.extents {
			if e.id != id || !s.touched[id] {
				t.Fatalf("extent %d: %+v", id, e)
			}
			put(id, fmt.Sprint("of cache ", n))
		}
		dirty += len(c.extents)
		checkCache(t, c)
	}
	if len(holder) != s.extents || s.held+len(s.free) != s.extents || s.held > s.budget || s.dirty != dirty || s.floors != floors {
		t.Fatalf("%d extents known of %d; held %d, free %d, budget %d, touched %d, counted %d, floors %d", len(holder), s.extents, s.held, len(s.free), s.budget, s.dirty, dirty, s.floors)
	}
}

func checkCache(t *testing.T, c *Cache) {
	t.Helper()
	refs := map[int32]int{}
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
	listed := map[*block]string{}
	walk := func(name string, head *block) (n int) {
		for b := head.next; b != head; b = b.next {
			if other, ok := listed[b]; ok {
				t.Fatalf("block %d is in %s and %s", b.id, other, name)
			}
			listed[b] = name
			n++
		}
		return n
	}
	if blanks, olds := walk("blank", &c.blank), walk("old", &c.old); blanks != c.blanks || olds != c.olds {
		t.Fatalf("%d blank, %d old blocks; counted %d, %d", blanks, olds, c.blanks, c.olds)
	}
	idling := 0
	for e := c.idle.next; e != &c.idle; e = e.next {
		idling++
		if e.used > 0 || e.sealed == 0 || c.extents[e.id] != e {
			t.Fatalf("idle extent %+v", e)
		}
	}
	used, idle := 0, 0
	for _, e := range c.extents {
		inUse, sealed := 0, 0
		for i := range e.blocks {
			b := &e.blocks[i]
			want := "blank"
			switch {
			case refs[b.id] > 0:
				want = ""
				inUse++
			case b.seal != 0:
				want = "old"
			}
			if b.seal != 0 {
				sealed++
				if c.sealed[b.key] != b {
					t.Fatalf("block %d is sealed and cannot be found", b.id)
				}
			}
			if b.refs != refs[b.id] || listed[b] != want {
				t.Fatalf("block %d: %d references, tables have %d; in list %q, want %q", b.id, b.refs, refs[b.id], listed[b], want)
			}
		}
		if e.used != inUse || e.sealed != sealed || inUse+sealed == 0 {
			t.Fatalf("extent %d: %d used, %d sealed; counted %d, %d", e.id, e.used, e.sealed, inUse, sealed)
		}
		used += inUse
		if inUse == 0 {
			idle++
		}
	}
	if c.used != used || c.idling != idling || idle != idling || len(listed)+used != len(c.extents)*c.perExtent {
		t.Fatalf("%d used, counted %d; %d idle extents, counted %d; %d blocks listed", c.used, used, c.idling, idle, len(listed))
	}
	for k, b := range c.sealed {
		if b.key != k || b.seal == 0 || c.extents[b.extent.id] != b.extent {
			t.Fatalf("the index names block %d for a content it does not hold", b.id)
		}
	}
}

// cell is what a position of the device's memory holds in the test.
type cell struct{ cache, token, at int32 }

// twin is the slow, obvious account: memory as cells, and who reads what.
type twin struct {
	t      *testing.T
	seed   uint64
	slab   *Slab
	memory [][]cell
	users  []map[int]int // extent -> cache -> blocks of it that sequences use, each time one does
	caches []*player
}

// player drives one cache as batching does.
type player struct {
	*Cache
	number int
	open   []*sequence // oldest first
}

type sequence struct {
	id       uint64
	tokens   []int32
	computed int
	blocks   int // of its table that the twin has counted
}

// shared is how many blocks of a prefix that others use now a new sequence would take over.
func (p *player) shared(tokens []int32) (n int) {
	parent := uint64(0)
	for at := 0; at+p.blockTokens < len(tokens); at += p.blockTokens {
		b := p.find(parent, tokens[at:][:p.blockTokens])
		if b == nil {
			break
		}
		if parent = b.seal; b.refs > 0 {
			n++
		}
	}
	return n
}

func (w *twin) fatalf(format string, args ...any) {
	w.t.Helper()
	w.t.Fatalf("seed %d: %s", w.seed, fmt.Sprintf(format, args...))
}

// count notes new blocks of a sequence's table: nobody else may have any in their extents.
func (w *twin) count(p *player, s *sequence, by int) {
	w.t.Helper()
	table := p.Table(s.id)
	from, to := s.blocks, len(table)
	if by < 0 {
		from, to = 0, s.blocks
	}
	for _, b := range table[from:to] {
		users := w.users[int(b)/p.perExtent]
		if users[p.number] += by; users[p.number] == 0 {
			delete(users, p.number)
		}
		if len(users) > 1 {
			w.fatalf("extent %d is used by %v", int(b)/p.perExtent, users)
		}
	}
	s.blocks = to
}

func (w *twin) cell(p *player, table []int32, at int) *cell {
	b := int(table[at/p.blockTokens])
	return &w.memory[b/p.perExtent][b%p.perExtent*p.blockTokens+at%p.blockTokens]
}

// close ends the i-th sequence.
func (w *twin) close(p *player, i int) {
	w.count(p, p.open[i], -1)
	p.Close(p.open[i].id)
	p.open = slices.Delete(p.open, i, i+1)
}

// preempt ends sequences of a cache that owes something, so that it uses an extent less.
func (w *twin) preempt(debtor *Cache) {
	w.t.Helper()
	at := slices.IndexFunc(w.caches, func(p *player) bool { return p.Cache == debtor })
	if at < 0 {
		w.fatalf("nobody owes anything")
	}
	p := w.caches[at]
	before := p.inUse()
	if before <= p.floor {
		w.fatalf("cache %d is to preempt: it uses %d extents, its floor is %d", p.number, before, p.floor)
	}
	var all []uint64
	for _, s := range p.open {
		all = append(all, s.id)
	}
	for _, id := range p.InTheWay(all) {
		w.close(p, slices.IndexFunc(p.open, func(s *sequence) bool { return s.id == id }))
	}
	if p.inUse() >= before {
		w.fatalf("cache %d uses %d extents, before others preempted %d", p.number, p.inUse(), before)
	}
}

// ask repeats a wish until it is granted or refused, and checks that the floor is kept.
func (w *twin) ask(p *player, blocks int, wish func() Answer) bool {
	w.t.Helper()
	used := p.Used()
	for {
		switch wish() {
		case Given:
			return true
		case Owed:
			if p.Used()+blocks > max(p.floor, p.Held())*p.perExtent {
				w.fatalf("others are to give up more than the floor of cache %d", p.number)
			}
			w.preempt(w.slab.Debtor(p.Cache))
		case Full:
			if used+blocks <= p.floor*p.perExtent {
				w.fatalf("cache %d uses %d blocks and is refused %d; its floor has %d", p.number, used, blocks, p.floor*p.perExtent)
			}
			return false
		}
	}
}

// reads compares what a sequence finds through its table with its tokens.
func (w *twin) reads(p *player, s *sequence) {
	w.t.Helper()
	table := p.Table(s.id)
	for at := range s.computed {
		if got, want := *w.cell(p, table, at), (cell{int32(p.number), s.tokens[at], int32(at)}); got != want {
			w.fatalf("sequence %d of cache %d reads %v at position %d, want %v", s.id, p.number, got, at, want)
		}
	}
}

func newTwin(t *testing.T, seed uint64, r *rand.Rand) *twin {
	const unit = 24 // positions in an extent, at most
	extents := 1 + r.IntN(12)
	w := &twin{t: t, seed: seed, slab: NewSlab(extents)}
	for range extents {
		w.memory = append(w.memory, make([]cell, unit))
		w.users = append(w.users, map[int]int{})
	}
	w.open(r)
	return w
}

// open adds a cache with a cut of its own.
func (w *twin) open(r *rand.Rand) {
	per := 1 + r.IntN(6)
	c, err := w.slab.Open(r.IntN(w.slab.Budget()-w.slab.Floors()+1), per, 1+r.IntN(24/per))
	if err != nil {
		w.fatalf("%v", err)
	}
	number := 0
	for _, p := range w.caches {
		number = max(number, p.number+1)
	}
	w.caches = append(w.caches, &player{Cache: c, number: number})
}

// step does something at random.
func (w *twin) step(r *rand.Rand, id uint64) {
	switch {
	case r.IntN(100) == 0: // memory for weights is taken or given back
		budget := w.slab.Floors() + r.IntN(w.slab.extents-w.slab.Floors()+1)
		if err := w.slab.Resize(budget); err != nil {
			w.fatalf("%v", err)
		}
		for {
			debtor := w.slab.Reclaim()
			if debtor == nil {
				break
			}
			w.preempt(debtor)
		}
		if !w.slab.Settled() || r.IntN(4) == 0 {
			for _, e := range w.slab.Discard() {
				if len(w.users[e]) > 0 {
					w.fatalf("extent %d is discarded, %v use it", e, w.users[e])
				}
				clear(w.memory[e])
			}
		}
		if !w.slab.Settled() || w.slab.Held() > budget {
			w.fatalf("%d extents held, budget %d", w.slab.Held(), budget)
		}
		return
	case r.IntN(400) == 0: // a model comes or goes
		if i := r.IntN(len(w.caches) + 1); i < len(w.caches) && len(w.caches) > 1 {
			p := w.caches[i]
			for len(p.open) > 0 {
				w.close(p, 0)
			}
			p.Drop()
			if len(p.extents)+p.used+p.blanks+p.olds > 0 {
				w.fatalf("a dropped cache keeps %d extents", len(p.extents))
			}
			w.caches = slices.Delete(w.caches, i, i+1)
		} else if len(w.caches) < 4 {
			w.open(r)
		}
		return
	}
	p := w.caches[r.IntN(len(w.caches))]
	room := p.Total() * p.blockTokens
	switch what := r.IntN(10); {
	case what < 3 && room > 0: // a new one, likely with a prefix seen before
		s := &sequence{id: id, tokens: make([]int32, 1+r.IntN(min(room, 40)+3))}
		for i := range s.tokens {
			if r.IntN(12) == 0 {
				s.tokens[i] = 1
			}
		}
		reuse, spare := r.IntN(4) > 0, r.IntN(3)
		known, cached := p.Known(s.tokens), 0
		more := p.Need(len(s.tokens)) + spare
		if reuse {
			more -= p.shared(s.tokens)
		}
		granted := w.ask(p, more, func() (answer Answer) {
			cached, answer = p.Cache.Open(s.id, s.tokens, reuse, spare)
			return answer
		})
		if !granted {
			if p.Table(s.id) != nil {
				w.fatalf("a refused sequence has a table")
			}
			return
		}
		// What it could take over is there still, unless others had to preempt for it; then there may be more.
		if cached >= len(s.tokens) || cached%p.blockTokens != 0 || !reuse && cached > 0 || reuse && cached < known {
			w.fatalf("cached %d of %d tokens, %d known, blocks of %d", cached, len(s.tokens), known, p.blockTokens)
		}
		s.computed = cached
		p.open = append(p.open, s)
		w.count(p, s, 1)
		w.reads(p, s)
	case what < 8 && len(p.open) > 0: // some more of one
		s := p.open[r.IntN(len(p.open))]
		if s.computed == len(s.tokens) {
			s.tokens = append(s.tokens, int32(r.IntN(2)))
		}
		end := s.computed + 1 + r.IntN(len(s.tokens)-s.computed)
		more := max(p.Need(end)-len(p.Table(s.id)), 0)
		if !w.ask(p, more, func() Answer { return p.Grow(s.id, end) }) {
			return
		}
		w.count(p, s, 1)
		table := p.Table(s.id)
		for at := s.computed; at < end; at++ {
			if p.block(table[at/p.blockTokens]).refs > 1 {
				w.fatalf("position %d of sequence %d is written into a shared block", at, s.id)
			}
			*w.cell(p, table, at) = cell{int32(p.number), s.tokens[at], int32(at)}
		}
		s.computed = end
		if r.IntN(8) > 0 { // else the step failed after it wrote
			p.Written(s.id, s.tokens[:end])
		}
		w.reads(p, s)
		w.reads(p, p.open[r.IntN(len(p.open))])
	case len(p.open) > 0:
		w.close(p, r.IntN(len(p.open)))
	}
}

// TestMillionSteps: several caches lend each other a slab's extents, in whatever order
// sequences, models and the budget come and go. No sequence ever reads what is not its
// own, none writes what another reads, floors are kept, nothing is left behind.
func TestMillionSteps(t *testing.T) {
	const seeds, steps = 100, 10_000
	for seed := range uint64(seeds) {
		million(t, seed, steps)
	}
}

func FuzzSteps(f *testing.F) {
	f.Add(uint64(1 << 40))
	f.Fuzz(func(t *testing.T, seed uint64) { million(t, seed, 3000) })
}

func million(t *testing.T, seed uint64, steps int) {
	r := rand.New(rand.NewPCG(seed, 1))
	w := newTwin(t, seed, r)
	for i := range steps {
		w.step(r, uint64(i))
		if i%500 == 0 || i < 200 {
			check(t, w.slab)
		}
	}
	for _, p := range w.caches {
		for len(p.open) > 0 {
			w.close(p, 0)
		}
	}
	check(t, w.slab)
	for _, p := range w.caches {
		if p.Used() != 0 {
			w.fatalf("%d blocks leaked", p.Used())
		}
		p.Drop()
	}
	check(t, w.slab)
	if w.slab.Held() != 0 || w.slab.Floors() != 0 {
		w.fatalf("%d extents leaked", w.slab.Held())
	}
}

func TestPrefix(t *testing.T) {
	c := alone(t, 6, 2)
	prompt := []int32{1, 2, 3, 4, 5}
	mustOpen := func(seq uint64, tokens []int32, want int) {
		t.Helper()
		if cached, answer := c.Open(seq, tokens, true, 0); answer != Given || cached != want {
			t.Fatalf("Open(%d) = %d, %d; want %d cached", seq, cached, answer, want)
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
	if _, answer := c.Open(7, []int32{1}, true, 0); answer != Full {
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

// TestLending: what one cache does not use another has, old prefixes of no use first, and
// gives back.
func TestLending(t *testing.T) {
	s := NewSlab(6)
	open := func(floor, per int) *Cache {
		t.Helper()
		c, err := s.Open(floor, per, 1)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	a, b := open(2, 2), open(3, 1)
	if _, err := s.Open(2, 1, 1); err == nil {
		t.Error("floors of 7 extents in a slab of 6")
	}
	tokens := []int32{1, 2, 3, 4, 5, 6, 7, 8, 9, 10}
	ask := func(c *Cache, seq uint64, n, spare int, want Answer) {
		t.Helper()
		if _, got := c.Open(seq, tokens[:n], true, spare); got != want {
			t.Fatalf("sequence %d: answer %d, want %d; %d and %d extents held", seq, got, want, a.Held(), b.Held())
		}
		check(t, s)
	}
	ask(a, 1, 4, 0, Given) // its floor
	ask(a, 2, 8, 1, Full)  // one more than there is
	ask(a, 2, 8, 0, Given) // all that is free, the floor of b too
	ask(b, 3, 4, 0, Full)  // more than its floor
	ask(b, 3, 3, 0, Owed)
	if s.Debtor(b) != a || s.Debtor(a) != nil {
		t.Error("a owes b")
	}
	a.Written(2, tokens[:8])
	a.Close(2) // four extents of old prefixes
	ask(b, 3, 3, 0, Given)
	if a.Held() != 3 || b.Held() != 3 || a.Known(tokens) == 0 {
		t.Errorf("%d and %d extents; a knows %d", a.Held(), b.Held(), a.Known(tokens))
	}
	// An old prefix is in nobody's way, not even beyond the others' floors.
	ask(b, 4, 1, 0, Given)
	if a.Held() != 2 || b.Held() != 4 {
		t.Errorf("%d and %d extents", a.Held(), b.Held())
	}
	ask(b, 5, 1, 0, Full)
	// The budget shrinks: whoever is beyond its floor preempts.
	if err := s.Resize(4); err == nil {
		t.Error("a budget below the floors")
	}
	if err := s.Resize(5); err != nil || s.Settled() {
		t.Errorf("%v; settled: %t", err, s.Settled())
	}
	if s.Reclaim() != b {
		t.Error("b is to preempt")
	}
	b.Close(4)
	if s.Reclaim() != nil || s.Held() != 5 || s.Settled() {
		t.Errorf("%d extents held", s.Held())
	}
	if got := s.Discard(); len(got) != 1 || !s.Settled() {
		t.Errorf("discarded %v", got)
	}
	check(t, s)
}

// TestInTheWay: the oldest sequences keep their blocks as long as they can.
func TestInTheWay(t *testing.T) {
	c, err := NewSlab(4).Open(0, 2, 1)
	if err != nil {
		t.Fatal(err)
	}
	for seq, n := range []int{1, 1, 1, 2, 1} { // extents: 0 1, 2 3, 3 4
		if _, answer := c.Open(uint64(seq), make([]int32, n), false, 0); answer != Given {
			t.Fatal(answer)
		}
	}
	for _, want := range [][]uint64{{4, 3}, {2}, {1, 0}} {
		var all []uint64
		for seq := range uint64(5) {
			if c.Table(seq) != nil {
				all = append(all, seq)
			}
		}
		got := c.InTheWay(all)
		if !slices.Equal(got, want) {
			t.Errorf("of %v: %v, want %v", all, got, want)
		}
		for _, seq := range got {
			c.Close(seq)
		}
	}
}

// TestEqualHashes shows that a hash decides nothing: the tokens do.
func TestEqualHashes(t *testing.T) {
	c := alone(t, 4, 1)
	c.Open(1, []int32{7, 8}, true, 0)
	c.Written(1, []int32{7, 8})
	c.block(c.Table(1)[0]).tokens[0] = 9 // as if 9 hashed like 7
	if cached, _ := c.Open(2, []int32{7, 1}, true, 0); cached != 0 {
		t.Error("took over a block with an equal hash and other tokens")
	}
	c.Written(2, []int32{7, 1})
	check(t, c.slab)
}
