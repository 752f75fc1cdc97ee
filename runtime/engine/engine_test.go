package engine

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"runtime"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/estiba/estiba/runtime/backend"
	"github.com/estiba/estiba/runtime/batching"
	"github.com/estiba/estiba/runtime/grammar"
	"github.com/estiba/estiba/runtime/sampling"
)

const vocabulary = 40

// program is a toy: its cache holds tokens, and the logits after a text are a
// function of all that it reads through the block table.
type program struct {
	blockTokens int
	cells       [][]int32
	step        time.Duration
	steps       atomic.Int64
	encoder     bool
	// broken, if set, may fail a batch or panic.
	broken func(batching.Batch) error
}

func newProgram(r Replica) *program {
	p := &program{blockTokens: r.BlockTokens, cells: make([][]int32, r.Blocks), step: time.Millisecond}
	for i := range p.cells {
		p.cells[i] = make([]int32, r.BlockTokens)
	}
	return p
}

func (p *program) Run(ctx context.Context, b batching.Batch, out *backend.Out) error {
	p.steps.Add(1)
	select {
	case <-time.After(p.step):
	case <-ctx.Done():
		return ctx.Err()
	}
	if p.broken != nil {
		if err := p.broken(b); err != nil {
			return err
		}
	}
	out.Logits, out.Hidden = out.Logits[:0], out.Hidden[:0]
	for _, s := range b.Spans {
		for i, t := range s.Tokens {
			if at := s.Start + i; !p.encoder {
				p.cells[s.Blocks[at/p.blockTokens]][at%p.blockTokens] = t
			}
		}
		for i, t := range s.Tokens {
			if s.Rows == batching.AllRows || s.Rows == batching.LastRow && i == len(s.Tokens)-1 {
				if !p.encoder {
					out.Logits = append(out.Logits, p.logits(s, s.Start+i+1)...)
				}
				if out.WantHidden {
					out.Hidden = append(out.Hidden, state(t, s.Start+i)...)
				}
			}
		}
	}
	return nil
}

const hidden = 3

// state is the hidden state of a token at a position; token 39 has none.
func state(token int32, at int) []float32 {
	if token == 39 {
		return []float32{float32(math.NaN()), 0, 0}
	}
	return []float32{float32(token) - 20, float32(at), 1 - float32(at%3)}
}

func (p *program) logits(s batching.Span, n int) []float32 {
	text := make([]int32, n)
	for at := range text {
		text[at] = p.cells[s.Blocks[at/p.blockTokens]][at%p.blockTokens]
	}
	return toy(text)
}

func (p *program) Bytes() backend.Bytes { return backend.Bytes{} }
func (p *program) Close() error         { return nil }

// toy is the logits after a text.
func toy(text []int32) []float32 {
	h := uint32(2166136261)
	for _, t := range text {
		h = (h ^ uint32(t)) * 16777619
	}
	row := make([]float32, vocabulary)
	for i := range row {
		h = h*1664525 + 1013904223
		row[i] = float32(h>>20) / 1024
	}
	return row
}

// alone is the greedy continuation.
func alone(prompt []int32, n int, stop ...int32) (ids []int32) {
	text := slices.Clone(prompt)
	for range n {
		token, _ := sampling.New(sampling.Params{}, nil).Sample(toy(text), &sampling.Scratch{})
		if slices.Contains(stop, token.ID) {
			break
		}
		ids, text = append(ids, token.ID), append(text, token.ID)
	}
	return ids
}

func small(name string) (Replica, *program) {
	r := Replica{Name: name, Blocks: 32, BlockTokens: 4, MaxTokens: 128, Vocabulary: vocabulary, StepTokens: 16, Sequences: 8, Waiting: 8}
	p := newProgram(r)
	r.Program = p
	return r, p
}

// start runs an engine until the test's end, inside a bubble.
func start(t *testing.T, replicas ...Replica) *Engine {
	e := New(Options{Log: slog.New(slog.DiscardHandler)})
	run(t, e, replicas...)
	return e
}

