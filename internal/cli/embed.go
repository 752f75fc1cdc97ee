package cli

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/estiba/estiba/internal/run"
	"github.com/estiba/estiba/runtime/engine"
)

func embedCommand() *cobra.Command {
	var o run.EmbedOptions
	var ids string
	cmd := &cobra.Command{
		Use:   "embed MODEL",
		Short: "Load a model and give the embedding of a text",
		Long: `Load a model, a Hugging Face folder or a .gguf file, and print the embedding of a
text: the final hidden states of its tokens, pooled, as a vector of length 1. How they
are pooled is what the model's files say, else the mean for encoders such as BERT and
the last token's state for others. An empty text has an embedding where the tokenizer
puts special tokens around every text: theirs. Else it is wrong usage.` + kernelsHelp,
		Example: `  estiba embed ./bge-small --text "Once upon a time" --json
  estiba embed ./bge-small --ids 101,2320,102 --pooling cls`,
		Args: oneModel,
		RunE: func(cmd *cobra.Command, args []string) error {
			text, tokens := cmd.Flags().Changed("text"), cmd.Flags().Changed("ids")
			if text == tokens {
				return usageError{errors.New("give one of --text and --ids")}
			}
			if _, ok := engine.Poolings[o.Pooling]; !ok && cmd.Flags().Changed("pooling") {
				return usageError{fmt.Errorf("--pooling is %q: give mean, cls or last", o.Pooling)}
			}
			if tokens {
				var err error
				if o.IDs, err = parseIDs(ids); err != nil {
					return usageError{err}
				}
			}
			if err := checkThreads(o.Threads); err != nil {
				return err
			}
			if err := checkDevice(o.Device, o.Exact); err != nil {
				return err
			}
			err := run.Embed(cmd.Context(), cmd.OutOrStdout(), args[0], o)
			if errors.Is(err, run.ErrNoText) {
				return usageError{err}
			}
			return err
		},
	}
	cmd.Flags().StringVar(&o.Text, "text", "", "text to embed; the tokenizer's special tokens are put around it")
	cmd.Flags().StringVar(&ids, "ids", "", "token ids to embed, such as 1,2,3; taken as they are, no tokenizer files are needed")
	cmd.Flags().StringVar(&o.Pooling, "pooling", "", "`mean`, cls or last (default: as the model's files say)")
	cmd.Flags().BoolVar(&o.Exact, "exact", false, "reference arithmetic with float32 activations, to compare with other programs")
	deviceFlag(cmd, &o.Device)
	threadsFlag(cmd, &o.Threads)
	cmd.Flags().BoolVar(&o.JSON, "json", false, "one JSON object on standard output")
	return cmd
}
