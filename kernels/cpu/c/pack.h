// What the kernels that pack share. They read 16 rows of a checkpoint, at any address, perhaps of a mapped file, and
// write a panel, whose address is a multiple of 64. Masks and addresses are kept from the compiler, which would
// work them out before it needs them and hold them on the stack.
#pragma once
#include "vec.h"

// pack is packArgs of packed.go.
struct pack {
	uint8_t *panel;
	const uint8_t *rows; // the first of 16
	int64_t stride;      // bytes between rows
	int64_t cols;
};

// Rows that lie so many bytes apart, from p on; three is 3 times one.
struct source {
	const uint8_t *p;
	int64_t one, three;
};
INLINE struct source sourceOf(const struct pack *a) { return (struct source){a->rows, a->stride, 3 * a->stride}; }

#ifdef PATH_AVX512
#define BOTH(op, a, b) _mm512_##op(a, b)
#else
#define BOTH(op, a, b) (vi){_mm256_##op(a.lo, b.lo), _mm256_##op(a.hi, b.hi)}
#endif

INLINE __m128i load16(const uint8_t *p) { return _mm_loadu_si128((const __m128i *)p); }

// words gives the four words of 16 bytes of each row, from byte at on.
INLINE void words(vi out[4], struct source *s, int64_t at) {
	vi a[4];
	__asm__("" : "+r"(s->p), "+r"(s->one), "+r"(s->three));
	const uint8_t *p = s->p + at;
	UNROLL for (int r = 0; r < 4; r++, p += s->one) {
#ifdef PATH_AVX512
		vi v = _mm512_inserti32x4(_mm512_castsi128_si512(load16(p)), load16(p + 4 * s->one), 1);
		a[r] = _mm512_inserti32x4(_mm512_inserti32x4(v, load16(p + 8 * s->one), 2), load16(p + 4 * s->three), 3);
#else
		a[r].lo = _mm256_inserti128_si256(_mm256_castsi128_si256(load16(p)), load16(p + 4 * s->one), 1);
		a[r].hi = _mm256_inserti128_si256(_mm256_castsi128_si256(load16(p + 8 * s->one)), load16(p + 4 * s->three), 1);
#endif
	}
	vi b0 = BOTH(unpacklo_epi32, a[0], a[1]), b1 = BOTH(unpacklo_epi32, a[2], a[3]);
	vi b2 = BOTH(unpackhi_epi32, a[0], a[1]), b3 = BOTH(unpackhi_epi32, a[2], a[3]);
	out[0] = BOTH(unpacklo_epi64, b0, b1), out[1] = BOTH(unpackhi_epi64, b0, b1);
	out[2] = BOTH(unpacklo_epi64, b2, b3), out[3] = BOTH(unpackhi_epi64, b2, b3);
}

// put writes past the caches, since weights are more than these hold; _mm_sfence ends it.
INLINE void put(uint8_t *to, vi v) {
#ifdef PATH_AVX512
	_mm512_stream_si512((void *)to, v);
#else
	_mm256_stream_si256((__m256i *)to, v.lo), _mm256_stream_si256((__m256i *)to + 1, v.hi);
#endif
}

INLINE vi masked(vi v, int32_t mask) {
	vi m = vi_set(mask);
#ifndef PATH_AVX512
	__asm__ volatile("" : "+x"(m.lo)); // or it would be held for the next time
	m.hi = m.lo;
#endif
	return vi_and(v, m);
}

// lowHalves gives the lower 16 bits of the rows of a, then those of b.
INLINE vi lowHalves(vi a, vi b) {
#ifdef PATH_AVX512
	const vi even = _mm512_set_epi16(62, 60, 58, 56, 54, 52, 50, 48, 46, 44, 42, 40, 38, 36, 34, 32, 30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
	return _mm512_permutex2var_epi16(a, even, b);
#else
	const __m256i zero = _mm256_setzero_si256();
	__m256i lo = _mm256_packus_epi32(_mm256_blend_epi16(a.lo, zero, 0xaa), _mm256_blend_epi16(a.hi, zero, 0xaa));
	__m256i hi = _mm256_packus_epi32(_mm256_blend_epi16(b.lo, zero, 0xaa), _mm256_blend_epi16(b.hi, zero, 0xaa));
	return (vi){_mm256_permute4x64_epi64(lo, 0xd8), _mm256_permute4x64_epi64(hi, 0xd8)};
#endif
}

// putFives writes a group of five bits, given as bytes; quant.h says which bits lie where.
INLINE void putFives(uint8_t *to, const vi q[8]) {
	put(to, vi_or(q[0], vi_left(masked(q[5], 0x1c1c1c1c), 3)));
	put(to + 64, vi_or(vi_or(q[1], vi_left(masked(q[5], 0x03030303), 6)), vi_left(masked(q[7], 0x02020202), 4)));
	put(to + 128, vi_or(q[2], vi_left(masked(q[6], 0x1c1c1c1c), 3)));
	put(to + 192, vi_or(vi_or(q[3], vi_left(masked(q[6], 0x03030303), 6)), vi_left(masked(q[7], 0x01010101), 5)));
	put(to + 256, vi_or(q[4], vi_left(masked(q[7], 0x1c1c1c1c), 3)));
}
