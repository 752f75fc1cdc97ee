// Package client asks a gateway through the official OpenAI client: every endpoint and option
// that Estiba serves. test/openai starts the gateway and says where it is, in OPENAI_TEST_URL.
package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/option"
	"github.com/openai/openai-go/v3/packages/param"
	"github.com/openai/openai-go/v3/packages/ssestream"
	"github.com/openai/openai-go/v3/responses"
	"github.com/openai/openai-go/v3/shared"
)

const opening = "Once upon a time"

// dial is a client that does not try again, unless options say so.
func dial(t *testing.T, options ...option.RequestOption) openai.Client {
	t.Helper()
	url := os.Getenv("OPENAI_TEST_URL")
	if url == "" {
		t.Skip("SKIPPED: OPENAI_TEST_URL does not say where a gateway is; test/openai starts one")
	}
	return openai.NewClient(append([]option.RequestOption{option.WithBaseURL(url), option.WithAPIKey("none"), option.WithMaxRetries(0)}, options...)...)
}

func say(text string) []openai.ChatCompletionMessageParamUnion {
	return []openai.ChatCompletionMessageParamUnion{openai.UserMessage(text)}
}

// settings are a short chat whose answer is always the same.
func settings() openai.ChatCompletionNewParams {
	return openai.ChatCompletionNewParams{Model: "stories", Messages: say(opening), MaxTokens: openai.Int(24), Temperature: openai.Float(0)}
}

func chat(t *testing.T, client openai.Client, p openai.ChatCompletionNewParams, options ...option.RequestOption) *openai.ChatCompletion {
	t.Helper()
	c, err := client.Chat.Completions.New(t.Context(), p, options...)
	if err != nil {
		t.Fatal(err, why(err))
	}
	return c
}

// why is what an error of the API says.
func why(err error) string {
	var e *openai.Error
	if !errors.As(err, &e) {
		return ""
	}
	return e.Message
}

// stream reads a whole stream, and what came of it.
func stream(t *testing.T, client openai.Client, p openai.ChatCompletionNewParams) (a openai.ChatCompletionAccumulator, chunks []openai.ChatCompletionChunk) {
	t.Helper()
	s := client.Chat.Completions.NewStreaming(t.Context(), p)
	defer s.Close()
	for s.Next() {
		chunk := s.Current()
		chunks = append(chunks, chunk)
		if !a.AddChunk(chunk) {
			t.Errorf("chunk %d does not go on from those before it: %s", len(chunks), chunk.RawJSON())
		}
	}
	if s.Err() != nil {
		t.Fatal(s.Err())
	}
	return a, chunks
}

// failure is the typed error of a request, checked.
func failure(t *testing.T, err error, status int) *openai.Error {
	t.Helper()
	var e *openai.Error
	if !errors.As(err, &e) {
		t.Fatalf("%v, want an error of the API", err)
	}
	if e.StatusCode != status || e.Message == "" || e.Type == "" {
		t.Fatalf("%d %s (%s), want status %d: %v", e.StatusCode, e.Type, e.Message, status, err)
	}
	return e
}

func TestModels(t *testing.T) {
	client := dial(t)
	var ids []string
	pages := client.Models.ListAutoPaging(t.Context())
	for pages.Next() {
		ids = append(ids, pages.Current().ID)
	}
	if err := pages.Err(); err != nil || !slices.Contains(ids, "stories") || !slices.Contains(ids, "asleep") {
		t.Fatalf("models %v, %v", ids, err)
	}
	m, err := client.Models.Get(t.Context(), "stories")
	if err != nil || m.ID != "stories" || string(m.Object) != "model" {
		t.Fatalf("%+v, %v", m, err)
	}
	_, err = client.Models.Get(t.Context(), "nobody")
	failure(t, err, http.StatusNotFound)
}

