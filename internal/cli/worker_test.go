package cli

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	api "github.com/estiba/estiba/api/worker"
	"github.com/estiba/estiba/internal/fixture"
	"github.com/estiba/estiba/runtime/backend/cuda"
	"github.com/estiba/estiba/runtime/device"
)

func TestWorkerUsage(t *testing.T) {
	token := filepath.Join(t.TempDir(), "token")
	os.WriteFile(token, []byte("t"), 0o600)
	good := []string{"worker", "--pool", "default/cpu", "--token-file", token, "--listen", "127.0.0.1:0"}
	for name, c := range map[string]struct {
		args []string
		exit int
		says string
	}{
		"no pool":               {[]string{"worker", "--token-file", token}, 2, "NAMESPACE/NAME"},
		"half a pool":           {append(good, "--pool", "cpu"), 2, "NAMESPACE/NAME"},
		"no token":              {[]string{"worker", "--pool", "default/cpu"}, 2, "--token-file"},
		"token of another kind": {[]string{"worker", "--pool", "default/cpu", "--token-file", fixture.Model("stories260K/stories260K-f16.gguf")}, 1, "holds something else"},
		"token not there":       {append(good, "--token-file", token+"x"), 1, "read token"},
		"headroom":              {append(good, "--headroom", "5"), 2, "0% to 50%"},
		"too much":              {append(good, "--headroom", "60%"), 2, "0% to 50%"},
		"memory":                {append(good, "--memory", "lots"), 2, "2Gi"},
		"no memory":             {append(good, "--memory", "1Ki"), 1, "no room for a model"},
		"cache":                 {append(good, "--cache-size", "-1"), 2, "2Gi"},
		"root":                  {append(good, "--model-root", "models"), 2, "absolute path"},
		"arguments":             {append(good, "more"), 2, ""},
		"no such GPUs":          {append(good, "--emulate", token+"x"), 1, "read emulated devices"},
		"two kinds of GPUs":     {append(good, "--emulate", token, "--device", "cuda"), 2, "leave out one of them"},
		"no GPUs":               {append(good, "--emulate", token), 1, "read emulated devices"},
		"address is taken":      {append(good, "--listen", "256.0.0.1:1"), 1, "--listen"},
	} {
		var stderr strings.Builder
		if got := Main(c.args, strings.NewReader(""), io.Discard, &stderr); got != c.exit || !strings.Contains(stderr.String(), c.says) {
			t.Errorf("%s: exit %d, %q", name, got, stderr.String())
		}
	}
}

// TestWorker runs the command's worker from its first assignment to its end.
func TestWorker(t *testing.T) {
	dir := t.TempDir()
	token := filepath.Join(dir, "token")
	os.WriteFile(token, []byte("t"), 0o600)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	address, ended := make(chan net.Addr, 1), make(chan error, 1)
	go func() {
		ended <- runWorker(ctx, workerOptions{
			name: "w0", pool: "default/cpu", listen: "127.0.0.1:0", tokenFile: token, cacheDir: dir + "/cache", cacheSize: "1Gi",
			memory: "64Mi", headroom: "5%", modelRoots: []string{fixture.Root()}, drain: time.Second,
		}, slog.New(slog.DiscardHandler), func(a net.Addr) { address <- a })
	}()
	url := "http://" + (<-address).String()
	call := func(method, path, body string) api.State {
		t.Helper()
		req, _ := http.NewRequest(method, url+path, strings.NewReader(body))
		req.Header.Set("Authorization", "Bearer t")
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		var s api.State
		if err := json.NewDecoder(resp.Body).Decode(&s); err != nil || resp.StatusCode != 200 {
			t.Fatalf("%s: %v", resp.Status, err)
		}
		return s
	}
	s := call("GET", api.PathState, "")
	if s.Worker != "w0" || s.Pool != "default/cpu" || len(s.Devices) != 1 || s.Devices[0].CapacityBytes > 61<<20 || s.Devices[0].CapacityBytes < 60<<20 {
		t.Errorf("%+v", s)
	}
	body, _ := json.Marshal(api.Assignment{Epoch: 1, Generation: 1, Instance: s.Instance, Homes: []api.Home{{
		Model: "default/stories", Revision: "1", Source: api.Source{URI: "file://" + fixture.Model("stories260K/stories260K-f16.gguf")}, Devices: []string{"cpu-0"}, Resident: true,
	}}})
	call("PUT", api.PathAssignment, string(body))
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if s = call("GET", api.PathState, ""); s.Homes[0].Phase == api.PhaseResident {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%+v", s)
		}
	}
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// TestWorkerExpectsGPU: a worker that is to have a GPU and finds none says so, and lets the processor compute only where it is told to, or can do
// nothing else.
func TestWorkerExpectsGPU(t *testing.T) {
	_, none := cuda.Count()
	if none == nil {
		t.Skip("there is a CUDA device")
	}
	stands := "gpu-0"
	if errors.Is(none, cuda.ErrBuild) {
		stands = "cpu-0"
	}
	log := slog.New(slog.DiscardHandler)
	for _, c := range []struct{ device, expects, want, says string }{
		{"auto", "", "cpu-0", ""},
		{"auto", "nvidia.com/gpu", stands, "The container asks for a GPU (nvidia.com/gpu), and "},
		{"cuda", "nvidia.com/gpu", "gpu-0", "The container asks for a GPU (nvidia.com/gpu), and there is none to be had: no CUDA device"},
		{"cpu", "nvidia.com/gpu", "cpu-0", ""},
		{"cuda", "", "", ""},
	} {
		all, _, missing, err := workerOptions{device: c.device, expects: c.expects}.devices(device.Options{Expected: 64 << 20}, nil, log)
		if c.want == "" {
			if !errors.Is(err, cuda.ErrNone) {
				t.Errorf("%+v: %v", c, err)
			}
			continue
		}
		if err != nil || len(all) != 1 || all[0].Name != c.want || all[0].Lost != (c.want == "gpu-0") || !strings.HasPrefix(missing, c.says) || (missing == "") != (c.says == "") {
			t.Errorf("%+v: %+v, %q, %v", c, all, missing, err)
		}
	}
	t.Setenv("ESTIBA_DEVICE", "cpu")
	if got := workerCommand().Flags().Lookup("device").DefValue; got != "cpu" {
		t.Errorf("ESTIBA_DEVICE is cpu, and --device %q", got)
	}
}
