package server

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	api "github.com/estiba/estiba/api/worker"
	"github.com/estiba/estiba/internal/fixture"
	"github.com/estiba/estiba/internal/fleet"
	"github.com/estiba/estiba/runtime/backend"
	"github.com/estiba/estiba/runtime/batching"
	"github.com/estiba/estiba/runtime/engine"
	"github.com/estiba/estiba/runtime/grammar"
	"github.com/estiba/estiba/runtime/sampling"
	"github.com/estiba/estiba/runtime/template"
	"github.com/estiba/estiba/runtime/tokenizer"
	"github.com/estiba/estiba/runtime/toolcall"
	"github.com/estiba/estiba/runtime/worker"
)

const (
	vocabulary = 512
	endToken   = 2
)

// script is a program that says the same ids to everybody, or others to every second sequence.
type script struct {
	ids    []int32
	second []int32
	said   map[uint64]int
	failAt int           // the step that fails; 0: none
	step   chan struct{} // if set, each step waits for one
	steps  int
}

func (p *script) Run(ctx context.Context, b batching.Batch, out *backend.Out) error {
	if p.step != nil {
		select {
		case <-p.step:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if p.steps++; p.steps == p.failAt {
		return errors.New("the device fell off the bus")
	}
	out.Logits = make([]float32, b.Logits()*vocabulary)
	row := 0
	for _, s := range b.Spans {
		if s.Rows == batching.AllRows {
			row += len(s.Tokens) - 1
		}
		if s.Rows == batching.NoRows {
			continue
		}
		next := int32(endToken)
		ids := p.ids
		if p.second != nil && s.Sequence%2 == 0 {
			ids = p.second
		}
		if n := p.said[s.Sequence]; n < len(ids) {
			next = ids[n]
		}
		p.said[s.Sequence]++
		out.Logits[row*vocabulary+int(next)] = 9
		row++
	}
	return nil
}

func (p *script) Bytes() backend.Bytes { return backend.Bytes{} }
func (p *script) Close() error         { return nil }

// fake is what the handlers get from a worker: one home with a real tokenizer
// and a scripted program.
type fake struct {
	engine  *engine.Engine
	program *script
	held    int // uses that have not been released
	handler http.Handler
}

func newFake(t testing.TB, says string, change func(*script, *engine.Replica)) *fake {
	t.Helper()
	tok, err := tokenizer.Open(fixture.Model("stories260K/hf-f32"))
	if err != nil {
		t.Fatal(err)
	}
	p := &script{ids: tok.Encode(says, false), said: map[uint64]int{}}
	r := engine.Replica{
		Name: "default/stories", Program: p, Blocks: 16, BlockTokens: 16, MaxTokens: 256, Vocabulary: vocabulary,
		Stop: []int32{endToken}, Sequences: 4, Waiting: 4,
	}
	if change != nil {
		change(p, &r)
	}
	f := &fake{engine: engine.New(engine.Options{Log: slog.New(slog.DiscardHandler)}), program: p}
	if err := f.engine.Add(r); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { f.engine.Run(ctx); close(done) }()
	t.Cleanup(func() { stop(); <-done })

	o := &OpenAI{
		Use: func(ctx context.Context, model string) (Loaded, func(), error) {
			switch model {
			case "default/stories", "stories":
				f.held++
				return Loaded{Engine: f.engine, Replica: r.Name, MaxTokens: r.MaxTokens, Tokenizer: tok}, func() { f.held-- }, nil
			case "default/asleep": // does not wake
				<-ctx.Done()
				return Loaded{}, nil, ctx.Err()
			case "default/refused":
				return Loaded{}, nil, &worker.UnavailableError{Model: model, Reason: "DoesNotFit", Message: "It needs 2 GiB, 1 GiB is free.", RetryAfter: 1500 * time.Millisecond}
			}
			return Loaded{}, nil, worker.ErrLacks
		},
		Homes: func() []api.HomeState {
			return []api.HomeState{{Model: "default/stories", ServedNames: []string{"stories", "gpt-tiny"}}, {Model: "default/other"}}
		},
	}
	mux := http.NewServeMux()
	o.Routes(mux)
	f.handler = mux
	return f
}

func (f *fake) post(path, body string, headers ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest("POST", path, strings.NewReader(body))
	for i := 0; i < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	w := httptest.NewRecorder()
	f.handler.ServeHTTP(w, r)
	return w
}

// parsed is an answer without what differs each time.
func parsed(t *testing.T, data []byte) map[string]any {
	t.Helper()
	var m map[string]any
	if err := json.Unmarshal(data, &m); err != nil {
		t.Fatalf("%v in %s", err, data)
	}
	delete(m, "id")
	delete(m, "created")
	return m
}

func asJSON(t *testing.T, v any) string {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// events are a stream's data lines, without what differs each time.
func events(t *testing.T, body string) (list []string) {
	t.Helper()
	for line := range strings.SplitSeq(strings.TrimSuffix(body, "\n\n"), "\n\n") {
		data, ok := strings.CutPrefix(line, "data: ")
		if !ok {
			t.Fatalf("not an event: %q", line)
		}
		if data != "[DONE]" {
			data = asJSON(t, parsed(t, []byte(data)))
		}
		list = append(list, data)
	}
	return list
}

func TestAnswers(t *testing.T) {
	f := newFake(t, "there was a little girl", nil)
	for name, c := range map[string]struct{ path, body, want string }{
		"completion": {
			"/v1/completions", `{"model":"stories","prompt":"Once upon a time","temperature":0}`,
			`{"choices":[{"finish_reason":"stop","index":0,"logprobs":null,"text":" there was a little girl"}],"model":"stories","object":"text_completion",
			"usage":{"completion_tokens":7,"prompt_tokens":5,"prompt_tokens_details":{"cached_tokens":0},"total_tokens":12}}`,
		},
		"ids, bounded": {
			"/v1/completions", `{"model":"stories","prompt":[1,403,407,261,378],"temperature":0,"max_tokens":2,"user":"me","n":1,"suffix":null}`,
			`{"choices":[{"finish_reason":"length","index":0,"logprobs":null,"text":" there was"}],"model":"stories","object":"text_completion",
			"usage":{"completion_tokens":2,"prompt_tokens":5,"prompt_tokens_details":{"cached_tokens":0},"total_tokens":7}}`,
		},
		"two prompts": {
			"/v1/completions", `{"model":"stories","prompt":["Once upon a time",[1,403]],"temperature":0,"max_tokens":1}`,
			`{"choices":[{"finish_reason":"length","index":0,"logprobs":null,"text":" there"},{"finish_reason":"length","index":1,"logprobs":null,"text":" there"}],
			"model":"stories","object":"text_completion",
			"usage":{"completion_tokens":2,"prompt_tokens":7,"prompt_tokens_details":{"cached_tokens":0},"total_tokens":9}}`,
		},
		"chat": {
			"/v1/chat/completions", `{"model":"stories","messages":[{"role":"developer","content":"Be kind."},{"role":"user","content":[{"type":"text","text":"Tell "},{"type":"text","text":"me"}]}],
			"temperature":0,"max_completion_tokens":3,"response_format":{"type": "text"},"tools":[]}`,
			`{"choices":[{"finish_reason":"length","index":0,"logprobs":null,"message":{"content":" there was a","refusal":null,"role":"assistant"}}],"model":"stories","object":"chat.completion",
			"usage":{"completion_tokens":3,"prompt_tokens":74,"prompt_tokens_details":{"cached_tokens":0},"total_tokens":77}}`,
		},
		"three of each, echoed": {
			"/v1/completions", `{"model":"stories","prompt":["Once",[1,403]],"temperature":0,"max_tokens":1,"n":2,"seed":3,"echo":true}`,
			`{"choices":[{"finish_reason":"length","index":0,"logprobs":null,"text":"Once there"},{"finish_reason":"length","index":1,"logprobs":null,"text":"Once there"},
			{"finish_reason":"length","index":2,"logprobs":null,"text":"Once there"},{"finish_reason":"length","index":3,"logprobs":null,"text":"Once there"}],
			"model":"stories","object":"text_completion",
			"usage":{"completion_tokens":4,"prompt_tokens":4,"prompt_tokens_details":{"cached_tokens":0},"total_tokens":8}}`,
		},
		"the prompt only": {
			"/v1/completions", `{"model":"stories","prompt":"Once upon","max_tokens":0,"echo":true}`,
			`{"choices":[{"finish_reason":"length","index":0,"logprobs":null,"text":"Once upon"}],"model":"stories","object":"text_completion",
			"usage":{"completion_tokens":0,"prompt_tokens":3,"prompt_tokens_details":{"cached_tokens":0},"total_tokens":3}}`,
		},
		"stop string kept": {
			"/v1/completions", `{"model":"stories","prompt":"Once","temperature":0,"stop":["was a","s"],"include_stop_str_in_output":true,"min_tokens":2}`,
			`{"choices":[{"finish_reason":"stop","index":0,"logprobs":null,"text":" there was"}],"model":"stories","object":"text_completion",
			"usage":{"completion_tokens":2,"prompt_tokens":2,"prompt_tokens_details":{"cached_tokens":0},"total_tokens":4}}`,
		},
		"no stop string so early": {
			"/v1/completions", `{"model":"stories","prompt":"Once","temperature":0,"stop":["there"],"min_tokens":2}`,
			`{"choices":[{"finish_reason":"stop","index":0,"logprobs":null,"text":" there was a little girl"}],"model":"stories","object":"text_completion",
			"usage":{"completion_tokens":7,"prompt_tokens":2,"prompt_tokens_details":{"cached_tokens":0},"total_tokens":9}}`,
		},
		"end token": {
			"/v1/completions", `{"model":"stories","prompt":"Once","temperature":0,"stop_token_ids":[261],"ignore_eos":true}`,
			`{"choices":[{"finish_reason":"stop","index":0,"logprobs":null,"text":" there was"}],"model":"stories","object":"text_completion",
			"usage":{"completion_tokens":2,"prompt_tokens":2,"prompt_tokens_details":{"cached_tokens":0},"total_tokens":4}}`,
		},
		"tokenize":         {"/tokenize", `{"model":"stories","prompt":"Once upon a time","return_token_strs":false}`, `{"count":5,"max_model_len":256,"tokens":[1,403,407,261,378],"token_strs":null}`},
		"tokenize nothing": {"/tokenize", `{"model":"stories","prompt":"","add_special_tokens":false}`, `{"count":0,"max_model_len":256,"tokens":[],"token_strs":null}`},
		"detokenize":       {"/detokenize", `{"model":"stories","tokens":[403,407,261,378]}`, `{"prompt":"Once upon a time"}`},
		"whole characters": {"/tokenize", `{"model":"stories","prompt":"\ud83d\ude00\\ud83d","add_special_tokens":false}`, `{"count":11,"max_model_len":256,"tokens":[410,243,162,155,131,500,425,418,487,472,418],"token_strs":null}`},
		"stop string": {
			"/v1/completions", `{"model":"stories","prompt":"Once","temperature":0,"stop":["zebra","s a li"]}`,
			`{"choices":[{"finish_reason":"stop","index":0,"logprobs":null,"text":" there wa"}],"model":"stories","object":"text_completion",
			"usage":{"completion_tokens":4,"prompt_tokens":2,"prompt_tokens_details":{"cached_tokens":0},"total_tokens":6}}`,
		},
	} {
		w := f.post(c.path, c.body)
		var want any
		if err := json.Unmarshal([]byte(c.want), &want); err != nil {
			t.Fatal(err)
		}
		got := parsed(t, w.Body.Bytes())
		if w.Code != 200 || w.Header().Get("Content-Type") != "application/json" || !cmp.Equal(any(got), want) {
			t.Errorf("%s: %d %s", name, w.Code, cmp.Diff(want, any(got)))
		}
	}
	if f.held != 0 {
		t.Errorf("%d uses were not released", f.held)
	}
}

func TestModels(t *testing.T) {
	f := newFake(t, "", nil)
	w := httptest.NewRecorder()
	f.handler.ServeHTTP(w, httptest.NewRequest("GET", "/v1/models", nil))
	want := `{"data":[{"id":"stories","object":"model","created":0,"owned_by":"estiba"},{"id":"gpt-tiny","object":"model","created":0,"owned_by":"estiba"},` +
		`{"id":"default/other","object":"model","created":0,"owned_by":"estiba"}],"object":"list"}`
	if w.Code != 200 || w.Body.String() != want {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}

func TestStream(t *testing.T) {
	f := newFake(t, "there was", nil)
	for name, c := range map[string]struct {
		path, body string
		want       []string
	}{
		"chat": {"/v1/chat/completions", `{"model":"m","messages":[{"role":"user","content":"hi"}],"stream":true,"temperature":0}`, []string{
			`{"choices":[{"delta":{"content":"","role":"assistant"},"finish_reason":null,"index":0,"logprobs":null}],"model":"m","object":"chat.completion.chunk"}`,
			`{"choices":[{"delta":{"content":" there"},"finish_reason":null,"index":0,"logprobs":null}],"model":"m","object":"chat.completion.chunk"}`,
			`{"choices":[{"delta":{"content":" was"},"finish_reason":null,"index":0,"logprobs":null}],"model":"m","object":"chat.completion.chunk"}`,
			`{"choices":[{"delta":{},"finish_reason":"stop","index":0,"logprobs":null}],"model":"m","object":"chat.completion.chunk"}`,
			`[DONE]`,
		}},
		"completion with usage": {"/v1/completions", `{"model":"m","prompt":"hi","stream":true,"temperature":0,"max_tokens":1,"stream_options":{"include_usage":true}}`, []string{
			`{"choices":[{"finish_reason":null,"index":0,"logprobs":null,"text":" there"}],"model":"m","object":"text_completion","usage":null}`,
			`{"choices":[{"finish_reason":"length","index":0,"logprobs":null,"text":""}],"model":"m","object":"text_completion","usage":null}`,
			`{"choices":[],"model":"m","object":"text_completion","usage":{"completion_tokens":1,"prompt_tokens":3,"prompt_tokens_details":{"cached_tokens":0},"total_tokens":4}}`,
			`[DONE]`,
		}},
	} {
		w := f.post(c.path, c.body, api.HeaderModel, "default/stories", api.HeaderRequestID, "req-7")
		if w.Code != 200 || w.Header().Get("Content-Type") != "text/event-stream" || !w.Flushed || w.Header().Get(api.HeaderRequestID) != "req-7" {
			t.Errorf("%s: %d %v", name, w.Code, w.Header())
		}
		if diff := cmp.Diff(c.want, events(t, w.Body.String())); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}

const oneTool = `{"type":"function","function":{"name":"look","description":"Look it up.","parameters":{"type":"object","properties":{"what":{"type":"string"}}},"strict":false}}`

// calls are what a model says that calls a tool twice, after a word.
const calls = "Well <tool_call>\n{\"name\": \"look\", \"arguments\": {\"what\": \"é\"}}\n</tool_call>\n<tool_call>\n{\"name\": \"look\", \"arguments\": {}}\n</tool_call>"

// called is the part of a chat's answer that clients act upon.
type called struct {
	Choices []struct {
		Index        int
		FinishReason *string `json:"finish_reason"`
		Message      struct {
			Content   *string
			ToolCalls []toolCall `json:"tool_calls"`
		}
		Delta struct {
			Role      string
			Content   *string
			ToolCalls []toolCall `json:"tool_calls"`
		}
	}
}

type toolCall struct {
	Index    *int
	ID, Type string
	Function struct{ Name, Arguments string }
}

// TestSpecialTokensAreText: what users write is never a control token, wherever it stands;
// what the template writes is.
func TestSpecialTokensAreText(t *testing.T) {
	chat, err := template.Parse("test", `{% for m in messages %}<s>{{ m.role }} {{ m.content }}{% for c in m.tool_calls or [] %}{{ c.function.arguments | tojson }}{% endfor %}</s>{% endfor %}{{ extra }}`)
	if err != nil {
		t.Fatal(err)
	}
	tok, err := tokenizer.Open(fixture.Model("stories260K/hf-f32"))
	if err != nil {
		t.Fatal(err)
	}
	f := parseFields(tokenize, []byte(`{"messages":[{"role":"user","content":"a</s><s>b"},
		{"role":"assistant","content":[{"type":"text","text":"</"},{"type":"text","text":"s>"}],"tool_calls":[{"function":{"name":"f","arguments":"{\"</s>\":\"<s>\"}"}}]}],
		"chat_template_kwargs":{"extra":"</s>"}}`))
	d := f.dialog()
	if f.err != nil {
		t.Fatal(f.err)
	}
	ids, e := d.encode(call{Loaded: Loaded{Tokenizer: tok, Template: chat}})
	if e != nil {
		t.Fatal(e)
	}
	const begin, end = 1, 2
	count := map[int32]int{}
	for _, id := range ids {
		count[id]++
	}
	if text := tok.Decode(ids, false); count[begin] != 2 || count[end] != 2 || strings.Count(text, "</s>") != 4 || strings.Count(text, "<s>") != 2 {
		t.Errorf("%v: %q", ids, text)
	}
	// What an answer goes on from is the user's text, too.
	d.messages, d.resume, d.generate = d.messages[:1], true, false
	ids, e = d.encode(call{Loaded: Loaded{Tokenizer: tok, Template: chat}})
	if text := tok.Decode(ids, true); e != nil || !strings.HasSuffix(text, "a</s><s>b") || slices.Contains(ids, end) {
		t.Errorf("%v: %q, %v", ids, text, e)
	}
}

// TestTokenBytes: bytes of a character come apart in logprobs and together in the text.
func TestTokenBytes(t *testing.T) {
	f := newFake(t, "é😀", nil)
	w := f.post("/v1/chat/completions", `{"model":"stories","messages":[{"role":"user","content":"hi"}],"temperature":0,"logprobs":true}`)
	var o struct {
		Choices []struct {
			Message  struct{ Content string }
			Logprobs struct{ Content []logprob }
		}
	}
	if err := json.Unmarshal(w.Body.Bytes(), &o); err != nil {
		t.Fatal(err)
	}
	var all []byte
	var split bool
	for _, l := range o.Choices[0].Logprobs.Content {
		for _, b := range l.Bytes {
			all = append(all, byte(b))
		}
		split = split || strings.HasPrefix(l.Token, `\x`)
	}
	if text := o.Choices[0].Message.Content; text != string(all) || strings.TrimSpace(text) != "é😀" || !split {
		t.Errorf("%q of bytes %q in %s", text, all, w.Body)
	}
	w = f.post("/v1/completions", `{"model":"stories","prompt":"hi","temperature":0,"logprobs":0}`)
	if !strings.Contains(w.Body.String(), `"bytes:\\xf0"`) {
		t.Errorf("%s", w.Body)
	}
}

// TestLenientMessages: what clients send back of earlier answers is taken.
func TestLenientMessages(t *testing.T) {
	f := parseFields(chat, []byte(`{"messages":[{"role":"assistant","content":null},{"role":"assistant"},
		{"role":"assistant","content":[{"type":"text","text":"No"},{"type":"refusal","refusal":", I will not."}]},
		{"role":"assistant","tool_calls":[{"function":{"name":"f","arguments":"{\"a\":1,\"b\":{\"c\":1,\"c\":\"\\ud800\"},\"a\":2}"}}]}]}`))
	d := f.dialog()
	if f.err != nil {
		t.Fatal(f.err)
	}
	want := `[{"role":"assistant","content":""},{"role":"assistant","content":""},{"role":"assistant","content":"No, I will not."},` +
		`{"role":"assistant","content":"","tool_calls":[{"function":{"name":"f","arguments":{"a":2,"b":{"c":1,"c":"\ud800"}}},"type":"function"}]}]`
	if got := string(encoded(d.messages)); got != want {
		t.Error(got)
	}
	chat, err := template.Parse("test", `{% for m in messages %}{% for c in m.tool_calls or [] %}{{ c.function.arguments | tojson }}{% endfor %}{% endfor %}`)
	if err != nil {
		t.Fatal(err)
	}
	tok, err := tokenizer.Open(fixture.Model("stories260K/hf-f32"))
	if err != nil {
		t.Fatal(err)
	}
	ids, e := d.encode(call{Loaded: Loaded{Tokenizer: tok, Template: chat}})
	if text := tok.Decode(ids, false); e != nil || text != `{"a": 2, "b": {"c": "`+"\ufffd"+`"}}` {
		t.Errorf("%v: %q", e, text)
	}
}

// TestToolsOfTemplates: tools may lack what a template counts on, and are shown as they are otherwise.
func TestToolsOfTemplates(t *testing.T) {
	tok, err := tokenizer.Open(fixture.Model("stories260K/hf-f32"))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ source, want, param string }{
		{`{{ tools[0] | tojson }}`, `{"type": "function", "function": {"name": "f"}}`, ""},
		{`{{ "// " + tools[0].function.description + tools[0].function.parameters.type }}`, "// object", ""},
		{`{% if tools %}{{ tools[0].function.description + 1 }}{% endif %}`, "", "tools"},
		{`{% if tools %}{{ raise_exception("no tools") }}{% endif %}`, "", "tools"},
		{`{{ raise_exception("never") }}`, "", "messages"},
	} {
		chat, err := template.Parse("test", c.source)
		if err != nil {
			t.Fatal(err)
		}
		asked, e := parseChat([]byte(`{"model":"m","messages":[{"role":"user","content":"x"}],"tools":[{"type":"function","function":{"name":"f"}}]}`))
		if e != nil {
			t.Fatal(e)
		}
		ids, e := asked.(*generation).dialog.encode(call{Loaded: Loaded{Tokenizer: tok, Template: chat}})
		if e != nil && e.Param != c.param || (e == nil) != (c.param == "") || e == nil && tok.Decode(ids, false) != c.want {
			t.Errorf("%s: %q %+v", c.source, tok.Decode(ids, false), e)
		}
	}
	source, err := os.ReadFile(fixture.Shared(t, "tokenizers/chat-templates/openai-gpt-oss-120b.jinja"))
	if err != nil {
		t.Fatal(err)
	}
	chat, err := template.Parse("gpt-oss", string(source))
	if err != nil {
		t.Fatal(err)
	}
	asked, _ := parseChat([]byte(`{"model":"m","messages":[{"role":"user","content":"x"}],"tools":[{"type":"function","function":{"name":"f"}}]}`))
	if _, e := asked.(*generation).dialog.encode(call{Loaded: Loaded{Tokenizer: tok, Template: chat}}); e != nil {
		t.Error(e.Message)
	}
}

func roomy(_ *script, r *engine.Replica) { r.Blocks, r.MaxTokens = 64, 1024 }

func TestToolCalls(t *testing.T) {
	f := newFake(t, calls, roomy)
	ask := func(more string) called {
		t.Helper()
		w := f.post("/v1/chat/completions", `{"model":"stories","messages":[{"role":"user","content":"x"}],"temperature":0,"tools":[`+oneTool+`]`+more+`}`)
		var c called
		if err := json.Unmarshal(w.Body.Bytes(), &c); err != nil || w.Code != 200 || len(c.Choices) != 1 {
			t.Fatalf("%d %s: %v", w.Code, w.Body, err)
		}
		return c
	}
	for more, want := range map[string]struct {
		content string
		calls   []string
		finish  string
	}{
		``:                             {"Well", []string{`look {"what": "é"}`, `look {}`}, "tool_calls"},
		`,"parallel_tool_calls":false`: {"Well", []string{`look {"what": "é"}`}, "tool_calls"},
		`,"tool_choice":"none"`:        {" " + calls, nil, "stop"},
		`,"stop":"</tool_call>"`:       {"Well", []string{`look {"what": "é"}`}, "tool_calls"},
		`,"tool_choice":{"type":"allowed_tools","allowed_tools":{"mode":"auto","tools":[{"type":"function","function":{"name":"look"}}]}}`: {"Well", []string{`look {"what": "é"}`, `look {}`}, "tool_calls"},
	} {
		c := ask(more).Choices[0]
		var got []string
		ids := map[string]bool{}
		for _, call := range c.Message.ToolCalls {
			got = append(got, call.Function.Name+" "+call.Function.Arguments)
			if call.ID == "" || ids[call.ID] || call.Type != "function" || call.Index != nil {
				t.Errorf("%s: %+v", more, call)
			}
			ids[call.ID] = true
		}
		if c.Message.Content == nil || strings.TrimSpace(*c.Message.Content) != strings.TrimSpace(want.content) || !cmp.Equal(got, want.calls) || *c.FinishReason != want.finish {
			t.Errorf("%s: %v %q, finish %s", more, c.Message.Content, got, *c.FinishReason)
		}
	}
	// Nothing but a call: no content.
	f = newFake(t, calls[len("Well "):], roomy)
	if c := ask("").Choices[0]; c.Message.Content != nil || len(c.Message.ToolCalls) != 2 {
		t.Errorf("%+v", c)
	}
}

// TestToolCallStream: a call's first part has its id and name, further ones only arguments.
func TestToolCallStream(t *testing.T) {
	f := newFake(t, calls, roomy)
	w := f.post("/v1/chat/completions", `{"model":"stories","messages":[{"role":"user","content":"x"}],"temperature":0,"stream":true,"tools":[`+oneTool+`]}`)
	var content, finish string
	var got []toolCall
	first := true
	for _, e := range events(t, w.Body.String()) {
		var c called
		if e == "[DONE]" {
			continue
		}
		if err := json.Unmarshal([]byte(e), &c); err != nil || len(c.Choices) != 1 {
			t.Fatalf("%s: %v", e, err)
		}
		d := c.Choices[0].Delta
		if (d.Role == "assistant") != first {
			t.Errorf("role in %s", e)
		}
		first = false
		if d.Content != nil {
			content += *d.Content
		}
		for _, call := range d.ToolCalls {
			switch {
			case call.Index == nil || *call.Index > len(got):
				t.Fatalf("index in %s", e)
			case *call.Index == len(got):
				if call.ID == "" || call.Type != "function" || call.Function.Name != "look" {
					t.Errorf("first part %s", e)
				}
				got = append(got, call)
			case call.ID != "" || call.Type != "" || call.Function.Name != "":
				t.Errorf("later part %s", e)
			default:
				got[*call.Index].Function.Arguments += call.Function.Arguments
			}
		}
		if r := c.Choices[0].FinishReason; r != nil {
			finish = *r
		}
	}
	if strings.TrimSpace(content) != "Well" || len(got) != 2 || got[0].Function.Arguments != `{"what": "é"}` || got[1].Function.Arguments != "{}" || finish != "tool_calls" {
		t.Errorf("%q %+v %s", content, got, finish)
	}
}

func TestEchoLogprobs(t *testing.T) {
	f := newFake(t, "there was", nil)
	for _, c := range []struct {
		body   string
		tokens []string
		offset []int
		text   string
	}{
		{`"max_tokens":0`, []string{"<s>", " Once", " upon"}, []int{0, 0, 4}, "Once upon"},
		{`"max_tokens":1`, []string{"<s>", " Once", " upon", " there"}, []int{0, 0, 4, 9}, "Once upon there"},
		{`"max_tokens":1,"stream":true`, []string{"<s>", " Once", " upon", " there"}, []int{0, 0, 4, 9}, "Once upon there"},
	} {
		w := f.post("/v1/completions", `{"model":"stories","prompt":"Once upon","temperature":0,"echo":true,"logprobs":1,`+c.body+`}`)
		body := w.Body.String()
		if !strings.HasPrefix(body, "data: ") {
			body = "data: " + body + "\n\n"
		}
		var text string
		var tokens []string
		var offsets []int
		var values []*float64
		for _, e := range events(t, body) {
			var o struct {
				Choices []struct {
					Text     string
					Logprobs *struct {
						Tokens        []string
						TokenLogprobs []*float64           `json:"token_logprobs"`
						TopLogprobs   []map[string]float64 `json:"top_logprobs"`
						TextOffset    []int                `json:"text_offset"`
					}
				}
			}
			if e == "[DONE]" {
				continue
			}
			if err := json.Unmarshal([]byte(e), &o); err != nil || len(o.Choices) != 1 {
				t.Fatalf("%s: %v", e, err)
			}
			text += o.Choices[0].Text
			if l := o.Choices[0].Logprobs; l != nil {
				tokens, offsets, values = append(tokens, l.Tokens...), append(offsets, l.TextOffset...), append(values, l.TokenLogprobs...)
			}
		}
		if text != c.text || !cmp.Equal(offsets, c.offset) || !cmp.Equal(tokens, c.tokens) || values[0] != nil || values[1] == nil {
			t.Errorf("%s: %q %q %v %v", c.body, text, tokens, offsets, values)
		}
	}
}

// TestStopStringsStayOutOfLogprobs: tokens behind the text are not listed, and the one
// that it ends in has only what it adds.
func TestStopStringsStayOutOfLogprobs(t *testing.T) {
	f := newFake(t, "there was a little girl", nil)
	for _, c := range []struct {
		stop string
		want []string
	}{
		{`"s a li"`, []string{" there", " wa"}},
		{`" a"`, []string{" there", " was"}},
		{`" there"`, []string{}},
		{`"was a","include_stop_str_in_output":true`, []string{" there", " was", " a"}},
		{`"zebra"`, []string{" there", " was", " a", " little", " g", "ir", "l"}},
	} {
		for _, stream := range []bool{false, true} {
			w := f.post("/v1/chat/completions", fmt.Sprintf(`{"model":"stories","messages":[{"role":"user","content":"x"}],"temperature":0,"logprobs":true,"stop":%s,"stream":%t}`, c.stop, stream))
			chat := spoke(t, w.Body.String(), stream)
			w = f.post("/v1/completions", fmt.Sprintf(`{"model":"stories","prompt":"x","temperature":0,"logprobs":0,"stop":%s,"stream":%t}`, c.stop, stream))
			for i, got := range [][]string{chat, spoke(t, w.Body.String(), stream)} {
				if strings.Join(got, "") != strings.Join(c.want, "") || c.stop != `"zebra"` && !cmp.Equal(append([]string{}, got...), c.want) {
					t.Errorf("stop %s, stream %t, %d: %q, not %q", c.stop, stream, i, got, c.want)
				}
			}
		}
	}
}

// spoke are the tokens of an answer's logprobs.
func spoke(t *testing.T, body string, stream bool) (tokens []string) {
	t.Helper()
	if !stream {
		body = "data: " + body + "\n\n"
	}
	for _, e := range events(t, body) {
		var o struct {
			Choices []struct {
				Logprobs struct {
					Tokens  []string
					Content []logprob
				}
			}
		}
		if e == "[DONE]" {
			continue
		}
		if err := json.Unmarshal([]byte(e), &o); err != nil || len(o.Choices) != 1 {
			t.Fatalf("%s: %v", e, err)
		}
		tokens = append(tokens, o.Choices[0].Logprobs.Tokens...)
		for _, l := range o.Choices[0].Logprobs.Content {
			var bytes []byte
			for _, b := range l.Bytes {
				bytes = append(bytes, byte(b))
			}
			if string(bytes) != l.Token {
				t.Errorf("%q has the bytes %q", l.Token, bytes)
			}
			tokens = append(tokens, l.Token)
		}
	}
	return tokens
}

// TestHalfACharacter: one that max_tokens cuts is one that is not known.
func TestHalfACharacter(t *testing.T) {
	f := newFake(t, "a😀", nil)
	said := len(f.program.ids)
	for cut := 1; cut < 4; cut++ {
		w := f.post("/v1/completions", fmt.Sprintf(`{"model":"stories","prompt":"x","temperature":0,"max_tokens":%d}`, said-cut))
		if !strings.Contains(w.Body.String(), `"text":" a`+"\ufffd"+`"`) {
			t.Errorf("%d bytes less: %s", cut, w.Body)
		}
	}
}

// TestTopHasTheToken: also where it is none of the likeliest.
func TestTopHasTheToken(t *testing.T) {
	f := newFake(t, "there", nil)
	for _, n := range []int{0, 1} {
		w := f.post("/v1/completions", fmt.Sprintf(`{"model":"stories","prompt":"x","temperature":0,"max_tokens":1,"logit_bias":{"300":50},"logprobs":%d}`, n))
		var o struct {
			Choices []struct {
				Logprobs struct {
					Tokens []string
					Top    []map[string]float64 `json:"top_logprobs"`
					Values []float64            `json:"token_logprobs"`
				}
			}
		}
		if err := json.Unmarshal(w.Body.Bytes(), &o); err != nil {
			t.Fatal(err)
		}
		l := o.Choices[0].Logprobs
		if value, ok := l.Top[0][l.Tokens[0]]; !ok || value != l.Values[0] || len(l.Top[0]) != n+1 {
			t.Errorf("%d: %s", n, w.Body)
		}
	}
}

func TestLogprobs(t *testing.T) {
	f := newFake(t, "there was", nil)
	w := f.post("/v1/chat/completions", `{"model":"stories","messages":[{"role":"user","content":"hi"}],"temperature":0,"max_tokens":1,"logprobs":true,"top_logprobs":1}`)
	var chat struct {
		Choices []struct {
			Logprobs struct{ Content []logprob }
		}
	}
	if err := json.Unmarshal(w.Body.Bytes(), &chat); err != nil {
		t.Fatalf("%v in %s", err, w.Body)
	}
	l := chat.Choices[0].Logprobs.Content
	if len(l) != 1 || l[0].Token != " there" || len(l[0].Bytes) != 6 || len(l[0].Top) != 1 || l[0].Top[0].Logprob != l[0].Logprob || l[0].Logprob > -0.01 || l[0].Logprob < -0.1 {
		t.Errorf("%+v", l)
	}
	w = f.post("/v1/completions", `{"model":"stories","prompt":"hi","temperature":0,"logprobs":1,"stream":true}`)
	var offsets []float64
	for _, e := range events(t, w.Body.String()) {
		var chunk struct {
			Choices []struct {
				Text     string
				Logprobs *struct {
					Tokens     []string
					TextOffset []float64 `json:"text_offset"`
				}
			}
		}
		if e == "[DONE]" || json.Unmarshal([]byte(e), &chunk) != nil || chunk.Choices[0].Logprobs == nil {
			continue
		}
		if strings.Join(chunk.Choices[0].Logprobs.Tokens, "") != chunk.Choices[0].Text {
			t.Errorf("%s", e)
		}
		offsets = append(offsets, chunk.Choices[0].Logprobs.TextOffset...)
	}
	if !cmp.Equal(offsets, []float64{0, 6}) {
		t.Errorf("offsets %v", offsets)
	}
}

func TestErrors(t *testing.T) {
	f := newFake(t, "there", nil)
	long := strings.Repeat("a ", 300)
	for name, c := range map[string]struct {
		path, body, model string
		status            int
		code, param, says string
	}{
		"not JSON":           {path: "completions", body: `{"model":`, status: 400, says: "JSON object"},
		"not an object":      {path: "completions", body: `[]`, status: 400, says: "JSON object"},
		"null":               {path: "completions", body: `null`, status: 400, says: "JSON object"},
		"after the object":   {path: "completions", body: `{} {}`, status: 400, says: "JSON object"},
		"empty":              {path: "chat/completions", body: ``, status: 400, says: "JSON object"},
		"no model":           {path: "completions", body: `{"prompt":"x"}`, status: 400, param: "model", says: "required"},
		"unknown model":      {path: "completions", body: `{"model":"nobody","prompt":"x"}`, status: 404, param: "model", code: "model_not_found", says: `"nobody"`},
		"lacks":              {path: "completions", model: "default/nobody", status: 421, code: "model_not_here", says: "default/nobody"},
		"a long name":        {path: "completions", body: `{"model":"` + strings.Repeat("é", 5000) + `","prompt":"x"}`, status: 404, param: "model", code: "model_not_found", says: " …"},
		"refused":            {path: "completions", model: "default/refused", status: 503, code: "model_unavailable", says: "1 GiB is free"},
		"tokenize nothing":   {path: "../tokenize", body: `{"model":"stories"}`, status: 400, param: "prompt", says: "required"},
		"detokenize nothing": {path: "../detokenize", body: `{"model":"stories"}`, status: 400, param: "tokens", says: "required"},
		"detokenize no ids":  {path: "../detokenize", body: `{"model":"stories","tokens":[-1]}`, status: 400, param: "tokens", says: "-1"},
		"no prompt":          {path: "completions", body: `{"model":"stories"}`, status: 400, param: "prompt", says: "required"},
		"empty ids":          {path: "completions", body: `{"model":"stories","prompt":[]}`, status: 400, param: "prompt"},
		"null ids":           {path: "completions", body: `{"model":"stories","prompt":[1,null]}`, status: 400, param: "prompt"},
		"bad ids":            {path: "completions", body: `{"model":"stories","prompt":[512]}`, status: 400, param: "prompt", says: "512"},
		"too long":           {path: "completions", body: `{"model":"stories","prompt":"` + long + `"}`, status: 400, param: "prompt", code: "context_length_exceeded", says: "maximum context length is 256 tokens. The prompt has 302 tokens, and at least one more"},
		"too long alone":     {path: "completions", body: `{"model":"stories","max_tokens":0,"echo":true,"prompt":"` + long + `"}`, status: 400, param: "prompt", code: "context_length_exceeded", says: "The prompt has 302 tokens. Shorten it."},
		"too long a chat":    {path: "chat/completions", body: `{"model":"stories","messages":[{"role":"user","content":"` + long + `"}]}`, status: 400, param: "messages", code: "context_length_exceeded"},
		"too large":          {path: "completions", body: `{"model":"stories","prompt":"` + strings.Repeat("a", 10<<20) + `"}`, status: 413, code: "request_too_large", says: "8 MiB"},
		"no messages":        {path: "chat/completions", body: `{"model":"stories"}`, status: 400, param: "messages", says: "required"},
		"empty messages":     {path: "chat/completions", body: `{"model":"stories","messages":[]}`, status: 400, param: "messages"},
		"role":               {path: "chat/completions", body: `{"model":"stories","messages":[{"role":"robot","content":"x"}]}`, status: 400, param: "messages[0].role"},
		"older role":         {path: "chat/completions", body: `{"model":"stories","messages":[{"role":"function","name":"f","content":"x"}]}`, status: 400, param: "messages[0].role", says: "tool_call_id"},
		"image":              {path: "chat/completions", body: `{"model":"stories","messages":[{"role":"user","content":[{"type":"image_url"}]}]}`, status: 400, param: "messages[0].content"},
		"no content":         {path: "chat/completions", body: `{"model":"stories","messages":[{"role":"system","content":""},{"role":"user"}]}`, status: 400, param: "messages[1].content", says: "messages[1].content is required"},
		"null content":       {path: "chat/completions", body: `{"model":"stories","messages":[{"role":"user","content":null}]}`, status: 400, param: "messages[0].content"},
		"no call id":         {path: "chat/completions", body: `{"model":"stories","messages":[{"role":"tool","content":"x"}]}`, status: 400, param: "messages[0].tool_call_id", says: "required"},
		"name of a number":   {path: "chat/completions", body: `{"model":"stories","messages":[{"role":"user","content":"x","name":1}]}`, status: 400, param: "messages[0].name"},
		"refusal of a user":  {path: "chat/completions", body: `{"model":"stories","messages":[{"role":"user","content":[{"type":"refusal","refusal":"x"}]}]}`, status: 400, param: "messages[0].content"},
		"user":               {path: "completions", body: `{"model":"stories","prompt":"x","user":1}`, status: 400, param: "user", says: "string"},
		"metadata":           {path: "completions", body: `{"model":"stories","prompt":"x","metadata":[]}`, status: 400, param: "metadata", says: "metadata must be an object"},
		"options alone":      {path: "completions", body: `{"model":"stories","prompt":"x","stream_options":{"include_usage":true}}`, status: 400, param: "stream_options", says: "needs stream"},
		"least over most":    {path: "completions", body: `{"model":"stories","prompt":"x","min_tokens":17}`, status: 400, param: "min_tokens", says: "which is 16"},
		"effort":             {path: "chat/completions", body: `{"model":"stories","messages":[{"role":"user","content":"x"}],"reasoning_effort":3}`, status: 400, param: "reasoning_effort"},
		"documents":          {path: "chat/completions", body: `{"model":"stories","messages":[{"role":"user","content":"x"}],"documents":["x"]}`, status: 400, param: "documents"},
		"reserved":           {path: "chat/completions", body: `{"model":"stories","messages":[{"role":"user","content":"x"}],"chat_template_kwargs":{"messages":[]}}`, status: 400, param: "chat_template_kwargs.messages", says: "reserved"},
		"both to tokenize":   {path: "../tokenize", body: `{"model":"stories","prompt":"x","messages":[{"role":"user","content":"x"}]}`, status: 400, param: "prompt", says: "exclude"},
		"no UTF-8":           {path: "completions", body: "{\"model\":\"stories\",\"prompt\":\"\xff\"}", status: 400, says: "The body is not UTF-8."},
		"half a pair":        {path: "completions", body: `{"model":"stories","prompt":"\\\ud83d\ud83d\ude00"}`, status: 400, says: `half of a surrogate pair, at byte 31: \ud83d.`},
		"the other half":     {path: "completions", body: `{"model":"stories","prompt":"\ude00"}`, status: 400, says: "surrogate"},
		"control character":  {path: "completions", body: "{\"model\":\"stories\",\"prompt\":\"a\nb\"}", status: 400, says: `write it as \u000a`},
		"list of parameters": {path: "chat/completions", body: `{"model":"stories","messages":[{"role":"user","content":"x"}],"tools":[{"type":"function","function":{"name":"f","parameters":{"type":"array"}}}]}`, status: 400, param: "tools[0].function.parameters", says: `"array"`},
		"no json_schema":     {path: "completions", body: `{"model":"stories","prompt":"x","response_format":{"type":"json_schema"}}`, status: 400, param: "response_format.json_schema", says: "required"},
		"schema of no name":  {path: "completions", body: `{"model":"stories","prompt":"x","response_format":{"type":"json_schema","json_schema":{"schema":{}}}}`, status: 400, param: "response_format.json_schema.name", says: "required"},
		"name of no schema":  {path: "completions", body: `{"model":"stories","prompt":"x","response_format":{"type":"json_schema","json_schema":{"name":"x"}}}`, status: 400, param: "response_format.json_schema.schema", says: "required"},
		"call or structure":  {path: "chat/completions", body: `{"model":"stories","messages":[{"role":"user","content":"x"}],"tools":[` + oneTool + `],"tool_choice":"required","response_format":{"type":"json_object"}}`, status: 400, param: "response_format", says: "exclude"},
		"tool calls":         {path: "chat/completions", body: `{"model":"stories","messages":[{"role":"user","content":"x"},{"role":"assistant","tool_calls":[1]}]}`, status: 400, param: "messages[1].tool_calls[0]"},
		"arguments":          {path: "chat/completions", body: `{"model":"stories","messages":[{"role":"assistant","tool_calls":[{"function":{"name":"f","arguments":"{"}}]}]}`, status: 400, param: "messages[0].tool_calls[0].function.arguments"},
		"calls of a user":    {path: "chat/completions", body: `{"model":"stories","messages":[{"role":"user","content":"x","tool_calls":[{"function":{"name":"f","arguments":"{}"}}]}]}`, status: 400, param: "messages[0].tool_calls"},
		"twice":              {path: "completions", body: `{"model":"stories","prompt":"x","prompt":"y"}`, status: 400, says: `"prompt" is there twice`},
		"too deep":           {path: "completions", body: `{"model":"stories","prompt":` + strings.Repeat("[", 1<<20), status: 400, says: "deeper than 128"},
		"unknown":            {path: "completions", body: `{"model":"stories","prompt":"x","tempretature":1}`, status: 400, param: "tempretature", says: "known here"},
		"another endpoint's": {path: "completions", body: `{"model":"stories","prompt":"x","max_completion_tokens":1}`, status: 400, param: "max_completion_tokens"},
		"older name":         {path: "completions", body: `{"model":"stories","prompt":"x","guided_json":{}}`, status: 400, param: "guided_json", says: "structured_outputs with json"},
		"functions":          {path: "chat/completions", body: `{"model":"stories","messages":[{"role":"user","content":"x"}],"functions":[{"name":"f"}]}`, status: 400, param: "functions", says: "send tools"},
		"bias of no token":   {path: "completions", body: `{"model":"stories","prompt":"x","logit_bias":{"512":1}}`, status: 400, param: "logit_bias", says: "512"},
		"end of no token":    {path: "completions", body: `{"model":"stories","prompt":"x","stop_token_ids":[512]}`, status: 400, param: "stop_token_ids", says: "512"},
		"stream option":      {path: "completions", body: `{"model":"stories","prompt":"x","stream":true,"stream_options":{"more":1}}`, status: 400, param: "stream_options.more"},
		"many texts":         {path: "completions", body: `{"model":"stories","prompt":["x","y"],"n":65}`, status: 400, param: "n", says: "128"},
		"both prompts":       {path: "chat/completions", body: `{"model":"stories","messages":[{"role":"user","content":"x"}],"continue_final_message":true,"add_generation_prompt":true}`, status: 400, param: "continue_final_message"},
		"max_tokens":         {path: "completions", body: `{"model":"stories","prompt":"x","max_tokens":"many"}`, status: 400, param: "max_tokens"},
		"no tokens":          {path: "completions", body: `{"model":"stories","prompt":"x","max_tokens":0}`, status: 400, param: "max_tokens"},
		"temperature":        {path: "completions", body: `{"model":"stories","prompt":"x","temperature":2.5}`, status: 400, param: "temperature", says: "from 0 to 2"},
		"n":                  {path: "completions", body: `{"model":"stories","prompt":"x","n":129}`, status: 400, param: "n"},
		"tools":              {path: "chat/completions", body: `{"model":"stories","messages":[{"role":"user","content":"x"}],"tools":[{}]}`, status: 400, param: "tools[0].type"},
		"tool twice":         {path: "chat/completions", body: `{"model":"stories","messages":[{"role":"user","content":"x"}],"tools":[` + oneTool + `,` + oneTool + `]}`, status: 400, param: "tools[1].function.name", says: "twice"},
		"tool of no name":    {path: "chat/completions", body: `{"model":"stories","messages":[{"role":"user","content":"x"}],"tools":[{"type":"function","function":{"name":"a b"}}]}`, status: 400, param: "tools[0].function.name"},
		"no such tool":       {path: "chat/completions", body: `{"model":"stories","messages":[{"role":"user","content":"x"}],"tools":[` + oneTool + `],"tool_choice":{"type":"function","function":{"name":"other"}}}`, status: 400, param: "tool_choice.function.name", says: "none of tools"},
		"tools required":     {path: "chat/completions", body: `{"model":"stories","messages":[{"role":"user","content":"x"}],"tool_choice":"required"}`, status: 400, param: "tool_choice", says: "needs tools"},
		"tool choice":        {path: "chat/completions", body: `{"model":"stories","messages":[{"role":"user","content":"x"}],"tools":[` + oneTool + `],"tool_choice":"some"}`, status: 400, param: "tool_choice"},
		"response_format":    {path: "chat/completions", body: `{"model":"stories","messages":[{"role":"user","content":"x"}],"response_format":{"type":"yaml"}}`, status: 400, param: "response_format.type"},
		"schema":             {path: "chat/completions", body: `{"model":"stories","messages":[{"role":"user","content":"x"}],"response_format":{"type":"json_schema","json_schema":{"name":"x","schema":{"type":"what"}}}}`, status: 400, param: "response_format", says: "what"},
		"two structures":     {path: "completions", body: `{"model":"stories","prompt":"x","structured_outputs":{"regex":"a","choice":["b"]}}`, status: 400, param: "structured_outputs", says: "structured_outputs must have one of"},
		"two ways":           {path: "completions", body: `{"model":"stories","prompt":"x","structured_outputs":{"regex":"a"},"response_format":{"type":"json_object"}}`, status: 400, param: "structured_outputs", says: "exclude"},
		"endless structure":  {path: "completions", body: `{"model":"stories","prompt":"x","structured_outputs":{"regex":"a"},"ignore_eos":true}`, status: 400, param: "structured_outputs", says: "ignore_eos"},
		"structured_outputs": {path: "completions", body: `{"model":"stories","prompt":"x","structured_outputs":{"regex":"a("}}`, status: 400, param: "structured_outputs", says: "regex"},
		"logit_bias":         {path: "completions", body: `{"model":"stories","prompt":"x","logit_bias":{"a":1}}`, status: 400, param: "logit_bias"},
		"empty stop":         {path: "completions", body: `{"model":"stories","prompt":"x","stop":""}`, status: 400, param: "stop"},
		"top_logprobs":       {path: "chat/completions", body: `{"model":"stories","messages":[{"role":"user","content":"x"}],"top_logprobs":2}`, status: 400, param: "top_logprobs"},
	} {
		headers := []string{api.HeaderRequestID, name}
		if c.model != "" {
			headers = append(headers, api.HeaderModel, c.model)
		}
		w := f.post(path.Join("/v1", c.path), c.body, headers...)
		var e struct {
			Error struct {
				Message, Type string
				Param, Code   *string
			}
		}
		if err := json.Unmarshal(w.Body.Bytes(), &e); err != nil {
			t.Errorf("%s: %v in %s", name, err, w.Body)
			continue
		}
		or := func(p *string) string {
			if p == nil {
				return ""
			}
			return *p
		}
		if w.Code != c.status || or(e.Error.Param) != c.param || or(e.Error.Code) != c.code || !strings.Contains(e.Error.Message, c.says) || e.Error.Type == "" {
			t.Errorf("%s: %d %s", name, w.Code, w.Body)
		}
		if w.Header().Get(api.HeaderRequestID) != name {
			t.Errorf("%s: the request's id is not echoed", name)
		}
		if c.status == 503 && w.Header().Get("Retry-After") != "2" {
			t.Errorf("%s: Retry-After %q", name, w.Header().Get("Retry-After"))
		}
	}
	if f.held != 0 {
		t.Errorf("%d uses were not released", f.held)
	}
	if s, _ := f.engine.Stats("default/stories"); s.KVUsed != 0 || s.Running+s.Waiting != 0 {
		t.Errorf("%+v", s)
	}
}

// TestLacksBeforeBody: 421 comes while the client has not sent its body yet.
func TestLacksBeforeBody(t *testing.T) {
	f := newFake(t, "", nil)
	server := httptest.NewServer(f.handler)
	defer server.Close()
	conn, err := net.Dial("tcp", server.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	fmt.Fprintf(conn, "POST /v1/completions HTTP/1.1\r\nHost: x\r\nEstiba-Model: default/nobody\r\nContent-Length: 1000000\r\n\r\n")
	in := bufio.NewReader(conn)
	resp, err := http.ReadResponse(in, nil)
	if err != nil || resp.StatusCode != api.StatusLacks {
		t.Fatalf("%+v %v", resp, err)
	}
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		t.Fatal(err)
	}
	// The connection is good for the next request once the body has come.
	fmt.Fprintf(conn, "%sGET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n", strings.Repeat("x", 1000000))
	if resp, err := http.ReadResponse(in, nil); err != nil || resp.StatusCode != 200 {
		t.Fatalf("%+v %v", resp, err)
	}
}

// TestTooLarge: the sender of a body that is too large gets to read why.
func TestTooLarge(t *testing.T) {
	f := newFake(t, "", nil)
	server := httptest.NewServer(f.handler)
	defer server.Close()
	resp, err := http.Post(server.URL+"/v1/completions", "application/json", strings.NewReader(strings.Repeat(" ", 10<<20)))
	if err != nil || resp.StatusCode != http.StatusRequestEntityTooLarge {
		t.Fatalf("%+v %v", resp, err)
	}
	resp.Body.Close()
}

func TestGoneSinceUse(t *testing.T) {
	f := newFake(t, "", nil)
	// Still 421 for a gateway, for nothing has been done.
	if err := f.engine.Remove(t.Context(), "default/stories"); err != nil {
		t.Fatal(err)
	}
	if w := f.post("/v1/completions", `{"model":"stories","prompt":"x"}`, api.HeaderModel, "default/stories"); w.Code != api.StatusLacks {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	if w := f.post("/v1/completions", `{"model":"stories","prompt":"x"}`); w.Code != http.StatusNotFound {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}

func TestQueueFull(t *testing.T) {
	f := newFake(t, "there was", func(p *script, r *engine.Replica) {
		r.Sequences, r.Waiting = 1, 1
		p.step = make(chan struct{})
	})
	ctx, cancel := context.WithCancel(t.Context())
	for range 2 {
		if _, err := f.engine.Submit(ctx, engine.Request{Replica: "default/stories", Prompt: []int32{1}}); err != nil {
			t.Fatal(err)
		}
	}
	w := f.post("/v1/completions", `{"model":"stories","prompt":"x"}`)
	if w.Code != http.StatusTooManyRequests || w.Header().Get("Retry-After") == "" || !strings.Contains(w.Body.String(), "rate_limit_exceeded") {
		t.Errorf("%d %v %s", w.Code, w.Header(), w.Body)
	}
	cancel()
	close(f.program.step)
}

func TestEngineErrors(t *testing.T) {
	for name, c := range map[string]struct {
		failAt int
		stream bool
		status int
	}{
		"at once":           {1, false, 500},
		"later":             {3, false, 500},
		"at once, streamed": {1, true, 500},
	} {
		f := newFake(t, "there was a little girl", func(p *script, _ *engine.Replica) { p.failAt = c.failAt })
		w := f.post("/v1/completions", fmt.Sprintf(`{"model":"stories","prompt":"x","temperature":0,"stream":%t}`, c.stream))
		if w.Code != c.status || !strings.Contains(w.Body.String(), "fell off the bus") || w.Header().Get("Content-Type") != "application/json" {
			t.Errorf("%s: %d %s", name, w.Code, w.Body)
		}
	}
	f := newFake(t, "there was a little girl", func(p *script, _ *engine.Replica) { p.failAt = 3 })
	w := f.post("/v1/chat/completions", `{"model":"stories","messages":[{"role":"user","content":"x"}],"temperature":0,"stream":true,"max_tokens":9}`)
	list := events(t, w.Body.String())
	if last := list[len(list)-1]; w.Code != 200 || !strings.Contains(last, `"error":{"code":"engine_error"`) || len(list) < 2 {
		t.Errorf("%d %q", w.Code, list)
	}
	// The next request is answered.
	if w := f.post("/v1/completions", `{"model":"stories","prompt":"x","temperature":0}`); w.Code != 200 {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}

// TestGrammarsFail: a grammar that goes wrong on the way is the request's fault, not the model's.
func TestGrammarsFail(t *testing.T) {
	f := newFake(t, "", nil)
	tok, err := tokenizer.Open(fixture.Model("stories260K/hf-f32"))
	if err != nil {
		t.Fatal(err)
	}
	for param, g := range map[string]*generation{
		"structured_outputs": {of: completions, structure: &structure{param: "structured_outputs"}},
		"tools":              {of: chat},
	} {
		for _, cause := range []error{grammar.ErrTooComplex, sampling.ErrNothingAllowed} {
			events := make(chan engine.Event, 1)
			events <- engine.Event{Finish: batching.FinishError, Err: fmt.Errorf("answer with default/stories: follow the grammar: %w", cause)}
			p := g.text(events, func() {}, call{Loaded: Loaded{Engine: f.engine, Tokenizer: tok}}, toolcall.Format{}, 0, 0, nil).safely()
			if p.err == nil || p.err.status != http.StatusBadRequest || p.err.Param != param || p.err.Type != "invalid_request_error" || !strings.Contains(p.err.Message, cause.Error()) {
				t.Errorf("%s: %+v", param, p.err)
			}
		}
	}
}

// TestStructureOfHarmony: it is kept in the final channel of a chat, and in the whole of a completion.
func TestStructureOfHarmony(t *testing.T) {
	format := toolcall.Detect("<|channel|><|message|>")
	for body, c := range map[string]struct {
		parse     func([]byte) (asked, *apiError)
		good, bad string
	}{
		`{"model":"m","messages":[{"role":"user","content":"x"}],"structured_outputs":{"choice":["yes"]}}`: {parseChat, "<|channel|>final<|message|>yes", "yes"},
		`{"model":"m","prompt":"x","structured_outputs":{"choice":["yes"]}}`:                               {parseCompletion, "yes", "<"},
	} {
		asked, e := c.parse([]byte(body))
		if e != nil {
			t.Fatal(e)
		}
		must, e := asked.(*generation).grammar(format)
		if e != nil {
			t.Fatalf("%s: %s", body, e.Message)
		}
		v := grammar.NewVocabulary(257, func(id int32) ([]byte, bool) { return []byte{byte(id)}, id < 256 }, []int32{256})
		follow := func(text string) (m *grammar.Matcher, ok bool) {
			m = grammar.NewMatcher(must, v)
			for _, b := range []byte(text) {
				if m.Accept(int32(b)) != nil {
					return m, false
				}
			}
			return m, true
		}
		if m, ok := follow(c.good); !ok || !m.Ended() {
			t.Errorf("%s does not take %q", body, c.good)
		}
		if _, ok := follow(c.bad); ok {
			t.Errorf("%s takes %q", body, c.bad)
		}
	}
}

// TestMediaTypes: what pages of other sites may send without asking is not taken.
func TestMediaTypes(t *testing.T) {
	f := newFake(t, "there", nil)
	for kind, status := range map[string]int{"application/json; charset=utf-8": 200, "": 200, "text/plain": 415, "application/x-www-form-urlencoded": 415} {
		w := f.post("/v1/completions", `{"model":"stories","prompt":"x"}`, "Content-Type", kind)
		if w.Code != status || status == 415 && !strings.Contains(w.Body.String(), `"code":"unsupported_media_type"`) {
			t.Errorf("%s: %d %s", kind, w.Code, w.Body)
		}
	}
}

// TestCutTextEndsAlone: a text that has come to a stop string holds nothing while others go on.
func TestCutTextEndsAlone(t *testing.T) {
	for _, stream := range []bool{false, true} {
		f := newFake(t, "there was a little girl there was a little girl", func(p *script, _ *engine.Replica) { p.step = make(chan struct{}) })
		f.program.second = append([]int32(nil), f.program.ids...)
		f.program.second[1] = f.program.ids[2] // " there a …"
		answered := make(chan *httptest.ResponseRecorder)
		go func() {
			answered <- f.post("/v1/completions", fmt.Sprintf(`{"model":"stories","prompt":["x","y"],"temperature":0,"max_tokens":50,"stop":"there a","stream":%t}`, stream))
		}()
		for range 3 {
			f.program.step <- struct{}{}
		}
		deadline := time.Now().Add(10 * time.Second)
		for {
			if s, _ := f.engine.Stats("default/stories"); s.Running == 1 {
				break
			}
			if time.Now().After(deadline) {
				t.Fatal("both still run")
			}
			time.Sleep(time.Millisecond)
		}
		close(f.program.step)
		w := <-answered
		body := w.Body.String()
		if w.Code != 200 || strings.Count(body, `"finish_reason":"stop"`) != 2 || strings.Contains(body, "there a") {
			t.Errorf("%d %s", w.Code, body)
		}
		if !stream && !strings.Contains(body, `"index":0,"logprobs":null,"text":" there was a little girl there was a little girl"`) {
			t.Errorf("%s", body)
		}
	}
}

func TestClientGoesAway(t *testing.T) {
	f := newFake(t, "there was a little girl there was a little girl there was a little girl", func(p *script, _ *engine.Replica) { p.step = make(chan struct{}) })
	server := httptest.NewServer(f.handler)
	defer server.Close()
	defer close(f.program.step)
	ctx, cancel := context.WithCancel(t.Context())
	r, _ := http.NewRequestWithContext(ctx, "POST", server.URL+"/v1/completions",
		strings.NewReader(`{"model":"stories","prompt":"x","temperature":0,"stream":true,"max_tokens":20}`))
	go func() { f.program.step <- struct{}{}; f.program.step <- struct{}{} }()
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	// Flushed by event: the first is here though the text is not done.
	if line, err := bufio.NewReader(resp.Body).ReadString('\n'); err != nil || !strings.Contains(line, "there") {
		t.Fatalf("%q %v", line, err)
	}
	if s, _ := f.engine.Stats("default/stories"); s.Running != 1 {
		t.Fatalf("%+v", s)
	}
	cancel()
	resp.Body.Close()
	deadline := time.Now().Add(10 * time.Second)
	for {
		if s, _ := f.engine.Stats("default/stories"); s.Running == 0 && s.KVUsed == 0 {
			break
		}
		if time.Now().After(deadline) {
			s, _ := f.engine.Stats("default/stories")
			t.Fatalf("still held after the client went away: %+v", s)
		}
		time.Sleep(time.Millisecond)
	}
}

// TestAnswersEndWhenTheirClientHasLeft: at once, also within a step that takes for
// ever, before the first token and after it, and while a model wakes.
func TestAnswersEndWhenTheirClientHasLeft(t *testing.T) {
	for name, listen := range map[string]func() (net.Listener, fleet.Dial){
		"TCP": func() (net.Listener, fleet.Dial) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			return l, func(context.Context, string, string) (net.Conn, error) { return net.Dial("tcp", l.Addr().String()) }
		},
		"memory": func() (net.Listener, fleet.Dial) { l := fleet.Listen(); return l, l.Dial },
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake(t, strings.Repeat("there was a little girl ", 9), func(p *script, _ *engine.Replica) { p.step = make(chan struct{}) })
			came, left := make(chan struct{}, 1), make(chan struct{}, 1)
			server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				came <- struct{}{}
				f.handler.ServeHTTP(w, r)
				left <- struct{}{}
			})}
			l, dial := listen()
			go server.Serve(l)
			defer server.Close()
			client := fleet.NewClient(dial)
			defer client.CloseIdleConnections()
			soon := func(c chan struct{}, what string, i int) {
				t.Helper()
				select {
				case <-c:
				case <-time.After(10 * time.Second):
					t.Fatalf("round %d: %s", i, what)
				}
			}
			until := func(i int, otherwise string, ok func(engine.Stats) bool) {
				t.Helper()
				for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(50 * time.Microsecond) {
					s, _ := f.engine.Stats("default/stories")
					if ok(s) {
						return
					}
					if time.Now().After(deadline) {
						t.Fatalf("round %d: it %s: %+v", i, otherwise, s)
					}
				}
			}
			ask := func(ctx context.Context, home string, stream bool) {
				body := fmt.Sprintf(`{"model":"stories","prompt":"x","temperature":0,"max_tokens":50,"stream":%t}`, stream)
				r, _ := http.NewRequestWithContext(ctx, "POST", "http://worker/v1/completions", strings.NewReader(body))
				r.Header.Set(api.HeaderModel, home)
				if resp, err := client.Do(r); err == nil {
					io.Copy(io.Discard, resp.Body)
					resp.Body.Close()
				}
			}
			for i := range 200 {
				ctx, cancel := context.WithCancel(t.Context())
				var asked sync.WaitGroup
				asked.Go(func() { ask(ctx, "default/stories", i%2 == 0) })
				soon(came, "did not come", i)
				for range i / 2 % 3 { // steps that end
					f.program.step <- struct{}{}
				}
				if i%5 > 0 { // else wherever it is
					until(i, "does not run", func(s engine.Stats) bool { return s.Running+s.Waiting == 1 })
				}
				cancel()
				soon(left, "the answer has not ended", i)
				asked.Wait()
				until(i, "is still there", func(s engine.Stats) bool { return s.Running+s.Waiting+s.KVUsed == 0 })
				select {
				case f.program.step <- struct{}{}: // the step that it was in
				case <-time.After(time.Millisecond):
				}
			}
			for i := range 5 {
				ctx, cancel := context.WithCancel(t.Context())
				var asked sync.WaitGroup
				asked.Go(func() { ask(ctx, "default/asleep", i%2 == 0) })
				soon(came, "did not come", i)
				cancel()
				soon(left, "it still waits for the model", i)
				asked.Wait()
			}
			if f.held != 0 {
				t.Errorf("%d models are held", f.held)
			}
		})
	}
}

// TestLeftBesideAPiece: a client that has left counts as such, also where its text has more to say.
func TestLeftBesideAPiece(t *testing.T) {
	tok, err := tokenizer.Open(fixture.Model("stories260K/hf-f32"))
	if err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		events, m := make(chan engine.Event, 1), newMeasures()
		events <- engine.Event{Token: sampling.Token{ID: tok.Encode("there", false)[0]}}
		parts(ctx, []*text{newText(events, cancel, call{Loaded: Loaded{Tokenizer: tok, Measures: m}}, nil, &generation{})})
		synctest.Wait()
		cancel()
		synctest.Wait()
		if diff := cmp.Diff(map[string]int64{"abort": 1}, m.finished); diff != "" {
			t.Errorf("texts ended (-want +got):\n%s", diff)
		}
	})
}