func TestChat(t *testing.T) {
	client := dial(t)
	c := chat(t, client, settings())
	m := c.Choices[0].Message
	if c.ID == "" || c.Object != "chat.completion" || c.Model != "stories" || m.Role != "assistant" || m.Content == "" || m.Refusal != "" || c.Choices[0].FinishReason != "length" {
		t.Errorf("%s", c.RawJSON())
	}
	if u := c.Usage; u.PromptTokens == 0 || u.CompletionTokens != 24 || u.TotalTokens != u.PromptTokens+u.CompletionTokens {
		t.Errorf("usage %s", u.RawJSON())
	}
	if age := time.Since(time.Unix(c.Created, 0)); age < -time.Minute || age > time.Hour {
		t.Errorf("created %v ago", age)
	}

	p := settings()
	p.Messages = []openai.ChatCompletionMessageParamUnion{openai.SystemMessage("Tell stories."), openai.DeveloperMessage("Short ones."),
		openai.UserMessage([]openai.ChatCompletionContentPartUnionParam{openai.TextContentPart("Once upon"), openai.TextContentPart(" a time")}), openai.AssistantMessage("What then?"), openai.UserMessage("Go on")}
	p.MaxTokens, p.MaxCompletionTokens = param.Opt[int64]{}, openai.Int(5)
	if c := chat(t, client, p); c.Usage.CompletionTokens > 5 {
		t.Errorf("usage %s", c.Usage.RawJSON())
	}
}

func TestStream(t *testing.T) {
	client := dial(t)
	whole := chat(t, client, settings())
	p := settings()
	p.StreamOptions.IncludeUsage = openai.Bool(true)
	a, chunks := stream(t, client, p)
	if got, want := a.Choices[0].Message.Content, whole.Choices[0].Message.Content; got != want {
		t.Errorf("streamed %q, want %q", got, want)
	}
	if got := a.Choices[0].FinishReason; got != whole.Choices[0].FinishReason {
		t.Errorf("streamed %s, want %s", got, whole.Choices[0].FinishReason)
	}
	last := chunks[len(chunks)-1]
	if u := last.Usage; len(last.Choices) != 0 || u.PromptTokens != whole.Usage.PromptTokens || u.CompletionTokens != whole.Usage.CompletionTokens || u.TotalTokens != whole.Usage.TotalTokens {
		t.Errorf("the last chunk is %s", last.RawJSON())
	}
	if len(chunks) < 6 || chunks[0].Choices[0].Delta.Role != "assistant" {
		t.Errorf("%d chunks, the first %s", len(chunks), chunks[0].RawJSON())
	}
	for _, c := range chunks[:len(chunks)-1] {
		if c.JSON.Usage.Valid() || c.ID != chunks[0].ID || c.Object != "chat.completion.chunk" {
			t.Errorf("%s", c.RawJSON())
		}
	}
	if _, chunks := stream(t, client, settings()); chunks[len(chunks)-1].JSON.Usage.Valid() {
		t.Errorf("usage without being asked for: %s", chunks[len(chunks)-1].RawJSON())
	}
}

func TestLogprobs(t *testing.T) {
	client := dial(t)
	p := settings()
	p.Logprobs, p.TopLogprobs = openai.Bool(true), openai.Int(3)
	c := chat(t, client, p)
	list := c.Choices[0].Logprobs.Content
	var text []byte
	for _, l := range list {
		for _, b := range l.Bytes {
			text = append(text, byte(b))
		}
		if len(l.TopLogprobs) != 3 || l.Logprob > 0 || l.TopLogprobs[0].Logprob != l.Logprob || l.TopLogprobs[0].Token != l.Token || l.TopLogprobs[1].Logprob > l.Logprob {
			t.Errorf("%s", l.RawJSON())
		}
	}
	if string(text) != c.Choices[0].Message.Content || len(list) != int(c.Usage.CompletionTokens) {
		t.Errorf("logprobs of %q, %d tokens; the text is %q, %d", text, len(list), c.Choices[0].Message.Content, c.Usage.CompletionTokens)
	}
	a, _ := stream(t, client, p)
	if got := a.Choices[0].Logprobs.Content; len(got) != len(list) || got[3].Logprob != list[3].Logprob {
		t.Errorf("streamed %d logprobs, want %d", len(got), len(list))
	}
	p.Logprobs = openai.Bool(false)
	_, err := client.Chat.Completions.New(t.Context(), p)
	if e := failure(t, err, http.StatusBadRequest); e.Param != "top_logprobs" {
		t.Errorf("param %q", e.Param)
	}
}

