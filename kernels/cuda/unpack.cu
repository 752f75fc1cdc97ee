// unpack.cu: rows of packed weights as bf16, for products of so many rows of x that decoding the weights in every block
// takes longer than writing them once, into memory that stays in the device's cache.
#include "quant.cuh"

namespace unpacking {
using namespace quant;

// Part is some rows of a matrix.
struct Part {
	const u8* w;
	u16* to;         // [rows from first on, cols]
	i64 units;       // of 16 columns: half of a group's each
	i32 rows, first; // of the matrix; the first that is unpacked
};

struct Params {
	Part parts[3]; // blockIdx.y is which
	i32 format, cols;
};

// numbers of four bytes: base is 2^23 and the offset. They are exact, and rounded once.
DEVICE u32x2 numbers(u32 bytes, f32 base, f32 scale, f32 least) {
	f32 v[4];
#pragma unroll
	for (i32 i = 0; i < 4; i++) v[i] = fmaf(scale, bitsToF32(0x4b000000 | (bytes >> 8 * i & 255)) - base, least);
	return {toBF16x2(v[0], v[1]), toBF16x2(v[2], v[3])};
}

// A thread has 8 of the first and 8 of the last 16 columns of a group, so that two of them write 32 bytes.
template <i32 F> DEVICE void unpack(const Params& p) {
	// Number by number: a part that is chosen as a whole is copied to memory, 96 bytes of stack for a thread.
	const Part &a = p.parts[0], &b = p.parts[1], &c = p.parts[2];
	const auto of = [](auto first, auto second, auto third) __attribute__((always_inline)) { return blockIdx.y == 0 ? first : blockIdx.y == 1 ? second : third; };
	const Part part = {of(a.w, b.w, c.w), of(a.to, b.to, c.to), of(a.units, b.units, c.units), of(a.rows, b.rows, c.rows), of(a.first, b.first, c.first)};
	const i64 unit = i64(blockIdx.x) * 256 + threadIdx.x;
	if (unit >= part.units) return;
	const i32 half = unit % 2;
	const i64 group = unit / 2 + i64(part.first) * (p.cols / 32);
	const Planes planes = planesOf(part.w, F, part.rows, p.cols);
	const u8* const bits = planes.bits + group * bitsBytes(F) + half * 8;
	const u32x2 first = load64(bits), last = F == Q8_0 ? load64(bits + 16) : first;
	const u32x2 above = aboveWords(F, planes, group);
	const Scale s = scaleOf(F, scaleWord(F, planes, group), blockWord(F, planes, group / 8));
	const f32 base = 8388608.0f + f32(offset(F));
	const auto low = [&](u32 word, i32 w) __attribute__((always_inline)) { return numbers(F == Q8_0 ? word ^ 0x80808080 : lowBits(F, word, above, 2 * half + w), base, s.low, s.least); };
	const auto high = [&](u32 word, i32 w) __attribute__((always_inline)) { return numbers(F == Q8_0 ? word ^ 0x80808080 : highBits(F, word, above, 2 * half + w), base, s.high, s.least); };
	const u32x2 w0 = low(first.x, 0), w1 = low(first.y, 1), w2 = high(last.x, 0), w3 = high(last.y, 1);
	u16* const to = part.to + unit / 2 * 32 + half * 8;
	store128(to, {w0.x, w0.y, w1.x, w1.y});
	store128(to + 16, {w2.x, w2.y, w3.x, w3.y});
}

} // namespace unpacking

KERNEL(unpack, unpacking::Params, 256) {
	using namespace unpacking;
	switch (p.format) {
	case Q8_0: return unpack<Q8_0>(p);
	case Q4_0: return unpack<Q4_0>(p);
	case Q4_1: return unpack<Q4_1>(p);
	case Q5_0: return unpack<Q5_0>(p);
	case Q5_1: return unpack<Q5_1>(p);
	case Q4_K: return unpack<Q4_K>(p);
	case Q5_K: return unpack<Q5_K>(p);
	case Q6_K: return unpack<Q6_K>(p);
	}
}
