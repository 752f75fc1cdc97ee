package toolcall

import (
	"encoding/json"
	"fmt"
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
// model; nil where it is free. Errors name the tool, and are what a client has to mend.
func (f Format) Constraint(tools []Tool, c Choice) (*grammar.Grammar, error) {
	if c.Mode == None || c.Mode == Auto && !slices.ContainsFunc(tools, func(t Tool) bool { return t.Strict }) {
		return nil, nil
	}
	var calls []*grammar.Grammar
	for _, t := range tools {
		if c.Mode == Named && t.Name != c.Name {
			continue
		}
		g, err := f.call(t, c.Mode != Auto || t.Strict)
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
		return grammar.Concat(grammar.Optional(grammar.Concat(harmonyText("analysis"), token("<|end|>"), token("<|start|>"), text("assistant"))), one)
	}
	return several("\n")
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
func (f Format) call(t Tool, strict bool) (*grammar.Grammar, error) {
	if f.style == functions || f.style == pairs {
		return f.tagged(t, strict)
	}
	arguments := grammar.JSONObject()
	if strict && len(t.Parameters) > 0 {
		var err error
		if arguments, err = grammar.JSONSchema(asObject(t.Parameters)); err != nil {
			return nil, err
		}
	}
	object := func(key string) *grammar.Grammar {
		return grammar.Concat(text(`{"name": `+quote(t.Name)+`, "`+key+`": `), arguments, text("}"))
	}
	switch f.style {
	case pythonTag:
		return object("parameters"), nil
	case mistral:
		if !f.named {
			break
		}
		id := text("")
		if f.ids {
			letters, err := grammar.Regex("[0-9A-Za-z]{9}")
			if err != nil {
				return nil, err
			}
			id = grammar.Optional(grammar.Concat(token("[CALL_ID]"), letters))
		}
		return grammar.Concat(token("[TOOL_CALLS]"), text(t.Name), id, token("[ARGS]"), arguments), nil
	case jsonList:
	case deepseek:
		if f.fenced {
			return grammar.Concat(token(deepseekCall), text("function"), token(deepseekSeparator),
				text(t.Name+"\n```json\n"), arguments, text("\n```"), token("<｜tool▁call▁end｜>")), nil
		}
		return grammar.Concat(token(deepseekCall), text(t.Name), token(deepseekSeparator), arguments, token("<｜tool▁call▁end｜>")), nil
	case harmony:
		return grammar.Concat(token("<|channel|>"), text("commentary to=functions."+t.Name+" "), token("<|constrain|>"), text("json"),
			token(harmonyMessage), arguments), nil
	default:
		return grammar.Concat(token("<tool_call>"), text("\n"), object("arguments"), text("\n"), token("</tool_call>")), nil
	}
	return object("arguments"), nil
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
func (f Format) tagged(t Tool, strict bool) (*grammar.Grammar, error) {
	tags, head, foot := functionTags, []*grammar.Grammar{token("<tool_call>"), text("\n"), token("<function="), text(t.Name + ">\n")},
		[]*grammar.Grammar{token("</function>"), text("\n"), token("</tool_call>")}
	if f.style == pairs {
		tags, head, foot = pairTags, []*grammar.Grammar{token("<tool_call>"), text(t.Name + "\n")}, []*grammar.Grammar{token("</tool_call>")}
	}
	parts := head
	for _, p := range properties(t.Parameters) {
		value, err := taggedValue(t.Parameters, p, &tags, strict)
		if err != nil {
			return nil, fmt.Errorf("argument %q: %w", p.name, err)
		}
		argument := grammar.Concat(token(tags.open), text(p.name), token(tags.named), text("\n"), value, text("\n"), token(tags.close), text("\n"))
		if f.style == pairs {
			argument = grammar.Concat(token(tags.open), text(p.name), token(tags.named), text("\n"), token(tags.value), value, token(tags.close), text("\n"))
		}
		if !p.required || !strict {
			argument = grammar.Optional(argument)
		}
		parts = append(parts, argument)
	}
	return grammar.Concat(append(parts, foot...)...), nil
}

// taggedValue is an argument as text: strings as they are, the rest as JSON.
func taggedValue(root json.RawMessage, p property, tags *tags, strict bool) (*grammar.Grammar, error) {
	switch {
	case !strict:
		return grammar.Except(tags.close), nil
	case p.kinds.bare():
		return bareText(newResolver(root), p.schema, tags)
	}
	return grammar.JSONSchema(inRoot(root, p.schema))
}

// bareText are the strings that a schema allows, without quotes, and null. Some that have a
// closing tag in them are left out.
func bareText(r *resolver, raw json.RawMessage, tags *tags) (*grammar.Grammar, error) {
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
		g, err := bareText(r, sub, tags)
		if err != nil {
			return nil, err
		}
		options = append(options, g)
	}
	lengths := s.MinLength > 0 || s.MaxLength != nil
	switch {
	case len(s.AllOf) == 1 && len(options) == 0 && s.Pattern == "" && !lengths:
		return bareText(r, s.AllOf[0], tags)
	case len(s.AllOf) > 0, len(options) > 0 && (s.Pattern != "" || lengths), s.Pattern != "" && lengths:
		return nil, fmt.Errorf("its schema combines what the model's format of calls cannot: leave one of allOf, anyOf, enum, pattern and the lengths")
	case len(options) > 0:
		return grammar.Alternate(options...), nil
	case s.types()&kindString == 0:
		return text("null"), nil
	}
	g := grammar.Except(tags.close)
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

// inRoot is a part of a schema that can refer to the whole's definitions.
func inRoot(root, part json.RawMessage) json.RawMessage {
	list := members(part)
	if list == nil {
		return part
	}
	for _, m := range members(root) {
		if (m.name == "$defs" || m.name == "definitions") && !slices.ContainsFunc(list, func(o member) bool { return o.name == m.name }) {
			list = append(list, m)
		}
	}
	return written(list)
}
