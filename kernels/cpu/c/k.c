// variants: avx2 avx512
// Blocks of 256 columns.
#include "k.h"
#include "quant.h"

// WHOLE_BYTES says that products of bytes up to 240 are summed without a stop at 16 bits.
#ifdef PATH_AVX512
enum { WHOLE_BYTES = 1 };
#else
enum { WHOLE_BYTES = 0 };
#endif

static const struct kind kinds[] = {
	[Q4K] = {.offset = 0, .most = 15, .least = true},
	[Q5K] = {.offset = 0, .most = 31, .least = true},
	[Q6K] = {.offset = 32, .most = 63, .halves = true},
};

// THEN keeps the compiler from loading what a later group needs, which the registers would not hold.
#define THEN __asm__ volatile("" ::: "memory")

INLINE vi lower(vi v) { return vi_and(v, vi_set(0x0f0f0f0f)); }
INLINE vi upper(vi v) { return lower(vi_right(v, 4)); }

// byte i of each row's four
INLINE vi byteOf(vi v, int i) { return vi_and(vi_right(v, 8 * i), vi_set(0xff)); }
INLINE vi signedByteOf(vi v, int i) { return vi_right_signed(vi_left(v, 24 - 8 * i), 24); }

// four and six give columns 4i to 4i+3 of a group of Q4_K and Q6_K; quant.h has those of Q5_K.

INLINE vi four(const uint8_t *unit, int odd, int i, bool times16) {
	vi q = vi_load(unit + SCALES + 64 * i);
	if (!odd)
		return lower(q);
	return times16 ? vi_and(q, vi_set(0xf0f0f0f0)) : upper(q);
}

INLINE vi six(const uint8_t *group, int i) {
	group += i / 4 * 192, i %= 4;
	vi q = vi_load(group + 64 * (i % 3));
	if (i == 3)
		q = pick(0x3c3c3c3c, pick(0x30303030, vi_right(q, 2), vi_right(vi_load(group + 64), 4)), vi_right(vi_load(group + 128), 6));
	return vi_and(q, vi_set(0x3f3f3f3f));
}

// scale and minimum of a group of Q4_K or Q5_K; s are its unit's.
INLINE vf scaleOf(vi s, int odd, vf d) { return vf_mul(d, vf_int(byteOf(s, 2 * odd))); }
INLINE vf leastOf(vi s, int odd, vf m) { return vf_mul(m, vf_int(byteOf(s, 2 * odd + 1))); }
// scale of half a group of Q6_K
INLINE vf signedScaleOf(vi s, int odd, int half, vf d) { return vf_mul(d, vf_int(signedByteOf(s, 2 * odd + half))); }

// numbers that a block begins with
INLINE vf dOf(enum format f, const uint8_t *w) { return f == Q6K ? vf_load((const float *)w) : vf_half((const half *)w); }
INLINE vf mOf(const uint8_t *w) { return vf_sub(vf_zero(), vf_half((const half *)(w + 32))); }

// one multiplies one of a unit's groups by R rows; d and m are the block's numbers.
INLINE void one(enum format f, vf d, vf m, const uint8_t *unit, int odd, int64_t group, const int R, const uint8_t *const *x, vf *acc) {
	const struct kind k = kinds[f];
	const uint8_t *bits = unit + SCALES + odd * groupSize(f);
	struct dots dots;
	// With more rows than 2 the processor looks too little ahead by itself.
	if (R > 2)
		UNROLL for (int i = 0; i < groupSize(f) + SCALES * odd; i += 64) __builtin_prefetch(bits + i + 4096, 0, 3);
	if (f == Q6K) {
		UNROLL for (int half = 0; half < 2; half++) {
			THEN;
			begin(k, R, &dots, x, group, half);
			UNROLL for (int i = 4 * half; i < 4 * half + 4; i++) step(k, R, &dots, x, group, i, six(bits, i));
			end(k, R, acc, &dots, x, group, signedScaleOf(vi_load(unit), odd, half, d), vf_zero(), half);
		}
		return;
	}
	const bool times16 = f == Q4K && WHOLE_BYTES;
	THEN;
	begin(k, R, &dots, x, group, 0);
	UNROLL for (int i = 0; i < 8; i++) step(k, R, &dots, x, group, i, f == Q5K ? five(bits, i) : four(unit, odd, i, times16));
	if (times16 && odd)
		UNROLL for (int r = 0; r < R; r++) dots.dot[r] = vi_right_signed(dots.dot[r], 4);
	vi s = vi_load(unit);
	end(k, R, acc, &dots, x, group, scaleOf(s, odd, d), leastOf(s, odd, m), 0);
}

