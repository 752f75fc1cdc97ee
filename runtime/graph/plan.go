package graph

import "slices"

// Plan gives every value that an op makes a slot of working memory. Values
// whose lives do not overlap share one. The logits have none: they are the
// caller's, and so is what an op turns into them number by number. The hidden
// state keeps its slot to the end.
type Plan struct {
	Slot  []int  // of each value; -1 for weights and what is in the caller's logits
	Slots []Slot // float32 [Rows, Width]
}

// Slot is a piece of working memory: Width numbers for each row.
type Slot struct {
	Rows  int // Tokens or Wanted
	Width int
}

// Plan of a graph that passes Check.
func (g *Graph) Plan() Plan {
	last := make([]int, len(g.Shapes)) // value -> index of the last node that reads it
	for i, n := range g.Nodes {
		for _, v := range n.In {
			last[v] = i
		}
	}
	last[g.Hidden] = len(g.Nodes)
	if !g.Encoder() {
		last[g.Logits] = len(g.Nodes)
	}

	p := Plan{Slot: make([]int, len(g.Shapes))}
	for v := range p.Slot {
		p.Slot[v] = -1
	}
	inLogits := g.becomeLogits(last)
	var free []int
	for i, n := range g.Nodes {
		// An op that works number by number may write over an operand that dies with it.
		if inPlace(n.Kind) && !inLogits[n.Out] {
			for _, v := range n.In {
				if !g.IsWeight(v) && !inLogits[v] && last[v] == i && p.Slot[n.Out] < 0 {
					p.Slot[n.Out] = p.Slot[v]
				}
			}
		}
		if !inLogits[n.Out] && p.Slot[n.Out] < 0 {
			p.Slot[n.Out] = p.take(&free, Slot{g.Shapes[n.Out][0], g.Width(n.Out)})
		}
		for j, v := range n.In {
			if dead := !g.IsWeight(v) && !inLogits[v] && last[v] == i && !slices.Contains(n.In[:j], v); dead && p.Slot[v] != p.Slot[n.Out] {
				free = append(free, p.Slot[v])
			}
		}
		if last[n.Out] == 0 && !inLogits[n.Out] { // nobody reads it
			free = append(free, p.Slot[n.Out])
		}
	}
	return p
}

// becomeLogits is the logits, and the values that are turned into them number
// by number and read by nobody else: a matrix product whose result is capped,
// for one.
func (g *Graph) becomeLogits(last []int) map[Value]bool {
	all := map[Value]bool{g.Logits: true}
	v := g.Logits
	for i := len(g.Nodes) - 1; i >= 0; i-- {
		n := g.Nodes[i]
		if n.Out != v {
			continue
		}
		if !inPlace(n.Kind) || g.IsWeight(n.In[0]) || last[n.In[0]] != i || g.read(n.In[0]) != 1 || n.In[0] == g.Hidden || activations(n.Kind) != 1 {
			break
		}
		v = n.In[0]
		all[v] = true
	}
	return all
}

// read is how often nodes read a value.
func (g *Graph) read(v Value) int {
	n := 0
	for _, node := range g.Nodes {
		for _, in := range node.In {
			if in == v {
				n++
			}
		}
	}
	return n
}

// take gives a slot with room for want: the narrowest free one that is wide
// enough, or else the widest free one made wider, or else a new one.
func (p *Plan) take(free *[]int, want Slot) int {
	best := -1
	for i, s := range *free {
		if p.Slots[s].Rows != want.Rows {
			continue
		}
		if best < 0 {
			best = i
			continue
		}
		w, b := p.Slots[s].Width, p.Slots[(*free)[best]].Width
		switch {
		case b >= want.Width && w >= want.Width && w < b, b < want.Width && w > b:
			best = i
		}
	}
	if best < 0 {
		p.Slots = append(p.Slots, want)
		return len(p.Slots) - 1
	}
	s := (*free)[best]
	*free = append((*free)[:best], (*free)[best+1:]...)
	p.Slots[s].Width = max(p.Slots[s].Width, want.Width)
	return s
}

