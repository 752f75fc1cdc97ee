package history

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/estiba/estiba/api/v1alpha1"
	"github.com/estiba/estiba/api/worker"
	"github.com/estiba/estiba/controllers"
	"github.com/estiba/estiba/internal/fixture"
)

const gib = 1 << 30

// cluster is a simulated cluster, seeded: models that come, go and change, on workers that do at once as they are told.
type cluster struct {
	random  *rand.Rand
	now     time.Time
	models  []v1alpha1.Model
	pool    v1alpha1.InferencePool
	workers map[string]*worker.State
	sizes   map[string]int64 // uri -> bytes
	memory  controllers.Memory
	asked   map[controllers.InspectKey]controllers.Inspected
	made    int
	labels  map[string][]types.UID
	notes   map[string]controllers.Disruption // of pods
}

func newCluster(seed uint64, models, workers int) *cluster {
	c := &cluster{random: rand.New(rand.NewPCG(seed, 0)), now: fixture.Epoch, pool: fixture.NewPool("p", int32(workers), int32(workers)),
		workers: map[string]*worker.State{}, sizes: map[string]int64{}, asked: map[controllers.InspectKey]controllers.Inspected{},
		labels: map[string][]types.UID{}, notes: map[string]controllers.Disruption{}}
	for range models {
		c.add()
	}
	return c
}

func (c *cluster) add() {
	c.made++
	m := fixture.NewModel(fmt.Sprintf("m%d", c.made))
	m.CreationTimestamp = metav1.NewTime(c.now.Truncate(time.Second))
	m.ResourceVersion = fmt.Sprint(c.made)
	m.Annotations = map[string]string{"kubectl.kubernetes.io/last-applied-configuration": "secret-of-annotations"}
	if c.random.IntN(2) == 0 {
		fixture.Autoscaled(0, 1)(&m)
	}
	c.sizes[m.Spec.Source.URI] = int64(1+c.random.IntN(9)) * gib
	c.models = append(c.models, m)
}

// step is one second: what is decided on, and what is decided, which is carried out.
func (c *cluster) step() (controllers.Seen, controllers.Plan) {
	c.now = c.now.Add(time.Second)
	seen := controllers.Seen{Now: c.now, Epoch: 1, Settled: true, Sent: map[string]worker.Assignment{},
		Pools: []controllers.Pool{{InferencePool: c.pool, Hash: "h"}}, Memory: c.memory, Inspections: map[controllers.InspectKey]controllers.Inspected{}}
	seen.Models = append(seen.Models, c.models...)
	for k, v := range c.asked {
		seen.Inspections[k] = v
	}
	demand := worker.GatewayState{Gateway: "g", Time: c.now}
	for name, s := range c.workers {
		report := *s
		report.Time = c.now
		report.Homes = append([]worker.HomeState(nil), s.Homes...)
		for i := range report.Homes {
			h := &report.Homes[i]
			h.IdleSeconds, h.ResidentSeconds = c.random.Float64()*1000, c.random.Float64()*1000
		}
		seen.Workers = append(seen.Workers, controllers.Worker{Name: name, Pool: "default/p", Hash: "h", Running: true, Connected: true, Heard: c.now, Report: &report,
			Models: c.labels[name], Disruption: c.notes[name]})
	}
	if n := len(c.models); n > 0 {
		demand.Models = append(demand.Models, worker.ModelDemand{Model: "default/" + c.models[c.random.IntN(n)].Name, Held: 1})
	}
	seen.Gateways = []worker.GatewayState{demand}
	plan := controllers.Decide(seen)
	c.carryOut(plan)
	return seen, plan
}

func (c *cluster) carryOut(plan controllers.Plan) {
	c.memory = plan.Memory
	models := make([]v1alpha1.Model, len(c.models)) // what was seen does not change
	copy(models, c.models)
	c.models = models
	for i := range models {
		models[i].Status = plan.Models[i]
	}
	c.pool.Status = plan.Pools[0]
	for _, in := range plan.Inspect {
		c.asked[in.Key] = controllers.Inspected{At: c.now, Result: worker.Inspection{MaxTokens: 512, Footprint: worker.Footprint{WeightsBytes: c.sizes[in.Request.Source.URI]}}}
	}
	for name, a := range plan.Assignments {
		s := *c.workers[name]
		s.Epoch, s.Generation, s.Draining, s.Homes = a.Epoch, a.Generation, a.Drain, nil
		s.Devices = append([]worker.Device(nil), s.Devices...)
		s.Devices[0].UsedBytes = 0
		for _, h := range a.Homes {
			if h.Draining {
				continue
			}
			is := worker.HomeState{Model: h.Model, Revision: h.Revision, Devices: h.Devices, Phase: worker.PhaseIdle, Tier: worker.TierDisk,
				Footprint: worker.Footprint{WeightsBytes: c.sizes[h.Source.URI]}, MaxTokens: 512, WantResident: h.Resident}
			if h.Resident {
				is.Phase, is.Tier = worker.PhaseResident, worker.TierDevice
				s.Devices[0].UsedBytes += is.Footprint.Total()
			}
			s.Homes = append(s.Homes, is)
		}
		c.workers[name] = &s
	}
	maps.Copy(c.labels, plan.Labels)
	maps.Copy(c.notes, plan.Disruption)
	for range plan.Create["default/p"] {
		name := fmt.Sprintf("p-%d", len(c.workers))
		c.workers[name] = &worker.State{Worker: name, Pool: "default/p", Instance: name + ".1",
			Devices: []worker.Device{{Name: "gpu-0", Kind: "cuda", ExtentBytes: 2 << 20, CapacityBytes: 80 * gib}}, Homes: []worker.HomeState{}}
	}
	for _, d := range plan.Delete {
		delete(c.workers, d.Worker)
	}
}

// churn changes a share of the models.
func (c *cluster) churn(n int) {
	for range n {
		if len(c.models) > 0 {
			i := c.random.IntN(len(c.models))
			c.models = append(append([]v1alpha1.Model(nil), c.models[:i]...), c.models[i+1:]...)
		}
		c.add()
	}
}
