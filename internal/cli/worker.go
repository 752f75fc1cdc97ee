package cli

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/spf13/cobra"
	_ "golang.org/x/crypto/x509roots/fallback" // https:// sources: the image has no certificates of its own
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/estiba/estiba/internal/source"
	"github.com/estiba/estiba/runtime/backend/named"
	"github.com/estiba/estiba/runtime/device"
	"github.com/estiba/estiba/runtime/server"
	"github.com/estiba/estiba/runtime/worker"
)

// workerOptions are the flags of estiba worker.
type workerOptions struct {
	name, pool, listen, tokenFile, cacheDir string
	cacheSize, memory, headroom             string
	modelRoots                              []string
	drain                                   time.Duration
	emulate, device, expects                string
	threads                                 int
}

func workerCommand() *cobra.Command {
	var o workerOptions
	cmd := &cobra.Command{
		Use:   "worker --pool NAMESPACE/NAME --token-file FILE",
		Short: "Hold models on this machine's devices and serve them",
		Long: `Worker takes its assignment from the operator, loads models onto its devices,
serves them to gateways and reports what is so. The operator starts one in each
pod of an InferencePool. SIGTERM lets running requests end.` + kernelsHelp,
		Example: `  estiba worker --pool default/cpu --token-file token --model-root /models`,
		Args:    none,
	}
	hostname, _ := os.Hostname()
	if name := os.Getenv("HOSTNAME"); name != "" {
		hostname = name
	}
	cmd.Flags().StringVar(&o.name, "name", hostname, "name of this worker: that of its pod")
	cmd.Flags().StringVar(&o.pool, "pool", "", "pool that it belongs to, as namespace/name (required)")
	cmd.Flags().StringVar(&o.listen, "listen", ":8081", "address for inference, control, health and metrics")
	cmd.Flags().StringVar(&o.tokenFile, "token-file", "", "file with the pool's token; read again when it changes (required)")
	cmd.Flags().StringArrayVar(&o.modelRoots, "model-root", nil, "folder below which file:// sources may be read; may be given several times (default none)")
	cmd.Flags().StringVar(&o.cacheDir, "cache-dir", filepath.Join(os.TempDir(), "estiba-cache"), "folder for fetched models")
	cmd.Flags().StringVar(&o.cacheSize, "cache-size", "10Gi", "bound of that folder")
	cmd.Flags().StringVar(&o.memory, "memory", "", "memory that models may use, before headroom, if there is so much (default: what the control group or the machine allows)")
	cmd.Flags().StringVar(&o.headroom, "headroom", "5%", "share of the memory that stays free")
	cmd.Flags().StringVar(&o.device, "device", cmp.Or(os.Getenv("ESTIBA_DEVICE"), named.Auto), named.ClaimHelp+" (default: what ESTIBA_DEVICE names, else auto)")
	cmd.Flags().StringVar(&o.expects, "expects", "", "what the worker is to be given a GPU by, as in nvidia.com/gpu: that there is none is reported, and the processor does not compute in its place unless --device is cpu")
	cmd.Flags().StringVar(&o.emulate, "emulate", os.Getenv("ESTIBA_EMULATE"), emulateHelp+" (default: what ESTIBA_EMULATE names)")
	cmd.Flags().DurationVar(&o.drain, "drain", 5*time.Minute, "how long running requests may go on when a model, or the worker, has to go")
	threadsFlag(cmd, &o.threads)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		log := slog.New(slog.NewJSONHandler(cmd.ErrOrStderr(), nil)).With("worker", o.name)
		return runWorker(cmd.Context(), o, log, nil)
	}
	return cmd
}

// runWorker is a worker until ctx ends. listening, if not nil, is told the address that was taken.
func runWorker(ctx context.Context, o workerOptions, log *slog.Logger, listening func(net.Addr)) error {
	if err := checkThreads(o.threads); err != nil {
		return err
	}
	if err := checkClaim(o.device, o.emulate); err != nil {
		return err
	}
	claim, err := o.claim()
	if err != nil {
		return err
	}
	cacheSize, err := size("--cache-size", o.cacheSize)
	if err != nil {
		return err
	}
	if namespace, name, ok := strings.Cut(o.pool, "/"); !ok || namespace == "" || name == "" {
		return usageError{fmt.Errorf("--pool %q: write NAMESPACE/NAME, as in default/cpu", o.pool)}
	}
	if o.drain < 0 {
		return usageError{fmt.Errorf("--drain is %v: give 0s or more", o.drain)}
	}
	if o.tokenFile == "" {
		return usageError{fmt.Errorf("--token-file is missing: the operator proves itself with the token in it")}
	}
	token := server.TokenFile(o.tokenFile)
	if _, err := token(); err != nil {
		return err
	}
	for _, root := range o.modelRoots {
		if !filepath.IsAbs(root) {
			return usageError{fmt.Errorf("--model-root %q: write an absolute path, as in /models", root)}
		}
	}
	var w *worker.Worker // which the monitor asks, once it is there
	devices, monitor, missing, err := o.devices(claim, func(uuid string) int64 {
		if w == nil {
			return 0
		}
		return w.Held(uuid)
	}, log)
	if err != nil {
		return err
	}
	for _, d := range devices {
		log.Info("device claimed", "device", d.Name, "capacityBytes", d.Capacity, "extentBytes", d.Extent, "from", d.Description)
	}
	store := &source.Store{Roots: o.modelRoots, CacheDir: o.cacheDir, CacheSize: cacheSize}
	if err := os.MkdirAll(o.cacheDir, 0o700); err != nil {
		return fmt.Errorf("make --cache-dir: %w", err)
	}
	w, err = worker.New(worker.Options{
		Name: o.name, Pool: o.pool, Version: Version(), Devices: devices, Missing: missing, Monitor: monitor, Emulated: o.emulate != "",
		Fetch: store.Fetch, Release: store.Release, Header: store.Header, Drain: o.drain, Threads: o.threads, Log: log,
		Journal: filepath.Join(o.cacheDir, "at-work.json"), // where a pod keeps it when its container starts anew
	})
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", o.listen)
	if err != nil {
		return fmt.Errorf("listen on --listen: %w", err)
	}
	if listening != nil {
		listening(l.Addr())
	}
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return server.Serve(ctx, l, w, server.Options{Token: token, Registry: registry, Log: log}, o.drain)
}

// claim is what the worker may take of the machine's memory.
func (o workerOptions) claim() (device.Options, error) {
	percent, err := strconv.Atoi(strings.TrimSuffix(o.headroom, "%"))
	if err != nil || percent < 0 || percent > 50 || !strings.HasSuffix(o.headroom, "%") {
		return device.Options{}, usageError{fmt.Errorf("--headroom %q: write a whole percentage from 0%% to 50%%", o.headroom)}
	}
	memory := int64(0)
	if o.memory != "" {
		if memory, err = size("--memory", o.memory); err != nil {
			return device.Options{}, err
		}
	}
	return device.Options{Expected: memory, Headroom: percent}, nil
}

// size reads a quantity of bytes such as 2Gi.
func size(flag, s string) (int64, error) {
	q, err := resource.ParseQuantity(s)
	if err != nil || q.Value() <= 0 {
		return 0, usageError{fmt.Errorf("%s %q: write a size such as 2Gi", flag, s)}
	}
	return q.Value(), nil
}
