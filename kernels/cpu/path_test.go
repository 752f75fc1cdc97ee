package cpu

import (
	"testing"

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

func BenchmarkRead(b *testing.B) {
	data := HugePages(b, 512<<20)
	for _, p := range Available() {
		b.Run(p.String(), func(b *testing.B) {
			b.SetBytes(int64(len(data)))
			for b.Loop() {
				p.Read(data)
			}
		})
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
