package scaling

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

var start = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func TestReplicas(t *testing.T) {
	spec := Spec{Min: 0, Max: 4, Target: 8, IdleAfter: time.Minute}
	type step struct {
		after time.Duration // since the start
		load  int
		want  int
	}
	for name, c := range map[string]struct {
		spec  Spec
		steps []step
	}{
		"fixed":               {Spec{Min: 2, Max: 2, Target: 8}, []step{{0, 0, 2}, {time.Second, 100, 2}}},
		"by load":             {spec, []step{{0, 0, 0}, {1, 1, 1}, {2, 8, 1}, {3, 9, 2}, {4, 17, 3}, {5, 1000, 4}}},
		"up at once":          {spec, []step{{0, 1, 1}, {1, 32, 4}}},
		"down after a minute": {spec, []step{{0, 32, 4}, {time.Second, 4, 4}, {60 * time.Second, 4, 4}, {61 * time.Second, 4, 1}}},
		"down to the peak":    {spec, []step{{0, 32, 4}, {time.Second, 4, 4}, {30 * time.Second, 20, 4}, {61 * time.Second, 0, 3}}},
		"to zero":             {spec, []step{{0, 1, 1}, {time.Second, 0, 1}, {61 * time.Second, 0, 0}}},
		"never below min":     {Spec{Min: 1, Max: 4, Target: 8}, []step{{0, 0, 1}}},
		"the load comes back": {spec, []step{{0, 32, 4}, {time.Second, 4, 4}, {50 * time.Second, 32, 4}, {70 * time.Second, 4, 4}, {130 * time.Second, 4, 1}}},
	} {
		t.Run(name, func(t *testing.T) {
			var state State
			for _, s := range c.steps {
				var got ReplicaCount
				got, state = Replicas(start.Add(s.after), c.spec, Load{Held: s.load}, state)
				if got.Wanted != s.want {
					t.Errorf("at %v with %d requests: %d, want %d (%s)", s.after, s.load, got.Wanted, s.want, got.Reason)
				}
			}
		})
	}
}

