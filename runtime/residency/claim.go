package residency

import "time"

// Claim is what models may use of a device that other processes use as well, in bytes: what was
// claimed at the start, less what those have taken since. Who takes some lowers it at once; once
// they have given it back it rises, but not before that has lasted. The zero value is of no device.
type Claim struct {
	Whole int64 // at the start
	Now   int64
	// since then there has been more room than Now, and least was the smallest of it.
	since time.Time
	least int64
}

// NewClaim is a claim of which nobody has taken anything.
func NewClaim(whole int64) Claim { return Claim{Whole: whole, Now: whole} }

// Returned is how long room must have been there again before models may use it: whoever
// starts a program on a device often starts it anew.
const Returned = 10 * time.Second

// slack is a part of the claim that comes and goes without a word: 1/64, less than the headroom
// that is kept free by default.
func (c Claim) slack() int64 { return c.Whole / 64 }

// See is the claim once others leave so many bytes of the device for models, the claim's share
// of its headroom not among them. With a claim of 64 GiB, of which 1 GiB is slack:
//
//	others take 30 GiB: 34 GiB are left at once
//	they take half a GiB more: 34 GiB, and with another half 33 GiB
//	they go: 64 GiB after 10 s, or what was left in the worst of them
func (c Claim) See(room int64, now time.Time) Claim {
	room = min(max(room, 0), c.Whole)
	switch {
	case room <= c.Now-c.slack() || room == 0:
		c.Now, c.since = room, time.Time{}
	case room < c.Now+c.slack() && room < c.Whole || c.Now == c.Whole:
		c.since = time.Time{}
	case c.since.IsZero():
		c.since, c.least = now, room
	default:
		c.least = min(c.least, room)
		if now.Sub(c.since) >= Returned {
			c.Now, c.since = c.least, time.Time{}
		}
	}
	return c
}
