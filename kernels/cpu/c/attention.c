// variants: avx2 avx512
#include "math.h"

// Attention over a paged cache of halves, in steps of positions, with the running maximum of arXiv:1805.02867.
// A row of the cache is taken in chunks of 16 numbers: the last one, of a row that is no multiple of 16, overlaps
// the one before, and queries are zero there. Rows below 16 are copied first, with zeros behind.

#define NEVER (-__builtin_inff())
#define LEAST -3.40282347e38f // where a running maximum begins: minus infinity less itself is no number

enum { STEP = 64, CHUNK = 16 };

// cache, attend and attendTile are cache, the argument of Attend and attentionTile of attention_half.go.
struct cache {
	const half *keys, *values;
	const int32_t *blocks;
	int64_t blockTokens, width, stride, head;
};

struct attend {
	float *y;
	const float *q;
	float *scratch;
	struct cache kv;
	int64_t heads, dim, from, to;
	float scale, cap;
};

struct attendTile {
	float *y;
	const float *q;
	float *scratch;
	struct cache kv;
	int64_t queries, heads, stride, dim, first, window;
	int64_t all; // 0, or every query attends to all of so many positions, whose keys and values are float32 [all, width]
	float scale, cap;
};

#ifdef PATH_AVX512
enum { TILE = 16, MOST_HEADS = 8, VECTORS = 4 };
INLINE vf vf_halves(__m256i h) { return _mm512_cvtph_ps(h); }
// masked has minus infinity where a lane is not from from to to.
INLINE vf masked(vf v, int64_t from, int64_t to) {
	from = from < 0 ? 0 : from > 16 ? 16 : from;
	return _mm512_mask_blend_ps(first(to < 0 ? 0 : to) & ~first(from), _mm512_set1_ps(NEVER), v);
}
// four sums the numbers of four vectors, by quarters of registers.
INLINE vf four(vf a, vf b, vf c, vf d) {
	__m512d ab = _mm512_castps_pd(vf_add(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b)));
	__m512d cd = _mm512_castps_pd(vf_add(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d)));
	return vf_add(_mm512_castpd_ps(_mm512_unpacklo_pd(ab, cd)), _mm512_castpd_ps(_mm512_unpackhi_pd(ab, cd)));
}
INLINE vf quarters(vf a, vf b) { return vf_add(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd)); }
// sums writes those of TILE vectors, of heads with TILE/heads positions each, to s [heads, STEP].
INLINE void sums(const int heads, float *s, vf *a) {
	vf t = quarters(quarters(four(a[0], a[1], a[2], a[3]), four(a[4], a[5], a[6], a[7])), quarters(four(a[8], a[9], a[10], a[11]), four(a[12], a[13], a[14], a[15])));
	__m128 t0 = _mm512_castps512_ps128(t), t1 = _mm512_extractf32x4_ps(t, 1), t2 = _mm512_extractf32x4_ps(t, 2), t3 = _mm512_extractf32x4_ps(t, 3);
	if (heads == 1) {
		vf_store(s, t);
	} else if (heads == 2) {
		_mm_storeu_ps(s, t0), _mm_storeu_ps(s + 4, t1), _mm_storeu_ps(s + STEP, t2), _mm_storeu_ps(s + STEP + 4, t3);
	} else if (heads == 4) {
		_mm_storeu_ps(s, t0), _mm_storeu_ps(s + STEP, t1), _mm_storeu_ps(s + 2 * STEP, t2), _mm_storeu_ps(s + 3 * STEP, t3);
	} else {
		_mm_storel_pi((__m64 *)s, t0), _mm_storeh_pi((__m64 *)(s + STEP), t0);
		_mm_storel_pi((__m64 *)(s + 2 * STEP), t1), _mm_storeh_pi((__m64 *)(s + 3 * STEP), t1);
		_mm_storel_pi((__m64 *)(s + 4 * STEP), t2), _mm_storeh_pi((__m64 *)(s + 5 * STEP), t2);
		_mm_storel_pi((__m64 *)(s + 6 * STEP), t3), _mm_storeh_pi((__m64 *)(s + 7 * STEP), t3);
	}
}
#else
enum { TILE = 4, MOST_HEADS = 4, VECTORS = 1 };
INLINE vf vf_halves(__m256i h) { return (vf){_mm256_cvtph_ps(_mm256_castsi256_si128(h)), _mm256_cvtph_ps(_mm256_extracti128_si256(h, 1))}; }
INLINE vf masked(vf v, int64_t from, int64_t to) {
	__m256 never = _mm256_set1_ps(NEVER);
	__m256i lo = _mm256_andnot_si256(first8(from), first8(to)), hi = _mm256_andnot_si256(first8(from - 8), first8(to - 8));
	return (vf){_mm256_blendv_ps(never, v.lo, _mm256_castsi256_ps(lo)), _mm256_blendv_ps(never, v.hi, _mm256_castsi256_ps(hi))};
}
INLINE void sums(const int heads, float *s, vf *a) {
	__m256 t[4];
	UNROLL for (int i = 0; i < 4; i++) t[i] = _mm256_add_ps(a[i].lo, a[i].hi);
	__m256d ab = _mm256_castps_pd(_mm256_add_ps(_mm256_unpacklo_ps(t[0], t[1]), _mm256_unpackhi_ps(t[0], t[1])));
	__m256d cd = _mm256_castps_pd(_mm256_add_ps(_mm256_unpacklo_ps(t[2], t[3]), _mm256_unpackhi_ps(t[2], t[3])));
	__m256 u = _mm256_add_ps(_mm256_castpd_ps(_mm256_unpacklo_pd(ab, cd)), _mm256_castpd_ps(_mm256_unpackhi_pd(ab, cd)));
	__m128 r = _mm_add_ps(_mm256_castps256_ps128(u), _mm256_extractf128_ps(u, 1));
	if (heads == 1) {
		_mm_storeu_ps(s, r);
	} else if (heads == 2) {
		_mm_storel_pi((__m64 *)s, r), _mm_storeh_pi((__m64 *)(s + STEP), r);
	} else {
		_mm_store_ss(s, r), _mm_store_ss(s + STEP, _mm_movehdup_ps(r));
		_mm_store_ss(s + 2 * STEP, _mm_movehl_ps(r, r)), _mm_store_ss(s + 3 * STEP, _mm_shuffle_ps(r, r, 3));
	}
}
#endif

INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

// scratch is cut in parts that begin at whole lines of the cache.
INLINE float *part(float **rest, int64_t floats) {
	float *p = *rest;
	*rest += (floats + 15) & ~15;
	return p;
}
INLINE float *aligned(float *p) { return p + (-((uintptr_t)p >> 2) & 15); }

// places writes where the rows of positions from to to begin, at from-begin of at, and fills it with their like.
INLINE void places(const struct cache *kv, int64_t *at, int64_t begin, int64_t from, int64_t to) {
	int64_t block = from / kv->blockTokens, slot = from % kv->blockTokens;
	int64_t row = kv->blocks[block] * kv->stride + slot * kv->width + kv->head;
	for (int64_t i = 0; i < from - begin; i++) at[i] = row;
	for (int64_t i = from - begin; i < STEP; i++) {
		at[i] = row;
		if (begin + i + 1 >= to) continue;
		row += kv->width;
		if (++slot == kv->blockTokens) slot = 0, row = kv->blocks[++block] * kv->stride + kv->head;
	}
}

// widen copies rows that are shorter than a chunk.
INLINE void widen(half *dst, const half *src, const int64_t *at, int64_t dim) {
	for (int64_t i = 0; i < STEP; i++)
		for (int64_t j = 0; j < CHUNK; j++) dst[i * CHUNK + j] = j < dim ? src[at[i] + j] : 0;
}

// narrow makes halves of n rows of float32, a row of dst for each: the rest of STEP stays as it is.
INLINE void narrow(half *dst, const half *src, int64_t row, int64_t n, int64_t width, int64_t dim, int64_t wide) {
	const float *x = (const float *)src + row;
	for (int64_t i = 0; i < n; i++)
		for (int64_t c = 0; c < wide; c += CHUNK) vf_store_half(dst + i * wide + c, vf_clamp(vf_load_first(x + i * width + c, dim - c), -65504, 65504));
}

