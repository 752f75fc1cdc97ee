package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
)

const (
	promptTokens = 512
	decodeTokens = 64
)

func speed(ctx context.Context, s *session) (string, error) {
	for round := range s.rounds {
		for _, m := range s.models {
			for _, threads := range s.threads {
				err := s.round(ctx, "speed", "", round, nil,
					s.estibaBench(m, threads, "", "--prompt", strconv.Itoa(promptTokens), "--generate", strconv.Itoa(decodeTokens), "--batch", ""),
					s.llamaBench(m, threads, "", promptTokens, decodeTokens))
				if err != nil {
					return "", err
				}
			}
		}
	}
	var b strings.Builder
	fmt.Fprintf(&b, `A prompt of %d tokens, and %d tokens after an empty context, one by one, in tokens/s; %s, each program in its turn: median (least..most). Ratios are Estiba's to llama.cpp's, medians of those of
each round. *Of the roof* is what decoding reads in a second (weights as stored, and KV cache) of what as many threads read from memory at all in the same round. *Others* is the most that
other processes took during a run that counts, in processors; %s.

| model | threads | prompt, Estiba | llama.cpp | ratio | decode, Estiba | llama.cpp | ratio | of the roof, Estiba | llama.cpp | roof GB/s | others |
|---|---|---|---|---|---|---|---|---|---|---|---|
`, promptTokens, decodeTokens, rounds(s.rounds), s.repeated("speed"))
	for _, m := range s.models {
		for _, threads := range s.threads {
			a, l := s.of("speed", "", m.name, threads, estiba), s.of("speed", "", m.name, threads, llamaCPP)
			share := func(of []sample) string {
				return percent(each(len(a), func(i int) float64 { return a[i].Figures["bytes"] * of[i].Figures["decode"] / a[i].Figures["roof"] }))
			}
			fmt.Fprintf(&b, "| %s | %d | %s | %s | %s | %s | %s | %s | %s | %s | %.1f | %.2f |\n", m.name, threads,
				spread(values(a, "prompt")), spread(values(l, "prompt")), ratio(a, l, "prompt"),
				spread(values(a, "decode")), spread(values(l, "decode")), ratio(a, l, "decode"),
				share(a), share(l), median(values(a, "roof"))/1e9, most(a, l))
		}
	}
	return b.String(), nil
}

var batchSizes = []int{1, 2, 4, 8}

func batch(ctx context.Context, s *session) (string, error) {
	threads := s.most()
	var models []subject
	for _, m := range s.models {
		if m.batch {
			models = append(models, m)
		}
	}
	for round := range s.rounds {
		for _, m := range models {
			err := s.round(ctx, "batch", "", round, nil,
				s.estibaBench(m, threads, "", "--prompt", "0", "--generate", strconv.Itoa(decodeTokens), "--batch", list(batchSizes)),
				s.llamaBatch(m, threads, decodeTokens, batchSizes))
			if err != nil {
				return "", err
			}
		}
	}
	var b strings.Builder
	fmt.Fprintf(&b, `Sequences continued together, from an empty context (llama.cpp's from one token), %d tokens each, %d threads: tokens/s of all together, %s, median (least..most).
`, decodeTokens, threads, rounds(s.rounds))
	b.WriteString("\n| model | sequences | Estiba | of one | llama.cpp | of one | ratio | others |\n|---|---|---|---|---|---|---|---|\n")
	for _, m := range models {
		a, l := s.of("batch", "", m.name, threads, estiba), s.of("batch", "", m.name, threads, llamaCPP)
		gain := func(of []sample, size int) float64 {
			return median(each(len(of), func(i int) float64 { return of[i].Figures[batchOf(size)] / of[i].Figures[batchOf(1)] }))
		}
		for _, size := range batchSizes {
			name := batchOf(size)
			fmt.Fprintf(&b, "| %s | %d | %s | %.2f | %s | %.2f | %s | %.2f |\n", m.name, size,
				spread(values(a, name)), gain(a, size), spread(values(l, name)), gain(l, size), ratio(a, l, name), most(a, l))
		}
	}
	return b.String(), nil
}

