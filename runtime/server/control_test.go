package server

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	api "github.com/estiba/estiba/api/worker"
	"github.com/estiba/estiba/internal/fixture"
	"github.com/estiba/estiba/internal/source"
	kernels "github.com/estiba/estiba/kernels/cpu"
	"github.com/estiba/estiba/runtime/device"
	"github.com/estiba/estiba/runtime/worker"
)

// client gives up before the test's own limit would say less.
var client = &http.Client{Timeout: time.Minute}

// running is a whole worker on a loopback address, with a real store and device.
type running struct {
	t     *testing.T
	url   string
	token string // file
	root  string // folder of models
	stop  context.CancelFunc
	ended chan error

	generation int64
}

func startWorker(t *testing.T, change ...func(*worker.Options)) *running {
	t.Helper()
	dir := t.TempDir()
	r := &running{t: t, token: filepath.Join(dir, "token"), root: filepath.Join(dir, "models"), ended: make(chan error, 1)}
	if err := os.WriteFile(r.token, []byte("secret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(filepath.Join(r.root, "stories"), os.DirFS(fixture.Model("stories260K/hf-f32"))); err != nil {
		t.Fatal(err)
	}
	store := &source.Store{Roots: []string{r.root}, CacheDir: filepath.Join(dir, "cache")}
	log := slog.New(slog.DiscardHandler)
	options := worker.Options{
		Name: "w0", Pool: "default/cpu", Version: "test", Log: log,
		Devices: []device.Device{{Name: "cpu-0", Kind: "cpu", Extent: 64 << 10, Capacity: 64 << 20}},
		Fetch:   store.Fetch, Release: store.Release, Header: store.Header,
	}
	for _, f := range change {
		f(&options)
	}
	w, err := worker.New(options)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r.url = "http://" + l.Addr().String()
	var ctx context.Context
	ctx, r.stop = context.WithCancel(context.Background())
	go func() { r.ended <- Serve(ctx, l, w, Options{Token: TokenFile(r.token), Log: log}, 20*time.Second) }()
	t.Cleanup(func() {
		r.stop()
		select {
		case err := <-r.ended:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(30 * time.Second):
			t.Error("the worker did not end")
		}
	})
	return r
}

// call makes a request with the pool's token and returns status and body.
func (r *running) call(method, path, body string, header ...string) (int, string) {
	r.t.Helper()
	resp := r.open(method, path, body, header...)
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		r.t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

func (r *running) open(method, path, body string, header ...string) *http.Response {
	r.t.Helper()
	req, err := http.NewRequest(method, r.url+path, strings.NewReader(body))
	if err != nil {
		r.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer secret")
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := client.Do(req)
	if err != nil {
		r.t.Fatal(err)
	}
	return resp
}

func (r *running) state() api.State {
	r.t.Helper()
	var s api.State
	status, body := r.call("GET", api.PathState, "")
	if err := json.Unmarshal([]byte(body), &s); err != nil || status != 200 {
		r.t.Fatalf("%d %s: %v", status, body, err)
	}
	return s
}

func (r *running) assign(homes ...api.Home) {
	r.t.Helper()
	r.generation++
	a, _ := json.Marshal(api.Assignment{Epoch: 1, Generation: r.generation, Instance: r.state().Instance, Homes: homes})
	if status, body := r.call("PUT", api.PathAssignment, string(a)); status != 200 {
		r.t.Fatalf("%d %s", status, body)
	}
}

func (r *running) home(name string) api.Home {
	return api.Home{
		Model: "default/" + name, Revision: "1", ServedNames: []string{name}, Source: api.Source{URI: "file://" + filepath.Join(r.root, name)},
		Devices: []string{"cpu-0"}, Resident: true,
	}
}

// until reads the stream of states until one satisfies.
func (r *running) until(want func(map[string]api.HomeState) bool) map[string]api.HomeState {
	r.t.Helper()
	resp := r.open("GET", api.PathState+"?watch=true", "")
	defer resp.Body.Close()
	if got := resp.Header.Get("Content-Type"); got != "application/x-ndjson" {
		r.t.Errorf("content type %q", got)
	}
	time.AfterFunc(20*time.Second, func() { resp.Body.Close() })
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, 1<<20)
	last := ""
	for lines.Scan() {
		var s api.State
		if err := json.Unmarshal(lines.Bytes(), &s); err != nil {
			r.t.Fatal(err)
		}
		homes := map[string]api.HomeState{}
		for _, h := range s.Homes {
			homes[strings.TrimPrefix(h.Model, "default/")] = h
		}
		if want(homes) {
			return homes
		}
		last = lines.Text()
	}
	r.t.Fatalf("never came to be; last: %s", last)
	return nil
}

func (r *running) resident(name string) {
	r.t.Helper()
	r.until(func(h map[string]api.HomeState) bool { return h[name].Phase == api.PhaseResident })
}

func (r *running) complete(name string) (int, string) {
	r.t.Helper()
	return r.call("POST", "/v1/completions", `{"model":"`+name+`","prompt":"Once upon a time","max_tokens":8,"temperature":0}`, api.HeaderModel, "default/"+name)
}

func TestControlPathsNeedTheToken(t *testing.T) {
	r := startWorker(t)
	for _, path := range []string{"GET " + api.PathState, "GET " + api.PathState + "?watch=true", "PUT " + api.PathAssignment, "POST " + api.PathInspect} {
		method, path, _ := strings.Cut(path, " ")
		for _, token := range []string{"", "Bearer", "Bearer ", "Bearer other", "Bearer secre", "Bearer secret2", "Basic secret", "secret"} {
			if status, body := r.call(method, path, "{}", "Authorization", token); status != 401 || !strings.Contains(body, `"error"`) {
				t.Errorf("%s with %q: %d %s", path, token, status, body)
			}
		}
	}
	// A rotated token is read again; a lost one lets nobody in.
	os.WriteFile(r.token, []byte("newer"), 0o600)
	if status, _ := r.call("GET", api.PathState, ""); status != 401 {
		t.Errorf("old token: %d", status)
	}
	if status, _ := r.call("GET", api.PathState, "", "Authorization", "Bearer newer"); status != 200 {
		t.Errorf("new token: %d", status)
	}
	os.WriteFile(r.token, nil, 0o600)
	if status, _ := r.call("GET", api.PathState, "", "Authorization", "Bearer "); status != 500 {
		t.Errorf("empty token: %d", status)
	}
	for _, path := range []string{"/healthz", "/readyz", "/metrics", "/v1/models"} {
		if status, body := r.call("GET", path, "", "Authorization", ""); status != 200 {
			t.Errorf("%s: %d %s", path, status, body)
		}
	}
}

func TestBadAssignments(t *testing.T) {
	r := startWorker(t)
	instance := r.state().Instance
	for name, c := range map[string]struct {
		body   string
		status int
		says   string
	}{
		"no JSON":        {"{", 400, "JSON"},
		"other type":     {`{"homes": 7}`, 400, "homes"},
		"no model":       {`{"homes": [{}], "instance": "` + instance + `"}`, 400, "Home 0"},
		"twice":          {`{"homes": [{"model":"a/b"},{"model":"a/b"}], "instance": "` + instance + `"}`, 400, "Home 1"},
		"large":          {`{"instance":"` + strings.Repeat("x", maxAssignment) + `"}`, 413, "MiB"},
		"other instance": {`{"instance":"x"}`, 409, api.RefusedInstance},
		"unknown field":  {`{"epoch":2,"generation":7,"news":[1],"instance":"` + instance + `"}`, 200, `"epoch":2`},
		"older":          {`{"epoch":2,"generation":6,"instance":"` + instance + `"}`, 409, api.RefusedOlder},
	} {
		if name == "older" || name == "unknown field" {
			continue // in this order, below
		}
		if status, body := r.call("PUT", api.PathAssignment, c.body); status != c.status || !strings.Contains(body, c.says) {
			t.Errorf("%s: %d %s", name, status, body)
		}
	}
	if status, body := r.call("PUT", api.PathAssignment, `{"epoch":2,"generation":7,"news":[1],"instance":"`+instance+`"}`); status != 200 || !strings.Contains(body, `"epoch":2`) {
		t.Errorf("unknown field: %d %s", status, body)
	}
	if status, body := r.call("PUT", api.PathAssignment, `{"epoch":2,"generation":6,"instance":"`+instance+`"}`); status != 409 || !strings.Contains(body, api.RefusedOlder) {
		t.Errorf("older: %d %s", status, body)
	}
}

// breakModel copies the good model and spoils the copy.
func (r *running) breakModel(name string, spoil func(dir string)) api.Home {
	r.t.Helper()
	dir := filepath.Join(r.root, name)
	if err := os.CopyFS(dir, os.DirFS(filepath.Join(r.root, "stories"))); err != nil {
		r.t.Fatal(err)
	}
	spoil(dir)
	return r.home(name)
}

func edit(t *testing.T, path string, change func([]byte) []byte) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, change(b), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestBrokenModelsBesideAGoodOne(t *testing.T) {
	r := startWorker(t)
	replace := func(file, from, to string) func(string) {
		return func(dir string) {
			edit(t, filepath.Join(dir, file), func(b []byte) []byte {
				if !bytes.Contains(b, []byte(from)) {
					t.Fatalf("%s has no %s", file, from)
				}
				return bytes.Replace(b, []byte(from), []byte(to), 1)
			})
		}
	}
	wrongDigest := r.home("stories")
	wrongDigest.Model, wrongDigest.Source.Digest = "default/digest", "sha256:"+strings.Repeat("0", 64)
	missing := r.home("missing")
	outside := r.home("outside")
	outside.Source.URI = "file:///etc/passwd"
	large := r.home("stories")
	large.Model, large.Context = "default/large", api.Context{Sequences: 100_000}
	cases := map[string]struct {
		home   api.Home
		phase  api.Phase
		reason string
		says   string
	}{
		"truncated": {r.breakModel("truncated", func(dir string) { os.Truncate(filepath.Join(dir, "model.safetensors"), 100_000) }), api.PhaseFailed, api.ReasonInvalidModel, "model.safetensors"},
		"header": {r.breakModel("header", func(dir string) {
			edit(t, filepath.Join(dir, "model.safetensors"), func(b []byte) []byte {
				binary.LittleEndian.PutUint64(b, 2<<30)
				return b
			})
		}), api.PhaseFailed, api.ReasonInvalidModel, "model.safetensors"},
		"tensor":       {r.breakModel("tensor", replace("model.safetensors", "model.norm.weight", "model.norm.wait__")), api.PhaseFailed, api.ReasonInvalidModel, "model.norm.weight"},
		"shape":        {r.breakModel("shape", replace("config.json", `"hidden_size": 64`, `"hidden_size": 128`)), api.PhaseFailed, api.ReasonInvalidModel, ""},
		"architecture": {r.breakModel("architecture", replace("config.json", "LlamaForCausalLM", "NewestForCausalLM")), api.PhaseFailed, api.ReasonUnsupportedModel, "NewestForCausalLM"},
		"tokenizer":    {r.breakModel("tokenizer", replace("tokenizer.json", `"type": "BPE"`, `"type":"Unigram"`)), api.PhaseFailed, api.ReasonUnsupportedModel, "Unigram"},
		"noconfig":     {r.breakModel("noconfig", func(dir string) { os.Remove(filepath.Join(dir, "config.json")) }), api.PhaseFailed, api.ReasonInvalidModel, "config.json"},
		"notjson":      {r.breakModel("notjson", func(dir string) { os.WriteFile(filepath.Join(dir, "config.json"), []byte("<html>"), 0o644) }), api.PhaseFailed, api.ReasonInvalidModel, "config.json"},
		"empty":        {r.breakModel("empty", func(dir string) { os.Truncate(filepath.Join(dir, "model.safetensors"), 0) }), api.PhaseFailed, api.ReasonInvalidModel, "model.safetensors"},
		"nan": {r.breakModel("nan", func(dir string) {
			edit(t, filepath.Join(dir, "model.safetensors"), func(b []byte) []byte {
				data := b[8+binary.LittleEndian.Uint64(b):]
				for i := range data {
					data[i] = 0xff
				}
				return b
			})
		}), api.PhaseFailed, api.ReasonInvalidModel, "no numbers (NaN)"},
		"digest":  {wrongDigest, api.PhaseFailed, api.ReasonDigestMismatch, "sha256:"},
		"missing": {missing, api.PhaseFailed, api.ReasonSourceUnavailable, "no such file"},
		"outside": {outside, api.PhaseFailed, api.ReasonSourceUnavailable, "modelRoots"},
		"large":   {large, api.PhaseRefused, api.ReasonDoesNotFit, "64 MiB"},
	}
	homes := []api.Home{r.home("stories")}
	for _, c := range cases {
		homes = append(homes, c.home)
	}
	r.assign(homes...)
	seen := r.until(func(h map[string]api.HomeState) bool {
		for name, c := range cases {
			if h[name].Phase != c.phase {
				return false
			}
		}
		return h["stories"].Phase == api.PhaseResident
	})
	for name, c := range cases {
		if h := seen[name]; h.Reason != c.reason || !strings.Contains(h.Message, c.says) {
			t.Errorf("%s: %s: %s", name, h.Reason, h.Message)
		}
		if status, body := r.complete(name); status != 503 || !strings.Contains(body, c.reason) {
			t.Errorf("%s: %d %s", name, status, body)
		}
		// Inspect says the same, but for what only a load finds out.
		req, _ := json.Marshal(api.InspectRequest{Source: c.home.Source, Context: c.home.Context})
		var got api.Inspection
		_, body := r.call("POST", api.PathInspect, string(req))
		json.Unmarshal([]byte(body), &got)
		switch {
		case name == "digest" || name == "large" || name == "nan":
			if got.Error != nil || got.Footprint.WeightsBytes == 0 {
				t.Errorf("inspect %s: %s", name, body)
			}
		case got.Error == nil || got.Error.Reason != c.reason:
			t.Errorf("inspect %s: %s", name, body)
		}
	}
	status, body := r.complete("stories")
	if status != 200 || !strings.Contains(body, ", there was a little") {
		t.Errorf("the good one: %d %s", status, body)
	}
	if status, _ := r.complete("unknown"); status != api.StatusLacks {
		t.Errorf("unknown: %d", status)
	}

	// Mended files are taken up.
	good := filepath.Join(r.root, "stories", "model.safetensors")
	b, _ := os.ReadFile(good)
	os.WriteFile(filepath.Join(r.root, "truncated", "model.safetensors"), b, 0o644)
	os.CopyFS(filepath.Join(r.root, "missing"), os.DirFS(filepath.Join(r.root, "stories")))
	r.until(func(h map[string]api.HomeState) bool {
		return h["missing"].Phase == api.PhaseResident && h["truncated"].Phase == api.PhaseResident
	})
}

func TestInspectAndFootprint(t *testing.T) {
	r := startWorker(t)
	// A terabyte with a true header costs nothing to look at.
	dir := filepath.Join(r.root, "vast")
	os.CopyFS(dir, os.DirFS(filepath.Join(r.root, "stories")))
	inspect := func(path string, c api.Context) api.Inspection {
		t.Helper()
		req, _ := json.Marshal(api.InspectRequest{Source: api.Source{URI: "file://" + path}, Context: c})
		var got api.Inspection
		status, body := r.call("POST", api.PathInspect, string(req))
		if err := json.Unmarshal([]byte(body), &got); err != nil || status != 200 || got.Error != nil {
			t.Fatalf("%d %s", status, body)
		}
		return got
	}
	got := inspect(filepath.Join(r.root, "stories"), api.Context{MaxTokens: 4096, Sequences: 2})
	if got.ContextLength != 512 || got.MaxTokens != 512 || got.Architecture != "llama" || got.Parameters < 250_000 || got.Footprint.WeightsBytes%(64<<10) != 0 {
		t.Errorf("%+v", got)
	}
	h := r.home("stories")
	h.Context = api.Context{MaxTokens: 4096, Sequences: 2}
	r.assign(h)
	r.resident("stories")
	s := r.state()
	if s.Homes[0].Footprint.Total() != got.Footprint.Total() || !s.Homes[0].Footprint.Measured || s.Devices[0].UsedBytes != got.Footprint.Total() {
		t.Errorf("inspected %+v, holds %+v, account %+v", got.Footprint, s.Homes[0].Footprint, s.Devices[0])
	}
	if s.Homes[0].KVBlocks != 44 || s.Homes[0].MaxTokens != 512 {
		t.Errorf("%+v", s.Homes[0])
	}
}

func TestMetrics(t *testing.T) {
	r := startWorker(t)
	r.assign(r.home("stories"))
	r.resident("stories")
	r.complete("stories")
	_, body := r.call("GET", "/metrics", "")
	for _, line := range []string{
		`estiba_worker_device_capacity_bytes{device="cpu-0",worker="w0"} 6.7108864e+07`,
		`estiba_model_resident{model="default/stories",worker="w0"} 1`,
		`estiba_model_requests_running{model="default/stories",worker="w0"} 0`,
		`estiba_model_requests_total{model="default/stories",worker="w0"} 1`,
		`estiba_model_output_tokens_total{model="default/stories",worker="w0"} 8`,
		`estiba_model_loads_total{model="default/stories",worker="w0"} 1`,
		`vllm:num_requests_running{engine="0",model_name="stories",worker="w0"} 0`,
		`vllm:num_requests_waiting{engine="0",model_name="stories",worker="w0"} 0`,
		`vllm:kv_cache_usage_perc{engine="0",model_name="stories",worker="w0"} `,
		`vllm:generation_tokens_total{engine="0",model_name="stories",worker="w0"} 8`,
		`vllm:num_preemptions_total{engine="0",model_name="stories",worker="w0"} 0`,
		`vllm:request_success_total{engine="0",finished_reason="length",model_name="stories",worker="w0"} 1`,
		`vllm:time_to_first_token_seconds_count{engine="0",model_name="stories",worker="w0"} 1`,
		`vllm:inter_token_latency_seconds_bucket{engine="0",model_name="stories",worker="w0",le="80"} 7`,
		`vllm:request_queue_time_seconds_count{engine="0",model_name="stories",worker="w0"} 1`,
		`vllm:request_generation_tokens_sum{engine="0",model_name="stories",worker="w0"} 8`,
		`estiba_model_first_token_seconds_count{model="default/stories",worker="w0"} 1`,
	} {
		if !strings.Contains(body, line) {
			t.Errorf("no %s", line)
		}
	}
	if t.Failed() {
		t.Log(regexp.MustCompile(`(?m)^(estiba|vllm)[^ ]*[^+0-9]"?} .*$`).FindAllString(body, -1))
	}
}

// TestEmulated: a worker computes for GPUs that are described in a file, and shows what is said of them.
func TestEmulated(t *testing.T) {
	file := filepath.Join(t.TempDir(), "gpus.yaml")
	describe := func(text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	describe("devices: [{memory: 80Gi, others: 10Gi, power: 250, utilization: 0.4, temperature: 61, throttled: [Power]}]")
	r := startWorker(t, func(o *worker.Options) {
		m, err := device.Emulated(file, nil, o.Log)
		if err != nil {
			t.Fatal(err)
		}
		if o.Devices, err = device.Claim(m, "cuda", 0, device.Options{Headroom: 5}); err != nil {
			t.Fatal(err)
		}
		o.Monitor, o.Emulated = m, true
	})
	h := r.home("stories")
	h.Devices = []string{"gpu-0"}
	r.assign(h)
	r.resident("stories")
	deadline := time.Now().Add(time.Minute)
	for {
		_, body := r.call("POST", "/v1/completions", `{"model":"stories","prompt":"Once","max_tokens":100,"temperature":0,"include_energy":true}`)
		if regexp.MustCompile(`"energy":{"joules":[0-9.e+-]+,"joules_per_token":[0-9.e+-]+}`).MatchString(body) {
			break
		}
		if !strings.Contains(body, `"usage"`) || strings.Contains(body, "energy") || time.Now().After(deadline) { // a number or nothing
			t.Fatal(body)
		}
		time.Sleep(100 * time.Millisecond)
	}
	if _, body := r.call("POST", "/v1/completions", `{"model":"stories","prompt":"Once","max_tokens":1}`); strings.Contains(body, "energy") {
		t.Error(body)
	}
	expect := func(lines ...string) {
		t.Helper()
		_, body := r.call("GET", "/metrics", "")
		for _, line := range lines {
			if !regexp.MustCompile(`(?m)^` + line).MatchString(body) {
				t.Errorf("no %s in\n%s", line, strings.Join(regexp.MustCompile(`(?m)^estiba_(device|energy).*$`).FindAllString(body, -1), "\n"))
			}
		}
	}
	expect(`estiba_device_memory_bytes{device="gpu-0",kind="total",worker="w0"} 8.589934592e\+10$`,
		`estiba_device_memory_bytes{device="gpu-0",kind="others",worker="w0"} 1.073741824e\+10$`,
		`estiba_device_memory_bytes{device="gpu-0",kind="free",worker="w0"} 7.516192768e\+10$`,
		`estiba_device_utilization{device="gpu-0",worker="w0"} 0.4$`,
		`estiba_device_power_watts{device="gpu-0",worker="w0"} 250$`,
		`estiba_device_temperature_celsius{device="gpu-0",worker="w0"} 61$`,
		`estiba_device_throttled{device="gpu-0",reason="Power",worker="w0"} 1$`,
		`estiba_device_health{device="gpu-0",state="Healthy",worker="w0"} 1$`,
		`estiba_device_health{device="gpu-0",state="Lost",worker="w0"} 0$`,
		`estiba_device_energy_joules_total{device="gpu-0",worker="w0"} [0-9]`,
		`estiba_energy_idle_joules_total{device="gpu-0",worker="w0"} [0-9]`,
		`estiba_energy_joules_total{device="gpu-0",model="default/stories",worker="w0"} [0-9.]*[1-9]`)
	const many = `{"model":"stories","prompt":"Once","max_tokens":500,"ignore_eos":true,"n":128` // seconds of work
	whole, queued := make(chan string, 1), make(chan string, 1)
	ask := func(to chan string, body string) {
		resp := r.open("POST", "/v1/completions", body, api.HeaderModel, "default/stories")
		defer resp.Body.Close()
		b, _ := io.ReadAll(resp.Body)
		to <- fmt.Sprintf("%d %s %s", resp.StatusCode, resp.Header.Get("Retry-After"), b)
	}
	streamed := r.open("POST", "/v1/completions", many+`,"stream":true}`)
	defer streamed.Body.Close()
	go ask(whole, many+"}")
	for deadline := time.Now().Add(time.Minute); r.state().Homes[0].Running < 2; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("they do not run")
		}
	}
	go ask(queued, `{"model":"stories","prompt":"Once","max_tokens":1}`)
	time.Sleep(100 * time.Millisecond)
	describe("devices: [{memory: 80Gi, xids: [79]}]")
	const says = `model_unavailable","message":"The text is not complete, the model cannot serve now (DeviceLost): device gpu-0 is lost: XID79. The model needs another home. Try again."`
	if b, err := io.ReadAll(streamed.Body); err != nil || !bytes.Contains(b, []byte(`data: {"error":{"code":"`+says)) || !bytes.HasPrefix(b, []byte(`data: {"id":`)) {
		t.Errorf("%v: %.200s ... %s", err, b, b[max(len(b)-400, 0):])
	}
	if got := <-whole; !strings.HasPrefix(got, "503 1 ") || !strings.Contains(got, says) {
		t.Errorf("%.400s", got)
	}
	if got := <-queued; !strings.HasPrefix(got, "421 ") {
		t.Errorf("%.400s", got)
	}
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		s := r.state()
		if s.Devices[0].Lost() && s.Homes[0].Reason == api.ReasonDeviceLost {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%+v", s)
		}
	}
	expect(`estiba_device_health{device="gpu-0",state="Lost",worker="w0"} 1$`)
	// A gateway tries elsewhere, and whoever asks the worker itself is told why.
	const short = `{"model":"stories","prompt":"Once","max_tokens":1}`
	if status, body := r.call("POST", "/v1/completions", short, api.HeaderModel, "default/stories"); status != api.StatusLacks {
		t.Errorf("%d %s", status, body)
	}
	if status, body := r.call("POST", "/v1/completions", short); status != http.StatusServiceUnavailable || !strings.Contains(body, "(DeviceLost): Device gpu-0 is lost: XID 79") {
		t.Errorf("%d %s", status, body)
	}
}

