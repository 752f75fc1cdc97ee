package controllers

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/events"
	"k8s.io/client-go/util/workqueue"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/estiba/estiba/api/v1alpha1"
	"github.com/estiba/estiba/api/worker"
	"github.com/estiba/estiba/internal/fleet"
)

const (
	// LeaseName of the lease by which one operator leads.
	LeaseName = "estiba-operator"
	// fieldOwner of what is applied.
	fieldOwner = "estiba-operator"
	// between two decisions at least, and at most.
	between = 100 * time.Millisecond
	resync  = 30 * time.Second
	// clocks is how old those in reports may be: a third of the silence after which a
	// worker gets nothing new, which counts from a report that was read.
	clocks = 3 * time.Second
	// pauses is how many times as long as a decision took the next one waits for,
	// so that a large cluster does not take a processor: with 10,000 Models and
	// 50 ms, decisions are 0.25 s apart.
	pauses = 5
)

// Options of a Reconciler.
type Options struct {
	Namespace   string   // Estiba's own: its lease and its gateways are there
	Namespaces  []string // whose Models and pools are served; none: all
	WorkerImage string
	Key         []byte // of the installation; tokens are derived from it
	Identity    string // as the lease has it; empty: there is no other operator
	Policy      Policy
	Decided     func(Seen, Plan) // nil, or told each decision before it is carried out; it must not take long
	Log         *slog.Logger
	Registerer  prometheus.Registerer
}

// Reconciler is the placement loop on Kubernetes: one key, one decision at a time.
type Reconciler struct {
	options  Options
	client   client.Client // reads from the cache
	live     client.Reader
	events   events.EventRecorder
	fleet    *fleet.Fleet
	gateways *fleet.Gateways
	log      *slog.Logger
	metrics  *metrics
	now      func() time.Time
	changed  chan event.GenericEvent

	// What follows belongs to the one goroutine that reconciles.
	memory    Memory
	epoch     int64         // 0: not known yet
	began     time.Time     // to lead
	confirmed time.Time     // that this process leads
	last      time.Time     // decision
	forgot    time.Time     // what is gone
	took      time.Duration // to observe and decide
	models    map[uid]written[v1alpha1.ModelStatus]
	pools     map[uid]written[v1alpha1.InferencePoolStatus]
	waiting   map[uid]waiting // statuses that are to be written
	furnished map[uid]furnished
	refused   map[uid]refusal   // pool -> why its last pod was not made
	checked   map[uid]checked   // pool -> what the API server says to its template
	made      map[uid]made      // that the cache may not show yet
	templates map[uid]template  // pool -> the pod that is made for it
	marked    map[uid]time.Time // pod -> when it was last written to
	deleted   map[uid]bool      // pods that the cache may show as if they were to stay
	podOf     map[string]*corev1.Pod
	namesakes []*corev1.Pod   // of other worker pods
	gone      map[string]bool // Models that workers hold and that the API server says are deleted

	mu          sync.Mutex
	inspections map[InspectKey]Inspected
}

// NewReconciler makes the loop and starts it with the manager.
func NewReconciler(mgr ctrl.Manager, o Options) (*Reconciler, error) {
	r := &Reconciler{
		options: o, client: mgr.GetClient(), live: mgr.GetAPIReader(), events: mgr.GetEventRecorder("estiba-operator"),
		fleet: fleet.New(fleet.NewClient(nil), fleet.Options{Log: o.Log, Clocks: clocks}), gateways: fleet.NewGateways(fleet.NewClient(nil), fleet.Options{Log: o.Log}),
		log: o.Log, metrics: newMetrics(o.Registerer), now: time.Now, changed: make(chan event.GenericEvent, 1),
		models: map[uid]written[v1alpha1.ModelStatus]{}, pools: map[uid]written[v1alpha1.InferencePoolStatus]{},
		furnished: map[uid]furnished{}, refused: map[uid]refusal{}, checked: map[uid]checked{}, made: map[uid]made{}, deleted: map[uid]bool{},
		templates: map[uid]template{}, marked: map[uid]time.Time{},
		podOf: map[string]*corev1.Pod{}, inspections: map[InspectKey]Inspected{},
	}
	one := handler.EnqueueRequestsFromMapFunc(func(context.Context, client.Object) []reconcile.Request { return []reconcile.Request{{}} })
	spec := builder.WithPredicates(predicate.Or(predicate.GenerationChangedPredicate{}, predicate.LabelChangedPredicate{}))
	b := ctrl.NewControllerManagedBy(mgr).Named("placement").
		WithOptions(controller.Options{
			MaxConcurrentReconciles: 1,
			RateLimiter:             workqueue.NewTypedItemExponentialFailureRateLimiter[reconcile.Request](2*between, resync),
		}).
		Watches(&v1alpha1.Model{}, one, spec).
		Watches(&v1alpha1.InferencePool{}, one, builder.WithPredicates(predicate.Or(predicate.GenerationChangedPredicate{}, predicate.LabelChangedPredicate{}, predicate.AnnotationChangedPredicate{}))).
		Watches(&corev1.Pod{}, one).
		WatchesRawSource(source.Channel(r.changed, one))
	if len(o.Namespaces) == 0 {
		b = b.Watches(&corev1.Namespace{}, one, builder.WithPredicates(predicate.LabelChangedPredicate{})).
			Watches(&corev1.Node{}, one, builder.WithPredicates(predicate.NewPredicateFuncs(func(client.Object) bool { return true }), nodeChanged()))
	}
	if err := b.Complete(r); err != nil {
		return nil, err
	}
	return r, mgr.Add(r)
}