func TestSampling(t *testing.T) {
	client := dial(t)
	p := settings()
	p.N, p.Seed, p.Temperature, p.TopP = openai.Int(3), openai.Int(11), openai.Float(1.1), openai.Float(0.95)
	p.PresencePenalty, p.FrequencyPenalty = openai.Float(0.5), openai.Float(-0.5)
	first, again := chat(t, client, p), chat(t, client, p)
	texts := map[string]bool{}
	for i, c := range first.Choices {
		if c.Index != int64(i) || c.Message.Content != again.Choices[i].Message.Content {
			t.Errorf("choice %d of one seed: %q, then %q", i, c.Message.Content, again.Choices[i].Message.Content)
		}
		texts[c.Message.Content] = true
	}
	if len(first.Choices) != 3 || len(texts) < 2 || first.Usage.CompletionTokens != 3*24 {
		t.Errorf("%d choices, %d different, usage %s", len(first.Choices), len(texts), first.Usage.RawJSON())
	}
	a, _ := stream(t, client, p)
	for i, c := range first.Choices {
		if a.Choices[i].Message.Content != c.Message.Content {
			t.Errorf("choice %d: streamed %q, want %q", i, a.Choices[i].Message.Content, c.Message.Content)
		}
	}

	p = settings()
	whole := chat(t, client, p).Choices[0].Message.Content
	at := strings.Index(whole, " ")
	p.Stop.OfString = openai.String(whole[at : at+3])
	if c := chat(t, client, p).Choices[0]; c.Message.Content != whole[:at] || c.FinishReason != "stop" {
		t.Errorf("stopped at %q: %q, %s", whole[at:at+3], c.Message.Content, c.FinishReason)
	}
	p.Stop.OfString, p.Stop.OfStringArray = param.Opt[string]{}, []string{"never seen", whole[at : at+3]}
	if a, _ := stream(t, client, p); a.Choices[0].Message.Content != whole[:at] {
		t.Errorf("streamed up to %q: %q", whole[at:at+3], a.Choices[0].Message.Content)
	}

	p = settings()
	var ids struct{ Tokens []int }
	if err := client.Post(t.Context(), "../tokenize", map[string]any{"model": "stories", "prompt": "the", "add_special_tokens": false}, &ids); err != nil || len(ids.Tokens) == 0 {
		t.Fatal(ids, err)
	}
	p.LogitBias = map[string]int64{fmt.Sprint(ids.Tokens[0]): 100}
	p.Logprobs = openai.Bool(true)
	for _, l := range chat(t, client, p).Choices[0].Logprobs.Content {
		if strings.TrimSpace(l.Token) != "the" {
			t.Errorf("a biased text has %q", l.Token)
		}
	}
	extra := chat(t, client, settings(), option.WithJSONSet("top_k", 1), option.WithJSONSet("temperature", 2), option.WithJSONSet("min_p", 0.1), option.WithJSONSet("min_tokens", 24))
	if got := extra.Choices[0].Message.Content; got != whole {
		t.Errorf("top_k 1 gives %q, want %q", got, whole)
	}
}

