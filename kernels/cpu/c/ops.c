// variants: avx2 avx512
// The ops of ops_path.go; their shapes are there.
#include "math.h"

// op is op of ops_path.go. What a kernel does not name is not used.
struct op {
	float *y;
	const float *x, *z, *w;
	int64_t n, k, pairs;
	float a, b;
};

// Sums of eight float64, since squares of a float32 may be more than it has.
#ifdef PATH_AVX512
typedef __m512d vd;
INLINE vd vd_zero(void) { return _mm512_setzero_pd(); }
INLINE vd vd_set(double x) { return _mm512_set1_pd(x); }
INLINE vd vd_low(vf v) { return _mm512_cvtps_pd(_mm512_castps512_ps256(v)); }
INLINE vd vd_high(vf v) { return _mm512_cvtps_pd(_mm512_extractf32x8_ps(v, 1)); }
INLINE vf vf_both(vd lo, vd hi) { return _mm512_insertf32x8(_mm512_castps256_ps512(_mm512_cvtpd_ps(lo)), _mm512_cvtpd_ps(hi), 1); }
INLINE vd vd_add(vd a, vd b) { return _mm512_add_pd(a, b); }
INLINE vd vd_sub(vd a, vd b) { return _mm512_sub_pd(a, b); }
INLINE vd vd_mul(vd a, vd b) { return _mm512_mul_pd(a, b); }
INLINE vd vd_fma(vd a, vd b, vd c) { return _mm512_fmadd_pd(a, b, c); }
INLINE double vd_sum(vd v) { return _mm512_reduce_add_pd(v); }
#else
typedef struct { __m256d lo, hi; } vd;
INLINE vd vd_zero(void) { return (vd){_mm256_setzero_pd(), _mm256_setzero_pd()}; }
INLINE vd vd_set(double x) { return (vd){_mm256_set1_pd(x), _mm256_set1_pd(x)}; }
INLINE vd vd_of(__m256 v) { return (vd){_mm256_cvtps_pd(_mm256_castps256_ps128(v)), _mm256_cvtps_pd(_mm256_extractf128_ps(v, 1))}; }
INLINE vd vd_low(vf v) { return vd_of(v.lo); }
INLINE vd vd_high(vf v) { return vd_of(v.hi); }
INLINE vf vf_both(vd lo, vd hi) {
	return (vf){_mm256_set_m128(_mm256_cvtpd_ps(lo.hi), _mm256_cvtpd_ps(lo.lo)), _mm256_set_m128(_mm256_cvtpd_ps(hi.hi), _mm256_cvtpd_ps(hi.lo))};
}
INLINE vd vd_add(vd a, vd b) { return (vd){_mm256_add_pd(a.lo, b.lo), _mm256_add_pd(a.hi, b.hi)}; }
INLINE vd vd_sub(vd a, vd b) { return (vd){_mm256_sub_pd(a.lo, b.lo), _mm256_sub_pd(a.hi, b.hi)}; }
INLINE vd vd_mul(vd a, vd b) { return (vd){_mm256_mul_pd(a.lo, b.lo), _mm256_mul_pd(a.hi, b.hi)}; }
INLINE vd vd_fma(vd a, vd b, vd c) { return (vd){_mm256_fmadd_pd(a.lo, b.lo, c.lo), _mm256_fmadd_pd(a.hi, b.hi, c.hi)}; }
INLINE double vd_sum(vd v) {
	__m256d a = _mm256_add_pd(v.lo, v.hi);
	__m128d b = _mm_add_pd(_mm256_castpd256_pd128(a), _mm256_extractf128_pd(a, 1));
	return _mm_cvtsd_f64(_mm_add_sd(b, _mm_unpackhi_pd(b, b)));
}
#endif
INLINE double root(double x) { return _mm_cvtsd_f64(_mm_sqrt_pd(_mm_set1_pd(x))); }

void storeHalf(struct op *o) { // y [n] of halves
	half *y = (half *)o->y;
	int64_t i = 0;
	for (; i + 16 <= o->n; i += 16) vf_store_half(y + i, vf_clamp(vf_load(o->x + i), -65504, 65504));
	ROLL for (; i < o->n; i++) {
		__m128 v = _mm_min_ps(_mm_set1_ps(65504), _mm_max_ps(_mm_set1_ps(-65504), _mm_set1_ps(o->x[i]))); // as vf_clamp
		y[i] = _mm_extract_epi16(_mm_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT), 0);
	}
}

