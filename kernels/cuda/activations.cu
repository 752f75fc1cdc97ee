// activations.cu: rows of activations in the forms that products take.
#include "gpu.cuh"

namespace activations {

struct QuantizeParams {
	const f32* x; // [rows, cols], cols a multiple of 32
	i8* q;        // [rows, cols]
	f32x2* scales; // [rows, cols/32]: of 32 columns the scale, and scale times the sum of q
	i64 numbers;  // rows*cols
};

struct NarrowParams {
	const f32* x;  // [rows, cols]
	u16* y;        // [rows, stride], filled up with zeros
	f32* scales;   // narrowF16: [rows] powers of two by which products are to be multiplied
	i32 rows, cols, stride, pad;
};

DEVICE u32 magnitude(f32 x) { return f32ToBits(x) & 0x7fffffff; }
DEVICE u32 larger(u32 a, u32 b) { return a > b ? a : b; }

// eight numbers of a row from column on; 0 beyond its end.
DEVICE void eight(f32 (&v)[8], const NarrowParams& p, i32 row, i32 column) {
	const f32* x = p.x + i64(row) * p.cols + column;
	if (column + 8 <= p.cols && p.cols % 4 == 0) {
		const f32x4 a = loadf4(x), b = loadf4(x + 4);
		v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w, v[4] = b.x, v[5] = b.y, v[6] = b.z, v[7] = b.w;
		return;
	}
#pragma unroll
	for (i32 i = 0; i < 8; i++) v[i] = column + i < p.cols ? x[i] : 0;
}

} // namespace activations

// quantize: 32 columns share a scale, their largest magnitude over 127; q is rounded to nearest, ties to even. As
// kernels/cpu's form Int8: less than 2^-100 is 0; where a number is infinite or none the scale is none, and q are 0.
KERNEL(quantize, activations::QuantizeParams, 256) {
	using namespace activations;
	const i64 at = (i64(blockIdx.x) * 256 + threadIdx.x) * 4; // 8 lanes have a group, 4 numbers each
	const bool valid = at < p.numbers;
	const f32x4 v = valid ? loadf4(p.x + at) : f32x4{0, 0, 0, 0};
	u32 largest = larger(larger(magnitude(v.x), magnitude(v.y)), larger(magnitude(v.z), magnitude(v.w)));
	for (u32 mask = 4; mask > 0; mask /= 2) largest = larger(largest, shuffleXor(largest, mask));
	const f32 most = bitsToF32(largest);
	const bool none = largest >= 0x7f800000, zero = none || most < 7.8886091e-31f; // 2^-100
	const f32 inverse = zero ? 0 : 127 / most, scale = none ? bitsToF32(0x7fc00000) : zero ? 0 : most / 127;
	const f32 round = 12582912; // 1.5*2^23: in the sum the last byte is the number, rounded
	const u32 words[4] = {
	    zero ? 0 : f32ToBits(v.x * inverse + round) & 255, zero ? 0 : f32ToBits(v.y * inverse + round) & 255,
	    zero ? 0 : f32ToBits(v.z * inverse + round) & 255, zero ? 0 : f32ToBits(v.w * inverse + round) & 255};
	const u32 word = words[0] | words[1] << 8 | words[2] << 16 | words[3] << 24;
	i32 sum = dp4a(i32(word), 0x01010101, 0);
	for (u32 mask = 4; mask > 0; mask /= 2) sum += shuffleXor(sum, mask);
	if (!valid) return;
	*(u32*)(p.q + at) = word;
	if (at % 32 == 0) p.scales[at / 32] = {scale, scale * f32(sum)};
}

// narrowBF16 rounds to nearest, ties to even.
KERNEL(narrowBF16, activations::NarrowParams, 256) {
	const i32 column = (blockIdx.y * 256 + threadIdx.x) * 8, row = blockIdx.x;
	if (column >= p.stride) return;
	f32 v[8];
	activations::eight(v, p, row, column);
	store128(p.y + i64(row) * p.stride + column, {toBF16x2(v[0], v[1]), toBF16x2(v[2], v[3]), toBF16x2(v[4], v[5]), toBF16x2(v[6], v[7])});
}

// narrowF16 divides each row by a power of two first, such that its largest magnitude is in [2^14, 2^15): so no number is
// too large for a half, and only those are subnormal that do not matter beside it. A block has a row.
KERNEL(narrowF16, activations::NarrowParams, 256) {
	using namespace activations;
	SHARED(u32, most, [8]);
	const i32 row = blockIdx.x;
	f32 v[8];
	u32 largest = 0;
	for (i32 column = threadIdx.x * 8; column < p.cols; column += 256 * 8) {
		eight(v, p, row, column);
#pragma unroll
		for (i32 i = 0; i < 8; i++) largest = larger(largest, magnitude(v[i]));
	}
	for (u32 mask = 16; mask > 0; mask /= 2) largest = larger(largest, shuffleXor(largest, mask));
	if (threadIdx.x % 32 == 0) most[threadIdx.x / 32] = largest;
	barrier();
#pragma unroll
	for (i32 i = 0; i < 8; i++) largest = larger(largest, most[i]);

	// The exponent of the divisor. Where all are 0, or one is infinite or none, 1 divides.
	i32 exponent = i32(largest >> 23) - 127 - 14;
	if (largest == 0 || largest >= 0x7f800000) exponent = 0;
	if (exponent < -126) exponent = -126;
	const f32 multiplier = bitsToF32(u32(127 - exponent) << 23);
	if (threadIdx.x == 0) p.scales[row] = bitsToF32(u32(127 + exponent) << 23);
	for (i32 column = threadIdx.x * 8; column < p.stride; column += 256 * 8) {
		eight(v, p, row, column);
		store128(p.y + i64(row) * p.stride + column,
		    {toHalf2(v[0] * multiplier, v[1] * multiplier), toHalf2(v[2] * multiplier, v[3] * multiplier),
		        toHalf2(v[4] * multiplier, v[5] * multiplier), toHalf2(v[6] * multiplier, v[7] * multiplier)});
	}
}
