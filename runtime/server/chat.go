package server

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/estiba/estiba/runtime/template"
	"github.com/estiba/estiba/runtime/tokenizer"
)

// dialog is a chat as a template takes it.
type dialog struct {
	messages   []object        // contents are strings, arguments of tool calls are objects
	tools      json.RawMessage // nil: none
	wholeTools json.RawMessage // the same, with what tools may leave out
	kwargs     object          // variables of the template
	generate   bool            // the text ends where an answer begins
	resume     bool            // the text ends with the last message's content
	around     bool            // the tokenizer's special tokens are put around it
}

// dialog reads what is rendered of a request.
func (f *fields) dialog() dialog {
	d := dialog{messages: f.messages(), around: f.boolean("add_special_tokens", false)}
	d.resume = f.boolean("continue_final_message", false)
	d.generate = f.boolean("add_generation_prompt", !d.resume)
	if d.resume && d.generate {
		f.fail("continue_final_message", "continue_final_message and add_generation_prompt exclude each other")
	}
	if raw, ok := f.take("chat_template_kwargs"); ok {
		part, o := f.within("chat_template_kwargs", raw)
		for _, name := range reserved {
			if _, ok := part.left[name]; ok {
				part.fail(name, "%s is reserved: it comes from elsewhere in the request, or from the model", name)
			}
		}
		f.join(part)
		d.kwargs = o
	}
	return d
}

// reserved are variables of templates that a request says otherwise, or not at all.
var reserved = []string{"messages", "tools", "add_generation_prompt", "continue_final_message", "bos_token", "eos_token", "chat_template", "tokenize"}

// roles are who may speak.
const roles = "system, developer, user, assistant or tool"

func (f *fields) messages() []object {
	raw, ok := f.take("messages")
	if !ok {
		f.fail("messages", "messages is required: a list of objects with role and content")
		return nil
	}
	var list []json.RawMessage
	if json.Unmarshal(raw, &list) != nil || len(list) == 0 {
		f.fail("messages", "messages must be a list, not empty, of objects with role and content")
		return nil
	}
	messages := make([]object, len(list))
	for i, raw := range list {
		part, o := f.within(fmt.Sprintf("messages[%d]", i), raw)
		messages[i] = part.message(o)
		if f.join(part); f.err != nil {
			return nil
		}
	}
	return messages
}

// message checks one and brings it into the form that templates read. Members
// that are not known here are theirs to read, too.
func (f *fields) message(o object) object {
	role := f.text("role")
	switch role {
	case "system", "developer", "user", "assistant", "tool":
	case "function":
		f.fail("role", "role function is not supported: send the role tool, with tool_call_id")
	default:
		f.fail("role", "role must be %s", roles)
	}
	calls, called := f.toolCalls(role)
	content, written := f.content(role)
	if !written && role != "assistant" {
		f.fail("content", "content is required: a string or a list of parts")
	}
	f.text("name")
	if id := f.text("tool_call_id"); id == "" && role == "tool" {
		f.fail("tool_call_id", "tool_call_id is required: the id of the call that this answers")
	}
	for _, name := range []string{"audio", "refusal", "function_call"} { // a client sends back what it got: null
		if _, ok := f.take(name); ok {
			f.fail(name, "%s is not supported; leave it out", name)
		}
	}
	o = o.without("audio", "refusal", "function_call", "annotations", "parsed", "tool_calls").set("content", quoted(content))
	if called {
		o = o.set("tool_calls", calls)
	}
	return o
}

// content is a string or a list of parts of type text, or refusal of an assistant; false if there is none.
func (f *fields) content(role string) (string, bool) {
	raw, ok := f.take("content")
	var s string
	if !ok || json.Unmarshal(raw, &s) == nil {
		return s, ok
	}
	var parts []struct {
		Type    string  `json:"type"`
		Text    *string `json:"text"`
		Refusal *string `json:"refusal"`
	}
	if json.Unmarshal(raw, &parts) != nil {
		f.fail("content", "content must be a string or a list of parts")
	}
	for _, p := range parts {
		if p.Type == "refusal" && role == "assistant" && p.Refusal != nil {
			s += *p.Refusal
			continue
		}
		if p.Type != "text" || p.Text == nil {
			f.fail("content", "content may have only parts of type text, with a text")
			break
		}
		s += *p.Text
	}
	return s, true
}

// toolCalls are those that an assistant made earlier. Their arguments, which
// clients send as the text of an object, become that object, as templates want it.
func (f *fields) toolCalls(role string) (json.RawMessage, bool) {
	raw, ok := f.take("tool_calls")
	if !ok || string(raw) == "[]" {
		return nil, false
	}
	var list []json.RawMessage
	if json.Unmarshal(raw, &list) != nil || len(list) == 0 || role != "assistant" {
		f.fail("tool_calls", "tool_calls must be a list of calls, in a message of the assistant")
		return nil, false
	}
	calls := make([]object, len(list))
	for i, raw := range list {
		part, o := f.within(fmt.Sprintf("tool_calls[%d]", i), raw)
		calls[i] = part.toolCall(o)
		if f.join(part); f.err != nil {
			return nil, false
		}
	}
	whole, err := json.Marshal(calls)
	if err != nil {
		panic(err) // each part has been read as JSON
	}
	return whole, true
}

