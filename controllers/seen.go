package controllers

import (
	"cmp"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/estiba/estiba/api/v1alpha1"
	"github.com/estiba/estiba/api/worker"
	"github.com/estiba/estiba/internal/policy/scaling"
)

// Seen is all that one decision looks at.
type Seen struct {
	Now time.Time
	// Epoch of this leader; it stands in every assignment.
	Epoch int64
	// Settled is false while a new leader waits for the reports of running
	// workers. Until then nothing is decided.
	Settled bool

	Models []v1alpha1.Model
	Pools  []Pool
	// Namespaces has the labels of namespaces, for pools that select them.
	Namespaces map[string]map[string]string // name -> labels

	Workers  []Worker
	Gateways []worker.GatewayState
	// Sent is the last assignment handed over for each worker. Until the worker
	// reports it, what it names counts as taken.
	Sent map[string]worker.Assignment // worker -> assignment
	// Inspections are what workers read from sources, and what was asked and is under way.
	Inspections map[InspectKey]Inspected

	Memory Memory
}

// Pool is an InferencePool and what its template makes of it.
type Pool struct {
	v1alpha1.InferencePool
	// Hash of the pods that would be made now; pods with another one are out of date.
	Hash string
	// Invalid says why spec.template cannot be used; then no pods are made.
	Invalid string
	// Unchecked says why nobody knows yet whether the API server takes such pods; then no pod that is out of date goes.
	Unchecked string
	// Taken says which object, not the pool's, has a name that the pool needs; then no pods are made either.
	Taken string
	// Blocked says why the last pod could not be made (a quota, for example).
	Blocked string
}

// Key is the pool's "namespace/name".
func (p *Pool) Key() string { return p.Namespace + "/" + p.Name }

// barred says why no pods are made until somebody changes something.
func (p *Pool) barred() string { return cmp.Or(p.Invalid, p.Taken) }

// Worker is a worker and what it last reported.
type Worker struct {
	Name string // of the pod; no two workers share one
	Pool string // "namespace/name"
	Hash string // of the template it was made from
	// Running: its process has started, so that a report is to be expected.
	Running bool
	// Stopped: its process has ended, and another one is to be started in the same pod.
	Stopped bool
	// Failed: the pod has ended for good and holds nothing.
	Failed bool
	// Deleting since: the pod is being deleted. Zero: it is not.
	Deleting time.Time
	// Leaving says why its node is about to go away ("node n1 is cordoned"); empty: it is not.
	Leaving string
	// Unschedulable is the message of a pod that waits for a node.
	Unschedulable string
	// Waiting says what else a pod waits for ("container worker: ImagePullBackOff: ...").
	Waiting string
	// Successor: the pod was made in the place of a worker that had served.
	Successor bool
	// Models are the UIDs of Models that the pod is labelled with.
	Models []uid

	// Report is nil before the first one.
	Report    *worker.State
	Heard     time.Time // when it came; zero: now
	Connected bool      // the stream of reports is open; a silent worker keeps what it holds
	// Refusal is the last answer to an assignment that was not taken, if no later one was.
	Refusal *worker.Refusal
}

// InspectKey says which source was read where.
type InspectKey struct {
	Pool     string // "namespace/name"
	Revision string // of the Model's spec
}

// Inspected is the answer to an inspection.
type Inspected struct {
	Pending  bool   // asked, not answered
	Worker   string // that was asked
	At       time.Time
	Attempts int // in a row that ended with Result.Error
	Result   worker.Inspection
}

// Memory is what one decision leaves for the next. It starts empty with each
// process, and nothing that serves depends on it.
type Memory struct {
	Workers map[string]WorkerMemory  // worker -> ...
	Models  map[string]scaling.State // "namespace/name" -> ...
	Pools   map[string]int           // "namespace/name" -> successors asked for and not seen yet
}

// WorkerMemory is what is remembered of a worker.
type WorkerMemory struct {
	Last      worker.State // the last report, to see that the process changed and what it had been doing
	Heard     time.Time    // when it came
	Assigned  worker.Assignment
	IdleSince time.Time // nothing has been resident or running since; zero: not idle

	Pool         string    // "namespace/name", if a successor is to be made when the worker is gone
	Extra        bool      // it has not reported, and nobody served in its place
	Going        string    // why this worker is to go; empty: it stays
	DrainedSince time.Time // it takes no requests since; before that, its homes move elsewhere
}

// Plan is what to do. Carrying it out twice changes nothing.
type Plan struct {
	// Assignments to send: only those that the worker is not known to hold.
	Assignments map[string]worker.Assignment // worker -> assignment
	// Inspect asks workers to read headers.
	Inspect []Inspect
	// Create worker pods, so many per pool.
	Create map[string]int // "namespace/name" -> pods
	// Successors: so many of those that are created take the place of workers that had served.
	Successors map[string]int // "namespace/name" -> pods
	// Delete these worker pods; they are empty, or their time to drain is over.
	Delete []Deletion
	// Labels of worker pods that differ from what they should be.
	Labels map[string][]uid // worker -> Models
	// Budgets are how many workers of a pool must stay available.
	Budgets map[string]int32 // "namespace/name" -> minAvailable

	// Models and Pools have the status of each object, in the order of Seen.
	Models []v1alpha1.ModelStatus
	Pools  []v1alpha1.InferencePoolStatus

	// Again: look once more after so long, even if nothing is reported. 0: no need.
	Again time.Duration
	// Memory for the next decision.
	Memory Memory
}

// Inspect asks a worker to read a source's header.
type Inspect struct {
	Worker  string
	Key     InspectKey
	Request worker.InspectRequest
}

// Deletion is a worker pod to delete, and why.
type Deletion struct {
	Worker string
	Reason string
}

type uid = types.UID
