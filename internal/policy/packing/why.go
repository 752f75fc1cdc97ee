package packing

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// class says why a device is refused. A device is in the first class that applies.
type class int

const (
	fits     class = iota
	unsuited       // of another kind, or too old
	tooSmall       // even when empty
	excluded       // holds a replica already, or must not be used
	reserved       // for a model that is tried alone, or not empty when w must be alone
	noHost         // its worker has too little of its host left
	full           // now, and would not be if what may go left
	pinned         // now, and by what may not go
)

// Why says why there is no home: the devices that were refused, by class.
type Why struct {
	Alone      bool
	Whole      int      // whole devices that are wanted; 0: a share of one
	Need       int64    // the least that any allowed pool needs, in bytes a device
	Kinds      []string // that are asked for
	Capability int      // the least
	Host       Host     // needed

	Unsuited        int   // devices of another kind, or too old
	TooSmall        int   // devices whose whole capacity is less than the need
	LargestCapacity int64 // among all devices of the right kind
	Full            int   // devices that could hold it if others left
	Pinned          int   // devices that could hold it if what may not go left
	NoHost          int   // devices of workers with too little CPU or memory left
	LargestFree     int64 // among all devices that may be used
	FreeOf          int64 // capacity of the device with the largest free room
	FreeOn          string
	Reserved        int // devices of workers kept for a model that is tried alone
	Excluded        int // devices of workers that hold a replica already or must not be used

	// Awake are models that are awake on FreeOn, and Stay those on Full or Pinned devices that may not go:
	// the first three, by name.
	Awake []string
	Stay  []string

	// Go are the models that would have to leave the device Leave, the fewest and then the smallest.
	Go    []string
	Leave string // "worker/device"
}

// Why looks at every device once more, for a Want that has no home.
func (f *Fleet) Why(w Want) Why {
	y := Why{Alone: w.Alone, Whole: w.Devices, Need: smallest(w.Need), Kinds: w.Kinds, Capability: w.Capability, Host: w.Host}
	f.exclude(&w)
	var most, least *device // the most free; the one that the fewest would have to leave
	var leaves leavers
	for _, pool := range sortedKeys(w.Need) {
		need := w.need(pool)
		for _, at := range f.workersOf(pool) {
			refused := f.refuses(at, &w)
			for _, d := range at.devices {
				c := d.class(&w, need, refused)
				if c == unsuited {
					y.Unsuited++
					continue
				}
				y.LargestCapacity = max(y.LargestCapacity, d.Capacity)
				switch {
				case c != full:
				case !d.clearable(&w, need):
					c = pinned
					y.stay(d)
				case leaves.n == 1 && !d.betterOne(&w, need, leaves.bytes):
				default:
					if l, ok := d.leavers(&w, need); ok && (least == nil || l.fewer(leaves)) {
						least, leaves = d, l
					}
				}
				y.count(c)
				if c != excluded && (most == nil || d.freer(most)) {
					most = d
				}
			}
		}
	}
	if least != nil {
		y.Leave = least.Worker + "/" + least.Name
		for _, e := range leaves.of(least, &w) {
			y.Go = append(y.Go, e.Model)
		}
		slices.Sort(y.Go)
	}
	if most != nil {
		y.LargestFree, y.FreeOf, y.FreeOn = max(0, most.room()), most.Capacity, most.Worker+"/"+most.Name
		y.awake(most)
	}
	return y
}

// freer: d has more room than e.
func (d *device) freer(e *device) bool {
	return cmp.Or(cmp.Compare(max(0, e.room()), max(0, d.room())), cmp.Compare(d.Worker, e.Worker), cmp.Compare(d.Name, e.Name)) < 0
}

// awake names models that are awake where others sleep.
func (y *Why) awake(d *device) {
	if d.asleep == 0 || d.Capacity < y.Need { // nobody who leaves would make it large enough
		return
	}
	for _, e := range d.held {
		if !e.sleeping() && len(y.Awake) < 3 {
			y.Awake = append(y.Awake, e.Model)
		}
	}
}

func (f *Fleet) workersOf(name string) []*worker {
	if p := f.pools[name]; p != nil {
		return p.workers
	}
	return nil
}

