package controllers

import (
	"cmp"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/estiba/estiba/api/v1alpha1"
	"github.com/estiba/estiba/internal/policy/packing"
)

// What would help a model that lacks a home: others that go, others that move, a
// pool that grows, less headroom, a shorter context.

// inTheWay is what would have to go from the device where the least would have to. Where nothing may go, it is what is
// pinned on the device with the most room. nil: nothing that goes helps.
func (d *decision) inTheWay(m *model) *InTheWay {
	worker, device, _ := strings.Cut(m.why.Leave, "/")
	these := m.why.Go
	if len(these) == 0 {
		best := packing.Sight{Free: -1}
		for _, v := range d.fleet.Look(d.want(m, nil)) {
			if v.Refused == packing.Pinned && v.Free > best.Free {
				best = v
			}
		}
		worker, device = best.Worker, best.Device
		for _, h := range best.Homes {
			if h.Pinned {
				these = append(these, h.Model)
			}
		}
	}
	s := d.byName[worker]
	if s == nil {
		return nil
	}
	w := &InTheWay{Worker: worker, Device: device, Free: max(0, d.fleet.Free(worker, device))}
	for _, key := range these {
		if h := s.homes[key]; h != nil {
			w.Go = append(w.Go, d.stay(h))
		}
	}
	if len(w.Go) == 0 {
		return nil
	}
	return w
}

// repacking says whether moving a few models would make room for m. It looks
// past what a pool may still move, and past how long models have been where they are.
func (d *decision) repacking(m *model) *Repacking {
	r := &Repacking{Most: movesForOne}
	if m.room != nil {
		r.Helps, r.UnderWay, r.Leave = true, true, m.room.Leave
		for _, key := range sortedKeys(d.plan.Memory.Moves) {
			if v := d.plan.Memory.Moves[key]; v.For == m.key {
				r.Moves = append(r.Moves, Shift{v.Model, v.From, v.To, v.Bytes})
			}
		}
		r.budget(d, d.byName[m.room.Worker].pool)
		return r
	}
	loose := d.loosened()
	for _, p := range m.pools {
		if _, known := m.need.of(p.key); !known {
			continue
		}
		r.budget(d, p)
		moves, _, _, ok := loose.MakeRoom(d.want(m, p), movesForOne)
		if !ok || len(moves) == 0 {
			continue
		}
		r.Helps = true
		for _, v := range moves {
			r.Moves = append(r.Moves, Shift{v.Home.Model, v.Home.Worker, v.To.Worker, v.Home.Bytes})
		}
		r.short(d, p)
		return r
	}
	return r
}

// loosened is the fleet as if every home that nothing pins might move now.
func (d *decision) loosened() *packing.Fleet {
	f := d.fleet.Clone()
	for _, s := range d.stations {
		for _, h := range s.homes {
			for _, at := range h.taken {
				if at.Young && f.Undo(at) {
					at.Young = false
					f.Take(at)
				}
			}
		}
	}
	return f
}

func (r *Repacking) budget(d *decision, p *pool) {
	r.Pool, r.Left, r.PerHour, r.BytesLeft = p.key, p.left.moves, p.movesPerHour(), p.left.bytes
}

// short finds out whether the pool may not move so much now, and when it may.
func (r *Repacking) short(d *decision, p *pool) {
	bytes := int64(0)
	for _, v := range r.Moves {
		bytes += v.Bytes
	}
	lacking := len(r.Moves) - p.left.moves
	r.Spent = lacking > 0 || p.left.bytes >= 0 && bytes > p.left.bytes
	if !r.Spent {
		return
	}
	lacking = max(lacking, 1)
	for _, v := range d.recent { // the oldest first
		if v.Pool != p.key || !v.counts() {
			continue
		}
		if lacking--; lacking == 0 {
			r.RefillSeconds = v.At.Add(time.Hour).Sub(d.seen.Now).Seconds()
			return
		}
	}
}

