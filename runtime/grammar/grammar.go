// Package grammar makes a model's output valid: it says which tokens may come
// next, so that a text which ends is one of the grammar's, whatever the model
// prefers. It is pure. Start at JSONSchema, Regex, Choice and EBNF, which make
// a Grammar, and at Matcher, which follows one text.
//
// A grammar is expressions over bytes. A state is what may still follow,
// itself an expression, kept in one shape so that equal states are one (node.go):
// a set of stacks that share their tails. Its derivative by a byte is the next
// state, remembered; so a token costs as many table lookups as it has bytes.
// The tokens that a state allows are found in a trie of the vocabulary and
// remembered by the top of the stack, since most tokens do not reach below it
// (matcher.go). All of that is shared between the matchers of one grammar and
// one vocabulary.
package grammar

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
)

// Grammar is a set of texts, as UTF-8. It does not change, so that many may share it.
type Grammar struct {
	arena *arena // sealed
	root  id
	key   [sha256.Size]byte // of what it was made from: equal grammars, equal keys
}

// Error says what in the source of a grammar cannot be used.
type Error struct {
	Where  string // "regex at byte 3", "schema #/properties/name/pattern", "grammar line 2"
	Reason string
}

func (e *Error) Error() string { return e.Where + ": " + e.Reason }

var errComplex = errors.New("it is too complex: it needs too many states")

// What a grammar is built with is bounded: expressions, and steps of some fifty nanoseconds,
// which copying one sequence into others may take without making any.
const (
	maxNodes = 400_000
	maxBuild = 10_000_000
)

// bounded arenas stop at the bounds: once one is spent, what is built is worth nothing.
func (a *arena) bounded() *arena {
	a.most, a.limit = maxNodes, maxBuild
	return a
}

func keyOf(parts ...[]byte) (key [sha256.Size]byte) {
	h := sha256.New()
	for _, p := range parts {
		h.Write(binary.LittleEndian.AppendUint64(nil, uint64(len(p))))
		h.Write(p)
	}
	h.Sum(key[:0])
	return key
}

// newByteArena has the node of one character within a JSON string, under the
// same id in every arena, so that vocabularies can remember it.
func newByteArena() *arena {
	a := *firstByteArena()
	a.nodes, a.lists, a.sets = slices.Clone(a.nodes), slices.Clone(a.lists), slices.Clone(a.sets)
	a.setIDs, a.spells, a.own = maps.Clone(a.setIDs), maps.Clone(a.spells), maps.Clone(a.own)
	return &a
}

// firstByteArena is the one that others are copies of.
var firstByteArena = sync.OnceValue(func() *arena {
	a := newArena()
	a.char = a.spell(everything, free)
	return a
})

// Literal is one text. What is not UTF-8 in it becomes U+FFFD.
func Literal(text string) *Grammar {
	text = strings.ToValidUTF8(text, "\ufffd")
	return compose("literal", []byte(text), nil, func(a *arena, _ []id) id {
		if len(text) > 256 {
			return a.trie([]string{text}, raw)
		}
		return a.text(text)
	})
}

// Special is the special token that a vocabulary calls by this text (see
// Vocabulary.AddSpecial), or the text itself where it has none.
func Special(text string) *Grammar {
	text = strings.ToValidUTF8(text, "\ufffd")
	return compose("special", []byte(text), nil, func(a *arena, _ []id) id { return a.special(text) })
}

// Concat is its parts one after the other.
func Concat(parts ...*Grammar) *Grammar {
	return compose("concat", nil, parts, func(a *arena, ids []id) id { return a.seqs(ids...) })
}

// Alternate is any of its options; none has no text at all.
func Alternate(options ...*Grammar) *Grammar {
	return compose("alternate", nil, options, func(a *arena, ids []id) id { return a.or(ids) })
}

// Repeat is g, least to most times; most < 0: without an end.
func Repeat(g *Grammar, least, most int) *Grammar {
	return compose("repeat", fmt.Append(nil, least, most), []*Grammar{g}, func(a *arena, ids []id) id {
		return a.rep(ids[0], clamp(max(least, 0)), clamp(most))
	})
}

