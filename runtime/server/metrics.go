package server

import (
	"github.com/prometheus/client_golang/prometheus"

	api "github.com/estiba/estiba/api/worker"
	"github.com/estiba/estiba/runtime/worker"
)

// collector reads a worker's state when it is asked for metrics. The label
// model is a home's ("namespace/name"), so there are as many as Models. The names
// that begin with vllm: are those that dashboards and scalers for vLLM read.
type collector struct{ w *worker.Worker }

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(name, help, append([]string{"worker"}, labels...), nil)
}

var (
	deviceCapacity = desc("estiba_worker_device_capacity_bytes", "What models may use of a device.", "device")
	deviceUsed     = desc("estiba_worker_device_used_bytes", "What is admitted on a device.", "device")

	modelRunning      = desc("estiba_model_requests_running", "Requests in the batch.", "model")
	modelWaiting      = desc("estiba_model_requests_waiting", "Requests queued at this worker.", "model")
	modelResident     = desc("estiba_model_resident", "1 if the model is on its device.", "model")
	modelMemory       = desc("estiba_model_memory_bytes", "What the model has in its device's account.", "model")
	modelKVBlocks     = desc("estiba_model_kv_blocks", "KV blocks of the model.", "model")
	modelKVUsed       = desc("estiba_model_kv_blocks_used", "KV blocks that hold sequences.", "model")
	modelRequests     = desc("estiba_model_requests_total", "Requests ended, whatever the reason.", "model")
	modelPrompt       = desc("estiba_model_prompt_tokens_total", "Tokens of the prompts of requests ended.", "model")
	modelOutput       = desc("estiba_model_output_tokens_total", "Tokens generated for requests ended.", "model")
	modelLoads        = desc("estiba_model_loads_total", "Loads onto a device.", "model")
	modelLoadFailures = desc("estiba_model_load_failures_total", "Loads that were admitted and failed.", "model")
	modelLoadSeconds  = desc("estiba_model_load_seconds_total", "Time taken by the loads that succeeded.", "model")

	vllmRunning = desc("vllm:num_requests_running", "Requests in the batch.", "model_name")
	vllmWaiting = desc("vllm:num_requests_waiting", "Requests queued.", "model_name")
	vllmKVUsage = desc("vllm:kv_cache_usage_perc", "KV blocks in use, as a share from 0 to 1.", "model_name")
	vllmPrompt  = desc("vllm:prompt_tokens_total", "Tokens of the prompts of requests ended.", "model_name")
	vllmOutput  = desc("vllm:generation_tokens_total", "Tokens generated for requests ended.", "model_name")
	vllmQueries = desc("vllm:prefix_cache_queries_total", "Tokens looked up in the prefix cache.", "model_name")
	vllmHits    = desc("vllm:prefix_cache_hits_total", "Tokens found in the prefix cache.", "model_name")
)

func (c collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		deviceCapacity, deviceUsed,
		modelRunning, modelWaiting, modelResident, modelMemory, modelKVBlocks, modelKVUsed, modelRequests, modelPrompt, modelOutput, modelLoads, modelLoadFailures, modelLoadSeconds,
		vllmRunning, vllmWaiting, vllmKVUsage, vllmPrompt, vllmOutput, vllmQueries, vllmHits,
	} {
		ch <- d
	}
}

func (c collector) Collect(ch chan<- prometheus.Metric) {
	s, counters := c.w.State(), c.w.Counters()
	gauge := func(d *prometheus.Desc, v float64, label string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, s.Worker, label)
	}
	count := func(d *prometheus.Desc, v float64, label string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, v, s.Worker, label)
	}
	for _, d := range s.Devices {
		gauge(deviceCapacity, float64(d.CapacityBytes), d.Name)
		gauge(deviceUsed, float64(d.UsedBytes), d.Name)
	}
	named := map[string]bool{}
	for _, h := range s.Homes {
		resident, memory, usage := 0., 0., 0.
		if h.Tier == api.TierDevice {
			resident, memory = 1, float64(h.Footprint.Total())
		}
		if h.KVBlocks > 0 {
			usage = float64(h.KVUsed) / float64(h.KVBlocks)
		}
		gauge(modelRunning, float64(h.Running), h.Model)
		gauge(modelWaiting, float64(h.Waiting), h.Model)
		gauge(modelResident, resident, h.Model)
		gauge(modelMemory, memory, h.Model)
		gauge(modelKVBlocks, float64(h.KVBlocks), h.Model)
		gauge(modelKVUsed, float64(h.KVUsed), h.Model)

		// Under the name that clients send, which is what vLLM's label holds. Two
		// namespaces may have the same; then the first has it.
		name := h.Model
		if len(h.ServedNames) > 0 && !named[h.ServedNames[0]] {
			name = h.ServedNames[0]
		}
		named[name] = true
		n := counters[h.Model]
		gauge(vllmRunning, float64(h.Running), name)
		gauge(vllmWaiting, float64(h.Waiting), name)
		gauge(vllmKVUsage, usage, name)
		count(vllmPrompt, float64(n.PromptTokens), name)
		count(vllmOutput, float64(n.OutputTokens), name)
		count(vllmQueries, float64(n.PrefixQueries), name)
		count(vllmHits, float64(n.PrefixHits), name)
	}
	for model, n := range counters {
		count(modelRequests, float64(n.Completed), model)
		count(modelPrompt, float64(n.PromptTokens), model)
		count(modelOutput, float64(n.OutputTokens), model)
		count(modelLoads, float64(n.Loads), model)
		count(modelLoadFailures, float64(n.LoadFailures), model)
		count(modelLoadSeconds, n.LoadSeconds, model)
	}
}
