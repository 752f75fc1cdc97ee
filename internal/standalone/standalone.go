// Package standalone runs Estiba on one machine without Kubernetes: the
// operator's decisions, a gateway and workers in one process, on the same
// manifests read from files. Start with Run. What is decided is decided by
// controllers.Decide; this package observes files and workers, and applies.
package standalone

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/estiba/estiba/api/v1alpha1"
	"github.com/estiba/estiba/api/worker"
	"github.com/estiba/estiba/controllers"
	"github.com/estiba/estiba/internal/fleet"
	"github.com/estiba/estiba/internal/gateway"
	"github.com/estiba/estiba/internal/history"
	"github.com/estiba/estiba/runtime/backend/named"
	"github.com/estiba/estiba/runtime/device"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Options of Run.
type Options struct {
	Paths    []string      // manifest files, and folders of them; watched
	Listen   string        // address of the gateway
	Drain    time.Duration // how long running requests may go on after ctx ends; 0 means 30 s
	Memory   int64         // bytes that models may use, over all pools; 0: what the machine can give
	Threads  int           // of each worker, that compute; 0: as many as the processor and the CPU quota allow
	Version  string        // of the program
	CacheDir string        // where fetched models are kept; empty: the user's cache folder
	Device   string        // what computes, as named.Resolve takes it; empty: the processor
	Emulate  string        // file that describes GPUs which are not there, and which every worker has; empty: the processor is the device
	Log      *slog.Logger
}

// ownMemory says that devices bring memory of their own, and do not divide the machine's.
func (o Options) ownMemory() bool { return o.Emulate != "" || o.sole() }

// sole says that all pools have one worker together: in one process each device is opened once. Emulated ones
// are there for each worker.
func (o Options) sole() bool { return o.Emulate == "" && o.Device == named.CUDA }

// emulatedMemory is that of the machine for workers whose devices bring their own: more than they ask for.
const emulatedMemory = 1 << 50

// defaultEnd is how long running requests may go on when the process ends.
const defaultEnd = 30 * time.Second

// gatewayName is what the gateway of this process is called; it has a dot, so that no worker's name can be it.
const gatewayName = "estiba.gateway"

// Server is one standalone process.
type Server struct {
	o       Options
	asked   int64 // Memory as it was given
	gateway *gateway.Gateway
	loop    *loop
	history *history.Recorder

	mu        sync.Mutex
	manifests Manifests // with the statuses of the last decision
}

// Run serves until ctx ends, then drains. A worker that ends by itself ends it: one with a *backend.DeviceError has left a
// device as only another process can use it, and what another one ends with, none that is made of the same would mend.
func Run(ctx context.Context, o Options) error {
	o.Drain = cmp.Or(o.Drain, defaultEnd)
	manifests, err := Read(o.Paths...)
	if err != nil {
		return err
	}
	if len(manifests.Models) == 0 {
		o.Log.Warn("the manifests have no Model: nothing is served until one is written", "from", strings.Join(o.Paths, ", "))
	}
	manifests = withDefaultPool(manifests)

	if o.Emulate != "" {
		_, err = device.Emulated(o.Emulate, nil, o.Log)
	} else {
		o.Device, err = named.Resolve(o.Device, o.Log)
	}
	if err != nil {
		return named.Insisted(err)
	}
	asked, most, limit := o.Memory, int64(0), int64(0)
	if o.ownMemory() {
		o.Memory = emulatedMemory
	} else {
		machine, err := device.CPU(device.Options{Memory: o.Memory})
		if err != nil {
			return err
		}
		o.Memory = machine.Capacity
		most, limit = device.Most(nil) // before models take it
	}
	l, err := net.Listen("tcp", o.Listen)
	if err != nil {
		return fmt.Errorf("listen: %w; choose another address with --listen", err)
	}
	defer l.Close()

	key := []byte(rand.Text())
	hosts := newHosts()
	client := fleet.NewClient(hosts.dial)
	metrics := newMetrics()
	workers := fleet.New(client, fleet.Options{Log: o.Log})
	routes := fleet.New(client, fleet.Options{Log: o.Log})
	s := &Server{o: o, asked: asked, manifests: manifests, history: history.NewRecorder(history.RecorderOptions{Log: o.Log})}
	s.gateway = gateway.New(routes, gateway.Options{
		Name: gatewayName, Log: o.Log, Registry: metrics.own,
		Token: func() string { return fleet.GatewayToken(key) },
	})
	defer s.gateway.Close()
	hosts.add(gatewayName, newHost(s.gateway))
	gateways := fleet.NewGateways(client, fleet.Options{Log: o.Log})
	gateways.Sync([]fleet.Target{{Worker: gatewayName, URL: "http://" + gatewayName + ":80", Token: fleet.GatewayToken(key)}})
	s.loop = newLoop(s, hosts, workers, routes, gateways, key, metrics)
	s.loop.budget.most, s.loop.budget.limit = most, limit

	srv := &http.Server{Handler: s.handler(metrics), ReadHeaderTimeout: 10 * time.Second, ErrorLog: slog.NewLogLogger(o.Log.Handler(), slog.LevelDebug)}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(l) }()
	o.Log.Info("listening", "address", l.Addr().String())

	loopCtx, stopLoop := context.WithCancel(context.Background())
	looped := make(chan struct{})
	go s.history.Run(loopCtx)
	go func() {
		defer close(looped)
		s.loop.run(loopCtx)
	}()

	var failed error
	select {
	case <-ctx.Done():
		o.Log.Info("ends once its requests have", "within", o.Drain.String())
	case failed = <-served:
	case failed = <-s.loop.broke:
		o.Drain = 1 // nothing that could answer is left
		s.gateway.Close()
	}
	s.gateway.Drain()
	within, cancel := context.WithTimeout(context.Background(), o.Drain)
	defer cancel()
	if err := srv.Shutdown(within); err != nil {
		o.Log.Warn("requests were cut off")
		s.gateway.Close() // each gets an error that says so
		soon, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if srv.Shutdown(soon) != nil {
			srv.Close()
		}
	}
	stopLoop()
	<-looped
	workers.Sync(nil) // nobody listens to what the workers say while they end
	routes.Sync(nil)
	gateways.Sync(nil)
	client.CloseIdleConnections() // a server waits for new ones that nobody has used
	hosts.closeAll()
	if errors.Is(failed, http.ErrServerClosed) {
		return nil
	}
	return failed
}

