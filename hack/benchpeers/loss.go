package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"github.com/estiba/estiba/runtime/backend"
	"github.com/estiba/estiba/runtime/backend/cpu"
	"github.com/estiba/estiba/runtime/batching"
	"github.com/estiba/estiba/runtime/eval"
	"github.com/estiba/estiba/runtime/model"
)

// text that is evaluated, in windows of so many tokens, the first few of them.
type text struct {
	file    string // within llama.cpp's root
	window  int
	windows int
}

// loss is what the arithmetic of both loses, against exact arithmetic on the same weights.
func loss(ctx context.Context, s *session) (string, error) {
	var b strings.Builder
	b.WriteString("KL divergence of exact arithmetic on the same weights from the way each program computes as it serves, a mean over positions in nats, and how often both have the same likeliest token, for " +
		"the same positions of the same text: the second half of each window, as `llama-perplexity --kl-divergence` has it, which prints five decimals. Estiba's exact arithmetic is that of `--exact`; llama.cpp's is that of the same weights as F32 " +
		"with an F32 cache. Windows go through the model at once, as prompts do; Estiba's also token by token, as answers do. stories260k is trained; the others have random weights, whose likeliest tokens are hardly likelier than others.\n")
	b.WriteString("\n| model | KL, Estiba | token by token | llama.cpp | same top, Estiba | token by token | llama.cpp |\n|---|---|---|---|---|---|---|\n")
	story, err := s.story(ctx)
	if err != nil {
		return "", err
	}
	few := text{file: "/tmp/few.txt", window: 64, windows: 2}
	if err := os.WriteFile(filepath.Join(s.root, few.file), []byte(strings.Repeat("the quick brown fox jumps over the lazy dog and runs away from it all day long\n", 6)), 0o644); err != nil {
		return "", err
	}
	for _, m := range trained {
		if m.bytes, err = m.make(ctx, s.root); err != nil {
			return "", err
		}
		if err := s.lossOf(ctx, &b, m, story); err != nil {
			return "", err
		}
	}
	for _, m := range s.models {
		if strings.HasPrefix(m.name, "tinyllama") {
			if err := s.lossOf(ctx, &b, m, few); err != nil {
				return "", err
			}
		}
	}
	return b.String(), nil
}

// story is a text that the trained model knows: its own.
func (s *session) story(ctx context.Context) (text, error) {
	var story []byte
	for _, prompt := range []string{"Once upon a time", "Tom and Lily", "One day, a little", "The dog"} {
		out, err := ours(ctx, "run", bundled, "--exact", "--prompt", prompt, "--max-tokens", "400", "--temperature", "0").output()
		if err != nil {
			return text{}, err
		}
		story = append(story, out...)
	}
	t := text{file: "/tmp/story.txt", window: 128, windows: 10}
	return t, os.WriteFile(filepath.Join(s.root, t.file), story, 0o644)
}

// lossOf one model on a text, as a row.
func (s *session) lossOf(ctx context.Context, b *strings.Builder, m subject, t text) error {
	say("loss, %s", m.name)
	prompt, answer, err := estibaLoss(ctx, m.path(s.root), filepath.Join(s.root, t.file), t)
	if err != nil {
		return err
	}
	kl, same, err := s.llamaLoss(ctx, m, t)
	if err != nil {
		return err
	}
	s.samples = append(s.samples,
		sample{Part: "loss", Program: estiba, Model: m.name, Figures: figures{"kl": prompt.MeanKL, "same": prompt.SameTop, "kl one by one": answer.MeanKL, "same one by one": answer.SameTop}},
		sample{Part: "loss", Program: llamaCPP, Model: m.name, Figures: figures{"kl": kl, "same": same}})
	fmt.Fprintf(b, "| %s | %.2g | %.2g | %.2g | %.1f %% | %.1f %% | %.1f %% |\n", m.name, prompt.MeanKL, answer.MeanKL, kl, 100*prompt.SameTop, 100*answer.SameTop, 100*same)
	return nil
}

