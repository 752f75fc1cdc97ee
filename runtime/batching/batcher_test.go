package batching

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"
)

// device is a toy of a program: cells instead of keys and values. The next token
// is a function of every token read through the block table, so a batch that
// reads a wrong, stale or foreign block gives a wrong text.
type device struct {
	Replica
	cells [][]int32 // of its blocks, or of the slab's extents
	next  []Next
}

const unit = 24 // cells in an extent of a slab

func newDevice(r Replica, slab [][]int32) *device {
	if r.Blocks == 0 {
		return &device{Replica: r, cells: slab}
	}
	r.PerExtent = 1
	d := &device{Replica: r, cells: make([][]int32, r.Blocks)}
	for i := range d.cells {
		d.cells[i] = make([]int32, r.BlockTokens)
	}
	return d
}

func (d *device) cell(s Span, at int) *int32 {
	block := int(s.Blocks[at/d.BlockTokens])
	return &d.cells[block/d.PerExtent][block%d.PerExtent*d.BlockTokens+at%d.BlockTokens]
}

func (d *device) run(b Batch) []Next {
	d.next = d.next[:0]
	if d.Whole {
		return append(d.next, make([]Next, len(b.Spans))...)
	}
	for _, s := range b.Spans {
		for i, t := range s.Tokens {
			*d.cell(s, s.Start+i) = t
		}
	}
	for _, s := range b.Spans {
		h := empty
		for at := range s.Start + len(s.Tokens) {
			h.read(*d.cell(s, at))
		}
		d.next = append(d.next, h.next(s.Sequence))
	}
	return d.next
}

// toy is a text as the toy remembers it.
type toy uint32

const empty toy = 17

func (h *toy) read(token int32) { *h = *h*31 + toy(token) + 1 }

// next token after a text. Every fifth sequence may end with its token.
func (h toy) next(sequence uint64) Next {
	h ^= h >> 15
	h *= 0x2c1b3c6d
	h ^= h >> 12
	return Next{Token: int32(h % 50), Ended: sequence%5 == 0 && h>>8%16 == 0}
}

// alone is what a sequence gives when nothing shares the device.
func alone(s Sequence, r Replica) (text []int32, why Finish) {
	limit := min(s.MaxTokens, r.MaxTokens-len(s.Prompt))
	if s.PromptOnly || r.Whole {
		limit = 0
	}
	h := empty
	for _, t := range s.Prompt {
		h.read(t)
	}
	for len(text) < limit {
		n := h.next(s.ID)
		if slices.Contains(s.Stop, n.Token) {
			return text, FinishStop
		}
		h.read(n.Token)
		if text = append(text, n.Token); n.Ended {
			return text, FinishStop
		}
	}
	return text, FinishLength
}

