package cli

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/estiba/estiba/internal/inspect"
)

func inspectCommand() *cobra.Command {
	var o inspect.Options
	var device bool
	cmd := &cobra.Command{
		Use:   "inspect MODEL | --device",
		Short: "Show what a model is and what it needs, or what computes here",
		Long: `Show what a model, a Hugging Face folder or a .gguf file, is and what it needs on
a device. Only headers are read, and checked as a load would check them.

With --device: what this machine's processor can do, which kernels compute on it and why,
with how many threads, how much memory there is, and which GPUs. The environment variable ESTIBA_CPU
(go, avx2, avx512 or amx) chooses other kernels.`,
		Example: `  estiba inspect ./stories260K
  estiba inspect ./stories260K.gguf --json
  ESTIBA_CPU=avx2 estiba inspect --device`,
		Args: func(cmd *cobra.Command, args []string) error {
			switch {
			case !device:
				return oneModel(cmd, args)
			case len(args) > 0:
				return fmt.Errorf("%q is too much: --device is of this machine, without a model", args[0])
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&o.JSON, "json", false, "one JSON object on standard output")
	cmd.Flags().BoolVar(&device, "device", false, "show this machine's processor instead of a model")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if device {
			return inspect.RunDevice(cmd.OutOrStdout(), o)
		}
		return inspect.Run(cmd.Context(), cmd.OutOrStdout(), args[0], o)
	}
	return cmd
}
