package cli

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/estiba/estiba/runtime/model"
	"github.com/estiba/estiba/runtime/template"
)

func renderCommand() *cobra.Command {
	var jsonl bool
	cmd := &cobra.Command{
		Use:   "render MODEL|FILE.jinja --jsonl",
		Short: "Turn chats into the text that a model continues",
		Long: `Turn lines of JSON on standard input into lines on standard output, {"rendered": "…"}
or, where the template refuses a chat, {"error": "…"}. A line of input has "messages"
and, if wanted, "tools", "add_generation_prompt" (default false), "kwargs" (further
variables of the template), "bos_token" and "eos_token" (default: the model's), and
"now" (the time that templates see, such as "2026-01-02T03:04:05").

MODEL is a folder with tokenizer files or a .gguf file; one without a chat template is
rendered as ChatML. The exit code is 1 if a line is not such an object.`,
		Example: `  echo '{"messages": [{"role": "user", "content": "Hi"}]}' | estiba render ./qwen3 --jsonl`,
		Args:    cobra.ExactArgs(1),
	}
	cmd.Flags().BoolVar(&jsonl, "jsonl", false, "lines of JSON in and out")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if !jsonl {
			return usageError{errors.New("give --jsonl: lines of JSON are what this version reads")}
		}
		chat, err := openChat(args[0])
		if err != nil {
			return err
		}
		return render(chat, cmd.InOrStdin(), cmd.OutOrStdout())
	}
	return cmd
}

// openChat reads a model's template, or a template in a file of its own.
func openChat(path string) (model.Chat, error) {
	switch stat, err := os.Stat(path); {
	case err != nil:
		return model.Chat{}, err
	case stat.IsDir(), filepath.Ext(path) == ".gguf", filepath.Ext(path) == ".safetensors":
		chat, err := model.OpenChat(path)
		if chat.Template == nil {
			chat.Template = template.ChatML()
		}
		return chat, err
	}
	source, err := os.ReadFile(path)
	if err != nil {
		return model.Chat{}, err
	}
	t, err := template.Parse(filepath.Base(path), string(source))
	if err != nil {
		t = template.Unusable(err) // every chat is answered with that
	}
	return model.Chat{Template: t}, nil
}

// render answers each line of in with one on out. What is not a chat at all is
// answered with {"error": …}, too; the first of those is returned at the end.
func render(chat model.Chat, in io.Reader, out io.Writer) (failed error) {
	lines, enc := bufio.NewReader(in), json.NewEncoder(out)
	enc.SetEscapeHTML(false)
	for n := 1; ; n++ {
		line, end := lines.ReadBytes('\n')
		if end != nil && end != io.EOF {
			return fmt.Errorf("standard input, line %d: %w", n, end)
		}
		if line = bytes.TrimSpace(line); len(line) > 0 {
			var answer any
			text, err := renderLine(chat, line)
			if bad, ok := errors.AsType[lineError](err); ok {
				err = fmt.Errorf("standard input, line %d: %w", n, bad.error)
				failed = cmp.Or(failed, err)
			}
			answer = map[string]string{"rendered": text}
			if err != nil {
				answer = map[string]string{"error": err.Error()}
			}
			if err := enc.Encode(answer); err != nil {
				return err
			}
		}
		if end == io.EOF {
			return failed
		}
	}
}

// lineError says that a line is no chat.
type lineError struct{ error }

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
	if err := json.Unmarshal(line, &ask); err != nil {
		return "", lineError{err}
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
