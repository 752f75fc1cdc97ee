package batching

import (
	"errors"
	"fmt"
	"slices"

	"github.com/estiba/estiba/runtime/kvcache"
)

// Batcher decides which tokens of which replica run in the next step of one
// device: Next is the decision, Commit or Abort says how it went. One replica a
// step, in turns; within it every running sequence's next token first, then
// chunks of prompts up to the token budget, oldest first. When KV blocks run
// out the newest running sequence gives its up and is computed again later,
// prompt and output, so that nothing of its text is lost.
//
// It is not safe for concurrent use, except that Add and Cancel may come
// between Next and Commit.
type Batcher struct {
	replicas  []*replica // in the order of their turns: whoever has just run is last
	sequences map[uint64]*sequence
}

// Replica is a model that takes part: its room and the bounds of one step.
type Replica struct {
	Name        string
	Blocks      int // KV blocks
	BlockTokens int // positions in one
	MaxTokens   int // context: prompt and output of one sequence, in tokens
	StepTokens  int // tokens of one step
	StepRows    int // rows of logits of one step
	Sequences   int // running at the same time
	Waiting     int // queued beyond those
}

// Sequence is one text to be continued.
type Sequence struct {
	ID      uint64 // grows with each sequence of the process; never used again
	Replica string
	Prompt  []int32
	// MaxTokens of output. The context may leave less room; then that is the bound.
	MaxTokens  int
	Stop       []int32 // any of these ends the text and is not part of it
	AllRows    bool    // logits of every token of the prompt; MaxTokens may be 0
	PromptOnly bool    // the prompt is computed, and no more: MaxTokens is 0
}

// Output is what a step did for one sequence.
type Output struct {
	Sequence uint64
	Token    int32 // NoToken: none
	Finish   Finish
	Err      error // of FinishError
	Cached   int   // tokens of the prompt whose keys and values were there already
}

// NoToken stands where a step gave no token: the text has ended.
const NoToken int32 = -1

// Finish says why a sequence has ended; empty while it has not.
type Finish string

// Why a sequence ends.
const (
	FinishStop      Finish = "stop"      // a stop token
	FinishLength    Finish = "length"    // MaxTokens, or the context is full
	FinishCancelled Finish = "cancelled" // nobody wants it any more
	FinishError     Finish = "error"     // its step failed
)

// Errors of Add.
var (
	ErrNoReplica   = errors.New("no such replica")
	ErrQueueFull   = errors.New("the queue is full")
	ErrEmptyPrompt = errors.New("the prompt has no tokens")
)

// TooLongError says that a prompt does not leave room for one more token.
type TooLongError struct {
	Prompt    int // tokens
	MaxTokens int // the context
}

func (e *TooLongError) Error() string {
	return fmt.Sprintf("the prompt has %d tokens and the context of %d tokens must hold it and at least one more", e.Prompt, e.MaxTokens)
}

// Stats of a replica, as of now.
type Stats struct {
	Running, Waiting int   // sequences
	KVBlocks, KVUsed int   // blocks
	Completed        int64 // sequences ended, whatever the reason
	Preempted        int64 // times that a sequence gave up its blocks
	PromptTokens     int64 // computed or taken over, of sequences ended
	OutputTokens     int64
	Prefix           kvcache.Prefix
}

type replica struct {
	Replica
	cache   *kvcache.Cache
	running []*sequence // oldest first
	waiting []*sequence // oldest first, and newer than every running one
	stats   Stats
}

type sequence struct {
	Sequence
	replica  *replica
	tokens   []int32 // prompt, then output
	computed int     // leading tokens whose keys and values are in the cache
	rows     int     // leading tokens of the prompt whose logits have been given, with AllRows
	cached   int
	started  bool // has been admitted once
}

// New is a batcher without replicas.
func New() *Batcher { return &Batcher{sequences: map[uint64]*sequence{}} }

// Open lets a replica take part. One sequence of the whole context must fit its blocks.
func (b *Batcher) Open(r Replica) error {
	switch {
	case b.replica(r.Name) != nil:
		return fmt.Errorf("replica %q is there already", r.Name)
	case r.BlockTokens <= 0 || r.MaxTokens <= 0 || r.StepTokens <= 0 || r.StepRows <= 0 || r.Sequences <= 0 || r.Waiting < 0:
		return fmt.Errorf("replica %q: bounds must be positive: %+v", r.Name, r)
	case r.MaxTokens > r.Blocks*r.BlockTokens:
		return fmt.Errorf("replica %q: a context of %d tokens needs more than %d blocks of %d tokens", r.Name, r.MaxTokens, r.Blocks, r.BlockTokens)
	}
	// Each running sequence gets its next token in every step, and a prompt's
	// chunk at least one token beside the others'.
	r.Sequences = min(r.Sequences, r.StepTokens, r.StepRows)
	b.replicas = append(b.replicas, &replica{Replica: r, cache: kvcache.New(r.Blocks, r.BlockTokens)})
	return nil
}

