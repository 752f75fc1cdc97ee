//go:build cuda && cgo

package kerneltest

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	cpu "github.com/estiba/estiba/kernels/cpu"
	"github.com/estiba/estiba/kernels/cuda"
)

// TestRoute: numbers are the CPU's, shares to 1e-6 of themselves and 1e-8 for each expert, since theirs is a sum in float32.
func TestRoute(t *testing.T) {
	d := open(t)
	nan, inf := float32(math.NaN()), float32(math.Inf(1))
	for i, c := range []struct{ rows, experts, topK int }{
		{1, 1, 1}, {3, 2, 1}, {5, 8, 2}, {2, 31, 31}, {9, 64, 8}, {4, 128, 8}, {1, 257, 16}, {2, 2048, 3}, {3, 33, 40 - 7},
	} {
		for _, kind := range []string{"random", "equals", "broken"} {
			r := rand.New(rand.NewPCG(7, uint64(i)))
			scores := make([]float32, c.rows*c.experts)
			for j := range scores {
				scores[j] = 3 * float32(r.NormFloat64())
				switch {
				case kind == "equals":
					scores[j] = float32(r.IntN(3))
				case kind == "broken":
					scores[j] = []float32{nan, -inf, inf, scores[j], 0, -1e30}[r.IntN(6)]
				}
			}
			for normalize := range 2 {
				name := fmt.Sprintf("%+v %s, normalize %d", c, kind, normalize)
				y := upload(d, filled(c.rows*2*c.topK, nan))
				d.run(t, cuda.Route(cuda.RouteParams{Scores: upload(d, scores), Y: y, Rows: int32(c.rows), Experts: int32(c.experts), TopK: int32(c.topK), Normalize: int32(normalize)}))
				got := download[float32](d, y, c.rows*2*c.topK)
				want := make([]float32, 2*c.topK)
				for row := range c.rows {
					cpu.Route(want, scores[row*c.experts:(row+1)*c.experts], c.topK, normalize == 1)
					for k, w := range want {
						g := got[row*2*c.topK+k]
						if k < c.topK && g != w || !(math.Abs(float64(g-w)) <= (1e-6+1e-8*float64(c.experts))*math.Abs(float64(w))) && !(g != g && w != w) {
							t.Fatalf("%s: row %d is %v, want %v", name, row, got[row*2*c.topK:][:2*c.topK], want)
						}
					}
				}
			}
		}
	}
}

// TestExpertSum: to 1e-6 of the sum of what is added.
func TestExpertSum(t *testing.T) {
	d := open(t)
	r := rand.New(rand.NewPCG(8, 8))
	for _, c := range []struct{ rows, width, topK int }{{1, 1, 1}, {3, 255, 2}, {2, 257, 8}, {5, 64, 3}} {
		x, route := make([]float32, c.rows*c.topK*c.width), make([]float32, c.rows*2*c.topK)
		for i := range x {
			x[i] = float32(r.NormFloat64())
		}
		for i := range route {
			route[i] = r.Float32()
		}
		y := upload(d, filled(c.rows*c.width, float32(math.NaN())))
		d.run(t, cuda.ExpertSum(cuda.ExpertSumParams{X: upload(d, x), Route: upload(d, route), Y: y, Width: int32(c.width), TopK: int32(c.topK)}, c.rows))
		got := download[float32](d, y, c.rows*c.width)
		want := make([]float32, c.width)
		for row := range c.rows {
			part, shares := x[row*c.topK*c.width:][:c.topK*c.width], route[row*2*c.topK+c.topK:][:c.topK]
			cpu.ExpertSumRef(want, part, shares)
			for i, w := range want {
				if g := got[row*c.width+i]; !(math.Abs(float64(g-w)) <= 1e-6*8) {
					t.Fatalf("%+v: row %d, number %d: %g, want %g", c, row, i, g, w)
				}
			}
		}
	}
}