// estibaLoss runs the windows exactly, as prompts, and token by token.
func estibaLoss(ctx context.Context, path, file string, t text) (prompt, answer eval.Result, err error) {
	fail := func(err error) (eval.Result, eval.Result, error) { return eval.Result{}, eval.Result{}, err }
	words, err := os.ReadFile(file)
	if err != nil {
		return fail(err)
	}
	m, err := model.Open(path)
	if err != nil {
		return fail(err)
	}
	defer m.Close()
	device, err := cpu.New("cpu-0", cpu.Options{})
	if err != nil {
		return fail(err)
	}
	defer device.Close()
	const block = 16
	limits := backend.Limits{MaxTokens: t.window, MaxRows: t.window, BlockTokens: block, Blocks: (t.window + block - 1) / block}
	var blocks []int32
	for i := range limits.Blocks {
		blocks = append(blocks, int32(i))
	}
	var programs []func(tokens []int32, at int) ([]float32, error)
	for _, exact := range []bool{true, false} {
		limits.Exact = exact
		p, err := device.Compile(ctx, m.Graph, m.Weights, limits)
		if err != nil {
			return fail(err)
		}
		defer p.Close()
		out := &backend.Out{}
		programs = append(programs, func(tokens []int32, at int) ([]float32, error) {
			span := batching.Span{Sequence: 1, Tokens: tokens, Start: at, Blocks: blocks, Rows: batching.AllRows}
			err := p.Run(ctx, batching.Batch{Spans: []batching.Span{span}}, out)
			return out.Logits, err
		})
	}
	tokens := m.Tokenizer.Encode(string(words), true)
	if len(tokens) < t.window*t.windows {
		return fail(fmt.Errorf("%s has %d tokens, too few for %d windows of %d", file, len(tokens), t.windows, t.window))
	}
	begin, v := tokens[0], m.Config.Vocabulary
	var prompts, answers eval.Sums
	for w := range t.windows {
		window := tokens[w*t.window:][:t.window]
		window[0] = begin
		reference, err := programs[0](window, 0)
		if err != nil {
			return fail(err)
		}
		together, err := programs[1](window, 0)
		if err != nil {
			return fail(err)
		}
		for i := t.window / 2; i < t.window-1; i++ {
			prompts.Add(together[i*v:(i+1)*v], reference[i*v:(i+1)*v], window[i+1])
		}
		for i := range t.window - 1 {
			alone, err := programs[1](window[i:i+1], i)
			if err != nil {
				return fail(err)
			}
			if i >= t.window/2 {
				answers.Add(alone, reference[i*v:(i+1)*v], window[i+1])
			}
		}
	}
	return prompts.Result(), answers.Result(), nil
}

// llamaLoss is the same of llama.cpp, which has the same tokens for its windows.
func (s *session) llamaLoss(ctx context.Context, m subject, t text) (kl, same float64, err error) {
	whole := subject{name: m.name + ".f32"}
	base := "/tmp/" + m.name + ".logits"
	defer os.Remove(whole.path(s.root))
	defer os.Remove(filepath.Join(s.root, base))
	if _, err := llama(ctx, s.root, "quantize", "--allow-requantize", m.inside(), whole.inside(), "F32").output(); err != nil {
		return 0, 0, err
	}
	perplexity := func(file string, args ...string) (string, error) {
		p := llama(ctx, s.root, "perplexity", append([]string{"-m", file, "-f", t.file, "-c", strconv.Itoa(t.window), "--chunks", strconv.Itoa(t.windows),
			"-t", strconv.Itoa(s.most()), "--kl-divergence-base", base}, args...)...)
		out, err := p.CombinedOutput()
		return string(out), p.failed(err, string(out))
	}
	if _, err := perplexity(whole.inside(), "-ctk", "f32", "-ctv", "f32"); err != nil {
		return 0, 0, err
	}
	// It ends before its last lines are written, mostly: what counts is the line of the last window, which has the means so far.
	line := regexp.MustCompile(fmt.Sprintf(`(?m)^ +%d +\S+ ± +\S+ +\S+ ± +\S+ +(-?[0-9.]+) ± +\S+ +\S+ ± +\S+ %% +([0-9.]+) ±`, t.windows))
	for range 3 {
		said, err := perplexity(m.inside(), "--kl-divergence")
		if err != nil {
			return 0, 0, err
		}
		means := line.FindStringSubmatch(said)
		if means == nil {
			continue
		}
		if kl, err = strconv.ParseFloat(means[1], 64); err != nil {
			return 0, 0, err
		}
		same, err = strconv.ParseFloat(means[2], 64)
		return kl, same / 100, err
	}
	return 0, 0, fmt.Errorf("llama-perplexity never says how large the divergence of %s is", m.name)
}
