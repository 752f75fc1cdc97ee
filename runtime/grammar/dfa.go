package grammar

import (
	"slices"
)

// dfa is a finite automaton over characters, each of its states with a way to
// an end. What a node of it takes is bytes: each edge has a node for those of
// its characters.
type dfa struct {
	offsets []int32 // of each state's edges, and the number of all
	edges   []edge
	ends    []uint64 // bit: a state that accepts
	rest    id       // what follows an edge to toRest: any characters
	stuck   []bool   // states that a vocabulary's single bytes do not bring to an end; nil: none
}

type edge struct {
	char id
	to   int32
}

// toRest is where everything is accepted; it has no state, so that all automata share it.
const toRest = -1

func (d *dfa) accepts(state int32) bool { return d.ends[state/64]>>(state%64)&1 == 1 }

// draft is an automaton whose states may be useless. State 0 is the start.
type draft struct {
	accept []bool
	edges  [][]draftEdge
}

type draftEdge struct {
	over set
	to   int32
}

// add appends a state.
func (d *draft) add(accept bool) int32 {
	d.accept = append(d.accept, accept)
	d.edges = append(d.edges, nil)
	return int32(len(d.accept) - 1)
}

// live are the states from which an accepting one is reached.
func (d *draft) live() []bool {
	before := make([][]int32, len(d.accept))
	var queue []int32
	alive := make([]bool, len(d.accept))
	for s, edges := range d.edges {
		for _, e := range edges {
			before[e.to] = append(before[e.to], int32(s))
		}
		if d.accept[s] {
			alive[s] = true
			queue = append(queue, int32(s))
		}
	}
	for len(queue) > 0 {
		s := queue[len(queue)-1]
		queue = queue[:len(queue)-1]
		for _, p := range before[s] {
			if !alive[p] {
				alive[p] = true
				queue = append(queue, p)
			}
		}
	}
	return alive
}

// count is how many texts it accepts; unlimited if that is more.
func (d *draft) count() int64 {
	const open = -1
	alive := d.live()
	counts := map[int32]int64{}
	var rec func(s int32) int64
	rec = func(s int32) int64 {
		if n, ok := counts[s]; ok {
			if n == open { // a circle
				return unlimited
			}
			return n
		}
		counts[s] = open
		n := int64(0)
		if d.accept[s] {
			n = 1
		}
		for _, e := range d.edges[s] {
			if !alive[e.to] {
				continue
			}
			width := int64(0)
			for _, x := range e.over {
				width += int64(x.hi-x.lo) + 1
			}
			n = min(n+width*rec(e.to), unlimited)
		}
		counts[s] = n
		return n
	}
	if len(alive) == 0 || !alive[0] {
		return 0
	}
	return rec(0)
}

// texts are those that it accepts, which must be few.
func (d *draft) texts() []string {
	alive := d.live()
	var out []string
	var rec func(s int32, before []rune)
	rec = func(s int32, before []rune) {
		if d.accept[s] {
			out = append(out, string(before))
		}
		for _, e := range d.edges[s] {
			if alive[e.to] {
				for _, x := range e.over {
					for r := x.lo; r <= x.hi; r++ {
						rec(e.to, append(slices.Clip(before), r))
					}
				}
			}
		}
	}
	rec(0, nil)
	slices.Sort(out)
	return out
}