func TestCompletions(t *testing.T) {
	client := dial(t)
	p := openai.CompletionNewParams{Model: "stories", Prompt: openai.CompletionNewParamsPromptUnion{OfString: openai.String(opening)}, MaxTokens: openai.Int(10), Temperature: openai.Float(0)}
	c, err := client.Completions.New(t.Context(), p)
	if err != nil || c.Object != "text_completion" || c.Choices[0].Text == "" || c.Choices[0].FinishReason != "length" || c.Usage.CompletionTokens != 10 {
		t.Fatalf("%+v, %v", c, err)
	}
	s := client.Completions.NewStreaming(t.Context(), p)
	var text string
	for s.Next() {
		text += s.Current().Choices[0].Text
	}
	if s.Err() != nil || text != c.Choices[0].Text {
		t.Errorf("streamed %q, %v; want %q", text, s.Err(), c.Choices[0].Text)
	}

	p.Prompt = openai.CompletionNewParamsPromptUnion{OfArrayOfStrings: []string{opening, "One day"}}
	p.N, p.Echo, p.Logprobs = openai.Int(2), openai.Bool(true), openai.Int(2)
	several, err := client.Completions.New(t.Context(), p)
	if err != nil || len(several.Choices) != 4 {
		t.Fatalf("%+v, %v: %s", several, err, why(err))
	}
	for i, choice := range several.Choices {
		want := []string{opening, "One day"}[i/2]
		l := choice.Logprobs
		if choice.Index != int64(i) || !strings.HasPrefix(choice.Text, want) || len(l.Tokens) != len(l.TokenLogprobs) || len(l.Tokens) != len(l.TextOffset) || len(l.Tokens) <= 10 {
			t.Errorf("choice %d: %s", i, choice.RawJSON())
		}
	}
	if got := strings.TrimPrefix(several.Choices[0].Text, opening); got != c.Choices[0].Text {
		t.Errorf("with echo %q, without %q", got, c.Choices[0].Text)
	}

	p = openai.CompletionNewParams{Model: "stories", Prompt: openai.CompletionNewParamsPromptUnion{OfArrayOfTokenArrays: [][]int64{{1, 403, 407}, {1, 411}}}, MaxTokens: openai.Int(3)}
	if c, err := client.Completions.New(t.Context(), p); err != nil || len(c.Choices) != 2 || c.Usage.PromptTokens != 5 {
		t.Errorf("%+v, %v", c, err)
	}
	p.Suffix = openai.String("the end")
	_, err = client.Completions.New(t.Context(), p)
	if e := failure(t, err, http.StatusBadRequest); e.Param != "suffix" {
		t.Errorf("param %q", e.Param)
	}
}

func TestEmbeddings(t *testing.T) {
	client := dial(t)
	embed := func(p openai.EmbeddingNewParams) *openai.CreateEmbeddingResponse {
		t.Helper()
		p.Model = "encoder"
		e, err := client.Embeddings.New(t.Context(), p)
		if err != nil {
			t.Fatal(err, why(err))
		}
		return e
	}
	texts := []string{"a ship", "a harbour"}
	e := embed(openai.EmbeddingNewParams{Input: openai.EmbeddingNewParamsInputUnion{OfArrayOfStrings: texts}, EncodingFormat: "float"})
	if len(e.Data) != 2 || string(e.Object) != "list" || e.Data[1].Index != 1 || e.Usage.PromptTokens == 0 || e.Usage.TotalTokens != e.Usage.PromptTokens {
		t.Fatalf("%s", e.RawJSON())
	}
	for _, d := range e.Data {
		var square float64
		for _, x := range d.Embedding {
			square += x * x
		}
		if math.Abs(square-1) > 1e-5 {
			t.Errorf("the square of an embedding's length is %v", square)
		}
	}
	one := embed(openai.EmbeddingNewParams{Input: openai.EmbeddingNewParamsInputUnion{OfString: openai.String(texts[1])}, Dimensions: openai.Int(int64(len(e.Data[0].Embedding))), User: openai.String("u")})
	for i, x := range one.Data[0].Embedding {
		if math.Abs(x-e.Data[1].Embedding[i]) > 1e-5 {
			t.Fatalf("alone %v, with others %v", one.Data[0].Embedding, e.Data[1].Embedding)
		}
	}
	embed(openai.EmbeddingNewParams{Input: openai.EmbeddingNewParamsInputUnion{OfArrayOfTokenArrays: [][]int64{{1, 2, 3}}}})
	_, err := client.Embeddings.New(t.Context(), openai.EmbeddingNewParams{Model: "encoder", Input: openai.EmbeddingNewParamsInputUnion{OfString: openai.String("x")}, Dimensions: openai.Int(3)})
	if e := failure(t, err, http.StatusBadRequest); e.Param != "dimensions" {
		t.Errorf("param %q", e.Param)
	}
}

var (
	turn = shared.FunctionDefinitionParam{Name: "turn", Description: openai.String("Turn the ship."), Parameters: shared.FunctionParameters{
		"type": "object", "properties": map[string]any{"side": map[string]any{"enum": []string{"port", "starboard"}}, "hard": map[string]any{"type": "boolean"}},
		"required": []string{"side", "hard"}, "additionalProperties": false}}
	anchor = shared.FunctionDefinitionParam{Name: "anchor", Parameters: shared.FunctionParameters{
		"type": "object", "properties": map[string]any{"down": map[string]any{"type": "boolean"}}, "required": []string{"down"}, "additionalProperties": false}}
)

