package standalone

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/estiba/estiba/api/v1alpha1"
	"github.com/estiba/estiba/api/worker"
	"github.com/estiba/estiba/controllers"
	"github.com/estiba/estiba/internal/fleet"
	"github.com/estiba/estiba/internal/gateway"
	"github.com/estiba/estiba/runtime/backend"
	"github.com/estiba/estiba/runtime/device"
	"github.com/google/uuid"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

const (
	filesEvery = time.Second            // how often files are looked at
	atMost     = 100 * time.Millisecond // between two decisions
)

// loop is the placement loop of this process: files and reports in, decisions
// of controllers.Decide out. One goroutine runs it.
type loop struct {
	server   *Server
	hosts    *hosts
	workers  *fleet.Fleet // the operator's
	routes   *fleet.Fleet // the gateway's
	gateways *fleet.Gateways
	key      []byte
	metrics  *metrics

	started     map[string]started // worker -> ...
	inspections map[controllers.InspectKey]controllers.Inspected
	inspected   chan inspectAnswer
	ended       chan string // workers that have given their memory back
	broke       chan error  // why a worker ended by itself
	memory      controllers.Memory
	budget      budget
	failed      map[string]failure // pool -> why its last worker did not start
	news        bool               // applying a plan has shown what the next one has to know
	filled      map[string]bool    // manifest files that have had contents
}

// failure of a worker to start.
type failure struct {
	hash string
	why  string
	at   time.Time
}

// failureLasts is how long nobody tries to make a pool's worker after one failed to start.
const failureLasts = 10 * time.Second

type started struct {
	pool string
	hash string
}

type inspectAnswer struct {
	key    controllers.InspectKey
	result worker.Inspection
}

func newLoop(s *Server, h *hosts, workers, routes *fleet.Fleet, gateways *fleet.Gateways, key []byte, metrics *metrics) *loop {
	return &loop{
		server: s, hosts: h, workers: workers, routes: routes, gateways: gateways, key: key, metrics: metrics,
		started:     map[string]started{},
		inspections: map[controllers.InspectKey]controllers.Inspected{},
		inspected:   make(chan inspectAnswer, 64),
		ended:       make(chan string, 64),
		broke:       make(chan error, 1),
		budget:      budget{total: s.o.Memory, sole: s.o.sole(), taken: map[string]int64{}},
		failed:      map[string]failure{},
		filled:      map[string]bool{},
	}
}

