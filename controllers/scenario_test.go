package controllers

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/estiba/estiba/api/v1alpha1"
	"github.com/estiba/estiba/api/worker"
	"github.com/estiba/estiba/internal/fixture"
	"github.com/estiba/estiba/internal/status"
)

// TestScenarios plays whole stories: Decide beside simulated workers, each with
// one device. A tick is one second; it prints what the plan did and which
// conditions changed. Sizes are in GiB.
//
//	pool NAME min=0 max=1 [device=N] [replicas=N] [hash=H] [after=10m] [drain=5m] [allow=KEY:VALUE of namespaces] [sole] [bound=GIB]
//	model NAME size=N [replicas=N | min=N max=N] [idle=5m] [uri=U] [names=a,b] [priority=N] [suspend] [age=N] [select=KEY:VALUE of pools]
//	source URI size=N | error=REASON    what a reading of its header says
//	worker NAME capacity=N              for workers made later: capacity of all
//	tick [n=1]                          n seconds
//	demand MODEL held=N                 at a gateway
//	run WORKER MODEL n=N                running requests
//	die WORKER                          the process ends and starts again
//	mute WORKER / speak WORKER          its reports stop and go on
//	stale WORKER                        its reports are as before the last assignment, for one tick
//	ail WORKER [state=Degraded|Lost reason=XID79]   its device is so; without a state it is in order
//	strangers WORKER gib=N              other processes take so much of its device
//	remove WORKER                       someone deletes the pod
//	hold / free [WORKER]                new pods do not start / do again, or one of them does
//	delete MODEL
//	hide MODEL / find MODEL             the cache lacks it, although nobody deleted it / it is there again
//	label POOL KEY=VALUE                changes a label of a pool; no generation changes
//	namespace NAME KEY=VALUE            its only label
//	confirm POOL [hash=H]               with the hash that its condition asks for
//	leader                              another operator takes over
//	show                                Ready of all, and what workers hold
func TestScenarios(t *testing.T) {
	datadriven.Walk(t, "testdata/scenarios", func(t *testing.T, path string) {
		s := &story{now: fixture.Epoch, epoch: 1, capacity: 80, sources: map[string]worker.Inspection{}, sent: map[string]worker.Assignment{},
			inspections: map[InspectKey]Inspected{}, held: map[string]int{}, hashes: map[string]string{}, namespaces: map[string]map[string]string{}}
		datadriven.RunTest(t, path, s.run)
		if s.braked && !strings.Contains(path, "brake") {
			t.Errorf("%s: ordinary life was braked", path)
		}
	})
}

const gib = 1 << 30

// story is a simulated cluster.
type story struct {
	now         time.Time
	epoch       int64
	capacity    int
	pools       []v1alpha1.InferencePool
	hashes      map[string]string
	sole        bool // all pools have one worker together
	bound       int  // GiB that they may use of each device
	models      []v1alpha1.Model
	hidden      []v1alpha1.Model
	namespaces  map[string]map[string]string
	pods        []*pod
	sources     map[string]worker.Inspection
	sent        map[string]worker.Assignment
	inspections map[InspectKey]Inspected
	held        map[string]int
	routes      map[string]*pod    // model -> where its requests go
	loads       map[string]float64 // model -> share of a device's time that it wants
	memory      Memory
	made        int
	holding     bool
	braked      bool // a plan waited for confirmation
	out         strings.Builder
}

// pod is a simulated worker.
type pod struct {
	Worker
	process int
	held    worker.Assignment
	homes   map[string]*worker.HomeState
	loaded  map[string]time.Time
	used    map[string]time.Time // when a request last wanted it
	muted   bool
	stale   int
	running map[string]int
	health  worker.Health
	outside int // GiB that other processes take
}

