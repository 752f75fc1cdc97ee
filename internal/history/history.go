// Package history keeps what the placement loop decided, and on what. A
// Recorder is told each decision; Handler serves the latest one, and the last
// thousand, to whoever may reach the operator's loopback; Latest, Fetch and
// Inspect ask for them. Start with Recorder. Nothing here decides.
//
// What is kept is a Seen, as controllers.Decide was given it, and of its Plan
// what it did. Nothing that is secret leaves this package: of a source's address
// the user and the query are replaced, pools come without their template, and
// objects without annotations that are not Estiba's.
package history

import "github.com/estiba/estiba/controllers"

// Version of what is kept and served. A reader refuses another one.
const Version = 1

// Paths under which a decision can be read.
const (
	PathSnapshot = "/estiba/v1/snapshot" // GET -> Snapshot
	PathHistory  = "/estiba/v1/history"  // GET -> the last ones, as Read takes them
	PathInspect  = "/estiba/v1/inspect"  // POST InspectRequest -> worker.Inspection
)

// Snapshot is the latest decision: what it looked at, with the clocks, loads and readings of now, and what came of it.
type Snapshot struct {
	Version int              `json:"version"`
	Seen    controllers.Seen `json:"seen"`
	Plan    controllers.Plan `json:"plan"`
}
