package tokenizer

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/estiba/estiba/internal/fixture"
	"github.com/estiba/estiba/runtime/arch"
	"github.com/estiba/estiba/runtime/weights"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// ours makes the tokenizer of stories260K from each of its formats.
func ours(t testing.TB) map[string]*Tokenizer {
	t.Helper()
	dir := fixture.Model("stories260K/hf-f32")
	model, err := os.ReadFile(filepath.Join(dir, "tokenizer.model"))
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]*Tokenizer{}
	if all["tokenizer.json"], err = Open(dir); err != nil {
		t.Fatal(err)
	}
	if all["tokenizer.model"], err = ParseSentencePiece(model, nil); err != nil {
		t.Fatal(err)
	}
	all["gguf"] = opened(t, fixture.Model("stories260K/stories260K-f16.gguf"))
	return all
}

// byteLevel is a small tokenizer.json whose tokens are bytes and some of what they merge to.
func byteLevel(t testing.TB) []byte {
	t.Helper()
	vocab := map[string]int{}
	for b := range 256 {
		vocab[alphabet[b]] = b
	}
	var merges []string
	for _, m := range [][2]string{{"Ġ", "a"}, {"t", "h"}, {"th", "e"}, {"Ġ", "Ġ"}, {"ðŁ", "ĺ"}, {"ð", "Ł"}, {"Ã", "©"}} {
		vocab[m[0]+m[1]] = len(vocab)
	}
	for _, m := range [][2]string{{"Ġ", "a"}, {"t", "h"}, {"th", "e"}, {"Ġ", "Ġ"}, {"ð", "Ł"}, {"ðŁ", "ĺ"}, {"Ã", "©"}} {
		merges = append(merges, m[0]+" "+m[1])
	}
	text, err := json.Marshal(map[string]any{
		"added_tokens":  []any{map[string]any{"id": len(vocab), "content": "<|x|>", "special": true}, map[string]any{"id": len(vocab) + 1, "content": "<y>"}},
		"pre_tokenizer": json.RawMessage(`{"type":"Sequence","pretokenizers":[{"type":"Split","pattern":{"Regex":"(?i:'s|'t)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"},"behavior":"Isolated"},{"type":"ByteLevel","add_prefix_space":false,"use_regex":false}]}`),
		"decoder":       json.RawMessage(`{"type":"ByteLevel"}`),
		"model":         map[string]any{"type": "BPE", "vocab": vocab, "merges": merges},
	})
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// opened is the tokenizer of a path, which is read once.
func opened(t testing.TB, path string) *Tokenizer {
	t.Helper()
	once, _ := all.LoadOrStore(path, sync.OnceValues(func() (*Tokenizer, error) { return Open(path) }))
	tok, err := once.(func() (*Tokenizer, error))()
	if err != nil {
		t.Fatal(err)
	}
	return tok
}

var all sync.Map // path -> func() (*Tokenizer, error)

// vectors are texts with ids and decoded texts by an independent program.
type vectors struct {
	Cases []struct {
		Text        string    `json:"text"`
		IDs         []int32   `json:"ids"`
		Plain       []int32   `json:"ids_without_special"`
		Decoded     string    `json:"decoded"`
		DecodedSkip *string   `json:"decoded_skip_special"`
		Stream      []*string `json:"stream"`
	} `json:"cases"`
}

// byteIDs are the ids of byte tokens.
func byteIDs(t *Tokenizer) [256]int32 {
	switch m := t.model.(type) {
	case *bpe:
		return m.bytes
	case *scored:
		return m.bytes
	}
	return noBytes
}

func readJSON(t testing.TB, path string, into any) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, into); err != nil {
		t.Fatal(err)
	}
}

func TestVectors(t *testing.T) {
	for _, name := range []string{"stories260K", "phi-3-mini", "mistral-v3", "qwen3", "cl100k", "phi-2", "bert-uncased"} {
		t.Run(name, func(t *testing.T) {
			var v vectors
			readJSON(t, fixture.Shared(t, "tokenizers/vectors/"+name+".vectors.json"), &v)
			path := fixture.Model("stories260K/hf-f32")
			if name != "stories260K" {
				path = fixture.Shared(t, "tokenizers/"+name)
			}
			tok := opened(t, path)
			for _, c := range v.Cases {
				same(t, c.Text, "with special", c.IDs, tok.Encode(c.Text, true))
				same(t, c.Text, "without special", c.Plain, tok.Encode(c.Text, false))
				if c.DecodedSkip == nil { // by sentencepiece, which never shows special tokens
					same(t, c.Text, "decoded", c.Decoded, tok.Decode(c.IDs, false))
					continue
				}
				same(t, c.Text, "decoded", c.Decoded, tok.Decode(c.IDs, true))
				same(t, c.Text, "decoded, special skipped", *c.DecodedSkip, tok.Decode(c.IDs, false))
				s := tok.Stream(false)
				for i, id := range c.Plain {
					want := ""
					if c.Stream[i] != nil {
						want = *c.Stream[i]
					}
					same(t, c.Text, fmt.Sprint("stream at ", i), want, s.Push(id))
				}
				same(t, c.Text, "end of stream", "", s.Flush())
			}
			t.Logf("%d texts", len(v.Cases))
		})
	}
}

