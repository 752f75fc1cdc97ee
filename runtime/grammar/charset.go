package grammar

import (
	"cmp"
	"slices"
	"sync"
	"unicode"
	"unicode/utf8"
)

// span is a range of code points or bytes, both ends included.
type span struct{ lo, hi rune }

// set is sorted spans that neither touch nor overlap. Sets of characters never
// hold surrogates, which no text has.
type set []span

// everything is all characters.
var everything = set{{0, 0xd7ff}, {0xe000, unicode.MaxRune}}

// normal sorts and joins spans.
func normal(spans []span) set {
	slices.SortFunc(spans, func(a, b span) int { return cmp.Or(cmp.Compare(a.lo, b.lo), cmp.Compare(a.hi, b.hi)) })
	var out set
	for _, s := range spans {
		if s.lo > s.hi {
			continue
		}
		if n := len(out); n > 0 && s.lo <= out[n-1].hi+1 {
			out[n-1].hi = max(out[n-1].hi, s.hi)
		} else {
			out = append(out, s)
		}
	}
	return out
}

// chars is the characters among spans.
func chars(spans ...span) set { return normal(slices.Clone(spans)).and(everything) }

func (s set) has(r rune) bool {
	_, found := slices.BinarySearchFunc(s, r, func(x span, r rune) int {
		switch {
		case x.hi < r:
			return -1
		case x.lo > r:
			return 1
		}
		return 0
	})
	return found
}

func (s set) or(t set) set { return normal(append(slices.Clone(s), t...)) }

func (s set) and(t set) set {
	var out set
	for i, j := 0, 0; i < len(s) && j < len(t); {
		if lo, hi := max(s[i].lo, t[j].lo), min(s[i].hi, t[j].hi); lo <= hi {
			out = append(out, span{lo, hi})
		}
		if s[i].hi < t[j].hi {
			i++
		} else {
			j++
		}
	}
	return out
}

// not is the other characters.
func (s set) not() set {
	var out set
	from := rune(0)
	for _, x := range s {
		if x.lo > from {
			out = append(out, span{from, x.lo - 1})
		}
		from = x.hi + 1
	}
	if from <= unicode.MaxRune {
		out = append(out, span{from, unicode.MaxRune})
	}
	return out.and(everything)
}

func (s set) key() string {
	b := make([]byte, 0, 8*len(s))
	for _, x := range s {
		b = append(b, byte(x.lo), byte(x.lo>>8), byte(x.lo>>16), byte(x.hi), byte(x.hi>>8), byte(x.hi>>16))
	}
	return string(b)
}

// folds are the pairs of characters that differ only in case, by their first.
var folds = sync.OnceValue(func() (pairs [][2]rune) {
	for r := range rune(0x1e944) { // beyond it nothing has case
		for f := unicode.SimpleFold(r); f != r; f = unicode.SimpleFold(f) {
			pairs = append(pairs, [2]rune{r, f})
		}
	}
	return pairs
})

// folded adds what differs from the set's characters only in case.
func (s set) folded() set {
	if len(s) == 0 {
		return s
	}
	spans := slices.Clone(s)
	first, _ := slices.BinarySearchFunc(folds(), s[0].lo, func(p [2]rune, r rune) int { return cmp.Compare(p[0], r) })
	for _, p := range folds()[first:] {
		if p[0] > s[len(s)-1].hi {
			break
		}
		if s.has(p[0]) && !s.has(p[1]) {
			spans = append(spans, span{p[1], p[1]})
		}
	}
	return normal(spans)
}

func fromTable(tables ...*unicode.RangeTable) set {
	var spans []span
	add := func(lo, hi, stride rune) {
		if stride == 1 {
			spans = append(spans, span{lo, hi})
			return
		}
		for x := lo; x <= hi; x += stride {
			spans = append(spans, span{x, x})
		}
	}
	for _, t := range tables {
		for _, r := range t.R16 {
			add(rune(r.Lo), rune(r.Hi), rune(r.Stride))
		}
		for _, r := range t.R32 {
			add(rune(r.Lo), rune(r.Hi), rune(r.Stride))
		}
	}
	return normal(spans).and(everything)
}

