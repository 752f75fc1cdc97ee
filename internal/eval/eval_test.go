package eval

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/estiba/estiba/internal/fixture"
	"github.com/estiba/estiba/internal/synth"
	"github.com/estiba/estiba/runtime/backend/cpu"
	"github.com/estiba/estiba/runtime/device"
	"github.com/estiba/estiba/runtime/model"
	"github.com/estiba/estiba/runtime/tensor"
)

func evaluate(t *testing.T, path, reference, text string) Result {
	t.Helper()
	file := filepath.Join(t.TempDir(), "text")
	fixture.WriteFile(t, file, []byte(text))
	var out bytes.Buffer
	if err := Run(context.Background(), &out, io.Discard, path, Options{Reference: reference, Text: file, JSON: true}); err != nil {
		t.Fatal(err)
	}
	var r Result
	if err := json.Unmarshal(out.Bytes(), &r); err != nil {
		t.Fatal(err)
	}
	return r
}

// TestQuality wants what another program measured on the same texts.
func TestQuality(t *testing.T) {
	data, err := os.ReadFile(fixture.Shared(t, "models/stories260K/quality.json"))
	if err != nil {
		t.Fatal(err)
	}
	type figures struct {
		Perplexity float64 `json:"perplexity"`
		MeanKL     float64 `json:"mean_kl"`
		MaxKL      float64 `json:"max_kl"`
		SameTop    float64 `json:"same_top"`
		Positions  int     `json:"positions"`
	}
	var quality struct {
		Texts    []string           `json:"texts"`
		Counts   []int              `json:"token_counts"`
		Variants map[string]figures `json:"variants"`
	}
	if err := json.Unmarshal(data, &quality); err != nil || len(quality.Texts) == 0 {
		t.Fatal(quality, err)
	}
	reference := fixture.Shared(t, "models/stories260K/hf-f32")
	for file, variant := range map[string]string{
		"hf-f32": "f32", "stories260K-f32.gguf": "f32", "hf-bf16": "bf16-weights", "stories260K-f16.gguf": "gguf-f16",
		"stories260K-q8_0.gguf": "gguf-q8_0", "stories260K-q4_0.gguf": "gguf-q4_0",
	} {
		t.Run(file, func(t *testing.T) {
			want := quality.Variants[variant]
			var loss, kl, most, same float64
			n := 0
			for i, text := range quality.Texts {
				r := evaluate(t, fixture.Shared(t, "models/stories260K/"+file), reference, text)
				if r.Positions != quality.Counts[i]-1 || r.Windows != 1 {
					t.Errorf("text %d: %d positions in %d windows", i, r.Positions, r.Windows)
				}
				n += r.Positions
				loss += math.Log(r.Perplexity) * float64(r.Positions)
				kl += r.MeanKL * float64(r.Positions)
				same += r.SameTop * float64(r.Positions)
				most = max(most, r.MaxKL)
			}
			got := figures{math.Exp(loss / float64(n)), kl / float64(n), most, same / float64(n), n}
			t.Logf("%+v", got)
			near := func(what string, got, want, tolerance float64) {
				if !(math.Abs(got-want) <= tolerance) {
					t.Errorf("%s is %v, want %v", what, got, want)
				}
			}
			near("perplexity", got.Perplexity, want.Perplexity, 0.0001*want.Perplexity)
			near("mean KL", got.MeanKL, want.MeanKL, 0.01*want.MeanKL+1e-12)
			near("largest KL", got.MaxKL, want.MaxKL, 0.02*want.MaxKL+1e-10)
			near("same top", got.SameTop, want.SameTop, 1/float64(n))
			if got.Positions != want.Positions {
				t.Errorf("%d positions, want %d", got.Positions, want.Positions)
			}
		})
	}
}

// TestFormats: the fewer bits a format has, the further it is from float32.
func TestFormats(t *testing.T) {
	s := synth.Shape{Architecture: "llama", Layers: 2, Hidden: 256, FFN: 512, Heads: 4, KVHeads: 2, HeadDim: 64, Vocabulary: 500, Context: 256, NormEps: 1e-5, RopeTheta: 1e4}
	dir := t.TempDir()
	write := func(d tensor.DType) string {
		path := filepath.Join(dir, d.String()+".gguf")
		if _, err := synth.Write(context.Background(), io.Discard, "little", s, synth.Options{Quant: d, Out: path, Seed: 3}); err != nil {
			t.Fatal(err)
		}
		return path
	}
	reference := write(tensor.F32)
	for d, bounds := range map[tensor.DType][2]float64{
		tensor.F32: {0, 0}, tensor.F16: {1e-9, 1e-6}, tensor.BF16: {1e-7, 1e-4}, tensor.Q8_0: {1e-6, 1e-3}, tensor.Q4_K: {1e-4, 0.05}, tensor.Q4_0: {1e-4, 0.1},
	} {
		r := evaluate(t, write(d), reference, "The quick brown fox jumps over the lazy dog.")
		if r.MeanKL < bounds[0] || r.MeanKL > bounds[1] || r.SameTop < 0.6 {
			t.Errorf("%v: %+v", d, r)
		}
	}
}

