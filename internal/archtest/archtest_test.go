// Package archtest holds the map of the program: which folder may import which
// of ours, and what it must not import at all. A folder that is missing from
// the map fails the test.
package archtest

import (
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/estiba/estiba/internal/fixture"
)

const module = "github.com/estiba/estiba/"

// kubernetes are the prefixes of what only the control plane may import.
var kubernetes = []string{"k8s.io/", "sigs.k8s.io/controller-runtime"}

// impure is what decisions must not import: no I/O, no network, no log.
var impure = []string{"os", "os/", "net", "net/", "log", "log/", "syscall", "math/rand", "math/rand/v2", "crypto/rand", "testing"}

// rule says what a folder may import. A name that ends in "/..." stands for
// everything below it.
type rule struct {
	ours []string // folders of this module, besides those below the folder itself
	pure bool     // standard library without impure, nothing of others
	deny []string // prefixes that must not be imported
}

// rules is the map: folder -> rule.
var rules = map[string]rule{
	"cmd/estiba":   {ours: []string{"internal/cli"}},
	"internal/cli": {ours: []string{"..."}},

	"api/v1alpha1": {},
	"api/worker":   {pure: true},

	"controllers":         {ours: []string{"api/...", "internal/policy/packing", "internal/policy/scaling", "internal/status", "internal/file", "internal/fleet", "internal/terminal"}},
	"internal/status":     {ours: []string{"api/v1alpha1"}},
	"internal/fleet":      {ours: []string{"api/worker"}, deny: kubernetes},
	"internal/gateway":    {ours: []string{"api/...", "internal/fleet", "internal/policy/routing"}, deny: kubernetes},
	"internal/source":     {ours: []string{"api/worker"}, deny: kubernetes},
	"internal/history":    {ours: []string{"api/...", "controllers", "internal/kubeconfig", "internal/policy/scaling", "internal/terminal"}},
	"internal/standalone": {ours: []string{"api/...", "controllers", "internal/fleet", "internal/gateway", "internal/history", "internal/source", "runtime/backend", "runtime/backend/named", "runtime/device", "runtime/server", "runtime/worker"}},
	"internal/inspect":    {ours: []string{"api/worker", "kernels/cpu", "runtime/..."}, deny: kubernetes},
	"internal/bench":      {ours: []string{"kernels/cpu", "runtime/..."}, deny: kubernetes},
	"internal/run":        {ours: []string{"internal/file", "runtime/..."}, deny: kubernetes},
	"internal/eval":       {ours: []string{"internal/file", "runtime/..."}, deny: kubernetes},
	"internal/synth":      {ours: []string{"internal/file", "runtime/..."}, deny: kubernetes},
	"internal/file":       {deny: kubernetes},
	"internal/terminal":   {deny: kubernetes},
	"internal/kubeconfig": {},
	"internal/top":        {ours: []string{"api/...", "controllers", "internal/history", "internal/kubeconfig", "internal/terminal"}},
	"internal/explain":    {ours: []string{"api/...", "controllers", "internal/file", "internal/history", "internal/kubeconfig", "internal/standalone"}},
	"internal/simulate":   {ours: []string{"api/worker", "controllers", "internal/policy/packing", "internal/file", "internal/history"}, deny: kubernetes},
	"internal/simworker":  {ours: []string{"api/worker", "runtime/residency"}, deny: kubernetes},
	"internal/fixture":    {ours: []string{"api/...", "runtime/tensor"}},
	"internal/archtest":   {ours: []string{"internal/fixture"}},

	"internal/policy/packing": {ours: []string{"internal/policy/..."}, pure: true},
	"internal/policy/scaling": {ours: []string{"internal/policy/..."}, pure: true},
	"internal/policy/routing": {ours: []string{"internal/policy/..."}, pure: true},

	"runtime/tensor":    {ours: pureRuntime, pure: true},
	"runtime/graph":     {ours: pureRuntime, pure: true},
	"runtime/arch":      {ours: pureRuntime, pure: true},
	"runtime/batching":  {ours: pureRuntime, pure: true},
	"runtime/kvcache":   {ours: pureRuntime, pure: true},
	"runtime/grammar":   {ours: pureRuntime, pure: true},
	"runtime/sampling":  {ours: append([]string{"kernels/cpu"}, pureRuntime...), pure: true},
	"runtime/toolcall":  {ours: []string{"runtime/grammar"}, pure: true},
	"runtime/residency": {ours: append([]string{"api/worker"}, pureRuntime...), pure: true},
	"runtime/energy":    {pure: true},
	"runtime/eval":      {ours: pureRuntime, pure: true},
	"runtime/quantize":  {ours: []string{"runtime/tensor", "kernels/cpu"}, pure: true},

	"runtime/backend":                      {ours: underRuntime, deny: kubernetes},
	"runtime/backend/cpu":                  {ours: underRuntime, deny: kubernetes},
	"runtime/backend/cuda":                 {ours: underRuntime, deny: kubernetes},
	"runtime/backend/cuda/driver":          {ours: []string{"kernels/cuda", "runtime/device/library"}, deny: kubernetes},
	"runtime/backend/cuda/driver/emulated": {deny: kubernetes}, // tests only
	"runtime/backend/cuda/kerneltest":      {deny: kubernetes}, // tests only
	"runtime/backend/named":                {ours: underRuntime, deny: kubernetes},
	"runtime/backend/backendtest":          {ours: append([]string{"internal/fixture"}, underRuntime...), deny: kubernetes},
	"runtime/weights":                      {ours: underRuntime, deny: kubernetes},
	"runtime/tokenizer":                    {ours: underRuntime, deny: kubernetes},
	"runtime/tokenizer/pattern":            {pure: true},
	"runtime/template":                     {ours: underRuntime, deny: kubernetes},
	"runtime/model":                        {ours: underRuntime, deny: kubernetes},
	"runtime/engine":                       {ours: underRuntime, deny: kubernetes},
	"runtime/device":                       {ours: underRuntime, deny: kubernetes},
	"runtime/device/library":               {deny: kubernetes},
	"runtime/worker":                       {ours: underRuntime, deny: kubernetes},
	"runtime/server":                       {ours: underRuntime, deny: kubernetes},

	"kernels/cpu":  {ours: []string{"runtime/tensor"}, deny: kubernetes},
	"kernels/cuda": {ours: []string{"runtime/tensor"}, deny: kubernetes},
}