func same(t *testing.T, text, what string, want, got any) {
	t.Helper()
	if d := cmp.Diff(want, got, cmpopts.EquateEmpty()); d != "" {
		t.Errorf("%q, %s:\n%s", text, what, d)
	}
}

func TestGGUFVectors(t *testing.T) {
	for name, with := range map[string]string{"phi-3": "", "gpt-2": "", "bert-bge": "", "falcon": "", "mpt": "", "qwen2": "tokenizers/qwen3", "llama-bpe": ""} {
		t.Run(name, func(t *testing.T) {
			path := "tokenizers/gguf-vocab/ggml-vocab-" + name + ".gguf"
			if with == "" {
				with = path
			}
			if name == "llama-bpe" { // its vocabulary is not here: the first 100,256 ids are cl100k's
				with = "tokenizers/cl100k"
			}
			tok := opened(t, fixture.Shared(t, with))
			in, err := os.ReadFile(fixture.Shared(t, path+".inp"))
			if err != nil {
				t.Fatal(err)
			}
			out, err := os.ReadFile(fixture.Shared(t, path+".out"))
			if err != nil {
				t.Fatal(err)
			}
			const end = "\n__ggml_vocab_test__\n"
			texts := strings.Split(strings.TrimSuffix(string(in), end), end)
			lines := strings.Split(strings.TrimSuffix(string(out), "\n"), "\n")
			if len(texts) != len(lines) {
				t.Fatalf("%d texts, %d lines", len(texts), len(lines))
			}
			for i, text := range texts {
				var want []int32
				for _, f := range strings.Fields(lines[i]) {
					var id int32
					fmt.Sscan(f, &id)
					want = append(want, id)
				}
				if name == "llama-bpe" && slices.Max(append(want, 0)) >= 100_256 {
					continue
				}
				same(t, text, "llama.cpp", want, tok.Encode(text, false))
			}
		})
	}
}

func TestCases(t *testing.T) {
	var cases []struct {
		Prompt    string  `json:"prompt"`
		PromptIDs []int32 `json:"prompt_ids"`
		Greedy    map[string]struct {
			IDs  []int32 `json:"ids"`
			Text string  `json:"text"`
		} `json:"greedy"`
	}
	readJSON(t, fixture.Shared(t, "models/stories260K/cases.json"), &cases)
	all := ours(t)
	for _, precision := range []string{"f32", "f16", "q8_0", "q4_0"} {
		all[precision] = opened(t, fixture.Shared(t, "models/stories260K/stories260K-"+precision+".gguf"))
	}
	for from, tok := range all {
		for _, c := range cases {
			same(t, c.Prompt, from, c.PromptIDs, tok.Encode(c.Prompt, true))
			for variant, g := range c.Greedy {
				s, text := tok.Stream(false, c.PromptIDs...), ""
				for _, id := range g.IDs {
					text += s.Push(id)
				}
				text += s.Flush()
				if g.IDs != nil {
					same(t, c.Prompt, from+" "+variant, g.Text, text)
				}
				whole := tok.Decode(append(slices.Clone(c.PromptIDs), g.IDs...), false)
				same(t, c.Prompt, from+" "+variant+" decoded", c.Prompt+text, whole)
			}
		}
	}
}

func TestFormatsAgree(t *testing.T) {
	all := ours(t)
	rng := rand.New(rand.NewPCG(1, 2))
	alphabet := []rune("aabcdeehilnoorsttuwy    \n\t.,'\"TSLé▁😀0<|\u0301")
	for range 3000 {
		runes := make([]rune, rng.IntN(60))
		for i := range runes {
			runes[i] = alphabet[rng.IntN(len(alphabet))]
		}
		text := string(runes)
		want := all["tokenizer.json"].Encode(text, true)
		for from, tok := range all {
			same(t, text, from, want, tok.Encode(text, true))
		}
	}
}

// TestAMegabyte wants time that grows with the text's length: runs are one part for
// many splits, and one word for the models.
func TestAMegabyte(t *testing.T) {
	const size = 1 << 20
	texts := map[string]string{
		"words": strings.Repeat("Once upon a time there was a little dog. ", size/41), "e": strings.Repeat("e", size), "A": strings.Repeat("A", size),
		"spaces": strings.Repeat(" ", size), "spaces, word": strings.Repeat(" ", size) + "a", "lines": strings.Repeat("\n", size),
		"digits": strings.Repeat("9", size), "marks": "a" + strings.Repeat("\u0301", size/2), "faces": strings.Repeat("😀", size/4),
		"syllables": strings.Repeat("한", size/4), "starts": strings.Repeat("<|", size/2), "bytes": strings.Repeat("\xff", size/4),
	}
	paths := []string{fixture.Model("stories260K/hf-f32")}
	for _, name := range []string{"qwen3", "mistral-v3", "gguf-vocab/ggml-vocab-falcon.gguf", "gguf-vocab/ggml-vocab-bert-bge.gguf"} {
		paths = append(paths, fixture.Shared(t, "tokenizers/"+name))
	}
	for _, path := range paths {
		tok := opened(t, path)
		slowest, of := time.Duration(0), ""
		for what, text := range texts {
			start := time.Now()
			ids := tok.Encode(text, true)
			if d := time.Since(start); d > slowest {
				slowest, of = d, what
			}
			if strings.Contains(path, "bert") || what == "bytes" || strings.Contains(path, "falcon") || what == "marks" {
				continue // do not come back as they were
			}
			if got := tok.Decode(ids, false); got != text {
				t.Errorf("%s, %s: does not come back", path, what)
			}
		}
		t.Logf("%s: at most %v, for %s", filepath.Base(path), slowest, of)
		if slowest > 20*time.Second { // on a busy machine
			t.Errorf("%s, %s: %v", path, of, slowest)
		}
	}
}