void rmsNorm(struct op *o) { // a: eps, b: shift
	vd s0 = vd_zero(), s1 = s0, s2 = s0, s3 = s0;
	for (int64_t i = 0; i < o->n; i += 32) {
		vf v = vf_load_first(o->x + i, o->n - i), w = o->n - i <= 16 ? vf_zero() : vf_load_first(o->x + i + 16, o->n - i - 16);
		s0 = vd_fma(vd_low(v), vd_low(v), s0), s1 = vd_fma(vd_high(v), vd_high(v), s1);
		s2 = vd_fma(vd_low(w), vd_low(w), s2), s3 = vd_fma(vd_high(w), vd_high(w), s3);
	}
	vf scale = vf_set((float)(1 / root(vd_sum(vd_add(vd_add(s0, s1), vd_add(s2, s3))) / (double)o->n + (double)o->a))), shift = vf_set(o->b);
	for (int64_t i = 0; i < o->n; i += 16) {
		vf v = vf_mul(vf_load_first(o->x + i, o->n - i), scale);
		vf_store_first(o->y + i, vf_mul(v, vf_add(shift, vf_load_first(o->w + i, o->n - i))), o->n - i);
	}
}

void layerNorm(struct op *o) { // a: eps, z: bias
	vd s0 = vd_zero(), s1 = vd_zero();
	for (int64_t i = 0; i < o->n; i += 16) {
		vf v = vf_load_first(o->x + i, o->n - i);
		s0 = vd_add(s0, vd_low(v)), s1 = vd_add(s1, vd_high(v));
	}
	double n = (double)o->n, mean = vd_sum(vd_add(s0, s1)) / n;
	vd m = vd_set(mean);
	s0 = s1 = vd_zero();
	int64_t i = 0;
	for (; i + 16 <= o->n; i += 16) {
		vf v = vf_load(o->x + i);
		vd lo = vd_sub(vd_low(v), m), hi = vd_sub(vd_high(v), m);
		s0 = vd_fma(lo, lo, s0), s1 = vd_fma(hi, hi, s1);
	}
	double variance = vd_sum(vd_add(s0, s1));
	for (; i < o->n; i++) variance += ((double)o->x[i] - mean) * ((double)o->x[i] - mean);
	vd scale = vd_set(1 / root(variance / n + (double)o->a));
	for (i = 0; i < o->n; i += 16) {
		vf v = vf_load_first(o->x + i, o->n - i);
		v = vf_both(vd_mul(vd_sub(vd_low(v), m), scale), vd_mul(vd_sub(vd_high(v), m), scale));
		v = vf_add(vf_mul(v, vf_load_first(o->w + i, o->n - i)), vf_load_first(o->z + i, o->n - i));
		vf_store_first(o->y + i, v, o->n - i);
	}
}

// Both rotations round each product, as the plain one does.
void rotateHalves(struct op *o) { // x [n, k]; z: cosines, w: sines [pairs]
	int64_t pairs = o->pairs;
	for (int64_t h = 0; h < o->n; h++) {
		const float *x = o->x + h * o->k;
		float *y = o->y + h * o->k;
		for (int64_t i = 0; i < pairs; i += 16) {
			int64_t left = pairs - i;
			vf p = vf_load_first(x + i, left), q = vf_load_first(x + pairs + i, left);
			vf c = vf_load_first(o->z + i, left), s = vf_load_first(o->w + i, left);
			vf_store_first(y + i, vf_sub(vf_mul(p, c), vf_mul(q, s)), left);
			vf_store_first(y + pairs + i, vf_add(vf_mul(p, s), vf_mul(q, c)), left);
		}
		for (int64_t i = 2 * pairs; i < o->k; i += 16) vf_store_first(y + i, vf_load_first(x + i, o->k - i), o->k - i);
	}
}

#ifdef PATH_AVX512
// Eight numbers, each twice, and neighbours changed for each other.
INLINE vf twice(const float *p, int64_t n) {
	const __m512i each = _mm512_set_epi32(7, 7, 6, 6, 5, 5, 4, 4, 3, 3, 2, 2, 1, 1, 0, 0);
	return _mm512_permutexvar_ps(each, _mm512_maskz_loadu_ps(first(n) & 0xff, p));
}
INLINE vf swapped(vf v) { return _mm512_permute_ps(v, 0xb1); }
INLINE vf addSub(vf a, vf b) { return _mm512_fmaddsub_ps(a, _mm512_set1_ps(1), b); } // even lanes a - b, odd ones a + b
#else
INLINE vf twice(const float *p, int64_t n) {
	__m256 v = _mm256_maskload_ps(p, first8(n));
	return (vf){_mm256_permutevar8x32_ps(v, _mm256_set_epi32(3, 3, 2, 2, 1, 1, 0, 0)), _mm256_permutevar8x32_ps(v, _mm256_set_epi32(7, 7, 6, 6, 5, 5, 4, 4))};
}
INLINE vf swapped(vf v) { return (vf){_mm256_permute_ps(v.lo, 0xb1), _mm256_permute_ps(v.hi, 0xb1)}; }
INLINE vf addSub(vf a, vf b) { return (vf){_mm256_addsub_ps(a.lo, b.lo), _mm256_addsub_ps(a.hi, b.hi)}; }
#endif

