package tokenizer

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"

	"github.com/estiba/estiba/internal/fixture"
	"github.com/estiba/estiba/runtime/tokenizer/pattern"
)

// TestParts compares with the library that tokenizer.json is of: parts of many kinds, put
// into real files.
func TestParts(t *testing.T) {
	var golden struct {
		Texts    []string `json:"texts"`
		Variants []struct {
			Name    string                     `json:"name"`
			Base    string                     `json:"base"`
			Edit    map[string]json.RawMessage `json:"edit"`
			IDs     [][]int32                  `json:"ids"`
			Decoded []string                   `json:"decoded"`
		} `json:"variants"`
	}
	readJSON(t, filepath.Join("testdata", "parts.json"), &golden)
	bases := map[string]*file{}
	for _, v := range golden.Variants {
		t.Run(v.Name, func(t *testing.T) {
			if bases[v.Base] == nil {
				bases[v.Base] = &file{}
				readJSON(t, filepath.Join(fixture.Shared(t, "tokenizers/"+v.Base), "tokenizer.json"), bases[v.Base])
			}
			f := *bases[v.Base]
			model := *f.Model
			if f.Model = &model; model.MaxChars != nil { // decoding writes where it points
				model.MaxChars = new(*model.MaxChars)
			}
			for key, value := range v.Edit {
				into := map[string]any{
					"model": &model.modelHead, "normalizer": &f.Normalizer, "pre_tokenizer": &f.PreTokenizer, "decoder": &f.Decoder, "post_processor": &f.PostProcessor,
				}[key]
				if key == "added" {
					f.AddedTokens = slices.Clone(f.AddedTokens)
					into = &f.AddedTokens
				}
				if err := json.Unmarshal(value, into); err != nil {
					t.Fatal(key, err)
				}
			}
			tok, err := f.tokenizer()
			if err != nil {
				t.Fatal(err)
			}
			for i, text := range golden.Texts {
				same(t, text, "ids", v.IDs[i], tok.Encode(text, true))
				same(t, text, "decoded", v.Decoded[i], tok.Decode(v.IDs[i], false))
				checkStream(t, tok, v.IDs[i])
			}
		})
	}
}

// checkStream wants a stream to give what Decode does, in whole characters.
func checkStream(t *testing.T, tok *Tokenizer, ids []int32) {
	t.Helper()
	for _, special := range []bool{false, true} {
		s, got := tok.Stream(special), ""
		for _, id := range ids {
			pushed := s.Push(id)
			if !utf8.ValidString(pushed) {
				t.Errorf("%v: half a character %q", ids, pushed)
			}
			got += pushed
		}
		if got += s.Flush(); !tok.decoder.wholeRuns || !strings.Contains(got, replacement) {
			same(t, fmt.Sprint(ids), "streamed", tok.Decode(ids, special), got)
		}
	}
}

// some is a random text of what is hard: marks, scripts, spaces, runs, tokens.
func some(r *rand.Rand, tokens ...string) string {
	var b strings.Builder
	pick := func(s string) string {
		runes := []rune(s)
		return string(runes[r.IntN(len(runes))])
	}
	for range r.IntN(25) {
		one := ""
		switch r.IntN(12) {
		case 0, 1, 2:
			one = []string{"the", "of", "Once", "upon", "time", "Hello", "don't", "WE'LL", "x86", "HTTPServer"}[r.IntN(10)]
		case 3:
			one = pick("0123456789½²Ⅷ٣")
		case 4:
			one = pick("!\"#$%&'()*+,-./:;<=>?@[]^_`{|}~。、¿")
		case 5:
			one = pick(" \t\n\r\u00a0\u3000\u2028\v\f\u200b")
		case 6:
			one = pick("éüßÅİıſΣς") + pick("\u0301\u0323\u0307\u0308\u064b\u20dd")
		case 7:
			one = string(rune(0xac00 + r.IntN(11172)))
		case 8:
			one = string(rune(0x4e00 + r.IntN(0x5000)))
		case 9:
			one = pick("😀👩🏽\u200d\ufe0fहिन्ไม่مرحبا")
		case 10:
			one = string(rune(r.IntN(0x30000)))
		default:
			if len(tokens) > 0 {
				one = tokens[r.IntN(len(tokens))]
			}
		}
		if r.IntN(6) == 0 {
			one = strings.Repeat(one, 1+r.IntN(70))
		}
		b.WriteString(one)
		if r.IntN(3) == 0 {
			b.WriteByte(' ')
		}
	}
	return strings.ToValidUTF8(b.String(), "?")
}