// checkCalls says that calls are of those tools, with arguments valid for them.
func checkCalls(t *testing.T, calls []openai.ChatCompletionMessageToolCallUnion) {
	t.Helper()
	ids := map[string]bool{}
	for _, c := range calls {
		var a struct {
			Side string
			Hard *bool
			Down *bool
		}
		d := json.NewDecoder(strings.NewReader(c.Function.Arguments))
		d.DisallowUnknownFields()
		if err := d.Decode(&a); err != nil || c.ID == "" || ids[c.ID] || c.Type != "function" {
			t.Errorf("%s: %v", c.RawJSON(), err)
		}
		ids[c.ID] = true
		valid := c.Function.Name == "turn" && (a.Side == "port" || a.Side == "starboard") && a.Hard != nil && a.Down == nil ||
			c.Function.Name == "anchor" && a.Side == "" && a.Hard == nil && a.Down != nil
		if !valid {
			t.Errorf("%s with %s", c.Function.Name, c.Function.Arguments)
		}
	}
}

func TestTools(t *testing.T) {
	client := dial(t)
	base := settings()
	base.Model, base.MaxTokens = "tools", openai.Int(300)
	base.Tools = []openai.ChatCompletionToolUnionParam{openai.ChatCompletionFunctionTool(turn), openai.ChatCompletionFunctionTool(anchor)}

	p := base
	p.MaxTokens = openai.Int(20)
	if c := chat(t, client, p).Choices[0]; c.Message.Content == "" || len(c.Message.ToolCalls) != 0 {
		t.Errorf("left to itself the model says %s", c.RawJSON())
	}
	p.ToolChoice.OfAuto = openai.String("none")
	if c := chat(t, client, p).Choices[0]; c.Message.Content == "" || len(c.Message.ToolCalls) != 0 {
		t.Errorf("without calls the model says %s", c.RawJSON())
	}

	p = base
	p.ToolChoice.OfAuto, p.ParallelToolCalls = openai.String("required"), openai.Bool(false)
	required := chat(t, client, p)
	if c := required.Choices[0]; len(c.Message.ToolCalls) != 1 || c.FinishReason != "tool_calls" || c.Message.Content != "" || c.Message.JSON.Content.Valid() {
		t.Fatalf("%s", c.RawJSON())
	}
	checkCalls(t, required.Choices[0].Message.ToolCalls)
	a, chunks := stream(t, client, p)
	if got, want := a.Choices[0].Message.ToolCalls, required.Choices[0].Message.ToolCalls; len(got) != 1 || got[0].Function.Name != want[0].Function.Name || got[0].Function.Arguments != want[0].Function.Arguments || a.Choices[0].FinishReason != "tool_calls" {
		t.Errorf("streamed %+v, want %+v", got, want)
	}
	pieces := 0
	for _, c := range chunks {
		for _, choice := range c.Choices {
			for _, d := range choice.Delta.ToolCalls {
				if pieces++; (d.ID != "") != (pieces == 1) || (d.Function.Name != "") != (pieces == 1) || d.Index != 0 {
					t.Errorf("piece %d: %s", pieces, d.RawJSON())
				}
			}
		}
	}
	if pieces < 3 {
		t.Errorf("a call in %d pieces", pieces)
	}

	p.ToolChoice = openai.ToolChoiceOptionFunctionToolChoice(openai.ChatCompletionNamedToolChoiceFunctionParam{Name: "anchor"})
	for seed := range 4 {
		p.Temperature, p.Seed = openai.Float(1.5), openai.Int(int64(seed))
		c := chat(t, client, p).Choices[0]
		checkCalls(t, c.Message.ToolCalls)
		if len(c.Message.ToolCalls) != 1 || c.Message.ToolCalls[0].Function.Name != "anchor" {
			t.Errorf("%s", c.RawJSON())
		}
	}

	p.Model, p.Tools = "stories", base.Tools[1:] // it has no template of its own
	if c := chat(t, client, p).Choices[0]; c.FinishReason != "tool_calls" {
		t.Errorf("%s", c.RawJSON())
	} else {
		checkCalls(t, c.Message.ToolCalls)
	}

	p = base
	p.ToolChoice.OfAuto, p.ParallelToolCalls = openai.String("required"), openai.Bool(true)
	p.N, p.Temperature, p.Seed, p.MaxTokens = openai.Int(4), openai.Float(1.2), openai.Int(5), param.Opt[int64]{}
	for _, c := range chat(t, client, p).Choices {
		if len(c.Message.ToolCalls) == 0 {
			t.Errorf("%s", c.RawJSON())
		}
		if c.FinishReason == "tool_calls" { // else it ran into the context's end
			checkCalls(t, c.Message.ToolCalls)
		}
	}

	// The conversation goes on with what the tool said.
	p = base
	p.MaxTokens = openai.Int(20)
	call := required.Choices[0].Message
	p.Messages = append(p.Messages, call.ToParam(), openai.ToolMessage("done", call.ToolCalls[0].ID), openai.UserMessage("and then"))
	if c := chat(t, client, p); c.Choices[0].Message.Content == "" {
		t.Errorf("%s", c.RawJSON())
	}

	p = base
	p.ToolChoice = openai.ToolChoiceOptionFunctionToolChoice(openai.ChatCompletionNamedToolChoiceFunctionParam{Name: "fire"})
	_, err := client.Chat.Completions.New(t.Context(), p)
	if e := failure(t, err, http.StatusBadRequest); !strings.HasPrefix(e.Param, "tool_choice") {
		t.Errorf("param %q", e.Param)
	}
	p.ToolChoice = openai.ChatCompletionToolChoiceOptionUnionParam{}
	p.Tools = append(p.Tools, openai.ChatCompletionCustomTool(openai.ChatCompletionCustomToolCustomParam{Name: "free"}))
	_, err = client.Chat.Completions.New(t.Context(), p)
	if e := failure(t, err, http.StatusBadRequest); !strings.HasPrefix(e.Param, "tools") {
		t.Errorf("param %q", e.Param)
	}
}

