//go:build cuda && cgo

package cuda

import (
	"fmt"
	"slices"

	kernels "github.com/estiba/estiba/kernels/cuda"
	"github.com/estiba/estiba/runtime/graph"
)

// shape of a step: all that launches depend on. What the batch itself is they read from the device.
type shape struct {
	tokens, spans, rows int // rows of logits
	singles             int // spans of one token
	stride              int // of tables
}

// launches of a step, in their order.
func (p *program) launches(s shape) []kernels.Launch {
	w := work{program: p, shape: s}
	for i, r := range p.rotations {
		a := kernels.AnglesParams{
			Cos: p.angles[i], Sin: p.sines(i), Positions: p.number(p.places.position), Frequencies: p.turns[i],
			Rows: s.tokens, Pairs: len(r.Frequencies), Amplitude: r.Amplitude,
		}
		if r.Divisors != graph.None {
			a.Divisors = p.weights[r.Divisors].at
		}
		w.add(kernels.Angles(a))
	}
	for _, g := range p.groups {
		w.group(g)
	}
	return w.all
}

// sines of a rotation's angles are behind its cosines.
func (p *program) sines(rotation int) kernels.Address {
	return p.angles[rotation] + kernels.Address(4*p.bounds.MaxTokens*len(p.rotations[rotation].Frequencies))
}

// number of the step in a place, on the device.
func (p *program) number(place int) kernels.Address {
	return p.b.numbers.at + kernels.Address(4*place)
}

// work is the launches of a step while they are put together.
type work struct {
	*program
	shape
	all   []kernels.Launch
	made  kernels.Bytes // a value that what makes it gave as bytes too
	of    graph.Value   // that value, while made has an address
	other bool          // which of the two places it is in
	// narrow is a gate's value that is bf16, in its own place, if there is one.
	narrow    graph.Value
	hasNarrow bool
}

// readNarrow says whether a value is read by products alone that take it as bf16.
func (w *work) readNarrow(v graph.Value) bool {
	readers := 0
	for _, n := range w.graph.Nodes {
		if slices.Contains(n.In, v) {
			readers++
		}
	}
	i := slices.IndexFunc(w.groups, func(g group) bool { return g.kind == products && w.graph.Nodes[g.parts[0].product].In[0] == v })
	if i < 0 || readers != len(w.groups[i].parts) {
		return false
	}
	m := w.multiplications(w.groups[i], w.rowsOf(v))
	return len(m) == 1 && m[0].TakesNarrow(w.b.info.Processors)
}

// bytes is where what makes a value, of rows so wide, puts it as bytes too; nowhere if it is not read as such.
func (w *work) bytes(v graph.Value) kernels.Bytes {
	i := slices.IndexFunc(w.groups, func(g group) bool { return g.kind == products && w.graph.Nodes[g.parts[0].product].In[0] == v })
	if i < 0 || w.rowsOf(v) > kernels.MostFew {
		return kernels.Bytes{}
	}
	m := w.multiplications(w.groups[i], w.rowsOf(v))[0]
	if m.Experts != nil || m.Rows == 0 || !m.TakesBytes(w.b.info.Processors) {
		return kernels.Bytes{}
	}
	w.other = !w.other
	at := w.scratch() + kernels.Address(up(w.need))
	if w.other {
		at += kernels.Address(w.bytesRoom() / 2)
	}
	w.made, _ = kernels.BytesAt(at, w.rowsOf(v), w.graph.Width(v))
	w.of = v
	return w.made
}

// bytesRoom is what the values of a step may take as bytes: of two, by turns, since one is read while the next is made.
func (p *program) bytesRoom() int64 {
	widest := 0
	for v := range p.graph.Shapes {
		if !p.graph.IsWeight(graph.Value(v)) {
			widest = max(widest, p.graph.Width(graph.Value(v)))
		}
	}
	_, end := kernels.BytesAt(0, min(p.bounds.MaxTokens, kernels.MostFew), widest)
	return 2 * int64(end)
}

func (w *work) add(l ...kernels.Launch) { w.all = append(w.all, l...) }

// rowsOf a value in this step.
func (w *work) rowsOf(v graph.Value) int {
	if w.graph.Shapes[v][0] == graph.Wanted {
		return w.rows
	}
	return w.tokens
}

// numbers of a value in this step.
func (w *work) numbers(v graph.Value) int64 { return int64(w.rowsOf(v)) * int64(w.graph.Width(v)) }

