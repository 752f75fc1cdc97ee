// variants: avx512
// The same product by plain loops: what AMX does, by which layouts and remainders are tested where there is none.
// Source: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2, LDTILECFG to TILEZERO.
#include "vec.h"

struct emulated {
	struct { uint8_t row[16][64]; int rows, rowBytes; } tile[8];
};

// An instruction with a tile of another shape is undefined.
#define WANT(condition) do { if (!(condition)) __builtin_trap(); } while (0)

INLINE void loadConfig(struct emulated *e, const uint8_t *c) {
	WANT(c[0] == 1 && c[1] == 0);
	for (int i = 2; i < 16; i++) WANT(c[i] == 0);
	for (int i = 0; i < 8; i++) {
		e->tile[i].rowBytes = c[16 + 2 * i] | c[17 + 2 * i] << 8, e->tile[i].rows = c[48 + i];
		WANT(e->tile[i].rows <= 16 && e->tile[i].rowBytes <= 64 && (e->tile[i].rows == 0) == (e->tile[i].rowBytes == 0));
	}
	for (int i = 32; i < 48; i++) WANT(c[i] == 0);
	for (int i = 56; i < 64; i++) WANT(c[i] == 0);
}

INLINE void zero(struct emulated *e, int t) {
	WANT(e->tile[t].rows > 0);
	for (int i = 0; i < 16; i++) for (int j = 0; j < 64; j++) e->tile[t].row[i][j] = 0;
}

INLINE void load(struct emulated *e, int t, const void *from, int64_t stride) {
	zero(e, t);
	for (int i = 0; i < e->tile[t].rows; i++)
		for (int j = 0; j < e->tile[t].rowBytes; j++) e->tile[t].row[i][j] = ((const uint8_t *)from)[i * stride + j];
}

INLINE void store(const struct emulated *e, int t, void *to, int64_t stride) {
	WANT(e->tile[t].rows > 0);
	for (int i = 0; i < e->tile[t].rows; i++)
		for (int j = 0; j < e->tile[t].rowBytes; j++) ((uint8_t *)to)[i * stride + j] = e->tile[t].row[i][j];
}

// flushed has a zero for a subnormal number.
INLINE float flushed(float x) { return x < 0x1p-126f && x > -0x1p-126f ? __builtin_copysignf(0, x) : x; }
INLINE float widened(half h) { return flushed(__builtin_bit_cast(float, (uint32_t)h << 16)); }

INLINE void dot(struct emulated *e, int c, int a, int b) {
	typedef half pair __attribute__((may_alias));
	WANT(e->tile[a].rows == e->tile[c].rows && e->tile[b].rowBytes == e->tile[c].rowBytes && e->tile[b].rows == e->tile[a].rowBytes / 4);
	for (int m = 0; m < e->tile[c].rows; m++)
		for (int n = 0; n < e->tile[c].rowBytes / 4; n++) {
			float sum[2] = {0, 0};
			for (int k = 0; k < e->tile[b].rows; k++)
				for (int i = 0; i < 2; i++)
					sum[i] = flushed(__builtin_fmaf(widened(((const pair *)e->tile[a].row[m])[2 * k + i]), widened(((const pair *)e->tile[b].row[k])[2 * n + i]), sum[i]));
			float *y = (float *)e->tile[c].row[m] + n;
			*y = flushed(flushed(*y) + flushed(sum[0] + sum[1]));
		}
}

#undef _tile_loadconfig
#undef _tile_release
#undef _tile_zero
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbf16ps
#define TILES struct emulated *emulated,
#define TILE_ARGUMENT emulated,
#define _tile_loadconfig(config) loadConfig(emulated, (const uint8_t *)(config))
#define _tile_release() (void)0
#define _tile_zero(t) zero(emulated, t)
#define _tile_loadd(t, from, stride) load(emulated, t, from, stride)
#define _tile_stored(t, to, stride) store(emulated, t, to, stride)
#define _tile_dpbf16ps(c, a, b) dot(emulated, c, a, b)
#include "amx.h"

// manyTilesEmulated keeps the tiles behind the other scratch.
void manyTilesEmulated(struct product *a) { rowTiles((struct emulated *)(a->scratch + sizeof(struct tileScratch)), a); }
