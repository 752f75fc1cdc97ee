package toolcall

import (
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/estiba/estiba/runtime/grammar"
)

// Choice is what a request says about calling.
type Choice struct {
	Mode     Mode
	Name     string // of the tool, if Named
	Parallel bool   // more than one call is welcome
}

// Mode is who decides whether tools are called.
type Mode uint8

const (
	Auto     Mode = iota // the model
	None                 // nobody: none is
	Required             // at least one is
	Named                // the one that is named is, once
)

// maxCalls bounds the calls of one answer that must have some, so that a model which only
// repeats itself comes to an end.
const maxCalls = 16

// Constraint is what answers may be: calls of tools whose arguments are valid under their
// schemas, where c asks for calls; text and calls, valid for strict tools, where c leaves it to the
// model; nil where it is free. A tool that is not strict and whose schema cannot be kept takes any
// arguments. Errors name the tool, and are what a client has to mend.
func (f Format) Constraint(tools []Tool, c Choice) (*grammar.Grammar, error) {
	if c.Mode == None || c.Mode == Auto && !slices.ContainsFunc(tools, func(t Tool) bool { return t.Strict }) {
		return nil, nil
	}
	w := newWords()
	var calls []*grammar.Grammar
	for _, t := range tools {
		if c.Mode == Named && t.Name != c.Name {
			continue
		}
		g, err := f.call(t, c.Mode != Auto || t.Strict, w)
		if err != nil && !t.Strict {
			g, err = f.call(t, false, w)
		}
		if err != nil {
			return nil, fmt.Errorf("tool %q: %w", t.Name, err)
		}
		calls = append(calls, g)
	}
	switch {
	case len(calls) == 0 && c.Mode == Named:
		return nil, fmt.Errorf("tool %q is not among the tools", c.Name)
	case len(calls) == 0:
		return nil, fmt.Errorf("a call is required, and there are no tools")
	}
	most := maxCalls
	if c.Mode == Named || !c.Parallel {
		most = 1
	}
	one := grammar.Alternate(calls...)
	if c.Mode == Auto {
		return f.free(one, most), nil
	}
	return f.calls(one, most), nil
}

func text(s string) *grammar.Grammar { return grammar.Literal(s) }

func token(s string) *grammar.Grammar { return grammar.Special(s) }

// sentence is a grammar that is being put together: texts one after the other become one.
type sentence struct {
	parts []*grammar.Grammar
	text  string // after parts
}

func (s *sentence) say(text string) { s.text += text }

func (s *sentence) add(g *grammar.Grammar) {
	if s.text != "" {
		s.parts = append(s.parts, text(s.text))
		s.text = ""
	}
	s.parts = append(s.parts, g)
}

func (s *sentence) whole() *grammar.Grammar {
	if s.text != "" {
		s.parts, s.text = append(s.parts, text(s.text)), ""
	}
	return grammar.Concat(s.parts...)
}

// calls are 1 to most of a kind, with what stands around them.
func (f Format) calls(one *grammar.Grammar, most int) *grammar.Grammar {
	several := func(separator string) *grammar.Grammar {
		return grammar.Concat(one, grammar.Repeat(grammar.Concat(text(separator), one), 0, most-1))
	}
	switch f.style {
	case pythonTag:
		return several("; ")
	case mistral:
		if f.named {
			return grammar.Repeat(one, 1, most)
		}
		return grammar.Concat(token("[TOOL_CALLS]"), text("["), several(", "), text("]"))
	case jsonList:
		return grammar.Concat(token("<|tool_call|>"), text("["), several(", "), text("]"))
	case deepseek:
		separator := ""
		if f.fenced {
			separator = "\n"
		}
		return grammar.Concat(token("<｜tool▁calls▁begin｜>"), several(separator), token("<｜tool▁calls▁end｜>"))
	case harmony: // a call ends the turn
		return grammar.Concat(harmonyThought(), one)
	}
	return several("\n")
}

// Answer is a whole answer whose text is one of a grammar's.
func (f Format) Answer(text *grammar.Grammar) *grammar.Grammar {
	if f.style != harmony {
		return text
	}
	return grammar.Concat(harmonyThought(), token("<|channel|>"), grammar.Literal("final"), token(harmonyMessage), text)
}

// harmonyThought is what may come before the message that matters.
func harmonyThought() *grammar.Grammar {
	return grammar.Optional(grammar.Concat(harmonyText("analysis"), token("<|end|>"), token("<|start|>"), text("assistant")))
}

func harmonyText(channel string) *grammar.Grammar {
	return grammar.Concat(token("<|channel|>"), text(channel), token(harmonyMessage), grammar.Except("<|"))
}

