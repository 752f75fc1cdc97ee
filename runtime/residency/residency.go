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
	// Limit says why Capacity is less than it was, in a sentence: it goes with refusals.
	Limit string
	// Lost says in a sentence why the device can compute nothing any more; empty: it can. What is
	// on it leaves, and nothing comes.
	Lost string
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
	Waiting  int  // requests that wait for it to be loaded, or to take requests again
	Running  int  // requests that it answers now

	WaitingSince  time.Time     // of the oldest of those that wait
	WantedSince   time.Time     // since when the assignment has asked for it in vain
	ResidentSince time.Time     // its load's end; zero: long ago
	LoadTook      time.Duration // its last load; 0: not known
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

// Yield says that a home is to take no new requests for now, so that it can be evicted
// once those that run have ended. What a decision does not name any more takes them again.
type Yield Eviction

// Refusal says that a home is wanted on its device and does not fit.
type Refusal struct {
	Model, Device, Message string
	// Crowded: what is in its way need not stay. It comes in when that is idle, or in its turn.
	Crowded bool
	// Lost: its device is lost. Only another home helps.
	Lost bool
}

// Decision is what to do now. A home that is wanted and in none of the lists
// waits for memory that is on its way back.
type Decision struct {
	Loads     []Load
	Evictions []Eviction
	Yields    []Yield
	Refusals  []Refusal
	// Again is when to decide anew though nothing has happened: the next home will have been
	// idle for long enough to leave, or somebody's turn comes. Zero: never.
	Again time.Time
}

// Turn is how long a home may be kept from its device by busy ones that need not stay,
// and how long each of those has it at least: longer where a load takes more than a third
// of it, so that most of the time goes into answers.
const Turn = 10 * time.Second

// turn ends for a home that is on its device.
func (h Home) turn() time.Time { return h.ResidentSince.Add(max(Turn, 3*h.LoadTook)) }

// Decide says which homes to load, to evict and to refuse. A load is decided
// only if its need fits what is free in the account, so that no load takes a
// neighbour's memory. Else others make room: the revision before it, that of
// another model, then idle homes that may go, those with the lowest EvictionOrder
// first, then those idle for longest.
//
// Where that is not enough, a home waits until busy ones that may go are idle, for a Turn.
// Then those of no higher EvictionOrder yield to it, the longest resident first, once
// each has had its own turn, and nobody who came later takes the room. So homes that are
// always asked for, and do not fit together, share a device in turns.
//
// The order of homes does not matter.
func Decide(accounts []Account, homes []Home, now time.Time) Decision {
	s := state{now: now, free: map[string]int64{}, stay: map[string]int64{}, yielding: map[*Home]bool{}, accounts: map[string]Account{}}
	s.homes = slices.Clone(homes)
	for _, a := range accounts {
		s.accounts[a.Device] = a
		s.free[a.Device] = a.Capacity - a.Used
	}
	slices.SortFunc(s.homes, func(a, b Home) int {
		return cmp.Or(cmp.Compare(a.Model, b.Model), cmp.Compare(a.Held, b.Held))
	})

	s.lost()
	s.idle()
	for _, h := range s.demands() {
		s.admit(h)
	}
	return s.decision
}

// Fits says whether Decide would find room for a home that nobody wants now, if
// a request came for it: at once, by evicting, or in its turn.
func Fits(accounts []Account, homes []Home, model string, now time.Time) bool {
	homes = slices.Clone(homes)
	for i := range homes {
		if homes[i].Model == model && !homes[i].Old {
			homes[i].Waiting, homes[i].WaitingSince = 1, now
		}
	}
	refusals := Decide(accounts, homes, now).Refusals
	return !slices.ContainsFunc(refusals, func(r Refusal) bool { return r.Model == model && !r.Crowded })
}

type state struct {
	now      time.Time
	homes    []Home
	accounts map[string]Account
	free     map[string]int64 // device -> what is neither used nor promised to an earlier demand; negative: promised from what comes back
	stay     map[string]int64 // device -> what is promised to demands that will stay
	yielding map[*Home]bool   // to an earlier demand
	decision Decision
}

// lost evicts what is on devices that are lost.
func (s *state) lost() {
	for i := range s.homes {
		if h := &s.homes[i]; s.accounts[h.Device].Lost != "" && h.Loaded && !h.Leaving {
			s.evict(h, s.accounts[h.Device].Lost)
		}
	}
}

