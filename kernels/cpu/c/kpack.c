// variants: avx2 avx512
// Panels of the formats whose blocks have 256 columns; k.go describes them.
#include "k.h"
#include "pack.h"

// later keeps the compiler from working out before what is needed only now: it would be held on the stack.
INLINE void later(uint8_t **to, struct source *s) { __asm__("" : "+r"(*to), "+r"(s->p)); }

// bits puts the bits of mask, shifted left by n (right where it is below 0).
INLINE vi bits(vi v, int mask, int n) { return n < 0 ? vi_right(masked(v, mask), -n) : vi_left(masked(v, mask), n); }

// nibbles gives the lower or the upper four bits of each byte.
INLINE vi nibbles(vi v, int upper) { return upper ? bits(v, 0xf0f0f0f0, -4) : bits(v, 0x0f0f0f0f, 0); }

// floats gives the halves in the upper half of each lane as float32.
INLINE vf floats(vi v) {
	v = lowHalves(vi_right(v, 16), vi_zero());
#ifdef PATH_AVX512
	return _mm512_cvtph_ps(_mm512_castsi512_si256(v));
#else
	return (vf){_mm256_cvtph_ps(_mm256_castsi256_si128(v.lo)), _mm256_cvtph_ps(_mm256_extracti128_si256(v.lo, 1))};
#endif
}

// putScales writes six bits of scales and minima of four groups: bytes scale, minimum, scale, minimum for each two.
INLINE void putScales(uint8_t *to, int unit, vi s, vi m) {
	for (int i = 0; i < 2; i++, s = vi_right(s, 16), m = vi_right(m, 16))
		put(to + i * unit, vi_or(vi_or(masked(s, 0xff), bits(s, 0xff00, 8)), vi_or(bits(m, 0xff, 8), bits(m, 0xff00, 16))));
}

// units4 and units5 pack the units of a block of Q4_K and Q5_K, from what follows the block's scales on.

INLINE void units4(uint8_t *to, struct source *s) {
	ROLL for (int u = 0; u < UNITS; u++, to += unitSize(Q4K)) {
		later(&to, s);
		UNROLL for (int i = 0; i < 8; i += 4, s->p += 16) {
			vi q[4];
			words(q, s, 0);
			UNROLL for (int j = 0; j < 4; j++) put(to + SCALES + 64 * (i + j), q[j]);
		}
	}
}

INLINE void units5(uint8_t *to, struct source *s) {
	UNROLL for (int u = 0; u < UNITS; u++, to += unitSize(Q5K)) {
		UNROLL for (int odd = 0; odd < 2; odd++) {
			vi q[8];
			UNROLL for (int i = 0; i < 8; i += 4) {
				vi four[4], fifth[4];
				later(&to, s);
				words(four, s, 32 + 32 * u + 4 * i);
				UNROLL for (int j = 0; j < 4; j++) q[i + j] = nibbles(four[j], odd);
				words(fifth, s, 4 * i);
				UNROLL for (int j = 0; j < 4; j++) q[i + j] = vi_or(q[i + j], bits(fifth[j], 0x01010101 << (2 * u + odd), 4 - 2 * u - odd));
			}
			putFives(to + SCALES + odd * groupSize(Q5K), q);
		}
	}
	s->p += 160;
}

// block45 packs a block of Q4_K or Q5_K.
INLINE void block45(enum format f, uint8_t *to, struct source *s) {
	const int six = 0x3f3f3f3f, four = 0x0f0f0f0f, two = 0x30303030, unit = unitSize(f);
	vi t[4];
	words(t, s, 0);
	s->p += 16;
	put(to, lowHalves(t[0], vi_right(t[0], 16)));
	to += HEADER;
	putScales(to, unit, masked(t[1], six), masked(t[2], six));
	putScales(to + 2 * unit, unit, vi_or(masked(t[3], four), masked(vi_right(t[1], 2), two)), vi_or(masked(vi_right(t[3], 4), four), masked(vi_right(t[2], 2), two)));
	if (f == Q5K)
		units5(to, s);
	else
		units4(to, s);
}

// putSixes writes half a group of Q6_K, given bytes with its four bits and with its two, which are the group-th.
INLINE void putSixes(uint8_t *to, const vi low[4], int upper, const vi high[4], int group) {
	vi q[4];
	UNROLL for (int i = 0; i < 4; i++) q[i] = vi_or(nibbles(low[i], upper), bits(high[i], 0x03030303 << 2 * group, 4 - 2 * group));
	UNROLL for (int i = 0; i < 3; i++) put(to + 64 * i, vi_or(q[i], bits(q[3], 0x03030303 << (4 - 2 * i), 2 + 2 * i)));
}

// block6 packs a block of Q6_K.
INLINE void block6(uint8_t *to, struct source *s) {
	const int unit = unitSize(Q6K);
	vi a[4], b[4];
	words(a, s, 194); // the block's last 16 bytes end with d
	vf d = floats(a[3]);
	put(to, vi_bits(d));
	to += HEADER;
	words(a, s, 192);
	UNROLL for (int u = 0; u < UNITS; u++) put(to + u * unit, a[u]);
	UNROLL for (int n = 0; n < 2; n++, to += 2 * unit) { // 128 columns, two units
		UNROLL for (int odd = 0; odd < 2; odd++) UNROLL for (int half = 0; half < 2; half++) {
			later(&to, s);
			words(a, s, 64 * n + 32 * odd + 16 * half), words(b, s, 128 + 32 * n + 16 * half);
			uint8_t *group = to + SCALES + groupSize(Q6K) * odd + 192 * half;
			putSixes(group, a, 0, b, odd), putSixes(group + unit, a, 1, b, odd + 2);
		}
	}
	s->p += 210;
}

// fetch reads the rows one after the other into the cache: 16 at once are more streams than a processor foresees. Where
// packing takes its time, that is faster than to ask for the next panel meanwhile.
INLINE void fetch(const struct pack *a) {
	const uint8_t *end = a->rows + 16 * a->stride - 64;
	for (const uint8_t *p = a->rows; p < end; p += 64) {
		vi line = vi_load(p);
		done(&line);
	}
}

INLINE void pack(const struct pack *a, enum format f) {
	uint8_t *to = a->panel;
	struct source s = sourceOf(a);
	fetch(a);
	ROLL for (int64_t blocks = a->cols / 256; blocks > 0; blocks--, to += blockSize(f)) {
		if (f == Q6K)
			block6(to, &s);
		else
			block45(f, to, &s);
	}
	_mm_sfence();
}

void packQ4K(const struct pack *a) { pack(a, Q4K); }
void packQ5K(const struct pack *a) { pack(a, Q5K); }
void packQ6K(const struct pack *a) { pack(a, Q6K); }
