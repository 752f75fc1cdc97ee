package client

import (
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/openai/openai-go/v3"
)

// The contract names every parameter that the client can send, and every service that it has:
// what is not served is there with its reason.
func TestContract(t *testing.T) {
	page, err := os.ReadFile(filepath.Join("..", "..", "docs", "contract.md"))
	if err != nil {
		t.Fatal(err)
	}
	for endpoint, params := range map[string]any{
		"chat": openai.ChatCompletionNewParams{}, "completions": openai.CompletionNewParams{}, "embeddings": openai.EmbeddingNewParams{},
	} {
		listed := rows(string(page), "parameters", func(cells []string) (string, bool) {
			return cells[0], slices.Contains(strings.Split(cells[1], ", "), endpoint)
		})
		kind := reflect.TypeOf(params)
		for i := range kind.NumField() {
			name, _, _ := strings.Cut(kind.Field(i).Tag.Get("json"), ",")
			if name != "" && name != "-" && !slices.Contains(listed, name) {
				t.Errorf("docs/contract.md does not say what happens to %s of %s", name, endpoint)
			}
		}
	}
	services := strings.Split(strings.Join(rows(string(page), "services", func(cells []string) (string, bool) { return cells[0], true }), "`, `"), "`, `")
	kind := reflect.TypeOf(openai.Client{})
	for i := range kind.NumField() {
		if name := kind.Field(i).Name; name != "Options" && !slices.Contains(services, name) {
			t.Errorf("docs/contract.md does not say what happens to the client's %s", name)
		}
	}
}

// rows are the first cells of a table of the page that stands between comments.
func rows(page, name string, take func(cells []string) (string, bool)) (list []string) {
	_, rest, _ := strings.Cut(page, "<!-- "+name+" -->")
	table, _, _ := strings.Cut(rest, "<!-- end of "+name+" -->")
	for line := range strings.Lines(table) {
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		for i := range cells {
			cells[i] = strings.Trim(strings.TrimSpace(cells[i]), "`")
		}
		if len(cells) < 2 {
			continue
		}
		if s, ok := take(cells); ok {
			list = append(list, s)
		}
	}
	return list
}
