package controllers

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/estiba/estiba/api/v1alpha1"
	"github.com/estiba/estiba/internal/policy/packing"
	"github.com/estiba/estiba/internal/status"
)

// Explanation says of one Model where it is and why there, or why it is
// nowhere, what would help, and what a person can do about it. Facts are
// fields, sentences are for people; sizes are in bytes, times in seconds.
type Explanation struct {
	Model  string `json:"model"`            // "namespace/name"
	DryRun bool   `json:"dryRun,omitempty"` // it was not applied; this is what would be
	// At is when the operator saw what this is about.
	At time.Time `json:"at"`
	// Answer is the whole in one sentence, with the numbers that decide.
	Answer string `json:"answer"`

	Reason  string `json:"reason"` // of condition Ready; ReasonNotFound: there is no such Model
	Message string `json:"message,omitempty"`
	Ready   bool   `json:"ready"`
	Stalled bool   `json:"stalled"` // only a change of a spec, or a confirmation, helps
	// Stall is the message of condition Stalled where it has one of its own.
	Stall string `json:"stall,omitempty"`

	Needs []Need `json:"needs,omitempty"`
	Homes []Stay `json:"homes,omitempty"`
	// Refused are the devices that are not its home, by reason.
	Refused []Refused `json:"refused,omitempty"`
	// InTheWay is what would have to go from one device; nil: it lacks no home, or nothing that goes helps.
	InTheWay *InTheWay `json:"inTheWay,omitempty"`
	// Moves says whether moving others helps; nil: it lacks no home.
	Moves *Repacking `json:"moves,omitempty"`
	// Growth says of each pool whether another worker would help.
	Growth []Growth `json:"growth,omitempty"`
	Times  []Span   `json:"times,omitempty"`
	// Effects are what a dry run would do to others.
	Effects []string `json:"effects,omitempty"`
	Do      []Action `json:"do,omitempty"`
	Near    []string `json:"near,omitempty"` // Models with names like it, if there is none of that name
}

// ReasonNotFound is the reason of an explanation of what is not there.
const ReasonNotFound = "NotFound"

// Need is what a replica takes on a device of a pool.
type Need struct {
	Pool      string `json:"pool"`
	Bytes     int64  `json:"bytes"`
	Weights   int64  `json:"weightsBytes"`
	KVFloor   int64  `json:"kvFloorBytes"`
	Workspace int64  `json:"workspaceBytes"`
	Measured  bool   `json:"measured"`
	Given     bool   `json:"given,omitempty"` // by who asks; neither measured nor estimated
	MaxTokens int    `json:"maxTokens,omitempty"`
	// AskedTokens is the Model's spec.context.maxTokens where its own context is shorter.
	AskedTokens int `json:"askedTokens,omitempty"`
}

// Stay is a model at a home.
type Stay struct {
	Model   string                  `json:"model"`
	Pool    string                  `json:"pool"`
	Worker  string                  `json:"worker"`
	Devices []string                `json:"devices,omitempty"`
	State   v1alpha1.PlacementState `json:"state"`
	Bytes   int64                   `json:"bytes"` // on each device
	Reason  string                  `json:"reason,omitempty"`
	Message string                  `json:"message,omitempty"` // what is wrong there

	Priority        int     `json:"priority"`
	Pinned          bool    `json:"pinned,omitempty"`
	Sleeps          bool    `json:"sleeps,omitempty"`
	Progress        float64 `json:"progress,omitempty"`       // of a load, 0 to 1
	Load            float64 `json:"load"`                     // share of the device's time, 0 to 1
	JoulesPerToken  float64 `json:"joulesPerToken,omitempty"` // since the model came to the worker; 0: unknown
	Running         int     `json:"running"`
	Waiting         int     `json:"waiting"`
	ResidentSeconds float64 `json:"residentSeconds,omitempty"`
	IdleSeconds     float64 `json:"idleSeconds,omitempty"`
}

// at is "worker/device".
func (s Stay) at() string { return s.Worker + "/" + strings.Join(s.Devices, ",") }

// Refused counts the devices that are not a home for one reason.
type Refused struct {
	Reason  string `json:"reason"`
	Devices int    `json:"devices"`
	// Examples are those with the most free memory; at most maxExamples.
	Examples []Berth `json:"examples,omitempty"`
}

const maxExamples = 4

// Berth is a device with its room.
type Berth struct {
	Pool     string `json:"pool"`
	Worker   string `json:"worker"`
	Device   string `json:"device,omitempty"`
	Free     int64  `json:"freeBytes"`
	Capacity int64  `json:"capacityBytes"`
	Detail   string `json:"detail,omitempty"`
}

