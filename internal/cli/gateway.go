package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"sync/atomic"
	"time"

	"github.com/estiba/estiba/api/v1alpha1"
	"github.com/estiba/estiba/internal/file"
	"github.com/estiba/estiba/internal/fleet"
	"github.com/estiba/estiba/internal/gateway"
	"github.com/estiba/estiba/internal/kubeconfig"
	"github.com/go-logr/logr"
	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/selection"
	"k8s.io/client-go/rest"
	toolscache "k8s.io/client-go/tools/cache"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

const (
	// workerPort is where workers listen in their pods.
	workerPort = "8081"
	// resyncEvery bounds how old what the gateway took from the cache and the key file may be.
	resyncEvery = 10 * time.Second
	// leaveDelay is how long a gateway that ends goes on taking requests: others
	// need so long to learn that it is not ready.
	leaveDelay = 3 * time.Second
)

type gatewayOptions struct {
	gateway.Options
	listen     string
	namespaces []string
	keyFile    string
	drain      time.Duration
}

func gatewayCommand() *cobra.Command {
	var o gatewayOptions
	cmd := &cobra.Command{
		Use:   "gateway",
		Short: "Answer OpenAI's API for the Models of a cluster",
		Long: `Gateway answers OpenAI's API: it finds the worker that has a request's model,
holds the request while none can take it, and passes the answer on as it comes. It
only reads from Kubernetes, and goes on serving while the API server is away. Any
number of gateways may run.`,
		Args: none,
	}
	f := cmd.Flags()
	f.StringVar(&o.listen, "listen", ":8080", "address to listen on")
	f.StringSliceVar(&o.namespaces, "namespaces", nil, "namespaces whose Models and workers are served (default: all)")
	f.StringVar(&o.keyFile, "key-file", "", "file with the installation's key, the data of the Secret estiba-key (required); read again when it changes")
	f.IntVar(&o.MaxHeld, "max-held", 256, "requests that may wait for a worker, per model; more are answered 429")
	f.DurationVar(&o.HoldTimeout, "hold-timeout", 2*time.Minute, "how long a request may wait for a worker before it is answered 503")
	f.StringVar(&o.TenantHeader, "tenant-header", "", "request header that says whose a request is, set by a proxy in front; devices are shared fairly between tenants (default: a model's namespace is the tenant)")
	f.StringVar(&o.Name, "name", "", "name of this gateway in its reports (default: the host's name, which is the pod's)")
	f.DurationVar(&o.drain, "drain", 5*time.Minute, "how long running requests may go on after SIGTERM")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if o.keyFile == "" {
			return usageError{errors.New("give the installation's key with --key-file")}
		}
		if o.MaxHeld <= 0 || o.HoldTimeout <= 0 {
			return usageError{errors.New("--max-held and --hold-timeout must be more than 0")}
		}
		if o.drain < 0 {
			return usageError{fmt.Errorf("--drain is %v: give 0s or more", o.drain)}
		}
		o.Log = slog.New(slog.NewJSONHandler(cmd.ErrOrStderr(), nil))
		if o.Name == "" {
			name, err := os.Hostname()
			if err != nil {
				return fmt.Errorf("find the host's name: %w; give one with --name", err)
			}
			o.Name = name
		}
		return runGateway(cmd.Context(), o)
	}
	return cmd
}

// runGateway serves until ctx ends, then until the running requests have ended.
func runGateway(ctx context.Context, o gatewayOptions) error {
	ctrl.SetLogger(logr.FromSlogHandler(o.Log.Handler()))
	key := &keyFile{path: o.keyFile}
	config, err := kubeconfig.Get("")
	if err != nil {
		return fmt.Errorf("find the Kubernetes API: %w", err)
	}
	listener, err := net.Listen("tcp", o.listen)
	if err != nil {
		return fmt.Errorf("listen: %w; choose another address with --listen", err)
	}

	// What follows the cluster goes on while running requests end.
	following, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	workers := fleet.New(fleet.NewClient(nil), fleet.Options{Log: o.Log})
	defer workers.Sync(nil)
	o.Token = func() string {
		if key.bytes() == nil {
			return "" // nobody can have one yet
		}
		return fleet.GatewayToken(key.bytes())
	}
	g := gateway.New(workers, o.Options)
	defer g.Close()
	server := &http.Server{
		Handler: g, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 64 << 10,
		ErrorLog: slog.NewLogLogger(o.Log.Handler(), slog.LevelDebug),
	}
	failed := make(chan error, 2)
	go func() { failed <- fmt.Errorf("serve: %w", server.Serve(listener)) }()
	go func() {
		f := follower{o: o, key: key, workers: workers, gateway: g}
		if err := f.run(following, config); err != nil {
			failed <- err
		}
	}()
	o.Log.Info("gateway listens", "address", listener.Addr().String(), "name", o.Name)

	select {
	case err := <-failed:
		server.Close()
		return err
	case <-ctx.Done():
	}
	o.Log.Info("gateway ends once its requests have", "within", o.drain.String())
	g.Drain()
	time.Sleep(leaveDelay)
	bounded, cancel := context.WithTimeout(following, o.drain)
	defer cancel()
	if err := server.Shutdown(bounded); err != nil {
		o.Log.Warn("requests were cut off", "error", err)
		server.Close()
	}
	return nil
}

// follower keeps a gateway's models and workers like those of the cluster. With
// the API server away it keeps what it last knew.
type follower struct {
	o       gatewayOptions
	key     *keyFile
	workers *fleet.Fleet
	gateway *gateway.Gateway
}