func (s *story) run(t *testing.T, d *datadriven.TestData) string {
	s.out.Reset()
	name := ""
	if len(d.CmdArgs) > 0 && len(d.CmdArgs[0].Vals) == 0 {
		name = d.CmdArgs[0].Key
	}
	num := func(key string, or int) int {
		if d.HasArg(key) {
			d.ScanArgs(t, key, &or)
		}
		return or
	}
	text := func(key, or string) string {
		if d.HasArg(key) {
			d.ScanArgs(t, key, &or)
		}
		return or
	}
	duration := func(key string) *metav1.Duration {
		if !d.HasArg(key) {
			return nil
		}
		v, err := time.ParseDuration(text(key, ""))
		if err != nil {
			t.Fatal(err)
		}
		return &metav1.Duration{Duration: v}
	}
	switch d.Cmd {
	case "pool":
		p := fixture.NewPool(name, int32(num("min", 0)), int32(num("max", 1)))
		if d.HasArg("device") {
			q := resource.NewQuantity(int64(num("device", 0))*gib, resource.BinarySI)
			p.Spec.Device.Memory = q
		}
		if d.HasArg("replicas") {
			n := int32(num("replicas", 0))
			p.Spec.Replicas = &n
		}
		p.Spec.ScaleDown.After, p.Spec.Update.Drain = duration("after"), duration("drain")
		if d.HasArg("allow") {
			p.Spec.AllowedNamespaces = v1alpha1.AllowedNamespaces{From: v1alpha1.NamespacesSelector, Selector: selector(text("allow", ""))}
		}
		if d.HasArg("moves") {
			n := int32(num("moves", 0))
			p.Spec.Moves.MaxPerHour = &n
		}
		s.hashes[p.Namespace+"/"+p.Name] = text("hash", "")
		s.sole, s.bound = s.sole || d.HasArg("sole"), num("bound", s.bound)
		if i := slices.IndexFunc(s.pools, func(o v1alpha1.InferencePool) bool { return o.Name == name }); i >= 0 {
			p.Status, p.Generation, p.Labels = s.pools[i].Status, s.pools[i].Generation+1, s.pools[i].Labels
			s.pools[i] = p
		} else {
			s.pools = append(s.pools, p)
		}
	case "model":
		m := fixture.NewModel(name)
		m.CreationTimestamp = metav1.NewTime(fixture.Epoch.Add(time.Duration(-num("age", 0)) * time.Second))
		m.Spec.Source.URI = text("uri", m.Spec.Source.URI)
		m.Spec.Priority = int32(num("priority", 0))
		m.Spec.Suspend = d.HasArg("suspend")
		if d.HasArg("never") {
			m.Spec.Eviction = v1alpha1.EvictNever
		}
		if d.HasArg("select") {
			m.Spec.PoolSelector = selector(text("select", ""))
		}
		if d.HasArg("names") {
			m.Spec.ServedNames = strings.Split(text("names", ""), "+")
		}
		if d.HasArg("replicas") {
			fixture.Replicas(int32(num("replicas", 0)))(&m)
		}
		if d.HasArg("max") {
			fixture.Autoscaled(int32(num("min", 0)), int32(num("max", 1)))(&m)
			m.Spec.Autoscaling.IdleAfter = duration("idle")
		}
		if d.HasArg("size") {
			s.sources[m.Spec.Source.URI] = worker.Inspection{Footprint: worker.Footprint{WeightsBytes: int64(num("size", 0)) * gib}, MaxTokens: 512}
		}
		if i := slices.IndexFunc(s.models, func(o v1alpha1.Model) bool { return o.Name == name }); i >= 0 {
			m.Status, m.Generation = s.models[i].Status, s.models[i].Generation+1
			s.models[i] = m
		} else {
			s.models = append(s.models, m)
		}
	case "source":
		in := worker.Inspection{Footprint: worker.Footprint{WeightsBytes: int64(num("size", 0)) * gib}, MaxTokens: 512}
		if d.HasArg("error") {
			in = worker.Inspection{Error: &worker.InspectError{Reason: text("error", ""), Message: "model.safetensors: broken"}}
		}
		s.sources[name] = in
	case "capacity":
		s.capacity = num("gib", 80)
	case "demand":
		s.held["default/"+name] = num("held", 0)
	case "run":
		s.pod(name).running["default/"+text("model", "")] = num("n", 1)
	case "die":
		s.pod(name).start(s)
	case "mute":
		s.pod(name).muted = true
	case "speak":
		s.pod(name).muted = false
	case "stale":
		s.pod(name).stale = num("n", 1)
	case "ail":
		s.pod(name).health = worker.Health{State: worker.DeviceHealthy, Since: s.now}
		if d.HasArg("state") {
			s.pod(name).health = worker.Health{State: worker.HealthState(text("state", "")), Reason: text("reason", ""), Message: "something is wrong; mend it", Since: s.now}
		}
	case "strangers":
		s.pod(name).outside = num("gib", 0)
	case "cordon":
		s.pod(name).Leaving = "node n1 is cordoned"
	case "remove":
		s.remove(name)
	case "hold":
		s.holding = true
	case "free":
		if name != "" {
			s.pod(name).start(s)
			break
		}
		s.holding = false
	case "delete":
		s.forget(name)
	case "hide":
		i := slices.IndexFunc(s.models, func(m v1alpha1.Model) bool { return m.Name == name })
		s.hidden, s.models = append(s.hidden, s.models[i]), slices.Delete(s.models, i, i+1)
	case "find":
		i := slices.IndexFunc(s.hidden, func(m v1alpha1.Model) bool { return m.Name == name })
		s.models, s.hidden = append(s.models, s.hidden[i]), slices.Delete(s.hidden, i, i+1)
	case "label":
		s.pool(name).Labels = map[string]string{d.CmdArgs[1].Key: d.CmdArgs[1].Vals[0]}
	case "namespace":
		s.namespaces[name] = map[string]string{d.CmdArgs[1].Key: d.CmdArgs[1].Vals[0]}
	case "confirm":
		message := status.Find(s.pool(name).Status.Conditions, v1alpha1.ConditionStalled).Message
		_, asked, _ := strings.Cut(message, v1alpha1.AnnotationConfirm+"=")
		s.pool(name).Annotations = map[string]string{v1alpha1.AnnotationConfirm: text("hash", asked)}
	case "leader":
		s.lead()
	case "tick":
		for range num("n", 1) {
			s.tick(t)
		}
	case "show":
		s.show()
	default:
		t.Fatalf("unknown command %s", d.Cmd)
	}
	if s.out.Len() == 0 {
		return "ok\n"
	}
	return s.out.String()
}

