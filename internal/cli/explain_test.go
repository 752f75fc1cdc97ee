package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/estiba/estiba/controllers"
	"github.com/estiba/estiba/internal/fixture"
	"github.com/estiba/estiba/internal/standalone"
)

// TestExplainAndTop asks an estiba serve that holds a model, and has no room for another one.
func TestExplainAndTop(t *testing.T) {
	dir := t.TempDir()
	manifest := func(name, rest string) string {
		return fmt.Sprintf("apiVersion: estiba.dev/v1alpha1\nkind: Model\nmetadata: {name: %s}\nspec: {source: {uri: 'file://%s'}%s}\n",
			name, fixture.Model("stories260K/hf-f32"), rest)
	}
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	serves := file("served.yaml", manifest("stories", "")+"---\n"+manifest("large", ", context: {maxTokens: 512, sequences: 64}"))
	next, twice, wrong := file("next.yaml", manifest("next", "")), file("twice.yaml", manifest("next", ", replicas: 1, autoscaling: {max: 1}")), file("wrong.yaml", manifest("next", ", replica: 1"))
	folder := filepath.Join(dir, "folder")
	if err := os.Mkdir(folder, 0o700); err != nil {
		t.Fatal(err)
	}
	file("folder/next.yaml", manifest("next", ""))
	url := serveInProcess(t, serves, 16<<20)

	estiba := func(stdin string, args ...string) (int, string, string) {
		var stdout, stderr bytes.Buffer
		code := Main(append(args, "--server", url), strings.NewReader(stdin), &stdout, &stderr)
		return code, stdout.String(), stderr.String()
	}
	for name, c := range map[string]struct {
		args, stdin string
		code        int
		says        []string // on standard output, or for a failure on standard error
	}{
		"placed":         {"explain model stories", "", 0, []string{"Model default/stories answers requests on default-", "home ", "resident", "chosen: "}},
		"its full name":  {"explain model default/stories", "", 0, []string{"Model default/stories answers requests"}},
		"does not fit":   {"explain model large", "", 0, []string{"Model default/large is nowhere: it needs ", "KV floor", "What you can do:", "Lower spec.context.sequences of the Model from 64 to "}},
		"unknown":        {"explain model storys", "", 1, []string{"there is no Model default/storys. Did you mean default/stories?"}},
		"elsewhere":      {"explain model stories -n other", "", 1, []string{"Did you mean default/stories?"}},
		"pool":           {"explain pool default", "", 0, []string{"Pool default/default: 1 of 1 worker ready", "# default/stories ", "? default/large, DoesNotFit: it needs "}},
		"no such pool":   {"explain pool a100", "", 1, []string{"there is no InferencePool default/a100: there are default/default"}},
		"would land":     {"explain -f " + next, "", 0, []string{"Model default/next would go to default-", "(estimated)"}},
		"would not":      {"explain -f - --needs 1Gi", manifest("next", ", digest: ''"), 1, []string{`unknown field "digest"`}},
		"said":           {"explain -f - --needs 1Gi", strings.Replace(manifest("next", ""), "hf-f32", "nowhere", 1), 0, []string{"Model default/next would be nowhere: it needs 1 GiB"}},
		"no such source": {"explain -f -", strings.Replace(manifest("next", ""), "hf-f32", "nowhere", 1), 0, []string{"SourceUnavailable", "would be nowhere"}},
		"a rule broken":  {"explain -f " + twice, "", 1, []string{"spec.replicas and spec.autoscaling exclude each other"}},
		"unknown field":  {"explain -f " + wrong, "", 1, []string{`unknown field "replica"`, "wrong.yaml"}},
		"no Model":       {"explain -f -", "# nothing\n", 1, []string{"it has no Model to explain"}},
		"no such thing":  {"explain modle stories", "", 2, []string{"unknown command \"modle\": did you mean model?"}},
		"a folder":       {"explain -f " + folder, "", 0, []string{"Model default/next would go to default-"}},
		"no such size":   {"explain -f - --needs 99999999Ei", manifest("next", ""), 2, []string{"no device has so much"}},
		"no file":        {"explain -f " + dir + "/none.yaml", "", 1, []string{"no such file", "name a manifest with -f"}},
		"top":            {"top", "", 0, []string{"Pool default/default: 1 of 1 worker ready", "[", "# default/stories ", "? default/large, DoesNotFit: it needs "}},
	} {
		t.Run(name, func(t *testing.T) {
			code, stdout, stderr := estiba(c.stdin, strings.Fields(c.args)...)
			out := stdout
			if c.code != 0 {
				out = stderr
			}
			for _, want := range c.says {
				if code != c.code || !strings.Contains(out, want) {
					t.Errorf("exit %d, want %d with %q\n%s%s", code, c.code, want, stdout, stderr)
				}
			}
			if strings.Contains(stdout, "kubectl patch") {
				t.Errorf("there is no cluster:\n%s", stdout)
			}
		})
	}

	var e controllers.Explanation
	if code, out, stderr := estiba("", "explain", "model", "large", "--json"); code != 0 || json.Unmarshal([]byte(out), &e) != nil || len(e.Needs) != 1 || e.Needs[0].KVFloor == 0 || e.Reason != "DoesNotFit" {
		t.Errorf("exit %d: %s%s", code, out, stderr)
	}
	var all struct{ Pools, Models, Stowage []json.RawMessage }
	if code, out, stderr := estiba("", "top", "--json"); code != 0 || json.Unmarshal([]byte(out), &all) != nil || len(all.Pools) != 1 || len(all.Models) != 2 || len(all.Stowage) != 1 {
		t.Errorf("exit %d: %s%s", code, out, stderr)
	}
}

// serveInProcess runs an estiba serve until the test ends, and returns its URL once it is ready.
func serveInProcess(t *testing.T, path string, memory int64) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	l.Close()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() {
		ended <- standalone.Run(ctx, standalone.Options{Paths: []string{path}, Listen: address, Memory: memory, CacheDir: t.TempDir(), Version: "test",
			Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("serve: %v", err)
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
		if time.Now().After(deadline) {
			t.Fatalf("not ready within 30 s: %v", err)
		}
	}
}
