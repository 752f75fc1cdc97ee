package server

import (
	"bufio"
	"context"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

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
	server, e := serveReal(t)

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

// serveReal serves the trained model of the repository as stories.
func serveReal(t *testing.T) (*httptest.Server, *engine.Engine) {
	t.Helper()
	m, err := model.Open(fixture.Model("stories260K/hf-f32"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	b, err := cpu.New("cpu-0", cpu.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	p, err := b.Compile(t.Context(), m.Graph, m.Weights, backend.Limits{MaxTokens: 64, MaxRows: 64, BlockTokens: 16, Blocks: 128, Exact: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	e := engine.New(engine.Options{})
	if err := e.Add(engine.Replica{Name: "default/stories", Program: p, Blocks: 128, BlockTokens: 16, MaxTokens: 640, // beyond what it has learned
		Vocabulary: m.Config.Vocabulary, Hidden: m.Config.Hidden, Stop: m.Config.EOS, StepTokens: 64, StepRows: 64, Waiting: 40, Sequences: 8}); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { e.Run(ctx); close(done) }()
	t.Cleanup(func() { stop(); <-done })
	mux := http.NewServeMux()
	(&OpenAI{Use: func(_ context.Context, name string) (Loaded, func(), error) {
		if name != "stories" {
			return Loaded{}, nil, worker.ErrLacks
		}
		return Loaded{
			Engine: e, Replica: "default/stories", MaxTokens: 640, Tokenizer: m.Tokenizer, Template: m.Template, BOS: m.BOS, EOS: m.EOS,
			Pooling: m.DefaultPooling(), Vocabulary: m.Vocabulary,
		}, func() {}, nil
	}}).Routes(mux)
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	return server, e
}

// ask posts a request and reads its answer, which must be a success.
func ask(t *testing.T, url, body string, into any) {
	t.Helper()
	resp, err := http.Post(url, "application/json", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK || json.Unmarshal(data, into) != nil {
		t.Fatalf("%s: %d %.300s %v", body, resp.StatusCode, data, err)
	}
}

// TestStructures: a model that knows nothing of JSON writes what it must, at any
// temperature, streamed or not.
func TestStructures(t *testing.T) {
	server, _ := serveReal(t)
	const person = `{"type":"object","properties":{"name":{"type":"string","maxLength":8},"age":{"type":"integer","minimum":0,"maximum":120}},"required":["name","age"],"additionalProperties":false}`
	isPerson := func(text string) bool {
		var p map[string]any
		if json.Unmarshal([]byte(text), &p) != nil || len(p) != 2 {
			return false
		}
		name, ok := p["name"].(string)
		age, number := p["age"].(float64)
		return ok && number && utf8.RuneCountInString(name) <= 8 && 0 <= age && age <= 120
	}
	matches := func(pattern string) func(string) bool { return regexp.MustCompile(`^(?:` + pattern + `)$`).MatchString }
	for structure, valid := range map[string]func(string) bool{
		`"response_format":{"type":"json_schema","json_schema":{"name":"person","strict":true,"schema":` + person + `}}`: isPerson,
		`"structured_outputs":{"json":` + person + `}`:                                                                   isPerson,
		`"structured_outputs":{"regex":"[a-c]{3}-[0-9]+é?!"}`:                                                            matches(`[a-c]{3}-[0-9]+é?!`),
		`"structured_outputs":{"choice":["red","green","green blue"]}`:                                                   matches(`red|green|green blue`),
		`"structured_outputs":{"grammar":"root ::= \"yes\" | \"no\" \" \" root"}`:                                        matches(`(no )*yes`),
	} {
		for seed := range 3 {
			temperature := float64(seed) / 2
			for path, prompt := range map[string]string{
				"/v1/completions":      `"prompt":"Once upon a time"`,
				"/v1/chat/completions": `"messages":[{"role":"user","content":"Once"}]`,
			} {
				var o struct {
					Choices []struct {
						Text         string
						Message      struct{ Content string }
						FinishReason string `json:"finish_reason"`
					}
				}
				ask(t, server.URL+path, fmt.Sprintf(`{"model":"stories",%s,"max_tokens":300,"temperature":%g,"seed":%d,%s}`, prompt, temperature, seed, structure), &o)
				if text := o.Choices[0].Text + o.Choices[0].Message.Content; o.Choices[0].FinishReason != "stop" || !valid(text) {
					t.Errorf("%s at %g: %q (%s)", structure, temperature, text, o.Choices[0].FinishReason)
				}
			}
		}
	}
}

// TestForcedCalls: a model that knows nothing of tools calls them when it must.
func TestForcedCalls(t *testing.T) {
	server, _ := serveReal(t)
	const tools = `"tools":[{"type":"function","function":{"name":"add","parameters":{"properties":{"a":{"maximum":99,"type":"integer"}},"required":["a"],"additionalProperties":false}}},
		{"type":"function","function":{"name":"stop"}}]`
	for choice, names := range map[string][]string{
		`"required","parallel_tool_calls":false`:        {"add", "stop"},
		`{"type":"function","function":{"name":"add"}}`: {"add"},
		`{"type":"allowed_tools","allowed_tools":{"mode":"required","tools":[{"type":"function","function":{"name":"stop"}}]}},"parallel_tool_calls":false`: {"stop"},
	} {
		for seed := range 3 {
			var c called
			ask(t, server.URL+"/v1/chat/completions", fmt.Sprintf(`{"model":"stories","messages":[{"role":"user","content":"x"}],"temperature":%g,"seed":%d,%s,"tool_choice":%s}`,
				float64(seed)/2, seed, tools, choice), &c)
			calls := c.Choices[0].Message.ToolCalls
			if len(calls) != 1 || !slices.Contains(names, calls[0].Function.Name) || *c.Choices[0].FinishReason != "tool_calls" {
				t.Fatalf("%s: %s %+v", choice, *c.Choices[0].FinishReason, c)
			}
			var arguments map[string]any
			if err := json.Unmarshal([]byte(calls[0].Function.Arguments), &arguments); err != nil {
				t.Errorf("%s: %q: %v", choice, calls[0].Function.Arguments, err)
			}
			if _, number := arguments["a"].(float64); number != (calls[0].Function.Name == "add") {
				t.Errorf("%s: %v", choice, arguments)
			}
		}
	}
}

func TestEmbeddings(t *testing.T) {
	server, e := serveReal(t)
	var many, coded, one struct {
		Object string
		Data   []struct {
			Object    string
			Index     int
			Embedding any
		}
		Usage map[string]int
	}
	inputs := make([]string, maxInputs) // far more than the engine's queue has room for
	for i := range inputs {
		inputs[i] = fmt.Sprintf("Once upon %d", i%7)
	}
	list, _ := json.Marshal(inputs)
	ask(t, server.URL+"/v1/embeddings", `{"model":"stories","input":`+string(list)+`,"user":"me"}`, &many)
	ask(t, server.URL+"/v1/embeddings", `{"model":"stories","input":"Once upon 3","encoding_format":"base64","dimensions":64}`, &coded)
	ask(t, server.URL+"/v1/embeddings", `{"model":"stories","input":[[1,403,407,300]]}`, &one)
	if many.Object != "list" || len(many.Data) != maxInputs || many.Data[39].Index != 39 || many.Data[0].Object != "embedding" || many.Usage["prompt_tokens"] == 0 || many.Usage["total_tokens"] != many.Usage["prompt_tokens"] {
		t.Fatalf("%d vectors, %v", len(many.Data), many.Usage)
	}
	vector := func(v any) (x []float64) {
		for _, f := range v.([]any) {
			x = append(x, f.(float64))
		}
		return x
	}
	raw, err := base64.StdEncoding.DecodeString(coded.Data[0].Embedding.(string))
	if err != nil || len(raw) != 64*4 {
		t.Fatalf("%d bytes, %v", len(raw), err)
	}
	length := 0.0
	for i, want := range vector(many.Data[3].Embedding) {
		got := float64(math.Float32frombits(binary.LittleEndian.Uint32(raw[4*i:])))
		if math.Abs(got-want) > 1e-6 {
			t.Fatalf("base64 has %g at %d, float %g", got, i, want)
		}
		length += got * got
	}
	if math.Abs(length-1) > 1e-5 {
		t.Errorf("length %g", length)
	}
	if cmp.Equal(vector(many.Data[3].Embedding), vector(many.Data[4].Embedding)) || !cmp.Equal(vector(many.Data[3].Embedding), vector(many.Data[10].Embedding)) {
		t.Error("vectors belong to other texts")
	}
	if len(one.Data) != 1 || one.Usage["prompt_tokens"] != 4 {
		t.Errorf("%+v", one.Usage)
	}
	whole := func(n int) string { return `{"model":"stories","input":[[` + strings.Repeat("403,", n-1) + `403]]}` }
	ask(t, server.URL+"/v1/embeddings", whole(640), &one) // all the context
	for body, says := range map[string]string{
		whole(641):                       "maximum context length is 640 tokens. The prompt has 641 tokens. Shorten it.",
		`{"model":"stories","input":[]}`: "input",
		`{"model":"stories","input":"x","dimensions":32}`:                 "64 dimensions",
		`{"model":"stories","input":"x","encoding_format":"hex"}`:         "base64",
		`{"model":"stories","input":"` + strings.Repeat("x ", 700) + `"}`: "context_length_exceeded",
		`{"model":"stories","input":["x",[9999]]}`:                        "9999",
	} {
		resp, err := http.Post(server.URL+"/v1/embeddings", "application/json", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		data, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != http.StatusBadRequest || !strings.Contains(string(data), says) {
			t.Errorf("%.60s: %d %s", body, resp.StatusCode, data)
		}
	}
	if s, _ := e.Stats("default/stories"); s.KVUsed != 0 || s.Running+s.Waiting != 0 {
		t.Errorf("%+v", s)
	}
}
