package toolcall

import (
	"encoding/json"
	"strings"
)

// Parser reads one answer. It holds back what may yet become a call: a marker's beginning, and a
// call until its name is known to be a tool's and its arguments have begun. From there on the
// arguments stream; an answer that breaks off leaves them as they are, and what cannot
// belong to them is content again.
type Parser struct {
	format Format
	tools  map[string]map[string]kinds // tool -> argument -> types
	random func() uint64

	text  []byte // not given out yet
	pos   int    // of the next byte to look at; text[start:mark] is white space
	start int    // of what is held
	mark  int    // of what may be a marker, or began a call
	state step

	calls     int    // begun
	running   bool   // a call has begun, and its arguments are not complete
	opened    bool   // within what certainly began a call: no text looks so
	after     bool   // nothing but white space since a call
	said      bool   // there was content
	beside    bool   // white space in front of the call is the text's, not the format's
	gap       []byte // white space around calls since the last content, which goes in front of the next
	reasoning bool   // content is reasoning now
	list      bool   // calls come as elements of a list

	name    string // of the call
	named   bool
	args    string // that came before the name
	given   bool   // args is set
	key     string
	from    int    // of the part that is being read
	literal string // that must come
	json    scanner
	then    func(p *Parser) step // after complete arguments

	ends   []string                               // of a part
	naming bool                                   // the part is a tool's name
	got    func(p *Parser, part, end string) step // once it has come

	tags    *tags
	first   bool // no argument yet
	allowed kinds
	value   []byte // of an argument that is not a string
	fresh   bool   // the value begins here

	out   []Delta
	piece []byte // goes into the last of out, or after it
	kind  kind   // of piece
}

type kind uint8

const (
	ofContent kind = iota
	ofReasoning
	ofArguments
)

// step looks at one byte and returns the step for the next; nil: this is not a call.
type step func(p *Parser, c byte) step

const (
	maxHeld = 32 << 10 // bytes of a call whose name or arguments have not begun
	maxPart = 512      // bytes of a name or a header
	maxGap  = 64       // bytes of white space after an argument
)

// Parser reads an answer of a model that was offered tools. Ids of calls are made of random's bits.
func (f Format) Parser(tools []Tool, random func() uint64) *Parser {
	p := &Parser{format: f, random: random, tools: map[string]map[string]kinds{}, state: (*Parser).content}
	for _, t := range tools {
		arguments := map[string]kinds{}
		for _, a := range properties(t.Parameters) {
			arguments[a.name] = a.kinds
		}
		p.tools[t.Name] = arguments
	}
	return p
}

// Calls is how many have begun.
func (p *Parser) Calls() int { return p.calls }

// Push takes further text, best whole characters, and returns what is certain now. The result is valid until
// the next call.
func (p *Parser) Push(text string) []Delta {
	p.out = p.out[:0]
	p.text = append(p.text, text...)
	p.run()
	p.settle()
	p.text = p.text[:copy(p.text, p.text[p.start:])]
	p.pos, p.mark, p.from, p.start = p.pos-p.start, p.mark-p.start, p.from-p.start, 0
	return p.out
}

// Flush ends an answer that came to its own end: what was held back is content after all.
func (p *Parser) Flush() []Delta { return p.flush(p.format.style == harmony) } // whose markers are never text

// Cut ends an answer that was cut off: what began a call, and had no name or arguments yet, is left out.
func (p *Parser) Cut() []Delta { return p.flush(true) }

func (p *Parser) flush(cut bool) []Delta {
	p.out = p.out[:0]
	for !p.running && p.start < len(p.text) {
		if cut && p.opened || p.after && p.closes(strings.TrimSpace(string(p.text[p.start:]))) {
			break
		}
		p.fail()
		p.run()
	}
	p.settle()
	p.text, p.start, p.pos, p.mark, p.from = p.text[:0], 0, 0, 0, 0
	return p.out
}

// closes says that s is the beginning of a marker that ends calls.
func (p *Parser) closes(s string) bool {
	for _, m := range markers[p.format.style] {
		if m.when == afterCall && strings.HasPrefix(m.text, s) {
			return true
		}
	}
	return false
}

func (p *Parser) run() {
	for p.pos < len(p.text) {
		next := p.state(p, p.text[p.pos])
		if next == nil || !p.running && p.pos-p.mark > maxHeld {
			p.fail()
			continue
		}
		p.state = next
		p.pos++
	}
}

