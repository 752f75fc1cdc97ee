package backendtest

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/estiba/estiba/internal/fixture"
	"github.com/estiba/estiba/runtime/backend"
	"github.com/estiba/estiba/runtime/batching"
	"github.com/estiba/estiba/runtime/graph"
	"github.com/estiba/estiba/runtime/model"
	"github.com/estiba/estiba/runtime/tensor"
)

// Golden compares real models with independent programs: every logit, what they go on with, and the hidden states of an
// encoder. An exact program is within 1e-4, and gives the same logits token by token; any other within 2 %
// of the norm, and of the likeliest token's logit where it would go on with another.
func Golden(t *testing.T, b backend.Backend, exact bool) {
	for _, c := range []struct{ model, golden string }{
		{"models/stories260K/hf-f32", "models/stories260K/logits.safetensors"},
		{"golden/llama-mha-untied", ""},
		{"golden/llama-gqa-llama3rope", ""},
		{"golden/qwen2-tied", ""},
		{"golden/qwen3-headdim", ""},
		{"golden/mistral-window", ""},
		{"golden/mixtral-top2", ""},
		{"golden/phi3-fused", ""},
	} {
		greedy := map[string][]int32{} // prompt -> ids
		if c.golden == "" {
			c.golden = c.model + "/golden.safetensors"
			greedy = greedyIDs(t, fixture.Shared(t, c.model+"/golden.json"))
		}
		g, w := Load(t, fixture.Shared(t, c.model))
		golden := safetensors(t, fixture.Shared(t, c.golden))
		cases := 0
		for name := range golden {
			prompt, ok := strings.CutSuffix(name, ".logits")
			if !ok {
				continue
			}
			cases++
			what := fmt.Sprintf("%s of %s", prompt, c.model)
			want, tokens := floats(golden[name]), ids(golden[prompt+".input_ids"])
			p := compile(t, b, g, w, backend.Limits{MaxTokens: len(tokens), MaxRows: len(tokens), BlockTokens: 16, Blocks: 8, Exact: exact})
			blocks := []int32{3, 1, 2, 0, 4, 5, 6, 7}
			run := func(start int, tokens []int32) []float32 { return p.run(t, span(start, tokens, blocks)) }
			got := slices.Clone(run(0, tokens))
			var single []float32
			for i := range tokens {
				single = append(single, run(i, tokens[i:i+1])...)
			}
			switch {
			case !exact:
				near(t, what, got, want, 2e-2)
				near(t, what+", token by token", single, want, 2e-2)
			case !(worst(t, got, want) <= 1e-4):
				t.Errorf("%s: a logit is off by %g", what, worst(t, got, want))
			case !slices.Equal(single, got):
				t.Errorf("%s: token by token, the logits differ from those of one pass", what)
			default:
				t.Logf("%s: off by at most %.2g", what, worst(t, got, want))
			}
			row := got[len(got)-g.Vocabulary():]
			for i, want := range greedy[prompt] {
				most := slices.Max(row)
				if is := int32(slices.Index(row, most)); is != want && (exact || !(most-row[want] <= 2e-2*most)) {
					t.Errorf("%s: goes on with %d where it should with %d, the %dth token", what, is, want, i)
					break
				}
				row = run(len(tokens)+i, []int32{want})
			}
		}
		if cases == 0 {
			t.Errorf("%s has no cases", c.golden)
		}
	}
	goldenEncoder(t, b, exact)
}

// greedyIDs are the likeliest tokens after each prompt, one after the other.
func greedyIDs(t *testing.T, path string) map[string][]int32 {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var golden struct {
		Prompts map[string]struct {
			Greedy []int32 `json:"greedy_ids"`
		} `json:"prompts"`
	}
	if err := json.Unmarshal(text, &golden); err != nil {
		t.Fatal(err)
	}
	all := map[string][]int32{}
	for name, p := range golden.Prompts {
		if all[name] = p.Greedy; len(p.Greedy) == 0 {
			t.Errorf("%s: no ids after %s", path, name)
		}
	}
	return all
}

// goldenEncoder compares every number of the last hidden states.
func goldenEncoder(t *testing.T, b backend.Backend, exact bool) {
	g, w := Load(t, fixture.Shared(t, "golden/bert-embedding"))
	golden := safetensors(t, fixture.Shared(t, "golden/bert-embedding/golden.safetensors"))
	p := compile(t, b, g, w, backend.Limits{MaxTokens: 64, MaxRows: 64, Exact: exact})
	var spans []batching.Span
	var want []float32
	for _, prompt := range []string{"p0", "p1"} {
		spans = append(spans, span(0, ids(golden[prompt+".input_ids"]), nil))
		want = append(want, floats(golden[prompt+".hidden"])...)
	}
	p.out.WantHidden = true
	p.run(t, spans...)
	if off := worst(t, p.out.Hidden, want); exact && !(off <= 1e-5) {
		t.Errorf("a hidden state is off by %g", off)
	} else {
		t.Logf("hidden states: off by at most %.2g", off)
	}
	near(t, "hidden states", p.out.Hidden, want, 2e-2)
}

// worst is the largest difference.
func worst(t *testing.T, got, want []float32) float64 {
	t.Helper()
	if len(got) != len(want) || len(want) == 0 {
		t.Fatalf("%d numbers, want %d", len(got), len(want))
	}
	off := 0.0
	for i := range want {
		if d := math.Abs(float64(got[i] - want[i])); !(d <= off) {
			off = d
		}
	}
	return off
}

// Load opens a model for its graph and weights.
func Load(t *testing.T, path string) (*graph.Graph, backend.Weights) {
	t.Helper()
	m, err := model.OpenForIDs(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m.Graph, m.Weights
}

func safetensors(t *testing.T, path string) map[string]tensor.Tensor {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	n := 8 + binary.LittleEndian.Uint64(data)
	var header map[string]struct {
		DType   string       `json:"dtype"`
		Shape   tensor.Shape `json:"shape"`
		Offsets []int        `json:"data_offsets"`
	}
	if err := json.Unmarshal(data[8:n], &header); err != nil {
		t.Fatal(err)
	}
	all := map[string]tensor.Tensor{}
	for name, h := range header {
		if name != "__metadata__" {
			d := map[string]tensor.DType{"F32": tensor.F32, "F16": tensor.F16, "BF16": tensor.BF16}[h.DType]
			all[name] = tensor.Tensor{Name: name, DType: d, Shape: h.Shape, Data: data[n:][h.Offsets[0]:h.Offsets[1]]}
		}
	}
	return all
}

func floats(t tensor.Tensor) []float32 {
	var x []float32
	for i := 0; i < len(t.Data); i += 4 {
		x = append(x, math.Float32frombits(binary.LittleEndian.Uint32(t.Data[i:])))
	}
	return x
}

func ids(t tensor.Tensor) []int32 {
	width := len(t.Data) / t.Shape[len(t.Shape)-1]
	var x []int32
	for i := 0; i < len(t.Data); i += width {
		x = append(x, int32(binary.LittleEndian.Uint32(t.Data[i:])))
	}
	return x
}
