package cpu_test

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
	"time"
	"unsafe"

	"github.com/estiba/estiba/kernels/cpu"
)

// sequence is a layer of a paged cache with a sequence in it, whose blocks are in no order.
type sequence struct {
	kv     cpu.HalfKV
	same   cpu.KV // of float32
	blocks []int32
}

// newSequence has normal numbers at n positions, and what is no number everywhere else.
func newSequence(r *rand.Rand, n, blockTokens, heads, dim int) *sequence {
	s := &sequence{}
	count := (n + blockTokens - 1) / blockTokens
	width := heads * dim
	stride := 2*blockTokens*width + 24 // as if there were another layer
	data := make([]uint16, (count+2)*stride)
	for i := range data {
		data[i] = 0x7e00
	}
	s.kv = cpu.PagedHalf(data, blockTokens, width, stride)
	for _, b := range r.Perm(count + 2)[:count] {
		s.blocks = append(s.blocks, int32(b))
	}
	x := make([]float32, width)
	for i := range n {
		block, slot := s.blocks[i/blockTokens], i%blockTokens
		for _, row := range [][]uint16{s.kv.Key(block, slot), s.kv.Value(block, slot)} {
			for j := range x {
				x[j] = float32(r.NormFloat64())
			}
			cpu.PlainGo.Store(row, x)
		}
	}
	floats := make([]float32, len(data))
	for i, h := range data {
		floats[i] = cpu.F16Ref(h)
	}
	s.same = cpu.Paged(floats, blockTokens, width, stride)
	return s
}

// scratch has numbers in it that are none, as if others had used it.
func scratch(rows, dim int) []float32 {
	s := make([]float32, cpu.AttendScratch(rows, dim)+1)
	for i := range s {
		s[i] = float32(math.NaN())
	}
	return s[1:]
}

// attention is a case: queries at positions first on of a sequence.
type attention struct {
	first, queries, window           int
	blockTokens, group, kvHeads, dim int
	softCap                          float32
	scale                            float64
	seed                             uint64
}

// check compares Attend and AttendTile on a path with the definition.
func (c attention) check(t *testing.T, p cpu.Path) {
	t.Helper()
	r := rand.New(rand.NewPCG(c.seed, 7))
	s := newSequence(r, c.first+c.queries, c.blockTokens, c.kvHeads, c.dim)
	all := c.kvHeads * c.group * c.dim
	q, want := make([]float32, c.queries*all), make([]float32, c.queries*all)
	for i := range q {
		q[i] = float32(r.NormFloat64() * c.scale)
	}
	scale := float32(1 / math.Sqrt(float64(c.dim)))
	one, tile := fenced(t, len(q)), fenced(t, len(q))
	part := c.group * c.dim
	for h := range c.kvHeads {
		head := h * c.dim
		for i := range c.queries {
			end, from := c.first+i+1, 0
			if c.window > 0 {
				from = max(0, end-c.window)
			}
			at := i*all + h*part
			for g := 0; g < part; g += c.dim {
				cpu.AttendRef(want[at+g:at+g+c.dim], q[at+g:at+g+c.dim], s.same, s.blocks, from, end, head, scale, c.softCap)
			}
			p.Attend(one[at:at+part], q[at:at+part], c.group, c.dim, s.kv, s.blocks, from, end, head, scale, c.softCap, scratch(c.group, c.dim))
		}
		p.AttendTile(tile[h*part:], q[h*part:], c.queries, c.group, all, c.dim, s.kv, s.blocks, c.first, c.window, head, scale, c.softCap, scratch(c.queries*c.group, c.dim))
	}
	// A score has an error of some units of its size, which is a relative one of its weight.
	bound := 3e-6 * max(1, c.scale*c.scale*4)
	near(t, fmt.Sprintf("Attend %+v", c), one, want, bound, 1)
	near(t, fmt.Sprintf("AttendTile %+v", c), tile, want, bound, 1)
	near(t, fmt.Sprintf("AttendTile beside Attend %+v", c), tile, one, bound, 1)

	// Neither depends on what else is computed with it.
	again := make([]float32, len(q))
	for i := range c.queries {
		for h := range c.kvHeads {
			head, at := h*c.dim, i*all+h*part
			p.AttendTile(again[at:], q[at:], 1, c.group, all, c.dim, s.kv, s.blocks, c.first+i, c.window, head, scale, c.softCap, scratch(c.group, c.dim))
		}
	}
	near(t, fmt.Sprintf("AttendTile of one query %+v", c), again, tile, 0, 0)
	end, from := c.first+1, 0
	if c.window > 0 {
		from = max(0, end-c.window)
	}
	for g := 0; g < part; g += c.dim {
		p.Attend(again[g:], q[g:], 1, c.dim, s.kv, s.blocks, from, end, 0, scale, c.softCap, scratch(1, c.dim))
	}
	near(t, fmt.Sprintf("Attend of one head %+v", c), again[:part], one[:part], 0, 0)
}