// growth says of each pool of m whether another worker would help.
func (d *decision) growth(m *model) []Growth {
	var all []Growth
	for _, p := range m.pools {
		g := Growth{Pool: p.key, Workers: len(p.present(d.seen.Now)), Max: p.limit(), Device: p.device}
		if g.Device == 0 && p.Sole { // of pools that have one worker together, another has shown what a device is
			for _, s := range d.stations {
				if s.pool.Sole {
					g.Device = max(g.Device, s.pool.device)
				}
			}
		}
		g.Helps = g.Device == 0 || likely(known(m), p.key) <= g.Device
		g.State, g.Pod, g.Message = d.growing(p, g)
		g.Helps = g.Helps && g.State != GrowthDivided && g.State != GrowthSole
		if p.barred() != "" {
			g.Max = int(p.Spec.Workers.Max)
		}
		all = append(all, g)
	}
	return all
}

func (d *decision) growing(p *pool, g Growth) (state, pod, message string) {
	coming := 0
	for _, s := range p.stations {
		switch {
		case !s.starting():
			continue
		case s.Unschedulable != "":
			return GrowthNode, s.Name, s.Unschedulable
		case s.Waiting != "":
			return GrowthPod, s.Name, s.Waiting
		}
		coming++
		pod = cmp.Or(pod, s.Name)
	}
	switch {
	case p.barred() != "":
		return GrowthBarred, "", p.barred()
	case coming > 0:
		return GrowthStarting, pod, ""
	case p.Blocked != "" && g.Workers < g.Max:
		return GrowthBlocked, "", p.Blocked
	case g.Workers < g.Max || p.replacing() || d.plan.Create[p.key] > 0:
		return GrowthPossible, "", ""
	case p.Sole && g.Workers > 0:
		return GrowthSole, "", soleWorker
	case p.Divided > 0:
		return GrowthDivided, "", fmt.Sprintf("the workers divide %s, and have all of it", packing.Size(p.Divided))
	}
	return GrowthFull, "", ""
}

// defaultHeadroom is the per cent of a device that a worker keeps free if its pool does not say.
const defaultHeadroom = 5

// headroom of a pool in per cent.
func (p *pool) headroom() int {
	if n, err := strconv.Atoi(strings.TrimSuffix(p.Spec.Memory.Headroom, "%")); err == nil {
		return n
	}
	return defaultHeadroom
}

// kept is what headroom keeps free of a device on which models may use so many bytes.
func (p *pool) kept(capacity int64) int64 {
	h := int64(p.headroom())
	return capacity / (100 - h) * h
}

// spared is a pool where m would fit if less headroom were kept, on which device
// (one of a pool without workers has no name), and at how many per cent at most.
type spared struct {
	pool *pool
	at   Berth
	kept int64
	most int
}

// headroom finds the first pool where only headroom keeps m out. ok: there is one.
func (d *decision) headroom(m *model) (best spared, ok bool) {
	for _, b := range d.berths(m) {
		p := d.pools[b.Pool]
		kept := p.kept(b.Capacity)
		lacks := m.need.in(b.Pool).Total() - b.Free
		if lacks <= 0 || lacks > kept {
			continue
		}
		whole := b.Capacity + kept
		s := spared{p, b, kept, int((kept - lacks) * 100 / whole)}
		if s.most < p.headroom() && (!ok || s.most > best.most) {
			best, ok = s, true
		}
	}
	return best, ok
}

// berths are the devices that have too little free memory for m, and for a pool
// that may have another worker a device as it is expected.
func (d *decision) berths(m *model) []Berth {
	var all []Berth
	for _, v := range d.fleet.Look(d.want(m, nil)) {
		if v.Refused == packing.TooSmall || v.Refused == packing.Full || v.Refused == packing.Pinned {
			all = append(all, Berth{Pool: v.Pool, Worker: v.Worker, Device: v.Device, Free: v.Free, Capacity: v.Capacity})
		}
	}
	for _, p := range m.pools {
		if len(p.present(d.seen.Now)) < p.limit() && p.device > 0 {
			all = append(all, Berth{Pool: p.key, Free: p.device, Capacity: p.device})
		}
	}
	return all
}

// shorter is a smaller KV floor with which m would fit a device.
type shorter struct {
	at        Berth
	field     string // "maxTokens" or "sequences"
	now, fits int
}

