package grammar

import (
	"crypto/sha256"
	"fmt"
	"slices"
	"sync"
)

// ErrTooComplex says that a text led to a state that would take too long to
// compute. It ends the text. It is an *Error, as what compiling finds: the grammar is at fault.
var ErrTooComplex error = &Error{"grammar", "it is too ambiguous where the text is now: its state would take too long to compute"}

const (
	// maxWork bounds what one call computes, in steps of some ten nanoseconds.
	maxWork = 1_500_000
	// maxStack is how deep, in nodes, a grammar's rules may nest beyond its own
	// depth before each choice takes the shortest way out: some hundred levels of JSON.
	maxStack = 600
	// maxGrown is how many nodes an automaton may add before a fresh one takes its
	// place, of some 70 bytes; one call may take it to twice that.
	maxGrown = 100_000
	// maxHeads is how many bytes of heads and profiles it may remember likewise.
	maxHeads = 32 << 20
	// maxMasks are remembered, 19 KB each with 150,000 tokens.
	maxMasks = 256
	// fewTokens of a head are listed, more are a mask.
	fewTokens = 1024
)

// automaton is what the matchers of one grammar and one vocabulary share.
type automaton struct {
	key        [sha256.Size]byte
	grammar    *Grammar
	vocabulary *Vocabulary

	mu  sync.Mutex
	now *machine
}

// machine is the states met so far, and the masks of them. It only grows; when
// it is too large, a fresh one takes its place, and matchers move to that.
type machine struct {
	*arena
	v        *Vocabulary
	start    id
	class    [256]uint8      // byte -> class of symbols
	letters  [][]byte        // class -> its bytes
	depth    int32           // maxStack beyond the grammar's own
	full     int             // nodes at which a fresh one takes its place
	held     int             // bytes of heads and profiles
	heads    [2]map[id]*head // strict, see compute, and not
	profiles map[id]*profile
	clipped  map[id]id
	masks    map[id][]uint64
	starts   map[id][]int32 // see begins
	stack    []id           // of a walk
	firsts   []int          // classes
}

// head is what the top of a stack alone says of tokens.
type head struct {
	tokens []int32  // that it takes to their end, or
	bits   []uint64 // the same as a mask
	exits  []int32  // nodes with children at whose text it may be over
	many   []uint64 // the same as a mask over nodes, if there are many
}

// profile is the same for the repetition of something prefix-free, such as a
// character, whatever its counts.
type profile struct {
	usable bool
	tokens []counted // that some count allows
	exits  []counted // nodes with children, where so many are complete
	most   int32     // largest count of a token
	full   []uint64  // all tokens
	done   []uint16  // node -> how many are complete here, or noExit; if there are many exits

	mu     sync.Mutex
	levels map[int32][]uint64 // most -> tokens
}

// counted is a token or a node, and how many repetitions it takes, the last perhaps in part.
type counted struct{ at, count int32 }

const noExit = 0xffff

// Matcher follows one text, token by token. It is for one goroutine.
type Matcher struct {
	shared *automaton
	on     *machine
	state  id
	at     spot
	over   bool // an end token was accepted
	err    error

	text []byte   // of keys, while their tokens are looked at
	own  []uint64 // a mask without some tokens
}

// NewMatcher is at the beginning of a text of g.
func NewMatcher(g *Grammar, v *Vocabulary) *Matcher {
	a := v.automaton(g)
	a.mu.Lock()
	defer a.mu.Unlock()
	m := a.machine()
	return &Matcher{shared: a, on: m, state: m.start}
}

// Mask says which tokens may come next: bit id%64 of word id/64. End tokens are
// among them only where the text may end. It is valid, and must not be changed,
// until Accept. No bit is set where no token of the vocabulary fits, or after
// an error, which Err tells.
func (m *Matcher) Mask() []uint64 {
	m.shared.mu.Lock()
	defer m.shared.mu.Unlock()
	if m.over || m.err != nil {
		return make([]uint64, (m.on.v.size+63)/64)
	}
	mask := m.on.mask(m.state)
	if m.on.repeats && !m.on.spent {
		mask = m.distinct(mask)
	}
	if m.on.spent {
		m.err = ErrTooComplex
		return make([]uint64, (m.on.v.size+63)/64)
	}
	return mask
}

