package cli

import (
	"github.com/spf13/cobra"
)

// simulations lists what can be simulated; a new one is a line here.
var simulations = []func() *cobra.Command{churnCommand, packingCommand, replayCommand}

func simulateCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "simulate",
		Short: "Replay recorded workloads through the operator's own decisions",
		Long: `Replay recorded workloads through the very decisions that the operator makes, without a
cluster, and compare them with published policies.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return unknown(cmd, args[0])
			}
			return cmd.Help()
		},
		Args: cobra.ArbitraryArgs,
	}
	for _, simulation := range simulations {
		cmd.AddCommand(simulation())
	}
	return cmd
}
