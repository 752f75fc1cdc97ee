// planted.cu: small kernels that are right, and wrong in one way each: what the emulator must catch.
#include "../gpu.cuh"
#include "planted.h"

namespace planted {

// y [n] = x backwards, by way of shared memory; n is the block's threads.
template <i32 bug> DEVICE void reverse(const Params& p) {
	SHARED(f32, tile, [128]);
	const u32 t = threadIdx.x, n = blockDim.x;
	tile[bug == Beyond ? t + 1 : t] = p.x[t];
	if (bug != NoBarrier) barrier();
	p.y[t] = tile[bug == Beyond ? n - t : n - 1 - t];
}

// y [n] += x [steps, n], each step's backwards.
template <i32 bug> DEVICE void slide(const Params& p) {
	SHARED(f32, tile, [128]);
	const u32 t = threadIdx.x, n = blockDim.x;
	f32 sum = 0;
	for (i32 step = 0; step < p.steps; step++) {
		if (bug != NoSecondBarrier) barrier();
		tile[t] = p.x[step * n + t];
		barrier();
		sum += tile[n - 1 - t];
	}
	p.y[t] = sum;
}

// y [n] = x of the last lane of each warp, handed over in shared memory.
template <i32 bug> DEVICE void hand(const Params& p) {
	SHARED(f32, slot, [4]);
	const u32 t = threadIdx.x, last = bug == NoWarpBarrier ? 0 : 31; // lane 0 runs first in order, and so hides it there
	if (t % 32 == last) slot[t / 32] = p.x[t / 32 * 32 + 31];
	if (bug != NoWarpBarrier) warpBarrier();
	p.y[t] = slot[t / 32];
}

// y [1] = sum of x [n], each warp's part added in shared memory.
template <i32 bug> DEVICE void total(const Params& p) {
	SHARED(f32, parts, [32]);
	const u32 t = threadIdx.x;
	if (bug != Unset && t < 32) parts[t] = 0;
	barrier();
	const f32 part = warpSum(p.x[t]);
	if (t % 32 == 0) parts[t / 32] = part;
	barrier();
	if (bug == Divergent && t < 32) barrier();
	if (bug == HalfWarp && t < 16) p.y[1] = shuffle(part, 0);
	if (bug == Elsewhere) {
		if (t % 2)
			barrier();
		else
			barrier();
	}
	barrier();
	if (t < 32) {
		const f32 all = warpSum(parts[t]);
		if (t == 0) p.y[0] = all;
	}
}

// y [16,8] = a [16,k] b [8,k]ᵀ of bf16, one warp, steps of 16 through two buffers.
template <i32 bug> DEVICE void product(const Params& p) {
	constexpr u32 stride = bug == Misaligned ? 20 : 24;
	SHARED(u16, a, [2][16 * stride]);
	SHARED(u16, b, [2][8 * stride]);
	const u32 lane = threadIdx.x;
	const auto fetch = [&](i32 step) {
		const i32 column = step * 16 + lane % 2 * 8;
		const bool valid = bug == NoTail || column < p.k;
		const i32 from = column < p.k ? column : 0;
		u16 *toA = a[step % 2] + lane / 2 * stride + lane % 2 * 8, *toB = b[step % 2] + lane / 2 * stride + lane % 2 * 8;
		if constexpr (stride % 8 == 0) {
			copyAsync16(toA, p.a + lane / 2 * p.k + from, valid);
			if (lane < 16) copyAsync16(toB, p.b + lane / 2 * p.k + from, valid);
		} else {
			for (i32 i = 0; i < 8; i++) toA[i] = valid ? p.a[lane / 2 * p.k + from + i] : 0;
			if (lane < 16)
				for (i32 i = 0; i < 8; i++) toB[i] = valid ? p.b[lane / 2 * p.k + from + i] : 0;
		}
		commitAsync();
	};
	f32 d[4] = {};
	const i32 steps = (p.k + 15) / 16;
	fetch(0);
	for (i32 step = 0; step < steps; step++) {
		if (step + 1 < steps)
			fetch(step + 1);
		else
			commitAsync();
		if (bug == WeakWait)
			waitAsync<2>();
		else if (bug != NoWait)
			waitAsync<1>();
		if (bug != NoBarrierAfterWait) warpBarrier();
		u32 x[4], y[2];
		if (bug == NoBarrierAfterWait) {
			// reads by hand, since ldmatrix would make the lanes meet
			const u32 g = lane / 4, t = lane % 4 * 2;
			for (u32 r = 0; r < 4; r++) {
				const u16* from = a[step % 2] + (g + r % 2 * 8) * stride + t + r / 2 * 8;
				x[r] = from[0] | u32(from[1]) << 16;
			}
		} else {
			ldmatrix4(x, a[step % 2] + (lane % 16) * stride + lane / 16 * 8);
		}
		ldmatrix2(y, b[step % 2] + (lane % 8) * stride + lane / 8 % 2 * 8);
		if (bug == Fragment) {
			const u32 swap = x[1];
			x[1] = x[2];
			x[2] = swap;
		}
		mmaBF16(d, x, y);
		warpBarrier();
	}
	const u32 row = lane / 4, column = lane % 4 * 2;
	p.y[row * 8 + column] = d[0];
	p.y[row * 8 + column + 1] = d[1];
	p.y[(row + 8) * 8 + column] = d[2];
	p.y[(row + 8) * 8 + column + 1] = d[3];
}

// slide by asynchronous copies.
template <i32 bug> DEVICE void refill(const Params& p) {
	SHARED(f32, tile, [128]);
	const u32 t = threadIdx.x, n = blockDim.x;
	f32 sum = 0;
	for (i32 step = 0; step < p.steps; step++) {
		if (bug == None) barrier();
		if (t % 4 == 0) copyAsync16(tile + t, p.x + step * n + t, true);
		commitAsync();
		if (bug == CopyBeforeBarrier) barrier();
		waitAsync<0>();
		barrier();
		sum += tile[n - 1 - t];
	}
	p.y[t] = sum;
}

} // namespace planted

