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
//	Q5_0, Q5_1  the same, then 64 bytes of fifth bits: bit i of byte j of a row is of column 4i+j
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
					fifth := binary.LittleEndian.Uint32(src)
					src = src[4:]
					for k := range 32 {
						to[256+4*lane+k%4] |= byte(fifth>>k&1) << (k / 4)
					}
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
			for k := range 16 {
				b := from[k/4*64+k%4]
				q[k], q[k+16] = b&15, b>>4
			}
			if vectors == 5 {
				for k := range q {
					q[k] |= from[256+k%4] >> (k / 4) & 1 << 4
				}
			}
			return s, m
		},
	}
}
