package cli

import (
	"fmt"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/estiba/estiba/internal/explain"
)

// mostNeeds is the largest --needs, in bytes; a quantity beyond 8 EiB would be cut to that.
const mostNeeds = 1 << 50

func explainCommand() *cobra.Command {
	var (
		o           explain.Options
		file, needs string
	)
	cmd := &cobra.Command{
		Use:   "explain",
		Short: "Say why a model is where it is, or nowhere, and where one would land",
		Long: `Explain says why a model is where it is, or why it is nowhere: what it needs, which
devices were refused and why, what would have to go, whether moves or another
worker would help, how long it takes, and what you can do. With -f it says where the Models
of a manifest would land if it were applied now; nothing is applied.

It asks the operator that leads, through a port forwarded to its pod, or an
estiba serve.`,
		Example: `  estiba explain model llama
  estiba explain model llama --server http://127.0.0.1:8080    # an estiba serve
  estiba explain pool a100
  estiba explain -f model.yaml
  estiba explain -f model.yaml --needs 14Gi                    # without asking a worker`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return unknown(cmd, args[0])
			}
			return nil
		},
	}
	flags := cmd.PersistentFlags()
	flags.StringVar(&o.Server, "server", "", "address of an estiba serve, or of an operator's --debug-listen, instead of a cluster")
	flags.StringVarP(&o.Namespace, "namespace", "n", "", "namespace of the model or pool (default: the kubeconfig's)")
	flags.StringVar(&o.Options.Namespace, "estiba-namespace", "", "namespace of the operator (default: where its lease is)")
	flags.BoolVar(&o.JSON, "json", false, "one JSON object on standard output")
	cmd.Flags().StringVarP(&file, "filename", "f", "", "manifest whose Models are explained as if it were applied; - is the standard input")
	cmd.Flags().StringVar(&needs, "needs", "", "what a Model of the manifest needs on a device, instead of asking a worker to read its header")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if file == "" {
			return usageError{fmt.Errorf("explain what? Name a model or a pool, as in estiba explain model NAME, or a manifest with -f")}
		}
		if needs != "" {
			q, err := resource.ParseQuantity(needs)
			switch {
			case err != nil || q.Value() <= 0:
				return usageError{fmt.Errorf("--needs %q: write a size such as 14Gi", needs)}
			case q.Value() > mostNeeds:
				return usageError{fmt.Errorf("--needs %q: no device has so much; write at most 1Pi", needs)}
			}
			o.Needs = q.Value()
		}
		return explain.Manifest(cmd.Context(), cmd.OutOrStdout(), cmd.InOrStdin(), file, o)
	}
	cmd.AddCommand(
		&cobra.Command{
			Use: "model NAME", Short: "Say why a model is where it is, or nowhere, and what helps",
			Example: "  estiba explain model llama -n team-a", Args: one("NAME", "a Model's name"),
			RunE: func(cmd *cobra.Command, args []string) error {
				return explain.Model(cmd.Context(), cmd.OutOrStdout(), args[0], o)
			},
		},
		&cobra.Command{
			Use: "pool NAME", Short: "Say what a pool's devices hold, what is free, and who waits",
			Example: "  estiba explain pool a100", Args: one("NAME", "an InferencePool's name"),
			RunE: func(cmd *cobra.Command, args []string) error {
				return explain.Pool(cmd.Context(), cmd.OutOrStdout(), args[0], o)
			},
		},
	)
	return cmd
}