// context finds the device on which the largest KV floor fits: fewer sequences of the same length or, of one sequence, a
// shorter one. ok: there is one.
func (d *decision) context(m *model) (best shorter, ok bool) {
	sequences, share := int64(max(1, m.Spec.Context.Sequences)), 0.0
	for _, b := range d.berths(m) {
		f, tokens := m.need.in(b.Pool), int64(m.need.tokens(b.Pool))
		room := b.Free - f.WeightsBytes - f.WorkspaceBytes
		left := float64(room) / float64(f.KVFloorBytes)
		if f.KVFloorBytes <= 0 || tokens <= 0 || left <= share || left >= 1 {
			continue
		}
		s := shorter{b, "sequences", int(sequences), int(float64(room) / (float64(f.KVFloorBytes) / float64(sequences)))}
		if s.fits < 1 {
			s = shorter{b, "maxTokens", int(tokens), int(left*float64(tokens*sequences)) / int(sequences) / leastContext * leastContext}
		}
		if s.fits >= 1 {
			best, share, ok = s, left, true
		}
	}
	return best, ok
}

// leastContext is the shortest context that is worth proposing, and the step of such proposals.
const leastContext = 128

// advice is what a person can do, the best first.
func (d *decision) advice(m *model, e Explanation) []Action {
	if h := m.heldBack(); h != nil {
		return h.station.pool.adviseConfirm()
	}
	switch e.Reason {
	case v1alpha1.ReasonSuspended:
		return []Action{wake(m)}
	case v1alpha1.ReasonQuarantined:
		return []Action{{What: "Find out what is wrong with the model's files, then change spec.source, spec.precision or spec.context of the Model; a changed one is tried again."}}
	case v1alpha1.ReasonNoPoolMatches:
		return d.adviseMatch(m)
	case v1alpha1.ReasonNameConflict:
		return []Action{{What: "Choose another name for this Model, or for the older one."}}
	case v1alpha1.ReasonDigestMismatch:
		return []Action{
			{What: "If the new content is what you want, write its digest into spec.source.digest of the Model.", Command: edit(m)},
			{What: "If not, put the files back as they were; they are read again " + m.reread() + "."},
		}
	case v1alpha1.ReasonSourceUnavailable:
		return []Action{{What: "Make " + m.source() + " readable from the workers; it is tried again within a minute."}}
	case v1alpha1.ReasonInvalidModel:
		return []Action{{What: "Mend the files at " + m.source() + ": they are read again " + m.reread() + ", or at once where spec.source changes too."}}
	case v1alpha1.ReasonUnsupportedModel:
		return []Action{{What: "Name another checkpoint in spec.source of the Model; this version cannot run that one.", Command: edit(m)}}
	case v1alpha1.ReasonWorkerLost:
		return d.adviseLost(m)
	}
	if d.lacks(m) {
		return d.adviseRoom(m, e)
	}
	if !e.Ready && !e.DryRun {
		return []Action{{What: "Nothing: wait."}}
	}
	return nil
}

// reread is how soon files that cannot be used are read again without anybody's doing: by the worker where m
// has a home, or by one that is asked for their header.
func (m *model) reread() string {
	if len(m.homes) > 0 {
		return "within five minutes"
	}
	return "within a minute"
}

// source is where the files of m are, without a password: people show explanations to others.
func (m *model) source() string {
	u, err := url.Parse(m.Spec.Source.URI)
	if err != nil || u.User == nil {
		return m.Spec.Source.URI
	}
	return u.Redacted()
}

// adviseConfirm is about a plan that takes much away from a pool.
func (p *pool) adviseConfirm() []Action {
	u := p.unconfirmed
	if u == nil {
		return []Action{{What: "Nothing: it is decided anew in a moment."}}
	}
	return []Action{
		{What: fmt.Sprintf("If nobody means %s to go from pool %s, mend what asks for it.", list(u.Models), p.key)},
		{fmt.Sprintf("If it is meant, confirm it by the annotation %s=%s on InferencePool %s.", v1alpha1.AnnotationConfirm, u.hash(p), p.key),
			fmt.Sprintf("kubectl annotate %s %s -n %s --overwrite %s=%s", poolsResource, p.Name, p.Namespace, v1alpha1.AnnotationConfirm, u.hash(p))},
	}
}

