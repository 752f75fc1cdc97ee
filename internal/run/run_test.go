package run_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/estiba/estiba/internal/fixture"
	"github.com/estiba/estiba/internal/run"
	kernels "github.com/estiba/estiba/kernels/cpu"
	"github.com/estiba/estiba/runtime/device"
)

// reference is a case of stories260K/cases.json.
type reference struct {
	Name      string  `json:"name"`
	Prompt    string  `json:"prompt"`
	PromptIDs []int32 `json:"prompt_ids"`
	Max       int     `json:"max_new_tokens"`
	Greedy    map[string]struct {
		IDs    []int32 `json:"ids"`
		Text   string  `json:"text"`
		Finish string  `json:"finish"`
		SameAs string  `json:"same_as"`
	} `json:"greedy"`
}

func cases(t *testing.T) []reference {
	t.Helper()
	data, err := os.ReadFile(fixture.Shared(t, "models/stories260K/cases.json"))
	if err != nil {
		t.Fatal(err)
	}
	var all []reference
	if err := json.Unmarshal(data, &all); err != nil {
		t.Fatal(err)
	}
	return all
}

// result runs with --json and reads what is printed.
func result(t *testing.T, path string, o run.Options) run.Result {
	t.Helper()
	o.JSON = true
	var stdout bytes.Buffer
	if err := run.Run(context.Background(), &stdout, io.Discard, path, o); err != nil {
		t.Fatal(err)
	}
	var r run.Result
	if err := json.Unmarshal(stdout.Bytes(), &r); err != nil {
		t.Fatalf("%s: %v", stdout.String(), err)
	}
	return r
}

// TestCases wants the very tokens of the reference, from every file that holds the model.
func TestCases(t *testing.T) {
	for _, file := range []struct{ path, variant string }{
		{"hf-f32", "f32"},
		{"stories260K-f32.gguf", "f32"},
		{"stories260K-f16.gguf", "gguf-f16"},
		{"stories260K-q8_0.gguf", "gguf-q8_0"},
		{"stories260K-q4_0.gguf", "gguf-q4_0"},
		{"hf-bf16", "bf16-weights"},
	} {
		path := fixture.Shared(t, "models/stories260K/"+file.path)
		for _, c := range cases(t) {
			t.Run(file.path+"/"+c.Name, func(t *testing.T) {
				want := c.Greedy[file.variant]
				if want.SameAs != "" {
					want = c.Greedy[want.SameAs]
				}
				got := result(t, path, run.Options{Prompt: c.Prompt, MaxTokens: c.Max, Exact: true})
				if diff := cmp.Diff(c.PromptIDs, got.PromptIDs); diff != "" {
					t.Errorf("prompt: %s", diff)
				}
				if diff := cmp.Diff(want.IDs, got.IDs); diff != "" {
					t.Errorf("ids: %s", diff)
				}
				if got.Text == nil || *got.Text != want.Text {
					t.Errorf("text: %s", cmp.Diff(&want.Text, got.Text))
				}
				if got.FinishReason != want.Finish {
					t.Errorf("finish %q, want %q", got.FinishReason, want.Finish)
				}
				if got.LoadSeconds <= 0 || got.PrefillTokensPerSecond <= 0 || got.DecodeTokensPerSecond <= 0 {
					t.Errorf("figures %+v", got)
				}

				served := result(t, path, run.Options{Prompt: c.Prompt, MaxTokens: c.Max}).IDs
				if at := parts(served, want.IDs); at >= 0 {
					most := map[string]float64{"f32": 0, "gguf-q8_0": 0.15, "gguf-q4_0": 0.15}
					if _, ok := most[file.variant]; !ok { // activations of prompts are rounded to bfloat16
						most[file.variant] = 0.05
					}
					gap := gap(t, path, append(slices.Clone(c.PromptIDs), want.IDs[:at]...), want.IDs[at], served[at])
					t.Logf("as served, token %d is another one, which is less likely by %.3f nats", at, gap)
					if gap < 0 || gap > most[file.variant] {
						t.Errorf("as served: %v, want %v", served, want.IDs)
					}
				}

				ids := result(t, path, run.Options{IDs: c.PromptIDs, MaxTokens: 10, Exact: true})
				if !slices.Equal(ids.IDs, want.IDs[:10]) || ids.Text != nil {
					t.Errorf("by ids: %v with text %v, want %v without", ids.IDs, ids.Text, want.IDs[:10])
				}
			})
		}
	}
}

