package cpu

import (
	"fmt"
	"math"
	"unsafe"
)

// HalfKV is KV of halves. Whatever holds key and value heads otherwise than KV's blocks do is one too: Width is the
// distance of a head's rows in a block.
type HalfKV struct {
	Keys, Values               []uint16
	BlockTokens, Width, Stride int
}

// PagedHalf is Paged of halves.
func PagedHalf(data []uint16, blockTokens, width, stride int) HalfKV {
	return HalfKV{Keys: data, Values: data[blockTokens*width:], BlockTokens: blockTokens, Width: width, Stride: stride}
}

// Key of a position in a block [Width].
func (c HalfKV) Key(block int32, slot int) []uint16 { return c.row(c.Keys, block, slot) }

// Value of a position in a block [Width].
func (c HalfKV) Value(block int32, slot int) []uint16 { return c.row(c.Values, block, slot) }

func (c HalfKV) row(data []uint16, block int32, slot int) []uint16 {
	at := int(block)*c.Stride + slot*c.Width
	return data[at : at+c.Width : at+c.Width]
}

// check panics if a row of positions from to to is not there, or if there are none.
func (c HalfKV) check(blocks []int32, from, to, head, dim int) {
	if from < 0 || from >= to || head < 0 || dim < 1 {
		panic(fmt.Sprintf("cpu: attend to positions %d to %d, head at %d of %d", from, to, head, dim))
	}
	for at := from / c.BlockTokens; at*c.BlockTokens < to; at++ {
		end := int(blocks[at])*c.Stride + (min(c.BlockTokens, to-at*c.BlockTokens)-1)*c.Width + head + dim
		if blocks[at] < 0 || end > len(c.Keys) || end > len(c.Values) {
			panic("cpu: attend to what is not in the cache")
		}
	}
}

// AttendScratch is how many float32 Attend needs for so many heads of dim, and AttendTile and AttendAll for so many
// queries times heads.
func AttendScratch(rows, dim int) int {
	wide := (dim + 15) / 16 * 16
	return (rows+7)/8*8*(2*wide+step+17) + 3*step*wide + 2048
}

// cache is struct cache of c/attention.c.
type cache struct {
	keys, values                     *uint16
	blocks                           *int32
	blockTokens, width, stride, head int64
}

func (c HalfKV) cache(blocks []int32, head int) cache {
	return cache{unsafe.SliceData(c.Keys), unsafe.SliceData(c.Values), unsafe.SliceData(blocks), int64(c.BlockTokens), int64(c.Width), int64(c.Stride), int64(head)}
}

// Attend computes y [heads, dim], the attention of the queries q [heads, dim] that share a key and value head: as
// the function Attend, in steps of 64 positions from from on. A head's result does not depend on the others. scratch has
// AttendScratch(heads, dim). It panics where a row, a block or the scratch is not there.
func (p Path) Attend(y, q []float32, heads, dim int, kv HalfKV, blocks []int32, from, to, head int, scale, softCap float32, scratch []float32) {
	if p == PlainGo {
		attendHalf(y, q, heads, dim, kv, blocks, from, to, head, scale, softCap, scratch)
		return
	}
	kv.check(blocks, from, to, head, dim)
	a := struct {
		y, q, scratch        *float32
		kv                   cache
		heads, dim, from, to int64
		scale, softCap       float32
	}{of(y, heads*dim), of(q, heads*dim), of(scratch, AttendScratch(heads, dim)), kv.cache(blocks, head), int64(heads), int64(dim), int64(from), int64(to), scale, softCap}
	attendHeads(p, unsafe.Pointer(&a))
}

