// elementwise.cu: what makes each number from those at the same place.
#include "piece.cuh"

namespace elementwise {

struct Params {
	f32* y;        // [n]; may be a or b
	const f32* a;  // [n]
	const f32* b;  // [n], or [width] for bias; gelu, scale and softCap have none
	i64 n;
	i32 width;     // of bias
	i32 tanh;      // gelu, geglu: the approximation by a hyperbolic tangent
	f32 value;     // of scale and softCap
	i32 pad;
};

// map has f(i, a[i]) make y[i]; a thread has four neighbours.
template <typename F> DEVICE void map(const Params& p, F f) {
	const i64 at = (i64(blockIdx.x) * 256 + threadIdx.x) * 4;
	if (at + 4 <= p.n) {
		f32 v[4];
		piece::load(v, p.a + at);
		for (i32 e = 0; e < 4; e++) v[e] = f(at + e, v[e]);
		piece::store(p.y + at, v);
		return;
	}
	for (i64 i = at; i < p.n; i++) p.y[i] = f(i, p.a[i]);
}

// gelu is x times the normal distribution's share below x, or with tanh its approximation, x * sigmoid(2u).
// Source: arXiv:1606.08415.
DEVICE f32 gelu(f32 x, bool tanh) {
	if (tanh) return x / (1 + exp(-1.59576912f * fmaf(0.044715f * x * x, x, x))); // 2 sqrt(2/pi)
	return 0.5f * x * erfc(-0.707106781f * x);
}

} // namespace elementwise

KERNEL(bias, elementwise::Params, 256) {
	elementwise::map(p, [&](i64 i, f32 x) { return x + p.b[u64(i) % u32(p.width)]; });
}
KERNEL(add, elementwise::Params, 256) {
	elementwise::map(p, [&](i64 i, f32 x) { return x + p.b[i]; });
}
KERNEL(swiglu, elementwise::Params, 256) { // arXiv:2002.05202, and geglu
	elementwise::map(p, [&](i64 i, f32 x) { return x / (1 + exp(-x)) * p.b[i]; });
}
KERNEL(geglu, elementwise::Params, 256) {
	elementwise::map(p, [&](i64 i, f32 x) { return elementwise::gelu(x, p.tanh) * p.b[i]; });
}
KERNEL(gelu, elementwise::Params, 256) {
	elementwise::map(p, [&](i64, f32 x) { return elementwise::gelu(x, p.tanh); });
}
KERNEL(scale, elementwise::Params, 256) {
	elementwise::map(p, [&](i64, f32 x) { return p.value * x; });
}
KERNEL(softCap, elementwise::Params, 256) { // arXiv:2408.00118
	elementwise::map(p, [&](i64, f32 x) { return p.value * tanh(x / p.value); });
}