func TestAttention(t *testing.T) {
	var cases []attention
	for i, dim := range []int{1, 2, 8, 15, 16, 17, 31, 32, 40, 48, 64, 72, 80, 96, 100, 112, 128, 160, 256, 511, 512} {
		cases = append(cases, attention{first: 70, queries: 5, blockTokens: []int{1, 3, 16, 64}[i%4], group: 1 + i%4, kvHeads: 1 + i%2, dim: dim, scale: 1})
	}
	for group := 1; group <= 17; group++ {
		cases = append(cases, attention{first: 13 * group, queries: 7, blockTokens: 16, group: group, kvHeads: 2, dim: 64, scale: 1})
	}
	for _, blockTokens := range []int{1, 3, 16, 64} {
		for _, first := range []int{0, 1, 15, 62, 63, 64, 127, 128, 300} {
			for _, window := range []int{0, 1, 63, 64, 100} {
				cases = append(cases, attention{first: first, queries: 1 + first%70, window: window, blockTokens: blockTokens, group: 2, kvHeads: 1, dim: 16, scale: 1})
			}
		}
	}
	cases = append(cases,
		attention{first: 2000, queries: 2, blockTokens: 16, group: 4, kvHeads: 1, dim: 64, scale: 1},
		attention{first: 0, queries: 200, blockTokens: 16, group: 1, kvHeads: 1, dim: 64, scale: 1, window: 70},
		attention{first: 100, queries: 3, blockTokens: 16, group: 3, kvHeads: 2, dim: 80, scale: 1, softCap: 50},
		attention{first: 100, queries: 3, blockTokens: 16, group: 3, kvHeads: 2, dim: 80, scale: 20, softCap: 30},
		attention{first: 100, queries: 3, blockTokens: 16, group: 3, kvHeads: 2, dim: 64, scale: 10},
	)
	eachPath(t, func(t *testing.T, p cpu.Path) {
		for i, c := range cases {
			c.seed = uint64(i)
			c.check(t, p)
		}
	})
}

