package worker

import (
	"errors"
	"fmt"
	"log/slog"
	"time"

	api "github.com/estiba/estiba/api/worker"
	"github.com/estiba/estiba/runtime/backend"
	"github.com/estiba/estiba/runtime/device"
)

// deviceFailed hears of an error of a load, or of a step of a replica, and does what is to be done where it is the
// device's. One that is lost takes nothing any more. One of which only another process can make use ends the worker:
// Run returns the error, and the journal says what ran. w.mu is held.
func (w *Worker) deviceFailed(err error, replica string) {
	e, ok := errors.AsType[*backend.DeviceError](err)
	if !ok {
		return
	}
	d := w.device(e.Device)
	if d != nil && d.lost() != "" {
		return // whatever its driver says by now: no other process can make use of it either
	}
	if !e.Lost {
		w.log.Error("device of no more use to this process: the worker ends", "device", e.Device, "error", err)
		w.leaveJournal(replica)
		select {
		case w.broken <- e: // and not which model's step it was, which is logged
		default: // it ends already
		}
		return
	}
	if d == nil {
		return
	}
	d.failed = api.Health{State: api.DeviceLost, Reason: gone, Since: time.Now().UTC(),
		Message: fmt.Sprintf("%v; look for XIDs in the kernel's log, and reset the device or replace it", e.Err)}
	w.log.Error("device lost", "device", d.Name, "error", err)
	w.settle()
	w.changedAll()
}

// hangs is how long what runs on a lost device, and a driver that is to be let go of, may take to end: it may never.
const hangs = 5 * time.Second

// lose ends at once what a device that is lost has of requests, loads and unloads. Nobody can have an answer of it any more,
// whether or not its driver says so. w.mu is held.
func (w *Worker) lose(d *claimed) {
	select {
	case <-d.dead:
		return
	default:
	}
	close(d.dead)
	d.engine.Break(&backend.DeviceError{Device: d.Name, Lost: true, Err: errors.New(d.health().Reason)})
	for h := range w.all() {
		if h.key.device == d.Name && h.cancel != nil && (h.admitted || h.unloading) {
			h.cancel()
		}
	}
}

// awaits the end of something on the device; false: the device is lost, and it has not ended for too long.
func (d *claimed) awaits(end <-chan struct{}) bool {
	select {
	case <-end:
		return true
	case <-d.dead:
	}
	timer := time.NewTimer(hangs)
	defer timer.Stop()
	select {
	case <-end:
		return true
	case <-timer.C:
		return false
	}
}

// closeMonitor lets go of the driver, unless that takes too long.
func closeMonitor(m device.Monitor, log *slog.Logger) {
	closed := make(chan error, 1)
	go func() { closed <- m.Close() }()
	timer := time.NewTimer(hangs)
	defer timer.Stop()
	select {
	case err := <-closed:
		if err != nil {
			log.Warn("devices' monitor not closed", "error", err)
		}
	case <-timer.C:
		log.Warn("devices' monitor not closed: the driver does not answer", "after", hangs)
	}
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