func TestStreamOfBytes(t *testing.T) {
	for from, tok := range ours(t) {
		b := func(bytes string) (ids []int32) {
			for _, c := range []byte(bytes) {
				ids = append(ids, byteIDs(tok)[c])
			}
			return ids
		}
		eos := int32(2)
		for _, c := range []struct {
			ids    []int32
			pushed []string
			end    string
		}{
			{b("\xf0\x9f\x98\x80"), []string{"", "", "", "😀"}, ""},
			{b("é!"), []string{"", "é", "!"}, ""},
			{b("\xf0\x9f"), []string{"", ""}, "��"},
			{b("\xff"), []string{"�"}, ""},
			{b("\xe2\x82é"), []string{"", "", "��", "é"}, ""},
			{append(b("\xe2\x82"), 414), []string{"", "", "��o"}, ""},
			{[]int32{b("é")[0], eos, b("é")[1]}, []string{"", "", "é"}, ""},
			{[]int32{-1, 1 << 30, 414}, []string{"", "", "o"}, ""},
			{b("  x"), []string{"", " ", "x"}, ""},
		} {
			s := tok.Stream(false)
			var pushed []string
			for _, id := range c.ids {
				pushed = append(pushed, s.Push(id))
			}
			same(t, from, fmt.Sprint(c.ids), c.pushed, pushed)
			same(t, from, fmt.Sprint(c.ids, " end"), c.end, s.Flush())
		}
	}
}

func TestIllFormedBytes(t *testing.T) {
	all := ours(t)
	ids := []int32{byteIDs(all["gguf"])['a'], byteIDs(all["gguf"])[0xff]}
	for from, want := range map[string]string{"tokenizer.json": "��", "tokenizer.model": "a�", "gguf": "a�"} {
		same(t, from, "decoded", want, all[from].Decode(ids, false))
	}
}

func TestSpecialTokensInText(t *testing.T) {
	all := ours(t)
	const text = "a<s>b</s>"
	for from, want := range map[string]string{
		"tokenizer.json":  "[261 1 268 2]",
		"gguf":            "[261 1 268 2]",
		"tokenizer.model": "[261 504 419 505 430 504 492 419 505]",
	} {
		same(t, from, text, want, fmt.Sprint(all[from].Encode(text, false)))
	}
}

func TestAddedTokens(t *testing.T) {
	tok, err := ParseJSON(edited(t, func(f map[string]any) {
		f["added_tokens"] = []any{
			map[string]any{"id": 1, "content": "<s>", "special": true},
			map[string]any{"id": 600, "content": "<|a|>", "special": true, "rstrip": true},
			map[string]any{"id": 601, "content": "<|a|>b", "lstrip": true},
			map[string]any{"id": 602, "content": "an upon", "normalized": true},
		}
	}))
	if err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string]string{
		"<|a|>":             "[600]",
		"<|a|>  \n<|a|>":    "[600 600]",
		"the  <|a|>b":       "[265 601]",
		"an upon a an upon": "[602 261 602]",
		"<|a|":              "[410 504 506 412 506]",
	} {
		same(t, text, "ids", want, fmt.Sprint(tok.Encode(text, false)))
	}
	same(t, "", "decoded", "<|a|>b", tok.Decode([]int32{600, 601, 599}, false))
	same(t, "", "decoded", "<|a|><|a|>b", tok.Decode([]int32{600, 601, 599}, true))
}