func run(t *testing.T, e *Engine, replicas ...Replica) {
	for _, r := range replicas {
		if err := e.Add(r); err != nil {
			t.Fatal(err)
		}
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- e.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
}

func read(events <-chan Event) (ids []int32, last Event) {
	for ev := range events {
		if ev.Finish == "" {
			ids = append(ids, ev.Token.ID)
		}
		last = ev
	}
	return ids, last
}

func submit(t *testing.T, e *Engine, ctx context.Context, r Request) <-chan Event {
	t.Helper()
	events, err := e.Submit(ctx, r)
	if err != nil {
		t.Fatal(err)
	}
	return events
}

func prompt(n int, seed int32) []int32 {
	ids := make([]int32, n)
	for i := range ids {
		ids[i] = (seed*7 + int32(i)*3) % vocabulary
	}
	return ids
}

// TestBusy: a step counts as it runs, once.
func TestBusy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, p := small("a")
		b, _ := small("b")
		p.step = time.Minute
		e := start(t, a, b)
		busy := func(replica string, want time.Duration) {
			t.Helper()
			if s, _ := e.Stats(replica); s.Busy != want {
				t.Errorf("%s was busy for %v, want %v", replica, s.Busy, want)
			}
		}
		events := submit(t, e, t.Context(), Request{Replica: "a", Prompt: prompt(8, 1), MaxTokens: 2})
		synctest.Wait()
		busy("a", 0)
		time.Sleep(20 * time.Second)
		busy("a", 20*time.Second)
		busy("b", 0)
		time.Sleep(70 * time.Second)
		busy("a", 90*time.Second)
		for range events {
		}
		time.Sleep(time.Minute)
		busy("a", 2*time.Minute)
	})
}

// TestTogether: sixteen requests for two replicas, more than the blocks have room
// for at once, give what each gives alone.
func TestTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, _ := small("a")
		b, _ := small("b")
		a.Stop = []int32{3}
		e := start(t, a, b)
		var streams []<-chan Event
		var want [][]int32
		for i := range 16 {
			r := Request{Replica: "a", Prompt: prompt(5+i, int32(i)), MaxTokens: 30}
			ids := alone(r.Prompt, 30, 3)
			if i%2 == 1 {
				r.Replica = "b"
				ids = alone(r.Prompt, 30)
			}
			streams = append(streams, submit(t, e, t.Context(), r))
			want = append(want, ids)
		}
		for i, s := range streams {
			ids, last := read(s)
			why := batching.FinishLength
			if len(want[i]) < 30 {
				why = batching.FinishStop
			}
			if !slices.Equal(ids, want[i]) || last.Finish != why || last.Output != len(ids) || last.Prompt != 5+i {
				t.Errorf("request %d: %v %+v, want %v", i, ids, last, want[i])
			}
		}
		for _, name := range []string{"a", "b"} {
			if s, _ := e.Stats(name); s.Completed != 8 || s.KVUsed != 0 || s.Running+s.Waiting != 0 {
				t.Errorf("%s: %+v", name, s)
			}
		}
	})
}

// TestSampledTogether: a seed gives one text whatever shares the batch.
func TestSampledTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, _ := small("a")
		e := start(t, a)
		r := Request{Replica: "a", Prompt: prompt(9, 1), MaxTokens: 20, Sampling: sampling.Params{Temperature: 1, TopP: 0.9, Seed: 42}}
		want, _ := read(submit(t, e, t.Context(), r))
		var streams []<-chan Event
		for i := range 6 {
			other := r
			other.Prompt, other.Sampling.Seed = prompt(3+i, int32(i)), uint64(i)
			streams = append(streams, submit(t, e, t.Context(), other))
		}
		got, last := read(submit(t, e, t.Context(), r))
		if !slices.Equal(got, want) || last.Cached != 8 {
			t.Errorf("with company %v (%d cached), alone %v", got, last.Cached, want)
		}
		for _, s := range streams {
			read(s)
		}
	})
}

func TestCancel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, p := small("a")
		e := start(t, a)
		ctx, cancel := context.WithCancelCause(t.Context())
		events := submit(t, e, ctx, Request{Replica: "a", Prompt: prompt(20, 1)})
		<-events
		if s, _ := e.Stats("a"); s.Running != 1 || s.KVUsed == 0 {
			t.Fatalf("%+v", s)
		}
		gone := errors.New("the client has gone")
		cancel(gone)
		synctest.Wait()
		if s, _ := e.Stats("a"); s.Running != 0 || s.KVUsed != 0 {
			t.Errorf("after cancel: %+v", s)
		}
		if _, last := read(events); last.Finish != batching.FinishCancelled || !errors.Is(last.Err, gone) {
			t.Errorf("last event %+v", last)
		}
		time.Sleep(10 * time.Millisecond)
		steps := p.steps.Load()
		time.Sleep(time.Hour)
		if p.steps.Load() != steps {
			t.Error("steps are taken with nothing to run")
		}
		if _, err := e.Submit(ctx, Request{Replica: "a", Prompt: prompt(2, 1)}); !errors.Is(err, gone) {
			t.Errorf("submit with an ended context: %v", err)
		}
	})
}

