//go:build cuda && cgo

package library

import (
	"cmp"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// build a library of C, which may need other ones.
func build(t *testing.T, source string, needs ...string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "libodd.so.1")
	cc := exec.Command(cmp.Or(os.Getenv("CC"), "cc"), append([]string{"-shared", "-fPIC", "-x", "c", "-", "-o", path, "-Wl,--no-as-needed", "-x", "none"}, needs...)...)
	cc.Stdin = strings.NewReader("#include <signal.h>\n#include <stdio.h>\n#include <stdlib.h>\n#include <unistd.h>\n" + source)
	if out, err := cc.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return path
}

// TestTry: what a library does to who loads it is told in one line, and not done to this process.
func TestTry(t *testing.T) {
	const good = "int begin(unsigned n) { return n ? 1 : 999; }\n"
	constructor := func(body string) string {
		return good + "__attribute__((constructor)) static void first(void) { " + body + " }"
	}
	for name, c := range map[string]struct {
		source string
		says   []string
	}{
		"fails to begin": {good, nil},
		"talks":          {constructor(`puts("hello"); fflush(stdout);`), nil},
		"no function":    {"int end(void) { return 0; }", []string{"libodd.so.1 is not the library that its name says, as it lacks begin; install the driver anew"}},
		"aborts":         {constructor("abort();"), []string{"libodd.so.1 ends the process", "SIGABRT (aborted)", "install the driver anew"}},
		"exits":          {constructor("exit(3);"), []string{"libodd.so.1 ends the process", "exit code 3"}},
		"is killed":      {constructor("raise(SIGKILL);"), []string{"libodd.so.1 ends the process", "SIGKILL"}},
		"begins badly":   {"int begin(unsigned n) { return *(volatile int *)8; }", []string{"SIGSEGV"}},
		"needs another":  {good + "extern int elsewhere; int *also = &elsewhere;", []string{"undefined symbol: elsewhere"}},
	} {
		err := Try(build(t, c.source), "begin")
		if (err == nil) != (c.says == nil) || err != nil && strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v", name, err)
		}
		for _, part := range c.says {
			if err != nil && !strings.Contains(err.Error(), part) {
				t.Errorf("%s: %q does not say %q", name, err, part)
			}
		}
	}
}

// TestTryNeeds: of a library that needs one which is not there, both are named.
func TestTryNeeds(t *testing.T) {
	other := filepath.Join(t.TempDir(), "libother.so.1")
	if err := os.Rename(build(t, "int other;"), other); err != nil {
		t.Fatal(err)
	}
	library := build(t, "int begin(void) { return 0; }", other)
	if err := os.Remove(other); err != nil {
		t.Fatal(err)
	}
	err := Try(library, "begin")
	if want := library + ": " + other + ": cannot open shared object file"; err == nil || !strings.HasPrefix(err.Error(), want) {
		t.Errorf("%v, want %s", err, want)
	}
}

// TestTryHangs: a library that never begins is not waited for for ever.
func TestTryHangs(t *testing.T) {
	began := time.Now()
	err := try(100*time.Millisecond, build(t, "int begin(void) { for (;;) pause(); }"), "begin")
	if err == nil || !strings.Contains(err.Error(), "does not begin within 100ms") {
		t.Error(err)
	}
	if took := time.Since(began); took > 30*time.Second {
		t.Errorf("it took %v", took)
	}
}

// TestTryLoaded: a library that this process has is not tried again, whatever it would do.
func TestTryLoaded(t *testing.T) {
	if err := Try("libc.so.6", "abort"); err != nil {
		t.Error(err)
	}
}

// TestTryDamaged: files that are no whole libraries, where the loader looks for them.
func TestTryDamaged(t *testing.T) {
	whole, err := os.ReadFile(build(t, "int begin(unsigned n) { return 0; }\nchar large[1 << 20] = {1};\nint (*also)(unsigned) = begin;"))
	if err != nil {
		t.Fatal(err)
	}
	folder := t.TempDir()
	t.Setenv("LD_LIBRARY_PATH", folder)
	file, link := filepath.Join(folder, "libodd.so.1.2"), filepath.Join(folder, "libodd.so.1")
	if err := os.Symlink(file, link); err != nil {
		t.Fatal(err)
	}
	elsewhere := append([]byte(nil), whole...)
	elsewhere[18], elsewhere[19] = 2, 0 // e_machine of SPARC
	for name, c := range map[string]struct {
		file []byte
		as   string // how it is opened
		says []string
	}{
		"truncated":     {whole[:8192], link, []string{file, "SIGBUS"}},
		"empty":         {nil, link, []string{link, "file too short", "; install the driver anew"}},
		"no library":    {[]byte(strings.Repeat("text\n", 1000)), link, []string{link, "invalid ELF header", "; install the driver anew"}},
		"other machine": {elsewhere, "libodd.so.1", []string{"No such file", "(" + link + " is for EM_SPARC)"}},
	} {
		if err := os.WriteFile(file, c.file, 0o600); err != nil {
			t.Fatal(err)
		}
		err := Try(c.as, "begin")
		for _, part := range c.says {
			if err == nil || !strings.Contains(err.Error(), part) || strings.Contains(err.Error(), "\n") {
				t.Errorf("%s: %v does not say %q", name, err, part)
			}
		}
	}
}

// TestTryAnother: of a library that is another one, its file is named. The loader reads LD_LIBRARY_PATH when a process starts.
func TestTryAnother(t *testing.T) {
	const folder = "ESTIBA_OTHER_LIBRARY"
	if in := os.Getenv(folder); in != "" {
		err := Try("libodd.so.1", "begin")
		if want := in + "/libodd.so.1 is not the library that its name says, as it lacks begin; install the driver anew"; err == nil || err.Error() != want {
			t.Errorf("%v, want %s", err, want)
		}
		return
	}
	in := filepath.Dir(build(t, "int end(void) { return 0; }"))
	again := exec.Command(os.Args[0], "-test.run", "^TestTryAnother$")
	again.Env = append(os.Environ(), folder+"="+in, "LD_LIBRARY_PATH="+in)
	if out, err := again.CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}

// TestTryMissing: a library that is nowhere is told from one that is there and of no use.
func TestTryMissing(t *testing.T) {
	folder := t.TempDir()
	t.Setenv("LD_LIBRARY_PATH", folder)
	const name = "libodd.so.1"
	if err := Try(name, "begin"); !errors.Is(err, ErrMissing) || strings.Contains(err.Error(), "anew") {
		t.Error(err)
	}
	if err := os.Mkdir(filepath.Join(folder, name), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := Try(filepath.Join(folder, name), "begin"); err == nil || errors.Is(err, ErrMissing) || !strings.HasSuffix(err.Error(), "; install the driver anew") {
		t.Error(err)
	}
}
