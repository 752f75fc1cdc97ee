package cli

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/estiba/estiba/internal/run"
)

func runCommand() *cobra.Command {
	var o run.Options
	var ids string
	cmd := &cobra.Command{
		Use:   "run MODEL",
		Short: "Load a model and continue a prompt",
		Long: `Load a model, a Hugging Face folder or a .gguf file, and continue a prompt.
The text goes to standard output as it comes, figures to standard error.` + kernelsHelp,
		Example: `  estiba run ./stories260K --prompt "Once upon a time" --max-tokens 50
  estiba run ./stories260K.gguf --ids 1,403,407 --logits logits.safetensors`,
		Args: oneModel,
		RunE: func(cmd *cobra.Command, args []string) error {
			text, tokens := cmd.Flags().Changed("prompt"), cmd.Flags().Changed("ids")
			switch {
			case text == tokens:
				return usageError{errors.New("give one of --prompt and --ids")}
			case o.MaxTokens < 0:
				return usageError{fmt.Errorf("--max-tokens is %d: give 0 or more", o.MaxTokens)}
			case !(o.Temperature >= 0) || math.IsInf(o.Temperature, 0):
				return usageError{fmt.Errorf("--temperature is %v: give a number of at least 0", o.Temperature)}
			case cmd.Flags().Changed("logits") && o.Logits == "":
				return usageError{errors.New("--logits is empty: give a file name")}
			}
			if err := checkThreads(o.Threads); err != nil {
				return err
			}
			if err := checkDevice(o.Device, o.Exact || o.Logits != ""); err != nil {
				return err
			}
			if tokens {
				var err error
				if o.IDs, err = parseIDs(ids); err != nil {
					return usageError{err}
				}
			}
			return run.Run(cmd.Context(), cmd.OutOrStdout(), cmd.ErrOrStderr(), args[0], o)
		},
	}
	cmd.Flags().StringVar(&o.Prompt, "prompt", "", "text to continue; the tokenizer's begin token is put in front")
	cmd.Flags().StringVar(&ids, "ids", "", "token ids to continue, such as 1,2,3; taken as they are, no tokenizer files are needed")
	cmd.Flags().IntVar(&o.MaxTokens, "max-tokens", 256, "most tokens of output")
	cmd.Flags().Float64Var(&o.Temperature, "temperature", 0, "0 takes the likeliest token; higher is more varied")
	cmd.Flags().StringVar(&o.Logits, "logits", "", "safetensors `file` for the prompt's logits, float32 [positions, vocabulary]; implies --exact")
	cmd.Flags().BoolVar(&o.Exact, "exact", false, "reference arithmetic with float32 activations, to compare with other programs")
	deviceFlag(cmd, &o.Device)
	threadsFlag(cmd, &o.Threads)
	cmd.Flags().BoolVar(&o.JSON, "json", false, "one JSON object on standard output")
	return cmd
}

// parseIDs reads token ids that are separated by commas.
func parseIDs(text string) ([]int32, error) {
	var ids []int32
	for part := range strings.SplitSeq(text, ",") {
		id, err := strconv.ParseInt(strings.TrimSpace(part), 10, 32)
		if err != nil || id < 0 {
			return nil, fmt.Errorf("--ids %q: %q is no token id; give numbers separated by commas, such as 1,2,3", text, part)
		}
		ids = append(ids, int32(id))
	}
	return ids, nil
}
