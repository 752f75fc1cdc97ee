package cpu

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"
	"unsafe"

	"github.com/estiba/estiba/runtime/tensor"
)

// BenchmarkProduct prints what products of weights in memory (4 MiB at a time, of 256) and in the cache (256 KiB)
// read in a second, as a share of what Read reads too, and their operations. Times are the best of many, and short:
// other programs disturb. ESTIBA_CPU names the path; without it, the best is taken.
func BenchmarkProduct(b *testing.B) {
	const cols, memory, cache, window = 2048, 256 << 20, 256 << 10, 4 << 20
	p, err := Best()
	if err != nil || p == PlainGo {
		b.Skip("no path with kernels: ", err)
	}
	r := rand.New(rand.NewPCG(1, 2))
	arena := HugePages(b, memory)
	for i := 0; i < len(arena); i += 8 {
		*(*uint64)(unsafe.Pointer(&arena[i])) = r.Uint64() & 0x3f3f3f3f3f3f3f3f // no number is large
	}
	run := func(b *testing.B, d tensor.DType, size, n int) {
		panel := int(PackedBytes(d, PanelRows, cols))
		w := Packed{DType: d, Cols: cols, Rows: size / panel * PanelRows}
		w.Data = arena[:PackedBytes(d, w.Rows, cols)]
		x := prepared(p, p.Form(d, n), normal(r, n*cols), n, cols)
		y := make([]float32, n*w.Rows)
		scratch := aligned(p.ScratchBytes(d, cols, n))
		step := max(2, min(w.Panels(), window/panel, 1<<28/(n*PanelRows*cols)))
		read, multiply := time.Hour, time.Hour
		for at := 0; b.Loop(); at = (at + step) % (w.Panels() - step + 1) {
			start := time.Now()
			p.MatMul(y, w.Rows, x, w, at, at+step, scratch)
			multiply = min(multiply, time.Since(start))
			other := (at + w.Panels()/2) % (w.Panels() - step + 1) // where the product has not been
			start = time.Now()
			p.Read(w.Data[other*panel : (other+step)*panel])
			read = min(read, time.Since(start))
		}
		b.ReportMetric(float64(step*panel)/float64(multiply.Nanoseconds()), "GB/s")
		b.ReportMetric(float64(read)/float64(multiply), "of-read")
		b.ReportMetric(2*float64(n*step*PanelRows*cols)/float64(multiply.Nanoseconds()), "GOP/s")
		b.ReportMetric(0, "ns/op")
	}
	for _, d := range tensor.DTypes() {
		for _, n := range []int{1, 2, 4, 8} {
			b.Run(fmt.Sprintf("%v/%v/memory/%d", p, d, n), func(b *testing.B) { run(b, d, memory, n) })
		}
		for _, n := range []int{1, 2, 4, 8, 16, 64, 512} {
			b.Run(fmt.Sprintf("%v/%v/cache/%d", p, d, n), func(b *testing.B) { run(b, d, cache, n) })
		}
	}
}

// BenchmarkPrepare prints the best time of a row of 2048.
func BenchmarkPrepare(b *testing.B) {
	const n, cols = 64, 2048
	x := normal(rand.New(rand.NewPCG(9, 10)), n*cols)
	for _, form := range []Form{Int8, BFloat16} {
		for _, p := range Available() {
			dst := Rows{form, n, cols, aligned(RowsBytes(form, n, cols))}
			b.Run(fmt.Sprintf("%v/form%d", p, form), func(b *testing.B) {
				best := time.Hour
				for b.Loop() {
					start := time.Now()
					p.Prepare(dst, x, 0, n)
					best = min(best, time.Since(start))
				}
				b.ReportMetric(float64(best.Nanoseconds())/n, "ns/row")
				b.ReportMetric(0, "ns/op")
			})
		}
	}
}

// BenchmarkPack prints the bytes of a checkpoint that are packed in a second, at best, from memory (128 MiB) and from
// the cache (256 KiB), and the time that Read takes for them as a share of the time of packing.
func BenchmarkPack(b *testing.B) {
	const cols = 2048
	from, to := HugePages(b, 128<<20), HugePages(b, 160<<20)
	for _, p := range Available() {
		for _, d := range tensor.DTypes() {
			for _, size := range []int{128 << 20, 256 << 10} {
				from := from[:size]
				src := Matrix{DType: d, Rows: size / int(d.Bytes(cols)) / 16 * 16, Cols: cols, Data: from}
				dst := Packed{DType: d, Rows: src.Rows, Cols: cols, Data: to}
				b.Run(fmt.Sprintf("%v/%v/%dK", p, d, size>>10), func(b *testing.B) {
					read, run := time.Hour, time.Hour
					for b.Loop() {
						start := time.Now()
						p.Read(from)
						mid := time.Now()
						p.Pack(dst, src, 0, dst.Panels())
						read, run = min(read, mid.Sub(start)), min(run, time.Since(mid))
					}
					b.ReportMetric(float64(size)/float64(run.Nanoseconds()), "GB/s")
					b.ReportMetric(float64(read)/float64(run), "of-read")
					b.ReportMetric(0, "ns/op")
				})
			}
		}
	}
}
