// variants: avx2 avx512
// Blocks of 32 columns with eight bits.
#include "quant.h"

static const struct kind kind = {.offset = 128, .most = 255};

enum { PAIR = 64 + 2 * 512 };

// plane and scales of a group
INLINE const uint8_t *plane(const uint8_t *w, int64_t group) { return w + group / 2 * PAIR + 64 + group % 2 * 512; }
INLINE vf scales(const uint8_t *w, int64_t group) { return vf_half((const half *)(w + group / 2 * PAIR + group % 2 * 32)); }

// one multiplies one group, the odd or the even one, of a pair at w.
INLINE void one(const uint8_t *w, int odd, int64_t group, const int R, const uint8_t *const *x, vf *acc) {
	struct dots d;
	vf s = vf_half((const half *)w + 16 * odd);
	w += 64 + 512 * odd;
	begin(kind, R, &d, x, group, 0);
	ahead(R, w, 512 + 64 * odd);
	UNROLL for (int i = 0; i < 8; i++) step(kind, R, &d, x, group, i, vi_load(w + 64 * i));
	end(kind, R, acc, &d, x, group, s, s, 0);
}

INLINE void panel(const uint8_t *w, int64_t cols, const int R, const uint8_t *const *x, vf *acc) {
	int64_t group = 0, groups = cols / 32;
	ROLL for (; group + 2 <= groups; group += 2, w += PAIR) {
		one(w, 0, group, R, x, acc);
		one(w, 1, group + 1, R, x, acc);
	}
	if (group < groups)
		one(w, 0, group, R, x, acc);
}

INLINE void unpack(uint8_t *to, const uint8_t *w, int64_t cols, int64_t group, int64_t groups) {
	ROLL for (int64_t last = group + groups; group < last; group++, to += groupBytes(kind)) {
		putFloat(to, 0, scales(w, group));
		UNROLL for (int i = 0; i < 8; i++) putQ(kind, to, i, vi_load(plane(w, group) + 64 * i));
	}
}

FEW(fewQ80, panel)
MANY(manyQ80, kind, unpack)
