package residency

import (
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/estiba/estiba/api/worker"
	"github.com/estiba/estiba/runtime/arch"
)

var now = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// show writes a decision in one line.
func show(d Decision) string {
	var s []string
	for _, l := range d.Loads {
		s = append(s, "load "+l.Model)
	}
	for _, e := range d.Evictions {
		what := "evict "
		if e.Old {
			what += "old "
		}
		s = append(s, what+e.Model)
	}
	for _, y := range d.Yields {
		s = append(s, "yield "+y.Model)
	}
	for _, r := range d.Refusals {
		what := "refuse "
		if r.Crowded {
			what = "crowded "
		}
		s = append(s, what+r.Model+": "+r.Message)
	}
	if !d.Again.IsZero() {
		s = append(s, "again in "+d.Again.Sub(now).String())
	}
	return strings.Join(s, "\n")
}

const mib = 1 << 20

func resident(model string, held int64, idle time.Duration) Home {
	return Home{Model: model, Device: "cpu-0", Need: held, Held: held, Loaded: true, LastUse: now.Add(-idle)}
}

func old(model string, held int64) Home {
	return Home{Model: model, Device: "cpu-0", Need: held, Held: held, Loaded: true, Old: true, Running: 1, NeverEvict: true}
}

func wanted(model string, need int64) Home {
	return Home{Model: model, Device: "cpu-0", Need: need, Waiting: 1, WaitingSince: now}
}

// busy has been on its device for some time.
func busy(model string, held int64, since time.Duration) Home {
	return Home{Model: model, Device: "cpu-0", Need: held, Held: held, Loaded: true, Running: 1, LastUse: now, ResidentSince: now.Add(-since)}
}

func waiting(model string, need int64, since time.Duration) Home {
	return Home{Model: model, Device: "cpu-0", Need: need, Waiting: 1, WaitingSince: now.Add(-since)}
}

func with(h Home, change func(*Home)) Home {
	change(&h)
	return h
}

