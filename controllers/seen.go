package controllers

import (
	"cmp"
	"fmt"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/estiba/estiba/api/v1alpha1"
	"github.com/estiba/estiba/api/worker"
	"github.com/estiba/estiba/internal/policy/packing"
	"github.com/estiba/estiba/internal/policy/scaling"
)

// Seen is all that one decision looks at. Nothing in it, or in the Plan made of
// it, changes afterwards: what is kept of a decision is encoded later, beside
// the next one. In JSON it is what the history of decisions holds.
type Seen struct {
	Now time.Time `json:"now,omitzero"`
	// Epoch of this leader; it stands in every assignment.
	Epoch int64 `json:"epoch,omitzero"`
	// Settled is false while a new leader waits for the reports of running
	// workers. Until then nothing is decided.
	Settled bool `json:"settled,omitzero"`

	Models []v1alpha1.Model `json:"models,omitzero"`
	Pools  []Pool           `json:"pools,omitzero"`
	// Namespaces has the labels of namespaces, for pools that select them.
	Namespaces map[string]map[string]string `json:"namespaces,omitzero"` // name -> labels

	Workers  []Worker              `json:"workers,omitzero"`
	Gateways []worker.GatewayState `json:"gateways,omitzero"`
	// Sent is the last assignment handed over for each worker. Until the worker
	// reports it, what it names counts as taken.
	Sent map[string]worker.Assignment `json:"sent,omitzero"` // worker -> assignment
	// Inspections are what workers read from sources, and what was asked and is under way.
	Inspections map[InspectKey]Inspected `json:"inspections,omitzero"`
	// Missing are Models that workers hold and that are not in Models, although nobody is known to have deleted them.
	Missing map[string]bool `json:"missing,omitzero"` // "namespace/name"

	Memory Memory `json:"memory,omitzero"`

	// Score chooses among the devices with room, for simulations; nil: Estiba's own.
	Score packing.Score `json:"-"`
}

// Pool is an InferencePool and what its template makes of it.
type Pool struct {
	v1alpha1.InferencePool
	// Hash of the pods that would be made now; pods with another one are out of date.
	Hash string `json:"hash,omitzero"`
	// Invalid says why spec.template cannot be used; then no pods are made.
	Invalid string `json:"invalid,omitzero"`
	// Unchecked says why nobody knows yet whether the API server takes such pods; then no pod that is out of date goes.
	Unchecked string `json:"unchecked,omitzero"`
	// Taken says which object, not the pool's, has a name that the pool needs; then no pods are made either.
	Taken string `json:"taken,omitzero"`
	// Blocked says why the last pod could not be made (a quota, for example).
	Blocked string `json:"blocked,omitzero"`
	// Lasting: it is Blocked until somebody changes a spec or starts the process with more, whoever else goes.
	Lasting bool `json:"lasting,omitzero"`
	// Divided is how many bytes its workers divide among them, as those of one process do: with more workers each has
	// less. 0: each worker brings its own.
	Divided int64 `json:"dividedBytes,omitzero"`
	// Most is what Divided could be made by a flag of that process, and Limit that of its control group, which ends it
	// there (0: the machine has no more). Most 0: nobody knows.
	Most  int64 `json:"mostBytes,omitzero"`
	Limit int64 `json:"limitBytes,omitzero"`
	// Bound is how many bytes a flag of the process lets models use of each device; 0: of all that is there.
	Bound int64 `json:"boundBytes,omitzero"`
	// Sole: all pools of its process have one worker together, which takes all CUDA devices that the process is given.
	Sole bool `json:"sole,omitzero"`
	// MadeUp: no manifest has the pool; there is one since there has to be.
	MadeUp bool `json:"madeUp,omitzero"`
}

// Key is the pool's "namespace/name".
func (p *Pool) Key() string { return p.Namespace + "/" + p.Name }

// barred says why no pods are made until somebody changes something.
func (p *Pool) barred() string { return cmp.Or(p.Invalid, p.Taken) }

// between is spec.workers, as far as there can be so many.
func (p *Pool) between() (low, high int) {
	low, high = int(p.Spec.Workers.Min), int(p.Spec.Workers.Max)
	if p.Sole {
		return min(low, 1), min(high, 1)
	}
	return low, high
}

