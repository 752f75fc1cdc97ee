// variants: avx2 avx512
// Rows of activations in the forms of activations.go.
#include "quant.h"

// prepare is prepareArgs of activations.go.
struct prepare {
	uint8_t *dst;
	const float *x; // [rows, cols]
	int64_t rows, cols;
};

INLINE vi magnitude(vf v) { return vi_and(vi_bits(v), vi_set(0x7fffffff)); }

#ifdef PATH_AVX512
INLINE uint32_t largest(vi a, vi b) { return _mm512_reduce_max_epu32(_mm512_max_epu32(a, b)); }
INLINE vi nearest(vf v) { return _mm512_cvtps_epi32(v); }
INLINE void store8(int8_t *q, vi v) { _mm_storeu_si128((__m128i *)q, _mm512_cvtepi32_epi8(v)); }
INLINE int32_t total(vi v) { return _mm512_reduce_add_epi32(v); }
#else
INLINE uint32_t largest(vi a, vi b) {
	__m256i v = _mm256_max_epu32(_mm256_max_epu32(a.lo, a.hi), _mm256_max_epu32(b.lo, b.hi));
	__m128i u = _mm_max_epu32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
	u = _mm_max_epu32(u, _mm_shuffle_epi32(u, 0x4e));
	return _mm_cvtsi128_si32(_mm_max_epu32(u, _mm_shuffle_epi32(u, 0xb1)));
}
INLINE vi nearest(vf v) { return (vi){_mm256_cvtps_epi32(v.lo), _mm256_cvtps_epi32(v.hi)}; }
INLINE void store8(int8_t *q, vi v) {
	__m256i w = _mm256_permute4x64_epi64(_mm256_packs_epi32(v.lo, v.hi), 0xd8);
	_mm_storeu_si128((__m128i *)q, _mm_packs_epi16(_mm256_castsi256_si128(w), _mm256_extracti128_si256(w, 1)));
}
INLINE int32_t total(vi v) {
	__m256i w = _mm256_add_epi32(v.lo, v.hi);
	__m128i u = _mm_add_epi32(_mm256_castsi256_si128(w), _mm256_extracti128_si256(w, 1));
	u = _mm_add_epi32(u, _mm_shuffle_epi32(u, 0x4e));
	return _mm_cvtsi128_si32(_mm_add_epi32(u, _mm_shuffle_epi32(u, 0xb1)));
}
#endif

INLINE float ofBits(uint32_t bits) { return __builtin_bit_cast(float, bits); }

// prepareInt8 writes records.
void prepareInt8(const struct prepare *a) {
	struct record *to = (struct record *)a->dst;
	const float *x = a->x;
	ROLL for (int64_t i = a->rows * (a->cols / 32); i > 0; i--, to++, x += 32) {
		vf u = vf_load(x), v = vf_load(x + 16);
		uint32_t bits = largest(magnitude(u), magnitude(v));
		if (bits < 0x0d800000 || bits >= 0x7f800000) { // 2^-100; infinity
			*to = (struct record){};
			if (bits >= 0x7f800000)
				to->scale = to->sum = ofBits(0x7fc00000);
			continue;
		}
		vf inverse = vf_set(127 / ofBits(bits));
		float scale = ofBits(bits) / 127;
		vi p = nearest(vf_mul(u, inverse)), q = nearest(vf_mul(v, inverse));
		int32_t first = total(p), sum = first + total(q);
		store8(to->q, p), store8(to->q + 16, q);
		to->scale = scale;
		to->start = -128 * sum;
		to->sum = scale * sum;
		to->first = -128 * first;
	}
}

// rounded gives the 16 bits of a bfloat16: to nearest, ties to even; what is no number stays none.
INLINE uint16_t rounded(float x) {
	uint32_t b = __builtin_bit_cast(uint32_t, x);
	return x != x ? b >> 16 | 0x40 : (b + 0x7fff + (b >> 16 & 1)) >> 16;
}

#ifdef PATH_AVX512
INLINE void rounded32(uint16_t *y, const float *x) {
	UNROLL for (int i = 0; i < 32; i += 16) {
		vf v = vf_load(x + i);
		vi b = vi_bits(v), high = vi_right(b, 16);
		vi n = vi_right(vi_add(b, vi_add(vi_set(0x7fff), vi_and(high, vi_set(1)))), 16);
		n = _mm512_mask_or_epi32(n, _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q), high, vi_set(0x40));
		_mm256_storeu_si256((__m256i *)(y + i), _mm512_cvtepi32_epi16(n));
	}
}
#else
INLINE __m256i rounded8(__m256 v) {
	__m256i b = _mm256_castps_si256(v), high = _mm256_srli_epi32(b, 16);
	__m256i n = _mm256_srli_epi32(_mm256_add_epi32(b, _mm256_add_epi32(_mm256_set1_epi32(0x7fff), _mm256_and_si256(high, _mm256_set1_epi32(1)))), 16);
	return _mm256_blendv_epi8(n, _mm256_or_si256(high, _mm256_set1_epi32(0x40)), _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q)));
}
INLINE void rounded32(uint16_t *y, const float *x) {
	UNROLL for (int i = 0; i < 32; i += 16) {
		__m256i w = _mm256_packus_epi32(rounded8(_mm256_loadu_ps(x + i)), rounded8(_mm256_loadu_ps(x + i + 8)));
		_mm256_storeu_si256((__m256i *)(y + i), _mm256_permute4x64_epi64(w, 0xd8));
	}
}
#endif

// prepareBFloat16 writes rows of bfloat16, filled up with zeros to a multiple of 32.
void prepareBFloat16(const struct prepare *a) {
	uint16_t *y = (uint16_t *)a->dst;
	const float *x = a->x;
	ROLL for (int64_t r = 0; r < a->rows; r++) {
		int64_t k = 0;
		ROLL for (; k + 32 <= a->cols; k += 32, x += 32, y += 32) rounded32(y, x);
		if (k < a->cols) {
			ROLL for (int64_t i = 0; i < 32; i++) y[i] = k + i < a->cols ? rounded(x[i]) : 0;
			x += a->cols - k, y += 32;
		}
	}
}
