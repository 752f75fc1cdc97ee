package cuda

import "fmt"

// AttentionParams of y = softmax(cap(scale q·k)) v over a paged cache of halves: query head h attends with key head
// h / (Heads/KVHeads) to the positions up to its token's own. The keys and values of the step's tokens are in the
// cache already. What lies in blocks beyond a span's context may be anything.
//
// AttentionSlow computes with f32 queries and weights, decode with the sums of two halves each, which are as exact but for queries
// (times Scale, or Scale/SoftCap) beyond the halves' range, which become its end; prefill, and BidirectionalAttention, with
// such queries and weights rounded to halves, so that a score may be off by 2^-12 of each of its products.
// A query there that is not a number stays one; a key or a value that is not one makes neighbours of its span in
// a tile of 64 so too.
type AttentionParams struct {
	Q, Y Address // f32 [T, Heads*HeadDim]; they may not be the same
	// Position 0 of block 0 in the layer: block b is BlockStride*b bytes on, its position i KVHeads*HeadDim halves times i.
	Keys, Values  Address
	SpanFirst     Address // i32 [spans+1]: first row of each span
	SpanOf        Address // i32 [T]: span of each row
	Context       Address // i32 [spans]: positions in the cache, the step's own too
	Tables        Address // i32 [spans, TableStride]: block numbers
	Scratch       Address // as many bytes as AttentionScratch says, or BidirectionalScratch
	Bytes         Bytes   // of Y too, if AttentionGivesBytes
	BlockStride   int64   // bytes
	blockUnits    uint32
	rowUnits      uint32
	blockInverse  uint32
	TableStride   int32
	BlockTokens   int32 // times the longest context below 2^31
	Heads         int32
	KVHeads       int32 // divides Heads
	HeadDim       int32
	Window        int32 // a query attends to so many positions up to its own; 0: to all
	Scale         float32
	SoftCap       float32 // scores become SoftCap * tanh(score/SoftCap); 0: they stay
	splits        int32
	spans         int32
	least         int32
	units         int32
	tile          int32
	bidirectional int32
}

// AttentionStep is what must be known of a step before it is launched. In a graph that is captured for many steps, all
// spans have one token, and Context is the longest that there may be.
type AttentionStep struct {
	Tokens, Spans int // at most 65535 spans
	Single        int // spans of one token
	Context       int // the longest
	Processors    int // of the device
}

// MaxHeadDim that there is a kernel for.
const MaxHeadDim = 3000

// fastHeadDim is that of the kernels but attend.
const fastHeadDim = 256

// odd says that only attend can do it.
func (p *AttentionParams) odd() bool {
	return p.HeadDim%8 != 0 || p.HeadDim > fastHeadDim || p.BlockStride%16 != 0
}

// pieces of the query heads of a key head: as many blocks of attendDecode share keys and values.
func (p *AttentionParams) pieces() uint32 { return blocks(int(p.Heads/p.KVHeads), headsTogether) }

// headsTogether are the query heads that a block of attendDecode takes at once.
const headsTogether = 8

const (
	smallPart   = 128 // of a context, that a block of attendDecode is for at least
	prefillPart = 256 // and of attendPrefill
	mostParts   = 128 // SPLITS of attention.cu
	// An H100 read 8,192 positions of one sequence in 20 us with two blocks for each processor, and in 24 with more. Where that is less
	// than 4 parts they would be too different in number from processor to processor, and there are more: so one long context among short ones
	// is not a few blocks' alone, either. With 16 of them 32 by 1,024 positions took 64 us, with 6 they took 59.
	blocksPerProcessor     = 2
	manyBlocksPerProcessor = 6
	prefillsPerProcessor   = 2
)

// divide says in how many parts a context is at most.
func (p *AttentionParams) divide(s AttentionStep) int {
	units := max(1, s.Spans*int(p.KVHeads)*int(p.pieces()))
	want := blocksPerProcessor * s.Processors / units
	if want < 4 {
		want = int(blocks(manyBlocksPerProcessor*s.Processors, units))
	}
	longest := s.Context
	if p.Window > 0 {
		longest = min(longest, int(p.Window))
	}
	return max(1, min(want, int(blocks(longest, smallPart)), mostParts))
}

// divideTiles says in how many parts the contexts of tiles are at most: as many as make a block for each of the places that
// processors have for them, so that a short span behind a long context is not a few blocks' alone.
func (p *AttentionParams) divideTiles(s AttentionStep) int {
	longest := s.Context
	if p.Window > 0 {
		longest = min(longest, int(p.Window)+p.tileRows())
	}
	want := prefillsPerProcessor * s.Processors / max(1, p.tiles(s.Tokens, s.Spans)*int(p.KVHeads))
	return max(1, min(want, int(blocks(longest, prefillPart)), mostParts))
}

// tileRows are those of a tile of attendPrefill: 128 where the sums of so many are registers.
func (p *AttentionParams) tileRows() int {
	if p.HeadDim <= 64 || p.HeadDim > 96 && p.HeadDim <= 128 {
		return 128
	}
	return 64
}

// tiles of rows of the spans' queries times the query heads of a key head, at most: each span rounds up.
func (p *AttentionParams) tiles(tokens, spans int) int {
	rows := p.tileRows()
	return (tokens*int(p.Heads/p.KVHeads) + (rows-1)*spans) / rows
}

