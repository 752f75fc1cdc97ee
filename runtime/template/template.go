// Package template turns the messages of a chat into the text that a model
// continues. Models without a chat template of their own get ChatML; a template
// that a model brings is in Jinja, which this version does not render, and
// never renders wrongly. Start with Render.
package template

import (
	"errors"
	"fmt"
	"strings"
)

// ErrUnsupported: the model brings a chat template that this version cannot render.
var ErrUnsupported = errors.New("unsupported chat template")

// Message is one turn of a chat.
type Message struct {
	Role    string // "system", "user", "assistant", …
	Content string
}

// Template does not change once made.
type Template struct {
	jinja string // where a template in Jinja was found; empty for ChatML
}

// ChatML writes each message as "<|im_start|>role\ncontent<|im_end|>\n".
func ChatML() *Template { return &Template{} }

// Jinja is the template that a model brings in a place such as
// "tokenizer_config.json: chat_template". Render refuses it.
func Jinja(place string) *Template { return &Template{jinja: place} }

// Render writes messages as text; with addGenerationPrompt, the text ends where
// the assistant's answer begins. The error is ErrUnsupported and says what works instead.
func (t *Template) Render(messages []Message, addGenerationPrompt bool) (string, error) {
	if t.jinja != "" {
		return "", fmt.Errorf("%w: %s is in Jinja, which this version of Estiba does not render; send the prompt as text to /v1/completions",
			ErrUnsupported, t.jinja)
	}
	var text strings.Builder
	for _, m := range messages {
		text.WriteString("<|im_start|>" + m.Role + "\n" + m.Content + "<|im_end|>\n")
	}
	if addGenerationPrompt {
		text.WriteString("<|im_start|>assistant\n")
	}
	return text.String(), nil
}
