// route.cu: which experts a token goes to, and the sum of what they make of it.
// Source: arXiv:2401.04088, section 2.1.
#include "gpu.cuh"

namespace route {

struct Params {
	const f32* scores; // [rows, experts]
	f32* y;            // [rows, 2*topK]
	i32 rows, experts, topK, normalize;
};

struct SumParams {
	const f32 *x, *route; // [rows, topK*width], [rows, 2*topK]
	f32* y;               // [rows, width]
	i32 width, topK;
};

constexpr i32 none = 0x7fffffff;

} // namespace route

// routeExperts: y [row] = the numbers of the topK experts of most score, ascending, then their shares: their part
// of the softmax of all scores, or, to normalize, of the chosen ones'. Of equals the first is taken; what
// is not a number loses to all, unless it is the first of those left. A warp has a row; lane l has
// experts l, l+32 and so on, at most 64.
KERNEL(routeExperts, route::Params, 128) {
	const i32 row = blockIdx.x * 4 + threadIdx.x / 32, lane = threadIdx.x % 32;
	if (row >= p.rows) return;
	const f32* scores = p.scores + i64(row) * p.experts;
	f32* y = p.y + i64(row) * 2 * p.topK;
	u64 taken = 0;
	f32 largest = 0;
	for (i32 n = 0; n < p.topK; n++) {
		i32 first = route::none, best = route::none;
		f32 most = 0;
		for (i32 i = lane; i < p.experts; i += 32) {
			if (taken >> (i / 32) & 1) continue;
			const f32 score = scores[i];
			if (first == route::none) first = i;
			if (score == score && (best == route::none || score > most)) most = score, best = i;
		}
		for (u32 far = 16; far > 0; far /= 2) {
			const i32 otherFirst = shuffleXor(first, far), otherBest = shuffleXor(best, far);
			const f32 otherMost = shuffleXor(most, far);
			first = otherFirst < first ? otherFirst : first;
			if (otherBest != route::none && (best == route::none || otherMost > most || (otherMost == most && otherBest < best)))
				most = otherMost, best = otherBest;
		}
		if (scores[first] != scores[first]) best = first;
		if (n == 0) largest = scores[best];
		if (best % 32 == lane) taken |= u64(1) << (best / 32);
	}
	f32 sum = 0;
	for (i32 i = lane; i < p.experts; i += 32)
		if (!p.normalize || taken >> (i / 32) & 1) sum += exp(scores[i] - largest);
	sum = warpSum(sum);
	for (i32 turn = 0, before = 0; turn * 32 < p.experts; turn++) {
		const bool mine = taken >> turn & 1;
		const u32 chosen = ballot(mine);
		if (mine) {
			const i32 place = before + __builtin_popcount(chosen & ((1u << lane) - 1));
			y[place] = f32(turn * 32 + lane);
			y[p.topK + place] = exp(scores[turn * 32 + lane] - largest) / sum;
		}
		before += __builtin_popcount(chosen);
	}
}

// sumExperts: y [row, i] = the sum of the topK parts x [row, k, i], each times the share of its expert.
KERNEL(sumExperts, route::SumParams, 256) {
	const i32 i = blockIdx.x * 256 + threadIdx.x;
	if (i >= p.width) return;
	const i64 row = blockIdx.y;
	const f32 *x = p.x + row * p.topK * p.width + i, *shares = p.route + row * 2 * p.topK + p.topK;
	f32 sum = 0;
	for (i32 k = 0; k < p.topK; k++) sum += shares[k] * x[i64(k) * p.width];
	p.y[row * p.width + i] = sum;
}