// edited is the bundled tokenizer.json with a change.
func edited(t testing.TB, edit func(map[string]any)) []byte {
	t.Helper()
	var f map[string]any
	readJSON(t, filepath.Join(fixture.Model("stories260K/hf-f32"), "tokenizer.json"), &f)
	edit(f)
	text, err := json.Marshal(f)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func TestJSONRefused(t *testing.T) {
	model := func(key string, value any) func(map[string]any) {
		return func(f map[string]any) { f["model"].(map[string]any)[key] = value }
	}
	part := func(key string, value string) func(map[string]any) {
		return func(f map[string]any) { f[key] = json.RawMessage(value) }
	}
	for name, c := range map[string]struct {
		edit func(map[string]any)
		is   error
		says string
	}{
		"unigram":              {model("type", "Unigram"), ErrUnsupported, "model.type: unsupported tokenizer: Unigram"},
		"no type":              {part("model", `{"vocab":{"a":0}}`), ErrUnsupported, "model.type"},
		"dropout":              {model("dropout", 0.1), ErrUnsupported, "model.dropout"},
		"merge of three":       {model("merges", []string{"a b c"}), ErrInvalid, "3 parts"},
		"merge of strangers":   {model("merges", [][]string{{"a", "quux"}}), ErrInvalid, "model.merges"},
		"unknown unk":          {model("unk_token", "<none>"), ErrInvalid, "model.unk_token"},
		"no vocabulary":        {model("vocab", map[string]int{}), ErrInvalid, "model"},
		"no bytes":             {model("vocab", map[string]int{"<unk>": 0}), ErrUnsupported, "model.byte_fallback"},
		"negative id":          {model("vocab", map[string]int{"<unk>": -1}), ErrInvalid, "model.vocab"},
		"huge id":              {model("vocab", map[string]int{"q": 2000000000}), ErrInvalid, "model.vocab"},
		"id of 64 bits":        {model("vocab", map[string]int{"q": 1 << 40}), ErrInvalid, "model.vocab"},
		"vocabulary twice":     {model("vocab", json.RawMessage(`{"q":1,"q":1}`)), ErrInvalid, "twice"},
		"vocabulary is a list": {model("vocab", []int{1}), ErrInvalid, "model.vocab"},
		"merge of one":         {model("merges", [][]string{{"a"}}), ErrInvalid, "two texts"},
		"merge of four":        {model("merges", [][]string{{"a", "b", "c", "d"}}), ErrInvalid, "two texts"},
		"merge is a number":    {model("merges", []int{1}), ErrInvalid, "no text"},
		"large part":           {part("normalizer", `"`+strings.Repeat("x", 1<<20)+`"`), ErrInvalid, "a part of"},
		"many special":         {part("added_tokens", `[{}`+strings.Repeat(",{}", maxSpecials)+`]`), ErrInvalid, "more than 65536"},
		"same id":              {model("vocab", map[string]int{"<unk>": 0, "a": 0}), ErrInvalid, "two tokens have id 0"},
		"no model":             {part("model", `null`), ErrInvalid, "model"},
		"normalizer":           {part("normalizer", `{"type":"Precompiled","precompiled_charsmap":""}`), ErrUnsupported, "normalizer.type: unsupported tokenizer: Precompiled"},
		"deep normalizers":     {part("normalizer", strings.Repeat(`{"type":"Sequence","normalizers":[`, 200)+strings.Repeat(`]}`, 200)), ErrUnsupported, "normalizer: unsupported tokenizer: more than 64 parts"},
		"growth":               {part("normalizer", `{"type":"Sequence","normalizers":[{"type":"Replace","pattern":{"String":"a"},"content":"aaaaaa"},{"type":"Replace","pattern":{"String":"a"},"content":"aaaaaa"}]}`), ErrUnsupported, "normalizer.content"},
		"growing matches":      {part("normalizer", `{"type":"Replace","pattern":{"Regex":"x*"},"content":"0123456789012345678901234567890123456789"}`), ErrUnsupported, "normalizer.content"},
		"pattern":              {part("normalizer", `{"type":"Replace","pattern":{},"content":""}`), ErrUnsupported, "normalizer.pattern"},
		"back reference":       {part("normalizer", `{"type":"Replace","pattern":{"Regex":"(a)\\1"},"content":""}`), ErrUnsupported, "normalizer.pattern.Regex"},
		"no expression":        {part("pre_tokenizer", `{"type":"Split","pattern":{"Regex":"(a"},"behavior":"Isolated"}`), ErrInvalid, "pre_tokenizer.pattern.Regex"},
		"behavior":             {part("pre_tokenizer", `{"type":"Split","pattern":{"String":"a"},"behavior":"Odd"}`), ErrUnsupported, "pre_tokenizer.behavior"},
		"pre-tokenizer":        {part("pre_tokenizer", `{"type":"UnicodeScripts"}`), ErrUnsupported, "pre_tokenizer.type: unsupported tokenizer: UnicodeScripts"},
		"two byte levels":      {part("pre_tokenizer", `{"type":"Sequence","pretokenizers":[{"type":"ByteLevel"},{"type":"ByteLevel"}]}`), ErrUnsupported, "pre_tokenizer.type"},
		"space after bytes":    {part("pre_tokenizer", `{"type":"Sequence","pretokenizers":[{"type":"ByteLevel"},{"type":"Metaspace","replacement":"▁"}]}`), ErrUnsupported, "pre_tokenizer.type"},
		"replacement":          {part("pre_tokenizer", `{"type":"Metaspace","replacement":"ab"}`), ErrInvalid, "pre_tokenizer.replacement"},
		"scheme":               {part("pre_tokenizer", `{"type":"Metaspace","replacement":"_","prepend_scheme":"last"}`), ErrUnsupported, "pre_tokenizer.prepend_scheme"},
		"decoder":              {part("decoder", `{"type":"CTC"}`), ErrUnsupported, "decoder.type: unsupported tokenizer: CTC"},
		"decoder's order":      {part("decoder", `{"type":"Sequence","decoders":[{"type":"Fuse"},{"type":"ByteFallback"}]}`), ErrUnsupported, "decoder.type: unsupported tokenizer: ByteFallback in this place"},
		"stripped end":         {part("decoder", `{"type":"Sequence","decoders":[{"type":"Fuse"},{"type":"Strip","content":" ","start":0,"stop":1}]}`), ErrUnsupported, "decoder.type"},
		"first with bytes":     {part("decoder", `{"type":"Sequence","decoders":[{"type":"Metaspace","replacement":"▁"},{"type":"ByteFallback"}]}`), ErrUnsupported, "decoder"},
		"post-processor":       {part("post_processor", `{"type":"Odd"}`), ErrUnsupported, "post_processor.type: unsupported tokenizer: Odd"},
		"sep":                  {part("post_processor", `{"type":"BertProcessing","cls":["<s>",1],"sep":["x",9999]}`), ErrInvalid, "post_processor.sep"},
		"template of strange":  {part("post_processor", `{"type":"TemplateProcessing","single":[{"SpecialToken":{"id":"x"}}]}`), ErrInvalid, "post_processor.single"},
		"template of nothing":  {part("post_processor", `{"type":"TemplateProcessing","single":[]}`), ErrUnsupported, "post_processor.single"},
		"added elsewhere":      {part("added_tokens", `[{"id":5,"content":"<unk>"}]`), ErrInvalid, "<unk>"},
		"added over another":   {part("added_tokens", `[{"id":5,"content":"<new>"}]`), ErrInvalid, "<new>"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := ParseJSON(edited(t, c.edit))
			if !errors.Is(err, c.is) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("got  %v\nwant %v that says %s", err, c.is, c.says)
			}
		})
	}
}

