package main

import (
	"context"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"time"
)

// figures of one run, by name: tokens/s, seconds, bytes.
type figures map[string]float64

// parse reads what a program wrote.
type parse func([]byte) (figures, error)

// action is a run that can be repeated.
type action struct {
	program string
	model   string
	threads int
	command func(context.Context) (program, parse) // without a parse it is watched as it starts
}

// sample is a run that was.
type sample struct {
	Part    string  `json:"part"`
	Case    string  `json:"case,omitempty"`
	Program string  `json:"program"`
	Model   string  `json:"model"`
	Threads int     `json:"threads"`
	Round   int     `json:"round"`
	Tries   int     `json:"tries"`
	Others  float64 `json:"others"` // processors that others took
	Figures figures `json:"figures"`
}

// tries of a run that others disturb; the least disturbed counts.
const tries = 3

// round gives every action its turn, the first one last in every other round.
func (s *session) round(ctx context.Context, part, what string, round int, load func() float64, actions ...action) error {
	actions = slices.Clone(actions)
	if round%2 == 1 {
		slices.Reverse(actions)
	}
	for _, a := range actions {
		best := sample{Others: -1}
		for try := 1; try <= tries; try++ {
			f, others, err := once(ctx, a, load)
			if err != nil {
				return err
			}
			if best.Others < 0 || others < best.Others {
				best = sample{Part: part, Case: what, Program: a.program, Model: a.model, Threads: a.threads, Round: round, Others: others, Figures: f}
			}
			best.Tries = try
			if others <= s.quiet {
				break
			}
			say("%s: others took %.2f processors during try %d", a.program, others, try)
		}
		s.samples = append(s.samples, best)
		say("%s %s, %s, %d threads, round %d, %s: %s; others %.2f", part, what, a.model, a.threads, round+1, a.program, best.Figures, best.Others)
	}
	return nil
}

// once runs an action. It gives how many processors others took meanwhile; load says how
// much time our own load has used, if there is one.
func once(ctx context.Context, a action, load func() float64) (figures, float64, error) {
	p, parse := a.command(ctx)
	others, err := watchOthers(load)
	if err != nil {
		return nil, 0, err
	}
	var f figures
	if parse == nil {
		f, err = watchStart(p)
	} else {
		var out []byte
		if out, err = p.output(); err == nil {
			f, err = parse(out)
		}
	}
	if err != nil {
		return nil, 0, err
	}
	return f, others(p.ProcessState), nil
}

func say(format string, values ...any) {
	fmt.Fprintf(os.Stderr, "%s  %s\n", time.Now().Format(time.TimeOnly), fmt.Sprintf(format, values...))
}

func (f figures) String() string {
	var words []string
	for _, name := range slices.Sorted(maps.Keys(f)) {
		words = append(words, fmt.Sprintf("%s %.4g", name, f[name]))
	}
	return strings.Join(words, ", ")
}

// of finds the samples of a part, a case, a model, a number of threads and a program, in the order of rounds.
func (s *session) of(part, what, model string, threads int, program string) []sample {
	var all []sample
	for _, one := range s.samples {
		if one.Part == part && one.Case == what && one.Model == model && one.Threads == threads && one.Program == program {
			all = append(all, one)
		}
	}
	return all
}
