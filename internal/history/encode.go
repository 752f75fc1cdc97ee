package history

import (
	"bytes"
	"encoding/json"
	"fmt"
	"hash/maphash"
	"io"
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/estiba/estiba/api/v1alpha1"
	"github.com/estiba/estiba/api/worker"
	"github.com/estiba/estiba/controllers"
	"github.com/estiba/estiba/internal/policy/scaling"
)

// A line of a history is one decision, a record in JSON. What was seen is cut
// into parts, each with a name: an object, a worker, what is remembered of one.
// The first line of a file is full, and the next ones have only the parts that
// changed: of ten thousand Models, a handful.

// record is a line.
type record struct {
	Version int                        `json:"v"`
	Seq     int64                      `json:"seq"`            // of the decision in its process; where one is left out, it was not kept
	Full    bool                       `json:"full,omitempty"` // forget the parts before
	Set     map[string]json.RawMessage `json:"set,omitempty"`  // part -> what it is now
	Gone    []string                   `json:"gone,omitempty"` // parts
	Plan    controllers.Plan           `json:"plan"`           // without statuses and memory
}

// The kinds of parts; "kind/name" is a part's name.
const (
	kindHead         = "head"
	kindModel        = "model"
	kindPool         = "pool"
	kindNamespace    = "namespace"
	kindWorker       = "worker"
	kindClock        = "clock" // of a worker's report: what changes by itself
	kindGateway      = "gateway"
	kindSent         = "sent"
	kindInspection   = "inspection"
	kindMemory       = "memory"
	kindWorkerMemory = "memory.worker"
	kindWorkerClock  = "memory.clock"
	kindModelMemory  = "memory.model"
	kindAwake        = "memory.awake"
	kindVerdict      = "verdict" // of a Model: the reason of its condition Ready, as the plan has it
)

// head is what stands in no part of its own.
type head struct {
	Now     time.Time       `json:"now"`
	Epoch   int64           `json:"epoch"`
	Settled bool            `json:"settled,omitempty"`
	Missing map[string]bool `json:"missing,omitempty"`
}

// clock is what of a worker's report changes although nothing happens: one
// number less to write again for each of its homes and devices.
type clock struct {
	Heard   time.Time    `json:"heard,omitzero"`
	Time    time.Time    `json:"time,omitzero"`
	Devices []float64    `json:"devices,omitempty"` // load
	Homes   [][7]float64 `json:"homes,omitempty"`   // idle, resident and busy seconds, load, awake, joules, tokens
	// Readings of each device; none: no device has any.
	Readings []*worker.Readings `json:"readings,omitempty"`
}

// clockOf a report that came at heard.
func clockOf(s *worker.State, heard time.Time) clock {
	c := clock{Heard: heard, Time: s.Time}
	readings := false
	for i := range s.Devices {
		c.Devices = append(c.Devices, s.Devices[i].Load)
		c.Readings = append(c.Readings, s.Devices[i].Readings)
		readings = readings || s.Devices[i].Readings != nil
	}
	if !readings {
		c.Readings = nil
	}
	for i := range s.Homes {
		h := &s.Homes[i]
		c.Homes = append(c.Homes, [7]float64{h.IdleSeconds, h.ResidentSeconds, h.BusySeconds, h.Load, h.Awake, h.EnergyJoules, float64(h.Tokens)})
	}
	return c
}

// still is a report without its clock.
func still(s worker.State) worker.State {
	s.Time = time.Time{}
	s.Devices, s.Homes = slices.Clone(s.Devices), slices.Clone(s.Homes)
	for i := range s.Devices {
		s.Devices[i].Load, s.Devices[i].Readings = 0, nil
	}
	for i := range s.Homes {
		s.Homes[i] = withoutClock(s.Homes[i])
	}
	return s
}

func withoutClock(h worker.HomeState) worker.HomeState {
	h.IdleSeconds, h.ResidentSeconds, h.BusySeconds, h.Load, h.Awake = 0, 0, 0, 0, 0
	h.EnergyJoules, h.Tokens = 0, 0
	return h
}

// moving is a report with its clock again.
func (c clock) moving(s worker.State) worker.State {
	s.Time = c.Time
	s.Devices, s.Homes = slices.Clone(s.Devices), slices.Clone(s.Homes)
	for i := range s.Devices[:min(len(s.Devices), len(c.Devices))] {
		s.Devices[i].Load = c.Devices[i]
	}
	for i := range s.Devices[:min(len(s.Devices), len(c.Readings))] {
		s.Devices[i].Readings = c.Readings[i]
	}
	for i := range s.Homes[:min(len(s.Homes), len(c.Homes))] {
		h := &s.Homes[i]
		h.IdleSeconds, h.ResidentSeconds, h.BusySeconds, h.Load, h.Awake = c.Homes[i][0], c.Homes[i][1], c.Homes[i][2], c.Homes[i][3], c.Homes[i][4]
		h.EnergyJoules, h.Tokens = c.Homes[i][5], int64(c.Homes[i][6])
	}
	return s
}