// TestFailures: an error or a panic of a program ends the requests of its batch
// and of no other.
func TestFailures(t *testing.T) {
	failed := errors.New("out of order")
	for name, c := range map[string]struct {
		broken func(batching.Batch) error
		says   string
	}{
		"error": {func(batching.Batch) error { return failed }, "run a step of 6 tokens of a: out of order"},
		"panic": {func(batching.Batch) error { panic("oops") }, "run a step of 6 tokens of a: the computation broke; the log says where"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a, p := small("a")
				a.Sequences = 1
				b, _ := small("b")
				e := start(t, a, b)
				p.broken = func(b batching.Batch) error {
					if b.Spans[0].Start == 0 && b.Spans[0].Tokens[0] == 13 {
						return c.broken(b)
					}
					return nil
				}
				bad := submit(t, e, t.Context(), Request{Replica: "a", Prompt: []int32{13, 1, 2, 3, 4, 5}, MaxTokens: 5})
				good := submit(t, e, t.Context(), Request{Replica: "a", Prompt: prompt(6, 1), MaxTokens: 5})
				other := submit(t, e, t.Context(), Request{Replica: "b", Prompt: prompt(6, 1), MaxTokens: 5})
				if ids, last := read(bad); len(ids) != 0 || last.Finish != batching.FinishError || last.Err.Error() != c.says {
					t.Errorf("%v %+v", ids, last)
				}
				for _, s := range []<-chan Event{good, other} {
					if ids, last := read(s); !slices.Equal(ids, alone(prompt(6, 1), 5)) || last.Err != nil {
						t.Errorf("neighbour: %v %+v", ids, last)
					}
				}
				if s, _ := e.Stats("a"); s.KVUsed != 0 {
					t.Errorf("%+v", s)
				}
			})
		})
	}
}

// nan is a program whose logits are not numbers for texts that start with token 13.
type nan struct{ *program }

func (n nan) Run(ctx context.Context, b batching.Batch, out *backend.Out) error {
	err := n.program.Run(ctx, b, out)
	row := 0
	for _, s := range b.Spans {
		if s.Rows == batching.LastRow {
			if s.Start == 0 && s.Tokens[0] == 13 {
				for i := range vocabulary {
					out.Logits[row*vocabulary+i] = float32(math.NaN())
				}
			}
			row++
		}
	}
	return err
}

func TestNotANumber(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, p := small("a")
		a.Program = nan{p}
		e := start(t, a)
		bad := submit(t, e, t.Context(), Request{Replica: "a", Prompt: []int32{13, 1}, MaxTokens: 5})
		good := submit(t, e, t.Context(), Request{Replica: "a", Prompt: prompt(6, 1), MaxTokens: 5})
		if _, last := read(bad); !errors.Is(last.Err, sampling.ErrNotANumber) || last.Finish != batching.FinishError {
			t.Errorf("%+v", last)
		}
		if ids, _ := read(good); !slices.Equal(ids, alone(prompt(6, 1), 5)) {
			t.Errorf("neighbour in the same batch: %v", ids)
		}
	})
}

