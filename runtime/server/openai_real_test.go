package server

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/estiba/estiba/internal/fixture"
	"github.com/estiba/estiba/runtime/backend"
	"github.com/estiba/estiba/runtime/backend/cpu"
	"github.com/estiba/estiba/runtime/engine"
	"github.com/estiba/estiba/runtime/model"
	"github.com/estiba/estiba/runtime/worker"
)

// TestRealModel: all reference texts at once over HTTP, streamed and not, as an
// independent program has them.
func TestRealModel(t *testing.T) {
	data, err := os.ReadFile(fixture.Shared(t, "models/stories260K/cases.json"))
	if err != nil {
		t.Fatal(err)
	}
	var cases []struct {
		Name, Prompt string
		MaxNewTokens int `json:"max_new_tokens"`
		Greedy       struct{ F32 struct{ Text, Finish string } }
	}
	if err := json.Unmarshal(data, &cases); err != nil || len(cases) == 0 {
		t.Fatalf("%d cases, %v", len(cases), err)
	}
	m, err := model.Open(fixture.Model("stories260K/hf-f32"))
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	b := cpu.New("cpu-0", cpu.Options{})
	defer b.Close()
	p, err := b.Compile(t.Context(), m.Graph, m.Weights, backend.Limits{MaxTokens: 64, MaxRows: 8, BlockTokens: 16, Blocks: 128})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	e := engine.New(engine.Options{})
	if err := e.Add(engine.Replica{Name: "default/stories", Program: p, Blocks: 128, BlockTokens: 16, MaxTokens: 512,
		Vocabulary: m.Config.Vocabulary, Stop: m.Config.EOS, StepTokens: 64, StepRows: 8}); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { e.Run(ctx); close(done) }()
	defer func() { stop(); <-done }()
	mux := http.NewServeMux()
	(&OpenAI{Use: func(_ context.Context, name string) (Loaded, func(), error) {
		if name != "stories" {
			return Loaded{}, nil, worker.ErrLacks
		}
		return Loaded{Engine: e, Replica: "default/stories", Tokenizer: m.Tokenizer, Template: m.Template}, func() {}, nil
	}}).Routes(mux)
	server := httptest.NewServer(mux)
	defer server.Close()

	type object struct {
		Choices []struct {
			Text         string
			FinishReason *string `json:"finish_reason"`
		}
		Error any
	}
	ask := func(prompt string, n int, stream bool) (text, finish string) {
		body, _ := json.Marshal(map[string]any{"model": "stories", "prompt": prompt, "max_tokens": n, "temperature": 0, "stream": stream})
		resp, err := http.Post(server.URL+"/v1/completions", "application/json", strings.NewReader(string(body)))
		if err != nil {
			return err.Error(), ""
		}
		defer resp.Body.Close()
		add := func(data string) {
			var o object
			if err := json.Unmarshal([]byte(data), &o); err != nil || o.Error != nil || len(o.Choices) != 1 {
				text += fmt.Sprintf("<%s: %v>", data, err)
				return
			}
			text += o.Choices[0].Text
			if why := o.Choices[0].FinishReason; why != nil {
				finish = *why
			}
		}
		for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
			line := lines.Text()
			if stream {
				line = strings.TrimPrefix(line, "data: ")
			}
			if line != "" && line != "[DONE]" {
				add(line)
			}
		}
		return text, finish
	}
	var wait sync.WaitGroup
	for i, c := range cases {
		for _, stream := range []bool{false, true} {
			wait.Go(func() {
				text, finish := ask(c.Prompt, c.MaxNewTokens, stream)
				if want := c.Greedy.F32; text != want.Text || finish != want.Finish {
					t.Errorf("case %d %s, stream %t: %q (%s), want %q (%s)", i, c.Name, stream, text, finish, want.Text, want.Finish)
				}
			})
		}
	}
	wait.Wait()
	if s, _ := e.Stats("default/stories"); s.KVUsed != 0 || s.Running+s.Waiting != 0 {
		t.Errorf("%+v", s)
	}
}
