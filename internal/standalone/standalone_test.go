package standalone

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/estiba/estiba/api/v1alpha1"
	"github.com/estiba/estiba/controllers"
	"github.com/estiba/estiba/internal/fixture"
	"github.com/estiba/estiba/internal/history"
	"k8s.io/apimachinery/pkg/api/meta"
	"sigs.k8s.io/yaml"
)

const model = `apiVersion: estiba.dev/v1alpha1
kind: Model
metadata: {name: %s}
spec:
  source: {uri: "file://%s"}
`

func TestRead(t *testing.T) {
	valid := fmt.Sprintf(model, "stories", "/models/stories")
	for name, c := range map[string]struct{ text, says string }{
		"valid, with comments and an empty document": {"# a comment\n---\n# nothing\n---\n" + valid, ""},
		"twice":                           {valid + "---\n" + valid, "remove one of them"},
		"unknown field":                   {valid + "  sequences: 3\n", `unknown field "sequences"`},
		"other group":                     {strings.Replace(valid, "estiba.dev/v1alpha1", "v1", 1), "Estiba reads estiba.dev/v1alpha1"},
		"other kind":                      {strings.Replace(valid, "kind: Model", "kind: Pod", 1), "reads Model and InferencePool"},
		"no name":                         {strings.Replace(valid, "{name: stories}", "{}", 1), "metadata.name"},
		"a rule is broken":                {strings.Replace(valid, "file:///models", "ftp://models", 1), "must start with file://"},
		"a name that YAML reads as false": {strings.Replace(valid, "{name: stories}", "{name: no}", 1), "field metadata.name is false: write a text; quote it"},
		"a string":                        {"hello", "it is no object"},
		"a list":                          {"- " + strings.ReplaceAll(valid, "\n", "\n  "), "it is no object"},
		"not YAML":                        {"apiVersion: [", "document 1"},
		"replicas and scaling":            {valid + "  replicas: 1\n  autoscaling: {min: 0, max: 1}\n", "exclude each other"},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "m.yaml")
			write(t, file, c.text)
			m, err := Read(file)
			if c.says == "" {
				if err != nil || len(m.Models) != 1 || m.Models[0].Namespace != "default" || m.Models[0].UID == "" {
					t.Fatalf("Read = %+v, %v; want one finished Model", m, err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), c.says) || !strings.Contains(err.Error(), file) {
				t.Fatalf("Read says %v, want the file and %q", err, c.says)
			}
		})
	}
}

