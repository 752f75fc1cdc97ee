package standalone

import (
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	dto "github.com/prometheus/client_model/go"
)

// metrics are those of the process, its gateway and its workers; what workers
// export gets a label with their name, as a scrape of pods would give it.
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
	workers := maps.Clone(m.workers)
	m.mu.Unlock()
	all := prometheus.Gatherers{m.own}
	for _, name := range slices.Sorted(maps.Keys(workers)) {
		all = append(all, labelled(name, workers[name]))
	}
	return all.Gather()
}

func labelled(worker string, r *prometheus.Registry) prometheus.Gatherer {
	name := "worker"
	return prometheus.GathererFunc(func() ([]*dto.MetricFamily, error) {
		families, err := r.Gather()
		for _, f := range families {
			for _, metric := range f.Metric {
				metric.Label = append(metric.Label, &dto.LabelPair{Name: &name, Value: &worker})
				slices.SortFunc(metric.Label, func(a, b *dto.LabelPair) int { return strings.Compare(a.GetName(), b.GetName()) })
			}
		}
		return families, err
	})
}