func TestStructured(t *testing.T) {
	client := dial(t)
	schema := map[string]any{"type": "object", "properties": map[string]any{
		"cargo": map[string]any{"type": "string", "maxLength": 8}, "tons": map[string]any{"type": "integer", "minimum": 0, "maximum": 99}, "kind": map[string]any{"enum": []string{"bulk", "tank"}}},
		"required": []string{"cargo", "tons", "kind"}, "additionalProperties": false}
	p := settings()
	p.MaxTokens, p.Temperature = openai.Int(200), openai.Float(1)
	p.ResponseFormat.OfJSONSchema = &shared.ResponseFormatJSONSchemaParam{JSONSchema: shared.ResponseFormatJSONSchemaJSONSchemaParam{Name: "load", Strict: openai.Bool(true), Schema: schema}}
	for seed := range 3 {
		p.Seed = openai.Int(int64(seed))
		c := chat(t, client, p)
		var load struct {
			Cargo *string
			Tons  *int
			Kind  string
		}
		d := json.NewDecoder(strings.NewReader(c.Choices[0].Message.Content))
		d.DisallowUnknownFields()
		if err := d.Decode(&load); err != nil || load.Cargo == nil || len([]rune(*load.Cargo)) > 8 || load.Tons == nil || *load.Tons > 99 || load.Kind != "bulk" && load.Kind != "tank" {
			t.Errorf("%q: %v", c.Choices[0].Message.Content, err)
		}
		if c.Choices[0].FinishReason != "stop" {
			t.Errorf("finish reason %s", c.Choices[0].FinishReason)
		}
	}

	p = settings()
	p.ResponseFormat.OfJSONObject = &shared.ResponseFormatJSONObjectParam{}
	if c := chat(t, client, p).Choices[0]; !strings.HasPrefix(strings.TrimSpace(c.Message.Content), "{") || c.FinishReason == "stop" && !json.Valid([]byte(c.Message.Content)) {
		t.Errorf("%s", c.RawJSON())
	}
	p.ResponseFormat = openai.ChatCompletionNewParamsResponseFormatUnion{OfText: &shared.ResponseFormatTextParam{}}
	chat(t, client, p)

	p = settings()
	for name, c := range map[string]struct {
		value any
		valid func(string) bool
	}{
		"choice":  {[]string{"port", "starboard"}, func(s string) bool { return s == "port" || s == "starboard" }},
		"regex":   {"[ab]{3}-[0-9]{2}", func(s string) bool { return len(s) == 6 && s[3] == '-' }},
		"json":    {schema, func(s string) bool { return json.Valid([]byte(s)) }},
		"grammar": {`root ::= "aye" (", " "sir")?`, func(s string) bool { return s == "aye" || s == "aye, sir" }},
	} {
		if name == "json" {
			p.MaxTokens = openai.Int(200)
		}
		got := chat(t, client, p, option.WithJSONSet("structured_outputs", map[string]any{name: c.value})).Choices[0]
		if !c.valid(got.Message.Content) || got.FinishReason != "stop" {
			t.Errorf("%s: %s", name, got.RawJSON())
		}
	}
	_, err := client.Chat.Completions.New(t.Context(), p, option.WithJSONSet("structured_outputs", map[string]any{"regex": "("}))
	failure(t, err, http.StatusBadRequest)
}

