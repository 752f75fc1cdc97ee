package inspect

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/estiba/estiba/internal/fixture"
	kernels "github.com/estiba/estiba/kernels/cpu"
	"github.com/google/go-cmp/cmp"
)

func TestRun(t *testing.T) {
	t.Setenv(kernels.PathVariable, kernels.PlainGo.String()) // reads weights as they are stored
	var out strings.Builder
	if err := Run(t.Context(), &out, fixture.Model("stories260K/stories260K-f16.gguf"), Options{JSON: true}); err != nil {
		t.Fatal(err)
	}
	var got map[string]any
	if err := json.Unmarshal([]byte(out.String()), &got); err != nil {
		t.Fatal(err)
	}
	workspace, _ := got["footprint"].(map[string]any)["workspace_bytes"].(float64)
	if workspace < 256*64*4 || workspace > 8<<20 {
		t.Errorf("workspace of %v bytes", workspace)
	}
	for _, figure := range []string{"needs_bytes", "available_bytes"} {
		if n, _ := got[figure].(float64); n < 64<<10 {
			t.Errorf("%s is %v", figure, got[figure])
		}
		delete(got, figure)
	}
	want := map[string]any{
		"fits":         true,
		"architecture": "llama", "parameters": 260032.0, "format": "gguf", "weight_formats": []any{"F16", "F32"},
		"context_length": 512.0, "vocabulary": 512.0, "layers": 5.0,
		"footprint": map[string]any{"weights_bytes": 521472.0, "kv_bytes_per_token": 640.0, "workspace_bytes": workspace},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}

	if got := tokens(1); got != "1 token" {
		t.Error(got)
	}
	out.Reset()
	if err := Run(t.Context(), &out, fixture.HugeModel(t, t.TempDir()), Options{}); err != nil {
		t.Fatal(err)
	}
	for _, says := range []string{"safetensors (F32)", "512 tokens", "Weights:         950 GiB", "KV per token:    320 KiB", "Fits here:       no: it needs 950", "with a context of 512 tokens, and a worker takes", "of the processor's memory for models"} {
		if !strings.Contains(out.String(), says) {
			t.Errorf("does not say %q:\n%s", says, out.String())
		}
	}
}
