// variants: bf16
// Products with rows of bfloat16, and weights written as pairs of those.
#include "float.h"

enum { STEPS = CHUNK / 2, AS_PACKED = BF16 };
#include "many.h"

// pairs are those of two columns, rounded to bfloat16.
INLINE vi pairs(vf even, vf odd) {
	const vi index = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
	return _mm512_permutexvar_epi16(index, (__m512i)_mm512_cvtne2ps_pbh(odd, even));
}

// unpacked is unpackedArgs of amx.go: panels of columns to be written as pairs.
struct unpacked {
	uint8_t *dst;
	const uint8_t *w;
	int64_t to, from, panels;      // bytes between panels in dst and in w; panels
	int64_t cols;                  // dst's are filled up with zeros to a multiple of 32
	int64_t halves, offset, least; // of the common form
};

// halvesToPairs takes panels of F16.
void halvesToPairs(const struct unpacked *a) {
	for (int64_t p = 0; p < a->panels; p++) {
		const half *w = (const half *)(a->w + p * a->from);
		uint8_t *dst = a->dst + p * a->to;
		int64_t k = 0;
		ROLL for (; k < a->cols; k += 2, w += 32, dst += 64) vi_store(dst, pairs(vf_half(w), vf_half(w + 16)));
		ROLL for (; k % 32 != 0; k += 2, dst += 64) vi_store(dst, vi_zero());
	}
}

// commonToPairs takes one or two panels in the common form of quant.h: s*(q-offset) + m, rounded to float32 and then
// to bfloat16.
void commonToPairs(const struct unpacked *a) {
	const int64_t vector = 128, q = vector * (1 + a->halves + a->least); // two panels' vectors alternate
	for (int64_t p = 0; p < a->panels; p++) {
		const uint8_t *w = a->w + 64 * p;
		uint8_t *dst = a->dst + p * a->to;
		ROLL for (int64_t k = 0; k < a->cols; k += 32, w += q + 8 * vector) {
			UNROLL for (int h = 0; h < 2; h++) {
				vf s = vf_load((const float *)(w + (h && a->halves ? vector : 0)));
				vf m = a->least ? vf_load((const float *)(w + (1 + a->halves) * vector)) : vf_zero();
				m = vf_sub(m, vf_mul(s, vf_set(a->offset))); // exact: one of them is 0, and offset a power of two
				UNROLL for (int i = 4 * h; i < 4 * h + 4; i++, dst += 128) {
					vi v = vi_load(w + q + vector * i);
					vf x[4];
					UNROLL for (int c = 0; c < 4; c++) x[c] = vf_fma(vf_int(_mm512_and_si512(_mm512_srli_epi32(v, 8 * c), vi_set(255))), s, m);
					vi_store(dst, pairs(x[0], x[1])), vi_store(dst + 64, pairs(x[2], x[3]));
				}
			}
		}
	}
}

INLINE vf multiply(vf acc, vi w, vi x) { return _mm512_dpbf16_ps(acc, (__m512bh)w, (__m512bh)x); }

// unpack takes F16.
INLINE void unpack(int64_t, uint32_t (*to)[16], const uint8_t *from, int64_t n) {
	const half *w = (const half *)from;
	ROLL for (int64_t k = 0; k < n; k++, w += 32) vi_store(to[k], pairs(vf_half(w), vf_half(w + 16)));
}

// manyPairs multiplies any number of rows of bfloat16 by weights F16, rounded so too, or BF16.
void manyPairs(struct product *a) { many(a); }
