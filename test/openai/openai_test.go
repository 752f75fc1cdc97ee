package openai

import (
	"bytes"
	"context"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/estiba/estiba/internal/fixture"
)

// The official clients ask estiba serve for everything that it serves.
func TestClients(t *testing.T) {
	url := serve(t)
	t.Run("go", func(t *testing.T) {
		run(t, url, fixture.Root()+"/test/openai-go", "go", "test", "-count=1", ".")
	})
	t.Run("node", func(t *testing.T) {
		folder := fixture.Root() + "/test/openai-node"
		if _, err := exec.LookPath("node"); err != nil {
			t.Skip("SKIPPED: node is missing; make test-kubernetes installs it")
		}
		if _, err := os.Stat(filepath.Join(folder, "node_modules", "openai")); err != nil {
			t.Skip("SKIPPED: the client is not installed; run npm ci in test/openai-node")
		}
		run(t, url, folder, "node", "client.test.mjs", url+"/v1")
	})
}

func run(t *testing.T, url, folder, program string, args ...string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), program, args...)
	cmd.Dir, cmd.Env = folder, append(os.Environ(), "OPENAI_TEST_URL="+url+"/v1")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// serve runs estiba serve on the models, and gives its address once all of them are as they should be.
func serve(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	program := filepath.Join(dir, "estiba")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", program, "./cmd/estiba")
	build.Dir = fixture.Root()
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	models := filepath.Join(dir, "models")
	Write(t, models)
	manifest := filepath.Join(dir, "models.yaml")
	fixture.WriteFile(t, manifest, []byte(strings.ReplaceAll(Models, "PATH", models)))

	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	l.Close()
	cmd := exec.CommandContext(context.WithoutCancel(t.Context()), program, "serve", "-f", manifest, "--listen", address, "--memory", "512Mi", "--cache-dir", filepath.Join(dir, "cache"))
	var log bytes.Buffer
	cmd.Stderr = &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		if err := <-ended; err != nil {
			t.Errorf("estiba serve: %v", err)
		}
		if t.Failed() {
			t.Logf("estiba serve said:\n%s", log.String())
		}
	})
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		resp, err := http.Get("http://" + address + "/readyz")
		if err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return "http://" + address
			}
		}
		select {
		case err := <-ended:
			ended <- err
			t.Fatalf("estiba serve ended: %v", err)
		default:
		}
		if time.Now().After(deadline) {
			t.Fatalf("not ready: %v", err)
		}
	}
}