func start(ctx context.Context, s *session) (string, error) {
	threads := s.most()
	for round := range s.rounds {
		for _, m := range s.models {
			if err := s.round(ctx, "start", "", round, nil, s.estibaStart(m), s.llamaStart(m, threads)); err != nil {
				return "", err
			}
		}
	}
	var b strings.Builder
	fmt.Fprintf(&b, "From the start of the process (`estiba run`; `llama-completion --no-warmup -c 512`) to the first byte of its answer, files in the page cache, all processors, %s: seconds, median (least..most). "+
		"Memory is the most there was, %d tokens later, as a multiple of the file; in brackets what no file backs.\n", rounds(s.rounds), startTokens)
	b.WriteString("\n| model | file MB | first token, Estiba | llama.cpp | ratio | resident, Estiba | llama.cpp | others |\n|---|---|---|---|---|---|---|---|\n")
	for _, m := range s.models {
		a, l := s.of("start", "", m.name, 0, estiba), s.of("start", "", m.name, threads, llamaCPP)
		memory := func(of []sample) string {
			return fmt.Sprintf("%.2f (%.2f)", median(values(of, "resident"))/float64(m.bytes), median(values(of, "anonymous"))/float64(m.bytes))
		}
		fmt.Fprintf(&b, "| %s | %.0f | %s | %s | %s | %s | %s | %.2f |\n", m.name, float64(m.bytes)/1e6,
			spread(values(a, "first")), spread(values(l, "first")), ratio(a, l, "first"), memory(a), memory(l), most(a, l))
	}
	return b.String(), nil
}

// Tokens of a run beside a load, which may be slow.
const (
	loadPrompt = 64
	loadDecode = 32
)

// load is what both do while others want the processors, or where they may not have all.
func load(ctx context.Context, s *session) (string, error) {
	threads := s.most()
	m := s.models[0]
	for _, one := range s.models {
		if one.name == "tinyllama-q8_0" {
			m = one
		}
	}
	group, remove, none := quota()
	if none != nil {
		say("no quota: %v", none)
	} else {
		defer remove()
	}
	type situation struct {
		name  string
		hogs  int
		group string
		own   int // threads of Estiba; 0: as many as it takes
	}
	all := []situation{
		{"alone", 0, "", threads},
		{"a hog on one processor", 1, "", threads},
		{fmt.Sprintf("a hog on each of %d", threads), threads, "", threads},
	}
	if none == nil {
		all = append(all, situation{"a quota of one processor", 0, group, 0})
	}
	one := func(round int, c situation) error {
		used, stop, err := hogs(c.hogs)
		if err != nil {
			return err
		}
		defer stop()
		actions := []action{
			s.estibaBench(m, c.own, c.group, "--prompt", strconv.Itoa(loadPrompt), "--generate", strconv.Itoa(loadDecode), "--batch", ""),
			s.llamaBench(m, threads, c.group, loadPrompt, loadDecode),
		}
		if c.group != "" && threads > 1 {
			actions = append(actions, s.llamaBench(m, 1, c.group, loadPrompt, loadDecode))
		}
		return s.round(ctx, "load", c.name, round, used, actions...)
	}
	for round := range s.rounds {
		for _, c := range all {
			if err := one(round, c); err != nil {
				return "", err
			}
		}
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s, a prompt of %d and %d tokens after it, in tokens/s, %s: median (least..most), and the share of what the program does alone in the same round. A hog is a process that is "+
		"always busy and bound to its processor.\n", m.name, loadPrompt, loadDecode, rounds(s.rounds))
	b.WriteString("\n| | program | threads | prompt | of alone | decode | of alone |\n|---|---|---|---|---|---|---|\n")
	for _, c := range all {
		row := func(program string, asked int) {
			of, alone := s.of("load", c.name, m.name, asked, program), s.of("load", "alone", m.name, threads, program)
			share := func(name string) float64 {
				return median(each(len(of), func(i int) float64 { return of[i].Figures[name] / alone[i].Figures[name] }))
			}
			fmt.Fprintf(&b, "| %s | %s | %.0f | %s | %.2f | %s | %.2f |\n", c.name, program, median(values(of, "threads")),
				spread(values(of, "prompt")), share("prompt"), spread(values(of, "decode")), share("decode"))
		}
		row(estiba, c.own)
		row(llamaCPP, threads)
		if c.group != "" && threads > 1 {
			row(llamaCPP, 1)
		}
	}
	if none != nil {
		fmt.Fprintf(&b, "\nNo quota could be set: %v.\n", none)
	}
	return b.String(), nil
}