func TestScenarios(t *testing.T) {
	datadriven.Walk(t, "testdata", func(t *testing.T, path string) {
		b := New(0)
		var slab [][]int32
		devices := map[string]*device{}
		var flight Batch
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			num := func(key string, value int) int {
				if d.HasArg(key) {
					d.ScanArgs(t, key, &value)
				}
				return value
			}
			name := func() (s string) {
				d.ScanArgs(t, "replica", &s)
				return s
			}
			var out strings.Builder
			done := func(outputs []Output) {
				for _, o := range outputs {
					fmt.Fprintf(&out, "  %d:", o.Sequence)
					if o.Token != NoToken {
						fmt.Fprintf(&out, " token %d", o.Token)
					}
					if o.Finish != "" {
						fmt.Fprintf(&out, " %s", o.Finish)
					}
					if o.Finish != "" && o.Cached > 0 {
						fmt.Fprintf(&out, " cached=%d", o.Cached)
					}
					if o.Err != nil {
						fmt.Fprintf(&out, " (%v)", o.Err)
					}
					out.WriteByte('\n')
				}
			}
			next := func() {
				if flight = b.Next(); len(flight.Spans) == 0 {
					out.WriteString("nothing to run\n")
					return
				}
				fmt.Fprintf(&out, "%s: %d tokens, %d rows\n", flight.Replica, flight.Tokens(), flight.Logits())
				for _, s := range flight.Spans {
					fmt.Fprintf(&out, "  %d: positions %d-%d blocks %v", s.Sequence, s.Start, s.Start+len(s.Tokens)-1, s.Blocks)
					switch {
					case s.Rows == AllRows:
						out.WriteString(" all rows")
					case s.Rows == LastRow && !s.Next:
						out.WriteString(" last row")
					}
					if s.Next {
						out.WriteString(" next")
					}
					out.WriteByte('\n')
				}
			}
			took := func() time.Duration { return time.Duration(num("ms", 0)) * time.Millisecond }
			switch d.Cmd {
			case "slab":
				b = New(num("extents", 4))
				slab = make([][]int32, num("extents", 4))
				for i := range slab {
					slab[i] = make([]int32, unit)
				}
			case "resize":
				if err := b.Resize(num("extents", 4)); err != nil {
					return err.Error() + "\n"
				}
				fmt.Fprintf(&out, "settled: %t", b.Settled())
				fmt.Fprintf(&out, ", discard %v, settled: %t\n", b.Reclaim(), b.Settled())
			case "open":
				r := Replica{Name: name(), Blocks: num("blocks", 8), BlockTokens: num("size", 4), PerExtent: num("per-extent", 1), Floor: num("floor", 0), Whole: d.HasArg("whole")}
				if d.HasArg("floor") || r.Whole {
					r.Blocks = 0
				}
				r.MaxTokens = num("context", max(r.Blocks, r.Floor*r.PerExtent)*r.BlockTokens)
				r.StepTokens, r.StepRows = num("tokens", 16), num("rows", 16)
				r.Sequences, r.Waiting = num("sequences", 4), num("waiting", 4)
				if err := b.Open(r); err != nil {
					return err.Error() + "\n"
				}
				devices[r.Name] = newDevice(r, slab)
			case "close":
				done(b.Close(name(), errors.New("closed")))
			case "add":
				s := Sequence{ID: uint64(num("id", 0)), Replica: name(), MaxTokens: num("max", 4), PromptOnly: d.HasArg("prompt-only"), Trial: d.HasArg("trial")}
				if d.HasArg("tenant") {
					d.ScanArgs(t, "tenant", &s.Tenant)
				}
				switch {
				case d.HasArg("all-rows"):
					s.Rows = AllRows
				case d.HasArg("last-row"):
					s.Rows = LastRow
				}
				for i := range num("prompt", 0) {
					s.Prompt = append(s.Prompt, int32(num("from", 100*int(s.ID))+i))
				}
				if stop := num("stop", -1); stop >= 0 {
					s.Stop = []int32{int32(stop)}
				}
				if err := b.Add(s); err != nil {
					var full *QueueFullError
					if errors.As(err, &full) && full.RetryAfter > 0 {
						return fmt.Sprintf("%v, again after %v\n", err, full.RetryAfter)
					}
					return err.Error() + "\n"
				}
			case "next":
				next()
			case "commit":
				done(b.Commit(flight, devices[flight.Replica].run(flight), took()))
			case "abort":
				done(b.Abort(flight, errors.New("the device failed"), took()))
			case "cancel":
				o, ok := b.Cancel(uint64(num("id", 0)))
				if !ok {
					return "no such sequence\n"
				}
				done([]Output{o})
			case "steps":
				for range num("n", 1) {
					if next(); len(flight.Spans) == 0 {
						break
					}
					done(b.Commit(flight, devices[flight.Replica].run(flight), took()))
				}
			case "stats":
				s, ok := b.Stats(name())
				if !ok {
					return "no such replica\n"
				}
				fmt.Fprintf(&out, "running %d, waiting %d, blocks %d of %d, completed %d, preempted %d, tokens %d in %d out, prefix %d of %d\n",
					s.Running, s.Waiting, s.KVUsed, s.KVBlocks, s.Completed, s.Preempted, s.PromptTokens, s.OutputTokens, s.Prefix.Hits, s.Prefix.Queries)
			default:
				t.Fatalf("unknown command %q", d.Cmd)
			}
			if out.Len() == 0 {
				return "ok\n"
			}
			return out.String()
		})
	})
}

// TestMillionSteps: whatever is added, cancelled and failed in whatever order, while
// several replicas lend each other blocks of a slab whose size changes, every
// sequence that ends by itself has the text that it has alone, the budgets hold,
// and no block is left behind.
func TestMillionSteps(t *testing.T) {
	const million = 1_000_000
	var all effects
	for seed := uint64(0); all.steps < million; seed++ {
		all.add(anyOrder(t, seed))
	}
	t.Logf("%+v", all)
	if all.preempted*100 < all.steps || all.lent*20 < all.steps || all.hits*20 < all.queries {
		t.Errorf("too little happened: %+v", all)
	}
}

func FuzzAnyOrder(f *testing.F) {
	f.Add(uint64(1 << 40))
	f.Fuzz(func(t *testing.T, seed uint64) { anyOrder(t, seed) })
}

// effects are what a test wants to have seen.
type effects struct {
	steps, preempted, lent int64 // lent: steps of a replica that holds more than its floor
	queries, hits          int64
}

