package engine

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"testing"
	"time"

	"github.com/estiba/estiba/runtime/arch"
	"github.com/estiba/estiba/runtime/backend"
	"github.com/estiba/estiba/runtime/backend/backendtest"
	"github.com/estiba/estiba/runtime/backend/cpu"
	"github.com/estiba/estiba/runtime/tensor"
)

// BenchmarkConcurrent answers 1 to 16 requests at once with random weights in the shape of
// stories15M: each has a prompt of 32 tokens of its own and gets 64. Compare the sizes of one run.
func BenchmarkConcurrent(b *testing.B) {
	config := arch.Config{
		Architecture: "llama", Layers: 6, Hidden: 288, FFN: 768, Heads: 6, KVHeads: 6, HeadDim: 48,
		Vocabulary: 32000, MaxPositions: 256, NormEps: 1e-5, RopeTheta: 10000, BOS: 1, TiedOutput: true,
	}
	g, err := arch.Build(config)
	if err != nil {
		b.Fatal(err)
	}
	const extent, floor, step = 2 << 20, 64, 256
	device, err := cpu.New("cpu-0", cpu.Options{Extents: floor, Extent: extent})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { device.Close() })
	// 13,824 bytes a position: 18 in an eighth of an extent.
	p, err := device.Compile(b.Context(), g, backendtest.Random(g, tensor.F32, 1), backend.Limits{MaxTokens: step, MaxRows: 32, PerExtent: 8, BlockTokens: 18})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { p.Close() })
	e := New(Options{Log: slog.New(slog.NewTextHandler(io.Discard, nil)), Extents: floor})
	if err := e.Add(Replica{
		Name: "m", Program: p, PerExtent: 8, Floor: floor, BlockTokens: 18, MaxTokens: 256, Vocabulary: config.Vocabulary, StepTokens: step, StepRows: 32, Sequences: 32,
	}); err != nil {
		b.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	stopped := make(chan error, 1)
	go func() { stopped <- e.Run(ctx) }()
	b.Cleanup(func() { stop(); <-stopped })
	seed := int32(0)
	for _, n := range []int{1, 2, 4, 8, 16} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			tokens, first := 0, time.Duration(0)
			for b.Loop() {
				var all []<-chan Event
				began := time.Now()
				for range n {
					r := Request{Replica: "m", MaxTokens: 64, IgnoreStop: true}
					seed++
					for i := range int32(32) {
						r.Prompt = append(r.Prompt, (seed*977+i*31)%32000)
					}
					events, err := e.Submit(ctx, r)
					if err != nil {
						b.Fatal(err)
					}
					all = append(all, events)
				}
				for _, events := range all {
					got := 0
					for ev := range events {
						if ev.Err != nil {
							b.Fatal(ev.Err)
						}
						if ev.Finish == "" {
							if got == 0 {
								first += ev.At.Sub(began)
							}
							got++
						}
					}
					tokens += got
				}
			}
			b.ReportMetric(float64(tokens)/b.Elapsed().Seconds(), "tokens/s")
			b.ReportMetric(first.Seconds()*1000/float64(b.N*n), "ms-to-first")
		})
	}
}
