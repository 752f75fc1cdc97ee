package cpu

import (
	kernels "github.com/estiba/estiba/kernels/cpu"
	"github.com/estiba/estiba/runtime/graph"
)

// routing is a batch's rows by the expert that they are for.
type routing struct {
	start []int // of each expert, and the end: where its rows begin in x and y
	x, y  []int // of each chosen expert's row: where it begins in the operand and in the result
	used  []int // experts that have rows
}

// expertMatMul multiplies the rows of each expert by its weights. The rows of
// one expert are together, so that its weights are read once for all of them.
func (p *program) expertMatMul(n graph.Node) error {
	x, route, y := p.value(n.In[0]), p.value(n.In[1]), p.value(n.Out)
	experts, width := n.In[2:], p.graph.Width(n.Out)/n.Attr.TopK
	r := &p.experts
	r.sort(route, n.Attr.TopK, len(experts), p.graph.Width(n.In[0]), p.weights[experts[0]].Cols, width)
	columns := len(r.used) * width
	perColumn := len(r.x) * p.weights[experts[0]].Cols / len(r.used)
	return p.pool.each(columns, enough/max(perColumn, 1), func(from, to int) {
		for from < to {
			e, column := r.used[from/width], from%width
			end := min(width, column+to-from)
			rows := func(at []int) []int { return at[r.start[e]:r.start[e+1]] }
			kernels.MatMulRows(y, x, rows(r.y), rows(r.x), p.weights[experts[e]], column, end)
			from += end - column
		}
	})
}

// sort finds each expert's rows in route [rows, 2*topK], and where they begin in an operand
// [rows, in], which has topK parts of cols numbers or one for all, and in a result [rows, topK*out].
func (r *routing) sort(route []float32, topK, experts, in, cols, out int) {
	rows := len(route) / (2 * topK)
	r.start = resize(r.start, experts+1)
	clear(r.start)
	each := func(do func(row, k, expert int)) {
		for row := range rows {
			for k := range topK {
				do(row, k, int(route[2*topK*row+k]))
			}
		}
	}
	each(func(_, _, e int) { r.start[e+1]++ })
	r.used = r.used[:0]
	for e := range experts {
		if r.start[e+1] > 0 {
			r.used = append(r.used, e)
		}
		r.start[e+1] += r.start[e]
	}
	r.x, r.y = resize(r.x, rows*topK), resize(r.y, rows*topK)
	each(func(row, k, e int) {
		at := r.start[e]
		r.start[e]++ // to where the next expert begins
		r.x[at], r.y[at] = row*in, (row*topK+k)*out
		if in != cols {
			r.x[at] += k * cols
		}
	})
	copy(r.start[1:], r.start[:experts])
	r.start[0] = 0
}
