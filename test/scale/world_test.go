package scaletest

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/estiba/estiba/api/v1alpha1"
	"github.com/estiba/estiba/controllers"
	"github.com/estiba/estiba/internal/simworker"
	"github.com/estiba/estiba/internal/status"
)

const (
	pools     = 10
	namespace = "default"
	// writers at the API server at a time.
	writers = 16
)

// world is all but the operator: what people do, kubelets, workers, and what is seen of it.
type world struct {
	t       *testing.T
	client  client.Client // may do as much as the API server can
	workers *simworker.Fleet
	pods    chan *corev1.Pod // changed

	mu        sync.Mutex
	models    map[string]*model // by name
	next      int               // number of the next Model
	createdAt time.Time         // of the last Model of the filling
	homesAt   time.Time         // when each of them had a home
	placedAt  time.Time         // when their statuses said so
	lost      int               // Models that had been placed, and were not any more for a time
	random    *rand.Rand
	asked     map[string]string // model -> worker that was asked for it
	churned   []*model          // Models made during the churn
}

// model is a Model as far as it is known.
type model struct {
	name            string
	sleeps          bool
	created         time.Time
	placed, serves  time.Time // zero: never
	isPlaced, ready bool      // now
	reason          string
	workers         []string
	gone            bool // it was deleted
}

func newWorld(t *testing.T) *world {
	t.Helper()
	config := rest.CopyConfig(server.Config)
	config.QPS = -1
	scheme, err := controllers.Scheme()
	if err != nil {
		t.Fatal(err)
	}
	c, err := client.New(config, client.Options{Scheme: scheme})
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, client: c, workers: simulated(), pods: make(chan *corev1.Pod, 10_000), models: map[string]*model{}, asked: map[string]string{},
		random: rand.New(rand.NewPCG(*seed, 0))}
	t.Cleanup(w.workers.Close)
	informers, err := cache.New(config, cache.Options{Scheme: scheme, DefaultTransform: cache.TransformStripManagedFields()})
	if err != nil {
		t.Fatal(err)
	}
	for o, handler := range map[client.Object]toolscache.ResourceEventHandlerFuncs{
		&v1alpha1.Model{}: {AddFunc: w.see, UpdateFunc: func(_, o any) { w.see(o) }},
		&corev1.Pod{}:     {AddFunc: w.changedPod, UpdateFunc: func(_, o any) { w.changedPod(o) }},
	} {
		informer, err := informers.GetInformer(t.Context(), o)
		if err == nil {
			_, err = informer.AddEventHandler(handler)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	go func() { _ = informers.Start(t.Context()) }()
	for range writers {
		go w.kubelet(t.Context())
	}
	return w
}

func (w *world) changedPod(o any) {
	if pod := o.(*corev1.Pod); pod.Labels[v1alpha1.LabelComponent] == "worker" {
		w.pods <- pod
	}
}

// kubelet runs worker pods, and ends those that are deleted.
func (w *world) kubelet(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case pod := <-w.pods:
			if err := w.run(ctx, pod.DeepCopy()); err != nil && ctx.Err() == nil {
				w.t.Error(err)
			}
		}
	}
}

func (w *world) run(ctx context.Context, pod *corev1.Pod) error {
	switch {
	case pod.DeletionTimestamp != nil:
		w.workers.Stop(pod.Name)
		return server.End(ctx, pod)
	case pod.Status.PodIP != "" || w.workers.Worker(pod.Name) != nil:
		return nil
	}
	at, err := w.workers.Start(pod.Name, pod.Namespace+"/"+pod.Labels[v1alpha1.LabelPool])
	if err != nil {
		return err
	}
	return server.Run(ctx, pod, at.Address())
}

// createPools makes the pools, each with its share of the workers.
func (w *world) createPools() {
	for i := range pools {
		n := int32(*workers / pools)
		if i < *workers%pools {
			n++
		}
		p := &v1alpha1.InferencePool{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: fmt.Sprintf("p%d", i), Labels: map[string]string{"pool": fmt.Sprintf("p%d", i)}}}
		p.Spec.Workers, p.Spec.ModelRoots = v1alpha1.WorkerRange{Min: n, Max: n}, []string{"/models"}
		if err := w.client.Create(w.t.Context(), p); err != nil {
			w.t.Fatal(err)
		}
	}
}

