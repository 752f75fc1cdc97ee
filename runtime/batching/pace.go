package batching

import "time"

// pace is what a replica's steps have taken lately: weighted sums over steps, each
// step back counting a fifth less, of tokens n and seconds t. Its zero value has seen none.
type pace struct {
	weight, n, t, nn, nt float64
	last                 int     // tokens of the last step
	base                 float64 // seconds, when it last showed
	known                int     // steps for which that is to be believed
}

const (
	// firstTokens of a step whose pace nobody knows.
	firstTokens = 16
	// keepPace is what a step counts one step later.
	keepPace = 0.8
	// spread of the steps' sizes, relative to their mean, from which on a base and a
	// price for each token can be told apart.
	spread = 0.25
	// surprise is how many times as long as expected, or as short, a step takes when the
	// device's own pace has changed: what was before says nothing any more.
	surprise = 1.7
	// believe a base for so many steps.
	believe = 100
	// baseShare bounds a step by the base: where reading the weights takes longer than
	// StepTime whatever is computed, chunks of one token would take for ever.
	baseShare = 1.5
)

// add counts a step.
func (p *pace) add(tokens int, took time.Duration) {
	n, t := float64(tokens), took.Seconds()
	if base, each, _ := p.fit(); p.weight > 0 {
		if expected := base + each*n; t > expected*surprise || t < expected/surprise {
			*p = pace{}
		}
	}
	p.weight = p.weight*keepPace + 1
	p.n = p.n*keepPace + n
	p.t = p.t*keepPace + t
	p.nn = p.nn*keepPace + n*n
	p.nt = p.nt*keepPace + n*t
	p.last = tokens
	p.known--
	if base, _, same := p.fit(); !same {
		p.base, p.known = base, believe
	}
}

// each is the seconds that one token takes; a microsecond if that is not known.
func (p *pace) each() float64 {
	if p.t <= 0 {
		return 1e-6
	}
	return p.t / p.n
}

// fit says what a step costs: a base and each token the same, in seconds. While all
// steps are of one size, which it says too, the base is what it was when they were not,
// or nothing.
func (p *pace) fit() (base, each float64, same bool) {
	if p.t <= 0 {
		return 0, 0, false
	}
	mean, time := p.n/p.weight, p.t/p.weight
	each = time / mean
	variance := p.nn/p.weight - mean*mean
	if variance < spread*spread*mean*mean {
		if p.known > 0 && p.base < time {
			return p.base, (time - p.base) / mean, true
		}
		return 0, each, true
	}
	if slope := (p.nt/p.weight - mean*time) / variance; 0 < slope && slope < each {
		each = max(slope, each/8) // below that it is noise
		base = time - each*mean
	}
	return base, each, false
}

// tokens is how many take StepTime, at least one: StepTime times the measured rate.
// They never more than double from one step to the next. Where steps of one size take
// too long, sizes grow by a quarter until it shows whether that is the tokens' fault.
func (p *pace) tokens() int {
	if p.weight == 0 {
		return firstTokens
	}
	if p.t <= 0 {
		return 1 << 30 // too fast to measure
	}
	limit, least := StepTime.Seconds(), 1
	base, each, same := p.fit()
	if same && p.known <= 0 && p.weight > 2 && p.t > 0.8*limit*p.weight {
		least = p.last + max(p.last/4, 1)
	}
	n := (max(limit, baseShare*base) - base) / each
	return max(int(min(n, float64(max(2*p.last, firstTokens)))), least)
}
