package server

import (
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Measures are one model's texts in figures. A nil one measures nothing.
type Measures struct {
	mu       sync.Mutex
	finished map[string]int64 // reason, in vLLM's words -> texts
	sizes    [sizeCount]histogram
}

// size is one that is measured of each text. Times are in seconds.
type size int

const (
	firstToken    size = iota // from the request's arrival to the first token
	betweenTokens             // each but the first
	perToken                  // the mean of betweenTokens of a text
	requestTime               // from arrival to the end
	queueTime                 // from arrival to the first step
	prefillTime               // from the first step to the first token
	decodeTime                // from the first token to the last
	inferenceTime             // from the first step to the last token
	promptTokens
	outputTokens
	sizeCount
)

// The bounds are those of vLLM's histograms, so that its dashboards fit.
var (
	firstBounds   = []float64{.001, .005, .01, .02, .04, .06, .08, .1, .25, .5, .75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640, 2560}
	tokenBounds   = []float64{.01, .025, .05, .075, .1, .15, .2, .3, .4, .5, .75, 1, 2.5, 5, 7.5, 10, 20, 40, 80}
	requestBounds = []float64{.3, .5, .8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680}
	countBounds   = []float64{1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000}

	bounds = [sizeCount][]float64{
		firstToken: firstBounds, betweenTokens: tokenBounds, perToken: tokenBounds,
		requestTime: requestBounds, queueTime: requestBounds, prefillTime: requestBounds, decodeTime: requestBounds, inferenceTime: requestBounds,
		promptTokens: countBounds, outputTokens: countBounds,
	}
)

// histogram counts values by the first of some bounds that is not below them.
type histogram struct {
	counts []uint64 // by bound, then those above all
	sum    float64
}

func newMeasures() *Measures {
	m := &Measures{finished: map[string]int64{}}
	for i := range m.sizes {
		m.sizes[i].counts = make([]uint64, len(bounds[i])+1)
	}
	return m
}

// add counts a value. Measures.mu is held.
func (m *Measures) add(of size, x float64) {
	i, _ := slices.BinarySearch(bounds[of], x)
	m.sizes[of].counts[i]++
	m.sizes[of].sum += x
}

func (m *Measures) observe(of size, x float64) {
	if m == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.add(of, x)
}

// times are when a text's tokens came.
type times struct {
	of                   *Measures
	arrived              time.Time // the request
	started, first, last time.Time // step, token, token; zero: there was none
}

func (s *times) token(started, at time.Time) {
	if s.first.IsZero() {
		s.started, s.first = started, at
		s.of.observe(firstToken, at.Sub(s.arrived).Seconds())
	} else {
		s.of.observe(betweenTokens, at.Sub(s.last).Seconds())
	}
	s.last = at
}

// end says that a text has ended, and why.
func (s *times) end(prompt, output int, why string) {
	m := s.of
	if m == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.finished[why]++
	m.add(requestTime, time.Since(s.arrived).Seconds())
	m.add(promptTokens, float64(prompt))
	m.add(outputTokens, float64(output))
	if s.first.IsZero() {
		return
	}
	m.add(queueTime, s.started.Sub(s.arrived).Seconds())
	m.add(prefillTime, s.first.Sub(s.started).Seconds())
	m.add(decodeTime, s.last.Sub(s.first).Seconds())
	m.add(inferenceTime, s.last.Sub(s.started).Seconds())
	if output > 1 {
		m.add(perToken, s.last.Sub(s.first).Seconds()/float64(output-1))
	}
}

// histogram is one as Prometheus reads it.
func (m *Measures) histogram(d *prometheus.Desc, of size, labels ...string) prometheus.Metric {
	h := m.sizes[of]
	buckets, n := make(map[float64]uint64, len(bounds[of])), uint64(0)
	for i, bound := range bounds[of] {
		n += h.counts[i]
		buckets[bound] = n
	}
	return prometheus.MustNewConstHistogram(d, n+h.counts[len(bounds[of])], h.sum, buckets, labels...)
}

// measured are the Measures of all models of a worker.
type measured struct {
	mu  sync.Mutex
	all map[string]*Measures // home -> its own
}

func (m *measured) of(home string) *Measures {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.all[home] == nil {
		m.all[home] = newMeasures()
	}
	return m.all[home]
}

// keep forgets models that are not known any more.
func (m *measured) keep(known func(home string) bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for home := range m.all {
		if !known(home) {
			delete(m.all, home)
		}
	}
}