func (f *fields) toolCall(o object) object {
	if kind := f.text("type"); kind != "function" && kind != "" {
		f.fail("type", "type must be function")
	}
	raw, ok := f.take("function")
	if !ok {
		f.fail("function", "function is required: an object with name and arguments")
		return nil
	}
	part, function := f.within("function", raw)
	if part.text("name") == "" {
		part.fail("name", "name is required: the function that was called")
	}
	arguments, _ := part.take("arguments")
	var text string
	if json.Unmarshal(arguments, &text) == nil { // else an object already
		arguments = json.RawMessage(strings.TrimSpace(text))
	}
	if len(arguments) == 0 {
		arguments = json.RawMessage("{}")
	}
	given, _, err := parseMembers(arguments) // a model may have written a key twice
	if err != nil {
		part.fail("arguments", "arguments must be the text of a JSON object: %s", err)
	}
	f.join(part)
	function = function.without("parsed_arguments").set("arguments", encoded(given))
	return o.without("index").set("type", quoted("function")).set("function", encoded(function))
}

// encode renders a chat and gives its ids.
func (d dialog) encode(c call) ([]int32, *apiError) {
	t := c.template()
	messages := d.messages
	if !strings.Contains(t.Source(), "developer") {
		messages = slices.Clone(messages)
		for i, m := range messages {
			if string(m.value("role")) == `"developer"` {
				messages[i] = slices.Clone(m).set("role", quoted("system")) // what it was called before
			}
		}
	}
	in := template.Input{Tools: d.tools, AddGenerationPrompt: d.generate, BOS: c.BOS, EOS: c.EOS, Now: c.arrived}
	var err error
	if in.Messages, err = json.Marshal(messages); err == nil && d.kwargs != nil {
		in.Kwargs, err = json.Marshal(d.kwargs)
	}
	if err != nil {
		panic(err) // each part has been read as JSON
	}
	rendered, err := t.Render(in)
	param := "messages"
	if err != nil && d.tools != nil && !errors.Is(err, template.ErrUnusable) {
		// Some templates count on what clients leave out of tools; the others see them as they are.
		in.Tools = d.wholeTools
		if again, e := t.Render(in); e == nil {
			rendered, err = again, nil
		}
		in.Tools = nil
		if _, e := t.Render(in); err != nil && e == nil {
			param = "tools"
		}
	}
	switch {
	case errors.Is(err, template.ErrUnusable):
		e := invalid("messages", "%s. Send the prompt as text to /v1/completions.", capitalized(err.Error()))
		e.Code = "chat_template_unusable"
		return nil, e
	case err != nil:
		e := invalid(param, "The model's chat template refuses these %s: %v.", param, err)
		e.Code = "chat_template_error"
		return nil, e
	}
	if d.resume {
		var content string
		json.Unmarshal(d.messages[len(d.messages)-1].value("content"), &content) // written by ourselves
		var ok bool
		if rendered, ok = until(rendered, content); !ok {
			return nil, invalid("continue_final_message", "The model's chat template does not show the last message as it is, so that nothing can go on there.")
		}
	}
	ids := c.Tokenizer.EncodeChat(rendered.Text, rendered.Plain)
	if d.around || c.Template == nil { // ChatML knows nothing of a model's begin token
		if front := begin(c.Tokenizer); len(ids) < len(front) || !slices.Equal(ids[:len(front)], front) {
			ids = append(front, ids...)
		}
	}
	return ids, nil
}

// until is a chat's text up to the end of its last message.
func until(r template.Rendered, content string) (template.Rendered, bool) {
	last := strings.TrimSpace(content) // as most templates show it
	i := strings.LastIndex(r.Text, last)
	if i < 0 || last == "" {
		return r, false
	}
	end := i + len(last)
	if after := content[strings.LastIndex(content, last)+len(last):]; strings.HasPrefix(r.Text[end:], after) {
		end += len(after)
	}
	r.Text = r.Text[:end]
	r.Plain = slices.Clone(r.Plain)
	for i, p := range r.Plain {
		if p[1] > end {
			r.Plain = r.Plain[:i]
			if p[0] < end {
				r.Plain = append(r.Plain, [2]int{p[0], end})
			}
			break
		}
	}
	return r, true
}

// begin are the tokens that a tokenizer puts in front of a text.
func begin(t *tokenizer.Tokenizer) []int32 {
	const any = "a"
	whole, bare := t.Encode(any, true), t.Encode(any, false)
	for i := range whole {
		if len(bare) > 0 && len(whole)-i >= len(bare) && slices.Equal(whole[i:i+len(bare)], bare) {
			return whole[:i:i]
		}
	}
	return nil
}
