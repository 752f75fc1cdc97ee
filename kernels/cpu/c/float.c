// variants: avx2 avx512
#include "float.h"

// columns2 are two neighbouring columns of a panel.
INLINE void columns2(enum format f, vf v[2], const uint8_t *w) {
	if (f == F32) {
		v[0] = vf_load((const float *)w), v[1] = vf_load((const float *)w + 16);
	} else if (f == F16) {
		v[0] = vf_half((const half *)w), v[1] = vf_half((const half *)w + 16);
	} else {
		vi p = vi_load(w);
		v[0] = vf_bits(vi_left(p, 16)), v[1] = vf_bits(vi_and(p, vi_set(0xffff0000)));
	}
}

INLINE int64_t bytes2(enum format f) { return f == F32 ? 128 : 64; } // of two columns

#ifdef PATH_AVX512
enum { SUMS = 8 }; // rows whose sums with two panels are held in registers
// times adds w * x to sum. A broadcast that is loaded into a register, as the compiler likes to if it is
// used twice, takes from Zen 4's multipliers; one within the instruction is free.
INLINE void times(vf *sum, vf w, const float *x) { __asm__("vfmadd231ps %2%{1to16%}, %1, %0" : "+v"(*sum) : "v"(w), "m"(*x)); }
#else
enum { SUMS = 4 }; // with one panel
INLINE void times(vf *sum, vf w, const float *x) { *sum = vf_fma(w, vf_set(*x), *sum); }
#endif

// fewScratch is followed by several rows, an odd number of cache lines apart, so that they do not displace each other.
struct fewScratch {
	float sums[FEW][2][16];
	uint8_t x[];
};
INLINE int64_t copyBytes(int64_t cols) { return ((4 * cols + 63) / 64 | 1) * 64; }

// sum sums columns k to end of R rows of x and P panels, at w and so many bytes apart.
INLINE void sum(enum format f, int R, int P, float (*sums)[2][16], const uint8_t *x, int64_t xBytes, const uint8_t *w, int64_t apart, int64_t k, int64_t end) {
	// What takes its time is asked for well ahead, since the processor itself looks no further than its window.
	const int slow = R * 128 / bytes2(f) > 4 || R == SUMS;
	vf acc[SUMS][2];
	UNROLL for (int r = 0; r < R; r++) UNROLL for (int p = 0; p < P; p++) acc[r][p] = vf_zero();
	for (x += 4 * k, w += k / 2 * bytes2(f); k + 2 <= end; k += 2, x += 8, w += bytes2(f)) {
		UNROLL for (int p = 0; p < P; p++) {
			const uint8_t *here = w + p * apart;
			UNROLL for (int i = 0; i < bytes2(f); i += 64) {
				if (slow)
					_mm_prefetch(here + 8192 + i, _MM_HINT_T1);
				else
					_mm_prefetch(here + 256 + i, _MM_HINT_T0);
			}
			vf v[2];
			columns2(f, v, here);
			UNROLL for (int i = 0; i < 2; i++) UNROLL for (int r = 0; r < R; r++) times(&acc[r][p], v[i], (const float *)(x + r * xBytes) + i);
		}
	}
	if (k < end) {
		UNROLL for (int p = 0; p < P; p++) {
			vf v[2];
			const uint8_t *here = w + p * apart;
			if (f == F32)
				v[0] = vf_load((const float *)here);
			else
				columns2(f, v, here);
			UNROLL for (int r = 0; r < R; r++) times(&acc[r][p], v[0], (const float *)(x + r * xBytes));
		}
	}
	UNROLL for (int r = 0; r < R; r++) UNROLL for (int p = 0; p < P; p++) vf_store(sums[r][p], acc[r][p]);
}

// rows multiplies R rows by count panels, and by as many that are so many panels apart if P is 2: two at once hide the
// latency of the chains. Each of both goes on from a panel to the next, as a processor that reads ahead likes it.
INLINE void rows(enum format f, int R, int P, const struct product *a, const uint8_t *x, int64_t xBytes, int64_t panel, int64_t count) {
	struct fewScratch *s = (struct fewScratch *)a->scratch;
	for (int64_t last = panel + count; panel < last; panel++) {
		const uint8_t *w = a->w + panel * a->panelBytes;
		for (int64_t k = 0; k == 0 || k < a->cols; k += CHUNK) {
			int64_t end = a->cols < k + CHUNK ? a->cols : k + CHUNK;
			sum(f, R < SUMS ? R : SUMS, P, s->sums, x, xBytes, w, count * a->panelBytes, k, end);
			if (R > SUMS)
				sum(f, R - SUMS, P, s->sums + SUMS, x + SUMS * xBytes, xBytes, w, count * a->panelBytes, k, end);
			keep(a, 0, R, P, panel, count, s->sums, k > 0);
		}
	}
}

INLINE void few(enum format f, int R, const struct product *a) {
	const uint8_t *x = xRow(a, 0);
	int64_t xBytes = 0, half = (a->to - a->from) / 2;
	if (R > 1) {
		struct fewScratch *s = (struct fewScratch *)a->scratch;
		x = s->x, xBytes = copyBytes(a->cols);
		ROLL for (int64_t r = 0; r < R; r++) copy(s->x + r * xBytes, xRow(a, r), 4 * a->cols);
	}
	if (2 * R > SUMS && SUMS < 8)
		return rows(f, R, 1, a, x, xBytes, a->from, a->to - a->from);
	rows(f, R, 2, a, x, xBytes, a->from, half);
	rows(f, R, 1, a, x, xBytes, a->from + 2 * half, (a->to - a->from) % 2);
}