// AttendTile is Attend for consecutive queries at positions from first on, each to its own position and, if window is
// not 0, only to the last window of those: query i's heads [heads, dim] are at number i*stride of q, and their
// results there in y. Keys and values are converted once for all of them, so some 64 rows (queries times heads) pay.
// Steps begin at multiples of 64, so that a query's result does not depend on which others are in the
// tile; it is not Attend's to the last bit. scratch has AttendScratch(queries*heads, dim).
func (p Path) AttendTile(y, q []float32, queries, heads, stride, dim int, kv HalfKV, blocks []int32, first, window, head int, scale, softCap float32, scratch []float32) {
	if p == PlainGo {
		for i := range queries {
			end, from := first+i+1, 0
			if window > 0 {
				from = max(0, end-window)
			}
			attendHalf(y[i*stride:][:heads*dim], q[i*stride:][:heads*dim], heads, dim, kv, blocks, from, end, head, scale, softCap, scratch)
		}
		return
	}
	from := 0
	if window > 0 {
		from = max(0, first+1-window)
	}
	kv.check(blocks, from, first+queries, head, dim)
	a := tileOf(y, q, queries, heads, stride, dim, scale, softCap, scratch)
	a.kv, a.first, a.window = kv.cache(blocks, head), int64(first), int64(window)
	attendTile(p, unsafe.Pointer(&a))
}

// AttendAll is AttendTile of queries that all attend to all n positions, whose keys and values [n, width] are float32: on
// the way they become halves, as in a cache. It is for encoders.
func (p Path) AttendAll(y, q []float32, queries, heads, stride, dim int, keys, values []float32, n, width, head int, scale, softCap float32, scratch []float32) {
	if p == PlainGo {
		kv := KV{Keys: keys, Values: values, BlockTokens: n, Width: width}
		for i := range queries * heads {
			at := i/heads*stride + i%heads*dim
			Attend(y[at:at+dim], q[at:at+dim], kv, oneBlock, 0, n, head, scale, softCap)
		}
		return
	}
	if n < 1 || width < 0 || head < 0 {
		panic(fmt.Sprintf("cpu: attend to %d positions, head at %d of %d", n, head, width))
	}
	a := tileOf(y, q, queries, heads, stride, dim, scale, softCap, scratch)
	end := (n-1)*width + head + dim
	a.kv.keys, a.kv.values = (*uint16)(unsafe.Pointer(of(keys, end))), (*uint16)(unsafe.Pointer(of(values, end)))
	a.kv.width, a.kv.head, a.all = int64(width), int64(head), int64(n)
	attendTile(p, unsafe.Pointer(&a))
}

// oneBlock is the block table of a sequence whose keys and values lie together.
var oneBlock = []int32{0}

// attentionTile is struct attend_tile of c/attention.c.
type attentionTile struct {
	y, q, scratch                                   *float32
	kv                                              cache
	queries, heads, stride, dim, first, window, all int64
	scale, softCap                                  float32
}

func tileOf(y, q []float32, queries, heads, stride, dim int, scale, softCap float32, scratch []float32) attentionTile {
	if queries < 1 || heads < 1 || dim < 1 || stride < heads*dim {
		panic(fmt.Sprintf("cpu: attend with %d queries of %d heads [%d], %d numbers apart", queries, heads, dim, stride))
	}
	n := (queries-1)*stride + heads*dim
	return attentionTile{
		y: of(y, n), q: of(q, n), scratch: of(scratch, AttendScratch(queries*heads, dim)),
		queries: int64(queries), heads: int64(heads), stride: int64(stride), dim: int64(dim), scale: scale, softCap: softCap,
	}
}

// attendHalf is Attend in plain Go.
func attendHalf(y, q []float32, heads, dim int, kv HalfKV, blocks []int32, from, to, head int, scale, softCap float32, scratch []float32) {
	y = y[:heads*dim]
	clear(y)
	keys, values := scratch[:step*dim], scratch[step*dim:2*step*dim]
	states := make([]running, heads)
	for h := range states {
		states[h].largest = -math.MaxFloat32
	}
	for at := from; at < to; at += step {
		n := min(step, to-at)
		for i := range n {
			block, slot := blocks[(at+i)/kv.BlockTokens], (at+i)%kv.BlockTokens
			row := int(block)*kv.Stride + slot*kv.Width + head
			for j := range dim {
				keys[i*dim+j], values[i*dim+j] = F16(kv.Keys[row+j]), F16(kv.Values[row+j])
			}
		}
		for h := range heads {
			states[h].step(y[h*dim:(h+1)*dim], q[h*dim:(h+1)*dim], keys, values, n, dim, scale, softCap)
		}
	}
	for h := range heads {
		states[h].finish(y[h*dim : (h+1)*dim])
	}
}
