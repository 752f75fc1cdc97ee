package cli

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"

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
to ids, and keeps special tokens in text. Ids that the tokenizer does not have are
answered with {"error": "…"}, and the command then ends with exit code 1.`,
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

// tokenize answers each object of in with one on out. Ids that are no tokens are
// answered with {"error": …}; the first of those is returned at the end.
func tokenize(t *tokenizer.Tokenizer, in io.Reader, out io.Writer) (failed error) {
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
				return failed
			}
			return fmt.Errorf("standard input, object %d: %w", n, err)
		}
		if (ask.Text == nil) == (ask.IDs == nil) {
			return fmt.Errorf(`standard input, object %d: give one of "text" and "ids"`, n)
		}
		special := ask.Special == nil || *ask.Special
		var answer any
		if i := slices.IndexFunc(ask.IDs, func(id int32) bool { return !t.Has(id) }); i >= 0 {
			err := fmt.Errorf("standard input, object %d: %d is no id of this tokenizer; they are from 0 to %d", n, ask.IDs[i], t.Size()-1)
			failed = cmp.Or(failed, err)
			answer = map[string]string{"error": err.Error()}
		} else if ask.Text != nil {
			answer = map[string][]int32{"ids": append([]int32{}, t.Encode(*ask.Text, special)...)}
		} else {
			answer = map[string]string{"text": t.Decode(ask.IDs, special)}
		}
		if err := enc.Encode(answer); err != nil {
			return err
		}
	}
}
