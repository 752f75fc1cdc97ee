package gateway

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/estiba/estiba/internal/policy/routing"
)

// waiter is a held request.
type waiter struct {
	tried *tries
	bytes int        // of its body, in memory
	let   chan *home // one answer; nil: look again, the model has changed
}

// tries are the workers that did not take a request. One is tried again once it
// has reported since.
type tries struct {
	count   int
	workers []string
	at      []time.Time // same index
}

func (t *tries) add(worker string, now time.Time) {
	t.count++
	if i := slices.Index(t.workers, worker); i >= 0 {
		t.at[i] = now
		return
	}
	t.workers, t.at = append(t.workers, worker), append(t.at, now)
}

// excluded are the workers of homes that must not be tried now.
func (t *tries) excluded(homes []home) []string {
	var names []string
	for i, name := range t.workers {
		if slices.ContainsFunc(homes, func(h home) bool { return h.worker == name && !h.seen.After(t.at[i]) }) {
			names = append(names, name)
		}
	}
	return names
}

// acquire finds a home for one request of m, holding it until there is one. The
// caller must release it. Whoever came first goes first.
func (g *Gateway) acquire(ctx context.Context, q *request) (*home, *refusal) {
	m, tried := q.m, &q.tried
	g.mu.Lock()
	for {
		if refused := g.refuses(m); refused != nil {
			g.mu.Unlock()
			return nil, refused
		}
		if len(m.held) == 0 {
			if h := g.pick(m, tried); h != nil {
				g.mu.Unlock()
				return h, nil
			}
		}
		if m.spec.vain() {
			refused := unavailable(m.spec, 60, "cannot be served")
			g.mu.Unlock()
			return nil, refused
		}
		if len(m.held) >= g.o.MaxHeld {
			g.mu.Unlock()
			return nil, &refusal{
				status: http.StatusTooManyRequests, kind: kindLimit, code: "too_many_held", retry: 5,
				message: fmt.Sprintf("%d requests wait for the model %s already. Try again later.", g.o.MaxHeld, m.key),
			}
		}
		w := &waiter{tried: tried, bytes: q.body.size, let: make(chan *home, 1)}
		if m.heldBytes()+w.bytes > maxHeldBytes {
			g.mu.Unlock()
			return nil, &refusal{
				status: http.StatusTooManyRequests, kind: kindLimit, code: "too_many_held", retry: 5,
				message: fmt.Sprintf("The requests that wait for the model %s fill %d MiB already. Try again later.", m.key, maxHeldBytes>>20),
			}
		}
		m.held = append(m.held, w)
		if len(m.held) > 1 {
			g.letGo(m) // those in front may wait for other workers
		}
		g.mu.Unlock()

		expired := time.NewTimer(time.Until(q.expires))
		var ended bool
		select {
		case h := <-w.let:
			if h != nil {
				expired.Stop()
				return h, nil
			}
		case <-ctx.Done():
			ended = true
		case <-expired.C:
			ended = true
		}
		expired.Stop()
		g.mu.Lock()
		if !ended {
			continue
		}
		if i := slices.Index(m.held, w); i >= 0 {
			m.held = slices.Delete(m.held, i, i+1)
		} else if h := <-w.let; h != nil { // let go at the same moment
			if ctx.Err() == nil {
				g.mu.Unlock()
				return h, nil
			}
			g.give(m, h)
		}
		refused := unavailable(m.spec, 10, fmt.Sprintf("had no replica that could take the request within %s", g.o.HoldTimeout))
		g.mu.Unlock()
		return nil, refused
	}
}

// heldBytes are those of the bodies that wait for m. Called with mu held.
func (m *model) heldBytes() int {
	n := 0
	for _, w := range m.held {
		n += w.bytes
	}
	return n
}

// refuses says why m takes no requests at all, or nil. Called with mu held.
func (g *Gateway) refuses(m *model) *refusal {
	switch {
	case m.gone:
		return &refusal{
			status: http.StatusNotFound, kind: kindInvalid, code: "model_not_found", param: "model",
			message: fmt.Sprintf("The model %s has been removed.", m.key),
		}
	case m.spec.Suspended:
		return unavailable(m.spec, 60, "is suspended")
	}
	return nil
}

// pick chooses a home and counts the request there. Called with mu held.
func (g *Gateway) pick(m *model, tried *tries) *home {
	var room [8]routing.Candidate
	candidates := room[:0]
	for _, h := range m.homes {
		candidates = append(candidates, routing.Candidate{
			Worker: h.worker, Ready: h.ready, Connected: h.connected, Load: h.reported + *h.since,
		})
	}
	choice := routing.Pick(candidates, tried.excluded(m.homes), m.turn)
	if choice.Home == routing.None {
		return nil
	}
	m.turn++
	m.inFlight++
	h := &m.homes[choice.Home]
	*h.since++
	return h
}

// another reports whether a request that h did not take could go elsewhere now.
func (g *Gateway) another(m *model, tried *tries) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	excluded := tried.excluded(m.homes)
	return slices.ContainsFunc(m.homes, func(h home) bool {
		return h.ready != routing.Unable && !slices.Contains(excluded, h.worker)
	})
}

// release ends a request's stay at a home.
func (g *Gateway) release(m *model, h *home) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.give(m, h)
}

func (g *Gateway) give(m *model, h *home) {
	m.inFlight--
	*h.since--
}

// letGo gives homes to held requests, first come, first served; one that has
// tried all there is does not keep the others. Called with mu held.
func (g *Gateway) letGo(m *model) {
	m.held = slices.DeleteFunc(m.held, func(w *waiter) bool {
		h := g.pick(m, w.tried)
		if h != nil {
			w.let <- h
		}
		return h != nil
	})
}

// dismiss makes held requests look at their model again. Called with mu held.
func (m *model) dismiss() {
	for _, w := range m.held {
		w.let <- nil
	}
	m.held = nil
}

// unavailable refuses a request of m with what its conditions say.
func unavailable(m Model, retry int, what string) *refusal {
	message := fmt.Sprintf("The model %s %s.", m.Key, what)
	if m.Reason != "" || m.Message != "" {
		message += fmt.Sprintf(" %s: %s", m.Reason, m.Message)
	}
	return &refusal{
		status: http.StatusServiceUnavailable, kind: kindServer, code: "model_unavailable", retry: retry,
		message: message,
	}
}
