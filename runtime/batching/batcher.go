package batching

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/estiba/estiba/runtime/kvcache"
)

// Batcher decides which tokens of which replica run in the next step of one
// device: Next is the decision, Commit or Abort says how it went and how long it took.
//
// One replica a step: the one that has had the least time. Within it every running
// sequence's next token first, then chunks of prompts for what is left of StepTime, or
// for half of it where texts take more than that, so that prompts do not trickle in
// beside them. Half of that is for the sequence that has run the longest, the rest for the
// tenants that have had the least. When KV blocks run out the newest running sequence gives its up and is
// computed again later, prompt and output, so that nothing of its text is lost: another
// replica's, if that has borrowed what is this one's by right.
//
// It is not safe for concurrent use, except that everything but Next and Reclaim may come
// between Next and Commit.
type Batcher struct {
	slab      *kvcache.Slab // of the device
	replicas  []*replica    // whoever has just run is last
	sequences map[uint64]*sequence
	tenants   map[string]*tenant
	busy      time.Duration // of all steps
	served    time.Duration // replica.served of whoever ran last: of all that have work, the least

	// Of the step, and used again by the next.
	step    step
	outputs []Output
}

// StepTime is about how long a step may take with chunks of prompts in it, so that a long
// prompt does not keep others waiting.
const StepTime = 50 * time.Millisecond

// Replica is a model that takes part: its room and the bounds of one step.
type Replica struct {
	Name string
	// KV blocks are the replica's own (Blocks), or they are cut from the device's extents:
	// PerExtent from each, Floor extents being guaranteed.
	Blocks           int
	PerExtent, Floor int
	BlockTokens      int // positions in a block
	// Whole: a prompt is computed in one step, and nothing is kept of it; there are no
	// blocks. So it is with encoders.
	Whole      bool
	MaxTokens  int // context: prompt and output of one sequence, in tokens
	StepTokens int // tokens of one step, however fast they are
	StepRows   int // rows of results of one step
	Sequences  int // running at the same time
	Waiting    int // queued beyond those
}

// Sequence is one text to be continued.
type Sequence struct {
	ID      uint64 // grows with each sequence of the process; never used again
	Replica string
	Tenant  string // whose it is
	Prompt  []int32
	// MaxTokens of output. The context may leave less room; then that is the bound.
	MaxTokens  int
	Stop       []int32 // any of these ends the text and is not part of it
	Rows       Rows    // of the prompt; with any of them MaxTokens may be 0
	PromptOnly bool    // the prompt is computed, and no more: MaxTokens is 0
	Trial      bool    // nobody's: it is in no count, and takes nothing over
}

