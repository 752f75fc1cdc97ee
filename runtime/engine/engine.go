// Package engine runs the replicas of one device: next -> run -> choose ->
// commit, one step after the other, in one goroutine. What runs in a step is
// batching's decision; this package carries it out and hands the tokens to whoever
// asked. Start at Engine.Run and step.
package engine

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"github.com/estiba/estiba/runtime/backend"
	"github.com/estiba/estiba/runtime/batching"
	"github.com/estiba/estiba/runtime/sampling"
)

// Engine runs several replicas on one device. Its methods may be called from
// any goroutine, also before Run and after it.
type Engine struct {
	log     *slog.Logger
	failed  func(replica string, err error)
	discard func(extents []int32)
	wake    chan struct{} // there may be something to run

	// Of the steps' goroutine, and used again by each step.
	scratch sampling.Scratch
	work    work

	mu       sync.Mutex // never held while a program runs
	batcher  *batching.Batcher
	replicas map[string]*replica
	requests map[uint64]*request // sequence -> who asked
	stepping *replica            // whose program runs now
	since    time.Time           // since then; zero: its step has been counted
	last     uint64              // sequence
	stopped  bool
	broken   error         // an ErrBroken: the device computes nothing any more
	settled  chan struct{} // closed when extents have been given back; nil: nobody waits for that
	stale    bool          // extents are being given back
}

// Options of an engine; the zero value works.
type Options struct {
	Log *slog.Logger // what went wrong in a step; nil: slog.Default()
	// Extents of the device's slab, from which the KV blocks of replicas are cut that
	// have none of their own; see Resize.
	Extents int
	// Discard gives back the memory behind extents: backend.Backend.Discard. May be nil.
	Discard func(extents []int32)
	// Failed is told once that a replica cannot go on: it could not read its weights,
	// or failed so many steps in a row. Its requests have ended with an ErrBroken, as
	// every later one does, until it is removed; its neighbours go on. It is called
	// from the steps' goroutine, which waits for it. May be nil.
	Failed func(replica string, err error)
}

// failures in a row, with no token between them, are the model's own fault and not a request's.
const failures = 3

// Replica is a model's program, and its room.
type Replica struct {
	Name        string
	Program     backend.Program
	Blocks      int     // KV blocks of the program's own: backend.Limits.Blocks; 0: they lie in the slab
	PerExtent   int     // then, how many in an extent: backend.Limits.PerExtent
	Floor       int     // and how many extents are guaranteed; more are borrowed while nobody needs them
	BlockTokens int     // positions in a block: backend.Limits.BlockTokens
	Encoder     bool    // gives no logits and keeps nothing: embeddings are all it can be asked for, prompts go whole into one step
	MaxTokens   int     // context: prompt and output of one request
	Vocabulary  int     // tokens it knows, and logits in a row
	Hidden      int     // width of the hidden state; 0: it cannot be asked for embeddings
	Stop        []int32 // end tokens of the model
	StepTokens  int     // tokens of one step: backend.Limits.MaxTokens; 0: 256
	StepRows    int     // rows of logits of one step: backend.Limits.MaxRows; 0: StepTokens
	Sequences   int     // requests that run at the same time; 0: 16
	Waiting     int     // requests that wait beyond those; 0: 256
}

// Request asks for the continuation of a prompt, or for its embedding.
type Request struct {
	Replica string
	Tenant  string // whose it is: those of a device get equal shares of it
	Prompt  []int32
	// MaxTokens of output; the context may leave less room. 0: as many as it has
	// room for, or none with PromptLogits or PromptOnly.
	MaxTokens    int
	Sampling     sampling.Params
	Stop         []int32 // end tokens beside the model's
	IgnoreStop   bool    // the model's end tokens do not end the text
	PromptLogits bool    // the last event has the logits of every position of the prompt
	PromptOnly   bool    // the text ends with its prompt
	// PromptLogprobs: the first event has the logprobs of the prompt's tokens, and of
	// Sampling.TopLogprobs others at each. The first token has none: nothing is before it.
	PromptLogprobs bool
	Pooling        Pooling // the last event has the prompt's embedding, and there is no text
	Trial          bool    // nobody's: it is in no count
	Finite         bool    // one logit that is no finite number, of a row from which a token is drawn, ends the text with sampling.ErrNotANumber
}

