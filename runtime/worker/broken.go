package worker

import (
	"errors"
	"fmt"
	"time"

	api "github.com/estiba/estiba/api/worker"
	"github.com/estiba/estiba/runtime/backend"
)

// deviceFailed hears of an error of a load, or of a step of a replica, and does what is to be done where it is the
// device's. One that is lost takes nothing any more. One of which only another process can make use ends the worker:
// Run returns the error, and the journal says what ran. w.mu must not be held.
func (w *Worker) deviceFailed(err error, replica string) {
	e, ok := errors.AsType[*backend.DeviceError](err)
	if !ok {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if !e.Lost {
		w.log.Error("device of no more use to this process: the worker ends", "device", e.Device, "error", err)
		w.leaveJournal(replica)
		select {
		case w.broken <- err:
		default: // it ends already
		}
		return
	}
	d := w.device(e.Device)
	if d == nil || d.failed.State != "" {
		return
	}
	d.failed = api.Health{State: api.DeviceLost, Reason: gone, Since: time.Now().UTC(),
		Message: fmt.Sprintf("%v; look for XIDs in the kernel's log, and reset the device or replace it", e.Err)}
	w.log.Error("device lost", "device", d.Name, "error", err)
	w.settle()
	w.changedAll()
}

// leaveJournal as the process after this one is to find it, though all requests end now: the replica's model was at
// work, or all that load. w.mu is held.
func (w *Worker) leaveJournal(replica string) {
	if w.journal == nil {
		return
	}
	w.note()
	for h := range w.all() {
		if h.loaded != nil && h.loaded.Replica == replica {
			e := entry{Instance: w.instance, AtWork: []atWork{{h.want.Model, h.key.revision, h.loadedAt}}}
			if err := w.journal.write(e); err != nil {
				w.log.Error("journal not written", "error", err)
			}
		}
	}
	w.journal = nil
}