// madeUp: p is of withDefaultPool. Those of manifests have an identity.
func madeUp(p v1alpha1.InferencePool) bool { return p.UID == "" }

// withDefaultPool adds a pool when the manifests have none: one worker that
// holds the Models of every namespace and reads what its user may read.
func withDefaultPool(m Manifests) Manifests {
	if len(m.Pools) > 0 {
		return m
	}
	pool := v1alpha1.InferencePool{
		ObjectMeta: metav1.ObjectMeta{Name: "default", Namespace: "default"},
		Spec: v1alpha1.InferencePoolSpec{
			Workers:           v1alpha1.WorkerRange{Min: 1, Max: 1},
			AllowedNamespaces: v1alpha1.AllowedNamespaces{From: v1alpha1.NamespacesAll},
		},
	}
	m.Pools = append(m.Pools, pool)
	return m
}

// handler is the gateway's, plus the objects and this process's own readiness.
func (s *Server) handler(metrics *metrics) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/", s.gateway)
	mux.Handle("GET /metrics", promhttp.HandlerFor(metrics, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if waiting := s.undecided(); waiting != "" {
			http.Error(w, waiting, http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	s.readOnly(mux)
	decisions := s.history.Handler(func(ctx context.Context, pool string, r worker.InspectRequest) (worker.Inspection, error) {
		return controllers.InspectBy(ctx, s.loop.workers, pool, r)
	}, func(seen controllers.Seen) controllers.Seen {
		return controllers.CurrentBy(s.loop.workers, seen, time.Now())
	})
	for _, path := range []string{history.PathSnapshot, history.PathHistory, history.PathInspect} {
		mux.Handle(path, decisions)
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.URL.Path, "//") { // the gateway refuses it; a mux would redirect
			s.gateway.ServeHTTP(w, r)
			return
		}
		mux.ServeHTTP(w, r)
	})
}

// undecided says which Model is neither served nor has said why not.
func (s *Server) undecided() string {
	for _, m := range s.objects().Models {
		ready := meta.FindStatusCondition(m.Status.Conditions, v1alpha1.ConditionReady)
		switch {
		case ready == nil || m.Status.ObservedGeneration != m.Generation:
			return fmt.Sprintf("model %s/%s: nothing has been decided yet", m.Namespace, m.Name)
		case ready.Status == metav1.ConditionTrue:
		case !meta.IsStatusConditionTrue(m.Status.Conditions, v1alpha1.ConditionReconciling): // it has said why not
		case ready.Reason == v1alpha1.ReasonLoading || ready.Reason == v1alpha1.ReasonWaitingForWorker:
			return fmt.Sprintf("model %s/%s: %s", m.Namespace, m.Name, ready.Message)
		}
	}
	return ""
}

// objects are the manifests with the statuses of the last decision.
func (s *Server) objects() Manifests {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.manifests
}

func (s *Server) setObjects(m Manifests) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.manifests = m
}

// hosts are the workers of this process, by name.
type hosts struct {
	leaving sync.WaitGroup
	mu      sync.Mutex
	all     map[string]*host
}

type host struct {
	listener *fleet.Listener
	stop     func()
}

// newHost serves a handler in memory.
func newHost(handler http.Handler) *host {
	l := fleet.Listen()
	srv := &http.Server{Handler: handler, ReadHeaderTimeout: 10 * time.Second}
	go func() { _ = srv.Serve(l) }() // it ends with Close, and can end with nothing else
	return &host{listener: l, stop: func() { srv.Close() }}
}

func newHosts() *hosts { return &hosts{all: map[string]*host{}} }

// dial connects to a worker of this process; it is a fleet.Dial.
func (h *hosts) dial(ctx context.Context, network, address string) (net.Conn, error) {
	name, _, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	h.mu.Lock()
	to := h.all[name]
	h.mu.Unlock()
	if to == nil {
		return nil, fmt.Errorf("dial %s: there is no such worker", name)
	}
	return to.listener.Dial(ctx, network, address)
}

func (h *hosts) add(name string, w *host) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.all[name] = w
}

// remove ends a worker once its requests have ended, and then calls ended.
func (h *hosts) remove(name string, ended func()) {
	h.mu.Lock()
	w := h.all[name]
	delete(h.all, name)
	h.mu.Unlock()
	if w == nil {
		return
	}
	h.leaving.Go(func() {
		w.stop()
		ended()
	})
}

func (h *hosts) closeAll() {
	h.mu.Lock()
	all := h.all
	h.all = map[string]*host{}
	h.mu.Unlock()
	for _, w := range all {
		h.leaving.Go(w.stop) // each may wait for its requests
	}
	h.leaving.Wait()
}

func quantity(bytes int64) *resource.Quantity { return resource.NewQuantity(bytes, resource.BinarySI) }