// Event is one token of a request, or its end.
type Event struct {
	At      time.Time      // when it came to be, whenever it is read
	Started time.Time      // when the request's first step began; zero: it has had none
	Cached  int            // tokens of the prompt, not computed but taken over
	Token   sampling.Token // while Finish is empty
	// PromptLogprobs are in the first event, of the prompt's tokens but the first.
	PromptLogprobs []sampling.Token

	// Finish is set in the last event, which has no token. The rest is of that event.
	Finish         batching.Finish
	Err            error // with FinishError and FinishCancelled
	Prompt, Output int   // tokens
	PromptLogits   []float32
	Embedding      []float32 // of Euclidean length 1
}

// Stats of a replica, as of now.
type Stats = batching.Stats

// TooLongError says that the context has no room for a prompt and one more token.
type TooLongError = batching.TooLongError

// QueueFullError is an ErrQueueFull that says when to try again.
type QueueFullError = batching.QueueFullError

// Why a request is not taken, beside *TooLongError, or ends with FinishError.
var (
	ErrNoReplica   = batching.ErrNoReplica
	ErrQueueFull   = batching.ErrQueueFull
	ErrEmptyPrompt = batching.ErrEmptyPrompt
	ErrVocabulary  = errors.New("the prompt has a token that the model does not know")
	ErrNoText      = errors.New("the model gives embeddings and no text")
	ErrNoEmbedding = errors.New("the model gives no embeddings")
	ErrRemoved     = errors.New("the model was taken off the device")
	ErrStopped     = errors.New("the engine has stopped")
	ErrBroken      = errors.New("the model fails")
)

type replica struct {
	Replica
	out      backend.Out // of the last step; its memory is part of the replica's workspace and goes with it
	removing bool
	failing  int           // steps in a row that gave nothing because they failed
	broken   error         // an ErrBroken: no more requests
	gone     chan struct{} // closed once nothing uses the program any more
}

type request struct {
	Request
	id      uint64
	ctx     context.Context
	unwatch func() bool
	events  *stream
	sampler *sampling.Sampler
	started time.Time // of its first step
	output  int       // tokens delivered

	// Of the steps' goroutine.
	choice   sampling.Token
	logits   []float32
	logprobs []sampling.Token // of the prompt
	pool     pool
}

// New is an engine without replicas; Run makes it work.
func New(o Options) *Engine {
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if o.Failed == nil {
		o.Failed = func(string, error) {}
	}
	if o.Discard == nil {
		o.Discard = func([]int32) {}
	}
	return &Engine{
		log:      o.Log,
		failed:   o.Failed,
		discard:  o.Discard,
		wake:     make(chan struct{}, 1),
		batcher:  batching.New(o.Extents),
		replicas: map[string]*replica{},
		requests: map[uint64]*request{},
	}
}

// Run takes steps until ctx ends; then it ends all requests with ErrStopped and
// returns nil. It sleeps while there is nothing to run.
func (e *Engine) Run(ctx context.Context) error {
	defer e.stop()
	for ctx.Err() == nil {
		if e.step(ctx) {
			continue
		}
		select {
		case <-ctx.Done():
		case <-e.wake:
		}
	}
	return nil
}

