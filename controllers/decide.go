package controllers

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/estiba/estiba/api/v1alpha1"
	"github.com/estiba/estiba/api/worker"
	"github.com/estiba/estiba/internal/policy/packing"
	"github.com/estiba/estiba/internal/policy/scaling"
)

// Decide is the one placement decision for the cluster: scaling, then packing.
// It has no client, clock or log: equal input, in any order, gives an equal
// plan. What has a home keeps it unless its worker goes, its Model no longer
// wants it, or a person changed the spec.
func Decide(seen Seen) Plan {
	if !seen.Settled {
		return Plan{Memory: seen.Memory, Again: time.Second}
	}
	return decide(seen).plan
}

// decide is Decide with all that it found out on the way, which Explain spells out.
func decide(seen Seen) *decision {
	d := &decision{
		seen: seen,
		plan: Plan{
			Assignments: map[string]worker.Assignment{},
			Create:      map[string]int{},
			Successors:  map[string]int{},
			Budgets:     map[string]int32{},
			Memory:      newMemory(),
		},
		pools: make(map[string]*pool, len(seen.Pools)), byKey: make(map[string]*model, len(seen.Models)), byName: make(map[string]*station, len(seen.Workers)),
		models: make([]*model, 0, len(seen.Models)), stations: make([]*station, 0, len(seen.Workers)),
	}
	d.plan.Memory.Models, d.plan.Memory.Workers = make(map[string]scaling.State, len(seen.Models)), make(map[string]WorkerMemory, len(seen.Workers))
	d.readPools()
	d.readModels()
	d.readWorkers()
	d.giveDevices()
	d.readDemand()
	d.suspect()
	d.readMoves()
	d.load()
	d.scale()
	d.place()
	d.resize()
	d.move()
	d.brake()
	d.assign()
	d.inspect()
	d.report()
	return d
}

func newMemory() Memory {
	return Memory{
		Workers: map[string]WorkerMemory{}, Models: map[string]scaling.State{}, Pools: map[string]int{},
		Awake: map[string]Awake{}, Moves: map[string]Move{}, Rooms: map[string]Room{}, Gave: map[string]Gave{},
		Short: map[string]time.Time{}, Tried: map[string]time.Time{},
	}
}

// decision is one run of Decide: what was seen, joined up, and the plan so far.
type decision struct {
	seen     Seen
	plan     Plan
	pools    map[string]*pool // "namespace/name" -> pool
	models   []*model         // those that come first get a home first
	inOrder  []*model         // the same, in the order of Seen
	byKey    map[string]*model
	stations []*station // workers, by name
	byName   map[string]*station
	fleet    *packing.Fleet
	wired    []worker.Home        // used again for each worker
	listed   []v1alpha1.Placement // and for each model

	noted    map[string][]note // of placements in statuses, by worker
	moving   map[string]Move   // model -> its move under way
	recent   []Move            // moves that began within the last hour, the oldest first
	emptying map[string]bool   // workers that are being emptied
	moved    map[string]Move   // model -> its last move
	touched  map[string]int    // worker -> moves under way from or to it
	wakes    *packing.Fleet    // the fleet without what sleeps; nil: nobody has asked for it
	adopted  bool              // moves of an earlier leader are finished before others begin
}

// pool is an InferencePool with its workers.
type pool struct {
	*Pool
	key      string
	stations []*station
	there    []*station // that present has found; nil: nobody has asked
	device   int64      // bytes of one device, seen or expected; 0: unknown
	devices  int        // of one worker
	need     int        // workers more than there are, for models without a home
	// unconfirmed is what a plan for the pool waits for; braked: this one.
	unconfirmed *Unconfirmed
	braked      bool
	left        allowance
}

