// wgmma.cuh: products of warpgroups, of devices of compute capability 9.0 alone (sm_90a). PTX ISA 8.0, "Asynchronous warpgroup level
// matrix instructions".
//
// A warpgroup is four warps, the first of which has a number that 4 divides. Its 128 threads start a product together; the sums are
// in registers, which nobody may touch until the product is waited for. Both factors are in shared memory, 64 numbers of 16 bits a row: a row is 128
// bytes, in 8 chunks of 16, of which chunk c lies at c ^ row%8, in 8 rows from a multiple of 1,024.
#pragma once
#include "gpu.cuh"

namespace wgmma {

#ifdef ESTIBA_EMULATED

DEVICE i32 untilAligned(const u8* shared) { return i32(-u64(shared) & 1023); }
DEVICE void fenceShared() {}
DEVICE void begin() {}
DEVICE void commit() {}
template <i32 N> DEVICE void wait() {}
template <i32 V> DEVICE void finish(f32 (&)[V]) {}

// number of a row, from a place in the row on.
DEVICE u16 number(const u8* from, i32 row, i32 k) {
	const u64 at = u64(from) + row * 128 + k * 2;
	return *(const u16*)(at ^ (at >> 7 & 7) << 4);
}
template <bool BF16, i32 V> DEVICE void product(f32 (&d)[V], const u8* a, const u8* b) {
	const i32 lane = threadIdx.x % 32, row = threadIdx.x / 32 % 4 * 16 + lane / 4;
	const auto value = [](u16 bits) { return BF16 ? fromBF16(bits) : fromHalf(bits); };
	f32 left[2][16];
	for (i32 h = 0; h < 2; h++)
		for (i32 k = 0; k < 16; k++) left[h][k] = value(number(a, row + h * 8, k));
	for (i32 i = 0; i < V / 2; i++) {
		const i32 column = i / 2 * 8 + lane % 4 * 2 + i % 2;
		for (i32 k = 0; k < 16; k++) {
			const f32 right = value(number(b, column, k));
			for (i32 h = 0; h < 2; h++) d[i / 2 * 4 + h * 2 + i % 2] = fmaf(left[h][k], right, d[i / 2 * 4 + h * 2 + i % 2]);
		}
	}
}

#else

// untilAligned is how many bytes there are until the next multiple of 1,024.
DEVICE i32 untilAligned(const u8* shared) { return i32(-sharedAddress(shared) & 1023); }
// fenceShared has this thread's writes to shared memory, cp.async's too, come before products that start after a barrier.
DEVICE void fenceShared() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
// begin orders registers with the products that follow.
DEVICE void begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
// commit closes a group of products; wait<N> returns when all groups but the last N are done.
DEVICE void commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <i32 N> DEVICE void wait() { asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory"); }

// described is the matrix descriptor of rows in shared memory: 128 bytes a row, swizzled, 1,024 to the next 8 rows.
DEVICE u64 described(const u8* from) { return u64(sharedAddress(from) >> 4 & 0x3fff) | u64(1) << 16 | u64(64) << 32 | u64(1) << 62; }

#define SUMS8(d, i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), "+f"(d[i + 7])
#define SUMS64(d, i) SUMS8(d, i), SUMS8(d, i + 8), SUMS8(d, i + 16), SUMS8(d, i + 24), SUMS8(d, i + 32), SUMS8(d, i + 40), SUMS8(d, i + 48), SUMS8(d, i + 56)
// finish waits for all products; only then are the sums numbers.
DEVICE void finish(f32 (&d)[128]) { asm volatile("wgmma.wait_group.sync.aligned 0;" : SUMS64(d, 0), SUMS64(d, 64)::"memory"); }

// product starts d += a bT, for 16 numbers of 64 rows of a and 256 rows of b. With w the warp's number in its group and l the lane, d[4j + 2h + i] is of row
// 16w + 8h + l/4 of a and row 8j + 2(l%4) + i of b.
#define PRODUCT(numbers) \
	asm volatile("{\n.reg .pred all;\nsetp.eq.u32 all, 0, 0;\nwgmma.mma_async.sync.aligned.m64n256k16.f32." numbers "." numbers " {" LIST "}, %128, %129, all, 1, 1, 0, 0;\n}" \
	             : SUMS64(d, 0), SUMS64(d, 64) : "l"(described(from)), "l"(described(by)) : "memory")
#define LIST "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"

template <bool BF16> DEVICE void product(f32 (&d)[128], const u8* from, const u8* by) {
	if constexpr (BF16) PRODUCT("bf16");
	else PRODUCT("f16");
}
#undef PRODUCT
#undef LIST
#undef SUMS64
#undef SUMS8

#endif

} // namespace wgmma
