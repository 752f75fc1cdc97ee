package server

import (
	"slices"

	"github.com/prometheus/client_golang/prometheus"

	api "github.com/estiba/estiba/api/worker"
	"github.com/estiba/estiba/runtime/worker"
)

// collector reads a worker's state when it is asked for metrics. The label
// model is a home's ("namespace/name"), so there are as many as Models. The names
// that begin with vllm: are those that dashboards and scalers for vLLM read.
type collector struct {
	w        *worker.Worker
	measured *measured
}

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(name, help, append([]string{"worker"}, labels...), nil)
}

var (
	deviceCapacity = desc("estiba_worker_device_capacity_bytes", "What models may use of a device.", "device")
	deviceUsed     = desc("estiba_worker_device_used_bytes", "What is admitted on a device.", "device")
	deviceLoad     = desc("estiba_worker_device_load", "The sum of the loads of a device's models, from 0 to 1.", "device")

	deviceMemory      = desc("estiba_device_memory_bytes", "Memory of a device by its own figures: total, free, and held by other processes.", "device", "kind")
	deviceUtilization = desc("estiba_device_utilization", "Share of time in which a device computes, from 0 to 1.", "device")
	devicePower       = desc("estiba_device_power_watts", "Power that a device draws.", "device")
	deviceTemperature = desc("estiba_device_temperature_celsius", "Temperature of a device.", "device")
	deviceThrottled   = desc("estiba_device_throttled", "1 for each reason why a device's clocks are lower than wanted.", "device", "reason")
	deviceHealth      = desc("estiba_device_health", "1 for the state that a device is in: Healthy, Degraded or Lost.", "device", "state")
	deviceEnergy      = desc("estiba_device_energy_joules_total", "Energy that a device has drawn since the worker began to watch it.", "device")
	energyJoules      = desc("estiba_energy_joules_total", "Energy of a device that is a model's, by the time of its steps.", "model", "device")
	energyIdle        = desc("estiba_energy_idle_joules_total", "Energy of a device while no model computed on it.", "device")

	modelLoad         = desc("estiba_model_load", "Share of its device's time that the model takes, from 0 to 1: a moving average over some 5 minutes.", "model")
	modelBusy         = desc("estiba_model_busy_seconds_total", "Time of its device that the model's steps took.", "model")
	modelRunning      = desc("estiba_model_requests_running", "Requests in the batch.", "model")
	modelWaiting      = desc("estiba_model_requests_waiting", "Requests queued at this worker.", "model")
	modelResident     = desc("estiba_model_resident", "1 if the model is on its device.", "model")
	modelMemory       = desc("estiba_model_memory_bytes", "What the model has in its device's account.", "model")
	modelKVBlocks     = desc("estiba_model_kv_blocks", "KV blocks of the model.", "model")
	modelKVUsed       = desc("estiba_model_kv_blocks_used", "KV blocks that hold sequences.", "model")
	modelRequests     = desc("estiba_model_requests_total", "Requests ended, whatever the reason.", "model")
	modelPrompt       = desc("estiba_model_prompt_tokens_total", "Tokens of prompts that have been computed or taken over.", "model")
	modelOutput       = desc("estiba_model_output_tokens_total", "Tokens generated.", "model")
	modelLoads        = desc("estiba_model_loads_total", "Loads onto a device.", "model")
	modelLoadFailures = desc("estiba_model_load_failures_total", "Loads that were admitted and failed.", "model")
	modelLoadSeconds  = desc("estiba_model_load_seconds_total", "Time taken by the loads that succeeded.", "model")

	modelQueries   = desc("estiba_model_prefix_queries_total", "Tokens of prompts looked up in the prefix cache.", "model")
	modelHits      = desc("estiba_model_prefix_hits_total", "Tokens found in the prefix cache.", "model")
	modelPreempted = desc("estiba_model_preemptions_total", "Times that a request gave up its KV blocks to an older one.", "model")
	modelTexts     = desc("estiba_model_texts_total", "Texts ended, by the reason.", "model", "reason")

	vllmRunning   = vllm("vllm:num_requests_running", "Requests in the batch.")
	vllmWaiting   = vllm("vllm:num_requests_waiting", "Requests queued.")
	vllmKVUsage   = vllm("vllm:kv_cache_usage_perc", "KV blocks in use, as a share from 0 to 1.")
	vllmPreempted = vllm("vllm:num_preemptions_total", "Times that a request gave up its KV blocks.")
	vllmPrompt    = vllm("vllm:prompt_tokens_total", "Tokens of prompts that have been computed or taken over.")
	vllmOutput    = vllm("vllm:generation_tokens_total", "Tokens generated.")
	vllmQueries   = vllm("vllm:prefix_cache_queries_total", "Tokens looked up in the prefix cache.")
	vllmHits      = vllm("vllm:prefix_cache_hits_total", "Tokens found in the prefix cache.")
	vllmSuccess   = vllm("vllm:request_success_total", "Texts ended, by the reason.", "finished_reason")
)