func TestErrors(t *testing.T) {
	client := dial(t)
	for name, c := range map[string]struct {
		change  func(*openai.ChatCompletionNewParams)
		options []option.RequestOption
		status  int
		code    string
		param   string
	}{
		"no such model": {func(p *openai.ChatCompletionNewParams) { p.Model = "nobody" }, nil, 404, "model_not_found", "model"},
		"suspended":     {func(p *openai.ChatCompletionNewParams) { p.Model = "suspended" }, nil, 503, "", ""},
		"too long":      {func(p *openai.ChatCompletionNewParams) { p.Messages = say(strings.Repeat("far too long ", 2000)) }, nil, 400, "context_length_exceeded", "messages"},
		"temperature":   {func(p *openai.ChatCompletionNewParams) { p.Temperature = openai.Float(3) }, nil, 400, "", "temperature"},
		"an image": {func(p *openai.ChatCompletionNewParams) {
			p.Messages = []openai.ChatCompletionMessageParamUnion{openai.UserMessage([]openai.ChatCompletionContentPartUnionParam{openai.ImageContentPart(openai.ChatCompletionContentPartImageImageURLParam{URL: "data:,"})})}
		}, nil, 400, "", "messages[0].content"},
		"audio": {func(p *openai.ChatCompletionNewParams) { p.Modalities = []string{"text", "audio"} }, nil, 400, "", "modalities"},
		"functions": {func(p *openai.ChatCompletionNewParams) {
			p.Functions = []openai.ChatCompletionNewParamsFunction{{Name: "f"}}
		}, nil, 400, "", "functions"},
		"an unknown setting": {func(*openai.ChatCompletionNewParams) {}, []option.RequestOption{option.WithJSONSet("surprise", 1)}, 400, "", "surprise"},
		"not JSON":           {func(*openai.ChatCompletionNewParams) {}, []option.RequestOption{option.WithRequestBody("application/json", []byte("{"))}, 400, "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			p := settings()
			c.change(&p)
			_, err := client.Chat.Completions.New(t.Context(), p, c.options...)
			e := failure(t, err, c.status)
			if c.code != "" && e.Code != c.code || e.Param != c.param {
				t.Errorf("code %q, param %q; want %q, %q: %v", e.Code, e.Param, c.code, c.param, err)
			}
			if c.status == 503 && e.Response.Header.Get("Retry-After") == "" {
				t.Error("no Retry-After")
			}
			s := client.Chat.Completions.NewStreaming(t.Context(), p, c.options...)
			for s.Next() {
				t.Errorf("a chunk before the error: %s", s.Current().RawJSON())
			}
			failure(t, s.Err(), c.status)
		})
	}
	_, err := client.Responses.New(t.Context(), responses.ResponseNewParams{Model: "stories", Input: responses.ResponseNewParamsInputUnion{OfString: openai.String("x")}})
	failure(t, err, http.StatusNotFound)
}

// A model that sleeps is woken by a request.
func TestWakes(t *testing.T) {
	p := settings()
	p.Model = "asleep"
	if c := chat(t, dial(t), p); c.Choices[0].Message.Content == "" {
		t.Errorf("%s", c.RawJSON())
	}
}

