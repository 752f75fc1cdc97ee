package toolcall

import "strings"

// Arguments between tags, as text.

// tags are how a format writes them: open key named [value] text close … end.
type tags struct {
	open, named string // around a key
	value       string // before its text, after white space; none
	close       string
	end         string // of the call
	lines       bool   // the text has a line break on either side
}

var (
	functionTags = tags{open: "<parameter=", named: ">", close: "</parameter>", end: "</function>", lines: true}
	pairTags     = tags{open: "<arg_key>", named: "</arg_key>", value: "<arg_value>", close: "</arg_value>", end: "</tool_call>"}
)

// functionName has come, by the older or the newer spelling: arguments as JSON follow, or tags.
func (p *Parser) functionName(part, _ string) step {
	if p.name = strings.TrimSpace(part); !p.known(p.name) {
		return nil
	}
	p.tags = &functionTags
	return (*Parser).functionBody
}

func (p *Parser) functionBody(c byte) step {
	switch {
	case isSpace(c):
		return (*Parser).functionBody
	case c == '{':
		return p.lastPart(c)
	}
	return p.nextTag(c)
}

func (p *Parser) pairsName(part, end string) step {
	if p.name = strings.TrimSpace(part); !p.known(p.name) {
		return nil
	}
	p.tags = &pairTags
	switch end {
	case pairTags.open:
		return p.part((*Parser).argumentName, pairTags.named)
	case pairTags.end:
		return p.lastArgument()
	}
	return (*Parser).nextTag
}

func (p *Parser) nextTag(c byte) step {
	switch {
	case isSpace(c):
		return (*Parser).nextTag
	case c == '<':
		p.from = p.pos
		return (*Parser).tag
	}
	return nil
}

func (p *Parser) tag(byte) step {
	switch s := string(p.text[p.from : p.pos+1]); {
	case s == p.tags.open:
		return p.part((*Parser).argumentName, p.tags.named)
	case s == p.tags.end:
		return p.lastArgument()
	case strings.HasPrefix(p.tags.open, s), strings.HasPrefix(p.tags.end, s):
		return (*Parser).tag
	}
	return nil
}

func (p *Parser) lastArgument() step {
	if p.first {
		p.begin()
		p.argue("{")
	}
	p.argue("}")
	return p.end()
}

// argumentName is the key of the next argument.
func (p *Parser) argumentName(part, _ string) step {
	p.key = strings.TrimSpace(part)
	if p.tags.value == "" {
		return p.beginValue()
	}
	return (*Parser).valueTag
}

func (p *Parser) valueTag(c byte) step {
	if isSpace(c) {
		return (*Parser).valueTag
	}
	return p.exactly(c, p.tags.value, (*Parser).beginValue)
}

func (p *Parser) beginValue() step {
	if p.first {
		p.begin()
		p.argue("{")
	} else {
		p.argue(", ")
	}
	p.argue(quote(p.key) + ": ")
	allowed, known := p.tools[p.name][p.key]
	if !known {
		allowed = kindAny
	}
	p.first, p.fresh, p.allowed, p.value = false, true, allowed, p.value[:0]
	if allowed == kindString {
		p.argue(`"`)
	}
	p.start = p.pos + 1
	return (*Parser).valuePart
}

// valuePart is within a value; text[start:pos] may be its end. Only a closing tag that another
// tag follows ends it: values may hold tags themselves.
func (p *Parser) valuePart(c byte) step {
	if p.fresh {
		p.fresh = false
		if p.tags.lines && c == '\n' {
			p.start = p.pos + 1
			return (*Parser).valuePart
		}
	}
	switch next, begins := p.tags.after(string(p.text[p.start : p.pos+1])); {
	case next != "":
		if p.allowed == kindString {
			p.argue(`"`)
		} else {
			p.argue(argument(string(p.value), p.allowed))
		}
		p.start = p.pos + 1
		if next == p.tags.end {
			return p.lastArgument()
		}
		return p.part((*Parser).argumentName, p.tags.named)
	case begins:
		return (*Parser).valuePart
	}
	first := p.text[p.start]
	if p.allowed == kindString {
		p.argue(string(quoteByte(nil, first)))
	} else {
		p.value = append(p.value, first)
	}
	p.start++
	p.pos = p.start - 1 // the end may begin in what was held
	return (*Parser).valuePart
}

