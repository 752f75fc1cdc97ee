package model

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/estiba/estiba/internal/fixture"
	"github.com/estiba/estiba/runtime/arch"
	"github.com/estiba/estiba/runtime/device"
	"github.com/estiba/estiba/runtime/graph"
	"github.com/estiba/estiba/runtime/template"
	"github.com/estiba/estiba/runtime/tensor"
	"github.com/estiba/estiba/runtime/tokenizer"
	"github.com/estiba/estiba/runtime/weights"
	"github.com/google/go-cmp/cmp"
)

func TestOpen(t *testing.T) {
	for _, c := range []struct {
		path, format string
		bytes        int64
		stored       []string
		down         tensor.DType
		pairs        arch.RopePairs
	}{
		{fixture.Model("stories260K/hf-f32"), "safetensors", 1_040_128, []string{"F32"}, tensor.F32, arch.RopeHalves},
		{fixture.Model("stories260K/hf-f32/model.safetensors"), "safetensors", 1_040_128, []string{"F32"}, tensor.F32, arch.RopeHalves},
		{fixture.Model("stories260K/stories260K-f16.gguf"), "gguf", 521_472, []string{"F16", "F32"}, tensor.F16, arch.RopeNeighbours},
	} {
		m, err := Open(c.path)
		if err != nil {
			t.Fatal(err)
		}
		defer m.Close()
		want := Header{
			Path: c.path, Format: c.format, Architecture: "llama", Parameters: 260_032, WeightsBytes: c.bytes, Stored: c.stored, HostBytes: m.HostBytes, Tensors: m.Tensors,
			Config: arch.Config{
				Architecture: "llama", Layers: 5, Hidden: 64, FFN: 172, Heads: 8, KVHeads: 4, HeadDim: 8,
				Vocabulary: 512, MaxPositions: 512, NormEps: 1e-5, RopeTheta: 10000, RopePairs: c.pairs, TiedOutput: true,
				BOS: 1, EOS: []int32{1, 2},
			},
		}
		if c.format == "gguf" {
			want.Config.EOS = []int32{2}
		}
		if d := cmp.Diff(want, m.Header); d != "" {
			t.Errorf("%s:\n%s", c.path, d)
		}
		sum := int64(0)
		for _, s := range m.Tensors {
			sum += int64(s.Count) * s.DType.Bytes(int64(s.Rows)*int64(s.Cols))
		}
		if table := (graph.Stored{Use: graph.Product, DType: m.Tensors[0].DType, Rows: 512, Cols: 64, Count: 1}); sum != c.bytes || m.Tensors[0] != table {
			t.Errorf("%s: %+v", c.path, m.Tensors)
		}
		header, err := Inspect(c.path)
		if d := cmp.Diff(m.Header, header); err != nil || d != "" {
			t.Errorf("Inspect differs from Open: %v\n%s", err, d)
		}
		for _, w := range m.Graph.Weights {
			got, err := m.Weights(w.Name)
			if err != nil {
				t.Fatal(err)
			}
			n, _ := w.Shape.Elements()
			if got.Name != w.Name || !got.Shape.Equal(w.Shape) || int64(len(got.Data)) != got.DType.Bytes(n) {
				t.Errorf("%s: %s %v, %d bytes", w.Name, got.Name, got.Shape, len(got.Data))
			}
		}
		if down, err := m.Weights("layers.0.ffn.down"); err != nil || down.DType != c.down {
			t.Errorf("layers.0.ffn.down: %v, %v", down.DType, err)
		}
		if _, err := m.Weights("layers.9.ffn.down"); err == nil {
			t.Error("a weight that the graph lacks")
		}
		if m.Template != nil {
			t.Error("a chat template from nowhere")
		}
		// llama-server counts 45 tokens for this chat (llama-server-wire.json, "chat").
		prompt, err := template.ChatML().Render(template.Input{Messages: []byte(`[{"role":"user","content":"Tell me"}]`), AddGenerationPrompt: true})
		if n := len(m.Tokenizer.Encode(prompt.Text, true)); err != nil || n != 45 {
			t.Errorf("the chat has %d tokens, want 45; %v", n, err)
		}
	}
}