// idle evicts the homes that nobody has asked for in a while.
func (s *state) idle() {
	for i := range s.homes {
		h := &s.homes[i]
		if !h.Loaded || h.Leaving || h.Old || h.Required || h.busy() || h.IdleAfter <= 0 {
			continue
		}
		if due := h.LastUse.Add(h.IdleAfter); due.After(s.now) {
			s.again(due)
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
		s.refuse(h, fmt.Sprintf("This worker has no device %s.", h.Device), false)
		return
	}
	if account.Lost != "" {
		s.decision.Refusals = append(s.decision.Refusals, Refusal{Model: h.Model, Device: h.Device, Message: account.Lost, Lost: true})
		return
	}
	if h.Need > account.Capacity {
		s.refuse(h, fmt.Sprintf("Needs %s; %s has %s in all.", Bytes(h.Need), h.Device, Bytes(account.Capacity)), false)
		return
	}
	if h.Need <= s.free[h.Device] {
		s.promise(h)
		s.decision.Loads = append(s.decision.Loads, Load{h.Model, h.Device, s.why(h, account)})
		return
	}
	// What is leaving counts as coming: the load waits for it, and is decided when it is there.
	short := h.Need - s.free[h.Device] - s.coming(h.Device)
	if short > 0 {
		victims := enough(s.idlers(h), short)
		if victims == nil {
			s.crowd(h, short)
			return
		}
		for _, v := range victims {
			s.evict(v, room(h))
		}
	}
	s.promise(h)
}

// promise keeps the need of a demand that is decided.
func (s *state) promise(h Home) {
	s.free[h.Device] -= h.Need
	if h.Required || h.NeverEvict {
		s.stay[h.Device] += h.Need
	}
}

func room(h Home) string {
	return fmt.Sprintf("Makes room for %s, which needs %s.", h.Model, Bytes(h.Need))
}

// crowd decides a demand for which there is no room unless busy homes go.
func (s *state) crowd(h Home, short int64) {
	account := s.accounts[h.Device]
	message := fmt.Sprintf("Needs %s; %s of %s is free on %s%s.", Bytes(h.Need), Bytes(max(s.free[h.Device], 0)), Bytes(account.Capacity), h.Device, s.holders(h.Device))
	if h.Need > account.Capacity-s.staying(h) {
		s.refuse(h, message, false)
		return
	}
	since := h.WantedSince
	if h.Waiting > 0 {
		since = h.WaitingSince
	}
	if due := since.Add(Turn); s.now.Before(due) {
		s.again(due)
		s.refuse(h, message, true)
		return
	}
	had, all := s.turns(h)
	victims := enough(had, short)
	if victims == nil {
		s.refuse(h, message, true)
		if total(all) >= short { // its turn comes: nobody else takes what is free meanwhile
			s.free[h.Device] -= h.Need
			for _, v := range all {
				if v.Loaded && s.now.Before(v.turn()) {
					s.again(v.turn())
				}
			}
		}
		return
	}
	if !slices.ContainsFunc(victims, func(v *Home) bool { return v.Running > 0 && !v.Old }) {
		for _, v := range victims {
			s.evict(v, room(h))
		}
		s.promise(h)
		return
	}
	for _, v := range victims {
		s.yielding[v] = true
		s.decision.Yields = append(s.decision.Yields, Yield{v.Model, v.Device, room(h), v.Old})
	}
	s.refuse(h, message, true)
	s.free[h.Device] -= max(h.Need-total(victims), 0)
}

// staying is what other homes on a device hold for as long as the assignment is as it is.
func (s *state) staying(wanted Home) (n int64) {
	for i := range s.homes {
		h := &s.homes[i]
		if h.Device == wanted.Device && h.Model != wanted.Model && !h.Old && !h.Leaving && (h.Required || h.NeverEvict) {
			n += h.Held
		}
	}
	return n + s.stay[wanted.Device]
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

// may are the homes of a device that may leave it for another, if they are idle.
func (s *state) may(device string, which func(*Home) bool) (list []*Home) {
	for i := range s.homes {
		h := &s.homes[i]
		if h.Device == device && h.Held > 0 && !h.Leaving && !s.yielding[h] && (h.Old || !h.Required && !h.NeverEvict) && which(h) {
			list = append(list, h)
		}
	}
	return list
}

// idlers are the old and the idle homes that may make room, in the order in which they go.
func (s *state) idlers(wanted Home) []*Home {
	may := s.may(wanted.Device, func(h *Home) bool { return h.Loaded && (h.Old || !h.busy()) })
	slices.SortStableFunc(may, func(a, b *Home) int {
		return cmp.Or(cmp.Compare(rank(a, wanted), rank(b, wanted)), cmp.Compare(a.EvictionOrder, b.EvictionOrder), a.LastUse.Compare(b.LastUse))
	})
	return may
}

// turns are the homes that may make room for one whose turn it is: those that have had
// theirs, in the order in which they go, and all of them, with those that are to have it.
func (s *state) turns(wanted Home) (had, all []*Home) {
	all = s.may(wanted.Device, func(h *Home) bool { return h.Old || !h.busy() && h.Loaded || h.EvictionOrder <= wanted.EvictionOrder })
	for _, h := range all {
		if h.Loaded && (h.Old || !h.busy() || !s.now.Before(h.turn())) {
			had = append(had, h)
		}
	}
	slices.SortStableFunc(had, func(a, b *Home) int {
		return cmp.Or(cmp.Compare(rank(a, wanted), rank(b, wanted)), compareBool(a.busy(), b.busy()), cmp.Compare(a.EvictionOrder, b.EvictionOrder), a.ResidentSince.Compare(b.ResidentSince))
	})
	return had, all
}

// compareBool: false comes first.
func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}

// rank: former revisions go first, its own before others'.
func rank(h *Home, wanted Home) int {
	switch {
	case h.Old && h.Model == wanted.Model:
		return 0
	case h.Old:
		return 1
	}
	return 2
}

// enough are the first of those that may go that together hold at least short bytes, none
// of them in vain; nil if there are not enough.
func enough(may []*Home, short int64) []*Home {
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

func (s *state) refuse(h Home, message string, crowded bool) {
	if limit := s.accounts[h.Device].Limit; limit != "" {
		message += " " + limit
	}
	s.decision.Refusals = append(s.decision.Refusals, Refusal{Model: h.Model, Device: h.Device, Message: message, Crowded: crowded})
}

// again asks for another decision then, or before.
func (s *state) again(at time.Time) {
	if s.decision.Again.IsZero() || at.Before(s.decision.Again) {
		s.decision.Again = at
	}
}

func total(homes []*Home) (n int64) {
	for _, h := range homes {
		n += h.Held
	}
	return n
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
	case h.Running+h.Waiting == 1:
		return "1 request"
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
