// Products of block formats with activations in form Int8. A format gives one function that
// multiplies a panel by a few rows, and one that unpacks a panel into the common form; FEW and MANY
// make the kernels of them: MANY's work less per row, and more to begin with.
//
// Every element is summed in the same order whatever the number of rows and in every variant:
// groups of columns ascending, acc = fma(float(sum of (q-offset)*x), s*scale, acc), and where there are
// minima acc = fma(m, sum, acc).
#pragma once
#include "product.h"

// record is 32 columns of a row of activations in form Int8; activations.go describes it.
struct record {
	int8_t q[32];
	float scale;
	int32_t start; // -128 times the sum of q
	float sum;     // scale times the sum of q
	int32_t first; // -128 times the sum of the first 16 q
};

// kind is what a format's arithmetic has.
struct kind {
	int offset;  // weights are s*(q-offset) + m
	int most;    // the largest q
	bool halves; // columns 0-15 and 16-31 have scales of their own
	bool least;  // there are minima m
};

// Rows that a panel is multiplied by at once, since their sums fit into the registers.
enum { AT_MOST = 8 };
#ifdef PATH_AVX512
enum { AT_ONCE = 8 };
#else
enum { AT_ONCE = 2 };
#endif

INLINE const struct record *xGroup(const uint8_t *x, int64_t group) { return (const struct record *)(x + group * (int64_t)sizeof(struct record)); }

// signedWeights says that a kind's q are made signed before they are multiplied, and no offset remains.
#ifdef PATH_AVX512
INLINE bool signedWeights(struct kind k) { return false; }
#else
INLINE bool signedWeights(struct kind k) { return k.most > 128; }
#endif

// shiftOf gives the offset as a share of 128.
INLINE int shiftOf(int offset) { return offset == 128 ? 0 : offset == 64 ? 1 : offset == 32 ? 2 : offset == 16 ? 3 : 4; }

// A dot product of a group of columns with R rows is begun, given 8 vectors of 4 columns for each row, and ended.
// dots are the sums so far; part are those of 16 bits that AVX2 makes first.
struct dots { vi dot[AT_MOST], part[AT_MOST]; };

// begin starts the sums. half: 0 or 1, where the halves of a group have scales of their own.
INLINE void begin(struct kind k, int R, struct dots *d, const uint8_t *const *x, int64_t group, int half) {
	UNROLL for (int r = 0; r < R; r++) {
		const struct record *g = xGroup(x[r], group);
		if (k.offset == 0 || signedWeights(k)) {
			d->dot[r] = vi_zero();
			continue;
		}
		vi start = vi_set(k.halves && half == 0 ? g->first : g->start);
		if (k.halves && half == 1)
			start = vi_sub(start, vi_set(g->first));
		d->dot[r] = k.offset == 128 ? start : vi_right_signed(start, shiftOf(k.offset));
	}
}

// stepNth multiplies columns 4i to 4i+3 of the group, as the nth of 8 steps.
INLINE void stepNth(struct kind k, int R, struct dots *d, const uint8_t *const *x, int64_t group, int nth, int i, vi q) {
#ifdef PATH_AVX512
	UNROLL for (int r = 0; r < R; r++)
		d->dot[r] = vi_dot(d->dot[r], q, vi_set(*(const int32_t *)(xGroup(x[r], group)->q + 4 * i)));
#else
	const __m256i one = _mm256_set1_epi16(1);
	done(&q);
	if (signedWeights(k)) {
		// The product of magnitudes has the sign of x*w; a pair is at most 2*128*127, which an int16 has.
		vi w = vi_xor(q, vi_set(0x80808080));
		vi m = {_mm256_abs_epi8(w.lo), _mm256_abs_epi8(w.hi)};
		UNROLL for (int r = 0; r < R; r++) {
			__m256i b = _mm256_set1_epi32(*(const int32_t *)(xGroup(x[r], group)->q + 4 * i));
			vi t = {_mm256_maddubs_epi16(m.lo, _mm256_sign_epi8(b, w.lo)), _mm256_maddubs_epi16(m.hi, _mm256_sign_epi8(b, w.hi))};
			d->dot[r] = vi_add(d->dot[r], (vi){_mm256_madd_epi16(t.lo, one), _mm256_madd_epi16(t.hi, one)});
			done(&d->dot[r]);
		}
		return;
	}
	// So many pairs of q*127 fit into an int16.
	const int room = k.most <= 15 ? 8 : k.most <= 31 ? 4 : k.most <= 63 ? 2 : 1;
	const bool first = nth % room == 0 || (k.halves && nth == 4), last = nth % room == room - 1 || (k.halves && nth == 3);
	UNROLL for (int r = 0; r < R; r++) {
		__m256i b = _mm256_set1_epi32(*(const int32_t *)(xGroup(x[r], group)->q + 4 * i));
		vi t = {_mm256_maddubs_epi16(q.lo, b), _mm256_maddubs_epi16(q.hi, b)};
		if (!first)
			t = (vi){_mm256_add_epi16(d->part[r].lo, t.lo), _mm256_add_epi16(d->part[r].hi, t.hi)};
		if (last)
			d->dot[r] = vi_add(d->dot[r], (vi){_mm256_madd_epi16(t.lo, one), _mm256_madd_epi16(t.hi, one)});
		d->part[r] = t;
		done(last ? &d->dot[r] : &d->part[r]);
	}
#endif
}

