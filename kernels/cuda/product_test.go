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
		{tensor.BF16, 64, 14336, 4096, plan{form: bf16, tile: tile64, across: 224, split: 1, span: 4096}},
		{tensor.Q4_K, 16, 28672, 4096, plan{form: bf16, tile: tile{"x16r128", 16, 128, 256, 256, 0}, used: 112, across: 256, split: 1, span: 4096}},
		{tensor.Q4_K, 32, 6144, 4096, plan{form: bf16, tile: tile{"x32r32", 32, 32, 256, 256, 0}, used: 32, across: 192, split: 1, span: 4096}},
		{tensor.Q8_0, 9, 4096, 4096, plan{form: bf16, tile: tile{"x16r64", 16, 64, 256, 256, 0}, used: 64, across: 64, split: 4, span: 1024}},
		{tensor.Q4_K, 64, 3584, 18944, plan{form: bf16, tile: tile{"x64r128", 64, 128, 128, 256, 0}, used: 128, across: 28, split: 9, span: 2304}},
		{tensor.Q8_0, 64, 4096, 14336, plan{form: bf16, tile: tile{"x64r128", 64, 128, 128, 256, 0}, used: 128, across: 32, split: 8, span: 1792}},
		// A prompt.
		{tensor.Q4_K, 512, 4096, 4096, plan{form: bf16, unpack: true}},
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

// TestPlanWide: blocks share columns where there are fewer tiles than processors, unless that costs more than it gives.
func TestPlanWide(t *testing.T) {
	for _, c := range []struct{ rows, n, cols, split int }{
		{2048, 4096, 14336, 1}, {1024, 4096, 4096, 1}, {512, 4096, 14336, 2}, {256, 4096, 14336, 4}, {256, 28672, 4096, 1}, {65, 4096, 4096, 8}, {300, 700, 100, 1},
	} {
		p := Product{Rows: c.rows, Wide: true, Parts: []Part{{Weights: Weights{Type: tensor.BF16, Rows: c.n, Cols: c.cols}, Stride: c.n}}}
		plan, wide := p.planWide(132)
		if !wide || plan.split != c.split || plan.span%wideStep != 0 || plan.span*plan.split < c.cols || plan.span*(plan.split-1) >= c.cols {
			t.Errorf("%+v: %+v", c, plan)
		}
		p.Rows = wideRows / 2
		if _, wide := p.planWide(132); wide {
			t.Errorf("%d rows are multiplied by half a tile", p.Rows)
		}
	}
}