// lead: another operator takes over, which remembers nothing.
func (s *story) lead() {
	s.epoch++
	s.memory, s.sent, s.inspections = Memory{}, map[string]worker.Assignment{}, map[InspectKey]Inspected{}
}

// remove a worker's pod.
func (s *story) remove(name string) {
	s.pods = slices.DeleteFunc(s.pods, func(p *pod) bool { return p.Name == name })
	delete(s.sent, name)
}

// forget a Model.
func (s *story) forget(name string) {
	s.models = slices.DeleteFunc(s.models, func(m v1alpha1.Model) bool { return m.Name == name })
}

func (s *story) pod(name string) *pod {
	for _, p := range s.pods {
		if p.Name == name {
			return p
		}
	}
	panic("no pod " + name)
}

func (s *story) pool(name string) *v1alpha1.InferencePool {
	for i := range s.pools {
		if s.pools[i].Name == name {
			return &s.pools[i]
		}
	}
	panic("no pool " + name)
}

// selector of KEY:VALUE.
func selector(text string) *metav1.LabelSelector {
	key, value, _ := strings.Cut(text, ":")
	return &metav1.LabelSelector{MatchLabels: map[string]string{key: value}}
}

func (s *story) say(format string, args ...any) {
	fmt.Fprintf(&s.out, "%4ds ", int(s.now.Sub(fixture.Epoch).Seconds()))
	fmt.Fprintf(&s.out, format+"\n", args...)
}

