// matvec.cu: y = x wᵀ of at most eight rows of x, at the speed of memory: every weight is read once, for all rows.
// A warp has four rows of weights (or two), of which each lane reads 16 bytes at a time; where there are few rows, split
// warps share them and take turns along the columns. Sums have a fixed order that depends on the sizes of the
// matrices that run together and on the device's processors, not on how many rows x has.
//
// Weights F32, F16 and BF16 are multiplied by the numbers of x as they are: each product and sum is rounded once
// (fmaf). The others are multiplied by bytes (quantize in activations.cu), four products an instruction, exactly;
// the sums of 32 columns (of 16 in Q8_0 and Q6_K) are scaled and added in f32.
//
// Bandwidth: a warp has 2 KiB on the way (of two rows, 1) while it adds those before; 16 warps on a processor are
// 32 KiB, where 600 ns at 3.3 TB/s want 15.
#include "bytes.cuh"
#include "product.cuh"

namespace matvec {
using namespace quant;

constexpr i32 warps = 8; // of a block

// rowsOf a warp, of weights: with more rows of x, fewer bytes at a time are in registers.
DEVICE constexpr i32 rowsOf(i32 f, i32 n) { return n >= 2 && !isFloat(f) ? 2 : 4; }

// Part is a matrix that x is multiplied by.
struct Part {
	const u8* w; // in device layout
	f32* y;      // [n, stride]
	const f32 *bias, *residual; // null, [rows]; null, as y
	i32 rows, stride;
	i32 blocks, block; // of the grid; the kernel's own note
};

struct Params {
	const void* x;        // [n, cols]: f32, or signed bytes
	const f32x2* xScales; // of bytes, [n, cols/32]
	Part parts[3];
	const f32* route;     // null, or experts' numbers: then blockIdx.y is a pair of a row and one of its experts
	i64 expertBytes;      // from an expert's weights to the next one's
	i32 n, cols, split;
	i32 gate;             // parts[0] and [1] are gate and up of the same shape; y is that of parts[0]
	i32 topK, experts, divide; // a pair's row of x is its number divided by divide
	i32 passes;           // of a block along the rows; 1 of more than two rows of x
	bytes::Form bytes;    // of y too: then a block makes 32 of its columns
};

// Rows of weights of a warp: of a the first half, of b the second, which is a too where there is no gate.
template <i32 R> struct Rows {
	const u8 *a, *b;
	i32 rows; // of the matrix
	i32 at[R];
};

DEVICE u32 word(const u32x4& v, i32 i) { return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w; }

// addFloats adds 16 bytes of each row of w, from column on, times the rows of x.
template <i32 F, i32 R, i32 N> DEVICE void addFloats(f32 (&sums)[R * N], const u32x4 (&w)[R], const f32* x, const i32 (&xAt)[N], i32 column) {
	constexpr i32 words = F == F32 ? 4 : 2; // of four columns
#pragma unroll
	for (i32 part = 0; part < 4; part += words) {
		f32 v[R][4];
#pragma unroll
		for (i32 r = 0; r < R; r++)
#pragma unroll
			for (i32 i = 0; i < 4; i++) {
				const u32 bits = word(w[r], part + i * words / 4);
				v[r][i] = F == F32 ? bitsToF32(bits) : F == F16 ? fromHalf(u16(bits >> i % 2 * 16)) : bitsToF32(i % 2 ? bits & 0xffff0000 : bits << 16);
			}
#pragma unroll
		for (i32 n = 0; n < N; n++) {
			const f32x4 m = loadf4(x + xAt[n] + column + part / words * 4);
#pragma unroll
			for (i32 r = 0; r < R; r++) {
				f32& sum = sums[r * N + n];
				sum = fmaf(v[r][0], m.x, sum);
				sum = fmaf(v[r][1], m.y, sum);
				sum = fmaf(v[r][2], m.z, sum);
				sum = fmaf(v[r][3], m.w, sum);
			}
		}
	}
}

template <i32 F, i32 R, i32 N> DEVICE void floats(f32 (&sums)[R * N], const Params& p, const Rows<R>& rows, const f32* x, i32 from, i32 step) {
	constexpr i32 numbers = F == F32 ? 4 : 8; // of 16 bytes
	const i32 stride = (p.cols + numbers - 1) / numbers;
	u32 at[R]; // in 16 bytes
	i32 xAt[N];
#pragma unroll
	for (i32 r = 0; r < R; r++) at[r] = u32(rows.at[r]) * u32(stride);
#pragma unroll
	for (i32 n = 0; n < N; n++) xAt[n] = N == 1 ? 0 : product::smaller(n, p.n - 1) * p.cols;
	if (p.cols % numbers != 0) { // rows of x are not aligned: a column at a time
		awaitEarlier();
#pragma unroll 1
		for (i32 c = from; c < p.cols; c += step) {
			f32 v[R];
#pragma unroll
			for (i32 r = 0; r < R; r++) {
				const u8* w = (r < R / 2 ? rows.a : rows.b) + u64(at[r]) * 16;
				v[r] = F == F32 ? ((const f32*)w)[c] : F == F16 ? fromHalf(((const u16*)w)[c]) : fromBF16(((const u16*)w)[c]);
			}
#pragma unroll
			for (i32 n = 0; n < N; n++) {
				const f32 m = x[xAt[n] + c];
#pragma unroll
				for (i32 r = 0; r < R; r++) sums[r * N + n] = fmaf(v[r], m, sums[r * N + n]);
			}
		}
		return;
	}
	const auto load = [&](u32x4 (&to)[R], i32 line) __attribute__((always_inline)) {
#pragma unroll
		for (i32 r = 0; r < R; r++) to[r] = loadOnce((r < R / 2 ? rows.a : rows.b) + u64(at[r] + line) * 16);
	};
	// The next turn's loads are on the way while this one is added. That they are wanted beyond the end of a turn keeps
	// the assembler from moving each to where it is used, and waiting for one after the other.
	u32x4 v[R], next[R];
	// The first are on the way while earlier kernels end. (load128 may be moved to where its result is used, beyond awaitEarlier.)
#pragma unroll
	for (i32 r = 0; r < R; r++) v[r] = loadu4((r < R / 2 ? rows.a : rows.b) + u64(at[r] + product::smaller(from, stride - 1)) * 16);
	awaitEarlier();
#pragma unroll 1
	for (i32 c = from; c < stride; c += step) {
		load(next, product::smaller(c + step, stride - 1));
		addFloats<F, R, N>(sums, v, x, xAt, c * numbers);
#pragma unroll
		for (i32 r = 0; r < R; r++) v[r] = next[r];
	}
}

// Raw is what a lane loads of a row: 16 columns of Q8_0, 32 of the others.
struct Raw {
	u32x4 bits;
	u32x2 above;
	u32 scale, block;
};

// row is its number of groups from the start; the matrix is beyond that of p by so many bytes.
template <i32 F, i32 N, bool First> DEVICE Raw loadRaw(Planes p, i64 beyond, i64 row, i32 c) {
	p.bits += beyond, p.above += beyond, p.scales += beyond, p.blocks += beyond;
	const i64 group = row + (F == Q8_0 ? c / 2 : c);
	Raw raw;
	const u8* bits = p.bits + (F == Q8_0 ? row * 32 + i64(c) * 16 : group * 16);
	raw.bits = First ? loadu4(bits) : N == 1 ? load128(bits) : loadOnce(bits); // of one row of x, loadOnce took 2 % longer
	raw.above = aboveWords(F, p, group);
	raw.scale = scaleWord(F, p, group);
	raw.block = blockWord(F, p, group / 8);
	return raw;
}

// addBytes adds what was loaded, times the same columns of x, of whose rows half are so many bytes.
template <i32 F, i32 R, i32 N> DEVICE void addBytes(f32 (&sums)[R * N], const Raw (&raw)[R], const i8* x, const f32x2* xScales, const i32 (&xAt)[N], i32 half, i32 c) {
	constexpr i32 words = F == Q8_0 ? 4 : 8;
	i32 w[R][words];
	f32 low[R], high[R], least[R];
#pragma unroll
	for (i32 r = 0; r < R; r++) {
		const Scale s = scaleOf(F, raw[r].scale, raw[r].block);
		low[r] = s.low, high[r] = s.high;
		least[r] = hasLeast(F) ? s.least : s.low * -f32(offset(F)); // of Q4_0, Q5_0: exact
#pragma unroll
		for (i32 i = 0; i < 4; i++) {
			const u32 bits = word(raw[r].bits, i);
			if (F == Q8_0) {
				w[r][i] = i32(bits);
				continue;
			}
			u32 a = lowBits(F, bits, raw[r].above, i), b = highBits(F, bits, raw[r].above, i);
			if (F == Q6_K) a = ((a | 0x80808080) - 0x20202020) ^ 0x80808080, b = ((b | 0x80808080) - 0x20202020) ^ 0x80808080; // less 32, signed
			w[r][i] = i32(a), w[r][(i + 4) % words] = i32(b);
		}
	}
#pragma unroll
	for (i32 n = 0; n < N; n++) {
		const i8* from = x + xAt[n] + (F == Q8_0 ? c / 2 * 16 + c % 2 * half : c * 16);
		const u32x4 a = loadu4(from), b = F == Q8_0 ? a : loadu4(from + half);
		const f32x2 s = loadf2(xScales + (xAt[n] / 32 + (F == Q8_0 ? c / 2 : c)));
		const f32 scale = s.x, scaledSum = s.y;
#pragma unroll
		for (i32 r = 0; r < R; r++) {
			i32 first = 0, last = 0;
#pragma unroll
			for (i32 i = 0; i < 4; i++) first = dp4a(w[r][i], i32(word(a, i)), first);
			if (F != Q8_0) {
				if (F != Q6_K) last = first;
#pragma unroll
				for (i32 i = 0; i < 4; i++) last = dp4a(w[r][(i + 4) % words], i32(word(b, i)), last);
			}
			f32& sum = sums[r * N + n];
			if (F == Q8_0 || F == Q6_K) sum = fmaf(f32(first), low[r] * scale, sum);
			if (F != Q8_0) sum = fmaf(f32(last), high[r] * scale, sum);
			if (F != Q8_0 && F != Q6_K) sum = fmaf(least[r], scaledSum, sum);
		}
	}
}

template <i32 F, i32 R, i32 N> DEVICE void bytes(f32 (&sums)[R * N], const Params& p, const Rows<R>& rows, const i8* x, const f32x2* xScales, i32 from, i32 step) {
	const i32 groups = p.cols / 32, units = F == Q8_0 ? groups * 2 : groups;
	const Planes planes = planesOf(rows.a, F, rows.rows, p.cols);
	const i64 beyond = rows.b - rows.a;
	i32 at[R], xAt[N];
#pragma unroll
	for (i32 r = 0; r < R; r++) at[r] = rows.at[r] * groups;
#pragma unroll
	for (i32 n = 0; n < N; n++) xAt[n] = N == 1 ? 0 : product::smaller(n, p.n - 1) * p.cols;
	Raw raw[R], next[R];
#pragma unroll
	for (i32 r = 0; r < R; r++) raw[r] = loadRaw<F, N, true>(planes, r < R / 2 ? 0 : beyond, at[r], product::smaller(from, units - 1)); // as floats does
	awaitEarlier();
#pragma unroll 1
	for (i32 c = from; c < units; c += step) {
#pragma unroll
		for (i32 r = 0; r < R; r++) next[r] = loadRaw<F, N, false>(planes, r < R / 2 ? 0 : beyond, at[r], product::smaller(c + step, units - 1));
		addBytes<F, R, N>(sums, raw, x, xScales, xAt, p.cols / 2, c);
#pragma unroll
		for (i32 r = 0; r < R; r++) raw[r] = next[r];
	}
}

// fold sums V numbers over a warp with few shuffles: a lane gives half of its numbers away for the other half of
// another's, Mask lanes from it. Then v[0] of lane l is number l / (32/V). (Recursive, so that v stays in registers.)
template <i32 V, i32 Mask> DEVICE void fold(f32* v, i32 lane) {
	if constexpr (V > 1) {
		const bool upper = lane & Mask;
#pragma unroll
		for (i32 i = 0; i < V / 2; i++) {
			const f32 first = v[i], last = v[i + V / 2]; // loaded before the choice: an address that is chosen is memory
			v[i] = (upper ? last : first) + shuffleXor(upper ? first : last, Mask);
		}
		fold<V / 2, Mask / 2>(v, lane);
	} else if constexpr (Mask > 0) {
		v[0] += shuffleXor(v[0], Mask);
		fold<1, Mask / 2>(v, lane);
	}
}

// end adds the sums of a pass's teams of warps up, and writes them.
template <i32 R, i32 N> DEVICE void end(const Params& p, const Part& to, const f32* totals, f32* made, i32 pass, i32 each) {
	constexpr i32 V = R * N;
	const i32 teams = warps / p.split, team = threadIdx.x / V, r = threadIdx.x % V / N, n = threadIdx.x % N;
	const i32 inBlock = (pass * teams + team) * each + r, row = to.block * (N <= 2 ? p.passes : 1) * teams * each + inBlock;
	if (team >= teams || r >= each || row >= to.rows || n >= p.n) return;
	f32 total = 0, up = 0;
	for (i32 s = 0; s < p.split; s++) {
		const f32* of = totals + (team * p.split + s) * V;
		total += of[r * N + n];
		if (each != R) up += of[(r + R / 2) * N + n];
	}
	if (each != R) total = product::gated(p.gate, total, up);
	const i64 at = (p.route ? i64(blockIdx.y) : n) * to.stride + row;
	if (to.bias) total += to.bias[row];
	if (to.residual) total += to.residual[at];
	to.y[at] = total;
	if (N <= 2 && p.bytes.q) made[n * 32 + inBlock] = total;
}

template <i32 F, i32 N> DEVICE void multiply(const Params& p) {
	constexpr i32 R = rowsOf(F, N), V = R * N;
	SHARED(f32, totals, [warps * V]);
	SHARED(f32, made, [32 * (N <= 2 ? N : 1)]); // columns of y as bytes
	SHARED(Part, chosen, [1]); // for the end: where sums are made, every register counts
	const i32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;

	Part part = p.parts[0];
	i32 block = blockIdx.x;
	const u8 *a = part.w, *b = p.parts[1].w;
	if (p.gate == product::NoGate) {
		if (block >= part.blocks) {
			block -= part.blocks;
			part = p.parts[1];
			if (block >= part.blocks) {
				block -= part.blocks;
				part = p.parts[2];
			}
		}
		a = b = part.w;
	}
	part.block = block;
	if (threadIdx.x == 0) chosen[0] = part;
	i64 xRow = 0;
	letNextStart();
	if (p.route) {
		awaitEarlier();
		const i64 expert = product::expertOf(p.route, p.topK, p.experts, blockIdx.y);
		a += expert * p.expertBytes, b += expert * p.expertBytes;
		xRow = blockIdx.y / p.divide;
	}

	const i32 each = p.gate == product::NoGate ? R : R / 2; // rows of y of a team of warps
	const i32 teams = warps / p.split, passes = N <= 2 ? p.passes : 1;
#pragma unroll 1
	for (i32 pass = 0; pass < passes; pass++) {
		const i32 first = ((block * passes + pass) * teams + warp / p.split) * each;
		f32 sums[V];
#pragma unroll
		for (i32 i = 0; i < V; i++) sums[i] = 0;
		if (first < part.rows) {
			Rows<R> rows = {a, b, part.rows, {}};
#pragma unroll
			for (i32 r = 0; r < R; r++) rows.at[r] = product::smaller(first + (each == R ? r : r % (R / 2)), part.rows - 1);
			const i32 from = warp % p.split * 32 + lane, step = p.split * 32;
			if constexpr (isFloat(F)) floats<F, R, N>(sums, p, rows, (const f32*)p.x + xRow * p.cols, from, step);
			else bytes<F, R, N>(sums, p, rows, (const i8*)p.x + xRow * p.cols, p.xScales + xRow * (p.cols / 32), from, step);
		} else {
			awaitEarlier();
		}
		fold<V, 16>(sums, lane);
		if (lane % (32 / V) == 0) totals[warp * V + lane / (32 / V)] = sums[0];
		barrier();
		end<R, N>(p, chosen[0], totals, made, pass, each);
		barrier();
	}
	if (N <= 2 && p.bytes.q && threadIdx.x < (8 * N + 31) / 32 * 32) {
		const i32 n = threadIdx.x / 8, at = threadIdx.x % 8 * 4;
		f32 v[4];
#pragma unroll
		for (i32 i = 0; i < 4; i++) v[i] = n < N ? made[n * 32 + at + i] : 0;
		bytes::put(p.bytes, n, chosen[0].stride, block * 32 + at, v, n < p.n);
	}
}

} // namespace matvec