func TestBrokenModels(t *testing.T) {
	for _, b := range fixture.BrokenModels() {
		t.Run(b.Name, func(t *testing.T) {
			path := b.Build(t, t.TempDir())
			is := map[string]error{"InvalidModel": ErrInvalid, "UnsupportedModel": ErrUnsupported}
			_, inspected := Inspect(path)
			_, opened := Open(path)
			for what, err := range map[string]error{"Inspect": inspected, "Open": opened} {
				for reason, kind := range is {
					if errors.Is(err, kind) != (reason == b.Reason) {
						t.Errorf("%s: want %s only, got %v", what, b.Reason, err)
					}
				}
				if errors.Is(err, fs.ErrNotExist) {
					t.Errorf("%s: the source is there: %v", what, err)
				}
				for _, says := range b.Says {
					if err == nil || !strings.Contains(err.Error(), says) {
						t.Errorf("%s does not say %q: %v", what, says, err)
					}
				}
			}
		})
	}
}

func TestOpenForIDs(t *testing.T) {
	for _, path := range []string{fixture.Model("stories260K/hf-f32"), fixture.Model("stories260K/stories260K-f16.gguf")} {
		m, err := OpenForIDs(path)
		if err != nil {
			t.Fatal(err)
		}
		defer m.Close()
		if m.Tokenizer != nil || m.Template != nil || m.Parameters != 260_032 {
			t.Errorf("%s: %+v", path, m)
		}
	}
}

func TestMessages(t *testing.T) {
	dir := fixture.CopyModel(t, "stories260K/hf-f32", t.TempDir())
	config := filepath.Join(dir, "config.json")
	weights := filepath.Join(dir, "model.safetensors")
	for name, c := range map[string]struct {
		edit map[string]any
		want string
	}{
		"vocabulary": {
			map[string]any{"vocab_size": 600},
			"read " + weights + `: tensor "model.embed_tokens.weight": invalid checkpoint: its shape is [512 64], but ` + config +
				" asks for [600 64] (vocab_size, hidden_size)",
		},
		"heads": {
			map[string]any{"num_key_value_heads": 2},
			"read " + weights + `: tensor "model.layers.0.self_attn.k_proj.weight": invalid checkpoint: its shape is [32 64], but ` + config +
				" asks for [16 64] (num_key_value_heads × head_dim, hidden_size)",
		},
		"layers": {
			map[string]any{"num_hidden_layers": 6},
			"read " + weights + `: tensor "model.layers.5.input_layernorm.weight": invalid checkpoint: the files have no such tensor, which llama of 6 layers needs`,
		},
		"fewer layers": {
			map[string]any{"num_hidden_layers": 4},
			"read " + weights + `: tensor "model.layers.4.input_layernorm.weight": unsupported checkpoint: llama as this version computes it has no such weight`,
		},
		"untied": {
			map[string]any{"tie_word_embeddings": false},
			"read " + weights + `: tensor "lm_head.weight": invalid checkpoint: the files have no such tensor, which llama of 5 layers needs`,
		},
	} {
		before, err := os.ReadFile(config)
		if err != nil {
			t.Fatal(err)
		}
		fixture.EditJSON(t, config, c.edit)
		if _, err := Inspect(dir); err == nil || err.Error() != c.want {
			t.Errorf("%s:\ngot  %v\nwant %s", name, err, c.want)
		}
		fixture.WriteFile(t, config, before)
	}
}

func TestNowhere(t *testing.T) {
	dir := t.TempDir()
	for _, path := range []string{filepath.Join(dir, "nowhere"), filepath.Join(dir, "nowhere.gguf")} {
		if _, err := Inspect(path); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v", path, err)
		}
		if _, err := Open(path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v", path, err)
		}
	}
}

func TestConfigIsBounded(t *testing.T) {
	dir := fixture.CopyModel(t, "stories260K/hf-f32", t.TempDir())
	if err := os.Truncate(filepath.Join(dir, "config.json"), maxConfig+1); err != nil {
		t.Fatal(err)
	}
	if _, err := Inspect(dir); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), "config.json") {
		t.Error(err)
	}
}

