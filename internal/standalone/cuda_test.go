//go:build cuda && cgo

package standalone

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/estiba/estiba/api/v1alpha1"
	"github.com/estiba/estiba/internal/fixture"
	"github.com/estiba/estiba/runtime/backend"
	"github.com/estiba/estiba/runtime/backend/cuda"
	"github.com/estiba/estiba/runtime/backend/cuda/driver/emulated"
	"github.com/estiba/estiba/runtime/backend/named"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// TestCUDA: one worker has all devices of the process. A pool that wants another one says so at once, and tries nothing; it
// gets its worker when the other pool is gone. The worker is replaced where its pool's spec changes.
func TestCUDA(t *testing.T) {
	if _, err := cuda.Count(); errors.Is(err, cuda.ErrNone) {
		t.Skipf("SKIPPED: %v", err)
	}
	const pool = "---\napiVersion: estiba.dev/v1alpha1\nkind: InferencePool\nmetadata: {name: %s, labels: {tier: %[1]s}}\nspec: {workers: {min: 1, max: 3}%s}\n"
	in := func(pool string) string { return "  poolSelector: {matchLabels: {tier: " + pool + "}}\n" }
	stories := fixture.Model("stories260K/hf-f32")
	b := "---\n" + fmt.Sprintf(model, "other", stories) + in("b")
	file := filepath.Join(t.TempDir(), "m.yaml")
	write(t, file, fmt.Sprintf(model, "stories", stories)+in("a")+fmt.Sprintf(pool, "a", "")+fmt.Sprintf(pool, "b", "")+b)
	url, log := serveOnCUDA(t, file)
	eventually(t, "the first pool serves", func() error { return serves(url, "stories") })
	eventually(t, "the second has no worker", func() error { return reason(url, "other", v1alpha1.ReasonWaitingForWorker) })
	body, _ := json.Marshal(map[string]any{"model": "other", "prompt": "Once", "max_tokens": 1})
	res, err := http.Post(url+"/v1/completions", "application/json", bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	text, _ := io.ReadAll(res.Body)
	res.Body.Close()
	if res.StatusCode != http.StatusServiceUnavailable || !strings.Contains(string(text), "Pool b cannot make a worker: that of pool default/a has all CUDA devices of estiba serve") {
		t.Errorf("%s: %s", res.Status, text)
	}
	if got := complete(t, url, "stories", 3); got == "" {
		t.Error("no answer")
	}
	workers := func() (first string) {
		var models v1alpha1.ModelList
		if err := get(url+"/apis/estiba.dev/v1alpha1/models", &models); err != nil {
			t.Fatal(err)
		}
		for _, m := range models.Items {
			for _, p := range m.Status.Placements {
				if p.State == v1alpha1.PlacementResident {
					first = p.Worker
				}
			}
		}
		return first
	}
	was := workers()
	write(t, file, fmt.Sprintf(model, "stories", stories)+in("a")+fmt.Sprintf(pool, "a", ", memory: {headroom: 6%}")+fmt.Sprintf(pool, "b", "")+b)
	eventually(t, "its worker is replaced", func() error {
		if is := workers(); is == was || is == "" {
			return fmt.Errorf("it is %q", is)
		}
		return serves(url, "stories")
	})
	write(t, file, fmt.Sprintf(model, "other", stories)+in("b")+fmt.Sprintf(pool, "b", ""))
	eventually(t, "the second pool has the devices", func() error { return serves(url, "other") })
	if got := complete(t, url, "other", 3); got == "" {
		t.Error("no answer")
	}
	if text := log(); strings.Contains(text, "worker not started") {
		t.Errorf("a worker was tried in vain:\n%s", text)
	}
}

// TestDeviceOfNoMoreUse: a device that only another process can use ends this one, with an error that has the exit code of that;
// requests end too, and none waits for a worker that will not come.
func TestDeviceOfNoMoreUse(t *testing.T) {
	emulated.Set(t, "devices=1,memory=256Mi,fail=launch:200:700")
	stories := fixture.Model("stories260K/hf-f32")
	file := filepath.Join(t.TempDir(), "m.yaml")
	write(t, file, fmt.Sprintf(model, "stories", stories)+"---\n"+fmt.Sprintf(model, "other", stories))
	url, log, ended, _ := runOnCUDA(t, file)
	eventually(t, "both are served", func() error { return cmp.Or(serves(url, "stories"), serves(url, "other")) })
	var asked sync.WaitGroup
	for _, name := range []string{"stories", "other", "stories", "other"} {
		asked.Go(func() {
			body, _ := json.Marshal(map[string]any{"model": name, "prompt": "Once", "max_tokens": 400})
			for {
				res, err := http.Post(url+"/v1/completions", "application/json", bytes.NewReader(body))
				if err != nil {
					return // nobody listens any more
				}
				res.Body.Close()
			}
		})
	}
	select {
	case err := <-ended:
		if e, ok := errors.AsType[*backend.DeviceError](err); !ok || e.Lost || strings.Contains(err.Error(), "\n") {
			t.Errorf("ended with: %v", err)
		}
	case <-time.After(time.Minute):
		t.Errorf("it goes on:\n%s", log())
	}
	asked.Wait()
}

// TestNoWorkerStarts: why a worker does not start is in its pool's condition and its models', and one line of the log.
func TestNoWorkerStarts(t *testing.T) {
	emulated.Set(t, "devices=1,memory=1Gi,others=1008Mi")
	file := filepath.Join(t.TempDir(), "m.yaml")
	write(t, file, fmt.Sprintf(model, "stories", fixture.Model("stories260K/hf-f32"))+"---\napiVersion: estiba.dev/v1alpha1\nkind: InferencePool\nmetadata: {name: a}\nspec: {workers: {min: 1, max: 1}}\n")
	url, log := serveOnCUDA(t, file)
	const why = "has 16 MiB free"
	eventually(t, "it is said", func() error {
		var models v1alpha1.ModelList
		var pools v1alpha1.InferencePoolList
		if err := cmp.Or(get(url+"/apis/estiba.dev/v1alpha1/models", &models), get(url+"/apis/estiba.dev/v1alpha1/inferencepools", &pools)); err != nil {
			return err
		}
		for _, all := range [][]metav1.Condition{models.Items[0].Status.Conditions, pools.Items[0].Status.Conditions} {
			if ready := meta.FindStatusCondition(all, v1alpha1.ConditionReady); ready == nil || !strings.Contains(ready.Message, why) {
				return fmt.Errorf("it is said: %+v", ready)
			}
		}
		return nil
	})
	if n := strings.Count(log(), "level=WARN"); n != 1 {
		t.Errorf("%d warnings:\n%s", n, log())
	}
}

// TestLostAmongOthers: of a device that is lost the first error is told, in one line; models go to the other one, and that nothing of
// the lost one can be closed is no failure.
func TestLostAmongOthers(t *testing.T) {
	emulated.Set(t, "devices=2,memory=128Mi,fail=copy:40:999")
	file := filepath.Join(t.TempDir(), "m.yaml")
	stories := fixture.Model("stories260K/hf-f32")
	write(t, file, fmt.Sprintf(model, "stories", stories)+"---\n"+fmt.Sprintf(model, "other", stories))
	url, log, ended, end := runOnCUDA(t, file)
	eventually(t, "both are served", func() error { return cmp.Or(serves(url, "stories"), serves(url, "other")) })
	end()
	if err := <-ended; err != nil {
		t.Errorf("Run: %v", err)
	}
	for line := range strings.Lines(log()) {
		if strings.Contains(line, `\n`) || strings.Contains(line, "unmap") || strings.Contains(line, `msg="worker ended"`) && strings.Contains(line, "error=") {
			t.Error(line)
		}
	}
	if !strings.Contains(log(), "is lost: copy to the device: CUDA_ERROR_UNKNOWN (999); look for") {
		t.Errorf("it is not said:\n%s", log())
	}
}

// serveOnCUDA serves on the devices of the driver until the test ends; log is what it has written.
func serveOnCUDA(t *testing.T, manifests string) (url string, log func() string) {
	t.Helper()
	url, log, ended, end := runOnCUDA(t, manifests)
	t.Cleanup(func() {
		end()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return url, log
}

// runOnCUDA is serveOnCUDA until end is called, or it ends by itself.
func runOnCUDA(t *testing.T, manifests string) (url string, log func() string, ended <-chan error, end func()) {
	t.Helper()
	address := freeAddress(t)
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	ran := make(chan error, 1)
	var (
		mu  sync.Mutex
		out bytes.Buffer
	)
	go func() {
		w := writer(func(p []byte) (int, error) { mu.Lock(); defer mu.Unlock(); return out.Write(p) })
		ran <- Run(ctx, Options{Paths: []string{manifests}, Listen: address, Device: named.CUDA, CacheDir: t.TempDir(), Log: slog.New(slog.NewTextHandler(w, nil))})
	}()
	return "http://" + address, func() string { mu.Lock(); defer mu.Unlock(); return out.String() }, ran, cancel
}

type writer func([]byte) (int, error)

func (w writer) Write(p []byte) (int, error) { return w(p) }