// createModels makes n Models as fast as the API server takes them.
func (w *world) createModels(n int) error {
	todo, failed := make(chan *v1alpha1.Model), make(chan error, writers)
	var all sync.WaitGroup
	for range writers {
		all.Go(func() {
			for m := range todo {
				if err := w.client.Create(w.t.Context(), m); err != nil {
					select {
					case failed <- err:
					default:
					}
				}
			}
		})
	}
	for range n {
		todo <- w.newModel()
	}
	close(todo)
	all.Wait()
	w.mu.Lock()
	w.createdAt = time.Now()
	w.mu.Unlock()
	select {
	case err := <-failed:
		return fmt.Errorf("create a Model: %w", err)
	default:
		return nil
	}
}

// newModel is the next Model: of 2 to 14 GiB, 7 on average, so that ten to a
// worker fill seven eighths of it. Half may sleep; nine in ten choose one pool.
func (w *world) newModel() *v1alpha1.Model {
	w.mu.Lock()
	defer w.mu.Unlock()
	i := w.next
	w.next++
	sizes := []int{2, 3, 5, 7, 8, 14, 4, 13}
	m := &v1alpha1.Model{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: fmt.Sprintf("m%06d", i)}}
	m.Spec.Source.URI = fmt.Sprintf("file:///models/%s-%dGi", m.Name, sizes[w.random.IntN(len(sizes))])
	if i%2 == 0 {
		m.Spec.Autoscaling = &v1alpha1.Autoscaling{Min: 0, Max: 2, IdleAfter: &metav1.Duration{Duration: time.Minute}}
	}
	if i%10 != 0 {
		m.Spec.PoolSelector = &metav1.LabelSelector{MatchLabels: map[string]string{"pool": fmt.Sprintf("p%d", i/10%pools)}}
	}
	w.models[m.Name] = &model{name: m.Name, sleeps: i%2 == 0, created: time.Now()}
	return m
}

// see notes what is said of a Model.
func (w *world) see(o any) {
	m := o.(*v1alpha1.Model)
	placed, ready := status.Find(m.Status.Conditions, v1alpha1.ConditionPlaced), status.Find(m.Status.Conditions, v1alpha1.ConditionReady)
	w.mu.Lock()
	defer w.mu.Unlock()
	is := w.models[m.Name]
	if is == nil || placed == nil || ready == nil {
		return
	}
	was := is.isPlaced
	is.isPlaced, is.ready, is.reason = placed.Status == metav1.ConditionTrue, ready.Status == metav1.ConditionTrue, ready.Reason+": "+ready.Message
	if was && !is.isPlaced && int(m.Status.Replicas) == 0 && !is.gone {
		w.lost++
	}
	if is.isPlaced && is.placed.IsZero() {
		is.placed = time.Now()
	}
	if is.ready && is.serves.IsZero() {
		is.serves = time.Now()
	}
	is.workers = is.workers[:0]
	for _, p := range m.Status.Placements {
		is.workers = append(is.workers, p.Worker)
	}
}