func TestWorkers(t *testing.T) {
	two := 2
	old := start.Add(-time.Hour)
	pool := Pool{Min: 0, Max: 3, ScaleDownAfter: 10 * time.Minute, MaxUnavailable: 1}
	fixed := pool
	fixed.Fixed = &two
	least := pool
	least.Min = 2
	replacing := least
	replacing.Replacing = 1
	blocked := replacing
	blocked.Blocked = true
	for name, c := range map[string]struct {
		pool    Pool
		workers []Worker
		need    int
		create  int
		remove  []string
	}{
		"nothing wanted":                 {pool, nil, 0, 0, nil},
		"as many as are needed":          {pool, nil, 2, 2, nil},
		"no more than max":               {pool, []Worker{{Name: "a", Ready: true}}, 9, 2, nil},
		"at least min":                   {least, []Worker{{Name: "a", Ready: true}}, 0, 1, nil},
		"one that goes is still there":   {least, []Worker{{Name: "a", Ready: true}, {Name: "b", Going: true}}, 0, 0, nil},
		"idle long enough":               {pool, []Worker{{Name: "a", Ready: true, IdleSince: old}, {Name: "b", Ready: true}}, 0, 0, []string{"a"}},
		"not idle for long":              {pool, []Worker{{Name: "a", Ready: true, IdleSince: start.Add(-time.Minute)}}, 0, 0, nil},
		"idle, but min":                  {least, []Worker{{Name: "a", Ready: true, IdleSince: old}, {Name: "b", Ready: true, IdleSince: old}, {Name: "c", Ready: true, IdleSince: old.Add(-1)}}, 0, 0, []string{"c"}},
		"idle, but needed":               {pool, []Worker{{Name: "a", Ready: true, IdleSince: old}}, 1, 1, nil},
		"fixed up":                       {fixed, nil, 0, 2, nil},
		"fixed whatever is needed":       {fixed, []Worker{{Name: "a", Ready: true}, {Name: "b", Ready: true}}, 3, 0, nil},
		"fixed down: fewest homes":       {fixed, []Worker{{Name: "a", Ready: true, Homes: 3}, {Name: "b", Ready: true, Homes: 1}, {Name: "c", Ready: true, Homes: 2}}, 0, 0, []string{"b"}},
		"fixed down: first not ready":    {fixed, []Worker{{Name: "a", Ready: true}, {Name: "b", Homes: 5}, {Name: "c", Ready: true}}, 0, 0, []string{"b"}},
		"idle ones stay at fixed":        {fixed, []Worker{{Name: "a", Ready: true, IdleSince: old}, {Name: "b", Ready: true, IdleSince: old}}, 0, 0, nil},
		"update one":                     {pool, []Worker{{Name: "a", Ready: true, Outdated: true, Homes: 2}, {Name: "b", Ready: true, Outdated: true, Homes: 1}}, 0, 0, []string{"b"}},
		"update waits":                   {pool, []Worker{{Name: "a", Ready: true, Outdated: true}, {Name: "b", Going: true, Outdated: true}}, 0, 0, nil},
		"update waits for what settles":  {pool, []Worker{{Name: "a", Ready: true, Outdated: true}, {Name: "b", Ready: true, Settling: true}}, 0, 0, nil},
		"update silent ones in turn":     {pool, []Worker{{Name: "a", Silent: true, Outdated: true}, {Name: "b", Silent: true, Outdated: true}, {Name: "c", Ready: true, Outdated: true}}, 0, 0, []string{"a"}},
		"update waits for the next one":  {pool, []Worker{{Name: "a", Silent: true, Outdated: true}, {Name: "b"}, {Name: "c", Ready: true, Outdated: true}}, 0, 0, nil},
		"update waits for what is made":  {replacing, []Worker{{Name: "a", Ready: true, Outdated: true}}, 0, 1, nil},
		"update waits for no extra one":  {least, []Worker{{Name: "a", Ready: true, Outdated: true}}, 0, 1, []string{"a"}},
		"update beside one without node": {pool, []Worker{{Name: "a", Ready: true, Outdated: true}, {Name: "b", Ready: true, Outdated: true}, {Name: "c", Extra: true}}, 0, 0, []string{"a"}},
		"update of one without node":     {pool, []Worker{{Name: "a", Ready: true, Outdated: true}, {Name: "b", Ready: true, Outdated: true}, {Name: "c", Extra: true, Outdated: true}}, 0, 0, []string{"c", "a"}},
		"update where none can be made":  {blocked, []Worker{{Name: "a", Ready: true, Outdated: true}}, 0, 1, []string{"a"}},
		"update those that are no use":   {pool, []Worker{{Name: "a", Outdated: true}, {Name: "b", Outdated: true}, {Name: "c", Ready: true, Outdated: true}}, 0, 0, []string{"a", "b"}},
	} {
		t.Run(name, func(t *testing.T) {
			got := Workers(start, c.pool, c.workers, c.need)
			var remove []string
			for _, r := range got.Remove {
				remove = append(remove, r.Worker)
			}
			if got.Create != c.create || !slices.Equal(remove, c.remove) {
				t.Errorf("create %d, remove %v; want %d, %v", got.Create, got.Remove, c.create, c.remove)
			}
		})
	}
	if got := Workers(start, pool, []Worker{{Name: "a", Ready: true, IdleSince: start.Add(-time.Minute)}}, 0); !got.Again.Equal(start.Add(9 * time.Minute)) {
		t.Errorf("looks again at %v", got.Again)
	}
}