// parts is where two texts part; -1 if they do not, as far as both go.
func parts(a, b []int32) int {
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return i
		}
	}
	return -1
}

// gap is by how many nats token a is likelier than token b after ids, computed exactly.
func gap(t *testing.T, path string, ids []int32, a, b int32) float64 {
	t.Helper()
	file := filepath.Join(t.TempDir(), "logits")
	result(t, path, run.Options{IDs: ids, Logits: file})
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	const vocabulary = 512
	last := data[len(data)-4*vocabulary:]
	logit := func(id int32) float64 {
		return float64(math.Float32frombits(binary.LittleEndian.Uint32(last[4*id:])))
	}
	return logit(a) - logit(b)
}

// TestGoldenModels: what the command prints and writes for every architecture is what an
// independent program has: each logit within 1e-4, and the same ids. They have no tokenizer files.
func TestGoldenModels(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(fixture.Shared(t, "golden"), "*", "golden.json"))
	if err != nil || len(files) == 0 {
		t.Fatalf("%d models, %v", len(files), err)
	}
	for _, file := range files {
		path := filepath.Dir(file)
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var golden struct {
			Prompts map[string]struct {
				Input  []int32 `json:"input_ids"`
				Greedy []int32 `json:"greedy_ids"`
			} `json:"prompts"`
		}
		if err := json.Unmarshal(data, &golden); err != nil || len(golden.Prompts) == 0 {
			t.Fatal("golden.json has no prompts", err)
		}
		for name, p := range golden.Prompts {
			if p.Greedy == nil { // an encoder
				err := run.Run(t.Context(), io.Discard, io.Discard, path, run.Options{IDs: p.Input, MaxTokens: 1})
				if err == nil || !strings.Contains(err.Error(), "estiba embed") {
					t.Errorf("%s: %v", path, err)
				}
				continue
			}
			greedy := p.Greedy
			if end := slices.Index(greedy, 2); end >= 0 { // of every config.json here; the reference went on
				greedy = greedy[:end]
			}
			written := filepath.Join(t.TempDir(), "logits.safetensors")
			for _, o := range []run.Options{{Logits: written}, {Exact: true}, {}} {
				o.IDs, o.MaxTokens = p.Input, len(p.Greedy)
				if got := result(t, path, o); !slices.Equal(got.IDs, greedy) {
					t.Errorf("%s, %s: got %v, want %v", path, name, got.IDs, greedy)
				}
			}
			shape, logits := tensor(t, written, "logits")
			_, want := tensor(t, filepath.Join(path, "golden.safetensors"), name+".logits")
			if len(shape) != 2 || shape[0] != len(p.Input) || len(logits) != len(want) {
				t.Fatalf("%s, %s: shape %v", path, name, shape)
			}
			for i := range want {
				if !(math.Abs(float64(logits[i]-want[i])) <= 1e-4) {
					t.Fatalf("%s, %s: logit %d is %v, want %v", path, name, i, logits[i], want[i])
				}
			}
		}
	}
	err = run.Run(context.Background(), io.Discard, io.Discard, filepath.Dir(files[len(files)-1]), run.Options{Prompt: "x", MaxTokens: 1})
	if err == nil || !strings.Contains(err.Error(), "--ids") {
		t.Errorf("a prompt without a tokenizer: got %v", err)
	}
}

