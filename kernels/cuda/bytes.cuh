// bytes.cuh: activations as signed bytes, which weights of block formats are multiplied by.
#pragma once
#include "gpu.cuh"

namespace bytes {

// Form is where rows of numbers go as bytes; null: nowhere. Of each row the first 16 of each 32 columns lie before the last 16 of
// each: so neighbouring lanes, each with 32 columns of weights, read neighbouring bytes.
struct Form {
	i8* q;         // [rows, 2, cols/32, 16], cols a multiple of 32
	f32x2* scales; // [rows, cols/32]: of 32 columns the scale, and scale times the sum of q
};

DEVICE u32 magnitude(f32 x) { return f32ToBits(x) & 0x7fffffff; }
DEVICE u32 larger(u32 a, u32 b) { return a > b ? a : b; }

// put four numbers of a row, from a column on that is a multiple of 4; eight neighbouring lanes have a group of 32, and all lanes of
// the warp take part. The group's scale is its largest magnitude over 127; q is rounded to nearest, ties to even. As
// kernels/cpu's form Int8: less than 2^-100 is 0; where a number is infinite or none the scale is none, and q are 0.
DEVICE void put(const Form& to, i64 row, i32 cols, i32 column, const f32 (&v)[4], bool valid) {
	u32 largest = larger(larger(magnitude(v[0]), magnitude(v[1])), larger(magnitude(v[2]), magnitude(v[3])));
	for (u32 mask = 4; mask > 0; mask /= 2) largest = larger(largest, shuffleXor(largest, mask));
	const f32 most = bitsToF32(largest);
	const bool none = largest >= 0x7f800000, zero = none || most < 7.8886091e-31f; // 2^-100
	const f32 inverse = zero ? 0 : 127 / most, scale = none ? bitsToF32(0x7fc00000) : zero ? 0 : most / 127;
	const f32 round = 12582912; // 1.5*2^23: in the sum the last byte is the number, rounded
	u32 word = 0;
#pragma unroll
	for (i32 i = 0; i < 4; i++) word |= (zero ? 0 : f32ToBits(v[i] * inverse + round) & 255) << 8 * i;
	i32 sum = dp4a(i32(word), 0x01010101, 0);
	for (u32 mask = 4; mask > 0; mask /= 2) sum += shuffleXor(sum, mask);
	if (!valid) return;
	*(u32*)(to.q + row * cols + (column / 32 * 16 + column / 16 % 2 * (cols / 2) + column % 16)) = word;
	if (column % 32 == 0) to.scales[row * (cols / 32) + column / 32] = {scale, scale * f32(sum)};
}

} // namespace bytes
