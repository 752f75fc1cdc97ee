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

// expertOf is an expert's number in a route; what is none is an expert all the same, so that no memory is read that is not there.
DEVICE i32 expertOf(const f32* route, i32 topK, i32 experts, i32 pair) {
	const f32 number = route[i64(pair / topK) * 2 * topK + pair % topK];
	return number > 0 ? smaller(i32(number), experts - 1) : 0;
}

// Block is which part of the work a block has that makes a tile of y.
struct Block {
	i32 first, count; // rows of the tile, in list or in x
	i64 weights;      // bytes to its expert's
	i32 from, to;     // columns
};

// blockOf is false where there is no work.
template <typename Params> DEVICE bool blockOf(const Params& p, i32 tileRows, i32 cols, Block& b) {
	b.first = i32(blockIdx.x) * tileRows;
	b.count = smaller(tileRows, p.rows - b.first);
	b.weights = 0;
	if (p.tiles) {
		const i32* tile = p.tiles + 4 * blockIdx.x;
		b.weights = tile[0] * p.expertBytes, b.first = tile[1], b.count = tile[2];
	}
	b.from = i32(blockIdx.z) * p.span;
	b.to = smaller(b.from + p.span, cols);
	return b.count > 0;
}

// Place of a row of the tile in x and y; source is negative where there is none.
struct Place {
	i32 source, target;
};

template <typename Params> DEVICE Place placeOf(const Params& p, const Block& b, i32 row) {
	if (row >= b.count) return {-1, -1};
	if (!p.tiles) return {b.first + row, b.first + row};
	const i32 pair = p.list[b.first + row];
	return {pair / p.divide, pair};
}

// put writes count neighbouring numbers, up to four, of a row to what has y, bias and residual, of so many columns. The row begins at a
// place of y; column is the first.
template <typename To> DEVICE void put(const To& to, i64 row, i32 columns, i32 column, f32 (&v)[4], i32 count) {
	const i64 at = row + column;
	count = smaller(count, columns - column);
#pragma unroll
	for (i32 i = 0; i < 4; i++) {
		if (i < count && to.bias) v[i] += to.bias[column + i];
		if (i < count && to.residual) v[i] += to.residual[at + i];
	}
	if (count == 4 && u64(to.y + at) % 16 == 0) {
		store128(to.y + at, {f32ToBits(v[0]), f32ToBits(v[1]), f32ToBits(v[2]), f32ToBits(v[3])});
		return;
	}
#pragma unroll
	for (i32 i = 0; i < 4; i++)
		if (i < count) to.y[at + i] = v[i];
}

} // namespace product
