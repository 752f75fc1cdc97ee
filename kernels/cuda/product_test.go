package cuda

import (
	"strings"
	"testing"
	"unsafe"

	"github.com/estiba/estiba/runtime/tensor"
)

// TestPackedBytes wants no more than 5 % beyond what a checkpoint has, of matrices as models have them.
func TestPackedBytes(t *testing.T) {
	for _, d := range tensor.DTypes() {
		for _, size := range [][2]int{{4096, 4096}, {1024, 4096}, {128256, 2048}, {32, 768}} {
			stored, packed := d.Bytes(int64(size[0])*int64(size[1])), PackedBytes(d, size[0], size[1])
			if packed < stored || float64(packed) > 1.05*float64(stored) || packed%256 != 0 {
				t.Errorf("%v %v: %d bytes for %d", d, size, packed, stored)
			}
			if AsStored(d, size[1]) && packed-stored >= 256 {
				t.Errorf("%v %v is stored in %d bytes, and not so on the device, in %d", d, size, stored, packed)
			}
			if err := CheckWeights(d, size[0], size[1]); err != nil {
				t.Error(err)
			}
		}
	}
	for _, c := range []struct{ rows, cols int }{{0, 256}, {1, 0}, {1, 255}, {1 << 22, 256}, {1, 1 << 25}, {1 << 21, 1 << 16}} {
		if CheckWeights(tensor.Q4_K, c.rows, c.cols) == nil {
			t.Errorf("%v passes", c)
		}
	}
	if CheckWeights(tensor.Invalid, 1, 256) == nil {
		t.Error("no format passes")
	}
}

func TestPlan(t *testing.T) {
	const sms = 132
	one := func(d tensor.DType, rows, n, cols int) plan {
		p := Product{Rows: rows, Parts: []Part{{Weights: Weights{Type: d, Rows: n, Cols: cols}, Stride: n}}}
		return p.plan(p.Parts[0].Weights, sms)
	}
	for _, c := range []struct {
		d             tensor.DType
		rows, n, cols int
		want          plan
	}{
		// A token: warps share rows until there are 16 for a processor, or one has nothing left to read.
		{tensor.BF16, 1, 128256, 4096, plan{few: true, form: asIs, split: 1}},
		{tensor.BF16, 4, 4096, 4096, plan{few: true, form: asIs, split: 4}},
		{tensor.BF16, 1, 1024, 4096, plan{few: true, form: asIs, split: 8}},
		{tensor.Q4_K, 1, 4096, 4096, plan{few: true, form: bytes8, split: 4}},
		{tensor.Q4_K, 1, 1024, 2048, plan{few: true, form: bytes8, split: 2}},
		// A batch: the columns are divided, so that there are blocks enough to have memory busy.
		{tensor.BF16, 16, 4096, 4096, plan{form: bf16, tile: tile32, across: 64, split: 4, span: 1024}},
		{tensor.Q4_K, 64, 14336, 4096, plan{form: bf16, tile: tile64, across: 224, split: 1, span: 4096}},
		// A prompt.
		{tensor.F16, 2048, 4096, 14336, plan{form: f16, tile: tile128, across: 32, split: 1, span: 14336}},
		{tensor.BF16, 2048, 1024, 4096, plan{form: bf16, tile: tile64, across: 16, split: 1, span: 4096}},
		{tensor.F32, 16, 8, 4096, plan{form: asIs, tile: tileF32, across: 1, split: 8, span: 512}}, // a router
		{tensor.F32, 100, 64, 172, plan{form: asIs, tile: tileF32, across: 1, split: 1, span: 176}},
	} {
		if got := one(c.d, c.rows, c.n, c.cols); got != c.want {
			t.Errorf("%d rows by %v [%d, %d]: %+v, want %+v", c.rows, c.d, c.n, c.cols, got, c.want)
		}
	}
}