// Optional is g or nothing.
func Optional(g *Grammar) *Grammar { return Repeat(g, 0, 1) }

func clamp(n int) int32 {
	if n < 0 || n >= unlimited {
		return unlimited
	}
	return int32(n)
}

// Text is any text, the empty one included.
func Text() *Grammar {
	return compose("text", nil, nil, func(a *arena, _ []id) id { return a.anything(raw) })
}

// Except is any text in which none of the stops occurs.
func Except(stops ...string) *Grammar { return stopped("except", stops, false) }

// Until is any text that ends with the first occurrence of one of the stops.
func Until(stops ...string) *Grammar { return stopped("until", stops, true) }

func stopped(name string, stops []string, through bool) *Grammar {
	stops = slices.DeleteFunc(slices.Clone(stops), func(s string) bool { return s == "" })
	for i, s := range stops {
		stops[i] = strings.ToValidUTF8(s, "\ufffd")
	}
	return compose(name, fmt.Appendf(nil, "%q", stops), nil, func(a *arena, _ []id) id {
		return a.automaton(occurrences(stops, through), raw)
	})
}

// occurrences is an automaton that looks for stops: its states are their
// prefixes, each the longest that the text ends with.
func occurrences(stops []string, through bool) draft {
	index := map[string]int32{}
	var prefixes []string
	letters := map[rune]bool{}
	var d draft
	for _, stop := range append([]string{""}, stops...) {
		for i := 0; i <= len(stop); i++ {
			if i < len(stop) && stop[i]&0xc0 == 0x80 {
				continue // within a character
			}
			if _, ok := index[stop[:i]]; !ok {
				index[stop[:i]] = d.add(!through)
				prefixes = append(prefixes, stop[:i])
			}
		}
		for _, r := range stop {
			letters[r] = true
		}
	}
	found := func(text string) bool {
		return slices.ContainsFunc(stops, func(s string) bool { return strings.HasSuffix(text, s) })
	}
	var known []span
	for r := range letters {
		known = append(known, span{r, r})
	}
	end := int32(-1)
	if through {
		end = d.add(true)
	}
	for s, prefix := range prefixes {
		if found(prefix) {
			continue // never reached
		}
		to := map[int32][]span{}
		var order []int32
		for r := range letters {
			text := prefix + string(r)
			next := end
			if !found(text) {
				for {
					if n, ok := index[text]; ok {
						next = n
						break
					}
					_, size := firstRune(text)
					text = text[size:]
				}
			} else if !through {
				continue
			}
			if _, ok := to[next]; !ok {
				order = append(order, next)
			}
			to[next] = append(to[next], span{r, r})
		}
		to[0] = append(to[0], normal(known).not()...)
		if !slices.Contains(order, 0) {
			order = append(order, 0)
		}
		slices.Sort(order)
		for _, n := range order {
			d.edges[s] = append(d.edges[s], draftEdge{normal(to[n]), n})
		}
	}
	return d
}

func firstRune(s string) (rune, int) {
	for _, r := range s {
		return r, len(string(r))
	}
	return 0, 1
}

// compose builds a grammar from others, which are all right.
func compose(name string, text []byte, parts []*Grammar, build func(*arena, []id) id) *Grammar {
	a := newByteArena()
	keys := [][]byte{[]byte(name), text}
	ids := make([]id, len(parts))
	known := map[*Grammar]id{}
	for i, g := range parts {
		n, ok := known[g]
		if !ok {
			n = a.add(g)
			known[g] = n
		}
		ids[i] = n
		keys = append(keys, g.key[:])
	}
	g, err := seal(a, build(a, ids))
	if err != nil { // cannot be: only EBNF may have left recursion
		panic(err)
	}
	g.key = keyOf(keys...)
	return g
}