// class of a device that has no room for w, unless its worker is refused.
func (d *device) class(w *Want, need int64, refused class) class {
	switch {
	case !w.suits(d.kind):
		return unsuited
	case d.fit(need) > d.Capacity:
		return tooSmall
	case refused != fits:
		return refused
	}
	return full
}

func (y *Why) count(c class) {
	switch c {
	case tooSmall:
		y.TooSmall++
	case full:
		y.Full++
	case pinned:
		y.Pinned++
	case reserved:
		y.Reserved++
	case excluded:
		y.Excluded++
	case noHost:
		y.NoHost++
	}
}

func (y *Why) stay(d *device) {
	for _, e := range d.held {
		if e.Pinned && !slices.Contains(y.Stay, e.Model) {
			y.Stay = append(y.Stay, e.Model)
		}
	}
	slices.Sort(y.Stay)
	y.Stay = y.Stay[:min(3, len(y.Stay))]
}

// leavers are how many homes would have to leave a device, and their bytes.
type leavers struct {
	n     int
	bytes int64
}

func (l leavers) fewer(o leavers) bool {
	return cmp.Or(cmp.Compare(l.n, o.n), cmp.Compare(l.bytes, o.bytes)) < 0
}

// clearable: w would have room if all that may go left d.
func (d *device) clearable(w *Want, need int64) bool {
	stays := d.awake + d.asleep - heldBytes(d)
	if stays == 0 && !slices.ContainsFunc(d.held, func(e *held) bool { return e.Pinned }) {
		return true
	}
	a := d.without(filter(d.held, func(e *held) bool { return !e.Pinned }))
	if w.Devices > 0 {
		return a.awake == 0 && a.asleep == 0
	}
	return a.left(w, d.fit(need)) >= 0
}

// betterOne: there is one home of fewer bytes that would be enough.
func (d *device) betterOne(w *Want, need, bytes int64) bool {
	if w.Devices > 0 {
		return len(d.held) == 1 && d.awake+d.asleep < bytes
	}
	n := d.fit(need)
	for _, e := range d.held {
		if d.fit(e.Bytes) >= bytes || e.Pinned {
			continue
		}
		if a := d.but(e); a.left(w, n) >= 0 {
			return true
		}
	}
	return false
}

func heldBytes(d *device) (sum int64) {
	for _, e := range d.held {
		sum += d.fit(e.Bytes)
	}
	return sum
}

// leavers says how many would have to leave d so that w has room; false: not even
// all that may go would do.
func (d *device) leavers(w *Want, need int64) (leavers, bool) {
	if w.Devices > 0 {
		l, left := leavers{}, d.awake+d.asleep
		for _, e := range d.held {
			n := d.fit(e.Bytes)
			if e.Pinned {
				return l, false
			}
			l.n, l.bytes, left = l.n+1, l.bytes+n, left-n
		}
		return l, left == 0
	}
	gone := d.fewest(w, need)
	l := leavers{n: len(gone)}
	for _, e := range gone {
		l.bytes += d.fit(e.Bytes)
	}
	return l, len(gone) > 0
}

// of are the homes that leavers counted.
func (l leavers) of(d *device, w *Want) []*held {
	if w.Devices > 0 {
		return d.held
	}
	return d.fewest(w, w.need(d.Pool))
}

// fewest are the homes that would have to leave d for w: the smallest that is
// enough, or else the largest ones; none where even all are not enough.
func (d *device) fewest(w *Want, need int64) []*held {
	n := d.fit(need)
	var may []*held
	for _, e := range d.held {
		if !e.Pinned {
			may = append(may, e)
		}
	}
	slices.SortStableFunc(may, func(a, b *held) int { return cmp.Compare(b.Bytes, a.Bytes) })
	for i := range slices.Backward(may) {
		if a := d.without(may[i : i+1]); a.left(w, n) >= 0 {
			return may[i : i+1]
		}
	}
	for i := range may {
		if a := d.without(may[:i+1]); a.left(w, n) >= 0 {
			return may[:i+1]
		}
	}
	return nil
}

// without is d's account as it would be if homes left.
func (d *device) without(gone []*held) account {
	a := d.account
	a.largest = 0
	for _, e := range d.held {
		n, sleeps := d.fit(e.Bytes), e.sleeping()
		switch {
		case !slices.Contains(gone, e):
			if sleeps {
				a.largest = max(a.largest, n)
			}
		case sleeps:
			a.asleep -= n
			a.share -= n * awake(e.Awake)
		default:
			a.awake -= n
		}
	}
	return a
}

