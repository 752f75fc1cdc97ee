// packed.cu: y = x wᵀ of some rows of x by packed weights, at the speed of memory: weights are read once for up to 64 rows.
// They go to shared memory as they lie (cp.async), several steps on their way at a time; from there each warp takes 16 rows
// into registers, as bf16, just where the tensor core wants them: a lane's word of a group's bits has four columns of
// the first half of the group and four of the last. So a weight is decoded once, in two or three instructions for two of
// them, whatever the rows of x; and nothing is to be scaled after.
//
// What is rounded: x to bf16, the scales of weights to bf16, and weights to bf16. Products are exact, their sums f32.
//
// The rest is as in matmul.cu, whose tiles, gates and experts' rows these are.
#include "product.cuh"

namespace packed {
using namespace quant;
using product::Block;
using product::Place;
using product::placeOf;

// Part is a matrix that x is multiplied by.
struct Part {
	const u8* w; // in device layout
	f32* y;      // [rows of x, stride]
	const f32 *bias, *residual; // null, [rows]; null, as y
	i32 rows, stride;
	i32 tiles, first; // of the grid; the kernel's own note: of the tiles before
};

struct Params {
	const u16* x;      // [rows, xStride], from columns on filled up with zeros
	Part parts[3];
	f32* partial;      // null, or [splits, rows, gridDim.y*used] for addParts
	const i32* tiles;  // null, or groupRows's: [gridDim.x, 4] expert, first in list, rows
	const i32* list;   // pairs of a row and one of its experts, by expert
	i64 expertBytes;   // from an expert's weights to the next one's
	i32 rows, cols, xStride;
	i32 span;          // columns of a split, a multiple of the step
	i32 gate;          // parts[0] and [1] are gate and up of the same shape; y is that of parts[0]
	i32 divide;        // a pair's row of x is its number divided by this; of y, its number
	i32 used, pad;     // rows of a tile, a multiple of 16 up to the kernel's, that are multiplied by
};

// Tile of XRows rows of x by Rows of w, in steps of Step columns; a warp has 16 rows of w or Each times as many, and warps
// share the columns of a step where there are more than these need.
template <i32 F, i32 XRows, i32 Rows, i32 Step, i32 Each> struct Tile {
	static constexpr i32 xRows = XRows, rows = Rows, step = Step, threads = 256;
	static constexpr i32 groups = Step / 32;                           // of a row of a step
	static constexpr i32 each = Each;
	static constexpr i32 teams = Rows / (16 * each), sharing = 8 / teams; // warps, for one row and for the columns
	static constexpr i32 row = groups * bitsBytes(F), above = F == Q6_K ? groups * 8 : 0; // bytes of a row of a step that are copied
	static constexpr i32 xAt = Rows * (row + above), bytes = xAt + XRows * Step * 2;  // of a stage
	static constexpr i32 scalePitch = Rows + 2, scaleBytes = groups * scalePitch * (hasFifth(F) ? 12 : 8);
	static constexpr i32 most = ((99 << 10) - 2 * scaleBytes) / bytes, stages = most < 8 ? most : 8; // what every device has for a block
	static constexpr i32 pitch = Rows + 4; // of sums
};

// in is where chunk c of 16 bytes of a row lies, in rows of so many: the same chunk of 8 rows is in 8 different places of 128 bytes.
template <i32 Row> DEVICE i32 in(i32 row, i32 c) { return row * Row + (Row >= 128 ? c ^ (row & 7) : Row == 64 ? c ^ (row >> 1 & 3) : c ^ (row >> 2 & 1)) * 16; }

template <i32 N> struct Number {
	static constexpr i32 value = N;
};

// Source of what a thread copies, and which of its rows are there.
struct Source {
	const u8* at;
	u32 valid;
};

// loadWords loads 2 to 16 bytes.
template <i32 Bytes> DEVICE void loadWords(u32* to, const u8* from) {
	if constexpr (Bytes == 2) {
		to[0] = *(const u16*)from;
	} else if constexpr (Bytes == 4) {
		to[0] = *(const u32*)from;
	} else if constexpr (Bytes == 8) {
		const u32x2 v = *(const u32x2*)from;
		to[0] = v.x, to[1] = v.y;
	} else {
		const u32x4 v = loadu4(from);
		to[0] = v.x, to[1] = v.y, to[2] = v.z, to[3] = v.w;
	}
}

// centre is taken from unsigned bits: the offset, or half of what bits may be, by which least is more. So the numbers that are
// rounded to bf16 are small where weights are.
DEVICE constexpr i32 centre(i32 f) { return !hasLeast(f) ? offset(f) : hasFifth(f) ? 16 : 8; }

// wide is two bf16 of bytes 0 and 1 (last: of 2 and 3), which are less than 128 but for Q8_0's, less the centre.
template <i32 F> DEVICE u32 wide(u32 bytes, bool last) {
	const u32 v = bytesOf(bytes, 0x43434343, last ? 0x4342 : 0x4140); // 128 + the byte
	if constexpr (F == Q8_0) return fmaBF16x2(v & 0xff7fff7f, 0x3f803f80, (v & 0x00800080) | 0xc300c300); // the sign's bit turns 128 to 256
	return fmaBF16x2(v, 0x3f803f80, 0xc300c300 | u32(centre(F)) * 0x10001); // -128-centre
}

template <i32 F, typename T> DEVICE void multiply(const Params& p) {
	u8* const stages = dynamicShared();
	u8* const scales = stages + T::stages * T::bytes; // [2]: [groups][scalePitch] twice a bf16 two times, and fifth bits
	const i32 thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
	letNextStart();
	if (p.tiles) awaitEarlier();
	Block block;
	if (!product::blockOf(p, T::xRows, p.cols, block)) return;
	const i32 steps = (block.to - block.from + T::step - 1) / T::step;
	const bool gate = p.gate != product::NoGate;
	Part part = p.parts[0];
	part.first = 0;
	if (!gate && i32(blockIdx.y) >= part.tiles) {
		const i32 first = part.tiles;
		part = p.parts[1], part.first = first;
		if (i32(blockIdx.y) >= first + part.tiles) {
			const i32 more = first + part.tiles;
			part = p.parts[2], part.first = more;
		}
	}
	const i32 tileAt = i32(blockIdx.y) - part.first;
	const i32 groups = p.cols / 32; // of a row
	const Planes planes = planesOf(part.w + block.weights, F, part.rows, p.cols);
	const i64 beyond = gate ? p.parts[1].w - part.w : 0;

	// rowOf is which row of w lies in a row of the tile: with a gate, 8 of gate and 8 of up in turn.
	const auto rowOf = [&](i32 row) __attribute__((always_inline)) {
		return gate ? tileAt * (p.used / 2) + row / 16 * 8 + row % 8 : tileAt * p.used + row;
	};
	const auto has = [&](i32 row) __attribute__((always_inline)) { return row < p.used && rowOf(row) < part.rows; };
	const auto isUp = [&](i32 row) __attribute__((always_inline)) { return gate && row / 8 % 2; };

	// What this thread copies in each step: of some rows the same chunk. What is not there is not copied: its scales are 0.
	const auto sourceOf = [&](auto row_, auto group_, const u8* plane) __attribute__((always_inline)) {
		constexpr i32 Row = decltype(row_)::value, Group = decltype(group_)::value, chunks = Row / 16, rows = T::threads / chunks;
		const i32 row = thread / chunks, c = thread % chunks;
		Source from = {plane + (isUp(row) ? beyond : 0) + (i64(rowOf(row)) * groups + block.from / 32) * Group + c * 16, 0};
#pragma unroll
		for (i32 i = 0; i * rows < T::rows; i++) from.valid |= u32(has(row + i * rows)) << i;
		return from;
	};
	const auto copyPlane = [&](auto row_, auto group_, const Source& from, u8* to, i32 step) __attribute__((always_inline)) {
		constexpr i32 Row = decltype(row_)::value, Group = decltype(group_)::value, chunks = Row / 16, rows = T::threads / chunks;
		const i32 row = thread / chunks, c = thread % chunks;
		const i64 pitch = i64(gate ? rows / 2 : rows) * groups * Group; // rows are a multiple of 16
		const u32 valid = block.from / 32 + step * T::groups + c * 16 / Group < groups ? from.valid : 0;
#pragma unroll
		for (i32 i = 0; i * rows < T::rows; i++)
			if (valid >> i & 1) copyAsync16(to + in<Row>(row, c) + i * rows * Row, from.at + i * pitch + i64(step) * (T::groups * Group), true);
	};
	const Source bitsFrom = sourceOf(Number<T::row>(), Number<bitsBytes(F)>(), planes.bits);
	Source aboveFrom;
	if constexpr (T::above != 0) aboveFrom = sourceOf(Number<T::above>(), Number<8>(), planes.above);

	constexpr i32 xChunks = T::step / 8, xTurns = T::xRows * xChunks / T::threads;
	const u16* xFrom[xTurns]; // null where there is no row
#pragma unroll
	for (i32 i = 0; i < xTurns; i++) {
		const i32 source = placeOf(p, block, (thread + i * T::threads) / xChunks).source;
		xFrom[i] = source < 0 ? nullptr : p.x + i64(source) * p.xStride + block.from + thread % xChunks * 8;
	}
	const auto copyWeights = [&](i32 step) __attribute__((always_inline)) {
		if (step >= steps) return;
		u8* const to = stages + step % T::stages * T::bytes;
		copyPlane(Number<T::row>(), Number<bitsBytes(F)>(), bitsFrom, to, step);
		if constexpr (T::above != 0) copyPlane(Number<T::above>(), Number<8>(), aboveFrom, to + T::rows * T::row, step);
	};
	const auto copyX = [&](i32 step) __attribute__((always_inline)) {
		if (step < steps) {
			u8* const to = stages + step % T::stages * T::bytes + T::xAt;
			const bool inside = block.from + step * T::step + thread % xChunks * 8 < p.xStride;
#pragma unroll
			for (i32 i = 0; i < xTurns; i++) {
				const i32 row = thread / xChunks + i * (T::threads / xChunks), c = thread % xChunks;
				const bool valid = inside && xFrom[i];
				copyAsync16(to + row * T::step * 2 + (c ^ (row & 3) * 2) * 16, valid ? xFrom[i] + step * T::step : p.x, valid);
			}
		}
		commitAsync();
	};

	// Scales, and the fifth bits, go through registers; scales become twice a bf16.
	constexpr i32 perRow = T::threads / T::rows < T::groups ? T::threads / T::rows : T::groups, scaled = T::groups / perRow; // threads of a row, groups of a thread
	const i32 scaleRow = thread / perRow, scaleGroup = thread % perRow * scaled;
	constexpr i32 each = scalesBytes(F), scaleWords = (scaled * each + 3) / 4;
	const bool scaleValid = (perRow * T::rows == T::threads || scaleRow < T::rows) && has(scaleRow);
	const i64 scaleAt = i64(rowOf(scaleRow)) * groups + block.from / 32 + scaleGroup; // in groups
	const u8* const scaleFrom = planes.scales + (isUp(scaleRow) ? beyond : 0) + scaleAt * each;
	const u8* const fifthFrom = planes.above + (isUp(scaleRow) ? beyond : 0) + scaleAt * 4;
	const u8* const blockFrom = planes.blocks + (isUp(scaleRow) ? beyond : 0) + scaleAt / 8 * blockBytes(F);
	u32 words[scaleWords], fifths[scaled], blockBits = 0;
	const auto load = [&](i32 step) __attribute__((always_inline)) {
		const i32 left = scaleValid ? groups - block.from / 32 - scaleGroup - step * T::groups : 0;
		const u8* const from = scaleFrom + i64(step) * (T::groups * each);
		const u8* const fifth = fifthFrom + i64(step) * (T::groups * 4);
#pragma unroll
		for (i32 i = 0; i < scaleWords; i++) words[i] = 0;
		if (blockBytes(F) != 0 || groups % 8 == 0) { // whole steps, at multiples of what a thread has of them
			if (left > 0) loadWords<scaled * each>(words, from);
		} else {
#pragma unroll
			for (i32 i = 0; i < scaled; i++)
				if (i < left) words[i * each / 4] |= each == 4 ? ((const u32*)from)[i] : u32(((const u16*)from)[i]) << i % 2 * 16;
		}
		if constexpr (hasFifth(F))
#pragma unroll
			for (i32 i = 0; i < scaled; i++) fifths[i] = i < left ? ((const u32*)fifth)[i] : 0;
		blockBits = 0;
		if (left <= 0) return;
		if constexpr (blockBytes(F) == 4) blockBits = ((const u32*)blockFrom)[step * T::groups / 8];
		if constexpr (blockBytes(F) == 2) blockBits = ((const u16*)blockFrom)[step * T::groups / 8];
	};
	const auto store = [&](i32 step) __attribute__((always_inline)) {
		u8* const to = scales + step % 2 * T::scaleBytes;
		if (perRow * T::rows < T::threads && scaleRow >= T::rows) return;
#pragma unroll
		for (i32 i = 0; i < scaled; i++) {
			const Scale s = scaleOf(F, each == 4 ? words[i] : words[i / 2] >> i % 2 * 16 & 0xffff, blockBits);
			const f32 other = F == Q6_K ? s.high : fmaf(f32(centre(F)), s.low, s.least); // of those without least nobody reads it
			const i32 at = (scaleGroup + i) * T::scalePitch + scaleRow;
			((u32x2*)to)[at] = {toBF16x2(s.low, s.low), toBF16x2(other, other)};
			if constexpr (hasFifth(F)) ((u32*)to)[T::groups * T::scalePitch * 2 + at] = fifths[i];
		}
	};

	constexpr i32 across = T::xRows / 8;
	f32 sums[T::each][across][4];
#pragma unroll
	for (i32 m = 0; m < T::each; m++)
#pragma unroll
		for (i32 j = 0; j < across; j++)
#pragma unroll
			for (i32 k = 0; k < 4; k++) sums[m][j][k] = 0;
	const i32 rowAt = warp % T::teams * 16 * T::each, share = warp / T::teams;
	const i32 g = lane / 4, t = lane % 4;

#pragma unroll
	for (i32 s = 0; s < T::stages - 1; s++) copyWeights(s);
	load(0);
	store(0);
	if (steps > 1) load(1);
	awaitEarlier(); // for x
#pragma unroll
	for (i32 s = 0; s < T::stages - 1; s++) copyX(s);
#pragma unroll 1
	for (i32 s = 0; s < steps; s++) {
		waitAsync<T::stages - 2>();
		barrier(); // step s is there, and nobody reads step s-1 any more, whose place the next copies take
		copyWeights(s + T::stages - 1);
		copyX(s + T::stages - 1);
		if (s + 1 < steps) store(s + 1);
		if (s + 2 < steps) load(s + 2);
		const u8* const bits = stages + s % T::stages * T::bytes;
		const u8* const above = bits + T::rows * T::row;
		const u8* const x = bits + T::xAt;
		const u32x2* const scale = (const u32x2*)(scales + s % 2 * T::scaleBytes);
		const u32* const fifth = (const u32*)(scale + T::groups * T::scalePitch);
		constexpr i32 turn = F == Q8_0 ? 1 : 2; // groups that an ldmatrix reads
		static_assert(T::groups / T::sharing % turn == 0, "a warp has no whole ldmatrix of a step");
#pragma unroll 1
		for (i32 pair = 0; pair < T::groups / T::sharing; pair += turn) {
			const i32 from = share * (T::groups / T::sharing) + pair;
			if (rowAt >= p.used) break;
			u32 raw[T::each][4];
#pragma unroll
			for (i32 m = 0; m < T::each; m++)
				ldmatrix4(raw[m], bits + in<T::row>(rowAt + m * 16 + lane % 16, (F == Q8_0 ? from * 2 : from) + lane / 16));
#pragma unroll
			for (i32 i = 0; i < turn; i++) {
				const i32 group = from + i;
				u32 low[T::each][4], high[T::each][4];
#pragma unroll
				for (i32 m = 0; m < T::each; m++)
#pragma unroll
					for (i32 h = 0; h < 2; h++) {
						const i32 row = rowAt + m * 16 + h * 8 + g;
						const u32x2 by = scale[group * T::scalePitch + row];
						u32 first, last;
						if constexpr (F == Q8_0) {
							first = raw[m][h], last = raw[m][h + 2];
						} else {
							u32x2 more = {0, 0};
							if constexpr (hasFifth(F)) more.x = fifth[group * T::scalePitch + row];
							if constexpr (F == Q6_K) more = *(const u32x2*)(above + in<T::above>(row, group / 2) + group % 2 * 8);
							first = lowBits(F, raw[m][i * 2 + h], more, t), last = highBits(F, raw[m][i * 2 + h], more, t);
						}
						const u32 least = hasLeast(F) ? by.y : 0x80008000; // or -0
						const u32 lastScale = F == Q6_K ? by.y : by.x;
						low[m][h] = fmaBF16x2(wide<F>(first, false), by.x, least);
						low[m][h + 2] = fmaBF16x2(wide<F>(first, true), by.x, least);
						high[m][h] = fmaBF16x2(wide<F>(last, false), lastScale, least);
						high[m][h + 2] = fmaBF16x2(wide<F>(last, true), lastScale, least);
					}
#pragma unroll
				for (i32 j = 0; j < across; j++) {
					const i32 row = j * 8 + g;
					const u8* const at = x + row * T::step * 2 + t % 2 * 8;
					const u32x2 a = *(const u32x2*)(at + ((group * 4 + t / 2) ^ (row & 3) * 2) * 16), b = *(const u32x2*)(at + ((group * 4 + 2 + t / 2) ^ (row & 3) * 2) * 16);
					const u32 first[2] = {a.x, a.y}, last[2] = {b.x, b.y};
#pragma unroll
					for (i32 m = 0; m < T::each; m++) {
						mmaBF16(sums[m][j], low[m], first);
						mmaBF16(sums[m][j], high[m], last);
					}
				}
			}
		}
	}

	// Sums go to shared memory, those of each share of the columns to its own place, and on in whole rows.
	f32* const tile = (f32*)stages;
	barrier(); // nobody reads the last step any more, and no copies are on their way
#pragma unroll
	for (i32 m = 0; m < T::each; m++)
#pragma unroll
		for (i32 j = 0; j < across; j++)
#pragma unroll
			for (i32 k = 0; k < 4; k++) tile[(share * T::xRows + j * 8 + t * 2 + k % 2) * T::pitch + rowAt + m * 16 + k / 2 * 8 + g] = sums[m][j][k];
	barrier();
	const i32 width = !gate || p.partial ? p.used : p.used / 2; // of y
#pragma unroll 1
	for (i32 id = thread * 4; id < T::xRows * width; id += T::threads * 4) {
		const i32 row = id / width, column = id % width;
		const Place place = placeOf(p, block, row);
		if (place.source < 0) break; // the rest has none either
		const auto sum = [&](f32 (&v)[4], i32 from) __attribute__((always_inline)) {
			const f32x4 a = loadf4(tile + row * T::pitch + from);
			v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w;
#pragma unroll
			for (i32 s = 1; s < T::sharing; s++) {
				const f32x4 b = loadf4(tile + (s * T::xRows + row) * T::pitch + from);
				v[0] += b.x, v[1] += b.y, v[2] += b.z, v[3] += b.w;
			}
		};
		f32 v[4], up[4];
		sum(v, width == p.used ? column : column / 8 * 16 + column % 8);
		if (p.partial) {
			f32* to = p.partial + (i64(blockIdx.z) * p.rows + place.target) * (gridDim.y * p.used) + i64(blockIdx.y) * p.used + column;
			store128(to, {f32ToBits(v[0]), f32ToBits(v[1]), f32ToBits(v[2]), f32ToBits(v[3])});
			continue;
		}
		if (gate) {
			sum(up, column / 8 * 16 + 8 + column % 8);
#pragma unroll
			for (i32 i = 0; i < 4; i++) v[i] = product::gated(p.gate, v[i], up[i]);
		}
		product::put(part, i64(place.target) * part.stride, part.rows, tileAt * width + column, v, 4);
	}
}

} // namespace packed

