package controllers

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/estiba/estiba/api/v1alpha1"
	"github.com/estiba/estiba/api/worker"
	"github.com/estiba/estiba/internal/fleet"
)

const (
	// patience is how long a new leader waits for the reports of running workers.
	patience = 10 * time.Second
	// confirm is how long a look at the lease is good for: a process that was
	// stopped and goes on must not act on what it saw before.
	confirm = 5 * time.Second
	// checkTimeout bounds a look at a pod that is not made.
	checkTimeout = 5 * time.Second
	// unseen is how long what was written counts although the cache does not show
	// it. Later the cache is right: someone else may have written since.
	unseen = time.Minute
)

// observe joins the informers' cache and the reports to what a decision looks at.
func (r *Reconciler) observe(ctx context.Context) (Seen, error) {
	var models v1alpha1.ModelList
	var pools v1alpha1.InferencePoolList
	var pods corev1.PodList
	var namespaces corev1.NamespaceList
	var nodes corev1.NodeList
	lists := []client.ObjectList{&models, &pools, &pods}
	if len(r.options.Namespaces) == 0 { // otherwise the permissions end there
		lists = append(lists, &namespaces, &nodes)
	}
	for _, list := range lists {
		// What comes is the cache's own: nobody may write to it.
		if err := r.client.List(ctx, list, client.UnsafeDisableDeepCopy); err != nil {
			return Seen{}, fmt.Errorf("read %T from the cache: %w", list, err)
		}
	}
	// A history keeps no monotonic clock; with one, times would be apart by a little more or less than they are there.
	seen := Seen{Now: r.now().Round(0), Models: models.Items, Namespaces: map[string]map[string]string{}, Memory: r.memory}
	r.statuses(seen.Models, seen.Now)
	for _, n := range namespaces.Items {
		seen.Namespaces[n.Name] = n.Labels
	}
	owners := map[uid]string{} // pool's UID -> "namespace/name"
	for _, p := range pools.Items {
		if s, written := r.pools[p.UID]; written && seen.Now.Sub(s.at) < unseen {
			p.Status = s.status
		}
		seen.Pools = append(seen.Pools, r.pool(ctx, p))
		owners[p.UID] = p.Namespace + "/" + p.Name
	}
	workers := r.workerPods(pods.Items, owners)
	clear(r.podOf)
	for _, w := range workers {
		r.podOf[w.Name] = w.Pod
	}
	r.sync(workers, pods.Items)
	r.report(&seen, workers, nodes.Items)
	seen.Gateways = r.gateways.Reports()
	seen.Sent = r.fleet.Sent()
	r.mu.Lock()
	seen.Inspections = maps.Clone(r.inspections)
	r.mu.Unlock()
	if err := r.missing(ctx, &seen); err != nil {
		return Seen{}, err
	}
	return seen, r.lead(ctx, &seen)
}

// template is what a pool's template makes of its worker pods.
type template struct {
	spec  *v1alpha1.InferencePoolSpec // it was made from
	image string
	pod   *corev1.Pod // read only
	hash  string
	err   error // why it cannot be used
}

// template of a pool: merging it takes a millisecond, so it is done once per spec.
func (r *Reconciler) template(p *v1alpha1.InferencePool) template {
	t, known := r.templates[p.UID]
	if !known || t.image != r.options.WorkerImage || !equality.Semantic.DeepEqual(*t.spec, p.Spec) {
		t = template{spec: &p.Spec, image: r.options.WorkerImage}
		t.pod, t.hash, t.err = workerPod(p, r.options.WorkerImage)
		r.templates[p.UID] = t
	}
	return t
}

// pool is p with the hash of the pods that would be made for it.
func (r *Reconciler) pool(ctx context.Context, p v1alpha1.InferencePool) Pool {
	all := Pool{InferencePool: p}
	t := r.template(&p)
	if t.err == nil && p.DeletionTimestamp.IsZero() {
		all.Unchecked = r.check(ctx, p.UID, t)
	}
	all.Hash, all.Taken = t.hash, r.furnished[p.UID].taken
	switch refused := r.refused[p.UID]; {
	case t.err != nil:
		all.Invalid = t.err.Error()
	case refused.hash == t.hash && refused.invalid:
		all.Invalid = refused.message
	case refused.hash == t.hash:
		all.Blocked = refused.message
	}
	return all
}

