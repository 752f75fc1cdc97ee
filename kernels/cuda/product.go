package cuda

import (
	"fmt"
	"slices"

	"github.com/estiba/estiba/runtime/tensor"
)

// Gate makes one result of two products.
type Gate int32

// The gates, as product.cuh has them.
const (
	NoGate        Gate = iota
	GateSwiGLU         // silu(gate) * up
	GateGeGLU          // gelu(gate) * up
	GateGeGLUTanh      // the same, gelu approximated by a hyperbolic tangent
)

// Part is a matrix of a product, and where the result goes.
type Part struct {
	Weights  Weights
	Y        Address // [Rows of the product, Stride] float32, the first Weights.Rows of each row are written
	Stride   int     // numbers from row to row of Y
	Bias     Address // 0, or [Weights.Rows] float32 to add
	Residual Address // 0, or as Y, to add; may be Y
}

// Experts choose the weights by the row. Of each part, the experts' weights lie one after the other, in equal distances.
// A pair of a row and one of its experts makes a row of Y: row r with its k-th expert row r*TopK+k.
type Experts struct {
	Route       Address // [Rows, 2*TopK] float32: experts' numbers, then shares
	TopK, Count int
	Stride      int64 // bytes from an expert's weights to the next one's, a multiple of 256
	Own         bool  // x has a row for each pair, otherwise one for all experts of a row
}

// Bytes are rows of activations as block formats are multiplied by: signed bytes [rows, cols], cols a multiple of 32, and for
// each 32 of them a scale, and the scale times their sum. Without addresses there are none.
type Bytes struct{ Q, Scales Address }

// BytesAt has rows in this form from an address on, which is a multiple of 256; end is behind them.
func BytesAt(at Address, rows, cols int) (b Bytes, end Address) {
	b = Bytes{at, at + Address(roundUp(int64(rows)*int64(cols), plane))}
	return b, b.Scales + Address(roundUp(int64(rows)*int64(cols)/32*8, plane))
}

// Product is y = x wᵀ, for up to three matrices with the same x. What is added is added to each part. With a gate there are
// two parts of one format and shape, gate and up, and the result goes to the first's Y.
type Product struct {
	X       Address // [Rows, Cols] float32; [Rows*TopK, Cols] if the experts have own rows
	Bytes   Bytes   // of X; without, the product makes them if it needs them
	Give    Bytes   // of the Y of a gate too, if GivesBytes: where they go
	Rows    int
	Parts   []Part
	Gate    Gate
	Experts *Experts
	// Wide says that the device has the instructions of compute capability 9.0, by which many rows are multiplied the fastest.
	Wide bool
}

// MostFew is how many rows at most are multiplied by the kernels that read weights at the speed of memory.
const MostFew = 8

// FewRows is how many are with weights of a format. Of 16 bits tensor cores are faster from five rows on: on an H100, a layer of an
// 8B model takes 197 us for 4 rows and 285 for 8, and 195 for 16 by tensor cores.
func FewRows(d tensor.DType) int {
	if d == tensor.F16 || d == tensor.BF16 {
		return 4
	}
	return MostFew
}

// fewPairs is how many pairs of rows and experts are multiplied one by one; more are put together by expert.
const fewPairs = 8

// form is how x is written for a kernel.
type form uint8

const (
	asIs   form = iota // float32
	bytes8             // quantize
	bf16               // narrowBF16
	f16                // narrowF16
	forms
)

// tile is a Tile of matmul.cu.
type tile struct {
	suffix                       string
	rows, columns, step, threads int
	stages                       int
}

var (
	tile32  = tile{"t32", 32, 64, 64, 128, 4}
	tile64  = tile{"t64", 64, 64, 64, 128, 3}
	tile128 = tile{"t128", 128, 128, 32, 128, 4}
	decoded = tile{"t128", 128, 128, 32, 256, 4} // of packed weights
	tileF32 = tile{"", 64, 64, 16, 256, 1}
)

// shared memory of a block, in bytes: steps, of packed weights two, and at the end the tile.
func (t tile) shared(d tensor.DType) uint32 {
	if d == tensor.F32 {
		return 0
	}
	w := 2
	if isFloat(d) {
		w = t.stages
	}
	return uint32(max((t.stages*t.rows+w*t.columns)*t.step*2, t.rows*t.columns*4))
}

// plan is how a part is multiplied.
type plan struct {
	few    bool
	form   form
	wide   int  // columns of a block of wide_sm90.cu, which multiplies by all parts at once; 0: another kernel does
	split  int  // warps that share rows of weights; of many rows, blocks that share the columns of a tile
	tile   tile // of many rows
	span   int  // of many rows: columns of a split
	across int  // of many rows: tiles
}

