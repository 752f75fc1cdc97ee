//go:build cuda && cgo

package kerneltest

import (
	"errors"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/estiba/estiba/kernels/cuda"
	"github.com/estiba/estiba/runtime/sampling"
)

// uniform is the n-th random number of a seed, from 1, in runtime/sampling.
func uniform(seed, n uint64) float64 {
	z := seed + n*0x9e3779b97f4a7c15
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return float64((z^z>>31)>>11) / (1 << 53)
}

// drawnRow is a row with how it is drawn from.
type drawnRow struct {
	logits []float32
	params sampling.Params
	mask   []uint32 // nil: all tokens
}

// sampleRows compares all rows, of one size, with runtime/sampling: tokens are the same, logprobs to 1e-6.
func sampleRows(t *testing.T, d *device, rows []drawnRow, draws bool) {
	t.Helper()
	size := len(rows[0].logits)
	words := (size + 31) / 32
	var logits []float32
	var masks []uint32
	var device []cuda.Draw
	for _, r := range rows {
		logits = append(logits, r.logits...)
		draw := cuda.Draw{Uniform: uniform(r.params.Seed, 1), Temperature: r.params.Temperature, TopP: r.params.TopP, MinP: r.params.MinP, TopK: int32(r.params.TopK), Mask: -1}
		if r.params.Logprobs {
			draw.Logprob = 1
		}
		if r.mask != nil {
			draw.Mask = int32(len(masks) / words)
			masks = append(masks, r.mask...)
		}
		device = append(device, draw)
	}
	p := cuda.SampleParams{
		Logits: upload(d, logits), Draws: upload(d, device), Choices: upload(d, make([]cuda.Choice, len(rows))),
		Scratch: upload(d, filled(int(cuda.SampleScratch(len(rows))), byte(0xff))), Vocabulary: int32(size), MaskWords: int32(words),
	}
	if masks != nil {
		p.Masks = upload(d, masks)
	}
	d.run(t, cuda.Sample(p, len(rows), draws)...)
	for i, c := range download[cuda.Choice](d, p.Choices, len(rows)) {
		r := rows[i]
		allowed := append([]float32(nil), r.logits...)
		for id := range allowed {
			if r.mask != nil && r.mask[id/32]>>(id%32)&1 == 0 {
				allowed[id] = float32(math.Inf(-1))
			}
		}
		want, err := sampling.New(r.params, nil).Sample(allowed, &sampling.Scratch{})
		if err != nil {
			none := int32(cuda.NothingAllowed)
			if _, err := sampling.New(sampling.Params{}, nil).Sample(r.logits, &sampling.Scratch{}); errors.Is(err, sampling.ErrNotANumber) {
				none = cuda.NotANumber
			}
			if c.Token != none {
				t.Errorf("%+v: token %d, want %d", r.params, c.Token, none)
			}
			continue
		}
		if c.Token != want.ID {
			t.Errorf("row %d of %d tokens, %+v, uniform %g: token %d (%g), want %d (%g)", i, size, r.params, uniform(r.params.Seed, 1), c.Token, r.logits[max(c.Token, 0)], want.ID, r.logits[want.ID])
			continue
		}
		if r.params.Logprobs {
			logprob := sampling.Logprobs(r.logits, want.ID, 0).Logprob
			if math.Abs(c.Logprob()-logprob) > 1e-6 {
				t.Errorf("row %d, %+v: logprob %g, want %g", i, r.params, c.Logprob(), logprob)
			}
		}
	}
}

// randomRow has logits of some deviation, with some that are not numbers, minus infinity, or equal to another.
func randomRow(r *rand.Rand, n int, deviation float64) []float32 {
	row := make([]float32, n)
	for i := range row {
		row[i] = float32(deviation * r.NormFloat64())
		switch r.IntN(40) {
		case 0:
			row[i] = float32(math.NaN())
		case 1:
			row[i] = float32(math.Inf(-1))
		case 2:
			row[i] = row[r.IntN(i+1)]
		}
	}
	return row
}

func TestSampleGreedy(t *testing.T) {
	d := open(t)
	r := rand.New(rand.NewPCG(9, 9))
	nan, inf := float32(math.NaN()), float32(math.Inf(1))
	for _, n := range []int{1, 2, 1000, 4096, 4097, 9001} {
		var rows []drawnRow
		for _, row := range [][]float32{randomRow(r, n, 3), randomRow(r, n, 0), filled(n, nan), filled(n, -inf), filled(n, float32(-3)), filled(n, inf)} {
			rows = append(rows, drawnRow{logits: row})
		}
		sampleRows(t, d, rows, false)
		for i := range rows {
			rows[i].params.Logprobs = true
		}
		sampleRows(t, d, rows[:2], true)
		sampleRows(t, d, rows[4:5], true)
	}
}