void rotateNeighbours(struct op *o) { // as rotateHalves
	int64_t pairs = o->pairs;
	for (int64_t h = 0; h < o->n; h++) {
		const float *x = o->x + h * o->k;
		float *y = o->y + h * o->k;
		for (int64_t i = 0; i < pairs; i += 8) {
			int64_t left = pairs - i;
			vf v = vf_load_first(x + 2 * i, 2 * left);
			vf_store_first(y + 2 * i, addSub(vf_mul(v, twice(o->z + i, left)), vf_mul(swapped(v), twice(o->w + i, left))), 2 * left);
		}
		for (int64_t i = 2 * pairs; i < o->k; i += 16) vf_store_first(y + i, vf_load_first(x + i, o->k - i), o->k - i);
	}
}

void swiGlu(struct op *o) {
	for (int64_t i = 0; i < o->n; i += 16) {
		vf g = vf_load_first(o->x + i, o->n - i), one = vf_set(1);
		g = vf_div(g, vf_add(one, vf_exp(numbers, vf_sub(vf_zero(), g))));
		vf_store_first(o->y + i, vf_mul(g, vf_load_first(o->z + i, o->n - i)), o->n - i);
	}
}

// erfGelu is v by the error function: v times the normal distribution's share below it. The share beyond |v| is
// e^(-v²/2) t P(t), t = 1 / (1 + 0.33 |v|): P is a minimax polynomial, 2e-8 off; the square is in two parts.
INLINE vf erfGelu(vf v) {
	vf a = vf_min(vf_set(16), vf_abs(v)); // beyond is nothing
	vf t = vf_div(vf_set(1), vf_fma(vf_set(0.33f), a, vf_set(1)));
	vf p = vf_set(-0.0109580411f);
	p = vf_fma(p, t, vf_set(0.0353523009f));
	p = vf_fma(p, t, vf_set(-0.000746516802f));
	p = vf_fma(p, t, vf_set(-0.113451138f));
	p = vf_fma(p, t, vf_set(0.106531434f));
	p = vf_fma(p, t, vf_set(0.00152191694f));
	p = vf_fma(p, t, vf_set(0.10361094f));
	p = vf_fma(p, t, vf_set(0.11457292f));
	p = vf_fma(p, t, vf_set(0.131926954f));
	p = vf_fma(p, t, vf_set(0.131639227f));
	vf square = vf_mul(a, a), rest = vf_fma(a, a, vf_sub(vf_zero(), square));
	vf beyond = vf_mul(vf_mul(p, t), vf_fma(rest, vf_set(-0.5f), vf_set(1)));
	beyond = vf_mul(beyond, vf_exp(numbers, vf_mul(square, vf_set(-0.5f))));
	return vf_mul(v, vf_if_less(v, vf_zero(), beyond, vf_sub(vf_set(1), beyond)));
}

// tanhGelu is v (1 + tanh u) / 2 = v / (1 + e^-2u), u = sqrt(2/pi) (v + 0.044715 v³).
INLINE vf tanhGelu(vf v) {
	vf u = vf_mul(vf_mul(v, vf_set(-1.59576912f)), vf_fma(vf_mul(v, vf_set(0.044715f)), v, vf_set(1)));
	return vf_div(v, vf_add(vf_set(1), vf_exp(numbers, u)));
}

void geluErf(struct op *o) {
	for (int64_t i = 0; i < o->n; i += 16) vf_store_first(o->y + i, erfGelu(vf_load_first(o->x + i, o->n - i)), o->n - i);
}

void geluTanh(struct op *o) {
	for (int64_t i = 0; i < o->n; i += 16) vf_store_first(o->y + i, tanhGelu(vf_load_first(o->x + i, o->n - i)), o->n - i);
}

void geGluErf(struct op *o) {
	for (int64_t i = 0; i < o->n; i += 16)
		vf_store_first(o->y + i, vf_mul(erfGelu(vf_load_first(o->x + i, o->n - i)), vf_load_first(o->z + i, o->n - i)), o->n - i);
}