func (b Berth) at() string { return strings.TrimSuffix(b.Worker+"/"+b.Device, "/") }

// InTheWay is what would have to go from a device.
type InTheWay struct {
	Worker string `json:"worker"`
	Device string `json:"device"`
	Free   int64  `json:"freeBytes"`
	Go     []Stay `json:"go"`
}

// Repacking says whether moving others makes room.
type Repacking struct {
	Helps    bool    `json:"helps"`
	UnderWay bool    `json:"underWay,omitempty"`
	Moves    []Shift `json:"moves,omitempty"`
	// Leave are models of lower priority that give up their homes for it, instead of moving.
	Leave []string `json:"leave,omitempty"`
	Most  int      `json:"most"` // so many may move for one model

	Pool      string `json:"pool,omitempty"`
	Left      int    `json:"left"` // moves that the pool may still make within this hour
	PerHour   int    `json:"perHour"`
	BytesLeft int64  `json:"bytesLeft"` // negative: no bound
	// Spent: what is left is not enough; after RefillSeconds it is.
	Spent         bool    `json:"spent,omitempty"`
	RefillSeconds float64 `json:"refillSeconds,omitempty"`
}

// Shift is a model that would move, or moves, between workers.
type Shift struct {
	Model string `json:"model"`
	From  string `json:"from"`
	To    string `json:"to"`
	Bytes int64  `json:"bytes"`
}

// Growth says whether another worker of a pool would help, and what it waits for.
type Growth struct {
	Pool    string `json:"pool"`
	Workers int    `json:"workers"`
	Max     int    `json:"max"`
	Device  int64  `json:"deviceBytes,omitempty"` // of one device; 0: unknown
	Helps   bool   `json:"helps"`                 // the model fits an empty device of it
	State   string `json:"state"`                 // one of the constants below
	Pod     string `json:"pod,omitempty"`
	Message string `json:"message,omitempty"`
}

// What keeps a pool from growing, or that it grows.
const (
	GrowthStarting = "Starting"       // a worker is on its way
	GrowthNode     = "WaitingForNode" // its pod waits for a node; Message is Kubernetes' own
	GrowthPod      = "PodDoesNotStart"
	GrowthPossible = "Possible"
	GrowthFull     = "AtMax"   // spec.workers.max, or spec.replicas
	GrowthDivided  = "Divided" // AtMax, and with more workers each would have less
	GrowthSole     = "Sole"    // AtMax: the worker that there is takes all devices of the process
	GrowthBlocked  = "Blocked"
	GrowthBarred   = "Barred" // until somebody changes something
)

// Span is how long something takes.
type Span struct {
	What    string  `json:"what"`
	Seconds float64 `json:"seconds"`
	Because string  `json:"because"`
}

// Action is what a person can do: what in words, and the command where there is a cluster.
type Action struct {
	What    string `json:"what"`
	Command string `json:"command,omitempty"`
}

// Explain says why the Model of that key ("namespace/name") is where it is, or
// nowhere. It runs the very decision that Decide runs; nothing is changed.
func Explain(seen Seen, key string) Explanation {
	if !slices.ContainsFunc(seen.Models, func(m v1alpha1.Model) bool { return Key(&m) == key }) {
		return unknown(seen, key)
	}
	if !seen.Settled {
		return unsettled(seen, key)
	}
	d := decide(seen)
	return d.explain(d.byKey[key], false)
}

func unsettled(seen Seen, key string) Explanation {
	waits := 0
	for _, w := range seen.Workers {
		if w.Running && w.Report == nil {
			waits++
		}
	}
	say := fmt.Sprintf("The operator has just started and waits for the reports of %s, %v at most; nothing is decided before.", count(waits, "worker"), silence)
	return Explanation{Model: key, Reason: v1alpha1.ReasonWaitingForWorker, Message: say, Answer: say, Do: []Action{{What: "Ask again in a moment."}}}
}

// explain m; proposed: it is not applied.
func (d *decision) explain(m *model, proposed bool) Explanation {
	s := d.statusOf(m)
	e := Explanation{Model: m.key, DryRun: proposed, At: d.seen.Now, Needs: d.needs(m), Homes: d.stays(m)}
	if c := status.Find(s.Conditions, v1alpha1.ConditionReady); c != nil {
		e.Ready, e.Reason, e.Message = c.Status == "True", c.Reason, c.Message
	}
	c := status.Find(s.Conditions, v1alpha1.ConditionStalled)
	e.Stalled = c != nil && c.Status == "True"
	if e.Stalled && c.Message != e.Message {
		e.Stall = c.Message
	}
	if m.off() == "" && m.wanted > 0 {
		e.Refused = d.refused(m)
	}
	if d.lacks(m) {
		if len(m.need) > 0 && !m.tooLarge() {
			e.Moves = d.repacking(m)
		}
		if m.room == nil {
			e.Growth = d.growth(m)
		}
		if e.Moves != nil && m.room == nil {
			e.InTheWay = d.inTheWay(m)
		}
	}
	e.Times = d.times(m, e)
	e.Answer = d.sentence(m, e)
	e.Do = d.advice(m, e)
	return e
}

