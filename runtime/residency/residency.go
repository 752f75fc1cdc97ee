// Package residency decides which of the models at home on a worker are on its
// devices now. It is pure: what the worker has measured goes in; loads,
// evictions and refusals come out, each with its reason. Start with Decide.
package residency

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Account is what a device has and what is admitted on it, in bytes. Both are
// whole numbers of the device's extents, and 0 <= Used <= Capacity.
type Account struct {
	Device         string
	Capacity, Used int64
}

// Home is a model that may live on a device, as the worker sees it.
type Home struct {
	Model  string
	Device string
	Need   int64 // bytes of its footprint
	// Held bytes are in the device's account already: it is loading, resident or leaving.
	Held int64
	// Leaving: its bytes are on the way back to the account.
	Leaving bool
	// Loaded: it is on the device and answers requests.
	Loaded bool
	// Old: the revision before another home of the same model, for which it answers
	// until that is on the device. It may go at any time, even while it runs requests.
	Old bool

	Required bool // the assignment asks for it to be resident
	Waiting  int  // requests that wait for it to be loaded
	Running  int  // requests that it answers now

	WaitingSince  time.Time // of the oldest of those that wait
	LastUse       time.Time
	IdleAfter     time.Duration // 0: never leaves for being idle
	EvictionOrder int           // lower goes first
	NeverEvict    bool
}

// Load says that a home's Need is to be admitted to its device's account.
type Load struct{ Model, Device, Reason string }

// Eviction says that a home is to leave its device.
type Eviction struct {
	Model, Device, Reason string
	Old                   bool // as in Home
}

// Refusal says that a home is wanted on its device and does not fit.
type Refusal struct{ Model, Device, Message string }

// Decision is what to do now. A home that is wanted and in none of the lists
// waits for memory that is on its way back.
type Decision struct {
	Loads     []Load
	Evictions []Eviction
	Refusals  []Refusal
	// Again is when the next home will have been idle for long enough to leave; zero if none will.
	Again time.Time
}

// Decide says which homes to load, to evict and to refuse. A load is decided
// only if its need fits what is free in the account, so that no load takes a
// neighbour's memory. Else others make room: the revision before it, that of
// another model, then idle homes that may go, those with the lowest EvictionOrder
// first, then those idle for longest. The order of homes does not matter.
func Decide(accounts []Account, homes []Home, now time.Time) Decision {
	s := state{now: now, free: map[string]int64{}, accounts: map[string]Account{}}
	s.homes = slices.Clone(homes)
	for _, a := range accounts {
		s.accounts[a.Device] = a
		s.free[a.Device] = a.Capacity - a.Used
	}
	slices.SortFunc(s.homes, func(a, b Home) int {
		return cmp.Or(cmp.Compare(a.Model, b.Model), cmp.Compare(a.Held, b.Held))
	})

	s.idle()
	for _, h := range s.demands() {
		s.admit(h)
	}
	return s.decision
}

// Fits says whether Decide would find room for a home that nobody wants now, if
// a request came for it: at once, or by evicting.
func Fits(accounts []Account, homes []Home, model string, now time.Time) bool {
	homes = slices.Clone(homes)
	for i := range homes {
		if homes[i].Model == model && !homes[i].Old {
			homes[i].Waiting, homes[i].WaitingSince = 1, now
		}
	}
	refusals := Decide(accounts, homes, now).Refusals
	return !slices.ContainsFunc(refusals, func(r Refusal) bool { return r.Model == model })
}

type state struct {
	now      time.Time
	homes    []Home
	accounts map[string]Account
	free     map[string]int64 // device -> what is neither used nor promised to an earlier demand; negative: promised from what comes back
	decision Decision
}

// idle evicts the homes that nobody has asked for in a while.
func (s *state) idle() {
	for i := range s.homes {
		h := &s.homes[i]
		if !h.Loaded || h.Leaving || h.Old || h.Required || h.busy() || h.IdleAfter <= 0 {
			continue
		}
		if due := h.LastUse.Add(h.IdleAfter); due.After(s.now) {
			if s.decision.Again.IsZero() || due.Before(s.decision.Again) {
				s.decision.Again = due
			}
			continue
		}
		s.evict(h, fmt.Sprintf("No request for %s.", h.IdleAfter))
	}
}

// demands are the homes that are wanted on their device and are not there:
// first those that requests wait for, the longest wait first, then those that
// the assignment wants, the dearest first.
func (s *state) demands() []Home {
	var wanted []Home
	for _, h := range s.homes {
		if h.Held == 0 && !h.Leaving && (h.Required || h.Waiting > 0) {
			wanted = append(wanted, h)
		}
	}
	slices.SortStableFunc(wanted, func(a, b Home) int {
		if (a.Waiting > 0) != (b.Waiting > 0) {
			return cmp.Compare(b.Waiting, a.Waiting) // one of them is 0
		}
		if a.Waiting > 0 {
			return a.WaitingSince.Compare(b.WaitingSince)
		}
		return cmp.Compare(b.EvictionOrder, a.EvictionOrder)
	})
	return wanted
}