// nodeChanged lets through what may announce that a node goes away, and no heartbeat.
func nodeChanged() predicate.Predicate {
	return predicate.Funcs{UpdateFunc: func(e event.UpdateEvent) bool {
		before, after := e.ObjectOld.(*corev1.Node), e.ObjectNew.(*corev1.Node)
		return leaving(before) != leaving(after)
	}}
}

// Start passes the fleet's changes on to the loop, until ctx ends.
func (r *Reconciler) Start(ctx context.Context) error {
	defer r.fleet.Sync(nil)
	defer r.gateways.Sync(nil)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-r.fleet.Changed():
		case <-r.gateways.Changed():
		}
		r.wake()
	}
}

// wake asks for a decision; several that wait are one.
func (r *Reconciler) wake() {
	select {
	case r.changed <- event.GenericEvent{Object: &corev1.Pod{}}:
	default:
	}
}

// nextDecision is when the next decision may be, and not before a time.
func (r *Reconciler) nextDecision(least time.Time) time.Time {
	if next := r.last.Add(max(between, pauses*r.took)); next.After(least) {
		return next
	}
	return least
}

// Reconcile observes, decides and applies once.
func (r *Reconciler) Reconcile(ctx context.Context, _ reconcile.Request) (reconcile.Result, error) {
	if wait := r.nextDecision(time.Time{}).Sub(r.now()); wait > 0 && wait <= max(between, pauses*r.took) {
		return reconcile.Result{RequeueAfter: wait}, nil
	}
	r.last = r.now()
	seen, err := r.observe(ctx)
	if err != nil {
		return reconcile.Result{}, err
	}
	started := time.Now()
	plan := Decide(seen)
	r.metrics.decisions.Observe(time.Since(started).Seconds())
	r.took = r.now().Sub(r.last)
	if !seen.Settled {
		return reconcile.Result{RequeueAfter: plan.Again}, nil
	}
	r.metrics.count(seen, plan)
	if r.options.Decided != nil {
		r.options.Decided(seen, plan)
	}
	due, err := r.apply(ctx, seen, plan)
	if err != nil {
		return reconcile.Result{}, err
	}
	again := resync
	if plan.Again > 0 {
		again = min(again, plan.Again)
	}
	if !due.IsZero() {
		again = min(again, max(between, due.Sub(r.now())))
	}
	return reconcile.Result{RequeueAfter: again}, nil
}

// Inspect asks a worker of a pool ("namespace/name"; empty: any) to read the
// header of a source, for somebody who asks what would become of it. Nothing of
// the answer is kept. It may be called beside decisions.
func (r *Reconciler) Inspect(ctx context.Context, pool string, request worker.InspectRequest) (worker.Inspection, error) {
	return InspectBy(ctx, r.fleet, pool, request)
}

// InspectBy does the same with the workers of a fleet.
func InspectBy(ctx context.Context, f *fleet.Fleet, pool string, request worker.InspectRequest) (worker.Inspection, error) {
	ctx, cancel := context.WithTimeout(ctx, inspectTimeout)
	defer cancel()
	for _, w := range f.Workers() {
		if w.Connected && !w.State.Draining && (pool == "" || w.Pool == pool) {
			return f.Inspect(ctx, w.Worker, request)
		}
	}
	return worker.Inspection{}, fmt.Errorf("no worker %sis connected that could read %s: start one, or wait for it", of(pool), request.Source.URI)
}

// Current is what a decision has seen, as it is now: with the clocks, loads and readings of the latest reports. What they
// say beside is left to the next decision, which is about to come. It may be called beside decisions.
func (r *Reconciler) Current(seen Seen) Seen { return CurrentBy(r.fleet, seen, r.now()) }

// CurrentBy does the same with the workers of a fleet.
func CurrentBy(f *fleet.Fleet, seen Seen, now time.Time) Seen {
	seen.Now, seen.Workers = now.Round(0), slices.Clone(seen.Workers)
	for i := range seen.Workers {
		w := &seen.Workers[i]
		if w.Report == nil {
			continue
		}
		if r, same := f.Again(w.Name, *w.Report); same {
			w.Report, w.Heard = &r.State, r.Seen
		}
	}
	return seen
}

func of(pool string) string {
	if pool == "" {
		return ""
	}
	return "of pool " + pool + " "
}