// TestBroken: a model that cannot go on takes no more requests and says so once;
// what is a request's own fault, or nobody's, does not count.
func TestBroken(t *testing.T) {
	out := errors.New("out of order")
	number := func(b batching.Batch) int32 { return b.Spans[0].Tokens[0] } // of a text of one token
	for name, c := range map[string]struct {
		prompts []int32 // 1: fails; 2: the weights cannot be read; 3: panics; 13: no numbers; 4: answers
		broken  bool
		cause   error
	}{
		"once":                  {[]int32{1}, false, nil},
		"with success between":  {[]int32{1, 3, 4, 1, 1, 4, 13, 13, 4, 1}, false, nil},
		"three times":           {[]int32{4, 1, 1, 1}, true, out},
		"three times, each way": {[]int32{13, 3, 1}, true, out},
		"no numbers":            {[]int32{13, 13, 13}, true, sampling.ErrNotANumber},
		"weights":               {[]int32{4, 2}, true, backend.ErrFault},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a, p := small("a")
				a.Program, a.Sequences = nan{p}, 1
				b, _ := small("b")
				var told []string
				e := New(Options{Log: slog.New(slog.DiscardHandler), Failed: func(name string, err error) {
					if !errors.Is(err, ErrBroken) || !errors.Is(err, c.cause) {
						t.Errorf("told of %v", err)
					}
					told = append(told, name)
				}})
				run(t, e, a, b)
				p.broken = func(b batching.Batch) error {
					switch number(b) {
					case 1:
						return out
					case 2:
						return backend.ErrFault
					case 3:
						panic("oops")
					}
					return nil
				}
				var last Event
				for i, token := range c.prompts {
					r := Request{Replica: "a", Prompt: []int32{token}, MaxTokens: 1}
					s := submit(t, e, t.Context(), r)
					if c.broken && i == len(c.prompts)-1 { // beside the last, one that waits
						r.Prompt = []int32{4}
						if _, waits := read(submit(t, e, t.Context(), r)); !errors.Is(waits.Err, ErrBroken) || waits.Finish != batching.FinishError {
							t.Errorf("the one that waited: %+v", waits)
						}
					}
					_, last = read(s)
				}
				synctest.Wait()
				_, err := e.Submit(t.Context(), Request{Replica: "a", Prompt: []int32{4}, MaxTokens: 1})
				if !c.broken {
					if err != nil || len(told) != 0 || errors.Is(last.Err, ErrBroken) {
						t.Errorf("not broken: %v, %v, %v", err, told, last.Err)
					}
					return
				}
				if !errors.Is(err, ErrBroken) || !errors.Is(last.Err, ErrBroken) || !slices.Equal(told, []string{"a"}) {
					t.Errorf("broken: %v, %v, %v", err, told, last.Err)
				}
				if ids, last := read(submit(t, e, t.Context(), Request{Replica: "b", Prompt: prompt(6, 1), MaxTokens: 5})); !slices.Equal(ids, alone(prompt(6, 1), 5)) {
					t.Errorf("neighbour: %v %+v", ids, last)
				}
				// Loaded anew it serves.
				if err := errors.Join(e.Remove(t.Context(), "a"), e.Add(a)); err != nil {
					t.Fatal(err)
				}
				if ids, last := read(submit(t, e, t.Context(), Request{Replica: "a", Prompt: []int32{4}, MaxTokens: 3})); len(ids) != 3 {
					t.Errorf("again: %v %+v", ids, last)
				}
			})
		})
	}
}

// TestBreak: a device that is lost ends its requests at once, those of a step that never ends and those that wait, and takes no more.
func TestBreak(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, p := small("a")
		p.step, a.Sequences = time.Hour, 1
		b, _ := small("b")
		e := start(t, a, b)
		lost := &backend.DeviceError{Device: "gpu-0", Lost: true, Err: errors.New("XID79")}
		r := Request{Replica: "a", Prompt: prompt(3, 1), MaxTokens: 1}
		runs, waits := submit(t, e, t.Context(), r), submit(t, e, t.Context(), r)
		time.Sleep(time.Minute)
		began := time.Now()
		e.Break(lost)
		e.Break(errors.New("twice"))
		for _, events := range []<-chan Event{runs, waits} {
			if _, last := read(events); last.Finish != batching.FinishError || !errors.Is(last.Err, ErrBroken) || !errors.Is(last.Err, lost) {
				t.Errorf("%+v", last)
			}
		}
		for _, name := range []string{"a", "b"} {
			if _, err := e.Submit(t.Context(), Request{Replica: name, Prompt: prompt(3, 1), MaxTokens: 1}); !errors.Is(err, lost) {
				t.Errorf("%s: %v", name, err)
			}
		}
		if err := e.Remove(t.Context(), "b"); err != nil {
			t.Error(err)
		}
		if took := time.Since(began); took != 0 {
			t.Errorf("it took %v", took)
		}
	})
}

// TestRequestsBreakNoModel: parameters that leave no token to choose, and requests that are given up.
func TestRequestsBreakNoModel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, _ := small("a")
		e := start(t, a)
		none := map[int32]float64{}
		for id := range int32(vocabulary) {
			none[id] = math.Inf(-1)
		}
		for range 2 * failures {
			bad := Request{Replica: "a", Prompt: prompt(3, 1), MaxTokens: 5}
			bad.Sampling.Bias = none
			if _, last := read(submit(t, e, t.Context(), bad)); !errors.Is(last.Err, sampling.ErrNotANumber) {
				t.Fatalf("%+v", last)
			}
			ctx, cancel := context.WithCancel(t.Context())
			submit(t, e, ctx, Request{Replica: "a", Prompt: prompt(3, 1), MaxTokens: 5})
			cancel()
			synctest.Wait()
		}
		if ids, last := read(submit(t, e, t.Context(), Request{Replica: "a", Prompt: prompt(6, 1), MaxTokens: 5})); !slices.Equal(ids, alone(prompt(6, 1), 5)) {
			t.Errorf("%v %+v", ids, last)
		}
	})
}

