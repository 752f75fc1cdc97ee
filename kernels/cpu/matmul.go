package cpu

// lanes is how many partial sums a dot product has: number i goes to sum i%lanes.
const lanes = 8

// tile is how many rows of x share one decoding of a piece of weights. Their
// partial sums (1 KiB) stay in the first cache.
const tile = 32

// sums are the partial sums of one dot product.
type sums [lanes]float32

// add adds the products of x and w [n]. All calls but the last for one dot
// product have n a multiple of lanes.
func (s *sums) add(x, w []float32) {
	s0, s1, s2, s3, s4, s5, s6, s7 := s[0], s[1], s[2], s[3], s[4], s[5], s[6], s[7]
	w = w[:len(x)]
	for len(x) >= lanes && len(w) >= lanes {
		s0 += float32(x[0] * w[0])
		s1 += float32(x[1] * w[1])
		s2 += float32(x[2] * w[2])
		s3 += float32(x[3] * w[3])
		s4 += float32(x[4] * w[4])
		s5 += float32(x[5] * w[5])
		s6 += float32(x[6] * w[6])
		s7 += float32(x[7] * w[7])
		x, w = x[lanes:], w[lanes:]
	}
	*s = sums{s0, s1, s2, s3, s4, s5, s6, s7}
	for i := range x {
		s[i] += float32(x[i] * w[i])
	}
}

// total adds the partial sums pairwise.
func (s *sums) total() float32 {
	return ((s[0] + s[4]) + (s[2] + s[6])) + ((s[1] + s[5]) + (s[3] + s[7]))
}

// Dot is the sum of the products of x and y [n].
func Dot(x, y []float32) float32 {
	var s sums
	s.add(x, y)
	return s.total()
}

// DotRef is Dot in float64.
func DotRef(x, y []float32) float64 {
	sum := 0.0
	for i := range x {
		sum += float64(x[i]) * float64(y[i])
	}
	return sum
}

// MatMul computes columns from to to of y [rows, w.Rows] = x [rows, w.Cols] wᵀ.
// An element does not depend on rows, from or to.
func MatMul(y, x []float32, rows int, w Matrix, from, to int) {
	var m matmul
	for r := 0; r < rows; r += tile {
		here := min(tile, rows-r)
		for t := range here {
			m.x[t], m.y[t] = (r+t)*w.Cols, (r+t)*w.Rows
		}
		m.tile(y, x, here, w, from, to)
	}
}

// MatMulRows is MatMul of rows that lie apart: row i of x begins at its number xAt[i], the
// row of y that it makes at number yAt[i].
func MatMulRows(y, x []float32, yAt, xAt []int, w Matrix, from, to int) {
	var m matmul
	for r := 0; r < len(xAt); r += tile {
		here := copy(m.x[:], xAt[r:])
		copy(m.y[:], yAt[r:])
		m.tile(y, x, here, w, from, to)
	}
}

// matmul is the memory of a product.
type matmul struct {
	weights [piece]float32
	acc     [tile]sums
	x, y    [tile]int // where the rows of a tile begin
}

// tile multiplies the first rows of m.x by the rows of w from from to to.
func (m *matmul) tile(y, x []float32, rows int, w Matrix, from, to int) {
	for j := from; j < to; j++ {
		clear(m.acc[:rows])
		for c := 0; c < w.Cols; c += piece {
			part := m.weights[:min(piece, w.Cols-c)]
			decode(part, w.row(j, c), w.DType)
			for t := range rows {
				at := m.x[t] + c
				m.acc[t].add(x[at:at+len(part)], part)
			}
		}
		for t := range rows {
			y[m.y[t]+j] = m.acc[t].total()
		}
	}
}

// MatMulRef is all of MatMul's y in float64 sums.
func MatMulRef(y, x []float32, rows int, w Matrix) {
	row := make([]float32, w.Cols)
	for j := range w.Rows {
		w.RowRef(row, j)
		for r := range rows {
			y[r*w.Rows+j] = float32(DotRef(x[r*w.Cols:(r+1)*w.Cols], row))
		}
	}
}