// TestEncodeTwins compares with the definition: pairs merged one by one, parts not
// cut into words, bytes written as the characters of GPT-2's alphabet.
func TestEncodeTwins(t *testing.T) {
	for _, name := range []string{"qwen3", "phi-2", "cl100k", "phi-3-mini", "mistral-v3"} {
		tok := opened(t, fixture.Shared(t, "tokenizers/"+name))
		slow := *tok
		slow.model = slowModel{tok}
		r := rand.New(rand.NewPCG(3, 4))
		for range 400 {
			text := some(r, "<|endoftext|>", "<|im_start|>", "<s>", "▁", "  ")
			same(t, name+": "+text, "ids", slow.Encode(text, true), tok.Encode(text, true))
			checkStream(t, tok, tok.Encode(text, true))
		}
	}
}

// slowModel merges the pair of the lowest turn, the leftmost first, until there is none.
type slowModel struct{ t *Tokenizer }

func (slowModel) memory() int64 { return 0 }

func (s slowModel) encode(part string, ids []int32) []int32 {
	var symbols []string
	turn := func(a, b string) (float64, bool) { return 0, false }
	find := s.t.find
	bytes := noBytes
	switch m := s.t.model.(type) {
	case *bpe:
		bytes = m.bytes
		if id, ok := m.find(part); ok && m.wholes {
			return append(ids, id)
		}
		turn = func(a, b string) (float64, bool) {
			x, okA := m.find(a)
			y, okB := m.find(b)
			now, id := m.pairs.turn(x, y)
			return float64(now), okA && okB && now != never && m.pieces[id].key == a+b
		}
		if m.byteLevel {
			for i := range len(part) {
				symbols = append(symbols, part[i:i+1])
			}
		}
	case *scored:
		bytes = m.bytes
		turn = func(a, b string) (float64, bool) {
			id, ok := m.find(a + b)
			if !ok {
				return 0, false
			}
			return -float64(m.scores[id]), true
		}
	}
	if symbols == nil {
		for _, r := range part {
			symbols = append(symbols, string(r))
		}
	}
	for {
		best, at := 0.0, -1
		for i := 0; i+1 < len(symbols); i++ {
			if now, ok := turn(symbols[i], symbols[i+1]); ok && (at < 0 || now < best) {
				best, at = now, i
			}
		}
		if at < 0 {
			break
		}
		symbols = slices.Replace(symbols, at, at+2, symbols[at]+symbols[at+1])
	}
	for _, s := range symbols {
		if id, ok := find(s); ok {
			ids = append(ids, id)
			continue
		}
		for _, b := range []byte(s) {
			ids = append(ids, bytes[b])
		}
	}
	return ids
}

func TestForms(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	for _, f := range []norm.Form{norm.NFC, norm.NFD, norm.NFKC, norm.NFKD} {
		for range 1000 {
			text := some(r)
			if want := f.String(text); !strings.Contains(want, "\u034f") { // not many marks in a row
				same(t, text, fmt.Sprint("form ", f), want, slowForm(f, text))
			}
		}
		marks := "a" + strings.Repeat("\u0301\u0323", 100)
		same(t, marks, "no joiner", slowForm(f, marks), form(f)(marks, whole))
		if strings.Contains(form(f)(marks, whole), "\u034f") {
			t.Errorf("form %d: a joiner", f)
		}
	}
}

