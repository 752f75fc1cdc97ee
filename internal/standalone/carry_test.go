package standalone

import (
	"os"
	"path/filepath"
	"testing"
)

// A manifest that is read again is another generation only if its spec says
// something else: what a person has asked for is known by that.
func TestGenerationFollowsTheSpec(t *testing.T) {
	file := filepath.Join(t.TempDir(), "m.yaml")
	read := func(labels, size string) Manifests {
		text := `{apiVersion: estiba.dev/v1alpha1, kind: InferencePool, metadata: {name: p, labels: {` + labels + `}}, spec: {workers: {max: 1}, device: {memory: ` + size + `}}}`
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		m, err := Read(file)
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	old := read("a: b", "1Gi")
	_ = old.Pools[0].Spec.Device.Memory.String() // it keeps how it was written
	for _, c := range []struct {
		labels, size string
		want         int64
	}{
		{"a: b", "1Gi", 1}, {"a: c", "1Gi", 1}, {"a: c", "1024Mi", 1}, {"a: c", "2Gi", 2},
	} {
		old = carryOver(old, read(c.labels, c.size))
		if p := old.Pools[0]; p.Generation != c.want || p.Labels["a"] == "" {
			t.Errorf("%s %s: generation %d, want %d", c.labels, c.size, p.Generation, c.want)
		}
	}
}