func wake(m *model) Action {
	if m.Spec.Suspend {
		return Action{"Set spec.suspend of the Model to false.", patch("model", m.Namespace, m.Name, `{"spec":{"suspend":false}}`)}
	}
	return Action{"Raise spec.replicas of the Model, or write spec.autoscaling with min 0, so that a request wakes it.", fmt.Sprintf("kubectl scale model %s -n %s --replicas=1", m.Name, m.Namespace)}
}

func patch(kind, namespace, name, json string) string {
	return fmt.Sprintf("kubectl patch %s %s -n %s --type=merge -p '%s'", kind, name, namespace, json)
}

func edit(m *model) string { return fmt.Sprintf("kubectl edit model %s -n %s", m.Name, m.Namespace) }

// pools is how kubectl is told of InferencePools: another API has a kind of the same name.
const poolsResource = "inferencepools.estiba.dev"

// adviseMatch says of each pool what keeps m out.
func (d *decision) adviseMatch(m *model) []Action {
	if len(d.pools) == 0 {
		return []Action{{What: "Create an InferencePool in namespace " + m.Namespace + "; `kubectl explain " + poolsResource + ".spec` describes it."}}
	}
	var all []Action
	for _, key := range sortedKeys(d.pools) {
		p := d.pools[key]
		switch {
		case !p.DeletionTimestamp.IsZero():
		case m.Spec.PoolSelector != nil && !matches(m.Spec.PoolSelector, p.Labels):
			all = append(all, Action{What: fmt.Sprintf("Pool %s has %s, and spec.poolSelector of the Model wants %s: mend one of them.", key, describeLabels(p.Labels), selects(m))})
		default:
			all = append(all, Action{What: fmt.Sprintf("Pool %s allows Models of %s: let it allow namespace %s in spec.allowedNamespaces.", key, p.allowed(), m.Namespace)})
		}
	}
	return all[:min(len(all), 5)]
}

func describeLabels(l map[string]string) string {
	if len(l) == 0 {
		return "no labels"
	}
	var all []string
	for _, k := range sortedKeys(l) {
		all = append(all, k+"="+l[k])
	}
	return "labels " + strings.Join(all, ", ")
}

func selects(m *model) string {
	text := m.Spec.PoolSelector
	var all []string
	for _, k := range sortedKeys(text.MatchLabels) {
		all = append(all, k+"="+text.MatchLabels[k])
	}
	for _, e := range text.MatchExpressions {
		all = append(all, strings.TrimSpace(fmt.Sprintf("%s %s %s", e.Key, e.Operator, strings.Join(e.Values, ","))))
	}
	return strings.Join(all, ", ")
}

func (p *pool) allowed() string {
	if p.Spec.AllowedNamespaces.From == v1alpha1.NamespacesSelector {
		return "namespaces with certain labels only"
	}
	return "namespace " + p.Namespace + " only"
}

func (d *decision) adviseLost(m *model) []Action {
	var all []Action
	for _, h := range m.homes {
		if h.station.silent {
			all = append(all, Action{"See what is wrong with the pod of worker " + h.station.Name + ". Once it is gone, the model gets another home.", fmt.Sprintf("kubectl describe pod %s -n %s", h.station.Name, h.station.pool.Namespace)})
		}
	}
	return all
}

