package run

import (
	"bytes"
	"encoding/json"
	"errors"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/estiba/estiba/internal/fixture"
)

// TestEmbedGolden: an encoder's embeddings are within 1e-5 of the reference.
func TestEmbedGolden(t *testing.T) {
	data, err := os.ReadFile(fixture.Shared(t, "golden/bert-embedding/golden.json"))
	if err != nil {
		t.Fatal(err)
	}
	var golden struct {
		Prompts map[string]struct {
			IDs  []int32   `json:"input_ids"`
			Mean []float32 `json:"mean_normalised"`
			CLS  []float32 `json:"cls_normalised"`
		}
	}
	if err := json.Unmarshal(data, &golden); err != nil || len(golden.Prompts) == 0 {
		t.Fatalf("%d prompts, %v", len(golden.Prompts), err)
	}
	for name, p := range golden.Prompts {
		for pooling, want := range map[string][]float32{"": p.Mean, "mean": p.Mean, "cls": p.CLS} {
			for _, exact := range []bool{true, false} {
				e := embedded(t, fixture.Shared(t, "golden/bert-embedding"), EmbedOptions{IDs: p.IDs, Pooling: pooling, Exact: exact})
				most := 0.0
				for i, x := range e.Embedding {
					most = max(most, math.Abs(float64(x-want[i])))
				}
				bound := 1e-5
				if !exact {
					bound = 1e-2
				}
				if len(e.Embedding) != len(want) || most > bound || len(e.IDs) != len(p.IDs) {
					t.Errorf("%s, pooling %q, exact %t: differs by %g", name, pooling, exact, most)
				}
			}
		}
	}
}

func TestEmbedOfDecoder(t *testing.T) {
	path := fixture.Model("stories260K/hf-f32")
	text := embedded(t, path, EmbedOptions{Text: "Once upon a time"})
	if text.Pooling != "last" || len(text.Embedding) != 64 || len(text.IDs) != 5 {
		t.Fatalf("%+v", text)
	}
	square := 0.0
	for _, x := range text.Embedding {
		square += float64(x) * float64(x)
	}
	if math.Abs(square-1) > 1e-6 {
		t.Errorf("length %g", math.Sqrt(square))
	}
	if ids := embedded(t, path, EmbedOptions{IDs: text.IDs}); ids.Embedding[0] != text.Embedding[0] {
		t.Errorf("ids give %v, their text %v", ids.Embedding[:3], text.Embedding[:3])
	}
	if mean := embedded(t, path, EmbedOptions{IDs: text.IDs, Pooling: "mean"}); mean.Embedding[0] == text.Embedding[0] {
		t.Error("mean is last")
	}
	if long := embedded(t, path, EmbedOptions{IDs: bytesAsIDs(512)}); len(long.Embedding) != 64 {
		t.Errorf("%+v", long)
	}
	for name, o := range map[string]EmbedOptions{
		"513 tokens": {IDs: bytesAsIDs(513)}, "no tokens": {IDs: []int32{}}, "unsupported": {Text: "x", Pooling: "max"}, "no such": {IDs: []int32{512}},
	} {
		if err := Embed(t.Context(), &bytes.Buffer{}, path, o); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// TestEmbedNothing: an empty text is the tokenizer's special tokens, or nothing.
func TestEmbedNothing(t *testing.T) {
	path := fixture.CopyModel(t, "stories260K/hf-f32", t.TempDir())
	if e := embedded(t, path, EmbedOptions{}); len(e.IDs) != 1 || e.IDs[0] != 1 || len(e.Embedding) != 64 {
		t.Errorf("of the begin token alone: %+v", e)
	}
	fixture.EditJSON(t, filepath.Join(path, "tokenizer.json"), map[string]any{"post_processor": nil})
	err := Embed(t.Context(), &bytes.Buffer{}, path, EmbedOptions{})
	if !errors.Is(err, ErrNoText) || !strings.HasPrefix(err.Error(), `--text is ""`) {
		t.Errorf("of no token: %v", err)
	}
}

func bytesAsIDs(n int) []int32 {
	ids := make([]int32, n)
	for i := range ids {
		ids[i] = int32(3 + i%256)
	}
	return ids
}

func embedded(t *testing.T, path string, o EmbedOptions) (e Embedding) {
	t.Helper()
	var plain, out bytes.Buffer
	if err := Embed(t.Context(), &plain, path, o); err != nil {
		t.Fatal(err)
	}
	o.JSON = true
	if err := Embed(t.Context(), &out, path, o); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(out.Bytes(), &e); err != nil || len(strings.Fields(plain.String())) != len(e.Embedding) {
		t.Fatalf("%s: %v", out.String(), err)
	}
	return e
}