// That a processor is to have two blocks keeps registers to 128; with 64 rows of x, whose sums alone are 64, it has one.
#define PACKED(format, x32step, x32each) \
	KERNEL_EARLY(packed##format##x16r128, packed::Params, 256, 2) { packed::multiply<quant::format, packed::Tile<quant::format, 16, 128, 256, 1>>(p); } \
	KERNEL_EARLY(packed##format##x16r64, packed::Params, 256, 2) { packed::multiply<quant::format, packed::Tile<quant::format, 16, 64, 256, 1>>(p); } \
	KERNEL_EARLY(packed##format##x16r32, packed::Params, 256, 2) { packed::multiply<quant::format, packed::Tile<quant::format, 16, 32, 256, 1>>(p); } \
	KERNEL_EARLY(packed##format##x32r128, packed::Params, 256, 2) { packed::multiply<quant::format, packed::Tile<quant::format, 32, 128, x32step, x32each>>(p); } \
	KERNEL_EARLY(packed##format##x32r64, packed::Params, 256, 2) { packed::multiply<quant::format, packed::Tile<quant::format, 32, 64, 256, x32each>>(p); } \
	KERNEL_EARLY(packed##format##x32r32, packed::Params, 256, 2) { packed::multiply<quant::format, packed::Tile<quant::format, 32, 32, 256, 1>>(p); } \
	KERNEL_EARLY(packed##format##x64r128, packed::Params, 256, 1) { packed::multiply<quant::format, packed::Tile<quant::format, 64, 128, 128, 2>>(p); }
PACKED(Q8_0, 128, 2)
PACKED(Q4_0, 256, 2)
PACKED(Q4_K, 256, 2)
PACKED(Q6_K, 128, 1)
PACKED(Q4_1, 256, 2)
PACKED(Q5_0, 256, 2)
PACKED(Q5_1, 256, 2)
PACKED(Q5_K, 256, 2)
#undef PACKED
