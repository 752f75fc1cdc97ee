//go:build cuda && cgo

package cuda

import (
	"fmt"
	"testing"

	"github.com/estiba/estiba/runtime/backend"
	"github.com/estiba/estiba/runtime/batching"
	"github.com/estiba/estiba/runtime/device"
	"github.com/estiba/estiba/runtime/sampling"
	"github.com/estiba/estiba/runtime/tensor"
)

// BenchmarkStep decodes with an 8B model (Llama 3.1's shape), a token of each sequence a step: the format, how many sequences
// there are, and how much context each has. It gives the time of a whole step, that of its graph alone, and the bytes of
// weights read in a second by the whole. With 2 layers it is small enough to be looked at kernel by kernel. Emulated devices are too
// small for it.
func BenchmarkStep(b *testing.B) {
	all, err := Devices(device.Options{})
	if err != nil || all[0].Capacity < 32<<30 {
		b.Skip("this needs a device of 32 GiB")
	}
	opened, err := New(all[0], Options{})
	if err != nil {
		b.Fatal(err)
	}
	defer opened.Close()
	const most, context = 8, 8192
	m := &measurement{t: b, b: opened.(*Backend)}
	for _, layers := range []int{32, 2} {
		c := llama(layers, 4096, 14336, 32, 8, 128, 128256)
		c.TiedOutput = false
		for _, d := range []tensor.DType{tensor.BF16, tensor.Q8_0, tensor.Q4_0, tensor.Q4_K} {
			b.Run(fmt.Sprintf("layers=%d/%v", layers, d), func(b *testing.B) {
				g := m.graph(c)
				p, err := m.b.Compile(b.Context(), g, m.hollow(g, d), backend.Limits{MaxTokens: 32, MaxRows: 32, BlockTokens: 16, Blocks: most * context / 16})
				if err != nil {
					b.Fatal(err)
				}
				defer p.Close()
				for _, sequences := range []int{1, 2, 4, 8} {
					for _, at := range []int{64, context - 1} {
						b.Run(fmt.Sprintf("%d/%d", sequences, at), func(b *testing.B) { m.step(b, p.(*program), d, sequences, at) })
					}
				}
			})
		}
	}
}

func (m *measurement) step(b *testing.B, p *program, d tensor.DType, sequences, at int) {
	out := backend.Out{Draws: make([]sampling.Draw, sequences)}
	var spans []batching.Span
	for s := range sequences {
		blocks := make([]int32, at/16+1)
		for i := range blocks {
			blocks[i] = int32(s*len(blocks) + i)
		}
		spans = append(spans, batching.Span{Tokens: []int32{int32(7 + s)}, Start: at, Blocks: blocks, Rows: batching.LastRow})
	}
	run := func() {
		if err := p.Run(b.Context(), batching.Batch{Spans: spans}, &out); err != nil {
			b.Fatal(err)
		}
	}
	run() // the capture
	for b.Loop() {
		run()
	}
	whole := b.Elapsed().Seconds() / float64(b.N)
	graph := p.graphs[graphKey{bucket(sequences, 32), stride(at/16 + 1)}]
	from, err := m.b.context.NewEvent()
	if err != nil {
		b.Fatal(err)
	}
	defer from.Close()
	to, err := m.b.context.NewEvent()
	if err != nil {
		b.Fatal(err)
	}
	defer to.Close()
	const runs = 20
	err = m.b.stream.Record(from)
	for range runs {
		if err == nil {
			err = m.b.stream.Run(graph)
		}
	}
	if err == nil {
		err = m.b.stream.Record(to)
	}
	if err == nil {
		err = to.Synchronize()
	}
	if err != nil {
		b.Fatal(err)
	}
	took, err := to.Since(from)
	if err != nil {
		b.Fatal(err)
	}
	table := d.Bytes(int64(p.graph.Vocabulary()) * 4096) // of which a row is read
	b.ReportMetric(took.Seconds()*1e6/runs, "graph-us")
	b.ReportMetric(float64(p.Bytes().Weights-table)/whole/1e9, "GB/s")
	b.ReportMetric(float64(sequences)/whole, "tokens/s")
}
