package server

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"runtime/debug"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/estiba/estiba/runtime/batching"
	"github.com/estiba/estiba/runtime/engine"
	"github.com/estiba/estiba/runtime/sampling"
	"github.com/estiba/estiba/runtime/tokenizer"
	"github.com/estiba/estiba/runtime/toolcall"
)

// text is one answer as it comes: ids become text, which ends where a stop string
// begins, and what remains is content or calls of tools.
type text struct {
	events    <-chan engine.Event
	cancel    context.CancelFunc // ends the request
	tokenizer *tokenizer.Tokenizer
	decode    *tokenizer.Stream
	calls     *toolcall.Parser // nil: all of it is content
	single    bool             // at most one call
	stops     []string
	keepStop  bool // the stop string is part of the text
	minTokens int  // before that, none ends it
	logprobs  bool
	times     times

	asks    string   // parameter that the text's grammar comes from
	special bool     // tokens are part of the text
	echo    *echo    // a prompt that is to be in front; nil: none, any more
	front   string   // of the next piece
	held    string   // may be the start of a stop string
	pending []spoken // their text is not out yet
	called  bool     // a tool
	prompt  int      // tokens
	counts  bool     // among several texts of a prompt, the one of whose usage the prompt is
	output  int      // tokens
	decoded int      // bytes that they are
	sent    int      // bytes of those that are certainly in the text, or a call's
	cached  int      // of the prompt, taken over
	offset  int      // of the next token in the text, in characters
}

// spoken is a token with its place in the text, for logprobs.
type spoken struct {
	sampling.Token
	offset     int  // in characters
	given      bool // the first of a prompt, which has no logprob
	start, end int  // its bytes in what is generated, stop strings included; negative: of a prompt
	cut        int  // bytes of it at the end that are no part of the text
}

// echo is a prompt that is part of its text.
type echo struct {
	text string
	ids  []int32
}

// piece is the next part of a text; the last one has a finish reason or an error.
type piece struct {
	deltas []toolcall.Delta
	tokens []spoken // with logprobs
	output int      // tokens of the text so far
	finish string
	err    *apiError
	gone   bool // the client is not there any more
}

// finishCalls is the finish reason of an answer that calls tools; the others are batching's.
const finishCalls = "tool_calls"

func newText(events <-chan engine.Event, cancel context.CancelFunc, c call, prompt []int32, g *generation) *text {
	return &text{
		events: events, cancel: cancel, tokenizer: c.Tokenizer, decode: c.Tokenizer.Stream(g.special, prompt...), special: g.special,
		stops: g.stops, keepStop: g.keepStop, minTokens: g.minTokens, logprobs: g.sampling.Logprobs,
		prompt: len(prompt), times: times{of: c.Measures, arrived: c.arrived},
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
					if !p.last() { // else it has been counted
						t.times.end(t.prompt, t.output, "abort")
					}
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
		switch {
		case p.gone:
			t.times.end(t.prompt, t.output, "abort")
		case p.err != nil:
			t.times.end(t.prompt, t.output, "error")
		case p.finish == finishCalls:
			t.times.end(t.prompt, t.output, string(batching.FinishStop))
		case p.finish != "":
			t.times.end(t.prompt, t.output, p.finish)
		}
	}()
	return t.next()
}

func (p piece) last() bool { return p.gone || p.err != nil || p.finish != "" }

// next waits until there is more to say.
func (t *text) next() piece {
	for {
		ev, ok := <-t.events
		t.cached = max(t.cached, ev.Cached)
		switch {
		case !ok || ev.Finish == batching.FinishCancelled:
			return piece{gone: true}
		case ev.Finish == batching.FinishError:
			e := stepError(ev.Err)
			e.elsewhere = e.elsewhere && ev.Started.IsZero()
			if e.status == http.StatusBadRequest {
				e.Param = t.asks
			}
			return piece{err: e}
		}
		t.repeat(ev.PromptLogprobs)
		if ev.Finish != "" {
			out, stopped := t.cut(t.last())
			if !stopped {
				out, t.held = out+t.held, ""
			}
			return t.end(out, stopped, ev.Finish)
		}
		out, stopped := t.cut(t.token(ev))
		if stopped {
			return t.end(out, true, batching.FinishStop)
		}
		deltas, enough := t.split(out)
		switch {
		case enough:
			return t.say(deltas, finishCalls)
		case len(deltas) > 0:
			return t.say(deltas, "")
		}
	}
}

