// wide_sm90.cu: y = x wᵀ of many rows of x and 16-bit weights, by warpgroups (wgmma.cuh), for devices of compute capability 9.0.
// Where matmul.cu's tensor core instructions end at half of what these devices can do, shared memory and registers are not on the way here.
//
// A block makes 128 rows by 256 columns of y: two warpgroups have 64 rows each, all of the columns. Steps of 64 columns of x and w are on their way to
// shared memory (cp.async) two at a time, while one is multiplied and the one before it is being finished; up to three matrices that share x are one launch.
// Where there are too few tiles, blocks share the columns of x and w, and addParts adds what they have.
// What is rounded, and how gates interleave, is as in matmul.cu.
#include "product.cuh"
#include "wgmma.cuh"

namespace wide {
using namespace quant;

constexpr i32 rows = 128, columns = 256, step = 64, stages = 4, threads = 256;

// Part is a matrix that x is multiplied by.
struct Part {
	const u8* w;
	f32* y;
	const f32 *bias, *residual; // null, [rows]; null, as y
	i32 rows, yStride, blocks, pad; // blocks of the grid
};

struct Params {
	const u16* x;       // [rows, stride], from columns on filled up with zeros
	const f32* xScales; // null, or by what the products of a row are multiplied
	f32* partial;       // null, or [gridDim.z, rows, gridDim.y*columns] for addParts
	Part parts[3];      // with a gate: parts[0] and [1] are gate and up of the same shape; y is that of parts[0]
	i32 rows, stride, cols;
	i32 span;           // columns of x and w of a block, a multiple of the step
	i32 gate;
	i32 narrow;         // of a gate: y are bf16, and part.rows a multiple of 4
};

// in is where a number of a tile is in shared memory, permuted such that lanes write to different banks.
DEVICE i32 in(i32 row, i32 column) { return row * columns + (column ^ (row & 7) * 8); }

// write makes y of a tile, four numbers of several rows at a time: a processor has no other block that would work while one of them waits.
template <i32 gate> DEVICE void write(const Params& p, const Part& part, const f32* tile, i32 first, i32 block) {
	constexpr i32 width = gate == product::NoGate ? columns : columns / 2, apart = threads * 4 / width, turns = rows / apart, together = 4;
	const i32 row = threadIdx.x * 4 / width, column = threadIdx.x * 4 % width;
#pragma unroll 1
	for (i32 t = 0; t < turns; t += together) {
		f32 v[together][4];
#pragma unroll
		for (i32 i = 0; i < together; i++) {
			const i32 r = row + (t + i) * apart;
			const f32x4 a = loadf4(tile + in(r, gate == product::NoGate ? column : column / 8 * 16 + column % 8));
			v[i][0] = a.x, v[i][1] = a.y, v[i][2] = a.z, v[i][3] = a.w;
			const f32 scale = p.xScales ? p.xScales[product::smaller(first + r, p.rows - 1)] : 1;
#pragma unroll
			for (i32 j = 0; j < 4; j++) v[i][j] *= scale;
			if constexpr (gate != product::NoGate) {
				const f32x4 b = loadf4(tile + in(r, column / 8 * 16 + 8 + column % 8));
				const f32 up[4] = {b.x, b.y, b.z, b.w};
#pragma unroll
				for (i32 j = 0; j < 4; j++) v[i][j] = product::gated(gate, v[i][j], up[j] * scale);
			}
		}
#pragma unroll
		for (i32 i = 0; i < together; i++) {
			const i32 target = first + row + (t + i) * apart;
			const i32 at = block * width + column;
			if (gate != product::NoGate && p.narrow) {
				if (target < p.rows && at < part.rows) *(u32x2*)((u16*)part.y + i64(target) * part.yStride + at) = {toBF16x2(v[i][0], v[i][1]), toBF16x2(v[i][2], v[i][3])};
				continue;
			}
			if (target < p.rows) product::put(part, i64(target) * part.yStride, part.rows, at, v[i], 4);
		}
	}
}

template <bool isBF16> DEVICE void multiply(const Params& p) {
	constexpr i32 xBytes = rows * step * 2, wBytes = columns * step * 2;
	constexpr i32 xEach = xBytes / 16 / threads, wEach = wBytes / 16 / threads, apart = threads / 8; // rows from copy to copy
	u8* const shared = dynamicShared() + wgmma::untilAligned(dynamicShared());
	const i32 thread = threadIdx.x, lane = thread % 32, group = thread / 128;
	const bool gated = p.gate != product::NoGate;

	Part part = p.parts[0];
	i32 block = blockIdx.y;
	if (!gated && block >= part.blocks) {
		block -= part.blocks;
		part = p.parts[1];
		if (block >= part.blocks) {
			block -= part.blocks;
			part = p.parts[2];
		}
	}
	const i32 first = i32(blockIdx.x) * rows, from = i32(blockIdx.z) * p.span;

	// A thread copies the same chunk of some rows, in equal distances. Rows that are not there have others' numbers: what comes of them is not written.
	const i32 row = thread / 8, chunk = thread % 8;
	const i32 to = row * 128 + (chunk ^ (row & 7)) * 16;
	const i32 wStride = i32(rowNumbers(F16, p.cols));
	const u16* xFrom[xEach];
#pragma unroll
	for (i32 i = 0; i < xEach; i++) xFrom[i] = p.x + i64(product::smaller(first + row + i * apart, p.rows - 1)) * p.stride + from + chunk * 8;
	const u16* const w = (const u16*)(gated && row / 8 % 2 ? p.parts[1].w : part.w) + chunk * 8;
	const i32 wRow = gated ? block * (columns / 2) + row / 16 * 8 + row % 8 : block * columns + row, wApart = gated ? apart / 2 : apart;
	u32 wAt[wEach]; // in numbers, divided by 8
#pragma unroll
	for (i32 i = 0; i < wEach; i++) wAt[i] = u32(product::smaller(wRow + i * wApart, part.rows - 1)) * u32(wStride / 8);
	const i32 steps = (product::smaller(p.span, p.cols - from) + step - 1) / step;
	const auto copy = [&](i32 s) __attribute__((always_inline)) {
		if (s < steps) {
			u8* const xs = shared + s % stages * (xBytes + wBytes) + to;
#pragma unroll
			for (i32 i = 0; i < xEach; i++) copyAsync16(xs + i * apart * 128, xFrom[i] + s * step, true);
			const i32 column = from + s * step;
			const bool there = column + chunk * 8 < wStride;
			const u16* const ws = w + (there ? column : -chunk * 8);
#pragma unroll
			for (i32 i = 0; i < wEach; i++) copyAsync16(xs + xBytes + i * apart * 128, ws + u64(wAt[i]) * 8, there);
		}
		commitAsync();
	};

	f32 sums[columns / 2];
#pragma unroll
	for (i32 i = 0; i < columns / 2; i++) sums[i] = 0;
#pragma unroll
	for (i32 s = 0; s < stages - 2; s++) copy(s);
#pragma unroll 1
	for (i32 s = 0; s < steps; s++) {
		waitAsync<stages - 3>();
		wgmma::fenceShared();
		barrier(); // step s is there for all, and step s-2 is finished, whose place the copies below take
		const u8* const xs = shared + s % stages * (xBytes + wBytes) + group * (64 * 128);
		const u8* const ws = shared + s % stages * (xBytes + wBytes) + xBytes;
		wgmma::begin();
#pragma unroll
		for (i32 k = 0; k < step / 16; k++) wgmma::product<isBF16>(sums, xs + k * 32, ws + k * 32);
		wgmma::commit();
		copy(s + stages - 2);
		wgmma::wait<1>();
	}
	wgmma::finish(sums);

	// The tile goes to shared memory, and on in whole rows.
	f32* const tile = (f32*)shared;
	barrier(); // nobody multiplies the last steps any more
	const i32 at = group * 64 + thread / 32 % 4 * 16 + lane / 4;
#pragma unroll
	for (i32 j = 0; j < columns / 8; j++) {
		*(f32x2*)(tile + in(at, j * 8 + lane % 4 * 2)) = {sums[j * 4], sums[j * 4 + 1]};
		*(f32x2*)(tile + in(at + 8, j * 8 + lane % 4 * 2)) = {sums[j * 4 + 2], sums[j * 4 + 3]};
	}
	barrier();
	if (p.partial) {
		const i32 width = gridDim.y * columns;
		const Part sums = {nullptr, p.partial + i64(blockIdx.z) * p.rows * width, nullptr, nullptr, width, width, 0, 0};
		write<product::NoGate>(p, sums, tile, first, blockIdx.y);
		return;
	}
	switch (p.gate) {
	case product::NoGate: write<product::NoGate>(p, part, tile, first, block); break;
	case product::SwiGLU: write<product::SwiGLU>(p, part, tile, first, block); break;
	case product::GeGLU: write<product::GeGLU>(p, part, tile, first, block); break;
	default: write<product::GeGLUTanh>(p, part, tile, first, block);
	}
}

} // namespace wide

KERNEL(wideBF16, wide::Params, 256) { wide::multiply<true>(p); }
KERNEL(wideF16, wide::Params, 256) { wide::multiply<false>(p); }