// checked is the answer to a pod that was not to be made, only looked at.
type checked struct {
	hash string // of the pod's template
	why  string // that is no answer; empty: it is one
	at   time.Time
}

// check asks the API server, once per template, whether it would take the pod:
// those that serve must not go before it does. One that is invalid counts as
// refused. The result says why there is no answer yet.
func (r *Reconciler) check(ctx context.Context, pool uid, t template) string {
	c := r.checked[pool]
	if c.hash == t.hash && (c.why == "" || r.now().Sub(c.at) < retry) {
		return c.why
	}
	c = checked{hash: t.hash, at: r.now()}
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	pod := t.pod.DeepCopy()
	err := r.client.Create(ctx, pod, client.DryRunAll)
	switch {
	case apierrors.IsInvalid(err):
		r.refused[pool] = refusal{t.hash, because(err, pod), true, r.now()}
	case err != nil && !settled(err):
		c.why = because(err, pod)
	}
	r.checked[pool] = c
	return c.why
}

// settled reports whether an error, other than of an invalid pod, ends the
// question. A full quota does: it may be the old pods that fill it. So does a
// webhook that cannot be asked without consequences: there is no answer then.
func settled(err error) bool {
	return apierrors.IsForbidden(err) && strings.Contains(err.Error(), "exceeded quota") || apierrors.IsBadRequest(err)
}

// ownedPod is a worker pod and the pool that it belongs to.
type ownedPod struct {
	*corev1.Pod
	pool string // "namespace/name"
}

// workerPods are those that a pool owns, with those just made that the cache
// does not show yet. Of two with one name, in different namespaces, the older
// one counts; the other one is to be deleted, so that its pool draws another name.
func (r *Reconciler) workerPods(pods []corev1.Pod, owners map[uid]string) []ownedPod {
	var all []ownedPod
	shown := map[uid]bool{}
	for i := range pods {
		shown[pods[i].UID] = true
		if o := metav1.GetControllerOf(&pods[i]); o != nil && owners[o.UID] != "" {
			all = append(all, ownedPod{&pods[i], owners[o.UID]})
		}
	}
	for id, made := range r.made {
		switch o := metav1.GetControllerOf(made.pod); {
		case shown[id] || r.now().Sub(made.at) > unseen:
			delete(r.made, id)
		case owners[o.UID] != "":
			all = append(all, ownedPod{made.pod, owners[o.UID]})
		}
	}
	slices.SortFunc(all, func(a, b ownedPod) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), a.CreationTimestamp.Time.Compare(b.CreationTimestamp.Time), cmp.Compare(a.UID, b.UID))
	})
	r.namesakes = nil
	counts := all[:0]
	for _, pod := range all {
		if n := len(counts); n > 0 && counts[n-1].Name == pod.Name {
			r.namesakes = append(r.namesakes, pod.Pod)
		} else {
			counts = append(counts, pod)
		}
	}
	return counts
}

// sync tells the fleet which workers there are, and which gateways.
func (r *Reconciler) sync(workers []ownedPod, pods []corev1.Pod) {
	var targets []fleet.Target
	tokens := map[string]string{} // pool -> token
	for _, w := range workers {
		if tokens[w.pool] == "" {
			tokens[w.pool] = fleet.PoolToken(r.options.Key, w.pool)
		}
		if url := podURL(w.Pod, workerPort); url != "" {
			targets = append(targets, fleet.Target{Worker: w.Name, Pool: w.pool, URL: url, Token: tokens[w.pool]})
		}
	}
	r.fleet.Sync(targets)
	targets = nil
	for i := range pods {
		p := &pods[i]
		if p.Namespace != r.options.Namespace || p.Labels[v1alpha1.LabelName] != "estiba" || p.Labels[v1alpha1.LabelComponent] != "gateway" || !p.DeletionTimestamp.IsZero() {
			continue
		}
		if url := podURL(p, gatewayPort); url != "" {
			targets = append(targets, fleet.Target{Worker: p.Name, URL: url, Token: fleet.GatewayToken(r.options.Key)})
		}
	}
	r.gateways.Sync(targets)
}

