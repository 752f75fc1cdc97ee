// Vectors of 16 lanes, the rows of a panel, for both widths of registers.
#pragma once
#include <immintrin.h>
#include <stdint.h>

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("clang loop unroll(full)")
#define ROLL _Pragma("clang loop unroll(disable) vectorize(disable)")

typedef uint16_t half; // the bits of an IEEE half, or of a bfloat16

#ifdef PATH_AVX512
typedef __m512 vf;
typedef __m512i vi;
INLINE vf vf_zero(void) { return _mm512_setzero_ps(); }
INLINE vf vf_load(const float *p) { return _mm512_loadu_ps(p); }
INLINE void vf_store(float *p, vf v) { _mm512_storeu_ps(p, v); }
INLINE vf vf_set(float x) { return _mm512_set1_ps(x); }
INLINE vf vf_add(vf a, vf b) { return _mm512_add_ps(a, b); }
INLINE vf vf_sub(vf a, vf b) { return _mm512_sub_ps(a, b); }
INLINE vf vf_mul(vf a, vf b) { return _mm512_mul_ps(a, b); }
INLINE vf vf_div(vf a, vf b) { return _mm512_div_ps(a, b); }
INLINE vf vf_max(vf a, vf b) { return _mm512_max_ps(a, b); }
INLINE vf vf_min(vf a, vf b) { return _mm512_min_ps(a, b); }
INLINE vf vf_fma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); } // a*b + c
INLINE vf vf_half(const half *p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p)); }
INLINE vf vf_int(vi v) { return _mm512_cvtepi32_ps(v); }
INLINE vi vi_bits(vf v) { return _mm512_castps_si512(v); }
INLINE vf vf_bits(vi v) { return _mm512_castsi512_ps(v); }
INLINE vi vi_set(int32_t x) { return _mm512_set1_epi32(x); }
INLINE vi vi_load(const void *p) { return _mm512_loadu_si512(p); }
// a + sums of the four products of unsigned bytes of w and signed bytes of x
INLINE vi vi_dot(vi a, vi w, vi x) { return _mm512_dpbusd_epi32(a, w, x); }
INLINE vi vi_zero(void) { return _mm512_setzero_si512(); }
INLINE void vi_store(void *p, vi v) { _mm512_storeu_si512(p, v); }
INLINE vi vi_add(vi a, vi b) { return _mm512_add_epi32(a, b); }
INLINE vi vi_sub(vi a, vi b) { return _mm512_sub_epi32(a, b); }
INLINE vi vi_and(vi a, vi b) { return _mm512_and_si512(a, b); }
INLINE vi vi_or(vi a, vi b) { return _mm512_or_si512(a, b); }
INLINE vi vi_xor(vi a, vi b) { return _mm512_xor_si512(a, b); }
INLINE vi vi_left(vi a, int n) { return _mm512_slli_epi32(a, n); }
INLINE vi vi_right(vi a, int n) { return _mm512_srli_epi32(a, n); }
INLINE vi vi_right_signed(vi a, int n) { return _mm512_srai_epi32(a, n); }
// the first n lanes in memory
typedef __mmask16 lanes;
INLINE lanes first(int64_t n) { return n >= 16 ? 0xffff : (1u << n) - 1; }
INLINE vf vf_load_first(const float *p, int64_t n) { return _mm512_maskz_loadu_ps(first(n), p); }
INLINE void vf_store_first(float *p, vf v, int64_t n) { _mm512_mask_storeu_ps(p, first(n), v); }
#else
typedef struct { __m256 lo, hi; } vf;
typedef struct { __m256i lo, hi; } vi;
INLINE vf vf_zero(void) { return (vf){_mm256_setzero_ps(), _mm256_setzero_ps()}; }
INLINE vf vf_load(const float *p) { return (vf){_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
INLINE void vf_store(float *p, vf v) { _mm256_storeu_ps(p, v.lo), _mm256_storeu_ps(p + 8, v.hi); }
INLINE vf vf_set(float x) { return (vf){_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
INLINE vf vf_add(vf a, vf b) { return (vf){_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)}; }
INLINE vf vf_sub(vf a, vf b) { return (vf){_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)}; }
INLINE vf vf_mul(vf a, vf b) { return (vf){_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)}; }
INLINE vf vf_div(vf a, vf b) { return (vf){_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)}; }
INLINE vf vf_max(vf a, vf b) { return (vf){_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)}; }
INLINE vf vf_min(vf a, vf b) { return (vf){_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)}; }
INLINE vf vf_fma(vf a, vf b, vf c) { return (vf){_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)}; }
INLINE vf vf_half(const half *p) { return (vf){_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)), _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p + 1))}; }
INLINE vf vf_int(vi v) { return (vf){_mm256_cvtepi32_ps(v.lo), _mm256_cvtepi32_ps(v.hi)}; }
INLINE vi vi_bits(vf v) { return (vi){_mm256_castps_si256(v.lo), _mm256_castps_si256(v.hi)}; }
INLINE vf vf_bits(vi v) { return (vf){_mm256_castsi256_ps(v.lo), _mm256_castsi256_ps(v.hi)}; }
INLINE vi vi_set(int32_t x) { return (vi){_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
INLINE vi vi_load(const void *p) { return (vi){_mm256_loadu_si256(p), _mm256_loadu_si256((const __m256i *)p + 1)}; }
INLINE vi vi_zero(void) { return (vi){_mm256_setzero_si256(), _mm256_setzero_si256()}; }
INLINE void vi_store(void *p, vi v) { _mm256_storeu_si256(p, v.lo), _mm256_storeu_si256((__m256i *)p + 1, v.hi); }
INLINE vi vi_add(vi a, vi b) { return (vi){_mm256_add_epi32(a.lo, b.lo), _mm256_add_epi32(a.hi, b.hi)}; }
INLINE vi vi_sub(vi a, vi b) { return (vi){_mm256_sub_epi32(a.lo, b.lo), _mm256_sub_epi32(a.hi, b.hi)}; }
INLINE vi vi_and(vi a, vi b) { return (vi){_mm256_and_si256(a.lo, b.lo), _mm256_and_si256(a.hi, b.hi)}; }
INLINE vi vi_or(vi a, vi b) { return (vi){_mm256_or_si256(a.lo, b.lo), _mm256_or_si256(a.hi, b.hi)}; }
INLINE vi vi_xor(vi a, vi b) { return (vi){_mm256_xor_si256(a.lo, b.lo), _mm256_xor_si256(a.hi, b.hi)}; }
INLINE vi vi_left(vi a, int n) { return (vi){_mm256_slli_epi32(a.lo, n), _mm256_slli_epi32(a.hi, n)}; }
INLINE vi vi_right(vi a, int n) { return (vi){_mm256_srli_epi32(a.lo, n), _mm256_srli_epi32(a.hi, n)}; }
INLINE vi vi_right_signed(vi a, int n) { return (vi){_mm256_srai_epi32(a.lo, n), _mm256_srai_epi32(a.hi, n)}; }
// Twice eight lanes: all of the first, none of the second.
static const int32_t steps[16] = {-1, -1, -1, -1, -1, -1, -1, -1};
INLINE __m256i first8(int64_t n) { return _mm256_loadu_si256((const __m256i *)(steps + 8 - (n < 0 ? 0 : n > 8 ? 8 : n))); }
INLINE vf vf_load_first(const float *p, int64_t n) {
	if (n >= 16) return vf_load(p);
	return (vf){_mm256_maskload_ps(p, first8(n)), _mm256_maskload_ps(p + 8, first8(n - 8))};
}
INLINE void vf_store_first(float *p, vf v, int64_t n) {
	if (n >= 16) return vf_store(p, v);
	_mm256_maskstore_ps(p, first8(n), v.lo);
	_mm256_maskstore_ps(p + 8, first8(n - 8), v.hi);
}
#endif

// done makes the compiler have v here: else it begins everything before it ends anything, and runs out of registers.
#ifdef PATH_AVX512
INLINE void done(vi *v) { __asm__ volatile("" : "+v"(*v)); }
INLINE void donef(vf *v) { __asm__ volatile("" : "+v"(*v)); }
#else
INLINE void done(vi *v) { __asm__ volatile("" : "+x"(v->lo), "+x"(v->hi)); }
INLINE void donef(vf *v) { __asm__ volatile("" : "+x"(v->lo), "+x"(v->hi)); }
#endif