// Err is why Mask is empty, if the grammar is too ambiguous.
func (m *Matcher) Err() error { return m.err }

// Ended says that the text is complete and nothing but an end may follow.
func (m *Matcher) Ended() bool { return m.over || m.err == nil && m.state == empty }

// MayEnd says that the text is complete as it is, though it may go on.
func (m *Matcher) MayEnd() bool {
	m.shared.mu.Lock()
	defer m.shared.mu.Unlock()
	return m.over || m.err == nil && m.on.nodes[m.state].null
}

// Accept appends a token. A token that may not come is an error, and changes nothing.
func (m *Matcher) Accept(t int32) error {
	m.shared.mu.Lock()
	defer m.shared.mu.Unlock()
	v := m.on.v
	switch {
	case m.err != nil:
		return m.err
	case t < 0 || int(t) >= v.size:
		return fmt.Errorf("token %d is not in 0 to %d", t, v.size-1)
	case m.over:
		return fmt.Errorf("token %d comes after the end of the text", t)
	case v.ends[t]:
		if !m.on.nodes[m.state].null {
			return fmt.Errorf("token %d ends the text before it is complete", t)
		}
		m.over = true
		return nil
	}
	if !m.move() {
		m.err = ErrTooComplex
		return m.err
	}
	m.on.begin()
	to := none
	at, fresh := m.at, true
	if b := v.bytes(t); len(b) > 0 {
		to = m.state
		at.key = slices.Clone(at.key) // of which spots after this one may have written
		for _, c := range b {
			if m.on.repeats {
				ok := false
				at, ok = at.step(c, m.on.nodes[to].marks)
				fresh = fresh && ok
			}
			to = m.on.derive(to, int(m.on.class[c]))
		}
	}
	if to == none {
		at, fresh = m.at, true
	} else if fresh && at.within {
		fresh = (&keys{machine: m.on}).open(to, at)
	}
	if name, ok := v.byID[t]; ok {
		if i := slices.Index(m.on.names, name); i >= 0 {
			to = m.on.or([]id{to, m.on.derive(m.state, m.on.symbols.of(special+rune(i)))})
		}
	}
	if m.on.spent {
		m.err = ErrTooComplex
		return m.err
	}
	if to == none {
		return fmt.Errorf("token %d (%q) is not allowed here", t, v.bytes(t))
	}
	if !fresh {
		return fmt.Errorf("token %d (%q) is not allowed here: an object would have a key twice", t, v.bytes(t))
	}
	m.state, m.at = m.on.restrict(to, m.on.depth), at
	if m.on.spent {
		m.err = ErrTooComplex
	}
	return m.err
}

// move goes to the automaton's present machine, with the state; false if that was too much.
func (m *Matcher) move() bool {
	now := m.shared.machine()
	if now == m.on {
		return true
	}
	m.state, m.on = now.take(m.on.arena, m.state), now
	return !now.spent
}

// machine is the present one; a fresh one if that has grown too large.
func (a *automaton) machine() *machine {
	if a.now == nil || len(a.now.nodes) > a.now.full || a.now.rowBytes > maxRowBytes || a.now.held > maxHeads {
		var profiles map[id]*profile
		if a.now != nil && a.now.profiles[a.now.char] != nil {
			profiles = map[id]*profile{a.now.char: a.now.profiles[a.now.char]}
		}
		a.now = newMachine(a.grammar, a.vocabulary)
		if profiles != nil {
			a.now.profiles = profiles
		}
	}
	return a.now
}