func (l *loop) run(ctx context.Context) {
	files := time.NewTicker(filesEvery)
	defer files.Stop()
	last := stamp(l.server.o.Paths)
	emptied(l.server.o.Paths, l.filled)
	for {
		again := l.decide(ctx)
		soonest := time.After(atMost)
		var later <-chan time.Time
		if again > 0 {
			later = time.After(again)
		}
		for changed := false; !changed; {
			select {
			case <-ctx.Done():
				return
			case <-files.C:
				if now := stamp(l.server.o.Paths); now != last {
					last, changed = now, true
					l.reload()
				}
			case <-l.workers.Changed():
				changed = true
			case <-l.gateways.Changed():
				changed = true
			case a := <-l.inspected:
				l.keep(a)
				changed = true
			case name := <-l.ended:
				l.budget.give(name)
				changed = true
			case <-later:
				changed = true
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-soonest:
		}
	}
}

// reload reads the files again. What cannot be read leaves everything as it is.
func (l *loop) reload() {
	s := l.server
	if file := emptied(s.o.Paths, l.filled); file != "" {
		s.o.Log.Warn("manifest file is empty, as one is that is being written; what was there before goes on", "file", file)
		return
	}
	fresh, err := Read(s.o.Paths...)
	if err != nil {
		s.o.Log.Error("manifests changed but cannot be used; what was there before goes on", "error", err)
		return
	}
	old := s.objects()
	s.setObjects(carryOver(old, withDefaultPool(fresh)))
	s.o.Log.Info("manifests read again", "models", len(fresh.Models), "pools", len(fresh.Pools))
}

// decide observes, decides and applies once, and says when to look again.
func (l *loop) decide(ctx context.Context) time.Duration {
	objects := l.server.objects()
	seen := l.observe(objects)
	plan := controllers.Decide(seen)
	l.memory = plan.Memory
	l.server.history.Decided(seen, plan)
	l.news = false
	l.apply(ctx, objects, plan)
	if l.news {
		return atMost
	}
	if len(l.failed) > 0 && (plan.Again == 0 || plan.Again > failureLasts) {
		return failureLasts
	}
	return plan.Again
}

func (l *loop) observe(objects Manifests) controllers.Seen {
	seen := controllers.Seen{
		Now:   time.Now().Round(0), // a history keeps no monotonic clock
		Epoch: 1, Settled: true,
		Models:      objects.Models,
		Namespaces:  map[string]map[string]string{},
		Gateways:    l.gateways.Reports(),
		Sent:        l.workers.Sent(),
		Inspections: maps.Clone(l.inspections),
		Memory:      l.memory,
	}
	for _, p := range objects.Pools {
		seen.Pools = append(seen.Pools, l.pool(p, objects.Pools))
	}
	for _, m := range objects.Models {
		seen.Namespaces[m.Namespace] = map[string]string{"kubernetes.io/metadata.name": m.Namespace}
	}
	refusals := l.workers.Refusals()
	reports := map[string]fleet.Report{}
	for _, r := range l.workers.Workers() {
		reports[r.Worker] = r
	}
	for name, w := range l.started {
		at := controllers.Worker{Name: name, Pool: w.pool, Hash: w.hash, Running: true}
		if r, known := reports[name]; known && !r.Seen.IsZero() {
			at.Report, at.Heard, at.Connected = &r.State, r.Seen, r.Connected
		}
		if r, refused := refusals[name]; refused {
			at.Refusal = &r
		}
		seen.Workers = append(seen.Workers, at)
	}
	return seen
}

// pool is p, with what keeps another worker of it from being made.
func (l *loop) pool(p v1alpha1.InferencePool, all []v1alpha1.InferencePool) controllers.Pool {
	is := controllers.Pool{InferencePool: p, Hash: hashOf(p), MadeUp: madeUp(p), Sole: l.server.o.sole()}
	if asked(p) == 0 && !l.server.o.ownMemory() {
		is.Divided, is.Most, is.Limit = l.budget.total, l.budget.most, l.budget.limit
	}
	if l.server.o.ownMemory() {
		is.Bound = l.server.asked
	}
	key := is.Key()
	if _, err := controllers.MemoryLimit(&p); err != nil {
		is.Invalid = err.Error()
		return is
	}
	leaving := func(name string) bool { _, stays := l.started[name]; return !stays }
	if _, err := l.budget.want(p, all, leaving); err != nil {
		is.Blocked, is.Lasting = err.Error(), !errors.Is(err, errTaken)
		is.Divided, is.Most, is.Limit = l.budget.total, l.budget.most, l.budget.limit
	}
	if f, ok := l.failed[key]; ok && is.Blocked == "" {
		if f.hash == is.Hash { // until another try shows that it can be made
			is.Blocked = f.why
		} else {
			delete(l.failed, key)
		}
	}
	return is
}

func (l *loop) apply(ctx context.Context, objects Manifests, plan controllers.Plan) {
	log := l.server.o.Log
	for name, a := range plan.Assignments {
		l.workers.Send(name, a)
	}
	for _, i := range plan.Inspect {
		before := l.inspections[i.Key]
		before.Pending, before.Worker, before.At = true, i.Worker, time.Now()
		l.inspections[i.Key] = before
		go l.inspect(ctx, i)
	}
	for _, p := range objects.Pools {
		for range plan.Create[p.Namespace+"/"+p.Name] {
			if err := l.start(p); err != nil { // which is in the pool's conditions, or passes
				log.Debug("worker not started", "pool", p.Name, "error", err)
				break
			}
		}
	}
	ends := append(plan.Delete, l.orphans(objects)...)
	for _, d := range ends {
		log.Info("worker ended", "worker", d.Worker, "reason", d.Reason)
		l.hosts.remove(d.Worker, func() { l.ended <- d.Worker })
		delete(l.started, d.Worker)
	}
	if len(plan.Create) > 0 || len(ends) > 0 {
		l.sync()
	}
	for i := range objects.Models {
		l.announce("model", controllers.Key(&objects.Models[i]), objects.Models[i].Status.Conditions, plan.Models[i].Conditions)
	}
	for i := range objects.Pools {
		p := &objects.Pools[i]
		l.announce("pool", p.Namespace+"/"+p.Name, p.Status.Conditions, plan.Pools[i].Conditions)
	}
	l.forget(objects)
	l.server.setObjects(withStatus(objects, plan))
	l.server.gateway.SetModels(gateway.FromResources(l.server.objects().Models))
}

// orphans are workers whose pool is gone, which no decision is about.
func (l *loop) orphans(objects Manifests) (all []controllers.Deletion) {
	for name, w := range l.started {
		if !slices.ContainsFunc(objects.Pools, func(p v1alpha1.InferencePool) bool { return p.Namespace+"/"+p.Name == w.pool }) {
			all = append(all, controllers.Deletion{Worker: name, Reason: "its pool is gone"})
		}
	}
	return all
}

// announce logs a change of an object's conditions, as an event would tell it on Kubernetes.
func (l *loop) announce(kind, name string, before, after []metav1.Condition) {
	for _, is := range after {
		was := meta.FindStatusCondition(before, is.Type)
		same := was != nil && was.Reason == is.Reason && was.Status == is.Status
		stalled := is.Type == v1alpha1.ConditionStalled && is.Status == metav1.ConditionTrue
		degraded := is.Type == v1alpha1.ConditionDegraded && (was != nil || is.Status == metav1.ConditionTrue)
		if same || is.Type != v1alpha1.ConditionReady && !stalled && !degraded {
			continue
		}
		level := slog.LevelInfo
		if stalled || degraded && is.Status == metav1.ConditionTrue {
			level = slog.LevelWarn
		}
		l.server.o.Log.Log(context.Background(), level, kind, kind, name,
			"condition", is.Type, "status", string(is.Status), "reason", is.Reason, "message", is.Message)
	}
}

func (l *loop) inspect(ctx context.Context, i controllers.Inspect) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	result, err := l.workers.Inspect(ctx, i.Worker, i.Request)
	if err != nil {
		result = worker.Inspection{Error: &worker.InspectError{Reason: worker.ReasonSourceUnavailable, Message: err.Error()}}
	}
	select {
	case l.inspected <- inspectAnswer{i.Key, result}:
	case <-ctx.Done():
	}
}