// Close ends a replica's part, and every sequence that it still has.
func (b *Batcher) Close(name string, err error) []Output {
	r := b.replica(name)
	if r == nil {
		return nil
	}
	var outputs []Output
	for _, s := range slices.Concat(r.running, r.waiting) {
		outputs = append(outputs, b.end(s, FinishError, err))
	}
	b.replicas = slices.DeleteFunc(b.replicas, func(x *replica) bool { return x == r })
	return outputs
}

// Add queues a sequence: ErrNoReplica, ErrQueueFull, ErrEmptyPrompt or a *TooLongError says why not.
func (b *Batcher) Add(s Sequence) error {
	r := b.replica(s.Replica)
	if r == nil {
		return fmt.Errorf("%w: %q", ErrNoReplica, s.Replica)
	}
	if len(s.Prompt) == 0 {
		return ErrEmptyPrompt
	}
	if s.PromptOnly {
		s.MaxTokens = 0
	}
	s.MaxTokens = min(s.MaxTokens, r.MaxTokens-len(s.Prompt))
	if s.MaxTokens < 0 || s.MaxTokens == 0 && !s.AllRows && !s.PromptOnly {
		return &TooLongError{Prompt: len(s.Prompt), MaxTokens: r.MaxTokens}
	}
	if len(r.running)+len(r.waiting) >= r.Sequences+r.Waiting {
		return fmt.Errorf("%w: %d requests run and %d wait", ErrQueueFull, len(r.running), len(r.waiting))
	}
	q := &sequence{Sequence: s, replica: r, tokens: slices.Clone(s.Prompt)}
	b.sequences[s.ID] = q
	r.waiting = append(r.waiting, q)
	return nil
}

// Cancel ends a sequence and frees what it held; false if there is none.
func (b *Batcher) Cancel(id uint64) (Output, bool) {
	s := b.sequences[id]
	if s == nil {
		return Output{}, false
	}
	return b.end(s, FinishCancelled, nil), true
}

// Stats of a replica; false if there is none.
func (b *Batcher) Stats(name string) (Stats, bool) {
	r := b.replica(name)
	if r == nil {
		return Stats{}, false
	}
	s := r.stats
	s.Running, s.Waiting = len(r.running), len(r.waiting)
	s.KVBlocks, s.KVUsed = r.cache.Total(), r.cache.Used()
	s.Prefix = r.cache.Prefix()
	return s, true
}

// Next is the next step's batch; without spans if nobody has anything to run.
// Commit or Abort must follow before the next Next.
func (b *Batcher) Next() Batch {
	for i, r := range b.replicas {
		if spans := r.next(); len(spans) > 0 {
			b.replicas = append(slices.Delete(b.replicas, i, i+1), r)
			return Batch{Replica: r.Name, Spans: spans}
		}
	}
	return Batch{}
}

// Commit takes the tokens that a batch gave: tokens[i] is the next one of
// Spans[i] where that asked for it. Outputs are in the order of the spans.
func (b *Batcher) Commit(batch Batch, tokens []int32) []Output {
	var outputs []Output
	for i, span := range batch.Spans {
		s := b.sequences[span.Sequence]
		if s == nil {
			continue // cancelled meanwhile
		}
		s.computed = span.Start + len(span.Tokens)
		s.replica.cache.Written(s.ID, s.tokens[:s.computed])
		if span.Rows == AllRows {
			s.rows = s.computed
		}
		switch {
		case span.Next && slices.Contains(s.Stop, tokens[i]):
			outputs = append(outputs, b.end(s, FinishStop, nil))
		case span.Next:
			s.tokens = append(s.tokens, tokens[i])
			o := Output{Sequence: s.ID, Token: tokens[i], Cached: s.cached}
			if s.output() == s.MaxTokens {
				o = b.end(s, FinishLength, nil)
				o.Token = tokens[i]
			}
			outputs = append(outputs, o)
		case s.MaxTokens == 0 && s.computed == len(s.Prompt):
			outputs = append(outputs, b.end(s, FinishLength, nil)) // only its prompt was wanted
		}
	}
	return outputs
}

