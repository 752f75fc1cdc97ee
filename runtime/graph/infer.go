package graph

import (
	"fmt"
	"math"

	"github.com/estiba/estiba/runtime/tensor"
)

// activations is how many operands of a kind come before its weights.
func activations(k Kind) int {
	switch k {
	case Embed:
		return 0
	case RMSNorm, MatMul, Rope, Rows:
		return 1
	case Add, SwiGLU:
		return 2
	case Attention:
		return 3
	}
	return 0
}

// weights is how many weights a kind reads.
func weights(k Kind) int {
	switch k {
	case Embed, RMSNorm, MatMul:
		return 1
	}
	return 0
}

// infer is the shape that an op makes of its operands, or what is wrong with them.
func infer(k Kind, a Attr, in []tensor.Shape) (tensor.Shape, error) {
	wrong := func(want string) error {
		return fmt.Errorf("%v of shapes %v with %+v: want %s", k, in, a, want)
	}
	if k == invalid || k >= kinds {
		return nil, fmt.Errorf("%v is no op", k)
	}
	if len(in) != activations(k)+weights(k) {
		return nil, wrong(fmt.Sprintf("%d operands", activations(k)+weights(k)))
	}
	for _, s := range in[:activations(k)] {
		if len(s) != 2 || s[0] != Tokens && s[0] != Wanted || s[1] <= 0 {
			return nil, wrong("activations of shape [tokens, width]")
		}
	}
	switch k {
	case Embed:
		if len(in[0]) != 2 {
			return nil, wrong("a table [V,C]")
		}
		return tensor.Shape{Tokens, in[0][1]}, nil
	case RMSNorm:
		if len(in[1]) != 1 || in[1][0] != in[0][1] || !(a.Eps > 0) || math.IsInf(float64(a.Eps), 0) {
			return nil, wrong("x [R,C], w [C], Eps > 0")
		}
		return in[0], nil
	case MatMul:
		if len(in[1]) != 2 || in[1][1] != in[0][1] {
			return nil, wrong("x [R,K], w [N,K]")
		}
		return tensor.Shape{in[0][0], in[1][0]}, nil
	case Rope:
		if in[0][0] != Tokens || !heads(a.Heads, a.HeadDim, in[0][1]) || a.HeadDim%2 != 0 || !(a.Theta > 0) || math.IsInf(a.Theta, 0) {
			return nil, wrong("x [T,Heads*HeadDim], HeadDim even, Theta > 0")
		}
		return in[0], nil
	case Attention:
		if in[0][0] != Tokens || in[1][0] != Tokens || !in[1].Equal(in[2]) ||
			!heads(a.Heads, a.HeadDim, in[0][1]) || !heads(a.KVHeads, a.HeadDim, in[1][1]) ||
			a.Heads%a.KVHeads != 0 || a.Layer < 0 || !(a.Scale > 0) || math.IsInf(float64(a.Scale), 0) {
			return nil, wrong("q [T,Heads*HeadDim], k and v [T,KVHeads*HeadDim], KVHeads dividing Heads, Scale > 0")
		}
		return in[0], nil
	case Add, SwiGLU:
		if !in[0].Equal(in[1]) {
			return nil, wrong("two equal shapes")
		}
		return in[0], nil
	case Rows:
		if in[0][0] != Tokens {
			return nil, wrong("x [T,C]")
		}
		return tensor.Shape{Wanted, in[0][1]}, nil
	}
	return nil, fmt.Errorf("%v has no shapes", k)
}

func heads(n, dim, width int) bool {
	return n > 0 && dim > 0 && n <= width/dim && n*dim == width
}