func (l *loop) keep(a inspectAnswer) {
	kept := controllers.Inspected{At: time.Now(), Result: a.result}
	if a.result.Error != nil {
		kept.Attempts = l.inspections[a.key].Attempts + 1
	}
	l.inspections[a.key] = kept
}

// forget drops what was read from sources that no Model names any more.
func (l *loop) forget(objects Manifests) {
	named := map[string]bool{}
	for i := range objects.Models {
		named[controllers.Revision(&objects.Models[i])] = true
	}
	maps.DeleteFunc(l.inspections, func(k controllers.InspectKey, in controllers.Inspected) bool {
		return !named[k.Revision] && !in.Pending
	})
}

// start makes a worker of a pool in this process.
func (l *loop) start(p v1alpha1.InferencePool) error {
	name := p.Name + "-" + strings.ToLower(rand.Text()[:5])
	key, hash := p.Namespace+"/"+p.Name, hashOf(p)
	if f, ok := l.failed[key]; ok && f.hash == hash && time.Since(f.at) < failureLasts {
		return errors.New(f.why)
	}
	memory, err := l.budget.take(name, p, l.server.objects().Pools)
	if err != nil {
		return err
	}
	w, err := l.newWorker(name, p, memory)
	if _, sick := errors.AsType[*backend.DeviceError](err); sick { // of a device that is lost a worker is made
		l.brokeWith(err)
	}
	if err != nil {
		l.budget.give(name)
		if l.failed[key].why != err.Error() { // else each try would say so
			l.server.o.Log.Warn("worker not started", "pool", p.Name, "error", err)
		}
		l.failed[key] = failure{hash, err.Error(), time.Now()}
		l.news = true // for the conditions
		return err
	}
	if _, ok := l.failed[key]; ok {
		delete(l.failed, key)
		l.news = true
	}
	l.hosts.add(name, w)
	l.started[name] = started{pool: key, hash: hash}
	return nil
}

