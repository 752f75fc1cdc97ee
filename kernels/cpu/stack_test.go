package cpu

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/estiba/estiba/runtime/tensor"
)

// truncated maps a file of n bytes, of which the second half is gone.
func truncated(t *testing.T, n int) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, make([]byte, n), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	data, err := unix.Mmap(int(f.Fd()), 0, n, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Munmap(data) })
	if err := f.Truncate(int64(n / 2)); err != nil {
		t.Fatal(err)
	}
	return data
}

// fault runs f, which must fault, and gives the trace of the panic.
func fault(t *testing.T, f func()) (trace string) {
	t.Helper()
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		var e runtime.Error
		if err, _ := recover().(error); !errors.As(err, &e) {
			t.Errorf("recovered %v", err)
		}
	}()
	defer func() {
		deep(100) // the stack grows, and is looked through
		runtime.GC()
		trace = string(debug.Stack())
	}()
	f()
	t.Error("no fault")
	return ""
}

// deep needs a few hundred bytes of stack for each call.
func deep(n int) int {
	var pad [256]byte
	if n == 0 {
		return len(pad)
	}
	pad[n%len(pad)] = byte(n)
	return deep(n-1) + int(pad[n*7%len(pad)])
}

// TestFault has kernels read a file that somebody made shorter: that is a panic which can be
// recovered, and whose trace names the caller.
func TestFault(t *testing.T) {
	expect := func(name, caller string, f func()) {
		t.Helper()
		done := make(chan bool)
		go func() { // with a stack of its own, which is small
			defer close(done)
			if trace := fault(t, f); !strings.Contains(trace, "cpu."+caller) {
				t.Errorf("%s: no %s in\n%s", name, caller, trace)
			}
		}()
		<-done
	}
	const rows, cols = 32, 2048
	sum := make(chan uint64, 1) // or nothing would have to be read
	r := rand.New(rand.NewPCG(1, 2))
	data := truncated(t, 4*rows*cols)
	for _, p := range Available() {
		expect(p.String(), "Path.Read", func() { sum <- p.Read(data) })
		for _, d := range tensor.DTypes() {
			file := data[int64(len(data)/2)-d.Bytes(rows*cols/2):]
			src := Matrix{DType: d, Rows: rows, Cols: cols, Data: file[:d.Bytes(rows*cols)]}
			dst := packed(p, randomMatrix(r, d, rows, cols, 0))
			expect(fmt.Sprintf("%s packs %v", p, d), "Path.Pack", func() { p.Pack(dst, src, 0, dst.Panels()) })

			// Packed weights may lie in a file too.
			file = data[(len(data)/2-len(dst.Data)/2)&^63:]
			w := Packed{DType: d, Rows: rows, Cols: cols, Data: file[:len(dst.Data)]}
			for _, n := range []int{1, fewRows, 40} {
				in := prepared(p, p.Form(d, n), make([]float32, n*cols), n, cols)
				y, scratch := make([]float32, n*rows), aligned(p.ScratchBytes(d, cols, n))
				expect(fmt.Sprintf("%s multiplies %d rows with %v", p, n, d), "Path.MatMul", func() { p.MatMul(y, rows, in, w, 0, w.Panels(), scratch) })
			}
		}
	}
}

// TestStacks calls kernels, one without a stack and one with a large one, at every depth of small stacks, which grow,
// while the garbage collector runs and other goroutines want the processors.
func TestStacks(t *testing.T) {
	data := make([]byte, 64<<10)
	for i := range data {
		data[i] = byte(i * i >> 3)
	}
	const n, rows, cols = fewRows + 1, 16, 64
	r := rand.New(rand.NewPCG(3, 4))
	w, x := packed(PlainGo, randomMatrix(r, tensor.Q5_0, rows, cols, 0)), prepared(PlainGo, Int8, normal(r, n*cols), n, cols)
	product := make([]float32, n*rows)
	PlainGo.MatMul(product, rows, x, w, 0, 1, nil)
	want := ReadRef(data)
	var all sync.WaitGroup
	for g := range 64 {
		for _, p := range Available() {
			if p == PlainGo {
				continue
			}
			all.Go(func() {
				y, scratch := make([]float32, n*rows), aligned(p.ScratchBytes(tensor.Q5_0, cols, n))
				for depth := range 100 {
					got := below(g%8+depth, func() uint64 {
						p.MatMul(y, rows, x, w, 0, 1, scratch)
						return p.Read(data)
					})
					if got != want || !slices.Equal(y, product) {
						t.Errorf("%s at depth %d: %#x, want %#x; %v, want %v", p, depth, got, want, y, product)
						return
					}
				}
			})
		}
	}
	stop := make(chan bool)
	go func() {
		defer close(stop)
		all.Wait()
	}()
	for {
		select {
		case <-stop:
			return
		default:
			runtime.GC()
		}
	}
}

// below calls f with n frames of some dozens of bytes above it.
//
//go:noinline
func below(n int, f func() uint64) uint64 {
	if n == 0 {
		return f()
	}
	var pad [40]byte
	pad[n%40] = byte(n)
	return below(n-1, f) ^ uint64(pad[(n+1)%40])
}