// group adds the launches of a group of nodes. Those of values without rows do nothing, and are left out.
func (w *work) group(g group) {
	first := w.graph.Nodes[g.nodes[0]]
	if w.rowsOf(first.Out) == 0 {
		return
	}
	node := func(i int) graph.Node { return w.graph.Nodes[g.nodes[i]] }
	switch g.kind {
	case addNorm:
		p := w.norm(node(1))
		p.X, p.Residual, p.Sum = w.value(first.In[0]), w.value(first.In[1]), w.value(first.Out)
		w.addNorm(node(1).Kind, node(1).Out, p)
	case turn:
		p := w.rope(g.nodes[0], first)
		w.store(&p, node(2))
		p.K = w.value(node(1).In[0])
		w.add(kernels.Rope(p))
		w.attend(node(2))
	case products:
		for _, p := range w.multiplications(g, w.rowsOf(first.Out)) {
			if w.made.Q != 0 && w.of == first.In[0] && p.Experts == nil {
				p.Bytes = w.made
			}
			if g.gate >= 0 && p.GivesBytes(w.b.info.Processors) {
				p.Give = w.bytes(w.graph.Nodes[g.gate].Out)
			}
			p.Narrowed = w.hasNarrow && w.narrow == first.In[0]
			if v := w.graph.Nodes[max(g.gate, 0)].Out; g.gate >= 0 && p.GivesNarrow(w.b.info.Processors) && w.readNarrow(v) {
				p.Narrow, w.narrow, w.hasNarrow = true, v, true
			}
			w.add(p.Launches(w.scratch(), w.b.info.Processors)...)
		}
		if g.gate >= 0 && !w.gates(g) {
			w.node(g.gate, w.graph.Nodes[g.gate])
		}
	default:
		w.node(g.nodes[0], first)
	}
}

// gates says whether two products and what is made of them are one launch's.
func (p *program) gates(g group) bool {
	if g.gate < 0 {
		return false
	}
	gate, up := p.factor(g.parts[0]), p.factor(g.parts[1])
	return gate.Type == up.Type && gate.Rows == up.Rows && gate.Cols == up.Cols
}

// factor is the matrix of a part, the first expert's if it has several.
func (p *program) factor(of part) kernels.Weights {
	n := p.graph.Nodes[of.product]
	if n.Kind == graph.ExpertMatMul {
		return p.matrix(n.In[2])
	}
	return p.matrix(n.In[1])
}

func (p *program) matrix(v graph.Value) kernels.Weights {
	w := p.weights[v]
	return kernels.Weights{Data: w.at, Type: w.dtype, Rows: w.rows, Cols: w.cols}
}

// multiplications of a group, of so many rows of its value.
func (p *program) multiplications(g group, rows int) []kernels.Product {
	first := p.graph.Nodes[g.parts[0].product]
	m := kernels.Product{X: p.value(first.In[0]), Rows: rows, Wide: p.b.native && p.b.info.Major == 9 && p.b.info.Minor == 0}
	if first.Kind == graph.ExpertMatMul {
		w, topK := p.matrix(first.In[2]), first.Attr.TopK
		m.Experts = &kernels.Experts{
			Route: p.value(first.In[1]), TopK: topK, Count: len(first.In) - 2,
			Stride: kernels.PackedBytes(w.Type, w.Rows, w.Cols), Own: p.graph.Width(first.In[0]) != w.Cols,
		}
	}
	if p.gates(g) {
		n := p.graph.Nodes[g.gate]
		m.Gate = kernels.GateSwiGLU
		switch {
		case n.Kind == graph.GeGLU && n.Attr.Tanh:
			m.Gate = kernels.GateGeGLUTanh
		case n.Kind == graph.GeGLU:
			m.Gate = kernels.GateGeGLU
		}
		for _, of := range g.parts {
			w := p.factor(of)
			m.Parts = append(m.Parts, kernels.Part{Weights: w, Y: p.value(n.Out), Stride: w.Rows})
		}
		return []kernels.Product{m}
	}
	for _, of := range g.parts {
		w := p.factor(of)
		to := kernels.Part{Weights: w, Y: p.value(of.out(p.graph)), Stride: w.Rows}
		if of.bias >= 0 {
			n := p.graph.Nodes[of.bias]
			to.Bias = p.weights[n.In[1]].at + kernels.Address(4*n.Attr.Row*w.Rows)
		}
		if of.sum >= 0 {
			made := p.graph.Nodes[max(of.product, of.bias)].Out
			to.Residual = p.value(other(p.graph.Nodes[of.sum], made))
		}
		m.Parts = append(m.Parts, to)
	}
	return []kernels.Product{m}
}