// loss is what the arithmetic of both loses, against exact arithmetic on the same weights.
func loss(ctx context.Context, s *session) (string, error) {
	var b strings.Builder
	b.WriteString("KL divergence of exact arithmetic on the same weights from the way each program computes as it serves, a mean over positions in nats, and how often both have the same likeliest token. " +
		"Estiba: `estiba eval --as-served` with the file as its own reference, all positions of the text. llama.cpp: `llama-perplexity --kl-divergence` against the same weights as F32 with an F32 cache, the second half of each window, as it does it. " +
		"stories260k is trained; the others have random weights, whose likeliest tokens are hardly likelier than others.\n")
	b.WriteString("\n| model | KL, Estiba | llama.cpp | same top, Estiba | llama.cpp |\n|---|---|---|---|---|\n")
	text, err := s.story(ctx)
	if err != nil {
		return "", err
	}
	for _, m := range trained {
		if m.bytes, err = m.make(ctx, s.root); err != nil {
			return "", err
		}
		if err := s.lossOf(ctx, &b, m, text, 128); err != nil {
			return "", err
		}
	}
	few := filepath.Join(s.root, "tmp", "few.txt")
	if err := os.WriteFile(few, []byte(strings.Repeat("the quick brown fox jumps over the lazy dog and runs away from it all day long\n", 4)), 0o644); err != nil {
		return "", err
	}
	for _, m := range s.models {
		if strings.HasPrefix(m.name, "tinyllama") {
			if err := s.lossOf(ctx, &b, m, few, 64); err != nil {
				return "", err
			}
		}
	}
	return b.String(), nil
}

// story is a text that the trained model knows: its own.
func (s *session) story(ctx context.Context) (string, error) {
	var text []byte
	for _, prompt := range []string{"Once upon a time", "Tom and Lily", "One day, a little", "The dog"} {
		out, err := ours(ctx, "run", bundled, "--exact", "--prompt", prompt, "--max-tokens", "400", "--temperature", "0").output()
		if err != nil {
			return "", err
		}
		text = append(text, out...)
	}
	path := filepath.Join(s.root, "tmp", "story.txt")
	return path, os.WriteFile(path, text, 0o644)
}

// lossOf one model on a text, llama.cpp in windows of so many tokens.
func (s *session) lossOf(ctx context.Context, b *strings.Builder, m subject, text string, window int) error {
	say("loss, %s", m.name)
	out, err := ours(ctx, "eval", m.path(s.root), "--reference", m.path(s.root), "--text", text, "--as-served", "--json").output()
	if err != nil {
		return err
	}
	var own struct {
		KL   float64 `json:"mean_kl"`
		Same float64 `json:"same_top"`
	}
	if err := json.Unmarshal(out, &own); err != nil {
		return err
	}
	whole := subject{name: m.name + ".f32"}
	base := "/tmp/" + m.name + ".logits"
	defer os.Remove(whole.path(s.root))
	defer os.Remove(filepath.Join(s.root, base))
	if _, err := llama(ctx, s.root, "quantize", "--allow-requantize", m.inside(), whole.inside(), "F32").output(); err != nil {
		return err
	}
	perplexity := func(file string, args ...string) (string, error) {
		p := llama(ctx, s.root, "perplexity", append([]string{"-m", file, "-f", "/tmp/" + filepath.Base(text), "-c", strconv.Itoa(window), "-t", strconv.Itoa(s.most()),
			"--kl-divergence-base", base}, args...)...)
		out, err := p.CombinedOutput()
		return string(out), p.failed(err, string(out))
	}
	if _, err := perplexity(whole.inside(), "-ctk", "f32", "-ctv", "f32"); err != nil {
		return err
	}
	// What llama-perplexity says at its end is lost now and then, as it ends before it has written all.
	var kl, same string
	for try := 0; same == ""; try++ {
		said, err := perplexity(m.inside(), "--kl-divergence")
		if err != nil {
			return err
		}
		if try == 20 {
			return fmt.Errorf("llama-perplexity never says how large the divergence is, but %q", said)
		}
		kl, same = word(`Mean +KLD: +(-?[0-9.]+)`, said), word(`Same top p: +([0-9.]+)`, said)
	}
	peer := [2]float64{}
	for i, text := range []string{kl, same} {
		if peer[i], err = strconv.ParseFloat(text, 64); err != nil {
			return err
		}
	}
	s.samples = append(s.samples,
		sample{Part: "loss", Program: estiba, Model: m.name, Figures: figures{"kl": own.KL, "same": own.Same}},
		sample{Part: "loss", Program: llamaCPP, Model: m.name, Figures: figures{"kl": peer[0], "same": peer[1] / 100}})
	fmt.Fprintf(b, "| %s | %.2g | %.2g | %.1f %% | %.1f %% |\n", m.name, own.KL, peer[0], 100*own.Same, peer[1])
	return nil
}

// word that a pattern has in brackets; empty if it is not there.
func word(pattern, text string) string {
	found := regexp.MustCompile(pattern).FindStringSubmatch(text)
	if found == nil {
		return ""
	}
	return found[1]
}