func TestLogits(t *testing.T) {
	path := fixture.Model("stories260K/hf-f32")
	file := filepath.Join(t.TempDir(), "logits.safetensors")
	prompt := []int32{1, 403, 407, 261, 378}
	got := result(t, path, run.Options{IDs: prompt, MaxTokens: 3, Logits: file})
	if want := []int32{432, 383, 286}; !slices.Equal(got.IDs, want) {
		t.Errorf("ids %v, want %v", got.IDs, want)
	}
	shape, logits := tensor(t, file, "logits")
	if !slices.Equal(shape, []int{5, 512}) {
		t.Fatalf("shape %v", shape)
	}
	_, want := tensor(t, fixture.Shared(t, "models/stories260K/logits.safetensors"), "once.logits")
	for i := range want {
		if !(math.Abs(float64(logits[i]-want[i])) <= 1e-4) {
			t.Fatalf("logit %d is %v, want %v", i, logits[i], want[i])
		}
	}

	// The prompt alone, up to the whole context, in more than one step.
	long := slices.Repeat([]int32{1, 403, 407, 261}, 128)
	if got := result(t, path, run.Options{IDs: long, Logits: file}); len(got.IDs) != 0 || got.FinishReason != "length" {
		t.Errorf("the prompt alone: %v, %s", got.IDs, got.FinishReason)
	}
	shape, all := tensor(t, file, "logits")
	if !slices.Equal(shape, []int{512, 512}) || !slices.Equal(all[:4*512], logits[:4*512]) {
		t.Errorf("logits of a long prompt: shape %v, or other numbers than those of a short one", shape)
	}
}

// TestIDsNeedNoTokenizer, not even one that can be read.
func TestIDsNeedNoTokenizer(t *testing.T) {
	path := fixture.CopyModel(t, "stories260K/hf-f32", t.TempDir())
	fixture.EditJSON(t, filepath.Join(path, "tokenizer.json"), map[string]any{"model": map[string]any{"type": "Unigram"}})
	got := result(t, path, run.Options{IDs: []int32{1, 403, 407, 261, 378}, MaxTokens: 3})
	if want := []int32{432, 383, 286}; !slices.Equal(got.IDs, want) {
		t.Errorf("got %v, want %v", got.IDs, want)
	}
	err := run.Run(context.Background(), io.Discard, io.Discard, path, run.Options{Prompt: "x", MaxTokens: 1})
	if err == nil || !strings.Contains(err.Error(), "Unigram") {
		t.Errorf("with a text: %v", err)
	}
}

// TestPromptAlone fills the whole context, of which nothing but the figures is wanted.
func TestPromptAlone(t *testing.T) {
	path := fixture.Model("stories260K/hf-f32")
	for _, n := range []int{1, 300, 512} {
		got := result(t, path, run.Options{IDs: slices.Repeat([]int32{403}, n)})
		if len(got.IDs) != 0 || got.FinishReason != "length" || got.PrefillTokensPerSecond <= 0 {
			t.Errorf("%d tokens: %+v", n, got)
		}
	}
}

// slow is a reader that is behind, as one whose terminal is.
type slow struct{}

const slowly = 150 * time.Millisecond // long enough that a busy machine computes in less

func (slow) Write(p []byte) (int, error) {
	time.Sleep(slowly)
	return len(p), nil
}

// TestFigures are of what was computed, however late or early it is read.
func TestFigures(t *testing.T) {
	path := fixture.Model("stories260K/hf-f32")
	figures := func(w io.Writer, o run.Options) (prefill, decode float64, line string) {
		t.Helper()
		var stderr bytes.Buffer
		if err := run.Run(context.Background(), w, &stderr, path, o); err != nil {
			t.Fatal(err)
		}
		_, line, _ = strings.Cut(stderr.String(), "\n")
		n, err := fmt.Sscanf(line, "prefill: 5 tokens, %f tokens/s; decode: 8 tokens, %f", &prefill, &decode)
		if n != 2 && o.MaxTokens > 1 {
			t.Fatalf("%q: %v", line, err)
		}
		return prefill, decode, line
	}
	ids := []int32{1, 403, 407, 261, 378}
	// Seven tokens in 8 pauses would be 6 a second; read all at once, they would be millions.
	if prefill, decode, line := figures(slow{}, run.Options{IDs: ids, MaxTokens: 8}); decode < 2/slowly.Seconds() || decode > 100_000 || prefill > 100_000 {
		t.Errorf("read slowly: %s", line)
	}
	for n, says := range []string{"decode: 0 tokens; ended", "decode: 1 token; ended"} {
		if _, _, line := figures(io.Discard, run.Options{IDs: ids, MaxTokens: n}); !strings.Contains(line, says) {
			t.Errorf("%d tokens: %s", n, line)
		}
		if got := result(t, path, run.Options{IDs: ids, MaxTokens: n}); got.DecodeTokensPerSecond != 0 || got.PrefillTokensPerSecond <= 0 || got.PrefillTokensPerSecond > 100_000 {
			t.Errorf("%d tokens: %+v", n, got)
		}
	}
}

