package gateway

import (
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are the gateway's series. The label model is a Model's key, or empty
// for requests that named none that exists, so there are as many as Models.
type metrics struct {
	requests *prometheus.CounterVec
	duration *prometheus.HistogramVec
	retries  prometheus.Counter
}

func newMetrics(r prometheus.Registerer, g *Gateway) *metrics {
	m := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "estiba_gateway_requests_total",
			Help: "Requests ended, by model and status; 499: the client left; 502 also where an answer broke off.",
		}, []string{"model", "code"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "estiba_gateway_request_duration_seconds",
			Help:    "From a request's arrival to the end of its answer.",
			Buckets: []float64{.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 120, 300},
		}, []string{"model"}),
		retries: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "estiba_gateway_retries_total",
			Help: "Requests that a worker did not take and that went on to another, or waited.",
		}),
	}
	r.MustRegister(m.requests, m.duration, m.retries, demand{g})
	return m
}

func (m *metrics) ended(model string, status int, d time.Duration) {
	m.requests.WithLabelValues(model, strconv.Itoa(status)).Inc()
	m.duration.WithLabelValues(model).Observe(d.Seconds())
}

// forget drops the series of a model that was removed.
func (m *metrics) forget(model string) {
	m.requests.DeletePartialMatch(prometheus.Labels{"model": model})
	m.duration.DeletePartialMatch(prometheus.Labels{"model": model})
}

// demand collects what a gateway holds and has in flight, when asked.
type demand struct{ g *Gateway }

var (
	heldDesc = prometheus.NewDesc("estiba_gateway_held_requests",
		"Requests that wait for a worker.", []string{"model"}, nil)
	inFlightDesc = prometheus.NewDesc("estiba_gateway_in_flight_requests",
		"Requests at a worker whose answer has not ended.", []string{"model"}, nil)
	bufferedDesc = prometheus.NewDesc("estiba_gateway_buffered_bytes",
		"Memory that holds the bodies of requests.", nil, nil)
)

func (d demand) Describe(c chan<- *prometheus.Desc) {
	c <- heldDesc
	c <- inFlightDesc
	c <- bufferedDesc
}

func (d demand) Collect(c chan<- prometheus.Metric) {
	d.g.mu.Lock()
	defer d.g.mu.Unlock()
	for key, m := range d.g.models {
		c <- prometheus.MustNewConstMetric(heldDesc, prometheus.GaugeValue, float64(len(m.held)), key)
		c <- prometheus.MustNewConstMetric(inFlightDesc, prometheus.GaugeValue, float64(m.inFlight), key)
	}
	c <- prometheus.MustNewConstMetric(bufferedDesc, prometheus.GaugeValue, float64(d.g.buffered.Load()))
}