// query writes a row of dim, times scale, in chunks of wide numbers in all.
INLINE void query(float *dst, const float *q, int64_t dim, int64_t wide, float scale) {
	int64_t c = 0;
	for (; c + CHUNK <= dim; c += CHUNK) vf_store(dst + c, vf_mul(vf_load(q + c), vf_set(scale)));
	if (c == wide) return;
	vf_store(dst + c, vf_zero());
	float *last = dst + c - (dim < CHUNK ? 0 : dim - CHUNK);
	for (int64_t d = c; d < dim; d++) last[d] = q[d] * scale;
}

// where a chunk of a row begins; dim is at least a chunk.
INLINE int64_t chunk(int64_t c, int64_t dim) { return c + CHUNK <= dim ? c : dim - CHUNK; }

// prefetch fetches the line with two chunks of a row, into the second cache: in the first, rows that lie a multiple of
// 4 KiB apart would displace each other. Each line is asked for twice, which is cheaper than to ask which half it is.
INLINE void prefetch(const half *row, int64_t c) { __builtin_prefetch(row + c, 0, 2); }

// dots are the products of some heads' queries and TILE/heads keys, four of them at a time, since memory likes few
// streams; the values beside those are fetched.
INLINE void dots(const int heads, float *s, const float *q, int64_t dim, int64_t wide, const half *keys, const half *values, const int64_t *at) {
	const int positions = TILE / heads, some = positions < 4 ? positions : 4;
	vf acc[TILE];
	UNROLL for (int i = 0; i < TILE; i++) acc[i] = vf_zero();
	UNROLL for (int from = 0; from < positions; from += some) {
		for (int64_t c = 0; c < wide; c += CHUNK) {
			int64_t o = chunk(c, dim);
			__asm__ volatile("" : "+r"(at)); // or else the rows' places would be kept on the stack, which is no nearer
			vf of[MOST_HEADS];
			UNROLL for (int h = 0; h < heads; h++) of[h] = vf_load(q + h * wide + c);
			UNROLL for (int p = from; p < from + some; p++) {
				if (values) prefetch(values + at[p], c);
				vf k = vf_half(keys + at[p] + o);
				UNROLL for (int h = 0; h < heads; h++) acc[h * positions + p] = vf_fma(of[h], k, acc[h * positions + p]);
			}
		}
	}
	sums(heads, s, acc);
}

// add adds the values of n positions, each times its weight in p [heads, STEP], to some chunks of
// y [heads, wide]; the next step's keys are fetched, if there are any.
INLINE void add(const int heads, const int chunks, float *y, const float *p, int64_t n, int64_t dim, int64_t wide, int64_t c, const half *values, const int64_t *at, const half *keys, const int64_t *next) {
	vf acc[MOST_HEADS * 8];
	UNROLL for (int h = 0; h < heads; h++)
		UNROLL for (int i = 0; i < chunks; i++) acc[h * chunks + i] = vf_load(y + h * wide + c + CHUNK * i);
	int64_t last = chunk(c + CHUNK * (chunks - 1), dim);
	for (int64_t j = 0; j < n; j++) {
		const half *row = values + at[j];
		UNROLL for (int i = 0; i < chunks; i++) {
			if (next) prefetch(keys + next[j], c + CHUNK * i);
			vf v = vf_half(row + (i == chunks - 1 ? last : c + CHUNK * i));
			UNROLL for (int h = 0; h < heads; h++) acc[h * chunks + i] = vf_fma(vf_set(p[h * STEP + j]), v, acc[h * chunks + i]);
		}
	}
	UNROLL for (int h = 0; h < heads; h++)
		UNROLL for (int i = 0; i < chunks; i++) vf_store(y + h * wide + c + CHUNK * i, acc[h * chunks + i]);
}

