package cli

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/estiba/estiba/internal/simulate"
)

func churnCommand() *cobra.Command {
	var o simulate.ChurnOptions
	var policy string
	cmd := &cobra.Command{
		Use:   "churn",
		Short: "Place instances that come and go, and move some under a budget",
		Long: `Place the instances of a trace as they come, and let them go when their time is over.
One that does not fit waits until there is room. The operator's own policy may move
others within --moves-per-hour: so that one fits that would wait, to empty a node, and
against fragmentation; it is then shown without moves too. Published policies never move.

Nodes are as in estiba simulate packing. Instances have creation_time and deletion_time in
seconds (empty: from the start, to the end) and are either of Alibaba's
cluster-trace-gpu-v2025 (instance_sn,cpu_request,memory_request,gpu_request, of which those
without a GPU are left out) or of its cluster-trace-gpu-v2023 (the pods of estiba simulate
packing). Limits of instances on one node, RDMA and disks are not looked at.`,
		Example: `  estiba simulate churn --nodes openb_node_list_gpu_node.csv --instances disaggregated_DLRM_trace.csv.gz
  estiba simulate churn --nodes nodes.csv --instances instances.csv --gpus 64 --policy all --moves-per-hour 12 --plot churn.svg`,
		Args: none,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			switch {
			case o.Nodes == "":
				return usageError{errors.New("give --nodes, a CSV file")}
			case o.Instances == "":
				return usageError{errors.New("give --instances, a CSV file")}
			case o.GPUs < 0:
				return usageError{fmt.Errorf("--gpus is %d: give 0 for all, or more", o.GPUs)}
			case o.MovesPerHour < 0 || o.MovesPerHour > mostMovesPerHour:
				return usageError{fmt.Errorf("--moves-per-hour is %d: give 0 to %d", o.MovesPerHour, mostMovesPerHour)}
			case cmd.Flags().Changed("plot") && !strings.HasSuffix(strings.ToLower(o.Plot), ".svg"):
				return usageError{fmt.Errorf("--plot is %q: give the file to write, with a name that ends in .svg", o.Plot)}
			}
			if o.Policies, err = parsePolicies(policy); err != nil {
				return usageError{err}
			}
			return simulate.Churn(cmd.Context(), cmd.OutOrStdout(), cmd.ErrOrStderr(), o)
		},
	}
	cmd.Flags().StringVar(&o.Nodes, "nodes", "", "CSV `file` of nodes")
	cmd.Flags().StringVar(&o.Instances, "instances", "", "CSV `file` of instances")
	cmd.Flags().StringVar(&policy, "policy", simulate.Own, "the operator's own, a published one, several separated by commas, or all")
	cmd.Flags().Int64Var(&o.Seed, "seed", 42, "draws the order of the nodes, and of instances that come at the same time")
	cmd.Flags().IntVar(&o.GPUs, "gpus", 0, "take nodes, in the seed's order, until they have so many GPUs; 0 takes all")
	cmd.Flags().IntVar(&o.MovesPerHour, "moves-per-hour", 12, "budget for moves, as in an InferencePool")
	cmd.Flags().StringVar(&o.Plot, "plot", "", "SVG `file`, whose name ends in .svg, for GPUs in use, GPUs missing and fragmentation over time")
	cmd.Flags().BoolVar(&o.JSON, "json", false, "one JSON object on standard output")
	return cmd
}

const mostMovesPerHour = 10_000
