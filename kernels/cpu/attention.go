package cpu

import "math"

// KV is one layer of a paged cache. A block of it is [2, BlockTokens, Width], first
// the keys, then the values; Width is heads*dim. Blocks begin every Stride numbers of
// Data, since a block has its other layers between; 0 means that there are none.
type KV struct {
	Data               []float32
	BlockTokens, Width int
	Stride             int
}

// Key of a position in a block [Width].
func (c KV) Key(block int32, slot int) []float32 {
	at := int(block)*c.stride() + slot*c.Width
	return c.Data[at : at+c.Width : at+c.Width]
}

// Value of a position in a block [Width].
func (c KV) Value(block int32, slot int) []float32 {
	at := int(block)*c.stride() + (c.BlockTokens+slot)*c.Width
	return c.Data[at : at+c.Width : at+c.Width]
}

func (c KV) stride() int {
	if c.Stride == 0 {
		return 2 * c.BlockTokens * c.Width
	}
	return c.Stride
}

// step is how many positions attention takes at once.
const step = 64

// Attend computes y [dim], the attention of a query q [dim] to the first n
// positions of a sequence: softmax(scale * q·k) v, of the key and value head
// that starts at number head of a cached row. blocks is the sequence's block
// table. It takes positions in steps that depend on the block size alone, with the running
// maximum of arXiv:1805.02867, so memory does not grow with n.
func Attend(y, q []float32, kv KV, blocks []int32, n, head int, scale float32) {
	clear(y)
	largest, sum := float32(math.Inf(-1)), float32(0)
	var scores [step]float32
	for at := 0; at < n; {
		block, slot := blocks[at/kv.BlockTokens], at%kv.BlockTokens
		here := scores[:min(step, kv.BlockTokens-slot, n-at)]
		largestNow := largest
		for i := range here {
			here[i] = scale * Dot(q, kv.Key(block, slot+i)[head:head+len(q)])
			largestNow = max(largestNow, here[i])
		}
		if largestNow > largest {
			shrink := exp(largest - largestNow)
			sum *= shrink
			for i := range y {
				y[i] *= shrink
			}
			largest = largestNow
		}
		for i, s := range here {
			p := exp(s - largest)
			sum += p
			for j, v := range kv.Value(block, slot+i)[head : head+len(y)] {
				y[j] += float32(p * v)
			}
		}
		at += len(here)
	}
	for i := range y {
		y[i] /= sum
	}
}

// AttendRef is Attend by its definition, in float64.
func AttendRef(y, q []float32, kv KV, blocks []int32, n, head int, scale float32) {
	scores := make([]float64, n)
	largest, sum := math.Inf(-1), 0.0
	for at := range n {
		k := kv.Key(blocks[at/kv.BlockTokens], at%kv.BlockTokens)[head : head+len(q)]
		scores[at] = float64(scale) * DotRef(q, k)
		largest = max(largest, scores[at])
	}
	for at := range scores {
		scores[at] = math.Exp(scores[at] - largest)
		sum += scores[at]
	}
	for j := range y {
		out := 0.0
		for at, p := range scores {
			out += p / sum * float64(kv.Value(blocks[at/kv.BlockTokens], at%kv.BlockTokens)[head+j])
		}
		y[j] = float32(out)
	}
}
