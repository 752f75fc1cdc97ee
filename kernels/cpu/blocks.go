package cpu

import (
	"encoding/binary"
	"fmt"

	"github.com/estiba/estiba/runtime/tensor"
)

// Block formats, in bytes; d and m are halves, "low" and "high" are four bits of
// a byte. Source: ggml's ggml-common.h (the structures) and the reference
// dequantization of ggml-quants.c.
//
//	Q8_0  32: d, 32 signed q                      d q
//	Q4_0  32: d, 16 bytes                         d (q-8);  q of element i is low of byte i, of element i+16 high
//	Q4_1  32: d, m, 16 bytes                      d q + m;  q as in Q4_0
//	Q5_0  32: d, 32 fifth bits, 16 bytes          d (q-16); bit i of the little-endian word is the fifth of element i
//	Q5_1  32: d, m, 32 fifth bits, 16 bytes       d q + m
//	Q4_K 256: d, m, 12 bytes of scales, 128 bytes (d s) q - m t; s and t of six bits for each 32 elements;
//	          32 bytes hold 64 elements, the first 32 low, the others high
//	Q5_K 256: d, m, 12 bytes of scales, 32 bytes of fifth bits, 128 bytes; bit j of byte i is of element i of the j-th 32
//	Q6_K 256: 128 bytes low, 64 bytes of two high bits, 16 signed scales s, d: (d s)(q-32); s for each 16 elements;
//	          each half of the block: 64 and 32 bytes for four times 32 elements
//
// Products and sums are rounded one by one, in the order of the formulas.

func half(b []byte) float32 { return F16(binary.LittleEndian.Uint16(b)) }

// decodeQ8 writes the elements of whole Q8_0 blocks.
func decodeQ8(dst []float32, src []byte) {
	for len(dst) >= 32 && len(src) >= 34 {
		y, b := dst[:32], src[2:34]
		d := half(src)
		for i := range y {
			y[i] = d * float32(int8(b[i]))
		}
		dst, src = dst[32:], src[34:]
	}
}

func decodeQ4(dst []float32, src []byte) {
	for len(dst) >= 32 && len(src) >= 18 {
		y, z, b := dst[:16], dst[16:32], src[2:18]
		d := half(src)
		for i := range y {
			y[i] = d * float32(int(b[i]&15)-8)
			z[i] = d * float32(int(b[i]>>4)-8)
		}
		dst, src = dst[32:], src[18:]
	}
}

func decodeQ41(dst []float32, src []byte) {
	for len(dst) >= 32 && len(src) >= 20 {
		y, z, b := dst[:16], dst[16:32], src[4:20]
		d, m := half(src), half(src[2:])
		for i := range y {
			y[i] = float32(d*float32(b[i]&15)) + m
			z[i] = float32(d*float32(b[i]>>4)) + m
		}
		dst, src = dst[32:], src[20:]
	}
}

func decodeQ5(dst []float32, src []byte) {
	for len(dst) >= 32 && len(src) >= 22 {
		y, z, b := dst[:16], dst[16:32], src[6:22]
		d, fifth := half(src), binary.LittleEndian.Uint32(src[2:])
		for i := range y {
			y[i] = d * float32(int(uint32(b[i]&15)|fifth>>i<<4&16)-16)
			z[i] = d * float32(int(uint32(b[i]>>4)|fifth>>(i+16)<<4&16)-16)
		}
		dst, src = dst[32:], src[22:]
	}
}

func decodeQ51(dst []float32, src []byte) {
	for len(dst) >= 32 && len(src) >= 24 {
		y, z, b := dst[:16], dst[16:32], src[8:24]
		d, m, fifth := half(src), half(src[2:]), binary.LittleEndian.Uint32(src[4:])
		for i := range y {
			y[i] = float32(d*float32(uint32(b[i]&15)|fifth>>i<<4&16)) + m
			z[i] = float32(d*float32(uint32(b[i]>>4)|fifth>>(i+16)<<4&16)) + m
		}
		dst, src = dst[32:], src[24:]
	}
}

// sixes unpacks the scales and minima, six bits each, of Q4_K and Q5_K. The low
// six bits of bytes 0-3 and 4-7 are the scales and minima 0-3. Of 4-7, the low
// four bits are in bytes 8-11 (scales low, minima high), the upper two atop bytes 0-7.
func sixes(b []byte) (scale, least [8]uint8) {
	b = b[:12]
	for j := range 4 {
		scale[j], least[j] = b[j]&63, b[j+4]&63
		scale[j+4] = b[j+8]&15 | b[j]>>6<<4
		least[j+4] = b[j+8]>>4 | b[j+4]>>6<<4
	}
	return scale, least
}

