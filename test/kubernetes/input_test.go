package kubernetes

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/estiba/estiba/api/v1alpha1"
	"github.com/estiba/estiba/internal/fixture"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Manifests that break a rule are refused, and the message says what to write.
func TestBadManifests(t *testing.T) {
	s := newScene(t)
	const head = "apiVersion: estiba.dev/v1alpha1\nkind: %s\nmetadata: {name: %s}\nspec: %s\n"
	for name, c := range map[string]struct{ kind, object, spec, want string }{
		"both replicas and autoscaling": {"Model", "m", "{source: {uri: file:///m}, replicas: 1, autoscaling: {min: 0}}", "write replicas for a fixed number"},
		"min above max":                 {"Model", "m", "{source: {uri: file:///m}, autoscaling: {min: 3, max: 2}}", "min must not be larger"},
		"unknown scheme":                {"Model", "m", "{source: {uri: 'ftp://m'}}", "must start with file://"},
		"relative file":                 {"Model", "m", "{source: {uri: 'file://m'}}", "three slashes"},
		"bad digest":                    {"Model", "m", "{source: {uri: file:///m, digest: 'sha256:12'}}", "64 lower-case hexadecimal digits"},
		"long name":                     {"Model", strings.Repeat("m", 64), "{source: {uri: file:///m}}", "63 characters"},
		"headroom":                      {"InferencePool", "p", "{memory: {headroom: 90%}}", "0% to 50%"},
		"workers":                       {"InferencePool", "p", "{workers: {min: 2, max: 1}}", "must not be larger"},
		"pool's name":                   {"InferencePool", "a.b", "{}", "no dots"},
		"relative root":                 {"InferencePool", "p", "{modelRoots: [models]}", "absolute path"},
		"replicas outside workers":      {"InferencePool", "p", "{workers: {max: 1}, replicas: 2}", "raise workers.max or lower replicas"},
	} {
		out, err := s.cluster.kubectl(fmt.Sprintf(head, c.kind, c.object, c.spec), "apply", "-n", s.namespace, "-f", "-")
		if err == nil || !strings.Contains(out, c.want) {
			t.Errorf("%s: want %q, got %v\n%s", name, c.want, err, out)
		}
	}
}