func newMachine(g *Grammar, v *Vocabulary) *machine {
	a := g.live()
	m := &machine{
		arena: a, v: v, start: g.root, full: len(a.nodes) + maxGrown,
		heads: [2]map[id]*head{{}, {}}, profiles: map[id]*profile{}, clipped: map[id]id{}, masks: map[id][]uint64{}, starts: map[id][]int32{}, stack: make([]id, v.longest+1),
	}
	m.letters = make([][]byte, len(a.symbols.reps))
	for b := range 256 {
		c := a.symbols.of(rune(b))
		m.class[b] = uint8(c)
		m.letters[c] = append(m.letters[c], byte(b))
	}
	for _, n := range a.nodes {
		m.depth = max(m.depth, n.depth)
	}
	m.depth += maxStack
	if !v.whole {
		m.judgeSpelling()
	}
	return m
}

// live is an arena of the grammar in which derivatives can be taken.
func (g *Grammar) live() *arena {
	from := g.arena
	a := &arena{
		nodes: slices.Clone(from.nodes), lists: slices.Clone(from.lists), sets: from.sets, names: from.names, dfas: from.dfas, rules: from.rules,
		most: len(from.nodes) + 2*maxGrown, setIDs: from.setIDs, base: from.own, own: map[uint64]id{}, char: from.char, repeats: from.repeats, sealed: true, live: true, symbols: from.symbols,
	}
	a.symbols.starts, a.symbols.class, a.symbols.reps = slices.Clone(a.symbols.starts), slices.Clone(a.symbols.class), slices.Clone(a.symbols.reps)
	if n, found := slices.BinarySearch(a.symbols.starts, special); found || n > 0 {
		a.symbols.starts, a.symbols.class = a.symbols.starts[:n], a.symbols.class[:n]
	}
	for i := range a.names {
		a.symbols.starts = append(a.symbols.starts, special+rune(i))
		a.symbols.class = append(a.symbols.class, int32(len(a.symbols.reps)))
		a.symbols.reps = append(a.symbols.reps, special+rune(i))
	}
	return a
}

// tooAmbiguous says that the grammar's beginning, or that of one of its rules, is a state
// that no matcher would get beyond; as far as it can be seen in a few calls' time.
func (g *Grammar) tooAmbiguous() bool {
	a := g.live()
	starts := []id{g.root}
	for _, r := range a.rules {
		starts = append(starts, r.body)
	}
	total := 0
	for _, n := range starts {
		a.work, a.limit, a.spent = 0, maxWork, false
		for class := range a.symbols.reps {
			if a.derive(n, class); a.spent {
				return true
			}
		}
		if total += a.work; total > 2*maxWork || len(a.nodes) > len(g.arena.nodes)+maxGrown {
			return false
		}
	}
	return false
}

// begin starts the account of a call.
func (m *machine) begin() { m.work, m.arena.limit, m.spent = 0, maxWork, false }

// judgeSpelling finds what a vocabulary that lacks bytes can spell for sure.
func (m *machine) judgeSpelling() {
	a := m.arena
	a.dfas = slices.Clone(a.dfas)
	a.rules = slices.Clone(a.rules)
	all := make([]bool, len(a.nodes))
	for i := range all {
		all[i] = true
	}
	set := make([]bool, len(a.sets))
	for i, s := range a.sets {
		for b := range 256 {
			set[i] = set[i] || m.v.single[b] && s.has(rune(b))
		}
	}
	dfas := make([]dfa, len(a.dfas))
	for i, d := range a.dfas {
		dfas[i] = *d
		dfas[i].stuck = make([]bool, len(d.offsets)-1)
		a.dfas[i] = &dfas[i]
	}
	judge := func() []bool {
		return a.fix(all, func(n id, is []bool) bool {
			switch x := &a.nodes[n]; x.kind {
			case isEmpty:
				return true
			case isSpecial:
				return true
			case isSet:
				return set[x.a]
			case isSeq:
				return is[x.a] && is[x.b]
			case isOr:
				return slices.ContainsFunc(a.lists[x.a:x.a+x.b], func(y id) bool { return is[y] })
			case isRep:
				return x.b == 0 || is[x.a]
			case isRef:
				return is[a.rules[x.a].body]
			case isState:
				return !a.dfas[x.a].stuck[x.b]
			}
			return false
		})
	}
	// What edges take does not contain states, so one round settles it.
	for i := range dfas {
		for s := range dfas[i].stuck {
			dfas[i].stuck[s] = true
		}
	}
	spells := judge()
	for i := range dfas {
		d := &dfas[i]
		for changed := true; changed; {
			changed = false
			for s := len(d.stuck) - 1; s >= 0; s-- {
				if !d.stuck[s] {
					continue
				}
				ok := d.accepts(int32(s))
				for _, e := range d.edges[d.offsets[s]:d.offsets[s+1]] {
					ok = ok || spells[e.char] && (e.to == toRest || !d.stuck[e.to] || d.accepts(e.to))
				}
				if ok {
					d.stuck[s], changed = false, true
				}
			}
		}
	}
	spells = judge()
	for n := range a.nodes {
		a.nodes[n].spelled = spells[n]
	}
	for i := range a.rules {
		a.rules[i].spells = spells[a.rules[i].body]
	}
}

