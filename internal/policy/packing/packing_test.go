package packing

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
)

const gib = 1 << 30

// fleet reads "w0/0=60/80 w1/0=0/80": used of capacity in GiB, in pool p. A
// device "pool:w0/0=..." is of another pool; "w0/0=0/80!Heat" is degraded.
func fleet(text string) *Fleet {
	var devices []Device
	var homes []Home
	for i, part := range strings.Fields(text) {
		pool := "p"
		if before, after, ok := strings.Cut(part, ":"); ok {
			pool, part = before, after
		}
		part, degraded, _ := strings.Cut(part, "!")
		name, size, _ := strings.Cut(part, "=")
		worker, device, _ := strings.Cut(name, "/")
		var used, capacity int64
		fmt.Sscanf(size, "%d/%d", &used, &capacity)
		devices = append(devices, Device{Pool: pool, Worker: worker, Name: device, Capacity: capacity * gib, Extent: gib, Degraded: degraded})
		if used > 0 {
			homes = append(homes, Home{Model: fmt.Sprintf("m%d", i), Pool: pool, Worker: worker, Devices: []string{device}, Bytes: used * gib})
		}
	}
	f := New(nil, devices, nil)
	for _, h := range homes {
		f.Take(h)
	}
	return f
}

func TestPlace(t *testing.T) {
	need := func(n int64) map[string]int64 { return map[string]int64{"p": n * gib} }
	for name, c := range map[string]struct {
		fleet string
		want  Want
		home  string // or the reason why there is none
		say   string
	}{
		"the fuller device wins when both have room": {"w0/0=60/80 w1/0=20/80", Want{Model: "x", Need: need(14)}, "w0/0", "tightest of 2 devices with room: 6 GiB left"},
		"the only one":              {"w0/0=70/80 w1/0=20/80", Want{Model: "x", Need: need(14)}, "w1/0", "the only device with room: 46 GiB left"},
		"equal: by name":            {"w1/0=0/80 w0/1=0/80 w0/0=0/80", Want{Model: "x", Need: need(1)}, "w0/0", "tightest of 3 devices with room: 79 GiB left"},
		"a smaller empty device":    {"w0/0=0/80 w1/0=0/24", Want{Model: "x", Need: need(20)}, "w1/0", "tightest of 2 devices with room: 4 GiB left"},
		"exactly":                   {"w0/0=66/80", Want{Model: "x", Need: need(14)}, "w0/0", "the only device with room: 0 B left"},
		"whole extents":             {"w0/0=66/80", Want{Model: "x", Need: map[string]int64{"p": 13*gib + 1}}, "w0/0", "the only device with room: 0 B left"},
		"not these":                 {"w0/0=60/80 w1/0=20/80", Want{Model: "x", Need: need(14), Not: map[string]bool{"w0": true}}, "w1/0", "the only device with room: 46 GiB left"},
		"one home on a worker":      {"w0/0=10/80 w0/1=0/80", Want{Model: "m0", Need: need(14)}, "", "Needs 14 GiB; every worker that could hold it holds a replica already or is on its way out."},
		"alone":                     {"w0/0=10/80 w1/0=0/80", Want{Model: "x", Need: need(14), Alone: true}, "w1/0", "the only device with room on a worker without other models: 66 GiB left"},
		"nowhere alone":             {"w0/0=10/80", Want{Model: "x", Need: need(14), Alone: true}, "", "Needs 14 GiB; the largest free device has 70 GiB of 80 GiB. 1 device is not empty, and it is to be tried alone."},
		"a degraded one is avoided": {"w0/0=60/80!Heat w1/0=20/80", Want{Model: "x", Need: need(14)}, "w1/0", "tightest of 2 devices with room: 46 GiB left"},
		"even for one that is busy": {"w0/0=60/80!Heat w1/0=20/80", Want{Model: "x", Need: need(14), Load: 1001}, "w1/0", "tightest of 2 devices with room: 46 GiB left"},
		"unless no other has room":  {"w0/0=60/80!Heat w1/0=70/80", Want{Model: "x", Need: need(14)}, "w0/0", "the only device with room: 6 GiB left, though degraded (Heat): no other has room"},
		"whole ones in order first": {"w0/0=0/40!Heat w0/1=0/80 w0/2=0/80", Want{Model: "x", Need: need(14), Devices: 2}, "w0/1", "tightest of 3 whole devices with room: 66 GiB left"},
		"another pool is no use":    {"q:w0/0=0/80", Want{Model: "x", Need: need(14)}, "", "Needs 14 GiB; there is no device yet."},
		"a pool where it is smaller": {"p:w0/0=0/80 q:w1/0=0/80", Want{Model: "x", Need: map[string]int64{"p": 20 * gib, "q": 30 * gib}},
			"w1/0", "tightest of 2 devices with room: 50 GiB left"},
		"too large for all": {"w0/0=60/80 w1/0=0/24", Want{Model: "x", Need: need(100)}, "",
			"Needs 100 GiB; the largest free device has 24 GiB of 24 GiB. 2 devices are too small even when empty (the largest has 80 GiB)."},
		"full now": {"w0/0=60/80 w1/0=70/80 w2/0=0/24", Want{Model: "x", Need: need(30)}, "",
			"Needs 30 GiB; the largest free device has 24 GiB of 24 GiB. 1 device is too small even when empty (the largest has 80 GiB). 2 devices are full now. To make room on w0/0, m0 would have to go."},
	} {
		t.Run(name, func(t *testing.T) {
			h, say, why := fleet(c.fleet).Place(c.want, nil)
			at := ""
			if h.Worker != "" {
				at = h.Worker + "/" + first(h.Devices)
			} else {
				say = why.String()
			}
			if at != c.home || say != c.say {
				t.Errorf("%q: %s\nwant %q: %s", at, say, c.home, c.say)
			}
		})
	}
}

