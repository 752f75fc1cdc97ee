//go:build cuda && cgo

package kerneltest

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	cpu "github.com/estiba/estiba/kernels/cpu"
	"github.com/estiba/estiba/kernels/cuda"
)

// attentionCase is a step of attention: tokens of each span, and the positions that it then has.
type attentionCase struct {
	heads, kvHeads, dim, blockTokens, window int
	softCap, size                            float32 // size: standard deviation of queries
	tokens, context                          []int
	processors                               int
	everywhere                               bool
}

func (c attentionCase) String() string {
	return fmt.Sprintf("%d/%d heads of %d, blocks of %d, window %d, cap %g, size %g, tokens %v of %v, %d processors",
		c.heads, c.kvHeads, c.dim, c.blockTokens, c.window, c.softCap, c.size, c.tokens, c.context, c.processors)
}

// attentionStep is a case with its numbers.
type attentionStep struct {
	attentionCase
	q, keys, values           []float32 // of the cache; of the step for encoders
	halves                    []uint16
	spanFirst, spanOf, tables []int32
	contexts                  []int32
	tableStride               int
	scale                     float32
	blocks                    int
	layers, layer             int
}

func newAttentionStep(c attentionCase, r *rand.Rand) *attentionStep {
	s := &attentionStep{attentionCase: c, scale: float32(1 / math.Sqrt(float64(c.dim))), layers: 2, layer: 1}
	width := c.kvHeads * c.dim
	s.spanFirst = []int32{0}
	for i, n := range c.tokens {
		for range n {
			s.spanOf = append(s.spanOf, int32(i))
		}
		s.spanFirst = append(s.spanFirst, s.spanFirst[i]+int32(n))
		s.contexts = append(s.contexts, int32(c.context[i]))
		s.tableStride = max(s.tableStride, (c.context[i]+c.blockTokens-1)/c.blockTokens+2)
	}
	s.q = make([]float32, len(s.spanOf)*c.heads*c.dim)
	for i := range s.q {
		s.q[i] = c.size * float32(r.NormFloat64())
	}
	if c.everywhere {
		for range len(s.spanOf) * width {
			s.keys = append(s.keys, rounded(float32(r.NormFloat64())))
			s.values = append(s.values, rounded(float32(r.NormFloat64())))
		}
		return s
	}
	// Block 0, and whatever is not a position that is attended to, is NaN.
	s.blocks = 1
	s.tables = make([]int32, len(c.tokens)*s.tableStride)
	for i, n := range c.context {
		for b := range (n + c.blockTokens - 1) / c.blockTokens {
			s.tables[i*s.tableStride+b] = int32(s.blocks)
			s.blocks++
		}
	}
	order := r.Perm(s.blocks - 1)
	for i, b := range s.tables {
		if b > 0 {
			s.tables[i] = int32(order[b-1] + 1)
		}
	}
	s.halves = make([]uint16, s.blocks*s.stride())
	for i := range s.halves {
		s.halves[i] = 0x7e00
	}
	row := make([]float32, width)
	for i, n := range c.context {
		seen := 0
		if c.window > 0 {
			seen = max(0, n-c.tokens[i]+1-c.window)
		}
		for at := seen; at < n; at++ {
			for _, part := range []int{0, c.blockTokens * width} {
				for j := range row {
					row[j] = float32(r.NormFloat64())
				}
				block := int(s.tables[i*s.tableStride+at/c.blockTokens])
				cpu.PlainGo.Store(s.halves[block*s.stride()+s.layer*2*c.blockTokens*width+part+at%c.blockTokens*width:][:width], row)
			}
		}
	}
	return s
}

// rounded to a half.
func rounded(x float32) float32 {
	var h [1]uint16
	cpu.PlainGo.Store(h[:], []float32{x})
	return cpu.F16(h[0])
}

// stride is numbers from block to block.
func (s *attentionStep) stride() int { return s.layers * 2 * s.blockTokens * s.kvHeads * s.dim }