func (s *story) tick(t *testing.T) {
	s.now = s.now.Add(time.Second)
	s.route()
	for _, p := range s.pods {
		p.work(s)
	}
	seen := s.seen()
	plan := Decide(seen)
	s.check(t, seen, plan)
	s.carryOut(plan)
}

// route sends the requests for each model to the home that answers soonest.
func (s *story) route() {
	s.routes = map[string]*pod{}
	for m := range s.held {
		best := 0
		for _, p := range s.pods {
			h := p.homes[m]
			if h == nil {
				continue
			}
			ready := map[worker.Phase]int{worker.PhaseIdle: 1, worker.PhaseLoading: 2, worker.PhaseResident: 3}[h.Phase]
			if ready > best {
				s.routes[m], best = p, ready
			}
		}
	}
}

func (s *story) seen() Seen {
	seen := Seen{Now: s.now, Epoch: s.epoch, Settled: true, Models: slices.Clone(s.models), Sent: s.sent, Inspections: s.inspections, Memory: s.memory,
		Namespaces: s.namespaces, Missing: map[string]bool{}}
	for i := range s.hidden {
		seen.Missing[Key(&s.hidden[i])] = true
	}
	for _, p := range s.pools {
		seen.Pools = append(seen.Pools, Pool{InferencePool: p, Hash: s.hashes[p.Namespace+"/"+p.Name], Sole: s.sole, Bound: int64(s.bound) * gib})
	}
	for _, p := range s.pods {
		seen.Workers = append(seen.Workers, p.Worker)
	}
	g := worker.GatewayState{Gateway: "g"}
	for m, n := range s.held {
		if p := s.routes[m]; p != nil && !p.muted {
			continue // they have been forwarded
		}
		g.Models = append(g.Models, worker.ModelDemand{Model: m, Held: n})
	}
	seen.Gateways = []worker.GatewayState{g}
	return seen
}

// check holds what must be true of every plan: the order of the input does not
// matter, and no device is given more than it has.
func (s *story) check(t *testing.T, seen Seen, plan Plan) {
	t.Helper()
	slices.Reverse(seen.Models)
	slices.Reverse(seen.Pools)
	slices.Reverse(seen.Workers)
	again := Decide(seen)
	if a, b := fmt.Sprint(hash(plan.Assignments), plan.Create, plan.Delete, plan.Inspect), fmt.Sprint(hash(again.Assignments), again.Create, again.Delete, again.Inspect); a != b {
		t.Errorf("the order of the input matters:\n%s\n%s", a, b)
	}
	for _, p := range s.pods {
		a, changes := plan.Assignments[p.Name]
		if !changes || p.Report == nil {
			continue
		}
		var used int64
		counted := map[string]bool{}
		for _, h := range a.Homes {
			if h.Resident && !s.sleeps(h.Model) {
				used += s.sources[h.Source.URI].Footprint.Total()
				counted[h.Model] = true
			}
		}
		for _, h := range p.Report.Homes { // what is still there
			if occupies(&h) && !counted[h.Model] && !s.sleeps(h.Model) {
				used += h.Footprint.Total()
			}
		}
		if used > p.Report.Devices[0].CapacityBytes {
			t.Errorf("%s is given %d GiB: %+v", p.Name, used/gib, a)
		}
	}
}

// sleeps: the model may leave its device, so that others have its room.
func (s *story) sleeps(key string) bool {
	return slices.ContainsFunc(s.models, func(m v1alpha1.Model) bool {
		return Key(&m) == key && m.Spec.Autoscaling != nil && m.Spec.Autoscaling.Min == 0
	})
}

