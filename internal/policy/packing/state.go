package packing

import (
	"cmp"
	"slices"
)

// state is what workers have in common that are alike in all that a choice looks
// at. Place looks at each state once and takes its first worker: a fleet has fewer
// states than workers, most of all while it is empty. That it chooses what a look
// at every worker would is tested (slow.choose is the twin).
type state struct {
	workers  []*worker // in their order; never none
	free     Host
	rank     int // of free, by the mix
	occupied bool
	alone    bool
	avoid    bool
	widest   int64   // the largest room of a device, if those that sleep made way
	room     int64   // the largest room of a device for what is awake
	idle     int64   // of all devices together
	spots    []spot  // by first
	frag     []int64 // by host rank, with what is free now: bytes times unit; below 0: not known
	hash     uint64
	at       int // in pool.states
	round    int // in which
	out      int // so many workers are out of the question
}

// spot is devices of a worker that are alike.
type spot struct {
	account
	kind  *kind
	step  int // of kind, at idle
	load  int
	empty bool
	// degraded: it is to be avoided.
	degraded bool
	n        int
	first    int // of them, in worker.devices
}

func (d *device) spot() spot {
	return spot{account: d.account, kind: d.kind, step: d.step, load: d.load, empty: d.empty(), degraded: d.Degraded != ""}
}

func (s *spot) like(o *spot) bool {
	return s.account == o.account && s.kind == o.kind && s.load == o.load && s.empty == o.empty && s.degraded == o.degraded
}

func (s *state) like(o *state) bool {
	return s.free == o.free && s.occupied == o.occupied && s.alone == o.alone && s.avoid == o.avoid && slices.Equal(s.spots, o.spots)
}

// changed: what is free on a worker is not what it was.
func (f *Fleet) changed(w *worker) {
	p := f.pools[w.Pool]
	s := p.spare()
	s.describe(w, f.mix)
	for _, o := range p.byHash[s.hash] {
		if o.like(s) {
			p.unused = append(p.unused, s)
			s = o
			break
		}
	}
	if w.state == s {
		return
	}
	if w.state != nil {
		p.leave(w)
	}
	if len(s.workers) == 0 {
		s.at = len(p.states)
		p.states = append(p.states, s)
		p.byHash[s.hash] = append(p.byHash[s.hash], s)
	}
	at, _ := slices.BinarySearchFunc(s.workers, w, byOrder)
	s.workers = slices.Insert(s.workers, at, w)
	w.state = s
}

func byOrder(a, b *worker) int { return cmp.Compare(a.order, b.order) }

// leave takes a worker out of its state, and the state away with the last one.
func (p *pool) leave(w *worker) {
	s := w.state
	at, _ := slices.BinarySearchFunc(s.workers, w, byOrder)
	s.workers = slices.Delete(s.workers, at, at+1)
	if len(s.workers) > 0 {
		return
	}
	last := p.states[len(p.states)-1]
	p.states[s.at], last.at = last, s.at
	p.states = p.states[:len(p.states)-1]
	if same := slices.DeleteFunc(p.byHash[s.hash], func(o *state) bool { return o == s }); len(same) > 0 {
		p.byHash[s.hash] = same
	} else {
		delete(p.byHash, s.hash)
	}
	p.unused = append(p.unused, s)
}

// spare is a state to be described, with no workers.
func (p *pool) spare() *state {
	if n := len(p.unused); n > 0 {
		s := p.unused[n-1]
		p.unused = p.unused[:n-1]
		return s
	}
	return &state{}
}

// describe sets all that follows from a worker.
func (s *state) describe(w *worker, m *mix) {
	s.free, s.occupied, s.alone, s.avoid = w.free, w.homes > 0, w.alone > 0, w.Avoid
	s.rank, s.widest, s.room, s.idle, s.round, s.out = m.rank(w.free), 0, 0, 0, 0, 0
	s.spots = s.spots[:0]
	for i, d := range w.devices {
		s.widest, s.room = max(s.widest, d.capacity-d.awake), max(s.room, d.room())
		s.idle += d.idle()
		e := d.spot()
		if j := slices.IndexFunc(s.spots, func(o spot) bool { return e.like(&o) }); j >= 0 {
			s.spots[j].n++
			continue
		}
		e.n, e.first = 1, i
		s.spots = append(s.spots, e)
	}
	s.frag = s.frag[:0]
	for range m.ranks() {
		s.frag = append(s.frag, -1)
	}
	s.hash = uint64(s.free.CPU)*prime + uint64(s.free.Memory)
	for i := range s.spots {
		e := &s.spots[i]
		for _, n := range [...]int64{e.capacity, e.awake, e.asleep, e.share, int64(e.load), int64(e.n)} {
			s.hash = (s.hash ^ uint64(n)) * prime
			s.hash ^= s.hash >> 29
		}
	}
}

const prime = 0x9e3779b97f4a7c15

// first is the first worker that is not out of the question.
func (s *state) first(round int) *worker {
	for _, w := range s.workers {
		if w.out != round {
			return w
		}
	}
	return nil
}

// drawn is the one with the lowest number.
func (s *state) drawn(round int, seed uint64) (first *worker) {
	for _, w := range s.workers {
		if w.out != round && (first == nil || w.drawn(seed) < first.drawn(seed)) {
			first = w
		}
	}
	return first
}

// drawn is a worker's number by Want.Draw: the finalizer of splitmix64.
func (w *worker) drawn(seed uint64) uint64 {
	n := seed + uint64(w.order+1)*prime
	n = (n ^ n>>30) * 0xbf58476d1ce4e5b9
	n = (n ^ n>>27) * 0x94d049bb133111eb
	return n ^ n>>31
}
