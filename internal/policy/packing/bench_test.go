package packing

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"testing"
	"time"
)

// large is 1,000 workers of 1 to 8 devices, and 10,000 models of different sizes where they were put.
func large() ([]Worker, []Device, []Home, []Shape) {
	r := rand.New(rand.NewPCG(1, 1))
	var workers []Worker
	var devices []Device
	for i := range 1000 {
		w := Worker{Name: fmt.Sprintf("w%03d", i), Pool: "p"}
		workers = append(workers, w)
		for d := range 1 + r.IntN(8) {
			devices = append(devices, Device{Pool: "p", Worker: w.Name, Name: strconv.Itoa(d), Kind: "cuda", Capability: 80, Capacity: 80 * gib, Extent: 2 << 20})
		}
	}
	var mix []Shape
	for range 100 {
		mix = append(mix, Shape{Need: map[string]int64{"p": 1 + r.Int64N(40*gib)}, Weight: 1})
	}
	f := New(workers, devices, mix)
	var homes []Home
	for i := range 10000 {
		h, _, ok := f.Put(largeWant(r, i), nil)
		if ok {
			homes = append(homes, h)
		}
	}
	return workers, devices, homes, mix
}

func largeWant(r *rand.Rand, i int) Want {
	return Want{Model: fmt.Sprint("m", i), Need: map[string]int64{"p": 1<<30 + r.Int64N(28*gib)}, Kinds: []string{"cuda"}, Capability: 70, Load: r.IntN(200), Sleeps: i%2 == 0, Awake: 250}
}

func BenchmarkTakeAll(b *testing.B) {
	workers, devices, homes, mix := large()
	for b.Loop() {
		f := New(workers, devices, mix)
		for _, h := range homes {
			f.Take(h)
		}
	}
	b.ReportMetric(float64(len(homes)), "homes")
}

func BenchmarkLarge(b *testing.B) {
	workers, devices, homes, mix := large()
	f := New(workers, devices, mix)
	for _, h := range homes {
		f.Take(h)
	}
	r := rand.New(rand.NewPCG(2, 1))
	i := len(homes)
	b.Run("Put", func(b *testing.B) {
		var took []time.Duration
		for b.Loop() {
			i++
			w := largeWant(r, i)
			start := time.Now()
			h, _, ok := f.Put(w, nil)
			took = append(took, time.Since(start))
			if ok {
				f.Undo(h)
			}
		}
		report(b, took)
	})
	b.Run("Why", func(b *testing.B) {
		for b.Loop() {
			w := largeWant(r, i)
			w.Need["p"] = 79 * gib
			w.Sleeps = false
			f.Why(w)
		}
	})
	b.Run("MakeRoom", func(b *testing.B) {
		for b.Loop() {
			g := f.Clone()
			w := largeWant(r, i)
			w.Need["p"] = 79 * gib
			g.MakeRoom(w, 2)
		}
	})
	b.Run("Displace", func(b *testing.B) {
		for b.Loop() {
			g := f.Clone()
			w := largeWant(r, i)
			w.Need["p"], w.Priority, w.Sleeps = 79*gib, 1, false
			g.Displace(w)
		}
	})
	b.Run("Defragment", func(b *testing.B) {
		for b.Loop() {
			f.Clone().Defragment(1, gib)
		}
	})
	b.Run("Clone", func(b *testing.B) {
		for b.Loop() {
			f.Clone()
		}
	})
}

// BenchmarkOpenb: a decision is a pod of the trace, from the first to the last.
func BenchmarkOpenb(b *testing.B) {
	o := readOpenb(b, "openb_pod_list_default")
	var took []time.Duration
	for b.Loop() {
		o.run(42, nil, false, func(d time.Duration) { took = append(took, d) })
	}
	report(b, took)
}

func report(b *testing.B, took []time.Duration) {
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Nanoseconds())/1e3, "p50-µs")
	b.ReportMetric(float64(took[len(took)*99/100].Nanoseconds())/1e3, "p99-µs")
}