func TestGGUFRefused(t *testing.T) {
	h, err := weights.Read(fixture.Model("stories260K/stories260K-f16.gguf"))
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		field string
		value any
		is    error
	}{
		"unigram":         {"tokenizer.ggml.model", "t5", ErrUnsupported},
		"no merges":       {"tokenizer.ggml.model", "gpt2", ErrInvalid},
		"unknown split":   {"tokenizer.ggml.pre", "odd", ErrUnsupported},
		"odd merge":       {"tokenizer.ggml.merges", []string{"a quux"}, ErrInvalid},
		"no tokens":       {"tokenizer.ggml.tokens", nil, ErrInvalid},
		"tokens are ints": {"tokenizer.ggml.tokens", []int32{1}, ErrInvalid},
		"fewer scores":    {"tokenizer.ggml.scores", []float32{1}, ErrInvalid},
		"unknown type":    {"tokenizer.ggml.token_type", slices.Repeat([]int32{9}, 512), ErrInvalid},
		"bytes of text":   {"tokenizer.ggml.token_type", slices.Repeat([]int32{6}, 512), ErrInvalid},
		"no bytes, unk":   {"tokenizer.ggml.token_type", slices.Repeat([]int32{1}, 512), ErrInvalid},
		"flag is text":    {"tokenizer.ggml.add_bos_token", "yes", ErrInvalid},
		"bos outside":     {"tokenizer.ggml.bos_token_id", uint32(512), ErrInvalid},
		"extra spaces":    {"tokenizer.ggml.remove_extra_whitespaces", true, ErrUnsupported},
		"charsmap":        {"tokenizer.ggml.precompiled_charsmap", []uint8{1}, ErrUnsupported},
		"long charsmap":   {"tokenizer.ggml.precompiled_charsmap", weights.Unread{Len: 240_000}, ErrUnsupported},
	} {
		t.Run(name, func(t *testing.T) {
			fields := map[string]any{}
			for k, v := range h.Fields {
				fields[k] = v
			}
			fields[c.field] = c.value
			if strings.HasSuffix(c.field, "pre") || strings.HasSuffix(c.field, "merges") {
				fields["tokenizer.ggml.model"] = "gpt2"
				delete(fields, "tokenizer.ggml.token_type")
			}
			if strings.HasSuffix(c.field, "pre") {
				fields["tokenizer.ggml.merges"] = []string{}
			}
			_, err := FromGGUF(fields)
			if !errors.Is(err, c.is) || !strings.Contains(err.Error(), "tokenizer.ggml.") {
				t.Errorf("got %v, want %v that names the field", err, c.is)
			}
		})
	}
	if tok, err := FromGGUF(nil); tok != nil || err != nil {
		t.Errorf("no tokenizer: %v, %v", tok, err)
	}
}

