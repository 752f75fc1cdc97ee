package cuda

// AnglesParams are those of Angles.
type AnglesParams struct {
	Cos, Sin    Address // [Rows, Pairs] float32
	Positions   Address // [Rows] int32
	Frequencies Address // [Pairs] float32, radians per position
	Divisors    Address // [Pairs] float32 of the frequencies, or 0
	Rows, Pairs int
	Amplitude   float32
}

type anglesParams struct {
	cos, sin, positions, frequencies, divisors Address
	rows, pairs                                int32
	amplitude                                  float32
	_                                          int32
}

// Angles computes the cosines and sines, times Amplitude, by which Rope turns each pair at each row's
// position; once a step for all layers of a rotation. Angles are rounded to float32, as in the programs
// that models are trained with; cosines and sines are within 2 ulp.
func Angles(p AnglesParams) Launch {
	return launch("angles", [3]uint32{blocks(p.Rows*p.Pairs, 256), 1, 1}, 256, 0, &anglesParams{
		p.Cos, p.Sin, p.Positions, p.Frequencies, p.Divisors, int32(p.Rows), int32(p.Pairs), p.Amplitude, 0,
	})
}

// RopeParams are those of Rope. What has no heads is left out.
type RopeParams struct {
	Y, X  Address // [Rows, Heads*Dim] float32; Y is X rotated, and may be X
	Heads int

	K, V    Address // [Rows, KVHeads*Dim] float32: K rotated, and V, go into the cache, as halves
	KVHeads int
	Cache   CachePlace

	Cos, Sin   Address // [Rows, Pairs] of Angles
	Rows, Dim  int
	Pairs      int  // rotated in each head; numbers beyond them stay as they are
	Neighbours bool // pairs are (2i, 2i+1); otherwise (i, i+Pairs)
}

// CachePlace says where a layer of the cache has the position of each row of a step.
type CachePlace struct {
	Keys, Values Address // of the layer, at position 0 of block 0
	BlockStride  int64   // bytes from block to block
	BlockTokens  int
	Positions    Address // [Rows] int32
	SpanOf       Address // [Rows] int32
	Tables       Address // [spans, TableStride] int32: block numbers
	TableStride  int
}

type ropeParams struct {
	y, x, k, v, cos, sin, keys, values, positions, spanOf, tables          Address
	blockStride                                                            int64
	tableStride, blockTokens, rows, heads, kvHeads, dim, pairs, neighbours int32
}

// Rope rotates queries, rotates keys and puts them into the cache, and values too: all of it, or what
// has heads. Without Pairs nothing is rotated.
func Rope(p RopeParams) Launch {
	n := p.Rows * ((p.Heads+p.KVHeads)*(p.Dim-p.Pairs) + p.KVHeads*p.Dim)
	c := &ropeParams{
		p.Y, p.X, p.K, p.V, p.Cos, p.Sin, p.Cache.Keys, p.Cache.Values, p.Cache.Positions, p.Cache.SpanOf, p.Cache.Tables,
		p.Cache.BlockStride,
		int32(p.Cache.TableStride), int32(p.Cache.BlockTokens), int32(p.Rows), int32(p.Heads), int32(p.KVHeads), int32(p.Dim), int32(p.Pairs), flag(p.Neighbours),
	}
	return launch("ropeStore", [3]uint32{blocks(n, 256), 1, 1}, 256, 0, c)
}
