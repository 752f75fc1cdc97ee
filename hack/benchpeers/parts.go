package main

import (
	"context"
	"fmt"
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