func TestDecide(t *testing.T) {
	cases := map[string]struct {
		homes []Home
		want  string
	}{
		"nothing is wanted": {
			[]Home{{Model: "a", Device: "cpu-0", Need: mib}}, ""},
		"fits": {
			[]Home{wanted("a", 4*mib)}, "load a"},
		"larger than the device": {
			[]Home{wanted("a", 11*mib)}, "refuse a: Needs 11 MiB; cpu-0 has 10 MiB in all."},
		"unknown device": {
			[]Home{with(wanted("a", mib), func(h *Home) { h.Device = "gpu-7" })}, "refuse a: This worker has no device gpu-7."},
		"the assignment wants the dearest first": {
			[]Home{
				{Model: "a", Device: "cpu-0", Need: 6 * mib, Required: true, EvictionOrder: 1},
				{Model: "b", Device: "cpu-0", Need: 6 * mib, Required: true, EvictionOrder: 2},
			},
			"load b\nrefuse a: Needs 6 MiB; 4 MiB of 10 MiB is free on cpu-0."},
		"a request goes before a wish": {
			[]Home{
				{Model: "a", Device: "cpu-0", Need: 6 * mib, Required: true, EvictionOrder: 9},
				wanted("b", 6*mib),
			},
			"load b\ncrowded a: Needs 6 MiB; 4 MiB of 10 MiB is free on cpu-0."},
		"the longest idle makes room": {
			[]Home{resident("a", 4*mib, time.Minute), resident("b", 4*mib, time.Hour), wanted("c", 4*mib)},
			"evict b"},
		"the lowest order makes room": {
			[]Home{with(resident("a", 4*mib, time.Minute), func(h *Home) { h.EvictionOrder = -1 }), resident("b", 4*mib, time.Hour), wanted("c", 4*mib)},
			"evict a"},
		"nobody goes in vain": {
			[]Home{resident("a", 2*mib, time.Hour), resident("b", 8*mib, time.Minute), wanted("c", 8*mib)},
			"evict b"},
		"required, never and busy stay": {
			[]Home{
				with(resident("a", 2*mib, time.Hour), func(h *Home) { h.Required = true }),
				with(resident("b", 2*mib, time.Hour), func(h *Home) { h.NeverEvict = true }),
				with(resident("c", 2*mib, time.Hour), func(h *Home) { h.Running = 1 }),
				resident("d", 1*mib, time.Hour),
				wanted("e", 7*mib),
			},
			"refuse e: Needs 7 MiB; 3 MiB of 10 MiB is free on cpu-0; held by a (2 MiB, must stay resident), b (2 MiB, eviction: Never), c (2 MiB, 1 request), d (1 MiB, idle)."},
		"busy ones may pause": {
			[]Home{
				with(resident("a", 2*mib, time.Hour), func(h *Home) { h.Required = true }),
				with(resident("b", 2*mib, time.Hour), func(h *Home) { h.NeverEvict = true }),
				with(resident("c", 2*mib, time.Hour), func(h *Home) { h.Running = 1 }),
				resident("d", 1*mib, time.Hour),
				wanted("e", 6*mib),
			},
			"crowded e: Needs 6 MiB; 3 MiB of 10 MiB is free on cpu-0; held by a (2 MiB, must stay resident), b (2 MiB, eviction: Never), c (2 MiB, 1 request), d (1 MiB, idle).\nagain in 10s"},
		"a turn is not yet over": {
			[]Home{busy("a", 6*mib, time.Hour), waiting("b", 6*mib, 9*time.Second)},
			"crowded b: Needs 6 MiB; 4 MiB of 10 MiB is free on cpu-0; held by a (6 MiB, 1 request).\nagain in 1s"},
		"a turn comes": {
			[]Home{busy("a", 6*mib, time.Hour), waiting("b", 6*mib, 10*time.Second)},
			"yield a\ncrowded b: Needs 6 MiB; 4 MiB of 10 MiB is free on cpu-0; held by a (6 MiB, 1 request)."},
		"the assignment's wish has a turn, too": {
			[]Home{busy("a", 6*mib, time.Hour), {Model: "b", Device: "cpu-0", Need: 6 * mib, Required: true, WantedSince: now.Add(-10 * time.Second)}},
			"yield a\ncrowded b: Needs 6 MiB; 4 MiB of 10 MiB is free on cpu-0; held by a (6 MiB, 1 request)."},
		"who has yielded goes": {
			[]Home{with(busy("a", 6*mib, time.Hour), func(h *Home) { h.Running, h.Waiting = 0, 2 }), waiting("b", 6*mib, 10*time.Second)},
			"evict a"},
		"whose turn it is has it first, and nobody takes the rest": {
			[]Home{busy("a", 6*mib, 4*time.Second), waiting("b", 10*mib, time.Minute), waiting("c", 2*mib, time.Second)},
			"crowded b: Needs 10 MiB; 4 MiB of 10 MiB is free on cpu-0; held by a (6 MiB, 1 request).\n" +
				"crowded c: Needs 2 MiB; 0 bytes of 10 MiB is free on cpu-0; held by a (6 MiB, 1 request).\nagain in 6s"},
		"what is left beside a turn is free": {
			[]Home{busy("a", 6*mib, time.Hour), waiting("b", 7*mib, time.Minute), waiting("c", 3*mib, time.Second)},
			"load c\nyield a\ncrowded b: Needs 7 MiB; 4 MiB of 10 MiB is free on cpu-0; held by a (6 MiB, 1 request)."},
		"a load that took long makes a long turn": {
			[]Home{with(busy("a", 6*mib, 25*time.Second), func(h *Home) { h.LoadTook = 10 * time.Second }), waiting("b", 6*mib, time.Minute)},
			"crowded b: Needs 6 MiB; 4 MiB of 10 MiB is free on cpu-0; held by a (6 MiB, 1 request).\nagain in 5s"},
		"a dearer one has its own pauses": {
			[]Home{with(busy("a", 6*mib, time.Hour), func(h *Home) { h.EvictionOrder = 1 }), waiting("b", 6*mib, time.Minute)},
			"crowded b: Needs 6 MiB; 4 MiB of 10 MiB is free on cpu-0; held by a (6 MiB, 1 request)."},
		"they yield together, idle ones first": {
			[]Home{busy("a", 2*mib, time.Hour), busy("b", 2*mib, 2*time.Hour), resident("c", 4*mib, time.Second), waiting("d", 8*mib, time.Minute)},
			"yield c\nyield b\ncrowded d: Needs 8 MiB; 2 MiB of 10 MiB is free on cpu-0; held by c (4 MiB, idle), a (2 MiB, 1 request), b (2 MiB, 1 request)."},
		"waits for what is leaving": {
			[]Home{with(resident("a", 8*mib, time.Hour), func(h *Home) { h.Leaving = true }), resident("b", 2*mib, time.Hour), wanted("c", 8*mib)},
			""},
		"what is promised is not given twice": {
			[]Home{
				with(resident("a", 8*mib, time.Hour), func(h *Home) { h.Leaving = true }),
				wanted("b", 9*mib),
				with(wanted("c", 2*mib), func(h *Home) { h.WaitingSince = now.Add(time.Second) }),
			},
			"crowded c: Needs 2 MiB; 0 bytes of 10 MiB is free on cpu-0; held by a (8 MiB, leaving).\nagain in 11s"},
		"a revision beside the one before it": {
			[]Home{old("a", 4*mib), with(Home{Model: "a", Device: "cpu-0", Need: 6 * mib}, func(h *Home) { h.Required = true })},
			"load a"},
		"a revision that does not fit beside it": {
			[]Home{old("a", 5*mib), resident("b", mib, time.Hour), with(Home{Model: "a", Device: "cpu-0", Need: 7 * mib}, func(h *Home) { h.Required = true })},
			"evict old a"},
		"a revision that waits for it": {
			[]Home{with(old("a", 5*mib), func(h *Home) { h.Leaving = true }), wanted("a", 7*mib)},
			""},
		"a revision that does not fit without it either": {
			[]Home{old("a", 4*mib), with(resident("b", 4*mib, 0), func(h *Home) { h.Required = true }), wanted("a", 8*mib)},
			"refuse a: Needs 8 MiB; 2 MiB of 10 MiB is free on cpu-0; held by a (4 MiB, until its next revision is there), b (4 MiB, must stay resident)."},
		"the former revision of another goes before anybody waits": {
			[]Home{old("a", 4*mib), {Model: "a", Device: "cpu-0", Need: 4 * mib}, wanted("b", 7*mib), with(old("b", 2*mib), func(h *Home) { h.IdleAfter = time.Second })},
			"evict old a"},
		"idle for long enough": {
			[]Home{with(resident("a", mib, time.Minute), func(h *Home) { h.IdleAfter = time.Minute })}, "evict a"},
		"not yet": {
			[]Home{
				with(resident("a", mib, time.Minute), func(h *Home) { h.IdleAfter = 3 * time.Minute }),
				with(resident("b", mib, time.Minute), func(h *Home) { h.IdleAfter = 2 * time.Minute }),
			}, "again in 1m0s"},
		"an idle home that must stay": {
			[]Home{with(resident("a", mib, time.Hour), func(h *Home) { h.IdleAfter = time.Minute; h.Required = true })}, ""},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			var used int64
			for _, h := range c.homes {
				used += h.Held
			}
			got := show(Decide([]Account{{Device: "cpu-0", Capacity: 10 * mib, Used: used}}, c.homes, now))
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("want -, got +\n%s", diff)
			}
		})
	}
}