// weigh makes scores s [STEP], those from from to to, weights; sum [16] and y [wide] are of the largest
// score so far.
INLINE void weigh(float *s, float *most, float *sum, float *y, int64_t wide, int64_t from, int64_t to, float cap) {
	const float *c = numbers;
	__asm__ volatile("" : "+r"(c));
	if (cap != 0) {
		ROLL for (int i = 0; i < STEP; i += 16) vf_store(s + i, vf_mul(vf_set(cap), vf_tanh(c, vf_div(vf_load(s + i), vf_set(cap)))));
	}
	if (from > 0 || to < STEP) {
		ROLL for (int i = 0; i < STEP; i += 16) vf_store(s + i, masked(vf_load(s + i), from - i, to - i));
	}
	vf largest = vf_max(vf_max(vf_load(s), vf_load(s + 16)), vf_max(vf_load(s + 32), vf_load(s + 48)));
	float here = vf_most(largest);
	vf all = vf_load(sum);
	if (here > *most) {
		vf shrink = vf_exp(c, vf_set(*most - here));
		all = vf_mul(all, shrink);
		for (int64_t i = 0; i < wide; i += CHUNK) vf_store(y + i, vf_mul(vf_load(y + i), shrink));
		*most = here;
	}
	vf m = vf_set(*most);
	ROLL for (int i = 0; i < STEP; i += 16) {
		vf v = vf_exp(c, vf_sub(vf_load(s + i), m));
		vf_store(s + i, v);
		all = vf_add(all, v);
	}
	vf_store(sum, all);
}

INLINE void finish(float *y, const float *sum, const float *of, int64_t dim, int64_t wide) {
	vf all = vf_set(vf_sum(vf_load(sum)));
	if (dim < CHUNK) return vf_store_first(y, vf_div(vf_load(of), all), dim);
	for (int64_t c = 0; c < wide; c += CHUNK) vf_store(y + chunk(c, dim), vf_div(vf_load(of + c), all));
}

// some heads' part of a step. next is nothing where others have fetched what comes next.
INLINE void headsStep(const int heads, float *y, float *s, float *most, float *sum, const float *q, int64_t n, int64_t dim, int64_t wide, float cap,
	const half *keys, const half *values, const int64_t *at, const int64_t *next) {
	const int positions = TILE / heads, chunks = TILE / heads < 8 ? TILE / heads : 8;
	for (int64_t i = 0; i < n; i += positions) {
		dots(heads, s + i, q, dim, wide, keys, next ? values : 0, at + i);
	}
	for (int h = 0; h < heads; h++) weigh(s + h * STEP, most + h, sum + h * CHUNK, y + h * wide, wide, 0, n, cap);
	int64_t c = 0;
	for (; c + chunks * CHUNK <= wide; c += chunks * CHUNK) add(heads, chunks, y, s, n, dim, wide, c, values, at, keys, next);
	if (chunks > 4 && c + 4 * CHUNK <= wide) add(heads, 4, y, s, n, dim, wide, c, values, at, keys, next), c += 4 * CHUNK;
	if (chunks > 2 && c + 2 * CHUNK <= wide) add(heads, 2, y, s, n, dim, wide, c, values, at, keys, next), c += 2 * CHUNK;
	if (chunks > 1 && c < wide) add(heads, 1, y, s, n, dim, wide, c, values, at, keys, next);
}

void attendHeads(const struct attend *a) {
	const struct cache *kv = &a->kv;
	int64_t dim = a->dim, small = dim < CHUNK, wide = (dim + CHUNK - 1) / CHUNK * CHUNK, heads = a->heads, rows = (heads + 7) / 8 * 8;
	float *rest = aligned(a->scratch), cap = a->cap;
	float *q = part(&rest, rows * wide), *y = part(&rest, rows * wide), *s = part(&rest, rows * STEP), *sum = part(&rest, rows * CHUNK), *most = part(&rest, rows);
	int64_t *at = (int64_t *)part(&rest, 2 * STEP), *next = (int64_t *)part(&rest, 2 * STEP);
	half *keys = (half *)part(&rest, STEP * CHUNK / 2), *values = (half *)part(&rest, STEP * CHUNK / 2);
	for (int64_t h = 0; h < rows; h++) {
		most[h] = LEAST;
		vf_store(sum + h * CHUNK, vf_zero());
		for (int64_t c = 0; c < wide; c += CHUNK) vf_store(q + h * wide + c, vf_zero()), vf_store(y + h * wide + c, vf_zero());
		if (h < heads) query(q + h * wide, a->q + h * dim, dim, wide, a->scale);
	}
	if (small) dim = CHUNK;
	places(kv, next, a->from, a->from, smaller(a->to, a->from + STEP));
	for (int64_t from = a->from; from < a->to; from += STEP) {
		int64_t left = a->to - from;
		int64_t *t = at;
		at = next, next = t;
		const half *k = kv->keys, *v = kv->values;
		int64_t *then = next;
		if (left > STEP) {
			places(kv, next, from + STEP, from + STEP, smaller(a->to, from + 2 * STEP));
		} else {
			then = at;
		}
		if (small) {
			widen(keys, k, at, a->dim), widen(values, v, at, a->dim);
			for (int64_t i = 0; i < STEP; i++) at[i] = i * CHUNK;
			k = keys, v = values, then = 0;
		}
		for (int64_t h = 0, some; h < heads; h += some, then = 0) {
			int64_t more = heads - h;
			some = more <= 2 ? more : more <= 4 || MOST_HEADS == 4 ? 4 : 8;
#define SOME(n) \
	if (some == n) headsStep(n, y + h * wide, s + h * STEP, most + h, sum + h * CHUNK, q + h * wide, smaller(left, STEP), dim, wide, cap, k, v, at, then)
			SOME(1);
			SOME(2);
			SOME(4);
			if (MOST_HEADS == 8) SOME(8);
		}
	}
	for (int64_t h = 0; h < heads; h++) finish(a->y + h * a->dim, sum + h * CHUNK, y + h * wide, a->dim, wide);
}