// pairs is how many rows of results there are.
func (p *Product) pairs() int {
	if p.Experts != nil {
		return p.Rows * p.Experts.TopK
	}
	return p.Rows
}

// few says whether weights are read for each row of results, or for up to eight of them, by matvec.cu. Experts of few
// pairs are mostly different ones.
func (p *Product) few(d tensor.DType) bool {
	if p.Experts != nil {
		return p.pairs() <= max(fewPairs, p.Experts.Count/4)
	}
	return p.Rows <= FewRows(d)
}

// plan of a part on a device of so many multiprocessors. It depends on sizes and formats alone.
func (p *Product) plan(w Weights, processors int) plan {
	if p.few(w.Type) {
		return planFew(w.Type, w.Rows, w.Cols, p.Gate != NoGate, processors)
	}
	if n := p.wide(processors); n > 0 {
		if w.Type == tensor.F16 {
			return plan{form: f16, wide: n}
		}
		return plan{form: bf16, wide: n}
	}
	rows := p.Rows
	if p.Experts != nil {
		rows = (p.pairs() + p.Experts.Count - 1) / p.Experts.Count // of an expert, if they are used alike
	}
	columns := w.Rows
	if p.Gate != NoGate {
		columns *= 2
	}
	return planMany(w.Type, rows, columns, w.Cols, p.Experts != nil, processors)
}

// wideRows are what a block of wide_sm90.cu makes of y.
const wideRows = 128

// wide is how many columns of y a block of wide_sm90.cu makes, if it is to multiply; else 0.
func (p *Product) wide(processors int) int {
	first := p.Parts[0].Weights
	if !p.Wide || p.Experts != nil || first.Type != tensor.F16 && first.Type != tensor.BF16 {
		return 0
	}
	for _, columns := range []int{256, 128} {
		tiles := 0
		for _, part := range p.Parts {
			if part.Weights.Type != first.Type {
				return 0
			}
			tiles += int(blocks(p.Rows, wideRows) * blocks(part.Weights.Rows, columns))
		}
		if 4*tiles >= 3*processors && p.Rows > wideRows/2 {
			return columns
		}
	}
	return 0
}

// planFew has so many warps share rows that the device's processors have 16 each, if each warp still has something to read
// with all its lanes.
func planFew(d tensor.DType, rows, cols int, gate bool, processors int) plan {
	p := plan{few: true, form: bytes8, split: 1}
	numbers := 32 // that a lane reads at a time
	switch d {
	case tensor.F32:
		p.form, numbers = asIs, 4
	case tensor.F16, tensor.BF16:
		p.form, numbers = asIs, 8
	case tensor.Q8_0:
		numbers = 16
	}
	teams := (rows + 3) / 4
	if gate {
		teams = (rows + 1) / 2
	}
	for p.split < 8 && teams*p.split < 16*processors && cols >= numbers*32*2*p.split {
		p.split *= 2
	}
	return p
}

// planMany takes the largest tile that gives all processors one; if there are too few of any, blocks share the columns, so
// that there are two for each processor, but at least 512 columns for a block.
func planMany(d tensor.DType, rows, columns, cols int, experts bool, processors int) plan {
	p := plan{form: bf16, split: 1, tile: tile128}
	tiles := func(t tile) int { return (rows + t.rows - 1) / t.rows * ((columns + t.columns - 1) / t.columns) }
	switch {
	case d == tensor.F32:
		p.form, p.tile = asIs, tileF32
	case rows <= 32:
		p.tile = tile32
	case rows <= 64 || tiles(tile128) < processors && !experts:
		p.tile = tile64
	case !isFloat(d):
		p.tile = decoded
	}
	if d == tensor.F16 {
		p.form = f16
	}
	p.across = (columns + p.tile.columns - 1) / p.tile.columns
	if !experts {
		p.split = max(1, min(2*processors/tiles(p.tile), cols/512, 16))
	}
	p.span = int(roundUp(int64((cols+p.split-1)/p.split), int64(p.tile.step)))
	p.split = (cols + p.span - 1) / p.span
	return p
}

// TakesBytes says whether some part is multiplied by X as bytes.
func (p *Product) TakesBytes(processors int) bool {
	return slices.ContainsFunc(p.Parts, func(part Part) bool { return p.plan(part.Weights, processors).form == bytes8 })
}

// GivesBytes says whether it can give its gate's Y as bytes too: a block of the kernel makes 32 of its columns.
func (p *Product) GivesBytes(processors int) bool {
	if p.Gate == NoGate || p.Experts != nil || p.Rows > 2 {
		return false
	}
	w := p.Parts[0].Weights
	return w.Rows%32 == 0 && p.plan(w, processors).split == 1
}