// Next is what comes after a span that asked for it.
type Next struct {
	Token int32
	Ended bool // the text ends with it
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
	FinishStop      Finish = "stop"      // a stop token, or Next.Ended
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

// QueueFullError is ErrQueueFull with its numbers.
type QueueFullError struct {
	Running, Waiting int
	// RetryAfter is when a place is likely to be free for whoever was refused now; 0: not known.
	RetryAfter time.Duration
}

func (e *QueueFullError) Error() string {
	return fmt.Sprintf("%v: %d requests run and %d wait", ErrQueueFull, e.Running, e.Waiting)
}

func (e *QueueFullError) Unwrap() error { return ErrQueueFull }

// TooLongError says that the context has no room for a prompt and one more token.
type TooLongError struct {
	Prompt     int  // tokens
	MaxTokens  int  // the context
	PromptOnly bool // no more has to fit
}

func (e *TooLongError) Error() string {
	more := " and at least one more"
	if e.PromptOnly {
		more = ""
	}
	return fmt.Sprintf("the prompt has %d tokens and the context of %d tokens must hold it%s", e.Prompt, e.MaxTokens, more)
}

// Stats of a replica, as of now.
type Stats struct {
	Running, Waiting int   // sequences
	KVBlocks         int   // guaranteed, or held if that is more
	KVUsed           int   // blocks that hold sequences
	Completed        int64 // sequences ended, whatever the reason
	Preempted        int64 // times that a sequence gave up its blocks
	PromptTokens     int64 // computed or taken over, of prompts that are done
	OutputTokens     int64
	Prefix           kvcache.Prefix
	Steps            int64
	StepTokens       int64 // of all steps
	Busy             time.Duration
}

type replica struct {
	Replica
	cache    *kvcache.Cache // nil: nothing is kept
	slab     *kvcache.Slab  // that the cache is cut from
	running  []*sequence    // those that were admitted first are first
	waiting  []*sequence    // in the order in which they came; preempted ones in front
	stats    Stats
	served   time.Duration // its time, with what the others had while it had nothing to do
	pace     pace
	tried    bool          // of this Next
	lastEnd  time.Duration // Batcher.busy when a sequence ended
	interval float64       // seconds between ends of sequences
	refused  int           // since the last end
}

type sequence struct {
	Sequence
	replica  *replica
	tenant   *tenant
	tokens   []int32 // prompt, then output
	computed int     // leading tokens whose keys and values are in the cache
	rows     int     // leading tokens of the prompt whose rows have been given, with AllRows
	cached   int
	started  bool // has been admitted once
	counted  bool // its prompt is in Stats.PromptTokens
	running  bool
	taken    bool      // part of this step
	leader   *sequence // computes the start of this prompt, which waits for it
	shared   int       // leading tokens that it waits for
}

// tenant is whoever shares a device with others by right.
type tenant struct {
	served    float64 // seconds of the device, estimated; with the least that others had when it came
	backlog   int     // tokens of running sequences that are still to be computed, in this Next
	sequences int
}

// New is a batcher without replicas, for a device with so many extents for KV blocks.
func New(extents int) *Batcher {
	return &Batcher{slab: kvcache.NewSlab(extents), sequences: map[uint64]*sequence{}, tenants: map[string]*tenant{}}
}

// Open lets a replica take part. One sequence of the whole context must fit what is
// guaranteed to it.
func (b *Batcher) Open(r Replica) error {
	blocks := r.Blocks
	if blocks == 0 {
		blocks = r.Floor * r.PerExtent
	}
	switch {
	case b.replica(r.Name) != nil:
		return fmt.Errorf("replica %q is there already", r.Name)
	case r.MaxTokens <= 0 || r.StepTokens <= 0 || r.StepRows <= 0 || r.Sequences <= 0 || r.Waiting < 0 || !r.Whole && r.BlockTokens <= 0:
		return fmt.Errorf("replica %q: bounds must be positive: %+v", r.Name, r)
	case r.Whole && r.MaxTokens > min(r.StepTokens, r.StepRows):
		return fmt.Errorf("replica %q: a prompt of %d tokens needs more than a step of %d tokens and %d rows", r.Name, r.MaxTokens, r.StepTokens, r.StepRows)
	case !r.Whole && r.MaxTokens > blocks*r.BlockTokens:
		return fmt.Errorf("replica %q: a context of %d tokens needs more than %d blocks of %d tokens", r.Name, r.MaxTokens, blocks, r.BlockTokens)
	}
	// Each running sequence gets its next token in every step, and a prompt's
	// chunk at least one token beside the others'.
	r.Sequences = min(r.Sequences, r.StepTokens, r.StepRows)
	own := &replica{Replica: r, slab: b.slab}
	if !r.Whole {
		floor, per := r.Floor, r.PerExtent
		if r.Blocks > 0 {
			own.slab, floor, per = kvcache.NewSlab(1), 1, r.Blocks
		}
		var err error
		if own.cache, err = own.slab.Open(floor, per, r.BlockTokens); err != nil {
			return fmt.Errorf("replica %q: %w", r.Name, err)
		}
	}
	b.replicas = append(b.replicas, own)
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
	if r.cache != nil {
		r.cache.Drop()
	}
	return outputs
}

// Add queues a sequence: ErrNoReplica, ErrEmptyPrompt, a *QueueFullError or a
// *TooLongError says why not.
func (b *Batcher) Add(s Sequence) error {
	r := b.replica(s.Replica)
	if r == nil {
		return fmt.Errorf("%w: %q", ErrNoReplica, s.Replica)
	}
	if len(s.Prompt) == 0 {
		return ErrEmptyPrompt
	}
	if s.PromptOnly || r.Whole {
		s.MaxTokens = 0
	}
	s.MaxTokens = min(s.MaxTokens, r.MaxTokens-len(s.Prompt))
	enough := s.PromptOnly || s.Rows != NoRows // without output
	if s.MaxTokens < 0 || s.MaxTokens == 0 && !enough {
		return &TooLongError{Prompt: len(s.Prompt), MaxTokens: r.MaxTokens, PromptOnly: enough}
	}
	if err := r.full(s.Tenant); err != nil {
		return err
	}
	q := &sequence{Sequence: s, replica: r, tenant: b.tenant(s.Tenant)}
	q.tokens = append(make([]int32, 0, len(s.Prompt)+min(s.MaxTokens, 256)), s.Prompt...)
	q.tenant.sequences++
	if len(r.running)+len(r.waiting) == 0 {
		r.served = max(r.served, b.served)
		r.lastEnd = b.busy
	}
	b.sequences[s.ID] = q
	r.waiting = append(r.waiting, q)
	return nil
}

// full refuses a sequence when all places are taken. Some more are for tenants of whom
// nothing waits, so that nobody keeps the others out.
func (r *replica) full(tenant string) error {
	places := r.Sequences + r.Waiting
	if len(r.running)+len(r.waiting) < places {
		return nil
	}
	waits := slices.ContainsFunc(r.waiting, func(s *sequence) bool { return s.Tenant == tenant })
	if !waits && len(r.running)+len(r.waiting) < places+(r.Waiting+7)/8 {
		return nil
	}
	e := &QueueFullError{Running: len(r.running), Waiting: len(r.waiting)}
	r.refused++
	e.RetryAfter = min(time.Duration(r.interval*float64(r.refused)*float64(time.Second)), time.Minute)
	return e
}

// tenant by name. One that had nothing to do has not saved up for it: it starts where
// the one that has had the least is (arXiv:2401.00588).
func (b *Batcher) tenant(name string) *tenant {
	t := b.tenants[name]
	if t != nil && t.sequences > 0 {
		return t
	}
	least, any := 0.0, false
	for _, t := range b.tenants {
		if t.sequences > 0 && (!any || t.served < least) {
			least, any = t.served, true
		}
	}
	const most = 1024             // are remembered
	many := len(b.tenants) > most // who has so many names has no long memory of any
	for other, t := range b.tenants {
		if t.sequences == 0 && (!any || t.served <= least || many) {
			delete(b.tenants, other)
		}
	}
	if t = b.tenants[name]; t == nil {
		t = &tenant{served: least}
		b.tenants[name] = t
	}
	t.served = max(t.served, least)
	return t
}

// Cancel ends a sequence, also one whose step is running; false if there is none.
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
	if r.cache != nil {
		s.KVBlocks, s.KVUsed = r.cache.Total(), r.cache.Used()
		s.Prefix = r.cache.Prefix()
	}
	return s, true
}