// after says whether s ends a value, and with which tag, or begins to.
func (t *tags) after(s string) (next string, begins bool) {
	if t.lines {
		s = strings.TrimPrefix(s, "\n")
	}
	if len(s) < len(t.close) {
		return "", strings.HasPrefix(t.close, s)
	}
	rest, ok := strings.CutPrefix(s, t.close)
	if !ok {
		return "", false
	}
	gap := len(rest)
	rest = strings.TrimLeft(rest, " \n\t\r")
	switch {
	case gap-len(rest) > maxGap:
		return "", false
	case rest == t.open || rest == t.end:
		return rest, true
	}
	return "", strings.HasPrefix(t.open, rest) || strings.HasPrefix(t.end, rest)
}

// Mistral: a list, or a name, perhaps an id, and arguments.

func (p *Parser) mistralBody(c byte) step {
	switch {
	case isSpace(c):
		return (*Parser).mistralBody
	case c == '[':
		p.list = true
		return (*Parser).firstElement
	}
	p.partName((*Parser).mistralName, "[ARGS]", "[CALL_ID]", "{")
	p.from = p.pos
	return p.until(c)
}

func (p *Parser) mistralName(part, end string) step {
	if p.name = strings.TrimSpace(part); !p.known(p.name) {
		return nil
	}
	switch end {
	case "{":
		return p.lastPart('{')
	case "[CALL_ID]":
		return p.part(func(p *Parser, _, _ string) step { return (*Parser).lastPart }, "[ARGS]")
	}
	return (*Parser).lastPart
}

// DeepSeek: a type and a name with a block of JSON, or a name with JSON.

const (
	deepseekCall      = "<｜tool▁call▁begin｜>"
	deepseekSeparator = "<｜tool▁sep｜>"
)

func (p *Parser) deepseekFirst(c byte) step {
	if isSpace(c) {
		return (*Parser).deepseekFirst
	}
	return p.exactly(c, deepseekCall, func(p *Parser) step { return p.part((*Parser).deepseekHead, deepseekSeparator) })
}

func (p *Parser) deepseekNext(c byte) step {
	p.part((*Parser).deepseekHead, deepseekSeparator)
	p.from = p.pos
	return p.until(c)
}

func (p *Parser) deepseekHead(part, _ string) step {
	p.name = strings.TrimSpace(part)
	return (*Parser).deepseekBody
}

func (p *Parser) deepseekBody(c byte) step {
	switch {
	case isSpace(c):
		return (*Parser).deepseekBody
	case c == '{' && p.known(p.name):
		return p.lastPart(c)
	case c == '{' || p.name != "function":
		return nil
	}
	p.partName((*Parser).deepseekName, "\n")
	p.from = p.pos
	return p.until(c)
}

func (p *Parser) deepseekName(part, _ string) step {
	if p.name = strings.TrimSpace(part); !p.known(p.name) {
		return nil
	}
	return (*Parser).fence
}

func (p *Parser) fence(c byte) step {
	if isSpace(c) {
		return (*Parser).fence
	}
	return p.exactly(c, "```json", func(*Parser) step { return (*Parser).fenced })
}

func (p *Parser) fenced(c byte) step {
	switch {
	case isSpace(c):
		return (*Parser).fenced
	case c == '{':
		return p.arguments(c, func(*Parser) step { return (*Parser).fenceEnd })
	}
	return nil
}

func (p *Parser) fenceEnd(c byte) step {
	if isSpace(c) {
		return (*Parser).fenceEnd
	}
	return p.exactly(c, "```", (*Parser).end)
}

// Harmony: every message has a header with a channel, and perhaps a recipient.

const harmonyMessage = "<|message|>"

func (p *Parser) header(c byte) step {
	p.part((*Parser).message, harmonyMessage)
	p.from = p.mark
	return p.until(c)
}

func (p *Parser) message(head, _ string) step {
	word := func(after string) string {
		_, s, _ := strings.Cut(head, after)
		if end := strings.IndexAny(s, " <"); end >= 0 {
			s = s[:end]
		}
		return s
	}
	if to := word("to="); to != "" && to != "assistant" {
		name, function := strings.CutPrefix(to, "functions.")
		if !function || !p.known(name) {
			return nil
		}
		p.name = name
		return (*Parser).lastPart
	}
	p.release(p.mark)
	p.reasoning, p.opened = word("<|channel|>") == "analysis", false
	p.start, p.mark = p.pos+1, p.pos+1
	return (*Parser).content
}
