// Package simworker has workers that speak the wire of api/worker and run no
// model: what they hold, load and evict is decided as a real worker decides it
// (runtime/residency), and the time that it takes is made up. Thousands of them
// fit one process; each listens on a loopback address of its own, so that an
// operator finds them as it finds pods. Tests and the load generator use them.
// Start with Fleet.Start.
package simworker

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	api "github.com/estiba/estiba/api/worker"
)

// Port is where the operator expects a worker.
const Port = 8081

// Options of a Fleet. Each worker has one device.
type Options struct {
	// Token is what a worker of a pool asks for.
	Token func(pool string) string
	// Inspect says what the header of a source says; nil: Named.
	Inspect func(api.InspectRequest) api.Inspection
	// Listen takes an address for a worker, at Port; nil: one of the loopback network.
	Listen func() (net.Listener, error)
	// Device of each worker; without a capacity it is a GPU with 80 GiB.
	Device api.Device
	// Read is how long a worker takes to read a header.
	Read time.Duration
	// Bandwidth of loads, in bytes a second; 0: they take no time.
	Bandwidth int64
	// Answer is how long a request takes once its model is on the device.
	Answer time.Duration
	// Seed decides how much longer or shorter each load takes, by up to a fifth.
	Seed uint64
}

// Fleet is a number of simulated workers.
type Fleet struct {
	o      Options
	server *http.Server

	mu      sync.Mutex
	workers map[string]*Worker // name -> worker
	at      map[string]*Worker // address -> worker
	last    int                // address that was given away
}

// New makes a Fleet without workers.
func New(o Options) *Fleet {
	if o.Inspect == nil {
		o.Inspect = Named
	}
	if o.Device.CapacityBytes == 0 {
		o.Device = api.Device{Name: "gpu-0", Kind: "cuda", ExtentBytes: 2 << 20, CapacityBytes: 80 << 30}
	}
	f := &Fleet{o: o, workers: map[string]*Worker{}, at: map[string]*Worker{}}
	if o.Listen == nil {
		f.o.Listen = f.listen
	}
	f.server = &http.Server{Handler: f.handler(), ReadHeaderTimeout: 10 * time.Second}
	return f
}

// Start starts a worker on an address of its own.
func (f *Fleet) Start(name, pool string) (*Worker, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.workers[name] != nil {
		return nil, fmt.Errorf("start simulated worker %s: it runs already", name)
	}
	l, err := f.o.Listen()
	if err != nil {
		return nil, fmt.Errorf("start simulated worker %s: %w", name, err)
	}
	host, _, _ := net.SplitHostPort(l.Addr().String())
	w := &Worker{o: &f.o, name: name, pool: pool, address: host, listener: l, ended: make(chan struct{})}
	w.Restart()
	f.workers[name], f.at[host] = w, w
	go func() { _ = f.server.Serve(l) }() // until the listener is closed
	return w, nil
}

// listen takes the next loopback address whose port is free: 127.80.0.1 to 127.99.255.250.
func (f *Fleet) listen() (net.Listener, error) {
	const each, networks = 250, 20 * 256
	var err error
	for range 1000 {
		f.last = (f.last + 1) % (networks * each)
		var l net.Listener
		third := f.last / each
		address := fmt.Sprintf("127.%d.%d.%d", 80+third/256, third%256, 1+f.last%each)
		if l, err = net.Listen("tcp", net.JoinHostPort(address, strconv.Itoa(Port))); err == nil {
			return l, nil
		}
	}
	return nil, err
}

// Worker is the one of a name; nil: there is none.
func (f *Fleet) Worker(name string) *Worker {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.workers[name]
}

// Workers are all of them, in no order.
func (f *Fleet) Workers() []*Worker {
	f.mu.Lock()
	defer f.mu.Unlock()
	all := make([]*Worker, 0, len(f.workers))
	for _, w := range f.workers {
		all = append(all, w)
	}
	return all
}

// Stop ends a worker as a pod ends: its streams break, and nothing answers at its address.
func (f *Fleet) Stop(name string) {
	f.mu.Lock()
	w := f.workers[name]
	if w != nil {
		delete(f.workers, name)
		delete(f.at, w.address)
	}
	f.mu.Unlock()
	if w != nil {
		w.stop()
	}
}

// Close ends all workers.
func (f *Fleet) Close() {
	for _, w := range f.Workers() {
		f.Stop(w.name)
	}
	f.server.Close()
}

// of is the worker at the address that a request came to.
func (f *Fleet) of(r *http.Request) *Worker {
	a, _ := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
	if a == nil {
		return nil
	}
	host, _, _ := net.SplitHostPort(a.String())
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.at[host]
}

// Named reads the size of a model from the end of its name: file:///models/a-7Gi
// needs 7 GiB. Other names do not exist.
func Named(r api.InspectRequest) api.Inspection {
	name := strings.TrimRight(r.Source.URI, "/")
	bytes, ok := size(name[strings.LastIndexAny(name, "/-")+1:])
	if !ok {
		return api.Inspection{Error: &api.InspectError{Reason: api.ReasonSourceUnavailable, Message: r.Source.URI + ": no such file."}}
	}
	return api.Inspection{Architecture: "Simulated", MaxTokens: max(r.Context.MaxTokens, 512), Footprint: api.Footprint{WeightsBytes: bytes}}
}

// size reads "7Gi", "300Mi" or "64Ki".
func size(s string) (int64, bool) {
	for i, unit := range []string{"Ki", "Mi", "Gi"} {
		if digits, ok := strings.CutSuffix(s, unit); ok {
			n, err := strconv.ParseInt(digits, 10, 32)
			return n << (10 * (i + 1)), err == nil && n > 0
		}
	}
	return 0, false
}

// pause waits; false: ctx ended first.
func pause(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return ctx.Err() == nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
