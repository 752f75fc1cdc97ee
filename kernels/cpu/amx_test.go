package cpu

import (
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/estiba/estiba/runtime/tensor"
)

// emulated multiplies as AMX does, on processors that have none; the emulation keeps its tiles behind the other memory.
func emulated(m *product) {
	m.scratch = aligned(tileScratch + 16<<10)
	m.tiles(AVX512, manyTilesEmulated)
	intact(m.scratch)
}

// converts says whether this processor has bfloat16.
func converts() bool {
	return slices.Contains(Available(), AVX512) && AVX512.Form(tensor.F16, fewRows+1) == BFloat16
}

// TestTiles wants of the emulated tiles what is wanted of dot products of bfloat16, for every format. An instruction
// whose tiles do not fit together ends the process.
func TestTiles(t *testing.T) {
	if !converts() {
		t.Skip("this processor does not convert to bfloat16")
	}
	if !tilesRight(manyTilesEmulated, aligned(tileScratch+16<<10)) {
		t.Error("whole numbers are multiplied otherwise")
	}
	r := rand.New(rand.NewPCG(31, 32))
	for i, s := range shapes(r, tensor.DTypes()) {
		if s.d != tensor.F32 && (s.d.Block() == 1 || i%4 == 0) { // the twin decodes blocks slowly
			tryBFloat16(t, r, emulated, s)
		}
	}
}

// FuzzTiles has shapes and seeds of what TestTiles tries.
func FuzzTiles(f *testing.F) {
	for d := range tensor.DTypes() {
		f.Add(uint8(d), uint8(33), uint8(1), uint8(17), uint64(d), d%2 == 0)
	}
	f.Add(uint8(2), uint8(33), uint8(0), uint8(17), uint64(2), true) // a product beyond float32
	f.Fuzz(func(t *testing.T, format, rows, cols, n uint8, seed uint64, strange bool) {
		all := tensor.DTypes()
		d := all[int(format)%len(all)]
		if d == tensor.F32 || !converts() {
			t.Skip()
		}
		s := productShape{d, 1 + int(n)%70, 1 + int(rows)%40, (1 + int(cols)%(1100/d.Block())) * d.Block(), strange}
		r := rand.New(rand.NewPCG(seed, 1))
		tryBFloat16(t, r, emulated, s)
		if d.Block() == 1 {
			tryBFloat16(t, r, AVX512.multiply, s)
		}
	})
}
