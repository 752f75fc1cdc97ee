// matmul.cu: y = x wᵀ of many rows of x by weights that are not packed, on tensor cores where they have 16 bits. A
// block makes a tile of y; along the columns of x and w it goes in steps, whose pieces of x and w are in shared memory,
// several steps on their way at a time (cp.async).
//
// Products are exact; their sums are f32 (of the tensor core's own rounding). What is rounded before: x to bf16,
// to f16 where weights are F16 (a row divided by a power of two).
//
// A row of a step in shared memory is 4 or 8 chunks of 16 bytes, permuted such that the 8 rows that ldmatrix
// reads at once, and those that 8 threads write at once, are in different banks.
//
// With a gate, w and up lie interleaved in the tile, 8 rows of each in turn: so a thread has the sums of both at
// the same place. Experts' rows are put together by groupRows, in tiles that have one expert each.
#include "product.cuh"

namespace matmul {
using namespace quant;
using product::Block;
using product::Place;
using product::placeOf;

struct Params {
	const u16* x;         // [rows, stride], from columns on filled up with zeros; matmulF32: f32 [rows, columns]
	const f32* xScales;   // null, or by what the products of a row are multiplied
	Weights w;
	const u8* up;         // with a gate: of the same format and shape as w
	f32* y;               // [rows, yStride]
	const f32 *bias, *residual; // null, [w.rows]; null, as y
	f32* partial;         // null, or [splits, rows, gridDim.y*tile] for addParts
	const i32* tiles;     // null, or groupRows's: [gridDim.x, 4] expert, first in list, rows
	const i32* list;      // pairs of a row and one of its experts, by expert
	i64 expertBytes;
	i32 rows, stride, yStride;
	i32 span;             // columns of a split, a multiple of the step
	i32 gate;
	i32 divide;           // a pair's row of x is its number divided by this; of y, its number
};

// Tile is what a block makes of y, in which steps, with how many warps.
template <i32 Rows, i32 Columns, i32 Step, i32 WarpsDown, i32 WarpsAcross, i32 Stages> struct Tile {
	static constexpr i32 rows = Rows, columns = Columns, step = Step, across = WarpsAcross, stages = Stages;
	static constexpr i32 threads = 32 * WarpsDown * WarpsAcross;
	static constexpr i32 warpRows = Rows / WarpsDown, warpColumns = Columns / WarpsAcross;
};
// As in product.go.
typedef Tile<32, 64, 64, 1, 4, 4> Tile32;
typedef Tile<64, 64, 64, 2, 2, 3> Tile64;
typedef Tile<128, 128, 32, 2, 2, 4> Tile128;

// at is where chunk c of a row of a step is, in bytes.
template <i32 Step> DEVICE i32 at(i32 row, i32 c) { return row * Step * 2 + (Step == 64 ? c ^ (row & 7) : c ^ (row >> 1 & 3)) * 16; }

// weightRow is which row of w, or of up, lies in a row of the tile.
struct WeightRow {
	i32 row;
	bool up;
};
DEVICE WeightRow weightRow(const Params& p, i32 columns, i32 row) {
	if (p.gate == product::NoGate) return {i32(blockIdx.y) * columns + row, false};
	return {i32(blockIdx.y) * (columns / 2) + row / 16 * 8 + row % 8, row / 8 % 2 != 0};
}

// Copies is what a thread copies of each step of x, and of w where it has 16 bits: in every each-th row the same chunk. Rows of
// the tile that w does not have are copies of its last one: nobody wants their products.
template <typename T> struct Copies {
	static constexpr i32 chunks = T::step / 8; // of a row
	static constexpr i32 each = T::threads / chunks;
	static constexpr i32 ofX = T::rows / each, ofW = T::columns / each;
	static_assert(each % 16 == 0 && T::rows % each == 0 && T::columns % each == 0, "a thread has the same chunk's place in all its rows, and of w and up one");

	const u8 *xFrom, *wFrom;
	u32 xRows[ofX], wRows[ofW]; // in chunks from there
	i32 rows; // of x from its first one on
	i32 left; // numbers in rows of w from its chunk on
	i32 to;   // its place in a step
};

template <typename T> DEVICE void beginX(Copies<T>& c, const Params& p, const Block& block) {
	const i32 row = threadIdx.x / c.chunks, chunk = threadIdx.x % c.chunks;
	c.to = at<T::step>(row, chunk);
	c.xFrom = (const u8*)(p.x + block.from + chunk * 8);
	c.rows = block.count - row;
#pragma unroll
	for (i32 i = 0; i < c.ofX; i++) c.xRows[i] = u32(placeOf(p, block, product::smaller(row + i * c.each, block.count - 1)).source) * u32(p.stride / 8);
}
template <typename T> DEVICE void beginW(Copies<T>& c, const Params& p, const Block& block) {
	const i32 row = threadIdx.x / c.chunks, chunk = threadIdx.x % c.chunks, stride = i32(rowNumbers(F16, p.w.cols));
	c.wFrom = (weightRow(p, T::columns, row).up ? p.up : p.w.data) + block.weights + (block.from + chunk * 8) * 2;
	c.left = stride - block.from - chunk * 8;
#pragma unroll
	for (i32 i = 0; i < c.ofW; i++) c.wRows[i] = u32(product::smaller(weightRow(p, T::columns, row + i * c.each).row, p.w.rows - 1)) * u32(stride / 8);
}

// copyX and copyW copy to a step those rows whose numbers are from first on, before end.
template <typename T> DEVICE void copyX(const Copies<T>& c, u8* step, i32 first, i32 end) {
#pragma unroll
	for (i32 i = 0; i < c.ofX; i++)
		if (i >= first && i < end) copyAsync16(step + c.to + i * c.each * T::step * 2, c.xFrom + u64(c.xRows[i]) * 16, i * c.each < c.rows);
}
template <typename T> DEVICE void copyW(const Copies<T>& c, u8* step, i32 first, i32 end) {
#pragma unroll
	for (i32 i = 0; i < c.ofW; i++)
		if (i >= first && i < end) copyAsync16(step + c.to + i * c.each * T::step * 2, c.wFrom + (c.left > 0 ? i64(c.wRows[i]) * 16 : i64(c.left) * 2 - 16), c.left > 0);
}
// next has c copy the next step.
template <typename T> DEVICE void next(Copies<T>& c) { c.xFrom += T::step * 2, c.wFrom += T::step * 2, c.left -= T::step; }

// finish makes y, or parts of sums for addParts, of a thread's sums: of each 16 rows and 8 columns from rowAt and columnAt on
// what mmaBF16's d has. The tile goes to shared memory, permuted such that 16 lanes write to different banks, and on in whole rows.
template <typename T, i32 down, i32 across> DEVICE void finish(const Params& p, const Block& block, const f32 (&sums)[down][across][4], i32 rowAt, i32 columnAt) {
	const i32 thread = threadIdx.x, lane = thread % 32;
	f32* const tile = (f32*)dynamicShared();
	const auto in = [&](i32 row, i32 column) __attribute__((always_inline)) { return row * T::columns + (column ^ (row & 3) * 8); };
	barrier(); // nobody reads the last step any more, and no copies are on their way
#pragma unroll
	for (i32 i = 0; i < down; i++)
#pragma unroll
		for (i32 h = 0; h < 4; h += 2)
#pragma unroll
			for (i32 j = 0; j < across; j++)
				*(f32x2*)(tile + in(rowAt + i * 16 + lane / 4 + h * 4, columnAt + j * 8 + lane % 4 * 2)) = {sums[i][j][h], sums[i][j][h + 1]};
	barrier();
	const i32 width = p.gate == product::NoGate || p.partial ? T::columns : T::columns / 2; // of y
#pragma unroll 1
	for (i32 id = thread * 4; id < T::rows * width; id += T::threads * 4) {
		const i32 row = id / width, column = id % width;
		const Place place = placeOf(p, block, row);
		if (place.source < 0) break; // the rest has none either
		const f32 scale = p.xScales ? p.xScales[place.source] : 1;
		const f32x4 a = loadf4(tile + in(row, width == T::columns ? column : column / 8 * 16 + column % 8));
		f32 v[4] = {a.x * scale, a.y * scale, a.z * scale, a.w * scale};
		if (p.partial) {
			f32* to = p.partial + (i64(blockIdx.z) * p.rows + place.target) * (gridDim.y * T::columns) + i64(blockIdx.y) * T::columns + column;
			store128(to, {f32ToBits(v[0]), f32ToBits(v[1]), f32ToBits(v[2]), f32ToBits(v[3])});
			continue;
		}
		if (p.gate != product::NoGate) {
			const f32x4 b = loadf4(tile + in(row, column / 8 * 16 + 8 + column % 8));
			const f32 up[4] = {b.x * scale, b.y * scale, b.z * scale, b.w * scale};
#pragma unroll
			for (i32 i = 0; i < 4; i++) v[i] = product::gated(p.gate, v[i], up[i]);
		}
		product::put(p, i64(place.target) * p.yStride, p.w.rows, i32(blockIdx.y) * width + column, v, 4);
	}
}

// Sums of a thread begin with 0.
template <i32 down, i32 across> DEVICE void clear(f32 (&sums)[down][across][4]) {
#pragma unroll
	for (i32 i = 0; i < down; i++)
#pragma unroll
		for (i32 j = 0; j < across; j++)
#pragma unroll
			for (i32 k = 0; k < 4; k++) sums[i][j][k] = 0;
}

// addTo adds the products of 16 rows and 16 columns, by 16 of x and w.
template <i32 F> DEVICE void addTo(f32 (&first)[4], f32 (&second)[4], const u32 (&a)[4], const u32 (&b)[4]) {
	const u32 left[2] = {b[0], b[1]}, right[2] = {b[2], b[3]};
	if constexpr (F == F16) {
		mmaF16(first, a, left);
		mmaF16(second, a, right);
	} else {
		mmaBF16(first, a, left);
		mmaBF16(second, a, right);
	}
}

// multiply by weights of 16 bits, F16 or BF16. What a warp multiplies next it reads from shared memory before: so it has products
// to begin while it waits.
template <i32 F, typename T> DEVICE void multiply(const Params& p) {
	constexpr i32 xBytes = T::rows * T::step * 2, wBytes = T::columns * T::step * 2, bytes = xBytes + wBytes;
	constexpr i32 down = T::warpRows / 16, across = T::warpColumns / 16, turns = T::step / 16;
	u8* const shared = dynamicShared();
	const i32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
	Block block;
	if (!product::blockOf(p, T::rows, p.w.cols, block)) return;
	const i32 steps = (block.to - block.from + T::step - 1) / T::step;
	Copies<T> copies;
	beginX(copies, p, block);
	beginW(copies, p, block);
	i32 filling = 0, reading = 0; // where steps are in shared memory
	const auto after = [](i32 at) __attribute__((always_inline)) { return at == (T::stages - 1) * bytes ? 0 : at + bytes; };
	const auto copied = [&]() __attribute__((always_inline)) {
		commitAsync();
		next(copies);
		filling = after(filling);
	};
#pragma unroll
	for (i32 s = 0; s < T::stages - 1; s++) {
		if (s < steps) copyX(copies, shared + filling, 0, copies.ofX), copyW(copies, shared + filling + xBytes, 0, copies.ofW);
		copied();
	}

	const i32 rowAt = warp / T::across * T::warpRows, columnAt = warp % T::across * T::warpColumns;
	const i32 xRead = at<T::step>(rowAt + lane % 16, lane / 16), wRead = xBytes + at<T::step>(columnAt + lane % 8 + lane / 16 * 8, lane / 8 % 2);
	f32 sums[down][across * 2][4];
	clear(sums);
	u32 a[2][down][4], b[2][across][4];
	const auto read = [&](i32 to, i32 turn) __attribute__((always_inline)) {
#pragma unroll
		for (i32 i = 0; i < down; i++) ldmatrix4(a[to][i], shared + reading + (xRead ^ turn * 32) + i * 16 * T::step * 2);
#pragma unroll
		for (i32 j = 0; j < across; j++) ldmatrix4(b[to][j], shared + reading + (wRead ^ turn * 32) + j * 16 * T::step * 2);
	};
	waitAsync<T::stages - 2>();
	barrier();
	read(0, 0);
#pragma unroll 1
	for (i32 s = 0; s < steps; s++) {
#pragma unroll
		for (i32 turn = 0; turn < turns; turn++) {
			if (turn == turns - 1) {
				waitAsync<T::stages - 2>();
				barrier(); // step s+1 is there, and nobody reads step s any more, whose place the next copies take
				reading = after(reading);
			}
			read((turn + 1) % 2, (turn + 1) % turns);
			if (turn < turns - 1 && s + T::stages - 1 < steps) {
				constexpr i32 xPart = (copies.ofX + turns - 2) / (turns - 1), wPart = (copies.ofW + turns - 2) / (turns - 1);
				copyX(copies, shared + filling, turn * xPart, (turn + 1) * xPart);
				copyW(copies, shared + filling + xBytes, turn * wPart, (turn + 1) * wPart);
			}
			if (turn == turns - 2) copied();
#pragma unroll
			for (i32 j = 0; j < across; j++)
#pragma unroll
				for (i32 i = 0; i < down; i++) addTo<F>(sums[i][j * 2], sums[i][j * 2 + 1], a[turn % 2][i], b[turn % 2][j]);
		}
	}
	finish<T>(p, block, sums, rowAt, columnAt);
}

struct PartsParams {
	f32* y;             // [rows, yStride]
	const f32* partial; // [splits, rows, width]
	const f32 *bias, *residual;
	i32 splits, rows, width, columns, yStride, gate; // columns of y
};

struct GroupParams {
	const f32* route; // [rows, 2*topK] experts' numbers, then shares
	i32* list;        // [rows*topK]
	i32* tiles;       // [most, 4]
	i32 pairs, topK, experts, tileRows, most, pad;
};

} // namespace matmul

