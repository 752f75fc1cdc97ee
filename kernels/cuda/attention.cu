// attention.cu: y = softmax(cap(scale q·k)) v of each query head, over a paged cache of halves, or, for
// encoders, over the keys and values of the step. Spans of one token are taken by attendDecode*, longer
// spans by attendPrefill*, in tiles of 128 or 64 rows by 64 keys, both on tensor cores. Where there are few of them both
// divide a context among blocks, and have attendCombine put the parts together. attend does any of it, of
// any head dimension, slowly: it is what the others are compared with, and what is left to odd shapes.
// Sources: arXiv:1805.02867 (the running maximum), arXiv:2307.08691 (tiles).
#include "attention.cuh"

namespace attention {

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

// rest of two numbers of which halves are made: another two halves, so that both together have 22 bits.
DEVICE u32 rest(u32 halves, f32 low, f32 high) { return toHalf2(low - fromHalf(u16(halves)), high - fromHalf(u16(halves >> 16))); }
DEVICE u32 lows(u32 a, u32 b) { return (a & 0xffff) | b << 16; }
DEVICE u32 highs(u32 a, u32 b) { return a >> 16 | (b & 0xffff0000); }

// loadKeys and loadValues read a lane's part of 16 keys or values, 16 bytes at a time, in an order of dimensions and keys that makes what lies together in
// the cache what a lane has of a product's factors: with g = lane/4 and t = lane%4, of keys g and g+8 numbers 8t and on of each 32 dimensions; of
// values 2t, 2t+1, 2t+8 and 2t+9 numbers 8g and on of each 64. Each lane names the block that a key is in, the key of its number.
// A lane beyond the dimensions reads the last ones, for queries of 0 and sums that nobody wants.
// The kernel before, which writes a step's keys and values, may still run when this one starts. load128 may be used all the same: addresses come of
// tables, which are read after awaitEarlier, and nobody has read these keys and values before in the step, so that no cache has old ones.
template <int DIM> DEVICE void loadKeys(u32x4 (&k)[2][DIM / 32], const Params& p, u32 inRow, i32 block, i32 at, i32 last, i32 lane) {
#pragma unroll
	for (int n = 0; n < 2; n++) {
		const i32 key = lane / 4 + 8 * n;
		const u8* const row = p.keys + 16 * unitsInBlock(p, shuffle(block, key), smaller(at + key, last), inRow);
#pragma unroll
		for (int c = 0; c < DIM / 32; c++) k[n][c] = load128(row + 2 * smaller(32 * c + lane % 4 * 8, p.headDim - 8));
	}
}
template <int DIM> DEVICE void loadValues(u32x4 (&v)[4][DIM / 64], const Params& p, u32 inRow, i32 block, i32 at, i32 last, i32 lane) {
#pragma unroll
	for (int n = 0; n < 4; n++) {
		const i32 key = lane % 4 * 2 + n % 2 + n / 2 * 8;
		const u8* const row = p.values + 16 * unitsInBlock(p, shuffle(block, key), smaller(at + key, last), inRow);
#pragma unroll
		for (int c = 0; c < DIM / 64; c++) v[n][c] = load128(row + 2 * smaller(64 * c + lane / 4 * 8, p.headDim - 8));
	}
}

constexpr i32 SPLITS = 128; // at most

// loadQuery reads what a lane has of 16 dimensions of the queries, as a of a product.
DEVICE void loadQuery(u32 (&q)[4], const u32x4* from) {
	const f32x4 x = loadf4(from);
	q[0] = f32ToBits(x.x), q[1] = f32ToBits(x.y), q[2] = f32ToBits(x.z), q[3] = f32ToBits(x.w);
}

// The query heads of one key head, at most 8 of them, attend together. A warp reads 16 keys and 16 values at a time, straight into registers; the next ones
// are on their way while these are used. Scores are a product with 16 rows: 8 heads' queries as halves, and what that leaves of
// them as halves too, so that they are as exact as those of f32. Weights are multiplied in two halves likewise, values being the rows of
// that product, so that the sums of both are one. Each warp keeps a maximum, a sum and a weighted sum of its own until the end.
template <int DIM> DEVICE void decode(const Params& p) {
	constexpr int HEADS = 8, TURN = 16, WARPS = 4, STEPS = DIM / 16, ROW = DIM + 2; // a row: the weighted sum, the largest, the sum
	constexpr bool APART = DIM > 128;                                               // queries stay in shared memory
	const i32 span = blockIdx.z, row = p.spanFirst[span], split = blockIdx.y, dim = p.headDim;
	if (p.spanFirst[span + 1] - row != 1) return;
	const i32 lane = threadIdx.x % 32, warp = shuffle(threadIdx.x / 32, 0), g = lane / 4, t = lane % 4;
	const i32 shared = p.heads / p.kvHeads, pieces = (shared + HEADS - 1) / HEADS;
	const i32 kvHead = blockIdx.x / pieces, piece = blockIdx.x % pieces * HEADS, heads = smaller(HEADS, shared - piece);
	const i32 head = kvHead * shared + piece;
	const Reach r = reach(p, span);
	const i32 begin = r.from + split * r.part, stop = smaller(begin + r.part, r.end);
	if (r.end <= r.from && split == 0)
		for (i32 i = threadIdx.x; i < heads * dim; i += 128) p.y[(i64(row) * p.heads + head) * dim + i] = 0;
	if (begin >= stop) return;

	const u32 table = u32(span) * u32(p.tableStride);
	const u32 inRow = u32(kvHead * dim) / 8;
	u32x4 k[2][DIM / 32], v[4][DIM / 64];
	i32 at = begin + warp * TURN;
	i32 block = p.tables[table + blockOf(p, smaller(at + lane % 16, stop - 1))], next = p.tables[table + blockOf(p, smaller(at + WARPS * TURN + lane % 16, stop - 1))];

	loadKeys<DIM>(k, p, inRow, block, at, stop - 1, lane);

	f32* const room = (f32*)dynamicShared();
	u32x4* const queries = (u32x4*)(room + WARPS * HEADS * ROW); // as a of products
	const f32 factor = p.softCap != 0 ? p.scale / p.softCap : p.scale * log2e;
	for (int c = warp; c < STEPS / 2; c += WARPS) {
		f32x4 x[2] = {{0, 0, 0, 0}, {0, 0, 0, 0}};
		const i32 d = 32 * c + 8 * t;
		if (d < dim && g < heads) {
			const f32* from = p.q + (i64(row) * p.heads + head + g) * dim + d;
			x[0] = loadf4(from), x[1] = loadf4(from + 4);
		}
#pragma unroll
		for (int i = 0; i < 2; i++) {
			const f32 a0 = inRange(factor * x[i].x), a1 = inRange(factor * x[i].y), a2 = inRange(factor * x[i].z), a3 = inRange(factor * x[i].w);
			const u32 first = toHalf2(a0, a1), second = toHalf2(a2, a3);
			store128(queries + (2 * c + i) * 32 + lane, {first, rest(first, a0, a1), second, rest(second, a2, a3)});
		}
	}
	barrier();
	u32 q[APART ? 1 : STEPS][4];
	if constexpr (!APART) {
#pragma unroll
		for (int i = 0; i < STEPS; i++) loadQuery(q[i], queries + i * 32 + lane);
	}

	loadValues<DIM>(v, p, inRow, block, at, stop - 1, lane);
	f32 largest = lowest, sum = 0, part[STEPS][4];
#pragma unroll
	for (int i = 0; i < STEPS; i++) part[i][0] = part[i][1] = part[i][2] = part[i][3] = 0;
#pragma unroll 1
	for (; at < stop; at += WARPS * TURN) {
		const i32 later = at + WARPS * TURN;
		f32 s[2][4] = {{0, 0, 0, 0}, {0, 0, 0, 0}};
		if constexpr (APART) asm volatile("" ::: "memory"); // or queries are read once, into registers
#pragma unroll
		for (int c = 0; c < STEPS / 2; c++) {
#pragma unroll
			for (int i = 0; i < 2; i++) {
				u32 a[4];
				if constexpr (APART) {
					loadQuery(a, queries + (2 * c + i) * 32 + lane);
				} else {
					a[0] = q[2 * c + i][0], a[1] = q[2 * c + i][1], a[2] = q[2 * c + i][2], a[3] = q[2 * c + i][3];
				}
#pragma unroll
				for (int n = 0; n < 2; n++) {
					const u32 b[2] = {i == 0 ? k[n][c].x : k[n][c].z, i == 0 ? k[n][c].y : k[n][c].w};
					mmaF16(s[n], a, b);
				}
			}
		}
		block = next;
		if (later < stop) loadKeys<DIM>(k, p, inRow, block, later, stop - 1, lane);
		next = p.tables[table + blockOf(p, smaller(later + WARPS * TURN + lane % 16, stop - 1))];
		f32 scores[4] = {s[0][0] + s[0][2], s[0][1] + s[0][3], s[1][0] + s[1][2], s[1][1] + s[1][3]};
		if (p.softCap != 0) {
#pragma unroll
			for (int i = 0; i < 4; i++) scores[i] = p.softCap * log2e * bent(scores[i]);
		}
		if (at + TURN > stop) { // the last
#pragma unroll
			for (int i = 0; i < 4; i++)
				if (at + t * 2 + i % 2 + i / 2 * 8 >= stop) scores[i] = -infinity();
		}
		f32 most = fmaxf(fmaxf(scores[0], scores[1]), fmaxf(scores[2], scores[3]));
		if (anyInWarp(most > largest)) { // seldom, after a while
			most = fmaxf(most, largest);
			most = fmaxf(most, shuffleXor(most, 1));
			most = fmaxf(most, shuffleXor(most, 2));
			const f32 shrink = power(largest - most), even = shuffle(shrink, 8 * t), odd = shuffle(shrink, 8 * t + 4);
			largest = most;
			sum *= shrink;
#pragma unroll
			for (int i = 0; i < STEPS; i++) part[i][0] *= even, part[i][1] *= odd, part[i][2] *= even, part[i][3] *= odd;
		}
#pragma unroll
		for (int i = 0; i < 4; i++) scores[i] = power(scores[i] - largest);
		sum += scores[0] + scores[1] + (scores[2] + scores[3]);
		const u32 high[2] = {toHalf2(scores[0], scores[1]), toHalf2(scores[2], scores[3])};
		const u32 low[2] = {rest(high[0], scores[0], scores[1]), rest(high[1], scores[2], scores[3])};
#pragma unroll
		for (int c = 0; c < DIM / 64; c++) {
#pragma unroll
			for (int i = 0; i < 4; i++) {
				u32 w[4];
#pragma unroll
				for (int n = 0; n < 4; n++) w[n] = i == 0 ? v[n][c].x : i == 1 ? v[n][c].y : i == 2 ? v[n][c].z : v[n][c].w;
				const u32 a[4] = {lows(w[0], w[1]), highs(w[0], w[1]), lows(w[2], w[3]), highs(w[2], w[3])};
				mmaF16(part[4 * c + i], a, high);
				mmaF16(part[4 * c + i], a, low);
			}
		}
		if (later < stop) loadValues<DIM>(v, p, inRow, block, later, stop - 1, lane);
	}

	sum += shuffleXor(sum, 1);
	sum += shuffleXor(sum, 2);
#pragma unroll
	for (int h = 0; h < 2; h++) {
		if (2 * t + h < heads) {
			f32* const to = room + (warp * HEADS + 2 * t + h) * ROW + g * 8;
#pragma unroll
			for (int i = 0; i < STEPS; i++) *(f32x2*)(to + i / 4 * 64 + i % 4 * 2) = {part[i][h], part[i][h + 2]};
		}
	}
	if (t == 0) room[(warp * HEADS + g) * ROW + DIM] = largest, room[(warp * HEADS + g) * ROW + DIM + 1] = sum;
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
			p.y[(i64(row) * p.heads + head) * dim + i] = value / all;
			continue;
		}
		const i64 part = (i64(span) * p.heads + head + h) * p.splits + split;
		parts[part * dim + d] = value;
		if (d == 0) states[2 * part] = most, states[2 * part + 1] = all;
	}
}

