package cpu

import "math"

// RMSNorm computes y [n] = x / sqrt(mean(x²)+eps) * (shift+w) for one row x [n]; w has one
// row of n. y may be x. Source: arXiv:1910.07467; the shift is that of Gemma, whose weights are
// stored less 1.
func RMSNorm(y, x []float32, w Matrix, eps, shift float32) {
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
			y[c+i] = float32(x[c+i]*scale) * (shift + g)
		}
	}
}

// RMSNormRef is RMSNorm in float64.
func RMSNormRef(y, x []float32, w Matrix, eps, shift float32) {
	weights := make([]float32, len(x))
	w.RowRef(weights, 0)
	mean := DotRef(x, x) / float64(len(x))
	for i := range x {
		y[i] = float32(float64(x[i]) / math.Sqrt(mean+float64(eps)) * (float64(shift) + float64(weights[i])))
	}
}

// LayerNorm computes y [n] = (x-mean(x)) / sqrt(variance(x)+eps) * w + bias for one row x [n]; w and
// bias have one row of n. y may be x. Source: arXiv:1607.06450.
func LayerNorm(y, x []float32, w, bias Matrix, eps float32) {
	mean, variance := 0.0, 0.0
	for _, v := range x {
		mean += float64(v)
	}
	mean /= float64(len(x))
	for _, v := range x {
		variance += (float64(v) - mean) * (float64(v) - mean)
	}
	scale := 1 / math.Sqrt(variance/float64(len(x))+float64(eps))
	var weights, biases [piece]float32
	for c := 0; c < len(x); c += piece {
		g, b := weights[:min(piece, len(x)-c)], biases[:min(piece, len(x)-c)]
		decode(g, w.row(0, c), w.DType)
		decode(b, bias.row(0, c), bias.DType)
		for i := range g {
			y[c+i] = float32(float32((float64(x[c+i])-mean)*scale)*g[i]) + b[i]
		}
	}
}

// LayerNormRef is LayerNorm in float64, the variance as the mean of squares less the square of the mean.
func LayerNormRef(y, x []float32, w, bias Matrix, eps float32) {
	g, b, ones := make([]float32, len(x)), make([]float32, len(x)), make([]float32, len(x))
	w.RowRef(g, 0)
	bias.RowRef(b, 0)
	for i := range ones {
		ones[i] = 1
	}
	n := float64(len(x))
	mean := DotRef(x, ones) / n
	variance := DotRef(x, x)/n - mean*mean
	for i := range x {
		y[i] = float32((float64(x[i])-mean)/math.Sqrt(variance+float64(eps))*float64(g[i]) + float64(b[i]))
	}
}

// Bias computes y [n] = x + row of w [N, n]. y may be x.
func Bias(y, x []float32, w Matrix, row int) {
	var weights [piece]float32
	for c := 0; c < len(x); c += piece {
		part := weights[:min(piece, len(x)-c)]
		decode(part, w.row(row, c), w.DType)
		for i, b := range part {
			y[c+i] = x[c+i] + b
		}
	}
}

// BiasRef is Bias with the whole row in memory.
func BiasRef(y, x []float32, w Matrix, row int) {
	weights := make([]float32, len(x))
	w.RowRef(weights, row)
	for i := range x {
		y[i] = float32(float64(x[i]) + float64(weights[i]))
	}
}

// Angles writes the cosines and sines [pairs], times amplitude, by which rotary position embedding
// turns the pairs of a head at a position: position * frequencies [pairs]. Angles are rounded to
// float32, as in the programs that models are trained with.
func Angles(cos, sin []float32, position int, frequencies []float32, amplitude float32) {
	for i, f := range frequencies {
		s, c := math.Sincos(float64(float32(position) * f))
		cos[i], sin[i] = float32(c)*amplitude, float32(s)*amplitude
	}
}

