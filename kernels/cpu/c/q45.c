// variants: avx2 avx512
// Blocks of 32 columns with four or five bits, with and without minima.
#include "quant.h"

static const struct kind q40 = {.offset = 8, .most = 15}, q41 = {.most = 15, .least = true};
static const struct kind q50 = {.offset = 16, .most = 31}, q51 = {.most = 31, .least = true};

INLINE int header(struct kind k) { return k.least ? 128 : 64; }
INLINE int plane(struct kind k) { return k.most == 31 ? 320 : 256; }

// nibbles gives the low and the high four bits of vector i of a plane: columns 4i.. and 4i+16..
INLINE void nibbles(vi q[2], const uint8_t *w, int i) {
	const vi low = vi_set(0x0f0f0f0f);
	vi v = vi_load(w + 64 * i);
	q[0] = vi_and(v, low), q[1] = vi_and(vi_right(v, 4), low);
}

// one multiplies one group, the odd or the even one, of a pair at w.
INLINE void one(struct kind k, const uint8_t *w, int odd, int64_t group, const int R, const uint8_t *const *x, vf *acc) {
	struct dots d;
	vf s = vf_half((const half *)w + 16 * odd), m = k.least ? vf_half((const half *)w + 32 + 16 * odd) : s;
	w += header(k) + odd * plane(k);
	begin(k, R, &d, x, group, 0);
	ahead(R, w, plane(k) + header(k) * odd);
	if (k.most == 31)
		UNROLL for (int i = 0; i < 8; i++) step(k, R, &d, x, group, i, five(w, i));
	else UNROLL for (int i = 0; i < 4; i++) {
		vi q[2];
		nibbles(q, w, i);
		stepNth(k, R, &d, x, group, 2 * i, i, q[0]);
		stepNth(k, R, &d, x, group, 2 * i + 1, i + 4, q[1]);
	}
	end(k, R, acc, &d, x, group, s, m, 0);
}

INLINE void panel(struct kind k, const uint8_t *w, int64_t cols, const int R, const uint8_t *const *x, vf *acc) {
	int64_t group = 0, groups = cols / 32;
	ROLL for (; group + 2 <= groups; group += 2, w += header(k) + 2 * plane(k)) {
		one(k, w, 0, group, R, x, acc);
		one(k, w, 1, group + 1, R, x, acc);
	}
	if (group < groups)
		one(k, w, 0, group, R, x, acc);
}

INLINE void unpack(struct kind k, uint8_t *to, const uint8_t *w, int64_t group, int64_t groups) {
	ROLL for (int64_t last = group + groups; group < last; group++, to += groupBytes(k)) {
		const uint8_t *pair = w + group / 2 * (header(k) + 2 * plane(k)), *from = pair + header(k) + group % 2 * plane(k);
		putFloat(to, 0, vf_half((const half *)pair + 16 * (group % 2)));
		if (k.least)
			putFloat(to, 1, vf_half((const half *)pair + 32 + 16 * (group % 2)));
		if (k.most == 31)
			UNROLL for (int i = 0; i < 8; i++) putQ(k, to, i, five(from, i));
		else UNROLL for (int i = 0; i < 4; i++) {
			vi q[2];
			nibbles(q, from, i);
			putQ(k, to, i, q[0]);
			putQ(k, to, i + 4, q[1]);
		}
	}
}

#define FORMAT(name, k)                                                                                                                                        \
	INLINE void panel##name(const uint8_t *w, int64_t cols, const int R, const uint8_t *const *x, vf *acc) { panel(k, w, cols, R, x, acc); }                     \
	INLINE void unpack##name(uint8_t *to, const uint8_t *w, int64_t cols, int64_t group, int64_t groups) { unpack(k, to, w, group, groups); }                    \
	FEW(few##name, panel##name)                                                                                                                                   \
	MANY(many##name, k, unpack##name)

FORMAT(Q40, q40)
FORMAT(Q41, q41)
FORMAT(Q50, q50)
FORMAT(Q51, q51)