// Worker is a worker and what it last reported.
type Worker struct {
	Name string `json:"name,omitzero"` // of the pod; no two workers share one
	Pool string `json:"pool,omitzero"` // "namespace/name"
	Hash string `json:"hash,omitzero"` // of the template it was made from
	// Running: its process has started, so that a report is to be expected.
	Running bool `json:"running,omitzero"`
	// Stopped: its process has ended, and another one is to be started in the same pod.
	Stopped bool `json:"stopped,omitzero"`
	// Failed: the pod has ended for good and holds nothing.
	Failed bool `json:"failed,omitzero"`
	// Deleting since: the pod is being deleted. Zero: it is not.
	Deleting time.Time `json:"deleting,omitzero"`
	// Leaving says why its node is about to go away ("node n1 is cordoned"); empty: it is not.
	Leaving string `json:"leaving,omitzero"`
	// Unschedulable is the message of a pod that waits for a node.
	Unschedulable string `json:"unschedulable,omitzero"`
	// Waiting says what else a pod waits for ("container worker: ImagePullBackOff: ...").
	Waiting string `json:"waiting,omitzero"`
	// Successor: the pod was made in the place of a worker that had served.
	Successor bool `json:"successor,omitzero"`
	// Models are the UIDs of Models that the pod is labelled with.
	Models []uid `json:"models,omitzero"`
	// Disruption is what the pod's annotations say.
	Disruption Disruption `json:"disruption,omitzero"`

	// Report is nil before the first one.
	Report    *worker.State `json:"report,omitzero"`
	Heard     time.Time     `json:"heard,omitzero"`     // when it came; zero: now
	Connected bool          `json:"connected,omitzero"` // the stream of reports is open; a silent worker keeps what it holds
	// Refusal is the last answer to an assignment that was not taken, if no later one was.
	Refusal *worker.Refusal `json:"refusal,omitzero"`
}

// InspectKey says which source was read where.
type InspectKey struct {
	Pool     string // "namespace/name"
	Revision string // of the Model's spec
}

// MarshalText is "namespace/name revision": keys of JSON are text.
func (k InspectKey) MarshalText() ([]byte, error) { return []byte(k.Pool + " " + k.Revision), nil }

// UnmarshalText reads what MarshalText wrote.
func (k *InspectKey) UnmarshalText(text []byte) error {
	pool, revision, ok := strings.Cut(string(text), " ")
	if !ok {
		return fmt.Errorf("%q is no pool and revision", text)
	}
	k.Pool, k.Revision = pool, revision
	return nil
}

// Inspected is the answer to an inspection.
type Inspected struct {
	Pending  bool              `json:"pending,omitzero"` // asked, not answered
	Worker   string            `json:"worker,omitzero"`  // that was asked
	At       time.Time         `json:"at,omitzero"`
	Attempts int               `json:"attempts,omitzero"` // in a row that ended with Result.Error
	Result   worker.Inspection `json:"result,omitzero"`
}

// Memory is what one decision leaves for the next. It starts empty with each
// process, and nothing that serves depends on it.
type Memory struct {
	Workers map[string]WorkerMemory  `json:"workers,omitzero"` // worker -> ...
	Models  map[string]scaling.State `json:"models,omitzero"`  // "namespace/name" -> ...
	Pools   map[string]int           `json:"pools,omitzero"`   // "namespace/name" -> successors asked for and not seen yet

	Awake  map[string]Awake     `json:"awake,omitzero"`  // model -> how often it is awake
	Moves  map[string]Move      `json:"moves,omitzero"`  // model -> its move under way
	Moved  []Move               `json:"moved,omitzero"`  // that began within the last hour, the oldest first
	Rooms  map[string]Room      `json:"rooms,omitzero"`  // model -> the room that is being made for it
	Gave   map[string]Gave      `json:"gave,omitzero"`   // model without a home -> who has its room
	Short  map[string]time.Time `json:"short,omitzero"`  // "model worker" -> since when requests wait for a home that neighbours keep off its device
	Tried  map[string]time.Time `json:"tried,omitzero"`  // model -> when room was last looked for in vain
	Tidied time.Time            `json:"tidied,omitzero"` // when anything was last looked for that could be packed better

	Brakes map[string]Brake `json:"brakes,omitzero"` // pool -> what its brake remembers
	Asked  map[string]int64 `json:"asked,omitzero"`  // model -> generation that a person asked for and that has not got its homes yet
}

// Awake is the share of time in which a model is on a device and in use.
type Awake struct {
	Share float64   `json:"share"` // 0 to 1
	At    time.Time `json:"at,omitzero"`
}

// MoveKind says what a move is for.
type MoveKind string

// What moves are for.
const (
	MoveMakesRoom    MoveKind = "MakesRoom"    // for a model that fits nowhere
	MoveDefragments  MoveKind = "Defragments"  // so that what is free can be used
	MoveConsolidates MoveKind = "Consolidates" // so that a worker can be given back
	MoveSpreads      MoveKind = "Spreads"      // so that a device that is wanted all the time is wanted less
	MoveRelieves     MoveKind = "Relieves"     // requests wait, and neighbours in use keep the model off its device
)

