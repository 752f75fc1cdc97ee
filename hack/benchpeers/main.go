// Command benchpeers measures bin/estiba and llama.cpp on the same files, in turns, and
// writes what came out as tables: to standard output, and a full measurement to
// docs/benchmarks.md. hack/bench-peers.sh gets what it needs and starts it.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/estiba/estiba/runtime/device"
)

const page = "docs/benchmarks.md"

// part of the measurement: a section of the page.
type part struct {
	name    string
	measure func(context.Context, *session) (string, error) // a section in Markdown
}

var parts = []part{{"speed", speed}, {"batch", batch}, {"start", start}, {"load", load}, {"loss", loss}}

// session is what all parts share.
type session struct {
	root    string // of llama.cpp
	models  []subject
	threads []int
	rounds  int
	quiet   float64  // processors that others may take during a run
	samples []sample // all there were, in their order
}

func main() {
	if len(os.Args) == 3 && os.Args[1] == "hog" {
		hog(os.Args[2])
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		if ctx.Err() != nil {
			err = errors.New("interrupted")
		}
		fmt.Fprintln(os.Stderr, "bench-peers:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	s := &session{}
	flag.StringVar(&s.root, "root", "", "folder that llama.cpp is unpacked in")
	flag.IntVar(&s.rounds, "rounds", 3, "how often each program has its turn")
	flag.Float64Var(&s.quiet, "quiet", 0.2, "processors that others may take during a run that counts")
	models := flag.String("models", "", "which models; default: all")
	only := flag.String("parts", "", "which parts; default: all")
	threads := flag.String("threads", "", "numbers of threads; default: 1 and all processors")
	samples := flag.String("json", "", "file for every sample")
	write := flag.Bool("write", false, "write to "+page+" what is no full measurement, too")
	flag.Parse()
	full := *models == "" && *threads == "" && s.rounds >= 3

	var err error
	if s.models, err = choose(*models, subjects, func(m subject) string { return m.name }); err != nil {
		return err
	}
	chosen, err := choose(*only, parts, func(p part) string { return p.name })
	if err != nil {
		return err
	}
	if s.threads, err = numbers(*threads); err != nil {
		return err
	}
	for i, m := range s.models {
		if s.models[i].bytes, err = m.make(ctx, s.root); err != nil {
			return fmt.Errorf("make %s: %w", m.name, err)
		}
	}
	versions, err := s.versions(ctx)
	if err != nil {
		return err
	}
	for _, p := range chosen {
		section, err := p.measure(ctx, s)
		if err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
		cpu := device.Processor(nil)
		text := fmt.Sprintf("### %s: %s\n\n%s, %s, %d processors; %s. `%s`.\n\n%s",
			cpu, p.name, time.Now().UTC().Format(time.DateOnly), cpu, runtime.NumCPU(), versions, command(p.name, *models, *threads, s.rounds), section)
		fmt.Println(text)
		if full || *write {
			if err := keep(page, cpu+" "+p.name, text); err != nil {
				return err
			}
		}
		if *samples != "" {
			b, err := json.MarshalIndent(s.samples, "", " ")
			if err != nil {
				return err
			}
			if err := os.WriteFile(*samples, b, 0o644); err != nil {
				return err
			}
		}
	}
	return nil
}

// command that measures a part again.
func command(part, models, threads string, rounds int) string {
	c := "PARTS=" + part
	if models != "" {
		c += " MODELS=" + models
	}
	if threads != "" {
		c += " THREADS=" + threads
	}
	if rounds != 3 {
		c += " ROUNDS=" + strconv.Itoa(rounds)
	}
	return c + " make bench-peers"
}

// choose those of all that a list of names between commas has; all for none.
func choose[T any](list string, all []T, name func(T) string) ([]T, error) {
	if list == "" {
		return slices.Clone(all), nil
	}
	var chosen []T
	var names []string
	for _, one := range all {
		names = append(names, name(one))
	}
	for want := range strings.SplitSeq(list, ",") {
		at := slices.Index(names, want)
		if at < 0 {
			return nil, fmt.Errorf("there is no %q: give some of %s", want, strings.Join(names, ","))
		}
		chosen = append(chosen, all[at])
	}
	return chosen, nil
}

func numbers(list string) ([]int, error) {
	if list == "" {
		if n := runtime.NumCPU(); n > 1 {
			return []int{1, n}, nil
		}
		return []int{1}, nil
	}
	var all []int
	for part := range strings.SplitSeq(list, ",") {
		n, err := strconv.Atoi(part)
		if err != nil || n < 1 {
			return nil, fmt.Errorf("threads are %q: give numbers such as 1,2", list)
		}
		all = append(all, n)
	}
	return all, nil
}

// most threads that are asked for.
func (s *session) most() int { return slices.Max(s.threads) }
