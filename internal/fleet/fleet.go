// Package fleet talks to the workers: their states come in as streams, and
// assignments go out. Operator and gateway have a Fleet each, also when both
// live in one process. It decides nothing. Start with Fleet.
package fleet

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"reflect"
	"slices"
	"time"

	"github.com/estiba/estiba/api/worker"
)

// Target is a worker to talk to (or, for Gateways, a gateway). It must report
// itself under the name Worker: addresses of pods are used again by others.
type Target struct {
	Worker string // pod name
	Pool   string // "namespace/name"
	URL    string // "http://10.0.0.7:8081"
	Token  string // see PoolToken and GatewayToken
}

// Report is what is known of one target. A worker that is silent for 5 s is no
// longer Connected, but its last State is kept: silent is not dead.
type Report struct {
	Target
	State     worker.State // shared: read only
	Connected bool
	Seen      time.Time // when State came; zero: it never reported
	Err       error     // why it is not Connected; nil while the first try runs
}

// Options of a Fleet.
type Options struct {
	Log *slog.Logger // nil: nothing is logged
	// Clocks is how old a State may be while the worker says the same but for clocks and
	// averages: it is not read before. Report.Seen is the time of the State that was read. 0: each is read.
	Clocks time.Duration
}

// Fleet follows workers and sends them assignments.
type Fleet struct {
	peers[worker.State]
	senders map[string]*sender // worker -> what it is sent; guarded by mu
}

// sender hands one worker its assignments, in a goroutine of its own: the
// slowest worker blocks nobody.
type sender struct {
	wake    chan struct{}
	sent    *worker.Assignment // not yet reported back
	refusal *worker.Refusal
	stop    context.CancelFunc
}

// sendTimeout bounds one try to send; what was accepted but not reported is
// sent again after as long.
const sendTimeout = 5 * time.Second

// New makes a Fleet that knows no worker yet. Sync tells it which there are,
// and Sync(nil) ends all it does.
func New(client *http.Client, o Options) *Fleet {
	f := &Fleet{senders: map[string]*sender{}}
	f.peers = newPeers(client, o, worker.PathState, func(s worker.State) string { return s.Worker }, sameState)
	f.taken = f.reported
	return f
}

func newPeers[T any](client *http.Client, o Options, path string, name func(T) string, same func(a, b T) bool) peers[T] {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return peers[T]{
		client: client, log: o.Log, clocks: o.Clocks, path: path, name: name, same: same,
		changed: make(chan struct{}, 1),
		all:     map[string]*peer[T]{},
	}
}

// Sync makes these the workers of the fleet. A worker that stays keeps its
// report and what it is being sent, whatever else of its Target changes.
func (f *Fleet) Sync(targets []Target) {
	f.sync(targets)
	f.mu.Lock()
	defer f.mu.Unlock()
	for name, s := range f.senders {
		if f.all[name] == nil {
			s.stop()
			delete(f.senders, name)
		}
	}
}

// Client is what the fleet talks with; requests to its workers take the same way.
func (f *Fleet) Client() *http.Client { return f.client }

// Workers are all reports, in the order of names.
func (f *Fleet) Workers() []Report {
	var reports []Report
	f.sorted(func(p *peer[worker.State]) {
		reports = append(reports, Report{Target: p.Target, State: p.last, Connected: p.connected, Seen: p.seen, Err: p.err})
	})
	return reports
}

// Again is the latest report of a worker; false: there is none, or it says something else than s beside what moves by itself.
func (f *Fleet) Again(name string, s worker.State) (Report, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	p := f.all[name]
	if p == nil || p.seen.IsZero() || !sameState(p.last, s) {
		return Report{}, false
	}
	return Report{Target: p.Target, State: p.last, Connected: p.connected, Seen: p.seen, Err: p.err}, true
}

// Changed holds a signal after any change of what Workers, Sent and Refusals
// say, other than the passing of time; several changes may be one signal. It has
// one reader.
func (f *Fleet) Changed() <-chan struct{} { return f.changed }