// room is where a product's launches keep things, in bytes from the start of its scratch memory.
type room struct {
	form, scales [forms]int64
	tiles, list  int64
	partial      int64
	size         int64
}

// stride of a row of x in 16 bits: steps of a tile are whole.
func stride(cols int) int { return (cols + 63) / 64 * 64 }

// tilesMost is how many tiles experts' rows may need.
func (p *Product) tilesMost(t tile) int { return p.pairs()/t.rows + p.Experts.Count }

func (p *Product) xRows() int {
	if p.Experts != nil && p.Experts.Own {
		return p.pairs()
	}
	return p.Rows
}

func (p *Product) room(processors int) room {
	var r room
	take := func(n int) int64 {
		at := r.size
		r.size += roundUp(int64(n), plane)
		return at
	}
	var has [forms]bool
	partial := 0
	for i, part := range p.Parts {
		if p.Gate != NoGate && i > 0 {
			break
		}
		plan, cols := p.plan(part.Weights, processors), part.Weights.Cols
		if !has[plan.form] {
			has[plan.form] = true
			switch n := p.xRows(); plan.form {
			case bytes8:
				if p.Bytes.Q != 0 {
					break
				}
				r.form[bytes8], r.scales[bytes8] = take(n*cols), take(n*cols/32*8)
			case bf16:
				r.form[bf16] = take(n * stride(cols) * 2)
			case f16:
				r.form[f16], r.scales[f16] = take(n*stride(cols)*2), take(n*4)
			}
		}
		if plan.wide > 0 {
			break
		}
		if !plan.few && plan.split > 1 {
			partial = max(partial, plan.split*p.Rows*plan.across*plan.tile.columns*4)
		}
		if !plan.few && p.Experts != nil && i == 0 { // tiles of 32 rows are the most
			r.list, r.tiles = take(p.pairs()*4), take(p.tilesMost(tile32)*16)
		}
	}
	r.partial = take(partial)
	return r
}

// Scratch is how many bytes the product's launches work in on a device of so many multiprocessors.
func (p *Product) Scratch(processors int) int64 { return p.room(processors).size }

// check panics where kernels would read or write outside of their arguments: it is for mistakes of the program, since
// a backend refuses weights that it cannot have (CheckWeights) before.
func (p *Product) check() {
	n := len(p.Parts)
	ok := n >= 1 && n <= 3 && (p.Gate == NoGate || n == 2 && p.Parts[0].Weights.same(p.Parts[1].Weights)) && p.Rows >= 0 && p.Rows < 1<<20
	for _, part := range p.Parts {
		ok = ok && part.Weights.Cols == p.Parts[0].Weights.Cols && part.Stride >= part.Weights.Rows && CheckWeights(part.Weights.Type, part.Weights.Rows, part.Weights.Cols) == nil
	}
	if e := p.Experts; e != nil {
		ok = ok && e.TopK >= 1 && e.Count >= 1 && e.Count <= 1<<10
		for _, part := range p.Parts {
			ok = ok && e.Stride >= PackedBytes(part.Weights.Type, part.Weights.Rows, part.Weights.Cols)
		}
	}
	if !ok {
		panic(fmt.Sprintf("cuda: there is no product like this: %+v", *p))
	}
}

// same says that two matrices have one format and shape.
func (w Weights) same(v Weights) bool {
	return w.Type == v.Type && w.Rows == v.Rows && w.Cols == v.Cols
}

