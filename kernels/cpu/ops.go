package cpu

import "math"

// RMSNorm computes y [n] = x / sqrt(mean(x²)+eps) * w for one row x [n]; w has one row of
// n. y may be x. Source: arXiv:1910.07467.
func RMSNorm(y, x []float32, w Matrix, eps float32) {
	squares := 0.0
	for _, v := range x {
		squares += float64(v) * float64(v)
	}
	scale := float32(1 / math.Sqrt(squares/float64(len(x))+float64(eps)))
	var weights [piece]float32
	for c := 0; c < len(x); c += piece {
		part := weights[:min(piece, len(x)-c)]
		decode(part, w.row(0, c), w.DType)
		for i, g := range part {
			y[c+i] = float32(x[c+i]*scale) * g
		}
	}
}

// RMSNormRef is RMSNorm in float64.
func RMSNormRef(y, x []float32, w Matrix, eps float32) {
	weights := make([]float32, len(x))
	w.Row(weights, 0)
	mean := DotRef(x, x) / float64(len(x))
	for i := range x {
		y[i] = float32(float64(x[i]) / math.Sqrt(mean+float64(eps)) * float64(weights[i]))
	}
}

// Angles writes the cosines and sines [dim/2] by which rotary position embedding
// turns the pairs of a head at a position: position * theta^(-2i/dim). Frequency
// and angle are rounded to float32, as in the programs that models are trained with.
func Angles(cos, sin []float32, position int, theta float64) {
	for i := range cos {
		frequency := float32(1 / math.Pow(theta, float64(i)/float64(len(cos))))
		s, c := math.Sincos(float64(float32(position) * frequency))
		cos[i], sin[i] = float32(c), float32(s)
	}
}

// Rotate applies rotary position embedding: y and x are [heads, dim], dim = 2*len(cos);
// pairs are (2i, 2i+1) if neighbours, or else (i, i+dim/2). y may be x.
// Source: arXiv:2104.09864.
func Rotate(y, x, cos, sin []float32, neighbours bool) {
	half := len(cos)
	for h := 0; h < len(x); h += 2 * half {
		in, out := x[h:h+2*half], y[h:h+2*half]
		for i := range half {
			a, b := i, i+half
			if neighbours {
				a, b = 2*i, 2*i+1
			}
			p, q := in[a], in[b]
			out[a] = float32(p*cos[i]) - float32(q*sin[i])
			out[b] = float32(p*sin[i]) + float32(q*cos[i])
		}
	}
}

// RotateRef is Angles and Rotate as a product of complex numbers.
func RotateRef(y, x []float32, dim, position int, theta float64, neighbours bool) {
	for at := range x {
		head, i := at/dim*dim, at%dim
		pair, second := i%(dim/2), i >= dim/2
		other := head + (i+dim/2)%dim
		if neighbours {
			pair, second = i/2, i%2 == 1
			other = head + i ^ 1
		}
		angle := float64(position) * math.Pow(theta, -2*float64(pair)/float64(dim))
		if second {
			y[at] = float32(float64(x[other])*math.Sin(angle) + float64(x[at])*math.Cos(angle))
		} else {
			y[at] = float32(float64(x[at])*math.Cos(angle) - float64(x[other])*math.Sin(angle))
		}
	}
}

// SwiGLU computes y [n] = silu(gate) * up, silu(g) = g / (1+exp(-g)). y may be
// gate or up. Source: arXiv:2002.05202.
func SwiGLU(y, gate, up []float32) {
	for i, g := range gate {
		y[i] = g / (1 + exp(-g)) * up[i]
	}
}

// SwiGLURef is SwiGLU in float64.
func SwiGLURef(y, gate, up []float32) {
	for i := range gate {
		g := float64(gate[i])
		y[i] = float32(g / (1 + math.Exp(-g)) * float64(up[i]))
	}
}

// Add computes z [n] = x + y. z may be x or y.
func Add(z, x, y []float32) {
	for i := range x {
		z[i] = x[i] + y[i]
	}
}

func exp(x float32) float32 { return float32(math.Exp(float64(x))) }
