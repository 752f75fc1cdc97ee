// What the kernels of floating-point weights share. A product sums each CHUNK of columns in one
// chain of fused multiply-adds, columns ascending, and adds the chunks' sums in order: whatever
// the number of rows, and in every variant, so the numbers are the same to the last bit.
#pragma once
#include "product.h"

enum {
	CHUNK = 512, // columns
	FEW = 8,     // rows that are multiplied while weights are read
	TILE = 12,   // rows that share one reading of a chunk of two panels
	PANELS = 8,  // panels that share one reading of a chunk of TILE rows
};

enum format { F32, F16, BF16 };

// keep stores sums of P panels, so many apart, for rows from r0 on, or adds them to what is there.
INLINE void keep(const struct product *a, int64_t r0, int64_t rows, int P, int64_t panel, int64_t apart, float (*sums)[2][16], int add) {
	for (int p = 0; p < P; p++) {
		int64_t column = 16 * (panel + p * apart), lanes = a->columns - column;
		ROLL for (int64_t r = 0; r < rows; r++) {
			float *y = yRow(a, r0 + r) + column;
			if (lanes >= 16) {
				vf v = vf_load(sums[r][p]);
				vf_store(y, add ? vf_add(vf_load(y), v) : v);
				continue;
			}
			ROLL for (int64_t i = 0; i < lanes; i++) y[i] = add ? y[i] + sums[r][p][i] : sums[r][p][i];
		}
	}
}

// expect asks for what keep adds to.
INLINE void expect(const struct product *a, int64_t r0, int64_t rows, int P, int64_t panel) {
	ROLL for (int64_t r = 0; r < rows; r++) UNROLL for (int p = 0; p < P; p++) _mm_prefetch(yRow(a, r0 + r) + 16 * (panel + p), _MM_HINT_T0);
}

// copy copies words.
INLINE void copy(void *to, const void *from, int64_t bytes) {
	uint8_t *dst = to;
	const uint8_t *src = from;
	ROLL for (; bytes >= 64; bytes -= 64, src += 64, dst += 64) vf_store((float *)dst, vf_load((const float *)src));
	ROLL for (; bytes > 0; bytes -= 4, src += 4, dst += 4) *(float *)dst = *(const float *)src;
}

// fetch copies so many rows of x from r0 on, bytes of each from k on, to rows of a tile, and asks for those of the next.
INLINE void fetch(const struct product *a, int64_t r0, int64_t rows, int64_t k, int64_t bytes, void *tile, int64_t tileBytes) {
	for (int64_t r = 0; r < rows; r++) {
		copy((uint8_t *)tile + r * tileBytes, xRow(a, r0 + r) + k, bytes);
		if (r0 + rows + r < a->n) {
			const uint8_t *next = xRow(a, r0 + rows + r) + k;
			ROLL for (int64_t i = 0; i < bytes; i += 64) _mm_prefetch(next + i, _MM_HINT_T1);
		}
	}
}

// share is how many of n rows the i-th of some tiles takes: they differ by one at most.
INLINE int64_t share(int64_t n, int64_t tiles, int64_t i) { return n / tiles + (i < n % tiles); }
