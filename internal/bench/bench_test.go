package bench

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/estiba/estiba/internal/fixture"
	kernels "github.com/estiba/estiba/kernels/cpu"
	"github.com/estiba/estiba/runtime/device"
	"github.com/estiba/estiba/runtime/model"
)

func TestRun(t *testing.T) {
	path := fixture.Model("stories260K/hf-f32")
	o := Options{Threads: 2, Prompt: 600, Generate: 20, Batch: []int{1, 3}, Repeat: 2, JSON: true, little: true}
	var stdout, stderr bytes.Buffer
	if err := Run(context.Background(), &stdout, &stderr, path, o); err != nil {
		t.Fatal(err)
	}
	var r Result
	if err := json.Unmarshal(stdout.Bytes(), &r); err != nil {
		t.Fatalf("%s: %v", stdout.String(), err)
	}
	for name, v := range map[string]float64{
		"load": r.LoadSeconds, "first token": r.FirstTokenSeconds - r.LoadSeconds, "prefill": r.PrefillTokensPerSecond, "decode": r.DecodeTokensPerSecond,
		"read": r.ReadBytesPerSecond - 1e6, "resident": float64(r.ResidentBytes), "peak": float64(r.PeakResidentBytes), "batch": r.Batch[1].TokensPerSecond,
	} {
		if !(v > 0) {
			t.Errorf("%s is %v", name, v)
		}
	}
	if got := float64(r.BytesPerToken) * r.DecodeTokensPerSecond / r.ReadBytesPerSecond; got != r.BandwidthFraction {
		t.Errorf("fraction %v, want %v", r.BandwidthFraction, got)
	}
	if r.PrefillSpread.Least > r.PrefillTokensPerSecond || r.DecodeSpread.Most < r.DecodeTokensPerSecond {
		t.Errorf("%+v", r)
	}
	if r.OthersCPU == nil || *r.OthersCPU < 0 {
		t.Error("nobody watched the others")
	}
	if r.Threads != 2 || len(r.Batch) != 2 || r.Batch[0].Size != 1 || r.Batch[1].Size != 3 {
		t.Errorf("%+v", r)
	}
	if !strings.Contains(stderr.String(), "the model's context is 512 tokens") { // of which it gets 600
		t.Error(stderr.String())
	}
}