// ROWS of queries are multiplied at once in a tile.
enum { ROWS = 4, LANES = VECTORS * 16 };

// turn writes 16 keys [16, dim] as columns: k [dim, LANES].
INLINE void turn(float *k, const half *keys, const int64_t *at, int64_t dim) {
	for (int64_t i = 0; i < dim; i += 8) {
		int64_t d = i + 8 <= dim ? i : dim - 8;
		__m256i x[8], a[8], b[8], c[8];
		UNROLL for (int r = 0; r < 8; r++) {
			__m128i low = _mm_loadu_si128((const __m128i *)(keys + at[r] + d));
			x[r] = _mm256_inserti128_si256(_mm256_castsi128_si256(low), _mm_loadu_si128((const __m128i *)(keys + at[r + 8] + d)), 1);
		}
		UNROLL for (int r = 0; r < 8; r += 2) a[r] = _mm256_unpacklo_epi16(x[r], x[r + 1]), a[r + 1] = _mm256_unpackhi_epi16(x[r], x[r + 1]);
		UNROLL for (int r = 0; r < 8; r += 4) {
			b[r] = _mm256_unpacklo_epi32(a[r], a[r + 2]), b[r + 1] = _mm256_unpackhi_epi32(a[r], a[r + 2]);
			b[r + 2] = _mm256_unpacklo_epi32(a[r + 1], a[r + 3]), b[r + 3] = _mm256_unpackhi_epi32(a[r + 1], a[r + 3]);
		}
		UNROLL for (int r = 0; r < 4; r++) c[2 * r] = _mm256_unpacklo_epi64(b[r], b[r + 4]), c[2 * r + 1] = _mm256_unpackhi_epi64(b[r], b[r + 4]);
		UNROLL for (int r = 0; r < 8; r++) vf_store(k + (d + r) * LANES, vf_halves(c[r]));
	}
}

// scores of ROWS queries and LANES keys k [dim, LANES].
INLINE void scores(float *s, const float *q, const float *k, int64_t dim, int64_t wide) {
	vf acc[ROWS][VECTORS];
	UNROLL for (int r = 0; r < ROWS; r++)
		UNROLL for (int i = 0; i < VECTORS; i++) acc[r][i] = vf_zero();
	for (int64_t d = 0; d < dim; d++) {
		vf of[VECTORS];
		UNROLL for (int i = 0; i < VECTORS; i++) of[i] = vf_load(k + d * LANES + 16 * i);
		UNROLL for (int r = 0; r < ROWS; r++) {
			vf x = vf_set(q[r * wide + d]);
			UNROLL for (int i = 0; i < VECTORS; i++) acc[r][i] = vf_fma(x, of[i], acc[r][i]);
		}
	}
	UNROLL for (int r = 0; r < ROWS; r++)
		UNROLL for (int i = 0; i < VECTORS; i++) vf_store(s + r * STEP + 16 * i, acc[r][i]);
}

