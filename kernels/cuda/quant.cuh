// quant.cuh: how weights lie on the device (weights.go says why), and their numbers. kernels/cpu/blocks.go
// describes the formats as checkpoints have them.
//
// F32, F16 and BF16 lie in rows, each filled up with zeros to a multiple of 16 bytes. The others lie in up
// to four planes, each [rows, columns/32] of what 32 columns of a row, a group, have of it, and each
// beginning at a multiple of 256 bytes:
//
//	      bits  above  scales  blocks     bytes
//	Q8_0   32     -      2       -        the bits are signed bytes
//	Q4_0   16     -      2       -        else byte i of the bits has column i low and column i+16 high
//	Q4_1   16     -      4       -        scales: d, m
//	Q5_0   16     4      2       -        bit w+8j of the word above is of column 4w+j, bit 4+w+8j of column 16+4w+j
//	Q5_1   16     4      4       -
//	Q4_K   16     -      2       4        scales: s, t, unpacked to a byte each; blocks: d, m, once in 256 columns
//	Q5_K   16     4      2       4        as Q4_K, above as in Q5_0
//	Q6_K   16     8      2       2        bits 2w+8j, 2w+1+8j of the first word above are of column 4w+j, those of the
//	                                      second of column 16+4w+j; scales: of the first and of the last 16 columns
//
// So all loads are of neighbours by neighbours, those of bits 16 bytes wide, and a word of bits turns into
// four columns, a byte each as dp4a wants them, in two to five instructions.
#pragma once
#include "gpu.cuh"

