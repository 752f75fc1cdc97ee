package model

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/estiba/estiba/internal/fixture"
	"github.com/estiba/estiba/runtime/template"
)

func TestOpenChat(t *testing.T) {
	for name, c := range map[string]struct {
		files       map[string]string
		chat, tools string // rendered without and with tools
		bos, eos    string
	}{
		"nothing": {nil, "", "", "", ""},
		"configuration": {map[string]string{
			"tokenizer_config.json": `{"chat_template": "c", "bos_token": "<s>", "eos_token": {"content": "</s>"}}`,
		}, "c", "c", "<s>", "</s>"},
		"tokens of the older file": {map[string]string{
			"special_tokens_map.json": `{"bos_token": {"content": "<b>"}, "eos_token": "<e>"}`,
			"tokenizer_config.json":   `{"chat_template": "c", "eos_token": "</s>"}`,
		}, "c", "c", "<b>", "</s>"},
		"no begin token": {map[string]string{
			"tokenizer_config.json": `{"chat_template": "c", "bos_token": null}`,
		}, "c", "c", "", ""},
		"named ones": {map[string]string{
			"tokenizer_config.json": `{"chat_template": [{"name": "default", "template": "d"}, {"name": "tool_use", "template": "t"}]}`,
		}, "d", "t", "", ""},
		"no default": {map[string]string{
			"tokenizer_config.json": `{"chat_template": [{"name": "rag", "template": "r"}, {"name": "tool_use", "template": "t"}]}`,
		}, "unusable", "t", "", ""},
		"file of its own": {map[string]string{
			"tokenizer_config.json": `{"chat_template": "c"}`,
			"chat_template.json":    `{"chat_template": "p"}`,
			"chat_template.jinja":   "f\n",
		}, "f", "f", "", ""},
		"a processor's": {map[string]string{
			"tokenizer_config.json": `{"chat_template": "c"}`,
			"chat_template.json":    `{"chat_template": "p"}`,
		}, "p", "p", "", ""},
		"additional files": {map[string]string{
			"chat_template.jinja":                       "f",
			"additional_chat_templates/tool_use.jinja":  "t",
			"additional_chat_templates/notes":           "n",
			"additional_chat_templates/summarize.jinja": "s",
		}, "f", "t", "", ""},
		"not Jinja": {map[string]string{"chat_template.jinja": "{% for %}"}, "unusable", "unusable", "", ""},
		"no text":   {map[string]string{"tokenizer_config.json": `{"chat_template": 5}`}, "unusable", "unusable", "", ""},
		"empty":     {map[string]string{"tokenizer_config.json": `{"chat_template": ""}`}, "", "", "", ""},
	} {
		dir := t.TempDir()
		for file, text := range c.files {
			if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, file)), 0o755); err != nil {
				t.Fatal(err)
			}
			fixture.WriteFile(t, filepath.Join(dir, file), []byte(text))
		}
		chat, err := OpenChat(dir)
		if err != nil || chat.BOS != c.bos || chat.EOS != c.eos {
			t.Errorf("%s: %q, %q, %v", name, chat.BOS, chat.EOS, err)
			continue
		}
		render := func(tools string) string {
			if chat.Template == nil {
				return ""
			}
			got, err := chat.Template.Render(template.Input{Messages: []byte("[]"), Tools: []byte(tools)})
			if errors.Is(err, template.ErrUnusable) {
				return "unusable"
			}
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
			return got.Text
		}
		if chat, tools := render(""), render("[]"); chat != c.chat || tools != c.tools {
			t.Errorf("%s: %q and with tools %q", name, chat, tools)
		}
	}
	if _, err := OpenChat(filepath.Join(t.TempDir(), "nowhere")); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
	dir := t.TempDir()
	fixture.WriteFile(t, filepath.Join(dir, "tokenizer_config.json"), []byte(`{"chat_template": 5}`))
	if chat, err := OpenChat(dir); err != nil {
		t.Error(err)
	} else if _, err := chat.Template.Render(template.Input{}); err == nil || !strings.Contains(err.Error(), "tokenizer_config.json: chat_template is neither a text") {
		t.Error(err)
	}
	fixture.WriteFile(t, filepath.Join(dir, "tokenizer_config.json"), []byte("{"))
	if _, err := OpenChat(dir); !errors.Is(err, ErrInvalid) {
		t.Error(err)
	}
}

func TestChatOfGGUF(t *testing.T) {
	fields := map[string]any{
		"tokenizer.ggml.tokens":            []string{"<unk>", "<s>", "</s>"},
		"tokenizer.ggml.bos_token_id":      uint32(1),
		"tokenizer.ggml.eos_token_id":      uint32(7), // outside
		"tokenizer.chat_template":          "{{ bos_token }}c",
		"tokenizer.chat_template.tool_use": "t",
	}
	chat := chatOfGGUF(fields)
	if chat.BOS != "<s>" || chat.EOS != "" {
		t.Errorf("%q, %q", chat.BOS, chat.EOS)
	}
	for tools, want := range map[string]string{"": "<s>c", "[]": "t"} {
		got, err := chat.Template.Render(template.Input{Messages: []byte("[]"), Tools: []byte(tools), BOS: chat.BOS})
		if err != nil || got.Text != want {
			t.Errorf("%q: %q, %v", tools, got.Text, err)
		}
	}
	if chat := chatOfGGUF(nil); chat.Template != nil {
		t.Error("a chat template from nowhere")
	}
}
