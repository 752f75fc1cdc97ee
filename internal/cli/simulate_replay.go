package cli

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/estiba/estiba/internal/simulate"
)

func replayCommand() *cobra.Command {
	var o simulate.ReplayOptions
	var policies string
	names := slices.Sorted(maps.Keys(simulate.Scores))
	cmd := &cobra.Command{
		Use:   "replay",
		Short: "Decide a cluster's last decisions again, under other policies",
		Long: `Decide again what an operator decided, from the history that it keeps. First each
decision as it was seen: it must come out as it was recorded, and what does not is
named. Then the history as it would have gone under each policy, from its first
decision on: the same Models, workers and demand, and homes of the policy's own.

Policies choose among the devices that have room: ` + strings.Join(names, ", ") + `;
all stands for all of them. The operator's own is always there.

Without --history the operator that leads is asked for what it keeps, through a port
forwarded to its pod; with --server an estiba serve.`,
		Example: `  estiba simulate replay                                     # the cluster that KUBECONFIG names
  estiba simulate replay --history /var/lib/estiba/history --policy all
  estiba simulate replay --server http://127.0.0.1:8080 --policy WorstFit --json`,
		Args: none,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o.Policies = []string{simulate.Own}
			for _, p := range strings.FieldsFunc(policies, func(r rune) bool { return r == ',' || r == ' ' }) {
				switch {
				case p == "all":
					o.Policies = append(o.Policies, names...)
				case p == simulate.Own:
				case simulate.Scores[p] == nil:
					return usageError{fmt.Errorf("--policy %s: there are %s, and all", p, strings.Join(append([]string{simulate.Own}, names...), ", "))}
				default:
					o.Policies = append(o.Policies, p)
				}
			}
			if o.History != "" && o.From.Server != "" {
				return usageError{fmt.Errorf("give one of --history and --server")}
			}
			return simulate.Replay(cmd.Context(), cmd.OutOrStdout(), cmd.ErrOrStderr(), o)
		},
	}
	cmd.Flags().StringVar(&o.History, "history", "", "`file` of decisions, or the folder that --history-dir of an operator names")
	cmd.Flags().StringVar(&o.From.Server, "server", "", "address of an estiba serve, or of an operator's --debug-listen, instead of a cluster")
	cmd.Flags().StringVar(&o.From.Namespace, "estiba-namespace", "", "namespace of the operator (default: where its lease is)")
	cmd.Flags().StringVar(&policies, "policy", "", "beside the operator's own; several separated by commas, or all")
	cmd.Flags().BoolVar(&o.JSON, "json", false, "one JSON object on standard output")
	return cmd
}