// adviseRoom is for a model that lacks a home: what costs others nothing comes first.
func (d *decision) adviseRoom(m *model, e Explanation) []Action {
	var wait, all []Action
	for _, g := range e.Growth {
		if !g.Helps && len(m.need) > 0 {
			continue
		}
		a, waits := d.adviseGrowth(g)
		if e.DryRun && (g.State == GrowthStarting || g.State == GrowthPossible) {
			continue // Effects have it
		}
		if waits {
			wait = append(wait, a)
		} else if a.What != "" {
			all = append(all, a)
		}
	}
	if len(m.need) == 0 {
		return append(wait, all...)
	}
	if a, ok := d.adviseMoves(e); ok {
		if e.Moves.UnderWay && e.DryRun {
			return nil // Effects have it
		} else if e.Moves.UnderWay {
			return []Action{a}
		}
		all = append([]Action{a}, all...)
	}
	if s, ok := d.headroom(m); ok {
		all = append(all, Action{
			fmt.Sprintf("Lower spec.memory.headroom of InferencePool %s from %d%% to %d%%: then it fits %s. The pool's workers are replaced one by one.", s.pool.named(), s.pool.headroom(), s.most, cmp.Or(s.at.at(), "an empty device")),
			patch(poolsResource, s.pool.Namespace, s.pool.Name, fmt.Sprintf(`{"spec":{"memory":{"headroom":"%d%%"}}}`, s.most)),
		})
	}
	all = append(all, d.adviseMemory(m, e)...)
	all = append(all, adviseSole(m)...)
	if s, ok := d.context(m); ok {
		all = append(all, Action{
			fmt.Sprintf("Lower spec.context.%s of the Model from %d to %d: then it fits %s.", s.field, s.now, s.fits, cmp.Or(s.at.at(), "an empty device")),
			patch("model", m.Namespace, m.Name, fmt.Sprintf(`{"spec":{"context":{"%s":%d}}}`, s.field, s.fits)),
		})
	}
	all = append(all, d.adviseGo(m, e, len(wait) > 0)...)
	if e.Stalled && e.Reason == v1alpha1.ReasonDoesNotFit && m.why.Full+m.why.Pinned == 0 {
		or := "add a pool whose devices have"
		if m.pools[0].Sole {
			or = "serve it on a machine with a device of"
		}
		all = append(all, Action{What: fmt.Sprintf("Name a smaller checkpoint in spec.source (of fewer bits a weight, for example), or %s at least %s.", or, packing.Size(smallestNeed(m)))})
	}
	return append(wait, all...)
}

// adviseMemory is about pools whose workers divide one memory, or may use a part of their devices: it is that which has to grow.
func (d *decision) adviseMemory(m *model, e Explanation) []Action {
	var all []Action
	for _, g := range e.Growth {
		p := d.pools[g.Pool]
		if n := d.short(m, p); p.Bound > 0 && n > 0 {
			all = append(all, Action{What: fmt.Sprintf("Start estiba serve with --memory %s, if its devices have so much: models may use %s of each now.", flag(p.Bound+n), packing.Size(p.Bound))})
		}
		if p.Divided == 0 || g.Helps && g.State != GrowthDivided {
			continue
		}
		n, workers := d.short(m, p), int64(max(g.Max, 1))
		if n == 0 { // it fits, but not beside another of its replicas
			all = append(all, Action{What: fmt.Sprintf("Raise spec.workers.max of InferencePool %s above %d, and %s, so that each worker keeps what it has: they divide %s now.",
				p.named(), g.Max, p.divide(p.Divided/workers*(workers+1)), packing.Size(p.Divided))})
			continue
		}
		how := p.divide(p.Divided + n*workers)
		all = append(all, Action{What: fmt.Sprintf("%s: its workers divide %s now.", strings.ToUpper(how[:1])+how[1:], packing.Size(p.Divided))})
		if p.Spec.Workers.Max > 1 && p.Spec.Device.Memory == nil {
			all = append(all, Action{What: fmt.Sprintf("Or lower spec.workers.max of InferencePool %s: fewer workers have more memory each.", p.named())})
		}
	}
	return all
}

// adviseSole is about more replicas than there can be workers: one of them holds one of a Model.
func adviseSole(m *model) []Action {
	if len(m.homes) == 0 || !slices.ContainsFunc(m.pools, func(p *pool) bool { return p.Sole }) {
		return nil
	}
	field, change := "spec.replicas", `{"spec":{"replicas":1}}`
	if a := m.Spec.Autoscaling; a != nil {
		field, change = "spec.autoscaling.max", fmt.Sprintf(`{"spec":{"autoscaling":{"min":%d,"max":1}}}`, min(a.Min, 1))
	}
	return []Action{{"Lower " + field + " of the Model to 1: a worker holds one replica of a Model, and " + soleWorker + ".", patch("model", m.Namespace, m.Name, change)}}
}

