package cpu

import (
	kernels "github.com/estiba/estiba/kernels/cpu"
	"github.com/estiba/estiba/runtime/graph"
	"github.com/estiba/estiba/runtime/tensor"
)

// preparation is a value in the forms that the products which read it take. A row of the
// value is one row of a product, or several: one for each expert.
type preparation struct {
	p      *program
	x      graph.Value
	cols   int            // of a row of a product
	dtypes []tensor.DType // of the weights, unless they are mapped and read float32

	parts int // rows of products in a row of x
	rows  [kernels.Int8 + 1]kernels.Rows
}

// add a weight that the value is multiplied by.
func (q *preparation) add(w *weight) {
	if w.packed.Data == nil {
		return
	}
	for _, d := range q.dtypes {
		if d == w.packed.DType {
			return
		}
	}
	q.dtypes = append(q.dtypes, w.packed.DType)
}

// room is the bytes that the prepared rows of a step take at most.
func (q *preparation) room() int {
	p := q.p
	most := p.limits.MaxTokens
	if p.graph.Shapes[q.x][0] == graph.Wanted {
		most = p.limits.MaxRows
	}
	room := 0
	for _, n := range []int{1, most} {
		n *= p.graph.Width(q.x) / q.cols
		bytes, forms := 0, q.forms(n)
		for f, needed := range forms {
			if needed && kernels.Form(f) != kernels.Float32 {
				bytes += up(kernels.RowsBytes(kernels.Form(f), n, q.cols))
			}
		}
		room = max(room, bytes)
	}
	return room
}

// forms that products of n rows take.
func (q *preparation) forms(n int) (needed [kernels.Int8 + 1]bool) {
	for _, d := range q.dtypes {
		needed[q.p.path.Form(d, n)] = true
	}
	return needed
}

// choose the forms for so many rows of the value.
func (q *preparation) choose(rows int) {
	p := q.p
	q.parts = p.graph.Width(q.x) / q.cols
	n := rows * q.parts
	rest := memory(p.prepared)
	for f, needed := range q.forms(n) {
		form := kernels.Form(f)
		r := kernels.Rows{Form: form, N: n, Cols: q.cols}
		switch {
		case form == kernels.Float32:
			r.Data = bytesOf(p.value(q.x))
		case needed:
			r.Data = rest.take(kernels.RowsBytes(form, n, q.cols))
		default:
			r.N = 0
		}
		q.rows[f] = r
	}
}

// any says whether there is something to prepare.
func (q *preparation) any() bool {
	for _, r := range q.rows {
		if r.Form != kernels.Float32 && r.N > 0 {
			return true
		}
	}
	return false
}

// prepare row t of the value.
func (q *preparation) prepare(t int) {
	for _, r := range q.rows {
		if r.Form != kernels.Float32 && r.N > 0 {
			q.p.path.Prepare(r, q.p.value(q.x), t*q.parts, (t+1)*q.parts)
		}
	}
}

// products are matrix products of one value.
type products struct {
	p     *program
	from  *preparation
	items []item
}

// item is one product.
type item struct {
	w   *weight
	out graph.Value
}

// panels of a weight: 16 rows of it.
func (w *weight) panels() int {
	if w.packed.Data != nil {
		return w.packed.Panels()
	}
	return (w.mapped.Rows + kernels.PanelRows - 1) / kernels.PanelRows
}

func (f *products) run() error {
	rows, all := f.p.rows(f.from.x), 0
	if rows == 0 {
		return nil
	}
	for _, i := range f.items {
		all += i.w.panels()
	}
	return f.p.team.each(all, f.p.grain(all, rows, f.from.cols, f.items[0].w), f)
}

// grain is how many panels are a piece of a product, of all that it has, with so many rows: what
// takes some 5 to 50 µs.
func (p *program) grain(all, rows, cols int, w *weight) int {
	each := kernels.PanelRows * cols // numbers of a panel
	switch {
	case w.packed.Data == nil: // plain Go
		return enough / (each * rows)
	case rows <= few: // as fast as they are read: pieces for every hand, large enough to be read ahead
		panel := len(w.packed.Data) / w.packed.Panels()
		return min(max(all*panel/(8*p.pool.threads), leastPiece), mostPiece) / panel
	}
	return (1 << 21) / (each * rows)
}

const (
	few        = 8
	leastPiece = 64 << 10 // bytes
	mostPiece  = 512 << 10
)

// do computes panels from to to of all items.
func (f *products) do(h *hand, from, to int) {
	for _, i := range f.items {
		n := i.w.panels()
		if from < n && to > 0 {
			f.p.multiply(h, f.p.value(i.out), f.p.graph.Width(i.out), f.from, i.w, max(from, 0), min(to, n))
		}
		from, to = from-n, to-n
	}
}

// multiply computes the columns of panels of a weight.
func (p *program) multiply(h *hand, y []float32, stride int, from *preparation, w *weight, first, end int) {
	if w.packed.Data == nil {
		x := p.value(from.x)
		kernels.MatMul(y, x, len(x)/from.cols, w.mapped, first*kernels.PanelRows, min(end*kernels.PanelRows, w.mapped.Rows))
		return
	}
	rows := from.rows[kernels.Float32].N
	x := from.rows[p.path.Form(w.packed.DType, rows)]
	p.path.MatMul(y, stride, x, w.packed, first, end, h.room(p.path.ScratchBytes(w.packed.DType, w.packed.Cols, rows)))
}

// expertProducts are products of one value with weights of experts, by one route.
type expertProducts struct {
	p     *program
	from  *preparation
	route graph.Value
	topK  int
	width int // of an expert's result
	items []expertItem
}

// expertItem is one weight of each expert.
type expertItem struct {
	weights []*weight
	out     graph.Value
}

// run multiplies the rows of each expert by its weights. The rows of one expert are together,
// so that its weights are read once for all of them.
func (f *expertProducts) run() error {
	p := f.p
	experts := f.items[0].weights
	r := &p.experts
	r.sort(p.value(f.route), f.topK, len(experts), p.graph.Width(f.from.x), f.from.cols, f.width)
	if len(r.used) == 0 {
		return nil
	}
	r.rows = resize(r.rows, len(r.x))
	for i, at := range r.x {
		r.rows[i] = at / f.from.cols
	}
	all, perExpert := len(f.items)*len(r.used)*experts[0].panels(), max(1, len(r.x)/len(r.used))
	return p.team.each(all, p.grain(all, perExpert, f.from.cols, experts[0]), f)
}

// do computes panels from to to of the experts that have rows, of all items.
func (f *expertProducts) do(h *hand, from, to int) {
	p, r := f.p, &f.p.experts
	panels := f.items[0].weights[0].panels()
	for from < to {
		item, e, panel := f.items[from/panels/len(r.used)], r.used[from/panels%len(r.used)], from%panels
		end := min(panels, panel+to-from)
		own := func(of []int) []int { return of[r.start[e]:r.start[e+1]] }
		w, y := item.weights[e], p.value(item.out)
		if w.packed.Data == nil {
			kernels.MatMulRows(y, p.value(f.from.x), own(r.y), own(r.x), w.mapped, panel*kernels.PanelRows, min(end*kernels.PanelRows, w.mapped.Rows))
		} else {
			x := f.from.rows[p.path.Form(w.packed.DType, f.from.rows[kernels.Float32].N)]
			n := r.start[e+1] - r.start[e]
			p.path.MatMulRows(y, own(r.y), x, own(r.rows), w.packed, panel, end, h.room(p.path.ScratchBytes(w.packed.DType, w.packed.Cols, n)))
		}
		from += end - panel
	}
}