func vllm(name, help string, labels ...string) *prometheus.Desc {
	return desc(name, help, append([]string{"model_name", "engine"}, labels...)...)
}

// shown is a histogram under one of its names.
type shown struct {
	of   size
	desc *prometheus.Desc
}

var modelSizes = []shown{
	{firstToken, desc("estiba_model_first_token_seconds", "From a request's arrival at the worker to its first token.", "model")},
	{betweenTokens, desc("estiba_model_between_tokens_seconds", "From one token of a text to the next.", "model")},
	{requestTime, desc("estiba_model_request_seconds", "From a request's arrival at the worker to the end of a text.", "model")},
	{queueTime, desc("estiba_model_queue_seconds", "From a request's arrival at the worker to its first step.", "model")},
}

var vllmSizes = []shown{
	{firstToken, vllm("vllm:time_to_first_token_seconds", "From a request's arrival to its first token.")},
	{betweenTokens, vllm("vllm:inter_token_latency_seconds", "From one token of a text to the next.")},
	{betweenTokens, vllm("vllm:time_per_output_token_seconds", "The older name of vllm:inter_token_latency_seconds.")},
	{perToken, vllm("vllm:request_time_per_output_token_seconds", "The mean time between a text's tokens.")},
	{requestTime, vllm("vllm:e2e_request_latency_seconds", "From a request's arrival to the end of a text.")},
	{queueTime, vllm("vllm:request_queue_time_seconds", "From a request's arrival to its first step.")},
	{prefillTime, vllm("vllm:request_prefill_time_seconds", "From the first step to the first token.")},
	{decodeTime, vllm("vllm:request_decode_time_seconds", "From the first token to the last.")},
	{inferenceTime, vllm("vllm:request_inference_time_seconds", "From the first step to the last token.")},
	{promptTokens, vllm("vllm:request_prompt_tokens", "Tokens of a text's prompt.")},
	{outputTokens, vllm("vllm:request_generation_tokens", "Tokens of a text.")},
}

// engineLabel is what vLLM counts its engines by; here each model has one.
const engineLabel = "0"

func (c collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		deviceCapacity, deviceUsed, deviceLoad, deviceMemory, deviceUtilization, devicePower, deviceTemperature, deviceThrottled, deviceHealth, deviceEnergy, energyJoules, energyIdle,
		modelLoad, modelBusy, modelRunning, modelWaiting, modelResident, modelMemory, modelKVBlocks, modelKVUsed, modelRequests, modelPrompt, modelOutput, modelLoads, modelLoadFailures, modelLoadSeconds,
		modelQueries, modelHits, modelPreempted, modelTexts,
		vllmRunning, vllmWaiting, vllmKVUsage, vllmPreempted, vllmPrompt, vllmOutput, vllmQueries, vllmHits, vllmSuccess,
	} {
		ch <- d
	}
	for _, s := range slices.Concat(modelSizes, vllmSizes) {
		ch <- s.desc
	}
}

