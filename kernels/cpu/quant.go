package cpu

import (
	"encoding/binary"

	"github.com/estiba/estiba/runtime/tensor"
)

// Panels of the formats whose blocks have 32 columns: for each two blocks of columns 64 bytes of scales, halves
// [2, 16 rows] (another 64 of minima, where there are such), then a plane for each block. An odd last block has
// the same, with one plane. A plane:
//
//	Q8_0        8 times 64 bytes: 16 rows x 4 columns, q + 128
//	Q4_0, Q4_1  4 times 64 bytes: number i has for each row columns 4i.. in its low four bits, columns 4i+16.. in the high
//	Q5_0, Q5_1  5 times 64 bytes: number i has columns 4i.. in its low five bits. Of columns 20.. three bits are atop
//	            number 0 and two atop number 1, of columns 24.. the same atop 2 and 3, of columns 28.. three atop 4,
//	            one at bit 5 of 1 and 3. So most columns take one instruction to have
var (
	formatQ80 = block32Format(tensor.Q8_0, 8, 128, false, packQ80)
	formatQ40 = block32Format(tensor.Q4_0, 4, 8, false, packQ40)
	formatQ41 = block32Format(tensor.Q4_1, 4, 0, true, packQ41)
	formatQ50 = block32Format(tensor.Q5_0, 5, 16, false, packQ50)
	formatQ51 = block32Format(tensor.Q5_1, 5, 0, true, packQ51)
)

// block32Format has planes of so many vectors of 64 bytes.
func block32Format(d tensor.DType, vectors int, offset int32, least bool, pack kernel) format {
	header := 64
	if least {
		header = 128
	}
	pair := header + 2*64*vectors
	// where block g's plane, and its first scale, are.
	at := func(g int) (plane, scale int) {
		scale = g/2*pair + g%2*32
		return g/2*pair + header + g%2*64*vectors, scale
	}
	block := int(d.Bytes(32))
	return format{
		offset: offset, least: least, packKernel: pack,
		panelBytes: func(cols int) int { return cols/64*pair + cols/32%2*(header+64*vectors) },
		pack: func(panel, row []byte, cols, lane int) {
			for g := range cols / 32 {
				src := row[g*block : (g+1)*block]
				plane, scale := at(g)
				copy(panel[scale+2*lane:], src[:2])
				src = src[2:]
				if least {
					copy(panel[scale+64+2*lane:], src[:2])
					src = src[2:]
				}
				to := panel[plane:]
				if vectors == 8 {
					for k := range 32 {
						to[k/4*64+4*lane+k%4] = src[k] ^ 128
					}
					continue
				}
				if vectors == 5 {
					var q [32]uint8
					fifth := binary.LittleEndian.Uint32(src)
					for k := range q {
						q[k] = src[4+k%16]>>(k/16*4)&15 | byte(fifth>>k&1)<<4
					}
					packFives(to[4*lane:], &q)
					continue
				}
				for k := range 16 { // low: column k, high: column k+16
					to[k/4*64+4*lane+k%4] = src[k]
				}
			}
		},
		group: func(q *[32]uint8, panel []byte, _, g, lane int) (s [2]float32, m float32) {
			plane, scale := at(g)
			s[0] = half(panel[scale+2*lane:])
			if least {
				m = half(panel[scale+64+2*lane:])
			}
			from := panel[plane+4*lane:]
			if vectors == 8 {
				for k := range q {
					q[k] = from[k/4*64+k%4]
				}
				return s, m
			}
			if vectors == 5 {
				unpackFives(q, from)
				return s, m
			}
			for k := range 16 {
				b := from[k/4*64+k%4]
				q[k], q[k+16] = b&15, b>>4
			}
			return s, m
		},
	}
}

// fives are the bits of columns 20 to 31 that lie atop others: mask of column 4*from+j is at the vector, shifted left.
var fives = []struct{ from, vector, mask, left int }{
	{5, 0, 0x1c, 3}, {5, 1, 3, 6}, {6, 2, 0x1c, 3}, {6, 3, 3, 6}, {7, 4, 0x1c, 3}, {7, 1, 2, 4}, {7, 3, 1, 5},
}

// packFives writes 32 columns of five bits to a lane.
func packFives(to []byte, q *[32]uint8) {
	for k, b := range q[:20] {
		to[k/4*64+k%4] = b
	}
	for _, f := range fives {
		for j, b := range q[4*f.from : 4*f.from+4] {
			to[f.vector*64+j] |= b & uint8(f.mask) << f.left
		}
	}
}

func unpackFives(q *[32]uint8, from []byte) {
	for k := range 20 {
		q[k] = from[k/4*64+k%4] & 31
	}
	clear(q[20:])
	for _, f := range fives {
		for j := range 4 {
			q[4*f.from+j] |= from[f.vector*64+j] >> f.left & uint8(f.mask)
		}
	}
}