// TestMetricsOfEqualNames: a name that clients send may be another model's own.
func TestMetricsOfEqualNames(t *testing.T) {
	r := startWorker(t)
	a, b := r.home("a"), r.home("b")
	a.ServedNames, b.ServedNames = []string{"default/b"}, []string{"default/b"}
	a.Resident, b.Resident = false, false
	r.assign(a, b)
	status, body := r.call("GET", "/metrics", "")
	for _, name := range []string{"default/a", "default/b"} {
		if line := `vllm:num_requests_running{engine="0",model_name="` + name + `",worker="w0"} 0`; status != 200 || !strings.Contains(body, line) {
			t.Errorf("no %s", line)
		}
	}
	if t.Failed() {
		t.Logf("%d %.1000s", status, body)
	}
}

// TestFileCutShortAfterItWasCopied: a model that has packed all its weights goes on.
func TestFileCutShortAfterItWasCopied(t *testing.T) {
	if path, err := kernels.Best(); err != nil || path == kernels.PlainGo {
		t.Skip("SKIPPED: this path computes with weights where they are mapped")
	}
	r := startWorker(t)
	r.assign(r.breakModel("cut", func(string) {})) // its table of embeddings is its output matrix too
	r.resident("cut")
	_, before := r.complete("cut")
	if err := os.Truncate(filepath.Join(r.root, "cut", "model.safetensors"), 8192); err != nil {
		t.Fatal(err)
	}
	text := regexp.MustCompile(`"text":"[^"]*"`)
	if status, body := r.complete("cut"); status != 200 || text.FindString(body) != text.FindString(before) {
		t.Errorf("%d %s, before it was cut %s", status, body, before)
	}
}

