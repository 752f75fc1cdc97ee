package grammar

import (
	"slices"
	"sort"
	"unicode/utf16"
	"unicode/utf8"
)

// No object has a key twice. States do not know which keys came: they would be
// too many. So each text keeps the keys of its open objects, which the marks of
// its bytes tell (node.go), and takes from a state's mask the tokens that would
// repeat one, or after which a key can only become one that is there already.
// A grammar asks for no more keys than there are (see compiler.objects), so that
// some other key is always left to begin.

// spot is where a text stands among the keys of its objects. It does not
// change, but what follows it writes behind its key: one at a time.
type spot struct {
	object *object // the innermost that is open
	within bool    // a key
	key    []byte  // its beginning, as UTF-8; empty outside
	from   int     // the object's keys[from:to] begin like it
	to     int
	escape uint8 // bytes of an escape that came: of \uxxxx, and of that with another half
	unit   uint16
	high   uint16 // the first half
}

// object is an open one.
type object struct {
	around *object
	keys   []string // sorted
}

// known says that the key is one that the object has.
func (s *spot) known() bool { return s.from < s.to && len(s.object.keys[s.from]) == len(s.key) }

// ends says that a byte ends the key.
func (s *spot) ends(b byte, marks uint8) bool {
	return b == '"' && s.within && s.escape == 0 && marks&afterKey != 0
}

// step is after a byte that may be what marks say; false if it ends a key that the object has.
func (s spot) step(b byte, marks uint8) (spot, bool) {
	switch {
	case s.within:
		if !s.ends(b, marks) {
			s.take(b)
			return s, true
		}
		if s.known() {
			return s, false
		}
		keys := s.object.keys
		at, _ := slices.BinarySearch(keys, string(s.key))
		return spot{object: &object{s.object.around, slices.Insert(slices.Clip(keys), at, string(s.key))}, key: s.key[len(s.key):]}, true
	case b == '{' && marks&opening != 0:
		s.object = &object{around: s.object}
	case b == '}' && marks&closing != 0 && s.object != nil:
		s.object = s.object.around
	case b == '"' && marks&beforeKey != 0 && s.object != nil:
		s.within, s.from, s.to = true, 0, len(s.object.keys)
	}
	return s, true
}

// take adds a byte of a key as it is written.
func (s *spot) take(b byte) {
	switch s.escape {
	case 0:
		if b != '\\' {
			s.add(b)
			return
		}
		s.escape = 1
	case 1:
		if b == 'u' {
			s.escape = 2
			return
		}
		switch b {
		case 'b':
			b = '\b'
		case 'f':
			b = '\f'
		case 'n':
			b = '\n'
		case 'r':
			b = '\r'
		case 't':
			b = '\t'
		}
		s.add(b)
		s.escape = 0
	case 6: // the \ of the second half
		s.escape = 1
	default:
		digit := b - '0'
		if b > '9' {
			digit = (b | 0x20 - 'a') + 10
		}
		s.unit = s.unit<<4 | uint16(digit)
		if s.escape++; s.escape < 6 {
			return
		}
		r := rune(s.unit)
		if s.high != 0 {
			r = utf16.DecodeRune(rune(s.high), r)
		} else if utf16.IsSurrogate(r) {
			s.high, s.unit = s.unit, 0
			return
		}
		var text [utf8.UTFMax]byte
		for _, b := range text[:utf8.EncodeRune(text[:], r)] {
			s.add(b)
		}
		s.escape, s.unit, s.high = 0, 0, 0
	}
}

// add a byte of the key as UTF-8.
func (s *spot) add(b byte) {
	n := len(s.key)
	s.key = append(s.key, b)
	if s.from == s.to {
		return
	}
	alike := s.object.keys[s.from:s.to]
	first := sort.Search(len(alike), func(i int) bool { return len(alike[i]) > n && alike[i][n] >= b })
	after := sort.Search(len(alike), func(i int) bool { return len(alike[i]) > n && alike[i][n] > b })
	s.from, s.to = s.from+first, s.from+after
}

// keys is a search of one state's tokens for those that would repeat a key.
type keys struct {
	*machine
	mask []uint64
	own  []uint64 // where mask is copied before it is changed
	dead map[deadEnd]bool
}

// deadEnd is all on which it depends how a key may go on.
type deadEnd struct {
	object       *object
	state        id
	from, to     int
	length       int
	escape       uint8
	unit, higher uint16
}

// distinct is the mask without the tokens that would repeat a key.
func (m *Matcher) distinct(mask []uint64) []uint64 {
	m.on.begin()
	k := &keys{machine: m.on, mask: mask, own: m.own}
	at := m.at
	at.key = append(m.text[:0], at.key...)
	if at.within && at.from < at.to {
		k.within(0, m.state, at)
	} else {
		for _, node := range m.on.begins(m.on.clip(m.state)) {
			if state, at := k.reach(node, m.state, at); at.from < at.to || k.v.quotes[node] == 2 {
				k.within(node, state, at)
			}
		}
	}
	m.text, m.own = at.key, k.own
	return k.mask
}

