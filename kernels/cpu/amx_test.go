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

// TestTiles wants of the emulated tiles what is wanted of dot products of bfloat16, for every format. An instruction
// whose tiles do not fit together ends the process.
func TestTiles(t *testing.T) {
	if !slices.Contains(Available(), AVX512) || AVX512.Form(tensor.F16, 100) != BFloat16 {
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