// asText is the grammar with the special tokens that are missing written as text.
func (g *Grammar) asText(missing func(string) bool) *Grammar {
	if !slices.ContainsFunc(g.arena.names, missing) {
		return g
	}
	a := newByteArena()
	a.spellOut = missing
	out, err := seal(a, a.add(g))
	if err != nil { // cannot be: there was no left recursion
		panic(err)
	}
	return out
}

func (a *arena) special(text string) id {
	n := slices.Index(a.names, text)
	if n < 0 {
		n = len(a.names)
		a.names = append(a.names, text)
	}
	return a.put(isSpecial, int32(n), 0, 0, nil)
}

// add copies a grammar into an arena that is being built.
func (a *arena) add(g *Grammar) id {
	rules := make([]int32, len(g.arena.rules))
	for i := range rules {
		rules[i] = a.rule()
	}
	a.repeats = a.repeats || g.arena.repeats
	ids := a.copy(g.arena, nil, rules, nil)
	for i, r := range g.arena.rules {
		a.rules[rules[i]].body = ids[r.body]
	}
	return ids[g.root]
}

// copy takes the nodes of another arena, or those that are wanted, into this
// one, whose rules are numbered as given; gone nodes have no text.
func (a *arena) copy(from *arena, wanted []bool, rules []int32, gone []bool) []id {
	ids := make([]id, len(from.nodes))
	ids[empty] = empty
	dfas := make([]int32, len(from.dfas))
	used := make([]bool, len(from.dfas))
	for n := range from.nodes {
		if n < 2 || wanted != nil && !wanted[n] || gone != nil && gone[n] {
			continue
		}
		m := &from.nodes[n]
		switch m.kind {
		case isSet:
			ids[n] = a.put(isSet, a.setID(from.sets[m.a]), 0, m.c, nil)
		case isSeq:
			ids[n] = a.seq(ids[m.a], ids[m.b])
		case isOr:
			options := make([]id, 0, m.b)
			for _, x := range from.lists[m.a : m.a+m.b] {
				options = append(options, ids[x])
			}
			ids[n] = a.or(options)
		case isRep:
			ids[n] = a.rep(ids[m.a], m.b, m.c)
		case isRef:
			if rules[m.a] < 0 {
				ids[n] = empty // see seal
			} else {
				ids[n] = a.ref(rules[m.a])
			}
		case isState:
			if !used[m.a] {
				used[m.a] = true
				dfas[m.a] = int32(len(a.dfas))
				a.dfas = append(a.dfas, &dfa{offsets: from.dfas[m.a].offsets, ends: from.dfas[m.a].ends})
			}
			ids[n] = a.state(dfas[m.a], m.b)
		case isSpecial:
			ids[n] = a.special(from.names[m.a])
			if a.spellOut != nil && a.spellOut(from.names[m.a]) {
				ids[n] = a.text(from.names[m.a])
			}
		}
	}
	for i, d := range from.dfas {
		if !used[i] {
			continue
		}
		to := a.dfas[dfas[i]]
		to.rest = ids[d.rest]
		to.edges = make([]edge, len(d.edges))
		for j, e := range d.edges {
			to.edges[j] = edge{ids[e.char], e.to}
		}
	}
	return ids
}

