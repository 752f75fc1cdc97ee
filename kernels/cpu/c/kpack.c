// variants: avx2 avx512
#include "k.h"

// kv is a register: a part of a panel, as many rows as it has lanes of 32 bits.
#ifdef PATH_AVX512
enum { PARTS = 1 };
typedef __m512i kv;
INLINE kv k_set(int32_t x) { return _mm512_set1_epi32(x); }
INLINE kv k_load(const void *p) { return _mm512_loadu_si512(p); }
INLINE void k_store(void *p, kv v) { _mm512_stream_si512(p, v); } // past the cache, since weights are more than it holds
INLINE kv k_and(kv a, int32_t b) { return _mm512_and_si512(a, k_set(b)); }
INLINE kv k_or(kv a, kv b) { return _mm512_or_si512(a, b); }
INLINE kv k_right(kv a, int n) { return _mm512_srli_epi32(a, n); }
INLINE kv k_left(kv a, int n) { return _mm512_slli_epi32(a, n); }
#else
enum { PARTS = 2 };
typedef __m256i kv;
INLINE kv k_set(int32_t x) { return _mm256_set1_epi32(x); }
INLINE kv k_load(const void *p) { return _mm256_loadu_si256(p); }
INLINE void k_store(void *p, kv v) { _mm256_storeu_si256(p, v); }
INLINE kv k_and(kv a, int32_t b) {
	kv mask = k_set(b);
	__asm__ volatile("" : "+x"(mask)); // so that not all masks are kept in registers, of which there are 16
	return _mm256_and_si256(a, mask);
}
INLINE kv k_or(kv a, kv b) { return _mm256_or_si256(a, b); }
INLINE kv k_right(kv a, int n) { return _mm256_srli_epi32(a, n); }
INLINE kv k_left(kv a, int n) { return _mm256_slli_epi32(a, n); }
#endif

// Rows of a file that lie so many bytes apart; three is 3 times one. A kernel that reads files must
// not use a stack, so the compiler is kept from holding more addresses in registers than these.
struct apart { int64_t one, three; };

// transpose reads 16 bytes of each row from p on: out[i] has bytes 4i to 4i+3 of each.
INLINE void transpose(const uint8_t *p, struct apart *by, kv out[4]) {
	kv a[4];
	__asm__("" : "+r"(p), "+r"(by->one), "+r"(by->three));
	for (int r = 0; r < 4; r++, p += by->one) {
#ifdef PATH_AVX512
		kv v = _mm512_castsi128_si512(_mm_loadu_si128((const __m128i *)p));
		v = _mm512_inserti32x4(v, _mm_loadu_si128((const __m128i *)(p + 4 * by->one)), 1);
		v = _mm512_inserti32x4(v, _mm_loadu_si128((const __m128i *)(p + 8 * by->one)), 2);
		a[r] = _mm512_inserti32x4(v, _mm_loadu_si128((const __m128i *)(p + 4 * by->three)), 3);
#else
		kv v = _mm256_castsi128_si256(_mm_loadu_si128((const __m128i *)p));
		a[r] = _mm256_inserti128_si256(v, _mm_loadu_si128((const __m128i *)(p + 4 * by->one)), 1);
#endif
	}
#ifdef PATH_AVX512
	kv b0 = _mm512_unpacklo_epi32(a[0], a[1]), b1 = _mm512_unpacklo_epi32(a[2], a[3]);
	kv b2 = _mm512_unpackhi_epi32(a[0], a[1]), b3 = _mm512_unpackhi_epi32(a[2], a[3]);
	out[0] = _mm512_unpacklo_epi64(b0, b1), out[1] = _mm512_unpackhi_epi64(b0, b1);
	out[2] = _mm512_unpacklo_epi64(b2, b3), out[3] = _mm512_unpackhi_epi64(b2, b3);
#else
	kv b0 = _mm256_unpacklo_epi32(a[0], a[1]), b1 = _mm256_unpacklo_epi32(a[2], a[3]);
	kv b2 = _mm256_unpackhi_epi32(a[0], a[1]), b3 = _mm256_unpackhi_epi32(a[2], a[3]);
	out[0] = _mm256_unpacklo_epi64(b0, b1), out[1] = _mm256_unpackhi_epi64(b0, b1);
	out[2] = _mm256_unpacklo_epi64(b2, b3), out[3] = _mm256_unpackhi_epi64(b2, b3);
#endif
}

