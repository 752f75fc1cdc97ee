package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/estiba/estiba/runtime/tokenizer"
)

func tokenizeCommand() *cobra.Command {
	var jsonl bool
	cmd := &cobra.Command{
		Use:   "tokenize MODEL --jsonl",
		Short: "Turn text into a model's token ids, and ids into text",
		Long: `Turn lines of JSON on standard input, {"text": "…"} or {"ids": [1, 2]}, into lines on
standard output, {"ids": [1, 2]} or {"text": "…"}. MODEL is a folder with tokenizer
files or a .gguf file. "special" (default true) adds the tokenizer's special tokens
to ids, and keeps special tokens in text.`,
		Example: `  echo '{"text": "Once upon a time"}' | estiba tokenize ./stories260K --jsonl`,
		Args:    cobra.ExactArgs(1),
	}
	cmd.Flags().BoolVar(&jsonl, "jsonl", false, "lines of JSON in and out")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if !jsonl {
			return usageError{errors.New("give --jsonl: lines of JSON are what this version reads")}
		}
		t, err := tokenizer.Open(args[0])
		if err != nil {
			return err
		}
		return tokenize(t, cmd.InOrStdin(), cmd.OutOrStdout())
	}
	return cmd
}

// tokenize answers each object of in with one on out.
func tokenize(t *tokenizer.Tokenizer, in io.Reader, out io.Writer) error {
	dec, enc := json.NewDecoder(in), json.NewEncoder(out)
	enc.SetEscapeHTML(false)
	for n := 1; ; n++ {
		var ask struct {
			Text    *string `json:"text"`
			IDs     []int32 `json:"ids"`
			Special *bool   `json:"special"`
		}
		if err := dec.Decode(&ask); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return fmt.Errorf("standard input, object %d: %w", n, err)
		}
		if (ask.Text == nil) == (ask.IDs == nil) {
			return fmt.Errorf(`standard input, object %d: give one of "text" and "ids"`, n)
		}
		special := ask.Special == nil || *ask.Special
		var answer any
		if ask.Text != nil {
			answer = map[string][]int32{"ids": append([]int32{}, t.Encode(*ask.Text, special)...)}
		} else {
			answer = map[string]string{"text": t.Decode(ask.IDs, special)}
		}
		if err := enc.Encode(answer); err != nil {
			return err
		}
	}
}