// fail gives up on a call. Its first byte is content, the rest is looked at again; of one
// that has begun, what is still held is.
func (p *Parser) fail() {
	if !p.running {
		p.release(min(p.mark+1, len(p.text)))
	}
	p.running, p.list, p.opened = false, false, false
	p.pos, p.mark = p.start, p.start
	p.state = (*Parser).content
}

// release gives out what is held before end as content.
func (p *Parser) release(end int) {
	s := string(p.text[p.start:end])
	p.start = end
	if p.after {
		text := strings.TrimLeft(s, " \n\t\r")
		p.space(s[:len(s)-len(text)])
		s = text
	}
	if s == "" {
		return
	}
	s = string(p.gap) + s
	p.gap, p.after, p.said = p.gap[:0], false, true
	kind := ofContent
	if p.reasoning {
		kind = ofReasoning
	}
	p.give(kind, s)
}

// space keeps white space beside calls, in case more content comes.
func (p *Parser) space(s string) {
	if p.said && len(p.gap)+len(s) <= maxHeld {
		p.gap = append(p.gap, s...)
	}
}

// give collects what is of one kind.
func (p *Parser) give(k kind, s string) {
	if k != p.kind {
		p.settle()
		p.kind = k
	}
	p.piece = append(p.piece, s...)
}

// settle makes a delta of what has been collected.
func (p *Parser) settle() {
	s, n := string(p.piece), len(p.out)
	p.piece = p.piece[:0]
	switch {
	case s == "":
	case p.kind == ofContent:
		p.out = append(p.out, Delta{Content: s})
	case p.kind == ofReasoning:
		p.out = append(p.out, Delta{Reasoning: s})
	case n > 0 && p.out[n-1].Call(): // its name
		p.out[n-1].Arguments = s
	default:
		p.out = append(p.out, Delta{Index: p.calls - 1, Arguments: s})
	}
}

// begin gives out the name of a call. What was held is spent.
func (p *Parser) begin() {
	p.settle()
	if p.beside {
		p.space(string(p.text[p.start:p.mark]))
		p.beside = false
	}
	p.out = append(p.out, Delta{Index: p.calls, ID: p.format.id(p.random), Name: p.name})
	p.calls++
	p.running, p.after = true, false
}

// argue gives out a part of the arguments.
func (p *Parser) argue(s string) { p.give(ofArguments, s) }

// end is the step after a call's last byte.
func (p *Parser) end() step {
	p.running, p.after, p.opened = false, true, p.list
	p.start, p.mark = p.pos+1, p.pos+1
	if p.list {
		return (*Parser).nextElement
	}
	return (*Parser).content
}

// Between calls.

// when says where a marker is one.
type when uint8

const (
	anywhere  when = iota
	inFront        // before all content
	afterCall      // directly after a call
)

type marker struct {
	text string
	when when
	then step // nil: it is left out
}

// markers are those around calls.
var markers [styleCount][]marker

func init() { // steps refer to markers
	toolCall := []marker{
		{"<tool_call>", anywhere, (*Parser).body},
		{"<function=", anywhere, (*Parser).function},
		{"</tool_call>", afterCall, nil}, {"</function>", afterCall, nil},
	}
	markers = [styleCount][]marker{
		unknown: toolCall, hermes: toolCall, functions: toolCall, pairs: toolCall,
		jsonList: append([]marker{{"<|tool_call|>", anywhere, (*Parser).body}, {"<|/tool_call|>", afterCall, nil}}, toolCall...),
		pythonTag: {
			{"<|python_tag|>", anywhere, (*Parser).object},
			{"<function=", anywhere, (*Parser).function},
			{"{", inFront, (*Parser).nextKey},
			{";", afterCall, (*Parser).object}, {",", afterCall, (*Parser).object},
			{"</function>", afterCall, nil},
		},
		mistral: {{"[TOOL_CALLS]", anywhere, (*Parser).mistralBody}},
		deepseek: {
			{"<｜tool▁calls▁begin｜>", anywhere, (*Parser).deepseekFirst},
			{"<｜tool▁call▁begin｜>", anywhere, (*Parser).deepseekNext},
			{"<｜tool▁call▁end｜>", afterCall, nil}, {"<｜tool▁calls▁end｜>", afterCall, nil},
		},
		harmony: {
			{"<|start|>", anywhere, (*Parser).header}, {"<|channel|>", anywhere, (*Parser).header},
			{"to=", inFront, (*Parser).header},
			{"<|end|>", anywhere, nil}, {"<|return|>", anywhere, nil}, {"<|call|>", afterCall, nil},
		},
	}
}

