package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/estiba/estiba/internal/file"
	"github.com/estiba/estiba/runtime/model"
	"github.com/estiba/estiba/runtime/template"
)

func renderCommand() *cobra.Command {
	var jsonl, asJSON bool
	cmd := &cobra.Command{
		Use:   "render MODEL|FILE.jinja --jsonl",
		Short: "Turn chats into the text that a model continues",
		Long: `Turn lines of JSON on standard input into lines on standard output, {"rendered": "…"}
or, where a line is no chat or the template refuses it, {"error": "…"}. A line of input has "messages"
and, if wanted, "tools", "add_generation_prompt" (default false), "kwargs" (further
variables of the template), "bos_token" and "eos_token" (default: the model's), and
"now" (the time that templates see, such as "2026-01-02T03:04:05").

MODEL is a folder with tokenizer files or a .gguf file; one without a chat template is
rendered as ChatML. The exit code is 1 if a line is no JSON.`,
		Example: `  echo '{"messages": [{"role": "user", "content": "Hi"}]}' | estiba render ./qwen3 --jsonl`,
		Args:    oneModel,
	}
	cmd.Flags().BoolVar(&jsonl, "jsonl", false, "lines of JSON in and out")
	cmd.Flags().BoolVar(&asJSON, "json", false, "the same, as other commands have it")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if !jsonl && !asJSON {
			return usageError{errors.New("give --jsonl: lines of JSON are what this version reads")}
		}
		return uninterrupted(cmd.Context(), func() error {
			chat, err := openChat(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return render(chat, cmd.InOrStdin(), cmd.OutOrStdout())
		})
	}
	return cmd
}

// maxTemplate bounds a template in a file of its own, in bytes.
const maxTemplate = 1 << 20

// openChat reads a model's template, or a template in a file of its own.
func openChat(ctx context.Context, path string) (model.Chat, error) {
	stat, err := os.Stat(path)
	if err != nil {
		return model.Chat{}, fmt.Errorf("read %s: %w; give a model's folder, a .gguf file or a template", path, file.Cause(err))
	}
	switch ext := strings.ToLower(filepath.Ext(path)); {
	case ext == ".json" && !stat.IsDir(): // stands for its folder, as a .safetensors file does
		path = filepath.Dir(path)
	case stat.IsDir(), ext == ".gguf", ext == ".safetensors":
	default:
		source, err := file.Read(ctx, path, maxTemplate)
		if err != nil {
			return model.Chat{}, err
		}
		t, err := template.Parse(filepath.Base(path), string(source))
		if err != nil {
			t = template.Unusable(err) // every chat is answered with that
		}
		return model.Chat{Template: t}, nil
	}
	chat, err := model.OpenChat(path)
	if err == nil && chat.Template == nil {
		chat.Template, err = template.ChatML(), noModel(path)
	}
	return chat, err
}

// noModel is an error for a folder without anything of a model.
func noModel(path string) error {
	if stat, err := os.Stat(path); err != nil || !stat.IsDir() {
		return err
	}
	for _, name := range []string{
		"config.json", "tokenizer_config.json", "tokenizer.json", "tokenizer.model", "vocab.txt", "special_tokens_map.json",
		"model.safetensors", "model.safetensors.index.json",
	} {
		if _, err := os.Stat(filepath.Join(path, name)); err == nil {
			return nil
		}
	}
	return fmt.Errorf("read %s: the folder has neither a chat template nor files of a model or its tokenizer; give another, a .gguf file or a template", path)
}

// render answers each line of in with one on out.
func render(chat model.Chat, in io.Reader, out io.Writer) error {
	return answerLines(in, out, func(line []byte) (string, any, error) {
		text, err := renderLine(chat, line)
		return "rendered", text, err
	})
}

func renderLine(chat model.Chat, line []byte) (string, error) {
	ask := struct {
		Messages            json.RawMessage `json:"messages"`
		Tools               json.RawMessage `json:"tools"`
		AddGenerationPrompt bool            `json:"add_generation_prompt"`
		Kwargs              json.RawMessage `json:"kwargs"`
		BOS                 *string         `json:"bos_token"`
		EOS                 *string         `json:"eos_token"`
		Now                 string          `json:"now"`
	}{}
	if err := decodeLine(line, &ask); err != nil {
		return "", err
	}
	if ask.Messages == nil {
		return "", lineError{errors.New(`give "messages"`)}
	}
	input := template.Input{
		Messages: ask.Messages, Tools: ask.Tools, Kwargs: ask.Kwargs, AddGenerationPrompt: ask.AddGenerationPrompt,
		BOS: chat.BOS, EOS: chat.EOS, Now: time.Now(),
	}
	if ask.BOS != nil {
		input.BOS = *ask.BOS
	}
	if ask.EOS != nil {
		input.EOS = *ask.EOS
	}
	if ask.Now != "" {
		now, err := parseNow(ask.Now)
		if err != nil {
			return "", lineError{err}
		}
		input.Now = now
	}
	rendered, err := chat.Template.Render(input)
	return rendered.Text, err
}

// parseNow reads a time with or without a zone, or a date.
func parseNow(s string) (time.Time, error) {
	for _, layout := range []string{"2006-01-02T15:04:05", time.RFC3339, "2006-01-02 15:04:05", time.DateOnly} {
		if t, err := time.Parse(layout, s); err == nil {
			return t, nil
		}
	}
	return time.Time{}, fmt.Errorf(`now is %q: give a time such as "2026-01-02T03:04:05"`, s)
}