// TestAddedTwin compares with trying all tokens at all places.
func TestAddedTwin(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 8))
	for range 3000 {
		var tokens []addedText
		for i := range 1 + r.IntN(6) {
			text := ""
			for range 1 + r.IntN(4) {
				text += []string{"a", "b", " ", "<"}[r.IntN(4)]
			}
			if !slices.ContainsFunc(tokens, func(t addedText) bool { return t.text == text }) {
				tokens = append(tokens, addedText{text: text, id: int32(i), control: r.IntN(2) == 0})
			}
		}
		a := newAdded(tokens)
		text := ""
		for range r.IntN(20) {
			text += []string{"a", "b", " ", "<", "é"}[r.IntN(5)]
		}
		var users plain
		for at := r.IntN(5); at < len(text); at += 1 + r.IntN(6) {
			end := min(at+1+r.IntN(4), len(text))
			users = append(users, [2]int{at, end})
			at = end
		}
		var got, want []string
		a.split(text, users, func(part string, _ int, id int32) { got = append(got, fmt.Sprint(id, part)) })
		rest := ""
		flush := func() {
			if rest != "" {
				want = append(want, fmt.Sprint(noID, rest))
				rest = ""
			}
		}
		for i := 0; i < len(text); {
			best := -1
			for k, token := range tokens {
				free := true
				for _, u := range users {
					free = free && (i+len(token.text) <= u[0] || u[1] <= i)
				}
				if strings.HasPrefix(text[i:], token.text) && (free || !token.control) && (best < 0 || len(token.text) > len(tokens[best].text)) {
					best = k
				}
			}
			if best >= 0 {
				flush()
				want = append(want, fmt.Sprint(tokens[best].id, tokens[best].text))
				i += len(tokens[best].text)
				continue
			}
			rest += text[i : i+1]
			i++
		}
		flush()
		if !slices.Equal(got, want) {
			t.Fatalf("%q, tokens %+v, users %v:\ngot  %q\nwant %q", text, tokens, users, got, want)
		}
	}
}

func TestBehaviors(t *testing.T) {
	for name, want := range map[string]string{
		"Removed": "The|final|countdown", "Isolated": "The|-|final|-|-|countdown", "MergedWithPrevious": "The-|final-|-|countdown",
		"MergedWithNext": "The|-final|-|-countdown", "Contiguous": "The|-|final|--|countdown",
	} {
		p, err := pattern.Compile("-")
		if err != nil {
			t.Fatal(err)
		}
		for _, find := range []finder{findText("-"), findPattern(p), findRunes(func(r rune) bool { return r == '-' })} {
			var got []string
			splitBy(find, behaviors[name])("The-final--countdown", true, func(part string, first bool) {
				if first != (len(got) == 0) {
					t.Errorf("%s: %q is first: %v", name, part, first)
				}
				got = append(got, part)
			})
			same(t, name, "parts", want, strings.Join(got, "|"))
		}
	}
}

// TestManyAdded: white space around added tokens, and chats of many messages, take a time that grows with the text.
func TestManyAdded(t *testing.T) {
	start := time.Now()
	blank := newAdded([]addedText{{text: " ", id: 1, lstrip: true}})
	parts := 0
	blank.split(strings.Repeat(" ", 200_000), nil, func(string, int, int32) { parts++ })
	if parts != 200_000 {
		t.Errorf("%d parts", parts)
	}
	const messages = 100_000
	tok := &Tokenizer{model: &bpe{vocabulary: &vocabulary{}, bytes: noBytes, unknown: noID},
		raw: newAdded([]addedText{{text: "<s>", id: 2}}), normalized: newAdded([]addedText{{text: "</s>", id: 1, control: true}})}
	var users [][2]int
	for i := range messages {
		users = append(users, [2]int{4*i + 3, 4*i + 4})
	}
	if n := len(tok.EncodeChat(strings.Repeat("<s>a", messages), users)); n != messages {
		t.Errorf("%d ids", n)
	}
	if took := time.Since(start); took > 5*time.Second {
		t.Error(took)
	}
}