func (e *effects) add(o effects) {
	e.steps += o.steps
	e.preempted += o.preempted
	e.lent += o.lent
	e.queries += o.queries
	e.hits += o.hits
}

// random is a run of anyOrder.
type random struct {
	*testing.T
	*rand.Rand
	seed     uint64
	b        *Batcher
	slab     [][]int32
	replicas []*device
	opened   int
	texts    map[uint64]*text
	id       uint64
	seen     effects
}

type text struct {
	Sequence
	of     Replica
	tokens []int32
	rows   int
	finish Finish
}

func (r *random) fatalf(format string, args ...any) {
	r.Helper()
	r.Fatalf("seed %d: %s", r.seed, fmt.Sprintf(format, args...))
}

// open adds a replica: with blocks of its own, in the slab, or without any.
func (r *random) open() {
	p := Replica{
		Name: fmt.Sprint("r", r.opened), StepTokens: 1 + r.IntN(20), StepRows: 1 + r.IntN(8), Sequences: 1 + r.IntN(6), Waiting: r.IntN(6),
	}
	r.opened++
	room := r.b.slab.Budget() - r.b.slab.Floors()
	switch what := r.IntN(8); {
	case what == 0:
		p.Whole, p.MaxTokens = true, 1+r.IntN(min(p.StepTokens, p.StepRows))
	case what == 1 || room == 0:
		p.Blocks, p.BlockTokens = 2+r.IntN(20), 1+r.IntN(4)
		p.MaxTokens = 1 + r.IntN(p.Blocks*p.BlockTokens)
	default:
		p.PerExtent = 1 + r.IntN(6)
		p.BlockTokens = 1 + r.IntN(unit/p.PerExtent)
		p.Floor = 1 + r.IntN(min(room, 4))
		p.MaxTokens = 1 + r.IntN(min(p.Floor*p.PerExtent*p.BlockTokens, 60))
	}
	if err := r.b.Open(p); err != nil {
		r.fatalf("%v", err)
	}
	r.replicas = append(r.replicas, newDevice(p, r.slab))
}

func (r *random) deliver(outputs []Output) {
	for _, o := range outputs {
		x := r.texts[o.Sequence]
		if x == nil || x.finish != "" {
			r.fatalf("sequence %d gave %+v after its end", o.Sequence, o)
		}
		if o.Token != NoToken {
			x.tokens = append(x.tokens, o.Token)
		}
		if x.finish = o.Finish; o.Finish == "" {
			continue
		}
		switch o.Finish {
		case FinishStop, FinishLength:
			want, why := alone(x.Sequence, x.of)
			if !slices.Equal(x.tokens, want) || x.finish != why {
				r.fatalf("sequence %d gave %v (%s), alone %v (%s)", x.ID, x.tokens, x.finish, want, why)
			}
			if x.Rows == AllRows && x.rows != len(x.Prompt) || x.Rows == LastRow && x.PromptOnly && x.rows != 1 {
				r.fatalf("sequence %d: %d rows given of %d", x.ID, x.rows, len(x.Prompt))
			}
		}
		delete(r.texts, x.ID)
	}
}

func (r *random) step() bool {
	if r.IntN(30) == 0 {
		if err := r.b.Resize(r.b.slab.Floors() + r.IntN(len(r.slab)-r.b.slab.Floors()+1)); err != nil {
			r.fatalf("%v", err)
		}
	}
	if !r.b.Settled() && r.IntN(3) > 0 { // or a step comes between
		for _, e := range r.b.Reclaim() {
			for i := range r.slab[e] {
				r.slab[e][i] = -1
			}
		}
	}
	batch := r.b.Next()
	if len(batch.Spans) == 0 {
		return false
	}
	r.seen.steps++
	at := slices.IndexFunc(r.replicas, func(d *device) bool { return d.Name == batch.Replica })
	p := r.replicas[at]
	if batch.Tokens() > p.StepTokens || batch.Logits() > p.StepRows || len(batch.Spans) > p.Sequences {
		r.fatalf("a batch of %d tokens, %d rows, %d spans exceeds %+v", batch.Tokens(), batch.Logits(), len(batch.Spans), p.Replica)
	}
	for _, s := range batch.Spans {
		x := r.texts[s.Sequence]
		if x == nil || x.Replica != batch.Replica || p.Whole && (s.Start > 0 || len(s.Tokens) < len(x.Prompt)) {
			r.fatalf("sequence %d must not run %+v", s.Sequence, s)
		}
		switch {
		case s.Rows == AllRows:
			if s.Start != x.rows {
				r.fatalf("rows from %d given after %d", s.Start, x.rows)
			}
			x.rows += len(s.Tokens)
		case s.Rows == LastRow && x.Rows == LastRow:
			x.rows = 1
		}
	}
	if own := r.b.replica(p.Name); own.cache != nil && p.Blocks == 0 && own.cache.Held() > p.Floor {
		r.seen.lent++
	}
	next := p.run(batch)
	took := time.Duration(r.IntN(3)*r.IntN(40)) * time.Millisecond
	if r.IntN(6) == 0 { // someone leaves while it runs
		if o, ok := r.b.Cancel(1 + r.Uint64N(r.id)); ok {
			r.deliver([]Output{o})
		}
	}
	switch r.IntN(60) {
	case 0:
		r.deliver(r.b.Abort(batch, errors.New("failed"), took))
	case 1: // its model goes while it runs
		r.close(at)
		r.deliver(r.b.Commit(batch, next, took))
	default:
		r.deliver(r.b.Commit(batch, next, took))
	}
	return true
}

