// Package scaling decides how many replicas a model has and how many workers a
// pool. It is pure: time is an argument, and what must be remembered is handed
// back. Start with Replicas and Workers.
package scaling

import (
	"cmp"
	"fmt"
	"slices"
	"time"
)

// Spec bounds the replicas of a model. A fixed number has Min == Max.
type Spec struct {
	Min, Max  int
	Target    int           // requests per replica, > 0
	IdleAfter time.Duration // fewer replicas only after the load has been lower for so long
}

// Load is what clients want of a model now, over all replicas and gateways.
type Load struct {
	Running int // in a batch
	Waiting int // queued at a worker
	Held    int // held by a gateway
}

// Total of all requests.
func (l Load) Total() int { return l.Running + l.Waiting + l.Held }

// State is what Replicas must remember.
type State struct {
	Wanted   int       // the last decision
	LowSince time.Time // the load has asked for less since; zero: it does not
	Peak     int       // the most it asked for since then
}

// ReplicaCount is how many replicas a model is to have, and why.
type ReplicaCount struct {
	Wanted int
	Reason string
}

// Replicas of a model. More are wanted at once, fewer only when the load has
// asked for fewer during IdleAfter. With Target 8 and 17 requests it asks for
// 3; when 4 requests are left, 1 is wanted IdleAfter later.
func Replicas(now time.Time, spec Spec, load Load, state State) (ReplicaCount, State) {
	if spec.Min == spec.Max {
		return ReplicaCount{spec.Min, fmt.Sprintf("fixed at %d", spec.Min)}, State{Wanted: spec.Min}
	}
	asked := min(max(ceilDiv(load.Total(), spec.Target), spec.Min), spec.Max)
	held := min(max(state.Wanted, spec.Min), spec.Max)
	if asked >= held {
		return ReplicaCount{asked, loadReason(load, spec)}, State{Wanted: asked}
	}
	next := State{Wanted: held, LowSince: state.LowSince, Peak: max(asked, state.Peak)}
	if next.LowSince.IsZero() {
		next.LowSince, next.Peak = now, asked
	}
	if now.Sub(next.LowSince) < spec.IdleAfter {
		return ReplicaCount{held, fmt.Sprintf("kept at %d until the load has been lower for %v", held, spec.IdleAfter)}, next
	}
	return ReplicaCount{next.Peak, loadReason(load, spec)}, State{Wanted: next.Peak}
}

func loadReason(l Load, s Spec) string {
	return fmt.Sprintf("%d requests at %d per replica, within %d to %d", l.Total(), s.Target, s.Min, s.Max)
}

func ceilDiv(a, b int) int { return (a + b - 1) / b }

// Pool bounds the workers of a pool.
type Pool struct {
	Min, Max       int
	Fixed          *int          // overrides the choice within Min and Max
	ScaleDownAfter time.Duration // an idle worker is given back after this
	MaxUnavailable int           // workers that may be missing during an update, > 0
	Blocked        bool          // the last worker could not be made
	Replacing      int           // workers that served and are gone, and have no successor yet
}

// Worker is a worker of a pool as far as scaling cares.
type Worker struct {
	Name      string
	Ready     bool      // takes homes
	Silent    bool      // not Ready, since nothing is heard of it; it may be serving
	Extra     bool      // not Ready, and made beside those that served, not in the place of one
	Going     bool      // is being drained or deleted: decided already
	Settling  bool      // models are still on their way to its devices
	Outdated  bool      // made from another template, or its node is about to go
	Homes     int       // models at home here
	IdleSince time.Time // nothing has been resident since; zero: not idle
}

// WorkerCount is what to do about the workers of a pool.
type WorkerCount struct {
	Create int
	Remove []Removal
	// Again is when an idle worker's time is up, if nothing else happens; zero: never.
	Again time.Time
}

// Removal is a worker to drain and delete, and why.
type Removal struct {
	Worker string
	Reason string
}

// OutOfDate is why a worker is replaced in an update.
const OutOfDate = "its pod template has changed, or its node is about to go"

// Workers decides how many workers to create and which to give back or to
// replace. Need is how many workers beyond those there are (and those that are
// starting) the models without a home would fill. Every worker that still
// exists counts as one, also one that is going: its devices are not there twice.
func Workers(now time.Time, p Pool, workers []Worker, need int) WorkerCount {
	workers = slices.Clone(workers)
	slices.SortFunc(workers, func(a, b Worker) int { return cmp.Compare(a.Name, b.Name) })
	staying := 0
	for _, w := range workers {
		if !w.Going {
			staying++
		}
	}
	low, high := p.Min, p.Max
	if p.Fixed != nil {
		low = min(max(*p.Fixed, p.Min), p.Max)
		high = low
	}
	var d WorkerCount
	wanted := min(max(staying+need, low), high)
	d.Create = max(0, wanted-len(workers))
	if staying > high {
		d.Remove = surplus(workers, staying-high, high)
		return d
	}
	d.Remove, d.Again = idle(now, p, workers, min(staying-low, countIdle(now, p, workers, need)))
	if len(d.Remove) == 0 {
		d.Remove = outdated(p, workers, d.Create)
	}
	return d
}

