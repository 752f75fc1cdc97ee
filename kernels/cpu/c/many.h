// Products of many rows, of float32 or of pairs of bfloat16: tiles of rows by chunks of panels. What includes
// this says in STEPS how many numbers or pairs a chunk of columns has, in AS_PACKED which weights are multiplied as they are
// packed, and has multiply, which adds the products of 16 rows of w with x, and unpack, which makes n steps of a panel.
#pragma once
#include "float.h"

#ifdef PATH_AVX512
enum { TILE_ROWS = TILE, TILE_PANELS = 2 };
#else
enum { TILE_ROWS = TILE / 2, TILE_PANELS = 1 }; // what 16 registers hold
#endif

// scratch has the rows of a tile, an odd number of cache lines apart, and the chunk of each panel.
struct scratch {
	float sums[TILE][2][16];
	uint32_t x[TILE][STEPS + 16], w[PANELS][STEPS][16];
};
static_assert(sizeof(struct scratch) == TILE * (2 * 16 * 4 + 4 * STEPS + 64) + PANELS * STEPS * 4 * 16); // as float.go says

INLINE vf multiply(vf acc, vi w, vi x);
INLINE void unpack(int64_t format, uint32_t (*to)[16], const uint8_t *from, int64_t n);

// tile multiplies R rows, of which some may be none, by P panels at w, panelBytes apart.
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
			UNROLL for (int p = 0; p < P; p++) acc[r][p] = multiply(acc[r][p], v[p], x);
		}
	}
	UNROLL for (int r = 0; r < R; r++) UNROLL for (int p = 0; p < P; p++) vf_store(s->sums[r][p], acc[r][p]);
	keep(a, r0, rows, P, panel, 1, s->sums, add);
}

// tiles multiplies at most R rows by panels.
INLINE void tiles(int R, const struct product *a, int64_t r0, int64_t rows, int64_t panel, int64_t to, const uint8_t *w, int64_t panelBytes, int64_t n, int add) {
	if (TILE_PANELS == 2)
		for (; panel + 2 <= to; panel += 2, w += 2 * panelBytes) tile(R, 2, a, r0, rows, panel, w, panelBytes, n, add);
	for (; panel < to; panel++, w += panelBytes) tile(R, 1, a, r0, rows, panel, w, panelBytes, n, add);
}

INLINE void many(const struct product *a) {
	struct scratch *s = (struct scratch *)a->scratch;
	const int64_t count = (a->n + TILE_ROWS - 1) / TILE_ROWS, stepColumns = CHUNK / STEPS;
	for (int64_t p = a->from, to; p < a->to; p = to) {
		to = p + PANELS < a->to ? p + PANELS : a->to;
		for (int64_t k = 0; k == 0 || k < a->cols; k += CHUNK) {
			int64_t n = a->cols - k < CHUNK ? (a->cols - k + stepColumns - 1) / stepColumns : STEPS, panelBytes = a->panelBytes;
			const uint8_t *w = a->w + p * panelBytes + k / stepColumns * 64;
			if (a->format != AS_PACKED) {
				for (int64_t i = 0; i < to - p; i++) unpack(a->format, s->w[i], a->w + (p + i) * panelBytes + 32 * k, n);
				w = (const uint8_t *)s->w, panelBytes = sizeof s->w[0];
			}
			for (int64_t t = 0, r0 = 0, rows; t < count; t++, r0 += rows) {
				rows = share(a->n, count, t);
				fetch(a, r0, rows, 4 * k / stepColumns, 4 * n, s->x, sizeof s->x[0]);
				if (rows <= 2)
					tiles(2, a, r0, rows, p, to, w, panelBytes, n, k > 0);
				else if (rows <= 4)
					tiles(4, a, r0, rows, p, to, w, panelBytes, n, k > 0);
				else if (rows <= 6)
					tiles(6, a, r0, rows, p, to, w, panelBytes, n, k > 0);
#ifdef PATH_AVX512
				else if (rows <= 8)
					tiles(8, a, r0, rows, p, to, w, panelBytes, n, k > 0);
				else if (rows <= 10)
					tiles(10, a, r0, rows, p, to, w, panelBytes, n, k > 0);
				else
					tiles(12, a, r0, rows, p, to, w, panelBytes, n, k > 0);
#endif
			}
		}
	}
}