// want is the result by the definition, and of each row the bound for kernels that narrow queries, and for those that do not.
func (s *attentionStep) want() (y, narrow, exact []float32) {
	group, width := s.heads/s.kvHeads, s.kvHeads*s.dim
	y = make([]float32, len(s.q))
	kv := cpu.KV{Width: width, BlockTokens: max(1, s.blockTokens)}
	if !s.everywhere {
		data := make([]float32, len(s.halves))
		for i, h := range s.halves {
			data[i] = cpu.F16(h)
		}
		kv = cpu.Paged(data[s.layer*2*s.blockTokens*width:], s.blockTokens, width, s.stride())
	}
	for t, span := range s.spanOf {
		first, n := int(s.spanFirst[span]), s.tokens[span]
		from, to := 0, s.context[span]-n+t-first+1
		var table []int32
		switch {
		case s.everywhere:
			to, table = n, []int32{0}
			kv.Keys, kv.Values, kv.BlockTokens = s.keys[first*width:], s.values[first*width:], n
		default:
			table = s.tables[int(span)*s.tableStride:]
			if s.window > 0 {
				from = max(0, to-s.window)
			}
		}
		for h := range s.heads {
			at, head := (t*s.heads+h)*s.dim, h/group*s.dim
			q := s.q[at : at+s.dim]
			cpu.AttendRef(y[at:at+s.dim], q, kv, table, from, to, head, s.scale, s.softCap)
			// A score's rounding errors: of a float32 sum, and of each product by 2^-11 where queries are halves.
			largest, squares := 0.0, 0.0
			for k := from; k < to; k++ {
				key := kv.Key(table[k/kv.BlockTokens], k%kv.BlockTokens)[head : head+s.dim]
				all, square := 0.0, 0.0
				for i := range q {
					product := math.Abs(float64(q[i]) * float64(key[i]) * float64(s.scale))
					all += product
					square += product * product
				}
				largest, squares = max(largest, all), max(squares, square)
			}
			for range s.dim {
				exact = append(exact, float32(1e-6+2e-7*largest+1e-6*float64(s.softCap)))
				narrow = append(narrow, float32(7e-4+1e-3*math.Sqrt(squares)))
			}
		}
	}
	return y, narrow, exact
}

// params uploads the step; y is poisoned.
func (s *attentionStep) params(d *device) cuda.AttentionParams {
	width := s.kvHeads * s.dim
	p := cuda.AttentionParams{
		Q: upload(d, s.q), Y: upload(d, filled(len(s.q), float32(math.NaN()))), SpanFirst: upload(d, s.spanFirst), SpanOf: upload(d, s.spanOf), Context: upload(d, s.contexts),
		Heads: int32(s.heads), KVHeads: int32(s.kvHeads), HeadDim: int32(s.dim), Window: int32(s.window), Scale: s.scale, SoftCap: s.softCap,
	}
	if s.everywhere {
		p.Keys, p.Values = upload(d, s.keys), upload(d, s.values)
		p.Scratch = upload(d, filled(int(cuda.BidirectionalScratch(p, len(s.spanOf))), byte(0xff)))
		return p
	}
	cache := upload(d, s.halves)
	p.Keys = cache + cuda.Address(2*s.layer*2*s.blockTokens*width)
	p.Values = p.Keys + cuda.Address(2*s.blockTokens*width)
	p.BlockStride, p.BlockTokens = int64(2*s.stride()), int32(s.blockTokens)
	p.Tables, p.TableStride = upload(d, s.tables), int32(s.tableStride)
	p.Scratch = upload(d, filled(int(cuda.AttentionScratch(p, s.step())), byte(0xff)))
	return p
}

func (s *attentionStep) step() cuda.AttentionStep {
	a := cuda.AttentionStep{Tokens: len(s.spanOf), Spans: len(s.tokens), Processors: s.processors}
	for i, n := range s.tokens {
		if n == 1 {
			a.Single++
		}
		a.Context = max(a.Context, s.context[i])
	}
	return a
}

func filled[T any](n int, v T) []T {
	all := make([]T, n)
	for i := range all {
		all[i] = v
	}
	return all
}

// worst is the largest share of its bound that an error takes; NaN is more than any.
func worst(got, want, bound []float32) (share float64, at int) {
	for i, g := range got {
		err := math.Abs(float64(g)-float64(want[i])) / float64(bound[i])
		if want[i] != want[i] && g != g {
			err = 0
		}
		if !(err <= share) {
			share, at = err, i
			if err != err {
				return math.Inf(1), i
			}
		}
	}
	return share, at
}

