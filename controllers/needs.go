package controllers

import "github.com/estiba/estiba/api/worker"

// needs is what a replica of a model needs, and the context that it has, in each
// pool of which that is known: one to a few pools, so that a list takes a tenth
// of what maps would.
type needs []need

type need struct {
	pool string // "namespace/name"
	worker.Footprint
	maxTokens int
}

// of is the need in a pool, if it is known.
func (n needs) of(pool string) (worker.Footprint, bool) {
	for i := range n {
		if n[i].pool == pool {
			return n[i].Footprint, true
		}
	}
	return worker.Footprint{}, false
}

// in is the need in a pool, or nothing.
func (n needs) in(pool string) worker.Footprint {
	f, _ := n.of(pool)
	return f
}

// tokens are the longest context in a pool; 0: unknown.
func (n needs) tokens(pool string) int {
	for i := range n {
		if n[i].pool == pool {
			return n[i].maxTokens
		}
	}
	return 0
}

func (n *needs) set(pool string, f worker.Footprint, maxTokens int) {
	for i := range *n {
		if (*n)[i].pool == pool {
			(*n)[i] = need{pool, f, maxTokens}
			return
		}
	}
	*n = append(*n, need{pool, f, maxTokens})
}