// lacks reports whether m is to have a home that it has not. One that sleeps, and
// that a request would give a home to, lacks none; one that nobody can read is not placed.
func (d *decision) lacks(m *model) bool {
	return m.off() == "" && m.missing > 0 && m.failure == nil && (len(m.homes) > 0 || !d.sleepsWell(m))
}

// sleepsWell: m has no home, and a request starts a worker that wakes it.
func (d *decision) sleepsWell(m *model) bool {
	_, well := d.asleep(m)
	return well
}

func (d *decision) statusOf(m *model) v1alpha1.ModelStatus {
	for i := range d.seen.Models {
		if &d.seen.Models[i] == m.Model {
			return d.plan.Models[i]
		}
	}
	return v1alpha1.ModelStatus{}
}

func (d *decision) needs(m *model) []Need {
	var all []Need
	for _, p := range m.pools {
		if f, known := m.need.of(p.key); known {
			n := Need{Pool: p.key, Bytes: f.Total(), Weights: f.WeightsBytes, KVFloor: f.KVFloorBytes, Workspace: f.WorkspaceBytes, Measured: f.Measured, MaxTokens: m.need.tokens(p.key)}
			if asked := int(m.Spec.Context.MaxTokens); n.MaxTokens > 0 && asked > n.MaxTokens {
				n.AskedTokens = asked
			}
			all = append(all, n)
		}
	}
	return all
}

// stays are the homes of m: those that stay first, then by worker.
func (d *decision) stays(m *model) []Stay {
	var all []Stay
	for _, h := range m.homes {
		all = append(all, d.stay(h))
	}
	for _, s := range d.stations {
		for _, left := range s.ending() {
			if left.Model == m.key {
				all = append(all, left)
			}
		}
	}
	slices.SortStableFunc(all, func(a, b Stay) int {
		return cmp.Or(compareBool(a.State == v1alpha1.PlacementDraining, b.State == v1alpha1.PlacementDraining), cmp.Compare(a.Worker, b.Worker))
	})
	return all
}

// stay is the home as it is told.
func (d *decision) stay(h *home) Stay {
	s := Stay{Pool: h.station.pool.key, Worker: h.station.Name, Devices: h.devices, State: h.placement(), Reason: h.reason}
	if m := h.model; m != nil {
		s.Model, s.Bytes, s.Sleeps = m.key, m.need.in(s.Pool).Total(), m.sleeps()
		s.Priority, s.Pinned = m.rank(h.station.pool), m.Spec.Eviction == v1alpha1.EvictNever
	}
	if h.state == nil {
		return s
	}
	if h.draining {
		s.State = v1alpha1.PlacementDraining
	}
	s.Bytes = max(s.Bytes, h.state.Footprint.Total())
	if h.state.Tokens > 0 {
		s.JoulesPerToken = h.state.EnergyJoules / float64(h.state.Tokens)
	}
	s.Progress, s.Load, s.Running, s.Waiting = h.state.Progress, h.state.Load, h.state.Running, h.state.Waiting
	since := max(d.seen.Now.Sub(h.station.Heard), 0).Seconds()
	if s.ResidentSeconds = h.state.ResidentSeconds; s.ResidentSeconds > 0 {
		s.ResidentSeconds += since
	}
	if s.Running+s.Waiting == 0 {
		s.IdleSeconds = h.state.IdleSeconds + since
	}
	if s.State == v1alpha1.PlacementFailed || s.State == v1alpha1.PlacementWaiting {
		s.Message = cmp.Or(h.state.Message, h.state.Reason)
	}
	if h.station.silent {
		s.Message = "nothing has been heard of the worker since " + h.station.Heard.UTC().Format(time.RFC3339)
	}
	return s
}

