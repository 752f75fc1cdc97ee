package cli

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/estiba/estiba/internal/simulate"
)

func packingCommand() *cobra.Command {
	var o simulate.Options
	var policy, seeds, ties string
	var seed int64
	cmd := &cobra.Command{
		Use:   "packing",
		Short: "Place a trace's pods on its nodes, one after the other",
		Long: `Place the pods of a trace on its nodes, one after the other, and say how much of the GPUs
is allocated. No pod leaves; one that does not fit is dropped.

The operator's own decision is the default. Published policies are beside it:
` + strings.Join(simulate.Baselines, ", ") + `; all stands for all of them.

With --ties first, the first in the seed's order of nodes is taken among equals, as the
operator does by the names of workers; with random any of them, drawn anew for each pod.

A seed shuffles the pods, draws more of them, with replacement, until --demand is asked
for, and draws an order of the nodes. Files are those of Alibaba's cluster-trace-gpu-v2023
("openb"); gzip is fine:
  nodes  sn,cpu_milli,memory_mib,gpu,model
  pods   name,cpu_milli,memory_mib,num_gpu,gpu_milli,gpu_spec`,
		Example: `  estiba simulate packing --nodes openb_node_list_gpu_node.csv --pods openb_pod_list_default.csv
  estiba simulate packing --nodes nodes.csv --pods pods.csv --policy all --seeds 42-51 --plot packing.svg
  estiba simulate packing --nodes nodes.csv --pods pods.csv --policy Random --moves 1`,
		Args: none,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			switch {
			case o.Nodes == "":
				return usageError{errors.New("give --nodes, a CSV file")}
			case o.Pods == "":
				return usageError{errors.New("give --pods, a CSV file")}
			case !(o.Demand >= leastDemand) || o.Demand > 100:
				return usageError{fmt.Errorf("--demand is %v: give a number of %v to 100, such as 1.3 for 130 %% of the GPUs", o.Demand, leastDemand)}
			case o.Moves < 0 || o.Moves > mostMoves:
				return usageError{fmt.Errorf("--moves is %d: give 0 to %d", o.Moves, mostMoves)}
			case ties != "first" && ties != "random":
				return usageError{fmt.Errorf("--ties is %q: give first or random", ties)}
			case cmd.Flags().Changed("seed") && cmd.Flags().Changed("seeds"):
				return usageError{errors.New("give one of --seed and --seeds")}
			case cmd.Flags().Changed("plot") && !strings.HasSuffix(strings.ToLower(o.Plot), ".svg"):
				return usageError{fmt.Errorf("--plot is %q: give the file to write, with a name that ends in .svg", o.Plot)}
			}
			if o.Policies, err = parsePolicies(policy); err != nil {
				return usageError{err}
			}
			o.Seeds, o.RandomTies = []int64{seed}, ties == "random"
			if cmd.Flags().Changed("seeds") {
				if o.Seeds, err = parseSeeds(seeds); err != nil {
					return usageError{err}
				}
			}
			return simulate.Packing(cmd.Context(), cmd.OutOrStdout(), cmd.ErrOrStderr(), o)
		},
	}
	cmd.Flags().StringVar(&o.Nodes, "nodes", "", "CSV `file` of nodes")
	cmd.Flags().StringVar(&o.Pods, "pods", "", "CSV `file` of pods")
	cmd.Flags().StringVar(&policy, "policy", simulate.Own, "the operator's own, a published one, several separated by commas, or all")
	cmd.Flags().Float64Var(&o.Demand, "demand", 1.3, "GPUs asked for, as a multiple of those that there are")
	cmd.Flags().Int64Var(&seed, "seed", 42, "equal seeds give equal pods and nodes")
	cmd.Flags().StringVar(&seeds, "seeds", "", "several, such as 42-51 or 1,2,3; figures are their means")
	cmd.Flags().StringVar(&ties, "ties", "first", "first or random: how equals are told apart")
	cmd.Flags().IntVar(&o.Moves, "moves", 0, "most moves of others for each pod that does not fit")
	cmd.Flags().StringVar(&o.Plot, "plot", "", "SVG `file`, whose name ends in .svg, for allocation over demand")
	cmd.Flags().BoolVar(&o.JSON, "json", false, "one JSON object on standard output")
	return cmd
}

// Bounds of a simulation.
const (
	mostMoves   = 16
	mostSeeds   = 1000
	leastDemand = 0.01 // a point of the curve
)

// parsePolicies reads names that are separated by commas, in any case.
func parsePolicies(text string) ([]string, error) {
	known := append([]string{simulate.Own}, simulate.Baselines...)
	if strings.EqualFold(text, "all") {
		return known, nil
	}
	var policies []string
	for name := range strings.SplitSeq(text, ",") {
		i := slices.IndexFunc(known, func(k string) bool { return strings.EqualFold(k, strings.TrimSpace(name)) })
		if i < 0 {
			return nil, fmt.Errorf("--policy: there is no %q; give %s, or all", name, strings.Join(known, ", "))
		}
		if !slices.Contains(policies, known[i]) {
			policies = append(policies, known[i])
		}
	}
	return policies, nil
}

// parseSeeds reads numbers and ranges that are separated by commas. Each counts once.
func parseSeeds(text string) ([]int64, error) {
	wrong := fmt.Errorf("--seeds is %q: give at most %d, such as 42-51 or 1,2,3", text, mostSeeds)
	var seeds []int64
	for part := range strings.SplitSeq(text, ",") {
		first, last, isRange := strings.Cut(strings.TrimSpace(part), "-")
		a, err := strconv.ParseInt(first, 10, 64)
		if err != nil {
			return nil, wrong
		}
		b := a
		if isRange {
			if b, err = strconv.ParseInt(last, 10, 64); err != nil || b == math.MaxInt64 {
				return nil, wrong
			}
		}
		if b < a {
			return nil, fmt.Errorf("--seeds is %q: %s goes down: write %d-%d", text, strings.TrimSpace(part), b, a)
		}
		if b-a < 0 || b-a >= mostSeeds || len(seeds)+int(b-a) >= mostSeeds {
			return nil, wrong
		}
		for s := a; s <= b; s++ {
			if !slices.Contains(seeds, s) {
				seeds = append(seeds, s)
			}
		}
	}
	return seeds, nil
}
