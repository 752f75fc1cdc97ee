package history

import (
	"net/http"
	"sync"

	"github.com/estiba/estiba/controllers"
)

// Recorder keeps the last decisions. It may be used from several goroutines.
type Recorder struct {
	mu      sync.Mutex
	decided bool
	seen    controllers.Seen
	plan    controllers.Plan
}

// NewRecorder makes a Recorder that has been told nothing.
func NewRecorder() *Recorder { return &Recorder{} }

// Decided tells it a decision. It keeps references, and returns at once.
func (r *Recorder) Decided(seen controllers.Seen, plan controllers.Plan) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.seen, r.plan, r.decided = seen, plan, true
}

// Latest is the last decision; not ok: there was none.
func (r *Recorder) Latest() (seen controllers.Seen, plan controllers.Plan, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.seen, r.plan, r.decided
}

func (r *Recorder) serveHistory(w http.ResponseWriter, _ *http.Request) {
	http.Error(w, "not kept yet", http.StatusNotImplemented)
}

// stripped is seen without what no decision reads.
func stripped(seen controllers.Seen) controllers.Seen {
	models, pools := seen.Models, seen.Pools
	seen.Models, seen.Pools = nil, nil
	for _, m := range models {
		seen.Models = append(seen.Models, withoutExtras(m))
	}
	for _, p := range pools {
		seen.Pools = append(seen.Pools, withoutTemplate(p))
	}
	return seen
}
