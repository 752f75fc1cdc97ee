// product.cuh: what the products of few and of many rows have in common.
#pragma once
#include "quant.cuh"

namespace product {

// Gates, as product.go has them.
enum : i32 { NoGate, SwiGLU, GeGLU, GeGLUTanh };

// gated is silu or gelu of a gate, times up.
DEVICE f32 gated(i32 gate, f32 g, f32 up) {
	if (gate == SwiGLU) return g / (1 + exp(-g)) * up;
	if (gate == GeGLU) return 0.5f * g * erfc(-0.707106781f * g) * up;
	return g / (1 + exp(-1.59576912f * fmaf(0.044715f * g * g, g, g))) * up; // 2 sqrt(2/pi)
}

DEVICE i32 smaller(i32 a, i32 b) { return a < b ? a : b; }

// expertOf is an expert's number in a route; what is none is an expert all the same, so that no memory is read that is not there.
DEVICE i32 expertOf(const f32* route, i32 topK, i32 experts, i32 pair) {
	const f32 number = route[i64(pair / topK) * 2 * topK + pair % topK];
	return number > 0 ? smaller(i32(number), experts - 1) : 0;
}

} // namespace product