// free is text with calls, up to most, or without: text that does not begin one.
func (f Format) free(one *grammar.Grammar, most int) *grammar.Grammar {
	calls := f.calls(one, most)
	switch f.style {
	case pythonTag: // an answer is a call or text
		return grammar.Alternate(calls, text(""),
			grammar.Concat(grammar.Repeat(grammar.Alternate(text(" "), text("\n")), 0, -1), otherThan("{ \\n"), grammar.Except("<|python_tag|>", "<function=")))
	case harmony:
		message := grammar.Concat(grammar.Alternate(harmonyText("analysis"), harmonyText("commentary")), token("<|end|>"), token("<|start|>"), text("assistant"))
		return grammar.Concat(grammar.Repeat(message, 0, -1), grammar.Alternate(harmonyText("final"), one))
	}
	var stops []string
	for _, m := range markers[f.style] {
		if m.when == anywhere {
			stops = append(stops, m.text)
		}
	}
	words := grammar.Except(stops...)
	return grammar.Concat(words, grammar.Optional(grammar.Concat(calls, words)))
}

// call is one of a tool.
func (f Format) call(t Tool, strict bool, w *words) (*grammar.Grammar, error) {
	if f.style == functions || f.style == pairs {
		return f.tagged(t, strict, w)
	}
	arguments := grammar.JSONObject()
	if strict && len(t.Parameters) > 0 {
		var err error
		if arguments, err = grammar.JSONSchema(asObject(t.Parameters)); err != nil {
			return nil, err
		}
	}
	object := func(s *sentence, key string) {
		s.say(`{"name": ` + quote(t.Name) + `, "` + key + `": `)
		s.add(arguments)
		s.say("}")
	}
	var s sentence
	switch f.style {
	case pythonTag:
		object(&s, "parameters")
	case mistral:
		if !f.named {
			object(&s, "arguments")
			break
		}
		s.add(w.token("[TOOL_CALLS]"))
		s.say(t.Name)
		if f.ids {
			letters, err := grammar.Regex("[0-9A-Za-z]{9}")
			if err != nil {
				return nil, err
			}
			s.add(grammar.Optional(grammar.Concat(w.token("[CALL_ID]"), letters)))
		}
		s.add(w.token("[ARGS]"))
		s.add(arguments)
	case jsonList:
		object(&s, "arguments")
	case deepseek:
		s.add(w.token(deepseekCall))
		if f.fenced {
			s.say("function")
			s.add(w.token(deepseekSeparator))
			s.say(t.Name + "\n```json\n")
			s.add(arguments)
			s.say("\n```")
		} else {
			s.say(t.Name)
			s.add(w.token(deepseekSeparator))
			s.add(arguments)
		}
		s.add(w.token("<｜tool▁call▁end｜>"))
	case harmony:
		s.add(w.token("<|channel|>"))
		s.say("commentary to=functions." + t.Name + " ")
		s.add(w.token("<|constrain|>"))
		s.say("json")
		s.add(w.token(harmonyMessage))
		s.add(arguments)
	default:
		s.add(w.token("<tool_call>"))
		s.say("\n")
		object(&s, "arguments")
		s.say("\n")
		s.add(w.token("</tool_call>"))
	}
	return s.whole(), nil
}

// asObject is a schema that only objects are valid under.
func asObject(schema json.RawMessage) json.RawMessage {
	list := members(schema)
	if list == nil && json.Valid(schema) {
		return json.RawMessage(`{"type":"object"}`) // true, or {}
	}
	if slices.ContainsFunc(list, func(m member) bool { return m.name == "type" || m.name == "$ref" }) {
		return schema
	}
	return written(append(list, member{"type", json.RawMessage(`"object"`)}))
}

func written(list []member) json.RawMessage {
	to := []byte{'{'}
	for i, m := range list {
		if i > 0 {
			to = append(to, ',')
		}
		to = append(append(append(to, quote(m.name)...), ':'), m.value...)
	}
	return append(to, '}')
}

// tagged is a call whose arguments stand between tags: those that the schema names, in its order.
func (f Format) tagged(t Tool, strict bool, w *words) (*grammar.Grammar, error) {
	tags := &functionTags
	if f.style == pairs {
		tags = &pairTags
	}
	var call sentence
	call.add(w.token("<tool_call>"))
	if f.style == functions {
		call.say("\n")
		call.add(w.token("<function="))
		call.say(t.Name + ">\n")
	} else {
		call.say(t.Name + "\n")
	}
	r := newResolver(t.Parameters)
	for _, p := range properties(t.Parameters) {
		value, err := taggedValue(r, p, tags, strict, w)
		if err != nil {
			return nil, fmt.Errorf("argument %q: %w", p.name, err)
		}
		to := &call
		if !p.required || !strict {
			to = &sentence{}
		}
		to.add(w.token(tags.open))
		to.say(p.name)
		to.add(w.token(tags.named))
		to.say("\n")
		if tags.value != "" {
			to.add(w.token(tags.value))
		}
		to.add(value)
		if tags.lines {
			to.say("\n")
		}
		to.add(w.token(tags.close))
		to.say("\n")
		if to != &call {
			call.add(grammar.Optional(to.whole()))
		}
	}
	call.add(w.token(tags.end))
	if f.style == functions {
		call.say("\n")
		call.add(w.token("</tool_call>"))
	}
	return call.whole(), nil
}