// take copies a state of another machine of the same grammar.
func (m *machine) take(from *arena, n id) id {
	static := m.full - maxGrown // nodes that both have
	known := map[id]id{}
	var rec func(n id) id
	rec = func(n id) id {
		if int(n) < static {
			return n
		}
		if to, ok := known[n]; ok {
			return to
		}
		var to id
		switch x := from.nodes[n]; x.kind {
		case isSeq:
			to = m.seq(rec(x.a), rec(x.b))
		case isOr:
			var options []id
			for _, y := range from.lists[x.a : x.a+x.b] {
				options = append(options, rec(y))
			}
			to = m.or(options)
		case isRep:
			to = m.rep(rec(x.a), x.b, x.c)
		default:
			to = m.put(x.kind, x.a, x.b, x.c, nil)
		}
		known[n] = to
		return to
	}
	m.begin()
	return rec(n)
}

// mask of a state, remembered.
func (m *machine) mask(state id) []uint64 {
	m.begin()
	state = m.clip(state)
	if mask, ok := m.masks[state]; ok {
		return mask
	}
	mask := m.compute(state, !m.v.whole)
	if !m.v.whole && !slices.ContainsFunc(mask, func(w uint64) bool { return w != 0 }) {
		mask = m.compute(state, false) // only tokens of several bytes can go on
	}
	if m.spent {
		return nil
	}
	if len(m.masks) >= maxMasks {
		clear(m.masks)
	}
	m.masks[state] = mask
	return mask
}

// clip brings counts that no token can reach to one number, so that states
// which differ only in them share their masks.
func (m *machine) clip(n id) id {
	if to, ok := m.clipped[n]; ok {
		return to
	}
	longest := int32(m.v.longest)
	to := n
	switch x := m.nodes[n]; x.kind {
	case isSeq:
		to = m.seq(m.clip(x.a), m.clip(x.b))
	case isOr:
		options := make([]id, x.b)
		for i := range options {
			options[i] = m.clip(m.lists[x.a+int32(i)])
		}
		to = m.or(options)
	case isRep:
		least, most := min(x.b, longest+1), x.c
		if most > longest {
			most = unlimited
		}
		to = m.rep(x.a, least, most)
	}
	if !m.spent { // else it is not all of it
		m.clipped[n] = to
	}
	return to
}

// compute a state's mask. strict leaves out tokens after which a vocabulary
// that lacks bytes might have no way on.
func (m *machine) compute(state id, strict bool) []uint64 {
	bits := make([]uint64, (m.v.size+63)/64)
	if x := m.nodes[state]; x.kind == isOr && x.b > 64 {
		m.below(0, state, bits, strict)
	} else {
		options := []id{state}
		if x.kind == isOr {
			options = slices.Clone(m.lists[x.a : x.a+x.b])
		}
		for _, n := range options {
			if n > empty {
				m.option(n, bits, strict)
			}
		}
	}
	for i, name := range m.names {
		if t, ok := m.v.special[name]; ok && m.derive(state, m.symbols.of(special+rune(i))) != none {
			m.v.mark(bits, t)
		}
	}
	if m.nodes[state].null {
		for _, t := range m.v.end {
			bits[t>>6] |= 1 << (t & 63)
		}
	}
	return bits
}

