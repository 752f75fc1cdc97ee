// elementwise.cu: what makes each number from those at the same place.
#include "piece.cuh"

namespace elementwise {

struct Params {
	f32* y;        // [n]; may be a or b
	const f32* a;  // [n]
	const f32* b;  // [n], or [width] for bias; gelu, scale, copy and softCap have none
	i64 n;
	i32 width;     // of bias
	i32 tanh;      // gelu, geglu: the approximation by a hyperbolic tangent
	f32 value;     // of scale and softCap
	i32 pad;
};

// map has f(a[i]) make y[i], map2 f(a[i], b[i]); a thread has four neighbours.
template <typename F> DEVICE void map(const Params& p, F f) {
	const i64 at = (i64(blockIdx.x) * 256 + threadIdx.x) * 4;
	if (at + 4 <= p.n) {
		f32 v[4];
		piece::load(v, p.a + at);
		for (i32 e = 0; e < 4; e++) v[e] = f(v[e]);
		piece::store(p.y + at, v);
		return;
	}
	for (i64 i = at; i < p.n; i++) p.y[i] = f(p.a[i]);
}
template <typename F> DEVICE void map2(const Params& p, F f) {
	const i64 at = (i64(blockIdx.x) * 256 + threadIdx.x) * 4;
	if (at + 4 <= p.n) {
		f32 v[4], w[4];
		piece::load(v, p.a + at);
		piece::load(w, p.b + at);
		for (i32 e = 0; e < 4; e++) v[e] = f(v[e], w[e]);
		piece::store(p.y + at, v);
		return;
	}
	for (i64 i = at; i < p.n; i++) p.y[i] = f(p.a[i], p.b[i]);
}

// gelu is x times the normal distribution's share below x, or with tanh its approximation, x * sigmoid(2u).
// Source: arXiv:1606.08415.
DEVICE f32 gelu(f32 x, bool tanh) {
	if (tanh) return x / (1 + exp(-1.59576912f * fmaf(0.044715f * x * x, x, x))); // 2 sqrt(2/pi)
	return 0.5f * x * erfc(-0.707106781f * x);
}

} // namespace elementwise

// bias has a thread for a column of every gridDim.y-th row.
KERNEL(bias, elementwise::Params, 256) {
	const i32 column = blockIdx.x * 256 + threadIdx.x;
	if (column >= p.width) return;
	const f32 b = p.b[column];
	for (i64 i = i64(blockIdx.y) * p.width + column; i < p.n; i += i64(gridDim.y) * p.width) p.y[i] = p.a[i] + b;
}
KERNEL(add, elementwise::Params, 256) {
	elementwise::map2(p, [](f32 x, f32 y) { return x + y; });
}
KERNEL(swiglu, elementwise::Params, 256) { // arXiv:2002.05202, and geglu
	elementwise::map2(p, [](f32 gate, f32 up) { return gate / (1 + exp(-gate)) * up; });
}
KERNEL(geglu, elementwise::Params, 256) {
	elementwise::map2(p, [&](f32 gate, f32 up) { return elementwise::gelu(gate, p.tanh) * up; });
}
KERNEL(gelu, elementwise::Params, 256) {
	elementwise::map(p, [&](f32 x) { return elementwise::gelu(x, p.tanh); });
}
KERNEL(scale, elementwise::Params, 256) {
	elementwise::map(p, [&](f32 x) { return p.value * x; });
}
KERNEL(copy, elementwise::Params, 256) { // of what lies in host memory, too
	elementwise::map(p, [&](f32 x) { return x; });
}
KERNEL(softCap, elementwise::Params, 256) { // arXiv:2408.00118
	elementwise::map(p, [&](f32 x) { return p.value * tanh(x / p.value); });
}
