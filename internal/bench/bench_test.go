package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"strings"
	"testing"

	"github.com/estiba/estiba/internal/fixture"
	"github.com/estiba/estiba/runtime/model"
)

func TestRun(t *testing.T) {
	path := fixture.Model("stories260K/hf-f32")
	o := Options{Threads: 2, Prompt: 600, Generate: 20, Batch: []int{1, 3}, Repeat: 2, JSON: true}
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
		"Prompt of 5": {Prompt: 5, Repeat: 1},
		"Decode 5":    {Generate: 5, Repeat: 1},
		"Batch of 4":  {Generate: 1, Batch: []int{4}, Repeat: 1},
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
	if err := Run(ctx, io.Discard, io.Discard, path, Options{Prompt: 5, Repeat: 1}); err == nil || err.Error() != "interrupted" {
		t.Error(err)
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
