// Package template turns the messages of a chat into the text that a model
// continues, by the chat template that the model brings: Jinja as Hugging Face
// transformers runs it, or ChatML for models without one. It knows which bytes of
// the text users wrote, so that a special token in them can be kept from being
// one; and it bounds what a template may use, since templates come with models
// and messages from anybody. Start with Parse and Render.
//
// The language is that of Jinja 3.1 in its ImmutableSandboxedEnvironment with
// trim_blocks, lstrip_blocks and loop controls, and with what transformers adds:
// raise_exception, strftime_now, a tojson that keeps characters and the order of
// keys, and the tag "generation". Values are Python's: see value.
package template

import (
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"
	"unicode/utf8"
)

var (
	// ErrUnusable: the model brings a chat template that cannot be read, or several
	// and none to be the default.
	ErrUnusable = errors.New("the model's chat template cannot be used")
	// ErrTooLong: a template used up the steps, memory or depth that it is given.
	ErrTooLong = errors.New("the chat template does not come to an end")
)

// Error is what went wrong at a line of a template: in Parse, that it is not
// Jinja; in Render, that the template and what it was given do not go together.
type Error struct {
	Template string
	Line     int
	Message  string
	Raised   bool // by the template itself, with raise_exception: the message is its author's
	limit    bool
}

func (e *Error) Error() string {
	if e.Raised || e.Line == 0 {
		return e.Message
	}
	return fmt.Sprintf("%s, line %d: %s", e.Template, e.Line, e.Message)
}

// Is says that an error at a bound is ErrTooLong.
func (e *Error) Is(target error) bool { return target == ErrTooLong && e.limit }

// Bounds of a rendering. A template may take so many steps and allocate so many
// bytes, and more by what it is given; a step takes some ten nanoseconds. Depth
// counts macros in macros (four each) and values in values.
const (
	maxSource   = 512 << 10 // bytes of a template
	baseSteps   = 4 << 20
	baseMemory  = 32 << 20
	inputSteps  = 16       // a byte
	inputMemory = 64       // bytes a byte
	maxInput    = 64 << 20 // bytes beyond which no more is given
	maxDepth    = 800
)

// Template does not change once made.
type Template struct {
	name   string
	source string
	body   []stmt
	shape  *frameShape
	tools  *Template // for chats with tools; nil: this one
	broken error     // why it cannot be used
}

// Parse reads a template in Jinja. The name is for errors, which are of type *Error.
func Parse(name, source string) (t *Template, err error) {
	defer catch(&err)
	if len(source) > maxSource {
		return nil, &Error{Template: name, Line: 1, Message: fmt.Sprintf("it has %d bytes; at most %d are read", len(source), maxSource)}
	}
	p := &parser{name: name, tokens: lex(name, source)}
	body := p.statements()
	r := &resolver{name: name, lang: jinja}
	return &Template{name: name, source: source, shape: r.template(body), body: body}, nil
}

// catch makes the *Error of a panic an error.
func catch(err *error) {
	switch e := recover().(type) {
	case nil:
	case *Error:
		*err = e
	default:
		panic(e)
	}
}

// Unusable is a template whose Render gives ErrUnusable and err.
func Unusable(err error) *Template {
	return &Template{broken: fmt.Errorf("%w: %w", ErrUnusable, err)}
}

// WithTools is t, but chats with tools are rendered by another template, as
// models have it that bring one named "tool_use".
func (t *Template) WithTools(tools *Template) *Template {
	both := *t
	both.tools = tools
	return &both
}

// Source is the template's text; of the one for chats with tools, if there are two.
func (t *Template) Source() string {
	if t.tools != nil {
		return t.tools.Source()
	}
	return t.source
}

// Input is what a chat template sees.
type Input struct {
	Messages            json.RawMessage // a list of objects; the order of their keys is kept
	Tools               json.RawMessage // a list of objects; nil or null: none
	AddGenerationPrompt bool            // end where the assistant's answer begins
	Kwargs              json.RawMessage // an object of further variables, such as enable_thinking; may be nil
	BOS, EOS            string          // bos_token and eos_token
	Now                 time.Time       // what strftime_now sees, in its own zone
}

// Rendered is a chat as text.
type Rendered struct {
	Text  string
	Plain [][2]int // ranges of bytes that came from Messages, Tools and Kwargs: sorted, disjoint, not empty
}

// Render writes a chat. The text of a role that models know is not in Plain, so
// that a template may make a special token of it. Errors are of type *Error, but
// for ErrUnusable; those at a bound are ErrTooLong, too.
func (t *Template) Render(in Input) (out Rendered, err error) {
	if t.tools != nil && len(in.Tools) > 0 && string(in.Tools) != "null" {
		t = t.tools
	}
	if t.broken != nil {
		return Rendered{}, t.broken
	}
	defer catch(&err)
	size := min(len(in.Messages)+len(in.Tools)+len(in.Kwargs)+len(t.source), maxInput)
	x := &state{
		name: t.name, line: 1, lang: jinja, now: in.Now,
		steps: baseSteps + inputSteps*size, memory: baseMemory + inputMemory*size,
	}
	if err := x.give(in); err != nil {
		return Rendered{}, &Error{Template: t.name, Message: err.Error()}
	}
	written := x.capture(func() { x.within(t.shape, t.body) })
	return Rendered{Text: written.s, Plain: written.plain}, nil
}

// give sets the variables that a template starts with.
func (x *state) give(in Input) error {
	x.context = make(map[string]value, len(globals)+8)
	for name, v := range globals {
		x.context[name] = v
	}
	x.context["documents"] = nil
	x.context["bos_token"] = literal(strings.ToValidUTF8(in.BOS, string(utf8.RuneError)))
	x.context["eos_token"] = literal(strings.ToValidUTF8(in.EOS, string(utf8.RuneError)))
	messages, err := x.decode("messages", in.Messages)
	if err != nil {
		return err
	}
	if l, ok := messages.(*list); !ok || l == nil {
		return errors.New("messages: give a list of messages")
	}
	var tools value
	if len(in.Tools) > 0 {
		if tools, err = x.decode("tools", in.Tools); err != nil {
			return err
		}
	}
	x.context["messages"], x.context["tools"], x.context["add_generation_prompt"] = messages, tools, in.AddGenerationPrompt
	if len(in.Kwargs) == 0 {
		return nil
	}
	kwargs, err := x.decode("kwargs", in.Kwargs)
	if err != nil {
		return err
	}
	d, ok := kwargs.(*dict)
	if !ok && kwargs != nil {
		return errors.New("kwargs: give an object")
	}
	if d != nil {
		for _, e := range d.entries {
			x.context[e.key.(text).s] = e.value
		}
	}
	return nil
}

// ChatML writes each message as "<|im_start|>role\ncontent<|im_end|>\n", with
// "system" for the role "developer". Tools, of which ChatML says nothing, are
// written as Hermes models read them.
func ChatML() *Template { return chatML() }

var chatML = sync.OnceValue(func() *Template {
	t, err := Parse("ChatML", chatMLSource)
	if err != nil {
		panic(err)
	}
	return t
})

//go:embed chatml.jinja
var chatMLSource string