func TestSentencePieceRefused(t *testing.T) {
	model, err := os.ReadFile(filepath.Join(fixture.Model("stories260K/hf-f32"), "tokenizer.model"))
	if err != nil {
		t.Fatal(err)
	}
	// A field that comes again replaces the first.
	for name, c := range map[string]struct {
		model, config string
		is            error
		says          string
	}{
		"as it is":        {string(model), `{}`, nil, ""},
		"known token":     {string(model), `{"added_tokens_decoder":{"1":{"content":"<s>"}}}`, nil, ""},
		"empty":           {"", "", ErrInvalid, "no pieces"},
		"text":            {"<html>", "", ErrInvalid, "truncated"},
		"truncated":       {string(model[:3000]), "", ErrInvalid, "truncated"},
		"unigram":         {string(model) + "\x12\x02\x18\x01", "", ErrUnsupported, "model_type: unsupported tokenizer: UNIGRAM"},
		"suffix":          {string(model) + "\x12\x03\xc0\x01\x01", "", ErrUnsupported, "whitespace_as_suffix"},
		"charsmap":        {string(model) + "\x1a\x03\x12\x01x", "", ErrUnsupported, "precompiled_charsmap"},
		"extra spaces":    {string(model) + "\x1a\x02\x20\x01", "", ErrUnsupported, "remove_extra_whitespaces"},
		"no escape":       {string(model) + "\x1a\x02\x28\x00", "", ErrUnsupported, "escape_whitespaces"},
		"piece twice":     {string(model) + "\x0a\x05\x0a\x03<s>", "", ErrInvalid, `"<s>"`},
		"config broken":   {string(model), `{`, ErrInvalid, "tokenizer_config.json"},
		"unknown token":   {string(model), `{"added_tokens_decoder":{"600":{"content":"<|x|>"}}}`, ErrUnsupported, "added_tokens_decoder"},
		"token elsewhere": {string(model), `{"added_tokens_decoder":{"7":{"content":"<s>"}}}`, ErrUnsupported, "added_tokens_decoder"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := ParseSentencePiece([]byte(c.model), []byte(c.config))
			if !errors.Is(err, c.is) || err != nil && !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %v, want %v that says %s", err, c.is, c.says)
			}
		})
	}
	tok, err := ParseSentencePiece(model, []byte(`{"add_bos_token":false,"add_eos_token":true}`))
	if err != nil {
		t.Fatal(err)
	}
	same(t, "a", "around", []int32{261, 2}, tok.Encode("a", true))
}

func TestOpen(t *testing.T) {
	dir := t.TempDir()
	if _, err := Open(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("an empty folder: %v", err)
	}
	fixture.WriteFile(t, filepath.Join(dir, "m.gguf"), fixture.GGUF(nil, nil, nil))
	if _, err := Open(filepath.Join(dir, "m.gguf")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a file without a tokenizer: %v", err)
	}
	fixture.WriteFile(t, filepath.Join(dir, "tokenizer.json"), []byte("{"))
	if _, err := Open(dir); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), "tokenizer.json") {
		t.Errorf("a broken file: %v", err)
	}
}

// TestBytes compares with what the heap grows by.
func TestBytes(t *testing.T) {
	for _, name := range []string{"phi-3-mini", "mistral-v3", "gguf-vocab/ggml-vocab-phi-3.gguf", "qwen3", "cl100k", "phi-2", "bert-uncased", "gguf-vocab/ggml-vocab-mpt.gguf"} {
		path := fixture.Shared(t, "tokenizers/"+name)
		var tok *Tokenizer
		var err error
		got := heap(func() { tok, err = Open(path) })
		if err != nil {
			t.Fatal(err)
		}
		vocabulary := arch.Config{Vocabulary: tok.Size()}
		t.Logf("%s: %d bytes, %d reckoned, %d admitted", path, got, tok.Bytes(), arch.HostBytes(vocabulary))
		if reckoned := tok.Bytes(); reckoned < got*3/4 || reckoned > got*3/2 {
			t.Errorf("%s: %d bytes, %d reckoned", path, got, reckoned)
		}
		if admitted := arch.HostBytes(vocabulary); admitted < got || admitted > 4*got {
			t.Errorf("%s: %d bytes, %d admitted", path, got, admitted)
		}
	}
}

// heap is by how much f makes the heap grow.
func heap(f func()) int64 {
	var before, after runtime.MemStats
	collect := func() { // twice, for what pools keep
		runtime.GC()
		runtime.GC()
	}
	collect()
	runtime.ReadMemStats(&before)
	f()
	collect()
	runtime.ReadMemStats(&after)
	return int64(after.HeapAlloc) - int64(before.HeapAlloc)
}

// TestLargestJSON wants bounded memory for the worst tokenizer that is read.
func TestLargestJSON(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds")
	}
	var b strings.Builder
	b.WriteString(`{"decoder":{"type":"Sequence","decoders":[{"type":"ByteFallback"},{"type":"Fuse"}]},"model":{"type":"BPE","merges":["a b"`)
	b.WriteString(strings.Repeat(`,"a b"`, maxVocabulary-1))
	b.WriteString(`],"vocab":{"a":0,"b":1,"ab":2`)
	for i := range maxVocabulary - 3 {
		fmt.Fprintf(&b, `,"token %028d":%d`, i, i+3)
	}
	b.WriteString("}}}")
	text := []byte(b.String())
	b.Reset()
	if len(text) > maxFile {
		t.Fatalf("%d bytes", len(text))
	}
	var tok *Tokenizer
	var err error
	kept := heap(func() { tok, err = ParseJSON(text) })
	if err != nil || tok.Size() != maxVocabulary || kept > 192<<20 {
		t.Errorf("%d bytes are kept of %d; %v", kept, len(text), err)
	}
	t.Logf("%d MiB of JSON, %d MiB kept", len(text)>>20, kept>>20)
	runtime.KeepAlive(text)
}

