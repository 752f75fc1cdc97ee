package pattern

import (
	"encoding/binary"
	"fmt"
)

// op is what an instruction does.
type op uint8

const (
	opMatch    op = iota // the expression, or a look around, has matched
	opSet                // one character of set
	opSplit              // try next, else at x; with lazy, the other way round
	opTry                // like opSplit, but at x at once unless the next character is in set
	opJump               // go on at x
	opLoop               // min to max characters of set; only in the quick program
	opLook               // what stands at next must match here (or not), then go on at x
	opPosition           // a place in the text
)

type instruction struct {
	op       op
	greed    greed
	negative bool
	where    position
	x        int
	min, max int // of opLoop; of opLook min is how many characters to go back
	set      *set
	memo     int // of an opSplit, opTry or opLook: its number among them
}

// program is a compiled expression.
type program struct {
	code  []instruction
	memos int
}

// maxCode bounds what {n} of {n} becomes.
const maxCode = 1 << 12

type compiler struct {
	program
	sets  map[string]*set
	quick bool // loops over one set are one instruction
}

func compile(n *node, quick bool, sets map[string]*set) (*program, error) {
	c := &compiler{quick: quick, sets: sets}
	if err := c.node(n); err != nil {
		return nil, err
	}
	c.add(instruction{op: opMatch})
	return &c.program, nil
}

func (c *compiler) add(i instruction) int {
	if i.op == opSplit || i.op == opTry || i.op == opLook {
		i.memo = c.memos
		c.memos++
	}
	c.code = append(c.code, i)
	return len(c.code) - 1
}

func (c *compiler) set(s spans) *set {
	var key []byte
	for _, r := range s {
		key = binary.AppendUvarint(binary.AppendUvarint(key, uint64(r.lo)), uint64(r.hi))
	}
	if c.sets[string(key)] == nil {
		c.sets[string(key)] = newSet(s)
	}
	return c.sets[string(key)]
}

// setOf is the one of a node that is a set.
func (c *compiler) setOf(n *node) *set {
	if n.compiled == nil {
		n.compiled = c.set(n.set)
	}
	return n.compiled
}

func (c *compiler) node(n *node) error {
	if len(c.code) > maxCode {
		return fmt.Errorf("%w: it repeats more than is understood", ErrUnsupported)
	}
	switch n.kind {
	case isSequence:
		for _, sub := range n.subs {
			if err := c.node(sub); err != nil {
				return err
			}
		}
	case isSet:
		c.add(instruction{op: opSet, set: c.setOf(n)})
	case isPosition:
		c.add(instruction{op: opPosition, where: n.where})
	case isChoice:
		return c.choice(n.subs)
	case isRepeat:
		return c.repeat(n)
	case isLook:
		if n.behind {
			return c.behind(n)
		}
		return c.look(n.subs[0], n.negative, 0)
	}
	return nil
}

// split is a branch to what n starts with.
func (c *compiler) split(n *node, greed greed) int {
	if first := n.first(); !first.empty && greed == greedy && len(first.set) > 0 {
		if first.compiled == nil {
			first.compiled = c.set(first.set)
		}
		return c.add(instruction{op: opTry, set: first.compiled})
	}
	return c.add(instruction{op: opSplit, greed: greed})
}

func (c *compiler) choice(subs []*node) error {
	var ends []int
	for i, sub := range subs {
		last := i == len(subs)-1
		at := 0
		if !last {
			at = c.split(sub, greedy)
		}
		if err := c.node(sub); err != nil {
			return err
		}
		if !last {
			ends = append(ends, c.add(instruction{op: opJump}))
			c.code[at].x = len(c.code)
		}
	}
	for _, at := range ends {
		c.code[at].x = len(c.code)
	}
	return nil
}

func (c *compiler) repeat(n *node) error {
	sub := n.subs[0]
	if sub.kind == isSet && (c.quick && n.greed != lazy || n.greed == possessive) {
		c.add(instruction{op: opLoop, set: c.setOf(sub), min: n.min, max: n.max, greed: n.greed})
		return nil
	}
	for range n.min {
		if err := c.node(sub); err != nil {
			return err
		}
	}
	if n.max < 0 {
		if sub.first().empty { // it could go round without end
			return fmt.Errorf("%w: a repetition without end of what may be nothing", ErrUnsupported)
		}
		at := c.split(sub, n.greed)
		if err := c.node(sub); err != nil {
			return err
		}
		c.add(instruction{op: opJump, x: at})
		c.code[at].x = len(c.code)
		return nil
	}
	var ends []int
	for range n.max - n.min {
		ends = append(ends, c.split(sub, n.greed))
		if err := c.node(sub); err != nil {
			return err
		}
	}
	for _, at := range ends {
		c.code[at].x = len(c.code)
	}
	return nil
}

func (c *compiler) look(n *node, negative bool, back int) error {
	at := c.add(instruction{op: opLook, negative: negative, min: back})
	if err := c.node(n); err != nil {
		return err
	}
	c.add(instruction{op: opMatch})
	c.code[at].x = len(c.code)
	return nil
}

// behind looks back by as many characters as each choice has.
func (c *compiler) behind(n *node) error {
	choices := []*node{n.subs[0]}
	if n.subs[0].kind == isChoice {
		choices = n.subs[0].subs
	}
	if n.negative { // none of them
		for _, sub := range choices {
			back, ok := sub.length()
			if !ok {
				return fmt.Errorf("%w: (?<!…) of more than one length", ErrUnsupported)
			}
			if err := c.look(sub, true, back); err != nil {
				return err
			}
		}
		return nil
	}
	var ends []int
	for i, sub := range choices {
		back, ok := sub.length()
		if !ok {
			return fmt.Errorf("%w: (?<=…) of more than one length", ErrUnsupported)
		}
		at := -1
		if i < len(choices)-1 {
			at = c.add(instruction{op: opSplit})
		}
		if err := c.look(sub, false, back); err != nil {
			return err
		}
		if at >= 0 {
			ends = append(ends, c.add(instruction{op: opJump}))
			c.code[at].x = len(c.code)
		}
	}
	for _, at := range ends {
		c.code[at].x = len(c.code)
	}
	return nil
}

// length is how many characters n takes, if that is the same always.
func (n *node) length() (int, bool) {
	switch n.kind {
	case isSet:
		return 1, true
	case isSequence:
		sum := 0
		for _, sub := range n.subs {
			k, ok := sub.length()
			if !ok {
				return 0, false
			}
			sum += k
		}
		return sum, true
	case isChoice:
		first, ok := n.subs[0].length()
		for _, sub := range n.subs[1:] {
			k, same := sub.length()
			ok = ok && same && k == first
		}
		return first, ok
	case isRepeat:
		k, ok := n.subs[0].length()
		return k * n.min, ok && n.min == n.max
	}
	return 0, true
}

// first is what n may start with, or more.
func (n *node) first() *start {
	if n.starts != nil {
		return n.starts
	}
	s := &start{empty: true}
	switch n.kind {
	case isSet:
		s = &start{set: n.set}
	case isSequence:
		for _, sub := range n.subs {
			f := sub.first()
			if s.set = union(s.set, f.set); !f.empty {
				s.empty = false
				break
			}
		}
	case isChoice:
		s.empty = false
		for _, sub := range n.subs {
			f := sub.first()
			s.set, s.empty = union(s.set, f.set), s.empty || f.empty
		}
	case isRepeat:
		f := n.subs[0].first()
		s = &start{set: f.set, empty: f.empty || n.min == 0}
	}
	n.starts = s
	return s
}
