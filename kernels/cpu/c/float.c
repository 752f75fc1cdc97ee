// variants: avx2 avx512
// Products of numbers with rows of float32.
#include "float.h"

enum { STEPS = CHUNK, AS_PACKED = F32 };
#include "many.h"

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

INLINE vf multiply(vf acc, vi w, vi x) { return vf_fma(vf_bits(w), vf_bits(x), acc); }

INLINE void unpack(int64_t format, uint32_t (*to)[16], const uint8_t *from, int64_t n) {
	ROLL for (int64_t k = 0; k < n; k += 2, from += 64) {
		vf v[2];
		if (format == F16)
			columns2(F16, v, from);
		else
			columns2(BF16, v, from);
		vf_store((float *)to[k], v[0]), vf_store((float *)to[k + 1], v[1]);
	}
}

// manyFloats multiplies any number of rows of float32, by the same sums as few do.
void manyFloats(struct product *a) { many(a); }