func (c collector) Collect(ch chan<- prometheus.Metric) {
	s, counters := c.w.State(), c.w.Counters()
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, append([]string{s.Worker}, labels...)...)
	}
	count := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, v, append([]string{s.Worker}, labels...)...)
	}
	c.measured.keep(func(home string) bool { _, ok := counters[home]; return ok })
	measures := func(home string, show []shown, reasons *prometheus.Desc, labels ...string) {
		m := c.measured.of(home)
		m.mu.Lock()
		defer m.mu.Unlock()
		for reason, n := range m.finished {
			count(reasons, float64(n), append(slices.Clone(labels), reason)...)
		}
		for _, h := range show {
			ch <- m.histogram(h.desc, h.of, append([]string{s.Worker}, labels...)...)
		}
	}
	for _, d := range s.Devices {
		gauge(deviceCapacity, float64(d.CapacityBytes), d.Name)
		gauge(deviceUsed, float64(d.UsedBytes), d.Name)
		gauge(deviceLoad, d.Load, d.Name)
		for _, state := range []api.HealthState{api.DeviceHealthy, api.DeviceDegraded, api.DeviceLost} {
			if d.Health.State == "" {
				break
			}
			is := 0.
			if d.Health.State == state {
				is = 1
			}
			gauge(deviceHealth, is, d.Name, string(state))
		}
		if r := d.Readings; r != nil {
			own(r, func(is *prometheus.Desc, v float64, labels ...string) {
				gauge(is, v, append([]string{d.Name}, labels...)...)
			})
			if r.EnergyJoules != nil && r.IdleJoules != nil {
				count(deviceEnergy, *r.EnergyJoules, d.Name)
				count(energyIdle, *r.IdleJoules, d.Name)
			}
		}
	}
	for _, e := range c.w.Energy() {
		count(energyJoules, e.Joules, e.Model, e.Device)
	}
	named := map[string]bool{} // values of model_name that are taken, or are some home's own
	for _, h := range s.Homes {
		named[h.Model] = true
	}
	for _, h := range s.Homes {
		resident, memory, usage := 0., 0., 0.
		if h.Tier == api.TierDevice {
			resident, memory = 1, float64(h.Footprint.Total())
		}
		if h.KVBlocks > 0 {
			usage = float64(h.KVUsed) / float64(h.KVBlocks)
		}
		gauge(modelLoad, h.Load, h.Model)
		gauge(modelRunning, float64(h.Running), h.Model)
		gauge(modelWaiting, float64(h.Waiting), h.Model)
		gauge(modelResident, resident, h.Model)
		gauge(modelMemory, memory, h.Model)
		gauge(modelKVBlocks, float64(h.KVBlocks), h.Model)
		gauge(modelKVUsed, float64(h.KVUsed), h.Model)

		// Under the name that clients send, which is what vLLM's label holds. Two
		// namespaces may have the same; then the first has it. None has another's own.
		name := h.Model
		if len(h.ServedNames) > 0 && !named[h.ServedNames[0]] {
			name = h.ServedNames[0]
			named[name] = true
		}
		n := counters[h.Model]
		gauge(vllmRunning, float64(h.Running), name, engineLabel)
		gauge(vllmWaiting, float64(h.Waiting), name, engineLabel)
		gauge(vllmKVUsage, usage, name, engineLabel)
		count(vllmPreempted, float64(n.Preempted), name, engineLabel)
		count(vllmPrompt, float64(n.PromptTokens), name, engineLabel)
		count(vllmOutput, float64(n.OutputTokens), name, engineLabel)
		count(vllmQueries, float64(n.PrefixQueries), name, engineLabel)
		count(vllmHits, float64(n.PrefixHits), name, engineLabel)
		measures(h.Model, vllmSizes, vllmSuccess, name, engineLabel)
	}
	for model, n := range counters {
		count(modelRequests, float64(n.Completed), model)
		count(modelPrompt, float64(n.PromptTokens), model)
		count(modelOutput, float64(n.OutputTokens), model)
		count(modelQueries, float64(n.PrefixQueries), model)
		count(modelHits, float64(n.PrefixHits), model)
		count(modelPreempted, float64(n.Preempted), model)
		measures(model, modelSizes, modelTexts, model)
		count(modelLoads, float64(n.Loads), model)
		count(modelLoadFailures, float64(n.LoadFailures), model)
		count(modelLoadSeconds, n.LoadSeconds, model)
		count(modelBusy, n.BusySeconds, model)
	}
}

// own are a device's own figures.
func own(r *api.Readings, gauge func(d *prometheus.Desc, v float64, labels ...string)) {
	gauge(deviceMemory, float64(r.TotalBytes), "total")
	gauge(deviceMemory, float64(r.FreeBytes), "free")
	gauge(deviceMemory, float64(r.OthersBytes), "others")
	for _, f := range []struct {
		d *prometheus.Desc
		v *float64
	}{{deviceUtilization, r.Utilization}, {devicePower, r.PowerWatts}, {deviceTemperature, r.TemperatureCelsius}} {
		if f.v != nil {
			gauge(f.d, *f.v)
		}
	}
	for _, reason := range r.Throttled {
		gauge(deviceThrottled, 1, reason)
	}
}