// track says whether all Models are placed, and notes when.
func (w *world) track(began time.Time) func() (bool, string) {
	return func() (bool, string) {
		homes := 0
		for _, at := range w.workers.Workers() {
			homes += at.Holds()
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		if homes >= *models && w.homesAt.IsZero() {
			w.homesAt = time.Now()
		}
		placed, example := 0, ""
		for _, m := range w.models {
			if !m.placed.IsZero() {
				placed++
			} else if m.reason != "" {
				example = "; " + m.name + ": " + m.reason
			}
		}
		if placed == *models {
			w.placedAt = time.Now()
			return true, ""
		}
		return false, fmt.Sprintf("after %.0f s: %d are made, workers hold %d, %d are placed%s", time.Since(began).Seconds(), len(w.models), homes, placed, example)
	}
}

// allReady says whether all Models there are are placed and ready.
func (w *world) allReady() (bool, string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	n, example := 0, ""
	for _, m := range w.models {
		if !m.gone && !(m.isPlaced && m.ready) {
			n++
			example = m.name + ": " + m.reason
		}
	}
	return n == 0, fmt.Sprintf("%d are not; %s", n, example)
}

// steady deletes, creates and asks Models, evenly over the time, and measures each minute.
func (w *world) steady(o *operator) (Phase, []Phase) {
	length := time.Duration(*minutes * float64(time.Minute))
	every := time.Duration(float64(time.Minute) / (*churn * float64(*models)))
	w.t.Logf("for %s, every %s a Model is deleted, one made, and one asked for more or less", length, every.Round(time.Millisecond))
	first := w.sample(o)
	last, begun := first, time.Now()
	var all []Phase
	for n := 1; ; n++ {
		at := begun.Add(time.Duration(n) * every)
		if at.After(begun.Add(length)) {
			break
		}
		time.Sleep(time.Until(at))
		w.change()
		if now := time.Now(); now.Sub(last.at) >= time.Minute {
			next := w.sample(o)
			all, last = append(all, w.phase(last, next)), next
			p := all[len(all)-1]
			w.t.Logf("minute %d: operator %.2f cores, %.0f MiB live, decision %.0f ms", len(all), p.OperatorCPU, p.LiveMiB, p.DecisionSeconds*1000)
		}
	}
	return w.phase(first, w.sample(o)), all
}

// change deletes a Model, makes one, and asks for one.
func (w *world) change() {
	gone := w.pick(func(*model) bool { return true })
	w.mu.Lock()
	gone.gone = true
	w.mu.Unlock()
	if err := w.client.Delete(w.t.Context(), &v1alpha1.Model{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: gone.name}}); err != nil {
		w.t.Error(err)
	}
	m := w.newModel()
	if err := w.client.Create(w.t.Context(), m); err != nil {
		w.t.Error(err)
	}
	w.mu.Lock()
	w.churned = append(w.churned, w.models[m.Name])
	w.mu.Unlock()
	w.ask()
}

// ask wants a second replica of one that may have it, or lets one be idle again.
func (w *world) ask() {
	if w.random.IntN(2) == 0 {
		for name, at := range w.asked {
			delete(w.asked, name)
			if to := w.workers.Worker(at); to != nil {
				to.Ask(namespace+"/"+name, 0)
			}
			return
		}
	}
	m := w.pick(func(m *model) bool { return m.sleeps && len(m.workers) > 0 && w.asked[m.name] == "" })
	if m == nil {
		return
	}
	w.mu.Lock()
	at := m.workers[0]
	w.mu.Unlock()
	if to := w.workers.Worker(at); to != nil && to.Ask(namespace+"/"+m.name, 9) {
		w.asked[m.name] = at
	}
}

// pick draws a Model that is there; nil: there is none.
func (w *world) pick(ok func(*model) bool) *model {
	w.mu.Lock()
	defer w.mu.Unlock()
	var names []string
	for name, m := range w.models {
		if !m.gone && ok(m) {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		return nil
	}
	slices.Sort(names)
	return w.models[names[w.random.IntN(len(names))]]
}

// latency of the Models that were made during the churn.
func (w *world) latency() Latency {
	w.mu.Lock()
	defer w.mu.Unlock()
	var placed, serve []float64
	for _, m := range w.churned {
		if !m.placed.IsZero() {
			placed = append(placed, m.placed.Sub(m.created).Seconds())
		}
		if !m.serves.IsZero() {
			serve = append(serve, m.serves.Sub(m.created).Seconds())
		}
	}
	sorted(placed)
	sorted(serve)
	return Latency{len(placed), quantile(placed, 0.5), quantile(placed, 0.99), quantile(placed, 1), quantile(serve, 0.5), quantile(serve, 0.99), quantile(serve, 1)}
}

// check looks for what must not be: Models that are held although they are gone,
// loads that were refused, Models that lost their home.
func (w *world) check() {
	w.await("workers to let go of what was deleted", time.Minute, func() (bool, string) {
		for _, at := range w.workers.Workers() {
			for _, h := range at.State().Homes {
				w.mu.Lock()
				m := w.models[h.Model[len(namespace)+1:]]
				w.mu.Unlock()
				if m.gone {
					return false, at.Name() + " holds " + h.Model
				}
			}
		}
		return true, ""
	})
	for _, at := range w.workers.Workers() {
		if no := at.Refusals(); len(no) > 0 {
			w.t.Errorf("%s refused %d assignments, the first with %+v", at.Name(), len(no), no[0])
		}
	}
	if w.lost > 0 {
		w.t.Errorf("%d times a Model had a home no more", w.lost)
	}
}
