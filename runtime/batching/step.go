package batching

import (
	"slices"

	"github.com/estiba/estiba/runtime/kvcache"
)

// step is what is left of a step's room, and the spans that have the rest.
type step struct {
	tokens, rows int
	spans        []Span
}

// next is one step of one replica. Whoever is admitted or preempted, all spans
// together stay within StepTokens and StepRows, and the sequence that has run the
// longest always gets on, so every sequence ends.
func (b *Batcher) next(r *replica) []Span {
	p := &b.step
	*p = step{tokens: r.StepTokens, rows: r.StepRows, spans: p.spans[:0]}
	for _, s := range r.running {
		s.taken = false
	}
	for i := 0; i < len(r.running); i++ {
		if s := r.running[i]; s.pending() == 1 && b.grow(s) {
			p.add(s, 1)
		}
	}
	b.admit(r)
	budget := r.pace.tokens()
	b.chunks(r, max(budget-len(p.spans), (budget+1)/2))
	return p.spans
}

// chunks gives prompts, and texts that are computed again, their part of a budget of
// tokens: half of it, and what the others leave, goes to the sequence that has run the longest.
func (b *Batcher) chunks(r *replica, budget int) {
	p := &b.step
	first := slices.IndexFunc(r.running, func(s *sequence) bool { return !s.taken })
	if first < 0 {
		return
	}
	longest := r.running[first]
	budget = min(budget, p.tokens)
	keep, rows := min(longest.pending(), (budget+1)/2), 1 // are for it
	if r.Whole {
		keep = longest.pending()
	}
	if r.Whole && longest.Rows == AllRows {
		rows = keep
	}
	longest.taken = true
	p.rows -= rows
	for left := budget - keep; left > 0; {
		s := r.least()
		if s == nil {
			break
		}
		n := p.add(s, left)
		left -= n
		budget -= n
	}
	p.rows += rows
	if r.Whole {
		budget = keep
	}
	p.add(longest, budget)
}

// least is the running sequence, not yet of this step, of the tenant that has had the
// least; among one's own the one that needs the least, which is done the soonest.
func (r *replica) least() *sequence {
	var least *sequence
	for _, s := range r.running {
		if s.taken {
			continue
		}
		if least == nil || s.tenant.served < least.tenant.served || s.tenant == least.tenant && s.pending() < least.pending() {
			least = s
		}
	}
	return least
}

// admit starts waiting sequences. Those of the tenant who has had the least are first; among
// one's own it goes in order, and nobody overtakes another for needing less room.
func (b *Batcher) admit(r *replica) {
	if len(r.waiting) == 0 || len(r.running) >= r.Sequences {
		return
	}
	for _, t := range b.tenants {
		t.backlog = 0
	}
	for _, s := range r.running {
		s.tenant.backlog += s.pending()
	}
	for len(r.running) < r.Sequences {
		s := r.first()
		if s == nil || !b.start(s) {
			return
		}
		s.tenant.backlog += s.pending()
	}
}

// first is the waiting sequence whose turn it is.
func (r *replica) first() *sequence {
	var first *sequence
	var had float64
	for _, s := range r.waiting {
		if first != nil && s.tenant == first.tenant {
			continue
		}
		if h := s.tenant.served + float64(s.tenant.backlog)*r.pace.each(); first == nil || h < had {
			if r.follows(s) {
				continue
			}
			first, had = s, h
		}
	}
	return first
}

// follows says whether a running sequence is about to compute more of the start of s
// than there is to be taken over now: then it need not be computed twice.
func (r *replica) follows(s *sequence) bool {
	if l := s.leader; l != nil {
		if l.running && l.computed < s.shared {
			return true
		}
		s.leader = nil
	}
	if !s.reuses() {
		return false
	}
	known := -1
	for _, l := range r.running {
		if l.pending() <= 1 {
			continue
		}
		shared := r.cache.Shareable(equal(l.tokens, s.tokens), len(s.tokens))
		if shared <= l.computed {
			continue
		}
		if known < 0 {
			known = r.cache.Known(s.tokens)
		}
		if shared > known {
			s.leader, s.shared = l, shared
			return true
		}
	}
	return false
}

// equal leading tokens.
func equal(a, b []int32) int {
	n := min(len(a), len(b))
	for i := range n {
		if a[i] != b[i] {
			return i
		}
	}
	return n
}