func TestStreamsText(t *testing.T) {
	path := fixture.Model("stories260K/hf-f32")
	var stdout, stderr bytes.Buffer
	if err := run.Run(context.Background(), &stdout, &stderr, path, run.Options{Prompt: "Once upon a time", MaxTokens: 8}); err != nil {
		t.Fatal(err)
	}
	if got, want := stdout.String(), ", there was a little girl\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if !strings.Contains(stderr.String(), "tokens/s") {
		t.Errorf("figures: %q", stderr.String())
	}
	stdout.Reset()
	if err := run.Run(context.Background(), &stdout, &stderr, path, run.Options{IDs: []int32{1, 403, 407, 261, 378}, MaxTokens: 3}); err != nil || strings.TrimSpace(stdout.String()) != "432 383 286" {
		t.Errorf("by ids: got %q, %v", stdout.String(), err)
	}
}

// TestLines: the text has its line to itself, where figures are on the same terminal.
func TestLines(t *testing.T) {
	var both bytes.Buffer
	if err := run.Run(context.Background(), &both, &both, fixture.Model("stories260K/hf-f32"), run.Options{Prompt: "Once upon a time", MaxTokens: 3}); err != nil || !strings.Contains(both.String(), "\nprefill: ") {
		t.Errorf("%v: %q", err, both.String())
	}
}

// TestDamaged: weights that are no numbers are blamed, not what comes of them.
func TestDamaged(t *testing.T) {
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(fixture.Model("stories260K/hf-f32"))); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "model.safetensors")
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	header := 8 + int(binary.LittleEndian.Uint64(data))
	copy(data[header:], bytes.Repeat([]byte{0xff}, len(data)-header))
	fixture.WriteFile(t, file, data)
	err = run.Run(context.Background(), io.Discard, io.Discard, dir, run.Options{Prompt: "Once", MaxTokens: 2})
	want := dir + ": the logits are no finite numbers, so its weights are damaged; get its files again"
	if err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
	// One number of the output row that is no number is enough, as for bench and eval.
	whole, err := os.ReadFile(filepath.Join(fixture.Model("stories260K/hf-f32"), "model.safetensors"))
	if err != nil {
		t.Fatal(err)
	}
	var tensors map[string]struct {
		Offsets []int `json:"data_offsets"`
	}
	if err := json.Unmarshal(whole[8:header], &tensors); err != nil {
		t.Fatal(err)
	}
	one := bytes.Clone(whole)
	copy(one[header+tensors["model.embed_tokens.weight"].Offsets[1]-4:], []byte{0xff, 0xff, 0xff, 0xff}) // of the last token
	fixture.WriteFile(t, file, one)
	if err = run.Run(context.Background(), io.Discard, io.Discard, dir, run.Options{Prompt: "Once", MaxTokens: 2}); err == nil || err.Error() != want {
		t.Errorf("one: got %v, want %s", err, want)
	}
	fixture.WriteFile(t, file, data)
	err = run.Embed(context.Background(), io.Discard, dir, run.EmbedOptions{Text: "Once"})
	if err == nil || !strings.Contains(err.Error(), "its weights are damaged") {
		t.Error(err)
	}
}