// TestTrouble: what is on a lost device leaves it, whatever it was promised, and nothing comes; where others
// take some of a device, that is said.
func TestTrouble(t *testing.T) {
	accounts := []Account{
		{Device: "cpu-0", Capacity: 10 * mib, Used: 8 * mib, Lost: "Device cpu-0 is lost: XID 79."},
		{Device: "cpu-1", Capacity: 3 * mib, Limit: "Other processes hold 7 MiB of cpu-1's 12 MiB."},
	}
	homes := []Home{
		busy("a", 2*mib, time.Hour), with(resident("b", 2*mib, time.Minute), func(h *Home) { h.Required, h.NeverEvict = true, true }), old("c", 2*mib),
		with(resident("d", 2*mib, time.Minute), func(h *Home) { h.Leaving = true }),
		wanted("e", mib), {Model: "f", Device: "cpu-0", Need: mib},
		with(wanted("g", 2*mib), func(h *Home) { h.Device = "cpu-1" }), with(wanted("h", 4*mib), func(h *Home) { h.Device = "cpu-1" }),
	}
	decision := Decide(accounts, homes, now)
	want := `load g
evict a
evict b
evict old c
refuse e: Device cpu-0 is lost: XID 79.
refuse h: Needs 4 MiB; cpu-1 has 3 MiB in all. Other processes hold 7 MiB of cpu-1's 12 MiB.`
	if d := cmp.Diff(want, show(decision)); d != "" {
		t.Error(d)
	}
	for _, r := range decision.Refusals {
		if r.Lost != (r.Device == "cpu-0") {
			t.Errorf("%+v", r)
		}
	}
	if Fits(accounts, homes, "f", now) {
		t.Error("f fits a device that is lost")
	}
}