// combine has a warp put the parts of a row's query head together, each in relation to the largest score of all. A lane has 4 of each
// 128 dimensions, and asks for the first parts before it knows what they weigh.
DEVICE void combine(const Params& p) {
	constexpr int EARLY = 8;
	const i32 lane = threadIdx.x % 32, unit = blockIdx.y, head = blockIdx.x * 4 + threadIdx.x / 32, dim = p.headDim;
	if (head >= p.heads) return;
	const bool rows = p.least > 0;
	const i32 span = rows ? p.spanOf[unit] : unit, start = p.spanFirst[span], tokens = p.spanFirst[span + 1] - start, row = rows ? unit : start;
	if (rows ? tokens < p.least : tokens != 1) return;
	const i32 shared = p.heads / p.kvHeads;
	const Reach r = rows ? reachOfTile(p, p.context[span] - tokens, tokens, ((row - start) * shared + head % shared) / p.tile) : reach(p, span);
	const i32 used = partsOf(r);
	const i64 to = (i64(row) * p.heads + head) * dim;
	if (used <= 1) { // y is there
		if (!p.bytes.q) return;
		for (i32 d = lane * 4; d - lane * 4 < dim; d += 128) {
			const f32x4 v = loadf4(p.y + to + smaller(d, dim - 4));
			bytes::put(p.bytes, row, p.heads * dim, head * dim + d, {v.x, v.y, v.z, v.w}, d < dim);
		}
		return;
	}
	const i64 first = (i64(unit) * p.heads + head) * p.splits;
	const f32 *parts = p.scratch + first * dim, *states = p.scratch + i64(p.units) * p.heads * p.splits * dim + 2 * first;
	f32 largest[SPLITS / 32], weights[SPLITS / 32], most = lowest, all = 0;
#pragma unroll
	for (int i = 0; i < SPLITS / 32; i++) {
		const bool is = 32 * i + lane < used;
		largest[i] = is ? states[2 * (32 * i + lane)] : lowest;
		weights[i] = is ? states[2 * (32 * i + lane) + 1] : 0;
	}
	for (i32 d = lane * 4; d - lane * 4 < dim; d += 128) {
		const f32* const from = parts + smaller(d, dim - 4); // a lane beyond the dimensions reads the last ones
		f32x4 early[EARLY], value = {0, 0, 0, 0};
#pragma unroll
		for (int i = 0; i < EARLY; i++) early[i] = loadf4(from + i64(smaller(i, used - 1)) * dim);
		if (d < 128) { // the first time
#pragma unroll
			for (int i = 0; i < SPLITS / 32; i++) most = fmaxf(most, largest[i]);
			most = warpMax(most);
#pragma unroll
			for (int i = 0; i < SPLITS / 32; i++) {
				const f32 weight = power(largest[i] - most);
				all = fmaf(weights[i], weight, all);
				weights[i] = weight;
			}
			all = warpSum(all);
		}
#pragma unroll
		for (int i = 0; i < SPLITS / 32; i++) {
			for (i32 j = 0; j < 32 && 32 * i + j < used; j += EARLY) {
				if (i > 0 || j > 0) {
#pragma unroll
					for (int e = 0; e < EARLY; e++) early[e] = loadf4(from + i64(smaller(32 * i + j + e, used - 1)) * dim);
				}
#pragma unroll
				for (int e = 0; e < EARLY; e++) {
					const f32 weight = 32 * i + j + e < used ? shuffle(weights[i], j + e) : 0;
					value = {fmaf(early[e].x, weight, value.x), fmaf(early[e].y, weight, value.y), fmaf(early[e].z, weight, value.z), fmaf(early[e].w, weight, value.w)};
				}
			}
		}
		value = {value.x / all, value.y / all, value.z / all, value.w / all};
		if (d < dim) *(f32x4*)(p.y + to + d) = value;
		if (p.bytes.q) bytes::put(p.bytes, row, p.heads * dim, head * dim + d, {value.x, value.y, value.z, value.w}, d < dim);
	}
}

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