func (s *story) carryOut(plan Plan) {
	s.memory = plan.Memory
	for i := range s.models {
		before := s.models[i].Status.Conditions
		s.models[i].Status = plan.Models[i]
		s.conditions("model "+s.models[i].Name, before, plan.Models[i].Conditions)
	}
	for i := range s.pools {
		before := s.pools[i].Status.Conditions
		s.pools[i].Status = plan.Pools[i]
		s.conditions("pool "+s.pools[i].Name, before, plan.Pools[i].Conditions)
	}
	for _, v := range plan.Moves {
		s.say("%s moves from %s to %s: %s", short(v.Model), v.From, v.To, v.Reason)
	}
	for _, name := range sortedKeys(plan.Assignments) {
		a := plan.Assignments[name]
		s.sent[name] = a
		var homes []string
		for _, h := range a.Homes {
			n := short(h.Model)
			switch {
			case h.Draining:
				n += " (draining)"
			case !h.Resident:
				n += " (asleep)"
			}
			homes = append(homes, n)
		}
		if a.Drain {
			homes = append(homes, "drain")
		}
		s.say("%s <- %d.%d [%s]", name, a.Epoch, a.Generation, strings.Join(homes, ", "))
	}
	for _, in := range plan.Inspect {
		result, ok := s.sources[in.Request.Source.URI]
		if !ok {
			panic("no source " + in.Request.Source.URI)
		}
		was := s.inspections[in.Key]
		is := Inspected{At: s.now, Result: result}
		if result.Error != nil {
			is.Attempts = was.Attempts + 1
		}
		s.inspections[in.Key] = is
		s.say("inspect %s on %s", in.Request.Source.URI, in.Worker)
	}
	for _, key := range sortedKeys(plan.Create) {
		for i := range plan.Create[key] {
			s.made++
			p := &pod{Worker: Worker{Name: fmt.Sprintf("%s-%d", short(key), s.made), Pool: key, Hash: s.hashes[key], Successor: i < plan.Successors[key]}, running: map[string]int{}}
			s.pods = append(s.pods, p)
			s.say("create %s", p.Name)
		}
	}
	for _, d := range plan.Delete {
		s.pods = slices.DeleteFunc(s.pods, func(p *pod) bool { return p.Name == d.Worker })
		delete(s.sent, d.Worker)
		s.say("delete %s: %s", d.Worker, d.Reason)
	}
}

func (s *story) conditions(what string, before, after []metav1.Condition) {
	for _, c := range status.Transitions(before, after) {
		s.braked = s.braked || c.Reason == v1alpha1.ReasonWaitingForConfirmation
		if c.Type == v1alpha1.ConditionReady || c.Type == v1alpha1.ConditionStalled && c.Status == metav1.ConditionTrue || c.Type == v1alpha1.ConditionDegraded {
			s.say("%s %s=%s %s: %s", what, c.Type, c.Status, c.Reason, c.Message)
		}
	}
}

func (s *story) show() {
	for _, m := range s.models {
		for _, kind := range []string{v1alpha1.ConditionReady, v1alpha1.ConditionPlaced, v1alpha1.ConditionReconciling, v1alpha1.ConditionStalled} {
			if c := status.Find(m.Status.Conditions, kind); c != nil {
				s.say("model %s %s=%s %s: %s", m.Name, c.Type, c.Status, c.Reason, c.Message)
			}
		}
		s.say("model %s %d/%d %+v", m.Name, m.Status.ReadyReplicas, m.Status.Replicas, m.Status.Summary)
	}
	for _, p := range s.pools {
		s.say("pool %s {Workers:%s Memory:%s} %d models", p.Name, p.Status.Summary.Workers, p.Status.Summary.Memory, p.Status.Models)
	}
	for _, p := range s.pods {
		s.say("worker %s holds %v", p.Name, sortedKeys(p.homes))
	}
}

// start begins a process: nothing is held, and no report is there.
func (p *pod) start(s *story) {
	p.process++
	p.Running = true
	p.held, p.homes, p.loaded, p.used, p.running = worker.Assignment{}, map[string]*worker.HomeState{}, map[string]time.Time{}, map[string]time.Time{}, map[string]int{}
}