func TestFits(t *testing.T) {
	asleep := Home{Model: "b", Device: "cpu-0", Need: 6 * mib}
	for name, c := range map[string]struct {
		other Home
		want  bool
	}{
		"there is room":          {resident("a", 4*mib, 0), true},
		"an idle home makes it":  {resident("a", 6*mib, 0), true},
		"it is on its way back":  {with(resident("a", 6*mib, 0), func(h *Home) { h.Leaving = true }), true},
		"a busy home is in it":   {with(resident("a", 6*mib, 0), func(h *Home) { h.Running = 1 }), true}, // it has its turn
		"a wanted home is in it": {with(resident("a", 6*mib, 0), func(h *Home) { h.Required = true }), false},
	} {
		homes := []Home{c.other, asleep}
		if got := Fits([]Account{{Device: "cpu-0", Capacity: 10 * mib, Used: c.other.Held}}, homes, "b", now); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
		if homes[1].Waiting != 0 {
			t.Errorf("%s: the homes were changed", name)
		}
	}
}

// TestNeverOverCapacity plays random worlds forward: whatever happens, no
// account exceeds its capacity, nothing busy or required is evicted, the order
// of homes does not matter, and what fits alone is loaded or refused in the end.
func TestNeverOverCapacity(t *testing.T) {
	for seed := range uint64(300) {
		rng := rand.New(rand.NewPCG(seed, 1))
		capacity := map[string]int64{"cpu-0": int64(1+rng.IntN(20)) * mib, "gpu-0": int64(1+rng.IntN(20)) * mib}
		homes := make([]Home, 1+rng.IntN(12))
		for i := range homes {
			homes[i] = Home{
				Model: fmt.Sprintf("m%02d", i), Device: []string{"cpu-0", "gpu-0"}[rng.IntN(2)],
				Need: int64(1+rng.IntN(12)) * mib, EvictionOrder: rng.IntN(3), NeverEvict: rng.IntN(6) == 0,
				IdleAfter: time.Duration(rng.IntN(3)) * time.Second, LastUse: now,
			}
		}
		clock := now
		for step := range 200 {
			clock = clock.Add(time.Duration(rng.IntN(1000)) * time.Millisecond)
			for i := range homes { // the world moves
				h := &homes[i]
				switch rng.IntN(8) {
				case 0:
					h.Required = !h.Required
				case 1:
					if !h.Loaded || h.Leaving {
						h.Waiting, h.WaitingSince = 1, clock
					} else {
						h.Running = rng.IntN(3)
						h.LastUse = clock
					}
				case 2:
					if h.Held > 0 && !h.Loaded {
						h.Loaded, h.Running, h.Waiting, h.LastUse = true, h.Waiting, 0, clock
					}
				case 3:
					if h.Leaving {
						h.Held, h.Leaving, h.Loaded = 0, false, false
					}
				case 4:
					h.Running = 0
				}
			}
			var accounts []Account
			used := map[string]int64{}
			byName := map[string]*Home{}
			for i := range homes {
				used[homes[i].Device] += homes[i].Held
				byName[homes[i].Model] = &homes[i]
			}
			for name, c := range capacity {
				accounts = append(accounts, Account{Device: name, Capacity: c, Used: used[name]})
			}
			d := Decide(accounts, homes, clock)
			shuffled := append([]Home(nil), homes...)
			rng.Shuffle(len(shuffled), func(i, j int) { shuffled[i], shuffled[j] = shuffled[j], shuffled[i] })
			if diff := cmp.Diff(d, Decide(accounts, shuffled, clock)); diff != "" {
				t.Fatalf("seed %d step %d: the order of homes matters:\n%s", seed, step, diff)
			}
			for _, e := range d.Evictions {
				h := byName[e.Model]
				if !h.Loaded || h.Leaving || h.Required || h.Running > 0 {
					t.Fatalf("seed %d step %d: evicts %+v", seed, step, *h)
				}
				h.Leaving = true
			}
			for _, l := range d.Loads {
				h := byName[l.Model]
				if h.Held > 0 || !h.Required && h.Waiting == 0 {
					t.Fatalf("seed %d step %d: loads %+v", seed, step, *h)
				}
				h.Held = h.Need
				used[h.Device] += h.Need
			}
			for name, c := range capacity {
				if used[name] > c {
					t.Fatalf("seed %d step %d: %s uses %d of %d", seed, step, name, used[name], c)
				}
			}
			for _, r := range d.Refusals {
				byName[r.Model].Waiting = 0
			}
		}
	}
}

