package cli

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/estiba/estiba/internal/eval"
	"github.com/estiba/estiba/runtime/backend/named"
)

func evalCommand() *cobra.Command {
	var o eval.Options
	var exact bool
	cmd := &cobra.Command{
		Use:   "eval MODEL",
		Short: "Measure what a model loses against a reference on a text",
		Long: `Compare a model, often one of smaller weights, with a reference on a text: perplexity of
both, the KL divergence of the reference from the model, and how often both have the
same likeliest token. Both models need the same vocabulary. A text that is longer
than the context is cut into windows, each with the model's begin token in front.` + kernelsHelp,
		Example: "  estiba eval stories260K-q4_0.gguf --reference stories260K-f32.gguf --text story.txt",
		Args:    oneModel,
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case o.Reference == "":
				return usageError{errors.New("give --reference, the model to compare with")}
			case o.Text == "":
				return usageError{errors.New("give --text, a file")}
			case exact && o.AsServed:
				return usageError{errors.New("give one of --exact and --as-served")}
			}
			if err := checkThreads(o.Threads); err != nil {
				return err
			}
			if err := checkDevice(o.Device, false); err != nil {
				return err
			}
			if !named.OnProcessor(o.Device) && !o.AsServed {
				return usageError{fmt.Errorf("--device %s computes as it serves: give --as-served too", o.Device)}
			}
			return eval.Run(cmd.Context(), cmd.OutOrStdout(), cmd.ErrOrStderr(), args[0], o)
		},
	}
	cmd.Flags().StringVar(&o.Reference, "reference", "", "model to compare with, a folder or a .gguf file; it computes exactly")
	cmd.Flags().StringVar(&o.Text, "text", "", "file with the text")
	cmd.Flags().BoolVar(&exact, "exact", false, "reference arithmetic, float32 activations; this is the default")
	cmd.Flags().BoolVar(&o.AsServed, "as-served", false, "let the model compute as it serves")
	deviceFlag(cmd, &o.Device)
	threadsFlag(cmd, &o.Threads)
	cmd.Flags().BoolVar(&o.JSON, "json", false, "one JSON object on standard output")
	return cmd
}
