package controllers

import (
	"github.com/prometheus/client_golang/prometheus"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/estiba/estiba/api/v1alpha1"
	"github.com/estiba/estiba/internal/status"
)

// metrics of the operator. The callers of decisions record them.
type metrics struct {
	decisions   prometheus.Histogram
	models      *prometheus.GaugeVec // reason
	placed      *prometheus.GaugeVec // placed
	waiting     prometheus.Gauge
	workers     *prometheus.GaugeVec   // pool, state
	created     *prometheus.CounterVec // pool
	deleted     *prometheus.CounterVec // pool
	moves       *prometheus.CounterVec // pool, kind
	assignments prometheus.Counter
	writes      *prometheus.CounterVec // kind
	epoch       prometheus.Gauge
}

func newMetrics(r prometheus.Registerer) *metrics {
	m := &metrics{
		decisions: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "estiba_operator_decision_seconds",
			Help: "Time that one placement decision took.", Buckets: prometheus.ExponentialBuckets(1e-5, 4, 10)}),
		models: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "estiba_operator_models",
			Help: "Models by the reason of their Ready condition."}, []string{"reason"}),
		placed: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "estiba_operator_placed_models",
			Help: "Models that have as many homes as are wanted (true), and those that have not."}, []string{"placed"}),
		waiting: prometheus.NewGauge(prometheus.GaugeOpts{Name: "estiba_operator_statuses_waiting",
			Help: "Statuses of Models that were decided and are not written to the API yet."}),
		workers: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "estiba_operator_workers",
			Help: "Worker pods of a pool, all and ready."}, []string{"pool", "state"}),
		created: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "estiba_operator_pods_created_total",
			Help: "Worker pods created."}, []string{"pool"}),
		deleted: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "estiba_operator_pods_deleted_total",
			Help: "Worker pods deleted."}, []string{"pool"}),
		moves: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "estiba_operator_moves_total",
			Help: "Moves of Models that began, by what they are for."}, []string{"pool", "kind"}),
		assignments: prometheus.NewCounter(prometheus.CounterOpts{Name: "estiba_operator_assignments_total",
			Help: "Assignments handed over for workers."}),
		writes: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "estiba_operator_status_writes_total",
			Help: "Statuses written to the API."}, []string{"kind"}),
		epoch: prometheus.NewGauge(prometheus.GaugeOpts{Name: "estiba_operator_epoch",
			Help: "Epoch of this leader's assignments; 0 while it does not lead."}),
	}
	r.MustRegister(m.decisions, m.models, m.placed, m.waiting, m.workers, m.created, m.deleted, m.moves, m.assignments, m.writes, m.epoch)
	return m
}

// count sets the gauges from a plan, and counts what begins with it.
func (m *metrics) count(seen Seen, plan Plan) {
	for _, v := range plan.Moves {
		m.moves.WithLabelValues(v.Pool, string(v.Kind)).Inc()
	}
	reasons := map[string]int{}
	for _, s := range plan.Models {
		if c := status.Find(s.Conditions, v1alpha1.ConditionReady); c != nil {
			reasons[c.Reason]++
		}
	}
	m.models.Reset()
	for reason, n := range reasons {
		m.models.WithLabelValues(reason).Set(float64(n))
	}
	placed := map[bool]int{}
	for _, s := range plan.Models {
		c := status.Find(s.Conditions, v1alpha1.ConditionPlaced)
		placed[c != nil && c.Status == metav1.ConditionTrue]++
	}
	m.placed.WithLabelValues("true").Set(float64(placed[true]))
	m.placed.WithLabelValues("false").Set(float64(placed[false]))
	m.workers.Reset()
	for i, s := range plan.Pools {
		m.workers.WithLabelValues(seen.Pools[i].Key(), "all").Set(float64(s.Workers))
		m.workers.WithLabelValues(seen.Pools[i].Key(), "ready").Set(float64(s.ReadyWorkers))
	}
}