// FuzzEncode wants every text back, whatever it is, from every format, and
// the same from a stream.
func FuzzEncode(f *testing.F) {
	all := ours(f)
	var err error
	if all["bytes"], err = ParseJSON(byteLevel(f)); err != nil {
		f.Fatal(err)
	}
	for _, text := range []string{"", " ", "Once upon a time", "Zoë 😀\n\t", "<s>x</s>", "\xff\xfe", "▁ ▁", "<0x0A>", "  a  "} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		if strings.Contains(text, space) || strings.Contains(text, "<unk>") || strings.Contains(text, "s>") || strings.Contains(text, "<|x|>") {
			return // come back as a space, or are special
		}
		want := lossy([]byte(text), false)
		for from, tok := range all {
			ids := tok.Encode(text, true)
			if got := tok.Decode(ids, false); got != want {
				t.Errorf("%s: %q came back as %q", from, text, got)
			}
			s, got := tok.Stream(false), ""
			for _, id := range ids {
				pushed := s.Push(id)
				if !utf8.ValidString(pushed) {
					t.Errorf("%s: %q: half a character %q", from, text, pushed)
				}
				got += pushed
			}
			if got += s.Flush(); got != want {
				t.Errorf("%s: %q streamed as %q", from, text, got)
			}
		}
	})
}

// FuzzDecode wants valid text from any ids, and the same from a stream where
// Decode keeps what is valid.
func FuzzDecode(f *testing.F) {
	all := ours(f)
	var err error
	if all["bytes"], err = ParseJSON(byteLevel(f)); err != nil {
		f.Fatal(err)
	}
	f.Add([]byte{1, 100, 150, 200, 255, 30, 3, 4})
	f.Fuzz(func(t *testing.T, raw []byte) {
		ids := make([]int32, len(raw))
		for i, b := range raw {
			ids[i] = int32(b)*2 - 3
		}
		for from, tok := range all {
			s, got := tok.Stream(false), ""
			for _, id := range ids {
				got += s.Push(id)
			}
			got += s.Flush()
			want := tok.Decode(ids, false)
			if !utf8.ValidString(want) || !utf8.ValidString(got) {
				t.Errorf("%s: %v: %q, %q", from, ids, want, got)
			}
			if !tok.decoder.wholeRuns && got != want {
				t.Errorf("%s: %v: decoded %q, streamed %q", from, ids, want, got)
			}
		}
	})
}

