package cpu

import "math"

// KV is keys and values in blocks: the key of position slot in a block begins at number
// block*Stride + slot*Width of Keys, its value there in Values. Width is heads*dim.
type KV struct {
	Keys, Values               []float32
	BlockTokens, Width, Stride int
}

// Paged is one layer of a paged cache. A block of it is [2, blockTokens, width], first the keys,
// then the values; blocks begin every stride numbers of data, since a block has its other layers
// between.
func Paged(data []float32, blockTokens, width, stride int) KV {
	return KV{Keys: data, Values: data[blockTokens*width:], BlockTokens: blockTokens, Width: width, Stride: stride}
}

// Key of a position in a block [Width].
func (c KV) Key(block int32, slot int) []float32 { return c.row(c.Keys, block, slot) }

// Value of a position in a block [Width].
func (c KV) Value(block int32, slot int) []float32 { return c.row(c.Values, block, slot) }

func (c KV) row(data []float32, block int32, slot int) []float32 {
	at := int(block)*c.Stride + slot*c.Width
	return data[at : at+c.Width : at+c.Width]
}

// step is how many positions attention takes at once.
const step = 64

// Attend computes y [dim], the attention of a query q [dim] to positions from to to of a
// sequence, to beyond from: softmax(cap(scale * q·k)) v, of the key and value head that starts at
// number head of a cached row. softCap is 0, or cap(s) is softCap * tanh(s/softCap). blocks is the
// sequence's block table. It takes positions in steps that depend on from and the block size alone,
// with the running maximum of arXiv:1805.02867, so memory does not grow with the positions.
func Attend(y, q []float32, kv KV, blocks []int32, from, to, head int, scale, softCap float32) {
	clear(y)
	state := running{largest: float32(math.Inf(-1))}
	for at := from; at < to; {
		block, slot := blocks[at/kv.BlockTokens], at%kv.BlockTokens
		n := min(step, kv.BlockTokens-slot, to-at)
		row := int(block)*kv.Stride + slot*kv.Width + head
		state.step(y, q, kv.Keys[row:], kv.Values[row:], n, kv.Width, scale, softCap)
		at += n
	}
	state.finish(y)
}

// running is an attention so far: its largest score, and the sum of its weights, which are relative to that.
type running struct{ largest, sum float32 }

// step adds n positions, at most step, whose keys and values begin every width numbers, to y.
func (s *running) step(y, q, keys, values []float32, n, width int, scale, softCap float32) {
	var scores [step]float32
	here := scores[:n]
	largest := s.largest
	for i := range here {
		here[i] = scale * Dot(q, keys[i*width:][:len(q)])
		if softCap != 0 {
			here[i] = capped(here[i], softCap)
		}
		largest = max(largest, here[i])
	}
	if largest > s.largest {
		shrink := exp(s.largest - largest)
		s.sum *= shrink
		for i := range y {
			y[i] *= shrink
		}
		s.largest = largest
	}
	for i, score := range here {
		p := exp(score - s.largest)
		s.sum += p
		for j, v := range values[i*width:][:len(y)] {
			y[j] += float32(p * v)
		}
	}
}

func (s *running) finish(y []float32) {
	for i := range y {
		y[i] /= s.sum
	}
}

// AttendRef is Attend by its definition, in float64.
func AttendRef(y, q []float32, kv KV, blocks []int32, from, to, head int, scale, softCap float32) {
	scores := make([]float64, to-from)
	largest, sum := math.Inf(-1), 0.0
	for i := range scores {
		at := from + i
		k := kv.Key(blocks[at/kv.BlockTokens], at%kv.BlockTokens)[head : head+len(q)]
		scores[i] = float64(scale) * DotRef(q, k)
		if softCap != 0 {
			scores[i] = float64(softCap) * math.Tanh(scores[i]/float64(softCap))
		}
		largest = max(largest, scores[i])
	}
	for i := range scores {
		scores[i] = math.Exp(scores[i] - largest)
		sum += scores[i]
	}
	for j := range y {
		out := 0.0
		for i, p := range scores {
			at := from + i
			out += p / sum * float64(kv.Value(blocks[at/kv.BlockTokens], at%kv.BlockTokens)[head+j])
		}
		y[j] = float32(out)
	}
}
