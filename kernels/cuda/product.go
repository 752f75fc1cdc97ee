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

// Bytes are rows of activations as block formats are multiplied by: signed bytes [rows, 2, cols/32, 16], cols a multiple of
// 32, the first and the last 16 of each 32 columns, and for each 32 a scale, and the scale times their sum. Without addresses there are none.
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
	// Narrow has the Y of a gate be bf16, if GivesNarrow; Narrowed says that X is bf16, if TakesNarrow.
	Narrow, Narrowed bool
	// Wide says that the device has the instructions of compute capability 9.0, by which many rows are multiplied the fastest.
	Wide bool
}

// MostFew is how many rows at most are multiplied by the kernels that read weights at the speed of memory.
const MostFew = 8

// FewRows is how many are with weights of a format. But for F32, tensor cores are faster from five rows on: on an H100, a layer of
// an 8B model in bf16 takes 197 us for 4 rows and 285 for 8, and 195 for 16 by tensor cores; its gate and up in Q8_0 take 58 for 4,
// 86 for 8, and 52 for 16 by tensor cores.
func FewRows(d tensor.DType) int {
	if d == tensor.F32 {
		return MostFew
	}
	return 4
}

// packedRows is up to how many rows packed weights are decoded in registers, for up to 64 rows at a time; of more they are unpacked
// before. On an H100, gate and up of an 8B model in Q4_K take 161 us for 128 rows and 318 for 256; unpacked before, 319 and 317, and
// 333 for 512.
const packedRows = 256

// stripBytes is how much room unpacked weights may take: enough for those of an 8B model, but for gate and up.
const stripBytes = 128 << 20

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
	tileF32 = tile{"", 64, 64, 16, 256, 1}
)

// shared memory of a block, in bytes: steps, and at the end the tile.
func (t tile) shared(d tensor.DType) uint32 {
	if d == tensor.F32 {
		return 0
	}
	return uint32(max(t.stages*(t.rows+t.columns)*t.step*2, t.rows*t.columns*4))
}

// plan is how a part is multiplied.
type plan struct {
	few    bool
	form   form
	wide   bool // wide_sm90.cu multiplies, by all parts at once
	split  int  // warps that share rows of weights; of many rows, blocks that share the columns of a tile
	tile   tile // of many rows
	span   int  // of many rows: columns of a split
	across int  // of many rows: tiles
	used   int  // of packed.cu: columns of a tile that there are; 0: another kernel multiplies
	unpack bool // weights become bf16 in strips, each of which has its own plan
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
	if plan, wide := p.planWide(processors); wide {
		return plan
	}
	if p.unpacks(w.Type) {
		return plan{form: bf16, unpack: true}
	}
	rows := p.Rows
	if p.Experts != nil {
		rows = (p.pairs() + p.Experts.Count - 1) / p.Experts.Count // of an expert, if they are used alike
	}
	columns := w.Rows
	if p.Gate != NoGate {
		columns *= 2
	}
	if !isFloat(w.Type) {
		return planPacked(w.Type, rows, columns, w.Cols, p.Experts != nil, processors)
	}
	return planMany(w.Type, rows, columns, w.Cols, p.Experts != nil, processors)
}

// unpacks says whether weights of a format become bf16 before they are multiplied by.
func (p *Product) unpacks(d tensor.DType) bool {
	return !isFloat(d) && p.Rows > packedRows && p.Experts == nil
}

// span is some rows of weights.
type span struct{ first, count int }

// strips are of which rows of some parts weights are unpacked at a time: of all of them, if there is room, and otherwise of a part,
// or of gate and up, as many as give all processors a whole number of tiles.
func (p *Product) strips(parts []Part, processors int) [][]span {
	var every []span
	for _, part := range parts {
		every = append(every, span{0, part.Weights.Rows})
	}
	if unpackedBytes(parts) <= stripBytes {
		return [][]span{every}
	}
	columns, wave := tile128.columns, 2*processors
	if _, wide := p.unpacked(parts, every, 0).planWide(processors); wide {
		columns, wave = wideColumns, processors
	}
	w := parts[0].Weights
	down, across := int(blocks(p.Rows, wideRows)), max(1, stripBytes/2/w.Cols/columns)
	if down*across > wave {
		across = max(1, down*across/wave*wave/down)
	}
	var strips [][]span
	each := across * columns / len(parts)
	for first := 0; first < w.Rows; first += each {
		strips = append(strips, slices.Repeat([]span{{first, min(each, w.Rows-first)}}, len(parts)))
	}
	return strips
}