// HERE keeps the compiler from computing addresses before they are needed, and keeping them.
#define HERE(p) __asm__("" : "+r"(p))

// header writes what is in the lower half of each lane as halves, then what is in the upper.
INLINE void header(uint8_t *to, kv v) {
#ifdef PATH_AVX512
	k_store(to, _mm512_inserti64x4(_mm512_castsi256_si512(_mm512_cvtepi32_epi16(v)), _mm512_cvtepi32_epi16(k_right(v, 16)), 1));
#else
	kv two = _mm256_packus_epi32(k_and(v, 0xffff), k_right(v, 16)); // lower and upper of four rows, and of four more
	two = _mm256_permute4x64_epi64(two, 0xd8);
	_mm_storeu_si128((__m128i *)to, _mm256_castsi256_si128(two));
	_mm_storeu_si128((__m128i *)(to + 32), _mm256_extracti128_si256(two, 1));
#endif
}

// numbers writes the halves in the upper half of each lane as float32.
INLINE void numbers(uint8_t *to, kv v) {
#ifdef PATH_AVX512
	k_store(to, _mm512_castps_si512(_mm512_cvtph_ps(_mm512_cvtepi32_epi16(k_right(v, 16)))));
#else
	v = _mm256_permute4x64_epi64(_mm256_packus_epi32(k_right(v, 16), k_set(0)), 0xd8);
	_mm256_storeu_ps((float *)to, _mm256_cvtph_ps(_mm256_castsi256_si128(v)));
#endif
}

// scales writes six bits of scales and minima of four groups: bytes scale, minimum, scale, minimum for each two.
INLINE void scales(uint8_t *to, int unit, kv s, kv m) {
	for (int i = 0; i < 2; i++, s = k_right(s, 16), m = k_right(m, 16))
		k_store(to + i * unit, k_or(k_or(k_and(s, 0xff), k_left(k_and(s, 0xff00), 8)), k_or(k_left(k_and(m, 0xff), 8), k_left(k_and(m, 0xff00), 16))));
}

// bits puts the bits of mask, shifted left by n (right where it is below 0).
INLINE kv bits(kv v, int mask, int n) { return n < 0 ? k_right(k_and(v, mask), -n) : k_left(k_and(v, mask), n); }

// fives writes a group of Q5_K.
INLINE void fives(uint8_t *to, const kv q[8]) {
	k_store(to, k_or(q[0], bits(q[5], 0x1c1c1c1c, 3)));
	k_store(to + 64, k_or(k_or(q[1], bits(q[5], 0x03030303, 6)), bits(q[7], 0x02020202, 4)));
	k_store(to + 128, k_or(q[2], bits(q[6], 0x1c1c1c1c, 3)));
	k_store(to + 192, k_or(k_or(q[3], bits(q[6], 0x03030303, 6)), bits(q[7], 0x01010101, 5)));
	k_store(to + 256, k_or(q[4], bits(q[7], 0x1c1c1c1c, 3)));
}

// block5 packs the units of a block of Q5_K; it moves to and from to the next.
INLINE void block5(uint8_t **to, const uint8_t **from, struct apart *by) {
	*from += 16;
	UNROLL for (int u = 0; u < UNITS; u++, *to += unit_size(Q5K)) {
		UNROLL for (int odd = 0; odd < 2; odd++) {
			kv q[8];
			UNROLL for (int i = 0; i < 8; i += 4) {
				kv low[4], fifth[4];
				HERE(*to); HERE(*from);
				transpose(*from + 32 + 32 * u + 4 * i, by, low);
				UNROLL for (int j = 0; j < 4; j++) q[i + j] = odd ? bits(low[j], 0xf0f0f0f0, -4) : bits(low[j], 0x0f0f0f0f, 0);
				transpose(*from + 4 * i, by, fifth);
				UNROLL for (int j = 0; j < 4; j++) q[i + j] = k_or(q[i + j], bits(fifth[j], 0x01010101 << (2 * u + odd), 4 - 2 * u - odd));
			}
			fives(*to + SCALES + odd * group_size(Q5K), q);
		}
	}
	*from += 176 - 16;
}

