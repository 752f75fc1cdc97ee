// variants: avx2 avx512
// Panels of the formats whose blocks have 32 columns, from 16 rows of a checkpoint.
#include "quant.h"

// Rows that lie so many bytes apart, from p on; three is 3 times one. The compiler is kept from holding more
// addresses than these.
struct source { const uint8_t *p; int64_t one, three; };

INLINE __m128i load16(const uint8_t *p) { return _mm_loadu_si128((const __m128i *)p); }

// words gives the four words of 16 bytes of each row, from byte at on.
INLINE void words(vi out[4], struct source *s, int64_t at) {
	vi a[4];
	__asm__("" : "+r"(s->p), "+r"(s->one), "+r"(s->three));
	const uint8_t *p = s->p + at;
	UNROLL for (int r = 0; r < 4; r++, p += s->one) {
#ifdef PATH_AVX512
		vi v = _mm512_inserti32x4(_mm512_castsi128_si512(load16(p)), load16(p + 4 * s->one), 1);
		a[r] = _mm512_inserti32x4(_mm512_inserti32x4(v, load16(p + 8 * s->one), 2), load16(p + 4 * s->three), 3);
#else
		a[r].lo = _mm256_inserti128_si256(_mm256_castsi128_si256(load16(p)), load16(p + 4 * s->one), 1);
		a[r].hi = _mm256_inserti128_si256(_mm256_castsi128_si256(load16(p + 8 * s->one)), load16(p + 4 * s->three), 1);
#endif
	}
#ifdef PATH_AVX512
#define BOTH(op, a, b) _mm512_##op(a, b)
#else
#define BOTH(op, a, b) (vi){_mm256_##op(a.lo, b.lo), _mm256_##op(a.hi, b.hi)}
#endif
	vi b0 = BOTH(unpacklo_epi32, a[0], a[1]), b1 = BOTH(unpacklo_epi32, a[2], a[3]);
	vi b2 = BOTH(unpackhi_epi32, a[0], a[1]), b3 = BOTH(unpackhi_epi32, a[2], a[3]);
	out[0] = BOTH(unpacklo_epi64, b0, b1), out[1] = BOTH(unpackhi_epi64, b0, b1);
	out[2] = BOTH(unpacklo_epi64, b2, b3), out[3] = BOTH(unpackhi_epi64, b2, b3);
}

// put writes past the caches: weights are more than these hold.
INLINE void put(uint8_t *to, vi v) {
#ifdef PATH_AVX512
	_mm512_stream_si512((void *)to, v);
#else
	_mm256_stream_si256((__m256i *)to, v.lo), _mm256_stream_si256((__m256i *)to + 1, v.hi);
#endif
}

// low_halves gives the lower 16 bits of the rows of a, then those of b.
INLINE vi low_halves(vi a, vi b) {
#ifdef PATH_AVX512
	return _mm512_inserti64x4(_mm512_castsi256_si512(_mm512_cvtepi32_epi16(a)), _mm512_cvtepi32_epi16(b), 1);
#else
	const __m256i low = _mm256_set1_epi32(0xffff);
	return (vi){_mm256_permute4x64_epi64(_mm256_packus_epi32(_mm256_and_si256(a.lo, low), _mm256_and_si256(a.hi, low)), 0xd8),
	            _mm256_permute4x64_epi64(_mm256_packus_epi32(_mm256_and_si256(b.lo, low), _mm256_and_si256(b.hi, low)), 0xd8)};
#endif
}

// swap exchanges each bit in mask and the one d above it.
INLINE vi swap(vi v, int d, int32_t mask) {
	vi t = vi_and(vi_xor(v, vi_right(v, d)), vi_set(mask));
	return vi_xor(v, vi_xor(t, vi_left(t, d)));
}

// fifths moves bit 4i+j of each word to bit i of byte j: of the bits' numbers, two swapped at a time.
INLINE vi fifths(vi v) { return swap(swap(swap(swap(v, 14, 0xcccc), 7, 0xaa00aa), 2, 0x0c0c0c0c), 1, 0x22222222); }

