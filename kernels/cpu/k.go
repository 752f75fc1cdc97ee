package cpu

import (
	"encoding/binary"
	"math"

	"github.com/estiba/estiba/runtime/tensor"
)

// Panels of the formats whose blocks have 256 columns. What a checkpoint has as bytes of a row is turned so that
// 64 bytes, a vector, have four bytes of each row. For each 256 columns:
//
//	a vector of 16 halves d and 16 halves m; in Q6_K of 16 float32 d
//	in Q5_K 8 vectors of fifth bits: bit g of byte j of number i is of column 4i+j of group g, which has 32 columns
//	for each 64 columns, the groups g and g+1, a unit:
//	  Q4_K, Q5_K  a vector: scale and minimum of group g, scale and minimum of group g+1
//	              8 vectors: number i has columns 4i.. of group g in its low four bits, those of group g+1 in the high
//	  Q6_K        a vector: the two signed scales of group g, the two of group g+1
//	              4 vectors: number i has, by two, the high bits of columns 4i.. and 4i+16.. of group g, then of group g+1
//	              4 vectors for each group: number i has columns 4i.. in its low four bits, columns 4i+16.. in the high
//
// These are 2.8 % more bytes than a checkpoint has in Q4_K, 2.3 % in Q5_K, 1 % in Q6_K.
var (
	formatQ4K = block256Format(tensor.Q4_K, packQ4K, fewQ4K, manyQ4K)
	formatQ5K = block256Format(tensor.Q5_K, packQ5K, fewQ5K, manyQ5K)
	formatQ6K = sixBitFormat()
)

// vector is the bytes of a vector; four columns of a lane are at a multiple of it.
const vector = 4 * PanelRows

// block256Format is Q4_K or Q5_K.
func block256Format(d tensor.DType, pack, few, many kernel) format {
	const unit = 9 * vector
	block, units := int(d.Bytes(256)), vector
	if d == tensor.Q5_K {
		units += 8 * vector
	}
	size := units + 4*unit
	return format{
		least: true, packKernel: pack, few: few, many: many,
		panelBytes: func(cols int) int { return cols / 256 * size },
		pack: func(panel, row []byte, cols, lane int) {
			for ; len(row) > 0; panel, row = panel[size:], row[block:] {
				copy(panel[2*lane:], row[:2])
				copy(panel[2*PanelRows+2*lane:], row[2:4])
				scale, least := sixes(row[4:])
				for g := range scale {
					to := panel[units+g/2*unit+4*lane+g%2*2:]
					to[0], to[1] = scale[g], least[g]
				}
				nibbles := row[block-128:]
				for k, b := range nibbles[:128] {
					panel[units+k/32*unit+vector+k%32/4*vector+4*lane+k%4] = b
				}
				for k, b := range row[16 : block-128] {
					panel[vector+k/4*vector+4*lane+k%4] = b
				}
			}
		},
		group: func(q *[32]uint8, panel []byte, _, g, lane int) (s [2]float32, m float32) {
			panel = panel[g/8*size:]
			g %= 8
			b := panel[units+g/2*unit+4*lane:]
			for k := range q {
				at := k/4*vector + k%4
				q[k] = b[vector+at] >> (g % 2 * 4) & 15
				if d == tensor.Q5_K {
					q[k] |= panel[vector+4*lane+at] >> g & 1 << 4
				}
			}
			s[0] = half(panel[2*lane:]) * float32(b[g%2*2])
			return s, -(half(panel[2*PanelRows+2*lane:]) * float32(b[g%2*2+1]))
		},
	}
}

// sixBitFormat is Q6_K.
func sixBitFormat() format {
	const block, units, unit = 210, vector, 13 * vector
	const size = units + 4*unit
	return format{
		offset: 32, halves: true, packKernel: packQ6K, few: fewQ6K, many: manyQ6K,
		panelBytes: func(cols int) int { return cols / 256 * size },
		pack: func(panel, row []byte, cols, lane int) {
			for ; len(row) > 0; panel, row = panel[size:], row[block:] {
				binary.LittleEndian.PutUint32(panel[4*lane:], math.Float32bits(half(row[208:])))
				for g := range 8 {
					to := panel[units+g/2*unit+4*lane:]
					copy(to[g%2*2:], row[192+2*g:192+2*g+2])
					low, high, shift := row[g/4*64+g%2*32:], row[128+g/4*32:], g%4*2
					for k := range 16 { // with column k+16
						at := k/4*vector + k%4
						to[5*vector+g%2*4*vector+at] = low[k]>>(g%4/2*4)&15 | low[k+16]>>(g%4/2*4)&15<<4
						to[vector+at] |= (high[k]>>shift&3 | high[k+16]>>shift&3<<2) << (g % 2 * 4)
					}
				}
			}
		},
		group: func(q *[32]uint8, panel []byte, _, g, lane int) (s [2]float32, m float32) {
			panel = panel[g/8*size:]
			b := panel[units+g%8/2*unit+4*lane:]
			g %= 2
			for k := range 16 {
				at := k/4*vector + k%4
				low, high := b[5*vector+g*4*vector+at], b[vector+at]>>(g*4)
				q[k], q[k+16] = low&15|high&3<<4, low>>4|high>>2&3<<4
			}
			d := math.Float32frombits(binary.LittleEndian.Uint32(panel[4*lane:]))
			return [2]float32{d * float32(int8(b[g*2])), d * float32(int8(b[g*2+1]))}, 0
		},
	}
}