func TestTooFewLogits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, _ := small("a")
		a.Vocabulary++
		e := start(t, a)
		if _, last := read(submit(t, e, t.Context(), Request{Replica: "a", Prompt: prompt(3, 1)})); last.Finish != batching.FinishError {
			t.Errorf("%+v", last)
		}
	})
}

func TestSlowReader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, p := small("a")
		e := start(t, a)
		slow := submit(t, e, t.Context(), Request{Replica: "a", Prompt: prompt(3, 1), MaxTokens: 120})
		time.Sleep(time.Second) // it reads nothing; the text is finished all the same
		if s, _ := e.Stats("a"); s.Completed != 1 {
			t.Errorf("after %d steps: %+v", p.steps.Load(), s)
		}
		if ids, last := read(slow); !slices.Equal(ids, alone(prompt(3, 1), 120)) || last.Finish != batching.FinishLength {
			t.Errorf("%d of 120 tokens, %+v", len(ids), last)
		}
		// One that has gone leaves nothing behind: the bubble would not end.
		ctx, cancel := context.WithCancel(t.Context())
		submit(t, e, ctx, Request{Replica: "a", Prompt: prompt(3, 1), MaxTokens: 120})
		time.Sleep(time.Second)
		cancel()
	})
}

func TestPromptLogits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, _ := small("a")
		a.StepRows = 8
		e := start(t, a)
		text := prompt(21, 4)
		var want []float32
		for n := range text {
			want = append(want, toy(text[:n+1])...)
		}
		for _, n := range []int{0, 3} {
			ids, last := read(submit(t, e, t.Context(), Request{Replica: "a", Prompt: text, MaxTokens: n, PromptLogits: true}))
			if !slices.Equal(last.PromptLogits, want) || !slices.Equal(ids, alone(text, n)) {
				t.Errorf("%d logits, ids %v", len(last.PromptLogits), ids)
			}
		}
	})
}

// TestEmbeddings: a prompt's hidden states are pooled, over however many steps, beside texts
// and by encoders.
func TestEmbeddings(t *testing.T) {
	pooled := func(prompt []int32, how Pooling) []float32 {
		sum := make([]float64, hidden)
		for at, token := range prompt {
			if how == Mean || how == CLS && at == 0 || how == Last && at == len(prompt)-1 {
				for i, x := range state(token, at) {
					sum[i] += float64(x)
				}
			}
		}
		length := math.Sqrt(sum[0]*sum[0] + sum[1]*sum[1] + sum[2]*sum[2])
		var v []float32
		for _, x := range sum {
			v = append(v, float32(x/length))
		}
		return v
	}
	synctest.Test(t, func(t *testing.T) {
		a, _ := small("a")
		a.Hidden, a.StepRows = hidden, 8
		b, pb := small("b")
		b.Hidden, b.Encoder, b.Blocks, b.BlockTokens, b.MaxTokens, b.StepTokens, pb.encoder = hidden, true, 0, 0, 60, 64, true
		c, _ := small("c")
		e := start(t, a, b, c)
		var streams, texts []<-chan Event
		var want [][]float32
		for i := range 6 {
			for _, how := range []Pooling{Mean, CLS, Last} {
				r := Request{Replica: []string{"a", "b"}[i%2], Prompt: prompt(1+9*i, int32(i)), Pooling: how, MaxTokens: 7}
				for at := range r.Prompt {
					r.Prompt[at] %= 39
				}
				events, err := e.Submit(t.Context(), r)
				for errors.Is(err, ErrQueueFull) {
					time.Sleep(time.Millisecond)
					events, err = e.Submit(t.Context(), r)
				}
				if err != nil {
					t.Fatal(err)
				}
				streams = append(streams, events)
				want = append(want, pooled(r.Prompt, how))
			}
			texts = append(texts, submit(t, e, t.Context(), Request{Replica: "a", Prompt: prompt(5, int32(i)), MaxTokens: 20}))
		}
		for i, s := range streams {
			if ids, last := read(s); len(ids) > 0 || !slices.Equal(last.Embedding, want[i]) || last.Finish != batching.FinishLength || last.Output != 0 {
				t.Errorf("%d: %v %+v, want %v", i, ids, last, want[i])
			}
		}
		for i, s := range texts {
			if ids, last := read(s); !slices.Equal(ids, alone(prompt(5, int32(i)), 20)) || last.Embedding != nil {
				t.Errorf("text %d: %v %+v", i, ids, last)
			}
		}
		for name, c := range map[string]struct {
			r    Request
			want error
		}{
			"text of an encoder":        {Request{Replica: "b", Prompt: prompt(3, 1), MaxTokens: 3}, ErrNoText},
			"longer than its context":   {Request{Replica: "b", Prompt: prompt(61, 1), Pooling: Mean}, &TooLongError{Prompt: 61, MaxTokens: 60, PromptOnly: true}},
			"a model without embedding": {Request{Replica: "c", Prompt: prompt(3, 1), Pooling: Mean}, ErrNoEmbedding},
		} {
			if _, err := e.Submit(t.Context(), c.r); !errors.Is(err, c.want) && fmt.Sprint(err) != c.want.Error() {
				t.Errorf("%s: %v", name, err)
			}
		}
		for range failures {
			if _, last := read(submit(t, e, t.Context(), Request{Replica: "b", Prompt: []int32{39}, Pooling: Mean})); !errors.Is(last.Err, sampling.ErrNotANumber) {
				t.Errorf("no number: %+v", last)
			}
		}
		if _, err := e.Submit(t.Context(), Request{Replica: "b", Prompt: prompt(3, 1), Pooling: Mean}); !errors.Is(err, ErrBroken) {
			t.Errorf("broken: %v", err)
		}
	})
}