// Rotate applies rotary position embedding: y and x are [heads, dim], 2*len(cos) at most dim;
// pairs are (2i, 2i+1) if neighbours, or else (i, i+len(cos)). What is beyond the pairs is
// copied. y may be x. Source: arXiv:2104.09864.
func Rotate(y, x, cos, sin []float32, dim int, neighbours bool) {
	half := len(cos)
	for h := 0; h < len(x); h += dim {
		in, out := x[h:h+dim], y[h:h+dim]
		for i := range half {
			a, b := i, i+half
			if neighbours {
				a, b = 2*i, 2*i+1
			}
			p, q := in[a], in[b]
			out[a] = float32(p*cos[i]) - float32(q*sin[i])
			out[b] = float32(p*sin[i]) + float32(q*cos[i])
		}
		copy(out[2*half:], in[2*half:])
	}
}

// RotateRef is Angles and Rotate as a product of complex numbers.
func RotateRef(y, x []float32, dim, position int, frequencies []float32, amplitude float32, neighbours bool) {
	for at := range x {
		head, i := at/dim*dim, at%dim
		n := 2 * len(frequencies)
		if i >= n {
			y[at] = x[at]
			continue
		}
		pair, second := i%(n/2), i >= n/2
		other := head + (i+n/2)%n
		if neighbours {
			pair, second = i/2, i%2 == 1
			other = head + (i ^ 1)
		}
		angle, a := float64(position)*float64(frequencies[pair]), float64(amplitude)
		if second {
			y[at] = float32(a * (float64(x[other])*math.Sin(angle) + float64(x[at])*math.Cos(angle)))
		} else {
			y[at] = float32(a * (float64(x[at])*math.Cos(angle) - float64(x[other])*math.Sin(angle)))
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

// GeGLU computes y [n] = gelu(gate) * up. y may be gate or up. Source: arXiv:2002.05202.
func GeGLU(y, gate, up []float32, tanh bool) {
	for i, g := range gate {
		y[i] = gelu(g, tanh) * up[i]
	}
}

// GeGLURef is GeGLU in float64.
func GeGLURef(y, gate, up []float32, tanh bool) {
	for i := range gate {
		y[i] = float32(geluRef(float64(gate[i]), tanh) * float64(up[i]))
	}
}

// GELU computes y [n] = gelu(x), x times the normal distribution's share below x, or with tanh
// its approximation. y may be x. Source: arXiv:1606.08415.
func GELU(y, x []float32, tanh bool) {
	for i, v := range x {
		y[i] = gelu(v, tanh)
	}
}

// GELURef is GELU in float64.
func GELURef(y, x []float32, tanh bool) {
	for i, v := range x {
		y[i] = float32(geluRef(float64(v), tanh))
	}
}

func gelu(x float32, tanh bool) float32 {
	v := float64(x)
	if tanh {
		const root = 0.7978845608028654 // sqrt(2/pi)
		return float32(0.5 * v * (1 + math.Tanh(root*(v+0.044715*v*v*v))))
	}
	return float32(0.5 * v * (1 + math.Erf(v/math.Sqrt2)))
}

// geluRef uses other forms of the same functions: 1+erf(x) = erfc(-x), (1+tanh(u))/2 = 1/(1+exp(-2u)).
func geluRef(x float64, tanh bool) float64 {
	if tanh {
		return x / (1 + math.Exp(-2*math.Sqrt(2/math.Pi)*(x+0.044715*math.Pow(x, 3))))
	}
	return x * math.Erfc(-x/math.Sqrt2) / 2
}

// Scale computes y [n] = s*x. y may be x.
func Scale(y, x []float32, s float32) {
	for i, v := range x {
		y[i] = s * v
	}
}

// SoftCap computes y [n] = c*tanh(x/c). y may be x. Source: arXiv:2408.00118.
func SoftCap(y, x []float32, c float32) {
	for i, v := range x {
		y[i] = capped(v, c)
	}
}

// SoftCapRef is SoftCap in float64, by tanh(u) = 1 - 2/(exp(2u)+1).
func SoftCapRef(y, x []float32, c float32) {
	for i, v := range x {
		y[i] = float32(float64(c) * (1 - 2/(math.Exp(2*float64(v)/float64(c))+1)))
	}
}

func capped(x, c float32) float32 { return c * float32(math.Tanh(float64(x/c))) }

// Add computes z [n] = x + y. z may be x or y.
func Add(z, x, y []float32) {
	for i := range x {
		z[i] = x[i] + y[i]
	}
}

func exp(x float32) float32 { return float32(math.Exp(float64(x))) }