// Launches of the product, in order; scratch is Scratch bytes that nobody else uses meanwhile.
func (p *Product) Launches(scratch Address, processors int) []Launch {
	p.check()
	if p.Rows == 0 {
		return nil
	}
	r := p.room(processors)
	cols := p.Parts[0].Weights.Cols
	at := func(offset int64) Address { return scratch + Address(offset) }
	var launches []Launch
	var done [forms]bool
	have := func(f form) {
		if done[f] {
			return
		}
		done[f] = true
		if f == bytes8 && p.Bytes.Q != 0 {
			return
		}
		if l, any := prepare(f, p.X, at(r.form[f]), at(r.scales[f]), p.xRows(), cols); any {
			launches = append(launches, l)
		}
	}
	parts, grouped := p.Parts, 0
	for len(parts) > 0 {
		plan := p.plan(parts[0].Weights, processors)
		have(plan.form)
		x, scales := p.X, Address(0)
		if plan.form != asIs {
			x = at(r.form[plan.form])
		}
		if plan.form == bytes8 || plan.form == f16 {
			scales = at(r.scales[plan.form])
		}
		if plan.form == bytes8 && p.Bytes.Q != 0 {
			x, scales = p.Bytes.Q, p.Bytes.Scales
		}
		together := 1
		if plan.wide > 0 {
			return append(launches, p.multiplyWide(plan, x, scales))
		}
		if p.Gate != NoGate {
			together = 2
		} else if plan.few {
			for together < len(parts) && parts[together].Weights.Type == parts[0].Weights.Type {
				together++
			}
		}
		if plan.few {
			launches = append(launches, p.matvec(plan, parts[:together], x, scales, processors))
		} else {
			if p.Experts != nil && grouped != plan.tile.rows {
				grouped = plan.tile.rows
				launches = append(launches, p.group(plan.tile, at(r.list), at(r.tiles)))
			}
			launches = append(launches, p.matmul(plan, parts[:together], x, scales, at(r.list), at(r.tiles), at(r.partial))...)
		}
		parts = parts[together:]
	}
	return launches
}

type quantizeParams struct {
	x, q, scales Address
	numbers      int64
}

type narrowParams struct {
	x, y, scales       Address
	rows, cols, stride int32
	_                  int32
}

// prepare writes x [rows, cols] in a form; as it is, there is nothing to do.
func prepare(f form, x, to, scales Address, rows, cols int) (Launch, bool) {
	narrow := &narrowParams{x: x, y: to, scales: scales, rows: int32(rows), cols: int32(cols), stride: int32(stride(cols))}
	switch f {
	case bytes8:
		return launch("quantize", [3]uint32{blocks(rows*cols, 1024), 1, 1}, 256, 0, &quantizeParams{x, to, scales, int64(rows) * int64(cols)}), true
	case bf16:
		return launch("narrowBF16", [3]uint32{uint32(rows), blocks(stride(cols), 2048), 1}, 256, 0, narrow), true
	case f16:
		return launch("narrowF16", [3]uint32{uint32(rows), 1, 1}, 256, 0, narrow), true
	}
	return Launch{}, false
}

type matvecPart struct {
	w, y, bias, residual Address
	rows, stride         int32
	blocks, _            int32
}

type matvecParams struct {
	x, scales             Address
	parts                 [3]matvecPart
	route                 Address
	expertBytes           int64
	n, cols, split        int32
	gate                  Gate
	topK, experts, divide int32
	passes                int32
	give                  Bytes
}

// matvec of parts of one format.
func (p *Product) matvec(plan plan, parts []Part, x, scales Address, processors int) Launch {
	w := parts[0].Weights
	// Rows of weights are shared as the matrices together ask for.
	rows := 0
	for _, part := range parts {
		rows += part.Weights.Rows
	}
	split := plan.split
	if p.Gate == NoGate {
		split = planFew(w.Type, rows, w.Cols, false, processors).split
	}
	width := p.width()
	each := teamRows(w.Type, width) // of y
	if p.Gate != NoGate {
		each /= 2
	}
	params := &matvecParams{x: x, scales: scales, n: int32(p.Rows), cols: int32(w.Cols), split: int32(split), gate: p.Gate, passes: 1, give: p.Give}
	if p.Give.Q != 0 {
		params.passes = int32(32 / (each * 8 / split))
	}
	total := uint32(0)
	for i, part := range parts {
		b := blocks(part.Weights.Rows, each*8/split*int(params.passes))
		params.parts[i] = matvecPart{
			w: part.Weights.Data, y: part.Y, bias: part.Bias, residual: part.Residual,
			rows: int32(part.Weights.Rows), stride: int32(part.Stride), blocks: int32(b),
		}
		if i == 0 || p.Gate == NoGate {
			total += b
		}
	}
	grid := [3]uint32{total, 1, 1}
	if e := p.Experts; e != nil {
		params.route, params.expertBytes, params.topK, params.experts = e.Route, e.Stride, int32(e.TopK), int32(e.Count)
		params.n, params.divide = 1, p.divide()
		grid[1] = uint32(p.pairs())
	}
	return launch(fmt.Sprintf("matvec%vx%d", w.Type, width), grid, 256, 0, params)
}

// width is for how many rows of x the kernel is that multiplies few of them.
func (p *Product) width() int {
	switch {
	case p.Experts != nil:
		return 1
	case p.Rows <= 2:
		return p.Rows
	case p.Rows <= 4:
		return 4
	}
	return MostFew
}

// teamRows is rowsOf of matvec.cu: how many rows of weights the warps have that share some.
func teamRows(d tensor.DType, width int) int {
	if width >= 4 && !isFloat(d) {
		return 2
	}
	return 4
}

