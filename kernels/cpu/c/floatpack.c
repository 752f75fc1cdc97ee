// variants: avx2 avx512
// Panels of numbers; float.go describes them.
#include "pack.h"

typedef uint32_t word __attribute__((aligned(1), may_alias));
typedef uint16_t shortWord __attribute__((aligned(1), may_alias));

// apart puts the 16 low halves of the words before the 16 high ones.
INLINE vi apart(vi v) { return lowHalves(v, vi_right(v, 16)); }

// pack writes words of 4 bytes: a column of F32, or two of the others. A panel has a multiple
// of even columns.
INLINE void pack(const struct pack *a, int bytes, int even, int split) {
	int64_t n = a->cols * bytes;
	uint8_t *to = a->panel;
	struct source s = sourceOf(a);
	ROLL for (; n >= 16; n -= 16, s.p += 16, to += 256) {
		vi v[4];
		words(v, &s, 0);
		UNROLL for (int i = 0; i < 4; i++) put(to + 64 * i, split ? apart(v[i]) : v[i]);
	}
	for (; n > 0; n -= 4, s.p += 4, to += 64) {
		const uint8_t *p = s.p;
		ROLL for (int64_t r = 0; r < 16; r++, p += a->stride) {
			uint32_t v = n == 2 ? *(const shortWord *)p : *(const word *)p;
			if (split) {
				((half *)to)[r] = v;
				((half *)to)[16 + r] = v >> 16;
			} else {
				((uint32_t *)to)[r] = v;
			}
		}
	}
	for (n = (a->cols + 1) / 2 * 2; bytes == 2 && n % even != 0; n += 2, to += 64) put(to, vi_zero());
	_mm_sfence();
}

void packF32(struct pack *a) { pack(a, 4, 1, 0); }
void packF16(struct pack *a) { pack(a, 2, 2, 1); }
void packBF16(struct pack *a) { pack(a, 2, 32, 0); }