// model is a Model with what is known of it.
type model struct {
	*v1alpha1.Model
	key      string
	revision string
	names    []string
	conflict string // who has the names that this Model may not have
	pools    []*pool
	need     needs                // in each pool of which that is known
	needs    map[string]int64     // that known has made; nil: nobody has asked
	failure  *worker.InspectError // why the source has no footprint
	trial    *v1alpha1.Trial
	parole   *v1alpha1.Trial // a trial that was passed, not long ago
	note     string          // what clients of this Model have to know about its names

	load    scaling.Load
	share   int // of time in which it is awake, in 1/1000
	hot     int // share of a device's time that a replica takes, in 1/1000
	wanted  int // homes
	awake   int // of them, with the weights on the device
	homes   []*home
	missing int
	why     packing.Why
	grows   *pool // gets a worker for this model

	move    *Move // under way
	room    *Room // that is being made for it
	gave    *Gave // who has its room
	crowded bool  // requests wait for a home that neighbours keep off its device
}

// station is a worker with what it holds.
type station struct {
	*Worker
	pool   *pool
	memory WorkerMemory
	silent bool
	usable bool // may get new homes
	hard   bool // takes no requests: the worker drains
	frozen bool // is told nothing
	homes  map[string]*home
	// base is what the worker was last told, or what it reported to a leader that never told it anything.
	base []worker.Home
}

// home is a model on a worker.
type home struct {
	model   *model // nil: no such Model any more
	station *station
	devices []string
	told    *worker.Home      // what the worker has been told; nil: new
	state   *worker.HomeState // what it reports; nil: nothing yet
	awake   bool
	alone   bool
	braked  bool // it would have gone: it stays as it was told
	// extra: the model moves, and this home does not count: the new one until it is ready, then the old one.
	extra    bool
	draining bool           // the model has moved: no new requests
	taken    []packing.Home // of the fleet
	reason   string
}

// leaving: the home's worker is on its way out, so that it does not count.
func (h *home) leaving() bool { return h.station.memory.Going != "" || !h.station.Deleting.IsZero() }

// ready: a request that comes here is answered, or wakes the model.
func (h *home) ready() bool {
	if h.state == nil || h.station.silent || h.state.Revision != h.model.revision && h.told != nil && h.told.Revision == h.model.revision {
		return false
	}
	switch h.state.Phase {
	case worker.PhaseResident:
		return true
	case worker.PhaseIdle, worker.PhaseLoading, worker.PhaseFetching:
		return !h.awake
	}
	return false
}

// old reports whether h holds, and is left with, a revision before the spec's last change.
func (h *home) old() bool {
	return h.state != nil && h.state.Revision != h.model.revision
}

func (h *home) resident() bool {
	return h.state != nil && h.state.Phase == worker.PhaseResident && !h.station.silent
}

// silence after which a worker counts as silent: it gets nothing new.
const silence = 10 * time.Second

func (d *decision) readPools() {
	for i := range d.seen.Pools {
		p := &d.seen.Pools[i]
		e := &pool{Pool: p, key: p.Key(), devices: 1}
		if m := p.Spec.Device.Memory; m != nil {
			e.device = m.Value()
		}
		if m := p.Status.Device.Memory; m != nil && p.Status.Device.Template == p.Hash {
			e.device = m.Value()
		}
		d.pools[e.key] = e
	}
}

func (d *decision) readModels() {
	pools := make([]*pool, 0, len(d.pools))
	for _, key := range sortedKeys(d.pools) {
		if p := d.pools[key]; p.DeletionTimestamp.IsZero() {
			pools = append(pools, p)
		}
	}
	all := make([]model, len(d.seen.Models))
	var allowed [][]*pool // most models share one of a few lists
	var list []*pool
	for i := range d.seen.Models {
		m, e := &d.seen.Models[i], &all[i]
		*e = model{Model: m, key: Key(m), revision: Revision(m), need: make(needs, 0, 1)}
		list = list[:0]
		for _, p := range pools {
			if d.allows(p, m) {
				list = append(list, p)
			}
		}
		if i := slices.IndexFunc(allowed, func(l []*pool) bool { return slices.Equal(l, list) }); i >= 0 {
			e.pools = allowed[i]
		} else {
			e.pools = slices.Clone(list)
			allowed = append(allowed, e.pools)[max(0, len(allowed)-31):]
		}
		if t := m.Status.Trial; t != nil && t.Revision == e.revision {
			e.remember(t.DeepCopy(), d.seen.Now)
		}
		d.models = append(d.models, e)
		d.byKey[e.key] = e
	}
	d.inOrder = slices.Clone(d.models)
	giveNames(d.models)
	slices.SortFunc(d.models, func(a, b *model) int {
		return cmp.Or(-cmp.Compare(a.Spec.Priority, b.Spec.Priority), older(a, b))
	})
}

