package controllers

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	coordinationclient "k8s.io/client-go/kubernetes/typed/coordination/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	ctrlmetrics "sigs.k8s.io/controller-runtime/pkg/metrics"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"github.com/estiba/estiba/api/v1alpha1"
	"github.com/estiba/estiba/internal/file"
)

// KeySecret is the Secret with the installation's key, under KeyEntry.
const (
	KeySecret = "estiba-key"
	KeyEntry  = "key"
)

// requestsPerSecond bounds what the operator asks of the API server, of each kind
// of object, should it ever go round in circles: 10,000 Models that come at once
// take some hundred writes a second. What is fair among clients is for the API
// server's priority levels to say.
const requestsPerSecond = 500

// RunOptions of an operator process.
type RunOptions struct {
	Namespace   string   // Estiba's own
	Namespaces  []string // whose Models and pools are served; none: all
	WorkerImage string
	KeyFile     string // empty: the Secret estiba-key, made if it is not there
	Listen      string // /metrics, /healthz and /readyz
	LeaderElect bool
	Policy      Policy
	Decided     func(Seen, Plan) // as in Options
	// DebugListen is where Debug's handler is served; empty: nowhere. Who reaches it sees
	// all that is decided on, so that it is an address of this machine, or of this pod, only.
	DebugListen string
	Debug       func(*Reconciler) http.Handler
	Log         *slog.Logger
}

// Scheme has the types that the operator reads and writes.
func Scheme() (*runtime.Scheme, error) {
	s := runtime.NewScheme()
	if err := clientgoscheme.AddToScheme(s); err != nil {
		return nil, err
	}
	return s, v1alpha1.AddToScheme(s)
}

// Run is the operator: until ctx ends, or another one leads.
func Run(ctx context.Context, config *rest.Config, o RunOptions) error {
	log := logr.FromSlogHandler(o.Log.Handler())
	ctrllog.SetLogger(log)
	scheme, err := Scheme()
	if err != nil {
		return fmt.Errorf("register types: %w", err)
	}
	key, err := installationKey(ctx, config, scheme, o)
	if err != nil {
		return err
	}
	var synced atomic.Bool
	identity := ""
	config = rest.CopyConfig(config)
	config.QPS, config.Burst = requestsPerSecond, 2*requestsPerSecond
	options := ctrl.Options{
		Scheme: scheme, Logger: log, Cache: cacheOptions(o),
		Metrics: metricsserver.Options{BindAddress: o.Listen, ExtraHandlers: map[string]http.Handler{
			"/healthz": answer(func() bool { return true }), "/readyz": answer(synced.Load)}},
		HealthProbeBindAddress:        "0",
		LeaderElectionReleaseOnCancel: true,
	}
	if o.LeaderElect {
		if identity, err = newIdentity(); err != nil {
			return err
		}
		lock, err := newLock(config, o.Namespace, identity)
		if err != nil {
			return err
		}
		options.LeaderElection, options.LeaderElectionResourceLockInterface = true, lock
	}
	mgr, err := ctrl.NewManager(config, options)
	if err != nil {
		return fmt.Errorf("connect to the Kubernetes API: %w", err)
	}
	r, err := NewReconciler(mgr, Options{
		Namespace: o.Namespace, Namespaces: o.Namespaces, WorkerImage: o.WorkerImage,
		Key: key, Identity: identity, Policy: o.Policy, Decided: o.Decided, Log: o.Log, Registerer: ctrlmetrics.Registry,
	})
	if err != nil {
		return fmt.Errorf("start the placement loop: %w", err)
	}
	if o.DebugListen != "" {
		if err := debug(ctx, mgr, o.DebugListen, o.Debug(r)); err != nil {
			return err
		}
	}
	go func() { synced.Store(mgr.GetCache().WaitForCacheSync(ctx)) }()
	return mgr.Start(ctx)
}

// debug serves a handler on an address of this machine.
func debug(ctx context.Context, mgr ctrl.Manager, address string, handler http.Handler) error {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return fmt.Errorf("--debug-listen: %w", err)
	}
	if ip, err := netip.ParseAddr(host); err != nil || !ip.IsLoopback() {
		return fmt.Errorf("--debug-listen %s: write a loopback address, as in 127.0.0.1:8083; kubectl port-forward reaches it", address)
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address)
	if err != nil {
		return fmt.Errorf("--debug-listen: %w; choose another address, or none with --debug-listen=", err)
	}
	return mgr.Add(&manager.Server{Name: "debug", Listener: l, Server: &http.Server{Handler: handler, ReadHeaderTimeout: 10 * time.Second}})
}