// encoder makes lines. It belongs to one goroutine.
type encoder struct {
	seed  maphash.Seed
	known map[string]map[string]*written // kind -> name -> ...
	turn  int64
}

// written is a part as it was written.
type written struct {
	sum   uint64 // hash of its text
	value any    // that it was made of
	turn  int64  // of the last line that has it
}

func newEncoder() *encoder {
	return &encoder{seed: maphash.MakeSeed(), known: map[string]map[string]*written{}}
}

// line is the next line; a full one forgets those before.
func (e *encoder) line(seq int64, seen controllers.Seen, plan controllers.Plan, full bool) ([]byte, error) {
	if full {
		clear(e.known)
	}
	e.turn++
	redact := redacting(seen.Models)
	// The parts are put together by hand: encoding/json would read each once more.
	var set bytes.Buffer
	var failed error
	parts(seen, plan, func(kind, name string, value any) {
		name = redact.name(name)
		if err := e.part(&set, redact, kind, name, value); err != nil {
			failed = fmt.Errorf("encode %s/%s: %w", kind, name, err)
		}
	})
	if failed != nil {
		return nil, failed
	}
	plan.Models, plan.Pools, plan.Memory = nil, nil, controllers.Memory{}
	rest, err := json.Marshal(record{Version: Version, Seq: seq, Full: full, Gone: e.gone(), Plan: plan})
	if err != nil {
		return nil, fmt.Errorf("encode a decision: %w", err)
	}
	rest = redact.text(rest)
	return slices.Concat(rest[:len(rest)-1], []byte(`,"set":{`), set.Bytes(), []byte("}}\n")), nil
}

// gone are the parts that the line before had and this one has not.
func (e *encoder) gone() (all []string) {
	for kind, names := range e.known {
		for name, w := range names {
			if w.turn != e.turn {
				all = append(all, kind+"/"+name)
				delete(names, name)
			}
		}
	}
	slices.Sort(all)
	return all
}

// part writes a part that is not as it was written last.
func (e *encoder) part(set *bytes.Buffer, redact *redactor, kind, name string, value any) error {
	names := e.known[kind]
	if names == nil {
		names = map[string]*written{}
		e.known[kind] = names
	}
	w := names[name]
	if w != nil && same(w.value, value) {
		w.turn, w.value = e.turn, value
		return nil
	}
	text, err := json.Marshal(shown(value))
	if err != nil {
		return err
	}
	text = redact.text(text)
	sum := maphash.Bytes(e.seed, text)
	if w == nil {
		w = &written{sum: ^sum}
		names[name] = w
	}
	if w.sum != sum {
		if set.Len() > 0 {
			set.WriteByte(',')
		}
		fmt.Fprintf(set, `"%s/%s":`, kind, inJSON(name))
		set.Write(text)
	}
	*w = written{sum, value, e.turn}
	return nil
}

// shown is a part's value as it is written: without what no decision reads, and without its clock.
func shown(value any) any {
	switch v := value.(type) {
	case *v1alpha1.Model:
		return withoutExtras(*v)
	case controllers.Worker:
		v.Heard = time.Time{}
		if v.Report != nil {
			s := still(*v.Report)
			v.Report = &s
		}
		return v
	case controllers.WorkerMemory:
		v.Last, v.Heard = still(v.Last), time.Time{}
		return v
	}
	return value
}

// same reports whether two values of a part are written alike. It may be wrong
// in saying that they are not: then they are written, and their texts compared.
// It saves most of the time where there are many that have not changed.
func same(a, b any) bool {
	switch a := a.(type) {
	case *v1alpha1.Model:
		b, ok := b.(*v1alpha1.Model)
		return ok && (a == b || a.UID == b.UID && a.ResourceVersion != "" && a.ResourceVersion == b.ResourceVersion && reflect.DeepEqual(a.Status, b.Status))
	case controllers.Worker:
		b, ok := b.(controllers.Worker)
		if !ok || (a.Report == nil) != (b.Report == nil) || a.Report != nil && !sameState(a.Report, b.Report) {
			return false
		}
		a.Report, b.Report = nil, nil
		a.Heard, b.Heard = time.Time{}, time.Time{}
		return reflect.DeepEqual(a, b)
	case controllers.WorkerMemory:
		b, ok := b.(controllers.WorkerMemory)
		if !ok || !sameState(&a.Last, &b.Last) || !sameAssignment(&a.Assigned, &b.Assigned) {
			return false
		}
		a.Last, b.Last, a.Assigned, b.Assigned = worker.State{}, worker.State{}, worker.Assignment{}, worker.Assignment{}
		a.Heard, b.Heard = time.Time{}, time.Time{}
		return reflect.DeepEqual(a, b)
	case worker.Assignment:
		b, ok := b.(worker.Assignment)
		return ok && sameAssignment(&a, &b)
	case string, controllers.Awake, modelMemory:
		return a == b
	}
	return false
}

