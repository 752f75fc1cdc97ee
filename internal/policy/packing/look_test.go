package packing

import (
	"fmt"
	"strings"
	"testing"
)

// TestLook: what Place chooses is a device that Look refuses for no reason, and
// Place finds none where Look refuses all.
func TestLook(t *testing.T) {
	f := New(nil, []Device{
		{Pool: "p", Worker: "w0", Name: "0", Capacity: 80 * gib, Extent: gib}, {Pool: "p", Worker: "w1", Name: "0", Capacity: 80 * gib, Extent: gib},
		{Pool: "p", Worker: "w2", Name: "0", Capacity: 24 * gib, Extent: gib}, {Pool: "p", Worker: "w3", Name: "0", Kind: "cpu", Capacity: 80 * gib, Extent: gib},
		{Pool: "p", Worker: "w4", Name: "0", Kind: "cuda", Capacity: 80 * gib, Extent: gib},
	}, nil)
	home := func(model, worker string, n int64) Home {
		return Home{Model: model, Pool: "p", Worker: worker, Devices: []string{"0"}, Bytes: n * gib}
	}
	f.Take(home("a", "w0", 60))
	pinned := home("b", "w1", 70)
	pinned.Pinned = true
	f.Take(pinned)
	f.Take(home("x", "w4", 30))
	for name, c := range map[string]struct {
		want Want
		says string
	}{
		"nowhere else": {Want{Model: "x", Need: map[string]int64{"p": 30 * gib}, Kinds: []string{"", "cuda"}},
			"w0/0 20: full now, w1/0 10: full of what may not leave, w2/0 24: too small even when empty, w3/0 80: of another kind, " +
				"w4/0 50: on workers that hold a replica already"},
		"some": {Want{Model: "y", Need: map[string]int64{"p": 30 * gib}, Alone: true, Not: map[string]bool{"w3": true}},
			"w0/0 20: not empty, and it is to be tried alone, w1/0 10: not empty, and it is to be tried alone, w2/0 24: too small even when empty, " +
				"w3/0 80: on workers that are not to be used, w4/0 50: not empty, and it is to be tried alone"},
		"fits": {Want{Model: "z", Need: map[string]int64{"p": 15 * gib}},
			"w0/0 20: , w1/0 10: full of what may not leave, w2/0 24: , w3/0 80: , w4/0 50: "},
	} {
		t.Run(name, func(t *testing.T) {
			var says []string
			free := map[string]bool{}
			for _, s := range f.Look(c.want) {
				says = append(says, fmt.Sprintf("%s/%s %d: %s", s.Worker, s.Device, s.Free/gib, s.Refused))
				free[s.Worker] = s.Refused == ""
			}
			if got := strings.Join(says, ", "); got != c.says {
				t.Errorf("%s\nwant %s", got, c.says)
			}
			h, _, _ := f.Place(c.want, nil)
			f.Undo(h)
			if h.Worker != "" && !free[h.Worker] || h.Worker == "" && strings.Contains(c.says, ": ,") {
				t.Errorf("Place chooses %q", h.Worker)
			}
		})
	}
}