namespace quant {

// Formats, by the numbers of tensor.DType.
enum : i32 { F32 = 1, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4_K, Q5_K, Q6_K };

// Weights [rows, cols].
struct Weights {
	const u8* data;
	i32 format, rows, cols, pad;
};

DEVICE constexpr bool isFloat(i32 f) { return f <= BF16; }
DEVICE constexpr bool hasFifth(i32 f) { return f == Q5_0 || f == Q5_1 || f == Q5_K; }
DEVICE constexpr bool hasLeast(i32 f) { return f == Q4_1 || f == Q5_1 || f == Q4_K || f == Q5_K; }

// Bytes of a group in each plane; of 256 columns in that of blocks.
DEVICE constexpr i32 bitsBytes(i32 f) { return f == Q8_0 ? 32 : 16; }
DEVICE constexpr i32 aboveBytes(i32 f) { return hasFifth(f) ? 4 : f == Q6_K ? 8 : 0; }
DEVICE constexpr i32 scalesBytes(i32 f) { return f == Q4_1 || f == Q5_1 ? 4 : 2; }
DEVICE constexpr i32 blockBytes(i32 f) { return f == Q4_K || f == Q5_K ? 4 : f == Q6_K ? 2 : 0; }

// offset is what is taken from unsigned bits: a number is scale*(bits-offset), plus least where the format has it.
// It is of Q8_0's bits with the sign turned.
DEVICE constexpr i32 offset(i32 f) { return f == Q8_0 ? 128 : f == Q4_0 ? 8 : f == Q5_0 ? 16 : f == Q6_K ? 32 : 0; }

// rowNumbers is how many numbers a row of F32, F16 or BF16 takes.
DEVICE i64 rowNumbers(i32 f, i32 cols) { return f == F32 ? (i64(cols) + 3) / 4 * 4 : (i64(cols) + 7) / 8 * 8; }

struct Planes {
	const u8 *bits, *above, *scales, *blocks;
};

DEVICE i64 planeBytes(i64 bytes) { return (bytes + 255) / 256 * 256; }

DEVICE Planes planesOf(const u8* data, i32 f, i32 rows, i32 cols) {
	const i64 groups = i64(rows) * (cols / 32);
	Planes p;
	p.bits = data;
	p.above = p.bits + planeBytes(groups * bitsBytes(f));
	p.scales = p.above + planeBytes(groups * aboveBytes(f));
	p.blocks = p.scales + planeBytes(groups * scalesBytes(f));
	return p;
}

// scaleWord and blockWord are what a group has in the planes of scales and of blocks; group and block count
// from the start of the matrix.
DEVICE u32 scaleWord(i32 f, const Planes& p, i64 group) { return scalesBytes(f) == 4 ? ((const u32*)p.scales)[group] : ((const u16*)p.scales)[group]; }
DEVICE u32 blockWord(i32 f, const Planes& p, i64 block) {
	return blockBytes(f) == 4 ? ((const u32*)p.blocks)[block] : blockBytes(f) == 2 ? ((const u16*)p.blocks)[block] : 0;
}
// aboveWords are the bits above the lowest four; y is Q6_K's alone.
DEVICE u32x2 aboveWords(i32 f, const Planes& p, i64 group) {
	if (f == Q6_K) return load64(p.above + 8 * group);
	return {hasFifth(f) ? ((const u32*)p.above)[group] : 0, 0};
}

// Scale of the first and of the last 16 columns of a group, and what is added. All are exact.
struct Scale {
	f32 low, high, least;
};

DEVICE Scale scaleOf(i32 f, u32 word, u32 block) {
	const f32 first = fromHalf(u16(blockBytes(f) ? block : word));
	if (f == Q6_K) return {first * f32(i8(word)), first * f32(i8(word >> 8)), 0};
	if (blockBytes(f) == 4) {
		const f32 scale = first * f32(word & 255);
		return {scale, scale, -(fromHalf(u16(block >> 16)) * f32(word >> 8 & 255))};
	}
	return {first, first, hasLeast(f) ? fromHalf(u16(word >> 16)) : 0};
}

// lowBits are columns 4w to 4w+3 of a group, a byte each, highBits columns 16+4w to 16+4w+3: of word w of the bits,
// and of those above. Not of Q8_0.
DEVICE u32 lowBits(i32 f, u32 bits, u32x2 above, i32 w) {
	bits &= 0x0f0f0f0f;
	if (hasFifth(f)) bits |= above.x << (4 - w) & 0x10101010;
	if (f == Q6_K) bits |= (above.x >> 2 * w & 0x03030303) << 4;
	return bits;
}
DEVICE u32 highBits(i32 f, u32 bits, u32x2 above, i32 w) {
	bits = bits >> 4 & 0x0f0f0f0f;
	if (hasFifth(f)) bits |= above.x >> w & 0x10101010;
	if (f == Q6_K) bits |= (above.y >> 2 * w & 0x03030303) << 4;
	return bits;
}

// number is the weight in a column of a row, as kernels/cpu has it to the last bit. For whatever reads
// few numbers of a matrix: products decode their own way.
DEVICE f32 number(const Weights& w, i64 row, i32 column) {
	const i32 f = w.format;
	if (isFloat(f)) {
		const i64 at = row * rowNumbers(f, w.cols) + column;
		if (f == F32) return ((const f32*)w.data)[at];
		const u16 n = ((const u16*)w.data)[at];
		return f == F16 ? fromHalf(n) : fromBF16(n);
	}
	const Planes p = planesOf(w.data, f, w.rows, w.cols);
	const i64 group = row * (w.cols / 32) + column / 32;
	const i32 i = column % 32, j = i % 16; // column j of the first or last 16
	u32 bits = p.bits[group * bitsBytes(f) + (f == Q8_0 ? i : j)];
	if (f == Q8_0) {
		bits ^= 128;
	} else {
		bits = bits >> i / 16 * 4 & 15;
		if (hasFifth(f)) bits |= (((const u32*)p.above)[group] >> (i / 16 * 4 + j / 4 + j % 4 * 8) & 1) << 4;
		if (f == Q6_K) bits |= (((const u32*)p.above)[2 * group + i / 16] >> (j / 4 * 2 + j % 4 * 8) & 3) << 4;
	}
	const Scale s = scaleOf(f, scaleWord(f, p, group), blockWord(f, p, row * (w.cols / 256) + column / 256));
	const f32 product = (i < 16 ? s.low : s.high) * f32(i32(bits) - offset(f));
	return hasLeast(f) ? product + s.least : product;
}

} // namespace quant