// token takes the next one and gives the text that is certain now.
func (t *text) token(ev engine.Event) string {
	t.output++
	t.times.token(ev.Started, ev.At)
	out := t.decode.Push(ev.Token.ID)
	if t.logprobs {
		t.pending = append(t.pending, spoken{Token: ev.Token, offset: t.offset, start: t.decoded, end: t.decoded + len(out)})
	}
	t.decoded += len(out)
	t.offset += utf8.RuneCountInString(out)
	return out
}

// last is the text of a character that was never completed.
func (t *text) last() string {
	const unknown = string(utf8.RuneError)
	out := t.decode.Flush()
	for strings.HasSuffix(out, unknown+unknown) { // of each of its bytes
		out = out[:len(out)-len(unknown)]
	}
	t.decoded += len(out)
	return out
}

// repeat puts an echoed prompt in front, once, with its logprobs where they are asked for.
func (t *text) repeat(logprobs []sampling.Token) {
	if t.echo == nil {
		return
	}
	decode := t.tokenizer.Stream(t.special)
	for i, id := range t.echo.ids {
		if t.logprobs {
			s := spoken{Token: sampling.Token{ID: id}, offset: t.offset, given: i == 0, start: -1}
			if i > 0 && i <= len(logprobs) {
				s.Token = logprobs[i-1]
			}
			t.pending = append(t.pending, s)
		}
		t.offset += utf8.RuneCountInString(decode.Push(id))
	}
	t.front, t.echo = t.echo.text, nil
	t.offset = utf8.RuneCountInString(t.front)
}

// end gives what is left of a text.
func (t *text) end(out string, stopped bool, why batching.Finish) piece {
	if stopped {
		t.forget(t.sent + len(out))
	}
	deltas, enough := t.split(out)
	if t.calls != nil && !enough {
		deltas, enough = t.take(deltas, t.rest(stopped || why != batching.FinishStop))
	}
	switch {
	case enough || t.called && (stopped || why == batching.FinishStop):
		return t.say(deltas, finishCalls)
	case stopped:
		why = batching.FinishStop
	}
	return t.say(deltas, string(why))
}

// forget leaves out the tokens that do not begin in the text, which ends after so many
// bytes, and what others have beyond its end.
func (t *text) forget(end int) {
	t.pending = slices.DeleteFunc(t.pending, func(s spoken) bool { return s.start >= end })
	for i := range t.pending {
		t.pending[i].cut = max(0, t.pending[i].end-end)
	}
}

// rest is what the parser of calls still holds.
func (t *text) rest(cut bool) []toolcall.Delta {
	if cut {
		return t.calls.Cut()
	}
	return t.calls.Flush()
}

// say is a piece with the tokens that belong to it.
func (t *text) say(deltas []toolcall.Delta, finish string) piece {
	if t.front != "" {
		if len(deltas) == 0 {
			deltas = []toolcall.Delta{{}}
		}
		deltas[0].Content, t.front = t.front+deltas[0].Content, ""
	}
	n := len(t.pending)
	if finish == "" { // the others may yet be part of a stop string
		n = slices.IndexFunc(t.pending, func(s spoken) bool { return s.end > t.sent })
		if n < 0 {
			n = len(t.pending)
		}
	}
	p := piece{deltas: deltas, tokens: t.pending[:n:n], output: t.output, finish: finish}
	t.pending = t.pending[n:]
	return p
}

// split tells content from calls; enough says that no more calls are wanted.
func (t *text) split(out string) (deltas []toolcall.Delta, enough bool) {
	t.sent += len(out)
	switch {
	case out == "":
		return nil, false
	case t.calls == nil:
		return []toolcall.Delta{{Content: out}}, false
	}
	return t.take(nil, t.calls.Push(out))
}

// take adds what a parser gave, which is valid only until its next.
func (t *text) take(deltas, more []toolcall.Delta) ([]toolcall.Delta, bool) {
	for _, d := range more {
		if d.Call() {
			if t.single && d.Index > 0 {
				return deltas, true
			}
			t.called = true
		}
		deltas = append(deltas, d)
	}
	return deltas, false
}

// cut adds text and takes what certainly belongs to the answer: up to a stop
// string, or to what may yet become one.
func (t *text) cut(more string) (out string, stopped bool) {
	if t.output < t.minTokens {
		return more, false
	}
	t.held += more
	first, length := len(t.held), 0
	for _, stop := range t.stops {
		if i := strings.Index(t.held, stop); i >= 0 && (i < first || i == first && len(stop) > length) {
			first, length, stopped = i, len(stop), true
		}
	}
	if stopped {
		if t.keepStop {
			first += length
		}
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
