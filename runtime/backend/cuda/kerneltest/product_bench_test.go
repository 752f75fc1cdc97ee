//go:build cuda && cgo

package kerneltest

import (
	"fmt"
	"testing"

	"github.com/estiba/estiba/kernels/cuda"
	"github.com/estiba/estiba/runtime/backend/cuda/driver"
	"github.com/estiba/estiba/runtime/tensor"
)

// BenchmarkProduct multiplies by the matrices of an 8B model (Llama 3.1's), as its layers do: a graph of as many
// copies of them as no cache holds. It gives the bytes of weights read in a second, of few rows, and the operations of many,
// with all that a product launches. Emulated devices are too small for it.
func BenchmarkProduct(b *testing.B) {
	d := open(b)
	info := d.context.Info()
	const room = 1 << 30
	if info.Memory < 4*room {
		b.Skipf("%s has %d MiB; this needs 4 GiB", info.Name, info.Memory>>20)
	}
	weights := d.allocate(room)
	x, y := d.allocate(4*2048*14336), d.allocate(4*2048*128256)
	check(b, d.stream.Fill(weights, 0, room))
	check(b, d.stream.Fill(x, 0, 4*2048*14336))

	for _, shape := range []struct {
		name string
		cols int
		n    []int
		gate cuda.Gate
	}{
		{"qkv", 4096, []int{4096, 1024, 1024}, cuda.NoGate},
		{"o", 4096, []int{4096}, cuda.NoGate},
		{"gate-up", 4096, []int{14336, 14336}, cuda.GateSwiGLU},
		{"down", 14336, []int{4096}, cuda.NoGate},
		{"output", 4096, []int{128256}, cuda.NoGate},
	} {
		for _, f := range []tensor.DType{tensor.BF16, tensor.Q8_0, tensor.Q4_0, tensor.Q4_K, tensor.Q6_K} {
			for _, rows := range []int{1, 4, 8, 16, 32, 64, 128, 256, 512, 2048} {
				if shape.name == "output" && rows > 64 {
					continue
				}
				b.Run(fmt.Sprintf("%s/%v/%d", shape.name, f, rows), func(b *testing.B) {
					size, numbers := int64(0), 0
					for _, n := range shape.n {
						size += cuda.PackedBytes(f, n, shape.cols)
						numbers += n * shape.cols
					}
					copies := int(min(max(1, (256<<20)/size), room/size))
					if rows > 64 {
						copies = min(copies, 2)
					}
					var launches []driver.Launch
					var scratch cuda.Address
					at := weights
					for range copies {
						p := cuda.Product{X: x, Rows: rows, Gate: shape.gate, Wide: wide(d)}
						to := y
						for _, n := range shape.n {
							p.Parts = append(p.Parts, cuda.Part{Weights: cuda.Weights{Data: at, Type: f, Rows: n, Cols: shape.cols}, Y: to, Stride: n})
							at += cuda.Address(cuda.PackedBytes(f, n, shape.cols))
							to += cuda.Address(4 * rows * n)
						}
						if scratch == 0 {
							s, err := d.context.Allocate(max(1, p.Scratch(info.Processors)))
							check(b, err)
							scratch = s
							defer func() { check(b, d.context.Free(s)) }()
						}
						for _, l := range p.Launches(scratch, info.Processors) {
							launches = append(launches, driver.Launch{Kernel: d.kernel(l.Kernel), Grid: l.Grid, Threads: l.Threads, Shared: l.Shared, Params: l.Params, Size: l.Size, Early: true})
						}
					}
					g, err := d.stream.Capture(func() error { return d.stream.LaunchAll(launches) })
					check(b, err)
					defer func() { check(b, g.Close()) }()
					check(b, d.stream.Run(g)) // once before, so that all is there
					from, err := d.context.NewEvent()
					check(b, err)
					to, err := d.context.NewEvent()
					check(b, err)
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
					seconds /= float64(b.N * copies)
					b.ReportMetric(float64(size)/seconds/1e9, "GB/s")
					b.ReportMetric(2*float64(rows)*float64(numbers)/seconds/1e12, "TFLOP/s")
					b.ReportMetric(seconds*1e9, "ns/op") // of one product
					check(b, from.Close())
					check(b, to.Close())
				})
			}
		}
	}
}