// Send hands an assignment to a worker, instead of one that is still on its
// way. It is tried until the worker reports it, refuses it, is another process
// than the one it is meant for, or leaves the fleet. A worker that the fleet
// does not know is sent nothing.
func (f *Fleet) Send(name string, a worker.Assignment) {
	f.mu.Lock()
	defer f.mu.Unlock()
	to := f.all[name]
	if to == nil {
		return
	}
	s := f.senders[name]
	if s == nil {
		ctx, stop := context.WithCancel(context.Background())
		s = &sender{wake: make(chan struct{}, 1), stop: stop}
		f.senders[name] = s
		go f.send(ctx, name, s)
	}
	s.refusal = nil
	s.sent = &a
	if !to.seen.IsZero() {
		f.settle(s, to.last)
	}
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// Sent are the assignments that were sent and not yet reported back: what they
// name counts as taken.
func (f *Fleet) Sent() map[string]worker.Assignment {
	f.mu.Lock()
	defer f.mu.Unlock()
	sent := map[string]worker.Assignment{}
	for name, s := range f.senders {
		if s.sent != nil {
			sent[name] = *s.sent
		}
	}
	return sent
}

// Refusals are those with which workers answered the last assignment that they
// were sent. An operator whose epoch is old learns it here.
func (f *Fleet) Refusals() map[string]worker.Refusal {
	f.mu.Lock()
	defer f.mu.Unlock()
	refusals := map[string]worker.Refusal{}
	for name, s := range f.senders {
		if s.refusal != nil {
			refusals[name] = *s.refusal
		}
	}
	return refusals
}

// Inspect asks a worker to read the header of a source. The Inspection may say
// what is wrong with the source; an error is about the asking.
func (f *Fleet) Inspect(ctx context.Context, name string, r worker.InspectRequest) (worker.Inspection, error) {
	var in worker.Inspection
	t, ok := f.target(name)
	if !ok {
		return in, fmt.Errorf("inspect %s: no worker %q", r.Source.URI, name)
	}
	body, err := json.Marshal(r)
	if err != nil {
		return in, fmt.Errorf("inspect %s: %w", r.Source.URI, err)
	}
	res, err := request(ctx, f.client, t, http.MethodPost, worker.PathInspect, bytes.NewReader(body))
	if err != nil {
		return in, fmt.Errorf("inspect %s on %s: %w", r.Source.URI, name, err)
	}
	defer finish(res)
	if res.StatusCode != http.StatusOK {
		return in, fmt.Errorf("inspect %s on %s: %w", r.Source.URI, name, unexpected(res))
	}
	if err := json.NewDecoder(http.MaxBytesReader(nil, res.Body, maxLine)).Decode(&in); err != nil {
		return in, fmt.Errorf("inspect %s on %s: %w", r.Source.URI, name, err)
	}
	return in, nil
}

func (f *Fleet) target(name string) (Target, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	p := f.all[name]
	if p == nil {
		return Target{}, false
	}
	return p.Target, true
}

// reported is called with mu held for each report.
func (f *Fleet) reported(name string, s worker.State) {
	if to := f.senders[name]; to != nil {
		f.settle(to, s)
	}
}

// settle drops an assignment that s shows in force, or meant for a process that is gone.
func (f *Fleet) settle(to *sender, s worker.State) {
	a := to.sent
	if a == nil {
		return
	}
	if a.Instance != s.Instance || a.Epoch == s.Epoch && a.Generation == s.Generation {
		to.sent = nil
		f.signal()
	}
}

// send is the goroutine of one sender.
func (f *Fleet) send(ctx context.Context, name string, s *sender) {
	var again <-chan time.Time
	for failures := 0; ; {
		select {
		case <-ctx.Done():
			return
		case <-s.wake:
			failures = 0
		case <-again:
		}
		again = nil
		f.mu.Lock()
		a := s.sent
		f.mu.Unlock()
		t, known := f.target(name)
		if a == nil || !known {
			continue
		}
		refusal, err := f.put(ctx, t, *a)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			f.log.Info("assignment not delivered, will try again", "worker", name, "error", err)
			again = time.After(backoff(failures))
			failures++
		case refusal != nil:
			f.refused(s, a, refusal)
		default:
			again = time.After(sendTimeout)
		}
	}
}

