package server

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"runtime/debug"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/estiba/estiba/runtime/batching"
	"github.com/estiba/estiba/runtime/engine"
	"github.com/estiba/estiba/runtime/sampling"
	"github.com/estiba/estiba/runtime/tokenizer"
)

// text is one answer as it comes: ids become text, and end where a stop string begins.
type text struct {
	events   <-chan engine.Event
	cancel   context.CancelFunc // ends the request
	decode   *tokenizer.Stream
	within   tokenizer.Stream // in the middle of a text; copied to see what one token is there
	stops    []string
	logprobs bool
	prompt   int // tokens

	held    string           // may be the start of a stop string
	pending []sampling.Token // their text is not out yet
	output  int              // tokens
	cached  int              // of the prompt, taken over
	offset  int              // of the next token in the text, in characters, for logprobs
}

// piece is the next part of a text; the last one has a finish reason or an error.
type piece struct {
	text   string
	tokens []sampling.Token // with logprobs
	finish batching.Finish
	err    *apiError
	gone   bool // the client is not there any more
}

func newText(events <-chan engine.Event, cancel context.CancelFunc, t *tokenizer.Tokenizer, prompt []int32, req *request) *text {
	return &text{
		events: events, cancel: cancel, decode: t.Stream(prompt...), within: *t.Stream(t.Encode("a", false)...),
		stops: req.stop, logprobs: req.sampling.Logprobs, prompt: len(prompt),
	}
}

// part is a piece of one of several texts.
type part struct {
	of int // index of the text
	piece
}

// parts reads texts side by side, since a stop string may come up in any of them,
// and returns what waits for the next piece of any: gone once ctx has ended. After
// the last piece of each there are no more.
func parts(ctx context.Context, texts []*text) (next func() part) {
	all := make(chan part)
	for i, t := range texts {
		go func() {
			defer t.cancel()
			for {
				p := part{i, t.safely()}
				if p.last() {
					t.cancel() // before somebody takes it
				}
				select {
				case all <- p:
				case <-ctx.Done():
					return
				}
				if p.last() {
					return
				}
			}
		}()
	}
	return func() part {
		select {
		case p := <-all:
			return p
		case <-ctx.Done():
			return part{piece: piece{gone: true}}
		}
	}
}

// safely is next; a panic ends the text, as one of a handler would.
func (t *text) safely() (p piece) {
	defer func() {
		if r := recover(); r != nil {
			slog.Error("text panicked", "panic", r, "stack", string(debug.Stack()))
			p = piece{err: stepError(errors.New("writing its text broke; the log says where"))}
		}
	}()
	return t.next()
}

func (p piece) last() bool { return p.gone || p.err != nil || p.finish != "" }

// next waits until there is more to say.
func (t *text) next() piece {
	for {
		ev, ok := <-t.events
		switch {
		case !ok || ev.Finish == batching.FinishCancelled:
			return piece{gone: true}
		case ev.Finish == batching.FinishError:
			return piece{err: stepError(ev.Err)}
		case ev.Finish != "":
			t.cached = ev.Cached
			out, stopped := t.cut(t.decode.Flush())
			if stopped {
				ev.Finish = batching.FinishStop
			} else {
				out, t.held = out+t.held, ""
			}
			return piece{text: out, tokens: t.give(), finish: ev.Finish}
		}
		t.output++
		if t.logprobs {
			t.pending = append(t.pending, ev.Token)
		}
		out, stopped := t.cut(t.decode.Push(ev.Token.ID))
		if stopped {
			return piece{text: out, tokens: t.give(), finish: batching.FinishStop}
		}
		if out != "" {
			return piece{text: out, tokens: t.give()}
		}
	}
}

func (t *text) give() []sampling.Token {
	tokens := t.pending
	t.pending = nil
	return tokens
}

// cut adds text and takes what certainly belongs to the answer: up to a stop
// string, or to what may yet become one.
func (t *text) cut(more string) (out string, stopped bool) {
	t.held += more
	first := len(t.held)
	for _, stop := range t.stops {
		if i := strings.Index(t.held, stop); i >= 0 && i < first {
			first, stopped = i, true
		}
	}
	if stopped {
		out, t.held = t.held[:first], ""
		return out, true
	}
	keep := 0
	for _, stop := range t.stops {
		for n := min(len(stop)-1, len(t.held)); n > keep; n-- {
			if strings.HasSuffix(t.held, stop[:n]) {
				keep = n
				break
			}
		}
	}
	out, t.held = t.held[:len(t.held)-keep], t.held[len(t.held)-keep:]
	return out, false
}

// answer writes texts as OpenAI's objects.
type answer struct {
	req     *request
	id      string
	created int64
}

func newAnswer(req *request) *answer {
	kind := "cmpl-"
	if req.chat {
		kind = "chatcmpl-"
	}
	return &answer{req: req, id: kind + rand.Text(), created: time.Now().Unix()}
}

func (a *answer) object(object string, choices []any, u any) map[string]any {
	m := map[string]any{"id": a.id, "object": object, "created": a.created, "model": a.req.model, "choices": choices}
	if u != nil {
		m["usage"] = u
	}
	return m
}