// Abort ends the sequences of a batch that failed; all others go on.
func (b *Batcher) Abort(batch Batch, err error) []Output {
	var outputs []Output
	for _, span := range batch.Spans {
		if s := b.sequences[span.Sequence]; s != nil {
			outputs = append(outputs, b.end(s, FinishError, err))
		}
	}
	return outputs
}

func (b *Batcher) replica(name string) *replica {
	for _, r := range b.replicas {
		if r.Name == name {
			return r
		}
	}
	return nil
}

func (b *Batcher) end(s *sequence, why Finish, err error) Output {
	r := s.replica
	r.cache.Close(s.ID)
	is := func(x *sequence) bool { return x == s }
	r.running = slices.DeleteFunc(r.running, is)
	r.waiting = slices.DeleteFunc(r.waiting, is)
	delete(b.sequences, s.ID)
	r.stats.Completed++
	r.stats.PromptTokens += int64(len(s.Prompt))
	r.stats.OutputTokens += int64(s.output())
	return Output{Sequence: s.ID, Token: NoToken, Finish: why, Err: err, Cached: s.cached}
}

// next is one step of one replica. Whoever is admitted or preempted, all spans
// together stay within StepTokens and StepRows, and the oldest sequence always
// gets on, so every sequence ends.
func (r *replica) next() []Span {
	step := step{tokens: r.StepTokens, rows: r.StepRows}
	for i := 0; i < len(r.running); i++ {
		if s := r.running[i]; s.pending() == 1 && r.grow(s) {
			step.add(s)
		}
	}
	for _, s := range r.running {
		if s.pending() > 1 {
			step.add(s)
		}
	}
	for len(r.waiting) > 0 && len(r.running) < r.Sequences && step.tokens > 0 && step.rows > 0 {
		s := r.waiting[0]
		if !r.admit(s) {
			break // in order: a later one must not overtake it for being shorter
		}
		step.add(s)
	}
	return step.spans
}

// grow gives s the block for its next token, at the cost of the newest running
// sequence if need be. It is false if that is s itself.
func (r *replica) grow(s *sequence) bool {
	for !r.cache.Grow(s.ID, len(s.tokens)) {
		newest := r.running[len(r.running)-1]
		r.preempt(newest)
		if newest == s {
			return false
		}
	}
	return true
}

// preempt takes the newest running sequence's blocks; it waits in front of all
// others, which are newer still.
func (r *replica) preempt(s *sequence) {
	r.cache.Close(s.ID)
	s.computed = 0
	r.running = r.running[:len(r.running)-1]
	r.waiting = slices.Insert(r.waiting, 0, s)
	r.stats.Preempted++
}

// admit starts the oldest waiting sequence if blocks for all of its tokens are
// free, and one more for each running sequence, so that it is not preempted at once.
func (r *replica) admit(s *sequence) bool {
	// Rows of a prompt can only be had by computing it.
	cached, ok := r.cache.Open(s.ID, s.tokens, !s.AllRows, len(r.running))
	if !ok {
		return false
	}
	if !s.started {
		s.started, s.cached = true, cached
	}
	s.computed = cached
	r.waiting = r.waiting[1:]
	r.running = append(r.running, s)
	return true
}

// pending tokens have not been computed.
func (s *sequence) pending() int { return len(s.tokens) - s.computed }

// output tokens so far.
func (s *sequence) output() int { return len(s.tokens) - len(s.Prompt) }

// step is what is left of a step's budget, and the spans that have the rest.
type step struct {
	tokens, rows int
	spans        []Span
}

// add gives s as many of its pending tokens as the budget has.
func (p *step) add(s *sequence) {
	n := min(s.pending(), p.tokens)
	rows := NoRows
	switch {
	case s.AllRows && s.computed < s.rows: // computed again: these rows have been given
		n = min(n, s.rows-s.computed)
	case s.AllRows && s.computed < len(s.Prompt):
		n = min(n, len(s.Prompt)-s.computed, p.rows)
		rows = AllRows
	}
	next := n == s.pending() && s.MaxTokens > 0
	if next && rows == NoRows {
		rows = LastRow
		if p.rows == 0 { // all rows are taken: everything but the last token
			n, next, rows = n-1, false, NoRows
		}
	}
	if n == 0 {
		return
	}
	span := Span{
		Sequence: s.ID,
		Tokens:   slices.Clip(s.tokens[s.computed : s.computed+n]),
		Start:    s.computed,
		Blocks:   s.replica.cache.Table(s.ID),
		Rows:     rows,
		Next:     next,
	}
	p.tokens -= n
	switch rows {
	case LastRow:
		p.rows--
	case AllRows:
		p.rows -= n
	}
	p.spans = append(p.spans, span)
}
