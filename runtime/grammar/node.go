package grammar

import (
	"cmp"
	"math"
	"slices"
)

// id names a node of an arena: a language, as an expression. Equal expressions
// have one id.
type id = int32

const (
	none  id = 0 // no text
	empty id = 1 // only the empty text
)

type kind uint8

const (
	isNone    kind = iota
	isEmpty        //
	isSet          // one symbol of sets[a], marked c
	isSeq          // a, then b; a is no isSeq
	isOr           // any of lists[a:a+b]
	isRep          // a, b to c times
	isRef          // rules[a]
	isState        // what dfas[a] takes from its state b on
	isSpecial      // the special token names[a]
	isAnd          // both a and b; only among characters, see determinize
	isNot          // whatever a is not; likewise
)

// unlimited is a repetition's count without an end.
const unlimited = math.MaxInt32

// never is the height of a node without texts.
const never = math.MaxInt32

type node struct {
	kind    kind
	null    bool  // the empty text is among its texts
	spelled bool  // a vocabulary's single bytes are enough to get to an end
	marks   uint8 // of what its texts begin with
	a, b, c int32
	depth   int32 // how many nodes stand one after the other
	height  int32 // so many rules within each other are needed to get to an end
	next    id    // with the same hash
}

type rule struct {
	body   id
	null   bool
	height int32
	spells bool
	marks  uint8
}

// marks tell what a byte is in a JSON object, so that its keys can be read.
const (
	opening   = 1 << iota // its {
	closing               // its }
	beforeKey             // the quote at a key's beginning
	afterKey              // and at its end
)

// arena holds nodes. It has two modes: while a grammar is built it is plain;
// when live, derivatives are taken, and or and seq bring their results into
// one shape: an Or of Seqs with distinct heads, which is a set of stacks that
// share their tails.
type arena struct {
	nodes []node
	lists []id
	sets  []set
	names []string
	dfas  []*dfa
	rules []rule

	setIDs     map[string]int32
	spells     map[spelled]id
	base       map[uint64]id // hash -> node; of the sealed grammar, shared
	own        map[uint64]id
	restricted map[id]id
	spread     map[[2]id]id              // when live: an isOr and what follows it -> seq of them, since options share what they end with
	cut        map[[2]id]id              // a state and a depth -> restrict of them
	spellOut   func(special string) bool // when copying
	char       id                        // one character within a JSON string; in arenas of bytes

	repeats bool // there are objects in which nothing but their keys that were read forbids a key to come twice
	sealed  bool // what rules say of null and height is true
	live    bool
	symbols partition
	rows    [][]id // node -> class of symbols -> derivative, -1 unknown
	slab    []id

	rowBytes    int
	most        int // nodes; 0: no limit
	work, limit int // of one call
	spent       bool
}

// maxRowBytes of derivatives are remembered.
const maxRowBytes = 32 << 20

func newArena() *arena {
	a := &arena{setIDs: map[string]int32{}, own: map[uint64]id{}, limit: math.MaxInt}
	a.nodes = []node{{kind: isNone, height: never}, {kind: isEmpty, null: true, spelled: true}}
	return a
}

func (a *arena) setID(s set) int32 {
	key := s.key()
	n, ok := a.setIDs[key]
	if !ok {
		n = int32(len(a.sets))
		a.sets = append(a.sets, s)
		a.setIDs[key] = n
	}
	return n
}

// put finds or makes a node.
func (a *arena) put(k kind, x, y, z int32, list []id) id {
	h := uint64(k) + 0x9e3779b97f4a7c15
	mix := func(v int32) { h = (h ^ uint64(uint32(v))) * 0xff51afd7ed558ccd; h ^= h >> 32 }
	mix(y)
	mix(z)
	if k == isOr {
		for _, v := range list {
			mix(v)
		}
	} else {
		mix(x)
	}
	same := func(n id) bool {
		m := &a.nodes[n]
		if m.kind != k || m.b != y || m.c != z {
			return false
		}
		if k == isOr {
			return slices.Equal(a.lists[m.a:m.a+m.b], list)
		}
		return m.a == x
	}
	for n := a.own[h]; n != 0; n = a.nodes[n].next {
		if same(n) {
			return n
		}
	}
	for n := a.base[h]; n != 0; n = a.nodes[n].next {
		if same(n) {
			return n
		}
	}
	if k == isOr {
		x = int32(len(a.lists))
		a.lists = append(a.lists, list...)
	}
	m := node{kind: k, a: x, b: y, c: z, next: a.own[h]}
	a.judge(&m)
	n := id(len(a.nodes))
	if a.most > 0 && int(n) > a.most {
		a.spent = true
		return none
	}
	a.nodes = append(a.nodes, m)
	a.own[h] = n
	return n
}

