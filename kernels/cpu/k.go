package cpu

import "github.com/estiba/estiba/runtime/tensor"

// Panels of the formats whose blocks have 256 columns: the 16 rows, one after the other, as a checkpoint has them.
var (
	formatQ4K = block256Format(tensor.Q4_K, 0, true, false)
	formatQ5K = block256Format(tensor.Q5_K, 0, true, false)
	formatQ6K = block256Format(tensor.Q6_K, 32, false, true)
)

func block256Format(d tensor.DType, offset int32, least, halves bool) format {
	block := int(d.Bytes(256))
	return format{
		offset: offset, least: least, halves: halves,
		panelBytes: func(cols int) int { return (16*cols/256*block + 63) / 64 * 64 },
		pack: func(panel, row []byte, cols, lane int) {
			copy(panel[lane*cols/256*block:], row)
		},
		group: func(q *[32]uint8, panel []byte, cols, g, lane int) (s [2]float32, m float32) {
			b := panel[(lane*cols/256+g/8)*block:][:block]
			g %= 8
			if d == tensor.Q6_K {
				for i := range q {
					h, j := g/4, g%4*32+i
					low := b[64*h+j%64] >> (j / 64 * 4) & 15
					q[i] = low | b[128+32*h+j%32]>>(j/32*2)&3<<4
				}
				for i := range s {
					s[i] = half(b[208:]) * float32(int8(b[192+2*g+i]))
				}
				return s, 0
			}
			scale, minimum := sixes(b[4:])
			nibbles := b[len(b)-128+g/2*32:]
			for i := range q {
				q[i] = nibbles[i] >> (g % 2 * 4) & 15
				if d == tensor.Q5_K {
					q[i] |= b[16+i] >> g & 1 << 4
				}
			}
			s[0] = half(b) * float32(scale[g])
			return s, -(half(b[2:]) * float32(minimum[g]))
		},
	}
}
