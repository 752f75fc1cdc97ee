package backendtest

import (
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

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

// Mapped lays the weights of a graph into a file, at odd addresses, and gives them as they are mapped from there until
// the test ends.
func Mapped(t testing.TB, g *graph.Graph, memory backend.Weights) (weights backend.Weights, path string) {
	t.Helper()
	data, at := []byte{0}, map[string]int{}
	for _, w := range g.Weights {
		x, err := memory(w.Name)
		if err != nil {
			t.Fatal(err)
		}
		at[w.Name] = len(data)
		data = append(data, x.Data...)
	}
	path = filepath.Join(t.TempDir(), "weights")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	mapped, err := unix.Mmap(int(file.Fd()), 0, len(data), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Munmap(mapped) })
	return func(name string) (tensor.Tensor, error) {
		x, err := memory(name)
		x.Data, x.Mapped = mapped[at[name]:][:len(x.Data)], true
		return x, err
	}, path
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