// refused notes a refusal, unless another assignment has been sent meanwhile.
func (f *Fleet) refused(s *sender, a *worker.Assignment, r *worker.Refusal) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if s.sent == a {
		s.sent, s.refusal = nil, r
		f.signal()
	}
}

// put sends one assignment once.
func (f *Fleet) put(ctx context.Context, t Target, a worker.Assignment) (*worker.Refusal, error) {
	ctx, cancel := context.WithTimeout(ctx, sendTimeout)
	defer cancel()
	body, err := json.Marshal(a)
	if err != nil {
		return nil, err
	}
	res, err := request(ctx, f.client, t, http.MethodPut, worker.PathAssignment, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	defer finish(res)
	switch res.StatusCode {
	case http.StatusOK:
		// The State in the answer is left alone: it could overtake lines of the stream.
		return nil, nil
	case http.StatusConflict:
		var r worker.Refusal
		if err := json.NewDecoder(http.MaxBytesReader(nil, res.Body, 1<<20)).Decode(&r); err != nil {
			return nil, fmt.Errorf("read the refusal: %w", err)
		}
		return &r, nil
	}
	return nil, unexpected(res)
}

// sameState reports whether nothing differs but what moves by itself: clocks,
// averages, and less than a tenth of a load. A test holds that no other field is forgotten.
func sameState(a, b worker.State) bool {
	return a.Worker == b.Worker && a.Pool == b.Pool && a.Instance == b.Instance && a.Version == b.Version &&
		a.Epoch == b.Epoch && a.Generation == b.Generation && a.Draining == b.Draining && a.Missing == b.Missing &&
		slices.EqualFunc(a.Devices, b.Devices, sameDevice) && slices.EqualFunc(a.Homes, b.Homes, sameHome) &&
		(a.Previous == b.Previous || reflect.DeepEqual(a.Previous, b.Previous))
}

func sameDevice(a, b worker.Device) bool {
	if (a.Readings == nil) != (b.Readings == nil) || a.Readings != nil && a.Readings.TotalBytes != b.Readings.TotalBytes {
		return false
	}
	a.Load, b.Load = 0, 0
	a.Readings, b.Readings = nil, nil
	return a == b
}

func sameHome(a, b worker.HomeState) bool {
	return a.Model == b.Model && a.Revision == b.Revision && a.Phase == b.Phase && a.Tier == b.Tier &&
		a.Reason == b.Reason && a.Message == b.Message && a.Footprint == b.Footprint && a.MaxTokens == b.MaxTokens &&
		a.Running == b.Running && a.Waiting == b.Waiting && a.KVBlocks == b.KVBlocks && a.KVUsed == b.KVUsed &&
		a.Completed == b.Completed && int(a.Progress*10) == int(b.Progress*10) && a.LoadSeconds == b.LoadSeconds && a.WantResident == b.WantResident && a.Leaving == b.Leaving &&
		slices.Equal(a.ServedNames, b.ServedNames) && slices.Equal(a.Devices, b.Devices)
}

// Gateways follows gateways' streams of demand.
type Gateways struct{ peers[worker.GatewayState] }

// NewGateways makes a Gateways that knows no gateway yet.
func NewGateways(client *http.Client, o Options) *Gateways {
	return &Gateways{newPeers(client, o, worker.PathGatewayState,
		func(s worker.GatewayState) string { return s.Gateway },
		func(a, b worker.GatewayState) bool {
			a.Time, b.Time = time.Time{}, time.Time{}
			return reflect.DeepEqual(a, b)
		})}
}

// Sync makes these the gateways that are followed; Worker is the gateway's name.
func (g *Gateways) Sync(targets []Target) { g.sync(targets) }

// Changed is like Fleet.Changed.
func (g *Gateways) Changed() <-chan struct{} { return g.changed }

// Reports are those of connected gateways: a gateway that is gone wants nothing.
func (g *Gateways) Reports() []worker.GatewayState {
	var reports []worker.GatewayState
	g.sorted(func(p *peer[worker.GatewayState]) {
		if p.connected {
			reports = append(reports, p.last)
		}
	})
	return reports
}
