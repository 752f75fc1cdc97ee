// variants: bf16
#include "float.h"

enum { PAIRS = CHUNK / 2 };

// The memory of manyPairs, as that of manyFloats.
struct scratch {
	float sums[TILE][2][16];
	uint32_t x[TILE][PAIRS + 16], w[GROUP][PAIRS][16];
};
static_assert(sizeof(struct scratch) == TILE * (2 * 16 * 4 + 2 * CHUNK + 64) + GROUP * CHUNK * 2 * 16); // as float.go says

// pairs are those of two columns, rounded to bfloat16.
INLINE vi pairs(vf even, vf odd) {
	const vi index = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
	return _mm512_permutexvar_epi16(index, (__m512i)_mm512_cvtne2ps_pbh(odd, even));
}

// unpacked has panels of columns to be written as pairs.
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

// tile multiplies R rows by P panels at w, panelBytes apart.
INLINE void tile(int R, int P, const struct product *a, int64_t r0, int64_t rows, int64_t panel, const uint8_t *w, int64_t panelBytes, int64_t n, int add) {
	struct scratch *s = (struct scratch *)a->scratch;
	expect(a, r0, rows, P, panel);
	vf acc[TILE][2];
	UNROLL for (int r = 0; r < R; r++) UNROLL for (int p = 0; p < P; p++) acc[r][p] = vf_zero();
	for (int64_t k = 0; k < n; k++, w += 64) {
		vi v[2];
		UNROLL for (int p = 0; p < P; p++) v[p] = vi_load(w + p * panelBytes);
		UNROLL for (int r = 0; r < R; r++) {
			vi x = vi_set(s->x[r][k]);
			UNROLL for (int p = 0; p < P; p++) acc[r][p] = _mm512_dpbf16_ps(acc[r][p], (__m512bh)v[p], (__m512bh)x);
		}
	}
	UNROLL for (int r = 0; r < R; r++) UNROLL for (int p = 0; p < P; p++) vf_store(s->sums[r][p], acc[r][p]);
	keep(a, r0, rows, P, panel, 1, s->sums, add);
}

INLINE void tiles(int R, const struct product *a, int64_t r0, int64_t rows, int64_t panel, int64_t to, const uint8_t *w, int64_t panelBytes, int64_t n, int add) {
	for (; panel + 2 <= to; panel += 2, w += 2 * panelBytes) tile(R, 2, a, r0, rows, panel, w, panelBytes, n, add);
	if (panel < to)
		tile(R, 1, a, r0, rows, panel, w, panelBytes, n, add);
}

// manyPairs multiplies any number of rows of bfloat16 by weights F16, rounded so too, or BF16.
void manyPairs(struct product *a) {
	struct scratch *s = (struct scratch *)a->scratch;
	int64_t count = (a->n + TILE - 1) / TILE;
	for (int64_t p = a->from, to; p < a->to; p = to) {
		to = p + GROUP < a->to ? p + GROUP : a->to;
		for (int64_t k = 0; k == 0 || k < a->cols; k += CHUNK) {
			int64_t n = (a->cols - k < CHUNK ? a->cols - k + 1 : CHUNK) / 2;
			const uint8_t *w = a->w + p * a->panelBytes + 32 * k;
			int64_t panelBytes = a->panelBytes;
			if (a->format == F16) {
				for (int64_t i = 0; i < to - p; i++) {
					const half *src = (const half *)(w + i * panelBytes);
					ROLL for (int64_t c = 0; c < n; c++, src += 32) vi_store(s->w[i][c], pairs(vf_half(src), vf_half(src + 16)));
				}
				w = (const uint8_t *)s->w, panelBytes = sizeof s->w[0];
			}
			for (int64_t t = 0, r0 = 0, rows; t < count; t++, r0 += rows) {
				rows = share(a->n, count, t);
				fetch(a, r0, rows, 2 * k, 4 * n, s->x, sizeof s->x[0]);
				if (rows <= 2)
					tiles(2, a, r0, rows, p, to, w, panelBytes, n, k > 0);
				else if (rows <= 4)
					tiles(4, a, r0, rows, p, to, w, panelBytes, n, k > 0);
				else if (rows <= 6)
					tiles(6, a, r0, rows, p, to, w, panelBytes, n, k > 0);
				else if (rows <= 8)
					tiles(8, a, r0, rows, p, to, w, panelBytes, n, k > 0);
				else if (rows <= 10)
					tiles(10, a, r0, rows, p, to, w, panelBytes, n, k > 0);
				else
					tiles(12, a, r0, rows, p, to, w, panelBytes, n, k > 0);
			}
		}
	}
}