// block4 packs the units of a block of Q4_K; it moves to and from to the next.
INLINE void block4(uint8_t **to, const uint8_t **from, struct apart *by) {
	*from += 16;
	ROLL for (int u = 0; u < UNITS; u++, *to += unit_size(Q4K)) {
		HERE(*to); HERE(*from);
		UNROLL for (int i = 0; i < 8; i += 4, *from += 16) {
			kv q[4];
			transpose(*from, by, q);
			UNROLL for (int j = 0; j < 4; j++) k_store(*to + SCALES + 64 * (i + j), q[j]);
		}
	}
}

// nibbles packs a block of Q4_K or Q5_K; it moves to and from to the next.
INLINE void nibbles(enum format f, uint8_t **to, int part, const uint8_t **from, struct apart *by) {
	const int six = 0x3f3f3f3f, four = 0x0f0f0f0f, two = 0x30303030;
	kv t[4];
	HERE(*to); HERE(*from);
	transpose(*from, by, t);
	header(*to - 16 * part, t[0]);
	*to += HEADER;
	scales(*to, unit_size(f), k_and(t[1], six), k_and(t[2], six));
	scales(*to + 2 * unit_size(f), unit_size(f), k_or(k_and(t[3], four), k_and(k_right(t[1], 2), two)), k_or(k_and(k_right(t[3], 4), four), k_and(k_right(t[2], 2), two)));
	if (f == Q5K)
		block5(to, from, by);
	else
		block4(to, from, by);
}

// sixes writes half a group of Q6_K; of low there are the lower or the upper four bits, of high two bits.
INLINE void sixes(uint8_t *to, const kv low[4], int upper, const kv high[4], int group) {
	kv q[4];
	UNROLL for (int i = 0; i < 4; i++)
		q[i] = k_or(upper ? bits(low[i], 0xf0f0f0f0, -4) : bits(low[i], 0x0f0f0f0f, 0), bits(high[i], 0x03030303 << 2 * group, 4 - 2 * group));
	UNROLL for (int i = 0; i < 3; i++) k_store(to + 64 * i, k_or(q[i], bits(q[3], 0x03030303 << (4 - 2 * i), 2 + 2 * i)));
}

// block6 packs a block of Q6_K; it moves to and from to the next.
INLINE void block6(uint8_t **to, const uint8_t **from, struct apart *by) {
	kv a[4], b[4];
	HERE(*to); HERE(*from);
	transpose(*from + 194, by, a); // the block's last 16 bytes end with d
	numbers(*to, a[3]);
	*to += HEADER;
	transpose(*from + 192, by, a);
	UNROLL for (int u = 0; u < UNITS; u++) k_store(*to + u * (SCALES + 2 * 384), a[u]);
	UNROLL for (int n = 0; n < 2; n++, *to += 2 * (SCALES + 2 * 384)) { // 128 columns, two units
		UNROLL for (int odd = 0; odd < 2; odd++) UNROLL for (int half = 0; half < 2; half++) {
			HERE(*to); HERE(*from);
			transpose(*from + 64 * n + 32 * odd + 16 * half, by, a), transpose(*from + 128 + 32 * n + 16 * half, by, b);
			uint8_t *group = *to + SCALES + 384 * odd + 192 * half;
			sixes(group, a, 0, b, odd), sixes(group + SCALES + 2 * 384, a, 1, b, odd + 2);
		}
	}
	*from += 210;
}

INLINE void pack(const struct pack *a, enum format f) {
	// Memory delivers rows that are read in order faster than 16 rows by turns.
	const uint8_t *end = a->rows + 16 * a->stride - 64;
	for (const uint8_t *p = a->rows; p < end; p += 64) {
		kv x = k_load(p);
		__asm__ volatile("" ::"v"(x));
	}
	struct apart by = {a->stride, 3 * a->stride};
	UNROLL for (int part = 0; part < PARTS; part++) {
		uint8_t *to = a->panel + 32 * part;
		const uint8_t *from = a->rows + 8 * part * by.one, *end = from + by.one;
		ROLL while (from < end) {
			if (f == Q6K)
				block6(&to, &from, &by);
			else
				nibbles(f, &to, part, &from, &by);
		}
	}
	_mm_sfence();
}

void packQ4K(const struct pack *a) { pack(a, Q4K); }
void packQ5K(const struct pack *a) { pack(a, Q5K); }
void packQ6K(const struct pack *a) { pack(a, Q6K); }