// work is one second of a worker: it takes what was sent, loads, and reports.
func (p *pod) work(s *story) {
	if p.process == 0 {
		if s.holding {
			p.Unschedulable = "0/1 nodes are available: 1 Insufficient nvidia.com/gpu."
			return
		}
		p.Unschedulable = ""
		p.start(s)
	}
	if p.muted {
		p.Connected = false
		return
	}
	instance := fmt.Sprintf("%s/%d", p.Name, p.process)
	if p.health.State == worker.DeviceLost {
		for _, h := range p.homes {
			h.Phase, h.Reason, h.Message, h.Tier = worker.PhaseRefused, worker.ReasonDeviceLost, "Device gpu-0 is lost.", worker.TierDisk
		}
	}
	for _, h := range p.homes { // what was loading is loaded now
		if h.Phase == worker.PhaseLoading {
			h.Phase, h.Tier = worker.PhaseResident, worker.TierDevice
			p.loaded[h.Model] = s.now
		}
	}
	for _, told := range p.held.Homes {
		h := p.homes[told.Model]
		if h == nil {
			continue
		}
		if p.asked(s, told.Model) > 0 || h.Phase != worker.PhaseResident {
			p.used[told.Model] = s.now
		}
		switch {
		case told.Draining && p.asked(s, told.Model) == 0:
			h.Phase, h.Tier = worker.PhaseDraining, worker.TierDisk
		case told.Draining:
			h.Phase = worker.PhaseDraining
		case h.Phase == worker.PhaseResident && !told.Resident && s.now.Sub(p.used[told.Model]).Seconds() >= told.IdleSeconds:
			h.Phase, h.Tier = worker.PhaseIdle, worker.TierDisk // nobody has asked for it long enough
		case p.health.State == worker.DeviceLost:
		case h.Phase == worker.PhaseRefused || h.Phase == worker.PhaseIdle || h.Phase == worker.PhaseDraining && h.Tier == worker.TierDisk:
			h.Phase, h.Reason = worker.PhaseIdle, ""
			if told.Resident || p.asked(s, told.Model) > 0 || s.held[told.Model] > 0 && s.routes[told.Model] == nil {
				p.admit(s, h)
			}
		}
	}
	if a, ok := s.sent[p.Name]; ok && a.Instance == instance && p.stale == 0 {
		p.take(s, a)
	}
	for key := range p.homes { // what it no longer holds ends its requests first
		if !slices.ContainsFunc(p.held.Homes, func(h worker.Home) bool { return h.Model == key }) && p.asked(s, key) == 0 {
			delete(p.homes, key)
		}
	}
	if p.stale > 0 {
		p.stale--
	}
	r := &worker.State{Worker: p.Name, Pool: p.Pool, Instance: instance, Time: s.now, Epoch: p.held.Epoch, Generation: p.held.Generation, Draining: p.held.Drain,
		Devices: []worker.Device{{Name: "gpu-0", Kind: "cuda", ExtentBytes: gib, CapacityBytes: int64(s.capacity) * gib, Health: p.health}}}
	p.wear(s)
	for _, key := range sortedKeys(p.homes) {
		h := *p.homes[key]
		r.Devices[0].Load += h.Load
		if n := p.asked(s, key); h.Phase == worker.PhaseResident || h.Phase == worker.PhaseDraining {
			h.Running = n
		} else {
			h.Waiting = n
		}
		h.Leaving = !slices.ContainsFunc(p.held.Homes, func(told worker.Home) bool { return told.Model == key && !told.Draining })
		h.IdleSeconds = s.now.Sub(p.used[key]).Seconds()
		if h.Phase == worker.PhaseResident {
			h.ResidentSeconds = s.now.Sub(p.loaded[key]).Seconds()
			r.Devices[0].UsedBytes += h.Footprint.Total()
		}
		r.Homes = append(r.Homes, h)
	}
	if at := &r.Devices[0]; p.outside > 0 {
		at.ClaimBytes, at.Limit = at.CapacityBytes, "Other processes hold some of it."
		at.CapacityBytes = max(at.CapacityBytes-int64(p.outside)*gib, at.UsedBytes)
	}
	p.Report, p.Heard, p.Connected = r, s.now, true
	if a, ok := s.sent[p.Name]; ok && (a.Instance != instance || a.Generation == p.held.Generation && a.Epoch == p.held.Epoch) {
		delete(s.sent, p.Name)
	}
}