// TestHostBytes compares what a model takes, with the vocabulary for grammars, with what its headers tell.
func TestHostBytes(t *testing.T) {
	paths := map[string]string{"layers": fixture.HugeModel(t, t.TempDir()), "experts": fixture.HugeMixture(t, t.TempDir()), "a tiny model": fixture.Model("stories260K/hf-f32")}
	for _, name := range []string{"qwen3", "phi-3-mini", "bert-uncased"} { // the tokenizers are most of it
		from := fixture.Shared(t, "tokenizers/"+name)
		tok, err := tokenizer.Open(from)
		if err != nil {
			t.Fatal(err)
		}
		text, err := os.ReadFile(filepath.Join(from, "tokenizer.json"))
		if err != nil {
			t.Fatal(err)
		}
		c := fixture.Config{
			"model_type": "llama", "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "vocab_size": tok.Size(),
			"max_position_embeddings": 64, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": true,
		}
		dir := fixture.WriteHF(t, t.TempDir(), c, fixture.Family(c, 1))
		fixture.WriteFile(t, filepath.Join(dir, "tokenizer.json"), text)
		paths[name] = dir
	}
	if m, err := Open(paths["a tiny model"]); err != nil { // what the first one allocates for all is nobody's
		t.Fatal(err)
	} else {
		m.Vocabulary()
		m.Close()
	}
	const extent = 64 << 10 // the smallest: less makes no difference
	for name, path := range paths {
		var before, after runtime.MemStats
		runtime.GC()
		runtime.GC() // what pools hold too
		runtime.ReadMemStats(&before)
		m, err := Open(path)
		if err != nil {
			t.Fatal(err)
		}
		if m.Tokenizer != nil {
			m.Vocabulary()
		}
		runtime.GC()
		runtime.GC()
		runtime.ReadMemStats(&after)
		got := int64(after.HeapAlloc) - int64(before.HeapAlloc)
		t.Logf("%s: %d bytes, %d reckoned", name, got, m.HostBytes)
		if m.HostBytes < min(got*9/10, got-extent) || m.HostBytes > max(got*5/4, got+96<<10) {
			t.Errorf("%s: %d bytes, %d reckoned", name, got, m.HostBytes)
		}
		m.Close()
	}
}

func TestTokenizerLargerThanItsModel(t *testing.T) {
	dir := fixture.CopyModel(t, "stories260K/hf-f32", t.TempDir())
	fixture.EditJSON(t, filepath.Join(dir, "tokenizer.json"), map[string]any{"added_tokens": []any{map[string]any{"id": 512, "content": strings.Repeat("x", 1<<20)}}})
	if _, err := Inspect(dir); !errors.Is(err, ErrUnsupported) || !strings.Contains(err.Error(), "tokenizer takes") {
		t.Error(err)
	}
}

// TestRoomForTokenizer: where there is too little memory for a tokenizer it is not read: this one could not be.
func TestRoomForTokenizer(t *testing.T) {
	folder := fixture.CopyModel(t, "stories260K/hf-f32", t.TempDir())
	if err := os.WriteFile(filepath.Join(folder, "tokenizer.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{folder, fixture.Model("stories260K/stories260K-f16.gguf")} {
		header, err := weights.Read(path)
		if err != nil {
			t.Fatal(err)
		}
		little := device.Left{Bytes: 128 << 10, Bound: "its control group may have 170 KiB"}
		_, err = read(path, header, true, little)
		const says = " needs 188 KiB of memory for its tokenizer of 512 tokens, and 128 KiB can be had (its control group may have 170 KiB): give more memory"
		if !errors.Is(err, ErrNoRoom) || err.Error() != path+says {
			t.Errorf("got %v, want %s", err, path+says)
		}
		if _, err := read(path, header, false, little); err != nil {
			t.Errorf("without a tokenizer: %v", err)
		}
		for _, enough := range []device.Left{{}, {Bytes: 1 << 20}} { // of the first nobody knows a bound
			if _, err := read(path, header, true, enough); (err == nil) != (path != folder) || errors.Is(err, ErrNoRoom) {
				t.Errorf("with %d bytes: %v", enough.Bytes, err)
			}
		}
	}
}

func TestHugeModel(t *testing.T) {
	for name, c := range map[string]struct {
		dir   string
		bytes float64
		most  uint64 // allocated
	}{
		"layers":  {fixture.HugeModel(t, t.TempDir()), 1e12, 32 << 20},
		"experts": {fixture.HugeMixture(t, t.TempDir()), 119e9, 96 << 20},
	} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		start := time.Now()
		h, err := Inspect(c.dir)
		if err != nil {
			t.Fatal(err)
		}
		runtime.ReadMemStats(&after)
		d, b := time.Since(start), after.TotalAlloc-before.TotalAlloc
		t.Logf("%s: took %v and %d bytes", name, d, b)
		if d > 5*time.Second || b > c.most {
			t.Errorf("%s: took %v and %d bytes", name, d, b)
		}
		if float64(h.WeightsBytes) < c.bytes || h.WeightsBytes != 4*h.Parameters {
			t.Errorf("%s: %d bytes, %d parameters", name, h.WeightsBytes, h.Parameters)
		}
	}
}

