package batching

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"
)

// device is a toy of a program: cells instead of keys and values. The next token
// is a function of every token read through the block table, so a batch that
// reads a wrong, stale or foreign block gives a wrong text.
type device struct {
	blockTokens int
	cells       [][]int32
}

func newDevice(r Replica) *device {
	d := &device{blockTokens: r.BlockTokens, cells: make([][]int32, r.Blocks)}
	for i := range d.cells {
		d.cells[i] = make([]int32, r.BlockTokens)
	}
	return d
}

func (d *device) run(b Batch) []int32 {
	tokens := make([]int32, len(b.Spans))
	for _, s := range b.Spans {
		for i, t := range s.Tokens {
			p := s.Start + i
			d.cells[s.Blocks[p/d.blockTokens]][p%d.blockTokens] = t
		}
	}
	for i, s := range b.Spans {
		seen := make([]int32, s.Start+len(s.Tokens))
		for p := range seen {
			seen[p] = d.cells[s.Blocks[p/d.blockTokens]][p%d.blockTokens]
		}
		tokens[i] = toy(seen)
	}
	return tokens
}

// toy is the next token after a text.
func toy(text []int32) int32 {
	h := int32(17)
	for _, t := range text {
		h = (h*31 + t + 1) % 1009
	}
	return h % 50
}

// alone is what a sequence gives when nothing shares the device.
func alone(s Sequence, context int) (text []int32, why Finish) {
	all := slices.Clone(s.Prompt)
	limit := min(s.MaxTokens, context-len(s.Prompt))
	if s.PromptOnly {
		limit = 0
	}
	for len(text) < limit {
		t := toy(all)
		if slices.Contains(s.Stop, t) {
			return text, FinishStop
		}
		text, all = append(text, t), append(all, t)
	}
	return text, FinishLength
}