// refused counts, by reason, the devices that are not a home of m.
func (d *decision) refused(m *model) []Refused {
	by := map[string]*Refused{}
	var order []string
	add := func(reason string, b Berth) {
		r := by[reason]
		if r == nil {
			r = &Refused{Reason: reason}
			by[reason] = r
			order = append(order, reason)
		}
		r.Devices++
		r.Examples = append(r.Examples, b)
	}
	if len(m.need) > 0 {
		want := d.want(m, nil)
		if !d.lacks(m) { // its homes are in the way of no other one
			want.Model = ""
		}
		for _, v := range d.fleet.Look(want) {
			if m.at(v.Worker, v.Device) || m.room != nil && m.room.Worker == v.Worker && slices.Contains(m.room.Devices, v.Device) {
				continue
			}
			fits := alsoFits
			if v.Degraded != "" {
				fits = poorFits
			}
			add(cmp.Or(v.Refused, fits), Berth{Pool: v.Pool, Worker: v.Worker, Device: v.Device, Free: v.Free, Capacity: v.Capacity, Detail: d.detail(v)})
		}
	}
	for _, p := range m.pools {
		for _, s := range p.stations {
			switch why := s.unusable(); {
			case why != "" && m.on(s.Name) == nil:
				add(why, Berth{Pool: p.key, Worker: s.Name})
			case s.Report != nil:
				for i := range s.Report.Devices {
					if at := &s.Report.Devices[i]; at.Lost() {
						add(isLost, Berth{Pool: p.key, Worker: s.Name, Device: at.Name, Detail: strings.TrimSuffix(at.Health.Message, ".")})
					}
				}
			}
		}
	}
	var all []Refused
	for _, reason := range order {
		r := by[reason]
		slices.SortStableFunc(r.Examples, func(a, b Berth) int { return cmp.Or(cmp.Compare(b.Free, a.Free), cmp.Compare(a.at(), b.at())) })
		r.Examples = r.Examples[:min(len(r.Examples), maxExamples)]
		all = append(all, *r)
	}
	slices.SortStableFunc(all, func(a, b Refused) int {
		return cmp.Or(cmp.Compare(b.Devices, a.Devices), cmp.Compare(a.Reason, b.Reason))
	})
	return all
}

// alsoFits is said of devices that could be a home, and another one is better.
const alsoFits = "that could hold it too"

// poorFits is said of those that are degraded, and isLost of those that are lost.
const (
	poorFits = "degraded, so that others come first"
	isLost   = "lost"
)

// detail says who fills a device, who else takes of it, and what is the matter with it.
func (d *decision) detail(v packing.Sight) string {
	say := occupants(v)
	at := d.byName[v.Worker].device(v.Device)
	if at == nil {
		return say
	}
	add := func(more string) {
		if say != "" {
			say += "; "
		}
		say += more
	}
	if n := outside(at); n > 0 {
		add("other processes take " + packing.Size(n) + " of it")
	}
	if v.Degraded != "" {
		add(strings.TrimSuffix(cmp.Or(at.Health.Message, v.Degraded), "."))
	}
	return say
}

// maxOccupants is how many models on a device are named.
const maxOccupants = 6

// occupants names who fills a device that is full, the largest where they are many.
func occupants(v packing.Sight) string {
	if v.Refused != packing.Full && v.Refused != packing.Pinned {
		return ""
	}
	homes := slices.Clone(v.Homes)
	if len(homes) > maxOccupants {
		slices.SortStableFunc(homes, func(a, b packing.Home) int { return cmp.Compare(b.Bytes, a.Bytes) })
	}
	var all []string
	for _, h := range homes[:min(len(homes), maxOccupants)] {
		say := h.Model + " " + packing.Size(h.Bytes)
		if h.Pinned {
			say += " pinned"
		}
		all = append(all, say)
	}
	if more := len(homes) - len(all); more > 0 {
		all = append(all, fmt.Sprintf("%d more", more))
	}
	return list(all)
}

// unusable says why nothing new can come to a worker; empty: it can.
func (s *station) unusable() string {
	switch {
	case s.usable && !s.silent, s.Failed:
		return ""
	case !s.Deleting.IsZero(), s.memory.Going != "", s.Report != nil && s.Report.Draining:
		return "on a worker that is on its way out"
	case s.silent, s.Report != nil && !s.Connected:
		return "on a worker that is not heard"
	}
	return "on a worker that has not reported yet"
}

// tooLarge: no device there is could hold m, whatever left it.
func (m *model) tooLarge() bool {
	y := m.why
	return y.Devices() > 0 && y.TooSmall+y.Unsuited == y.Devices()
}

// has reports whether a worker holds a model, or has not let go of it yet.
func (s *station) has(key string) bool { return s.homes[key] != nil || s.holds(key) }

func (m *model) at(worker, device string) bool {
	return slices.ContainsFunc(m.homes, func(h *home) bool { return h.station.Name == worker && slices.Contains(h.devices, device) })
}