func TestFoldersWithoutTokenizerOrWithTemplate(t *testing.T) {
	dir := fixture.CopyModel(t, "stories260K/hf-f32", t.TempDir())
	remove := func(name string) {
		if err := os.Remove(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	open := func() *Model {
		m, err := Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { m.Close() })
		return m
	}
	remove("tokenizer.json")
	if open().Tokenizer == nil {
		t.Error("tokenizer.model is not used where there is no tokenizer.json")
	}
	remove("tokenizer.model")
	remove("generation_config.json")
	if m := open(); m.Tokenizer != nil || m.Template != nil || len(m.Config.EOS) != 1 {
		t.Errorf("%v %v %v", m.Tokenizer, m.Template, m.Config.EOS)
	}
	fixture.EditJSON(t, filepath.Join(dir, "tokenizer_config.json"), map[string]any{"chat_template": "{{ eos_token }}"})
	if got, err := open().Template.Render(template.Input{Messages: []byte("[]"), EOS: "e"}); got.Text != "e" || err != nil {
		t.Errorf("%q, %v", got.Text, err)
	}
	fixture.EditJSON(t, filepath.Join(dir, "tokenizer_config.json"), map[string]any{"chat_template": "{% for %}"})
	if got, err := open().Template.Render(template.Input{}); !errors.Is(err, template.ErrUnusable) {
		t.Errorf("%q, %v", got.Text, err)
	}
}

func TestExtraTensors(t *testing.T) {
	for name, fine := range map[string]bool{
		"model.layers.0.self_attn.rotary_emb.inv_freq": true,
		"lm_head.weight":                       true, // tied: the embedding table is used
		"model.layers.0.self_attn.q_proj.bias": false,
	} {
		dir := fixture.CopyModel(t, "stories260K/hf-f32", t.TempDir())
		fixture.EditSafetensors(t, filepath.Join(dir, "model.safetensors"), func(h map[string]fixture.TensorHeader) {
			h[name] = fixture.TensorHeader{DType: "F32", Shape: []int64{0}, Offsets: []int64{0, 0}}
		})
		if _, err := Inspect(dir); (err == nil) != fine || err != nil && !errors.Is(err, ErrUnsupported) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestSharedModels(t *testing.T) {
	for path, want := range map[string]error{
		"models/stories260K/hf-bf16":                  nil,
		"models/stories260K/stories260K-f32.gguf":     nil,
		"models/stories260K/stories260K-q8_0.gguf":    nil,
		"models/stories260K/stories260K-q4_0.gguf":    nil,
		"golden/llama-mha-untied":                     nil,
		"golden/qwen2-tied":                           nil,
		"golden/bert-embedding":                       nil,
		"golden/mixtral-top2":                         nil,
		"tokenizers/gguf-vocab/ggml-vocab-phi-3.gguf": ErrInvalid, // it has no weights
	} {
		if _, err := Inspect(fixture.Shared(t, path)); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", path, err, want)
		}
	}
}

// FuzzConfig wants a model, or an error of a known kind, from any configuration.
func FuzzConfig(f *testing.F) {
	f.Add([]byte(`{"architectures":["LlamaForCausalLM"],"hidden_size":9223372036854775807}`))
	if text, err := os.ReadFile(filepath.Join(fixture.Model("stories260K/hf-f32"), "config.json")); err == nil {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, config []byte) {
		dir := t.TempDir()
		const name = "model.safetensors"
		if err := os.Symlink(filepath.Join(fixture.Model("stories260K/hf-f32"), name), filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
		fixture.WriteFile(t, filepath.Join(dir, "config.json"), config)
		h, err := Inspect(dir)
		if err != nil {
			if !errors.Is(err, ErrInvalid) && !errors.Is(err, ErrUnsupported) {
				t.Errorf("an error of no kind: %v", err)
			}
			return
		}
		if h.WeightsBytes != 1_040_128 || !json.Valid(config) {
			t.Errorf("%+v from %q", h, config)
		}
	})
}