// step is stepNth in the order of columns.
INLINE void step(struct kind k, int R, struct dots *d, const uint8_t *const *x, int64_t group, int i, vi q) { stepNth(k, R, d, x, group, i, i, q); }

// end adds what the sums are worth.
INLINE void end(struct kind k, int R, vf *acc, const struct dots *d, const uint8_t *const *x, int64_t group, vf s, vf m, int half) {
	UNROLL for (int r = 0; r < R; r++) {
		const struct record *g = xGroup(x[r], group);
		acc[r] = vf_fma(vf_int(d->dot[r]), vf_mul(s, vf_set(g->scale)), acc[r]);
		if (k.least && (!k.halves || half == 1))
			acc[r] = vf_fma(m, vf_set(g->sum), acc[r]);
#ifndef PATH_AVX512
		donef(&acc[r]);
#endif
	}
}

// ahead asks for the n bytes of weights that are so far behind w, in the second cache, which can wait for more
// lines than the first. Where memory is the limit the hardware's own prefetcher is on its way, and is only helped; where
// a line is worked at for longer it is too slow, and further ahead does better (Zen 4: 23 GB/s instead of 12 with
// 8 rows of Q8_0, 33 instead of 22 with one).
INLINE void ahead(const int R, const uint8_t *w, const int n) {
	const int far = R <= (AT_ONCE + 3) / 4 ? 1536 : 8192;
	UNROLL for (int i = 0; i < n; i += 64) __builtin_prefetch(w + i + far, 0, 2);
}

// A group of five bits takes 5 vectors: number i has columns 4i.. in its low five bits. Of columns 20.. three bits are
// atop number 0 and two atop number 1, of columns 24.. the same atop 2 and 3, of columns 28.. three atop 4, one at bit 5
// of 1 and 3. So most columns take one instruction to have.

// pick takes the bits of a where mask has them, else those of b.
#ifdef PATH_AVX512
INLINE vi pick(int mask, vi a, vi b) { return _mm512_ternarylogic_epi32(vi_set(mask), a, b, 0xca); }
#else
INLINE __m256i pick256(__m256i mask, __m256i a, __m256i b) { return _mm256_or_si256(_mm256_and_si256(mask, a), _mm256_andnot_si256(mask, b)); }
INLINE vi pick(int mask, vi a, vi b) {
	vi m = vi_set(mask);
	return (vi){pick256(m.lo, a.lo, b.lo), pick256(m.hi, a.hi, b.hi)};
}
#endif

// five gives columns 4i to 4i+3.
INLINE vi five(const uint8_t *group, int i) {
	const int low = 0x1f1f1f1f, upper3 = 0x1c1c1c1c;
	if (i < 5)
		return vi_and(vi_load(group + 64 * i), vi_set(low));
	if (i < 7) {
		group += 128 * (i - 5);
		return vi_and(pick(upper3, vi_right(vi_load(group), 3), vi_right(vi_load(group + 64), 6)), vi_set(low));
	}
	vi lower2 = pick(0x02020202, vi_right(vi_load(group + 64), 4), vi_right(vi_load(group + 192), 5));
	return vi_and(pick(upper3, vi_right(vi_load(group + 256), 3), lower2), vi_set(low));
}