// sync tells both fleets which workers there are.
func (l *loop) sync() {
	var targets []fleet.Target
	for name, w := range l.started {
		targets = append(targets, fleet.Target{Worker: name, Pool: w.pool, URL: "http://" + name + ":80", Token: fleet.PoolToken(l.key, w.pool)})
	}
	l.workers.Sync(targets)
	l.routes.Sync(targets)
}

// hashOf names what a worker of this process is made from.
func hashOf(p v1alpha1.InferencePool) string {
	limit, _ := controllers.MemoryLimit(&p) // of a template that cannot be used there is no worker
	text, err := json.Marshal([]any{p.Spec.ModelRoots, p.Spec.Memory, p.Spec.Device, p.Spec.Cache, limit})
	if err != nil {
		panic(fmt.Sprintf("standalone: hash a pool: %v", err)) // only values of ours come here
	}
	h := fnv.New64a()
	h.Write(text)
	return fmt.Sprintf("%016x", h.Sum64())
}

// budget divides the memory for models among the workers of this process.
type budget struct {
	total int64
	sole  bool             // the first worker takes all there is
	taken map[string]int64 // worker -> bytes
	most  int64            // that --memory could make of total; 0: nobody knows
	limit int64            // of the control group, that ends it there; 0: the machine has no more
}

// errTaken: what a worker wants may be free when others have gone.
var errTaken = errors.New("other workers have it")

// taken says that others have what a worker wants.
type taken struct{ error }

func (taken) Unwrap() error { return errTaken }

// raise names what has to be raised for so many bytes in all.
func (b *budget) raise(total int64) string {
	switch {
	case b.most == 0 || total <= b.most:
		return "raise --memory"
	case b.limit > 0:
		return fmt.Sprintf("raise the memory limit of the control group of this process (its container's, for example), which is %s", quantity(b.limit))
	}
	return fmt.Sprintf("take a machine with more memory, as this one can give %s", quantity(b.most))
}

// take gives a new worker what it wants.
func (b *budget) take(name string, p v1alpha1.InferencePool, pools []v1alpha1.InferencePool) (int64, error) {
	if b.sole && len(b.taken) > 0 {
		return 0, taken{errors.New("the worker that takes all devices is there, or has not ended yet")}
	}
	want, err := b.want(p, pools, func(string) bool { return false })
	if err == nil {
		b.taken[name] = want
	}
	return want, err
}