// judge fills in what follows from a node's parts.
func (a *arena) judge(m *node) {
	switch m.kind {
	case isSet:
		m.spelled, m.marks = true, uint8(m.c)
	case isSeq:
		x, y := &a.nodes[m.a], &a.nodes[m.b]
		m.marks = x.marks
		if x.null {
			m.marks |= y.marks
		}
		m.null, m.spelled = x.null && y.null, x.spelled && y.spelled
		m.depth, m.height = y.depth+1, max(x.height, y.height)
	case isOr:
		m.height = never
		for _, n := range a.lists[m.a : m.a+m.b] {
			x := &a.nodes[n]
			m.null, m.spelled, m.marks = m.null || x.null, m.spelled || x.spelled, m.marks|x.marks
			m.depth, m.height = max(m.depth, x.depth), min(m.height, x.height)
		}
	case isRep:
		x := &a.nodes[m.a]
		m.null, m.spelled, m.height, m.marks = m.b == 0 || x.null, m.b == 0 || x.spelled, x.height, x.marks
		if m.b == 0 {
			m.height = 0
		}
	case isRef:
		if a.sealed {
			r := a.rules[m.a]
			m.null, m.spelled, m.height, m.marks = r.null, r.spells, r.height, r.marks
		}
	case isState:
		d := a.dfas[m.a]
		m.null, m.spelled = d.accepts(m.b), true
		if d.stuck != nil {
			m.spelled = !d.stuck[m.b]
		}
	case isSpecial:
		m.spelled = true
	case isAnd:
		m.null = a.nodes[m.a].null && a.nodes[m.b].null
	case isNot:
		m.null = !a.nodes[m.a].null
	}
}

func (a *arena) bytes(s set) id {
	if len(s) == 0 {
		return none
	}
	return a.put(isSet, a.setID(s), 0, 0, nil)
}

func (a *arena) byte(b byte) id { return a.bytes(set{{rune(b), rune(b)}}) }

// marked is a byte that means something in a JSON object.
func (a *arena) marked(b byte, mark int32) id {
	return a.put(isSet, a.setID(set{{rune(b), rune(b)}}), 0, mark, nil)
}

// text is a literal, byte by byte.
func (a *arena) text(s string) id {
	n := empty
	for i := len(s) - 1; i >= 0; i-- {
		n = a.seq(a.byte(s[i]), n)
	}
	return n
}

func (a *arena) ref(rule int32) id { return a.put(isRef, rule, 0, 0, nil) }

// rule makes an empty rule, to be filled later.
func (a *arena) rule() int32 {
	a.rules = append(a.rules, rule{body: none})
	return int32(len(a.rules) - 1)
}

func (a *arena) state(dfa, state int32) id {
	if d := a.dfas[dfa]; d.accepts(state) && d.offsets[state] == d.offsets[state+1] {
		return empty
	}
	return a.put(isState, dfa, state, 0, nil)
}

// seqs is its parts one after the other.
func (a *arena) seqs(parts ...id) id {
	n := empty
	for _, p := range slices.Backward(parts) {
		n = a.seq(p, n)
	}
	return n
}

func (a *arena) seq(x, y id) id {
	if a.work++; a.work > a.limit {
		a.spent = true
	}
	switch {
	case x == none || y == none || a.spent:
		return none
	case x == empty:
		return y
	case y == empty:
		return x
	}
	switch m := a.nodes[x]; m.kind {
	case isSeq:
		return a.put(isSeq, m.a, a.seq(m.b, y), 0, nil)
	case isOr:
		if a.live {
			if n, ok := a.spread[[2]id{x, y}]; ok {
				return n
			}
			options := slices.Clone(a.lists[m.a : m.a+m.b])
			for i, n := range options {
				options[i] = a.seq(n, y)
			}
			n := a.or(options)
			if a.spent {
				return none
			}
			if a.spread == nil {
				a.spread = map[[2]id]id{}
			}
			a.spread[[2]id{x, y}] = n
			return n
		}
	}
	return a.put(isSeq, x, y, 0, nil)
}

// rep is x, min to max times.
func (a *arena) rep(x id, min, max int32) id {
	if max < min {
		return none
	}
	m := a.nodes[x]
	if m.null {
		min = 0
	}
	switch {
	case max == 0 || x == empty:
		return empty
	case x == none && min == 0:
		return empty
	case x == none:
		return none
	case min == 1 && max == 1:
		return x
	case m.kind == isRep && m.b == 0 && m.c == unlimited:
		return x
	}
	return a.put(isRep, x, min, max, nil)
}