// sameAssignment: not only equal, but made at one time.
func sameAssignment(a, b *worker.Assignment) bool {
	return a.Epoch == b.Epoch && a.Generation == b.Generation && a.Instance == b.Instance && a.Drain == b.Drain &&
		len(a.Homes) == len(b.Homes) && (len(a.Homes) == 0 || &a.Homes[0] == &b.Homes[0])
}

// sameState: equal but for its clock.
func sameState(a, b *worker.State) bool {
	if len(a.Homes) != len(b.Homes) || len(a.Devices) != len(b.Devices) {
		return false
	}
	for i := range a.Devices {
		x, y := a.Devices[i], b.Devices[i]
		x.Load, y.Load = 0, 0
		x.Readings, y.Readings = nil, nil
		if x != y {
			return false
		}
	}
	for i := range a.Homes {
		if !sameHome(&a.Homes[i], &b.Homes[i]) {
			return false
		}
	}
	x, y := *a, *b
	x.Homes, x.Devices, y.Homes, y.Devices = nil, nil, nil, nil
	x.Time, y.Time = time.Time{}, time.Time{}
	return reflect.DeepEqual(x, y)
}

func sameHome(a, b *worker.HomeState) bool {
	if a.Model != b.Model || a.Revision != b.Revision || a.Phase != b.Phase || a.Tier != b.Tier || a.Running != b.Running || a.Waiting != b.Waiting || a.Completed != b.Completed {
		return false // what differs most often
	}
	x, y := withoutClock(*a), withoutClock(*b)
	return reflect.DeepEqual(&x, &y)
}

// parts cuts a decision into its parts.
func parts(seen controllers.Seen, plan controllers.Plan, put func(kind, name string, value any)) {
	put(kindHead, "", head{seen.Now, seen.Epoch, seen.Settled, seen.Missing})
	for i := range seen.Models {
		m := &seen.Models[i]
		key := controllers.Key(m)
		put(kindModel, key, m)
		if i < len(plan.Models) {
			put(kindVerdict, key, Verdict(plan.Models[i]))
		}
	}
	for i := range seen.Pools {
		put(kindPool, seen.Pools[i].Key(), withoutTemplate(seen.Pools[i]))
	}
	putAll(put, kindNamespace, seen.Namespaces)
	for _, w := range seen.Workers {
		c := clock{Heard: w.Heard}
		if w.Report != nil {
			c = clockOf(w.Report, w.Heard)
		}
		put(kindWorker, w.Name, w)
		put(kindClock, w.Name, c)
	}
	for i := range seen.Gateways {
		put(kindGateway, seen.Gateways[i].Gateway, seen.Gateways[i])
	}
	putAll(put, kindSent, seen.Sent)
	for key, in := range seen.Inspections {
		text, _ := key.MarshalText() // it never fails
		put(kindInspection, string(text), in)
	}
	memory := seen.Memory
	for name, w := range memory.Workers {
		put(kindWorkerMemory, name, w)
		put(kindWorkerClock, name, clockOf(&w.Last, w.Heard))
	}
	putAll(put, kindModelMemory, memory.Models)
	putAll(put, kindAwake, memory.Awake)
	memory.Workers, memory.Models, memory.Awake = nil, nil, nil
	put(kindMemory, "", memory)
}

func putAll[V any](put func(kind, name string, value any), kind string, m map[string]V) {
	for name, v := range m {
		put(kind, name, v)
	}
}

// Verdict is the reason of a Model's condition Ready.
func Verdict(s v1alpha1.ModelStatus) string {
	for i := range s.Conditions {
		if s.Conditions[i].Type == v1alpha1.ConditionReady {
			return s.Conditions[i].Reason
		}
	}
	return ""
}

// modelMemory is what is remembered of a Model's number of replicas.
type modelMemory = scaling.State

// Decision is a line as it is read again.
type Decision struct {
	Seq  int64
	Seen controllers.Seen
	// Plan is what was done; without statuses and memory.
	Plan controllers.Plan
	// Verdicts are the reasons of the Models' conditions Ready.
	Verdicts map[string]string // "namespace/name" -> reason
}

// decoder keeps the parts of the lines so far.
type decoder struct {
	parts map[string]any
	bytes map[string]int // of each part's text
	total int
}

