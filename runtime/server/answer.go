package server

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/estiba/estiba/runtime/tokenizer"
	"github.com/estiba/estiba/runtime/toolcall"
)

// answer writes texts as OpenAI's objects.
type answer struct {
	*generation
	id      string
	created int64
	// perToken gives the joules of a token, for usage that has energy.
	perToken func() (float64, bool)
}

func newAnswer(g *generation) *answer {
	kind := "cmpl-"
	if g.of == chat {
		kind = "chatcmpl-"
	}
	unknown := func() (float64, bool) { return 0, false }
	return &answer{generation: g, id: kind + rand.Text(), created: time.Now().Unix(), perToken: unknown}
}

// envelope is an answer, or a chunk of one.
type envelope struct {
	ID      string          `json:"id"`
	Object  string          `json:"object"`
	Created int64           `json:"created"` // seconds since 1970
	Model   string          `json:"model"`
	Choices []any           `json:"choices"`
	Usage   json.RawMessage `json:"usage,omitempty"`
}

func (a *answer) envelope(kind string, choices ...any) envelope {
	if choices == nil {
		choices = []any{}
	}
	return envelope{ID: a.id, Object: kind, Created: a.created, Model: a.model, Choices: choices}
}

// usageOf some tokens.
func (a *answer) usageOf(prompt, output, cached int) json.RawMessage {
	u := fmt.Appendf(nil, `{"prompt_tokens":%d,"completion_tokens":%d,"total_tokens":%d,"prompt_tokens_details":{"cached_tokens":%d}`,
		prompt, output, prompt+output, cached)
	joules, known := 0., false
	if a.energy {
		joules, known = a.perToken()
	}
	if !known {
		return append(u, '}')
	}
	return fmt.Appendf(u, `,"energy":{"joules":%.4g,"joules_per_token":%.4g}}`, joules*float64(prompt-cached+output), joules)
}

var null = json.RawMessage("null")

// total is the usage of all texts; a prompt with several counts once.
func (a *answer) total(texts []*text) json.RawMessage {
	var prompt, output, cached int
	for _, t := range texts {
		output += t.output
		if t.counts {
			prompt, cached = prompt+t.prompt, cached+t.cached
		}
	}
	return a.usageOf(prompt, output, cached)
}

// whole is a text that has been collected.
type whole struct {
	content, reasoning strings.Builder
	calls              []toolcall.Delta // each complete
	tokens             []spoken
}

func (c *whole) add(p piece) {
	for _, d := range p.deltas {
		c.content.WriteString(d.Content)
		c.reasoning.WriteString(d.Reasoning)
		switch {
		case !d.Call():
		case d.ID != "":
			c.calls = append(c.calls, d)
		default:
			c.calls[len(c.calls)-1].Arguments += d.Arguments
		}
	}
	c.tokens = append(c.tokens, p.tokens...)
}

// collect waits for all texts and answers with one object.
func (a *answer) collect(ctx context.Context, w http.ResponseWriter, texts []*text) *apiError {
	choices, all, next := make([]any, len(texts)), make([]whole, len(texts)), parts(ctx, texts)
	for running := len(texts); running > 0; {
		p := next()
		switch {
		case p.gone:
			return nil
		case p.err != nil:
			return p.err
		}
		all[p.of].add(p.piece)
		if p.finish != "" {
			choices[p.of] = a.choice(p.of, texts[p.of], &all[p.of], p.finish)
			running--
		}
	}
	kind := "text_completion"
	if a.of == chat {
		kind = "chat.completion"
	}
	o := a.envelope(kind, choices...)
	o.Usage = a.total(texts)
	writeJSON(w, http.StatusOK, o)
	return nil
}

func (a *answer) choice(i int, t *text, c *whole, finish string) map[string]any {
	o := map[string]any{"index": i, "finish_reason": finish, "logprobs": a.logprobs(t, c.tokens)}
	if a.of != chat {
		o["text"] = c.content.String()
		return o
	}
	message := map[string]any{"role": "assistant", "content": c.content.String(), "refusal": nil}
	if c.reasoning.Len() > 0 {
		message["reasoning_content"] = c.reasoning.String()
	}
	if len(c.calls) > 0 {
		calls := make([]any, len(c.calls))
		for i, d := range c.calls {
			calls[i] = map[string]any{"id": d.ID, "type": "function", "function": map[string]string{"name": d.Name, "arguments": d.Arguments}}
		}
		message["tool_calls"] = calls
		if c.content.Len() == 0 {
			message["content"] = nil
		}
	}
	o["message"] = message
	return o
}