// divide is by what a pair's number is divided to have its row of x.
func (p *Product) divide() int32 {
	if p.Experts == nil || p.Experts.Own {
		return 1
	}
	return int32(p.Experts.TopK)
}

type matmulParams struct {
	x, scales                  Address
	w                          weights
	up                         Address
	y, bias, residual, partial Address
	tiles, list                Address
	expertBytes                int64
	rows, stride, yStride      int32
	span                       int32
	gate                       Gate
	divide                     int32
}

type widePart struct {
	w, y, bias, residual Address
	rows, stride         int32
	blocks, _            int32
}

type wideParams struct {
	x, scales          Address
	parts              [3]widePart
	rows, stride, cols int32
	gate               Gate
}

// multiplyWide multiplies by all parts.
func (p *Product) multiplyWide(plan plan, x, scales Address) Launch {
	first := p.Parts[0].Weights
	params := &wideParams{x: x, scales: scales, rows: int32(p.Rows), stride: int32(stride(first.Cols)), cols: int32(first.Cols), gate: p.Gate}
	if plan.form != f16 {
		params.scales = 0
	}
	total := uint32(0)
	for i, part := range p.Parts {
		columns := part.Weights.Rows
		if p.Gate != NoGate {
			columns *= 2
		}
		b := blocks(columns, plan.wide)
		params.parts[i] = widePart{
			w: part.Weights.Data, y: part.Y, bias: part.Bias, residual: part.Residual,
			rows: int32(part.Weights.Rows), stride: int32(part.Stride), blocks: int32(b),
		}
		if i == 0 || p.Gate == NoGate {
			total += b
		}
	}
	const stages, step = 4, 64
	shared := 1024 + max(stages*(wideRows+plan.wide)*step*2, wideRows*plan.wide*4) // to begin at a multiple of 1,024
	return launch(fmt.Sprintf("wide%vn%d", first.Type, plan.wide), [3]uint32{blocks(p.Rows, wideRows), total, 1}, 256, uint32(shared), params)
}

type addPartsParams struct {
	y, partial, bias, residual           Address
	splits, rows, width, columns, yWidth int32
	gate                                 Gate
}

type groupParams struct {
	route, list, tiles                   Address
	pairs, topK, experts, tileRows, most int32
	_                                    int32
}

// matmul of a part, or of gate and up.
func (p *Product) matmul(plan plan, parts []Part, x, scales, list, tiles, partial Address) []Launch {
	part := parts[0]
	w := part.Weights
	params := &matmulParams{
		x: x, w: w.kernel(), up: parts[len(parts)-1].Weights.Data, y: part.Y, bias: part.Bias, residual: part.Residual,
		rows: int32(p.Rows), stride: int32(stride(w.Cols)), yStride: int32(part.Stride), span: int32(plan.span), gate: p.Gate, divide: p.divide(),
	}
	if plan.form == f16 {
		params.scales = scales
	}
	down := int(blocks(p.Rows, plan.tile.rows))
	if p.Experts != nil {
		params.tiles, params.list, params.expertBytes = tiles, list, p.Experts.Stride
		down = p.tilesMost(plan.tile)
	}
	kernel := "matmulPacked"
	switch w.Type {
	case tensor.F32, tensor.F16, tensor.BF16:
		kernel = "matmul" + w.Type.String()
	}
	if plan.split > 1 {
		params.partial = partial
	}
	launches := []Launch{launch(kernel+plan.tile.suffix, [3]uint32{uint32(down), uint32(plan.across), uint32(plan.split)}, uint32(plan.tile.threads), plan.tile.shared(w.Type), params)}
	if plan.split > 1 {
		launches = append(launches, launch("addParts", [3]uint32{blocks(w.Rows, 256), uint32(p.Rows), 1}, 256, 0, &addPartsParams{
			part.Y, partial, part.Bias, part.Residual,
			int32(plan.split), int32(p.Rows), int32(plan.across * plan.tile.columns), int32(w.Rows), int32(part.Stride), p.Gate,
		}))
	}
	return launches
}

// group lists rows by expert.
func (p *Product) group(t tile, list, tiles Address) Launch {
	e := p.Experts
	return launch("groupRows", [3]uint32{1, 1, 1}, 1024, uint32(8*(e.Count+1)), &groupParams{
		route: e.Route, list: list, tiles: tiles,
		pairs: int32(p.pairs()), topK: int32(e.TopK), experts: int32(e.Count), tileRows: int32(t.rows), most: int32(p.tilesMost(t)),
	})
}
