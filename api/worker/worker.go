// Package worker is the wire between Estiba's parts: what a worker is told to
// hold (Assignment), what it reports (State), what it reads from a source's
// header for the operator (Inspection), and what a gateway reports
// (GatewayState). docs/contract.md is its prose. Another engine that speaks
// this can stand in for ours. Unknown fields are ignored; sizes are in bytes,
// durations in seconds.
package worker

import "time"

// Paths of a worker's HTTP interface. Those under /estiba/ need the pool's
// token as "Authorization: Bearer TOKEN". The OpenAI paths serve the homes of
// the worker; HeaderModel says which one.
const (
	PathAssignment   = "/estiba/v1/assignment" // PUT Assignment -> 200 State, 409 Refusal
	PathState        = "/estiba/v1/state"      // GET -> State; with ?watch=true a stream of States, one a line (application/x-ndjson)
	PathInspect      = "/estiba/v1/inspect"    // POST InspectRequest -> 200 Inspection (Error inside)
	PathGatewayState = "/estiba/v1/gateway"    // of a gateway: GET -> GatewayState; ?watch=true as above

	// HeaderModel names the home ("namespace/name") that a forwarded request is for.
	HeaderModel = "Estiba-Model"
	// HeaderTenant says whose a forwarded request is, for fairness among tenants on a
	// device. Without it, it is the home's namespace's.
	HeaderTenant = "Estiba-Tenant"
	// HeaderRequestID is echoed, and made up where it is missing.
	HeaderRequestID = "X-Request-Id"
	// StatusLacks (421) answers a request for a model that the worker lacks or
	// drains. It is sent before the body is read, and nothing has been done.
	StatusLacks = 421
)

// Assignment is all a worker may hold. Sending it twice changes nothing; what
// it does not name goes away once its running requests have ended. It is
// refused if older than (Epoch, Generation) or meant for another process.
type Assignment struct {
	Epoch      int64  `json:"epoch"`      // grows with each leader
	Generation int64  `json:"generation"` // grows with each change by one leader
	Instance   string `json:"instance"`   // the process it is meant for, from State
	Drain      bool   `json:"drain,omitempty"`
	Homes      []Home `json:"homes"`
}

// Home is a model that a worker may hold on one of its devices.
type Home struct {
	Model       string   `json:"model"`    // "namespace/name"
	Revision    string   `json:"revision"` // of the spec; another one means: load anew
	ServedNames []string `json:"servedNames"`
	Source      Source   `json:"source"`
	Format      string   `json:"format"` // "AsStored"
	Context     Context  `json:"context"`
	Devices     []string `json:"devices"` // names from State.Devices
	// Resident asks for the weights to be on the device without waiting for a request.
	Resident bool `json:"resident"`
	// EvictionOrder: lower goes first. Never: NeverEvict.
	EvictionOrder int  `json:"evictionOrder"`
	NeverEvict    bool `json:"neverEvict,omitempty"`
	// IdleSeconds without a request after which a home that need not be Resident
	// leaves the device; 0 means never.
	IdleSeconds float64 `json:"idleSeconds,omitempty"`
	// Draining: take no new requests, end the running ones, then let it go.
	Draining bool `json:"draining,omitempty"`
}

// Source is where a model's files come from.
type Source struct {
	URI    string `json:"uri"`
	Digest string `json:"digest,omitempty"` // "sha256:..."
}

// Context is the room kept for requests.
type Context struct {
	MaxTokens int `json:"maxTokens,omitempty"` // 0: min(the model's, 8192)
	Sequences int `json:"sequences,omitempty"` // 0: 1
}

// Refusal is the body of 409: the assignment was not taken.
type Refusal struct {
	Reason     string `json:"reason"` // RefusedOlder or RefusedInstance
	Message    string `json:"message"`
	Epoch      int64  `json:"epoch"` // what the worker holds
	Generation int64  `json:"generation"`
	Instance   string `json:"instance"`
}

// Why an assignment was refused.
const (
	RefusedOlder    = "Older"
	RefusedInstance = "OtherInstance"
)

// State is everything a worker reports; each line of the stream is complete.
// A line is sent on a change (at most one in 50 ms) and at least once a second.
type State struct {
	Worker     string      `json:"worker"`   // pod name
	Pool       string      `json:"pool"`     // "namespace/name"
	Instance   string      `json:"instance"` // new with each process
	Version    string      `json:"version"`  // of the program
	Time       time.Time   `json:"time"`
	Epoch      int64       `json:"epoch"` // of the assignment in force
	Generation int64       `json:"generation"`
	Draining   bool        `json:"draining,omitempty"`
	Devices    []Device    `json:"devices"`
	Homes      []HomeState `json:"homes"`
	// Missing says in sentences what the worker was to be given and was not, a GPU, and what to do; empty: nothing.
	// Its device is the processor then, or one that is lost from the start.
	Missing string `json:"missing,omitempty"`
	// Previous is set if the process before this one, in the same pod, did not end by itself.
	Previous *Previous `json:"previous,omitempty"`
}

// Previous is what a process that died left behind.
type Previous struct {
	Instance string   `json:"instance"`
	AtWork   []AtWork `json:"atWork,omitempty"` // when it died
}

// AtWork is a model that was loading, or had requests.
type AtWork struct {
	Model    string `json:"model"`
	Revision string `json:"revision"`
	// ResidentSeconds are from its load to this report; 0 if it was loading.
	ResidentSeconds float64 `json:"residentSeconds,omitempty"`
}

// Tier says where a home's weights are.
type Tier string