// automaton is a node for a draft whose characters are spelled so; none if it accepts nothing.
func (a *arena) automaton(d draft, how spelling) id {
	alive := d.live()
	if len(alive) == 0 || !alive[0] {
		return none
	}
	all := func(s int) bool { // everything from here on
		return d.accept[s] && len(d.edges[s]) == 1 && d.edges[s][0].to == int32(s) && slices.Equal(d.edges[s][0].over, everything)
	}
	if all(0) {
		return a.anything(how)
	}
	number := make([]int32, len(alive))
	states := int32(0)
	for s := range alive {
		switch {
		case !alive[s]:
			number[s] = -2
		case all(s):
			number[s] = toRest
		default:
			number[s] = states
			states++
		}
	}
	out := &dfa{ends: make([]uint64, states/64+1), rest: a.anything(how)}
	for s := range alive {
		n := number[s]
		if n < 0 {
			continue
		}
		if d.accept[s] {
			out.ends[n/64] |= 1 << (n % 64)
		}
		out.offsets = append(out.offsets, int32(len(out.edges)))
		for _, e := range d.edges[s] {
			if number[e.to] == -2 {
				continue
			}
			if char := a.spell(e.over, how); char != none {
				out.edges = append(out.edges, edge{char, number[e.to]})
			}
		}
	}
	out.offsets = append(out.offsets, int32(len(out.edges)))
	a.dfas = append(a.dfas, out)
	return a.state(int32(len(a.dfas)-1), 0)
}

// anything is any characters, none included.
func (a *arena) anything(how spelling) id {
	if how == raw {
		return a.rep(a.spell(everything, raw), 0, unlimited)
	}
	return a.rep(a.char, 0, unlimited)
}

// trie is any of the texts.
func (a *arena) trie(texts []string, how spelling) id {
	texts = slices.Clone(texts)
	slices.Sort(texts)
	texts = slices.Compact(texts)
	var (
		parents, counts = []int32{-1}, []int32{0}
		letters         = []rune{0}
		accept          = []bool{false}
		path            = []int32{0} // states of the last text's prefixes
		last            []rune
	)
	for _, t := range texts {
		word := []rune(t)
		common := 0
		for common < len(word) && common < len(last) && word[common] == last[common] {
			common++
		}
		path = path[:common+1]
		for _, r := range word[common:] {
			parent := path[len(path)-1]
			counts[parent]++
			path = append(path, int32(len(parents)))
			parents, letters = append(parents, parent), append(letters, r)
			accept, counts = append(accept, false), append(counts, 0)
		}
		accept[path[len(path)-1]] = true
		last = word
	}
	if len(texts) == 0 {
		return none
	}
	out := &dfa{ends: make([]uint64, len(parents)/64+1), rest: empty, offsets: make([]int32, len(parents)+1), edges: make([]edge, len(parents)-1)}
	at := int32(0)
	for s := range parents {
		out.offsets[s] = at
		at += counts[s]
		if accept[s] {
			out.ends[s/64] |= 1 << (s % 64)
		}
	}
	out.offsets[len(parents)] = at
	filled := make([]int32, len(parents))
	for s := 1; s < len(parents); s++ {
		p := parents[s]
		out.edges[out.offsets[p]+filled[p]] = edge{a.spell(set{{letters[s], letters[s]}}, how), int32(s)}
		filled[p]++
	}
	a.dfas = append(a.dfas, out)
	return a.state(int32(len(a.dfas)-1), 0)
}

// without is any text but these.
func without(texts []string) draft {
	var d draft
	d.add(true)
	rest := d.add(true)
	d.edges[rest] = []draftEdge{{everything, rest}}
	type step struct {
		from int32
		r    rune
	}
	next := map[step]int32{}
	known := make(map[int32][]span)
	for _, t := range texts {
		s := int32(0)
		for _, r := range t {
			to, ok := next[step{s, r}]
			if !ok {
				to = d.add(true)
				next[step{s, r}] = to
				d.edges[s] = append(d.edges[s], draftEdge{set{{r, r}}, to})
				known[s] = append(known[s], span{r, r})
			}
			s = to
		}
		d.accept[s] = false
	}
	for s := range d.edges {
		if int32(s) == rest {
			continue
		}
		d.edges[s] = append(d.edges[s], draftEdge{normal(known[int32(s)]).not(), rest})
	}
	return d
}