void geGluTanh(struct op *o) {
	for (int64_t i = 0; i < o->n; i += 16)
		vf_store_first(o->y + i, vf_mul(tanhGelu(vf_load_first(o->x + i, o->n - i)), vf_load_first(o->z + i, o->n - i)), o->n - i);
}

void softCap(struct op *o) {
	vf c = vf_set(o->a);
	for (int64_t i = 0; i < o->n; i += 16)
		vf_store_first(o->y + i, vf_mul(c, vf_tanh(numbers, vf_div(vf_load_first(o->x + i, o->n - i), c))), o->n - i);
}

void addRows(struct op *o) {
	for (int64_t i = 0; i < o->n; i += 16)
		vf_store_first(o->y + i, vf_add(vf_load_first(o->x + i, o->n - i), vf_load_first(o->z + i, o->n - i)), o->n - i);
}

void scaleRow(struct op *o) {
	vf s = vf_set(o->a);
	for (int64_t i = 0; i < o->n; i += 16) vf_store_first(o->y + i, vf_mul(s, vf_load_first(o->x + i, o->n - i)), o->n - i);
}

void expertSum(struct op *o) { // x [k, n], z: shares [k]
	for (int64_t i = 0; i < o->n; i += 16) {
		vf sum = vf_zero();
		for (int64_t k = 0; k < o->k; k++) sum = vf_add(sum, vf_mul(vf_set(o->z[k]), vf_load_first(o->x + k * o->n + i, o->n - i)));
		vf_store_first(o->y + i, sum, o->n - i);
	}
}

void softmaxRow(struct op *o) { // x in place of y
	vf most = vf_set(-3.40282347e38f); // the largest, but not minus infinity
	int64_t i = 0;
	for (; i + 16 <= o->n; i += 16) most = vf_max(most, vf_load(o->y + i));
	float largest = vf_most(most);
	for (; i < o->n; i++) largest = o->y[i] > largest ? o->y[i] : largest;
	vf m = vf_set(largest), sums = vf_zero();
	for (i = 0; i < o->n; i += 16) {
		vf p = vf_exp(numbers, vf_sub(vf_load_first(o->y + i, o->n - i), m));
		vf_store_first(o->y + i, p, o->n - i);
		if (i + 16 <= o->n) sums = vf_add(sums, p);
	}
	float sum = vf_sum(sums);
	for (i = o->n / 16 * 16; i < o->n; i++) sum += o->y[i];
	vf s = vf_set(sum);
	for (i = 0; i < o->n; i += 16) vf_store_first(o->y + i, vf_div(vf_load_first(o->y + i, o->n - i), s), o->n - i);
}

void mostOf(struct op *o) { // the largest of x: a
	vf m0 = vf_set(-__builtin_inff()), m1 = m0, m2 = m0, m3 = m0;
	int64_t i = 0;
	for (; i + 64 <= o->n; i += 64) { // of two numbers max gives the second if the first is none
		m0 = vf_max(vf_load(o->x + i), m0), m1 = vf_max(vf_load(o->x + i + 16), m1);
		m2 = vf_max(vf_load(o->x + i + 32), m2), m3 = vf_max(vf_load(o->x + i + 48), m3);
	}
	for (; i + 16 <= o->n; i += 16) m0 = vf_max(vf_load(o->x + i), m0);
	float most = vf_most(vf_max(vf_max(m0, m1), vf_max(m2, m3)));
	for (; i < o->n; i++) most = o->x[i] > most ? o->x[i] : most;
	o->a = most;
}

void nextAbove(struct op *o) { // the first place from k on where x is more than a: k, or n
	vf low = vf_set(o->a);
	int64_t i = o->k;
	for (; i + 64 <= o->n; i += 64) {
		uint64_t above = (uint64_t)vf_above(vf_load(o->x + i), low) | (uint64_t)vf_above(vf_load(o->x + i + 16), low) << 16 |
			(uint64_t)vf_above(vf_load(o->x + i + 32), low) << 32 | (uint64_t)vf_above(vf_load(o->x + i + 48), low) << 48;
		if (above == 0) continue;
		o->k = i + __builtin_ctzll(above);
		return;
	}
	while (i < o->n && !(o->x[i] > o->a)) i++;
	o->k = i;
}

// powers is the argument of Path.Powers in powers.go.
struct powers {
	double *y;
	const float *x;
	const uint64_t *table; // of 256 parts of a power of two
	int64_t n;
	double most, scale;
};