INLINE void fewOf(enum format f, const struct product *a) {
	switch (a->n) {
	case 1: return few(f, 1, a);
	case 2: return few(f, 2, a);
	case 3: return few(f, 3, a);
	case 4: return few(f, 4, a);
	case 5: return few(f, 5, a);
	case 6: return few(f, 6, a);
	case 7: return few(f, 7, a);
	case 8: return few(f, 8, a);
	}
}

// fewF32, fewF16 and fewBF16 multiply up to FEW rows of float32 while the weights are read.
void fewF32(struct product *a) { fewOf(F32, a); }
void fewF16(struct product *a) { fewOf(F16, a); }
void fewBF16(struct product *a) { fewOf(BF16, a); }

// scratch of manyFloats: the rows of a tile, and the chunk of each panel of a group.
struct scratch {
	float sums[TILE][2][16], x[TILE][CHUNK + 16], w[GROUP][CHUNK][16];
};
static_assert(sizeof(struct scratch) == TILE * (2 * 16 * 4 + 4 * CHUNK + 64) + GROUP * CHUNK * 4 * 16); // as float.go says

// tile multiplies R rows, of which some may be none, by P panels at w, panelBytes apart.
INLINE void tile(int R, int P, const struct product *a, int64_t r0, int64_t rows, int64_t panel, const uint8_t *w, int64_t panelBytes, int64_t cols, int add) {
	struct scratch *s = (struct scratch *)a->scratch;
	expect(a, r0, rows, P, panel);
	vf acc[TILE][2];
	UNROLL for (int r = 0; r < R; r++) UNROLL for (int p = 0; p < P; p++) acc[r][p] = vf_zero();
	for (int64_t k = 0; k < cols; k++, w += 64) {
		vf v[2];
		UNROLL for (int p = 0; p < P; p++) v[p] = vf_load((const float *)(w + p * panelBytes));
		UNROLL for (int r = 0; r < R; r++) {
			vf x = vf_set(s->x[r][k]);
			UNROLL for (int p = 0; p < P; p++) acc[r][p] = vf_fma(v[p], x, acc[r][p]);
		}
	}
	UNROLL for (int r = 0; r < R; r++) UNROLL for (int p = 0; p < P; p++) vf_store(s->sums[r][p], acc[r][p]);
	keep(a, r0, rows, P, panel, 1, s->sums, add);
}

// tiles multiplies at most R rows by panels.
INLINE void tiles(int R, const struct product *a, int64_t r0, int64_t rows, int64_t panel, int64_t to, const uint8_t *w, int64_t panelBytes, int64_t cols, int add) {
#ifdef PATH_AVX512
	for (; panel + 2 <= to; panel += 2, w += 2 * panelBytes) tile(R, 2, a, r0, rows, panel, w, panelBytes, cols, add);
#endif
	for (; panel < to; panel++, w += panelBytes) tile(R, 1, a, r0, rows, panel, w, panelBytes, cols, add);
}

// manyFloats multiplies any number of rows of float32, by the same sums as few do.
void manyFloats(struct product *a) {
#ifdef PATH_AVX512
	const int64_t most = TILE;
#else
	const int64_t most = TILE / 2; // what 16 registers hold
#endif
	struct scratch *s = (struct scratch *)a->scratch;
	int64_t count = (a->n + most - 1) / most;
	for (int64_t p = a->from, to; p < a->to; p = to) {
		to = p + GROUP < a->to ? p + GROUP : a->to;
		for (int64_t k = 0; k == 0 || k < a->cols; k += CHUNK) {
			int64_t cols = a->cols - k < CHUNK ? a->cols - k : CHUNK, panelBytes = a->panelBytes;
			const uint8_t *w = a->w + p * panelBytes + 64 * k;
			if (a->format != F32) {
				for (int64_t i = 0; i < to - p; i++) {
					const uint8_t *src = a->w + (p + i) * panelBytes + 32 * k;
					ROLL for (int64_t c = 0; c < cols; c += 2, src += 64) {
						vf v[2];
						if (a->format == F16)
							columns2(F16, v, src);
						else
							columns2(BF16, v, src);
						vf_store(s->w[i][c], v[0]), vf_store(s->w[i][c + 1], v[1]);
					}
				}
				w = (const uint8_t *)s->w, panelBytes = sizeof s->w[0];
			}
			for (int64_t t = 0, r0 = 0, rows; t < count; t++, r0 += rows) {
				rows = share(a->n, count, t);
				fetch(a, r0, rows, 4 * k, 4 * cols, s->x, sizeof s->x[0]);
				if (rows <= 2)
					tiles(2, a, r0, rows, p, to, w, panelBytes, cols, k > 0);
				else if (rows <= 4)
					tiles(4, a, r0, rows, p, to, w, panelBytes, cols, k > 0);
				else if (rows <= 6)
					tiles(6, a, r0, rows, p, to, w, panelBytes, cols, k > 0);
#ifdef PATH_AVX512
				else if (rows <= 8)
					tiles(8, a, r0, rows, p, to, w, panelBytes, cols, k > 0);
				else if (rows <= 10)
					tiles(10, a, r0, rows, p, to, w, panelBytes, cols, k > 0);
				else
					tiles(12, a, r0, rows, p, to, w, panelBytes, cols, k > 0);
#endif
			}
		}
	}
}
