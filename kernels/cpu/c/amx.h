// The product of rows of bfloat16 by pairs of columns of bfloat16, in tiles. It is compiled twice: for AMX,
// and with the instructions that amxemulated.c defines, for processors that have none.
#pragma once
#include "float.h"

enum { ROWS = 32, STEP = 32 }; // of x in four tiles' sums; columns of a tile of x

struct tileConfig {
	uint8_t palette, start, zero[14];
	uint16_t rowBytes[16];
	uint8_t rows[16];
};

// tileScratch holds rows of a chunk, an odd number of cache lines apart so that they do not displace each other.
struct tileScratch {
	struct tileConfig config;
	float sums[ROWS][2][16];
	half x[ROWS][CHUNK + 32];
};
static_assert(sizeof(struct tileScratch) == 64 + ROWS * (2 * 16 * 4 + 2 * CHUNK + 64)); // as amx.go says

// configure says that tiles 0 to 3 are sums, of first rows of x and of second ones with either panel;
// 4 and 5 are those rows; 6 and 7 are the panels.
INLINE void configure(struct tileConfig *c, int64_t first, int64_t second) {
	_mm512_storeu_si512(c, _mm512_setzero_si512());
	c->palette = 1;
	UNROLL for (int i = 0; i < 8; i++) c->rowBytes[i] = 64, c->rows[i] = 16;
	c->rows[0] = c->rows[1] = c->rows[4] = first;
	c->rows[2] = c->rows[3] = c->rows[5] = second > 0 ? second : 1;
}

// tiles sums cols columns of one or two times 16 rows of x and one or two panels at w.
INLINE void tiles(TILES int two, int P, struct tileScratch *s, const uint8_t *w, int64_t panelBytes, int64_t cols) {
	_tile_zero(0);
	if (P == 2)
		_tile_zero(1);
	if (two)
		_tile_zero(2);
	if (two && P == 2)
		_tile_zero(3);
	const half *x = s->x[0];
	ROLL for (int64_t k = 0; k < cols; k += STEP, x += STEP, w += 16 * 64) {
		_tile_loadd(4, x, sizeof s->x[0]);
		_tile_loadd(6, w, 64);
		_tile_dpbf16ps(0, 4, 6);
		if (P == 2) {
			_tile_loadd(7, w + panelBytes, 64);
			_tile_dpbf16ps(1, 4, 7);
		}
		if (two) {
			_tile_loadd(5, x + 16 * (CHUNK + 32), sizeof s->x[0]);
			_tile_dpbf16ps(2, 5, 6);
		}
		if (two && P == 2)
			_tile_dpbf16ps(3, 5, 7);
	}
	_tile_stored(0, s->sums[0][0], sizeof s->sums[0]);
	if (P == 2)
		_tile_stored(1, s->sums[0][1], sizeof s->sums[0]);
	if (two)
		_tile_stored(2, s->sums[16][0], sizeof s->sums[0]);
	if (two && P == 2)
		_tile_stored(3, s->sums[16][1], sizeof s->sums[0]);
}

// rowTiles multiplies a->cols columns, at most CHUNK and a multiple of STEP, of any number of rows by panels of
// pairs, of which the first of a->w is a->from.
INLINE void rowTiles(TILES const struct product *a) {
	struct tileScratch *s = (struct tileScratch *)a->scratch;
	for (int64_t r0 = 0, rows; r0 < a->n; r0 += rows) {
		rows = a->n - r0 < ROWS ? a->n - r0 : ROWS;
		fetch(a, r0, rows, 0, 2 * a->cols, s->x, sizeof s->x[0]);
		const int two = rows > 16;
		configure(&s->config, two ? 16 : rows, rows - 16);
		_tile_loadconfig(&s->config);
		const uint8_t *w = a->w;
		for (int64_t p = a->from; p < a->to; p += 2, w += 2 * a->panelBytes) {
			const int P = a->to - p >= 2 ? 2 : 1;
			expect(a, r0, rows, P, p);
			if (two && P == 2)
				tiles(TILE_ARGUMENT 1, 2, s, w, a->panelBytes, a->cols);
			else if (two)
				tiles(TILE_ARGUMENT 1, 1, s, w, a->panelBytes, a->cols);
			else if (P == 2)
				tiles(TILE_ARGUMENT 0, 2, s, w, a->panelBytes, a->cols);
			else
				tiles(TILE_ARGUMENT 0, 1, s, w, a->panelBytes, a->cols);
			keep(a, r0, rows, P, p, 1, s->sums, a->add);
		}
	}
	_tile_release();
}