// Broken folders: the conditions name file and problem, and neighbours go on.
func TestBrokenModels(t *testing.T) {
	s := newScene(t)
	s.pool("broken", 1, "512Mi")
	s.model("neighbour", float32Model, "")
	s.ready("neighbour")
	instance := s.state("broken", s.worker("broken")).Instance

	cases := map[string]struct {
		spoil  func(dir string)
		reason string
		want   []string // regular expressions
	}{
		"truncated": {func(dir string) {
			check(t, os.Truncate(filepath.Join(dir, "model.safetensors"), 500_000))
		}, v1alpha1.ReasonInvalidModel, []string{`model\.safetensors`}},
		"offset": {func(dir string) {
			editHeader(t, dir, func(h map[string]any) {
				h["model.norm.weight"].(map[string]any)["data_offsets"] = []int64{1 << 40, 1<<40 + 256}
			})
		}, v1alpha1.ReasonInvalidModel, []string{`model\.safetensors`, `model\.norm\.weight|offset`}},
		"header": {func(dir string) {
			f, err := os.OpenFile(filepath.Join(dir, "model.safetensors"), os.O_WRONLY, 0)
			check(t, err)
			_, err = f.Write(binary.LittleEndian.AppendUint64(nil, 2<<30))
			check(t, err)
			check(t, f.Close())
		}, v1alpha1.ReasonInvalidModel, []string{`model\.safetensors`, `header`}},
		"missing": {func(dir string) {
			editHeader(t, dir, func(h map[string]any) {
				h["something.else"] = h["model.layers.2.mlp.up_proj.weight"]
				delete(h, "model.layers.2.mlp.up_proj.weight")
			})
		}, v1alpha1.ReasonInvalidModel, []string{`model\.layers\.2\.mlp\.up_proj\.weight`}},
		"shape": {func(dir string) {
			replace(t, filepath.Join(dir, "config.json"), `"intermediate_size": 172`, `"intermediate_size": 176`)
		}, v1alpha1.ReasonInvalidModel, []string{`mlp`, `172`, `176`}},
		"architecture": {func(dir string) {
			replace(t, filepath.Join(dir, "config.json"), `"LlamaForCausalLM"`, `"NobodyForCausalLM"`)
			replace(t, filepath.Join(dir, "config.json"), `"model_type": "llama"`, `"model_type": "nobody"`)
		}, v1alpha1.ReasonUnsupportedModel, []string{`(?i)nobody`}},
		"config": {func(dir string) {
			replace(t, filepath.Join(dir, "config.json"), `"hidden_size": 64`, `"hidden_size": -64`)
		}, v1alpha1.ReasonInvalidModel, []string{`config\.json`, `hidden_size`}},
	}
	asking := s.keepAsking("neighbour")
	for name, c := range cases {
		dir := s.copyModel("broken-" + name)
		c.spoil(dir)
		s.model("broken-"+name, "file:///models/broken-"+name, "")
	}
	outside := filepath.Join(s.models, "outside")
	check(t, os.Symlink("/etc", outside))
	t.Cleanup(func() { os.Remove(outside) })
	s.model("broken-outside", "file:///models/outside", "")
	s.model("broken-nowhere", "file:///models/nowhere", "")

	for name, c := range cases {
		message := s.condition("broken-"+name, v1alpha1.ConditionReady, metav1.ConditionFalse, c.reason)
		s.condition("broken-"+name, v1alpha1.ConditionStalled, metav1.ConditionTrue, c.reason)
		progress("  %s: %s: %s", name, c.reason, message)
		for _, want := range c.want {
			if !regexp.MustCompile(want).MatchString(message) {
				t.Errorf("%s: the message does not name %s: %s", name, want, message)
			}
		}
	}
	for _, name := range []string{"broken-outside", "broken-nowhere"} {
		m := s.condition(name, v1alpha1.ConditionReady, metav1.ConditionFalse, v1alpha1.ReasonSourceUnavailable)
		progress("  %s: %s", name, m)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if status, answer, err := s.request(ctx, "POST", "/v1/completions", []byte(`{"model": "broken-missing", "prompt": "x"}`)); err != nil || status != 503 {
		t.Errorf("a broken model answers %d %s %v", status, answer, err)
	}
	asking.end(s)
	if now := s.state("broken", s.worker("broken")).Instance; now != instance {
		t.Error("the worker was restarted")
	}

	// Mended, with a changed spec, it serves.
	check(t, os.RemoveAll(filepath.Join(s.models, "broken-truncated")))
	s.copyModel("broken-truncated")
	s.kubectl("patch", "model", "broken-truncated", "--type=merge", "-p", `{"spec":{"context":{"maxTokens":256}}}`)
	s.ready("broken-truncated")
	s.answers("broken-truncated")
}

// A model of a terabyte says what it needs and what there is.
func TestDoesNotFit(t *testing.T) {
	s := newScene(t)
	dir := s.copyModel("terabyte")
	size := sparseModel(t, dir, 8192, 28672, 256)
	progress("  the file has %.2f TB", float64(size)/1e12)
	s.pool("fit", 1, "512Mi")
	s.model("terabyte", "file:///models/terabyte", "")
	s.model("terabyte-neighbour", float32Model, "")
	message := s.condition("terabyte", v1alpha1.ConditionReady, metav1.ConditionFalse, v1alpha1.ReasonDoesNotFit)
	progress("  %s", message)
	if !regexp.MustCompile(`\d.*(Ti|Gi)B?.*\d.*(Mi|Gi)B?`).MatchString(message) {
		t.Errorf("no numbers in %q", message)
	}
	s.condition("terabyte", v1alpha1.ConditionStalled, metav1.ConditionTrue, v1alpha1.ReasonDoesNotFit)
	s.ready("terabyte-neighbour")
	s.answers("terabyte-neighbour")
}

// A digest that does not match is refused; the right one is taken.
func TestDigest(t *testing.T) {
	s := newScene(t)
	s.pool("digest", 1, "512Mi")
	s.apply(`{apiVersion: estiba.dev/v1alpha1, kind: Model, metadata: {name: digest}, spec: {source: {uri: "` + float16Model + `", digest: "sha256:` + strings.Repeat("0", 64) + `"}}}`)
	message := s.condition("digest", v1alpha1.ConditionReady, metav1.ConditionFalse, v1alpha1.ReasonDigestMismatch)
	data, err := os.ReadFile(fixture.Model("stories260K/stories260K-f16.gguf"))
	check(t, err)
	right := fmt.Sprintf("sha256:%x", sha256.Sum256(data))
	if !strings.Contains(message, right) {
		t.Errorf("the message does not say what the digest is: %s", message)
	}
	s.kubectl("patch", "model", "digest", "--type=merge", "-p", `{"spec":{"source":{"digest":"`+right+`"}}}`)
	s.ready("digest")
	s.answers("digest")
}

// A source that is unreachable, then reachable.
func TestUnreachableSource(t *testing.T) {
	s := newScene(t)
	s.pool("remote", 1, "512Mi")
	s.model("remote", fmt.Sprintf("http://%s:9000/stories260K-f16.gguf", nodeAddress), "")
	s.model("remote-folder", fmt.Sprintf("http://%s:9000/hf-f32/", nodeAddress), "")
	for _, name := range []string{"remote", "remote-folder"} {
		message := s.condition(name, v1alpha1.ConditionReady, metav1.ConditionFalse, v1alpha1.ReasonSourceUnavailable)
		progress("  %s", message)
	}
	server := &http.Server{Handler: http.FileServer(http.Dir(fixture.Model("stories260K")))}
	go server.Serve(s.listen(t, 9000))
	defer server.Close()
	s.ready("remote", "remote-folder")
	s.answers("remote")
	s.answers("remote-folder")
}

// Bad requests get an error in OpenAI's shape, and do no harm.
func TestBadRequests(t *testing.T) {
	s := newScene(t)
	s.pool("requests", 1, "512Mi")
	s.model("requests", float32Model, "")
	s.ready("requests")
	big, _ := json.Marshal(map[string]any{"model": "requests", "prompt": strings.Repeat("x", 10<<20)})
	long, _ := json.Marshal(map[string]any{"model": "requests", "prompt": strings.Repeat("a long story ", 1000)})
	for name, c := range map[string]struct {
		body   []byte
		status int
		code   string
	}{
		"malformed":      {[]byte(`{"model": "requests", "prompt": `), 400, ""},
		"not an object":  {[]byte(`[]`), 400, ""},
		"no model":       {[]byte(`{"prompt": "x"}`), 400, ""},
		"unknown model":  {[]byte(`{"model": "nobody", "prompt": "x"}`), 404, "model_not_found"},
		"long prompt":    {long, 400, "context_length_exceeded"},
		"10 MB":          {big, 413, ""},
		"bad max_tokens": {[]byte(`{"model": "requests", "prompt": "x", "max_tokens": -1}`), 400, ""},
		"bad type":       {[]byte(`{"model": "requests", "prompt": {"x": 1}}`), 400, ""},
	} {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		status, answer, err := s.request(ctx, "POST", "/v1/completions", c.body)
		cancel()
		if err != nil || status != c.status {
			t.Errorf("%s: status %d, want %d; %v %s", name, status, c.status, err, answer)
			continue
		}
		var e struct {
			Error struct{ Message, Type, Code string }
		}
		if err := json.Unmarshal(answer, &e); err != nil || e.Error.Message == "" || e.Error.Type == "" || (c.code != "" && e.Error.Code != c.code) {
			t.Errorf("%s: %s", name, answer)
		}
	}
	t.Run("a client that goes away frees what it held", func(t *testing.T) {
		pod := s.worker("requests")
		for range 8 {
			st, err := s.open("requests", 450, 1)
			check(t, err)
			st.response.Body.Close()
		}
		s.eventually("nothing is left of the requests", func() string {
			h := home(s.state("requests", pod), s.namespace+"/requests")
			if h == nil || h.Running+h.Waiting > 0 {
				return fmt.Sprintf("%+v", h)
			}
			return ""
		})
	})
	s.answers("requests")
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// copyModel copies the tiny float32 model to a folder of its own below /models.
func (s *scene) copyModel(name string) string {
	s.Helper()
	dir := filepath.Join(s.models, name)
	check(s, os.CopyFS(dir, os.DirFS(fixture.Model("stories260K/hf-f32"))))
	s.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func replace(t *testing.T, file, old, new string) {
	t.Helper()
	data, err := os.ReadFile(file)
	check(t, err)
	if !bytes.Contains(data, []byte(old)) {
		t.Fatalf("%s has no %s", file, old)
	}
	check(t, os.WriteFile(file, bytes.Replace(data, []byte(old), []byte(new), 1), 0o644))
}

// editHeader changes the header of a folder's safetensors file.
func editHeader(t *testing.T, dir string, edit func(map[string]any)) {
	t.Helper()
	file := filepath.Join(dir, "model.safetensors")
	data, err := os.ReadFile(file)
	check(t, err)
	n := binary.LittleEndian.Uint64(data)
	var header map[string]any
	check(t, json.Unmarshal(data[8:8+n], &header))
	edit(header)
	text, err := json.Marshal(header)
	check(t, err)
	out := binary.LittleEndian.AppendUint64(nil, uint64(len(text)))
	out = append(append(out, text...), data[8+n:]...)
	check(t, os.WriteFile(file, out, 0o644))
}

// sparseModel gives a folder a true config and header of a llama model with
// float32 weights that are all zero and take no room on disk; it returns the
// size of the file.
func sparseModel(t *testing.T, dir string, hidden, intermediate, layers int) int64 {
	t.Helper()
	const vocabulary = 512
	config, err := json.Marshal(map[string]any{
		"architectures": []string{"LlamaForCausalLM"}, "model_type": "llama", "hidden_size": hidden,
		"intermediate_size": intermediate, "num_hidden_layers": layers, "num_attention_heads": hidden / 64,
		"num_key_value_heads": hidden / 64, "head_dim": 64, "vocab_size": vocabulary, "max_position_embeddings": 512,
		"rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu", "tie_word_embeddings": false,
		"bos_token_id": 1, "eos_token_id": 2, "torch_dtype": "float32",
	})
	check(t, err)
	check(t, os.WriteFile(filepath.Join(dir, "config.json"), config, 0o644))
	header, end := map[string]any{}, int64(0)
	add := func(name string, shape ...int) {
		size := int64(4)
		for _, n := range shape {
			size *= int64(n)
		}
		header[name] = map[string]any{"dtype": "F32", "shape": shape, "data_offsets": []int64{end, end + size}}
		end += size
	}
	add("model.embed_tokens.weight", vocabulary, hidden)
	for i := range layers {
		p := fmt.Sprintf("model.layers.%d.", i)
		add(p+"input_layernorm.weight", hidden)
		add(p+"post_attention_layernorm.weight", hidden)
		for _, n := range []string{"q", "k", "v", "o"} {
			add(p+"self_attn."+n+"_proj.weight", hidden, hidden)
		}
		add(p+"mlp.gate_proj.weight", intermediate, hidden)
		add(p+"mlp.up_proj.weight", intermediate, hidden)
		add(p+"mlp.down_proj.weight", hidden, intermediate)
	}
	add("model.norm.weight", hidden)
	add("lm_head.weight", vocabulary, hidden)
	text, err := json.Marshal(header)
	check(t, err)
	file := filepath.Join(dir, "model.safetensors")
	out := append(binary.LittleEndian.AppendUint64(nil, uint64(len(text))), text...)
	check(t, os.WriteFile(file, out, 0o644))
	size := int64(len(out)) + end
	check(t, os.Truncate(file, size))
	return size
}