// total is the usage of all texts. How much of a prompt was taken over is known
// only of texts that were not cut at a stop string.
func total(texts []*text) map[string]any {
	var prompt, output, cached int
	for _, t := range texts {
		prompt, output, cached = prompt+t.prompt, output+t.output, cached+t.cached
	}
	return map[string]any{
		"prompt_tokens": prompt, "completion_tokens": output, "total_tokens": prompt + output,
		"prompt_tokens_details": map[string]int{"cached_tokens": cached},
	}
}

// collect waits for all texts and answers with one object.
func (a *answer) collect(ctx context.Context, w http.ResponseWriter, texts []*text) {
	var (
		choices = make([]any, len(texts))
		all     = make([]strings.Builder, len(texts))
		tokens  = make([][]sampling.Token, len(texts))
		next    = parts(ctx, texts)
	)
	for running := len(texts); running > 0; {
		p := next()
		i := p.of
		switch {
		case p.gone:
			return
		case p.err != nil:
			fail(w, p.err)
			return
		}
		all[i].WriteString(p.text)
		tokens[i] = append(tokens[i], p.tokens...)
		if p.finish != "" {
			choices[i] = a.choice(i, texts[i], all[i].String(), tokens[i], p.finish)
			running--
		}
	}
	object := "text_completion"
	if a.req.chat {
		object = "chat.completion"
	}
	writeJSON(w, http.StatusOK, a.object(object, choices, total(texts)))
}

func (a *answer) choice(i int, t *text, s string, tokens []sampling.Token, finish batching.Finish) map[string]any {
	c := map[string]any{"index": i, "finish_reason": finish, "logprobs": a.logprobs(t, tokens)}
	if a.req.chat {
		c["message"] = map[string]any{"role": "assistant", "content": s, "refusal": nil}
	} else {
		c["text"] = s
	}
	return c
}

// logprob is a token's as the chat endpoint writes it.
type logprob struct {
	Token   string    `json:"token"`
	Logprob float64   `json:"logprob"`
	Bytes   []int     `json:"bytes"` // null for a part of a character
	Top     []logprob `json:"top_logprobs,omitzero"`
}

func (t *text) logprob(id int32, p float64) logprob {
	alone := t.within
	l := logprob{Token: alone.Push(id) + alone.Flush(), Logprob: max(p, -9999)} // JSON has no infinity; OpenAI's word for it
	if !strings.ContainsRune(l.Token, utf8.RuneError) {
		l.Bytes = []int{}
		for _, b := range []byte(l.Token) {
			l.Bytes = append(l.Bytes, int(b))
		}
	}
	return l
}

// logprobs is null unless they were asked for.
func (a *answer) logprobs(t *text, tokens []sampling.Token) any {
	if !a.req.sampling.Logprobs {
		return nil
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
	if a.req.chat {
		return map[string]any{"content": content, "refusal": nil}
	}
	// The older endpoint's shape: lists side by side.
	var (
		pieces  = []string{}
		values  = []float64{}
		tops    = []map[string]float64{}
		offsets = []int{}
	)
	for _, l := range content {
		top := map[string]float64{}
		for _, other := range slices.Backward(l.Top) { // of those that look alike the likelier stays
			top[other.Token] = other.Logprob
		}
		pieces, values, tops, offsets = append(pieces, l.Token), append(values, l.Logprob), append(tops, top), append(offsets, t.offset)
		t.offset += utf8.RuneCountInString(l.Token)
	}
	return map[string]any{"tokens": pieces, "token_logprobs": values, "top_logprobs": tops, "text_offset": offsets}
}

// stream answers with one event a piece, those of several texts as they come. The
// first is not sent before something has been computed, so that an early failure
// still has a status of its own.
func (a *answer) stream(ctx context.Context, w http.ResponseWriter, texts []*text) {
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
			return
		case p.err != nil && !started:
			fail(w, p.err)
			return
		case p.err != nil:
			send(map[string]any{"error": p.err})
			return
		}
		for _, c := range a.chunks(p.of, texts[p.of], p.piece, !begun[p.of]) {
			if !send(c) {
				return
			}
		}
		begun[p.of] = true
		if p.finish != "" {
			running--
		}
	}
	if a.req.usage && !send(a.object(a.chunkObject(), []any{}, total(texts))) {
		return
	}
	if write([]byte("[DONE]")) {
		conn.SetWriteDeadline(time.Time{}) // the connection goes on
	}
}

func (a *answer) chunkObject() string {
	if a.req.chat {
		return "chat.completion.chunk"
	}
	return "text_completion"
}

// chunks of one piece: the role before the first, the finish reason in one of its own.
func (a *answer) chunks(i int, t *text, p piece, first bool) []any {
	var list []any
	add := func(delta map[string]any, s string, tokens []sampling.Token, finish any) {
		c := map[string]any{"index": i, "finish_reason": finish, "logprobs": nil}
		if len(tokens) > 0 {
			c["logprobs"] = a.logprobs(t, tokens)
		}
		if a.req.chat {
			c["delta"] = delta
		} else {
			c["text"] = s
		}
		m := a.object(a.chunkObject(), []any{c}, nil)
		if a.req.usage {
			m["usage"] = nil
		}
		list = append(list, m)
	}
	if a.req.chat && first {
		add(map[string]any{"role": "assistant", "content": ""}, "", nil, nil)
	}
	if p.text != "" || len(p.tokens) > 0 {
		add(map[string]any{"content": p.text}, p.text, p.tokens, nil)
	}
	if p.finish != "" {
		add(map[string]any{}, "", nil, p.finish)
	}
	return list
}
