package cli

import (
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/estiba/estiba/internal/synth"
	"github.com/estiba/estiba/runtime/tensor"
)

func synthCommand() *cobra.Command {
	var o synth.Options
	var quant string
	var quants []string
	for _, d := range synth.Quants() {
		quants = append(quants, d.String())
	}
	cmd := &cobra.Command{
		Use:   "synth SHAPE",
		Short: "Write a model of a published shape with random weights",
		Long: `Write a GGUF file with random weights in the shape of a published model, for benchmarks.
SHAPE is ` + strings.Join(synth.Shapes(), ", ") + `.
Matrices whose rows are no whole blocks of 256 are stored in a format of smaller blocks instead: Q5_0
for Q4_K, Q5_1 for Q5_K, Q8_0 for Q6_K.`,
		Example: "  estiba synth stories15m --quant F32 --out stories15m.gguf",
		Args:    one("SHAPE", "one of "+strings.Join(synth.Shapes(), ", ")),
		RunE: func(cmd *cobra.Command, args []string) error {
			d, ok := tensor.ParseDType(strings.ToUpper(quant))
			switch {
			case !slices.Contains(synth.Shapes(), args[0]):
				return usageError{fmt.Errorf("no shape %q: give one of %s", args[0], strings.Join(synth.Shapes(), ", "))}
			case !ok || !slices.Contains(synth.Quants(), d):
				return usageError{fmt.Errorf("--quant is %q: give one of %s", quant, strings.Join(quants, ", "))}
			case !strings.HasSuffix(strings.ToLower(o.Out), ".gguf"):
				return usageError{fmt.Errorf("--out is %q: give the file to write, with a name that ends in .gguf", o.Out)}
			}
			o.Quant = d
			return synth.Run(cmd.Context(), cmd.OutOrStdout(), cmd.ErrOrStderr(), args[0], o)
		},
	}
	cmd.Flags().StringVar(&quant, "quant", tensor.F16.String(), "format of the matrices: "+strings.Join(quants, ", "))
	cmd.Flags().StringVar(&o.Out, "out", "", "file to write, whose name ends in .gguf")
	cmd.Flags().Uint64Var(&o.Seed, "seed", 1, "equal seeds give equal weights")
	cmd.Flags().BoolVar(&o.JSON, "json", false, "one JSON object on standard output")
	return cmd
}
