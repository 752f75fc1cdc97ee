package apitest

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"github.com/estiba/estiba/api/v1alpha1"
	"github.com/estiba/estiba/controllers"
	"github.com/estiba/estiba/internal/fixture"
)

func model(name, spec string) string {
	return "apiVersion: estiba.dev/v1alpha1\nkind: Model\nmetadata: {name: " + name + ", namespace: default}\nspec: " + spec + "\n"
}

func pool(name, spec string) string {
	return "apiVersion: estiba.dev/v1alpha1\nkind: InferencePool\nmetadata: {name: " + name + ", namespace: default}\nspec: " + spec + "\n"
}

// TestRules breaks every rule once. The API server and programs without one
// (controllers.Validate) say the same.
func TestRules(t *testing.T) {
	const uri = "source: {uri: 'file:///models/x'}"
	long := strings.Repeat("x", 64)
	for name, c := range map[string]struct{ manifest, message string }{
		"no source":              {model("x", "{replicas: 1}"), "spec.source"},
		"replicas and autoscale": {model("x", "{"+uri+", replicas: 1, autoscaling: {min: 0, max: 2}}"), "write replicas for a fixed number, or autoscaling with min and max"},
		"min above max":          {model("x", "{"+uri+", autoscaling: {min: 3, max: 2}}"), "spec.autoscaling.min must not be larger than spec.autoscaling.max"},
		"unknown scheme":         {model("x", "{source: {uri: 'ftp://x/y'}}"), "must start with file://, http:// or https://"},
		"no scheme":              {model("x", "{source: {uri: '/models/x'}}"), "for example file:///models/my-model"},
		"two slashes":            {model("x", "{source: {uri: 'file://models/x'}}"), "write three slashes"},
		"digest":                 {model("x", "{source: {uri: 'file:///x', digest: 'sha256:12'}}"), "64 lower-case hexadecimal digits, as sha256sum prints them"},
		"long name":              {model(long, "{"+uri+"}"), "put long names in spec.servedNames"},
		"negative replicas":      {model("x", "{"+uri+", replicas: -1}"), "spec.replicas"},
		"context":                {model("x", "{"+uri+", context: {maxTokens: 3}}"), "spec.context.maxTokens"},
		"precision":              {model("x", "{"+uri+", precision: {format: Int3}}"), "AsStored"},
		"eviction":               {model("x", "{"+uri+", eviction: Sometimes}"), "spec.eviction"},
		"pool min above max":     {pool("p", "{workers: {min: 2, max: 1}}"), "spec.workers.min must not be larger than spec.workers.max"},
		"pool replicas":          {pool("p", "{workers: {min: 0, max: 1}, replicas: 2}"), "raise workers.max or lower replicas"},
		"pool replicas, default": {pool("p", "{replicas: 2}"), "raise workers.max or lower replicas"},
		"headroom":               {pool("p", "{memory: {headroom: 51%}}"), "a whole percentage from 0% to 50%, as in 5%"},
		"device":                 {pool("p", "{device: {memory: -1Gi}}"), "spec.device.memory must not be negative: write a size, as in 16Gi"},
		"host":                   {pool("p", "{memory: {host: -1Gi}}"), "spec.memory.host must not be negative: write a size, as in 8Gi"},
		"cache":                  {pool("p", "{cache: {size: -1}}"), "spec.cache.size must not be negative: write a size, as in 10Gi"},
		"model root":             {pool("p", "{modelRoots: [models]}"), "an absolute path, as in /models"},
		"selector missing":       {pool("p", "{allowedNamespaces: {from: Selector}}"), "goes with from: Selector, and only with it"},
		"selector without":       {pool("p", "{allowedNamespaces: {from: All, selector: {}}}"), "goes with from: Selector, and only with it"},
		"pool name":              {pool(long, "{}"), "at most 50 characters and no dots"},
		"pool name with dots":    {pool("a.b", "{}"), "at most 50 characters and no dots"},
		"idle after":             {model("x", "{"+uri+", autoscaling: {idleAfter: '-5m'}}"), "spec.autoscaling.idleAfter is a duration in h, m, s or ms, as in 90s or 1h30m"},
		"drain":                  {pool("p", "{update: {drain: '-5m'}}"), "spec.update.drain is a duration"},
		"scale down":             {pool("p", "{scaleDown: {after: '-5m'}}"), "spec.scaleDown.after is a duration"},
		"moves":                  {pool("p", "{moves: {maxPerHour: 1000}}"), "spec.moves.maxPerHour"},
		"bytes of moves":         {pool("p", "{moves: {maxBytesPerHour: '-1Gi'}}"), "spec.moves.maxBytesPerHour must not be negative"},
		"update":                 {pool("p", "{update: {type: Recreate}}"), "Rolling"},
	} {
		t.Run(name, func(t *testing.T) {
			err := cluster.Client.Create(t.Context(), object(t, c.manifest), client.DryRunAll)
			if !apierrors.IsInvalid(err) || !strings.Contains(err.Error(), c.message) {
				t.Errorf("the API server says %v, want ...%s...", err, c.message)
			}
			if err := validate(t, c.manifest); err == nil || !strings.Contains(err.Error(), c.message) {
				t.Errorf("without an API server: %v, want ...%s...", err, c.message)
			}
		})
	}
}