// TestWindows of a text that is longer than the context.
func TestWindows(t *testing.T) {
	path := fixture.Model("stories260K/hf-f32")
	long := strings.Repeat("Once upon a time, there was a little girl named Lily. ", 60)
	r := evaluate(t, path, path, long)
	if r.Windows < 2 || r.MeanKL != 0 || r.SameTop != 1 || r.Perplexity != r.ReferencePerplexity {
		t.Errorf("%+v", r)
	}
	for name, c := range map[string]struct {
		front, tokens []int32
		context       int
		want          [][]int32
	}{
		"one":            {[]int32{1}, []int32{5, 6}, 8, [][]int32{{1, 5, 6}}},
		"exactly":        {[]int32{1}, []int32{5, 6}, 3, [][]int32{{1, 5, 6}}},
		"two":            {[]int32{1}, []int32{5, 6, 7}, 3, [][]int32{{1, 5, 6}, {1, 7}}},
		"without front":  {nil, []int32{5, 6, 7, 8}, 3, [][]int32{{5, 6, 7}, {7, 8}}},
		"nothing":        {[]int32{1}, nil, 3, nil},
		"one, no front":  {nil, []int32{5}, 3, nil},
		"context of one": {nil, []int32{5, 6}, 1, nil},
	} {
		got, err := windows(c.front, c.tokens, c.context)
		if d := cmp.Diff(c.want, got); d != "" || (err == nil) != (c.want != nil) {
			t.Errorf("%s: %v %v", name, got, err)
		}
	}
}

func TestSplit(t *testing.T) {
	for _, c := range []struct{ full, plain, front []int32 }{
		{[]int32{1, 5, 6}, []int32{5, 6}, []int32{1}},
		{[]int32{1, 5, 6, 2}, []int32{5, 6}, []int32{1}},
		{[]int32{5, 6}, []int32{5, 6}, nil},
	} {
		if front, tokens := split(c.full, c.plain); !slices.Equal(front, c.front) || !slices.Equal(tokens, c.plain) {
			t.Errorf("%v: %v, %v", c, front, tokens)
		}
	}
}

func TestFailures(t *testing.T) {
	path := fixture.Model("stories260K/hf-f32")
	dir := t.TempDir()
	text, empty := filepath.Join(dir, "text"), filepath.Join(dir, "empty")
	fixture.WriteFile(t, text, []byte("Once upon a time"))
	fixture.WriteFile(t, empty, nil)
	other := fixture.CopyModel(t, "stories260K/hf-f32", filepath.Join(dir, "other"))
	tokenizer := map[string]any{}
	data, err := os.ReadFile(filepath.Join(other, "tokenizer.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(data, &tokenizer); err != nil {
		t.Fatal(err)
	}
	vocabulary := tokenizer["model"].(map[string]any)["vocab"].(map[string]any)
	for piece, id := range vocabulary { // two of the text's tokens change places
		switch id.(float64) {
		case 403:
			vocabulary[piece] = 407
		case 407:
			vocabulary[piece] = 403
		}
	}
	fixture.EditJSON(t, filepath.Join(other, "tokenizer.json"), map[string]any{"model": tokenizer["model"]})
	for name, c := range map[string]struct {
		path, reference, text string
		want                  string
	}{
		"no text":          {path, path, filepath.Join(dir, "nowhere"), "nowhere"},
		"no model":         {filepath.Join(dir, "nowhere"), path, text, "nowhere"},
		"no reference":     {path, filepath.Join(dir, "nowhere"), text, "nowhere"},
		"empty text":       {path, path, empty, "longer"},
		"other vocabulary": {path, other, text, "share a vocabulary"},
		"other size":       {path, fixture.Shared(t, "golden/llama-mha-untied"), text, "vocabulary of 512"},
	} {
		err := Run(context.Background(), io.Discard, io.Discard, c.path, Options{Reference: c.reference, Text: c.text})
		if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: got %v, want one line with %q", name, err, c.want)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := Run(ctx, io.Discard, io.Discard, path, Options{Reference: path, Text: text}); err == nil || err.Error() != "interrupted" {
		t.Errorf("interrupted: %v", err)
	}
}

func TestNoRoom(t *testing.T) {
	g, err := model.OpenForIDs(fixture.HugeModel(t, t.TempDir()))
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	processor, err := cpu.New("cpu-0", cpu.Options{Threads: 1, Left: device.Left{Bytes: 1 << 20, Bound: "its control group may have 1 MiB"}})
	if err != nil {
		t.Fatal(err)
	}
	defer processor.Close()
	_, err = compile(t.Context(), processor, g, limits([][]int32{make([]int32, 512)}, g.Config.Vocabulary), true)
	if err == nil || !strings.HasPrefix(err.Error(), g.Path+" needs ") || !strings.Contains(err.Error(), "and 1 MiB can be had (its control group may have 1 MiB): give a shorter text") {
		t.Errorf("got %v", err)
	}
}

// TestLimits: a short text takes no more memory than it needs.
func TestLimits(t *testing.T) {
	for longest, want := range map[int]int{2: 2, 100: 100, 4096: 256} {
		if l := limits([][]int32{{1}, make([]int32, longest)}, 32000); l.MaxTokens != want || l.MaxRows != want {
			t.Errorf("%d tokens: %+v", longest, l)
		}
	}
}
