// Package gateway answers OpenAI's API for all models: it admits a request,
// finds its model, holds it while no worker can take it, and passes it to the
// replica that internal/policy/routing picks. What it knows comes from the
// workers' reports, so every replica of it, and a restarted one, does the same.
// It writes to no API: what it holds, it reports in a stream of its own.
// Start with Gateway, then follow infer.
package gateway

import (
	"cmp"
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/estiba/estiba/api/worker"
	"github.com/estiba/estiba/internal/fleet"
	"github.com/estiba/estiba/internal/policy/routing"
	"github.com/prometheus/client_golang/prometheus"
)

// Model is what a gateway knows of a Model resource.
type Model struct {
	Key     string   // "namespace/name"
	Names   []string // that clients may send; a name that two Models have is the older one's
	Created time.Time

	Suspended bool   // requests are refused
	Stalled   bool   // only a change of a spec, or of files, helps: requests are not held
	Reason    string // of its Ready condition, as is Message
	Message   string
}

// vain says that holding a request is in vain: as long as nobody changes something, no home will take it.
func (m Model) vain() bool { return m.Stalled || m.Reason == worker.ReasonSourceUnavailable }

// Options of a Gateway. The zero value works.
type Options struct {
	Name        string        // under which it reports what it holds
	MaxHeld     int           // requests that wait for a worker, per model; 0 means 256
	HoldTimeout time.Duration // how long one waits; 0 means 2 minutes
	// TenantHeader names a header that says whose a request is, set by a proxy in
	// front that knows. Empty, or absent in a request: it is the Model's namespace's.
	TenantHeader string
	Token        func() string        // that readers of its report must show; nil: it is not served
	Registry     *prometheus.Registry // nil: one of its own
	Log          *slog.Logger         // nil: nothing is logged
}

// Gateway is an http.Handler.
type Gateway struct {
	o        Options
	fleet    *fleet.Fleet
	client   http.RoundTripper
	mux      *http.ServeMux
	metrics  *metrics
	instance string
	ending   context.Context // done with Close
	stop     context.CancelFunc

	buffered atomic.Int64 // bytes of bodies in memory
	draining atomic.Bool

	mu     sync.Mutex
	known  bool              // models have been set
	ready  bool              // and every worker has reported or could not be reached
	models map[string]*model // by key
	names  map[string]*model // served name -> model
}

// model is a Model and its requests. All but the key is guarded by Gateway.mu.
type model struct {
	key      string // never changes; the rest is guarded
	spec     Model
	homes    []home
	held     []*waiter // first come, first served
	inFlight int       // forwarded and not ended
	turn     uint64
	gone     bool // not among the models any more
}

// home is where a model lives, as its worker last reported.
type home struct {
	worker    string
	url       *url.URL
	token     string
	ready     routing.Readiness
	connected bool
	reported  int       // requests running or waiting there
	seen      time.Time // of the report
	since     *int      // own requests sent since the report and not ended; shared with them
}

// New makes a Gateway for the workers of a fleet, of whose Changed it is the
// reader. It has no models until SetModels. Close ends it.
func New(f *fleet.Fleet, o Options) *Gateway {
	o.MaxHeld = cmp.Or(o.MaxHeld, 256)
	o.HoldTimeout = cmp.Or(o.HoldTimeout, 2*time.Minute)
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Registry == nil {
		o.Registry = prometheus.NewRegistry()
	}
	ctx, stop := context.WithCancel(context.Background())
	g := &Gateway{
		o: o, fleet: f, client: f.Client().Transport,
		instance: rand.Text(), ending: ctx, stop: stop,
		models: map[string]*model{}, names: map[string]*model{},
	}
	g.metrics = newMetrics(o.Registry, g)
	g.mux = g.routes()
	go g.follow(ctx)
	return g
}

// Close ends what New began. Requests that are left end with an error that says so.
func (g *Gateway) Close() { g.stop() }

// Drain makes the gateway not ready, so that no new clients come; it goes on answering.
func (g *Gateway) Drain() { g.draining.Store(true) }