// TestConstraint: a text ends with the token after which its grammar allows only an end, or
// with an end token, where that is allowed; it needs no step more.
func TestConstraint(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, p := small("a")
		a.Stop = []int32{3}
		e := start(t, a)
		v := grammar.NewVocabulary(vocabulary, func(id int32) ([]byte, bool) { return []byte{byte('a' + id%26)}, id != 3 }, a.Stop)
		for pattern, c := range map[string]struct {
			tokens, steps int
			finish        batching.Finish
		}{
			"[a-z]{5}":   {5, 5, batching.FinishStop},
			"[a-z]{50}":  {9, 9, batching.FinishLength},
			"(xyz)?":     {0, 1, batching.FinishStop}, // checked below: either
			"qwertyuiop": {9, 9, batching.FinishLength},
		} {
			g, err := grammar.Regex(pattern)
			if err != nil {
				t.Fatal(err)
			}
			before := p.steps.Load()
			r := Request{Replica: "a", Prompt: prompt(5, 2), MaxTokens: 9, IgnoreStop: true}
			r.Sampling.Constraint = grammar.NewMatcher(g, v)
			ids, last := read(submit(t, e, t.Context(), r))
			text := ""
			for _, id := range ids {
				text += string(rune('a' + id%26))
			}
			if pattern == "(xyz)?" {
				if text == "xyz" {
					c.tokens, c.steps = 3, 3
				} else if text != "" {
					t.Errorf("%s gave %q", pattern, text)
				}
			}
			if steps := p.steps.Load() - before; len(ids) != c.tokens || last.Finish != c.finish || steps != int64(c.steps) {
				t.Errorf("%s: %q in %d steps, %+v", pattern, text, steps, last)
			}
		}
	})
}

// TestLending: replicas that share a slab have each their floor, whatever the others do;
// a smaller slab is there within a step.
func TestLending(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const extents = 12
		memory := make([][]int32, extents*2)
		for i := range memory {
			memory[i] = make([]int32, 4)
		}
		var discarded []int32
		e := New(Options{Log: slog.New(slog.DiscardHandler), Extents: extents, Discard: func(list []int32) {
			discarded = append(discarded, list...)
			for _, extent := range list {
				for _, b := range memory[2*extent : 2*extent+2] {
					clear(b)
				}
			}
		}})
		var all []Replica
		for _, name := range []string{"a", "b"} {
			r := Replica{Name: name, PerExtent: 2, Floor: 4, BlockTokens: 4, MaxTokens: 32, Vocabulary: vocabulary, StepTokens: 16, Sequences: 8, Waiting: 8}
			p := newProgram(r)
			p.cells = memory
			r.Program = p
			all = append(all, r)
		}
		run(t, e, all...)
		if err := e.Add(Replica{Name: "c", Program: all[0].Program, PerExtent: 2, Floor: 5, BlockTokens: 4, MaxTokens: 8, Vocabulary: vocabulary}); err == nil {
			t.Error("more is guaranteed than there is")
		}
		texts := func(name string, n int) (streams []<-chan Event) {
			for i := range n {
				streams = append(streams, submit(t, e, t.Context(), Request{Replica: name, Prompt: prompt(6, int32(i)), MaxTokens: 24}))
			}
			return streams
		}
		ended := func(streams []<-chan Event) {
			t.Helper()
			for i, s := range streams {
				if ids, last := read(s); !slices.Equal(ids, alone(prompt(6, int32(i)), 24)) {
					t.Errorf("text %d: %v %+v", i, ids, last)
				}
			}
		}
		a := texts("a", 8)
		time.Sleep(20 * time.Millisecond)
		if s, _ := e.Stats("a"); s.KVBlocks <= 2*4 {
			t.Errorf("nothing is borrowed: %+v", s)
		}
		b := texts("b", 8)
		time.Sleep(10 * time.Millisecond)
		if err := e.Resize(7); err == nil {
			t.Error("resized below the floors")
		}
		if err := e.Resize(8); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		if err := e.Reclaimed(t.Context()); err != nil || time.Since(began) > time.Millisecond || len(discarded) != extents-8 {
			t.Errorf("%v after %v, discarded %v", err, time.Since(began), discarded)
		}
		for _, name := range []string{"a", "b"} {
			if s, _ := e.Stats(name); s.KVBlocks > 2*4 || s.Running == 0 {
				t.Errorf("%s: %+v", name, s)
			}
		}
		ended(a)
		ended(b)
		// Idle, it is done too.
		if err := errors.Join(e.Remove(t.Context(), "b"), e.Resize(4), e.Reclaimed(t.Context())); err != nil {
			t.Fatal(err)
		}
		if s, _ := e.Stats("a"); s.KVUsed != 0 || s.KVBlocks > 2*4 {
			t.Errorf("%+v", s)
		}
	})
}

