package energy

import (
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"testing"
	"time"
)

var start = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

// step is one of a schedule.
type step struct {
	model    string
	from, to float64 // seconds
	watts    float64 // of the device while it runs
	tokens   int64
}

// device draws idle watts where no step runs. Its counter moves each tick only, as a real one does.
type device struct {
	steps []step
	idle  float64
	tick  float64
}

// joules drawn up to a time.
func (d device) joules(at float64) float64 {
	if d.tick > 0 {
		at = math.Floor(at/d.tick) * d.tick
	}
	sum := d.idle * at
	for _, s := range d.steps {
		sum += max(min(s.to, at)-s.from, 0) * (s.watts - d.idle)
	}
	return sum
}

func (d device) sample(at float64) Sample {
	s := Sample{At: start.Add(seconds(at)), Joules: d.joules(at), Use: map[string]Use{}}
	for _, p := range d.steps {
		u := s.Use[p.model]
		if p.to <= at {
			u.Tokens += p.tokens
		}
		u.Busy += seconds(max(min(p.to, at)-p.from, 0))
		s.Use[p.model] = u
	}
	return s
}

func near(t *testing.T, what string, got, want, within float64) {
	t.Helper()
	if math.Abs(got-want) > within*math.Max(math.Abs(want), 1e-9) {
		t.Errorf("%s: %g, want %g within %g %%", what, got, want, within*100)
	}
}

func sum(a *Account) float64 {
	models, total := a.Joules()
	for _, j := range models {
		total += j
	}
	return total
}

// TestExample is that of the package comment.
func TestExample(t *testing.T) {
	var a Account
	a.Add(Sample{At: start, Joules: 5000})
	if a.drawn {
		t.Error("the draw at idle is known")
	}
	a.Add(Sample{At: start.Add(20 * time.Second), Joules: 6200})
	if !a.drawn || a.draw != 60 {
		t.Error(a.draw, a.drawn)
	}
	_, idle := a.Joules()
	near(t, "idle before", idle, 1200, 1e-9)
	a.Add(Sample{At: start.Add(21 * time.Second), Joules: 6500, Use: map[string]Use{"a": {seconds(0.2), 36}, "b": {seconds(0.6), 1}, "c": {}}})
	models, now := a.Joules()
	near(t, "a", models["a"], 72, 1e-9)
	near(t, "b", models["b"], 216, 1e-9)
	near(t, "idle", now-idle, 12, 1e-9)
	if per, known := a.PerToken("a"); !known || math.Abs(per-2) > 1e-9 {
		t.Error(per, known)
	}
	if _, known := a.PerToken("c"); known {
		t.Error("c gave no tokens")
	}
	a.Forget("a")
	if models, _ := a.Joules(); models["a"] != 0 || len(models) != 1 {
		t.Error(models)
	}
}

// TestOneToThree: two models of known busy times, at several lengths of steps and shares of the time, measured once
// a second with a counter that moves ten times a second.
func TestOneToThree(t *testing.T) {
	for _, length := range []float64{0.03, 0.3, 1.3, 4} {
		for _, load := range []float64{0.1, 0.5, 0.9, 1} {
			for _, quiet := range []float64{0, 30} { // seconds before, in which the draw at idle can be seen
				t.Run(fmt.Sprintf("steps of %v s, load %v, after %v s", length, load, quiet), func(t *testing.T) {
					d := device{idle: 60, tick: 0.1}
					const end = 200
					at := quiet
					for k := 0; at < end; k++ {
						model, n := "a", 1.
						if k%2 == 1 {
							model, n = "b", 3
						}
						d.steps = append(d.steps, step{model: model, from: at, to: at + n*length, watts: 300, tokens: int64(n)})
						at += n * length / load
					}
					var a Account
					for s := range end {
						a.Add(d.sample(float64(s)))
					}
					near(t, "sum", sum(&a), d.joules(end-1), 1e-9)
					models, idle := a.Joules()
					last := d.sample(end - 1)
					within := 0.1
					if quiet == 0 && load < 1 {
						within = 0.2 // the draw at idle may never be seen
					}
					near(t, "1:3", models["b"]/models["a"], last.Use["b"].Busy.Seconds()/last.Use["a"].Busy.Seconds(), within)
					if quiet > 0 {
						busy := (last.Use["a"].Busy + last.Use["b"].Busy).Seconds()
						near(t, "active", models["a"]+models["b"], busy*300, 0.1)
						near(t, "idle", idle, d.joules(end-1)-busy*300, 0.2)
						perA, _ := a.PerToken("a")
						perB, _ := a.PerToken("b")
						near(t, "joules per token", perA, perB, 0.1)
						near(t, "joules per token", perA, 300*length, 0.1)
					}
				})
			}
		}
	}
}