func TestScenarios(t *testing.T) {
	datadriven.Walk(t, "testdata", func(t *testing.T, path string) {
		b := New()
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
					if s.Rows == AllRows {
						out.WriteString(" all rows")
					}
					if s.Next {
						out.WriteString(" next")
					}
					out.WriteByte('\n')
				}
			}
			switch d.Cmd {
			case "open":
				r := Replica{Name: name(), Blocks: num("blocks", 8), BlockTokens: num("size", 4)}
				r.MaxTokens = num("context", r.Blocks*r.BlockTokens)
				r.StepTokens, r.StepRows = num("tokens", 16), num("rows", 16)
				r.Sequences, r.Waiting = num("sequences", 4), num("waiting", 4)
				if err := b.Open(r); err != nil {
					return err.Error() + "\n"
				}
				devices[r.Name] = newDevice(r)
			case "close":
				done(b.Close(name(), errors.New("closed")))
			case "add":
				s := Sequence{ID: uint64(num("id", 0)), Replica: name(), MaxTokens: num("max", 4), AllRows: d.HasArg("all-rows"), PromptOnly: d.HasArg("prompt-only")}
				for i := range num("prompt", 0) {
					s.Prompt = append(s.Prompt, int32(num("from", 100*int(s.ID))+i))
				}
				if stop := num("stop", -1); stop >= 0 {
					s.Stop = []int32{int32(stop)}
				}
				if err := b.Add(s); err != nil {
					return err.Error() + "\n"
				}
			case "next":
				next()
			case "commit":
				done(b.Commit(flight, devices[flight.Replica].run(flight)))
			case "abort":
				done(b.Abort(flight, errors.New("the device failed")))
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
					done(b.Commit(flight, devices[flight.Replica].run(flight)))
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

// TestAnyOrder: whatever is added, cancelled and failed in whatever order, every
// sequence that ends by itself has the text that it has alone, the budgets hold,
// and no block is left behind.
func TestAnyOrder(t *testing.T) {
	for seed := range uint64(400) {
		anyOrder(t, seed)
	}
}

func FuzzAnyOrder(f *testing.F) {
	f.Add(uint64(1 << 40))
	f.Fuzz(func(t *testing.T, seed uint64) { anyOrder(t, seed) })
}

func anyOrder(t *testing.T, seed uint64) {
	r := rand.New(rand.NewPCG(seed, 2))
	b := New()
	type text struct {
		Sequence
		tokens []int32
		rows   int
		finish Finish
	}
	texts := map[uint64]*text{}
	replicas := map[string]Replica{}
	devices := map[string]*device{}
	for i := range 1 + r.IntN(3) {
		p := Replica{
			Name: fmt.Sprint("r", i), Blocks: 2 + r.IntN(20), BlockTokens: 1 + r.IntN(4),
			StepTokens: 1 + r.IntN(20), StepRows: 1 + r.IntN(8), Sequences: 1 + r.IntN(6), Waiting: r.IntN(6),
		}
		p.MaxTokens = 1 + r.IntN(p.Blocks*p.BlockTokens)
		if err := b.Open(p); err != nil {
			t.Fatal(err)
		}
		replicas[p.Name], devices[p.Name] = p, newDevice(p)
	}
	deliver := func(outputs []Output) {
		for _, o := range outputs {
			x := texts[o.Sequence]
			if x == nil || x.finish != "" {
				t.Fatalf("seed %d: sequence %d gave %+v after its end", seed, o.Sequence, o)
			}
			if o.Token != NoToken {
				x.tokens = append(x.tokens, o.Token)
			}
			x.finish = o.Finish
		}
	}
	var id uint64
	step := func() bool {
		batch := b.Next()
		if len(batch.Spans) == 0 {
			return false
		}
		p := replicas[batch.Replica]
		if batch.Tokens() > p.StepTokens || batch.Logits() > p.StepRows || len(batch.Spans) > p.Sequences {
			t.Fatalf("seed %d: a batch of %d tokens, %d rows, %d spans exceeds %+v", seed, batch.Tokens(), batch.Logits(), len(batch.Spans), p)
		}
		for _, s := range batch.Spans {
			x := texts[s.Sequence]
			if x.finish != "" || x.Replica != batch.Replica {
				t.Fatalf("seed %d: sequence %d must not run", seed, s.Sequence)
			}
			if s.Rows == AllRows {
				if s.Start != x.rows {
					t.Fatalf("seed %d: rows from %d given after %d", seed, s.Start, x.rows)
				}
				x.rows += len(s.Tokens)
			}
		}
		tokens := devices[batch.Replica].run(batch)
		if r.IntN(6) == 0 { // someone leaves while it runs
			if o, ok := b.Cancel(1 + r.Uint64N(id)); ok {
				deliver([]Output{o})
			}
		}
		if r.IntN(25) == 0 {
			for _, s := range batch.Spans {
				texts[s.Sequence].rows = 0 // ended
			}
			deliver(b.Abort(batch, errors.New("failed")))
		} else {
			deliver(b.Commit(batch, tokens))
		}
		return true
	}
	for range 40 + r.IntN(100) {
		if r.IntN(3) > 0 {
			step()
			continue
		}
		id++
		p := replicas[fmt.Sprint("r", r.IntN(len(replicas)))]
		s := Sequence{ID: id, Replica: p.Name, MaxTokens: r.IntN(2 * p.MaxTokens), AllRows: r.IntN(4) == 0, PromptOnly: r.IntN(8) == 0}
		for range r.IntN(p.MaxTokens + 2) {
			s.Prompt = append(s.Prompt, int32(r.IntN(2)))
		}
		if r.IntN(2) == 0 {
			s.Stop = []int32{int32(r.IntN(50)), int32(r.IntN(50))}
		}
		var long *TooLongError
		switch err := b.Add(s); {
		case err == nil:
			texts[id] = &text{Sequence: s}
		case errors.As(err, &long):
			if len(s.Prompt) < p.MaxTokens && s.MaxTokens > 0 {
				t.Fatalf("seed %d: a prompt of %d tokens is refused for a context of %d", seed, len(s.Prompt), p.MaxTokens)
			}
		case !errors.Is(err, ErrQueueFull) && !errors.Is(err, ErrEmptyPrompt):
			t.Fatal(err)
		}
	}
	for steps := 0; step(); steps++ {
		if steps > 200000 {
			t.Fatalf("seed %d: does not come to an end", seed)
		}
	}
	for id, x := range texts {
		switch x.finish {
		case FinishStop, FinishLength:
			want, why := alone(x.Sequence, replicas[x.Replica].MaxTokens)
			if !slices.Equal(x.tokens, want) || x.finish != why {
				t.Errorf("seed %d: sequence %d gave %v (%s), alone %v (%s)", seed, id, x.tokens, x.finish, want, why)
			}
			if x.AllRows && x.rows != len(x.Prompt) {
				t.Errorf("seed %d: %d rows given of %d", seed, x.rows, len(x.Prompt))
			}
		case "":
			t.Errorf("seed %d: sequence %d never ended", seed, id)
		}
	}
	for name := range replicas {
		if s, _ := b.Stats(name); s.KVUsed != 0 || s.Running != 0 || s.Waiting != 0 {
			t.Errorf("seed %d: %s keeps %+v", seed, name, s)
		}
	}
}