// rank is m's priority in a pool, which bounds that of guests.
func (m *model) rank(p *pool) int {
	n := int(m.Spec.Priority)
	if p.Namespace == m.Namespace {
		return n
	}
	if most := p.Spec.AllowedNamespaces.MaxPriority; most != nil {
		return min(n, int(*most))
	}
	return min(n, 0)
}

func older(a, b *model) int {
	return cmp.Or(a.CreationTimestamp.Time.Compare(b.CreationTimestamp.Time), cmp.Compare(a.key, b.key))
}

// allows reports whether m may come to p.
func (d *decision) allows(p *pool, m *v1alpha1.Model) bool {
	switch a := p.Spec.AllowedNamespaces; a.From {
	case v1alpha1.NamespacesAll:
	case v1alpha1.NamespacesSelector:
		if !matches(a.Selector, d.seen.Namespaces[m.Namespace]) {
			return false
		}
	default:
		if p.Namespace != m.Namespace {
			return false
		}
	}
	return m.Spec.PoolSelector == nil || matches(m.Spec.PoolSelector, p.Labels)
}

// matches reports whether a selector selects; one that is no selector selects nothing.
func matches(s *metav1.LabelSelector, l map[string]string) bool {
	if s != nil && len(s.MatchExpressions) == 0 { // the usual one, for which nothing needs to be parsed
		for k, v := range s.MatchLabels {
			if has, there := l[k]; !there || has != v {
				return false
			}
		}
		return true
	}
	selector, err := metav1.LabelSelectorAsSelector(s)
	return err == nil && selector.Matches(labels.Set(l))
}

// giveNames gives each Model the names that clients may send: of two that want
// the same one, the older Model has it. One of another namespace, whose owner
// may not know the older Model, is reached by its full name instead.
func giveNames(models []*model) {
	inOrder := slices.Clone(models)
	slices.SortFunc(inOrder, older)
	owner := map[string]*model{} // served name -> its Model
	for _, m := range inOrder {
		for _, n := range append([]string{m.Name}, m.Spec.ServedNames...) {
			switch o := owner[n]; {
			case o == nil:
				owner[n] = m
				m.names = append(m.names, n)
			case o == m:
			case o.Namespace != m.Namespace:
				if !slices.Contains(m.names, m.key) {
					m.names = append(m.names, m.key)
					m.note = fmt.Sprintf(" The name %s belongs to the older Model %s; clients reach this one as %s.", n, o.key, m.key)
				}
			case m.conflict == "":
				m.conflict = "The name " + n + " belongs to the older Model " + o.Name + "."
			}
		}
	}
}

func (d *decision) readWorkers() {
	for i := range d.seen.Workers {
		w := d.seen.Workers[i] // a copy
		if w.Heard.IsZero() {
			w.Heard = d.seen.Now
		}
		p := d.pools[w.Pool]
		if p == nil || d.byName[w.Name] != nil {
			continue
		}
		s := &station{Worker: &w, pool: p, memory: d.seen.Memory.Workers[w.Name], homes: map[string]*home{}}
		if s.memory.Going == scaling.OutOfDate && s.memory.DrainedSince.IsZero() && s.current() {
			s.memory.Going = ""
		}
		s.silent = s.silenced(d.seen.Now)
		d.waits(s)
		d.byName[w.Name] = s
		d.stations = append(d.stations, s)
	}
	slices.SortFunc(d.stations, func(a, b *station) int { return cmp.Compare(a.Name, b.Name) })
	for _, s := range d.stations {
		s.pool.stations = append(s.pool.stations, s)
		if r := s.Report; r != nil && len(r.Devices) > 0 {
			most := int64(0)
			for i := range r.Devices {
				most = max(most, r.Devices[i].Whole())
			}
			if most > 0 { // else they are not there, and nobody knows how large they should be
				s.pool.devices, s.pool.device = len(r.Devices), most
			}
		}
	}
}

