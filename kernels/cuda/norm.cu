// norm.cu: y = x / sqrt(mean(x²)+eps) * (shift+w), and y = (x-mean(x)) / sqrt(variance(x)+eps) * w + bias,
// of the rows of x, or of x + residual, which is kept too. A row goes through memory once, and once more
// from the cache. Sources: arXiv:1910.07467, arXiv:1607.06450.
#include "bytes.cuh"
#include "piece.cuh"

namespace norm {

struct Params {
	f32* y;              // [rows, width]
	const f32* x;        // [rows, width]
	const f32* residual; // [rows, width], or 0
	f32* sum;            // [rows, width], with residual: x + residual; may be either of the two
	const f32* w;        // [width]
	const f32* bias;     // [width], of layerNorm
	bytes::Form bytes;   // of y too, of whole rows: then the width is a multiple of 128
	i32 rows, width;
	f32 eps, shift;
};

// Whole has a block for each row, Part a warp; each says which numbers of the row a thread takes.
struct Whole {
	DEVICE i32 row() { return blockIdx.x; }
	DEVICE i32 first() { return threadIdx.x; }
	DEVICE i32 count() { return blockDim.x; }
	DEVICE f32 sum(f32 v) {
		SHARED(f32, scratch, [32]);
		return blockSum(v, scratch);
	}
};
struct Part {
	DEVICE i32 row() { return blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32; }
	DEVICE i32 first() { return threadIdx.x % 32; }
	DEVICE i32 count() { return 32; }
	DEVICE f32 sum(f32 v) { return warpSum(v); }
};

// each calls f(i) for where each of this thread's pieces of a row is.
template <typename Group, i32 n, typename F> DEVICE void each(const Params& p, F f) {
	for (i32 i = Group::first() * n; i < p.width; i += Group::count() * n) f(i);
}

// take gives the row to normalize, after this thread's pieces of x + residual are in it, and hands each piece to f.
template <typename Group, i32 n, typename F> DEVICE const f32* take(const Params& p, i64 at, F f) {
	each<Group, n>(p, [&](i32 i) {
		f32 v[n], r[n];
		piece::load(v, p.x + at + i);
		if (p.residual) {
			piece::load(r, p.residual + at + i);
			for (i32 e = 0; e < n; e++) v[e] += r[e];
			piece::store(p.sum + at + i, v);
		}
		f(v);
	});
	return (p.residual ? p.sum : p.x) + at;
}

// give a piece of y.
template <i32 n> DEVICE void give(const Params& p, i64 at, i32 i, const f32 (&v)[n]) {
	piece::store(p.y + at + i, v);
	if constexpr (n == 4)
		if (p.bytes.q) bytes::put(p.bytes, blockIdx.x, p.width, i, v, true);
}

template <typename Group, i32 n> DEVICE void rms(const Params& p, i64 at) {
	f32 squares = 0;
	const f32* x = take<Group, n>(p, at, [&](const f32(&v)[n]) {
		for (i32 e = 0; e < n; e++) squares = fmaf(v[e], v[e], squares);
	});
	const f32 scale = 1 / sqrt(Group::sum(squares) / f32(p.width) + p.eps);
	each<Group, n>(p, [&](i32 i) {
		f32 v[n], w[n];
		piece::load(v, x + i);
		piece::load(w, p.w + i);
		for (i32 e = 0; e < n; e++) v[e] = v[e] * scale * (p.shift + w[e]);
		give<n>(p, at, i, v);
	});
}

// brief is rms of a row of which each thread of the block has four numbers, or none: a step of one token waits for nothing but
// this, so that weights come before the row is there, and the row comes once.
DEVICE void brief(const Params& p, i64 at) {
	const i32 i = threadIdx.x * 4;
	const bool inside = i < p.width;
	f32 v[4] = {0, 0, 0, 0}, w[4] = {0, 0, 0, 0}, r[4];
	if (inside) piece::load(w, p.w + i);
	awaitEarlier();
	if (inside) {
		piece::load(v, p.x + at + i);
		if (p.residual) {
			piece::load(r, p.residual + at + i);
			for (i32 e = 0; e < 4; e++) v[e] += r[e];
			piece::store(p.sum + at + i, v);
		}
	}
	f32 squares = 0;
	for (i32 e = 0; e < 4; e++) squares = fmaf(v[e], v[e], squares);
	const f32 scale = 1 / sqrt(Whole::sum(squares) / f32(p.width) + p.eps);
	for (i32 e = 0; e < 4; e++) v[e] = v[e] * scale * (p.shift + w[e]);
	if (inside) give<4>(p, at, i, v);
}

template <typename Group, i32 n> DEVICE void layer(const Params& p, i64 at) {
	f32 total = 0, squares = 0;
	const f32* x = take<Group, n>(p, at, [&](const f32(&v)[n]) {
		for (i32 e = 0; e < n; e++) total += v[e];
	});
	const f32 mean = Group::sum(total) / f32(p.width);
	each<Group, n>(p, [&](i32 i) {
		f32 v[n];
		piece::load(v, x + i);
		for (i32 e = 0; e < n; e++) squares = fmaf(v[e] - mean, v[e] - mean, squares);
	});
	const f32 scale = 1 / sqrt(Group::sum(squares) / f32(p.width) + p.eps);
	each<Group, n>(p, [&](i32 i) {
		f32 v[n], w[n], b[n];
		piece::load(v, x + i);
		piece::load(w, p.w + i);
		piece::load(b, p.bias + i);
		for (i32 e = 0; e < n; e++) v[e] = fmaf((v[e] - mean) * scale, w[e], b[e]);
		give<n>(p, at, i, v);
	});
}

} // namespace norm

// rmsNorm and layerNorm have a block for each row; blocks of rmsNormParts have a warp for each.
KERNEL_EARLY(rmsNorm, norm::Params, 1024) {
	letNextStart();
	const i64 at = i64(norm::Whole::row()) * p.width;
	if (p.width % 4 == 0 && p.width <= i32(blockDim.x) * 4) return norm::brief(p, at);
	awaitEarlier();
	p.width % 4 == 0 ? norm::rms<norm::Whole, 4>(p, at) : norm::rms<norm::Whole, 1>(p, at);
}
KERNEL(rmsNormParts, norm::Params, 256) {
	if (norm::Part::row() >= p.rows) return;
	const i64 at = i64(norm::Part::row()) * p.width;
	p.width % 4 == 0 ? norm::rms<norm::Part, 4>(p, at) : norm::rms<norm::Part, 1>(p, at);
}
KERNEL(layerNorm, norm::Params, 1024) {
	const i64 at = i64(norm::Whole::row()) * p.width;
	p.width % 4 == 0 ? norm::layer<norm::Whole, 4>(p, at) : norm::layer<norm::Whole, 1>(p, at);
}