// TestFileCutShort: a file that is cut short under a model that serves from it is that
// model's loss only.
func TestFileCutShort(t *testing.T) {
	t.Setenv(kernels.PathVariable, kernels.PlainGo.String()) // which computes with weights where they are mapped
	r := startWorker(t)
	r.assign(r.home("stories"), r.breakModel("cut", func(string) {}))
	r.resident("stories")
	r.resident("cut")
	if err := os.Truncate(filepath.Join(r.root, "cut", "model.safetensors"), 8192); err != nil {
		t.Fatal(err)
	}
	status, body := r.complete("cut")
	if status != 503 || !strings.Contains(body, "(SourceUnavailable)") || !strings.Contains(body, "files changed or vanished") || strings.Contains(body, "runtime error") {
		t.Errorf("cut: %d %s", status, body)
	}
	failed := r.until(func(h map[string]api.HomeState) bool { // once they have been read again
		return h["cut"].Phase == api.PhaseFailed && h["cut"].Tier != api.TierDevice && h["cut"].Reason != api.ReasonSourceUnavailable
	})["cut"]
	if failed.Reason != api.ReasonInvalidModel || failed.Message == "" {
		t.Errorf("%+v", failed)
	}
	if status, body := r.complete("cut"); status != 503 || !strings.Contains(body, "(InvalidModel)") {
		t.Errorf("cut, asked again: %d %s", status, body)
	}
	if s := r.state(); s.Devices[0].UsedBytes != s.Homes[1].Footprint.Total() {
		t.Errorf("what is held is not the neighbour's alone: %+v", s)
	}
	if status, body := r.complete("stories"); status != 200 {
		t.Errorf("stories: %d %s", status, body)
	}
	whole, err := os.ReadFile(filepath.Join(r.root, "stories", "model.safetensors"))
	if err != nil {
		t.Fatal(err)
	}
	edit(t, filepath.Join(r.root, "cut", "model.safetensors"), func([]byte) []byte { return whole })
	r.resident("cut")
	if status, body := r.complete("cut"); status != 200 {
		t.Errorf("whole again: %d %s", status, body)
	}
}

