// attention.cu: y = softmax(cap(scale q·k)) v of each query head, over a paged cache of halves, or, for
// encoders, over the keys and values of the step. Spans of one token are taken by attendDecode*, longer
// spans by attendPrefill*, in tiles of 64 rows by 64 keys on tensor cores. Where there are few of them both
// divide a context among blocks, and have attendCombine put the parts together. attend does any of it, of
// any head dimension, slowly: it is what the others are compared with, and what is left to odd shapes.
// Sources: arXiv:1805.02867 (the running maximum), arXiv:2307.08691 (tiles).
#include "gpu.cuh"

namespace attention {

struct Params {
	const f32* q;                   // [T, heads, headDim]
	f32* y;                         // as q
	const u8 *keys, *values;        // of position 0 of block 0 in the layer: halves [kvHeads, headDim] a position
	const i32 *spanFirst, *spanOf;  // [spans+1] first row of each span; [T] span of each row
	const i32 *context, *tables;    // [spans] positions in the cache, this step's too; [spans, tableStride] block numbers
	f32* scratch;                   // [units, heads, splits, headDim] weighted sums of parts, then [units, heads, splits, 2] their largest score and sum
	i64 blockStride;                // bytes from block to block
	u32 blockUnits, blockInverse;   // the same in 16 bytes; 2^31/blockTokens, rounded up
	i32 tableStride, blockTokens, heads, kvHeads, headDim;
	i32 window;                     // 0, or to how many positions a query attends, its own the last
	f32 scale, softCap;             // softCap 0: none
	i32 splits, spans;              // parts of the context at most; spans of the step
	i32 least;                      // attendPrefill: spans of fewer tokens are attendDecode's
	i32 units;                      // whose parts are in scratch: spans, or with least the rows of the step
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
// unitsInBlock is inBlock in 16 bytes, with fewer instructions. A row of the cache has so many units.
DEVICE u64 unitsInBlock(const Params& p, i32 block, i32 position, u32 row) {
	const u32 slot = u32(position - blockOf(p, position) * p.blockTokens);
	return u64(u32(block)) * p.blockUnits + slot * row;
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

// A warp has a row and a query head: first each lane a key, then each lane a dimension of the values.
DEVICE void general(const Params& p) {
	const i32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, row = blockIdx.x, head = blockIdx.y * 4 + warp, dim = p.headDim;
	if (head >= p.heads) return;
	const i32 span = p.spanOf[row], first = p.spanFirst[span], tokens = p.spanFirst[span + 1] - first;
	const i32 end = p.bidirectional ? tokens : p.context[span] - tokens + (row - first) + 1;
	const i32 from = !p.bidirectional && p.window > 0 ? larger(0, end - p.window) : 0;
	const i64 at = (i64(row) * p.heads + head) * dim, inRow = 2 * i64(head / (p.heads / p.kvHeads)) * dim;
	f32 *q = (f32*)dynamicShared() + warp * 2 * dim, *y = q + dim;
	for (i32 d = lane; d < dim; d += 32) q[d] = p.q[at + d], y[d] = 0;
	warpBarrier();
	f32 largest = lowest, sum = 0;
	for (i32 k = from; k < end; k += 32) {
		f32 score = -infinity();
		if (k + lane < end) {
			const u16* key = (const u16*)(p.keys + rowOf(p, span, first, k + lane) + inRow);
			f32 dot = 0;
			for (i32 d = 0; d < dim; d++) dot = fmaf(q[d], fromHalf(key[d]), dot);
			score = p.scale * dot;
			if (p.softCap != 0) score = p.softCap * tanh(score / p.softCap);
		}
		const f32 most = fmaxf(largest, warpMax(score)), shrink = exp(largest - most);
		const f32 weight = k + lane < end ? exp(score - most) : 0;
		largest = most;
		sum = sum * shrink + warpSum(weight);
		const i32 keys = smaller(32, end - k);
		for (i32 d = lane; d - lane < dim; d += 32) {
			f32 part = d < dim ? y[d] * shrink : 0;
			for (i32 i = 0; i < keys; i++) {
				const f32 w = shuffle(weight, i);
				if (d < dim) part = fmaf(w, fromHalf(((const u16*)(p.values + rowOf(p, span, first, k + i) + inRow))[d]), part);
			}
			if (d < dim) y[d] = part;
		}
	}
	for (i32 d = lane; d < dim; d += 32) p.y[at + d] = end > from ? y[d] / sum : 0;
}

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

// reachOfTile is that of all 64 rows of a tile, the queries of a span of so many tokens times the heads of a key head. base
// is the position of the span's first token.
DEVICE Reach reachOfTile(const Params& p, i32 base, i32 tokens, i32 tile) {
	if (p.bidirectional) return {0, tokens, tokens};
	const i32 shared = p.heads / p.kvHeads, end = base + (smaller(tile * 64 + 64, tokens * shared) - 1) / shared + 1;
	return divided(p, p.window > 0 ? larger(0, base + tile * 64 / shared + 1 - p.window) : 0, end, 256);
}

DEVICE void unpack(f32 (&f)[8], u32x4 v) {
	f[0] = fromHalf(u16(v.x)), f[1] = fromHalf(u16(v.x >> 16));
	f[2] = fromHalf(u16(v.y)), f[3] = fromHalf(u16(v.y >> 16));
	f[4] = fromHalf(u16(v.z)), f[5] = fromHalf(u16(v.z >> 16));
	f[6] = fromHalf(u16(v.w)), f[7] = fromHalf(u16(v.w >> 16));
}

// bent is tanh(x) to 3e-7, which is enough of a score: a reciprocal root is cheaper than a division.
DEVICE f32 bent(f32 x) {
	const f32 root = rsqrt(power(2 * log2e * x) + 1);
	return 1 - 2 * (root * root);
}

// fold sums N numbers over each LANES neighbouring lanes with few shuffles: a lane gives half of its
// numbers away for the other half of another's. Then lane l has numbers l*N/LANES and on; where there are
// fewer numbers than lanes, LANES/N neighbours have the same one.
template <int N, int LANES> DEVICE void fold(f32* v, i32 lane) {
	if constexpr (LANES > 1) {
		constexpr int far = LANES / 2;
		if constexpr (N > 1) {
			const bool upper = lane & far;
#pragma unroll
			for (int i = 0; i < N / 2; i++) {
				const f32 a = v[i], b = v[i + N / 2];
				v[i] = (upper ? b : a) + shuffleXor(upper ? a : b, far);
			}
			fold<N / 2, far>(v, lane);
		} else {
			v[0] += shuffleXor(v[0], far);
			fold<1, far>(v, lane);
		}
	}
}

// The query heads of one key head, at most HEADS of them, attend together. LANES lanes, 8 dimensions
// each, read a key or a value at once, so a warp reads GROUPS rows at a time, and KEYS times that
// in a turn: values are on their way while keys are used, the next turn's keys while values are.
// Each group of lanes keeps a maximum, a sum and a weighted sum of its own until the end.
template <int LANES, int HEADS> DEVICE void decode(const Params& p) {
	constexpr int KEYS = 4, GROUPS = 32 / LANES, TURN = KEYS * GROUPS, WARPS = 4;
	constexpr bool APART = HEADS == 8; // queries are in shared memory, not in registers
	constexpr int SCORES = HEADS * KEYS, OWN = SCORES > LANES ? SCORES / LANES : 1, SAME = SCORES > LANES ? 1 : LANES / SCORES;
	const i32 span = blockIdx.z, row = p.spanFirst[span], split = blockIdx.x, dim = p.headDim;
	if (p.spanFirst[span + 1] - row != 1) return;
	// A number that is shuffled from one lane is known to be the warp's: so are the ends of loops over it, within which shuffles
	// need no second way for lanes that are not there.
	const i32 lane = threadIdx.x % 32, warp = shuffle(threadIdx.x / 32, 0), place = lane % LANES, group = lane / LANES;
	const i32 shared = p.heads / p.kvHeads, pieces = (shared + HEADS - 1) / HEADS;
	const i32 kvHead = blockIdx.y / pieces, piece = blockIdx.y % pieces * HEADS, heads = smaller(HEADS, shared - piece);
	const i32 head = kvHead * shared + piece;
	f32* const y = p.y + (i64(row) * p.heads + head) * dim;
	const Reach r = reach(p, span);
	const i32 begin = r.from + split * r.part, stop = smaller(begin + r.part, r.end);
	if (r.end <= r.from && split == 0)
		for (i32 i = threadIdx.x; i < heads * dim; i += 128) y[i] = 0;
	if (begin >= stop) return;

	const bool inside = place * 8 < dim;
	const f32 factor = p.softCap != 0 ? p.scale / p.softCap : p.scale * log2e;
	constexpr int ROW = LANES * 8 + 2; // the weighted sum, the largest, the sum
	f32 *const room = (f32*)dynamicShared(), *const apart = room + WARPS * HEADS * ROW;
	f32 q[APART ? 1 : HEADS][8], sums[HEADS][8], largest[HEADS], sum[HEADS];
#pragma unroll
	for (int h = 0; h < HEADS; h++) {
		largest[h] = lowest, sum[h] = 0;
		f32x4 low = {0, 0, 0, 0}, high = low;
		if (inside && h < heads) {
			const f32* from = p.q + (i64(row) * p.heads + head + h) * dim + place * 8;
			low = loadf4(from), high = loadf4(from + 4);
		}
		f32* const to = q[APART ? 0 : h];
		to[0] = factor * low.x, to[1] = factor * low.y, to[2] = factor * low.z, to[3] = factor * low.w;
		to[4] = factor * high.x, to[5] = factor * high.y, to[6] = factor * high.z, to[7] = factor * high.w;
		if (APART && warp == 0 && group == 0) {
#pragma unroll
			for (int i = 0; i < 8; i++) apart[h * LANES * 8 + place * 8 + i] = to[i];
		}
#pragma unroll
		for (int i = 0; i < 8; i++) sums[h][i] = 0;
	}
	if (APART) barrier();

	const i32* const table = p.tables + i64(span) * p.tableStride;
	const i64 inRow = 2 * (i64(kvHead) * dim + smaller(place * 8, dim - 8)); // a lane beyond the dimensions reads the last ones, for queries of 0
	const u8 *const keys = p.keys + inRow, *const values = p.values + inRow;
	const u32 units = u32(p.kvHeads * dim) / 8;
	i32 block[KEYS], next[KEYS]; // that the keys of this turn, of the next are in
	u32x4 k[KEYS], v[KEYS];
	i32 at = begin + warp * TURN; // key u of a lane's turn is at at + group + u*GROUPS, or else the last one, unused
#pragma unroll
	for (int u = 0; u < KEYS; u++) {
		const i32 position = smaller(at + group + u * GROUPS, stop - 1);
		block[u] = table[blockOf(p, position)];
		k[u] = load128(keys + 16 * unitsInBlock(p, block[u], position, units));
	}
#pragma unroll 1
	for (; at < stop; at += WARPS * TURN) {
		const i32 turn = at + group;
#pragma unroll
		for (int u = 0; u < KEYS; u++) {
			const i32 position = smaller(turn + u * GROUPS, stop - 1), later = smaller(turn + u * GROUPS + WARPS * TURN, stop - 1);
			v[u] = load128(values + 16 * unitsInBlock(p, block[u], position, units));
			next[u] = table[blockOf(p, later)];
		}
		f32 scores[SCORES];
		if constexpr (APART) {
			asm volatile("" ::: "memory"); // or queries are read once, into registers
			f32 key[KEYS][8];
#pragma unroll
			for (int u = 0; u < KEYS; u++) unpack(key[u], k[u]);
#pragma unroll
			for (int h = 0; h < HEADS; h++) {
				const f32* const query = apart + h * LANES * 8 + place * 8;
				const f32x4 low = loadf4(query), high = loadf4(query + 4);
#pragma unroll
				for (int u = 0; u < KEYS; u++) {
					f32 dot = low.x * key[u][0];
					dot = fmaf(low.y, key[u][1], dot), dot = fmaf(low.z, key[u][2], dot), dot = fmaf(low.w, key[u][3], dot);
					dot = fmaf(high.x, key[u][4], dot), dot = fmaf(high.y, key[u][5], dot), dot = fmaf(high.z, key[u][6], dot);
					scores[h * KEYS + u] = fmaf(high.w, key[u][7], dot);
				}
			}
		} else {
#pragma unroll
			for (int u = 0; u < KEYS; u++) {
				f32 key[8];
				unpack(key, k[u]);
#pragma unroll
				for (int h = 0; h < HEADS; h++) {
					f32 dot = q[h][0] * key[0];
#pragma unroll
					for (int i = 1; i < 8; i++) dot = fmaf(q[h][i], key[i], dot);
					scores[h * KEYS + u] = dot;
				}
			}
		}
#pragma unroll
		for (int u = 0; u < KEYS; u++) {
			block[u] = next[u];
			k[u] = load128(keys + 16 * unitsInBlock(p, block[u], smaller(turn + u * GROUPS + WARPS * TURN, stop - 1), units));
		}
		fold<SCORES, LANES>(scores, place);
		f32 own[OWN];
#pragma unroll
		for (int i = 0; i < OWN; i++) own[i] = p.softCap != 0 ? p.softCap * log2e * bent(scores[i]) : scores[i];
#pragma unroll
		for (int i = 0; i < SCORES; i++) scores[i] = shuffle(own[i % OWN], u32(group * LANES + i / OWN * SAME));
		if (at + TURN > stop) { // the last
#pragma unroll
			for (int i = 0; i < SCORES; i++)
				if (turn + i % KEYS * GROUPS >= stop) scores[i] = -infinity();
		}
		f32 most[HEADS];
		bool grew = false;
#pragma unroll
		for (int h = 0; h < HEADS; h++) {
			most[h] = largest[h];
#pragma unroll
			for (int u = 0; u < KEYS; u++) most[h] = fmaxf(most[h], scores[h * KEYS + u]);
			grew |= most[h] > largest[h];
		}
		if (anyInWarp(grew)) { // seldom, after a while
#pragma unroll
			for (int h = 0; h < HEADS; h++) {
				const f32 shrink = power(largest[h] - most[h]);
				largest[h] = most[h];
				sum[h] *= shrink;
#pragma unroll
				for (int i = 0; i < 8; i++) sums[h][i] *= shrink;
			}
		}
#pragma unroll
		for (int u = 0; u < KEYS; u++) {
			f32 value[8];
			unpack(value, v[u]);
#pragma unroll
			for (int h = 0; h < HEADS; h++) {
				const f32 weight = power(scores[h * KEYS + u] - largest[h]);
				sum[h] += weight;
#pragma unroll
				for (int i = 0; i < 8; i++) sums[h][i] = fmaf(weight, value[i], sums[h][i]);
			}
		}
	}

	// The groups of a warp, then the warps.
#pragma unroll
	for (int far = LANES; far < 32; far *= 2) {
#pragma unroll
		for (int h = 0; h < HEADS; h++) {
			const f32 others = shuffleXor(largest[h], far), most = fmaxf(largest[h], others);
			const f32 mine = power(largest[h] - most), theirs = power(others - most);
			largest[h] = most;
			sum[h] = sum[h] * mine + shuffleXor(sum[h], far) * theirs;
#pragma unroll
			for (int i = 0; i < 8; i++) sums[h][i] = sums[h][i] * mine + shuffleXor(sums[h][i], far) * theirs;
		}
	}
	if (group == 0) {
#pragma unroll
		for (int h = 0; h < HEADS; h++) {
			f32* to = room + (warp * HEADS + h) * ROW;
#pragma unroll
			for (int i = 0; i < 8; i++) to[place * 8 + i] = sums[h][i];
			if (place == 0) to[ROW - 2] = largest[h], to[ROW - 1] = sum[h];
		}
	}
	barrier();
	const bool alone = r.end - r.from <= r.part;
	f32 *const parts = p.scratch, *const states = parts + i64(p.units) * p.heads * p.splits * dim;
	for (i32 i = threadIdx.x; i < heads * dim; i += 128) {
		const i32 h = i / dim, d = i % dim;
		f32 most = lowest, all = 0, value = 0;
		for (int w = 0; w < WARPS; w++) most = fmaxf(most, room[(w * HEADS + h) * ROW + ROW - 2]);
		for (int w = 0; w < WARPS; w++) {
			const f32 *from = room + (w * HEADS + h) * ROW, shrink = power(from[ROW - 2] - most);
			all = fmaf(from[ROW - 1], shrink, all);
			value = fmaf(from[d], shrink, value);
		}
		if (alone) {
			y[i] = value / all;
			continue;
		}
		const i64 part = (i64(span) * p.heads + head + h) * p.splits + split;
		parts[part * dim + d] = value;
		if (d == 0) states[2 * part] = most, states[2 * part + 1] = all;
	}
}

constexpr i32 SPLITS = 64; // at most

// combine has the parts of a row's query head put together, each in relation to the largest score of all.
DEVICE void combine(const Params& p, f32* weights, f32* scratch) {
	const i32 unit = blockIdx.y, head = blockIdx.x, thread = threadIdx.x, dim = p.headDim;
	const bool rows = p.least > 0;
	const i32 span = rows ? p.spanOf[unit] : unit, start = p.spanFirst[span], tokens = p.spanFirst[span + 1] - start, row = rows ? unit : start;
	if (rows ? tokens < p.least : tokens != 1) return;
	const i32 shared = p.heads / p.kvHeads;
	const Reach r = rows ? reachOfTile(p, p.context[span] - tokens, tokens, ((row - start) * shared + head % shared) / 64) : reach(p, span);
	const i32 used = partsOf(r);
	if (used <= 1) return;
	const i64 first = (i64(unit) * p.heads + head) * p.splits;
	const f32 *parts = p.scratch + first * dim, *states = p.scratch + i64(p.units) * p.heads * p.splits * dim + 2 * first;
	const f32 largest = thread < used ? states[2 * thread] : lowest;
	const f32 most = blockMax(largest, scratch), weight = thread < used ? power(largest - most) : 0;
	const f32 all = blockSum(thread < used ? states[2 * thread + 1] * weight : 0, scratch);
	if (thread < SPLITS) weights[thread] = weight;
	barrier();
	for (i32 d = thread; d < dim; d += 128) {
		f32 value = 0;
#pragma unroll 8
		for (i32 i = 0; i < used; i++) value = fmaf(parts[i64(i) * dim + d], weights[i], value);
		p.y[(i64(row) * p.heads + head) * dim + d] = value / all;
	}
}

// narrowed to the halves' range, so that a large query stays a number; NaN stays NaN.
DEVICE f32 inRange(f32 x) { return x > 65504.0f ? 65504.0f : x < -65504.0f ? -65504.0f : x; }

// startOf is where the start of a row of a tile of keys is, -1 for none; of turn 0 or 1. It lies in what pads the rows of queries:
// beside three tiles of 256 dimensions a block of sm_86, 89 and 120 has no room for it (99 KiB).
template <int DIM> DEVICE i64& startOf(u16* queries, i32 row, i32 turn) { return ((i64*)(queries + row * (DIM + 8) + DIM))[turn]; }

// copyTile brings the 64 rows of one head whose starts are those of a turn into shared memory.
template <int DIM> DEVICE void copyTile(u16* to, const u8* from, u16* queries, i32 of, i32 dim) {
	constexpr int CHUNKS = DIM / 8;
#pragma unroll 4
	for (i32 turn = 0; turn < CHUNKS / 2; turn++) {
		const i32 i = turn * 128 + threadIdx.x, row = i / CHUNKS, chunk = i % CHUNKS;
		const i64 start = startOf<DIM>(queries, row, of);
		const bool valid = start >= 0 && chunk * 8 < dim;
		copyAsync16(to + row * (DIM + 8) + chunk * 8, from + (valid ? start + chunk * 16 : 0), valid);
	}
	commitAsync();
}

// A tile has 64 rows of the span's queries times the query heads of one key head; a warp has 16 of them.
// Keys and values pass through shared memory, 64 positions at a time: while a tile's keys are used its values
// arrive, and while the values are, the next tile's keys. Rows are padded by 8 halves, so that the eight
// rows that an ldmatrix reads lie in different banks.
template <int DIM> DEVICE void prefill(const Params& p) {
	constexpr int PITCH = DIM + 8, STEPS = DIM / 16;
	constexpr bool KEPT = DIM <= 128; // queries stay in registers
	u16 *const q = (u16*)dynamicShared(), *const k = q + 64 * PITCH, *const v = k + 64 * PITCH;
	const i32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, dim = p.headDim;
	const i32 shared = p.heads / p.kvHeads, kvHead = blockIdx.y;

	// Which tile of which span; the last tiles see most keys, so they come first.
	i32 tile = gridDim.x - 1 - blockIdx.x, span = -1;
	for (i32 from = 0, before = 0; from < p.spans; from += 32) {
		const i32 i = from + lane, n = i < p.spans ? p.spanFirst[i + 1] - p.spanFirst[i] : 0;
		const i32 tiles = n >= p.least ? (n * shared + 63) / 64 : 0;
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
	if (span < 0) return;
	const i32 first = p.spanFirst[span], tokens = p.spanFirst[span + 1] - first, count = tokens * shared;
	const i32 base = p.bidirectional ? 0 : p.context[span] - tokens; // position of the span's first token
	const i32 start = tile * 64, firstQuery = start / shared, lastQuery = (smaller(start + 64, count) - 1) / shared;
	const i32 window = p.bidirectional ? 0 : p.window;
	const Reach reached = reachOfTile(p, base, tokens, tile);
	const i32 split = blockIdx.z, from = reached.from + split * reached.part, to = smaller(from + reached.part, reached.end);
	if (split > 0 && from >= to) return;
	const u8 *const keys = p.keys + 2 * i64(kvHead) * dim, *const values = p.values + 2 * i64(kvHead) * dim;

	if (threadIdx.x < 64) startOf<DIM>(q, threadIdx.x, 0) = from + i32(threadIdx.x) < to ? rowOf(p, span, first, from + threadIdx.x) : -1;
	const f32 factor = p.softCap != 0 ? p.scale / p.softCap : p.scale * log2e;
	for (i32 i = threadIdx.x; i < 64 * (DIM / 8); i += 128) {
		const i32 row = i / (DIM / 8), chunk = i % (DIM / 8), f = start + row;
		f32x4 low = {0, 0, 0, 0}, high = low;
		if (f < count && chunk * 8 < dim) {
			const f32* x = p.q + (i64(first + f / shared) * p.heads + kvHead * shared + f % shared) * dim + chunk * 8;
			low = loadf4(x), high = loadf4(x + 4);
		}
		store128(q + row * PITCH + chunk * 8, {toHalf2(inRange(factor * low.x), inRange(factor * low.y)), toHalf2(inRange(factor * low.z), inRange(factor * low.w)),
		                                       toHalf2(inRange(factor * high.x), inRange(factor * high.y)), toHalf2(inRange(factor * high.z), inRange(factor * high.w))});
	}
	barrier();
	copyTile<DIM>(k, keys, q, 0, dim);
	const u16* const queries = q + (16 * warp + lane % 16) * PITCH + lane / 16 * 8;
	u32 kept[KEPT ? STEPS : 1][4];
	if constexpr (KEPT) {
#pragma unroll
		for (int i = 0; i < STEPS; i++) ldmatrix4(kept[i], queries + i * 16);
	}

	// A lane has rows lane/4 and lane/4+8 of its warp's, and there of each 8 columns numbers 2*(lane%4) and the next.
	i32 low[2], high[2];
	f32 largest[2] = {lowest, lowest}, sum[2] = {0, 0}, y[2 * STEPS][4];
#pragma unroll
	for (int r = 0; r < 2; r++) {
		const i32 query = (start + 16 * warp + lane / 4 + 8 * r) / shared;
		high[r] = p.bidirectional ? tokens : base + query + 1;
		low[r] = window > 0 ? high[r] - window : 0;
	}
#pragma unroll
	for (int i = 0; i < 2 * STEPS; i++) y[i][0] = y[i][1] = y[i][2] = y[i][3] = 0;

	i32 turn = 0;
#pragma unroll 1
	for (i32 at = from; at < to; at += 64, turn ^= 1) {
		waitAsync<0>();
		barrier(); // the keys are there, and nobody reads the last values
		copyTile<DIM>(v, values, q, turn, dim);
		if (threadIdx.x < 64) {
			const i32 position = at + 64 + threadIdx.x;
			startOf<DIM>(q, threadIdx.x, turn ^ 1) = position < to ? rowOf(p, span, first, position) : -1;
		}
		f32 s[8][4];
#pragma unroll
		for (int i = 0; i < 8; i++) s[i][0] = s[i][1] = s[i][2] = s[i][3] = 0;
		const u16* const here = k + (lane % 8 + lane / 16 * 8) * PITCH + lane / 8 % 2 * 8;
#pragma unroll
		for (int step = 0; step < STEPS; step++) {
			u32 a[4];
			if constexpr (KEPT) {
				a[0] = kept[step][0], a[1] = kept[step][1], a[2] = kept[step][2], a[3] = kept[step][3];
			} else {
				ldmatrix4(a, queries + step * 16);
			}
#pragma unroll
			for (int n = 0; n < 4; n++) {
				u32 b[4];
				ldmatrix4(b, here + n * 16 * PITCH + step * 16);
				const u32 b0[2] = {b[0], b[1]}, b1[2] = {b[2], b[3]};
				mmaF16(s[2 * n], a, b0);
				mmaF16(s[2 * n + 1], a, b1);
			}
		}
		waitAsync<0>();
		barrier(); // the values are there, and nobody reads the keys
		if (at + 64 < to) copyTile<DIM>(k, keys, q, turn ^ 1, dim);

		if (p.softCap != 0) {
#pragma unroll
			for (int i = 0; i < 8; i++) {
#pragma unroll
				for (int j = 0; j < 4; j++) s[i][j] = p.softCap * log2e * bent(s[i][j]);
			}
		}
		// All rows see all keys, but at the ends.
		const bool whole = at + 64 <= (p.bidirectional ? tokens : base + firstQuery + 1) && (window == 0 || at >= base + lastQuery + 1 - window);
		if (!whole) {
#pragma unroll
			for (int i = 0; i < 8; i++) {
#pragma unroll
				for (int j = 0; j < 4; j++) {
					const i32 position = at + i * 8 + lane % 4 * 2 + j % 2;
					if (position < low[j / 2] || position >= high[j / 2]) s[i][j] = -infinity();
				}
			}
		}
#pragma unroll
		for (int r = 0; r < 2; r++) {
			f32 most = largest[r];
#pragma unroll
			for (int i = 0; i < 8; i++) most = fmaxf(most, fmaxf(s[i][2 * r], s[i][2 * r + 1]));
			most = fmaxf(most, shuffleXor(most, 1));
			most = fmaxf(most, shuffleXor(most, 2));
			const f32 shrink = power(largest[r] - most);
			largest[r] = most;
			sum[r] *= shrink;
#pragma unroll
			for (int i = 0; i < 8; i++) {
				s[i][2 * r] = power(s[i][2 * r] - most), s[i][2 * r + 1] = power(s[i][2 * r + 1] - most);
				sum[r] += s[i][2 * r] + s[i][2 * r + 1];
			}
#pragma unroll
			for (int i = 0; i < 2 * STEPS; i++) y[i][2 * r] *= shrink, y[i][2 * r + 1] *= shrink;
		}
		const u16* const there = v + lane % 16 * PITCH + lane / 16 * 8;
#pragma unroll
		for (int step = 0; step < 4; step++) { // what was made as d is a of the next product, as it lies
			const u32 a[4] = {toHalf2(s[2 * step][0], s[2 * step][1]), toHalf2(s[2 * step][2], s[2 * step][3]),
			                  toHalf2(s[2 * step + 1][0], s[2 * step + 1][1]), toHalf2(s[2 * step + 1][2], s[2 * step + 1][3])};
#pragma unroll
			for (int n = 0; n < STEPS; n++) {
				u32 b[4];
				ldmatrix4T(b, there + step * 16 * PITCH + n * 16);
				const u32 b0[2] = {b[0], b[1]}, b1[2] = {b[2], b[3]};
				mmaF16(y[2 * n], a, b0);
				mmaF16(y[2 * n + 1], a, b1);
			}
		}
	}

#pragma unroll
	for (int r = 0; r < 2; r++) {
		sum[r] += shuffleXor(sum[r], 1);
		sum[r] += shuffleXor(sum[r], 2);
		const i32 f = start + 16 * warp + lane / 4 + 8 * r;
		if (f >= count) continue;
		const i64 row = i64(first + f / shared) * p.heads + kvHead * shared + f % shared;
		if (partsOf(reached) > 1) {
			const i64 part = row * p.splits + split;
			f32 *const parts = p.scratch + part * dim + lane % 4 * 2, *const state = p.scratch + i64(p.units) * p.heads * p.splits * dim + 2 * part;
#pragma unroll
			for (int i = 0; i < 2 * STEPS; i++)
				if (i * 8 < dim) *(f32x2*)(parts + i * 8) = {y[i][2 * r], y[i][2 * r + 1]};
			if (lane % 4 == 0) state[0] = largest[r], state[1] = sum[r];
			continue;
		}
		const f32 inverse = to > from ? 1 / sum[r] : 0;
		f32* const out = p.y + row * dim + lane % 4 * 2;
#pragma unroll
		for (int i = 0; i < 2 * STEPS; i++)
			if (i * 8 < dim) *(f32x2*)(out + i * 8) = {y[i][2 * r] * inverse, y[i][2 * r + 1] * inverse};
	}
}

struct NarrowParams {
	const f32 *keys, *values;
	u16* halves; // keys, then values
	i64 n;       // of each
};

} // namespace attention

KERNEL_TOGETHER(attend, attention::Params, 128, 8) { attention::general(p); }

// attendDecodeDxH: head dimensions to D, multiples of 8; H query heads of a key head together.
KERNEL_TOGETHER(attendDecode64x1, attention::Params, 128, 4) { attention::decode<8, 1>(p); }
KERNEL_TOGETHER(attendDecode64x2, attention::Params, 128, 4) { attention::decode<8, 2>(p); }
KERNEL_TOGETHER(attendDecode64x4, attention::Params, 128, 3) { attention::decode<8, 4>(p); }
KERNEL_TOGETHER(attendDecode64x8, attention::Params, 128, 2) { attention::decode<8, 8>(p); }
KERNEL_TOGETHER(attendDecode128x1, attention::Params, 128, 4) { attention::decode<16, 1>(p); }
KERNEL_TOGETHER(attendDecode128x2, attention::Params, 128, 4) { attention::decode<16, 2>(p); }
KERNEL_TOGETHER(attendDecode128x4, attention::Params, 128, 3) { attention::decode<16, 4>(p); }
KERNEL_TOGETHER(attendDecode128x8, attention::Params, 128, 2) { attention::decode<16, 8>(p); }
KERNEL_TOGETHER(attendDecode256x1, attention::Params, 128, 4) { attention::decode<32, 1>(p); }
KERNEL_TOGETHER(attendDecode256x2, attention::Params, 128, 4) { attention::decode<32, 2>(p); }
KERNEL_TOGETHER(attendDecode256x4, attention::Params, 128, 3) { attention::decode<32, 4>(p); }
KERNEL_TOGETHER(attendDecode256x8, attention::Params, 128, 2) { attention::decode<32, 8>(p); }

KERNEL(attendCombine, attention::Params, 128) {
	SHARED(f32, weights, [attention::SPLITS]);
	SHARED(f32, scratch, [32]);
	attention::combine(p, weights, scratch);
}

// attendPrefillD: head dimensions to D, multiples of 8.
KERNEL(attendPrefill64, attention::Params, 128) { attention::prefill<64>(p); }
KERNEL(attendPrefill96, attention::Params, 128) { attention::prefill<96>(p); }
KERNEL(attendPrefill128, attention::Params, 128) { attention::prefill<128>(p); }
KERNEL(attendPrefill256, attention::Params, 128) { attention::prefill<256>(p); }

// attendNarrow makes keys and values of a step halves, as a cache has them: what is beyond their range becomes its end.
KERNEL(attendNarrow, attention::NarrowParams, 256) {
	for (i64 i = i64(blockIdx.x) * 256 + threadIdx.x; i < 2 * p.n; i += i64(gridDim.x) * 256)
		p.halves[i] = toHalf(attention::inRange(i < p.n ? p.keys[i] : p.values[i - p.n]));
}