// TestSamePromptTogether: several answers to one prompt, asked for at once, share its
// blocks, and it is computed once.
func TestSamePromptTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, p := small("a")
		computed := 0
		p.broken = func(b batching.Batch) error {
			for _, s := range b.Spans {
				if s.Start < 24 {
					computed += len(s.Tokens)
				}
			}
			return nil
		}
		e := start(t, a)
		var streams []<-chan Event
		for i := range 8 {
			r := Request{Replica: "a", Prompt: prompt(25, 1), MaxTokens: 6}
			r.Sampling.Temperature, r.Sampling.Seed = float64(i%2), uint64(i)
			streams = append(streams, submit(t, e, t.Context(), r))
		}
		for i, s := range streams {
			ids, last := read(s)
			if i%2 == 0 && !slices.Equal(ids, alone(prompt(25, 1), 6)) || len(ids) != 6 || (last.Cached == 24) != (i > 0) {
				t.Errorf("%d: %v %+v", i, ids, last)
			}
		}
		if s, _ := e.Stats("a"); computed != 25 && computed != 24 || s.Prefix.Hits != 7*24 {
			t.Errorf("%d tokens of the prompt were computed; %+v", computed, s)
		}
	})
}

func TestRefusals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, _ := small("a")
		a.Sequences, a.Waiting = 1, 1
		e := start(t, a)
		var long *TooLongError
		for name, c := range map[string]struct {
			r    Request
			want any
		}{
			"unknown":    {Request{Replica: "b", Prompt: prompt(1, 1)}, &ErrNoReplica},
			"empty":      {Request{Replica: "a"}, &ErrEmptyPrompt},
			"vocabulary": {Request{Replica: "a", Prompt: []int32{vocabulary}}, &ErrVocabulary},
			"negative":   {Request{Replica: "a", Prompt: []int32{-1}}, &ErrVocabulary},
			"too long":   {Request{Replica: "a", Prompt: prompt(128, 1)}, &long},
		} {
			_, err := e.Submit(t.Context(), c.r)
			if sentinel, ok := c.want.(*error); ok && !errors.Is(err, *sentinel) || !ok && !errors.As(err, c.want) {
				t.Errorf("%s: %v", name, err)
			}
		}
		if long.Prompt != 128 || long.MaxTokens != 128 {
			t.Errorf("%+v", long)
		}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		for range 2 {
			submit(t, e, ctx, Request{Replica: "a", Prompt: prompt(3, 1)})
		}
		if _, err := e.Submit(ctx, Request{Replica: "a", Prompt: prompt(3, 1)}); !errors.Is(err, ErrQueueFull) {
			t.Errorf("third: %v", err)
		}
		if err := e.Add(a); err == nil {
			t.Error("added twice")
		}
	})
}

