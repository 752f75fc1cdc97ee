//go:build cuda && cgo

package cuda

import (
	"fmt"
	"math"
	"unsafe"

	kernels "github.com/estiba/estiba/kernels/cuda"
	"github.com/estiba/estiba/runtime/backend"
)

// draws says whether the device chooses the tokens of these rows of logits.
func (p *program) draws(out *backend.Out, rows []int32) bool {
	n := len(out.Draws)
	if n == 0 || n != len(rows) || int(rows[n-1]) != n-1 || out.WantHidden {
		return false
	}
	return p.graph.Vocabulary() <= kernels.MaxVocabulary && n*int(unsafe.Sizeof(kernels.Draw{})) <= drawsBytes
}

// draw chooses a token for each row of logits, so that no logits leave the device.
func (p *program) draw(out *backend.Out) error {
	b, n := p.b, len(out.Draws)
	draws := unsafe.Slice((*kernels.Draw)(unsafe.Pointer(unsafe.SliceData(b.draws.bytes))), n)
	weighed := false
	for i, d := range out.Draws {
		draws[i] = kernels.Draw{Uniform: d.Uniform, Temperature: d.Temperature, TopP: d.TopP, MinP: d.MinP, TopK: int32(min(d.TopK, math.MaxInt32)), Mask: -1}
		if d.Logprob {
			draws[i].Logprob = 1
		}
		weighed = weighed || d.Temperature > 0 || d.Logprob
	}
	size := n * int(unsafe.Sizeof(kernels.Draw{}))
	choices := b.sampling.at + kernels.Address(up(int64(size)))
	given := n * int(unsafe.Sizeof(kernels.Choice{}))
	scratch := choices + kernels.Address(up(int64(given)))
	if err := b.slab.grow(&b.sampling, int64(scratch-b.sampling.at)+kernels.SampleScratch(n)); err != nil {
		return fmt.Errorf("what tokens are drawn in: %w", err)
	}
	s := kernels.SampleParams{Logits: p.logits, Draws: b.sampling.at, Choices: choices, Scratch: scratch, Vocabulary: int32(p.graph.Vocabulary())}
	all := append([]kernels.Launch{kernels.Copy(s.Draws, b.draws.at, int64(size/4))}, kernels.Sample(s, n, weighed)...)
	if err := b.launch(b.stream, all...); err != nil {
		return err
	}
	if err := b.stream.CopyOut(b.out.bytes[:given], choices); err != nil {
		return err
	}
	if err := b.stream.Synchronize(); err != nil {
		return err
	}
	out.Choices = out.Choices[:0]
	for i, c := range unsafe.Slice((*kernels.Choice)(unsafe.Pointer(unsafe.SliceData(b.out.bytes))), n) {
		is := backend.Choice{Token: c.Token, Certain: math.IsInf(float64(c.Most), 1)}
		if out.Draws[i].Logprob && c.Token >= 0 {
			is.Logprob = c.Logprob()
		}
		out.Choices = append(out.Choices, is)
	}
	return nil
}