// A tile has 64*M rows of the span's queries times the query heads of one key head; a warp has 16*M of them, so that what it reads
// of keys and values from shared memory serves M products.
// Keys and values pass through shared memory, 64 positions at a time: while a tile's keys are used its values
// arrive, and while the values are, the next tile's keys. Rows are padded by 8 halves, so that the eight
// rows that an ldmatrix reads lie in different banks.
template <int DIM, int M> DEVICE void prefill(const Params& p) {
	constexpr int PITCH = DIM + 8, STEPS = DIM / 16, ROWS = 64 * M;
	constexpr bool KEPT = DIM <= 128 && M == 1; // queries stay in registers
	u16 *const q = (u16*)dynamicShared(), *const k = q + ROWS * PITCH, *const v = k + 64 * PITCH;
	const i32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, dim = p.headDim;
	const i32 shared = p.heads / p.kvHeads, kvHead = blockIdx.x % p.kvHeads;

	i32 tile, span;
	if (!find<ROWS>(p, tile, span)) return;
	const i32 first = p.spanFirst[span], tokens = p.spanFirst[span + 1] - first, count = tokens * shared;
	const i32 base = p.bidirectional ? 0 : p.context[span] - tokens; // position of the span's first token
	const i32 start = tile * ROWS, firstQuery = start / shared, lastQuery = (smaller(start + ROWS, count) - 1) / shared;
	const i32 window = p.bidirectional ? 0 : p.window;
	const Reach reached = reachOfTile(p, base, tokens, tile);
	const i32 split = blockIdx.z, from = reached.from + split * reached.part, to = smaller(from + reached.part, reached.end);
	if (split > 0 && from >= to) return;
	const i64 inRow = 2 * i64(kvHead) * dim;

	if (threadIdx.x < 64) startOf<DIM>(q, threadIdx.x, 0) = from + i32(threadIdx.x) < to ? rowOf(p, span, first, from + threadIdx.x) + inRow : -1;
	const f32 factor = p.softCap != 0 ? p.scale / p.softCap : p.scale * log2e;
	for (i32 i = threadIdx.x; i < ROWS * (DIM / 8); i += 128) {
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
	copyTile<DIM>(k, p.keys, q, 0, dim);
	const u16* const queries = q + (16 * M * warp + lane % 16) * PITCH + lane / 16 * 8;
	u32 kept[KEPT ? STEPS : 1][4];
	if constexpr (KEPT) {
#pragma unroll
		for (int i = 0; i < STEPS; i++) ldmatrix4(kept[i], queries + i * 16);
	}

	// A lane has rows lane/4 and lane/4+8 of each 16 of its warp's, and there of each 8 columns numbers 2*(lane%4) and the next.
	f32 largest[M][2], sum[M][2], y[M][2 * STEPS][4];
#pragma unroll
	for (int m = 0; m < M; m++) {
		largest[m][0] = largest[m][1] = lowest, sum[m][0] = sum[m][1] = 0;
#pragma unroll
		for (int i = 0; i < 2 * STEPS; i++) y[m][i][0] = y[m][i][1] = y[m][i][2] = y[m][i][3] = 0;
	}

	// All rows see all keys of these positions.
	const i32 wholeFrom = window > 0 ? base + lastQuery + 1 - window : 0, wholeTo = p.bidirectional ? tokens : base + firstQuery + 1;
	i32 turn = 0;
#pragma unroll 1
	for (i32 at = from; at < to; at += 64, turn ^= 1) {
		waitAsync<0>();
		barrier(); // the keys are there, and nobody reads the last values
		copyTile<DIM>(v, p.values, q, turn, dim);
		if (threadIdx.x < 64) {
			const i32 position = at + 64 + threadIdx.x;
			startOf<DIM>(q, threadIdx.x, turn ^ 1) = position < to ? rowOf(p, span, first, position) + inRow : -1;
		}
		f32 s[M][8][4];
#pragma unroll
		for (int m = 0; m < M; m++) {
#pragma unroll
			for (int i = 0; i < 8; i++) s[m][i][0] = s[m][i][1] = s[m][i][2] = s[m][i][3] = 0;
		}
		const u16* const here = k + (lane % 8 + lane / 16 * 8) * PITCH + lane / 8 % 2 * 8;
#pragma unroll
		for (int step = 0; step < STEPS; step++) {
			u32 a[M][4];
#pragma unroll
			for (int m = 0; m < M; m++) {
				if constexpr (KEPT) {
					a[m][0] = kept[step][0], a[m][1] = kept[step][1], a[m][2] = kept[step][2], a[m][3] = kept[step][3];
				} else {
					ldmatrix4(a[m], queries + m * 16 * PITCH + step * 16);
				}
			}
#pragma unroll
			for (int n = 0; n < 4; n++) {
				u32 b[4];
				ldmatrix4(b, here + n * 16 * PITCH + step * 16);
				const u32 b0[2] = {b[0], b[1]}, b1[2] = {b[2], b[3]};
#pragma unroll
				for (int m = 0; m < M; m++) {
					mmaF16(s[m][2 * n], a[m], b0);
					mmaF16(s[m][2 * n + 1], a[m], b1);
				}
			}
		}
		waitAsync<0>();
		barrier(); // the values are there, and nobody reads the keys
		if (at + 64 < to) copyTile<DIM>(k, p.keys, q, turn ^ 1, dim);

		if (p.softCap != 0) {
#pragma unroll
			for (int m = 0; m < M; m++) {
#pragma unroll
				for (int i = 0; i < 8; i++) {
#pragma unroll
					for (int j = 0; j < 4; j++) s[m][i][j] = p.softCap * log2e * bent(s[m][i][j]);
				}
			}
		}
		const bool whole = at >= wholeFrom && at + 64 <= wholeTo;
		if (!whole) {
#pragma unroll
			for (int m = 0; m < M; m++) {
#pragma unroll
				for (int r = 0; r < 2; r++) {
					const i32 query = (start + 16 * (M * warp + m) + lane / 4 + 8 * r) / shared;
					const i32 high = p.bidirectional ? tokens : base + query + 1, low = window > 0 ? high - window : 0;
#pragma unroll
					for (int i = 0; i < 8; i++) {
#pragma unroll
						for (int j = 0; j < 2; j++) {
							const i32 position = at + i * 8 + lane % 4 * 2 + j;
							if (position < low || position >= high) s[m][i][2 * r + j] = -infinity();
						}
					}
				}
			}
		}
		f32 most[M][2];
		bool grew = false;
#pragma unroll
		for (int m = 0; m < M; m++) {
#pragma unroll
			for (int r = 0; r < 2; r++) {
				f32 x = largest[m][r];
#pragma unroll
				for (int i = 0; i < 8; i++) x = fmaxf(x, fmaxf(s[m][i][2 * r], s[m][i][2 * r + 1]));
				x = fmaxf(x, shuffleXor(x, 1));
				most[m][r] = fmaxf(x, shuffleXor(x, 2));
				grew |= most[m][r] > largest[m][r];
			}
		}
		if (anyInWarp(grew)) { // seldom, after a while
#pragma unroll
			for (int m = 0; m < M; m++) {
#pragma unroll
				for (int r = 0; r < 2; r++) {
					const f32 shrink = power(largest[m][r] - most[m][r]);
					largest[m][r] = most[m][r];
					sum[m][r] *= shrink;
#pragma unroll
					for (int i = 0; i < 2 * STEPS; i++) y[m][i][2 * r] *= shrink, y[m][i][2 * r + 1] *= shrink;
				}
			}
		}
		u32 weights[M][8][2]; // halves, as they lie: what was made as d is a of the next product
#pragma unroll
		for (int m = 0; m < M; m++) {
#pragma unroll
			for (int i = 0; i < 8; i++) {
#pragma unroll
				for (int r = 0; r < 2; r++) {
					const f32 w0 = power(s[m][i][2 * r] - largest[m][r]), w1 = power(s[m][i][2 * r + 1] - largest[m][r]);
					sum[m][r] += w0 + w1;
					weights[m][i][r] = toHalf2(w0, w1);
				}
			}
		}
		const u16* const there = v + lane % 16 * PITCH + lane / 16 * 8;
#pragma unroll
		for (int step = 0; step < 4; step++) {
			u32 a[M][4];
#pragma unroll
			for (int m = 0; m < M; m++) a[m][0] = weights[m][2 * step][0], a[m][1] = weights[m][2 * step][1], a[m][2] = weights[m][2 * step + 1][0], a[m][3] = weights[m][2 * step + 1][1];
#pragma unroll
			for (int n = 0; n < STEPS; n++) {
				u32 b[4];
				ldmatrix4T(b, there + step * 16 * PITCH + n * 16);
				const u32 b0[2] = {b[0], b[1]}, b1[2] = {b[2], b[3]};
#pragma unroll
				for (int m = 0; m < M; m++) {
					mmaF16(y[m][2 * n], a[m], b0);
					mmaF16(y[m][2 * n + 1], a[m], b1);
				}
			}
		}
	}

#pragma unroll
	for (int m = 0; m < M; m++) {
#pragma unroll
		for (int r = 0; r < 2; r++) {
			f32 all = sum[m][r];
			all += shuffleXor(all, 1);
			all += shuffleXor(all, 2);
			const i32 f = start + 16 * (M * warp + m) + lane / 4 + 8 * r;
			if (f >= count) continue;
			const i64 row = i64(first + f / shared) * p.heads + kvHead * shared + f % shared;
			if (partsOf(reached) > 1) {
				const i64 part = row * p.splits + split;
				f32 *const parts = p.scratch + part * dim + lane % 4 * 2, *const state = p.scratch + i64(p.units) * p.heads * p.splits * dim + 2 * part;
#pragma unroll
				for (int i = 0; i < 2 * STEPS; i++)
					if (i * 8 < dim) *(f32x2*)(parts + i * 8) = {y[m][i][2 * r], y[m][i][2 * r + 1]};
				if (lane % 4 == 0) state[0] = largest[m][r], state[1] = all;
				continue;
			}
			const f32 inverse = to > from ? 1 / all : 0;
			f32* const out = p.y + row * dim + lane % 4 * 2;
#pragma unroll
			for (int i = 0; i < 2 * STEPS; i++)
				if (i * 8 < dim) *(f32x2*)(out + i * 8) = {y[m][i][2 * r] * inverse, y[m][i][2 * r + 1] * inverse};
		}
	}
}

struct NarrowParams {
	const f32 *keys, *values;
	u16* halves; // keys, then values
	i64 n;       // of each
};

} // namespace attention

