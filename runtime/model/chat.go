package model

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/estiba/estiba/runtime/template"
	"github.com/estiba/estiba/runtime/weights"
)

// Chat is what a checkpoint brings to render chats with.
type Chat struct {
	Template *template.Template // nil: none; use ChatML
	// The texts that templates know as bos_token and eos_token. Empty where the
	// checkpoint names none, even if there is such a token.
	BOS, EOS string
}

// OpenChat reads what a folder or a .gguf file brings for chats. Only a
// folder's tokenizer files need to be there.
func OpenChat(path string) (Chat, error) {
	stat, err := os.Stat(path)
	if err != nil {
		return Chat{}, err
	}
	if stat.IsDir() {
		chat, err := chatOfFolder(path)
		return chat, ofKind(err)
	}
	w, err := weights.Read(path)
	if err != nil {
		return Chat{}, err
	}
	if w.Format != weights.GGUF {
		chat, err := chatOfFolder(filepath.Dir(path))
		return chat, ofKind(err)
	}
	return chatOfGGUF(w.Fields), nil
}

// tokenName is a special token in a configuration: its text, or an object with it.
type tokenName string

func (n *tokenName) UnmarshalJSON(raw []byte) error {
	var text string
	var object struct{ Content string }
	if json.Unmarshal(raw, &text) != nil {
		if json.Unmarshal(raw, &object) != nil {
			return fmt.Errorf("the special token %.40s is neither a text nor an object with one", raw)
		}
		text = object.Content
	}
	*n = tokenName(text)
	return nil
}

// chatOfFolder looks where transformers does: files of their own come before
// what the configuration of a processor or of the tokenizer says.
func chatOfFolder(dir string) (Chat, error) {
	var config struct {
		ChatTemplate json.RawMessage `json:"chat_template"`
		BOS          *tokenName      `json:"bos_token"`
		EOS          *tokenName      `json:"eos_token"`
	}
	// special_tokens_map.json is older and says what the other leaves out.
	for _, name := range []string{"special_tokens_map.json", "tokenizer_config.json"} {
		text, err := optional(dir, name, maxTokenizerConfig)
		if err != nil {
			return Chat{}, err
		}
		if text == nil {
			continue
		}
		if err := json.Unmarshal(text, &config); err != nil {
			return Chat{}, fmt.Errorf("read %s: %w: %w", filepath.Join(dir, name), ErrInvalid, weights.JSONError(err))
		}
	}
	var chat Chat
	if config.BOS != nil {
		chat.BOS = string(*config.BOS)
	}
	if config.EOS != nil {
		chat.EOS = string(*config.EOS)
	}
	sources, err := templateFiles(dir)
	if err != nil {
		return Chat{}, err
	}
	if len(sources) == 0 {
		text, err := optional(dir, "chat_template.json", maxTokenizerConfig)
		if err != nil {
			return Chat{}, err
		}
		var processor struct {
			ChatTemplate json.RawMessage `json:"chat_template"`
		}
		if text != nil {
			if err := json.Unmarshal(text, &processor); err != nil {
				return Chat{}, fmt.Errorf("read %s: %w: %w", filepath.Join(dir, "chat_template.json"), ErrInvalid, weights.JSONError(err))
			}
		}
		sources = namedTemplates("chat_template.json", processor.ChatTemplate)
	}
	if len(sources) == 0 {
		sources = namedTemplates("tokenizer_config.json", config.ChatTemplate)
	}
	chat.Template = parseTemplates(sources)
	return chat, nil
}

// source is where a template is, and its text.
type source struct {
	place, text string
	err         error // why it is none
}

// templateFiles reads the templates in files of their own: name -> template.
func templateFiles(dir string) (map[string]source, error) {
	files := map[string]string{"default": "chat_template.jinja"}
	const additional = "additional_chat_templates"
	entries, err := os.ReadDir(filepath.Join(dir, additional))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for _, e := range entries {
		if name, ok := strings.CutSuffix(e.Name(), ".jinja"); ok {
			files[name] = filepath.Join(additional, e.Name())
		}
	}
	sources := map[string]source{}
	for name, file := range files {
		text, err := optional(dir, file, maxConfig)
		if err != nil {
			return nil, err
		}
		if text != nil {
			sources[name] = source{place: file, text: string(text)}
		}
	}
	return sources, nil
}

// namedTemplates reads a configuration's chat_template: a text, a list of named
// texts, or an object of them.
func namedTemplates(file string, raw json.RawMessage) map[string]source {
	sources := map[string]source{}
	add := func(name, place, text string) { sources[name] = source{place: file + ": " + place, text: text} }
	var text string
	var list []struct{ Name, Template string }
	var object map[string]string
	switch {
	case len(raw) == 0 || string(raw) == "null":
	case json.Unmarshal(raw, &text) == nil:
		if text != "" {
			add("default", "chat_template", text)
		}
	case json.Unmarshal(raw, &list) == nil:
		for _, t := range list {
			add(t.Name, "chat_template "+t.Name, t.Template)
		}
	case json.Unmarshal(raw, &object) == nil:
		for name, text := range object {
			add(name, "chat_template "+name, text)
		}
	default:
		sources["default"] = source{err: fmt.Errorf("%s: chat_template is neither a text nor a list of named texts", file)}
	}
	return sources
}

// chatOfGGUF reads the fields of a GGUF file.
func chatOfGGUF(fields map[string]any) Chat {
	var chat Chat
	tokens, _ := fields["tokenizer.ggml.tokens"].([]string)
	token := func(field string) string {
		id, ok := fields[field].(uint32)
		if !ok || int64(id) >= int64(len(tokens)) {
			return ""
		}
		return tokens[id]
	}
	chat.BOS, chat.EOS = token("tokenizer.ggml.bos_token_id"), token("tokenizer.ggml.eos_token_id")
	const field = "tokenizer.chat_template"
	sources := map[string]source{}
	if text, ok := fields[field].(string); ok && text != "" {
		sources["default"] = source{place: field, text: text}
	}
	if text, ok := fields[field+".tool_use"].(string); ok && text != "" {
		sources["tool_use"] = source{place: field + ".tool_use", text: text}
	}
	chat.Template = parseTemplates(sources)
	return chat
}

// parseTemplates makes one template of what a checkpoint brings: "default", and
// "tool_use" for chats with tools. One that cannot be parsed says so when a chat
// is rendered, since the model is still good for completions.
func parseTemplates(sources map[string]source) *template.Template {
	if len(sources) == 0 {
		return nil
	}
	parse := func(s source) *template.Template {
		if s.err != nil {
			return template.Unusable(s.err)
		}
		t, err := template.Parse(s.place, s.text)
		if err != nil {
			return template.Unusable(err)
		}
		return t
	}
	var t *template.Template
	if s, ok := sources["default"]; ok {
		t = parse(s)
	} else {
		t = template.Unusable(fmt.Errorf("there are several (%s) but none is named default",
			strings.Join(slices.Sorted(maps.Keys(sources)), ", ")))
	}
	if s, ok := sources["tool_use"]; ok {
		t = t.WithTools(parse(s))
	}
	return t
}
