// rope.cu: rotary position embedding of queries and keys, and what goes into the cache.
// Source: arXiv:2104.09864.
#include "gpu.cuh"

namespace rope {

struct AnglesParams {
	f32 *cos, *sin;         // [rows, pairs], times amplitude
	const i32* positions;   // [rows]
	const f32* frequencies; // [pairs], radians per position
	const f32* divisors;    // [pairs] of the frequencies, or 0
	i32 rows, pairs;
	f32 amplitude;
	i32 pad;
};

// turn is cosine and sine of an angle of any size, within 2 ulp: what is left of whole quarter turns, in
// double precision, is within pi/4, where a few terms of the series are enough.
DEVICE void turn(f32 angle, f32& cosine, f32& sine) {
	const f64 rounder = 6755399441055744.0; // 1.5 * 2^52: sums are whole
	const f64 quarters = (f64(angle) * 0.63661977236758134 + rounder) - rounder;
	const f32 x = f32((f64(angle) - quarters * 1.5707963267948966) - quarters * 6.123233995736766e-17);
	const f32 x2 = x * x;
	const f32 s = fmaf(x * x2, fmaf(x2, fmaf(x2, fmaf(x2, 2.7557319e-6f, -1.9841270e-4f), 8.3333333e-3f), -1.6666667e-1f), x);
	const f32 c = fmaf(x2, fmaf(x2, fmaf(x2, fmaf(x2, fmaf(x2, -2.7557319e-7f, 2.4801587e-5f), -1.3888889e-3f), 4.1666667e-2f), -0.5f), 1);
	const u32 quadrant = u32(i64(quarters)) % 4;
	cosine = quadrant % 2 ? s : c;
	sine = quadrant % 2 ? c : s;
	if (quadrant == 1 || quadrant == 2) cosine = -cosine;
	if (quadrant >= 2) sine = -sine;
}

struct Params {
	f32* y;                      // [rows, heads, dim], x rotated; may be x
	const f32* x;
	const f32 *k, *v;            // [rows, kvHeads, dim]
	const f32 *cos, *sin;        // [rows, pairs]
	u8 *keys, *values;           // of position 0 of block 0 in the layer: halves [kvHeads, dim] a position
	const i32 *positions;        // [rows]
	const i32 *spanOf, *tables;  // [rows] span of each row; [spans, tableStride] block numbers
	i64 blockStride;             // bytes from block to block
	i32 tableStride, blockTokens;
	i32 rows, heads, kvHeads, dim, pairs;
	i32 neighbours;              // pairs are (2i, 2i+1), otherwise (i, i+pairs)
};

// pair s of a head, rotated, or number s-pairs of those beyond the pairs, goes to put(index, number).
template <typename Put> DEVICE void part(const Params& p, const f32* head, i32 row, i32 s, Put put) {
	if (s >= p.pairs) {
		put(s + p.pairs, head[s + p.pairs]);
		return;
	}
	const i32 a = p.neighbours ? 2 * s : s, b = p.neighbours ? 2 * s + 1 : s + p.pairs;
	const f32 c = p.cos[i64(row) * p.pairs + s], n = p.sin[i64(row) * p.pairs + s], u = head[a], w = head[b];
	put(a, u * c - w * n);
	put(b, u * n + w * c);
}

// placeOf a row in the cache: bytes from the keys' or values' start.
DEVICE i64 placeOf(const Params& p, i32 row) {
	const i32 position = p.positions[row];
	const i64 block = p.tables[i64(p.spanOf[row]) * p.tableStride + position / p.blockTokens];
	return block * p.blockStride + i64(position % p.blockTokens) * p.kvHeads * p.dim * 2;
}

} // namespace rope

// angles has a thread for each pair of each row.
KERNEL(angles, rope::AnglesParams, 256) {
	const u32 i = blockIdx.x * 256 + threadIdx.x;
	if (i >= u32(p.rows * p.pairs)) return;
	const u32 row = i / u32(p.pairs), pair = i % u32(p.pairs);
	f32 frequency = p.frequencies[pair];
	if (p.divisors) frequency = frequency / p.divisors[pair];
	f32 c, s;
	rope::turn(f32(p.positions[row]) * frequency, c, s); // rounded to f32, as in the programs that models are trained with
	p.cos[i] = c * p.amplitude;
	p.sin[i] = s * p.amplitude;
}

// ropeStore has a thread for each pair, and each number beyond the pairs, of each head of x and of k, and for
// each number of v.
KERNEL(ropeStore, rope::Params, 256) {
	const u32 slots = p.dim - p.pairs, queries = p.heads * slots, keys = p.kvHeads * slots, all = queries + keys + p.kvHeads * p.dim;
	const u32 i = blockIdx.x * 256 + threadIdx.x, row = i / all;
	if (row >= u32(p.rows)) return;
	u32 at = i % all;
	if (at < queries) {
		const i64 head = (i64(row) * p.heads + at / slots) * p.dim;
		rope::part(p, p.x + head, row, at % slots, [&](i32 e, f32 v) { p.y[head + e] = v; });
		return;
	}
	at -= queries;
	const i64 first = i64(row) * p.kvHeads * p.dim, place = rope::placeOf(p, row);
	if (at < keys) {
		const i32 head = i32(at / slots) * p.dim;
		u16* key = (u16*)(p.keys + place) + head;
		rope::part(p, p.k + first + head, row, at % slots, [&](i32 e, f32 v) { key[e] = toHalf(v); });
		return;
	}
	at -= keys;
	((u16*)(p.values + place))[at] = toHalf(p.v[first + at]);
}