// matvec…xN: up to N rows of x. Blocks have 256 threads; the bounds say how many registers the compiler may take: with
// 512, half of them, so that two blocks are on a processor. Which ones do without spills, registers.txt tells.
#define MATVEC4(format, bound1, bound2, bound4) \
	KERNEL_EARLY(matvec##format##x1, matvec::Params, bound1) { matvec::multiply<quant::format, 1>(p); } \
	KERNEL_EARLY(matvec##format##x2, matvec::Params, bound2) { matvec::multiply<quant::format, 2>(p); } \
	KERNEL_EARLY(matvec##format##x4, matvec::Params, bound4) { matvec::multiply<quant::format, 4>(p); }
#define MATVEC(format, bound1, bound2, bound4, bound8) \
	MATVEC4(format, bound1, bound2, bound4) \
	KERNEL_EARLY(matvec##format##x8, matvec::Params, bound8) { matvec::multiply<quant::format, 8>(p); }
MATVEC4(F16, 256, 1024, 384)
MATVEC4(BF16, 256, 1024, 384)
MATVEC(F32, 256, 512, 384, 256)
MATVEC4(Q8_0, 256, 512, 768)
MATVEC4(Q4_0, 256, 768, 768)
MATVEC4(Q4_1, 512, 768, 768)
MATVEC4(Q5_0, 256, 768, 768)
MATVEC4(Q5_1, 256, 768, 768)
MATVEC4(Q4_K, 256, 768, 768)
MATVEC4(Q5_K, 256, 512, 512)
MATVEC4(Q6_K, 256, 512, 512)
#undef MATVEC
#undef MATVEC4