// compare runs the slow kernel and the fast ones.
func (s *attentionStep) compare(t *testing.T, d *device) {
	t.Helper()
	want, narrow, exact := s.want()
	p := s.params(d)
	check := func(what string, bound []float32, launches ...cuda.Launch) {
		t.Helper()
		write(d, p.Y, filled(len(s.q), float32(math.NaN())))
		d.run(t, launches...)
		if share, at := worst(download[float32](d, p.Y, len(s.q)), want, bound); share > 1 {
			row := at / (s.heads * s.dim)
			t.Errorf("%s, %v: row %d, head %d, number %d: error %.3g of the bound %.3g", what, s, row, at/s.dim%s.heads, at%s.dim, share, bound[at])
		} else {
			t.Logf("%s, %v: error %.2f of the bound", what, s, share)
		}
	}
	if s.everywhere {
		check("bidirectional", narrow, cuda.BidirectionalAttention(p, len(s.spanOf), len(s.tokens))...)
		return
	}
	check("slow", exact, cuda.AttentionSlow(p, s.step()))
	bound := exact
	if s.dim%8 == 0 && s.dim <= 256 {
		bound = append([]float32(nil), exact...)
		for i := range bound {
			if s.tokens[s.spanOf[i/(s.heads*s.dim)]] > 1 {
				bound[i] = narrow[i]
			}
		}
	}
	gives := cuda.AttentionGivesBytes(p, s.step())
	if gives {
		p.Bytes = s.bytes(d)
	}
	check("attention", bound, cuda.Attention(p, s.step())...)
	if gives {
		sameBytes(t, fmt.Sprintf("attention, %v", s), d, p.Bytes, download[float32](d, p.Y, len(s.q)), s.heads*s.dim)
	}
}

// bytes that y goes to.
func (s *attentionStep) bytes(d *device) cuda.Bytes {
	_, end := cuda.BytesAt(0, len(s.spanOf), s.heads*s.dim)
	b, _ := cuda.BytesAt(d.allocate(int(end)), len(s.spanOf), s.heads*s.dim)
	return b
}

func TestAttentionDecode(t *testing.T) {
	d := open(t)
	for i, c := range []attentionCase{
		{heads: 1, kvHeads: 1, dim: 8, blockTokens: 1, tokens: []int{1}, context: []int{1}},
		{heads: 4, kvHeads: 1, dim: 16, blockTokens: 16, tokens: []int{1, 1, 1}, context: []int{15, 16, 17}},
		{heads: 8, kvHeads: 8, dim: 64, blockTokens: 16, tokens: []int{1, 1}, context: []int{300, 1}},
		{heads: 6, kvHeads: 2, dim: 128, blockTokens: 32, tokens: []int{1, 1}, context: []int{33, 700}},
		{heads: 8, kvHeads: 1, dim: 128, blockTokens: 16, tokens: []int{1}, context: []int{257}},
		{heads: 7, kvHeads: 1, dim: 80, blockTokens: 5, tokens: []int{1, 1}, context: []int{64, 90}},
		{heads: 2, kvHeads: 1, dim: 256, blockTokens: 16, tokens: []int{1}, context: []int{130}, softCap: 2, size: 3},
		{heads: 16, kvHeads: 2, dim: 256, blockTokens: 16, tokens: []int{1}, context: []int{66}, window: 64},
		{heads: 10, kvHeads: 1, dim: 24, blockTokens: 3, tokens: []int{1}, context: []int{40}, window: 1},
		{heads: 4, kvHeads: 2, dim: 32, blockTokens: 16, tokens: filled(17, 1), context: []int{1, 2, 3, 31, 32, 33, 63, 64, 65, 127, 128, 129, 255, 256, 257, 511, 512}, window: 500},
		{heads: 3, kvHeads: 1, dim: 40, blockTokens: 16, tokens: []int{1}, context: []int{1500}, processors: 64},
		{heads: 2, kvHeads: 2, dim: 192, blockTokens: 8, tokens: []int{1, 1}, context: []int{1025, 5}, processors: 100, window: 900},
		{heads: 2, kvHeads: 1, dim: 64, blockTokens: 16, tokens: []int{1}, context: []int{200}, size: 300},
		{heads: 24, kvHeads: 2, dim: 128, blockTokens: 16, tokens: []int{1, 1}, context: []int{150, 330}, processors: 8},
		{heads: 4, kvHeads: 1, dim: 120, blockTokens: 16, tokens: []int{1}, context: []int{18000}, processors: 100, softCap: 30},
	} {
		if c.size == 0 {
			c.size = 1
		}
		c.processors = max(1, c.processors)
		newAttentionStep(c, rand.New(rand.NewPCG(1, uint64(i)))).compare(t, d)
	}
}

