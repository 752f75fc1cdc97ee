package residency

import (
	"fmt"
	"math"

	"github.com/estiba/estiba/api/worker"
	"github.com/estiba/estiba/runtime/arch"
)

// BlockTokens is the number of positions in one KV block.
const BlockTokens = 16

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

// Blocks is the number of KV blocks that hold all sequences of a clamped
// context. It stops at the largest int32, which is what a block table can name.
func Blocks(c worker.Context) int {
	each := c.MaxTokens / BlockTokens
	if c.MaxTokens%BlockTokens > 0 {
		each++
	}
	return int(min(mul(int64(each), int64(c.Sequences)), math.MaxInt32))
}

// StepTokens is the most tokens that a program computes in one step.
const StepTokens = 256

// Rows is the most rows of logits that a program gives in one step, which is
// also how many sequences run at the same time.
func Rows(c worker.Context) int { return min(max(c.Sequences, 32), StepTokens) }

// Estimate is the footprint of a checkpoint on a device with extents of extent
// bytes: each part is a whole number of extents. weights are the bytes of its
// tensors; c has been clamped.
func Estimate(cfg arch.Config, weights int64, c worker.Context, extent int64) worker.Footprint {
	return worker.Footprint{
		WeightsBytes:   RoundUp(weights, extent),
		KVFloorBytes:   RoundUp(mul(mul(int64(Blocks(c)), BlockTokens), arch.KVBytesPerToken(cfg)), extent),
		WorkspaceBytes: RoundUp(Workspace(cfg, c), extent),
	}
}

// Workspace is what a replica needs beside weights and KV cache: what its program
// works in, and what the process holds for it.
func Workspace(cfg arch.Config, c worker.Context) int64 {
	return add(arch.WorkspaceBytes(cfg, StepTokens, Rows(c)), arch.HostBytes(cfg))
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
