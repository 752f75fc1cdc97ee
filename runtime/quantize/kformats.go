package quantize

import (
	"math"

	"github.com/estiba/estiba/kernels/cpu"
)

// trials are how far the range of a group is stretched or shrunk, in steps of its
// last level, when scales are tried: numbers at the edges may be cut for the
// sake of those within.
var trials = [...]float32{0, -0.9, -0.7, -0.5, -0.3, -0.15, 0.15, 0.3, 0.5}

// group is 32 numbers x ≈ scale q - least, both at least 0.
type group struct{ scale, least float32 }

// fit finds scale and least of x [32] for levels 0 … most: for each trial it rounds,
// then solves for the scale and least of the smallest weighted squared
// error. Large numbers weigh more.
func fit(x []float32, most float32) group {
	var weight [32]float32
	var w, wx, squares float32
	least, top := float32(0), x[0]
	for _, v := range x {
		squares += v * v
		least, top = min(least, v), max(top, v)
	}
	if top <= least {
		return group{0, -least} // all alike, none above 0
	}
	average := float32(math.Sqrt(float64(squares / 32)))
	for i, v := range x {
		weight[i] = average + abs(v)
		w += weight[i]
		wx += weight[i] * v
	}
	best, gain := group{}, float32(math.Inf(-1))
	for _, t := range trials {
		inverse := (most + t) / (top - least)
		var wq, wqq, wqx float32
		for i, v := range x {
			q := nearest(min((v-least)*inverse, most)) // not below 0
			p := weight[i] * q
			wq += p
			wqq += p * q
			wqx += p * v
		}
		g := group{}
		if det := w*wqq - wq*wq; det > 0 {
			g.scale = (w*wqx - wx*wq) / det
			g.least = (wq*wqx - wqq*wx) / det
		}
		if (g.scale <= 0 || g.least < 0) && wqq > 0 { // all on one level, or what the format has none of
			g = group{wqx / wqq, 0}
		}
		// The error is Σ w x² less this.
		if d := 2*g.scale*wqx - 2*g.least*wx - g.scale*g.scale*wqq + 2*g.scale*g.least*wq - g.least*g.least*w; g.scale > 0 && d > gain {
			best, gain = g, d
		}
	}
	return best
}

// nearest whole number of x >= 0.
func nearest(x float32) float32 { return float32(int32(x + 0.5)) }

// superblock quantizes 256 numbers in groups of 32: scales and minima get six
// bits of a scale of their own, then the levels are rounded anew for what the scales have become.
func superblock(dst []byte, x []float32, most float32) ([]byte, *[256]uint8) {
	var groups [8]group
	var scale, least float32
	for j := range groups {
		groups[j] = fit(x[32*j:32*j+32], most)
		scale, least = max(scale, groups[j].scale), max(least, groups[j].least)
	}
	d, m := F16(scale/63), F16(least/63)
	byD, byM := inverse(scale/63), inverse(least/63)
	var s, t [8]uint8
	var q [256]uint8
	for j, g := range groups {
		s[j], t[j] = clamp(g.scale*byD+0.5, 63), clamp(g.least*byM+0.5, 63)
		step, below := cpu.F16(d)*float32(s[j]), cpu.F16(m)*float32(t[j])
		by := inverse(step)
		for i, v := range x[32*j : 32*j+32] {
			q[32*j+i] = clamp((v+below)*by+0.5, int(most))
		}
	}
	dst = append(dst, byte(d), byte(d>>8), byte(m), byte(m>>8))
	for j := range 4 {
		dst = append(dst, s[j]|s[j+4]>>4<<6)
	}
	for j := range 4 {
		dst = append(dst, t[j]|t[j+4]>>4<<6)
	}
	for j := range 4 {
		dst = append(dst, s[j+4]&15|t[j+4]<<4)
	}
	return dst, &q
}

func appendQ4K(dst []byte, x []float32) []byte {
	dst, q := superblock(dst, x, 15)
	for j := 0; j < 256; j += 64 {
		dst = nibbles(dst, q[j:j+64])
	}
	return dst
}

func appendQ5K(dst []byte, x []float32) []byte {
	dst, q := superblock(dst, x, 31)
	for i := range 32 {
		var bits uint8
		for j := range 8 {
			bits |= q[32*j+i] >> 4 << j
		}
		dst = append(dst, bits)
	}
	for j := 0; j < 256; j += 64 {
		dst = nibbles(dst, q[j:j+64])
	}
	return dst
}

// fit16 finds the scale of x [16] for levels -32 … 31 in the same way; a scale may be negative.
func fit16(x []float32) float32 {
	edge := largest(x)
	if edge == 0 {
		return 0
	}
	best, gain := float32(0), float32(-1)
	for _, t := range trials {
		by := (t - 32) / edge
		var wqq, wqx float32
		for _, v := range x {
			q := level(v * by)
			p := v * v * q
			wqq += p * q
			wqx += p * v
		}
		if wqq > 0 && wqx*wqx > gain*wqq {
			best, gain = wqx/wqq, wqx*wqx/wqq
		}
	}
	return best
}

// level is the nearest of -32 … 31.
func level(x float32) float32 {
	return max(-32, min(float32(math.RoundToEven(float64(x))), 31))
}

func appendQ6K(dst []byte, x []float32) []byte {
	var scales [16]float32
	for j := range scales {
		scales[j] = fit16(x[16*j : 16*j+16])
	}
	edge := largest(scales[:]) / -128
	d := F16(edge)
	by := inverse(edge)
	var s [16]int8
	var q [256]uint8
	for j := range s {
		s[j] = int8(max(-128, min(math.RoundToEven(float64(scales[j]*by)), 127)))
		step := inverse(cpu.F16(d) * float32(s[j]))
		for i, v := range x[16*j : 16*j+16] {
			q[16*j+i] = uint8(level(v*step) + 32)
		}
	}
	for h := 0; h < 256; h += 128 {
		dst = nibbles(dst, q[h:h+128])
	}
	for h := 0; h < 256; h += 128 {
		for i := range 32 {
			p := q[h+i:]
			dst = append(dst, p[0]>>4|p[32]>>4<<2|p[64]>>4<<4|p[96]>>4<<6)
		}
	}
	for _, v := range s {
		dst = append(dst, byte(v))
	}
	return append(dst, byte(d), byte(d>>8))
}
