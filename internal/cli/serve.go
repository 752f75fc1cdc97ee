package cli

import (
	"fmt"
	"log/slog"
	"time"

	"github.com/estiba/estiba/internal/standalone"
	kernels "github.com/estiba/estiba/kernels/cpu"
	"github.com/estiba/estiba/runtime/backend/named"
	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/api/resource"
)

func serveCommand() *cobra.Command {
	var (
		o      standalone.Options
		memory string
	)
	cmd := &cobra.Command{
		Use:   "serve -f FILE|DIR",
		Short: "Serve the Models of manifest files on this machine, without Kubernetes",
		Long: `Serve runs the operator's decisions, a gateway and workers in one process, on the
same manifests that a cluster takes. The files are watched. Without an
InferencePool among them there is one, "default", that may read whatever this
user may read.` + kernelsHelp,
		Example: `  estiba serve -f models.yaml
  estiba serve -f manifests/ --listen 127.0.0.1:9000 --memory 2Gi`,
		Args: none,
	}
	cmd.Flags().StringArrayVarP(&o.Paths, "filename", "f", nil, "manifest file, or folder of manifest files; may be given several times (required)")
	cmd.Flags().StringVar(&o.Listen, "listen", "127.0.0.1:8080", "address of the gateway")
	cmd.Flags().StringVar(&memory, "memory", "", "memory that models may use, over all pools (default: 80 % of what is available)")
	cmd.Flags().StringVar(&o.CacheDir, "cache-dir", "", "where fetched models are kept (default: estiba in the user's cache folder)")
	cmd.Flags().StringVar(&o.Device, "device", named.Auto, named.ClaimHelp)
	cmd.Flags().StringVar(&o.Emulate, "emulate", "", emulateHelp)
	cmd.Flags().DurationVar(&o.Drain, "drain", 30*time.Second, "how long running requests may go on after SIGTERM or Ctrl-C; a second one ends at once")
	threadsFlag(cmd, &o.Threads)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := checkThreads(o.Threads); err != nil {
			return err
		}
		if err := checkClaim(o.Device, o.Emulate); err != nil {
			return err
		}
		if len(o.Paths) == 0 {
			return usageError{fmt.Errorf("which manifests? Give a file or a folder with -f")}
		}
		if o.Drain < 0 {
			return usageError{fmt.Errorf("--drain is %v: give 0s or more", o.Drain)}
		}
		if memory != "" {
			q, err := resource.ParseQuantity(memory)
			if err != nil || q.Value() <= 0 {
				return usageError{fmt.Errorf("--memory %q: write a size such as 2Gi", memory)}
			}
			o.Memory = q.Value()
		}
		o.Drain = max(o.Drain, 1)                 // 0 stands for a default there
		if _, err := kernels.Best(); err != nil { // rather than at each load
			return err
		}
		o.Version = Version()
		o.Log = slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), nil))
		return standalone.Run(cmd.Context(), o)
	}
	return cmd
}