// admit decides one demand.
func (s *state) admit(h Home) {
	account, known := s.accounts[h.Device]
	if !known {
		s.refuse(h, fmt.Sprintf("This worker has no device %s.", h.Device))
		return
	}
	if h.Need > account.Capacity {
		s.refuse(h, fmt.Sprintf("Needs %s; %s has %s in all.", Bytes(h.Need), h.Device, Bytes(account.Capacity)))
		return
	}
	if h.Need <= s.free[h.Device] {
		s.free[h.Device] -= h.Need
		s.decision.Loads = append(s.decision.Loads, Load{h.Model, h.Device, s.why(h, account)})
		return
	}
	// What is leaving counts as coming: the load waits for it, and is decided when it is there.
	short := h.Need - s.free[h.Device] - s.coming(h.Device)
	if short > 0 {
		victims := s.victims(h, short)
		if victims == nil {
			s.refuse(h, fmt.Sprintf("Needs %s; %s of %s is free on %s%s.", Bytes(h.Need), Bytes(max(s.free[h.Device], 0)), Bytes(account.Capacity), h.Device, s.holders(h.Device)))
			return
		}
		for _, v := range victims {
			s.evict(v, fmt.Sprintf("Makes room for %s, which needs %s.", h.Model, Bytes(h.Need)))
		}
	}
	s.free[h.Device] -= h.Need
}

func (s *state) why(h Home, a Account) string {
	for_ := "The assignment wants it resident"
	if h.Waiting > 0 {
		for_ = fmt.Sprintf("%d waiting for it", h.Waiting)
	}
	return fmt.Sprintf("%s; needs %s, %s of %s is free on %s.", for_, Bytes(h.Need), Bytes(s.free[h.Device]+h.Need), Bytes(a.Capacity), h.Device)
}

// coming is what leaves a device.
func (s *state) coming(device string) int64 {
	var n int64
	for _, h := range s.homes {
		if h.Device == device && h.Leaving {
			n += h.Held
		}
	}
	return n
}

// victims are old or idle homes that together hold at least short bytes, none of
// them in vain; nil if there are not enough.
func (s *state) victims(wanted Home, short int64) []*Home {
	var may []*Home
	for i := range s.homes {
		h := &s.homes[i]
		if h.Device == wanted.Device && h.Loaded && !h.Leaving && (h.Old || !h.Required && !h.NeverEvict && !h.busy()) {
			may = append(may, h)
		}
	}
	rank := func(h *Home) int {
		switch {
		case h.Old && h.Model == wanted.Model:
			return 0
		case h.Old:
			return 1
		}
		return 2
	}
	slices.SortStableFunc(may, func(a, b *Home) int {
		return cmp.Or(cmp.Compare(rank(a), rank(b)), cmp.Compare(a.EvictionOrder, b.EvictionOrder), a.LastUse.Compare(b.LastUse))
	})
	var victims []*Home
	var sum int64
	for _, h := range may {
		if sum >= short {
			break
		}
		victims = append(victims, h)
		sum += h.Held
	}
	if sum < short {
		return nil
	}
	// A large one at the end may have made small ones before it needless.
	for i := len(victims) - 1; i >= 0; i-- {
		if sum-victims[i].Held >= short {
			sum -= victims[i].Held
			victims = slices.Delete(victims, i, i+1)
		}
	}
	return victims
}

func (s *state) evict(h *Home, reason string) {
	h.Leaving = true
	s.decision.Evictions = append(s.decision.Evictions, Eviction{h.Model, h.Device, reason, h.Old})
}

func (s *state) refuse(h Home, message string) {
	s.decision.Refusals = append(s.decision.Refusals, Refusal{h.Model, h.Device, message})
}

// holders names the largest homes on a device, and why they stay.
func (s *state) holders(device string) string {
	var held []Home
	for _, h := range s.homes {
		if h.Device == device && h.Held > 0 {
			held = append(held, h)
		}
	}
	slices.SortStableFunc(held, func(a, b Home) int { return cmp.Compare(b.Held, a.Held) })
	const most = 5
	var names []string
	for i, h := range held {
		if i == most {
			names = append(names, fmt.Sprintf("and %d more", len(held)-most))
			break
		}
		names = append(names, fmt.Sprintf("%s (%s, %s)", h.Model, Bytes(h.Held), h.stays()))
	}
	if len(names) == 0 {
		return ""
	}
	return "; held by " + strings.Join(names, ", ")
}

func (h Home) stays() string {
	switch {
	case h.Leaving:
		return "leaving"
	case h.Old:
		return "until its next revision is there"
	case !h.Loaded:
		return "loading"
	case h.busy():
		return fmt.Sprintf("%d requests", h.Running+h.Waiting)
	case h.Required:
		return "must stay resident"
	case h.NeverEvict:
		return "eviction: Never"
	}
	return "idle"
}

func (h Home) busy() bool { return h.Running > 0 || h.Waiting > 0 }