var (
	pureRuntime  = []string{"runtime/tensor", "runtime/graph", "runtime/arch", "runtime/batching", "runtime/kvcache", "runtime/grammar", "runtime/sampling"}
	underRuntime = []string{"runtime/...", "kernels/...", "api/worker"}
	// alone names the one folder that imports a module of others: what that does when a program starts, or to a process
	// where there is no driver, is seen to there.
	alone = map[string]string{"gorgonia.org/cu": "runtime/backend/cuda/driver", "github.com/NVIDIA/go-nvml": "runtime/device"}
	// onlyTests are folders of tests and of tools, which ship with nobody.
	onlyTests = []string{"test/", "hack/"}
)

func TestImports(t *testing.T) {
	seen := map[string]bool{}
	root := fixture.Root()
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(root, path)
		rel = filepath.ToSlash(rel)
		if d.IsDir() {
			if path != root && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata" || d.Name() == "node_modules") {
				return fs.SkipDir
			}
			if _, err := os.Stat(filepath.Join(path, "go.mod")); err == nil && path != root {
				return fs.SkipDir // a module of its own
			}
			return nil
		}
		if !strings.HasSuffix(rel, ".go") || slices.ContainsFunc(onlyTests, func(p string) bool { return strings.HasPrefix(rel, p) }) {
			return nil
		}
		dir := strings.TrimSuffix(rel, "/"+d.Name())
		r, known := rules[dir]
		if !known {
			if !seen[dir] {
				t.Errorf("folder %s is not in the map: add a rule that says what it may import", dir)
			}
			seen[dir] = true
			return nil
		}
		seen[dir] = true
		if strings.HasSuffix(rel, "_test.go") {
			return nil // tests may reach further, for fixtures and twins
		}
		for _, imported := range imports(t, path) {
			if why := r.forbids(dir, imported); why != "" {
				t.Errorf("%s imports %s: %s", rel, imported, why)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for dir := range rules {
		if !seen[dir] {
			t.Errorf("the map has %s, which does not exist: remove its rule", dir)
		}
	}
}

// forbids says why a file in dir may not import a path, or nothing.
func (r rule) forbids(dir, path string) string {
	for _, p := range r.deny {
		if path == p || strings.HasPrefix(path, p) {
			return "nothing of Kubernetes belongs here"
		}
	}
	for m, folder := range alone {
		if (path == m || strings.HasPrefix(path, m+"/")) && dir != folder {
			return "only " + folder + " does"
		}
	}
	if r.pure {
		for _, p := range impure {
			if path == p || strings.HasSuffix(p, "/") && strings.HasPrefix(path, p) {
				return "this folder decides; I/O, logs and randomness belong to its callers"
			}
		}
		first, _, _ := strings.Cut(path, "/")
		if strings.Contains(first, ".") && !strings.HasPrefix(path, module) {
			return "this folder uses the standard library only"
		}
	}
	ours, isOurs := strings.CutPrefix(path, module)
	if !isOurs || ours == dir || strings.HasPrefix(ours, dir+"/") {
		return ""
	}
	for _, allowed := range r.ours {
		prefix, below := strings.CutSuffix(allowed, "...")
		if ours == allowed || below && strings.HasPrefix(ours+"/", prefix) {
			return ""
		}
	}
	return "the map allows " + strings.Join(append([]string{"the standard library"}, r.ours...), ", ")
}

func imports(t *testing.T, path string) []string {
	t.Helper()
	f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly)
	if err != nil {
		t.Fatal(err)
	}
	var paths []string
	for _, spec := range f.Imports {
		paths = append(paths, strings.Trim(spec.Path.Value, `"`))
	}
	return paths
}

func TestRulesForbid(t *testing.T) {
	for _, c := range []struct {
		dir, path string
		forbidden bool
	}{
		{"internal/policy/packing", "os", true},
		{"internal/policy/packing", "net/http", true},
		{"internal/policy/packing", "slices", false},
		{"internal/policy/packing", module + "internal/policy/scaling", false},
		{"internal/policy/packing", module + "controllers", true},
		{"internal/policy/packing", "github.com/google/go-cmp/cmp", true},
		{"runtime/worker", "k8s.io/api/core/v1", true},
		{"runtime/worker", module + "internal/source", true},
		{"runtime/worker", module + "runtime/engine", false},
		{"controllers", module + "runtime/worker", true},
		{"api/worker", module + "api/v1alpha1", true},
		{"runtime/backend/cuda", "gorgonia.org/cu", true},
		{"runtime/backend/cuda/driver", "gorgonia.org/cu", false},
		{"runtime/worker", "github.com/NVIDIA/go-nvml/pkg/nvml", true},
		{"internal/cli", module + "internal/gateway", false},
	} {
		if why := rules[c.dir].forbids(c.dir, c.path); (why != "") != c.forbidden {
			t.Errorf("%s -> %s: forbidden %v (%s), want %v", c.dir, c.path, why != "", why, c.forbidden)
		}
	}
}
