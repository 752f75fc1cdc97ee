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

	"github.com/estiba/estiba/runtime/sampling"
)

// answer writes texts as OpenAI's objects.
type answer struct {
	*generation
	id      string
	created int64
}

func newAnswer(g *generation) *answer {
	kind := "cmpl-"
	if g.of == chat {
		kind = "chatcmpl-"
	}
	return &answer{generation: g, id: kind + rand.Text(), created: time.Now().Unix()}
}

func (a *answer) object(kind string, choices []any) map[string]any {
	return map[string]any{"id": a.id, "object": kind, "created": a.created, "model": a.model, "choices": choices}
}

// usage of some tokens.
func usage(prompt, output, cached int) map[string]any {
	return map[string]any{
		"prompt_tokens": prompt, "completion_tokens": output, "total_tokens": prompt + output,
		"prompt_tokens_details": map[string]int{"cached_tokens": cached},
	}
}

// total is the usage of all texts; a prompt with several counts once. How much of
// a prompt was taken over is known only of texts that were not cut at a stop string.
func total(texts []*text) map[string]any {
	var prompt, output, cached int
	for _, t := range texts {
		output += t.output
		if t.counts {
			prompt, cached = prompt+t.prompt, cached+t.cached
		}
	}
	return usage(prompt, output, cached)
}

// whole is a text that has been collected.
type whole struct {
	content, reasoning strings.Builder
	calls              []delta // each complete
	tokens             []sampling.Token
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
	o := a.object(kind, choices)
	o["usage"] = total(texts)
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
		data, err := json.Marshal(v)
		if err != nil {
			panic(err)
		}
		if !started {
			started = true
			w.Header().Set("Content-Type", "text/event-stream")
			w.Header().Set("Cache-Control", "no-cache")
			w.Header().Set("X-Accel-Buffering", "no") // a proxy before us must not collect them
			w.WriteHeader(http.StatusOK)
		}
		return write(data)
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
		last := a.object(a.chunk(), []any{})
		last["usage"] = total(texts)
		if !send(last) {
			return nil
		}
	}
	if write([]byte("[DONE]")) {
		conn.SetWriteDeadline(time.Time{}) // the connection goes on
	}
	return nil
}

// chunk is the kind of a stream's objects.
func (a *answer) chunk() string {
	if a.of == chat {
		return "chat.completion.chunk"
	}
	return "text_completion"
}

// chunks of one piece: the role before the first, the finish reason in one of its own.
func (a *answer) chunks(i int, t *text, p piece, first bool) (list []any) {
	add := func(d delta, delta map[string]any, tokens []sampling.Token, finish any) {
		c := map[string]any{"index": i, "finish_reason": finish, "logprobs": nil}
		if len(tokens) > 0 {
			c["logprobs"] = a.logprobs(t, tokens)
		}
		if a.of == chat {
			c["delta"] = delta
		} else {
			c["text"] = d.Content
		}
		o := a.object(a.chunk(), []any{c})
		switch {
		case a.usages:
			o["usage"] = usage(t.prompt, p.output, t.cached)
		case a.usage:
			o["usage"] = nil
		}
		list = append(list, o)
	}
	if a.of == chat && first {
		role := map[string]any{"role": "assistant", "content": ""}
		if len(p.deltas) > 0 && p.deltas[0].Call() {
			role["content"] = nil
		}
		add(delta{}, role, nil, nil)
	}
	deltas := p.deltas
	if len(deltas) == 0 && len(p.tokens) > 0 {
		deltas = []delta{{}} // for their logprobs
	}
	for n, d := range deltas {
		var tokens []sampling.Token
		if n == 0 {
			tokens = p.tokens
		}
		add(d, deltaObject(d), tokens, nil)
	}
	if p.finish != "" {
		add(delta{}, map[string]any{}, nil, p.finish)
	}
	return list
}

// deltaObject is what a chat's message grows by.
func deltaObject(d delta) map[string]any {
	switch {
	case d.Reasoning != "":
		return map[string]any{"reasoning_content": d.Reasoning}
	case d.Content != "" || d == (delta{}):
		return map[string]any{"content": d.Content}
	}
	call := map[string]any{"index": d.Index, "function": map[string]any{"arguments": d.Arguments}}
	if d.ID != "" {
		call["id"], call["type"] = d.ID, "function"
		call["function"] = map[string]any{"name": d.Name, "arguments": d.Arguments}
	}
	return map[string]any{"tool_calls": []any{call}}
}

// logprob is a token's as the chat endpoint writes it.
type logprob struct {
	Token   string    `json:"token"`
	Logprob float64   `json:"logprob"`
	Bytes   []int     `json:"bytes"`
	Top     []logprob `json:"top_logprobs,omitzero"`
}

// logprobs is null unless they were asked for.
func (a *answer) logprobs(t *text, tokens []sampling.Token) any {
	if !a.sampling.Logprobs {
		return nil
	}
	if a.of != chat {
		return t.lists(tokens)
	}
	content := []logprob{}
	for _, token := range tokens {
		l := t.logprob(token.ID, token.Logprob)
		l.Top = []logprob{}
		for _, top := range token.Top {
			l.Top = append(l.Top, t.logprob(top.ID, top.Logprob))
		}
		content = append(content, l)
	}
	return map[string]any{"content": content, "refusal": nil}
}

func (t *text) logprob(id int32, p float64) logprob {
	text, bytes := t.spelled(id)
	l := logprob{Token: text, Logprob: finite(p), Bytes: make([]int, len(bytes))}
	for i, b := range bytes {
		l.Bytes[i] = int(b)
	}
	return l
}

// finite is a logprob as JSON can have it; OpenAI's word for minus infinity.
func finite(p float64) float64 { return max(p, -9999) }

// lists is the older endpoint's shape: lists side by side.
func (t *text) lists(tokens []sampling.Token) map[string]any {
	var (
		pieces  = []string{}
		values  = []float64{}
		tops    = []map[string]float64{}
		offsets = []int{}
	)
	for _, token := range tokens {
		text, bytes := t.spelled(token.ID)
		top := map[string]float64{}
		for _, other := range slices.Backward(token.Top) { // of those that look alike the likelier stays
			name, _ := t.spelled(other.ID)
			top[name] = finite(other.Logprob)
		}
		at := t.offset
		if len(bytes) > 0 && inside(bytes[0]) {
			at-- // it belongs to the character before
		}
		pieces, values, tops, offsets = append(pieces, text), append(values, finite(token.Logprob)), append(tops, top), append(offsets, max(at, 0))
		for _, b := range bytes {
			if !inside(b) {
				t.offset++
			}
		}
	}
	return map[string]any{"tokens": pieces, "token_logprobs": values, "top_logprobs": tops, "text_offset": offsets}
}

// inside says that a byte of UTF-8 is not the first of its character.
func inside(b byte) bool { return b&0xc0 == 0x80 }