KERNEL_TOGETHER(attend, attention::Params, 128, 8) { attention::general(p); }

// attendDecodeD: head dimensions to D, multiples of 8.

KERNEL_TOGETHER(attendDecode64, attention::Params, 128, 4) { attention::decode<64>(p); }
KERNEL_TOGETHER(attendDecode128, attention::Params, 128, 2) { attention::decode<128>(p); }
KERNEL_TOGETHER(attendDecode256, attention::Params, 128, 2) { attention::decode<256>(p); }

KERNEL(attendCombine, attention::Params, 128) { attention::combine(p); }

// attendPrefillD: head dimensions to D, multiples of 8.
KERNEL(attendPrefill64, attention::Params, 128) { attention::prefill<64, 2>(p); }
KERNEL(attendPrefill96, attention::Params, 128) { attention::prefill<96, 1>(p); }
KERNEL(attendPrefill128, attention::Params, 128) { attention::prefill<128, 2>(p); }
KERNEL(attendPrefill256, attention::Params, 128) { attention::prefill<256, 1>(p); }

// attendNarrow makes keys and values of a step halves, as a cache has them: what is beyond their range becomes its end.
KERNEL(attendNarrow, attention::NarrowParams, 256) {
	for (i64 i = i64(blockIdx.x) * 256 + threadIdx.x; i < 2 * p.n; i += i64(gridDim.x) * 256)
		p.halves[i] = toHalf(attention::inRange(i < p.n ? p.keys[i] : p.values[i - p.n]));
}
