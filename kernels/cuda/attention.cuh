// attention.cuh: what kernels of attention have in common.
#pragma once
#include "bytes.cuh"

namespace attention {

struct Params {
	const f32* q;                   // [T, heads, headDim]
	f32* y;                         // as q
	const u8 *keys, *values;        // of position 0 of block 0 in the layer: halves [kvHeads, headDim] a position
	const i32 *spanFirst, *spanOf;  // [spans+1] first row of each span; [T] span of each row
	const i32 *context, *tables;    // [spans] positions in the cache, this step's too; [spans, tableStride] block numbers
	f32* scratch;                   // [units, heads, splits, headDim] weighted sums of parts, then [units, heads, splits, 2] their largest score and sum
	bytes::Form bytes;              // attendCombine: of y too, of whole heads: then headDim is a multiple of 32
	i64 blockStride;                // bytes from block to block
	u32 blockUnits, rowUnits;       // the same in 16 bytes; and of a position in its block
	u32 blockInverse;               // 2^31/blockTokens, rounded up
	i32 tableStride, blockTokens, heads, kvHeads, headDim;
	i32 window;                     // 0, or to how many positions a query attends, its own the last
	f32 scale, softCap;             // softCap 0: none
	i32 splits, spans;              // parts of the context at most; spans of the step
	i32 least;                      // attendPrefill: spans of fewer tokens are attendDecode's
	i32 units;                      // whose parts are in scratch: spans, or with least the rows of the step
	i32 tile;                       // attendPrefill: rows of a tile
	i32 bidirectional;              // all queries of a span attend to all its keys, in rows of keys and values as those of q
};

constexpr f32 lowest = -3.40282347e38f, log2e = 1.44269504f;

// blockOf a position: its number in the table, position/blockTokens, while the product of the two is below 2^31.
DEVICE i32 blockOf(const Params& p, i32 position) { return i32(u64(2 * u32(position)) * p.blockInverse >> 32); }
// inBlock: bytes from the start of keys, and of values, to those of a position, of which block is that of the cache.
DEVICE i64 inBlock(const Params& p, i32 block, i32 position) {
	const i32 slot = position - blockOf(p, position) * p.blockTokens;
	return block * p.blockStride + 2 * i64(slot) * (p.kvHeads * p.headDim);
}
// unitsInBlock is inBlock in 16 bytes, with fewer instructions, and inRow from the start of the position's row on.
DEVICE u64 unitsInBlock(const Params& p, i32 block, i32 position, u32 inRow) {
	const u32 slot = u32(position - blockOf(p, position) * p.blockTokens);
	return u64(u32(block)) * p.blockUnits + (slot * p.rowUnits + inRow);
}
// rowOf a position of a span: bytes from the start of keys, and of values.
DEVICE i64 rowOf(const Params& p, i32 span, i32 first, i32 position) {
	if (p.bidirectional) return 2 * i64(first + position) * (p.kvHeads * p.headDim);
	return inBlock(p, p.tables[i64(span) * p.tableStride + blockOf(p, position)], position);
}

// power is 2^x; what is below 2^-126 is 0, which is an instruction where exp2 is four.
DEVICE f32 power(f32 x) {
#ifdef ESTIBA_EMULATED
	return exp2(x);
#else
	f32 y;
	asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
	return y;
#endif
}

DEVICE i32 smaller(i32 a, i32 b) { return a < b ? a : b; }
DEVICE i32 larger(i32 a, i32 b) { return a > b ? a : b; }

// Reach of queries: they attend to positions from to end, of which a part takes so many.
struct Reach {
	i32 from, end, part;
};
DEVICE Reach divided(const Params& p, i32 from, i32 end, i32 least) {
	const i32 part = ((end - from + p.splits - 1) / p.splits + 63) / 64 * 64;
	return {from, end, larger(part, least)}; // a short part is not worth a block
}
DEVICE i32 partsOf(const Reach& r) { return (r.end - r.from + r.part - 1) / r.part; }

// reach of the query at a span's end.
DEVICE Reach reach(const Params& p, i32 span) {
	const i32 end = p.context[span];
	return divided(p, p.window > 0 ? larger(0, end - p.window) : 0, end, 128);
}

// reachOfTile is that of all rows of a tile, the queries of a span of so many tokens times the heads of a key head. base
// is the position of the span's first token.
DEVICE Reach reachOfTile(const Params& p, i32 base, i32 tokens, i32 tile) {
	if (p.bidirectional) return {0, tokens, tokens};
	const i32 shared = p.heads / p.kvHeads, start = tile * p.tile, end = base + (smaller(start + p.tile, tokens * shared) - 1) / shared + 1;
	return divided(p, p.window > 0 ? larger(0, base + start / shared + 1 - p.window) : 0, end, 256);
}

// find which tile of which span, of so many rows, the block is for; the last tiles see most keys, so they come first.
template <int ROWS> DEVICE bool find(const Params& p, i32& tile, i32& span) {
	const i32 lane = threadIdx.x % 32, shared = p.heads / p.kvHeads;
	tile = (gridDim.x - 1 - blockIdx.x) / p.kvHeads, span = -1;
	for (i32 from = 0, before = 0; from < p.spans; from += 32) {
		const i32 i = from + lane, n = i < p.spans ? p.spanFirst[i + 1] - p.spanFirst[i] : 0;
		const i32 tiles = n >= p.least ? (n * shared + ROWS - 1) / ROWS : 0;
		i32 upTo = tiles;
		for (i32 far = 1; far < 32; far *= 2) {
			const i32 other = shuffle(upTo, u32(lane - far) & 31);
			if (lane >= far) upTo += other;
		}
		const u32 past = ballot(before + upTo > tile);
		if (past != 0) {
			const i32 found = __builtin_ctz(past);
			span = from + found;
			tile -= before + shuffle(upTo - tiles, found);
			break;
		}
		before += shuffle(upTo, 31);
	}
	return span >= 0;
}

// bent is tanh(x) to 3e-7, which is enough of a score: a reciprocal root is cheaper than a division.
DEVICE f32 bent(f32 x) {
	const f32 root = rsqrt(power(2 * log2e * x) + 1);
	return 1 - 2 * (root * root);
}

// narrowed to the halves' range, so that a large query stays a number; NaN stays NaN.
DEVICE f32 inRange(f32 x) { return x > 65504.0f ? 65504.0f : x < -65504.0f ? -65504.0f : x; }

} // namespace attention
