package standalone

import (
	"maps"
	"slices"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	dto "github.com/prometheus/client_model/go"
)

// metrics are those of the process, its gateway and its workers, whose series
// have a label with the worker's name.
type metrics struct {
	own *prometheus.Registry // of the process and the gateway

	mu      sync.Mutex
	workers map[string]*prometheus.Registry
}

func newMetrics() *metrics {
	m := &metrics{own: prometheus.NewRegistry(), workers: map[string]*prometheus.Registry{}}
	m.own.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// worker makes the registry of a worker.
func (m *metrics) worker(name string) *prometheus.Registry {
	m.mu.Lock()
	defer m.mu.Unlock()
	r := prometheus.NewRegistry()
	m.workers[name] = r
	return r
}

func (m *metrics) forget(name string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.workers, name)
}

// Gather implements prometheus.Gatherer.
func (m *metrics) Gather() ([]*dto.MetricFamily, error) {
	m.mu.Lock()
	all := prometheus.Gatherers{m.own}
	for _, name := range slices.Sorted(maps.Keys(m.workers)) {
		all = append(all, m.workers[name])
	}
	m.mu.Unlock()
	return all.Gather()
}
