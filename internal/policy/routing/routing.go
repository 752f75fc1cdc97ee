// Package routing decides which replica gets a request: what workers report, and
// how much the asking gateway has sent since, in; one home and the reason, out.
// Start with Pick.
package routing

import "slices"

// Readiness is how soon a home can take a request.
type Readiness int

// The readinesses, best last.
const (
	Unable   Readiness = iota // refused, failed, draining, or its files are not here yet
	Idle                      // a request wakes it
	Loading                   // on its way to the device
	Resident                  // on the device
)

// Candidate is one home of the requested model.
type Candidate struct {
	Worker    string
	Ready     Readiness
	Connected bool // its worker's state is fresh
	Load      int  // requests running or waiting there, as far as is known
}

// None is the Choice that chooses nothing.
const None = -1

// Choice is the index of a home, or None, and why.
type Choice struct {
	Home   int
	Reason string
}

// Pick chooses among homes the one that answers soonest: of workers whose state
// is fresh before others, resident before loading before idle, then the least
// loaded. Equals take turns: the turn-th of them gets the request. Workers in
// excluded have been tried.
func Pick(homes []Candidate, excluded []string, turn uint64) Choice {
	best, equals := None, uint64(0)
	able := false
	for i, h := range homes {
		if h.Ready == Unable {
			continue
		}
		able = true
		if slices.Contains(excluded, h.Worker) {
			continue
		}
		switch order := compare(h, homes[max(best, 0)]); {
		case best == None || order < 0:
			best, equals = i, 1
		case order == 0:
			equals++
		}
	}
	switch {
	case len(homes) == 0:
		return Choice{None, "the model has no home"}
	case !able:
		return Choice{None, "no home can take a request now"}
	case best == None:
		return Choice{None, "every home that could take a request has been tried"}
	}
	return Choice{nth(homes, excluded, best, turn%equals), reason(homes[best])}
}

// compare is negative if a is better than b.
func compare(a, b Candidate) int {
	switch {
	case a.Connected != b.Connected:
		if a.Connected {
			return -1
		}
		return 1
	case a.Ready != b.Ready:
		return int(b.Ready) - int(a.Ready)
	}
	return a.Load - b.Load
}

// nth finds the n-th home, from 0, that equals the best one.
func nth(homes []Candidate, excluded []string, best int, n uint64) int {
	for i := best; ; i++ {
		h := homes[i]
		if h.Ready == Unable || compare(h, homes[best]) != 0 || slices.Contains(excluded, h.Worker) {
			continue
		}
		if n == 0 {
			return i
		}
		n--
	}
}

func reason(h Candidate) string {
	switch {
	case !h.Connected:
		return "no worker with a fresh state has it; this one had it last"
	case h.Ready == Resident:
		return "resident, least loaded"
	case h.Ready == Loading:
		return "loading, and resident nowhere"
	}
	return "resident and loading nowhere; the request wakes it"
}
