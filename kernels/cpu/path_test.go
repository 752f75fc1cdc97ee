package cpu

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestBest(t *testing.T) {
	for _, p := range Available() {
		t.Setenv(PathVariable, p.String())
		if got, err := Best(); got != p || err != nil {
			t.Errorf("%s=%s: %v, %v", PathVariable, p, got, err)
		}
	}
	t.Setenv(PathVariable, "mmx")
	if _, err := Best(); err == nil {
		t.Error("a path that nobody knows is taken")
	}
}

func TestRead(t *testing.T) {
	data := make([]byte, 64<<10)
	for i := range data {
		data[i] = byte(i * i >> 3)
	}
	for _, p := range Available() {
		if got, want := p.Read(data), ReadRef(data); got != want {
			t.Errorf("%s: %#x, want %#x", p, got, want)
		}
	}
}

// BenchmarkRead reads memory that no cache has, with one thread and with two. Of measurements on a machine that others
// use too the best one tells the roof, so that is reported beside the mean. Several streams, prefetching (to each
// cache, 1 to 16 KiB ahead) and longer loops were no faster than the plain loop there is (AMD Zen 4: one thread
// 31 GB/s, two 60).
func BenchmarkRead(b *testing.B) {
	const window = 24 << 20
	data := HugePages(b, 512<<20)
	for _, p := range Available() {
		for threads := 1; threads <= 2; threads++ {
			b.Run(fmt.Sprintf("%s/%d", p, threads), func(b *testing.B) {
				b.SetBytes(int64(threads * window))
				at, best := 0, time.Hour
				for b.Loop() {
					start := time.Now()
					var all sync.WaitGroup
					for range threads {
						if at += window; at+window > len(data) {
							at = 0
						}
						part := data[at : at+window]
						all.Go(func() { p.Read(part) })
					}
					all.Wait()
					best = min(best, time.Since(start))
				}
				b.ReportMetric(float64(threads*window)/best.Seconds()/1e9, "best-GB/s")
			})
		}
	}
}

// HugePages is memory for a benchmark, written once.
func HugePages(tb testing.TB, bytes int) []byte {
	data, err := unix.Mmap(-1, 0, bytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = unix.Munmap(data) })
	_ = unix.Madvise(data, unix.MADV_HUGEPAGE)
	for i := 0; i < len(data); i += 4096 {
		data[i] = 1
	}
	return data
}
