package server

import (
	"encoding/json"

	"github.com/estiba/estiba/runtime/grammar"
	"github.com/estiba/estiba/runtime/toolcall"
)

// structure is what a text must be; nil: anything.
type structure struct {
	param string // that asks for it
	parse func() (*grammar.Grammar, error)
}

const maxChoices = 1024

// structure reads response_format and structured_outputs.
func (f *fields) structure() *structure {
	var s *structure
	if raw, ok := f.take("response_format"); ok {
		part, _ := f.within("response_format", raw)
		s = part.responseFormat()
		f.join(part)
	}
	if raw, ok := f.take("structured_outputs"); ok {
		if s != nil {
			f.fail("structured_outputs", "structured_outputs and response_format exclude each other")
		}
		part, _ := f.within("structured_outputs", raw)
		s = part.structuredOutputs()
		f.join(part)
	}
	return s
}

func (f *fields) responseFormat() *structure {
	s := &structure{param: "response_format"}
	switch kind := f.text("type"); kind {
	case "text":
		return nil
	case "json_object":
		s.parse = jsonObject
	case "json_schema":
		raw, ok := f.take("json_schema")
		if !ok {
			f.fail("json_schema", "json_schema is required: an object with name and schema")
			break
		}
		part, _ := f.within("json_schema", raw)
		if part.text("name") == "" {
			part.fail("name", "name is required: any, for people to read")
		}
		schema, ok := part.take("schema")
		if !ok {
			part.fail("schema", "schema is required; without one send the type json_object")
		}
		s.parse = func() (*grammar.Grammar, error) { return grammar.JSONSchema(schema) }
		part.text("description")
		part.boolean("strict", false) // it always is
		part.rest()
		f.join(part)
	default:
		f.fail("type", "type must be text, json_object or json_schema; for others send structured_outputs")
	}
	f.rest()
	return s
}

func jsonObject() (*grammar.Grammar, error) { return grammar.JSONObject(), nil }

// structuredOutputs is one of the kinds that vLLM's clients ask for.
func (f *fields) structuredOutputs() *structure {
	s := &structure{param: "structured_outputs"}
	kinds := 0
	is := func(parse func() (*grammar.Grammar, error)) { s.parse, kinds = parse, kinds+1 }
	if pattern := f.text("regex"); pattern != "" {
		is(func() (*grammar.Grammar, error) { return grammar.Regex(pattern) })
	}
	if text := f.text("grammar"); text != "" {
		is(func() (*grammar.Grammar, error) { return grammar.EBNF(text) })
	}
	if raw, ok := f.take("choice"); ok {
		var options []string
		if json.Unmarshal(raw, &options) != nil || len(options) == 0 || len(options) > maxChoices {
			f.fail("choice", "choice must be a list of 1 to %d strings", maxChoices)
		}
		is(func() (*grammar.Grammar, error) { return grammar.Choice(options) })
	}
	if schema, ok := f.take("json"); ok {
		var text string
		if json.Unmarshal(schema, &text) == nil { // vLLM takes a schema as text, too
			schema = json.RawMessage(text)
		}
		is(func() (*grammar.Grammar, error) { return grammar.JSONSchema(schema) })
	}
	if f.boolean("json_object", false) {
		is(jsonObject)
	}
	f.rest()
	if kinds != 1 {
		f.fail("", "must have one of regex, choice, grammar, json and json_object")
	}
	return s
}

// grammar is what the whole answer of a request must be, with all that the model may
// write around calls; nil: anything.
func (g *generation) grammar(format toolcall.Format) (*grammar.Grammar, *apiError) {
	var text *grammar.Grammar
	if g.structure != nil {
		var err error
		if text, err = g.structure.parse(); err != nil {
			return nil, invalid(g.structure.param, "%s cannot be followed: %v.", g.structure.param, err)
		}
		if g.of == chat && !g.dialog.resume {
			text = format.Answer(text)
		}
	}
	if !g.tools.offered() {
		return text, nil
	}
	choice, either := g.tools.choice, text != nil && g.tools.choice.Mode == toolcall.Auto
	if either {
		choice.Mode = toolcall.Required
	}
	calls, err := format.Constraint(g.tools.tools, choice)
	switch {
	case err != nil:
		return nil, invalid("tools", "The tools cannot be called: %v.", err)
	case either:
		return grammar.Alternate(text, calls), nil
	}
	return calls, nil
}
