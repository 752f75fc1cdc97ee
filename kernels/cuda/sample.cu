// sample.cu: the next token of each row of logits, as runtime/sampling chooses it, so that logits stay on the
// device. sampleMost finds the largest of each slice of a row, sampleWeigh adds up weights by slice, and
// sampleChoose, a block a row, does the rest.
//
// A weight is exp((logit - largest) / temperature) in f64, and summed as a whole number of 2^-44ths: so no sum
// depends on its order, and no choice on how the work is divided. A vocabulary is at most 2^19 tokens.
#include "gpu.cuh"

namespace sample {

// Draw is how a row's token is drawn.
struct Draw {
	f64 uniform;     // in [0, 1)
	f64 temperature; // 0: the largest logit
	f64 topP;        // 0 or 1: all
	f64 minP;        // 0: all
	i32 topK;        // 0: all
	i32 mask;        // which row of masks; -1: all tokens are allowed
	i32 logprob;     // 1: Choice.sum is wanted
	i32 unused;
};

// Choice of a row.
struct Choice {
	i32 token;  // -1: no logit is a number above minus infinity; -2: none of those that are is allowed
	f32 logit;  // its
	f32 most;   // the largest logit, allowed or not
	i32 unused;
	f64 sum;    // of exp(logit - most) of all tokens
};

constexpr i32 SIZES = 736;  // of weights: eight to a power of two, to exp(-60)
constexpr i32 PART = 1024;  // logits whose weights are added up where they are drawn in the order of tokens
constexpr i32 PARTS = 512, SLICES = 64;
constexpr i32 LISTED = 8192; // candidates that shared memory holds

// Work on a row between the kernels.
struct Work {
	u64 sums[SIZES];   // weights of each size
	u64 parts[PARTS];  // weights of each part
	u64 whole;         // exp(logit - most) of all
	u64 allowed[SLICES], any[SLICES]; // Largest of each slice, of tokens that are allowed and of all
	u32 counts[SIZES]; // tokens of each size
};

struct Params {
	const f32* logits; // [rows, vocabulary]
	const Draw* draws; // [rows]
	const u32* masks;  // [any, maskWords]: bit i%32 of word i/32 allows token i
	Choice* choices;   // [rows]
	Work* work;        // [rows]
	i32 vocabulary, maskWords;
	i32 slice;         // logits of a slice, whole parts
	i32 unused;
};

DEVICE u64 bitsOf(f64 x) { return __builtin_bit_cast(u64, x); }

#ifdef ESTIBA_EMULATED
DEVICE u64 add(u64* p, u64 v) { return __atomic_fetch_add(p, v, __ATOMIC_RELAXED); }
#else
DEVICE u64 add(u64* p, u64 v) { return u64(__nvvm_atom_add_gen_ll((i64*)p, i64(v))); }
#endif

DEVICE u64 shuffleXor64(u64 v, u32 mask) { return shuffleXor(u32(v), mask) | u64(shuffleXor(u32(v >> 32), mask)) << 32; }
DEVICE u64 shuffle64(u64 v, u32 lane) { return shuffle(u32(v), lane) | u64(shuffle(u32(v >> 32), lane)) << 32; }
DEVICE u64 warpSum64(u64 v) {
	for (u32 far = 16; far > 0; far /= 2) v += shuffleXor64(v, far);
	return v;
}
DEVICE u64 warpMax64(u64 v) {
	for (u32 far = 16; far > 0; far /= 2) {
		const u64 other = shuffleXor64(v, far);
		v = other > v ? other : v;
	}
	return v;
}
// upTo is the sum of v of the lanes to this one.
DEVICE u64 upTo(u64 v) {
	const i32 lane = threadIdx.x % 32;
	for (i32 far = 1; far < 32; far *= 2) {
		const u64 other = shuffle64(v, u32(lane - far) & 31);
		if (lane >= far) v += other;
	}
	return v;
}
// blockSum64 gives all threads the sum. scratch is shared: [32].
DEVICE u64 blockSum64(u64 v, u64* scratch) {
	v = warpSum64(v);
	barrier(); // an earlier result may still be read
	if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = v;
	barrier();
	u64 sum = 0;
	for (u32 i = 0; i < blockDim.x / 32; i++) sum += scratch[i];
	return sum;
}

// ordered has numbers in their order, 0 and -0 as one; numberOf is its inverse.
DEVICE u32 ordered(f32 x) {
	const u32 b = x == 0 ? 0 : f32ToBits(x);
	return b >> 31 ? ~b : b | 0x80000000u;
}
DEVICE f32 numberOf(u32 o) { return bitsToF32(o >> 31 ? o & 0x7fffffff : ~o); }

// largest is 0 for what cannot be chosen; otherwise more for a larger logit, and for the lower token of equals.
DEVICE u64 largest(f32 x, i32 token) { return x > -infinity() ? u64(ordered(x)) << 32 | u32(~token) : 0; }
DEVICE f32 logitOf(u64 largest) { return numberOf(u32(largest >> 32)); }
DEVICE i32 tokenOf(u64 largest) { return i32(~u32(largest)); }

// place of a candidate: less for a larger logit, and for the lower token of equals. It has 51 bits.
constexpr int TOKEN = 19;
DEVICE u64 placeOf(f32 x, i32 token) { return u64(~ordered(x)) << TOKEN | u32(token); }
DEVICE f32 logitAt(u64 place) { return numberOf(~u32(place >> TOKEN)); }
DEVICE i32 tokenAt(u64 place) { return i32(place & ((1u << TOKEN) - 1)); }

// Row of logits to draw from.
struct Row {
	const f32* logits;
	const u32* mask; // null: all
	i32 vocabulary, words;
	f64 most, scale; // the largest, allowed one; scale: in 256ths of a power of two, by the temperature
};

DEVICE bool allows(const Row& r, i32 token) { return r.mask == nullptr || (token / 32 < r.words && r.mask[token / 32] >> (token % 32) & 1); }

// Weight of a logit: its power, in (0, 1], and its size, which is less for larger ones; -1 for next to nothing.
struct Weight {
	f64 power;
	i32 size;
};

// weigh does what kernels/cpu.Powers does: sizes are the same, powers to 2e-13 of themselves.
DEVICE Weight weigh(f32 x, f64 most, f64 scale) {
	const f64 z = (f64(x) - most) * scale;
	if (!(z > -60 * 1.4426950408889634074 * 256)) return f64(x) == most ? Weight{1, 0} : Weight{0, -1}; // 0 times an infinite scale
	const f64 magic = 6755399441055744.0; // 3<<51: added to a small number, it rounds it to a whole one
	const i32 n = i32(i64(bitsOf(z + magic) - bitsOf(magic))), power = (n + 128) >> 8;
	const f64 t = (z - power * 256) * (0.69314718055994530942 / 256);
	f64 e = 1.0 / 39916800;
	e = __builtin_fma(e, t, 1.0 / 3628800);
	e = __builtin_fma(e, t, 1.0 / 362880);
	e = __builtin_fma(e, t, 1.0 / 40320);
	e = __builtin_fma(e, t, 1.0 / 5040);
	e = __builtin_fma(e, t, 1.0 / 720);
	e = __builtin_fma(e, t, 1.0 / 120);
	e = __builtin_fma(e, t, 1.0 / 24);
	e = __builtin_fma(e, t, 1.0 / 6);
	e = __builtin_fma(e, t, 0.5);
	e = __builtin_fma(e, t, 1.0);
	e = __builtin_fma(e, t, 1.0);
	return {e * __builtin_bit_cast(f64, u64(1023 + power) << 52), -n >> 5};
}

constexpr f64 ONE = 17592186044416.0; // 2^44
DEVICE u64 fixed(f64 power) { return u64(power * ONE + 0.5); }

// A draw is without filters (in the order of tokens), or by topK or topP.
DEVICE bool byTopK(const Draw& d, i32 vocabulary) { return d.topK > 0 && d.topK < vocabulary; }
DEVICE bool byTopP(const Draw& d) { return d.topP > 0 && d.topP < 1; }

// part of sum that is a share: at least 1, at most sum.
DEVICE u64 shareOf(f64 share, u64 sum) {
	const f64 exact = share * f64(sum);
	u64 part = u64(exact);
	if (f64(part) < exact) part++;
	return part < 1 ? 1 : part > sum ? sum : part;
}
// where a uniform number falls in sum: below it.
DEVICE u64 drawn(f64 uniform, u64 sum) {
	const u64 at = u64(uniform * f64(sum));
	return at < sum ? at : sum - 1;
}

// The largest of the slices' numbers.
DEVICE u64 mostOf(const u64* slices, i32 n) {
	u64 most = 0;
	for (i32 i = threadIdx.x % 32; i < n; i += 32) most = slices[i] > most ? slices[i] : most;
	return warpMax64(most);
}

// passing says in which of n sums, added up from the first, the whole passes target, and how much is
// before it; the last if in none. All lanes of a warp take part and learn it.
DEVICE i32 passing(const u64* sums, i32 n, u64 target, u64& before) {
	const i32 lane = threadIdx.x % 32, each = (n + 31) / 32, from = lane * each < n ? lane * each : n, to = from + each < n ? from + each : n;
	u64 mine = 0;
	for (i32 i = from; i < to; i++) mine += sums[i];
	const u64 end = upTo(mine);
	const u32 past = ballot(end > target);
	const i32 owner = past != 0 ? __builtin_ctz(past) : (n - 1) / each;
	u64 at = end - mine;
	i32 found = from;
	if (lane == owner)
		while (found < to - 1 && at + sums[found] <= target) at += sums[found++];
	before = shuffle64(at, owner);
	return shuffle(found, owner);
}

// Room in shared memory of sampleChoose.
struct Room {
	u64 list[LISTED]; // places of candidates
	u64 sums[SIZES];
	u64 scratch[32];
	u64 found, before;
	u32 counts[256], listed;
	i32 at;
};

// Candidates are tokens of sizes to border: those of list, or else, where they are too many, those of the row.
// Of them count those to cut, and of those what is at least minP, or the best.
struct Candidates {
	Row row;
	i32 border;
	bool listed;
	i32 n; // of list, or of the vocabulary
	u64 cut, best; // places
	f64 minP;
};

// candidate i of c, if it counts.
DEVICE bool candidate(const Candidates& c, const Room& room, i32 i, u64& place, Weight& w) {
	if (c.listed) {
		place = room.list[i];
		w = weigh(logitAt(place), c.row.most, c.row.scale);
	} else {
		if (!allows(c.row, i)) return false;
		w = weigh(c.row.logits[i], c.row.most, c.row.scale);
		if (w.size < 0 || w.size > c.border) return false;
		place = placeOf(c.row.logits[i], i);
	}
	return place <= c.cut && (w.power >= c.minP || place == c.best);
}

// total weight of the candidates.
DEVICE u64 total(const Candidates& c, Room& room) {
	u64 sum = 0, place;
	Weight w;
	for (i32 i = threadIdx.x; i < c.n; i += blockDim.x)
		if (candidate(c, room, i, place, w)) sum += fixed(w.power);
	return blockSum64(sum, room.scratch);
}

// select is the place of the candidate at which the sum of the weights, or the number, of it and those before it
// passes target, which is below the sum of all. The order is that of places; with mixed, what is larger than the border's size
// comes before that, in the order of tokens. It descends by 8 bits of the order at a time.
DEVICE u64 select(const Candidates& c, Room& room, bool weights, bool mixed, u64 target) {
	u64 prefix = 0;
	for (i32 shift = 48;; shift -= 8) {
		barrier();
		for (i32 i = threadIdx.x; i < 256; i += blockDim.x) room.sums[i] = 0, room.counts[i] = 0;
		barrier();
		for (i32 i = threadIdx.x; i < c.n; i += blockDim.x) {
			u64 place;
			Weight w;
			if (!candidate(c, room, i, place, w)) continue;
			const u64 order = !mixed ? place : w.size < c.border ? u64(tokenAt(place)) : place | u64(1) << 51;
			if (order >> shift >> 8 != prefix) continue;
			add(&room.sums[order >> shift & 255], weights ? fixed(w.power) : 1);
			atomicAdd(&room.counts[order >> shift & 255], 1u);
		}
		barrier();
		if (threadIdx.x < 32) {
			u64 before;
			const i32 digit = passing(room.sums, 256, target, before);
			if (threadIdx.x == 0) room.at = digit, room.before = before;
		}
		barrier();
		prefix = prefix << 8 | u32(room.at);
		target -= room.before;
		if (room.counts[room.at] > 1 && shift > 0) continue;
		for (i32 i = threadIdx.x; i < c.n; i += blockDim.x) {
			u64 place;
			Weight w;
			if (!candidate(c, room, i, place, w)) continue;
			const u64 order = !mixed ? place : w.size < c.border ? u64(tokenAt(place)) : place | u64(1) << 51;
			if (order >> shift == prefix) room.found = place; // one does
		}
		barrier();
		return room.found;
	}
}

DEVICE Row rowOf(const Params& p, const Draw& d, i32 row) {
	return {p.logits + i64(row) * p.vocabulary, d.mask < 0 ? nullptr : p.masks + i64(d.mask) * p.maskWords, p.vocabulary, p.maskWords, 0, 0};
}
DEVICE void setMost(Row& r, const Draw& d, f32 most) { r.most = most, r.scale = 1.4426950408889634074 * 256 / d.temperature; }

// inOrder draws from all tokens that weigh at least minP, in their order, by the sums of parts.
DEVICE i32 inOrder(const Params& p, const Draw& d, const Row& r, const Work& work, i32 best, Room& room) {
	const i32 parts = (p.vocabulary + PART - 1) / PART;
	u64 sum = 0;
	for (i32 i = threadIdx.x; i < parts; i += blockDim.x) sum += work.parts[i];
	sum = blockSum64(sum, room.scratch);
	u64 target = drawn(d.uniform, sum);
	if (threadIdx.x < 32) {
		u64 before;
		const i32 part = passing(work.parts, parts, target, before);
		if (threadIdx.x == 0) room.at = part, room.before = before;
	}
	barrier();
	target -= room.before;
	const i32 from = room.at * PART + threadIdx.x * 2;
	u64 weights[2] = {0, 0};
#pragma unroll
	for (i32 i = 0; i < 2; i++) { // 512 threads have a part
		const i32 token = from + i;
		if (token >= p.vocabulary || !allows(r, token)) continue;
		const Weight w = weigh(r.logits[token], r.most, r.scale);
		if (w.power >= d.minP || token == best) weights[i] = fixed(w.power);
	}
	const u64 mine = weights[0] + weights[1], end = upTo(mine);
	if (threadIdx.x % 32 == 31) room.scratch[threadIdx.x / 32] = end;
	if (threadIdx.x == 0) room.found = u64(best);
	barrier();
	u64 before = end - mine;
	for (u32 i = 0; i < threadIdx.x / 32; i++) before += room.scratch[i];
	if (before <= target && target < before + mine) room.found = u64(target < before + weights[0] ? from : from + 1); // one thread's
	barrier();
	return i32(room.found);
}

// likeliest draws from what topK, then topP, then minP leave.
DEVICE i32 likeliest(const Params& p, const Draw& d, const Row& r, const Work& work, i32 best, Room& room) {
	const bool topK = byTopK(d, p.vocabulary), topP = byTopP(d);
	// The sizes to border have at least the tokens that count, and few more.
	u64 weights = 0, tokens = 0;
	for (i32 i = threadIdx.x; i < SIZES; i += blockDim.x) {
		weights += work.sums[i];
		tokens += work.counts[i];
		room.sums[i] = topK ? work.counts[i] : work.sums[i];
	}
	weights = blockSum64(weights, room.scratch);
	tokens = blockSum64(tokens, room.scratch);
	if (threadIdx.x < 32) {
		u64 before;
		const i32 border = passing(room.sums, SIZES, topK ? u64(d.topK) - 1 : shareOf(d.topP, weights) - 1, before);
		if (threadIdx.x == 0) room.at = border, room.listed = 0;
	}
	barrier();
	Candidates c = {r, room.at, false, p.vocabulary, ~u64(0), placeOf(r.logits[best], best), 0};
	u64 sum = 0;
	for (i32 i = threadIdx.x; i <= c.border; i += blockDim.x) sum += work.counts[i];
	const u64 candidates = blockSum64(sum, room.scratch);
	if (candidates <= LISTED) {
		for (i32 i = threadIdx.x; i < p.vocabulary; i += blockDim.x) {
			u64 place;
			Weight w;
			if (candidate(c, room, i, place, w)) room.list[atomicAdd(&room.listed, 1u)] = place; // in any order
		}
		barrier();
		c.listed = true;
		c.n = i32(candidates);
	}
	if (topK && tokens > u64(d.topK)) c.cut = select(c, room, false, false, d.topK - 1);
	if (topP) c.cut = select(c, room, true, false, shareOf(d.topP, topK ? total(c, room) : weights) - 1);
	c.minP = d.minP;
	return tokenAt(select(c, room, true, !topK, drawn(d.uniform, total(c, room))));
}

} // namespace sample