// begins are the nodes of the trie at which a state's tokens begin their first key, remembered.
func (m *machine) begins(state id) []int32 {
	if nodes, ok := m.starts[state]; ok {
		return nodes
	}
	var nodes []int32
	v, stack := m.v, m.stack
	stack[0] = state
	for i, end := int32(1), v.after[0]; i < end; {
		quote := v.quoteBefore(i)
		if v.quotes[i] == 0 && !quote {
			i = v.after[i]
			continue
		}
		d := v.depth[i]
		from := stack[d-1]
		to := m.derive(from, int(m.class[v.char[i]]))
		switch {
		case m.spent:
			return nil
		case to == none:
			i = v.after[i]
			continue
		case quote && m.nodes[from].marks&beforeKey != 0:
			nodes = append(nodes, i)
			i = v.after[i]
			continue
		}
		stack[d] = to
		i++
	}
	if len(m.starts) >= 16*maxMasks {
		clear(m.starts)
	}
	m.starts[state] = nodes
	return nodes
}

// reach is a state and a spot after the text of a node.
func (k *keys) reach(node int32, state id, at spot) (id, spot) {
	if node == 0 {
		return state, at
	}
	state, at = k.reach(k.v.parent[node], state, at)
	b := k.v.char[node]
	at, _ = at.step(b, k.nodes[state].marks)
	return k.derive(state, int(k.class[b])), at
}

// within searches below a node at which the text is within a key.
func (k *keys) within(node int32, state id, at spot) {
	v, marks := k.v, k.nodes[state].marks
	follow := at.follow()
	for i := node + 1; i < v.after[node] && !k.spent; i = v.after[i] {
		b := v.char[i]
		// Only what goes on like a key that is there is looked at, and where another key may begin behind this one.
		if v.quotes[i] < 2 && follow[b>>6]>>(b&63)&1 == 0 && !(v.quotes[i] == 1 && at.ends(b, marks)) {
			continue
		}
		to := k.derive(state, int(k.class[b]))
		if to == none {
			continue
		}
		next, ok := at.step(b, marks)
		switch {
		case !ok || next.within && !k.open(to, next):
			k.clear(i)
		case next.within:
			k.within(i, to, next)
		case v.quotes[i] > 0:
			k.beyond(i, to, next)
		}
	}
}

// follow is the bytes with which a key may still be one that the object has.
func (s *spot) follow() (bits [4]uint64) {
	if s.from == s.to {
		return bits
	}
	if s.escape > 0 {
		return [4]uint64{^uint64(0), ^uint64(0), ^uint64(0), ^uint64(0)}
	}
	set := func(b byte) { bits[b>>6] |= 1 << (b & 63) }
	set('\\')
	n := len(s.key)
	for i := s.from; i < s.to; {
		if key := s.object.keys[i]; len(key) == n {
			set('"')
			i++
		} else {
			b := key[n]
			set(b)
			i += sort.Search(s.to-i, func(j int) bool { return s.object.keys[i+j][n] > b })
		}
	}
	return bits
}

// beyond searches below a node at which the text is in no key.
func (k *keys) beyond(node int32, state id, at spot) {
	v, marks := k.v, k.nodes[state].marks
	for i := node + 1; i < v.after[node] && !k.spent; i = v.after[i] {
		if v.quotes[i] == 0 && !v.quoteBefore(i) {
			continue
		}
		to := k.derive(state, int(k.class[v.char[i]]))
		if to == none {
			continue
		}
		if next, _ := at.step(v.char[i], marks); next.within {
			k.within(i, to, next)
		} else {
			k.beyond(i, to, next)
		}
	}
}

func (k *keys) clear(node int32) {
	if len(k.own) == 0 || &k.mask[0] != &k.own[0] {
		k.own = append(k.own[:0], k.mask...)
		k.mask = k.own
	}
	k.v.unmark(k.mask, node)
}

// open says that the key may become one that the object does not have.
func (k *keys) open(state id, at spot) bool {
	if at.from == at.to {
		return true
	}
	here := deadEnd{at.object, state, at.from, at.to, len(at.key), at.escape, at.unit, at.high}
	if k.dead[here] {
		return false
	}
	marks := k.nodes[state].marks
	for _, farther := range []bool{false, true} { // first what is plain to see
		for class, letters := range k.letters {
			if len(letters) == 0 {
				continue
			}
			to := k.derive(state, class)
			if to == none {
				continue
			}
			for _, b := range letters {
				if !k.v.whole && !k.v.single[b] {
					continue
				}
				if at.ends(b, marks) {
					if !at.known() {
						return true
					}
					continue
				}
				if next, _ := at.step(b, marks); next.from == next.to || farther && k.open(to, next) {
					return true
				}
			}
		}
	}
	if k.dead == nil {
		k.dead = map[deadEnd]bool{}
	}
	k.dead[here] = true
	return false
}
