package cpu

import (
	kernels "github.com/estiba/estiba/kernels/cpu"
	"github.com/estiba/estiba/runtime/graph"
)

// tile is neighbours in a prompt that attend together: their keys and values are read once for all.
type tile struct{ first, tokens int }

const (
	tileRows = 64 // queries of a tile, of all heads that share keys
	// fewTokens of a span attend each alone, as one that decodes does.
	fewTokens = 4
)

// divide says which of the batch's tokens attend together, where so many query heads share keys, and which alone: those
// of spans of so few tokens.
func (p *program) divide(group, few int) {
	p.tiles, p.singles = p.tiles[:0], p.singles[:0]
	most := max(tileRows/group, fewTokens)
	for t := 0; t < len(p.tokens); {
		s := p.spans[t]
		for at := 0; at < s.tokens; at += most {
			n := min(most, s.tokens-at)
			if s.tokens > few {
				p.tiles = append(p.tiles, tile{t + at, n})
				continue
			}
			for i := range n {
				p.singles = append(p.singles, t+at+i)
			}
		}
		t += s.tokens
	}
}

// layer is a layer of the cache.
func (p *program) layer(l int) kernels.HalfKV {
	blockTokens, width := p.limits.BlockTokens, p.cache.Width
	return kernels.PagedHalf(view[uint16](p.kv.blocks)[l*2*blockTokens*width:], blockTokens, width, p.kv.stride/2)
}

// store writes the key and the value of token t into the cache.
func (p *program) store(n *graph.Node, t int) {
	kv := p.layer(n.Attr.Layer)
	block, slot := p.blocks[t][p.position[t]/kv.BlockTokens], p.position[t]%kv.BlockTokens
	k, v := p.value(n.In[1]), p.value(n.In[2])
	p.path.Store(kv.Key(block, slot), k[t*kv.Width:(t+1)*kv.Width])
	p.path.Store(kv.Value(block, slot), v[t*kv.Width:(t+1)*kv.Width])
}

// attention lets every query attend to the positions up to its own, in the cache, or in an encoder to all
// of its span, in the batch. A piece is the query heads that share keys, of a tile or of a single token.
type attention struct {
	p    *program
	node *graph.Node
}

func (f *attention) run() error {
	p, a := f.p, f.node.Attr
	few := fewTokens
	if a.Bidirectional {
		few = 0 // all in tiles
	}
	p.divide(a.Heads/a.KVHeads, few)
	steps := 0 // products of numbers
	for t, position := range p.position {
		seen := position + 1
		switch {
		case a.Bidirectional:
			seen = p.spans[t].tokens
		case a.Window > 0:
			seen = min(seen, a.Window)
		}
		steps += seen * 2 * a.HeadDim * a.Heads
	}
	pieces := (len(p.tiles) + len(p.singles)) * a.KVHeads
	return p.team.each(pieces, 4*stretch*pieces/max(steps, 1), f)
}

func (f *attention) do(h *hand, from, to int) {
	p, a := f.p, f.node.Attr
	q, k, v, y := p.value(f.node.In[0]), p.value(f.node.In[1]), p.value(f.node.In[2]), p.value(f.node.Out)
	group, stride, width := a.Heads/a.KVHeads, a.Heads*a.HeadDim, a.KVHeads*a.HeadDim
	var kv kernels.HalfKV
	if !a.Bidirectional {
		kv = p.layer(a.Layer)
	}
	scratch := view[float32](h.room(4 * kernels.AttendScratch(max(tileRows, fewTokens*group), a.HeadDim)))
	for i := from; i < to; i++ {
		piece, head := i/a.KVHeads, i%a.KVHeads
		if piece < len(p.tiles) {
			tile := p.tiles[piece]
			at := tile.first*stride + head*group*a.HeadDim
			if a.Bidirectional {
				s := p.spans[tile.first]
				p.path.AttendAll(y[at:], q[at:], tile.tokens, group, stride, a.HeadDim, k[s.first*width:], v[s.first*width:], s.tokens, width,
					head*a.HeadDim, a.Scale, a.SoftCap, scratch)
				continue
			}
			p.path.AttendTile(y[at:], q[at:], tile.tokens, group, stride, a.HeadDim, kv, p.blocks[tile.first], p.position[tile.first], a.Window,
				head*a.HeadDim, a.Scale, a.SoftCap, scratch)
			continue
		}
		t := p.singles[piece-len(p.tiles)]
		first, end := 0, p.position[t]+1
		if a.Window > 0 {
			first = max(0, end-a.Window)
		}
		at := t*stride + head*group*a.HeadDim
		p.path.Attend(y[at:], q[at:], group, a.HeadDim, kv, p.blocks[t], first, end, head*a.HeadDim, a.Scale, a.SoftCap, scratch)
	}
}
