// activations.cu: rows of activations in the forms that products take.
#include "bytes.cuh"

namespace activations {

struct QuantizeParams {
	const f32* x; // [rows, cols], cols a multiple of 32
	bytes::Form to;
	i32 cols, pad;
};

struct NarrowParams {
	const f32* x;  // [rows, cols]
	u16* y;        // [rows, stride], filled up with zeros
	f32* scales;   // narrowF16: [rows] powers of two by which products are to be multiplied
	i32 rows, cols, stride, pad;
};

using bytes::magnitude;
using bytes::larger;

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

KERNEL(quantize, activations::QuantizeParams, 256) {
	const i32 column = (blockIdx.x * 256 + threadIdx.x) * 4, row = blockIdx.y;
	f32x4 v = {0, 0, 0, 0};
	if (column < p.cols) v = loadf4(p.x + i64(row) * p.cols + column);
	bytes::put(p.to, row, p.cols, column, {v.x, v.y, v.z, v.w}, column < p.cols);
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
