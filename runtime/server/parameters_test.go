package server

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/estiba/estiba/internal/fixture"
)

var update = flag.Bool("update", false, "write the table of parameters into docs/contract.md")

// TestContractParameters compares the table of parameters with the contract page.
func TestContractParameters(t *testing.T) {
	var table strings.Builder
	table.WriteString("| parameter | of | verdict | |\n|---|---|---|---|\n")
	for _, p := range parameters {
		note := p.note
		if p.neutral != nil {
			note += "; accepted: `" + strings.Join(p.neutral, "`, `") + "`"
		}
		fmt.Fprintf(&table, "| `%s` | %s | %s | %s |\n", p.name, p.of, p.verdict, strings.ReplaceAll(note, "|", "\\|"))
	}
	path := filepath.Join(fixture.Root(), "docs/contract.md")
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	const begin, end = "<!-- parameters -->\n", "<!-- end of parameters -->\n"
	before, rest, ok := strings.Cut(string(data), begin)
	written, after, ends := strings.Cut(rest, end)
	switch {
	case !ok || !ends:
		t.Fatal("docs/contract.md has no place for the parameters")
	case *update:
		if err := os.WriteFile(path, []byte(before+begin+table.String()+end+after), 0o644); err != nil {
			t.Fatal(err)
		}
	case written != table.String():
		t.Errorf("docs/contract.md lists other parameters; go test ./runtime/server -run %s -update writes:\n%s", t.Name(), table.String())
	}
}

// TestParametersAreTaken: the endpoints take what the table says is served, and
// nothing else; either way they panic otherwise.
func TestParametersAreTaken(t *testing.T) {
	for of, parse := range map[endpoint]func([]byte) (asked, *apiError){
		chat: parseChat, completions: parseCompletion, tokenize: parseTokenize, detokenize: parseDetokenize, embeddings: parseEmbeddings,
	} {
		for _, p := range parameters {
			if p.of&of == 0 {
				continue
			}
			for _, value := range append([]string{"null", `{"a":1}`}, p.neutral...) {
				_, e := parse([]byte(`{"` + p.name + `":` + value + `}`))
				if e == nil {
					t.Fatalf("%s takes a body without a model", of)
				}
				if named := e.Param == p.name; named && p.verdict != served && value != `{"a":1}` || named && p.verdict == ignored {
					t.Errorf("%s with %s of %s: %s", of, p.name, value, e.Message)
				}
			}
		}
	}
}