// option sets the bits of what one stack takes.
func (m *machine) option(n id, bits []uint64, strict bool) {
	f := m.frame(n)
	if strict && !m.nodes[f.tail].spelled {
		return
	}
	if x := m.nodes[f.head]; x.kind == isRep && (strict || m.v.whole) {
		if p := m.profile(x.a); p.usable {
			m.repeated(p, n, f.tail, bits, strict)
			return
		}
	}
	h := m.head(f.head, strict)
	if h == nil {
		return
	}
	for _, t := range h.tokens {
		m.v.mark(bits, t)
	}
	for i, w := range h.bits {
		bits[i] |= w
	}
	if f.tail == empty {
		return
	}
	if h.many != nil {
		m.onward(n, f.tail, bits, strict, func(node int32) bool { return h.many[node>>6]>>(node&63)&1 == 1 })
		return
	}
	for _, node := range h.exits {
		m.below(node, f.tail, bits, strict)
	}
	if m.nodes[f.head].null {
		m.below(0, f.tail, bits, strict)
	}
}

// repeated is option for a repetition.
func (m *machine) repeated(p *profile, n, tail id, bits []uint64, strict bool) {
	x := m.nodes[m.frame(n).head]
	for i, w := range p.upTo(m.v, x.c) {
		bits[i] |= w
	}
	if tail == empty {
		return
	}
	if x.b == 0 {
		m.below(0, tail, bits, strict)
	}
	if p.done == nil {
		for _, e := range p.exits {
			if x.b <= e.count && e.count <= x.c {
				m.below(e.at, tail, bits, strict)
			}
		}
		return
	}
	m.onward(n, tail, bits, strict, func(node int32) bool {
		n := p.done[node]
		return n != noExit && node != 0 && x.b <= int32(n) && int32(n) <= x.c
	})
}

// onward sets the bits of tokens that reach a stack's tail at the nodes that
// exit names. whole is the stack, to walk from the root where that is less work.
func (m *machine) onward(whole, tail id, bits []uint64, strict bool, exit func(int32) bool) {
	m.firsts = m.firsts[:0]
	work := 0
	for class, letters := range m.letters {
		if len(letters) > 0 && m.derive(tail, class) != none {
			m.firsts = append(m.firsts, class)
			for _, b := range letters {
				work += len(m.v.byChar[b])
			}
		}
	}
	if 2*work > len(m.v.char) {
		m.below(0, whole, bits, strict)
		return
	}
	for _, class := range slices.Clone(m.firsts) {
		to := m.derive(tail, class)
		for _, b := range m.letters[class] {
			for _, node := range m.v.byChar[b] {
				if !exit(m.v.parent[node]) {
					continue
				}
				if t := m.v.token[node]; t >= 0 && (!strict || m.nodes[to].spelled) {
					m.v.mark(bits, t)
				}
				m.below(node, to, bits, strict)
			}
		}
	}
}

// below sets the bits of the tokens below a node of the trie that a state takes.
func (m *machine) below(node int32, state id, bits []uint64, strict bool) {
	v, stack := m.v, m.stack
	stack[v.depth[node]] = state
	for i, end := node+1, v.after[node]; i < end; {
		d := v.depth[i]
		from, class := stack[d-1], int(m.class[v.char[i]])
		to := id(-1)
		if int(from) < len(m.rows) {
			if row := m.rows[from]; row != nil {
				to = row[class]
			}
		}
		if to < 0 {
			if to = m.derive(from, class); m.spent {
				return
			}
		}
		if to == none {
			i = v.after[i]
			continue
		}
		stack[d] = to
		if t := v.token[i]; t >= 0 && (!strict || m.nodes[to].spelled) {
			v.mark(bits, t)
		}
		i++
	}
}