func TestClamp(t *testing.T) {
	cases := []struct {
		in    worker.Context
		model int
		want  worker.Context
		cut   bool
	}{
		{worker.Context{}, 512, worker.Context{MaxTokens: 512, Sequences: 1}, false},
		{worker.Context{}, 131072, worker.Context{MaxTokens: 8192, Sequences: 1}, false},
		{worker.Context{MaxTokens: 16384, Sequences: 4}, 131072, worker.Context{MaxTokens: 16384, Sequences: 4}, false},
		{worker.Context{MaxTokens: 4096, Sequences: 8}, 512, worker.Context{MaxTokens: 512, Sequences: 8}, true},
	}
	for _, c := range cases {
		got, why := Clamp(c.in, c.model)
		if got != c.want || (why != "") != c.cut {
			t.Errorf("Clamp(%+v, %d) = %+v, %q; want %+v", c.in, c.model, got, why, c.want)
		}
	}
}

// TestCut: an extent has as many blocks of at least 16 positions as fit, and a block as
// many positions as fit; the floor holds all sequences.
func TestCut(t *testing.T) {
	for name, c := range map[string]struct {
		layers, width int // of a key
		extent        int64
		context       worker.Context
		want          Cut
		floor         int64
	}{
		"a tiny model":         {5, 64, 64 << 10, worker.Context{MaxTokens: 100, Sequences: 3}, Cut{2, 25}, 6},                  // 1280 bytes a position
		"half of two MiB":      {22, 512, 2 << 20, worker.Context{MaxTokens: 2048, Sequences: 1}, Cut{2, 23}, 45},               // 45,056
		"all of two MiB":       {16, 2048, 2 << 20, worker.Context{MaxTokens: 8192, Sequences: 2}, Cut{1, 16}, 1024},            // 128 KiB
		"fewer than sixteen":   {32, 2048, 2 << 20, worker.Context{MaxTokens: 8192, Sequences: 2}, Cut{1, 8}, 2048},             // 256 KiB
		"exactly one position": {16, 1024, 64 << 10, worker.Context{MaxTokens: 10, Sequences: 1}, Cut{1, 1}, 10},                // 64 KiB
		"not endless blocks":   {1, 4, 2 << 20, worker.Context{MaxTokens: 4096, Sequences: 1}, Cut{256, 512}, 1},                // 8 KiB a block
		"many blocks":          {1, 4, 64 << 10, worker.Context{MaxTokens: 4096, Sequences: 1}, Cut{256, 16}, 1},                // 16 bytes
		"endless":              {1, 4, 64 << 10, worker.Context{MaxTokens: 1 << 62, Sequences: 1 << 62}, Cut{256, 16}, 1 << 55}, // stops at the largest number
	} {
		cfg := arch.Config{Layers: c.layers, KVHeads: 1, HeadDim: c.width}
		got, err := CutExtent(cfg, c.extent)
		if err != nil || got != c.want || got.Floor(c.context) != c.floor {
			t.Errorf("%s: %+v with a floor of %d, %v; want %+v, %d", name, got, got.Floor(c.context), err, c.want, c.floor)
		}
		if each := arch.KVBytesPerToken(cfg); int64(got.PerExtent*got.BlockTokens)*each > c.extent {
			t.Errorf("%s: %+v takes more than an extent", name, got)
		}
	}
	cfg := arch.Config{Layers: 17, KVHeads: 1, HeadDim: 1024}
	if _, err := CutExtent(cfg, 64<<10); err == nil || err.Error() != "One position of its KV cache takes 68 KiB, and an extent of the device has 64 KiB: give the worker 1 GiB or more, then extents have 2 MiB." {
		t.Errorf("a position larger than an extent: %v", err)
	}
	if _, err := Estimate(cfg, 1, 0, worker.Context{MaxTokens: 1, Sequences: 1}, Step{256, 32, 32}, 64<<10); err == nil {
		t.Error("it has a footprint all the same")
	}
	cfg.Encoder = true
	f, err := Estimate(cfg, 1, 0, worker.Context{MaxTokens: 512, Sequences: 4}, Step{512, 512, 32}, 64<<10)
	if err != nil || f.KVFloorBytes != 0 {
		t.Errorf("an encoder: %+v, %v", f, err)
	}
}

