package cli

import (
	"github.com/spf13/cobra"

	"github.com/estiba/estiba/internal/inspect"
)

func inspectCommand() *cobra.Command {
	var o inspect.Options
	cmd := &cobra.Command{
		Use:   "inspect MODEL",
		Short: "Show what a model is and what it needs, from its headers",
		Long: `Show what a model, a Hugging Face folder or a .gguf file, is and what it needs on
a device. Only headers are read, and checked as a load would check them.`,
		Example: `  estiba inspect ./stories260K
  estiba inspect ./stories260K.gguf --json`,
		Args: oneModel,
	}
	cmd.Flags().BoolVar(&o.JSON, "json", false, "one JSON object on standard output")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return inspect.Run(cmd.Context(), cmd.OutOrStdout(), args[0], o)
	}
	return cmd
}