// head of a stack, remembered; nil if there was too much to compute.
func (m *machine) head(n id, strict bool) *head {
	heads := m.heads[0]
	if !strict {
		heads = m.heads[1]
	}
	if h, ok := heads[n]; ok {
		return h
	}
	h := &head{}
	v, stack := m.v, m.stack
	stack[0] = n
	for i, end := int32(1), v.after[0]; i < end; {
		d := v.depth[i]
		to := m.derive(stack[d-1], int(m.class[v.char[i]]))
		if m.spent {
			return nil
		}
		if to == none {
			i = v.after[i]
			continue
		}
		stack[d] = to
		if t := v.token[i]; t >= 0 && (!strict || m.nodes[to].spelled) {
			h.tokens = append(h.tokens, t)
		}
		if m.nodes[to].null && v.after[i] > i+1 {
			h.exits = append(h.exits, i)
		}
		i++
	}
	if len(h.tokens) > fewTokens {
		h.bits = make([]uint64, (v.size+63)/64)
		for _, t := range h.tokens {
			v.mark(h.bits, t)
		}
		h.tokens = nil
	}
	if len(h.exits) > fewTokens {
		h.many = make([]uint64, (len(v.char)+63)/64)
		if m.nodes[n].null {
			h.many[0] = 1
		}
		for _, i := range h.exits {
			h.many[i>>6] |= 1 << (i & 63)
		}
		h.exits = nil
	}
	m.held += 4*len(h.tokens) + 4*len(h.exits) + 8*len(h.bits) + 8*len(h.many)
	heads[n] = h
	return h
}

// profile of a repeated node.
func (m *machine) profile(x id) *profile {
	if p, ok := m.profiles[x]; ok {
		return p
	}
	if x == m.char {
		m.v.mu.Lock()
		defer m.v.mu.Unlock()
		if m.v.ofChar == nil {
			p := m.measure(x)
			if m.spent {
				return p
			}
			m.v.ofChar = p
		}
		m.profiles[x] = m.v.ofChar
		return m.v.ofChar
	}
	p := m.measure(x)
	if !m.spent {
		m.held += 8*len(p.tokens) + 8*len(p.exits) + 8*len(p.full) + 2*len(p.done)
		m.profiles[x] = p
	}
	return p
}

func (m *machine) measure(x id) *profile {
	if m.nodes[x].null {
		return &profile{}
	}
	v := m.v
	p := &profile{full: make([]uint64, (v.size+63)/64), levels: map[int32][]uint64{}}
	count := make([]int32, v.longest+1)
	stack := m.stack
	stack[0] = x
	for i, end := int32(1), v.after[0]; i < end; {
		d := v.depth[i]
		to := m.derive(stack[d-1], int(m.class[v.char[i]]))
		n := count[d-1]
		switch {
		case m.spent:
			return &profile{}
		case to == none:
			i = v.after[i]
			continue
		case to == empty:
			n++
			stack[d] = x
			if v.after[i] > i+1 {
				p.exits = append(p.exits, counted{i, n})
			}
		case m.nodes[to].null:
			return &profile{} // not prefix-free
		default:
			stack[d] = to
		}
		count[d] = n
		if t := v.token[i]; t >= 0 && (v.whole || m.nodes[to].spelled) {
			need := n
			if to != empty {
				need++
			}
			p.tokens = append(p.tokens, counted{t, need})
			p.most = max(p.most, need)
			v.mark(p.full, t)
		}
		i++
	}
	if len(p.exits) > fewTokens {
		p.done = make([]uint16, len(v.char))
		for i := range p.done {
			p.done[i] = noExit
		}
		for _, e := range p.exits {
			p.done[e.at] = uint16(e.count)
		}
		p.exits = nil
	}
	p.usable = true
	return p
}

// upTo is the tokens that take at most so many.
func (p *profile) upTo(v *Vocabulary, most int32) []uint64 {
	if most >= p.most {
		return p.full
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if bits, ok := p.levels[most]; ok {
		return bits
	}
	bits := make([]uint64, len(p.full))
	for _, t := range p.tokens {
		if t.count <= most {
			v.mark(bits, t.at)
		}
	}
	p.levels[most] = bits
	return bits
}