// words are the pieces that many calls have in common.
type words struct {
	tokens map[string]*grammar.Grammar
	values map[string]*grammar.Grammar // closing tag -> text up to it
	copied int                         // bytes of schemas
}

func newWords() *words {
	return &words{tokens: map[string]*grammar.Grammar{}, values: map[string]*grammar.Grammar{}}
}

func (w *words) token(s string) *grammar.Grammar {
	if w.tokens[s] == nil {
		w.tokens[s] = token(s)
	}
	return w.tokens[s]
}

func (w *words) value(tags *tags) *grammar.Grammar {
	if w.values[tags.close] == nil {
		w.values[tags.close] = grammar.Except(tags.close)
	}
	return w.values[tags.close]
}

// taggedValue is an argument as text: strings as they are, the rest as JSON.
func taggedValue(r *resolver, p property, tags *tags, strict bool, w *words) (*grammar.Grammar, error) {
	switch {
	case !strict:
		return w.value(tags), nil
	case p.kinds.bare():
		return bareText(r, p.schema, tags, w)
	}
	schema, err := w.alone(r.root, p.schema)
	if err != nil {
		return nil, err
	}
	return grammar.JSONSchema(schema)
}

// bareText are the strings that a schema allows, without quotes, and null. Some that have a
// closing tag in them are left out.
func bareText(r *resolver, raw json.RawMessage, tags *tags, w *words) (*grammar.Grammar, error) {
	s, ok := r.resolve(raw)
	if !ok {
		return nil, fmt.Errorf("its schema cannot be followed")
	}
	if s.Const != nil {
		s.Enum = []json.RawMessage{s.Const}
	}
	var options []*grammar.Grammar
	for _, v := range s.Enum {
		var word string
		if json.Unmarshal(v, &word) != nil {
			return nil, fmt.Errorf("enum has values that are no strings beside strings")
		}
		if string(v) == "null" {
			word = "null"
		}
		options = append(options, text(word))
	}
	for _, sub := range slices.Concat(s.AnyOf, s.OneOf) {
		g, err := bareText(r, sub, tags, w)
		if err != nil {
			return nil, err
		}
		options = append(options, g)
	}
	lengths := s.MinLength > 0 || s.MaxLength != nil
	switch {
	case len(s.AllOf) == 1 && len(options) == 0 && s.Pattern == "" && !lengths:
		return bareText(r, s.AllOf[0], tags, w)
	case len(s.AllOf) > 0, len(options) > 0 && (s.Pattern != "" || lengths), s.Pattern != "" && lengths:
		return nil, fmt.Errorf("its schema combines what the model's format of calls cannot: leave one of allOf, anyOf, enum, pattern and the lengths")
	case len(options) > 0:
		return grammar.Alternate(options...), nil
	case s.types()&kindString == 0:
		return text("null"), nil
	}
	g := w.value(tags)
	if s.Pattern != "" {
		pattern := s.Pattern
		if !strings.ContainsAny(pattern, "^$") { // those with anchors are taken from end to end
			pattern = `[\s\S]*(?:` + pattern + `)[\s\S]*`
		}
		var err error
		if g, err = grammar.Regex(pattern); err != nil {
			return nil, err
		}
	}
	if lengths {
		most := -1
		if s.MaxLength != nil {
			most = int(min(*s.MaxLength, 1<<20))
		}
		g = grammar.Repeat(otherThan("<"), int(min(s.MinLength, 1<<20)), most)
	}
	if s.types()&kindNull != 0 {
		g = grammar.Alternate(g, text("null"))
	}
	return g, nil
}

// otherThan is one character that is none of those.
func otherThan(characters string) *grammar.Grammar {
	g, err := grammar.Regex("[^" + characters + "]")
	if err != nil {
		panic(err)
	}
	return g
}

// localReference is where a schema refers to a part of its own document.
var localReference = regexp.MustCompile(`"\$ref"\s*:\s*"#`)

const moved = `"$ref":"#/$defs/whole`

// maxCopied bounds what copies of a schema take together, one for each argument that refers to other parts of it.
const maxCopied = 16 << 20

// alone is the schema of an argument as a document of its own: what it refers to comes along.
func (w *words) alone(root, part json.RawMessage) (json.RawMessage, error) {
	if !localReference.Match(part) {
		return part, nil
	}
	if w.copied += len(root) + len(part); w.copied > maxCopied {
		return nil, fmt.Errorf("its schema is too large to be followed from so many arguments: write it there instead of a reference")
	}
	list := slices.DeleteFunc(members(localReference.ReplaceAllLiteral(part, []byte(moved))), func(m member) bool { return m.name == "$defs" })
	defs := written([]member{{"whole", localReference.ReplaceAllLiteral(root, []byte(moved))}})
	return written(append(list, member{"$defs", defs})), nil
}