const gatewayPort = 8080

// podURL is where a pod listens; empty: nowhere yet, or no more.
func podURL(p *corev1.Pod, port int) string {
	if p.Status.PodIP == "" || p.Status.Phase == corev1.PodFailed || p.Status.Phase == corev1.PodSucceeded {
		return ""
	}
	return "http://" + net.JoinHostPort(p.Status.PodIP, strconv.Itoa(port))
}

// report joins the pods and what is reported of them.
func (r *Reconciler) report(seen *Seen, workers []ownedPod, nodes []corev1.Node) {
	going := map[string]string{} // node -> why it is about to go
	for i := range nodes {
		going[nodes[i].Name] = leaving(&nodes[i])
	}
	reports := map[string]fleet.Report{}
	for _, report := range r.fleet.Workers() {
		reports[report.Worker] = report
	}
	refusals := r.fleet.Refusals()
	for _, pod := range workers {
		w := asWorker(pod.Pod, pod.pool)
		w.Leaving = going[pod.Spec.NodeName]
		if report, ok := reports[w.Name]; ok && !report.Seen.IsZero() {
			state := report.State
			w.Report, w.Heard, w.Connected = &state, report.Seen, report.Connected
		}
		if refusal, ok := refusals[w.Name]; ok {
			w.Refusal = &refusal
		}
		seen.Workers = append(seen.Workers, w)
	}
}

// lead gives seen the epoch of this leader once it may decide: every running
// worker has reported, or has had its time. A worker that holds a newer epoch
// means another leader; whoever has the lease goes on, above that epoch.
func (r *Reconciler) lead(ctx context.Context, seen *Seen) error {
	newest, waits := int64(0), false
	for _, w := range seen.Workers {
		if w.Report != nil {
			newest = max(newest, w.Report.Epoch)
		}
		if w.Refusal != nil && w.Refusal.Reason == worker.RefusedOlder {
			newest = max(newest, w.Refusal.Epoch)
		}
		waits = waits || w.Running && w.Report == nil && w.Deleting.IsZero()
	}
	if r.epoch != 0 && newest <= r.epoch && seen.Now.Sub(r.confirmed) < confirm {
		seen.Epoch, seen.Settled = r.epoch, true
		return nil
	}
	if r.epoch == 0 {
		if r.began.IsZero() {
			r.began = seen.Now
		}
		if waits && seen.Now.Sub(r.began) < patience {
			return nil
		}
	}
	transitions, err := r.lease(ctx)
	if err != nil {
		return err
	}
	r.confirmed = seen.Now
	if r.epoch == 0 || newest > r.epoch {
		r.epoch = 1 + max(newest, transitions)
		r.metrics.epoch.Set(float64(r.epoch))
		r.log.Info("leading", "epoch", r.epoch, "workers", len(seen.Workers))
	}
	seen.Epoch, seen.Settled = r.epoch, true
	return nil
}

// lease reads how often the lease has changed hands. It is an error if this process does not hold it.
func (r *Reconciler) lease(ctx context.Context) (int64, error) {
	if r.options.Identity == "" {
		return 0, nil
	}
	var l coordinationv1.Lease
	if err := r.live.Get(ctx, client.ObjectKey{Namespace: r.options.Namespace, Name: LeaseName}, &l); err != nil {
		return 0, fmt.Errorf("read lease %s: %w", LeaseName, err)
	}
	if l.Spec.HolderIdentity == nil || *l.Spec.HolderIdentity != r.options.Identity {
		return 0, fmt.Errorf("lease %s is held by another operator: nothing is sent", LeaseName)
	}
	if l.Spec.LeaseTransitions == nil {
		return 0, nil
	}
	return int64(*l.Spec.LeaseTransitions), nil
}