func TestAttentionPrefill(t *testing.T) {
	d := open(t)
	for i, c := range []attentionCase{
		{heads: 1, kvHeads: 1, dim: 8, blockTokens: 16, tokens: []int{2}, context: []int{2}},
		{heads: 4, kvHeads: 2, dim: 64, blockTokens: 16, tokens: []int{65}, context: []int{65}},
		{heads: 3, kvHeads: 1, dim: 32, blockTokens: 7, tokens: []int{40, 1, 5, 2}, context: []int{100, 70, 5, 64}},
		{heads: 8, kvHeads: 1, dim: 128, blockTokens: 16, tokens: []int{17}, context: []int{130}},
		{heads: 2, kvHeads: 2, dim: 96, blockTokens: 32, tokens: []int{70}, context: []int{140}, window: 30},
		{heads: 2, kvHeads: 1, dim: 80, blockTokens: 16, tokens: []int{64}, context: []int{64}, window: 1},
		{heads: 2, kvHeads: 2, dim: 64, blockTokens: 16, tokens: []int{70}, context: []int{300}, window: 100},
		{heads: 2, kvHeads: 1, dim: 256, blockTokens: 16, tokens: []int{33}, context: []int{70}, softCap: 5, size: 4},
		{heads: 2, kvHeads: 2, dim: 192, blockTokens: 16, tokens: []int{3}, context: []int{66}},
		{heads: 5, kvHeads: 1, dim: 72, blockTokens: 16, tokens: []int{2, 2, 2, 1, 1, 2}, context: []int{2, 3, 64, 65, 1, 66}},
		{heads: 2, kvHeads: 1, dim: 16, blockTokens: 4, tokens: append(filled(33, 1), 3, 3), context: append(filled(33, 2), 9, 64)},
		{heads: 2, kvHeads: 1, dim: 64, blockTokens: 16, tokens: []int{66}, context: []int{66}, size: 50},
		{heads: 4, kvHeads: 2, dim: 128, blockTokens: 16, tokens: []int{129, 64}, context: []int{200, 64}},
		{heads: 2, kvHeads: 1, dim: 128, blockTokens: 16, tokens: []int{100}, context: []int{740}},
		{heads: 7, kvHeads: 1, dim: 112, blockTokens: 16, tokens: []int{40}, context: []int{199}, window: 77, softCap: 9, size: 2},
		// Contexts divided among blocks.
		{heads: 4, kvHeads: 2, dim: 64, blockTokens: 16, tokens: []int{3}, context: []int{1000}, processors: 16},
		{heads: 3, kvHeads: 1, dim: 40, blockTokens: 16, tokens: []int{30, 1, 2, 5}, context: []int{600, 700, 255, 257}, processors: 20},
		{heads: 2, kvHeads: 1, dim: 128, blockTokens: 32, tokens: []int{70}, context: []int{700}, window: 520, processors: 30},
		{heads: 1, kvHeads: 1, dim: 256, blockTokens: 16, tokens: []int{2, 1}, context: []int{513, 400}, softCap: 20, processors: 30},
	} {
		if c.size == 0 {
			c.size = 1
		}
		c.processors = max(1, c.processors)
		newAttentionStep(c, rand.New(rand.NewPCG(2, uint64(i)))).compare(t, d)
	}
}

// TestAttentionOdd is of heads that only the slow kernel takes.
func TestAttentionOdd(t *testing.T) {
	d := open(t)
	for i, c := range []attentionCase{
		{heads: 2, kvHeads: 1, dim: 2, blockTokens: 16, tokens: []int{1, 3}, context: []int{20, 3}},
		{heads: 5, kvHeads: 5, dim: 17, blockTokens: 3, tokens: []int{4}, context: []int{40}, window: 33},
		{heads: 3, kvHeads: 1, dim: 258, blockTokens: 16, tokens: []int{2}, context: []int{34}, softCap: 1},
		{heads: 1, kvHeads: 1, dim: 6, blockTokens: 1, tokens: []int{1}, context: []int{1}},
	} {
		c.size, c.processors = 1, 1
		newAttentionStep(c, rand.New(rand.NewPCG(3, uint64(i)))).compare(t, d)
	}
}