func TestAttendAll(t *testing.T) {
	eachPath(t, func(t *testing.T, p cpu.Path) {
		for _, n := range []int{1, 16, 63, 65, 130} {
			for i, dim := range []int{1, 8, 15, 16, 20, 32, 64, 100} {
				group, kvHeads := 1+i%3, 2
				width, all := kvHeads*dim, kvHeads*group*dim
				k, v, q := make([]float32, n*width), make([]float32, n*width), make([]float32, n*all)
				fill(k, 1, "normal")
				fill(v, 2, "normal")
				fill(q, 3, "normal")
				kv := cpu.KV{Keys: make([]float32, n*width), Values: make([]float32, n*width), BlockTokens: n, Width: width}
				for i := range k { // as the kernel rounds them
					kv.Keys[i], kv.Values[i] = k[i], v[i]
					if p != cpu.PlainGo {
						var h [2]uint16
						p.Store(h[:], []float32{k[i], v[i]})
						kv.Keys[i], kv.Values[i] = cpu.F16(h[0]), cpu.F16(h[1])
					}
				}
				want, y := make([]float32, len(q)), fenced(t, len(q))
				for h := range kvHeads {
					for i := range n * group {
						at := i/group*all + (h*group+i%group)*dim
						cpu.AttendRef(want[at:at+dim], q[at:at+dim], kv, []int32{0}, 0, n, h*dim, 0.3, 0)
					}
					half := n / 2 // in two parts
					for _, part := range [][2]int{{0, half}, {half, n}} {
						if part[0] == part[1] {
							continue
						}
						at := part[0]*all + h*group*dim
						p.AttendAll(y[at:], q[at:], part[1]-part[0], group, all, dim, k, v, n, width, h*dim, 0.3, 0, scratch(n*group, dim))
					}
				}
				near(t, fmt.Sprintf("%d positions of %d", n, dim), y, want, 1e-5, 1)
			}
		}
	})
}

// TestAttentionNotANumber wants a value that is no number at a position to reach all that attend to it and nobody else,
// and scores that are minus infinity to count as nothing.
func TestAttentionNotANumber(t *testing.T) {
	const n, dim, group = 150, 32, 3
	eachPath(t, func(t *testing.T, p cpu.Path) {
		for _, where := range []int{0, 50, 64, 100, n - 1} {
			for _, what := range []string{"key", "value"} {
				s := newSequence(rand.New(rand.NewPCG(1, 1)), n, 16, 1, dim)
				row := s.kv.Key(s.blocks[where/16], where%16)
				if what == "value" {
					row = s.kv.Value(s.blocks[where/16], where%16)
				}
				row[3] = 0x7e00
				q := make([]float32, n*group*dim)
				fill(q, 3, "normal")
				y, one := make([]float32, len(q)), make([]float32, len(q))
				p.AttendTile(y, q, n, group, group*dim, dim, s.kv, s.blocks, 0, 60, 0, 0.1, 0, scratch(n*group, dim))
				for i := range n {
					at := i * group * dim
					p.Attend(one[at:], q[at:], group, dim, s.kv, s.blocks, max(0, i+1-60), i+1, 0, 0.1, 0, scratch(group, dim))
				}
				for i, v := range y {
					at := i / (group * dim)
					want := at >= where && at < where+60 && (what == "key" || i%dim == 3)
					if got := math.IsNaN(float64(v)); got != want {
						t.Fatalf("%s %d: AttendTile's number %d of query %d: %g", what, where, i%dim, at, v)
					}
					if got := math.IsNaN(float64(one[i])); got != want {
						t.Fatalf("%s %d: Attend's number %d of query %d: %g", what, where, i%dim, at, one[i])
					}
				}
			}
		}
		// Of huge queries some scores are minus infinity: those of the whole first step.
		s := newSequence(rand.New(rand.NewPCG(1, 1)), n, 16, 1, dim)
		one := make([]float32, dim)
		for i := range n {
			for j := range one {
				one[j] = -1
				if i >= 70 {
					one[j] = 0
				}
			}
			p.Store(s.kv.Key(s.blocks[i/16], i%16), one)
			for j := range one {
				one[j] = float32(i)
			}
			p.Store(s.kv.Value(s.blocks[i/16], i%16), one)
		}
		q, y := make([]float32, dim), make([]float32, dim)
		for j := range q {
			q[j] = 3e38
		}
		want := float32(70+n-1) / 2
		p.Attend(y, q, 1, dim, s.kv, s.blocks, 0, n, 0, 1, 0, scratch(1, dim))
		if math.Abs(float64(y[0]-want)) > 1e-3 {
			t.Errorf("Attend past minus infinity: %g, want %g", y[0], want)
		}
		p.AttendTile(y, q, 1, 1, dim, dim, s.kv, s.blocks, n-1, 0, 0, 1, 0, scratch(1, dim))
		if math.Abs(float64(y[0]-want)) > 1e-3 {
			t.Errorf("AttendTile past minus infinity: %g, want %g", y[0], want)
		}
	})
}