func (a *arena) optional(x id) id { return a.or([]id{empty, x}) }

// or is any of its options. It may change the slice.
func (a *arena) or(options []id) id {
	for i := 0; i < len(options); i++ {
		if m := a.nodes[options[i]]; m.kind == isOr {
			options = append(options, a.lists[m.a+1:m.a+m.b]...)
			options[i] = a.lists[m.a]
		}
	}
	a.work += len(options)
	if a.work > a.limit {
		a.spent = true
		return none
	}
	slices.Sort(options)
	options = slices.Compact(options)
	if len(options) > 0 && options[0] == none {
		options = options[1:]
	}
	if a.live && len(options) > 1 {
		options = a.merge(options)
	}
	switch len(options) {
	case 0:
		return none
	case 1:
		return options[0]
	}
	return a.put(isOr, 0, int32(len(options)), 0, options)
}

type frame struct{ head, tail id }

// frame of an option that is not isOr.
func (a *arena) frame(n id) frame {
	if m := &a.nodes[n]; m.kind == isSeq {
		return frame{m.a, m.b}
	}
	return frame{n, empty}
}

// merge joins options with the same head, since h x | h y = h (x | y), and
// repetitions whose counts touch.
func (a *arena) merge(options []id) []id {
	frames := make([]frame, len(options))
	distinct := true
	for i, n := range options {
		frames[i] = a.frame(n)
		distinct = distinct && a.nodes[frames[i].head].kind != isRep
	}
	slices.SortFunc(frames, func(x, y frame) int { return cmp.Or(cmp.Compare(x.head, y.head), cmp.Compare(x.tail, y.tail)) })
	for i := 1; i < len(frames); i++ {
		distinct = distinct && frames[i].head != frames[i-1].head
	}
	if distinct {
		return options
	}
	joined := frames[:0:0]
	for i := 0; i < len(frames); {
		j := i + 1
		for j < len(frames) && frames[j].head == frames[i].head {
			j++
		}
		f := frames[i]
		if j > i+1 {
			tails := make([]id, 0, j-i)
			for _, g := range frames[i:j] {
				tails = append(tails, g.tail)
			}
			f.tail = a.or(tails)
		}
		joined = append(joined, f)
		i = j
	}
	joined = a.mergeCounts(joined)
	out := make([]id, len(joined))
	for i, f := range joined {
		if f.head == empty {
			out[i] = f.tail // the empty option, whose tail is empty
			continue
		}
		out[i] = a.seq(f.head, f.tail)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// mergeCounts: x{1,2} and x{3,5} before the same tail are x{1,5}.
func (a *arena) mergeCounts(frames []frame) []frame {
	counts := 0
	for _, f := range frames {
		if a.nodes[f.head].kind == isRep {
			counts++
		}
	}
	if counts < 2 {
		return frames
	}
	slices.SortFunc(frames, func(f, g frame) int {
		x, y := &a.nodes[f.head], &a.nodes[g.head]
		return cmp.Or(cmp.Compare(x.kind, y.kind), cmp.Compare(x.a, y.a), cmp.Compare(f.tail, g.tail), cmp.Compare(x.b, y.b), cmp.Compare(x.c, y.c))
	})
	out := frames[:0:0]
	for _, f := range frames {
		m := a.nodes[f.head]
		if n := len(out); n > 0 && m.kind == isRep && out[n-1].tail == f.tail {
			if last := a.nodes[out[n-1].head]; last.kind == isRep && last.a == m.a && (last.c == unlimited || m.b <= last.c+1) {
				out[n-1].head = a.rep(m.a, last.b, max(last.c, m.c))
				continue
			}
		}
		out = append(out, f)
	}
	return out
}

// and and not are for languages of characters.
func (a *arena) and(x, y id) id {
	switch {
	case x == none || y == none:
		return none
	case x == y:
		return x
	case x > y:
		x, y = y, x
	}
	return a.put(isAnd, x, y, 0, nil)
}

func (a *arena) not(x id) id {
	if m := a.nodes[x]; m.kind == isNot {
		return m.a
	}
	return a.put(isNot, x, 0, 0, nil)
}

// derive is what may follow after a symbol of a class; none if it may not come.
// Source: doi:10.1145/321239.321249 (Brzozowski, Derivatives of Regular
// Expressions), with rules for references as in arXiv:1604.04695.
func (a *arena) derive(n id, class int) id {
	if int(n) < len(a.rows) {
		if row := a.rows[n]; row != nil && row[class] >= 0 {
			return row[class]
		}
	}
	if a.spent {
		return none
	}
	to := a.step(n, class)
	if a.spent {
		return none
	}
	for len(a.rows) < len(a.nodes) {
		a.rows = append(a.rows, nil)
	}
	row := a.rows[n]
	if row == nil {
		width := len(a.symbols.reps)
		if a.rowBytes += 4 * width; a.rowBytes > maxRowBytes {
			return to // not remembered
		}
		if len(a.slab) < width {
			a.slab = make([]id, max(width, 4096))
			for i := range a.slab {
				a.slab[i] = -1
			}
		}
		row, a.slab = a.slab[:width:width], a.slab[width:]
		a.rows[n] = row
	}
	row[class] = to
	return to
}

func (a *arena) step(n id, class int) id {
	if a.work++; a.work > a.limit {
		a.spent = true
		return none
	}
	switch m := a.nodes[n]; m.kind {
	case isSet:
		if a.sets[m.a].has(a.symbols.reps[class]) {
			return empty
		}
	case isSeq:
		to := a.seq(a.derive(m.a, class), m.b)
		if a.nodes[m.a].null {
			to = a.or([]id{to, a.derive(m.b, class)})
		}
		return to
	case isOr:
		var buffer [8]id
		options := buffer[:0]
		for i := range m.b {
			if to := a.derive(a.lists[m.a+i], class); to != none {
				options = append(options, to)
			}
		}
		return a.or(options)
	case isRep:
		to := a.derive(m.a, class)
		if to == none {
			return none
		}
		rest := m.c
		if rest != unlimited {
			rest--
		}
		return a.seq(to, a.rep(m.a, max(m.b-1, 0), rest))
	case isRef:
		return a.derive(a.rules[m.a].body, class)
	case isState:
		d := a.dfas[m.a]
		var buffer [8]id
		options := buffer[:0]
		for _, e := range d.edges[d.offsets[m.b]:d.offsets[m.b+1]] {
			if to := a.derive(e.char, class); to != none {
				after := d.rest
				if e.to != toRest {
					after = a.state(m.a, e.to)
				}
				options = append(options, a.seq(to, after))
			}
		}
		return a.or(options)
	case isSpecial:
		if a.symbols.reps[class] == special+rune(m.a) {
			return empty
		}
	case isAnd:
		return a.and(a.derive(m.a, class), a.derive(m.b, class))
	case isNot:
		return a.not(a.derive(m.a, class))
	}
	return none
}

// special is the first symbol beyond bytes: special+i is the special token names[i].
const special rune = 256

// restrict takes a state whose stack is deeper than allowed to one that opens
// nothing more above it: every choice there goes to an end by the fewest rules.
func (a *arena) restrict(n id, depth int32) id {
	m := a.nodes[n]
	if m.depth <= depth {
		return n
	}
	if to, ok := a.cut[[2]id{n, depth}]; ok {
		return to
	}
	to := n
	switch m.kind {
	case isSeq:
		to = a.seq(a.shortest(m.a), a.restrict(m.b, depth))
	case isOr:
		options := make([]id, m.b)
		for i := range options {
			options[i] = a.restrict(a.lists[m.a+int32(i)], depth)
		}
		to = a.or(options)
	}
	if a.spent {
		return none
	}
	if a.cut == nil {
		a.cut = map[[2]id]id{}
	}
	a.cut[[2]id{n, depth}] = to
	return to
}

func (a *arena) shortest(n id) id {
	if short, ok := a.restricted[n]; ok {
		return short
	}
	short := n
	switch m := a.nodes[n]; m.kind {
	case isSeq:
		short = a.seq(a.shortest(m.a), a.shortest(m.b))
	case isOr:
		var options []id
		for _, x := range slices.Clone(a.lists[m.a : m.a+m.b]) {
			if a.nodes[x].height == m.height {
				options = append(options, a.shortest(x))
			}
		}
		short = a.or(options)
	case isRep:
		switch rules := a.nodes[m.a].height > 0; {
		case rules && m.b == 0:
			short = empty // what is repeated may lead back here
		case rules:
			short = a.rep(a.shortest(m.a), m.b, m.b)
		default:
			short = a.rep(a.shortest(m.a), m.b, m.c)
		}
	case isRef:
		short = a.shortest(a.rules[m.a].body)
	}
	if a.spent { // it is not all of it
		return none
	}
	if a.restricted == nil {
		a.restricted = map[id]id{}
	}
	a.restricted[n] = short
	return short
}
