// embed.cu: rows that an array of numbers names, as f32: of a table of weights, or of x.
#include "quant.cuh"

namespace embed {

struct Params {
	f32* y;               // [rows, table.cols]
	quant::Weights table; // [any, cols]
	const i32* index;     // [rows] which row of the table
};

struct RowsParams {
	f32* y;           // [rows, width]
	const f32* x;     // [any, width]
	const i32* index; // [rows]
	i32 width, pad;
};

} // namespace embed

// embedRows and gatherRows have a block for each row.
KERNEL(embedRows, embed::Params, 256) {
	const i32 row = p.index[blockIdx.x], width = p.table.cols;
	f32* y = p.y + i64(blockIdx.x) * width;
	for (i32 i = threadIdx.x; i < width; i += 256) y[i] = quant::number(p.table, row, i);
}

KERNEL(gatherRows, embed::RowsParams, 256) {
	const f32* x = p.x + i64(p.index[blockIdx.x]) * p.width;
	f32* y = p.y + i64(blockIdx.x) * p.width;
	for (i32 i = threadIdx.x; i < p.width; i += 256) y[i] = x[i];
}