// Floats that the slots take for a batch of so many tokens and wanted rows, each aligned to 64 bytes.
func (p Plan) Floats(tokens, wanted int) int64 {
	var n int64
	for _, s := range p.Slots {
		n += align(int64(s.Width) * int64(rows(s.Rows, tokens, wanted)))
	}
	return n
}

// align numbers so that the next begin at a multiple of 64 bytes.
func align(floats int64) int64 { return (floats + 15) / 16 * 16 }

func rows(axis, tokens, wanted int) int {
	if axis == Tokens {
		return tokens
	}
	return wanted
}

// inPlace says whether a kind may write its result over any operand of the
// result's shape.
func inPlace(k Kind) bool {
	switch k {
	case Bias, Rope, Add, SwiGLU, GeGLU, GELU, Scale, SoftCap:
		return true
	}
	return false
}

// WorkspaceBytes is what a program of the graph needs beside weights and cache
// for steps of up to maxTokens tokens and maxRows rows of logits, in the order of Fast: the
// slots, what products read in a form of their own, the angles of the rotary embeddings (a
// cosine and a sine for each token and pair), the logits, and ScheduleBytes.
func (g *Graph) WorkspaceBytes(maxTokens, maxRows int) int64 {
	f := g.Fast()
	n := f.Plan().Floats(maxTokens, maxRows) + int64(maxRows)*int64(g.Vocabulary())
	for _, r := range g.Rotations() {
		n += align(int64(maxTokens) * int64(r.Width()))
	}
	return 4*n + f.PreparedBytes(maxTokens, maxRows) + f.ScheduleBytes()
}

// ScheduleBytes is about what a program notes of the nodes and weights, beside the graph itself.
func (g *Graph) ScheduleBytes() int64 {
	const node, weight = 540, 140 // measured, on 64 bits
	return node*int64(len(g.Nodes)) + weight*int64(len(g.Weights))
}

// PreparedBytes is room for what any one product of the graph reads, in the form that suits its weights:
// numbers of at most 16 bits, or of 8 with a scale and sums for some of them.
func (g *Graph) PreparedBytes(tokens, wanted int) int64 {
	most := int64(0)
	for _, n := range g.Nodes {
		if n.Kind != MatMul && n.Kind != ExpertMatMul {
			continue
		}
		x, cols := n.In[0], g.Width(n.In[activations(n.Kind)])
		each := int64(g.Width(x)/cols) * PreparedRow(cols)
		most = max(most, int64(rows(g.Shapes[x][0], tokens, wanted))*each)
	}
	return most
}

// PreparedRow is PreparedBytes of one row of so many numbers.
func PreparedRow(cols int) int64 { return 2 * ((int64(cols) + 31) / 32 * 32) }

// Rotation is what the angles of a Rope op depend on beside the position.
type Rotation struct {
	Frequencies []float32
	Amplitude   float32
	Divisors    Value // a weight, or None
}

// Width is how many cosines and sines there are at one position.
func (r Rotation) Width() int { return 2 * len(r.Frequencies) }

func (r Rotation) equal(s Rotation) bool {
	return slices.Equal(r.Frequencies, s.Frequencies) && r.Amplitude == s.Amplitude && r.Divisors == s.Divisors
}

// Rotations that the graph's Rope ops use, each once.
func (g *Graph) Rotations() []Rotation {
	all, _ := g.rotations()
	return all
}

// RotationOf is the index in Rotations of what each node uses, -1 for one that is no Rope.
func (g *Graph) RotationOf() []int {
	_, of := g.rotations()
	return of
}

func (g *Graph) rotations() (all []Rotation, of []int) {
	for _, n := range g.Nodes {
		if n.Kind != Rope {
			of = append(of, -1)
			continue
		}
		r := Rotation{n.Attr.Frequencies, n.Attr.Amplitude, None}
		if len(n.In) == 2 {
			r.Divisors = n.In[1]
		}
		at := slices.IndexFunc(all, r.equal)
		if at < 0 {
			at = len(all)
			all = append(all, r)
		}
		of = append(of, at)
	}
	return all, of
}