// Move is a model's change of its home.
type Move struct {
	Model   string    `json:"model"`            // "namespace/name"
	Pool    string    `json:"pool"`             // "namespace/name"
	From    string    `json:"from"`             // worker
	To      string    `json:"to"`               // worker
	Devices []string  `json:"devices,omitzero"` // of To
	Bytes   int64     `json:"bytes,omitzero"`   // on each device
	Load    int       `json:"load,omitzero"`    // share of a device's time that it took when it began, in 1/1000
	Kind    MoveKind  `json:"kind"`
	For     string    `json:"for,omitzero"` // the model that waits for the room
	Reason  string    `json:"reason"`       // for people
	At      time.Time `json:"at"`           // when it began
	// Resident: the weights are to be on the device there before the model leaves the old home.
	Resident bool `json:"resident,omitzero"`
	// Free: it is on no device, and does not count towards what the pool may move.
	Free bool `json:"free,omitzero"`
}

// Room is where a model will have its home as soon as others have gone.
type Room struct {
	Worker  string    `json:"worker"`
	Devices []string  `json:"devices,omitzero"`
	Bytes   int64     `json:"bytes,omitzero"` // on each device
	Reason  string    `json:"reason"`         // for people: why there
	Since   time.Time `json:"since"`
	Leave   []string  `json:"leave,omitzero"` // models that give up their homes for it
	Then    []Move    `json:"then,omitzero"`  // moves that begin when those before them have ended
}

// Gave says to whom a model gave its room.
type Gave struct {
	To       string    `json:"to"`                // "namespace/name"
	Priority int       `json:"priority,omitzero"` // of To, in that pool
	Own      int       `json:"own,omitzero"`      // of the model
	Worker   string    `json:"worker"`
	Bytes    int64     `json:"bytes,omitzero"`
	At       time.Time `json:"at"`
}

// WorkerMemory is what is remembered of a worker.
type WorkerMemory struct {
	Last      worker.State      `json:"last,omitzero"`  // the last report, to see that the process changed and what it had been doing
	Heard     time.Time         `json:"heard,omitzero"` // when it came
	Assigned  worker.Assignment `json:"assigned,omitzero"`
	IdleSince time.Time         `json:"idleSince,omitzero"` // nothing has been resident or running since; zero: not idle

	Fit          bool      `json:"fit,omitzero"`          // some device of this process has not been lost
	Pool         string    `json:"pool,omitzero"`         // "namespace/name", if a successor is to be made when the worker is gone
	Extra        bool      `json:"extra,omitzero"`        // it has not reported, and nobody served in its place
	Unscheduled  time.Time `json:"unscheduled,omitzero"`  // the pod waits for a node since; zero: it does not
	Going        string    `json:"going,omitzero"`        // why this worker is to go; empty: it stays
	GoingSince   time.Time `json:"goingSince,omitzero"`   // its homes move elsewhere since
	DrainedSince time.Time `json:"drainedSince,omitzero"` // it takes no requests since; before that, its homes move elsewhere
}

// Plan is what to do. Carrying it out twice changes nothing.
type Plan struct {
	// Assignments to send: only those that the worker is not known to hold.
	Assignments map[string]worker.Assignment `json:"assignments,omitzero"` // worker -> assignment
	// Inspect asks workers to read headers.
	Inspect []Inspect `json:"inspect,omitzero"`
	// Create worker pods, so many per pool.
	Create map[string]int `json:"create,omitzero"` // "namespace/name" -> pods
	// Successors: so many of those that are created take the place of workers that had served.
	Successors map[string]int `json:"successors,omitzero"` // "namespace/name" -> pods
	// Delete these worker pods; they are empty, or their time to drain is over.
	Delete []Deletion `json:"delete,omitzero"`
	// Labels of worker pods that differ from what they should be.
	Labels map[string][]uid `json:"labels,omitzero"` // worker -> Models
	// Disruption: annotations of worker pods that differ from what they should be.
	Disruption map[string]Disruption `json:"disruption,omitzero"` // worker -> annotations
	// Moves that begin.
	Moves []Move `json:"moves,omitzero"`
	// Budgets are how many workers of a pool must stay available.
	Budgets map[string]int32 `json:"budgets,omitzero"` // "namespace/name" -> minAvailable

	// Models and Pools have the status of each object, in the order of Seen.
	Models []v1alpha1.ModelStatus         `json:"models,omitzero"`
	Pools  []v1alpha1.InferencePoolStatus `json:"pools,omitzero"`

	// Again: look once more after so long, even if nothing is reported. 0: no need.
	Again time.Duration `json:"again,omitzero"`
	// Memory for the next decision.
	Memory Memory `json:"memory,omitzero"`
}

// Inspect asks a worker to read a source's header.
type Inspect struct {
	Worker  string                `json:"worker,omitzero"`
	Key     InspectKey            `json:"key,omitzero"`
	Request worker.InspectRequest `json:"request,omitzero"`
}

// Deletion is a worker pod to delete, and why.
type Deletion struct {
	Worker string `json:"worker,omitzero"`
	Reason string `json:"reason,omitzero"`
}

type uid = types.UID
