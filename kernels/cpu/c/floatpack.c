// variants: avx2 avx512
// These read mapped files: they use no stack.
#include "float.h"

#define ROLL _Pragma("clang loop unroll(disable) vectorize(disable)")

typedef uint32_t word __attribute__((aligned(1), may_alias));
typedef uint16_t short_word __attribute__((aligned(1), may_alias));

// pack is packArgs of packed.go.
struct pack {
	uint8_t *dst;
	const uint8_t *src; // the panel's first row
	int64_t stride;     // bytes between rows
	int64_t rows;       // 16
	int64_t cols;
};

// words4 gives for each of 4 words the 16 rows' words. The rows lie stride bytes apart; row are the first,
// the fifth, the ninth and the thirteenth: few enough for addresses without a stack.
#ifdef PATH_AVX512
INLINE vi lanes4(const uint8_t *const row[4], int64_t at) {
	vi v = _mm512_castsi128_si512(_mm_loadu_si128((const __m128i *)(row[0] + at)));
	v = _mm512_inserti32x4(v, _mm_loadu_si128((const __m128i *)(row[1] + at)), 1);
	v = _mm512_inserti32x4(v, _mm_loadu_si128((const __m128i *)(row[2] + at)), 2);
	return _mm512_inserti32x4(v, _mm_loadu_si128((const __m128i *)(row[3] + at)), 3);
}
INLINE void words4(vi v[4], const uint8_t *const row[4], int64_t stride, int64_t stride3) {
	vi a = lanes4(row, 0), b = lanes4(row, stride), c = lanes4(row, 2 * stride), d = lanes4(row, stride3);
	vi ab = _mm512_unpacklo_epi32(a, b), cd = _mm512_unpacklo_epi32(c, d);
	v[0] = _mm512_unpacklo_epi64(ab, cd), v[1] = _mm512_unpackhi_epi64(ab, cd);
	ab = _mm512_unpackhi_epi32(a, b), cd = _mm512_unpackhi_epi32(c, d);
	v[2] = _mm512_unpacklo_epi64(ab, cd), v[3] = _mm512_unpackhi_epi64(ab, cd);
}
// The panel is not read soon: it goes past the caches.
INLINE void put(uint8_t *dst, vi v) { _mm512_stream_si512((void *)dst, v); }
// apart puts the 16 low halves of the words before the 16 high ones.
INLINE vi apart(vi v) {
	const vi index = _mm512_set_epi16(31, 29, 27, 25, 23, 21, 19, 17, 15, 13, 11, 9, 7, 5, 3, 1, 30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
	return _mm512_permutexvar_epi16(index, v);
}
#else
INLINE __m256i lanes2(const uint8_t *const row[2], int64_t at) {
	return _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128((const __m128i *)(row[0] + at))), _mm_loadu_si128((const __m128i *)(row[1] + at)), 1);
}
INLINE void words4x8(__m256i v[4], const uint8_t *const row[2], int64_t stride, int64_t stride3) {
	__m256i a = lanes2(row, 0), b = lanes2(row, stride), c = lanes2(row, 2 * stride), d = lanes2(row, stride3);
	__m256i ab = _mm256_unpacklo_epi32(a, b), cd = _mm256_unpacklo_epi32(c, d);
	v[0] = _mm256_unpacklo_epi64(ab, cd), v[1] = _mm256_unpackhi_epi64(ab, cd);
	ab = _mm256_unpackhi_epi32(a, b), cd = _mm256_unpackhi_epi32(c, d);
	v[2] = _mm256_unpacklo_epi64(ab, cd), v[3] = _mm256_unpackhi_epi64(ab, cd);
}
INLINE void words4(vi v[4], const uint8_t *const row[4], int64_t stride, int64_t stride3) {
	__m256i half[4];
	words4x8(half, row, stride, stride3);
	UNROLL for (int i = 0; i < 4; i++) v[i].lo = half[i];
	words4x8(half, row + 2, stride, stride3);
	UNROLL for (int i = 0; i < 4; i++) v[i].hi = half[i];
}
INLINE void put(uint8_t *dst, vi v) { _mm256_stream_si256((__m256i *)dst, v.lo), _mm256_stream_si256((__m256i *)dst + 1, v.hi); }
INLINE __m256i apart8(__m256i v) {
	const __m256i index = _mm256_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15, 0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15);
	return _mm256_permute4x64_epi64(_mm256_shuffle_epi8(v, index), 0xd8);
}
INLINE vi apart(vi v) {
	__m256i lo = apart8(v.lo), hi = apart8(v.hi);
	return (vi){_mm256_permute2x128_si256(lo, hi, 0x20), _mm256_permute2x128_si256(lo, hi, 0x31)};
}
#endif

// pack writes words of 4 bytes: a column of F32, or two of the others. A panel has a multiple
// of even columns.
INLINE void pack(const struct pack *a, int bytes, int even, int split) {
	int64_t n = a->cols * bytes, stride = a->stride, stride3 = 3 * stride;
	uint8_t *dst = a->dst;
	const uint8_t *row[4] = {a->src, a->src + 4 * stride, a->src + 8 * stride, a->src + 12 * stride};
	while (n >= 16) {
		// Nine registers need no stack: addresses are not to be worked out before.
		__asm__("" : "+r"(row[0]), "+r"(row[1]), "+r"(row[2]), "+r"(row[3]), "+r"(stride), "+r"(stride3), "+r"(n));
		vi v[4];
		words4(v, row, stride, stride3);
		UNROLL for (int i = 0; i < 4; i++) put(dst + 64 * i, split ? apart(v[i]) : v[i]);
		UNROLL for (int i = 0; i < 4; i++) row[i] += 16;
		dst += 256;
		n -= 16;
		__asm__("" : "+r"(n));
	}
	for (const uint8_t *src = row[0]; n > 0; n -= 4, src += 4, dst += 64) {
		const uint8_t *p = src;
		ROLL for (int64_t r = 0; r < 16; r++, p += stride) {
			uint32_t v = n == 2 ? *(const short_word *)p : *(const word *)p;
			if (split) {
				((half *)dst)[r] = v;
				((half *)dst)[16 + r] = v >> 16;
			} else {
				((uint32_t *)dst)[r] = v;
			}
		}
	}
	for (n = (a->cols + 1) / 2 * 2; bytes == 2 && n % even != 0; n += 2, dst += 64) put(dst, vi_set(0));
	_mm_sfence();
}

// packF32 makes a panel: for each column the 16 rows' numbers.
void packF32(struct pack *a) { pack(a, 4, 1, 0); }

// packF16 makes a panel: for each column the 16 rows' halves; the columns are made even.
void packF16(struct pack *a) { pack(a, 2, 2, 1); }

// packBF16 makes a panel: for each two columns the 16 rows' pairs of numbers; the columns are
// made a multiple of 32, as tiles want them.
void packBF16(struct pack *a) { pack(a, 2, 32, 0); }