// wear brings the loads of what is on the device up to date: averages of five
// minutes of the time that each model wants, or of its part of all there is.
func (p *pod) wear(s *story) {
	wanted := 0.0
	for key, h := range p.homes {
		if h.Phase == worker.PhaseResident {
			wanted += s.loads[key]
		}
	}
	for key, h := range p.homes {
		is := 0.0
		if h.Phase == worker.PhaseResident {
			is = s.loads[key] / max(wanted, 1)
		}
		h.Load += (is - h.Load) / 300
	}
}

func (p *pod) take(s *story, a worker.Assignment) {
	p.held = a
	wanted := map[string]bool{}
	for _, h := range a.Homes {
		wanted[h.Model] = true
		st := p.homes[h.Model]
		if st == nil || st.Revision != h.Revision {
			st = &worker.HomeState{Model: h.Model, Revision: h.Revision, Devices: h.Devices, Phase: worker.PhaseIdle, Tier: worker.TierDisk, Footprint: s.sources[h.Source.URI].Footprint}
			p.homes[h.Model] = st
		}
		st.WantResident = h.Resident
		if st.Phase == worker.PhaseIdle && !h.Draining && (h.Resident || s.held[h.Model] > 0 && (s.routes[h.Model] == nil || s.routes[h.Model] == p)) {
			p.admit(s, st)
		}
	}
	for key := range p.homes {
		if !wanted[key] {
			if p.asked(s, key) > 0 {
				p.homes[key].Phase = worker.PhaseDraining
				continue
			}
			delete(p.homes, key)
		}
	}
}

// asked is how many requests a home has.
func (p *pod) asked(s *story, model string) int {
	n := p.running[model]
	if s.routes[model] == p {
		n += s.held[model]
	}
	return n
}

// admit loads a home if it fits, or if those that nobody asks for make room; else it is refused.
func (p *pod) admit(s *story, h *worker.HomeState) {
	free := int64(s.capacity-p.outside) * gib
	var idle []*worker.HomeState
	for _, key := range sortedKeys(p.homes) {
		o := p.homes[key]
		if o.Phase != worker.PhaseResident && o.Phase != worker.PhaseLoading && o.Tier != worker.TierDevice {
			continue
		}
		free -= o.Footprint.Total()
		if o.Phase == worker.PhaseResident && !o.WantResident && p.asked(s, key) == 0 {
			idle = append(idle, o)
		}
	}
	slices.SortStableFunc(idle, func(a, b *worker.HomeState) int { return p.used[a.Model].Compare(p.used[b.Model]) })
	for _, o := range idle {
		if free >= h.Footprint.Total() {
			break
		}
		free += o.Footprint.Total()
		o.Phase, o.Tier = worker.PhaseIdle, worker.TierDisk
	}
	if free < h.Footprint.Total() {
		h.Phase, h.Reason, h.Message = worker.PhaseRefused, worker.ReasonDoesNotFit, fmt.Sprintf("needs %d GiB, %d GiB is free", h.Footprint.Total()/gib, free/gib)
		return
	}
	if p.health.State == worker.DeviceLost {
		h.Phase, h.Reason, h.Message = worker.PhaseRefused, worker.ReasonDeviceLost, "Device gpu-0 is lost."
		return
	}
	h.Phase = worker.PhaseLoading
}