// Resize changes how many extents all replicas may hold together; Reclaim makes it so.
func (b *Batcher) Resize(extents int) error { return b.slab.Resize(extents) }

// Reclaim takes extents from replicas until they hold no more than they may, and gives
// those that may have memory behind them which is not theirs any more.
func (b *Batcher) Reclaim() (discard []int32) {
	for {
		debtor := b.slab.Reclaim()
		if debtor == nil {
			break
		}
		b.repay(debtor)
	}
	if b.slab.Settled() {
		return nil
	}
	return b.slab.Discard()
}

// Settled says whether what replicas hold is within what they may, and nothing is to be
// discarded.
func (b *Batcher) Settled() bool { return b.slab.Held() <= b.slab.Budget() && b.slab.Settled() }

// Next is the next step's batch; without spans if nobody has anything to run.
// Commit or Abort must follow before the next Next, until which the batch is good.
func (b *Batcher) Next() Batch {
	for _, r := range b.replicas {
		r.tried = len(r.running)+len(r.waiting) == 0
	}
	for {
		at := -1
		for i, r := range b.replicas {
			if !r.tried && (at < 0 || r.served < b.replicas[at].served) {
				at = i
			}
		}
		if at < 0 {
			return Batch{}
		}
		r := b.replicas[at]
		r.tried = true
		if spans := b.next(r); len(spans) > 0 {
			b.replicas = append(slices.Delete(b.replicas, at, at+1), r)
			b.served = max(b.served, r.served)
			return Batch{Replica: r.Name, Spans: spans}
		}
	}
}

