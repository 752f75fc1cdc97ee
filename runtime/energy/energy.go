// Package energy divides the energy of a device among the models that ran on it. It is
// arithmetic: times, the counter and what ran are arguments. Start with Account.Add.
//
// Between two readings of the device's counter lies an interval of some length, in which some joules were
// drawn and some models' steps took some time. What the device draws while nothing runs is idle's: the
// time without steps by the draw at idle. The rest is the models', in proportion to the time of
// their steps. So models and idle add up to the counter, always:
//
//	300 J in 1 s, draw at idle 60 W, a's steps took 0.2 s, b's 0.6 s:
//	idle 0.2 s * 60 W = 12 J, a 288 J / 4 = 72 J, b 216 J
//
// The draw at idle is measured in intervals in which nothing ran, as a mean over a minute. Until there was
// one, it is taken to be the lowest mean of any interval, which is too much; and it is never more than the
// interval's own mean. What
// other processes on the device draw cannot be told from that: while no model runs it is idle's, and while
// one runs it is the model's.
//
// The time of steps must count as they run, not when they end: a step that is longer than an interval would else
// get none of the first one's energy.
package energy

import (
	"maps"
	"math"
	"time"
)

const (
	// idleOver is the time constant of the draw at idle, in seconds.
	idleOver = 60
	// recentOver is the time constant of joules per token, in seconds.
	recentOver = 300
	// most is what no device draws, in watts. An interval with more is one in which the counter was another.
	most = 20e3
)

// Use is what a model has had of a device, as counters that only grow.
type Use struct {
	Busy   time.Duration // of its steps
	Tokens int64         // that they computed
}

// Sample is what was read at one time.
type Sample struct {
	At     time.Time
	Joules float64        // counter of the device
	Use    map[string]Use // model -> counters; one that is not there has had nothing since the last sample
}

// Account is the energy of one device since its first sample. The zero value is ready.
type Account struct {
	at      time.Time // of the last sample; zero: there is none
	counter float64   // at that time
	use     map[string]Use
	models  map[string]float64
	recent  map[string]recent
	idle    float64
	skipped time.Duration
	draw    float64 // at idle, watts; 0: unknown
	drawn   bool    // it has been measured, and is not only the lowest mean
}

// recent is what a model has drawn and computed lately: sums in which what was one time constant ago counts e
// times less.
type recent struct {
	joules, tokens float64
	at             time.Time
}

func (r recent) add(joules, tokens float64, at time.Time) recent {
	keep := 1.
	if !r.at.IsZero() {
		keep = math.Exp(-at.Sub(r.at).Seconds() / recentOver)
	}
	return recent{r.joules*keep + joules, r.tokens*keep + tokens, at}
}

// Add takes a sample. Samples that were missed do no harm: the interval is longer then. One that is not later
// than the last is ignored. Where the counter has begun anew, or grew by more than any device draws, nothing
// is known of what was drawn meanwhile, and nothing is divided; Skipped counts that time.
func (a *Account) Add(s Sample) {
	if a.at.IsZero() {
		a.at, a.counter, a.use = s.At, s.Joules, map[string]Use{}
		a.models, a.recent = map[string]float64{}, map[string]recent{}
		maps.Copy(a.use, s.Use)
		return
	}
	length, joules := s.At.Sub(a.at), s.Joules-a.counter
	if length <= 0 {
		return
	}
	a.at, a.counter = s.At, s.Joules
	had := map[string]Use{} // in the interval
	for model, use := range s.Use {
		was := a.use[model]
		if use.Busy < was.Busy || use.Tokens < was.Tokens {
			was = Use{} // its counters began anew
		}
		if use != was {
			had[model] = Use{use.Busy - was.Busy, use.Tokens - was.Tokens}
		}
		a.use[model] = use
	}
	if !(joules >= 0 && joules <= most*length.Seconds()) { // nor is it a number
		a.skipped += length
		return
	}
	a.divide(length.Seconds(), joules, had)
}

// divide divides what was drawn in so many seconds among models, by what they had of the device in them.
func (a *Account) divide(seconds, joules float64, had map[string]Use) {
	used := 0.
	for _, use := range had {
		used += use.Busy.Seconds()
	}
	mean, idle := joules/seconds, joules
	switch {
	case used <= 0:
		a.idled(mean, seconds)
	default:
		if !a.drawn && (a.draw == 0 || mean < a.draw) {
			a.draw = mean
		}
		idle = min(a.draw, mean) * max(seconds-used, 0)
	}
	a.idle += idle
	for model, use := range had {
		part := 0.
		if used > 0 {
			part = (joules - idle) * use.Busy.Seconds() / used
		}
		a.models[model] += part
		a.recent[model] = a.recent[model].add(part, float64(use.Tokens), a.at)
	}
}

// idled takes so many seconds in which nothing ran into the draw at idle.
func (a *Account) idled(watts, seconds float64) {
	if !a.drawn {
		a.draw, a.drawn = watts, true
		return
	}
	a.draw += (watts - a.draw) * -math.Expm1(-seconds/idleOver)
}

// Joules is what has been divided so far: of each model that ever ran, and of idle. They add up to
// what the counter has grown by since the first sample, but for the time that was Skipped.
func (a *Account) Joules() (models map[string]float64, idle float64) {
	return maps.Clone(a.models), a.idle
}

// Skipped is the time of which nothing is known.
func (a *Account) Skipped() time.Duration { return a.skipped }

// PerToken is what a model has drawn for each token that it computed, as a mean over some 5 minutes in which it
// did; false if nothing is known.
func (a *Account) PerToken(model string) (joules float64, known bool) {
	r := a.recent[model]
	if r.tokens < 0.5 || r.joules <= 0 {
		return 0, false
	}
	return r.joules / r.tokens, true
}

// Forget drops a model that will not come back; its joules leave the sum.
func (a *Account) Forget(model string) {
	delete(a.models, model)
	delete(a.recent, model)
	delete(a.use, model)
}