func TestServe(t *testing.T) {
	folder := t.TempDir()
	write(t, filepath.Join(folder, "a.yaml"), fmt.Sprintf(model, "stories", fixture.Model("stories260K/hf-f32")))
	url := serve(t, folder, 0)
	eventually(t, "ready", func() error { return get(url+"/readyz", nil) })

	const once = ", there was a little girl named Lily"
	if got := complete(t, url, "stories", 10); got != once {
		t.Fatalf("the model says %q, want %q", got, once)
	}

	if err := get(url+"/metrics", nil); err != nil {
		t.Error(err)
	}

	// A second file: another precision beside the first, in the same worker.
	write(t, filepath.Join(folder, "b.yaml"), fmt.Sprintf(model, "half", fixture.Model("stories260K/stories260K-f16.gguf")))
	eventually(t, "half serves", func() error { return serves(url, "half") })
	if got := complete(t, url, "half", 10); got != once {
		t.Fatalf("the model says %q, want %q", got, once)
	}
	var models v1alpha1.ModelList
	if err := get(url+"/apis/estiba.dev/v1alpha1/models", &models); err != nil {
		t.Fatal(err)
	}
	if a, b := models.Items[0].Status.Placements[0], models.Items[1].Status.Placements[0]; a.Worker != b.Worker {
		t.Errorf("the models are in two workers: %s, %s", a.Worker, b.Worker)
	}

	// A file that cannot be used leaves everything as it is.
	write(t, filepath.Join(folder, "c.yaml"), "kind: Pod")
	time.Sleep(2 * filesEvery)
	if got := complete(t, url, "stories", 10); got != once {
		t.Fatalf("the model says %q, want %q", got, once)
	}
	if err := os.Remove(filepath.Join(folder, "c.yaml")); err != nil {
		t.Fatal(err)
	}

	// Nor does one change anything that is empty for a moment, as it is written.
	half, err := os.ReadFile(filepath.Join(folder, "b.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(folder, "b.yaml"), "")
	time.Sleep(2 * filesEvery)
	if err := serves(url, "half"); err != nil {
		t.Error(err)
	}
	write(t, filepath.Join(folder, "b.yaml"), string(half))

	// A Model that goes is not served any more; its neighbour is.
	if err := os.Remove(filepath.Join(folder, "b.yaml")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "half is gone", func() error {
		if serves(url, "half") == nil {
			return fmt.Errorf("it still serves")
		}
		return get(url+"/v1/models/stories", nil)
	})
}

// TestServeEndpoints: all that is not about texts goes the same way through the gateway, and wakes models too.
func TestServeEndpoints(t *testing.T) {
	folder := t.TempDir()
	const asleep = "  autoscaling: {min: 0, max: 1}\n"
	write(t, filepath.Join(folder, "a.yaml"), fmt.Sprintf(model, "stories", fixture.Model("stories260K/hf-f32"))+asleep+
		"---\n"+fmt.Sprintf(model, "encoder", fixture.Encoder(t, filepath.Join(t.TempDir(), "encoder"))))
	url := serve(t, folder, 0)
	eventually(t, "ready", func() error { return get(url+"/readyz", nil) })
	for _, c := range []struct{ path, body, says string }{
		{"/tokenize", `{"model":"stories","prompt":"Once upon a time"}`, `{"count":5,"max_model_len":512,"tokens":[1,403,407,261,378],"token_strs":null}`},
		{"/detokenize", `{"model":"stories","tokens":[403,407,261,378]}`, `{"prompt":"Once upon a time"}`},
		{"/v1/embeddings", `{"model":"stories","input":"Once"}`, `"total_tokens":2`},
		{"/v1/embeddings", `{"model":"encoder","input":["a b","c"]}`, `"index":1,"object":"embedding"`},
		{"/v1/chat/completions", `{"model":"encoder","messages":[{"role":"user","content":"a"}]}`, `/v1/embeddings`},
		{"/v1/responses", `{"model":"stories"}`, `not_found`},
	} {
		res, err := http.Post(url+c.path, "application/json", strings.NewReader(c.body))
		if err != nil {
			t.Fatal(err)
		}
		data, _ := io.ReadAll(res.Body)
		res.Body.Close()
		if !strings.Contains(string(data), c.says) {
			t.Errorf("%s %s: %d %.300s", c.path, c.body, res.StatusCode, data)
		}
	}
}

func TestServeSaysWhyNot(t *testing.T) {
	folder := t.TempDir()
	huge := fixture.HugeModel(t, t.TempDir())
	write(t, filepath.Join(folder, "a.yaml"), fmt.Sprintf(model, "huge", huge)+"---\n"+fmt.Sprintf(model, "nowhere", "/does/not/exist"))
	url := serve(t, folder, 64<<20)
	eventually(t, "reasons", func() error {
		if err := reason(url, "huge", v1alpha1.ReasonDoesNotFit); err != nil {
			return err
		}
		return reason(url, "nowhere", v1alpha1.ReasonSourceUnavailable)
	})
}

// TestServeRefusesAtOnce: a request for what no worker could ever hold is not held until somebody changes that.
func TestServeRefusesAtOnce(t *testing.T) {
	folder := t.TempDir()
	huge := fixture.HugeModel(t, t.TempDir())
	const pool = "---\napiVersion: estiba.dev/v1alpha1\nkind: InferencePool\nmetadata: {name: %s, labels: {tier: %[1]s}}\nspec: %s\n"
	const asleep = "  autoscaling: {min: 0, max: 1}\n"
	in := func(pool string) string { return "  poolSelector: {matchLabels: {tier: " + pool + "}}\n" }
	write(t, filepath.Join(folder, "a.yaml"), fmt.Sprintf(model, "huge", huge)+in("small")+
		"---\n"+fmt.Sprintf(model, "huge-asleep", huge)+in("small")+asleep+
		"---\n"+fmt.Sprintf(model, "elsewhere", fixture.Model("stories260K/hf-f32"))+in("large")+asleep+
		"---\n"+fmt.Sprintf(model, "closed", fixture.Model("stories260K/hf-f32"))+in("closed")+asleep+
		"---\n"+fmt.Sprintf(model, "grows", fixture.Model("stories260K/hf-f32"))+in("grows")+asleep+
		fmt.Sprintf(pool, "small", "{workers: {min: 1, max: 1}, device: {memory: 1Gi}}")+
		fmt.Sprintf(pool, "large", "{workers: {min: 0, max: 1}, device: {memory: 80Gi}}")+
		fmt.Sprintf(pool, "closed", "{workers: {min: 0, max: 2}, replicas: 0, device: {memory: 16Mi}}")+
		fmt.Sprintf(pool, "grows", "{workers: {min: 0, max: 1}, device: {memory: 64Mi}}"))
	url := serve(t, folder, 1280<<20)
	eventually(t, "reasons", func() error { return reason(url, "huge-asleep", v1alpha1.ReasonDoesNotFit) })
	for name, says := range map[string]string{
		"huge":        "DoesNotFit: Needs 95",
		"huge-asleep": "DoesNotFit: Needs 95",
		"elsewhere":   "WaitingForWorker: Pool large cannot make a worker: a worker wants 80Gi, and there are 1280Mi for models",
		"closed":      "WaitingForWorker: Pool closed has no worker and may have 0; raise spec.workers.max.",
	} {
		began := time.Now()
		body, _ := json.Marshal(map[string]any{"model": name, "prompt": "Once", "max_tokens": 1})
		resp, err := http.Post(url+"/v1/completions", "application/json", bytes.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		text, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if took := time.Since(began); resp.StatusCode != http.StatusServiceUnavailable || !strings.Contains(string(text), says) || took > 5*time.Second {
			t.Errorf("%s: %s after %v: %s", name, resp.Status, took, text)
		}
	}
	// A pool that may grow gets a worker, and the request that is held for it its answer.
	if got := complete(t, url, "grows", 3); got == "" {
		t.Error("no answer from a pool that grows")
	}
}

// TestQuiet: while nothing is decided, ages go on all the same.
func TestQuiet(t *testing.T) {
	file := filepath.Join(t.TempDir(), "a.yaml")
	write(t, file, fmt.Sprintf(model, "stories", fixture.Model("stories260K/hf-f32")))
	url := serve(t, file, 0)
	eventually(t, "it serves", func() error { return serves(url, "stories") })
	stay := func() (s controllers.Stay) {
		t.Helper()
		var latest struct{ Seen controllers.Seen }
		if err := get(url+history.PathSnapshot, &latest); err != nil {
			t.Fatal(err)
		}
		if e := controllers.Explain(latest.Seen, "default/stories"); len(e.Homes) == 1 {
			s = e.Homes[0]
		}
		return s
	}
	const quiet = 2.5
	was := stay()
	time.Sleep(quiet * 1e9)
	if is := stay(); is.ResidentSeconds < was.ResidentSeconds+quiet || is.ResidentSeconds > was.ResidentSeconds+10*quiet || is.IdleSeconds < quiet {
		t.Errorf("%.1f s later: resident for %.1f s, before for %.1f s; idle for %.1f s", quiet, is.ResidentSeconds, was.ResidentSeconds, is.IdleSeconds)
	}
}

// TestPoolGone: a pool that is in no file any more leaves its memory to others.
func TestPoolGone(t *testing.T) {
	file := filepath.Join(t.TempDir(), "a.yaml")
	const pool = "---\napiVersion: estiba.dev/v1alpha1\nkind: InferencePool\nmetadata: {name: %s, labels: {tier: %[1]s}}\nspec: {workers: {min: 1}, device: {memory: 48Mi}}\n"
	b := fmt.Sprintf(model, "stories", fixture.Model("stories260K/hf-f32")) + "  poolSelector: {matchLabels: {tier: b}}\n" + fmt.Sprintf(pool, "b")
	write(t, file, fmt.Sprintf(pool, "a")+"---\n"+b)
	url := serve(t, file, 64<<20)
	eventually(t, "there is no memory for it", func() error { return reason(url, "stories", v1alpha1.ReasonWaitingForWorker) })
	write(t, file, b)
	eventually(t, "it serves", func() error { return serves(url, "stories") })
}

// TestFailedStart: a worker that could not be started is not tried again at once.
func TestFailedStart(t *testing.T) {
	p := withDefaultPool(Manifests{}).Pools[0]
	l := &loop{
		server:  &Server{o: Options{Emulate: filepath.Join(t.TempDir(), "none"), Log: slog.New(slog.DiscardHandler)}},
		budget:  budget{total: emulatedMemory, taken: map[string]int64{}},
		started: map[string]started{}, failed: map[string]failure{},
	}
	first := l.start(p)
	at := l.failed["default/default"].at
	if second := l.start(p); first == nil || second == nil || second.Error() != first.Error() || !l.failed["default/default"].at.Equal(at) {
		t.Errorf("%v, then %v", first, second)
	}
}

func TestReadNoFile(t *testing.T) {
	pipe := filepath.Join(t.TempDir(), "pipe.yaml")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Read("/nowhere"); err == nil || err.Error() != "read manifests of /nowhere: no such file or directory; name a file, or a folder of files, with -f" {
		t.Error(err)
	}
	for _, path := range []string{pipe, filepath.Dir(pipe), "/dev/zero"} {
		if _, err := Read(path); err == nil || !strings.Contains(err.Error(), "it is no file") {
			t.Errorf("%s: %v", path, err)
		}
	}
}

// TestServeSamples: of the manifests for a cluster all is served that there is memory
// for, and what cannot be has said why.
func TestServeSamples(t *testing.T) {
	folder := t.TempDir()
	for _, file := range []string{"inferencepool.yaml", "inferencepool-gpu.yaml", "model.yaml", "model-autoscaled.yaml"} {
		text, err := os.ReadFile(filepath.Join(fixture.Root(), "config", "samples", file))
		if err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(folder, file), strings.ReplaceAll(string(text), "/models", filepath.Dir(fixture.Model("stories260K"))))
	}
	write(t, filepath.Join(folder, "large.yaml"), fmt.Sprintf(model, "large", fixture.Model("stories260K/hf-f32"))+
		"  poolSelector: {matchLabels: {tier: gpu}}\n  autoscaling: {min: 0, max: 1}\n")
	url := serve(t, folder, 2<<30)
	eventually(t, "ready", func() error { return get(url+"/readyz", nil) })
	for name, want := range map[string]string{
		"stories": v1alpha1.ReasonServing, "stories-small": v1alpha1.ReasonScaledToZero, "large": v1alpha1.ReasonWaitingForWorker,
	} {
		eventually(t, name, func() error { return reason(url, name, want) })
	}
	var models v1alpha1.ModelList
	if err := get(url+"/apis/estiba.dev/v1alpha1/models", &models); err != nil {
		t.Fatal(err)
	}
	for _, m := range models.Items {
		if c := meta.FindStatusCondition(m.Status.Conditions, v1alpha1.ConditionReady); m.Name == "large" && !strings.HasPrefix(c.Message, "Pool a100 cannot make a worker: a worker wants 80Gi, and there are 2Gi for models") {
			t.Errorf("%+v", c)
		}
	}
	var pools v1alpha1.InferencePoolList
	if err := get(url+"/apis/estiba.dev/v1alpha1/inferencepools", &pools); err != nil {
		t.Fatal(err)
	}
	for _, p := range pools.Items {
		if p.Name == "cpu" && p.Status.Device.Memory.Value() != (1<<30-96<<20)/100*95/(64<<10)*(64<<10) {
			t.Errorf("a device of pool cpu has %v; its container may have 1Gi", p.Status.Device.Memory)
		}
	}
}

func TestBudget(t *testing.T) {
	pool := func(name, spec string) v1alpha1.InferencePool {
		var p v1alpha1.InferencePool
		if err := yaml.Unmarshal([]byte("metadata: {namespace: default, name: "+name+"}\nspec: "+spec), &p); err != nil {
			t.Fatal(err)
		}
		return controllers.DefaultedPool(p)
	}
	const mib = 1 << 20
	limit := "template: {spec: {containers: [{name: worker, resources: {limits: {memory: 400Mi}}}]}}"
	device, limited, host := pool("device", "{device: {memory: 100Mi}, "+limit+"}"), pool("limited", "{"+limit+"}"), pool("host", "{memory: {host: 1Mi}}")
	plain, two, huge := pool("plain", "{}"), pool("two", "{workers: {max: 2}}"), pool("huge", "{device: {memory: 1Ei}, workers: {max: 4}}")
	for name, c := range map[string]struct {
		of     v1alpha1.InferencePool
		others []v1alpha1.InferencePool
		taken  int64
		want   int64
		says   string
	}{
		"what the device is said to have": {of: device, want: 100 * mib},
		"what the container may have":     {of: limited, want: 304 * mib},
		"with a slab":                     {of: host, says: "a worker wants 929Mi, and there are 900Mi for models"},
		"a share":                         {of: plain, want: 900 * mib},
		"two shares":                      {of: two, want: 450 * mib},
		"shares of what others leave":     {of: two, others: []v1alpha1.InferencePool{device, plain}, want: 800 * mib / 3},
		"others that want too much":       {of: plain, others: []v1alpha1.InferencePool{huge}, want: 900 * mib},
		"too much":                        {of: huge, says: "a worker wants 1Ei, and there are 900Mi"},
		"others want all":                 {of: plain, others: []v1alpha1.InferencePool{pool("all", "{device: {memory: 450Mi}, workers: {max: 2}}")}, says: "may take all 900Mi"},
		"others have it":                  {of: limited, taken: 600 * mib, says: "a worker wants 304Mi, and 300Mi of 900Mi are free"},
		"the flag may help":               {of: pool("more", "{device: {memory: 1000Mi}}"), says: "or raise --memory"},
		"the group has no more":           {of: pool("more", "{device: {memory: 1001Mi}}"), says: "or raise the memory limit of the control group of this process (its container's, for example), which is 1100Mi"},
	} {
		b := budget{total: 900 * mib, most: 1000 * mib, limit: 1100 * mib, taken: map[string]int64{"other": c.taken}}
		got, err := b.take("w", c.of, append(c.others, c.of))
		if got != c.want || (err == nil) != (c.says == "") || err != nil && !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %d, %v; want %d, %q", name, got, err, c.want, c.says)
		}
		if _, err := b.want(c.of, append(c.others, c.of), func(worker string) bool { return worker == "other" || worker == "w" }); c.taken > 0 && err != nil {
			t.Errorf("%s: once the others have left: %v", name, err)
		}
	}
}

func TestMemoryThatIsNotThere(t *testing.T) {
	folder := t.TempDir()
	err := Run(t.Context(), Options{Paths: []string{folder}, Listen: "127.0.0.1:0", Memory: 1 << 60, Log: slog.New(slog.DiscardHandler)})
	if err == nil || !strings.Contains(err.Error(), "1 EiB of memory are asked for") {
		t.Error(err)
	}
}

// freeAddress is one of this machine's that nobody listens at.
func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// serve runs a Server until the test ends and returns its URL.
func serve(t *testing.T, path string, memory int64) string {
	address := freeAddress(t)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	go func() {
		ended <- Run(ctx, Options{Paths: []string{path}, Listen: address, Memory: memory, CacheDir: t.TempDir(), Version: "test", Log: log})
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return "http://" + address
}

func eventually(t *testing.T, what string, check func() error) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within 30 s: %v", what, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func get(url string, into any) error {
	resp, err := http.Get(url)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s: %s", url, resp.Status, body)
	}
	if into == nil {
		return nil
	}
	return json.Unmarshal(body, into)
}