func TestEncodeChat(t *testing.T) {
	chatml := func(user string) (string, [][2]int) {
		const front, back = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"
		return front + user + back, [][2]int{{len(front), len(front) + len(user)}}
	}
	qwen := opened(t, fixture.Shared(t, "tokenizers/qwen3"))
	for user, want := range map[string]string{
		"Hello":                 "[151644 872 198 9707 151645 198 151644 77091 198]",
		"<|im_end|>":            "[151644 872 198 27 91 318 6213 91 29 151645 198 151644 77091 198]",
		"<tool_call>":           "[151644 872 198 151657 151645 198 151644 77091 198]", // not special: as everywhere
		"<|im_end|":             "[151644 872 198 27 91 318 6213 91 151645 198 151644 77091 198]",
		"e\u0301<|fim_prefix|>": "[151644 872 198 963 27 91 69 318 13974 91 29 151645 198 151644 77091 198]",
	} {
		text, users := chatml(user)
		same(t, user, "chat", want, fmt.Sprint(qwen.EncodeChat(text, users)))
	}
	// Half of a token by a user, half by the template, is none.
	for _, id := range qwen.EncodeChat("<|im_start|>", [][2]int{{3, 5}}) {
		if id == 151644 {
			t.Error("a token of two halves")
		}
	}
	// Invalid bytes of users do not move what is theirs.
	text, users := chatml("\xff\xfe<|im_end|>\xff")
	if n := strings.Count(qwen.Decode(qwen.EncodeChat(text, users), true), replacement); n != 3 {
		t.Errorf("%d replacements", n)
	}
	count := 0
	for _, id := range qwen.EncodeChat(text, users) {
		if id == 151645 {
			count++
		}
	}
	if count != 1 {
		t.Errorf("%d ends", count)
	}

	// SentencePiece: control tokens count in a chat only, and each text has its space.
	mistral := opened(t, fixture.Shared(t, "tokenizers/mistral-v3"))
	const inst = "<s>[INST] Hello[INST][/INST]"
	same(t, inst, "chat", "[1 3 29473 23325 29560 17057 29561 4]", fmt.Sprint(mistral.EncodeChat(inst, [][2]int{{10, 21}})))
	if slices.Contains(mistral.Encode(inst, false), 3) {
		t.Error("a control token in plain text")
	}

	// Control tokens looked for in normalized text: the users' part is found again there.
	llama, err := ParseJSON(edited(t, func(f map[string]any) {
		f["added_tokens"] = []any{map[string]any{"id": 2, "content": "</s>", "special": true, "normalized": true}}
		f["normalizer"] = map[string]any{"type": "Sequence", "normalizers": []any{
			map[string]any{"type": "NFC"}, map[string]any{"type": "Replace", "pattern": map[string]any{"String": " "}, "content": "▁"},
		}}
	}))
	if err != nil {
		t.Fatal(err)
	}
	chat, mine := "a </s> ", "\u0301e\u0301  </s>"
	got := llama.EncodeChat(chat+mine+"</s>", [][2]int{{len(chat), len(chat + mine)}})
	ends := 0
	for _, id := range got {
		if id == 2 {
			ends++
		}
	}
	if ends != 2 || got[len(got)-1] != 2 {
		t.Errorf("%v", got)
	}
}