// unpackedBytes is how much room parts take as bf16.
func unpackedBytes(parts []Part) int64 {
	bytes := int64(0)
	for _, part := range parts {
		bytes += PackedBytes(tensor.BF16, part.Weights.Rows, part.Weights.Cols)
	}
	return bytes
}

// unpacked is the product by rows of some parts, which lie one after the other from data on as bf16.
func (p *Product) unpacked(parts []Part, rows []span, data Address) *Product {
	q := *p
	q.Parts = nil
	for i, part := range parts {
		part.Weights = Weights{Data: data, Type: tensor.BF16, Rows: rows[i].count, Cols: part.Weights.Cols}
		data += Address(PackedBytes(tensor.BF16, part.Weights.Rows, part.Weights.Cols))
		first := Address(4 * rows[i].first)
		part.Y += first
		if part.Bias != 0 {
			part.Bias += first
		}
		if part.Residual != 0 {
			part.Residual += first
		}
		q.Parts = append(q.Parts, part)
	}
	return &q
}

// wideRows and wideColumns are what a block of wide_sm90.cu makes of y, wideStep how many columns of x and w it multiplies at a time.
const wideRows, wideColumns, wideStep = 128, 256, 64

// planWide is how wide_sm90.cu multiplies by all parts, if it is to: in as many splits as take the least time, by what was
// measured on an H100.
func (p *Product) planWide(processors int) (best plan, wide bool) {
	first := p.Parts[0].Weights
	if !p.Wide || p.Experts != nil || p.Rows <= wideRows/2 || first.Type != tensor.F16 && first.Type != tensor.BF16 {
		return plan{}, false
	}
	across := 0
	for _, part := range p.Parts {
		if part.Weights.Type != first.Type {
			return plan{}, false
		}
		across += int(blocks(part.Weights.Rows, wideColumns))
	}
	if p.Gate != NoGate {
		across = int(blocks(2*first.Rows, wideColumns))
	}
	form := bf16
	if first.Type == tensor.F16 {
		form = f16
	}
	least := 0
	for split := 1; split <= max(1, min(first.Cols/512, 16)); split++ {
		span := int(roundUp(int64((first.Cols+split-1)/split), wideStep))
		blocks := int(blocks(p.Rows, wideRows)) * across * split
		time := (blocks + processors - 1) / processors * span * 14 // ns
		if split > 1 {
			// To write parts of sums, and to add them. Rows are rounded up, so that fewer do not take more scratch memory while there are as many tiles.
			time += 3000 + 8*int(roundUp(int64(p.Rows), ScratchRows))*across*wideColumns*split/2500
		}
		if !wide || time < least {
			best, wide, least = plan{form: form, wide: true, across: across, split: (first.Cols + span - 1) / span, span: span}, true, time
		}
	}
	return best, wide
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

// planPacked divides the rows of weights such that each processor has two blocks, or one of 64 rows of x, a whole number of
// times; where there are too few, blocks share the columns, at least 512 for each. On an H100, 16 rows by 6,144 of Q4_K, of 4,096
// columns, take 14 us in tiles of 32, 16 in tiles of 64 and 18 in tiles of 128; by 4,096 rows 13, 10 and 12, since of tiles of
// 32 a processor has but one.
func planPacked(d tensor.DType, rows, columns, cols int, experts bool, processors int) plan {
	p := plan{form: bf16, split: 1, tile: tile{rows: 16, columns: 32, step: 256, threads: 256}}
	for p.tile.rows < min(rows, 64) {
		p.tile.rows *= 2
	}
	slots := 2 * processors
	if p.tile.rows == 64 {
		slots = processors
	}
	waves := (columns + slots*128 - 1) / (slots * 128)
	p.used = int(roundUp(int64(columns), int64(16*waves*slots))) / (waves * slots)
	switch {
	case experts, p.tile.rows == 64 && p.used < 96:
		p.used = 128
	case p.used <= 32:
		p.used = 64
		if columns >= 40*processors {
			p.used = 32
		}
	}
	for p.tile.columns < p.used || p.tile.rows == 64 && p.tile.columns < 128 {
		p.tile.columns *= 2
	}
	if p.tile.rows == 64 || p.tile.rows == 32 && p.tile.columns == 128 && (d == tensor.Q8_0 || d == tensor.Q6_K) {
		p.tile.step = 128
	}
	p.tile.suffix = fmt.Sprintf("x%dr%d", p.tile.rows, p.tile.columns)
	p.across = (columns + p.used - 1) / p.used
	if !experts && 4*p.across < 3*processors {
		p.split = max(1, min(2*processors/p.across, cols/512, 16))
	}
	p.span = int(roundUp(int64((cols+p.split-1)/p.split), 256)) // whole steps, and whole blocks: what 256 columns have in common is found by the step
	p.split = (cols + p.span - 1) / p.span
	return p
}

// packedShared is the shared memory of a block of packed.cu, in bytes: steps of bits and of x, as many as there is room for, the
// scales of two, and at the end the sums of all warps.
func packedShared(d tensor.DType, t tile) uint32 {
	groups, bits, scales, each := t.step/32, int(planes[d][0]), 8, 1
	switch planes[d][1] {
	case 4:
		scales = 12 // and fifth bits
	case 8:
		bits += 8
	}
	if t.rows == 64 || t.rows == 32 && t.columns > 32 && d != tensor.Q6_K {
		each = 2
	}
	stage := t.columns*groups*bits + t.rows*t.step*2
	scales *= 2 * groups * (t.columns + 2)
	sharing := 8 * 16 * each / t.columns
	return uint32(max(min((99<<10-scales)/stage, 8)*stage+scales, sharing*t.rows*(t.columns+4)*4))
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

// TakesNarrow says whether X may be bf16: all parts are multiplied by it as such, and its rows need not be filled up.
func (p *Product) TakesNarrow(processors int) bool {
	plan, wide := p.planWide(processors)
	return wide && plan.form == bf16 && stride(p.Parts[0].Weights.Cols) == p.Parts[0].Weights.Cols
}

// GivesNarrow says whether the gate's Y may be bf16.
func (p *Product) GivesNarrow(processors int) bool {
	plan, wide := p.planWide(processors)
	return wide && plan.split == 1 && p.Gate != NoGate && p.Parts[0].Weights.Rows%4 == 0 && p.Parts[0].Bias == 0 && p.Parts[0].Residual == 0
}

// room is where a product's launches keep things, in bytes from the start of its scratch memory.
type room struct {
	form, scales [forms]int64
	tiles, list  int64
	partial      int64
	unpacked     int64
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
	partial, unpacked := 0, 0
	for i, parts := range p.together() {
		w := p.merged(parts)
		plan, cols := p.plan(w, processors), w.Cols
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
		if plan.wide {
			partial = plan.partial(p.Rows)
			break
		}
		if plan.unpack {
			for _, rows := range p.strips(parts, processors) {
				q := p.unpacked(parts, rows, 0)
				for _, parts := range q.together() {
					partial = max(partial, q.plan(parts[0].Weights, processors).partial(p.Rows))
				}
				unpacked = max(unpacked, int(unpackedBytes(q.Parts)))
			}
			continue
		}
		partial = max(partial, plan.partial(p.Rows))
		if !plan.few && p.Experts != nil && i == 0 { // tiles of 16 rows are the most
			r.list, r.tiles = take(p.pairs()*4), take(p.tilesMost(tile{rows: 16})*16)
		}
	}
	r.partial = take(partial)
	r.unpacked = take(unpacked)
	return r
}

// partial is how many bytes the parts of sums take.
func (p plan) partial(rows int) int {
	switch {
	case p.few || p.split == 1:
		return 0
	case p.wide:
		return p.split * rows * p.across * wideColumns * 4
	case p.used > 0:
		return p.split * rows * (p.across + 2) * p.used * 4 // each of several parts has whole tiles
	}
	return p.split * rows * p.across * p.tile.columns * 4
}

// ScratchRows: a product of more rows takes no less scratch memory, up to the next multiple of this. (Of few rows, 8 is one too.)
const ScratchRows = 32

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

// together are the parts that run together: gate and up, or parts of one format where their kernel takes several.
func (p *Product) together() [][]Part {
	if p.Gate != NoGate {
		return [][]Part{p.Parts}
	}
	var groups [][]Part
	for from, to := 0, 1; to <= len(p.Parts); to++ {
		d := p.Parts[from].Weights.Type
		if to == len(p.Parts) || p.Parts[to].Weights.Type != d || isFloat(d) && !p.few(d) || p.unpacks(d) && unpackedBytes(p.Parts[from:to+1]) > stripBytes {
			groups = append(groups, p.Parts[from:to])
			from = to
		}
	}
	return groups
}

// merged are weights with all rows of parts that run together.
func (p *Product) merged(parts []Part) Weights {
	w := parts[0].Weights
	if p.Gate == NoGate {
		for _, part := range parts[1:] {
			w.Rows += part.Weights.Rows
		}
	}
	return w
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
		if f == bytes8 && p.Bytes.Q != 0 || p.Narrowed {
			return
		}
		if l, any := prepare(f, p.X, at(r.form[f]), at(r.scales[f]), p.xRows(), cols); any {
			launches = append(launches, l)
		}
	}
	grouped := 0
	for _, parts := range p.together() {
		plan := p.plan(p.merged(parts), processors)
		have(plan.form)
		x, scales := p.X, Address(0)
		if plan.form != asIs && !p.Narrowed {
			x = at(r.form[plan.form])
		}
		if plan.form == bytes8 || plan.form == f16 {
			scales = at(r.scales[plan.form])
		}
		if plan.form == bytes8 && p.Bytes.Q != 0 {
			x, scales = p.Bytes.Q, p.Bytes.Scales
		}
		switch {
		case plan.wide:
			return append(launches, p.multiplyWide(plan, x, scales, at(r.partial))...)
		case plan.few:
			launches = append(launches, p.matvec(plan, parts, x, scales))
			continue
		case plan.unpack:
			for _, rows := range p.strips(parts, processors) {
				q := p.unpacked(parts, rows, at(r.unpacked))
				launches = append(launches, unpackRows(parts, rows, q.Parts))
				for _, parts := range q.together() {
					plan := q.plan(parts[0].Weights, processors)
					if plan.wide {
						launches = append(launches, q.multiplyWide(plan, x, 0, at(r.partial))...)
						break
					}
					launches = append(launches, q.matmul(plan, parts, x, 0, 0, 0, at(r.partial))...)
				}
			}
			continue
		}
		if p.Experts != nil && grouped != plan.tile.rows {
			grouped = plan.tile.rows
			launches = append(launches, p.group(plan.tile, at(r.list), at(r.tiles)))
		}
		if plan.used > 0 {
			launches = append(launches, p.packed(plan, parts, x, at(r.list), at(r.tiles), at(r.partial))...)
		} else {
			launches = append(launches, p.matmul(plan, parts, x, scales, at(r.list), at(r.tiles), at(r.partial))...)
		}
	}
	return launches
}

type quantizeParams struct {
	x, q, scales Address
	cols, _      int32
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
		return launch("quantize", [3]uint32{blocks(cols, 1024), uint32(rows), 1}, 256, 0, &quantizeParams{x: x, q: to, scales: scales, cols: int32(cols)}), true
	case bf16:
		return launch("narrowBF16", [3]uint32{uint32(rows), blocks(stride(cols), 2048), 1}, 256, 0, narrow), true
	case f16:
		return launch("narrowF16", [3]uint32{uint32(rows), 1, 1}, 256, 0, narrow), true
	}
	return Launch{}, false
}