// embed rows of a table.
func (w *work) embed(n graph.Node, index kernels.Address) {
	table := w.matrix(n.In[0])
	w.add(kernels.Embed(kernels.EmbedParams{
		Y: w.value(n.Out), Table: table.Data, Type: table.Type, TableRows: table.Rows, Width: table.Cols, Index: index, Rows: w.rowsOf(n.Out),
	}))
}

// node adds the launches of one node.
func (w *work) node(i int, n graph.Node) {
	a := n.Attr
	y, rows, width, size := w.value(n.Out), w.rowsOf(n.Out), w.graph.Width(n.Out), w.numbers(n.Out)
	x := func(operand int) kernels.Address {
		if v := n.In[operand]; !w.graph.IsWeight(v) {
			return w.value(v)
		}
		return w.weights[n.In[operand]].at
	}
	switch n.Kind {
	case graph.Embed:
		w.embed(n, w.number(w.places.tokens))
	case graph.Positions:
		w.embed(n, w.number(w.places.position))
	case graph.RMSNorm, graph.LayerNorm:
		w.addNorm(n.Kind, n.Out, w.norm(n))
	case graph.Bias:
		w.add(kernels.Bias(y, x(0), x(1)+kernels.Address(4*a.Row*width), rows, width))
	case graph.Rope:
		w.add(kernels.Rope(w.rope(i, n)))
	case graph.Attention:
		if !a.Bidirectional {
			p := kernels.RopeParams{Rows: rows, Dim: a.HeadDim}
			w.store(&p, n)
			w.add(kernels.Rope(p))
		}
		w.attend(n)
	case graph.Add:
		w.add(kernels.Add(y, x(0), x(1), size))
	case graph.SwiGLU:
		w.add(kernels.SwiGLU(y, x(0), x(1), size))
	case graph.GeGLU:
		w.add(kernels.GeGLU(y, x(0), x(1), size, a.Tanh))
	case graph.GELU:
		w.add(kernels.GELU(y, x(0), size, a.Tanh))
	case graph.Scale:
		w.add(kernels.Scale(y, x(0), size, a.Scale))
	case graph.SoftCap:
		w.add(kernels.SoftCap(y, x(0), size, a.SoftCap))
	case graph.Route:
		p := kernels.RouteParams{Scores: x(0), Y: y, Rows: int32(rows), Experts: int32(w.graph.Width(n.In[0])), TopK: int32(a.TopK)}
		if a.Normalize {
			p.Normalize = 1
		}
		w.add(kernels.Route(p))
	case graph.ExpertSum:
		w.add(kernels.ExpertSum(kernels.ExpertSumParams{X: x(0), Route: x(1), Y: y, Width: int32(width), TopK: int32(a.TopK)}, rows))
	case graph.Rows:
		w.add(kernels.Rows(y, x(0), w.number(w.places.wanted), rows, width))
	default:
		panic(fmt.Sprintf("cuda: no kernel for %v", n.Kind)) // Supports has refused it
	}
}

// norm of one value.
func (w *work) norm(n graph.Node) kernels.NormParams {
	p := kernels.NormParams{
		X: w.value(n.In[0]), Y: w.value(n.Out), W: w.weights[n.In[1]].at,
		Rows: w.rowsOf(n.Out), Width: w.graph.Width(n.Out), Heads: n.Attr.Heads, Eps: n.Attr.Eps, Shift: n.Attr.Shift,
	}
	if n.Kind == graph.LayerNorm {
		p.Bias = w.weights[n.In[2]].at
	}
	return p
}

func (w *work) addNorm(k graph.Kind, out graph.Value, p kernels.NormParams) {
	if p.Heads <= 1 && kernels.NormBytes(p.Width) {
		p.Bytes = w.bytes(out)
	}
	if k == graph.LayerNorm {
		w.add(kernels.LayerNorm(p))
		return
	}
	w.add(kernels.RMSNorm(p))
}

// rope of one value.
func (w *work) rope(i int, n graph.Node) kernels.RopeParams {
	r := w.rotationOf[i]
	return kernels.RopeParams{
		Y: w.value(n.Out), X: w.value(n.In[0]), Heads: n.Attr.Heads, Cos: w.angles[r], Sin: w.sines(r),
		Rows: w.rowsOf(n.Out), Dim: n.Attr.HeadDim, Pairs: len(n.Attr.Frequencies), Neighbours: n.Attr.Neighbours,
	}
}

