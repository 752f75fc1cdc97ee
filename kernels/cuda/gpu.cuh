// gpu.cuh: the words that kernels are written with. A kernel file includes this and files of ours
// alone, so it needs nothing of NVIDIA's to be compiled: by clang to PTX (hack/cuda/kernels.sh),
// or for the host, where emulator/sim.h plays the device (hack/cuda/emulator.sh).
//
// The rules of a kernel:
//   KERNEL(name, Params, threads) { … p.field … }      one parameter, a struct of pointers, i32, u32, f32, i64, padded by hand
//   KERNEL_TOGETHER(name, Params, threads, blocks)     of which a processor is to hold so many blocks: registers are bounded by that
//   KERNEL_EARLY(name, Params, threads[, blocks])      one that calls letNextStart, and awaitEarlier in all threads, before it reads what others wrote, or writes
//   SHARED(f32, tile, [2][64]);                        static shared memory: type, name, dimensions; at most 48 KiB a kernel
//   u8* room = dynamicShared();                        as many bytes as the launch asks for, aligned to 128
//   DEVICE f32 f(f32 x) { … }                          a function that kernels call; it is inlined
//   CONSTANT(u8, table, [4]) = {1, 2, 3, 4};           numbers that never change, read by index
// All files are one translation unit for the device: what a file declares besides its kernels stands
// in a namespace named after it. Blocks are one-dimensional, whole warps. a*b+c is two roundings:
// write fmaf where one is meant.
#pragma once

typedef unsigned char u8;
typedef signed char i8;
typedef unsigned short u16;
typedef short i16;
typedef unsigned int u32;
typedef int i32;
typedef unsigned long long u64;
typedef long long i64;
typedef float f32;
typedef double f64;

struct alignas(8) u32x2 {
	u32 x, y;
};
struct alignas(16) u32x4 {
	u32 x, y, z, w;
};
struct alignas(8) f32x2 {
	f32 x, y;
};
struct alignas(16) f32x4 {
	f32 x, y, z, w;
};
struct Index {
	u32 x, y, z;
};

#define threadIdx threadIndex() // .x; y and z are 0
#define blockIdx blockIndex()
#define blockDim blockSize() // .x; y and z are 1
#define gridDim gridSize()

#ifdef ESTIBA_EMULATED
#include "emulator/sim.h"
#define KERNEL_TOGETHER(name, Params, threads, blocks) KERNEL(name, Params, threads)
#define KERNEL_EARLY(name, Params, threads, ...) KERNEL(name, Params, threads)
DEVICE void letNextStart() {}
DEVICE void awaitEarlier() {}
#define loadOnce load128
#else

#define DEVICE static inline __attribute__((device, always_inline))
#define KERNEL(name, Params, threads) KERNEL_BOUND(name, Params, threads)
#define KERNEL_TOGETHER(name, Params, threads, blocks) KERNEL_BOUND(name, Params, threads, blocks)
#define KERNEL_BOUND(name, Params, ...) \
	DEVICE void name##Body(const Params& p); \
	extern "C" __attribute__((global, launch_bounds(__VA_ARGS__))) void name(const Params p) { \
		letNextStart(); \
		awaitEarlier(); \
		name##Body(p); \
	} \
	DEVICE void name##Body([[maybe_unused]] const Params& p)
#define KERNEL_EARLY(name, Params, ...) extern "C" __attribute__((global, launch_bounds(__VA_ARGS__))) void name(const Params p)
#define SHARED(type, name, dimensions) static __attribute__((shared, aligned(16))) type name dimensions
#define CONSTANT(type, name, dimensions) static __attribute__((constant)) const type name dimensions

DEVICE Index threadIndex() { return {u32(__nvvm_read_ptx_sreg_tid_x()), 0, 0}; }
DEVICE Index blockIndex() { return {u32(__nvvm_read_ptx_sreg_ctaid_x()), u32(__nvvm_read_ptx_sreg_ctaid_y()), u32(__nvvm_read_ptx_sreg_ctaid_z())}; }
DEVICE Index blockSize() { return {u32(__nvvm_read_ptx_sreg_ntid_x()), 1, 1}; }
DEVICE Index gridSize() { return {u32(__nvvm_read_ptx_sreg_nctaid_x()), u32(__nvvm_read_ptx_sreg_nctaid_y()), u32(__nvvm_read_ptx_sreg_nctaid_z())}; }

