package residency

import (
	"math/rand/v2"
	"testing"
	"time"
)

func TestClaim(t *testing.T) {
	const gib = 1 << 30
	now := time.Unix(0, 0)
	c := NewClaim(64 * gib)
	for i, s := range []struct {
		room, after int64 // GiB times 2; seconds
		want        int64
	}{
		{128, 1, 128},
		{127, 1, 128}, // comes and goes
		{68, 1, 68},   // somebody takes 30 GiB
		{67, 1, 68},
		{66, 1, 66},
		{128, 1, 66}, // and goes
		{128, 5, 66},
		{67, 1, 66}, // and comes back
		{128, 1, 66},
		{120, 5, 66}, // in part
		{128, 5, 120},
		{128, 1, 120},
		{128, 10, 128},
		{0, 1, 0},
		{-4, 1, 0},
		{1, 1, 0},
		{200, 1, 0},
		{200, 10, 128},
	} {
		now = now.Add(time.Duration(s.after) * time.Second)
		if c = c.See(s.room*gib/2, now); c.Now != s.want*gib/2 {
			t.Errorf("step %d: %d, want %d halves of a GiB", i, c.Now*2/gib, s.want)
		}
	}
}

// TestClaimBounds: whatever others do, the claim is never more than what they leave and some slack,
// and what they have left for long is there.
func TestClaimBounds(t *testing.T) {
	for seed := range uint64(200) {
		r := rand.New(rand.NewPCG(seed, 9))
		c, now, room, since := NewClaim(1+r.Int64N(1<<40)), time.Unix(0, 0), int64(0), time.Time{}
		for range 200 {
			if r.IntN(8) == 0 {
				room, since = r.Int64N(c.Whole*2), now
			}
			now = now.Add(time.Duration(r.IntN(4)) * time.Second)
			c = c.See(room, now)
			if c.Now < 0 || c.Now > c.Whole || c.Now > room+c.slack() {
				t.Fatalf("seed %d: %+v with %d", seed, c, room)
			}
			if now.Sub(since) > 4*Returned && c.Now < min(room, c.Whole)-c.slack() {
				t.Fatalf("seed %d: %+v, though there have been %d for %v", seed, c, room, now.Sub(since))
			}
		}
	}
}