// FuzzParse starts from small files: with whole ones, the fuzzer spends its time
// on making what it has found smaller.
func FuzzParse(f *testing.F) {
	const json = `{"added_tokens":[{"id":0,"content":"<unk>","special":true},{"id":1,"content":"<s>","special":true}],` +
		`"normalizer":{"type":"Sequence","normalizers":[{"type":"Prepend","prepend":"▁"},{"type":"Replace","pattern":{"String":" "},"content":"▁"}]},` +
		`"post_processor":{"type":"TemplateProcessing","single":[{"SpecialToken":{"id":"<s>","type_id":0}},{"Sequence":{"id":"A","type_id":0}}],` +
		`"special_tokens":{"<s>":{"id":"<s>","ids":[1],"tokens":["<s>"]}}},` +
		`"decoder":{"type":"Sequence","decoders":[{"type":"Replace","pattern":{"String":"▁"},"content":" "},{"type":"ByteFallback"},{"type":"Fuse"},{"type":"Strip","content":" ","start":1,"stop":0}]},` +
		`"model":{"type":"BPE","unk_token":"<unk>","fuse_unk":true,"vocab":{"<unk>":0,"<s>":1,"<0x0A>":2,"▁":3,"a":4,"▁a":5},"merges":["▁ a"]}}`
	pieces, err := os.ReadFile(filepath.Join(fixture.Model("stories260K/hf-f32"), "tokenizer.model"))
	if err != nil {
		f.Fatal(err)
	}
	pieces = slices.Concat(pieces[:45], pieces[len(pieces)-61:])                      // the first three of its 512 pieces, then the last and what follows it
	pieces = bytes.Replace(pieces, []byte("\x98\x02\x01"), []byte("\x98\x02\x00"), 1) // no byte_fallback: that needs 256 more
	if tok, err := ParseJSON([]byte(json)); err != nil || tok.Size() != 6 {
		f.Fatal(err)
	}
	if _, err := ParseSentencePiece(pieces, nil); err != nil || len(pieces) > 1000 {
		f.Fatal(len(pieces), err)
	}
	f.Add([]byte(json))
	f.Add(pieces)
	f.Add([]byte("\x0a\x05\x0a\x03<s>\x12\x02\x18\x02\x1a\x02\x20\x00"))
	f.Add([]byte("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\n##b\n"))
	f.Add([]byte(`{"tokenizer_class":"BertTokenizer","do_lower_case":false,"unk_token":{"content":"[UNK]"},"strip_accents":true}`))
	f.Add([]byte(`{"normalizer":{"type":"BertNormalizer","lowercase":true},"pre_tokenizer":{"type":"Sequence","pretokenizers":[{"type":"Punctuation","behavior":"Contiguous"},{"type":"ByteLevel"},{"type":"Digits","individual_digits":true},{"type":"Split","pattern":{"Regex":"\\s+(?!\\S)"},"behavior":"MergedWithNext","invert":true}]},` +
		`"decoder":{"type":"ByteLevel"},"post_processor":{"type":"RobertaProcessing","cls":["a",0],"sep":["b",1]},"model":{"type":"BPE","vocab":{"a":0,"b":1,"ab":2},"merges":[["a","b"]]}}`))
	f.Add([]byte(`{"pre_tokenizer":{"type":"Metaspace","replacement":"_","prepend_scheme":"first"},"decoder":{"type":"WordPiece","prefix":"##","cleanup":true},"model":{"type":"WordPiece","unk_token":"u","vocab":{"u":0,"_a":1,"##b":2}}}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		for _, parse := range []func() (*Tokenizer, error){
			func() (*Tokenizer, error) { return ParseJSON(text) },
			func() (*Tokenizer, error) { return ParseSentencePiece(text, nil) },
			func() (*Tokenizer, error) { return ParseBERT(text, nil) },
			func() (*Tokenizer, error) { return ParseBERT([]byte("[UNK]\n[CLS]\n[SEP]\na\n##b"), text) },
		} {
			start := time.Now()
			tok, err := parse()
			if d := time.Since(start); d > 5*time.Second {
				t.Errorf("%d bytes in %v", len(text), d)
			}
			if err != nil {
				if !errors.Is(err, ErrInvalid) && !errors.Is(err, ErrUnsupported) {
					t.Errorf("an error of no kind: %v", err)
				}
				continue
			}
			for _, id := range tok.Encode("a <s> 😀\xff", true) {
				if id < 0 || int(id) >= tok.Size() {
					t.Errorf("id %d of %d", id, tok.Size())
				}
			}
		}
	})
}

// FuzzGGUF wants a tokenizer, or an error of a known kind, from any fields; lists are lines.
func FuzzGGUF(f *testing.F) {
	f.Add("gpt2", "llama-bpe", "a\nb\nab\nĠ", "a b\nĠ a", []byte{1, 1, 1, 1}, "a ab")
	f.Add("llama", "default", "<unk>\n<s>\n</s>\n▁a\na", "", []byte{2, 3, 3, 1, 1}, " a</s>")
	f.Add("bert", "jina", "[PAD]\n[UNK]\n▁a\nb", "", []byte{3, 3, 1, 1}, "ab é")
	f.Fuzz(func(t *testing.T, model, pre, tokens, merges string, types []byte, text string) {
		fields := map[string]any{"tokenizer.ggml.model": model, "tokenizer.ggml.pre": pre, "tokenizer.ggml.tokens": strings.Split(tokens, "\n"), "tokenizer.ggml.merges": strings.Split(merges, "\n")}
		list, scores := []int32{}, []float32{}
		for _, b := range types {
			list, scores = append(list, int32(b)), append(scores, -float32(b))
		}
		fields["tokenizer.ggml.token_type"], fields["tokenizer.ggml.scores"] = list, scores
		for _, name := range []string{"bos", "eos", "unknown", "seperator", "cls"} {
			fields["tokenizer.ggml."+name+"_token_id"] = uint32(len(text) % (len(list) + 1))
		}
		tok, err := FromGGUF(fields)
		if err != nil {
			if !errors.Is(err, ErrInvalid) && !errors.Is(err, ErrUnsupported) {
				t.Errorf("an error of no kind: %v", err)
			}
			return
		}
		ids := tok.Encode(text, true)
		for _, id := range ids {
			if id < 0 || int(id) >= tok.Size() {
				t.Errorf("id %d of %d", id, tok.Size())
			}
		}
		if !utf8.ValidString(tok.Decode(ids, true)) {
			t.Error("not text")
		}
	})
}

// BenchmarkEncode is of English text with lists and code.
func BenchmarkEncode(b *testing.B) {
	text, err := os.ReadFile(filepath.Join(fixture.Root(), "docs", "architecture.md"))
	if err != nil {
		b.Fatal(err)
	}
	for _, name := range []string{"qwen3", "cl100k", "phi-3-mini", "mistral-v3", "bert-uncased", "gguf-vocab/ggml-vocab-falcon.gguf"} {
		tok := opened(b, fixture.Shared(b, "tokenizers/"+name))
		b.Run(strings.TrimSuffix(filepath.Base(name), ".gguf"), func(b *testing.B) {
			b.SetBytes(int64(len(text)))
			ids := 0
			for b.Loop() {
				ids += len(tok.Encode(string(text), false))
			}
			b.ReportMetric(float64(ids)/b.Elapsed().Seconds(), "tokens/s")
		})
	}
}

// BenchmarkOpen reads files with a vocabulary of 151,669 tokens.
func BenchmarkOpen(b *testing.B) {
	path := fixture.Shared(b, "tokenizers/qwen3")
	for b.Loop() {
		if _, err := Open(path); err != nil {
			b.Fatal(err)
		}
	}
}