// sampleMost: the largest of a slice (x) of a row (y).
KERNEL(sampleMost, sample::Params, 256) {
	using namespace sample;
	SHARED(u64, found, [2][8]);
	const i32 row = blockIdx.y, from = blockIdx.x * p.slice, to = from + p.slice < p.vocabulary ? from + p.slice : p.vocabulary;
	const Row r = rowOf(p, p.draws[row], row);
	Work& work = p.work[row];
	if (blockIdx.x == 0) {
		for (i32 i = threadIdx.x; i < SIZES; i += 256) work.sums[i] = 0, work.counts[i] = 0;
		if (threadIdx.x == 0) work.whole = 0;
	}
	u64 any = 0, allowed = 0;
	for (i32 i = from + threadIdx.x; i < to; i += 256) {
		const u64 here = largest(r.logits[i], i);
		any = here > any ? here : any;
		if (here > allowed && allows(r, i)) allowed = here;
	}
	any = warpMax64(any), allowed = warpMax64(allowed);
	if (threadIdx.x % 32 == 0) found[0][threadIdx.x / 32] = any, found[1][threadIdx.x / 32] = allowed;
	barrier();
	if (threadIdx.x == 0) {
		for (i32 i = 1; i < 8; i++) {
			any = found[0][i] > any ? found[0][i] : any;
			allowed = found[1][i] > allowed ? found[1][i] : allowed;
		}
		work.any[blockIdx.x] = any, work.allowed[blockIdx.x] = allowed;
	}
}