// content is outside of calls: text[mark:pos] is a marker's beginning.
func (p *Parser) content(c byte) step {
	if p.mark == p.pos && isSpace(c) {
		p.mark++
		return (*Parser).content
	}
	held := string(p.text[p.mark : p.pos+1])
	for _, m := range markers[p.format.style] {
		if !strings.HasPrefix(m.text, held) || m.when == inFront && p.said || m.when == afterCall && !p.after {
			continue
		}
		if len(held) < len(m.text) {
			return (*Parser).content
		}
		if m.then != nil {
			p.reset()
			p.opened, p.beside = m.when != inFront, m.when == anywhere
			return m.then
		}
		if m.when == anywhere {
			p.release(p.mark)
		}
		p.reasoning = false
		p.start, p.mark = p.pos+1, p.pos+1
		return (*Parser).content
	}
	p.release(p.mark + 1)
	p.mark = p.start
	p.pos = p.start - 1 // a marker may begin in what was held
	return (*Parser).content
}

// reset forgets the call before. What comes next is at pos+1.
func (p *Parser) reset() {
	p.name, p.named, p.args, p.given, p.first = "", false, "", false, true
	p.from = p.pos + 1
}

func (p *Parser) known(name string) bool {
	_, ok := p.tools[name]
	return ok
}

// part reads what comes next up to one of ends; got is told what came before it.
func (p *Parser) part(got func(p *Parser, part, end string) step, ends ...string) step {
	p.got, p.ends, p.naming, p.from = got, ends, false, p.pos+1
	return (*Parser).until
}

// partName is part for the name of a tool: what cannot be one ends it early.
func (p *Parser) partName(got func(p *Parser, part, end string) step, ends ...string) step {
	p.got, p.ends, p.naming, p.from = got, ends, true, p.pos+1
	return (*Parser).until
}

func (p *Parser) until(byte) step {
	s := string(p.text[p.from : p.pos+1])
	for _, end := range p.ends {
		if part, ok := strings.CutSuffix(s, end); ok {
			return p.got(p, part, end)
		}
	}
	if len(s) > maxPart || p.naming && !p.mayName(strings.TrimLeft(s, " ")) {
		return nil
	}
	return (*Parser).until
}

// mayName says that s is the beginning of a tool's name, or goes on after one.
func (p *Parser) mayName(s string) bool {
	for name := range p.tools {
		if strings.HasPrefix(name, s) || strings.HasPrefix(s, name) {
			return true
		}
	}
	return false
}

// exactly reads text that begins with this byte.
func (p *Parser) exactly(c byte, text string, got func(p *Parser) step) step {
	p.from, p.literal, p.then = p.pos, text, got
	return p.literally(c)
}

func (p *Parser) literally(byte) step {
	n := p.pos + 1 - p.from
	if string(p.text[p.from:p.pos+1]) != p.literal[:n] {
		return nil
	}
	if n == len(p.literal) {
		return p.then(p)
	}
	return (*Parser).literally
}

// body follows <tool_call>: an object, a list, a function's tag, or a name.
func (p *Parser) body(c byte) step {
	switch {
	case isSpace(c):
		return (*Parser).body
	case c == '{':
		return p.object(c)
	case c == '[':
		p.list = true
		return (*Parser).firstElement
	case c == '<':
		return p.exactly(c, "<function=", func(p *Parser) step { return p.partName((*Parser).functionName, ">") })
	}
	p.partName((*Parser).pairsName, "\n", pairTags.open, pairTags.end)
	p.from = p.pos
	return p.until(c)
}

// function follows a <function= that stands alone.
func (p *Parser) function(c byte) step {
	p.partName((*Parser).functionName, ">")
	p.from = p.pos
	return p.until(c)
}

// Calls as objects of JSON with a name and arguments.

func (p *Parser) firstElement(c byte) step {
	switch {
	case isSpace(c):
		return (*Parser).firstElement
	case c == '{':
		p.reset()
		return p.object(c)
	}
	return nil
}

func (p *Parser) nextElement(c byte) step {
	switch {
	case isSpace(c):
		return (*Parser).nextElement
	case c == ',':
		return (*Parser).firstElement
	case c == ']':
		p.list = false
		return p.end()
	}
	return nil
}

func (p *Parser) object(c byte) step {
	switch {
	case isSpace(c):
		return (*Parser).object
	case c == '{':
		p.reset()
		return (*Parser).nextKey
	}
	return nil
}

func (p *Parser) nextKey(c byte) step {
	switch {
	case isSpace(c):
		return (*Parser).nextKey
	case c == '"':
		return p.scan(c, (*Parser).keyPart)
	}
	return nil
}