func decodeQ4K(dst []float32, src []byte) {
	for len(dst) >= 256 && len(src) >= 144 {
		d, m := half(src), half(src[2:])
		scale, least := sixes(src[4:])
		for j := 0; j < 8; j += 2 {
			y, z, b := dst[32*j:32*j+32], dst[32*j+32:32*j+64], src[16+16*j:16+16*j+32]
			d0, m0 := d*float32(scale[j]), m*float32(least[j])
			d1, m1 := d*float32(scale[j+1]), m*float32(least[j+1])
			for i := range y {
				y[i] = float32(d0*float32(b[i]&15)) - m0
				z[i] = float32(d1*float32(b[i]>>4)) - m1
			}
		}
		dst, src = dst[256:], src[144:]
	}
}

func decodeQ5K(dst []float32, src []byte) {
	for len(dst) >= 256 && len(src) >= 176 {
		d, m := half(src), half(src[2:])
		scale, least := sixes(src[4:])
		fifth := src[16:48]
		for j := 0; j < 8; j += 2 {
			y, z, b := dst[32*j:32*j+32], dst[32*j+32:32*j+64], src[48+16*j:48+16*j+32]
			d0, m0 := d*float32(scale[j]), m*float32(least[j])
			d1, m1 := d*float32(scale[j+1]), m*float32(least[j+1])
			for i := range y {
				y[i] = float32(d0*float32(b[i]&15|fifth[i]>>j<<4&16)) - m0
				z[i] = float32(d1*float32(b[i]>>4|fifth[i]>>(j+1)<<4&16)) - m1
			}
		}
		dst, src = dst[256:], src[176:]
	}
}

func decodeQ6K(dst []float32, src []byte) {
	for len(dst) >= 256 && len(src) >= 210 {
		d := half(src[208:])
		for h := range 2 {
			y, low, high, scales := dst[128*h:128*h+128], src[64*h:64*h+64], src[128+32*h:128+32*h+32], src[192+8*h:192+8*h+8]
			var s [8]float32
			for i := range s {
				s[i] = d * float32(int8(scales[i]))
			}
			for i := range high {
				a, b, c, g := low[i], low[i+32], high[i], i/16
				y[i] = s[g] * float32(int(a&15|c<<4&48)-32)
				y[i+32] = s[g+2] * float32(int(b&15|c<<2&48)-32)
				y[i+64] = s[g+4] * float32(int(a>>4|c&48)-32)
				y[i+96] = s[g+6] * float32(int(b>>4|c>>2&48)-32)
			}
		}
		dst, src = dst[256:], src[210:]
	}
}

// RowRef is Row, element by element, from the description of the formats and in
// float64, which holds every product and sum of theirs exactly.
func (m Matrix) RowRef(dst []float32, i int) {
	row := m.row(i, 0)
	for j := range m.Cols {
		dst[j] = float32(element(m.DType, row, j))
	}
}

// element i of a row.
func element(d tensor.DType, row []byte, i int) float64 {
	block := d.Block()
	size := int(d.Bytes(int64(block)))
	b := row[i/block*size : (i/block+1)*size]
	i %= block
	number := func(at int) float64 { return float64(F16Ref(binary.LittleEndian.Uint16(b[at:]))) }
	// nibble i of two times n in n bytes from at on.
	nibble := func(at, i, n int) int { return int(b[at+i%n]) >> (i / n * 4) & 15 }
	bit := func(at, i int) int { return int(b[at+i/8]) >> (i % 8) & 1 }
	// six bits of a scale or minimum.
	six := func(least bool, j int) float64 {
		at, shift := 4+j, 0
		if least {
			at, shift = 8+j, 4
		}
		if j < 4 {
			return float64(b[at] & 63)
		}
		return float64(int(b[8+j])>>shift&15 + int(b[at-4])>>6*16)
	}
	switch d {
	case tensor.F32:
		var x [1]float32
		decode(x[:], b, d)
		return float64(x[0])
	case tensor.F16:
		return number(0)
	case tensor.BF16:
		return float64(BF16(binary.LittleEndian.Uint16(b)))
	case tensor.Q8_0:
		return number(0) * float64(int8(b[2+i]))
	case tensor.Q4_0:
		return number(0) * float64(nibble(2, i, 16)-8)
	case tensor.Q4_1:
		return number(0)*float64(nibble(4, i, 16)) + number(2)
	case tensor.Q5_0:
		return number(0) * float64(nibble(6, i, 16)+16*bit(2, i)-16)
	case tensor.Q5_1:
		return number(0)*float64(nibble(8, i, 16)+16*bit(4, i)) + number(2)
	case tensor.Q4_K:
		return number(0)*six(false, i/32)*float64(nibble(16+i/64*32, i%64, 32)) - number(2)*six(true, i/32)
	case tensor.Q5_K:
		q := nibble(48+i/64*32, i%64, 32) + 16*bit(16+i%32, i/32)
		return number(0)*six(false, i/32)*float64(q) - number(2)*six(true, i/32)
	case tensor.Q6_K:
		h, j := i/128, i%128
		q := nibble(64*h, j, 64) + int(b[128+32*h+j%32])>>(j/32*2)&3*16
		return number(208) * float64(int8(b[192+i/16])) * float64(q-32)
	}
	panic(fmt.Sprintf("cpu: no format %v", d))
}