func complete(t *testing.T, url, model string, tokens int) string {
	t.Helper()
	body, _ := json.Marshal(map[string]any{"model": model, "prompt": "Once upon a time", "max_tokens": tokens, "temperature": 0})
	resp, err := http.Post(url+"/v1/completions", "application/json", bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, _ := io.ReadAll(resp.Body)
	var answer struct{ Choices []struct{ Text string } }
	if err := json.Unmarshal(text, &answer); err != nil || len(answer.Choices) != 1 {
		t.Fatalf("completion: %s: %s", resp.Status, text)
	}
	return answer.Choices[0].Text
}

func serves(url, name string) error { return reason(url, name, v1alpha1.ReasonServing) }

func reason(url, name, want string) error {
	var models v1alpha1.ModelList
	if err := get(url+"/apis/estiba.dev/v1alpha1/namespaces/default/models", &models); err != nil {
		return err
	}
	for _, m := range models.Items {
		if m.Name != name {
			continue
		}
		if c := meta.FindStatusCondition(m.Status.Conditions, v1alpha1.ConditionReady); c == nil || c.Reason != want {
			return fmt.Errorf("%s: condition %+v, want reason %s", name, c, want)
		}
		return nil
	}
	return fmt.Errorf("%s: no such Model", name)
}

func write(t *testing.T, file, text string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}