// scan begins a JSON value at this byte.
func (p *Parser) scan(c byte, next step) step {
	p.json = scanner{open: p.json.open[:0]}
	p.from = p.pos
	if p.json.step(c) == broken {
		return nil
	}
	return next
}

func (p *Parser) keyPart(c byte) step {
	switch p.json.step(c) {
	case broken:
		return nil
	case ended:
		if json.Unmarshal(p.text[p.from:p.pos+1], &p.key) != nil {
			return nil
		}
		return (*Parser).colon
	}
	return (*Parser).keyPart
}

func (p *Parser) colon(c byte) step {
	switch {
	case isSpace(c):
		return (*Parser).colon
	case c == ':':
		return (*Parser).member
	}
	return nil
}

func (p *Parser) member(c byte) step {
	switch {
	case isSpace(c):
		return (*Parser).member
	case c == '{' && p.isArguments() && p.named:
		return p.arguments(c, func(*Parser) step { return (*Parser).comma })
	}
	return p.scan(c, (*Parser).memberPart)
}

func (p *Parser) isArguments() bool {
	return (p.key == "arguments" || p.key == "parameters") && !p.given
}

func (p *Parser) memberPart(c byte) step {
	switch p.json.step(c) {
	case broken:
		return nil
	case ended:
		if !p.take(p.pos + 1) {
			return nil
		}
		return (*Parser).comma
	case before:
		if !p.take(p.pos) {
			return nil
		}
		return p.comma(c)
	}
	return (*Parser).memberPart
}

// take keeps a member that ends before end: the name, arguments that cannot stream; others mean nothing.
func (p *Parser) take(end int) bool {
	raw := p.text[p.from:end]
	switch {
	case p.key == "name":
		if p.named || json.Unmarshal(raw, &p.name) != nil || !p.known(p.name) {
			return false
		}
		p.named = true
	case p.isArguments():
		p.args, p.given = string(raw), true
	}
	return true
}

func (p *Parser) comma(c byte) step {
	switch {
	case isSpace(c):
		return (*Parser).comma
	case c == ',':
		return (*Parser).nextKey
	case c != '}':
		return nil
	}
	if !p.running {
		args, ok := wholeArguments(p.args)
		if !p.named || !ok {
			return nil
		}
		p.begin()
		p.argue(args)
	}
	return p.end()
}

// wholeArguments are what stood where arguments belong: an object, an object written as a string,
// or nothing.
func wholeArguments(raw string) (string, bool) {
	var inner string
	switch {
	case raw == "" || raw == "null":
		return "{}", true
	case raw[0] == '"' && json.Unmarshal([]byte(mend(raw)), &inner) == nil:
		inner = strings.TrimSpace(inner)
		return inner, strings.HasPrefix(inner, "{") && json.Valid([]byte(inner))
	}
	return mend(raw), raw[0] == '{'
}

// mend escapes raw control characters in the strings of a JSON value.
func mend(raw string) string {
	var s scanner
	to := make([]byte, 0, len(raw))
	for i := range len(raw) {
		if s.inString() && raw[i] < ' ' {
			to = quoteByte(to, raw[i])
		} else {
			to = append(to, raw[i])
		}
		s.step(raw[i])
	}
	return string(to)
}

// Arguments as JSON.

// arguments begin with this byte, a brace; then says how the call goes on after them.
func (p *Parser) arguments(c byte, then func(*Parser) step) step {
	p.then = then
	return p.scan(c, (*Parser).argumentsOpen)
}

// lastPart are arguments that end their call.
func (p *Parser) lastPart(c byte) step {
	switch {
	case isSpace(c):
		return (*Parser).lastPart
	case c == '{':
		return p.arguments(c, (*Parser).end)
	}
	return nil
}

// argumentsOpen has seen the brace, and waits for what tells JSON from other things in braces.
func (p *Parser) argumentsOpen(c byte) step {
	if p.json.step(c) == broken {
		return nil
	}
	if isSpace(c) {
		return (*Parser).argumentsOpen
	}
	p.begin()
	p.given = true
	p.argue(string(p.text[p.from : p.pos+1]))
	p.start = p.pos + 1
	if c == '}' {
		return p.then(p)
	}
	return (*Parser).argumentsPart
}

func (p *Parser) argumentsPart(c byte) step {
	var piece [8]byte
	s := append(piece[:0], c)
	if p.json.inString() && c < ' ' {
		s = quoteByte(piece[:0], c)
	}
	now := p.json.step(c)
	if now == broken {
		return nil
	}
	p.argue(string(s))
	p.start = p.pos + 1
	if now == ended {
		return p.then(p)
	}
	return (*Parser).argumentsPart
}
