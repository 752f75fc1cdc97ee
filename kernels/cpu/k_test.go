package cpu

import (
	"encoding/binary"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/estiba/estiba/runtime/tensor"
)

var formatsOf256 = []tensor.DType{tensor.Q4_K, tensor.Q5_K, tensor.Q6_K}

// compareProducts wants of every path what plain Go makes of weights of any bits: the panels, their rows, and
// the products with the first rows of x, for each of ns.
func compareProducts(t *testing.T, w Matrix, x []float32, ns []int) {
	t.Helper()
	panels := packed(PlainGo, w)
	got, want := make([]float32, w.Cols), make([]float32, w.Cols)
	for i := range w.Rows {
		panels.Row(got, i)
		w.Row(want, i)
		for k := range got {
			if !sameNumber(got[k], want[k]) {
				t.Fatalf("%v: row %d, column %d packed: %v, want %v", w.DType, i, k, got[k], want[k])
			}
		}
	}
	most := 0
	for _, n := range ns {
		most = max(most, n)
	}
	in := prepared(PlainGo, Int8, x[:most*w.Cols], most, w.Cols)
	want = make([]float32, most*w.Rows)
	PlainGo.MatMul(want, w.Rows, in, panels, 0, panels.Panels(), nil)
	for _, p := range Available() {
		if q := packed(p, w); string(q.Data) != string(panels.Data) {
			t.Fatalf("%v packs %v in other bytes", p, w.DType)
		}
		for _, n := range ns {
			some := Rows{Int8, n, w.Cols, in.Data[:RowsBytes(Int8, n, w.Cols)]}
			y := make([]float32, n*w.Rows)
			p.MatMul(y, w.Rows, some, panels, 0, panels.Panels(), aligned(p.ScratchBytes(w.DType, w.Cols, n)))
			for i := range y {
				if !sameNumber(y[i], want[i]) {
					t.Fatalf("%v %v, %d rows: element %d of row %d: %v, want %v", p, w.DType, n, i%w.Rows, i/w.Rows, y[i], want[i])
				}
			}
		}
	}
}

// TestStrangeBlocks multiplies blocks as no quantizer makes them: every bit the same, scales that are not finite,
// subnormal or the largest, next to activations of extreme sizes.
func TestStrangeBlocks(t *testing.T) {
	r := rand.New(rand.NewPCG(21, 22))
	const rows, cols, n = 33, 512, 10
	strange := []uint16{0, 0x8000, 1, 0x8001, 0x3ff, 0x400, 0x7bff, 0xfbff, 0x7c00, 0xfc00, 0x7e00, 0xffff}
	for _, d := range formatsOf256 {
		size, scales := int(d.Bytes(256)), []int{0, 2}
		if d == tensor.Q6_K {
			scales = []int{208}
		}
		for round := range 40 {
			w := randomMatrix(r, d, rows, cols, 1+r.IntN(7))
			switch round % 4 {
			case 0:
				for i := range w.Data {
					w.Data[i] = byte(r.Uint32())
				}
			case 1, 2: // bits all set, or none
				for i := range w.Data {
					w.Data[i] = byte(-(round % 2))
				}
			}
			if round%4 != 0 {
				for at := 0; at < len(w.Data); at += size {
					for _, s := range scales {
						h := strange[r.IntN(len(strange))]
						if round < 20 {
							h = strange[round/4]
						}
						binary.LittleEndian.PutUint16(w.Data[at+s:], h)
					}
				}
			}
			x := normal(r, n*cols)
			for i := range x {
				switch i / cols {
				case 1:
					x[i] = 0
				case 2:
					x[i] = float32(math.Copysign(math.MaxFloat32, float64(x[i])))
				case 3:
					x[i] *= 0x1p-99
				case 4:
					x[i] = float32(math.NaN())
				case 5:
					x[i] = -1
				}
			}
			compareProducts(t, w, x, []int{1, 2, 3, 6, 8, n})
		}
	}
}
