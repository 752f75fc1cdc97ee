package cpu

// routing is a batch's rows by the expert that they are for.
type routing struct {
	start []int // of each expert, and the end: where its rows begin in x and y
	x, y  []int // of each chosen expert's row: where it begins in the operand and in the result
	used  []int // experts that have rows
	rows  []int // of x, counted by a program: x over the numbers of a row
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
