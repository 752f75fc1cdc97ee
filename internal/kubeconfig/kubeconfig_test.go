package kubeconfig

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

func TestGet(t *testing.T) {
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	good := "apiVersion: v1\nkind: Config\nclusters: [{name: c, cluster: {server: 'https://127.0.0.1:1'}}]\n" +
		"contexts: [{name: c, context: {cluster: c, namespace: team}}]\ncurrent-context: c\n"
	if err := os.WriteFile(path("good"), []byte(good), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path("large"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path("large"), largest+1); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(path("pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	for file, says := range map[string]string{path("good"): "", "/dev/zero": "it is no file", path("pipe"): "it is no file", dir: "it is no file", path("large"): "more than 16 MiB"} {
		t.Setenv("KUBECONFIG", file)
		for _, explicit := range []string{"", file} {
			c, err := Get(explicit)
			if says == "" && (err != nil || c.Host != "https://127.0.0.1:1") || says != "" && (err == nil || !strings.Contains(err.Error(), says)) {
				t.Errorf("%s, explicitly %q: %v, want %q", file, explicit, err, says)
			}
		}
		if n := Namespace(); (n == "team") != (says == "") {
			t.Errorf("%s: namespace %q", file, n)
		}
	}
}