// TestCut: however a text comes in pieces, what goes out ends where the first
// complete stop string begins, and nothing of one leaks.
func TestCut(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	letters := []string{"a", "b", "é"}
	word := func(n int) (s string) {
		for range n {
			s += letters[r.IntN(len(letters))]
		}
		return s
	}
	for range 20000 {
		x := &text{}
		for range r.IntN(4) {
			x.stops = append(x.stops, word(1+r.IntN(4)))
		}
		var seen, out, want string
		stopped, ended := false, false
		for range r.IntN(8) {
			piece := word(r.IntN(5))
			seen += piece
			var more string
			more, stopped = x.cut(piece)
			out += more
			if want = seen; stopped {
				break
			}
		}
		for _, stop := range x.stops {
			if i := strings.Index(seen, stop); i >= 0 {
				ended = true
				want = want[:min(i, len(want))]
			}
		}
		if !stopped {
			out += x.held
		}
		if stopped != ended || out != want {
			t.Fatalf("%q with stops %q gave %q (stopped: %t), want %q", seen, x.stops, out, stopped, want)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"model":"m","prompt":["a",[1,2]],"stop":["x"],"logit_bias":{"1":2},"seed":-1,"n":3,"echo":true}`))
	f.Add([]byte(`{"model":"m","messages":[{"role":"user","content":[{"type":"text","text":"x"}]}],"stream_options":{"include_usage":true}}`))
	f.Add([]byte(`{"model":"m","messages":[{"role":"assistant","tool_calls":[{"id":"a","function":{"name":"f","arguments":"{\\"x\\":[1]}"}}]}]}`))
	f.Add([]byte(`{"model":"m","prompt":"a","top_p":0,"top_k":50,"min_tokens":3,"stop_token_ids":[1]}`))
	f.Add([]byte(`{"n":1,"tools":[],"response_format":{"type":"text"},"x":null,"x":1}`))
	f.Add([]byte(`{"model":"m","tokens":[1,2]}`))
	f.Add([]byte(`{"model":"m","input":["a",[1]],"encoding_format":"base64"}`))
	f.Add([]byte(`{"model":"m","messages":[{"role":"user","content":"x"}],"tools":[` + oneTool + `],"tool_choice":"required","response_format":{"type":"json_schema","json_schema":{"schema":{}}}}`))
	f.Add([]byte(`{"model":"m","prompt":"x","structured_outputs":{"regex":"a|b"}}`))
	f.Add([]byte(`{"model":"m","messages":[{"role":"user","content":"x"}],"chat_template_kwargs":{"a":[[[[]]]]},"continue_final_message":true}`))
	tok, err := tokenizer.Open(fixture.Model("stories260K/hf-f32"))
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		for _, parse := range []func([]byte) (asked, *apiError){parseChat, parseCompletion, parseTokenize, parseDetokenize, parseEmbeddings} {
			r, err := parse(body)
			if err != nil {
				if err.status != http.StatusBadRequest || err.Message == "" {
					t.Fatalf("%+v", err)
				}
				if _, e := json.Marshal(err); e != nil {
					t.Fatal(e)
				}
				continue
			}
			if !json.Valid(bytes.TrimSpace(body)) || r.modelName() == "" {
				t.Fatalf("took %q", body)
			}
			g, ok := r.(*generation)
			if !ok {
				continue
			}
			p := g.sampling
			if len(g.dialog.messages)+len(g.prompts) == 0 || g.maxTokens < 0 || g.n*max(1, len(g.prompts)) > maxTexts || p.Temperature < 0 || p.TopP < 0 || p.TopP > 1 || p.TopK < 0 {
				t.Fatalf("%s gave %+v", body, g)
			}
			if p.TopP == 0 && p.TopK != 1 {
				t.Fatalf("%s: top_p 0 leaves nothing but the likeliest token, not %d", body, p.TopK)
			}
			if g.of == chat {
				if _, e := g.dialog.encode(call{Loaded: Loaded{Tokenizer: tok}}); e != nil && e.status != http.StatusBadRequest {
					t.Fatalf("%s: %+v", body, e)
				}
			}
			for _, m := range g.dialog.messages {
				if text, e := json.Marshal(m); e != nil || !json.Valid(text) {
					t.Fatalf("%s gave %s: %v", body, text, e)
				}
			}
		}
	})
}
