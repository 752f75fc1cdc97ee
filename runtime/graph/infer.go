package graph

import (
	"fmt"
	"math"
	"slices"

	"github.com/estiba/estiba/runtime/tensor"
)

// activations is how many operands of a kind come before its weights.
func activations(k Kind) int {
	switch k {
	case RMSNorm, LayerNorm, MatMul, Bias, Rope, GELU, Scale, SoftCap, Route, Rows:
		return 1
	case Add, SwiGLU, GeGLU, ExpertMatMul, ExpertSum:
		return 2
	case Attention:
		return 3
	}
	return 0
}

// weights is how many weights a kind reads, at least and at most.
func weights(k Kind) (least, most int) {
	switch k {
	case Embed, Positions, RMSNorm, MatMul, Bias:
		return 1, 1
	case LayerNorm:
		return 2, 2
	case Rope:
		return 0, 1
	case ExpertMatMul:
		return 1, math.MaxInt
	}
	return 0, 0
}

// infer is the shape that an op makes of its operands, or what is wrong with them.
func infer(k Kind, a Attr, in []tensor.Shape) (tensor.Shape, error) {
	wrong := func(want string) error {
		shown := in
		if len(shown) > 4 {
			shown = shown[:4]
		}
		return fmt.Errorf("%v of shapes %v with %+v: want %s", k, shown, a, want)
	}
	if k == invalid || k >= kinds {
		return nil, fmt.Errorf("%v is no op", k)
	}
	least, most := weights(k)
	if n := len(in) - activations(k); n < least || n > most {
		return nil, wrong(fmt.Sprintf("%d operands", activations(k)+least))
	}
	for _, s := range in[:activations(k)] {
		if len(s) != 2 || s[0] != Tokens && s[0] != Wanted || s[1] <= 0 {
			return nil, wrong("activations of shape [tokens, width]")
		}
	}
	switch k {
	case Embed, Positions:
		if len(in[0]) != 2 {
			return nil, wrong("a table [rows,C]")
		}
		return tensor.Shape{Tokens, in[0][1]}, nil
	case RMSNorm:
		if len(in[1]) != 1 || !heads(max(a.Heads, 1), in[1][0], in[0][1]) || !positive(a.Eps) || !finite(a.Shift) {
			return nil, wrong("x [R,C], w [C/Heads], Eps > 0")
		}
		return in[0], nil
	case LayerNorm:
		if len(in[1]) != 1 || in[1][0] != in[0][1] || !in[1].Equal(in[2]) || !positive(a.Eps) {
			return nil, wrong("x [R,C], w [C], bias w [C], Eps > 0")
		}
		return in[0], nil
	case MatMul:
		if len(in[1]) != 2 || in[1][1] != in[0][1] {
			return nil, wrong("x [R,K], w [N,K]")
		}
		return tensor.Shape{in[0][0], in[1][0]}, nil
	case Bias:
		rows := 1
		if len(in[1]) == 2 {
			rows = in[1][0]
		}
		if len(in[1]) < 1 || len(in[1]) > 2 || in[1][len(in[1])-1] != in[0][1] || a.Row < 0 || a.Row >= rows {
			return nil, wrong("x [R,C], w [C] or [N,C], 0 <= Row < N")
		}
		return in[0], nil
	case Rope:
		pairs := len(a.Frequencies)
		if in[0][0] != Tokens || !heads(a.Heads, a.HeadDim, in[0][1]) || pairs == 0 || 2*pairs > a.HeadDim || !positive(a.Amplitude) ||
			slices.ContainsFunc(a.Frequencies, func(f float32) bool { return !positive(f) }) ||
			len(in) == 2 && (len(in[1]) != 1 || in[1][0] != pairs) {
			return nil, wrong("x [T,Heads*HeadDim], Frequencies > 0 of at most HeadDim/2 pairs, divisors w [pairs] if any, Amplitude > 0")
		}
		return in[0], nil
	case Attention:
		if in[0][0] != Tokens || in[1][0] != Tokens || !in[1].Equal(in[2]) ||
			!heads(a.Heads, a.HeadDim, in[0][1]) || !heads(a.KVHeads, a.HeadDim, in[1][1]) ||
			a.Heads%a.KVHeads != 0 || a.Layer < 0 || !positive(a.Scale) || !(a.SoftCap == 0 || positive(a.SoftCap)) ||
			a.Window < 0 || a.Bidirectional && a.Window != 0 {
			return nil, wrong("q [T,Heads*HeadDim], k and v [T,KVHeads*HeadDim], KVHeads dividing Heads, Scale > 0, SoftCap >= 0, Window >= 0, and 0 if Bidirectional")
		}
		return in[0], nil
	case Add, SwiGLU, GeGLU:
		if !in[0].Equal(in[1]) {
			return nil, wrong("two equal shapes")
		}
		return in[0], nil
	case GELU:
		return in[0], nil
	case Scale:
		if !positive(a.Scale) {
			return nil, wrong("Scale > 0")
		}
		return in[0], nil
	case SoftCap:
		if !positive(a.SoftCap) {
			return nil, wrong("SoftCap > 0")
		}
		return in[0], nil
	case Route:
		if a.TopK < 1 || a.TopK > in[0][1] || in[0][1] > MaxExperts {
			return nil, wrong(fmt.Sprintf("scores [R,E], E at most %d, 0 < TopK <= E", MaxExperts))
		}
		return tensor.Shape{in[0][0], 2 * a.TopK}, nil
	case ExpertMatMul:
		first := in[2]
		if !routed(a, in) || len(in)-2 < a.TopK || len(in)-2 > MaxExperts || len(first) != 2 || first[0] > math.MaxInt32/a.TopK ||
			in[0][1] != first[1] && in[0][1] != a.TopK*first[1] ||
			slices.ContainsFunc(in[2:], func(s tensor.Shape) bool { return !s.Equal(first) }) {
			return nil, wrong("x [R,K] or [R,TopK*K], route [R,2*TopK], w [N,K] of each of at least TopK experts")
		}
		return tensor.Shape{in[0][0], a.TopK * first[0]}, nil
	case ExpertSum:
		if !routed(a, in) || in[0][1]%a.TopK != 0 {
			return nil, wrong("x [R,TopK*C], route [R,2*TopK]")
		}
		return tensor.Shape{in[0][0], in[0][1] / a.TopK}, nil
	case Rows:
		if in[0][0] != Tokens {
			return nil, wrong("x [T,C]")
		}
		return tensor.Shape{Wanted, in[0][1]}, nil
	}
	return nil, fmt.Errorf("%v has no shapes", k)
}

// MaxExperts is how many experts one op may choose from: their numbers are
// exact as float32.
const MaxExperts = 1 << 16

// routed says whether the second operand is a route for the rows of the first.
func routed(a Attr, in []tensor.Shape) bool {
	return a.TopK >= 1 && a.TopK <= MaxExperts && in[0][0] == in[1][0] && in[1][1] == 2*a.TopK
}

func positive(x float32) bool { return x > 0 && finite(x) }

func finite(x float32) bool { return !math.IsInf(float64(x), 0) && x == x }

func heads(n, dim, width int) bool {
	return n > 0 && dim > 0 && n <= width/dim && n*dim == width
}