// mix adds values v [STEP, wide] from from to to, each times its weight in p [rows, STEP], to some vectors of y [rows, wide].
INLINE void mix(const int rows, const int vectors, float *y, const float *p, const float *v, int64_t from, int64_t to, int64_t wide) {
	vf acc[ROWS][VECTORS];
	UNROLL for (int r = 0; r < rows; r++)
		UNROLL for (int i = 0; i < vectors; i++) acc[r][i] = vf_load(y + r * wide + 16 * i);
	for (int64_t j = from; j < to; j++) {
		vf of[VECTORS];
		UNROLL for (int i = 0; i < vectors; i++) of[i] = vf_load(v + j * wide + 16 * i);
		UNROLL for (int r = 0; r < rows; r++) {
			vf x = vf_set(p[r * STEP + j]);
			UNROLL for (int i = 0; i < vectors; i++) acc[r][i] = vf_fma(x, of[i], acc[r][i]);
		}
	}
	UNROLL for (int r = 0; r < rows; r++)
		UNROLL for (int i = 0; i < vectors; i++) vf_store(y + r * wide + 16 * i, acc[r][i]);
}

INLINE void mixAll(const int rows, float *y, const float *p, const float *v, int64_t from, int64_t to, int64_t wide) {
	int64_t c = 0;
	for (; c + LANES <= wide; c += LANES) mix(rows, VECTORS, y + c, p, v + c, from, to, wide);
	if (VECTORS > 2 && c + 32 <= wide) mix(rows, 2, y + c, p, v + c, from, to, wide), c += 32;
	if (VECTORS > 1 && c < wide) mix(rows, 1, y + c, p, v + c, from, to, wide);
}

// tile is what attendTile works in, the first part of its scratch: so many places do not fit onto the stack.
struct tile {
	const struct attendTile *a;
	int64_t rows;               // queries times heads
	int64_t dim, wide;          // numbers of a row, at least a chunk, and in whole chunks
	int64_t begin, end, window; // positions: the first and beyond the last that any row attends to, and how many a row does
	float *q, *y, *sum, *most;  // rows [wide], [wide], [CHUNK], [1]
	float *s;                   // scores of some rows [ROWS, STEP]
	float *k, *v;               // a step's keys, turned, and its values [STEP, wide]
	int64_t *at;                // where those begin in the cache
	half *keys, *values;        // those that are not taken as the cache has them [STEP, wide]
	bool finite;                // are the values
};

// AGAIN has the compiler read a tile anew.
#define AGAIN __asm__ volatile("" ::: "memory")

// ends is where a row's positions end.
INLINE int64_t ends(const struct attendTile *a, int64_t row) { return a->all ? a->all : a->first + row / a->heads + 1; }

INLINE struct tile *begin(const struct attendTile *a) {
	float *rest = aligned(a->scratch);
	struct tile *t = (struct tile *)part(&rest, sizeof *t / 4);
	int64_t dim = a->dim, wide = (dim + CHUNK - 1) / CHUNK * CHUNK, rows = a->queries * a->heads, all = (rows + 7) / 8 * 8;
	t->a = a, t->rows = rows, t->dim = larger(dim, CHUNK), t->wide = wide;
	t->end = a->all ? a->all : a->first + a->queries;
	t->window = a->window > 0 && !a->all ? a->window : t->end;
	t->begin = a->all ? 0 : larger(0, a->first + 1 - t->window);
	t->q = part(&rest, all * wide), t->y = part(&rest, all * wide), t->sum = part(&rest, all * CHUNK), t->most = part(&rest, all);
	t->s = part(&rest, ROWS * STEP), t->k = part(&rest, STEP * wide), t->v = part(&rest, STEP * wide);
	t->at = (int64_t *)part(&rest, 2 * STEP);
	t->keys = (half *)part(&rest, STEP * wide / 2), t->values = (half *)part(&rest, STEP * wide / 2);
	for (int64_t r = 0; r < all; r++) {
		float *row = t->q + r * wide;
		t->most[r] = LEAST;
		vf_store(t->sum + r * CHUNK, vf_zero());
		for (int64_t c = 0; c < wide; c += CHUNK) vf_store(row + c, vf_zero()), vf_store(t->y + r * wide + c, vf_zero());
		if (r >= rows) continue;
		const float *of = a->q + r / a->heads * a->stride + r % a->heads * dim;
		for (int64_t d = 0; d < dim; d += CHUNK) vf_store_first(row + d, vf_mul(vf_load_first(of + d, dim - d), vf_set(a->scale)), dim - d);
	}
	return t;
}