// More than fits the queue is refused, saying when to come back; the client does so by itself.
func TestRetries(t *testing.T) {
	client := dial(t)
	p := settings()
	p.Model, p.N, p.MaxTokens, p.Temperature = "busy", openai.Int(8), openai.Int(200), openai.Float(1)
	var crowd sync.WaitGroup
	ctx, leave := context.WithCancel(t.Context())
	full := make(chan *openai.Error, 128)
	for range cap(full) {
		crowd.Go(func() {
			s := client.Chat.Completions.NewStreaming(ctx, p)
			for s.Next() {
			}
			var e *openai.Error
			if errors.As(s.Err(), &e) {
				full <- e
			}
		})
	}
	select {
	case e := <-full:
		if e.StatusCode != http.StatusTooManyRequests || e.Response.Header.Get("Retry-After") == "" || e.Type == "" {
			t.Errorf("%d, Retry-After %q: %v", e.StatusCode, e.Response.Header.Get("Retry-After"), e)
		}
	case <-time.After(20 * time.Second):
		t.Error("nobody was refused")
	}
	tries := 0
	count := option.WithMiddleware(func(r *http.Request, next option.MiddlewareNext) (*http.Response, error) {
		if tries++; tries == 2 {
			leave() // there is room from now on
			crowd.Wait()
		}
		return next(r)
	})
	p.N = openai.Int(128)
	p.MaxTokens = openai.Int(1)
	c := chat(t, dial(t, option.WithMaxRetries(5), count), p)
	leave()
	crowd.Wait()
	if len(c.Choices) != 128 || tries < 2 {
		t.Errorf("%d choices after %d tries, want 128 after more than one", len(c.Choices), tries)
	}
}

func TestCancels(t *testing.T) {
	client := dial(t)
	p := settings()
	p.Model, p.MaxTokens, p.N = "stories", openai.Int(400), openai.Int(8)
	p.Temperature = openai.Float(1)
	ctx, cancel := context.WithCancel(t.Context())
	s := client.Chat.Completions.NewStreaming(ctx, p, option.WithJSONSet("ignore_eos", true))
	if !s.Next() {
		t.Fatal(s.Err())
	}
	cancel()
	for s.Next() {
	}
	if !errors.Is(s.Err(), context.Canceled) {
		t.Errorf("%v, want it cancelled", s.Err())
	}
	idle(t, "stories")

	_, err := client.Chat.Completions.New(t.Context(), p, option.WithRequestTimeout(30*time.Millisecond), option.WithJSONSet("ignore_eos", true))
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v, want a timeout", err)
	}
	idle(t, "stories")
}

// idle waits until no request of the model runs any more, as estiba serve tells; in a cluster the
// workers would have to be asked.
func idle(t *testing.T, model string) {
	t.Helper()
	url := strings.TrimSuffix(os.Getenv("OPENAI_TEST_URL"), "/v1") + "/metrics"
	deadline := time.Now().Add(10 * time.Second)
	for {
		resp, err := http.Get(url)
		if err != nil {
			t.Fatal(err)
		}
		var text bytes.Buffer
		_, err = text.ReadFrom(resp.Body)
		resp.Body.Close()
		if err != nil {
			t.Fatal(err)
		}
		running := 0
		for line := range strings.Lines(text.String()) {
			if strings.HasPrefix(line, "estiba_model_requests_running{") && strings.Contains(line, model) && !strings.HasSuffix(strings.TrimSpace(line), " 0") {
				running++
			}
		}
		if running == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("requests of %s run on", model)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// A stream that the client reads by hand is server-sent events.
func TestEvents(t *testing.T) {
	client := dial(t)
	var raw *http.Response
	err := client.Post(t.Context(), "chat/completions", map[string]any{"model": "stories", "messages": []any{map[string]any{"role": "user", "content": opening}}, "max_tokens": 4, "stream": true}, &raw)
	if err != nil {
		t.Fatal(err)
	}
	s := ssestream.NewStream[openai.ChatCompletionChunk](ssestream.NewDecoder(raw), nil)
	n := 0
	for s.Next() {
		n++
	}
	if s.Err() != nil || n == 0 || !strings.HasPrefix(raw.Header.Get("Content-Type"), "text/event-stream") {
		t.Errorf("%d events, %v, %v", n, raw.Header, s.Err())
	}
}
