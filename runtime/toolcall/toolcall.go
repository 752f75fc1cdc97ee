// Package toolcall reads the calls of tools that models write into their answers, each in the
// format that its chat template teaches it, and says as a grammar what such calls look like.
// Detect knows the format by the template; Parser reads an answer as it comes; Constraint is
// for answers that must be calls.
//
// Everything is decided byte by byte, so that an answer gives the same calls however it is cut
// into pieces. What is not a call of a tool that was offered is content, unchanged: unknown
// names, broken JSON, markers alone. White space around a call belongs to the format, unless
// there is text on both sides of it.
package toolcall

import (
	"encoding/json"
	"fmt"
	"strings"
)

// Tool is a function that a model may call.
type Tool struct {
	Name       string
	Parameters json.RawMessage // JSON schema of its arguments, an object; empty: any object
	Strict     bool            // arguments must be valid under the schema though the model may choose not to call
}

// Format is how a model writes calls. The zero value stands for a template that shows none;
// calls are then written and read as Hermes does.
type Format struct {
	style  style
	fenced bool // DeepSeek: type, name and a block of JSON, as R1 and V3 write; without: V3.1
	named  bool // Mistral: the name before the arguments, since its tokenizer's version 11
	ids    bool // Mistral: the call's id between the two
}

type style uint8

const (
	unknown    style = iota
	hermes           // <tool_call>{"name": …, "arguments": {…}}</tool_call>
	functions        // <tool_call><function=name><parameter=key>value</parameter></function></tool_call>
	pairs            // <tool_call>name<arg_key>key</arg_key><arg_value>value</arg_value></tool_call>
	pythonTag        // {"name": …, "parameters": {…}} as the whole answer, or after <|python_tag|>
	mistral          // [TOOL_CALLS][{"name": …, "arguments": {…}}] or [TOOL_CALLS]name[ARGS]{…}
	deepseek         // <｜tool▁call▁begin｜>name<｜tool▁sep｜>{…}<｜tool▁call▁end｜>
	harmony          // <|channel|>commentary to=functions.name <|constrain|>json<|message|>{…}<|call|>
	jsonList         // <|tool_call|>[{"name": …, "arguments": {…}}]
	styleCount       // how many there are
)

var styleNames = [styleCount]string{"unknown", "hermes", "functions", "pairs", "llama", "mistral", "deepseek", "harmony", "list"}

func (f Format) String() string { return styleNames[f.style] }

// Detect finds the format in the source of a chat template, by the markers that it writes.
func Detect(templateSource string) Format {
	has := func(s string) bool { return strings.Contains(templateSource, s) }
	switch {
	case has("<|channel|>") && has("<|message|>"):
		return Format{style: harmony}
	case has("<｜tool▁call▁begin｜>"):
		return Format{style: deepseek, fenced: has("```json")}
	case has("[TOOL_CALLS]"):
		return Format{style: mistral, named: has("[ARGS]"), ids: has("[CALL_ID]")}
	case has("<arg_key>"):
		return Format{style: pairs}
	case has("<function=") && has("<parameter="):
		return Format{style: functions}
	case has("<|tool_call|>"):
		return Format{style: jsonList}
	case has("<tool_call>"):
		return Format{style: hermes}
	case has("<|python_tag|>") || has("<|start_header_id|>"):
		return Format{style: pythonTag}
	}
	return Format{}
}

// Always says that answers need the parser even if no tools are offered: the format wraps
// every answer, not only calls.
func (f Format) Always() bool { return f.style == harmony }

// Markers are texts that frame calls and that the tokenizer may hold as one special token. An
// answer that may have calls must be decoded with the text of special tokens, and the vocabulary
// of a Constraint should give these tokens their text as bytes: otherwise ordinary tokens
// spell them, which reads the same but is not what the model has learned.
func (f Format) Markers() []string {
	var list []string
	for _, m := range markers[f.style] {
		if len(m.text) > 1 {
			list = append(list, m.text)
		}
	}
	return append(list, inner[f.style]...)
}

// inner are markers within a call; those around one are in markers.
var inner = [styleCount][]string{
	functions: {"<function=", "<parameter=", "</parameter>", "</function>"},
	pairs:     {"<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"},
	mistral:   {"[CALL_ID]", "[ARGS]"},
	deepseek:  {"<｜tool▁sep｜>"},
	harmony:   {"<|constrain|>", "<|message|>"},
}

// Delta is the next part of an answer: content, reasoning, or else a part of a call.
type Delta struct {
	Content   string
	Reasoning string // what the format itself sets apart as thinking

	Index     int    // of the call in the answer, from 0
	ID, Name  string // in a call's first part
	Arguments string // further JSON text, in pieces; the pieces of a call make one object, unless the answer broke off in it
}

// Call says that the delta is a part of a call.
func (d Delta) Call() bool { return d.Content == "" && d.Reasoning == "" }

// id makes a call's id of random bits. Mistral's templates refuse others than nine letters or digits.
func (f Format) id(random func() uint64) string {
	if f.style != mistral {
		return fmt.Sprintf("call_%016x%08x", random(), uint32(random()))
	}
	const digits = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
	var id [9]byte
	bits := random()
	for i := range id {
		id[i], bits = digits[bits%uint64(len(digits))], bits/uint64(len(digits))
	}
	return string(id[:])
}