// stream answers with one event a piece, those of several texts as they come. The
// first is not sent before something has been computed, so that an early failure
// still has a status of its own.
func (a *answer) stream(ctx context.Context, w http.ResponseWriter, texts []*text) *apiError {
	conn := http.NewResponseController(w)
	started := false
	write := func(data []byte) bool {
		conn.SetWriteDeadline(time.Now().Add(readTimeout)) // a writer that cannot is one of a test
		_, err := fmt.Fprintf(w, "data: %s\n\n", data)
		if flushed := conn.Flush(); err == nil && !errors.Is(flushed, http.ErrNotSupported) {
			err = flushed
		}
		return err == nil
	}
	send := func(v any) bool {
		if !started {
			started = true
			w.Header().Set("Content-Type", "text/event-stream")
			w.Header().Set("Cache-Control", "no-cache")
			w.Header().Set("X-Accel-Buffering", "no") // a proxy before us must not collect them
			w.WriteHeader(http.StatusOK)
		}
		return write(encoded(v))
	}
	begun := make([]bool, len(texts))
	next := parts(ctx, texts)
	for running := len(texts); running > 0; {
		p := next()
		switch {
		case p.gone:
			return nil
		case p.err != nil && !started:
			return p.err
		case p.err != nil:
			send(map[string]any{"error": p.err})
			return nil
		}
		for _, c := range a.chunks(p.of, texts[p.of], p.piece, !begun[p.of]) {
			if !send(c) {
				return nil
			}
		}
		begun[p.of] = true
		if p.finish != "" {
			running--
		}
	}
	if a.usage {
		last := a.envelope(a.kind())
		last.Usage = a.total(texts)
		if !send(last) {
			return nil
		}
	}
	if write([]byte("[DONE]")) {
		conn.SetWriteDeadline(time.Time{}) // the connection goes on
	}
	return nil
}

// kind is that of a stream's objects.
func (a *answer) kind() string {
	if a.of == chat {
		return "chat.completion.chunk"
	}
	return "text_completion"
}

// chunk is a choice in a chunk: of a chat with a delta, of completions with text.
type chunk struct {
	Index    int     `json:"index"`
	Delta    any     `json:"delta,omitzero"`
	Text     *string `json:"text,omitzero"`
	Logprobs any     `json:"logprobs"`
	Finish   *string `json:"finish_reason"`
}

// chunks of one piece: the role before the first, the finish reason in one of its own.
func (a *answer) chunks(i int, t *text, p piece, first bool) (list []envelope) {
	add := func(d toolcall.Delta, delta any, tokens []spoken, finish *string) {
		c := chunk{Index: i, Finish: finish}
		if len(tokens) > 0 {
			c.Logprobs = a.logprobs(t, tokens)
		}
		if a.of == chat {
			c.Delta = delta
		} else {
			c.Text = &d.Content
		}
		o := a.envelope(a.kind(), c)
		switch {
		case a.usages:
			o.Usage = a.usageOf(t.prompt, p.output, t.cached)
		case a.usage:
			o.Usage = null
		}
		list = append(list, o)
	}
	if a.of == chat && first {
		role := map[string]any{"role": "assistant", "content": ""}
		if len(p.deltas) > 0 && p.deltas[0].Call() {
			role["content"] = nil
		}
		add(toolcall.Delta{}, role, nil, nil)
	}
	deltas := p.deltas
	if len(deltas) == 0 && len(p.tokens) > 0 {
		deltas = []toolcall.Delta{{}} // for their logprobs
	}
	for n, d := range deltas {
		var tokens []spoken
		if n == 0 {
			tokens = p.tokens
		}
		add(d, newDelta(d), tokens, nil)
	}
	if p.finish != "" {
		add(toolcall.Delta{}, struct{}{}, nil, &p.finish)
	}
	return list
}

// delta is what a chat's message grows by.
type delta struct {
	Content   *string    `json:"content,omitzero"`
	Reasoning *string    `json:"reasoning_content,omitzero"`
	Calls     []callPart `json:"tool_calls,omitempty"`
}

