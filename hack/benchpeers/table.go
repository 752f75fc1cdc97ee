package main

import (
	"fmt"
	"os"
	"slices"
	"strings"
)

func median(values []float64) float64 {
	v := slices.Sorted(slices.Values(values))
	n := len(v)
	if n == 0 {
		return 0
	}
	return (v[(n-1)/2] + v[n/2]) / 2
}

func each(n int, value func(int) float64) []float64 {
	all := make([]float64, n)
	for i := range all {
		all[i] = value(i)
	}
	return all
}

func values(of []sample, name string) []float64 {
	return each(len(of), func(i int) float64 { return of[i].Figures[name] })
}

// spread is the median, and the least and the most where there are several.
func spread(v []float64) string {
	if len(v) < 2 {
		return digits(median(v))
	}
	return fmt.Sprintf("%s (%s..%s)", digits(median(v)), digits(slices.Min(v)), digits(slices.Max(v)))
}

// digits has three of them at least.
func digits(v float64) string {
	switch {
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}

// ratio of what one program did to what the other did in the same round.
func ratio(a, l []sample, name string) string {
	n := min(len(a), len(l))
	return spread(each(n, func(i int) float64 { return a[i].Figures[name] / l[i].Figures[name] }))
}

func percent(v []float64) string { return fmt.Sprintf("%.0f %%", 100*median(v)) }

// most that others took during any of these.
func most(lists ...[]sample) float64 {
	worst := 0.0
	for _, list := range lists {
		for _, one := range list {
			worst = max(worst, one.Others)
		}
	}
	return worst
}

func rounds(n int) string {
	if n == 1 {
		return "one round"
	}
	return fmt.Sprintf("%d rounds", n)
}

// repeated says how many runs of a part were repeated since others disturbed them, and how many stayed disturbed.
func (s *session) repeated(part string) string {
	again, disturbed, all := 0, 0, 0
	for _, one := range s.samples {
		if one.Part == part {
			all++
			if one.Tries > 1 {
				again++
			}
			if one.Others > s.quiet {
				disturbed++
			}
		}
	}
	if again == 0 {
		return fmt.Sprintf("none of the %d runs had more than %g and was repeated", all, s.quiet)
	}
	return fmt.Sprintf("%d of %d runs had more than %g and were repeated, %d of them never had less", again, all, s.quiet, disturbed)
}

// more is where sections of machines that are not there yet go.
const more = "<!-- bench-peers: more -->"

// keep writes a section into a page, in place of the one with its key.
func keep(page, key, section string) error {
	b, err := os.ReadFile(page)
	if err != nil {
		return err
	}
	text, err := place(string(b), key, section)
	if err != nil {
		return fmt.Errorf("%s: %w", page, err)
	}
	return os.WriteFile(page, []byte(text), 0o644)
}

func place(text, key, section string) (string, error) {
	begin, end := "<!-- bench-peers: "+key+" -->\n", "<!-- bench-peers: end of "+key+" -->\n"
	section = begin + "\n" + strings.TrimSpace(section) + "\n\n" + end
	if before, rest, ok := strings.Cut(text, begin); ok {
		_, after, ok := strings.Cut(rest, end)
		if !ok {
			return "", fmt.Errorf("%q has no end", key)
		}
		return before + section + after, nil
	}
	before, after, ok := strings.Cut(text, more)
	if !ok {
		return "", fmt.Errorf("it has no %s", more)
	}
	return before + section + more + after, nil
}
