// sim.h: a device on the host, for tests. Each block runs on one thread of the operating system, each of
// its threads on a fiber, so that a kernel's barriers, shuffles and tensor-core fragments do what they do
// on a device; what a device leaves undefined is reported, or shows in the results: shared memory begins
// as NaN, threads of a block run in two very different orders, and asynchronous copies happen as late
// (Schedule::InOrder) or as early (Schedule::Greedy) as they may.
//
// What it cannot show: speed, registers, memory that blocks share without atomics, and blocks that wait
// for each other, which never end here.
#pragma once
#include <stddef.h>
#include <stdint.h>

namespace sim {

// KernelEntry is a kernel that is linked in.
struct KernelEntry {
	const char* name;
	uint32_t paramsSize;
	uint32_t threads; // the largest block
	void (*run)(const void* params);
	const KernelEntry* next;
};
const KernelEntry* firstKernel(); // the others by next
const KernelEntry* findKernel(const char* name); // null if there is none

enum class Schedule {
	InOrder, // threads in turn, from the first, each to where it waits; a copy when its wait returns
	Greedy, // warps from the last, each as far as it gets, lanes from the last; a copy at once
};

// configure chooses the schedule of the launches that follow, and how many blocks may run at a time
// (0: as many as there are processors).
void configure(Schedule, int workers);

// runKernel runs a launch to its end. It is false, and error says why, if the launch or the kernel
// broke a rule; memory is then as the kernel left it. Any thread may call it.
bool runKernel(const KernelEntry*, const uint32_t grid[3], uint32_t threads, uint32_t sharedBytes, const void* params, char* error, size_t size);

// fault is for who handles SIGSEGV and SIGBUS, with SA_NODEFER. If a kernel runs on this thread it ends the launch, which
// then failed with an "illegal address", and does not return; otherwise it is false.
bool fault(const void* address);

// forbid has the address sanitizer, if it is built in, report who touches memory; allow takes that back.
void forbid(void* p, size_t bytes);
void allow(void* p, size_t bytes);

} // namespace sim

#ifdef ESTIBA_EMULATED // from here on for kernels: gpu.cuh says what each thing is

#define DEVICE static inline __attribute__((unused))
#define KERNEL(name, Params, threads) \
	static void name##Body(const Params& p); \
	static void name##Run(const void* p) { name##Body(*(const Params*)p); } \
	static const sim::Registered name##Registered(#name, sizeof(Params), threads, name##Run); \
	static void name##Body([[maybe_unused]] const Params& p)
#define SHARED(type, name, dimensions) \
	static const char name##Key = 0; \
	[[maybe_unused]] type(&name) dimensions = *(type(*) dimensions)sim::shared(&name##Key, sizeof(type dimensions), #name)
#define CONSTANT(type, name, dimensions) static const type name dimensions __attribute__((unused))

// At is where a call is, for messages and to see that threads meet in the same place.
#define AT const char* file = __builtin_FILE(), int line = __builtin_LINE()
#define HERE sim::At{file, line}

namespace sim {

struct Registered : KernelEntry {
	Registered(const char* name, uint32_t paramsSize, uint32_t threads, void (*run)(const void*));
};

struct At {
	const char* file;
	int line;
};

// Place of the thread that runs now.
struct Place {
	Index thread, block, blockSize, gridSize;
	u8* dynamic;
};
extern __thread __attribute__((tls_model("initial-exec"))) Place place; // few bytes, and read all the time

enum class Op : u32 {
	Barrier, WarpBarrier, ShuffleXor, ShuffleDown, Shuffle, Ballot,
	LdMatrix4, LdMatrix4T, LdMatrix2, MmaBF16, MmaF16,
};

// meet waits for all lanes of the warp, or with Op::Barrier for all threads of the block, and has out filled.
void meet(Op, At, void* out, const void* a, const void* b, u32 argument);
void* shared(const void* key, size_t bytes, const char* name);
void copy(void* to, const void* from, bool valid, At);
void commit();
void wait(u32 groups);
// aligned reports an address that is no multiple of n.
void aligned(const void* p, u32 n, const char* what, At);

} // namespace sim

DEVICE Index threadIndex() { return sim::place.thread; }
DEVICE Index blockIndex() { return sim::place.block; }
DEVICE Index blockSize() { return sim::place.blockSize; }
DEVICE Index gridSize() { return sim::place.gridSize; }
DEVICE u8* dynamicShared() { return sim::place.dynamic; }

DEVICE void barrier(AT) { sim::meet(sim::Op::Barrier, HERE, nullptr, nullptr, nullptr, 0); }
DEVICE void warpBarrier(AT) { sim::meet(sim::Op::WarpBarrier, HERE, nullptr, nullptr, nullptr, 0); }
DEVICE void fence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }

template <typename T> DEVICE T shuffleXor(T v, u32 mask, AT) {
	static_assert(sizeof(T) == 4, "shuffles are of 4 bytes");
	T out;
	sim::meet(sim::Op::ShuffleXor, HERE, &out, &v, nullptr, mask);
	return out;
}
template <typename T> DEVICE T shuffleDown(T v, u32 n, AT) {
	static_assert(sizeof(T) == 4, "shuffles are of 4 bytes");
	T out;
	sim::meet(sim::Op::ShuffleDown, HERE, &out, &v, nullptr, n);
	return out;
}
template <typename T> DEVICE T shuffle(T v, u32 lane, AT) {
	static_assert(sizeof(T) == 4, "shuffles are of 4 bytes");
	T out;
	sim::meet(sim::Op::Shuffle, HERE, &out, &v, nullptr, lane);
	return out;
}
DEVICE u32 ballot(bool b, AT) {
	u32 out;
	sim::meet(sim::Op::Ballot, HERE, &out, nullptr, nullptr, b);
	return out;
}

DEVICE f32 bitsToF32(u32 b) {
	f32 f;
	__builtin_memcpy(&f, &b, 4);
	return f;
}
DEVICE u32 f32ToBits(f32 f) {
	u32 b;
	__builtin_memcpy(&b, &f, 4);
	return b;
}

DEVICE f32 fromHalf(u16 h) {
	const u32 sign = u32(h & 0x8000) << 16, exponent = h >> 10 & 31, fraction = h & 1023;
	if (exponent == 31) return bitsToF32(sign | 0x7f800000 | fraction << 13);
	if (exponent == 0) return bitsToF32(sign | f32ToBits(f32(fraction) * 5.9604644775390625e-8f)); // 2^-24
	return bitsToF32(sign | (exponent + 112) << 23 | fraction << 13);
}
DEVICE u16 toHalf(f32 f) {
	const u32 b = f32ToBits(f), sign = b >> 16 & 0x8000;
	u32 a = b & 0x7fffffff;
	if (a > 0x7f800000) return 0x7fff;
	if (a >= 0x477ff000) return u16(sign | 0x7c00);
	if (a < 0x38800000) return u16(sign | (f32ToBits(bitsToF32(a) + 0.5f) - 0x3f000000)); // the sum rounds to multiples of 2^-24
	a += 0xfff + (a >> 13 & 1);
	return u16(sign | (a - 0x38000000) >> 13);
}
DEVICE u16 toBF16(f32 f) {
	const u32 b = f32ToBits(f);
	return (b & 0x7fffffff) > 0x7f800000 ? 0x7fff : u16((b + 0x7fff + (b >> 16 & 1)) >> 16);
}
DEVICE u32 toHalf2(f32 low, f32 high) { return toHalf(low) | u32(toHalf(high)) << 16; }
DEVICE u32 toBF16x2(f32 low, f32 high) { return toBF16(low) | u32(toBF16(high)) << 16; }

DEVICE u16 fmaBF16(u16 a, u16 b, u16 c) {
	const f64 sum = f64(bitsToF32(u32(a) << 16)) * bitsToF32(u32(b) << 16) + bitsToF32(u32(c) << 16);
	u32 near = f32ToBits(f32(sum));
	if (f64(bitsToF32(near)) == sum || (near & 0x7f800000) == 0x7f800000) return toBF16(bitsToF32(near));
	if (__builtin_fabs(bitsToF32(near)) > __builtin_fabs(sum)) near--;
	return toBF16(bitsToF32(near | 1)); // what was cut off is not forgotten: the sum is rounded once
}
DEVICE u32 fmaBF16x2(u32 a, u32 b, u32 c) { return fmaBF16(u16(a), u16(b), u16(c)) | u32(fmaBF16(u16(a >> 16), u16(b >> 16), u16(c >> 16))) << 16; }
DEVICE u32 bytesOf(u32 a, u32 b, u32 which) {
	u32 bytes = 0;
	for (u32 i = 0; i < 4; i++) bytes |= u32((u64(b) << 32 | a) >> (which >> 4 * i & 7) * 8 & 255) << 8 * i;
	return bytes;
}

