package worker

import (
	"context"
	"fmt"
	"time"

	api "github.com/estiba/estiba/api/worker"
)

// patience is how long a request waits for room on a device that is crowded with homes
// which need not stay: some turns.
const patience = time.Minute

// Use gives a model that has a home here, and wakes it if it is not on its
// device; those who wait for it share one load. The caller gives it back with
// the function, once and always. The error is ErrLacks, an *UnavailableError, or ctx's.
//
// Where busy homes are in its way that need not stay, it waits for a pause of theirs or
// its turn (residency.Turn), a minute at most. Where it can have no room, or has failed,
// the answer is an *UnavailableError at once.
func (w *Worker) Use(ctx context.Context, model string) (*Loaded, func(), error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	var counted *home // who has this caller among those that wait
	stop := func() {
		if counted != nil {
			w.measure(model, time.Now())
			counted.waiting--
			counted.notify()
			counted = nil
			w.settle()
		}
	}
	defer stop()
	var tired <-chan time.Time
	late := false
	for {
		h := w.homes[model]
		if h == nil || h.gone || h.want.Draining || w.draining() {
			return nil, nil, fmt.Errorf("%w: %s", ErrLacks, model)
		}
		serving := h
		if h.old != nil && h.loaded == nil {
			serving = h.old // until then
		}
		if serving.serves() {
			l := serving.loaded
			w.measure(model, time.Now())
			serving.users++
			l.users++
			serving.notify()
			return l, w.giveBack(serving, l), nil
		}
		if counted != h {
			stop()
			counted = h
			if h.waiting == 0 {
				h.waitingSince = time.Now()
			}
			w.measure(model, time.Now())
			h.waiting++
			w.settle()
			h.notify()
			continue // something may have been decided
		}
		crowded := h.phase == api.PhaseRefused && h.crowded
		if h.phase == api.PhaseFailed || h.phase == api.PhaseRefused && !crowded || crowded && late {
			return nil, nil, &UnavailableError{Model: model, Reason: h.reason, Message: h.message, RetryAfter: h.retryAfter()}
		}
		if crowded && tired == nil {
			timer := time.NewTimer(patience)
			defer timer.Stop()
			tired = timer.C
		}
		changed := h.changed
		w.mu.Unlock()
		select {
		case <-changed:
			w.mu.Lock()
		case <-tired:
			w.mu.Lock()
			late = true
		case <-ctx.Done():
			w.mu.Lock()
			return nil, nil, fmt.Errorf("wait for model %s: %w", model, ctx.Err())
		}
	}
}

// serves: it takes requests at once. Worker.mu is held.
func (h *home) serves() bool {
	return h.loaded != nil && !h.gone && !h.want.Draining && h.evicted == "" && h.yields == "" && h.broken == nil && h.key == keyOf(h.want)
}

// giveBack is what the user of a loaded model calls at the end.
func (w *Worker) giveBack(h *home, l *Loaded) func() {
	given := false
	return func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		if given {
			return
		}
		given = true
		w.measure(h.want.Model, time.Now())
		h.users--
		l.users--
		h.lastUse = time.Now()
		l.unmap()
		w.settle()
		h.notify()
	}
}

// unmap closes the model of a program that has been closed, once nobody uses it. Worker.mu is held.
func (l *Loaded) unmap() {
	if l.closed && l.users == 0 && l.Model != nil {
		_ = l.Model.Close()
		l.Model = nil
	}
}

// retryAfter says when it is worth asking again. w.mu is held.
func (h *home) retryAfter() time.Duration {
	return min(max(time.Until(h.retry), time.Second), time.Minute)
}