// TestFetchedModels: a source that cannot be reached, then can.
func TestFetchedModels(t *testing.T) {
	r := startWorker(t)
	var down atomic.Bool
	down.Store(true)
	files := http.FileServer(http.Dir(fixture.Model("")))
	origin := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		if down.Load() {
			http.Error(w, "later", http.StatusBadGateway)
			return
		}
		files.ServeHTTP(w, q)
	}))
	defer origin.Close()
	one, folder := r.home("one"), r.home("folder")
	one.Source.URI, folder.Source.URI = origin.URL+"/stories260K/stories260K-f16.gguf", origin.URL+"/stories260K/hf-f32/"
	r.assign(one, folder)
	seen := r.until(func(h map[string]api.HomeState) bool {
		return h["one"].Phase == api.PhaseFailed && h["folder"].Phase == api.PhaseFailed
	})
	if h := seen["one"]; h.Reason != api.ReasonSourceUnavailable || !strings.Contains(h.Message, "502") || h.Tier != api.TierNone {
		t.Errorf("%+v", h)
	}
	down.Store(false)
	for _, h := range []api.Home{one, folder} {
		req, _ := json.Marshal(api.InspectRequest{Source: h.Source})
		var got api.Inspection
		_, body := r.call("POST", api.PathInspect, string(req))
		if json.Unmarshal([]byte(body), &got); got.Error != nil || got.ContextLength != 512 {
			t.Errorf("inspect: %s", body)
		}
	}
	r.until(func(h map[string]api.HomeState) bool {
		return h["one"].Phase == api.PhaseResident && h["folder"].Phase == api.PhaseResident
	})
	origin.Close() // what is here stays here
	for _, name := range []string{"one", "folder"} {
		if status, body := r.complete(name); status != 200 || !strings.Contains(body, ", there was a little") {
			t.Errorf("%s: %d %s", name, status, body)
		}
	}
}