// The tiers, nearest first.
const (
	TierDevice Tier = "Device"
	TierHost   Tier = "Host"
	TierDisk   Tier = "Disk"
	TierNone   Tier = "None" // not fetched
)

// Phase says what a home is doing.
type Phase string

// The phases of a home.
const (
	PhaseIdle     Phase = "Idle" // not on the device; a request loads it
	PhaseFetching Phase = "Fetching"
	PhaseLoading  Phase = "Loading"
	PhaseResident Phase = "Resident"
	PhaseDraining Phase = "Draining"
	PhaseRefused  Phase = "Refused" // does not fit the account now; Reason and Message say why
	PhaseFailed   Phase = "Failed"  // Reason and Message say why; tried again where that can help
)

// Why a home is Refused or Failed, or an Inspection has no footprint. The
// values are reasons of a Model's conditions too.
const (
	ReasonDoesNotFit        = "DoesNotFit"
	ReasonSourceUnavailable = "SourceUnavailable"
	ReasonDigestMismatch    = "DigestMismatch"
	ReasonInvalidModel      = "InvalidModel"
	ReasonUnsupportedModel  = "UnsupportedModel"
	ReasonDeviceLost        = "DeviceLost"
)

// HomeState is one home as the worker sees it.
type HomeState struct {
	Model       string    `json:"model"`
	Revision    string    `json:"revision"`
	ServedNames []string  `json:"servedNames,omitempty"`
	Devices     []string  `json:"devices"`
	Tier        Tier      `json:"tier"`
	Phase       Phase     `json:"phase"`
	Reason      string    `json:"reason,omitempty"`
	Message     string    `json:"message,omitempty"`
	Progress    float64   `json:"progress,omitempty"` // of Fetching or Loading, 0 to 1
	Footprint   Footprint `json:"footprint"`
	MaxTokens   int       `json:"maxTokens,omitempty"` // context, after clamping
	Running     int       `json:"running"`             // requests in the batch
	Waiting     int       `json:"waiting"`             // requests queued here
	KVBlocks    int       `json:"kvBlocks,omitempty"`
	KVUsed      int       `json:"kvUsed,omitempty"`
	Completed   int64     `json:"completed"` // requests ended since the process started
	// Load is the share of the device's time that the model's steps take, 0 to 1: a moving
	// average (time constant 5 min) that goes on while it sleeps, and begins with 0.
	Load        float64 `json:"load"`
	BusySeconds float64 `json:"busySeconds"` // time of all those steps, since the model came to this process
	// EnergyJoules is its part of the energy of its devices since then, and Tokens are those that it
	// has computed: of prompts, without what was taken over from the prefix cache, and of answers.
	// Joules per token are the one over the other; 0: the device does not tell its energy.
	EnergyJoules float64 `json:"energyJoules,omitempty"`
	Tokens       int64   `json:"tokens,omitempty"`
	// Awake is the share of time in which it has requests, 0 to 1: a moving average (time
	// constant 1 h) that begins with 0.25.
	Awake           float64 `json:"awake"`
	LoadSeconds     float64 `json:"loadSeconds,omitempty"` // that its last load onto the device took; 0: none yet
	IdleSeconds     float64 `json:"idleSeconds"`           // since the last request
	ResidentSeconds float64 `json:"residentSeconds"`       // since the load; 0 if not resident
	// Resident is what the assignment in force asks for; the other fields a new
	// leader needs to carry on are here too.
	WantResident bool `json:"wantResident,omitempty"`
	// Leaving: the assignment in force does not name the home, or drains it. One that is
	// Draining without that leaves its device to make room, and is at home here still.
	Leaving bool `json:"leaving,omitempty"`
}

// Footprint is what a replica needs on a device.
type Footprint struct {
	WeightsBytes   int64 `json:"weightsBytes"`
	KVFloorBytes   int64 `json:"kvFloorBytes"`
	WorkspaceBytes int64 `json:"workspaceBytes"`
	Measured       bool  `json:"measured,omitempty"`
}

// Total is weights, KV floor and workspace together.
func (f Footprint) Total() int64 { return f.WeightsBytes + f.KVFloorBytes + f.WorkspaceBytes }

// InspectRequest asks a worker to read a source's header.
type InspectRequest struct {
	Source  Source  `json:"source"`
	Format  string  `json:"format"`
	Context Context `json:"context"`
}

// Inspection is what the header says. Either Error is nil and the rest is
// filled in, or Error says what is wrong.
type Inspection struct {
	Error         *InspectError `json:"error,omitempty"`
	Architecture  string        `json:"architecture,omitempty"`
	Parameters    int64         `json:"parameters,omitempty"`
	ContextLength int           `json:"contextLength,omitempty"`
	MaxTokens     int           `json:"maxTokens,omitempty"` // after clamping
	Footprint     Footprint     `json:"footprint"`           // rounded up to ExtentBytes of the worker's first device
}

// InspectError says why a source has no footprint.
type InspectError struct {
	Reason  string `json:"reason"` // one of the Reason constants above
	Message string `json:"message"`
}

// GatewayState is what a gateway reports: the requests it holds because no
// worker could take them yet, and those it has in flight.
type GatewayState struct {
	Gateway  string        `json:"gateway"`
	Instance string        `json:"instance"`
	Time     time.Time     `json:"time"`
	Models   []ModelDemand `json:"models"` // only those with any demand
}

// ModelDemand is what clients want of one model.
type ModelDemand struct {
	Model    string `json:"model"`    // "namespace/name"
	Held     int    `json:"held"`     // wait for a worker
	InFlight int    `json:"inFlight"` // forwarded, not ended
}