// determinize is the automaton of a node of an arena of characters, whose own
// And and Not it may have.
func determinize(a *arena, n id, states, work int) (draft, error) {
	var sets []set
	for _, i := range a.reachableSets(n) {
		sets = append(sets, a.sets[i])
	}
	p := newPartition(append(sets, everything))
	a.symbols, a.rows, a.slab = p, nil, nil
	a.live, a.sealed = true, true
	a.work, a.limit, a.spent = 0, work, false
	members := make([]set, len(p.reps))
	for i, from := range p.starts {
		to := rune(0x10ffff)
		if i+1 < len(p.starts) {
			to = p.starts[i+1] - 1
		}
		members[p.class[i]] = append(members[p.class[i]], span{from, to})
	}
	for i := range members {
		members[i] = members[i].and(everything)
	}
	var d draft
	number := map[id]int32{n: d.add(a.nodes[n].null)}
	queue := []id{n}
	unions := map[string]set{}
	for i := 0; i < len(queue); i++ {
		var targets []id
		by := map[id][]byte{} // target -> its classes
		for class := range p.reps {
			if len(members[class]) == 0 {
				continue
			}
			to := a.derive(queue[i], class)
			if a.spent {
				return draft{}, errComplex
			}
			if to == none {
				continue
			}
			if _, ok := by[to]; !ok {
				targets = append(targets, to)
			}
			by[to] = append(by[to], byte(class), byte(class>>8))
		}
		for _, to := range targets {
			s, ok := number[to]
			if !ok {
				if len(queue) >= states {
					return draft{}, errComplex
				}
				s = d.add(a.nodes[to].null)
				number[to] = s
				queue = append(queue, to)
			}
			over, ok := unions[string(by[to])]
			if !ok {
				var spans []span
				for j := 0; j < len(by[to]); j += 2 {
					spans = append(spans, members[int(by[to][j])|int(by[to][j+1])<<8]...)
				}
				over = normal(spans)
				unions[string(by[to])] = over
			}
			d.edges[i] = append(d.edges[i], draftEdge{over, s})
		}
	}
	return d, nil
}

// reachableSets are those of a node and what it consists of.
func (a *arena) reachableSets(n id) []int32 {
	seen := map[id]bool{}
	var out []int32
	stack := []id{n}
	for len(stack) > 0 {
		n := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		if seen[n] {
			continue
		}
		seen[n] = true
		if m := a.nodes[n]; m.kind == isSet {
			out = append(out, m.a)
		} else {
			a.parts(n, func(x id) { stack = append(stack, x) })
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// parts calls f with what a node consists of.
func (a *arena) parts(n id, f func(id)) {
	switch m := a.nodes[n]; m.kind {
	case isSeq, isAnd:
		f(m.a)
		f(m.b)
	case isOr:
		for _, x := range a.lists[m.a : m.a+m.b] {
			f(x)
		}
	case isRep, isNot:
		f(m.a)
	}
}

// explore is the automaton of a machine: step says where a letter leads to, end
// whether the text may end there.
func explore[S comparable](start S, letters string, step func(S, byte) (S, bool), end func(S) bool, states int) (draft, error) {
	var d draft
	number := map[S]int32{start: d.add(end(start))}
	queue := []S{start}
	for i := 0; i < len(queue); i++ {
		by := map[int32][]span{}
		var targets []int32
		for _, r := range letters {
			to, ok := step(queue[i], byte(r))
			if !ok {
				continue
			}
			s, known := number[to]
			if !known {
				if len(queue) >= states {
					return draft{}, errComplex
				}
				s = d.add(end(to))
				number[to] = s
				queue = append(queue, to)
			}
			if _, ok := by[s]; !ok {
				targets = append(targets, s)
			}
			by[s] = append(by[s], span{r, r})
		}
		for _, s := range targets {
			d.edges[i] = append(d.edges[i], draftEdge{normal(by[s]), s})
		}
	}
	return d, nil
}
