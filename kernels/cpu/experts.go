package cpu

import (
	"math"
	"slices"
)

// Route chooses the topK likeliest of the experts by their scores [experts], whose softmax is
// their shares: y [2*topK] has their numbers, ascending, then their shares, divided by the sum
// of the chosen ones' if normalize. Of equals the first is taken.
// Source: arXiv:2401.04088, section 2.1.
func Route(y, scores []float32, topK int, normalize bool) {
	chosen, shares := y[:topK], y[topK:2*topK]
	for n := range chosen { // the lists are short
		best := -1
		for i, s := range scores {
			if (best < 0 || s > scores[best]) && !slices.Contains(chosen[:n], float32(i)) {
				best = i
			}
		}
		chosen[n] = float32(best)
	}
	largest := scores[int(chosen[0])]
	sum := float32(0)
	slices.Sort(chosen)
	if normalize {
		for _, c := range chosen {
			sum += exp(scores[int(c)] - largest)
		}
	} else {
		for _, s := range scores {
			sum += exp(s - largest)
		}
	}
	for i, c := range chosen {
		shares[i] = exp(scores[int(c)]-largest) / sum
	}
}

// RouteRef is Route by its definition, in float64.
func RouteRef(y, scores []float32, topK int, normalize bool) {
	order := make([]int, len(scores))
	shares := make([]float64, len(scores))
	sum := 0.0
	for i, s := range scores {
		order[i] = i
		shares[i] = math.Exp(float64(s))
		sum += shares[i]
	}
	for i := range shares {
		shares[i] /= sum
	}
	slices.SortStableFunc(order, func(a, b int) int {
		switch {
		case scores[a] > scores[b]:
			return -1
		case scores[a] < scores[b]:
			return 1
		}
		return 0
	})
	order = order[:topK]
	slices.Sort(order)
	chosen := 1.0
	if normalize {
		chosen = 0
		for _, e := range order {
			chosen += shares[e]
		}
	}
	for i, e := range order {
		y[i], y[topK+i] = float32(e), float32(shares[e]/chosen)
	}
}

// ExpertSum computes y [n], the sum of the parts of x [topK, n], each times its share [topK].
func ExpertSum(y, x, shares []float32) {
	clear(y)
	for k, share := range shares {
		for i, v := range x[k*len(y) : (k+1)*len(y)] {
			y[i] += float32(share * v)
		}
	}
}

// ExpertSumRef is ExpertSum in float64.
func ExpertSumRef(y, x, shares []float32) {
	for i := range y {
		sum := 0.0
		for k, share := range shares {
			sum += float64(share) * float64(x[k*len(y)+i])
		}
		y[i] = float32(sum)
	}
}