type unpackPart struct {
	w, to       Address
	units       int64
	rows, first int32
}

type unpackParams struct {
	parts        [3]unpackPart
	format, cols int32
}

// unpackRows writes rows of some parts as bf16, to where others have their weights.
func unpackRows(parts []Part, rows []span, to []Part) Launch {
	w := parts[0].Weights
	params := &unpackParams{format: int32(w.Type), cols: int32(w.Cols)}
	most := uint32(0)
	for i, part := range parts {
		units := rows[i].count * w.Cols / 16
		params.parts[i] = unpackPart{part.Weights.Data, to[i].Weights.Data, int64(units), int32(part.Weights.Rows), int32(rows[i].first)}
		most = max(most, blocks(units, 256))
	}
	return launch("unpack", [3]uint32{most, uint32(len(parts)), 1}, 256, 0, params)
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
func (p *Product) matvec(plan plan, parts []Part, x, scales Address) Launch {
	w := parts[0].Weights
	split := plan.split
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
	if width >= 2 && !isFloat(d) {
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
	x, scales, partial Address
	parts              [3]widePart
	rows, stride, cols int32
	span               int32
	gate               Gate
	narrow             int32
}

// multiplyWide multiplies by all parts.
func (p *Product) multiplyWide(plan plan, x, scales, partial Address) []Launch {
	first := p.Parts[0].Weights
	params := &wideParams{x: x, rows: int32(p.Rows), stride: int32(stride(first.Cols)), cols: int32(first.Cols), span: int32(plan.span), gate: p.Gate}
	if plan.form == f16 {
		params.scales = scales
	}
	if plan.split > 1 {
		params.partial = partial
	}
	if p.Narrow {
		params.narrow = 1
	}
	const stages = 4
	shared := 1024 + max(stages*(wideRows+wideColumns)*wideStep*2, wideRows*wideColumns*4) // to begin at a multiple of 1,024
	grid := [3]uint32{blocks(p.Rows, wideRows), uint32(plan.across), uint32(plan.split)}
	launches := []Launch{launch(fmt.Sprintf("wide%v", first.Type), grid, 256, uint32(shared), params)}
	at := 0
	for i, part := range p.Parts {
		columns := part.Weights.Rows
		if p.Gate != NoGate {
			columns *= 2
		}
		b := int(blocks(columns, wideColumns))
		params.parts[i] = widePart{
			w: part.Weights.Data, y: part.Y, bias: part.Bias, residual: part.Residual,
			rows: int32(part.Weights.Rows), stride: int32(part.Stride), blocks: int32(b),
		}
		if plan.split > 1 && (i == 0 || p.Gate == NoGate) {
			launches = append(launches, p.addParts(part, partial+Address(at*wideColumns*4), plan.split, plan.across*wideColumns))
		}
		at += b
	}
	return launches
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

type packedPart struct {
	w, y, bias, residual Address
	rows, stride         int32
	tiles, _             int32
}

type packedParams struct {
	x                         Address
	parts                     [3]packedPart
	partial, tiles, list      Address
	expertBytes               int64
	rows, cols, xStride, span int32
	gate                      Gate
	divide                    int32
	used, _                   int32
}

// packed multiplies by parts of one packed format.
func (p *Product) packed(plan plan, parts []Part, x, list, tiles, partial Address) []Launch {
	w := parts[0].Weights
	params := &packedParams{
		x: x, rows: int32(p.Rows), cols: int32(w.Cols), xStride: int32(stride(w.Cols)), span: int32(plan.span), gate: p.Gate, divide: p.divide(), used: int32(plan.used),
	}
	across, each := 0, plan.used
	if p.Gate != NoGate {
		each /= 2
	}
	var sums []Launch
	for i, part := range parts {
		n := blocks(part.Weights.Rows, each)
		params.parts[i] = packedPart{
			w: part.Weights.Data, y: part.Y, bias: part.Bias, residual: part.Residual,
			rows: int32(part.Weights.Rows), stride: int32(part.Stride), tiles: int32(n),
		}
		if i == 0 || p.Gate == NoGate {
			across += int(n)
		}
	}
	first := 0
	for i, part := range parts {
		if i > 0 && p.Gate != NoGate || plan.split == 1 {
			break
		}
		sums = append(sums, launch("addParts", [3]uint32{blocks(part.Weights.Rows, 256), uint32(p.Rows), 1}, 256, 0, &addPartsParams{
			part.Y, partial + Address(4*first*plan.used), part.Bias, part.Residual,
			int32(plan.split), int32(p.Rows), int32(across * plan.used), int32(part.Weights.Rows), int32(part.Stride), p.Gate,
		}))
		first += int(params.parts[i].tiles)
	}
	down := int(blocks(p.Rows, plan.tile.rows))
	if p.Experts != nil {
		params.tiles, params.list, params.expertBytes = tiles, list, p.Experts.Stride
		down = p.tilesMost(plan.tile)
	}
	if plan.split > 1 {
		params.partial = partial
	}
	return append([]Launch{launch("packed"+w.Type.String()+plan.tile.suffix, [3]uint32{uint32(down), uint32(across), uint32(plan.split)}, uint32(plan.tile.threads), packedShared(w.Type, plan.tile), params)}, sums...)
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
	if plan.split > 1 {
		params.partial = partial
	}
	launches := []Launch{launch("matmul"+w.Type.String()+plan.tile.suffix, [3]uint32{uint32(down), uint32(plan.across), uint32(plan.split)}, uint32(plan.tile.threads), plan.tile.shared(w.Type), params)}
	if plan.split > 1 {
		launches = append(launches, p.addParts(part, partial, plan.split, plan.across*plan.tile.columns))
	}
	return launches
}

// addParts makes a part's y of the parts of its sums.
func (p *Product) addParts(part Part, partial Address, splits, width int) Launch {
	return launch("addParts", [3]uint32{blocks(part.Weights.Rows, 256), uint32(p.Rows), 1}, 256, 0, &addPartsParams{
		part.Y, partial, part.Bias, part.Residual,
		int32(splits), int32(p.Rows), int32(width), int32(part.Weights.Rows), int32(part.Stride), p.Gate,
	})
}

// group lists rows by expert.
func (p *Product) group(t tile, list, tiles Address) Launch {
	e := p.Experts
	return launch("groupRows", [3]uint32{1, 1, 1}, 1024, uint32(8*(e.Count+1)), &groupParams{
		route: e.Route, list: list, tiles: tiles,
		pairs: int32(p.pairs()), topK: int32(e.TopK), experts: int32(e.Count), tileRows: int32(t.rows), most: int32(p.tilesMost(t)),
	})
}