func TestFailures(t *testing.T) {
	path := fixture.Model("stories260K/hf-f32")
	folder := t.TempDir()
	for name, c := range map[string]struct {
		path string
		o    run.Options
		want string
	}{
		"no such model":          {filepath.Join(folder, "nowhere"), run.Options{IDs: []int32{1}, MaxTokens: 1}, "nowhere"},
		"token beyond":           {path, run.Options{IDs: []int32{1, 512}, MaxTokens: 1}, "512"},
		"prompt beyond context":  {path, run.Options{IDs: make([]int32, 513), MaxTokens: 1}, "shorten"},
		"no room for a token":    {path, run.Options{IDs: make([]int32, 512), MaxTokens: 1}, "shorten"},
		"logits to nowhere":      {path, run.Options{IDs: []int32{1}, Logits: filepath.Join(folder, "a", "b")}, "make it first"},
		"logits before all else": {filepath.Join(folder, "nowhere"), run.Options{IDs: []int32{1}, Logits: "/dev/full"}, "only files are replaced"},
		"logits of a bad prompt": {path, run.Options{IDs: []int32{600}, Logits: filepath.Join(folder, "l")}, "600"},
	} {
		err := run.Run(context.Background(), io.Discard, io.Discard, c.path, c.o)
		if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: got %v, want one line with %q", name, err, c.want)
		}
	}
	if left, _ := os.ReadDir(folder); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := run.Run(ctx, io.Discard, io.Discard, path, run.Options{IDs: []int32{1}, MaxTokens: 100}); !errors.Is(err, context.Canceled) || err.Error() != "interrupted" {
		t.Errorf("interrupted: got %v", err)
	}
	for i := range 20 { // at any moment
		ctx, cancel := context.WithTimeoutCause(context.Background(), time.Duration(i)*time.Millisecond, context.Canceled)
		defer cancel()
		if err := run.Run(ctx, io.Discard, io.Discard, path, run.Options{IDs: []int32{1}, MaxTokens: 511}); err != nil && err.Error() != "interrupted" {
			t.Errorf("interrupted after %d ms: got %v", i, err)
		}
	}
}

// TestNoRoom: a model that there is no memory for is refused before it is loaded, by one line that says what to do.
func TestNoRoom(t *testing.T) {
	path := fixture.HugeModel(t, t.TempDir())
	best, err := kernels.Best()
	if err != nil {
		t.Fatal(err)
	}
	if best == kernels.PlainGo || device.Free(nil).Bytes > 900<<30 {
		t.Skip("SKIPPED: this path leaves weights in their files, or this machine has room for them")
	}
	for what, err := range map[string]error{
		"fewer --max-tokens": run.Run(t.Context(), io.Discard, io.Discard, path, run.Options{IDs: []int32{1, 403}, MaxTokens: 4}),
		"a shorter text":     run.Embed(t.Context(), io.Discard, path, run.EmbedOptions{IDs: []int32{1, 403}}),
	} {
		if err == nil || !strings.HasPrefix(err.Error(), path+" needs ") || !strings.Contains(err.Error(), "and ") || !strings.Contains(err.Error(), " can be had (") ||
			!strings.Contains(err.Error(), what) || strings.Contains(err.Error(), "\n") {
			t.Errorf("got %v", err)
		}
	}
}

// tensor reads one float32 tensor of a safetensors file.
func tensor(t *testing.T, path, name string) ([]int, []float32) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	n := 8 + binary.LittleEndian.Uint64(data)
	var header map[string]struct {
		Shape   []int `json:"shape"`
		Offsets []int `json:"data_offsets"`
	}
	if err := json.Unmarshal(data[8:n], &header); err != nil {
		t.Fatal(err)
	}
	h := header[name]
	x := make([]float32, (h.Offsets[1]-h.Offsets[0])/4)
	for i := range x {
		x[i] = math.Float32frombits(binary.LittleEndian.Uint32(data[int(n)+h.Offsets[0]+4*i:]))
	}
	return h.Shape, x
}