// TestWorkersBounds: whatever there is, a decision stays within the bounds and
// does not depend on the order of the workers.
func TestWorkersBounds(t *testing.T) {
	for seed := range uint64(20000) {
		r := rand.New(rand.NewPCG(seed, 2))
		p := Pool{Min: r.IntN(4), ScaleDownAfter: time.Minute, MaxUnavailable: 1 + r.IntN(2), Replacing: r.IntN(2)}
		p.Max = p.Min + r.IntN(4)
		if r.IntN(3) == 0 {
			n := r.IntN(6)
			p.Fixed = &n
		}
		var workers []Worker
		staying := 0
		for i := range r.IntN(6) {
			w := Worker{Name: fmt.Sprint(i), Ready: r.IntN(2) == 0, Going: r.IntN(4) == 0, Silent: r.IntN(3) == 0, Outdated: r.IntN(2) == 0, Settling: r.IntN(4) == 0, Homes: r.IntN(3)}
			if r.IntN(2) == 0 {
				w.IdleSince = start.Add(-time.Duration(r.IntN(120)) * time.Second)
			}
			w.Silent = w.Silent && !w.Ready
			w.Extra = !w.Ready && !w.Silent && r.IntN(3) == 0
			if !w.Going {
				staying++
			}
			workers = append(workers, w)
		}
		need := r.IntN(4)
		got := Workers(start, p, workers, need)
		shuffled := slices.Clone(workers)
		r.Shuffle(len(shuffled), func(i, j int) { shuffled[i], shuffled[j] = shuffled[j], shuffled[i] })
		if again := Workers(start, p, shuffled, need); fmt.Sprint(got) != fmt.Sprint(again) {
			t.Fatalf("seed %d: the order matters: %v %v", seed, got, again)
		}
		if len(workers)+got.Create > max(p.Max, len(workers)) {
			t.Fatalf("seed %d: creates %d beside %d of %d", seed, got.Create, len(workers), p.Max)
		}
		if len(got.Remove) > staying || got.Create > 0 && staying > p.Max {
			t.Fatalf("seed %d: %+v of %d", seed, got, staying)
		}
		for _, removal := range got.Remove {
			i := slices.IndexFunc(workers, func(w Worker) bool { return w.Name == removal.Worker })
			if workers[i].Going {
				t.Fatalf("seed %d: removes %s twice", seed, removal.Worker)
			}
		}
	}
}

// TestFill: how many empty workers the waiting replicas would fill.
func TestFill(t *testing.T) {
	r := func(model string, bytes int64) Replica { return Replica{Model: model, Bytes: bytes} }
	for name, c := range map[string]struct {
		replicas       []Replica
		devices, limit int
		want           int
	}{
		"nobody":                      {nil, 1, 9, 0},
		"two fit together":            {[]Replica{r("x", 4), r("y", 6)}, 1, 9, 1},
		"and a third does not":        {[]Replica{r("x", 4), r("y", 6), r("z", 1)}, 1, 9, 2},
		"a small one fits in a gap":   {[]Replica{r("x", 8), r("y", 8), r("z", 2)}, 1, 9, 2},
		"two devices hold two":        {[]Replica{r("x", 8), r("y", 8)}, 2, 9, 1},
		"replicas of one stand apart": {[]Replica{r("x", 1), r("x", 1)}, 2, 9, 2},
		"one alone has its own":       {[]Replica{r("x", 1), {Model: "y", Bytes: 1, Alone: true}, r("z", 1)}, 1, 9, 2},
		"one alone keeps others out":  {[]Replica{{Model: "y", Bytes: 1, Alone: true}, r("z", 1)}, 1, 9, 2},
		"no more than there may be":   {[]Replica{r("x", 8), r("y", 8), r("z", 8)}, 1, 2, 2},
		"who needs nothing known":     {[]Replica{r("x", 0), r("y", 0)}, 1, 9, 1},
		"larger than a device":        {[]Replica{r("x", 11)}, 1, 9, 1},
		"full ones are passed by":     {[]Replica{r("x", 10), r("y", 10), r("z", 5), r("u", 5)}, 1, 9, 3},
	} {
		if got := Fill(c.replicas, 10, c.devices, c.limit); got != c.want {
			t.Errorf("%s: %d workers, want %d", name, got, c.want)
		}
	}
}
