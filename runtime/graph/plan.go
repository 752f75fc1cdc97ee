package graph

import "slices"

// Plan gives every value that an op makes a slot of working memory. Values
// whose lives do not overlap share one. The logits have none: they are the
// caller's. The hidden state keeps its slot to the end.
type Plan struct {
	Slot  []int  // of each value; -1 for weights and logits
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
	var free []int
	for i, n := range g.Nodes {
		// An op that works number by number may write over an operand that dies with it.
		if inPlace(n.Kind) && n.Out != g.Logits {
			for _, v := range n.In {
				if !g.IsWeight(v) && last[v] == i && p.Slot[n.Out] < 0 {
					p.Slot[n.Out] = p.Slot[v]
				}
			}
		}
		if n.Out != g.Logits && p.Slot[n.Out] < 0 {
			p.Slot[n.Out] = p.take(&free, Slot{g.Shapes[n.Out][0], g.Width(n.Out)})
		}
		for j, v := range n.In {
			if dead := !g.IsWeight(v) && last[v] == i && !slices.Contains(n.In[:j], v); dead && p.Slot[v] != p.Slot[n.Out] {
				free = append(free, p.Slot[v])
			}
		}
		if last[n.Out] == 0 && n.Out != g.Logits { // nobody reads it
			free = append(free, p.Slot[n.Out])
		}
	}
	return p
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

// Floats that the slots take for a batch of so many tokens and wanted rows.
func (p Plan) Floats(tokens, wanted int) int64 {
	var n int64
	for _, s := range p.Slots {
		n += int64(s.Width) * int64(rows(s.Rows, tokens, wanted))
	}
	return n
}

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
	case Rope, Add, SwiGLU:
		return true
	}
	return false
}

// WorkspaceBytes is what a program of the graph needs beside weights and cache
// for steps of up to maxTokens tokens and maxRows rows of logits: the slots, the angles
// of the rotary embeddings (a cosine and a sine for each token and pair), and the logits.
func (g *Graph) WorkspaceBytes(maxTokens, maxRows int) int64 {
	n := g.Plan().Floats(maxTokens, maxRows) + int64(maxRows)*int64(g.Vocabulary())
	for _, r := range g.Rotations() {
		n += int64(maxTokens) * int64(r.HeadDim)
	}
	return 4 * n
}

// Rotation is what the angles of a Rope op depend on beside the position.
type Rotation struct {
	HeadDim int
	Theta   float64
}

// Rotations that the graph's Rope ops use, each once.
func (g *Graph) Rotations() []Rotation {
	var all []Rotation
	for _, n := range g.Nodes {
		r := Rotation{n.Attr.HeadDim, n.Attr.Theta}
		if n.Kind == Rope && !slices.Contains(all, r) {
			all = append(all, r)
		}
	}
	return all
}