DEVICE i32 dp4a(i32 a, i32 b, i32 c) {
	for (u32 i = 0; i < 32; i += 8) c += i32(i8(u32(a) >> i)) * i32(i8(u32(b) >> i));
	return c;
}

DEVICE f32 fmaf(f32 a, f32 b, f32 c) { return __builtin_fmaf(a, b, c); }
DEVICE f32 fminf(f32 a, f32 b) { return __builtin_fminf(a, b); }
DEVICE f32 fmaxf(f32 a, f32 b) { return __builtin_fmaxf(a, b); }
DEVICE f32 fabsf(f32 a) { return __builtin_fabsf(a); }
DEVICE f32 sqrt(f32 a) { return __builtin_sqrtf(a); }
DEVICE f32 rsqrt(f32 x) { return 1 / __builtin_sqrtf(x); }
DEVICE f32 reciprocal(f32 x) { return 1 / x; }
DEVICE f32 exp2(f32 x) { return __builtin_exp2f(x); }

DEVICE u32x4 load128(const void* p, AT) {
	sim::aligned(p, 16, "load128", HERE);
	return *(const u32x4*)p;
}
DEVICE u32x2 load64(const void* p, AT) {
	sim::aligned(p, 8, "load64", HERE);
	return *(const u32x2*)p;
}
DEVICE f32x4 loadf4(const void* p, AT) {
	sim::aligned(p, 16, "loadf4", HERE);
	return *(const f32x4*)p;
}
DEVICE u32x4 loadu4(const void* p, AT) {
	sim::aligned(p, 16, "loadu4", HERE);
	return *(const u32x4*)p;
}
DEVICE f32x2 loadf2(const void* p, AT) {
	sim::aligned(p, 8, "loadf2", HERE);
	return *(const f32x2*)p;
}
DEVICE void store128(void* p, u32x4 v, AT) {
	sim::aligned(p, 16, "store128", HERE);
	*(u32x4*)p = v;
}

DEVICE void copyAsync16(void* shared, const void* global, bool valid, AT) { sim::copy(shared, global, valid, HERE); }
DEVICE void commitAsync() { sim::commit(); }
template <int N> DEVICE void waitAsync() { sim::wait(N); }

DEVICE void ldmatrix4(u32 (&r)[4], const void* shared, AT) { sim::meet(sim::Op::LdMatrix4, HERE, r, shared, nullptr, 0); }
DEVICE void ldmatrix4T(u32 (&r)[4], const void* shared, AT) { sim::meet(sim::Op::LdMatrix4T, HERE, r, shared, nullptr, 0); }
DEVICE void ldmatrix2(u32 (&r)[2], const void* shared, AT) { sim::meet(sim::Op::LdMatrix2, HERE, r, shared, nullptr, 0); }
DEVICE void mmaBF16(f32 (&d)[4], const u32 (&a)[4], const u32 (&b)[2], AT) { sim::meet(sim::Op::MmaBF16, HERE, d, a, b, 0); }
DEVICE void mmaF16(f32 (&d)[4], const u32 (&a)[4], const u32 (&b)[2], AT) { sim::meet(sim::Op::MmaF16, HERE, d, a, b, 0); }

DEVICE i32 atomicAdd(i32* p, i32 v) { return __atomic_fetch_add(p, v, __ATOMIC_RELAXED); }
DEVICE u32 atomicAdd(u32* p, u32 v) { return __atomic_fetch_add(p, v, __ATOMIC_RELAXED); }
template <typename T, typename F> DEVICE T atomicChange(T* p, F change) {
	T old, next;
	__atomic_load(p, &old, __ATOMIC_RELAXED);
	do next = change(old);
	while (!__atomic_compare_exchange(p, &old, &next, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
	return old;
}
DEVICE f32 atomicAdd(f32* p, f32 v) {
	return atomicChange(p, [v](f32 old) { return old + v; });
}
DEVICE i32 atomicMax(i32* p, i32 v) {
	return atomicChange(p, [v](i32 old) { return old > v ? old : v; });
}
DEVICE u32 atomicMax(u32* p, u32 v) {
	return atomicChange(p, [v](u32 old) { return old > v ? old : v; });
}
DEVICE u32 atomicMin(u32* p, u32 v) {
	return atomicChange(p, [v](u32 old) { return old < v ? old : v; });
}

#undef AT
#undef HERE
#endif