// SetModels makes these all the models there are.
func (g *Gateway) SetModels(models []Model) {
	models = slices.Clone(models)
	slices.SortFunc(models, func(a, b Model) int {
		return cmp.Or(a.Created.Compare(b.Created), cmp.Compare(a.Key, b.Key))
	})
	g.mu.Lock()
	defer g.mu.Unlock()
	old := g.models
	g.models, g.names = map[string]*model{}, map[string]*model{}
	for _, spec := range models {
		m := old[spec.Key]
		if m == nil {
			m = &model{key: spec.Key}
		}
		m.spec = spec
		g.models[spec.Key] = m
		named := false
		for _, name := range spec.Names {
			if g.names[name] == nil { // else an older Model has it
				g.names[name], named = m, true
			}
		}
		if !named { // it is listed by its full name
			g.names[spec.Key] = m
		}
	}
	for key, m := range old {
		if g.models[key] == nil {
			m.gone, m.homes = true, nil
			g.metrics.forget(key)
		}
	}
	g.known = true
	g.refresh(g.fleet.Workers())
	for key, m := range old {
		if g.models[key] == nil || m.spec.Suspended || m.spec.vain() {
			m.dismiss()
		}
	}
}

// follow takes over what workers report. The ticker is for reports in which
// only clocks changed: they let a worker be tried again.
func (g *Gateway) follow(ctx context.Context) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-g.fleet.Changed():
		case <-tick.C:
		}
		reports := g.fleet.Workers()
		g.mu.Lock()
		g.refresh(reports)
		g.mu.Unlock()
	}
}

// refresh rebuilds every model's homes and lets held requests go where they can.
func (g *Gateway) refresh(reports []fleet.Report) {
	type place struct{ model, worker string }
	before := map[place]home{}
	for _, m := range g.models {
		for _, h := range m.homes {
			before[place{m.key, h.worker}] = h
		}
		m.homes = m.homes[:0:0] // requests that are being routed have the old ones
	}
	answered := true
	for _, r := range reports {
		if r.Seen.IsZero() {
			answered = answered && r.Err != nil
			continue
		}
		base, err := url.Parse(r.URL)
		if err != nil {
			g.o.Log.Error("worker has a bad address", "worker", r.Worker, "error", err)
			continue
		}
		for _, s := range r.State.Homes {
			m := g.models[s.Model]
			if m == nil {
				continue
			}
			h := home{
				worker: r.Worker, url: base, token: r.Token, connected: r.Connected,
				ready: readiness(r.State, s), reported: s.Running + s.Waiting, seen: r.Seen,
			}
			if old, ok := before[place{m.key, r.Worker}]; ok && old.seen.Equal(r.Seen) {
				h.since = old.since
			} else {
				h.since = new(int)
			}
			m.homes = append(m.homes, h)
		}
	}
	g.ready = g.ready || g.known && answered
	for _, m := range g.models {
		g.letGo(m)
	}
}

// readiness is how soon a home takes a request. One whose files are still being
// fetched takes none: that may last, and another may be sooner.
func readiness(w worker.State, s worker.HomeState) routing.Readiness {
	if w.Draining {
		return routing.Unable
	}
	switch s.Phase {
	case worker.PhaseResident:
		return routing.Resident
	case worker.PhaseLoading:
		return routing.Loading
	case worker.PhaseIdle:
		return routing.Idle
	}
	return routing.Unable
}

// lookup finds the model that has a name: a served one, or else its full name,
// "namespace/name", by which every Model can be reached.
func (g *Gateway) lookup(name string) *model {
	g.mu.Lock()
	defer g.mu.Unlock()
	if m := g.names[name]; m != nil {
		return m
	}
	return g.models[name]
}

// unknown refuses a name, and says which there are.
func (g *Gateway) unknown(name string) *refusal {
	const few = 8
	names := g.listed()
	var known string
	switch {
	case len(names) == 0:
		known = "There are no models yet."
	case len(names) > few:
		known = fmt.Sprintf("There are %s and %d more: see /v1/models.", strings.Join(names[:few], ", "), len(names)-few)
	default:
		known = fmt.Sprintf("There are: %s.", strings.Join(names, ", "))
	}
	return &refusal{
		status: http.StatusNotFound, kind: kindInvalid, code: "model_not_found", param: "model",
		message: fmt.Sprintf("The model %q does not exist. %s", shortened(name), known),
	}
}

// listed are all served names, sorted.
func (g *Gateway) listed() []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	names := make([]string, 0, len(g.names))
	for name := range g.names {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// shortened keeps a client's text from filling a message.
func shortened(text string) string {
	const most = 100
	if len(text) <= most {
		return text
	}
	return strings.ToValidUTF8(text[:most], "") + "..."
}
