package cli

import (
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"

	"github.com/estiba/estiba/controllers"
	"github.com/estiba/estiba/internal/history"
	"github.com/estiba/estiba/internal/kubeconfig"
)

func operatorCommand() *cobra.Command {
	var o controllers.RunOptions
	var path, metricsFrom, historyDir string
	cmd := &cobra.Command{
		Use:   "operator",
		Short: "Decide which worker holds which model, on Kubernetes",
		Long: `Watches Models and InferencePools, makes worker pods, gives models their homes
and says in their conditions what became of them. Several operators may run with
--leader-elect: one leads.`,
		Args: none,
		PreRunE: func(*cobra.Command, []string) error {
			if o.WorkerImage == "" {
				return usageError{errors.New("--worker-image is missing: the image of worker pods, usually the operator's own")}
			}
			if err := yaml.UnmarshalStrict([]byte(metricsFrom), &o.Policy.MetricsFrom); err != nil {
				return usageError{fmt.Errorf("--metrics-from is not a list of a NetworkPolicy's peers, as in '[{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: monitoring}}}]': %w", err)}
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&o.Namespace, "namespace", ownNamespace(), "namespace of Estiba itself: of its lease, its key and its gateways")
	cmd.Flags().StringSliceVar(&o.Namespaces, "namespaces", nil, "namespaces whose Models and InferencePools are served (default: all)")
	cmd.Flags().StringVar(&o.WorkerImage, "worker-image", os.Getenv("ESTIBA_WORKER_IMAGE"), "image of worker pods (required)")
	cmd.Flags().StringVar(&o.KeyFile, "key-file", "", "file with the installation key (default: the Secret estiba-key, made if it is not there)")
	cmd.Flags().StringVar(&o.Listen, "metrics-listen", ":8082", "address of /metrics, /healthz and /readyz")
	cmd.Flags().StringVar(&o.DebugListen, "debug-listen", fmt.Sprintf("127.0.0.1:%d", history.DefaultPort), "loopback address where the last decisions can be read, as by estiba explain through a forwarded port; empty: nowhere")
	cmd.Flags().StringVar(&historyDir, "history-dir", "", "folder where the last decisions are kept too, up to 256 MiB of them (default: in memory only)")
	cmd.Flags().BoolVar(&o.LeaderElect, "leader-elect", false, "lead only while holding the lease")
	cmd.Flags().BoolVar(&o.Policy.Enabled, "network-policy", false, "make a NetworkPolicy for each pool: only operator and gateways reach its workers")
	cmd.Flags().StringVar(&metricsFrom, "metrics-from", "[]", "with --network-policy: who else may reach workers, to read their metrics; peers as in a NetworkPolicy, in JSON or YAML")
	cmd.Flags().StringVar(&path, "kubeconfig", "", "kubeconfig file (default: KUBECONFIG, the cluster that this runs in, or ~/.kube/config)")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		o.Log = slog.New(slog.NewJSONHandler(cmd.ErrOrStderr(), nil))
		config, err := kubeconfig.Get(path)
		if err != nil {
			return fmt.Errorf("find the Kubernetes API: %w", err)
		}
		recorder := history.NewRecorder(history.RecorderOptions{Dir: historyDir, Log: o.Log})
		go recorder.Run(cmd.Context())
		o.Decided = recorder.Decided
		o.Debug = func(r *controllers.Reconciler) http.Handler { return recorder.Handler(r.Inspect, r.Current) }
		return controllers.Run(cmd.Context(), config, o)
	}
	return cmd
}

// ownNamespace is that of the pod that this runs in.
func ownNamespace() string {
	if text, err := os.ReadFile("/var/run/secrets/kubernetes.io/serviceaccount/namespace"); err == nil {
		return strings.TrimSpace(string(text))
	}
	return "estiba-system"
}
