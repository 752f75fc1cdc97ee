package cli

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/estiba/estiba/internal/bench"
)

// Bounds of what is measured, which keep a slip of the finger from taking all memory.
const (
	mostBenchTokens = 1 << 20
	mostBenchBatch  = 256
)

func benchCommand() *cobra.Command {
	var o bench.Options
	var batch string
	cmd := &cobra.Command{
		Use:   "bench MODEL",
		Short: "Measure how fast a model computes here, beside how fast memory is",
		Long: `Measure how fast this machine computes with a model, a Hugging Face folder or a .gguf
file: a prompt, the tokens after it one by one, and several sequences together.
Decoding reads all weights for each token, so it is shown beside the rate at which
the same threads can read memory at all. Tokens are drawn at random; no tokenizer
is needed. Rates are medians; what other processes did meanwhile is told, too.` + kernelsHelp,
		Example: `  estiba bench ./stories260K.gguf
  estiba bench ./llama --threads 1 --prompt 512 --generate 64 --batch 1,8 --json`,
		Args: oneModel,
		RunE: func(cmd *cobra.Command, args []string) error {
			var err error
			if o.Batch, err = sizes(batch); err != nil {
				return usageError{err}
			}
			if err := checkThreads(o.Threads); err != nil {
				return err
			}
			for _, f := range []struct {
				name        string
				value       int
				least, most int
			}{
				{"prompt", o.Prompt, 0, mostBenchTokens},
				{"generate", o.Generate, 0, mostBenchTokens},
				{"repeat", o.Repeat, 1, 1000},
			} {
				if f.value < f.least || f.value > f.most {
					return usageError{fmt.Errorf("--%s is %d: give a number from %d to %d", f.name, f.value, f.least, f.most)}
				}
			}
			if err := checkDevice(o.Device, false); err != nil {
				return err
			}
			if o.Prompt == 0 && o.Generate == 0 {
				return usageError{fmt.Errorf("--prompt and --generate are both 0: there is nothing to measure")}
			}
			return bench.Run(cmd.Context(), cmd.OutOrStdout(), cmd.ErrOrStderr(), args[0], o)
		},
	}
	threadsFlag(cmd, &o.Threads)
	cmd.Flags().IntVar(&o.Prompt, "prompt", 512, "tokens of the prompt; 0 for none")
	cmd.Flags().IntVar(&o.Generate, "generate", 64, "tokens to decode after it, from an empty context; 0 for none")
	cmd.Flags().StringVar(&batch, "batch", "1,2,4,8", "numbers of sequences to decode together; empty for none")
	deviceFlag(cmd, &o.Device)
	cmd.Flags().IntVar(&o.Repeat, "repeat", 3, "how many times each is measured")
	cmd.Flags().BoolVar(&o.JSON, "json", false, "one JSON object on standard output")
	return cmd
}

// sizes of batches, between commas.
func sizes(list string) ([]int, error) {
	var all []int
	if list == "" {
		return nil, nil
	}
	for part := range strings.SplitSeq(list, ",") {
		n, err := strconv.Atoi(strings.TrimSpace(part))
		if err != nil || n < 1 || n > mostBenchBatch {
			return nil, fmt.Errorf("--batch is %q: give numbers from 1 to %d, such as 1,2,4,8", list, mostBenchBatch)
		}
		all = append(all, n)
	}
	return all, nil
}
