package controllers

import (
	"fmt"
	"testing"

	"github.com/estiba/estiba/internal/fixture"
)

// BenchmarkDecide is a decision for 1,000 models on 250 devices, nothing to do.
func BenchmarkDecide(b *testing.B) {
	seen := seenWith(nil)
	seen.Pools[0].Spec.Workers.Max = 250
	for w := range 250 {
		at := reporting(fmt.Sprintf("w%03d", w), 5, 1)
		for i := range 4 {
			m := fixture.NewModel(fmt.Sprintf("m%03d-%d", w, i))
			seen.Models = append(seen.Models, m)
			h := resident(m, 15)
			at.Report.Homes = append(at.Report.Homes, h)
			at.Report.Devices[0].UsedBytes += 15 * gib
		}
		seen.Workers = append(seen.Workers, at)
	}
	for b.Loop() {
		plan := Decide(seen)
		seen.Memory = plan.Memory
	}
}
