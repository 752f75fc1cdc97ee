// Package bench is the command "estiba bench": how fast a device computes with a
// model, and how near that is to what its memory allows. Start with Run.
package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/estiba/estiba/runtime/residency"
)

// Options of one benchmark.
type Options struct {
	Device   string // as --device names it; empty: the processor
	Threads  int    // that compute; 0: as many as serve
	Prompt   int    // tokens of the prompt; 0 leaves the prompt out
	Generate int    // tokens after it, each from the one before; 0 leaves them out, and Batch with them
	Batch    []int  // numbers of sequences that are continued together
	Repeat   int    // how many times each is measured; at least 1
	JSON     bool

	little bool // reading memory takes little of it, and of the time of tests
}

// Result is what --json prints. Rates are the medians of all repetitions.
type Result struct {
	Model   string `json:"model"`
	Device  string `json:"device"`
	CPU     string `json:"cpu"`  // as the machine names it
	Path    string `json:"path"` // of the processor's kernels
	Threads int    `json:"threads"`
	// Accelerator is the device that computes in the processor's place, as its maker calls it; left out where none does.
	Accelerator string `json:"accelerator,omitempty"`
	Prompt      int    `json:"prompt"`
	Generate    int    `json:"generate"`
	Repeat      int    `json:"repeat"`

	LoadSeconds       float64 `json:"load_seconds"`        // until the first step can start
	FirstTokenSeconds float64 `json:"first_token_seconds"` // until that of a prompt of one token has been computed

	// Finite: the logits are numbers. Where they are not, the weights are damaged, and speeds say little of whole ones.
	Finite bool `json:"finite"`

	// What was not measured is left out: of a prompt where Prompt is 0, of decoding where Generate is 0.
	PrefillTokensPerSecond float64 `json:"prefill_tokens_per_second,omitzero"` // of a prompt, into an empty cache
	PrefillSpread          Spread  `json:"prefill_spread,omitzero"`
	DecodeTokensPerSecond  float64 `json:"decode_tokens_per_second,omitzero"` // of one sequence, from an empty cache on
	DecodeSpread           Spread  `json:"decode_spread,omitzero"`

	BytesPerToken      int64    `json:"bytes_per_token,omitzero"`    // that decoding one token reads: weights as they are stored, and KV cache
	ReadBytesPerSecond float64  `json:"read_bytes_per_second"`       // of as many threads that only read
	BandwidthFraction  float64  `json:"bandwidth_fraction,omitzero"` // what decoding reads in a second, of that
	Batch              []Batch  `json:"batch"`
	ResidentBytes      int64    `json:"resident_bytes"`      // of the process, after the decoding
	AnonymousBytes     int64    `json:"anonymous_bytes"`     // of those, what no file backs
	PeakResidentBytes  int64    `json:"peak_resident_bytes"` // since the load began
	OthersCPU          *float64 `json:"others_cpu"`          // processors that other processes kept busy meanwhile; null where that is not known
}

// Spread of a rate over the repetitions.
type Spread struct {
	Least float64 `json:"least"`
	Most  float64 `json:"most"`
}

// Batch is the decoding of several sequences together.
type Batch struct {
	Size            int     `json:"size"`              // sequences
	TokensPerSecond float64 `json:"tokens_per_second"` // of all together
}

// Run measures the model at path and writes the result to stdout, its steps to stderr.
func Run(ctx context.Context, stdout, stderr io.Writer, path string, o Options) error {
	r, err := measure(ctx, stderr, path, o)
	if err != nil && ctx.Err() != nil {
		return errors.New("interrupted")
	}
	if err != nil {
		return err
	}
	if o.JSON {
		return json.NewEncoder(stdout).Encode(r)
	}
	return r.print(stdout)
}

func (r Result) print(out io.Writer) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	row := func(name, format string, values ...any) {
		fmt.Fprintf(w, "%s:\t%s\n", name, fmt.Sprintf(format, values...))
	}
	if r.Accelerator != "" {
		row("Device", "%s, %s", r.Device, r.Accelerator)
	} else {
		row("Device", "%s, %s, path %s, %s", r.Device, r.CPU, r.Path, count(r.Threads, "thread"))
	}
	if !r.Finite {
		row("Damaged", "%s", notFinite)
	}
	row("Load", "%.2f s; first token after %.2f s", r.LoadSeconds, r.FirstTokenSeconds)
	if r.Prompt > 0 {
		row(fmt.Sprintf("Prompt of %d", r.Prompt), "%s tokens/s (%s)", rate(r.PrefillTokensPerSecond), r.PrefillSpread)
	}
	if r.Generate > 0 {
		row(fmt.Sprintf("Decode %d", r.Generate), "%s tokens/s (%s)", rate(r.DecodeTokensPerSecond), r.DecodeSpread)
		cached := ""
		if r.BandwidthFraction > 1 {
			cached = ": more, as from the processor's cache"
		}
		row("Read per token", "%s; at %.1f GB/s that is %.0f %% of the %.1f GB/s at which memory can be read%s",
			residency.Bytes(r.BytesPerToken), float64(r.BytesPerToken)*r.DecodeTokensPerSecond/1e9, 100*r.BandwidthFraction, r.ReadBytesPerSecond/1e9, cached)
	}
	for _, b := range r.Batch {
		row(fmt.Sprintf("Batch of %d", b.Size), "%s tokens/s, %.2f times those of one sequence", rate(b.TokensPerSecond), b.TokensPerSecond/r.DecodeTokensPerSecond)
	}
	row("Resident", "%s, at most %s, of which %s anonymous", residency.Bytes(r.ResidentBytes), residency.Bytes(r.PeakResidentBytes), residency.Bytes(r.AnonymousBytes))
	if r.OthersCPU != nil {
		row("Other processes", "%.2f processors", *r.OthersCPU)
	}
	return w.Flush()
}

// notFinite is what is wrong with a model whose logits are no numbers.
const notFinite = "the logits are no finite numbers, so the weights are damaged, and speeds say little of whole ones"

func (s Spread) String() string { return rate(s.Least) + ".." + rate(s.Most) }

// rate has three digits at least.
func rate(perSecond float64) string {
	if perSecond < 100 {
		return fmt.Sprintf("%.1f", perSecond)
	}
	return fmt.Sprintf("%.0f", perSecond)
}

func count(n int, what string) string {
	if n != 1 {
		what += "s"
	}
	return strings.TrimSpace(fmt.Sprintf("%d %s", n, what))
}