// take turns the keys of a step, of which positions from to to count, and converts their values.
INLINE void take(struct tile *t, int64_t step, int64_t from, int64_t to) {
	const struct attendTile *a = t->a;
	const struct cache *kv = &a->kv;
	const half *keys = kv->keys, *values = kv->values;
	int64_t *at = t->at, wide = t->wide, dim = t->dim;
	if (a->all) {
		narrow(t->keys, keys, step * kv->width + kv->head, to - step, kv->width, a->dim, wide);
		narrow(t->values, values, step * kv->width + kv->head, to - step, kv->width, a->dim, wide);
	} else {
		places(kv, at, step, from, to);
		if (a->dim < CHUNK) widen(t->keys, keys, at, a->dim), widen(t->values, values, at, a->dim);
	}
	if (a->all || a->dim < CHUNK) {
		keys = t->keys, values = t->values;
		for (int64_t i = 0; i < STEP; i++) at[i] = smaller(i, to - step - 1) * wide;
	}
	for (int64_t g = 0; g < STEP / 16; g++) {
		if (step + 16 * g >= to || step + 16 * g + 16 <= from) continue;
		turn(t->k + g / VECTORS * wide * LANES + g % VECTORS * 16, keys, at + 16 * g, dim);
	}
	vf finite = vf_zero();
	for (int64_t j = from - step; j < to - step; j++)
		for (int64_t c = 0; c < wide; c += CHUNK) {
			vf x = vf_half(values + at[j] + chunk(c, dim));
			vf_store(t->v + j * wide + c, x);
			finite = vf_fma(x, vf_zero(), finite);
		}
	t->finite = vf_sum(finite) == 0;
}

// attendRows adds what the step gives for ROWS rows from r on.
INLINE void attendRows(struct tile *t, int64_t step, int64_t r) {
	const struct attendTile *a = t->a;
	int64_t wide = t->wide, low = larger(0, ends(a, r) - t->window - step), high = smaller(STEP, ends(a, smaller(r + ROWS, t->rows) - 1) - step);
	if (low >= STEP || high <= 0) return;
	for (int64_t g = low / LANES; g * LANES < high; g++) scores(t->s + g * LANES, t->q + r * wide, t->k + g * wide * LANES, t->dim, wide);
	AGAIN;
	for (int64_t i = 0; i < ROWS; i++) {
		int64_t n = ends(a, r + i) - step;
		weigh(t->s + i * STEP, t->most + r + i, t->sum + (r + i) * CHUNK, t->y + (r + i) * wide, wide, n - t->window, n, a->cap);
	}
	AGAIN;
	if (t->finite) return mixAll(ROWS, t->y + r * wide, t->s, t->v, low, high, wide);
	// A value that is no number must not reach those that do not attend to it.
	for (int64_t i = 0; i < ROWS; i++) {
		int64_t n = ends(a, r + i) - step;
		mixAll(1, t->y + (r + i) * wide, t->s + i * STEP, t->v, larger(low, n - t->window), smaller(high, n), wide);
	}
}

// attendTile takes positions in steps that begin at multiples of STEP, so that a row's result does not
// depend on the tile that it is in: where a row has nothing in a step, its weights are zero and change nothing.
void attendTile(const struct attendTile *a) {
	struct tile *t = begin(a);
	AGAIN;
	for (int64_t step = t->begin / STEP * STEP; step < t->end; step += STEP) {
		AGAIN;
		take(t, step, larger(t->begin, step), smaller(t->end, step + STEP));
		AGAIN;
		for (int64_t r = 0; r < t->rows; r += ROWS) attendRows(t, step, r);
	}
	AGAIN;
	for (int64_t r = 0; r < t->rows; r++) finish(a->y + r / a->heads * a->stride + r % a->heads * a->dim, t->sum + r * CHUNK, t->y + r * t->wide, a->dim, t->wide);
}