// sampleWeigh: sums of weights of a slice (x) of a row (y), as its draw needs them.
KERNEL(sampleWeigh, sample::Params, 256) {
	using namespace sample;
	SHARED(u64, sums, [SIZES]);
	SHARED(u32, counts, [SIZES]);
	SHARED(u64, scratch, [32]);
	const i32 row = blockIdx.y, from = blockIdx.x * p.slice, to = from + p.slice < p.vocabulary ? from + p.slice : p.vocabulary;
	const Draw d = p.draws[row];
	Work& work = p.work[row];
	Row r = rowOf(p, d, row);
	const u64 allowed = mostOf(work.allowed, gridDim.x), any = mostOf(work.any, gridDim.x);
	if (d.logprob && any != 0) {
		const f64 most = logitOf(any);
		u64 sum = 0;
		if (most < f64(infinity()))
			for (i32 i = from + threadIdx.x; i < to; i += 256) sum += fixed(weigh(r.logits[i], most, 1.4426950408889634074 * 256).power);
		sum = blockSum64(sum, scratch);
		if (threadIdx.x == 0) add(&work.whole, sum);
	}
	if (allowed == 0 || !(d.temperature > 0) || logitOf(allowed) == infinity()) return;
	setMost(r, d, logitOf(allowed));
	if (byTopK(d, p.vocabulary) || byTopP(d)) {
		for (i32 i = threadIdx.x; i < SIZES; i += 256) sums[i] = 0, counts[i] = 0;
		barrier();
		for (i32 i = from + threadIdx.x; i < to; i += 256) {
			if (!allows(r, i)) continue;
			const Weight w = weigh(r.logits[i], r.most, r.scale);
			if (w.size < 0) continue;
			add(&sums[w.size], fixed(w.power));
			atomicAdd(&counts[w.size], 1u);
		}
		barrier();
		for (i32 i = threadIdx.x; i < SIZES; i += 256) {
			if (counts[i] == 0) continue;
			add(&work.sums[i], sums[i]);
			atomicAdd(&work.counts[i], counts[i]);
		}
		return;
	}
	const i32 best = tokenOf(allowed);
	for (i32 part = from; part < to; part += PART) {
		u64 sum = 0;
		for (i32 i = part + threadIdx.x; i < part + PART && i < to; i += 256) {
			if (!allows(r, i)) continue;
			const Weight w = weigh(r.logits[i], r.most, r.scale);
			if (w.power >= d.minP || i == best) sum += fixed(w.power);
		}
		sum = blockSum64(sum, scratch);
		if (threadIdx.x == 0) work.parts[part / PART] = sum;
	}
}