INLINE void panel(enum format f, const uint8_t *w, int64_t cols, const int R, const uint8_t *const *x, vf *acc) {
	ROLL for (int64_t group = 0; group < cols / 32; w += blockSize(f)) {
		vf d = dOf(f, w), m = f == Q6K ? vf_zero() : mOf(w);
		const uint8_t *unit = w + HEADER;
		ROLL for (int u = 0; u < UNITS; u++, unit += unitSize(f), group += 2) {
			one(f, d, m, unit, 0, group, R, x, acc);
			one(f, d, m, unit, 1, group + 1, R, x, acc);
		}
	}
}

INLINE void unpack(enum format f, uint8_t *to, const uint8_t *w, int64_t group, int64_t groups) {
	const struct kind k = kinds[f];
	w += group / (2 * UNITS) * blockSize(f);
	ROLL for (; groups > 0; groups -= 2 * UNITS, w += blockSize(f)) {
		vf d = dOf(f, w);
		const uint8_t *unit = w + HEADER;
		ROLL for (int u = 0; u < UNITS; u++, unit += unitSize(f)) {
			vi s = vi_load(unit);
			UNROLL for (int odd = 0; odd < 2; odd++, to += groupBytes(k)) {
				if (f == Q6K)
					UNROLL for (int half = 0; half < 2; half++) putFloat(to, half, signedScaleOf(s, odd, half, d));
				else
					putFloat(to, 0, scaleOf(s, odd, d)), putFloat(to, 1, leastOf(s, odd, mOf(w)));
				const uint8_t *bits = unit + SCALES + odd * groupSize(f);
				UNROLL for (int i = 0; i < 8; i++) putQ(k, to, i, f == Q6K ? six(bits, i) : f == Q5K ? five(bits, i) : four(unit, odd, i, false));
			}
		}
	}
}

INLINE void panelQ4K(const uint8_t *w, int64_t cols, const int R, const uint8_t *const *x, vf *acc) { panel(Q4K, w, cols, R, x, acc); }
INLINE void panelQ5K(const uint8_t *w, int64_t cols, const int R, const uint8_t *const *x, vf *acc) { panel(Q5K, w, cols, R, x, acc); }
INLINE void panelQ6K(const uint8_t *w, int64_t cols, const int R, const uint8_t *const *x, vf *acc) { panel(Q6K, w, cols, R, x, acc); }
INLINE void unpackQ4K(uint8_t *to, const uint8_t *w, int64_t, int64_t group, int64_t groups) { unpack(Q4K, to, w, group, groups); }
INLINE void unpackQ5K(uint8_t *to, const uint8_t *w, int64_t, int64_t group, int64_t groups) { unpack(Q5K, to, w, group, groups); }
INLINE void unpackQ6K(uint8_t *to, const uint8_t *w, int64_t, int64_t group, int64_t groups) { unpack(Q6K, to, w, group, groups); }

FEW(fewQ4K, panelQ4K)
FEW(fewQ5K, panelQ5K)
FEW(fewQ6K, panelQ6K)
MANY(manyQ4K, kinds[Q4K], unpackQ4K)
MANY(manyQ5K, kinds[Q5K], unpackQ5K)
MANY(manyQ6K, kinds[Q6K], unpackQ6K)