func (f *follower) run(ctx context.Context, config *rest.Config) error {
	scheme := runtime.NewScheme()
	if err := errors.Join(corev1.AddToScheme(scheme), v1alpha1.AddToScheme(scheme)); err != nil {
		return fmt.Errorf("set up the cache: %w", err)
	}
	hasPool, err := labels.NewRequirement(v1alpha1.LabelPool, selection.Exists, nil)
	if err != nil {
		return fmt.Errorf("set up the cache: %w", err)
	}
	options := cache.Options{
		Scheme: scheme,
		ByObject: map[client.Object]cache.ByObject{
			&corev1.Pod{}:     {Label: labels.NewSelector().Add(*hasPool), Transform: onlyAddress},
			&v1alpha1.Model{}: {},
		},
		DefaultTransform: cache.TransformStripManagedFields(),
	}
	if len(f.o.namespaces) > 0 {
		options.DefaultNamespaces = map[string]cache.Config{}
		for _, name := range f.o.namespaces {
			options.DefaultNamespaces[name] = cache.Config{}
		}
	}
	// On an installation's first day the operator makes the key.
	for {
		err := f.key.read(ctx)
		if err == nil {
			break
		}
		f.o.Log.Error("the gateway waits for the key", "error", err)
		if !fleet.Sleep(ctx, 2*time.Second) {
			return nil
		}
	}
	var objects cache.Cache
	changed := make(chan struct{}, 1)
	// The API server, or the kind Model, may not be there yet.
	for {
		objects, err = cache.New(config, options)
		if err == nil {
			break
		}
		f.o.Log.Error("cannot reach the Kubernetes API, will try again", "error", err)
		if !fleet.Sleep(ctx, 2*time.Second) {
			return nil
		}
	}
	go objects.Start(ctx)
	for _, kind := range []client.Object{&corev1.Pod{}, &v1alpha1.Model{}} {
		for {
			if err := notify(ctx, objects, kind, changed); err == nil {
				break
			} else if ctx.Err() == nil {
				f.o.Log.Error("cannot follow a kind of object, will try again", "kind", fmt.Sprintf("%T", kind), "error", err)
			}
			if !fleet.Sleep(ctx, 2*time.Second) {
				return nil
			}
		}
	}
	if !objects.WaitForCacheSync(ctx) {
		return nil
	}
	tick := time.NewTicker(resyncEvery)
	defer tick.Stop()
	for {
		if err := f.key.read(ctx); err != nil {
			f.o.Log.Error("the key is left as it was", "error", err)
		}
		if err := f.take(ctx, objects); err != nil {
			f.o.Log.Error("what is known is left as it was", "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		case <-changed:
			if !fleet.Sleep(ctx, 20*time.Millisecond) { // changes come in bursts
				return nil
			}
		}
	}
}

// take hands what the cache has to the gateway.
func (f *follower) take(ctx context.Context, objects client.Reader) error {
	var pods corev1.PodList
	if err := objects.List(ctx, &pods); err != nil {
		return fmt.Errorf("list pods: %w", err)
	}
	var models v1alpha1.ModelList
	if err := objects.List(ctx, &models); err != nil {
		return fmt.Errorf("list Models: %w", err)
	}
	f.workers.Sync(workerTargets(pods.Items, f.key.bytes()))
	f.gateway.SetModels(gateway.FromResources(models.Items))
	return nil
}

// notify signals changes of one kind of object, once all of them are known.
func notify(ctx context.Context, objects cache.Cache, kind client.Object, changed chan<- struct{}) error {
	informer, err := objects.GetInformer(ctx, kind)
	if err != nil {
		return err
	}
	signal := func() {
		select {
		case changed <- struct{}{}:
		default:
		}
	}
	_, err = informer.AddEventHandler(toolscache.ResourceEventHandlerFuncs{
		AddFunc:    func(any) { signal() },
		UpdateFunc: func(any, any) { signal() },
		DeleteFunc: func(any) { signal() },
	})
	return err
}

// workerTargets are the worker pods that can be dialled. They need not be
// ready: a worker that drains still answers what it runs.
func workerTargets(pods []corev1.Pod, key []byte) []fleet.Target {
	var targets []fleet.Target
	for _, p := range pods {
		if p.Status.PodIP == "" || p.Status.Phase != corev1.PodRunning {
			continue
		}
		pool := p.Namespace + "/" + p.Labels[v1alpha1.LabelPool]
		targets = append(targets, fleet.Target{
			Worker: p.Name, Pool: pool,
			URL:   "http://" + net.JoinHostPort(p.Status.PodIP, workerPort),
			Token: fleet.PoolToken(key, pool),
		})
	}
	return targets
}

// onlyAddress keeps of a pod what workerTargets needs.
func onlyAddress(object any) (any, error) {
	if p, ok := object.(*corev1.Pod); ok {
		p.Spec, p.ManagedFields, p.Annotations = corev1.PodSpec{}, nil, nil
		p.Status = corev1.PodStatus{PodIP: p.Status.PodIP, Phase: p.Status.Phase}
	}
	return object, nil
}

// keyFile is the installation's key, read again now and then. Like the operator
// it takes no space around it.
type keyFile struct {
	path string
	key  atomic.Pointer[[]byte]
}

func (k *keyFile) read(ctx context.Context) error {
	text, err := file.Read(ctx, k.path, 1<<20)
	if err != nil {
		return fmt.Errorf("the installation's key: %w; mount the Secret estiba-key and name its file with --key-file", err)
	}
	key := bytes.TrimSpace(text)
	if len(key) == 0 {
		return fmt.Errorf("the installation's key: %s is empty", k.path)
	}
	k.key.Store(&key)
	return nil
}

// bytes is nil before the first read.
func (k *keyFile) bytes() []byte {
	if key := k.key.Load(); key != nil {
		return *key
	}
	return nil
}