// TestAttendBeyond wants a panic where the block table, the cache or other memory ends too early.
func TestAttendBeyond(t *testing.T) {
	const dim = 16
	s := newSequence(rand.New(rand.NewPCG(1, 1)), 32, 16, 1, dim)
	eachPath(t, func(t *testing.T, p cpu.Path) {
		y, room := make([]float32, 3*dim), scratch(3, dim)
		for _, blocks := range [][]int32{nil, {0}, {0, 9}, {0, -1}} {
			cpu.Panics(t, fmt.Sprint("blocks ", blocks), func() { p.Attend(y, y, 1, dim, s.kv, blocks, 0, 20, 0, 1, 0, room) })
			cpu.Panics(t, fmt.Sprint("tile of blocks ", blocks), func() { p.AttendTile(y, y, 2, 1, dim, dim, s.kv, blocks, 18, 0, 0, 1, 0, room) })
		}
		if p == cpu.PlainGo { // which finds the rest out by itself, or computes nothing
			return
		}
		cpu.Panics(t, "before the first position", func() { p.Attend(y, y, 1, dim, s.kv, s.blocks, -5, 20, 0, 1, 0, room) })
		cpu.Panics(t, "no position", func() { p.Attend(y, y, 1, dim, s.kv, nil, 0, 0, 0, 1, 0, room) })
		cpu.Panics(t, "before the first head", func() { p.Attend(y, y, 1, dim, s.kv, s.blocks, 0, 20, -dim, 1, 0, room) })
		cpu.Panics(t, "a short result", func() { p.Attend(y[:dim-1], y, 1, dim, s.kv, s.blocks, 0, 20, 0, 1, 0, room) })
		cpu.Panics(t, "little scratch", func() { p.Attend(y, y, 1, dim, s.kv, s.blocks, 0, 20, 0, 1, 0, room[:dim]) })
		cpu.Panics(t, "queries that go back", func() { p.AttendTile(y, y, 2, 1, -dim, dim, s.kv, s.blocks, 0, 0, 0, 1, 0, room) })
		cpu.Panics(t, "too many queries", func() { p.AttendTile(y, y, 4, 1, dim, dim, s.kv, s.blocks, 0, 0, 0, 1, 0, scratch(4, dim)) })
		cpu.Panics(t, "all of nothing", func() { p.AttendAll(y, y, 1, 1, dim, dim, nil, nil, 0, dim, 0, 1, 0, room) })
		cpu.Panics(t, "all of too many", func() { p.AttendAll(y, y, 1, 1, dim, dim, y, y, 4, dim, 0, 1, 0, room) })
	})
}

// FuzzAttention takes a case from bytes.
func FuzzAttention(f *testing.F) {
	f.Add([]byte{64, 0, 3, 10, 2, 16, 1, 0, 64, 0, 30, 1})
	f.Add([]byte{200, 1, 70, 0, 0, 7, 2, 1, 8, 0, 0, 2})
	f.Fuzz(func(t *testing.T, data []byte) {
		b := make([]byte, 12)
		copy(b, data)
		c := attention{
			first: int(binary.LittleEndian.Uint16(b)) % 700, queries: 1 + int(b[2])%80, window: int(b[3]),
			blockTokens: []int{1, 2, 3, 5, 16, 32, 64}[b[4]%7], group: 1 + int(b[5])%17, kvHeads: 1 + int(b[6])%2,
			dim: 1 + int(binary.LittleEndian.Uint16(b[8:]))%256, softCap: float32(b[10] % 64), scale: float64(b[11]%40) / 10, seed: uint64(b[7]),
		}
		if c.dim*c.group*c.queries > 1<<12 {
			c.queries = 1
		}
		for _, p := range cpu.Available() {
			c.check(t, p)
		}
	})
}