// surplus gives back n workers beyond the limit: first those not ready, then those with the fewest homes.
func surplus(workers []Worker, n, limit int) []Removal {
	order := slices.DeleteFunc(slices.Clone(workers), func(w Worker) bool { return w.Going })
	slices.SortStableFunc(order, func(a, b Worker) int {
		return cmp.Or(compareBool(a.Ready, b.Ready), cmp.Compare(a.Homes, b.Homes), cmp.Compare(a.Name, b.Name))
	})
	var r []Removal
	for _, w := range order[:n] {
		r = append(r, Removal{w.Name, fmt.Sprintf("the pool is to have %d workers", limit)})
	}
	return r
}

// countIdle is how many workers have been idle long enough; none while models need more workers.
func countIdle(now time.Time, p Pool, workers []Worker, need int) int {
	if need > 0 {
		return 0
	}
	n := 0
	for _, w := range workers {
		if idleLongEnough(now, p, w) {
			n++
		}
	}
	return n
}

func idleLongEnough(now time.Time, p Pool, w Worker) bool {
	return !w.Going && w.Ready && !w.IdleSince.IsZero() && now.Sub(w.IdleSince) >= p.ScaleDownAfter
}

// idle gives back up to n workers whose time is up, the longest idle first.
func idle(now time.Time, p Pool, workers []Worker, n int) (r []Removal, again time.Time) {
	order := slices.Clone(workers)
	slices.SortStableFunc(order, func(a, b Worker) int {
		return cmp.Or(a.IdleSince.Compare(b.IdleSince), cmp.Compare(a.Name, b.Name))
	})
	for _, w := range order {
		switch {
		case idleLongEnough(now, p, w) && len(r) < n:
			r = append(r, Removal{w.Name, fmt.Sprintf("idle for %v", now.Sub(w.IdleSince).Round(time.Second))})
		case !w.Going && w.Ready && !w.IdleSince.IsZero() && !idleLongEnough(now, p, w):
			if due := w.IdleSince.Add(p.ScaleDownAfter); again.IsZero() || due.Before(again) {
				again = due
			}
		}
	}
	return r, again
}

// outdated replaces workers of an old template, so many at once that no more
// than MaxUnavailable are missing; those that are not ready first. Silent ones
// are missing already, but may be serving: they do not go all at once either.
// Successors to be created are missing too, unless they cannot be made. Extra
// ones are not: one that never gets a node must not keep the others from an update.
func outdated(p Pool, workers []Worker, create int) []Removal {
	away, silent := min(create, p.Replacing), 0
	if p.Blocked {
		away = 0
	}
	for _, w := range workers {
		switch {
		case w.Extra:
		case w.Going || !w.Ready && !w.Silent || w.Settling && !w.Outdated:
			away++
		case w.Silent:
			silent++
		}
	}
	var r []Removal
	order := slices.Clone(workers)
	slices.SortStableFunc(order, func(a, b Worker) int {
		return cmp.Or(compareBool(a.Ready, b.Ready), cmp.Compare(a.Homes, b.Homes), cmp.Compare(a.Name, b.Name))
	})
	for _, w := range order {
		missing := away
		if w.Ready {
			missing += silent
		}
		if !w.Outdated || w.Going || (w.Ready || w.Silent) && missing >= p.MaxUnavailable {
			continue
		}
		switch {
		case w.Silent:
			away, silent = away+1, silent-1
		case w.Ready:
			away++
		}
		r = append(r, Removal{w.Name, OutOfDate})
	}
	return r
}

// compareBool puts false first.
func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}

// Replica is one that waits for a worker, as far as scaling cares.
type Replica struct {
	Model string // two replicas of one do not share a worker
	Bytes int64  // that it needs on a device
	Alone bool   // on a worker of its own
}

// Fill is how many empty workers the replicas would fill, each with the given
// devices of so many bytes: in the order given, each goes to the first worker
// with room. It is at most limit, and what is larger than a device counts as a worker.
func Fill(replicas []Replica, bytes int64, devices, limit int) int {
	type bin struct {
		free   []int64
		alone  bool
		models map[string]bool
	}
	var bins []*bin
	first := 0 // bins before it are full
	for _, r := range replicas {
		var at *bin
		for i := first; i < len(bins) && !r.Alone; i++ {
			b := bins[i]
			if most := slices.Max(b.free); !b.alone && most >= r.Bytes && !b.models[r.Model] {
				at = b
				break
			} else if i == first && (b.alone || most == 0) {
				first++
			}
		}
		if at == nil {
			if len(bins) == limit {
				return limit
			}
			at = &bin{free: slices.Repeat([]int64{bytes}, devices), alone: r.Alone, models: map[string]bool{}}
			bins = append(bins, at)
		}
		i := slices.IndexFunc(at.free, func(n int64) bool { return n >= r.Bytes })
		if i < 0 {
			i = 0
		}
		at.free[i] = max(0, at.free[i]-r.Bytes)
		at.models[r.Model] = true
	}
	return len(bins)
}