KERNEL(reverse, planted::Params, 128) { planted::reverse<planted::None>(p); }
KERNEL(reverseNoBarrier, planted::Params, 128) { planted::reverse<planted::NoBarrier>(p); }
KERNEL(reverseBeyond, planted::Params, 128) { planted::reverse<planted::Beyond>(p); }
KERNEL(slide, planted::Params, 128) { planted::slide<planted::None>(p); }
KERNEL(slideNoSecondBarrier, planted::Params, 128) { planted::slide<planted::NoSecondBarrier>(p); }
KERNEL(hand, planted::Params, 128) { planted::hand<planted::None>(p); }
KERNEL(handNoWarpBarrier, planted::Params, 128) { planted::hand<planted::NoWarpBarrier>(p); }
KERNEL(total, planted::Params, 128) { planted::total<planted::None>(p); }
KERNEL(totalUnset, planted::Params, 128) { planted::total<planted::Unset>(p); }
KERNEL(totalDivergent, planted::Params, 128) { planted::total<planted::Divergent>(p); }
KERNEL(totalHalfWarp, planted::Params, 128) { planted::total<planted::HalfWarp>(p); }
KERNEL(totalElsewhere, planted::Params, 128) { planted::total<planted::Elsewhere>(p); }
KERNEL(product, planted::Params, 32) { planted::product<planted::None>(p); }
KERNEL(productNoWait, planted::Params, 32) { planted::product<planted::NoWait>(p); }
KERNEL(productWeakWait, planted::Params, 32) { planted::product<planted::WeakWait>(p); }
KERNEL(productNoBarrierAfterWait, planted::Params, 32) { planted::product<planted::NoBarrierAfterWait>(p); }
KERNEL(productFragment, planted::Params, 32) { planted::product<planted::Fragment>(p); }
KERNEL(productMisaligned, planted::Params, 32) { planted::product<planted::Misaligned>(p); }
KERNEL(productNoTail, planted::Params, 32) { planted::product<planted::NoTail>(p); }
KERNEL(refill, planted::Params, 128) { planted::refill<planted::None>(p); }
KERNEL(refillNoBarrierBeforeRefill, planted::Params, 128) { planted::refill<planted::NoBarrierBeforeRefill>(p); }
KERNEL(refillCopyBeforeBarrier, planted::Params, 128) { planted::refill<planted::CopyBeforeBarrier>(p); }