extern __attribute__((shared, aligned(128))) u8 dynamicSharedBytes[];
DEVICE u8* dynamicShared() { return dynamicSharedBytes; }

// On 9.0 the blocks of a kernel may start while the kernel queued before it still runs: as soon as each block of that
// one has said letNextStart, or ended. awaitEarlier waits until it has ended and all that it wrote is seen; so had it
// waited for those before it: all kernels wait, or one that does not would hide that those before it still run.
// (kernels.sh makes these instructions of the comments.)
DEVICE void letNextStart() { asm volatile("/*9.0: griddepcontrol.launch_dependents;*/" ::: "memory"); }
DEVICE void awaitEarlier() { asm volatile("/*9.0: griddepcontrol.wait;*/" ::: "memory"); }

// barrier waits for all threads of the block, warpBarrier for all of the warp; what they wrote before is seen after.
DEVICE void barrier() { __syncthreads(); }
DEVICE void warpBarrier() { __nvvm_bar_warp_sync(0xffffffff); }
// fence orders what this thread wrote before it, for the whole device, before what it writes after.
DEVICE void fence() { __nvvm_membar_gl(); }

// Shuffles: all 32 lanes of a warp take part. T has 4 bytes.
template <typename T> DEVICE T shuffleXor(T v, u32 mask) {
	return __builtin_bit_cast(T, __nvvm_shfl_sync_bfly_i32(0xffffffff, __builtin_bit_cast(i32, v), i32(mask), 0x1f));
}
template <typename T> DEVICE T shuffleDown(T v, u32 n) {
	return __builtin_bit_cast(T, __nvvm_shfl_sync_down_i32(0xffffffff, __builtin_bit_cast(i32, v), i32(n), 0x1f));
}
template <typename T> DEVICE T shuffle(T v, u32 lane) {
	return __builtin_bit_cast(T, __nvvm_shfl_sync_idx_i32(0xffffffff, __builtin_bit_cast(i32, v), i32(lane), 0x1f));
}
// ballot has a bit for each lane of the warp; all 32 take part.
DEVICE u32 ballot(bool b) { return __nvvm_vote_ballot_sync(0xffffffff, b); }

DEVICE f32 fromHalf(u16 h) {
	f32 f;
	asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(h));
	return f;
}
DEVICE u16 toHalf(f32 f) {
	u16 h;
	asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(f));
	return h;
}
DEVICE u16 toBF16(f32 f) {
	u16 h;
	asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(h) : "f"(f));
	return h;
}
DEVICE u32 toHalf2(f32 low, f32 high) {
	u32 h;
	asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(h) : "f"(high), "f"(low));
	return h;
}
DEVICE u32 toBF16x2(f32 low, f32 high) {
	u32 h;
	asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(h) : "f"(high), "f"(low));
	return h;
}

// fmaBF16x2 is a*b+c, rounded once, of two bf16 each.
DEVICE u32 fmaBF16x2(u32 a, u32 b, u32 c) {
	u32 d;
	asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
	return d;
}
// bytesOf has byte i of the result, i from 0 to 3, from where the i-th lowest nibble of which says: 0 to 3 are of a, 4 to 7 of b.
DEVICE u32 bytesOf(u32 a, u32 b, u32 which) { return __nvvm_prmt(a, b, which); }