// spelling is how a character is written.
type spelling int32

const (
	raw    spelling = iota // its UTF-8
	quoted                 // within a JSON string: UTF-8 or an escape that some encoder writes; \u for plain ASCII is not among them
	free                   // within a JSON string: UTF-8 or any escape
)

// plain are the characters that every encoder writes as they are.
var plain = chars(span{' ', '~'}).and(chars(span{'"', '"'}, span{'\\', '\\'}, span{'<', '<'}, span{'>', '>'}, span{'&', '&'}, span{'\'', '\''}).not())

// spell is a node for the bytes of one character of s.
func (a *arena) spell(s set, how spelling) id {
	if len(s) == 0 {
		return none
	}
	key := spelled{a.setID(s), how}
	if n, ok := a.spells[key]; ok {
		return n
	}
	n := a.spellNew(s, how)
	if a.spells == nil {
		a.spells = map[spelled]id{}
	}
	a.spells[key] = n
	return n
}

type spelled struct {
	set int32
	how spelling
}

func (a *arena) spellNew(s set, how spelling) id {
	if how == raw {
		return a.digits(utf8Digits(s))
	}
	bare := s.and(chars(span{0, 0x1f}, span{'"', '"'}, span{'\\', '\\'}).not())
	options := []id{a.digits(utf8Digits(bare))}
	var short []span
	for _, e := range []struct{ char, letter rune }{{'"', '"'}, {'\\', '\\'}, {'/', '/'}, {'\b', 'b'}, {'\f', 'f'}, {'\n', 'n'}, {'\r', 'r'}, {'\t', 't'}} {
		if s.has(e.char) {
			short = append(short, span{e.letter, e.letter})
		}
	}
	var after []id
	if len(short) > 0 {
		after = append(after, a.bytes(normal(short)))
	}
	long := s
	if how == quoted {
		long = s.and(plain.not())
	}
	if len(long) > 0 {
		after = append(after, a.seq(a.byte('u'), a.hex(long)))
	}
	options = append(options, a.seq(a.byte('\\'), a.or(after)))
	return a.or(options)
}

// hex is what follows \u for a character of s: four digits, or those of a pair of surrogates.
func (a *arena) hex(s set) id {
	var sequences [][]set
	for _, x := range s.and(set{{0, 0xffff}}) {
		sequences = append(sequences, split(x.lo, x.hi, 4, 16, hexDigit)...)
	}
	between := []set{{{'\\', '\\'}}, {{'u', 'u'}}}
	pair := func(hiLo, hiHi, loLo, loHi rune) {
		for _, h := range split(0xd800+hiLo, 0xd800+hiHi, 4, 16, hexDigit) {
			for _, l := range split(0xdc00+loLo, 0xdc00+loHi, 4, 16, hexDigit) {
				sequences = append(sequences, slices.Concat(h, between, l))
			}
		}
	}
	for _, x := range s.and(set{{0x10000, unicode.MaxRune}}) {
		lo, hi := x.lo-0x10000, x.hi-0x10000
		first, last := lo>>10, hi>>10
		if first == last {
			pair(first, last, lo&0x3ff, hi&0x3ff)
			continue
		}
		if lo&0x3ff != 0 {
			pair(first, first, lo&0x3ff, 0x3ff)
			first++
		}
		if hi&0x3ff != 0x3ff {
			pair(last, last, 0, hi&0x3ff)
			last--
		}
		if first <= last {
			pair(first, last, 0, 0x3ff)
		}
	}
	return a.digits(sequences)
}

func hexDigit(_ int, lo, hi rune) set {
	var spans []span
	for d := lo; d <= hi; d++ {
		if d < 10 {
			spans = append(spans, span{'0' + d, '0' + d})
		} else {
			spans = append(spans, span{'a' + d - 10, 'a' + d - 10}, span{'A' + d - 10, 'A' + d - 10})
		}
	}
	return normal(spans)
}