// FEW makes the kernel of any number of rows of panel(w, cols, R, x, acc), which multiplies a panel by R rows: as many
// times as rows want it, of which all but the first find it in the second cache.
#define FEW(name, panel)                                                                     \
	INLINE void name##Rows(const struct product *a, int64_t i, int64_t first, const int R) { \
		const uint8_t *x[AT_MOST];                                                           \
		vf acc[AT_MOST];                                                                     \
		UNROLL for (int r = 0; r < R; r++) {                                                 \
			x[r] = xRow(a, first + r < a->n ? first + r : first);                           \
			acc[r] = vf_zero();                                                              \
		}                                                                                    \
		panel(a->w + i * a->panelBytes, a->cols, R, x, acc);                                 \
		UNROLL for (int r = 0; r < R; r++)                                                   \
			if (first + r < a->n)                                                            \
				vf_store_first(yRow(a, first + r) + 16 * i, acc[r], a->columns - 16 * i);    \
	}                                                                                        \
	void name(const struct product *a) {                                                     \
		ROLL for (int64_t i = a->from; i < a->to; i++) {                                     \
			ROLL for (int64_t r = 0; r < a->n; r += AT_ONCE) {                               \
				if (r + 1 == a->n)                                                           \
					name##Rows(a, i, r, 1);                                                  \
				else if (AT_ONCE == 2 || r + 2 == a->n)                                      \
					name##Rows(a, i, r, 2);                                                  \
				else if (r + 4 >= a->n)                                                      \
					name##Rows(a, i, r, 4);                                                  \
				else                                                                         \
					name##Rows(a, i, r, 8);                                                  \
			}                                                                                \
		}                                                                                    \
	}

// The common form: for each group of 32 columns so many vectors of 64 bytes: 16 scales (where halves have their
// own, 32), 16 minima where there are such, and 8 vectors of 16 rows x 4 columns q. PANELS panels are
// interleaved vector by vector.
#ifdef PATH_AVX512
enum { PANELS = 2, TILE = 4 };
#else
enum { PANELS = 1, TILE = 4 };
#endif
enum { BLOCK = 16, VECTOR = 64 * PANELS }; // groups that are unpacked at once: a multiple of 8

INLINE int firstQ(struct kind k) { return 1 + k.halves + k.least; }
INLINE int groupBytes(struct kind k) { return VECTOR * (firstQ(k) + 8); }
// putFloat and putQ write vector number i of a group of one panel, whose first is at to.
INLINE void putFloat(uint8_t *to, int i, vf v) { vf_store((float *)(to + VECTOR * i), v); }
INLINE void putQ(struct kind k, uint8_t *to, int i, vi q) { vi_store(to + VECTOR * (firstQ(k) + i), q); }

// tile multiplies so many groups of PANELS panels in the common form by R rows, from group on.
INLINE void tile(struct kind k, const int R, vf acc[TILE][PANELS], const uint8_t *w, int64_t groups, const uint8_t *const *x, int64_t group) {
	ROLL for (int64_t last = group + groups; group < last; group++, w += groupBytes(k)) {
		UNROLL for (int half = 0; half < (k.halves ? 2 : 1); half++) {
			struct dots d[PANELS];
			if (k.halves)
				__asm__ volatile("" ::: "memory"); // the halves' sums are not begun together: the registers would not hold them
			begin(k, R, &d[0], x, group, half);
			UNROLL for (int p = 1; p < PANELS; p++) d[p] = d[0];
			UNROLL for (int i = k.halves ? 4 * half : 0; i < (k.halves ? 4 * half + 4 : 8); i++)
				UNROLL for (int p = 0; p < PANELS; p++)
					step(k, R, &d[p], x, group, i, vi_load(w + VECTOR * (firstQ(k) + i) + 64 * p));
			UNROLL for (int p = 0; p < PANELS; p++) {
				vf sums[TILE];
				UNROLL for (int r = 0; r < R; r++) sums[r] = acc[r][p];
				vf s = vf_load((const float *)(w + VECTOR * half + 64 * p));
				vf m = k.least ? vf_load((const float *)(w + VECTOR * (1 + k.halves) + 64 * p)) : vf_zero();
				end(k, R, sums, &d[p], x, group, s, m, half);
				UNROLL for (int r = 0; r < R; r++) acc[r][p] = sums[r];
			}
		}
	}
}