func answer(ok func() bool) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if !ok() {
			http.Error(w, "not ready: caches are not synced", http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	})
}

// cacheOptions keep what is watched small: Estiba's objects, its pods, and names of nodes and namespaces.
func cacheOptions(o RunOptions) cache.Options {
	component, err := labels.Parse(v1alpha1.LabelComponent + " in (worker,gateway)")
	if err != nil {
		panic(err)
	}
	pods := cache.ByObject{Label: component, Transform: cache.TransformStripManagedFields()}
	options := cache.Options{DefaultTransform: cache.TransformStripManagedFields()}
	if len(o.Namespaces) > 0 {
		options.DefaultNamespaces = map[string]cache.Config{}
		pods.Namespaces = map[string]cache.Config{o.Namespace: {}}
		for _, n := range o.Namespaces {
			options.DefaultNamespaces[n] = cache.Config{}
			pods.Namespaces[n] = cache.Config{}
		}
	}
	options.ByObject = map[client.Object]cache.ByObject{&corev1.Pod{}: pods}
	return options
}

// newIdentity names this process in the lease.
func newIdentity() (string, error) {
	host, err := os.Hostname()
	if err != nil {
		return "", fmt.Errorf("name this process for the lease: %w", err)
	}
	return host + "_" + rand.Text()[:8], nil
}

func newLock(config *rest.Config, namespace, identity string) (resourcelock.Interface, error) {
	config = rest.CopyConfig(config)
	config.Timeout = 5 * time.Second // a request that hangs must not outlast the lease
	leases, err := coordinationclient.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("connect for the lease: %w", err)
	}
	return &resourcelock.LeaseLock{
		LeaseMeta:  metav1.ObjectMeta{Namespace: namespace, Name: LeaseName},
		Client:     leases,
		LockConfig: resourcelock.ResourceLockConfig{Identity: identity},
	}, nil
}

// installationKey is the key from which tokens are derived: of a file, or of the Secret, which is made if it is not there.
func installationKey(ctx context.Context, config *rest.Config, scheme *runtime.Scheme, o RunOptions) ([]byte, error) {
	if o.KeyFile != "" {
		text, err := file.Read(ctx, o.KeyFile, 1<<20)
		if err == nil {
			return usableKey([]byte(strings.TrimSpace(string(text))), o.KeyFile)
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("the installation key: %w", err)
		}
		// The Secret is mounted as optional: on the first day it is made below.
	}
	c, err := client.New(config, client.Options{Scheme: scheme})
	if err != nil {
		return nil, fmt.Errorf("connect to the Kubernetes API: %w", err)
	}
	for {
		secret := &corev1.Secret{}
		err := c.Get(ctx, client.ObjectKey{Namespace: o.Namespace, Name: KeySecret}, secret)
		switch {
		case err == nil:
			return usableKey([]byte(strings.TrimSpace(string(secret.Data[KeyEntry]))), "Secret "+o.Namespace+"/"+KeySecret)
		case !apierrors.IsNotFound(err):
			return nil, fmt.Errorf("read Secret %s/%s: %w", o.Namespace, KeySecret, err)
		}
		random := make([]byte, 32)
		rand.Read(random) //nolint:errcheck // it never fails
		secret = &corev1.Secret{
			ObjectMeta: metav1.ObjectMeta{Namespace: o.Namespace, Name: KeySecret, Labels: map[string]string{"app.kubernetes.io/part-of": "estiba"}},
			Data:       map[string][]byte{KeyEntry: []byte(hex.EncodeToString(random))},
		}
		if err := c.Create(ctx, secret); err != nil && !apierrors.IsAlreadyExists(err) {
			return nil, fmt.Errorf("create Secret %s/%s: %w", o.Namespace, KeySecret, err)
		}
	}
}

func usableKey(key []byte, from string) ([]byte, error) {
	if len(key) < 16 {
		return nil, fmt.Errorf("the installation key in %s has %d bytes: it needs at least 16, as from `openssl rand -hex 32`", from, len(key))
	}
	return key, nil
}