func TestSampleDraw(t *testing.T) {
	d := open(t)
	r := rand.New(rand.NewPCG(10, 10))
	for _, n := range []int{1, 5, 700, 1025, 5000, 9001} {
		var rows []drawnRow
		for range 12 {
			row := drawnRow{logits: randomRow(r, n, []float64{0.01, 1, 5, 40}[r.IntN(4)])}
			p := &row.params
			*p = sampling.Params{Temperature: []float64{0.01, 0.7, 1, 2}[r.IntN(4)], Seed: r.Uint64(), Logprobs: r.IntN(2) == 0}
			if r.IntN(2) == 0 {
				p.TopK = 1 + r.IntN(n)
			}
			if r.IntN(2) == 0 {
				p.TopP = r.Float64()
			}
			if r.IntN(2) == 0 {
				p.MinP = math.Pow(r.Float64(), 4)
			}
			rows = append(rows, row)
		}
		sampleRows(t, d, rows, true)
	}
}

// TestSampleEdges: flat rows with more candidates than shared memory holds, next to no temperature, infinite
// logits, filters that leave one or all.
func TestSampleEdges(t *testing.T) {
	d := open(t)
	r := rand.New(rand.NewPCG(11, 11))
	const n = 9500
	flat, equal, sharp := make([]float32, n), filled(n, float32(1)), make([]float32, n)
	for i := range flat {
		flat[i] = 0.01 * float32(r.NormFloat64())
		sharp[i] = -200 * r.Float32()
	}
	infinite := append([]float32(nil), flat...)
	infinite[77] = float32(math.Inf(1))
	var rows []drawnRow
	for _, logits := range [][]float32{flat, equal, sharp, infinite} {
		for _, p := range []sampling.Params{
			{Temperature: 1, TopP: 0.99}, {Temperature: 1, TopK: 9000}, {Temperature: 1, TopK: 9000, TopP: 0.97, MinP: 0.1}, {Temperature: 1, TopK: 1}, {Temperature: 1, TopP: 1e-9},
			{Temperature: 1e-300}, {Temperature: 1e-300, TopP: 0.5}, {Temperature: 1e6, MinP: 1}, {Temperature: 0.5, MinP: 2}, {Temperature: 1, TopK: n + 5}, {Temperature: 1, TopP: 0.9999999},
		} {
			p.Seed = r.Uint64()
			rows = append(rows, drawnRow{logits: logits, params: p})
		}
	}
	sampleRows(t, d, rows, true)
}

func TestSampleMask(t *testing.T) {
	d := open(t)
	r := rand.New(rand.NewPCG(12, 12))
	for _, n := range []int{3, 64, 5000} {
		var rows []drawnRow
		for i := range 12 {
			row := drawnRow{logits: randomRow(r, n, 2), mask: make([]uint32, (n+31)/32)}
			for j := range row.mask {
				row.mask[j] = r.Uint32() & r.Uint32() & r.Uint32()
			}
			if i == 0 {
				clear(row.mask)
			}
			row.params = sampling.Params{Temperature: float64(i % 3), Seed: r.Uint64(), Logprobs: i%2 == 0}
			if i%4 == 1 {
				row.params.TopP = 0.8
			}
			if i%4 == 2 {
				row.params.TopK = max(1, n/9)
			}
			rows = append(rows, row)
		}
		rows = append(rows, drawnRow{logits: filled(n, float32(math.NaN())), mask: filled((n+31)/32, ^uint32(0))})
		sampleRows(t, d, rows, true)
	}
}

// TestSampleLarge is of vocabularies with more slices than one, of more parts than the least.
func TestSampleLarge(t *testing.T) {
	d := open(t)
	r := rand.New(rand.NewPCG(13, 13))
	const n = 300_001
	logits := randomRow(r, n, 3)
	var rows []drawnRow
	for _, p := range []sampling.Params{
		{Logprobs: true}, {Temperature: 1, Logprobs: true}, {Temperature: 0.7, TopK: 40, TopP: 0.95}, {Temperature: 1.5, TopP: 0.9}, {Temperature: 1, MinP: 0.05},
	} {
		p.Seed = r.Uint64()
		rows = append(rows, drawnRow{logits: logits, params: p})
	}
	sampleRows(t, d, rows, true)
}
