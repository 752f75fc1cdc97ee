// pack.cu: weights as checkpoints have them into the layout of quant.cuh.
#include "quant.cuh"

namespace packing {
using namespace quant;

struct Params {
	const u8* raw; // rows first to first+count as a checkpoint has them, at any alignment
	u8* data;
	i64 units; // of work: count times what a row has
	i32 format, rows, cols, first, count, pad;
};

DEVICE u32 two(const u8* b) { return b[0] | u32(b[1]) << 8; }
DEVICE u32 four(const u8* b) { return two(b) | two(b + 2) << 16; }

// bitsOf column i of group j of a block.
DEVICE u32 bitsOf(i32 f, const u8* b, i32 j, i32 i) {
	switch (f) {
	case Q8_0: return b[2 + i];
	case Q4_0: return b[2 + i % 16] >> i / 16 * 4 & 15;
	case Q4_1: return b[4 + i % 16] >> i / 16 * 4 & 15;
	case Q5_0: return (b[6 + i % 16] >> i / 16 * 4 & 15) | (b[2 + i / 8] >> i % 8 & 1) << 4;
	case Q5_1: return (b[8 + i % 16] >> i / 16 * 4 & 15) | (b[4 + i / 8] >> i % 8 & 1) << 4;
	case Q4_K: return b[16 + j / 2 * 32 + i] >> j % 2 * 4 & 15;
	case Q5_K: return (b[48 + j / 2 * 32 + i] >> j % 2 * 4 & 15) | (b[16 + i] >> j & 1) << 4;
	}
	return (b[j / 4 * 64 + j % 2 * 32 + i] >> j % 4 / 2 * 4 & 15) | (b[128 + j / 4 * 32 + i] >> j % 4 * 2 & 3) << 4; // Q6_K
}

// scalesOf group j of a block, as the plane has them.
DEVICE u32 scalesOf(i32 f, const u8* b, i32 j) {
	switch (f) {
	case Q4_1:
	case Q5_1: return four(b);
	case Q4_K:
	case Q5_K: {
		const u8* s = b + 4;
		if (j < 4) return (s[j] & 63) | (s[j + 4] & 63) << 8;
		return (s[j + 4] & 15) | s[j - 4] >> 6 << 4 | (s[j + 4] >> 4 | s[j] >> 6 << 4) << 8;
	}
	case Q6_K: return two(b + 192 + 2 * j);
	}
	return two(b);
}

// group g of a row: unit of work of the block formats.
template <i32 F> DEVICE void group(const Params& p, i64 unit) {
	constexpr i32 groups = blockBytes(F) ? 8 : 1; // of a block
	constexpr i32 size = F == Q8_0 ? 34 : F == Q4_0 ? 18 : F == Q4_1 ? 20 : F == Q5_0 ? 22 : F == Q5_1 ? 24 : F == Q4_K ? 144 : F == Q5_K ? 176 : 210;
	const i32 j = unit % groups;
	const u8* b = p.raw + unit / groups * size;
	const i64 to = unit + i64(p.first) * (p.cols / 32);
	const Planes planes = planesOf(p.data, F, p.rows, p.cols);

	u32 words[bitsBytes(F) / 4], above[2] = {0, 0};
#pragma unroll
	for (i32 w = 0; w < bitsBytes(F) / 4; w++) {
		u32 word = 0;
#pragma unroll
		for (i32 i = 0; i < 4; i++) {
			const u32 low = bitsOf(F, b, j, 4 * w + i);
			if (F == Q8_0) {
				word |= low << 8 * i;
				continue;
			}
			const u32 high = bitsOf(F, b, j, (16 + 4 * w + i) % 32);
			word |= (low & 15) << 8 * i | (high & 15) << (8 * i + 4);
			if (hasFifth(F)) above[0] |= low >> 4 << (w % 4 + 8 * i) | high >> 4 << (4 + w % 4 + 8 * i);
			if (F == Q6_K) above[0] |= low >> 4 << (2 * (w % 4) + 8 * i), above[1] |= high >> 4 << (2 * (w % 4) + 8 * i);
		}
		words[w] = word;
	}
#pragma unroll
	for (i32 w = 0; w < bitsBytes(F) / 4; w += 4)
		store128((u8*)planes.bits + to * bitsBytes(F) + 4 * w, {words[w], words[w + 1], words[w + 2], words[w + 3]});
	if (aboveBytes(F) == 4) ((u32*)planes.above)[to] = above[0];
	if (aboveBytes(F) == 8) ((u32*)planes.above)[2 * to] = above[0], ((u32*)planes.above)[2 * to + 1] = above[1];
	const u32 scales = scalesOf(F, b, j);
	if (scalesBytes(F) == 4) ((u32*)planes.scales)[to] = scales;
	else ((u16*)planes.scales)[to] = u16(scales);
	if (j != 0) return;
	if (blockBytes(F) == 4) ((u32*)planes.blocks)[to / 8] = four(b);
	if (blockBytes(F) == 2) ((u16*)planes.blocks)[to / 8] = u16(two(b + 208));
}

// line is 16 bytes of a row: unit of work of numbers that are no blocks, of 4 or 2 bytes.
DEVICE void line(const Params& p, i64 unit) {
	const i32 size = p.format == F32 ? 4 : 2, lines = i32(rowNumbers(p.format, p.cols) * size / 16), bytes = p.cols * size;
	const i64 row = unit / lines;
	const i32 at = i32(unit % lines) * 16;
	const u8* b = p.raw + row * bytes + at;
	u8* to = p.data + ((p.first + row) * lines) * 16 + at;
	if (at + 16 <= bytes && u64(b) % 16 == 0) {
		store128(to, load128(b));
		return;
	}
	u32 words[4] = {0, 0, 0, 0};
#pragma unroll
	for (i32 i = 0; i < 16; i++)
		if (at + i < bytes) words[i / 4] |= u32(b[i]) << i % 4 * 8;
	store128(to, {words[0], words[1], words[2], words[3]});
}

} // namespace packing

// pack puts rows into their place; what a row has more than its columns becomes 0.
KERNEL(pack, packing::Params, 256) {
	using namespace packing;
	const i64 unit = i64(blockIdx.x) * 256 + threadIdx.x;
	if (unit >= p.units) return;
	switch (p.format) {
	case Q8_0: return group<Q8_0>(p, unit);
	case Q4_0: return group<Q4_0>(p, unit);
	case Q4_1: return group<Q4_1>(p, unit);
	case Q5_0: return group<Q5_0>(p, unit);
	case Q5_1: return group<Q5_1>(p, unit);
	case Q4_K: return group<Q4_K>(p, unit);
	case Q5_K: return group<Q5_K>(p, unit);
	case Q6_K: return group<Q6_K>(p, unit);
	}
	line(p, unit);
}
