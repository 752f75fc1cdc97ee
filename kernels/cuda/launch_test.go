package cuda

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/estiba/estiba/runtime/tensor"
)

// kernel is a line of registers.txt.
type kernel struct {
	params          uintptr
	threads, shared uint32
}

func kernelsOf(t *testing.T) map[string]kernel {
	t.Helper()
	text, err := os.ReadFile("registers.txt")
	if err != nil {
		t.Fatal(err)
	}
	kernels := map[string]kernel{}
	for s := bufio.NewScanner(bytes.NewReader(text)); s.Scan(); {
		if s.Text() == "" || s.Text()[0] == '#' {
			continue
		}
		var k kernel
		var skip int
		var name string
		if _, err := fmt.Sscanf(s.Text(), "%d %d | %d %d %d %d | %d %d %d %d | %s", &k.params, &k.threads, &skip, &skip, &skip, &k.shared, &skip, &skip, &skip, &skip, &name); err != nil {
			t.Fatalf("registers.txt, %q: %v", s.Text(), err)
		}
		kernels[name] = k
	}
	return kernels
}

// TestLaunches: each kernel is launched by something, with parameters of the size that the compiler gave its
// struct, and no more threads and shared memory than it and the least device allow.
func TestLaunches(t *testing.T) {
	kernels := kernelsOf(t)
	launched := map[string]bool{}
	see := func(launches ...Launch) {
		for _, l := range launches {
			k, known := kernels[l.Kernel]
			most := uint32(99 << 10) // of a block on sm_86, 89 and 120
			if strings.HasPrefix(l.Kernel, "wide") {
				most = 227 << 10 // on sm_90
			}
			switch {
			case !known:
				t.Errorf("%s is launched, but no kernel", l.Kernel)
			case l.Size != k.params:
				t.Errorf("%s is launched with %d bytes of parameters; the kernel has %d", l.Kernel, l.Size, k.params)
			case l.Threads > k.threads || l.Threads%32 != 0:
				t.Errorf("%s is launched with %d threads; the kernel is for %d", l.Kernel, l.Threads, k.threads)
			case l.Shared+k.shared > most:
				t.Errorf("%s is launched with %d bytes of shared memory, beside its own %d; a block has at most %d", l.Kernel, l.Shared, k.shared, most)
			}
			launched[l.Kernel] = true
		}
	}
	see(RMSNorm(NormParams{Rows: 3, Width: 4096}), RMSNorm(NormParams{Rows: 3, Width: 1024, Heads: 8}), LayerNorm(NormParams{Rows: 3, Width: 768}))
	see(Angles(AnglesParams{Rows: 2, Pairs: 64}), Rope(RopeParams{Rows: 2, Heads: 4, KVHeads: 2, Dim: 128, Pairs: 64}))
	see(Bias(0, 0, 0, 3, 5), Add(0, 0, 0, 7), SwiGLU(0, 0, 0, 7), GeGLU(0, 0, 0, 7, true), GELU(0, 0, 7, true), Scale(0, 0, 7, 1), SoftCap(0, 0, 7, 1), Copy(0, 0, 7))
	see(Embed(EmbedParams{Type: tensor.Q8_0, TableRows: 9, Width: 64, Rows: 2}), Rows(0, 0, 0, 2, 64))
	see(Route(RouteParams{Rows: 3, Experts: 8, TopK: 2}), ExpertSum(ExpertSumParams{Width: 64, TopK: 2}, 3))
	for _, dim := range []int32{7, 32, 64, 80, 96, 128, 192, 256, 3000} {
		for _, heads := range []int32{1, 2, 4, 8} {
			p := AttentionParams{Heads: heads, KVHeads: 1, HeadDim: dim, TableStride: 16, BlockTokens: 16, BlockStride: 1 << 20}
			for _, s := range []AttentionStep{{1, 1, 1, 9999, 108}, {9, 1, 0, 9, 108}} {
				see(Attention(p, s)...)
			}
			see(AttentionSlow(p, AttentionStep{1, 1, 1, 9, 108}))
			see(BidirectionalAttention(p, 9, 1)...)
		}
	}
	see(Sample(SampleParams{Vocabulary: 128256}, 2, true)...)
	for _, d := range tensor.DTypes() {
		w := Weights{Type: d, Rows: 512, Cols: 4096}
		see(Pack(w, 0, 0, 512))
		for _, rows := range []int{1, 2, 4, 8, 16, 24, 64, 2048} {
			for _, m := range []Weights{w, {Type: d, Rows: 1024, Cols: 4096}, {Type: d, Rows: 6144, Cols: 4096}, {Type: d, Rows: 32768, Cols: 4096}} {
				p := Product{Rows: rows, Parts: []Part{{Weights: m, Stride: m.Rows}}}
				see(p.Launches(0, 108)...)
				p.Wide = true
				see(p.Launches(0, 108)...)
				p.Experts = &Experts{TopK: 2, Count: 8, Stride: PackedBytes(d, m.Rows, m.Cols)}
				see(p.Launches(0, 108)...)
			}
		}
	}
	for name := range kernels {
		if !launched[name] {
			t.Errorf("nothing here launches %s", name)
		}
	}
}

// TestModule: each device has an image.
func TestModule(t *testing.T) {
	for _, c := range []struct{ major, minor int }{{8, 0}, {8, 6}, {8, 9}, {9, 0}, {10, 0}, {12, 0}} {
		image, err := Module(c.major, c.minor)
		if err != nil || len(image) < 1000 {
			t.Errorf("%d.%d: %d bytes, %v", c.major, c.minor, len(image), err)
		}
		if machine := IsMachineCode(image); machine != (c.major < 10) {
			t.Errorf("%d.%d: machine code %v", c.major, c.minor, machine)
		}
	}
	if _, err := Module(7, 5); err == nil {
		t.Error("7.5: want an error")
	}
}
