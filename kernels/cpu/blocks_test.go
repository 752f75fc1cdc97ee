package cpu_test

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/estiba/estiba/kernels/cpu"
	"github.com/estiba/estiba/runtime/tensor"
)

// TestLikeGGML wants every bit that ggml's own dequantize_row functions (commit
// d99724f2b141, built with -ffp-contract=off) make of random blocks with any finite
// scales, 131,072 numbers in each format. Here are the sums of what they made.
func TestLikeGGML(t *testing.T) {
	for d, want := range map[tensor.DType]string{
		tensor.Q8_0: "86051feda02a08e0",
		tensor.Q4_0: "1ad24e17f11bf29a",
		tensor.Q4_1: "6e5771a179f81441",
		tensor.Q5_0: "a40bb1861316af96",
		tensor.Q5_1: "c84dbdd39588401b",
		tensor.Q4_K: "4b4c761f394682a8",
		tensor.Q5_K: "44d25e82dc245a1e",
		tensor.Q6_K: "4be0d8c2b33574ef",
	} {
		const n = 512 * 256
		y := make([]float32, n)
		cpu.Matrix{DType: d, Rows: 1, Cols: n, Data: anyBlocks(d, n)}.Row(y, 0)
		h := sha256.New()
		for _, x := range y {
			h.Write(binary.LittleEndian.AppendUint32(nil, math.Float32bits(x)))
		}
		if got := fmt.Sprintf("%x", h.Sum(nil)[:8]); got != want {
			t.Errorf("%v: got %s, want %s", d, got, want)
		}
	}
}

// anyBlocks has random bits, but for the scales, which are finite.
func anyBlocks(d tensor.DType, n int) []byte {
	r := rand.New(rand.NewPCG(5, 6))
	data := make([]byte, d.Bytes(int64(n)))
	for i := range data {
		data[i] = byte(r.Uint32())
	}
	block := int(d.Bytes(int64(d.Block())))
	for at := 0; at < len(data); at += block {
		for _, h := range []int{0, 2, 208} { // where some format has a half
			if h+2 <= block {
				binary.LittleEndian.PutUint16(data[at+h:], uint16(r.UintN(0x7c00)|r.UintN(2)<<15))
			}
		}
	}
	return data
}