func TestAttentionBidirectional(t *testing.T) {
	d := open(t)
	for i, c := range []attentionCase{
		{heads: 2, kvHeads: 2, dim: 32, tokens: []int{1, 7, 64, 65}},
		{heads: 4, kvHeads: 2, dim: 64, tokens: []int{40}},
		{heads: 2, kvHeads: 1, dim: 24, tokens: []int{3, 1}, softCap: 3},
		{heads: 2, kvHeads: 2, dim: 10, tokens: []int{5, 33}},
	} {
		c.everywhere, c.size, c.context, c.blockTokens = true, 1, c.tokens, 1
		newAttentionStep(c, rand.New(rand.NewPCG(4, uint64(i)))).compare(t, d)
	}
}

// TestAttentionNotANumber: what is not a number stays in its row, and queries too large for halves are still numbers.
func TestAttentionNotANumber(t *testing.T) {
	d := open(t)
	c := attentionCase{heads: 2, kvHeads: 1, dim: 32, blockTokens: 16, size: 1, processors: 1, tokens: []int{1, 1, 10, 1}, context: []int{20, 5, 30, 7}}
	s := newAttentionStep(c, rand.New(rand.NewPCG(5, 5)))
	s.q[3] = float32(math.NaN())                                                    // row 0, head 0
	s.q[(4*s.heads+1)*s.dim+7] = float32(math.NaN())                                // row 4, head 1
	s.q[(6*s.heads+1)*s.dim+2] = 1e30                                               // row 6
	s.q[(12*s.heads)*s.dim+2] = 1e30                                                // row 12: one key alone counts
	s.halves[s.layer*2*16*32+int(s.tables[s.tableStride])*s.stride()+3*32] = 0x7e00 // a key of span 1
	want, _, _ := s.want()
	p := s.params(d)
	d.run(t, cuda.Attention(p, s.step())...)
	got := download[float32](d, p.Y, len(s.q))
	for i, w := range want {
		row, head := i/(s.heads*s.dim), i/s.dim%s.heads
		not := row == 0 && head == 0 || row == 4 && head == 1 || row == 1
		if not != (w != w) || not != (got[i] != got[i]) {
			t.Fatalf("row %d, head %d: %g, want %g", row, head, got[i], w)
		}
		if !not && math.Abs(float64(got[i]-w)) > 5e-3 {
			t.Fatalf("row %d, head %d: %g, want %g", row, head, got[i], w)
		}
	}
}

// TestAttentionAnyContext: what is launched for the longest context is right for any, as a graph needs it.
func TestAttentionAnyContext(t *testing.T) {
	d := open(t)
	for _, n := range []int{1, 127, 128, 129, 600, 1300, 9000} {
		c := attentionCase{heads: 2, kvHeads: 1, dim: 32, blockTokens: 16, size: 1, processors: 40, tokens: []int{1}, context: []int{n}}
		s := newAttentionStep(c, rand.New(rand.NewPCG(6, uint64(n))))
		want, _, exact := s.want()
		p := s.params(d)
		step := s.step()
		step.Context = 1 << 17
		p.Scratch = upload(d, filled(int(cuda.AttentionScratch(p, step)), byte(0xff)))
		if !cuda.AttentionGivesBytes(p, step) {
			t.Fatal("it gives no bytes")
		}
		p.Bytes = s.bytes(d)
		launches := cuda.Attention(p, step)
		if len(launches) != 2 || launches[0].Grid[1] != 80 {
			t.Fatalf("%d launches, the first of %v blocks", len(launches), launches[0].Grid)
		}
		d.run(t, launches...)
		if share, at := worst(download[float32](d, p.Y, len(s.q)), want, exact); share > 1 {
			t.Errorf("%d positions: number %d: error %.3g of the bound", n, at, share)
		}
		sameBytes(t, fmt.Sprintf("%d positions", n), d, p.Bytes, download[float32](d, p.Y, len(s.q)), s.heads*s.dim)
	}
}
