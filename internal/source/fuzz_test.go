package source

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/estiba/estiba/api/worker"
)

// FuzzFile: whatever the URI, what comes back lies below the root, or nothing does.
func FuzzFile(f *testing.F) {
	base, err := filepath.EvalSymlinks(f.TempDir())
	if err != nil {
		f.Fatal(err)
	}
	root := base + "/root"
	for _, name := range []string{root + "/m/config.json", base + "/secret/config.json"} {
		if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, []byte("{}"), 0o644)); err != nil {
			f.Fatal(err)
		}
	}
	if err := os.Symlink(base+"/secret", root+"/out"); err != nil {
		f.Fatal(err)
	}
	for _, path := range []string{"/m", "/out", "/../secret", "/%2e%2e/secret", "/m/../../secret", "/out/config.json", "", "/m/%00", "/m?x", "/m#x"} {
		f.Add(path)
	}
	s := &Store{Roots: []string{root}}
	f.Fuzz(func(t *testing.T, path string) {
		got, err := s.Fetch(t.Context(), worker.Source{URI: "file://" + root + path}, nil)
		if err == nil && !below([]string{root}, got) {
			t.Errorf("%q gave %s", path, got)
		}
		if err != nil {
			if e, ok := err.(*Error); !ok || e.Message == "" {
				t.Errorf("%q: %v", path, err)
			}
		}
	})
}
