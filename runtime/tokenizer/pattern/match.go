// Package pattern finds the parts of a text that match a regular expression, as
// tokenizers split texts: in Oniguruma's syntax, with look-ahead, and in time
// that grows with the text's length and the expression's, whatever both are.
// Start with Compile and Pattern.Find.
//
// A quick program tries choices in order and goes back where one fails. Where that
// takes long, a second program goes on, which remembers from where it has failed:
// since nothing that was matched is asked for later, it never needs to try that again.
// Source: Oniguruma's doc/RE; Go's regexp/backtrack.go for remembering.
package pattern

import (
	"errors"
	"fmt"
	"unicode/utf8"
)

var (
	// ErrInvalid: it is no regular expression.
	ErrInvalid = errors.New("invalid expression")
	// ErrUnsupported: it may be one, but would be applied wrongly here.
	ErrUnsupported = errors.New("unsupported expression")
)

// Pattern does not change once made; any number of goroutines may use it.
type Pattern struct{ quick, sure *program }

// Compile reads an expression in Oniguruma's syntax. Captures, back references,
// atomic groups and the like are ErrUnsupported.
func Compile(expression string) (*Pattern, error) {
	n, err := parse(expression)
	if err != nil {
		return nil, fmt.Errorf("expression %.200q: %w", expression, err)
	}
	sets := map[string]*set{}
	p := &Pattern{}
	if p.quick, err = compile(n, true, sets); err == nil {
		p.sure, err = compile(n, false, sets)
	}
	if err != nil {
		return nil, fmt.Errorf("expression %.200q: %w", expression, err)
	}
	return p, nil
}

// Matches goes through the matches in one text, from left to right.
type Matches struct {
	p     *Pattern
	text  string
	at    int // where to look next
	last  int // end of the last match
	steps int // left before the quick program gives up
	stack []frame
	memory
}

// Find looks for the pattern in a text of valid UTF-8.
func (p *Pattern) Find(text string) Matches {
	return Matches{p: p, text: text, last: -1, steps: 64*len(text) + 1<<12}
}

// Next gives the bytes of the next match: the leftmost one after the last, the first
// choices preferred. Matches of nothing count, except where the last one ended.
func (m *Matches) Next() (start, end int, ok bool) {
	for m.at <= len(m.text) {
		start, end, ok := m.search(m.at)
		if !ok {
			m.at = len(m.text) + 1
			break
		}
		if start == end && end == m.last {
			m.at += max(1, m.width(m.at))
			continue
		}
		m.at, m.last = end, end
		return start, end, true
	}
	return 0, 0, false
}

func (m *Matches) width(at int) int {
	_, n := utf8.DecodeRuneInString(m.text[at:])
	return n
}

func (m *Matches) search(from int) (start, end int, ok bool) {
	for start = from; start <= len(m.text); start += max(1, m.width(start)) {
		end, ok := 0, false
		if m.steps > 0 {
			end, ok = m.run(m.p.quick, 0, start, false)
		}
		if m.steps <= 0 {
			end, ok = m.run(m.p.sure, 0, start, true)
			m.settle(m.p.sure, 0, unknown)
		}
		if ok {
			return start, end, true
		}
	}
	return 0, 0, false
}

// frame is where to go on if what is tried fails.
type frame struct {
	pc, pos int
	low     int // of a loop that may take less: down to here; otherwise -1
	trail   int // how long the trail was
}

// run tries the code from pc at pos. With sure, places are remembered.
func (m *Matches) run(code *program, pc, pos int, sure bool) (end int, ok bool) {
	base, trail := len(m.stack), len(m.trail)
	for {
		i := &code.code[pc]
		fail := false
		if m.steps--; m.steps <= 0 && !sure {
			m.stack = m.stack[:base]
			return 0, false
		}
		if sure && (i.op == opSplit || i.op == opTry || i.op == opLook) {
			switch m.recall(code, i.memo, pos) {
			case failed:
				fail = true
			case matched: // only kept of what a look around tried
				m.stack = m.stack[:base]
				return pos, true
			case unknown:
				m.trail = append(m.trail, place{i.memo, pos})
			}
		}
		if !fail {
			switch i.op {
			case opMatch:
				m.stack = m.stack[:base]
				return pos, true
			case opSet:
				if r, n := m.next(pos); n > 0 && i.set.has(r) {
					pos, pc = pos+n, pc+1
				} else {
					fail = true
				}
			case opTry:
				if r, n := m.next(pos); n == 0 || !i.set.has(r) {
					pc = i.x
					break
				}
				m.stack = append(m.stack, frame{i.x, pos, -1, len(m.trail)})
				pc++
			case opSplit:
				first, other := pc+1, i.x
				if i.greed == lazy {
					first, other = other, first
				}
				m.stack = append(m.stack, frame{other, pos, -1, len(m.trail)})
				pc = first
			case opJump:
				pc = i.x
			case opLoop:
				if sure {
					pos, fail = m.wholeRun(i, pc, pos)
				} else {
					pos, fail = m.loop(code, pc, pos)
				}
				pc++
			case opPosition:
				fail = !m.stands(i.where, pos)
				pc++
			case opLook:
				if m.look(code, pc, pos, sure) == i.negative {
					fail = true
				}
				pc = i.x
			}
		}
		if !fail {
			continue
		}
		if len(m.stack) == base {
			m.trail = m.trail[:trail]
			return 0, false
		}
		f := &m.stack[len(m.stack)-1]
		m.trail = m.trail[:f.trail] // what came after it has failed, which stays remembered
		pc = f.pc
		if f.low >= 0 {
			_, n := utf8.DecodeLastRuneInString(m.text[:f.pos])
			f.pos -= n
		}
		if pos = f.pos; pos <= f.low || f.low < 0 {
			m.stack = m.stack[:len(m.stack)-1]
		}
	}
}