// Add lets a replica take requests. The engine uses its program until Remove has returned,
// and its name is taken until then.
func (e *Engine) Add(r Replica) error {
	if r.StepTokens == 0 {
		r.StepTokens = 256
	}
	if r.StepRows == 0 {
		r.StepRows = r.StepTokens
	}
	if r.Sequences == 0 {
		r.Sequences = 16
	}
	if r.Waiting == 0 {
		r.Waiting = 256
	}
	if r.Program == nil || r.Vocabulary <= 0 {
		return fmt.Errorf("replica %q: a program and a vocabulary are needed", r.Name)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.replicas[r.Name] != nil {
		return fmt.Errorf("replica %q is there already", r.Name)
	}
	err := e.batcher.Open(batching.Replica{
		Name: r.Name, Blocks: r.Blocks, PerExtent: r.PerExtent, Floor: r.Floor, BlockTokens: r.BlockTokens, Whole: r.Encoder,
		MaxTokens: r.MaxTokens, StepTokens: r.StepTokens, StepRows: r.StepRows, Sequences: r.Sequences, Waiting: r.Waiting,
	})
	if err != nil {
		return err
	}
	e.replicas[r.Name] = &replica{Replica: r, gone: make(chan struct{})}
	return nil
}

// Remove takes no more requests for a replica and waits for those it has; when
// ctx ends they end with ErrRemoved. Once it has returned, the program is not
// used any more. The only error is ErrNoReplica.
func (e *Engine) Remove(ctx context.Context, name string) error {
	e.mu.Lock()
	r := e.replicas[name]
	if r == nil || r.removing {
		e.mu.Unlock()
		return fmt.Errorf("%w: %q", ErrNoReplica, name)
	}
	r.removing = true
	e.settle(r)
	e.mu.Unlock()

	select {
	case <-r.gone:
	case <-ctx.Done():
		e.mu.Lock()
		e.deliver(e.batcher.Close(name, ErrRemoved)...)
		e.settle(r)
		e.mu.Unlock()
		<-r.gone // its last step
	}
	return nil
}

// Submit queues a request. Its events come in order, and the channel is closed
// after the last, the one with Finish set. A slow reader delays nobody. When ctx
// ends, so does the request, and what it held is free by the next step; its last
// event may then be missing. Either read to the end or end ctx.
//
// The error is ErrNoReplica, a *QueueFullError, ErrEmptyPrompt, ErrVocabulary, ErrNoText,
// ErrNoEmbedding, ErrStopped, ErrBroken, a *TooLongError, or ctx's.
func (e *Engine) Submit(ctx context.Context, r Request) (<-chan Event, error) {
	if err := context.Cause(ctx); err != nil {
		return nil, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	switch {
	case e.stopped:
		return nil, ErrStopped
	case e.broken != nil:
		return nil, e.broken
	}
	home := e.replicas[r.Replica]
	if home == nil || home.removing {
		return nil, fmt.Errorf("%w: %q", ErrNoReplica, r.Replica)
	}
	if home.broken != nil {
		return nil, home.broken
	}
	for _, t := range r.Prompt {
		if t < 0 || int(t) >= home.Vocabulary {
			return nil, fmt.Errorf("%w: %d is not in 0 to %d", ErrVocabulary, t, home.Vocabulary-1)
		}
	}
	switch {
	case home.Encoder && r.Pooling == NoPooling:
		return nil, fmt.Errorf("%w: ask it for embeddings", ErrNoText)
	case home.Hidden == 0 && r.Pooling != NoPooling:
		return nil, ErrNoEmbedding
	}
	s := batching.Sequence{
		ID: e.last + 1, Replica: r.Replica, Tenant: r.Tenant, Prompt: r.Prompt, MaxTokens: r.MaxTokens,
		Rows: r.Pooling.rows(), PromptOnly: r.PromptOnly || r.Pooling != NoPooling, Trial: r.Trial,
	}
	if r.PromptLogits || r.PromptLogprobs {
		s.Rows = batching.AllRows
	}
	if r.MaxTokens == 0 && !r.PromptLogits && !s.PromptOnly {
		s.MaxTokens = home.MaxTokens
	}
	if !r.IgnoreStop || r.Sampling.Constraint != nil { // an end is all that a grammar may leave
		s.Stop = append(s.Stop, home.Stop...)
	}
	s.Stop = append(s.Stop, r.Stop...)
	r.Sampling.Ends = s.Stop
	if err := e.batcher.Add(s); err != nil {
		return nil, err
	}
	e.last++
	q := &request{Request: r, id: s.ID, ctx: ctx, events: newStream(ctx), sampler: sampling.New(r.Sampling, r.Prompt), pool: pool{how: r.Pooling}}
	e.requests[q.id] = q
	q.unwatch = context.AfterFunc(ctx, func() { e.cancel(q) })
	e.nudge()
	return q.events.out, nil
}

// nudge makes Run look for something to do.
func (e *Engine) nudge() {
	select {
	case e.wake <- struct{}{}:
	default:
	}
}

// Resize says how many extents of the slab replicas may hold together; the rest of the
// device's memory is for weights and workspaces. It is refused below the sum of their
// floors. Reclaimed waits until it is so.
func (e *Engine) Resize(extents int) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if err := e.batcher.Resize(extents); err != nil {
		return err
	}
	e.nudge()
	return nil
}

// Reclaimed waits until replicas hold no more extents than the last Resize allows, and
// the memory behind all others has been given back: within a step. The error is ctx's, or ErrStopped.
func (e *Engine) Reclaimed(ctx context.Context) error {
	e.mu.Lock()
	for e.stale || !e.batcher.Settled() {
		if e.stopped {
			e.mu.Unlock()
			return ErrStopped
		}
		if e.settled == nil {
			e.settled = make(chan struct{})
		}
		settled := e.settled
		e.mu.Unlock()
		select {
		case <-settled:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		e.mu.Lock()
	}
	e.mu.Unlock()
	return nil
}

// reclaim gives extents back, between two steps.
func (e *Engine) reclaim() {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.batcher.Settled() {
		return
	}
	extents := e.batcher.Reclaim()
	e.stale = true
	e.mu.Unlock()
	e.discard(extents)
	e.mu.Lock()
	e.stale = false
	e.wakeSettled()
}

// wakeSettled wakes those who wait for Reclaimed. e.mu is held.
func (e *Engine) wakeSettled() {
	if e.settled != nil {
		close(e.settled)
		e.settled = nil
	}
}

// Stats of a replica; false if there is none. The step that runs is busy up to now.
func (e *Engine) Stats(name string) (Stats, bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	s, ok := e.batcher.Stats(name)
	if ok && e.stepping != nil && e.stepping.Name == name && !e.since.IsZero() {
		s.Busy += time.Since(e.since)
	}
	return s, ok
}

// work is one step: a batch, the replica that runs it, and whose span is whose. The
// slices are used again by the next step.
type work struct {
	began    time.Time
	batch    batching.Batch
	replica  *replica
	requests []*request      // of the batch's spans
	choices  []choice        // of the same
	next     []batching.Next // of the same
}

// choice is the next token of a span, where it has one.
type choice struct {
	token  sampling.Token
	err    error
	broken bool // not by the request's parameters: the model gave no numbers
}

// step takes one step; false if there was nothing to run.
func (e *Engine) step(ctx context.Context) bool {
	e.reclaim()
	w := e.next()
	if w == nil {
		return false
	}
	if err := e.run(ctx, w); err != nil {
		e.abort(w, err) // its requests end, its neighbours go on
	} else {
		e.choose(w)
		e.commit(w)
	}
	e.finish(w.replica)
	w.batch, w.replica = batching.Batch{}, nil // which may go now, with all it has
	clear(w.requests)
	return true
}

// next is the work of the next step; nil if there is none.
func (e *Engine) next() *work {
	e.mu.Lock()
	defer e.mu.Unlock()
	w := &e.work
	w.batch = e.batcher.Next()
	n := len(w.batch.Spans)
	if n == 0 {
		return nil
	}
	w.began, w.replica = time.Now(), e.replicas[w.batch.Replica]
	w.requests = w.requests[:0]
	w.replica.out.WantHidden = false
	for _, s := range w.batch.Spans {
		q := e.requests[s.Sequence]
		if q.started.IsZero() {
			q.started = w.began
		}
		w.requests = append(w.requests, q)
		w.replica.out.WantHidden = w.replica.out.WantHidden || q.Pooling != NoPooling && s.Rows != batching.NoRows
	}
	w.choices = slices.Grow(w.choices[:0], n)[:n]
	w.next = slices.Grow(w.next[:0], n)[:n]
	clear(w.choices)
	clear(w.next)
	e.stepping, e.since = w.replica, w.began
	return w
}

// run computes a batch into its replica's out. A panic of the program is an error of the batch.
func (e *Engine) run(ctx context.Context, w *work) (err error) {
	defer func() {
		if p := recover(); p != nil {
			stack := debug.Stack()
			if elsewhere, ok := p.(interface{ Stack() []byte }); ok { // of a goroutine that helped
				stack = elsewhere.Stack()
			}
			e.log.Error("program panicked", "model", w.replica.Name, "panic", p, "stack", string(stack))
			err = errors.New("the computation broke; the log says where")
			if _, ok := p.(interface{ Addr() uintptr }); ok { // a fault on mapped data: runtime/debug.SetPanicOnFault
				err = backend.ErrFault
			}
		}
		if err != nil {
			err = fmt.Errorf("run a step of %d tokens of %s: %w", w.batch.Tokens(), w.replica.Name, err)
		}
	}()
	r := w.replica
	r.out.Draws, r.out.Choices = w.draws(r.out.Draws[:0]), r.out.Choices[:0]
	if err := r.Program.Run(ctx, w.batch, &r.out); err != nil {
		if ctx.Err() != nil {
			return ErrStopped
		}
		return err
	}
	rows := w.batch.Logits()
	if got, want := len(r.out.Logits), rows*r.Vocabulary; got < want && !r.Encoder && !w.drawn() {
		return fmt.Errorf("the program gave %d logits where %d were asked for", got, want)
	}
	if got, want := len(r.out.Hidden), rows*r.Hidden; got < want && r.out.WantHidden {
		return fmt.Errorf("the program gave hidden states of %d numbers where %d were asked for", got, want)
	}
	return nil
}

// draws of a batch's rows, which the program may carry out; none if some row is for more than a token that is drawn from it.
func (w *work) draws(all []sampling.Draw) []sampling.Draw {
	for i, s := range w.batch.Spans {
		q := w.requests[i]
		if s.Rows == batching.NoRows {
			continue
		}
		d, plain := q.sampler.Draw()
		if !plain || !s.Next || s.Rows != batching.LastRow || q.Pooling != NoPooling || q.Finite {
			return all[:0]
		}
		all = append(all, d)
	}
	return all
}

// drawn: the program has carried them out.
func (w *work) drawn() bool {
	return len(w.replica.out.Draws) > 0 && len(w.replica.out.Choices) == len(w.replica.out.Draws)
}

// take the tokens that the program has drawn.
func (w *work) take() {
	row := 0
	for i, s := range w.batch.Spans {
		if s.Rows == batching.NoRows {
			continue
		}
		c, is := &w.choices[i], w.replica.out.Choices[row]
		row++
		if is.Token < 0 {
			c.err, c.broken = sampling.ErrNotANumber, true
			continue
		}
		w.requests[i].sampler.Drawn(is.Certain)
		c.token = sampling.Token{ID: is.Token, Logprob: is.Logprob}
	}
}

// choose chooses the tokens of a batch, each by its own request's sampler, and keeps
// the rows of prompts that want them. It is one after the other, so that they share
// their scratch.
func (e *Engine) choose(w *work) {
	if w.drawn() {
		w.take()
		return
	}
	r, row := w.replica, 0
	for i, span := range w.batch.Spans {
		q, c, rows := w.requests[i], &w.choices[i], 0
		switch span.Rows {
		case batching.LastRow:
			rows = 1
		case batching.AllRows:
			rows = len(span.Tokens)
		}
		from := row
		row += rows
		if q.Pooling != NoPooling && rows > 0 {
			q.pool.add(r.out.Hidden[from*r.Hidden:row*r.Hidden], r.Hidden, span)
			if span.Start+len(span.Tokens) == len(q.Prompt) {
				c.err = q.pool.end()
				c.broken = c.err != nil
			}
			continue
		}
		if r.Encoder || rows == 0 {
			continue
		}
		logits := r.out.Logits[from*r.Vocabulary : row*r.Vocabulary]
		if span.Rows == batching.AllRows {
			if q.PromptLogits {
				q.logits = append(q.logits, logits...)
			}
			if q.PromptLogprobs {
				q.logprobs = append(q.logprobs, promptLogprobs(q, span, logits, r.Vocabulary)...)
			}
		}
		if span.Next {
			last := logits[len(logits)-r.Vocabulary:]
			if q.Finite && slices.ContainsFunc(last, notFinite) {
				c.err, c.broken = sampling.ErrNotANumber, true
				continue
			}
			c.token, c.err = q.sampler.Sample(last, &e.scratch)
			c.broken = c.err != nil && !slices.ContainsFunc(last, isNumber)
		}
	}
}

// promptLogprobs are those of the tokens that follow a span's in its prompt.
func promptLogprobs(q *request, span batching.Span, rows []float32, vocabulary int) (list []sampling.Token) {
	for i := range span.Tokens {
		if next := span.Start + i + 1; next < len(q.Prompt) {
			list = append(list, sampling.Logprobs(rows[i*vocabulary:(i+1)*vocabulary], q.Prompt[next], q.Sampling.TopLogprobs))
		}
	}
	return list
}

// isNumber: a logit that can be chosen.
func isNumber(x float32) bool { return x > float32(math.Inf(-1)) }

// notFinite: NaN, or infinite.
func notFinite(x float32) bool { return x-x != 0 }

func (e *Engine) commit(w *work) {
	e.mu.Lock()
	defer e.mu.Unlock()
	var good, bad bool
	for i, c := range w.choices {
		good = good || (w.batch.Spans[i].Next || w.requests[i].pool.done()) && c.err == nil
		bad = bad || c.broken
	}
	switch {
	case good:
		w.replica.failing = 0
	case bad:
		w.replica.judge(sampling.ErrNotANumber)
	}
	for i, c := range w.choices {
		q := w.requests[i]
		if c.err != nil {
			if o, ok := e.batcher.Cancel(q.id); ok {
				o.Finish, o.Err = batching.FinishError, fmt.Errorf("answer with %s: %w", w.replica.Name, c.err)
				if w.replica.broken != nil {
					o.Err = w.replica.broken
				}
				e.deliver(o)
			}
			continue
		}
		q.choice, w.next[i] = c.token, batching.Next{Token: c.token.ID, Ended: q.ended()}
	}
	e.since = time.Time{}
	e.deliver(e.batcher.Commit(w.batch, w.next, time.Since(w.began))...)
}

func (e *Engine) abort(w *work, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !errors.Is(err, ErrStopped) {
		e.log.Error("step failed", "model", w.replica.Name, "requests", len(w.batch.Spans), "error", err)
		w.replica.judge(err)
	}
	if w.replica.broken != nil {
		err = w.replica.broken
	}
	e.since = time.Time{}
	e.deliver(e.batcher.Abort(w.batch, err, time.Since(w.began))...)
}

// ended: the grammar allows nothing but an end after the token that has just been chosen.
func (q *request) ended() bool { return q.Sampling.Constraint != nil && q.Sampling.Constraint.Ended() }

// judge counts a failed step, and says whether it is the model that is broken.
// Weights that cannot be read are so at once, and so is whatever is on a broken device. Engine.mu is held.
func (r *replica) judge(err error) {
	r.failing++
	_, device := errors.AsType[*backend.DeviceError](err)
	if r.failing >= failures || device || errors.Is(err, backend.ErrFault) {
		r.broken = fmt.Errorf("%w: %w", ErrBroken, err)
	}
}

// finish ends a step. What a model that has just broken still has of requests
// ends too, and the engine's owner hears of it before Remove may return.
func (e *Engine) finish(r *replica) {
	e.mu.Lock()
	broken := r.broken
	if broken != nil {
		e.end(broken, func(q *request) bool { return q.Replica == r.Name })
	}
	e.mu.Unlock()
	if broken != nil {
		e.failed(r.Name, broken)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.stepping = nil
	e.settle(r)
}

// Break ends all requests of a device that computes nothing any more with an ErrBroken, as every later one does. It waits
// for nothing: the step that runs may never end.
func (e *Engine) Break(err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.broken != nil {
		return
	}
	e.broken = fmt.Errorf("%w: %w", ErrBroken, err)
	e.end(e.broken, func(*request) bool { return true })
	for _, r := range e.replicas {
		e.settle(r)
	}
}

// end ends requests with an error. e.mu is held.
func (e *Engine) end(err error, which func(*request) bool) {
	for id, q := range e.requests {
		if !which(q) {
			continue
		}
		if o, ok := e.batcher.Cancel(id); ok {
			o.Finish, o.Err = batching.FinishError, err
			e.deliver(o)
		}
	}
}

// cancel ends a request whose context has ended.
func (e *Engine) cancel(q *request) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if o, ok := e.batcher.Cancel(q.id); ok {
		o.Err = context.Cause(q.ctx)
		e.deliver(o)
	}
	if r := e.replicas[q.Replica]; r != nil {
		e.settle(r)
	}
}

// stop ends what Run leaves.
func (e *Engine) stop() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.stopped = true
	e.end(ErrStopped, func(*request) bool { return true })
	for _, r := range e.replicas {
		e.settle(r)
	}
	e.wakeSettled()
}

// deliver hands outputs to those who asked. e.mu is held.
func (e *Engine) deliver(outputs ...batching.Output) {
	now := time.Now()
	for _, o := range outputs {
		q := e.requests[o.Sequence]
		if o.Token != batching.NoToken {
			q.output++
			q.events.send(Event{At: now, Started: q.started, Cached: o.Cached, Token: q.choice, PromptLogprobs: q.logprobs})
			q.logprobs = nil
		}
		if o.Finish == "" {
			continue
		}
		delete(e.requests, q.id)
		q.unwatch()
		last := Event{At: now, Started: q.started, Cached: o.Cached, Finish: o.Finish, Err: o.Err, Prompt: len(q.Prompt), Output: q.output, PromptLogprobs: q.logprobs}
		if o.Finish == batching.FinishStop || o.Finish == batching.FinishLength {
			last.PromptLogits, last.Embedding = q.logits, q.pool.embedding
		}
		q.events.send(last)
		q.events.close()
	}
}

// settle lets a replica that is being removed go once nothing of it is left. e.mu is held.
func (e *Engine) settle(r *replica) {
	if !r.removing || e.stepping == r || e.replicas[r.Name] != r {
		return
	}
	if s, ok := e.batcher.Stats(r.Name); ok && s.Running+s.Waiting > 0 {
		return
	}
	e.batcher.Close(r.Name, nil)
	delete(e.replicas, r.Name)
	close(r.gone)
}
