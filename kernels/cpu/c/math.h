// Functions and sums of vectors.
#pragma once
#include "vec.h"

#ifdef PATH_AVX512
INLINE void vf_store_half(half *p, vf v) { _mm256_storeu_si256((__m256i *)p, _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT)); }
INLINE vf vf_abs(vf v) { return _mm512_abs_ps(v); }
INLINE vf vf_sign(vf v, vf of) { return _mm512_or_ps(v, _mm512_and_ps(of, _mm512_set1_ps(-0.0f))); } // v, which is not negative, with the sign of another
INLINE vf vf_if_less(vf a, vf b, vf yes, vf no) { return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), no, yes); }
INLINE vf vf_round(vf v) { return _mm512_roundscale_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
INLINE vf vf_ldexp(vf v, vf n) { return _mm512_scalef_ps(v, n); } // v times two to the power of n, rounded once
INLINE uint32_t vf_above(vf v, vf low) { return _mm512_cmp_ps_mask(v, low, _CMP_GT_OQ); } // a bit a lane
INLINE float vf_sum(vf v) { return _mm512_reduce_add_ps(v); }
INLINE float vf_most(vf v) { return _mm512_reduce_max_ps(v); }
#else
INLINE void vf_store_half(half *p, vf v) {
	_mm_storeu_si128((__m128i *)p, _mm256_cvtps_ph(v.lo, _MM_FROUND_TO_NEAREST_INT));
	_mm_storeu_si128((__m128i *)p + 1, _mm256_cvtps_ph(v.hi, _MM_FROUND_TO_NEAREST_INT));
}
INLINE vf vf_abs(vf v) {
	__m256 sign = _mm256_set1_ps(-0.0f);
	return (vf){_mm256_andnot_ps(sign, v.lo), _mm256_andnot_ps(sign, v.hi)};
}
INLINE vf vf_sign(vf v, vf of) {
	__m256 sign = _mm256_set1_ps(-0.0f);
	return (vf){_mm256_or_ps(v.lo, _mm256_and_ps(of.lo, sign)), _mm256_or_ps(v.hi, _mm256_and_ps(of.hi, sign))};
}
INLINE vf vf_if_less(vf a, vf b, vf yes, vf no) {
	return (vf){_mm256_blendv_ps(no.lo, yes.lo, _mm256_cmp_ps(a.lo, b.lo, _CMP_LT_OQ)), _mm256_blendv_ps(no.hi, yes.hi, _mm256_cmp_ps(a.hi, b.hi, _CMP_LT_OQ))};
}
INLINE vf vf_round(vf v) {
	return (vf){_mm256_round_ps(v.lo, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC), _mm256_round_ps(v.hi, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
// In two factors, of which the first is exact, since one alone may be no normal number.
INLINE __m256 ldexp256(__m256 v, __m256 n) {
	__m256i whole = _mm256_cvtps_epi32(n), a = _mm256_srai_epi32(whole, 1), b = _mm256_sub_epi32(whole, a), bias = _mm256_set1_epi32(127);
	v = _mm256_mul_ps(v, _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(a, bias), 23)));
	return _mm256_mul_ps(v, _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(b, bias), 23)));
}
INLINE vf vf_ldexp(vf v, vf n) { return (vf){ldexp256(v.lo, n.lo), ldexp256(v.hi, n.hi)}; }
INLINE uint32_t vf_above(vf v, vf low) {
	return (uint32_t)(_mm256_movemask_ps(_mm256_cmp_ps(v.lo, low.lo, _CMP_GT_OQ)) | _mm256_movemask_ps(_mm256_cmp_ps(v.hi, low.hi, _CMP_GT_OQ)) << 8);
}
INLINE float vf_sum(vf v) {
	__m256 a = _mm256_add_ps(v.lo, v.hi);
	__m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
	b = _mm_add_ps(b, _mm_movehl_ps(b, b));
	return _mm_cvtss_f32(_mm_add_ss(b, _mm_movehdup_ps(b)));
}
INLINE float vf_most(vf v) {
	__m256 a = _mm256_max_ps(v.lo, v.hi);
	__m128 b = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
	b = _mm_max_ps(b, _mm_movehl_ps(b, b));
	return _mm_cvtss_f32(_mm_max_ss(b, _mm_movehdup_ps(b)));
}
#endif

// vf_clamp keeps what is not a number: min and max give the second, if one is none.
INLINE vf vf_clamp(vf v, float least, float most) { return vf_min(vf_set(most), vf_max(vf_set(least), v)); }

// What vf_exp and vf_tanh multiply with: polynomials are minimax ones, 3e-9 and 3e-10 off.
static const float numbers[] = {
	-104, 89, 1.44269504f, -0.693359375f, 2.12194440e-4f, // beyond are 0 and infinity; log2 e; ln 2 in two parts
	0.00138148281f, 0.00836871006f, 0.0416683815f, 0.166665211f, 0.49999994f, 1,
	0.00213856599f, -0.00818028674f, 0.0217058565f, -0.0539486744f, 0.133332327f, -0.333333313f, 2, 0.625f,
};

// vf_exp is e to the power of x within 1 unit in the last place: 2^n e^r, r at most ln 2 / 2. c is numbers, perhaps
// by a pointer of which the compiler does not know that: in a large kernel it would keep them all in registers,
// that is, on the stack.
INLINE vf vf_exp(const float *c, vf x) {
	x = vf_min(vf_set(c[1]), vf_max(vf_set(c[0]), x)); // keeps what is not a number: the second, if one is none
	vf n = vf_round(vf_mul(x, vf_set(c[2])));
	vf r = vf_fma(n, vf_set(c[3]), x);
	r = vf_fma(n, vf_set(c[4]), r);
	vf p = vf_set(c[5]);
	p = vf_fma(p, r, vf_set(c[6]));
	p = vf_fma(p, r, vf_set(c[7]));
	p = vf_fma(p, r, vf_set(c[8]));
	p = vf_fma(p, r, vf_set(c[9]));
	p = vf_fma(vf_mul(r, r), p, r);
	return vf_ldexp(vf_add(p, vf_set(c[10])), n);
}

// vf_tanh is within 2 units in the last place: a polynomial near 0, and 1 - 2/(e^2x + 1).
INLINE vf vf_tanh(const float *c, vf x) {
	vf a = vf_abs(x), z = vf_mul(x, x);
	vf p = vf_set(c[11]);
	p = vf_fma(p, z, vf_set(c[12]));
	p = vf_fma(p, z, vf_set(c[13]));
	p = vf_fma(p, z, vf_set(c[14]));
	p = vf_fma(p, z, vf_set(c[15]));
	p = vf_fma(p, z, vf_set(c[16]));
	p = vf_fma(vf_mul(p, z), x, x);
	vf one = vf_set(c[10]), far = vf_sub(one, vf_div(vf_set(c[17]), vf_add(vf_exp(c, vf_add(a, a)), one)));
	return vf_if_less(a, vf_set(c[18]), p, vf_sign(far, x));
}