// Commit takes what a batch gave and how long that took: next[i] comes after Spans[i]
// where that asked for it. Outputs are in the order of the spans, and good until the
// next Commit.
func (b *Batcher) Commit(batch Batch, next []Next, took time.Duration) []Output {
	b.clock(batch, took)
	b.outputs = b.outputs[:0]
	for i, span := range batch.Spans {
		s := b.sequences[span.Sequence]
		if s == nil {
			continue // cancelled meanwhile
		}
		if o := b.commit(s, span, next[i]); o.Token != NoToken || o.Finish != "" {
			b.outputs = append(b.outputs, o)
		}
	}
	return b.outputs
}

func (b *Batcher) commit(s *sequence, span Span, next Next) Output {
	r := s.replica
	s.computed = span.Start + len(span.Tokens)
	if r.cache != nil {
		r.cache.Written(s.ID, s.tokens[:s.computed])
	}
	if span.Rows == AllRows {
		s.rows = s.computed
	}
	if s.computed >= len(s.Prompt) && !s.counted && !s.Trial {
		s.counted = true
		r.stats.PromptTokens += int64(len(s.Prompt))
	}
	if !span.Next {
		if s.MaxTokens == 0 && s.computed == len(s.Prompt) {
			return b.end(s, FinishLength, nil) // only its prompt was wanted
		}
		return Output{Token: NoToken}
	}
	if slices.Contains(s.Stop, next.Token) {
		return b.end(s, FinishStop, nil)
	}
	s.tokens = append(s.tokens, next.Token)
	if !s.Trial {
		r.stats.OutputTokens++
	}
	o := Output{Sequence: s.ID, Token: next.Token, Cached: s.cached}
	switch {
	case next.Ended:
		o = b.end(s, FinishStop, nil)
	case s.output() == s.MaxTokens:
		o = b.end(s, FinishLength, nil)
	}
	o.Token = next.Token
	return o
}

// clock counts a step's time.
func (b *Batcher) clock(batch Batch, took time.Duration) {
	b.busy += took
	r := b.replica(batch.Replica)
	if r == nil {
		return
	}
	n := batch.Tokens()
	r.pace.add(n, took)
	// A step without a measured time counts too, or a device that is too fast to measure would serve one replica only.
	r.served += max(took, time.Duration(n))
	r.stats.Busy += took
	r.stats.Steps++
	r.stats.StepTokens += int64(n)
}

// Abort ends the sequences of a batch that failed; all others go on.
func (b *Batcher) Abort(batch Batch, err error, took time.Duration) []Output {
	b.clock(batch, took)
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
	if r.cache != nil {
		r.cache.Close(s.ID)
	}
	list := &r.waiting
	if s.running {
		list = &r.running
	}
	at := slices.Index(*list, s)
	*list = slices.Delete(*list, at, at+1)
	s.running = false
	s.tenant.sequences--
	delete(b.sequences, s.ID)
	if !s.Trial {
		r.stats.Completed++
	}
	r.refused = 0
	weight := 0.2 // of the newest
	if r.interval == 0 {
		weight = 1
	}
	r.interval += weight * ((b.busy - r.lastEnd).Seconds() - r.interval)
	r.lastEnd = b.busy
	return Output{Sequence: s.ID, Token: NoToken, Finish: why, Err: err, Cached: s.cached}
}