// BenchmarkAttend decodes at position 4096 of a model with 8 heads of keys and values [128], and of a smaller one; the
// bytes are of the cache.
func BenchmarkAttend(b *testing.B) {
	const n = 4096
	for _, shape := range []struct{ kvHeads, group, dim int }{{8, 1, 128}, {8, 4, 128}, {8, 8, 128}, {4, 8, 64}, {2, 7, 64}} {
		layers := (512 << 20) / (n * shape.kvHeads * shape.dim * 4) // more than caches have
		var all []*sequence
		for range layers {
			all = append(all, newBenchSequence(b, n, 16, shape.kvHeads, shape.dim))
		}
		part := shape.group * shape.dim
		q := make([]float32, shape.kvHeads*part)
		fill(q, 1, "normal")
		y, scratch := make([]float32, len(q)), make([]float32, cpu.AttendScratch(shape.group, shape.dim))
		for _, p := range cpu.Available() {
			b.Run(fmt.Sprintf("%dx%dx%d/%s", shape.kvHeads, shape.group, shape.dim, p), func(b *testing.B) {
				b.SetBytes(int64(n * shape.kvHeads * shape.dim * 4))
				for i := 0; b.Loop(); i++ {
					s := all[i%layers]
					for h := range shape.kvHeads {
						p.Attend(y[h*part:], q[h*part:], shape.group, shape.dim, s.kv, s.blocks, 0, n, h*shape.dim, 0.1, 0, scratch)
					}
				}
			})
		}
	}
}

// newBenchSequence is a sequence in ascending blocks.
func newBenchSequence(b *testing.B, n, blockTokens, heads, dim int) *sequence {
	s := &sequence{}
	width := heads * dim
	bytes := cpu.HugePages(b, 4*n*width)
	data := unsafe.Slice((*uint16)(unsafe.Pointer(&bytes[0])), 2*n*width)
	for i := range data {
		data[i] = uint16(i*2654435761>>7)&0x83ff | 0x3800 // 0.5 to 1, or minus that
	}
	s.kv = cpu.PagedHalf(data, blockTokens, width, 2*blockTokens*width)
	for i := range n / blockTokens {
		s.blocks = append(s.blocks, int32(i))
	}
	return s
}

// BenchmarkAttendTile computes the attention of a tile at position 960 of a prompt, and reports the best; GFLOP/s counts
// what the mask leaves.
func BenchmarkAttendTile(b *testing.B) {
	const first, n = 960, 64
	for _, shape := range []struct{ group, dim int }{{1, 128}, {4, 128}, {8, 64}, {7, 64}, {3, 80}} {
		s := newBenchSequence(b, first+n, 16, 1, shape.dim)
		part := shape.group * shape.dim
		q := make([]float32, n*part)
		fill(q, 1, "normal")
		y := make([]float32, len(q))
		for _, rows := range []int{16, 64, 128} {
			queries := min(n, max(1, rows/shape.group))
			scratch := make([]float32, cpu.AttendScratch(queries*shape.group, shape.dim))
			for _, p := range cpu.Available() {
				b.Run(fmt.Sprintf("%dx%d/%d/%s", shape.group, shape.dim, rows, p), func(b *testing.B) {
					best := time.Hour
					for b.Loop() {
						start := time.Now()
						p.AttendTile(y, q, queries, shape.group, part, shape.dim, s.kv, s.blocks, first, 0, 0, 0.1, 0, scratch)
						best = min(best, time.Since(start))
					}
					b.ReportMetric(4*float64(part*queries)*(first+float64(queries+1)/2)/float64(best.Nanoseconds()), "GFLOP/s")
					b.ReportMetric(0, "ns/op")
				})
			}
		}
	}
}