// seal makes a grammar of an arena's node: what has no text is removed, so that
// whatever is begun can be ended, and what follows for rules is known.
func seal(b *arena, root id) (*Grammar, error) {
	wanted := b.reachable(root)
	height := b.heights(wanted)
	if height[root] == never {
		a := newByteArena()
		a.sealed = true
		a.symbols = newPartition(a.sets)
		return &Grammar{arena: a, root: none}, nil
	}
	gone := make([]bool, len(b.nodes))
	for n := range b.nodes {
		gone[n] = wanted[n] && height[n] == never
	}
	null := b.fix(wanted, func(n id, is []bool) bool {
		switch m := &b.nodes[n]; m.kind {
		case isEmpty:
			return true
		case isSeq:
			return is[m.a] && is[m.b]
		case isOr:
			return slices.ContainsFunc(b.lists[m.a:m.a+m.b], func(x id) bool { return is[x] })
		case isRep:
			return m.b == 0 || is[m.a]
		case isRef:
			return is[b.rules[m.a].body]
		case isState:
			return b.dfas[m.a].accepts(m.b)
		}
		return false
	})
	// A rule that takes nothing is the empty text, so that a state with nothing to come is known as that.
	takes := b.fix(wanted, func(n id, is []bool) bool {
		if gone[n] {
			return false
		}
		switch m := &b.nodes[n]; m.kind {
		case isSet, isState, isSpecial:
			return true
		case isSeq:
			return is[m.a] || is[m.b]
		case isOr:
			return slices.ContainsFunc(b.lists[m.a:m.a+m.b], func(x id) bool { return is[x] })
		case isRep:
			return is[m.a]
		case isRef:
			return is[b.rules[m.a].body]
		}
		return false
	})
	marks := b.firstMarks(wanted, null)
	a := newByteArena()
	a.sealed, a.repeats = true, b.repeats
	rules := make([]int32, len(b.rules))
	for i, r := range b.rules {
		rules[i] = -1
		if wanted[r.body] && height[r.body] != never && takes[r.body] {
			rules[i] = a.rule()
			a.rules[rules[i]] = rule{null: null[r.body], height: height[r.body] + 1, spells: true, marks: marks[r.body]}
		}
	}
	ids := a.copy(b, wanted, rules, gone)
	for i, r := range b.rules {
		if rules[i] >= 0 {
			a.rules[rules[i]].body = ids[r.body]
		}
	}
	if name, ok := a.leftRecursive(); ok {
		return nil, fmt.Errorf("rule %d calls itself before it takes anything", name)
	}
	a.symbols = newPartition(a.sets)
	return &Grammar{arena: a, root: ids[root]}, nil
}

// reachable marks what a node consists of, rules and automata included.
func (a *arena) reachable(root id) []bool {
	seen := make([]bool, len(a.nodes))
	dfas := make([]bool, len(a.dfas))
	stack := []id{root}
	push := func(n id) {
		if !seen[n] {
			seen[n] = true
			stack = append(stack, n)
		}
	}
	seen[root] = true
	for len(stack) > 0 {
		n := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		a.parts(n, push)
		switch m := &a.nodes[n]; m.kind {
		case isRef:
			push(a.rules[m.a].body)
		case isState:
			if d := a.dfas[m.a]; !dfas[m.a] {
				dfas[m.a] = true
				push(d.rest)
				for _, e := range d.edges {
					push(e.char)
				}
			}
		}
	}
	return seen
}

// users lists, for each node, the nodes that consist of it, references included.
func (a *arena) users(wanted []bool) (offsets []int32, users []id) {
	counts := make([]int32, len(a.nodes)+1)
	each := func(f func(part, user id)) {
		for n := range a.nodes {
			if !wanted[n] {
				continue
			}
			a.parts(id(n), func(x id) { f(x, id(n)) })
			if m := &a.nodes[n]; m.kind == isRef {
				f(a.rules[m.a].body, id(n))
			}
		}
	}
	each(func(part, _ id) { counts[part+1]++ })
	for i := 1; i < len(counts); i++ {
		counts[i] += counts[i-1]
	}
	users = make([]id, counts[len(a.nodes)])
	at := slices.Clone(counts)
	each(func(part, user id) {
		users[at[part]] = user
		at[part]++
	})
	return counts, users
}

// fix is the least set of nodes that holds is, which grows with what is in it.
func (a *arena) fix(wanted []bool, is func(id, []bool) bool) []bool {
	in := make([]bool, len(a.nodes))
	a.settle(wanted, func(n id) bool {
		if in[n] || !is(n, in) {
			return false
		}
		in[n] = true
		return true
	})
	return in
}