func TestAloneKeepsOthersOut(t *testing.T) {
	f := fleet("w0/0=0/80 w0/1=0/80")
	h, _, _ := f.Place(Want{Model: "x", Need: map[string]int64{"p": gib}, Alone: true}, nil)
	if _, _, why := f.Place(Want{Model: "y", Need: map[string]int64{"p": gib}}, nil); why.Reserved != 2 {
		t.Errorf("y is refused with %+v", why)
	}
	f.Undo(h)
	if at, _, _ := f.Place(Want{Model: "y", Need: map[string]int64{"p": gib}}, nil); at.Worker != "w0" {
		t.Errorf("y is at %+v", at)
	}
}

func TestFewestGo(t *testing.T) {
	f := New(nil, []Device{{Pool: "p", Worker: "w", Name: "0", Capacity: 80, Extent: 1}, {Pool: "p", Worker: "w", Name: "1", Capacity: 80, Extent: 1}}, nil)
	for i, n := range []int64{30, 30, 20} {
		f.Take(Home{Model: fmt.Sprintf("a%d", i), Worker: "w", Devices: []string{"0"}, Bytes: n})
	}
	f.Take(Home{Model: "b", Worker: "w", Devices: []string{"1"}, Bytes: 60})
	f.Take(Home{Worker: "w", Devices: []string{"1"}, Bytes: 20}) // not a model's
	_, _, why := f.Place(Want{Model: "x", Need: map[string]int64{"p": 50}}, nil)
	if !slices.Equal(why.Go, []string{"b"}) || why.Leave != "w/1" {
		t.Errorf("%v would have to go from %s, want b from w/1", why.Go, why.Leave)
	}
}

// dumb is the rule as one says it: of all devices with room, the one with the least left.
func dumb(devices []Device, homes []Home, w Want) string {
	best, left := "", int64(-1)
	devices = slices.Clone(devices)
	slices.SortFunc(devices, func(a, b Device) int {
		return cmp.Or(cmp.Compare(a.Pool, b.Pool), cmp.Compare(a.Worker, b.Worker), cmp.Compare(a.Name, b.Name))
	})
	for _, d := range devices {
		need, allowed := w.Need[d.Pool]
		if !allowed || w.Not[d.Worker] {
			continue
		}
		free, ok := d.Capacity, true
		for _, h := range homes {
			if h.Worker == d.Worker {
				ok = ok && h.Model != w.Model && !h.Alone && !w.Alone
				if h.Devices[0] == d.Name {
					free -= h.Bytes
				}
			}
		}
		if free -= need; ok && free >= 0 && (left < 0 || free < left) {
			best, left = d.Worker+"/"+d.Name, free
		}
	}
	return best
}

// TestTwin places and takes away at random and compares with the dumb rule.
// Whatever happens, no device is used beyond its capacity, and the order of the
// devices does not matter.
func TestTwin(t *testing.T) {
	for seed := range uint64(3000) {
		r := rand.New(rand.NewPCG(seed, 1))
		var devices []Device
		for w := range 1 + r.IntN(4) {
			for d := range 1 + r.IntN(2) {
				devices = append(devices, Device{Pool: string("pq"[w%2]), Worker: fmt.Sprint("w", w), Name: fmt.Sprint(d), Capacity: int64(r.IntN(20)), Extent: 1})
			}
		}
		f := New(nil, devices, nil)
		r.Shuffle(len(devices), func(i, j int) { devices[i], devices[j] = devices[j], devices[i] })
		g := New(nil, devices, nil)
		var homes []Home
		for range 30 {
			if len(homes) > 0 && r.IntN(3) == 0 {
				i := r.IntN(len(homes))
				f.Undo(homes[i])
				g.Undo(homes[i])
				homes = slices.Delete(homes, i, i+1)
				continue
			}
			w := Want{Model: fmt.Sprint("m", r.IntN(8)), Need: map[string]int64{"p": int64(1 + r.IntN(12))}, Alone: r.IntN(8) == 0, Not: map[string]bool{fmt.Sprint("w", r.IntN(6)): true}}
			if r.IntN(2) == 0 {
				w.Need["q"] = int64(1 + r.IntN(12))
			}
			want := dumb(devices, homes, w)
			h, say, why := f.Place(w, nil)
			again, sayAgain, whyAgain := g.Place(w, nil)
			if !reflect.DeepEqual(h, again) || say != sayAgain || why.String() != whyAgain.String() {
				t.Fatalf("seed %d: the order of devices matters: %v %v", seed, h, again)
			}
			if got := strings.Trim(h.Worker+"/"+first(h.Devices), "/"); got != want {
				t.Fatalf("seed %d: %+v goes to %q, the dumb rule says %q", seed, w, got, want)
			}
			if h.Worker == "" {
				continue
			}
			homes = append(homes, h)
			if free := f.Free(h.Worker, first(h.Devices)); free < 0 {
				t.Fatalf("seed %d: %s/%s is over its capacity by %d", seed, h.Worker, h.Devices, -free)
			}
		}
	}
}

func TestSize(t *testing.T) {
	for n, want := range map[int64]string{0: "0 B", 1023: "1023 B", 525 << 10: "525 KiB", 1153434: "1.1 MiB", 1 << 40: "1 TiB", 15247343616: "14.2 GiB"} {
		if got := Size(n); got != want {
			t.Errorf("Size(%d) is %q, want %q", n, got, want)
		}
	}
}

func first(names []string) string {
	if len(names) == 0 {
		return ""
	}
	return names[0]
}
