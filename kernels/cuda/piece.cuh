// piece.cuh: several neighbouring numbers of a row at once.
#pragma once
#include "gpu.cuh"

namespace piece {

// load and store n numbers, 4 or 1; four are at a multiple of 16 bytes.
template <i32 n> DEVICE void load(f32 (&v)[n], const f32* p) {
	static_assert(n == 4 || n == 1, "pieces have four numbers or one");
	if constexpr (n == 4) {
		const f32x4 x = loadf4(p);
		v[0] = x.x, v[1] = x.y, v[2] = x.z, v[3] = x.w;
	} else {
		v[0] = *p;
	}
}
template <i32 n> DEVICE void store(f32* p, const f32 (&v)[n]) {
	if constexpr (n == 4)
		store128(p, {f32ToBits(v[0]), f32ToBits(v[1]), f32ToBits(v[2]), f32ToBits(v[3])});
	else
		*p = v[0];
}

} // namespace piece