// settle asks of each wanted node whether it changes, and again of those that use
// one that did, until none does.
func (a *arena) settle(wanted []bool, changes func(id) bool) {
	offsets, users := a.users(wanted)
	var queue []id
	try := func(n id) {
		if changes(n) {
			queue = append(queue, n)
		}
	}
	for n := range a.nodes {
		if wanted[n] {
			try(id(n))
		}
	}
	for len(queue) > 0 {
		n := queue[len(queue)-1]
		queue = queue[:len(queue)-1]
		for _, u := range users[offsets[n]:offsets[n+1]] {
			try(u)
		}
	}
}

// firstMarks are those of what each node's texts begin with.
func (a *arena) firstMarks(wanted, null []bool) []uint8 {
	marks := make([]uint8, len(a.nodes))
	if !a.repeats {
		return marks
	}
	a.settle(wanted, func(n id) bool {
		is := uint8(0)
		switch m := &a.nodes[n]; m.kind {
		case isSet:
			is = uint8(m.c)
		case isSeq:
			if is = marks[m.a]; null[m.a] {
				is |= marks[m.b]
			}
		case isRef:
			is = marks[a.rules[m.a].body]
		default:
			a.parts(n, func(x id) { is |= marks[x] })
		}
		if is == marks[n] {
			return false
		}
		marks[n] = is
		return true
	})
	return marks
}

// heights is how many rules within each other each node needs to get to an end;
// never if it has no text. A breadth-first search, a reference being one step.
func (a *arena) heights(wanted []bool) []int32 {
	offsets, users := a.users(wanted)
	height := make([]int32, len(a.nodes))
	missing := make([]int32, len(a.nodes)) // parts of a sequence that are not known
	for i := range height {
		height[i] = never
		if a.nodes[i].kind == isSeq {
			missing[i] = 2
		}
	}
	var now, next []id
	level := int32(0)
	know := func(n id) {
		if height[n] == never {
			height[n] = level
			now = append(now, n)
		}
	}
	for n := range a.nodes {
		if !wanted[n] {
			continue
		}
		switch m := &a.nodes[n]; m.kind {
		case isEmpty, isSet, isState, isSpecial:
			know(id(n))
		case isRep:
			if m.b == 0 {
				know(id(n))
			}
		}
	}
	for len(now) > 0 {
		for len(now) > 0 {
			n := now[len(now)-1]
			now = now[:len(now)-1]
			for _, u := range users[offsets[n]:offsets[n+1]] {
				switch a.nodes[u].kind {
				case isSeq:
					if missing[u]--; missing[u] == 0 {
						know(u)
					}
				case isRef:
					next = append(next, u)
				default:
					know(u)
				}
			}
		}
		level++
		for _, n := range next {
			know(n)
		}
		next = next[:0]
	}
	return height
}

// leftRecursive finds a rule whose derivative would need itself.
func (a *arena) leftRecursive() (rule int32, found bool) {
	const (
		unseen = iota
		open
		done
	)
	color := make([]uint8, len(a.nodes))
	type visit struct {
		n    id
		left []id
	}
	var stack []visit
	push := func(n id) {
		color[n] = open
		v := visit{n: n}
		switch m := &a.nodes[n]; m.kind {
		case isSeq:
			v.left = append(v.left, m.a)
			if a.nodes[m.a].null {
				v.left = append(v.left, m.b)
			}
		case isRef:
			v.left = append(v.left, a.rules[m.a].body)
		default:
			a.parts(n, func(x id) { v.left = append(v.left, x) })
		}
		stack = append(stack, v)
	}
	for n := range a.nodes {
		if color[n] != unseen {
			continue
		}
		push(id(n))
		for len(stack) > 0 {
			v := &stack[len(stack)-1]
			if len(v.left) == 0 {
				color[v.n] = done
				stack = stack[:len(stack)-1]
				continue
			}
			x := v.left[0]
			v.left = v.left[1:]
			switch color[x] {
			case unseen:
				push(x)
			case open:
				for _, v := range stack {
					if m := a.nodes[v.n]; m.kind == isRef {
						return m.a, true
					}
				}
				return 0, true
			}
		}
	}
	return 0, false
}