INLINE vi masked(vi v, int32_t mask) { return vi_and(v, vi_set(mask)); }

// fives writes a plane of five bits, given nibbles as a block has them and the fifth bits; quant.h has its order.
INLINE void fives(uint8_t *to, const vi t[4], vi fifth) {
	vi q[8];
	UNROLL for (int i = 0; i < 4; i++) {
		q[i] = vi_or(masked(t[i], 0x0f0f0f0f), masked(vi_left(fifth, 4 - i), 0x10101010));
		q[i + 4] = vi_or(masked(vi_right(t[i], 4), 0x0f0f0f0f), masked(vi_right(fifth, i), 0x10101010));
	}
	put(to, vi_or(q[0], vi_left(masked(q[5], 0x1c1c1c1c), 3)));
	put(to + 64, vi_or(vi_or(q[1], vi_left(masked(q[5], 0x03030303), 6)), vi_left(masked(q[7], 0x02020202), 4)));
	put(to + 128, vi_or(q[2], vi_left(masked(q[6], 0x1c1c1c1c), 3)));
	put(to + 192, vi_or(vi_or(q[3], vi_left(masked(q[6], 0x03030303), 6)), vi_left(masked(q[7], 0x01010101), 5)));
	put(to + 256, vi_or(q[4], vi_left(masked(q[7], 0x1c1c1c1c), 3)));
}

enum format { Q80, Q40, Q41, Q50, Q51 };

// block packs the block at s->p: its plane goes to to. head gets the word with the scale, and the minimum above it.
INLINE vi block(enum format f, uint8_t *to, struct source *s) {
	vi t[4], head[4];
	words(head, s, 0);
	if (f == Q80) {
		UNROLL for (int half = 0; half < 2; half++) {
			words(t, s, 2 + 16 * half);
			UNROLL for (int i = 0; i < 4; i++) put(to + 256 * half + 64 * i, vi_xor(t[i], vi_set(0x80808080)));
		}
		return head[0];
	}
	words(t, s, f == Q40 ? 2 : f == Q41 ? 4 : f == Q50 ? 6 : 8);
	if (f == Q40 || f == Q41)
		UNROLL for (int i = 0; i < 4; i++) put(to + 64 * i, t[i]);
	else
		fives(to, t, fifths(f == Q51 ? head[1] : vi_or(vi_right(head[0], 16), vi_left(head[1], 16))));
	return head[0];
}

INLINE void panel(enum format f, const struct pack *a) {
	const bool least = f == Q41 || f == Q51;
	const int size = f == Q80 ? 34 : f == Q40 ? 18 : f == Q41 ? 20 : f == Q50 ? 22 : 24;
	const int plane = f == Q80 ? 512 : f == Q50 || f == Q51 ? 320 : 256, header = least ? 128 : 64;
	uint8_t *to = a->panel;
	struct source s = {a->rows, a->stride, 3 * a->stride};
	int64_t groups = a->cols / 32;
	// 16 rows are too many streams for the processor to foresee: the next panel's are asked for here, one after the other.
	const uint8_t *next = a->rows + 16 * a->stride;
	ROLL for (; groups > 0; groups -= 2, to += header + 2 * plane, next += 32 * size) {
		UNROLL for (int i = 0; i < 32 * size; i += 64) __builtin_prefetch(next + i, 0, 2);
		vi one = block(f, to + header, &s), two = vi_zero();
		s.p += size;
		if (groups > 1) {
			two = block(f, to + header + plane, &s);
			s.p += size;
		}
		put(to, low_halves(one, two));
		if (least)
			put(to + 64, low_halves(vi_right(one, 16), vi_right(two, 16)));
	}
	_mm_sfence();
}

void packQ80(const struct pack *a) { panel(Q80, a); }
void packQ40(const struct pack *a) { panel(Q40, a); }
void packQ41(const struct pack *a) { panel(Q41, a); }
void packQ50(const struct pack *a) { panel(Q50, a); }
void packQ51(const struct pack *a) { panel(Q51, a); }
