// variants: avx2 avx512
// Panels of the formats whose blocks have 32 columns; quant.go describes them.
#include "pack.h"

enum format { Q80, Q40, Q41, Q50, Q51 };

// swap exchanges each bit in mask and the one d above it.
INLINE vi swap(vi v, int d, int32_t mask) {
	vi t = masked(vi_xor(v, vi_right(v, d)), mask);
	return vi_xor(v, vi_xor(t, vi_left(t, d)));
}

// fifths moves bit 4i+j of each word to bit i of byte j: of the bits' numbers, two swapped at a time.
INLINE vi fifths(vi v) { return swap(swap(swap(swap(v, 14, 0xcccc), 7, 0xaa00aa), 2, 0x0c0c0c0c), 1, 0x22222222); }

// fives writes a plane of five bits, given nibbles as a block has them and the fifth bits.
INLINE void fives(uint8_t *to, const vi t[4], vi fifth) {
	vi q[8];
	UNROLL for (int i = 0; i < 4; i++) {
		q[i] = vi_or(masked(t[i], 0x0f0f0f0f), masked(vi_left(fifth, 4 - i), 0x10101010));
		q[i + 4] = vi_or(masked(vi_right(t[i], 4), 0x0f0f0f0f), masked(vi_right(fifth, i), 0x10101010));
	}
	putFives(to, q);
}

// block packs the block at s->p: its plane goes to to. It gives the word with the scale, and the minimum above it.
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

INLINE void pack(const struct pack *a, enum format f) {
	const bool least = f == Q41 || f == Q51;
	const int size = f == Q80 ? 34 : f == Q40 ? 18 : f == Q41 ? 20 : f == Q50 ? 22 : 24;
	const int plane = f == Q80 ? 512 : f == Q50 || f == Q51 ? 320 : 256, header = least ? 128 : 64;
	uint8_t *to = a->panel;
	struct source s = sourceOf(a);
	// 16 rows are more streams than a processor foresees: the next panel's are asked for here, one after the other.
	const uint8_t *next = a->rows + 16 * a->stride;
	ROLL for (int64_t groups = a->cols / 32; groups > 0; groups -= 2, to += header + 2 * plane, next += 32 * size) {
		UNROLL for (int i = 0; i < 32 * size; i += 64) __builtin_prefetch(next + i, 0, 2);
		vi one = block(f, to + header, &s), two = vi_zero();
		s.p += size;
		if (groups > 1) {
			two = block(f, to + header + plane, &s);
			s.p += size;
		}
		put(to, lowHalves(one, two));
		if (least)
			put(to + 64, lowHalves(vi_right(one, 16), vi_right(two, 16)));
	}
	_mm_sfence();
}

void packQ80(const struct pack *a) { pack(a, Q80); }
void packQ40(const struct pack *a) { pack(a, Q40); }
void packQ41(const struct pack *a) { pack(a, Q41); }
void packQ50(const struct pack *a) { pack(a, Q50); }
void packQ51(const struct pack *a) { pack(a, Q51); }
