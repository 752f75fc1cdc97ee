package cpu

import (
	"encoding/binary"
	"math"

	"github.com/estiba/estiba/runtime/tensor"
)

// Panels of the formats whose blocks have 256 columns. What a checkpoint has as bytes of a row is turned so that
// 64 bytes, a vector, have four columns of each row, a byte each. For each 256 columns:
//
//	a vector of 16 halves d and 16 halves m; in Q6_K of 16 float32 d
//	for each 64 columns, the groups g and g+1, a unit:
//	  Q4_K  a vector: scale and minimum of group g, scale and minimum of group g+1
//	        8 vectors: number i has columns 4i.. of group g in its low four bits, those of group g+1 in the high
//	  Q5_K  a vector of scales and minima, then for each group 5 vectors, as in Q5_0
//	  Q6_K  a vector: the two signed scales of group g, the two of group g+1; then for each half of a group
//	        3 vectors: number i has columns 4i.. in its low six bits; columns 12.., by two bits, are atop 0, 1 and 2
//
// So most columns take one instruction to have, and half a group is whole by itself. These are 2.8 % more bytes than
// a checkpoint has in Q4_K, 2.3 % in Q5_K, 1 % in Q6_K.
var (
	formatQ4K = block256Format(tensor.Q4_K, packQ4K)
	formatQ5K = block256Format(tensor.Q5_K, packQ5K)
	formatQ6K = sixBitFormat()
)

// vector is the bytes of a vector: four of each row.
const vector = 4 * PanelRows

// block256Format is Q4_K or Q5_K.
func block256Format(d tensor.DType, pack kernel) format {
	block, bits := int(d.Bytes(256)), 4
	if d == tensor.Q5_K {
		bits = 5
	}
	unit := (1 + 2*bits) * vector
	size := vector + 4*unit
	return format{
		least: true, packKernel: pack,
		panelBytes: func(cols int) int { return cols / 256 * size },
		pack: func(panel, row []byte, cols, lane int) {
			for ; len(row) > 0; panel, row = panel[size:], row[block:] {
				copy(panel[2*lane:], row[:2])
				copy(panel[2*PanelRows+2*lane:], row[2:4])
				scale, least := sixes(row[4:])
				for g := range 8 {
					to := panel[vector+g/2*unit+4*lane:]
					to[g%2*2], to[g%2*2+1] = scale[g], least[g]
					to = to[vector:]
					nibbles := row[block-128+g/2*32:]
					if bits == 4 {
						for k, b := range nibbles[:32] {
							to[k/4*vector+k%4] = b
						}
						continue
					}
					to = to[g%2*5*vector:]
					var q [32]uint8
					for k := range q {
						q[k] = nibbles[k]>>(g%2*4)&15 | row[16+k]>>g&1<<4
					}
					packFives(to, &q)
				}
			}
		},
		group: func(q *[32]uint8, panel []byte, _, g, lane int) (s [2]float32, m float32) {
			panel = panel[g/8*size:]
			b := panel[vector+g%8/2*unit+4*lane:]
			g %= 2
			s[0] = half(panel[2*lane:]) * float32(b[g*2])
			m = -(half(panel[2*PanelRows+2*lane:]) * float32(b[g*2+1]))
			b = b[vector:]
			if bits == 4 {
				for k := range q {
					q[k] = b[k/4*vector+k%4] >> (g * 4) & 15
				}
				return s, m
			}
			b = b[g*5*vector:]
			unpackFives(q, b)
			return s, m
		},
	}
}

// sixBitFormat is Q6_K.
func sixBitFormat() format {
	const block, unit = 210, 13 * vector
	const size = vector + 4*unit
	return format{
		offset: 32, halves: true, packKernel: packQ6K,
		panelBytes: func(cols int) int { return cols / 256 * size },
		pack: func(panel, row []byte, cols, lane int) {
			for ; len(row) > 0; panel, row = panel[size:], row[block:] {
				d := math.Float32bits(half(row[208:]))
				if d&(1<<31-1) > 0x7f800000 {
					d |= 1 << 22 // no number, made quiet, as the processor's conversion does
				}
				binary.LittleEndian.PutUint32(panel[4*lane:], d)
				for g := range 8 {
					to := panel[vector+g/2*unit+4*lane:]
					copy(to[g%2*2:], row[192+2*g:192+2*g+2])
					to = to[vector+g%2*6*vector:]
					low, high := row[g/4*64+g%2*32:], row[128+g/4*32:]
					for k := range 32 {
						q := low[k]>>(g%4/2*4)&15 | high[k]>>(g%4*2)&3<<4
						half := to[k/16*3*vector+k%4:]
						if i := k % 16 / 4; i < 3 {
							half[i*vector] |= q
							continue
						}
						half[0] |= q >> 4 << 6
						half[vector] |= q >> 2 << 6
						half[2*vector] |= q << 6
					}
				}
			}
		},
		group: func(q *[32]uint8, panel []byte, _, g, lane int) (s [2]float32, m float32) {
			panel = panel[g/8*size:]
			b := panel[vector+g%8/2*unit+4*lane:]
			g %= 2
			d := math.Float32frombits(binary.LittleEndian.Uint32(panel[4*lane:]))
			s = [2]float32{d * float32(int8(b[g*2])), d * float32(int8(b[g*2+1]))}
			b = b[vector+g*6*vector:]
			for k := range q {
				half := b[k/16*3*vector+k%4:]
				if i := k % 16 / 4; i < 3 {
					q[k] = half[i*vector] & 63
				} else {
					q[k] = half[0]>>6<<4 | half[vector]>>6<<2 | half[2*vector]>>6
				}
			}
			return s, 0
		},
	}
}
