package packing

import (
	"fmt"
	"math"
	"reflect"
	"slices"
	"testing"
)

// tape turns bytes into choices; at its end everything is 0.
type tape []byte

func (t *tape) n(n int) int {
	if len(*t) == 0 {
		return 0
	}
	b := (*t)[0]
	*t = (*t)[1:]
	return int(b) % n
}

// hostile are numbers that nobody should send.
var hostile = []int64{math.MaxInt64, math.MinInt64, math.MaxInt64 - 1, -1, mostBytes, mostBytes + 1, 2 * mostBytes, 1 << 62}

// bytes are mostly few, and sometimes hostile.
func (t *tape) bytes() int64 {
	if n := t.n(40); n >= 32 {
		return hostile[n-32]
	} else {
		return int64(n)
	}
}

func (t *tape) fleet() ([]Worker, []Device, []Shape) {
	var workers []Worker
	var devices []Device
	for i := range 1 + t.n(4) {
		w := Worker{Name: fmt.Sprint("w", i), Pool: string("pq"[t.n(5)/4]), Avoid: t.n(6) == 5, Host: Host{int64(t.n(30)), int64(t.n(30))}}
		workers = append(workers, w)
		for j := range t.n(4) {
			devices = append(devices, Device{Pool: w.Pool, Worker: w.Name, Name: fmt.Sprint(j), Kind: string("ab"[t.n(5)/4]), Capacity: t.bytes(), Extent: []int64{1, 2, 5, 0, -3, math.MaxInt64}[t.n(6)], Degraded: []string{"", "", "", "Heat"}[t.n(4)]})
		}
	}
	var mix []Shape
	for range t.n(5) {
		weight := []float64{1, 2, 3, 0, -1, math.NaN(), math.Inf(1), math.MaxFloat64}[t.n(8)]
		mix = append(mix, Shape{Need: map[string]int64{"p": t.bytes()}, Host: Host{int64(t.n(9)), 0}, Devices: t.n(9) / 6, Weight: weight})
	}
	return workers, devices, mix
}

func (t *tape) want() Want {
	w := Want{Model: fmt.Sprint("m", t.n(12)), Need: map[string]int64{"p": t.bytes()}, Priority: t.n(3), Load: 100 * t.n(8)}
	if t.n(3) == 0 {
		w.Need["q"] = t.bytes()
	}
	kind := t.n(32)
	w.Sleeps, w.Busy, w.Alone = kind&1 != 0, kind&6 == 6, kind == 31
	w.Awake = []int{250, 0, 100, 1000, -5, math.MaxInt}[t.n(6)]
	w.Devices = t.n(10) / 7
	w.Host = Host{int64(t.n(9)), int64(t.n(9))}
	return w
}

// books are a Fleet and the homes that it should have.
type books struct {
	t       *testing.T
	workers []Worker
	devices []Device
	mix     []Shape
	fleet   *Fleet
	homes   []Home
}

func (b *books) remove(h Home) {
	i := slices.IndexFunc(b.homes, func(o Home) bool { return reflect.DeepEqual(o, h) })
	if i < 0 {
		b.t.Fatalf("%+v is not there", h)
	}
	b.homes = slices.Delete(b.homes, i, i+1)
}

// came adds what a choice gave, which must leave the rule true.
func (b *books) came(h Home) {
	b.homes = append(b.homes, h)
	for _, name := range h.Devices {
		if room := b.fleet.Free(h.Worker, name); room < 0 {
			b.t.Fatalf("%+v left %d on its device", h, room)
		}
	}
}

func (b *books) moved(moves []Move) {
	for _, m := range moves {
		if m.Home.Pinned || m.Home.Young {
			b.t.Fatalf("%+v must not move", m.Home)
		}
		b.remove(m.Home)
		b.came(m.To)
	}
}

