package kvcache

import "fmt"

// Slab is the account of a device's KV extents: who holds which. Each cache has a
// floor that is its by right, and borrows beyond it whatever nobody uses: extents that
// are free, and such that hold only old prefixes, whosever they are. At all times
// held + free = extents, an extent belongs to one cache at most, and, but for the time
// between Resize and Reclaim, held <= budget, with the sum of the floors <= budget.
//
// What a cache is short of its floor is there for it: Debtor says who must give
// something up. It is pure, and not safe for concurrent use.
type Slab struct {
	extents int
	budget  int     // that caches may hold together
	held    int     // that they hold
	floors  int     // sum
	free    []int32 // the last is given next
	touched []bool  // extent -> given since the last Discard; free ones that were are above those that were not
	dirty   int     // extents that are touched
	caches  []*Cache
	clock   uint64 // grows with each block that becomes free: the order of uses
}

// NewSlab is the account of so many extents, all of which caches may hold.
func NewSlab(extents int) *Slab {
	s := &Slab{extents: extents, budget: extents, touched: make([]bool, extents)}
	for i := range extents {
		s.free = append(s.free, int32(extents-1-i))
	}
	return s
}

// Budget is how many extents caches may hold together; the rest of the device's is for
// weights and workspaces.
func (s *Slab) Budget() int { return s.budget }

// Held is how many they hold.
func (s *Slab) Held() int { return s.held }

// Floors is the sum of the floors.
func (s *Slab) Floors() int { return s.floors }

// Resize changes the budget. Where caches hold more, Reclaim has to follow. It is refused
// below the sum of the floors, and beyond what the slab has.
func (s *Slab) Resize(budget int) error {
	if budget < s.floors || budget > s.extents {
		return fmt.Errorf("%d extents for keys and values: floors take %d, the slab has %d", budget, s.floors, s.extents)
	}
	s.budget = budget
	return nil
}

// Reclaim takes old prefixes until what caches hold is within the budget. If that is
// not enough it names the cache that must preempt, after which it is to be called again.
func (s *Slab) Reclaim() (debtor *Cache) {
	for s.held > s.budget {
		c := s.stalest(nil)
		if c == nil {
			return s.Debtor(nil)
		}
		c.surrender(c.idle.next)
	}
	return nil
}

// Debtor is the cache other than creditor that uses the most beyond its floor; nil if
// none does.
func (s *Slab) Debtor(creditor *Cache) *Cache {
	var most *Cache
	for _, c := range s.caches {
		if c != creditor && c.inUse() > c.floor && (most == nil || c.inUse()-c.floor > most.inUse()-most.floor) {
			most = c
		}
	}
	return most
}

// Settled says whether what has been written to since the last Discard is within the
// budget, and with it the memory that stands behind it.
func (s *Slab) Settled() bool { return s.dirty <= s.budget }

// Discard gives the free extents that may have memory behind them, which is to be given
// back: they hold nothing of use.
func (s *Slab) Discard() []int32 {
	var extents []int32
	for i := len(s.free) - 1; i >= 0 && s.touched[s.free[i]]; i-- {
		extents = append(extents, s.free[i])
		s.touched[s.free[i]] = false
	}
	s.dirty -= len(extents)
	return extents
}

// spare is how many extents anyone may take: free ones, and other caches' that hold only old prefixes.
func (s *Slab) spare(c *Cache) int {
	n := max(s.budget-s.held, 0)
	for _, other := range s.caches {
		if other != c {
			n += other.idling
		}
	}
	return n
}

// stalest is the cache, other than not, with the extent that has been of no use for the
// longest time.
func (s *Slab) stalest(not *Cache) *Cache {
	var stalest *Cache
	for _, c := range s.caches {
		if c != not && c.idling > 0 && (stalest == nil || c.idle.next.since < stalest.idle.next.since) {
			stalest = c
		}
	}
	return stalest
}
