package bench

import (
	"fmt"

	"github.com/estiba/estiba/runtime/graph"
	"github.com/estiba/estiba/runtime/model"
)

// weightBytes are what one token reads of the weights, as they are stored: all of them, but
// of tables that are looked up a row, and of a layer's experts the chosen ones. What is
// used twice counts once.
func weightBytes(m *model.Model) (int64, error) {
	g := m.Graph
	share := make([]float64, len(g.Weights)) // of each weight, that is read
	for _, n := range g.Nodes {
		experts := 0
		for _, v := range n.In {
			if g.IsWeight(v) {
				experts++
			}
		}
		for _, v := range n.In {
			if !g.IsWeight(v) {
				continue
			}
			part := 1.0
			switch n.Kind {
			case graph.Embed, graph.Positions:
				part = 1 / float64(g.Weights[v].Shape[0])
			case graph.ExpertMatMul:
				part = float64(n.Attr.TopK) / float64(experts)
			}
			share[v] = max(share[v], part)
		}
	}
	total := 0.0
	for v, w := range g.Weights {
		t, err := m.Weights(w.Name)
		if err != nil {
			return 0, fmt.Errorf("weight %q: %w", w.Name, err)
		}
		total += share[v] * float64(len(t.Data))
	}
	return int64(total), nil
}