func (m *Matches) next(pos int) (rune, int) {
	if pos < len(m.text) && m.text[pos] < utf8.RuneSelf {
		return rune(m.text[pos]), 1
	}
	if pos == len(m.text) {
		return 0, 0
	}
	return utf8.DecodeRuneInString(m.text[pos:])
}

// loop takes as many characters as it can, and leaves on the stack that it may take less.
func (m *Matches) loop(code *program, pc, pos int) (end int, fail bool) {
	i := &code.code[pc]
	low, n := pos, 0
	for ; i.max < 0 || n < i.max; n++ {
		if n == i.min {
			low = pos
		}
		r, w := m.next(pos)
		if w == 0 || !i.set.has(r) {
			break
		}
		pos += w
	}
	m.steps -= n / 8
	if n < i.min {
		return pos, true
	}
	if n > i.min && i.greed == greedy && code.code[pc+1].op != opMatch {
		m.stack = append(m.stack, frame{pc + 1, pos, low, len(m.trail)})
	}
	return pos, false
}

// wholeRun takes as many characters as it can, and no fewer. Where it has been
// within this run before, it knows the end.
func (m *Matches) wholeRun(i *instruction, pc, pos int) (end int, fail bool) {
	run, known := m.runs[pc]
	n := 0
	if known && i.max < 0 && run[0] <= pos && pos+4*i.min <= run[1] {
		return run[1], false
	}
	for end = pos; i.max < 0 || n < i.max; n++ {
		r, w := m.next(end)
		if w == 0 || !i.set.has(r) {
			break
		}
		end += w
	}
	if i.max < 0 {
		if m.runs == nil {
			m.runs = map[int][2]int{}
		}
		m.runs[pc] = [2]int{pos, end}
	}
	return end, n < i.min
}

// look says whether what stands after pc matches at pos or, looking behind, before it.
func (m *Matches) look(code *program, pc, pos int, sure bool) bool {
	i := &code.code[pc]
	for range i.min {
		_, n := utf8.DecodeLastRuneInString(m.text[:pos])
		if n == 0 {
			return false
		}
		pos -= n
	}
	trail := len(m.trail)
	_, ok := m.run(code, pc+1, pos, sure)
	if sure && ok {
		m.settle(code, trail, matched)
	}
	return ok
}

func (m *Matches) stands(where position, pos int) bool {
	before, after := m.text[:pos], m.text[pos:]
	switch where {
	case textStart:
		return before == ""
	case textEnd:
		return after == ""
	case lastLineEnd:
		return after == "" || after == "\n"
	case lineStart:
		return before == "" || before[len(before)-1] == '\n' && after != ""
	case lineEnd:
		return after == "" || after[0] == '\n'
	}
	l, ln := utf8.DecodeLastRuneInString(before)
	r, rn := utf8.DecodeRuneInString(after)
	border := (ln > 0 && slashW.has(l)) != (rn > 0 && slashW.has(r))
	return border == (where == wordBorder)
}

// memory keeps, of the sure program, which choices at which places have failed and
// which, tried by a look around, have matched.
type memory struct {
	pages []*page        // by position / pageSize
	trail []place        // tried and not failed yet
	runs  map[int][2]int // instruction -> the run of its set that was taken last
}

// pageSize is in positions. Only what was looked at is kept.
const pageSize = 1 << 10

type page struct{ failed, matched []uint64 }

type place struct{ memo, pos int }

type outcome uint8

const (
	unknown outcome = iota
	failed
	matched
)

// recall says what is known of a place, and takes it to have failed from now on:
// it has when it is not settled otherwise, and coming back to it meanwhile is going round.
func (m *Matches) recall(code *program, memo, pos int) outcome {
	if m.pages == nil {
		m.pages = make([]*page, len(m.text)/pageSize+1)
	}
	p := m.pages[pos/pageSize]
	if p == nil {
		n := (code.memos*pageSize + 63) / 64
		p = &page{failed: make([]uint64, n), matched: make([]uint64, n)}
		m.pages[pos/pageSize] = p
	}
	bit := memo*pageSize + pos%pageSize
	switch {
	case p.matched[bit/64]>>(bit%64)&1 != 0:
		return matched
	case p.failed[bit/64]>>(bit%64)&1 != 0:
		return failed
	}
	p.failed[bit/64] |= 1 << (bit % 64)
	return unknown
}

// settle takes back that places on the trail failed, since they led to a match.
func (m *Matches) settle(code *program, from int, as outcome) {
	for _, t := range m.trail[from:] {
		p, bit := m.pages[t.pos/pageSize], t.memo*pageSize+t.pos%pageSize
		p.failed[bit/64] &^= 1 << (bit % 64)
		if as == matched {
			p.matched[bit/64] |= 1 << (bit % 64)
		}
	}
	m.trail = m.trail[:from]
}
