package cli

import (
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/spf13/cobra"

	"github.com/estiba/estiba/runtime/tokenizer"
)

func tokenizeCommand() *cobra.Command {
	var jsonl, asJSON bool
	cmd := &cobra.Command{
		Use:   "tokenize MODEL --jsonl",
		Short: "Turn text into a model's token ids, and ids into text",
		Long: `Turn lines of JSON on standard input, {"text": "…"} or {"ids": [1, 2]}, into lines on
standard output, {"ids": [1, 2]} or {"text": "…"}. MODEL is a folder with tokenizer
files, one of them, or a .gguf file. "special" (default true) adds the tokenizer's
special tokens to ids, and keeps special tokens in text. A line that asks for neither,
or has ids that the tokenizer does not have, is answered with {"error": "…"}; so is one
that is no JSON, and the exit code is 1 then.`,
		Example: `  echo '{"text": "Once upon a time"}' | estiba tokenize ./stories260K --jsonl`,
		Args:    oneModel,
	}
	cmd.Flags().BoolVar(&jsonl, "jsonl", false, "lines of JSON in and out")
	cmd.Flags().BoolVar(&asJSON, "json", false, "the same, as other commands have it")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if !jsonl && !asJSON {
			return usageError{errors.New("give --jsonl: lines of JSON are what this version reads")}
		}
		return uninterrupted(cmd.Context(), func() error {
			t, err := tokenizer.Open(args[0])
			if err != nil {
				return err
			}
			return tokenize(t, cmd.InOrStdin(), cmd.OutOrStdout())
		})
	}
	return cmd
}

// tokenize answers each line of in with one on out.
func tokenize(t *tokenizer.Tokenizer, in io.Reader, out io.Writer) error {
	return answerLines(in, out, func(line []byte) (string, any, error) {
		var ask struct {
			Text    *string `json:"text"`
			IDs     []int32 `json:"ids"`
			Special *bool   `json:"special"`
		}
		if err := decodeLine(line, &ask); err != nil {
			return "", nil, err
		}
		if (ask.Text == nil) == (ask.IDs == nil) {
			return "", nil, lineError{errors.New(`give one of "text" and "ids"`)}
		}
		special := ask.Special == nil || *ask.Special
		if ask.Text != nil {
			return "ids", append([]int32{}, t.Encode(*ask.Text, special)...), nil
		}
		if i := slices.IndexFunc(ask.IDs, func(id int32) bool { return !t.Has(id) }); i >= 0 {
			return "", nil, lineError{fmt.Errorf("%d is no id of this tokenizer; they are from 0 to %d", ask.IDs[i], t.Size()-1)}
		}
		return "text", t.Decode(ask.IDs, special), nil
	})
}
