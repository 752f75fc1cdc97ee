// test.cpp: runs planted.cu's kernels under each schedule. The right ones must give the right
// numbers under all, and each wrong one must be told of, or give a wrong number, under one at least.
// And it compares gpu.cuh's functions with those of the host.
#define ESTIBA_EMULATED
#include "../gpu.cuh"
#include "planted.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

namespace {

constexpr i32 threads = 128, steps = 3, k = 40; // k: two steps and half of one

f32 x[steps * threads];
u16 a[16 * k], b[8 * k];

struct Case {
	const char* kernel;
	u32 threads;
	i32 count; // of results
	void (*want)(f32*);
};

void reversed(f32* y) {
	for (i32 t = 0; t < threads; t++) y[t] = x[threads - 1 - t];
}
void slid(f32* y) {
	for (i32 t = 0; t < threads; t++) {
		y[t] = 0;
		for (i32 s = 0; s < steps; s++) y[t] += x[s * threads + threads - 1 - t];
	}
}
void handed(f32* y) {
	for (i32 t = 0; t < threads; t++) y[t] = x[t / 32 * 32 + 31];
}
void summed(f32* y) {
	*y = 0;
	for (i32 t = 0; t < threads; t++) *y += x[t];
}
void multiplied(f32* y) {
	for (i32 i = 0; i < 16 * 8; i++) {
		y[i] = 0;
		for (i32 j = 0; j < k; j++) y[i] += fromBF16(a[i / 8 * k + j]) * fromBF16(b[i % 8 * k + j]);
	}
}

const Case cases[] = {
	{"reverse", threads, threads, reversed},
	{"reverseNoBarrier", threads, threads, reversed},
	{"reverseBeyond", threads, threads, reversed},
	{"slide", threads, threads, slid},
	{"slideNoSecondBarrier", threads, threads, slid},
	{"hand", threads, threads, handed},
	{"handNoWarpBarrier", threads, threads, handed},
	{"total", threads, 1, summed},
	{"totalUnset", threads, 1, summed},
	{"totalDivergent", threads, 1, summed},
	{"totalHalfWarp", threads, 1, summed},
	{"totalElsewhere", threads, 1, summed},
	{"product", 32, 16 * 8, multiplied},
	{"productNoWait", 32, 16 * 8, multiplied},
	{"productWeakWait", 32, 16 * 8, multiplied},
	{"productNoBarrierAfterWait", 32, 16 * 8, multiplied},
	{"productFragment", 32, 16 * 8, multiplied},
	{"productMisaligned", 32, 16 * 8, multiplied},
	{"productNoTail", 32, 16 * 8, multiplied},
	{"refill", threads, threads, slid},
	{"refillNoBarrierBeforeRefill", threads, threads, slid},
	{"refillCopyBeforeBarrier", threads, threads, slid},
};

bool right(const char* name) { // the wrong ones have the names of their bugs behind
	for (const char* c = name; *c; c++)
		if (*c >= 'A' && *c <= 'Z') return false;
	return true;
}

// A function, its double, where it is compared, and by how many units in the last place it may differ.
struct Function {
	const char* name;
	f32 (*ours)(f32);
	f64 (*theirs)(f64);
	f32 from, to, ulp;
};

const Function functions[] = {
	{"exp", exp, [](f64 v) { return __builtin_exp(v); }, -110, 95, 2},
	{"log", log, [](f64 v) { return __builtin_log(v); }, 0, 3e38f, 2},
	{"tanh", tanh, [](f64 v) { return __builtin_tanh(v); }, -12, 12, 2},
	{"erf", erf, [](f64 v) { return __builtin_erf(v); }, -5, 5, 2},
	{"erfc", erfc, [](f64 v) { return __builtin_erfc(v); }, -5, 9, 8},
};

// far is how many units in the last place f is off.
f32 far(const Function& f, f32 at) {
	const f32 got = f.ours(at);
	const f64 want = f.theirs(at);
	if (got == f32(want) || (got != got && want != want)) return 0;
	const u32 exponent = f32ToBits(f32(want)) >> 23 & 255;
	const f64 unit = bitsToF32(exponent > 23 ? (exponent - 23) << 23 : exponent > 0 ? 1u << (exponent - 1) : 1); // the smaller ones are subnormal
	return f32(__builtin_fabs(got - want) / unit);
}

// Every number in 997 of the floats, and in between, of a range.
bool compare(const Function& f) {
	f32 worst = 0, where = 0;
	const auto look = [&](f32 at) {
		const f32 by = far(f, at);
		if (!(by <= worst)) worst = by, where = at;
	};
	for (u64 bits = 0; bits < 1ull << 32; bits += 997) {
		const f32 at = bitsToF32(u32(bits));
		if (at != at || (at >= f.from && at <= f.to)) look(at);
	}
	const f32 specials[] = {0.0f, -0.0f, 1.0f, infinity(), -infinity()};
	for (f32 special : specials)
		if (f.from < 0 || special >= 0) look(special);
	for (i32 i = 0; i <= 1000000; i++) look(f.from + (f.to - f.from) * f32(i) / 1000000);
	printf("%s: within %.3g units in the last place, at %g\n", f.name, worst, where);
	return worst <= f.ulp;
}

} // namespace

int main() {
	// small whole numbers, so that sums are exact in any order
	for (i32 i = 0; i < steps * threads; i++) x[i] = f32(i * 37 % 61 - 30);
	for (i32 i = 0; i < 16 * k; i++) a[i] = toBF16(f32(i * 29 % 31 - 15));
	for (i32 i = 0; i < 8 * k; i++) b[i] = toBF16(f32(i * 23 % 29 - 14));
	int bad = 0;
	for (const Case& c : cases) {
		bool caught = false;
		for (int schedule = 0; schedule < 2; schedule++) {
			sim::configure(sim::Schedule(schedule), 1);
			f32 y[threads], want[threads];
			memset(y, 0, sizeof y);
			c.want(want);
			const planted::Params p = {x, a, b, y, k, steps};
			const u32 grid[3] = {1, 1, 1};
			char error[600] = "";
			if (sim::runKernel(sim::findKernel(c.kernel), grid, c.threads, 0, &p, error, sizeof error)) {
				for (i32 i = 0; i < c.count && !*error; i++)
					if (!(y[i] == want[i])) snprintf(error, sizeof error, "number %d is %g, want %g", i, y[i], want[i]);
			}
			if (!*error) continue;
			caught = true;
			printf("%s, %s: %s\n", c.kernel, schedule ? "greedy" : "in order", error);
		}
		if (caught == right(c.kernel)) {
			printf("FAIL: %s %s\n", c.kernel, caught ? "is right, and was not taken for it" : "has a bug that no schedule shows");
			bad++;
		}
	}
	for (const Function& f : functions)
		if (!compare(f)) {
			printf("FAIL: %s is off by more than %g units in the last place\n", f.name, f.ulp);
			bad++;
		}
	if (!bad) printf("ok: %zu kernels\n", sizeof cases / sizeof cases[0]);
	return bad > 0;
}