func TestTextAndTokenBytes(t *testing.T) {
	for _, c := range []struct {
		of    string
		id    int32
		text  string
		bytes string
		ok    bool
	}{
		{"qwen3", 1879, "Ġworld", " world", true}, {"qwen3", 151644, "<|im_start|>", "", false}, {"qwen3", 151657, "<tool_call>", "<tool_call>", true},
		{"qwen3", 32495, "Ġï", " \xef", true}, {"qwen3", -1, "", "", false}, {"qwen3", 1 << 30, "", "", false},
		{"phi-3-mini", 3, "<0x00>", "\x00", true}, {"phi-3-mini", 3186, "▁world", " world", true}, {"phi-3-mini", 1, "<s>", "", false},
		{"bert-uncased", 2088, "world", " world", true}, {"bert-uncased", 2075, "##ing", "ing", true}, {"bert-uncased", 1012, ".", ".", true}, {"bert-uncased", 101, "[CLS]", "", false},
		{"mistral-v3", 1, "<s>", "", false}, {"gguf-vocab/ggml-vocab-mpt.gguf", 50276, "  ", "  ", true}, {"gguf-vocab/ggml-vocab-bert-bge.gguf", 2088, "▁world", " world", true},
	} {
		tok := opened(t, fixture.Shared(t, "tokenizers/"+c.of))
		bytes, ok := tok.TokenBytes(c.id)
		if got := tok.Text(c.id); got != c.text || string(bytes) != c.bytes || ok != c.ok {
			t.Errorf("%s %d: %q %q %v, want %q %q %v", c.of, c.id, got, bytes, ok, c.text, c.bytes, c.ok)
		}
	}
}

func TestLossy(t *testing.T) {
	for in, want := range map[string][2]string{
		"a\xff": {"a�", "a�"}, "\xf0\x9f\x98": {"�", "���"}, "\xe2\x82é": {"�é", "��é"}, "\xed\xa0\x80": {"���", "���"}, "\xc0\x80": {"��", "��"},
		"\xf4\x90\x80": {"���", "���"}, "\xe0\xa0x": {"�x", "��x"}, "é": {"é", "é"},
	} {
		same(t, fmt.Sprintf("%q", in), "starts", want[0], lossy([]byte(in), false))
		same(t, fmt.Sprintf("%q", in), "bytes", want[1], lossy([]byte(in), true))
	}
}

func TestBERTVocabulary(t *testing.T) {
	vocab, err := os.ReadFile(filepath.Join(fixture.Shared(t, "tokenizers/bert-uncased"), "vocab.txt"))
	if err != nil {
		t.Fatal(err)
	}
	want := opened(t, fixture.Shared(t, "tokenizers/bert-uncased"))
	tok, err := ParseBERT(vocab, []byte(`{"tokenizer_class":"BertTokenizerFast","unk_token":{"content":"[UNK]"},"pad_token":null}`))
	if err != nil {
		t.Fatal(err)
	}
	r := rand.New(rand.NewPCG(9, 9))
	for range 500 {
		text := some(r, "[MASK]", "[CLS] ", "unaffable", strings.Repeat("x", 120))
		same(t, text, "ids", want.Encode(text, true), tok.Encode(text, true))
		same(t, text, "decoded", want.Decode(want.Encode(text, true), false), tok.Decode(want.Encode(text, true), false))
	}
	for config, says := range map[string]string{
		`{"tokenizer_class":"BertJapaneseTokenizer"}`: "BertJapaneseTokenizer", `{"do_basic_tokenize":false}`: "do_basic_tokenize", `{"never_split":["x"]}`: "never_split",
		`{"cls_token":"<s>"}`: "<s>", `{`: "tokenizer_config.json", `{"mask_token":7}`: "tokenizer_config.json",
	} {
		if _, err := ParseBERT(vocab, []byte(config)); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v", config, err)
		}
	}
}

// TestUnusedPieces compares with SentencePiece, for vocabularies some of whose
// pieces are unused, user-defined or bytes.
func TestUnusedPieces(t *testing.T) {
	for _, name := range []string{"unused-ud", "unused-noby"} {
		model, err := os.ReadFile(filepath.Join("testdata", name+".model"))
		if err != nil {
			t.Fatal(err)
		}
		tok, err := ParseSentencePiece(model, []byte(`{"add_bos_token":false}`))
		if err != nil {
			t.Fatal(err)
		}
		var v vectors
		readJSON(t, filepath.Join("testdata", name+".json"), &v)
		for _, c := range v.Cases {
			same(t, c.Text, name, c.IDs, tok.Encode(c.Text, true))
			same(t, c.Text, name+" decoded", c.Decoded, tok.Decode(c.IDs, false))
			checkStream(t, tok, c.IDs)
		}
	}
}
