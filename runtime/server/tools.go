package server

import (
	"encoding/json"
	"fmt"
	"slices"

	"github.com/estiba/estiba/runtime/toolcall"
)

// maxTools bounds the tools of a request, as OpenAI does.
const maxTools = 128

// tooling are the tools that a request offers, and what it wants of them.
type tooling struct {
	tools  []toolcall.Tool // that may be called
	shown  json.RawMessage // what the template tells the model; nil: nothing
	whole  json.RawMessage // the same, with what tools may leave out
	choice toolcall.Choice
}

// offered says whether an answer may have calls.
func (t tooling) offered() bool { return len(t.tools) > 0 }

// tooling reads tools, tool_choice and parallel_tool_calls.
func (f *fields) tooling() tooling {
	t := tooling{choice: toolcall.Choice{Parallel: f.boolean("parallel_tool_calls", true)}}
	if raw, ok := f.take("tools"); ok && string(raw) != "[]" {
		f.tools(raw, &t)
	}
	raw, ok := f.take("tool_choice")
	if !ok {
		return t
	}
	var word string
	if json.Unmarshal(raw, &word) != nil {
		part, _ := f.within("tool_choice", raw)
		part.toolChoice(&t)
		f.join(part)
		return t
	}
	switch word {
	case "none":
		return tooling{} // the model is not even told of them
	case "auto":
	case "required":
		t.choice.Mode = toolcall.Required
	default:
		f.fail("tool_choice", "tool_choice must be none, auto, required, or an object that names functions")
	}
	if t.choice.Mode == toolcall.Required && !t.offered() {
		f.fail("tool_choice", "tool_choice required needs tools")
	}
	return t
}

func (f *fields) tools(raw json.RawMessage, t *tooling) {
	var list []json.RawMessage
	if json.Unmarshal(raw, &list) != nil || len(list) > maxTools {
		f.fail("tools", "tools must be a list of at most %d objects with type and function", maxTools)
		return
	}
	shown, whole := make([]object, len(list)), make([]object, len(list))
	for i, raw := range list {
		part, o := f.within(fmt.Sprintf("tools[%d]", i), raw)
		tool, show, complete := part.tool(o)
		if slices.ContainsFunc(t.tools, func(other toolcall.Tool) bool { return other.Name == tool.Name }) {
			part.fail("function.name", "function.name %q is there twice", tool.Name)
		}
		if f.join(part); f.err != nil {
			return
		}
		t.tools, shown[i], whole[i] = append(t.tools, tool), show, complete
	}
	t.shown, t.whole = encoded(shown), encoded(whole)
}

// tool is one, and how the template shows it: strict is for the server.
func (f *fields) tool(o object) (tool toolcall.Tool, shown, whole object) {
	if kind := f.text("type"); kind != "function" {
		f.fail("type", "type must be function")
	}
	raw, ok := f.take("function")
	if !ok {
		f.fail("function", "function is required: an object with name, description and parameters")
		return tool, nil, nil
	}
	part, function := f.within("function", raw)
	tool.Name = part.text("name")
	if !isToolName(tool.Name) {
		part.fail("name", "name must be 1 to 64 letters, digits, underscores, dots or dashes")
	}
	part.text("description")
	tool.Strict = part.boolean("strict", false)
	tool.Parameters = json.RawMessage(`{"type":"object","properties":{},"additionalProperties":false}`) // what leaving them out means
	if parameters, ok := part.take("parameters"); ok {
		if schema, err := parseObject(parameters); err != nil {
			part.fail("parameters", "parameters must be a JSON schema of an object: %s", err)
		} else if kind := schema.value("type"); kind != nil && string(kind) != `"object"` {
			part.fail("parameters", "parameters must be a JSON schema of an object: its type is %.100s", kind)
		}
		tool.Parameters = parameters
	}
	f.join(part)
	function = function.without("strict")
	complete := slices.Clone(function)
	for _, m := range []member{{"description", quoted("")}, {"parameters", json.RawMessage(`{"type":"object","properties":{}}`)}} {
		if value := complete.value(m.key); value == nil || string(value) == "null" {
			complete = complete.set(m.key, m.value)
		}
	}
	return tool, slices.Clone(o).set("function", encoded(function)), slices.Clone(o).set("function", encoded(complete))
}

func isToolName(name string) bool {
	for _, c := range []byte(name) {
		if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '_' || c == '-' || c == '.') {
			return false
		}
	}
	return 1 <= len(name) && len(name) <= 64
}

// toolChoice reads an object: one function that must be called, or those that may be.
func (f *fields) toolChoice(t *tooling) {
	switch kind := f.text("type"); kind {
	case "function":
		t.choice.Mode, t.choice.Name = toolcall.Named, f.functionName()
		t.allow(f, []string{t.choice.Name})
	case "allowed_tools":
		raw, _ := f.take("allowed_tools")
		part, _ := f.within("allowed_tools", raw)
		switch mode := part.text("mode"); mode {
		case "auto":
		case "required":
			t.choice.Mode = toolcall.Required
		default:
			part.fail("mode", "mode must be auto or required")
		}
		var list []json.RawMessage
		tools, _ := part.take("tools")
		if json.Unmarshal(tools, &list) != nil || len(list) == 0 {
			part.fail("tools", "tools must be a list of objects with type and function")
		}
		var names []string
		for i, raw := range list {
			one, _ := part.within(fmt.Sprintf("tools[%d]", i), raw)
			names = append(names, one.functionName())
			part.join(one)
		}
		t.allow(part, names)
		f.join(part)
	default:
		f.fail("type", "type must be function or allowed_tools")
	}
}

func (f *fields) functionName() string {
	raw, _ := f.take("function")
	part, _ := f.within("function", raw)
	name := part.text("name")
	if name == "" {
		part.fail("name", "name is required")
	}
	f.join(part)
	return name
}

// allow leaves of the tools only some; the template shows all.
func (t *tooling) allow(f *fields, names []string) {
	var allowed []toolcall.Tool
	for _, name := range names {
		i := slices.IndexFunc(t.tools, func(tool toolcall.Tool) bool { return tool.Name == name })
		if i < 0 {
			f.fail("function.name", "function.name %.100q is none of tools", name)
			return
		}
		allowed = append(allowed, t.tools[i])
	}
	t.tools = allowed
}