// take reads the next line.
func (d *decoder) take(line []byte) (Decision, error) {
	var r record
	if err := json.Unmarshal(line, &r); err != nil {
		return Decision{}, err
	}
	if r.Version != Version {
		return Decision{}, fmt.Errorf("it has version %d, this program reads %d: use an estiba of the version that wrote it", r.Version, Version)
	}
	if r.Full {
		d.parts, d.bytes, d.total = map[string]any{}, map[string]int{}, 0
	}
	if d.parts == nil {
		return Decision{}, errNoStart
	}
	for _, part := range r.Gone {
		d.total -= d.bytes[part]
		delete(d.bytes, part)
		delete(d.parts, part)
	}
	for part, text := range r.Set {
		v, err := decodePart(part, text)
		if err != nil {
			return Decision{}, fmt.Errorf("%s: %w", part, err)
		}
		d.total += len(text) - d.bytes[part]
		d.bytes[part], d.parts[part] = len(text), v
		if d.total > maxState {
			return Decision{}, fmt.Errorf("what it describes is larger than %d MiB", maxState>>20)
		}
	}
	out := d.assemble()
	out.Seq, out.Plan = r.Seq, r.Plan
	return out, nil
}

// of decodes a part's text as a T.
func of[T any](text []byte) (any, error) {
	var v T
	err := json.Unmarshal(text, &v)
	return v, err
}

var kinds = map[string]func([]byte) (any, error){
	kindHead: of[head], kindModel: of[v1alpha1.Model], kindPool: of[controllers.Pool], kindNamespace: of[map[string]string],
	kindWorker: of[controllers.Worker], kindClock: of[clock], kindGateway: of[worker.GatewayState], kindSent: of[worker.Assignment],
	kindInspection: of[controllers.Inspected], kindMemory: of[controllers.Memory], kindWorkerMemory: of[controllers.WorkerMemory],
	kindWorkerClock: of[clock], kindModelMemory: of[modelMemory], kindAwake: of[controllers.Awake], kindVerdict: of[string],
}

func decodePart(part string, text []byte) (any, error) {
	kind, _, _ := strings.Cut(part, "/")
	decode := kinds[kind]
	if decode == nil {
		return nil, fmt.Errorf("nobody knows what that is")
	}
	return decode(text)
}

// assemble puts the parts together. They are shared with the decisions before: nobody changes them.
func (d *decoder) assemble() Decision {
	out := Decision{Verdicts: map[string]string{}}
	s := &out.Seen
	s.Namespaces, s.Sent, s.Inspections = map[string]map[string]string{}, map[string]worker.Assignment{}, map[controllers.InspectKey]controllers.Inspected{}
	names := slices.Sorted(maps.Keys(d.parts))
	if m, ok := d.parts[kindMemory+"/"].(controllers.Memory); ok {
		s.Memory = m
	}
	s.Memory.Workers, s.Memory.Models, s.Memory.Awake = map[string]controllers.WorkerMemory{}, map[string]modelMemory{}, map[string]controllers.Awake{}
	for _, part := range names {
		kind, name, _ := strings.Cut(part, "/")
		switch v := d.parts[part].(type) {
		case head:
			s.Now, s.Epoch, s.Settled, s.Missing = v.Now, v.Epoch, v.Settled, v.Missing
		case v1alpha1.Model:
			s.Models = append(s.Models, v)
		case controllers.Pool:
			s.Pools = append(s.Pools, v)
		case map[string]string:
			s.Namespaces[name] = v
		case controllers.Worker:
			c, _ := d.parts[kindClock+"/"+name].(clock)
			v.Heard = c.Heard
			if v.Report != nil {
				report := c.moving(*v.Report)
				v.Report = &report
			}
			s.Workers = append(s.Workers, v)
		case worker.GatewayState:
			s.Gateways = append(s.Gateways, v)
		case worker.Assignment:
			s.Sent[name] = v
		case controllers.Inspected:
			var key controllers.InspectKey
			if key.UnmarshalText([]byte(name)) == nil {
				s.Inspections[key] = v
			}
		case controllers.WorkerMemory:
			c, _ := d.parts[kindWorkerClock+"/"+name].(clock)
			v.Last, v.Heard = c.moving(v.Last), c.Heard
			s.Memory.Workers[name] = v
		case modelMemory:
			s.Memory.Models[name] = v
		case controllers.Awake:
			s.Memory.Awake[name] = v
		case string:
			if kind == kindVerdict {
				out.Verdicts[name] = v
			}
		}
	}
	return out
}

// Write writes one decision as a line that needs none before it.
func Write(w io.Writer, seq int64, seen controllers.Seen, plan controllers.Plan) error {
	line, err := newEncoder().line(seq, seen, plan, true)
	if err != nil {
		return err
	}
	_, err = w.Write(line)
	return err
}