// rowsTile does a tile of R rows from row r on: sums that are not whole yet wait in sums.
INLINE void rowsTile(struct kind k, const int R, const struct product *a, int64_t panel, const uint8_t *w, float *sums, int64_t group, int64_t groups, int64_t r0) {
	const uint8_t *x[TILE];
	vf acc[TILE][PANELS];
	UNROLL for (int r = 0; r < R; r++) {
		x[r] = xRow(a, r0 + r < a->n ? r0 + r : r0);
		UNROLL for (int p = 0; p < PANELS; p++) acc[r][p] = group == 0 ? vf_zero() : vf_load(sums + 16 * (PANELS * r + p));
	}
	tile(k, R, acc, w, groups, x, group);
	if (group + groups < a->cols / 32) {
		UNROLL for (int r = 0; r < R; r++) UNROLL for (int p = 0; p < PANELS; p++) vf_store(sums + 16 * (PANELS * r + p), acc[r][p]);
		return;
	}
	UNROLL for (int r = 0; r < R; r++) UNROLL for (int p = 0; p < PANELS; p++)
		if (r0 + r < a->n && panel + p < a->to)
			vf_store_first(yRow(a, r0 + r) + 16 * (panel + p), acc[r][p], a->columns - 16 * (panel + p));
}

// common is commonArgs of amx.go.
struct common {
	uint8_t *to;
	const uint8_t *w;
	int64_t panelBytes, panels, cols;
	int64_t group, groups; // the first group of columns, and how many
};

// COMMON makes the kernel that writes up to PANELS panels in the common form, for products in tiles.
#ifdef PATH_AVX512
#define COMMON(name, unpack)                                                                                                         \
	void name##Common(const struct common *a) {                                                                                      \
		ROLL for (int64_t p = 0; p < a->panels; p++) unpack(a->to + 64 * p, a->w + p * a->panelBytes, a->cols, a->group, a->groups); \
	}
#else
#define COMMON(name, unpack)
#endif

// packedAt is about where a group of a panel begins.
INLINE const uint8_t *packedAt(const struct product *a, int64_t panel, int64_t group) {
	return a->w + panel * a->panelBytes + group * 32 * a->panelBytes / a->cols;
}

// MANY makes the kernel of any number of rows of unpack(to, panel, cols, group, groups), which writes so many
// groups of a panel, from group on, in the common form. While a block is multiplied the next is asked for, a part
// with every tile.
#define MANY(name, k, unpack)                                                                                              \
	COMMON(name, unpack)                                                                                                   \
	void name(const struct product *a) {                                                                                   \
		float *sums = (float *)(a->scratch + BLOCK * 11 * VECTOR);                                                         \
		const int64_t all = a->cols / 32, bytes = BLOCK * 32 * a->panelBytes / a->cols;                                    \
		const int64_t part = bytes / ((a->n + TILE - 1) / TILE) + 64;                                                      \
		ROLL for (int64_t i = a->from; i < a->to; i += PANELS) ROLL for (int64_t group = 0; group < all; group += BLOCK) { \
			int64_t groups = all - group < BLOCK ? all - group : BLOCK;                                                    \
			ROLL for (int p = 0; p < PANELS; p++)                                                                          \
				unpack(a->scratch + 64 * p, a->w + (i + p < a->to ? i + p : i) * a->panelBytes, a->cols, group, groups);   \
			const uint8_t *next = group + groups < all ? packedAt(a, i, group + groups) : packedAt(a, i + PANELS, 0);    \
			int64_t r = 0;                                                                                                 \
			ROLL for (; a->n - r > TILE / 2; r += TILE, next += part) {                                                    \
				ROLL for (int64_t b = 0; b < part; b += 64) UNROLL for (int p = 0; p < PANELS; p++)                        \
					__builtin_prefetch(next + b + p * a->panelBytes, 0, 2);                                                \
				rowsTile(k, TILE, a, i, a->scratch, sums + 16 * PANELS * r, group, groups, r);                            \
			}                                                                                                              \
			if (r < a->n)                                                                                                  \
				rowsTile(k, TILE / 2, a, i, a->scratch, sums + 16 * PANELS * r, group, groups, r);                        \
		}                                                                                                                  \
	}