// dp4a is c and the four products of the signed bytes of a and b.
DEVICE i32 dp4a(i32 a, i32 b, i32 c) {
	i32 d;
	asm("dp4a.s32.s32 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
	return d;
}

DEVICE f32 fmaf(f32 a, f32 b, f32 c) { return __builtin_fmaf(a, b, c); }
DEVICE f32 fminf(f32 a, f32 b) { return __builtin_fminf(a, b); }
DEVICE f32 fmaxf(f32 a, f32 b) { return __builtin_fmaxf(a, b); }
DEVICE f32 fabsf(f32 a) { return __builtin_fabsf(a); }
DEVICE f32 sqrt(f32 a) { return __builtin_sqrtf(a); }
// rsqrt is 1/sqrt(x), within 2 ulp.
DEVICE f32 rsqrt(f32 x) {
	f32 y;
	asm("rsqrt.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
	return y;
}
// reciprocal is 1/x, within 1 ulp.
DEVICE f32 reciprocal(f32 x) {
	f32 y;
	asm("rcp.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
	return y;
}
// exp2 is 2^x, within 2 ulp.
DEVICE f32 exp2(f32 x) {
	f32 y;
	asm("ex2.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
	return y;
}
DEVICE f32 bitsToF32(u32 b) { return __builtin_bit_cast(f32, b); }
DEVICE u32 f32ToBits(f32 f) { return __builtin_bit_cast(u32, f); }

typedef u32 Vector4u __attribute__((vector_size(16)));
typedef f32 Vector4f __attribute__((vector_size(16)));
typedef u32 Vector2u __attribute__((vector_size(8)));
typedef f32 Vector2f __attribute__((vector_size(8)));
// load128 and load64 read global memory that nobody writes while the kernel runs; addresses are multiples of the size.
DEVICE u32x4 load128(const void* p) {
	const Vector4u v = __nvvm_ldg_ui4((const Vector4u*)p);
	return {v[0], v[1], v[2], v[3]};
}
// loadOnce is load128 of what is read once: on 9.0 it takes no place in the level 1 cache.
DEVICE u32x4 loadOnce(const void* p) {
	u32x4 v;
	asm("ld.global.nc/*9.0: .L1::no_allocate*/.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(__builtin_assume_aligned(p, 16)));
	return v;
}
DEVICE u32x2 load64(const void* p) {
	const Vector2u v = __nvvm_ldg_ui2((const Vector2u*)p);
	return {v[0], v[1]};
}
// loadf4, loadf2, loadu4 and store128 are for memory of either kind, at multiples of the size.
DEVICE f32x4 loadf4(const void* p) {
	const Vector4f v = *(const Vector4f*)p;
	return {v[0], v[1], v[2], v[3]};
}
DEVICE u32x4 loadu4(const void* p) {
	const Vector4u v = *(const Vector4u*)p;
	return {v[0], v[1], v[2], v[3]};
}
DEVICE f32x2 loadf2(const void* p) {
	const Vector2f v = *(const Vector2f*)p;
	return {v[0], v[1]};
}
DEVICE void store128(void* p, u32x4 v) { *(Vector4u*)p = Vector4u{v.x, v.y, v.z, v.w}; }

DEVICE u32 sharedAddress(const void* p) { return u32(u64((const __attribute__((address_space(3))) void*)p)); }

// copyAsync16 copies 16 bytes from global to shared memory, or zeros if not valid, at some time before
// waitAsync says that it is done. Both addresses are multiples of 16, and that of global memory is
// within a buffer even if not valid.
DEVICE void copyAsync16(void* shared, const void* global, bool valid) {
	asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(sharedAddress(shared)), "l"(__builtin_assume_aligned(global, 16)), "r"(valid ? 16 : 0) : "memory");
}
// commitAsync closes this thread's group of copies; waitAsync<N> returns when all groups of this
// thread but the last N are done. Other threads' copies are seen after a barrier that follows.
DEVICE void commitAsync() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N> DEVICE void waitAsync() { asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory"); }

// ldmatrix4 reads four 8x8 matrices of 16-bit numbers. Lane l names row l%8 of matrix l/8: 8 numbers
// at a multiple of 16 bytes. r[i] of lane l has numbers 2*(l%4) and the next of row l/4 of matrix i;
// with T, of the transposed. ldmatrix2 reads two; lanes 16 to 31 name nothing.
DEVICE void ldmatrix4(u32 (&r)[4], const void* shared) {
	asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(sharedAddress(shared)) : "memory");
}
DEVICE void ldmatrix4T(u32 (&r)[4], const void* shared) {
	asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(sharedAddress(shared)) : "memory");
}
DEVICE void ldmatrix2(u32 (&r)[2], const void* shared) {
	asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];" : "=r"(r[0]), "=r"(r[1]) : "r"(sharedAddress(shared)) : "memory");
}

// mmaBF16, mmaF16: d [16,8] += a [16,16] b [16,8]. With g = lane/4 and t = 2*(lane%4), a lane has
//   a[0] row g, columns t and t+1   a[1] row g+8   a[2] row g, columns t+8 and t+9   a[3] row g+8 of these
//   b[0] rows t and t+1 of column g   b[1] rows t+8 and t+9
//   d[0], d[1] row g, columns t and t+1   d[2], d[3] row g+8
DEVICE void mmaBF16(f32 (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
	asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
	    : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
	    : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
DEVICE void mmaF16(f32 (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
	asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
	    : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
	    : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Atomics give what was there before.
DEVICE i32 atomicAdd(i32* p, i32 v) { return __nvvm_atom_add_gen_i(p, v); }
DEVICE u32 atomicAdd(u32* p, u32 v) { return u32(__nvvm_atom_add_gen_i((i32*)p, i32(v))); }
DEVICE f32 atomicAdd(f32* p, f32 v) { return __nvvm_atom_add_gen_f(p, v); }
DEVICE i32 atomicMax(i32* p, i32 v) { return __nvvm_atom_max_gen_i(p, v); }
DEVICE u32 atomicMax(u32* p, u32 v) { return __nvvm_atom_max_gen_ui(p, v); }
DEVICE u32 atomicMin(u32* p, u32 v) { return __nvvm_atom_min_gen_ui(p, v); }

#endif

// From here on for both.

// atomicMax of numbers that are not NaN: positive ones are in the order of their bits, negative ones in the reverse.
DEVICE f32 atomicMax(f32* p, f32 v) {
	const u32 bits = f32ToBits(v);
	return bits >> 31 ? bitsToF32(atomicMin((u32*)p, bits)) : bitsToF32(u32(atomicMax((i32*)p, i32(bits))));
}

DEVICE f32 fromBF16(u16 b) { return bitsToF32(u32(b) << 16); }

DEVICE f32 infinity() { return bitsToF32(0x7f800000); }

DEVICE bool anyInWarp(bool b) { return ballot(b) != 0; }

// warpSum and warpMax give all lanes the sum, the largest of all 32; sums have the same order always.
DEVICE f32 warpSum(f32 v) {
	for (u32 mask = 16; mask > 0; mask /= 2) v += shuffleXor(v, mask);
	return v;
}
DEVICE f32 warpMax(f32 v) {
	for (u32 mask = 16; mask > 0; mask /= 2) v = fmaxf(v, shuffleXor(v, mask));
	return v;
}

// blockSum and blockMax give all threads of the block the sum, the largest of all. scratch is shared: [32].
DEVICE f32 blockSum(f32 v, f32* scratch) {
	const u32 lane = threadIdx.x % 32;
	v = warpSum(v);
	barrier(); // an earlier result may still be read
	if (lane == 0) scratch[threadIdx.x / 32] = v;
	barrier();
	return warpSum(lane < blockDim.x / 32 ? scratch[lane] : 0.0f);
}
DEVICE f32 blockMax(f32 v, f32* scratch) {
	const u32 lane = threadIdx.x % 32;
	v = warpMax(v);
	barrier();
	if (lane == 0) scratch[threadIdx.x / 32] = v;
	barrier();
	return warpMax(lane < blockDim.x / 32 ? scratch[lane] : -infinity());
}

// exp is e^x, within 3 ulp.
DEVICE f32 exp(f32 x) {
	if (!(x < 89.0f)) return x * infinity(); // NaN stays
	if (x < -104.0f) return 0;
	const f32 turns = fmaf(x, 1.44269504f, 12582912.0f) - 12582912.0f; // rounded to a whole number
	const f32 rest = fmaf(turns, -1.42860677e-6f, fmaf(turns, -0.693145752f, x));
	const i32 n = i32(turns), half = n >> 1; // 2^n may be out of range where the result is not
	return exp2(rest * 1.44269504f) * bitsToF32(u32(half + 127) << 23) * bitsToF32(u32(n - half + 127) << 23);
}

// log is the natural logarithm, within 2 ulp: twice the series of artanh((m-1)/(m+1)), m within sqrt(2) of 1.
DEVICE f32 log(f32 x) {
	if (!(x > 0)) return x == 0 ? -infinity() : bitsToF32(0x7fc00000);
	if (x == infinity()) return x;
	f32 exponent = 0;
	if (x < 1.17549435e-38f) {
		x *= 8388608.0f;
		exponent = -23;
	}
	const u32 bits = f32ToBits(x) - 0x3f3504f3; // from sqrt(1/2)
	exponent += f32(i32(bits) >> 23);
	const f32 m = bitsToF32((bits & 0x7fffff) + 0x3f3504f3);
	const f32 f = m - 1, s = f / (m + 1), s2 = s * s;
	const f32 series = s2 * fmaf(s2, fmaf(s2, fmaf(s2, fmaf(s2, 2.0f / 11, 2.0f / 9), 2.0f / 7), 2.0f / 5), 2.0f / 3);
	// log(m) = 2s + s*series = f - s*(f - series), since 2s = f - s*f
	return fmaf(exponent, 0.693145752f, fmaf(exponent, 1.42860677e-6f, -(s * (f - series))) + f);
}

// tanh, within 2 ulp: a continued fraction near 0, by exp elsewhere.
DEVICE f32 tanh(f32 x) {
	const f32 a = fabsf(x), x2 = x * x;
	if (a < 0.6f) {
		const f32 above = fmaf(x2, x2 + 189, 3465), below = fmaf(x2, fmaf(x2, x2 + 210, 4725), 10395);
		return x - x * x2 * (above / below);
	}
	const f32 t = a > 9.1f ? 1 : 1 - 2 / (exp(2 * a) + 1);
	return x != x ? x : x < 0 ? -t : t;
}

// erfc is 1-erf(x), within 8 ulp where it is not below 1e-37: e^(-x²) times a polynomial fitted to what is
// left, (1+2x) e^(x²) erfc(x), over (x-2)/(x+2).
DEVICE f32 erfc(f32 x) {
	const f32 a = fabsf(x), t = (a - 2) / (a + 2);
	f32 y = -0.000405606735f;
	y = fmaf(y, t, -0.00123404132f);
	y = fmaf(y, t, 0.00132107076f);
	y = fmaf(y, t, 0.0086372803f);
	y = fmaf(y, t, -0.00806346602f);
	y = fmaf(y, t, -0.0542064793f);
	y = fmaf(y, t, 0.164055995f);
	y = fmaf(y, t, -0.16603117f);
	y = fmaf(y, t, -0.0927640149f);
	y = fmaf(y, t, 1.27697839f);
	const f32 square = x * x, rest = fmaf(x, x, -square); // of x², which the exponential would magnify
	y = a > 10.5f ? 0 : y / fmaf(2, a, 1) * exp(-square) * (1 - rest);
	return x != x ? x : x < 0 ? 2 - y : y;
}

// erf, within 2 ulp: near 0 its series.
DEVICE f32 erf(f32 x) {
	const f32 a = fabsf(x), s = x * x;
	if (a < 1) {
		f32 y = 1.0f / 76204800;
		y = fmaf(y, s, -1.0f / 6894720);
		y = fmaf(y, s, 1.0f / 685440);
		y = fmaf(y, s, -1.0f / 75600);
		y = fmaf(y, s, 1.0f / 9360);
		y = fmaf(y, s, -1.0f / 1320);
		y = fmaf(y, s, 1.0f / 216);
		y = fmaf(y, s, -1.0f / 42);
		y = fmaf(y, s, 1.0f / 10);
		y = fmaf(y, s, -1.0f / 3);
		return fmaf(x, fmaf(y * s, 1.12837917f, 0.128379167f), x);
	}
	const f32 y = 1 - erfc(a);
	return x < 0 ? -y : y;
}
