package template

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/estiba/estiba/internal/fixture"
)

// TestRealTemplates renders what transformers rendered.
func TestRealTemplates(t *testing.T) {
	dir := fixture.Shared(t, "tokenizers/chat-templates")
	raw, err := os.ReadFile(filepath.Join(dir, "cases.json"))
	if err != nil {
		t.Fatal(err)
	}
	var cases []struct {
		Template, Conversation  string
		Messages, Tools, Kwargs json.RawMessage
		AddGenerationPrompt     bool   `json:"add_generation_prompt"`
		BOS                     string `json:"bos_token"`
		EOS                     string `json:"eos_token"`
		Now                     string
		Rendered                *string
		Error                   *string
	}
	if err := json.Unmarshal(raw, &cases); err != nil {
		t.Fatal(err)
	}
	for _, c := range cases {
		t.Run(c.Template+"/"+c.Conversation, func(t *testing.T) {
			source, err := os.ReadFile(filepath.Join(dir, c.Template))
			if err != nil {
				t.Fatal(err)
			}
			parsed, err := Parse(c.Template, string(source))
			if err != nil {
				t.Fatal(err)
			}
			now, err := time.Parse("2006-01-02T15:04:05", c.Now)
			if err != nil {
				t.Fatal(err)
			}
			got, err := parsed.Render(Input{
				Messages: c.Messages, Tools: c.Tools, Kwargs: c.Kwargs,
				AddGenerationPrompt: c.AddGenerationPrompt, BOS: c.BOS, EOS: c.EOS, Now: now,
			})
			if c.Rendered == nil {
				if err == nil {
					t.Fatalf("got %q, want the error %q", got.Text, *c.Error)
				}
				return
			}
			if err != nil || got.Text != *c.Rendered {
				t.Errorf("got  %q, %v\nwant %q", got.Text, err, *c.Rendered)
			}
		})
	}
}