// TestProductLaunches wants launches within a device's limits, and scratch memory that holds what they use, of any product.
func TestProductLaunches(t *testing.T) {
	kernels := func(p Product) string {
		var names []string
		for _, l := range p.Launches(256, 108) {
			names = append(names, l.Kernel)
			if l.Threads > 1024 || l.Threads%32 != 0 || l.Shared > 227<<10 || l.Shared > 163<<10 && !p.Wide || l.Grid[0] == 0 || l.Grid[1]-1 >= 65535 || l.Grid[2]-1 >= 65535 || l.Size > 4096 {
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
		{Product{Rows: 8, Parts: []Part{w(tensor.Q8_0, 14336, 4096), w(tensor.Q8_0, 14336, 4096)}, Gate: GateSwiGLU}, "narrowBF16 packedQ8_0x16r128"},
		{Product{Rows: 1, Bytes: Bytes{1 << 8, 1 << 9}, Give: Bytes{1 << 10, 1 << 11}, Parts: []Part{w(tensor.Q8_0, 14336, 4096), w(tensor.Q8_0, 14336, 4096)}, Gate: GateSwiGLU}, "matvecQ8_0x1"},
		{Product{Rows: 5, Parts: []Part{w(tensor.BF16, 4096, 4096)}}, "narrowBF16 matmulBF16t32 addParts"},
		{Product{Rows: 9, Parts: []Part{w(tensor.Q8_0, 14336, 4096), w(tensor.Q8_0, 14336, 4096)}, Gate: GateSwiGLU}, "narrowBF16 packedQ8_0x16r128"},
		{Product{Rows: 16, Parts: []Part{w(tensor.BF16, 4096, 4096), w(tensor.Q6_K, 1024, 4096)}}, "narrowBF16 matmulBF16t32 addParts packedQ6_Kx16r64 addParts"},
		{Product{Rows: 2048, Parts: []Part{w(tensor.F16, 4096, 4096)}}, "narrowF16 matmulF16t128"},
		{Product{Rows: 2, Parts: []Part{w(tensor.Q4_0, 4096, 4096)}, Experts: experts}, "quantize matvecQ4_0x1"},
		{Product{Rows: 100, Parts: []Part{w(tensor.Q4_0, 4096, 4096)}, Experts: experts}, "narrowBF16 groupRows packedQ4_0x32r128"},
		{Product{Rows: 16, Parts: []Part{w(tensor.Q4_K, 4096, 4096), w(tensor.Q4_K, 1024, 4096), w(tensor.Q6_K, 1024, 4096)}}, "narrowBF16 packedQ4_Kx16r32 packedQ6_Kx16r64 addParts"},
		{Product{Rows: 512, Parts: []Part{w(tensor.Q4_K, 4096, 4096), w(tensor.Q4_K, 1024, 4096)}}, "narrowBF16 unpack matmulBF16t128 matmulBF16t64"},
		{Product{Rows: 512, Parts: []Part{w(tensor.Q4_K, 4096, 4096), w(tensor.Q4_K, 1024, 4096)}, Wide: true}, "narrowBF16 unpack wideBF16"},
		{Product{Rows: 2048, Parts: []Part{w(tensor.Q4_K, 14336, 4096), w(tensor.Q4_K, 14336, 4096)}, Gate: GateSwiGLU, Wide: true}, "narrowBF16 unpack wideBF16 unpack wideBF16"},
		{Product{Rows: 65535, Parts: []Part{w(tensor.F32, 128256, 64)}}, "matmulF32"},
	} {
		if got := kernels(c.p); got != c.want {
			t.Errorf("%d rows of %v: %q, want %q", c.p.Rows, c.p.Parts[0].Weights, got, c.want)
		}
	}
}

// TestStrips wants each row of weights unpacked once, in no more room than there may be, and in tiles for all processors.
func TestStrips(t *testing.T) {
	const sms = 132
	w := func(n, cols int) Part {
		return Part{Weights: Weights{Type: tensor.Q4_K, Rows: n, Cols: cols}, Stride: n}
	}
	for _, c := range []struct {
		p      Product
		strips int
	}{
		{Product{Rows: 512, Parts: []Part{w(4096, 4096), w(1024, 4096), w(1024, 4096)}}, 1},
		{Product{Rows: 2048, Parts: []Part{w(14336, 4096), w(14336, 4096)}, Gate: GateSwiGLU, Wide: true}, 2},
		{Product{Rows: 512, Parts: []Part{w(14336, 4096), w(14336, 4096)}, Gate: GateSwiGLU}, 4},
		{Product{Rows: 2048, Parts: []Part{w(4096, 14336)}, Wide: true}, 1},
		{Product{Rows: 300, Parts: []Part{w(128256, 8192)}, Wide: true}, 16},
		{Product{Rows: 65535, Parts: []Part{w(512, 1<<19)}}, 4}, // more tiles down than processors
	} {
		next := make([]int, len(c.p.Parts))
		strips := c.p.strips(c.p.Parts, sms)
		for i, rows := range strips {
			if got := unpackedBytes(c.p.unpacked(c.p.Parts, rows, 0).Parts); got > stripBytes {
				t.Errorf("%v: strip %d takes %d bytes", c.p, i, got)
			}
			for k, s := range rows {
				if s.first != next[k] || s.count < 1 {
					t.Errorf("%v: strip %d has rows %d to %d, want them from %d on", c.p, i, s.first, s.first+s.count, next[k])
				}
				next[k] = s.first + s.count
			}
		}
		for k, part := range c.p.Parts {
			if next[k] != part.Weights.Rows {
				t.Errorf("%v: strips have %d rows, not %d", c.p, next[k], part.Weights.Rows)
			}
		}
		if len(strips) != c.strips {
			t.Errorf("%v: %d strips, want %d", c.p, len(strips), c.strips)
		}
	}
}

// TestProductScratch wants the most scratch memory, of numbers of rows up to any, for one of those that a backend asks about.
func TestProductScratch(t *testing.T) {
	for _, d := range []tensor.DType{tensor.F32, tensor.F16, tensor.BF16, tensor.Q8_0, tensor.Q4_K} {
		for _, sms := range []int{4, 72, 108, 132} {
			for _, size := range [][2]int{{4096, 4096}, {1024, 14336}, {896, 4864}, {256, 8192}} {
				for _, p := range []Product{{}, {Wide: true}, {Wide: true, Gate: GateSwiGLU}} {
					for range map[bool]int{true: 2, false: 1}[p.Gate != NoGate] {
						p.Parts = append(p.Parts, Part{Weights: Weights{Type: d, Rows: size[0], Cols: size[1]}, Stride: size[0]})
					}
					asked := int64(0)
					for p.Rows = 1; p.Rows <= 1030; p.Rows++ {
						of := p
						if p.Rows > 8 {
							of.Rows = int(roundUp(int64(p.Rows), ScratchRows))
						} else {
							of.Rows = 8
						}
						asked = max(asked, of.Scratch(sms))
						if got := p.Scratch(sms); got > asked {
							t.Fatalf("%d processors: %d rows by %v %v, gate %d, take %d bytes, more than %d rows or fewer, %d", sms, p.Rows, d, size, p.Gate, got, of.Rows, asked)
						}
					}
				}
			}
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
		"wide::Params":                {unsafe.Sizeof(wideParams{}), 192},
		"packed::Params":              {unsafe.Sizeof(packedParams{}), 216},
		"unpacking::Params":           {unsafe.Sizeof(unpackParams{}), 104},
		"matmul::PartsParams":         {unsafe.Sizeof(addPartsParams{}), 56},
		"matmul::GroupParams":         {unsafe.Sizeof(groupParams{}), 48},
	} {
		if got[0] != got[1] {
			t.Errorf("%s: %d bytes, want %d", name, got[0], got[1])
		}
	}
}
