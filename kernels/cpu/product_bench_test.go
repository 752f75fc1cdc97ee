package cpu

import (
	"fmt"
	"math/rand/v2"
	"os"
	"testing"
	"time"
	"unsafe"

	"github.com/estiba/estiba/runtime/tensor"
)

// BenchmarkProduct runs products of weights in memory (256 MiB) and in the cache (512 KiB), and prints what they
// read in a second, its share of what Read reads right before, and the integer or float operations.
// Times are the best of many: other programs disturb.
func BenchmarkProduct(b *testing.B) {
	const cols = 2048
	r := rand.New(rand.NewPCG(1, 2))
	arena := HugePages(b, 256<<20+1<<20)
	for i := 0; i < len(arena); i += 8 {
		*(*uint64)(unsafe.Pointer(&arena[i])) = r.Uint64() & 0x3f3f3f3f3f3f3f3f
	}
	paths := Available()
	if os.Getenv(PathVariable) != "" {
		p, err := Best()
		if err != nil {
			b.Fatal(err)
		}
		paths = []Path{p}
	}
	for _, p := range paths[:len(paths)] {
		if p == PlainGo {
			continue
		}
		for _, d := range tensor.DTypes() {
			for _, size := range []int{256 << 20, 512 << 10} {
				w := Packed{DType: d, Cols: cols}
				w.Rows = size / int(PackedBytes(d, 16, cols)) * 16
				w.Data = arena[:PackedBytes(d, w.Rows, cols)]
				for _, n := range []int{1, 2, 4, 8, 64, 512} {
					if n > 8 && size > 1<<20 {
						continue
					}
					b.Run(fmt.Sprintf("%v/%v/%dK/%d", p, d, size>>10, n), func(b *testing.B) {
						x := prepared(p, p.Form(d, n), normal(r, n*cols), n, cols)
						y := make([]float32, n*w.Rows)
						scratch := aligned(p.ScratchBytes(d, cols, n))
						read, run := time.Hour, time.Hour
						for b.Loop() {
							start := time.Now()
							p.Read(w.Data)
							mid := time.Now()
							p.MatMul(y, w.Rows, x, w, 0, w.Panels(), scratch)
							read, run = min(read, mid.Sub(start)), min(run, time.Since(mid))
						}
						b.ReportMetric(float64(len(w.Data))/float64(run.Nanoseconds()), "GB/s")
						b.ReportMetric(float64(read)/float64(run), "of-read")
						b.ReportMetric(2*float64(n)*float64(w.Rows)*cols/float64(run.Nanoseconds()), "GOP/s")
						b.ReportMetric(0, "ns/op")
					})
				}
			}
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
