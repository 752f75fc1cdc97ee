package cli

import (
	"github.com/estiba/estiba/internal/top"
	"github.com/spf13/cobra"
)

func topCommand() *cobra.Command {
	var o top.Options
	cmd := &cobra.Command{
		Use:   "top",
		Short: "Show the stowage at a glance: devices, the models on them, and those that are nowhere",
		Long: `Top shows each device with its memory and the models on it, and the models that look
for a home, with the reason. Who may not ask the operator (a port is forwarded to its
pod) sees what the statuses of pools and models have.`,
		Example: `  estiba top                                   # the cluster that KUBECONFIG names
  estiba top --server http://127.0.0.1:8080    # an estiba serve`,
		Args: none,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return top.Show(cmd.Context(), cmd.OutOrStdout(), o)
		},
	}
	cmd.Flags().StringVar(&o.Server, "server", "", "address of an estiba serve, instead of a cluster")
	cmd.Flags().StringVarP(&o.Namespace, "namespace", "n", "", "only this namespace")
	cmd.Flags().StringVar(&o.Estiba, "estiba-namespace", "", "namespace of the operator (default: where its lease is)")
	cmd.Flags().BoolVar(&o.JSON, "json", false, "one JSON object on standard output")
	return cmd
}