// giveDevices finds out which pool has the one worker of its process: the others get none.
func (d *decision) giveDevices() {
	at := slices.IndexFunc(d.stations, func(s *station) bool {
		return s.pool.Sole && !s.Failed && s.Deleting.IsZero() && s.memory.Going == ""
	})
	if at < 0 {
		return
	}
	has := d.stations[at].pool
	for _, p := range d.pools {
		if !p.Sole || p == has || len(p.stations) > 0 {
			continue
		}
		own := *p.Pool // what was seen stays as it is
		own.Lasting = true
		own.Blocked = fmt.Sprintf("that of pool %s has all CUDA devices of estiba serve: let that pool hold these Models too, "+
			"or start another estiba serve for them and divide the devices with CUDA_VISIBLE_DEVICES", has.key)
		p.Pool = &own
	}
}

// soleWorker is why some pools have one worker together.
const soleWorker = "one worker has all CUDA devices of estiba serve"

// readDemand sums up what clients want, and finds out what each model needs.
func (d *decision) readDemand() {
	for _, g := range d.seen.Gateways {
		for _, demand := range g.Models {
			if m := d.byKey[demand.Model]; m != nil {
				m.load.Held += demand.Held
			}
		}
	}
	for _, s := range d.stations {
		if s.Report == nil || s.Failed {
			continue
		}
		for _, h := range s.Report.Homes {
			m := d.byKey[h.Model]
			if m == nil {
				continue
			}
			m.load.Running += h.Running
			m.load.Waiting += h.Waiting
			if h.Revision == m.revision && h.Footprint.Total() > 0 && slices.Contains(m.pools, s.pool) {
				f, known := m.need.of(s.Worker.Pool)
				if !known || h.Footprint.Measured && !f.Measured || h.Footprint.Measured == f.Measured && h.Footprint.Total() > f.Total() {
					f = h.Footprint
				}
				m.need.set(s.Worker.Pool, f, h.MaxTokens)
			}
		}
	}
	for _, m := range d.models {
		for _, p := range m.pools {
			d.footprint(m, p)
		}
		if len(m.need) > 0 {
			m.failure = nil // one pool can read it
		}
	}
}

// footprint of m on a device of p, if no worker of p reports it: read from the
// source's header, or remembered in the status.
func (d *decision) footprint(m *model, p *pool) {
	if _, known := m.need.of(p.key); known {
		return
	}
	in, asked := d.seen.Inspections[InspectKey{p.key, m.revision}]
	switch {
	case in.Result.Error != nil: // also while it is tried again
		m.failure = in.Result.Error
		return
	case asked && !in.Pending:
		m.need.set(p.key, in.Result.Footprint, in.Result.MaxTokens)
		return
	}
	for _, f := range m.Status.Footprints {
		if f.Pool == p.key && f.Revision == m.revision {
			m.need.set(p.key, footprintOf(&f), int(f.MaxTokens))
		}
	}
}

func sortedKeys[V any](m map[string]V) []string {
	keys := slices.AppendSeq(make([]string, 0, len(m)), maps.Keys(m))
	slices.Sort(keys)
	return keys
}

// short is the name in "namespace/name".
func short(key string) string { return key[strings.IndexByte(key, '/')+1:] }

// soon asks for another decision at t.
func (d *decision) soon(t time.Time) {
	if wait := max(t.Sub(d.seen.Now), 100*time.Millisecond); d.plan.Again == 0 || wait < d.plan.Again {
		d.plan.Again = wait
	}
}