// Devices that were looked at.
func (y Why) Devices() int {
	return y.Unsuited + y.TooSmall + y.Full + y.Pinned + y.NoHost + y.Reserved + y.Excluded
}

// String says it in whole sentences.
func (y Why) String() string {
	var b strings.Builder
	needs := Size(y.Need)
	if y.Whole > 1 {
		needs += fmt.Sprintf(" on each of %d whole devices of one worker", y.Whole)
	}
	switch {
	case y.Devices() == 0:
		return fmt.Sprintf("Needs %s; there is no device yet.", needs)
	case y.Unsuited == y.Devices():
		return fmt.Sprintf("Needs %s on a device %s; none of %d is.", needs, y.asked(), y.Unsuited)
	case y.FreeOn == "":
		fmt.Fprintf(&b, "Needs %s; every worker that could hold it holds a replica already or is on its way out.", needs)
	default:
		fmt.Fprintf(&b, "Needs %s; the largest free device has %s of %s.", needs, Size(y.LargestFree), Size(y.FreeOf))
	}
	if y.Unsuited > 0 {
		fmt.Fprintf(&b, " %s not %s.", devices(y.Unsuited), y.asked())
	}
	if y.TooSmall > 0 {
		fmt.Fprintf(&b, " %s too small even when empty (the largest has %s).", devices(y.TooSmall), Size(y.LargestCapacity))
	}
	if y.NoHost > 0 {
		fmt.Fprintf(&b, " %s on workers with less than %d milli-CPU or %s of memory left.", devices(y.NoHost), y.Host.CPU, Size(y.Host.Memory))
	}
	if y.Full > 0 {
		fmt.Fprintf(&b, " %s full now.", devices(y.Full))
	}
	if y.Pinned > 0 && len(y.Stay) > 0 {
		fmt.Fprintf(&b, " %s full of what may not leave (%s).", devices(y.Pinned), strings.Join(y.Stay, ", "))
	} else if y.Pinned > 0 {
		fmt.Fprintf(&b, " %s full of what is no model's.", devices(y.Pinned))
	}
	if len(y.Awake) > 0 {
		fmt.Fprintf(&b, " %s cannot be shared further while awake there: %s.", y.FreeOn, strings.Join(y.Awake, ", "))
	}
	if y.Reserved > 0 && y.Alone {
		fmt.Fprintf(&b, " %s not empty, and it is to be tried alone.", devices(y.Reserved))
	} else if y.Reserved > 0 {
		fmt.Fprintf(&b, " %s kept for a model that is tried alone after a worker died.", devices(y.Reserved))
	}
	if y.Excluded > 0 && y.FreeOn != "" {
		fmt.Fprintf(&b, " %s on workers that hold a replica already or are on their way out.", devices(y.Excluded))
	}
	if len(y.Go) > 0 {
		fmt.Fprintf(&b, " To make room on %s, %s would have to go.", y.Leave, strings.Join(y.Go, ", "))
	}
	return b.String()
}

// asked is what a device must be.
func (y Why) asked() string {
	var parts []string
	if len(y.Kinds) > 0 {
		parts = append(parts, "of kind "+strings.Join(y.Kinds, " or "))
	}
	if y.Capability > 0 {
		parts = append(parts, fmt.Sprintf("of compute capability %d.%d or more", y.Capability/10, y.Capability%10))
	}
	return strings.Join(parts, " and ")
}

func devices(n int) string {
	if n == 1 {
		return "1 device is"
	}
	return fmt.Sprintf("%d devices are", n)
}

func smallest(need map[string]int64) int64 {
	var n int64
	for _, pool := range sortedKeys(need) {
		if n == 0 || need[pool] < n {
			n = need[pool]
		}
	}
	return n
}

// Size writes bytes for people: 14.2 GiB, 525 KiB, 12 B. It rounds to one decimal.
func Size(n int64) string {
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	v, unit := float64(n)/1024, 0
	for v >= 1024 && unit < 4 {
		v, unit = v/1024, unit+1
	}
	return strings.Replace(fmt.Sprintf("%.1f %ciB", v, "KMGTP"[unit]), ".0 ", " ", 1)
}