// close takes a replica off the device.
func (r *random) close(at int) {
	name := r.replicas[at].Name
	before, _ := r.b.Stats(name)
	r.seen.preempted += before.Preempted
	r.seen.queries += before.Prefix.Queries
	r.seen.hits += before.Prefix.Hits
	if gone := r.b.Close(name, errors.New("closed")); len(gone) != before.Running+before.Waiting {
		r.fatalf("%d of %d sequences ended", len(gone), before.Running+before.Waiting)
	} else {
		r.deliver(gone)
	}
	r.replicas = slices.Delete(r.replicas, at, at+1)
}

func (r *random) add() {
	r.id++
	p := r.replicas[r.IntN(len(r.replicas))]
	s := Sequence{
		ID: r.id, Replica: p.Name, Tenant: fmt.Sprint("t", r.IntN(3)), MaxTokens: r.IntN(2 * p.MaxTokens),
		Rows: []Rows{NoRows, NoRows, NoRows, LastRow, AllRows}[r.IntN(5)], PromptOnly: r.IntN(8) == 0, Trial: r.IntN(20) == 0,
	}
	for range r.IntN(p.MaxTokens + 2) {
		s.Prompt = append(s.Prompt, int32(r.IntN(8)/7))
	}
	if r.IntN(2) == 0 {
		s.Stop = []int32{int32(r.IntN(50)), int32(r.IntN(50))}
	}
	for n := 1 + r.IntN(4)/3*r.IntN(4); n > 0; n-- { // some ask for the same several times at once
		var long *TooLongError
		switch err := r.b.Add(s); {
		case err == nil:
			r.texts[s.ID] = &text{Sequence: s, of: p.Replica}
		case errors.As(err, &long):
			if len(s.Prompt) < p.MaxTokens && s.MaxTokens > 0 && !p.Whole {
				r.fatalf("a prompt of %d tokens is refused for a context of %d", len(s.Prompt), p.MaxTokens)
			}
		case !errors.Is(err, ErrQueueFull) && !errors.Is(err, ErrEmptyPrompt):
			r.fatalf("%v", err)
		}
		r.id++
		s.ID = r.id
	}
}

func anyOrder(t *testing.T, seed uint64) effects {
	r := &random{T: t, Rand: rand.New(rand.NewPCG(seed, 2)), seed: seed, texts: map[uint64]*text{}}
	r.slab = make([][]int32, 1+r.IntN(12))
	for i := range r.slab {
		r.slab[i] = make([]int32, unit)
	}
	r.b = New(len(r.slab))
	for range 1 + r.IntN(4) {
		r.open()
	}
	for range 400 {
		switch {
		case len(r.replicas) == 0 || len(r.replicas) < 5 && r.IntN(100) == 0:
			r.open()
		case r.IntN(3) > 0:
			r.step()
		default:
			r.add()
		}
	}
	for steps := 0; r.step(); steps++ {
		if steps > 200000 {
			r.fatalf("does not come to an end")
		}
	}
	for id, x := range r.texts {
		r.fatalf("sequence %d never ended: %+v", id, x)
	}
	for _, p := range r.replicas {
		if s, _ := r.b.Stats(p.Name); s.KVUsed != 0 || s.Running != 0 || s.Waiting != 0 {
			r.fatalf("%s keeps %+v", p.Name, s)
		}
	}
	for name, t := range r.b.tenants {
		if t.sequences != 0 {
			r.fatalf("tenant %s keeps %d sequences", name, t.sequences)
		}
	}
	for len(r.replicas) > 0 {
		r.close(0)
	}
	if r.b.slab.Held()+r.b.slab.Floors() != 0 || len(r.b.sequences) != 0 {
		r.fatalf("%d extents, %d sequences are left", r.b.slab.Held(), len(r.b.sequences))
	}
	return r.seen
}