func TestParts(t *testing.T) {
	path := fixture.Model("stories260K/stories260K-f16.gguf")
	for want, o := range map[string]Options{
		"Prompt of 5": {Prompt: 5, Repeat: 1, little: true},
		"Decode 5":    {Generate: 5, Repeat: 1, little: true},
		"Batch of 4":  {Generate: 1, Batch: []int{4}, Repeat: 1, little: true},
	} {
		var stdout bytes.Buffer
		if err := Run(context.Background(), &stdout, io.Discard, path, o); err != nil {
			t.Fatal(err)
		}
		for _, part := range []string{"Prompt of", "Decode", "Batch of"} {
			expect := strings.HasPrefix(want, part) || part == "Decode" && o.Generate > 0
			if strings.Contains(stdout.String(), part) != expect {
				t.Errorf("%+v: %s", o, stdout.String())
			}
		}
		if !strings.Contains(stdout.String(), want) || strings.Contains(stdout.String(), "NaN") {
			t.Errorf("%+v: %s", o, stdout.String())
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := Run(ctx, io.Discard, io.Discard, path, Options{Prompt: 5, Repeat: 1, little: true}); err == nil || err.Error() != "interrupted" {
		t.Error(err)
	}
}

// TestNotMeasured: what is left out has no figures, rather than 0.
func TestNotMeasured(t *testing.T) {
	path := fixture.Model("stories260K/stories260K-f16.gguf")
	for _, c := range []struct {
		o       Options
		without string
	}{
		{Options{Generate: 3, Batch: []int{2}, Repeat: 1, little: true}, "prefill_tokens_per_second prefill_spread"},
		{Options{Prompt: 3, Batch: []int{2}, Repeat: 1, little: true}, "decode_tokens_per_second decode_spread bytes_per_token bandwidth_fraction"},
	} {
		c.o.JSON = true
		var stdout bytes.Buffer
		if err := Run(t.Context(), &stdout, io.Discard, path, c.o); err != nil {
			t.Fatal(err)
		}
		var r map[string]any
		if err := json.Unmarshal(stdout.Bytes(), &r); err != nil {
			t.Fatal(err)
		}
		for figure := range strings.FieldsSeq("prefill_tokens_per_second prefill_spread decode_tokens_per_second decode_spread bytes_per_token bandwidth_fraction") {
			if _, has := r[figure]; has == slices.Contains(strings.Fields(c.without), figure) {
				t.Errorf("%+v: %s is %v", c.o, figure, r[figure])
			}
		}
		if r["finite"] != true {
			t.Errorf("finite is %v", r["finite"])
		}
	}
}

// TestDamaged: speeds of weights that are no numbers are told as such.
func TestDamaged(t *testing.T) {
	path := fixture.CopyModel(t, "stories260K/hf-f32", t.TempDir())
	file := filepath.Join(path, "model.safetensors")
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	header := 8 + int(binary.LittleEndian.Uint64(data))
	fixture.WriteFile(t, file, append(data[:header:header], bytes.Repeat([]byte{0xff}, len(data)-header)...))
	for _, o := range []Options{{Prompt: 4, Repeat: 1, JSON: true, little: true}, {Threads: 999, Generate: 2, Repeat: 1, little: true}} {
		var stdout, stderr bytes.Buffer
		if err := Run(t.Context(), &stdout, &stderr, path, o); err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(stderr.String(), "the weights are damaged") || !strings.Contains(stdout.String(), map[bool]string{true: `"finite":false`, false: "Damaged:"}[o.JSON]) {
			t.Errorf("%+v: %s%s", o, stdout.String(), stderr.String())
		}
		if strings.HasPrefix(stderr.String(), "999 threads are more than the ") != (o.Threads == 999) {
			t.Errorf("%+v: %s", o, stderr.String())
		}
	}
}

// TestThreads: more of them than can compute at once are measured, with a word about it.
func TestThreads(t *testing.T) {
	there := device.Processors(nil)
	for threads, want := range map[int]string{1: "", there: "", there + 1: fmt.Sprintf("%d threads are more than the %s that ", there+1, count(there, "processor"))} {
		if got := tooMany(threads); !strings.HasPrefix(got, want) || want == "" && got != "" {
			t.Errorf("%d threads: %q, want %q", threads, got, want)
		}
	}
}

func TestRoofSize(t *testing.T) {
	for left, want := range map[int64]int{0: roofBytes, 8 << 30: roofBytes, 1 << 30: 256 << 20, 100 << 20: 16 << 20, 1: leastRoof} {
		if got := (&roof{left: left}).size(); got != want {
			t.Errorf("with %d bytes left: %d, want %d", left, got, want)
		}
	}
}

func TestNoRoom(t *testing.T) {
	best, err := kernels.Best()
	if err != nil {
		t.Fatal(err)
	}
	if best == kernels.PlainGo || device.Free(nil).Bytes > 900<<30 {
		t.Skip("SKIPPED: this path leaves weights in their files, or this machine has room for them")
	}
	path := fixture.HugeModel(t, t.TempDir())
	err = Run(t.Context(), io.Discard, io.Discard, path, Options{Generate: 1, Repeat: 1, little: true})
	if err == nil || !strings.HasPrefix(err.Error(), path+" needs ") || !strings.Contains(err.Error(), "can be had (") || !strings.Contains(err.Error(), "give a smaller --prompt") {
		t.Errorf("got %v", err)
	}
}

// TestWeightBytes counts what a token reads: a tied table whole, another one a row of it, and
// of the experts the chosen ones.
func TestWeightBytes(t *testing.T) {
	for path, want := range map[string]func(all, table, row, experts int64) int64{
		fixture.Model("stories260K/hf-f32"):          func(all, _, _, _ int64) int64 { return all },
		fixture.Shared(t, "golden/llama-mha-untied"): func(all, table, row, _ int64) int64 { return all - table + row },
		fixture.Shared(t, "golden/mixtral-top2"):     func(all, _, _, experts int64) int64 { return all - experts/2 }, // 2 of 4; the table is tied
	} {
		m, err := model.OpenForIDs(path)
		if err != nil {
			t.Fatal(err)
		}
		var all, table, experts int64
		for _, w := range m.Graph.Weights {
			tensor, err := m.Weights(w.Name)
			if err != nil {
				t.Fatal(err)
			}
			all += int64(len(tensor.Data))
			if strings.Contains(w.Name, "embed") {
				table = int64(len(tensor.Data))
			}
			if strings.Contains(w.Name, "expert") {
				experts += int64(len(tensor.Data))
			}
		}
		got, err := weightBytes(m)
		if want := want(all, table, table/int64(m.Config.Vocabulary), experts); err != nil || got != want {
			t.Errorf("%s: %d, %v, want %d of %d (table %d, experts %d)", path, got, err, want, all, table, experts)
		}
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	}
}
