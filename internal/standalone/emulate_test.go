package standalone

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"

	"github.com/estiba/estiba/api/v1alpha1"
	"github.com/estiba/estiba/internal/fixture"
)

// TestEmulate serves on GPUs that a file describes. One falls off the bus: a request that runs there ends at once and says so, one
// that has not begun is answered, since the model gets its home on the other one, of the same worker. --memory bounds each, whatever the machine has.
func TestEmulate(t *testing.T) {
	folder := t.TempDir()
	gpus := filepath.Join(folder, "gpus")
	describe := func(first string) {
		t.Helper()
		text := "devices: [{memory: 24Gi, power: 70" + first + "}, {memory: 80Gi, power: 90, utilization: 0.5}]"
		if err := os.WriteFile(gpus, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	describe("")
	write(t, filepath.Join(folder, "a.yaml"), fmt.Sprintf(model, "stories", fixture.Model("stories260K/hf-f32")))
	var log bytes.Buffer
	t.Cleanup(func() { // once nobody writes it any more
		if !regexp.MustCompile(`msg="worker started" worker=\S+ pool=default devices=2 memoryBytes=95[0-9]{9}`).Match(log.Bytes()) {
			t.Errorf("the log does not say how much memory a worker's devices have:\n%s", log.Bytes())
		}
	})
	url := serveOn(t, gpus, filepath.Join(folder, "a.yaml"), &log)
	at := func(device string) func() error {
		return func() error {
			var models v1alpha1.ModelList
			if err := get(url+"/apis/estiba.dev/v1alpha1/models", &models); err != nil {
				return err
			}
			if p := models.Items[0].Status.Placements; len(p) != 1 || p[0].Devices[0] != device || p[0].State != v1alpha1.PlacementResident {
				return fmt.Errorf("it is at %+v", p)
			}
			return nil
		}
	}
	eventually(t, "it is on the smaller device", at("gpu-0"))
	if got := complete(t, url, "stories", 3); got == "" {
		t.Error("no answer")
	}
	ask := func(body string) (*http.Response, error) {
		return http.Post(url+"/v1/completions", "application/json", strings.NewReader(`{"model":"stories","prompt":"Once","temperature":0,`+body+"}"))
	}
	runs, err := ask(`"max_tokens":500,"ignore_eos":true,"n":128,"stream":true`) // seconds of work
	if err != nil {
		t.Fatal(err)
	}
	defer runs.Body.Close()
	waits := make(chan string, 1)
	go func() {
		resp, err := ask(`"max_tokens":3`)
		if err != nil {
			waits <- err.Error()
			return
		}
		defer resp.Body.Close()
		text, _ := io.ReadAll(resp.Body)
		waits <- fmt.Sprintf("%d %s", resp.StatusCode, text)
	}()
	time.Sleep(50 * time.Millisecond)
	describe(", xids: [79]")
	began := time.Now()
	eventually(t, "it is on the other one", at("gpu-1"))
	if took := time.Since(began); took > 20*time.Second {
		t.Errorf("it took %v to move", took)
	}
	if text, err := io.ReadAll(runs.Body); err != nil || !strings.Contains(string(text), "cannot serve now (DeviceLost): device gpu-0 is lost: XID79.") || strings.Contains(string(text), "[DONE]") {
		t.Errorf("%v: %.300s ... %s", err, text, text[max(len(text)-300, 0):])
	}
	if got := <-waits; !strings.HasPrefix(got, "200 ") {
		t.Error(got)
	}
	eventually(t, "the pool says so", func() error {
		var pools v1alpha1.InferencePoolList
		if err := get(url+"/apis/estiba.dev/v1alpha1/inferencepools", &pools); err != nil {
			return err
		}
		s := pools.Items[0].Status
		if !meta.IsStatusConditionTrue(s.Conditions, v1alpha1.ConditionDegraded) || len(s.Accelerators) != 2 || s.Accelerators[0].State != "Lost" || s.Accelerators[0].Reason != "XID79" ||
			s.Accelerators[1].Power == nil || s.Accelerators[1].Capacity.Value()>>20 != 70<<10*95/100 || *s.Accelerators[1].Power != 90 || s.Summary.Utilization != "50%" || s.Summary.Power != "90W" {
			return fmt.Errorf("%+v", s)
		}
		return nil
	})
	if err := Run(t.Context(), Options{Paths: []string{filepath.Join(folder, "a.yaml")}, Listen: "127.0.0.1:0", Emulate: filepath.Join(folder, "none"), Log: slog.New(slog.DiscardHandler)}); err == nil {
		t.Error("it serves on devices that nothing describes")
	}
}

// TestEmulateLost: a device that is lost from the start keeps a worker from nothing but itself.
func TestEmulateLost(t *testing.T) {
	folder := t.TempDir()
	gpus := filepath.Join(folder, "gpus")
	describe := func(text string) {
		t.Helper()
		if err := os.WriteFile(gpus, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	describe("devices: [{memory: 1Gi}, {memory: 1Gi, xids: [79]}]")
	write(t, filepath.Join(folder, "a.yaml"), fmt.Sprintf(model, "stories", fixture.Model("stories260K/hf-f32")))
	url := serveOn(t, gpus, filepath.Join(folder, "a.yaml"))
	pool := func(says func(s v1alpha1.InferencePoolStatus) bool) func() error {
		return func() error {
			var pools v1alpha1.InferencePoolList
			if err := get(url+"/apis/estiba.dev/v1alpha1/inferencepools", &pools); err != nil {
				return err
			}
			if s := pools.Items[0].Status; !says(s) {
				return fmt.Errorf("%+v", s)
			}
			return nil
		}
	}
	degraded := func(s v1alpha1.InferencePoolStatus) bool {
		return meta.IsStatusConditionTrue(s.Conditions, v1alpha1.ConditionDegraded)
	}
	eventually(t, "the pool says which is lost", pool(func(s v1alpha1.InferencePoolStatus) bool {
		return degraded(s) && len(s.Accelerators) == 2 && s.Accelerators[0].State == "Healthy" && s.Accelerators[1].State == "Lost" && s.Accelerators[1].Reason == "XID79"
	}))
	if got := complete(t, url, "stories", 3); got == "" {
		t.Error("no answer")
	}
	describe("devices: [{memory: 1Gi, xids: [79]}, {memory: 1Gi, xids: [79]}]")
	was := ""
	eventually(t, "the worker is replaced", pool(func(s v1alpha1.InferencePoolStatus) bool {
		if !degraded(s) {
			t.Errorf("nothing is degraded: %+v", s.Conditions)
		}
		if len(s.Accelerators) != 2 {
			return false
		}
		if was == "" {
			was = s.Accelerators[0].Worker
		}
		return s.Accelerators[0].Worker != was && s.Accelerators[0].State == "Lost" && s.Accelerators[1].State == "Lost"
	}))
}

// serveOn serves on the devices that a file describes until the test ends, and logs to logs too; --memory is 70 GiB.
func serveOn(t *testing.T, gpus, manifests string, logs ...io.Writer) (url string) {
	t.Helper()
	address := freeAddress(t)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() {
		ended <- Run(ctx, Options{Paths: []string{manifests}, Listen: address, Emulate: gpus, Memory: 70 << 30, CacheDir: t.TempDir(), Log: slog.New(slog.NewTextHandler(io.MultiWriter(append(logs, t.Output())...), nil))})
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return "http://" + address
}

// TestEmulateStrangers: others take the device on which a model sleeps beside one that stays. It wakes on the other device, though its worker
// is the same, and who has asked for it is answered.
func TestEmulateStrangers(t *testing.T) {
	folder := t.TempDir()
	gpus := filepath.Join(folder, "gpus")
	describe := func(first string) {
		t.Helper()
		if err := os.WriteFile(gpus, []byte("devices: [{memory: 1Gi"+first+"}, {memory: 1Gi}]"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	describe("")
	stories := fixture.Model("stories260K/hf-f32")
	const large = "  context: {maxTokens: 512, sequences: 64}\n"
	write(t, filepath.Join(folder, "a.yaml"), fmt.Sprintf(model, "a", stories)+large+"---\n"+
		fmt.Sprintf(model, "z", stories)+large+"  autoscaling: {min: 0, max: 2, idleAfter: 1s}\n")
	url := serveOn(t, gpus, filepath.Join(folder, "a.yaml"))
	at := func(name, device string) func() error {
		return func() error {
			var models v1alpha1.ModelList
			if err := get(url+"/apis/estiba.dev/v1alpha1/models", &models); err != nil {
				return err
			}
			for _, m := range models.Items {
				if p := m.Status.Placements; m.Name == name && (len(p) != 1 || p[0].Devices[0] != device) {
					return fmt.Errorf("%s is at %+v", name, p)
				}
			}
			return nil
		}
	}
	eventually(t, "it serves", func() error { return serves(url, "a") })
	if got := complete(t, url, "z", 3); got == "" {
		t.Error("no answer")
	}
	eventually(t, "it sleeps", func() error { return reason(url, "z", v1alpha1.ReasonScaledToZero) })
	for _, name := range []string{"a", "z"} {
		eventually(t, name+" is on the first device", at(name, "gpu-0"))
	}
	describe(", others: 950Mi")
	began := time.Now()
	eventually(t, "z is on the other device", at("z", "gpu-1"))
	eventually(t, "it answers", func() error {
		resp, err := http.Post(url+"/v1/completions", "application/json", strings.NewReader(`{"model":"z","prompt":"Once","max_tokens":3}`))
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if text, _ := io.ReadAll(resp.Body); resp.StatusCode != http.StatusOK {
			return fmt.Errorf("%s: %s", resp.Status, text)
		}
		return nil
	})
	if took := time.Since(began); took > 20*time.Second {
		t.Errorf("it took %v", took)
	}
}

// TestEmulateFull: a device is lost, and what stays on the other one leaves no room. Only a person can help, so that requests are not held.
func TestEmulateFull(t *testing.T) {
	folder := t.TempDir()
	gpus := filepath.Join(folder, "gpus")
	describe := func(first string) {
		t.Helper()
		if err := os.WriteFile(gpus, []byte("devices: [{memory: 100Mi"+first+"}, {memory: 100Mi}]"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	describe("")
	stories := fixture.Model("stories260K/hf-f32")
	const large = "  context: {maxTokens: 512, sequences: 160}\n"
	write(t, filepath.Join(folder, "a.yaml"), fmt.Sprintf(model, "a", stories)+large+"---\n"+fmt.Sprintf(model, "b", stories)+large)
	url := serveOn(t, gpus, filepath.Join(folder, "a.yaml"))
	for _, name := range []string{"a", "b"} {
		eventually(t, "it serves", func() error { return serves(url, name) })
	}
	describe(", xids: [79]")
	eventually(t, "one has no room", func() error {
		for _, name := range []string{"a", "b"} {
			if reason(url, name, v1alpha1.ReasonDoesNotFit) != nil {
				continue
			}
			began := time.Now()
			resp, err := http.Post(url+"/v1/completions", "application/json", strings.NewReader(`{"model":"`+name+`","prompt":"Once","max_tokens":3}`))
			if err != nil {
				return err
			}
			defer resp.Body.Close()
			text, _ := io.ReadAll(resp.Body)
			if took := time.Since(began); resp.StatusCode != http.StatusServiceUnavailable || !strings.Contains(string(text), "cannot be served. DoesNotFit: Needs") || took > 5*time.Second {
				t.Errorf("%s after %v: %s", resp.Status, took, text)
			}
			return nil
		}
		return fmt.Errorf("both serve")
	})
}