// TestConserved: whatever runs, and however it is sampled, what was given and idle are what the counter says, no
// part is below zero, and none ever shrinks.
func TestConserved(t *testing.T) {
	for seed := range uint64(500) {
		r := rand.New(rand.NewPCG(seed, 1))
		var a Account
		now, counter, skipped := start, r.Float64()*1e6, time.Duration(0)
		use := map[string]Use{}
		a.Add(Sample{At: now, Joules: counter})
		grown := 0.
		before, idleBefore := a.Joules()
		for range 200 {
			for m := range r.IntN(4) {
				u := &[]Use{use[fmt.Sprint(m)]}[0]
				u.Busy += seconds(r.ExpFloat64())
				u.Tokens += r.Int64N(100)
				use[fmt.Sprint(m)] = *u
			}
			if r.IntN(20) == 0 {
				delete(use, fmt.Sprint(r.IntN(4)))
			}
			length := seconds(r.ExpFloat64())
			if r.IntN(30) == 0 {
				length *= 100 // suspended
			}
			drawn := length.Seconds() * r.Float64() * 700
			now = now.Add(length)
			switch r.IntN(25) {
			case 0: // begins anew
				if counter > 2000 {
					counter = r.Float64()
					skipped += length
					drawn = 0
				} else {
					counter += drawn
				}
			case 1: // another counter
				counter += 1e12
				skipped += length
				drawn = 0
			default:
				counter += drawn
			}
			grown += drawn
			s := Sample{At: now, Joules: counter, Use: maps.Clone(use)}
			a.Add(s)
			a.Add(s) // twice is nothing
			models, idle := a.Joules()
			for m, j := range before {
				if models[m] < j {
					t.Fatalf("seed %d: model %s has %g, and had %g", seed, m, models[m], j)
				}
			}
			if idle < idleBefore-1e-9 {
				t.Fatalf("seed %d: idle has %g, and had %g", seed, idle, idleBefore)
			}
			before, idleBefore = models, idle
			if all := sum(&a); math.Abs(all-grown) > 1e-6*grown+0.05 {
				t.Fatalf("seed %d: %g in all, the counter grew by %g", seed, all, grown)
			}
		}
		if a.Skipped() != skipped {
			t.Errorf("seed %d: %v skipped, want %v", seed, a.Skipped(), skipped)
		}
	}
}

// TestMissed: the parts do not depend on how often the counter is read, where the load is even.
func TestMissed(t *testing.T) {
	d := device{idle: 50}
	for at := 20.; at < 200; at += 0.4 {
		d.steps = append(d.steps, step{model: "a", from: at, to: at + 0.1, watts: 400}, step{model: "b", from: at + 0.1, to: at + 0.25, watts: 400})
	}
	var often, rarely Account
	for s := 0.; s <= 220; s++ {
		often.Add(d.sample(s))
		if int(s)%37 == 0 || s < 16 || s == 220 {
			rarely.Add(d.sample(s))
		}
	}
	x, idleX := often.Joules()
	y, idleY := rarely.Joules()
	near(t, "a", y["a"], x["a"], 0.02)
	near(t, "b", y["b"], x["b"], 0.02)
	near(t, "idle", idleY, idleX, 0.1)
}

// TestNumbers: what is no number does not spoil the sums.
func TestNumbers(t *testing.T) {
	var a Account
	for i, joules := range []float64{100, 200, math.NaN(), 300, math.Inf(1), 400, 500, 600} {
		a.Add(Sample{At: start.Add(seconds(float64(i))), Joules: joules, Use: map[string]Use{"a": {Busy: seconds(float64(i) / 2)}}})
	}
	if s := sum(&a); s != 300 {
		t.Error(s)
	}
	if a.Skipped() != 4*time.Second {
		t.Error(a.Skipped())
	}
}
