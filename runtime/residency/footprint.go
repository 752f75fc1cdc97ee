package residency

import (
	"fmt"
	"math"

	"github.com/estiba/estiba/api/worker"
	"github.com/estiba/estiba/runtime/arch"
)

// defaultMaxTokens bounds the context of a replica whose spec names none.
const defaultMaxTokens = 8192

// Clamp fills in what a spec leaves open (8192 tokens or the model's own
// context, one sequence) and cuts MaxTokens to the model's own context. The
// second result says in a sentence what was cut; empty if nothing was.
func Clamp(c worker.Context, model int) (worker.Context, string) {
	why := ""
	switch {
	case c.MaxTokens <= 0:
		c.MaxTokens = min(model, defaultMaxTokens)
	case c.MaxTokens > model:
		why = fmt.Sprintf("The context is %d tokens, not %d: the model itself has no more.", model, c.MaxTokens)
		c.MaxTokens = model
	}
	c.Sequences = max(c.Sequences, 1)
	return c, why
}

// Cut is how a model's KV blocks lie in a device's extents.
type Cut struct {
	PerExtent   int // blocks in one extent, a power of two
	BlockTokens int // positions in one block
}

// largeExtent is that of a device of 1 GiB or more.
const largeExtent = 2 << 20

// blockTokens is the least number of positions in a KV block, where an extent has room for them.
const blockTokens = 16

// mostBlocks of an extent: then the blocks of 8 TiB have numbers below 2^31.
const mostBlocks = 256

// CutError says that an extent has no room for one position of a model's KV cache.
type CutError struct{ Position, Extent int64 } // bytes

func (e *CutError) Error() string {
	return fmt.Sprintf("One position of its KV cache takes %s, and an extent of the device has %s: give the worker 1 GiB or more, then extents have %s.",
		Bytes(e.Position), Bytes(e.Extent), Bytes(largeExtent))
}

// CutExtent cuts extents of extent bytes, a power of two, into blocks for a model: as many as
// there can be of at least 16 positions, 256 at most, each block as large as fits. The error is a *CutError.
func CutExtent(cfg arch.Config, extent int64) (Cut, error) {
	each := arch.KVBytesPerToken(cfg)
	switch {
	case each == 0: // nothing is kept
		return Cut{PerExtent: 1, BlockTokens: blockTokens}, nil
	case each > extent:
		return Cut{}, &CutError{each, extent}
	}
	c := Cut{PerExtent: 1}
	for c.PerExtent < mostBlocks && extent/int64(2*c.PerExtent)/each >= blockTokens {
		c.PerExtent *= 2
	}
	c.BlockTokens = int(extent / int64(c.PerExtent) / each)
	return c, nil
}

// Floor is how many extents hold all sequences of a clamped context.
func (c Cut) Floor(context worker.Context) int64 {
	each := up(int64(context.MaxTokens), int64(c.BlockTokens))
	return up(mul(each, int64(context.Sequences)), int64(c.PerExtent))
}

// up divides and rounds up.
func up(n, by int64) int64 {
	q := n / by
	if n%by > 0 {
		q++
	}
	return q
}

// Step is the most that a program computes in one step.
type Step struct {
	Tokens    int
	Rows      int // of logits, or of the hidden state
	Sequences int // that run at the same time
}

// mostSequences run at the same time.
const mostSequences = 256

// StepOf a model with a clamped context, on a device whose steps have so many tokens: prompts go in chunks. An encoder
// takes each prompt whole, and gives a row for each of its tokens.
func StepOf(cfg arch.Config, c worker.Context, tokens int) Step {
	sequences := min(max(c.Sequences, 32), mostSequences, tokens)
	if cfg.Encoder {
		n := max(c.MaxTokens, tokens)
		return Step{Tokens: n, Rows: n, Sequences: sequences}
	}
	return Step{Tokens: tokens, Rows: sequences, Sequences: sequences}
}

// Estimate is the footprint of a checkpoint on a device with extents of extent
// bytes: each part is a whole number of extents. weights are the bytes of its
// tensors, host what the process holds beside them (model.Header); c has been
// clamped, and step is the model's there. The error is a *CutError.
func Estimate(cfg arch.Config, weights, host int64, c worker.Context, step Step, extent int64) (worker.Footprint, error) {
	cut, err := CutExtent(cfg, extent)
	if err != nil {
		return worker.Footprint{}, err
	}
	f := worker.Footprint{WeightsBytes: RoundUp(weights, extent), WorkspaceBytes: RoundUp(Workspace(cfg, host, step), extent)}
	if arch.KVBytesPerToken(cfg) > 0 {
		f.KVFloorBytes = RoundUp(mul(cut.Floor(c), extent), extent)
	}
	return f, nil
}

// Workspace is what a replica needs beside weights and KV cache: what its program
// works in, and what the process holds for it.
func Workspace(cfg arch.Config, host int64, s Step) int64 {
	return add(arch.WorkspaceBytes(cfg, s.Tokens, s.Rows), Host(cfg, host, s))
}

// Host is what the process holds for a replica beside its program: host of the model, and
// hidden states of a step that are to become embeddings.
func Host(cfg arch.Config, host int64, s Step) int64 {
	return add(host, mul(4*int64(s.Rows), int64(cfg.Hidden)))
}

// Need is the whole of a footprint in bytes; it stops at the largest int64,
// so that a hostile header does not wrap round to a small one.
func Need(f worker.Footprint) int64 {
	return add(add(f.WeightsBytes, f.KVFloorBytes), f.WorkspaceBytes)
}

// RoundUp is the smallest multiple of extent that is at least n; it stops at
// the largest multiple that an int64 holds.
func RoundUp(n, extent int64) int64 {
	if n <= 0 {
		return 0
	}
	if n > math.MaxInt64-extent {
		return math.MaxInt64 / extent * extent
	}
	return (n + extent - 1) / extent * extent
}

// add and mul are for non-negative numbers and stop at the largest int64.
func add(a, b int64) int64 {
	if a > math.MaxInt64-b {
		return math.MaxInt64
	}
	return a + b
}

func mul(a, b int64) int64 {
	if a != 0 && b > math.MaxInt64/a {
		return math.MaxInt64
	}
	return a * b
}

// Bytes writes a size for people: "14.2 GiB", "525 KiB".
func Bytes(n int64) string {
	units := []string{"bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"}
	f, u := float64(n), 0
	for f >= 1024 && u < len(units)-1 {
		f /= 1024
		u++
	}
	if u == 0 || f == math.Trunc(f) || f >= 100 {
		return fmt.Sprintf("%.0f %s", f, units[u])
	}
	return fmt.Sprintf("%.1f %s", f, units[u])
}