// TestDrain ends a worker while a stream runs: the stream ends whole, others
// are sent elsewhere, and the worker ends without an error.
func TestDrain(t *testing.T) {
	r := startWorker(t)
	r.assign(r.home("stories"))
	r.resident("stories")
	watch := r.open("GET", api.PathState+"?watch=true", "")
	defer watch.Body.Close()
	stream := r.open("POST", "/v1/completions", `{"model":"stories","prompt":"Once","max_tokens":400,"stream":true,"temperature":0,"ignore_eos":true}`, api.HeaderModel, "default/stories")
	defer stream.Body.Close()
	if stream.StatusCode != 200 {
		b, _ := io.ReadAll(stream.Body)
		t.Fatalf("%d %s", stream.StatusCode, b)
	}
	lines := bufio.NewReader(stream.Body)
	if _, err := lines.ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	r.stop()
	lacked := false
	for range 100 {
		req, _ := http.NewRequest("POST", r.url+"/v1/completions", strings.NewReader("{}"))
		req.Header.Set(api.HeaderModel, "default/stories")
		resp, err := client.Do(req)
		if err != nil {
			break // it has ended
		}
		resp.Body.Close()
		if resp.StatusCode == api.StatusLacks {
			lacked = true
			ready, err := client.Get(r.url + "/readyz")
			if err == nil {
				ready.Body.Close()
				if ready.StatusCode != 503 {
					t.Errorf("readyz %d", ready.StatusCode)
				}
			}
			break
		}
		time.Sleep(time.Millisecond)
	}
	rest, err := io.ReadAll(lines)
	if err != nil || !strings.Contains(string(rest), "data: [DONE]") || strings.Contains(string(rest), `"error"`) {
		t.Errorf("the stream ended with %v: %q", err, rest[max(0, len(rest)-200):])
	}
	if !lacked {
		t.Log("the stream was over before another request came")
	}
	if err := <-r.ended; err != nil {
		t.Error(err)
	}
	r.ended <- nil
}

