// Package backend is what the runtime asks of a device: compile a graph of op
// data into a program that holds its weights and its KV cache, and run batches
// through it. runtime/backend/cpu is the processor, runtime/backend/cuda NVIDIA's
// devices; backendtest is what all pass.
package backend

import (
	"context"
	"errors"
	"fmt"

	"github.com/estiba/estiba/runtime/batching"
	"github.com/estiba/estiba/runtime/graph"
	"github.com/estiba/estiba/runtime/residency"
	"github.com/estiba/estiba/runtime/sampling"
	"github.com/estiba/estiba/runtime/tensor"
)

// Backend compiles graphs for one device and owns its memory.
type Backend interface {
	// Name of the device, such as "cpu-0" or "gpu-0".
	Name() string
	// Supports says whether the device runs ops of a kind on weights of a format.
	Supports(graph.Kind, tensor.DType) bool
	// WeightsBytes is what a program without Exact holds of weights that a checkpoint has so.
	WeightsBytes([]graph.Stored) int64
	// StepTokens is how many tokens a step has at most: from there on, more of a prompt at a time is no faster.
	StepTokens() int
	// Compile checks that it can do every op (the error names the one it cannot),
	// takes the weights and allocates the workspace, and the KV cache if it is the
	// program's own. A program without Exact has read all weights then, so that its
	// first step does not wait for a disk.
	Compile(context.Context, *graph.Graph, Weights, Limits) (Program, error)
	// Discard gives back the memory behind extents of the slab that hold nothing of use.
	// No program may be running.
	Discard(extents []int32)
	Close() error
}

// Weights gives the tensor that a graph calls name (graph.Graph.Weights). Its
// data may be a mapped file, which stays valid until the program is closed; Compile may
// leave the pages of what it has made its own copy of to the system.
type Weights func(name string) (tensor.Tensor, error)

// Weight is one of a graph's as its checkpoint has it.
type Weight struct {
	graph.Stored
	Data   []byte // of Rows rows
	Mapped bool   // Data is pages of a file
}

// Of gives the weights of a graph in its order, and says what is wrong with one.
func (weights Weights) Of(ctx context.Context, g *graph.Graph) ([]Weight, error) {
	all := make([]Weight, 0, len(g.Weights))
	uses := g.Uses()
	for i, w := range g.Weights {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		t, err := weights.checked(w)
		if err != nil {
			return nil, err
		}
		stored := graph.Stored{Use: uses[i], DType: t.DType, Rows: 1, Cols: w.Shape[len(w.Shape)-1], Count: 1}
		if len(w.Shape) == 2 {
			stored.Rows = w.Shape[0]
		}
		all = append(all, Weight{stored, t.Data, t.Mapped})
	}
	return all, nil
}

// checked gives a weight of a graph, and says what is wrong with one that has another shape, no bytes or other than its
// shape has, or rows that are no whole blocks.
func (weights Weights) checked(w graph.Weight) (tensor.Tensor, error) {
	t, err := weights(w.Name)
	if err != nil {
		return t, err
	}
	if !t.Shape.Equal(w.Shape) {
		return t, fmt.Errorf("weight %q has shape %v, want %v", w.Name, t.Shape, w.Shape)
	}
	n, ok := t.Shape.Elements()
	if size := t.DType.Bytes(n); !ok || size == 0 || int64(len(t.Data)) != size {
		return t, fmt.Errorf("weight %q: %d bytes of %v for shape %v", w.Name, len(t.Data), t.DType, t.Shape)
	}
	if row := w.Shape[len(w.Shape)-1]; row%t.DType.Block() != 0 {
		return t, fmt.Errorf("weight %q: rows of %d elements are no whole blocks of %v, which have %d", w.Name, row, t.DType, t.DType.Block())
	}
	return t, nil
}

// ErrFault marks a step, or a load, that could not read the weights: the mapped
// file was truncated or its disk failed. The process is sound, the program is not.
var ErrFault = errors.New("the weights cannot be read: the model's files changed or vanished while it was loaded")

// NoRoomError refuses a program that needs more memory than there is, before any of it is claimed.
type NoRoomError struct {
	Need  Bytes  // that no file backs
	Have  int64  // bytes that can be had
	Bound string // what ends there, for people
}

func (e *NoRoomError) Error() string {
	n := e.Need
	return fmt.Sprintf("needs %s of memory (weights %s, KV cache %s, workspace %s), and %s can be had (%s)",
		residency.Bytes(n.Total()), residency.Bytes(n.Weights), residency.Bytes(n.KV), residency.Bytes(n.Workspace), residency.Bytes(e.Have), e.Bound)
}

// DeviceError is a step, or a load, that failed because of the device, whatever the model.
type DeviceError struct {
	Device string
	// Lost says that the device itself is gone or sick. Otherwise it is this process's use of it that
	// is at an end: every later call fails too, and another process can go on.
	Lost bool
	Err  error
}

func (e *DeviceError) Error() string {
	if e.Lost {
		return fmt.Sprintf("device %s is lost: %v", e.Device, e.Err)
	}
	return fmt.Sprintf("device %s is of no more use to this process: %v", e.Device, e.Err)
}

func (e *DeviceError) Unwrap() error { return e.Err }

// Limits bound one program.
type Limits struct {
	MaxTokens   int // tokens of one step, over all its spans
	MaxRows     int // rows of logits of one step
	BlockTokens int // positions in one KV block
	Blocks      int // KV blocks of the program's own: 0 <= Span.Blocks[i] < Blocks. 0: they lie in the slab
	// PerExtent is how many KV blocks lie in one extent of the device's slab, a power of
	// two, where Blocks is 0: block b begins at byte b*Extent/PerExtent of the slab.
	PerExtent int
	// Exact asks for reference arithmetic: float32 activations, keys and values, a fixed
	// order of sums, so that a row does not depend on what shares the batch. Without it
	// keys and values are halves, and arithmetic is as fast as the device can. The processor
	// has it; others refuse it.
	Exact bool
	// Progress is told the share of the weights that Compile has read, ascending, where a
	// program reads them before its first step. It is called by one goroutine at a time. May be nil.
	Progress func(float64)
}

// Program is one replica: weights and KV cache on a device. Its methods are
// called from one goroutine at a time.
type Program interface {
	// Run computes a batch: it writes the keys and values of every span's tokens
	// into the span's blocks and fills out with the logits that were asked for.
	Run(ctx context.Context, b batching.Batch, out *Out) error
	// Bytes really held: weights, KV cache, workspace.
	Bytes() Bytes
	Close() error
}

// Bytes that a program holds on its device. KV is what is its own, not what it has of the slab.
type Bytes struct{ Weights, KV, Workspace int64 }

// Total of them.
func (b Bytes) Total() int64 { return b.Weights + b.KV + b.Workspace }

// Out is the result of a batch; the caller reuses it.
type Out struct {
	// Logits is [b.Logits(), vocabulary], rows in the order of the spans.
	Logits []float32
	// Hidden, when WantHidden is set, is [b.Logits(), hidden]: the final-norm
	// hidden state of the same rows.
	Hidden     []float32
	WantHidden bool

	// Draws, one for each row, let the device choose the rows' tokens, if it can: then Choices has as many, and
	// Logits is empty. Who cannot leaves Choices as it is.
	Draws   []sampling.Draw
	Choices []Choice
}

// Choice is what was drawn from a row of logits.
type Choice struct {
	Token   int32   // negative: no logit was a number that can be chosen
	Logprob float64 // if it was asked for
	Certain bool    // its logit was infinite, and no random number was needed
}