// step does one thing; where it says no, nothing may have changed.
func (b *books) step(t *tape) {
	before := dump(b.fleet)
	changed := true
	switch t.n(8) {
	case 0, 1:
		var h Home
		if h, _, changed = b.fleet.Put(t.want(), nil); changed {
			b.came(h)
		}
	case 2:
		w := t.want()
		h := Home{Model: w.Model, Worker: fmt.Sprint("w", t.n(5)), Bytes: w.Need["p"], Load: w.Load, Sleeps: w.Sleeps, Busy: w.Busy, Awake: w.Awake, Priority: w.Priority, Host: w.Host}
		for range t.n(3) {
			h.Devices = append(h.Devices, fmt.Sprint(t.n(4)))
		}
		if at := b.fleet.workers[h.Worker]; at != nil {
			h.Pool = at.Pool
		}
		h.Pinned, h.Young = t.n(4) == 3, t.n(4) == 3
		if t.n(6) == 5 {
			h.Model = ""
		}
		if changed = b.fleet.Take(h); changed {
			b.homes = append(b.homes, h)
		}
	case 3:
		if changed = len(b.homes) > 0; changed {
			h := b.homes[t.n(len(b.homes))]
			if !b.fleet.Undo(h) {
				b.t.Fatalf("%+v is not there", h)
			}
			i := slices.IndexFunc(b.homes, func(o Home) bool { return reflect.DeepEqual(o, h) })
			b.homes = slices.Delete(b.homes, i, i+1)
		}
	case 4:
		var moves []Move
		var h Home
		if moves, h, _, changed = b.fleet.MakeRoom(t.want(), 1+t.n(2)); changed {
			b.moved(moves)
			b.came(h)
		}
	case 5:
		var gone []Home
		var h Home
		w := t.want()
		if gone, h, _, changed = b.fleet.Displace(w); changed {
			for _, g := range gone {
				if g.Pinned || g.Priority >= w.Priority {
					b.t.Fatalf("%+v must not go for %+v", g, w)
				}
				b.remove(g)
			}
			b.came(h)
		}
	case 6:
		var moves []Move
		moves, changed = b.fleet.Empty(fmt.Sprint("w", t.n(5)), 3)
		changed = changed && len(moves) > 0
		b.moved(moves)
	case 7:
		moves := b.fleet.Defragment(2, 0.5)
		changed = len(moves) > 0
		b.moved(moves)
	}
	if after := dump(b.fleet); !changed && after != before {
		b.t.Fatalf("nothing was done, and yet it changed\n%s\n%s", before, after)
	}
}

// check: a fleet that takes the same homes is the same, and so is a clone; and what a
// Want hears about devices adds up.
func (b *books) check(w Want) {
	again := New(b.workers, b.devices, b.mix)
	for _, h := range b.homes {
		again.Take(h)
	}
	is := dump(b.fleet)
	if should := dump(again); is != should {
		b.t.Fatalf("it is\n%s\nand should be\n%s", is, should)
	}
	if clone := dump(b.fleet.Clone()); clone != is {
		b.t.Fatalf("the clone is\n%s\nof\n%s", clone, is)
	}
	if looked := b.fleet.Look(w); b.fleet.Why(w).Devices() != len(looked) {
		b.t.Fatalf("%d devices are counted, of %d", b.fleet.Why(w).Devices(), len(looked))
	}
	_ = b.fleet.Why(w).String()
}

// FuzzFleet does what bytes say to a small fleet, with numbers that nobody should send
// among them, and keeps books: nothing is over its capacity by a choice, and what is
// counted is what is there.
func FuzzFleet(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte("a fleet of some workers, and what happens to it in the course of a day, with many homes"))
	for seed := range 200 {
		b := make([]byte, 300)
		for i := range b {
			b[i] = byte(seed*131 + i*i*7 + i>>3*seed)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		in := tape(data[:min(len(data), 600)])
		b := &books{t: t}
		b.workers, b.devices, b.mix = in.fleet()
		b.fleet = New(b.workers, b.devices, b.mix)
		for len(in) > 0 {
			b.step(&in)
		}
		b.check(in.want())
	})
}