// divide says how p's workers come to divide so many bytes: by a flag, after what keeps the flag from it has grown.
func (p *pool) divide(total int64) string {
	start := "start estiba serve with --memory " + flag(total)
	beyond := flagged(total) - p.Most
	switch {
	case p.Most == 0 || beyond <= 0:
		return start
	case p.Limit > 0: // of which the process's own part grows, too: a quarter, 96 MiB at most
		return fmt.Sprintf("raise the memory limit of the control group of estiba serve (its container's, for example) from %s to %s, and then %s",
			flag(p.Limit), flag(p.Limit+beyond+min(beyond/3, 96<<20)), start)
	}
	return fmt.Sprintf("%s on a machine with more memory, as this one has %s for models at most", start, packing.Size(p.Most))
}

// flag is at least so many bytes as a flag takes them: 363Mi, 123Gi.
func flag(n int64) string {
	if n < manyMebi {
		return fmt.Sprintf("%dMi", flagged(n)/mebi)
	}
	return fmt.Sprintf("%dGi", flagged(n)/(1024*mebi))
}

// flagged is how many bytes a flag of n is.
func flagged(n int64) int64 {
	unit := int64(mebi)
	if n >= manyMebi {
		unit *= 1024
	}
	return (n + unit - 1) / unit * unit
}

const (
	mebi     = 1 << 20
	manyMebi = 16 * 1024 * mebi // from here on a flag has Gi
)

// short is how many bytes each worker of p would need more for m to fit the device that has the most free; 0: unknown.
func (d *decision) short(m *model, p *pool) int64 {
	least := int64(0)
	for _, b := range d.berths(m) {
		if lacks := m.need.in(p.key).Total() - b.Free; b.Pool == p.key && lacks > 0 && (least == 0 || lacks < least) {
			least = lacks
		}
	}
	return (least*100 + 99 - int64(p.headroom())) / (100 - int64(p.headroom()))
}

// named is how actions name p: one that no manifest has must be written before it can be changed.
func (p *pool) named() string {
	if p.MadeUp {
		return p.key + " (estiba serve made it up; write a manifest of it)"
	}
	return p.key
}

// adviseGrowth; waits: somebody is at it, and a person need only wait or help with the node.
func (d *decision) adviseGrowth(g Growth) (a Action, waits bool) {
	p := d.pools[g.Pool]
	switch g.State {
	case GrowthNode:
		return Action{fmt.Sprintf("Add a node that pod %s fits, or let a node autoscaler do it; the model comes as soon as the pod runs.", g.Pod), fmt.Sprintf("kubectl describe pod %s -n %s", g.Pod, p.Namespace)}, true
	case GrowthPod:
		return Action{fmt.Sprintf("Find out why pod %s does not start.", g.Pod), fmt.Sprintf("kubectl describe pod %s -n %s", g.Pod, p.Namespace)}, true
	case GrowthStarting:
		return Action{What: fmt.Sprintf("Wait: worker %s is starting.", g.Pod)}, true
	case GrowthPossible:
		return Action{What: fmt.Sprintf("Wait: pool %s gets another worker.", g.Pool)}, true
	case GrowthBlocked:
		return Action{What: fmt.Sprintf("Mend what keeps pool %s from getting a worker: %s", g.Pool, sentence(g.Message))}, false
	case GrowthBarred:
		return Action{What: fmt.Sprintf("Mend InferencePool %s: %s", g.Pool, sentence(g.Message))}, false
	}
	if why := d.crippled(p); why != "" {
		return Action{What: fmt.Sprintf("Mend the devices of pool %s first, since another worker may get the same ones: %s", g.Pool, why)}, false
	}
	if p.Spec.Replicas != nil && int(*p.Spec.Replicas) < int(p.Spec.Workers.Max) {
		return Action{fmt.Sprintf("Raise spec.replicas of InferencePool %s above %d.", g.Pool, g.Workers), patch(poolsResource, p.Namespace, p.Name, fmt.Sprintf(`{"spec":{"replicas":%d}}`, g.Workers+1))}, false
	}
	return Action{fmt.Sprintf("Raise spec.workers.max of InferencePool %s above %d: another worker would hold it.", g.Pool, g.Max), patch(poolsResource, p.Namespace, p.Name, fmt.Sprintf(`{"spec":{"workers":{"max":%d}}}`, g.Max+1))}, false
}