// sampleChoose: the token of a row (x). slices is how many there are.
KERNEL(sampleChoose, sample::Params, 512) {
	using namespace sample;
	static_assert(sizeof(Draw) == 48 && sizeof(Choice) == 24 && sizeof(Work) == 13960 && sizeof(Room) == 72728, "sample.go has these sizes");
	Room& room = *(Room*)dynamicShared();
	const i32 row = blockIdx.x, slices = (p.vocabulary + p.slice - 1) / p.slice;
	const Draw d = p.draws[row];
	const Work& work = p.work[row];
	const u64 allowed = mostOf(work.allowed, slices), any = mostOf(work.any, slices);
	Row r = rowOf(p, d, row);
	i32 token = allowed != 0 ? tokenOf(allowed) : any != 0 ? -2 : -1;
	if (allowed != 0 && d.temperature > 0 && logitOf(allowed) < infinity()) {
		setMost(r, d, logitOf(allowed));
		if (byTopK(d, p.vocabulary) || byTopP(d)) {
			token = likeliest(p, d, r, work, token, room);
		} else {
			token = inOrder(p, d, r, work, token, room);
		}
	}
	if (threadIdx.x == 0) {
		const f32 nothing = bitsToF32(0xff800000);
		p.choices[row] = {token, token >= 0 ? r.logits[token] : nothing, any != 0 ? logitOf(any) : nothing, 0, d.logprob ? f64(work.whole) * (1 / ONE) : 0};
	}
}
