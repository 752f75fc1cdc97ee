//go:build cuda && cgo

package kerneltest

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/estiba/estiba/kernels/cuda"
	"github.com/estiba/estiba/runtime/backend/cuda/driver"
)

// BenchmarkAttention attends as the layers of a model do, each to keys and values of its own, so that none is in
// a cache from before. Of single tokens it gives the bytes of keys and values read in a second, of longer spans the operations.
// Emulated devices are too small for it.
//
// All lies within 16 GiB: blocks of the cache lie anywhere, and of what lies within more than that an H100 read 2,400 GB/s at most, where it read
// 3,060 of this.
func BenchmarkAttention(b *testing.B) {
	d := open(b)
	info := d.context.Info()
	const room = 16 << 30
	if info.Memory < 2*room {
		b.Skipf("%s has %d MiB; this needs %d", info.Name, info.Memory>>20, 2*room>>20)
	}
	cache, q, y := d.allocate(room), d.allocate(4*8192*4096), d.allocate(4*8192*4096)
	random := make([]uint16, 32<<20)
	r := rand.New(rand.NewPCG(1, 1))
	for i := range random {
		random[i] = uint16(r.Uint32())&0x83ff | uint16(12+r.Uint32()%4)<<10 // 2^-3 to 2
	}
	numbers := make([]float32, 8192*4096)
	for i := range numbers {
		numbers[i] = float32(r.NormFloat64())
	}
	write(d, q, numbers)
	write(d, cache, random)
	for at := int64(2 * len(random)); at < room; at *= 2 {
		check(b, d.stream.Copy(cache+cuda.Address(at), cache, min(at, room-at)))
	}

	type step struct{ heads, kvHeads, dim, batch, tokens, context int }
	var steps []step
	for _, s := range []step{{heads: 32, kvHeads: 8, dim: 128}, {heads: 32, kvHeads: 32, dim: 128}, {heads: 24, kvHeads: 8, dim: 64}, {heads: 8, kvHeads: 4, dim: 256}} {
		for _, s.batch = range []int{1, 8, 32} {
			for _, s.context = range []int{64, 1 << 10, 8 << 10, 32 << 10, 128 << 10} {
				s.tokens = 1
				steps = append(steps, s)
			}
		}
		for _, n := range [][2]int{{2048, 2048}, {8192, 8192}, {512, 8192}, {512, 32768}} {
			s.batch, s.tokens, s.context = 1, n[0], n[1]
			steps = append(steps, s)
		}
	}
	for _, s := range steps {
		b.Run(fmt.Sprintf("%dx%dx%d/%dx%d/%d", s.heads, s.kvHeads, s.dim, s.batch, s.tokens, s.context), func(b *testing.B) {
			const blockTokens = 16
			blocks := s.context / blockTokens
			half := 2 * blockTokens * s.kvHeads * s.dim
			layer := int64(2 * half * blocks * s.batch)
			layers := int(min(32, room/layer))
			if layers == 0 {
				b.Skip("too much")
			}
			launched := layers
			if s.tokens > 1 {
				launched = min(layers, 2)
			} else {
				launched = int(min(int64(layers), max(1, 2<<30/layer)))
			}
			var first, of, contexts, table []int32
			for i := range s.batch {
				first, contexts = append(first, int32(i*s.tokens)), append(contexts, int32(s.context))
				for range s.tokens {
					of = append(of, int32(i))
				}
			}
			for _, n := range r.Perm(s.batch * blocks) {
				table = append(table, int32(n))
			}
			first = append(first, int32(s.batch*s.tokens))
			a := cuda.AttentionStep{Tokens: s.batch * s.tokens, Spans: s.batch, Context: s.context, Processors: info.Processors}
			if s.tokens == 1 {
				a.Single = a.Spans
			}
			p := cuda.AttentionParams{
				Q: q, Y: y, SpanFirst: upload(d, first), SpanOf: upload(d, of), Context: upload(d, contexts), Tables: upload(d, table),
				BlockStride: int64(layers) * 2 * int64(half), TableStride: int32(blocks), BlockTokens: blockTokens,
				Heads: int32(s.heads), KVHeads: int32(s.kvHeads), HeadDim: int32(s.dim), Scale: 0.1,
			}
			p.Scratch = d.allocate(int(cuda.AttentionScratch(p, a)))
			var launches []driver.Launch
			for l := range launched {
				p.Keys = cache + cuda.Address(l*2*half)
				p.Values = p.Keys + cuda.Address(half)
				for _, l := range cuda.Attention(p, a) {
					launches = append(launches, driver.Launch{Kernel: d.kernel(l.Kernel), Grid: l.Grid, Threads: l.Threads, Shared: l.Shared, Params: l.Params, Size: l.Size})
				}
			}
			seconds := d.graphSeconds(b, launches) / float64(launched)
			if s.tokens == 1 {
				b.ReportMetric(float64(layer)/seconds/1e9, "GB/s")
			} else {
				pairs := float64(s.tokens) * (float64(s.context-s.tokens) + float64(s.tokens+1)/2)
				b.ReportMetric(4*float64(s.batch)*pairs*float64(s.heads*s.dim)/seconds/1e12, "TFLOP/s")
			}
			b.ReportMetric(seconds*1e9, "ns/op") // of one layer
		})
	}
}

// graphSeconds that a graph of launches takes, on average over the benchmark's turns.
func (d *device) graphSeconds(b *testing.B, launches []driver.Launch) float64 {
	b.Helper()
	g, err := d.stream.Capture(func() error { return d.stream.LaunchAll(launches) })
	check(b, err)
	defer func() { check(b, g.Close()) }()
	from, err := d.context.NewEvent()
	check(b, err)
	to, err := d.context.NewEvent()
	check(b, err)
	check(b, d.stream.Run(g)) // once before, so that all is there
	seconds := 0.0
	for b.Loop() {
		check(b, d.stream.Record(from))
		check(b, d.stream.Run(g))
		check(b, d.stream.Record(to))
		check(b, to.Synchronize())
		took, err := to.Since(from)
		check(b, err)
		seconds += took.Seconds()
	}
	check(b, from.Close())
	check(b, to.Close())
	return seconds / float64(b.N)
}