// TestUnreadable: what the operator's types cannot read must not get into the
// API server, or one Model would keep it from reading any.
func TestUnreadable(t *testing.T) {
	for name, manifest := range map[string]string{
		"idle after":  model("x", "{source: {uri: 'file:///models/x'}, autoscaling: {idleAfter: 5 minutes}}"),
		"drain":       pool("p", "{update: {drain: soon}}"),
		"scale down":  pool("p", "{scaleDown: {after: '5'}}"),
		"memory":      pool("p", "{device: {memory: plenty}}"),
		"host":        pool("p", "{memory: {host: plenty}}"),
		"cache":       pool("p", "{cache: {size: plenty}}"),
		"template":    pool("p", "{template: []}"),
		"workers":     pool("p", "{workers: {max: 4294967296}}"),
		"unavailable": pool("p", "{update: {maxUnavailable: 4294967296}}"),
		"priority":    pool("p", "{allowedNamespaces: {from: All, maxPriority: 4294967296}}"),
		"selector":    model("x", "{source: {uri: 'file:///models/x'}, poolSelector: {matchLabels: {a: 1}}}"),
	} {
		if err := cluster.Client.Create(t.Context(), object(t, manifest), client.DryRunAll); !apierrors.IsInvalid(err) {
			t.Errorf("%s: the API server says %v", name, err)
		}
	}
}

func object(t *testing.T, manifest string) *unstructured.Unstructured {
	t.Helper()
	o := &unstructured.Unstructured{}
	if err := yaml.Unmarshal([]byte(manifest), &o.Object); err != nil {
		t.Fatal(err)
	}
	return o
}

func validate(t *testing.T, manifest string) error {
	t.Helper()
	if strings.Contains(manifest, "kind: InferencePool") {
		var p v1alpha1.InferencePool
		if err := yaml.Unmarshal([]byte(manifest), &p); err != nil {
			t.Fatal(err)
		}
		return controllers.ValidatePool(controllers.DefaultedPool(p))
	}
	var m v1alpha1.Model
	if err := yaml.Unmarshal([]byte(manifest), &m); err != nil {
		t.Fatal(err)
	}
	return controllers.Validate(controllers.Defaulted(m))
}

// TestSamples applies every file of config/samples; what the API server fills
// in is what controllers.Defaulted fills in.
func TestSamples(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(fixture.Root(), "config", "samples", "*.yaml"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no samples: %v", err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			o := object(t, string(text))
			o.SetNamespace("default")
			if err := cluster.Client.Create(t.Context(), o, client.DryRunAll, client.FieldValidation("Strict")); err != nil {
				t.Fatal(err)
			}
			if err := validate(t, string(text)); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestDefaults compares what the API server fills in with controllers.Defaulted.
func TestDefaults(t *testing.T) {
	for _, manifest := range []string{
		model("plain", "{source: {uri: 'file:///models/x'}}"),
		model("scaled", "{source: {uri: 'file:///models/x'}, autoscaling: {}}"),
	} {
		var local v1alpha1.Model
		if err := yaml.Unmarshal([]byte(manifest), &local); err != nil {
			t.Fatal(err)
		}
		remote := local.DeepCopy()
		// As a client without our types would send it.
		o := object(t, manifest)
		if err := cluster.Client.Create(t.Context(), o, client.DryRunAll); err != nil {
			t.Fatal(err)
		}
		fromUnstructured(t, o, remote)
		if want, got := asYAML(t, remote.Spec), asYAML(t, controllers.Defaulted(local).Spec); want != got {
			t.Errorf("the API server makes\n%s\nDefaulted makes\n%s", want, got)
		}
	}
	for _, manifest := range []string{pool("plain", "{}"), pool("some", "{workers: {min: 1}}")} {
		var local v1alpha1.InferencePool
		if err := yaml.Unmarshal([]byte(manifest), &local); err != nil {
			t.Fatal(err)
		}
		remote := local.DeepCopy()
		o := object(t, manifest)
		if err := cluster.Client.Create(t.Context(), o, client.DryRunAll); err != nil {
			t.Fatal(err)
		}
		fromUnstructured(t, o, remote)
		if want, got := asYAML(t, remote.Spec), asYAML(t, controllers.DefaultedPool(local).Spec); want != got {
			t.Errorf("the API server makes\n%s\nDefaultedPool makes\n%s", want, got)
		}
	}
}
