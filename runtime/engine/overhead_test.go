package engine

import (
	"context"
	"io"
	"log/slog"
	"testing"
	"time"

	"github.com/estiba/estiba/runtime/backend"
	"github.com/estiba/estiba/runtime/batching"
)

// instant is a program that takes no time: the largest logit goes round the vocabulary.
type instant struct {
	steps int
	took  time.Duration // in Run
}

func (p *instant) Run(_ context.Context, b batching.Batch, out *backend.Out) error {
	began := time.Now()
	n := b.Logits() * vocabulary
	if cap(out.Logits) < n {
		out.Logits = make([]float32, n)
	}
	out.Logits = out.Logits[:n]
	for i := range b.Logits() {
		row := out.Logits[i*vocabulary:][:vocabulary]
		clear(row)
		row[(p.steps+7*i)%vocabulary] = 1
	}
	p.steps++
	p.took += time.Since(began)
	return nil
}

func (p *instant) Bytes() backend.Bytes { return backend.Bytes{} }
func (p *instant) Close() error         { return nil }

// steady is an engine whose steps the caller takes, with so many texts under way that go
// on for a long time; drain reads what they have given. Others have filled its cache before.
func steady(t testing.TB, texts int) (e *Engine, p *instant, drain func() int) {
	const positions = 2048
	extents := texts * positions / 16 / 4
	e = New(Options{Log: slog.New(slog.NewTextHandler(io.Discard, nil)), Extents: extents})
	p = &instant{}
	r := Replica{
		Name: "m", Program: p, PerExtent: 4, Floor: extents, BlockTokens: 16, MaxTokens: positions,
		Vocabulary: vocabulary, StepRows: 32, Sequences: 32,
	}
	if err := e.Add(r); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	var all []<-chan Event
	drain = func() (tokens int) {
		for _, events := range all {
			for n := len(events); n > 0; n-- {
				if ev := <-events; ev.Finish == "" {
					tokens++
				}
			}
		}
		return tokens
	}
	for round := range 3 {
		all = nil
		for i := range texts {
			events, err := e.Submit(ctx, Request{Replica: "m", Prompt: prompt(20+i, int32(round*texts+i)), MaxTokens: positions})
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, events)
		}
		for n := 0; round < 2 && e.step(ctx) || round == 2 && n < 100; n++ {
			if round == 2 {
				e.step(ctx)
			}
			drain()
		}
	}
	return e, p, drain
}

// TestNoAllocations: a token of a text that is under way makes no garbage.
func TestNoAllocations(t *testing.T) {
	e, _, drain := steady(t, 8)
	const steps = 16
	tokens := 0
	each := testing.AllocsPerRun(50, func() {
		for range steps {
			e.step(t.Context())
		}
		tokens += drain()
	})
	if tokens != 51*steps*8 {
		t.Fatalf("%d tokens", tokens)
	}
	if each > 0 {
		t.Errorf("%g allocations in %d steps of 8 tokens", each, steps)
	}
}

// TestOverhead: the engine's own part of a step of 8 texts is within 100 µs; the quickest
// of many counts, for a machine that has other things to do.
func TestOverhead(t *testing.T) {
	e, p, drain := steady(t, 8)
	least := time.Hour
	for range 50 {
		began, before := time.Now(), p.took
		for range 16 {
			e.step(t.Context())
		}
		least = min(least, (time.Since(began)-(p.took-before))/16)
		drain()
	}
	t.Logf("%v a step", least)
	if least > 100*time.Microsecond {
		t.Errorf("%v a step", least)
	}
}

// BenchmarkOverhead is what a step of 8 texts costs beside the program's run, its
// choosing of tokens among 40 included.
func BenchmarkOverhead(b *testing.B) {
	e, p, drain := steady(b, 8)
	const steps = 1800 // until the texts end
	left := steps
	p.took = 0
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		e.step(b.Context())
		if i%16 == 15 {
			drain()
		}
		if left--; left == 0 {
			b.StopTimer()
			took := p.took
			e, p, drain = steady(b, 8)
			p.took, left = took, steps
			b.StartTimer()
		}
	}
	b.ReportMetric(float64((b.Elapsed()-p.took).Microseconds())/float64(b.N), "µs/step")
}
