package model_test

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/estiba/estiba/internal/fixture"
	"github.com/estiba/estiba/runtime/backend"
	"github.com/estiba/estiba/runtime/backend/cpu"
	"github.com/estiba/estiba/runtime/batching"
	"github.com/estiba/estiba/runtime/graph"
	"github.com/estiba/estiba/runtime/model"
)

// families are the shapes that every family is checked in.
var families = map[string]fixture.Config{
	"llama/grouped by three":   {},
	"llama/grouped by two":     {"num_key_value_heads": 3},
	"llama/untied, wide heads": {"tie_word_embeddings": false, "head_dim": 10, "num_key_value_heads": 1},
	"llama/five heads":         {"num_attention_heads": 5, "num_key_value_heads": 5, "head_dim": 14, "num_hidden_layers": 1},
	"llama/biases":             {"attention_bias": true, "mlp_bias": true, "tie_word_embeddings": false},
	"llama/linear":             {"rope_scaling": map[string]any{"rope_type": "linear", "factor": 2.5}},
	"llama/llama3":             {"rope_theta": 500000.0, "rope_scaling": map[string]any{"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}},
	"llama/yarn":               {"rope_scaling": map[string]any{"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}},
	"llama/yarn over all":      {"head_dim": 32, "rope_scaling": map[string]any{"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 200, "beta_fast": 4.0, "beta_slow": 0.5}},
	"llama/rope_parameters":    {"rope_theta": nil, "rope_parameters": map[string]any{"rope_type": "yarn", "rope_theta": 1000.0, "factor": 2.0, "original_max_position_embeddings": 128, "mscale": 2.0, "mscale_all_dim": 0.5, "truncate": false}},

	"mistral/window of 1":          {"sliding_window": 1},
	"mistral/window of 5":          {"sliding_window": 5, "tie_word_embeddings": false},
	"mistral/window of 16":         {"sliding_window": 16, "head_dim": 6},
	"mistral/window of 29":         {"sliding_window": 29},
	"mistral/window of 4096":       {"sliding_window": 4096},
	"mistral/no window":            {"sliding_window": nil},
	"qwen2/biases":                 {},
	"qwen2/untied":                 {"tie_word_embeddings": false, "rope_theta": 1e6},
	"qwen2/windows from 1":         {"use_sliding_window": true, "sliding_window": 7, "max_window_layers": 1},
	"qwen2/windows by name":        {"use_sliding_window": true, "sliding_window": 3, "layer_types": []string{"sliding_attention", "full_attention", "sliding_attention"}},
	"qwen2/windows unused":         {"use_sliding_window": false, "sliding_window": 7, "max_window_layers": 0},
	"qwen3/wide heads":             {"head_dim": 20},
	"qwen3/biases":                 {"head_dim": 8, "attention_bias": true, "num_key_value_heads": 6},
	"qwen3/windows":                {"head_dim": 8, "use_sliding_window": true, "sliding_window": 4, "max_window_layers": 2},
	"qwen3_moe/normalized":         {"head_dim": 8, "num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 12, "norm_topk_prob": true},
	"qwen3_moe/as they are":        {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 7, "norm_topk_prob": false},
	"qwen3_moe/every other, not 3": {"num_hidden_layers": 5, "num_experts": 4, "num_experts_per_tok": 1, "moe_intermediate_size": 12, "norm_topk_prob": true, "decoder_sparse_step": 2, "mlp_only_layers": []int{3}},
	"qwen3_moe/windows, biases":    {"num_experts": 3, "num_experts_per_tok": 3, "moe_intermediate_size": 12, "norm_topk_prob": true, "use_sliding_window": true, "sliding_window": 6, "attention_bias": true},
	"mixtral/two of four":          {"num_local_experts": 4, "num_experts_per_tok": 2},
	"mixtral/three of seven":       {"num_local_experts": 7, "num_experts_per_tok": 3, "num_key_value_heads": 3, "tie_word_embeddings": false},
	"mixtral/one of two":           {"num_local_experts": 2, "num_experts_per_tok": 1, "head_dim": 12, "sliding_window": 9},
	"phi3/fused":                   {},
	"phi3/window":                  {"sliding_window": 5, "num_key_value_heads": 3},
	"phi3/part of a head":          {"partial_rotary_factor": 0.75, "num_key_value_heads": 6},
	"phi3/long": {
		"max_position_embeddings": 256, "original_max_position_embeddings": 64,
		"rope_scaling": map[string]any{"rope_type": "longrope", "short_factor": []float64{1, 1.25, 1.5, 4}, "long_factor": []float64{2, 4, 8, 16}},
	},
	"gemma2/odd layers":        {"head_dim": 10, "sliding_window": 4, "query_pre_attn_scalar": 10, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
	"gemma2/tight caps":        {"head_dim": 8, "num_key_value_heads": 3, "sliding_window": 9, "query_pre_attn_scalar": 8, "attn_logit_softcapping": 1.5, "final_logit_softcapping": 2.0, "num_hidden_layers": 4},
	"gemma2/no caps":           {"head_dim": 8, "sliding_window": 100, "query_pre_attn_scalar": 144, "attn_logit_softcapping": nil, "final_logit_softcapping": nil, "tie_word_embeddings": false},
	"gemma2/biases":            {"head_dim": 8, "sliding_window": 1, "query_pre_attn_scalar": 8, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "attention_bias": true},
	"bert/gelu":                {"layer_norm_eps": 1e-12, "hidden_act": "gelu", "max_position_embeddings": 64, "type_vocab_size": 2},
	"bert/tanh, three heads":   {"layer_norm_eps": 1e-6, "hidden_act": "gelu_new", "num_attention_heads": 3, "max_position_embeddings": 64, "type_vocab_size": 1},
	"bert/one layer, one head": {"layer_norm_eps": 1e-12, "hidden_act": "gelu", "num_attention_heads": 1, "num_hidden_layers": 1, "max_position_embeddings": 64, "type_vocab_size": 3},
}

func config(name string) fixture.Config {
	kind, _, _ := strings.Cut(name, "/")
	return fixture.Complete(kind, families[name])
}

// TestFamilies compares what the parts that serve compute, from every form that a checkpoint may have, with the reference.
func TestFamilies(t *testing.T) {
	for name := range families {
		t.Run(name, func(t *testing.T) { family(t, config(name), uint64(len(name))) })
	}
}

// TestRandomFamilies does the same with sizes drawn by a seed.
func TestRandomFamilies(t *testing.T) {
	kinds := fixture.Kinds()
	for seed := range uint64(54) {
		kind := kinds[seed%uint64(len(kinds))]
		t.Run(fmt.Sprintf("%s %d", kind, seed), func(t *testing.T) { family(t, fixture.Draw(kind, seed), seed) })
	}
}

// family checks a configuration in every form that its checkpoint may have.
func family(t *testing.T, c fixture.Config, seed uint64) {
	t.Helper()
	tensors := fixture.Family(c, seed)
	if c.Kind() == "gemma2" && seed%2 == 0 { // its norms' weights are stored less 1
		for name, a := range tensors {
			if strings.HasSuffix(name, "norm.weight") {
				for i := range a.Data {
					a.Data[i]--
				}
			}
		}
	}
	r := rand.New(rand.NewPCG(seed, 3))
	ids := make([]int32, 29)
	for i := range ids {
		ids[i] = r.Int32N(int32(c.Int("vocab_size", 0)))
	}
	want, _ := reference{c, tensors}.run(ids)
	dir := t.TempDir()
	paths := []string{fixture.WriteHF(t, filepath.Join(dir, "hf"), c, tensors)}
	add := func(path string) { paths = append(paths, path) }
	switch c.Kind() {
	case "mixtral", "qwen3_moe":
		add(fixture.WriteHF(t, filepath.Join(dir, "stacked"), c, fixture.Stack(c, tensors)))
	case "bert":
		prefixed := map[string]fixture.Array{"cls.predictions.bias": {Shape: []int{2}, Data: []float64{1, 1}}}
		for name, a := range tensors {
			prefixed["bert."+strings.Replace(strings.Replace(name, "LayerNorm.weight", "LayerNorm.gamma", 1), "LayerNorm.bias", "LayerNorm.beta", 1)] = a
		}
		add(fixture.WriteHF(t, filepath.Join(dir, "prefixed"), c, prefixed))
	}
	if inGGUF(c) {
		file := filepath.Join(dir, "model.gguf")
		fixture.WriteFile(t, file, fixture.FamilyGGUF(t, c, tensors, false))
		add(file)
		if c.Int("num_local_experts", 0) > 0 {
			single := filepath.Join(dir, "single.gguf")
			fixture.WriteFile(t, single, fixture.FamilyGGUF(t, c, tensors, true))
			add(single)
		}
	}
	for _, path := range paths {
		check(t, path, c, ids, want, tensors)
	}
}

// inGGUF says whether GGUF can hold a configuration: it has no windows by layer, no exact YaRN, and another scale for
// queries only by the number of layers.
func inGGUF(c fixture.Config) bool {
	_, types := c["layer_types"]
	_, parameters := c["rope_parameters"]
	scaling, _ := c["rope_scaling"].(map[string]any)
	_, betas := scaling["beta_fast"]
	some := c.On("use_sliding_window") && c.Kind() != "qwen3_moe"
	return !types && !parameters && !betas && !some && c.Int("query_pre_attn_scalar", c.HeadDim()) == c.HeadDim() &&
		c["hidden_act"] != "gelu_new" && !(c.Kind() == "gemma2" && (c["attn_logit_softcapping"] == nil || c.On("attention_bias"))) &&
		!(c.Kind() == "mixtral" && c["sliding_window"] != nil)
}

// check runs a checkpoint whole, token by token, and in chunks beside another sequence.
func check(t *testing.T, path string, c fixture.Config, ids []int32, want rows, tensors map[string]fixture.Array) {
	t.Helper()
	form := filepath.Base(path)
	m, err := model.OpenForIDs(path)
	if err != nil {
		t.Fatalf("%s: %v", form, err)
	}
	defer m.Close()
	parameters := int64(0)
	for _, a := range tensors {
		parameters += int64(len(a.Data))
	}
	extra := int64(0)
	if i := slices.IndexFunc(m.Graph.Weights, func(w graph.Weight) bool { return w.Name == "rope.divisors" }); i >= 0 {
		extra = int64(m.Graph.Weights[i].Shape[0])
	}
	if m.Parameters != parameters+extra {
		t.Errorf("%s: %d parameters, want %d", form, m.Parameters, parameters)
	}
	if h, err := model.Inspect(path); err == nil && (h.Parameters != m.Parameters || h.WeightsBytes != m.WeightsBytes) {
		t.Errorf("%s: inspected %+v", form, h)
	}
	device, err := cpu.New("cpu-0", cpu.Options{Threads: 2})
	if err != nil {
		t.Fatal(err)
	}
	defer device.Close()
	p, err := device.Compile(context.Background(), m.Graph, m.Weights, backend.Limits{MaxTokens: 64, MaxRows: 64, BlockTokens: 4, Blocks: 32, Exact: true})
	if err != nil {
		t.Fatalf("%s: %v", form, err)
	}
	defer p.Close()
	if got := p.Bytes().Weights; got != m.WeightsBytes {
		t.Errorf("%s: %d bytes of weights, %d in the file", form, got, m.WeightsBytes)
	}
	run := func(spans ...batching.Span) []float32 {
		out := backend.Out{WantHidden: true}
		if err := p.Run(context.Background(), batching.Batch{Spans: spans}, &out); err != nil {
			t.Fatalf("%s: %v", form, err)
		}
		if m.Graph.Encoder() {
			return out.Hidden
		}
		return out.Logits
	}
	span := func(from, to, block int) batching.Span {
		blocks := make([]int32, 8)
		for i := range blocks {
			blocks[i] = int32(block + i)
		}
		return batching.Span{Tokens: ids[from:to], Start: from, Blocks: blocks, Rows: batching.AllRows}
	}
	whole := run(span(0, len(ids), 0))
	off := 0.0
	for t, row := range want {
		for i := range row {
			if d := math.Abs(float64(whole[t*len(row)+i]) - row[i]); !(d <= off) {
				off = d
			}
		}
	}
	if !(off <= 2e-5) {
		t.Errorf("%s: off by %g", form, off)
	}
	width := len(want[0])
	same := func(how string, got []float32) {
		t.Helper()
		if !slices.Equal(got, whole) {
			t.Errorf("%s: %s, other numbers than in one pass", form, how)
		}
	}
	other := span(0, 7, 24)
	if m.Graph.Encoder() {
		same("in company", run(other, span(0, len(ids), 0))[7*width:])
		return
	}
	var single, chunks []float32
	for i := range ids {
		single = append(single, run(span(i, i+1, 8))...)
	}
	same("token by token", single)
	for from := 0; from < len(ids); from += 6 {
		to := min(from+6, len(ids))
		chunks = append(chunks, run(other, span(from, to, 16))[7*width:]...)
	}
	same("in chunks beside another", chunks)
}

// TestFormula makes the checkpoints of the golden cases again, from the formula that they are made by.
func TestFormula(t *testing.T) {
	for _, name := range goldenCases(t) {
		dir := fixture.Shared(t, "golden/"+name)
		c, seed := goldenConfig(t, dir)
		made := fixture.WriteHF(t, t.TempDir(), c, fixture.Family(c, seed))
		got, want := tensorsOf(t, filepath.Join(made, "model.safetensors")), tensorsOf(t, filepath.Join(dir, "model.safetensors"))
		for tensor, data := range want {
			if !slices.Equal(got[tensor], data) {
				t.Errorf("%s: %s differs", name, tensor)
			}
		}
		if len(got) != len(want) {
			t.Errorf("%s: %d tensors, want %d", name, len(got), len(want))
		}
	}
}

// TestReference holds the reference to the logits and residual streams of Hugging Face's programs.
func TestReference(t *testing.T) {
	residuals := 0
	for _, name := range goldenCases(t) {
		dir := fixture.Shared(t, "golden/"+name)
		c, seed := goldenConfig(t, dir)
		golden := tensorsOf(t, filepath.Join(dir, "golden.safetensors"))
		for key, want := range golden {
			prompt, what, _ := strings.Cut(key, ".")
			var ids []int32
			for i := 0; i < len(golden[prompt+".input_ids"]); i += 8 {
				ids = append(ids, int32(binary.LittleEndian.Uint32(golden[prompt+".input_ids"][i:])))
			}
			got, streams := reference{c, fixture.Family(c, seed)}.run(ids)
			var layer int
			switch _, err := fmt.Sscanf(what, "residual_%d", &layer); {
			case err == nil:
				got = streams[layer]
				residuals++
			case what == "input_ids":
				continue
			}
			off := 0.0
			for i, x := range slices.Concat(got...) {
				off = max(off, math.Abs(x-float64(math.Float32frombits(binary.LittleEndian.Uint32(want[4*i:])))))
			}
			if !(off <= 2e-5) || len(want) != 4*len(got)*len(got[0]) {
				t.Errorf("%s: %s is off by %g", name, key, off)
			}
		}
	}
	if residuals == 0 {
		t.Error("no residual streams were compared")
	}
}

// TestResiduals compares the residual stream before and after each layer with the golden ones.
func TestResiduals(t *testing.T) {
	for _, name := range goldenCases(t) {
		dir := fixture.Shared(t, "golden/"+name)
		golden := tensorsOf(t, filepath.Join(dir, "golden.safetensors"))
		if golden["p0.residual_0"] == nil {
			continue
		}
		m, err := model.OpenForIDs(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer m.Close()
		var ids []int32
		for i := 0; i < len(golden["p0.input_ids"]); i += 8 {
			ids = append(ids, int32(binary.LittleEndian.Uint32(golden["p0.input_ids"][i:])))
		}
		for layer := range m.Config.Layers + 1 {
			got := residual(t, m, layer, ids)
			want := golden[fmt.Sprintf("p0.residual_%d", layer)]
			if len(want) != 4*len(got) {
				t.Fatalf("%s: %d numbers, want %d", name, len(got), len(want)/4)
			}
			for i := range got {
				if d := math.Abs(float64(got[i] - math.Float32frombits(binary.LittleEndian.Uint32(want[4*i:])))); !(d <= 1e-5) {
					t.Fatalf("%s: after layer %d a number is off by %g", name, layer, d)
				}
			}
		}
	}
}

// residual runs a graph up to the residual stream after a layer, 0 for before the first: what the layer's second
// Add makes, or the embedding.
func residual(t *testing.T, m *model.Model, layer int, ids []int32) []float32 {
	t.Helper()
	g := *m.Graph
	adds := 0
	var stream graph.Value
	for i, n := range g.Nodes {
		if n.Kind == graph.Embed || n.Kind == graph.Add {
			if n.Kind == graph.Add {
				adds++
			}
			if adds == 2*layer && (n.Kind == graph.Add || layer == 0) {
				stream, g.Nodes = n.Out, g.Nodes[:i+1:i+1]
				break
			}
		}
	}
	// Keep the weights that are read, and give the stream's rows as the result.
	read := map[graph.Value]graph.Value{}
	var b graph.Builder
	value := func(v graph.Value) graph.Value {
		if g.IsWeight(v) && read[v] == 0 {
			read[v] = b.Weight(g.Weights[v]) + 1
		}
		return read[v] - 1
	}
	for _, n := range g.Nodes {
		var in []graph.Value
		for _, v := range n.In {
			in = append(in, value(v))
		}
		read[n.Out] = b.Op(n.Kind, n.Attr, in...) + 1
	}
	rows := b.Op(graph.Rows, graph.Attr{}, value(stream))
	short, err := b.Graph(rows, rows)
	if err != nil {
		t.Fatal(err)
	}
	device, err := cpu.New("cpu-0", cpu.Options{Threads: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer device.Close()
	p, err := device.Compile(context.Background(), short, m.Weights, backend.Limits{MaxTokens: len(ids), MaxRows: len(ids), BlockTokens: 16, Blocks: 2, Exact: true})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	out := backend.Out{WantHidden: true}
	if err := p.Run(context.Background(), batching.Batch{Spans: []batching.Span{{Tokens: ids, Blocks: []int32{0, 1}, Rows: batching.AllRows}}}, &out); err != nil {
		t.Fatal(err)
	}
	return out.Hidden
}

func goldenCases(t *testing.T) []string {
	t.Helper()
	entries, err := os.ReadDir(fixture.Shared(t, "golden"))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		if e.IsDir() {
			names = append(names, e.Name())
		}
	}
	return names
}

// goldenConfig reads a case's configuration with whole numbers as int, and its seed.
func goldenConfig(t *testing.T, dir string) (fixture.Config, uint64) {
	t.Helper()
	var c fixture.Config
	var golden struct{ Seed uint64 }
	for name, v := range map[string]any{"config.json": &c, "golden.json": &golden} {
		text, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(text, v); err != nil {
			t.Fatal(err)
		}
	}
	whole(c)
	return c, golden.Seed
}

// whole turns the numbers of an object that are counts into int.
func whole(object map[string]any) {
	for name, v := range object {
		switch v := v.(type) {
		case map[string]any:
			whole(v)
		case float64:
			real := strings.HasSuffix(name, "eps") || strings.HasSuffix(name, "factor") || name == "rope_theta"
			if v == math.Trunc(v) && !real {
				object[name] = int(v)
			}
		}
	}
}

// tensorsOf are the bytes of a safetensors file's tensors.
func tensorsOf(t *testing.T, path string) map[string][]byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	n := 8 + binary.LittleEndian.Uint64(data)
	var header map[string]struct {
		Offsets []int `json:"data_offsets"`
	}
	if err := json.Unmarshal(data[8:n], &header); err != nil {
		t.Fatal(err)
	}
	delete(header, "__metadata__")
	all := map[string][]byte{}
	for name, h := range header {
		all[name] = data[n:][h.Offsets[0]:h.Offsets[1]]
	}
	return all
}