// start admits a waiting sequence if blocks for all of its tokens are to be had, and
// one more for each running sequence that may yet need one, so that it is not preempted at once.
func (b *Batcher) start(s *sequence) bool {
	r := s.replica
	cached, spare := 0, 0
	if r.cache != nil {
		for _, other := range r.running {
			if r.cache.Need(len(other.Prompt)+other.MaxTokens) > r.cache.Blocks(other.ID) {
				spare++
			}
		}
	}
	for r.cache != nil {
		n, answer := r.cache.Open(s.ID, s.tokens, s.reuses(), spare)
		if answer == kvcache.Full {
			return false
		}
		if answer == kvcache.Given {
			cached = n
			break
		}
		b.repay(r.slab.Debtor(r.cache))
	}
	if !s.started {
		s.started, s.cached = true, cached
	}
	s.computed, s.running, s.taken = cached, true, false
	at := slices.Index(r.waiting, s)
	r.waiting = slices.Delete(r.waiting, at, at+1)
	r.running = append(r.running, s)
	return true
}

// grow gives s the block for its next token, at the cost of what others borrowed, then of
// the newest running sequence. It is false if that is s itself.
func (b *Batcher) grow(s *sequence) bool {
	r := s.replica
	for r.cache != nil {
		switch r.cache.Grow(s.ID, len(s.tokens)) {
		case kvcache.Given:
			return true
		case kvcache.Owed:
			b.repay(r.slab.Debtor(r.cache))
		case kvcache.Full:
			r.preempt(r.running[len(r.running)-1])
			if !s.running {
				return false
			}
		}
	}
	return true
}

// repay makes a cache that borrowed use an extent less: sequences of its replica, as new as
// can be, give up their blocks.
func (b *Batcher) repay(debtor *kvcache.Cache) {
	r := b.replicas[slices.IndexFunc(b.replicas, func(r *replica) bool { return r.cache == debtor })]
	all := make([]uint64, len(r.running))
	for i, s := range r.running {
		all[i] = s.ID
	}
	for _, id := range debtor.InTheWay(all) {
		r.preempt(b.sequences[id])
	}
}

// preempt takes the blocks of a running sequence; it waits in front of all others.
func (r *replica) preempt(s *sequence) {
	r.cache.Close(s.ID)
	s.computed, s.running = 0, false
	at := slices.Index(r.running, s)
	r.running = slices.Delete(r.running, at, at+1)
	r.waiting = slices.Insert(r.waiting, 0, s)
	r.stats.Preempted++
}

// pending tokens have not been computed.
func (s *sequence) pending() int { return len(s.tokens) - s.computed }

// output tokens so far.
func (s *sequence) output() int { return len(s.tokens) - len(s.Prompt) }

// reuses: what others computed of its text is as good. Rows of a prompt can only be had
// by computing it.
func (s *sequence) reuses() bool { return s.replica.cache != nil && s.Rows != AllRows && !s.Trial }

// add gives s as many of its pending tokens as the step has room for, up to limit, and
// says how many.
func (p *step) add(s *sequence, limit int) int {
	s.taken = true
	r := s.replica
	n := min(s.pending(), p.tokens, limit)
	rows := NoRows
	switch {
	case s.Rows == AllRows && s.computed < s.rows: // computed again: these rows have been given
		n = min(n, s.rows-s.computed)
	case s.Rows == AllRows && s.computed < len(s.Prompt):
		n = min(n, len(s.Prompt)-s.computed, p.rows)
		rows = AllRows
	}
	last := n == s.pending() && (s.MaxTokens > 0 || s.Rows == LastRow)
	if last && rows == NoRows {
		rows = LastRow
		if p.rows <= 0 { // all rows are taken: everything but the last token
			n, last, rows = n-1, false, NoRows
		}
	}
	if n <= 0 || r.Whole && n < s.pending() {
		return 0
	}
	span := Span{
		Sequence: s.ID,
		Tokens:   slices.Clip(s.tokens[s.computed : s.computed+n]),
		Start:    s.computed,
		Rows:     rows,
		Next:     last && s.MaxTokens > 0,
	}
	if r.cache != nil {
		span.Blocks = r.cache.Table(s.ID)
	}
	p.tokens -= n
	switch rows {
	case LastRow:
		p.rows--
	case AllRows:
		p.rows -= n
	}
	s.tenant.served += float64(n) * r.pace.each()
	p.spans = append(p.spans, span)
	return n
}