// TestHomeDrains, as it does when its model moves: what runs is answered to its end, and so is
// a request that had come and not yet sent all of its body; one that comes later is told
// so before it sends its own. The report counts them until the home has left its device.
func TestHomeDrains(t *testing.T) {
	r := startWorker(t)
	home := r.home("stories")
	r.assign(home)
	r.resident("stories")
	stream := r.open("POST", "/v1/completions", `{"model":"stories","prompt":"Once","max_tokens":450,"stream":true,"temperature":0,"ignore_eos":true}`, api.HeaderModel, "default/stories")
	defer stream.Body.Close()
	lines := bufio.NewReader(stream.Body)
	if _, err := lines.ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	dial := func() (net.Conn, *bufio.Reader) {
		conn, err := net.Dial("tcp", strings.TrimPrefix(r.url, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		conn.SetDeadline(time.Now().Add(time.Minute))
		return conn, bufio.NewReader(conn)
	}
	const body = `{"model":"stories","prompt":"Once upon a time","max_tokens":4,"temperature":0}`
	head := fmt.Sprintf("POST /v1/completions HTTP/1.1\r\nHost: x\r\nEstiba-Model: default/stories\r\nContent-Length: %d\r\n\r\n", len(body))
	early, fromEarly := dial()
	defer early.Close()
	io.WriteString(early, head+body[:10])
	r.until(func(h map[string]api.HomeState) bool { return h["stories"].Waiting == 1 })

	home.Draining = true
	r.assign(home)
	late, fromLate := dial()
	defer late.Close()
	io.WriteString(late, head)
	if answer, err := http.ReadResponse(fromLate, nil); err != nil || answer.StatusCode != api.StatusLacks {
		t.Fatalf("a request that came later: %+v, %v", answer, err)
	}
	r.until(func(h map[string]api.HomeState) bool {
		s := h["stories"]
		if s.Phase != api.PhaseDraining || s.Tier != api.TierDevice || s.Running+s.Waiting == 0 {
			t.Fatalf("while it drains: %+v", s)
		}
		return true
	})
	io.WriteString(early, body[10:])
	answer, err := http.ReadResponse(fromEarly, nil)
	if err != nil {
		t.Fatal(err)
	}
	if text, err := io.ReadAll(answer.Body); err != nil || answer.StatusCode != 200 || !strings.Contains(string(text), "there was") {
		t.Errorf("a request that came before: %d %s, %v", answer.StatusCode, text, err)
	}
	rest, err := io.ReadAll(lines)
	if err != nil || !strings.Contains(string(rest), "data: [DONE]") || strings.Contains(string(rest), `"error"`) {
		t.Errorf("the stream ended with %v: %q", err, rest[max(0, len(rest)-200):])
	}
	seen := r.until(func(h map[string]api.HomeState) bool { return h["stories"].Tier != api.TierDevice })
	if s := seen["stories"]; s.Phase != api.PhaseDraining || s.Running+s.Waiting != 0 || s.Completed != 2 {
		t.Errorf("when it has drained: %+v", s)
	}
	r.assign()
	r.until(func(h map[string]api.HomeState) bool { return len(h) == 0 })
}

// TestClientLeaves: who leaves keeps nothing, neither with half a body sent nor with half an answer read.
func TestClientLeaves(t *testing.T) {
	r := startWorker(t)
	r.assign(r.home("stories"))
	r.resident("stories")
	conn, err := net.Dial("tcp", strings.TrimPrefix(r.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(conn, "POST /v1/completions HTTP/1.1\r\nHost: x\r\nEstiba-Model: default/stories\r\nContent-Length: 1000\r\n\r\n{")
	r.until(func(h map[string]api.HomeState) bool { return h["stories"].Waiting == 1 })
	conn.Close()
	r.until(func(h map[string]api.HomeState) bool { return h["stories"].Waiting == 0 })

	ctx, cancel := context.WithCancel(t.Context())
	req, _ := http.NewRequestWithContext(ctx, "POST", r.url+"/v1/completions", strings.NewReader(`{"model":"stories","prompt":"Once","max_tokens":500,"stream":true,"ignore_eos":true}`))
	req.Header.Set(api.HeaderModel, "default/stories")
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	bufio.NewReader(resp.Body).ReadString('\n')
	cancel()
	r.until(func(h map[string]api.HomeState) bool { s := h["stories"]; return s.Running+s.Waiting+s.KVUsed == 0 })
}
