package routing

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
)

// parse reads homes such as "a:resident:3 b:idle:0:silent".
func parse(t *testing.T, text string) []Candidate {
	t.Helper()
	ready := map[string]Readiness{"resident": Resident, "loading": Loading, "idle": Idle, "unable": Unable}
	var homes []Candidate
	for _, field := range strings.Fields(text) {
		part := strings.Split(field, ":")
		h := Candidate{Worker: part[0], Ready: ready[part[1]], Connected: len(part) < 4}
		if _, err := fmt.Sscan(part[2], &h.Load); err != nil {
			t.Fatal(err)
		}
		homes = append(homes, h)
	}
	return homes
}

func TestPick(t *testing.T) {
	for name, c := range map[string]struct {
		homes    string
		excluded []string
		turn     uint64
		want     string
		reason   string
	}{
		"nothing":                           {"", nil, 0, "", "no home"},
		"a resident one":                    {"a:resident:3", nil, 7, "a", "resident"},
		"the least loaded":                  {"a:resident:3 b:resident:1 c:resident:2", nil, 0, "b", "least loaded"},
		"resident, though loaded":           {"a:idle:0 b:loading:0 c:resident:9", nil, 0, "c", "resident"},
		"loading before idle":               {"a:idle:0 b:loading:5", nil, 0, "b", "loading"},
		"an idle one is woken":              {"a:idle:1 b:idle:0", nil, 0, "b", "wakes"},
		"none that cannot":                  {"a:unable:0 b:idle:4", nil, 0, "b", "wakes"},
		"only such":                         {"a:unable:0", nil, 0, "", "can take"},
		"not what was tried":                {"a:resident:0 b:resident:5", []string{"a"}, 0, "b", "resident"},
		"all tried":                         {"a:resident:0 b:unable:0", []string{"a"}, 0, "", "has been tried"},
		"fresh and idle before silent":      {"a:resident:0:silent b:idle:5", nil, 0, "b", "wakes"},
		"silent if there is nothing else":   {"a:resident:0:silent b:unable:5", nil, 0, "a", "had it last"},
		"equals take turns, first":          {"x:resident:2 a:resident:1 b:resident:1 c:resident:1", nil, 0, "a", ""},
		"equals take turns, second":         {"x:resident:2 a:resident:1 b:resident:1 c:resident:1", nil, 4, "b", ""},
		"turns leave out what was tried":    {"a:resident:1 b:resident:1 c:resident:1", []string{"b"}, 1, "c", ""},
		"turns leave out what is different": {"a:resident:1 b:loading:1 c:resident:1", nil, 3, "c", ""},
	} {
		t.Run(name, func(t *testing.T) {
			homes := parse(t, c.homes)
			got := Pick(homes, c.excluded, c.turn)
			chosen := ""
			if got.Home != None {
				chosen = homes[got.Home].Worker
			}
			if chosen != c.want || !strings.Contains(got.Reason, c.reason) {
				t.Errorf("got %q because %q, want %q because %q", chosen, got.Reason, c.want, c.reason)
			}
		})
	}
}

// TestPickRandom holds Pick against its definition: nothing is better than what
// it chose, and over the turns all equals get the same number of requests.
func TestPickRandom(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 20_000 {
		homes := make([]Candidate, r.IntN(6))
		for i := range homes {
			homes[i] = Candidate{Worker: string(rune('a' + i)), Ready: Readiness(r.IntN(4)), Connected: r.IntN(4) > 0, Load: r.IntN(3)}
		}
		var excluded []string
		if r.IntN(3) == 0 {
			excluded = []string{string(rune('a' + r.IntN(6)))}
		}
		var allowed, best []int
		for i, h := range homes {
			if h.Ready != Unable && (len(excluded) == 0 || excluded[0] != h.Worker) {
				allowed = append(allowed, i)
			}
		}
		score := func(h Candidate) int {
			s := int(h.Ready)*100 - h.Load
			if h.Connected {
				s += 1000
			}
			return s
		}
		for _, i := range allowed {
			switch {
			case len(best) == 0 || score(homes[i]) > score(homes[best[0]]):
				best = []int{i}
			case score(homes[i]) == score(homes[best[0]]):
				best = append(best, i)
			}
		}
		for turn := range uint64(6) {
			got := Pick(homes, excluded, turn)
			want := None
			if len(best) > 0 {
				want = best[turn%uint64(len(best))]
			}
			if got.Home != want || got.Reason == "" {
				t.Fatalf("Pick(%+v, %v, %d) = %+v, want %d", homes, excluded, turn, got, want)
			}
		}
	}
}
