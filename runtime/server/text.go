package server

import (
	"context"
	"errors"
	"log/slog"
	"runtime/debug"
	"strings"

	"github.com/estiba/estiba/runtime/batching"
	"github.com/estiba/estiba/runtime/engine"
	"github.com/estiba/estiba/runtime/sampling"
	"github.com/estiba/estiba/runtime/tokenizer"
)

// text is one answer as it comes: ids become text, which ends where a stop string
// begins, and what remains is content or calls of tools.
type text struct {
	events    <-chan engine.Event
	cancel    context.CancelFunc // ends the request
	tokenizer *tokenizer.Tokenizer
	decode    *tokenizer.Stream
	within    tokenizer.Stream // in the middle of a text; copied to see what one token is there
	stops     []string
	keepStop  bool // the stop string is part of the text
	minTokens int  // before that, none ends it
	logprobs  bool
	times     times

	echo    string           // in front of it
	held    string           // may be the start of a stop string
	pending []sampling.Token // their text is not out yet
	called  bool             // a tool
	prompt  int              // tokens
	counts  bool             // among several texts of a prompt, the one of whose usage the prompt is
	output  int              // tokens
	cached  int              // of the prompt, taken over
	offset  int              // of the next token in the text, in characters, for logprobs
}

// piece is the next part of a text; the last one has a finish reason or an error.
type piece struct {
	deltas []delta
	tokens []sampling.Token // with logprobs
	output int              // tokens of the text so far
	finish string
	err    *apiError
	gone   bool // the client is not there any more
}

// finishCalls is the finish reason of an answer that calls tools; the others are batching's.
const finishCalls = "tool_calls"

func newText(events <-chan engine.Event, cancel context.CancelFunc, c call, prompt []int32, g *generation) *text {
	return &text{
		events: events, cancel: cancel, tokenizer: c.Tokenizer, decode: c.Tokenizer.Stream(prompt...),
		within: *c.Tokenizer.Stream(c.Tokenizer.Encode("a", false)...),
		stops:  g.stops, keepStop: g.keepStop, minTokens: g.minTokens, logprobs: g.sampling.Logprobs,
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
	if t.echo != "" {
		front := t.echo
		t.echo = ""
		return piece{deltas: []delta{{Content: front}}}
	}
	for {
		ev, ok := <-t.events
		t.cached = max(t.cached, ev.Cached)
		switch {
		case !ok || ev.Finish == batching.FinishCancelled:
			return piece{gone: true}
		case ev.Finish == batching.FinishError:
			return piece{err: stepError(ev.Err)}
		case ev.Finish != "":
			out, stopped := t.cut(t.decode.Flush())
			if !stopped {
				out, t.held = out+t.held, ""
			}
			return t.end(out, stopped, ev.Finish)
		}
		t.token(ev)
		out, stopped := t.cut(t.decode.Push(ev.Token.ID))
		if stopped {
			return t.end(out, true, batching.FinishStop)
		}
		deltas, enough := t.split(out)
		if enough {
			return t.finish(deltas, finishCalls)
		}
		if len(deltas) > 0 {
			return piece{deltas: deltas, tokens: t.give(), output: t.output}
		}
	}
}

func (t *text) token(ev engine.Event) {
	t.output++
	t.times.token(ev.Started, ev.At)
	if t.logprobs {
		t.pending = append(t.pending, ev.Token)
	}
}

// end gives what is left of a text.
func (t *text) end(out string, stopped bool, why batching.Finish) piece {
	deltas, enough := t.split(out)
	switch {
	case enough || t.called && (stopped || why == batching.FinishStop):
		return t.finish(deltas, finishCalls)
	case stopped:
		why = batching.FinishStop
	}
	return t.finish(deltas, string(why))
}

func (t *text) finish(deltas []delta, why string) piece {
	return piece{deltas: deltas, tokens: t.give(), output: t.output, finish: why}
}

// split tells content from calls; enough says that no more calls are wanted.
func (t *text) split(out string) (deltas []delta, enough bool) {
	if out == "" {
		return nil, false
	}
	return []delta{{Content: out}}, false
}

func (t *text) give() []sampling.Token {
	tokens := t.pending
	t.pending = nil
	return tokens
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

// spelled is a token as logprobs show it, and its bytes. One that is no text by
// itself, such as a part of a character, is written as its bytes.
func (t *text) spelled(id int32) (string, []byte) {
	alone := t.within
	text := alone.Push(id) + alone.Flush()
	return text, []byte(text)
}

// delta is what an answer grows by: content, reasoning, or a part of a call.
type delta struct {
	Content, Reasoning  string
	Index               int // of the call
	ID, Name, Arguments string
}

func (d delta) Call() bool { return d.Content == "" && d.Reasoning == "" }