// want is what a new worker gets: what its pool asks for, or an equal share of what
// the pools that ask leave. Workers that leave count as gone. An error says why there
// is not so much.
func (b *budget) want(p v1alpha1.InferencePool, pools []v1alpha1.InferencePool, leaves func(worker string) bool) (int64, error) {
	if b.total == emulatedMemory { // devices bring their own
		return 0, nil
	}
	free := b.total
	for name, n := range b.taken {
		if !leaves(name) {
			free -= n
		}
	}
	want := asked(p)
	if want == 0 {
		rest, shares := b.total, int64(0)
		for _, q := range pools {
			switch n := asked(q); {
			case n == 0:
				shares += int64(q.Spec.Workers.Max)
			case n <= b.total: // of the others there is none
				rest -= min(n*int64(q.Spec.Workers.Max), rest)
			}
		}
		want = rest / max(shares, 1)
	}
	const lower = "lower spec.device.memory, or the memory limit of its container"
	switch {
	case want == 0:
		return 0, fmt.Errorf("the pools that say how much memory their workers want may take all %s: lower their spec.workers.max, or %s", quantity(b.total), b.raise(b.total+1))
	case want > b.total:
		return 0, fmt.Errorf("a worker wants %s, and there are %s for models: %s, or %s", quantity(want), quantity(b.total), lower, b.raise(want))
	case want > free:
		return 0, taken{fmt.Errorf("a worker wants %s, and %s of %s are free: %s, or spec.workers.max, or %s",
			quantity(want), quantity(free), quantity(b.total), lower, b.raise(b.total+want-free))}
	}
	return want, nil
}

// asked is the memory for models that a worker's pool asks for: spec.device.memory, or
// what the limit of its container leaves, as in a pod; 0: it does not say.
func asked(p v1alpha1.InferencePool) int64 {
	if p.Spec.Device.Memory != nil {
		return p.Spec.Device.Memory.Value()
	}
	limit, _ := controllers.MemoryLimit(&p) // an invalid template is a condition of the pool
	return device.Room(limit)
}

func (b *budget) give(name string) { delete(b.taken, name) }

// finish gives an object what an API server would: defaults, checks, identity.
func finish(object client.Object, created time.Time) error {
	object.SetUID(types.UID(uuid.NewString()))
	object.SetGeneration(1)
	object.SetCreationTimestamp(metav1.NewTime(created))
	switch o := object.(type) {
	case *v1alpha1.Model:
		o.Status = v1alpha1.ModelStatus{}
		*o = controllers.Defaulted(*o)
		return controllers.Validate(*o)
	case *v1alpha1.InferencePool:
		o.Status = v1alpha1.InferencePoolStatus{}
		*o = controllers.DefaultedPool(*o)
		return controllers.ValidatePool(*o)
	}
	return nil
}

// carryOver keeps the identity and status of objects that were there before.
func carryOver(old, fresh Manifests) Manifests {
	models := map[string]v1alpha1.Model{}
	for _, m := range old.Models {
		models[controllers.Key(&m)] = m
	}
	for i := range fresh.Models {
		m := &fresh.Models[i]
		if was, ok := models[controllers.Key(m)]; ok {
			same := equality.Semantic.DeepEqual(was.Spec, m.Spec) // a quantity is the same however it is written
			m.UID, m.CreationTimestamp, m.Status = was.UID, was.CreationTimestamp, was.Status
			m.Generation = generation(was.Generation, same)
		}
	}
	pools := map[string]v1alpha1.InferencePool{}
	for _, p := range old.Pools {
		pools[p.Namespace+"/"+p.Name] = p
	}
	for i := range fresh.Pools {
		p := &fresh.Pools[i]
		if was, ok := pools[p.Namespace+"/"+p.Name]; ok {
			same := equality.Semantic.DeepEqual(was.Spec, p.Spec)
			p.UID, p.CreationTimestamp, p.Status = was.UID, was.CreationTimestamp, was.Status
			p.Generation = generation(was.Generation, same)
		}
	}
	return fresh
}

func generation(was int64, same bool) int64 {
	if same {
		return was
	}
	return was + 1
}

// withStatus is objects with what the plan says of them.
func withStatus(objects Manifests, plan controllers.Plan) Manifests {
	out := Manifests{Models: make([]v1alpha1.Model, len(objects.Models)), Pools: make([]v1alpha1.InferencePool, len(objects.Pools))}
	copy(out.Models, objects.Models)
	copy(out.Pools, objects.Pools)
	for i := range out.Models {
		out.Models[i].Status = plan.Models[i]
	}
	for i := range out.Pools {
		out.Pools[i].Status = plan.Pools[i]
	}
	return out
}