// AttentionScratch is how many bytes Attention needs for such a step, or a smaller one.
func AttentionScratch(p AttentionParams, s AttentionStep) int64 {
	if p.odd() {
		return 0
	}
	// With fewer spans, or tiles, there may be more parts, so that the products stay below this.
	blocksAtMost := int64(manyBlocksPerProcessor*s.Processors) + int64(s.Spans)*int64(p.KVHeads)*int64(p.pieces())
	rows := max(blocksAtMost*min(headsTogether, int64(p.Heads/p.KVHeads)), int64(128*prefillsPerProcessor*s.Processors))
	return 4 * rows * int64(p.HeadDim+2)
}

// AttentionGivesBytes says whether it can give Y as bytes too: where contexts are divided, by who puts the parts together.
func AttentionGivesBytes(p AttentionParams, s AttentionStep) bool {
	return !p.odd() && p.HeadDim%32 == 0 && s.Single == s.Spans && p.divide(s) > 1
}

// Attention of a step. It panics if no kernel has such heads.
func Attention(p AttentionParams, s AttentionStep) []Launch {
	p.check()
	if p.odd() {
		return []Launch{AttentionSlow(p, s)}
	}
	p.setBlocks()
	p.spans = int32(s.Spans)
	var all []Launch
	if s.Single > 0 {
		p := p
		p.splits, p.units = int32(p.divide(s)), int32(s.Spans)
		dim := 64
		for dim < int(p.HeadDim) {
			dim *= 2
		}
		grid := [3]uint32{uint32(p.KVHeads) * p.pieces(), uint32(p.splits), uint32(s.Spans)}
		shared := uint32(4*headsTogether*4*(dim+2) + 32*dim) // [warps][heads][dimensions, largest, sum], queries
		all = append(all, launch(fmt.Sprintf("attendDecode%d", dim), grid, 128, shared, &p))
		if p.splits > 1 {
			all = append(all, launch("attendCombine", [3]uint32{blocks(int(p.Heads), 4), uint32(s.Spans), 1}, 128, 0, &p))
		}
	}
	if s.Single < s.Spans {
		p := p
		p.least, p.splits, p.units, p.tile = 2, int32(p.divideTiles(s)), int32(s.Tokens), int32(p.tileRows())
		all = append(all, p.prefill(s.Tokens, s.Spans))
		if p.splits > 1 {
			all = append(all, launch("attendCombine", [3]uint32{blocks(int(p.Heads), 4), uint32(s.Tokens), 1}, 128, 0, &p))
		}
	}
	return all
}

// AttentionSlow is Attention by a kernel that is slow and simple, and takes any head dimension to MaxHeadDim.
func AttentionSlow(p AttentionParams, s AttentionStep) Launch {
	p.check()
	p.setBlocks()
	return launch("attend", [3]uint32{uint32(s.Tokens), blocks(int(p.Heads), 4), 1}, 128, uint32(4*4*2*p.HeadDim), &p)
}

// BidirectionalScratch is how many bytes BidirectionalAttention needs for so many tokens.
func BidirectionalScratch(p AttentionParams, tokens int) int64 {
	return 2 * 2 * int64(tokens) * int64(p.KVHeads*p.HeadDim)
}

// BidirectionalAttention is for encoders: each query attends to all tokens of its span. Keys and Values are those of the
// step, f32 [T, KVHeads*HeadDim], which become halves on the way; what Attention reads of a cache, and the
// window, are not used.
func BidirectionalAttention(p AttentionParams, tokens, spans int) []Launch {
	p.check()
	n := int64(tokens) * int64(p.KVHeads*p.HeadDim)
	narrow := struct {
		keys, values, halves Address
		n                    int64
	}{p.Keys, p.Values, p.Scratch, n}
	p.Keys, p.Values = p.Scratch, p.Scratch+Address(2*n)
	p.bidirectional, p.spans, p.splits, p.BlockStride, p.BlockTokens = 1, int32(spans), 1, 0, 1
	halves := launch("attendNarrow", [3]uint32{min(blocks(int(2*n), 256), 4096), 1, 1}, 256, 0, &narrow)
	// values begin at a multiple of 16 bytes where heads have one
	if p.odd() {
		return []Launch{halves, AttentionSlow(p, AttentionStep{Tokens: tokens, Spans: spans})}
	}
	return []Launch{halves, p.prefill(tokens, spans)}
}

func (p AttentionParams) prefill(tokens, spans int) Launch {
	dim := 0
	for _, d := range []int{64, 96, 128, 256} {
		if dim < int(p.HeadDim) {
			dim = d
		}
	}
	p.tile = int32(p.tileRows())
	shared := (128 + int(p.tile)) * 2 * (dim + 8) // queries, keys and values of a tile, their rows padded by 8 halves
	grid := [3]uint32{uint32(p.tiles(tokens, spans)) * uint32(p.KVHeads), 1, uint32(p.splits)}
	return launch(fmt.Sprintf("attendPrefill%d", dim), grid, 128, uint32(shared), &p)
}

func (p *AttentionParams) check() {
	if p.Heads < 1 || p.KVHeads < 1 || p.Heads%p.KVHeads != 0 || p.HeadDim < 1 || p.HeadDim > MaxHeadDim {
		panic(fmt.Sprintf("cuda: attention of %d heads of %d with %d heads of keys", p.Heads, p.HeadDim, p.KVHeads))
	}
}

// setBlocks: x*2*blockInverse>>32 is x/BlockTokens while x*BlockTokens is below 2^31.
func (p *AttentionParams) setBlocks() {
	n := int64(p.BlockTokens)
	p.blockInverse = uint32((1<<31 + n - 1) / n)
	p.blockUnits, p.rowUnits = uint32(p.BlockStride/16), uint32(p.KVHeads*p.HeadDim/8)
}
