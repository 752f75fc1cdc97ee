// planted.h: what planted.cu's kernels and their test share.
#pragma once

namespace planted {

struct Params {
	const f32* x;
	const u16 *a, *b;
	f32* y;
	i32 k, steps;
};

enum Bug : i32 {
	None,
	NoBarrier, // between writing shared memory and reading what others wrote
	Beyond, // the end of a shared array
	NoSecondBarrier, // between reading and writing again
	NoWarpBarrier, // between lanes
	Unset, // shared memory is read before it is written
	Divergent, // a barrier for some
	HalfWarp, // a shuffle of half the lanes
	Elsewhere, // two barriers in place of one
	NoWait, // for asynchronous copies
	WeakWait, // for all but one group too many
	NoBarrierAfterWait, // for the copies of others
	Fragment, // two registers of a fragment exchanged
	Misaligned, // rows for ldmatrix
	NoTail, // columns beyond the end count
	NoBarrierBeforeRefill, // of the buffer in use
	CopyBeforeBarrier, // that says that the buffer is free
};

} // namespace planted
