// Package inspect shows what a model's headers say, and what a device can do. Start with Run
// and RunDevice.
package inspect

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/estiba/estiba/api/worker"
	"github.com/estiba/estiba/runtime/arch"
	"github.com/estiba/estiba/runtime/backend/cpu"
	"github.com/estiba/estiba/runtime/device"
	"github.com/estiba/estiba/runtime/model"
	"github.com/estiba/estiba/runtime/residency"
)

// Options of the command.
type Options struct {
	JSON bool // one JSON object
}

// Result is what the command prints; its JSON is a contract.
type Result struct {
	Architecture  string    `json:"architecture"`
	Parameters    int64     `json:"parameters"`
	Format        string    `json:"format"`         // "safetensors" or "gguf"
	WeightFormats []string  `json:"weight_formats"` // the one with most bytes first
	ContextLength int       `json:"context_length"` // tokens
	Vocabulary    int       `json:"vocabulary"`
	Layers        int       `json:"layers"`
	Footprint     Footprint `json:"footprint"`

	// NeedsBytes is what a worker admits for a replica with the default context, in whole extents, and
	// AvailableBytes what one on this machine has for models; Fits says whether the one is within the other.
	// They are left out where nobody can tell how much memory there is.
	NeedsBytes     int64 `json:"needs_bytes,omitzero"`
	AvailableBytes int64 `json:"available_bytes,omitzero"`
	Fits           *bool `json:"fits,omitempty"`
}

// Footprint is what a replica needs on this machine's processor, before rounding to extents: of weights, what
// the kernels of its path read, which may be a little more than what is stored.
type Footprint struct {
	WeightsBytes    int64 `json:"weights_bytes"`
	KVBytesPerToken int64 `json:"kv_bytes_per_token"`
	WorkspaceBytes  int64 `json:"workspace_bytes"` // of a replica with the default context
}

// Run reads the headers of the model at path and writes what they say to out.
func Run(_ context.Context, out io.Writer, path string, o Options) error {
	h, err := model.Inspect(path)
	if err != nil {
		return err
	}
	r, err := result(h)
	if err != nil {
		return err
	}
	if o.JSON {
		return json.NewEncoder(out).Encode(r)
	}
	fits := r.fits(h)
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	for _, row := range [][2]any{
		{"Architecture", r.Architecture},
		{"Parameters", r.Parameters},
		{"Format", fmt.Sprintf("%s (%s)", r.Format, strings.Join(r.WeightFormats, ", "))},
		{"Context length", tokens(r.ContextLength)},
		{"Vocabulary", r.Vocabulary},
		{"Layers", r.Layers},
		{"Weights", residency.Bytes(r.Footprint.WeightsBytes)},
		{"KV per token", residency.Bytes(r.Footprint.KVBytesPerToken)},
		{"Workspace", residency.Bytes(r.Footprint.WorkspaceBytes)},
		{"Fits here", fits},
	} {
		fmt.Fprintf(w, "%v:\t%v\n", row[0], row[1])
	}
	return w.Flush()
}

// fits says in words whether the model fits a worker here.
func (r Result) fits(h model.Header) string {
	if r.Fits == nil {
		return "not known: nobody can tell how much memory there is"
	}
	c, _ := residency.Clamp(worker.Context{}, h.Config.MaxPositions)
	needs := fmt.Sprintf("%s with a context of %s", residency.Bytes(r.NeedsBytes), tokens(c.MaxTokens))
	if *r.Fits {
		return fmt.Sprintf("yes: it needs %s, and a worker takes %s of the processor's memory for models", needs, residency.Bytes(r.AvailableBytes))
	}
	return fmt.Sprintf("no: it needs %s, and a worker takes %s of the processor's memory for models: shorten the context, take a model of fewer bits a weight, or give more memory",
		needs, residency.Bytes(r.AvailableBytes))
}

func tokens(n int) string {
	if n == 1 {
		return "1 token"
	}
	return fmt.Sprintf("%d tokens", n)
}

func result(h model.Header) (Result, error) {
	c, _ := residency.Clamp(worker.Context{}, h.Config.MaxPositions)
	processor, err := cpu.New("cpu-0", cpu.Options{Threads: 1}) // computes nothing
	if err != nil {
		return Result{}, err
	}
	defer processor.Close()
	weights, step := processor.WeightsBytes(h.Tensors), residency.StepOf(h.Config, c, processor.StepTokens())
	r := Result{
		Architecture:  h.Architecture,
		Parameters:    h.Parameters,
		Format:        h.Format,
		WeightFormats: h.Stored,
		ContextLength: h.Config.MaxPositions,
		Vocabulary:    h.Config.Vocabulary,
		Layers:        h.Config.Layers,
		Footprint: Footprint{
			WeightsBytes:    weights,
			KVBytesPerToken: arch.KVBytesPerToken(h.Config),
			WorkspaceBytes:  residency.Workspace(h.Config, h.HostBytes, step),
		},
	}
	here, err := device.CPU(device.Options{Headroom: headroom})
	if err != nil {
		return r, nil // how much memory there is, is not what was asked for first
	}
	r.AvailableBytes = here.Capacity
	f, err := residency.Estimate(h.Config, weights, h.HostBytes, c, step, here.Extent)
	if err == nil {
		r.NeedsBytes = residency.Need(f)
	} else { // its cache cannot be cut into the extents of so small a device
		r.NeedsBytes = r.Footprint.WeightsBytes + r.Footprint.WorkspaceBytes + int64(c.MaxTokens)*r.Footprint.KVBytesPerToken
	}
	fits := err == nil && r.NeedsBytes <= here.Capacity
	r.Fits = &fits
	return r, nil
}

// headroom is the per cent of its memory that a worker keeps free where nobody says how much.
const headroom = 5
