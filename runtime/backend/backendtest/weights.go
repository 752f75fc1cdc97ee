package backendtest

import (
	"fmt"
	"math"
	"math/rand/v2"

	"github.com/estiba/estiba/runtime/backend"
	"github.com/estiba/estiba/runtime/graph"
	"github.com/estiba/estiba/runtime/quantize"
	"github.com/estiba/estiba/runtime/tensor"
)

// Random gives a graph weights of a format by a seed. They start at odd
// addresses, as in a file.
func Random(g *graph.Graph, d tensor.DType, seed uint64) backend.Weights {
	return random(g, seed, func(tensor.Shape) tensor.DType { return d })
}

// Stored is Random with the weights as GGUF files have them: matrices in a format,
// if their rows are whole blocks of it, and the rest in float32.
func Stored(g *graph.Graph, d tensor.DType, seed uint64) backend.Weights {
	return random(g, seed, func(s tensor.Shape) tensor.DType {
		if len(s) == 1 || s[len(s)-1]%d.Block() != 0 {
			return tensor.F32
		}
		return d
	})
}

// random draws weights that keep activations near 1; format is that of a shape.
func random(g *graph.Graph, seed uint64, format func(tensor.Shape) tensor.DType) backend.Weights {
	r := rand.New(rand.NewPCG(seed, 7))
	all := map[string]tensor.Tensor{}
	for _, w := range g.Weights {
		n, _ := w.Shape.Elements()
		scale, shift := 1.5/math.Sqrt(float64(w.Shape[len(w.Shape)-1])), 0.0
		if len(w.Shape) == 1 {
			scale, shift = 0.2, 1
		}
		x := make([]float32, n)
		for i := range x {
			x[i] = float32(r.NormFloat64()*scale + shift)
		}
		d := format(w.Shape)
		all[w.Name] = tensor.Tensor{Name: w.Name, DType: d, Shape: w.Shape, Data: quantize.Append(make([]byte, 1, 1+d.Bytes(n)), d, x)[1:]}
	}
	return func(name string) (tensor.Tensor, error) {
		t, ok := all[name]
		if !ok {
			return t, fmt.Errorf("no weight %q", name)
		}
		return t, nil
	}
}
