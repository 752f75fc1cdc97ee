package archtest

import (
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/estiba/estiba/api/worker"
	"github.com/estiba/estiba/internal/fixture"
)

var series = regexp.MustCompile(`\b(?:estiba_(?:gateway|operator|worker|model|device|energy)_[a-z_]+|vllm:[a-z_]+)`)

// TestContractMetrics compares the series that the sources export with those
// that the contract page promises.
func TestContractMetrics(t *testing.T) {
	root := fixture.Root()
	exported := map[string]bool{}
	for _, pattern := range []string{"controllers/metrics.go", "internal/*/metrics.go", "runtime/*/metrics.go"} {
		files, err := filepath.Glob(filepath.Join(root, pattern))
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			for _, name := range series.FindAllString(read(t, f), -1) {
				exported[name] = true
			}
		}
	}
	promised := series.FindAllString(read(t, filepath.Join(root, "docs/contract.md")), -1)
	for _, name := range promised {
		if !exported[name] {
			t.Errorf("docs/contract.md promises %s, which no metrics.go exports", name)
		}
	}
	for name := range exported {
		if !slices.Contains(promised, name) {
			t.Errorf("%s is exported, but docs/contract.md does not have it", name)
		}
	}
}

// TestContractReasons compares the reasons of conditions with the contract page.
func TestContractReasons(t *testing.T) {
	root := fixture.Root()
	page := read(t, filepath.Join(root, "docs/contract.md"))
	reasons := regexp.MustCompile(`Reason[A-Za-z]+ += "([A-Za-z]+)"`).FindAllStringSubmatch(read(t, filepath.Join(root, "api/v1alpha1/conditions.go")), -1)
	if len(reasons) < 10 {
		t.Fatalf("found only %d reasons", len(reasons))
	}
	for _, r := range reasons {
		if !strings.Contains(page, "`"+r[1]+"`") {
			t.Errorf("docs/contract.md does not say what to do about the reason %s", r[1])
		}
	}
}

// TestContractDevices compares the table of what workers report of devices with the types.
func TestContractDevices(t *testing.T) {
	page := read(t, filepath.Join(fixture.Root(), "docs/contract.md"))
	_, table, _ := strings.Cut(page, "<!-- devices -->")
	table, _, ok := strings.Cut(table, "<!-- end of devices -->")
	if !ok {
		t.Fatal("docs/contract.md has no table of devices")
	}
	promised := map[string]bool{}
	for _, field := range regexp.MustCompile("`([A-Z][A-Za-z]+\\.[a-zA-Z]+)`").FindAllStringSubmatch(table, -1) {
		promised[field[1]] = true
	}
	has := map[string]bool{}
	for _, v := range []any{worker.Device{}, worker.Health{}, worker.Readings{}, worker.HomeState{}} {
		of := reflect.TypeOf(v)
		for i := range of.NumField() {
			tag, _, _ := strings.Cut(of.Field(i).Tag.Get("json"), ",")
			name := of.Name() + "." + tag
			if has[name] = true; !promised[name] && of.Name() != "HomeState" {
				t.Errorf("docs/contract.md does not explain %s", name)
			}
		}
	}
	for name := range promised {
		if !has[name] {
			t.Errorf("docs/contract.md explains %s, which workers do not report", name)
		}
	}
}

// TestDecisionsAreWhereTheMapSays holds docs/architecture.md to the sources:
// every function that it names for a decision exists in the folder it names.
func TestDecisionsAreWhereTheMapSays(t *testing.T) {
	root := fixture.Root()
	row := regexp.MustCompile("(?m)^\\| .*\\? \\| (.*) \\| `([a-z/]+)` \\|$")
	rows := row.FindAllStringSubmatch(read(t, filepath.Join(root, "docs/architecture.md")), -1)
	if len(rows) < 6 {
		t.Fatalf("found %d decisions in docs/architecture.md, want six or more", len(rows))
	}
	name := regexp.MustCompile("`[a-z]+\\.(?:\\(\\*([A-Za-z]+)\\)\\.)?([A-Za-z]+)`")
	for _, r := range rows {
		for _, f := range name.FindAllStringSubmatch(r[1], -1) {
			pattern := "^func " + f[2] + "("
			if f[1] != "" {
				pattern = `^func (\w* *\*` + f[1] + ") " + f[2] + "("
			}
			if out, err := exec.Command("grep", "-rn", "--include=*.go", pattern, filepath.Join(root, r[2])).CombinedOutput(); err != nil {
				t.Errorf("docs/architecture.md names %s in %s, which is not there (%s)", f[0], r[2], out)
			}
		}
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
