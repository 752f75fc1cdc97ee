package file

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestRead(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	if err := os.WriteFile(path, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	if b, err := Read(t.Context(), path, 1<<20); err != nil || len(b) != 1<<20 {
		t.Errorf("%d bytes, %v", len(b), err)
	}
	for path, says := range map[string]string{
		path:                        "more than 0 MiB",
		"/dev/zero":                 "more than 0 MiB",
		dir:                         "is a directory",
		filepath.Join(dir, "other"): "no such file",
	} {
		if _, err := Read(t.Context(), path, 1<<20-1); err == nil || !strings.Contains(err.Error(), "read "+path) || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v", path, err)
		}
	}
	pipe := filepath.Join(dir, "pipe")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := Read(ctx, pipe, 1); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a pipe without a writer: %v", err)
	}
}

func TestCreate(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	check(os.MkdirAll(at("real/deep"), 0o755))
	check(os.WriteFile(at("secret"), []byte("old"), 0o600))
	check(os.WriteFile(at("shared"), []byte("old"), 0o664))
	check(os.Chmod(at("shared"), 0o664))
	check(os.WriteFile(at("real/file"), []byte("old"), 0o640))
	check(os.Symlink("real/file", at("link")))
	check(os.Symlink("link", at("link to link")))
	check(os.Symlink("real/deep", at("folder")))
	check(os.Symlink("../later", at("real/deep/dangling")))
	check(os.Symlink("loop", at("loop")))
	check(os.Symlink("nowhere/file", at("astray")))
	check(syscall.Mkfifo(at("pipe"), 0o600))

	for name, c := range map[string]struct {
		real string
		mode fs.FileMode
	}{
		"secret":          {"secret", 0o600},
		"shared":          {"shared", 0o664},
		"link":            {"real/file", 0o640},
		"link to link":    {"real/file", 0o640},
		"folder/dangling": {"real/later", 0o666},
		"new":             {"new", 0o666},
	} {
		before := links(t, dir)
		r, err := Create(at(name))
		check(err)
		if info, err := r.f.Stat(); err != nil || info.Mode().Perm()&^c.mode != 0 {
			t.Errorf("%s: in the making it has mode %v", name, info.Mode())
		}
		f, no := unnamed(dir, 0o600) // not on every system
		can := no == nil
		if can {
			f.Close()
		}
		r.Write([]byte("unfinished"))
		if entries, err := filepath.Glob(filepath.Join(filepath.Dir(at(c.real)), ".*")); err != nil || r.name == "" && len(entries) > 0 || r.name != "" && can {
			t.Errorf("%s: in the making it has a name, which stays if the process is killed: %v", name, entries)
		}
		r.Discard()
		r, err = Create(at(name))
		check(err)
		r.Write([]byte(name))
		check(r.Commit())
		r.Discard()
		got, err := os.ReadFile(at(c.real))
		if err != nil || string(got) != name {
			t.Errorf("%s: %s has %q, %v", name, c.real, got, err)
		}
		if info, err := os.Stat(at(c.real)); err != nil || info.Mode() != c.mode && c.mode != 0o666 {
			t.Errorf("%s: mode %v, want %v", name, info.Mode(), c.mode)
		}
		if after := links(t, dir); after != before {
			t.Errorf("%s: links were %s and are %s", name, before, after)
		}
	}
	for name, says := range map[string]string{
		"pipe":        "a device or a pipe",
		"real":        "it is a folder",
		"real/":       "it is a folder",
		"new/":        "it is a folder",
		"none/file":   "no folder " + at("none"),
		"secret/file": "not a directory",
		"loop":        "too many levels",
		"astray":      "no folder " + at("nowhere"),
	} {
		path := dir + "/" + name
		_, err := Create(path)
		if err == nil || !strings.Contains(err.Error(), says) || !strings.Contains(err.Error(), "write "+path) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, device := range []string{"/dev/null", "/dev/full"} {
		if _, err := Create(device); err == nil {
			t.Errorf("%s would be replaced", device)
		}
	}
	check(fs.WalkDir(os.DirFS(dir), ".", func(path string, d fs.DirEntry, err error) error {
		if strings.HasPrefix(d.Name(), ".") && path != "." {
			t.Errorf("%s is left", path)
		}
		return err
	}))
}

// links are the links below a folder.
func links(t *testing.T, dir string) string {
	var all []string
	err := fs.WalkDir(os.DirFS(dir), ".", func(path string, d fs.DirEntry, err error) error {
		if d.Type()&fs.ModeSymlink != 0 {
			all = append(all, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(all, " ")
}