// store has a launch put keys and values into the cache too.
func (w *work) store(p *kernels.RopeParams, n graph.Node) {
	keys, values := w.layer(n.Attr.Layer)
	p.K, p.V, p.KVHeads = w.value(n.In[1]), w.value(n.In[2]), n.Attr.KVHeads
	p.Cache = kernels.CachePlace{
		Keys: keys, Values: values, BlockStride: w.program.stride, BlockTokens: w.bounds.BlockTokens,
		Positions: w.number(w.places.position), SpanOf: w.number(w.places.spanOf), Tables: w.number(w.places.tables), TableStride: w.shape.stride,
	}
}

// layer of the cache: where its keys and values at position 0 of block 0 are.
func (p *program) layer(l int) (keys, values kernels.Address) {
	half := kernels.Address(2 * p.bounds.BlockTokens * p.cache.Width)
	keys = p.kv + kernels.Address(2*l)*half
	return keys, keys + half
}

// attend adds an attention, whose keys and values are in the cache, or in the step where it is an encoder's.
func (w *work) attend(n graph.Node) {
	p, s := w.attention(n), w.attentionStep()
	p.Q, p.Y = w.value(n.In[0]), w.value(n.Out)
	p.SpanFirst, p.SpanOf, p.Scratch = w.number(w.places.first), w.number(w.places.spanOf), w.scratch()
	if n.Attr.Bidirectional {
		p.Keys, p.Values = w.value(n.In[1]), w.value(n.In[2])
		w.add(kernels.BidirectionalAttention(p, w.tokens, w.spans)...)
		return
	}
	p.Keys, p.Values = w.layer(n.Attr.Layer)
	p.Context, p.Tables = w.number(w.places.context), w.number(w.places.tables)
	p.BlockStride, p.TableStride, p.BlockTokens = w.program.stride, int32(w.shape.stride), int32(w.bounds.BlockTokens)
	if kernels.AttentionGivesBytes(p, s) {
		p.Bytes = w.bytes(n.Out)
	}
	w.add(kernels.Attention(p, s)...)
}

// attention is what its launches and their scratch depend on beside the step.
func (p *program) attention(n graph.Node) kernels.AttentionParams {
	a := n.Attr
	return kernels.AttentionParams{
		Heads: int32(a.Heads), KVHeads: int32(a.KVHeads), HeadDim: int32(a.HeadDim), Window: int32(a.Window), Scale: a.Scale, SoftCap: a.SoftCap,
		BlockStride: p.stride,
	}
}

func (w *work) attentionStep() kernels.AttentionStep {
	return kernels.AttentionStep{
		Tokens: w.tokens, Spans: w.spans, Single: w.singles, Context: w.shape.stride * w.bounds.BlockTokens, Processors: w.b.info.Processors,
	}
}

// scratch is what products and attention work in.
func (p *program) scratch() kernels.Address {
	if p.ownScratch {
		return p.prepared
	}
	return p.b.scratch.at
}

// scratchBytes that any step needs at most.
func (p *program) scratchBytes() (most int64) {
	processors := p.b.info.Processors
	for _, n := range p.graph.Nodes {
		switch {
		case n.Kind != graph.Attention:
		case n.Attr.Bidirectional:
			most = max(most, kernels.BidirectionalScratch(p.attention(n), p.bounds.MaxTokens))
		default:
			t := p.bounds.MaxTokens
			most = max(most, kernels.AttentionScratch(p.attention(n), kernels.AttentionStep{Tokens: t, Spans: t, Single: t, Processors: processors}))
		}
	}
	type together struct {
		parts                 [mostParts]kernels.Weights // wherever they are
		limit, width, experts int                        // rows and columns of the value
		gate                  bool
	}
	seen := map[together]bool{}
	for _, g := range p.groups {
		if g.kind != products {
			continue
		}
		n := p.graph.Nodes[g.parts[0].product]
		limit := p.bounds.MaxTokens
		if p.graph.Shapes[n.Out][0] == graph.Wanted {
			limit = p.bounds.MaxRows
		}
		is := together{limit: limit, width: p.graph.Width(n.In[0]), experts: len(n.In), gate: p.gates(g)}
		for i, of := range g.parts {
			is.parts[i] = p.factor(of)
			is.parts[i].Data = 0
		}
		if seen[is] {
			continue
		}
		seen[is] = true
		for rows := 0; rows < limit+kernels.ScratchRows; rows += kernels.ScratchRows {
			for _, m := range p.multiplications(g, min(max(rows, 8), limit)) {
				most = max(most, m.Scratch(processors))
			}
		}
	}
	return most
}