// adviseMoves; ok: there is something to say about moving others.
func (d *decision) adviseMoves(e Explanation) (a Action, ok bool) {
	r := e.Moves
	if r == nil || !r.Helps {
		return a, false
	}
	p := d.pools[r.Pool]
	switch {
	case r.UnderWay:
		return Action{What: "Wait: room is being made."}, true
	case !r.Spent:
		return Action{What: "Wait: room is made by moving others, as soon as they have been where they are for long enough."}, true
	}
	what := fmt.Sprintf("Raise spec.moves.maxPerHour of InferencePool %s above %d", p.named(), r.PerHour)
	command := patch(poolsResource, p.Namespace, p.Name, fmt.Sprintf(`{"spec":{"moves":{"maxPerHour":%d}}}`, r.PerHour+len(r.Moves)-r.Left))
	if r.Left >= len(r.Moves) { // the bytes are short
		what = fmt.Sprintf("Raise spec.moves.maxBytesPerHour of InferencePool %s: %s are left of it", p.named(), packing.Size(r.BytesLeft))
		command = fmt.Sprintf("kubectl edit %s %s -n %s", poolsResource, p.Name, p.Namespace)
	}
	if r.RefillSeconds > 0 {
		what += ", or wait " + span(r.RefillSeconds)
	}
	return Action{what + ".", command}, true
}

// adviseGo is about the models that are in the way.
// growing: as long as a worker is on its way, nobody gives way to a higher priority.
func (d *decision) adviseGo(m *model, e Explanation, growing bool) []Action {
	if e.InTheWay == nil || len(e.InTheWay.Go) == 0 {
		return nil
	}
	highest, pinned := e.InTheWay.Go[0].Priority, []string{}
	var names []string
	for _, s := range e.InTheWay.Go {
		names = append(names, s.Model)
		highest = max(highest, s.Priority)
		if s.Pinned {
			pinned = append(pinned, s.Model)
		}
	}
	var all []Action
	first := d.byKey[e.InTheWay.Go[0].Model]
	if mine := m.rank(d.byName[e.InTheWay.Worker].pool); len(pinned) == 0 && mine <= highest && !growing {
		all = append(all, Action{fmt.Sprintf("Raise spec.priority of the Model above %d: then %s %s way to it.", highest, list(names), verb(len(names), "gives", "give")),
			patch("model", m.Namespace, m.Name, fmt.Sprintf(`{"spec":{"priority":%d}}`, highest+1))})
	}
	if len(pinned) > 0 {
		p := d.byKey[pinned[0]]
		all = append(all, Action{fmt.Sprintf("%s %s spec.eviction: Never; with WhenNeeded %s could be moved, or give way to a higher priority.", list(pinned), verb(len(pinned), "has", "have"), verb(len(pinned), "it", "they")),
			patch("model", p.Namespace, p.Name, `{"spec":{"eviction":"WhenNeeded"}}`)})
	}
	all = append(all, Action{fmt.Sprintf("Suspend or delete %s.", list(names)), patch("model", first.Namespace, first.Name, `{"spec":{"suspend":true}}`)})
	return all
}

// list is "a", "a and b", "a, b and c", "a, b, c and 7 more".
func list(names []string) string {
	const most = 4
	if extra := len(names) - most; extra > 0 {
		return strings.Join(names[:most], ", ") + fmt.Sprintf(" and %d more", extra)
	}
	if n := len(names); n > 1 {
		return strings.Join(names[:n-1], ", ") + " and " + names[n-1]
	}
	return strings.Join(slices.Clone(names), "")
}