// power is 2^(z/256), z = (x - most) * scale, as the plain one is, bit for bit: no product is fused.
#ifdef PATH_AVX512
INLINE __m512d power(__m512d x, __m512d most, __m512d scale, const uint64_t *table) {
	const __m512d magic = _mm512_set1_pd(0x1.8p52), one = _mm512_set1_pd(1);
	__m512d z = _mm512_mul_pd(_mm512_sub_pd(x, most), scale), whole = _mm512_add_pd(z, magic);
	__m512i n = _mm512_sub_epi64(_mm512_castpd_si512(whole), _mm512_castpd_si512(magic)), part = _mm512_and_si512(n, _mm512_set1_epi64(255));
	__m512d r = _mm512_mul_pd(_mm512_sub_pd(z, _mm512_sub_pd(whole, magic)), _mm512_set1_pd(0x1.62e42fefa39efp-9));
	__m512i t = _mm512_add_epi64(_mm512_i64gather_epi64(part, table, 8), _mm512_slli_epi64(_mm512_sub_epi64(n, part), 44));
	__m512d p = _mm512_add_pd(_mm512_set1_pd(0.5), _mm512_mul_pd(r, _mm512_set1_pd(1.0 / 6)));
	p = _mm512_add_pd(one, _mm512_mul_pd(r, p));
	p = _mm512_add_pd(one, _mm512_mul_pd(r, p));
	p = _mm512_mul_pd(_mm512_castsi512_pd(t), p);
	__m512d rest = _mm512_maskz_mov_pd(_mm512_cmp_pd_mask(x, most, _CMP_EQ_OQ), one);
	return _mm512_mask_blend_pd(_mm512_cmp_pd_mask(z, _mm512_set1_pd(-60 * 1.44269504088896340736 * 256), _CMP_GT_OQ), rest, p);
}
INLINE void powers16(double *y, vf x, struct powers *o) {
	_mm512_storeu_pd(y, power(vd_low(x), _mm512_set1_pd(o->most), _mm512_set1_pd(o->scale), o->table));
	_mm512_storeu_pd(y + 8, power(vd_high(x), _mm512_set1_pd(o->most), _mm512_set1_pd(o->scale), o->table));
}
#else
INLINE __m256d power(__m256d x, __m256d most, __m256d scale, const uint64_t *table) {
	const __m256d magic = _mm256_set1_pd(0x1.8p52), one = _mm256_set1_pd(1);
	__m256d z = _mm256_mul_pd(_mm256_sub_pd(x, most), scale), whole = _mm256_add_pd(z, magic);
	__m256i n = _mm256_sub_epi64(_mm256_castpd_si256(whole), _mm256_castpd_si256(magic)), part = _mm256_and_si256(n, _mm256_set1_epi64x(255));
	__m256d r = _mm256_mul_pd(_mm256_sub_pd(z, _mm256_sub_pd(whole, magic)), _mm256_set1_pd(0x1.62e42fefa39efp-9));
	__m256i t = _mm256_add_epi64(_mm256_i64gather_epi64((const long long *)table, part, 8), _mm256_slli_epi64(_mm256_sub_epi64(n, part), 44));
	__m256d p = _mm256_add_pd(_mm256_set1_pd(0.5), _mm256_mul_pd(r, _mm256_set1_pd(1.0 / 6)));
	p = _mm256_add_pd(one, _mm256_mul_pd(r, p));
	p = _mm256_add_pd(one, _mm256_mul_pd(r, p));
	p = _mm256_mul_pd(_mm256_castsi256_pd(t), p);
	__m256d rest = _mm256_and_pd(_mm256_cmp_pd(x, most, _CMP_EQ_OQ), one);
	return _mm256_blendv_pd(rest, p, _mm256_cmp_pd(z, _mm256_set1_pd(-60 * 1.44269504088896340736 * 256), _CMP_GT_OQ));
}
INLINE void powers16(double *y, vf x, struct powers *o) {
	vd lo = vd_low(x), hi = vd_high(x);
	__m256d most = _mm256_set1_pd(o->most), scale = _mm256_set1_pd(o->scale);
	_mm256_storeu_pd(y, power(lo.lo, most, scale, o->table)), _mm256_storeu_pd(y + 4, power(lo.hi, most, scale, o->table));
	_mm256_storeu_pd(y + 8, power(hi.lo, most, scale, o->table)), _mm256_storeu_pd(y + 12, power(hi.hi, most, scale, o->table));
}
#endif

void powersOf(struct powers *o) {
	int64_t i = 0;
	for (; i + 16 <= o->n; i += 16) powers16(o->y + i, vf_load(o->x + i), o);
	if (i == o->n) return;
	struct { double of[16]; } rest; // unlike an array, on a stack that is not aligned
	powers16(rest.of, vf_load_first(o->x + i, o->n - i), o);
	ROLL for (int64_t j = 0; i < o->n; i++, j++) o->y[i] = rest.of[j];
}