// TestProductLaunches wants launches within a device's limits, and scratch memory that holds what they use, of any product.
func TestProductLaunches(t *testing.T) {
	kernels := func(p Product) string {
		var names []string
		for _, l := range p.Launches(256, 108) {
			names = append(names, l.Kernel)
			if l.Threads > 1024 || l.Threads%32 != 0 || l.Shared > 163<<10 || l.Grid[0] == 0 || l.Grid[1]-1 >= 65535 || l.Grid[2]-1 >= 65535 || l.Size > 4096 {
				t.Errorf("%+v: %+v", p, l)
			}
		}
		return strings.Join(names, " ")
	}
	w := func(d tensor.DType, n, cols int) Part {
		return Part{Weights: Weights{Data: 1 << 20, Type: d, Rows: n, Cols: cols}, Y: 1 << 30, Stride: n}
	}
	experts := &Experts{TopK: 2, Count: 8, Stride: 1 << 30}
	for _, c := range []struct {
		p    Product
		want string
	}{
		{Product{Rows: 0, Parts: []Part{w(tensor.F32, 4, 4)}}, ""},
		{Product{Rows: 1, Parts: []Part{w(tensor.BF16, 4096, 4096), w(tensor.BF16, 1024, 4096), w(tensor.BF16, 1024, 4096)}}, "matvecBF16x1"},
		{Product{Rows: 3, Parts: []Part{w(tensor.Q4_K, 4096, 4096), w(tensor.Q4_K, 1024, 4096), w(tensor.Q6_K, 1024, 4096)}}, "quantize matvecQ4_Kx4 matvecQ6_Kx4"},
		{Product{Rows: 8, Parts: []Part{w(tensor.Q8_0, 14336, 4096), w(tensor.Q8_0, 14336, 4096)}, Gate: GateSwiGLU}, "quantize matvecQ8_0x8"},
		{Product{Rows: 1, Bytes: Bytes{1 << 8, 1 << 9}, Give: Bytes{1 << 10, 1 << 11}, Parts: []Part{w(tensor.Q8_0, 14336, 4096), w(tensor.Q8_0, 14336, 4096)}, Gate: GateSwiGLU}, "matvecQ8_0x1"},
		{Product{Rows: 5, Parts: []Part{w(tensor.BF16, 4096, 4096)}}, "narrowBF16 matmulBF16t32 addParts"},
		{Product{Rows: 9, Parts: []Part{w(tensor.Q8_0, 14336, 4096), w(tensor.Q8_0, 14336, 4096)}, Gate: GateSwiGLU}, "narrowBF16 matmulPackedt32"},
		{Product{Rows: 16, Parts: []Part{w(tensor.BF16, 4096, 4096), w(tensor.Q6_K, 1024, 4096)}}, "narrowBF16 matmulBF16t32 addParts matmulPackedt32 addParts"},
		{Product{Rows: 2048, Parts: []Part{w(tensor.F16, 4096, 4096)}}, "narrowF16 matmulF16t128"},
		{Product{Rows: 2, Parts: []Part{w(tensor.Q4_0, 4096, 4096)}, Experts: experts}, "quantize matvecQ4_0x1"},
		{Product{Rows: 100, Parts: []Part{w(tensor.Q4_0, 4096, 4096)}, Experts: experts}, "narrowBF16 groupRows matmulPackedt32"},
		{Product{Rows: 65535, Parts: []Part{w(tensor.F32, 128256, 64)}}, "matmulF32"},
	} {
		if got := kernels(c.p); got != c.want {
			t.Errorf("%d rows of %v: %q, want %q", c.p.Rows, c.p.Parts[0].Weights, got, c.want)
		}
	}
}

// TestParams wants the sizes that the kernels' structs have.
func TestParams(t *testing.T) {
	for name, got := range map[string][2]uintptr{
		"packing::Params":             {unsafe.Sizeof(packParams{}), 48},
		"activations::QuantizeParams": {unsafe.Sizeof(quantizeParams{}), 32},
		"activations::NarrowParams":   {unsafe.Sizeof(narrowParams{}), 40},
		"matvec::Params":              {unsafe.Sizeof(matvecParams{}), 224},
		"matmul::Params":              {unsafe.Sizeof(matmulParams{}), 128},
		"wide::Params":                {unsafe.Sizeof(wideParams{}), 176},
		"matmul::PartsParams":         {unsafe.Sizeof(addPartsParams{}), 56},
		"matmul::GroupParams":         {unsafe.Sizeof(groupParams{}), 48},
	} {
		if got[0] != got[1] {
			t.Errorf("%s: %d bytes, want %d", name, got[0], got[1])
		}
	}
}