// utf8Digits are the byte sequences of the characters of s.
func utf8Digits(s set) [][]set {
	var sequences [][]set
	for _, x := range s {
		for from, n := rune(0), 1; n <= 4; n++ {
			to := [...]rune{0x7f, 0x7ff, 0xffff, utf8.MaxRune}[n-1]
			if lo, hi := max(x.lo, from), min(x.hi, to); lo <= hi {
				lead := [...]rune{0, 0xc0, 0xe0, 0xf0}[n-1]
				sequences = append(sequences, split(lo, hi, n, 64, func(place int, lo, hi rune) set {
					switch {
					case n == 1:
						return set{{lo, hi}}
					case place == 0:
						return set{{lead + lo, lead + hi}}
					}
					return set{{0x80 + lo, 0x80 + hi}}
				})...)
			}
			from = to + 1
		}
	}
	return sequences
}

// split writes the numbers lo to hi as sequences of n digits to a base, each
// digit a range; one digit may be as large as it likes.
func split(lo, hi rune, n int, base rune, digit func(place int, lo, hi rune) set) [][]set {
	var out [][]set
	var rec func(place int, lo, hi rune, before []set)
	rec = func(place int, lo, hi rune, before []set) {
		if place == n-1 {
			out = append(out, append(slices.Clip(before), digit(place, lo, hi)))
			return
		}
		unit := rune(1)
		for range n - 1 - place {
			unit *= base
		}
		first, last := lo/unit, hi/unit
		if first == last {
			rec(place+1, lo%unit, hi%unit, append(slices.Clip(before), digit(place, first, last)))
			return
		}
		if lo%unit != 0 {
			rec(place+1, lo%unit, unit-1, append(slices.Clip(before), digit(place, first, first)))
			first++
		}
		if hi%unit != unit-1 {
			defer rec(place+1, 0, hi%unit, append(slices.Clip(before), digit(place, last, last)))
			last--
		}
		if first <= last {
			rec(place+1, 0, unit-1, append(slices.Clip(before), digit(place, first, last)))
		}
	}
	rec(0, lo, hi, nil)
	return out
}

// digits is a node for any of the sequences of bytes; those that go on alike share it.
func (a *arena) digits(sequences [][]set) id {
	firsts := map[id][]span{} // what follows -> first bytes
	var order []id
	for _, s := range sequences {
		rest := empty
		for _, x := range slices.Backward(s[1:]) {
			rest = a.seq(a.bytes(x), rest)
		}
		if _, ok := firsts[rest]; !ok {
			order = append(order, rest)
		}
		firsts[rest] = append(firsts[rest], s[0]...)
	}
	var options []id
	for _, rest := range order {
		options = append(options, a.seq(a.bytes(normal(firsts[rest])), rest))
	}
	return a.or(options)
}

// partition divides symbols into classes that no set tells apart.
type partition struct {
	starts []rune  // of intervals, from 0
	class  []int32 // of each interval
	reps   []rune  // a symbol of each class
}

func newPartition(sets []set) partition {
	starts := []rune{0}
	for _, s := range sets {
		for _, x := range s {
			starts = append(starts, x.lo, x.hi+1)
		}
	}
	slices.Sort(starts)
	p := partition{starts: slices.Compact(starts)}
	p.class = make([]int32, len(p.starts))
	last := int32(0)
	for _, s := range sets {
		renamed := map[int32]int32{}
		for _, x := range s {
			i, _ := slices.BinarySearch(p.starts, x.lo)
			for ; i < len(p.starts) && p.starts[i] <= x.hi; i++ {
				to, ok := renamed[p.class[i]]
				if !ok {
					last++
					to = last
					renamed[p.class[i]] = to
				}
				p.class[i] = to
			}
		}
	}
	number := map[int32]int32{}
	for i, c := range p.class {
		n, ok := number[c]
		if !ok {
			n = int32(len(p.reps))
			number[c] = n
			p.reps = append(p.reps, p.starts[i])
		}
		p.class[i] = n
	}
	return p
}

// of is the class of a symbol.
func (p partition) of(r rune) int {
	i, found := slices.BinarySearch(p.starts, r)
	if !found {
		i--
	}
	return int(p.class[i])
}
