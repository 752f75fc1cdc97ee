// variants: avx2 avx512
#include "k.h"

static const struct kind kinds[] = {
	[Q4K] = {.offset = 0, .most = 15, .least = true},
	[Q5K] = {.offset = 0, .most = 31, .least = true},
	[Q6K] = {.offset = 32, .most = 63, .halves = true},
};

// THEN keeps the compiler from loading what a later group needs, which the registers would not hold.
#define THEN __asm__ volatile("" ::: "memory")

INLINE vi lower(vi v) { return vi_and(v, vi_set(0x0f0f0f0f)); }
INLINE vi upper(vi v) { return lower(vi_right(v, 4)); }

#ifdef PATH_AVX512
INLINE vi vi_pick(vi mask, vi a, vi b) { return _mm512_ternarylogic_epi32(mask, a, b, 0xca); } // a where mask, else b
INLINE vi vi_rotate(vi v, int n) { return _mm512_rolv_epi32(v, _mm512_set1_epi32(n)); }
#else
INLINE __m256i pick256(__m256i mask, __m256i a, __m256i b) { return _mm256_or_si256(_mm256_and_si256(mask, a), _mm256_andnot_si256(mask, b)); }
INLINE vi vi_pick(vi mask, vi a, vi b) { return (vi){pick256(mask.lo, a.lo, b.lo), pick256(mask.hi, a.hi, b.hi)}; }
INLINE __m256i rotate256(__m256i v, __m128i left, __m128i right) { return _mm256_or_si256(_mm256_sll_epi32(v, left), _mm256_srl_epi32(v, right)); }
INLINE vi vi_rotate(vi v, int n) {
	__m128i left = _mm_cvtsi32_si128(n & 31), right = _mm_cvtsi32_si128(-n & 31);
	return (vi){rotate256(v.lo, left, right), rotate256(v.hi, left, right)};
}
#endif

// fifth gives the fifth bits, of groups 0 to 7, of vector i.
INLINE vi fifth(const uint8_t *fifths, int i, int group) { return vi_and(vi_rotate(vi_load(fifths + 64 * i), 4 - group), vi_set(0x10101010)); }

// byte i of each row's four
INLINE vi byte_of(vi v, int i) { return vi_and(vi_right(v, 8 * i), vi_set(0xff)); }
INLINE vi signed_byte_of(vi v, int i) { return vi_right_signed(vi_left(v, 24 - 8 * i), 24); }

// nibble gives vector i of the first or second group of a unit of Q4_K or Q5_K. Where it may be 16 times as much, it is
// in Q4_K's second group.
INLINE vi nibble(enum format f, const uint8_t *unit, const uint8_t *fifths, int u, int odd, int i, bool times16) {
	vi q = vi_load(unit + SCALES + 64 * i);
	if (times16)
		return odd ? vi_and(q, vi_set(0xf0f0f0f0)) : lower(q);
	q = odd ? upper(q) : lower(q);
	return f == Q5K ? vi_or(q, fifth(fifths, i, 2 * u + odd)) : q;
}

// six gives vector i of the first or second group of a unit of Q6_K.
INLINE vi six(const uint8_t *unit, int odd, int i) {
	vi h = vi_load(unit + SCALES + 64 * (i % 4)), q = vi_load(unit + SCALES + 256 + 256 * odd + 64 * (i % 4));
	const int left = 4 - 4 * odd - i / 4 * 2; // to bits 4 and 5
	h = left < 0 ? vi_right(h, -left) : vi_left(h, left);
	return vi_pick(vi_set(0x0f0f0f0f), i < 4 ? q : vi_right(q, 4), vi_and(h, vi_set(0x30303030)));
}

// scale and minimum of a group of Q4_K or Q5_K; s are its unit's.
INLINE vf scale_of(vi s, int odd, vf d) { return vf_mul(d, vf_int(byte_of(s, 2 * odd))); }
INLINE vf least_of(vi s, int odd, vf m) { return vf_mul(m, vf_int(byte_of(s, 2 * odd + 1))); }
// scale of half a group of Q6_K
INLINE vf signed_scale_of(vi s, int odd, int half, vf d) { return vf_mul(d, vf_int(signed_byte_of(s, 2 * odd + half))); }

// numbers that a block begins with
INLINE vf d_of(enum format f, const uint8_t *w) { return f == Q6K ? vf_load((const float *)w) : vf_half((const half *)w); }
INLINE vf m_of(const uint8_t *w) { return vf_sub(vf_zero(), vf_half((const half *)(w + 32))); }

// group multiplies one of a unit's groups by R rows.
INLINE void one(enum format f, const uint8_t *w, const uint8_t *unit, int u, int odd, int64_t group, const int R, const uint8_t *const *x, vf *acc) {
	const struct kind k = kinds[f];
	struct dots dots;
	if (f == Q6K) {
		UNROLL for (int half = 0; half < 2; half++) {
			THEN;
			begin(k, R, &dots, x, group, half);
			UNROLL for (int i = 4 * half; i < 4 * half + 4; i++) step(k, R, &dots, x, group, i, six(unit, odd, i));
			end(k, R, acc, &dots, x, group, signed_scale_of(vi_load(unit), odd, half, d_of(f, w)), vf_zero(), half);
		}
		return;
	}
	const bool times16 = f == Q4K && WHOLE_BYTES;
	THEN;
	begin(k, R, &dots, x, group, 0);
	UNROLL for (int i = 0; i < 8; i++) step(k, R, &dots, x, group, i, nibble(f, unit, w + HEADER, u, odd, i, times16));
	if (times16 && odd)
		UNROLL for (int r = 0; r < R; r++) dots.dot[r] = vi_right_signed(dots.dot[r], 4);
	vi s = vi_load(unit);
	end(k, R, acc, &dots, x, group, scale_of(s, odd, d_of(f, w)), least_of(s, odd, m_of(w)), 0);
}

INLINE void panel(enum format f, const uint8_t *w, int64_t cols, const int R, const uint8_t *const *x, vf *acc) {
	ROLL for (int64_t group = 0; group < cols / 32; w += block_bytes(f)) {
		const uint8_t *unit = w + units_at(f);
		ROLL for (int u = 0; u < UNITS; u++, unit += unit_bytes(f), group += 2) {
			one(f, w, unit, u, 0, group, R, x, acc);
			one(f, w, unit, u, 1, group + 1, R, x, acc);
		}
	}
}

INLINE void unpack(enum format f, uint8_t *to, const uint8_t *w, int64_t group, int64_t groups) {
	const struct kind k = kinds[f];
	w += group / (2 * UNITS) * block_bytes(f);
	ROLL for (; groups > 0; groups -= 2 * UNITS, w += block_bytes(f)) {
		vf d = d_of(f, w);
		const uint8_t *unit = w + units_at(f);
		ROLL for (int u = 0; u < UNITS; u++, unit += unit_bytes(f)) {
			vi s = vi_load(unit);
			UNROLL for (int odd = 0; odd < 2; odd++, to += group_bytes(k)) {
				if (f == Q6K)
					UNROLL for (int half = 0; half < 2; half++) put_float(to, half, signed_scale_of(s, odd, half, d));
				else
					put_float(to, 0, scale_of(s, odd, d)), put_float(to, 1, least_of(s, odd, m_of(w)));
				UNROLL for (int i = 0; i < 8; i++)
					put_q(k, to, i, f == Q6K ? six(unit, odd, i) : nibble(f, unit, w + HEADER, u, odd, i, false));
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