// The bounds, which no block has, keep registers to what lets a processor have several blocks, two of the largest tiles: one of
// them multiplies while another one waits or writes.
#define MATMUL(format) \
	KERNEL(matmul##format##t32, matmul::Params, 512) { matmul::multiply<quant::format, matmul::Tile32>(p); } \
	KERNEL(matmul##format##t64, matmul::Params, 512) { matmul::multiply<quant::format, matmul::Tile64>(p); } \
	KERNEL(matmul##format##t128, matmul::Params, 256) { matmul::multiply<quant::format, matmul::Tile128>(p); }
MATMUL(F16)
MATMUL(BF16)
#undef MATMUL

// matmulF32 multiplies numbers as they are, each product and sum rounded once: tiles of 64 by 64, 16 columns of x and
// w a step. A thread has 4 rows, and of these two columns of y and the two that are 8 further.
KERNEL(matmulF32, matmul::Params, 256) {
	using namespace matmul;
	SHARED(f32, xs, [16][68]);
	SHARED(f32, ws, [16][68]);
	Block block;
	if (!product::blockOf(p, 64, p.w.cols, block)) return;
	const i32 thread = threadIdx.x, cols = p.w.cols;
	const i32 row = thread / 4, k4 = thread % 4 * 4; // that this thread copies
	const i32 source = placeOf(p, block, row).source;
	const WeightRow from = weightRow(p, 64, row);
	const f32* const x = source < 0 ? nullptr : (const f32*)p.x + i64(source) * cols;
	const f32* const w = from.row >= p.w.rows ? nullptr : (const f32*)((from.up ? p.up : p.w.data) + block.weights) + from.row * rowNumbers(F32, cols);
	const auto load = [&](f32 (&v)[4], const f32* of, i32 k) __attribute__((always_inline)) {
		if (of && cols % 4 == 0 && k < block.to) {
			const f32x4 four = loadf4(of + k);
			v[0] = four.x, v[1] = four.y, v[2] = four.z, v[3] = four.w;
			return;
		}
#pragma unroll
		for (i32 i = 0; i < 4; i++) v[i] = of && k + i < block.to ? of[k + i] : 0;
	};
	const i32 down = thread / 16 * 4, across = thread % 16 / 4 * 16 + thread % 4 * 2;

	f32 sums[4][4], left[4], right[4];
#pragma unroll
	for (i32 i = 0; i < 16; i++) sums[i / 4][i % 4] = 0;
	load(left, x, block.from + k4);
	load(right, w, block.from + k4);
#pragma unroll 1
	for (i32 k = block.from; k < block.to; k += 16) {
		barrier(); // nobody reads the last step any more
#pragma unroll
		for (i32 i = 0; i < 4; i++) xs[k4 + i][row] = left[i], ws[k4 + i][row] = right[i];
		barrier();
		load(left, x, k + 16 + k4); // the next step's, while this one is multiplied
		load(right, w, k + 16 + k4);
#pragma unroll
		for (i32 i = 0; i < 16; i++) {
			const f32x4 a = loadf4(&xs[i][down]);
			const f32x2 b = *(const f32x2*)&ws[i][across], c = *(const f32x2*)&ws[i][across + 8];
			const f32 of[4] = {a.x, a.y, a.z, a.w}, by[4] = {b.x, b.y, c.x, c.y};
#pragma unroll
			for (i32 j = 0; j < 16; j++) sums[j / 4][j % 4] = fmaf(of[j / 4], by[j % 4], sums[j / 4][j % 4]);
		}
	}
#pragma unroll
	for (i32 i = 0; i < 4; i++) {
		const Place to = placeOf(p, block, down + i);
		if (to.source < 0) continue;
		const f32(&v)[4] = sums[i];
		if (p.partial) {
			f32* at = p.partial + (i64(blockIdx.z) * p.rows + to.target) * (gridDim.y * 64) + i64(blockIdx.y) * 64 + across;
			*(f32x2*)at = {v[0], v[1]};
			*(f32x2*)(at + 8) = {v[2], v[3]};
		} else if (p.gate == product::NoGate) {
			f32 first[4] = {v[0], v[1], 0, 0}, last[4] = {v[2], v[3], 0, 0};
			product::put(p, i64(to.target) * p.yStride, p.w.rows, i32(blockIdx.y) * 64 + across, first, 2);
			product::put(p, i64(to.target) * p.yStride, p.w.rows, i32(blockIdx.y) * 64 + across + 8, last, 2);
		} else {
			f32 both[4] = {product::gated(p.gate, v[0], v[2]), product::gated(p.gate, v[1], v[3]), 0, 0};
			product::put(p, i64(to.target) * p.yStride, p.w.rows, i32(blockIdx.y) * 32 + across / 16 * 8 + across % 8, both, 2);
		}
	}
}

// addParts adds the parts of y in order, which blocks with some of the columns have made.
KERNEL(addParts, matmul::PartsParams, 256) {
	const i32 column = blockIdx.x * 256 + threadIdx.x, row = blockIdx.y;
	if (column >= p.columns) return;
	const i32 at = p.gate == product::NoGate ? column : column / 8 * 16 + column % 8;
	f32 sum = 0, up = 0;
	for (i32 s = 0; s < p.splits; s++) {
		const f32* part = p.partial + (i64(s) * p.rows + row) * p.width + at;
		sum += part[0];
		if (p.gate != product::NoGate) up += part[8];
	}
	if (p.gate != product::NoGate) sum = product::gated(p.gate, sum, up);
	const i64 to = i64(row) * p.yStride + column;
	if (p.bias) sum += p.bias[column];
	if (p.residual) sum += p.residual[to];
	p.y[to] = sum;
}

// groupRows lists the pairs of a row and one of its experts by expert, those of an expert ascending, and divides them
// into tiles; tiles that are not needed have no rows. One block; a warp finds an expert's pairs, 32 at a time.
KERNEL(groupRows, matmul::GroupParams, 1024) {
	i32* const begins = (i32*)dynamicShared(); // [experts+1] in list; counts first
	i32* const tileBegins = begins + p.experts + 1; // [experts+1]
	const i32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
	for (i32 e = warp; e < p.experts; e += 32) {
		i32 count = 0;
		for (i32 i = 0; i < p.pairs; i += 32) {
			const bool its = i + lane < p.pairs && product::expertOf(p.route, p.topK, p.experts, i + lane) == e;
			count += __builtin_popcount(ballot(its));
		}
		if (lane == 0) begins[e] = count;
	}
	barrier();
	if (threadIdx.x == 0) {
		i32 pairs = 0, tiles = 0;
		for (i32 e = 0; e <= p.experts; e++) {
			const i32 count = e < p.experts ? begins[e] : 0;
			begins[e] = pairs, tileBegins[e] = tiles;
			pairs += count, tiles += (count + p.tileRows - 1) / p.tileRows;
		}
	}
	barrier();
	for (i32 e = warp; e < p.experts; e += 32) {
		i32 next = begins[e];
		for (i32 i = 0; i < p.pairs; i += 32) {
			const bool its = i + lane < p.pairs && product::expertOf(p.route, p.topK, p.experts, i + lane) == e;
			const u32 all = ballot(its);
			if (its) p.list[next + __builtin_popcount(all & ((1u << lane) - 1))] = i + lane;
			next += __builtin_popcount(all);
		}
	}
	for (i32 e = threadIdx.x; e < p.experts; e += 1024) {
		for (i32 t = tileBegins[e]; t < tileBegins[e + 1]; t++) {
			const i32 first = begins[e] + (t - tileBegins[e]) * p.tileRows;
			i32* tile = p.tiles + 4 * t;
			tile[0] = e, tile[1] = first, tile[2] = product::smaller(p.tileRows, begins[e + 1] - first), tile[3] = 0;
		}
	}
	for (i32 t = tileBegins[p.experts] + threadIdx.x; t < p.most; t += 1024) {
		i32* tile = p.tiles + 4 * t;
		tile[0] = tile[1] = tile[2] = tile[3] = 0;
	}
}