func TestRemove(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, pa := small("a")
		b, _ := small("b")
		e := start(t, a, b)
		events := submit(t, e, t.Context(), Request{Replica: "a", Prompt: prompt(3, 1), MaxTokens: 20})
		done := make(chan error)
		go func() { done <- e.Remove(t.Context(), "a") }()
		synctest.Wait()
		if _, err := e.Submit(t.Context(), Request{Replica: "a", Prompt: prompt(3, 1)}); !errors.Is(err, ErrNoReplica) {
			t.Errorf("submit while removing: %v", err)
		}
		if err := e.Remove(t.Context(), "a"); !errors.Is(err, ErrNoReplica) {
			t.Errorf("remove twice: %v", err)
		}
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if ids, last := read(events); !slices.Equal(ids, alone(prompt(3, 1), 20)) || last.Finish != batching.FinishLength {
			t.Errorf("a running request was not let end: %v %+v", ids, last)
		}
		if _, ok := e.Stats("a"); ok {
			t.Error("still there")
		}
		// It may come back, and leave in a hurry, in the middle of a step.
		if err := e.Add(a); err != nil {
			t.Fatal(err)
		}
		pa.step = time.Minute
		events = submit(t, e, t.Context(), Request{Replica: "a", Prompt: prompt(3, 1), MaxTokens: 20})
		waiting := submit(t, e, t.Context(), Request{Replica: "b", Prompt: prompt(3, 1), MaxTokens: 2})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		begin := time.Now()
		if err := e.Remove(ctx, "a"); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(begin); took < 59*time.Second {
			t.Errorf("Remove returned after %v while the program was running", took)
		}
		if _, last := read(events); !errors.Is(last.Err, ErrRemoved) || last.Finish != batching.FinishError {
			t.Errorf("%+v", last)
		}
		if ids, _ := read(waiting); len(ids) != 2 {
			t.Errorf("neighbour: %v", ids)
		}
		if err := e.Remove(t.Context(), "b"); err != nil { // idle: at once
			t.Fatal(err)
		}
	})
}

// TestAddWhileRemoved: a name is free once the last step of whoever had it has ended.
func TestAddWhileRemoved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, pa := small("a")
		pa.step = time.Minute
		e := start(t, a)
		submit(t, e, t.Context(), Request{Replica: "a", Prompt: prompt(3, 1), MaxTokens: 20})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		done := make(chan error, 1)
		go func() { done <- e.Remove(ctx, "a") }()
		time.Sleep(2 * time.Second)
		again, _ := small("a")
		if err := e.Add(again); err == nil {
			t.Error("it was added while its program was running")
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
		if err := e.Add(again); err != nil {
			t.Error(err)
		}
	})
}

func TestStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, p := small("a")
		p.step = time.Hour
		e := New(Options{Log: slog.New(slog.DiscardHandler)})
		if err := e.Add(a); err != nil {
			t.Fatal(err)
		}
		early := submit(t, e, t.Context(), Request{Replica: "a", Prompt: prompt(3, 1)}) // before Run
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- e.Run(ctx) }()
		synctest.Wait()
		late := submit(t, e, t.Context(), Request{Replica: "a", Prompt: prompt(3, 2)})
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		for _, s := range []<-chan Event{early, late} {
			if _, last := read(s); last.Finish != batching.FinishError || !errors.Is(last.Err, ErrStopped) {
				t.Errorf("%+v", last)
			}
		}
		if _, err := e.Submit(t.Context(), Request{Replica: "a", Prompt: prompt(3, 1)}); !errors.Is(err, ErrStopped) {
			t.Errorf("after the end: %v", err)
		}
		if err := e.Remove(t.Context(), "a"); err != nil {
			t.Errorf("remove after the end: %v", err)
		}
	})
}

// TestManyComeAndGo drives the engine from many goroutines; run it with -race.
func TestManyComeAndGo(t *testing.T) {
	a, pa := small("a")
	b, pb := small("b")
	a.Waiting, b.Waiting = 1000, 1000
	pa.step, pb.step = 0, 0
	e := start(t, a, b)
	done := make(chan error)
	const n = 60
	for i := range n {
		go func() {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			r := Request{Replica: []string{"a", "b"}[i%2], Prompt: prompt(3+i%17, int32(i)), MaxTokens: 40}
			events, err := e.Submit(ctx, r)
			if err != nil {
				done <- err
				return
			}
			var ids []int32
			for ev := range events {
				if ev.Finish == "" {
					ids = append(ids, ev.Token.ID)
				}
				if i%3 == 0 && len(ids) == 10 {
					cancel()
				}
				runtime.Gosched()
			}
			if want := alone(r.Prompt, 40); i%3 != 0 && !slices.Equal(ids, want) {
				err = fmt.Errorf("request %d: %v, want %v", i, ids, want)
			}
			done <- err
		}()
	}
	for range n {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	for _, name := range []string{"a", "b"} {
		if s, _ := e.Stats(name); s.KVUsed != 0 || s.Running+s.Waiting != 0 || s.Completed != n/2 {
			t.Errorf("%s: %+v", name, s)
		}
	}
}
