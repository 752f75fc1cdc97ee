// product.cuh: what the products of few and of many rows have in common.
#pragma once
#include "quant.cuh"

namespace product {

// Gates, as product.go has them.
enum : i32 { NoGate, SwiGLU, GeGLU, GeGLUTanh };

// gated is silu or gelu of a gate, times up. The sum in silu need not be more exact than its reciprocal: blocks of many rows do little else at their end.
DEVICE f32 gated(i32 gate, f32 g, f32 up) {
	if (gate == SwiGLU) return g * reciprocal(1 + exp2(-1.44269504f * g)) * up;
	if (gate == GeGLU) return 0.5f * g * erfc(-0.707106781f * g) * up;
	return g / (1 + exp(-1.59576912f * fmaf(0.044715f * g * g, g, g))) * up; // 2 sqrt(2/pi)
}

DEVICE i32 smaller(i32 a, i32 b) { return a < b ? a : b; }

// put writes up to four neighbouring numbers of a row of a part's y, which begins at a place; column is the first.
template <typename Part> DEVICE void put(const Part& part, i64 row, i32 column, f32 (&v)[4]) {
	const i64 at = row + column;
	const i32 count = smaller(4, part.rows - column);
#pragma unroll
	for (i32 i = 0; i < 4; i++) {
		if (i < count && part.bias) v[i] += part.bias[column + i];
		if (i < count && part.residual) v[i] += part.residual[at + i];
	}
	if (count == 4 && u64(part.y + at) % 16 == 0) {
		store128(part.y + at, {f32ToBits(v[0]), f32ToBits(v[1]), f32ToBits(v[2]), f32ToBits(v[3])});
		return;
	}
#pragma unroll
	for (i32 i = 0; i < 4; i++)
		if (i < count) part.y[at + i] = v[i];
}

// expertOf is an expert's number in a route; what is none is an expert all the same, so that no memory is read that is not there.
DEVICE i32 expertOf(const f32* route, i32 topK, i32 experts, i32 pair) {
	const f32 number = route[i64(pair / topK) * 2 * topK + pair % topK];
	return number > 0 ? smaller(i32(number), experts - 1) : 0;
}

} // namespace product