// callPart is a part of a call; the first has its id, type and name.
type callPart struct {
	Index    int    `json:"index"`
	ID       string `json:"id,omitempty"`
	Type     string `json:"type,omitempty"`
	Function struct {
		Name      string `json:"name,omitempty"`
		Arguments string `json:"arguments"`
	} `json:"function"`
}

func newDelta(d toolcall.Delta) delta {
	switch {
	case d.Reasoning != "":
		return delta{Reasoning: &d.Reasoning}
	case d.Content != "" || d == toolcall.Delta{}:
		return delta{Content: &d.Content}
	}
	part := callPart{Index: d.Index, ID: d.ID}
	part.Function.Name, part.Function.Arguments = d.Name, d.Arguments
	if d.ID != "" {
		part.Type = "function"
	}
	return delta{Calls: []callPart{part}}
}

// logprob is a token's as the chat endpoint writes it.
type logprob struct {
	Token   string    `json:"token"`
	Logprob float64   `json:"logprob"`
	Bytes   []int     `json:"bytes"`
	Top     []logprob `json:"top_logprobs,omitzero"`
}

// logprobs is null unless they were asked for.
func (a *answer) logprobs(t *text, tokens []spoken) any {
	if !a.sampling.Logprobs {
		return nil
	}
	if a.of != chat {
		return lists(t.tokenizer, tokens)
	}
	content := []logprob{}
	for _, s := range tokens {
		l := newLogprob(s.spelled(t.tokenizer), s.Logprob)
		l.Top = []logprob{}
		for _, top := range s.Top {
			l.Top = append(l.Top, newLogprob(spelled(t.tokenizer, top.ID), top.Logprob))
		}
		content = append(content, l)
	}
	return map[string]any{"content": content, "refusal": nil}
}

func newLogprob(bytes []byte, p float64) logprob {
	l := logprob{Token: legible(bytes), Logprob: finite(p), Bytes: make([]int, len(bytes))}
	for i, b := range bytes {
		l.Bytes[i] = int(b)
	}
	return l
}

// lists is the older endpoint's shape: lists side by side. Null is the logprob of
// a prompt's first token.
func lists(t *tokenizer.Tokenizer, tokens []spoken) map[string]any {
	name := func(bytes []byte) string {
		if utf8.Valid(bytes) {
			return string(bytes)
		}
		return "bytes:" + legible(bytes)
	}
	n := len(tokens)
	names, values, tops, offsets := make([]string, n), make([]any, n), make([]map[string]float64, n), make([]int, n)
	for i, s := range tokens {
		names[i], offsets[i] = name(s.spelled(t)), s.offset
		if s.given {
			continue
		}
		values[i], tops[i] = finite(s.Logprob), map[string]float64{}
		for _, other := range slices.Backward(s.Top) { // of those that look alike the likelier stays
			tops[i][name(spelled(t, other.ID))] = finite(other.Logprob)
		}
		tops[i][name(spelled(t, s.ID))] = finite(s.Logprob)
	}
	return map[string]any{"tokens": names, "token_logprobs": values, "top_logprobs": tops, "text_offset": offsets}
}

// finite is a logprob as JSON can have it; OpenAI's word for minus infinity.
func finite(p float64) float64 { return max(p, -9999) }

// spelled is what a token adds to a text, or how the tokenizer's files write one that is no text.
func spelled(t *tokenizer.Tokenizer, id int32) []byte {
	if bytes, ok := t.TokenBytes(id); ok {
		return bytes
	}
	return []byte(t.Text(id))
}

// spelled is what a token adds to its text.
func (s spoken) spelled(t *tokenizer.Tokenizer) []byte {
	bytes := spelled(t, s.ID)
	return bytes[:max(0, len(bytes)-s.cut)]
}

// legible is bytes as text; those that are no characters are written as \xe2.
func legible(bytes []byte) string {
	if utf8.Valid(bytes) {
		return string(bytes)
	}
	var text strings.Builder
	for len(bytes) > 0 {
		r, n := utf8.DecodeRune(bytes)
		if r == utf8.RuneError && n == 1 {
			fmt.Fprintf(&text, `\x%02x`, bytes[0])
		} else {
			text.Write(bytes[:n])
		}
		bytes = bytes[n:]
	}
	return text.String()
}