func TestStepOf(t *testing.T) {
	for _, c := range []struct {
		encoder bool
		context worker.Context
		tokens  int
		want    Step
	}{
		{false, worker.Context{MaxTokens: 512, Sequences: 4}, 256, Step{256, 32, 32}},
		{false, worker.Context{MaxTokens: 512, Sequences: 4}, 1024, Step{1024, 32, 32}},
		{false, worker.Context{MaxTokens: 512, Sequences: 1000}, 1024, Step{1024, 256, 256}},
		{true, worker.Context{MaxTokens: 512, Sequences: 4}, 256, Step{512, 512, 32}},
		{true, worker.Context{MaxTokens: 512, Sequences: 4}, 1024, Step{1024, 1024, 32}},
	} {
		if got := StepOf(arch.Config{Encoder: c.encoder}, c.context, c.tokens); got != c.want {
			t.Errorf("%+v: %+v", c, got)
		}
	}
}

func TestBytes(t *testing.T) {
	for n, want := range map[int64]string{0: "0 bytes", 1023: "1023 bytes", 525 << 10: "525 KiB", 15247100000: "14.2 GiB", 1 << 40: "1 TiB", math.MaxInt64: "8 EiB"} {
		if got := Bytes(n); got != want {
			t.Errorf("Bytes(%d) = %q, want %q", n, got, want)
		}
	}
	if got := RoundUp(1, 64<<10); got != 64<<10 {
		t.Errorf("RoundUp = %d", got)
	}
	if got := RoundUp(math.MaxInt64, 2<<20); got%(2<<20) != 0 || got <= 0 {
		t.Errorf("RoundUp = %d", got)
	}
}
